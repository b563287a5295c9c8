"""The facts: every change of state there is, as it stands in a frame.

A fact is a msgpack array that begins with its number; facts are applied by ``state`` and nowhere
else. The number and the fields of a fact are for ever; a new field goes to the end with a default.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec
from msgspec import Struct

if TYPE_CHECKING:
    from collections.abc import Sequence


class Options(Struct, frozen=True, forbid_unknown_fields=True):
    """A log's options as they are stored. ``sync`` None: the server's own policy.

    ``max_total_bytes``, ``max_file_age`` and ``blocking_minimum_retention`` (seconds) None: no
    bound. ``protected``: consumers by name, sorted.
    """

    sync: str | None = None
    file_roll_size: int = 64 << 20
    key_index: bool = False
    compact: bool = False
    max_total_bytes: int | None = None
    max_file_age: float | None = None
    blocking_minimum_retention: float | None = None
    protected: tuple[str, ...] = ()

    @property
    def retains(self) -> bool:
        """Something is to be trimmed some day."""
        return self.max_total_bytes is not None or self.max_file_age is not None


class Opened(Struct, frozen=True, array_like=True, tag=1):
    """A process took the directory: every claim is over, every epoch stays.

    ``boot``: the id of the machine's boot. ``difference_ns``: what the wall clock is ahead of the
    time since that boot, as it is believed; None: it is not believed yet.
    """

    boot: str = ""
    difference_ns: int | None = None


class Appended(Struct, frozen=True, array_like=True, tag=2):
    """A batch; the fact is its header. The frame's bodies follow in the order of these facts.

    ``keys``: the batch's keys column in a log with a key index, so that facts alone give the state.
    """

    header: bytes
    keys: bytes = b""


class Created(Struct, frozen=True, array_like=True, tag=3):
    log: int
    name: str
    options: Options


class Altered(Struct, frozen=True, array_like=True, tag=4):
    log: int
    options: Options


class Deleted(Struct, frozen=True, array_like=True, tag=5):
    log: int


class Trimmed(Struct, frozen=True, array_like=True, tag=6):
    """Segments that end at or below ``first`` are gone; it is the log's new first offset.

    ``copies``: parked records that are kept all the same: consumer, offset, a batch of that one.
    """

    log: int
    first: int
    copies: list[tuple[str, int, bytes]] = []


class Claimed(Struct, frozen=True, array_like=True, tag=7):
    """``committed``: where the cursor stands, which for a new one is where it was told to start."""

    log: int
    consumer: str
    epoch: int
    token: bytes
    holder: str
    committed: int


class Released(Struct, frozen=True, array_like=True, tag=8):
    log: int
    consumer: str
    epoch: int


class Committed(Struct, frozen=True, array_like=True, tag=9):
    """``offset``: of the first record not done with. ``begun``: the offset after the highest record
    that is in hand now, 0 for none.
    """

    log: int
    consumer: str
    epoch: int
    offset: int
    begun: int = 0


class Sought(Struct, frozen=True, array_like=True, tag=10):
    """The cursor was put somewhere, under a new epoch; a holder from outside is not kept."""

    log: int
    consumer: str
    epoch: int
    offset: int
    keep_holder: bool


class Forgotten(Struct, frozen=True, array_like=True, tag=11):
    """The cursor is gone."""

    log: int
    consumer: str


class Left(Struct, frozen=True, array_like=True, tag=12):
    """The member's connection ended and released nothing: with its token it may come back."""

    log: int
    consumer: str
    epoch: int


class Returned(Struct, frozen=True, array_like=True, tag=13):
    """It came back before anybody else had claimed, and goes on where it was."""

    log: int
    consumer: str
    epoch: int


class Evicted(Struct, frozen=True, array_like=True, tag=14):
    """The claim was ended from outside. ``lapsed``: a record was in hand for too long.

    ``name``: of a shared consumer, whose claims; None: all.
    """

    log: int
    consumer: str
    epoch: int
    lapsed: bool
    name: str | None = None


class Failed(Struct, frozen=True, array_like=True, tag=15):
    """A handler's attempt at a record failed; it is due again after ``delay_ns``."""

    log: int
    consumer: str
    epoch: int
    offset: int
    attempts: int
    error: str
    delay_ns: int


class Parked(Struct, frozen=True, array_like=True, tag=16):
    """A record was put aside, or (``keep`` False) passed over for good.

    ``cause``: what exhausted it, empty if that was the handler's own verdict. ``pause``: why the
    consumer is paused by it, if it is. ``begun``: as for Committed.
    """

    log: int
    consumer: str
    epoch: int
    offset: int
    attempts: int
    reason: str
    error: str
    cause: str
    pause: str | None
    keep: bool
    begun: int


class Redriven(Struct, frozen=True, array_like=True, tag=17):
    """Parked records are to be delivered again."""

    log: int
    consumer: str
    offsets: list[int]


class Took(Struct, frozen=True, array_like=True, tag=18):
    """A redriven record is in hand."""

    log: int
    consumer: str
    epoch: int
    offset: int


class Unparked(Struct, frozen=True, array_like=True, tag=19):
    """A redriven record is done with."""

    log: int
    consumer: str
    epoch: int
    offset: int


class Resumed(Struct, frozen=True, array_like=True, tag=20):
    """A paused consumer goes on, first with the records that paused it."""

    log: int
    consumer: str


class Named(Struct, frozen=True, array_like=True, tag=21):
    """A producer was opened by name; ``producer`` is its id for ever, ``epoch`` until the next."""

    log: int
    producer: int
    name: str
    epoch: int
    exclusive: bool


class Dropped(Struct, frozen=True, array_like=True, tag=22):
    """Producers without a name that were silent for so long that no retry of theirs can come."""

    log: int
    producers: list[int]


class Transacted(Struct, frozen=True, array_like=True, tag=23):
    """A client's transaction: what it did are the facts before this one, in the same frame.

    ``appends``: (log, first offset, end) of each batch, in the order in which they were asked for.
    ``dropped``: clients that were silent for so long that no repetition of theirs can come.
    """

    client: int
    number: int
    appends: list[tuple[int, int, int]]
    dropped: list[int] = []


class Doubted(Struct, frozen=True, array_like=True, tag=24):
    """The wall clock is not believed from here on: what is appended has no age that counts."""


class Trusted(Struct, frozen=True, array_like=True, tag=25):
    """The wall clock is believed again, or for the first time since ``boot``; fields as of Opened.

    What was appended under doubt counts as appended now.
    """

    boot: str
    difference_ns: int


class Compacted(Struct, frozen=True, array_like=True, tag=27):
    """The segments that hold the offsets ``base`` to ``end`` are one now: the file of this
    generation, of so many ``bytes``, in which so many offsets are ``absent``.

    ``stale``: how many superseded records were looked for, but for those that are held.
    """

    log: int
    base: int
    end: int
    generation: int
    bytes: int
    absent: int
    stale: int


class Joined(Struct, frozen=True, array_like=True, tag=29):
    """A member of a shared consumer has claimed; ``epoch`` is its own, and names it.

    ``committed``: where the cursor stands, which for a new one is where it was told to start.
    """

    log: int
    consumer: str
    epoch: int
    token: bytes
    holder: str
    committed: int


class Vanished(Struct, frozen=True, array_like=True, tag=30):
    """A member of a shared consumer is gone for good, with what it had in hand.

    ``lapsed``: those that it had for too long; only they are to blame then. ``error``: the text of
    that attempt.
    """

    log: int
    consumer: str
    epoch: int
    lapsed: list[int]
    error: str


class Completed(Struct, frozen=True, array_like=True, tag=31):
    """Of a shared consumer: records are done with, wherever they lie.

    ``done``: begin, end, begin, end ... of ranges of offsets. ``begun``: all that is in this
    member's hands from now on; None: what was, but for what is done with.
    """

    log: int
    consumer: str
    epoch: int
    done: list[int]
    begun: list[int] | None


Fact = (
    Opened
    | Appended
    | Created
    | Altered
    | Deleted
    | Trimmed
    | Claimed
    | Released
    | Committed
    | Sought
    | Forgotten
    | Left
    | Returned
    | Evicted
    | Failed
    | Parked
    | Redriven
    | Took
    | Unparked
    | Resumed
    | Named
    | Dropped
    | Transacted
    | Doubted
    | Trusted
    | Compacted
    | Joined
    | Vanished
    | Completed
)
_encoder: Final = msgspec.msgpack.Encoder()
_decoder: Final = msgspec.msgpack.Decoder(list[Fact])


class InvalidFacts(Exception):
    """Facts that do not unpack under a CRC that is right: made by another version."""


def encode(facts: Sequence[Fact]) -> bytes:
    return _encoder.encode(facts)


def decode(raw: bytes | memoryview) -> list[Fact]:
    try:
        return _decoder.decode(raw)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidFacts(str(error)) from None

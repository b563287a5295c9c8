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
    """A log's options as they are stored. ``sync`` None: the server's own policy."""

    sync: str | None = None
    file_roll_size: int = 64 << 20


class Opened(Struct, frozen=True, array_like=True, tag=1):
    """A process took the directory: every claim is over, every epoch stays."""


class Appended(Struct, frozen=True, array_like=True, tag=2):
    """A batch; the fact is its header. The frame's bodies follow in the order of these facts."""

    header: bytes


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
    """Segments that end at or below ``first`` are gone; it is the log's new first offset."""

    log: int
    first: int


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
    """``offset``: of the first record not done with."""

    log: int
    consumer: str
    epoch: int
    offset: int


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
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise InvalidFacts(str(error)) from None

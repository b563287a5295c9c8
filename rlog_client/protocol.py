"""The wire: bytes <-> messages, without I/O. Both sides use the same ``Connection``.

A message is a fixed header, a msgpack map (the *control*) and an opaque payload (batches).
Little-endian::

    position  size
           0     4  length of control and payload together, in bytes
           4     1  kind
           5     1  flags, 0
           6     2  length of the control, at most 16 KiB
           8     4  request id
          12        control, then payload

The client numbers its requests; the answer, an ``Error`` or any other message of the server's,
carries the request's id. Requests are pipelined and answered in any order. What is pushed carries
the id of the ``Subscribe`` that asked for it.

Lengths are judged before anything is allocated, and a control is decoded into a typed struct: what
a hostile map can become in memory is bounded by 16 KiB and by the struct's own fields.
"""

from __future__ import annotations

from enum import IntEnum
from struct import Struct as Layout
from types import GenericAlias
from typing import Annotated, Any, ClassVar, Final, Literal, NamedTuple, TypeAlias, TypeVar, cast

import msgspec
from msgspec import Meta, Struct

from .errors import InvalidRequest, RlogError, TooLarge, Unsupported, from_wire
from .model import OFFSET_MAX, CursorInfo, LogInfo, Whence

PROTOCOL: Final = 1
DEFAULT_PORT: Final = 7171

_HEAD: Final = Layout("<IBBHI")
HEAD_BYTES: Final = 12
assert _HEAD.size == HEAD_BYTES
CONTROL_BYTES_MAX: Final = 16 * 1024
HELLO_BYTES_MAX: Final = 1024  # of everything before HELLO is done
LISTING_BYTES_MAX: Final = 8 << 20
GROW_BYTES: Final = 64 * 1024  # of a payload's buffer, before any of it has come; a client's:
GROW_BYTES_CLIENT: Final = 16 << 20  # more than most batches, and than any listing
PUSH_BYTES: Final = 1 << 20  # of one Records, unless a single batch is larger
REQUEST_MAX: Final = 2**32 - 1
TEXT_MAX: Final = 1024  # characters of an error's text
DETAILS_BYTES_MAX: Final = 8192


class ProtocolError(Exception):
    """The peer misbehaved: this connection cannot go on. (Our own misuse is an AssertionError.)

    ``request`` and ``error``: what can still be said about it before the end.
    """

    def __init__(self, text: str, request: int = 0, error: RlogError | None = None) -> None:
        super().__init__(text)
        self.request = request
        self.error = error or InvalidRequest(text)


class Control(Struct, omit_defaults=True):
    """Base of all controls. ``kind`` is its number on the wire."""

    kind: ClassVar[int]


# --- what the client asks -------------------------------------------------------------------


class Hello(Control):
    """The first message. Answered by Welcome, or by Error and the end."""

    kind: ClassVar[int] = 1
    protocol: int
    name: str = ""
    features: list[str] = []


class Ping(Control):
    kind: ClassVar[int] = 2


class OpenLog(Control):
    """-> LogReply. ``options`` count only with ``create``. ``dry``: only say what would be."""

    kind: ClassVar[int] = 3
    name: str
    create: bool = False
    options: dict[str, Any] = {}
    dry: bool = False


class ListLogs(Control):
    """-> Listing of LogInfo."""

    kind: ClassVar[int] = 4


class GetLog(Control):
    """-> LogReply."""

    kind: ClassVar[int] = 5
    log: int


class AlterLog(Control):
    """-> LogReply. ``dry``: only say what would be, and be trimmed at once."""

    kind: ClassVar[int] = 6
    log: int
    options: dict[str, Any]
    dry: bool = False


class TrimLog(Control):
    """-> Place: whole segments below ``before`` go; ``offset`` is the new first offset.

    ``dry``: only say what it would be.
    """

    kind: ClassVar[int] = 7
    log: int
    before: Whence
    dry: bool = False


class DeleteLog(Control):
    """-> Done."""

    kind: ClassVar[int] = 8
    log: int


class Append(Control):
    """Payload: one batch. -> Appended.

    Whoever numbers its records (a producer id that is not 0) is told of a batch that is in the log
    already. ``after``: the last sequence sent before this batch, -1 for none: a batch behind one
    that was refused is a Conflict as well, so nothing can pass for a duplicate that is none.
    ``expect``: the log's end, and ``expect_key``: the last offset of the one record's key, -1 for
    none; else Conflict.
    """

    kind: ClassVar[int] = 9
    log: int
    expect: int | None = None
    expect_key: int | None = None
    after: int | None = None


class Resolve(Control):
    """-> Place."""

    kind: ClassVar[int] = 10
    log: int
    whence: Whence


class Subscribe(Control):
    """-> Place, then Records under this request's id as far as Credit goes.

    ``consumer``: the connection's own claim whose deliveries these are.
    """

    kind: ClassVar[int] = 11
    log: int
    whence: Whence
    consumer: str | None = None


class Credit(Control):
    """A loan of ``bytes``: -> Records, at least one batch whatever its size, then Settled.

    It is settled when something was sent and the next batch is larger than what is left of it, or
    the end is reached. A new one settles the old one at once; one of 0 bytes only settles. So a
    client knows, whenever it has no open loan, that nothing is under way to it. ``ahead``: nobody
    waits for it yet, so the first batch has to fit as well, or it is settled with nothing.

    A shared consumer's member is lent for ``records``, all of them below ``end`` if that is given:
    -> Records and Assigned. ``now``: it is settled at once when there is nothing for this member;
    ``own``: but not while a record that it had retried is still to come, nor while it is open
    whether somebody comes back who lost its connection.
    """

    kind: ClassVar[int] = 12
    subscription: int
    bytes: int
    records: int = 0
    end: int | None = None
    now: bool = False
    own: bool = False
    ahead: bool = False


class Unsubscribe(Control):
    """-> Done."""

    kind: ClassVar[int] = 13
    subscription: int


class Claim(Control):
    """-> Claimed, or Busy; while it has to wait for its turn, Queued comes first.

    ``start``: where a cursor that does not exist yet begins. ``token``: 16 random bytes.
    ``standby``: wait for the claim to end. ``takeover``: end it. ``hand_seconds``: how long a
    record may be in hand. Whoever comes back on a new connection gives the token that it had, the
    ``epoch`` it held (0: none yet; if it is not the cursor's any more, Fenced), the offset after
    what was ``delivered`` to it, and the ``ticket`` that it waited with.

    ``shared``: as one member of many. Who comes back then says which records it has ``in_hand``;
    where its claim is over it becomes a new member.
    """

    kind: ClassVar[int] = 14
    log: int
    consumer: str
    start: Whence
    token: bytes
    standby: bool = False
    takeover: bool = False
    hand_seconds: float | None = None
    epoch: int = 0
    delivered: int = 0
    ticket: int = 0
    shared: bool = False
    in_hand: list[int] = []


class Release(Control):
    """-> Done."""

    kind: ClassVar[int] = 15
    log: int
    consumer: str


class CommitCursor(Control):
    """-> Committed. ``offset``: of the first record not done with.

    ``begun``: the offset after the highest record that is in hand from now on, 0 for none, of the
    redriven ones neither. Should the member vanish, it is one of these that did it.
    """

    kind: ClassVar[int] = 16
    log: int
    consumer: str
    epoch: int
    offset: int
    begun: int = 0


class SeekCursor(Control):
    """-> Moved.

    ``epoch``: the holder's own; None is from outside, and Busy while held unless ``force``.
    """

    kind: ClassVar[int] = 17
    log: int
    consumer: str
    whence: Whence
    epoch: int | None = None
    force: bool = False


class ListCursors(Control):
    """-> Listing of CursorInfo."""

    kind: ClassVar[int] = 18
    log: int


class GetCursor(Control):
    """-> CursorReply."""

    kind: ClassVar[int] = 19
    log: int
    consumer: str


class DeleteCursor(Control):
    """-> Done; Busy while held."""

    kind: ClassVar[int] = 20
    log: int
    consumer: str


class WaitSynced(Control):
    """-> Done, once every record below ``offset`` is on the disk."""

    kind: ClassVar[int] = 21
    log: int
    offset: int


class ListSegments(Control):
    """-> Listing of SegmentInfo."""

    kind: ClassVar[int] = 22
    log: int


class Settle(Control):
    """-> Judged. A verdict on the record at the cursor, or on a redriven one.

    ``verdict``: "commit" (of a redriven record; others are committed by CommitCursor), "skip",
    "retry" (after ``delay`` seconds) or "park". ``attempts``: failed ones, this one included.
    ``error``: its text, at most 4 KiB of UTF-8, and ``cause``: its class. ``exhausted``: it is that
    of ``on_exhausted``; after ``pause_after`` such of one cause in a row the consumer is
    paused. ``begun``: as for CommitCursor.
    """

    kind: ClassVar[int] = 23
    log: int
    consumer: str
    epoch: int
    offset: int
    verdict: Literal["commit", "skip", "retry", "park"]
    redriven: bool = False
    delay: float = 0.0
    attempts: int = 0
    reason: str = ""
    error: str = ""
    cause: str = ""
    exhausted: bool = False
    pause_after: int | None = None
    begun: int = 0


class TakeRedriven(Control):
    """-> Taken: the lowest redriven record. ``begin``: it is in hand from now on."""

    kind: ClassVar[int] = 24
    log: int
    consumer: str
    epoch: int
    begin: bool = False


class ListParked(Control):
    """-> Listing of ParkedInfo, by offset, from ``begin`` on; at most a thousand."""

    kind: ClassVar[int] = 25
    log: int
    consumer: str
    begin: int = 0


class Redrive(Control):
    """-> Counted. ``offsets`` None: all that are parked; of others, at most a thousand at once."""

    kind: ClassVar[int] = 26
    log: int
    consumer: str
    offsets: list[int] | None = None


class Evict(Control):
    """-> Done: the claim ends now. ``member``: only if it is held under this name."""

    kind: ClassVar[int] = 27
    log: int
    consumer: str
    member: str | None = None


class Resume(Control):
    """-> Done: a paused consumer goes on, with the records that paused it first."""

    kind: ClassVar[int] = 28
    log: int
    consumer: str


class Extend(Control):
    """-> Done: the hand_seconds of the record in hand begin anew. ``offset``: which, of several."""

    kind: ClassVar[int] = 29
    log: int
    consumer: str
    epoch: int
    offset: int = -1


class OpenProducer(Control):
    """-> ProducerOpened, or Busy; while it has to wait for its turn, Queued comes first.

    ``producer``: the random id that a new one gets. ``exclusive``: claims the log; ``token``,
    ``standby``, ``takeover``, ``ticket`` and ``epoch`` are then as for Claim. ``epoch`` of one that
    is only named: the one it was opened with, to come back; another one's since is Fenced.
    """

    kind: ClassVar[int] = 30
    log: int
    producer: int
    name: str | None = None
    exclusive: bool = False
    standby: bool = False
    takeover: bool = False
    token: bytes = b""
    epoch: int = 0
    ticket: int = 0


class ListProducers(Control):
    """-> Listing of ProducerInfo: the named ones, and the one that owns the log."""

    kind: ClassVar[int] = 31
    log: int


class ReadParked(Control):
    """-> ParkedCopy: a parked record whose place was trimmed; OffsetOutOfRange if it was not."""

    kind: ClassVar[int] = 33
    log: int
    consumer: str
    offset: int


class LogBatch(Struct, array_like=True):
    """Of a Transact: the batch of one log. ``bytes``: its length in the payload, header included.

    ``expect``: as for Append. ``expect_keys``: (index of a record in the batch, last offset of its
    key), as Append's ``expect_key``. Both are judged by the log as it is before the transaction.
    """

    log: int
    bytes: int
    expect: int | None = None
    expect_keys: list[tuple[int, int]] = []


class CommitThrough(Struct, array_like=True, tag=1):
    """Of a Transact. Fields as of CommitCursor."""

    log: int
    consumer: str
    epoch: int
    offset: int
    begun: int = 0


class CommitRedriven(Struct, array_like=True, tag=2):
    """Of a Transact: a redriven record is done with. Fields as of Settle."""

    log: int
    consumer: str
    epoch: int
    offset: int


class CommitSingle(Struct, array_like=True, tag=3):
    """Of a Transact: one record of a shared consumer is done with."""

    log: int
    consumer: str
    epoch: int
    offset: int


Commitment: TypeAlias = CommitThrough | CommitRedriven | CommitSingle


class Transact(Control):
    """Payload: the batches of ``appends``, one behind the other. -> Transacted.

    All of it is done in one frame, or nothing. ``client`` and ``number`` name it: a random id, and
    a number that rises with each of the client's. What was done under them before is not done
    again, and answered as it was. A log is named at most once, a consumer once for each kind of
    commit but for redriven records. The batches have producer 0; ``epoch`` in their headers is that
    of the client's claim on the log, if it has one.
    """

    kind: ClassVar[int] = 32
    client: int
    number: int
    appends: list[LogBatch] = []
    commits: list[Commitment] = []


class GetLatest(Control):
    """-> Latest, of a log with key_index; once readers can see that record."""

    kind: ClassVar[int] = 35
    log: int
    key: bytes


class GetTable(Control):
    """-> TablePage. ``table`` 0: a new one, at the end as it is now; else a ``page`` of one that
    this connection got, counted from 0, or (None) that it is read no more (-> Done).

    While it is read, none of its records is compacted. The server may give up the oldest.
    """

    kind: ClassVar[int] = 36
    log: int
    table: int = 0
    page: int | None = 0


class CommitRecords(Control):
    """-> Committed. What a member of a shared consumer is done with, and what it has in hand.

    ``done``: begin, end, begin, end ... of ranges of offsets. ``begun``: all that is in hand from
    now on. ``back``: assigned records that it gives back. ``anew``: what it has in hand begins its
    hand_seconds anew. A record that is in somebody else's hands is Fenced, and then nothing is
    done.
    """

    kind: ClassVar[int] = 37
    log: int
    consumer: str
    epoch: int
    done: list[int] = []
    begun: list[int] = []
    back: list[int] = []
    anew: bool = False


# --- what the server answers ----------------------------------------------------------------


class Welcome(Control):
    """The server's version and its limits, in bytes."""

    kind: ClassVar[int] = 64
    protocol: int
    server: str
    record_bytes_max: int
    batch_bytes_max: int
    push_bytes_max: int  # of one Records: what is stored may be larger than what is taken now
    features: list[str] = []


class Error(Control):
    kind: ClassVar[int] = 65
    code: int
    message: str
    retriable: bool = False
    details: dict[str, Any] = {}


class Done(Control):
    kind: ClassVar[int] = 66


class LogReply(Control):
    kind: ClassVar[int] = 67
    info: LogInfo


class Listing(Control):
    """Payload: a msgpack array of what was asked for."""

    kind: ClassVar[int] = 68


class Appended(Control):
    """``synced``: durable when this was sent; see Receipt.

    ``duplicate``: it was in the log already, at these offsets; -1 if they are no longer known, or
    lie apart. Then ``parts`` has what is known: the index of the first record in this batch, how
    many there are, the first one's offset, and when they were appended.
    """

    kind: ClassVar[int] = 69
    first: int
    end: int
    timestamp_ns: int
    synced: bool
    duplicate: bool = False
    parts: list[tuple[int, int, int, int]] = []


class Place(Control):
    """A resolved ``offset``, and the log's ``first`` and ``end`` (visible, exclusive) at that
    moment.
    """

    kind: ClassVar[int] = 70
    offset: int
    first: int
    end: int


class Claimed(Control):
    """``committed``: where the cursor stands.

    The record there has failed ``attempts`` times and is due in ``wait_seconds``. Below
    ``one_by_one``, records are begun one at a time. ``redriven``: there are some to take.
    ``paused``: why, if it is. ``in_hand``: of a shared consumer's member, what it still has.
    """

    kind: ClassVar[int] = 71
    epoch: int
    committed: int
    attempts: int = 0
    wait_seconds: float = 0.0
    one_by_one: int = 0
    redriven: bool = False
    paused: str | None = None
    in_hand: list[int] = []


class Moved(Control):
    """A seek moved the cursor from ``before`` to ``after``; the epoch is now ``epoch``."""

    kind: ClassVar[int] = 72
    before: int
    after: int
    epoch: int


class CursorReply(Control):
    kind: ClassVar[int] = 73
    info: CursorInfo


class Committed(Control):
    kind: ClassVar[int] = 74
    synced: bool


class Settled(Control):
    """A loan is over. ``offset``: of the next record to come; ``end``: the log's visible end."""

    kind: ClassVar[int] = 75
    offset: int
    end: int


class Judged(Control):
    """A verdict stands. ``paused``: why the consumer is paused, if it is."""

    kind: ClassVar[int] = 76
    synced: bool
    paused: str | None = None


class Taken(Control):
    """A redriven record, or -1 for none; failed ``attempts`` times, due in ``wait_seconds``."""

    kind: ClassVar[int] = 77
    offset: int
    attempts: int = 0
    wait_seconds: float = 0.0


class Counted(Control):
    kind: ClassVar[int] = 78
    count: int


class ProducerOpened(Control):
    """``last_sequence``: the last one accepted under this name, -1 for none.

    These go into the headers of batches, and have to fit there.
    """

    kind: ClassVar[int] = 79
    producer: Annotated[int, Meta(ge=0)]  # (what is 2**64 or more, msgpack does not have)
    epoch: Annotated[int, Meta(ge=0, le=2**32 - 1)]
    last_sequence: Annotated[int, Meta(ge=-1, le=OFFSET_MAX)]


class Transacted(Control):
    """``appends``: the first offset and the end of each batch, in the order of the request.

    ``synced`` and ``duplicate``: as of Appended.
    """

    kind: ClassVar[int] = 80
    appends: list[tuple[int, int]]
    timestamp_ns: int
    synced: bool
    duplicate: bool = False


class ParkedCopy(Control):
    """Payload: a batch of one record, under the offset and the time that it had in its log."""

    kind: ClassVar[int] = 81


class Latest(Control):
    """The offset of the key's last record, -1 for none; ``end``: the log's at that moment."""

    kind: ClassVar[int] = 83
    offset: int
    end: int


class TablePage(Control):
    """Payload: a msgpack array of how far each offset lies behind the one before it, the first
    one's behind 0. ``end``: of the table; ``pages``: how many there are, 0 for an empty table.
    """

    kind: ClassVar[int] = 84
    table: int
    end: int
    pages: int


class Records(Control):
    """Pushed. Payload: whole batches, contiguous, the first of which holds offset ``first``.

    ``file`` and ``position`` say where the payload is stored, for whoever finds it damaged.
    """

    kind: ClassVar[int] = 96
    first: int
    file: str
    position: int


class Lost(Control):
    """Pushed: the claim under which this subscription reads is no longer ours."""

    kind: ClassVar[int] = 97
    epoch: int


class Damaged(Control):
    """Pushed in place of Records: ``error`` is a CorruptData or a Gap, and reading goes on at
    ``next``.
    """

    kind: ClassVar[int] = 98
    error: Error
    next: int


class Queued(Control):
    """Under the id of a Claim or an OpenProducer that waits for its turn; its answer comes later.

    ``ticket``: its place among those who wait, to come back with.
    """

    kind: ClassVar[int] = 99
    ticket: int


class Recall(Control):
    """Pushed to a consumer's holder: there are redriven records to take."""

    kind: ClassVar[int] = 100


class Assigned(Control):
    """Pushed to a member of a shared consumer: these records are its own until they are settled.

    The batches that hold them have been pushed before, once each, and are to be kept until a
    ``forget`` names them by their first offset. ``failed``: offset, failed attempts, offset, ...
    of those that have any. ``redriven``: which were parked.
    """

    kind: ClassVar[int] = 101
    offsets: list[int]
    failed: list[int] = []
    redriven: list[int] = []
    forget: list[int] = []


class Standing(Control):
    """Pushed to the members of a shared consumer: it is ``paused`` now, or not any more."""

    kind: ClassVar[int] = 102
    paused: str | None = None


class ParkedInfo(Struct, frozen=True):
    """A parked record, as the server knows it. ``redriven``: it waits to be delivered again.
    ``copied``: its place may be trimmed, and ReadParked gives it.
    """

    offset: int
    reason: str
    error: str
    attempts: int
    parked_ns: int
    redriven: bool
    copied: bool = False


class SegmentInfo(Struct, frozen=True):
    """A segment: its first offset, its length in bytes, and the running maximum of its append
    times. ``generation``: how often it was compacted; ``absent``: offsets without a record.
    """

    base: int
    bytes: int
    time_max_ns: int
    file: str
    generation: int = 0
    absent: int = 0


REQUESTS: Final = (
    Hello, Ping, OpenLog, ListLogs, GetLog, AlterLog, TrimLog, DeleteLog, Append, Resolve,
    Subscribe,
    Credit, Unsubscribe, Claim, Release, CommitCursor, SeekCursor, ListCursors, GetCursor,
    DeleteCursor, WaitSynced, ListSegments, Settle, TakeRedriven, ListParked, Redrive, Evict,
    Resume, Extend, OpenProducer, ListProducers, Transact, ReadParked, GetLatest, GetTable,
    CommitRecords,
)  # fmt: skip
ANSWERS: Final = (
    Welcome, Error, Done, LogReply, Listing, Appended, Place, Claimed, Moved, CursorReply,
    Committed, Settled, Judged, Taken, Counted, ProducerOpened, Transacted, ParkedCopy, Latest,
    TablePage, Records, Lost, Damaged, Queued, Recall, Assigned, Standing,
)  # fmt: skip
_WITH_PAYLOAD: Final = frozenset(
    {
        Append.kind,
        Transact.kind,
        Records.kind,
        Listing.kind,
        ParkedCopy.kind,
        TablePage.kind,
    }
)
_encode: Final = msgspec.msgpack.Encoder().encode


# What a transaction takes of a frame beside its batches, at most: itself, each batch, each commit.
_TRANSACT_BYTES: Final = 256
_BATCH_BYTES: Final = 64
_COMMIT_BYTES: Final = 384


def transact_bytes(control: Transact) -> int:
    """What it takes of a frame at most; together that is limited as a batch is.

    (The keys of a log with a key index count twice, as they do in an append.)
    """
    batches = sum(_BATCH_BYTES + each.bytes for each in control.appends)
    return _TRANSACT_BYTES + batches + _COMMIT_BYTES * len(control.commits)


_InfoT = TypeVar("_InfoT")


def listed(payload: bytes | bytearray | memoryview, of: type[_InfoT]) -> list[_InfoT]:
    """What a Listing brought. Raises Unsupported."""
    try:
        infos = msgspec.msgpack.decode(payload, type=GenericAlias(list, of))
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise Unsupported(f"a listing does not decode: {error}") from None
    return cast("list[_InfoT]", infos)


class Message(NamedTuple):
    """One whole message. ``payload`` is bytes-like and its receiver's own."""

    request: int
    control: Control
    payload: bytes | bytearray | memoryview


def encode(request: int, control: Control, payload_bytes: int = 0) -> bytes:
    """Header and control of a message; the sender puts ``payload_bytes`` of payload behind it.

    InvalidRequest: what is asked for cannot be said: it is too long, or a number is too large.
    """
    try:
        body = _encode(control)
    except OverflowError as error:
        raise InvalidRequest(f"{type(control).__name__}: {error}") from None
    if len(body) > CONTROL_BYTES_MAX:
        raise InvalidRequest(
            f"{type(control).__name__} of {len(body)} bytes, the limit is {CONTROL_BYTES_MAX}"
        )
    return _HEAD.pack(len(body) + payload_bytes, control.kind, 0, len(body), request) + body


def error_control(error: RlogError) -> Error:
    """An error as it travels; its text is cut so that it fits into a control."""
    details = error.details()
    if len(_encode(details)) > DETAILS_BYTES_MAX:
        details = {}  # what the peer sent, given back to it: it knows
    return Error(error.code, str(error)[:TEXT_MAX], error.retriable, details)


def raised(control: Error) -> RlogError:
    """The error that travelled."""
    return from_wire(control.code, control.message, control.details)


class Side(IntEnum):
    CLIENT = 0
    SERVER = 1


class Connection:
    """One side of a connection, sans I/O: received bytes in, messages out.

    The driver asks ``room()`` where to receive. None: receive up to 64 KiB of anything and hand it
    to ``received``. A view: receive into it (the payload of one large message, in a buffer of its
    exact size), then ``filled(n)``. After either, take messages from ``next_message()`` until None.
    """

    __slots__ = (
        "_at",
        "_control",
        "_data",
        "_decoders",
        "_filled",
        "_grow_bytes",
        "_payload",
        "_whole",
        "greeted",
        "payload_bytes_max",
    )

    def __init__(self, side: Side) -> None:
        self.greeted = False  # set by the driver once HELLO is answered
        self.payload_bytes_max = 0
        self._decoders = _DECODERS[side]
        self._data: bytes = b""
        self._at = 0
        self._payload: bytearray | None = None  # of the message under way
        self._filled = 0
        self._whole = 0  # its length, when it is all there
        self._grow_bytes = GROW_BYTES if side is Side.SERVER else GROW_BYTES_CLIENT
        self._control: tuple[int, Control] | None = None

    @property
    def midway(self) -> bool:
        """A message has begun and is not whole."""
        return self._payload is not None or self._at < len(self._data)

    def room(self) -> memoryview | None:
        if self._payload is None:
            return None
        if self._filled == len(self._payload):
            grown = bytearray(min(self._whole, 4 * self._filled))
            grown[: self._filled] = self._payload
            self._payload = grown
        return memoryview(self._payload)[self._filled :]

    def filled(self, count: int) -> None:
        self._filled += count

    def received(self, data: bytes) -> None:
        assert self._payload is None, "the room is to be filled first"
        self._data = self._data[self._at :] + data if self._at < len(self._data) else data
        self._at = 0

    def next_message(self) -> Message | None:
        """The next whole message, or None: more bytes are needed. Raises ProtocolError."""
        if self._payload is not None:
            return self._finish() if self._filled == self._whole else None
        data, at = self._data, self._at
        have = len(data) - at
        if have < HEAD_BYTES:
            if not have:
                self._data, self._at = b"", 0  # nothing is kept of an idle connection
            return None
        length, kind, flags, control_bytes, request = _HEAD.unpack_from(data, at)
        self._judge(length, kind, flags, control_bytes, request)
        if have < HEAD_BYTES + control_bytes:
            return None
        begin = at + HEAD_BYTES
        control = self._decode(kind, memoryview(data)[begin : begin + control_bytes])
        payload_bytes = length - control_bytes
        if have >= HEAD_BYTES + length:
            self._at = at = begin + length
            return Message(request, control, data[at - payload_bytes : at])
        # A buffer of the exact size: the rest of the payload is received into it, uncopied. But a
        # peer only says what it will send: what it gets grows with what it has sent.
        size = min(payload_bytes, max(self._grow_bytes, 4 * have))
        payload = bytearray(size)
        here = min(size, have - HEAD_BYTES - control_bytes)
        begin += control_bytes
        payload[:here] = memoryview(data)[begin : begin + here]
        self._at = begin + here
        self._control = (request, control)
        self._payload, self._filled, self._whole = payload, here, payload_bytes
        return None

    def _finish(self) -> Message:
        assert self._control is not None
        assert self._payload is not None
        message = Message(*self._control, self._payload)
        self._control = self._payload = None
        return message

    def _judge(self, length: int, kind: int, flags: int, control_bytes: int, request: int) -> None:
        """Refuse a message by its header alone, before anything is allocated for it."""
        if not self.greeted and (kind not in _GREETING or flags or length > HELLO_BYTES_MAX):
            raise ProtocolError("what came first is no greeting of this protocol")
        if kind not in self._decoders:
            raise ProtocolError(f"message kind {kind} is not known here")
        if flags:
            raise ProtocolError(f"message flags {flags:#x} are not known here")
        if control_bytes > min(length, CONTROL_BYTES_MAX):
            raise ProtocolError(f"control of {control_bytes} bytes in a message of {length}")
        payload_bytes = length - control_bytes
        if payload_bytes and kind not in _WITH_PAYLOAD:
            raise ProtocolError(f"message kind {kind} has no payload")
        limit = (
            LISTING_BYTES_MAX if kind in (Listing.kind, TablePage.kind) else self.payload_bytes_max
        )
        if payload_bytes > limit:
            text = f"payload of {payload_bytes} bytes, the limit is {limit}"
            raise ProtocolError(text, request, TooLarge(text, size=payload_bytes, limit=limit))

    def _decode(self, kind: int, raw: memoryview) -> Control:
        try:
            return self._decoders[kind].decode(raw)
        except (
            msgspec.MsgspecError,
            ValueError,
            TypeError,
            OverflowError,
            RecursionError,
        ) as error:
            raise ProtocolError(
                f"control of message kind {kind} does not decode: {error}"
            ) from None


_GREETING: Final = frozenset({Hello.kind, Welcome.kind, Error.kind})
# What each side receives.
_DECODERS: Final[dict[Side, dict[int, msgspec.msgpack.Decoder[Control]]]] = {
    Side.SERVER: {cls.kind: msgspec.msgpack.Decoder(cls) for cls in REQUESTS},
    Side.CLIENT: {cls.kind: msgspec.msgpack.Decoder(cls) for cls in ANSWERS},
}

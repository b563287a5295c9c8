"""The desk: what decisions work with, and what a broker keeps in memory beside the state."""

from __future__ import annotations

import contextlib
import errno
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol, TypeAlias, TypeVar

import msgspec

from rlog_client import model, protocol
from rlog_client.batch import decode_keys
from rlog_client.errors import (
    Busy,
    DiskFull,
    Fenced,
    InvalidRequest,
    NotFound,
    OffsetOutOfRange,
    StorageFailed,
    TooLarge,
)

from .. import facts, state
from ..dispatch import Dispatch
from ..policy import Policy, parse_policy
from ..segment import Extent, Place
from ..tables import Tables
from .watch import Copied, Retain, Watch

if TYPE_CHECKING:
    from rlog_client.batch import Header
    from rlog_client.protocol import Control

    from ..log import Handles, LogFiles
    from ..shared import Failure
    from ..state import State

FACT_BYTES_MAX: Final = 1024  # what a request adds to a frame beside a body, at most,
SETTLE_BYTES_MAX: Final = 12 * 1024  # unless it brings texts
LIST_BYTES_MAX: Final = 20 * 1024  # or lists of offsets
FIRST_RIGHT_SECONDS: Final = 5.0
WAITS_MAX: Final = 1024  # claims that one connection waits for

Buffer = bytes | bytearray | memoryview
Key: TypeAlias = tuple[int, str]  # what is claimed: (log id, consumer or PRODUCER_ID)


class Grant:
    """A claim as its connection holds it.

    ``delivered``: the offset after the last record sent to it. ``hand_seconds``: how long a record
    may be in hand. ``in_hand``: the lowest one that is, since ``in_hand_ns`` (UTC).
    """

    __slots__ = ("delivered", "epoch", "hand_seconds", "in_hand", "in_hand_ns")

    def __init__(self, epoch: int, delivered: int, hand_seconds: float | None = None) -> None:
        self.epoch = epoch
        self.delivered = delivered
        self.hand_seconds = hand_seconds
        self.in_hand: int | None = None
        self.in_hand_ns = 0


class Peer(Protocol):
    """Who asks: a connection, seen from below."""

    name: str
    closed: bool
    grants: dict[Key, Grant]
    waits: set[Key]  # the claims that it waits for

    def answer(self, request: int, control: Control, payload: bytes | memoryview = b"") -> None: ...

    def answer_later(self, request: int, look: Look) -> None:
        """Answer with what ``look()`` gives; it reads the disk, so not on the loop."""

    def granted(self, key: Key, grant: Grant) -> None:
        """A claim is durable, and this peer's."""

    def lost(self, log: int, consumer: str, epoch: int) -> None:
        """The grant has ended; tell whoever reads under it."""

    def recall(self, log: int, consumer: str) -> None:
        """Redriven records wait for whoever reads under this grant."""

    def standing(self, log: int, consumer: str, paused: str | None) -> None:
        """A shared consumer is paused now, or not any more."""


class Nobody:
    """The peer of what the broker asks of itself."""

    name = "rlog"
    closed = False

    def __init__(self) -> None:
        self.grants: dict[Key, Grant] = {}
        self.waits: set[Key] = set()

    def answer(self, request: int, control: Control, payload: bytes | memoryview = b"") -> None:
        pass

    def answer_later(self, request: int, look: Look) -> None:
        pass

    def granted(self, key: Key, grant: Grant) -> None:
        pass

    def lost(self, log: int, consumer: str, epoch: int) -> None:
        pass

    def recall(self, log: int, consumer: str) -> None:
        pass

    def standing(self, log: int, consumer: str, paused: str | None) -> None:
        pass


class Batch(NamedTuple):
    """A batch as its producer made it, already checked."""

    header: Header
    produced: bytes  # the same, as it came
    body: Buffer


class Waiting(NamedTuple):
    """A request that waits to be decided. ``batches``: of an append one, of a transaction any."""

    peer: Peer
    request: int
    control: Control
    batches: Sequence[Batch] = ()
    since: float | None = None  # when it began to wait for space or for copies (monotonic)


class Answer(NamedTuple):
    control: Control
    payload: bytes = b""


Look = Callable[[], Answer]


class Seen(NamedTuple):
    """An answer for when all of ``log`` below ``offset`` is synced."""

    log: int
    offset: int
    answer: Answer | Look


Make = Callable[[bool], Answer | Look | Seen]  # of whether the frame is synced


class Leave(protocol.Control):
    """A peer's connection is gone, with its claim or its wait for one. Never on the wire."""

    log: int
    consumer: str


class Lapse(protocol.Control):
    """A record may be in hand for too long. Never on the wire."""

    log: int
    consumer: str
    epoch: int


class Vanish(protocol.Control):
    """Somebody could use what a member has whose connection is lost. Never on the wire."""

    log: int
    consumer: str
    epoch: int


class Unreadable(protocol.Control):
    """A shared consumer's redriven record cannot be had: ``damaged``, or removed. Never on the
    wire.
    """

    log: int
    consumer: str
    offset: int
    reason: str
    damaged: bool


class Layout(NamedTuple):
    """A batch that goes to its segment once its frame is as durable as it is asked to be."""

    place: Place
    header: bytes
    body: Buffer
    end: int  # the offset behind it


class Visible(NamedTuple):
    """Up to where a log is served: offset ``end``, which is ``length`` bytes into segment
    ``base``.
    """

    end: int
    base: int
    length: int


class Books:
    """What a broker keeps in memory beside the state, for one life of the process."""

    def __init__(
        self, recovered: State, handles: Handles, files: dict[int, LogFiles], policy: Policy
    ) -> None:
        self.state = recovered
        self.handles = handles
        self.files = files
        self.policy = policy
        self.failed: str | None = None  # why nothing is written any more
        self.full: str | None = None  # why no append is taken just now,
        self.stuck: str | None = None  # and why nothing that writes is
        self.visible: dict[int, Visible] = {}
        self.synced_end: dict[int, int] = {}
        self.first: dict[int, int] = {}  # where each log begins, as far as that is durable
        self.holders: dict[Key, Peer] = {}
        self.groups: dict[Key, Dispatch] = {}  # of shared consumers,
        self.seats: dict[tuple[int, str, int], Peer] = {}  # and of their members, by epoch
        self.raised: set[int] = set()  # logs in which there is more to see; the server empties it
        self.batch_bytes_max = 0  # with its keys a second time; set by the broker
        # Who waits for a claim, in the order of their tickets, and which of them are to be decided
        # again because a claim has ended.
        self.waiting: dict[Key, list[Waiting]] = {}
        self.called: list[Waiting] = []
        # By the monotonic clock: until when the holder before a start has first right, when a
        # record has been in hand for too long, when one that failed is due, and when a producer
        # without a name, or a client with a transaction, was heard last, the most silent one first.
        self.returning: dict[Key, float] = {}
        self.hands: dict[Key, float] = {}
        self.due: dict[tuple[int, str, int], float] = {}
        self.silent: OrderedDict[tuple[int, int], float] = OrderedDict()
        self.silent_clients: OrderedDict[int, float] = OrderedDict()
        self.tables = Tables()
        # Of a log that is being compacted: the offsets that were a key's latest until since then.
        self.displaced: dict[int, set[int]] = {}
        self.outdated: list[Callable[[], None]] = []  # to be done when one more frame is synced
        self.ticket = 0  # the last one given
        self.alarm = float("inf")  # the earliest of these and of ``watch``, or before it
        self.watch = Watch()
        for log in recovered.logs.values():
            self.begin(log)

    def begin_life(self, now_ns: int, now: float) -> None:
        """A process begins: whoever held something may come back first.

        The clock of the one before is gone, so what is not due yet is taken over from the wall
        clock. Once: it may jump, and then delays would.
        """
        for log in self.state.logs.values():
            for name in (model.PRODUCER_ID, *log.cursors):
                claim = log.claimable(name)
                if claim is not None and claim.holder is not None:
                    self.returning[log.id, name] = now + FIRST_RIGHT_SECONDS
            for producer, entry in log.producers.items():
                if entry.name is None:
                    self.silent[log.id, producer] = now
            for name, cursor in log.cursors.items():
                every: dict[int, state.Cursor | state.Parked | Failure] = {**cursor.parked}
                if cursor.shared is None:
                    every[cursor.committed] = cursor
                else:
                    every.update(cursor.shared.failed)
                dues: dict[int, float] = {}
                for offset, failed in every.items():
                    if failed.delay_ns:
                        left_ns = failed.failed_ns + failed.delay_ns - now_ns
                        dues[offset] = now + min(max(0, left_ns), failed.delay_ns) / 1e9
                if cursor.shared is None:
                    self.due.update({(log.id, name, offset): due for offset, due in dues.items()})
                else:
                    until = now + FIRST_RIGHT_SECONDS
                    self.group((log.id, name), cursor).begin_life(
                        cursor.shared.members, until, dues
                    )
        self.silent_clients.update(dict.fromkeys(self.state.clients, now))
        self._set_alarm()

    def group(self, key: Key, cursor: state.Cursor) -> Dispatch:
        """A shared consumer's dispatch, made at its first use."""
        if key not in self.groups:
            self.groups[key] = Dispatch(cursor)
        return self.groups[key]

    def _set_alarm(self) -> None:
        alarms = (group.alarm for group in self.groups.values())
        own = (*self.returning.values(), *self.hands.values(), self.watch.alarm)
        self.alarm = min((*own, *alarms))

    def begin(self, log: state.Log) -> None:
        """A log that is new, or was recovered: all of it is durable."""
        last = log.segments[-1] if log.segments else state.Segment(log.end, 0, 0)
        self.visible[log.id] = Visible(log.end, last.base, last.bytes)
        self.synced_end[log.id] = log.end
        self.first[log.id] = log.first
        self.watch.follow(log, 0.0)

    def begin_at(self, log: int, first: int) -> None:
        """A trim is durable: readers may be told of it."""
        self.first[log] = first
        self.raised.add(log)

    def watches(self, log: int) -> list[set[int]]:
        """Where it is noted which offsets are a key's latest no more."""
        found = [table.displaced for table in self.tables.of(log) if table.displaced is not None]
        return [*found, self.displaced[log]] if log in self.displaced else found

    def policy_of(self, log: state.Log) -> Policy:
        return self.policy if log.options.sync is None else parse_policy(log.options.sync)

    def put_in_hand(self, key: Key, grant: Grant, offset: int | None, desk: Desk) -> None:
        """``offset``: the lowest record in hand now; None: none."""
        grant.in_hand, grant.in_hand_ns = offset, desk.now_ns
        if grant.hand_seconds is None:
            return
        if offset is None:
            self.hands.pop(key, None)
        else:
            self.hands[key] = desk.now + grant.hand_seconds
            self.alarm = min(self.alarm, self.hands[key])

    def ring(self, now: float) -> list[Waiting]:
        """What is due by the clock, as requests to decide."""
        if now < self.alarm:
            return []
        for key in [key for key, when in self.returning.items() if when <= now]:
            del self.returning[key]
            self.call(key)
        lapses = []
        for key in [key for key, when in self.hands.items() if when <= now]:
            del self.hands[key]
            peer = self.holders.get(key)
            if peer is not None and (grant := peer.grants.get(key)) is not None:
                lapses.append(Waiting(NOBODY, 0, Lapse(*key, grant.epoch)))
        for key, group in self.groups.items():
            if group.alarm <= now:
                late, missing = group.ring(now)
                lapses += [Waiting(NOBODY, 0, Lapse(*key, epoch)) for epoch in late]
                lapses += [Waiting(NOBODY, 0, Vanish(*key, epoch)) for epoch in missing]
                self.raised.add(key[0])
        lapses += [Waiting(NOBODY, 0, look) for look in self.watch.ring(now)]
        self._set_alarm()
        return lapses

    def ring_at(self, when: float) -> None:
        self.alarm = min(self.alarm, when)

    def forget_consumer(self, key: Key) -> None:
        """A consumer is deleted: nothing of it waits to be due."""
        self.groups.pop(key, None)
        for each in [each for each in self.due if each[:2] == key]:
            del self.due[each]

    def call(self, key: Key) -> None:
        """A claim may have ended: whoever waits for it is decided again, in their order."""
        for waiting in self.waiting.pop(key, ()):
            waiting.peer.waits.discard(key)
            self.called.append(waiting)

    def call_blocked(self, log: int) -> None:
        """There may be space: the appends that wait for it are decided again, in their order."""
        self.called += self.watch.blocked.pop(log, ())

    def call_trims(self, log: int) -> None:
        """Parked records may be copied: the trims that wait for them are decided again."""
        self.called += self.watch.trims.pop(log, ())

    def stop_waiting(self, peer: Peer, key: Key) -> None:
        if key not in peer.waits:
            return
        peer.waits.discard(key)
        queue = self.waiting.pop(key)
        if left := [waiting for waiting in queue if waiting.peer is not peer]:
            self.waiting[key] = left
        for waiting in queue:
            if waiting.peer is peer:
                # Or it would count as under way for as long as its connection lives.
                error = InvalidRequest("this connection waits for the claim no longer")
                peer.answer(waiting.request, protocol.error_control(error))

    def ending(self, key: Key) -> Callable[[], None]:
        """An effect: the holder of now is told that its claim is over, and forgotten.

        Of now, because one that comes back holds it at once: whoever took over may do so by another
        connection, even by this one, before this is carried out.
        """
        peer = self.holders.get(key)
        grant = peer.grants.get(key) if peer is not None else None

        def end() -> None:
            if peer is None or grant is None or peer.grants.get(key) is not grant:
                return
            del peer.grants[key]
            if self.holders.get(key) is peer:
                del self.holders[key]
                self.hands.pop(key, None)
            peer.lost(*key, grant.epoch)

        return end

    def delivered(self, key: Key) -> int:
        """The offset after the last record that was sent to whoever holds a consumer."""
        peer = self.holders.get(key)
        grant = peer.grants.get(key) if peer is not None else None
        return grant.delivered if grant is not None else 0

    def extent(self, log: state.Log, offset: int) -> Extent:
        """The segment that holds ``offset``, as far as it is visible."""
        visible = self.visible[log.id]
        index = log.segment_index(offset)
        segment = log.segments[index]
        end, length = log.segment_end(index), segment.bytes
        if segment.base == visible.base:
            end, length = visible.end, visible.length
        return Extent(log.id, segment.base, end, length, segment.generation, segment.milestones)


class Desk:
    """One frame while it is decided."""

    def __init__(self, books: Books, now_ns: int, now: float, uptime_ns: int | None = None) -> None:
        """``now_ns``: the frame's time, UTC; ``now``: monotonic seconds, for what has to last;
        ``uptime_ns``: since the machine's boot, by default ``now``.
        """
        self.books = books
        self.state = books.state
        self.now_ns = now_ns
        self.now = now
        self.uptime_ns = round(now * 1e9) if uptime_ns is None else uptime_ns
        self.facts: list[facts.Fact] = []
        self.layouts: list[Layout] = []
        self.effects: list[Callable[[], None]] = []
        self.claimed: dict[Key, tuple[Peer, int]] = {}  # in this frame: by whom, epoch
        self.joined: list[tuple[Peer, Key, int]] = []  # the same of shared consumers
        self.sync = False  # something in it asks to be synced at once
        self.delay_seconds: float | None = None  # what is not may stay unsynced for so long
        self.facts_bytes = 0  # what the facts may take, by what was promised for each request
        self._bytes = 0

    def takes(self, waiting: Waiting, bytes_goal: int) -> bool:
        """One more request fits; a first one always does."""
        facts_bytes = FACT_BYTES_MAX
        bodies_bytes = 0
        for header, _produced, body in waiting.batches:
            bodies_bytes += len(body)
            facts_bytes += header.keys_bytes
        if isinstance(waiting.control, protocol.Transact):
            facts_bytes += protocol.transact_bytes(waiting.control) - bodies_bytes
        elif not waiting.batches:
            facts_bytes += _bytes_of_long(waiting.control)
        size = bodies_bytes + facts_bytes
        if self._bytes and self._bytes + size > bytes_goal:
            return False
        self._bytes += size
        self.facts_bytes += facts_bytes
        return True

    def fact(self, fact: facts.Fact, log: state.Log | None = None) -> None:
        """A fact is decided: from here on it is in the frame, and nothing may be refused any more.

        ``log``: whose policy it follows; None: it is synced at once.
        """
        self._follow(log)
        self.facts.append(fact)
        if self.books.watch.blocked and isinstance(fact, _MAKES_ROOM):
            self.effects.append(lambda: self.books.call_blocked(fact.log))
        self.state.apply(fact, self.now_ns)

    def append(self, log: state.Log, raw: bytes, header: Header, keys: bytes) -> Place:
        """The fact of an append: where it goes. ``header``: what ``raw`` says."""
        self._follow(log)
        self.facts.append(facts.Appended(raw, keys))
        if keys:
            self._note_displaced(log, keys)  # before it is: others look at the keys in threads
        return self.state.append(raw, header, keys).place

    def _follow(self, log: state.Log | None) -> None:
        """The frame holds a fact that is to be as durable as the policy of ``log`` says."""
        policy = None if log is None else self.books.policy_of(log)
        if policy is None or policy.at_once:
            self.sync = True
        elif policy.delay_seconds is not None:
            delay = self.delay_seconds
            self.delay_seconds = min(policy.delay_seconds, delay or policy.delay_seconds)

    def _note_displaced(self, log: state.Log, keys: bytes) -> None:
        if watches := self.books.watches(log.id):
            for key in decode_keys(keys) or ():
                if key is not None and (older := log.keys.get(key)) >= 0:
                    for displaced in watches:
                        displaced.add(older)

    def writable(self) -> None:
        if self.books.failed is not None:
            raise StorageFailed(self.books.failed)
        if self.books.stuck is not None:
            raise DiskFull(self.books.stuck)

    @property
    def can_write(self) -> bool:
        return self.books.failed is None and self.books.stuck is None

    def log(self, log: int) -> state.Log:
        found = self.state.logs.get(log)
        if found is None:
            raise NotFound(f"there is no log with id {log}: it was deleted")
        return found

    def cursor(self, log: state.Log, consumer: str) -> state.Cursor:
        cursor = log.cursors.get(consumer)
        if cursor is None:
            raise NotFound(f"log {log.name!r} has no consumer {consumer!r}")
        return cursor

    def free_cursor(self, log: state.Log, consumer: str) -> state.Cursor:
        """The cursor, if nobody holds it."""
        cursor = self.cursor(log, consumer)
        self.check_free(log, consumer, cursor)
        return cursor

    def held_cursor(self, peer: Peer, log: state.Log, consumer: str, epoch: int) -> state.Cursor:
        """The cursor, if this peer holds it under this epoch at this very moment."""
        cursor = self.cursor(log, consumer)
        if cursor.shared is not None:
            raise InvalidRequest(f"consumer {consumer!r} of log {log.name!r} is shared")
        grant = peer.grants.get((log.id, consumer))
        if grant is None or grant.epoch != cursor.epoch or epoch != cursor.epoch:
            raise Fenced(
                f"consumer {consumer!r} of log {log.name!r} is at epoch {cursor.epoch}, not yours",
                epoch=cursor.epoch,
            )
        return cursor

    def is_held(self, key: Key, claim: state.Cursor | state.Owner) -> bool:
        """Somebody is there who holds it, or will when this frame is durable."""
        return claim.held and (key in self.books.holders or key in self.claimed)

    def is_seated(self, key: Key, epoch: int) -> bool:
        """A member of a shared consumer is there, or will be when this frame is durable."""
        return (*key, epoch) in self.books.seats or any(j[1:] == (key, epoch) for j in self.joined)

    def check_free(self, log: state.Log, name: str, claim: state.Cursor | state.Owner) -> None:
        """Raises Busy."""
        if isinstance(claim, state.Cursor) and claim.shared is not None:
            for epoch, member in claim.shared.members.items():
                if member.held and self.is_seated((log.id, name), epoch):
                    text = f"consumer {name!r} of log {log.name!r} is held by {member.name}"
                    raise Busy(text, holder=member.name, since_ns=member.since_ns)
        if claim.holder is not None and self.is_held((log.id, name), claim):
            what = "log" if name == model.PRODUCER_ID else f"consumer {name!r} of log"
            raise Busy(
                f"{what} {log.name!r} is held by {claim.holder.name}",
                holder=claim.holder.name,
                since_ns=claim.holder.since_ns,
            )

    def end_claim(self, key: Key) -> None:
        """A claim was ended from outside: its holder is told, and who waits for it is called."""
        self.effects.append(self.books.ending(key))
        self.effects.append(lambda: self.books.call(key))

    def wait_seconds(self, key: Key, offset: int, failed: state.Cursor | state.Parked) -> float:
        """How long a record that failed is not due yet."""
        if not failed.delay_ns:
            return 0.0
        return max(0.0, self.books.due.get((*key, offset), self.now) - self.now)


NOBODY: Final = Nobody()
# What may add up to more than a fact or two.
_LONG: Final = (
    protocol.Redrive, protocol.OpenLog, protocol.AlterLog, protocol.CommitRecords, protocol.Claim,
    protocol.DeleteCursor, Lapse, Retain,
)  # fmt: skip
# After these there may be space for an append that waits for it.
_MAKES_ROOM: Final = (
    facts.Altered, facts.Trimmed, facts.Committed, facts.Completed, facts.Sought, facts.Forgotten,
    facts.Parked, facts.Unparked,
)  # fmt: skip

# Of producers without a name, and of clients, so many are remembered, each for so long after it was
# heard. When that was is noted so often at most, and each is forgotten that much later.
SILENT_MAX: Final = 1 << 16
SILENT_SECONDS: Final = 3600.0
HEARD_SECONDS: Final = 1.0
_DROPS_MAX: Final = 8  # at one request
_Who = TypeVar("_Who")


def _bytes_of_long(control: Control) -> int:
    """What it may take of a frame beyond FACT_BYTES_MAX; it brings no batches."""
    match control:
        case protocol.Settle():
            return SETTLE_BYTES_MAX
        case Copied(copies=copies):
            return sum(len(copy) + FACT_BYTES_MAX for _, _, copy in copies)
    return LIST_BYTES_MAX if isinstance(control, _LONG) else 0


def note_heard(silent: OrderedDict[_Who, float], who: _Who, now: float) -> list[_Who]:
    """Those that are forgotten now, because no repetition of theirs can come any more."""
    if now - silent.get(who, -HEARD_SECONDS) < HEARD_SECONDS:
        return []
    silent[who] = now
    silent.move_to_end(who)
    dropped = []
    for _ in range(_DROPS_MAX):
        oldest, heard = next(iter(silent.items()))
        if heard > now - SILENT_SECONDS - HEARD_SECONDS and len(silent) <= SILENT_MAX:
            break
        del silent[oldest]
        dropped.append(oldest)
    return dropped


def reopened(log: state.Log, name: str | None, epoch: int) -> Fenced:
    """The error of a producer whose name somebody else has opened since, under ``epoch``."""
    return Fenced(f"producer {name!r} of log {log.name!r} was opened again", epoch=epoch)


def resolve(log: state.Log, whence: model.Whence, end: int) -> int:
    """The offset that ``whence`` means in a log that ends at ``end``.

    (A time was made an offset on arrival.)
    """
    match whence.kind:
        case "oldest":
            return log.first
        case "latest":
            return end
        case "last":
            return max(log.first, end - max(0, whence.value))
        case "offset":
            if not log.first <= whence.value <= end:
                raise OffsetOutOfRange(
                    f"log {log.name!r} holds the offsets {log.first} to {end}, not {whence.value}",
                    first=log.first,
                    end=end,
                )
            return whence.value
        case _:
            raise InvalidRequest(f"a whence of kind {whence.kind!r} cannot be resolved here")


@contextlib.contextmanager
def refusing(what: str) -> Iterator[None]:
    """What fails before a fact is decided refuses one request, and nothing more."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DiskFull(f"no space for {what}") from None
        raise StorageFailed(f"no space can be reserved for {what}: {error}") from None


def listing(infos: Any) -> Answer:
    payload = msgspec.msgpack.encode(infos)
    if len(payload) > protocol.LISTING_BYTES_MAX:
        text = f"a listing of {len(payload)} bytes, the limit is {protocol.LISTING_BYTES_MAX}"
        error = TooLarge(text, size=len(payload), limit=protocol.LISTING_BYTES_MAX)
        return Answer(protocol.error_control(error))
    return Answer(protocol.Listing(), payload)

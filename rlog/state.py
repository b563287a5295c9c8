"""The state: what the facts add up to. Pure: no clock, no I/O, no sockets.

``apply`` is the only way to change it, at run time and at recovery alike, so that the same facts
give the same state and a batch's place in the segments follows from the facts before it.
Sockets, credit, records in hand and deadlines are not state: they die with the process.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from typing import Final, NamedTuple

import msgspec
from msgspec import Struct

from rlog_client.batch import HEADER_BYTES, Header, decode_keys, parse_header
from rlog_client.model import PRODUCER_ID

from . import facts
from .index import UNKNOWN_NS, with_milestone
from .keys import Keys, dec_hook, enc_hook
from .segment import Place
from .shared import Failure, Member, Shared, holds, pairs

Raw = bytes  # for a class that has a field `bytes`


class Segment(Struct, array_like=True):
    """One file of batches: first offset, length in bytes, running maximum of append times up to
    its end.

    ``generation``: how often it was rewritten. ``absent``: how many of its offsets have no record
    any more. ``stale``: how many of its records were superseded since they were last looked for.
    ``milestones``: see ``index``; none of one that was rewritten.
    """

    base: int
    bytes: int
    time_max_ns: int
    generation: int = 0
    absent: int = 0
    stale: int = 0
    milestones: Raw = b""


class Holder(Struct, frozen=True, array_like=True):
    """Who claimed something: the claim's token, the connection's name, since when."""

    token: bytes
    name: str
    since_ns: int


class Owner(Struct, array_like=True):
    """The claim of an exclusive producer on its log. Fields as for Cursor."""

    epoch: int = 0
    holder: Holder | None = None
    held: bool = False


class Parked(Struct, array_like=True):
    """A record put aside. ``redriven``: it waits to be delivered again; ``attempts`` and the rest
    are then of this second life. ``copy``: a batch of it alone, once a trim has come that far.
    """

    reason: str
    error: str
    attempts: int
    parked_ns: int
    redriven: bool = False
    failed_ns: int = 0
    delay_ns: int = 0
    copy: bytes = b""


class Cursor(Struct, array_like=True):
    """A consumer's durable cursor. ``committed``: offset of the first record not done with.

    ``holder``: of the last claim that was neither released nor ended from outside; ``held``: its
    connection is there. The record at ``committed`` failed ``attempts`` times, the last time at
    ``failed_ns``, and is due ``delay_ns`` later.
    """

    committed: int
    epoch: int
    holder: Holder | None = None
    held: bool = False
    begun: int = 0  # the offset after the highest record in hand
    hand: int | None = None  # the redriven record in hand
    one_by_one: int = 0  # below this offset somebody vanished, and it is not known at which record
    attempts: int = 0
    error: str = ""
    failed_ns: int = 0
    delay_ns: int = 0
    parked: dict[int, Parked] = {}
    cause: str = ""  # the exception class that exhausted the last records,
    streak: list[int] = []  # and these records
    paused: str | None = None
    shared: Shared | None = None  # for many members; then ``committed`` is the floor, and what is
    # held, in hand and failed is told there

    @property
    def redriven(self) -> int | None:
        """The lowest redriven record."""
        return min((o for o, parked in self.parked.items() if parked.redriven), default=None)

    @property
    def in_hand(self) -> int | None:
        """The lowest record in hand."""
        if self.hand is not None:
            return self.hand
        return self.committed if self.begun > self.committed else None

    def put_down(self) -> None:
        """No record is in hand any more."""
        self.begun, self.hand = 0, None

    def vanished(self, error: str) -> None:
        """Its member is gone, and one of the records in hand is to blame: if there is one only,
        that one. Among several it is found by delivering them one by one.
        """
        if self.hand is not None and (parked := self.parked.get(self.hand)) is not None:
            parked.attempts += 1
            parked.error = error
        elif self.begun == self.committed + 1:
            self.attempts += 1
            self.error = error
        self.one_by_one = max(self.one_by_one, self.begun)
        self.put_down()

    def pass_to(self, offset: int) -> None:
        """Everything below ``offset`` is done with."""
        if offset != self.committed:
            self.committed = offset
            self.attempts = self.failed_ns = self.delay_ns = 0
            self.error = ""

    def settle(self, begin: int, end: int) -> None:
        """``begin`` to ``end`` (exclusive) of a shared consumer's is done with."""
        assert self.shared is not None
        self.committed = self.shared.settle(self.committed, begin, end)

    def last_error(self, offset: int) -> str:
        """Of a record's last attempt, for who did not see it: the member that did is gone."""
        parked = self.parked.get(offset)
        if parked is not None:
            return parked.error
        if self.shared is not None:
            failure = self.shared.failed.get(offset)
            return failure.error if failure is not None else ""
        return self.error if offset == self.committed else ""

    def is_settled(self, offset: int) -> bool:
        """Whether a record is done with."""
        return offset < self.committed or (
            self.shared is not None and holds(self.shared.settled, offset)
        )

    def _is_done(self, offset: int) -> bool:
        """Settled, and not to be delivered again."""
        parked = self.parked.get(offset)
        return self.is_settled(offset) and (parked is None or not parked.redriven)

    def attempts_of(self, offset: int) -> int:
        """How often a shared consumer's record has failed."""
        assert self.shared is not None
        parked = self.parked.get(offset)
        if parked is not None and parked.redriven:
            return parked.attempts
        failure = self.shared.failed.get(offset)
        return failure.attempts if failure is not None else 0

    def failure(self, offset: int) -> Failure | Parked:
        """Of a shared consumer's record: where its failed attempts are counted."""
        assert self.shared is not None
        parked = self.parked.get(offset)
        if parked is not None and parked.redriven:
            return parked
        return self.shared.failed.setdefault(offset, Failure())

    def lost_member(self, epoch: int, lapsed: list[int], error: str, time_ns: int) -> None:
        """A member is gone, and one of the records in its hands is to blame: those that ``lapsed``,
        or the only one. Among several it is found by delivering them alone.
        """
        assert self.shared is not None
        begun = [o for o in self.shared.members.pop(epoch).begun if not self._is_done(o)]
        blamed = lapsed or (begun if len(begun) == 1 else [])
        for offset in blamed:
            failure = self.failure(offset)
            failure.attempts += 1
            failure.error, failure.delay_ns = error, 0
            if isinstance(failure, Failure):
                failure.failed_ns = time_ns
        if not lapsed:
            self.shared.alone.update(begun)

    def succeeded(self) -> None:
        """A record was handled: whatever stopped the others in a row is over."""
        self.cause = ""
        if self.paused is not None:
            self.resume()
        self.streak = []

    def resume(self) -> None:
        self.paused = None
        self.cause = ""
        self.redrive(self.streak)
        self.streak = []

    def redrive(self, offsets: list[int]) -> None:
        for offset in offsets:
            parked = self.parked.get(offset)
            # (What is not settled, after a seek back, is delivered in its turn.)
            if parked is not None and not parked.redriven and self.is_settled(offset):
                parked.redriven = True
                parked.attempts = parked.failed_ns = parked.delay_ns = 0


class Sent(NamedTuple):
    """A batch of a producer's: first sequence, number of records, first offset, append time, and
    the epoch under which it was sent.
    """

    sequence: int
    records: int
    base: int
    time_ns: int
    epoch: int = 0


SENT_MAX: Final = (
    64  # batches of each producer, transactions of each client; none has more in flight
)


class Producer(Struct, array_like=True):
    """What recognises a producer's retries. ``last``: the last sequence accepted, -1 for none.

    ``name``: None for one that is forgotten when it falls silent. ``exclusive``: it was opened as
    the only one of the log, and is judged by that claim.
    """

    name: str | None = None
    epoch: int = 0
    last: int = -1
    sent: list[Sent] = []
    exclusive: bool = False

    def accept(self, header: Header) -> None:
        self.last = header.sequence + header.count - 1
        # A new list: a short one is cheaper to make than a long one to shift.
        self.sent = self.sent[1 - SENT_MAX :]
        self.sent.append(
            Sent(header.sequence, header.count, header.base, header.time_ns, header.epoch)
        )

    def original(self, sequence: int, count: int) -> Sent | None:
        """The batch accepted before that holds these records, if that is still known."""
        for sent in reversed(self.sent):
            if sent.sequence <= sequence and sequence + count <= sent.sequence + sent.records:
                return sent
        return None

    def parts(self, sequence: int, count: int) -> list[tuple[int, int, int, int]]:
        """What is still known of records accepted before, in several batches.

        Each: the index of its first record, how many, the first one's offset, the append time.
        """
        known = []
        for sent in self.sent:
            begin = max(sequence, sent.sequence)
            end = min(sequence + count, sent.sequence + sent.records)
            if begin < end:
                base = sent.base + begin - sent.sequence
                known.append((begin - sequence, end - begin, base, sent.time_ns))
        return known


ROLL_MIN: Final = 4096
ROLLS: Final = 4  # files, at least, into which what a log may hold is divided


class Transaction(NamedTuple):
    """One that was done: its number, its time, and of each batch (log, first offset, end)."""

    number: int
    time_ns: int
    appends: list[tuple[int, int, int]]


class Client(Struct, array_like=True):
    """What recognises a client's repeated transactions: the last ones done, by number."""

    done: list[Transaction] = []

    def note(self, transaction: Transaction) -> None:
        insort(self.done, transaction, key=_number)
        del self.done[:-SENT_MAX]

    def find(self, number: int) -> Transaction | None:
        at = bisect_left(self.done, number, key=_number)
        found = self.done[at] if at < len(self.done) else None
        return found if found is not None and found.number == number else None

    def forgot(self, number: int) -> bool:
        """Whether that one was done is not known any more."""
        return len(self.done) >= SENT_MAX and number < self.done[0].number


def _number(transaction: Transaction) -> int:
    return transaction.number


class Log(Struct, array_like=True):
    """A log: offsets ``first`` to ``end`` (exclusive), in segments sorted by base.

    ``begun_ns``: when the first record of the last segment was appended. ``newest_ns``: the maximum
    of what that segment's records say of their times, whatever was thought of it since.
    """

    id: int
    name: str
    options: facts.Options
    first: int = 0
    end: int = 0
    time_max_ns: int = 0
    segments: list[Segment] = []
    cursors: dict[str, Cursor] = {}
    producers: dict[int, Producer] = {}
    owner: Owner = msgspec.field(default_factory=Owner)
    keys: Keys = msgspec.field(default_factory=Keys)  # of a log with a key index
    begun_ns: int = 0
    newest_ns: int = UNKNOWN_NS

    @property
    def bytes(self) -> int:
        return sum(segment.bytes for segment in self.segments)

    def segment_index(self, offset: int) -> int:
        """Index of the segment that holds ``offset``; -1 if it lies before the first one."""
        return bisect_right(self.segments, offset, key=_base) - 1

    def segment_end(self, index: int) -> int:
        """The offset after the last record of a segment."""
        return self.segments[index + 1].base if index + 1 < len(self.segments) else self.end

    def supersede(self, offset: int) -> None:
        """The record there is not its key's latest any more."""
        last = self.segments[-1]
        stale = last if offset >= last.base else self.segments[self.segment_index(offset)]
        stale.stale += 1

    def claimable(self, consumer: str) -> Cursor | Owner | None:
        """What can be claimed under this name."""
        return self.owner if consumer == PRODUCER_ID else self.cursors.get(consumer)

    def shared(self, consumer: str) -> Shared | None:
        """What a consumer has, if it is a shared one."""
        cursor = self.cursors.get(consumer)
        return None if cursor is None else cursor.shared

    def producer_named(self, name: str) -> tuple[int, Producer] | None:
        for producer, entry in self.producers.items():
            if entry.name == name:
                return producer, entry
        return None

    @property
    def roll_bytes(self) -> int:
        """How large a segment gets: what is trimmed goes by whole segments, so that one alone must
        not be all that the log may hold.
        """
        roll, total = self.options.file_roll_size, self.options.max_total_bytes
        return roll if total is None else min(roll, max(total // ROLLS, ROLL_MIN))

    def place(self, batch_bytes: int, time_ns: int) -> Place:
        """Where a batch of so many bytes goes, appended at ``time_ns``. The roll is decided
        *before* the write: only one oversized batch may exceed ``roll_bytes``, alone in its file.

        A segment rolls by age as well: else a slow log would never let go of what is old. One that
        was rewritten (the last one, by a repair alone) is never written to again.
        """
        if self.segments:
            last, age = self.segments[-1], self.options.max_file_age
            aged = age is not None and (time_ns - self.begun_ns) * ROLLS > age * 1e9
            room = last.bytes + batch_bytes <= self.roll_bytes and not last.generation
            if room and not aged:
                return Place(self.id, last.base, last.bytes, False)
        return Place(self.id, self.end, 0, True)

    def trim_to(self, before: int) -> int:
        """The first offset after removing every segment that lies wholly below ``before``."""
        first = self.first
        for index in range(len(self.segments)):
            end = self.segment_end(index)
            if end > before:
                break
            first = end
        return first


def _base(segment: Segment) -> int:
    return segment.base


VerdictFact = (
    facts.Committed
    | facts.Completed
    | facts.Failed
    | facts.Parked
    | facts.Took
    | facts.Unparked
    | facts.Redriven
    | facts.Resumed
)
LogFact = (
    VerdictFact
    | facts.Altered
    | facts.Trimmed
    | facts.Named
    | facts.Dropped
    | facts.Claimed
    | facts.Left
    | facts.Returned
    | facts.Released
    | facts.Evicted
    | facts.Forgotten
    | facts.Sought
    | facts.Joined
    | facts.Vanished
    | facts.Compacted
)


class Append(NamedTuple):
    """An applied append: the batch's header, raw and parsed, and its place."""

    raw: bytes
    header: Header
    place: Place


class State(Struct, array_like=True):
    """All of it. ``next_log``: the id that the next log will get; ids are never used again.

    ``boot`` and ``difference_ns``: as of Opened. ``doubted``: while the clock is not believed,
    where each log ended when that began.
    """

    logs: dict[int, Log] = {}
    next_log: int = 1
    clients: dict[int, Client] = {}  # that did transactions
    boot: str = ""
    difference_ns: int | None = None
    doubted: dict[int, int] | None = None

    def by_name(self, name: str) -> Log | None:
        # A scan: opening a log by name is rare, and one map fewer has to be kept true.
        for log in self.logs.values():
            if log.name == name:
                return log
        return None

    def apply(self, fact: facts.Fact, time_ns: int) -> Append | None:
        """Change the state by one fact of a frame made at ``time_ns``; an append tells its
        place.
        """
        match fact:
            case facts.Appended(raw, keys):
                return self.append(raw, parse_header(raw), keys)
            case facts.Opened(boot, difference_ns):
                self.boot, self.difference_ns = boot, difference_ns
                for each in self.logs.values():
                    each.owner.held = False
                    for cursor in each.cursors.values():
                        cursor.held = False
                        for member in cursor.shared.members.values() if cursor.shared else ():
                            member.held = False
            case facts.Created(log, name, options):
                self.logs[log] = Log(log, name, options)
                self.next_log = log + 1
            case facts.Deleted(log):
                del self.logs[log]
            case facts.Transacted(client, number, appends, dropped):
                for silent in dropped:
                    self.clients.pop(silent, None)
                done = Transaction(number, time_ns, appends)
                self.clients.setdefault(client, Client()).note(done)
            case facts.Doubted():
                self.doubted = {log.id: log.end for log in self.logs.values()}
            case facts.Trusted(boot, difference_ns):
                self.boot, self.difference_ns = boot, difference_ns
                self._date(time_ns)
            case _:
                self._change(self.logs[fact.log], fact, time_ns)
        return None

    def _change(self, log: Log, fact: LogFact, time_ns: int) -> None:
        match fact:
            case facts.Altered(_, options):
                log.options = options
            case facts.Trimmed(_, first, copies):
                for consumer, offset, copy in copies:
                    log.cursors[consumer].parked[offset].copy = copy
                self._trim(log, first)
            case facts.Compacted():
                _compact(log, fact)
            case facts.Named(_, producer, name, epoch, exclusive):
                entry = log.producers.setdefault(producer, Producer(name))
                entry.epoch, entry.exclusive = epoch, exclusive
            case facts.Dropped(_, producers):
                for each in producers:
                    log.producers.pop(each, None)
            case facts.Claimed(_, consumer, epoch, token, name, committed):
                if consumer != PRODUCER_ID:
                    cursor = log.cursors.setdefault(consumer, Cursor(committed, epoch))
                    if cursor.holder is not None and not cursor.held:
                        cursor.vanished(f"{cursor.holder.name} vanished with it in hand")
                    cursor.put_down()
                claim = log.claimable(consumer)
                assert claim is not None
                claim.epoch, claim.held = epoch, True
                claim.holder = Holder(token, name, time_ns)
            case facts.Left() | facts.Returned():
                if (shared := log.shared(fact.consumer)) is not None:
                    shared.members[fact.epoch].held = isinstance(fact, facts.Returned)
                elif (claim := log.claimable(fact.consumer)) is not None:
                    claim.held = isinstance(fact, facts.Returned)
            case facts.Released(_, consumer, epoch):
                if (shared := log.shared(consumer)) is not None:
                    del shared.members[epoch]
                elif (claim := log.claimable(consumer)) is not None:
                    _end_claim(claim)
            case facts.Joined(_, consumer, epoch, token, name, committed):
                cursor = log.cursors.setdefault(consumer, Cursor(committed, epoch, shared=Shared()))
                cursor.epoch = epoch
                assert cursor.shared is not None
                cursor.shared.members[epoch] = Member(token, name, time_ns)
            case facts.Evicted(_, consumer, epoch, lapsed, name):
                claim = log.claimable(consumer)
                assert claim is not None
                claim.epoch = epoch
                if lapsed and isinstance(claim, Cursor):
                    claim.vanished("it was in hand for longer than hand_seconds")
                if (shared := log.shared(consumer)) is not None:
                    for ended in shared.named(name):
                        del shared.members[ended]
                else:
                    _end_claim(claim)
            case facts.Forgotten(_, consumer):
                del log.cursors[consumer]
            case facts.Sought(_, consumer, epoch, offset, keep_holder):
                cursor = log.cursors.setdefault(consumer, Cursor(offset, epoch))
                cursor.epoch = epoch
                cursor.pass_to(offset)
                cursor.put_down()
                cursor.one_by_one = 0
                if cursor.shared is not None:
                    cursor.shared.clear()
                for parked_at, parked in cursor.parked.items():
                    # They come in their turn again, and a verdict then is on the record there.
                    parked.redriven = parked.redriven and parked_at < offset
                if not keep_holder:
                    _end_claim(cursor)
            case facts.Vanished(_, consumer, epoch, lapsed, error):
                log.cursors[consumer].lost_member(epoch, lapsed, error, time_ns)
            case _:
                cursor = log.cursors[fact.consumer]
                if cursor.shared is not None:
                    _settle_shared(cursor, cursor.shared, fact, time_ns)
                else:
                    _settle(cursor, fact, time_ns)

    def append(self, raw: bytes, header: Header, keys: bytes) -> Append:
        """``apply`` the fact of an append; ``header``: what ``raw`` says."""
        log = self.logs[header.log]
        assert header.base == log.end, "offsets are dense"
        size = HEADER_BYTES + header.body_bytes
        place = log.place(size, header.time_ns)
        log.time_max_ns = max(log.time_max_ns, header.time_ns)
        if place.new:
            log.begun_ns = log.newest_ns = header.time_ns
            log.segments.append(Segment(header.base, size, log.time_max_ns))
        else:
            segment = log.segments[-1]
            segment.milestones = with_milestone(
                segment.milestones, header.base, place.position, log.newest_ns
            )
            segment.bytes += size
            segment.time_max_ns = log.time_max_ns
            log.newest_ns = max(log.newest_ns, header.time_ns)
        log.end = header.end
        if header.producer:
            producer = log.producers.get(header.producer)
            if producer is None:
                producer = log.producers[header.producer] = Producer()
            producer.accept(header)
        if keys:
            # In order, so that of a key's records the last one counts.
            for offset, key in enumerate(decode_keys(keys) or (), header.base):
                if key is not None and (older := log.keys.put(key, offset)) >= 0:
                    log.supersede(older)
        return Append(raw, header, place)

    def _trim(self, log: Log, first: int) -> None:
        keep = 0
        while keep < len(log.segments) and log.segment_end(keep) <= first:
            keep += 1
        # A new list: a reader in a thread may be walking the old one.
        log.segments = log.segments[keep:]
        log.first = first
        if log.keys:
            log.keys = log.keys.since(first)

    def _date(self, time_ns: int) -> None:
        """What was appended under doubt was appended by now: its own times may be off by years, to
        either side, and are no reason to remove it or to keep it.
        """
        for log in self.logs.values():
            began = self.doubted.get(log.id, 0) if self.doubted is not None else log.end
            for index, segment in enumerate(log.segments):
                if log.segment_end(index) > began:
                    segment.time_max_ns = log.time_max_ns = log.begun_ns = time_ns
        self.doubted = None

    def segments(self) -> set[tuple[int, int, int]]:
        """Every segment there should be: (log id, base, generation)."""
        return {
            (log.id, segment.base, segment.generation)
            for log in self.logs.values()
            for segment in log.segments
        }


def _compact(log: Log, fact: facts.Compacted) -> None:
    first = log.segment_index(fact.base)
    behind = log.segment_index(fact.end - 1) + 1
    old = log.segments[first:behind]
    assert old[0].base == fact.base, "whole segments are rewritten"
    assert log.segment_end(behind - 1) == fact.end
    stale = sum(segment.stale for segment in old) - fact.stale
    new = Segment(
        fact.base, fact.bytes, old[-1].time_max_ns, fact.generation, fact.absent, max(0, stale)
    )
    # A new list: a reader in a thread may be walking the old one.
    log.segments = [*log.segments[:first], new, *log.segments[behind:]]


def _end_claim(claim: Cursor | Owner) -> None:
    """Nobody holds it, and nobody who held it may come back to it."""
    claim.holder, claim.held = None, False
    if isinstance(claim, Cursor):
        claim.put_down()


def _settle(cursor: Cursor, fact: VerdictFact, time_ns: int) -> None:
    """What was said about a record in hand, or about those put aside."""
    match fact:
        case facts.Committed(_, _, _, offset, begun):
            if offset > cursor.committed:
                cursor.pass_to(offset)
                cursor.succeeded()
            cursor.begun = begun
            if not begun:
                cursor.put_down()  # a redriven record, too
        case facts.Failed(_, _, _, offset, attempts, error, delay_ns):
            # A redriven record lies below the cursor; what was begun there stays so.
            failed: Cursor | Parked = cursor
            if offset == cursor.committed:
                cursor.put_down()
            else:
                failed, cursor.hand = cursor.parked[offset], None
            failed.attempts, failed.error = attempts, error
            failed.failed_ns, failed.delay_ns = time_ns, delay_ns
        case facts.Parked():
            _put_aside(cursor, fact, time_ns)
            cursor.hand = None
            if fact.offset == cursor.committed:
                cursor.pass_to(fact.offset + 1)
                cursor.begun = fact.begun
        case facts.Took(_, _, _, offset):
            cursor.hand = offset
        case facts.Unparked(_, _, _, offset):
            cursor.parked.pop(offset, None)
            cursor.hand = None
            cursor.succeeded()
        case facts.Redriven(_, _, offsets):
            cursor.redrive(offsets)
        case facts.Resumed():
            cursor.resume()
        case _:
            raise AssertionError("of a shared consumer")


def _put_aside(cursor: Cursor, fact: facts.Parked, time_ns: int) -> None:
    """A record is parked, or passed over for good, and counts for the breaker."""
    if fact.keep:
        before = cursor.parked.get(fact.offset)
        copy = before.copy if before is not None else b""
        cursor.parked[fact.offset] = Parked(
            fact.reason, fact.error, fact.attempts, time_ns, copy=copy
        )
    else:
        cursor.parked.pop(fact.offset, None)
    # (Of one that is paused the streak stays: it is what a success redrives.)
    if cursor.paused is None and (not fact.cause or fact.cause != cursor.cause):
        cursor.cause, cursor.streak = fact.cause, []
    if fact.cause:
        cursor.streak.append(fact.offset)
    if fact.pause is not None:
        cursor.paused = fact.pause


def _settle_shared(cursor: Cursor, shared: Shared, fact: VerdictFact, time_ns: int) -> None:
    """The same of a shared consumer, whose records are settled in any order."""
    match fact:
        case facts.Completed(_, _, epoch, done, begun):
            for begin, end in pairs(done):
                cursor.settle(begin, end)
            member = shared.members[epoch]
            if begun is None:
                ranges = list(pairs(done))
                begun = [o for o in member.begun if not any(b <= o < e for b, e in ranges)]
            member.begun = begun
            if done:
                cursor.succeeded()
        case facts.Failed(_, _, epoch, offset, attempts, error, delay_ns):
            failure = cursor.failure(offset)
            failure.attempts, failure.error = attempts, error
            failure.failed_ns, failure.delay_ns = time_ns, delay_ns
            shared.put_down(epoch, offset)
        case facts.Parked(_, _, epoch, offset):
            _put_aside(cursor, fact, time_ns)
            cursor.settle(offset, offset + 1)
            shared.put_down(epoch, offset)
            shared.alone.discard(offset)  # (a redriven one lies below, or was settled before)
        case facts.Unparked(_, _, epoch, offset):
            cursor.parked.pop(offset, None)
            shared.put_down(epoch, offset)
            shared.alone.discard(offset)
            cursor.succeeded()
        case facts.Redriven(_, _, offsets):
            cursor.redrive(offsets)
        case facts.Resumed():
            cursor.resume()
        case _:
            raise AssertionError("not of a shared consumer")


_encoder: Final = msgspec.msgpack.Encoder(enc_hook=enc_hook)
_decoder: Final = msgspec.msgpack.Decoder(State, dec_hook=dec_hook)


def dump(state: State) -> bytes:
    return _encoder.encode(state)


def load(raw: bytes | memoryview) -> State:
    """Raises msgspec.MsgspecError."""
    return _decoder.decode(raw)

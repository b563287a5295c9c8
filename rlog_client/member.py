"""One of many members of a shared consumer: it is assigned records, and settles each by itself.

Records come as in ``source``, by loan, and a loan is for so many records. What comes is whole
batches, each once, and which of their records are this member's; the batches are kept until the
server says that nothing more of them will be.

``_out`` is what was handed out and not settled: after a lost connection the server is told of it.
What it has given to somebody else by then is lost to this member.
"""

from __future__ import annotations

import contextlib
import logging
from bisect import bisect_left, bisect_right, insort
from collections import deque
from itertools import islice
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from .batch import HEADER_BYTES, Columns, Header, InvalidBatch, decode, parse_header
from .consumer import ConsumerSteps, named
from .errors import CorruptData, Fenced, Gap, InvalidRequest, OffsetOutOfRange, RlogError
from .model import NO_HEADERS, Commit, Record
from .protocol import (
    Assigned,
    Claim,
    Claimed,
    Commitment,
    CommitRecords,
    CommitRedriven,
    CommitSingle,
    Committed,
    Credit,
    Damaged,
    Done,
    Extend,
    Judged,
    Settle,
    raised,
)
from .source import SourceSteps, over
from .steps import asking, finishing, until
from .transaction import Verdicts

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from .model import Global, OutOfRange, Verdict, Whence
    from .session import Call, Chunk, Subscription
    from .steps import Link, Steps

ITERATED: Final = 16  # records of one loan, when iterating: what a slow loop keeps from the others
# Of offsets of nine bytes each, what is in hand and these fit into one request:
OFFSETS_MAX: Final = 1000  # in hand,
RANGES_MAX: Final = 250  # done with,
BACK_MAX: Final = 200  # given back
IN_FLIGHT_MAX: Final = 64  # requests, with wait=False

_logger = logging.getLogger("rlog_client")


class _Batch(NamedTuple):
    """A batch, unpacked; what cannot be is an error of whoever is assigned a record of it."""

    header: Header
    columns: Columns | CorruptData


class _Sent(NamedTuple):
    """What is in flight: the offsets that it settles or gives back, and the call."""

    offsets: tuple[int, ...]
    call: Call[Committed] | Call[Judged]


class Want(NamedTuple):
    """What a loan is for; see ``protocol.Credit``."""

    records: int
    end: int | None = None
    now: bool = False
    own: bool = False


class MemberSteps(ConsumerSteps):
    """A source that shares its records with others."""

    _settles_each = True
    _lends_ahead = False  # a loan keeps records from the others

    def __init__(
        self,
        transport: Link,
        log: str,
        log_id: int,
        consumer_id: str | Global,
        *,
        start: Whence,
        block: bool,
        autocommit: bool,
        standby: bool,
        takeover: bool,
        hand_seconds: float | None,
        on_out_of_range: OutOfRange,
    ) -> None:
        super().__init__(
            transport,
            log,
            log_id,
            consumer_id,
            start=start,
            block=block,
            autocommit=autocommit,
            standby=standby,
            takeover=takeover,
            hand_seconds=hand_seconds,
            on_out_of_range=on_out_of_range,
        )
        if standby or takeover:
            raise InvalidRequest("a shared consumer has many members: no standby, no takeover")
        self._ready: deque[Record] = deque()  # assigned, and not handed out
        self._out: dict[int, None] = {}  # handed out, and not settled
        self._finished: list[int] = []  # settled, and the server not told yet
        self._losses: list[tuple[int, int]] = []  # ranges that nobody can have
        self._refused: set[int] = set()  # what was said of them was: they are to be given back
        self._begins: set[int] = set()  # in hand, as the server was told last
        self._batches: dict[int, _Batch] = {}
        self._bases: list[int] = []  # of them, sorted
        self._flight: deque[_Sent] = deque()
        self._want = Want(ITERATED)
        self._kept: set[int] = set()  # what was still its own when it came back last
        self._polled: dict[int, Record] = {}  # by offset; with autocommit, not committed yet
        self._forgiving = False  # to lose a record to somebody else is no error now

    # --- the public operations ----------------------------------------------------------------

    def _commit(self, record: Record, wait: bool) -> Steps[None]:
        yield from self._begin()
        self._check_ours(record)
        self._take_over(record)
        self._complete(record)
        yield from self._settle_out(wait)

    def _settle(self, record: Record, verdict: Verdict, wait: bool) -> Steps[None]:
        yield from self._begin()
        self._check_ours(record)
        if isinstance(verdict, Commit) and verdict.appends:
            yield from self._commit_with(record, verdict)
            return
        name, reason, delay = named(verdict, record.attempt)
        self._take_over(record)
        if name == "skip":
            _logger.info("log %s: skipped %d: %s", self._log, record.offset, reason)
        if name in ("commit", "skip"):
            self._complete(record)
        else:
            self._send_settle(self._verdict_on(record, name, reason=reason, delay=delay))
        yield from self._settle_out(wait)

    def _settle_out(self, wait: bool) -> Steps[None]:
        if self._finished or self._losses:
            self._tell()
        if wait:
            yield from self._await_sent(0)
        else:
            yield from self._go_on()

    def _extend(self, record: Record) -> Steps[None]:
        yield from self._begin()
        self._check_ours(record)
        extend = Extend(self._log_id, self._consumer, self._epoch, record.offset)
        yield from asking(self._transport, extend, Done)

    def _seek(self, whence: Whence) -> Steps[int]:
        yield from ()
        raise InvalidRequest("one member cannot move them all: use cursor(...).seek(...)")

    # --- the claim ----------------------------------------------------------------------------

    def _claim_again(self) -> Claim:
        return Claim(
            self._log_id,
            self._consumer,
            self._start,
            self._token,
            hand_seconds=self._hand_seconds,
            epoch=self._epoch,
            shared=True,
            in_hand=self._mine()[:OFFSETS_MAX],
        )

    def _mine(self) -> list[int]:
        """What is in hand, as far as the server has said."""
        # What is answered, and only not reaped yet, is not said again: nothing would end it.
        waiting = (sent for sent in self._flight if not sent.call.done)
        told = (offset for sent in waiting for offset in sent.offsets)
        return sorted({*self._out, *self._finished, *self._refused, *told})

    def _came_back(self, claimed: Claimed) -> None:
        if not self._claimed:
            return
        self._paused = claimed.paused
        kept = set(claimed.in_hand) if claimed.epoch == self._epoch else set()
        lost = [offset for offset in self._out if offset not in kept]
        self._epoch, self._kept = claimed.epoch, kept
        self._begins &= kept
        self._finished = [offset for offset in self._finished if offset in kept]
        self._losses = []
        self._refused &= kept
        for offset in lost:
            del self._out[offset]
        if lost:
            _logger.warning(
                "log %s: while %s was away, %d records went to others, the lowest %d",
                self._log, self._consumer, len(lost), min(lost),
            )  # fmt: skip

    def _stand_at(self, committed: int) -> None:
        self._acknowledged = committed
        self._out.clear()
        self._finished.clear()
        self._refused.clear()
        self._begins.clear()

    def _note(self, claimed: Claimed) -> None:
        self._paused = claimed.paused

    @property
    def _owes(self) -> bool:
        return bool(self._flight or self._begins)

    def _check(self) -> None:
        super()._check()
        if (subscription := self._subscription) is None:
            return
        self._acknowledged = self._answered
        if (standing := subscription.standing) is not None:
            self._paused, subscription.standing = standing.paused, None

    @property
    def _answered(self) -> int:
        subscription = self._subscription
        told = 0 if subscription is None else subscription.next
        return max(self._acknowledged, told)

    # --- settling -----------------------------------------------------------------------------

    def _complete(self, record: Record) -> None:
        """Done with; the server is told by ``_tell``."""
        if record.redriven:
            self._send_settle(self._verdict_on(record, "commit"))
        else:
            self._out.pop(record.offset, None)
            self._refused.discard(record.offset)
            self._finished.append(record.offset)

    def _send_settle(self, settle: Settle) -> None:
        self._out.pop(settle.offset, None)
        self._refused.discard(settle.offset)
        self._begins.discard(settle.offset)
        call = self._transport.request(settle, Judged)
        self._flight.append(_Sent((settle.offset,), call))

    def _tell(
        self, begins: Iterable[int] | None = None, back: Iterable[int] = (), *, anew: bool = False
    ) -> None:
        """Say what is settled since the last time, and what is in hand from now on: what it was,
        unless ``begins`` says otherwise.
        """
        settled, passed = sorted(set(self._finished)), self._losses
        self._begins = (set(begins) if begins is not None else self._begins).difference(settled)
        given_back = [*back, *self._refused]
        self._finished, self._losses = [], []
        self._refused.clear()
        while True:
            # (More than fits into one request is rare: then what is begun goes with each.)
            some, settled = settled[:RANGES_MAX], settled[RANGES_MAX:]
            room = RANGES_MAX - len(some)
            ranges, passed = passed[:room], passed[room:]
            some_back, given_back = given_back[:BACK_MAX], given_back[BACK_MAX:]
            commit = CommitRecords(
                self._log_id,
                self._consumer,
                self._epoch,
                done=merged([*ranges, *((offset, offset + 1) for offset in some)]),
                begun=sorted(self._begins),
                back=some_back,
                anew=anew,
            )
            call = self._transport.request(commit, Committed)
            self._flight.append(_Sent((*some, *some_back), call))
            if not (settled or passed or given_back):
                return

    def _put_down(self) -> None:
        """Nothing is in hand any more. What was begun and is not settled, or not handed out, goes
        back.
        """
        said = self._begins or self._finished or self._losses or self._refused
        if self._claimed and (said or self._ready):
            begun = [offset for offset in self._begins if offset in self._out]
            back = [*begun, *(record.offset for record in self._ready)]
            self._ready.clear()
            for offset in begun:
                del self._out[offset]
            self._tell((), back)

    def _reap(self) -> None:
        while self._flight and self._flight[0].call.done:
            offsets, call = self._flight.popleft()
            try:
                answer = call.get()
            except Fenced as error:
                if not self._forgiving:
                    raise
                self._forgive(offsets, error)
            except RlogError:
                # As on a full disk. They are this member's still, and it is done with them.
                self._refused.update(offsets)
                raise
            else:
                if isinstance(answer, Judged):
                    self._paused = answer.paused

    def _forgive(self, offsets: tuple[int, ...], error: Fenced) -> None:
        """Of a request that was refused because somebody else has one of its records by now, the
        others are said once more.
        """
        if self._claiming.lost is not None:
            raise error  # not one record: the claim
        _logger.warning("log %s: a verdict came too late: %s", self._log, error)
        self._finished += [offset for offset in offsets if offset in self._kept]
        self._kept = set()

    def _await_sent(self, count: int) -> Steps[None]:
        while len(self._flight) > count:
            call: Call[Any] = self._flight[0].call
            with contextlib.suppress(RlogError):  # ``_reap`` sees to it
                yield from finishing(self._transport, call)
            self._reap()
        self._reap()

    def _go_on(self) -> Steps[None]:
        self._transport.serve()
        if len(self._flight) > IN_FLIGHT_MAX:
            yield from self._await_sent(IN_FLIGHT_MAX // 2)

    def _commit_last(self) -> Steps[None]:
        last, self._last = self._last, None
        polled, self._polled = self._polled, {}
        for record in [*polled.values(), *([last] if last is not None else [])]:
            if record.epoch == self._epoch:
                self._complete(record)
        if self._finished:
            self._tell()
            yield from self._go_on()
            if not self._stopped:
                self._check()

    def _take_over(self, record: Record) -> None:
        if self._last is not None and self._last.offset == record.offset:
            self._last = None
        self._polled.pop(record.offset, None)

    def _handed_out(self, records: list[Record]) -> None:
        if self._autocommit:
            self._polled = {record.offset: record for record in records}

    # --- transactions -------------------------------------------------------------------------

    def _commit_with(self, record: Record, verdict: Commit) -> Steps[None]:
        verdicts = Verdicts(self._transport, self)
        verdicts.add(record, verdict.appends)
        yield from verdicts.sending()

    def _joining(self, record: Record) -> Steps[None]:
        if not self._claimed:
            yield from self._begin()

    def _commitment(self, record: Record, begun: int | None) -> Commitment:
        kind = CommitRedriven if record.redriven else CommitSingle
        return kind(self._log_id, self._consumer, self._epoch, record.offset)

    def _join(self, commitment: Commitment) -> None:
        """(Until it is known to be done, the record counts as in hand.)"""

    def _joined(self, commitment: Commitment, *, done: bool) -> None:
        if done:
            self._out.pop(commitment.offset, None)
            self._begins.discard(commitment.offset)

    # --- records ------------------------------------------------------------------------------

    def _next_run(self, end: int | None, deadline: float | None) -> Steps[Iterator[Record] | None]:
        while not self._stopped:
            self._check()
            if (run := self._run(end)) is not None:
                return run
            want = Want(ITERATED, end, now=end is not None, own=True)
            if not (yield from self._fetch_some(want, deadline)):
                return None
        return None

    def _poll(self, max_records: int, timeout: float | None) -> Steps[list[Record]]:
        if max_records < 1:
            raise ValueError(f"max_records is at least 1, not {max_records}")
        yield from self._begin_reading()
        deadline = until(timeout)
        while not self._stopped:
            self._check()
            if (run := self._run(None)) is not None:
                records = list(islice(run, max_records))
                self._handed_out(records)
                return records
            want = Want(min(max_records, OFFSETS_MAX), now=timeout == 0)
            if not (yield from self._fetch_some(want, None if timeout == 0 else deadline)):
                break
        return []

    def _run(self, _end: int | None) -> Iterator[Record] | None:
        if (subscription := self._subscription) is not None and subscription.broken:
            self._forget()
        if not self._ready:
            self._unpack_all()
        return self._hand_out() if self._ready else None

    def _hand_out(self) -> Iterator[Record]:
        while self._ready and not self._stopped:
            record = self._ready[0]
            # First, so that an interrupt leaves it in one of the two.
            self._out[record.offset] = None
            self._ready.popleft()
            yield record

    def _unpack_all(self) -> None:
        """Take in what has come. Raises what stands in the place of records, once."""
        if self._subscription is None:
            return
        stock = self._subscription.stock
        while stock:
            each = stock[0]
            if isinstance(each, Damaged):
                stock.popleft()
                error = raised(each.error)
                if isinstance(error, OffsetOutOfRange | CorruptData):
                    # Whoever is told of it passes over it, with what it settles next.
                    self._losses.append((error.first, error.end))
                if not isinstance(error, Gap) or self._out_of_range == "error":
                    raise error
                # (To go on at the log's end is not for one member to decide.)
                _logger.warning("log %s: %s", self._log, error)
                self.skipped_records += error.end - error.first
            elif isinstance(each, Assigned):
                stock.popleft()
                self._assigned(each)
            else:
                self._keep(each)
                stock.popleft()

    def _keep(self, chunk: Chunk) -> None:
        try:
            header = parse_header(chunk.payload)
        except InvalidBatch:
            return  # what is assigned of it will be missing
        columns: Columns | CorruptData
        try:
            columns = decode(header, chunk.payload[HEADER_BYTES : header.bytes])
        except InvalidBatch as error:
            columns = self._corrupt(chunk, 0, header.base, header.end, error)
        if header.base not in self._batches:
            insort(self._bases, header.base)
        self._batches[header.base] = _Batch(header, columns)

    def _assigned(self, assigned: Assigned) -> None:
        failed = dict(zip(assigned.failed[::2], assigned.failed[1::2], strict=True))
        redriven = set(assigned.redriven)
        missing: CorruptData | None = None
        for offset in assigned.offsets:
            record = self._record(offset, 1 + failed.get(offset, 0), offset in redriven)
            if isinstance(record, Record):
                self._ready.append(record)
            else:
                missing = record
                self._losses.append((offset, offset + 1))
        for base in assigned.forget:
            if self._batches.pop(base, None) is not None:
                self._bases.remove(base)
        if missing is not None:
            raise missing

    def _record(self, offset: int, attempt: int, redriven: bool) -> Record | CorruptData:
        index = bisect_right(self._bases, offset) - 1
        batch = self._batches[self._bases[index]] if index >= 0 else None
        if batch is None or offset >= batch.header.end:
            text = f"log {self._log}: offset {offset} was assigned, and its batch is not here"
            return CorruptData(text, log=self._log, first=offset, end=offset + 1)
        header, columns = batch
        if isinstance(columns, CorruptData):
            return columns
        keys, values, headers, times_ns, there = columns
        at = offset - header.base if there is None else bisect_left(there, offset)
        if there is not None and offset not in there[at : at + 1]:
            text = f"log {self._log}: offset {offset} was assigned, and is absent in its batch"
            return CorruptData(text, log=self._log, first=offset, end=offset + 1)
        return Record(
            self._log,
            offset,
            header.time_ns,
            keys[at] if keys is not None else None,
            (headers[at] or NO_HEADERS) if headers is not None else NO_HEADERS,
            values[at],
            times_ns[at] if times_ns is not None else None,
            attempt,
            self._epoch,
            redriven,
        )

    # --- fetching -----------------------------------------------------------------------------

    def _fetch_some(self, want: Want, deadline: float | None) -> Steps[bool]:
        """Wait for records. False: there are none, as ``want`` has it, or ``deadline`` or
        ``stop()`` came first.
        """
        while not self._stopped and not over(deadline):
            limit = until(self._transport.timeout) if want.now and not want.own else deadline
            if not (yield from self._read_on(limit)):
                if not self._stopped and not over(deadline):
                    raise self._away()
                return False
            self._want, under_way = want, bool(self._flight)
            subscription = self._lend()
            yield from self._and_call_back(subscription, self._brought(subscription, limit))
            if subscription.stock:
                return True
            if want.now and not subscription.broken:
                if not under_way:
                    return False
                # What was settled before may let something more out, when it is durable.
                yield from self._await_sent(0)
        return False

    def _lend(self) -> Subscription:
        self._check()
        assert self._subscription is not None
        want = self._want
        credit = Credit(
            self._subscription.id, 0, want.records, want.end, now=want.now, own=want.own
        )
        self._transport.session.lend_as(self._subscription, credit)
        return self._subscription

    @property
    def _called(self) -> bool:
        """Something was refused, and is to be raised whether or not there is more to read."""
        for sent in self._flight:
            if not sent.call.done:
                return False
            if sent.call.error is not None:
                return True
        return False

    def _forget(self) -> None:
        SourceSteps._forget(self)
        self._ready.clear()
        self._batches.clear()
        self._bases.clear()

    def disconnected(self) -> None:
        self._ready.clear()

    def forked(self) -> None:
        self._ready.clear()


def merged(ranges: list[tuple[int, int]]) -> list[int]:
    """``begin, end, begin, end, ...`` of ranges, those that touch made one."""
    flat: list[int] = []
    for begin, end in sorted(ranges):
        if flat and begin <= flat[-1]:
            flat[-1] = max(flat[-1], end)
        else:
            flat += (begin, end)
    return flat

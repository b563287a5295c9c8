"""Reading with a durable cursor: the claim on it, and the commits that move it."""

from __future__ import annotations

import contextlib
import logging
import os
from collections import deque
from time import monotonic
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple, TypeAlias

import msgspec

from .errors import ConnectionLost, CorruptData, Fenced, InvalidRequest, OffsetOutOfRange, RlogError
from .model import (
    Backoff,
    Commit,
    Park,
    Record,
    Retry,
    Skip,
    checked_seconds,
    consumer_name,
    offset,
)
from .parked import picking
from .protocol import (
    Claim,
    Claimed,
    CommitCursor,
    Commitment,
    CommitRedriven,
    Committed,
    CommitThrough,
    CursorReply,
    Done,
    Extend,
    GetCursor,
    Judged,
    Moved,
    SeekCursor,
    Settle,
    Taken,
    TakeRedriven,
)
from .session import Call, Claiming
from .source import SourceSteps, check_whence, over
from .steps import Wait, asking, finishing, until
from .transaction import Verdicts

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .model import Global, OutOfRange, Verdict, Whence
    from .session import Session
    from .steps import Link, Steps

COMMITS_MAX: Final = 64  # in flight of one consumer, with wait=False
AUTOCOMMIT_SECONDS: Final = 0.005  # from one commit to the next one, unless there is time anyway
TEXT_BYTES_MAX: Final = 4096  # of an error, and of a reason
DEFAULT: Final = Backoff()  # for whoever gave none

_Name: TypeAlias = Literal["commit", "skip", "retry", "park"]
_logger = logging.getLogger("rlog_client")


class _Sent(NamedTuple):
    """A commit or a verdict in flight, and where the cursor stands when it is answered.

    ``begun``: the offset after the highest record that is then in hand.
    """

    done: int
    begun: int
    call: Call[Committed] | Call[Judged]


class _Failed(NamedTuple):
    """The record at ``offset`` failed so often, and is ``due`` (monotonic seconds)."""

    offset: int
    attempts: int
    due: float


class _Due(NamedTuple):
    record: Record
    due: float  # monotonic seconds


class ConsumerSteps(SourceSteps):
    """A source whose cursor is the server's: claimed at its first use, and released at its end."""

    _settles_each = False

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
        super().__init__(transport, log, log_id, block, on_out_of_range)
        self._reads_as = self._consumer = consumer_name(consumer_id)
        self._start = check_whence(start)
        self._autocommit = autocommit
        self._standby = bool(standby)
        self._takeover = bool(takeover)
        self._hand_seconds = None if hand_seconds is None else checked_seconds(hand_seconds)
        self._claimed = False
        self._claiming = Claiming(self._claim_again, Claimed, self._came_back)
        self._token = os.urandom(16)  # who comes back with it has the claim that it had
        self._seeking: Call[Moved] | None = None
        self._moved: Moved | None = None  # by a seek whose answer was lost
        # With autocommit: what was handed out last, to be committed when the next is asked for; and
        # what was asked beyond, and whose commit is held back, for others to go with it.
        self._last: Record | None = None
        self._passed: Record | None = None
        self._commit_at = 0.0  # the next one may go out then
        if autocommit:
            transport.tended.add(self)
        self._begun = 0
        self._acknowledged = 0  # the offset after the last record whose commit was acknowledged
        # What the last commit sent was for: offset, and the offset after the highest record begun.
        self._asked = 0
        self._asked_begun = 0
        self._named = 0  # the highest offset in any of them: it was delivered
        self._sent: deque[_Sent] = deque()  # commits and verdicts in flight
        self._lost_end = 0  # from ``_done`` up to here the log is gone, damaged or absent
        self._failed: _Failed | None = None  # the record at the cursor, if it did
        self._one_by_one = 0  # below this offset, one record is begun at a time
        self._paused: str | None = None  # why the consumer is
        # There may be redriven records to take; the next one, for iteration and ``poll``; the one
        # that was handed out and not settled; and whether one is begun.
        self._recalled = True
        self._redriven: _Due | None = None
        self._unsettled: int | None = None
        self._hand = False
        self._unsure = False  # a transaction may or may not have moved the cursor
        self._verdicts: Verdicts | None = None  # that process accepted, and has not sent yet

    # --- the public operations ----------------------------------------------------------------

    def _commit(self, record: Record, wait: bool) -> Steps[None]:
        yield from self._begin()
        self._check_ours(record)
        if record.redriven:
            self._send_settle(self._verdict_on(record, "commit"))
        else:
            self._pass(record)
        yield from (self._await_sent(0) if wait else self._go_on())

    def _settle(self, record: Record, verdict: Verdict, wait: bool) -> Steps[None]:
        yield from self._begin()
        self._check_ours(record)
        if isinstance(verdict, Commit) and verdict.appends:
            verdicts = Verdicts(self._transport, self)
            verdicts.add(record, verdict.appends)
            yield from verdicts.sending()
            return
        name, reason, delay = named(verdict, record.attempt)
        committed = max(self._asked, self._passed_end)
        if name in ("retry", "park") and not record.redriven and record.offset < committed:
            raise InvalidRequest(f"record {record.offset} is committed")
        self._take_over(record)
        if name == "skip":
            _logger.info("log %s: skipped %d: %s", self._log, record.offset, reason)
        if record.redriven or name in ("retry", "park"):
            self._commit_below(record)
            self._send_settle(self._verdict_on(record, name, reason=reason, delay=delay))
            if name == "retry" and not record.redriven:
                yield from self._await_sent(0)
                yield from self._attach()  # it comes again, and all behind it
        else:
            self._pass(record)
        yield from (self._await_sent(0) if wait else self._go_on())

    def _extend(self, record: Record) -> Steps[None]:
        yield from self._begin()
        self._check_ours(record)
        extend = Extend(self._log_id, self._consumer, self._epoch)
        yield from asking(self._transport, extend, Done)

    def _seek(self, whence: Whence) -> Steps[int]:
        check_whence(whence)
        yield from self._begin()
        self._send_passed()  # or it would leave just ahead of the seek
        yield from self._await_sent(0)
        seek = SeekCursor(self._log_id, self._consumer, whence, self._epoch)
        self._seeking = self._transport.request(seek, Moved)
        try:
            moved = yield from self._sought(self._seeking)
        finally:
            self._seeking = None
        self._epoch = moved.epoch
        self._last = self._passed = None
        if moved.after != moved.before:
            self._failed = None
        self._one_by_one = 0
        self._stand_at(moved.after)
        self._drop()
        self._place = moved.after
        return (yield from self._attach())

    def _close(self) -> Steps[None]:
        if self._closed:
            return
        self._closed = True
        self._transport.tended.discard(self)
        self._drop()
        if not self._claimed:
            return
        if self._transport.session.ended is None:
            self._send_passed()
        self._claimed = False
        if self._transport.session.lost is not None and not self._owes:
            self._transport.session.unclaim(self._claiming)
            return  # the claim went with the connection
        try:
            yield from self._await_sent(0)
        except GeneratorExit:
            self._post_release()
            raise
        except BaseException:
            yield from self._release()
            raise
        yield from self._release()

    def __del__(self) -> None:
        super().__del__()
        if getattr(self, "_claimed", False):
            self._post_release()

    # --- the claim ----------------------------------------------------------------------------

    def _open(self) -> Steps[None]:
        if self._claimed:
            self._transport.serve()  # the claim may have been lost since: then the stock is void
            if self._verdicts is not None:
                yield from self._send_verdicts()  # whatever comes now, comes behind them
            if self._unsure:
                yield from self._find_out()
        elif (yield from self._claim_in_range()):
            yield from self._attach()

    def _claim_in_range(self) -> Steps[bool]:
        try:
            return (yield from self._claim())
        except OffsetOutOfRange:
            if self._out_of_range == "error":
                raise
        asked, self._start = self._start, self._elsewhere
        claimed = yield from self._claim()
        if claimed:
            self._note_start(asked, self._acknowledged)
        return claimed

    def _claim(self) -> Steps[bool]:
        """False: ``stop()`` came before its turn."""
        session = self._transport.session
        self._token = os.urandom(16)
        self._claiming = claiming = Claiming(self._claim_again, Claimed, self._came_back)
        try:
            call = session.claim(claiming)
            if self._standby:
                # Waiting for one's turn is no request: it takes as long as it takes.
                yield Wait(lambda: call.done or self._stopped)
                if not call.done:
                    session.unclaim(claiming)
                    # Another one in its place: what the server says to this one is of no interest.
                    self._claiming = Claiming(self._claim_again, Claimed, self._came_back)
                    self._transport.serve()
                    return False
                claimed = call.get()
            else:
                claimed = yield from finishing(self._transport, call)
        except BaseException:
            # Given up, interrupted or cancelled, it may still be granted: to nobody.
            session.unclaim(claiming)
            raise
        self._epoch = claimed.epoch
        self._stand_at(claimed.committed)
        self._note(claimed)
        self._place = claimed.committed
        self._claimed = True
        return True

    def _claim_again(self) -> Claim:
        """The request as it is to be sent now."""
        return Claim(
            self._log_id,
            self._consumer,
            self._start,
            self._token,
            standby=self._standby,
            takeover=self._takeover,
            hand_seconds=self._hand_seconds,
            epoch=self._epoch,
            delivered=max(self._delivered, self._stocked, self._named),
        )

    def _came_back(self, claimed: Claimed) -> None:
        """The claim was granted, perhaps once more on a new connection."""
        if not self._claimed:
            return
        if claimed.epoch == self._epoch:
            self._paused = claimed.paused
            return
        if self._seeking is not None and claimed.epoch == self._epoch + 1:
            # The epoch says that the seek was done, although its answer was lost.
            self._moved = Moved(self._acknowledged, claimed.committed, claimed.epoch)
            self._seeking.succeed(self._moved)
        else:
            self._claiming.lost = self._fenced("it was moved", claimed.epoch)

    def _sought(self, call: Call[Moved]) -> Steps[Moved]:
        """The answer to a seek, or what it must have been."""
        self._moved = None
        try:
            return (yield from finishing(self._transport, call))
        except Fenced:
            # Repeated, it is refused under the old epoch: at once, while a claim is durable first.
            again = self._claiming.call
            if call.sent > 1 and not again.done:
                yield Wait(lambda: again.done, until(self._transport.timeout))
            moved: Moved | None = self._moved
            if moved is None:
                raise
            return moved

    def _attach(self) -> Steps[int]:
        """Read from the cursor on."""
        return (yield from self._subscribe(offset(self._acknowledged), self._consumer))

    def _release(self) -> Steps[None]:
        if self._owes and not self._connected():
            yield Wait(self._connected, until(self._transport.timeout))
        with contextlib.suppress(ConnectionLost):  # then the claim went with it
            released = self._transport.session.unclaim(self._claiming)
            yield from finishing(self._transport, released)

    def _post_release(self) -> None:
        claiming = self._claiming
        commit = None
        if done := self._passed_end:
            commit = CommitCursor(self._log_id, self._consumer, self._epoch, done, 0)

        def release(session: Session) -> None:
            if commit is not None:
                session.start(Call(Committed), commit)
            session.unclaim(claiming)

        self._transport.post(release)

    @property
    def _owes(self) -> bool:
        """The server would take it for something else that the connection is gone."""
        return bool(self._sent) or self._hand or self._asked_begun > self._asked

    def _check(self) -> None:
        super()._check()
        self._check_claim()
        if (subscription := self._subscription) is not None and subscription.lost is not None:
            raise self._fenced("the claim is lost", subscription.lost.epoch)
        self._reap()

    def _check_claim(self) -> None:
        if (lost := self._claiming.lost) is not None:
            epoch = lost.epoch if isinstance(lost, Fenced) else self._epoch
            raise self._fenced(f"the claim is lost: {lost}", epoch)

    def _connected(self) -> bool:
        # A subscription is not judged behind what is pipelined before it: the claim comes first.
        return super()._connected() and self._claiming.call.done

    def _check_connected(self) -> None:
        super()._check_connected()
        self._check_claim()

    def _fenced(self, reason: str, epoch: int) -> Fenced:
        return Fenced(f"consumer {self._consumer} of log {self._log}: {reason}", epoch=epoch)

    def _stand_at(self, committed: int) -> None:
        """The cursor was found there, or put there: nothing is in hand, or in flight."""
        self._acknowledged = self._done = self._asked = committed
        self._asked_begun = self._lost_end = self._named = 0
        self._begun = 0
        self._hand = False

    def _note(self, claimed: Claimed) -> None:
        """What a claim brings to light."""
        self._one_by_one = claimed.one_by_one
        self._paused = claimed.paused
        self._failed = None
        if claimed.attempts:
            due = monotonic() + claimed.wait_seconds
            self._failed = _Failed(claimed.committed, claimed.attempts, due)

    def _check_ours(self, record: Record) -> None:
        if not isinstance(record, Record):
            raise TypeError(f"a Record, as it was handed out, and not {record!r}")
        if record.log != self._log:
            raise InvalidRequest(f"a record of log {record.log}; this consumes {self._log}")
        if record.epoch != self._epoch:
            raise self._fenced(f"delivered under epoch {record.epoch}", self._epoch)

    # --- commits and verdicts -----------------------------------------------------------------

    def _send_commit(self, done: int, begun: int = 0, by: Link | Session | None = None) -> None:
        """``begun``: the offset after the highest record that is in hand from then on. ``by``: who
        takes it, from inside a call.
        """
        begun = begun if begun > done else 0
        commit = CommitCursor(self._log_id, self._consumer, self._epoch, done, begun)
        self._named = max(self._named, done, begun)
        call = (by or self._transport).start(Call(Committed), commit)
        # Not before: interrupted, it was not asked for yet.
        self._asked, self._asked_begun = max(self._asked, done), begun
        self._sent.append(_Sent(done, begun, call))

    def _verdict_on(
        self,
        record: Record,
        name: _Name,
        *,
        attempts: int | None = None,
        delay: float = 0.0,
        reason: str = "",
        error: str = "",
        cause: str = "",
        exhausted: bool = False,
        pause_after: int | None = None,
    ) -> Settle:
        """``attempts``: the failed ones, this one included if it is None."""
        return Settle(
            self._log_id,
            self._consumer,
            self._epoch,
            record.offset,
            name,
            redriven=record.redriven,
            delay=delay,
            attempts=record.attempt if attempts is None else attempts,
            reason=cut_text(reason),
            error=error,
            cause=cause,
            exhausted=exhausted,
            pause_after=pause_after,
        )

    def _send_settle(self, settle: Settle) -> None:
        """Put a verdict on its way; of a record at the cursor, all below is committed by then."""
        done = 0
        if settle.redriven:
            self._hand, self._recalled = False, True  # it, or the next one
            if self._unsettled == settle.offset:
                self._unsettled = None
        elif settle.verdict == "retry":
            due = monotonic() + settle.delay
            self._failed = _Failed(settle.offset, settle.attempts, due)
        else:
            done = self._done = self._asked = settle.offset + 1
        begun = self._asked_begun if settle.redriven else 0
        self._asked_begun = begun
        self._sent.append(_Sent(done, begun, self._transport.request(settle, Judged)))

    def _reap(self) -> None:
        """Take note of the answered ones. Raises the first error."""
        while self._sent and self._sent[0].call.done:
            done, begun, call = self._sent.popleft()
            answer = call.get()
            if isinstance(answer, Judged):
                self._begun, self._paused = begun, answer.paused
                self._acknowledged = max(self._acknowledged, done)
            else:
                self._note_committed(done, begun)

    def _note_committed(self, done: int, begun: int) -> None:
        self._begun = begun
        if done > self._acknowledged and self._paused is not None:
            self._paused, self._recalled = None, True  # a success; what paused it comes first
        self._acknowledged = max(self._acknowledged, done)

    @property
    def _answered(self) -> int:
        """The offset after the last commit whose answer is here, reaped or not."""
        answered = self._acknowledged
        for done, _, call in self._sent:
            if not call.done or call.error is not None:
                break
            answered = max(answered, done)
        return answered

    def _await_sent(self, count: int) -> Steps[None]:
        """Wait until at most ``count`` are in flight."""
        while len(self._sent) > count:
            call: Call[Any] = self._sent[0].call
            try:
                yield from finishing(self._transport, call)
            except RlogError:
                self._sent.popleft()
                raise
            self._reap()
        self._reap()

    def _go_on(self) -> Steps[None]:
        """Send what was asked for, and wait only when too much is in flight."""
        self._transport.serve()
        if len(self._sent) > COMMITS_MAX:
            yield from self._await_sent(COMMITS_MAX // 2)

    def _pass(self, record: Record) -> None:
        """Commit through ``record``, by the user's word."""
        if self._held is not None and self._held.offset <= record.offset:
            self._held = None
        done = record.offset + 1
        self._send_commit(done, self._asked_begun)
        self._done = max(self._done, done)

    def _commit_below(self, record: Record) -> None:
        """Have the cursor stand at ``record``, so that it can be settled."""
        if not record.redriven and record.offset > self._asked:
            self._send_commit(record.offset, record.offset + 1)

    def _commit_last(self) -> Steps[None]:
        last, self._last = self._last, None
        if last is None or last.epoch != self._epoch:
            if not self._send_passed():
                return
        elif last.redriven:
            self._send_passed()
            self._send_settle(self._verdict_on(last, "commit"))
        else:
            self._passed = last  # and all before it
            self._send_passed()
        yield from self._go_on()
        if not self._stopped:
            self._check()  # the claim may have been lost since: what comes next is another's then

    def _take_over(self, record: Record) -> None:
        """It is settled by hand: a commit by autocommit would pass it."""
        last = self._last
        if last is not None and (last.redriven, last.offset) >= (record.redriven, record.offset):
            self._last = None

    @property
    def _passed_end(self) -> int:
        """The offset after what was asked beyond, and is not committed yet; 0 for nothing."""
        passed = self._passed
        return passed.offset + 1 if passed is not None and passed.epoch == self._epoch else 0

    def _send_passed(self, by: Session | None = None) -> bool:
        """Commit what was held back. False: there is nothing."""
        passed = self._passed
        if passed is None:
            return False
        if ahead := (done := self._passed_end) > self._asked:
            self._commit_at = monotonic() + AUTOCOMMIT_SECONDS  # first: what sends it tends, too
            self._send_commit(done, by=by)
            self._done = max(self._done, done)
        # Last: interrupted, it is sent twice, and not never.
        if self._last is passed:
            self._last = None
        self._passed = None
        return ahead

    def tend(self, now: float) -> None:
        """On calls into the client, and in an async one when it is due."""
        if self._passed is not None and now >= self._commit_at:
            self._send_passed(self._transport.session)

    def _handed_out(self, records: list[Record]) -> None:
        if self._autocommit and records:
            self._last = records[-1]

    # --- transactions -------------------------------------------------------------------------

    def _check_record(self, record: Record) -> None:
        self._check()
        self._check_ours(record)

    def _joining(self, record: Record) -> Steps[None]:
        yield from self._begin()
        self._send_passed()
        yield from self._await_sent(0)

    def _commitment(self, record: Record, begun: int | None) -> Commitment:
        log_id, consumer, epoch = self._log_id, self._consumer, self._epoch
        if record.redriven:
            return CommitRedriven(log_id, consumer, epoch, record.offset)
        done = record.offset + 1
        begun = self._asked_begun if begun is None else begun
        return CommitThrough(log_id, consumer, epoch, done, begun if begun > done else 0)

    def _join(self, commitment: Commitment) -> None:
        self._unsure = True
        if isinstance(commitment, CommitThrough):
            self._named = max(self._named, commitment.offset, commitment.begun)

    def _joined(self, commitment: Commitment, *, done: bool) -> None:
        if not done:
            pass
        elif isinstance(commitment, CommitRedriven):
            self._hand, self._recalled, self._paused = False, True, None  # it, or the next one
            if self._unsettled == commitment.offset:
                self._unsettled = None
        elif isinstance(commitment, CommitThrough):
            through, begun = commitment.offset, commitment.begun
            self._note_committed(through, begun)
            self._done = max(self._done, through)
            self._asked, self._asked_begun = max(self._asked, through), begun
            if self._held is not None and self._held.offset < through:
                self._held = None
        self._unsure = False  # last: should an interrupt come in between, the server is asked

    def _send_verdicts(self, begun: int | None = None) -> Steps[None]:
        """What cannot be sent is not done, and its records come again."""
        verdicts, self._verdicts = self._verdicts, None
        assert verdicts is not None, "nothing was accepted"
        try:
            yield from verdicts.sending(begun)
        except BaseException:
            self._unsure = True
            raise

    def _find_out(self) -> Steps[None]:
        """Nobody said what became of a transaction. It is decided by now, or never will be: what is
        asked here is answered behind it, and behind a claim that came back it is fenced.
        """
        asked = GetCursor(self._log_id, self._consumer)
        found = (yield from asking(self._transport, asked, CursorReply)).info
        named = self._named
        self._stand_at(found.committed)
        self._asked_begun = self._named = named  # perhaps: it is put down in any case
        self._paused, self._unsettled = found.paused, None
        self._drop()
        self._place = found.committed
        yield from self._attach()
        self._unsure = False

    # --- in hand ------------------------------------------------------------------------------

    @property
    def _stocked(self) -> int:
        """The offset after what is in stock."""
        return self._subscription.next if self._subscription is not None else 0

    def _place_of(self, record: Record) -> int:
        """Where the cursor stands, or may be put, while ``record`` is in hand.

        At the record itself, unless others before it were handed out and not committed: that it was
        begun is no verdict on those.
        """
        reached = max(self._done, self._lost_end)
        contiguous = reached >= record.offset or (
            self._cut is not None and self._cut.absent(reached, record.offset)
        )
        return max(record.offset if contiguous else self._done, self._asked)

    def _put_down(self) -> None:
        """Nothing is in hand any more, by a commit of all that is done with."""
        done = max(self._done, self._asked)
        if self._claimed and (done > self._asked or self._asked_begun > done or self._hand):
            self._hand = False
            self._send_commit(done)

    def _run(self, end: int | None) -> Iterator[Record] | None:
        try:
            return super()._run(end)
        except (OffsetOutOfRange, CorruptData) as lost:
            self._pass_over(lost.first, lost.end)
            raise

    def _pass_over(self, first: int, end: int) -> None:
        self._done = max(self._done, self._passed_end)  # which it will be committed through
        # The next commit is one through all of it, unless something before it is not committed.
        if first <= max(self._done, self._lost_end):
            self._lost_end = max(self._lost_end, end)

    def _stamped(self, record: Record) -> Record:
        """With its number of attempts."""
        failed = self._failed
        if failed is None or failed.offset != record.offset or record.attempt > failed.attempts:
            return record
        return msgspec.structs.replace(record, attempt=1 + failed.attempts)

    def _due(self, at: int) -> float:
        """The moment from which the record at offset ``at`` may be delivered."""
        failed = self._failed
        return failed.due if failed is not None and failed.offset == at else 0.0

    def _count_here(self, record: Record, delay: float) -> None:
        """A failed attempt that the server is not told of."""
        self._failed = _Failed(record.offset, record.attempt, monotonic() + delay)

    def _wait_for(self, due: float, deadline: float | None) -> Steps[bool]:
        """False: ``deadline``, ``stop()`` or something that goes ahead came first."""
        self._send_passed()
        while not self._stopped and monotonic() < due and not over(deadline):
            self._check()
            at = due if deadline is None else min(due, deadline)
            yield Wait(lambda: self._stopped or self._recall_came, at)
            if self._recall_came:
                return False
        return not self._stopped and monotonic() >= due

    # --- redriven records ---------------------------------------------------------------------

    def _forget(self) -> None:
        super()._forget()
        # A recall may have gone to the subscription that is no more, or before there was one.
        self._redriven, self._recalled = None, True

    @property
    def _recall_came(self) -> bool:
        """And nobody has looked into it yet."""
        return self._subscription is not None and self._subscription.recalled

    @property
    def _has_redriven(self) -> bool:
        """There may be redriven records to take."""
        return self._recalled or self._recall_came

    @property
    def _called(self) -> bool:
        return self._unsettled is None and self._has_redriven

    def _forget_recall(self) -> None:
        """It was seen, though not yet followed."""
        if self._subscription is not None and self._subscription.recalled:
            self._recalled = True
            self._subscription.recalled = False

    def _take(self) -> Steps[_Due | None]:
        """The lowest redriven record, which is not begun by that; None for none."""
        while True:
            self._check()
            # First a subscription: it is told of what is redriven after the answer.
            if not (yield from self._read_on(until(self._transport.timeout))):
                if self._stopped:
                    return None
                raise self._away()
            if (subscription := self._subscription) is not None:
                subscription.recalled = False
            taken = yield from self._taking(begin=False)
            if taken.offset < 0:
                self._recalled = False
                return None
            self._recalled = True
            due = monotonic() + taken.wait_seconds
            try:
                record = yield from picking(
                    self._transport, self._log, self._log_id, self._consumer, taken.offset
                )
            except (OffsetOutOfRange, CorruptData) as error:
                yield from self._give_up_on(taken, error)
            else:
                attempt, epoch = 1 + taken.attempts, self._epoch
                return _Due(
                    msgspec.structs.replace(record, attempt=attempt, epoch=epoch, redriven=True),
                    due,
                )

    def _taking(self, *, begin: bool) -> Steps[Taken]:
        take = TakeRedriven(self._log_id, self._consumer, self._epoch, begin)
        return (yield from asking(self._transport, take, Taken))

    def _give_up_on(self, taken: Taken, error: OffsetOutOfRange | CorruptData) -> Steps[None]:
        """A redriven record that cannot be read must not stand in the way of all others for ever:
        one that was removed is settled, a damaged one stays parked.
        """
        damaged = isinstance(error, CorruptData)
        _logger.warning("log %s: redriven record %d: %s", self._log, taken.offset, error)
        settle = Settle(
            self._log_id,
            self._consumer,
            self._epoch,
            taken.offset,
            "park" if damaged else "skip",
            redriven=True,
            attempts=taken.attempts,
            reason="it cannot be read",
            error=cut_text(str(error)),
        )
        self._send_settle(settle)
        yield from self._await_sent(0)

    # --- iteration and poll -------------------------------------------------------------------

    def _next_run(self, end: int | None, deadline: float | None) -> Steps[Iterator[Record] | None]:
        run = yield from super()._next_run(end, deadline)
        if run is None and self._transport.session.ended is None:
            # The iteration ends: nothing is held back any more.
            self._send_passed()
            if self._sent:
                self._transport.serve()
        return run

    def _fetch(self, deadline: float | None) -> Steps[bool]:
        self._send_passed()  # it leaves with what asks for more
        return (yield from super()._fetch(deadline))

    def _ahead(self, deadline: float | None) -> Steps[bool]:
        while not self._stopped:
            if self._redriven is None and self._called:
                self._redriven = yield from self._take()
            redriven = self._redriven
            due = redriven.due if redriven is not None else self._due(self._offset)
            if monotonic() >= due or (yield from self._wait_for(due, deadline)):
                return True
            if over(deadline):
                return False
            self._redriven = None  # another one may come before it now
        return False

    def _handed_run(self, end: int | None) -> Iterator[Record] | None:
        redriven, self._redriven = self._redriven, None
        if redriven is not None:
            self._unsettled = redriven.record.offset
            return iter((redriven.record,))
        run = self._run(end)
        if run is None or self._failed is None:
            return run
        # Into its place first, so that an interrupt loses nothing.
        for self._held in run:
            break
        held = self._held
        if held is None:
            return None
        if self._failed.offset < held.offset:
            self._failed = None
        self._held = None
        return iter((self._stamped(held),))


def named(verdict: Verdict, attempt: int) -> tuple[_Name, str, float]:
    """A verdict by name, with its reason and its delay in seconds."""
    match verdict:
        case Commit():
            return "commit", "", 0.0
        case Skip(reason):
            return "skip", reason, 0.0
        case Park(reason):
            return "park", reason, 0.0
        case Retry(delay):
            return "retry", "", pause(DEFAULT, attempt) if delay is None else delay
    raise InvalidRequest(f"a record is settled by Commit, Skip, Park or Retry, not by {verdict!r}")


def pause(policy: Backoff, attempt: int) -> float:
    """Seconds until the next attempt; with jitter, so that many clients do not come back as one."""
    seconds = min(policy.cap, policy.first * 2.0 ** min(attempt - 1, 64))
    return seconds * (0.75 + os.urandom(1)[0] / 1024)


def cut_text(text: str, limit: int = TEXT_BYTES_MAX) -> str:
    """As much of ``text`` as fits into ``limit`` bytes of UTF-8."""
    raw = text.encode(errors="backslashreplace")
    return raw[:limit].decode(errors="ignore")

"""One call of ``process``: records to a handler, one after the other, and what its verdicts do.

Rules:

- A record is held (``_held``) until its verdict is in: whatever happens, it is the next one again.
- A consumer's record is *begun*, durably, before its handler is called: if the member vanishes, the
  server knows which records it had in hand, and blames the one that did it. Every commit names what
  is begun next, so this costs no frame of its own, but for the first.
- However ``process`` is left, what is not done is put down, so that leaving costs no attempt.
"""

from __future__ import annotations

import logging
import math
import traceback
from time import monotonic
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple, TypeAlias

import msgspec

from .consumer import DEFAULT, TEXT_BYTES_MAX, ConsumerSteps, cut_text, pause
from .errors import InvalidRequest, NotFound, Paused, RlogError, TooLarge
from .model import Backoff, Commit, Park, Record, Retry, Skip, Stop
from .protocol import CursorReply, GetCursor
from .source import SourceSteps, over
from .steps import Await, Wait, asking, until
from .transaction import Verdicts

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from .steps import Steps

OnExhausted: TypeAlias = Literal["park", "skip", "raise"]

LOOK_SECONDS: Final = 0.001  # between looks at the socket while a handler runs again and again
SUMMARY_BYTES_MAX: Final = 1024  # of an exception, when its traceback is too long
CAUSE_BYTES_MAX: Final = 255
LOST_MEMBER: Final = "a lost member"  # the cause, when a record is past its attempts on arrival
RETRY_VERDICT: Final = "Retry"  # the cause, when it was not an exception

# What a verdict's appends may be refused with that the record is to blame for, as if its handler
# had raised it. Anything else (a full disk, a lost claim) says nothing of the record.
ITS_FAULT: Final = (TypeError, ValueError, NotFound, TooLarge, InvalidRequest)

_logger = logging.getLogger("rlog_client")


class How(NamedTuple):
    """What a call was asked to do. ``end``: the offset at which it ends; None: never."""

    handler: Callable[[Record], Any]
    limit: int | None
    end: int | None
    block: bool
    deadline: float | None
    in_flight: int
    retry: Backoff | None
    on_exhausted: OnExhausted


def process(
    source: SourceSteps,
    kind: Callable[[Any, How], Process],
    handler: Callable[[Record], Any],
    *,
    limit: int | None,
    block: bool | None,
    timeout: float | None,
    in_flight: int,
    retry: Backoff | None,
    on_exhausted: OnExhausted,
) -> Steps[int]:
    """The steps of ``Source.process``: how many records were completed. ``kind``: how ``source`` is
    processed.
    """
    _check_arguments(limit, in_flight, retry, on_exhausted)
    consumes = isinstance(source, ConsumerSteps)
    if not consumes and _may_exhaust(retry) and on_exhausted == "park":
        raise InvalidRequest('a reader cannot park: on_exhausted is "skip" or "raise"')
    deadline = until(timeout)
    block = source._block if block is None else block
    yield from source._begin_reading()
    end = yield from source._final(block)
    how = How(handler, limit, end, block, deadline, in_flight, retry, on_exhausted)
    return (yield from kind(source, how).run())


class Escaped(Exception):
    """A handler's StopIteration, which would end the steps instead of coming out of them."""

    def __init__(self, error: StopIteration) -> None:
        super().__init__(error)
        self.error = error


def _check_arguments(
    limit: int | None, in_flight: int, retry: Backoff | None, on_exhausted: str
) -> None:
    if not isinstance(in_flight, int) or not isinstance(limit, int | None):
        raise TypeError("limit and in_flight are whole numbers")
    if limit is not None and limit < 0:
        raise ValueError(f"limit is at least 0, not {limit}")
    if in_flight < 1:
        raise ValueError(f"in_flight is at least 1, not {in_flight}")
    if retry is not None and not isinstance(retry, Backoff):
        raise TypeError(f"retry is a Backoff or None, not {retry!r}")
    if on_exhausted not in ("park", "skip", "raise"):
        raise ValueError(f'on_exhausted is "park", "skip" or "raise", not {on_exhausted!r}')


def _may_exhaust(retry: Backoff | None) -> bool:
    return retry is not None and retry.max_attempts is not None


class Process:
    """Of a reader: attempts, and the place, are the client's own."""

    def __init__(self, source: SourceSteps, how: How) -> None:
        self._source = source
        self._how = how
        self._completed = 0
        # When ``_look`` is next: a moment, or an offset that is done with.
        self._look_at = math.inf if how.deadline is None else how.deadline
        self._look_from = math.inf

    def run(self) -> Steps[int]:
        try:
            while self._goes_on and (yield from self._round()):
                pass
        except GeneratorExit:
            self._abandon()
            raise
        except BaseException:
            try:
                yield from self._leave()
            except RlogError as error:
                # What the handler raised is what its caller has to see.
                _logger.warning("log %s: on the way out: %s", self._source._log, error)
            raise
        yield from self._leave()
        return self._completed

    @property
    def _goes_on(self) -> bool:
        limit = self._how.limit
        return not (
            self._source._stopped
            or over(self._how.deadline)
            or (limit is not None and self._completed >= limit)
        )

    def _round(self) -> Steps[bool]:
        """Handle what is here, or wait for more. False: this is the end."""
        source, how = self._source, self._how
        source._check()
        run = self._held_run() or source._run(how.end)
        if run is not None:
            return (yield from self._handle(run))
        if source._at_end(how.end):
            return False
        self._before_waiting()
        return (yield from source._fetch(how.deadline))

    def _held_run(self) -> Iterator[Record] | None:
        held = self._source._held
        return None if held is None else iter((held,))

    def _handle(self, run: Iterator[Record]) -> Steps[bool]:
        """Give records to the handler as long as nothing else is to be done. False: Stop."""
        source, handler, awaits = self._source, self._how.handler, self._source._awaits
        limit = math.inf if self._how.limit is None else self._how.limit
        # Into its place by the loop itself: an interrupt between the two would lose the record.
        for source._held in run:
            record = source._held
            if record.offset >= source._begun:
                if not (yield from self._begin(record)):
                    return True
                record = source._held  # with its attempts
            try:
                verdict = handler(record)
                if awaits:
                    verdict = yield Await(verdict)
            except Exception as error:
                if not (yield from self._sent_verdicts()):
                    return True  # records before it come again, and so does it
                if not (yield from self._raised(record, error)):
                    if isinstance(error, StopIteration):
                        raise Escaped(error) from None
                    raise
                return True
            if isinstance(verdict, Commit):
                if verdict.appends and not (yield from self._commit_with(record, verdict)):
                    return True
            elif verdict is not None:
                if not isinstance(verdict, Skip):
                    if not (yield from self._sent_verdicts()):
                        return True
                    return (yield from self._judge(record, verdict))
                self._log_skip(record, verdict)
            if source._held is record:  # not if the handler moved this source elsewhere
                source._done = record.offset + 1
                source._held = None
            self._completed += 1
            if self._completed >= limit:
                yield from self._sent_verdicts()  # else some of them are not completed
                return True
            now = monotonic()
            if (now >= self._look_at or record.offset >= self._look_from) and not self._look(now):
                return True
        return True

    def _log_skip(self, record: Record, verdict: Skip) -> None:
        _logger.info("log %s: skipped %d: %s", record.log, record.offset, verdict.reason)

    # --- verdicts -----------------------------------------------------------------------------

    def _judge(self, record: Record, verdict: object) -> Steps[bool]:
        """What is neither a Commit nor a Skip. False: Stop."""
        if isinstance(verdict, Stop):
            return False
        if isinstance(verdict, Retry):
            yield from self._failed(record, None, verdict.delay)
        elif isinstance(verdict, Park):
            yield from self._park(record, verdict)
        else:
            error = TypeError(f"a handler returns a verdict or None, not {verdict!r}")
            yield from self._count(record, error, 0.0)
            raise error
        return True

    def _raised(self, record: Record, error: Exception) -> Steps[bool]:
        """The handler raised. False: so shall ``process``."""
        if self._how.retry is None:
            yield from self._count(record, error, 0.0)
            return False
        return (yield from self._failed(record, error, None))

    def _failed(self, record: Record, error: Exception | None, delay: float | None) -> Steps[bool]:
        """An attempt failed: again after ``delay`` seconds, unless it was the last one.

        False: ``error`` is to be raised.
        """
        policy = self._how.retry
        if policy is not None and record.attempt >= (policy.max_attempts or math.inf):
            return (yield from self._exhausted(record, error, RETRY_VERDICT))
        seconds = pause(policy or DEFAULT, record.attempt) if delay is None else delay
        yield from self._count(record, error, seconds)
        yield from self._rest(seconds)
        return True

    def _past_attempts(self, record: Record) -> bool:
        """It came with more failed attempts than it is given: no handler is called."""
        policy = self._how.retry
        return policy is not None and record.attempt > (policy.max_attempts or math.inf)

    def _exhausted(self, record: Record, error: Exception | None, cause: str) -> Steps[bool]:
        """``cause``: if there was no ``error``. False: ``error`` is to be raised."""
        policy, verdict = self._how.retry, self._how.on_exhausted
        assert policy is not None, "only a policy exhausts"
        failed = record.attempt - (cause is LOST_MEMBER)
        reason = f"failed {failed} times"
        if verdict == "raise":
            if cause is not LOST_MEMBER:
                yield from self._count(record, error, 0.0)
            if error is None:
                text = f"log {record.log}: record {record.offset} {reason}"
                raise Paused(text, reason=reason)
            return False
        what = "skipped" if verdict == "skip" else "parked"
        cause = cause if error is None else cause_of(error)
        _logger.warning("log %s: %s %d, %s: %s", record.log, what, record.offset, reason, cause)
        yield from self._set_aside(record, verdict, failed, reason, error, cause)
        self._completed += 1
        return True

    # --- what differs for a consumer ----------------------------------------------------------

    def _begin(self, record: Record) -> Steps[bool]:
        """Have the record begun, and have its attempts told. False: something else comes first."""
        raise AssertionError("a reader's records are not begun")

    def _before_waiting(self) -> None:
        """Nothing is here, and more is to come."""

    def _sent_verdicts(self) -> Steps[bool]:
        """Have all accepted verdicts with appends done. False: they are not, and come again."""
        yield from ()
        return True

    def _look(self, now: float) -> bool:
        """Between two records: whether to go on with the next."""
        return not over(self._how.deadline)

    def _count(self, record: Record, error: Exception | None, delay: float) -> Steps[None]:
        """One more failed attempt. It is the next one again, after ``delay`` seconds."""
        yield from ()
        if self._source._held is record:
            self._source._held = msgspec.structs.replace(record, attempt=record.attempt + 1)

    def _rest(self, seconds: float) -> Steps[None]:
        """Wait out the delay."""
        end = monotonic() + seconds
        deadline = self._how.deadline
        while not self._source._stopped and not over(end) and not over(deadline):
            self._source._check()
            at = end if deadline is None else min(end, deadline)
            yield Wait(lambda: self._source._stopped, at)

    def _park(self, record: Record, verdict: Park) -> Steps[None]:
        error = InvalidRequest("a reader cannot park: there is no cursor to park it with")
        yield from self._count(record, error, 0.0)
        raise error

    def _commit_with(self, record: Record, verdict: Commit) -> Steps[bool]:
        """Commit a record together with appends. False: that failed, and it comes again."""
        text = "a reader cannot commit appends: there is no cursor to commit them with"
        error = InvalidRequest(text)
        yield from self._count(record, error, 0.0)
        raise error

    def _set_aside(
        self,
        record: Record,
        verdict: Literal["park", "skip"],
        failed: int,
        reason: str,
        error: Exception | None,
        cause: str,
    ) -> Steps[None]:
        """A record that is exhausted."""
        yield from ()
        if self._source._held is record:
            self._source._held = None

    def _leave(self) -> Steps[None]:
        """At the end, by whatever way: have all that was accepted acknowledged."""
        yield from ()

    def _abandon(self) -> None:
        """At the end, when nothing can be waited for."""


class ConsumerProcess(Process):
    """Of a consumer: attempts, and the place, are the server's."""

    _source: ConsumerSteps

    def __init__(self, source: ConsumerSteps, how: How) -> None:
        super().__init__(source, how)
        self._cap = (how.retry or DEFAULT).cap
        self._half = how.in_flight // 2
        self._glance = max(1, how.in_flight // 8)  # records between looks for an answer
        self._try_at = 0.0  # while the consumer is paused: when the next record may be tried
        self._singly = 0  # below this offset, verdicts with appends are sent one by one
        # What iteration took, is taken again: in here it is begun.
        source._redriven = source._unsettled = None

    def _round(self) -> Steps[bool]:
        source = self._source
        source._check()
        yield from self._sent_verdicts()
        if source._paused is not None:
            if (yield from self._sit_out()):
                return True
        else:
            self._try_at = 0.0
        if source._has_redriven:
            return (yield from self._handle_redriven())
        return (yield from super()._round())

    def _before_waiting(self) -> None:
        self._source._put_down()

    # --- the breaker --------------------------------------------------------------------------

    def _sit_out(self) -> Steps[bool]:
        """The consumer is paused: one record is tried from time to time, by who may wait.

        False: now is such a time.
        """
        source = self._source
        if source._recall_came or not self._try_at:
            source._forget_recall()
            # Perhaps it was resumed since.
            asked = GetCursor(source._log_id, source._consumer)
            found = yield from asking(source._transport, asked, CursorReply)
            source._paused = found.info.paused
        if source._paused is None:
            return True
        if not self._how.block:
            text = f"consumer {source._consumer} of log {source._log} is paused: {source._paused}"
            raise Paused(text, reason=source._paused)
        if not self._try_at:
            _logger.warning("log %s: paused, %s", source._log, source._paused)
            self._try_at = monotonic() + self._cap
        if monotonic() >= self._try_at:
            return False
        source._put_down()
        yield from source._wait_for(self._try_at, self._how.deadline)
        return True

    def _tries(self) -> None:
        """A handler is about to be called."""
        if self._source._paused is not None:
            self._try_at = monotonic() + self._cap

    # --- in hand ------------------------------------------------------------------------------

    def _begin(self, record: Record) -> Steps[bool]:
        source = self._source
        if not (yield from self._sent_verdicts()):
            return False
        if record.offset < source._asked_begun:
            yield from source._await_sent(0)
        if source._stopped or source._has_redriven:
            return False
        if record.offset < source._begun:
            return source._held is record
        record = source._held = source._stamped(record)
        if self._past_attempts(record):
            yield from self._exhausted(record, None, LOST_MEMBER)
            return False
        due = source._due(record.offset)
        if monotonic() < due and not (yield from source._wait_for(due, self._how.deadline)):
            return False
        upto = max(record.offset + 1, self._upto(record.offset, self._completed))
        source._send_commit(source._place_of(record), upto)
        yield from source._await_sent(0)
        self._tries()
        self._look_again(monotonic())
        return not source._stopped and not source._has_redriven and source._held is record

    def _upto(self, at: int, completed: int) -> int:
        """The offset after the highest record that may be in hand, when the one at ``at`` is the
        lowest, and so many are completed.
        """
        source, how = self._source, self._how
        alone = source._paused is not None or at < source._one_by_one
        upto = min(at + (1 if alone else how.in_flight), source._stocked)
        if how.limit is not None:
            upto = min(upto, at + how.limit - completed)
        return upto if how.end is None else min(upto, how.end)

    def _look(self, now: float) -> bool:
        """One commit is in flight at a time; the next one carries all that was done since."""
        source = self._source
        if over(self._how.deadline):
            return False
        if source._sent:
            source._transport.serve()
            source._reap()
        ripe = now >= self._look_at or source._done - source._asked >= self._half
        if source._verdicts is not None:
            return not ripe and not source._has_redriven
        if not source._sent and ripe and source._done > source._asked:
            source._send_commit(source._done, self._upto(source._done, self._completed))
            source._transport.serve()
        self._look_again(now)
        return not source._has_redriven

    def _look_again(self, now: float) -> None:
        """Slow handlers look at the socket every time, fast ones a thousand times a second or when
        half of what may be in flight is: then the answer comes while they go on.

        With one in flight, beginning the next record is what commits the last.
        """
        deadline, source = self._how.deadline, self._source
        if self._how.in_flight > 1:
            self._look_at = now + LOOK_SECONDS
            ripe_at = source._asked + self._half
            self._look_from = max(ripe_at, source._done + self._glance) - 1
        if deadline is not None:
            self._look_at = min(self._look_at, deadline)

    def _leave(self) -> Steps[None]:
        source = self._source
        yield from source._await_sent(0)
        if source._unsure:
            yield from source._find_out()  # or what was begun could not be put down
        yield from self._sent_verdicts()
        source._put_down()
        yield from source._await_sent(0)

    def _abandon(self) -> None:
        source = self._source
        if source._verdicts is not None:
            # They are not done, and their records come again.
            source._verdicts, source._unsure, source._done = None, True, source._asked
        try:
            self._source._put_down()
        except (RlogError, RuntimeError) as error:
            _logger.debug("log %s: on the way out: %s", self._source._log, error)

    # --- verdicts -----------------------------------------------------------------------------

    def _count(self, record: Record, error: Exception | None, delay: float) -> Steps[None]:
        source = self._source
        if record.epoch != source._epoch:
            return  # its handler moved the cursor elsewhere
        yield from super()._count(record, error, delay)
        if not record.redriven and source._place_of(record) != record.offset:
            # Either its handler has committed it, or others before it are not committed, and this
            # is no verdict on those: then it counts in here only.
            source._count_here(record, delay)
            return
        source._commit_below(record)
        cause, text = cause_of(error), error_text(error)
        settle = source._verdict_on(record, "retry", delay=delay, error=text, cause=cause)
        source._send_settle(settle)
        yield from source._await_sent(0)

    def _rest(self, seconds: float) -> Steps[None]:
        # The server knows the delay, and whoever begins the record waits it out.
        yield from ()

    def _park(self, record: Record, verdict: Park) -> Steps[None]:
        source = self._source
        if record.epoch == source._epoch:
            source._commit_below(record)
            source._send_settle(source._verdict_on(record, "park", reason=verdict.reason))
            yield from source._await_sent(0)
            if source._held is record:
                source._held = None
        self._completed += 1

    # --- verdicts with appends ----------------------------------------------------------------

    # Several are one transaction: as many as may be in flight, or as few as are there when it is
    # time to look. It is waited for, since what was sent behind it would pass its records, should
    # it be refused. Then they come again, one by one, so that it is known which one it was.

    def _commit_with(self, record: Record, verdict: Commit) -> Steps[bool]:
        source = self._source
        if source._verdicts is not None and _joins(source._verdicts, record, verdict):
            return True
        if not (yield from self._sent_verdicts()):
            return False
        verdicts = Verdicts(source._transport, source)
        try:
            verdicts.add(record, verdict.appends)
            if self._how.in_flight == 1 or record.redriven or record.offset < self._singly:
                yield from verdicts.sending(self._begun_behind(record.offset + 1, 1))
            else:
                source._verdicts = verdicts
        except ITS_FAULT as error:
            if not (yield from self._raised(record, error)):
                raise
            return False
        return True

    def _sent_verdicts(self) -> Steps[bool]:
        source = self._source
        if (verdicts := source._verdicts) is None:
            return True
        uncommitted = source._done - source._asked
        try:
            yield from source._send_verdicts(self._begun_behind(source._done, 0))
        except ITS_FAULT:
            self._completed -= min(uncommitted, self._completed)
            self._singly = verdicts.end
            yield from source._find_out()
            return False
        self._look_again(monotonic())
        return True

    def _begun_behind(self, done: int, more: int) -> int:
        """What is in hand when all below ``done`` is done with, ``more`` of it not counted yet."""
        if self._source._stopped or self._source._has_redriven:
            return 0
        return self._upto(done, self._completed + more)

    def _set_aside(
        self,
        record: Record,
        verdict: Literal["park", "skip"],
        failed: int,
        reason: str,
        error: Exception | None,
        cause: str,
    ) -> Steps[None]:
        source, policy = self._source, self._how.retry
        assert policy is not None, "only a policy exhausts"
        if record.epoch == source._epoch:
            source._commit_below(record)
            settle = source._verdict_on(
                record,
                verdict,
                attempts=failed,
                reason=reason,
                error=error_text(error),
                cause=cause,
                exhausted=True,
                pause_after=policy.pause_after,
            )
            source._send_settle(settle)
            yield from source._await_sent(0)
        yield from super()._set_aside(record, verdict, failed, reason, error, cause)

    # --- redriven records ---------------------------------------------------------------------

    def _handle_redriven(self) -> Steps[bool]:
        """The lowest redriven record, if there is one: ahead of all others, and settled alone.

        False: Stop.
        """
        source = self._source
        source._put_down()
        if (found := (yield from source._take())) is None:
            return True
        record, due = found
        if self._past_attempts(record):
            yield from self._exhausted(record, None, LOST_MEMBER)
            return True
        if not (yield from source._wait_for(due, self._how.deadline)):
            return True
        source._hand = True
        if (yield from source._taking(begin=True)).offset != record.offset:
            return True  # another one comes first by now
        self._tries()
        try:
            verdict = self._how.handler(record)
            if source._awaits:
                verdict = yield Await(verdict)
        except Exception as error:
            if not (yield from self._raised(record, error)):
                raise
            return True
        if verdict is not None and not isinstance(verdict, Commit | Skip):
            return (yield from self._judge(record, verdict))
        if isinstance(verdict, Commit) and verdict.appends:
            self._completed += yield from self._commit_with(record, verdict)
            return True
        if isinstance(verdict, Skip):
            self._log_skip(record, verdict)
        if record.epoch == source._epoch:
            name: Literal["skip", "commit"] = "skip" if isinstance(verdict, Skip) else "commit"
            source._send_settle(source._verdict_on(record, name))
            yield from source._await_sent(0)
        self._completed += 1
        return True


def _joins(verdicts: Verdicts, record: Record, verdict: Commit) -> bool:
    """It was added to those before it. Not if it is too large for that, or if it is to blame."""
    try:
        verdicts.add(record, verdict.appends)
    except ITS_FAULT:
        return False
    return True


def cause_of(error: BaseException | None) -> str:
    """Its class, by name."""
    if error is None:
        return ""
    of = type(error)
    name = of.__qualname__ if of.__module__ == "builtins" else f"{of.__module__}.{of.__qualname__}"
    return cut_text(name, CAUSE_BYTES_MAX)


def error_text(error: BaseException | None) -> str:
    """What an exception says: all of it with its traceback, or its beginning and the end of that.

    Without our own frame, which is the first.
    """
    if error is None:
        return ""
    frames = error.__traceback__.tb_next if error.__traceback__ is not None else None
    lines = traceback.format_exception(type(error), error, frames)
    raw = "".join(lines).rstrip().encode(errors="backslashreplace")
    if len(raw) > TEXT_BYTES_MAX:
        summary = "".join(traceback.format_exception_only(type(error), error)).rstrip()
        head = cut_text(summary, SUMMARY_BYTES_MAX).encode() + b"\n...\n"
        raw = head + raw[len(head) - TEXT_BYTES_MAX :]
    return raw.decode(errors="ignore")

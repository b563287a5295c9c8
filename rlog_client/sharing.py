"""``process`` of a shared consumer's member: several records in hand, settled in any order.

Rules:

- A record is begun, durably, before its handler is called, as in ``process``. One request says what
  is done with and what is begun next, so that many records share it.
- What is done with is said before more is asked for: what stands behind it may be all there is.
- However it is left, handlers that still run are ended first: until then their records are in hand.

A blocking member calls its handlers one after the other. An async one runs them at once: they are
tasks of the face (``spawn``), and what comes of them is found in ``finished``.
"""

from __future__ import annotations

import logging
from collections import deque
from itertools import islice
from time import monotonic
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from .consumer import DEFAULT
from .errors import Conflict, Fenced, InvalidRequest, Paused, RlogError
from .member import OFFSETS_MAX, MemberSteps, Want
from .model import Commit, Record, Skip
from .process import (
    ITS_FAULT,
    LOOK_SECONDS,
    LOST_MEMBER,
    Escaped,
    How,
    Process,
    cause_of,
    error_text,
)
from .steps import Wait

if TYPE_CHECKING:
    from collections.abc import Callable

    from .model import Park
    from .steps import Steps

_logger = logging.getLogger("rlog_client")


class Outcome(NamedTuple):
    """What came of a handler. ``ended``: it was cancelled, and says nothing. ``committed``: what
    its verdict says is done already.
    """

    record: Record
    verdict: Any = None
    error: BaseException | None = None
    ended: bool = False
    committed: bool = False


class Hands:
    """The handlers of one call of ``process``, run by an async face.

    ``spawn``: begins one. ``cancel``: has all that run end soon.
    """

    def __init__(self, spawn: Callable[[Record], None], cancel: Callable[[], None]) -> None:
        self.spawn = spawn
        self.cancel = cancel
        self.finished: deque[Outcome] = deque()


class MemberProcess(Process):
    """See above."""

    _source: MemberSteps

    def __init__(self, source: MemberSteps, how: How, hands: Hands | None = None) -> None:
        super().__init__(source, how)
        if how.in_flight > OFFSETS_MAX:
            raise InvalidRequest(f"in_flight of a shared consumer is at most {OFFSETS_MAX}")
        self._hands = hands
        self._running: dict[int, Record] = {}
        self._cap = (how.retry or DEFAULT).cap
        self._try_at = 0.0  # while the consumer is paused: when the next record may be tried
        self._look_at = 0.0
        self._stopping = False

    def run(self) -> Steps[int]:
        self._source._forgiving = True
        try:
            return (yield from super().run())
        finally:
            self._source._forgiving = False

    # --- rounds -------------------------------------------------------------------------------

    def _round(self) -> Steps[bool]:
        source = self._source
        source._check()
        if self._hands is not None and self._hands.finished:
            yield from self._take_finished()
            return not self._stopping
        room = self._room()
        if room > 0 and source._paused is not None and (yield from self._sit_out()):
            return True
        if room <= 0:
            yield from self._wait_for_one()
            return True
        if (run := source._run(None)) is None:
            return (yield from self._get_more(room))
        records = list(islice(run, room))
        yield from self._begin_all(records)
        return not self._stopping

    def _room(self) -> int:
        room = self._how.in_flight - len(self._running)
        if self._how.limit is not None:
            room = min(room, self._how.limit - self._completed - len(self._running))
        return min(room, 1 - len(self._running)) if self._source._paused is not None else room

    def _get_more(self, room: int) -> Steps[bool]:
        """Nothing is here. False: nothing will be."""
        source, how = self._source, self._how
        if source._finished and (
            yield from source._fetch_some(Want(room, how.end, now=True), None)
        ):
            return True  # what is begun next says what is done with, too: one request, one sync
        self._say()
        want = Want(room, how.end, now=how.end is not None, own=True)
        if self._hands is None or not self._running:
            return (yield from source._fetch_some(want, how.deadline))
        # While handlers run, what comes of them is waited for as well.
        if not (yield from source._read_on(how.deadline)):
            return True
        source._want = want._replace(now=False)
        subscription, hands = source._lend(), self._hands
        waiting = Wait(
            lambda: (
                source._stopped or source._called or bool(hands.finished) or not subscription.loan
            ),
            how.deadline,
        )
        yield from source._and_call_back(subscription, _waiting(waiting))
        return True

    def _wait_for_one(self) -> Steps[None]:
        """Until a handler has ended."""
        source, hands = self._source, self._hands
        assert hands is not None, "a blocking member has none running here"
        self._say()
        yield Wait(
            lambda: source._stopped or source._called or bool(hands.finished), self._how.deadline
        )

    def _take_finished(self) -> Steps[None]:
        assert self._hands is not None
        while self._hands.finished:
            outcome = self._hands.finished.popleft()
            self._running.pop(outcome.record.offset, None)
            yield from self._apply(outcome)

    # --- one record ---------------------------------------------------------------------------

    def _begin_all(self, records: list[Record]) -> Steps[None]:
        """Have these begun, and their handlers called."""
        source = self._source
        fresh = []
        for record in records:
            if self._past_attempts(record):
                yield from self._exhausted(record, None, LOST_MEMBER)
            else:
                fresh.append(record)
        if not fresh:
            return
        source._tell([*self._running, *(record.offset for record in fresh)])
        yield from source._await_sent(0)
        if source._paused is not None:
            self._try_at = monotonic() + self._cap
        # (Some may have gone to others, if the connection was lost meanwhile.)
        fresh = [record for record in fresh if self._is_ours(record)]
        if self._hands is not None:
            for record in fresh:
                self._running[record.offset] = record
                self._hands.spawn(record)
        else:
            yield from self._call_all(fresh)

    def _call_all(self, records: list[Record]) -> Steps[None]:
        """One after the other. What is not come to, is given back."""
        self._look_at = monotonic() + LOOK_SECONDS
        for place, record in enumerate(records):
            if self._stopping or not self._goes_on:
                self._give_back(records[place:])
                return
            if not self._is_ours(record):
                continue
            try:
                verdict = self._how.handler(record)
            except Exception as error:
                yield from self._apply(Outcome(record, error=error))
            else:
                yield from self._apply(Outcome(record, verdict))
            if monotonic() >= self._look_at:
                # Slow handlers: what is done with frees its key now, not when all are.
                source = self._source
                if not source._flight and source._finished:
                    source._tell(anew=True)
                source._transport.serve()
                source._reap()
                self._look_at = monotonic() + LOOK_SECONDS

    def _is_ours(self, record: Record) -> bool:
        return record.epoch == self._source._epoch and record.offset in self._source._out

    def _give_back(self, records: list[Record]) -> None:
        source = self._source
        back = [record.offset for record in records if self._is_ours(record)]
        for offset in back:
            del source._out[offset]
        source._tell([], back)

    def _apply(self, outcome: Outcome) -> Steps[None]:
        """Do what a handler's verdict says."""
        record, verdict, error, ended, committed = outcome
        if committed:
            self._completed += 1
        if committed or ended or not self._is_ours(record):
            return
        if error is not None:
            if not isinstance(error, Exception):
                raise error
            if not (yield from self._raised(record, error)):
                raise Escaped(error) if isinstance(error, StopIteration) else error
            return
        if isinstance(verdict, Commit) and verdict.appends:
            self._completed += yield from self._commit_with(record, verdict)
        elif verdict is None or isinstance(verdict, Commit | Skip):
            if isinstance(verdict, Skip):
                self._log_skip(record, verdict)
            self._source._complete(record)
            self._completed += 1
        elif not (yield from self._judge(record, verdict)):
            self._stopping = True

    # --- verdicts -----------------------------------------------------------------------------

    def _count(self, record: Record, error: Exception | None, delay: float) -> Steps[None]:
        yield from ()
        source = self._source
        if self._is_ours(record):
            cause, text = cause_of(error), error_text(error)
            settle = source._verdict_on(record, "retry", delay=delay, error=text, cause=cause)
            source._send_settle(settle)

    def _rest(self, seconds: float) -> Steps[None]:
        yield from ()  # it comes again when it is due, to anybody

    def _park(self, record: Record, verdict: Park) -> Steps[None]:
        yield from ()
        source = self._source
        source._send_settle(source._verdict_on(record, "park", reason=verdict.reason))
        self._completed += 1

    def _commit_with(self, record: Record, verdict: Commit) -> Steps[bool]:
        try:
            yield from committing_with(self._source, record, verdict)
        except ITS_FAULT as error:
            if not (yield from self._raised(record, error)):
                raise
            return False
        return True

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
        yield from source._await_sent(0)  # it may have paused the consumer

    # --- the breaker --------------------------------------------------------------------------

    def _sit_out(self) -> Steps[bool]:
        """The consumer is paused: one record is tried from time to time, by who may wait.

        False: now is such a time.
        """
        source = self._source
        if not self._how.block:
            text = f"consumer {source._consumer} of log {source._log} is paused: {source._paused}"
            raise Paused(text, reason=source._paused)
        if not self._try_at:
            _logger.warning("log %s: paused, %s", source._log, source._paused)
            self._try_at = monotonic() + self._cap
        if monotonic() >= self._try_at:
            return False
        self._say()
        if not (yield from source._read_on(self._how.deadline)):
            return True
        subscription = source._subscription
        deadline = self._how.deadline
        at = self._try_at if deadline is None else min(self._try_at, deadline)
        yield Wait(
            lambda: (
                source._stopped
                or source._called
                or subscription is None
                or subscription.broken
                or subscription.standing is not None
                or self._has_finished
            ),
            at,
        )
        source._check()
        if source._paused is None:
            self._try_at = 0.0
        return True

    @property
    def _has_finished(self) -> bool:
        return self._hands is not None and bool(self._hands.finished)

    # --- the end ------------------------------------------------------------------------------

    def _say(self) -> None:
        """Have the server told what is done with."""
        source = self._source
        if source._finished or source._losses:
            source._tell(self._running)

    def _leave(self) -> Steps[None]:
        if self._hands is not None and self._running:
            yield from self._end_handlers(self._hands)
        source = self._source
        failure: RlogError | None = None
        for _ in range(2):
            # All of it is answered before this is left, also behind a verdict that was refused; and
            # what was refused is given back.
            source._put_down()
            while source._flight:
                try:
                    yield from source._await_sent(0)
                except RlogError as error:
                    failure = failure or error
        if failure is not None:
            raise failure

    def _end_handlers(self, hands: Hands) -> Steps[None]:
        """What they had in hand goes to others only when they have ended."""
        if self._stopping or not self._goes_on:
            # A good end: what was begun is brought to its end, unless there is no time.
            yield Wait(lambda: len(hands.finished) >= len(self._running), self._how.deadline)
        if len(hands.finished) < len(self._running):
            hands.cancel()
            yield Wait(lambda: len(hands.finished) >= len(self._running))
        failure: BaseException | None = None
        while hands.finished:
            outcome = hands.finished.popleft()
            self._running.pop(outcome.record.offset, None)
            try:
                yield from self._apply(outcome)
            except Exception as error:
                failure = failure or error
        if failure is not None:
            raise failure

    def _abandon(self) -> None:
        try:
            self._source._put_down()
        except (RlogError, RuntimeError) as error:
            _logger.debug("log %s: on the way out: %s", self._source._log, error)


def committing_with(source: MemberSteps, record: Record, verdict: Commit) -> Steps[None]:
    """Commit a record together with a verdict's appends, unless somebody else has it by now, or an
    earlier verdict, whose answer was not waited for, has been done meanwhile.
    """
    try:
        yield from source._commit_with(record, verdict)
    except Conflict as error:
        source._out.pop(record.offset, None)
        source._begins.discard(record.offset)
        _logger.warning("log %s: a verdict came too late: %s", record.log, error)
    except Fenced as error:
        if source._claiming.lost is not None or record.offset in source._out:
            raise
        _logger.warning("log %s: a verdict came too late: %s", record.log, error)


def _waiting(wait: Wait) -> Steps[bool]:
    answer: bool = yield wait
    return answer

"""Reading: what Reader and Consumer share, and what each adds.

Records come by loan (see ``protocol.Credit``), and a loan is open only inside a wait: while the
caller's code runs nothing is under way, so a slow handler costs nobody anything. What a loan
brought is the stock. It is unpacked one batch at a time into a ``Cut``, which hands out its records
at C speed; the place of the source is read off the cut, and only in between off ``_place``.

Every step leaves the source whole: what stands for a batch is put in place first and the stock
advanced after, so that an interrupt leads at most to a batch unpacked twice and seen to be done.
"""

from __future__ import annotations

import contextlib
import logging
import os
from abc import abstractmethod
from collections import deque
from collections.abc import Callable, Iterator
from itertools import chain, islice
from time import monotonic
from typing import TYPE_CHECKING, Final, Self

import msgspec

from .batch import HEADER_BYTES, Cut, InvalidBatch, decode, parse_header
from .errors import (
    ConnectionLost,
    CorruptData,
    Fenced,
    InvalidRequest,
    RlogError,
    TimedOut,
)
from .model import (
    COMMIT,
    LATEST,
    Commit,
    Record,
    Retry,
    Skip,
    Stop,
    Verdict,
    Whence,
    consumer_name,
    offset,
)
from .protocol import (
    Claim,
    Claimed,
    CommitCursor,
    Committed,
    Damaged,
    Done,
    Moved,
    Place,
    Release,
    Resolve,
    SeekCursor,
    Subscribe,
    raised,
)
from .session import LOAN_BYTES, Call, Chunk, Subscription
from .transport import until

if TYPE_CHECKING:
    from types import TracebackType

    from .model import Global
    from .session import Session
    from .transport import Transport

COMMITS_MAX: Final = 64  # in flight of one consumer, with wait=False
_LOOK_SECONDS: Final = 0.001  # between looks at the socket while a handler runs again and again
_RETRY_FIRST_SECONDS: Final = 0.5
_RETRY_CAP_SECONDS: Final = 60.0

_logger = logging.getLogger("rlog_client")

Handler = Callable[[Record], Verdict | None]


def check_whence(whence: object) -> Whence:
    if not isinstance(whence, Whence):
        raise TypeError(
            f"where to start is OLDEST, LATEST, offset(), last() or time(), not {whence!r}"
        )
    return whence


class Source(Iterator[Record]):
    """Records of one log, in order. A context manager; for one thread at a time, but for ``stop``.

    Iterating ends at the end as it stood when the iteration began with ``block=False``, and waits
    for more otherwise. A loop that is left in the middle loses nothing: the rest comes next.
    """

    def __init__(self, transport: Transport, log: str, log_id: int, block: bool) -> None:
        self._transport = transport
        self._log = log
        self._log_id = log_id
        self._block = block
        self._epoch = 0
        self._until: int | None = None
        self._subscription: Subscription | None = None
        self._place = 0  # of the next record, while there is no cut
        self._cut: Cut | None = None
        self._held: Record | None = None  # handed back: the next one to be delivered
        self._postponed: RlogError | None = None  # behind records that were still good
        self._iterating: Iterator[Record] | None = None
        self._stopped = False
        self._closed = False
        transport.sources.add(self)

    # --- public -------------------------------------------------------------------------------

    def __iter__(self) -> Iterator[Record]:
        self._begin()
        return chain.from_iterable(self._runs(self._final(self._block)))

    def __next__(self) -> Record:
        if self._iterating is None:
            self._iterating = iter(self)
        try:
            return next(self._iterating)
        except BaseException:
            # Ended, failed or interrupted: the next one begins anew, at the same place.
            self._iterating = None
            raise

    def poll(self, max_records: int = 1000, *, timeout: float | None = 0.0) -> list[Record]:
        """At most ``max_records`` of what is here or one fetch brings, in order.

        ``[]`` when there is nothing: at once, or after ``timeout`` seconds; None waits for ever.
        """
        if max_records < 1:
            raise ValueError(f"max_records is at least 1, not {max_records}")
        self._begin()
        deadline = until(timeout)
        records: list[Record] = []
        fetched = False
        while not self._stopped and len(records) < max_records:
            try:
                self._check()
                run = self._run(self._until)
            except RlogError as error:
                if not records:
                    raise
                self._postponed = error
                break
            if run is not None:
                records.extend(islice(run, max_records - len(records)))
            elif (
                records
                or self._at_end(self._until)
                or (fetched and (timeout == 0 or _over(deadline)))
            ):
                break
            else:
                fetched = True
                if not (self._fetch(deadline) if timeout != 0 else self._fetch_now()):
                    break
        self._handed_out(records)
        return records

    def process(
        self,
        handler: Handler,
        *,
        limit: int | None = None,
        block: bool | None = None,
        timeout: float | None = None,
        in_flight: int = 1,
    ) -> int:
        """Call ``handler`` with one record after the other, and do what its verdict says.

        None and Commit: done with it. Skip: the same, and its reason goes to the log. Retry: again
        after its delay, with ``attempt`` one higher; nothing overtakes. Stop: leave it, and return.
        Anything else is a TypeError. An exception leaves the record for the next call and
        propagates. At most ``in_flight`` records are done with and not yet committed.

        Returns how many were completed: when that is ``limit``, on Stop and ``stop()``, when
        ``timeout`` seconds are over (looked at between records), or at the end with
        ``block=False`` (None: as opened). Before it returns or raises, what is done with is
        committed.
        """
        if limit is not None and limit < 0:
            raise ValueError(f"limit is at least 0, not {limit}")
        if in_flight < 1:
            raise ValueError(f"in_flight is at least 1, not {in_flight}")
        deadline = until(timeout)
        self._begin()
        end = self._final(self._block if block is None else block)
        try:
            completed = self._process(handler, limit, end, deadline, in_flight)
        except BaseException:
            try:
                self._settle()
            except RlogError as error:
                # The handler's exception is what its caller has to see.
                _logger.warning("log %s: committing on the way out failed: %s", self._log, error)
            raise
        self._settle()
        return completed

    @abstractmethod
    def seek(self, whence: Whence) -> int:
        """Go on at ``whence``: the offset of the next record. What was prefetched is dropped."""

    def stop(self) -> None:
        """End iteration, ``poll``, ``process`` and every wait of this source, now and for good.

        From any thread, and from signal handlers.
        """
        self._stopped = True
        if (cut := self._cut) is not None:
            cut.stop()
        self._transport.wake()

    def close(self) -> None:
        """Let go of what the server holds for this source. A second close does nothing."""
        if not self._closed:
            self._closed = True
            self._drop()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            self.close()
        except (RlogError, RuntimeError) as failed:
            if error is None:
                raise
            _logger.warning("log %s: closing on the way out failed: %s", self._log, failed)

    def forked(self) -> None:
        """In the child of a fork: what was prefetched is the parent's, too."""
        if (cut := self._cut) is not None:
            cut.stop()

    # --- what a subclass adds -----------------------------------------------------------------

    def _open(self) -> None:
        """Be ready to read; called at the beginning of every use."""

    def _check(self) -> None:
        """Raise what stands in the way of reading on."""
        if self._closed:
            raise RuntimeError("this reader or consumer is closed")
        self._transport.check()
        if (lost := self._transport.session.lost) is not None:
            raise ConnectionLost(str(lost))
        if (subscription := self._subscription) is not None and subscription.error is not None:
            raise subscription.error.with_traceback(None)

    def _handed_out(self, records: list[Record]) -> None:
        """``records`` went out by ``poll``."""

    def _completed(self, record: Record, in_flight: int) -> None:
        """``process`` is done with ``record``."""

    def _settle(self) -> None:
        """Wait until everything that ``process`` completed is acknowledged."""

    # --- the place ----------------------------------------------------------------------------

    @property
    def _offset(self) -> int:
        """Of the next record."""
        if (held := self._held) is not None:
            return held.offset
        return self._place if (cut := self._cut) is None else cut.offset

    def _at_end(self, end: int | None) -> bool:
        return end is not None and self._offset >= end

    def _begin(self) -> None:
        if self._closed:
            raise RuntimeError("this reader or consumer is closed")
        self._transport.check()
        self._open()
        self._check()

    def _final(self, block: bool) -> int | None:
        """The offset at which reading that begins now ends; None for never."""
        if block or self._stopped:
            return self._until
        end = self._transport.call(Resolve(self._log_id, LATEST), Place).end
        return end if self._until is None else min(end, self._until)

    # --- records ------------------------------------------------------------------------------

    def _runs(self, end: int | None) -> Iterator[Iterator[Record]]:
        """Iterators over runs of records, up to the offset ``end``."""
        while (run := self._next_run(end, None)) is not None:
            yield run

    def _next_run(self, end: int | None, deadline: float | None) -> Iterator[Record] | None:
        """The next run; None when ``end``, ``deadline`` or ``stop()`` came first."""
        while not self._stopped:
            self._check()
            if (run := self._run(end)) is not None:
                return run
            if self._at_end(end) or not self._fetch(deadline):
                return None
        return None

    def _run(self, end: int | None) -> Iterator[Record] | None:
        """The next run of what is here, or None. Raises what stands in its place, once."""
        if self._postponed is not None:
            postponed, self._postponed = self._postponed, None
            raise postponed
        if self._at_end(end):
            return None
        if (held := self._held) is not None:
            return self._hand_back(held)
        cut = self._cut
        while cut is None or cut.offset >= cut.end:
            if cut is not None:
                self._place, self._cut = cut.end, None
            if (cut := self._unpack()) is None:
                return None
            self._cut = cut
            if self._stopped:
                cut.stop()  # stop() may have looked just before this cut was there to be seen
            if self._at_end(end):
                return None
        return (
            cut.records if end is None or cut.end <= end else islice(cut.records, end - cut.offset)
        )

    def _hand_back(self, held: Record) -> Iterator[Record]:
        self._held = None
        return iter((held,))

    def _unpack(self) -> Cut | None:
        """The next batch in stock; None when the stock is empty."""
        assert self._subscription is not None
        stock = self._subscription.stock
        while stock:
            chunk = stock[0]
            if isinstance(chunk, Damaged):
                self._place = max(self._place, chunk.next)
                stock.popleft()
                raise raised(chunk.error)
            if chunk.at >= len(chunk.payload):
                stock.popleft()
                continue
            cut, length = self._cut_of(chunk)
            if cut is not None:
                self._cut = cut
            chunk.at += length
            if cut is not None:
                return cut
        return None

    def _cut_of(self, chunk: Chunk) -> tuple[Cut | None, int]:
        """The batch at which ``chunk`` stands, None if it was passed, and its length in bytes."""
        at = chunk.at
        try:
            header = parse_header(chunk.payload, at)
        except InvalidBatch as error:
            # Where it ends is not known, so all that came with it goes.
            chunk.at = len(chunk.payload)
            end = self._after(chunk)
            raise self._corrupt(chunk, at, self._place, end, error) from None
        if header.end <= self._place:
            return None, header.bytes
        if header.base > self._place:
            first, self._place = self._place, header.base
            raise self._corrupt(chunk, at, first, header.base, InvalidBatch("records are missing"))
        try:
            columns = decode(header, chunk.payload[at + HEADER_BYTES : at + header.bytes])
        except InvalidBatch as error:
            chunk.at = at + header.bytes
            raise self._corrupt(chunk, at, header.base, header.end, error) from None
        return Cut(self._log, header, columns, self._place, self._epoch), header.bytes

    def _after(self, chunk: Chunk) -> int:
        """The offset after what ``chunk`` held."""
        assert self._subscription is not None
        for other in islice(self._subscription.stock, 1, None):
            return other.first if isinstance(other, Chunk) else self._subscription.next
        return self._subscription.next

    def _corrupt(
        self, chunk: Chunk, at: int, first: int, end: int, cause: InvalidBatch
    ) -> CorruptData:
        """The error for the batch at ``at``; from here on the source stands behind it."""
        self._place = max(self._place, end)
        position = chunk.position + at
        place = f"{chunk.file}, position {position}"
        return CorruptData(
            f"log {self._log}, offsets {first} to {end} ({place}): {cause}",
            log=self._log,
            first=first,
            end=end,
            file=chunk.file,
            position=position,
        )

    # --- fetching -----------------------------------------------------------------------------

    def _fetch(self, deadline: float | None) -> bool:
        """Wait for records. False: ``deadline`` or ``stop()`` came first, and nothing else."""
        subscription = self._lend()
        try:
            self._transport.wait(lambda: self._stopped or not subscription.loan, deadline)
        finally:
            self._call_back(subscription)
        return bool(subscription.stock) or (not self._stopped and not _over(deadline))

    def _fetch_now(self) -> bool:
        """Fetch what there is. False: nothing."""
        subscription = self._lend()
        try:
            # The question goes out with the loan: one round trip when there is something.
            end = self._transport.call(Resolve(self._log_id, LATEST), Place).end
            if end > self._offset:
                timeout = until(self._transport.timeout)
                self._transport.wait(lambda: self._stopped or not subscription.loan, timeout)
        finally:
            self._call_back(subscription)
        return bool(subscription.stock)

    def _lend(self) -> Subscription:
        """Open a loan; one that an interrupt left behind is settled first, by the new one."""
        self._check()
        assert self._subscription is not None
        self._transport.session.lend(self._subscription, LOAN_BYTES)
        return self._subscription

    def _call_back(self, subscription: Subscription) -> None:
        """Settle the loan, so that nothing is under way while the caller's code runs."""
        if not subscription.loan:
            return
        session = self._transport.session
        session.lend(subscription, 0)
        if self._stopped or session.lost is not None:
            self._transport.serve()
        elif not self._transport.wait(
            lambda: self._stopped or not subscription.loan, until(self._transport.timeout)
        ):
            raise TimedOut(f"{self._transport.address} did not settle what was asked for")

    def _subscribe(self, whence: Whence, consumer: str | None) -> int:
        """Read from ``whence`` on: its offset. Refused, the old subscription stays."""
        self._transport.check()
        session = self._transport.session
        subscription = session.subscribe(Subscribe(self._log_id, whence, consumer))
        try:
            at = self._transport.finish(subscription.place).offset
        except BaseException:
            session.unsubscribe(subscription)
            raise
        self._drop()
        self._subscription, self._place = subscription, at
        return at

    def _drop(self) -> None:
        """Forget the subscription and what it brought."""
        subscription, self._subscription = self._subscription, None
        if (cut := self._cut) is not None:
            self._place, self._cut = cut.offset, None
            cut.stop()  # a loop that still runs over it must not hand out the rest
        self._held = self._postponed = None
        if subscription is not None:
            self._transport.session.unsubscribe(subscription)

    def __del__(self) -> None:
        subscription = getattr(self, "_subscription", None)
        if subscription is not None:
            self._transport.post(lambda session: session.unsubscribe(subscription))

    # --- process ------------------------------------------------------------------------------

    def _process(
        self,
        handler: Handler,
        limit: int | None,
        end: int | None,
        deadline: float | None,
        in_flight: int,
    ) -> int:
        completed = 0
        cut: Cut | None = None
        run: Iterator[Record] = iter(())
        while limit is None or completed < limit:
            if self._stopped or _over(deadline):
                break
            record = self._held
            if record is None:
                # The run is only good for the cut that it was made of: a handler may seek.
                record = next(run, None) if cut is self._cut else None
                if record is None:
                    found = self._next_run(end, deadline)
                    if found is None:
                        break
                    run, cut = found, self._cut
                    continue
            # Held until its verdict is in, so that whatever happens it is the next one again.
            self._held = record
            try:
                verdict = handler(record)
                if verdict is None:
                    verdict = COMMIT
                elif not isinstance(verdict, Commit | Skip | Retry | Stop):
                    raise TypeError(f"a handler returns a verdict or None, not {verdict!r}")
            except Exception:
                self._count(record)
                raise
            if isinstance(verdict, Commit | Skip):
                if self._held is record:  # not if the handler moved this source elsewhere
                    self._held = None
                completed += 1
                if isinstance(verdict, Skip):
                    _logger.info("log %s: skipped %d: %s", self._log, record.offset, verdict.reason)
                self._completed(record, in_flight)
            elif isinstance(verdict, Stop):
                break
            else:
                self._count(record)
                self._settle()
                self._pause(_delay(verdict, record.attempt), deadline)
        return completed

    def _count(self, record: Record) -> None:
        """One more failed attempt at the record in hand."""
        if self._held is record:
            self._held = msgspec.structs.replace(record, attempt=record.attempt + 1)

    def _pause(self, seconds: float, deadline: float | None) -> None:
        end = monotonic() + seconds
        end = end if deadline is None else min(end, deadline)
        self._transport.wait(lambda: self._stopped, end)
        self._check()


def _over(deadline: float | None) -> bool:
    return deadline is not None and monotonic() >= deadline


def _delay(verdict: Retry, attempt: int) -> float:
    """Seconds until the next attempt; with jitter, so that many clients do not come back as one."""
    if verdict.delay is not None:
        return max(0.0, verdict.delay)
    delay = min(_RETRY_CAP_SECONDS, _RETRY_FIRST_SECONDS * 2.0 ** min(attempt - 1, 16))
    return delay * (0.75 + os.urandom(1)[0] / 1024)


class Reader(Source):
    """A source whose place is the client's own. Made, and placed, by ``Log.reader``."""

    def __init__(
        self,
        transport: Transport,
        log: str,
        log_id: int,
        whence: Whence,
        *,
        until: Whence | None,
        block: bool,
    ) -> None:
        super().__init__(transport, log, log_id, block)
        self._subscribe(check_whence(whence), None)
        if until is not None:
            check_whence(until)
            # An offset means itself, also one that the log has not reached yet.
            self._until = (
                until.value
                if until.kind == "offset"
                else transport.call(Resolve(log_id, until), Place).offset
            )

    @property
    def offset(self) -> int:
        """Of the next record."""
        return self._offset

    def seek(self, whence: Whence) -> int:
        """Go on at ``whence``: the offset of the next record. What was prefetched is dropped."""
        if self._closed:
            raise RuntimeError("this reader is closed")
        self._check()
        return self._subscribe(check_whence(whence), None)


class Consumer(Source):
    """A source with a durable cursor on the server, of which there is one holder at a time.

    Claims at ``with`` or first use: Busy while somebody else holds it. Holds until ``close``, the
    end of the ``with``, its client's close or garbage collection. Once the claim is lost, every use
    is Fenced.
    """

    def __init__(
        self,
        transport: Transport,
        log: str,
        log_id: int,
        consumer_id: str | Global,
        *,
        start: Whence,
        block: bool,
        autocommit: bool,
    ) -> None:
        super().__init__(transport, log, log_id, block)
        self._consumer = consumer_name(consumer_id)
        self._start = check_whence(start)
        self._autocommit = autocommit
        self._claimed = False
        self._last: Record | None = None  # handed out, and committed when the next is asked for
        self._acknowledged = 0  # the offset after the last record whose commit was acknowledged
        self._done = 0  # the offset after the last record that process is done with
        self._asked = 0  # what the last commit sent was for
        self._commits: deque[tuple[int, Call[Committed]]] = deque()  # in flight
        self._next_look = 0.0

    # --- public -------------------------------------------------------------------------------

    @property
    def epoch(self) -> int:
        """Of the claim; it rises with every claim and seek. Claims if that was not done yet."""
        self._begin()
        return self._epoch

    @property
    def committed(self) -> int:
        """The offset after the last acknowledged commit. Claims if that was not done yet."""
        self._begin()
        return self._acknowledged

    def commit(self, record: Record, *, wait: bool = True) -> None:
        """Commit everything up to and including ``record``.

        With ``wait=False`` an error surfaces at the next use, or in ``close``. Fenced: the record
        was delivered under an older epoch. InvalidRequest: it is of another log.
        """
        self._begin()
        if record.log != self._log:
            raise InvalidRequest(f"a record of log {record.log}; this consumes {self._log}")
        if record.epoch != self._epoch:
            raise self._fenced(f"delivered under epoch {record.epoch}", self._epoch)
        if self._held is not None and self._held.offset <= record.offset:
            self._held = None
        self._send_commit(record.offset + 1)
        if wait:
            self._await_commits(0)
        else:
            self._go_on()

    def seek(self, whence: Whence) -> int:
        """Move the cursor: the offset of the next record. Records handed out before are Fenced."""
        check_whence(whence)
        self._begin()
        self._await_commits(0)
        moved = self._transport.call(
            SeekCursor(self._log_id, self._consumer, whence, self._epoch), Moved
        )
        self._epoch = moved.epoch
        self._last = None
        self._acknowledged = self._done = moved.after
        self._drop()
        return self._attach()

    def close(self) -> None:
        """Wait for outstanding commits and release the claim. What was prefetched is dropped."""
        if self._closed:
            return
        self._closed = True
        self._drop()
        if not self._claimed:
            return
        self._claimed = False
        if self._transport.session.lost is not None and not self._commits:
            return  # the claim went with the connection
        try:
            self._await_commits(0)
        finally:
            if self._transport.session.lost is None:
                with contextlib.suppress(ConnectionLost):  # then the claim went with it
                    self._transport.call(Release(self._log_id, self._consumer), Done)

    def __enter__(self) -> Self:
        self._begin()
        return self

    def __iter__(self) -> Iterator[Record]:
        records = super().__iter__()
        return self._committing(records) if self._autocommit else records

    def __del__(self) -> None:
        super().__del__()
        if getattr(self, "_claimed", False):
            log, name = self._log_id, self._consumer
            self._transport.post(lambda session: _release(session, log, name))

    # --- the claim ----------------------------------------------------------------------------

    def _open(self) -> None:
        if not self._claimed:
            claim = Claim(self._log_id, self._consumer, self._start, os.urandom(16))
            try:
                claimed = self._transport.call(claim, Claimed)
            except (TimedOut, KeyboardInterrupt):
                # It may still be granted: to nobody.
                _release(self._transport.session, self._log_id, self._consumer)
                raise
            self._claimed = True
            self._epoch = claimed.epoch
            self._acknowledged = self._done = claimed.committed
        if self._subscription is None:
            self._attach()
        else:
            self._transport.serve()  # the claim may have been lost since: then the stock is void
        self._commit_last()

    def _attach(self) -> int:
        """Read from the cursor on."""
        return self._subscribe(offset(self._acknowledged), self._consumer)

    def _check(self) -> None:
        super()._check()
        if (subscription := self._subscription) is not None and subscription.lost is not None:
            raise self._fenced("the claim is lost", subscription.lost.epoch)
        self._reap_commits()

    def _fenced(self, reason: str, epoch: int) -> Fenced:
        return Fenced(f"consumer {self._consumer} of log {self._log}: {reason}", epoch=epoch)

    # --- commits ------------------------------------------------------------------------------

    def _send_commit(self, done: int) -> None:
        commit = CommitCursor(self._log_id, self._consumer, self._epoch, done)
        self._asked = done
        self._commits.append((done, self._transport.request(commit, Committed)))

    def _reap_commits(self) -> None:
        """Take note of the answered ones. Raises the first error."""
        while self._commits and (head := self._commits[0])[1].done:
            done, call = self._commits.popleft()
            assert head[1] is call
            call.get()
            self._acknowledged = max(self._acknowledged, done)

    def _await_commits(self, count: int) -> None:
        """Wait until at most ``count`` are in flight."""
        while len(self._commits) > count:
            call = self._commits[0][1]
            try:
                self._transport.finish(call)
            except RlogError:
                self._commits.popleft()
                raise
            self._reap_commits()
        self._reap_commits()

    def _go_on(self) -> None:
        """Send what was asked for, and wait only when too much is in flight."""
        self._transport.serve()
        if len(self._commits) > COMMITS_MAX:
            self._await_commits(COMMITS_MAX // 2)

    def _committing(self, records: Iterator[Record]) -> Iterator[Record]:
        for record in records:
            self._last = record
            yield record
            self._commit_last()

    def _commit_last(self) -> None:
        last, self._last = self._last, None
        if last is not None and last.epoch == self._epoch:
            self._send_commit(last.offset + 1)
            self._go_on()

    def _handed_out(self, records: list[Record]) -> None:
        if self._autocommit and records:
            self._last = records[-1]

    def _completed(self, record: Record, in_flight: int) -> None:
        """One commit is in flight at a time; the next one carries all that was completed since."""
        if record.epoch != self._epoch:
            return  # its handler moved the cursor elsewhere
        self._done = record.offset + 1
        open_records = self._done - self._acknowledged
        if open_records < in_flight:
            # Slow handlers look at the socket every time, fast ones a thousand times a second or
            # when half of what may be in flight is: then the answer comes while they go on.
            now = monotonic()
            if now < self._next_look and self._done - self._asked < in_flight // 2:
                return
            self._next_look = now + _LOOK_SECONDS
            if self._commits:
                self._transport.serve()
                self._reap_commits()
            if not self._commits:
                self._send_commit(self._done)
                self._transport.serve()
            return
        self._await_commits(0)
        if self._done > self._acknowledged:
            self._send_commit(self._done)
            if self._done - self._acknowledged >= in_flight:
                self._await_commits(0)
            else:
                self._transport.serve()

    def _settle(self) -> None:
        self._await_commits(0)
        if self._done > self._acknowledged and self._claimed:
            self._send_commit(self._done)
            self._await_commits(0)


def _release(session: Session, log: int, consumer: str) -> None:
    session.start(Call(Done), Release(log, consumer))

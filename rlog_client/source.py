"""Reading: what readers and consumers share, and what a reader adds.

Records come by loan (see ``protocol.Credit``). While the caller's code runs at most one is open,
ahead, for what is in the log already, and for no more than the kernel takes by itself: so a slow
handler costs nobody anything. What a settled loan brought is the stock. It is unpacked one batch at
a time into a ``Cut``, which hands out its records at C speed; the place of the source is read off
the cut, and only in between off ``_place``.

Every step leaves the source whole: what stands for a batch is put in place first and the stock
advanced after, so that an interrupt leads at most to a batch unpacked twice and seen to be done.
"""

from __future__ import annotations

import logging
import math
from abc import abstractmethod
from itertools import islice
from time import monotonic
from typing import TYPE_CHECKING, ClassVar

from .batch import HEADER_BYTES, Cut, InvalidBatch, decode, parse_header
from .errors import ConnectionLost, CorruptData, Gap, OffsetOutOfRange, RlogError, TimedOut
from .model import LATEST, OLDEST, OutOfRange, Record, Whence, offset
from .protocol import Assigned, Damaged, Place, Resolve, Subscribe, raised
from .session import LOAN_BYTES, Call, Chunk, Subscription
from .steps import Wait, asking, overdue, until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .steps import Link, Steps


_logger = logging.getLogger("rlog_client")


def check_out_of_range(wanted: object) -> OutOfRange:
    match wanted:
        case "error" | "oldest" | "latest":
            return wanted
    raise ValueError(f'on_out_of_range is "error", "oldest" or "latest", not {wanted!r}')


def check_whence(whence: object) -> Whence:
    if not isinstance(whence, Whence):
        raise TypeError(
            f"where to start is OLDEST, LATEST, offset(), last() or time(), not {whence!r}"
        )
    return whence


class SourceSteps:
    """Records of one log, in order: what every kind of source does, and what is public of it.

    ``skipped_records``: how many were gone and not raised as a Gap, by ``on_out_of_range``, those
    included that "latest" then left out.
    """

    _awaits: ClassVar = False  # whether handlers are coroutine functions
    _loan_bytes: int = LOAN_BYTES
    _lends_ahead: ClassVar = True
    _begun: float = math.inf  # records below it may be given to a handler

    def __init__(
        self,
        transport: Link,
        log: str,
        log_id: int,
        block: bool,
        on_out_of_range: OutOfRange = "error",
    ) -> None:
        self.skipped_records = 0
        self._out_of_range = check_out_of_range(on_out_of_range)
        self._jumps = False  # what comes next is gone, and reading goes on at the log's end
        self._transport = transport
        self._log = log
        self._log_id = log_id
        self._block = block
        self._epoch = 0
        self._reads_as: str | None = None  # the consumer whose deliveries these are
        self._until: int | None = None
        self._subscription: Subscription | None = None
        self._place = 0  # of the next record, while there is no cut
        self._known_end = 0  # of the log, when that was asked for last
        self._cut: Cut | None = None
        self._held: Record | None = None  # handed back: the next one to be delivered
        self._done = 0  # the offset after the last record that process is done with
        self._postponed: RlogError | None = None  # behind records that were still good
        self._stopped = False
        self._closed = False
        transport.sources.add(self)

    # --- the public operations ----------------------------------------------------------------

    def _start_runs(self) -> Steps[int | None]:
        """Begin an iteration: the offset at which it ends, None for never."""
        yield from self._begin_reading()
        return (yield from self._final(self._block))

    def _poll(self, max_records: int, timeout: float | None) -> Steps[list[Record]]:
        if max_records < 1:
            raise ValueError(f"max_records is at least 1, not {max_records}")
        yield from self._begin_reading()
        deadline = until(timeout)
        ahead = monotonic() if timeout == 0 else deadline
        records: list[Record] = []
        fetched: int | None = None  # from which offset on
        while not self._stopped and len(records) < max_records:
            try:
                self._check()
                if not records and not (yield from self._ahead(ahead)):
                    break
                run = self._handed_run(self._until)
            except RlogError as error:
                if not records:
                    raise
                self._postponed = error
                break
            if run is not None:
                records.extend(islice(run, max_records - len(records)))
                if records and records[-1].redriven:
                    break  # it is settled alone
            elif (
                records
                or self._at_end(self._until)
                or (
                    fetched is not None
                    and not self._jumps
                    and (over(deadline) if timeout != 0 else fetched == self._offset)
                )
            ):
                break
            else:
                # (Where it moves on and gives no record, what there was is absent.)
                fetched = self._offset
                fetching = self._fetch(deadline) if timeout != 0 else self._fetch_now()
                if not (yield from fetching):
                    break
        self._handed_out(records)
        return records

    @abstractmethod
    def _seek(self, whence: Whence) -> Steps[int]:
        """Go on at ``whence``: the offset of the next record."""

    def stop(self) -> None:
        """End iteration, ``poll``, ``process`` and every wait of this source, now and for good.

        From any thread, and from signal handlers.
        """
        self._stopped = True
        if (cut := self._cut) is not None:
            cut.stop()
        self._transport.wake()

    def _close(self) -> Steps[None]:
        if not self._closed:
            self._closed = True
            self._drop()
        yield from ()

    def disconnected(self) -> None:
        """What was prefetched comes once more, on the next connection."""
        if (cut := self._cut) is not None:
            cut.stop()

    def forked(self) -> None:
        """In the child of a fork: what was prefetched is the parent's, too."""
        if (cut := self._cut) is not None:
            cut.stop()

    # --- what a subclass adds -----------------------------------------------------------------

    def _open(self) -> Steps[None]:
        """Be ready to read; at the beginning of every use."""
        yield from ()

    def _check(self) -> None:
        """Raise what stands in the way of reading on."""
        if self._closed:
            raise RuntimeError("this reader or consumer is closed")
        self._transport.check()
        if (ended := self._transport.session.ended) is not None:
            raise ended.with_traceback(None)
        if (subscription := self._subscription) is not None and subscription.error is not None:
            raise subscription.error.with_traceback(None)

    def _handed_out(self, records: list[Record]) -> None:
        """``records`` went out by ``poll``."""

    def _handed_run(self, end: int | None) -> Iterator[Record] | None:
        """The next run for iteration and ``poll``; see ``_run``."""
        return self._run(end)

    def _ahead(self, deadline: float | None) -> Steps[bool]:
        """See to what comes ahead of the stock. False: the next record is not to be had before
        ``deadline`` or ``stop()``.
        """
        yield from ()
        return True

    @property
    def _called(self) -> bool:
        """Something has come that goes ahead of the stock."""
        return False

    # --- the place ----------------------------------------------------------------------------

    @property
    def _delivered(self) -> int:
        """The offset after the last record that was handed out."""
        return self._place if (cut := self._cut) is None else cut.offset

    @property
    def _offset(self) -> int:
        """Of the next record."""
        if (held := self._held) is not None:
            return held.offset
        return self._place if (cut := self._cut) is None else cut.offset

    def _at_end(self, end: int | None) -> bool:
        return end is not None and self._offset >= end

    def _begin(self) -> Steps[None]:
        if self._closed:
            raise RuntimeError("this reader or consumer is closed")
        self._transport.check()
        yield from self._open()
        self._check()

    def _begin_reading(self) -> Steps[None]:
        """``_begin``, to ask for the next record."""
        yield from self._begin()
        yield from self._commit_last()

    def _commit_last(self) -> Steps[None]:
        """With autocommit: what was handed out is asked beyond."""
        yield from ()

    def _final(self, block: bool) -> Steps[int | None]:
        """The offset at which reading that begins now ends; None for never."""
        if block or self._stopped:
            return self._until
        end = (yield from asking(self._transport, Resolve(self._log_id, LATEST), Place)).end
        self._known_end = end
        return end if self._until is None else min(end, self._until)

    # --- records ------------------------------------------------------------------------------

    def _next_run(self, end: int | None, deadline: float | None) -> Steps[Iterator[Record] | None]:
        """The next run; None when ``end``, ``deadline`` or ``stop()`` came first."""
        while not self._stopped:
            self._check()
            if not (yield from self._ahead(deadline)):
                return None
            if (run := self._handed_run(end)) is not None:
                return run
            if self._at_end(end) or not (yield from self._fetch(deadline)):
                return None
        return None

    def _run(self, end: int | None) -> Iterator[Record] | None:
        """The next run of what is here, or None. Raises what stands in its place, once."""
        if self._postponed is not None:
            postponed, self._postponed = self._postponed, None
            raise postponed
        if (subscription := self._subscription) is not None and subscription.broken:
            self._forget()
        if self._at_end(end):
            return None
        if (held := self._held) is not None:
            return self._hand_back(held)
        cut = self._cut
        while cut is None or cut.offset >= cut.end:
            if cut is not None:
                if cut.behind < cut.end:
                    self._pass_over(cut.behind, cut.end)
                self._place, self._cut = cut.end, None
            if (cut := self._unpack()) is None:
                return None
            self._cut = cut
            if self._stopped:
                cut.stop()  # stop() may have looked just before this cut was there to be seen
            if self._at_end(end):
                return None
        return cut.records if end is None or cut.end <= end else cut.until(end)

    def _hand_back(self, held: Record) -> Iterator[Record]:
        self._held = None
        return iter((held,))

    def _unpack(self) -> Cut | None:
        """The next batch in stock; None when the stock is empty."""
        if self._subscription is None:
            return None
        stock = self._subscription.stock
        while stock and not self._jumps:
            chunk = stock[0]
            assert not isinstance(chunk, Assigned), "for members of a shared consumer"
            if isinstance(chunk, Damaged):
                error = raised(chunk.error)
                passes = isinstance(error, Gap) and self._out_of_range != "error"
                if passes:
                    self._skip_to(chunk.next)
                self._place = max(self._place, chunk.next)
                stock.popleft()
                if not passes:
                    raise error
                continue
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

    # --- out of range -------------------------------------------------------------------------

    @property
    def _elsewhere(self) -> Whence:
        """Where to go on instead."""
        return OLDEST if self._out_of_range == "oldest" else LATEST

    def _skip_to(self, end: int) -> None:
        """What comes next is gone up to ``end``, and it was asked for that this be no error."""
        if (count := end - self._place) > 0:
            text = "log %s: the offsets %d to %d are gone; going on at the %s"
            _logger.warning(text, self._log, self._place, end, self._out_of_range)
            self._pass_over(self._place, end)
            self.skipped_records += count
        self._jumps = self._out_of_range == "latest"

    def _pass_over(self, first: int, end: int) -> None:
        """``first`` to ``end`` will not be delivered."""

    def _jump(self) -> Steps[None]:
        """Go on at the log's end."""
        first = self._place
        end = yield from self._subscribe(LATEST, self._reads_as)
        self._jumps = False
        if end > first:
            self._pass_over(first, end)
            self.skipped_records += end - first

    def _note_start(self, whence: Whence, begin: int) -> None:
        """It was to begin at ``whence``, which is outside the log, and begins at ``begin``."""
        text = "log %s: it has no offset %d; going on at the %s, %d"
        _logger.warning(text, self._log, whence.value, self._out_of_range, begin)
        self.skipped_records += max(0, begin - whence.value)

    # --- fetching -----------------------------------------------------------------------------

    def _fetch(self, deadline: float | None) -> Steps[bool]:
        """Wait for records, or for what goes ahead of them.

        False: ``deadline`` or ``stop()`` came first, and nothing else.
        """
        limit = deadline
        if self._offset < self._known_end and (patience := until(self._transport.timeout)):
            # They are there: to have them is a request, and not a wait for what may come.
            limit = patience if deadline is None else min(patience, deadline)
        if not (yield from self._read_on(limit)):
            if not self._stopped and not over(deadline):
                raise self._away()
            return False
        if self._jumps:
            yield from self._jump()
            return True  # perhaps that is where reading ends
        assert self._subscription is not None
        subscription = self._subscription if self._subscription.ahead else self._lend()
        yield from self._and_call_back(subscription, self._brought(subscription, limit))
        if subscription.stock:
            if self._lends_ahead and not self._called:
                lend_ahead(self._transport, subscription, self._loan_bytes, self._until)
            return True
        if not subscription.broken and not self._stopped and limit != deadline and over(limit):
            raise self._away()
        return not self._stopped and not over(deadline)

    def _fetch_now(self) -> Steps[bool]:
        """Fetch what there is. False: nothing."""
        deadline = until(self._transport.timeout)
        while True:
            if not (yield from self._read_on(deadline)):
                if self._stopped:
                    return False
                raise self._away()
            if self._jumps:
                yield from self._jump()
            subscription = self._lend()
            yield from self._and_call_back(subscription, self._settled_if_any(subscription))
            if not subscription.broken:
                return bool(subscription.stock)
            self._forget()

    def _brought(self, subscription: Subscription, deadline: float | None) -> Steps[bool]:
        """Wait as ``_settled`` does, or until something goes ahead."""
        brought: bool = yield Wait(
            lambda: self._stopped or self._called or not subscription.loan, deadline
        )
        return brought

    def _settled(self, subscription: Subscription, deadline: float | None) -> Steps[bool]:
        """Wait until the loan is settled, or ``stop()``. False: ``deadline`` came first."""
        settled: bool = yield Wait(lambda: self._stopped or not subscription.loan, deadline)
        return settled

    def _settled_if_any(self, subscription: Subscription) -> Steps[bool]:
        """Wait until the loan is settled, but only if there are records to settle it with."""
        # The question goes out with the loan: one round trip when there is something.
        end = (yield from asking(self._transport, Resolve(self._log_id, LATEST), Place)).end
        if end <= self._offset:
            return False
        return (yield from self._settled(subscription, until(self._transport.timeout)))

    def _lend(self) -> Subscription:
        """Open a loan; one that an interrupt left behind is settled first, by the new one."""
        self._check()
        assert self._subscription is not None
        self._transport.session.lend(self._subscription, self._loan_bytes)
        return self._subscription

    def _and_call_back(self, subscription: Subscription, waiting: Steps[bool]) -> Steps[None]:
        """``waiting``, and whatever comes of it, the loan is called back."""
        try:
            yield from waiting
        except GeneratorExit:
            raise  # the next loan settles this one
        except BaseException:
            yield from self._call_back(subscription)
            raise
        yield from self._call_back(subscription)

    def _call_back(self, subscription: Subscription) -> Steps[None]:
        """Settle the loan, so that what came is known."""
        if not subscription.loan:
            return
        self._transport.session.lend(subscription, 0)
        if self._stopped:
            self._transport.serve()
        elif not (yield from self._settled(subscription, until(self._transport.timeout))):
            raise TimedOut(f"{self._transport.address} did not settle what was asked for")

    def _subscribe(self, whence: Whence, consumer: str | None) -> Steps[int]:
        """Read from ``whence`` on: its offset. Refused, the old subscription stays."""
        self._transport.check()
        deadline = until(self._transport.timeout)
        subscription = yield from self._subscribed(
            Subscribe(self._log_id, whence, consumer), deadline
        )
        if subscription is None:
            raise self._away()
        self._drop()
        self._subscription, self._place = subscription, subscription.place.get().offset
        return self._place

    def _subscribed(
        self, control: Subscribe, deadline: float | None, *, stops: bool = False
    ) -> Steps[Subscription | None]:
        """The answered subscription. None: there was no connection until ``deadline``, or, if that
        ``stops`` it, ``stop()`` came.
        """
        session = self._transport.session
        while True:
            if not self._connected() and not (
                yield Wait(lambda: self._connected() or (stops and self._stopped), deadline)
            ):
                return None
            self._check_connected()
            if stops and self._stopped:
                return None
            subscription = session.subscribe(control)
            # From here on it is a request, and what is waited for may be over before its answer.
            patience = until(self._transport.timeout)
            if deadline is None:
                patience = None
            elif patience is not None:
                patience = max(patience, deadline)
            try:
                answered = yield from self._placed(subscription.place, patience, stops)
            except BaseException:
                session.unsubscribe(subscription)
                raise
            if subscription.broken and session.ended is None:
                continue
            if not subscription.place.done:
                session.unsubscribe(subscription)
                if answered:
                    return None
                raise overdue(self._transport, subscription.place)
            subscription.place.get()
            return subscription

    def _placed(self, place: Call[Place], patience: float | None, stops: bool) -> Steps[bool]:
        placed: bool = yield Wait(lambda: place.done or (stops and self._stopped), patience)
        return placed

    def _connected(self) -> bool:
        """What was subscribed to now would be read."""
        return self._transport.session.greeted

    def _check_connected(self) -> None:
        """Raise why it will never be connected again."""
        if (ended := self._transport.session.ended) is not None:
            raise ended.with_traceback(None)

    def _read_on(self, deadline: float | None) -> Steps[bool]:
        """Subscribe once more at the place where the connection was lost, unless that is to be left
        (``_jumps``). False: ``deadline`` or ``stop()`` came first.
        """
        if (subscription := self._subscription) is not None:
            if not subscription.broken:
                return True
            self._forget()
        control = Subscribe(self._log_id, offset(self._place), self._reads_as)
        try:
            subscription = yield from self._subscribed(control, deadline, stops=True)
        except OffsetOutOfRange as error:
            if self._out_of_range == "error":
                raise self._gap(error) from None
            self._skip_to(error.first)
            self._place = error.first
            return self._jumps or (yield from self._read_on(deadline))
        if subscription is None:
            return False
        self._subscription, self._place = subscription, subscription.place.get().offset
        return True

    def _gap(self, error: OffsetOutOfRange) -> OffsetOutOfRange:
        """``error``: of a place where this source stood before."""
        first, end = self._place, error.first
        if first >= end:
            return error
        self._place = end
        text = f"log {self._log}: offsets {first} to {end} are gone"
        return Gap(text, first=first, end=end)

    def _away(self) -> RlogError:
        lost = self._transport.session.lost
        return ConnectionLost(
            f"no connection to {self._transport.address} within {self._transport.timeout} s: {lost}"
        )

    def _forget(self) -> None:
        """Its connection is lost: what it brought and was not handed out comes once more."""
        self._subscription = None
        if (cut := self._cut) is not None:
            self._place, self._cut = cut.offset, None
            cut.stop()  # a loop that still runs over it must not hand out the rest

    def _drop(self) -> None:
        """Forget the subscription and what it brought, and what was to be delivered next."""
        subscription = self._subscription
        self._forget()
        self._held = self._postponed = None
        if subscription is not None:
            self._transport.session.unsubscribe(subscription)

    def __del__(self) -> None:
        subscription = getattr(self, "_subscription", None)
        if subscription is not None:
            self._transport.post(lambda session: session.unsubscribe(subscription))


def over(deadline: float | None) -> bool:
    return deadline is not None and monotonic() >= deadline


def lend_ahead(link: Link, subscription: Subscription, amount: int, end: int | None) -> None:
    """Have what is in the log already, below ``end``, come while nobody waits for it: ``amount``
    bytes of it at most, and nothing where its next batch is larger.
    """
    if subscription.broken or subscription.lost is not None or subscription.error is not None:
        return  # it ended with what the last loan brought
    last = subscription.end if end is None else min(subscription.end, end)
    if subscription.next < last and (amount := min(link.room_ahead, amount)):
        link.session.lend(subscription, amount, ahead=True)
        link.serve()


class ReaderSteps(SourceSteps):
    """A source whose place is the client's own. It reads once ``_begin_at`` is done."""

    def _begin_at(self, whence: Whence, end: Whence | None) -> Steps[None]:
        try:
            yield from self._subscribe(check_whence(whence), None)
        except OffsetOutOfRange:
            if self._out_of_range == "error":
                raise
            self._note_start(whence, (yield from self._subscribe(self._elsewhere, None)))
        if end is not None:
            check_whence(end)
            # An offset means itself, also one that the log has not reached yet.
            if end.kind == "offset":
                self._until = end.value
            else:
                resolve = Resolve(self._log_id, end)
                self._until = (yield from asking(self._transport, resolve, Place)).offset

    @property
    def offset(self) -> int:
        """Of the next record."""
        return self._offset

    def _seek(self, whence: Whence) -> Steps[int]:
        if self._closed:
            raise RuntimeError("this reader is closed")
        self._check()
        return (yield from self._subscribe(check_whence(whence), None))

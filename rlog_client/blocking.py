"""Sources and producers as a blocking client has them: each method runs its steps to their end."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from inspect import iscoroutinefunction
from itertools import chain
from time import monotonic
from typing import TYPE_CHECKING, ClassVar, Self, cast

from msgspec import Struct

from .batch import RECORD_OVERHEAD
from .consumer import ConsumerSteps
from .member import MemberSteps
from .model import Backoff, Bytes, Item, OutOfRange, Receipt, Record, Verdict, Whence
from .process import ConsumerProcess, Escaped, OnExhausted, Process, process
from .producer import Batch, ProducerSteps, receipt_at
from .sharing import MemberProcess
from .source import ReaderSteps, SourceSteps
from .steps import leaving
from .table import TableSteps

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from types import TracebackType

    from .transport import Transport

Handler = Callable[[Record], Verdict | None]


class Source(SourceSteps, Iterator[Record]):
    """Records of one log, in order. A context manager; for one thread at a time, but for ``stop``.

    Iterating ends at the end as it stood when the iteration began with ``block=False``, and waits
    for more otherwise. A loop that is left in the middle loses nothing: the rest comes next.
    ``skipped_records``: how many were left out by ``on_out_of_range``.
    """

    _transport: Transport
    _processing: ClassVar[type[Process]] = Process
    _iterating: Iterator[Record] | None = None

    def __iter__(self) -> Iterator[Record]:
        return chain.from_iterable(self._runs(self._transport.run(self._start_runs())))

    def __next__(self) -> Record:
        if self._iterating is None:
            self._iterating = iter(self)
        try:
            return next(self._iterating)
        except BaseException:
            # Ended, failed or interrupted: the next one begins anew, at the same place.
            self._iterating = None
            raise

    def _runs(self, end: int | None) -> Iterator[Iterator[Record]]:
        """Iterators over runs of records, up to the offset ``end``."""
        while (run := self._transport.run(self._next_run(end, None))) is not None:
            yield run

    def poll(self, max_records: int = 1000, *, timeout: float | None = 0.0) -> list[Record]:
        """At most ``max_records`` of what is here or one fetch brings, in order.

        ``[]`` when there is nothing: at once, or after ``timeout`` seconds; None waits for ever.
        """
        return self._transport.run(self._poll(max_records, timeout))

    def process(
        self,
        handler: Handler,
        *,
        limit: int | None = None,
        block: bool | None = None,
        timeout: float | None = None,
        in_flight: int = 1,
        retry: Backoff | None = None,
        on_exhausted: OnExhausted = "park",
    ) -> int:
        """Call ``handler`` with one record after the other, and do what its verdict says.

        None and Commit: done with it. Commit with ``appends``: these are appended in the same
        transaction, all of it or nothing; what they are refused with for the record's own sake
        (TypeError, NotFound, TooLarge) counts as if the handler had raised it. Skip: done with it,
        and its reason goes to the log. Park: put aside, see ``Cursor.parked``. Retry: again after
        its delay, with ``attempt`` one higher; nothing overtakes. Stop: leave it, and return.
        Anything else is a TypeError. At most ``in_flight`` records are done with and not yet
        committed.

        An exception counts as an attempt and propagates; the record is the next one again. With
        ``retry`` it is a Retry instead. A record that failed ``retry.max_attempts`` times goes to
        ``on_exhausted``: it is parked, skipped, or the last exception is raised. One that comes
        with more (it was in hand when its consumers vanished) goes there without a call, and with
        "raise" is Paused. KeyboardInterrupt and SystemExit count nothing.

        A consumer's attempts, delays and parked records are the server's: they outlive this
        process. After ``retry.pause_after`` records in a row, exhausted by one class of exception,
        the consumer is paused: then a blocking ``process`` tries one record every ``retry.cap``
        seconds until one succeeds, and another raises Paused. Redriven records come first, and are
        settled alone. A reader's attempts are its own; it has no place to park anything, and no
        cursor to commit appends with: these are InvalidRequest.

        Returns how many were completed: when that is ``limit``, on Stop and ``stop()``, when
        ``timeout`` seconds are over (looked at between records), or at the end with
        ``block=False`` (None: as opened). Before it returns or raises, what is done with is
        committed.
        """
        if iscoroutinefunction(handler):
            raise TypeError(
                f"{handler!r} is an async function: those are handlers under connect_async()"
            )
        steps = process(
            self,
            self._processing,
            handler,
            limit=limit,
            block=block,
            timeout=timeout,
            in_flight=in_flight,
            retry=retry,
            on_exhausted=on_exhausted,
        )
        try:
            return self._transport.run(steps)
        except Escaped as escaped:
            raise escaped.error from None

    def seek(self, whence: Whence) -> int:
        """Go on at ``whence``: the offset of the next record. What was prefetched is dropped.

        Of a consumer it moves the cursor: records handed out before are Fenced.
        """
        return self._transport.run(self._seek(whence))

    def close(self) -> None:
        """Let go of what the server holds for this source. A second close does nothing.

        A consumer waits for outstanding commits and releases its claim.
        """
        self._transport.run(self._close())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._transport.run(leaving(self._close(), error, f"log {self._log}: closing"))


class Reader(Source, ReaderSteps):
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
        on_out_of_range: OutOfRange,
    ) -> None:
        super().__init__(transport, log, log_id, block, on_out_of_range)
        transport.run(self._begin_at(whence, until))


class Consumer(Source, ConsumerSteps):
    """A source with a durable cursor on the server, of which there is one holder at a time.

    Claims at ``with`` or first use: Busy while somebody else holds it. Holds until ``close``, the
    end of the ``with``, its client's close or garbage collection. Once the claim is lost, every use
    is Fenced.
    """

    _processing: ClassVar[type[Process]] = ConsumerProcess

    @property
    def epoch(self) -> int:
        """Of the claim; it rises with every claim and seek. Claims if that was not done yet."""
        self._transport.run(self._begin())
        return self._epoch

    @property
    def committed(self) -> int:
        """The offset after the last acknowledged commit; of a shared consumer, as far as the server
        has said. Claims if that was not done yet.
        """
        self._transport.run(self._begin())
        return self._acknowledged

    def commit(self, record: Record, *, wait: bool = True) -> None:
        """Commit everything up to and including ``record``.

        With ``wait=False`` an error surfaces at the next use, or in ``close``. Fenced: the record
        was delivered under an older epoch. InvalidRequest: it is of another log.
        """
        self._transport.run(self._commit(record, wait))

    def settle(self, record: Record, verdict: Verdict, *, wait: bool = True) -> None:
        """Do what a handler's ``verdict`` on ``record`` would; ``wait`` and errors as ``commit``.

        What was handed out before the record is committed by it. After a Retry it is the next one
        again, and what was handed out behind it comes once more. A Commit with ``appends`` is
        always waited for, and its errors are a ``Transaction``'s. InvalidRequest: Stop, or a Retry
        or Park of what is committed.
        """
        self._transport.run(self._settle(record, verdict, wait))

    def extend(self, record: Record) -> None:
        """Begin the ``hand_seconds`` of what is in hand anew."""
        self._transport.run(self._extend(record))

    def __enter__(self) -> Self:
        self._transport.run(self._begin())
        return self

    def __iter__(self) -> Iterator[Record]:
        records = super().__iter__()
        return self._committing(records) if self._autocommit else records

    def _committing(self, records: Iterator[Record]) -> Iterator[Record]:
        for record in records:
            self._last = record
            yield record
            if self._last is record and not record.redriven and monotonic() < self._commit_at:
                self._passed = record  # others go with it
            else:
                self._transport.run(self._commit_last())


class Member(Consumer, MemberSteps):
    """A consumer that shares its ID with others: see ``Log.consumer``."""

    _processing: ClassVar[type[Process]] = MemberProcess


class Table(TableSteps, Iterator[Record]):
    """The latest record of each key below one offset, ``end``, in order of their offsets.

    Fixed when it is first used: what is appended since is not in it, and what it holds is not
    compacted while it is read. Nobody else has to wait for it. A context manager; for one thread at
    a time. Once its end is reached, it stays there.

    Raises CorruptData where a record of it is damaged, and Gap where one was trimmed, or was
    compacted after the connection was lost: each once, and what follows comes next.
    """

    _link: Transport

    @property
    def end(self) -> int:
        """The offset at which this is the table."""
        self._link.run(self._open())
        assert self._end is not None
        return self._end

    def __next__(self) -> Record:
        for record in self._ready:
            return record
        if not self._link.run(self._next()):
            raise StopIteration
        return next(self._ready)

    def close(self) -> None:
        """Let the server compact what it holds. A second close does nothing."""
        self._link.run(self._close())

    def __enter__(self) -> Self:
        self._link.run(self._open())
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._link.run(leaving(self._close(), error, f"log {self._log}: closing a table"))


class Pending(Struct, frozen=True, gc=False):
    """One record on its way. Made for the producer's thread: to ask it drives the socket."""

    # gc=False as for Record: it can be in no cycle, and there are millions of them.
    _batch: Batch
    _index: int

    def done(self) -> bool:
        """Whether ``result`` has its answer at once. Never waits."""
        return self._batch.producer._done(self._batch)

    def result(self, timeout: float | None = None) -> int:
        """The record's offset, once it is acknowledged, or its error raised.

        TimedOut after ``timeout`` seconds: the append goes on. OutcomeUnknown: its answer is lost.
        -1: the record is in the log, but was appended so long before that the server knows its
        sequence number only.
        """
        producer = cast("Producer", self._batch.producer)
        answer = producer._transport.run(producer._answer(self._batch, timeout))
        if answer.first >= 0:
            return answer.first + self._index
        return receipt_at(answer, self._index).first

    def receipt(self, timeout: float | None = None) -> Receipt:
        """Like ``result``, with the time of the append and how durable it was when answered.

        ``duplicate``: it was in the log already, and has not been appended again.
        """
        producer = cast("Producer", self._batch.producer)
        return receipt_at(
            producer._transport.run(producer._answer(self._batch, timeout)), self._index
        )


class Producer(ProducerSteps):
    """Sends records to one log, batched and pipelined. A context manager that flushes at its end.

    With a name, or an exclusive one, is opened at ``with`` or first use. An exclusive one holds the
    log until ``close``, the end of the ``with``, its client's close or garbage collection: Busy
    while somebody else holds it. Once it is lost, or the name was opened by somebody else, every
    use is Fenced.

    A record goes on the wire when its batch is full (``batch_bytes``), when ``linger`` seconds have
    passed since the last batch (looked at on every call into the client: nothing runs in between),
    or on ``flush``, ``Pending.result`` or leaving. More than ``buffer_bytes`` unacknowledged block.
    The first failure is raised by the next ``send`` or ``flush``, or at the end of the ``with``;
    every record's own is raised by its Pending. What was sent behind it is not appended, and its
    Pendings raise that; what is sent after it was raised goes on.
    """

    _transport: Transport

    @property
    def epoch(self) -> int:
        """Of the name or the claim; it rises whenever it is opened. 0 for neither."""
        self._transport.run(self._open())
        return self._who.epoch

    @property
    def last_sequence(self) -> int:
        """The last sequence accepted under its name; -1 for none, and without a name."""
        self._transport.run(self._open())
        return self._accepted

    def send(
        self,
        value: Bytes,
        *,
        key: Bytes | None = None,
        headers: Mapping[str, bytes] | None = None,
        event_time_ns: int | None = None,
        sequence: int | None = None,
    ) -> Pending:
        """Add one record. Blocks while the buffer is full.

        ``sequence``: the caller's own number of it, under the producer's name; by default the one
        after the last. They rise strictly, gaps are allowed, and after a failure they may begin
        anew. A record whose number was accepted before is not appended again: its Pending gives
        the original offset, as long as the server knows it.

        Raises TooLarge, or the first failure of an earlier batch: then this record is not added.
        """
        if (
            type(value) is bytes
            and key is None
            and headers is None
            and event_time_ns is None
            and sequence is None
        ):
            size = len(value)
            room = self._room - size - RECORD_OVERHEAD
            # A failure makes the open batch due and close() takes its room: they cost nothing here.
            if room >= 0 and size <= self._plain_max and monotonic() < self._due:
                self._room = room
                values = self._values
                index = len(values)
                values.append(value)
                return Pending(self._batch, index)
        item = Item(value, key, headers, event_time_ns)
        return Pending(*self._transport.run(self._send(item, None, sequence)))

    def extend(self, values: Iterable[Bytes]) -> None:
        """Add many plain values, the fastest way in. Errors as for ``send``."""
        self._transport.run(self._extend(values))

    def flush(self, timeout: float | None = None) -> int:
        """Send all and wait until it is acknowledged: the offset after the last of ours.

        0 when nothing was ever sent. TimedOut after ``timeout`` seconds: what is under way goes on.
        """
        return self._transport.run(self._flush(timeout))

    def close(self) -> None:
        """Flush, and take no more records. A second close does nothing."""
        self._transport.run(self._close())

    def __enter__(self) -> Self:
        self._transport.run(self._open())
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._transport.run(leaving(self._close(), error, f"log {self._log}: flushing"))

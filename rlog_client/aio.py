"""The async client, on anyio: for trio and asyncio. Names as in the blocking one, after Async.

What talks is a coroutine, and what is opened is ``async with``. Each method runs the same steps as
its blocking counterpart (see ``steps``); ``tests/test_surface.py`` compares them one by one.

Any number of tasks may use one client at once: each its own reader or consumer, logs and producers
shared as they like. Two tasks in one reader or consumer is a RuntimeError.
"""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from functools import partial
from inspect import isawaitable
from time import monotonic
from typing import TYPE_CHECKING, Any, ClassVar, Final, Self, TypeVar, Unpack, cast
from weakref import WeakSet

import anyio
from msgspec import Struct

from .aio_transport import AsyncTransport
from .batch import RECORD_OVERHEAD
from .client import (
    check_timeout,
    checked_options,
    column_of,
    columns_of,
    default_name,
    listing,
    opening,
    syncing,
    where,
)
from .consumer import ConsumerSteps
from .errors import RlogError, TimedOut
from .gathering import Gathering
from .identity import AppendIds, Identity
from .member import MemberSteps
from .model import (
    OLDEST,
    Backoff,
    Bytes,
    Commit,
    CursorInfo,
    Global,
    Item,
    LogInfo,
    LogOptions,
    OutOfRange,
    Parked,
    ProducerInfo,
    Receipt,
    Record,
    Verdict,
    Whence,
    consumer_name,
)
from .parked import listing_parked, redriving
from .process import ConsumerProcess, OnExhausted, Process, process
from .producer import Batch, ProducerSteps, appending, receipt_at, receipt_of
from .protocol import (
    AlterLog,
    CursorReply,
    DeleteCursor,
    DeleteLog,
    Done,
    Evict,
    GetCursor,
    GetLog,
    ListCursors,
    ListLogs,
    ListProducers,
    LogReply,
    Moved,
    Place,
    Resume,
    SeekCursor,
    TrimLog,
)
from .sharing import Hands, MemberProcess, Outcome, committing_with
from .source import ReaderSteps, SourceSteps, check_whence
from .steps import Wait, leaving, until
from .table import TableSteps, latest
from .transaction import TransactionSteps
from .transport import parse_url

if TYPE_CHECKING:
    from collections.abc import Generator, Iterable, Mapping
    from types import TracebackType

    from .producer import Columns
    from .protocol import Appended, Control
    from .steps import Steps

AsyncHandler = Callable[[Record], Awaitable[Verdict | None]]
T = TypeVar("T")
InfoT = TypeVar("InfoT", LogInfo, CursorInfo, ProducerInfo)
_TEND_SECONDS: Final = 0.005  # until a batch that is due and could not leave is tried again


class _Runs(AsyncIterator[Record]):
    """What ``async for`` runs over: the records that are here without a wait, run by run."""

    __slots__ = ("_end", "_run", "_source", "_started")

    def __init__(self, source: AsyncSource) -> None:
        self._source = source
        self._run: Iterator[Record] = iter(())
        self._end: int | None = None
        self._started = False

    async def __anext__(self) -> Record:
        for record in self._run:  # the fastest way to the next one, if there is one
            return record
        return await self._next()

    async def _next(self) -> Record:
        source = self._source
        if not self._started:
            self._end = await source._drive_reading(source._start_runs())
            self._started = True
        while (run := await source._drive_reading(source._next_run(self._end, None))) is not None:
            self._run = run
            for record in run:
                return record
        raise StopAsyncIteration


class _CommittingRuns(_Runs):
    """With ``autocommit``: a record is committed when the next is asked for."""

    __slots__ = ()

    async def __anext__(self) -> Record:
        consumer = cast("AsyncConsumer", self._source)
        last = consumer._last
        if last is None:
            pass
        elif last.redriven or monotonic() >= consumer._commit_at:
            await consumer._drive_reading(consumer._commit_last())
        else:
            if consumer._passed is None:
                consumer._transport.tend_at(consumer._commit_at)
            consumer._passed = last  # others go with it
        record = await super().__anext__()
        consumer._last = record
        return record


class AsyncSource(SourceSteps, AsyncIterator[Record]):
    """Records of one log, in order. An async context manager; for one task at a time.

    Iterating ends at the end as it stood when the iteration began with ``block=False``, and waits
    for more otherwise. A loop that is left in the middle loses nothing: the rest comes next.
    """

    _awaits = True
    _processing: ClassVar[type[Process]] = Process
    _transport: AsyncTransport
    _iterating: AsyncIterator[Record] | None = None
    _driving = False  # a task waits in here
    _is_read = False  # a task takes records from here, and perhaps handles one

    async def _drive(self, steps: Steps[T]) -> T:
        if self._driving:
            raise RuntimeError("a reader or consumer is for one task at a time")
        self._driving = True
        try:
            return await self._transport.run(steps)
        finally:
            self._driving = False

    async def _drive_reading(self, steps: Steps[T]) -> T:
        """``_drive`` what hands out records: not even a handler may do that meanwhile."""
        if self._is_read:
            raise RuntimeError("a reader or consumer is for one task at a time")
        self._is_read = True
        try:
            return await self._drive(steps)
        finally:
            self._is_read = False

    def __aiter__(self) -> AsyncIterator[Record]:
        return _Runs(self)

    async def __anext__(self) -> Record:
        if self._iterating is None:
            self._iterating = aiter(self)
        try:
            return await anext(self._iterating)
        except BaseException:
            # Ended, failed or cancelled: the next one begins anew, at the same place.
            self._iterating = None
            raise

    async def poll(self, max_records: int = 1000, *, timeout: float | None = 0.0) -> list[Record]:
        """At most ``max_records`` of what is here or one fetch brings, in order.

        ``[]`` when there is nothing: at once, or after ``timeout`` seconds; None waits for ever.
        """
        return await self._drive_reading(self._poll(max_records, timeout))

    async def process(
        self,
        handler: AsyncHandler,
        *,
        limit: int | None = None,
        block: bool | None = None,
        timeout: float | None = None,
        in_flight: int = 1,
        retry: Backoff | None = None,
        on_exhausted: OnExhausted = "park",
    ) -> int:
        """Await ``handler`` with one record after the other, and do what its verdict says.

        As ``Source.process``. Cancelled in a handler, the record is the next one again, and no
        attempt is counted.
        """

        async def handled(record: Record) -> Verdict | None:
            awaitable = handler(record)
            if not isawaitable(awaitable):
                raise TypeError(f"handlers are async functions here, not {handler!r}")
            self._driving = False  # a handler may commit or seek
            try:
                return await awaitable
            finally:
                self._driving = True

        steps = process(
            self,
            self._processing,
            handled,
            limit=limit,
            block=block,
            timeout=timeout,
            in_flight=in_flight,
            retry=retry,
            on_exhausted=on_exhausted,
        )
        return await self._drive_reading(steps)

    async def seek(self, whence: Whence) -> int:
        """Go on at ``whence``: the offset of the next record. What was prefetched is dropped.

        Of a consumer it moves the cursor: records handed out before are Fenced.
        """
        return await self._drive(self._seek(whence))

    async def close(self) -> None:
        """Let go of what the server holds for this source. A second close does nothing.

        A consumer waits for outstanding commits and releases its claim.
        """
        await self._drive(self._close())

    def _closing(self) -> Steps[None]:
        """With its client. What another task still waits for in here ends with the connection."""
        if not self._driving:
            yield from self._close()

    async def __aenter__(self) -> Self:
        await self._drive(self._begin())
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        closing = leaving(self._close(), error, f"log {self._log}: closing")
        await self._transport.run(closing, limit=self._transport.limit_after(error))


class AsyncReader(AsyncSource, ReaderSteps):
    """A source whose place is the client's own. Placed on entering, or at its first use."""

    def __init__(
        self,
        transport: AsyncTransport,
        log: str,
        log_id: int,
        whence: Whence,
        *,
        until: Whence | None,
        block: bool,
        on_out_of_range: OutOfRange,
    ) -> None:
        super().__init__(transport, log, log_id, block, on_out_of_range)
        check_whence(whence)
        if until is not None:
            check_whence(until)
        self._whence: tuple[Whence, Whence | None] | None = whence, until

    def _open(self) -> Steps[None]:
        if self._whence is not None:
            yield from self._begin_at(*self._whence)
            self._whence = None

    def _seek(self, whence: Whence) -> Steps[int]:
        yield from self._begin()
        return (yield from super()._seek(whence))

    @property
    def offset(self) -> int:
        """Of the next record."""
        if self._whence is not None:
            raise RuntimeError("this reader is not placed yet: enter it first")
        return self._offset


class AsyncConsumer(AsyncSource, ConsumerSteps):
    """A source with a durable cursor on the server, of which there is one holder at a time.

    Claims on entering, or at its first use: Busy while somebody else holds it. Holds until
    ``close``, the end of the ``async with``, its client's close or garbage collection. Once the
    claim is lost, every use is Fenced.
    """

    _processing: ClassVar[type[Process]] = ConsumerProcess

    def _held_claim(self) -> None:
        if not self._claimed:
            raise RuntimeError("this consumer has claimed nothing: enter it first")

    @property
    def epoch(self) -> int:
        """Of the claim; it rises with every claim and seek."""
        self._held_claim()
        return self._epoch

    @property
    def committed(self) -> int:
        """The offset after the last acknowledged commit; of a shared consumer, as far as the server
        has said. It asks nobody: after OutcomeUnknown of a transaction ``AsyncCursor.info`` does.
        """
        self._held_claim()
        return self._answered

    async def commit(self, record: Record, *, wait: bool = True) -> None:
        """Commit everything up to and including ``record``.

        With ``wait=False`` an error surfaces at the next use, or in ``close``. Fenced: the record
        was delivered under an older epoch. InvalidRequest: it is of another log.
        """
        await self._drive(self._commit(record, wait))

    async def settle(self, record: Record, verdict: Verdict, *, wait: bool = True) -> None:
        """Do what a handler's ``verdict`` on ``record`` would. As ``Consumer.settle``."""
        await self._drive(self._settle(record, verdict, wait))

    async def extend(self, record: Record) -> None:
        """Begin the ``hand_seconds`` of what is in hand anew."""
        await self._drive(self._extend(record))

    def tend(self, now: float) -> None:
        super().tend(now)
        if self._passed is not None:
            self._transport.tend_at(self._commit_at)

    def __aiter__(self) -> AsyncIterator[Record]:
        return _CommittingRuns(self) if self._autocommit else _Runs(self)


class AsyncMember(AsyncConsumer, MemberSteps):
    """A consumer that shares its ID with others: see ``Log.consumer``."""

    _processing: ClassVar[type[Process]] = MemberProcess

    async def process(
        self,
        handler: AsyncHandler,
        *,
        limit: int | None = None,
        block: bool | None = None,
        timeout: float | None = None,
        in_flight: int = 1,
        retry: Backoff | None = None,
        on_exhausted: OnExhausted = "park",
    ) -> int:
        """Await up to ``in_flight`` handlers at once, and do what their verdicts say.

        As ``Source.process``. When one raises, or this is cancelled, the others are cancelled, and
        their records released.
        """
        scopes: set[anyio.CancelScope] = set()

        async def handle(record: Record) -> None:
            outcome, scope = Outcome(record, ended=True), anyio.CancelScope()
            scopes.add(scope)
            try:
                with scope:
                    awaitable = handler(record)
                    if not isawaitable(awaitable):
                        raise TypeError(f"handlers are async functions here, not {handler!r}")
                    verdict = await awaitable
                    outcome = Outcome(record, verdict)
                    if isinstance(verdict, Commit) and verdict.appends:
                        # Here, so that many handlers' transactions are under way at once.
                        await self._transport.run(committing_with(self, record, verdict))
                        outcome = Outcome(record, committed=True)
            except Exception as error:
                outcome = Outcome(record, error=error)
            finally:
                scopes.discard(scope)
                hands.finished.append(outcome)
                self._transport.ring()

        def cancel() -> None:
            for scope in scopes:
                scope.cancel()

        failure: Exception | None = None
        count = 0
        async with anyio.create_task_group() as handlers:

            def spawn(record: Record) -> None:
                handlers.start_soon(handle, record)

            hands = Hands(spawn, cancel)
            steps = process(
                self,
                partial(MemberProcess, hands=hands),
                handler,
                limit=limit,
                block=block,
                timeout=timeout,
                in_flight=in_flight,
                retry=retry,
                on_exhausted=on_exhausted,
            )
            try:
                count = await self._drive_handling(steps)
            except Exception as error:
                # Not out of the group, which would make a group of it.
                failure = error
        if failure is not None:
            raise failure
        return count

    async def _drive_handling(self, steps: Steps[T]) -> T:
        """As ``_drive_reading``, but handlers may commit and extend meanwhile."""
        if self._is_read or self._driving:
            raise RuntimeError("a reader or consumer is for one task at a time")
        self._is_read = True
        try:
            return await self._transport.run(steps)
        finally:
            self._is_read = False


class AsyncTable(TableSteps, AsyncIterator[Record]):
    """The latest record of each key below one offset, ``end``. As ``Table``, for one task."""

    _link: AsyncTransport
    _driving = False  # a task waits in here

    async def _drive(self, steps: Steps[T]) -> T:
        if self._driving:
            raise RuntimeError("a table is for one task at a time")
        self._driving = True
        try:
            return await self._link.run(steps)
        finally:
            self._driving = False

    @property
    def end(self) -> int:
        """The offset at which this is the table."""
        if self._end is None:
            raise RuntimeError("this table is not open yet: enter it first")
        return self._end

    async def __anext__(self) -> Record:
        for record in self._ready:
            return record
        if not await self._drive(self._next()):
            raise StopAsyncIteration
        return next(self._ready)

    async def close(self) -> None:
        """Let the server compact what it holds. A second close does nothing."""
        await self._drive(self._close())

    def _closing(self) -> Steps[None]:
        """With its client. What another task still waits for in here ends with the connection."""
        if not self._driving:
            yield from self._close()

    async def __aenter__(self) -> Self:
        await self._drive(self._open())
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        closing = leaving(self._close(), error, f"log {self._log}: closing a table")
        await self._link.run(closing, limit=self._link.limit_after(error))


class AsyncPending(Struct, frozen=True, gc=False):
    """One record on its way: ``await`` it for its offset. Any number of tasks may."""

    # gc=False as for Record: it can be in no cycle, and there are millions of them.
    _batch: Batch
    _index: int

    def done(self) -> bool:
        """Whether ``result`` has its answer at once. Never waits."""
        return self._batch.producer._done(self._batch)

    async def result(self, timeout: float | None = None) -> int:
        """The record's offset, once it is acknowledged, or its error raised.

        TimedOut after ``timeout`` seconds: the append goes on. OutcomeUnknown: its answer is lost.
        """
        return (await self.receipt(timeout)).first

    async def receipt(self, timeout: float | None = None) -> Receipt:
        """Like ``result``, with the time of the append and how durable it was when answered."""
        producer = cast("AsyncProducer", self._batch.producer)
        return await producer._receipt(self._batch, self._index, timeout)

    def __await__(self) -> Generator[Any, Any, int]:
        return self.result().__await__()


class AsyncProducer(ProducerSteps):
    """Sends records to one log, batched and pipelined. Flushes at the end of its ``async with``.

    A record goes on the wire when its batch is full (``batch_bytes``), when ``linger`` seconds have
    passed since the last batch, or on ``flush``, ``await pending`` or leaving. More than
    ``buffer_bytes`` unacknowledged block. The first failure is raised by the next ``send`` or
    ``flush``, or at the end of the ``async with``; every record's own is raised by its pending.

    Any number of tasks may send: those that have to wait take turns, in the order they came.
    """

    _transport: AsyncTransport

    def __init__(
        self,
        transport: AsyncTransport,
        who: Identity,
        *,
        linger: float,
        batch_bytes: int,
        buffer_bytes: int,
    ) -> None:
        super().__init__(
            transport, who, linger=linger, batch_bytes=batch_bytes, buffer_bytes=buffer_bytes
        )
        self._turns: deque[object] = deque()  # of the tasks inside; the first one's steps run

    async def _drive(self, steps: Callable[[], Steps[T]], deadline: float | None = None) -> T:
        try:
            return await self._transport.run(self._in_turn(steps, deadline))
        finally:
            self._see_to_it()

    def _see_to_it(self) -> None:
        """The open batch goes when it is due, also if nobody calls until then."""
        if self._values:
            self._transport.tend_at(self._due)

    def tend(self, now: float) -> None:
        super().tend(now)
        if self._values:
            # Not yet; if it is due, too much is under way.
            self._transport.tend_at(max(self._due, now + _TEND_SECONDS))

    def _in_turn(self, steps: Callable[[], Steps[T]], deadline: float | None) -> Steps[T]:
        """``steps()``, when no other task's are under way in here."""
        turn = object()
        self._turns.append(turn)
        try:
            if self._turns[0] is not turn:
                first = Wait(lambda: self._turns[0] is turn, deadline)
                if not (yield first):
                    raise TimedOut("what other tasks send comes first, and takes longer")
            return (yield from steps())
        finally:
            self._turns.remove(turn)
            if self._turns:
                self._transport.ring()

    @property
    def last_sequence(self) -> int:
        """Of what was accepted under this name; -1 for nothing."""
        self._check_opened()
        return self._accepted

    @property
    def epoch(self) -> int:
        """Of the name or the claim."""
        self._check_opened()
        return self._who.epoch

    def _check_opened(self) -> None:
        if self._who.opens and not self._who.epoch:
            raise RuntimeError("this producer is not open yet: enter it first")

    async def send(
        self,
        value: Bytes,
        *,
        key: Bytes | None = None,
        headers: Mapping[str, bytes] | None = None,
        event_time_ns: int | None = None,
        sequence: int | None = None,
    ) -> AsyncPending:
        """Add one record. Waits while the buffer is full.

        Raises TooLarge, or the first failure of an earlier batch: then this record is not added.
        Cancelled while it waits, it may be or not.
        """
        if (
            type(value) is bytes
            and key is None
            and headers is None
            and event_time_ns is None
            and sequence is None
            and not self._turns
        ):
            size = len(value)
            room = self._room - size - RECORD_OVERHEAD
            # A failure makes the open batch due and close() takes its room: they cost nothing here.
            if room >= 0 and size <= self._plain_max and monotonic() < self._due:
                self._room = room
                values = self._values
                index = len(values)
                values.append(value)
                if not index:
                    self._see_to_it()
                return AsyncPending(self._batch, index)
        item = Item(value, key, headers, event_time_ns)
        return AsyncPending(*await self._drive(lambda: self._send(item, None, sequence)))

    async def extend(self, values: Iterable[Bytes]) -> None:
        """Add many plain values, the fastest way in. Errors as for ``send``."""
        await self._drive(lambda: self._extend(values))

    async def flush(self, timeout: float | None = None) -> int:
        """Send all and wait until it is acknowledged: the offset after the last of ours.

        0 when nothing was ever sent. TimedOut after ``timeout`` seconds: what is under way goes on.
        """
        deadline = until(timeout)
        return await self._drive(lambda: self._flush(_left(deadline)), deadline)

    async def _receipt(self, batch: Batch, index: int, timeout: float | None) -> Receipt:
        deadline = until(timeout)
        if batch.call is None:
            await self._drive(lambda: self._seal_now(batch, deadline), deadline)
        answer = await self._transport.run(self._answer(batch, _left(deadline)))
        return receipt_at(answer, index)

    def _seal_now(self, batch: Batch, deadline: float | None) -> Steps[None]:
        if batch.call is None:
            self._begin()
            yield from self._push(deadline)

    async def close(self) -> None:
        """Flush, and take no more records. A second close does nothing."""
        await self._drive(self._close)

    def _closing(self) -> Steps[None]:
        """With its client."""
        return self._in_turn(self._close, None)

    async def __aenter__(self) -> Self:
        await self._drive(self._open)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        closing = leaving(self._closing(), error, f"log {self._log}: flushing")
        await self._transport.run(closing, limit=self._transport.limit_after(error))


def _left(deadline: float | None) -> float | None:
    return None if deadline is None else max(0.0, deadline - monotonic())


def connect_async(
    url: str | None = None, *, timeout: float | None = 10.0, name: str = ""
) -> AsyncClient:
    """A client that is connected while it is entered: ``async with connect_async() as client:``.

    Arguments as for ``connect``; its errors come on entering.
    """
    check_timeout(timeout)
    return AsyncClient(AsyncTransport(parse_url(url), name or default_name(), timeout))


class AsyncClient:
    """One connection to a server, and everything made from it: for the tasks of one event loop."""

    def __init__(self, transport: AsyncTransport) -> None:
        """Made by ``connect_async``."""
        self._transport = transport
        self._made: WeakSet[AsyncProducer | AsyncReader | AsyncConsumer | AsyncTable] = WeakSet()
        self._append_ids = AppendIds()

    async def log(
        self, name: str, *, create: bool = False, **options: Unpack[LogOptions]
    ) -> AsyncLog:
        """The log ``name``: NotFound when there is none, unless ``create``.

        AlreadyExists when it exists with other ``options`` than those given.
        """
        reply = await self._transport.call(opening(name, create, options), LogReply)
        return AsyncLog(self, reply.info)

    async def logs(self) -> list[LogInfo]:
        """All logs of the server."""
        return await self._transport.run(listing(self._transport, ListLogs(), LogInfo))

    def transaction(self) -> AsyncTransaction:
        """Appends to any logs and commits of this client's consumers: all of it, or nothing."""
        return AsyncTransaction(self._transport)

    def clone(self) -> AsyncClient:
        """Another client of the same server, with its own connection and claims, to be entered."""
        return AsyncClient(self._transport.clone())

    async def close(self) -> None:
        """Close what was made from this client, flush its producers, and end the connection."""
        await self._close(None)

    async def _close(self, limit: float | None) -> None:
        """``limit``: see ``AsyncTransport.run``."""
        if self._transport.closed:
            return
        failure: RlogError | None = None
        try:
            for each in list(self._made):
                try:
                    await self._transport.run(each._closing(), limit=limit)
                except RlogError as error:
                    failure = failure or error
        finally:
            self._transport.close()
        if failure is not None:
            raise failure

    async def __aenter__(self) -> Self:
        await self._transport.enter()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        last = error
        try:
            await self._close(self._transport.limit_after(error))
        except BaseException as failed:
            # What the body raised is what its caller has to see, unless this was cancelled now.
            if error is None or not isinstance(failed, RlogError):
                last = failed
        await self._transport.leave(last)
        if last is not None and last is not error:
            raise last

    def __repr__(self) -> str:
        return f"<rlog_client.AsyncClient of {self._transport.address}>"


class AsyncTransaction(TransactionSteps):
    """Appends and commits that are sent at the end of the ``async with``, as one request: all of it
    is done, at one moment and in one frame, or nothing. As ``Transaction``.

    What it collects, it collects without waiting. Cancelled while it is sent, it is done or not;
    then, and after OutcomeUnknown, ``AsyncCursor.info`` tells which.
    """

    _transport: AsyncTransport

    def append(
        self,
        log: str | AsyncLog,
        item: Bytes | Item,
        *,
        expect: int | None = None,
        expect_key: int | None = None,
    ) -> None:
        """Append a record. As ``Transaction.append``."""
        self._add(where(self._transport, log, AsyncLog), item, expect, expect_key)

    def commit(self, consumer: AsyncConsumer, record: Record) -> None:
        """Commit everything up to and including ``record``. As ``Transaction.commit``."""
        if not isinstance(consumer, AsyncConsumer):
            raise TypeError(f"an AsyncConsumer commits, and not {consumer!r}")
        self._add_commit(consumer, record)

    async def __aenter__(self) -> Self:
        self._begin()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._ended = True
        if error is not None:
            return
        consumers = {cast("AsyncConsumer", each.consumer) for each in self._commits}
        if any(each._driving for each in consumers):
            raise RuntimeError("a reader or consumer is for one task at a time")
        for each in consumers:
            each._driving = True
        try:
            await self._transport.run(self._send())
        finally:
            for each in consumers:
                each._driving = False


class AsyncLog:
    """One log of the server. Made by ``AsyncClient.log``."""

    def __init__(self, client: AsyncClient, info: LogInfo) -> None:
        self.name = info.name
        self._id = info.id
        self._client = client
        self._transport = client._transport
        self._gathering = Gathering(self._transport, client._append_ids, info.id)

    async def append(
        self,
        value: Bytes,
        *,
        key: Bytes | None = None,
        headers: Mapping[str, bytes] | None = None,
        event_time_ns: int | None = None,
        expect: int | None = None,
        expect_key: int | None = None,
    ) -> int:
        """Append one record: its offset, once the log's sync policy is satisfied.

        As ``Log.append``. Cancelled while it waits, the record is appended or not. What several
        tasks append at one moment goes as one batch, unless something is expected.
        """
        item = Item(value, key, headers, event_time_ns)
        if expect is None and expect_key is None:
            return await self._gathering.append(item)
        columns = column_of(item, self._transport.session.limits)
        return (await self._append(columns, expect, expect_key)).first

    async def append_many(
        self, items: Iterable[Bytes | Item], *, expect: int | None = None
    ) -> Receipt:
        """Append records as one batch, all or nothing. As ``Log.append_many``."""
        columns = columns_of(items, self._transport.session.limits)
        return receipt_of(await self._append(columns, expect))

    async def _append(
        self, columns: Columns, expect: int | None, expect_key: int | None = None
    ) -> Appended:
        ids, transport = self._client._append_ids, self._transport
        return await transport.run(appending(transport, ids, self._id, columns, expect, expect_key))

    def producer(
        self,
        *,
        name: str | None = None,
        exclusive: bool = False,
        standby: bool = False,
        takeover: bool = False,
        linger: float = 0.005,
        batch_bytes: int = 1 << 20,
        buffer_bytes: int = 32 << 20,
    ) -> AsyncProducer:
        """Send many records, batched and pipelined; see ``AsyncProducer`` and ``Log.producer``."""
        producer = AsyncProducer(
            self._transport,
            Identity(
                self.name,
                self._id,
                name=name,
                exclusive=exclusive,
                standby=standby,
                takeover=takeover,
            ),
            linger=linger,
            batch_bytes=batch_bytes,
            buffer_bytes=buffer_bytes,
        )
        self._client._made.add(producer)
        return producer

    async def producers(self) -> list[ProducerInfo]:
        """The log's producers with a name, and the one that owns it."""
        return await self._list(ListProducers(self._id), ProducerInfo)

    def reader(
        self,
        whence: Whence,
        *,
        until: Whence | None = None,
        block: bool = True,
        on_out_of_range: OutOfRange = "error",
    ) -> AsyncReader:
        """Read from ``whence`` on, up to ``until``. As ``Log.reader``, but placed on entering."""
        reader = AsyncReader(
            self._transport,
            self.name,
            self._id,
            whence,
            until=until,
            block=block,
            on_out_of_range=on_out_of_range,
        )
        self._client._made.add(reader)
        return reader

    def consumer(
        self,
        consumer_id: str | Global,
        /,
        *,
        start: Whence = OLDEST,
        block: bool = True,
        shared: bool = False,
        standby: bool = False,
        takeover: bool = False,
        autocommit: bool = False,
        hand_seconds: float | None = None,
        on_out_of_range: OutOfRange = "error",
    ) -> AsyncConsumer:
        """Read with a durable cursor on the server; see ``AsyncConsumer`` and ``Log.consumer``."""
        consumer = (AsyncMember if shared else AsyncConsumer)(
            self._transport,
            self.name,
            self._id,
            consumer_id,
            start=start,
            block=block,
            autocommit=autocommit,
            standby=standby,
            takeover=takeover,
            hand_seconds=hand_seconds,
            on_out_of_range=on_out_of_range,
        )
        self._client._made.add(consumer)
        return consumer

    async def latest(self, key: Bytes) -> Record | None:
        """The latest record with ``key``, or None. As ``Log.latest``."""
        return await self._transport.run(latest(self._transport, self.name, self._id, key))

    def table(self) -> AsyncTable:
        """The latest record of each key, at the end as it is when this is entered or first used. As
        ``Log.table``.
        """
        table = AsyncTable(self._transport, self.name, self._id)
        self._client._made.add(table)
        return table

    def cursor(self, consumer_id: str | Global, /) -> AsyncCursor:
        """A consumer seen from outside: claims nothing."""
        return AsyncCursor(self._transport, self.name, self._id, consumer_name(consumer_id))

    async def cursors(self) -> list[CursorInfo]:
        """All consumers of this log."""
        return await self._list(ListCursors(self._id), CursorInfo)

    async def _list(self, request: Control, of: type[InfoT]) -> list[InfoT]:
        return await self._transport.run(listing(self._transport, request, of))

    async def info(self) -> LogInfo:
        """The log as it stands now. NotFound: it was deleted."""
        return (await self._transport.call(GetLog(self._id), LogReply)).info

    async def wait_synced(self, offset: int, *, timeout: float | None = None) -> None:
        """Wait until every record below ``offset`` is on the disk, whatever the log's sync policy.

        TimedOut after ``timeout`` seconds; None waits as long as it takes.
        """
        await self._transport.run(syncing(self._transport, self._id, offset, timeout))

    async def alter(self, **options: Unpack[LogOptions]) -> LogInfo:
        """Change ``options``; those not named stay as they are. Errors as of ``Log.alter``."""
        request = AlterLog(self._id, checked_options(options))
        return (await self._transport.call(request, LogReply)).info

    async def trim(self, before: Whence) -> int:
        """Let whole segments below ``before`` go: the log's new first offset. As ``Log.trim``."""
        request = TrimLog(self._id, check_whence(before))
        return (await self._transport.call(request, Place)).offset

    async def delete(self) -> None:
        """Delete the log, its records and its consumers. Errors as of ``Log.delete``."""
        await self._transport.call(DeleteLog(self._id), Done)

    def __repr__(self) -> str:
        return f"<rlog_client.AsyncLog {self.name}>"


class AsyncCursor:
    """A consumer seen from outside. Made by ``AsyncLog.cursor``; NotFound where there is none."""

    def __init__(self, transport: AsyncTransport, log: str, log_id: int, consumer: str) -> None:
        self._transport = transport
        self._log = log
        self._log_id = log_id
        self._consumer = consumer

    async def info(self) -> CursorInfo:
        """The cursor as it stands now, its lag and its holder."""
        request = GetCursor(self._log_id, self._consumer)
        return (await self._transport.call(request, CursorReply)).info

    async def seek(self, whence: Whence, *, force: bool = False) -> tuple[int, int]:
        """Move it: the offsets before and after. Busy while it is held, without ``force``."""
        request = SeekCursor(self._log_id, self._consumer, check_whence(whence), force=force)
        moved = await self._transport.call(request, Moved)
        return moved.before, moved.after

    async def parked(self) -> list[Parked]:
        """The records that were put aside, by offset. As ``Cursor.parked``."""
        steps = listing_parked(self._transport, self._log, self._log_id, self._consumer)
        return await self._transport.run(steps)

    async def redrive(self, offsets: Iterable[int] | None = None) -> int:
        """Have parked records delivered again: how many are. As ``Cursor.redrive``."""
        steps = redriving(self._transport, self._log_id, self._consumer, offsets)
        return await self._transport.run(steps)

    async def evict(self, member: str | None = None) -> None:
        """End the claim now: its holder is Fenced, and no attempt is counted.

        ``member``: only if it is held under this name. NotFound: nobody holds it.
        """
        await self._transport.call(Evict(self._log_id, self._consumer, member), Done)

    async def resume(self) -> None:
        """Let a paused consumer go on, with the records that paused it first."""
        await self._transport.call(Resume(self._log_id, self._consumer), Done)

    async def delete(self) -> None:
        """Delete it. Busy while it is held."""
        await self._transport.call(DeleteCursor(self._log_id, self._consumer), Done)

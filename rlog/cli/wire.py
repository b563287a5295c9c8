"""What the command line asks of a server that the client has no public name for."""

from __future__ import annotations

import contextlib
import gc
from typing import TYPE_CHECKING, Final, NamedTuple

from rlog_client.batch import HEADER_BYTES, Header, InvalidBatch, parse_header
from rlog_client.client import checked_options
from rlog_client.errors import ConnectionLost, CorruptData, TimedOut
from rlog_client.model import LATEST, Whence, offset
from rlog_client.protocol import (
    AlterLog,
    Assigned,
    Damaged,
    Done,
    Listing,
    ListSegments,
    LogReply,
    OpenLog,
    Ping,
    Place,
    Resolve,
    SegmentInfo,
    Subscribe,
    TrimLog,
    listed,
    raised,
)
from rlog_client.session import LOAN_BYTES
from rlog_client.source import lend_ahead
from rlog_client.transport import until

from .whence import AtCursor

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from rlog_client import Client, Log, LogInfo, RlogError
    from rlog_client.protocol import Welcome
    from rlog_client.session import Chunk

    from .whence import Place as Whereabouts


COLLECT_AFTER: Final = 100_000  # containers that were made and not freed


@contextlib.contextmanager
def collecting_seldom() -> Iterator[None]:
    """For whoever handles lists of thousands of values: they are in no cycle, and the collector
    would walk over all of them each time that 700 small objects were made.
    """
    before = gc.get_threshold()
    gc.set_threshold(COLLECT_AFTER)
    try:
        yield
    finally:
        gc.set_threshold(*before)


def ping(client: Client) -> None:
    client._transport.call(Ping(), Done)


def address(client: Client) -> str:
    return str(client._transport.address)


def limits(client: Client) -> Welcome:
    return client._transport.session.limits


def segments(log: Log) -> list[SegmentInfo]:
    call = log._transport.request(ListSegments(log._id), Listing)
    log._transport.finish(call)
    return listed(call.payload, SegmentInfo)


def would_create(client: Client, name: str, options: Mapping[str, object]) -> LogInfo:
    """The log as it would be, with id 0, or as it is there."""
    request = OpenLog(name, True, checked_options(options), dry=True)
    return client._transport.call(request, LogReply).info


def would_alter(log: Log, options: Mapping[str, object]) -> LogInfo:
    """The log as it would be with these options, and trimmed by them."""
    request = AlterLog(log._id, checked_options(options), dry=True)
    return log._transport.call(request, LogReply).info


def would_trim(log: Log, before: Whence) -> int:
    """The first offset that a trim would leave."""
    return log._transport.call(TrimLog(log._id, before, dry=True), Place).offset


def whence_of(log: Log, place: Whereabouts) -> Whence:
    """A whence that needs no more looking up."""
    if isinstance(place, AtCursor):
        return offset(log.cursor(place.consumer_id).info().committed)
    return place


def resolve(log: Log, place: Whereabouts) -> Place:
    """The offset it means now, and the log's first and end."""
    return log._transport.call(Resolve(log._id, whence_of(log, place)), Place)


class Batch(NamedTuple):
    """A batch as it is stored, at ``position`` of ``file``. Its body is not checked yet."""

    file: str
    position: int
    header: Header
    raw: memoryview

    @property
    def body(self) -> memoryview:
        return self.raw[HEADER_BYTES:]


class Batches:
    """The whole batches of a log from ``begin`` up to ``end``, checked but for their bodies.

    What the server calls damaged is raised once, and the next call goes on behind it. While the
    caller works on what one loan brought the next one is open (see ``rlog_client.source``).
    """

    def __init__(self, log: Log, begin: int, end: int | None = None) -> None:
        """``end`` None: the end as it is now. OffsetOutOfRange."""
        self._log = log
        self._transport = log._transport
        self.end = resolve(log, LATEST).end if end is None else end
        self._place = begin
        self._subscribe()

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        while self._place < self.end:
            batch = self._next()
            if batch is not None:
                return batch
            self._fetch()
        self._transport.session.unsubscribe(self._subscription)
        raise StopIteration

    def _subscribe(self) -> None:
        transport = self._transport
        # On whatever connection there is: the last one may have been lost on the way.
        if not transport.wait(lambda: transport.session.greeted, until(transport.timeout)):
            raise ConnectionLost(str(transport.session.lost))
        control = Subscribe(self._log._id, offset(self._place))
        self._subscription = transport.session.subscribe(control)
        transport.finish(self._subscription.place)

    def _fetch(self) -> None:
        transport, subscription = self._transport, self._subscription
        if not subscription.ahead:
            transport.session.lend(subscription, LOAN_BYTES)
        patience = until(transport.timeout)
        if not transport.wait(lambda: not subscription.loan, patience):
            raise TimedOut(f"{transport.address} did not answer within {transport.timeout} s")
        if subscription.broken:
            self._subscribe()
        elif subscription.error is not None:
            raise subscription.error
        elif subscription.stock:
            lend_ahead(transport, subscription, LOAN_BYTES, self.end)

    def _next(self) -> Batch | None:
        stock = self._subscription.stock
        while stock:
            chunk = stock[0]
            assert not isinstance(chunk, Assigned), "this reads as nobody"
            if isinstance(chunk, Damaged):
                stock.popleft()
                self._place = chunk.next
                raise raised(chunk.error)
            if chunk.at >= len(chunk.payload):
                stock.popleft()
                continue
            batch = self._take(chunk)
            if batch is not None:
                return batch
        return None

    def _take(self, chunk: Chunk) -> Batch | None:
        at = chunk.at
        try:
            header = parse_header(chunk.payload, at)
        except InvalidBatch as error:
            self._place = self.end
            raise self._corrupt(chunk, self.end, str(error)) from None
        chunk.at += header.bytes
        if header.base > self._place:
            raise self._corrupt(chunk, header.base, "records are missing")
        if header.end <= self._place:
            return None
        self._place = header.end
        raw = chunk.payload[at : at + header.bytes]
        return Batch(chunk.file, chunk.position + at, header, raw)

    def _corrupt(self, chunk: Chunk, end: int, reason: str) -> RlogError:
        first, self._place = self._place, end
        return corrupt(self._log.name, first, end, chunk.file, chunk.position + chunk.at, reason)


def corrupt(log: str, first: int, end: int, file: str, position: int, reason: str) -> CorruptData:
    return CorruptData(
        f"log {log}, offsets {first} to {end} ({file}, position {position}): {reason}",
        log=log,
        first=first,
        end=end,
        file=file,
        position=position,
    )

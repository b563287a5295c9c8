"""The blocking client: what a user holds. Each of these talks through one ``Transport``."""

from __future__ import annotations

import os
import socket
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final, Self, TypeVar, Unpack, cast
from weakref import WeakSet

from .batch import HEADER_BYTES
from .blocking import Consumer, Member, Producer, Reader, Table
from .errors import InvalidRequest, RlogError, TimedOut, TooLarge
from .identity import AppendIds, Identity
from .model import (
    OFFSET_MAX,
    OLDEST,
    Bytes,
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
    Whence,
    consumer_name,
)
from .parked import listing_parked, redriving
from .producer import Columns, appending, checked, receipt_of
from .protocol import (
    AlterLog,
    Appended,
    CursorReply,
    DeleteCursor,
    DeleteLog,
    Done,
    Evict,
    GetCursor,
    GetLog,
    ListCursors,
    Listing,
    ListLogs,
    ListProducers,
    LogReply,
    Moved,
    OpenLog,
    Place,
    Resume,
    SeekCursor,
    TrimLog,
    WaitSynced,
    listed,
)
from .source import check_whence
from .steps import Wait, finishing, until
from .table import latest
from .transaction import TransactionSteps
from .transport import SocketTransport, parse_url

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from types import TracebackType

    from .model import Record
    from .protocol import Control, Welcome
    from .steps import Link, Steps
    from .transport import Transport

_OPTIONS: Final = frozenset(LogOptions.__annotations__)
_InfoT = TypeVar("_InfoT", LogInfo, CursorInfo, ProducerInfo)


def connect(url: str | None = None, *, timeout: float | None = 10.0, name: str = "") -> Client:
    """A client that is connected to the server at ``url``.

    ``url``: ``rlog://HOST[:PORT]`` or ``rlog+unix:///PATH``; by default $RLOG_ADDR, else
    ``rlog://127.0.0.1:7171``. ``timeout``: seconds for connecting and for each request; None waits
    for ever. ``name``: shown as the holder of what is claimed; by default host and process id.

    ConnectionLost: no server can be reached there. ValueError: no such URL.
    """
    check_timeout(timeout)
    return Client(SocketTransport(parse_url(url), name or default_name(), timeout))


def check_timeout(timeout: float | None) -> None:
    if timeout is not None and not timeout > 0:
        raise ValueError(f"timeout is more than 0 seconds, or None, not {timeout}")


def default_name() -> str:
    """Who this is, where nobody said."""
    return f"{socket.gethostname()}:{os.getpid()}"


class Client:
    """One connection to a server, and everything made from it: for one thread at a time."""

    def __init__(self, transport: Transport) -> None:
        """Made by ``connect``."""
        self._transport = transport
        self._made: WeakSet[Producer | Reader | Consumer | Table] = WeakSet()
        self._append_ids = AppendIds()

    def log(self, name: str, *, create: bool = False, **options: Unpack[LogOptions]) -> Log:
        """The log ``name``: NotFound when there is none, unless ``create``.

        AlreadyExists when it exists with other ``options`` than those given.
        """
        return Log(self, self._transport.call(opening(name, create, options), LogReply).info)

    def logs(self) -> list[LogInfo]:
        """All logs of the server."""
        return self._transport.run(listing(self._transport, ListLogs(), LogInfo))

    def transaction(self) -> Transaction:
        """Appends to any logs and commits of this client's consumers: all of it, or nothing."""
        return Transaction(self._transport)

    def clone(self) -> Client:
        """Another client of the same server, with its own connection and claims: one per thread."""
        return Client(self._transport.clone())

    def close(self) -> None:
        """Close what was made from this client, flush its producers, and end the connection."""
        if self._transport.closed:
            return  # before, or by a fork: it is the parent's
        failure: RlogError | None = None
        for each in list(self._made):
            try:
                each.close()
            except RlogError as error:
                failure = failure or error
        self._transport.close()
        if failure is not None:
            raise failure

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        try:
            self.close()
        except RlogError:
            if exception[0] is None:
                raise

    def __repr__(self) -> str:
        return f"<rlog_client.Client of {self._transport.address}>"


class Log:
    """One log of the server. Made by ``Client.log``."""

    def __init__(self, client: Client, info: LogInfo) -> None:
        self.name = info.name
        self._id = info.id
        self._client = client
        self._transport = client._transport

    def append(
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

        ``expect``: what the log's end has to be. ``expect_key``: what the last offset of this
        record's key has to be, -1 for none yet; for logs with ``key_index=True``. Else Conflict,
        with what is there: nothing was appended. A lost answer is asked for again, and is the
        first one, whatever was appended since. TooLarge. DiskFull: nothing was appended; where that
        is for ``blocking_minimum_retention``, it has waited for 5 s. OutcomeUnknown: the answer was
        lost, and the record may be in the log.
        """
        item = Item(value, key, headers, event_time_ns)
        columns = column_of(item, self._transport.session.limits)
        return self._append(columns, expect, expect_key).first

    def append_many(self, items: Iterable[Bytes | Item], *, expect: int | None = None) -> Receipt:
        """Append records as one batch, all or nothing. Errors as for ``append``.

        TooLarge when one record, or all together, are beyond the server's limits; ValueError when
        there are none.
        """
        columns = columns_of(items, self._transport.session.limits)
        return receipt_of(self._append(columns, expect))

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
    ) -> Producer:
        """Send many records, batched and pipelined; see ``Producer``.

        ``name``: under it, every record has a sequence number, which the server keeps for ever: it
        appends none twice. Whoever opens a name again fences the one before. ``exclusive``: nobody
        else may append to the log meanwhile; ``standby`` waits for the claim to end, for as long as
        that takes, ``takeover`` ends it. ``linger``: seconds. ``batch_bytes``: of a full batch.
        ``buffer_bytes``: unacknowledged.
        """
        producer = Producer(
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

    def producers(self) -> list[ProducerInfo]:
        """The log's producers with a name, and the one that owns it."""
        return self._transport.run(listing(self._transport, ListProducers(self._id), ProducerInfo))

    def reader(
        self,
        whence: Whence,
        *,
        until: Whence | None = None,
        block: bool = True,
        on_out_of_range: OutOfRange = "error",
    ) -> Reader:
        """Read from ``whence`` on, up to ``until`` (exclusive; LATEST is the end as it is now).

        ``block=False`` ends iterating at the end as it stood when it began. OffsetOutOfRange:
        ``whence`` is outside the log. Reading raises Gap when what comes next was trimmed,
        CorruptData when it is damaged (each once; what follows comes next), and NotFound when the
        log was deleted. ``on_out_of_range``: "oldest" or "latest" has a warning in the log in place
        of OffsetOutOfRange and Gap, goes on there, and counts in ``skipped_records`` what is left
        out; ``seek`` raises all the same.
        """
        reader = Reader(
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
    ) -> Consumer:
        """Read with a durable cursor on the server; see ``Consumer``.

        ``start``: where a cursor begins that does not exist yet. ``standby``: wait until whoever
        holds it lets go; the client's timeout does not count. ``takeover``: end their claim.
        ``autocommit``: a record is committed when the next is asked for. In a quick loop many share
        a commit: one leaves when none has in the last 5 ms, before every wait for records, and at
        the end of the loop; what is left after that leaves with the next call into the client.
        What was settled by hand, or put into a transaction, it leaves alone.
        ``hand_seconds``: how long a handler of ``process`` may have a record before the claim ends
        and an attempt is counted; None: for ever.

        ``shared``: one of many members, one of each client, who are given different records: at
        most one unsettled record of a key at a time, in order per key; those without a key in any
        order. Each is settled by itself, also by ``commit``. A consumer is shared for life or not.
        It has no ``standby``, no ``takeover`` and no ``seek``. Members come and go; what one had,
        others get when its claim ends, or when its connection is lost and they could use it.

        Its claim raises Busy while somebody else holds it, OffsetOutOfRange for a ``start`` outside
        the log, and NotFound when the log was deleted. After that its uses raise Fenced when the
        claim is lost, as by a deletion, and reading raises Gap and CorruptData as a reader's does;
        ``on_out_of_range`` is the same, too, and the next commit passes what is left out.
        """
        consumer = (Member if shared else Consumer)(
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

    def latest(self, key: Bytes) -> Record | None:
        """The latest record with ``key``: None if there is none, or it was trimmed.

        It is one that readers can see, and none before it is: under ``periodic`` and ``bytes`` what
        was appended is synced first. InvalidRequest: the log was made without ``key_index``.
        CorruptData: the record is damaged.
        """
        return self._transport.run(latest(self._transport, self.name, self._id, key))

    def table(self) -> Table:
        """The latest record of each key at the end as it is when this is first used.

        In order of their offsets; see ``Table``. Records without a key are not in it.
        InvalidRequest: the log was made without ``key_index``.
        """
        table = Table(self._transport, self.name, self._id)
        self._client._made.add(table)
        return table

    def cursor(self, consumer_id: str | Global, /) -> Cursor:
        """A consumer seen from outside: claims nothing."""
        return Cursor(self._transport, self.name, self._id, consumer_name(consumer_id))

    def cursors(self) -> list[CursorInfo]:
        """All consumers of this log."""
        return self._transport.run(listing(self._transport, ListCursors(self._id), CursorInfo))

    def info(self) -> LogInfo:
        """The log as it stands now. NotFound: it was deleted."""
        return self._transport.call(GetLog(self._id), LogReply).info

    def wait_synced(self, offset: int, *, timeout: float | None = None) -> None:
        """Wait until every record below ``offset`` is on the disk, whatever the log's sync policy.

        TimedOut after ``timeout`` seconds; None waits as long as it takes.
        """
        self._transport.run(syncing(self._transport, self._id, offset, timeout))

    def alter(self, **options: Unpack[LogOptions]) -> LogInfo:
        """Change ``options``; those not named stay as they are.

        InvalidRequest: a value out of range, another ``key_index``, or ``compact`` without it.
        NotFound: the log was deleted. OutcomeUnknown: the answer was lost, and they may have been
        changed.
        """
        return self._transport.call(AlterLog(self._id, checked_options(options)), LogReply).info

    def trim(self, before: Whence) -> int:
        """Let whole segments below ``before`` go: the log's new first offset.

        What a protected consumer has not committed stays. Parked records are copied into their
        consumers' own store, up to 8 MiB of each; beyond that they stay, and all that follows.
        OffsetOutOfRange: ``before`` is outside the log. NotFound: the log was deleted.
        OutcomeUnknown: the answer was lost, and they may be gone.
        """
        return self._transport.call(TrimLog(self._id, check_whence(before)), Place).offset

    def delete(self) -> None:
        """Delete the log, its records and its consumers.

        NotFound: it was deleted before. OutcomeUnknown: the answer was lost, and it may be gone.
        """
        self._transport.call(DeleteLog(self._id), Done)

    def _append(
        self, columns: Columns, expect: int | None, expect_key: int | None = None
    ) -> Appended:
        ids, transport = self._client._append_ids, self._transport
        return transport.run(appending(transport, ids, self._id, columns, expect, expect_key))

    def __repr__(self) -> str:
        return f"<rlog_client.Log {self.name}>"


class Cursor:
    """A consumer seen from outside. Made by ``Log.cursor``; NotFound where there is none."""

    def __init__(self, transport: Transport, log: str, log_id: int, consumer: str) -> None:
        self._transport = transport
        self._log = log
        self._log_id = log_id
        self._consumer = consumer

    def info(self) -> CursorInfo:
        """The cursor as it stands now, its lag and its holder."""
        return self._transport.call(GetCursor(self._log_id, self._consumer), CursorReply).info

    def seek(self, whence: Whence, *, force: bool = False) -> tuple[int, int]:
        """Move it: the offsets before and after. Busy while it is held, without ``force``."""
        request = SeekCursor(self._log_id, self._consumer, check_whence(whence), force=force)
        moved = self._transport.call(request, Moved)
        return moved.before, moved.after

    def parked(self) -> list[Parked]:
        """The records that were put aside, by offset.

        One that cannot be read any more is left out, with a warning in the log.
        """
        steps = listing_parked(self._transport, self._log, self._log_id, self._consumer)
        return self._transport.run(steps)

    def redrive(self, offsets: Iterable[int] | None = None) -> int:
        """Have parked records delivered again, all or these: how many are.

        They come lowest offset first, ahead of new ones, with attempt 1 and ``redriven``; the
        cursor does not move. Each stays listed until it is settled. Later records of its key have
        not waited for it.
        """
        return self._transport.run(
            redriving(self._transport, self._log_id, self._consumer, offsets)
        )

    def evict(self, member: str | None = None) -> None:
        """End the claim now: its holder is Fenced, and no attempt is counted.

        ``member``: only if it is held under this name. NotFound: nobody holds it.
        """
        self._transport.call(Evict(self._log_id, self._consumer, member), Done)

    def resume(self) -> None:
        """Let a paused consumer go on, with the records that paused it first."""
        self._transport.call(Resume(self._log_id, self._consumer), Done)

    def delete(self) -> None:
        """Delete it. Busy while it is held."""
        self._transport.call(DeleteCursor(self._log_id, self._consumer), Done)


class Transaction(TransactionSteps):
    """Appends and commits that are sent at the end of the ``with``, as one request: all of it is
    done, at one moment and in one frame, or nothing. Nothing is sent if the block raises.

        with client.transaction() as transaction:
            transaction.append("b", transformed(record.value))
            transaction.commit(consumer, record)

    ``receipts``: of each ``append``, in their order, once it is done. What the end of the ``with``
    raises was not done, whatever the error, but for OutcomeUnknown: then ``consumer.committed``
    asks the server, and tells. Conflict names the log whose expectation did not hold. NotFound,
    Fenced, Busy: a log has another exclusive producer. TooLarge: all together are limited as a
    batch is. DiskFull. The request is repeated after a lost connection, and done once.
    """

    _transport: Transport

    def append(
        self,
        log: str | Log,
        item: Bytes | Item,
        *,
        expect: int | None = None,
        expect_key: int | None = None,
    ) -> None:
        """Append a record. What goes to one log is one batch, in order.

        ``expect``, ``expect_key``: as of ``Log.append``, both judged by the log as it is before
        the transaction. A log of which this client has the exclusive producer is appended to under
        its claim.
        """
        self._add(where(self._transport, log, Log), item, expect, expect_key)

    def commit(self, consumer: Consumer, record: Record) -> None:
        """Commit everything up to and including ``record``; of a redriven record, this one.

        InvalidRequest: a consumer of another client, or a record of another log. Fenced.
        """
        if not isinstance(consumer, Consumer):
            raise TypeError(f"a Consumer commits, and not {consumer!r}")
        self._add_commit(consumer, record)

    def __enter__(self) -> Self:
        self._begin()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._ended = True
        if error is None:
            self._transport.run(self._send())


def where(link: Link, log: Any, of: type[Any]) -> str | int:
    """What a transaction's append names: a log's name, or the id of one that was opened."""
    if isinstance(log, of):
        if log._transport is not link:
            raise InvalidRequest(f"log {log.name} was opened by another client: give its name")
        return cast("int", log._id)
    if not isinstance(log, str):
        raise TypeError(f"a log, or its name, and not {log!r}")
    return log


def opening(name: str, create: bool, options: Mapping[str, object]) -> OpenLog:
    """The request for a log, of arguments that are checked."""
    if not isinstance(name, str):
        raise TypeError(f"a log's name is a str, not {type(name).__name__}")
    if options and not create:
        raise TypeError("options are for create=True; use alter() for a log that exists")
    return OpenLog(name, create, checked_options(options))


def checked_options(options: Mapping[str, object]) -> dict[str, Any]:
    for name in options:
        if name not in _OPTIONS:
            raise TypeError(f"{name!r} is no option of a log: {', '.join(sorted(_OPTIONS))}")
    checked = dict(options)
    if "protected" in checked:
        protected = checked["protected"]
        if isinstance(protected, str) or not isinstance(protected, Sequence):
            raise TypeError(f"protected is a sequence of consumer IDs, not {protected!r}")
        checked["protected"] = [consumer_name(each) for each in protected]
    return checked


def check_batch(size: int, limit: int, index: int | None) -> None:
    if size > limit:
        raise TooLarge(
            f"a batch of up to {size} bytes; the limit is {limit}",
            size=size,
            limit=limit,
            index=index,
        )


def column_of(item: Item, limits: Welcome) -> Columns:
    """A batch of one record."""
    item, bound = checked(item, None, limits.record_bytes_max)
    check_batch(HEADER_BYTES + bound, limits.batch_bytes_max, None)
    columns = Columns()
    columns.add(item)
    return columns


def columns_of(items: Iterable[Bytes | Item], limits: Welcome) -> Columns:
    """A batch of all of them."""
    columns = Columns()
    size = HEADER_BYTES
    for index, each in enumerate(items):
        item, bound = checked(each, index, limits.record_bytes_max)
        columns.add(item)
        size += bound
        check_batch(size, limits.batch_bytes_max, index)
    if not columns.values:
        raise ValueError("a batch is never empty: give at least one record")
    return columns


def syncing(link: Link, log_id: int, offset: int, timeout: float | None) -> Steps[None]:
    """Wait until every record below ``offset`` is on the disk."""
    if isinstance(offset, bool) or not isinstance(offset, int):
        raise TypeError(f"an offset is an int, not {type(offset).__name__}")
    if not 0 <= offset <= OFFSET_MAX:
        raise ValueError(f"an offset is between 0 and {OFFSET_MAX}, not {offset}")
    call = link.request(WaitSynced(log_id, offset), Done)
    if not (yield Wait(lambda: call.done, until(timeout))):
        call.fail(TimedOut(f"offset {offset} is not synced after {timeout} s"))
    call.get()


def listing(link: Link, request: Control, of: type[_InfoT]) -> Steps[list[_InfoT]]:
    """Ask for a list."""
    call = link.request(request, Listing)
    yield from finishing(link, call)
    return listed(call.payload, of)

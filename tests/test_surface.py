"""The names, parameters and defaults that programs are written against. A change here breaks them.

Each block stands as it does in the specification; what comes later is absent, not stubbed.
"""

from __future__ import annotations

import inspect
import re
import typing
from pathlib import Path
from types import FunctionType
from typing import Any, assert_type

import pytest

import rlog as rlog_server_side
import rlog_client as rlog
from rlog import testing
from rlog_client import errors
from rlog_client.sql import SqlCursor

SIGNATURES = {
    rlog.connect: "(url: str | None = None, *, timeout: float | None = 10.0, name: str = '')"
    " -> Client",
    rlog.offset: "(n: int) -> Whence",
    rlog.last: "(n: int) -> Whence",
    rlog.time: "(t: datetime | float) -> Whence",
    rlog.Client.log: "(self, name: str, *, create: bool = False, **options: Unpack[LogOptions])"
    " -> Log",
    rlog.Client.logs: "(self) -> list[LogInfo]",
    rlog.Client.transaction: "(self) -> Transaction",
    rlog.Transaction.append: "(self, log: str | Log, item: Bytes | Item, *,"
    " expect: int | None = None, expect_key: int | None = None) -> None",
    rlog.Transaction.commit: "(self, consumer: Consumer, record: Record) -> None",
    rlog.Client.clone: "(self) -> Client",
    rlog.Client.close: "(self) -> None",
    rlog.Log.append: "(self, value: Bytes, *, key: Bytes | None = None,"
    " headers: Mapping[str, bytes] | None = None, event_time_ns: int | None = None,"
    " expect: int | None = None, expect_key: int | None = None) -> int",
    rlog.Log.append_many: "(self, items: Iterable[Bytes | Item], *, expect: int | None = None)"
    " -> Receipt",
    rlog.Log.producer: "(self, *, name: str | None = None, exclusive: bool = False,"
    " standby: bool = False, takeover: bool = False, linger: float = 0.005,"
    " batch_bytes: int = 1048576, buffer_bytes: int = 33554432) -> Producer",
    rlog.Log.producers: "(self) -> list[ProducerInfo]",
    rlog.Log.reader: "(self, whence: Whence, *, until: Whence | None = None, block: bool = True,"
    " on_out_of_range: OutOfRange = error) -> Reader",
    rlog.Log.consumer: "(self, consumer_id: str | Global, /, *, start: Whence = "
    "Whence(kind='oldest', value=0), block: bool = True, shared: bool = False,"
    " standby: bool = False, takeover: bool = False, autocommit: bool = False,"
    " hand_seconds: float | None = None, on_out_of_range: OutOfRange = error) -> Consumer",
    rlog.Log.latest: "(self, key: Bytes) -> Record | None",
    rlog.Log.table: "(self) -> Table",
    rlog.Table.__next__: "(self) -> Record",
    rlog.Table.close: "(self) -> None",
    rlog.Log.cursor: "(self, consumer_id: str | Global, /) -> Cursor",
    rlog.Log.cursors: "(self) -> list[CursorInfo]",
    rlog.Log.info: "(self) -> LogInfo",
    rlog.Log.wait_synced: "(self, offset: int, *, timeout: float | None = None) -> None",
    rlog.Log.alter: "(self, **options: Unpack[LogOptions]) -> LogInfo",
    rlog.Log.trim: "(self, before: Whence) -> int",
    rlog.Log.delete: "(self) -> None",
    rlog.Source.__next__: "(self) -> Record",
    rlog.Source.__iter__: "(self) -> Iterator[Record]",
    rlog.Source.poll: "(self, max_records: int = 1000, *, timeout: float | None = 0.0)"
    " -> list[Record]",
    rlog.Source.process: "(self, handler: Handler, *, limit: int | None = None,"
    " block: bool | None = None, timeout: float | None = None, in_flight: int = 1,"
    " retry: Backoff | None = None, on_exhausted: OnExhausted = park) -> int",
    rlog.Source.seek: "(self, whence: Whence) -> int",
    rlog.Source.stop: "(self) -> None",
    rlog.Source.close: "(self) -> None",
    rlog.Consumer.commit: "(self, record: Record, *, wait: bool = True) -> None",
    rlog.Consumer.settle: "(self, record: Record, verdict: Verdict, *, wait: bool = True) -> None",
    rlog.Consumer.extend: "(self, record: Record) -> None",
    rlog.Cursor.info: "(self) -> CursorInfo",
    rlog.Cursor.parked: "(self) -> list[Parked]",
    rlog.Cursor.redrive: "(self, offsets: Iterable[int] | None = None) -> int",
    rlog.Cursor.evict: "(self, member: str | None = None) -> None",
    rlog.Cursor.resume: "(self) -> None",
    rlog.Cursor.seek: "(self, whence: Whence, *, force: bool = False) -> tuple[int, int]",
    rlog.Cursor.delete: "(self) -> None",
    rlog.Producer.send: "(self, value: Bytes, *, key: Bytes | None = None,"
    " headers: Mapping[str, bytes] | None = None, event_time_ns: int | None = None,"
    " sequence: int | None = None) -> Pending",
    rlog.Producer.extend: "(self, values: Iterable[Bytes]) -> None",
    rlog.Producer.flush: "(self, timeout: float | None = None) -> int",
    rlog.Producer.close: "(self) -> None",
    rlog.Pending.done: "(self) -> bool",
    rlog.Pending.result: "(self, timeout: float | None = None) -> int",
    rlog.Pending.receipt: "(self, timeout: float | None = None) -> Receipt",
    SqlCursor.__init__: "(self, connection: Any, name: str, log: Log) -> None",
    SqlCursor.whence: "(self) -> Whence",
    SqlCursor.advance: "(self, record: Record) -> None",
}

FIELDS: dict[type[Any], list[str]] = {
    rlog.Item: ["value", "key", "headers", "event_time_ns"],
    rlog.Record: [
        "log", "offset", "timestamp_ns", "key", "headers", "value", "event_time_ns", "attempt",
        "epoch", "redriven",
    ],
    rlog.Receipt: ["first", "end", "timestamp_ns", "level", "duplicate"],
    rlog.Commit: ["appends"],
    rlog.Retry: ["delay"],
    rlog.Skip: ["reason"],
    rlog.Stop: [],
    rlog.LogInfo: [
        "name", "id", "first", "end", "synced_end", "bytes", "options", "owner", "retention",
    ],
    rlog.CursorInfo: [
        "log", "id", "committed", "lag_records", "lag_bytes", "lag_seconds", "members",
        "parked", "paused", "held_back",
    ],
    rlog.Parked: ["record", "reason", "error", "attempts", "parked_ns"],
    rlog.Backoff: ["first", "cap", "max_attempts", "pause_after"],
    rlog.Park: ["reason"],
    rlog.ProducerInfo: ["name", "epoch", "last_sequence", "owner", "since_ns"],
    rlog.Member: ["name", "since_ns", "in_hand", "in_hand_since_ns"],
}  # fmt: skip

# class -> (code, retriable, fields, base)
ERRORS: dict[type[rlog.RlogError], tuple[int, bool, tuple[str, ...], type[Exception]]] = {
    rlog.RlogError: (1, False, (), Exception),
    rlog.ConnectionLost: (2, True, (), ConnectionError),
    rlog.TimedOut: (3, True, (), TimeoutError),
    rlog.NotFound: (4, False, (), rlog.RlogError),
    rlog.AlreadyExists: (5, False, ("differences",), rlog.RlogError),
    rlog.OffsetOutOfRange: (6, False, ("first", "end"), rlog.RlogError),
    rlog.Gap: (7, False, ("first", "end"), rlog.OffsetOutOfRange),
    rlog.Conflict: (8, False, ("end", "key_offset"), rlog.RlogError),
    rlog.Busy: (9, True, ("holder", "since_ns"), rlog.RlogError),
    rlog.Fenced: (10, False, ("epoch",), rlog.RlogError),
    rlog.Paused: (11, True, ("reason",), rlog.RlogError),
    rlog.TooLarge: (12, False, ("size", "limit", "index"), rlog.RlogError),
    rlog.InvalidRequest: (13, False, (), rlog.RlogError),
    rlog.Unsupported: (14, False, (), rlog.RlogError),
    rlog.AccessDenied: (15, False, (), rlog.RlogError),
    rlog.CorruptData: (
        16, False, ("log", "first", "end", "file", "position"), rlog.RlogError,
    ),
    rlog.StorageFailed: (17, False, (), rlog.RlogError),
    rlog.DiskFull: (18, True, (), rlog.RlogError),
    rlog.Overloaded: (19, True, (), rlog.RlogError),
    rlog.OutcomeUnknown: (20, False, ("producer", "sequence"), rlog.RlogError),
}  # fmt: skip

NAMES = {
    "COMMIT", "GLOBAL", "LATEST", "OLDEST", "PARK", "RETRY", "SKIP", "STOP", "AccessDenied",
    "AlreadyExists", "Backoff", "Busy", "Client", "Commit", "Conflict", "ConnectionLost",
    "Consumer", "CorruptData", "Cursor", "CursorInfo", "DiskFull", "Fenced", "Gap", "Global",
    "InvalidRequest", "Item", "Log", "LogInfo", "LogOptions", "Member", "NotFound",
    "OffsetOutOfRange", "OutOfRange", "OutcomeUnknown", "Overloaded", "Park", "Parked", "Paused",
    "Pending",
    "Producer", "ProducerInfo", "Reader",
    "Receipt", "Record", "Retry", "RlogError", "Skip", "Source", "Stop", "StorageFailed",
    "Table", "TimedOut", "TooLarge", "Transaction", "Unsupported", "Verdict", "Whence", "connect",
    "last",
    "offset", "time",
}  # fmt: skip


@pytest.mark.parametrize("function", SIGNATURES, ids=lambda function: function.__qualname__)
def test_a_signature_is_as_specified(function: Any) -> None:
    found = str(inspect.signature(function)).replace("'", "").replace('"', "")
    assert found == SIGNATURES[function].replace("'", "")


def test_nothing_public_is_missing_and_nothing_is_there_that_should_not_be() -> None:
    assert set(rlog.__all__) == NAMES
    for cls in (
        rlog.Client, rlog.Log, rlog.Reader, rlog.Consumer, rlog.Cursor, rlog.Producer, rlog.Pending,
        SqlCursor, rlog.Transaction, rlog.Table,
    ):  # fmt: skip
        public = {
            name
            for name, member in inspect.getmembers(cls)
            if not name.startswith("_") and callable(member)
        }
        pinned = {f.__name__ for f in SIGNATURES if f.__qualname__.partition(".")[2]}
        plumbing = {"tend", "forked", "disconnected"}  # what the transport calls
        assert public <= pinned | plumbing, cls


def test_what_is_held_is_a_context_manager() -> None:
    for cls in (rlog.Client, rlog.Producer, rlog.Reader, rlog.Consumer, rlog.Transaction):
        assert hasattr(cls, "__enter__")
        assert hasattr(cls, "__exit__")
    assert issubclass(rlog.Reader, rlog.Source)
    assert issubclass(rlog.Consumer, rlog.Source)


def test_attributes_are_there() -> None:
    for cls, name in (
        (rlog.Reader, "offset"),
        (rlog.Consumer, "epoch"),
        (rlog.Consumer, "committed"),
        (rlog.Producer, "epoch"),
        (rlog.Producer, "last_sequence"),
        (rlog.Table, "end"),
    ):
        assert isinstance(inspect.getattr_static(cls, name), property)


@pytest.mark.parametrize("cls", FIELDS, ids=lambda cls: cls.__name__)
def test_a_value_has_these_fields_and_is_frozen(cls: type[Any]) -> None:
    assert list(cls.__struct_fields__) == FIELDS[cls]
    assert cls.__struct_config__.frozen


def test_a_record_is_not_tracked_by_the_collector() -> None:
    assert not rlog.Record.__struct_config__.gc


def test_defaults_of_values() -> None:
    assert rlog.Item(b"v") == rlog.Item(value=b"v", key=None, headers=None, event_time_ns=None)
    assert rlog.Retry() == rlog.RETRY == rlog.Retry(delay=None)
    assert rlog.Skip() == rlog.SKIP == rlog.Skip(reason="")
    assert rlog.Commit() == rlog.COMMIT == rlog.Commit(appends=())
    assert rlog.Stop() == rlog.STOP
    assert typing.get_args(rlog.Verdict) == (
        rlog.Commit, rlog.Retry, rlog.Skip, rlog.Park, rlog.Stop
    )  # fmt: skip
    assert rlog.Park() == rlog.PARK == rlog.Park(reason="")
    assert typing.get_args(rlog.OutOfRange) == ("error", "oldest", "latest")
    assert rlog.Backoff() == rlog.Backoff(first=0.5, cap=60.0, max_attempts=5, pause_after=10)


def test_options_of_a_log() -> None:
    assert set(rlog.LogOptions.__annotations__) == {
        "sync", "file_roll_size", "max_total_bytes", "max_file_age", "blocking_minimum_retention",
        "protected", "key_index", "compact",
    }  # fmt: skip
    assert rlog.LogOptions.__total__ is False


@pytest.mark.parametrize("cls", ERRORS, ids=lambda cls: cls.__name__)
def test_an_error_has_its_code_fields_and_base(cls: type[rlog.RlogError]) -> None:
    code, retriable, fields, base = ERRORS[cls]
    assert (cls.code, cls.retriable, cls.fields) == (code, retriable, fields)
    assert issubclass(cls, rlog.RlogError)
    assert issubclass(cls, base)
    assert getattr(rlog, cls.__name__) is cls


def test_every_error_is_pinned() -> None:
    assert set(errors.BY_CODE.values()) == set(ERRORS)


def test_the_types_are_what_a_type_checker_sees() -> None:
    """Judged by mypy; it is never called."""

    def program(client: rlog.Client) -> None:
        assert_type(rlog.connect(), rlog.Client)
        assert_type(rlog.OLDEST, rlog.Whence)
        assert_type(rlog.LATEST, rlog.Whence)
        assert_type(rlog.GLOBAL, rlog.Global)
        log = client.log("l", create=True, sync="always", file_roll_size=1 << 20)
        assert_type(log, rlog.Log)
        assert_type(log.name, str)
        assert_type(log.append(b"v", key=b"k", headers={"h": b"v"}), int)
        receipt = log.append_many([b"v", rlog.Item(b"v")])
        assert_type(receipt, rlog.Receipt)
        assert_type(receipt.level, typing.Literal["written", "synced"])
        with log.producer() as producer:
            assert_type(producer, rlog.Producer)
            pending = producer.send(bytearray(b"v"))
            assert_type(pending.result(), int)
            assert_type(pending.receipt(1.0), rlog.Receipt)
            assert_type(producer.flush(), int)
            assert_type(producer.last_sequence, int)
            assert_type(producer.epoch, int)
        assert_type(log.producers(), list[rlog.ProducerInfo])
        with log.reader(rlog.last(1), until=rlog.LATEST, on_out_of_range="oldest") as reader:
            assert_type(reader, rlog.Reader)
            assert_type(reader.skipped_records, int)
            assert_type(reader.offset, int)
            for record in reader:
                assert_type(record, rlog.Record)
                assert_type(record.value, bytes)
                assert_type(record.key, bytes | None)
        with log.consumer(rlog.GLOBAL) as consumer:
            assert_type(consumer, rlog.Consumer)
            assert_type(consumer.epoch, int)
            assert_type(consumer.committed, int)
            assert_type(consumer.poll(), list[rlog.Record])
            assert_type(consumer.process(lambda record: rlog.Skip("why")), int)
            assert_type(consumer.process(lambda record: None), int)
            assert_type(consumer.process(lambda r: rlog.Commit([("b", b"v")])), int)
            assert_type(consumer.process(lambda r: rlog.Commit([("b", rlog.Item(b"v"))])), int)
            with client.transaction() as transaction:
                assert_type(transaction, rlog.Transaction)
                transaction.append("b", b"v", expect=1)
                transaction.append(log, rlog.Item(b"v", key=b"k"), expect_key=-1)
                transaction.commit(consumer, next(consumer))
            assert_type(transaction.receipts, list[rlog.Receipt])
            assert_type(consumer.seek(rlog.time(0.0)), int)
        with log.consumer("s", shared=True) as member:
            assert_type(member, rlog.Consumer)
            assert_type(member.process(lambda record: None, in_flight=64), int)
        cursor = log.cursor("c")
        assert_type(cursor.info().held_back, str | None)
        assert_type(cursor.seek(rlog.offset(1), force=True), tuple[int, int])
        assert_type(cursor.info().lag_seconds, float)
        assert_type(log.latest(b"k"), rlog.Record | None)
        for record in log.table():
            assert_type(record, rlog.Record)
        assert_type(log.cursors(), list[rlog.CursorInfo])
        assert_type(client.logs(), list[rlog.LogInfo])
        kept = log.alter(max_total_bytes=1 << 30, max_file_age=None, protected=["c", rlog.GLOBAL])
        assert_type(kept.retention, str | None)

    assert callable(program)


# --- the async client: the same names, so that the two cannot drift apart --------------------

ASYNC_PAIRS: dict[type[Any], type[Any]] = {
    rlog.Client: rlog.AsyncClient,
    rlog.Log: rlog.AsyncLog,
    rlog.Source: rlog.AsyncSource,
    rlog.Reader: rlog.AsyncReader,
    rlog.Consumer: rlog.AsyncConsumer,
    rlog.Cursor: rlog.AsyncCursor,
    rlog.Producer: rlog.AsyncProducer,
    rlog.Pending: rlog.AsyncPending,
    rlog.Transaction: rlog.AsyncTransaction,
    rlog.Table: rlog.AsyncTable,
}
DUNDERS = {
    "__iter__": "__aiter__", "__next__": "__anext__", "__enter__": "__aenter__",
    "__exit__": "__aexit__",
}  # fmt: skip
# What does not talk, or must not wait, is no coroutine there either.
NO_COROUTINES = {
    "clone", "producer", "reader", "consumer", "cursor", "done", "tend", "__aiter__", "transaction",
    "AsyncTransaction.append", "AsyncTransaction.commit", "table",
}  # fmt: skip


def public(cls: type[Any]) -> dict[str, Any]:
    return {
        name: inspect.getattr_static(cls, name)
        for name in dir(cls)
        if not name.startswith("_") or name in DUNDERS or name in DUNDERS.values()
    }


def as_async(signature: str) -> str:
    names = "Client|Log|Reader|Consumer|Cursor|Producer|Pending|Transaction|Handler|Iterator|Table"
    return re.sub(rf"\b({names})\b", r"Async\1", signature)


@pytest.mark.parametrize("blocking", ASYNC_PAIRS, ids=lambda cls: cls.__name__)
def test_the_async_client_has_the_same_names_and_arguments(blocking: type[Any]) -> None:
    theirs = public(ASYNC_PAIRS[blocking])
    for name, member in public(blocking).items():
        counterpart = theirs.pop(DUNDERS.get(name, name))
        if counterpart is member or not isinstance(member, property | FunctionType):
            continue  # what both inherit
        if isinstance(member, property):
            assert isinstance(counterpart, property), name
            member, counterpart = member.fget, counterpart.fget
        else:
            waits = NO_COROUTINES.isdisjoint({counterpart.__name__, counterpart.__qualname__})
            assert inspect.iscoroutinefunction(counterpart) is waits, name
        if name != "__exit__":
            expected = as_async(str(inspect.signature(member)))
            assert str(inspect.signature(counterpart)) == expected, name
    assert not theirs, "names that the blocking client does not have"


def test_connecting_takes_the_same_arguments() -> None:
    assert str(inspect.signature(rlog.connect_async)) == as_async(
        str(inspect.signature(rlog.connect))
    )


def test_the_async_names_are_there_when_they_are_asked_for() -> None:
    assert not set(rlog.ASYNC) & set(rlog.__all__)
    assert set(rlog.ASYNC) <= set(dir(rlog))
    assert {cls.__name__ for cls in ASYNC_PAIRS.values()} == set(rlog.ASYNC) - {"connect_async"}
    with pytest.raises(AttributeError, match="no attribute 'AsyncTypo'"):
        _ = rlog.AsyncTypo


def test_the_async_types_are_what_a_type_checker_sees() -> None:
    """Judged by mypy; it is never called."""

    async def program() -> None:
        async with rlog.connect_async() as client:
            assert_type(client, rlog.AsyncClient)
            assert_type(client.clone(), rlog.AsyncClient)
            log = await client.log("l", create=True, sync="always")
            assert_type(log, rlog.AsyncLog)
            assert_type(await log.append(b"v"), int)
            assert_type(await log.append_many([b"v"]), rlog.Receipt)
            async with log.producer() as producer:
                assert_type(producer, rlog.AsyncProducer)
                pending = await producer.send(b"v")
                assert_type(pending, rlog.AsyncPending)
                assert_type(await pending, int)
                assert_type(await pending.receipt(1.0), rlog.Receipt)
            async with log.reader(rlog.OLDEST) as reader:
                assert_type(reader, rlog.AsyncReader)
                async for record in reader:
                    assert_type(record, rlog.Record)

            async def handler(record: rlog.Record) -> rlog.Skip | None:
                return rlog.Skip("why") if record.key else None

            async with log.consumer("c") as consumer:
                assert_type(consumer, rlog.AsyncConsumer)
                assert_type(await consumer.process(handler), int)
                assert_type(await anext(consumer), rlog.Record)
                async with client.transaction() as transaction:
                    assert_type(transaction, rlog.AsyncTransaction)
                    transaction.append(log, b"v")
                    transaction.commit(consumer, await anext(consumer))
            async for record in log.table():
                assert_type(record, rlog.Record)
            assert_type(await log.latest(b"k"), rlog.Record | None)
            assert_type(await log.cursor("c").seek(rlog.OLDEST), tuple[int, int])

    assert callable(program)


# --- the testing kit -------------------------------------------------------------------------

TESTING: dict[Any, str] = {
    testing.Server: "(directory: str | os.PathLike[str] | None = None, *, unix: bool = False,"
    " sync: str = always, journal_file_size: int = 4194304, fsync: bool = True) -> None",
    testing.Server.connect: "(self, *, timeout: float | None = 10.0, name: str = ) -> Client",
    testing.Server.connect_async: "(self, *, timeout: float | None = 10.0, name: str = )"
    " -> AsyncClient",
    testing.Server.start: "(self) -> Self",
    testing.Server.stop: "(self) -> None",
    testing.Server.restart: "(self) -> None",
    testing.Server.crash: "(self) -> None",
    testing.Server.close: "(self) -> None",
    testing.Server.lose_reply: "(self, to: Reply | None = None, *, log: str | None = None,"
    " times: int | None = 1) -> Fault",
    testing.Server.cut: "(self, name: str | None = None) -> int",
    testing.Server.lapse: "(self, log: str, consumer: str | Global) -> None",
    testing.Server.full_disk: "(self) -> Fault",
    testing.Server.fail_sync: "(self, *, lost: bool = False) -> Fault",
    testing.Server.pause: "(self) -> Iterator[None]",
    testing.Server.advance: "(self, seconds: float) -> None",
    testing.Fault.cancel: "(self) -> None",
}


@pytest.mark.parametrize("function", TESTING, ids=lambda function: function.__qualname__)
def test_a_signature_of_the_testing_kit_is_pinned(function: Any) -> None:
    assert str(inspect.signature(function)).replace("'", "") == TESTING[function]


def test_nothing_of_the_testing_kit_is_missing_or_unpinned() -> None:
    assert set(testing.__all__) == {"Fault", "Reply", "Server", "ServerFailed"}
    assert type(testing.rlog_server).__name__ == "FixtureFunctionDefinition"
    for cls, properties in (
        (testing.Server, {"url", "directory", "running"}),
        (testing.Fault, {"spent"}),
    ):
        pinned = {f.__name__ for f in TESTING if f.__qualname__.startswith(f"{cls.__name__}.")}
        assert {name for name in vars(cls) if not name.startswith("_")} == pinned | properties
    assert set(typing.get_args(testing.Reply)) == {
        "append", "commit", "verdict", "take", "claim", "release", "producer", "create", "alter",
        "trim", "delete", "seek", "evict", "redrive", "resume", "transact",
    }  # fmt: skip


def test_the_types_of_the_testing_kit_are_what_a_type_checker_sees() -> None:
    """Judged by mypy; it is never called."""

    def program() -> None:
        with rlog_server_side.testing.Server() as server:
            assert_type(server, testing.Server)
            assert_type(server.url, str)
            assert_type(server.directory, Path)
            assert_type(server.connect(), rlog.Client)
            assert_type(server.connect_async(), rlog.AsyncClient)
            with server.lose_reply("append") as fault:
                assert_type(fault, testing.Fault)
                assert_type(fault.struck, int)
            with server.pause() as nothing:
                assert_type(nothing, None)

    assert callable(program)

"""The client of rlog, an append-only log server with consumer groups.

    import rlog_client as rlog

    with rlog.connect("rlog://127.0.0.1:7171") as client:
        orders = client.log("orders", create=True)
        orders.append(b"v", key=b"k", headers={"trace": b"1"})
        with orders.producer() as producer:
            for line in source:
                producer.send(line)
        for record in orders.reader(rlog.OLDEST, block=False):
            print(record.offset, record.value)
        done = orders.consumer("billing").process(handle, limit=5, block=False)

The same for trio and asyncio: ``async with rlog.connect_async(...) as client``.

A client and all that is made from it belong to one thread at a time. Seconds are floats, ``*_ns``
are UTC nanoseconds. Errors are subclasses of ``RlogError``; misuse is a RuntimeError.
"""

from typing import TYPE_CHECKING, Any, Final

from .blocking import Consumer, Pending, Producer, Reader, Source, Table
from .client import Client, Cursor, Log, Transaction, connect
from .errors import (
    AccessDenied,
    AlreadyExists,
    Busy,
    Conflict,
    ConnectionLost,
    CorruptData,
    DiskFull,
    Fenced,
    Gap,
    InvalidRequest,
    NotFound,
    OffsetOutOfRange,
    OutcomeUnknown,
    Overloaded,
    Paused,
    RlogError,
    StorageFailed,
    TimedOut,
    TooLarge,
    Unsupported,
)
from .model import (
    COMMIT,
    GLOBAL,
    LATEST,
    OLDEST,
    PARK,
    RETRY,
    SKIP,
    STOP,
    Backoff,
    Commit,
    CursorInfo,
    Global,
    Item,
    LogInfo,
    LogOptions,
    Member,
    OutOfRange,
    Park,
    Parked,
    ProducerInfo,
    Receipt,
    Record,
    Retry,
    Skip,
    Stop,
    Verdict,
    Whence,
    last,
    offset,
    time,
)

if TYPE_CHECKING:
    from .aio import AsyncClient as AsyncClient
    from .aio import AsyncConsumer as AsyncConsumer
    from .aio import AsyncCursor as AsyncCursor
    from .aio import AsyncLog as AsyncLog
    from .aio import AsyncPending as AsyncPending
    from .aio import AsyncProducer as AsyncProducer
    from .aio import AsyncReader as AsyncReader
    from .aio import AsyncSource as AsyncSource
    from .aio import AsyncTable as AsyncTable
    from .aio import AsyncTransaction as AsyncTransaction
    from .aio import connect_async as connect_async

# Written here, as in pyproject.toml: reading the installed metadata takes longer than all the rest.
__version__ = "0.1.0.dev0"

__all__ = [
    "COMMIT",
    "GLOBAL",
    "LATEST",
    "OLDEST",
    "PARK",
    "RETRY",
    "SKIP",
    "STOP",
    "AccessDenied",
    "AlreadyExists",
    "Backoff",
    "Busy",
    "Client",
    "Commit",
    "Conflict",
    "ConnectionLost",
    "Consumer",
    "CorruptData",
    "Cursor",
    "CursorInfo",
    "DiskFull",
    "Fenced",
    "Gap",
    "Global",
    "InvalidRequest",
    "Item",
    "Log",
    "LogInfo",
    "LogOptions",
    "Member",
    "NotFound",
    "OffsetOutOfRange",
    "OutOfRange",
    "OutcomeUnknown",
    "Overloaded",
    "Park",
    "Parked",
    "Paused",
    "Pending",
    "Producer",
    "ProducerInfo",
    "Reader",
    "Receipt",
    "Record",
    "Retry",
    "RlogError",
    "Skip",
    "Source",
    "Stop",
    "StorageFailed",
    "Table",
    "TimedOut",
    "TooLarge",
    "Transaction",
    "Unsupported",
    "Verdict",
    "Whence",
    "connect",
    "last",
    "offset",
    "time",
]

# Not in __all__: ``from rlog_client import *`` is not to load the async client, nor anyio with it.
ASYNC: Final = (
    "AsyncClient",
    "AsyncConsumer",
    "AsyncCursor",
    "AsyncLog",
    "AsyncPending",
    "AsyncProducer",
    "AsyncReader",
    "AsyncSource",
    "AsyncTable",
    "AsyncTransaction",
    "connect_async",
)


def __getattr__(name: str) -> Any:
    # Loaded when it is asked for: a blocking program needs none of it.
    if name not in ASYNC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from . import aio

    return getattr(aio, name)


def __dir__() -> list[str]:
    return [*globals(), *ASYNC]

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

A client and all that is made from it belong to one thread at a time. Seconds are floats, ``*_ns``
are UTC nanoseconds. Errors are subclasses of ``RlogError``; misuse is a RuntimeError.
"""

from .client import Client, Cursor, Log, connect
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
    RETRY,
    SKIP,
    STOP,
    Commit,
    CursorInfo,
    Global,
    Item,
    LogInfo,
    LogOptions,
    Member,
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
from .producer import Pending, Producer
from .source import Consumer, Reader, Source

# Written here, as in pyproject.toml: reading the installed metadata takes longer than all the rest.
__version__ = "0.1.0.dev0"

__all__ = [
    "COMMIT",
    "GLOBAL",
    "LATEST",
    "OLDEST",
    "RETRY",
    "SKIP",
    "STOP",
    "AccessDenied",
    "AlreadyExists",
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
    "OutcomeUnknown",
    "Overloaded",
    "Paused",
    "Pending",
    "Producer",
    "Reader",
    "Receipt",
    "Record",
    "Retry",
    "RlogError",
    "Skip",
    "Source",
    "Stop",
    "StorageFailed",
    "TimedOut",
    "TooLarge",
    "Unsupported",
    "Verdict",
    "Whence",
    "connect",
    "last",
    "offset",
    "time",
]

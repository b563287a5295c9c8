"""Every error that a user of rlog can meet: typed, numbered, and the same class on both sides of
the wire.

An error travels as its ``code``, its text and its declared fields, and is raised again at the
client as the class of that code. ``retriable`` says whether the same request can succeed later
without anybody changing it. Misuse of the library (closed objects, a wrong thread, a forked
process) is ``RuntimeError``, and a value of the wrong type is ``TypeError``: neither is here.
"""

from __future__ import annotations

from typing import Any, ClassVar


class RlogError(Exception):
    """Base of all.

    ``code`` is stable across versions; ``retriable``: the same request may succeed later.
    """

    code: ClassVar[int] = 1
    retriable: ClassVar[bool] = False
    fields: ClassVar[tuple[str, ...]] = ()

    def __init__(self, message: str = "", **details: Any) -> None:
        super().__init__(message)
        for name in self.fields:
            setattr(self, name, details.pop(name, None))
        if details:
            raise TypeError(f"{type(self).__name__} has no field {next(iter(details))!r}")

    def details(self) -> dict[str, Any]:
        """The declared fields and their values, as they travel."""
        return {name: getattr(self, name) for name in self.fields}


class ConnectionLost(RlogError, ConnectionError):
    """The server cannot be reached, or the connection broke before the answer came."""

    code = 2
    retriable = True


class TimedOut(RlogError, TimeoutError):
    """A wait ended by its own timeout. Nothing was undone: what was pending still is."""

    code = 3
    retriable = True


class NotFound(RlogError):
    """No such log, or no such consumer."""

    code = 4


class AlreadyExists(RlogError):
    """The log exists with other options; ``differences``: option -> [there, asked]."""

    code = 5
    fields = ("differences",)
    differences: dict[str, Any]


class OffsetOutOfRange(RlogError):
    """No such place: the log holds the offsets ``first`` (inclusive) to ``end`` (exclusive)."""

    code = 6
    fields = ("first", "end")
    first: int
    end: int


class Gap(OffsetOutOfRange):
    """Retention removed the offsets ``first`` to ``end`` (exclusive) before they were read."""

    code = 7


class Conflict(RlogError):
    """An expectation did not hold: the log's ``end`` is, or the key's last offset
    (``key_offset``) is, another.
    """

    code = 8
    fields = ("end", "key_offset")
    end: int
    key_offset: int | None


class Busy(RlogError):
    """Somebody else holds it: ``holder`` by name, since ``since_ns`` (UTC)."""

    code = 9
    retriable = True
    fields = ("holder", "since_ns")
    holder: str
    since_ns: int


class Fenced(RlogError):
    """Work under an old ``epoch``: the claim has gone to somebody else, or the cursor was moved."""

    code = 10
    fields = ("epoch",)
    epoch: int


class Paused(RlogError):
    """The consumer is paused, and ``reason`` says why."""

    code = 11
    retriable = True
    fields = ("reason",)
    reason: str


class TooLarge(RlogError):
    """``size`` bytes are more than ``limit``; ``index``: which item of the call, if there were
    several.
    """

    code = 12
    fields = ("size", "limit", "index")
    size: int
    limit: int
    index: int | None


class InvalidRequest(RlogError):
    """The request makes no sense: a bad name, an option out of range, a commit beyond what was
    delivered.
    """

    code = 13


class Unsupported(RlogError):
    """The other side does not know this: another protocol version, message or codec."""

    code = 14


class AccessDenied(RlogError):
    """Not allowed to do that."""

    code = 15


class CorruptData(RlogError):
    """The offsets ``first`` to ``end`` (exclusive) of ``log`` are damaged where they are stored.

    ``file`` is relative to the data directory, ``position`` in bytes. A reader raises it once and
    then stands at ``end``: going on is the caller's decision.
    """

    code = 16
    fields = ("log", "first", "end", "file", "position")
    log: str
    first: int
    end: int
    file: str | None
    position: int | None


class StorageFailed(RlogError):
    """The server's disk failed; it writes no more until it is started again.

    Reads of durable data go on.
    """

    code = 17


class DiskFull(RlogError):
    """No space for this append.

    Nothing was lost, and appends succeed again as soon as there is space.
    """

    code = 18
    retriable = True


class Overloaded(RlogError):
    """The server is at one of its limits (connections, memory); try again later."""

    code = 19
    retriable = True


class OutcomeUnknown(RlogError):
    """It may have been done or not: the answer was lost, or the server's disk failed.

    ``producer`` and ``sequence`` name the batch of an append; they are 0 for other requests.
    """

    code = 20
    fields = ("producer", "sequence")
    producer: int
    sequence: int


BY_CODE: dict[int, type[RlogError]] = {
    cls.code: cls
    for cls in (
        RlogError, ConnectionLost, TimedOut, NotFound, AlreadyExists, OffsetOutOfRange, Gap,
        Conflict,
        Busy, Fenced, Paused, TooLarge, InvalidRequest, Unsupported, AccessDenied, CorruptData,
        StorageFailed, DiskFull, Overloaded, OutcomeUnknown,
    )
}  # fmt: skip


def from_wire(code: int, message: str, details: dict[str, Any]) -> RlogError:
    """The error that ``code`` names; fields that this version does not know are dropped."""
    cls = BY_CODE.get(code, RlogError)
    return cls(message, **{k: v for k, v in details.items() if k in cls.fields})

"""The words of rlog as values: records, places to start from, verdicts, and what is told about
logs and cursors.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from datetime import datetime
from types import MappingProxyType
from typing import Any, Final, Literal, TypeAlias, TypedDict, final

from msgspec import Struct

from .errors import InvalidRequest

Bytes: TypeAlias = bytes | bytearray | memoryview
NO_HEADERS: Final[Mapping[str, bytes]] = MappingProxyType({})
OFFSET_MAX: Final = 2**63 - 1


class Item(Struct, frozen=True):
    """One record on its way in. ``event_time_ns``: UTC nanoseconds, the application's own time."""

    value: Bytes
    key: Bytes | None = None
    headers: Mapping[str, bytes] | None = None
    event_time_ns: int | None = None


class Record(Struct, frozen=True, gc=False):
    """One record of a log.

    ``offset``: its number in the log, dense from 0. ``timestamp_ns``: UTC nanoseconds, when the
    server appended it. ``attempt``: 1 for a first delivery. ``epoch``: of the claim it was
    delivered under, 0 for a reader.
    """

    # gc=False: a record holds no reference that could lead back to it, and a batch of ten
    # thousand tracked objects would set off the collector again and again.
    log: str
    offset: int
    timestamp_ns: int
    key: bytes | None
    headers: Mapping[str, bytes]
    value: bytes
    event_time_ns: int | None = None
    attempt: int = 1
    epoch: int = 0
    redriven: bool = False


Level: TypeAlias = Literal["written", "synced"]


class Receipt(Struct, frozen=True):
    """What became of a batch: offsets ``first`` to ``end`` (exclusive), and how durable it was
    when answered.
    """

    first: int
    end: int
    timestamp_ns: int
    level: Level
    duplicate: bool = False


@final
class Whence(Struct, frozen=True, array_like=True):
    """Where to start reading. Opaque: made by OLDEST, LATEST, ``offset``, ``last`` and ``time``."""

    kind: Literal["oldest", "latest", "offset", "last", "time"]
    value: int = 0


OLDEST: Final = Whence("oldest")
LATEST: Final = Whence("latest")


def _whole(n: int, what: str) -> int:
    if isinstance(n, bool) or not isinstance(n, int):
        raise TypeError(f"{what} is an int, not {type(n).__name__}")
    if not 0 <= n <= OFFSET_MAX:
        raise InvalidRequest(f"{what} is between 0 and {OFFSET_MAX}, not {n}")
    return n


def offset(n: int) -> Whence:
    """The record with offset ``n``."""
    return Whence("offset", _whole(n, "an offset"))


def last(n: int) -> Whence:
    """``n`` records before the end, or the oldest there is."""
    return Whence("last", _whole(n, "a number of records"))


def time(t: datetime | float) -> Whence:
    """The first record appended at or after ``t``: an aware datetime, or seconds since 1970 UTC.

    A naive datetime is a ValueError: it names a different moment on every machine.
    """
    if isinstance(t, datetime):
        if t.tzinfo is None:
            raise ValueError("a time without a zone is ambiguous: give an aware datetime")
        # Whole microseconds first: a float of nanoseconds since 1970 is off by a hundred of them.
        seconds, micros = divmod((t - _EPOCH) // _MICROSECOND, 1_000_000)
        nanoseconds = seconds * 1_000_000_000 + micros * 1000
    elif isinstance(t, (int, float)) and not isinstance(t, bool):
        if not math.isfinite(t):
            raise ValueError(f"not a time: {t}")
        nanoseconds = t * 1_000_000_000 if isinstance(t, int) else round(t * 1e9)
    else:
        raise TypeError(f"a time is a datetime or seconds, not {type(t).__name__}")
    return Whence("time", min(max(nanoseconds, 0), OFFSET_MAX))


@final
class Global:
    """The log's own cursor, one per log. Opaque: use GLOBAL."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "GLOBAL"


GLOBAL: Final = Global()
GLOBAL_ID: Final = "@global"  # its name on the wire, on disk and on the command line
PRODUCER_ID: Final = "@producer"  # under which a log itself is claimed, by an exclusive producer


def consumer_name(consumer_id: str | Global) -> str:
    """The checked name of a consumer: 1 to 255 bytes of UTF-8, no control characters, no leading
    ``@``.
    """
    if isinstance(consumer_id, Global):
        return GLOBAL_ID
    if not isinstance(consumer_id, str):
        raise TypeError(f"a consumer ID is a str or GLOBAL, not {type(consumer_id).__name__}")
    check_consumer(consumer_id)
    return consumer_id


def check_consumer(name: str, what: str = "a consumer ID") -> None:
    """Raise InvalidRequest unless ``name`` is a consumer's; GLOBAL_ID itself is judged by the
    caller.
    """
    try:
        size = len(name.encode())
    except UnicodeEncodeError:
        raise InvalidRequest(f"{what} is UTF-8") from None
    if not 1 <= size <= 255:
        raise InvalidRequest(f"{what} has 1 to 255 bytes, not {size}")
    if name.startswith("@"):
        raise InvalidRequest(f"{what} does not begin with '@': {name!r}")
    if any(ord(c) < 32 or 127 <= ord(c) < 160 for c in name):
        raise InvalidRequest(f"{what} has no control characters: {name!r}")


# What to do where a log has no such offset (any more): raise, or go on at one of its ends.
OutOfRange: TypeAlias = Literal["error", "oldest", "latest"]

SECONDS_MAX: Final = 366 * 86_400.0


def checked_seconds(seconds: Any) -> float:
    """``seconds`` as the server takes them: 0 to a year."""
    if isinstance(seconds, bool) or not isinstance(seconds, int | float):
        raise TypeError(f"seconds are a number, not {seconds!r}")
    if not 0 <= seconds <= SECONDS_MAX:
        raise ValueError(f"seconds are 0 to {SECONDS_MAX:.0f}, not {seconds}")
    return float(seconds)


def _check_text(reason: Any) -> None:
    if not isinstance(reason, str):
        raise TypeError(f"a reason is a str, not {type(reason).__name__}")


class Commit(Struct, frozen=True):
    """Done with this record.

    ``appends``: (log, value or Item), appended in the same transaction: all of it is done, or
    nothing.
    """

    appends: Sequence[tuple[str, Bytes | Item]] = ()


class Retry(Struct, frozen=True):
    """Again, after ``delay`` seconds; without one, after a pause that doubles from 0.5 s to 60
    s.
    """

    delay: float | None = None

    def __post_init__(self) -> None:
        if self.delay is not None:
            checked_seconds(self.delay)


class Skip(Struct, frozen=True):
    """Done with this record without having handled it; ``reason`` goes to the log."""

    reason: str = ""

    def __post_init__(self) -> None:
        _check_text(self.reason)


class Park(Struct, frozen=True):
    """Done with this record for now: it stays where it is, and is listed by ``Cursor.parked``."""

    reason: str = ""

    def __post_init__(self) -> None:
        _check_text(self.reason)


class Stop(Struct, frozen=True):
    """Leave this record uncommitted, and end ``process``."""


Verdict: TypeAlias = Commit | Retry | Skip | Park | Stop
COMMIT: Final = Commit()
RETRY: Final = Retry()
SKIP: Final = Skip()
PARK: Final = Park()
STOP: Final = Stop()


class Backoff(Struct, frozen=True):
    """How ``process`` tries a record again that failed.

    The pauses double from ``first`` seconds up to ``cap``, with jitter. A record that failed
    ``max_attempts`` times is exhausted (None: never). ``pause_after`` records in a row exhausted by
    the same exception class pause the consumer (None: never).
    """

    first: float = 0.5
    cap: float = 60.0
    max_attempts: int | None = 5
    pause_after: int | None = 10

    def __post_init__(self) -> None:
        if not 0 < self.first <= self.cap:
            raise ValueError(f"0 < first <= cap, not {self.first} and {self.cap}")
        for name in ("max_attempts", "pause_after"):
            if (count := getattr(self, name)) is not None and count < 1:
                raise ValueError(f"{name} is at least 1, or None, not {count}")


class LogOptions(TypedDict, total=False):
    """What a log can be created or altered with.

    ``sync``: "always" (the default) | "periodic:1s" | "bytes:1MiB" | "never".
    ``file_roll_size``: bytes of a segment file, 64 MiB by default. ``key_index``: the server knows
    the last offset of every key, which costs it memory per key; only for a log that is new.
    ``compact``: records that a later one of their key supersedes go, after a while; needs
    ``key_index``.

    Retention; None, the default, keeps everything, and what goes goes by whole segments, the oldest
    first. ``max_total_bytes``: more than that the log does not hold, but for one larger batch.
    ``max_file_age``: a record is gone when it is so many seconds old, or up to a quarter more.
    ``blocking_minimum_retention``: rather than remove what is younger than so many seconds for
    ``max_total_bytes``, appends wait, and after 5 s are refused (DiskFull). ``protected``: no trim
    passes what these consumers have not committed, nor anything as long as they have no cursor;
    whose cursor is deleted is protected no more.
    """

    sync: str
    file_roll_size: int
    max_total_bytes: int | None
    max_file_age: float | None
    blocking_minimum_retention: float | None
    protected: Sequence[str | Global]
    key_index: bool
    compact: bool


class LogInfo(Struct, frozen=True):
    """A log as it stands: offsets ``first`` to ``end`` (exclusive), of which those below
    ``synced_end`` are synced.

    ``retention``: why it is not trimmed further though it is due, if that is so.
    """

    name: str
    id: int
    first: int
    end: int
    synced_end: int
    bytes: int
    options: dict[str, Any]
    owner: str | None = None
    retention: str | None = None


class Member(Struct, frozen=True):
    """One holder of a consumer, and since when (UTC nanoseconds).

    ``in_hand``: the offset of the record that it began, and since when it has it, if it has one.
    """

    name: str
    since_ns: int
    in_hand: int | None = None
    in_hand_since_ns: int | None = None


class CursorInfo(Struct, frozen=True):
    """A consumer as it stands.

    ``committed``: the offset after the last committed one; of a shared consumer, the first that is
    not settled. Lag counts to the log's end. ``parked``: how many records are. ``paused``: why, if
    it is. ``held_back``: why a shared consumer's members are given nothing new, if so.
    """

    log: str
    id: str
    committed: int
    lag_records: int
    lag_bytes: int
    lag_seconds: float
    members: Sequence[Member]
    parked: int = 0
    paused: str | None = None
    held_back: str | None = None


class Parked(Struct, frozen=True):
    """A record that was put aside. ``attempts``: failed ones. ``parked_ns``: UTC nanoseconds."""

    record: Record
    reason: str
    error: str
    attempts: int
    parked_ns: int


class ProducerInfo(Struct, frozen=True):
    """A named producer of a log, or the one that owns it.

    ``last_sequence``: of the last record accepted, -1 for none. ``owner``: who holds the log by it.
    """

    name: str | None
    epoch: int
    last_sequence: int
    owner: str | None
    since_ns: int | None


def to_bytes(value: Any, what: str = "a value") -> bytes:
    """``value`` as bytes that nobody can change any more; TypeError for anything that is not
    bytes.
    """
    if type(value) is bytes:
        return value
    if isinstance(value, (bytes, bytearray, memoryview)):
        return bytes(value)
    hint = ": use .encode()" if isinstance(value, str) else ""
    raise TypeError(f"{what} is bytes, not {type(value).__name__}{hint}")


def to_headers(headers: Any) -> dict[str, bytes]:
    """A checked copy of a header map: str -> bytes."""
    if not isinstance(headers, Mapping):
        raise TypeError(f"headers are a mapping of str to bytes, not {type(headers).__name__}")
    checked: dict[str, bytes] = {}
    for name, value in headers.items():
        if not isinstance(name, str):
            raise TypeError(f"a header's name is a str, not {type(name).__name__}")
        checked[name] = to_bytes(value, f"header {name!r}")
    return checked


def to_time_ns(value: Any) -> int:
    """A checked event time: int nanoseconds that fit 64 bits with sign."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"event_time_ns is an int, not {type(value).__name__}")
    if not -(2**63) <= value < 2**63:
        raise InvalidRequest(f"event_time_ns does not fit 64 bits: {value}")
    return value


_EPOCH = datetime.fromisoformat("1970-01-01T00:00:00+00:00")
_MICROSECOND = datetime.resolution

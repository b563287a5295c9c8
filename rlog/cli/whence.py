"""Whence as it is typed: ``start | end | N | -N | @RFC3339 | @-1h | consumer:ID``. Pure.

    start, end      the oldest record there is, and the offset that the next one will get
    N, -N           the offset N, and N records before the end
    @RFC3339        the first record appended at or after a time: @2026-01-31T08:00:00Z
    @-1h            the same, so long ago: a number and ms, s, m, h or d
    consumer:ID     where a consumer's cursor stands; consumer:@global is the log's own

A range from one to another is half-open. Anything else is refused with the place of the first
character that is wrong: a time without a zone would mean another moment on every machine.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Final, NamedTuple, TypeAlias

from rlog_client.errors import InvalidRequest
from rlog_client.model import (
    GLOBAL,
    GLOBAL_ID,
    LATEST,
    OFFSET_MAX,
    OLDEST,
    Global,
    Whence,
    check_consumer,
    last,
    offset,
)

GRAMMAR: Final = "start | end | N | -N | @RFC3339 | @-1h | consumer:ID"
_DIGITS: Final = frozenset("0123456789")
_CONSUMER: Final = "consumer:"
_UNITS_NS: Final = {
    "ms": 10**6,
    "s": 10**9,
    "m": 60 * 10**9,
    "h": 3600 * 10**9,
    "d": 86400 * 10**9,
}
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


class AtCursor(NamedTuple):
    """Where the cursor of a consumer stands: only the server knows."""

    consumer_id: str | Global


Place: TypeAlias = Whence | AtCursor


class InvalidWhence(Exception):
    """``text`` is no whence: ``reason``, at the character ``at``."""

    def __init__(self, text: str, at: int, reason: str) -> None:
        super().__init__(f"{reason}\n{marked(text, at)}")
        self.text = text
        self.at = at
        self.reason = reason


def marked(text: str, at: int) -> str:
    """``text``, and below it a mark under its character ``at``."""
    # What would move the mark, or the terminal's cursor, is shown as one column.
    shown = "".join(c if c.isprintable() else "?" for c in text)
    return f"  {shown}\n  {' ' * at}^"


def parse(text: str, now_ns: int) -> Place:
    """``now_ns``: UTC. Raises InvalidWhence."""
    match text:
        case "start":
            return OLDEST
        case "end":
            return LATEST
        case "":
            raise InvalidWhence(text, 0, "is empty")
    if text.startswith("@-"):
        return Whence("time", max(0, now_ns - _duration_ns(text, 2)))
    if text.startswith("@"):
        return Whence("time", min(max(_time_ns(text, 1), 0), OFFSET_MAX))
    if text.startswith(_CONSUMER):
        return _cursor(text)
    if text.startswith("-"):
        return last(_number(text, 1))
    if text[0] in _DIGITS:
        return offset(_number(text, 0))
    raise InvalidWhence(text, _departs(text), "is none of start, end, N, -N, @TIME, consumer:ID")


def _departs(text: str) -> int:
    """Where ``text`` stops being the beginning of a word of the grammar."""
    best = 0
    for word in ("start", "end", _CONSUMER):
        same = 0
        while same < min(len(word), len(text)) and word[same] == text[same]:
            same += 1
        best = max(best, same)
    return best


def _number(text: str, at: int) -> int:
    end = _digits_end(text, at)
    if end < len(text) or end == at:
        raise InvalidWhence(text, end, "an offset is a whole number")
    # Looked at by its length first: int() of a million digits takes its time, or refuses.
    number = int(text[at:]) if end - at <= 19 else OFFSET_MAX + 1
    if number > OFFSET_MAX:
        raise InvalidWhence(text, at, f"is more than the largest offset, {OFFSET_MAX}")
    return number


def _digits_end(text: str, at: int) -> int:
    while at < len(text) and text[at] in _DIGITS:
        at += 1
    return at


def _cursor(text: str) -> AtCursor:
    name = text.removeprefix(_CONSUMER)
    if name == GLOBAL_ID:
        return AtCursor(GLOBAL)
    try:
        check_consumer(name)
    except InvalidRequest as error:
        at = next((i for i, c in enumerate(name) if not c.isprintable()), 0)
        raise InvalidWhence(text, len(_CONSUMER) + at, str(error)) from None
    return AtCursor(name)


def _duration_ns(text: str, at: int) -> int:
    end = _digits_end(text, at)
    if end == at:
        raise InvalidWhence(text, at, "a number belongs here, as in @-1h")
    fraction_end = end
    if text[end : end + 1] == ".":
        fraction_end = _digits_end(text, end + 1)
        if fraction_end == end + 1:
            raise InvalidWhence(text, fraction_end, "a digit belongs here")
    unit = _UNITS_NS.get(text[fraction_end:])
    if unit is None:
        raise InvalidWhence(text, fraction_end, "a unit belongs here: ms, s, m, h or d")
    if end - at > 12:
        raise InvalidWhence(text, at, "is longer than time itself")
    fraction = text[end + 1 : fraction_end][:18]
    return int(text[at:end]) * unit + (
        int(fraction) * unit // 10 ** len(fraction) if fraction else 0
    )


class _Scanner:
    """Reads a time character by character, and knows where it stands."""

    def __init__(self, text: str, at: int) -> None:
        self.text = text
        self.at = at

    def refuse(self, reason: str, at: int | None = None) -> InvalidWhence:
        return InvalidWhence(self.text, self.at if at is None else at, reason)

    def number(self, digits: int, low: int, high: int, what: str) -> int:
        begin = self.at
        for _ in range(digits):
            if self.text[self.at : self.at + 1] not in _DIGITS:
                raise self.refuse(f"a digit of the {what} belongs here")
            self.at += 1
        value = int(self.text[begin : self.at])
        if not low <= value <= high:
            raise self.refuse(f"the {what} is between {low:02} and {high:02}", begin)
        return value

    def one_of(self, characters: str, what: str) -> str:
        found = self.text[self.at : self.at + 1]
        if not found or found not in characters:
            raise self.refuse(what)
        self.at += 1
        return found

    def fraction_ns(self) -> int:
        if self.text[self.at : self.at + 1] != ".":
            return 0
        begin = self.at + 1
        self.at = _digits_end(self.text, begin)
        if self.at == begin:
            raise self.refuse("a digit of the second's fraction belongs here")
        return int(self.text[begin : self.at][:9].ljust(9, "0"))

    def zone(self) -> timedelta:
        sign = self.one_of("Zz+-", "a time needs its zone: Z, +HH:MM or -HH:MM")
        if sign in "Zz":
            return timedelta()
        hours = self.number(2, 0, 23, "zone's hour")
        self.one_of(":", "a ':' belongs here")
        minutes = self.number(2, 0, 59, "zone's minute")
        east = timedelta(hours=hours, minutes=minutes)
        return east if sign == "+" else -east


def _time_ns(text: str, at: int) -> int:
    scan = _Scanner(text, at)
    year = scan.number(4, 1, 9999, "year")
    scan.one_of("-", "a '-' belongs here")
    month = scan.number(2, 1, 12, "month")
    scan.one_of("-", "a '-' belongs here")
    day = scan.number(2, 1, _days(year, month), "day")
    scan.one_of("Tt ", "a 'T' and the time of day belong here")
    hour = scan.number(2, 0, 23, "hour")
    scan.one_of(":", "a ':' belongs here")
    minute = scan.number(2, 0, 59, "minute")
    scan.one_of(":", "a ':' belongs here")
    second = scan.number(2, 0, 59, "second")
    fraction_ns = scan.fraction_ns()
    east = scan.zone()
    if scan.at < len(text):
        raise scan.refuse("nothing belongs behind the zone")
    # Subtracted from the difference, not from the time: that could leave the years there are.
    since = datetime(year, month, day, hour, minute, second, tzinfo=UTC) - _EPOCH - east
    return (since.days * 86400 + since.seconds) * 10**9 + fraction_ns


def _days(year: int, month: int) -> int:
    after = datetime(year + month // 12, month % 12 + 1, 1, tzinfo=UTC) if year < 9999 else None
    return 31 if after is None else (after - timedelta(days=1)).day

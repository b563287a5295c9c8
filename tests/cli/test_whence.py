"""The whole of the whence grammar: what it takes, and each refusal with its mark."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlog.cli.whence import AtCursor, InvalidWhence, marked, parse
from rlog_client import GLOBAL, LATEST, OLDEST, Whence, last, offset

NOW_NS = 1_800_000_000 * 10**9
NEW_YEAR_NS = 1_767_225_600 * 10**9  # 2026-01-01T00:00:00Z


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("start", OLDEST),
        ("end", LATEST),
        ("0", offset(0)),
        ("42", offset(42)),
        ("007", offset(7)),
        (str(2**63 - 1), offset(2**63 - 1)),
        ("-0", last(0)),
        ("-10", last(10)),
        ("@-1h", Whence("time", NOW_NS - 3600 * 10**9)),
        ("@-90m", Whence("time", NOW_NS - 5400 * 10**9)),
        ("@-2s", Whence("time", NOW_NS - 2 * 10**9)),
        ("@-250ms", Whence("time", NOW_NS - 250 * 10**6)),
        ("@-1.5d", Whence("time", NOW_NS - 129_600 * 10**9)),
        ("@-99999d", Whence("time", 0)),
        ("@2026-01-01T00:00:00Z", Whence("time", NEW_YEAR_NS)),
        ("@2026-01-01t00:00:00z", Whence("time", NEW_YEAR_NS)),
        ("@2026-01-01 00:00:00Z", Whence("time", NEW_YEAR_NS)),
        ("@2026-01-01T02:30:00+02:30", Whence("time", NEW_YEAR_NS)),
        ("@2025-12-31T19:00:00-05:00", Whence("time", NEW_YEAR_NS)),
        ("@2026-01-01T00:00:00.5Z", Whence("time", NEW_YEAR_NS + 500_000_000)),
        ("@2026-01-01T00:00:00.123456789Z", Whence("time", NEW_YEAR_NS + 123_456_789)),
        ("@2026-01-01T00:00:00.1234567891Z", Whence("time", NEW_YEAR_NS + 123_456_789)),
        ("@2024-02-29T00:00:00Z", Whence("time", 1_709_164_800 * 10**9)),
        ("@0001-01-01T00:00:00+01:00", Whence("time", 0)),
        ("@9999-12-31T23:59:59-01:00", Whence("time", 2**63 - 1)),
        ("consumer:billing", AtCursor("billing")),
        ("consumer:a b:c@d", AtCursor("a b:c@d")),
        ("consumer:@global", AtCursor(GLOBAL)),
    ],
)
def test_grammar(text: str, meant: object) -> None:
    assert parse(text, NOW_NS) == meant


@pytest.mark.parametrize(
    ("text", "at", "reason"),
    [
        ("", 0, "empty"),
        ("x", 0, "none of start"),
        ("starts", 5, "none of start"),
        ("strat", 2, "none of start"),
        ("ending", 3, "none of start"),
        ("START", 0, "none of start"),
        ("+5", 0, "none of start"),
        (" 5", 0, "none of start"),
        ("5 ", 1, "whole number"),
        ("5.0", 1, "whole number"),
        ("1_000", 1, "whole number"),
        ("0x10", 1, "whole number"),
        ("٣", 0, "none of start"),
        ("-", 1, "whole number"),
        ("--5", 1, "whole number"),
        ("-5h", 2, "whole number"),
        (str(2**63), 0, "largest offset"),
        ("9" * 5000, 0, "largest offset"),
        ("@", 1, "digit of the year"),
        ("@-", 2, "a number belongs"),
        ("@-h", 2, "a number belongs"),
        ("@-1", 3, "a unit belongs"),
        ("@-1w", 3, "a unit belongs"),
        ("@-1H", 3, "a unit belongs"),
        ("@-1.h", 4, "a digit belongs"),
        ("@-1h ", 3, "a unit belongs"),
        ("@-9999999999999s", 2, "longer than time"),
        ("@1h", 2, "digit of the year"),
        ("@2026", 5, "'-' belongs"),
        ("@2026-1-01T00:00:00Z", 7, "digit of the month"),
        ("@2026-13-01T00:00:00Z", 6, "month is between"),
        ("@2026-00-01T00:00:00Z", 6, "month is between"),
        ("@2026-02-29T00:00:00Z", 9, "day is between 01 and 28"),
        ("@2026-04-31T00:00:00Z", 9, "day is between 01 and 30"),
        ("@0000-01-01T00:00:00Z", 1, "year is between"),
        ("@2026-01-01", 11, "'T' and the time"),
        ("@2026-01-01X00:00:00Z", 11, "'T' and the time"),
        ("@2026-01-01T24:00:00Z", 12, "hour is between"),
        ("@2026-01-01T00:60:00Z", 15, "minute is between"),
        ("@2026-01-01T00:00:60Z", 18, "second is between"),
        ("@2026-01-01T00:00Z", 17, "':' belongs"),
        ("@2026-01-01T00:00:00", 20, "needs its zone"),
        ("@2026-01-01T00:00:00.123", 24, "needs its zone"),
        ("@2026-01-01T00:00:00.Z", 21, "fraction"),
        ("@2026-01-01T00:00:00 UTC", 20, "needs its zone"),
        ("@2026-01-01T00:00:00Zulu", 21, "behind the zone"),
        ("@2026-01-01T00:00:00+0200", 23, "':' belongs"),
        ("@2026-01-01T00:00:00+02", 23, "':' belongs"),
        ("@2026-01-01T00:00:00+24:00", 21, "zone's hour"),
        ("@2026-01-01T00:00:00+02:60", 24, "zone's minute"),
        ("@1767225600", 5, "'-' belongs"),
        ("consumer:", 9, "1 to 255 bytes"),
        ("consumer:@mine", 9, "does not begin with"),
        ("consumer:a\nb", 10, "control"),
        ("consumer", 8, "none of start"),
        (f"consumer:{'x' * 256}", 9, "1 to 255 bytes"),
    ],
)
def test_refusals_mark_the_character(text: str, at: int, reason: str) -> None:
    with pytest.raises(InvalidWhence) as caught:
        parse(text, NOW_NS)
    assert caught.value.at == at
    assert reason in caught.value.reason
    lines = str(caught.value).split("\n")
    assert lines[-1] == " " * (at + 2) + "^"
    assert len(lines) == 3


@given(
    st.datetimes(datetime(1970, 1, 2), datetime(2262, 1, 1)),  # noqa: DTZ001 (bounds have no zone)
    st.integers(-23 * 60, 23 * 60),
)
def test_times_mean_what_datetime_says(naive: datetime, east_minutes: int) -> None:
    moment = naive.replace(tzinfo=timezone(timedelta(minutes=east_minutes)))
    since = moment - datetime(1970, 1, 1, tzinfo=UTC)
    expected_ns = since // timedelta(microseconds=1) * 1000
    assert parse(f"@{moment.isoformat()}", 0) == Whence("time", max(0, expected_ns))


@given(st.text(max_size=30))
def test_anything_is_parsed_or_refused_inside_the_text(text: str) -> None:
    at = 0
    try:
        parse(text, NOW_NS)
    except InvalidWhence as error:
        at = error.at
    assert 0 <= at <= len(text)


def test_the_mark_stands_under_what_cannot_be_printed() -> None:
    assert marked("a\tb\nc", 4) == "  a?b?c\n      ^"

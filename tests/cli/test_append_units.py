"""What of ``append`` needs no server: bytes to records, pace, progress."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlog.cli.append import Pace, split
from rlog.cli.output import bar, rfc3339, size
from rlog.cli.records import InvalidLine, from_line, to_lines
from rlog_client import Item, Record


def records(reads: list[bytes], *, keep: bool = False, delimiter: bytes = b"\n") -> list[bytes]:
    found = split(iter(reads), delimiter, keep=keep, bytes_max=10**9)
    return [record for each in found for record in each]


@pytest.mark.parametrize(
    ("reads", "expected"),
    [
        ([], []),
        ([b"\n"], [b""]),
        ([b"a\nb\n"], [b"a", b"b"]),
        ([b"a\nb"], [b"a", b"b"]),
        ([b"a", b"b", b"\n\n", b"c"], [b"ab", b"", b"c"]),
        ([b"a\r\n\r\n"], [b"a\r", b"\r"]),
        ([b"\0\xff\x85\n"], [b"\0\xff\x85"]),
    ],
)
def test_lines_are_split_at_newlines_alone(reads: list[bytes], expected: list[bytes]) -> None:
    assert records(reads) == expected


@given(st.lists(st.text("ab\n\r").map(str.encode).filter(bool), max_size=8))
def test_kept_newlines_make_the_input_again(reads: list[bytes]) -> None:
    assert b"".join(records(reads, keep=True)) == b"".join(reads)


@given(st.lists(st.text("ab\n\r").map(str.encode).filter(bool), max_size=8))
def test_how_it_was_read_makes_no_difference(reads: list[bytes]) -> None:
    assert records(reads) == records([b"".join(reads)] if reads else [])


def test_a_line_without_an_end_is_not_collected_for_ever() -> None:
    found = list(split(iter([b"x" * 100] * 1000), b"\n", keep=False, bytes_max=1000))
    assert [list(map(len, each)) for each in found] == [[1100]]


BYTES = st.binary(max_size=8) | st.text(max_size=8).map(str.encode)


@given(
    BYTES,
    st.none() | BYTES,
    st.dictionaries(st.text(max_size=4), BYTES, max_size=2),
    st.none() | st.integers(-(2**63), 2**63 - 1),
)
def test_json_lines_come_back(
    value: bytes, key: bytes | None, headers: dict[str, bytes], event_time_ns: int | None
) -> None:
    line = to_lines([Record("t", 1, 2, key, headers, value, event_time_ns)])
    assert line.endswith(b"\n")
    assert from_line(line) == Item(value, key, headers or None, event_time_ns)


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"", "no record"),
        (b"[]", "no record"),
        (b"{}", "neither value"),
        (b'{"value":1}', "no record"),
        (b'{"value":"a","value_b64":"YQ=="}', "both value"),
        (b'{"value_b64":"?"}', "no base64"),
        (b'{"value":"a","key":"a","key_b64":"YQ=="}', "both key"),
        (b'{"value":"a","headers":{"n":{"b64":"?"}}}', "no base64"),
        (b'{"value":"a","event_time_ns":"x"}', "no record"),
        (b'{"value":"\xff"}', "no record"),
    ],
)
def test_json_that_is_no_record_is_refused(line: bytes, reason: str) -> None:
    with pytest.raises(InvalidLine, match=reason):
        from_line(line)


def test_unknown_fields_are_ignored() -> None:
    assert from_line(b'{"value":"a","offset":3,"log":"x","timestamp_ns":1,"z":[]}') == Item(b"a")


def test_portions_keep_to_the_rate() -> None:
    by_count = Pace(100.0, of_bytes=False)
    assert [len(p) for p in by_count.portions([b"x"] * 12)] == [5, 5, 2]
    by_bytes = Pace(1000.0, of_bytes=True)
    assert [len(p) for p in by_bytes.portions([b"x" * 30] * 5)] == [2, 2, 1]


def test_progress_says_how_far_and_how_fast() -> None:
    assert bar(50 << 20, 100 << 20, 2.0) == (
        "[############............]  50%  50.0 MiB  25.0 MiB/s  2 s left"
    )
    assert bar(1024, None, 1.0) == "1.0 KiB  1.0 KiB/s"
    assert bar(0, 0, 0.0) == "0 B  0 B/s"


def test_sizes_and_times_for_people() -> None:
    assert [size(n) for n in (0, 1023, 1536, 1 << 30)] == ["0 B", "1023 B", "1.5 KiB", "1.0 GiB"]
    assert rfc3339(0, 3) == "1970-01-01T00:00:00.000Z"
    assert rfc3339(1, 9) == "1970-01-01T00:00:00.000000001Z"
    assert rfc3339(0, 0) == "1970-01-01T00:00:00Z"
    assert rfc3339(2**70, 3).endswith("ns")

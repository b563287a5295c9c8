"""The batch: what goes in comes out, and what was changed on the way does not."""

from __future__ import annotations

from itertools import islice

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlog_client import batch
from rlog_client.model import NO_HEADERS, Record

record = st.tuples(
    st.binary(max_size=40),
    st.none() | st.binary(max_size=10),
    st.none() | st.dictionaries(st.text(max_size=5), st.binary(max_size=5), min_size=1, max_size=3),
    st.none() | st.integers(-(2**63), 2**63 - 1),
)
records = st.lists(record, min_size=1, max_size=20)


def packed(rows: list[tuple[bytes, bytes | None, dict[str, bytes] | None, int | None]]) -> bytes:
    values, keys, headers, times = (list(column) for column in zip(*rows, strict=True))
    return bytes(batch.encode(values, keys, headers, times, producer=2**63 - 1, sequence=7))


@given(records)
def test_what_goes_in_comes_out(
    rows: list[tuple[bytes, bytes | None, dict[str, bytes] | None, int | None]],
) -> None:
    raw = packed(rows)
    header = batch.parse_header(raw)
    assert (header.count, header.bytes, header.sequence) == (len(rows), len(raw), 7)
    keys, values, headers, times, there = batch.decode(header, raw[batch.HEADER_BYTES :])
    assert (keys, headers, times) == tuple([row[n] for row in rows] for n in (1, 2, 3))
    assert values == [row[0] for row in rows]
    assert there is None


@given(records)
def test_a_body_is_standard_msgpack(
    rows: list[tuple[bytes, bytes | None, dict[str, bytes] | None, int | None]],
) -> None:
    raw = packed(rows)
    columns = msgpack.unpackb(raw[batch.HEADER_BYTES :])
    assert columns == [[row[n] for row in rows] for n in (1, 0, 2, 3)]
    header = batch.parse_header(raw)
    keys = raw[batch.HEADER_BYTES + 1 :][: header.keys_bytes]
    assert msgpack.unpackb(keys) == columns[0]


@given(records)
def test_a_record_adds_no_more_than_its_overhead(
    rows: list[tuple[bytes, bytes | None, dict[str, bytes] | None, int | None]],
) -> None:
    from rlog_client.model import Item
    from rlog_client.producer import checked

    bound = sum(checked(Item(*row), None, 1 << 20)[1] for row in rows)
    assert len(packed(rows)) <= batch.HEADER_BYTES + bound


@given(records, st.data())
def test_a_changed_byte_is_refused(
    rows: list[tuple[bytes, bytes | None, dict[str, bytes] | None, int | None]],
    data: st.DataObject,
) -> None:
    raw = bytearray(packed(rows))
    raw[data.draw(st.integers(0, len(raw) - 1))] ^= data.draw(st.integers(1, 255))
    with pytest.raises(batch.InvalidBatch):
        batch.decode(batch.parse_header(raw), raw[batch.HEADER_BYTES :])


@given(st.binary(max_size=200))
def test_any_bytes_are_refused_or_a_header(raw: bytes) -> None:
    with pytest.raises(batch.InvalidBatch):
        batch.parse_header(raw)


def test_nobody_is_the_producer_unless_it_is_said() -> None:
    header = batch.parse_header(batch.encode([b"x"]))
    assert (header.producer, header.sequence, header.epoch) == (0, 0, 0)


@pytest.mark.parametrize("length", [0, 79, 80, 4096])
def test_zeros_are_never_a_batch(length: int) -> None:
    with pytest.raises(batch.InvalidBatch):
        batch.parse_header(bytes(length))


def test_a_stamp_changes_only_the_servers_part() -> None:
    produced = bytes(batch.encode([b"a", b"b"], producer=5, sequence=6, epoch=7))
    header = batch.parse_header(batch.stamp(produced, 8, 9, 10))
    assert (header.log, header.base, header.time_ns, header.end) == (8, 9, 10, 11)
    assert (header.producer, header.sequence, header.epoch) == (5, 6, 7)
    assert header.body_crc == batch.parse_header(produced).body_crc
    assert batch.stamped(batch.parse_header(produced), 8, 9, 10) == header


def cut(count: int, base: int = 100, begin: int = 100) -> batch.Cut:
    values = [b"%d" % n for n in range(base, base + count)]
    raw = bytes(batch.encode(values))
    header = batch.parse_header(batch.stamp(raw, 1, base, 5))
    return batch.Cut("l", header, batch.decode(header, raw[80:]), begin, 3)


@pytest.mark.parametrize("begin", [100, 104, 109])
def test_a_cut_knows_its_place(begin: int) -> None:
    made = cut(10, begin=begin)
    assert made.offset == begin
    for record in made.records:
        assert record.value == b"%d" % record.offset
        assert made.offset == record.offset + 1
    assert made.offset == made.end == 110


@pytest.mark.parametrize("taken", [0, 1, 9, 10])
def test_a_stopped_cut_gives_no_more_and_keeps_its_place(taken: int) -> None:
    made = cut(10)
    assert len(list(islice(made.records, taken))) == taken
    made.stop()
    assert list(made.records) == []
    assert made.offset == 100 + taken


def test_a_batch_that_is_renumbered_is_as_if_made_so() -> None:
    columns = [b"a", b"b"], [b"k", None]
    made = batch.encode(*columns, producer=1, sequence=2, epoch=3)
    assert batch.renumbered(made, 7, 8) == batch.encode(*columns, producer=7, sequence=8, epoch=3)
    assert made == batch.encode(*columns, producer=1, sequence=2, epoch=3)


# --- batches of which records are absent --------------------------------------------------------

COLUMNS = batch.Columns(
    [b"a", None, b"c", b"d"], [b"0", b"1", b"2", b"3"], [None, {"h": b"1"}, None, None], [None] * 4
)


def produced(columns: batch.Columns = COLUMNS) -> tuple[batch.Header, batch.Columns]:
    """Four records at the offsets 100 to 104, as a reader has them."""
    keys, values, headers, times, _ = columns
    raw = bytes(batch.encode(values, keys, headers, times, producer=5, sequence=6, epoch=7))
    header = batch.parse_header(batch.stamp(raw, 8, 100, 9))
    return header, batch.decode(header, raw[batch.HEADER_BYTES :])


def thinned(*stays: int) -> tuple[batch.Header, batch.Columns]:
    raw = batch.thinned(*produced(), stays)
    header = batch.parse_header(raw)
    assert header.bytes == len(raw)
    return header, batch.decode(header, raw[batch.HEADER_BYTES :])


@pytest.mark.parametrize("stays", [(), (0,), (3,), (1, 2), (0, 1, 2, 3)])
def test_a_thinned_batch_covers_the_same_offsets_and_has_the_records_that_stay(
    stays: tuple[int, ...],
) -> None:
    header, columns = thinned(*stays)
    before, _ = produced()
    assert (header.base, header.end, header.time_ns, header.log) == (100, 104, 9, 8)
    assert (header.producer, header.sequence, header.epoch) == (5, 6, 7)
    assert (header.sparse, before.sparse) == (True, False)
    assert list(columns.offsets(header)) == columns.there == [100 + index for index in stays]
    for column, whole in zip(columns[:4], COLUMNS[:4], strict=True):
        assert whole is not None
        assert column == [whole[index] for index in stays]


def test_a_thinned_batch_is_thinned_again() -> None:
    raw = batch.thinned(*thinned(0, 2, 3), [1, 2])
    header = batch.parse_header(raw)
    columns = batch.decode(header, raw[batch.HEADER_BYTES :])
    assert (columns.there, columns.values) == ([102, 103], [b"2", b"3"])


def test_columns_that_no_record_had_stay_away() -> None:
    raw = batch.thinned(*produced(batch.Columns(None, [b"0", b"1"], None, None)), [1])
    header = batch.parse_header(raw)
    found = batch.decode(header, raw[batch.HEADER_BYTES :])
    assert found == batch.Columns(None, [b"1"], None, None, [101])


def test_the_offsets_of_a_whole_batch_are_all_that_it_covers() -> None:
    header, columns = produced()
    assert list(columns.offsets(header)) == [100, 101, 102, 103]


def test_a_hole_covers_offsets_and_has_no_record() -> None:
    raw = batch.hole(3, 50, 90, 7)
    header = batch.parse_header(raw)
    assert (header.log, header.base, header.end, header.time_ns) == (3, 50, 90, 7)
    assert (header.producer, header.sequence, header.epoch) == (0, 0, 0)
    assert (header.sparse, header.bytes) == (True, len(raw))
    found = batch.decode(header, raw[batch.HEADER_BYTES :])
    assert found == batch.Columns(None, [], None, None, [])


def test_a_renumbered_batch_is_the_same_of_another_producer() -> None:
    raw = bytes(batch.encode([b"a", b"b"], producer=5, sequence=6, epoch=7))
    again = batch.renumbered(raw, 2**63 - 1, 99)
    header, before = batch.parse_header(again), batch.parse_header(raw)
    assert (header.producer, header.sequence, header.epoch) == (2**63 - 1, 99, 7)
    assert (header.body_crc, header.count) == (before.body_crc, 2)
    assert again[batch.HEADER_BYTES :] == raw[batch.HEADER_BYTES :]


def test_the_keys_column_is_read_by_itself() -> None:
    raw = bytes(batch.encode([b"1", b"2"], [b"k", None]))
    header = batch.parse_header(raw)
    column = raw[batch.HEADER_BYTES + 1 :][: header.keys_bytes]
    assert batch.decode_keys(column) == [b"k", None]
    assert batch.decode_keys(b"\xc0") is None
    for wrong in (b"", b"\x91", b"\x91\x01", b"\xc0\xc0"):
        with pytest.raises(batch.InvalidBatch, match="the keys column does not unpack: "):
            batch.decode_keys(wrong)


# --- records, handed out ------------------------------------------------------------------------


def test_a_record_has_what_its_batch_says_of_it() -> None:
    columns = batch.Columns([b"k", None], [b"0", b"1"], [{"h": b"1"}, None], [5, None])
    header, found = produced(columns)
    first, second = batch.Cut("orders", header, found, 100, 3).records
    assert first == Record("orders", 100, 9, b"k", {"h": b"1"}, b"0", 5, 1, 3)
    assert second == Record("orders", 101, 9, None, {}, b"1", None, 1, 3)
    header, found = produced(batch.Columns(None, [b"0", b"1"], None, None))
    _, second = batch.Cut("orders", header, found, 100, 0).records
    assert second == Record("orders", 101, 9, None, {}, b"1", None, 1, 0)
    assert second.headers is NO_HEADERS


@pytest.mark.parametrize("begin", [100, 101, 102, 103, 104])
def test_a_cut_begins_at_any_offset_of_whole_and_of_sparse_batches(begin: int) -> None:
    all_keys = COLUMNS.keys
    assert all_keys is not None
    for header, columns in (produced(), thinned(1, 3)):
        made = batch.Cut("l", header, columns, begin, 0)
        wanted = [offset for offset in columns.offsets(header) if offset >= begin]
        assert made.offset == (wanted[0] if wanted else 104)
        for record in made.records:
            at = wanted.index(record.offset)
            assert record.value == b"%d" % (record.offset - 100)
            assert record.key == all_keys[record.offset - 100]
            assert record.headers == ({"h": b"1"} if record.offset == 101 else {})
            assert made.offset == (wanted[at + 1] if at + 1 < len(wanted) else 104)
        assert made.offset == made.end == 104


def test_a_cut_gives_the_records_below_an_offset_and_then_the_others() -> None:
    for header, columns in (produced(), thinned(0, 1, 3)):
        made = batch.Cut("l", header, columns, 100, 0)
        offsets = list(columns.offsets(header))
        assert [record.offset for record in made.until(100)] == []
        assert [record.offset for record in made.until(102)] == [100, 101]
        assert [record.offset for record in made.until(101)] == []
        assert [record.offset for record in made.until(999)] == offsets[2:]
        assert made.offset == 104


def test_what_a_cut_says_is_absent_is_absent_and_nothing_else() -> None:
    made = batch.Cut("l", *thinned(1, 3), 101, 0)
    ranges = [(a, b) for a in range(99, 106) for b in range(a, 106)]
    absent = [(a, b) for a, b in ranges if made.absent(a, b)]
    assert absent == [(n, n) for n in range(99, 102)] + [(102, 102), (102, 103)] + [
        (n, n) for n in range(103, 106)
    ]
    made = batch.Cut("l", *thinned(1), 100, 0)
    assert [made.absent(*pair) for pair in ((100, 101), (101, 102), (102, 104), (102, 105))] == [
        *(True, False, True, False)
    ]
    whole = batch.Cut("l", *produced(), 101, 0)
    assert [pair for pair in ranges if whole.absent(*pair)] == [(n, n) for n in range(99, 106)]
    assert whole.absent(105, 100), "from behind to before there is nothing"


@pytest.mark.parametrize(
    ("stays", "begin", "behind"),
    [((1, 2), 100, 103), ((1,), 103, 103), ((), 102, 102), ((3,), 100, 104)],
)
def test_behind_its_last_record_all_are_absent(
    stays: tuple[int, ...], begin: int, behind: int
) -> None:
    assert batch.Cut("l", *thinned(*stays), begin, 0).behind == behind


def test_behind_a_whole_batch_comes_the_next() -> None:
    assert batch.Cut("l", *produced(), 101, 0).behind == 104

"""The batch: what goes in comes out, and what was changed on the way does not."""

from __future__ import annotations

from itertools import islice

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlog_client import batch

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

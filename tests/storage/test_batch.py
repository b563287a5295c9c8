"""What the server checks of a batch before it believes, stamps or serves it."""

from __future__ import annotations

from struct import pack
from typing import Any

import msgpack
import pytest
from crc32c import crc32c

from rlog_client import batch
from rlog_client.batch import HEADER_BYTES, InvalidBatch


def resealed(raw: bytes, position: int, changed: bytes) -> bytes:
    """A header with other bytes at ``position``, under a CRC that is right."""
    head = bytearray(raw[:HEADER_BYTES])
    head[position : position + len(changed)] = changed
    head[-4:] = pack("<I", crc32c(bytes(head[:-4])))
    return bytes(head)


@pytest.mark.parametrize(
    ("position", "changed", "reason"),
    [
        (0, b"RLX", "no batch begins here"),
        (3, b"\x02", "batch version 2 is not known here"),
        (4, b"\x02", "codec 2 is not known here"),
        (5, b"\x01", "reserved bytes are not zero"),
        (7, b"\x01", "reserved bytes are not zero"),
        (64, b"\x01", "reserved bytes are not zero"),
        (75, b"\x01", "reserved bytes are not zero"),
        (8, pack("<I", 0), "lengths that cannot be"),
        (12, pack("<I", 2), "lengths that cannot be"),
        (16, pack("<I", 0), "lengths that cannot be"),
        (16, pack("<I", 1 << 31), "lengths that cannot be"),
    ],
)
def test_a_header_that_cannot_be_is_named_though_its_crc_is_right(
    position: int, changed: bytes, reason: str
) -> None:
    raw = bytes(batch.encode([b"value"]))
    with pytest.raises(InvalidBatch, match=reason):
        batch.parse_header(resealed(raw, position, changed))


def test_a_header_is_believed_only_under_its_crc_and_when_all_of_it_is_there() -> None:
    raw = bytes(batch.encode([b"value"]))
    for length in range(HEADER_BYTES):
        with pytest.raises(InvalidBatch, match=f"here are {length}"):
            batch.parse_header(raw[:length])
    with pytest.raises(InvalidBatch, match=r"^zeros$"):
        batch.parse_header(bytes(HEADER_BYTES))
    with pytest.raises(InvalidBatch, match="header CRC is"):
        batch.parse_header(raw[:8] + b"\x09" + raw[9:HEADER_BYTES])
    assert batch.parse_header(b"before" + raw, 6) == batch.parse_header(raw)
    header = batch.parse_header(raw)
    with pytest.raises(InvalidBatch, match=r"body CRC is \w{8}, stored is \w{8}"):
        batch.check_body(header, bytes(header.body_bytes))


def test_no_batch_is_empty() -> None:
    with pytest.raises(ValueError, match="never empty"):
        batch.encode([])


def made(body: bytes, *, count: int = 1, keys: int = 1) -> tuple[batch.Header, bytes]:
    """A body of any bytes under a header whose CRCs are right."""
    raw = bytes(batch.encode([b"value"]))
    head = resealed(raw, 8, pack("<IIII", count, len(body), keys, crc32c(body)))
    return batch.parse_header(head), body


@pytest.mark.parametrize("count", [1, 15, 16, 65535, 65536])
def test_the_number_of_values_is_told_from_their_columns_head(count: int) -> None:
    raw = bytes(batch.encode([b""] * count))
    header, body = batch.parse_header(raw), raw[HEADER_BYTES:]
    batch.check_body(header, body)
    assert len(batch.decode(header, body).values) == count
    wrong, _ = made(body, count=count + 1)
    with pytest.raises(InvalidBatch, match=f"the values column has not {count + 1} entries"):
        batch.check_body(wrong, body)


@pytest.mark.parametrize("count", [0x10000, 0x1000001, 2**32 - 1])
def test_of_a_long_column_four_bytes_are_its_length_and_no_more(count: int) -> None:
    header, body = made(b"\x94\xc0\xdd" + pack(">I", count) + b"\xc4\x00", count=count)
    batch.check_body(header, body)
    header, body = made(b"\x94\xc0\xdd" + pack(">I", count), count=count - 1)
    with pytest.raises(InvalidBatch, match="the values column"):
        batch.check_body(header, body)


@pytest.mark.parametrize("shorter", [1, 2, 7])
def test_a_body_of_another_length_is_not_looked_into(shorter: int) -> None:
    raw = bytes(batch.encode([b"value"]))
    with pytest.raises(InvalidBatch, match="the header says"):
        batch.check_body(batch.parse_header(raw), raw[HEADER_BYTES:-shorter])


@pytest.mark.parametrize(
    ("body", "keys"),
    [
        (b"\x95\xc0\x91\xc4\x00\xc0\xc0\xc0", 1),  # five columns
        (b"\x94\xc0\xa1x\xc0\xc0", 1),  # the values are a string
        (b"\x94\xc0\x91\xc4\x00\xc0\xc0", 6),  # the keys are said to be longer than they are
        (b"\x94\xc0\xdd", 1),  # the values' head is cut
        (b"\x94\xc0\xc0\xc0\xc0", 1),  # no values
        (b"\x94\xc0\x91", 2),  # nothing behind the keys
    ],
)
def test_what_the_server_would_stamp_has_its_values_where_the_header_says(
    body: bytes, keys: int
) -> None:
    try:
        header, _ = made(body, keys=keys)
    except InvalidBatch:
        return  # refused even before
    with pytest.raises(InvalidBatch, match="the values column"):
        batch.check_body(header, body)


@pytest.mark.parametrize(
    "columns",
    [
        [[b"k", b"k"], [b"v"], None, None],
        [None, [b"v"], [{}, {}], None],
        [None, [b"v"], None, [1, 2]],
        [None, ["text"], None, None],
        [None, [b"v"], [{"h": 1}], None],
        [None, [b"v"], None, ["now"]],
        [[1], [b"v"], None, None],
    ],
)
def test_a_sound_body_that_does_not_unpack_is_the_readers_to_name(columns: list[Any]) -> None:
    body = msgpack.packb(columns)
    keys = len(msgpack.packb(columns[0]))
    header, _ = made(body, keys=keys)
    batch.check_body(header, body)  # the server does not look so far
    with pytest.raises(InvalidBatch, match=r"does not unpack|a column has"):
        batch.decode(header, body)


def test_a_sound_body_cut_short_or_too_deep_is_named() -> None:
    for body in (b"\x94\xc0\x91", b"\x94\xc0\x91" + b"\x91" * 5000):
        header, _ = made(body.ljust(3, b"\xc0"))
        with pytest.raises(InvalidBatch):
            batch.decode(header, body)


def sparse(columns: Any, *, count: int = 4) -> tuple[batch.Header, bytes]:
    """A sparse batch of any body at the offsets from 10."""
    body = msgpack.packb(columns)
    keys = len(msgpack.packb(columns[0]))
    raw = batch.hole(1, 10, 10 + count, 5)
    changed = pack("<IIII", count, len(body), keys, crc32c(body))
    return batch.parse_header(resealed(raw, 8, changed)), body


@pytest.mark.parametrize(
    ("steps", "there"),
    [([], []), ([1], [10]), ([4], [13]), ([1, 3], [10, 13]), ([1, 1, 1, 1], [10, 11, 12, 13])],
)
def test_the_steps_of_a_sparse_batch_are_its_offsets(steps: list[int], there: list[int]) -> None:
    header, body = sparse([None, [b""] * len(steps), None, None, steps])
    assert batch.decode(header, body).there == there


@pytest.mark.parametrize("steps", [[0], [5], [-1], [1, 0], [4, 1], [3, -1], [2**63]])
def test_offsets_that_do_not_rise_or_lie_outside_are_no_sparse_batch(steps: list[int]) -> None:
    header, body = sparse([None, [b""] * len(steps), None, None, steps])
    with pytest.raises(InvalidBatch, match="offsets that do not rise, or lie behind the batch"):
        batch.decode(header, body)


@pytest.mark.parametrize(
    "columns",
    [
        [[b"k"], [b"v", b"w"], None, None, [1, 1]],
        [None, [b"v"], None, None, [1, 1]],
        [None, [b"v"], [None, None], None, [1]],
        [None, [b"v"], None, [], [1]],
        [None, [b"v"], None, None, None],
        [None, [b"v"], None, None, ["1"]],
        [None, None, None, None, []],
    ],
)
def test_a_sparse_batch_whose_columns_do_not_fit_is_named(columns: list[Any]) -> None:
    header, body = sparse(columns)
    with pytest.raises(InvalidBatch, match=r"does not unpack: |a column has \d entries, not \d"):
        batch.decode(header, body)


@pytest.mark.parametrize(
    "columns", [[None, [b"v"], None, None], [None, [b"v"], None, None, [1], 1]]
)
def test_a_sparse_batch_has_five_columns(columns: list[Any]) -> None:
    header, body = sparse(columns)
    with pytest.raises(InvalidBatch, match="a sparse batch has five columns"):
        batch.check_body(header, body)


def test_what_declares_records_lost_is_told_from_a_batch_and_has_no_body() -> None:
    end = 5 + 2 * batch.COUNT_MAX + 7
    declared = batch.lost(3, 5, end, 99)
    assert len(declared) == 3 * HEADER_BYTES  # as many headers as the count of one allows
    expected = 5
    for position in range(0, len(declared), HEADER_BYTES):
        with pytest.raises(batch.Lost, match="as a repair declared") as caught:
            batch.parse_header(declared, position)
        header = caught.value.header
        count = min(batch.COUNT_MAX, end - expected)
        told = batch.Header(count, 0, 0, crc32c(b""), 0, 0, 0, 3, expected, 99, lost=True)
        assert header == told
        assert header.bytes == HEADER_BYTES
        # Of no keys and no producer: whatever says so there, nobody reads it.
        assert declared[position + 12 : position + 44] == bytes(32)
        expected = header.end
    assert expected == end
    for at, changed in ((8, pack("<I", 0)), (12, pack("<I", 1))):  # no records; a body
        with pytest.raises(InvalidBatch, match="lengths that cannot be") as refused:
            batch.parse_header(resealed(declared[:HEADER_BYTES], at, changed))
        assert not isinstance(refused.value, batch.Lost)

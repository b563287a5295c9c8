"""Small batches, frames and segments for the tests, made with the product's own encoders."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rlog import facts, frame
from rlog.segment import Extent
from rlog_client import batch

if TYPE_CHECKING:
    from collections.abc import Sequence

JOURNAL = 0x1122334455667788


def batch_of(values: Sequence[bytes], *, log: int = 1, base: int = 0, time_ns: int = 1000) -> bytes:
    """A whole batch as it stands in a segment."""
    produced = batch.encode(list(values))
    return batch.stamp(produced, log, base, time_ns) + bytes(produced[batch.HEADER_BYTES :])


def segment_of(
    batches: Sequence[Sequence[bytes]], *, log: int = 1, base: int = 0, time_ns: int = 1000
) -> tuple[bytes, Extent]:
    """The bytes of a segment that holds these batches, and its extent."""
    data, end = b"", base
    for index, values in enumerate(batches):
        data += batch_of(values, log=log, base=end, time_ns=time_ns + index)
        end += len(values)
    return data, Extent(log, base, end, len(data))


def frame_of(
    batches: Sequence[bytes],
    *more: facts.Fact,
    number: int = 1,
    previous: int = 0,
    synced: int = 0,
    time_ns: int = 1000,
    journal: int = JOURNAL,
) -> tuple[bytes, int]:
    """-> the bytes of a frame, unpadded, and its CRC."""
    found: list[facts.Fact] = [facts.Appended(each[: batch.HEADER_BYTES]) for each in batches]
    bodies = [each[batch.HEADER_BYTES :] for each in batches]
    item = frame.Frame(time_ns, facts.encode([*found, *more]), bodies)
    head, length, crc = frame.encode(item, journal, number, previous, synced)
    raw = head + b"".join(bodies)
    assert len(raw) == length
    return raw, crc


def flip(raw: bytes, position: int, bit: int = 0) -> bytes:
    changed = bytearray(raw)
    changed[position] ^= 1 << bit
    return bytes(changed)

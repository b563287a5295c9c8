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


def every_fact() -> list[facts.Fact]:
    """One of each kind, at least."""
    options = facts.Options(
        "periodic:1s", 4096, True, True, 1 << 40, 7.5, 0.5, ("@global", "billing")
    )
    every: list[facts.Fact] = [
        facts.Opened(),
        facts.Appended(batch_of([b"a"])[: batch.HEADER_BYTES]),
        facts.Created(1, "orders", options),
        facts.Altered(1, options),
        facts.Deleted(1),
        facts.Trimmed(1, 9),
        facts.Claimed(1, "billing", 1, b"t" * 16, "host:1", 0),
        facts.Released(1, "billing", 1),
        facts.Committed(1, "billing", 1, 8),
        facts.Sought(1, "billing", 2, 3, True),
        facts.Forgotten(1, "billing"),
        facts.Left(1, "billing", 2),
        facts.Returned(1, "billing", 2),
        facts.Evicted(1, "billing", 3, True),
        facts.Failed(1, "billing", 3, 8, 2, "ValueError: no", 500_000_000),
        facts.Parked(1, "billing", 3, 8, 5, "why", "error", "ValueError", "paused", True, 0),
        facts.Redriven(1, "billing", [8, 9]),
        facts.Took(1, "billing", 3, 8),
        facts.Unparked(1, "billing", 3, 8),
        facts.Resumed(1, "billing"),
        facts.Named(1, 2**63, "etl", 4, True),
        facts.Dropped(1, [2**64 - 1]),
        facts.Transacted(2**64 - 1, 2**63 - 1, [(1, 0, 2), (2, 7, 8)], [5]),
        facts.Doubted(),
        facts.Trusted("boot", -(2**62)),
        facts.Opened("boot", 2**62),
        facts.Trimmed(1, 9, [("billing", 8, b"batch")]),
        facts.Compacted(1, 5, 9, 1, 4096, 2, 2),
        facts.Joined(1, "billing", 3, b"token", "host:1", 7),
        facts.Vanished(1, "billing", 3, [9], "it vanished"),
        facts.Completed(1, "billing", 3, [7, 9], [12, 15]),
        facts.Completed(1, "billing", 3, [9, 10], None),
    ]
    assert {type(fact) for fact in every} == set(facts.Fact.__args__)
    return every

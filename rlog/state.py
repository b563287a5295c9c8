"""The state: what the facts add up to. Pure: no clock, no I/O, no sockets.

``apply`` is the only way to change it, at run time and at recovery alike, so that the same facts
give the same state and a batch's place in the segments follows from the facts before it.
Sockets, credit, records in hand and deadlines are not state: they die with the process.
"""

from __future__ import annotations

from bisect import bisect_right
from typing import Final, NamedTuple

import msgspec
from msgspec import Struct

from rlog_client.batch import HEADER_BYTES, Header, parse_header

from . import facts
from .segment import Place


class Segment(Struct, array_like=True):
    """One file of batches: first offset, length in bytes, running maximum of append times up to
    its end.
    """

    base: int
    bytes: int
    time_max_ns: int


class Holder(Struct, frozen=True, array_like=True):
    """Who holds a consumer: its claim's token, the connection's name, since when."""

    token: bytes
    name: str
    since_ns: int


class Cursor(Struct, array_like=True):
    """A consumer's durable cursor. ``committed``: offset of the first record not done with."""

    committed: int
    epoch: int
    holder: Holder | None = None


class Log(Struct, array_like=True):
    """A log: offsets ``first`` to ``end`` (exclusive), in segments sorted by base."""

    id: int
    name: str
    options: facts.Options
    first: int = 0
    end: int = 0
    time_max_ns: int = 0
    segments: list[Segment] = []
    cursors: dict[str, Cursor] = {}

    @property
    def bytes(self) -> int:
        return sum(segment.bytes for segment in self.segments)

    def segment_index(self, offset: int) -> int:
        """Index of the segment that holds ``offset``; -1 if it lies before the first one."""
        return bisect_right(self.segments, offset, key=_base) - 1

    def segment_end(self, index: int) -> int:
        """The offset after the last record of a segment."""
        return self.segments[index + 1].base if index + 1 < len(self.segments) else self.end

    def place(self, batch_bytes: int) -> Place:
        """Where a batch of so many bytes goes. The roll is decided *before* the write: only one
        oversized batch may exceed ``file_roll_size``, alone in its file."""
        if self.segments:
            last = self.segments[-1]
            if last.bytes + batch_bytes <= self.options.file_roll_size:
                return Place(self.id, last.base, last.bytes, False)
        return Place(self.id, self.end, 0, True)

    def trim_to(self, before: int) -> int:
        """The first offset after removing every segment that lies wholly below ``before``."""
        first = self.first
        for index in range(len(self.segments)):
            end = self.segment_end(index)
            if end > before:
                break
            first = end
        return first


def _base(segment: Segment) -> int:
    return segment.base


class Append(NamedTuple):
    """An applied append: the batch's header, raw and parsed, and its place."""

    raw: bytes
    header: Header
    place: Place


class State(Struct, array_like=True):
    """All of it. ``next_log``: the id that the next log will get; ids are never used again."""

    logs: dict[int, Log] = {}
    next_log: int = 1

    def by_name(self, name: str) -> Log | None:
        # A scan: opening a log by name is rare, and one map fewer has to be kept true.
        for log in self.logs.values():
            if log.name == name:
                return log
        return None

    def apply(self, fact: facts.Fact, time_ns: int) -> Append | None:
        """Change the state by one fact of a frame made at ``time_ns``; an append tells its
        place.
        """
        match fact:
            case facts.Appended(raw):
                return self._append(raw)
            case facts.Committed(log, consumer, _epoch, offset):
                self.logs[log].cursors[consumer].committed = offset
            case facts.Claimed(log, consumer, epoch, token, holder, committed):
                cursor = Cursor(committed, epoch, Holder(token, holder, time_ns))
                self.logs[log].cursors[consumer] = cursor
            case facts.Released(log, consumer, _epoch):
                self.logs[log].cursors[consumer].holder = None
            case facts.Sought(log, consumer, epoch, offset, keep_holder):
                cursor = self.logs[log].cursors.setdefault(consumer, Cursor(0, 0))
                cursor.committed, cursor.epoch = offset, epoch
                if not keep_holder:
                    cursor.holder = None
            case facts.Forgotten(log, consumer):
                del self.logs[log].cursors[consumer]
            case facts.Created(log, name, options):
                self.logs[log] = Log(log, name, options)
                self.next_log = log + 1
            case facts.Altered(log, options):
                self.logs[log].options = options
            case facts.Trimmed(log, first):
                self._trim(self.logs[log], first)
            case facts.Deleted(log):
                del self.logs[log]
            case facts.Opened():
                for each in self.logs.values():
                    for cursor in each.cursors.values():
                        cursor.holder = None
        return None

    def _append(self, raw: bytes) -> Append:
        header = parse_header(raw)
        log = self.logs[header.log]
        assert header.base == log.end, "offsets are dense"
        size = HEADER_BYTES + header.body_bytes
        place = log.place(size)
        log.time_max_ns = max(log.time_max_ns, header.time_ns)
        if place.new:
            log.segments.append(Segment(header.base, size, log.time_max_ns))
        else:
            segment = log.segments[-1]
            segment.bytes += size
            segment.time_max_ns = log.time_max_ns
        log.end = header.end
        return Append(raw, header, place)

    def _trim(self, log: Log, first: int) -> None:
        keep = 0
        while keep < len(log.segments) and log.segment_end(keep) <= first:
            keep += 1
        # A new list: a reader in a thread may be walking the old one.
        log.segments = log.segments[keep:]
        log.first = first

    def segments(self) -> set[tuple[int, int]]:
        """Every segment there should be: (log id, base)."""
        return {(log.id, segment.base) for log in self.logs.values() for segment in log.segments}


_encoder: Final = msgspec.msgpack.Encoder()
_decoder: Final = msgspec.msgpack.Decoder(State)


def dump(state: State) -> bytes:
    return _encoder.encode(state)


def load(raw: bytes | memoryview) -> State:
    """Raises msgspec.MsgspecError."""
    return _decoder.decode(raw)

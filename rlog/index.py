"""A sparse index of one segment: offset and time -> position. In memory, built by a walk, a hint.

An answer is where to begin walking, never what is there: the walk checks every header. Where it
finds none, it begins anew without the index, so a wrong place costs time and changes nothing. (The
times are believed: they come from headers that were checked, in this very process.)
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from rlog_client.batch import Header

SPACING: Final = 64 * 1024  # bytes between entries: what a walk reads at most before it is there


class Index:
    """Entries of (offset, position, running maximum of time *before* it), in order."""

    __slots__ = ("_offsets", "_positions", "_time_max", "_times", "end", "position")

    def __init__(self, base: int) -> None:
        self._offsets: list[int] = []
        self._positions: list[int] = []
        self._times: list[int] = []
        self._time_max = -1
        self.end = base  # the offset up to which it is built
        self.position = 0  # the position of that offset

    def add(self, position: int, header: Header) -> None:
        """The batch at ``position``; batches come in order."""
        if not self._positions or position - self._positions[-1] >= SPACING:
            self._offsets.append(header.base)
            self._positions.append(position)
            self._times.append(self._time_max)
        self._time_max = max(self._time_max, header.time_ns)
        self.end = header.end
        self.position = position + header.bytes

    def at_offset(self, offset: int) -> tuple[int, int]:
        """(offset, position) of an entry at or before ``offset``."""
        return self._entry(bisect_right(self._offsets, offset) - 1)

    def at_time(self, time_ns: int) -> tuple[int, int]:
        """(offset, position) of an entry before which every record is older than ``time_ns``."""
        return self._entry(bisect_left(self._times, time_ns) - 1)

    def _entry(self, index: int) -> tuple[int, int]:
        if index < 0:
            return (
                (self._offsets[0], self._positions[0])
                if self._offsets
                else (self.end, self.position)
            )
        return self._offsets[index], self._positions[index]

"""A sparse index of one segment: offset and time -> position. A hint, in two steps.

*Milestones*, far apart, are part of the state: they are noted as batches are appended, so that no
walk is long, also the first one of a server's life. Between two of them an index is in memory,
built by walks.

An answer is where to begin walking, never what is there: the walk checks every header. Where it
finds none, it begins anew without the index, so a wrong place costs time and changes nothing. A
right one may find more in a damaged segment: a sound batch between two damaged ones, which a walk
from the begin passes over. (The times are believed: they come from headers that were checked, by
this process or by the one that noted the milestone.)
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from struct import Struct
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from rlog_client.batch import Header

SPACING: Final = 64 * 1024  # bytes between entries: what a walk reads at most before it is there
MILESTONE_SPACING: Final = 4 << 20  # and between milestones, of which every checkpoint has all
UNKNOWN_NS: Final = 2**63 - 1  # a running maximum of which nothing is known: above every time
_MILESTONE: Final = Struct("<QQQ")


class Milestone(NamedTuple):
    """A batch's place; ``time_max_ns``: of all before it in the segment, or more."""

    offset: int
    position: int
    time_max_ns: int


def with_milestone(milestones: bytes, offset: int, position: int, time_max_ns: int) -> bytes:
    """Those of a segment, and this one, unless it is too close to the last."""
    # (The first look is the cheap one: there is at most one to so many bytes.)
    if position // MILESTONE_SPACING <= len(milestones) // _MILESTONE.size:
        return milestones
    if milestones and position - _at(milestones, -1).position < MILESTONE_SPACING:
        return milestones
    return milestones + _MILESTONE.pack(offset, position, time_max_ns)


def milestone_at_offset(milestones: bytes, offset: int) -> Milestone | None:
    """The last one at or before ``offset``."""
    count = len(milestones) // _MILESTONE.size
    found = bisect_right(range(count), offset, key=lambda index: _at(milestones, index).offset)
    return _at(milestones, found - 1) if found else None


def milestone_at_time(milestones: bytes, time_ns: int) -> Milestone | None:
    """The last one before which every record is older than ``time_ns``."""
    count = len(milestones) // _MILESTONE.size
    found = bisect_left(range(count), time_ns, key=lambda index: _at(milestones, index).time_max_ns)
    return _at(milestones, found - 1) if found else None


def _at(milestones: bytes, index: int) -> Milestone:
    at = index * _MILESTONE.size
    return Milestone(
        *_MILESTONE.unpack_from(milestones, at if index >= 0 else len(milestones) + at)
    )


class Index:
    """Entries of (offset, position, running maximum of time *before* it), in order."""

    __slots__ = ("_offsets", "_positions", "_time_max", "_times", "end", "position")

    def __init__(self, base: int, position: int = 0) -> None:
        """Of what begins there. Who looks for a time in it has found that all before is older."""
        self._offsets: list[int] = []
        self._positions: list[int] = []
        self._times: list[int] = []
        self._time_max = -1
        self.end = base  # the offset up to which it is built
        self.position = position  # of that offset

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

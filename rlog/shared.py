"""What a shared consumer has beside its cursor: its members, and what is settled out of order.

Pure, and a part of the state: changed by facts only. The cursor is the *floor*: everything below it
is done with. Above it, what is done with is kept as ranges: ``begin, end, begin, end, ...`` in one
sorted list, so that a range is found and merged with its neighbours by two bisections.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from typing import TYPE_CHECKING, Final

from msgspec import Struct

if TYPE_CHECKING:
    from collections.abc import Iterator

RANGES_MAX: Final = 10_000  # settled above the floor; then delivery waits for the floor
FAILED_MAX: Final = 10_000  # unsettled records that failed: each keeps its error's text in memory


def add(ranges: list[int], begin: int, end: int) -> None:
    """Add ``begin`` to ``end`` (exclusive); what touches becomes one."""
    low, high = bisect_left(ranges, begin), bisect_right(ranges, end)
    # At an odd place we are inside a range, which then goes on; at an even one a bound is new.
    ranges[low:high] = [begin] * (low % 2 == 0) + [end] * (high % 2 == 0)


def holds(ranges: list[int], offset: int) -> bool:
    return bisect_right(ranges, offset) % 2 == 1


def holes(ranges: list[int], begin: int, end: int) -> Iterator[tuple[int, int]]:
    """What of ``begin`` to ``end`` is in no range."""
    at = bisect_right(ranges, begin)
    if at % 2:
        begin = ranges[at]
        at += 1
    while begin < end:
        following = ranges[at] if at < len(ranges) else end
        if begin < min(following, end):
            yield begin, min(following, end)
        begin = ranges[at + 1] if at < len(ranges) else end
        at += 2


def pairs(flat: list[int]) -> Iterator[tuple[int, int]]:
    return zip(flat[::2], flat[1::2], strict=True)


class Member(Struct, array_like=True):
    """One of many. ``held``: its connection is there. ``begun``: what it has in hand."""

    token: bytes
    name: str
    since_ns: int
    held: bool = True
    begun: list[int] = []


class Failure(Struct, array_like=True):
    """An unsettled record failed ``attempts`` times, the last time at ``failed_ns``, and is due
    ``delay_ns`` later.
    """

    attempts: int = 0
    error: str = ""
    failed_ns: int = 0
    delay_ns: int = 0


class Shared(Struct, array_like=True):
    """``members``: by the epoch of their claim. ``alone``: records of which one may have made its
    member vanish, and it is not known which: each is delivered to somebody who has no other.
    """

    settled: list[int] = []
    members: dict[int, Member] = {}
    failed: dict[int, Failure] = {}
    alone: set[int] = set()

    def member_of(self, token: bytes) -> int | None:
        """The epoch of the member that claimed with ``token``."""
        for epoch, member in self.members.items():
            if member.token == token:
                return epoch
        return None

    def named(self, name: str | None) -> list[int]:
        """The epochs of the members of this name, or of all."""
        return [epoch for epoch, each in self.members.items() if name in (None, each.name)]

    def settle(self, floor: int, begin: int, end: int) -> int:
        """``begin`` to ``end`` is done with: the new floor."""
        begin = max(begin, floor)
        if begin >= end:
            return floor
        add(self.settled, begin, end)
        if self.settled[0] == floor:
            floor = self.settled[1]
            del self.settled[:2]
        if len(self.failed) < end - begin:
            for offset in [offset for offset in self.failed if begin <= offset < end]:
                del self.failed[offset]
        else:
            for offset in range(begin, end):
                self.failed.pop(offset, None)
        if self.alone:
            self.alone = {offset for offset in self.alone if not begin <= offset < end}
        return floor

    def put_down(self, epoch: int, offset: int) -> None:
        """A record is in this member's hands no more."""
        member = self.members.get(epoch)
        if member is not None and offset in member.begun:
            member.begun = [other for other in member.begun if other != offset]

    def clear(self) -> None:
        """The cursor was put somewhere else: nobody holds anything, and all is to come again."""
        self.settled, self.members, self.failed, self.alone = [], {}, {}, set()

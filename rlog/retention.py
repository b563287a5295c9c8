"""What of a log is to go: a pure function of its state and of the time. Nothing is removed here.

Whole segments go, the oldest first:

- ``max_total_bytes``: as many as it takes until the log, with what is about to be appended, holds
  no more; never the segment that is being written. Since that is at most a quarter of the bound
  (see ``Log.roll_bytes``), the bound holds after every append, unless one batch alone is larger.
- ``max_file_age`` (seconds): each whose youngest record is older, the last one too if nothing newer
  is in it. A segment is written for a quarter of that time at most, so a record is gone when it is
  a quarter older than the bound.

Less goes, and it is said why, where a record is younger than ``blocking_minimum_retention`` (counts
against ``max_total_bytes`` only), where a protected consumer has not committed yet, where a parked
record is not copied yet, and where the clock is not to be believed.
"""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator

    from .state import Log

JUMP_NS: Final = 3600 * 10**9  # as much may the wall clock be off before ages do not count
COPIES_BYTES_MAX: Final = 8 << 20  # of parked records that outlived their segments, per consumer
_DAY_NS: Final = 86_400 * 10**9


class Why(Enum):
    PROTECTED = "a protected consumer"
    PARKED = "parked records"
    CLOCK = "the clock"
    MINIMUM = "blocking_minimum_retention"


class Held(NamedTuple):
    """Why a log is not trimmed further though it is due; ``text`` is for people."""

    why: Why
    text: str


class Uncopied(NamedTuple):
    """A parked record that a trim has to copy before it can pass."""

    offset: int
    consumer: str


class Plan(NamedTuple):
    """``first``: the first offset to keep. ``over``: ``max_total_bytes`` is exceeded even so,
    though there is something to remove. ``held``: why not more goes, if more is due. ``uncopied``:
    what has to be copied first, lowest offset first. ``again_ns``: when the clock alone can change
    this plan, in ns from now; None: it cannot.
    """

    first: int
    over: bool = False
    held: Held | None = None
    uncopied: tuple[Uncopied, ...] = ()
    again_ns: int | None = None


def plan(
    log: Log,
    now_ns: int,
    *,
    doubt: str | None = None,
    adding: int = 0,
    rolls: bool = False,
    stuck: Callable[[str], str | None] = lambda _consumer: None,
    lost: Collection[int] = (),
) -> Plan:
    """What is to go of ``log`` by its options at ``now_ns``.

    ``doubt``: why the clock is not believed, if it is not. ``adding``: bytes that are about to be
    appended; ``rolls``: into a new segment. ``stuck``: why a consumer's parked records cannot be
    copied. ``lost``: offsets of parked records that cannot be read any more.
    """
    full = _full(log, adding, rolls)
    allowed, held, again_ns = _old_enough(log, full, now_ns, doubt)
    aged, age_again_ns = _aged(log, now_ns, doubt)
    if doubt is not None and log.options.max_file_age is not None and log.segments:
        held = held or Held(Why.CLOCK, f"{doubt}: nothing is removed by age")
    wanted = max(allowed, aged)
    again_ns = min((ns for ns in (again_ns, age_again_ns) if ns is not None), default=None)
    if not wanted:
        return Plan(log.first, full > 0, held, (), again_ns)
    made = trim(log, log.segment_end(wanted - 1), stuck=stuck, lost=lost)
    gone = _index(log, made.first)
    return Plan(made.first, full > gone, made.held or held, made.uncopied, again_ns)


def trim(
    log: Log,
    before: int,
    *,
    stuck: Callable[[str], str | None] = lambda _consumer: None,
    lost: Collection[int] = (),
) -> Plan:
    """What can go of the segments that lie wholly below ``before``, whoever asks for it."""
    wanted = first = log.trim_to(before)
    held: Held | None = None
    for name in log.options.protected:
        cursor = log.cursors.get(name)
        # One that has no cursor yet is to find everything when it comes.
        floor = cursor.committed if cursor is not None else log.first
        if (reached := log.trim_to(min(floor, first))) < first:
            first = reached
            text = f"protected consumer {name!r} has committed up to {floor} only"
            if cursor is None:
                text = f"protected consumer {name!r} has no cursor yet"
            held = Held(Why.PROTECTED, text)
    uncopied = tuple(each for each in _uncopied(log, first) if each.offset not in lost)
    if uncopied:
        first = log.trim_to(min(first, uncopied[0].offset))
        reasons = ((each, stuck(each.consumer)) for each in uncopied)
        for each, reason in reasons:
            if reason is not None:
                text = f"parked record {each.offset} of consumer {each.consumer!r}: {reason}"
                held = Held(Why.PARKED, text)
                break
    return Plan(first, first < wanted, held, uncopied)


def _full(log: Log, adding: int, rolls: bool) -> int:
    """How many segments have to go so that the log is within its size."""
    limit = log.options.max_total_bytes
    if limit is None:
        return 0
    total, count = log.bytes + adding, 0
    # What is written now stays; and where nothing is to be written, the last one is that.
    while count < len(log.segments) - (not rolls) and total > limit:
        total -= log.segments[count].bytes
        count += 1
    return count


def _old_enough(
    log: Log, count: int, now_ns: int, doubt: str | None
) -> tuple[int, Held | None, int | None]:
    """How many of the first ``count`` segments are as old as they have to be, why not all of them,
    and when the next one will be.
    """
    minimum = log.options.blocking_minimum_retention
    if minimum is None:
        return count, None, None
    for index in range(count):
        left_ns = log.segments[index].time_max_ns + _ns(minimum) - now_ns
        if doubt is not None:
            text = f"{doubt}: how old its records are is not known"
            return index, Held(Why.CLOCK, text), None
        if left_ns > 0:
            text = (
                f"the records up to {log.segment_end(index)} are younger than "
                f"blocking_minimum_retention ({minimum:g} s), for another {left_ns / 1e9:.1f} s"
            )
            return index, Held(Why.MINIMUM, text), left_ns
    return count, None, None


def _aged(log: Log, now_ns: int, doubt: str | None) -> tuple[int, int | None]:
    """How many segments are older than ``max_file_age``, and when the next one will be."""
    age = log.options.max_file_age
    if age is None or doubt is not None:
        return 0, None
    for index, segment in enumerate(log.segments):
        if (left_ns := segment.time_max_ns + _ns(age) - now_ns) >= 0:
            return index, left_ns + 1
    return len(log.segments), None


def _uncopied(log: Log, first: int) -> Iterator[Uncopied]:
    """The parked records that would lose their place, lowest first."""
    found = [
        Uncopied(offset, name)
        for name, cursor in log.cursors.items()
        for offset, parked in cursor.parked.items()
        if log.first <= offset < first and not parked.copy
    ]
    return iter(sorted(found))


def _index(log: Log, first: int) -> int:
    """How many segments lie below ``first``."""
    return sum(log.segment_end(index) <= first for index in range(len(log.segments)))


def _ns(seconds: float) -> int:
    return round(seconds * 1e9)


# --- the clock ------------------------------------------------------------------------------


def doubt_of(
    difference_ns: int, believed_ns: int | None, now_ns: int, stored_ns: int
) -> str | None:
    """Why the wall clock, which says ``now_ns``, is not to be believed; None: it is.

    ``difference_ns``: what it is ahead of the time since the machine's boot; ``believed_ns``: what
    it should be ahead, None where that is not known. ``stored_ns``: the latest time that is stored.
    """
    if believed_ns is not None:
        jump_ns = difference_ns - believed_ns
        if abs(jump_ns) > JUMP_NS:
            return (
                f"the clock has jumped {'forward' if jump_ns > 0 else 'back'} by {_span(jump_ns)}"
            )
    elif now_ns < stored_ns:
        return f"the clock is {_span(stored_ns - now_ns)} behind what is stored"
    return None


def _span(ns: int) -> str:
    days = abs(ns) / _DAY_NS
    return f"{days:.0f} days" if days >= 2 else f"{days * 24:.1f} hours"

"""What of a log is to go, and why it is not more: the pure part, case by case."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlog import facts
from rlog.retention import JUMP_NS, Plan, Uncopied, Why, doubt_of, plan, trim
from rlog.state import Cursor, Log, Parked, Segment

SECOND = 10**9
DAY = 86_400 * SECOND
NOW = 1000 * SECOND


def log_of(*segments: tuple[int, int], **options: Any) -> Log:
    """Ten records a segment: (bytes, seconds since the youngest of them), the oldest first."""
    options.setdefault("protected", ())
    made = Log(1, "a", facts.Options(**options), end=10 * len(segments))
    for index, (size, age) in enumerate(segments):
        made.segments.append(Segment(10 * index, size, NOW - age * SECOND))
    return made


FOUR = ((100, 40), (100, 30), (100, 20), (100, 10))


def first_of(log: Log, **more: Any) -> int:
    return plan(log, NOW, **more).first


# --- by size ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("limit", "adding", "rolls", "first", "over"),
    [
        (400, 0, False, 0, False),  # exactly full is not too much
        (399, 0, False, 10, False),
        (300, 0, False, 10, False),
        (299, 0, False, 20, False),
        (100, 0, False, 30, False),
        (50, 0, False, 30, False),  # what is written now stays
        (50, 0, True, 40, False),  # unless the next append begins another
        (400, 1, False, 10, False),  # what an append will add counts
        (400, 100, True, 10, False),
        (400, 101, True, 20, False),
        (400, 400, True, 40, False),
        (400, 4000, True, 40, False),  # a batch larger than all of it
    ],
)
def test_as_many_go_as_it_takes_to_be_within_the_size(
    limit: int, adding: int, rolls: bool, first: int, over: bool
) -> None:
    made = plan(log_of(*FOUR, max_total_bytes=limit), NOW, adding=adding, rolls=rolls)
    assert made == Plan(first, over)


@given(
    st.lists(st.integers(1, 500), max_size=12), st.integers(1, 3000), st.integers(0, 600),
    st.booleans(),
)  # fmt: skip
def test_the_bound_holds_behind_the_append_and_not_one_segment_too_many_goes(
    sizes: list[int], limit: int, adding: int, rolls: bool
) -> None:
    log = log_of(*((size, 1) for size in sizes), max_total_bytes=limit)
    first = first_of(log, adding=adding, rolls=rolls)
    kept = [s.bytes for i, s in enumerate(log.segments) if log.segment_end(i) > first]
    gone = [s.bytes for i, s in enumerate(log.segments) if log.segment_end(i) <= first]
    written = 0 if rolls else 1
    assert sum(kept) + adding <= limit or len(kept) <= written
    if gone:
        assert sum(kept) + gone[-1] + adding > limit


def test_nothing_goes_by_default_however_old_and_large() -> None:
    assert plan(log_of(*((1 << 40, 10**9),) * 4), NOW) == Plan(0)


def test_of_an_empty_log_nothing_can_go() -> None:
    assert plan(log_of(max_total_bytes=1, max_file_age=1.0), NOW, adding=100) == Plan(0)


# --- by age -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("age", "first", "again"),
    [
        (50, 0, 10),
        (40, 0, 0),  # exactly as old is not older
        (39, 10, 9),
        (25, 20, 5),
        (10, 30, 0),
        (9, 40, None),  # the one that is written as well: nothing newer is in it
    ],
)
def test_what_is_older_goes_and_it_is_known_when_the_next_is(
    age: float, first: int, again: int | None
) -> None:
    made = plan(log_of(*FOUR, max_file_age=age), NOW)
    again_ns = None if again is None else again * SECOND + 1
    assert made == Plan(first, again_ns=again_ns)


def test_a_young_segment_keeps_all_behind_it() -> None:
    assert first_of(log_of((1, 50), (1, 5), (1, 50), max_file_age=20)) == 10


def test_the_larger_of_both_counts() -> None:
    assert first_of(log_of(*FOUR, max_file_age=25, max_total_bytes=150)) == 30
    assert first_of(log_of(*FOUR, max_file_age=15, max_total_bytes=350)) == 30


# --- the minimum --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("minimum", "first", "over", "again"),
    [
        (5, 30, False, None),
        (20, 30, False, None),
        (25, 20, True, 5),
        (41, 0, True, 1),
    ],
)
def test_what_is_younger_than_the_minimum_does_not_go_for_the_size(
    minimum: float, first: int, over: bool, again: int | None
) -> None:
    log = log_of(*FOUR, max_total_bytes=100, blocking_minimum_retention=minimum)
    made = plan(log, NOW)
    assert (made.first, made.over) == (first, over)
    assert made.again_ns == (None if again is None else again * SECOND)
    assert (made.held is not None) is over
    if made.held is not None:
        assert made.held.why is Why.MINIMUM
        assert f"for another {again}.0 s" in made.held.text


def test_within_its_size_the_minimum_holds_nothing_back() -> None:
    log = log_of(*FOUR, max_total_bytes=400, blocking_minimum_retention=1000.0)
    assert plan(log, NOW) == Plan(0)
    assert plan(log, NOW, adding=1, rolls=True).over


# --- protected consumers ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("committed", "first", "held"),
    [(None, 0, True), (0, 0, True), (9, 0, True), (10, 10, True), (25, 20, True), (30, 30, False)],
)
@pytest.mark.parametrize("how", ["size", "age", "by hand"])
def test_no_trim_passes_what_a_protected_consumer_has_not_committed(
    how: str, committed: int | None, first: int, held: bool
) -> None:
    log = log_of(*FOUR, protected=("c",))
    if committed is not None:
        log.cursors = {"c": Cursor(committed, 1), "d": Cursor(0, 1)}
    if how == "size":
        log.options = facts.Options(max_total_bytes=100, protected=("c",))
    elif how == "age":
        log.options = facts.Options(max_file_age=15.0, protected=("c",))
    made = trim(log, 30) if how == "by hand" else plan(log, NOW)
    assert made.first == first
    assert (made.held is not None) is held
    if made.held is not None:
        assert made.held.why is Why.PROTECTED
        assert "'c'" in made.held.text
        expected = "no cursor yet" if committed is None else f"up to {committed} "
        assert expected in made.held.text


def test_the_slowest_of_several_counts() -> None:
    log = log_of(*FOUR, max_total_bytes=100, protected=("@global", "c"))
    log.cursors = {"c": Cursor(35, 1), "@global": Cursor(12, 1)}
    made = plan(log, NOW)
    assert (made.first, made.over) == (10, True)
    assert made.held is not None
    assert "@global" in made.held.text


# --- parked records -----------------------------------------------------------------------------


def with_parked(log: Log, consumer: str, *offsets: int, copied: int = 0) -> Log:
    parked = {offset: Parked("", "", 1, 0) for offset in offsets}
    for offset in offsets[:copied]:
        parked[offset].copy = b"batch"
    log.cursors[consumer] = Cursor(40, 1, parked=parked)
    return log


def test_a_parked_record_that_is_not_copied_is_not_passed() -> None:
    log = with_parked(log_of(*FOUR, max_total_bytes=100), "c", 12, 25)
    with_parked(log, "d", 11, 33)
    made = plan(log, NOW)
    assert made.first == 10
    assert made.over
    # Only what would lose its place, lowest first, and it is no fault of anybody's.
    assert made.uncopied == (Uncopied(11, "d"), Uncopied(12, "c"), Uncopied(25, "c"))
    assert made.held is None


def test_one_that_is_copied_or_lost_is_passed() -> None:
    log = with_parked(log_of(*FOUR, max_total_bytes=100), "c", 2, 12, 25, copied=2)
    assert plan(log, NOW).first == 20
    assert plan(log, NOW, lost={25}) == Plan(30)


def test_one_that_cannot_be_copied_is_named() -> None:
    log = with_parked(log_of(*FOUR), "c", 12)
    made = trim(log, 40, stuck=lambda consumer: f"{consumer} has 8 MiB")
    assert made.first == 10
    assert made.held is not None
    assert made.held.why is Why.PARKED
    assert made.held.text == "parked record 12 of consumer 'c': c has 8 MiB"


def test_what_lies_below_the_log_or_above_the_trim_needs_no_copy() -> None:
    log = with_parked(log_of(*FOUR), "c", 2, 35)
    log.segments, log.first = log.segments[1:], 10
    assert trim(log, 30) == Plan(30)


# --- the clock ----------------------------------------------------------------------------------


def test_while_the_clock_is_doubted_nothing_goes_by_age_and_all_counts_as_young() -> None:
    assert plan(log_of(*FOUR, max_total_bytes=100), NOW, doubt="it jumped") == Plan(30)
    made = plan(log_of(*FOUR, max_file_age=1.0), NOW, doubt="it jumped")
    assert made.first == 0
    assert made.held is not None
    assert made.held.why is Why.CLOCK
    blocked = log_of(*FOUR, max_total_bytes=100, blocking_minimum_retention=1.0)
    made = plan(blocked, NOW, doubt="it jumped")
    assert (made.first, made.over) == (0, True)
    assert made.held is not None
    assert made.held.why is Why.CLOCK


@pytest.mark.parametrize(
    ("jump", "believed", "text"),
    [
        (0, True, None),
        (JUMP_NS, True, None),
        (-JUMP_NS, True, None),
        (JUMP_NS + 1, True, "forward by 1.0 hours"),
        (-3653 * DAY, True, "back by 3653 days"),
        (3653 * DAY, True, "forward by 3653 days"),
        # On a boot of which nothing is known, time may have passed, and not gone back.
        (3653 * DAY, False, None),
        (-5 * DAY, False, "5 days behind what is stored"),
    ],
)
def test_the_clock_is_doubted_when_it_jumped_or_is_behind(
    jump: int, believed: bool, text: str | None
) -> None:
    since_boot = 17 * SECOND
    now = NOW + 10_000 * DAY + jump
    usual = NOW + 10_000 * DAY - since_boot
    found = doubt_of(now - since_boot, usual if believed else None, now, NOW + 10_000 * DAY)
    assert (found is None) is (text is None), found
    assert text is None or text in str(found)

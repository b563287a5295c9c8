"""An index says where to begin walking: never behind what is looked for, and a hint only."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from rlog import index as indexes
from rlog.index import (
    SPACING,
    Index,
    Milestone,
    milestone_at_offset,
    milestone_at_time,
    with_milestone,
)
from rlog_client.batch import Header


def header(base: int, count: int, size: int, time_ns: int) -> Header:
    return Header(count, size - 80, 1, 0, 0, 0, 0, 1, base, time_ns)


batches = st.lists(
    st.tuples(st.integers(1, 50), st.integers(100, 3 * SPACING), st.integers(0, 100)), max_size=40
)


def built(sizes: list[tuple[int, int, int]], base: int) -> tuple[Index, list[tuple[int, Header]]]:
    index, found, position = Index(base), [], 0
    for count, size, time_ns in sizes:
        found.append((position, header(base, count, size, time_ns)))
        index.add(*found[-1])
        position += size
        base += count
    return index, found


@given(batches, st.integers(0, 10**6))
def test_an_offset_is_never_behind_its_entry(sizes: list[tuple[int, int, int]], base: int) -> None:
    index, found = built(sizes, base)
    places = {(each.base, position) for position, each in found}
    for position, each in found:
        for offset in {each.base, each.end - 1}:
            start, at = index.at_offset(offset)
            assert (start, at) in places, "an entry is a batch's begin"
            assert start <= offset
            assert position - at < SPACING, "and a short walk away"


@given(batches, st.integers(0, 101))
def test_nothing_as_young_as_a_time_lies_before_its_entry(
    sizes: list[tuple[int, int, int]], time_ns: int
) -> None:
    index, found = built(sizes, 7)
    start, at = index.at_time(time_ns)
    for position, each in found:
        if position < at:
            assert each.time_ns < time_ns
    assert (start, at) in {(each.base, position) for position, each in found} or not found


def test_an_empty_index_begins_at_the_base() -> None:
    assert Index(42).at_offset(99) == (42, 0)
    assert Index(42).at_time(99) == (42, 0)


@given(batches)
def test_an_index_knows_how_far_it_is_built(sizes: list[tuple[int, int, int]]) -> None:
    index, found = built(sizes, 5)
    if found:
        position, last = found[-1]
        assert (index.end, index.position) == (last.end, position + last.bytes)
    else:
        assert (index.end, index.position) == (5, 0)


# --- milestones -----------------------------------------------------------------------------------

MIB = 1 << 20
far = st.lists(
    st.tuples(st.integers(1, 50), st.integers(100, 6 * MIB), st.integers(0, 100)), max_size=60
)


def noted(sizes: list[tuple[int, int, int]]) -> tuple[bytes, list[tuple[int, Header]]]:
    milestones, newest_ns = b"", -1
    found: list[tuple[int, Header]] = []
    base = position = 0
    for count, size, time_ns in sizes:
        if found:
            milestones = with_milestone(milestones, base, position, newest_ns)
        found.append((position, header(base, count, size, time_ns)))
        newest_ns = max(newest_ns, time_ns)
        position += size
        base += count
    return milestones, found


@given(far)
def test_a_milestone_is_a_batchs_begin_a_short_walk_away(sizes: list[tuple[int, int, int]]) -> None:
    milestones, found = noted(sizes)
    places = {each.base: position for position, each in found}
    for position, each in found:
        for offset in {each.base, each.end - 1}:
            milestone = milestone_at_offset(milestones, offset)
            if milestone is None:
                milestone = Milestone(0, 0, -1)
            assert places[milestone.offset] == milestone.position
            assert milestone.offset <= offset
            # What is larger than that by itself counts once.
            assert position - milestone.position < indexes.MILESTONE_SPACING


@given(far)
def test_milestones_are_far_apart(sizes: list[tuple[int, int, int]]) -> None:
    milestones, found = noted(sizes)
    length = found[-1][0] if found else 0
    assert len(milestones) <= 24 * (length // indexes.MILESTONE_SPACING)


@given(far, st.integers(0, 101))
def test_nothing_as_young_as_a_time_lies_before_its_milestone(
    sizes: list[tuple[int, int, int]], time_ns: int
) -> None:
    milestones, found = noted(sizes)
    milestone = milestone_at_time(milestones, time_ns)
    if milestone is not None:
        assert all(each.time_ns < time_ns for at, each in found if at < milestone.position)
    # And the last such one there is.
    for at in range(0, len(milestones), 24):
        other = Milestone(
            *(int.from_bytes(milestones[at + n : at + n + 8], "little") for n in (0, 8, 16))
        )
        if other.time_max_ns < time_ns:
            assert milestone is not None
            assert milestone.position >= other.position


def test_a_record_as_young_as_the_time_may_lie_before_a_milestone() -> None:
    spacing = indexes.MILESTONE_SPACING
    milestones = with_milestone(b"", 10, spacing, 100)
    assert milestone_at_time(milestones, 100) is None
    assert milestone_at_time(milestones, 101) == (10, spacing, 100)


def test_a_segment_that_has_none_yet_gets_no_more_than_others() -> None:
    spacing = indexes.MILESTONE_SPACING
    milestones = with_milestone(b"", 10, 9 * spacing, 0)
    assert len(milestones) == 24
    assert with_milestone(milestones, 11, 10 * spacing - 1, 0) == milestones
    assert milestone_at_offset(with_milestone(milestones, 12, 10 * spacing, 0), 99) == (
        12,
        10 * spacing,
        0,
    )

"""What is settled out of order, against a set of offsets."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from rlog.shared import Failure, Member, Shared, add, holds, holes, pairs

bounds = st.tuples(st.integers(0, 40), st.integers(1, 8)).map(lambda b: (b[0], b[0] + b[1]))


def offsets(ranges: list[int]) -> set[int]:
    return {offset for begin, end in pairs(ranges) for offset in range(begin, end)}


def made(of: list[tuple[int, int]]) -> list[int]:
    ranges: list[int] = []
    for begin, end in of:
        add(ranges, begin, end)
    return ranges


@given(st.lists(bounds, max_size=12))
def test_ranges_hold_what_was_added_and_touch_nowhere(of: list[tuple[int, int]]) -> None:
    ranges = made(of)
    assert offsets(ranges) == {offset for begin, end in of for offset in range(begin, end)}
    assert all(a < b for a, b in pairwise(ranges))


@given(st.lists(bounds, max_size=12), st.integers(-2, 50))
def test_holds_is_whether_it_was_added(of: list[tuple[int, int]], offset: int) -> None:
    assert holds(made(of), offset) == any(begin <= offset < end for begin, end in of)


@given(st.lists(bounds, max_size=12), st.integers(0, 50), st.integers(0, 50))
def test_holes_are_the_rest_in_order(of: list[tuple[int, int]], begin: int, end: int) -> None:
    ranges = made(of)
    found = list(holes(ranges, begin, end))
    assert offsets([bound for pair in found for bound in pair]) == (
        set(range(begin, end)) - offsets(ranges)
    )
    assert found == sorted(found)
    assert all(low < high for low, high in found)


@given(
    st.integers(0, 20),
    st.lists(bounds, max_size=12),
    st.sets(st.integers(0, 60)),
    st.sets(st.integers(0, 60)),
)
def test_the_floor_is_the_first_that_is_not_settled(
    floor: int, of: list[tuple[int, int]], failed: set[int], alone: set[int]
) -> None:
    shared = Shared(failed={offset: Failure(1) for offset in failed}, alone=set(alone))
    done, now = set(range(floor)), floor
    for begin, end in of:
        before = now
        now = shared.settle(now, begin, end)
        done |= set(range(begin, end))
        assert now >= before
        assert now == min(set(range(max(done, default=0) + 2)) - done)
        assert offsets(shared.settled) == {offset for offset in done if offset >= now}
        settled = set(range(max(begin, before), end))
        failed, alone = failed - settled, alone - settled
        assert set(shared.failed) == failed
        assert shared.alone == alone


def test_a_member_is_found_by_its_token_and_by_its_name() -> None:
    shared = Shared(members={4: Member(b"t", "host:1", 5), 7: Member(b"u", "host:1", 6)})
    assert [shared.member_of(token) for token in (b"t", b"u", b"v")] == [4, 7, None]
    assert shared.named("host:1") == shared.named(None) == [4, 7]
    assert shared.named("host:2") == []

"""The state is what the facts add up to, and nothing besides."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlog import facts, state
from rlog.segment import Place
from rlog.state import State
from rlog_client.batch import HEADER_BYTES
from tests.storage.build import batch_of

ROLL = 500
OPTIONS = facts.Options(None, ROLL)


def appended(log: int, base: int, size: int, count: int = 1, time_ns: int = 1000) -> facts.Appended:
    """An append of a batch of ``size`` bytes; of one more where no batch has so many."""
    for value in range(size):
        values = [b"x" * value] + [b""] * (count - 1)
        raw = batch_of(values, log=log, base=base, time_ns=time_ns)
        if len(raw) >= size:
            return facts.Appended(raw[:HEADER_BYTES])
    raise AssertionError(size)


def with_log(*more: facts.Fact) -> State:
    made = State()
    for fact in (facts.Created(1, "orders", OPTIONS), *more):
        made.apply(fact, 5)
    return made


def places(made: State, *appends: facts.Appended) -> list[Place]:
    found = []
    for fact in appends:
        append = made.apply(fact, 5)
        assert append is not None
        found.append(append.place)
    return found


def test_batches_lie_one_behind_the_other() -> None:
    made = with_log()
    assert places(made, appended(1, 0, 100), appended(1, 1, 150, 3), appended(1, 4, 100)) == [
        Place(1, 0, 0, True),
        Place(1, 0, 100, False),
        Place(1, 0, 250, False),
    ]
    log = made.logs[1]
    assert (log.first, log.end, log.bytes) == (0, 5, 350)


def test_the_roll_is_decided_before_the_write() -> None:
    made = with_log()
    found = places(made, appended(1, 0, 400), appended(1, 1, 100), appended(1, 2, 100))
    assert found == [Place(1, 0, 0, True), Place(1, 0, 400, False), Place(1, 2, 0, True)]
    assert all(segment.bytes <= ROLL for segment in made.logs[1].segments)


def test_an_oversized_batch_lies_alone_in_its_file() -> None:
    made = with_log()
    found = places(made, appended(1, 0, 100), appended(1, 1, 900), appended(1, 2, 100))
    assert found == [Place(1, 0, 0, True), Place(1, 1, 0, True), Place(1, 2, 0, True)]


@given(
    st.lists(st.tuples(st.integers(90, 700), st.integers(1, 3)), max_size=30), st.integers(0, 80)
)
def test_offsets_stay_dense_through_rolls_and_trims(
    sizes: list[tuple[int, int]], before: int
) -> None:
    made = with_log()
    end = 0
    for size, count in sizes:
        places(made, appended(1, end, max(size, 90 + 2 * count), count))
        end += count
    log = made.logs[1]
    assert log.end == end
    first = log.trim_to(before)
    assert log.first <= first <= max(log.first, before)
    made.apply(facts.Trimmed(1, first), 5)
    assert (log.first, log.end) == (first, end)
    assert [segment.base for segment in log.segments] == sorted({s.base for s in log.segments})
    assert not log.segments or log.segments[0].base == first
    assert log.trim_to(before) == first, "a trim is done once"


def test_a_trim_takes_whole_segments_and_never_past_its_bound() -> None:
    made = with_log(*(appended(1, offset, 300) for offset in range(4)))
    log = made.logs[1]
    assert [segment.base for segment in log.segments] == [0, 1, 2, 3]
    assert [log.trim_to(before) for before in (0, 1, 2, 3, 4, 9)] == [0, 1, 2, 3, 4, 4]
    made.apply(facts.Trimmed(1, 2), 5)
    assert (log.first, [segment.base for segment in log.segments]) == (2, [2, 3])
    made.apply(facts.Trimmed(1, 4), 5)
    assert (log.first, log.end, log.segments) == (4, 4, [])
    assert places(made, appended(1, 4, 100)) == [Place(1, 4, 0, True)]


def test_a_trim_leaves_the_list_that_a_reader_walks() -> None:
    made = with_log(*(appended(1, offset, 300) for offset in range(3)))
    walked = made.logs[1].segments
    made.apply(facts.Trimmed(1, 2), 5)
    assert [segment.base for segment in walked] == [0, 1, 2]


def test_a_segment_is_found_by_any_offset_in_it() -> None:
    made = with_log(appended(1, 0, 200, 3), appended(1, 3, 200, 2), appended(1, 5, 200, 4))
    log = made.logs[1]
    assert [segment.base for segment in log.segments] == [0, 5]
    assert [log.segment_index(offset) for offset in range(9)] == [0] * 5 + [1] * 4
    assert [log.segment_end(index) for index in (0, 1)] == [5, 9]


def test_time_never_runs_backwards_in_the_running_maximum() -> None:
    made = with_log(
        appended(1, 0, 300, time_ns=50),
        appended(1, 1, 300, time_ns=20),
        appended(1, 2, 300, time_ns=60),
    )
    assert [segment.time_max_ns for segment in made.logs[1].segments] == [50, 50, 60]


CLAIM = facts.Claimed(1, "c", 1, b"t" * 16, "host:1", 0)


def test_a_claim_holds_until_it_is_released() -> None:
    made = with_log(CLAIM, facts.Committed(1, "c", 1, 4))
    cursor = made.logs[1].cursors["c"]
    assert cursor.holder == state.Holder(b"t" * 16, "host:1", 5)
    assert (cursor.committed, cursor.epoch) == (4, 1)
    made.apply(facts.Released(1, "c", 1), 6)
    again = made.logs[1].cursors["c"]
    assert again == state.Cursor(4, 1, None)


def test_opened_ends_every_claim_and_keeps_every_epoch() -> None:
    made = with_log(CLAIM, facts.Claimed(1, "d", 9, b"u" * 16, "host:2", 3), facts.Opened())
    cursors = made.logs[1].cursors
    assert [(c.epoch, c.committed, c.held) for c in cursors.values()] == [
        (1, 0, False),
        (9, 3, False),
    ]


@pytest.mark.parametrize("keep", [True, False])
def test_a_seek_moves_the_cursor_under_a_new_epoch(keep: bool) -> None:
    made = with_log(CLAIM, facts.Sought(1, "c", 2, 7, keep))
    cursor = made.logs[1].cursors["c"]
    assert (cursor.committed, cursor.epoch, cursor.holder is not None) == (7, 2, keep)


def test_a_seek_makes_a_cursor_that_is_not_there() -> None:
    made = with_log(facts.Sought(1, "new", 1, 7, False))
    assert made.logs[1].cursors["new"] == state.Cursor(7, 1, None)


def test_a_forgotten_cursor_is_gone() -> None:
    assert with_log(CLAIM, facts.Forgotten(1, "c")).logs[1].cursors == {}


def test_an_id_is_never_used_again() -> None:
    made = with_log(facts.Created(2, "b", OPTIONS), facts.Deleted(2))
    assert made.next_log == 3
    assert made.by_name("b") is None
    again = state.load(state.dump(made))
    assert again.next_log == 3


def test_altered_options_hold_from_then_on() -> None:
    made = with_log(appended(1, 0, 300), facts.Altered(1, facts.Options("never", 200)))
    assert places(made, appended(1, 1, 100)) == [Place(1, 1, 0, True)]
    assert made.logs[1].options.sync == "never"


def test_two_logs_do_not_share_anything() -> None:
    made = with_log(facts.Created(2, "b", OPTIONS), CLAIM, appended(1, 0, 100))
    assert (made.logs[2].end, made.logs[2].segments, made.logs[2].cursors) == (0, [], {})
    assert State().logs == {}, "no default is shared"


def test_a_dumped_state_is_loaded_as_it_was() -> None:
    made = with_log(CLAIM, appended(1, 0, 300), appended(1, 1, 300), facts.Trimmed(1, 1))
    again = state.load(state.dump(made))
    assert again == made
    assert again.segments() == {(1, 1, 0)}
    again.apply(appended(1, 2, 100), 5)
    assert again != made, "a copy shares nothing"


@pytest.mark.parametrize("raw", [b"", b"\x92", b"\x90\x90", b"\x92\x80\xa1x"])
def test_what_is_no_state_is_not_loaded(raw: bytes) -> None:
    with pytest.raises(msgspec.MsgspecError):
        state.load(raw)

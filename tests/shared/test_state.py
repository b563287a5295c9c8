"""The facts of shared consumers: each does one thing, and the state keeps it."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import msgspec
import pytest

from rlog import facts, state
from rlog.shared import Failure, Member, Shared
from rlog.state import State
from tests.shared.run import Run

if TYPE_CHECKING:
    from rlog.facts import Fact

JOIN = facts.Joined(1, "s", 1, b"t", "host:1", 10)
OTHER = facts.Joined(1, "s", 2, b"u", "host:2", 10)


def with_log(*more: Fact) -> State:
    """As it is after these, whichever way they came."""
    made = State()
    every: list[Fact] = [facts.Created(1, "orders", facts.Options()), *more]
    for time_ns, fact in enumerate(facts.decode(facts.encode(every)), 5):
        made.apply(fact, time_ns)
        loaded = state.load(state.dump(made))
        assert loaded == made, "what is loaded is what was dumped"
    return made


def consumer(*more: Fact) -> tuple[state.Cursor, Shared]:
    cursor = with_log(JOIN, OTHER, *more).logs[1].cursors["s"]
    assert cursor.shared is not None
    return cursor, cursor.shared


def completed(*done: int, epoch: int = 1, begun: tuple[int, ...] = ()) -> facts.Completed:
    return facts.Completed(1, "s", epoch, list(done), list(begun))


def parked(offset: int, **more: object) -> facts.Parked:
    made = facts.Parked(1, "s", 1, offset, 2, "why", "E", "", None, True, 0)
    return msgspec.structs.replace(made, **more)


def test_who_joins_makes_the_consumer_and_is_one_of_its_members() -> None:
    cursor, shared = consumer()
    assert (cursor.committed, cursor.epoch, cursor.holder, cursor.held) == (10, 2, None, False)
    assert shared.members == {1: Member(b"t", "host:1", 6), 2: Member(b"u", "host:2", 7)}


def test_left_returned_released_and_opened_concern_members_by_their_epochs() -> None:
    left = (facts.Left(1, "s", 1),)
    assert [each.held for each in consumer(*left)[1].members.values()] == [False, True]
    back = (*left, facts.Returned(1, "s", 1))
    assert [each.held for each in consumer(*back)[1].members.values()] == [True, True]
    assert list(consumer(facts.Released(1, "s", 1))[1].members) == [2]
    opened = consumer(facts.Opened())[1]
    assert [each.held for each in opened.members.values()] == [False, False]


@pytest.mark.parametrize(("name", "left"), [(None, []), ("host:2", [1]), ("host:3", [1, 2])])
def test_evicted_are_those_of_a_name_or_all(name: str | None, left: list[int]) -> None:
    cursor, shared = consumer(completed(begun=(10,)), facts.Evicted(1, "s", 3, False, name))
    assert (list(shared.members), cursor.epoch) == (left, 3)
    assert (shared.failed, shared.alone) == ({}, set())


def test_completed_settles_ranges_and_says_what_is_begun() -> None:
    cursor, shared = consumer(completed(12, 14, 16, 17, begun=(10, 11)))
    assert (cursor.committed, shared.settled) == (10, [12, 14, 16, 17])
    assert shared.members[1].begun == [10, 11]
    cursor, shared = consumer(completed(12, 14, 16, 17), completed(10, 12, epoch=2))
    assert (cursor.committed, shared.settled) == (14, [16, 17])


def test_completed_without_a_word_of_what_is_begun_takes_only_what_is_done_out_of_the_hands() -> (
    None
):
    begun = completed(begun=(10, 11, 12, 13))
    _, shared = consumer(begun, facts.Completed(1, "s", 1, [11, 13], None))
    assert shared.members[1].begun == [10, 13]
    assert shared.settled == [11, 13]


def test_failed_is_kept_until_it_is_settled_and_is_in_hand_no_more() -> None:
    failed = facts.Failed(1, "s", 1, 11, 2, "E", 3)
    cursor, shared = consumer(completed(begun=(10, 11)), failed)
    assert shared.failed == {11: Failure(2, "E", 9, 3)}
    assert (cursor.attempts_of(11), cursor.attempts_of(10), cursor.last_error(11)) == (2, 0, "E")
    assert shared.members[1].begun == [10]
    assert consumer(failed, completed(11, 12))[1].failed == {}


def test_one_that_vanished_with_one_in_hand_failed_it_and_with_several_none() -> None:
    gone = facts.Vanished(1, "s", 1, [], "gone")
    _, shared = consumer(completed(begun=(10,)), gone)
    assert shared.failed == {10: Failure(1, "gone", 9, 0)}
    assert (list(shared.members), shared.alone) == ([2], {10})
    _, shared = consumer(completed(begun=(10, 12)), gone)
    assert (shared.failed, shared.alone) == ({}, {10, 12})
    _, shared = consumer(gone)
    assert (shared.failed, shared.alone) == ({}, set())


def test_of_what_lapsed_each_has_failed_and_the_rest_is_not_suspected() -> None:
    _, shared = consumer(completed(begun=(10, 11, 12)), facts.Vanished(1, "s", 1, [10, 12], "late"))
    assert shared.failed == {offset: Failure(1, "late", 9, 0) for offset in (10, 12)}
    assert shared.alone == set()


def test_who_vanishes_is_not_blamed_for_what_another_has_settled() -> None:
    _, shared = consumer(
        completed(begun=(10,)), completed(10, 11, epoch=2), facts.Vanished(1, "s", 1, [], "gone")
    )
    assert (shared.failed, shared.alone) == ({}, set())


def test_a_suspect_that_is_settled_is_none_any_more() -> None:
    gone = facts.Vanished(1, "s", 1, [], "gone")
    begun = completed(begun=(10, 12))
    assert consumer(begun, gone, completed(12, 13, epoch=2))[1].alone == {10}
    assert consumer(begun, gone, parked(12, epoch=2))[1].alone == {10}


def test_parked_is_settled_and_redriven_it_fails_and_is_settled_by_itself() -> None:
    away = (parked(12), facts.Redriven(1, "s", [12, 13]))
    cursor, shared = consumer(*away)
    assert (cursor.is_settled(12), cursor.parked[12].redriven) == (True, True)
    cursor, shared = consumer(*away, facts.Failed(1, "s", 2, 12, 1, "F", 7))
    assert (shared.failed, cursor.attempts_of(12), cursor.parked[12].error) == ({}, 1, "F")
    vanished = (completed(begun=(12,)), facts.Vanished(1, "s", 1, [], "gone"))
    cursor, shared = consumer(*away, *vanished)
    assert (shared.failed, cursor.attempts_of(12), shared.alone) == ({}, 1, {12})
    for end in (facts.Unparked(1, "s", 2, 12), parked(12, epoch=2), parked(12, keep=False)):
        cursor, shared = consumer(*away, *vanished, end)
        redriven = 12 in cursor.parked and cursor.parked[12].redriven
        assert (shared.alone, redriven, cursor.is_settled(12)) == (set(), False, True)


def test_a_redriven_suspect_below_the_floor_is_none_any_more_when_it_is_settled() -> None:
    below = (parked(10), completed(11, 13), facts.Redriven(1, "s", [10]), completed(begun=(10,)))
    gone = facts.Vanished(1, "s", 1, [], "gone")
    cursor, shared = consumer(*below, gone)
    assert (cursor.committed, shared.alone) == (13, {10})
    unparked = facts.Unparked(1, "s", 2, 10)
    for ends in ((parked(10, epoch=2),), (unparked,), (unparked, unparked)):
        assert consumer(*below, gone, *ends)[1].alone == set()


def test_attempts_add_up_whoever_failed() -> None:
    failed = facts.Failed(1, "s", 1, 10, 2, "E", 3)
    gone = facts.Vanished(1, "s", 1, [], "gone")
    cursor, shared = consumer(failed, completed(begun=(10,)), gone)
    assert shared.failed[10].attempts == 3
    assert (cursor.last_error(10), cursor.last_error(11)) == ("gone", "")


def test_the_breaker_is_that_of_all_members() -> None:
    first, second = parked(12, cause="E"), parked(14, cause="E", pause="two", epoch=2)
    cursor, _ = consumer(first, second)
    assert (cursor.paused, cursor.streak) == ("two", [12, 14])
    cursor, _ = consumer(first, completed(10, 11), second)
    assert cursor.streak == [14]
    for end in (completed(10, 11), facts.Resumed(1, "s")):
        cursor, _ = consumer(first, second, end)
        redriven = [each.redriven for each in cursor.parked.values()]
        assert (cursor.paused, redriven) == (None, [True, True])
    cursor, _ = consumer(first, second, completed(begun=(10,)))
    assert cursor.paused == "two", "to begin one is no success"


def test_a_seek_ends_every_claim_and_forgets_what_was_settled_and_failed() -> None:
    cursor, shared = consumer(
        completed(12, 13, begun=(10,)),
        facts.Failed(1, "s", 2, 14, 1, "E", 0),
        parked(15),
        facts.Redriven(1, "s", [15]),
        facts.Sought(1, "s", 3, 11, False),
    )
    assert (cursor.committed, cursor.epoch, cursor.parked[15].redriven) == (11, 3, False)
    assert shared == Shared()


@pytest.mark.parametrize("seed", range(30))
def test_a_recovered_state_is_the_live_one(seed: int) -> None:
    """Whatever random work left behind, and whatever comes then."""
    run = Run(seed)
    run.run(random.Random(seed).randint(20, 120))
    assert state.load(state.dump(run.state)) == run.state

"""The facts of in-order consumers: each does one thing, and the state keeps it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
import pytest

from rlog import facts, state
from rlog.state import Cursor, Holder, Owner, State
from rlog_client.model import PRODUCER_ID

if TYPE_CHECKING:
    from rlog.facts import Fact

CLAIM = facts.Claimed(1, "c", 1, b"t", "host:1", 10)  # at time 6: the second fact
ANEW = facts.Claimed(1, "c", 2, b"u", "host:2", 10)
BEGUN = facts.Committed(1, "c", 1, 10, 11)  # one record in hand
SEVERAL = facts.Committed(1, "c", 1, 10, 13)
LEFT = facts.Left(1, "c", 1)
NOBODY: state.Holder | None = None


def with_log(*more: Fact) -> State:
    """As it is after these, the first of which comes at time 6, whichever way they came."""
    made = State()
    every: list[Fact] = [facts.Created(1, "orders", facts.Options()), *more]
    for time_ns, fact in enumerate(facts.decode(facts.encode(every)), 5):
        made.apply(fact, time_ns)
        assert state.load(state.dump(made)) == made, "what is loaded is what was dumped"
    return made


def cursor(*more: Fact) -> Cursor:
    """Of a consumer that was claimed, at offset 10."""
    return with_log(CLAIM, *more).logs[1].cursors["c"]


def parked(offset: int = 10, **more: object) -> facts.Parked:
    made = facts.Parked(1, "c", 1, offset, 2, "why", "E", "", None, True, 0)
    return msgspec.structs.replace(made, **more)


def failed(offset: int = 10) -> facts.Failed:
    return facts.Failed(1, "c", 1, offset, 2, "E", 3)


# --- claims -------------------------------------------------------------------------------------


def test_a_new_cursor_stands_where_its_first_claim_says_and_an_old_one_where_it_stood() -> None:
    assert cursor() == Cursor(10, 1, Holder(b"t", "host:1", 6), True)
    again = cursor(facts.Released(1, "c", 1), msgspec.structs.replace(ANEW, committed=3))
    assert again == Cursor(10, 2, Holder(b"u", "host:2", 8), True)


def test_who_left_holds_it_until_somebody_else_claims_or_returns_to_it() -> None:
    assert cursor(LEFT) == Cursor(10, 1, Holder(b"t", "host:1", 6), False)
    assert cursor(LEFT, facts.Returned(1, "c", 1)) == cursor()


def test_what_was_in_hand_is_so_no_more_when_a_claim_ends_or_begins() -> None:
    for end in (facts.Released(1, "c", 1), facts.Evicted(1, "c", 2, False)):
        ended = cursor(BEGUN, end)
        assert (ended.holder, ended.held, ended.in_hand, ended.attempts) == (NOBODY, False, None, 0)
    assert cursor(BEGUN, facts.Evicted(1, "c", 2, False)).epoch == 2
    # A takeover from one who is there: nobody vanished.
    assert cursor(BEGUN, ANEW) == Cursor(10, 2, Holder(b"u", "host:2", 8), True)


def test_who_vanished_with_one_record_in_hand_failed_it() -> None:
    after = cursor(BEGUN, LEFT, ANEW)
    error = "host:1 vanished with it in hand"
    assert (after.attempts, after.error, after.one_by_one, after.in_hand) == (1, error, 11, None)
    assert cursor(BEGUN, LEFT, facts.Returned(1, "c", 1)).in_hand == 10


def test_who_vanished_with_several_in_hand_failed_none_and_they_come_one_by_one() -> None:
    after = cursor(SEVERAL, LEFT, ANEW)
    assert (after.attempts, after.error, after.one_by_one, after.in_hand) == (0, "", 13, None)
    # A later, smaller hand does not shorten that.
    after = cursor(SEVERAL, LEFT, ANEW, msgspec.structs.replace(BEGUN, epoch=2), LEFT, ANEW)
    assert (after.attempts, after.one_by_one) == (1, 13)
    assert cursor(failed(), BEGUN, LEFT, ANEW).attempts == 3, "after two that failed otherwise"


def test_who_vanished_with_nothing_in_hand_failed_nothing() -> None:
    assert cursor(LEFT, ANEW) == Cursor(10, 2, Holder(b"u", "host:2", 8), True)


def test_a_lapsed_claim_is_an_attempt_and_an_evicted_one_is_none() -> None:
    after = cursor(BEGUN, facts.Evicted(1, "c", 2, True))
    assert (after.attempts, after.error) == (1, "it was in hand for longer than hand_seconds")
    assert after.one_by_one == 11


def test_a_redriven_record_that_was_in_hand_has_failed_in_its_second_life() -> None:
    away = (parked(9), facts.Redriven(1, "c", [9]), facts.Took(1, "c", 1, 9))
    after = cursor(*away, LEFT, ANEW)
    second = after.parked[9]
    assert (second.attempts, second.error) == (1, "host:1 vanished with it in hand")
    assert (after.attempts, after.hand, after.one_by_one) == (0, None, 0)
    again = (failed(9), facts.Took(1, "c", 1, 9))
    assert cursor(*away, *again, LEFT, ANEW).parked[9].attempts == 3
    # Unless it was passed over meanwhile.
    after = cursor(*away, parked(9, keep=False), facts.Took(1, "c", 1, 9), LEFT, ANEW)
    assert (after.parked, after.attempts) == ({}, 0)


def test_an_owner_is_claimed_as_a_consumer_is() -> None:
    claim = facts.Claimed(1, PRODUCER_ID, 4, b"t", "host:1", 0)
    left, back = facts.Left(1, PRODUCER_ID, 4), facts.Returned(1, PRODUCER_ID, 4)
    holder = Holder(b"t", "host:1", 6)
    for more, owner in (
        ((), Owner(4, holder, True)),
        ((left,), Owner(4, holder, False)),
        ((left, back), Owner(4, holder, True)),
        ((facts.Opened(),), Owner(4, holder, False)),
        ((facts.Released(1, PRODUCER_ID, 4),), Owner(4)),
        ((facts.Evicted(1, PRODUCER_ID, 5, True),), Owner(5)),
    ):
        made = with_log(claim, *more).logs[1]
        assert made.owner == owner
        assert made.cursors == {}


def test_what_nobody_ever_claimed_is_not_claimable() -> None:
    log = with_log(CLAIM).logs[1]
    assert log.claimable("d") is None
    assert log.shared("d") is None
    # An end of it is no news.
    assert with_log(LEFT, facts.Released(1, "c", 1)).logs[1].cursors == {}


# --- verdicts -----------------------------------------------------------------------------------


def test_a_commit_passes_and_says_what_is_begun() -> None:
    after = cursor(failed(), facts.Committed(1, "c", 1, 12, 14))
    assert (after.committed, after.begun, after.in_hand) == (12, 14, 12)
    assert (after.attempts, after.error, after.failed_ns, after.delay_ns) == (0, "", 0, 0)
    assert cursor(facts.Committed(1, "c", 1, 12)).in_hand is None


def test_a_commit_that_only_begins_a_record_forgives_nothing() -> None:
    after = cursor(failed(), BEGUN)
    assert (after.committed, after.attempts, after.error, after.in_hand) == (10, 2, "E", 10)


def test_a_failed_record_is_in_hand_no_more_and_due_again() -> None:
    after = cursor(BEGUN, failed())
    assert (after.attempts, after.error, after.failed_ns, after.delay_ns) == (2, "E", 8, 3)
    assert (after.in_hand, after.last_error(10), after.last_error(11)) == (None, "E", "")


def test_a_parked_record_is_passed_and_kept_with_its_story() -> None:
    after = cursor(failed(), parked(begun=12))
    assert after.parked == {10: state.Parked("why", "E", 2, 8)}
    assert (after.committed, after.begun, after.attempts) == (11, 12, 0)
    assert (after.is_settled(10), after.is_settled(11)) == (True, False)
    assert after.last_error(10) == "E"


def test_one_that_is_passed_over_for_good_is_not_kept() -> None:
    after = cursor(parked(keep=False))
    assert (after.parked, after.committed, after.begun) == ({}, 11, 0)


def redriven(*more: Fact) -> Cursor:
    """10 and 11 were parked, 10 is delivered again, and 12 is in hand."""
    both = (parked(10), parked(11, begun=13), facts.Redriven(1, "c", [10]))
    return cursor(*both, *more)


TOOK = facts.Took(1, "c", 1, 10)


def test_a_redriven_record_begins_a_second_life_and_the_cursor_stands() -> None:
    after = redriven()
    assert after.parked[10] == state.Parked("why", "E", 0, 7, redriven=True)
    assert not after.parked[11].redriven
    assert (after.redriven, after.committed, after.in_hand, after.hand) == (10, 12, 12, None)
    after = redriven(TOOK)
    assert (after.hand, after.in_hand, after.begun) == (10, 10, 13)
    assert cursor().redriven is None


def test_of_several_redriven_the_lowest_comes_first() -> None:
    assert redriven(facts.Redriven(1, "c", [11])).redriven == 10
    assert redriven(facts.Redriven(1, "c", [11]), facts.Unparked(1, "c", 1, 10)).redriven == 11


def test_what_is_redriven_already_or_not_parked_is_not_redriven_anew() -> None:
    again = redriven(TOOK, failed(10), facts.Redriven(1, "c", [9, 10]))
    assert again.parked[10].attempts == 2


def test_a_redriven_record_fails_by_itself() -> None:
    after = redriven(TOOK, failed(10))
    second = after.parked[10]
    assert (second.attempts, second.error, second.failed_ns, second.delay_ns) == (2, "E", 11, 3)
    assert (after.hand, after.attempts, after.in_hand) == (None, 0, 12)
    assert second.redriven
    # Redriven once more, after it was parked once more, all that is forgotten.
    second = redriven(TOOK, failed(10), parked(10), facts.Redriven(1, "c", [10])).parked[10]
    assert (second.attempts, second.failed_ns, second.delay_ns) == (0, 0, 0)


def test_a_redriven_record_is_settled_by_itself() -> None:
    for end, left in (
        (facts.Unparked(1, "c", 1, 10), [11]),
        (parked(10), [10, 11]),
        (parked(10, keep=False), [11]),
    ):
        after = redriven(TOOK, end)
        assert (list(after.parked), after.committed, after.in_hand) == (left, 12, 12)
        assert after.redriven is None
    # Done twice is done once.
    assert list(redriven(*[facts.Unparked(1, "c", 1, 10)] * 2).parked) == [11]


def test_a_commit_puts_down_the_redriven_record_unless_it_begins_another() -> None:
    assert redriven(TOOK, facts.Committed(1, "c", 1, 12)).in_hand is None
    assert redriven(TOOK, facts.Committed(1, "c", 1, 12, 13)).in_hand == 10


def test_the_copy_of_a_parked_record_outlives_its_segment_and_its_second_parking() -> None:
    copied = facts.Trimmed(1, 0, [("c", 10, b"copy")])
    assert redriven(copied).parked[10].copy == b"copy"
    assert redriven(copied, parked(10)).parked[10].copy == b"copy"
    assert redriven(copied, parked(10)).parked[11].copy == b""


# --- seeks --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("offset", "comes_again"), [(11, True), (10, False), (20, True)])
def test_a_seek_forgets_what_was_in_hand_and_what_it_goes_back_over_comes_in_its_turn(
    offset: int, comes_again: bool
) -> None:
    after = redriven(TOOK, LEFT, ANEW, SEVERAL, facts.Sought(1, "c", 3, offset, True))
    assert (after.committed, after.epoch, after.in_hand, after.one_by_one) == (offset, 3, None, 0)
    assert (after.parked[10].redriven, after.parked[11].redriven) == (comes_again, False)


def test_a_seek_to_where_it_stands_forgives_nothing() -> None:
    assert cursor(failed(), facts.Sought(1, "c", 2, 10, True)).attempts == 2
    assert cursor(failed(), facts.Sought(1, "c", 2, 9, True)).attempts == 0


# --- the breaker --------------------------------------------------------------------------------


def exhausted(offset: int, cause: str = "E", pause: str | None = None) -> facts.Parked:
    return parked(offset, cause=cause, pause=pause)


def test_records_in_a_row_exhausted_by_one_cause_are_a_streak() -> None:
    after = cursor(exhausted(10), exhausted(11))
    assert (after.cause, after.streak, after.paused) == ("E", [10, 11], None)
    after = cursor(exhausted(10), exhausted(11, "F"))
    assert (after.cause, after.streak) == ("F", [11])
    # The handler's own verdict is none, nor is a success.
    for other in (parked(11), facts.Committed(1, "c", 1, 12), facts.Unparked(1, "c", 1, 10)):
        after = cursor(exhausted(10), other)
        assert (after.cause, after.streak) == ("", [])


def test_a_commit_that_only_begins_a_record_is_no_success() -> None:
    assert cursor(exhausted(10), facts.Committed(1, "c", 1, 11, 12)).streak == [10]


def test_a_streak_that_is_long_enough_pauses_and_the_first_success_redrives_it() -> None:
    streak = (exhausted(10), exhausted(11, "E", "two of E"))
    assert cursor(*streak).paused == "two of E"
    for end in (facts.Committed(1, "c", 1, 13), facts.Resumed(1, "c")):
        after = cursor(*streak, end)
        assert (after.paused, after.cause, after.streak) == (None, "", [])
        assert [each.redriven for each in after.parked.values()] == [True, True]


def test_while_it_is_paused_the_streak_stays_whatever_fails() -> None:
    streak = (exhausted(10), exhausted(11, "E", "two of E"))
    after = cursor(*streak, exhausted(12, "F"), parked(13))
    assert (after.paused, after.cause, after.streak) == ("two of E", "E", [10, 11, 12])


def test_a_streak_that_a_seek_went_back_over_is_not_redriven_but_comes_in_its_turn() -> None:
    streak = (exhausted(10), exhausted(11, "E", "two of E"))
    after = cursor(*streak, facts.Sought(1, "c", 2, 11, True), facts.Resumed(1, "c"))
    assert [each.redriven for each in after.parked.values()] == [True, False]

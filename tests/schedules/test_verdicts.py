"""Verdicts: what is counted, what waits, what is parked, redriven, paused and resumed."""

from __future__ import annotations

from typing import Any

import pytest

from rlog_client import batch, errors, model, protocol
from rlog_client.protocol import Claimed, Committed, Judged, Taken
from tests.schedules.world import LOG, TEN_YEARS_NS, Client, World, code

TEXT = "ValueError: no"


def member(world: World, name: str = "a", **more: Any) -> Client:
    client = world.client(name)
    world.claim(client, **more)
    return client


def redrive(world: World, *offsets: int) -> int:
    control = protocol.Redrive(LOG, "c", list(offsets) or None)
    answer = world.call(world.client("admin"), control)
    assert isinstance(answer, protocol.Counted)
    return answer.count


def exhaust(world: World, client: Client, offset: int, cause: str = "E", **more: Any) -> Any:
    """A record is out of attempts; three of one cause in a row pause."""
    more = {"verdict": "park", "pause_after": 3, "exhausted": True, "cause": cause, **more}
    return world.settle(client, world.cursor().epoch, offset, **more)


# --- who vanishes with a record in hand ---------------------------------------------------------


def test_a_member_that_vanished_with_one_record_in_hand_failed_it() -> None:
    world = World(3)
    a = member(world)
    world.commit(a, 1, 1, 2)
    world.leave(a)
    assert world.cursor().attempts == 0  # it may come back
    assert world.claim(world.client("b")) == Claimed(2, 1, attempts=1, one_by_one=2)
    assert world.cursor().error == "a vanished with it in hand"


def test_a_member_killed_with_the_server_that_never_came_back_failed_it_too() -> None:
    world = World(3)
    a = member(world)
    world.commit(a, 1, 1, 2)
    world.restart()
    b = world.client("b")
    request = world.ask(b, protocol.Claim(LOG, "c", model.OLDEST, b"b"))
    world.sleep(5.1)
    assert b.answers[request] == Claimed(2, 1, attempts=1, one_by_one=2)


def test_of_several_in_hand_none_is_counted_and_they_are_delivered_one_by_one() -> None:
    world = World(6)
    a = member(world)
    world.commit(a, 1, 1, 4)
    world.leave(a)
    b = world.client("b")
    assert world.claim(b) == Claimed(2, 1, one_by_one=4)
    # The next to vanish names the culprit.
    world.commit(b, 2, 2, 3)
    world.leave(b)
    c = world.client("c")
    assert world.claim(c) == Claimed(3, 2, attempts=1, one_by_one=4)
    world.commit(c, 3, 4)
    world.call(c, protocol.Release(LOG, "c"))
    assert world.claim(world.client("d")) == Claimed(4, 4)


def test_a_record_that_was_not_begun_is_not_counted() -> None:
    world = World(3)
    a = member(world)
    world.commit(a, 1, 1)
    world.leave(a)
    assert world.claim(world.client("b")) == Claimed(2, 1)


@pytest.mark.parametrize("how", ["takeover", "release", "seek", "seek outside", "evict"])
def test_who_ends_otherwise_fails_nothing(how: str) -> None:
    world = World(3)
    a, other = member(world), world.client("b")
    world.commit(a, 1, 1, 2)
    if how == "release":
        world.call(a, protocol.Release(LOG, "c"))
    elif how == "seek":
        world.call(a, protocol.SeekCursor(LOG, "c", model.offset(1), 1))
        world.leave(a)
    elif how == "seek outside":
        world.call(other, protocol.SeekCursor(LOG, "c", model.offset(1), force=True))
    elif how == "evict":
        world.call(other, protocol.Evict(LOG, "c"))
    answer = world.claim(other, takeover=how == "takeover")
    assert (answer.committed, answer.attempts, answer.one_by_one) == (1, 0, 0)


def test_a_member_that_vanished_with_a_redriven_record_failed_that_one() -> None:
    world = World(3)
    a = member(world)
    world.settle(a, 1, 0, "park")
    redrive(world)
    world.take(a, 1, begin=True)
    world.leave(a)
    b = world.client("b")
    assert world.claim(b) == Claimed(2, 1, redriven=True)
    assert world.take(b, 2) == Taken(0, attempts=1)


# --- retry --------------------------------------------------------------------------------------


def test_a_retry_stays_with_its_attempts_and_delay_through_takeover_and_restart() -> None:
    world = World(3)
    a = member(world)
    world.commit(a, 1, 0, 1)
    answer = world.settle(a, 1, 0, "retry", attempts=1, delay=30.0, error=TEXT)
    assert answer == Judged(True)
    world.sleep(10)
    again = world.claim(world.client("b"), takeover=True)
    assert (again.committed, again.attempts) == (0, 1)
    assert again.wait_seconds == pytest.approx(20.0)
    world.restart()
    again = world.claim(world.client("c"), takeover=True)
    assert (again.committed, again.attempts, again.epoch) == (0, 1, 3)
    assert again.wait_seconds == pytest.approx(20.0, abs=0.1)
    assert world.cursor().error == TEXT
    world.sleep(20.1)
    assert world.claim(world.client("d"), takeover=True).wait_seconds == 0


def test_a_retry_is_no_record_in_hand_any_more() -> None:
    world = World(3)
    a = member(world)
    world.commit(a, 1, 0, 1)
    world.settle(a, 1, 0, "retry", attempts=1)
    world.leave(a)
    assert world.claim(world.client("b")) == Claimed(2, 0, attempts=1)


def test_a_retry_whose_answer_was_lost_counts_once() -> None:
    world = World(3)
    a = member(world)
    for _ in range(2):
        world.settle(a, 1, 0, "retry", attempts=1, delay=1.0)
    assert world.cursor().attempts == 1


def test_a_commit_ends_the_attempts() -> None:
    world = World(3)
    a = member(world)
    world.settle(a, 1, 0, "retry", attempts=4, delay=100.0)
    world.commit(a, 1, 1)
    assert world.claim(world.client("b"), takeover=True) == Claimed(2, 1)


@pytest.mark.parametrize("jump_ns", [TEN_YEARS_NS, -TEN_YEARS_NS])
def test_a_delay_is_by_the_monotonic_clock(jump_ns: int) -> None:
    world = World(3)
    a = member(world)
    world.settle(a, 1, 0, "retry", attempts=1, delay=30.0)
    world.clock.jump_ns = jump_ns
    assert world.claim(world.client("b"), takeover=True).wait_seconds == pytest.approx(30.0)
    world.sleep(29)
    assert world.claim(world.client("c"), takeover=True).wait_seconds == pytest.approx(1.0)


@pytest.mark.parametrize("jump_ns", [TEN_YEARS_NS, -TEN_YEARS_NS])
@pytest.mark.parametrize("redriven", [False, True])
def test_a_delay_of_an_earlier_life_is_by_the_monotonic_clock_from_its_start_on(
    jump_ns: int, redriven: bool
) -> None:
    world = World(3)
    a = member(world)
    if redriven:
        world.settle(a, 1, 0, "park")
        redrive(world)
    world.settle(a, 1, 0, "retry", redriven=redriven, attempts=1, delay=30.0)
    world.sleep(10)
    world.restart()
    world.clock.jump_ns = jump_ns

    def left(name: str) -> float:
        client = world.client(name)
        claimed = world.claim(client, takeover=True)
        found = world.take(client, claimed.epoch) if redriven else claimed
        assert found.attempts == 1
        seconds: float = found.wait_seconds
        return seconds

    assert left("b") == pytest.approx(20.0, abs=0.1)
    world.sleep(15)
    assert left("c") == pytest.approx(5.0, abs=0.1)
    world.sleep(5.1)
    assert left("d") == 0


@pytest.mark.parametrize("jump_ns", [TEN_YEARS_NS, -TEN_YEARS_NS])
def test_a_start_under_another_wall_clock_waits_no_longer_than_was_asked(jump_ns: int) -> None:
    world = World(3)
    a = member(world)
    world.settle(a, 1, 0, "retry", attempts=1, delay=30.0)
    world.clock.jump_ns = jump_ns
    world.restart()
    b = world.client("b")
    assert 0 <= world.claim(b, takeover=True).wait_seconds <= 30
    world.sleep(30.1)
    assert world.claim(world.client("c"), takeover=True).wait_seconds == 0


def test_verdicts_are_on_the_record_at_the_cursor_alone() -> None:
    world = World(3)
    a = member(world)
    assert code(world.settle(a, 1, 1, "retry", attempts=1)) == errors.InvalidRequest.code
    assert code(world.settle(a, 1, 3, "park")) == errors.InvalidRequest.code
    assert code(world.settle(a, 1, 0, "commit")) == errors.InvalidRequest.code
    assert code(world.settle(a, 1, 0, "skip")) == errors.InvalidRequest.code
    assert code(world.settle(a, 2, 0, "park")) == errors.Fenced.code
    world.commit(a, 1, 1)
    assert world.settle(a, 1, 0, "park") == Judged(False)  # it stands
    assert world.parked() == []


# --- parked records -----------------------------------------------------------------------------


def test_a_parked_record_is_listed_and_the_cursor_passes_it() -> None:
    world = World(3)
    a = member(world)
    world.commit(a, 1, 1, 2)
    world.settle(a, 1, 1, "park", attempts=2, reason="odd", error=TEXT, begun=3)
    assert (world.cursor().committed, world.cursor().begun) == (2, 3)
    world.restart()
    [info] = world.parked()
    assert (info.offset, info.reason, info.error, info.attempts) == (1, "odd", TEXT, 2)
    assert not info.redriven
    assert world.values()[1] == b"record 1"


def test_redriven_records_come_lowest_first_each_settled_alone_and_the_cursor_stays() -> None:
    world = World(6)
    a = member(world)
    for offset in range(4):
        world.settle(a, 1, offset, "park", attempts=3)
    assert redrive(world, 3, 1, 9) == 2
    assert a.recalls == [(LOG, "c")]
    assert redrive(world) == 2
    assert redrive(world) == 0
    taken = []
    while (found := world.take(a, 1, begin=True)).offset >= 0:
        assert found.attempts == 0
        taken.append(found.offset)
        world.settle(a, 1, found.offset, "commit", redriven=True)
        assert world.cursor().committed == 4
    assert taken == [0, 1, 2, 3]
    assert world.parked() == []
    world.restart()
    assert world.parked() == []


def test_what_is_redriven_stays_so_through_a_restart() -> None:
    world = World(3)
    a = member(world)
    world.settle(a, 1, 0, "park")
    world.settle(a, 1, 1, "park")
    redrive(world, 1)
    world.restart(clean=True)
    b = world.client("b")
    assert world.claim(b, takeover=True) == Claimed(2, 2, redriven=True)
    assert world.take(b, 2) == Taken(1)


@pytest.mark.parametrize("verdict", ["retry", "park", "skip"])
def test_a_redriven_record_has_verdicts_of_its_own(verdict: str) -> None:
    world = World(3)
    a = member(world)
    world.settle(a, 1, 0, "park", attempts=5)
    redrive(world)
    world.take(a, 1, begin=True)
    world.settle(a, 1, 0, verdict, redriven=True, attempts=1, delay=10.0, reason="again")
    assert world.cursor().committed == 1
    found = world.take(a, 1)
    if verdict == "retry":
        assert (found.offset, found.attempts, found.wait_seconds) == (0, 1, 10.0)
    else:
        assert found.offset == -1
    assert [info.reason for info in world.parked()] == (["again"] if verdict == "park" else [""])[
        : verdict != "skip"
    ]


def test_what_was_not_redriven_is_not_delivered_again() -> None:
    world = World(3)
    a = member(world)
    world.settle(a, 1, 0, "park")
    assert world.take(a, 1, begin=True) == Taken(-1)
    # A late verdict on it changes nothing.
    world.settle(a, 1, 0, "commit", redriven=True)
    assert [info.offset for info in world.parked()] == [0]


def test_a_redrive_while_the_consumer_is_at_work_leaves_its_record_alone() -> None:
    world = World(4)
    a = member(world)
    world.settle(a, 1, 0, "park")
    world.commit(a, 1, 1, 2)
    redrive(world)
    assert a.recalls == [(LOG, "c")]
    assert world.cursor().begun == 2
    assert world.commit(a, 1, 2) == Committed(True)
    assert world.take(a, 1, begin=True) == Taken(0)
    world.settle(a, 1, 0, "commit", redriven=True)
    assert world.cursor().committed == 2


@pytest.mark.parametrize("verdict", ["retry", "park", "commit"])
def test_a_parked_record_before_which_the_cursor_was_put_back_moves_no_cursor(
    verdict: str,
) -> None:
    world = World(4)
    a = member(world)
    world.settle(a, 1, 0, "park", attempts=5)
    redrive(world)
    world.call(a, protocol.SeekCursor(LOG, "c", model.OLDEST, 1))
    world.deliver(a)
    # It comes in its turn now, and is not delivered twice.
    assert redrive(world) == 0
    assert world.take(a, 2) == Taken(-1)
    world.settle(a, 2, 0, verdict, redriven=True, attempts=1)
    assert (world.cursor().committed, world.cursor().attempts) == (0, 0)
    assert [info.offset for info in world.parked()] == [0]
    # Passed again, it can be redriven.
    world.commit(a, 2, 1)
    assert redrive(world) == 1
    assert world.take(a, 2) == Taken(0)


def copy_of(world: World, offset: int) -> list[bytes]:
    """The values of a parked record's copy."""
    client = world.client("onlooker")
    request = world.ask(client, protocol.ReadParked(LOG, "c", offset))
    world.pump()
    if isinstance(answer := client.answers[request], protocol.Error):
        assert answer.code == errors.OffsetOutOfRange.code, answer
        return []
    raw = client.payloads[request]
    header = batch.parse_header(raw)
    assert (header.log, header.base, header.count) == (LOG, offset, 1)
    return batch.decode(header, raw[batch.HEADER_BYTES :]).values


@pytest.mark.parametrize("how", ["goes on", "restarted", "after a checkpoint"])
def test_a_parked_record_outlives_the_trim_of_its_place(how: str) -> None:
    world = World()
    client = world.client("filler")
    for number in range(20):
        world.send(client, [b"%04d" % number * 1024])
    a = member(world)
    for offset in (0, 7):
        world.commit(a, 1, offset)
        world.settle(a, 1, offset, "park")
    world.commit(a, 1, 20)
    assert copy_of(world, 7) == []
    assert world.call(client, protocol.TrimLog(LOG, model.LATEST)).first == 20
    if how != "goes on":
        world.restart(clean=how == "after a checkpoint")
        a = member(world)
    assert [(info.offset, info.copied) for info in world.parked()] == [(0, True), (7, True)]
    assert [copy_of(world, offset) for offset in (0, 7)] == [[b"0000" * 1024], [b"0007" * 1024]]
    # It is redriven, fails, is parked again and settled as if it were in its place.
    assert redrive(world) == 2
    assert world.take(a, 1, begin=True) == Taken(0)
    world.settle(a, 1, 0, "retry", redriven=True, attempts=1)
    world.settle(a, 1, 0, "park", redriven=True, attempts=2)
    assert copy_of(world, 0) == [b"0000" * 1024]
    assert world.take(a, 1) == Taken(7)
    world.settle(a, 1, 7, "commit", redriven=True)
    assert [info.offset for info in world.parked()] == [0]
    assert copy_of(world, 7) == []


# --- the breaker --------------------------------------------------------------------------------


def test_as_many_in_a_row_of_one_cause_pause_durably() -> None:
    world = World(9)
    a = member(world)
    for offset in range(2):
        assert exhaust(world, a, offset).paused is None
    paused = exhaust(world, a, 2).paused
    assert paused == "3 records in a row were exhausted by E"
    world.restart()
    assert world.claim(world.client("b"), takeover=True).paused == paused


@pytest.mark.parametrize("how", ["another cause", "a commit", "a plain park", "a skip"])
def test_anything_else_begins_the_row_anew(how: str) -> None:
    world = World(9)
    a = member(world)
    for offset in range(2):
        exhaust(world, a, offset)
    if how == "another cause":
        exhaust(world, a, 2, "F")
    elif how == "a commit":
        world.commit(a, 1, 3)
    elif how == "a plain park":
        world.settle(a, 1, 2, "park", cause="E")
    else:
        world.commit(a, 1, 3)
    for offset in (3, 4):
        assert exhaust(world, a, offset).paused is None
    assert exhaust(world, a, 5).paused is not None


@pytest.mark.parametrize("how", ["a commit", "resume", "a redriven one"])
def test_the_first_success_or_a_resume_redrives_the_streak_in_order(how: str) -> None:
    world = World(9)
    a = member(world)
    world.settle(a, 1, 0, "park")  # not of the streak
    for offset in (1, 2, 3, 4):
        assert (exhaust(world, a, offset).paused is not None) == (offset >= 3)
    if how == "a commit":
        world.commit(a, 1, 6)
    elif how == "resume":
        assert world.call(world.client("admin"), protocol.Resume(LOG, "c")) == protocol.Done()
    else:
        redrive(world, 0)
        world.settle(a, 1, 0, "commit", redriven=True)
    assert a.recalls[-1] == (LOG, "c")
    assert world.cursor().paused is None
    world.restart()
    b = world.client("b")
    world.claim(b, takeover=True)
    taken = []
    while (found := world.take(b, 2)).offset >= 0:
        taken.append(found.offset)
        world.settle(b, 2, found.offset, "commit", redriven=True)
    assert taken == [1, 2, 3, 4]


@pytest.mark.parametrize("how", ["another cause", "a plain park"])
def test_while_it_is_paused_nothing_but_a_success_forgets_the_streak(how: str) -> None:
    world = World(9)
    a = member(world)
    for offset in range(3):
        exhaust(world, a, offset)
    if how == "another cause":
        assert exhaust(world, a, 3, "F").paused is not None
    else:
        world.settle(a, 1, 3, "park")
    world.commit(a, 1, 5)
    redriven = [info.offset for info in world.parked() if info.redriven]
    assert redriven == [0, 1, 2, 3][: 4 if how == "another cause" else 3]


def test_what_is_skipped_for_good_without_a_breaker_leaves_nothing_behind() -> None:
    """Or a handler that always fails would fill the memory."""
    world = World(9)
    a = member(world)
    for offset in range(8):
        exhaust(world, a, offset, verdict="skip", pause_after=None)
    assert world.cursor().streak == []
    assert world.parked() == []


def test_skipped_ones_count_for_the_breaker_and_are_not_redriven() -> None:
    world = World(9)
    a = member(world)
    answers = [exhaust(world, a, offset, verdict="skip") for offset in range(3)]
    assert answers[-1].paused is not None
    world.call(a, protocol.Resume(LOG, "c"))
    assert world.take(a, 1) == Taken(-1)


def test_a_retry_does_not_break_the_row() -> None:
    world = World(9)
    a = member(world)
    for offset in range(3):
        world.settle(a, 1, offset, "retry", attempts=1)
        exhaust(world, a, offset)
    assert world.cursor().paused is not None


# --- limits -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "more",
    [
        {"error": "x" * 4097},
        {"reason": "é" * 2049},
        {"cause": "x" * 256},
        {"delay": -1.0},
        {"delay": float("nan")},
        {"attempts": -1},
    ],
)
def test_what_is_too_long_or_makes_no_sense_is_refused(more: dict[str, Any]) -> None:
    world = World(3)
    a = member(world)
    refused = world.settle(a, 1, 0, "retry", **more)
    assert code(refused) == errors.InvalidRequest.code
    assert world.cursor().attempts == 0


def test_after_a_seek_no_delay_is_remembered() -> None:
    world = World(9)
    a = member(world)
    for epoch in range(1, 5):
        world.deliver(a)
        world.settle(a, epoch, epoch - 1, "retry", attempts=1, delay=100.0)
        world.call(a, protocol.SeekCursor(LOG, "c", model.offset(epoch), epoch))
    assert world.books.due == {}
    world.deliver(a)
    world.settle(a, 5, 4, "retry", attempts=1, delay=100.0)
    world.call(a, protocol.Release(LOG, "c"))
    world.call(a, protocol.DeleteCursor(LOG, "c"))
    assert world.books.due == {}


@pytest.mark.parametrize("verdict", ["retry", "park", "skip", "commit"])
def test_a_verdict_on_a_redriven_record_leaves_what_was_begun_at_the_cursor(verdict: str) -> None:
    """A redrive comes when the next record is begun, with the commit before it."""
    world = World(4)
    a = member(world, hand_seconds=10.0)
    world.settle(a, 1, 0, "park")
    redrive(world)
    world.commit(a, 1, 1, 2)
    world.take(a, 1, begin=True)
    world.settle(a, 1, 0, verdict, redriven=True, attempts=1)
    assert (world.cursor().begun, world.cursor().hand) == (2, None)
    world.sleep(10.1)
    assert a.lost_claims == [(LOG, "c", 1)]
    assert world.cursor().attempts == 1


def test_to_begin_a_record_or_to_put_it_down_leaves_its_delay() -> None:
    world = World(3)
    a = member(world)
    world.settle(a, 1, 0, "retry", attempts=1, delay=30.0)
    world.commit(a, 1, 0, 1)
    world.commit(a, 1, 0)
    world.clock.jump_ns = TEN_YEARS_NS
    assert world.claim(world.client("b"), takeover=True).wait_seconds == pytest.approx(30.0)

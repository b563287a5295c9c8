"""Members of shared consumers: who may settle what, what is counted, and who has it next."""

from __future__ import annotations

from typing import Any

import pytest

from rlog import driver as drivers
from rlog.decisions import Leave
from rlog.decisions.desk import FIRST_RIGHT_SECONDS
from rlog_client import errors, model, protocol
from rlog_client.protocol import Assigned, Claimed, Committed, Done, Judged
from tests.schedules.record import Given, Recorder, recording
from tests.schedules.sharing import SharedChecker
from tests.schedules.world import LOG, World, code
from tests.shared.seat import NAME, Seat, world_of
from tests.storage.history import ABSENT

A, B = b"a", b"b"
FENCED = errors.Fenced.code


def together(seat: Seat, *controls: protocol.Control) -> list[Any]:
    """The answers to what is decided in one frame."""
    return seat.world.together(*((seat.client, control) for control in controls))


def failed(world: World) -> dict[int, int]:
    shared = world.cursor(NAME).shared
    assert shared is not None
    return {offset: failure.attempts for offset, failure in shared.failed.items()}


def alone(world: World) -> set[int]:
    shared = world.cursor(NAME).shared
    assert shared is not None
    return shared.alone


# --- settling -----------------------------------------------------------------------------------


def test_a_record_that_is_retried_and_committed_in_one_frame_is_retried_only() -> None:
    world = world_of([A, A])
    a = Seat(world)
    assert a.take() == [0]
    answers = together(a, a.settling(0, "retry", attempts=1), a.committing(0))
    assert isinstance(answers[0], Judged)
    assert code(answers[1]) == FENCED
    world.sleep(0.1)
    assert a.take() == [0], "and once"
    assert a.commit(0) == Committed(True)
    assert a.take() == [1]


def test_a_record_that_is_parked_is_not_begun_in_the_same_frame() -> None:
    world = world_of([None])
    a = Seat(world)
    a.take()
    answers = together(a, a.settling(0, "park"), a.committing(begun=(0,)))
    assert code(answers[1]) == FENCED


def test_what_is_settled_is_not_begun_by_the_same_request() -> None:
    world = world_of([None] * 2)
    a = Seat(world)
    a.take()
    assert code(a.commit(0, begun=(0,))) == FENCED
    assert code(a.commit(begun=(1, 0))) == errors.InvalidRequest.code
    assert a.commit(0, begun=(1,)) == Committed(True)


def test_what_was_given_back_and_is_given_again_in_the_meantime_is_kept() -> None:
    world = world_of([None] * 2)
    a = Seat(world)
    assert a.take() == [0, 1]
    world.ask(a.client, a.committing(begun=(1,), back=[0]))
    world.fly()
    assert a.take() == [0]
    world.pump()
    assert a.commit(0) == Committed(True)


def test_a_key_is_free_when_its_settlement_is_durable_and_not_before() -> None:
    world = world_of([A, A])
    a, b = Seat(world), Seat(world, "b")
    assert a.take() == [0]
    world.ask(a.client, a.committing(0))
    world.fly()
    assert b.take() == []
    world.land()
    b.pump()
    assert b.assigned == [1]


def test_nothing_is_given_from_where_the_cursor_stands_before_that_is_durable() -> None:
    """What was given from there, and is lost by a crash, came back in its member's hands: ahead of
    the records of the same key before it.
    """
    world = world_of([A, A, A])
    seek = protocol.SeekCursor(LOG, NAME, model.offset(2), force=True)
    a = Seat(world)
    world.ask(world.client("admin"), seek)
    assert world.fly(), "it is decided, and not durable"
    assert a.take() == []
    world.restart()
    a = Seat(world, epoch=a.epoch)
    assert a.take() == [0]
    world.ask(world.client("admin"), seek)
    world.pump()
    assert a.client.lost_claims == [(LOG, NAME, 1)]
    assert Seat(world, "b").take() == [2], "and then it is where to go on"


# --- who vanishes, lapses or is evicted ---------------------------------------------------------


def test_a_record_that_is_parked_in_the_frame_of_a_lapse_is_not_counted() -> None:
    world = world_of([None] * 2)
    a = Seat(world, hand_seconds=1.0)
    a.take()
    a.commit(begun=(0, 1))
    world.clock.now += 1.5
    world.ask(a.client, a.settling(0, "park"))
    world.pump()
    assert failed(world) == {1: 1}
    assert a.client.lost_claims == [(LOG, NAME, 1)]


@pytest.mark.parametrize("ends", ["evicted", "vanished"])
@pytest.mark.parametrize("several", [False, True])
def test_who_vanishes_is_not_blamed_for_what_another_has_settled_since_a_start(
    ends: str, several: bool
) -> None:
    """The end of its claim was lost in a crash; another had been given its record, and came back
    with it. The checker of the schedules held the record to have failed.
    """
    recorder = Recorder()
    with recording(recorder):
        world = world_of([None] * 2, recorder=recorder)
        a, b = Seat(world), Seat(world, "b")
        begun = (0, 1) if several else (0,)
        assert a.take(len(begun)) == list(begun)
        [given] = a.all(Assigned)
        landed, now = world.server.driver.journal.tail(), world.clock.now
        recorder.entries.append(Given(a.client, NAME, a.epoch, given, now, landed))
        a.commit(begun=begun)
        world.restart()
        b = Seat(world, "b", epoch=b.epoch)
        world.clock.now += FIRST_RIGHT_SECONDS
        if ends == "evicted":
            world.ask(world.client("admin"), protocol.Evict(LOG, NAME, a.client.name))
        assert world.fly(), "that its claim is over is not durable yet"
        assert b.take(1) == [0]
        world.restart()
        b = Seat(world, "b", epoch=b.epoch, in_hand=[0])
        assert b.claimed.in_hand == [0]
        b.commit(0)
        world.sleep(FIRST_RIGHT_SECONDS)
        shared = world.cursor(NAME).shared
        assert shared is not None
        assert list(shared.members) == [b.epoch]
    left = {1} if several else set()
    assert (failed(world), alone(world)) == (dict.fromkeys(left, 1), left)
    checker = SharedChecker(always=True)
    checker.run(recorder.entries)
    checker.compare(world.log, world.values(), [])
    assert checker.wrong == []


@pytest.mark.parametrize("taken", [False, True])
def test_what_a_member_was_sent_is_not_compacted_before_it_is_settled(taken: bool) -> None:
    """It has the bytes: it may be given the records without another look at the disk."""
    world = world_of([A, A, B, A, B], key_index=True, compact=True)
    a = Seat(world)
    if taken:
        assert a.take(1) == [0]
    world.send(world.client("filler"), [b"x", bytes(1 << 16)], [A, B])
    world.send(world.client("filler"), [b"x"])
    assert world.server.compact() == (not taken)
    there = [offset for offset, value in enumerate(world.values()) if value != ABSENT]
    assert there == ([*range(8)] if taken else [5, 6, 7])


def test_a_thousand_records_lapse_in_one_frame() -> None:
    world = world_of([None] * 1000, pages=512)
    a = Seat(world, hand_seconds=1.0)
    offsets = a.take()
    a.commit(begun=tuple(offsets))
    world.sleep(1.5)
    assert failed(world) == dict.fromkeys(range(1000), 1)


def test_a_hundred_members_are_evicted_by_one_frame() -> None:
    world = world_of([None] * 5)
    seats = [Seat(world, "worker " + "x" * 200, token=b"%d" % n) for n in range(100)]
    other = Seat(world, "other")
    evict = protocol.Evict(LOG, NAME, seats[0].client.name)
    assert world.call(world.client("admin"), evict) == Done()
    shared = world.cursor(NAME).shared
    assert shared is not None
    assert list(shared.members) == [other.epoch]
    assert all(seat.client.lost_claims for seat in seats)
    assert world.cursor(NAME).epoch > other.epoch


def test_the_epoch_of_a_member_that_was_evicted_is_never_used_again() -> None:
    world = world_of([None])
    a = Seat(world)
    world.call(world.client("admin"), protocol.Evict(LOG, NAME))
    world.restart()
    assert Seat(world).epoch > a.epoch


def test_of_several_in_hand_each_is_delivered_to_one_with_empty_hands() -> None:
    world = world_of([None] * 4)
    a, b = Seat(world), Seat(world, "b")
    assert a.take(3) == [0, 1, 2]
    a.commit(begun=(0, 1))
    assert b.take(1) == [3]
    world.leave(a.client)
    b.take()
    world.pump()
    b.pump()
    assert (failed(world), alone(world)) == ({}, {0, 1})
    assert b.assigned == [3], "it has something in hand"
    b.commit(3)
    assert [b.take(), b.take()] == [[0], []]
    b.commit(0)
    assert b.take() == [1]
    b.commit(1)
    assert b.take() == [2]
    assert alone(world) == set()


def test_a_suspect_does_not_wait_for_one_who_never_ends() -> None:
    """X was said to be the one who gets it next, and its handler hung; Y was always busy."""
    world = world_of([None] * 4)
    a, x, y = Seat(world), Seat(world, "x"), Seat(world, "y")
    assert [a.take(2), x.take(1), y.take(1)] == [[0, 1], [2], [3]]
    a.commit(begun=(0, 1))
    world.leave(a.client)
    x.take()
    world.pump()
    x.pump()
    y.take(1)
    assert (x.assigned, y.assigned) == ([2], [3])
    y.commit(3)
    assert y.take(1) == [0]


def test_redriven_suspects_are_not_suspected_for_ever() -> None:
    world = world_of([None] * 2)
    a, b = Seat(world), Seat(world, "b")
    a.take()
    a.settle(0, "park")
    a.settle(1, "park")
    world.call(world.client("admin"), protocol.Redrive(LOG, NAME))
    assert a.take() == [0, 1]
    a.commit(begun=(0, 1))
    world.leave(a.client)
    b.take()
    world.pump()
    b.pump()
    assert alone(world) == {0, 1}
    b.settle(0, "commit", redriven=True)
    assert b.take() == [1]
    b.settle(1, "park", redriven=True)
    assert alone(world) == set()


# --- coming back --------------------------------------------------------------------------------


def test_who_left_and_is_back_in_one_frame_is_not_away() -> None:
    world = world_of([None] * 2)
    a, b = Seat(world), Seat(world, "b")
    assert a.take(1) == [0]
    world.leave(a.client, pump=False)
    again = world.client("a")
    claim = protocol.Claim(LOG, NAME, model.OLDEST, b"a", epoch=a.epoch, shared=True, in_hand=[0])
    assert world.call(again, claim) == Claimed(1, 0, in_hand=[0])
    assert b.take() == [1]
    b.take()
    world.pump()
    assert list(world.books.groups[LOG, NAME].mates) == [1, 2]
    # And when it really leaves, what it has is to be had.
    world.leave(again)
    b.pump()
    world.pump()
    b.pump()
    assert b.assigned == [1, 0]


def test_who_joined_and_lost_its_connection_in_one_frame_comes_back() -> None:
    world = world_of([None])
    a, again = world.client("a"), world.client("a")
    claim = protocol.Claim(LOG, NAME, model.OLDEST, b"a", shared=True)
    world.ask(a, claim)
    world.leave(a, pump=False)
    world.submit(a, 0, Leave(LOG, NAME))
    request = world.ask(again, claim)
    world.pump()
    assert again.answers[request] == Claimed(1, 0)
    assert world.books.seats[LOG, NAME, 1] is again


def test_what_a_member_lost_while_it_was_away_is_not_counted_when_it_vanishes() -> None:
    world = world_of([None])
    a = Seat(world)
    a.take()
    a.commit(begun=(0,))
    world.leave(a.client)
    again = Seat(world, token=b"a", epoch=1)
    assert again.claimed == Claimed(1, 0)
    b = Seat(world, "b")
    assert b.take() == [0]
    world.leave(again.client)
    b.take()
    world.pump()
    assert (failed(world), alone(world)) == ({}, set())
    assert list(world.books.groups[LOG, NAME].mates) == [b.epoch]


def test_a_second_token_on_one_connection_is_refused() -> None:
    world = world_of([None])
    a, b = Seat(world), Seat(world, "b")
    assert code(b.claim(token=b"a", epoch=a.epoch)) == errors.Busy.code
    world.leave(b.client)
    world.leave(a.client)
    assert world.books.seats == {}


@pytest.mark.parametrize("first", ["new", "redriven"])
def test_keys_of_what_is_in_hand_since_before_a_start_are_known_before_more_is_given(
    first: str,
) -> None:
    """A record of a key went out beside the one in hand; when both were done the server broke."""
    world = world_of([A], [A], [A, None])
    a = Seat(world)
    assert a.take() == [0, 3]
    if first == "redriven":
        a.settle(0, "park")
        assert a.take() == [1]
        world.call(world.client("admin"), protocol.Redrive(LOG, NAME))
    held = 1 if first == "redriven" else 0
    world.restart()
    again = Seat(world, token=b"a", epoch=1, in_hand=[held, 3])
    assert again.claimed.in_hand == [held, 3]
    b = Seat(world, "b")
    assert b.take() == []
    again.commit(held)
    b.pump()
    assert b.assigned == ([0] if first == "redriven" else [1])


def test_a_record_in_hand_since_before_a_start_that_is_retried_comes_once() -> None:
    world = world_of([A, A])
    a = Seat(world)
    a.take()
    world.restart()
    again = Seat(world, token=b"a", epoch=1, in_hand=[0])
    again.settle(0, "retry", attempts=1)
    world.sleep(0.1)
    assert [again.take(), again.take()] == [[0], []]
    again.commit(0)
    assert again.take() == [1]


def test_a_delay_is_waited_out_after_a_restart_and_somebody_is_woken_for_it() -> None:
    world = world_of([None])
    a = Seat(world)
    a.take()
    a.settle(0, "retry", attempts=1, delay=20.0)
    world.call(a.client, protocol.Release(LOG, NAME))
    world.restart()
    b = Seat(world, "b")
    assert b.take() == []
    deadline = world.server.driver.deadline()
    assert deadline is not None
    assert deadline <= world.clock.now + 20.0
    world.sleep(19.0)
    b.pump()
    assert b.assigned == []
    world.sleep(1.5)
    b.pump()
    assert b.assigned == [0]


# --- a full disk --------------------------------------------------------------------------------


def test_what_cannot_be_decided_on_a_full_disk_is_asked_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world = world_of([None] * 2)
    a, b = Seat(world), Seat(world, "b", hand_seconds=1.0)
    assert [a.take(1), b.take(1)] == [[0], [1]]
    c = Seat(world, "c")
    b.commit(begun=(1,))
    monkeypatch.setattr(drivers.Driver, "_decide", _stuck_decide)
    world.leave(a.client)
    assert (LOG, NAME, a.epoch) not in world.books.seats
    c.take()
    world.sleep(2.0)
    shared = world.cursor(NAME).shared
    assert shared is not None
    assert list(shared.members) == [1, 2, 3]
    monkeypatch.undo()
    world.books.stuck = None
    world.sleep(1.0)
    assert world.books.raised == {LOG}, "it is asked again"
    c.pump()
    c.take()
    world.pump()
    c.pump()
    assert list(shared.members) == [c.epoch]
    assert (failed(world), c.assigned) == ({1: 1}, [1, 0])


def _stuck_decide(self: drivers.Driver) -> Any:
    self.broker.books.stuck = "no space"
    return self.broker.decide(self._wall(), 1 << 20, now=self._clock())

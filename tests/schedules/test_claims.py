"""Claims: one holder, who comes after it, and who may come back."""

from __future__ import annotations

import pytest

from rlog_client import errors, model, protocol
from rlog_client.protocol import Claim, Claimed
from tests.schedules.world import LOG, TEN_YEARS_NS, Client, World, code


def waits(world: World, client: Client, **more: int) -> int:
    """A standby's request."""
    token = client.name.encode()
    claim = Claim(LOG, "c", model.OLDEST, token, standby=True, ticket=more.get("ticket", 0))
    request = world.ask(client, claim)
    world.pump()
    return request


def test_a_second_claim_is_busy_and_names_the_holder() -> None:
    world = World()
    a, b = world.client("a"), world.client("b")
    assert world.claim(a) == Claimed(1, 0)
    answer = world.claim(b)
    assert code(answer) == errors.Busy.code
    assert answer.details["holder"] == "a"
    assert world.cursor().epoch == 1


def test_two_that_claim_in_one_frame_are_one_holder_and_one_busy() -> None:
    world = World()
    a, b = world.client("a"), world.client("b")
    claims = [(c, Claim(LOG, "c", model.OLDEST, c.name.encode())) for c in (a, b)]
    first, second = world.together(*claims)
    assert first == Claimed(1, 0)
    assert code(second) == errors.Busy.code
    assert [bool(c.grants) for c in (a, b)] == [True, False]


def test_standbys_are_served_in_the_order_of_their_tickets() -> None:
    world = World()
    a, b, c, d = (world.client(name) for name in "abcd")
    world.claim(a)
    requests = [waits(world, each) for each in (b, c, d)]
    tickets = [each.tickets[request] for each, request in zip((b, c, d), requests, strict=True)]
    assert tickets == sorted(set(tickets))
    for holder, heir, request, epoch in (
        (a, b, requests[0], 2),
        (b, c, requests[1], 3),
        (c, d, requests[2], 4),
    ):
        world.call(holder, protocol.Release(LOG, "c"))
        assert heir.answers[request] == Claimed(epoch, 0)
        assert world.books.holders[LOG, "c"] is heir


def test_a_standby_that_comes_back_with_its_ticket_keeps_its_place() -> None:
    world = World()
    a, b, c = (world.client(name) for name in "abc")
    world.claim(a)
    ticket = b.tickets[waits(world, b)]
    later = waits(world, c)
    world.leave(b)
    again = world.client("b")
    sooner = waits(world, again, ticket=ticket)
    world.call(a, protocol.Release(LOG, "c"))
    assert again.answers[sooner] == Claimed(2, 0)
    assert later not in c.answers


def test_standbys_keep_their_order_when_the_wall_clock_is_put_back() -> None:
    world = World()
    a, b, c = (world.client(name) for name in "abc")
    world.claim(a)
    ticket = b.tickets[waits(world, b)]
    world.leave(b)
    world.clock.jump_ns = -TEN_YEARS_NS
    later = waits(world, c)
    again = world.client("b")
    sooner = waits(world, again, ticket=ticket)
    world.call(a, protocol.Release(LOG, "c"))
    assert again.answers[sooner] == Claimed(2, 0)
    assert later not in c.answers


def test_a_newcomer_in_the_frame_of_a_release_does_not_pass_a_standby() -> None:
    world = World()
    a, b, c = (world.client(name) for name in "abc")
    world.claim(a)
    standby = waits(world, b)
    _, newcomer = world.together(
        (a, protocol.Release(LOG, "c")), (c, Claim(LOG, "c", model.OLDEST, b"c"))
    )
    assert b.answers[standby] == Claimed(2, 0)
    assert code(newcomer) == errors.Busy.code


def test_a_standby_that_left_is_not_served() -> None:
    world = World()
    a, b, c = (world.client(name) for name in "abc")
    world.claim(a)
    gone, next_one = waits(world, b), waits(world, c)
    world.leave(b)
    world.call(a, protocol.Release(LOG, "c"))
    assert gone not in b.answers
    assert c.answers[next_one] == Claimed(2, 0)
    assert not b.waits


def test_a_standby_that_waits_no_longer_is_told_so() -> None:
    """Else its request would count as under way for as long as its connection lives."""
    world = World()
    a, b = world.client("a"), world.client("b")
    world.claim(a)
    request = waits(world, b)
    assert world.call(b, protocol.Release(LOG, "c")) == protocol.Done()
    assert isinstance(b.answers[request], protocol.Error)
    assert b.waiting == {}
    assert world.books.waiting == {}


def test_a_standby_takes_over_at_the_moment_the_holder_is_gone() -> None:
    world = World()
    a, b = world.client("a"), world.client("b")
    world.claim(a)
    request = waits(world, b)
    assert request not in b.answers
    world.leave(a)
    assert b.answers[request] == Claimed(2, 0)


def test_a_standby_is_told_when_a_claim_ends_that_a_full_disk_cannot_record() -> None:
    world = World()
    a, b = world.client("a"), world.client("b")
    world.claim(a)
    request = waits(world, b)
    world.books.stuck = "no space"
    broker = world.server.driver.broker  # by hand: the driver would find space
    world.leave(a, pump=False)
    while (decided := broker.decide(1, now=world.clock.now)) is not None:
        broker.answer(decided, synced=False)
        broker.lay_out(decided, synced=False, now=world.clock.now)
    assert code(b.answers[request]) == errors.DiskFull.code
    world.books.stuck = None
    assert world.claim(b) == Claimed(2, 0)


def test_a_takeover_ends_the_claim_of_one_who_is_there_and_tells_it() -> None:
    world = World(3)
    a, b = world.client("a"), world.client("b")
    world.claim(a)
    world.commit(a, 1, 0, 1)
    assert world.claim(b, takeover=True) == Claimed(2, 0)  # nothing is counted
    assert a.lost_claims == [(LOG, "c", 1)]
    assert code(world.commit(a, 1, 1)) == errors.Fenced.code
    assert world.commit(b, 2, 1) == protocol.Committed(True)


def test_a_takeover_is_told_only_when_it_is_durable() -> None:
    world = World(1)
    a, b = world.client("a"), world.client("b")
    world.claim(a)
    world.ask(b, Claim(LOG, "c", model.OLDEST, b"b", takeover=True))
    assert world.fly()
    assert a.lost_claims == []
    assert not b.grants
    world.land()
    assert a.lost_claims == [(LOG, "c", 1)]
    assert b.grants[LOG, "c"].epoch == 2


@pytest.mark.parametrize("member", [None, "a"])
def test_an_evict_ends_a_claim_for_good(member: str | None) -> None:
    world = World(3)
    a, admin = world.client("a"), world.client("admin")
    world.claim(a)
    world.commit(a, 1, 0, 1)
    assert world.call(admin, protocol.Evict(LOG, "c", member)) == protocol.Done()
    assert a.lost_claims == [(LOG, "c", 1)]
    assert code(world.commit(a, 1, 1)) == errors.Fenced.code
    assert code(world.claim(a, epoch=1)) == errors.Fenced.code
    assert world.claim(a, b"new") == Claimed(3, 0)


def test_an_evict_of_somebody_else_or_of_nobody_is_not_found() -> None:
    world = World()
    a, admin = world.client("a"), world.client("admin")
    world.claim(a)
    assert code(world.call(admin, protocol.Evict(LOG, "c", "b"))) == errors.NotFound.code
    world.call(a, protocol.Release(LOG, "c"))
    assert code(world.call(admin, protocol.Evict(LOG, "c"))) == errors.NotFound.code


def test_an_evict_also_meets_one_whose_connection_is_gone() -> None:
    world = World()
    a, admin = world.client("a"), world.client("admin")
    world.claim(a)
    world.leave(a)
    assert world.call(admin, protocol.Evict(LOG, "c")) == protocol.Done()
    assert code(world.claim(world.client("a"), epoch=1)) == errors.Fenced.code


def test_a_release_lets_the_next_one_in_and_raises_nothing_by_itself() -> None:
    world = World(3)
    a, b = world.client("a"), world.client("b")
    world.claim(a)
    world.commit(a, 1, 1, 2)
    world.call(a, protocol.Release(LOG, "c"))
    assert world.cursor().epoch == 1
    assert code(world.claim(world.client("a"), epoch=1)) == errors.Fenced.code
    assert world.claim(b) == Claimed(2, 1)


# --- coming back --------------------------------------------------------------------------------


def test_a_release_behind_a_claim_anew_in_the_same_frame_ends_that_one() -> None:
    world = World()
    a, b = world.client("a"), world.client("b")
    world.claim(a)
    anew = Claim(LOG, "c", model.OLDEST, b"anew", takeover=True)
    world.together((a, anew), (a, protocol.Release(LOG, "c")))
    assert not world.cursor().held
    assert world.claim(b) == Claimed(3, 0)


def test_whoever_comes_back_keeps_epoch_and_record_and_its_commit_in_the_same_frame_counts() -> (
    None
):
    world = World(4)
    a = world.client("a")
    world.claim(a)
    world.commit(a, 1, 0, 1)
    world.leave(a)
    again = world.client("a")
    claimed, committed = world.together(
        (again, Claim(LOG, "c", model.OLDEST, b"a", epoch=1, delivered=4)),
        (again, protocol.CommitCursor(LOG, "c", 1, 1, 2)),
    )
    assert claimed == Claimed(1, 0)
    assert committed == protocol.Committed(True)
    assert world.cursor().attempts == 0
    assert world.cursor().begun == 2


def test_whoever_comes_back_before_the_server_knows_it_was_gone_is_no_second_holder() -> None:
    world = World(4)
    a = world.client("a")
    world.claim(a)
    again = world.client("a")
    assert world.claim(again, epoch=1, delivered=2) == Claimed(1, 0)
    assert code(world.commit(a, 1, 1)) == errors.Fenced.code  # the old connection
    world.leave(a)
    assert world.cursor().held
    assert world.commit(again, 1, 1) == protocol.Committed(True)


def test_whoever_comes_back_too_late_is_fenced() -> None:
    world = World(4)
    a, b = world.client("a"), world.client("b")
    world.claim(a)
    world.leave(a)
    world.claim(b)
    world.call(b, protocol.Release(LOG, "c"))
    answer = world.claim(world.client("a"), epoch=1, delivered=2)
    assert code(answer) == errors.Fenced.code
    assert answer.details["epoch"] == 2


def test_whoever_comes_back_to_a_consumer_that_is_gone_is_told_so() -> None:
    world = World()
    a = world.client("a")
    world.claim(a)
    world.leave(a)
    world.call(world.client("admin"), protocol.DeleteCursor(LOG, "c"))
    assert code(world.claim(world.client("a"), epoch=1)) == errors.NotFound.code


def test_a_claim_whose_answer_was_lost_is_the_same_claim_when_it_is_asked_for_again() -> None:
    world = World()
    a = world.client("a")
    world.ask(a, Claim(LOG, "c", model.OLDEST, b"a"))
    a.closed = True
    world.pump()  # refused: nobody would hear it
    b = world.client("a")
    world.ask(b, Claim(LOG, "c", model.OLDEST, b"a"))
    assert world.fly()
    b.closed = True
    world.land()
    world.pump()
    assert not world.cursor().held
    assert world.claim(world.client("a"), b"a") == Claimed(1, 0)


def test_one_that_took_over_and_comes_back_in_the_same_frame_holds_and_the_old_one_is_told() -> (
    None
):
    world = World(3)
    old, lost, back = world.client("old"), world.client("b"), world.client("b")
    world.claim(old)
    over = Claim(LOG, "c", model.OLDEST, b"b", takeover=True)
    world.together((lost, over), (back, over))
    assert world.books.holders[LOG, "c"] is back
    assert old.lost_claims == [(LOG, "c", 1)]
    assert back.lost_claims == []
    world.deliver(back)
    assert world.commit(back, 2, 1) == protocol.Committed(True)


def test_the_member_that_was_there_when_the_server_stopped_has_first_right_for_five_seconds() -> (
    None
):
    world = World(4)
    a, b = world.client("a"), world.client("b")
    world.claim(a)
    world.commit(a, 1, 1, 2)
    world.restart()
    b = world.client("b")
    claim = Claim(LOG, "c", model.OLDEST, b"b")
    request = world.ask(b, claim)
    world.pump()
    assert request not in b.answers
    world.sleep(4.9)
    assert request not in b.answers
    assert world.claim(world.client("a"), epoch=1, delivered=4) == Claimed(1, 1)
    world.pump()
    assert code(b.answers[request]) == errors.Busy.code
    assert world.cursor().begun == 2


def test_when_the_first_right_is_over_whoever_waited_gets_the_claim() -> None:
    world = World(4)
    world.claim(world.client("a"))
    world.restart()
    b = world.client("b")
    request = world.ask(b, Claim(LOG, "c", model.OLDEST, b"b"))
    world.sleep(5.1)
    assert b.answers[request] == Claimed(2, 0)
    assert code(world.claim(world.client("a"), epoch=1)) == errors.Fenced.code


def test_a_takeover_does_not_wait_for_the_first_right() -> None:
    world = World()
    world.claim(world.client("a"))
    world.restart()
    assert world.claim(world.client("b"), takeover=True) == Claimed(2, 0)


def test_after_a_clean_stop_it_is_the_same() -> None:
    world = World()
    world.claim(world.client("a"))
    world.restart(clean=True)
    b = world.client("b")
    request = world.ask(b, Claim(LOG, "c", model.OLDEST, b"b"))
    world.pump()
    assert request not in b.answers
    assert world.claim(world.client("a"), epoch=1) == Claimed(1, 0)


def test_what_was_released_before_the_stop_has_no_first_right() -> None:
    world = World()
    a = world.client("a")
    world.claim(a)
    world.call(a, protocol.Release(LOG, "c"))
    world.restart()
    assert world.claim(world.client("b")) == Claimed(2, 0)


@pytest.mark.parametrize("jump_ns", [TEN_YEARS_NS, -TEN_YEARS_NS])
def test_the_first_right_is_by_the_monotonic_clock(jump_ns: int) -> None:
    world = World()
    world.claim(world.client("a"))
    world.restart()
    world.clock.jump_ns = jump_ns
    b = world.client("b")
    request = world.ask(b, Claim(LOG, "c", model.OLDEST, b"b"))
    world.sleep(4.9)
    assert request not in b.answers
    world.sleep(0.2)
    assert b.answers[request] == Claimed(2, 0)


# --- fencing ------------------------------------------------------------------------------------


def test_a_holder_that_slept_through_a_takeover_is_fenced_when_it_commits() -> None:
    world = World(3)
    a, b = world.client("a"), world.client("b")
    world.claim(a)
    late = protocol.CommitCursor(LOG, "c", 1, 2)
    take = Claim(LOG, "c", model.OLDEST, b"b", takeover=True)
    taken, refused = world.together((b, take), (a, late))  # arrived when a still held it
    assert taken == Claimed(2, 0)
    assert code(refused) == errors.Fenced.code
    assert world.cursor().committed == 0


def test_a_commit_at_or_below_the_cursor_is_a_success_and_beyond_what_was_sent_invalid() -> None:
    world = World(3)
    a = world.client("a")
    world.claim(a)
    world.commit(a, 1, 2)
    assert isinstance(world.commit(a, 1, 1), protocol.Committed)
    assert world.cursor().committed == 2
    assert code(world.commit(a, 1, 4)) == errors.InvalidRequest.code
    assert code(world.commit(a, 1, 2, 4)) == errors.InvalidRequest.code


def test_a_seek_by_the_holder_fences_what_was_handed_out_before() -> None:
    world = World(3)
    a = world.client("a")
    world.claim(a)
    moved = world.call(a, protocol.SeekCursor(LOG, "c", model.offset(1), 1))
    assert moved == protocol.Moved(0, 1, 2)
    world.deliver(a)
    assert code(world.commit(a, 1, 2)) == errors.Fenced.code
    assert world.commit(a, 2, 2) == protocol.Committed(True)


def test_a_holder_whose_seek_was_not_answered_comes_back_to_the_new_epoch() -> None:
    world = World(3)
    a = world.client("a")
    world.claim(a)
    world.call(a, protocol.SeekCursor(LOG, "c", model.offset(1), 1))
    world.leave(a)
    assert world.claim(world.client("a"), epoch=1) == Claimed(2, 1)


def test_epochs_are_never_given_twice_whatever_is_lost() -> None:
    world = World(1)
    for number in range(1, 6):
        client = world.client(f"m{number}")
        assert world.claim(client, takeover=True).epoch == number
        world.restart(clean=number % 2 == 0)


# --- hand_seconds -------------------------------------------------------------------------------


def in_hand(world: World, seconds: float = 10.0) -> Client:
    a = world.client("a")
    world.claim(a, hand_seconds=seconds)
    world.commit(a, 1, 0, 1)
    return a


def test_a_record_too_long_in_hand_ends_the_claim_and_counts() -> None:
    world = World(3)
    a = in_hand(world)
    world.sleep(9.9)
    assert a.lost_claims == []
    world.sleep(0.2)
    assert a.lost_claims == [(LOG, "c", 1)]
    assert code(world.claim(world.client("a"), epoch=1)) == errors.Fenced.code
    answer = world.claim(world.client("b"))
    assert answer == Claimed(3, 0, attempts=1, one_by_one=1)


def test_a_lapse_lets_a_standby_in() -> None:
    world = World(3)
    in_hand(world)
    b = world.client("b")
    request = waits(world, b)
    world.sleep(10.1)
    assert b.answers[request] == Claimed(3, 0, attempts=1, one_by_one=1)


@pytest.mark.parametrize("how", ["commit", "extend"])
def test_a_commit_and_an_extend_begin_the_time_in_hand_anew(how: str) -> None:
    world = World(3)
    a = in_hand(world)
    world.sleep(9)
    if how == "commit":
        world.commit(a, 1, 1, 2)
    else:
        assert world.call(a, protocol.Extend(LOG, "c", 1)) == protocol.Done()
    world.sleep(9)
    assert a.lost_claims == []
    world.sleep(1.1)
    assert a.lost_claims == [(LOG, "c", 1)]


@pytest.mark.parametrize("how", ["begin", "put down", "extend", "retry"])
def test_what_came_before_the_lapse_was_decided_keeps_the_claim(how: str) -> None:
    """The deadline passes while the request waits in the queue."""
    world = World(3)
    a = in_hand(world)
    control: protocol.Control = {
        "begin": protocol.CommitCursor(LOG, "c", 1, 1, 2),
        "put down": protocol.CommitCursor(LOG, "c", 1, 1),
        "extend": protocol.Extend(LOG, "c", 1),
        "retry": protocol.Settle(LOG, "c", 1, 0, "retry", attempts=1),
    }[how]
    world.ask(a, control)
    world.clock.now += 10.5
    world.pump()
    assert a.lost_claims == []
    assert world.cursor().epoch == 1
    world.sleep(11)
    assert bool(a.lost_claims) == (how in ("begin", "extend"))


def test_with_nothing_in_hand_no_time_runs_out() -> None:
    world = World(3)
    a = world.client("a")
    world.claim(a, hand_seconds=1.0)
    world.sleep(1000)
    world.commit(a, 1, 0, 1)
    world.commit(a, 1, 1)
    world.sleep(1000)
    assert a.lost_claims == []
    assert world.commit(a, 1, 2) == protocol.Committed(True)


def test_a_redriven_record_in_hand_has_its_time_too_also_after_coming_back() -> None:
    world = World(3)
    a = world.client("a")
    world.claim(a, hand_seconds=10.0)
    world.settle(a, 1, 0, "park")
    world.call(a, protocol.Redrive(LOG, "c"))
    assert world.take(a, 1, begin=True) == protocol.Taken(0)
    world.leave(a)
    world.sleep(60)
    again = world.client("a")
    world.claim(again, b"a", epoch=1, delivered=3, hand_seconds=10.0)
    world.sleep(9.9)
    assert again.lost_claims == []
    world.sleep(0.2)
    assert again.lost_claims == [(LOG, "c", 1)]
    assert world.cursor().parked[0].attempts == 1


@pytest.mark.parametrize("jump_ns", [TEN_YEARS_NS, -TEN_YEARS_NS])
def test_the_time_in_hand_is_by_the_monotonic_clock(jump_ns: int) -> None:
    world = World(3)
    a = in_hand(world)
    world.clock.jump_ns = jump_ns
    world.sleep(9.9)
    assert a.lost_claims == []
    world.sleep(0.2)
    assert a.lost_claims == [(LOG, "c", 1)]


def test_a_lapse_behind_a_takeover_ends_nobody_elses_claim() -> None:
    world = World(3)
    in_hand(world)
    b = world.client("b")
    world.ask(b, Claim(LOG, "c", model.OLDEST, b"b", takeover=True))
    world.clock.now += 10.5
    world.pump()
    assert world.cursor().epoch == 2
    assert world.books.holders[LOG, "c"] is b
    assert b.lost_claims == []


# --- who is there -------------------------------------------------------------------------------


def test_a_seek_and_a_deletion_from_outside_are_busy_while_the_claim_is_held() -> None:
    world = World(3)
    a, admin = world.client("a"), world.client("admin")
    world.claim(a)
    seek = protocol.SeekCursor(LOG, "c", model.offset(1))
    assert code(world.call(admin, seek)) == errors.Busy.code
    assert code(world.call(admin, protocol.DeleteCursor(LOG, "c"))) == errors.Busy.code
    world.leave(a)
    assert world.call(admin, seek) == protocol.Moved(0, 1, 2)
    assert code(world.claim(world.client("a"), epoch=1)) == errors.Fenced.code


def test_of_all_that_a_member_does_in_one_frame_by_two_connections_the_last_counts() -> None:
    world = World(3)
    old, new = world.client("a"), world.client("a")
    world.claim(old)
    again = Claim(LOG, "c", model.OLDEST, b"again", takeover=True)
    world.together((new, again), (old, protocol.Release(LOG, "c")), (old, again))
    assert world.books.holders[LOG, "c"] is old
    assert old.grants[LOG, "c"].epoch == 2
    assert not new.grants
    world.leave(old)
    assert not world.cursor().held

"""What a member is sent: batches once each, and which of their records are its own."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from rlog import dispatch, facts, membership
from rlog_client import errors, member, model, protocol
from rlog_client.protocol import Assigned, Damaged, Error, Settled
from tests.schedules.world import LOG
from tests.shared.seat import NAME, Seat, rot, world_of

if TYPE_CHECKING:
    import pytest

    from tests.schedules.world import World

A, B = b"a", b"b"
BIG = 2**63


def wide(count: int = 3) -> World:
    """Batches in segments of their own."""
    world = world_of()
    world.call(world.client("admin"), protocol.AlterLog(LOG, {"file_roll_size": 4096}))
    for number in range(count):
        world.send(world.client("filler"), [b"%d" % number + b"x" * 3900], None)
    return world


# --- batches, once ------------------------------------------------------------------------------


def test_a_batch_is_sent_once_to_each_member_however_many_records_of_it_are_its_own() -> None:
    world = world_of([None] * 6, [None] * 2)
    a, b = Seat(world), Seat(world, "b")
    assert a.take(2) == [0, 1]
    assert b.take(2) == [2, 3]
    assert a.take(3) == [4, 5, 6]
    assert (a.batches, b.batches) == ([0, 6], [0])
    assert b.take(3) == [7]
    assert b.batches == [0, 6]


def test_what_lies_below_the_floor_is_let_go_and_nothing_that_is_needed() -> None:
    world = world_of([None] * 2, [None] * 2, [None] * 2)
    a = Seat(world)
    assert a.take(3) == [0, 1, 2]
    a.commit(0, 1, 2)
    assert a.take(1) == [3]
    assert a.all(Assigned)[-1].forget == [0]
    a.commit(3)
    assert a.take(1) == [4]
    assert a.all(Assigned)[-1].forget == [2]


def test_a_member_keeps_so_much_and_gets_again_what_it_let_go(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(dispatch, "SENT_BYTES_MAX", 1)
    world = world_of([A, None], [A, None])
    a = Seat(world)
    assert a.take(3) == [0, 1, 3]
    a.commit(1, 3)
    a.settle(0, "retry", attempts=1)
    world.sleep(0.1)
    assert a.take() == [0]
    assert a.batches == [0, 2]
    a.commit(0)
    assert a.take() == [2]
    assert a.all(Assigned)[-1].forget == [0]


def test_one_message_lets_go_as_much_as_fits_and_the_next_the_rest(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(dispatch, "FORGET_MAX", 2)
    world = world_of(*([None] for _ in range(7)))
    a = Seat(world)
    assert a.take(5) == [0, 1, 2, 3, 4]
    a.commit(0, 1, 2, 3, 4)
    assert [a.take(1), a.take(1)] == [[5], [6]]
    assert [each.forget for each in a.all(Assigned)[-2:]] == [[0, 1], [2, 3]]


def test_what_one_message_may_say_fits_into_it_whatever_the_offsets() -> None:
    many = [BIG] * membership.ASSIGNED_MAX
    assigned = Assigned(many, [*many, *many], many, [BIG] * dispatch.FORGET_MAX)
    assert protocol.encode(1, assigned)
    ranges, begun = [BIG] * 2 * member.RANGES_MAX, [BIG] * member.OFFSETS_MAX
    commit = protocol.CommitRecords(BIG, "c" * 255, BIG, ranges, begun, [BIG] * member.BACK_MAX)
    assert protocol.encode(1, commit)


def test_who_subscribes_anew_is_sent_its_batches_anew() -> None:
    world = world_of([None] * 3)
    a = Seat(world)
    assert a.take(1) == [0]
    a.membership.end()
    a.subscribe()
    assert a.take(1) == [1]
    assert a.batches == [0, 0]


# --- loans --------------------------------------------------------------------------------------


def test_a_loan_is_for_so_many_records_below_its_end() -> None:
    world = world_of([None] * 6)
    a = Seat(world)
    assert a.take(2) == [0, 1]
    assert not a.is_lending()
    assert a.take(9, end=4) == [2, 3]
    assert not a.is_lending()
    assert a.take(9, end=4) == []
    assert a.is_lending()
    assert a.take(9, end=4, now=True) == []
    assert not a.is_lending()


def test_a_loan_larger_than_a_message_is_told_in_several(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(membership, "ASSIGNED_MAX", 4)
    world = world_of([None] * 10)
    a = Seat(world)
    assert a.take(10) == list(range(10))
    assert [len(each.offsets) for each in a.all(Assigned)] == [4, 4, 2]


def test_who_wants_what_is_there_now_waits_only_for_what_it_had_retried() -> None:
    world = world_of([None])
    a, b = Seat(world), Seat(world, "b")
    assert a.take() == [0]
    a.settle(0, "retry", attempts=1, delay=5.0)
    assert b.take(now=True, own=True) == []
    assert not b.is_lending()
    assert a.take(now=True, own=True) == []
    assert a.is_lending()
    world.sleep(5.1)
    a.pump()
    assert a.assigned == [0, 0]
    assert a.all(Assigned)[-1].failed == [0, 1]


def test_a_new_loan_ends_the_one_before_and_what_was_not_sent_yet_is_given_back() -> None:
    world = world_of([None] * 2)
    a, b = Seat(world), Seat(world, "b")
    assert a.take(1) == [0]
    a.membership.end()
    a.subscribe()
    before = a.woken
    world.books.groups[LOG, NAME].chunk = None  # (as if others had looked up more since)
    a.lend(1)
    read = a.read()
    assert read is not None
    a.lend(0)
    assert a.woken > before, "others are shown it"
    a.deliver(read)  # too late
    assert a.assigned == [0]
    assert b.take() == [1]


def test_a_member_has_what_others_that_are_away_had_though_it_does_not_wait() -> None:
    world = world_of([None] * 2)
    a, b = Seat(world), Seat(world, "b")
    assert a.take(2) == [0, 1]
    world.leave(a.client)
    assert b.take(now=True, own=True) == []
    assert b.is_lending(), "it is being decided"
    world.pump()
    b.pump()
    assert b.assigned == [0, 1]


def test_after_a_start_who_does_not_wait_waits_for_those_who_may_come_back() -> None:
    world = world_of([None] * 2)
    a = Seat(world)
    assert a.take(1) == [0]
    world.restart()
    b = Seat(world, "b")
    assert b.take(now=True) == []
    assert not b.is_lending(), "it wants only what is there"
    assert b.take(now=True, own=True) == []
    assert b.is_lending()
    world.sleep(5.1)
    b.pump()
    assert b.assigned == [0, 1]


# --- what changes under a read ------------------------------------------------------------------


def test_two_members_look_up_the_same_and_each_record_is_given_once() -> None:
    world = world_of([None] * 3)
    a, b = Seat(world), Seat(world, "b")
    a.lend(2)
    b.lend(2)
    one, other = a.read(), b.read()
    assert one is not None
    assert other is not None
    b.deliver(other)
    a.deliver(one)  # of what has been looked up since
    b.pump()
    a.pump()
    assert (b.assigned, a.assigned) == ([0, 1], [2])


def test_keys_that_two_members_look_up_go_to_their_own_records() -> None:
    """A found what B had found meanwhile, and took it for the next: which lies in another batch."""
    world = world_of([A, B], [B])
    a, b = Seat(world), Seat(world, "b")
    assert a.take() == [0, 1]
    a.settle(1, "park")
    assert a.take() == [2]
    a.settle(2, "park")
    redrive = protocol.Redrive(LOG, NAME)
    world.call(world.client("admin"), redrive)
    a.lend()
    b.lend()
    one, other = a.read(), b.read()
    assert one is not None
    assert other is not None
    b.deliver(other)
    a.deliver(one)
    a.pump()
    assert a.all(Assigned)[-1] == Assigned([1], redriven=[1])
    b.pump()
    assert b.assigned == [], "2 has the key of 1"
    a.settle(1, "commit", redriven=True)
    b.pump()
    assert b.assigned == [2]


def test_damage_in_a_batch_is_told_to_one_who_passes_over_it() -> None:
    world = wide()
    a, b = Seat(world), Seat(world, "b")
    a.lend()
    read = a.read()
    assert read is not None
    a.membership.deliver(read, rot(read))
    a.pump()
    [told] = a.all(Damaged)
    error = protocol.raised(told.error)
    assert isinstance(error, errors.CorruptData)
    assert (error.first, error.end, told.next) == (0, 1, 1)
    assert b.take() == [1, 2] or b.take() == [2]
    assert isinstance(a.commit(0), protocol.Committed)
    assert world.cursor(NAME).committed == 1


def told_of_damage() -> tuple[World, Seat]:
    """A member that was told that the first record is damaged, and has not passed over it."""
    world = wide()
    a = Seat(world)
    a.lend()
    read = a.read()
    assert read is not None
    a.membership.deliver(read, rot(read))
    a.pump()
    assert [each.next for each in a.all(Damaged)] == [1]
    return world, a


def test_what_one_was_told_of_who_left_before_passing_over_it_is_told_to_the_next() -> None:
    world, a = told_of_damage()
    b = Seat(world, "b")
    world.leave(a.client)
    assert b.take() + b.take() == [1, 2]
    b.lend()
    b.pump()  # nothing is left but what the other had
    world.pump()
    b.pump()
    assert [each.next for each in b.all(Damaged)] == [1]
    assert isinstance(b.commit(0, 1, 2), protocol.Committed)
    assert world.cursor(NAME).committed == 3


def test_what_one_was_told_of_whose_connection_was_lost_is_told_again_on_the_next() -> None:
    world, a = told_of_damage()
    world.leave(a.client)
    again = Seat(world, epoch=a.epoch, in_hand=[])
    assert again.epoch == a.epoch
    again.lend()
    again.pump()
    assert [each.next for each in again.all(Damaged)] == [1]
    assert isinstance(again.commit(0), protocol.Committed)
    assert world.cursor(NAME).committed == 1


def test_damage_between_looking_up_and_sending_is_told_and_frees_the_key() -> None:
    world = wide(0)
    for _ in range(2):
        world.send(world.client("filler"), [b"x" * 3900], [A])
    a = Seat(world)
    a.lend()
    a.step()
    world.books.groups[LOG, NAME].chunk = None  # (as if others had looked up more since)
    a.lend()
    read = a.read()
    assert read is not None
    a.membership.deliver(read, rot(read))
    assert [each.next for each in a.all(Damaged)] == [1]
    assert a.take() == [1]
    a.commit(0, 1)
    assert world.cursor(NAME).committed == 2


def test_a_trim_between_looking_up_and_sending_is_told_as_a_gap() -> None:
    world = wide()
    a = Seat(world)
    a.lend(2)
    a.step()
    world.books.groups[LOG, NAME].chunk = None
    a.lend(2)
    read = a.read()
    world.call(world.client("admin"), protocol.TrimLog(LOG, model.offset(1)))
    assert read is not None
    a.membership.deliver(read, FileNotFoundError(errno.ENOENT, "gone"))
    a.pump()
    [told] = a.all(Damaged)
    assert isinstance(protocol.raised(told.error), errors.Gap)
    a.commit(0)
    assert a.take() == [1]
    assert world.cursor(NAME).committed == 1


def test_a_redriven_record_that_was_trimmed_is_done_with() -> None:
    world = wide()
    a, b = Seat(world), Seat(world, "b")
    assert a.take(1) == [0]
    a.settle(0, "park")
    world.call(world.client("admin"), protocol.Redrive(LOG, NAME, [0]))
    world.books.groups[LOG, NAME].chunk = None
    b.lend(1)
    b.step()  # its key
    read = b.read()  # its batch
    assert read is not None
    # A trim stops at what is parked: this one does not.
    world.books.state.apply(facts.Trimmed(LOG, 1), 0)
    world.books.begin_at(LOG, 1)
    b.membership.deliver(read, FileNotFoundError(errno.ENOENT, "gone"))
    assert b.read() is not None, "it goes on behind it"
    world.pump()
    assert (b.all(Damaged), world.cursor(NAME).parked) == ([], {})
    assert b.take() == [1]


def test_a_redriven_record_that_is_damaged_stays_parked_and_holds_up_nobody() -> None:
    world = wide()
    a = Seat(world)
    assert a.take(1) == [0]
    a.settle(0, "park")
    world.call(world.client("admin"), protocol.Redrive(LOG, NAME))
    a.lend(1)
    read = a.read()
    assert read is not None
    a.membership.deliver(read, rot(read))
    world.pump()
    a.pump()
    assert a.assigned == [0, 1]
    parked = world.cursor(NAME).parked[0]
    assert (parked.redriven, parked.reason, parked.error) == (False, "it cannot be read", "rot")


def test_a_segment_that_is_missing_is_damage_and_a_disk_that_fails_ends_it() -> None:
    world = wide(2)
    a, b = Seat(world), Seat(world, "b")
    a.lend()
    read = a.read()
    assert read is not None
    a.membership.deliver(read, FileNotFoundError(errno.ENOENT, "gone"))
    a.pump()
    assert "the file is missing" in a.all(Damaged)[0].error.message
    b.lend()
    read = b.read()
    assert read is not None
    b.membership.deliver(read, OSError(errno.EIO, "broken"))
    assert [each.code for each in b.all(Error)] == [errors.StorageFailed.code]
    assert b.membership.ended


def test_a_log_that_is_deleted_ends_its_members() -> None:
    world = world_of([None])
    a, b = Seat(world), Seat(world, "b")
    assert a.take() == [0]
    b.lend()
    b.pump()
    world.call(world.client("admin"), protocol.DeleteLog(LOG))
    assert a.client.lost_claims == [(LOG, NAME, 1)]
    b.pump()
    assert [each.code for each in b.all(Error)] == [errors.NotFound.code]
    assert b.membership.ended
    assert isinstance(b.heard[-1][1], Settled)

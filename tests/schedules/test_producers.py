"""Producers: what is recognised as a retry, who may append, and what is forgotten."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from rlog_client import batch, errors, model, protocol
from rlog_client.model import PRODUCER_ID
from rlog_client.protocol import Append, Appended, ProducerOpened
from tests.schedules.world import LOG, NOTHING, TEN_YEARS_NS, Client, World, code
from tests.storage.server import judged

if TYPE_CHECKING:
    from collections.abc import Sequence

ME = 7
IN_FLIGHT = 64


def put(world: World, client: Client, sequence: int, count: int = 1, **more: Any) -> Any:
    """Records under these sequence numbers, whose values say which they are."""
    more.setdefault("producer", ME)
    values = [b"%d:%d" % (more["producer"], sequence + index) for index in range(count)]
    return world.send(client, values, sequence=sequence, **more)


def place(answer: Any) -> tuple[int, int, bool]:
    assert isinstance(answer, Appended), answer
    return answer.first, answer.end, answer.duplicate


def listed(world: World) -> Sequence[model.ProducerInfo]:
    client = world.client("onlooker")
    request = world.ask(client, protocol.ListProducers(LOG))
    world.pump()
    return msgspec.msgpack.decode(client.payloads[request], type=list[model.ProducerInfo])


# --- retries ------------------------------------------------------------------------------------


def restarts(world: World, how: str) -> None:
    if how == "replay":
        world.restart()
    elif how == "kill":
        world.restart(None)
    elif how == "checkpoint":
        world.restart(clean=True)


HOW = pytest.mark.parametrize("how", ["none", "replay", "kill", "checkpoint"])


@HOW
def test_a_retry_gets_the_original_offsets(how: str) -> None:
    world = World(2)
    a = world.client("a")
    original = put(world, a, 0, 3)
    assert place(original) == (2, 5, False)
    put(world, a, 3, 2, after=2)
    restarts(world, how)
    again = put(world, world.client("a"), 0, 3)
    assert place(again) == (2, 5, True)
    assert again.timestamp_ns == original.timestamp_ns
    assert place(put(world, world.client("a"), 1)) == (3, 4, True)  # a part of it
    assert place(put(world, world.client("a"), 3, 2)) == (5, 7, True)
    assert world.log.end == 7


@HOW
def test_a_name_gives_the_last_sequence_accepted_and_recognises_the_retry(how: str) -> None:
    world = World()
    a = world.client("a")
    assert world.open(a, ME, "ingest") == ProducerOpened(ME, 1, -1)
    put(world, a, 0, 4, epoch=1)
    restarts(world, how)
    b = world.client("b")
    assert world.open(b, 99, "ingest") == ProducerOpened(ME, 2, 3)
    assert place(put(world, b, 0, 4, epoch=2)) == (0, 4, True)
    assert place(put(world, b, 4, epoch=2, after=3)) == (4, 5, False)


def test_a_duplicate_older_than_what_is_remembered_has_no_offsets() -> None:
    world = World()
    a = world.client("a")
    for sequence in range(IN_FLIGHT + 1):
        put(world, a, sequence)
    assert place(put(world, a, 0)) == (-1, -1, True)
    assert place(put(world, a, 1)) == (1, 2, True)
    world.restart()
    assert place(put(world, world.client("a"), 0)) == (-1, -1, True)
    assert place(put(world, world.client("a"), 1)) == (1, 2, True)
    assert world.log.end == IN_FLIGHT + 1


def test_a_duplicate_says_synced_only_when_it_is() -> None:
    world = World(policy="never")
    a = world.client("a")
    for sequence in range(IN_FLIGHT + 1):
        put(world, a, sequence)
    assert [put(world, a, sequence).synced for sequence in (0, 1)] == [False, False]
    world.call(a, protocol.WaitSynced(LOG, 1))
    assert [put(world, a, sequence).synced for sequence in (0, 1)] == [True, True]


def test_an_overlap_and_a_gap_are_conflicts() -> None:
    world = World()
    a = world.client("a")
    put(world, a, 0, 3)
    assert code(put(world, a, 2, 2)) == errors.Conflict.code
    assert code(put(world, a, 5, after=4)) == errors.Conflict.code
    assert code(put(world, a, 3, after=-1)) == errors.Conflict.code
    assert place(put(world, a, 5, after=2)) == (3, 4, False)  # numbers may be left out
    assert world.log.end == 4


def test_what_is_behind_a_refused_batch_is_refused_too() -> None:
    world = World()
    a = world.client("a")
    wrong = world.ask_append(a, [b"0"], producer=ME, sequence=0, after=-1, expect=9)
    behind = world.ask_append(a, [b"1"], producer=ME, sequence=1, after=0)
    world.pump()
    assert [code(a.answers[each]) for each in (wrong, behind)] == [errors.Conflict.code] * 2
    assert world.log.end == 0


def test_a_retry_is_recognised_before_the_expectation_is_tested() -> None:
    world = World(key_index=True)
    a = world.client("a")
    put(world, a, 0, expect=0)
    put(world, a, 1, keys=[b"k"], expect_key=-1)
    assert place(put(world, a, 0, expect=0)) == (0, 1, True)
    assert place(put(world, a, 1, keys=[b"k"], expect_key=-1)) == (1, 2, True)
    assert code(put(world, a, 2, keys=[b"k"], expect_key=-1)) == errors.Conflict.code


def test_a_retry_is_recognised_on_a_full_disk_and_when_writing_has_ended() -> None:
    world = World()
    a = world.client("a")
    put(world, a, 0)
    world.disk.free = 0
    assert place(put(world, a, 0)) == (0, 1, True)
    world.books.failed = "the disk is gone"
    assert place(put(world, a, 0)) == (0, 1, True)
    assert code(put(world, a, 1)) == errors.StorageFailed.code


@pytest.mark.parametrize("how", ["same life", "killed", "cut"])
def test_a_reply_that_was_lost_after_its_frame_was_synced_is_given_again(how: str) -> None:
    world = World()
    a = world.client("a")
    lost = world.ask_append(a, [b"v"], producer=ME)
    assert world.fly()
    flight = world.flight
    assert flight is not None
    world.server.driver.journal.wait(flight.number)  # synced, and nobody is told
    a.closed = True
    if how == "same life":
        world.land()
    else:
        world.restart(None if how == "killed" else NOTHING)
    assert lost not in a.answers
    again = world.send(world.client("a"), [b"v"], producer=ME)
    assert place(again) == (0, 1, True)
    assert again.synced
    assert world.values() == [b"v"]


def test_a_retry_in_the_same_frame_is_recognised() -> None:
    world = World()
    a, b = world.client("a"), world.client("a")
    first = world.ask_append(a, [b"v"], producer=ME)
    second = world.ask_append(b, [b"v"], producer=ME)
    world.pump()
    assert place(a.answers[first]) == (0, 1, False)
    assert place(b.answers[second]) == (0, 1, True)
    assert b.last(Appended).synced


# --- names --------------------------------------------------------------------------------------


def test_whoever_opens_a_name_again_fences_the_one_before() -> None:
    world = World()
    a, b = world.client("a"), world.client("b")
    world.open(a, ME, "ingest")
    put(world, a, 0, epoch=1)
    world.open(b, 99, "ingest")
    assert code(put(world, a, 1, epoch=1)) == errors.Fenced.code
    assert code(put(world, a, 1)) == errors.Fenced.code  # nor without any
    assert code(world.open(a, ME, "ingest", epoch=1)) == errors.Fenced.code
    assert place(put(world, b, 1, epoch=2, after=0)) == (1, 2, False)


def test_a_fenced_producer_is_not_told_that_the_records_of_its_successor_are_its_own() -> None:
    world = World()
    a, b = world.client("a"), world.client("b")
    world.open(a, ME, "ingest")
    assert world.send(a, [b"old 0"], producer=ME, epoch=1).first == 0
    late = world.ask_append(a, [b"old 1"], producer=ME, sequence=1, epoch=1)
    # It lies in a buffer while its successor opens the name and goes on where it stood.
    [waiting] = world.server.driver.broker._queue
    world.server.driver.broker._queue.clear()
    assert world.open(b, 99, "ingest") == ProducerOpened(ME, 2, 0)
    assert world.send(b, [b"new 1"], producer=ME, sequence=1, epoch=2).first == 1
    world.server.driver.broker.submit(waiting)
    world.pump()
    assert code(a.answers[late]) == errors.Fenced.code
    # What is its own is its own, fenced or not; and the successor may repeat what is there.
    assert place(world.send(a, [b"old 0"], producer=ME, epoch=1)) == (0, 1, True)
    assert place(world.send(b, [b"old 0"], producer=ME, epoch=2)) == (0, 1, True)
    world.restart()
    assert code(world.send(a, [b"old 1"], producer=ME, sequence=1, epoch=1)) == errors.Fenced.code
    assert place(world.send(a, [b"old 0"], producer=ME, epoch=1)) == (0, 1, True)


def test_a_named_producer_comes_back_under_its_epoch() -> None:
    world = World()
    a = world.client("a")
    world.open(a, ME, "ingest")
    put(world, a, 0, epoch=1)
    world.restart()
    b = world.client("a")
    assert world.open(b, 99, "ingest", epoch=1) == ProducerOpened(ME, 1, 0)
    assert place(put(world, b, 1, epoch=1, after=0)) == (1, 2, False)


def test_a_producers_id_is_nobody_elses() -> None:
    world = World()
    put(world, world.client("a"), 0)
    assert code(world.open(world.client("b"), ME, "ingest")) == errors.InvalidRequest.code
    assert code(world.open(world.client("b"), 0, "ingest")) == errors.InvalidRequest.code
    assert code(world.open(world.client("b"), ME)) == errors.InvalidRequest.code


def test_names_and_the_owner_are_listed() -> None:
    world = World()
    a, b = world.client("a"), world.client("b")
    world.open(a, 1, "first")
    world.open(b, 2, exclusive=True)
    infos = listed(world)
    assert [(info.name, info.epoch, info.owner) for info in infos] == [
        (None, 1, "b"),
        ("first", 1, None),
    ]


# --- exclusive ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [None, "ingest"])
def test_while_a_log_is_owned_everyone_else_is_busy(name: str | None) -> None:
    world = World()
    a, b = world.client("a"), world.client("b")
    world.open(b, 3, "other")
    assert world.open(a, ME, name, exclusive=True) == ProducerOpened(ME, 1, -1)
    assert place(put(world, a, 0, epoch=1)) == (0, 1, False)
    for refused in (
        world.send(b, [b"x"]),
        world.send(b, [b"x"], producer=4),
        world.send(b, [b"x"], producer=3, epoch=1),
        world.send(a, [b"x"]),
        world.open(b, 5, exclusive=True),
        world.open(b, 5, "more", exclusive=True),
    ):
        assert code(refused) == errors.Busy.code
    world.call(a, protocol.Release(LOG, PRODUCER_ID))
    assert code(put(world, a, 1, epoch=1)) == errors.Fenced.code
    assert place(world.send(b, [b"x"])) == (1, 2, False)


@pytest.mark.parametrize("name", [None, "ingest"])
@pytest.mark.parametrize("how", ["takeover", "evict"])
def test_an_owner_that_lost_the_log_is_fenced_with_its_frames_under_way(
    name: str | None, how: str
) -> None:
    world = World()
    a, b = world.client("a"), world.client("b")
    world.open(a, ME, name, exclusive=True)
    put(world, a, 0, epoch=1)
    late: list[int] = []
    if how == "takeover":
        world.ask(b, protocol.OpenProducer(LOG, 8, exclusive=True, takeover=True, token=b"b"))
    else:
        world.ask(b, protocol.Evict(LOG, PRODUCER_ID))
    late.append(world.ask_append(a, [b"1"], producer=ME, sequence=1, epoch=1))
    assert world.fly()
    late.append(world.ask_append(a, [b"2"], producer=ME, sequence=2, epoch=1))
    world.pump()
    assert [code(a.answers[each]) for each in late] == [errors.Fenced.code] * 2
    assert code(world.open(world.client("a"), ME, name, exclusive=True, token=b"a", epoch=1)) == (
        errors.Fenced.code
    )
    assert world.log.end == 1
    # What it has written is recognised all the same.
    assert place(put(world, a, 0, epoch=1)) == (0, 1, True)


@pytest.mark.parametrize("name", [None, "ingest"])
@pytest.mark.parametrize("how", ["lost", "restart"])
def test_an_owner_comes_back_to_its_log_with_its_batches_in_the_same_frame(
    name: str | None, how: str
) -> None:
    world = World()
    a = world.client("a")
    world.open(a, ME, name, exclusive=True)
    put(world, a, 0, epoch=1)
    if how == "lost":
        world.leave(a)
    else:
        world.restart()
    b = world.client("a")
    opened = world.ask(b, protocol.OpenProducer(LOG, ME, name, exclusive=True, token=b"a", epoch=1))
    again = world.ask_append(b, [b"7:0"], producer=ME, epoch=1, after=-1)
    more = world.ask_append(b, [b"7:1"], producer=ME, sequence=1, epoch=1, after=0)
    world.pump()
    assert b.answers[opened] == ProducerOpened(ME, 1, 0)
    assert place(b.answers[again]) == (0, 1, True)
    assert place(b.answers[more]) == (1, 2, False)


def test_an_owner_whose_name_was_opened_by_another_cannot_come_back_to_it() -> None:
    world = World()
    a, b = world.client("a"), world.client("b")
    world.open(a, ME, "ingest", exclusive=True)
    world.leave(a)
    assert world.open(b, 99, "ingest") == ProducerOpened(ME, 2, -1)
    back = world.open(world.client("a"), ME, "ingest", exclusive=True, token=b"a", epoch=1)
    assert code(back) == errors.Fenced.code
    assert place(put(world, b, 0, epoch=2)) == (0, 1, False)


def test_after_a_restart_nobody_passes_the_owner_for_five_seconds() -> None:
    world = World()
    a = world.client("a")
    world.open(a, ME, exclusive=True)
    world.restart()
    b = world.client("b")
    assert code(world.send(b, [b"x"])) == errors.Busy.code
    request = world.ask(b, protocol.OpenProducer(LOG, 8, exclusive=True, token=b"b"))
    world.sleep(4.9)
    assert request not in b.answers
    world.sleep(0.2)
    assert b.answers[request] == ProducerOpened(8, 2, -1)
    assert code(world.open(world.client("a"), ME, exclusive=True, token=b"a", epoch=1)) == (
        errors.Fenced.code
    )


def test_of_two_that_open_exclusively_in_one_frame_one_owns_the_log() -> None:
    world = World()
    a, b = world.client("a"), world.client("b")
    first, second = world.together(
        (a, protocol.OpenProducer(LOG, 1, exclusive=True, token=b"a")),
        (b, protocol.OpenProducer(LOG, 2, exclusive=True, token=b"b")),
    )
    assert first == ProducerOpened(1, 1, -1)
    assert code(second) == errors.Busy.code


def test_a_standby_gets_the_log_when_its_owner_is_gone() -> None:
    world = World()
    a, b = world.client("a"), world.client("b")
    world.open(a, 1, exclusive=True)
    request = world.ask(b, protocol.OpenProducer(LOG, 2, exclusive=True, standby=True, token=b"b"))
    world.pump()
    assert request not in b.answers
    world.leave(a)
    assert b.answers[request] == ProducerOpened(2, 2, -1)


# --- what is forgotten --------------------------------------------------------------------------


def known(world: World) -> set[int]:
    return set(world.log.producers)


def test_a_producer_without_a_name_is_forgotten_after_an_hour_of_silence() -> None:
    world = World()
    a = world.client("a")
    world.open(a, 1, "named")
    put(world, a, 0, producer=1, epoch=1)
    put(world, a, 0, producer=2)
    world.sleep(3599)
    put(world, a, 0, producer=3)
    assert known(world) == {1, 2, 3}
    world.sleep(2)
    put(world, a, 1, producer=3)
    assert known(world) == {1, 3}
    world.restart()
    assert known(world) == {1, 3}


def test_a_restart_gives_the_silent_another_hour() -> None:
    world = World()
    put(world, world.client("a"), 0, producer=2)
    world.sleep(3000)
    world.restart()
    world.sleep(3000)
    put(world, world.client("a"), 0, producer=3)
    assert known(world) == {2, 3}
    world.sleep(700)
    put(world, world.client("a"), 1, producer=3)
    assert known(world) == {3}


@pytest.mark.parametrize("jump_ns", [TEN_YEARS_NS, -TEN_YEARS_NS])
def test_the_wall_clock_makes_nothing_forgotten(jump_ns: int) -> None:
    world = World()
    a = world.client("a")
    put(world, a, 0, producer=2)
    world.clock.jump_ns = jump_ns
    put(world, a, 0, producer=3)
    assert known(world) == {2, 3}
    assert place(put(world, a, 0, producer=2)) == (0, 1, True)
    world.sleep(3601)
    put(world, a, 1, producer=3)
    assert known(world) == {3}


# --- keys ---------------------------------------------------------------------------------------


@HOW
def test_the_last_offset_of_a_key_is_expected(how: str) -> None:
    world = World(key_index=True)
    a = world.client("a")
    world.send(a, [b"0", b"1", b"2", b"3"], [b"k", b"l", None, b"k"])
    restarts(world, how)
    a = world.client("a")
    answer = world.send(a, [b"x"], [b"k"], expect_key=0)
    assert code(answer) == errors.Conflict.code
    assert answer.details["key_offset"] == 3
    assert code(world.send(a, [b"x"], [b"l"], expect_key=-1)) == errors.Conflict.code
    assert code(world.send(a, [b"x"], [b"m"], expect_key=1)) == errors.Conflict.code
    assert world.send(a, [b"x"], [b"k"], expect_key=3).first == 4
    assert world.send(a, [b"x"], [b"k"], expect_key=4).first == 5
    assert world.send(a, [b"x"], [b"m"], expect_key=-1).first == 6


@HOW
def test_a_key_whose_last_record_was_trimmed_has_none(how: str) -> None:
    world = World(key_index=True)
    a = world.client("a")
    world.send(a, [b"0"], [b"k"])
    for number in range(20):
        world.send(a, [b"%04d" % number * 1024], [b"l"])
    assert world.call(a, protocol.TrimLog(LOG, model.offset(18))).first > 0
    restarts(world, how)
    a = world.client("a")
    assert code(world.send(a, [b"x"], [b"k"], expect_key=0)) == errors.Conflict.code
    assert world.send(a, [b"x"], [b"k"], expect_key=-1).first == 21
    assert world.send(a, [b"x"], [b"l"], expect_key=20).first == 22


def test_of_two_that_expect_the_same_in_one_frame_one_is_told_of_the_other() -> None:
    world = World(key_index=True)
    a, b = world.client("a"), world.client("b")
    first = world.ask_append(a, [b"0"], [b"k"], expect_key=-1)
    second = world.ask_append(b, [b"1"], [b"k"], expect_key=-1)
    third = world.ask_append(b, [b"1"], expect=0)
    world.pump()
    assert place(a.answers[first]) == (0, 1, False)
    assert [code(b.answers[each]) for each in (second, third)] == [errors.Conflict.code] * 2


def test_a_key_is_expected_only_of_one_record_with_a_key_in_a_log_that_has_an_index() -> None:
    world, plain = World(key_index=True), World()
    for refused in (
        world.send(world.client("a"), [b"x"], expect_key=-1),
        world.send(world.client("a"), [b"x"], [None], expect_key=-1),
        world.send(world.client("a"), [b"x", b"y"], [b"k", b"k"], expect_key=-1),
        plain.send(plain.client("a"), [b"x"], [b"k"], expect_key=-1),
    ):
        assert code(refused) == errors.InvalidRequest.code


def test_an_append_to_a_log_that_is_not_there_is_not_found() -> None:
    world = World()
    client = world.client("a")
    request = world.ask(client, Append(9), [judged(bytes(batch.encode([b""])))])
    world.pump()
    assert code(client.answers[request]) == errors.NotFound.code


def test_the_keys_of_a_batch_count_twice_where_they_are_indexed() -> None:
    """They stand in the facts as well, and all of it has to fit into one frame."""
    plain, indexed = World(), World(key_index=True)
    keys = [bytes(plain.books.batch_bytes_max * 2 // 3)]
    assert isinstance(plain.send(plain.client("a"), [b"v"], keys), protocol.Appended)
    refused = indexed.send(indexed.client("a"), [b"v"], keys)
    assert code(refused) == errors.TooLarge.code
    assert indexed.log.end == 0

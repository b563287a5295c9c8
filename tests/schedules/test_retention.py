"""Retention as the server does it: what goes when, what waits, what is said, and by which clock."""

from __future__ import annotations

import logging
import random
from typing import TYPE_CHECKING, Any

import pytest

from rlog import retention, state
from rlog.subscription import Subscription
from rlog_client import batch, errors, model, protocol
from tests.schedules.world import LOG, TEN_YEARS_NS, Client, World, code
from tests.shared.seat import NAME, Seat

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

KIB = 1024
TOTAL = 16 * KIB  # the least that a log may hold; a file of it is 4 KiB
DAY = 86_400.0


class BootedWorld(World):
    """A machine that knows its boot: what the clock should be is known across restarts."""

    boot = "a boot"


def fill(world: World, count: int, size: int = KIB, client: Client | None = None) -> list[Any]:
    """Batches of one record of about ``size`` bytes."""
    client = client or world.client("filler")
    begin = world.log.end
    return [
        world.send(client, [b"%06d" % number + bytes(size - 106)])
        for number in range(begin, begin + count)
    ]


def alter(world: World, **options: Any) -> Any:
    return world.call(world.client("admin"), protocol.AlterLog(LOG, options))


def trim(world: World, before: model.Whence = model.LATEST, **more: Any) -> Any:
    return world.call(world.client("admin"), protocol.TrimLog(LOG, before, **more))


def info(world: World) -> model.LogInfo:
    answer = world.call(world.client("admin"), protocol.GetLog(LOG))
    assert isinstance(answer, protocol.LogReply)
    return answer.info


def kept(world: World) -> range:
    """What can be read, which is exactly what should be there."""
    values = world.values()
    log = world.log
    assert [int((value or b"-1")[:6]) for value in values] == list(range(log.first, log.end))
    files = [path for path in world.disk.paths() if path.startswith(f"logs/{LOG}/")]
    assert len(files) == len(log.segments), "a file for each segment, and no other"
    return range(log.first, log.end)


def member(world: World, consumer: str = "c", name: str = "member") -> Client:
    client = world.client(name)
    world.claim(client, consumer=consumer)
    return client


def commit(world: World, client: Client, offset: int) -> None:
    world.deliver(client)
    answer = world.commit(client, client.grants[LOG, "c"].epoch, offset)
    assert isinstance(answer, protocol.Committed), answer


@pytest.fixture
def said(caplog: pytest.LogCaptureFixture) -> Iterator[Callable[[], list[str]]]:
    """What retention had to say."""
    disabled = logging.root.manager.disable
    logging.disable(logging.NOTSET)
    caplog.set_level(logging.INFO)
    yield lambda: [r.getMessage() for r in caplog.records if r.name == "rlog.retention"]
    logging.disable(disabled)


# --- size and age -------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", ["always", "never", "periodic:1s"])
@pytest.mark.parametrize("seed", range(3))
def test_behind_every_append_the_log_is_within_its_size(seed: int, policy: str) -> None:
    rng = random.Random(seed)
    world = World(policy=policy, max_total_bytes=TOTAL)
    for _ in range(60):
        fill(world, 1, rng.choice((120, 700, 2000, 3900)))
        assert world.log.bytes <= TOTAL
        assert world.log.bytes > TOTAL // 2 or world.log.first == 0
    world.sleep(2)
    assert len(kept(world)) < 60
    world.restart(None)
    assert len(kept(world)) < 60


def test_a_batch_larger_than_the_bound_is_taken_and_is_then_all_there_is() -> None:
    world = World(max_total_bytes=TOTAL)
    fill(world, 5)
    fill(world, 1, TOTAL + KIB)
    assert list(kept(world)) == [5]
    fill(world, 1)
    assert list(kept(world)) == [6]


def test_a_bound_that_is_lowered_takes_effect_at_once() -> None:
    world = World()
    fill(world, 100, KIB)
    alter(world, max_total_bytes=70 * KIB)
    assert world.log.bytes <= 70 * KIB
    assert kept(world).stop == 100
    assert info(world).retention is None


def test_records_go_when_they_are_older_and_not_before() -> None:
    world = World(max_file_age=100.0)
    for _ in range(4):
        fill(world, 1)
        world.sleep(30)
    # A file is written for a quarter of the age, so each of these has its own.
    assert list(kept(world)) == [0, 1, 2, 3][-len(kept(world)) :]
    world.sleep(0.5)
    assert kept(world).start == 1
    world.sleep(30)
    assert kept(world).start == 2
    world.sleep(100)
    assert kept(world) == range(4, 4), "also the last one: nothing newer is in it"
    fill(world, 2)
    assert kept(world) == range(4, 6)


def test_a_log_that_is_written_slowly_for_ever_lets_go_of_what_is_old() -> None:
    world = World(max_file_age=100.0)
    for _ in range(60):
        fill(world, 1)
        world.sleep(10)
        oldest = world.log.segments[0]
        assert (world.log.end - oldest.base) * 10 <= 125 + 20
    assert kept(world).start > 40


def test_what_one_pass_trims_of_many_logs_is_in_few_frames() -> None:
    world = World()
    names = [f"l{number}" for number in range(300)]
    for name in names:
        world.server.create(name, max_file_age=10.0)
        world.server.batch(name, b"%08d %s" % (len(world.server.history.sent), name.encode()))
    tail = world.server.driver.journal.tail()
    world.sleep(20)
    assert all(not log.segments for log in world.books.state.logs.values() if log.id != LOG)
    assert world.server.driver.journal.tail() - tail <= 8


def test_an_idle_log_is_looked_at_rarely_and_one_that_keeps_everything_never() -> None:
    world = World()
    assert world.books.alarm == float("inf")
    alter(world, max_file_age=7 * DAY)
    fill(world, 1)
    world.sleep(1.5)
    assert world.books.watch.due[LOG] > world.clock.now + 30
    alter(world, max_file_age=None)
    world.pump()
    assert not world.books.watch.due
    assert not world.books.watch.dated


def test_where_writing_has_ended_nothing_is_trimmed_and_nothing_breaks() -> None:
    world = World(max_file_age=10.0)
    fill(world, 3)
    world.server.driver.broker.fail("the disk is gone", None)
    tail = world.server.driver.journal.tail()
    for _ in range(5):
        world.sleep(20)
        world.pump()
    assert world.server.driver.journal.tail() == tail
    assert kept(world) == range(3)


@pytest.mark.parametrize(
    "options",
    [
        {"max_total_bytes": TOTAL - 1},
        {"max_total_bytes": True},
        {"max_total_bytes": "1GiB"},
        {"max_total_bytes": 1.5},
        {"max_file_age": 0.5},
        {"max_file_age": False},
        {"max_file_age": float("nan")},
        {"max_file_age": float("inf")},
        {"max_file_age": "7d"},
        {"blocking_minimum_retention": 0},
        {"blocking_minimum_retention": -1.0},
        {"max_file_age": 10.0, "blocking_minimum_retention": 11.0},
        {"protected": "c"},
        {"protected": ["@other"]},
        {"protected": [1]},
        {"protected": None},
        {"protected": [f"c{number}" for number in range(33)]},
    ],
)
def test_an_option_that_cannot_be_is_refused_and_changes_nothing(options: dict[str, Any]) -> None:
    world = World(max_file_age=50.0)
    before = info(world)
    assert code(alter(world, **options)) == errors.InvalidRequest.code
    refused = world.call(world.client("admin"), protocol.OpenLog("b", True, options))
    assert code(refused) == errors.InvalidRequest.code
    assert info(world) == before


def test_the_most_that_options_can_be_fits_into_a_frame_and_into_an_answer() -> None:
    """In one that is asked for its size, too: with every cursor that is deleted they change."""
    world = World()
    names = [f"{number:03}" + "é" * 126 for number in range(32)]
    answer = alter(world, protected=names, max_total_bytes=TOTAL, sync="bytes:1MiB")
    assert isinstance(answer, protocol.LogReply)
    assert answer.info.options["protected"] == sorted(names)
    world.restart(None)
    assert info(world).options["protected"] == sorted(names)
    for name in names[:3]:
        world.claim(member := world.client("member"), consumer=name)
        world.call(member, protocol.Release(LOG, name))
    admin = world.client("admin")
    gone = world.together(*((admin, protocol.DeleteCursor(LOG, name)) for name in names[:3]))
    assert gone == [protocol.Done()] * 3
    assert info(world).options["protected"] == sorted(names[3:])


# --- protected consumers ------------------------------------------------------------------------


def test_a_protected_consumer_is_not_overtaken_and_the_log_says_so(
    said: Callable[[], list[str]],
) -> None:
    world = World(max_total_bytes=TOTAL, protected=["c"])
    fill(world, 40)
    assert kept(world) == range(40)
    assert world.log.bytes > TOTAL
    text = info(world).retention
    assert text is not None
    assert "'c'" in text
    assert trim(world).first == 0
    c = member(world)
    commit(world, c, 30)
    world.sleep(1.5)
    assert world.log.bytes <= TOTAL
    assert 20 < kept(world).start <= 30
    assert trim(world).first == kept(world).start
    world.sleep(30)
    own = [text for text in said() if "only" not in text.partition(":")[0]]  # not by hand
    assert len(own) == 2, said()
    assert "no cursor yet" in own[0]
    assert "again" in own[1]
    assert len(said()) == 4, "and each trim by hand that did not come as far as asked"
    assert info(world).retention is None


def test_without_its_cursor_it_protects_from_the_first_offset_and_deleting_it_ends_that() -> None:
    world = World(protected=["c"])
    fill(world, 20)
    alter(world, max_file_age=10.0)
    world.sleep(20)
    assert kept(world) == range(20)
    c = member(world)
    assert world.cursor().committed == 0
    world.call(c, protocol.Release(LOG, "c"))
    world.call(c, protocol.DeleteCursor(LOG, "c"))
    assert info(world).options["protected"] == []
    world.sleep(2)
    assert not kept(world)


# --- with compaction ----------------------------------------------------------------------------


def put(world: World, key: bytes, size: int = 300) -> None:
    """A record of a key, and what supersedes itself at once."""
    keys = [key, b"hot", b"hot", b"hot"]
    world.send(world.client("filler"), [bytes(size)] * len(keys), keys)


def test_what_is_old_goes_in_time_though_it_was_compacted_together_with_what_is_young() -> None:
    world = World(max_file_age=100.0, key_index=True, compact=True)
    appended_ns: list[int] = []
    compacted = first = 0
    for number in range(60):
        appended_ns.append(world.clock.wall())
        put(world, b"%d" % number)
        world.sleep(3)
        compacted += world.server.compact()  # (which takes its time)
        world.sleep(1)
        ages = [(world.clock.wall() - at_ns) / 1e9 for at_ns in appended_ns]
        first = -(-world.log.first // 4)
        assert all(age >= 99 for age in ages[:first])
        assert all(age <= 100 + 25 + 2 for age in ages[first:]), ages[first]
    assert compacted > 5
    assert first > 5


def test_of_a_compacted_log_that_is_full_goes_a_quarter_at_a_time() -> None:
    world = World(max_total_bytes=TOTAL, key_index=True, compact=True)
    least = TOTAL
    for number in range(100):
        put(world, b"%d" % number)
        world.sleep(1)
        assert world.log.bytes <= TOTAL
        if world.log.first:
            least = min(least, world.log.bytes)
        world.server.compact()
    assert world.log.first, "it was full"
    assert max(segment.bytes for segment in world.log.segments) <= TOTAL // state.ROLLS
    assert least > TOTAL // 2


# --- appends that wait --------------------------------------------------------------------------


def blocked_world(minimum: float = 60.0, **options: Any) -> tuple[World, Client, list[int]]:
    """A log that is full of what is young, and three appends that wait, of one producer."""
    world = World(max_total_bytes=TOTAL, blocking_minimum_retention=minimum, **options)
    client = world.client("producer")
    filler = fill(world, 12)
    assert all(isinstance(each, protocol.Appended) for each in filler)
    requests: list[int] = []
    for sequence in range(40):
        value = b"%06d" % (world.log.end + len(requests)) + bytes(900)
        request = world.ask_append(
            client, [value], producer=7, sequence=sequence, after=sequence - 1
        )
        world.pump()
        if request not in client.answers:
            requests.append(request)
        if len(requests) == 3:
            break
    assert requests, "it is never full"
    assert requests == [*range(requests[0], requests[0] + 3)]
    return world, client, requests


def test_a_bound_that_is_lowered_holds_for_what_is_appended_in_the_same_frame() -> None:
    world = World(max_total_bytes=4 * TOTAL)
    fill(world, 24)
    client = world.client("producer")
    options = {"max_total_bytes": TOTAL, "blocking_minimum_retention": 60.0}
    altered = world.ask(client, protocol.AlterLog(LOG, options))
    waits = world.ask_append(client, [bytes(900)])
    world.pump()
    assert isinstance(client.answers[altered], protocol.LogReply)
    assert waits not in client.answers
    assert world.log.end == 24


def answers(client: Client, requests: Sequence[int]) -> list[Any]:
    return [client.answers.get(request) for request in requests]


def appended_in_order(world: World, client: Client, requests: Sequence[int]) -> None:
    got = answers(client, requests)
    assert all(isinstance(each, protocol.Appended) for each in got), got
    assert [each.first for each in got] == list(range(got[0].first, got[0].first + len(got)))
    kept(world)


def test_rather_than_remove_what_is_young_appends_wait_and_then_are_refused(
    said: Callable[[], list[str]],
) -> None:
    world, client, requests = blocked_world()
    end = world.log.end
    world.sleep(4)
    assert answers(client, requests) == [None] * 3
    assert world.log.first == 0
    world.sleep(2)
    refused = answers(client, requests)
    assert code(refused[0]) == errors.DiskFull.code
    assert "log 'a'" in refused[0].message
    assert "blocking_minimum_retention (60 s)" in refused[0].message
    assert "space is expected in 5" in refused[0].message
    # What was sent behind one that was refused is not appended: as ever.
    assert [code(each) for each in refused[1:]] == [errors.Conflict.code] * 2
    assert (world.log.first, world.log.end) == (0, end)
    assert not world.books.watch.blocked
    # Whoever tries again and again is not told of in the log again and again.
    for _ in range(3):
        request = world.ask_append(client, [b"x" * 906])
        world.sleep(6)
        assert code(client.answers[request]) == errors.DiskFull.code
    assert len(said()) == 1, said()


def test_by_time_they_are_released_to_the_moment_and_in_their_order() -> None:
    world, client, requests = blocked_world(minimum=3.0)
    world.sleep(2.9)
    assert answers(client, requests) == [None] * 3
    world.sleep(0.2)
    appended_in_order(world, client, requests)
    assert world.log.bytes <= TOTAL


@pytest.mark.parametrize("how", ["trim", "larger", "no minimum", "no bound", "deleted"])
def test_by_hand_they_are_released_at_once(how: str) -> None:
    world, client, requests = blocked_world()
    match how:
        case "trim":
            assert trim(world).first > 0
        case "larger":
            alter(world, max_total_bytes=2 * TOTAL)
        case "no minimum":
            alter(world, blocking_minimum_retention=None)
        case "no bound":
            alter(world, max_total_bytes=None)
        case _:
            world.call(world.client("admin"), protocol.DeleteLog(LOG))
            assert {code(each) for each in answers(client, requests)} == {errors.NotFound.code}
            return
    appended_in_order(world, client, requests)


def test_a_protected_consumer_that_moves_releases_them() -> None:
    world = World(max_total_bytes=TOTAL, blocking_minimum_retention=1.0, protected=["c"])
    c = member(world)
    fill(world, 12)
    world.sleep(2)
    waits: list[int] = []
    for _ in range(40):
        request = world.ask_append(c, [b"%06d" % world.log.end + bytes(900)])
        world.pump()
        if request not in c.answers:
            waits.append(request)
            break
    assert "'c'" in str(info(world).retention)
    commit(world, c, 8)
    appended_in_order(world, c, waits)
    assert 0 < world.log.first <= 8


def test_a_protected_consumer_of_many_members_that_moves_releases_them() -> None:
    world = World(max_total_bytes=TOTAL, blocking_minimum_retention=1.0, protected=[NAME])
    seat = Seat(world)
    fill(world, 12)
    world.sleep(2)
    taken = len(seat.take())
    while taken < 12:
        taken += len(seat.take())
    client = world.client("producer")
    waits = world.ask_append(client, [bytes(6000)])
    world.pump()
    assert waits not in client.answers
    seat.commit(*range(8))
    assert isinstance(client.answers[waits], protocol.Appended)
    assert 0 < world.log.first <= 8


def test_while_they_wait_all_else_goes_on() -> None:
    world, client, requests = blocked_world()
    world.server.create("b")
    world.server.batch("b", b"%08d" % 1)
    c = member(world)
    commit(world, c, 5)
    assert world.server.view().logs["b"].end == 1
    assert world.cursor().committed == 5
    assert answers(client, requests) == [None] * 3


def test_a_repeated_append_is_answered_at_once_while_others_wait() -> None:
    world, client, requests = blocked_world()
    again = world.ask_append(client, [b"%06d" % 12 + bytes(900)], producer=7, sequence=0, after=-1)
    world.pump()
    answer = client.answers[again]
    assert isinstance(answer, protocol.Appended)
    assert (answer.duplicate, answer.first) == (True, 12)
    assert answers(client, requests) == [None] * 3


def test_whoever_came_later_does_not_overtake() -> None:
    world, client, requests = blocked_world()
    late = world.client("late")
    # So small that there is space for it.
    request = world.ask_append(late, [b"%06d" % (world.log.end + 3)])
    world.pump()
    assert request not in late.answers
    trim(world)
    appended_in_order(world, client, requests)
    got = late.answers[request]
    assert isinstance(got, protocol.Appended)
    assert got.first == client.answers[requests[-1]].end  # type: ignore[attr-defined]  # of that kind, or it fails here


def test_with_its_connection_what_waits_is_gone() -> None:
    world, client, requests = blocked_world()
    end = world.log.end
    world.leave(client)
    other = world.client("other")
    request = world.ask_append(other, [b"%06d" % end + bytes(900)])
    world.pump()
    trim(world)
    assert answers(client, requests) == [None] * 3
    got = other.answers[request]
    assert isinstance(got, protocol.Appended)
    assert got.first == end
    assert world.log.end == end + 1
    assert not world.books.watch.blocked


def test_a_paused_owner_that_waits_for_space_is_fenced_when_its_turn_comes() -> None:
    world = World(max_total_bytes=TOTAL, blocking_minimum_retention=60.0)
    a, b = world.client("a"), world.client("b")
    assert world.open(a, 7, exclusive=True).epoch == 1
    request = 0
    for sequence in range(40):
        value = [b"%06d" % sequence + bytes(900)]
        request = world.ask_append(a, value, producer=7, sequence=sequence, epoch=1)
        world.pump()
        if request not in a.answers:
            break
    assert request not in a.answers
    assert world.open(b, 8, exclusive=True, takeover=True).epoch == 2
    end = world.log.end
    trim(world)
    assert code(a.answers[request]) == errors.Fenced.code
    assert world.log.end == end


def test_when_writing_ends_they_are_told() -> None:
    world, client, requests = blocked_world()
    world.server.driver.broker.fail("the disk is gone", None)
    world.pump()
    assert {code(each) for each in answers(client, requests)} == {errors.StorageFailed.code}


# --- parked records -----------------------------------------------------------------------------


def parked_world(*offsets: int, count: int = 24, **options: Any) -> tuple[World, Client]:
    world = World(**options)
    alter(world, file_roll_size=4096)
    c = member(world)
    fill(world, count)
    epoch = c.grants[LOG, "c"].epoch
    for offset in offsets:
        commit(world, c, offset)
        world.settle(c, epoch, offset, "park")
    commit(world, c, count)
    return world, c


def copies(world: World) -> dict[int, int]:
    """The parked records that are copied, checked: offset -> the number in its value."""
    client = world.client("onlooker")
    found = {}
    for each in world.parked():
        if each.copied:
            request = world.ask(client, protocol.ReadParked(LOG, "c", each.offset))
            world.pump()
            raw = client.payloads[request]
            header = batch.parse_header(raw)
            assert (header.base, header.log, header.count) == (each.offset, LOG, 1)
            [value] = batch.decode(header, raw[batch.HEADER_BYTES :]).values
            found[each.offset] = int(value[:6])
    return found


def test_a_parked_record_that_a_trim_reaches_is_copied_in_the_same_frame() -> None:
    world, _c = parked_world(1, 5, 23)
    alter(world, max_total_bytes=TOTAL)
    world.sleep(2)
    assert kept(world).start > 5
    assert copies(world) == {1: 1, 5: 5}
    for how in (True, False):
        world.restart(None, clean=how)
        assert copies(world) == {1: 1, 5: 5}
        assert kept(world).start > 5


def test_beyond_the_cap_the_trim_waits_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retention, "COPIES_BYTES_MAX", 2500)
    world, c = parked_world(1, 3, 5, 7)
    alter(world, max_total_bytes=TOTAL)
    world.sleep(3)
    assert sorted(copies(world)) == [1, 3]
    assert kept(world).start == 4
    text = info(world).retention
    assert text is not None
    assert "parked record 5 of consumer 'c'" in text
    # By hand it comes as far, and does not hang.
    assert trim(world).first == 4
    world.call(world.client("admin"), protocol.Redrive(LOG, "c", [1, 3]))
    for offset in (1, 3):
        world.take(c, world.cursor().epoch, begin=True)
        world.settle(c, world.cursor().epoch, offset, "commit", redriven=True)
    world.sleep(3)
    assert sorted(copies(world)) == [5, 7]
    assert kept(world).start == 8
    assert info(world).retention is None


def test_copies_that_do_not_fit_into_one_frame_follow_each_other_at_once() -> None:
    world = World()
    c = member(world)
    size = world.books.batch_bytes_max // 3
    fill(world, 6, size)
    epoch = c.grants[LOG, "c"].epoch
    for offset in range(6):
        world.deliver(c)
        world.settle(c, epoch, offset, "park")
    alter(world, file_roll_size=4096, max_total_bytes=TOTAL)
    fill(world, 4, 3000)
    world.pump()
    assert len(copies(world)) == 6
    assert kept(world).start >= 6


class Outlet:
    """What a reader is told."""

    def __init__(self) -> None:
        self.told: list[protocol.Control] = []

    def answer(
        self, request: int, control: protocol.Control, payload: bytes | memoryview = b""
    ) -> None:
        self.told.append(control)

    def ask(self, control: protocol.Control) -> None: ...

    def wake(self) -> None: ...


def test_nobody_is_told_of_a_trim_before_it_is_durable() -> None:
    world = World()
    alter(world, file_roll_size=4096)
    fill(world, 24)
    outlet = Outlet()
    reader = Subscription(outlet, world.books, 1, LOG, "a", 0)
    reader.lend(2, protocol.Credit(1, 1 << 20))
    world.ask(world.client("admin"), protocol.TrimLog(LOG, model.offset(20)))
    assert world.fly()
    assert world.log.first > 0
    assert reader.next_read() is None
    assert not outlet.told, "it may be lost in a crash"
    world.land()
    read = reader.next_read()
    assert read is not None
    assert [type(each) for each in outlet.told] == [protocol.Damaged]
    assert reader.offset == read.offset == world.log.first


def test_a_parked_record_that_is_damaged_does_not_stop_the_trim() -> None:
    world, _c = parked_world(1, 5)
    [name] = [path for path in world.disk.paths() if path.endswith(f"{0:020}.seg")]
    whole = world.disk.contents(name)
    at = whole.index(b"000001") + 3
    world.disk.replace(name, whole[:at] + b"?" + whole[at + 1 :])
    assert trim(world).first == 24
    assert copies(world) == {5: 5}
    assert [each.offset for each in world.parked()] == [1, 5]


def test_a_trim_by_hand_copies_what_every_consumer_parked_however_much_that_is() -> None:
    world = World()
    c, d = member(world), member(world, "d", "other")
    fill(world, 40, 3000)
    for client, name in ((c, "c"), (d, "d")):
        epoch = client.grants[LOG, name].epoch
        world.deliver(client, name)
        for offset in range(40):
            world.call(client, protocol.Settle(LOG, name, epoch, offset, "park"))
    assert len(world.parked()) == 40
    assert trim(world).first == 40
    assert copies(world) == {offset: offset for offset in range(40)}
    assert sum(len(p.copy) for p in world.cursor("d").parked.values()) > 100_000


def test_asked_what_it_would_do_nothing_is_done() -> None:
    world, _c = parked_world(1, 5)
    tail = world.server.driver.journal.tail()
    assert trim(world, dry=True).first == 24
    admin = world.client("admin")
    dry = world.call(admin, protocol.AlterLog(LOG, {"max_file_age": 1.0}, dry=True))
    assert dry.info.options["max_file_age"] == 1.0
    made = world.call(admin, protocol.OpenLog("new", True, {"max_file_age": 5}, dry=True))
    assert made.info.options["max_file_age"] == 5.0
    assert world.server.driver.journal.tail() == tail
    assert info(world).options["max_file_age"] is None
    assert "new" not in world.server.view().logs
    assert copies(world) == {}


# --- the clock ----------------------------------------------------------------------------------


def booted(**options: Any) -> World:
    options.setdefault("max_file_age", 7 * DAY)
    world = BootedWorld(**options)
    fill(world, 3)
    world.sleep(DAY)
    fill(world, 3)
    world.sleep(2)
    return world


@pytest.mark.parametrize("restart", ["", "clean", "killed"])
@pytest.mark.parametrize("jump", [TEN_YEARS_NS, -TEN_YEARS_NS])
def test_ten_years_forward_or_back_remove_nothing(jump: int, restart: str) -> None:
    world = booted()
    world.clock.jump_ns = jump
    for _ in range(2):
        if restart:
            world.restart(None, clean=restart == "clean")
        world.sleep(5)
        assert kept(world).start == 0
        assert "the clock has jumped" in str(info(world).retention)
        fill(world, 1)
        world.sleep(DAY)
        assert kept(world).start == 0
    # Put right, it goes on; what was appended under the wrong clock counts as of now.
    world.clock.jump_ns = 0
    if restart:
        world.restart(None)
    world.sleep(5)
    assert kept(world) == range(8)
    assert info(world).retention is None
    world.sleep(5 * DAY)
    assert kept(world).start <= 6
    world.sleep(10 * DAY)
    assert not kept(world)


@pytest.mark.parametrize("minimum", [DAY, 30 * DAY])
def test_a_clock_that_is_ahead_makes_no_young_record_old_enough_to_go(minimum: float) -> None:
    world = BootedWorld(max_total_bytes=TOTAL, blocking_minimum_retention=minimum)
    fill(world, 12)
    world.clock.jump_ns = TEN_YEARS_NS
    client = world.client("producer")
    requests = [world.ask_append(client, [b"%06d" % n + bytes(3000)]) for n in range(12, 16)]
    world.sleep(6)
    assert kept(world).start == 0
    refused = client.answers[requests[-1]]
    assert code(refused) == errors.DiskFull.code
    assert isinstance(refused, protocol.Error)
    assert "the clock has jumped forward" in refused.message


def test_what_was_appended_while_the_clock_was_ten_years_behind_is_not_old_when_it_is_right() -> (
    None
):
    world = BootedWorld(max_file_age=7 * DAY)
    world.clock.jump_ns = -TEN_YEARS_NS
    fill(world, 3)
    world.clock.jump_ns = 0
    world.sleep(5)
    assert kept(world) == range(3)
    world.sleep(7 * DAY + 5)
    assert not kept(world)


def test_an_hour_is_no_jump() -> None:
    world = booted()
    world.clock.jump_ns = 3590 * 10**9
    world.sleep(7 * DAY)
    assert not kept(world)


def test_after_a_boot_the_clock_is_believed_unless_it_is_behind_what_is_stored() -> None:
    world = booted()
    assert isinstance(world, BootedWorld)
    world.clock.jump_ns, world.boot = -TEN_YEARS_NS, "another"
    world.restart(None)
    world.sleep(5)
    assert "behind what is stored" in str(info(world).retention)
    fill(world, 1)
    assert kept(world) == range(7)
    # A machine without a clock of its own has the time from the network a little later.
    world.clock.jump_ns = 3 * 3600 * 10**9
    world.sleep(5)
    assert info(world).retention is None
    assert kept(world) == range(7)
    world.clock.jump_ns, world.boot = 0, "a third"
    world.sleep(9 * DAY)
    world.restart(None)
    world.sleep(5)
    assert not kept(world)


def test_whoever_turns_the_age_off_and_on_says_that_the_clock_is_right() -> None:
    world = booted()
    world.clock.jump_ns = 8 * 86_400 * 10**9
    world.sleep(5)
    assert kept(world).start == 0
    # A program that names at its start what is so anyhow says nothing.
    alter(world, max_file_age=7 * DAY)
    admin = world.client("admin")
    world.call(admin, protocol.OpenLog("a", True, {"max_file_age": 7 * DAY}))
    world.call(admin, protocol.OpenLog("b", True, {"max_file_age": 7 * DAY}))
    world.sleep(5)
    assert kept(world).start == 0
    alter(world, max_file_age=None)
    alter(world, max_file_age=7 * DAY)
    world.sleep(5)
    assert not kept(world)
    world.restart(None)
    fill(world, 1)
    world.sleep(8 * DAY)
    assert not kept(world)


def test_the_clock_is_told_of_once(said: Callable[[], list[str]]) -> None:
    world = booted()
    world.clock.jump_ns = TEN_YEARS_NS
    for _ in range(20):
        world.sleep(10)
    world.clock.jump_ns = 0
    for _ in range(20):
        world.sleep(10)
    # Of the clock and of the log: that it began, and that it ended.
    assert len(said()) == 4, said()

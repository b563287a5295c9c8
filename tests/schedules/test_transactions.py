"""Transactions: all of it at one moment, or nothing; and once, however often it is asked for."""

from __future__ import annotations

from typing import Any

import pytest

from rlog import state
from rlog_client import errors, model, protocol
from rlog_client.protocol import (
    CommitRedriven,
    CommitSingle,
    CommitThrough,
    LogBatch,
    OpenProducer,
    SeekCursor,
    Transact,
    Transacted,
)
from tests.schedules.world import LOG, OUT, Client, Values, World, code, packed
from tests.shared.seat import NAME, Seat
from tests.storage.server import ROLL
from tests.storage.simdisk import PAGE

ID = 77  # of a client
KEYED = 3  # a log


def world_of(records: int = 3, *, pages: int = 64, **options: Any) -> World:
    """Logs ``a`` with records, ``b`` and, with an index of keys, ``k``."""
    world = World(records, pages=pages, **options)
    world.server.create("b", file_roll_size=16 * ROLL)
    world.server.create("k", file_roll_size=16 * ROLL, key_index=True)
    return world


def member(world: World, name: str = "m", **more: Any) -> Client:
    client = world.client(name)
    world.claim(client, **more)
    return client


def asking(number: int, *appends: LogBatch, commits: Any = (), client: int = ID) -> Transact:
    return Transact(client, number, list(appends), list(commits))


def through(offset: int, begun: int = 0, epoch: int = 1, consumer: str = "c") -> CommitThrough:
    return CommitThrough(LOG, consumer, epoch, offset, begun)


def ends(world: World) -> list[int]:
    return [log.end for log in world.books.state.logs.values()]


def snapshot(world: World) -> tuple[bytes, int]:
    """All of the state, and the number of the last frame."""
    return state.dump(world.books.state), world.server.driver.journal.tail()


# --- done -----------------------------------------------------------------------------------------


def test_appends_and_commits_are_one_frame() -> None:
    world = world_of()
    a = member(world)
    tail = world.server.driver.journal.tail()
    answer = world.transact(
        a,
        asking(1, LogBatch(OUT, 0), LogBatch(LOG, 0), commits=[through(2, 3)]),
        [b"x", b"y"],
        [b"z"],
    )
    assert (answer.appends, answer.synced, answer.duplicate) == ([(0, 2), (3, 4)], True, False)
    assert world.server.driver.journal.tail() == tail + 1
    assert (world.cursor().committed, world.cursor().begun) == (2, 3)
    assert world.values("b") == [b"x", b"y"]
    assert world.values()[3:] == [b"z"]
    world.restart()
    assert (world.cursor().committed, world.values("b")) == (2, [b"x", b"y"])


def test_commits_alone_and_appends_alone_are_transactions_too() -> None:
    world = world_of()
    a = member(world)
    assert world.transact(a, asking(1, commits=[through(1)])).appends == []
    assert world.transact(a, asking(2, LogBatch(OUT, 0)), [b"x"]).appends == [(0, 1)]
    assert (world.cursor().committed, ends(world)) == (1, [3, 1, 0])


def test_several_consumers_are_committed_together() -> None:
    world = world_of()
    a = member(world)
    world.claim(a, b"other", "d")
    world.transact(a, asking(1, commits=[through(1), through(2, consumer="d")]))
    assert [world.cursor(name).committed for name in "cd"] == [1, 2]


def test_a_commit_below_the_cursor_is_a_success_as_it_is_alone() -> None:
    world = world_of()
    a = member(world)
    world.commit(a, 1, 3)
    assert isinstance(world.transact(a, asking(1, commits=[through(1)])), Transacted)
    assert world.cursor().committed == 3


def test_with_appends_a_record_that_is_committed_already_is_refused_and_nothing_is_appended() -> (
    None
):
    """Its own were made with that commit: whoever asks once more did not hear of it."""
    world = world_of(4)
    a = member(world)
    world.settle(a, 1, 0, "park")
    world.call(a, protocol.Redrive(LOG, "c", [0]))
    redriven, next_one = CommitRedriven(LOG, "c", 1, 0), through(2)
    for number, commit in enumerate((redriven, next_one)):
        assert isinstance(
            world.transact(a, asking(number, GOOD, commits=[commit]), [b"x"]), Transacted
        )
    for number, commit in enumerate((redriven, next_one, through(1)), 10):
        refused = world.transact(a, asking(number, GOOD, commits=[commit]), [b"again"])
        assert code(refused) == errors.Conflict.code
        assert isinstance(world.transact(a, asking(number + 10, commits=[commit])), Transacted)
    assert (world.values("b"), world.cursor().committed) == ([b"x", b"x"], 2)

    seat = Seat(world)
    seat.take()
    single = CommitSingle(LOG, NAME, seat.epoch, 0)
    assert isinstance(
        world.transact(seat.client, asking(30, GOOD, commits=[single]), [b"s"]), Transacted
    )
    refused = world.transact(seat.client, asking(31, GOOD, commits=[single]), [b"again"])
    assert code(refused) == errors.Conflict.code
    assert world.values("b") == [b"x", b"x", b"s"]


def test_a_redriven_record_is_done_with_and_resumes_what_it_paused() -> None:
    world = world_of()
    a = member(world)
    world.settle(a, 1, 0, "park", exhausted=True, cause="E", pause_after=1)
    world.call(a, protocol.Redrive(LOG, "c", [0]))
    assert world.take(a, 1, begin=True).offset == 0
    commits = [CommitRedriven(LOG, "c", 1, 0)]
    assert isinstance(
        world.transact(a, asking(1, LogBatch(OUT, 0), commits=commits), [b"x"]), Transacted
    )
    cursor = world.cursor()
    assert (cursor.parked, cursor.paused, cursor.hand, cursor.committed) == ({}, None, None, 1)
    assert world.values("b") == [b"x"]


def test_the_owner_of_a_log_appends_to_it_in_its_transactions() -> None:
    world = world_of()
    a = world.client("a")
    world.open(a, 7, exclusive=True)
    assert world.transact(a, asking(1, LogBatch(LOG, 0)), [b"x"]).appends == [(3, 4)]


@pytest.mark.parametrize(
    ("policies", "synced"),
    [
        (("never", "never"), False),
        (("never", "periodic:1s"), False),
        (("never", "always"), True),
        (("always", "never"), True),
    ],
)
def test_it_is_answered_by_the_strictest_of_its_logs(
    policies: tuple[str, str], synced: bool
) -> None:
    world = World(0)
    for name, policy in zip("pq", policies, strict=True):
        world.server.create(name, sync=policy, file_roll_size=16 * ROLL)
    before = world.disk.calls["sync"]
    control = asking(1, LogBatch(2, 0), LogBatch(3, 0))
    assert world.transact(world.client("a"), control, [b"x"], [b"y"]).synced is synced
    assert world.disk.calls["sync"] - before == synced
    if "periodic:1s" in policies:
        world.sleep(1.1)
        assert world.books.synced_end == {1: 0, 2: 1, 3: 1}


# --- refused: nothing is done ---------------------------------------------------------------------

GOOD = LogBatch(OUT, 0)
REFUSED: dict[str, tuple[Transact, list[Values], type[errors.RlogError]]] = {
    "of nothing": (asking(1), [], errors.InvalidRequest),
    "a client that is none": (asking(1, GOOD, client=0), [[b"x"]], errors.InvalidRequest),
    "a number that is none": (asking(-1, GOOD), [[b"x"]], errors.InvalidRequest),
    "a log twice": (asking(1, GOOD, GOOD), [[b"x"], [b"y"]], errors.InvalidRequest),
    "no such log": (asking(1, GOOD, LogBatch(9, 0)), [[b"x"], [b"y"]], errors.NotFound),
    "another end": (asking(1, GOOD, LogBatch(LOG, 0, 2)), [[b"x"], [b"y"]], errors.Conflict),
    "no index of keys": (
        asking(1, GOOD, LogBatch(LOG, 0, None, [(0, -1)])),
        [[b"x"], {b"k": b"y"}],
        errors.InvalidRequest,
    ),
    "another offset of a key": (
        asking(1, GOOD, LogBatch(KEYED, 0, None, [(1, 5)])),
        [[b"x"], {b"j": b"y", b"k": b"z"}],
        errors.Conflict,
    ),
    "a key that is not there": (
        asking(1, GOOD, LogBatch(KEYED, 0, None, [(2, -1)])),
        [[b"x"], {b"j": b"y", b"k": b"z"}],
        errors.InvalidRequest,
    ),
    "a consumer twice": (
        asking(1, GOOD, commits=[through(1), through(2)]),
        [[b"x"]],
        errors.InvalidRequest,
    ),
    "a redriven record twice": (
        asking(1, GOOD, commits=[CommitRedriven(LOG, "c", 1, 0)] * 2),
        [[b"x"]],
        errors.InvalidRequest,
    ),
    "not delivered": (asking(1, GOOD, commits=[through(4)]), [[b"x"]], errors.InvalidRequest),
    "begun, not delivered": (
        asking(1, GOOD, commits=[through(1, 4)]),
        [[b"x"]],
        errors.InvalidRequest,
    ),
    "an older epoch": (
        asking(1, GOOD, commits=[through(1, epoch=0)]),
        [[b"x"]],
        errors.Fenced,
    ),
    "an older epoch of a redriven record": (
        asking(1, GOOD, commits=[CommitRedriven(LOG, "c", 0, 0)]),
        [[b"x"]],
        errors.Fenced,
    ),
    "one claim of two": (
        asking(1, GOOD, commits=[through(1), through(1, consumer="d")]),
        [[b"x"]],
        errors.Fenced,
    ),
    "no such consumer": (
        asking(1, GOOD, commits=[through(1, consumer="e")]),
        [[b"x"]],
        errors.NotFound,
    ),
    "too large": (
        asking(1, GOOD, LogBatch(LOG, 0)),
        [[bytes(130_000)], [bytes(130_000)]],
        errors.TooLarge,
    ),
    "too large with its keys": (
        asking(1, LogBatch(KEYED, 0)),
        [{bytes([n]) * 30_000: b"x" for n in range(5)}],
        errors.TooLarge,
    ),
}


@pytest.mark.parametrize("why", REFUSED)
def test_what_is_refused_does_nothing(why: str) -> None:
    world = world_of()
    a = member(world)
    world.claim(world.client("other"), consumer="d")
    before = snapshot(world)
    control, values, error = REFUSED[why]
    assert code(world.transact(a, control, *values)) == error.code
    assert snapshot(world) == before
    # And the same number is as good as new.
    if control.client > 0 and control.number > 0:
        assert not world.transact(a, asking(1, GOOD), [b"x"]).duplicate


def test_a_conflict_names_the_log_that_has_another_end() -> None:
    world = world_of()
    answer = world.transact(world.client("a"), asking(1, GOOD, LogBatch(LOG, 0, 2)), [b"x"], [b"y"])
    assert (answer.details, "'a'" in answer.message) == ({"end": 3, "key_offset": None}, True)


def test_a_log_that_another_owns_refuses_it() -> None:
    world = world_of()
    owner, a = world.client("owner"), world.client("a")
    world.open(owner, 7, exclusive=True)
    before = snapshot(world)
    answer = world.transact(a, asking(1, GOOD, LogBatch(LOG, 0)), [b"x"], [b"y"])
    assert code(answer) == errors.Busy.code
    assert snapshot(world) == before


def test_who_owned_a_log_before_is_refused() -> None:
    world = world_of()
    a, other = world.client("a"), world.client("other")
    world.open(a, 7, exclusive=True)
    # Both are decided in one frame: nobody has told the old owner yet.
    taken = world.ask(other, OpenProducer(LOG, 8, exclusive=True, takeover=True, token=b"t"))
    late = world.ask_transact(a, asking(1, GOOD, LogBatch(LOG, 0)), [b"x"], [b"y"])
    world.pump()
    assert other.answers[taken].epoch == 2  # type: ignore[attr-defined]  # of that kind, or it fails here
    assert code(a.answers[late]) == errors.Busy.code
    assert ends(world) == [3, 0, 0]


@pytest.mark.parametrize("how", ["released", "taken over", "evicted", "sought", "gone"])
def test_behind_a_lost_claim_it_is_fenced_in_the_same_frame(how: str) -> None:
    world = world_of()
    a, other = member(world), world.client("other")
    hows: dict[str, list[tuple[Client, protocol.Control]]] = {
        "released": [(a, protocol.Release(LOG, "c"))],
        "taken over": [(other, protocol.Claim(LOG, "c", model.OLDEST, b"t", takeover=True))],
        "evicted": [(other, protocol.Evict(LOG, "c"))],
        "sought": [(other, SeekCursor(LOG, "c", model.OLDEST, force=True))],
        "gone": [
            (other, SeekCursor(LOG, "c", model.OLDEST, force=True)),
            (other, protocol.DeleteCursor(LOG, "c")),
        ],
    }
    for client, control in hows[how]:
        world.ask(client, control)
    late = world.ask_transact(a, asking(1, GOOD, commits=[through(1)]), [b"x"])
    world.pump()
    expected = errors.NotFound if how == "gone" else errors.Fenced
    assert code(a.answers[late]) == expected.code
    assert ends(world) == [3, 0, 0]


def test_a_full_disk_refuses_all_of_it_and_its_space_is_not_lost() -> None:
    world = world_of()
    a = member(world)
    before = snapshot(world)
    files: Any = world.books.files[OUT]
    real = files.reserve

    def full(*_args: Any) -> None:
        raise OSError(28, "no space")

    files.reserve = full
    control = asking(1, LogBatch(LOG, 0), GOOD, commits=[through(1)])
    assert code(world.transact(a, control, [b"x"], [b"y"])) == errors.DiskFull.code
    assert snapshot(world) == before
    files.reserve = real
    assert world.transact(a, control, [b"x"], [b"y"]).appends == [(3, 4), (0, 1)]
    world.restart()
    assert (world.values()[3:], world.values("b")) == ([b"x"], [b"y"])


def test_where_no_append_is_taken_commits_alone_go_on() -> None:
    world = world_of()
    a = member(world)
    world.books.full = "no space for another journal file"
    world.server.driver._again_at = float("inf")
    world.server.driver.journal._spare = False
    world.server.driver.journal._position = world.server.driver.journal.file_bytes - 20 * PAGE
    both = asking(1, GOOD, commits=[through(1)])
    assert code(world.transact(a, both, [b"x"])) == errors.DiskFull.code
    assert world.cursor().committed == 0
    assert isinstance(world.transact(a, asking(2, commits=[through(1)])), Transacted)


def test_where_writing_has_ended_it_is_refused_and_a_repeated_one_is_unknown() -> None:
    world = World(0)
    world.server.create("n", sync="never", file_roll_size=16 * ROLL)
    a = world.client("a")
    first = asking(1, LogBatch(2, 0))
    assert world.transact(a, first, [b"x"]).synced is False
    world.server.driver._fail("the disk is gone", None)
    answer = world.transact(a, first, [b"x"])
    assert code(answer) == errors.OutcomeUnknown.code
    assert answer.details == {"producer": ID, "sequence": 1}
    assert code(world.transact(a, asking(2, LogBatch(2, 0)), [b"y"])) == errors.StorageFailed.code


# --- repeated -------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["at once", "in its frame", "killed", "cut", "clean"])
def test_a_repeated_one_is_recognised_before_anything_else_is_asked_of_it(how: str) -> None:
    world = world_of()
    a = member(world)
    control = asking(1, LogBatch(OUT, 0, expect=0), commits=[through(2)])
    first = world.ask_transact(a, control, [b"x", b"y"])
    again = world.ask_transact(a, control, [b"x", b"y"]) if how == "in its frame" else 0
    world.pump()
    done = a.answers[first]
    assert isinstance(done, Transacted)
    if how in ("killed", "cut", "clean"):
        if how == "cut":
            world.restart()
        else:
            world.restart(None, clean=how == "clean")
        a = world.client("m")  # without a claim, and with an expectation that was overtaken
    repeated = a.answers[again] if again else world.transact(a, control, [b"x", b"y"])
    assert repeated == Transacted(done.appends, done.timestamp_ns, True, duplicate=True)
    assert world.values("b") == [b"x", b"y"]


LARGE = [bytes(3000)]


def full_log(world: World, name: str) -> LogBatch:
    """An append for which there is no space, and will be none for a minute."""
    options = {"max_total_bytes": 16 * 1024, "blocking_minimum_retention": 60.0}
    world.server.create(name, **options)
    append, filler = LogBatch(world.server.ids[name], 0), world.client(name)
    filled = [
        world.transact(filler, asking(n, append, client=append.log), LARGE) for n in range(10)
    ]
    assert filled[0] is not None
    assert filled[-1] is None, "it is never full"
    world.leave(filler)
    world.sleep(6)
    return append


def test_of_a_cursor_nothing_is_told_before_what_its_holder_has_waiting_is_decided() -> None:
    world = world_of()
    append = full_log(world, "full")
    a, other = member(world), world.client("other")
    waiting = world.ask_transact(a, asking(1, append, commits=[through(1)]), LARGE)
    asked = world.ask(a, protocol.GetCursor(LOG, "c"))
    assert world.call(other, protocol.GetCursor(LOG, "c")).info.committed == 0
    assert {waiting, asked}.isdisjoint(a.answers)
    world.call(other, protocol.AlterLog(append.log, {"max_total_bytes": None}))
    world.pump()
    assert isinstance(a.answers[waiting], Transacted)
    assert a.answers[asked].info.committed == 1  # type: ignore[attr-defined]  # of that kind, or it fails here


def test_a_small_one_does_not_overtake_a_large_append_that_waits() -> None:
    world = world_of()
    append = full_log(world, "full")
    a, b = world.client("a"), world.client("b")
    large = world.ask_transact(a, asking(1, append), LARGE)
    small = world.ask_transact(b, asking(1, append, client=ID + 1), [b"x"])
    world.pump()
    assert (large in a.answers, small in b.answers) == (False, False)
    world.call(world.client("admin"), protocol.AlterLog(append.log, {"max_total_bytes": None}))
    world.pump()
    assert a.answers[large].appends[0][1] == b.answers[small].appends[0][0]  # type: ignore[attr-defined]  # of that kind, or it fails here


def test_it_waits_for_the_space_of_all_its_logs_together_no_longer_than_for_one() -> None:
    world = world_of()
    one, two = full_log(world, "one"), full_log(world, "two")
    a, other = world.client("a"), world.client("other")
    waiting = world.ask_transact(a, asking(1, one, two), LARGE, LARGE)
    world.sleep(4)
    world.ask_transact(other, asking(1, two, client=ID + 1), LARGE)
    world.call(world.client("admin"), protocol.AlterLog(one.log, {"max_total_bytes": None}))
    assert waiting not in a.answers, "it waits behind the other one now"
    world.sleep(2)
    assert code(a.answers[waiting]) == errors.DiskFull.code
    assert not other.answers


def test_one_that_was_cut_off_before_its_frame_was_synced_is_done_when_it_is_repeated() -> None:
    world = world_of()
    a = member(world)
    control = asking(1, GOOD, commits=[through(2)])
    world.ask_transact(a, control, [b"x"])
    assert world.fly()
    world.restart()  # a power cut, and nothing of the frame is there
    assert (world.cursor().committed, world.values("b")) == (0, [])
    a = world.client("m")
    assert code(world.transact(a, control, [b"x"])) == errors.Fenced.code  # its claim comes first
    world.claim(a, epoch=1)
    assert not world.transact(a, control, [b"x"]).duplicate
    assert (world.cursor().committed, world.values("b")) == (2, [b"x"])


def test_the_last_64_of_each_client_are_known() -> None:
    world = world_of()
    a = world.client("a")
    done = {n: world.transact(a, asking(n, GOOD), [b"%d" % n]) for n in range(1, 66)}
    world.transact(a, asking(1, GOOD, client=ID + 1), [b"other"])
    world.restart()
    a = world.client("a")
    for number in range(2, 66):
        repeated = world.transact(a, asking(number, GOOD), [b"%d" % number])
        assert (repeated.appends, repeated.duplicate) == (done[number].appends, True)
    assert ends(world)[1] == 66


def test_of_one_that_is_too_old_nobody_says_that_it_was_not_done() -> None:
    world = world_of()
    a = world.client("a")
    for number in range(1, 66):
        world.transact(a, asking(number, GOOD), [b"%d" % number])
    answer = world.transact(a, asking(1, GOOD), [b"1"])
    assert code(answer) == errors.OutcomeUnknown.code
    assert answer.details == {"producer": ID, "sequence": 1}
    assert ends(world)[1] == 65


def test_a_client_is_forgotten_an_hour_after_its_last_transaction() -> None:
    world = world_of()
    a = world.client("a")
    world.transact(a, asking(1, GOOD), [b"x"])
    world.sleep(3500)
    world.transact(a, asking(1, GOOD, client=ID + 1), [b"y"])
    assert set(world.books.state.clients) == {ID, ID + 1}
    world.sleep(200)
    world.transact(a, asking(2, GOOD, client=ID + 1), [b"z"])
    assert set(world.books.state.clients) == {ID + 1}
    world.restart()
    assert set(world.books.state.clients) == {ID + 1}


def test_of_many_clients_the_most_silent_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rlog.decisions.desk.SILENT_MAX", 3)
    world = world_of()
    a = world.client("a")
    for client in range(1, 7):
        world.transact(a, asking(1, GOOD, client=client), [b"%d" % client])
    assert set(world.books.state.clients) == {4, 5, 6}
    assert set(world.books.silent_clients) == {4, 5, 6}


def test_after_a_start_clients_are_as_silent_as_they_can_have_been() -> None:
    world = world_of()
    world.transact(world.client("a"), asking(1, GOOD), [b"x"])
    world.restart()
    assert world.books.silent_clients == {ID: world.clock.now}


def test_a_checkpoint_keeps_what_was_done() -> None:
    world = world_of()
    done = world.transact(world.client("a"), asking(2**62, GOOD, client=2**64 - 1), [b"x"])
    world.server.checkpoint()
    world.restart()
    again = asking(2**62, GOOD, client=2**64 - 1)
    repeated = world.transact(world.client("a"), again, [b"x"])
    assert (repeated.appends, repeated.duplicate) == (done.appends, True)


# --- size -----------------------------------------------------------------------------------------


def test_its_size_is_promised_with_all_that_it_adds_to_the_frame() -> None:
    world = World(0, pages=256)
    for number in range(120):
        world.server.create(f"l{number}", file_roll_size=16 * ROLL, key_index=True)
    a = world.client("a")
    name = "é" * 127
    world.claim(a, consumer=name)
    world.send(a, [b"x"])
    world.deliver(a, name)
    appends = [LogBatch(log, 0, 0, [(0, -1)]) for log in range(2, 122)]
    control = asking(
        2**63 - 1,
        *appends,
        commits=[through(1, consumer=name)],
        client=2**64 - 1,
    )
    values = [{b"%d" % log * 100: b"v"} for log in range(2, 122)]
    # The broker asserts that the facts keep within what was promised for them.
    assert len(world.transact(a, control, *values).appends) == 120


def test_a_shared_commit_puts_down_its_record_and_no_other() -> None:
    world = world_of(5)
    a = Seat(world)
    a.take()
    a.commit(begun=(0, 2, 4))
    single = CommitSingle(LOG, NAME, a.epoch, 2)
    world.transact(a.client, asking(1, GOOD, commits=[single]), [b"x"])
    shared = world.cursor(NAME).shared
    assert shared is not None
    assert shared.members[a.epoch].begun == [0, 4]


@pytest.mark.parametrize("at_once", [1, 10])
def test_what_was_compacted_is_passed_by_shared_commits_within_what_is_promised(
    at_once: int,
) -> None:
    world = world_of_holes(600)
    a = Seat(world)
    world.call(a.client, SeekCursor(LOG, NAME, model.offset(FAR), force=True))
    a = Seat(world, "b")
    offsets = a.take(100)
    for number in range(5):
        some, offsets = offsets[:at_once], offsets[at_once:]
        commits = [CommitSingle(LOG, NAME, a.epoch, offset) for offset in some]
        # The broker asserts that the facts keep within what was promised for them.
        assert isinstance(world.transact(a.client, asking(number, commits=commits)), Transacted)
        assert world.cursor(NAME).committed == offsets[0], "no hole below it is left behind"


FAR = 1 << 17  # an offset that takes five bytes


def world_of_holes(count: int) -> World:
    """A log with so many records from FAR on, each of them before a hole."""
    world = World(0, pages=256, key_index=True, compact=True)
    filler = world.client("filler")
    world.send(filler, [b""] * FAR)
    keys = [key for n in range(count) for key in (b"%d" % n, b"hot", b"hot")]
    world.send(filler, [bytes(100)] * len(keys), keys)
    world.send(filler, [bytes(16 * ROLL)], [b"hot"])
    assert world.server.compact() == 1
    return world


def test_the_largest_one_fits_a_journal_file_and_one_byte_more_is_refused() -> None:
    world = world_of(0, pages=6)
    a, limit = world.client("a"), world.books.batch_bytes_max
    logs = [LogBatch(LOG, 0), GOOD]
    empty = asking(1, *logs)
    spare = limit - protocol.transact_bytes(packed(empty, [b""], [bytes(300)])[0])
    # (What packs a value of 300 bytes takes as much for a larger one, up to 64 KiB.)
    answer = world.transact(a, empty, [b""], [bytes(300 + spare)])
    assert isinstance(answer, Transacted), answer
    more = world.transact(a, asking(2, *logs), [b""], [bytes(300 + spare + 1)])
    assert code(more) == errors.TooLarge.code
    assert more.details["limit"] == limit
    assert ends(world)[:2] == [1, 1]


def test_the_state_says_what_was_done_and_for_whom() -> None:
    world = world_of()
    world.transact(world.client("a"), asking(5, LogBatch(LOG, 0), GOOD), [b"x"], [b"y", b"z"])
    [done] = world.books.state.clients[ID].done
    assert (done.number, done.appends) == (5, [(LOG, 3, 4), (OUT, 0, 2)])

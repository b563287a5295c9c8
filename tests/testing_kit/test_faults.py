"""Each fault does what its docstring says, as blocking, trio and asyncio clients see it."""

from __future__ import annotations

import socket
import threading
from typing import TYPE_CHECKING, Any

import pytest

import rlog
from rlog.decisions import DECISIONS, Compact, Leave, Unreadable, Vanish
from rlog.decisions.desk import Lapse
from rlog.decisions.watch import Copied, Retain
from rlog.testing.faults import KINDS
from rlog_client import protocol
from tests.e2e.serving import eventually

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from rlog.testing import Server

SECONDS_MAX = 30.0  # only to find out that it never comes


def values(log: Any) -> list[bytes]:
    return [record.value for record in log.reader(rlog.OLDEST, block=False)]


class Handling:
    """A ``process`` in a thread of its own, whose handler stays at its first record until it is
    let go.
    """

    def __init__(self, log: Any, **options: Any) -> None:
        self.entered = threading.Event()
        self.go = threading.Event()
        self.seen: list[tuple[int, int]] = []  # offsets and attempts
        self.error: BaseException | None = None
        self._log = log
        self._options = options
        self._thread = threading.Thread(target=self._run)
        self._thread.start()
        assert self.entered.wait(SECONDS_MAX)

    def _handle(self, record: rlog.Record) -> None:
        self.seen.append((record.offset, record.attempt))
        self.entered.set()
        assert self.go.wait(SECONDS_MAX)

    def _run(self) -> None:
        try:
            with self._log.consumer("c", block=False, **self._options) as consumer:
                consumer.process(self._handle)
        except BaseException as error:
            self.error = error

    def end(self) -> None:
        self.go.set()
        self._thread.join(SECONDS_MAX)
        assert not self._thread.is_alive()


@pytest.fixture
def handling(connect: Callable[..., Any], log: Any) -> Iterator[Callable[..., Handling]]:
    """``handling(**options)``: a handler has the first of three records in hand."""
    started: list[Handling] = []

    def start(**options: Any) -> Handling:
        log.append_many([b"0", b"1", b"2"])
        started.append(Handling(connect(timeout=30.0).log("l"), **options))
        return started[0]

    yield start
    for each in started:
        each.end()


def attempts_of(log: Any) -> list[tuple[int, int]]:
    """What the next one to claim is given: offsets and attempts."""
    seen: list[tuple[int, int]] = []
    with log.consumer("c", block=False) as consumer:
        consumer.process(lambda record: seen.append((record.offset, record.attempt)))
    return seen


# --- lose_reply ---------------------------------------------------------------------------------


def test_an_append_whose_reply_is_lost_is_made_once_and_gets_its_first_offset(
    rlog_server: Server, log: Any
) -> None:
    log.append(b"0")
    with rlog_server.lose_reply(to="append", log="l") as fault:
        assert log.append(b"1") == 1
    assert fault.struck == 1
    with rlog_server.lose_reply() as fault:
        receipt = log.append_many([b"2", b"3"])
    assert (receipt.first, receipt.end, receipt.duplicate) == (2, 4, True)
    assert values(log) == [b"0", b"1", b"2", b"3"]


def test_a_reply_may_be_lost_several_times(rlog_server: Server, log: Any) -> None:
    with rlog_server.lose_reply(to="append", times=3) as fault:
        assert log.append(b"0") == 0
        assert fault.struck == 3
        assert log.append(b"1") == 1
    assert fault.struck == 3


def test_with_every_reply_lost_an_append_is_an_unknown_outcome_and_is_there_once(
    rlog_server: Server, connect: Callable[..., Any], log: Any
) -> None:
    hasty = connect(timeout=0.5).log("l")
    with (
        rlog_server.lose_reply(to="append", times=None) as fault,
        pytest.raises(rlog.OutcomeUnknown),
    ):
        hasty.append(b"0")
    assert fault.struck >= 1
    assert values(log) == [b"0"]


def test_a_commit_whose_reply_is_lost_calls_no_handler_again(rlog_server: Server, log: Any) -> None:
    log.append_many([b"0", b"1", b"2"])
    seen: list[tuple[int, int]] = []
    with (
        log.consumer("c", block=False) as consumer,
        rlog_server.lose_reply(to="commit", times=2) as fault,
    ):
        assert consumer.process(lambda r: seen.append((r.offset, r.attempt))) == 3
        assert consumer.epoch == 1
    assert fault.struck == 2
    assert seen == [(0, 1), (1, 1), (2, 1)]
    assert log.cursor("c").info().committed == 3


def test_a_verdict_whose_reply_is_lost_counts_once(rlog_server: Server, log: Any) -> None:
    log.append_many([b"0", b"1"])
    verdicts: Iterator[rlog.Verdict] = iter([rlog.Retry(0.0), rlog.PARK, rlog.COMMIT])
    seen: list[tuple[int, int]] = []

    def handle(record: rlog.Record) -> rlog.Verdict:
        seen.append((record.offset, record.attempt))
        return next(verdicts)

    with (
        log.consumer("c", block=False) as consumer,
        rlog_server.lose_reply(to="verdict", times=2) as fault,
    ):
        assert consumer.process(handle) == 2
    assert fault.struck == 2
    assert seen == [(0, 1), (0, 2), (1, 1)]
    assert [(p.record.offset, p.attempts) for p in log.cursor("c").parked()] == [(0, 2)]


def hold(held: Any) -> None:
    with held:
        pass


CHANGES: dict[str, tuple[Callable[[Any, Any], object], Callable[[Any, Any], bool]]] = {
    "claim": (
        lambda _client, log: hold(log.consumer("held")),
        lambda _client, log: log.cursor("held").info().committed == 0,
    ),
    "create": (
        lambda client, _log: client.log("new", create=True),
        lambda client, _log: [info.name for info in client.logs()] == ["l", "new"],
    ),
    "alter": (
        lambda _client, log: log.alter(sync="never"),
        lambda _client, log: log.info().options["sync"] == "never",
    ),
    "producer": (
        lambda _client, log: hold(log.producer(name="p")),
        lambda _client, log: [p.name for p in log.producers()] == ["p"],
    ),
    "seek": (
        lambda _client, log: log.cursor("c").seek(rlog.offset(1)),
        lambda _client, log: log.cursor("c").info().committed == 1,
    ),
    "trim": (
        lambda _client, log: log.trim(rlog.LATEST),
        lambda _client, log: log.info().first == 2,
    ),
    "delete": (
        lambda _client, log: log.delete(),
        lambda client, _log: client.logs() == [],
    ),
}


@pytest.mark.parametrize("to", CHANGES)
def test_any_other_change_whose_reply_is_lost_is_made_all_the_same(
    rlog_server: Server, client: Any, log: Any, to: Any
) -> None:
    log.append_many([b"0", b"1"])
    hold(log.consumer("c"))
    change, made = CHANGES[to]
    with rlog_server.lose_reply(to=to) as fault:
        try:
            change(client, log)
        except rlog.NotFound:
            assert to == "delete", "asked again, it is gone already"
    assert fault.struck == 1
    assert made(client, log)


def test_a_reply_that_was_not_meant_comes_through(rlog_server: Server, client: Any) -> None:
    one, two = (client.log(name, create=True) for name in ("one", "two"))
    fault = rlog_server.lose_reply(to="append", log="two")
    one.append(b"0")
    one.info()
    client.log("one")
    with pytest.raises(rlog.Conflict):
        two.append(b"refused", expect=7)  # nothing was changed
    assert fault.struck == 0
    assert two.append(b"0") == 0
    assert fault.struck == 1
    fault = rlog_server.lose_reply(to="append")
    fault.cancel()
    one.append(b"1")
    assert fault.struck == 0


def test_a_block_in_which_nothing_met_the_fault_fails(rlog_server: Server, log: Any) -> None:
    with (
        pytest.raises(AssertionError, match="a lost reply to commit of log 'l'"),
        rlog_server.lose_reply(to="commit", log="l"),
    ):
        log.append(b"0")
    with pytest.raises(AssertionError, match="a failed sync"), rlog_server.fail_sync():
        log.info()
    with pytest.raises(ZeroDivisionError), rlog_server.lose_reply():
        raise ZeroDivisionError
    assert log.append(b"1") == 1


def test_every_request_is_either_a_change_or_known_to_only_read() -> None:
    only_read = {
        protocol.ListProducers, protocol.ListLogs, protocol.GetLog, protocol.ListSegments,
        protocol.ListParked, protocol.ListCursors, protocol.GetCursor,
        protocol.ReadParked, protocol.GetLatest, protocol.GetTable,
        protocol.Extend,  # moves a deadline, and no fact
    }  # fmt: skip
    own = {Leave, Lapse, Vanish, Unreadable, Retain, Copied, Compact}
    assert set(KINDS) | only_read | own == set(DECISIONS)


# --- cut ----------------------------------------------------------------------------------------


def test_a_client_that_is_cut_off_comes_back_to_its_claim_and_its_place(
    rlog_server: Server, connect: Callable[..., Any], log: Any
) -> None:
    log.append_many([b"0", b"1", b"2"])
    cut: list[int] = []
    seen: list[tuple[int, int]] = []

    def handle(record: rlog.Record) -> None:
        seen.append((record.offset, record.attempt))
        cut.append(rlog_server.cut("worker"))

    worker = connect(name="worker").log("l")
    with worker.consumer("c", block=False) as consumer:
        assert consumer.process(handle) == 3
        assert consumer.epoch == 1
    assert cut == [1, 1, 1]
    assert seen == [(0, 1), (1, 1), (2, 1)]


def test_cut_cuts_all_or_those_of_one_name(
    rlog_server: Server, connect: Callable[..., Any]
) -> None:
    clients = [connect(name=name) for name in ("a", "a", "b")]
    assert rlog_server.cut("nobody") == 0
    assert rlog_server.cut("a") == 2
    for client in clients:
        client.logs()
    assert rlog_server.cut() == 3
    assert rlog_server.cut() == 0


# --- lapse --------------------------------------------------------------------------------------


@pytest.mark.parametrize("hand_seconds", [None, 600.0])
def test_a_claim_that_lapses_fences_its_holder_and_counts_an_attempt(
    rlog_server: Server,
    log: Any,
    handling: Callable[..., Handling],
    hand_seconds: float | None,
) -> None:
    holder = handling(hand_seconds=hand_seconds)
    rlog_server.lapse("l", "c")
    assert log.cursor("c").info().members == []
    holder.end()
    assert isinstance(holder.error, rlog.Fenced)
    assert holder.seen == [(0, 1)]
    assert attempts_of(log) == [(0, 2), (1, 1), (2, 1)]


def test_a_standby_takes_over_what_lapses(
    rlog_server: Server, connect: Callable[..., Any], handling: Callable[..., Handling]
) -> None:
    handling()
    seen: list[tuple[int, int]] = []
    log = connect(timeout=30.0).log("l")
    threading.Timer(0.05, rlog_server.lapse, ("l", "c")).start()
    with log.consumer("c", standby=True, block=False) as consumer:
        assert consumer.process(lambda r: seen.append((r.offset, r.attempt))) == 3
    assert seen == [(0, 2), (1, 1), (2, 1)]


def test_what_the_members_of_a_shared_consumer_have_in_hand_lapses(
    rlog_server: Server, log: Any
) -> None:
    log.append_many([b"0", b"1"])
    seen: list[tuple[int, int]] = []

    def handle(record: rlog.Record) -> None:
        seen.append((record.offset, record.attempt))
        if record.offset == 1 and record.attempt == 1:
            rlog_server.lapse("l", "s")

    with log.consumer("s", shared=True, block=False) as member, pytest.raises(rlog.Fenced):
        member.process(handle)
    with log.consumer("s", shared=True, block=False) as member:
        with pytest.raises(RuntimeError, match="no record in hand"):
            rlog_server.lapse("l", "s")
        assert member.process(handle) == 1
    assert seen == [(0, 1), (1, 1), (1, 2)]


@pytest.mark.parametrize(
    ("method", "arguments"),
    [
        ("lose_reply", {"times": 0}),
        ("lose_reply", {"times": -1}),
        ("lose_reply", {"times": 1.5}),
        ("lose_reply", {"to": "appends"}),
        ("advance", {"seconds": -1.0}),
        ("advance", {"seconds": float("nan")}),
        ("advance", {"seconds": float("inf")}),
        ("advance", {"seconds": 1e12}),
    ],
)
def test_what_makes_no_sense_is_refused_and_breaks_no_server(
    rlog_server: Server, log: Any, method: str, arguments: dict[str, Any]
) -> None:
    with pytest.raises(ValueError, match=r"is one of|is a whole number|go back|years in all"):
        getattr(rlog_server, method)(**arguments)
    assert log.append(b"0") == 0


def test_only_what_is_in_hand_can_lapse(rlog_server: Server, log: Any) -> None:
    log.append(b"0")
    for name, consumer in (("l", "nobody"), ("nowhere", "c")):
        with pytest.raises(rlog.NotFound):
            rlog_server.lapse(name, consumer)
    with log.consumer("c", block=False) as consumer:
        assert len(list(consumer)) == 1  # taken, but not by process
        with pytest.raises(RuntimeError, match="no record in hand"):
            rlog_server.lapse("l", "c")
    assert attempts_of(log) == [(0, 1)]


# --- full_disk ----------------------------------------------------------------------------------


def test_on_a_full_disk_appends_are_refused_and_commits_go_on_and_then_appends_resume(
    rlog_server: Server, client: Any, log: Any
) -> None:
    log.append_many([b"0", b"1"])
    other = client.log("other", create=True)
    with rlog_server.full_disk() as fault:
        for each in (log, log, other):
            with pytest.raises(rlog.DiskFull):
                each.append(b"no")
        assert attempts_of(log) == [(0, 1), (1, 1)]
        assert values(log) == [b"0", b"1"]
        assert log.cursor("c").info().committed == 2
    assert fault.struck >= 3
    assert log.append(b"2") == 2
    assert other.append(b"0") == 0
    rlog_server.restart()
    assert values(log) == [b"0", b"1", b"2"]


def test_a_server_that_starts_on_a_full_disk_serves_and_takes_no_append(
    rlog_server: Server, client: Any, log: Any
) -> None:
    log.append(b"0")
    fault = rlog_server.full_disk()
    rlog_server.restart()
    assert values(log) == [b"0"]
    with pytest.raises(rlog.DiskFull):
        log.append(b"no")
    fault.cancel()
    rlog_server.advance(1.0)  # it looks for space every quarter of a second
    assert log.append(b"1") == 1


# --- fail_sync ----------------------------------------------------------------------------------


@pytest.mark.parametrize("lost", [False, True])
def test_a_failed_sync_ends_writing_until_a_restart_and_loses_nothing_acknowledged(
    rlog_server: Server, log: Any, lost: bool
) -> None:
    log.append_many([b"0", b"1"])
    with rlog_server.fail_sync(lost=lost) as fault, pytest.raises(rlog.OutcomeUnknown):
        log.append(b"perhaps")
    assert fault.struck == 1
    for _ in range(2):
        with pytest.raises(rlog.StorageFailed):
            log.append(b"no")
    assert values(log) == [b"0", b"1"]
    rlog_server.restart()
    kept = [b"0", b"1", *([] if lost else [b"perhaps"])]
    assert values(log) == kept
    assert log.append(b"2") == len(kept)
    rlog_server.crash()
    rlog_server.start()
    assert values(log) == [*kept, b"2"]


def test_it_is_not_the_sync_of_a_server_at_rest_that_fails(rlog_server: Server, log: Any) -> None:
    log.append(b"0")
    life = rlog_server._life
    assert life is not None
    journal = life.server.driver.journal
    eventually(lambda: journal.spare, "the next journal file is made")
    with rlog_server.fail_sync() as fault:
        before = journal.synced
        rlog_server.advance(1.1)
        eventually(lambda: journal.synced > before, "an empty frame says what is synced")
        assert fault.struck == 0
        with pytest.raises(rlog.OutcomeUnknown):
            log.append(b"1")


@pytest.mark.parametrize("lost", [False, True])
def test_under_another_policy_a_failed_sync_may_lose_what_was_only_written(
    rlog_server: Server, client: Any, lost: bool
) -> None:
    log = client.log("later", create=True, sync="periodic:3600s")
    assert log.append(b"0") == 0
    log.wait_synced(1)
    with rlog_server.fail_sync(lost=lost):
        assert log.append_many([b"1"]).level == "written"
        with pytest.raises(rlog.StorageFailed):
            log.wait_synced(2)
    rlog_server.restart()
    assert values(log) == [b"0", *([] if lost else [b"1"])]


# --- pause --------------------------------------------------------------------------------------


def test_a_server_that_stands_still_lets_requests_time_out_and_does_them_afterwards(
    rlog_server: Server, connect: Callable[..., Any], log: Any
) -> None:
    hasty = connect(timeout=0.2)
    theirs = hasty.log("l")
    with rlog_server.pause():
        with pytest.raises(rlog.OutcomeUnknown):
            theirs.append(b"0")
        with pytest.raises((rlog.TimedOut, rlog.ConnectionLost)):
            hasty.logs()
        for method in (rlog_server.cut, rlog_server.stop, rlog_server.crash, rlog_server.full_disk):
            with pytest.raises(RuntimeError, match="is paused"):
                method()
    assert rlog_server.running
    eventually(lambda: values(log) == [b"0"], "what was sent is done")
    assert rlog_server.cut() >= 1


def test_a_pause_that_ends_in_time_is_not_noticed(
    rlog_server: Server, connect: Callable[..., Any], log: Any
) -> None:
    appended: list[int] = []
    theirs = connect(timeout=30.0).log("l")
    thread = threading.Thread(target=lambda: appended.append(theirs.append(b"0")))
    with rlog_server.pause():
        thread.start()
        thread.join(0.05)
        assert appended == []
    thread.join(SECONDS_MAX)
    assert appended == [0]
    assert values(log) == [b"0"]


# --- advance ------------------------------------------------------------------------------------


def test_hand_seconds_run_out_at_once_when_the_clock_is_moved(
    rlog_server: Server, log: Any, handling: Callable[..., Handling]
) -> None:
    holder = handling(hand_seconds=600.0)
    rlog_server.advance(599.0)
    assert len(log.cursor("c").info().members) == 1
    rlog_server.advance(1.1)
    assert log.cursor("c").info().members == []
    holder.end()
    assert isinstance(holder.error, rlog.Fenced)
    assert attempts_of(log)[0] == (0, 2)


def test_the_first_right_after_a_restart_ends_when_the_clock_is_moved(
    rlog_server: Server, connect: Callable[..., Any], log: Any
) -> None:
    log.append(b"0")
    with connect(timeout=30.0).log("l").consumer("c", block=False) as consumer:
        assert len(consumer.poll(timeout=SECONDS_MAX)) == 1
        rlog_server.crash()
    rlog_server.start()
    other = connect(timeout=0.5).log("l")
    with pytest.raises(rlog.TimedOut), other.consumer("c", block=False):
        pass  # for 5 s it is the last holder's
    rlog_server.advance(5.1)
    with other.consumer("c", block=False) as consumer:
        assert consumer.epoch > 1


def test_a_delay_is_over_for_whoever_claims_next_when_the_clock_is_moved(
    rlog_server: Server, log: Any
) -> None:
    log.append(b"0")
    with log.consumer("c", block=False) as consumer:
        consumer.process(lambda _record: rlog.Retry(3600.0), timeout=0.05)
    rlog_server.advance(3601.0)
    assert attempts_of(log) == [(0, 2)]


def test_a_sync_of_a_periodic_policy_comes_when_the_clock_is_moved(
    rlog_server: Server, client: Any
) -> None:
    log = client.log("later", create=True, sync="periodic:3600s")
    assert log.append_many([b"0"]).level == "written"
    assert values(log) == []
    rlog_server.advance(3600.0)
    log.wait_synced(1, timeout=SECONDS_MAX)
    assert values(log) == [b"0"]


def test_whoever_has_not_greeted_is_cut_off_when_the_clock_is_moved(rlog_server: Server) -> None:
    host, _, port = rlog_server.url.removeprefix("rlog://").partition(":")
    with socket.create_connection((host, int(port)), timeout=SECONDS_MAX) as stranger:
        rlog_server.connect().logs()  # by then the stranger has been accepted
        rlog_server.advance(4.0)
        stranger.setblocking(False)
        with pytest.raises(BlockingIOError):
            stranger.recv(1)
        stranger.settimeout(SECONDS_MAX)
        rlog_server.advance(1.1)
        assert stranger.recv(1) == b""


def test_timestamps_move_with_the_clock_and_never_back(rlog_server: Server, log: Any) -> None:
    before = log.append_many([b"0"]).timestamp_ns
    rlog_server.advance(3600.0)
    rlog_server.restart()
    rlog_server.stop()
    rlog_server.advance(3600.0)
    rlog_server.start()
    assert log.append_many([b"1"]).timestamp_ns - before >= 7200 * 10**9
    for seconds in (-1.0, float("nan")):
        with pytest.raises(ValueError, match="time does not go back"):
            rlog_server.advance(seconds)

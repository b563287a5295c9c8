"""The driver: frames out, syncs, answers; what is due though nobody asks; what a full disk does."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Any

import pytest

from rlog import driver as drivers
from rlog.journal import Outcome
from rlog_client import batch, errors, model, protocol
from tests.storage.server import ROLL, Server
from tests.storage.simdisk import PAGE, Choice, Fill, SimDisk
from tests.storage.test_broker import ask, code, ends, frames, produced, serving, syncs, together

if TYPE_CHECKING:
    from collections.abc import Callable

NOTHING = Choice(0, Fill.OLD, 1)
BIG = 3000


def idle(server: Server) -> None:
    """Until nothing is due any more."""
    server.sleep(5)
    assert server.driver.deadline() is None


# --- what is due --------------------------------------------------------------------------------


def test_a_second_after_a_sync_an_empty_frame_records_it_once() -> None:
    server = serving("always")
    idle(server)
    together(server, protocol.Append(1))
    number = frames(server)
    assert server.driver.deadline() == server.clock.now + drivers.WITNESS_SECONDS
    server.sleep(0.9)
    assert frames(server) == number
    server.sleep(0.1)
    assert frames(server) == number + 1
    assert server.driver.deadline() is None
    server.sleep(100)
    assert frames(server) == number + 1
    again = Server(server.disk.crash(NOTHING)).driver.journal
    assert again.read(number + 1).facts == []
    assert again.read(number + 1).head.synced == number


def test_a_frame_that_is_only_written_is_no_witness_and_one_that_is_synced_is() -> None:
    server = serving("always", "never")
    idle(server)
    together(server, protocol.Append(1))
    due = server.driver.deadline()
    server.sleep(0.5)
    together(server, protocol.Append(2))  # a power cut may take it, and its word with it
    number = frames(server)
    assert server.driver.deadline() == due
    together(server, protocol.Append(1))  # says what was synced before it, and is synced
    assert server.driver.deadline() == server.clock.now + drivers.WITNESS_SECONDS
    idle(server)
    assert frames(server) == number + 2


def test_a_periodic_log_is_synced_within_its_time_and_then_witnessed() -> None:
    server = serving("periodic:2s")
    idle(server)
    before = syncs(server)
    together(server, protocol.Append(1))
    due = server.clock.now + 2
    assert server.driver.deadline() == due
    server.sleep(1)
    together(server, protocol.Append(1))  # does not put it off
    assert server.driver.deadline() == due
    assert (syncs(server), ends(server, "p")) == (before, (2, 0, 0))
    server.sleep(1)
    assert (syncs(server), ends(server, "p")) == (before + 1, (2, 2, 2))
    assert server.driver.deadline() == server.clock.now + drivers.WITNESS_SECONDS
    number = frames(server)
    idle(server)
    assert frames(server) == number + 1


def test_the_shorter_of_two_times_counts() -> None:
    server = serving("periodic:2s")
    server.create("q", sync="periodic:1s", file_roll_size=ROLL)
    idle(server)
    together(server, protocol.Append(1), protocol.Append(2), protocol.Append(1))
    assert server.driver.deadline() == server.clock.now + 1


def test_a_commit_alone_makes_a_sync_due_in_a_periodic_log() -> None:
    server = serving("periodic:1s")
    together(server, protocol.Append(1), protocol.Claim(1, "c", model.OLDEST, b"t" * 16))
    idle(server)
    server.peer.grants[1, "c"].delivered = 1
    before = syncs(server)
    assert together(server, protocol.CommitCursor(1, "c", 1, 1)) == [protocol.Committed(False)]
    assert server.driver.deadline() == server.clock.now + 1
    server.sleep(1)
    assert syncs(server) == before + 1


def test_a_log_of_so_many_bytes_is_synced_after_them_or_within_a_second() -> None:
    server = serving("bytes:4KiB")
    idle(server)
    together(server, protocol.Append(1), size=3000)
    before = syncs(server)
    assert ends(server, "b") == (1, 0, 0)
    assert server.driver.deadline() == server.clock.now + 1
    together(server, protocol.Append(1), size=3000)
    assert (syncs(server), ends(server, "b")) == (before + 1, (2, 2, 2))
    together(server, protocol.Append(1), size=10)
    assert ends(server, "b") == (3, 2, 2)
    server.sleep(1)
    assert ends(server, "b") == (3, 3, 3)


def test_a_log_that_is_never_synced_makes_nothing_due() -> None:
    server = serving("never")
    idle(server)
    before = syncs(server)
    together(server, protocol.Append(1))
    assert server.driver.deadline() is None
    server.sleep(1000)
    assert syncs(server) == before
    assert Server(server.disk.killed()).driver.broker.books.state.logs[1].end == 1


def test_a_fenced_journal_ends_writing_and_answers_unknown() -> None:
    server = serving("always")
    request = ask(server, protocol.Append(1))
    flight = server.driver.begin()
    assert flight is not None
    server.driver.finish(flight, Outcome.FENCED)
    assert server.failed == f"frame {flight.number} is not durable (fenced)"
    assert code(server.peer.answers[request]) == errors.OutcomeUnknown.code
    assert server.driver.deadline() is None
    assert server.driver.begin() is None
    assert not server.driver.checkpoint_due
    assert not server.driver.spare_wanted


def test_who_begins_to_wait_for_a_sync_after_the_failure_is_answered() -> None:
    server = serving("never")
    together(server, protocol.Append(1))
    server.driver.broker.fail("the disk is gone", None)
    assert code(together(server, protocol.WaitSynced(1, 1))[0]) == errors.StorageFailed.code


# --- a write that fails -------------------------------------------------------------------------


def test_a_journal_that_cannot_be_written_leaves_the_append_unknown() -> None:
    server = serving("always", "never")
    server.disk.fail("write", server.disk.calls["write"] + 1)
    [answer] = together(server, protocol.Append(1))
    assert code(answer) == errors.OutcomeUnknown.code
    assert str(server.failed).startswith("the journal cannot be written")


@pytest.mark.parametrize("policy", ["always", "never"])
def test_a_segment_that_cannot_be_written_ends_writing_and_takes_no_answer_back(
    policy: str,
) -> None:
    server = serving(policy)
    server.disk.fail("write", server.disk.calls["write"] + 2)  # the frame, then the segment
    [answer] = together(server, protocol.Append(1))
    assert isinstance(answer, protocol.Appended)
    assert str(server.failed).startswith("a segment cannot be written")
    assert ends(server, policy[0]) == (1, 0, 0)
    assert code(together(server, protocol.Append(1))[0]) == errors.StorageFailed.code
    # The next process lays it out.
    again = Server(server.disk.killed())
    assert again.view().logs[policy[0]].records == [bytes(10)]


def test_answers_are_flushed_before_the_segment_is_written() -> None:
    server = serving("always")
    order: list[str] = []
    request = ask(server, protocol.Append(1))

    def flush() -> None:
        order.append("flush" if request in server.peer.answers else "too early")

    server.driver.flush = flush
    flight = server.driver.begin()
    assert flight is not None
    server.disk.on_operation = order.append
    server.driver.finish(flight, server.driver.journal.wait(flight.number))
    server.disk.on_operation = None
    assert order == ["sync", "flush", "write"]


def test_no_space_for_a_segment_refuses_that_append_alone() -> None:
    server = serving("always")
    server.disk.free = 1
    first, second = together(server, protocol.Append(1), protocol.Append(1), size=2 * PAGE)
    assert code(first) == code(second) == errors.DiskFull.code
    assert server.failed is None
    server.disk.free = 100
    assert isinstance(together(server, protocol.Append(1))[0], protocol.Appended)


def test_space_for_one_append_is_found_where_there_is_none_to_spare() -> None:
    server = serving("always")
    server.disk.free = 1
    first, second = together(server, protocol.Append(1), protocol.Append(1), size=100)
    assert (first.first, second.first) == (0, 1)
    [third] = together(server, protocol.Append(1), size=PAGE)
    assert code(third) == errors.DiskFull.code


def test_a_reservation_that_fails_otherwise_refuses_the_append_and_nothing_more() -> None:
    server = serving("always")
    server.disk.fail("allocate", server.disk.calls["allocate"] + 1)
    first, second = together(server, protocol.Append(1), protocol.Append(1))
    assert code(first) == errors.StorageFailed.code
    assert second.first == 0
    assert server.failed is None


# --- a full disk --------------------------------------------------------------------------------


def full() -> Server:
    """A server with a consumer, and a disk that took the last append it can."""
    server = serving("always", pages=64)
    together(server, protocol.Append(1), protocol.Claim(1, "c", model.OLDEST, b"t" * 16))
    server.peer.grants[1, "c"].delivered = 1000
    server.disk.free = 40
    for _ in range(200):
        [answer] = together(server, protocol.Append(1), size=BIG)
        if not isinstance(answer, protocol.Appended):
            assert code(answer) == errors.DiskFull.code
            return server
    raise AssertionError("it never filled")


def test_on_a_full_disk_appends_are_refused_commits_go_on_and_appends_resume() -> None:
    server = full()
    assert server.failed is None
    end = server.driver.broker.books.state.logs[1].end
    for offset in range(1, 6):
        commit, append = together(
            server, protocol.CommitCursor(1, "c", 1, offset), protocol.Append(1)
        )
        assert commit == protocol.Committed(True)
        # A small one may still fit into what is reserved.
        assert isinstance(append, protocol.Appended) or code(append) == errors.DiskFull.code
    server.disk.free = 1000
    server.sleep(drivers.AGAIN_SECONDS)
    [answer] = together(server, protocol.Append(1), size=BIG)
    assert answer.first >= end
    assert server.driver.broker.books.full is None
    left = Server(server.disk.crash(NOTHING), file_bytes=64 * PAGE)
    assert left.driver.broker.books.state.logs[1].cursors["c"].committed == 5


def test_when_not_even_a_commit_is_sure_to_fit_it_is_refused_until_there_is_space() -> None:
    server = full()
    driver = server.driver
    for offset in range(1, 101):
        [answer] = together(server, protocol.CommitCursor(1, "c", 1, offset))
        if not isinstance(answer, protocol.Committed):
            break
    else:
        raise AssertionError("commits fitted for ever")
    assert code(answer) == errors.DiskFull.code
    assert server.failed is None
    assert driver.journal.room > 0
    server.disk.free = 1000
    server.sleep(drivers.AGAIN_SECONDS)
    assert together(server, protocol.CommitCursor(1, "c", 1, offset)) == [protocol.Committed(True)]
    left = Server(server.disk.crash(NOTHING), file_bytes=64 * PAGE)
    assert left.driver.broker.books.state.logs[1].cursors["c"].committed == offset


class Late:
    """Drives a server whose upkeep is begun as soon as it is due, and done as late as can be."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.driver = server.driver
        self._job: Callable[[], bool] | None = None
        self.driver.prepared(drivers.attempt(self.driver.journal.prepare))
        self.driver.reserve_kept(drivers.attempt(self.driver.keep_reserve))

    def ask(self, control: protocol.Control, size: int = 10) -> Any:
        request = ask(self.server, control, size=size)
        while request not in self.server.peer.answers:
            flight = self.driver.begin()
            if flight is not None:
                self.driver.finish(flight, self.driver.journal.wait(flight.number))
            elif request not in self.server.peer.answers:
                self.finish()
            self._begin()
        return self.server.peer.answers[request]

    def _begin(self) -> None:
        if self._job is None and self.driver.checkpoint_due:
            self._job = self.driver.begin_checkpoint()
            self.driver.upkeep = self._job is not None

    def finish(self) -> None:
        """What is under way, and what is due then."""
        assert self._job is not None, "nothing is under way, and nothing is answered"
        self.driver.finish_checkpoint(drivers.attempt(self._job))
        self._job, self.driver.upkeep = None, False
        self._begin()


def test_commits_on_a_full_disk_wait_for_a_late_checkpoint_rather_than_be_refused() -> None:
    server = serving("always", pages=16)
    late = Late(server)
    late.ask(protocol.Claim(1, "c", model.OLDEST, b"t" * 16))
    server.peer.grants[1, "c"].delivered = 1000
    for _ in range(300):
        assert isinstance(late.ask(protocol.Append(1)), protocol.Appended)
    server.disk.free = 10
    while isinstance(answer := late.ask(protocol.Append(1), size=BIG), protocol.Appended):
        pass
    assert code(answer) == errors.DiskFull.code
    first = server.driver.journal.tail()
    for offset in range(1, 301):
        assert late.ask(protocol.CommitCursor(1, "c", 1, offset)) == protocol.Committed(True)
    assert server.driver.journal.tail() - first > 10 * 16, "more than all files together hold"
    left = Server(server.disk.crash(NOTHING), file_bytes=16 * PAGE)
    assert left.driver.broker.books.state.logs[1].cursors["c"].committed == 300


def test_appends_leave_a_checkpoint_its_space_and_resume_when_it_has_it_again() -> None:
    server = serving("always", pages=16)
    late = Late(server)
    server.disk.unlink("reserve")
    server.disk.free = 3  # not the four that a checkpoint is to have
    assert server.driver.keep_reserve() is False
    assert code(late.ask(protocol.Append(1))) == errors.DiskFull.code
    assert isinstance(late.ask(protocol.Claim(1, "c", model.OLDEST, b"t" * 16)), protocol.Claimed)
    server.disk.free = 100
    assert isinstance(late.ask(protocol.Append(1)), protocol.Appended), "at once"
    assert "reserve" in server.disk.names("")


def test_space_for_a_checkpoint_that_cannot_be_kept_for_another_reason_ends_writing() -> None:
    server = serving("always", pages=16)
    late = Late(server)
    server.disk.unlink("reserve")
    server.driver._reserved = False
    server.disk.fail("allocate", server.disk.calls["allocate"] + 1)
    assert code(late.ask(protocol.Append(1))) == errors.StorageFailed.code
    assert "no space can be kept for a checkpoint" in str(server.failed)


def test_space_is_not_asked_for_more_often_than_every_now_and_then() -> None:
    server = full()
    server.sleep(1)
    server.pump()
    for _ in range(3):
        together(server, protocol.Append(1), size=BIG)
    creates = server.disk.calls["create"] + server.disk.calls["allocate"]
    driver = server.driver
    if not driver.journal.spare and driver.broker.books.full is not None:
        driver._reserved = True  # that is asked for as often as appends are
        driver.prepared(False)
        assert not driver.spare_wanted
        together(server, protocol.CommitCursor(1, "c", 1, 1))
        assert server.disk.calls["create"] + server.disk.calls["allocate"] == creates
        server.clock.now += drivers.AGAIN_SECONDS
        assert driver.spare_wanted


# --- upkeep -------------------------------------------------------------------------------------


def test_the_next_file_can_be_made_beside_the_work() -> None:
    server = serving("always")
    driver = server.driver
    driver.journal._spare = False
    assert driver.spare_wanted
    driver.prepared(drivers.attempt(driver.journal.prepare))
    assert driver.journal.spare
    driver.journal._spare = False
    driver.prepared(False)
    wanted = [driver.spare_wanted]  # not now
    server.sleep(drivers.AGAIN_SECONDS)
    assert [*wanted, driver.spare_wanted] == [False, True]


def test_a_next_file_that_cannot_be_made_ends_writing() -> None:
    server = serving("always")
    server.driver.prepared(OSError(errno.EIO, "no"))
    assert "the next journal file cannot be made" in str(server.failed)
    assert code(together(server, protocol.Append(1))[0]) == errors.StorageFailed.code


def test_a_checkpoint_is_due_when_so_many_files_are_in_use_and_lets_them_go() -> None:
    server = serving("always", pages=6)
    driver = server.driver
    files, due = 0, 0
    for _ in range(200):
        together(server, protocol.Append(1), size=2000)
        if driver.checkpoint_due:
            due += 1
            assert driver.journal.files_above(driver._marks[0]) >= drivers.FILES_IN_USE_MAX
            driver.checkpoint()
            assert not driver.checkpoint_due
        files = max(files, len(server.disk.names("journal")))
    assert due > 10
    assert files <= 2 * drivers.FILES_IN_USE_MAX


def test_a_checkpoint_is_due_when_many_segments_wait_for_it() -> None:
    server = Server(SimDisk(), file_bytes=64 * PAGE)
    server.driver._dirty_max = 3
    server.create("a", sync="always", file_roll_size=ROLL)
    for _ in range(2):
        together(server, protocol.Append(1), size=4000)
        assert not server.driver.checkpoint_due
    together(server, protocol.Append(1), size=4000)
    assert server.driver.checkpoint_due
    server.checkpoint()
    assert not server.driver.checkpoint_due


def test_no_checkpoint_while_a_frame_is_under_way_or_nothing_happened() -> None:
    server = serving("always")
    driver = server.driver
    ask(server, protocol.Append(1))
    flight = driver.begin()
    assert flight is not None
    assert not driver.checkpoint_due
    with pytest.raises(AssertionError, match="between flights"):
        driver.begin_checkpoint()
    driver.finish(flight, driver.journal.wait(flight.number))
    driver.checkpoint()
    names = server.disk.names("")
    calls = server.disk.operations
    driver.checkpoint()
    assert (server.disk.names(""), server.disk.operations) == (names, calls)


def test_a_checkpoint_makes_everything_durable_that_was_only_written() -> None:
    server = serving("never")
    together(server, protocol.Append(1))
    assert ends(server, "n") == (1, 1, 0)
    server.checkpoint()
    assert ends(server, "n") == (1, 1, 1)
    assert Server(server.disk.crash(NOTHING)).driver.broker.books.state.logs[1].end == 1


def test_a_segment_that_ends_with_a_page_has_no_unfinished_one() -> None:
    server = serving("always")
    size = PAGE - len(produced(1000)) + 1000
    together(server, protocol.Append(1), size=size)
    assert server.driver.broker.books.state.logs[1].bytes == PAGE
    server.checkpoint()
    server.batch("a", b"00000001")
    again = Server(server.disk.crash(NOTHING)).view()
    assert again.logs["a"].records == [bytes(size), b"00000001"]


def broken_sync(server: Server) -> None:
    together(server, protocol.Append(1))
    server.disk.fail("sync", server.disk.calls["sync"] + 1)


def broken_read(server: Server) -> None:
    together(server, protocol.Append(1))
    server.disk.fail("read", server.disk.calls["read"] + 1)


def broken_rename(server: Server) -> None:
    together(server, protocol.Append(1))
    server.disk.fail("rename", server.disk.calls["rename"] + 1)


@pytest.mark.parametrize(
    ("broken", "reason"),
    [
        (broken_sync, "is not durable"),
        (broken_read, "a segment cannot be read for a checkpoint"),
        (broken_rename, "a checkpoint cannot be made"),
    ],
)
def test_a_checkpoint_that_fails_ends_writing_and_the_older_one_stays(
    broken: Callable[[Server], None], reason: str
) -> None:
    server = serving("never")
    server.checkpoint()
    broken(server)
    marks = list(server.driver._marks)
    server.checkpoint()
    assert reason in str(server.failed)
    assert server.driver._marks == marks
    operations = server.disk.operations
    server.checkpoint()
    assert server.disk.operations == operations
    assert not server.disk.crash(NOTHING).names("quarantine")
    Server(server.disk.crash(NOTHING))


def test_a_checkpoint_without_space_is_tried_again_later() -> None:
    server = serving("always")
    server.checkpoint()
    together(server, protocol.Append(1))
    if "reserve" in server.disk.names(""):
        server.disk.unlink("reserve")
    server.disk.free = 0
    marks = list(server.driver._marks)
    server.checkpoint()
    assert server.failed is None
    assert server.driver._marks == marks
    assert not server.driver.checkpoint_due
    server.disk.free = 100
    server.sleep(drivers.AGAIN_SECONDS)
    server.checkpoint()
    assert server.driver._marks[-1] > marks[-1]
    assert "reserve" in server.disk.names("")


def test_what_is_deleted_while_a_checkpoint_is_made_does_not_stop_it() -> None:
    server = serving("always", "never")
    together(server, protocol.Append(1), protocol.Append(2))
    job = server.driver.begin_checkpoint()
    assert job is not None
    together(server, protocol.DeleteLog(2))
    server.driver.finish_checkpoint(drivers.attempt(job))
    assert server.failed is None
    again = Server(server.disk.crash(NOTHING))
    assert list(again.driver.broker.books.state.logs) == [1]


# --- what a directory allows --------------------------------------------------------------------


def test_limits_are_lowered_to_what_one_frame_takes() -> None:
    broker = serving("always", pages=6).driver.broker
    assert broker.batch_bytes_max == 6 * PAGE - 2 * PAGE - batch.HEADER_BYTES
    assert broker.record_bytes_max < broker.batch_bytes_max
    largest = broker.record_bytes_max
    server = serving("always", pages=6)
    [answer] = together(server, protocol.Append(1), size=largest)
    assert isinstance(answer, protocol.Appended)
    assert len(produced(largest)) <= broker.batch_bytes_max
    left: Any = Server(server.disk.crash(NOTHING)).view()
    assert left.logs["a"].records == [bytes(largest)]

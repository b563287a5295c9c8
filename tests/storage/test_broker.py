"""The broker: what is decided together, when it is answered, and who may see it."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import pytest

from rlog.decisions import Waiting
from rlog.index import milestone_at_offset
from rlog_client import batch, errors, model, protocol
from tests.storage.server import CLIENT, ROLL, START_NS, Asker, Server, judged
from tests.storage.simdisk import PAGE, Choice, Failure, Fill, SimDisk

if TYPE_CHECKING:
    from rlog_client.protocol import Control

TOKEN = b"0123456789abcdef"
NOTHING = Choice(0, Fill.OLD, 1)


def serving(*logs: str, pages: int = 64) -> Server:
    """A server with a log for each policy named, called by its first letter."""
    server = Server(SimDisk(), file_bytes=pages * PAGE)
    for policy in logs:
        server.create(policy[0], sync=policy, file_roll_size=16 * ROLL)
    return server


def produced(size: int = 10) -> bytes:
    return bytes(batch.encode([bytes(size)]))


def ask(server: Server, control: Control, peer: Asker | None = None, size: int = 10) -> int:
    """Undecided until ``pump``."""
    peer = peer or server.peer
    batches = [judged(produced(size))] if isinstance(control, protocol.Append) else []
    request = peer.begin(lambda _control: None)
    server.driver.broker.submit(Waiting(peer, request, control, batches))
    return request


def together(server: Server, *controls: Control, size: int = 10) -> list[Any]:
    """What is answered to requests that are decided in one go."""
    requests = [ask(server, control, size=size) for control in controls]
    server.pump()
    return [server.peer.answers.get(request) for request in requests]


def frames(server: Server) -> int:
    return server.driver.journal.tail()


def syncs(server: Server) -> int:
    return server.disk.calls["sync"]


def due_at(server: Server) -> float | None:
    """When a sync is due."""
    return server.driver.broker.sync_due


def code(answer: Any) -> int:
    assert isinstance(answer, protocol.Error), answer
    return answer.code


def ends(server: Server, log: str) -> tuple[int, int, int]:
    """(end, visible end, synced end)"""
    books, number = server.driver.broker.books, server.ids[log]
    return books.state.logs[number].end, books.visible[number].end, books.synced_end[number]


def test_who_reads_is_told_of_the_milestones() -> None:
    server = serving("always")
    for _ in range(9):
        together(server, protocol.Append(1))
    books = server.driver.broker.books
    log = books.state.logs[1]
    extent = books.extent(log, 0)
    milestone = milestone_at_offset(extent.milestones, log.end - 1)
    assert milestone is not None
    spot = books.files[1].find(extent, milestone.offset)
    assert spot is not None
    assert spot.position == milestone.position


# --- answers by policy, and what is visible -----------------------------------------------------


@pytest.mark.parametrize(
    ("policy", "synced", "after"),
    [
        ("always", True, (1, 1, 1)),
        ("periodic:1s", False, (1, 0, 0)),
        ("bytes:64KiB", False, (1, 0, 0)),
        ("never", False, (1, 1, 0)),
    ],
)
def test_an_append_is_answered_and_seen_as_its_logs_policy_says(
    policy: str, synced: bool, after: tuple[int, int, int]
) -> None:
    server = serving(policy)
    before = syncs(server)
    [answer] = together(server, protocol.Append(1))
    assert isinstance(answer, protocol.Appended)
    assert answer.synced is synced
    assert ends(server, policy[0]) == after
    assert syncs(server) - before == synced


def test_a_frame_is_synced_at_once_if_anything_in_it_asks_and_then_all_of_it_is() -> None:
    server = serving("never", "always", "periodic:1s")
    before = frames(server), syncs(server)
    answers = together(server, protocol.Append(1), protocol.Append(2), protocol.Append(3))
    assert [answer.synced for answer in answers] == [True, True, True]
    assert (frames(server), syncs(server)) == (before[0] + 1, before[1] + 1)
    assert [ends(server, log) for log in "nap"] == [(1, 1, 1)] * 3
    assert due_at(server) is None


def test_a_sync_covers_the_frames_before_it() -> None:
    server = serving("never", "periodic:1s", "always")
    together(server, protocol.Append(1))
    together(server, protocol.Append(2))
    assert ends(server, "n") == (1, 1, 0)
    assert ends(server, "p") == (1, 0, 0)
    together(server, protocol.Append(3))
    assert ends(server, "n") == (1, 1, 1)
    assert ends(server, "p") == (1, 1, 1)
    assert server.driver.broker.books.raised == {1, 2, 3}


def test_nothing_is_answered_or_seen_before_the_sync() -> None:
    server = serving("always")
    request = ask(server, protocol.Append(1))
    flight = server.driver.begin()
    assert flight is not None
    assert request not in server.peer.answers
    assert ends(server, "a") == (1, 0, 0)
    server.driver.finish(flight, server.driver.journal.wait(flight.number))
    assert server.peer.answers[request].synced  # type: ignore[attr-defined]  # of that kind, or it fails here
    assert ends(server, "a") == (1, 1, 1)


@pytest.mark.parametrize("policy", ["never", "periodic:1s"])
def test_what_governs_a_log_is_synced_whatever_its_policy(policy: str) -> None:
    server = serving("always")
    controls: list[Control] = [
        protocol.OpenLog("x", True, {"sync": policy, "file_roll_size": ROLL}),
        protocol.AlterLog(2, {"file_roll_size": 2 * ROLL}),
        protocol.Claim(2, "c", model.OLDEST, TOKEN),
        protocol.SeekCursor(2, "c", model.LATEST, 1),
        protocol.Release(2, "c"),
        protocol.DeleteCursor(2, "c"),
        protocol.DeleteLog(2),
    ]
    for control in controls:
        before = syncs(server), frames(server)
        [answer] = together(server, control)
        assert not isinstance(answer, protocol.Error), answer
        assert (syncs(server), frames(server)) == (before[0] + 1, before[1] + 1)


@pytest.mark.parametrize(("policy", "synced"), [("always", True), ("never", False)])
def test_a_commit_follows_its_logs_policy(policy: str, synced: bool) -> None:
    server = serving(policy)
    together(server, protocol.Append(1), protocol.Claim(1, "c", model.OLDEST, TOKEN))
    server.peer.grants[1, "c"].delivered = 1
    before = syncs(server)
    [answer] = together(server, protocol.CommitCursor(1, "c", 1, 1))
    assert answer == protocol.Committed(synced)
    assert syncs(server) - before == synced
    # Once more, and below: no frame has to carry it.
    before_frames = frames(server)
    assert together(server, protocol.CommitCursor(1, "c", 1, 1)) == [protocol.Committed(False)]
    assert frames(server) == before_frames


def test_what_is_refused_or_only_looked_at_needs_no_frame() -> None:
    server = serving("always")
    before = frames(server)
    answers = together(
        server,
        protocol.Append(9),
        protocol.Append(1, 5),
        protocol.OpenLog("nowhere"),
        protocol.GetLog(1),
        protocol.ListLogs(),
        protocol.ListSegments(1),
    )
    assert [code(a) for a in answers[:3]] == [
        errors.NotFound.code,
        errors.Conflict.code,
        errors.NotFound.code,
    ]
    assert isinstance(answers[3], protocol.LogReply)
    assert isinstance(answers[4], protocol.Listing)
    assert frames(server) == before


# --- one frame, one moment ----------------------------------------------------------------------


def test_a_frame_closes_at_its_goal_and_the_rest_goes_into_the_next() -> None:
    server = serving("always", pages=6)  # half of which is the goal
    before = frames(server)
    answers = together(server, *[protocol.Append(1)] * 5, size=5000)
    assert [answer.first for answer in answers] == [0, 1, 2, 3, 4]
    assert frames(server) == before + 5 // 2 + 1


def test_neighbours_in_a_segment_are_one_write() -> None:
    server = serving("always")
    together(server, protocol.Append(1))
    before = server.disk.calls["write"]
    together(server, *[protocol.Append(1)] * 4)
    assert server.disk.calls["write"] == before + 2  # the frame, the segment


def test_of_two_that_expect_the_same_end_in_one_frame_one_is_refused() -> None:
    server = serving("always")
    first, second, third = together(
        server, protocol.Append(1, 0), protocol.Append(1, 0), protocol.Append(1, 1)
    )
    assert (first.first, third.first) == (0, 1)
    assert code(second) == errors.Conflict.code
    assert second.details["end"] == 1


def test_of_two_claims_in_one_frame_the_first_holds() -> None:
    server = serving("always")
    claim = protocol.Claim(1, "c", model.OLDEST, TOKEN)
    other = Asker("other:1")
    rival = protocol.Claim(1, "c", model.OLDEST, b"rival")
    mine, theirs = ask(server, claim), ask(server, rival, other)
    server.pump()
    assert server.peer.answers[mine] == protocol.Claimed(1, 0)
    assert code(other.answers[theirs]) == errors.Busy.code
    assert not other.grants


def test_a_claim_is_granted_only_when_it_is_durable() -> None:
    server = serving("never")
    ask(server, protocol.Claim(1, "c", model.OLDEST, TOKEN))
    flight = server.driver.begin()
    assert flight is not None
    assert not server.peer.grants
    server.driver.finish(flight, server.driver.journal.wait(flight.number))
    assert server.peer.grants[1, "c"].epoch == 1


def test_in_one_frame_a_commit_before_the_release_counts_and_one_behind_it_is_fenced() -> None:
    server = serving("always")
    together(server, *[protocol.Append(1)] * 3, protocol.Claim(1, "c", model.OLDEST, TOKEN))
    server.peer.grants[1, "c"].delivered = 3
    other = Asker("other:1")
    before = frames(server)
    commit, release, late = (
        ask(server, control)
        for control in (
            protocol.CommitCursor(1, "c", 1, 2),
            protocol.Release(1, "c"),
            protocol.CommitCursor(1, "c", 1, 3),
        )
    )
    taken = ask(server, protocol.Claim(1, "c", model.OLDEST, TOKEN), other)
    server.pump()
    assert frames(server) == before + 1
    assert server.peer.answers[commit] == protocol.Committed(True)
    assert server.peer.answers[release] == protocol.Done()
    assert code(server.peer.answers[late]) == errors.Fenced.code
    assert other.answers[taken] == protocol.Claimed(2, 2)
    assert server.driver.broker.books.holders[1, "c"] is other
    again = Server(server.disk.crash(NOTHING))
    assert again.driver.broker.books.state.logs[1].cursors["c"].committed == 2


def test_in_one_frame_what_stands_behind_a_seek_under_the_old_epoch_is_fenced() -> None:
    server = serving("always")
    together(server, *[protocol.Append(1)] * 3, protocol.Claim(1, "c", model.OLDEST, TOKEN))
    server.peer.grants[1, "c"].delivered = 3
    moved, old, unsent = together(
        server,
        protocol.SeekCursor(1, "c", model.offset(1), 1),
        protocol.CommitCursor(1, "c", 1, 3),
        protocol.CommitCursor(1, "c", 2, 3),
    )
    assert moved == protocol.Moved(0, 1, 2)
    assert code(old) == errors.Fenced.code
    assert code(unsent) == errors.InvalidRequest.code
    assert server.driver.broker.books.state.logs[1].cursors["c"].committed == 1


def test_a_seek_from_outside_needs_force_and_ends_the_grant_when_it_is_durable() -> None:
    server = serving("always")
    together(server, protocol.Append(1), protocol.Claim(1, "c", model.OLDEST, TOKEN))
    holder, other = server.peer, Asker("other:1")
    server.peer = other
    [busy] = together(server, protocol.SeekCursor(1, "c", model.LATEST))
    assert code(busy) == errors.Busy.code
    request = ask(server, protocol.SeekCursor(1, "c", model.LATEST, None, True))
    flight = server.driver.begin()
    assert flight is not None
    assert holder.lost_claims == []
    server.driver.finish(flight, server.driver.journal.wait(flight.number))
    assert other.answers[request] == protocol.Moved(0, 1, 2)
    assert holder.lost_claims == [(1, "c", 1)]
    assert (1, "c") not in holder.grants
    # Now that nobody holds it, no force is needed.
    assert together(server, protocol.SeekCursor(1, "c", model.OLDEST)) == [protocol.Moved(1, 0, 3)]


def test_a_log_that_is_deleted_in_the_same_frame_takes_its_appends_along() -> None:
    server = serving("never")
    together(server, protocol.Claim(1, "c", model.OLDEST, TOKEN))
    appended, deleted, late, again = together(
        server,
        protocol.Append(1),
        protocol.DeleteLog(1),
        protocol.Append(1),
        protocol.OpenLog("n", True, {"file_roll_size": ROLL}),
    )
    assert isinstance(appended, protocol.Appended)
    assert deleted == protocol.Done()
    assert code(late) == errors.NotFound.code
    assert again.info.id == 2
    assert server.peer.lost_claims == [(1, "c", 1)]
    assert server.disk.names("logs") == ["2"]
    left = server.disk.crash(NOTHING)
    assert list(Server(left).driver.broker.books.state.logs) == [2]


def test_a_cursor_is_forgotten_only_when_nobody_holds_it() -> None:
    server = serving("always")
    together(server, protocol.Claim(1, "c", model.OLDEST, TOKEN))
    assert code(together(server, protocol.DeleteCursor(1, "c"))[0]) == errors.Busy.code
    release, gone, look = together(
        server,
        protocol.Release(1, "c"),
        protocol.DeleteCursor(1, "c"),
        protocol.GetCursor(1, "c"),
    )
    assert release == gone == protocol.Done()
    assert code(look) == errors.NotFound.code


def test_a_cursors_lag_is_looked_up_as_of_its_moment() -> None:
    server = serving("always")
    together(server, *[protocol.Append(1)] * 3, protocol.Claim(1, "c", model.OLDEST, TOKEN))
    server.sleep(10)
    [reply] = together(server, protocol.GetCursor(1, "c"))
    size = len(produced())
    assert (reply.info.lag_records, reply.info.lag_bytes) == (3, 3 * size)
    assert reply.info.lag_seconds >= 10
    assert [member.name for member in reply.info.members] == ["test:1"]
    server.peer.grants[1, "c"].delivered = 3
    together(server, protocol.CommitCursor(1, "c", 1, 3))
    [reply] = together(server, protocol.GetCursor(1, "c"))
    assert (reply.info.lag_records, reply.info.lag_bytes, reply.info.lag_seconds) == (0, 0, 0)
    [listing] = together(server, protocol.ListCursors(1))
    assert isinstance(listing, protocol.Listing)


@pytest.mark.parametrize(
    ("whence", "offset"),
    [
        (model.OLDEST, 0),
        (model.LATEST, 3),
        (model.last(2), 1),
        (model.last(9), 0),
        (model.offset(2), 2),
        (model.offset(3), 3),
    ],
)
def test_a_new_cursor_stands_where_its_first_claim_says(whence: model.Whence, offset: int) -> None:
    server = serving("always")
    together(server, *[protocol.Append(1)] * 3)
    claim = protocol.Claim(1, "c", whence, TOKEN)
    assert together(server, claim) == [protocol.Claimed(1, offset)]


@pytest.mark.parametrize(
    ("control", "error"),
    [
        (protocol.Claim(1, "c", model.offset(4), TOKEN), errors.OffsetOutOfRange),
        (protocol.Claim(1, "@mine", model.OLDEST, TOKEN), errors.InvalidRequest),
        (protocol.Claim(1, "c", model.OLDEST, b""), errors.InvalidRequest),
        (protocol.Claim(1, "c", model.Whence("time", 0), TOKEN), errors.InvalidRequest),
        (protocol.CommitCursor(1, "c", 1, 1), errors.NotFound),
        (protocol.OpenLog("A", True), errors.InvalidRequest),
        (protocol.OpenLog("b", True, {"sync": "sometimes"}), errors.InvalidRequest),
        (protocol.OpenLog("b", True, {"sync": "always:1s"}), errors.InvalidRequest),
        (protocol.OpenLog("b", True, {"sync": "periodic:soon"}), errors.InvalidRequest),
        (protocol.OpenLog("b", True, {"sync": "periodic:0s"}), errors.InvalidRequest),
        (protocol.OpenLog("b", True, {"sync": "bytes:many"}), errors.InvalidRequest),
        (protocol.OpenLog("b", True, {"sync": "bytes:0"}), errors.InvalidRequest),
        (protocol.OpenLog("b", True, {"file_roll_size": 1}), errors.InvalidRequest),
        (protocol.OpenLog("b", True, {"colour": 1}), errors.InvalidRequest),
        (protocol.OpenLog("a", True, {"sync": "never"}), errors.AlreadyExists),
        (protocol.TrimLog(1, model.offset(9)), errors.OffsetOutOfRange),
        (protocol.AlterLog(7, {}), errors.NotFound),
    ],
)
def test_what_cannot_be_is_refused_and_changes_nothing(
    control: Control, error: type[errors.RlogError]
) -> None:
    server = serving("always")
    together(server, *[protocol.Append(1)] * 3)
    before, tree = frames(server), server.disk.tree()
    assert code(together(server, control)[0]) == error.code
    assert frames(server) == before
    assert server.disk.tree() == tree


def test_the_logs_own_cursor_is_under_the_same_rules() -> None:
    server = serving("always")
    claim = protocol.Claim(1, model.GLOBAL_ID, model.OLDEST, TOKEN)
    rival = protocol.Claim(1, model.GLOBAL_ID, model.OLDEST, b"rival")
    first, second = together(server, claim, rival)
    assert first == protocol.Claimed(1, 0)
    assert code(second) == errors.Busy.code


# --- who waits for a sync -----------------------------------------------------------------------


def test_who_waits_for_a_sync_makes_one_due_and_is_answered_by_it() -> None:
    server = serving("never")
    together(server, protocol.Append(1))
    before = syncs(server)
    request = ask(server, protocol.WaitSynced(1, 1))
    wanted = [server.driver.broker.sync_wanted]
    assert request not in server.peer.answers
    server.pump()
    assert server.peer.answers[request] == protocol.Done()
    assert syncs(server) == before + 1
    assert [*wanted, server.driver.broker.sync_wanted] == [True, False]
    # It is there now: no sync is needed.
    assert together(server, protocol.WaitSynced(1, 1)) == [protocol.Done()]
    assert syncs(server) == before + 1


def test_who_waits_for_what_cannot_come_is_told_so() -> None:
    server = serving("never")
    beyond, gone = together(server, protocol.WaitSynced(1, 1), protocol.WaitSynced(5, 0))
    assert code(beyond) == errors.OffsetOutOfRange.code
    assert code(gone) == errors.NotFound.code


# --- failure ------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", Failure)
def test_when_the_sync_fails_what_was_under_way_is_unknown_and_the_rest_refused(
    mode: Failure,
) -> None:
    server = serving("always", "never")
    together(server, protocol.Append(1), protocol.Append(2))
    together(server, protocol.Append(2))
    server.disk.failure = mode
    server.disk.fail("sync", server.disk.calls["sync"] + 1)
    append, claim, wait = (
        ask(server, control)
        for control in (
            protocol.Append(1),
            protocol.Claim(1, "c", model.OLDEST, TOKEN),
            protocol.WaitSynced(2, 2),
        )
    )
    flight = server.driver.begin()
    assert flight is not None
    late = ask(server, protocol.Append(1))
    server.driver.finish(flight, server.driver.journal.wait(flight.number))
    server.pump()
    answers = server.peer.answers
    assert code(answers[append]) == errors.OutcomeUnknown.code
    header = batch.parse_header(produced())
    error = answers[append]
    assert isinstance(error, protocol.Error)
    assert error.details["producer"] == header.producer
    assert error.details["sequence"] == header.sequence
    assert error.message.startswith("the append may be in the log or not: ")
    assert code(answers[claim]) == errors.OutcomeUnknown.code
    error = answers[claim]
    assert isinstance(error, protocol.Error)
    assert error.details == {"producer": 0, "sequence": 0}
    assert error.message.startswith("it may have been done or not: ")
    assert code(answers[wait]) == errors.StorageFailed.code
    assert code(answers[late]) == errors.StorageFailed.code
    assert not server.peer.grants
    # What is durable is read on; everything that writes is refused.
    before = syncs(server)
    assert isinstance(together(server, protocol.GetLog(1))[0], protocol.LogReply)
    for control in (
        protocol.Append(2),
        protocol.OpenLog("x", True),
        protocol.AlterLog(1, {}),
        protocol.TrimLog(1, model.LATEST),
        protocol.DeleteLog(1),
        protocol.Claim(1, "d", model.OLDEST, TOKEN),
        protocol.Release(1, "d"),
        protocol.SeekCursor(1, "d", model.OLDEST),
        protocol.DeleteCursor(1, "d"),
        protocol.CommitCursor(1, "d", 1, 1),
    ):
        assert code(together(server, control)[0]) == errors.StorageFailed.code
    assert syncs(server) == before
    assert ends(server, "a")[1:] == (1, 1)


def test_the_first_frame_of_a_life_is_synced_and_knows_how_young_the_youngest_record_is() -> None:
    server = serving("never")
    broker = server.driver.broker
    opening = broker.open(START_NS, 0.0)
    assert opening.sync
    assert (broker.books.watch.boot, broker.books.watch.stored_ns) == ("", 0)
    together(server, protocol.Append(1))
    broker.open(START_NS, 0.0)
    assert broker.books.watch.stored_ns == broker.books.state.logs[1].time_max_ns > START_NS


def test_that_writing_has_ended_and_why_is_said_aloud(caplog: pytest.LogCaptureFixture) -> None:
    logging.disable(logging.NOTSET)
    serving("always").driver.broker.fail("the disk is gone", None)
    assert [each.getMessage() for each in caplog.records] == ["writing has ended: the disk is gone"]


def test_the_first_reason_stays() -> None:
    server = serving("always")
    server.driver.broker.fail("one", None)
    server.driver.broker.fail("two", None)
    assert server.failed == "one"


# --- what is seldom -----------------------------------------------------------------------------


def test_where_nothing_waits_nothing_is_decided() -> None:
    assert serving().driver.broker.decide(1, now=0.0) is None


def test_opening_a_log_that_is_there_asks_for_nothing_it_is_not() -> None:
    server = serving("never")
    same = {"sync": "never", "file_roll_size": 16 * ROLL}
    before = frames(server)
    for control in (
        protocol.OpenLog("n"),
        protocol.OpenLog("n", True),
        protocol.OpenLog("n", True, same),
    ):
        assert together(server, control)[0].info.id == 1
    assert frames(server) == before
    [error] = together(server, protocol.OpenLog("n", True, same | {"sync": "always"}))
    assert error.details["differences"] == {"sync": ["never", "always"]}


def test_a_release_of_what_one_does_not_hold_is_done_already() -> None:
    server = serving("always")
    together(server, protocol.Claim(1, "c", model.OLDEST, TOKEN))
    holder, server.peer = server.peer, Asker("other:1")
    before = frames(server)
    # Another's claim, a consumer and a log that are not there.
    for control in (
        protocol.Release(1, "c"),
        protocol.Release(1, "d"),
        protocol.Release(9, "c"),
    ):
        assert together(server, control) == [protocol.Done()]
    assert frames(server) == before
    assert holder.grants[1, "c"].epoch == 1
    assert server.driver.broker.books.state.logs[1].cursors["c"].holder is not None


def test_a_release_behind_a_seek_from_outside_in_one_frame_releases_nobody_else() -> None:
    server = serving("always")
    together(server, protocol.Claim(1, "c", model.OLDEST, TOKEN))
    holder, other = server.peer, Asker("other:1")
    ask(server, protocol.SeekCursor(1, "c", model.OLDEST, None, True), other)
    ask(server, protocol.Claim(1, "c", model.OLDEST, TOKEN), other)
    late = ask(server, protocol.Release(1, "c"), holder)
    server.pump()
    assert holder.answers[late] == protocol.Done()
    assert server.driver.broker.books.holders[1, "c"] is other
    cursor = server.driver.broker.books.state.logs[1].cursors["c"]
    assert cursor.holder is not None
    assert cursor.holder.name == "other:1"


def test_a_listing_beyond_its_limit_is_an_error_and_not_a_part(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    server = serving("always", "never")
    monkeypatch.setattr(protocol, "LISTING_BYTES_MAX", 20)
    assert code(together(server, protocol.ListLogs())[0]) == errors.TooLarge.code


def test_a_look_at_a_cursor_whose_segment_was_trimmed_since_is_no_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    server = Server(SimDisk())
    server.create("a", sync="always", file_roll_size=ROLL)
    for _ in range(3):
        together(server, protocol.Append(1), size=4000)
    together(server, protocol.Claim(1, "c", model.OLDEST, TOKEN))
    looks: list[Any] = []

    def later(_request: int, look: Any) -> None:
        looks.append(look)

    monkeypatch.setattr(server.peer, "answer_later", later)
    together(server, protocol.GetCursor(1, "c"), protocol.TrimLog(1, model.offset(2)))
    info = looks[0]().control.info
    assert info.lag_records == 3


# --- what comes by the clock, and who waited ----------------------------------------------------


def test_who_waits_for_a_claim_is_answered_when_it_ends_before_those_who_ask_only_then() -> None:
    server = serving("always")
    together(server, protocol.Claim(1, "c", model.OLDEST, TOKEN))
    standby, late = Asker("standby:1"), Asker("late:1")
    claims = [
        ask(server, protocol.Claim(1, "c", model.OLDEST, b"standby", standby=True), standby),
        ask(server, protocol.Release(1, "c")),
        ask(server, protocol.Claim(1, "c", model.OLDEST, b"late"), late),
    ]
    server.pump()
    assert standby.answers[claims[0]] == protocol.Claimed(2, 0)
    assert code(late.answers[claims[2]]) == errors.Busy.code


def test_what_is_due_by_the_clock_is_taken_up_when_it_rings() -> None:
    server = serving("always")
    together(server, protocol.Append(1))
    together(server, protocol.Claim(1, "c", model.OLDEST, TOKEN, hand_seconds=5.0))
    server.peer.grants[1, "c"].delivered = 1
    together(server, protocol.CommitCursor(1, "c", 1, 0, 1))
    standby = Asker("standby:1")
    claim = protocol.Claim(1, "c", model.OLDEST, b"standby", standby=True)
    request = ask(server, claim, standby)
    server.pump()
    broker = server.driver.broker
    broker.ring(server.clock.now + 4.0)
    assert broker.waiting == 0
    server.sleep(6.0)
    claimed = standby.answers[request]
    assert isinstance(claimed, protocol.Claimed)
    assert (claimed.epoch, claimed.attempts) == (3, 1)
    assert server.peer.lost_claims == [(1, "c", 1)]


def test_with_a_log_to_which_time_matters_the_clock_is_watched() -> None:
    server = Server(SimDisk())
    server.create("aged", max_file_age=3600.0)
    together(server, protocol.Append(1))
    server.clock.now += 1.0
    server.clock.ticks += 10**15  # the wall clock runs on by days
    together(server, protocol.Append(1))
    assert server.driver.broker.books.state.doubted == {1: 1}


def test_a_machine_that_slept_is_no_clock_that_jumped() -> None:
    """The time since its boot goes on, the monotonic clock does not."""
    server = Server(SimDisk())
    server.create("aged", max_file_age=3600.0)
    broker = server.driver.broker
    difference_ns = broker.books.state.difference_ns
    assert difference_ns is not None
    for hours, uptime_ns in ((5, server.clock.now * 1e9 + 5 * 3600e9), (9, None)):
        ask(server, protocol.Append(1))
        now_ns = difference_ns + round(server.clock.now * 1e9) + hours * 3600 * 10**9
        uptime = None if uptime_ns is None else round(uptime_ns)
        broker.decide(now_ns, now=server.clock.now, uptime_ns=uptime)
        assert (broker.books.state.doubted is None) is (uptime is not None)


@pytest.mark.parametrize(
    ("boot", "difference_ns"), [("one", 77), ("two", START_NS - 5 * 10**9), ("", START_NS)]
)
def test_a_start_believes_the_clock_it_knows_and_another_boots_if_time_does_not_go_back(
    boot: str, difference_ns: int
) -> None:
    broker = serving("always").driver.broker
    state = broker.books.state
    state.boot, state.difference_ns = "one", 77
    broker.open(START_NS, 0.0, boot, 5 * 10**9 if boot else None)
    found = [state.difference_ns]
    assert state.boot == boot
    state.logs[1].time_max_ns = START_NS + 1
    broker.open(START_NS, 0.0, "three", 0)
    found.append(state.difference_ns)
    broker.open(START_NS + 1, 2.0, "four")
    assert [*found, state.difference_ns] == [difference_ns, None, START_NS + 1 - 2 * 10**9]


# --- appends by policy --------------------------------------------------------------------------


def test_so_many_bytes_unsynced_make_a_sync_due_at_once() -> None:
    server = serving("bytes:8KiB")
    server.sleep(50.0)
    for _ in range(2):
        request = ask(server, protocol.Append(1), size=4000)
        assert server.driver.begin() is None, "nothing is synced for it"
        assert server.peer.answers[request].synced is False  # type: ignore[attr-defined]  # of that kind, or it fails here
        assert due_at(server) == server.clock.now + 1.0
    ask(server, protocol.Append(1), size=4000)
    flight = server.driver.begin()
    assert flight is not None
    assert due_at(server) == server.clock.now
    server.driver.finish(flight, server.driver.journal.wait(flight.number))
    assert ends(server, "b") == (3, 3, 3)
    assert due_at(server) is None
    # What was synced counts no more.
    ask(server, protocol.Append(1), size=4000)
    server.driver.begin()
    assert due_at(server) == server.clock.now + 1.0


@pytest.mark.parametrize(("less", "seconds"), [(1, 1.0), (0, 0.0)])
def test_to_the_byte_so_many_unsynced_make_a_sync_due(less: int, seconds: float) -> None:
    server = serving("bytes:8KiB")
    half = 4000 + 4096 - len(produced(4000))
    for size in (half, half - less):
        ask(server, protocol.Append(1), size=size)
        server.driver.begin()
    assert due_at(server) == server.clock.now + seconds


def test_the_earliest_of_what_is_due_counts() -> None:
    server = serving("periodic:9s")
    server.create("q", sync="periodic:3s")
    for log, due in ((1, 9.0), (2, 3.0), (1, 3.0)):
        ask(server, protocol.Append(log))
        server.driver.begin()
        assert due_at(server) == server.clock.now + due


def test_an_append_is_laid_out_under_its_stamped_header() -> None:
    server = serving("never")
    together(server, protocol.Append(1), protocol.Append(1))
    raw = server.disk.contents("logs/1/00000000000000000000.seg")
    first = batch.parse_header(raw)
    second = batch.parse_header(raw, first.bytes)
    assert [(each.log, each.base) for each in (first, second)] == [(1, 0), (1, 1)]
    visible = server.driver.broker.books.visible[1]
    assert visible == (2, 0, first.bytes + second.bytes)


# --- answers that wait until others may see -----------------------------------------------------


def test_a_keys_latest_offset_is_told_when_a_reader_may_see_it() -> None:
    server = serving()
    server.create("p", sync="periodic:5s", key_index=True, file_roll_size=16 * ROLL)
    look = protocol.GetLatest(1, b"k")
    assert together(server, look) == [protocol.Latest(-1, 0)]
    server.append("p", b"value", keys=[b"k"])
    request = ask(server, look)
    table = ask(server, protocol.GetTable(1))
    server.driver.begin()
    assert request not in server.peer.answers
    assert table not in server.peer.answers
    server.pump()
    assert server.peer.answers[request] == protocol.Latest(0, 1)
    assert isinstance(server.peer.answers[table], protocol.TablePage)


def test_who_waits_is_told_where_a_log_begins_and_ends_when_it_asks_for_more() -> None:
    server = serving("never")
    together(server, protocol.Append(1), protocol.Append(1))
    [beyond] = together(server, protocol.WaitSynced(1, 3))
    assert beyond.details == {"first": 0, "end": 2}
    assert beyond.message == "log 'n' ends at 2, before 3"


def test_a_listing_is_given_with_its_payload() -> None:
    server = serving("never", "always")
    request = ask(server, protocol.ListLogs())
    server.pump()
    infos = protocol.listed(server.peer.payloads[request], model.LogInfo)
    assert [info.name for info in infos] == ["a", "n"]


# --- the end of writing -------------------------------------------------------------------------


def test_when_writing_ends_whoever_waited_for_space_or_a_trim_is_refused() -> None:
    server = serving("always")
    books, peer = server.driver.broker.books, Asker("patient:1")
    requests = [peer.begin(lambda _control: None) for _ in range(2)]
    controls: tuple[Control, ...] = (protocol.Append(1), protocol.TrimLog(1, model.LATEST))
    append, trim = (
        Waiting(peer, request, control, [judged(produced())])
        for request, control in zip(requests, controls, strict=True)
    )
    books.watch.blocked[1], books.watch.trims[1] = [append], [trim]
    server.driver.broker.sync_due = 5.0
    server.driver.broker.fail("no more", None)
    assert due_at(server) is None
    server.pump()
    assert [code(peer.answers[request]) for request in requests] == [errors.StorageFailed.code] * 2


def test_a_transaction_whose_sync_fails_is_unknown_by_its_client_and_number() -> None:
    server = serving("always")
    server.disk.fail("sync", server.disk.calls["sync"] + 1)
    request = server.ask_transaction(3, [("a", b"value")], [])
    server.pump()
    error = server.peer.answers[request]
    assert isinstance(error, protocol.Error)
    assert error.code == errors.OutcomeUnknown.code
    assert (error.details["producer"], error.details["sequence"]) == (CLIENT, 3)

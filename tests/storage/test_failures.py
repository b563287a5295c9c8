"""Promises 6, 8: a failed sync ends writing for good; a full disk does not, and loses nothing."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

import pytest

from rlog_client import protocol
from rlog_client.errors import DiskFull
from tests.storage.failures import calls_of, every
from tests.storage.server import ROLL, Server
from tests.storage.simdisk import PAGE, Choice, Failure, Fill, SimDisk
from tests.storage.workloads import beside, compacting, everything, periodic

if TYPE_CHECKING:
    from tests.report import RecordProperty
    from tests.storage.explore import Workload

EIO, ENOSPC, EDQUOT = errno.EIO, errno.ENOSPC, errno.EDQUOT


def tried(
    workload: Workload,
    kind: str,
    faults: list[tuple[int, Failure]],
    record_property: RecordProperty,
) -> None:
    """Every call of a kind fails once with each fault, in a life of its own."""
    wrong = every(workload, kind, *faults)
    count = calls_of(workload).calls[kind] * len(faults)
    record_property("calls that failed on a simulated disk", count)
    assert not wrong, "\n".join(wrong[:20])


@pytest.mark.parametrize("workload", [everything, periodic, beside, compacting])
def test_whichever_sync_fails_writing_ends_and_nothing_acknowledged_is_lost(
    workload: Workload, record_property: RecordProperty
) -> None:
    faults = [(EIO, Failure.EXT4), (EIO, Failure.REVERT), (ENOSPC, Failure.EXT4)]
    tried(workload, "sync", [*faults, (EDQUOT, Failure.REVERT)], record_property)


@pytest.mark.parametrize(
    "kind",
    [
        "sync_directory",
        "write",
        "rename",
        "create",
        "unlink",
        "truncate",
        "allocate",
        "open",
        "read",
    ],
)
def test_whichever_other_call_fails_nothing_acknowledged_is_lost(
    kind: str, long: bool, record_property: RecordProperty
) -> None:
    every_one = (everything, compacting, periodic, beside)
    for workload in every_one if long else every_one[:2]:
        tried(workload, kind, [(EIO, Failure.EXT4)], record_property)


def error_code(answer: protocol.Control | None) -> int | None:
    return answer.code if isinstance(answer, protocol.Error) else None


def filled(server: Server, size: int = 1500) -> int:
    """Append until the disk is full. -> how many were taken."""
    for taken in range(1000):
        answer = server.batch("a", b"%08d" % (len(server.history.sent) + 1) + bytes(size))
        if not isinstance(answer, protocol.Appended):
            assert error_code(answer) == DiskFull.code, answer
            return taken
    raise AssertionError("it never filled")


@pytest.mark.parametrize("free", range(0, 60, 3))
def test_a_full_disk_refuses_appends_takes_commits_and_resumes_by_itself(free: int) -> None:
    disk = SimDisk()
    server = Server(disk, file_bytes=64 * PAGE)
    server.create("a", sync="always", file_roll_size=ROLL)
    server.claim("a", "c")
    server.batch("a", b"00000001", b"00000002")
    for _cycle in range(3):
        disk.free = free
        taken = filled(server)
        end = server.driver.broker.books.state.logs[1].end
        assert server.failed is None
        # Commits go on, and so do reads.
        for step in range(2):
            request = server.commit("a", "c", end - 1 + step)
            assert isinstance(server.peer.answers.get(request), protocol.Committed)
        assert not server.history.check(server.view(), power_cut=False)
        # What a power cut finds now is whole, and starts without any more space.
        left = disk.crash(Choice(0, Fill.OLD, 1))
        assert not server.history.check(Server(left, file_bytes=64 * PAGE).view(), power_cut=True)
        # Space comes back, and appends with it, without anybody's doing.
        disk.free = 1000
        server.sleep(1.0)
        answer = server.batch("a", b"%08d again" % (len(server.history.sent) + 1))
        assert isinstance(answer, protocol.Appended), (free, taken, answer)
    assert not server.history.check(server.view(), power_cut=False)

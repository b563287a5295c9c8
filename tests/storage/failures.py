"""A life in which one call to the disk fails: what is said then, and what is there later."""

from __future__ import annotations

import errno
import random
import traceback
from typing import TYPE_CHECKING, NamedTuple

from rlog.journal import Refused
from rlog_client import protocol
from rlog_client.errors import OutcomeUnknown, StorageFailed
from tests.storage.explore import Payloads
from tests.storage.history import History, settle
from tests.storage.server import Server
from tests.storage.simdisk import Choice, Failure, Fill, SimDisk

if TYPE_CHECKING:
    from tests.storage.explore import Workload


class Fault(NamedTuple):
    """The ``call``-th call of a kind fails."""

    kind: str
    call: int
    error: int = errno.EIO
    mode: Failure = Failure.EXT4

    def __str__(self) -> str:
        return f"{self.kind} {self.call} {errno.errorcode[self.error]} {self.mode.value}"


def calls_of(workload: Workload) -> SimDisk:
    """A life without faults, for its counts."""
    disk = SimDisk()
    workload(Server(disk), Payloads(random.Random(1), 0))
    return disk


class Life:
    """A life with one fault. ``wrong``: what the server did and must not."""

    def __init__(self, workload: Workload, fault: Fault) -> None:
        self.fault = fault
        self.wrong: list[str] = []
        self.disk = disk = SimDisk()
        disk.fail(fault.kind, fault.call, fault.error)
        disk.failure = fault.mode
        self.history = History()
        self.syncs_at_failure = -1
        self.server: Server | None = None  # None: it was not started
        self._acked_at_failure = -1
        try:
            server = Server(disk, self.history)
        except (OSError, Refused):
            return
        self.server = server
        disk.on_operation = lambda _kind: self._note()
        workload(server, Payloads(random.Random(1), 0))
        disk.on_operation = None
        self._note()
        self._judge_life(server)

    @property
    def met(self) -> bool:
        return bool(self.disk.failed)

    def _acked(self) -> int:
        history = self.history
        return (
            len(history.synced) + len(history.created) + len(history.deleted)
            + sum(history.commits_synced.values()) + sum(history.trim_done.values())
        )  # fmt: skip

    def _note(self) -> None:
        """At every boundary: since the server says that writing is over, nothing is done."""
        server = self.server
        assert server is not None
        if server.failed is None:
            return
        if self._acked_at_failure < 0:
            self._acked_at_failure = self._acked()
            self.syncs_at_failure = self.disk.calls["sync"]
        elif server.in_upkeep:
            self.syncs_at_failure = self.disk.calls["sync"]
        elif self._acked() != self._acked_at_failure:
            self.wrong.append("something was acknowledged after writing had ended")
        elif self.disk.calls["sync"] != self.syncs_at_failure:
            self.wrong.append("a sync was tried after one had failed")

    def _judge_life(self, server: Server) -> None:
        if self.met and server.failed is None and self.fault.kind in ("sync", "sync_directory"):
            self.wrong.append(f"a failed {self.fault.kind} did not end writing")
        if server.failed is None:
            return
        if server.peer.waiting:
            self.wrong.append(f"{len(server.peer.waiting)} requests were never answered")
        allowed = (OutcomeUnknown.code, StorageFailed.code)
        for answer in server.peer.answers.values():
            if isinstance(answer, protocol.Error) and answer.code not in (*allowed, 4):
                self.wrong.append(f"a strange error: {answer}")
        # Asked once more: refused. A checkpoint now is none.
        server.checkpoint()
        if server.ids:
            log = sorted(server.ids)[0]
            last = server.batch(log, b"99999999 after the end")
            if not isinstance(last, protocol.Error) or last.code != StorageFailed.code:
                self.wrong.append(f"an append after the failure was answered {last}")
        if self.disk.calls["sync"] != self.syncs_at_failure:
            self.wrong.append("a sync was tried after one had failed")
        # Reads of what is durable go on. (In revert mode the cache has lost segment pages, too:
        # their reader is told so, and the next start puts them back.)
        # And a layout that failed leaves acknowledged records unseen until the next start.
        allowed_texts = ["the commit", "cursor at"]  # what a cursor says then was never promised
        if self.fault.mode is Failure.REVERT:
            allowed_texts += ["cannot be read", "a part of", "nothing superseded it"]
        if "segment" in server.failed:
            allowed_texts += ["is lost", "a part of"]
        wrong = self.history.check(server.view(), power_cut=True)
        self.wrong += [
            f"still alive: {each}"
            for each in wrong
            if not any(text in each for text in allowed_texts)
        ]

    def judge_next(self, *, power_cut: bool) -> None:
        """The next process, after a kill or a power cut; and one after a power cut behind it."""
        way = "after a power cut" if power_cut else "after a kill"
        disk = self.disk.crash(Choice(0, Fill.OLD, 1)) if power_cut else self.disk.killed()
        try:
            server = Server(disk)
        except (OSError, Refused) as error:
            self.wrong.append(f"{way}: not started: {error}")
            return
        view = server.view()
        # After a failed sync what was only written may be gone: nothing is left to prove it.
        lost = self.met or power_cut
        wrong = self.history.check(view, power_cut=lost)
        self.wrong += [f"{way}: {each}" for each in wrong]
        kept = settle(self.history, view)
        for choice in (Choice(0, Fill.OLD, 1), Choice(0, Fill.ZERO, 1)):
            try:
                again = Server(disk.crash(choice)).view()
            except (OSError, Refused) as error:
                self.wrong.append(f"{way}, and a power cut: not started: {error}")
                continue
            wrong = kept.check(again, power_cut=True)
            self.wrong += [f"{way}, and a power cut: {each}" for each in wrong]


def every(workload: Workload, kind: str, *faults: tuple[int, Failure]) -> list[str]:
    """Every call of a kind fails once, in a life of its own. -> what went wrong."""
    count = calls_of(workload).calls[kind]
    found = []
    for error, mode in faults:
        for call in range(1, count + 1):
            fault = Fault(kind, call, error, mode)
            try:
                life = Life(workload, fault)
                life.judge_next(power_cut=False)
                life.judge_next(power_cut=True)
            except Exception:
                found.append(f"{fault}: {traceback.format_exc()}")
                continue
            found += [f"{fault}: {wrong}" for wrong in life.wrong]
            if not life.met:
                found.append(f"{fault}: was not met")
    return found

"""Faults on demand, and where they strike: at the disk, and at a connection.

What is ordered here is real: a call to the disk that fails, an answer that is not sent, a socket
that is reset. The code that has to live with it is the server's own, and knows nothing of this.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
import threading
from typing import TYPE_CHECKING, Final, Literal, NamedTuple, Self, TypeAlias, TypeVar
from weakref import WeakSet

import trio

from rlog_client import protocol

from .. import facts, frame, journal
from ..connection import Connection, TaskHub
from ..files import Disk, DiskFile

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from types import TracebackType

    from rlog_client.protocol import Control

    from ..decisions import Books, Waiting

Reply: TypeAlias = Literal[
    "append", "commit", "verdict", "take", "claim", "release", "producer", "create", "alter",
    "trim", "delete", "seek", "evict", "redrive", "resume", "transact",
]  # fmt: skip

# Every request that changes something, and what ``lose_reply`` calls it.
KINDS: Final[dict[type[Control], Reply]] = {
    protocol.Append: "append",
    protocol.CommitCursor: "commit",
    protocol.CommitRecords: "commit",
    protocol.Settle: "verdict",
    protocol.TakeRedriven: "take",
    protocol.Claim: "claim",
    protocol.Release: "release",
    protocol.OpenProducer: "producer",
    protocol.OpenLog: "create",
    protocol.AlterLog: "alter",
    protocol.TrimLog: "trim",
    protocol.DeleteLog: "delete",
    protocol.DeleteCursor: "delete",
    protocol.SeekCursor: "seek",
    protocol.Evict: "evict",
    protocol.Redrive: "redrive",
    protocol.Resume: "resume",
    protocol.Transact: "transact",
}
_NO_FACTS_BYTES: Final = len(facts.encode([]))
_RESET: Final = struct.pack("ii", 1, 0)  # SO_LINGER of 0 s: closing sends a reset


def kind_of(control: Control) -> Reply | None:
    """None: it only reads."""
    reads = (isinstance(control, protocol.OpenLog) and not control.create) or (
        isinstance(control, protocol.TakeRedriven) and not control.begin
    )
    return None if reads else KINDS.get(type(control))


class Fault:
    """A fault that was ordered. ``struck``: how many times it has.

    As a context manager it is taken back at the end of the block. One that is sure to strike if the
    test does what it means to, and has not, is an AssertionError there: the test would prove
    nothing.
    """

    def __init__(self, faults: Faults, what: str, times: int | None, *, sure: bool) -> None:
        self.struck = 0
        self._faults = faults
        self._what = what
        self._times = times
        self._sure = sure

    @property
    def spent(self) -> bool:
        """It has struck as often as it was to."""
        return self._times is not None and self.struck >= self._times

    def cancel(self) -> None:
        """Take it back. Nothing happens if it has struck already."""
        self._faults.withdraw(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.cancel()
        if kind is None and self._sure and not self.struck:
            raise AssertionError(f"nothing in this block met the fault: {self._what}")

    def __repr__(self) -> str:
        return f"<{type(self).__name__}: {self._what}, struck {self.struck} times>"


class LostReply(Fault):
    def __init__(
        self, faults: Faults, to: Reply | None, log: str | None, times: int | None
    ) -> None:
        where = "" if log is None else f" of log {log!r}"
        super().__init__(faults, f"a lost reply to {to or 'a change'}{where}", times, sure=True)
        self._to = to
        self._log = log

    def meets(self, control: Control, books: Books) -> bool:
        kind = kind_of(control)
        if kind is None or self._to not in (None, kind):
            return False
        if self._log is None or isinstance(control, protocol.OpenLog):
            return self._log in (None, getattr(control, "name", None))
        log = books.state.by_name(self._log)
        if log is None:
            return False
        if isinstance(control, protocol.Transact):
            return any(each.log == log.id for each in (*control.appends, *control.commits))
        return log.id == getattr(control, "log", None)


class FailedSync(Fault):
    def __init__(self, faults: Faults, *, lost: bool) -> None:
        super().__init__(faults, "a failed sync", 1, sure=True)
        self.lost = lost


class FullDisk(Fault):
    def __init__(self, faults: Faults) -> None:
        super().__init__(faults, "a full disk", None, sure=False)


FaultT = TypeVar("FaultT", bound=Fault)


class Faults:
    """What was ordered and is still to strike. For any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._ordered: list[Fault] = []

    def order(self, fault: FaultT) -> FaultT:
        with self._lock:
            self._ordered.append(fault)
        return fault

    def withdraw(self, fault: Fault) -> None:
        with self._lock:
            if fault in self._ordered:
                self._ordered.remove(fault)

    def strike(
        self, of: type[FaultT], meets: Callable[[FaultT], bool] = lambda _fault: True
    ) -> FaultT | None:
        """The first one of a class that ``meets`` the case: it has struck. None: there is none."""
        if not self._ordered:
            return None
        with self._lock:
            for fault in self._ordered:
                if isinstance(fault, of) and meets(fault):
                    fault.struck += 1
                    if fault.spent:
                        self._ordered.remove(fault)
                    return fault
        return None


# --- the disk -----------------------------------------------------------------------------------


class Extent(NamedTuple):
    path: str
    position: int
    length: int


class FaultyDisk(Disk):
    """The real disk, but for what was ordered. ``fsync`` False: nothing waits for the platter."""

    def __init__(self, root: str, faults: Faults, *, fsync: bool) -> None:
        super().__init__(root)
        self.faults = faults
        self.fsync = fsync
        self.lost: list[Extent] = []  # what a failed sync is to have lost
        self._files: WeakSet[FaultyFile] = WeakSet()

    def open(self, path: str, *, write: bool = True) -> FaultyFile:
        return self._ours(super().open(path, write=write), path)

    def create(self, path: str) -> FaultyFile:
        return self._ours(super().create(path), path)

    def _ours(self, file: DiskFile, path: str) -> FaultyFile:
        ours = FaultyFile(file.detach(), path, self)
        self._files.add(ours)
        return ours

    def sync_directory(self, path: str) -> None:
        if self.fsync:
            super().sync_directory(path)

    def close(self) -> None:
        """Close what is open. The broker and its files refer to each other: they would stay open
        until the collector comes by.
        """
        for file in list(self._files):
            file.close()

    def forget_lost(self) -> None:
        """As after a restart: what the failed sync lost is read from the disk, and is not there."""
        for path, position, length in self.lost:
            file = Disk(self.root).open(path)
            file.write(position, [bytes(length)])
            file.close()
        self.lost.clear()


class FaultyFile(DiskFile):
    __slots__ = ("__weakref__", "_disk", "_frames", "_in_journal", "_path", "_wanted")

    def __init__(self, fd: int, path: str, disk: FaultyDisk) -> None:
        super().__init__(fd)
        self._path = path
        self._disk = disk
        self._in_journal = path.startswith(f"{journal.DIRECTORY}/")
        self._frames: list[Extent] = []  # written since the last sync,
        self._wanted = False  # and there are facts in some of them

    def write(self, position: int, pieces: Sequence[bytes | bytearray | memoryview]) -> None:
        super().write(position, pieces)
        if self._in_journal and (head := frame.peek(pieces[0])) is not None:
            length, facts_bytes = head
            self._frames.append(Extent(self._path, position, frame.padded(length)))
            self._wanted |= facts_bytes > _NO_FACTS_BYTES

    def sync(self) -> None:
        # Of all syncs one that somebody's request waits for, not that of a checkpoint, of the next
        # journal file, or of the empty frame of a server at rest: those come when they come, and
        # the same test would see one thing today and another tomorrow.
        if self._wanted and (fault := self._disk.faults.strike(FailedSync)) is not None:
            if fault.lost:
                self._disk.lost += self._frames
            raise OSError(errno.EIO, f"{os.strerror(errno.EIO)} (ordered by the test)")
        if self._disk.fsync:
            super().sync()
        self._frames.clear()
        self._wanted = False

    def allocate(self, position: int, count: int) -> None:
        if self._disk.faults.strike(FullDisk) is not None:
            raise OSError(errno.ENOSPC, f"{os.strerror(errno.ENOSPC)} (ordered by the test)")
        super().allocate(position, count)


# --- a connection -------------------------------------------------------------------------------


class FaultyConnection(Connection):
    """A connection that can be cut, and loses the replies that were ordered to be lost."""

    def __init__(self, faults: Faults, hub: TaskHub, sock: socket.socket, address: str) -> None:
        super().__init__(hub, sock, address)
        self._faults = faults
        self._asked: dict[int, Control] = {}  # what is not answered yet
        self._cut = False

    def _submit(self, waiting: Waiting, weight: int) -> None:
        self._asked[waiting.request] = waiting.control
        super()._submit(waiting, weight)

    def answer(self, request: int, control: Control, payload: bytes | memoryview = b"") -> None:
        asked = None if isinstance(control, protocol.Queued) else self._asked.pop(request, None)
        if asked is not None and not self._cut and not isinstance(control, protocol.Error):
            books = self._books
            if self._faults.strike(LostReply, lambda fault: fault.meets(asked, books)) is not None:
                self.flush()  # what was answered before it comes through
                self._cut = True
                # Not from in here: the broker is in the middle of a frame.
                trio.lowlevel.current_trio_token().run_sync_soon(self.reset)
        if self._cut:
            self._leave(request)
        else:
            super().answer(request, control, payload)

    def reset(self) -> None:
        """End it as a broken network does."""
        if not self.closed:
            if self._socket.family != socket.AF_UNIX:
                self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            self.close()

    def forked(self) -> None:
        """In the child of a fork: the connection stays the parent's."""
        self._socket.close()

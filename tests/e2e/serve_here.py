"""Runs a server as ``rlog serve`` does, with small files; told so, it dies at one exact moment.

    python -m tests.e2e.serve_here DIR --listen ADDRESS ... [--kill CALL:AREA:WHEN:N] [--armed]

CALL is a method of ``rlog.files`` or ``reply``; AREA is journal, logs, checkpoint, or empty for
any; WHEN is before, after, or half (a write of which the first half gets done). The process kills
itself at the N-th such call since it was armed: at its start, or by SIGUSR1. Where WHEN is EIO or
ENOSPC, that one call fails so instead.
"""

from __future__ import annotations

import argparse
import errno
import faulthandler
import logging
import os
import resource
import signal
import sys
from typing import TYPE_CHECKING, NamedTuple

import trio

import rlog.connection
import rlog.server
from rlog.config import Config, Listen
from rlog.driver import Limits
from rlog.files import Disk, DiskFile
from rlog.policy import parse_policy

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


class Moment(NamedTuple):
    call: str
    area: str
    when: str
    number: int


class Fate:
    """Counts calls, and ends the process at the moment that was given."""

    def __init__(self, moment: Moment, armed: bool) -> None:
        self.moment = moment
        self.armed = armed
        self.count = 0

    def around(
        self, call: str, path: str, act: Callable[[], object], half: Callable[[], object] | None
    ) -> object:
        moment = self.moment
        if not self.armed or call != moment.call or moment.area not in path:
            return act()
        self.count += 1
        if self.count < moment.number:
            return act()
        if moment.when in ("EIO", "ENOSPC"):
            if self.count > moment.number:
                return act()
            raise OSError(getattr(errno, moment.when), "so it was wanted")
        if moment.when == "half" and half is not None:
            half()
        elif moment.when == "after":
            act()
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError("nobody survives SIGKILL")


class MortalFile(DiskFile):
    __slots__ = ("_fate", "_path")

    def __init__(self, fd: int, path: str, fate: Fate) -> None:
        super().__init__(fd)
        self._path = path
        self._fate = fate

    def write(self, position: int, pieces: Sequence[bytes | bytearray | memoryview]) -> None:
        whole = b"".join(pieces)
        self._fate.around(
            "write",
            self._path,
            lambda: DiskFile.write(self, position, pieces),
            lambda: DiskFile.write(self, position, [whole[: len(whole) // 2]]),
        )

    def sync(self) -> None:
        self._fate.around("sync", self._path, lambda: DiskFile.sync(self), None)

    def allocate(self, position: int, count: int) -> None:
        self._fate.around(
            "allocate", self._path, lambda: DiskFile.allocate(self, position, count), None
        )

    def truncate(self, size: int) -> None:
        self._fate.around("truncate", self._path, lambda: DiskFile.truncate(self, size), None)


class MortalDisk(Disk):
    fate: Fate

    def open(self, path: str, *, write: bool = True) -> DiskFile:
        file = super().open(path, write=write)
        fd, file._fd = file._fd, -1
        return MortalFile(fd, path, self.fate)

    def create(self, path: str) -> DiskFile:
        made: list[DiskFile] = []
        self.fate.around("create", path, lambda: made.append(Disk.create(self, path)), None)
        fd, made[0]._fd = made[0]._fd, -1
        return MortalFile(fd, path, self.fate)

    def rename(self, old: str, new: str) -> None:
        self.fate.around("rename", new, lambda: Disk.rename(self, old, new), None)

    def unlink(self, path: str) -> None:
        self.fate.around("unlink", path, lambda: Disk.unlink(self, path), None)

    def sync_directory(self, path: str) -> None:
        self.fate.around("sync_directory", path, lambda: Disk.sync_directory(self, path), None)


def doom(moment: Moment, *, armed: bool) -> None:
    """Have this process, which is made for it, end at ``moment``: its disk and its replies are
    other ones, of which the product knows nothing, so that a type checker may not either.
    """
    fate = Fate(moment, armed)
    MortalDisk.fate = fate
    rlog.server.Disk = MortalDisk  # type: ignore[attr-defined]  # in this process alone
    send = rlog.connection.Connection._send_some

    def dying_send(self: rlog.connection.Connection) -> bool:
        return bool(fate.around("reply", "", lambda: send(self), None))

    rlog.connection.Connection._send_some = dying_send  # type: ignore[method-assign]  # in this process alone
    signal.signal(signal.SIGUSR1, lambda *_: setattr(fate, "armed", True))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("data_dir")
    parser.add_argument("--listen", action="append", required=True)
    parser.add_argument("--sync", default="always")
    parser.add_argument("--journal-file-bytes", type=int, default=1 << 20)
    parser.add_argument("--batch-bytes-max", type=int, default=8 << 20)
    parser.add_argument("--record-bytes-max", type=int, default=1 << 20)
    parser.add_argument("--nofile", type=int)
    parser.add_argument("--address-space", type=int)
    parser.add_argument("--kill", default="")
    parser.add_argument("--armed", action="store_true")
    args = parser.parse_args()
    if args.nofile is not None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (args.nofile, args.nofile))
    if args.address_space is not None:
        resource.setrlimit(resource.RLIMIT_AS, (args.address_space, args.address_space))
    if args.kill:
        call, area, when, count = args.kill.split(":")
        doom(Moment(call, area, when, int(count)), armed=args.armed)
    faulthandler.register(signal.SIGUSR2)  # where it stands, should it ever stand still
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(levelname)s %(message)s")
    limits = Limits(
        parse_policy(args.sync),
        args.journal_file_bytes,
        args.batch_bytes_max,
        args.record_bytes_max,
    )
    config = Config(args.data_dir, tuple(Listen(text) for text in args.listen), limits)
    trio.run(rlog.server.serve, config)


if __name__ == "__main__":
    main()

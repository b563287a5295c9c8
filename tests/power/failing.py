"""A disk that fails a sync and works again, in the guest: what the page cache says then is a lie.

The pages whose write failed stay in the cache, clean: they read back right, and the next sync has
nothing to do and says so. On the disk they never were.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from random import Random
from typing import TYPE_CHECKING, Final

import rlog_client as rlog

from .load import LOGS, SIZES, make, show, tell_served
from .serving import DISK, URL
from .telling import (
    Acknowledged,
    Done,
    Killed,
    Missed,
    Recovered,
    Refused,
    Sending,
    Trap,
    Wrong,
    payload,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from .disk import FlakyDisk
    from .plan import Plan
    from .serving import Server
    from .telling import Event

_LOG: Final = "failing"
_PAGE: Final = 4096
_JOIN_SECONDS: Final = 20.0  # only to find out that it never fails
_RESTARTS_MAX: Final = 5


def look_into_the_trap(disk: FlakyDisk) -> Trap:
    """What this kernel and file system do, with a file of our own."""
    path = f"{DISK}/trap"
    fd = os.open(path, os.O_CREAT | os.O_RDWR)
    os.pwrite(fd, b"old " * (_PAGE // 4), 0)
    os.sync()
    os.pwrite(fd, b"new " * (_PAGE // 4), 0)
    disk.fail()
    if _synced(fd):
        raise AssertionError("the disk does not fail")
    disk.heal()
    os.close(fd)
    fd = os.open(path, os.O_RDWR)
    cached, synced = os.pread(fd, 3, 0), _synced(fd)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    on_disk = os.pread(fd, 3, 0)
    os.close(fd)
    return Trap(cached.decode(), synced, on_disk.decode())


def _synced(fd: int) -> bool:
    try:
        os.fdatasync(fd)
    except OSError:
        return False
    return True


class Writer:
    """Appends one at a time, under a name of its own."""

    def __init__(self, log: rlog.Log, sender: str, chance: Random, tell: Callable[[Event], None]):
        self._log = log
        self._sender = sender
        self._chance = chance
        self._tell = tell
        self._number = 0
        self._over = False

    def append(self) -> None:
        number, self._number = self._number, self._number + 1
        size = self._chance.choice(SIZES)
        self._tell(Sending(self._log.name, self._sender, number, [size]))
        try:
            receipt = self._log.append_many([payload(self._sender, number, size)])
        except rlog.StorageFailed:
            self._tell(Refused(self._sender, number, size))
            raise
        synced = receipt.level == "synced"
        self._tell(
            Acknowledged(self._log.name, self._sender, number, [size], receipt.first, synced)
        )

    def until_failure(self) -> None:
        with contextlib.suppress(rlog.OutcomeUnknown, rlog.StorageFailed):
            while not self._over:
                self.append()

    def stop(self) -> None:
        self._over = True


def fail_a_sync(plan: Plan, disk: FlakyDisk, server: Server, tell: Callable[[Event], None]) -> None:
    """Under a server at work; then the disk works again, and so does the next server."""
    chance = Random(f"{plan.seed} {plan.boot}")
    server.start()
    with rlog.connect(URL) as client:
        show(client, tell)
        tell(Recovered())
        log = make(client, tell, _LOG, **LOGS[_LOG])
        writer = Writer(log, f"before{plan.boot}", chance, tell)
        for _ in range(chance.randrange(20)):
            writer.append()
        _fail_at_work(writer, disk, chance, tell)
        _check_failed(writer, tell, "after a failed sync")
        disk.heal()
        _check_failed(writer, tell, "after a failed sync, on a disk that works again,")
        tell_served(tell, log.name, list(log.reader(rlog.OLDEST, block=False)))
    if not _writable():
        tell(Missed())
        return
    for restart in range(_RESTARTS_MAX):
        server.kill()
        tell(Killed())
        server.start()
        with rlog.connect(URL) as client:
            show(client, tell)
            tell(Recovered())
            writer = Writer(client.log(_LOG), f"after{plan.boot}.{restart}", chance, tell)
            # A segment whose pages were lost as well says so to whoever syncs it next. That ends
            # this server, too, and rightly.
            with contextlib.suppress(rlog.StorageFailed, rlog.OutcomeUnknown):
                for _ in range(20):
                    writer.append()
                tell(Done())
                return
    tell(Wrong(f"{_RESTARTS_MAX} servers failed on a disk that works again"))


def _fail_at_work(
    writer: Writer, disk: FlakyDisk, chance: Random, tell: Callable[[Event], None]
) -> None:
    appending = threading.Thread(target=writer.until_failure, daemon=True)
    appending.start()
    time.sleep(chance.uniform(0.0, 0.2))
    disk.fail()
    appending.join(_JOIN_SECONDS)
    if appending.is_alive():
        tell(Wrong("every write fails, and appends are acknowledged"))
        writer.stop()
        appending.join()


def _check_failed(writer: Writer, tell: Callable[[Event], None], when: str) -> None:
    try:
        writer.append()
    except rlog.StorageFailed:
        return
    except rlog.OutcomeUnknown:
        pass
    tell(Wrong(f"{when} the server goes on writing"))


def _writable() -> bool:
    try:
        fd = os.open(f"{DISK}/probe", os.O_CREAT | os.O_WRONLY)
        os.fsync(fd)
        os.close(fd)
    except OSError:
        return False
    return True

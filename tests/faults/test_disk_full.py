"""Promise 8: a full disk loses nothing. Reads and commits go on; appends resume with the space.

On file systems of 16 MiB that are really full. Who fills them is in turn somebody else's file,
which goes again, and the log itself, which is trimmed. While there is no space, more is committed
than the journal holds: so there have to be checkpoints. All without a restart, but for the turns in
which the server is stopped or killed while the disk is full, and has to serve what it has.
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Final

import pytest

import rlog_client as rlog
from rlog.files import Disk
from tests.e2e.history import payload
from tests.e2e.serving import eventually

from .disks import KINDS, Ballast, Unavailable, free_bytes, mounted
from .work import CONSUMER, Ledger, said_ended

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.server_process import ServerProcess

DISK_BYTES: Final = 16 << 20
JOURNAL: Final = ("--journal-file-size", "256KiB")
NAMES: Final = ("filled", "beside")
CYCLES: Final = 2  # of one kind of disk,
CYCLES_LONG: Final = 50
COMMITS: Final = 200  # while it is full: some journal files' worth


@pytest.fixture(params=KINDS)
def disk(request: pytest.FixtureRequest, data_dir: Path) -> Iterator[Path]:
    try:
        with mounted(request.param, data_dir.with_name("disk"), DISK_BYTES) as at:
            (at / "data").mkdir()
            # What the server says is kept beside this name, and so on another disk.
            data_dir.symlink_to(at / "data")
            yield at
    except Unavailable as error:
        pytest.skip(f"no file system can be mounted here: {error}")


class Customer:
    """One client of a server whose disk is full at times."""

    def __init__(self, client: rlog.Client, ledger: Ledger, life: int) -> None:
        self.log = client.log("filled", create=True, file_roll_size=1 << 20)
        self.beside = client.log("beside", create=True, file_roll_size=64 << 10)
        self.ledger = ledger
        self._life = life
        self._number = 0

    def append(self, log: rlog.Log, size: int) -> bool:
        """Whether there was space."""
        value = payload(f"a{self._life}", self._number, size)
        self._number += 1
        self.ledger.sends(log.name, [value])
        try:
            self.ledger.acknowledges(log.name, log.append(value), [value])
        except rlog.DiskFull:
            self.ledger.refuses(log.name, [value])
            return False
        return True

    def append_some(self, count: int) -> None:
        """Small ones, while there is space."""
        values = [payload(f"s{self._life}", number, 500) for number in range(count)]
        self.ledger.sends(self.log.name, values)
        for at in range(0, count, 10):
            some = values[at : at + 10]
            self.ledger.acknowledges(self.log.name, self.log.append_many(some).first, some)

    def fill(self, size: int) -> None:
        """Until this log gets no more."""
        for _ in range(2 * DISK_BYTES // size):
            if not self.append(self.log, size):
                return
        raise AssertionError("more was appended than the disk holds")

    def commit(self, count: int) -> None:
        """One at a time; each has to be acknowledged."""
        ledger, name = self.ledger, self.log.name

        def handle(record: rlog.Record) -> None:
            ledger.serves(name, record, wrong)
            ledger.asked[name] = max(ledger.asked[name], record.offset + 1)

        wrong: list[str] = []
        with self.log.consumer(CONSUMER, block=False, takeover=True, on_out_of_range="oldest") as c:
            if self.log.info().end - c.committed < count:
                c.seek(rlog.OLDEST)  # the whole log was handled: begin anew
                ledger.acknowledged[name] = 0
            ledger.epochs[name] = c.epoch
            for number in range(count):
                try:
                    assert c.process(handle, limit=1) == 1
                except rlog.DiskFull as error:
                    raise AssertionError(f"commit {number} was refused: {error}") from error
            ledger.acknowledged[name] = c.committed
        assert wrong == []

    def read(self) -> None:
        """All that there is, once more."""
        wrong: list[str] = []
        for log in (self.log, self.beside):
            offsets = []
            for record in log.reader(rlog.OLDEST, block=False):
                offsets.append(record.offset)
                self.ledger.serves(log.name, record, wrong)
            info = log.info()
            assert offsets == list(range(info.first, info.end))
        assert wrong == []

    def resume(self, log: rlog.Log) -> None:
        """Appends go on by themselves."""
        eventually(lambda: self.append(log, 1000), "there is space again")


@pytest.mark.patience(1800)
def test_a_full_disk_refuses_appends_alone_and_they_resume_with_the_space(
    start_server: Callable[..., ServerProcess],
    data_dir: Path,
    disk: Path,
    long: bool,
    seed: int,
    record_property: Callable[[str, object], None],
) -> None:
    chance = random.Random(seed)
    ballast, ledger = Ballast(disk / "ballast"), Ledger(*NAMES)
    server = start_server(data_dir, *JOURNAL)
    cycles = CYCLES_LONG if long else CYCLES
    for cycle in range(cycles):
        with rlog.connect(server.url, timeout=30.0) as client:
            customer = Customer(client, ledger, cycle)
            customer.append_some(COMMITS)
            if cycle % 2 == 0:
                ballast.take_all()
            customer.fill(chance.choice((300, 5000) if cycle % 2 == 0 else (30_000, 200_000)))
            customer.commit(COMMITS)
            customer.read()
            assert not said_ended(server.log()), server.log()
        if cycle % 5 == 1:
            # Full as it is.
            (server.kill if chance.random() < 0.5 else server.stop)()
            server = start_server(data_dir, *JOURNAL)
        with rlog.connect(server.url, timeout=30.0) as client:
            again = Customer(client, ledger, cycles + cycle)
            again.read()
            if cycle % 2 == 0:
                ballast.give_back()
            else:
                again.log.trim(rlog.last(10))
            again.resume(again.log)
            again.resume(again.beside)
            print(cycle, free_bytes(disk), dict(ledger.counts))
    assert server.stop() == 0, server.log()
    server = start_server(data_dir, *JOURNAL)
    with rlog.connect(server.url, timeout=30.0) as client:
        assert ledger.check(client, NAMES) == []
    record_property("times the disk was full", cycles)


def test_an_allocation_that_fails_takes_nothing(disk: Path) -> None:
    file = Disk(str(disk)).create("file")
    file.write(0, [bytes(5000)])
    before = free_bytes(disk)
    with pytest.raises(OSError, match="No space left"):
        file.allocate(5000, DISK_BYTES)
    assert (file.size(), free_bytes(disk)) == (5000, before)

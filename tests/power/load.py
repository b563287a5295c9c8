"""The load, in the guest: clients of all kinds on logs of all policies, who tell what they learn.

Small segments and small journal files: rolls, checkpoints, recycled journal files and trims come
many times a second.
"""

from __future__ import annotations

import contextlib
import itertools
import threading
import time
import traceback
from collections import deque
from functools import partial
from random import Random
from typing import TYPE_CHECKING, Any, Final

import rlog_client as rlog

from .telling import (
    Acknowledged,
    Appended,
    Broke,
    Claimed,
    Committed,
    Committing,
    Created,
    Creating,
    Cursor,
    Deleted,
    Deleting,
    Sending,
    Served,
    Shown,
    Transacting,
    Trimmed,
    Trimming,
    Wrong,
    digest,
    payload,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from .telling import Event

_ROLL_BYTES: Final = 32 << 10
LOGS: Final[dict[str, rlog.LogOptions]] = {
    "owned": {"sync": "always", "file_roll_size": _ROLL_BYTES},
    "periodic": {"sync": "periodic:20ms", "file_roll_size": _ROLL_BYTES},
    "bytes": {"sync": "bytes:64KiB", "file_roll_size": 16 << 10, "max_total_bytes": 256 << 10},
    "never": {"sync": "never", "file_roll_size": _ROLL_BYTES},
    "out": {"sync": "always", "file_roll_size": _ROLL_BYTES},
    "failing": {"sync": "always", "file_roll_size": _ROLL_BYTES},  # see ``failing``
}
SIZES: Final = (24, 24, 200, 1000, 5000, 20_000)  # of a value; a page is 4096
_BATCH_BYTES: Final = 48 << 10  # so that it fits into a small journal file
_KEPT_RECORDS: Final = 150  # of a log that is trimmed by hand
_TOLD_MAX: Final = 60  # digests on one line
_SYNCING: Final = ("own", "move", "trim", "scratch")
_REQUEST_SECONDS: Final = 0.5  # then a client of a server that was killed gives up

# What a client meets whose server was killed, or who was too slow for another's timeout.
_ENDS: Final = (rlog.ConnectionLost, rlog.OutcomeUnknown, rlog.TimedOut, rlog.Fenced, rlog.Busy)


def make(client: rlog.Client, tell: Callable[[Event], None], name: str, **options: Any) -> rlog.Log:
    tell(Creating(name))
    log = client.log(name, create=True, **options)
    tell(Created(name))
    return log


def tell_served(tell: Callable[[Event], None], log: str, records: Sequence[rlog.Record]) -> None:
    for begin in range(0, len(records), _TOLD_MAX):
        some = records[begin : begin + _TOLD_MAX]
        tell(Served(log, some[0].offset, [digest(record.value) for record in some]))


def show(client: rlog.Client, tell: Callable[[Event], None]) -> None:
    """Read everything there is, and tell it."""
    for each in client.logs():
        log = client.log(each.name)
        while True:
            info = log.info()
            records = list(log.reader(rlog.OLDEST, block=False))
            if (now := log.info()).first == info.first:  # else it was trimmed meanwhile
                break
        if [record.offset for record in records] != list(range(now.first, now.end)):
            tell(Wrong(f"{each.name}: {len(records)} records in {now.first} to {now.end}"))
        tell_served(tell, each.name, records)
        cursors = {cursor.id: cursor.committed for cursor in log.cursors()}
        tell(Shown(each.name, now.first, now.end, cursors))


class Load:
    """All who work on one life of a server; they end with it. ``life``: a name of its own.

    ``unsynced``: only those who leave it to the server when to sync. (One who does not takes along
    whatever was written before.)
    """

    def __init__(
        self, url: str, tell: Callable[[Event], None], life: str, seed: int, *, unsynced: bool
    ) -> None:
        self._url = url
        self._tell = tell
        self._life = life
        self._over = False
        self._sources: list[rlog.Source] = []  # they would wait for the next life
        self._threads = [
            threading.Thread(
                target=self._run, args=(work, f"{name}{life}", f"{seed} {name} {life}")
            )
            for name, work in {
                "own": self._own,
                "ingest": self._ingest,
                "p": partial(self._append, "periodic"),
                "b": partial(self._append, "bytes"),
                "n": partial(self._append, "never"),
                "move": self._move,
                "work": self._work,
                "watch": self._watch,
                "trim": self._trim,
                "scratch": self._make_and_delete,
            }.items()
            if not (unsynced and name in _SYNCING)
        ]

    def begin(self) -> None:
        for thread in self._threads:
            thread.start()

    def end(self) -> None:
        """Behind the end of the server."""
        self._over = True
        for source in self._sources:
            source.stop()
        for thread in self._threads:
            thread.join(60.0)
            assert not thread.is_alive(), "a client hangs"

    def _run(self, work: Callable[[rlog.Client, Random, str], None], name: str, seed: str) -> None:
        chance = Random(seed)
        for connection in itertools.count():
            if self._over:
                return
            try:
                with rlog.connect(self._url, timeout=_REQUEST_SECONDS) as client:
                    # What an old connection sent may arrive behind what the new one sends: two
                    # senders, for all that can be said of their order.
                    work(client, chance, f"{name}.{connection}")
            except _ENDS:
                continue
            except rlog.RlogError as error:
                self._tell(Wrong(f"{name}: {type(error).__name__}: {error}"))
                return
            except Exception:
                self._tell(Broke(traceback.format_exc()))
                return

    # --- producers ----------------------------------------------------------------------------

    def _own(self, client: rlog.Client, chance: Random, sender: str) -> None:
        """The exclusive producer."""
        log = client.log("owned")
        with log.producer(
            exclusive=True, takeover=True, linger=0.0, batch_bytes=16 << 10, buffer_bytes=64 << 10
        ) as producer:
            self._send(log.name, producer, sender, 0, chance)

    def _ingest(self, client: rlog.Client, chance: Random, sender: str) -> None:
        """The named one, who goes on behind what was accepted of it: nothing of it comes twice."""
        log = client.log("periodic")
        with log.producer(name="ingest", linger=0.0, batch_bytes=8 << 10) as producer:
            self._send(log.name, producer, "ingest", producer.last_sequence + 1, chance)

    def _send(
        self, log: str, producer: rlog.Producer, sender: str, first: int, chance: Random
    ) -> None:
        """Many records in flight. A named producer's numbers are its sequences."""
        waiting: deque[tuple[int, int, rlog.Pending]] = deque()

        def settle(keep: int) -> None:
            while len(waiting) > keep:
                number, size, pending = waiting.popleft()
                receipt = pending.receipt()
                self._tell(
                    Acknowledged(
                        log, sender, number, [size], receipt.first, receipt.level == "synced"
                    )
                )

        try:
            for number in itertools.count(first):
                if self._over:
                    break
                size = chance.choice(SIZES)
                self._tell(Sending(log, sender, number, [size]))
                value = payload(sender, number, size)
                waiting.append((number, size, producer.send(value)))
                settle(chance.choice((0, 10, 30)))
        finally:
            # Some were answered before the end, and those count as well.
            while waiting:
                with contextlib.suppress(rlog.RlogError):
                    settle(0)

    def _append(self, name: str, client: rlog.Client, chance: Random, sender: str) -> None:
        """Batches, one at a time."""
        log = client.log(name)
        number = 0
        while not self._over:
            sizes = [chance.choice(SIZES) for _ in range(chance.choice((1, 1, 2, 5)))]
            while sum(sizes) > _BATCH_BYTES:
                sizes.pop()
            self._tell(Sending(name, sender, number, sizes, together=True))
            values = [payload(sender, n, size) for n, size in enumerate(sizes, number)]
            receipt = log.append_many(values)
            synced = receipt.level == "synced"
            self._tell(Acknowledged(name, sender, number, sizes, receipt.first, synced))
            number += len(sizes)

    # --- consumers ----------------------------------------------------------------------------

    def _claim(self, log: rlog.Log, name: str) -> rlog.Consumer:
        # Who held it in the last life has first right for a while, and will not come.
        consumer = log.consumer(name, takeover=True, on_out_of_range="oldest")
        self._sources.append(consumer)
        self._tell(Claimed(log.name, name, consumer.epoch, consumer.committed))
        return consumer

    def _move(self, client: rlog.Client, chance: Random, sender: str) -> None:
        """From ``owned`` to ``out``: records and cursor in one transaction."""
        log = client.log("owned")
        with self._claim(log, "mover") as consumer:
            following, number = consumer.committed, 0
            while not self._over:
                records = consumer.poll(chance.choice((1, 5, 20)), timeout=0.2)
                if not records:
                    continue
                if records[0].offset != following:
                    self._tell(Wrong(f"owned: {records[0].offset} came, {following} was due"))
                following = records[-1].offset + 1
                tell_served(self._tell, log.name, records)
                appends = [
                    Appended("out", sender, n, chance.choice(SIZES[:3]))
                    for n in range(number, number + chance.choice((1, 2)))
                ]
                number += len(appends)
                cursor = Cursor(log.name, "mover", following)
                self._tell(Transacting(appends, [cursor]))
                with client.transaction() as transaction:
                    for each in appends:
                        transaction.append("out", payload(sender, each.number, each.size))
                    transaction.commit(consumer, records[-1])
                for each, receipt in zip(appends, transaction.receipts, strict=True):
                    synced = receipt.level == "synced"
                    self._tell(
                        Acknowledged("out", sender, each.number, [each.size], receipt.first, synced)
                    )
                self._tell(Committed(cursor, synced=True))

    def _work(self, client: rlog.Client, chance: Random, sender: str) -> None:
        """Reads and commits, a few at a time."""
        log = client.log("periodic")
        with self._claim(log, "worker") as consumer:
            while not self._over:
                if records := consumer.poll(chance.choice((1, 5, 50)), timeout=0.2):
                    tell_served(self._tell, log.name, records)
                    cursor = Cursor(log.name, "worker", records[-1].offset + 1)
                    self._tell(Committing(cursor))
                    consumer.commit(records[-1])
                    self._tell(Committed(cursor, synced=False))  # by the policy

    def _watch(self, client: rlog.Client, chance: Random, sender: str) -> None:
        """Readers: what they have seen has to stay."""
        readers = {
            name: client.log(name).reader(rlog.LATEST, on_out_of_range="oldest")
            for name in ("bytes", "never", "out")
        }
        self._sources += readers.values()
        while not self._over:
            for name, reader in readers.items():
                tell_served(self._tell, name, reader.poll(timeout=0.01))

    # --- upkeep -------------------------------------------------------------------------------

    def _trim(self, client: rlog.Client, chance: Random, sender: str) -> None:
        while not self._over:
            time.sleep(chance.uniform(0.02, 0.1))
            for name in ("owned", "periodic", "never"):
                log = client.log(name)
                info = log.info()
                before = info.end - _KEPT_RECORDS
                if name == "owned":
                    committed = [each.committed for each in log.cursors()]
                    before = min([before, *committed]) if committed else 0
                if before > info.first:
                    self._tell(Trimming(name, before))
                    self._tell(Trimmed(name, log.trim(rlog.offset(before))))

    def _make_and_delete(self, client: rlog.Client, chance: Random, sender: str) -> None:
        """Logs come and go."""
        for each in client.logs():
            if each.name not in LOGS:
                self._delete(client.log(each.name))
        for number in itertools.count():
            if self._over:
                return
            log = make(client, self._tell, f"{sender}-{number}", sync="always")
            sizes = [chance.choice(SIZES), chance.choice(SIZES)]
            self._tell(Sending(log.name, log.name, 0, sizes, together=True))
            values = [payload(log.name, n, size) for n, size in enumerate(sizes)]
            receipt = log.append_many(values)
            self._tell(Acknowledged(log.name, log.name, 0, sizes, receipt.first, synced=True))
            time.sleep(chance.uniform(0.0, 0.1))
            self._delete(log)

    def _delete(self, log: rlog.Log) -> None:
        self._tell(Deleting(log.name))
        log.delete()
        self._tell(Deleted(log.name))

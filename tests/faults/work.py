"""Clients at work on a server that is about to meet a fault, and the ledger of what they were told.

They append in several ways to logs of several policies, roll, trim, commit and read, and go on
whatever they are answered, until they are told to stop. Every payload is unique; the ledger holds
the server to every answer it ever gave:

- acknowledged: it is in the log, at that offset, for ever (or trimmed, where a log is);
- refused (a full disk, a failed one): it is in no log, ever;
- unknown: it is there once or not at all, and of a batch all or nothing.
"""

from __future__ import annotations

import copy
import re
import threading
import time
from collections import defaultdict
from typing import TYPE_CHECKING, Final

import rlog_client as rlog
from tests.e2e.history import History, payload
from tests.e2e.serving import eventually

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

PLAIN: Final = "plain"  # synced at once; and consumed
LATER: Final = "later"  # answered before its sync
SHORT: Final = "short"  # trimmed all the time, so that files go
LOGS: Final = {
    PLAIN: rlog.LogOptions(sync="always", file_roll_size=32 << 10),
    LATER: rlog.LogOptions(sync="periodic:20ms", file_roll_size=64 << 10),
    SHORT: rlog.LogOptions(sync="always", file_roll_size=8 << 10, max_total_bytes=32 << 10),
}
CONSUMER: Final = "c"
REQUEST_SECONDS: Final = 20.0  # only to find out that it hangs
PAUSE_SECONDS: Final = 0.01  # of a client that was refused
END_SECONDS: Final = 60.0


class Ledger(History):
    """A history that knows refusals, batches and trims as well. ``trimmed``: logs that are."""

    def __init__(self, *trimmed: str) -> None:
        super().__init__()
        self.trimmed = trimmed or (SHORT,)
        self.refused: dict[str, set[bytes]] = defaultdict(set)
        self.batches: dict[str, list[Sequence[bytes]]] = defaultdict(list)
        self.synced: dict[str, int] = defaultdict(int)  # log -> the end that was answered as synced

    def copy(self) -> Ledger:
        """As it stands: two lives may follow upon one."""
        other = Ledger()
        kept = {name: value for name, value in vars(self).items() if name != "_lock"}
        vars(other).update(copy.deepcopy(kept))
        return other

    def sends_batch(self, log: str, values: Sequence[bytes]) -> None:
        self.sends(log, values)
        self.batches[log].append(values)

    def refuses(self, log: str, values: Sequence[bytes]) -> None:
        self.refused[log].update(values)
        self.counts["refused"] += len(values)

    def check(
        self, client: rlog.Client, names: Sequence[str] = tuple(LOGS), consumer: str = CONSUMER
    ) -> list[str]:
        """What is wrong with what a server serves after it was started again."""
        return super().check(client, [n for n in names if n in _names(client)], consumer)

    def _check_log(self, name: str, there: dict[int, bytes], wrong: list[str]) -> None:
        first = min(there, default=0)
        if name not in self.trimmed and first != 0:
            wrong.append(f"{name} begins at {first}, and nobody trimmed it")
        for offset in [offset for offset in self.kept[name] if offset < first]:
            del self.kept[name][offset]
        super()._check_log(name, there, wrong)
        values = set(there.values())
        wrong += [f"{name}: {v[:20]!r} was refused" for v in self.refused[name] & values]
        for batch in self.batches[name]:
            found = sum(value in values for value in batch)
            if 0 < found < len(batch) and first == 0:
                wrong.append(f"{name}: {found} records of a batch of {len(batch)}")

    def check_live(self, client: rlog.Client, *, all_of_it: bool) -> list[str]:
        """What is wrong with what a server serves whose disk failed: nothing is another than
        before, and all that it called synced is there (``all_of_it``).
        """
        wrong: list[str] = []
        for name in [n for n in LOGS if n in _names(client)]:
            log = client.log(name)
            info = log.info()
            if all_of_it and info.synced_end < self.synced[name]:
                wrong.append(f"{name} ends at {info.synced_end}, not {self.synced[name]}")
            offsets = []
            for record in log.reader(rlog.OLDEST, block=False):
                offsets.append(record.offset)
                self.serves(name, record, wrong)
            if offsets != list(range(info.first, info.synced_end)):
                wrong.append(f"{name}: {len(offsets)} records of {info.first}..{info.synced_end}")
        return wrong


def _names(client: rlog.Client) -> set[str]:
    return {info.name for info in client.logs()}


class Work:
    """The clients of one life of a server. ``progress``: how many answers they have had.

    ``timeout``: of a request, in seconds: how long they go on after a server that was killed.
    """

    def __init__(
        self, url: str, ledger: Ledger, life: int, *, timeout: float = REQUEST_SECONDS
    ) -> None:
        self.progress = 0
        self._url = url
        self._ledger = ledger
        self._life = life
        self._timeout = timeout
        self._over = threading.Event()
        self._surprises: list[str] = []
        self._sources: list[rlog.Source] = []
        tasks: list[tuple[Callable[..., None], str]] = [
            (self._append, PLAIN),
            (self._append, SHORT),
            (self._produce, LATER),
            (self._consume, PLAIN),
        ]
        self._threads = [
            threading.Thread(target=self._run, args=task, name=f"{task[0].__name__} {task[1]}")
            for task in tasks
        ]

    def begin(self) -> None:
        for thread in self._threads:
            thread.start()

    def go_on(self, answers: int) -> None:
        """Until they have had so many more answers, of whatever kind."""
        goal = self.progress + answers
        eventually(
            lambda: self.progress >= goal or self._broken, f"{answers} more answers", END_SECONDS
        )

    def end(self) -> list[str]:
        """What went wrong."""
        self._over.set()
        deadline = time.monotonic() + END_SECONDS
        while any(thread.is_alive() for thread in self._threads):
            # Until it has begun to wait, a source forgets that it was stopped.
            for source in list(self._sources):
                source.stop()
            time.sleep(0.005)
            hanging = [thread.name for thread in self._threads if thread.is_alive()]
            assert time.monotonic() < deadline, f"hangs: {hanging}"
        return self._surprises

    @property
    def _broken(self) -> bool:
        return not all(thread.is_alive() for thread in self._threads)

    def _run(self, task: Callable[[rlog.Client, str], None], name: str) -> None:
        try:
            with rlog.connect(self._url, timeout=self._timeout) as client:
                while not self._over.is_set():
                    try:
                        task(client, name)
                    except (rlog.StorageFailed, rlog.DiskFull, rlog.OutcomeUnknown) as error:
                        self._met(error)
        except (rlog.StorageFailed, rlog.OutcomeUnknown, rlog.ConnectionLost):
            pass  # what could not be given back at the end
        except Exception as error:
            self._surprises.append(f"{task.__name__} {name}: {error!r}")

    def _met(self, error: rlog.RlogError) -> None:
        self.progress += 1
        self._ledger.counts[type(error).__name__] += 1
        time.sleep(PAUSE_SECONDS)

    def _append(self, client: rlog.Client, name: str) -> None:
        """One batch at a time, whatever becomes of the one before."""
        log, ledger, number = client.log(name, create=True, **LOGS[name]), self._ledger, 0
        producer = f"a{self._life}-{threading.get_native_id()}-{time.monotonic_ns()}"
        while not self._over.is_set():
            values = [payload(producer, number + i, 700) for i in range(1 + number % 3)]
            number += len(values)
            ledger.sends_batch(name, values)
            try:
                receipt = log.append_many(values)
            except (rlog.StorageFailed, rlog.DiskFull) as error:
                ledger.refuses(name, values)
                self._met(error)
            except rlog.OutcomeUnknown as error:
                self._met(error)
            else:
                self.progress += 1
                ledger.acknowledges(name, receipt.first, values)
                if receipt.level == "synced":
                    ledger.synced[name] = max(ledger.synced[name], receipt.end)

    def _produce(self, client: rlog.Client, name: str) -> None:
        """Many at once; its first failure is its end, and the next one begins."""
        log, ledger, number = client.log(name, create=True, **LOGS[name]), self._ledger, 0
        producer_name = f"p{self._life}-{time.monotonic_ns()}"
        with log.producer(linger=0.0, batch_bytes=4 << 10, buffer_bytes=32 << 10) as producer:
            while not self._over.is_set():
                sent: list[tuple[bytes, rlog.Pending]] = []
                try:
                    for _ in range(20):
                        value = payload(producer_name, number, 200)
                        number += 1
                        ledger.sends(name, [value])
                        sent.append((value, producer.send(value)))
                    producer.flush()
                finally:
                    for value, pending in sent:
                        self._settle(name, value, pending)

    def _settle(self, name: str, value: bytes, pending: rlog.Pending) -> None:
        try:
            self._ledger.acknowledges(name, pending.result(), [value])
            self.progress += 1
        except (rlog.StorageFailed, rlog.DiskFull):
            self._ledger.refuses(name, [value])
        except rlog.OutcomeUnknown:
            self._ledger.counts["unknown"] += 1

    def _consume(self, client: rlog.Client, name: str) -> None:
        log, ledger = client.log(name, create=True, **LOGS[name]), self._ledger
        wrong = self._surprises
        with log.consumer(CONSUMER, takeover=True) as consumer:
            ledger.epochs[name] = consumer.epoch
            following = consumer.committed
            if following < ledger.acknowledged[name]:
                wrong.append(f"{name}: begins at {following}, before its commit")

            def handle(record: rlog.Record) -> None:
                nonlocal following
                if record.offset != following:
                    wrong.append(f"{name}: {record.offset} came where {following} was due")
                following = record.offset + 1
                ledger.serves(name, record, wrong)
                ledger.asked[name] = max(ledger.asked[name], following)

            self._sources.append(consumer)
            while not self._over.is_set():
                consumer.process(handle, limit=5, in_flight=4)
                ledger.acknowledged[name] = consumer.committed
                ledger.counts["committed"] += 1
                self.progress += 1


def said_ended(text: str) -> bool:
    """Whether a server's log says that it writes no more."""
    return re.search(r"CRITICAL .*writing has ended", text) is not None

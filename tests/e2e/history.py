"""What clients were told, seen and promised, against what a server serves after it was killed.

Every payload is unique: its producer, and its number among that producer's. A violation is a
sentence; no sentences, no violation. After a kill of the process the page cache is whole, so what
was answered ``written`` is as safe as what was answered ``synced``.
"""

from __future__ import annotations

import threading
from collections import defaultdict
from typing import TYPE_CHECKING

import rlog_client as rlog

if TYPE_CHECKING:
    from collections.abc import Sequence


def payload(producer: str, number: int, size: int) -> bytes:
    return f"{producer} {number} ".encode().ljust(size, b".")


def producer_of(value: bytes) -> tuple[str, int]:
    producer, number = value.split(b" ", 2)[:2]
    return producer.decode(), int(number)


class History:
    """Told by several threads; read when they have ended."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.sent: dict[str, set[bytes]] = defaultdict(set)  # log -> what was ever sent to it
        self.kept: dict[str, dict[int, bytes]] = defaultdict(dict)  # acknowledged, or served
        self.acknowledged: dict[str, int] = defaultdict(int)  # log -> the highest commit answered
        self.asked: dict[str, int] = defaultdict(int)  # log -> the highest commit sent
        self.epochs: dict[str, int] = defaultdict(int)
        self.handled: dict[str, list[int]] = defaultdict(list)  # of the present life, in order
        self.counts: dict[str, int] = defaultdict(int)

    def sends(self, log: str, values: Sequence[bytes]) -> None:
        with self._lock:
            self.sent[log].update(values)

    def acknowledges(self, log: str, first: int, values: Sequence[bytes]) -> None:
        with self._lock:
            self.kept[log].update(enumerate(values, first))
            self.counts["acknowledged"] += len(values)

    def serves(self, log: str, record: rlog.Record, wrong: list[str]) -> None:
        with self._lock:
            before = self.kept[log].setdefault(record.offset, record.value)
        if before != record.value:
            wrong.append(f"{log}/{record.offset} was {before[:20]!r}, now {record.value[:20]!r}")

    def check(self, client: rlog.Client, names: Sequence[str], consumer: str) -> list[str]:
        """What is wrong with what the server serves now. What it serves is kept from now on."""
        wrong: list[str] = []
        for name in names:
            log = client.log(name)
            info = log.info()
            records = list(log.reader(rlog.OLDEST, block=False))
            if [r.offset for r in records] != list(range(info.first, info.end)):
                wrong.append(f"{name}: {len(records)} records in {info.first} to {info.end}")
            self._check_log(name, {r.offset: r.value for r in records}, wrong)
            self._check_consumer(log, consumer, info.end, wrong)
        return wrong

    def _check_log(self, name: str, there: dict[int, bytes], wrong: list[str]) -> None:
        last: dict[str, int] = {}
        for offset, value in there.items():
            if value not in self.sent[name]:
                wrong.append(f"{name}/{offset} was never sent: {value[:20]!r}")
                continue
            producer, number = producer_of(value)
            if number <= last.get(producer, -1):
                wrong.append(f"{name}/{offset}: {producer} {number} behind {last[producer]}")
            last[producer] = number
        for offset, value in self.kept[name].items():
            if offset not in there:
                wrong.append(f"{name}/{offset} is lost: {value[:20]!r}")
            elif there[offset] != value:
                wrong.append(f"{name}/{offset} was {value[:20]!r}, is {there[offset][:20]!r}")
        self.kept[name].update(there)

    def _check_consumer(self, log: rlog.Log, consumer: str, end: int, wrong: list[str]) -> None:
        name = log.name
        try:
            committed = log.cursor(consumer).info().committed
        except rlog.NotFound:
            committed = 0
            if self.epochs[name]:
                wrong.append(f"{name}: the consumer is lost")
        if not self.acknowledged[name] <= committed <= self.asked[name]:
            wrong.append(
                f"{name}: the cursor is at {committed}; acknowledged {self.acknowledged[name]}, "
                f"asked for {self.asked[name]}"
            )
        if committed > end:
            wrong.append(f"{name}: the cursor, {committed}, outlived the records, {end}")
        self.acknowledged[name] = committed

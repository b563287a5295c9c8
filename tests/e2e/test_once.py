"""Promise 18, under everything at once: each order makes one receipt, whoever gives up on what.

Three members bill the orders of one log, each by a transaction that commits the order and appends
its receipt. The receipts' log is small: it waits for a protected consumer that reads when it likes,
so that many transactions wait for space, for longer than some of these clients wait for an answer.
Meanwhile connections are cut, and the server is stopped, and killed. What is read in the end is
judged: one receipt of each order, in order where the consumer is.
"""

from __future__ import annotations

import contextlib
import random
import threading
import time
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest

import rlog
from rlog.testing import Server

if TYPE_CHECKING:
    from tests.report import RecordProperty

SECONDS_MAX = 120.0
UNSURE = (rlog.OutcomeUnknown, rlog.TimedOut, rlog.DiskFull, rlog.Conflict)
OUT: dict[str, Any] = {
    "max_total_bytes": 64 * 1024,
    "blocking_minimum_retention": 0.3,
    "file_roll_size": 4096,
    "protected": ["collect"],
}


class Run:
    """``seen``: the receipts, by offset. ``gave_up``: how often a member did, by the error."""

    def __init__(self, server: Server, seed: int, orders: int, *, shared: bool) -> None:
        self.server, self.orders, self.shared = server, orders, shared
        self.rng = random.Random(seed)
        self.seen: dict[int, bytes] = {}
        self.gave_up: Counter[str] = Counter()
        self.over = threading.Event()
        client = server.connect()
        client.log("out", create=True, **OUT)
        log = client.log("orders", create=True)
        log.append_many([b"%d" % number for number in range(orders)])

    def bill(self, timeout: float) -> None:
        def handle(record: rlog.Record) -> rlog.Verdict:
            return rlog.Commit(appends=[("out", record.value + b":" + bytes(1500))])

        standby, in_flight = not self.shared, self.rng.choice((1, 3))
        while not self.over.is_set():
            # (A member that was taken over from, or away for too long, begins anew.)
            with (
                contextlib.suppress(rlog.RlogError),
                rlog.connect(self.server.url, timeout=timeout) as client,
                client.log("orders").consumer(
                    "bill", shared=self.shared, standby=standby
                ) as consumer,
            ):
                while not self.over.is_set():
                    try:
                        consumer.process(handle, timeout=1.0, in_flight=in_flight)
                    except UNSURE as error:
                        self.gave_up[type(error).__name__] += 1
            time.sleep(0.02)

    def collect(self) -> None:
        def handle(record: rlog.Record) -> None:
            assert self.seen.setdefault(record.offset, record.value) == record.value

        while not self.over.is_set():
            with (
                contextlib.suppress(rlog.RlogError),
                rlog.connect(self.server.url) as client,
                client.log("out").consumer("collect") as consumer,
            ):
                while not self.over.is_set():
                    time.sleep(self.rng.random() * 1.5)
                    consumer.process(handle, timeout=0.05)

    def disturb(self) -> None:
        chosen = self.rng.random()
        if chosen < 0.3:
            self.server.cut()
        elif chosen < 0.4:
            self.server.crash()
            time.sleep(0.1)
            self.server.start()
        elif chosen < 0.45:
            self.server.restart()

    def run(self) -> list[int]:
        """The orders that have a receipt, in the order of these."""
        works = [(self.bill, (timeout,)) for timeout in (0.6, 1.5, 10.0)]
        threads = [threading.Thread(target=work, args=args) for work, args in works]
        threads.append(threading.Thread(target=self.collect))
        for thread in threads:
            thread.start()
        end = time.monotonic() + SECONDS_MAX
        try:
            while len(set(self.seen.values())) < self.orders and time.monotonic() < end:
                time.sleep(self.rng.random() * 1.5)
                self.disturb()
            time.sleep(1)  # for what should not come any more
        finally:
            self.over.set()
            for thread in threads:
                thread.join(30)
        assert not any(thread.is_alive() for thread in threads)
        return [int(self.seen[offset].split(b":")[0]) for offset in sorted(self.seen)]


def once(seed: int, orders: int, *, shared: bool) -> int:
    """How often a member gave up."""
    with Server(fsync=False, sync=("always", "periodic:0.2s")[seed % 2]) as server:
        run = Run(server, seed, orders, shared=shared)
        receipts = run.run()
    assert sorted(receipts) == list(range(orders)), f"seed {seed}"
    assert shared or receipts == sorted(receipts), f"seed {seed}"
    return sum(run.gave_up.values())


@pytest.mark.patience(180)
@pytest.mark.parametrize("shared", [False, True])
def test_each_order_makes_one_receipt_whoever_gives_up_while_it_waits_for_space(
    seed: int, shared: bool
) -> None:
    once(seed, 30, shared=shared)


@pytest.mark.slow
@pytest.mark.patience(180)
@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("number", range(20))
def test_of_many_orders_too(
    seed: int, number: int, shared: bool, record_property: RecordProperty
) -> None:
    record_property("transactions given up on", once(seed + number, 150, shared=shared))

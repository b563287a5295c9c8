"""How long does a small request of a second connection take, beside each kind of load?

A ping asks for nothing: no disk, no log. One is sent every few milliseconds over a connection of
its own while others append or consume, so the time is what the server's loop makes it wait (and, on
few cores, what the kernel does). How much the load did meanwhile is in a table of its own.
"""

from __future__ import annotations

import threading
import time
from functools import partial
from typing import TYPE_CHECKING, Final

import rlog_client as rlog
from rlog.cli import wire

from .crowd import Crowd, Gate
from .harness import Bench, Case, fill, percentile, percentiles, values
from .machine import MIB
from .server import Server

if TYPE_CHECKING:
    from collections.abc import Callable

    # Of one process of the load: records that it did, until it is over.
    Load = Callable[[str, Gate], int]

SIZE: Final = 100  # bytes of a record
PAUSE_SECONDS: Final = 0.002  # between two pings


def append(url: str, gate: Gate) -> int:
    column = values(SIZE, 10_000)
    count = 0
    with rlog.connect(url) as client, client.log("bulk").producer() as producer:
        gate.ready()
        while not gate.over:
            producer.extend(column)
            count += len(column)
    return count


def consume(url: str, gate: Gate) -> int:
    count = 0
    with rlog.connect(url) as client, client.log("bench").reader(rlog.OLDEST) as reader:
        gate.ready()
        while not gate.over:
            records = reader.poll(10_000)
            count += len(records)
            if not records:
                reader.seek(rlog.OLDEST)
    return count


def singles(clients: int) -> Load:
    """As many clients, a thread each, in one process: one synced append at a time."""

    def load(url: str, gate: Gate) -> int:
        counts = [0] * clients
        started = threading.Barrier(clients + 1)

        def one(number: int) -> None:
            value = values(SIZE, 1)[0]
            with rlog.connect(url, timeout=60.0) as client:
                log = client.log("single")
                started.wait()
                while not gate.over:
                    log.append(value)
                    counts[number] += 1

        threads = [threading.Thread(target=one, args=(number,)) for number in range(clients)]
        for thread in threads:
            thread.start()
        started.wait()
        gate.ready()
        for thread in threads:
            thread.join()
        return sum(counts)

    return load


LOADS: Final[dict[str, tuple[Load, int]]] = {
    "bulk append": (append, 1),
    "bulk consume": (consume, 1),
    "16 single appends": (singles(8), 2),
    "128 single appends": (singles(64), 2),
}


def pinged(server: Server, seconds: float) -> list[float]:
    """Seconds of each ping."""
    taken = []
    with rlog.connect(server.url) as client:
        over = time.monotonic() + seconds
        while (began := time.monotonic()) < over:
            wire.ping(client)
            taken.append(time.monotonic() - began)
            time.sleep(PAUSE_SECONDS)
    return taken


def beside(server: Server, load: Load, processes: int, seconds: float) -> list[float]:
    """p50 and p99 in µs, and records a second of the load."""
    with Crowd(lambda _number, gate: load(server.url, gate), processes) as crowd:
        began = crowd.go()
        taken = pinged(server, seconds)
        lasted = time.monotonic() - began
        count = sum(crowd.end())
    return [percentile(taken, 0.5) * 1e6, percentile(taken, 0.99) * 1e6, count / lasted]


def main() -> None:
    question = "How long does a small request of a second connection take, beside each load?"
    options = (("seconds", 2.0, "of each load, in one run"), ("mib", 64, "to be consumed"))
    with Bench(question, 5, *options) as bench, Server(bench.directory()) as server:
        seconds = bench.options.seconds
        with rlog.connect(server.url) as client:
            fill(client.log("bench", create=True), SIZE, bench.options.mib * MIB // SIZE)
            for name in ("bulk", "single"):
                # What is appended in bulk, minute after minute, is not to fill the disk.
                client.log(name, create=True, max_total_bytes=256 * MIB)
        cases = [percentiles("idle", partial(pinged, server, seconds), {0.5: None, 0.99: None})]
        for name, (load, processes) in LOADS.items():
            rows = (f"{name}, p50", f"{name}, p99", name)
            run = partial(beside, server, load, processes, seconds)
            cases.append(Case(dict.fromkeys(rows), run, {name: "records/s of the load"}))
        bench.run(f"a ping beside the load, {SIZE} B, sync always, loopback TCP", "µs", cases)


if __name__ == "__main__":
    main()

"""How many records a second does one log give to several consumers at the same time?

Each consumer has an ID, a connection and a process of its own, begins at the oldest record, reads
all of them in a `for` loop and commits as it goes. They begin together; the time is from then until
the last of them is done, so "each" is what the slowest got. On few cores it is the consumers who
share them: the server's own part is the processor time in the last table.
"""

from __future__ import annotations

import itertools
import time
from typing import TYPE_CHECKING, Final

import rlog_client as rlog

from .crowd import Crowd, Gate
from .harness import Bench, Case, fill
from .machine import MIB, used
from .server import Server

if TYPE_CHECKING:
    from collections.abc import Callable

SIZE: Final = 100  # bytes of a record
CONSUMERS: Final = (1, 4, 16)
COMMIT_EVERY: Final = 10_000
PROCESSOR: Final = "µs of processor time a record"
_ids: Final = itertools.count()


def consumed(server: Server, consumers: int, count: int) -> Callable[[], list[float]]:
    """Records a second, all together and each, and the server's µs of processor time a record."""
    run_id = 0

    def work(number: int, gate: Gate) -> float:
        with rlog.connect(server.url) as client:
            log = client.log("bench")
            gate.ready()
            with log.consumer(f"bench-{run_id}-{number}", block=False) as consumer:
                record = None
                for record in consumer:
                    if record.offset % COMMIT_EVERY == 0:
                        consumer.commit(record, wait=False)
                assert record is not None
                assert record.offset == count - 1
                consumer.commit(record)
                return time.monotonic()

    def run() -> list[float]:
        nonlocal run_id
        run_id = next(_ids)
        with Crowd(work, consumers) as crowd:
            before = used(server.pid)
            began = crowd.go()
            seconds = max(crowd.results()) - began
        cpu = used(server.pid) - before
        return [consumers * count / seconds, count / seconds, cpu / (consumers * count) * 1e6]

    return run


def main() -> None:
    question = "How many records a second does one log give to several consumers at the same time?"
    option = ("mib", 64, "of the log")
    with Bench(question, 5, option) as bench, Server(bench.directory()) as server:
        count = bench.options.mib * MIB // SIZE
        with rlog.connect(server.url) as client:
            fill(client.log("bench", create=True), SIZE, count)
        cases: list[Case] = []
        for consumers in CONSUMERS:
            run = consumed(server, consumers, count)
            rows = [f"{consumers:2} consumers, {name}" for name in ("together", "each", "server")]
            cases.append(Case(dict.fromkeys(rows), run, {rows[-1]: PROCESSOR}))
        title = f"{count:,} records of {SIZE} B to each, sync always, loopback TCP"
        bench.run(title, "records/s", cases)


if __name__ == "__main__":
    main()

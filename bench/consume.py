"""How many records a second can one client consume, as Record in a for loop?"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import rlog_client as rlog

from . import limits
from .harness import MIB, Bench, Case, Server, rate, values

if TYPE_CHECKING:
    from collections.abc import Callable

BYTES: Final = 128 * MIB  # of a case
COMMIT_EVERY: Final = 10_000


def fill(client: rlog.Client, size: int) -> rlog.Log:
    log = client.log(f"bench-{size}", create=True)
    column = values(size)
    with log.producer() as producer:
        for _ in range(BYTES // size // len(column)):
            producer.extend(column)
    return log


def read(log: rlog.Log, count: int) -> Callable[[], float]:
    def loop() -> None:
        seen = 0
        with log.reader(rlog.OLDEST, block=False) as reader:
            for record in reader:
                seen += len(record.value)
        assert seen

    return lambda: rate(count, loop)


def consume(log: rlog.Log, count: int) -> Callable[[], float]:
    def loop() -> None:
        with log.consumer("bench", block=False) as consumer:
            record = None
            for record in consumer:
                if record.offset % COMMIT_EVERY == 0:
                    consumer.commit(record, wait=False)
            assert record is not None
            consumer.commit(record)

    def run() -> float:
        found = rate(count, loop)
        log.cursor("bench").delete()
        return found

    return run


def main() -> None:
    question = "How many records a second can one client consume, as Record in a for loop?"
    with Bench(question, 7) as bench, Server(bench.directory()) as server:
        bench.pids = (server.pid,)
        with rlog.connect(server.url) as client:
            for size in (100, 1024):
                log = fill(client, size)
                count = log.info().end
                goal = "goal: 3,000,000" if size == 100 else ""
                cases = [
                    Case("reader", read(log, count), goal),
                    Case(f"consumer, commit every {COMMIT_EVERY:,}", consume(log, count), goal),
                ]
                title = f"consume {count:,} records of {size} B, sync always, loopback TCP"
                bench.run(title, "records/s", [*cases, *limits.consuming(size)])


if __name__ == "__main__":
    main()

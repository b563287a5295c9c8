"""How many records a second does process() hand to a handler and commit?"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import rlog_client as rlog

from . import limits
from .harness import Bench, Case, Server, percentile, rate, values

if TYPE_CHECKING:
    from collections.abc import Callable

COUNTS: Final = {1: 2_000, 100: 100_000, 1000: 500_000}  # records of one run, by in_flight


def process(log: rlog.Log, in_flight: int) -> Callable[[], float]:
    count = COUNTS[in_flight]

    def handle(_record: rlog.Record) -> None:
        pass

    def run() -> float:
        with log.consumer("bench") as consumer:
            consumer.seek(rlog.OLDEST)
            found = rate(count, lambda: consumer.process(handle, limit=count, in_flight=in_flight))
        return found

    return run


def main() -> None:
    question = "How many records a second does process() hand to a handler and commit?"
    with Bench(question, 7) as bench, Server(bench.directory()) as server:
        bench.pids = (server.pid,)
        ping = limits.PingPong()
        write = limits.SyncedWrite(bench.directory("limit"), limits.REQUEST_BYTES)

        def least() -> float:
            """Ping-pongs with a synced write each, per second."""
            return 1 / sum(percentile(limits.times(500, x.once), 0.5) for x in (ping, write))

        with rlog.connect(server.url) as client:
            log = client.log("bench", create=True)
            with log.producer() as producer:
                producer.extend(values(100) * 10)
            cases = [Case(f"in_flight={count}", process(log, count)) for count in COUNTS]
            limit = Case("limit: ping-pong and synced write", least)
            title = "process of 100 B, an empty handler, sync always, loopback TCP"
            bench.run(title, "records/s", [*cases, limit])
        ping.close()


if __name__ == "__main__":
    main()

"""How many records a second does process() hand to a handler, and commit when it returned?

The handler does nothing. Commits are cumulative: with one in flight, each record has its own; with
more, one commit, and its sync, is for all that were handled since the one before. Beside it: one
append of a record of the same size at a time, synced, by the same client, which is one request, one
sync and one answer as well.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import rlog_client as rlog

from . import limits
from .harness import Bench, Goal, case, fill, per_second, percentile, values
from .server import Server

if TYPE_CHECKING:
    from collections.abc import Callable

SIZE: Final = 100  # bytes of a record
SHARES: Final = {1: 0.004, 100: 0.2, 1000: 1.0}  # of the records, in one run, by in_flight
APPEND: Final = "one synced append at a time"
GOALS: Final = {1: Goal(0.7, of=(APPEND,)), 1000: Goal(400_000)}


def process(log: rlog.Log, in_flight: int, count: int) -> Callable[[], float]:
    def handle(_record: rlog.Record) -> None:
        pass

    def run() -> float:
        with log.consumer("bench") as consumer:
            consumer.seek(rlog.OLDEST)
            found = per_second(
                count, lambda: consumer.process(handle, limit=count, in_flight=in_flight)
            )
        return found

    return run


def main() -> None:
    question = "How many records a second does process() hand to a handler and commit?"
    option = ("count", 500_000, "records of a run, fewer with less in flight")
    with Bench(question, 7, option) as bench, Server(bench.directory()) as server:
        count = bench.options.count
        write = limits.Write(bench.directory("limit"), limits.REQUEST_BYTES)

        with limits.PingPong() as ping, rlog.connect(server.url) as client:
            log, other = client.log("bench", create=True), client.log("other", create=True)
            fill(log, SIZE, count)
            value = values(SIZE, 1)[0]

            def least() -> float:
                """Ping-pongs with a synced write each, per second."""
                return 1 / sum(percentile(limits.each(500, x.once), 0.5) for x in (ping, write))

            def append() -> float:
                singles = int(count * SHARES[1])
                return per_second(
                    singles, lambda: limits.each(singles, lambda: other.append(value))
                )

            cases = [
                case(f"in_flight={some:,}", process(log, some, int(count * share)), GOALS.get(some))
                for some, share in SHARES.items()
            ]
            title = f"process of {SIZE} B, an empty handler, sync always, loopback TCP"
            limit = case("limit: ping-pong and synced write", least)
            bench.run(title, "records/s", [*cases, case(APPEND, append), limit])


if __name__ == "__main__":
    main()

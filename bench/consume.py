"""How many records a second can one client consume, as Record in a for loop?"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import rlog_client as rlog

from . import limits
from .harness import Bench, Goal, case, fill, per_second, values
from .machine import MIB
from .server import Server

if TYPE_CHECKING:
    from collections.abc import Callable

SIZES: Final = (100, 1024, 65536)
COMMIT_EVERY: Final = 10_000
# Of a `for` loop over a consumer, whose cursor is committed, by the bytes of a record.
GOALS: Final = {100: Goal(4_500_000), 65536: Goal(0.6, of=(limits.LOOPBACK,))}
DRESSED: Final = "with keys, times and header maps"


def fill_dressed(log: rlog.Log, size: int, count: int) -> None:
    """Records that have all that a record can have."""
    column = values(size, min(count, 50_000))
    with log.producer() as producer:
        for number in range(count):
            producer.send(
                column[number % len(column)],
                key=b"key %d" % (number % 1000),
                headers={"trace": b"%016d" % number},
                event_time_ns=number,
            )


def read(log: rlog.Log, count: int) -> Callable[[], float]:
    def loop() -> None:
        seen = 0
        with log.reader(rlog.OLDEST, block=False) as reader:
            for record in reader:
                seen += len(record.value)
        assert seen

    return lambda: per_second(count, loop)


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
        found = per_second(count, loop)
        log.cursor("bench").delete()
        return found

    return run


def consume_unasked(log: rlog.Log, count: int) -> Callable[[], float]:
    """The same with ``autocommit``, which has nothing for the loop to do."""

    def loop() -> None:
        seen = 0
        with log.consumer("bench", block=False, autocommit=True) as consumer:
            for record in consumer:
                seen += len(record.value)
        assert seen
        assert log.cursor("bench").info().committed == count

    def run() -> float:
        found = per_second(count, loop)
        log.cursor("bench").delete()
        return found

    return run


def main() -> None:
    question = "How many records a second can one client consume, as Record in a for loop?"
    option = ("mib", 128, "of one row")
    with (
        Bench(question, 7, option) as bench,
        Server(bench.directory()) as server,
        rlog.connect(server.url) as client,
    ):
        for size in SIZES:
            count = bench.options.mib * MIB // size
            log = client.log(f"bench-{size}", create=True)
            fill(log, size, count)
            name = f"consumer, commit every {COMMIT_EVERY:,}"
            cases = [
                case("reader, no cursor", read(log, count)),
                case(name, consume(log, count), GOALS.get(size)),
                case("consumer, autocommit", consume_unasked(log, count)),
            ]
            if size == 100:
                dressed = client.log("dressed", create=True)
                fill_dressed(dressed, size, count)
                cases.append(case(f"consumer, {DRESSED}", consume(dressed, count), Goal(2_000_000)))
            title = f"consume {count:,} records of {size} B, sync always, loopback TCP"
            bench.run(title, "records/s", [*cases, *limits.consuming(size, bench.options.mib)])


if __name__ == "__main__":
    main()

"""How long after it is due is a record in its consumer's hands, synced, at a steady rate?

A producer in one process, a consumer with a cursor in another, and the server in a third. Records
are due at even intervals, and each says when it was: what is measured is from that moment, not from
the call of ``send``, so that a producer which is held up makes its records late and hides nothing
(open loop, no coordinated omission). It sleeps until the next one is due, which takes the kernel
some 50 µs longer: that is counted, too. Both processes read one clock, CLOCK_MONOTONIC.

``linger`` is set to half a millisecond (`--linger`), since a batch of its own for each of 50,000
records a second is more than anybody wants to sync; beside it, at the lower rate, what the default
makes.
"""

from __future__ import annotations

import time
from struct import Struct
from typing import TYPE_CHECKING, Final

import rlog_client as rlog

from .crowd import Crowd, Gate
from .harness import Bench, Case, Goal, percentiles
from .server import Server

if TYPE_CHECKING:
    from collections.abc import Callable

DEFAULT_SECONDS: Final = 0.005  # what ``linger`` is if nobody says anything
SHARES: Final = (0.5, 0.99, 0.999)
COMMIT_EVERY: Final = 1000
SETTLE_SECONDS: Final = 0.2  # at the beginning of a run, which do not count
# Records a second -> goals, by percentile, in ms.
RATES: Final[dict[int, dict[float, Goal]]] = {
    1_000: {},
    50_000: {0.5: Goal(0.8, at_most=True), 0.99: Goal(5.0, at_most=True)},
}
_DUE: Final = Struct("<q92x")  # ns, and what makes it a record of 100 bytes


def produce(log: rlog.Log, per_second: int, seconds: float, linger: float) -> None:
    interval_ns = 1_000_000_000 // per_second
    with log.producer(linger=linger) as producer:
        due_ns = time.monotonic_ns()
        for _ in range(int(per_second * seconds)):
            while (wait_ns := due_ns - time.monotonic_ns()) > 0:
                time.sleep(wait_ns / 1e9)
            producer.send(_DUE.pack(due_ns))
            due_ns += interval_ns


def consume(log: rlog.Log, count: int) -> list[float]:
    """Seconds of ``count`` records."""
    taken = []
    with log.consumer("bench") as consumer:
        for record in consumer:
            taken.append((time.monotonic_ns() - _DUE.unpack(record.value)[0]) / 1e9)
            if len(taken) == count:
                consumer.commit(record)
                return taken
            if len(taken) % COMMIT_EVERY == 0:
                consumer.commit(record, wait=False)
    raise AssertionError("a consumer ends by itself only if it is told to")


def measured(
    server: Server, per_second: int, seconds: float, linger: float
) -> Callable[[], list[float]]:
    def work(number: int, gate: Gate) -> list[float]:
        with rlog.connect(server.url) as client:
            log = client.log("bench")
            gate.ready()
            if number == 0:
                produce(log, per_second, seconds, linger)
                return []
            taken = consume(log, int(per_second * seconds))
            return taken[int(per_second * min(SETTLE_SECONDS, seconds / 2)) :]

    def run() -> list[float]:
        with rlog.connect(server.url) as client:
            log = client.log("bench", create=True)
            with Crowd(work, 2) as crowd:
                crowd.go()
                _, taken = crowd.results()
            log.delete()
        return taken

    return run


def main() -> None:
    question = "How long after it is due is a record in its consumer's hands?"
    options = (("seconds", 2.0, "of one run"), ("linger", 0.5, "of the producer, in ms"))
    with Bench(question, 5, *options) as bench, Server(bench.directory()) as server:
        linger_ms, seconds = bench.options.linger, bench.options.seconds
        cases: list[Case] = []
        for per_second, goals in RATES.items():
            wanted = {share: goals.get(share) for share in SHARES}
            run = measured(server, per_second, seconds, linger_ms / 1e3)
            cases.append(percentiles(f"{per_second:,}/s", run, wanted, 1e3))
        slow = min(RATES)
        name = f"{slow:,}/s, linger as it is by default"
        run = measured(server, slow, seconds, DEFAULT_SECONDS)
        cases.append(percentiles(name, run, dict.fromkeys(SHARES), 1e3))
        title = f"append to consumer, 100 B, sync always, linger {linger_ms:g} ms, loopback TCP"
        bench.run(title, "ms", cases)


if __name__ == "__main__":
    main()

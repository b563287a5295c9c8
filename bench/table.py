"""What does an index of keys cost, how fast is a table, and what do appends feel of compaction?"""

from __future__ import annotations

import random
import threading
import time
from typing import TYPE_CHECKING, Final

import rlog_client as rlog

from .harness import Bench, case, percentile
from .machine import MIB, memory
from .server import Server

if TYPE_CHECKING:
    from collections.abc import Callable

COMPACTION_SECONDS: Final = 120.0  # at most
VALUE: Final = b"." * 100


def key(number: int) -> bytes:
    return b"key-%012d" % number


def fill_keyed(client: rlog.Client, name: str, numbers: list[int], *, index: bool = True) -> float:
    """Records a second."""
    log = client.log(name, create=True, key_index=index)
    began = time.perf_counter()
    with log.producer() as producer:
        for number in numbers:
            producer.send(VALUE, key=key(number))
    return len(numbers) / (time.perf_counter() - began)


class Beside:
    """One append of 100 bytes after the other, on a log of its own, by a client of its own."""

    def __init__(self, url: str) -> None:
        self.seconds: list[float] = []
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(url,))

    def _run(self, url: str) -> None:
        with rlog.connect(url) as client:
            log = client.log("beside", create=True)
            over = False
            while not over:  # the last one is after the end, so that there is one
                over = self._over.is_set()
                began = time.perf_counter()
                log.append(VALUE)
                self.seconds.append(time.perf_counter() - began)
                time.sleep(0.001)

    def __enter__(self) -> list[float]:
        self._thread.start()
        return self.seconds

    def __exit__(self, *exception: object) -> None:
        self._over.set()
        self._thread.join()


def stored(log: rlog.Log) -> tuple[int, int]:
    """Bytes, and how many offsets are absent."""
    from rlog.cli import wire

    return log.info().bytes, sum(segment.absent for segment in wire.segments(log))


def main() -> None:
    options = (
        ("keys", 200_000, "how many"),
        ("compacted", 1_000_000, "records, of at most a tenth as many keys, to be compacted"),
    )
    with Bench(__doc__ or "", 3, *options) as bench:
        directory, count = bench.directory(), bench.options.keys
        numbers = list(range(count))
        with (
            Server(directory) as server,
            rlog.connect(server.url, timeout=120) as client,
        ):
            run(bench, server, client, numbers)
        # A second start has only the checkpoint of the clean stop to read.
        with Server(directory) as server:
            bench.note(f"a start with {count:,} keys: {server.start_seconds:.2f} s")


def run(bench: Bench, server: Server, client: rlog.Client, numbers: list[int]) -> None:
    count, rng = len(numbers), random.Random(1)
    turn = iter(range(1000))
    fill_keyed(client, "plain", numbers, index=False)
    before = memory(server.pid).rss
    bench.run(
        "appends of 100 B with a key, `send`, sync always",
        "records/s",
        [
            case("no index", lambda: fill_keyed(client, "plain", numbers, index=False)),
            case("key_index, new keys", lambda: fill_keyed(client, f"n{next(turn)}", numbers)),
            case("key_index, known keys", lambda: fill_keyed(client, "n0", numbers)),
        ],
    )
    logs = bench.options.rounds
    bench.note(
        f"memory: {(memory(server.pid).rss - before) / logs / count:.0f} B a key, all in all"
    )
    log = client.log("n0")
    shuffled = rng.sample(numbers, len(numbers))
    fill_keyed(client, "n0", shuffled[: count // 2])

    def read(take: Callable[[], object]) -> Callable[[], float]:
        def run() -> float:
            with Beside(server.url) as seconds:
                time.sleep(0.2)
                seconds.clear()
                began = time.perf_counter()
                take()
                taken.append(time.perf_counter() - began)
            p99.append(percentile(seconds, 0.99) * 1e3)
            return count / taken[-1]

        return run

    taken: list[float] = []
    p99: list[float] = []
    bench.run(
        "a table",
        "records/s",
        [
            case("offsets alone", read(lambda: log.table().end)),
            case("all records", read(lambda: sum(1 for _ in log.table()))),
        ],
    )
    bench.note(f"p99 of single appends meanwhile: at most {max(p99):.1f} ms")
    some = [key(number) for number in shuffled[:1000]]
    began = time.perf_counter()
    for each in some:
        log.latest(each)
    bench.note(f"latest(key): {(time.perf_counter() - began) / len(some) * 1e6:.0f} µs each")
    compaction(bench, server, client, shuffled[: bench.options.compacted // 10])


def compaction(bench: Bench, server: Server, client: rlog.Client, numbers: list[int]) -> None:
    with Beside(server.url) as seconds:
        time.sleep(3.0)
    bench.note(
        f"single appends, nothing else: p50 {percentile(seconds, 0.5) * 1e6:.0f} µs,"
        f" p99 {percentile(seconds, 0.99) * 1e6:.0f} µs"
    )
    roll = 8 * bench.options.compacted
    log = client.log("c", create=True, key_index=True, file_roll_size=roll)
    versions = bench.options.compacted // len(numbers)  # of each key
    for _ in range(versions):
        fill_keyed(client, "c", numbers)
    log.append(b"", key=b"")
    full, _ = stored(log)
    log.alter(compact=True)
    wanted = 2 * full / versions + roll  # the last segment is not compacted
    with Beside(server.url) as seconds:
        began = time.perf_counter()
        size, absent = stored(log)
        while size > wanted and time.perf_counter() - began < COMPACTION_SECONDS:
            time.sleep(0.05)
            size, absent = stored(log)
        took = time.perf_counter() - began
    p50, p99 = (percentile(seconds, share) * 1e6 for share in (0.5, 0.99))
    ended = f"in {took:.1f} s" if size <= wanted else f"and NOT done after {took:.0f} s"
    bench.note(
        f"compaction of {full / MIB:.0f} MiB to {size / MIB:.0f} {ended} ({absent:,} records went)"
    )
    bench.note(f"single appends beside it: p50 {p50:.0f} µs, p99 {p99:.0f} µs")


if __name__ == "__main__":
    main()

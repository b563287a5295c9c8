"""What becomes slower as a log grows, and how long does a start take?

Logs of 10^5 records, 10^6 and so on up to `--records`, each in a server and a data directory of its
own, made beforehand. In every round each of them is asked the same: to read so many records at
random places, to give the first record at random offsets and random times to a new reader, to start
after a clean stop and after SIGKILL, and at last to append so many. Goals are by the smallest, in
the same round, but for starts.

Warm: all of it was read before. Cold: the page cache is made to forget the directory's files
(fsync, then POSIX_FADV_DONTNEED on each) before every reading and every seek, and first the server
is started anew, so that it has no index in memory either. Before a SIGKILL so much is appended (to
another log, which is deleted afterwards) that the journal to recover from is the same for all.
"""

from __future__ import annotations

import os
import random
import shutil
import time
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final, Self

import rlog_client as rlog

from .harness import Bench, Case, Goal, case, fill, per_second, percentiles
from .machine import MIB, evict, memory
from .server import Server

if TYPE_CHECKING:
    from collections.abc import Callable

PAGE: Final = 4096
STRETCHES: Final = 25  # of each reading, each at another place
PLACES: Final = 5  # of the smallest log: a stretch is a portion, or what is there, over that
RECORD_OVERHEAD: Final = 4  # bytes of a record that are stored beside its value, and some to spare
JOURNAL_BYTES: Final = 512 * MIB  # of each directory, beside what is in the segments
CLEAN, KILLED = Goal(1.0, at_most=True), Goal(5.0, at_most=True)
AS_FAST, AS_SOON = 0.8, 2.0  # of the smallest, or times its: rates, and the p99 of seeks


class Grown:
    """A server, and its log of ``count`` records."""

    def __init__(self, bench: Bench, count: int) -> None:
        self.name = f"{count:,} records"
        self._options = bench.options
        self._random = random.Random(count)
        self._count = count
        self._directory = bench.directory(f"data-{count}")
        self._server = Server(self._directory)
        try:
            self._began = time.time()
            with rlog.connect(self._server.url) as client:
                log = client.log("bench", create=True)
                fill(log, self._options.size, count - 1)
                self._ended = time.time()  # before the last: at each time there is one to come
                fill(log, self._options.size, 1)
        except BaseException:
            self._server.close()
            raise

    # --- what is measured ---------------------------------------------------------------------

    def append(self) -> float:
        """Records a second. The log grows by them."""
        portion = self._options.portion
        with rlog.connect(self._server.url) as client:
            log = client.log("bench")
            return per_second(portion, lambda: fill(log, self._options.size, portion))

    def read(self, *, cold: bool) -> float:
        """Records a second."""
        if cold:
            self._make_cold()
        portion = min(self._options.portion, self._options.smallest) // PLACES
        seconds = 0.0
        with rlog.connect(self._server.url) as client:
            log = client.log("bench")
            for _ in range(STRETCHES):
                first = self._random.randint(0, self._count - portion)
                if cold:
                    evict(self._directory)
                began = time.perf_counter()
                until = rlog.offset(first + portion)
                with log.reader(rlog.offset(first), until=until) as reader:
                    for _record in reader:
                        pass
                seconds += time.perf_counter() - began
        return float(STRETCHES * portion / seconds)

    def read_bytes(self) -> float:
        """Records a second: the disk's own part in a cold reading, by plain reads of a file."""
        portion = min(self._options.portion, self._options.smallest) // PLACES
        count = portion * (self._options.size + RECORD_OVERHEAD)
        segments = [path for path in Path(self._directory).rglob("*.seg") if path.stat().st_size]
        seconds = 0.0
        for _ in range(STRETCHES):
            evict(self._directory)
            with self._random.choice(segments).open("rb", buffering=0) as file:
                last = max(os.fstat(file.fileno()).st_size - count, 0)
                first = self._random.randint(0, last) // PAGE * PAGE
                began = time.perf_counter()
                for position in range(first, first + count, MIB):
                    os.pread(file.fileno(), min(MIB, first + count - position), position)
                seconds += time.perf_counter() - began
        return float(STRETCHES * portion / seconds)

    def seek(self, *, place: Callable[[Grown], rlog.Whence], cold: bool) -> list[float]:
        """Seconds of each, from opening a reader to its first record."""
        if cold:
            self._make_cold()
        taken = []
        with rlog.connect(self._server.url) as client:
            log = client.log("bench")
            for _ in range(self._options.seeks // (3 if cold else 1)):
                if cold:
                    evict(self._directory)
                began = time.perf_counter()
                with log.reader(place(self)) as reader:
                    next(reader)
                taken.append(time.perf_counter() - began)
        return taken

    def read_pages(self) -> list[float]:
        """Seconds of each: the disk's own part in a cold seek, of which that has several."""
        taken = []
        segments = [path for path in Path(self._directory).rglob("*.seg") if path.stat().st_size]
        for _ in range(self._options.seeks // 3):
            evict(self._directory)
            with self._random.choice(segments).open("rb", buffering=0) as file:
                position = self._random.randrange(os.fstat(file.fileno()).st_size)
                began = time.perf_counter()
                os.pread(file.fileno(), PAGE, position // PAGE * PAGE)
                taken.append(time.perf_counter() - began)
        return taken

    def offset(self) -> rlog.Whence:
        return rlog.offset(self._random.randrange(self._count))

    def moment(self) -> rlog.Whence:
        return rlog.time(self._random.uniform(self._began, self._ended))

    def start(self, *, killed: bool, cold: bool) -> float:
        """Seconds from the start of the process to its first answer."""
        if killed:
            with rlog.connect(self._server.url) as client:
                other = client.log("other", create=True)
                fill(other, 1024, self._options.journal * MIB // 1024)
            self._server.kill()
        else:
            self._server.close()
        if cold:
            evict(self._directory)
        self._server = Server(self._directory)
        if killed:
            with rlog.connect(self._server.url) as client:
                client.log("other").delete()
        return self._server.start_seconds

    def memory(self) -> list[float]:
        """MiB: with all that it learned up to now, and just started."""
        learned = memory(self._server.pid).rss / MIB
        self.start(killed=False, cold=False)
        return [learned, memory(self._server.pid).rss / MIB]

    # --- in between ---------------------------------------------------------------------------

    def warm(self) -> None:
        with (
            rlog.connect(self._server.url) as client,
            client.log("bench").reader(rlog.OLDEST, block=False) as reader,
        ):
            for _record in reader:
                pass
        self.seek(place=Grown.offset, cold=False)

    def _make_cold(self) -> None:
        self.start(killed=False, cold=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self._server.__exit__(*exception)


def counts(smallest: int, largest: int) -> list[int]:
    """Powers of ten times the smallest, and the largest."""
    found = []
    while smallest < largest:
        found.append(smallest)
        smallest *= 10
    return [*found, largest]


def check_space(bench: Bench, sizes: list[int]) -> None:
    stored = sum(sizes) * (bench.options.size + RECORD_OVERHEAD) + JOURNAL_BYTES * len(sizes)
    free = shutil.disk_usage(bench.directory("")).free
    if stored > free:
        raise SystemExit(
            f"this takes {stored / 1e9:.1f} GB of disk and {free / 1e9:.1f} GB are free:"
            " take smaller records (--size 16), fewer of them (--records), or another --dir"
        )


class Tables:
    """One for each question, with a row for each size. The goal is the largest one's."""

    def __init__(self, bench: Bench, grown: list[Grown]) -> None:
        self._bench = bench
        self.grown = grown

    def _goal(self, each: Grown, bound: float, row: str = "", *, at_most: bool) -> Goal | None:
        if len(self.grown) == 1 or each is not self.grown[-1]:
            return None
        return Goal(bound, at_most, (f"{self.grown[0].name}{row}",))

    def rates(self, title: str, run: Callable[[Grown], float], *, cold: bool = False) -> None:
        cases = [
            case(each.name, partial(run, each), self._goal(each, AS_FAST, at_most=False))
            for each in self.grown
        ]
        if cold:
            # What the disk has of a small log in a cache of its own, it has not of a large one.
            for each in (self.grown[0], self.grown[-1]):
                cases.append(case(f"limit: plain reads, {each.name}", each.read_bytes))
        self._bench.run(title, "records/s", cases)

    def seeks(self, title: str, run: Callable[[Grown], list[float]], *, cold: bool) -> None:
        cases: list[Case] = []
        if cold:
            name = f"limit: {PAGE} B of the largest, at random"
            cases.append(percentiles(name, self.grown[-1].read_pages, dict.fromkeys((0.5, 0.99))))
        for each in self.grown:
            goal = self._goal(each, AS_SOON, ", p99", at_most=True)
            cases.append(percentiles(each.name, partial(run, each), {0.5: None, 0.99: goal}))
        self._bench.run(title, "µs", cases)

    def starts(self, title: str, goal: Goal, *, killed: bool) -> None:
        cases = [
            case(
                f"{each.name}, {'cold' if cold else 'warm'}",
                partial(each.start, killed=killed, cold=cold),
                goal,
            )
            for each in self.grown
            for cold in (False, True)
        ]
        self._bench.run(title, "seconds", cases)

    def memory(self) -> None:
        cases: list[Case] = []
        for each in self.grown:
            rows = (f"{each.name}, after the work before", f"{each.name}, just started")
            cases.append(Case(dict.fromkeys(rows), each.memory))
        self._bench.run("memory of the server (RSS)", "MiB", cases)


def run(tables: Tables, size: int, portion: int) -> None:
    for each in tables.grown:
        each.warm()
    for cold in (False, True):
        how = "cold" if cold else "warm"
        title = f"read at random places, {how}"
        tables.rates(title, partial(Grown.read, cold=cold), cold=cold)
        for what, place in (("offset", Grown.offset), ("time", Grown.moment)):
            title = f"first record at a random {what}, {how}"
            tables.seeks(title, partial(Grown.seek, place=place, cold=cold), cold=cold)
    tables.memory()
    tables.starts("start after a clean stop", CLEAN, killed=False)
    tables.starts("start after SIGKILL", KILLED, killed=True)
    # Last, for it makes them larger than they are called.
    tables.rates(f"{portion:,} more of {size} B appended in each round, sync always", Grown.append)


def main() -> None:
    question = "What becomes slower as a log grows, and how long does a start take?"
    options = (
        ("records", 10_000_000, "of the largest log"),
        ("smallest", 100_000, "records of the smallest log"),
        ("size", 100, "bytes of a record"),
        ("portion", 100_000, "records that are appended; a fifth of them is read at one place"),
        ("seeks", 300, "in one run; a third of them in one that is cold"),
        ("journal", 160, "MiB that are appended before a SIGKILL"),
    )
    with Bench(question, 3, *options) as bench, ExitStack() as stack:
        sizes = counts(bench.options.smallest, bench.options.records)
        check_space(bench, sizes)
        grown = [stack.enter_context(Grown(bench, count)) for count in sizes]
        run(Tables(bench, grown), bench.options.size, bench.options.portion)


if __name__ == "__main__":
    main()

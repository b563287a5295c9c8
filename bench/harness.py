"""What every bench shares: a server of its own, a quiet machine, interleaved rounds, medians.

A figure is worth what is known about the run that it comes from. So every report names the machine,
the file system and the sync policy; memory is warmed first (on a virtual machine, a page that the
host has taken back costs more than the write into it); and each round says how much processor
time went to anybody else. No bench asserts: a figure is read, beside the limits of its own run,
and a goal says only whether it was reached in this one.
"""

from __future__ import annotations

import argparse
import compileall
import json
import mmap
import multiprocessing
import os
import platform
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from functools import partial
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any, Final, Generic, NamedTuple, Self, TypeVar

import rlog
import rlog_client

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from multiprocessing.connection import Connection

POLICIES: Final = ("always", "periodic:1s", "bytes:1MiB", "never")
MIB: Final = 1 << 20
WARM_MIB: Final = 1024
QUIET: Final = 0.10  # of one processor, by others: below it, the machine counts as idle
_CROWD_SECONDS: Final = 300.0  # for all of a crowd to be ready: only to find out that they hang
_TICKS: Final = os.sysconf("SC_CLK_TCK")
RLOG: Final = str(Path(sys.executable).with_name("rlog"))

T = TypeVar("T")


# --- the machine ------------------------------------------------------------------------------


def machine(directory: str) -> dict[str, str]:
    cpus = [line for line in _lines("/proc/cpuinfo") if line.startswith("model name")]
    model = cpus[0].partition(":")[2].strip() if cpus else platform.machine()
    return {
        "machine": f"{model}, {os.cpu_count()} cores, {platform.system()} {platform.release()}",
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "disk": f"{_file_system(directory)} at {directory}",
        "load": " ".join(f"{load:.2f}" for load in os.getloadavg()),
    }


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text().splitlines()
    except OSError:
        return []


def _file_system(directory: str) -> str:
    """The type of the file system that ``directory`` is on."""
    path = f"{os.path.realpath(directory)}/"
    best = ("", "unknown file system")
    for line in _lines("/proc/mounts"):
        _device, mount, kind = line.split()[:3]
        if path.startswith(mount.rstrip("/") + "/") and len(mount) >= len(best[0]):
            best = (mount, kind)
    return best[1]


def warm(mib: int) -> float:
    """Touch as much memory, so that the host has given it to us; the seconds that it took."""
    began = time.monotonic()
    with mmap.mmap(-1, mib * MIB) as memory:
        for at in range(0, len(memory), mmap.PAGESIZE):
            memory[at] = 1
    return time.monotonic() - began


class Clock:
    """Seconds, and what others than this process and its descendants used of the processors.

    ``pids``: of further processes that are ours, with their own descendants.
    """

    def __init__(self, *pids: int) -> None:
        self._roots = (os.getpid(), *pids)
        self._began = time.monotonic()
        self._others = _busy() - self._used()

    def others(self) -> float:
        """Processors that others used since, on average."""
        seconds = time.monotonic() - self._began
        return max(0.0, (_busy() - self._used() - self._others) / seconds)

    def _used(self) -> float:
        """Processor seconds of all of them, those that have ended included."""
        family: set[int] = set()
        waiting = list(self._roots)
        while waiting:
            pid = waiting.pop()
            if pid not in family:
                family.add(pid)
                for task in Path(f"/proc/{pid}/task").glob("*/children"):
                    waiting += map(int, " ".join(_lines(str(task))).split())
        return sum(map(used, family))


def _busy() -> float:
    """Processor seconds that were used, by anybody, since the machine started."""
    for line in _lines("/proc/stat")[:1]:
        user, nice, system, _idle, _iowait, irq, softirq, steal = map(int, line.split()[1:9])
        return (user + nice + system + irq + softirq + steal) / _TICKS
    return 0.0


def used(pid: int) -> float:
    """Processor seconds that a process and its children that have ended used."""
    for line in _lines(f"/proc/{pid}/stat")[:1]:
        return sum(map(int, line.rpartition(")")[2].split()[11:15])) / _TICKS
    return 0.0


class Memory(NamedTuple):
    """Of a process, in bytes. ``pss``: what it shares with others counts in part; ``highest``: the
    largest that ``rss`` ever was."""

    rss: int
    pss: int
    highest: int


def memory(pid: int) -> Memory:
    sizes = {
        name: int(rest.split()[0]) * 1024
        for line in _lines(f"/proc/{pid}/smaps_rollup") + _lines(f"/proc/{pid}/status")
        for name, colon, rest in [line.partition(":")]
        if name in ("Rss", "Pss", "VmHWM")
    }
    return Memory(sizes["Rss"], sizes["Pss"], sizes["VmHWM"])


def evict(directory: str) -> None:
    """Have the page cache forget the files (fsync, then POSIX_FADV_DONTNEED on each of them), so
    that what is read next comes from the disk. It takes no privilege, and concerns nobody else.
    """
    for path in Path(directory).rglob("*"):
        if path.is_file():
            fd = os.open(path, os.O_RDONLY)
            try:
                os.fsync(fd)
                os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
            finally:
                os.close(fd)


def settle(patience: float) -> bool:
    """Wait for a moment at which nobody else works; False if none came within the seconds."""
    deadline = time.monotonic() + patience
    while time.monotonic() < deadline:
        clock = Clock()
        time.sleep(0.25)
        if clock.others() < QUIET:
            return True
    return False


# --- the server -------------------------------------------------------------------------------


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
        return port


class Server:
    """``rlog serve`` as a process of its own, on loopback TCP, over ``directory``."""

    def __init__(self, directory: str, sync: str = "always") -> None:
        self.port = free_port()
        self.url = f"rlog://127.0.0.1:{self.port}"
        self._log = Path(directory).with_suffix(".server-log")
        command = [RLOG, "serve", "--data-dir", directory, "--sync", sync]
        began = time.monotonic()
        with self._log.open("a") as output:
            self._process = subprocess.Popen(
                [*command, "--listen", f"127.0.0.1:{self.port}"],
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        self.pid = self._process.pid
        try:
            self._await()
        except BaseException:
            self.kill()
            raise
        self.start_seconds = time.monotonic() - began

    def _await(self) -> None:
        """Until it answers."""
        deadline = time.monotonic() + 60.0
        while True:
            try:
                rlog_client.connect(self.url).close()
                return
            except rlog_client.ConnectionLost:
                if self._process.poll() is not None or time.monotonic() > deadline:
                    raise SystemExit(
                        f"the server did not start:\n{self._log.read_text()}"
                    ) from None
                time.sleep(0.002)

    def stop(self) -> None:
        """A clean stop."""
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(30.0)
        except subprocess.TimeoutExpired:
            self.kill()

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        if self._process.poll() is None:
            self.stop()


# --- other processes --------------------------------------------------------------------------


class Gate:
    """What the processes of a crowd wait at, and look at."""

    def __init__(self, count: int) -> None:
        context = multiprocessing.get_context("fork")
        self._all = context.Barrier(count + 1)
        self._over = context.Event()

    def ready(self) -> None:
        """Wait until everybody is."""
        self._all.wait(_CROWD_SECONDS)

    @property
    def over(self) -> bool:
        return self._over.is_set()

    def end(self) -> None:
        self._over.set()

    def give_up(self) -> None:
        self._all.abort()


class Crowd(Generic[T]):
    """``count`` processes, each of which runs ``work(number, gate)``, and what they return.

    All of them call ``gate.ready()`` once, and so begin when ``go`` is called, at the same moment.
    """

    def __init__(self, work: Callable[[int, Gate], T], count: int) -> None:
        context = multiprocessing.get_context("fork")
        self._gate = Gate(count)
        self._members = []
        for number in range(count):
            mine, theirs = context.Pipe(duplex=False)
            arguments = (work, number, self._gate, theirs)
            process = context.Process(target=_member, args=arguments, daemon=True)
            process.start()
            theirs.close()
            self._members.append((process, mine))

    def go(self) -> float:
        """-> the moment, on the clock of ``time.monotonic``, which is the same in all processes."""
        try:
            self._gate.ready()
        except threading.BrokenBarrierError:
            raise SystemExit("a process of the bench failed, or was never ready") from None
        return time.monotonic()

    def end(self) -> list[T]:
        """Tell those who look (``gate.over``) that it is over, and wait for all: what they
        returned.
        """
        self._gate.end()
        return self.results()

    def results(self) -> list[T]:
        try:
            found = [mine.recv() for _process, mine in self._members]
        except EOFError:
            raise SystemExit("a process of the bench failed") from None
        for process, _mine in self._members:
            process.join()
        return found

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        for process, mine in self._members:
            process.kill()
            process.join()
            mine.close()


def _member(
    work: Callable[[int, Gate], object], number: int, gate: Gate, results: Connection
) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    try:
        results.send(work(number, gate))
    except BaseException:
        traceback.print_exc()
        gate.give_up()  # last: whoever waits there ends us
        raise


# --- rounds -----------------------------------------------------------------------------------


class Goal(NamedTuple):
    """What a row's median should reach: ``bound``, or, by rounds, ``bound`` times the sum of the
    rows named ``of``.
    """

    bound: float
    at_most: bool = False
    of: tuple[str, ...] = ()

    def __str__(self) -> str:
        what = f"{'at most' if self.at_most else 'at least'} {readable(self.bound)}"
        return f"{what} x ({' + '.join(self.of)})" if self.of else what

    def reached(self, figure: float) -> bool:
        return figure <= self.bound if self.at_most else figure >= self.bound


class Case(NamedTuple):
    """``run`` returns one figure."""

    name: str
    run: Callable[[], float]
    goal: Goal | None = None


def together(run: Callable[[], Sequence[float]], rows: Mapping[str, Goal | None]) -> list[Case]:
    """Rows whose figures come from the same run, in their order."""
    figures: list[float] = []

    def figure(number: int) -> float:
        if number == 0:
            figures[:] = run()
        return figures[number]

    return [
        Case(name, partial(figure, number), goal)
        for number, (name, goal) in enumerate(rows.items())
    ]


def percentiles(
    name: str,
    run: Callable[[], Sequence[float]],
    goals: Mapping[float, Goal | None],
    scale: float = 1e6,
) -> list[Case]:
    """A row for each share of ``goals`` (0.5: p50), of what ``run`` returns: seconds, times
    ``scale``.
    """
    rows = {f"{name}, p{share * 100:g}": goal for share, goal in goals.items()}

    def figures() -> list[float]:
        taken = sorted(run())
        return [percentile(taken, share) * scale for share in goals]

    return together(figures, rows)


class Result(NamedTuple):
    name: str
    figures: list[float]
    goal: Goal | None

    @property
    def median(self) -> float:
        return median(self.figures)


def judged(result: Result, results: Sequence[Result]) -> dict[str, Any]:
    """A result beside its goal. A goal that names rows is judged by its ratio to them."""
    goal, figure = result.goal, result.median
    assert goal is not None
    if goal.of:
        named = {other.name: other.figures for other in results}
        sums = map(sum, zip(*(named[name] for name in goal.of), strict=True))
        figure = median(mine / other for mine, other in zip(result.figures, sums, strict=True))
    return {"goal": str(goal), "figure": figure, "reached": goal.reached(figure)}


class Bench:
    """One script's run: its options, its directory, its report."""

    def __init__(self, question: str, rounds: int, *options: tuple[str, Any, str]) -> None:
        """``options``: (name, default, help) of further ones, all numbers."""
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
        parser = argparse.ArgumentParser(description=question)
        parser.add_argument("--rounds", type=int, default=rounds, help="interleaved (%(default)s)")
        parser.add_argument("--dir", help="where to make the temporary directory")
        parser.add_argument("--json", metavar="FILE", help="write all figures there, too")
        parser.add_argument(
            "--warm", type=int, default=WARM_MIB, help="MiB of memory to warm first (%(default)s)"
        )
        parser.add_argument(
            "--patience",
            type=float,
            default=3.0,
            help="seconds for the machine to become idle, before each round (%(default)s)",
        )
        for name, default, text in options:
            kind = type(default)
            parser.add_argument(
                f"--{name}", type=kind, default=default, help=f"{text} (%(default)s)"
            )
        self.options = parser.parse_args()
        self._scratch = tempfile.TemporaryDirectory(prefix="rlog-bench-", dir=self.options.dir)
        self._tables: list[dict[str, Any]] = []
        self._machine = machine(os.path.dirname(self._scratch.name))
        for package in (rlog, rlog_client):
            # As an installation has it: a start is not to compile what it imports.
            compileall.compile_dir(package.__path__[0], quiet=1)
        print(f"\n{question}")
        self.pids: tuple[int, ...] = ()  # whose work is ours, though they are no children of ours
        mib = self.options.warm
        self._machine["memory"] = f"{mib} MiB warmed in {warm(mib):.1f} s" if mib else "not warmed"
        for name, text in self._machine.items():
            print(f"  {name + ':':9}{text}")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self._scratch.cleanup()
        if self.options.json and exception[0] is None:
            report = {"machine": self._machine, "tables": self._tables}
            Path(self.options.json).write_text(json.dumps(report, indent=2) + "\n")

    def directory(self, name: str = "data") -> str:
        return f"{self._scratch.name}/{name}"

    def rounds(self, works: Sequence[Callable[[], None]]) -> list[float]:
        """Do each once a round; of each round, the processors that others used meanwhile."""
        others = []
        for _ in range(self.options.rounds):
            settle(self.options.patience)
            clock = Clock(*self.pids)
            for work in works:
                work()
            others.append(clock.others())
        return others

    def run(self, title: str, unit: str, cases: Sequence[Case]) -> list[Result]:
        """Every case once a round, medians of the rounds, and a table of them."""
        results = [Result(case.name, [], case.goal) for case in cases]

        def add(case: Case, result: Result) -> None:
            result.figures.append(case.run())

        others = self.rounds([partial(add, *pair) for pair in zip(cases, results, strict=True)])
        width = max(len(case.name) for case in cases)
        noise = f"others used {median(others):.2f} processors, at most {max(others):.2f}"
        print(f"\n  {title}, {unit}: {self.options.rounds} rounds; {noise}")
        print(f"  {'':{width}} {'median':>12} {'lowest':>12} {'highest':>12}")
        goals = {}
        for result in results:
            figures = (result.median, min(result.figures), max(result.figures))
            line = f"  {result.name:{width}} " + " ".join(f"{readable(f):>12}" for f in figures)
            if result.goal is not None:
                found = goals[result.name] = judged(result, results)
                figure = f"{readable(found['figure'])} is " if result.goal.of else ""
                line += (
                    f"  goal: {found['goal']}: {figure}{'' if found['reached'] else 'NOT '}reached"
                )
            print(line)
        self.report(
            {
                "title": title,
                "unit": unit,
                "others": others,
                "results": {result.name: result.figures for result in results},
                "goals": goals,
            }
        )
        return results

    def note(self, text: str) -> None:
        print(f"  {text}")
        self.report({"note": text})

    def report(self, table: dict[str, Any]) -> None:
        """Have it written to the JSON file, too."""
        self._tables.append(table)


def readable(figure: float) -> str:
    return f"{figure:,.0f}" if figure >= 1000 else f"{figure:.3g}"


def values(size: int, count: int = 50_000) -> list[bytes]:
    """Distinct values of ``size`` bytes, which lie apart in memory as those of a user do."""
    return [b"%016d" % number * (size // 16) + b"." * (size % 16) for number in range(count)]


def fill(log: rlog_client.Log, size: int, count: int) -> None:
    """Append ``count`` records of ``size`` bytes, in bulk."""
    column = values(size, min(count, 50_000, max(1, 64 * MIB // size)))
    with log.producer() as producer:
        for left in range(count, 0, -len(column)):
            producer.extend(column[:left])


def rate(count: int, work: Callable[[], object]) -> float:
    """``count`` of whatever ``work`` does, per second."""
    began = time.perf_counter()
    work()
    return count / (time.perf_counter() - began)


def percentile(seconds: Sequence[float], share: float) -> float:
    return sorted(seconds)[min(len(seconds) - 1, int(len(seconds) * share))]

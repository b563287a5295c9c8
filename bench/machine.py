"""The machine under a bench: what it is, whether it is quiet, and what processes take of it."""

from __future__ import annotations

import contextlib
import mmap
import os
import platform
import subprocess
import time
from pathlib import Path
from typing import Final, NamedTuple, Self

import rlog

MIB: Final = 1 << 20
QUIET: Final = 0.10  # of one processor, by others: below it, the machine counts as idle
_ROOT: Final = Path(__file__).resolve().parents[1]
_TICKS: Final = os.sysconf("SC_CLK_TCK")


def machine(directory: str) -> dict[str, str]:
    """What a report has to name, beside its figures."""
    cpus = [line for line in _lines("/proc/cpuinfo") if line.startswith("model name")]
    model = cpus[0].partition(":")[2].strip() if cpus else platform.machine()
    return {
        "machine": f"{model}, {os.cpu_count()} cores, {platform.system()} {platform.release()}",
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "rlog": f"{rlog.__version__}{_commit()}",
        "date": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        "disk": f"{_file_system(directory)} at {directory}",
        "load": " ".join(f"{load:.2f}" for load in os.getloadavg()),
    }


def _commit() -> str:
    """ ", commit 0123abc", "…, changed", where something is not committed; "" outside of git."""

    def git(*command: str) -> str:
        return subprocess.run(
            ["git", "-C", _ROOT, *command], check=True, capture_output=True, text=True
        ).stdout.strip()

    try:
        commit, changed = git("rev-parse", "--short", "HEAD"), git("status", "--porcelain", "-uno")
    except (OSError, subprocess.CalledProcessError):
        return ""
    return f", commit {commit}{', changed' if changed else ''}"


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


# --- memory -----------------------------------------------------------------------------------


def warm(mib: int) -> float:
    """Touch as much memory, so that the host has given it to us; the seconds that it took."""
    began = time.monotonic()
    with mmap.mmap(-1, mib * MIB) as memory:
        for at in range(0, len(memory), mmap.PAGESIZE):
            memory[at] = 1
    return time.monotonic() - began


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
        # A server that runs may remove one meanwhile.
        with contextlib.suppress(FileNotFoundError):
            if path.is_file():
                fd = os.open(path, os.O_RDONLY)
                try:
                    os.fsync(fd)
                    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
                finally:
                    os.close(fd)


# --- processors -------------------------------------------------------------------------------


class Clock:
    """A stop watch, and what others than this process and its descendants used of the processors
    while it ran: it runs in ``with``, any number of times.
    """

    def __init__(self) -> None:
        self._seconds = self._others = 0.0

    def __enter__(self) -> Self:
        self._add(-1)
        return self

    def __exit__(self, *exception: object) -> None:
        self._add(1)

    def _add(self, sign: int) -> None:
        self._seconds += sign * time.monotonic()
        self._others += sign * (_busy() - self._used())

    def others(self) -> float:
        """Processors that others used, on average."""
        return max(0.0, self._others / self._seconds) if self._seconds else 0.0

    @staticmethod
    def _used() -> float:
        """Processor seconds of all of ours, those that have ended included."""
        return sum(map(used, [os.getpid(), *below(os.getpid())]))


def below(pid: int) -> list[int]:
    """The descendants of a process."""
    children = [
        int(child)
        for task in Path(f"/proc/{pid}/task").glob("*/children")
        for child in " ".join(_lines(str(task))).split()
    ]
    return [each for child in children for each in (child, *below(child))]


def used(pid: int) -> float:
    """Processor seconds that a process and its children that have ended used."""
    for line in _lines(f"/proc/{pid}/stat")[:1]:
        return sum(map(int, line.rpartition(")")[2].split()[11:15])) / _TICKS
    return 0.0


def _busy() -> float:
    """Processor seconds that were used, by anybody, since the machine started."""
    for line in _lines("/proc/stat")[:1]:
        user, nice, system, _idle, _iowait, irq, softirq, steal = map(int, line.split()[1:9])
        return (user + nice + system + irq + softirq + steal) / _TICKS
    return 0.0


def settle(patience: float) -> bool:
    """Wait for a moment at which nobody else works; False if none came within the seconds."""
    deadline = time.monotonic() + patience
    while time.monotonic() < deadline:
        with Clock() as clock:
            time.sleep(0.25)
        if clock.others() < QUIET:
            return True
    return False

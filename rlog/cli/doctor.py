"""``rlog doctor [DIR]``: whether this machine can keep its word. What is found is judged by
``rlog.doctor``; here it is only gathered.

Nothing is changed. To measure a sync a file is made in DIR, which is gone at the end, and has no
name while it is there where the file system can do that.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import platform
import re
import resource
import tempfile
import time
from importlib import metadata
from typing import TYPE_CHECKING, Final

import click
from crc32c import hardware_based

from rlog_client import RlogError

from .. import doctor as judge
from ..doctor import Clock, Limits, Place, Software, Verdict
from ..files import PAGE, Locked
from . import wire
from .exits import Exit, Stopped
from .options import Settings, command, option
from .verify import held

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .output import Output

DISTRIBUTION: Final = "rlog-server"
SYNCS: Final = 200
MOUNTS: Final = "/proc/self/mountinfo"
_TIME_ERROR: Final = 5  # of adjtimex: the clock is not synchronised
_PAINTS: Final = {"ok": "32", "warn": "33;1", "bad": "31;1"}


# --- gathering ------------------------------------------------------------------------------


def _first_line(path: str) -> str:
    with contextlib.suppress(OSError), open(path, errors="replace") as file:
        return file.readline().strip()
    return ""


def _mount_of(path: str) -> tuple[str, frozenset[str], str]:
    """Kind, options and device number of the mount that holds ``path``."""
    device = os.stat(path).st_dev
    number = f"{os.major(device)}:{os.minor(device)}"
    best: tuple[int, str, frozenset[str], str] = (-1, "", frozenset(), number)
    here = os.path.realpath(path)
    with contextlib.suppress(OSError), open(MOUNTS, errors="replace") as lines:
        for line in lines:
            left, _, right = line.partition(" - ")
            # Split at each blank: the second of the right, the source, can be empty.
            fields, (kind, _source, more) = left.split(), right.rstrip("\n").split(" ")[:3]
            # Octal escapes stand for blanks in names.
            point = re.sub(r"\\(\d{3})", lambda found: chr(int(found[1], 8)), fields[4])
            inside = here == point or here.startswith(point.rstrip("/") + "/")
            if inside and len(point) >= best[0]:
                options = frozenset([*fields[5].split(","), *more.split(",")])
                best = len(point), kind, options, fields[2]
    return best[1:]


def _disk_of(number: str) -> tuple[str, str]:
    """The disk's name, and what the kernel says of its write cache."""
    device = os.path.realpath(f"/sys/dev/block/{number}")
    if not os.path.isdir(device):
        return "", ""
    for each in (device, os.path.dirname(device)):  # a partition has its queue in its disk
        if cache := _first_line(f"{each}/queue/write_cache"):
            return os.path.basename(each), cache
    return os.path.basename(device), ""


def _is_virtual() -> bool:
    with contextlib.suppress(OSError), open("/proc/cpuinfo", errors="replace") as lines:
        return any(line.startswith("flags") and " hypervisor" in line for line in lines)
    return False


def look_at_place(directory: str) -> Place:
    kind, options, number = _mount_of(directory)
    device, write_cache = _disk_of(number)
    space = os.statvfs(directory)
    unit = space.f_frsize
    return Place(
        kind,
        options,
        device,
        write_cache,
        _is_virtual(),
        space.f_bavail * unit,
        space.f_blocks * unit,
        space.f_favail,
        space.f_files,
    )


def _nameless(directory: str) -> int:
    """A file without a name; or one whose name goes as soon as it is there."""
    try:
        return os.open(directory, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.EISDIR, errno.ENOENT, errno.EINVAL):
            raise
    descriptor, name = tempfile.mkstemp(prefix=".rlog-doctor-", dir=directory)
    os.unlink(name)
    return descriptor


def measure_syncs(directory: str, count: int) -> list[float]:
    """What synced writes of a page take, one behind the other, into space that was reserved and
    written. Raises OSError."""
    descriptor = _nameless(directory)
    page = os.urandom(PAGE)
    try:
        os.posix_fallocate(descriptor, 0, count * PAGE)
        os.pwrite(descriptor, bytes(count * PAGE), 0)
        os.fsync(descriptor)
        took = []
        for number in range(count):
            began = time.perf_counter()
            os.pwrite(descriptor, page, number * PAGE)
            os.fdatasync(descriptor)
            took.append(time.perf_counter() - began)
        return took
    finally:
        os.close(descriptor)


def look_at_limits() -> Limits:
    found = [
        resource.getrlimit(resource.RLIMIT_NOFILE)[1],  # a server raises its own to that
        resource.getrlimit(resource.RLIMIT_AS)[0],
        resource.getrlimit(resource.RLIMIT_FSIZE)[0],
    ]
    return Limits(*(None if value == resource.RLIM_INFINITY else value for value in found))


def look_at_clock(began: tuple[float, float]) -> Clock:
    """``began``: wall and monotonic clock when we began to look."""
    synchronised, error = _kernel_clock()
    wall, monotonic = time.time(), time.monotonic()
    return Clock(synchronised, error, (wall - began[0]) - (monotonic - began[1]), wall)


class _Timex(ctypes.Structure):
    """The beginning of the kernel's struct timex; the rest is room."""

    _fields_ = (
        ("modes", ctypes.c_uint),
        ("offset", ctypes.c_long),
        ("freq", ctypes.c_long),
        ("maxerror", ctypes.c_long),  # µs
        ("esterror", ctypes.c_long),
        ("status", ctypes.c_int),
        ("rest", ctypes.c_long * 64),
    )


def _kernel_clock() -> tuple[bool | None, float]:
    """Whether the clock is synchronised (None: it is not known), and its largest error."""
    timex = _Timex()
    try:
        state = ctypes.CDLL(None).adjtimex(ctypes.byref(timex))
    except (OSError, AttributeError):
        return None, 0.0
    return (None, 0.0) if state < 0 else (state != _TIME_ERROR, timex.maxerror / 1e6)


def look_at_software() -> Software:
    needed = {}
    with contextlib.suppress(metadata.PackageNotFoundError):
        for requirement in metadata.requires(DISTRIBUTION) or ():
            if found := re.match(r"([\w.-]+)\s*>=\s*([\d.]+)\s*$", requirement):
                needed[found[1]] = found[2]
    installed = {}
    for name in needed:
        with contextlib.suppress(metadata.PackageNotFoundError):
            installed[name] = metadata.version(name)
    python, kernel = platform.python_version(), platform.release()
    return Software(python, kernel, needed, installed, bool(hardware_based))


def look_at_holder(directory: str) -> Verdict:
    try:
        with held(directory):
            return judge.judge_holder(None)
    except Locked as error:
        found = re.search(r"in use by process (\d+)", str(error))
        return judge.judge_holder(found[1] if found else "?")
    except OSError as error:
        # Of another user, most often. Whether the server may open it, only its user can tell.
        text = f"its lock cannot be looked at: {error.strerror}"
        return Verdict("directory", "warn", text, "ask again as the server's user")


# --- the command ----------------------------------------------------------------------------


def _examine(directory: str, syncs: int) -> Iterator[Verdict]:
    began = time.time(), time.monotonic()
    place = look_at_place(directory)
    yield from judge.judge_file_system(place)
    yield from judge.judge_space(place)
    try:
        yield from judge.judge_syncs(place, measure_syncs(directory, syncs))
    except OSError as error:
        advice = "give the server's user the directory, and room in it"
        yield Verdict("sync", "bad", f"no file can be written and synced: {error}", advice)
    yield look_at_holder(directory)
    yield from judge.judge_limits(look_at_limits())
    yield from judge.judge_clock(look_at_clock(began))
    yield from judge.judge_software(look_at_software())


def _call(settings: Settings) -> Verdict:
    try:
        with settings.client() as client:
            began = time.perf_counter()
            wire.ping(client)
            took = (time.perf_counter() - began) * 1e3
            return Verdict("server", "ok", f"{wire.address(client)} answers within {took:.1f} ms")
    except RlogError as error:
        advice = "see whether it runs, what it says in its log, and where it listens"
        return Verdict("server", "bad", str(error), advice)


@command(
    short_help="Judge the machine: disk, limits, clock.",
    help="Judge whether this machine can keep what a server promises, with its data in DIR "
    "[default: here]: file system, space, syncs, limits, clock, software. With --addr also whether "
    "a server answers there. Nothing is changed. Exits 1 if anything is bad.",
)
@click.argument("directory", metavar="[DIR]", default=".")
@option(
    "--syncs",
    type=click.IntRange(1, 100_000),
    default=SYNCS,
    show_default=True,
    help="How many synced writes to measure.",
)
def doctor(settings: Settings, directory: str, syncs: int) -> int:
    if not os.path.isdir(directory):
        raise Stopped(Exit.NOT_FOUND, f"{directory} is no directory")
    verdicts = list(_examine(directory, syncs))
    if settings.addr is not None:
        verdicts.append(_call(settings))
    _show(settings.out, verdicts)
    bad = sum(each.level == "bad" for each in verdicts)
    return Exit.ERROR if bad else Exit.OK


def _show(out: Output, verdicts: list[Verdict]) -> None:
    if out.form is not None and out.form != "table":
        out.rows(each._asdict() for each in verdicts)
        return
    width = max(len(each.about) for each in verdicts)
    for each in verdicts:
        level = out.paint(each.level.ljust(4), _PAINTS[each.level])
        out.print(f"{level}  {each.about.ljust(width)}  {each.found}")
        if each.advice:
            out.print(f"{' ' * (width + 8)}-> {each.advice}")

"""What to think of a machine that is to keep a log: facts in, verdicts out. Pure.

A verdict is *bad* where the promises do not hold or a server will not run, *warn* where somebody
should know, *ok* otherwise; both of the former say what to do. What the machine does not tell is
not guessed: it is ok, and says so.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final, Literal, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

MIB: Final = 1 << 20
SPACE_MIN: Final = 512 * MIB  # the journal's files in use, a spare one, and something for segments
SPACE_LOW: Final = 2048 * MIB
INODES_LOW: Final = 4096
SYNC_SLOW_SECONDS: Final = 0.02
STALL_SECONDS: Final = 1.0
# A disk that has to write takes longer than this, unless its cache keeps what it was given.
SYNC_BELIEVED_SECONDS: Final = 50e-6
FILES_MIN: Final = 256
FILES_LOW: Final = 4096
MEMORY_LOW: Final = 1024 * MIB
FILE_SIZE_MIN: Final = 64 * MIB  # one journal file, or one segment
STEP_SECONDS: Final = 0.05
YEAR_2024: Final = 1_704_067_200

Level = Literal["ok", "warn", "bad"]


class Verdict(NamedTuple):
    """``found``: what is so; ``advice``: what to do about it, "" where nothing is to be done."""

    about: str
    level: Level
    found: str
    advice: str = ""


class Place(NamedTuple):
    """The file system below a directory. ``kind``: "" if the system does not say;
    ``options``: those of the mount, and of the file system.

    ``device``: the disk's name, "" if there is none that is known; ``write_cache``: as the kernel
    has it, "write back" or "write through", "" if it does not say.
    """

    kind: str
    options: frozenset[str]
    device: str
    write_cache: str
    virtual: bool  # a hypervisor is between us and the disk
    free_bytes: int
    total_bytes: int
    free_inodes: int
    total_inodes: int  # 0: made as they are needed


class Limits(NamedTuple):
    """Of a process, as they will count for a server; None: none. Sizes in bytes."""

    open_files: int | None
    memory: int | None
    file_size: int | None


class Clock(NamedTuple):
    """``synchronised`` None: the kernel does not say. ``step_seconds``: how far the wall clock has
    moved against the monotonic one while we looked.
    """

    synchronised: bool | None
    error_seconds: float
    step_seconds: float
    unix_seconds: float


class Software(NamedTuple):
    """``needed``, ``installed``: name -> version; ``hardware_crc``: the processor computes it."""

    python: str
    kernel: str
    needed: Mapping[str, str]
    installed: Mapping[str, str]
    hardware_crc: bool


# kind of file system -> what is thought of it
_FILE_SYSTEMS: Final[dict[str, tuple[Level, str, str]]] = {
    "": ("ok", "the system does not say which", ""),
    "ext4": ("ok", "", ""),
    "xfs": ("ok", "", ""),
    "ext3": ("warn", "space is reserved by writing zeros: slow", "use ext4 or xfs"),
    "btrfs": (
        "warn",
        "what is written again is copied: recycling the journal is slower, and fragments it",
        "chattr +C on the directory while it is empty, or use ext4 or xfs",
    ),
    "zfs": (
        "warn",
        "what is written again is copied, and a sync is what the property sync says",
        "zfs get sync: it must not be disabled",
    ),
    "f2fs": ("warn", "not tried by the tests", "mount it with fsync_mode=strict"),
    "overlay": (
        "bad",
        "a container's own layer: it goes away with the container",
        "put the directory on a volume",
    ),
    "tmpfs": ("bad", "memory: nothing outlives a power cut", "use a disk"),
    "ramfs": ("bad", "memory: nothing outlives a power cut", "use a disk"),
    "nfs": (
        "bad",
        "of the network: locks and syncs mean what the server makes of them",
        "use a disk",
    ),
    "9p": ("bad", "of another machine: a sync may go no further than its memory", "use a disk"),
    "vfat": ("bad", "it has no journal, and no way to reserve space", "use ext4 or xfs"),
}
_ALIASES: Final = {
    "nfs4": "nfs", "cifs": "nfs", "smb3": "nfs", "ceph": "nfs", "glusterfs": "nfs",
    "virtiofs": "9p", "exfat": "vfat", "msdos": "vfat",
}  # fmt: skip
_MEMORY: Final = re.compile(r"z?ram\d")  # disks that are none
_NO_BARRIER: Final = frozenset({"nobarrier", "barrier=0"})


def judge_file_system(place: Place) -> Iterator[Verdict]:
    about = "file system"
    kind = _ALIASES.get(place.kind, place.kind)
    default: tuple[Level, str, str] = ("warn", "not tried by the tests", "use ext4 or xfs")
    level, why, advice = _FILE_SYSTEMS.get(kind, default)
    yield Verdict(about, level, ": ".join(filter(None, (place.kind, why))), advice)
    if "ro" in place.options:
        yield Verdict(about, "bad", "mounted read-only", "mount it rw; dmesg may say why it is not")
    if off := _NO_BARRIER & place.options:
        text = f"mounted with {', '.join(sorted(off))}: a sync does not reach the disk"
        yield Verdict(about, "bad", text, "mount it without that")


def judge_space(place: Place) -> Iterator[Verdict]:
    free = f"{place.free_bytes / MIB:,.0f} MiB free of {place.total_bytes / MIB:,.0f}"
    level: Level = "ok"
    if place.free_bytes < SPACE_LOW:
        level = "warn" if place.free_bytes >= SPACE_MIN else "bad"
    advice = "" if level == "ok" else "make room: on a full disk appends are refused"
    yield Verdict("space", level, free, advice)
    if place.total_inodes:
        level = "ok" if place.free_inodes >= INODES_LOW else "warn"
        if place.free_inodes < INODES_LOW // 64:
            level = "bad"
        found = f"{place.free_inodes:,} inodes free of {place.total_inodes:,}"
        yield Verdict("space", level, found, "" if level == "ok" else "remove small files")


def judge_syncs(place: Place, seconds: Sequence[float]) -> Iterator[Verdict]:
    """``seconds``: what each of some synced writes took, into space that was reserved."""
    about = "sync"
    ordered = sorted(seconds)
    median, high = ordered[len(ordered) // 2], ordered[(len(ordered) * 99 - 1) // 100]
    found = f"median {_short(median)}, p99 {_short(high)}, of {len(ordered)} synced writes"
    if median > SYNC_SLOW_SECONDS:
        advice = "a faster disk, larger batches, or the policy periodic"
        yield Verdict(about, "warn", f"{found}: an append alone waits that long", advice)
    elif high > STALL_SECONDS:
        yield Verdict(about, "warn", f"{found}: the disk stalls", "see who else writes to it")
    else:
        yield Verdict(about, "ok", found)
    yield judge_belief(place, median)


def judge_belief(place: Place, median: float) -> Verdict:
    """Whether a sync can have done what it says."""
    about = "write cache"
    on = f"{place.device or 'the disk'}{' (of a virtual machine)' if place.virtual else ''}"
    quick = median < SYNC_BELIEVED_SECONDS
    if place.kind in ("tmpfs", "ramfs") or _MEMORY.match(place.device):
        return Verdict(about, "bad", "there is no disk to sync to", "use a disk")
    if place.write_cache == "write through":
        return Verdict(about, "ok", f"{on} says that it keeps nothing back (write through)")
    if quick:
        text = f"{on} syncs in {_short(median)}: faster than a disk writes"
        advice = "make sure that its cache outlives a power cut (battery, capacitors)"
        if place.virtual:
            advice = "make sure that the host passes flushes on (not cache=unsafe)"
        return Verdict(about, "warn", text, advice)
    if place.write_cache == "write back":
        return Verdict(about, "ok", f"{on} has one, and takes the time to flush it (write back)")
    return Verdict(about, "ok", f"nothing is known of {on} but that a sync takes its time")


def judge_limits(limits: Limits) -> Iterator[Verdict]:
    about = "limits"
    files = limits.open_files
    if files is not None and files < FILES_LOW:
        level: Level = "warn" if files >= FILES_MIN else "bad"
        text = f"{files} open files: connections and segments share them"
        yield Verdict(about, level, text, "raise ulimit -Hn (LimitNOFILE=) to 65536")
    if limits.memory is not None and limits.memory < MEMORY_LOW:
        text = f"{limits.memory / MIB:,.0f} MiB of address space"
        yield Verdict(about, "warn", text, "raise ulimit -v (LimitAS=)")
    if limits.file_size is not None:
        level = "warn" if limits.file_size >= FILE_SIZE_MIN else "bad"
        text = f"no file may be larger than {limits.file_size / MIB:,.0f} MiB"
        yield Verdict(about, level, text, "raise ulimit -f (LimitFSIZE=) to unlimited")
    if files is None or files >= FILES_LOW:
        shown = "no limit" if files is None else f"{files:,}"
        yield Verdict(about, "ok", f"open files: {shown}")


def judge_clock(clock: Clock) -> Iterator[Verdict]:
    about = "clock"
    if clock.unix_seconds < YEAR_2024:
        yield Verdict(about, "bad", "it is years behind", "set it, and have it synchronised")
    if abs(clock.step_seconds) > STEP_SECONDS:
        text = f"it moved by {clock.step_seconds:+.2f} s while we looked"
        yield Verdict(about, "warn", text, "have it slewed, not stepped")
    if clock.synchronised is None:
        yield Verdict(about, "ok", "the kernel does not say whether it is synchronised")
    elif clock.synchronised:
        yield Verdict(about, "ok", f"synchronised, within {_short(clock.error_seconds)}")
    else:
        text = "not synchronised: timestamps, and ages for retention, are as wrong as it is"
        yield Verdict(about, "warn", text, "run chrony or systemd-timesyncd")


def judge_software(software: Software) -> Iterator[Verdict]:
    about = "software"
    yield Verdict(about, "ok", f"Python {software.python}, Linux {software.kernel}")
    for name, least in sorted(software.needed.items()):
        have = software.installed.get(name)
        if have is None:
            yield Verdict(about, "bad", f"{name} is missing", f"pip install '{name}>={least}'")
        elif _numbers(have) < _numbers(least):
            text = f"{name} {have} is older than {least}"
            yield Verdict(about, "bad", text, f"pip install '{name}>={least}'")
    if software.installed:
        versions = ", ".join(f"{name} {have}" for name, have in sorted(software.installed.items()))
        yield Verdict(about, "ok", versions)
    if not software.hardware_crc:
        text = "checksums are computed in software"
        yield Verdict(about, "warn", text, "a processor with SSE 4.2 or ARMv8 CRC is much faster")


def judge_holder(holder: str | None) -> Verdict:
    """``holder``: the process that has the directory, None for none."""
    found = "nobody serves it" if holder is None else f"process {holder} serves it"
    return Verdict("directory", "ok", found)


def _numbers(version: str) -> tuple[int, ...]:
    """1.2.3rc1 is (1, 2, 3): what counts for a lower bound."""
    found = re.match(r"\d+(\.\d+)*", version)
    return tuple(map(int, found[0].split("."))) if found else ()


def _short(seconds: float) -> str:
    if seconds < 1e-3:
        return f"{seconds * 1e6:.0f} µs"
    return f"{seconds * 1e3:.1f} ms" if seconds < 1 else f"{seconds:.1f} s"

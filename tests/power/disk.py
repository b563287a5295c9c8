"""The guest's disk: mounted as it is, or behind a device that fails on demand (dm-flakey)."""

from __future__ import annotations

import ctypes
import os
import subprocess
from pathlib import Path
from typing import Final

DEVICE: Final = "/dev/ubda"
_FLAKY: Final = "flaky"
_SECONDS: Final = 100_000  # of one state: for ever
_FINIT_MODULE: Final = 313  # of x86-64; there is no kmod in the guest that would know these modules
_libc: Final = ctypes.CDLL(None, use_errno=True)

# The file system commits its own journal no sooner than we ask: that is to meet a disk that works,
# for a file system that has lost its journal writes nothing more, and then there is no trap.
_MOUNT_OPTIONS: Final = {"ext4": "commit=600", "xfs": ""}
_XFS_LOG_WORKER: Final = Path("/proc/sys/fs/xfs/xfssyncd_centisecs")


def mount(device: str, directory: str, kind: str, options: str = "") -> None:
    os.makedirs(directory, exist_ok=True)
    arguments = (device.encode(), directory.encode(), kind.encode(), 0, options.encode())
    if _libc.mount(*arguments):
        raise OSError(ctypes.get_errno(), f"mount {kind} at {directory}")


def write_back_every(centiseconds: int) -> None:
    """Have the kernel write what nobody synced that often."""
    for name in ("dirty_writeback_centisecs", "dirty_expire_centisecs"):
        Path(f"/proc/sys/vm/{name}").write_text(str(centiseconds))


class FlakyDisk:
    """A disk on which every write fails from ``fail`` to ``heal``; reads go on."""

    def __init__(self) -> None:
        modules = Path(f"/usr/lib/uml/modules/{os.uname().release}/kernel/drivers/md")
        for name in ("dm-mod.ko", "dm-flakey.ko"):
            fd = os.open(modules / name, os.O_RDONLY)
            if _libc.syscall(_FINIT_MODULE, fd, b"", 0):
                raise OSError(ctypes.get_errno(), f"loading {name}")
            os.close(fd)
        self._sectors = int(Path("/sys/block/ubda/size").read_text())
        _dmsetup("create", _FLAKY, "--table", self._table(f"{_SECONDS} 0"))
        _dmsetup("mknodes")

    def mount(self, directory: str, kind: str) -> None:
        mount(f"/dev/mapper/{_FLAKY}", directory, kind, _MOUNT_OPTIONS[kind])
        if _XFS_LOG_WORKER.exists():
            _XFS_LOG_WORKER.write_text("720000")

    def fail(self) -> None:
        self._switch(self._table(f"0 {_SECONDS} 1 error_writes"))

    def heal(self) -> None:
        self._switch(self._table(f"{_SECONDS} 0"))

    def _table(self, states: str) -> str:
        return f"0 {self._sectors} flakey {DEVICE} 0 {states}"

    def _switch(self, table: str) -> None:
        _dmsetup("load", _FLAKY, "--table", table)
        # Without a flush, and without freezing the file system: nothing is synced by this.
        _dmsetup("resume", "--noflush", "--nolockfs", _FLAKY)


def _dmsetup(*arguments: str) -> None:
    # There is no udev that would make the device nodes.
    subprocess.run(["dmsetup", arguments[0], "--noudevsync", *arguments[1:]], check=True)

"""The only module that touches the disk: the first of the two seams.

Everything that rlog stores goes through ``Files``. ``Disk`` is the real one; the tests swap in a
simulated disk on which whatever was not synced persists in any subset, and which can fail. So the
calls here are those whose durability differs, no more, and each says what it promises:

- ``write`` promises nothing until ``sync``;
- a name that was created, renamed or removed promises nothing until ``sync_directory``;
- a ``sync`` that raises has lost what it should have synced, for good: never try it again.

Errors are OSError, as the system gave them. Paths are relative to the data directory.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import resource
import stat
import time
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

PAGE: Final = 4096
_PIECES_MAX: Final = 64  # of one writev: beyond that, joining the pieces is cheaper


class File(Protocol):
    """One open file. Closed when dropped; ``close`` is for those who cannot wait."""

    def size(self) -> int: ...

    def read(self, position: int, count: int) -> bytes:
        """``count`` bytes from ``position``; fewer only at the end of the file."""

    def read_cached(self, position: int, count: int) -> bytes | bytearray | None:
        """Like ``read``, but None rather than waiting for the disk."""

    def write(self, position: int, pieces: Sequence[bytes | bytearray | memoryview]) -> None:
        """All the pieces, one behind the other, from ``position`` on."""

    def sync(self) -> None:
        """Contents and size are on the disk when this returns."""

    def allocate(self, position: int, count: int) -> None:
        """Make sure that writing there cannot run out of space; extends the file with zeros.

        All or nothing: where it fails, no space is taken.
        """

    def truncate(self, size: int) -> None: ...

    def forget(self) -> None:
        """Drop what is cached, so that the next read comes from the disk.

        Synced first, or it stays cached.
        """

    def close(self) -> None: ...


class Files(Protocol):
    """A directory tree. ``path`` is relative, with ``/``; "" is the data directory itself."""

    def open(self, path: str, *, write: bool = True) -> File:
        """OSError for what is no plain file, and without waiting, should that be a pipe."""

    def create(self, path: str) -> File:
        """A new empty file; FileExistsError if there is one."""

    def names(self, path: str) -> list[str]:
        """What a directory holds, sorted; [] if there is no such directory."""

    def rename(self, old: str, new: str) -> None: ...

    def unlink(self, path: str) -> None: ...

    def make_directory(self, path: str) -> None:
        """Nothing happens if it is there."""

    def remove_directory(self, path: str) -> None:
        """Of an empty one."""

    def sync_directory(self, path: str) -> None:
        """The names in it are on the disk when this returns."""


class DiskFile:
    """A file descriptor, closed with its last reference: a reader in a thread may outlive a
    trim.
    """

    __slots__ = ("_fd",)

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def __del__(self) -> None:
        self.close()

    def close(self) -> None:
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def detach(self) -> int:
        """The descriptor, which is the caller's to close from here on."""
        fd, self._fd = self._fd, -1
        return fd

    def mode(self) -> int:
        return os.fstat(self._fd).st_mode

    def size(self) -> int:
        return os.fstat(self._fd).st_size

    def read(self, position: int, count: int) -> bytes:
        data = os.pread(self._fd, count, position)
        if len(data) == count or not data:
            return data
        parts = [data]
        have = len(data)
        while have < count and (data := os.pread(self._fd, count - have, position + have)):
            parts.append(data)
            have += len(data)
        return b"".join(parts)

    def read_cached(self, position: int, count: int) -> bytearray | None:
        buffer = bytearray(count)
        try:
            done = os.preadv(self._fd, [buffer], position, os.RWF_NOWAIT)
        except OSError as error:
            # EOPNOTSUPP: a file system that cannot tell; then every read may wait.
            if error.errno in (errno.EAGAIN, errno.EOPNOTSUPP):
                return None
            raise
        if done < count:
            # Short for want of cache, or at the end of the file: only a real read can tell.
            return None
        return buffer

    def write(self, position: int, pieces: Sequence[bytes | bytearray | memoryview]) -> None:
        if len(pieces) > _PIECES_MAX:
            pieces = [b"".join(pieces)]
        total = sum(map(len, pieces))
        done = os.pwritev(self._fd, pieces, position)
        if done == total:
            return
        rest = memoryview(b"".join(pieces))
        while done < total:
            count = os.pwrite(self._fd, rest[done:], position + done)
            if count == 0:
                raise OSError(errno.EIO, "write wrote nothing")
            done += count

    def sync(self) -> None:
        os.fdatasync(self._fd)

    def allocate(self, position: int, count: int) -> None:
        size = self.size()
        try:
            os.posix_fallocate(self._fd, position, count)
        except OSError:
            # ext4 keeps what it got until then: all that was free, for nothing.
            with contextlib.suppress(OSError):
                os.ftruncate(self._fd, size)
            raise

    def truncate(self, size: int) -> None:
        os.ftruncate(self._fd, size)

    def forget(self) -> None:
        os.posix_fadvise(self._fd, 0, 0, os.POSIX_FADV_DONTNEED)


class Disk:
    """The real thing, below one directory."""

    def __init__(self, root: str) -> None:
        self.root = os.path.abspath(root)

    def _path(self, path: str) -> str:
        return f"{self.root}/{path}" if path else self.root

    def open(self, path: str, *, write: bool = True) -> DiskFile:
        mode = os.O_RDWR if write else os.O_RDONLY
        # (O_NONBLOCK says nothing to a plain file. A pipe would wait for its other end.)
        file = DiskFile(os.open(self._path(path), mode | os.O_NONBLOCK | os.O_CLOEXEC))
        kind = file.mode()
        if stat.S_ISDIR(kind):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), self._path(path))
        if not stat.S_ISREG(kind):
            raise OSError(errno.ENXIO, "Not a plain file", self._path(path))
        return file

    def create(self, path: str) -> DiskFile:
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        return DiskFile(os.open(self._path(path), flags, 0o640))

    def names(self, path: str) -> list[str]:
        try:
            return sorted(os.listdir(self._path(path)))
        except FileNotFoundError:
            return []

    def rename(self, old: str, new: str) -> None:
        os.rename(self._path(old), self._path(new))

    def unlink(self, path: str) -> None:
        os.unlink(self._path(path))

    def make_directory(self, path: str) -> None:
        with contextlib.suppress(FileExistsError):
            os.mkdir(self._path(path), 0o750)

    def remove_directory(self, path: str) -> None:
        os.rmdir(self._path(path))

    def sync_directory(self, path: str) -> None:
        fd = os.open(self._path(path), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)


class Boot(NamedTuple):
    """This run of the machine: its id, "" if that cannot be known, and the ns since it began, time
    asleep included.
    """

    id: str
    uptime_ns: Callable[[], int]


def this_boot() -> Boot:
    clock = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)
    boot = ""
    with contextlib.suppress(OSError), open("/proc/sys/kernel/random/boot_id") as file:
        boot = file.read().strip()
    return Boot(boot, lambda: time.clock_gettime_ns(clock))


class Locked(Exception):
    """Another process serves this data directory."""


class Lock:
    """The data directory is ours while this lives: one process each. Creates the directory."""

    def __init__(self, root: str) -> None:
        if not os.path.isdir(root):
            os.makedirs(root, 0o750)
            Disk(os.path.dirname(os.path.abspath(root))).sync_directory("")
        self._fd = os.open(f"{root}/lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o640)
        try:
            # A lock of the open file, not a pid in it: it dies with the process, however that dies.
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(self._fd, 32, 0).decode(errors="replace").strip()
            os.close(self._fd)
            raise Locked(f"{root} is in use by process {holder or '?'}") from None
        self._process = os.getpid()
        os.ftruncate(self._fd, 0)
        os.pwrite(self._fd, f"{self._process}\n".encode(), 0)

    def release(self) -> None:
        """Let others have it; in a child of the process that took it, only forget it."""
        if os.getpid() == self._process:
            # Closing alone would leave it to a child that has the descriptor for a moment.
            fcntl.flock(self._fd, fcntl.LOCK_UN)
        os.close(self._fd)


@contextlib.contextmanager
def alone_in(directory: str) -> Iterator[None]:
    """One server after the other: between a look at a name and its use no other has it."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def remove_socket(path: str) -> None:
    """Remove a Unix socket that a dead server left behind."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)


def raise_file_limit() -> int:
    """Allow as many open files as the system lets us; returns the limit."""
    _soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard

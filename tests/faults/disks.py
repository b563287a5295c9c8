"""File systems of a few megabytes, to be filled: a tmpfs, or ext4 in a file.

ext4 is another matter than tmpfs: an allocation that fails there keeps what it got until then.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

KINDS: Final = ("tmpfs", "ext4")
_PATH: Final = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"


class Unavailable(Exception):
    """No such file system can be made here; the text says why."""


@contextlib.contextmanager
def mounted(kind: str, at: Path, size_bytes: int) -> Iterator[Path]:
    """An empty file system at ``at`` while the block runs. Raises Unavailable."""
    at.mkdir()
    if kind == "tmpfs":
        _run("mount", "-t", "tmpfs", "-o", f"size={size_bytes}", "tmpfs", str(at))
    else:
        image = at.with_suffix(".image")
        with image.open("wb") as file:
            file.truncate(size_bytes)
        _run("mkfs.ext4", "-q", "-O", "^has_journal", str(image))
        _run("mount", "-o", "loop", str(image), str(at))
    try:
        yield at
    finally:
        _run("umount", "--lazy", str(at))


def _run(*command: str) -> None:
    try:
        done = subprocess.run(
            command, capture_output=True, check=False, env=os.environ | {"PATH": _PATH}
        )
    except FileNotFoundError:
        raise Unavailable(f"there is no `{command[0]}` here: scripts/tools install") from None
    if done.returncode != 0:
        raise Unavailable(f"`{' '.join(command)}`: {done.stderr.decode().strip()}")


class Ballast:
    """A file of somebody else, which takes what space there is."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def take_all(self) -> None:
        """To the last byte."""
        fd = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        try:
            for piece in (1 << 16, 1 << 12, 1):
                with contextlib.suppress(OSError):
                    while True:
                        os.write(fd, bytes(piece))
        finally:
            os.close(fd)

    def give_back(self) -> None:
        with contextlib.suppress(FileNotFoundError):
            self._path.unlink()


def free_bytes(at: Path) -> int:
    found = os.statvfs(at)
    return found.f_bavail * found.f_frsize

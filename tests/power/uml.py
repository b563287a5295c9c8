"""A machine whose power can be cut: a Linux kernel that runs as a process (user-mode Linux).

``kill -9`` of that kernel is the power cut. Fault model: whatever only the guest's page cache held
is gone, as are the names, sizes and extents that its file system had not committed yet; what the
guest's kernel had handed to its block device is in the image, which the host's page cache stands
for. So a sync that is left out is seen, at any depth of the real file systems; but the device
itself neither reorders nor forgets what it was given before a flush (tests/storage does that), and
a sector is not torn.

The guest boots in about two seconds. It sees the files of the host read-only, and so this very
interpreter and these sources; its first process is Python, running ``tests.power.guest``. Its only
disk is a file. It tells what it does down a serial line (``telling``), apart from the console, into
which the kernel speaks.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final, Self

from . import guest, telling  # what is compiled here need not be in every guest

if TYPE_CHECKING:
    from collections.abc import Callable

    from .plan import FileSystem, Plan

ROOT: Final = Path(__file__).parents[2]
IMAGE_BYTES: Final = 320 << 20  # sparse; XFS takes no less than 300 MiB
MEMORY: Final = "192M"
BOOT_SECONDS: Final = 60.0  # these are only there to find out that it hangs
END_SECONDS: Final = 60.0
_BOOTS_MAX: Final = 3
_PIPE_BYTES: Final = 1 << 20  # so that the guest never waits for a host that is busy
_PATH: Final = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"
_CONSOLE: Final = ("con=null", "con0=null,fd:1")
_MODULES: Final = Path("/usr/lib/uml/modules")


class Unavailable(Exception):
    """There are no such machines here; the text says why."""


class Down(Exception):
    """The guest ended, or fell silent, before it told what was waited for."""


def tool(name: str) -> str:
    found = shutil.which(name, path=_PATH)
    if found is None:
        raise Unavailable(f"there is no `{name}` here: scripts/uml install")
    return found


@functools.cache
def check_available() -> None:
    for name in ("linux.uml", "mkfs.ext4", "mkfs.xfs", "dmsetup"):
        tool(name)
    if not any(_MODULES.glob("*/kernel/drivers/md/dm-flakey.ko")):
        raise Unavailable(f"there is no dm-flakey.ko below {_MODULES}")
    with tempfile.TemporaryDirectory() as directory:
        # Not in every container: it has to trace its processes. Without a root it ends by itself.
        said = subprocess.run(
            [tool("linux.uml"), "mem=64M", *_CONSOLE, f"uml_dir={directory}/"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=BOOT_SECONDS,
        ).stdout
    if b"Linux version" not in said:
        raise Unavailable(f"linux.uml does not run here: {said[-300:].decode(errors='replace')}")


def make_image(path: Path, file_system: FileSystem) -> Path:
    with path.open("wb") as image:
        image.truncate(IMAGE_BYTES)
    force = {"ext4": "-F", "xfs": "-f"}[file_system]
    subprocess.run([tool(f"mkfs.{file_system}"), "-q", force, str(path)], check=True)
    return path


class Guest:
    """A booted machine. A context manager: nothing of it is left at the end."""

    def __init__(self, image: Path, plan: Plan) -> None:
        self._directory = image.parent
        self.console = image.with_suffix(".console")
        self._read, write = os.pipe()
        fcntl.fcntl(self._read, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
        self._rest = b""
        self.heard = self.torn = 0  # lines
        command = [
            *(tool("linux.uml"), f"mem={MEMORY}", f"ubd0={image}", f"uml_dir={self._directory}/"),
            *("rootfstype=hostfs", "rootflags=/", "ro", "quiet", "selinux=0"),
            *(*_CONSOLE, "ssl=null", f"ssl0=null,fd:{write}"),
            *(f"PYTHONPATH={ROOT}", "PYTHONDONTWRITEBYTECODE=1", f"init={sys.executable}"),
            *("--", "-m", guest.__name__, plan.word()),
        ]
        try:
            with self.console.open("ab") as console:
                self._process = subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=console,
                    stderr=console,
                    pass_fds=[write],
                    start_new_session=True,  # all of its processes are one group: see ``_kill``
                )
        finally:
            os.close(write)

    def hear(
        self, listener: Callable[[telling.Any], None], until: Callable[[], bool], seconds: float
    ) -> None:
        """Hand on what is told until ``until()``. Down: it ended, or the seconds have passed."""
        deadline = time.monotonic() + seconds
        while not until():
            if not self._hear_some(listener, deadline - time.monotonic()):
                raise Down(f"the guest {self._state()}; its console: {self.said()}")

    def hear_for(self, listener: Callable[[telling.Any], None], seconds: float) -> None:
        """Hand on what is told within these seconds."""
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0:
            if not self._hear_some(listener, left) and self._process.poll() is not None:
                raise Down(f"the guest {self._state()}; its console: {self.said()}")

    def _hear_some(self, listener: Callable[[telling.Any], None], seconds: float) -> bool:
        """One read; False: it ended, or the seconds have passed."""
        if not select.select([self._read], [], [], max(seconds, 0.0))[0]:
            return False
        data = os.read(self._read, 1 << 16)
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            event = telling.decode(line)
            if event is None:
                self.torn += 1
            else:
                self.heard += 1
                listener(event)
        return bool(data)

    def cut(self, listener: Callable[[telling.Any], None]) -> None:
        """Cut the power, now; then hand on what was told before."""
        self._kill()
        while self._hear_some(listener, END_SECONDS):
            pass
        if self._rest:
            self.torn += 1

    def runs(self) -> bool:
        """It has told something."""
        return self.heard > 0

    def said(self) -> str:
        """The end of what the kernel and the server said."""
        return self.console.read_text(errors="replace")[-6000:]

    def _state(self) -> str:
        ended = self._process.poll()
        return "fell silent" if ended is None else f"ended with {ended}"

    def _kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait(END_SECONDS)

    def close(self) -> None:
        self._kill()
        os.close(self._read)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.close()


class Machine:
    """One disk, and a machine around it that is booted again and again."""

    def __init__(self, directory: Path, file_system: FileSystem) -> None:
        check_available()
        self.file_system = file_system
        self._image = make_image(directory / f"{file_system}.img", file_system)
        self.boots_that_hung = 0

    def boot(
        self, plan: Plan, listener: Callable[[telling.Any], None], tries: int = _BOOTS_MAX
    ) -> Guest:
        """A guest that runs; one that hangs before it has touched the disk is tried again."""
        booted = Guest(self._image, plan)
        try:
            booted.hear(listener, booted.runs, BOOT_SECONDS)
        except BaseException as error:
            booted.close()
            if not isinstance(error, Down) or tries == 1:
                raise
            self.boots_that_hung += 1
            return self.boot(plan, listener, tries - 1)
        return booted

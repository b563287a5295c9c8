"""Servers as processes of their own, for tests to talk to, stop, pause and kill."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar
from weakref import WeakSet

import rlog_client as rlog

if TYPE_CHECKING:
    from collections.abc import Callable

ROOT = Path(__file__).parents[2]
START_SECONDS = 60.0  # only to find out that it hangs


def eventually(condition: Callable[[], bool], what: str, seconds: float = 30.0) -> None:
    """Wait until ``condition()``; the seconds are only there to find out that it never comes."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"never: {what}")
        time.sleep(0.005)


class Server:
    """One server process on ``data_dir``; its Unix socket and what it says lie beside that."""

    started: ClassVar[WeakSet[Server]] = WeakSet()

    def __init__(self, data_dir: Path, *options: str, name: str = "") -> None:
        self.data_dir = data_dir
        beside = data_dir.parent / (name or data_dir.name)
        self.socket = beside.with_suffix(".sock")
        self.said = beside.with_suffix(".log")
        self._options = options
        self.process: subprocess.Popen[bytes] | None = None
        self.unix = f"rlog+unix://{self.socket}"
        self.tcp = ""

    def launch(self, *more: str) -> subprocess.Popen[bytes]:
        """Start it, and do not wait until it serves. ``more``: further options."""
        command = [
            *(sys.executable, "-m", "tests.e2e.serve_here", str(self.data_dir)),
            *("--listen", f"unix:{self.socket}", "--listen", "127.0.0.1:0"),
            *self._options,
            *more,
        ]
        Server.started.add(self)
        with self.said.open("wb") as said:
            self.process = subprocess.Popen(command, cwd=ROOT, stdout=said, stderr=said)
        return self.process

    def start(self, *more: str) -> Server:
        process = self.launch(*more)
        eventually(
            lambda: self._serves or process.poll() is not None, "the server serves", START_SECONDS
        )
        assert self._serves, f"exit {process.returncode}: {self.text}"
        found = re.search(r"rlog://127\.0\.0\.1:\d+", self.text)
        assert found is not None, self.text
        self.tcp = found[0]
        return self

    @property
    def text(self) -> str:
        """What it said since it was started."""
        return self.said.read_text(errors="replace")

    @property
    def _serves(self) -> bool:
        return re.search(r"^INFO serving .*\n", self.text, re.MULTILINE) is not None

    @property
    def alive(self) -> bool:
        return self.process is not None and self.process.poll() is None

    @property
    def rss_bytes(self) -> int:
        """How much memory the process holds."""
        assert self.process is not None
        fields = Path(f"/proc/{self.process.pid}/statm").read_text().split()
        return int(fields[1]) * os.sysconf("SC_PAGE_SIZE")

    def signal(self, number: signal.Signals) -> None:
        assert self.process is not None
        self.process.send_signal(number)

    def pause(self) -> None:
        assert self.process is not None
        self.signal(signal.SIGSTOP)
        stat = Path(f"/proc/{self.process.pid}/stat")
        eventually(lambda: stat.read_text().rpartition(")")[2].split()[0] == "T", "it is paused")

    def resume(self) -> None:
        self.signal(signal.SIGCONT)

    def wait(self, seconds: float = 60.0) -> int:
        assert self.process is not None
        return self.process.wait(seconds)

    def stop(self) -> None:
        """Ask it to end, and wait until it has."""
        self.signal(signal.SIGTERM)
        assert self.wait() == 0, self.text

    def kill(self) -> None:
        if self.process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.process.pid, signal.SIGKILL)
            self.process.wait()

    def connect(self, *, timeout: float | None = 30.0, name: str = "") -> rlog.Client:
        return rlog.connect(self.unix, timeout=timeout, name=name)

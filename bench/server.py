"""Servers as processes of their own, on loopback: rlog's, and those of its peers."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final, Self

import rlog_client

from .machine import below

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

RLOG: Final = str(Path(sys.executable).with_name("rlog"))
_START_SECONDS: Final = 60.0
_STOP_SECONDS: Final = 30.0


class DidNotStart(Exception):
    """A server ended, or answered to nobody: with the end of what it said."""


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
        return port


@contextlib.contextmanager
def held_back() -> Iterator[None]:
    """SIGINT and SIGTERM come when the block is over: in the middle of its start, a process is
    known to nobody who could end it.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # where no signal comes
        return
    came: list[int] = []

    def later(number: int, _frame: object) -> None:
        came.append(number)

    before = {number: signal.signal(number, later) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        for came_number in came:
            signal.raise_signal(came_number)


class Daemon:
    """A server's process, ended by its id; with its group, where it has children.

    What it says goes to a file beside ``directory``.
    """

    def __init__(
        self,
        command: Sequence[str | Path],
        directory: Path,
        *,
        environment: dict[str, str] | None = None,
        stop: signal.Signals = signal.SIGTERM,
    ) -> None:
        self._stop = stop
        self._said = directory.with_name(f"{directory.name}.server-log")
        process = None
        try:
            with held_back(), self._said.open("ab") as output:
                process = subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    env=os.environ | (environment or {}),
                    start_new_session=True,
                )
        except BaseException:
            if process is not None:
                process.kill()
                process.wait()
            raise
        self._process = process
        self.pid = process.pid

    def wait_for(self, ready: Callable[[], object], *errors: type[Exception]) -> None:
        """Until ``ready`` raises none of ``errors``; what fails to start does not stay."""
        deadline = time.monotonic() + _START_SECONDS
        try:
            while True:
                try:
                    ready()
                    return
                except errors as error:
                    if not self.alive or time.monotonic() > deadline:
                        said = self._said.read_text(errors="replace")[-2000:]
                        raise DidNotStart(f"{error!r}\n{said}") from None
                    time.sleep(0.002)
        except BaseException:
            self.close()
            raise

    def wait_for_port(self, port: int) -> None:
        self.wait_for(lambda: socket.create_connection(("127.0.0.1", port)).close(), OSError)

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    @property
    def pids(self) -> list[int]:
        """Its process and all below it."""
        return [self.pid, *below(self.pid)]

    def close(self) -> None:
        """A clean stop; what does not end by it is killed."""
        if self.alive:
            self._process.send_signal(self._stop)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(_STOP_SECONDS)
        self.kill()

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self._process.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


class Server(Daemon):
    """``rlog serve`` over ``directory``; ``start_seconds``: until it answered."""

    def __init__(self, directory: str, sync: str = "always") -> None:
        self.port = free_port()
        self.url = f"rlog://127.0.0.1:{self.port}"
        command = [RLOG, "serve", "--data-dir", directory, "--sync", sync]
        began = time.monotonic()
        super().__init__([*command, "--listen", f"127.0.0.1:{self.port}"], Path(directory))
        self.wait_for(lambda: rlog_client.connect(self.url).close(), rlog_client.ConnectionLost)
        self.start_seconds = time.monotonic() - began

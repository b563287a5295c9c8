"""What the comparison asks of every system: to start, to append, to consume, to say how.

A peer is started over an empty directory, under one of two classes of durability, which are never
compared with each other:

- ``SYNCED``: what is acknowledged was synced to the disk before (fsync, fdatasync or O_SYNC: every
  peer's module says what it calls, as seen by strace).
- ``LATER``: what is acknowledged is synced some time later, or never; the peer's ``kept`` says so.

Where a client has several ways to do a thing, each is a ``Way`` with what it costs in safety: how
many records share an acknowledgement, a sync, a commit. Every peer has one way at the batch that
all have in common, and the others that its documentation recommends for speed.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import time
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from importlib import metadata
from pathlib import Path
from typing import ClassVar, Final, NamedTuple, Self

from ..harness import used

SYNCED: Final = "synced before acknowledged"
LATER: Final = "synced later"
CLASSES: Final = (SYNCED, LATER)
NEVER: Final = "never"  # as many records as share a sync
_START_SECONDS: Final = 60.0
_STOP_SECONDS: Final = 30.0

Once = Callable[[bytes], object]  # one record, acknowledged when it returns
OnceAsync = Callable[[bytes], Awaitable[object]]


class Missing(Exception):
    """A peer cannot be run here: why."""


class Way(NamedTuple):
    """One way to append, or to consume, many records.

    ``append`` takes records and returns the seconds from the first until the last is acknowledged;
    ``consume`` takes a number of records and returns the seconds until so many were handed to a
    ``for`` loop (or the callback that the client has in its place) and the cursor behind the last
    is committed. Connections are made before, and leftovers removed after that.

    ``per_ack``, ``per_sync``: records that share one. ``equal``: it is at the common batch.
    ``ranked``: it takes part in the best of each.
    """

    name: str
    run: Callable[..., float]
    per_ack: str
    per_sync: str
    per_commit: str = ""
    equal: bool = False
    ranked: bool = True


class Peer(ABC):
    """A system that runs, over a directory of its own.

    ``kept``: what each class that it can be run under means there. ``client``: what speaks to it.
    ``processes``: it can be used by several at once.
    """

    name: ClassVar[str]
    kept: ClassVar[dict[str, str]]
    client: str
    processes: ClassVar[bool] = True

    @classmethod
    @abstractmethod
    def check(cls) -> None:
        """Missing, if it cannot be run here."""

    @abstractmethod
    def __init__(self, directory: Path, kept: str) -> None:
        """Start it over the empty ``directory``, under the class ``kept``."""

    @abstractmethod
    def close(self) -> None: ...

    @property
    def pids(self) -> list[int]:
        """The server's processes."""
        return []

    @abstractmethod
    def appends(self, batch: int) -> list[Way]:
        """``batch``: the common one, in records. Each run ends with the stream removed."""

    @abstractmethod
    def consumes(self, batch: int) -> list[Way]: ...

    @abstractmethod
    def fill(self, records: Sequence[bytes]) -> None:
        """Make the stream that ``consumes`` reads anew, of these records."""

    def one(self) -> AbstractContextManager[Once] | None:
        """A blocking client of its own, where there is one: for threads and processes."""
        return None

    def many(self, in_flight: int) -> AbstractAsyncContextManager[OnceAsync] | None:
        """An asyncio client, where there is one, for so many tasks at once."""
        return None

    def seconds(self) -> float:
        """Processor seconds that its server used so far."""
        return sum(map(used, self.pids))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


class Daemon:
    """A server's process, on loopback, ended by its id; with its group, where it has children."""

    def __init__(
        self,
        command: Sequence[str | Path],
        directory: Path,
        *,
        environment: dict[str, str] | None = None,
        stop: signal.Signals = signal.SIGTERM,
    ) -> None:
        self._stop = stop
        self._log = directory.with_name(f"{directory.name}.server-log")
        with self._log.open("ab") as output:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=os.environ | (environment or {}),
                start_new_session=True,
            )
        self.pid = self._process.pid

    def await_(self, ready: Callable[[], object], *errors: type[Exception]) -> None:
        """Until ``ready`` raises none of ``errors``, or it ends."""
        deadline = time.monotonic() + _START_SECONDS
        while True:
            try:
                ready()
                return
            except errors as error:
                if self._process.poll() is not None or time.monotonic() > deadline:
                    self.close()
                    said = self._log.read_text(errors="replace")[-2000:]
                    raise Missing(f"did not start: {error!r}\n{said}") from None
                time.sleep(0.01)

    def await_port(self, port: int) -> None:
        self.await_(lambda: socket.create_connection(("127.0.0.1", port)).close(), OSError)

    @property
    def pids(self) -> list[int]:
        """Its process and all below it."""
        return [self.pid, *_below(self.pid)]

    def close(self) -> None:
        if self._process.poll() is None:
            self._process.send_signal(self._stop)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(_STOP_SECONDS)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self._process.wait()


def _below(pid: int) -> list[int]:
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return []
    return [each for child in children for each in (int(child), *_below(int(child)))]


def versions(*names: str) -> str:
    """ "redis 8.1.0, hiredis 3.5.0"; Missing, where one is not installed."""
    try:
        return ", ".join(f"{name} {metadata.version(name)}" for name in names)
    except metadata.PackageNotFoundError as error:
        raise Missing(f"{error.name} is not installed: scripts/peers install") from None


def chunks(records: Sequence[bytes], batch: int) -> list[Sequence[bytes]]:
    return [records[at : at + batch] for at in range(0, len(records), batch)]

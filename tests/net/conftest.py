"""Hosts that can vanish, a server on one of them, and clients on the others."""

from __future__ import annotations

import contextlib
import itertools
import re
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.e2e.conftest import guard, place
from tests.e2e.serving import Server, eventually

from .hosts import Connection, Link, Net, Unavailable

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable, Iterator

__all__ = ["guard", "place"]

_numbers = itertools.count()


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "patience(seconds): how long this test may take; not a goal")


class FarServer(Server):
    """A server on a host of its own. From here it is reached by its Unix socket all the same."""

    def __init__(self, net: Net, data_dir: Path, user_timeout_ms: int | None = None) -> None:
        super().__init__(data_dir)
        self.net = net
        self._user_timeout_ms = user_timeout_ms

    def launch(self, *more: str) -> subprocess.Popen[bytes]:
        module = (
            ["tests.e2e.serve_here"]
            if self._user_timeout_ms is None
            else ["tests.net.serve_there", str(self._user_timeout_ms)]
        )
        Server.started.add(self)
        self.process = self.net.start(
            self.net.server,
            *(sys.executable, "-m", *module, str(self.data_dir)),
            *("--listen", f"unix:{self.socket}", "--listen", "127.0.0.1:0"),
            *("--listen", "0.0.0.0:0", *more),
            said=self.said,
        )
        return self.process

    def url(self, link: Link) -> str:
        """Where the host behind a link finds it."""
        found = re.search(r"rlog://0\.0\.0\.0:(\d+)", self.text)
        assert found is not None, self.text
        return f"rlog://{link.server_address}:{found[1]}"


class Client:
    """A process on another host that does one thing (see ``clients``) with a log of its own."""

    def __init__(self, server: FarServer, link: Link, log: str, what: str, *options: str) -> None:
        self.link = link
        self.log = log
        self.said = server.data_dir.parent / f"client{next(_numbers)}.log"
        module = [sys.executable, "-m", "tests.net.clients"]
        command = [*module, what, server.url(link), log, *options]
        self.process = server.net.start(link.host, *command, said=self.said)

    @property
    def text(self) -> str:
        """What it has said."""
        return self.said.read_text(errors="replace")

    def says(self, pattern: str) -> re.Match[str] | None:
        return re.search(pattern, self.text, re.MULTILINE)

    def wait_for(self, pattern: str, seconds: float = 60.0) -> re.Match[str]:
        """Until it says a line like this."""
        with contextlib.suppress(AssertionError):
            eventually(
                lambda: self.says(pattern) is not None or self.process.poll() is not None,
                pattern,
                seconds,
            )
        found = self.says(pattern)
        assert found is not None, f"{self.log}: never {pattern!r}, but:\n{self.text}"
        return found

    @property
    def connection(self) -> Connection | None:
        """What the server's kernel has of it."""
        return self.link.connection(int(self.wait_for(r"^port (\d+)$")[1]))

    @property
    def connected(self) -> bool:
        """The server has not let go of it."""
        connection = self.connection
        return connection is not None and connection.established

    def waits_for(self, timer: int) -> bool:
        """Whether the server's kernel waits for this (see ``hosts``) of it."""
        connection = self.connection
        return connection is not None and connection.timer == timer

    def pause(self) -> None:
        self.process.send_signal(signal.SIGSTOP)
        stat = Path(f"/proc/{self.process.pid}/stat")
        eventually(lambda: stat.read_text().rpartition(")")[2].split()[0] == "T", "it is paused")

    def resume(self) -> None:
        self.process.send_signal(signal.SIGCONT)


@pytest.fixture(scope="module")
def net() -> Iterator[Net]:
    try:
        net = Net()
    except Unavailable as error:
        pytest.skip(f"no network namespaces can be made here: {error}")
    with net:
        yield net


@pytest.fixture(scope="module")
def make_far_server(net: Net, place: Path) -> Iterator[Callable[..., FarServer]]:
    """``make_far_server(user_timeout_ms=None)``: one that serves."""
    made: list[FarServer] = []

    def make(user_timeout_ms: int | None = None) -> FarServer:
        made.append(FarServer(net, place / f"far{next(_numbers)}", user_timeout_ms))
        made[-1].start()
        return made[-1]

    yield make
    for each in made:
        each.kill()

"""A real server for all tests here, others for whoever breaks them, and a guard against hanging."""

from __future__ import annotations

import itertools
import shutil
import signal
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from .serving import Server

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import FrameType

    import rlog_client as rlog

PATIENCE_SECONDS = 90.0
_numbers = itertools.count()


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "patience(seconds): how long this test may take; not a goal")


class Hangs(BaseException):
    """The test has taken so long that it will never end."""


@pytest.fixture(autouse=True)
def guard(request: pytest.FixtureRequest) -> Iterator[None]:
    def ring(number: int, frame: FrameType | None) -> None:
        for server in list(Server.started):
            if server.alive:
                server.signal(signal.SIGUSR2)
                time.sleep(0.2)
                print(server.data_dir, server.text)
        raise Hangs

    marker = request.node.get_closest_marker("patience")
    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, marker.args[0] if marker else PATIENCE_SECONDS)
    yield
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)


@pytest.fixture(scope="session")
def place() -> Iterator[Path]:
    """A directory with a name so short that sockets fit."""
    with tempfile.TemporaryDirectory(prefix="rlog-", ignore_cleanup_errors=True) as name:
        yield Path(name)


@pytest.fixture(scope="session")
def server(place: Path) -> Iterator[Server]:
    """The one that most tests share. It has to be alive and well at the end of them all."""
    server = Server(place / "shared").start()
    try:
        yield server
        assert server.alive, server.text
        server.stop()
        assert "Traceback" not in server.text, server.text
        assert "CRITICAL" not in server.text, server.text
    finally:
        server.kill()


@pytest.fixture
def make_server(place: Path) -> Iterator[Callable[..., Server]]:
    """``make_server(*options)``: a server of one's own on an empty directory, not started yet."""
    made: list[Server] = []

    def make(*options: str) -> Server:
        made.append(Server(place / f"own{next(_numbers)}", *options))
        return made[-1]

    yield make
    for each in made:
        each.kill()
        shutil.rmtree(each.data_dir, ignore_errors=True)


@pytest.fixture
def client(server: Server) -> Iterator[rlog.Client]:
    with server.connect(name="first") as client:
        yield client


@pytest.fixture
def other(server: Server) -> Iterator[rlog.Client]:
    with server.connect(name="second") as client:
        yield client


@pytest.fixture
def log(client: rlog.Client) -> rlog.Log:
    """A log of one's own, empty."""
    return client.log(f"log{next(_numbers)}", create=True)

"""One server for all tests of the command line, and a way to run the real command against it."""

from __future__ import annotations

import itertools
import subprocess
from typing import TYPE_CHECKING, Final

import pytest

from tests.server_process import RLOG, ServerProcess, environment

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

Done = subprocess.CompletedProcess[bytes]
RUN_SECONDS: Final = 60.0
_numbers = itertools.count()


class Rlog:
    """Runs ``rlog`` with a server's address in its environment."""

    def __init__(self, url: str) -> None:
        self.url = url

    def __call__(
        self, *arguments: str, input: bytes = b"", env: dict[str, str] | None = None
    ) -> Done:
        return subprocess.run(
            [RLOG, *arguments],
            input=input,
            capture_output=True,
            env=environment(**({"RLOG_ADDR": self.url} | (env or {}))),
            timeout=RUN_SECONDS,
            check=False,
        )

    def ok(self, *arguments: str, input: bytes = b"") -> bytes:
        """Its stdout; it has to succeed."""
        done = self(*arguments, input=input)
        assert done.returncode == 0, (arguments, done.returncode, done.stderr.decode())
        return done.stdout

    def start(self, *arguments: str, env: dict[str, str] | None = None) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [RLOG, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environment(**({"RLOG_ADDR": self.url} | (env or {}))),
        )


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    data_dir = tmp_path_factory.mktemp("cli") / "data"
    # A journal file that takes a batch of 8 MiB, so that the limits are the default ones.
    with ServerProcess(data_dir, "--journal-file-size", "16MiB") as running:
        yield running
        assert running.stop() == 0, running.log()


@pytest.fixture
def rlog(server: ServerProcess) -> Rlog:
    return Rlog(server.url)


@pytest.fixture
def log() -> str:
    """A name that no other test uses."""
    return f"log-{next(_numbers)}"


@pytest.fixture
def start_server() -> Iterator[Callable[..., ServerProcess]]:
    """Servers of the test's own, killed at its end."""
    started: list[ServerProcess] = []

    def start(*arguments: object, **named: object) -> ServerProcess:
        server = ServerProcess(*arguments, **named)  # type: ignore[arg-type]
        started.append(server)
        return server

    yield start
    for each in started:
        each.kill()

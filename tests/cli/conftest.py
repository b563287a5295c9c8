"""One server for all tests of the command line, and a way to run the real command against it."""

from __future__ import annotations

import contextlib
import itertools
import os
import subprocess
import tempfile
from typing import IO, TYPE_CHECKING, Any, Final

import pytest

from rlog.cli import main
from tests.server_process import RLOG, ServerProcess, environment

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

Done = subprocess.CompletedProcess[bytes]
RUN_SECONDS: Final = 60.0
PIPE_BYTES: Final = 32 * 1024
_numbers = itertools.count()


@contextlib.contextmanager
def redirected(input: bytes) -> Iterator[tuple[IO[bytes], IO[bytes]]]:
    """The three descriptors go elsewhere: stdin is a pipe, as far as it takes the input."""
    with contextlib.ExitStack() as stack:
        files = [stack.enter_context(tempfile.TemporaryFile()) for _ in range(3)]
        source = files[0].fileno()
        if len(input) <= PIPE_BYTES:
            source, sink = os.pipe()
            stack.callback(os.close, source)
            os.write(sink, input)
            os.close(sink)
        else:
            files[0].write(input)
            files[0].seek(0)
        for number, target in enumerate((source, files[1].fileno(), files[2].fileno())):
            saved = os.dup(number)
            stack.callback(os.close, saved)
            stack.callback(os.dup2, saved, number)
            os.dup2(target, number)
        yield files[1], files[2]


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
        """Its stdout; it has to succeed. Runs in this process: that is many times as fast."""
        with redirected(input) as (out, err), pytest.MonkeyPatch.context() as patch:
            for name in list(os.environ):
                if name.startswith("RLOG_") or name == "NO_COLOR":
                    patch.delenv(name)
            patch.setenv("RLOG_ADDR", self.url)
            code = main(arguments)
            out.seek(0)
            err.seek(0)
            assert code == 0, (arguments, code, err.read().decode())
            return out.read()

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

    def start(*arguments: Any, **named: Any) -> ServerProcess:
        server = ServerProcess(*arguments, **named)
        started.append(server)
        return server

    yield start
    for each in started:
        each.kill()

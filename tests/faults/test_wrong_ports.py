"""Promises 22 and 23 by mistake: our client at another's port, and somebody else's at ours."""

from __future__ import annotations

import contextlib
import re
import shutil
import subprocess
from typing import TYPE_CHECKING, Final

import pytest
import trio

import rlog_client as rlog
from tests.e2e.serving import eventually
from tests.server_process import RLOG, ServerProcess, environment

from .raw import dial
from .strangers import STRANGERS, stranger

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

TIMEOUT: Final = 0.5  # seconds that a client is told to try for
HANGS_SECONDS: Final = 60.0  # then it hangs


def needs(tool: str) -> pytest.MarkDecorator:
    missing = shutil.which(tool) is None
    return pytest.mark.skipif(missing, reason=f"there is no `{tool}` here: scripts/tools install")


# --- our client at somebody else's port -----------------------------------------------------------


@needs("openssl")
@pytest.mark.parametrize("kind", STRANGERS)
def test_a_client_at_a_strangers_port_is_told_so_and_does_not_hang(
    kind: str, tmp_path: Path
) -> None:
    with stranger(kind, tmp_path) as port:
        url = f"rlog://127.0.0.1:{port}"
        with pytest.raises(rlog.ConnectionLost, match=str(port)) as raised:
            rlog.connect(url, timeout=TIMEOUT)
        assert raised.value.retriable

        async def connect() -> None:
            async with rlog.connect_async(url, timeout=TIMEOUT) as client:
                await client.logs()

        with pytest.raises(rlog.ConnectionLost, match=str(port)):
            trio.run(connect)
        if kind in ("SMTP", "a flood"):
            assert "no greeting of this protocol" in str(raised.value)
        if kind not in ("silence", "a flood"):
            return
        done = subprocess.run(
            [RLOG, "ping", "-a", url, "--timeout", str(TIMEOUT)],
            capture_output=True,
            text=True,
            timeout=HANGS_SECONDS,
            env=environment(),
            check=False,
        )
        assert done.returncode == 4, done.stderr
        assert str(port) in done.stderr
        assert "Traceback" not in done.stderr


# --- somebody else's client at ours ---------------------------------------------------------------

LINES: Final = {
    "telnet": b"hello?\r\nanybody there?\r\n",
    "SSH": b"SSH-2.0-OpenSSH_9.9\r\n",
    "Redis": b"*1\r\n$4\r\nPING\r\n",
    "PostgreSQL": b"\0\0\0\x16\0\3\0\0user\0postgres\0\0",
    "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "a scanner": b"\x80\x2e\x01\x03\x01" + bytes(40),
    "NATS": b'CONNECT {"verbose":false}\r\nPING\r\n',
    "Kafka": b"\0\0\0\x23\0\x12\0\x04\0\0\0\x01\0\x0cconsole-prod" + bytes(15),
}
COMMANDS: Final = {
    "curl": ["curl", "--silent", "--max-time", "20", "http://{address}/"],
    "curl https": ["curl", "--silent", "--insecure", "--max-time", "20", "https://{address}/"],
    "openssl": ["openssl", "s_client", "-connect", "{address}"],
}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    with ServerProcess(tmp_path_factory.mktemp("strangers") / "data") as running:
        yield running
        with rlog.connect(running.url) as client:
            assert client.log("l", create=True).append(b"of use") == 0
        assert running.stop() == 0
        assert not re.search("Traceback|ERROR|CRITICAL", running.log()), running.log()


def complains(server: ServerProcess, before: str) -> None:
    """The server says whose mistake it was, in one line."""
    eventually(lambda: server.log() != before, "it says something")
    said = server.log().removeprefix(before)
    assert re.search(r"WARNING \S+ 127\.0\.0\.1:\d+ misbehaved: .*no greeting", said), said
    assert said.count("\n") == 1, said


@pytest.mark.parametrize("kind", LINES)
def test_what_a_stranger_says_is_the_end_of_it_and_a_line_in_the_log(
    server: ServerProcess, kind: str
) -> None:
    before = server.log()
    with dial(server.url) as sock:
        sock.sendall(LINES[kind])
        received = b""
        with contextlib.suppress(ConnectionError):
            while data := sock.recv(1000):
                received += data
    assert len(received) < 500
    complains(server, before)


@pytest.mark.parametrize("kind", [pytest.param(k, marks=needs(COMMANDS[k][0])) for k in COMMANDS])
def test_a_stranger_does_not_hang_at_our_port(server: ServerProcess, kind: str) -> None:
    before = server.log()
    command = [part.format(address=server.url[7:]) for part in COMMANDS[kind]]
    done = subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, timeout=HANGS_SECONDS, check=False
    )
    assert done.returncode not in (0, 28), done  # 28: curl's own timeout
    complains(server, before)

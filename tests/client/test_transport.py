"""URLs, and what the blocking driver promises about threads, forks and interrupts."""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from typing import TYPE_CHECKING

import pytest

import rlog_client as rlog
from rlog_client.transport import Address, parse_url

if TYPE_CHECKING:
    from pathlib import Path

    from .peer import Peer


@pytest.mark.parametrize(
    ("url", "address"),
    [
        ("rlog://h", Address("h", 7171)),
        ("rlog://h:1", Address("h", 1)),
        ("rlog://h:1/", Address("h", 1)),
        ("rlog://[::1]", Address("::1", 7171)),
        ("rlog://[::1]:99", Address("::1", 99)),
        ("rlog+unix:///run/rlog.sock", Address("", 0, "/run/rlog.sock")),
        ("rlog+unix:///a%20b", Address("", 0, "/a b")),
    ],
)
def test_urls(url: str, address: Address) -> None:
    assert parse_url(url) == address


@pytest.mark.parametrize(
    ("url", "names"),
    [
        ("", "begins with"),
        ("localhost:7171", "begins with"),
        ("http://h", "begins with"),
        ("rlog://", "no host"),
        ("rlog://h:0", "port 0"),
        ("rlog://h:x", "x"),
        ("rlog://h:70000", "out of range"),
        ("rlog://[::1", "IPv6"),
        ("rlog://h/path", "/path"),
        ("rlog://h?x=1", "query"),
        ("rlog://u:p@h", "user"),
        ("rlog+unix://relative", "three slashes"),
        ("rlog+unix:///", "three slashes"),
    ],
)
def test_a_bad_url_says_what_is_wrong(url: str, names: str) -> None:
    with pytest.raises(ValueError, match=names):
        parse_url(url)


def test_the_default_is_the_environments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RLOG_ADDR", raising=False)
    assert parse_url() == Address("127.0.0.1", 7171)
    monkeypatch.setenv("RLOG_ADDR", "rlog://other:5")
    assert parse_url() == Address("other", 5)


def test_an_unreachable_server_is_named(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    with pytest.raises(rlog.ConnectionLost, match=f"rlog://127.0.0.1:{port}"):
        rlog.connect(f"rlog://127.0.0.1:{port}", timeout=1.0)
    with pytest.raises(rlog.ConnectionLost, match=r"none\.sock"):
        rlog.connect(f"rlog+unix://{tmp_path}/none.sock")


def test_a_server_that_says_nothing_is_given_up() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        begun = time.monotonic()
        with pytest.raises(rlog.ConnectionLost, match="no greeting"):
            rlog.connect(f"rlog://127.0.0.1:{silent.getsockname()[1]}", timeout=0.1)
        assert time.monotonic() - begun < 2


def test_a_server_of_another_protocol_is_lost() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:

        def serve() -> None:
            connected, _ = other.accept()
            with connected:
                connected.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
                connected.recv(1000)

        thread = threading.Thread(target=serve)
        thread.start()
        with pytest.raises(rlog.ConnectionLost, match="protocol"):
            rlog.connect(f"rlog://127.0.0.1:{other.getsockname()[1]}", timeout=2.0)
        thread.join()


def test_a_closed_client_is_a_runtime_error(client: rlog.Client, log: rlog.Log) -> None:
    client.close()
    client.close()
    with pytest.raises(RuntimeError, match="closed"):
        log.append(b"x")


def test_a_second_thread_inside_is_a_runtime_error(client: rlog.Client, log: rlog.Log) -> None:
    reader = log.reader(rlog.OLDEST)
    thread = threading.Thread(target=list, args=(reader,))
    thread.start()
    time.sleep(0.05)
    with pytest.raises(RuntimeError, match="one thread"):
        log.append(b"x")
    reader.stop()
    thread.join()
    assert log.append(b"x") == 0


def test_a_client_does_not_work_in_a_forked_child(peer: Peer, log: rlog.Log) -> None:
    consumer = log.consumer("c")
    consumer.poll()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            log.append(b"x")
        except RuntimeError:
            code = 0
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert log.append(b"x") == 0
    assert "c" in peer.holders


# (Python prints and drops what is raised while a weak reference is called back.)
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_ctrl_c_at_any_moment_tears_no_message(peer: Peer) -> None:
    """Interrupt a sending client again and again: what it goes on to send is still understood."""

    class Interrupted(Exception):
        pass

    rung = 0

    def interrupt(number: int, frame: object) -> None:
        nonlocal rung
        rung += 1
        raise Interrupted

    before = signal.signal(signal.SIGALRM, interrupt)
    lost = done = 0
    try:
        while done < 150:
            client = rlog.connect(peer.url, timeout=5.0)
            log = client.log("l")
            while done < 150:
                done += 1
                rung = 0
                try:
                    # (On a busy machine it rings before this has returned.)
                    signal.setitimer(signal.ITIMER_REAL, 0.0002 + done % 13 * 0.00021)
                    while not rung:  # (it may have been raised where Python drops it)
                        log.append_many([b"x" * 300_000] * 3)
                except Interrupted:
                    pass
                except rlog.RlogError:
                    lost += 1
                    break
                finally:
                    signal.setitimer(signal.ITIMER_REAL, 0)
                try:
                    log.append(b"after")
                except rlog.ConnectionLost:
                    lost += 1
                    break
            client.close()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    # The few microseconds in which it costs the connection are few.
    assert lost < 30

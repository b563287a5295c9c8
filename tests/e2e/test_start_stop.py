"""How a server begins and ends: who gets the directory, what a stop answers, what a start finds."""

from __future__ import annotations

import contextlib
import signal
import socket
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest

import rlog_client as rlog
from rlog.config import AddressInUse, Listen
from rlog_client.protocol import Subscribe

from .serving import ROOT, Server, eventually

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

both = pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["TERM", "INT"])


def tree(root: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(root)): path.read_bytes()
        for path in sorted(root.rglob("*"))
        if path.is_file() and path.name != "lock"
    }


@both
def test_a_stop_answers_what_was_asked_and_makes_a_checkpoint(
    make_server: Callable[..., Server], number: signal.Signals
) -> None:
    server = make_server().start()
    acknowledged: dict[int, bytes] = {}
    unknown: list[rlog.RlogError] = []

    def work(client: rlog.Client, who: int) -> None:
        log = client.log("l")
        try:
            for i in range(10**9):
                value = b"%d %d" % (who, i)
                acknowledged[log.append(value)] = value
        except rlog.RlogError as error:
            unknown.append(error)
        client.close()

    with server.connect(timeout=2.0) as client:  # for so long each will try to come back
        client.log("l", create=True)
        threads = [threading.Thread(target=work, args=(client.clone(), who)) for who in range(4)]
        for thread in threads:
            thread.start()
        eventually(lambda: len(acknowledged) > 100, "they are at work")
        server.signal(number)
        for thread in threads:
            thread.join()
    assert server.wait() == 0, server.text
    assert f"stopping on {number.name}" in server.text
    assert "stopped" in server.text
    assert "WARNING" not in server.text
    assert "Traceback" not in server.text
    assert len(unknown) == 4
    server.start()
    assert "WARNING" not in server.text
    with server.connect() as client:
        there = {r.offset: r.value for r in client.log("l").reader(rlog.OLDEST, block=False)}
        assert there.items() >= acknowledged.items()
        # At most one each was in flight, and it is there or not.
        assert len(there) <= len(acknowledged) + 4
    server.stop()


@both
def test_a_start_behind_a_stop_has_nothing_to_replay(
    make_server: Callable[..., Server], number: signal.Signals
) -> None:
    server = make_server().start()
    with server.connect() as client:
        log = client.log("l", create=True)
        log.append_many([b"1", b"2"])
        with log.consumer("c", block=False) as consumer:
            consumer.process(lambda record: None, limit=1)
    server.signal(number)
    assert server.wait() == 0
    before = tree(server.data_dir / "logs")
    server.start()
    after = tree(server.data_dir / "logs")
    assert after.keys() == before.keys()
    # Cut to its length, that is all: what was reserved behind it is not needed now.
    assert all(before[name].startswith(after[name]) for name in before)
    with server.connect() as client:
        log = client.log("l")
        assert log.info().end == log.info().synced_end == 2
        assert log.cursor("c").info().committed == 1
        assert log.append(b"3") == 2


def test_waits_of_its_clients_do_not_hold_up_a_stop_and_outlive_it(
    make_server: Callable[..., Server],
) -> None:
    server = make_server().start()
    with server.connect(timeout=None) as client:
        log = client.log("l", create=True)
        reader = log.reader(rlog.OLDEST)

        def restart() -> None:
            server.stop()
            server.start()
            with server.connect() as other:
                other.log("l").append(b"1")

        restarter = threading.Timer(0.2, restart)
        restarter.start()
        assert next(reader).offset == 0
        restarter.join()


def test_a_client_that_does_not_read_cannot_hold_up_a_stop(
    make_server: Callable[..., Server],
) -> None:
    server = make_server().start()
    with server.connect() as idle, server.connect() as client:
        log = client.log("l", create=True)
        for _ in range(20):
            log.append(bytes(900_000))
        session = idle.log("l")._transport.session
        subscription = session.subscribe(Subscribe(log._id, rlog.OLDEST))
        session.lend(subscription, 1 << 30)
        idle._transport.serve()
        server.stop()


@both
def test_a_second_signal_ends_a_stop_that_takes_its_time(
    make_server: Callable[..., Server], number: signal.Signals
) -> None:
    server = make_server().start()
    with server.connect() as idle, server.connect() as client:
        log = client.log("l", create=True)
        for _ in range(20):
            log.append(bytes(900_000))
        session = idle.log("l")._transport.session
        subscription = session.subscribe(Subscribe(log._id, rlog.OLDEST))
        session.lend(subscription, 1 << 30)
        idle._transport.serve()
        server.signal(number)
        eventually(lambda: "stopping" in server.text, "it stops")
        server.signal(number)
        server.wait()
    server.start()
    with server.connect() as client:
        assert client.log("l").info().end == 20


# --- one process a directory ----------------------------------------------------------------


def test_a_second_server_on_the_directory_is_refused(make_server: Callable[..., Server]) -> None:
    server = make_server().start()
    rival = Server(server.data_dir, name="rival")
    assert rival.launch().wait(60) != 0
    assert "Locked" in rival.text
    assert server.process is not None
    assert str(server.process.pid) in rival.text
    with server.connect() as client:
        client.log("l", create=True).append(b"1")
    server.kill()
    rival.start()  # the lock dies with its holder, however that dies
    rival.kill()


@pytest.mark.patience(300)
def test_of_many_that_race_for_a_directory_one_wins(place: Path) -> None:
    data_dir = place / "raced"
    racers = [Server(data_dir, name=f"racer{i}") for i in range(20)]
    try:
        processes = [racer.launch() for racer in racers]
        eventually(lambda: sum(p.poll() is None for p in processes) == 1, "one is left", 120)
        [winner] = [racer for racer in racers if racer.alive]
        eventually(lambda: "serving" in winner.text, "it serves")
        assert sum("Locked" in racer.text for racer in racers) == 19
        with winner.connect() as client:
            assert client.log("l", create=True).append(b"1") == 0
        winner.stop()
        with winner.start().connect() as client:
            assert client.log("l").info().end == 1
    finally:
        for racer in racers:
            racer.kill()


# --- foreign directories --------------------------------------------------------------------


def test_a_directory_that_holds_something_else_is_refused_and_untouched(
    make_server: Callable[..., Server],
) -> None:
    server = make_server()
    server.data_dir.mkdir()
    (server.data_dir / "thesis.tex").write_text("three years of work")
    (server.data_dir / "more").mkdir()
    (server.data_dir / "more" / "data").write_bytes(bytes(100))
    before = tree(server.data_dir)
    assert server.launch().wait(60) != 0
    assert "not a data directory" in server.text
    assert tree(server.data_dir) == before


@pytest.mark.parametrize("lost", ["checkpoints", "journal"])
def test_a_directory_that_lost_a_part_is_refused_and_untouched(
    make_server: Callable[..., Server], lost: str
) -> None:
    server = make_server().start()
    with server.connect() as client:
        client.log("l", create=True).append(b"1")
    server.kill()
    if lost == "checkpoints":
        for path in server.data_dir.glob("checkpoint*"):
            path.unlink()
    else:
        short = max((server.data_dir / "journal").glob("[0-9]*"))
        short.write_bytes(short.read_bytes()[:-4096])
    before = tree(server.data_dir)
    assert server.launch().wait(60) != 0
    assert "Refused" in server.text
    assert tree(server.data_dir) == before


def test_an_address_in_use_is_an_error_and_no_server(make_server: Callable[..., Server]) -> None:
    server = make_server().start()
    rival = make_server()
    port = server.tcp.rpartition(":")[2]
    command = [sys.executable, "-m", "tests.e2e.serve_here", str(rival.data_dir)]
    done = subprocess.run(
        [*command, "--listen", f"127.0.0.1:{port}"], cwd=ROOT, capture_output=True, check=False
    )
    assert done.returncode != 0
    assert b"in use" in done.stderr
    done = subprocess.run(
        [*command, "--listen", f"unix:{server.socket}"], cwd=ROOT, capture_output=True, check=False
    )
    assert done.returncode != 0
    assert b"a server listens" in done.stderr
    with server.connect() as client:
        client.logs()


def test_of_two_servers_at_one_moment_one_takes_the_place_of_a_dead_one(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    starting = threading.Barrier(2)

    def start(_: int) -> socket.socket | None:
        starting.wait()
        with contextlib.suppress(AddressInUse):
            return Listen(f"unix:{path}").bind()
        return None

    with ThreadPoolExecutor(2) as servers:
        for _ in range(100):
            with socket.socket(socket.AF_UNIX) as dead:
                dead.bind(str(path))
            bound = [each for each in servers.map(start, range(2)) if each is not None]
            assert len(bound) == 1
            bound[0].close()
            path.unlink()


def test_a_socket_that_a_killed_server_left_is_no_obstacle(
    make_server: Callable[..., Server],
) -> None:
    server = make_server().start()
    server.kill()
    assert server.socket.exists()
    server.start().stop()

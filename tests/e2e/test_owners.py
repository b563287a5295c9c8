"""Exclusive producers against a real server: one at a time, whatever becomes of the one before."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from typing import TYPE_CHECKING

import pytest

import rlog_client as rlog

from .serving import ROOT, Server, eventually

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


def values(log: rlog.Log) -> list[bytes]:
    return [record.value for record in log.reader(rlog.OLDEST, block=False)]


@pytest.fixture
def start_owner() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """``start_owner(url, log, value, *options)``: a process that owns the log and sends."""
    made: list[subprocess.Popen[str]] = []

    def start(url: str, log: rlog.Log, value: str, *options: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "tests.e2e.owner", url, log.name, value, *options]
        made.append(subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True))
        return made[-1]

    yield start
    for each in made:
        each.kill()
        each.wait()
        assert each.stdout is not None
        each.stdout.close()


def line(owner: subprocess.Popen[str]) -> str:
    assert owner.stdout is not None
    return owner.stdout.readline().strip()


def test_a_second_owner_is_busy_in_the_same_client_too(log: rlog.Log, other: rlog.Client) -> None:
    beside = other.log(log.name)
    with log.producer(exclusive=True) as owner:
        assert log.info().owner == "first"
        for each in (log, beside):
            with pytest.raises(rlog.Busy) as raised:
                each.producer(exclusive=True).send(b"x")
            assert raised.value.holder == "first"
            with pytest.raises(rlog.Busy):
                each.append(b"x")
            with pytest.raises(rlog.Busy), each.producer() as shared:
                shared.send(b"x")
        assert owner.send(b"1").result() == 0
        assert [(i.name, i.owner) for i in log.producers()] == [(None, "first")]
    assert log.info().owner is None
    assert beside.append(b"2") == 1
    with beside.producer(exclusive=True) as second:
        assert second.epoch == owner.epoch + 1
    with pytest.raises(RuntimeError):
        owner.send(b"x")


def test_arguments_that_make_no_sense(log: rlog.Log) -> None:
    with pytest.raises(ValueError, match="exclusive"):
        log.producer(standby=True)
    with pytest.raises(ValueError, match="not both"):
        log.producer(exclusive=True, standby=True, takeover=True)
    with pytest.raises(TypeError):
        log.producer(name=b"p")  # type: ignore[arg-type]  # wrong on purpose
    for name in ("", "@p", "x" * 256, "a\n"):
        with pytest.raises(rlog.InvalidRequest):
            log.producer(name=name)


def test_who_is_taken_over_is_fenced_for_good(log: rlog.Log, other: rlog.Client) -> None:
    first = log.producer(exclusive=True)
    assert first.send(b"1").result() == 0
    with other.log(log.name).producer(exclusive=True, takeover=True) as second:
        assert second.epoch == first.epoch + 1
        late = first.send(b"late")
        with pytest.raises(rlog.Fenced):
            late.result()
        with pytest.raises(rlog.Fenced):
            first.flush()
        with pytest.raises(rlog.Fenced):
            first.send(b"later")
        first.close()
        assert second.send(b"2").result() == 1
    assert values(log) == [b"1", b"2"]


def test_who_was_taken_over_in_the_same_client_releases_nothing(log: rlog.Log) -> None:
    first = log.producer(exclusive=True)
    first.send(b"1").result()
    second = log.producer(exclusive=True, takeover=True)
    assert second.send(b"2").result() == 1
    first.close()
    assert second.send(b"3").result() == 2
    second.close()
    assert log.info().owner is None


def test_an_owner_that_was_stopped_is_fenced_when_it_goes_on(
    server: Server,
    log: rlog.Log,
    start_owner: Callable[..., subprocess.Popen[str]],
) -> None:
    """Stopped in the middle of its frames: they are in the socket, and in its buffers."""
    for _ in range(5):
        owner = start_owner(server.unix, log, "old")
        assert line(owner).startswith("owner")
        begin = log.info().end
        eventually(lambda begin=begin: log.info().end > begin + 200, "it sends")  # type: ignore[misc]  # bound to this turn of the loop
        owner.send_signal(signal.SIGSTOP)
        with log.producer(exclusive=True, takeover=True) as producer:
            first = producer.send(b"new").result()
            owner.send_signal(signal.SIGCONT)
            assert line(owner) == "Fenced"
            producer.send(b"new").result()
            producer.flush()
        assert owner.wait(30) == 0
        log.append(b"end")
        after = [r.value for r in log.reader(rlog.offset(first), block=False)]
        assert after == [b"new", b"new", b"end"]


def test_a_standby_takes_over_at_release_and_waits_in_order(server: Server, log: rlog.Log) -> None:
    order: list[str] = []
    owner = log.producer(exclusive=True)
    owner.send(b"owner").result()

    def stand_by(name: str) -> None:
        with (
            server.connect(name=name, timeout=0.2) as client,
            client.log(log.name).producer(exclusive=True, standby=True) as producer,
        ):
            order.append(name)
            producer.send(name.encode()).result()

    threads = []
    for name in ("a", "b", "c"):
        threads.append(threading.Thread(target=stand_by, args=(name,)))
        threads[-1].start()
        time.sleep(0.2)
    assert order == []
    owner.close()
    for thread in threads:
        thread.join(30)
    assert order == ["a", "b", "c"]
    assert values(log) == [b"owner", b"a", b"b", b"c"]


def test_a_standby_takes_over_at_kill_and_keeps_the_order(
    server: Server,
    log: rlog.Log,
    start_owner: Callable[..., subprocess.Popen[str]],
) -> None:
    owner = start_owner(server.unix, log, "old", "--name", "p")
    assert line(owner).startswith("owner")
    standby = log.producer(name="p", exclusive=True, standby=True)
    threading.Timer(0.5, owner.kill).start()
    begin = time.monotonic()
    last = standby.last_sequence
    assert 0.3 < time.monotonic() - begin < 10
    there = values(log)
    assert there == [b"old %d" % n for n in range(len(there))]
    assert last == len(there) - 1
    assert standby.send(b"new").result() == len(there)
    standby.close()


def test_waiting_in_standby_ends_at_once_on_ctrl_c(log: rlog.Log, other: rlog.Client) -> None:
    with other.log(log.name).producer(exclusive=True):
        standby = log.producer(exclusive=True, standby=True)
        threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT)).start()
        with pytest.raises(KeyboardInterrupt):
            standby.send(b"x")
    # It waits no longer: nothing is granted to nobody.
    time.sleep(0.05)
    log.info()
    assert log.info().owner is None
    assert standby.send(b"x").result() == 0
    standby.close()


def test_an_owner_comes_back_to_a_server_that_was_restarted(
    make_server: Callable[..., Server],
) -> None:
    server = make_server().start()
    with server.connect() as client, server.connect() as second:
        log = client.log("l", create=True)
        owner = log.producer(name="p", exclusive=True, batch_bytes=300)
        epoch = owner.epoch
        pending = [owner.send(b"%d" % n) for n in range(100)]
        server.kill()
        pending += [owner.send(b"%d" % n) for n in range(100, 200)]
        server.start()
        assert [each.result() for each in pending] == list(range(200))
        assert owner.epoch == epoch
        with pytest.raises(rlog.Busy):
            second.log("l").append(b"x")
        assert owner.last_sequence == 199
        owner.close()
        assert second.log("l").append(b"x") == 200
    server.stop()


def test_a_standby_keeps_waiting_over_a_restart(make_server: Callable[..., Server]) -> None:
    server = make_server().start()
    granted: list[int] = []
    with server.connect() as client:
        owner = client.log("l", create=True).producer(exclusive=True)
        owner.send(b"1").result()

        def stand_by() -> None:
            with (
                server.connect(timeout=1.0) as client,
                client.log("l").producer(exclusive=True, standby=True) as producer,
            ):
                granted.append(producer.send(b"3").result())

        waiting = threading.Thread(target=stand_by)
        waiting.start()
        time.sleep(0.3)
        server.kill()
        server.start()
        assert owner.send(b"2").result() == 1
        assert granted == []
        owner.close()
        waiting.join(30)
        assert granted == [2]
    server.stop()

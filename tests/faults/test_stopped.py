"""Promises 1, 12 and 16 where somebody stands still: SIGSTOP of the server, of an owner, of both.

Stopped, a process is as good as dead to the others, and does not know it: what it had under way
arrives late, or comes again. So an owner that was replaced meanwhile goes on believing that the log
is its own, with frames on their way; not one of them may get in.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from functools import partial
from typing import TYPE_CHECKING

import pytest

import rlog_client as rlog
from tests.e2e.serving import ROOT, eventually

from .work import Ledger, Work

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.server_process import ServerProcess


@pytest.fixture
def owners() -> Iterator[list[subprocess.Popen[str]]]:
    started: list[subprocess.Popen[str]] = []
    yield started
    for each in started:
        each.kill()
        each.communicate()


def has_records(log: rlog.Log, count: int) -> bool:
    return log.info().end >= count


@pytest.mark.patience(900)
def test_an_owner_that_was_stopped_and_replaced_gets_nothing_more_into_the_log(
    start_server: Callable[..., ServerProcess],
    owners: list[subprocess.Popen[str]],
    data_dir: Path,
    long: bool,
    seed: int,
    record_property: Callable[[str, object], None],
) -> None:
    chance = random.Random(seed)
    server = start_server(data_dir)
    rounds = 50 if long else 2
    with rlog.connect(server.url, timeout=60.0) as client:
        for number in range(rounds):
            log = client.log(f"l{number}", create=True)
            command = [sys.executable, "-m", "tests.e2e.owner", server.url, log.name, "old"]
            owner = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
            owners.append(owner)
            least = chance.randrange(1, 200)
            eventually(partial(has_records, log, least), "it is at work")
            if chance.random() < 0.5:
                server_stops = chance.uniform(0.0, 0.05)
                with stopped(server.pid):
                    time.sleep(server_stops)  # so that much is under way to it
                    owner.send_signal(signal.SIGSTOP)
            else:
                owner.send_signal(signal.SIGSTOP)
            with log.producer(exclusive=True, takeover=True) as producer:
                assert producer.epoch > 1
                first = producer.send(b"new").result()
                owner.send_signal(signal.SIGCONT)
                said, _ = owner.communicate(timeout=60)
                assert said.split() == ["owner", "1", "Fenced"]
                producer.send(b"new").result()
            values = [record.value for record in log.reader(rlog.OLDEST, block=False)]
            assert values[first:] == [b"new", b"new"]
            assert values[:first] == [b"old %d" % n for n in range(first)]
    record_property("owners that were stopped and replaced", rounds)


@contextlib.contextmanager
def stopped(pid: int) -> Iterator[None]:
    """The process stands still while the block runs."""
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


@pytest.mark.patience(900)
def test_a_server_that_was_stopped_again_and_again_goes_on_as_if_nothing_had_been(
    start_server: Callable[..., ServerProcess],
    data_dir: Path,
    long: bool,
    seed: int,
    record_property: Callable[[str, object], None],
) -> None:
    chance, ledger = random.Random(seed), Ledger()
    server = start_server(data_dir, "--journal-file-size", "128KiB")
    work = Work(server.url, ledger, 0)
    work.begin()
    stops = 100 if long else 5
    for _ in range(stops):
        with stopped(server.pid):
            time.sleep(chance.choice((0.0, 0.01, 0.3)))
        work.go_on(chance.randrange(1, 30))
    assert work.end() == []
    assert not {"OutcomeUnknown", "StorageFailed", "DiskFull"} & ledger.counts.keys()
    with rlog.connect(server.url) as client:
        assert ledger.check(client) == []
    server.kill()
    server = start_server(data_dir)
    with rlog.connect(server.url) as client:
        assert ledger.check(client) == []
    record_property("times the server was stopped", stops)

"""Ctrl-C and ``stop()``: every wait ends at once, and what was waited with goes on working."""

from __future__ import annotations

import contextlib
import gc
import itertools
import os
import signal
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import rlog_client as rlog

from .serving import ROOT, Server, eventually
from .waits import IDLE, STOPPED

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import FrameType

RECORDS = 8000
AT_ONCE_SECONDS = 20.0  # generous; without the wake-up these waits have no end at all


@pytest.mark.parametrize("wait", [*IDLE, *STOPPED])
def test_ctrl_c_ends_every_wait_and_the_client_goes_on(
    make_server: Callable[..., Server], wait: str
) -> None:
    server = make_server().start()
    with server.connect() as client:
        log = client.log("l", create=True)
        assert server.process is not None
        command = [sys.executable, "-m", "tests.e2e.waits", server.tcp, "l", wait]
        with subprocess.Popen(
            [*command, str(server.process.pid)], stdout=subprocess.PIPE, cwd=ROOT
        ) as waiting:
            assert waiting.stdout is not None
            assert waiting.stdout.readline() == b"waiting\n"
            # Asleep in its wait: else the interrupt would hit something else, and prove less.
            stat = Path(f"/proc/{waiting.pid}/stat")
            eventually(lambda: stat.read_text().rpartition(")")[2].split()[0] == "S", "it waits")
            time.sleep(0.1)
            began = time.monotonic()
            waiting.send_signal(signal.SIGINT)
            said = waiting.stdout.readline()
            assert said.startswith(b"interrupted"), said
            assert time.monotonic() - began < AT_ONCE_SECONDS
            assert waiting.wait(60) == 0
        # Whatever was under way, the log is whole, and no claim is left over.
        assert log.info().end == int(said.split()[1])
        eventually(lambda: all(not c.members for c in log.cursors()), "nothing is held")


# --- stop() ---------------------------------------------------------------------------------


def _iterate(source: rlog.Source) -> int:
    return len(list(source))


def _poll(source: rlog.Source) -> int:
    return len(source.poll(timeout=None))


def _process(source: rlog.Source) -> int:
    return source.process(lambda record: None)


def _process_with_timeout(source: rlog.Source) -> int:
    return source.process(lambda record: None, timeout=3600.0)


WAITS = {
    "iteration": _iterate,
    "poll": _poll,
    "process": _process,
    "process with a timeout": _process_with_timeout,
}


def _sources(log: rlog.Log) -> dict[str, Callable[[], rlog.Source]]:
    return {
        "reader": lambda: log.reader(rlog.OLDEST),
        "consumer": lambda: log.consumer("c"),
        "GLOBAL": lambda: log.consumer(rlog.GLOBAL),
    }


@pytest.fixture
def later() -> Iterator[Callable[[Callable[[], Any]], None]]:
    """``later(act)``: in another thread, when the main one has gone to sleep, most probably."""
    threads: list[threading.Timer] = []

    def begin(act: Callable[[], Any]) -> None:
        threads.append(threading.Timer(0.15, act))
        threads[-1].start()

    yield begin
    for thread in threads:
        thread.join()


@pytest.mark.parametrize("wait", WAITS)
@pytest.mark.parametrize("kind", ["reader", "consumer", "GLOBAL"])
@pytest.mark.parametrize("how", ["thread", "signal"])
def test_stop_ends_every_wait_of_a_source(
    log: rlog.Log, later: Callable[..., None], kind: str, wait: str, how: str
) -> None:
    with _sources(log)[kind]() as source:
        before = signal.signal(signal.SIGUSR1, lambda *_: source.stop())
        later(source.stop if how == "thread" else lambda: os.kill(os.getpid(), signal.SIGUSR1))
        began = time.monotonic()
        try:
            assert WAITS[wait](source) == 0
        finally:
            signal.signal(signal.SIGUSR1, before)
        assert time.monotonic() - began < AT_ONCE_SECONDS
        # For good: whatever is asked of it now is over at once.
        assert [WAITS[each](source) for each in WAITS] == [0, 0, 0, 0]
    log.append(b"the client goes on")


@pytest.mark.parametrize("kind", ["reader", "consumer", "GLOBAL"])
def test_stop_ends_the_wait_for_a_retry(
    log: rlog.Log, later: Callable[..., None], kind: str
) -> None:
    log.append_many([b"1", b"2"])
    with _sources(log)[kind]() as source:
        later(source.stop)
        verdict = rlog.Retry(delay=3600.0)
        assert source.process(lambda record: verdict if record.offset else None) == 1
    if kind == "consumer":
        assert log.cursor("c").info().committed == 1


@pytest.mark.parametrize("kind", ["reader", "consumer", "GLOBAL"])
def test_stop_leaves_what_was_prefetched(log: rlog.Log, kind: str) -> None:
    log.append_many([b"x"] * 1000)
    seen = []
    with _sources(log)[kind]() as source:
        for record in source:
            seen.append(record.offset)
            if len(seen) == 5:
                source.stop()
        assert seen == [0, 1, 2, 3, 4]
        assert source.poll() == []
        if isinstance(source, rlog.Reader):
            assert source.offset == 5


def test_stop_before_the_beginning_ends_it_at_once(log: rlog.Log) -> None:
    for make in _sources(log).values():
        source = make()
        source.stop()
        assert [WAITS[each](source) for each in WAITS] == [0, 0, 0, 0]
        source.close()


# --- Ctrl-C anywhere ------------------------------------------------------------------------


Interrupted = Callable[[float, Callable[[], None]], None]


@pytest.fixture
def interrupted() -> Iterator[Interrupted]:
    """``interrupted(seconds, work)``: works again and again, until Ctrl-C after so long."""
    armed = False
    rung = False

    def ring(number: int, frame: FrameType | None) -> None:
        nonlocal rung
        rung = True
        if armed:
            raise KeyboardInterrupt

    def until_interrupted(seconds: float, work: Callable[[], None]) -> None:
        nonlocal armed, rung
        rung = False
        timer = threading.Timer(seconds, lambda: os.kill(os.getpid(), signal.SIGINT))
        try:
            armed = True
            timer.start()
            # What is raised while a finalizer runs, Python prints and drops: hence the flag.
            while not rung:
                work()
        except KeyboardInterrupt:
            pass
        finally:
            armed = False
            timer.cancel()
            if timer.ident is not None:
                timer.join()

    gc.collect()
    gc.disable()  # the finalizers of other tests' objects are not what is interrupted here
    before = signal.signal(signal.SIGINT, ring)
    yield until_interrupted
    time.sleep(0.05)  # a late one is still ours
    signal.signal(signal.SIGINT, before)
    gc.enable()
    with warnings.catch_warnings():  # what was torn off between its making and its owner
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()


# (Python prints and drops what is raised while a weak reference is called back.)
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_hundred_interrupts_of_a_consumer_leave_no_record_out(
    server: Server, log: rlog.Log, interrupted: Interrupted
) -> None:
    log.append_many([b"%d" % i for i in range(RECORDS)])
    client = server.connect(timeout=None)  # so that an answer that was dropped is seen
    consumer = client.log(log.name).consumer("c", block=False)
    following = 0
    reconnects = 0

    def handler(record: rlog.Record) -> None:
        nonlocal following
        # Handled twice is what an interrupt may cost; left out is what it may not.
        assert record.offset <= following, f"{record.offset} came where {following} was due"
        following = record.offset + 1

    def work() -> None:
        consumer.process(handler, limit=50, in_flight=8)

    consumer.process(handler, limit=1)  # it is there, however soon the first interrupt comes
    for number in range(100):
        try:
            interrupted(0.001 + 0.0003 * (number % 20), work)
        except rlog.ConnectionLost:
            # Interrupted at a bad moment, the connection is given up rather than guessed at.
            reconnects += 1
            client.close()
            client = server.connect(timeout=None)
            eventually(lambda: not log.cursor("c").info().members, "it is released")
            consumer = client.log(log.name).consumer("c", block=False)
        committed = log.cursor("c").info().committed
        assert committed <= following, "a commit of what was not handled"
    assert reconnects < 50
    client.close()
    with log.consumer("c", block=False) as consumer:
        consumer.process(handler, in_flight=64)
    assert following == RECORDS


# (Python prints and drops what is raised while a weak reference is called back.)
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_hundred_interrupts_of_a_producer_leave_every_record_once_and_in_order(
    server: Server, log: rlog.Log, interrupted: Interrupted
) -> None:
    sent = itertools.count()
    acknowledged: dict[int, bytes] = {}
    client = server.connect(timeout=None)
    producer = client.log(log.name).producer(linger=0.0, batch_bytes=2000)
    pending: list[tuple[bytes, rlog.Pending]] = []

    def work() -> None:
        value = b"%d" % next(sent)
        pending.append((value, producer.send(value)))
        if len(pending) % 50 == 0:
            producer.flush()

    for number in range(100):
        try:
            interrupted(0.001 + 0.0003 * (number % 20), work)
            producer.flush()
        except (rlog.ConnectionLost, rlog.OutcomeUnknown):
            with contextlib.suppress(rlog.RlogError):
                client.close()
            client = server.connect(timeout=None)
            producer = client.log(log.name).producer(linger=0.0, batch_bytes=2000)
        for value, each in pending:
            with contextlib.suppress(rlog.RlogError, RuntimeError):
                acknowledged[each.result()] = value
        pending.clear()
    with contextlib.suppress(rlog.RlogError):
        producer.close()
    client.close()
    values = [r.value for r in log.reader(rlog.OLDEST, block=False)]
    numbers = [int(value) for value in values]
    assert numbers == sorted(set(numbers)), "doubled, or out of order"
    assert all(values[offset] == value for offset, value in acknowledged.items())
    assert acknowledged


@pytest.mark.parametrize("when", ["before", "after"])
def test_an_interrupt_while_a_batch_is_sealed_neither_loses_nor_doubles_it(
    server: Server, log: rlog.Log, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    with server.connect(timeout=None) as client:
        producer = client.log(log.name).producer(linger=3600.0)
        session = client._transport.session
        start = session.start

        def interrupted(*args: Any) -> Any:
            monkeypatch.undo()
            if when == "after":
                start(*args)
            raise KeyboardInterrupt

        pending = producer.send(b"1")
        monkeypatch.setattr(session, "start", interrupted)
        with pytest.raises(KeyboardInterrupt):
            producer.flush()
        producer.send(b"2")
        assert producer.flush() == 2
        assert pending.result() == 0
    assert [r.value for r in log.reader(rlog.OLDEST, block=False)] == [b"1", b"2"]

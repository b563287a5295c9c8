"""Clients outlive their connections, and the server's lives: nobody notices but the logger."""

from __future__ import annotations

import contextlib
import logging
import os
import random
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest

import rlog_client as rlog

from .history import History, payload
from .proxy import Proxy
from .serving import Server, eventually

if TYPE_CHECKING:
    from types import FrameType

AT_ONCE_SECONDS = 3.0  # generous; without an end these waits take as long as the server is away


@pytest.fixture
def own(make_server: Callable[..., Server]) -> Server:
    """A server that is found at the same TCP port in every life."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    server = make_server("--listen", f"127.0.0.1:{port}").start()
    server.tcp = f"rlog://127.0.0.1:{port}"
    return server


@pytest.fixture
def proxy(own: Server) -> Iterator[Proxy]:
    proxy = Proxy(own.tcp)
    yield proxy
    proxy.close()


@pytest.fixture
def later() -> Iterator[Callable[[float, Callable[[], Any]], None]]:
    """``later(seconds, act)``: in another thread."""
    timers: list[threading.Timer] = []

    def begin(seconds: float, act: Callable[[], Any]) -> None:
        timers.append(threading.Timer(seconds, act))
        timers[-1].start()

    yield begin
    for timer in timers:
        timer.join()


Later = Callable[[float, Callable[[], Any]], None]


def restart(server: Server) -> None:
    tcp = server.tcp
    server.kill()
    server.start()
    server.tcp = tcp


def members(log: rlog.Log) -> int:
    return sum(len(cursor.members) for cursor in log.cursors())


# --- answers that are lost ------------------------------------------------------------------


@pytest.mark.parametrize("moment", ["write:journal:before:1", "write:journal:after:1"])
def test_an_append_whose_answer_is_lost_is_there_once(
    make_server: Callable[..., Server], later: Later, moment: str
) -> None:
    """The server dies before or after the frame is written, and another life answers."""
    server = make_server().start("--kill", moment)
    with server.connect() as client:
        log = client.log("l", create=True)
        log.append(b"1")
        server.signal(signal.SIGUSR1)
        assert server.process is not None
        process = server.process

        def revive() -> None:
            process.wait()
            server.start()

        later(0.0, revive)
        receipt = log.append_many([b"2", b"3"])
        assert (receipt.first, receipt.end) == (1, 3)
        assert receipt.duplicate == ("after" in moment)
        assert [r.value for r in log.reader(rlog.OLDEST, block=False)] == [b"1", b"2", b"3"]


def test_requests_whose_answers_are_lost_are_asked_again(
    own: Server, proxy: Proxy, later: Later
) -> None:
    with rlog.connect(proxy.url) as client:
        log = client.log("l", create=True)
        for use in (
            lambda: log.append(b"1"),
            lambda: client.log("m", create=True).name,
            lambda: client.log("m").delete(),
            lambda: log.consumer("c").epoch,
            log.info,
            client.logs,
        ):
            proxy.swallow()
            later(0.2, proxy.cut)
            use()
        assert proxy.swallowed
        assert log.info().end == 1
        assert [each.name for each in client.logs()] == ["l"]


def test_what_is_lost_for_longer_than_the_timeout(own: Server, proxy: Proxy) -> None:
    with rlog.connect(proxy.url, timeout=0.4) as client:
        log = client.log("l", create=True)
        consumer = log.consumer("c")
        log.append(b"1")
        [record] = consumer.poll()
        proxy.swallow()
        for change in (lambda: log.append(b"2"), lambda: consumer.commit(record)):
            with pytest.raises(rlog.OutcomeUnknown):
                change()
        own.kill()
        proxy.cut()
        for use in (log.info, lambda: log.append(b"3"), client.logs):
            began = time.monotonic()
            with pytest.raises(rlog.ConnectionLost) as raised:
                use()
            assert not isinstance(raised.value, rlog.OutcomeUnknown)
            assert 0.3 < time.monotonic() - began < AT_ONCE_SECONDS
        own.start()
        eventually(lambda: _works(log), "it is back")
        assert [r.value for r in log.reader(rlog.OLDEST, block=False)][:2] == [b"1", b"2"]


def _works(log: rlog.Log) -> bool:
    try:
        return log.info().end >= 0
    except rlog.ConnectionLost:
        return False


# --- the server's lives -----------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["reader", "consumer", "autocommit"])
def test_a_loop_over_five_lives_of_the_server_sees_every_record_once_and_in_order(
    own: Server, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    lives, each = 5, 300
    caplog.set_level(logging.INFO, "rlog_client")
    with own.connect() as writer, rlog.connect(own.tcp) as client:
        writer.log("l", create=True)
        log = client.log("l")
        source: rlog.Source = (
            log.reader(rlog.OLDEST)
            if kind == "reader"
            else log.consumer("c", autocommit=kind == "autocommit")
        )

        def has_seen(end: int) -> bool:
            return len(seen) == end

        def live() -> None:
            for _ in range(lives):
                with own.connect() as fresh:
                    for _ in range(3):
                        fresh.log("l").append_many([b"x"] * (each // 3))
                        time.sleep(0.02)
                    end = fresh.log("l").info().end
                eventually(partial(has_seen, end), "the loop has it all")
                restart(own)
            source.stop()

        seen: list[int] = []
        living = threading.Thread(target=live)
        living.start()
        for record in source:
            seen.append(record.offset)
            if kind == "consumer" and record.offset % 50 == 49:
                assert isinstance(source, rlog.Consumer)
                source.commit(record)
        living.join()
        assert seen == list(range(lives * each))
        if isinstance(source, rlog.Consumer):
            assert source.epoch == 1
        source.close()
    told = [r for r in caplog.records if r.name == "rlog_client"]
    # One line when it goes and one when it is back; the last time it may be over before.
    levels = [r.levelno for r in told]
    assert levels[: 2 * lives - 2] == [logging.WARNING, logging.INFO] * (lives - 1)
    assert len(levels) <= 2 * lives


def test_a_consumer_keeps_its_epoch_and_the_record_in_hand(own: Server) -> None:
    with own.connect() as client:
        log = client.log("l", create=True)
        log.append_many([b"x"] * 10)
        calls: list[tuple[int, int, int]] = []

        def handle(record: rlog.Record) -> None:
            calls.append((record.offset, record.attempt, record.epoch))
            if record.offset == 4 and len(calls) == 5:
                restart(own)

        with log.consumer("c", block=False) as consumer:
            assert consumer.process(handle) == 10
            assert consumer.epoch == 1
        assert calls == [(offset, 1, 1) for offset in range(10)]
        assert log.cursor("c").info().committed == 10


def test_a_commit_whose_answer_is_lost_is_repeated(own: Server, proxy: Proxy, later: Later) -> None:
    with rlog.connect(proxy.url) as client:
        log = client.log("l", create=True)
        log.append_many([b"x"] * 10)
        with log.consumer("c") as consumer:
            records = consumer.poll(5)
            proxy.swallow()
            later(0.2, proxy.cut)
            consumer.commit(records[-1])
            assert (consumer.epoch, consumer.committed) == (1, 5)
            assert consumer.poll(5)[0].offset == 5


def test_a_seek_whose_answer_is_lost_was_done(own: Server, proxy: Proxy, later: Later) -> None:
    with rlog.connect(proxy.url) as client:
        log = client.log("l", create=True)
        log.append_many([b"x"] * 10)
        with log.consumer("c") as consumer:
            consumer.poll(5)
            proxy.swallow()
            later(0.2, proxy.cut)
            assert consumer.seek(rlog.offset(7)) == 7
            assert consumer.epoch == 2
            assert [r.offset for r in consumer.poll()] == [7, 8, 9]


def test_whoever_claims_in_between_fences_who_comes_back_too_late(
    own: Server, proxy: Proxy
) -> None:
    with rlog.connect(proxy.url) as client, own.connect() as other:
        log = client.log("l", create=True)
        log.append_many([b"x"] * 10)
        consumer = log.consumer("c")
        records = consumer.poll(5)
        proxy.cut()
        eventually(lambda: not members(other.log("l")), "the server has noticed")
        with other.log("l").consumer("c") as second:
            assert second.epoch == 2
            for use in (lambda: consumer.commit(records[0]), consumer.poll, lambda: next(consumer)):
                with pytest.raises(rlog.Fenced) as raised:
                    use()
                assert raised.value.epoch == 2
            consumer.close()
            assert members(other.log("l")) == 1
        assert client.log("l").append(b"the client goes on") == 10


def test_a_standby_waits_through_a_restart_and_keeps_its_turn(own: Server, later: Later) -> None:
    with own.connect() as first, own.connect(timeout=0.5) as second:
        log = first.log("l", create=True)
        log.append(b"1")
        holder = log.consumer("c")
        assert holder.epoch == 1
        standby = second.log("l").consumer("c", standby=True)

        def act() -> None:
            restart(own)
            holder.poll()  # it comes back first, and then goes
            holder.close()

        later(0.3, act)
        with standby:
            assert standby.epoch == 2
            assert [r.offset for r in standby.poll()] == [0]


@pytest.mark.parametrize("away", [False, True])
def test_stop_ends_the_wait_of_a_standby_and_nobody_is_given_the_claim(
    own: Server, later: Later, away: bool
) -> None:
    with own.connect() as first, own.connect() as second:
        log = first.log("l", create=True)
        holder = log.consumer("c")
        assert holder.epoch == 1
        standby = second.log("l").consumer("c", standby=True)
        if away:
            later(0.2, own.kill)
        later(0.6, standby.stop)
        began = time.monotonic()
        assert standby.poll(timeout=None) == []
        assert time.monotonic() - began < AT_ONCE_SECONDS + 0.6
        if away:
            own.start()
        holder.poll()
        holder.close()
        eventually(lambda: members(log) == 0, "nobody holds it")
        standby.close()


def test_closing_settles_what_is_outstanding(own: Server, later: Later) -> None:
    with own.connect() as client:
        log = client.log("l", create=True)
        log.append_many([b"x"] * 10)
        consumer = log.consumer("c")
        records = consumer.poll(5)
        own.kill()
        consumer.commit(records[-1], wait=False)
        later(0.3, own.start)
        consumer.close()
        assert log.cursor("c").info().committed == 5
        assert members(log) == 0


def test_closing_says_that_a_record_in_hand_was_not_what_ended_it(
    own: Server, later: Later
) -> None:
    with own.connect() as client:
        log = client.log("l", create=True)
        log.append_many([b"x"] * 5)

        def interrupted(record: rlog.Record) -> None:
            if record.offset == 3:
                own.kill()
                later(0.3, own.start)
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt), log.consumer("c") as consumer:
            consumer.process(interrupted)
        assert members(log) == 0
        attempts: list[tuple[int, int]] = []
        with log.consumer("c", block=False) as consumer:
            consumer.process(lambda record: attempts.append((record.offset, record.attempt)))
        assert attempts == [(3, 1), (4, 1)]


# --- waits that end ---------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["reader", "consumer"])
@pytest.mark.parametrize("wait", ["iterate", "poll", "process"])
@pytest.mark.parametrize("how", ["stop", "ctrl-c"])
def test_waits_end_at_once_while_the_server_is_away(
    own: Server, later: Later, kind: str, wait: str, how: str
) -> None:
    class Interrupted(Exception):
        pass

    def ring(number: int, frame: FrameType | None) -> None:
        raise Interrupted

    with own.connect(timeout=None) as client:
        log = client.log("l", create=True)
        source: rlog.Source = log.reader(rlog.OLDEST) if kind == "reader" else log.consumer("c")
        source.poll()
        waits: dict[str, Callable[[], object]] = {
            "iterate": lambda: list(source),
            "poll": lambda: source.poll(timeout=None),
            "process": lambda: source.process(lambda record: None),
        }
        before = signal.signal(signal.SIGUSR1, ring)
        own.kill()
        later(0.7, source.stop if how == "stop" else lambda: os.kill(os.getpid(), signal.SIGUSR1))
        began = time.monotonic()
        try:
            if how == "stop":
                assert waits[wait]() in (0, [])
            else:
                with pytest.raises(Interrupted):
                    waits[wait]()
        finally:
            signal.signal(signal.SIGUSR1, before)
        assert time.monotonic() - began < AT_ONCE_SECONDS
        own.start()
        log.append(b"it goes on")
        if how == "ctrl-c":
            assert next(source).value == b"it goes on"


def test_a_request_that_was_interrupted_is_not_made_later(own: Server, later: Later) -> None:
    class Interrupted(Exception):
        pass

    def ring(number: int, frame: FrameType | None) -> None:
        raise Interrupted

    with own.connect(timeout=None) as client:
        client.log("l", create=True)
        before = signal.signal(signal.SIGUSR1, ring)
        own.kill()
        later(0.3, lambda: os.kill(os.getpid(), signal.SIGUSR1))
        try:
            with pytest.raises(Interrupted):
                client.log("unwanted", create=True)
        finally:
            signal.signal(signal.SIGUSR1, before)
        own.start()
        assert [each.name for each in client.logs()] == ["l"]


def test_a_fork_while_the_server_is_away_leaves_the_parent_its_client(own: Server) -> None:
    with own.connect() as client:
        log = client.log("l", create=True)
        consumer = log.consumer("c")
        consumer.poll()
        own.kill()
        assert consumer.poll(timeout=0.3) == []
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
        own.start()
        assert log.append(b"1") == 0
        assert [r.offset for r in consumer.poll()] == [0]
        assert consumer.epoch == 1


def test_a_first_connection_is_not_tried_twice(own: Server) -> None:
    own.kill()
    began = time.monotonic()
    with pytest.raises(rlog.ConnectionLost):
        rlog.connect(own.tcp)
    assert time.monotonic() - began < AT_ONCE_SECONDS


# --- cut at any moment --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "seed", [pytest.param(n, marks=() if n < 5 else pytest.mark.slow) for n in range(20)]
)
def test_cut_at_any_moment_everything_is_there_once_and_in_order(
    own: Server, proxy: Proxy, seed: int
) -> None:
    chance = random.Random(seed)
    history, wrong, seconds = History(), [], 2.0
    over = threading.Event()
    with own.connect() as direct:
        for name in ("a", "b"):
            direct.log(name, create=True)

    def append(log: rlog.Log, mine: random.Random) -> None:
        number = 0
        while not over.is_set():
            count = mine.choice((1, 1, 2, 7))
            values = [payload(log.name, number + i, mine.choice((30, 5000))) for i in range(count)]
            number += count
            history.sends(log.name, values)
            history.acknowledges(log.name, log.append_many(values).first, values)

    def consume(log: rlog.Log, mine: random.Random) -> None:
        following = 0

        def handle(record: rlog.Record) -> None:
            nonlocal following
            if record.offset != following:
                wrong.append(f"{log.name}: {record.offset} came where {following} was due")
            following = record.offset + 1
            history.serves(log.name, record, wrong)
            history.asked[log.name] = following

        with log.consumer("c") as consumer:
            while not over.is_set():
                consumer.process(handle, limit=mine.choice((1, 5, 50)), in_flight=16, timeout=0.2)
                history.acknowledged[log.name] = consumer.committed
            if consumer.epoch != 1:
                wrong.append(f"{log.name}: epoch {consumer.epoch}")

    def watch(log: rlog.Log, mine: random.Random) -> None:
        reader = log.reader(rlog.OLDEST)
        at = 0
        while not over.is_set():
            for record in reader.poll(mine.choice((1, 100)), timeout=0.1):
                if record.offset != at:
                    wrong.append(f"{log.name}: read {record.offset} where {at} was due")
                at = record.offset + 1
                history.serves(log.name, record, wrong)

    def run(work: Callable[[rlog.Log, random.Random], None], name: str, each: int) -> None:
        try:
            with rlog.connect(proxy.url, timeout=30.0) as client:
                connected.wait(60.0)  # a first connection that is cut is an error, and its user's
                work(client.log(name), random.Random(each))
        except Exception as error:
            wrong.append(f"{work.__name__} {name}: {error!r}")

    threads = [
        threading.Thread(target=run, args=(work, name, chance.getrandbits(32)))
        for name in ("a", "b")
        for work in (append, consume, watch)
    ]
    connected = threading.Barrier(len(threads) + 1)
    for thread in threads:
        thread.start()
    connected.wait(60.0)
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        time.sleep(chance.uniform(0.0, 0.3))
        how = chance.random()
        if how < 0.4:
            proxy.swallow()
            time.sleep(chance.uniform(0.0, 0.05))
        elif how > 0.9:
            restart(own)
        proxy.cut()
    over.set()
    for thread in threads:
        thread.join(60.0)
        assert not thread.is_alive(), "a client hangs"
    with own.connect() as direct:
        assert not wrong + history.check(direct, ["a", "b"], "c"), wrong
        for name in ("a", "b"):
            assert direct.log(name).info().end == len(history.sent[name])
    assert history.counts["acknowledged"] > 0


@pytest.mark.parametrize("how", ["process", "iterate"])
def test_what_is_there_is_asked_for_no_longer_than_the_timeout(
    make_server: Callable[..., Server], how: str
) -> None:
    """Without ``block`` nothing is waited for that may never come, a dead server included."""
    server = make_server().start()
    # (Closing it is told of the commits that could not be made, too.)
    with contextlib.suppress(rlog.ConnectionLost), server.connect(timeout=1.0) as client:
        log = client.log("orders", create=True)
        for _batch in range(12):  # more than one loan
            log.append_many([b"x" * 100_000] * 5)
        consumer = log.consumer("c", block=False)

        def use() -> None:
            if how == "process":
                consumer.process(lambda r: server.kill() if r.offset == 5 else None, in_flight=60)
            for record in consumer:
                if record.offset == 5:
                    server.kill()

        with pytest.raises(rlog.ConnectionLost):
            use()

"""Attempts: what counts as one, what does not, and that nobody pays for another's."""

from __future__ import annotations

import signal
import threading
import time
from typing import TYPE_CHECKING

import pytest

import rlog_client as rlog

from . import member
from .serving import eventually

if TYPE_CHECKING:
    from collections.abc import Callable

    from .serving import Server

QUICK = rlog.Backoff(first=0.01, cap=0.05, max_attempts=3, pause_after=None)


class Refused(Exception):
    """What a handler raises."""


def next_of(log: rlog.Log, name: str = "c") -> rlog.Record:
    """What the next claim is given first."""
    member.alone(log, name)
    with log.consumer(name) as consumer:
        [record] = consumer.poll(1, timeout=10.0)
    return record


# --- members that vanish ------------------------------------------------------------------------


@pytest.mark.parametrize("in_flight", [1, 100])
@pytest.mark.parametrize("death", ["exit", "kill"])
def test_a_record_that_kills_its_consumer_is_found_and_parked_and_no_other(
    server: Server, log: rlog.Log, death: str, in_flight: int
) -> None:
    log.append_many([b"%d" % i for i in range(120)])
    deaths, called = 0, []
    while deaths < 20:
        code, calls = member.run(
            server.unix, log.name, poison=[57], death=death, in_flight=in_flight, max_attempts=3
        )
        called += calls
        if code == 0:
            break
        deaths += 1
    # Among many in hand the first death only says that it was one of them.
    assert deaths == (3 if in_flight == 1 else 4)
    cursor = log.cursor("c")
    assert cursor.info().committed == 120
    [parked] = cursor.parked()
    assert (parked.record.offset, parked.attempts) == (57, 3)
    assert "vanished" in parked.error
    assert {offset for offset, _attempt in called} == set(range(120))
    assert all(attempt == 1 for offset, attempt in called if offset != 57)


def test_two_that_kill_are_both_found(server: Server, log: rlog.Log) -> None:
    log.append_many([b"%d" % i for i in range(30)])
    for _ in range(20):
        code, calls = member.run(
            server.unix, log.name, poison=[10, 11], death="kill", in_flight=20, max_attempts=2
        )
        assert all(attempt == 1 for offset, attempt in calls if offset not in (10, 11))
        if code == 0:
            break
    assert [parked.record.offset for parked in log.cursor("c").parked()] == [10, 11]
    assert log.cursor("c").info().committed == 30


@pytest.mark.parametrize("in_flight", [1, 100])
def test_who_has_left_process_and_vanishes_costs_nobody_an_attempt(
    server: Server, log: rlog.Log, in_flight: int
) -> None:
    log.append_many([b"%d" % i for i in range(50)])
    for _ in range(3):
        member.run(
            server.unix, log.name, poison=[20], death="return", in_flight=in_flight, max_attempts=1
        )
    record = next_of(log)
    assert (record.offset, record.attempt) == (20, 1)


# --- leaving ------------------------------------------------------------------------------------


@pytest.mark.parametrize("in_flight", [1, 7])
@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_an_interrupt_counts_nothing(
    log: rlog.Log, error: type[BaseException], in_flight: int
) -> None:
    log.append_many([b"%d" % i for i in range(10)])

    def handler(record: rlog.Record) -> None:
        if record.offset == 4:
            raise error

    with log.consumer("c") as consumer:
        with pytest.raises(error):
            consumer.process(handler, in_flight=in_flight, retry=QUICK)
        [info] = log.cursor("c").info().members
        assert info.in_hand is None
        assert consumer.committed == 4
    record = next_of(log)
    assert (record.offset, record.attempt) == (4, 1)


def test_stop_by_a_signal_and_a_standby_that_takes_over_cost_nobody_an_attempt(
    server: Server, log: rlog.Log
) -> None:
    log.append_many([b"%d" % i for i in range(10)])
    seen: list[tuple[int, int]] = []

    def stand_by() -> None:
        with (
            server.connect() as client,
            client.log(log.name).consumer("c", standby=True, block=False) as second,
        ):
            second.process(lambda record: seen.append((record.offset, record.attempt)))

    waiting = threading.Thread(target=stand_by)
    with log.consumer("c") as consumer:
        before = signal.signal(signal.SIGTERM, lambda *_: consumer.stop())

        def handler(record: rlog.Record) -> None:
            if record.offset == 0:
                waiting.start()
            if record.offset == 4:
                signal.raise_signal(signal.SIGTERM)

        try:
            assert consumer.process(handler, in_flight=100) == 5
        finally:
            signal.signal(signal.SIGTERM, before)
    waiting.join(30)
    assert seen == [(offset, 1) for offset in range(5, 10)]


def test_a_takeover_costs_no_attempt(other: rlog.Client, log: rlog.Log) -> None:
    log.append(b"1")

    def handler(record: rlog.Record) -> None:
        with other.log(log.name).consumer("c", takeover=True) as second:
            [again] = second.poll(1, timeout=10.0)
        assert (again.offset, again.attempt) == (0, 1)

    consumer = log.consumer("c")
    with pytest.raises(rlog.Fenced):
        consumer.process(handler, limit=1)


# --- what counts --------------------------------------------------------------------------------


def test_an_exception_counts_durably_and_its_text_is_kept(log: rlog.Log) -> None:
    log.append(b"1")

    def handler(record: rlog.Record) -> None:
        raise Refused("not today")

    for attempt in (1, 2):
        with log.consumer("c") as consumer, pytest.raises(Refused):
            consumer.process(handler)
        assert next_of(log).attempt == attempt + 1
    # With a policy that it has used up it is parked, and no handler is called.
    with log.consumer("c", block=False) as consumer:
        calls: list[rlog.Record] = []
        policy = rlog.Backoff(max_attempts=2)
        assert consumer.process(calls.append, retry=policy) == 1
    assert calls == []
    [parked] = log.cursor("c").parked()
    assert parked.attempts == 2
    assert "not today" in parked.error


def test_hand_seconds_that_run_out_count(server: Server, log: rlog.Log) -> None:
    log.append_many([b"1", b"2"])

    def handler(record: rlog.Record) -> None:
        cursor = log.cursor("c")
        eventually(lambda: not cursor.info().members, "its claim has ended")

    with server.connect() as client:
        consumer = client.log(log.name).consumer("c", hand_seconds=0.2)
        with pytest.raises(rlog.Fenced):
            consumer.process(handler)
    record = next_of(log)
    assert (record.offset, record.attempt) == (0, 2)


def test_extend_begins_them_anew(log: rlog.Log) -> None:
    log.append(b"1")
    with log.consumer("c", hand_seconds=1.0, block=False) as consumer:

        def handler(record: rlog.Record) -> None:
            for _ in range(6):
                time.sleep(0.3)
                consumer.extend(record)

        assert consumer.process(handler) == 1
        assert consumer.committed == 1


# --- delays -------------------------------------------------------------------------------------


def retried(log: rlog.Log, delay: float) -> float:
    """A record is given back for so long: the moment from which it may come again."""
    with log.consumer("c") as consumer:
        due = time.monotonic() + delay
        consumer.process(lambda record: rlog.Retry(delay=delay), timeout=0.05)
    return due


def test_a_delay_survives_a_takeover(other: rlog.Client, log: rlog.Log) -> None:
    log.append_many([b"1", b"2"])
    due = retried(log, 1.0)
    with other.log(log.name).consumer("c", block=False) as consumer:
        assert consumer.poll() == []
        assert time.monotonic() < due
        calls: list[tuple[int, int]] = []
        assert consumer.process(lambda r: calls.append((r.offset, r.attempt))) == 2
        assert time.monotonic() >= due - 0.05
        assert calls == [(0, 2), (1, 1)]


def test_a_delay_survives_a_restart(make_server: Callable[..., Server]) -> None:
    server = make_server().start()
    with server.connect() as client:
        log = client.log("l", create=True)
        log.append(b"1")
        due = retried(log, 3.0)
    server.stop()
    server.start()
    with server.connect() as client, client.log("l").consumer("c") as consumer:
        assert consumer.poll(timeout=0.1) == []
        assert time.monotonic() < due
        [record] = consumer.poll(timeout=20.0)
        assert record.attempt == 2
        assert time.monotonic() >= due - 0.1
    server.stop()


def test_iteration_waits_a_delay_out(log: rlog.Log) -> None:
    log.append_many([b"1", b"2"])
    due = retried(log, 0.5)
    with log.consumer("c", block=False) as consumer:
        assert [(r.offset, r.attempt) for r in consumer] == [(0, 2), (1, 1)]
    assert time.monotonic() >= due - 0.05


def test_stop_ends_a_delay(log: rlog.Log) -> None:
    log.append(b"1")
    with log.consumer("c") as consumer:
        timer = threading.Timer(0.2, consumer.stop)
        timer.start()
        began = time.monotonic()
        assert consumer.process(lambda record: rlog.Retry(delay=60.0)) == 0
        assert time.monotonic() - began < 10.0
        timer.join()


@pytest.mark.parametrize("retry", [None, rlog.Backoff(max_attempts=None)])
def test_a_hot_loop_is_impossible(log: rlog.Log, retry: rlog.Backoff | None) -> None:
    log.append(b"1")
    calls: list[int] = []

    def handler(record: rlog.Record) -> rlog.Verdict:
        calls.append(record.attempt)
        return rlog.RETRY

    with log.consumer("c") as consumer:
        consumer.process(handler, timeout=1.0, retry=retry)
    assert calls in ([1, 2], [1])


# --- what was handed out before -----------------------------------------------------------------


def test_an_attempt_is_no_verdict_on_what_was_polled_before(log: rlog.Log) -> None:
    log.append_many([b"%d" % i for i in range(5)])

    def handler(record: rlog.Record) -> None:
        raise Refused

    with log.consumer("c") as consumer:
        assert len(consumer.poll(2)) == 2
        with pytest.raises(Refused):
            consumer.process(handler)
        assert consumer.committed == 0
        assert consumer.poll(1)[0].attempt == 2
    assert next_of(log).offset == 0


def test_a_handler_may_commit_or_move_its_own_cursor(log: rlog.Log) -> None:
    log.append_many([b"%d" % i for i in range(6)])
    calls: list[int] = []
    with log.consumer("c", block=False) as consumer:

        def handler(record: rlog.Record) -> None:
            calls.append(record.offset)
            if record.offset == 1:
                consumer.commit(record)
            if calls == [0, 1, 2]:
                consumer.seek(rlog.offset(0))

        assert consumer.process(handler, in_flight=3) == 9
        assert calls == [0, 1, 2, 0, 1, 2, 3, 4, 5]
        assert consumer.committed == 6


@pytest.mark.parametrize("in_flight", [1, 100])
def test_a_restart_of_the_server_costs_nobody_an_attempt_and_loses_no_record(
    make_server: Callable[..., Server], in_flight: int
) -> None:
    server = make_server().start()
    calls: list[tuple[int, int]] = []
    with server.connect() as client:
        log = client.log("l", create=True)
        log.append_many([b"%d" % i for i in range(300)])
        with log.consumer("c") as consumer:

            def handler(record: rlog.Record) -> None:
                if record.offset in (50, 120, 250) and (record.offset, 1) not in calls:
                    server.kill()
                    server.start()
                calls.append((record.offset, record.attempt))

            assert consumer.process(handler, limit=300, in_flight=in_flight, timeout=60.0) == 300
        assert log.cursor("c").info().committed == 300
    assert {attempt for _offset, attempt in calls} == {1}
    assert [offset for offset, _attempt in calls] == list(range(300))
    server.stop()


def test_a_retry_outlives_a_restart_of_the_server_within_one_process(
    make_server: Callable[..., Server],
) -> None:
    server = make_server().start()
    calls: list[tuple[int, int]] = []
    with server.connect() as client:
        log = client.log("l", create=True)
        log.append_many([b"1", b"2"])

        def restart() -> None:
            time.sleep(0.3)
            server.kill()
            server.start()

        restarting = threading.Thread(target=restart)

        def handler(record: rlog.Record) -> rlog.Verdict:
            calls.append((record.offset, record.attempt))
            if len(calls) == 1:
                restarting.start()
                return rlog.Retry(delay=2.0)
            return rlog.COMMIT

        with log.consumer("c") as consumer:
            assert consumer.process(handler, limit=2, timeout=30.0) == 2
        restarting.join()
    assert calls == [(0, 1), (0, 2), (1, 1)]
    server.stop()

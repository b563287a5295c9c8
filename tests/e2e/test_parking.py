"""Records that are put aside, the breaker, and how they come again."""

from __future__ import annotations

import itertools
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest

import rlog_client as rlog

from .serving import eventually

if TYPE_CHECKING:
    from collections.abc import Callable

    from .serving import Server

QUICK = rlog.Backoff(first=0.01, cap=0.05, max_attempts=2, pause_after=None)
BREAKER = rlog.Backoff(first=0.01, cap=0.3, max_attempts=2, pause_after=3)


class Refused(Exception):
    """What a handler raises."""


def fill(log: rlog.Log, count: int) -> None:
    log.append_many([b"%d" % i for i in range(count)])


def parked(log: rlog.Log) -> list[int]:
    return [each.record.offset for each in log.cursor("c").parked()]


def park(log: rlog.Log, *offsets: int) -> None:
    """Handle all there is, and park these."""
    with log.consumer("c", block=False) as consumer:
        consumer.process(lambda r: rlog.PARK if r.offset in offsets else None, in_flight=10)
    assert parked(log) == sorted(offsets)


# --- parking ------------------------------------------------------------------------------------


@pytest.mark.parametrize("in_flight", [1, 5])
def test_park_puts_a_record_aside_and_completes_it(log: rlog.Log, in_flight: int) -> None:
    fill(log, 10)
    with log.consumer("c", block=False) as consumer:

        def handler(record: rlog.Record) -> rlog.Verdict | None:
            return rlog.Park("smells") if record.offset in (3, 4, 9) else None

        assert consumer.process(handler, limit=4, in_flight=in_flight) == 4
        assert consumer.committed == 4
        assert consumer.process(handler, in_flight=in_flight) == 6
    info = log.cursor("c").info()
    assert (info.committed, info.parked, info.paused) == (10, 3, None)
    first, second, third = log.cursor("c").parked()
    assert [first.record.value, second.record.value, third.record.value] == [b"3", b"4", b"9"]
    assert (first.reason, first.error, first.attempts) == ("smells", "", 1)
    assert abs(first.parked_ns - time.time_ns()) < 60e9


def test_a_record_that_fails_too_often_is_parked_with_its_traceback(log: rlog.Log) -> None:
    fill(log, 3)
    calls: list[tuple[int, int]] = []

    def handler(record: rlog.Record) -> None:
        calls.append((record.offset, record.attempt))
        if record.offset == 1:
            raise Refused("no \N{SNOWMAN} and no \ud800")

    with log.consumer("c", block=False) as consumer:
        assert consumer.process(handler, retry=QUICK) == 3
    assert calls == [(0, 1), (1, 1), (1, 2), (2, 1)]
    [only] = log.cursor("c").parked()
    assert only.attempts == 2
    assert only.error.startswith("Traceback")
    assert "in handler" in only.error
    assert "Refused: no \N{SNOWMAN}" in only.error
    assert "process.py" not in only.error


def test_a_long_text_is_cut_and_keeps_both_ends(log: rlog.Log) -> None:
    fill(log, 1)

    def deep(depth: int) -> None:
        if depth == 0:
            raise Refused("\N{SNOWMAN}" * 5000 + "the end")
        deep(depth - 1)

    with log.consumer("c", block=False) as consumer:
        consumer.process(lambda record: deep(50), retry=QUICK)
    [only] = log.cursor("c").parked()
    assert len(only.error.encode()) <= 4096
    assert only.error.startswith("tests.e2e.test_parking.Refused: \N{SNOWMAN}")
    assert only.error.endswith("the end")


def test_on_exhausted_skip_and_raise(log: rlog.Log) -> None:
    fill(log, 2)

    def handler(record: rlog.Record) -> None:
        raise Refused

    with log.consumer("c", block=False) as consumer:
        assert consumer.process(handler, retry=QUICK, on_exhausted="skip", limit=1) == 1
        assert consumer.committed == 1
        with pytest.raises(Refused):
            consumer.process(handler, retry=QUICK, on_exhausted="raise")
        # Past its attempts it is not given to a handler any more.
        with pytest.raises(rlog.Paused, match="failed 2 times"):
            consumer.process(handler, retry=QUICK, on_exhausted="raise")
        assert consumer.committed == 1
        assert consumer.process(handler, retry=QUICK) == 1
    assert parked(log) == [1]


def test_without_a_policy_nothing_is_parked(log: rlog.Log) -> None:
    fill(log, 1)
    with log.consumer("c", block=False) as consumer:

        def handler(record: rlog.Record) -> rlog.Verdict:
            return rlog.Retry(delay=0.0) if record.attempt < 12 else rlog.COMMIT

        assert consumer.process(handler) == 1
    assert parked(log) == []


def test_a_reader_parks_nothing(log: rlog.Log) -> None:
    fill(log, 2)
    with log.reader(rlog.OLDEST, block=False) as reader:
        with pytest.raises(rlog.InvalidRequest, match="park"):
            reader.process(lambda record: rlog.PARK)
        with pytest.raises(rlog.InvalidRequest, match="park"):
            reader.process(lambda record: None, retry=QUICK)

        def handler(record: rlog.Record) -> None:
            raise Refused

        with pytest.raises(Refused):
            reader.process(handler, retry=QUICK, on_exhausted="raise")
        assert reader.process(handler, retry=QUICK, on_exhausted="skip") == 2
        assert reader.offset == 2


@pytest.mark.parametrize(
    ("how", "error"),
    [({"on_exhausted": "drop"}, ValueError), ({"retry": 3}, TypeError)],
)
def test_what_process_cannot_do_is_refused(
    log: rlog.Log, how: dict[str, Any], error: type[Exception]
) -> None:
    with log.consumer("c", block=False) as consumer, pytest.raises(error):
        consumer.process(lambda record: None, **how)


# --- the breaker --------------------------------------------------------------------------------


def refuse(record: rlog.Record) -> None:
    raise Refused


def test_the_same_failure_in_a_row_pauses_durably_and_resume_redrives_in_order(
    make_server: Callable[..., Server],
) -> None:
    server = make_server().start()
    with server.connect() as client:
        log = client.log("l", create=True)
        fill(log, 10)
        with log.consumer("c", block=False) as consumer:
            with pytest.raises(rlog.Paused, match=r"3 records in a row .*Refused") as raised:
                consumer.process(refuse, retry=BREAKER)
            assert "Refused" in raised.value.reason
            assert consumer.committed == 3
            calls: list[Any] = []
            with pytest.raises(rlog.Paused):
                consumer.process(calls.append, retry=BREAKER)
    server.kill()
    server.start()
    with server.connect() as client:
        log = client.log("l")
        cursor = log.cursor("c")
        paused = cursor.info().paused
        assert paused is not None
        assert "Refused" in paused
        with log.consumer("c", block=False) as consumer:
            with pytest.raises(rlog.Paused):
                consumer.process(calls.append)
            assert calls == []
            cursor.resume()
            assert cursor.info().paused is None
            count = consumer.process(lambda r: calls.append((r.offset, r.attempt, r.redriven)))
        assert count == 10
        assert calls[:3] == [(0, 1, True), (1, 1, True), (2, 1, True)]
        assert calls[3:] == [(offset, 1, False) for offset in range(3, 10)]
        assert cursor.info().parked == 0
    server.stop()


def test_another_failure_or_a_success_in_between_does_not_pause(log: rlog.Log) -> None:
    fill(log, 9)

    def handler(record: rlog.Record) -> None:
        if record.offset % 3 == 2:
            raise ValueError
        if record.offset != 7:
            raise Refused

    with log.consumer("c", block=False) as consumer:
        assert consumer.process(handler, retry=BREAKER) == 9
    assert parked(log) == [0, 1, 2, 3, 4, 5, 6, 8]


def test_a_blocking_process_tries_one_from_time_to_time_until_one_succeeds(log: rlog.Log) -> None:
    fill(log, 8)
    calls: list[tuple[int, float]] = []
    successes: list[int] = []
    well = False

    def handler(record: rlog.Record) -> None:
        nonlocal well
        calls.append((record.offset, time.monotonic()))
        if not well:
            raise Refused
        successes.append(record.offset)
        if record.offset == 7:
            consumer.stop()

    with log.consumer("c") as consumer:

        def get_well() -> None:
            nonlocal well
            time.sleep(1.2)
            well = True

        healing = threading.Thread(target=get_well)
        healing.start()
        consumer.process(handler, retry=BREAKER, in_flight=4, timeout=20.0)
        healing.join()
    # Behind the first success comes what paused it, and then the rest.
    assert successes[1:] == [offset for offset in range(8) if offset != successes[0]]
    tries = calls[6:]  # what paused it: three records, twice each
    early = [(o, at) for o, at in tries if at < calls[6][1] + 0.9]
    assert len(early) <= 4
    assert all(b[1] - a[1] >= 0.25 for a, b in itertools.pairwise(early))
    assert parked(log) == []
    assert log.cursor("c").info().committed == 8


def test_resume_and_stop_end_the_wait_of_a_blocking_one(server: Server, log: rlog.Log) -> None:
    fill(log, 5)
    patient = rlog.Backoff(first=0.01, cap=3600.0, max_attempts=1, pause_after=2)
    offsets: list[int] = []
    with log.consumer("c") as consumer:

        def resume() -> None:
            with server.connect() as client:
                cursor = client.log(log.name).cursor("c")
                eventually(lambda: cursor.info().paused is not None, "it pauses")
                time.sleep(0.2)
                cursor.resume()
                eventually(lambda: cursor.info().paused is not None, "it pauses again")
                time.sleep(0.2)
                consumer.stop()

        resuming = threading.Thread(target=resume)
        resuming.start()

        def handler(record: rlog.Record) -> None:
            offsets.append(record.offset)
            raise Refused

        consumer.process(handler, retry=patient)
        resuming.join()
    assert offsets == [0, 1, 0, 1]


# --- redriving ----------------------------------------------------------------------------------


def test_redriven_records_come_first_in_order_and_the_cursor_does_not_move(log: rlog.Log) -> None:
    fill(log, 10)
    park(log, 2, 5, 7)
    cursor = log.cursor("c")
    assert cursor.redrive([7, 2, 99]) == 2
    assert cursor.redrive([7]) == 0
    log.append(b"new")
    calls: list[tuple[int, int, bool]] = []
    with log.consumer("c", block=False) as consumer:

        def handler(record: rlog.Record) -> None:
            calls.append((record.offset, record.attempt, record.redriven))
            assert consumer.committed == 10

        assert consumer.process(handler) == 3
    assert calls == [(2, 1, True), (7, 1, True), (10, 1, False)]
    assert parked(log) == [5]
    assert cursor.redrive() == 1
    assert cursor.info().committed == 11


def test_redriving_while_the_consumer_waits_wakes_it(server: Server, log: rlog.Log) -> None:
    fill(log, 4)
    park(log, 1, 3)
    calls: list[int] = []
    with log.consumer("c") as consumer:

        def redrive() -> None:
            time.sleep(0.2)
            with server.connect() as client:
                client.log(log.name).cursor("c").redrive()

        redriving = threading.Thread(target=redrive)
        redriving.start()
        count = consumer.process(lambda r: calls.append(r.offset), limit=2, timeout=20.0)
        redriving.join()
    assert (count, calls) == (2, [1, 3])
    assert parked(log) == []


def test_redriving_while_handlers_run_comes_in_between(server: Server, log: rlog.Log) -> None:
    fill(log, 200)
    with log.consumer("c", block=False) as consumer:
        consumer.process(lambda r: rlog.PARK, limit=2)
        calls: list[int] = []

        def handler(record: rlog.Record) -> None:
            if record.offset == 50:
                with server.connect() as client:
                    client.log(log.name).cursor("c").redrive()
            time.sleep(0.001)
            calls.append(record.offset)

        assert consumer.process(handler, in_flight=20) == 200
    assert sorted(calls) == list(range(200))
    assert [o for o in calls if o >= 2] == list(range(2, 200))
    assert calls.index(0) + 1 == calls.index(1) < calls.index(100)


@pytest.mark.parametrize("verdict", [rlog.COMMIT, rlog.SKIP, rlog.PARK, rlog.STOP])
def test_a_redriven_record_is_settled_alone(log: rlog.Log, verdict: rlog.Verdict) -> None:
    fill(log, 4)
    park(log, 1, 2)
    log.cursor("c").redrive([1])
    with log.consumer("c", block=False) as consumer:
        count = consumer.process(lambda r: verdict)
        [member] = log.cursor("c").info().members
        assert member.in_hand is None
    done = verdict in (rlog.COMMIT, rlog.SKIP)
    assert count == (0 if verdict == rlog.STOP else 1)
    assert parked(log) == ([2] if done else [1, 2])
    with log.consumer("c", block=False) as consumer:
        again = consumer.poll()
        assert [(r.offset, r.attempt) for r in again] == ([(1, 1)] if verdict == rlog.STOP else [])


def test_a_redriven_record_that_fails_is_tried_again_and_parked_again(log: rlog.Log) -> None:
    fill(log, 3)
    park(log, 1)
    log.cursor("c").redrive()
    calls: list[tuple[int, int]] = []

    def handler(record: rlog.Record) -> None:
        calls.append((record.offset, record.attempt))
        raise Refused

    with log.consumer("c", block=False) as consumer:
        assert consumer.process(handler, retry=QUICK) == 1
    assert calls == [(1, 1), (1, 2)]
    [only] = log.cursor("c").parked()
    assert only.attempts == 2
    assert "Refused" in only.error


@pytest.mark.parametrize("autocommit", [True, False])
def test_iteration_and_poll_give_redriven_records_too(log: rlog.Log, autocommit: bool) -> None:
    fill(log, 6)
    park(log, 1, 3, 4)
    log.cursor("c").redrive()
    log.append(b"new")
    with log.consumer("c", block=False, autocommit=autocommit) as consumer:
        [first] = consumer.poll()
        assert (first.offset, first.redriven, first.attempt) == (1, True, 1)
        if not autocommit:
            consumer.commit(first)
        rest = []
        for record in consumer:
            rest.append((record.offset, record.redriven))
            if not autocommit:
                consumer.commit(record, wait=False)
    assert rest == [(3, True), (4, True), (6, False)]
    assert parked(log) == []
    assert log.cursor("c").info().committed == 7


# --- settle -------------------------------------------------------------------------------------


def test_settle_does_what_a_verdict_does(log: rlog.Log) -> None:
    fill(log, 8)
    with log.consumer("c", block=False) as consumer:
        records = consumer.poll(6)
        consumer.settle(records[0], rlog.COMMIT)
        assert consumer.committed == 1
        consumer.settle(records[1], rlog.Skip("why"), wait=False)
        consumer.settle(records[3], rlog.Park("later"))
        assert consumer.committed == 4
        consumer.settle(records[4], rlog.Retry(delay=0.1))
        assert consumer.poll(2) == []
        again = consumer.poll(1, timeout=10.0)
        assert [(r.offset, r.attempt) for r in again] == [(4, 2)]
        assert [r.offset for r in consumer.poll()] == [5, 6, 7]
        with pytest.raises(rlog.InvalidRequest, match="Stop"):
            consumer.settle(again[0], rlog.STOP)
        with pytest.raises(rlog.InvalidRequest, match="committed"):
            consumer.settle(records[0], rlog.PARK)
    [only] = log.cursor("c").parked()
    assert (only.record.offset, only.reason) == (3, "later")


def test_settle_of_a_redriven_record(log: rlog.Log) -> None:
    fill(log, 3)
    park(log, 0, 1)
    log.cursor("c").redrive()
    with log.consumer("c") as consumer:
        [first] = consumer.poll()
        consumer.settle(first, rlog.Retry(delay=0.1))
        [again] = consumer.poll(timeout=10.0)
        assert (again.offset, again.attempt) == (0, 2)
        consumer.settle(again, rlog.PARK)
        [second] = consumer.poll(timeout=10.0)
        assert second.offset == 1
        consumer.settle(second, rlog.SKIP)
        assert consumer.poll() == []
    assert parked(log) == [0]


# --- from outside -------------------------------------------------------------------------------


def test_evict_ends_the_claim_and_costs_no_attempt(other: rlog.Client, log: rlog.Log) -> None:
    fill(log, 2)
    cursor = other.log(log.name).cursor("c")
    with pytest.raises(rlog.NotFound):
        cursor.evict()

    def handler(record: rlog.Record) -> None:
        [info] = cursor.info().members
        assert (info.name, info.in_hand) == ("first", 0)
        with pytest.raises(rlog.NotFound):
            cursor.evict("somebody else")
        cursor.evict("first")

    consumer = log.consumer("c")
    with pytest.raises(rlog.Fenced):
        consumer.process(handler)
    with other.log(log.name).consumer("c") as second:
        [record] = second.poll(1)
    assert (record.offset, record.attempt) == (0, 1)


def test_more_than_a_page_is_parked_listed_and_redriven(log: rlog.Log) -> None:
    fill(log, 2300)
    with log.consumer("c", block=False) as consumer:
        consumer.process(lambda r: rlog.PARK)
        found = log.cursor("c").parked()
        assert [each.record.offset for each in found] == list(range(2300))
        assert log.cursor("c").redrive(range(0, 2300, 2)) == 1150
        assert log.cursor("c").redrive() == 1150
        calls: list[int] = []
        assert consumer.process(lambda r: calls.append(r.offset), limit=20) == 20
        assert calls == list(range(20))


def test_a_parked_record_is_copied_by_a_trim_and_delivered_again_from_there(log: rlog.Log) -> None:
    log.alter(file_roll_size=4096)
    for number in range(40):
        log.append_many([rlog.Item(b"%d" % number + bytes(1000), b"k%d" % number, {"h": b"x"}, 7)])
    park(log, 1, 39)
    before = {each.record.offset: each.record for each in log.cursor("c").parked()}
    assert 1 < log.trim(rlog.offset(30)) <= 30
    assert {each.record.offset: each.record for each in log.cursor("c").parked()} == before
    log.cursor("c").redrive([1])
    seen: list[rlog.Record] = []
    with log.consumer("c", block=False) as consumer:
        assert consumer.process(lambda record: seen.append(record)) == 1
    (again,) = seen
    old = before[1]
    assert (again.value, again.key, again.headers) == (old.value, old.key, old.headers)
    assert (again.timestamp_ns, again.event_time_ns) == (old.timestamp_ns, 7)
    assert (again.offset, again.attempt, again.redriven) == (1, 1, True)
    assert parked(log) == [39]

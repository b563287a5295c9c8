"""Retention on a real server: who meets the trim, who waits for space, and a wrong clock."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import rlog_client as rlog

from .serving import Server, eventually

if TYPE_CHECKING:
    from collections.abc import Callable

TOTAL = 16 * 1024
DAY = 86_400.0
FAKETIME = next(
    iter(sorted(Path("/usr/lib").glob("*/faketime/libfaketime.so.1"))), Path("no libfaketime")
)


def record(number: int, size: int = 1000) -> bytes:
    return b"%06d" % number + bytes(size - 106)


def fill(log: rlog.Log, count: int) -> None:
    end = log.info().end
    for number in range(end, end + count):
        log.append(record(number))


def offsets(source: rlog.Source) -> list[int]:
    return [int(each.value[:6]) for each in source]


# --- readers and consumers meet the trim --------------------------------------------------------


def test_a_slow_reader_a_protected_consumer_and_a_parked_record_meet_the_trim(
    client: rlog.Client, log: rlog.Log
) -> None:
    log.alter(max_total_bytes=TOTAL, protected=["careful"])
    with log.consumer("careful", block=False) as careful, log.reader(rlog.OLDEST) as slow:
        fill(log, 4)
        assert [each.offset for each in slow.poll(1, timeout=30)] == [0]  # and the rest is here
        assert careful.process(lambda r: rlog.Park("later") if r.offset == 1 else None) == 4
        fill(log, 40)
        assert log.info().first <= 4
        assert log.info().bytes > TOTAL
        text = log.info().retention
        assert text is not None
        assert "'careful' has committed up to 4 only" in text
        assert careful.process(lambda _record: None) == 40
        eventually(lambda: log.info().bytes <= TOTAL, "it is trimmed")
        eventually(lambda: log.info().retention is None, "nothing holds it back")
        first = log.info().first
        assert first > 20
        # What was fetched is good; then the gap is told, once, and it goes on behind it.
        assert [each.offset for each in slow.poll()] == [1, 2, 3]
        with pytest.raises(rlog.Gap) as gap:
            slow.poll(timeout=30)
        assert (gap.value.first, gap.value.end) == (4, first)
        assert [each.offset for each in slow.poll(timeout=30)] == list(range(first, 44))
    assert log.cursor("careful").redrive() == 1
    with log.consumer("careful", block=False) as careful:
        assert offsets(careful) == [1]


@pytest.mark.parametrize("policy", ["error", "oldest", "latest"])
@pytest.mark.parametrize("who", ["reader", "consumer"])
def test_after_a_lost_connection_the_gap_is_told_all_the_same(
    make_server: Callable[..., Server], who: str, policy: Any
) -> None:
    server = make_server().start()
    with server.connect() as client, server.connect() as other:
        log = client.log("l", create=True, file_roll_size=4096)
        fill(log, 20)
        more = {"block": False, "on_out_of_range": policy}
        opened: Any = (
            log.reader(rlog.OLDEST, **more) if who == "reader" else log.consumer("c", **more)
        )
        with opened as source:
            assert [each.offset for each in source.poll(2)] == [0, 1]
            first = other.log("l").trim(rlog.offset(16))
            server.kill()
            server.start()
            if policy == "error":
                with pytest.raises(rlog.Gap) as gap:
                    list(source)
                assert (gap.value.first, gap.value.end) == (2, first)
            expected = [] if policy == "latest" else list(range(first, 20))
            assert [each.offset for each in source] == expected
            assert (source.skipped_records > 0) is (policy != "error")
            log.append(record(20))
            assert [each.offset for each in source] == [20]


# --- producers that wait ------------------------------------------------------------------------


def full(log: rlog.Log, minimum: float) -> None:
    """So that the next record has to wait until what is there is old enough."""
    log.alter(max_total_bytes=TOTAL)
    fill(log, 12)
    log.alter(blocking_minimum_retention=minimum)


def test_an_append_that_nobody_makes_room_for_is_refused_before_its_client_gives_up(
    server: Server, log: rlog.Log
) -> None:
    full(log, 3600.0)
    with rlog.connect(server.unix) as client:  # with the default timeout
        again = client.log(log.name)
        with pytest.raises(rlog.DiskFull) as refused:
            again.append(record(12, 9000))
        assert refused.value.retriable
        assert f"log {log.name!r}" in str(refused.value)
        assert "space is expected in 35" in str(refused.value)
    assert log.info().end == 12
    assert "blocking_minimum_retention" in str(log.info().retention)
    assert log.append(record(12)) == 12, "what there is space for is taken"


@pytest.mark.parametrize("how", ["time", "alter", "trim", "delete"])
def test_an_append_that_waits_is_released(
    client: rlog.Client, other: rlog.Client, log: rlog.Log, how: str
) -> None:
    full(log, 2.0 if how == "time" else 3600.0)
    target = other.log(log.name)
    releases: dict[str, Callable[[], object]] = {
        "time": lambda: None,
        "alter": lambda: target.alter(max_total_bytes=None),
        "trim": lambda: target.trim(rlog.offset(12)),
        "delete": target.delete,
    }
    timer = threading.Timer(0.3, releases[how])
    timer.start()
    with log.producer(batch_bytes=4000) as producer:
        pending = [producer.send(record(number, 3000)) for number in range(12, 16)]
        if how == "delete":
            with pytest.raises(rlog.NotFound):
                pending[-1].result()
            with pytest.raises(rlog.NotFound):
                producer.flush()
        else:
            assert [each.result() for each in pending] == list(range(12, 16))
            assert log.info().first > 0 or how == "alter"
    timer.join()


def test_whoever_waits_keeps_nobody_else_waiting(client: rlog.Client, log: rlog.Log) -> None:
    full(log, 3600.0)
    free = client.log(f"{log.name}.free", create=True)
    with log.producer(batch_bytes=4000) as producer:
        waiting = producer.send(record(12, 9000))
        producer._transport.serve()
        assert free.append(b"x") == 0
        with log.consumer("c", block=False) as consumer:
            assert consumer.process(lambda _record: None, limit=5) == 5
        assert not waiting.done()
        log.alter(blocking_minimum_retention=None)
        assert waiting.result() == 12


def test_after_a_restart_a_wait_begins_anew_and_nothing_is_appended_twice(
    make_server: Callable[..., Server],
) -> None:
    server = make_server().start()
    with server.connect() as client, server.connect() as other:
        log = client.log("l", create=True)
        full(log, 3600.0)
        with log.producer(name="ingest") as producer:
            waiting = producer.send(record(12, 9000))
            producer._transport.serve()
            server.kill()
            server.start()
            timer = threading.Timer(0.5, lambda: other.log("l").trim(rlog.offset(12)))
            timer.start()
            assert waiting.result(60) == 12
            timer.join()
        assert [each.offset for each in log.reader(rlog.offset(12), block=False)] == [12]


# --- the clock ----------------------------------------------------------------------------------


@pytest.mark.skipif(not FAKETIME.exists(), reason="needs libfaketime (apt: faketime)")
@pytest.mark.parametrize("jump", ["+3653d", "-3653d"])
def test_a_server_whose_clock_is_ten_years_off_removes_nothing(
    make_server: Callable[..., Server],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    jump: str,
) -> None:
    offset = tmp_path / "offset"
    offset.write_text("+0\n")
    monkeypatch.setenv("LD_PRELOAD", str(FAKETIME))
    monkeypatch.setenv("FAKETIME_TIMESTAMP_FILE", str(offset))
    monkeypatch.setenv("FAKETIME_NO_CACHE", "1")
    monkeypatch.setenv("FAKETIME_DONT_FAKE_MONOTONIC", "1")
    server = make_server().start()
    with server.connect() as client:
        log = client.log("l", create=True, max_file_age=DAY, file_roll_size=4096)
        fill(log, 8)
        right_ns = next(iter(log.reader(rlog.OLDEST, block=False))).timestamp_ns
        offset.write_text(f"{jump}\n")
        eventually(lambda: "the clock has jumped" in str(log.info().retention), "it is noticed")
        fill(log, 4)
        wrong_ns = next(iter(log.reader(rlog.offset(8), block=False))).timestamp_ns
        assert abs(wrong_ns - right_ns) > 3652 * DAY * 1e9, "the clock is not faked"
        for end in (server.stop, server.kill):
            end()
            server.start()
            eventually(lambda: "the clock has jumped" in str(log.info().retention), "again")
            time.sleep(1.5)  # for a look or two at the log
            assert log.info().first == 0
        offset.write_text("+0\n")
        eventually(lambda: log.info().retention is None, "the clock is right again")
        time.sleep(1.5)
        assert offsets(log.reader(rlog.OLDEST, block=False)) == list(range(12))
        # And it does remove by age.
        log.alter(max_file_age=1.0)
        eventually(lambda: log.info().first == 12, "what is old is gone")

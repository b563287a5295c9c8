"""The producer against a real server: back-pressure, lingering, failures, lost answers."""

from __future__ import annotations

import contextlib
import gc
import logging
import os
import signal
import threading
import time
from typing import TYPE_CHECKING

import pytest

import rlog_client as rlog

from .serving import Server, eventually

if TYPE_CHECKING:
    from collections.abc import Callable


def values(log: rlog.Log) -> list[bytes]:
    return [record.value for record in log.reader(rlog.OLDEST, block=False)]


def test_a_full_buffer_blocks_ctrl_c_ends_it_and_all_arrives_in_the_end(
    make_server: Callable[..., Server],
) -> None:
    server = make_server().start()
    with server.connect(timeout=None) as client:
        log = client.log("l", create=True)
        producer = log.producer(batch_bytes=16_000, buffer_bytes=100_000)
        server.pause()
        sent: list[bytes] = []

        def interrupt_when_it_stands_still() -> None:
            before = -1
            while before != len(sent):
                before = len(sent)
                time.sleep(0.5)
            os.kill(os.getpid(), signal.SIGINT)

        watcher = threading.Thread(target=interrupt_when_it_stands_still)
        watcher.start()
        with pytest.raises(KeyboardInterrupt):  # noqa: PT012
            while True:
                value = b"%d" % len(sent) + bytes(1000)
                producer.send(value)
                sent.append(value)
        watcher.join()
        assert 50 <= len(sent) <= 101
        server.resume()
        assert producer.flush() >= len(sent)
        there = values(log)
        assert there[: len(sent)] == sent
        assert len(there) - len(sent) <= 1  # the one whose send was interrupted
        producer.send(b"and on")
        producer.close()
        assert values(log)[-1] == b"and on"


def test_a_flush_has_its_own_timeout_and_takes_nothing_back(
    make_server: Callable[..., Server],
) -> None:
    server = make_server().start()
    with server.connect() as client:
        log = client.log("l", create=True)
        producer = log.producer()
        server.pause()
        pending = producer.send(b"1")
        with pytest.raises(rlog.TimedOut):
            producer.flush(timeout=0.05)
        with pytest.raises(rlog.TimedOut):
            pending.result(timeout=0.05)
        with pytest.raises(rlog.TimedOut):
            pending.receipt(timeout=0.05)
        assert not pending.done()
        server.resume()
        assert pending.result() == 0
        assert pending.receipt().level == "synced"
        assert pending.done()


def test_a_record_lingers_and_leaves_with_the_next_call(
    client: rlog.Client, other: rlog.Client, log: rlog.Log
) -> None:
    producer = log.producer(linger=0.05)
    mine = other.log(log.name)
    first = producer.send(b"1")
    assert not first.done()
    time.sleep(0.06)
    assert mine.info().end == 0  # nothing runs in between
    client.logs()  # any call into the client will do
    eventually(lambda: mine.info().end == 1, "it has left")
    lazy = log.producer(linger=3600.0)
    lazy.send(b"2")
    client.logs()
    assert mine.info().end == 1
    assert lazy.flush() == 2
    lazy.close()
    producer.close()


def test_without_linger_every_record_is_on_its_way_at_once(
    other: rlog.Client, log: rlog.Log
) -> None:
    with log.producer(linger=0.0) as producer:
        for i in range(3):
            producer.send(b"%d" % i)
            eventually(lambda i=i: other.log(log.name).info().end == i + 1, "it has left")  # type: ignore[misc]  # bound to this turn of the loop


def test_a_full_batch_leaves_without_being_asked(other: rlog.Client, log: rlog.Log) -> None:
    with log.producer(linger=3600.0, batch_bytes=10_000) as producer:
        for _ in range(25):
            producer.send(bytes(1000))
        eventually(lambda: other.log(log.name).info().end >= 18, "two batches have left")
        assert other.log(log.name).info().end < 25
    assert log.info().end == 25


def test_a_refused_batch_is_raised_once_and_by_each_of_its_records(
    client: rlog.Client, other: rlog.Client, log: rlog.Log
) -> None:
    producer = log.producer(linger=3600.0)
    good = producer.send(b"1")
    assert producer.flush() == 1
    other.log(log.name).delete()
    bad = [producer.send(b"2"), producer.send(b"3")]
    with pytest.raises(rlog.NotFound):
        producer.flush()
    assert producer.flush() == 1
    assert good.result() == 0
    for pending in bad:
        assert pending.done()
        with pytest.raises(rlog.NotFound):
            pending.result()
    producer.send(b"4")
    with pytest.raises(rlog.NotFound), producer:
        pass


def test_the_first_failure_is_raised_by_a_later_send(
    client: rlog.Client, other: rlog.Client, log: rlog.Log
) -> None:
    producer = log.producer(linger=0.0)
    other.log(log.name).delete()

    def send_on() -> None:
        while True:
            producer.send(b"x")

    with pytest.raises(rlog.NotFound):
        send_on()
    with contextlib.suppress(rlog.NotFound):
        producer.close()  # what else was under way


def test_leaving_by_an_exception_flushes_and_does_not_mask_it(
    other: rlog.Client, log: rlog.Log, caplog: pytest.LogCaptureFixture
) -> None:
    def send_and_fail(value: bytes, delete: bool) -> None:
        with log.producer(linger=3600.0) as producer:
            producer.send(value)
            if delete:
                other.log(log.name).delete()
            raise KeyError

    with pytest.raises(KeyError):
        send_and_fail(b"1", False)
    assert values(log) == [b"1"]
    with caplog.at_level(logging.WARNING, "rlog_client"), pytest.raises(KeyError):
        send_and_fail(b"2", True)
    assert "flushing on the way out failed" in caplog.text


def test_records_that_were_never_sent_are_told_of(
    log: rlog.Log, caplog: pytest.LogCaptureFixture
) -> None:
    producer = log.producer(linger=3600.0)
    producer.send(b"1")
    with caplog.at_level(logging.WARNING, "rlog_client"):
        del producer
        gc.collect()
    assert "1 records were never sent" in caplog.text


def test_closing_the_client_flushes_its_producers(server: Server, log: rlog.Log) -> None:
    client = server.connect()
    producer = client.log(log.name).producer(linger=3600.0)
    producer.send(b"1")
    client.close()
    assert values(log) == [b"1"]
    with pytest.raises(RuntimeError):
        producer.send(b"2")


def test_producers_mix_and_each_keeps_its_order(client: rlog.Client, log: rlog.Log) -> None:
    producers = [log.producer(linger=0.0, batch_bytes=500) for _ in range(5)]
    for i in range(500):
        for number, producer in enumerate(producers):
            producer.send(b"%d %d" % (number, i), key=b"%d" % number)
    for producer in producers:
        producer.close()
    seen = [tuple(map(int, value.split())) for value in values(log)]
    assert len(seen) == 2500
    for number in range(5):
        assert [i for n, i in seen if n == number] == list(range(500))


def test_a_receipt_is_of_one_record(log: rlog.Log) -> None:
    with log.producer() as producer:
        pending = [producer.send(b"%d" % i) for i in range(3)]
        receipts = [each.receipt() for each in pending]
    assert [(r.first, r.end) for r in receipts] == [(0, 1), (1, 2), (2, 3)]
    assert {r.level for r in receipts} == {"synced"}
    assert not any(r.duplicate for r in receipts)


def test_extend_takes_what_send_takes(log: rlog.Log) -> None:
    with log.producer(batch_bytes=5000) as producer:
        producer.extend([b"1", bytearray(b"2"), memoryview(b"3")])
        producer.extend(bytes([i % 256]) * (i % 3000) for i in range(5000))
        producer.extend([])
        with pytest.raises(TypeError):
            producer.extend(["text"])  # type: ignore[list-item]  # wrong on purpose
    there = values(log)
    assert there[:3] == [b"1", b"2", b"3"]
    assert [len(v) for v in there[3:]] == [i % 3000 for i in range(5000)]


def test_an_answer_that_is_lost_leaves_the_outcome_unknown(
    make_server: Callable[..., Server],
) -> None:
    """The server dies between the sync of a frame and its answer."""
    server = make_server().start("--kill", "sync:journal:after:1")
    client = server.connect(timeout=1.0)
    log = client.log("l", create=True)
    assert log.append(b"before") == 0
    with log.producer(linger=3600.0) as producer:
        producer.send(b"1")
        producer.flush()
        server.signal(signal.SIGUSR1)
        pending = [producer.send(b"%d" % i) for i in (2, 3)]
        with pytest.raises(rlog.OutcomeUnknown) as raised:
            producer.flush()
        assert (raised.value.sequence, raised.value.producer > 0) == (1, True)
        for each in pending:
            with pytest.raises(rlog.OutcomeUnknown):
                each.result()
        with pytest.raises(rlog.ConnectionLost):
            log.append(b"never on its way")
    client.close()
    server.wait()
    server.start()
    with server.connect() as client:
        assert values(client.log("l")) == [b"before", b"1", b"2", b"3"]


def test_a_single_append_whose_answer_is_lost_says_so(
    make_server: Callable[..., Server],
) -> None:
    for when, there in (("before", [b"1"]), ("after", [b"1", b"2"])):
        server = make_server().start("--kill", f"write:journal:{when}:1")
        client = server.connect(timeout=1.0)
        log = client.log("l", create=True)
        log.append(b"1")
        server.signal(signal.SIGUSR1)
        with pytest.raises(rlog.OutcomeUnknown) as raised:
            log.append_many([b"2"])
        assert raised.value.sequence == 1
        assert not raised.value.retriable
        client.close()
        server.wait()
        server.start()
        with server.connect() as client:
            assert values(client.log("l")) == there
        server.stop()

"""The producer and the plain appends against a scripted peer."""

from __future__ import annotations

import contextlib
import time

import pytest

import rlog_client as rlog
from rlog_client import batch, protocol
from rlog_client.producer import IN_FLIGHT_MAX

from .peer import BATCH_BYTES_MAX, RECORD_BYTES_MAX, Peer


def values(peer: Peer) -> list[bytes]:
    found: list[bytes] = []
    for each in peer.batches:
        header = batch.parse_header(each)
        found += batch.decode(header, each[80:]).values
    return found


def appends(control: protocol.Control) -> bool:
    return isinstance(control, protocol.Append)


def test_what_is_sent_arrives_in_order(peer: Peer, log: rlog.Log) -> None:
    with log.producer(batch_bytes=1000) as producer:
        pending = [producer.send(b"%d" % n) for n in range(1000)]
        assert producer.flush() == 1000
        assert [each.result() for each in pending] == list(range(1000))
        assert pending[17].receipt() == rlog.Receipt(
            17, 18, pending[17].receipt().timestamp_ns, "synced"
        )
    assert values(peer) == [b"%d" % n for n in range(1000)]
    assert len(peer.batches) > 30


def test_extend_is_send_of_each(peer: Peer, log: rlog.Log) -> None:
    data = [b"x" * (n % 300) for n in range(5000)]
    with log.producer(batch_bytes=5000) as producer:
        producer.extend(iter(data))
        producer.extend([bytearray(b"other"), memoryview(b"kinds"), b"too"])
    assert values(peer) == [*data, b"other", b"kinds", b"too"]
    assert max(map(len, peer.batches)) <= 5000


def test_no_batch_is_larger_than_asked_for(peer: Peer, log: rlog.Log) -> None:
    with log.producer(batch_bytes=4000) as producer:
        for n in range(500):
            producer.send(
                b"v" * (n % 90), key=b"k" * (n % 7), headers={"h": b"x"}, event_time_ns=-n
            )
    assert max(map(len, peer.batches)) <= 4000
    assert sum(batch.parse_header(each).count for each in peer.batches) == 500


def test_columns_are_made_when_a_record_has_them(log: rlog.Log) -> None:
    with log.producer() as producer:
        producer.send(b"a")
        producer.send(b"b", key=b"k")
        producer.send(b"c")
        producer.send(b"d", headers={"h": b"1"})
        producer.send(b"e", event_time_ns=5)
        producer.send(b"f")
    got = [(r.key, dict(r.headers), r.event_time_ns) for r in log.reader(rlog.OLDEST, block=False)]
    assert got == [
        (None, {}, None), (b"k", {}, None), (None, {}, None),
        (None, {"h": b"1"}, None), (None, {}, 5), (None, {}, None),
    ]  # fmt: skip


def test_what_is_no_bytes_is_a_type_error_that_names_encode(log: rlog.Log) -> None:
    with log.producer() as producer:
        with pytest.raises(TypeError, match=r"\.encode\(\)"):
            producer.send("text")  # type: ignore[arg-type]
        with pytest.raises(TypeError, match=r"\.encode\(\)"):
            producer.extend(["text"])  # type: ignore[list-item]
    with pytest.raises(TypeError, match=r"\.encode\(\)"):
        log.append("text")  # type: ignore[arg-type]
    log.append(b"as before")


def test_a_record_beyond_the_limit_is_too_large_and_the_others_go(
    peer: Peer, log: rlog.Log
) -> None:
    with log.producer() as producer:
        producer.send(b"before")
        with pytest.raises(rlog.TooLarge) as raised:
            producer.send(b"x" * (RECORD_BYTES_MAX + 1))
        assert (raised.value.size, raised.value.limit) == (RECORD_BYTES_MAX + 1, RECORD_BYTES_MAX)
        with pytest.raises(rlog.TooLarge) as raised:
            producer.extend([b"one", b"x" * (RECORD_BYTES_MAX + 1), b"not reached"])
        assert raised.value.index == 1
        producer.send(b"x" * RECORD_BYTES_MAX)
    assert [len(value) for value in values(peer)] == [6, 3, RECORD_BYTES_MAX]


def test_linger_is_looked_at_on_every_call_into_the_client(peer: Peer, log: rlog.Log) -> None:
    producer = log.producer(linger=0.02)
    pending = producer.send(b"first")
    assert not peer.batches
    time.sleep(0.03)
    log.append(b"any call")
    assert pending.result() == 0
    assert values(peer) == [b"first", b"any call"]
    time.sleep(0.03)
    pending = producer.send(b"due")
    deadline = time.monotonic() + 5
    while len(peer.batches) < 3 and time.monotonic() < deadline:
        time.sleep(0.001)
    assert values(peer)[2:] == [b"due"]
    producer.close()
    assert pending.done()


def test_result_sends_what_is_buffered(log: rlog.Log) -> None:
    producer = log.producer(linger=100.0)
    pending = producer.send(b"x")
    assert not pending.done()
    assert pending.result() == 0
    assert pending.done()
    producer.close()
    with pytest.raises(RuntimeError):
        producer.send(b"x")


def test_the_first_failure_is_raised_once_and_later_sends_work(peer: Peer, log: rlog.Log) -> None:
    full = True
    peer.refuse = lambda c: rlog.DiskFull("no space") if full and appends(c) else None
    producer = log.producer()
    first = producer.send(b"a")
    with pytest.raises(rlog.DiskFull):
        producer.flush()
    with pytest.raises(rlog.DiskFull):
        first.result()
    full = False
    assert producer.send(b"b").result() == 0
    producer.close()
    assert values(peer) == [b"b"]


def test_a_failure_is_raised_by_the_next_send(peer: Peer, log: rlog.Log) -> None:
    peer.refuse = lambda c: rlog.DiskFull("no space") if appends(c) else None
    producer = log.producer(linger=100.0)
    pending = producer.send(b"a")
    with pytest.raises(rlog.DiskFull):
        pending.result()
    with pytest.raises(rlog.DiskFull):
        producer.send(b"b")
    peer.refuse = lambda c: None
    producer.send(b"c")
    producer.close()
    assert values(peer) == [b"c"]


@pytest.mark.parametrize("refused", [False, True])
def test_leaving_by_an_exception_flushes_and_does_not_mask_it(
    peer: Peer, log: rlog.Log, refused: bool
) -> None:
    peer.refuse = lambda c: rlog.DiskFull("no space") if refused and appends(c) else None

    def leave() -> None:
        with log.producer(linger=100.0) as producer:
            producer.send(b"a")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        leave()
    assert values(peer) == ([] if refused else [b"a"])


def test_a_lost_reply_is_outcome_unknown_with_its_sequence(peer: Peer, log: rlog.Log) -> None:
    producer = log.producer(linger=100.0)
    assert producer.send(b"a").result() == 0
    peer.refuse = lambda c: "cut" if appends(c) else None
    producer.send(b"b")
    pending = producer.send(b"c")
    with pytest.raises(rlog.OutcomeUnknown) as raised:
        pending.result()
    assert raised.value.sequence == 1
    assert raised.value.producer > 0
    with pytest.raises(rlog.OutcomeUnknown):
        producer.flush()
    producer.send(b"d")
    with pytest.raises(rlog.ConnectionLost):
        producer.flush()


def test_a_silent_server_is_given_up_after_the_timeout(peer: Peer) -> None:
    with rlog.connect(peer.url, timeout=0.1) as client:
        log = client.log("l")
        peer.refuse = lambda c: "silence" if appends(c) else None
        with pytest.raises(rlog.OutcomeUnknown):
            log.append(b"x")
        producer = log.producer()
        pending = producer.send(b"y")
        with pytest.raises(rlog.TimedOut):
            pending.result(timeout=0.02)
        with pytest.raises(rlog.OutcomeUnknown):
            producer.flush()
        peer.refuse = lambda c: None
        assert producer.send(b"z").result() == 0
        producer.close()


@pytest.mark.parametrize(
    ("value_bytes", "batch_bytes", "buffer_bytes", "batches"),
    [(100, 500, 1 << 20, IN_FLIGHT_MAX), (1000, 10_000, 20_000, 2)],
)
def test_what_is_in_flight_is_bounded(
    peer: Peer, value_bytes: int, batch_bytes: int, buffer_bytes: int, batches: int
) -> None:
    peer.refuse = lambda c: "silence" if appends(c) else None
    client = rlog.connect(peer.url, timeout=0.2)
    producer = client.log("l").producer(
        batch_bytes=batch_bytes, buffer_bytes=buffer_bytes, linger=100.0
    )
    with pytest.raises(rlog.OutcomeUnknown):
        producer.extend([b"x" * value_bytes] * 1000)
    # One more may go out once those in flight are given up.
    assert sum(map(appends, peer.asked)) in (batches, batches + 1)
    with contextlib.suppress(rlog.OutcomeUnknown):
        client.close()


def test_append_many_is_one_batch(peer: Peer, log: rlog.Log) -> None:
    receipt = log.append_many([b"a", rlog.Item(b"b", key=b"k")])
    assert (receipt.first, receipt.end, receipt.level) == (0, 2, "synced")
    assert len(peer.batches) == 1
    with pytest.raises(ValueError, match="at least one"):
        log.append_many([])
    with pytest.raises(rlog.TooLarge) as raised:
        log.append_many([b"x" * RECORD_BYTES_MAX] * 9)
    assert raised.value.limit == BATCH_BYTES_MAX
    assert len(peer.batches) == 1


def test_expect_is_the_logs_end(log: rlog.Log) -> None:
    assert log.append(b"a", expect=0) == 0
    with pytest.raises(rlog.Conflict) as raised:
        log.append(b"b", expect=0)
    assert raised.value.end == 1


def test_large_batches_do_not_deadlock_with_full_buffers(peer: Peer, log: rlog.Log) -> None:
    with log.producer(batch_bytes=4 << 20) as producer:
        producer.extend([b"x" * 1_000_000] * 40)
    assert peer.end == 40

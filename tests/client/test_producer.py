"""The producer and the plain appends against a scripted peer."""

from __future__ import annotations

import contextlib
import time

import pytest

import rlog_client as rlog
from rlog_client import batch, protocol
from rlog_client.identity import AppendIds
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
            producer.send("text")  # type: ignore[arg-type]  # wrong on purpose
        with pytest.raises(TypeError, match=r"\.encode\(\)"):
            producer.extend(["text"])  # type: ignore[list-item]  # wrong on purpose
    with pytest.raises(TypeError, match=r"\.encode\(\)"):
        log.append("text")  # type: ignore[arg-type]  # wrong on purpose
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


def test_among_many_producers_a_batch_that_has_lingered_goes_all_the_same(
    peer: Peer, client: rlog.Client, log: rlog.Log
) -> None:
    producers = [log.producer(linger=0.02) for _ in range(300)]
    pending = producers[150].send(b"x")
    deadline = time.monotonic() + 5.0
    while not peer.batches and time.monotonic() < deadline:
        client.log("l")
    assert len(peer.batches) == 1
    assert pending.result() == 0


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


def test_a_reply_that_never_comes_is_outcome_unknown_with_its_sequence(peer: Peer) -> None:
    with rlog.connect(peer.url, timeout=0.3) as client:
        producer = client.log("l").producer(linger=100.0, batch_bytes=200)
        assert producer.send(b"a").result() == 0
        peer.refuse = lambda c: "cut" if appends(c) else None
        pending = [producer.send(b"b"), producer.send(bytes(200)), producer.send(b"c")]
        with pytest.raises(rlog.OutcomeUnknown) as raised:
            producer.flush()
        assert raised.value.sequence == 1
        assert raised.value.producer > 0
        for each in pending:
            with pytest.raises((rlog.OutcomeUnknown, rlog.ConnectionLost)):
                each.result()
        producer.close()


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


# --- sequences ----------------------------------------------------------------------------------


def afters(peer: Peer) -> list[int | None]:
    return [control.after for control in peer.asked if isinstance(control, protocol.Append)]


def numbers(peer: Peer) -> list[tuple[int, int, int]]:
    """Producer id, first sequence and count of every batch that was taken."""
    headers = [batch.parse_header(each) for each in peer.batches]
    return [(header.producer, header.sequence, header.count) for header in headers]


def test_every_batch_names_the_last_sequence_before_it(peer: Peer, log: rlog.Log) -> None:
    with log.producer(linger=100.0) as producer:
        for count in (1, 3, 2):
            producer.extend([b"x"] * count)
            producer.flush()
    assert [(sequence, count) for _, sequence, count in numbers(peer)] == [(0, 1), (1, 3), (4, 2)]
    assert len({producer for producer, _, _ in numbers(peer)}) == 1
    assert afters(peer) == [-1, 0, 3]


def test_what_does_not_follow_is_sent_again_under_another_id(peer: Peer, log: rlog.Log) -> None:
    """As when the server lost what was not synced: nothing failed, and yet it does not follow."""
    producer = log.producer(linger=100.0, batch_bytes=200)
    assert producer.send(b"0").result() == 0
    peer.refuse = lambda c: (
        rlog.Conflict("does not follow", end=1)
        if isinstance(c, protocol.Append) and c.after == 0
        else None
    )
    second = producer.send(b"1")
    assert second.result() == 1
    peer.refuse = lambda c: None
    assert producer.send(b"2").result() == 2
    producer.close()
    (first, *_), (again, sequence, _), (following, then, _) = numbers(peer)
    assert first != again == following
    assert (sequence, then) == (0, 1)
    assert afters(peer) == [-1, 0, -1, 0]


def test_it_is_sent_again_once(peer: Peer, log: rlog.Log) -> None:
    peer.refuse = lambda c: rlog.Conflict("does not follow", end=0) if appends(c) else None
    producer = log.producer(linger=100.0)
    pending = producer.send(b"1")
    with pytest.raises(rlog.Conflict):
        producer.flush()
    with pytest.raises(rlog.Conflict):
        pending.result()
    assert afters(peer) == [-1, -1]
    peer.refuse = lambda c: None
    assert producer.send(b"2").result() == 0
    producer.close()


def test_what_is_open_fails_unsent_with_what_is_under_way(peer: Peer, log: rlog.Log) -> None:
    producer = log.producer(linger=100.0)
    peer.refuse = lambda c: rlog.DiskFull("no space") if appends(c) else None
    first = producer.send(b"1")
    producer._seal()
    second = producer.send(b"2")
    with pytest.raises(rlog.DiskFull, match="no space"):
        first.result()
    with pytest.raises(rlog.DiskFull, match="not appended"):
        second.result()
    with pytest.raises(rlog.DiskFull):
        producer.send(b"3")
    assert len(afters(peer)) == 1
    peer.refuse = lambda c: None
    assert producer.send(b"4").result() == 0
    producer.close()
    assert values(peer) == [b"4"]


def test_an_idle_id_is_left_before_the_server_forgets_it(
    peer: Peer, log: rlog.Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    producer = log.producer(linger=100.0)
    later = 0.0
    monkeypatch.setattr("rlog_client.producer.monotonic", lambda: time.monotonic() + later)
    for seconds in (0.0, 1700.0, 1700.0, 1900.0, 1700.0):
        later += seconds
        producer.send(b"x").result()
    producer.close()
    ids = [producer for producer, _, _ in numbers(peer)]
    assert ids[0] == ids[1] == ids[2] != ids[3] == ids[4]
    assert afters(peer) == [-1, 0, 1, -1, 0]


def test_appends_that_stand_alone_share_ids_one_at_a_time(peer: Peer, log: rlog.Log) -> None:
    log.append(b"1")
    log.append_many([b"2", b"3"])
    with pytest.raises(rlog.Conflict):
        log.append(b"x", expect=0)
    log.append(b"4")
    assert len({producer for producer, _, _ in numbers(peer)}) == 1
    assert [sequence for _, sequence, _ in numbers(peer)] == [0, 1, 4]
    assert afters(peer) == [None] * 4
    ids = AppendIds()
    first, second = ids.borrow(), ids.borrow()
    assert first[0] != second[0]
    ids.give_back(first[0], 7)
    assert ids.borrow() == (first[0], 7)


def test_an_append_that_was_given_up_keeps_its_id(peer: Peer) -> None:
    with rlog.connect(peer.url, timeout=0.2) as client:
        log = client.log("l")
        log.append(b"1")
        peer.refuse = lambda c: "silence" if appends(c) else None
        with pytest.raises(rlog.OutcomeUnknown) as raised:
            log.append(b"2")
        peer.refuse = lambda c: None
        log.append(b"3")
    (first, _, _), (second, sequence, _) = numbers(peer)
    assert (raised.value.producer, raised.value.sequence) == (first, 1)
    assert second != first
    assert sequence == 0

"""Readers and consumers against a scripted peer."""

from __future__ import annotations

import gc
import signal
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest

import rlog_client as rlog
from rlog_client import protocol
from rlog_client.consumer import AUTOCOMMIT_SECONDS
from rlog_client.session import LOAN_BYTES
from rlog_client.transport import AHEAD_BYTES

from .peer import Line

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from rlog_client.protocol import Control
    from rlog_client.session import Buffer, Call, Subscription
    from rlog_client.steps import Steps

    from .peer import Peer


def offsets(records: Iterable[rlog.Record]) -> list[int]:
    return [record.offset for record in records]


def fill(peer: Peer, batches: int, count: int = 10) -> None:
    for number in range(batches):
        peer.append(*(b"%d.%d" % (number, index) for index in range(count)))


def test_a_reader_gives_every_record_once_in_order(peer: Peer, log: rlog.Log) -> None:
    fill(peer, 7)
    records = list(log.reader(rlog.OLDEST, block=False))
    assert offsets(records) == list(range(70))
    assert records[69].value == b"6.9"
    assert (records[0].attempt, records[0].epoch, records[0].log) == (1, 0, "l")


def test_leaving_a_loop_in_the_middle_loses_nothing(peer: Peer, log: rlog.Log) -> None:
    fill(peer, 5)
    reader = log.reader(rlog.OLDEST, block=False)
    for record in reader:
        if record.offset == 13:
            break
    assert reader.offset == 14
    assert offsets(reader.poll(3)) == [14, 15, 16]
    assert next(reader).offset == 17
    done: list[int] = []
    assert reader.process(lambda r: done.append(r.offset), limit=5) == 5
    assert done == [18, 19, 20, 21, 22]
    assert offsets(reader) == list(range(23, 50))
    assert reader.offset == 50


def test_block_false_ends_at_the_end_as_it_stood(peer: Peer, log: rlog.Log) -> None:
    fill(peer, 2)
    reader = log.reader(rlog.OLDEST, block=False)
    iteration = iter(reader)
    fill(peer, 2)
    assert offsets(iteration) == list(range(20))
    assert offsets(reader) == list(range(20, 40))
    assert offsets(reader) == []


@pytest.mark.parametrize("until", [rlog.offset(13), rlog.offset(20), rlog.offset(0)])
def test_until_is_exclusive(peer: Peer, log: rlog.Log, until: rlog.Whence) -> None:
    fill(peer, 3)
    reader = log.reader(rlog.OLDEST, until=until)
    assert offsets(reader) == list(range(until.value))
    assert reader.offset == until.value
    assert reader.poll(timeout=None) == []


def test_until_latest_is_the_end_when_the_reader_was_made(peer: Peer, log: rlog.Log) -> None:
    fill(peer, 1)
    reader = log.reader(rlog.OLDEST, until=rlog.LATEST)
    fill(peer, 1)
    assert offsets(reader) == list(range(10))


def test_poll_returns_at_once_when_there_is_nothing(peer: Peer, log: rlog.Log) -> None:
    reader = log.reader(rlog.OLDEST)
    assert reader.poll() == []
    begun = time.monotonic()
    assert reader.poll(timeout=0.05) == []
    assert 0.04 < time.monotonic() - begun < 1
    fill(peer, 1)
    assert offsets(reader.poll(4)) == [0, 1, 2, 3]
    assert offsets(reader.poll()) == [4, 5, 6, 7, 8, 9]
    assert reader.poll() == []


def test_no_loan_is_open_while_the_callers_code_runs(peer: Peer, log: rlog.Log) -> None:
    fill(peer, 3)
    reader = log.reader(rlog.OLDEST)
    for record in reader:
        assert all(not reading.loan for line in peer.lines for reading in line.readings.values())
        if record.offset == 29:
            break
    assert reader.poll(timeout=0.01) == []
    assert all(not reading.loan for line in peer.lines for reading in line.readings.values())


def test_a_waiting_reader_is_woken_by_an_append(peer: Peer, log: rlog.Log) -> None:
    timer = threading.Timer(0.05, fill, (peer, 1))
    timer.start()
    assert next(log.reader(rlog.LATEST)).offset == 0
    timer.join()


def test_seek_moves_and_drops_what_was_prefetched(peer: Peer, log: rlog.Log) -> None:
    fill(peer, 3)
    reader = log.reader(rlog.OLDEST, block=False)
    assert next(reader).offset == 0
    assert reader.seek(rlog.offset(25)) == 25
    assert offsets(reader) == [25, 26, 27, 28, 29]
    with pytest.raises(rlog.OffsetOutOfRange):
        reader.seek(rlog.offset(31))
    assert reader.seek(rlog.last(1)) == 29


@pytest.mark.parametrize("use", ["iterate", "poll", "process"])
def test_stop_from_another_thread_ends_every_wait(peer: Peer, log: rlog.Log, use: str) -> None:
    reader = log.reader(rlog.OLDEST)
    timer = threading.Timer(0.05, reader.stop)
    timer.start()
    begun = time.monotonic()
    if use == "iterate":
        assert list(reader) == []
    elif use == "poll":
        assert reader.poll(timeout=None) == []
    else:
        assert reader.process(lambda r: None) == 0
    timer.join()
    assert time.monotonic() - begun < 2
    fill(peer, 1)
    assert list(reader) == []  # sticky
    assert log.append(b"x") == 10  # the client is as it was


def test_stop_ends_a_loop_in_the_middle_of_a_batch(peer: Peer, log: rlog.Log) -> None:
    fill(peer, 2)
    reader = log.reader(rlog.OLDEST)
    seen = []
    for record in reader:
        seen.append(record.offset)
        if record.offset == 3:
            reader.stop()
    assert seen == [0, 1, 2, 3]
    assert reader.offset == 4


def test_ctrl_c_ends_a_wait_and_leaves_the_reader_whole(peer: Peer, log: rlog.Log) -> None:
    reader = log.reader(rlog.OLDEST)
    for _ in range(5):
        timer = threading.Timer(0.03, signal.pthread_kill, (threading.get_ident(), signal.SIGINT))
        timer.start()
        with pytest.raises(KeyboardInterrupt):
            next(reader)
        timer.join()
    fill(peer, 1)
    assert offsets(reader.poll(timeout=1.0)) == list(range(10))


def test_damage_is_raised_once_and_reading_goes_on_behind_it(peer: Peer, log: rlog.Log) -> None:
    fill(peer, 3)
    error = rlog.CorruptData("bad", log="l", first=10, end=20, file="seg", position=7)
    peer.damaged[10] = (error, 20)
    reader = log.reader(rlog.OLDEST, block=False)
    assert offsets(reader.poll()) == list(range(10))
    with pytest.raises(rlog.CorruptData) as raised:
        reader.poll()
    assert (raised.value.first, raised.value.end, raised.value.position) == (10, 20, 7)
    assert reader.offset == 20
    assert offsets(reader) == list(range(20, 30))


@pytest.mark.parametrize("where", [20, 84, 90, -1])
def test_a_flipped_byte_on_the_way_is_corrupt_data_with_its_address(
    peer: Peer, log: rlog.Log, where: int
) -> None:
    fill(peer, 3)
    damaged = bytearray(peer.batches[1])
    damaged[where] ^= 1
    original = peer.batches[1]
    reader = log.reader(rlog.OLDEST, block=False)

    # The peer reads the header itself to find the batch, so the flip is made on its way out.
    line = peer.lines[0]
    send = line.send

    def flipping(request: int, control: protocol.Control, payload: bytes = b"") -> None:
        send(request, control, bytes(damaged) if payload == original else payload)

    line.send = flipping  # type: ignore[method-assign]  # a line that lies
    seen: list[int] = []
    with pytest.raises(rlog.CorruptData) as raised:
        seen.extend(r.offset for r in reader)
    assert (raised.value.first, raised.value.end) == (10, 20)
    assert (raised.value.file, raised.value.position) == ("seg", 4096)
    assert offsets(reader) == list(range(20, 30))


def test_a_lost_connection_is_replaced_while_a_reader_waits(peer: Peer, log: rlog.Log) -> None:
    reader = log.reader(rlog.OLDEST)
    threading.Timer(0.05, peer.lines[0].cut).start()
    threading.Timer(0.3, peer.append, [b"0", b"1"]).start()
    assert next(reader).offset == 0
    assert len(peer.lines) == 2
    peer.lines[1].cut()
    assert log.append(b"x") == 2
    assert [next(reader).offset, next(reader).offset] == [1, 2]


# --- consumers --------------------------------------------------------------------------------


def test_a_consumer_goes_on_where_it_committed(peer: Peer, log: rlog.Log) -> None:
    fill(peer, 3)
    with log.consumer("c", block=False) as consumer:
        assert (consumer.epoch, consumer.committed) == (1, 0)
        for record in consumer:
            if record.offset == 11:
                consumer.commit(record)
                break
        assert consumer.committed == 12
    with log.consumer("c", block=False) as consumer:
        assert consumer.epoch == 2
        assert offsets(consumer) == list(range(12, 30))
    assert peer.holders == {}


def test_a_second_holder_is_busy_in_the_same_client_too(log: rlog.Log) -> None:
    with log.consumer("c"), pytest.raises(rlog.Busy):
        log.consumer("c").poll()
    log.consumer("c").poll()


def test_garbage_collection_releases_the_claim(peer: Peer, log: rlog.Log) -> None:
    consumer = log.consumer("c")
    consumer.poll()
    assert "c" in peer.holders
    del consumer
    gc.collect()
    deadline = time.monotonic() + 5
    while peer.holders and time.monotonic() < deadline:
        time.sleep(0.01)
    assert peer.holders == {}


def test_a_commit_of_another_log_or_epoch_is_refused_here(peer: Peer, log: rlog.Log) -> None:
    fill(peer, 1)
    with log.consumer("c") as consumer:
        record = next(consumer)
        strange = rlog.Record("other", 0, 0, None, {}, b"", epoch=consumer.epoch)
        with pytest.raises(rlog.InvalidRequest):
            consumer.commit(strange)
        assert consumer.seek(rlog.offset(5)) == 5
        assert consumer.epoch == 2
        with pytest.raises(rlog.Fenced):
            consumer.commit(record)
        assert next(consumer).offset == 5


def test_a_lost_claim_is_fenced(peer: Peer, log: rlog.Log) -> None:
    fill(peer, 1)
    consumer = log.consumer("c")
    record = next(consumer)
    peer.lines[0].lose("c")
    with pytest.raises(rlog.Fenced):
        consumer.poll()  # not what was prefetched
    with pytest.raises(rlog.Fenced):
        consumer.commit(record)
    with pytest.raises(rlog.Fenced):
        list(consumer)
    consumer.close()


def test_commits_without_waiting_are_awaited_by_close(peer: Peer, log: rlog.Log) -> None:
    fill(peer, 20)
    with log.consumer("c", block=False) as consumer:
        for record in consumer:
            consumer.commit(record, wait=False)
    assert peer.cursors["c"] == 200


def test_an_error_of_a_commit_without_waiting_surfaces_later(peer: Peer, log: rlog.Log) -> None:
    fill(peer, 1)
    peer.refuse = lambda control: (
        rlog.StorageFailed("disk") if isinstance(control, protocol.CommitCursor) else None
    )
    consumer = log.consumer("c", block=False)
    consumer.commit(next(consumer), wait=False)
    with pytest.raises(rlog.StorageFailed):
        consumer.close()
    assert peer.holders == {}


def test_autocommit_commits_a_record_when_the_next_is_asked_for(peer: Peer, log: rlog.Log) -> None:
    fill(peer, 2)
    with log.consumer("c", block=False, autocommit=True) as consumer:
        for record in consumer:
            if record.offset == 4:
                break
    assert peer.cursors["c"] == 4
    with log.consumer("c", block=False, autocommit=True) as consumer:
        assert offsets(consumer.poll(3)) == [4, 5, 6]
        assert offsets(consumer.poll(3)) == [7, 8, 9]
    assert peer.cursors["c"] == 7


# --- autocommit -------------------------------------------------------------------------------


def eventually(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def commits(peer: Peer) -> list[int]:
    return [each.offset for each in peer.asked if isinstance(each, protocol.CommitCursor)]


def ask(log: rlog.Log) -> None:
    """A call into the client: what was sent before it has been seen when it is answered."""
    log.reader(rlog.OLDEST)


def hold(consumer: rlog.Consumer) -> None:
    """Have it believe that a commit went out just now, and that the next has to wait for long."""
    consumer._commit_at = time.monotonic() + 3600


def test_autocommit_has_many_records_share_a_commit(peer: Peer, log: rlog.Log) -> None:
    fill(peer, 1, 5000)
    with log.consumer("c", block=False, autocommit=True) as consumer:
        assert offsets(consumer) == list(range(5000))
        ask(log)
        sent = commits(peer)
        assert sent[0] == 1  # there was nothing that it could have gone with
        assert sent[-1] == 5000  # at the end of the loop, not of the `with`
        assert sent == sorted(set(sent))
        assert len(sent) < 1000
        consumer.poll()
        assert commits(peer) == sent  # once is enough
    assert commits(peer) == sent
    assert peer.cursors["c"] == 5000


def test_autocommit_of_a_slow_loop_commits_each_record(peer: Peer, log: rlog.Log) -> None:
    fill(peer, 1, 6)
    with log.consumer("c", block=False, autocommit=True) as consumer:
        for record in consumer:
            time.sleep(2 * AUTOCOMMIT_SECONDS)
            if record.offset == 5:
                break
    assert commits(peer) == [1, 2, 3, 4, 5]


def held_at_three(peer: Peer, log: rlog.Log) -> tuple[rlog.Consumer, Iterator[rlog.Record]]:
    """0 is committed, 1 and 2 are to be, and 3 is in hand."""
    fill(peer, 1, 6)
    consumer = log.consumer("c", autocommit=True)
    records = iter(consumer)
    for record in records:
        if record.offset == 1:
            hold(consumer)
        if record.offset == 3:
            break
    ask(log)
    assert commits(peer) == [1]
    return consumer, records


def test_a_commit_that_was_held_back_goes_out_when_it_is_due(peer: Peer, log: rlog.Log) -> None:
    consumer, records = held_at_three(peer, log)
    consumer._commit_at = 0.0
    ask(log)  # any call into the client
    assert commits(peer) == [1, 3]
    ask(log)
    assert commits(peer) == [1, 3]
    assert next(records).offset == 4  # 3 was asked beyond now
    consumer.close()
    assert peer.cursors["c"] == 4


@pytest.mark.parametrize("how", ["consumer", "client", "collected"])
def test_a_commit_that_was_held_back_is_not_left_behind(
    peer: Peer, client: rlog.Client, log: rlog.Log, how: str
) -> None:
    consumer, records = held_at_three(peer, log)
    if how == "consumer":
        consumer.close()
        assert peer.cursors["c"] == 3  # it was waited for
    elif how == "client":
        client.close()
    else:
        del consumer, records
        gc.collect()
    eventually(lambda: peer.cursors["c"] == 3 and not peer.holders)
    assert commits(peer) == [1, 3]


def test_a_commit_that_was_held_back_leaves_before_a_wait(peer: Peer, log: rlog.Log) -> None:
    fill(peer, 1, 3)
    consumer = log.consumer("c", autocommit=True)
    timer = threading.Timer(0.1, fill, (peer, 1, 1))
    for record in consumer:
        if record.offset == 1:
            hold(consumer)
        if record.offset == 2:
            timer.start()
        if record.offset == 3:
            break
    assert commits(peer) == [1, 3]  # no call but the wait was made since
    timer.join()
    consumer.close()
    assert commits(peer) == [1, 3]


@pytest.mark.parametrize("due", [False, True])
def test_a_commit_that_was_held_back_is_answered_before_a_seek(
    peer: Peer, log: rlog.Log, due: bool
) -> None:
    consumer, _ = held_at_three(peer, log)
    if due:
        consumer._commit_at = 0.0
    assert consumer.seek(rlog.OLDEST) == 0
    assert consumer.committed == 0
    kinds = (protocol.CommitCursor, protocol.SeekCursor)
    asked = [type(each) for each in peer.asked if isinstance(each, kinds)]
    assert asked == [protocol.CommitCursor, protocol.CommitCursor, protocol.SeekCursor]
    consumer._commit_at = 0.0
    ask(log)
    consumer.close()
    assert commits(peer) == [1, 3]
    assert peer.cursors["c"] == 0


def test_what_was_lost_behind_a_commit_that_was_held_back_is_passed_with_it(
    peer: Peer, log: rlog.Log
) -> None:
    for count in (3, 2, 2):
        fill(peer, 1, count)
    peer.damaged[3] = (rlog.CorruptData("rot", log="l", first=3, end=5, file="f", position=0), 5)
    consumer = log.consumer("c", block=False, autocommit=True)
    records = iter(consumer)
    assert [next(records).offset, next(records).offset] == [0, 1]
    hold(consumer)
    with pytest.raises(rlog.CorruptData):
        list(records)
    ask(log)
    assert commits(peer) == [1]
    assert offsets(consumer) == [5, 6]
    consumer.close()
    assert commits(peer)[:2] == [1, 3]
    assert peer.cursors["c"] == 7


def test_what_is_asked_about_a_record_in_hand_does_not_commit_it(peer: Peer, log: rlog.Log) -> None:
    fill(peer, 1, 6)
    with log.consumer("c", autocommit=True) as consumer:
        for record in consumer:
            assert consumer.committed <= record.offset
            assert consumer.epoch == 1
            if record.offset == 4:
                break
    assert peer.cursors["c"] == 4


def test_a_record_that_was_settled_by_hand_is_not_committed_once_more(
    peer: Peer, log: rlog.Log
) -> None:
    fill(peer, 1, 4)
    with log.consumer("c", block=False, autocommit=True) as consumer:
        for record in consumer:
            hold(consumer)
            if record.offset == 2:
                consumer.settle(record, rlog.Park("by hand"))
    settled = [each.offset for each in peer.asked if isinstance(each, protocol.Settle)]
    assert settled == [2]
    assert commits(peer) == [2, 4]  # what is below it first


def test_a_poll_in_the_loop_takes_over(peer: Peer, log: rlog.Log) -> None:
    fill(peer, 1, 12)
    with log.consumer("c", autocommit=True) as consumer:
        records = iter(consumer)
        assert [next(records).offset, next(records).offset] == [0, 1]
        hold(consumer)
        assert offsets(consumer.poll(9)) == list(range(2, 11))
        hold(consumer)
        assert next(records).offset == 11
    assert peer.cursors["c"] == 11


def test_two_loops_commit_what_both_have_asked_beyond(peer: Peer, log: rlog.Log) -> None:
    fill(peer, 1, 12)
    with log.consumer("c", autocommit=True) as consumer:
        one, other = iter(consumer), iter(consumer)
        assert next(one).offset == 0
        hold(consumer)
        assert [next(other).offset for _ in range(10)] == list(range(1, 11))
        hold(consumer)
        assert next(one).offset == 11
    assert peer.cursors["c"] == 11


@pytest.mark.parametrize("where", ["before", "behind"])
def test_an_interrupt_while_a_commit_that_was_held_back_is_sent_loses_nothing(
    peer: Peer, log: rlog.Log, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    consumer, _ = held_at_three(peer, log)
    session = consumer._transport.session
    register = session._register
    interrupts = [KeyboardInterrupt()]

    def interrupted(call: Call[Any], control: Control, payload: Buffer = b"") -> None:
        if where == "behind":
            register(call, control, payload)
        if interrupts and isinstance(control, protocol.CommitCursor):
            raise interrupts.pop()
        if where == "before":
            register(call, control, payload)

    monkeypatch.setattr(session, "_register", interrupted)
    consumer._commit_at = 0.0
    with pytest.raises(KeyboardInterrupt):
        ask(log)
    consumer.close()
    assert peer.cursors["c"] == 3


# --- process ----------------------------------------------------------------------------------

KINDS = ["reader", "consumer", "global"]


def source(log: rlog.Log, kind: str, block: bool = False) -> rlog.Source:
    if kind == "reader":
        return log.reader(rlog.OLDEST, block=block)
    return log.consumer("c" if kind == "consumer" else rlog.GLOBAL, block=block)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("limit", [None, 3])
@pytest.mark.parametrize("verdict", [None, rlog.COMMIT, rlog.SKIP, rlog.Skip("why")])
def test_commit_and_skip_complete(
    peer: Peer, log: rlog.Log, kind: str, limit: int | None, verdict: rlog.Verdict | None
) -> None:
    fill(peer, 2, 4)
    seen: list[int] = []

    def handle(record: rlog.Record) -> rlog.Verdict | None:
        seen.append(record.offset)
        if kind != "reader":  # in_flight=1: the last one is acknowledged before the next begins
            assert next(iter(peer.cursors.values())) == record.offset
        return verdict

    with source(log, kind) as opened:
        expected = 8 if limit is None else limit
        assert opened.process(handle, limit=limit) == expected
        assert seen == list(range(expected))
        if isinstance(opened, rlog.Consumer):
            assert opened.committed == expected


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("block", [True, False])
def test_retry_comes_again_with_the_next_attempt_and_nothing_overtakes(
    peer: Peer, log: rlog.Log, kind: str, block: bool
) -> None:
    fill(peer, 1, 3)
    seen: list[tuple[int, int]] = []

    def handle(record: rlog.Record) -> rlog.Verdict | None:
        seen.append((record.offset, record.attempt))
        return rlog.Retry(0.01) if record.offset == 1 and record.attempt < 3 else None

    with source(log, kind) as opened:
        assert opened.process(handle, limit=3 if block else None, block=block) == 3
    assert seen == [(0, 1), (1, 1), (1, 2), (1, 3), (2, 1)]


@pytest.mark.parametrize("kind", KINDS)
def test_stop_leaves_the_record(peer: Peer, log: rlog.Log, kind: str) -> None:
    fill(peer, 1, 3)
    with source(log, kind) as opened:
        assert opened.process(lambda r: rlog.STOP if r.offset == 1 else None) == 1
        assert [(r.offset, r.attempt) for r in opened.poll()] == [(1, 1), (2, 1)]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("error", "attempt"), [(ValueError, 2), (KeyboardInterrupt, 1), (SystemExit, 1)]
)
def test_an_exception_releases_the_record(
    peer: Peer, log: rlog.Log, kind: str, error: type[BaseException], attempt: int
) -> None:
    fill(peer, 1, 3)

    def handle(record: rlog.Record) -> None:
        if record.offset == 1:
            raise error

    with source(log, kind) as opened:
        with pytest.raises(error):
            opened.process(handle, in_flight=10)
        if isinstance(opened, rlog.Consumer):
            assert opened.committed == 1
        assert [(r.offset, r.attempt) for r in opened.poll()] == [(1, attempt), (2, 1)]


def test_what_is_no_verdict_is_a_type_error(peer: Peer, log: rlog.Log) -> None:
    fill(peer, 1)
    with log.consumer("c") as consumer:
        with pytest.raises(TypeError):
            consumer.process(lambda r: True)  # type: ignore[arg-type,return-value]  # wrong on purpose
        assert consumer.committed == 0


@pytest.mark.parametrize("kind", KINDS)
def test_timeout_bounds_waiting_and_retrying(peer: Peer, log: rlog.Log, kind: str) -> None:
    with source(log, kind, block=True) as opened:
        assert opened.process(lambda r: None, timeout=0.05) == 0
        fill(peer, 1)
        begun = time.monotonic()
        assert opened.process(lambda r: rlog.Retry(3.0), timeout=0.05) == 0
        assert time.monotonic() - begun < 2
        assert next(opened).attempt == 2


def test_stop_ends_a_retry_delay(peer: Peer, log: rlog.Log) -> None:
    fill(peer, 1)
    with log.consumer("c") as consumer:
        timer = threading.Timer(0.05, consumer.stop)
        timer.start()
        assert consumer.process(lambda r: rlog.Retry(60.0)) == 0
        timer.join()


@pytest.mark.parametrize("in_flight", [2, 7, 1000])
def test_commits_are_coalesced_and_bounded(peer: Peer, log: rlog.Log, in_flight: int) -> None:
    fill(peer, 50, 40)
    with log.consumer("c", block=False) as consumer:

        def handle(record: rlog.Record) -> None:
            assert record.offset - peer.cursors["c"] <= in_flight

        assert consumer.process(handle, in_flight=in_flight) == 2000
        assert peer.cursors["c"] == 2000
    commits = sum(isinstance(control, protocol.CommitCursor) for control in peer.asked)
    assert commits <= 2 * 2000 / in_flight + 200


# --- what comes ahead ---------------------------------------------------------------------------

LARGE = 300_000  # bytes of a record: four make more than a loan


def large(peer: Peer, count: int) -> None:
    for number in range(count):
        peer.append(b"%06d" % number * (LARGE // 6))


def loans(peer: Peer) -> list[int]:
    return [each.bytes for each in peer.asked if isinstance(each, protocol.Credit)]


def test_what_is_in_the_log_already_comes_while_the_callers_code_runs(
    peer: Peer, log: rlog.Log
) -> None:
    large(peer, 9)
    reader = log.reader(rlog.OLDEST)
    assert offsets(reader.poll(1, timeout=5.0)) == [0]
    # Nobody has asked for what lies behind the first loan: no more of it comes than the kernel
    # takes without this process, and at least one batch.
    deadline = time.monotonic() + 5.0
    while len(loans(peer)) < 2 and time.monotonic() < deadline:
        time.sleep(0.01)
    [first, ahead] = loans(peer)
    assert AHEAD_BYTES <= ahead <= first == LOAN_BYTES
    assert reader.offset == 1
    seen = [0]
    while len(seen) < 9:
        seen += offsets(reader.poll(100, timeout=5.0))
    assert seen == list(range(9))


def test_at_the_end_of_a_log_no_loan_is_open_while_the_callers_code_runs(
    peer: Peer, log: rlog.Log
) -> None:
    fill(peer, 1)
    reader = log.reader(rlog.OLDEST)
    assert len(reader.poll(5)) == 5
    assert loans(peer) == [LOAN_BYTES]
    [line] = peer.lines
    assert [reading.loan for reading in line.readings.values()] == [0]


def test_nothing_comes_ahead_from_behind_where_a_reader_ends(peer: Peer, log: rlog.Log) -> None:
    large(peer, 9)
    reader = log.reader(rlog.OLDEST, until=rlog.offset(4))
    assert offsets(reader) == [0, 1, 2, 3]
    assert loans(peer) == [LOAN_BYTES]


def test_what_came_ahead_is_dropped_by_a_seek(peer: Peer, log: rlog.Log) -> None:
    large(peer, 9)
    reader = log.reader(rlog.OLDEST, block=False)
    assert next(reader).offset == 0
    reader.seek(rlog.offset(7))
    assert offsets(reader) == [7, 8]
    reader.seek(rlog.offset(2))
    assert offsets(reader) == [2, 3, 4, 5, 6, 7, 8]


def test_what_came_ahead_of_a_lost_connection_comes_once_more_and_is_given_once(
    peer: Peer, log: rlog.Log
) -> None:
    large(peer, 12)
    reader = log.reader(rlog.OLDEST, block=False)
    seen = []
    for record in reader:
        seen.append(record.offset)
        if record.offset in (1, 6):
            peer.lines[-1].cut()
    assert seen == list(range(12))
    assert len(peer.lines) > 1


def test_damage_that_came_ahead_is_told_in_its_place(peer: Peer, log: rlog.Log) -> None:
    large(peer, 9)
    peer.damaged[5] = (rlog.CorruptData("rot", log="l", first=5, end=6, file="f", position=0), 6)
    reader = log.reader(rlog.OLDEST, block=False)
    iteration = iter(reader)
    assert [next(iteration).offset for _ in range(5)] == [0, 1, 2, 3, 4]
    with pytest.raises(rlog.CorruptData):
        next(iteration)
    assert offsets(reader) == [6, 7, 8]


def test_a_connection_that_is_lost_with_the_answer_to_a_loan_is_no_error(
    peer: Peer, log: rlog.Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    large(peer, 9)
    reader = log.reader(rlog.OLDEST, block=False)
    brought, losses = reader._brought, [True]

    def lost(subscription: Subscription, deadline: float | None) -> Steps[bool]:
        answer = yield from brought(subscription, deadline)
        if losses and losses.pop():
            reader._transport._lose("it was reset")
        return answer

    monkeypatch.setattr(reader, "_brought", lost)
    assert offsets(reader) == list(range(9))
    assert len(peer.lines) == 2


def test_a_recall_behind_the_answer_that_nothing_is_redriven_is_followed(
    peer: Peer, log: rlog.Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    send = Line.send
    taken: list[protocol.Control] = []

    def together(line: Line, request: int, control: protocol.Control, payload: bytes = b"") -> None:
        if isinstance(control, protocol.Taken) and not taken:
            taken.append(control)
            [subscription] = line.readings
            recall = protocol.encode(subscription, protocol.Recall())
            line.socket.sendall(protocol.encode(request, control) + recall)  # one read brings both
        else:
            send(line, request, control, payload)

    monkeypatch.setattr(Line, "send", together)
    with log.consumer("c") as consumer:
        assert consumer.poll(timeout=0.05) == []
    asked = [each for each in peer.asked if isinstance(each, protocol.TakeRedriven)]
    assert len(asked) == 2

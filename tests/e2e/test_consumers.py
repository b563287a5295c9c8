"""Claims, epochs, cursors, and how sources end: what a consumer can rely on."""

from __future__ import annotations

import contextlib
import gc
import multiprocessing
import os
import subprocess
import sys
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest

import rlog_client as rlog
from rlog.cli.wire import Batches
from rlog_client.consumer import AUTOCOMMIT_SECONDS
from rlog_client.session import Chunk
from rlog_client.source import lend_ahead
from rlog_client.transport import SocketTransport

from .serving import ROOT, Server, eventually

if TYPE_CHECKING:
    from collections.abc import Callable

    from rlog_client.session import Subscription
    from rlog_client.steps import Link

WHO: list[Any] = ["c", rlog.GLOBAL]
both = pytest.mark.parametrize("who", WHO, ids=["an ID", "GLOBAL"])


def offsets(source: rlog.Source) -> list[int]:
    return [record.offset for record in source]


def free(log: rlog.Log, who: Any) -> bool:
    return not log.cursor(who).info().members


# --- claims ---------------------------------------------------------------------------------


@both
def test_a_second_holder_is_busy_and_told_who_holds_it(
    log: rlog.Log, other: rlog.Client, who: Any
) -> None:
    with log.consumer(who):
        for rival in (other.log(log.name).consumer(who), log.consumer(who)):  # the same client, too
            with pytest.raises(rlog.Busy) as raised:
                rival.poll()
            assert raised.value.holder == "first"
            assert abs(raised.value.since_ns - time.time_ns()) < 3600 * 10**9
            assert raised.value.retriable
            with pytest.raises(rlog.Busy), rival:
                pass
        [member] = log.cursor(who).info().members
        assert member.name == "first"


def test_ids_and_logs_do_not_get_in_each_others_way(
    client: rlog.Client, log: rlog.Log, other: rlog.Client
) -> None:
    log2 = client.log(log.name + ".2", create=True)
    log.append(b"1")
    log2.append(b"2")
    sources = [
        log.consumer("a", block=False),
        log.consumer("b", block=False),
        log.consumer(rlog.GLOBAL, block=False),
        other.log(log.name).consumer("c", block=False),
        log2.consumer("a", block=False),
        log2.consumer(rlog.GLOBAL, block=False),
    ]
    assert [source.process(lambda record: None) for source in sources] == [1] * 6
    assert [info.id for info in log.cursors()] == ["@global", "a", "b", "c"]
    log2.delete()


@both
def test_a_claim_ends_by_close(log: rlog.Log, other: rlog.Client, who: Any) -> None:
    consumer = log.consumer(who)
    consumer.poll()
    consumer.close()
    consumer.close()
    with other.log(log.name).consumer(who):
        pass
    with pytest.raises(RuntimeError, match="closed"):
        consumer.poll()


@both
def test_a_claim_ends_with_its_with(log: rlog.Log, other: rlog.Client, who: Any) -> None:
    with log.consumer(who):
        pass
    with pytest.raises(KeyError), other.log(log.name).consumer(who):
        raise KeyError
    with log.consumer(who):
        pass


@both
def test_a_claim_ends_with_its_client(
    server: Server, log: rlog.Log, other: rlog.Client, who: Any
) -> None:
    client = server.connect()
    client.log(log.name).consumer(who).poll()
    client.close()
    eventually(lambda: free(log, who), "it is released")
    with other.log(log.name).consumer(who):
        pass


@both
def test_a_claim_ends_by_garbage_collection(log: rlog.Log, other: rlog.Client, who: Any) -> None:
    consumer = log.consumer(who)
    consumer.poll()
    del consumer
    gc.collect()
    eventually(lambda: free(other.log(log.name), who), "it is released")
    with other.log(log.name).consumer(who):
        pass


_HOLD = """
import sys, time
import rlog_client as rlog
client = rlog.connect(sys.argv[1])
with client.log(sys.argv[2]).consumer(sys.argv[3]) as consumer:
    print("held", flush=True)
    time.sleep(600)
"""


def test_a_claim_ends_when_its_process_is_killed(server: Server, log: rlog.Log) -> None:
    command = [sys.executable, "-c", _HOLD, server.tcp, log.name, "c"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=ROOT) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(rlog.Busy):
            log.consumer("c").poll()
        holder.kill()
        holder.wait()
    eventually(lambda: free(log, "c"), "it is released")
    with log.consumer("c") as consumer:
        assert consumer.epoch == 2


def test_a_claim_that_was_refused_can_be_tried_again(log: rlog.Log, other: rlog.Client) -> None:
    log.append(b"1")
    waiting = other.log(log.name).consumer("c", block=False)
    with log.consumer("c"), pytest.raises(rlog.Busy):
        next(waiting)
    assert offsets(waiting) == [0]


@both
def test_epochs_rise_with_every_claim_and_seek(log: rlog.Log, other: rlog.Client, who: Any) -> None:
    log.append_many([b"1", b"2"])
    epochs = []
    for each in (log, other.log(log.name), log):
        with each.consumer(who) as consumer:
            epochs.append(consumer.epoch)
            [first, _second] = consumer.poll()
            assert first.epoch == consumer.epoch
            consumer.seek(rlog.OLDEST)
            epochs.append(consumer.epoch)
            assert consumer.poll()[0].epoch == consumer.epoch
    log.cursor(who).seek(rlog.OLDEST)
    with log.consumer(who) as consumer:
        epochs.append(consumer.epoch)
    assert epochs == [1, 2, 3, 4, 5, 6, 8]


@pytest.mark.parametrize("bad", ["", "@x", "@global", "a\n", "a" * 256, "é" * 128, "\x80"])
def test_a_bad_id_is_refused(log: rlog.Log, bad: str) -> None:
    with pytest.raises(rlog.InvalidRequest, match="consumer ID"):
        log.consumer(bad)
    with pytest.raises(rlog.InvalidRequest, match="consumer ID"):
        log.cursor(bad)


@pytest.mark.parametrize("good", ["a", "a b/c", "é" * 127, "a@b", "x" * 255, "-", "名前"])
def test_a_good_id_is_taken(log: rlog.Log, good: str) -> None:
    with log.consumer(good):
        assert log.cursor(good).info().id == good


# --- commits --------------------------------------------------------------------------------


@both
def test_the_next_holder_goes_on_behind_the_last_commit(
    log: rlog.Log, other: rlog.Client, who: Any
) -> None:
    log.append_many([b"%d" % i for i in range(10)])
    with log.consumer(who, block=False) as consumer:
        for record in consumer:
            if record.offset == 3:
                consumer.commit(record)
            if record.offset == 6:
                break
        assert consumer.committed == 4
    with other.log(log.name).consumer(who, block=False) as consumer:
        assert consumer.committed == 4
        assert offsets(consumer) == [4, 5, 6, 7, 8, 9]


@both
def test_a_commit_at_or_below_the_cursor_is_a_success(log: rlog.Log, who: Any) -> None:
    log.append_many([b"%d" % i for i in range(5)])
    with log.consumer(who, block=False) as consumer:
        records = consumer.poll()
        consumer.commit(records[3])
        consumer.commit(records[3])
        consumer.commit(records[0])
        assert consumer.committed == 4
        assert log.cursor(who).info().committed == 4


@both
def test_a_commit_beyond_what_was_delivered_is_invalid(log: rlog.Log, who: Any) -> None:
    log.append_many([b"1", b"2"])
    [_, second] = log.reader(rlog.OLDEST).poll()
    with log.consumer(who, block=False) as consumer:
        forged = rlog.Record(
            log.name, 10**6, 0, None, {}, b"", None, attempt=1, epoch=consumer.epoch
        )
        with pytest.raises(rlog.InvalidRequest, match="delivered"):
            consumer.commit(forged)
        with pytest.raises(rlog.Fenced):
            consumer.commit(second)  # a reader's: of no claim
        assert log.cursor(who).info().committed == 0
        assert offsets(consumer) == [0, 1]


def test_a_commit_of_another_logs_record_is_invalid(client: rlog.Client, log: rlog.Log) -> None:
    elsewhere = client.log(log.name + ".other", create=True)
    elsewhere.append(b"1")
    [record] = elsewhere.consumer("c", block=False)
    with log.consumer("c") as consumer, pytest.raises(rlog.InvalidRequest):
        consumer.commit(record)
    elsewhere.delete()


@both
def test_commits_that_nobody_waits_for_are_there_at_the_end(log: rlog.Log, who: Any) -> None:
    log.append_many([b"%d" % i for i in range(1000)])
    with log.consumer(who, block=False) as consumer:
        for record in consumer:
            consumer.commit(record, wait=False)
    assert log.cursor(who).info().committed == 1000


@both
def test_autocommit_commits_a_record_when_the_next_is_asked_for(
    log: rlog.Log, other: rlog.Client, who: Any
) -> None:
    log.append_many([b"%d" % i for i in range(5)])
    with log.consumer(who, block=False, autocommit=True) as consumer:
        for record in consumer:
            if record.offset == 2:
                break  # not when the loop is left
    assert log.cursor(who).info().committed == 2
    with log.consumer(who, block=False, autocommit=True) as consumer:
        assert offsets(consumer) == [2, 3, 4]
    assert log.cursor(who).info().committed == 5


def test_a_commit_of_autocommit_that_waits_for_others_is_void_once_the_claim_is_lost(
    log: rlog.Log, other: rlog.Client
) -> None:
    log.append_many([b"%d" % i for i in range(5)])
    consumer = log.consumer("c", autocommit=True)
    records = iter(consumer)
    assert next(records).offset == 0
    consumer._commit_at = time.monotonic() + 3600  # as if one had just gone out
    assert next(records).offset == 1
    with other.log(log.name).consumer("c", takeover=True) as following:
        consumer._commit_at = 0.0
        with pytest.raises(rlog.Fenced):
            list(records)
        assert following.committed == 0
        assert next(following).offset == 0
    with contextlib.suppress(rlog.Fenced):  # unless it was that which ended the loop
        consumer.close()
    assert log.cursor("c").info().committed == 0


def test_a_slow_autocommit_loop_notices_that_the_claim_is_lost(
    log: rlog.Log, other: rlog.Client
) -> None:
    log.append_many([b"%d" % i for i in range(50)])
    consumer = log.consumer("c", autocommit=True, block=False)
    handled = []

    def loop() -> None:
        for record in consumer:
            handled.append(record.offset)
            if record.offset == 3:
                with other.log(log.name).consumer("c", takeover=True, block=False) as following:
                    following.process(lambda _: None)
            time.sleep(2 * AUTOCOMMIT_SECONDS)

    with pytest.raises(rlog.Fenced):
        loop()
    assert len(handled) < 20  # the next record, but for a busy machine
    assert log.cursor("c").info().committed == 50


def test_autocommit_settles_redriven_records_alone(log: rlog.Log) -> None:
    log.append_many([b"%d" % i for i in range(6)])
    with log.consumer("c", block=False) as consumer:
        consumer.process(lambda record: rlog.Park() if record.offset in (1, 3) else None)
    log.append_many([b"%d" % i for i in range(6, 12)])
    given = []
    with log.consumer("c", block=False, autocommit=True) as consumer:
        for record in consumer:
            given.append((record.offset, record.redriven))
            if record.offset == 7:
                log.cursor("c").redrive()
            # What was held back is due, and any call sends it: also with a redriven one in hand.
            consumer._commit_at = 0.0
            log.info()
            consumer._commit_at = time.monotonic() + 3600
    redriven = [offset for offset, again in given if again]
    assert redriven == [1, 3]
    assert [offset for offset, again in given if not again] == list(range(6, 12))
    info = log.cursor("c").info()
    assert (info.committed, info.parked) == (12, 0)


def refused(
    client: rlog.Client, log: rlog.Log, consumer: rlog.Consumer, record: rlog.Record
) -> None:
    with client.transaction() as transaction:
        transaction.append(log, b"never", expect=77)
        transaction.commit(consumer, record)


def test_a_record_whose_transaction_was_refused_is_not_committed_by_autocommit(
    client: rlog.Client, log: rlog.Log
) -> None:
    log.append_many([b"%d" % i for i in range(3)])
    with log.consumer("c", block=False, autocommit=True) as consumer:
        for record in consumer:
            consumer._commit_at = time.monotonic() + 3600
            if record.offset == 2:
                with pytest.raises(rlog.Conflict):
                    refused(client, log, consumer, record)
    assert log.cursor("c").info().committed == 2


@pytest.mark.parametrize("shared", [False, True], ids=["in order", "shared"])
def test_autocommit_leaves_to_a_transaction_what_was_put_into_it(
    client: rlog.Client, log: rlog.Log, shared: bool
) -> None:
    log.append_many([b"%d" % i for i in range(5)])
    cursor, out = log.cursor("c"), client.log(f"{log.name}.out", create=True)

    def copy(consumer: rlog.Consumer) -> None:
        with client.transaction() as transaction:
            for record in consumer:
                consumer._commit_at = 0.0
                transaction.append(out, record.value)
                transaction.commit(consumer, record)
                assert cursor.info().committed == 0
                if record.offset == broken:
                    raise ValueError("the third")

    broken = 3
    with (
        pytest.raises(ValueError, match="the third"),
        log.consumer("c", block=False, autocommit=True, shared=shared) as consumer,
    ):
        copy(consumer)
    assert (cursor.info().committed, out.info().end) == (0, 0)
    broken = -1
    with log.consumer("c", block=False, autocommit=True, shared=shared) as consumer:
        copy(consumer)
    assert (cursor.info().committed, out.info().end) == (5, 5)


def test_what_autocommit_is_about_to_commit_cannot_be_settled_otherwise(log: rlog.Log) -> None:
    log.append_many([b"%d" % i for i in range(5)])
    with log.consumer("c", block=False, autocommit=True) as consumer:
        records = []
        for record in consumer:
            consumer._commit_at = time.monotonic() + 3600  # as if one had just gone out
            records.append(record)
            if record.offset == 3:
                for verdict in (rlog.Retry(0.0), rlog.Park()):
                    with pytest.raises(rlog.InvalidRequest, match="record 2 is committed"):
                        consumer.settle(records[2], verdict)
                consumer.settle(record, rlog.Retry(0.0))
                break
        assert [(r.offset, r.attempt) for r in consumer.poll(1)] == [(3, 2)]
        assert log.cursor("c").info().committed == 3


def test_autocommit_of_a_poll_commits_at_the_next_one(log: rlog.Log) -> None:
    log.append_many([b"%d" % i for i in range(5)])
    with log.consumer("c", autocommit=True) as consumer:
        assert len(consumer.poll(3)) == 3
        assert log.cursor("c").info().committed == 0
        assert len(consumer.poll(3)) == 2
        eventually(lambda: log.cursor("c").info().committed == 3, "the first three are committed")


@both
def test_iterating_commits_nothing_unless_told(log: rlog.Log, who: Any) -> None:
    log.append_many([b"1", b"2"])
    with log.consumer(who, block=False) as consumer:
        assert offsets(consumer) == [0, 1]
        assert offsets(consumer) == []
    with log.consumer(who, block=False) as consumer:
        assert offsets(consumer) == [0, 1]


@both
def test_a_new_cursor_stands_at_start_and_an_old_one_where_it_was(log: rlog.Log, who: Any) -> None:
    log.append_many([b"%d" % i for i in range(5)])
    with log.consumer(who, start=rlog.last(2), block=False) as consumer:
        assert consumer.committed == 3
    # Fixed by the first claim, though nothing was ever committed.
    with log.consumer(who, start=rlog.OLDEST, block=False) as consumer:
        assert offsets(consumer) == [3, 4]


# --- seek, fencing, looking from outside ----------------------------------------------------


@both
def test_a_seek_of_the_holder_fences_what_was_handed_out_before(log: rlog.Log, who: Any) -> None:
    log.append_many([b"%d" % i for i in range(5)])
    with log.consumer(who, block=False) as consumer:
        old = consumer.poll()
        consumer.commit(old[4])
        assert consumer.seek(rlog.offset(1)) == 1
        assert consumer.committed == 1
        with pytest.raises(rlog.Fenced) as raised:
            consumer.commit(old[2])
        assert raised.value.epoch == consumer.epoch
        assert consumer.committed == 1
        assert offsets(consumer) == [1, 2, 3, 4]


@both
def test_a_seek_in_the_middle_of_a_loop_goes_on_there(log: rlog.Log, who: Any) -> None:
    log.append_many([b"%d" % i for i in range(5)])
    seen = []
    with log.consumer(who, block=False) as consumer:
        for record in consumer:
            seen.append(record.offset)
            if seen == [0, 1, 2]:
                consumer.seek(rlog.offset(1))
    assert seen == [0, 1, 2, 1, 2, 3, 4]


@both
def test_a_seek_from_outside_needs_force_while_it_is_held(
    log: rlog.Log, other: rlog.Client, who: Any
) -> None:
    log.append_many([b"%d" % i for i in range(5)])
    cursor = other.log(log.name).cursor(who)
    with pytest.raises(rlog.NotFound):
        cursor.seek(rlog.OLDEST)
    with log.consumer(who, block=False) as consumer:
        records = consumer.poll()
        consumer.commit(records[1])
        with pytest.raises(rlog.Busy):
            cursor.seek(rlog.LATEST)
        assert cursor.seek(rlog.LATEST, force=True) == (2, 5)
        for use in (
            lambda: consumer.commit(records[2]),
            lambda: consumer.poll(),
            lambda: next(consumer),
            lambda: consumer.process(lambda record: None),
            lambda: consumer.seek(rlog.OLDEST),
        ):
            with pytest.raises(rlog.Fenced) as raised:
                use()
            assert raised.value.epoch >= 1
    assert cursor.info().committed == 5
    assert cursor.seek(rlog.offset(1)) == (5, 1)
    with log.consumer(who, block=False) as consumer:
        assert offsets(consumer) == [1, 2, 3, 4]


def test_a_fenced_holder_finds_out_while_it_waits(log: rlog.Log, other: rlog.Client) -> None:
    cursor = other.log(log.name).cursor("c")
    with log.consumer("c") as consumer:
        thread = threading.Timer(0.2, lambda: cursor.seek(rlog.OLDEST, force=True))
        thread.start()
        with pytest.raises(rlog.Fenced):
            next(consumer)
        thread.join()


def test_a_cursor_can_be_deleted_when_nobody_holds_it(log: rlog.Log) -> None:
    with log.consumer("c"), pytest.raises(rlog.Busy):
        log.cursor("c").delete()
    log.cursor("c").delete()
    for ask in (log.cursor("c").info, log.cursor("c").delete):
        with pytest.raises(rlog.NotFound):
            ask()
    assert log.cursors() == []


def test_lag_is_in_records_bytes_and_seconds(log: rlog.Log) -> None:
    for _ in range(5):
        log.append_many([bytes(1000)] * 2)
    with log.consumer("c") as consumer:
        info = log.cursor("c").info()
        assert (info.lag_records, info.committed, info.log, info.id) == (10, 0, log.name, "c")
        assert 10_000 < info.lag_bytes < 15_000
        assert info.lag_seconds >= 0
        whole = info.lag_bytes
        consumer.process(lambda record: None, limit=6)
        info = log.cursor("c").info()
        assert info.lag_records == 4
        assert 0 < info.lag_bytes < whole
        consumer.process(lambda record: None, block=False)
        info = log.cursor("c").info()
        assert (info.lag_records, info.lag_bytes, info.lag_seconds) == (0, 0, 0)


# --- how sources end ------------------------------------------------------------------------


def kinds(log: rlog.Log, **how: Any) -> list[rlog.Source]:
    return [
        log.reader(rlog.OLDEST, **how),
        log.consumer("c", **how),
        log.consumer(rlog.GLOBAL, **how),
    ]


def test_without_block_it_ends_under_any_load(server: Server, log: rlog.Log) -> None:
    going = True

    def load() -> None:
        with server.connect() as client:
            mine = client.log(log.name)
            while going:
                mine.append_many([b"x" * 100] * 50)

    log.append_many([b"first"] * 3)
    thread = threading.Thread(target=load)
    thread.start()
    try:
        for source in kinds(log, block=False):
            at = 0
            for _round in range(3):
                before = log.info().end
                at = max(offsets(source), default=at - 1) + 1  # nothing may have come since
                assert before <= at <= log.info().end
            # (Asked before the loop goes on, so the variable is this round's.)
            eventually(lambda: log.info().end > at, "there is more")  # noqa: B023 (asked at once)
            assert source.process(lambda record: None) > 0
            source.close()
    finally:
        going = False
        thread.join()


def test_until_is_the_place_where_it_ends(log: rlog.Log) -> None:
    log.append_many([b"%d" % i for i in range(6)])
    assert offsets(log.reader(rlog.OLDEST, until=rlog.offset(4))) == [0, 1, 2, 3]
    assert offsets(log.reader(rlog.OLDEST, until=rlog.last(1))) == [0, 1, 2, 3, 4]
    at_end = log.reader(rlog.offset(2), until=rlog.LATEST)  # the end when it was made
    future = log.reader(rlog.OLDEST, until=rlog.offset(8))  # an end not reached yet
    log.append_many([b"6"])
    assert offsets(at_end) == [2, 3, 4, 5]
    assert offsets(at_end) == []
    assert at_end.poll(timeout=None) == []
    assert at_end.process(lambda record: None) == 0
    thread = threading.Timer(0.1, lambda: None)
    thread.start()
    assert [next(future).offset for _ in range(7)] == list(range(7))
    assert future.poll() == []
    log.append_many([b"7", b"8"])
    assert offsets(future) == [7]
    thread.join()


def test_poll_returns_what_is_there_or_waits_as_long_as_told(
    log: rlog.Log, other: rlog.Client
) -> None:
    for source in kinds(log):
        assert source.poll() == []
        began = time.monotonic()
        assert source.poll(timeout=0.1) == []
        assert time.monotonic() - began >= 0.1
        source.close()
    reader = log.reader(rlog.OLDEST)
    mine = other.log(log.name)
    thread = threading.Timer(0.1, lambda: mine.append_many([b"1", b"2", b"3"]))
    thread.start()
    assert [r.offset for r in reader.poll(2, timeout=None)] == [0, 1]
    thread.join()
    assert [r.offset for r in reader.poll(timeout=None)] == [2]
    assert reader.offset == 3
    with pytest.raises(ValueError, match="max_records"):
        reader.poll(0)


def test_a_loop_that_is_left_loses_nothing(log: rlog.Log) -> None:
    log.append_many([b"%d" % i for i in range(10)])
    reader = log.reader(rlog.OLDEST, block=False)
    assert [next(reader).offset for _ in range(2)] == [0, 1]
    for record in reader:
        if record.offset == 4:
            break
    assert [r.offset for r in reader.poll(2)] == [5, 6]
    assert reader.process(lambda record: None, limit=1) == 1
    assert offsets(reader) == [8, 9]
    with pytest.raises(StopIteration):
        next(reader)


def test_blocking_iteration_goes_on_with_what_comes(log: rlog.Log, other: rlog.Client) -> None:
    mine = other.log(log.name)

    def feed() -> None:
        for i in range(50):
            mine.append(b"%d" % i)

    thread = threading.Thread(target=feed)
    thread.start()
    seen = []
    for record in log.reader(rlog.OLDEST):
        seen.append(record.value)
        if len(seen) == 50:
            break
    thread.join()
    assert seen == [b"%d" % i for i in range(50)]


# --- when the server goes -------------------------------------------------------------------


def test_requests_to_a_server_that_is_gone_fail_and_closing_does_not_wait_for_it(
    make_server: Callable[..., Server],
) -> None:
    server = make_server().start()
    client = server.connect(timeout=0.3)
    log = client.log("l", create=True)
    log.append(b"1")
    consumer, reader = log.consumer("c"), log.reader(rlog.OLDEST)
    assert next(consumer).offset == next(reader).offset == 0
    killer = threading.Timer(0.2, server.kill)
    killer.start()
    assert consumer.poll(timeout=0.5) == []  # waiting for records is no request
    killer.join()
    for use in (reader.poll, lambda: log.append(b"2"), client.logs, consumer.poll):
        with pytest.raises(rlog.ConnectionLost):
            use()
    began = time.monotonic()
    consumer.close()
    assert time.monotonic() - began < 0.3
    client.close()
    server.start()
    with server.connect() as client, client.log("l").consumer("c") as consumer:
        assert consumer.epoch == 2
        assert next(consumer).offset == 0


def test_a_claim_does_not_survive_the_server_but_its_epoch_does(
    make_server: Callable[..., Server],
) -> None:
    server = make_server()
    for life in range(3):
        server.start()
        with server.connect() as client:
            log = client.log("l", create=True)
            assert log.cursors() == [] or free(log, "c")
            consumer = log.consumer("c")
            assert consumer.epoch == life + 1
            if life == 1:
                server.stop()  # in an orderly way this time
            else:
                server.kill()


# --- processes and threads ------------------------------------------------------------------


def test_a_child_cannot_use_the_parents_client_and_leaves_the_claim_alone(
    log: rlog.Log, client: rlog.Client, other: rlog.Client
) -> None:
    log.append_many([b"1", b"2"])
    consumer = log.consumer("c")
    reader = log.reader(rlog.OLDEST)
    producer = log.producer()
    assert next(consumer).offset == 0
    pid = os.fork()
    if pid == 0:
        wrong = 0
        for index, use in enumerate(
            (
                lambda: next(consumer),
                lambda: log.append(b"x"),
                lambda: reader.poll(),
                lambda: producer.send(b"x").result(),
                client.logs,
                client.clone,
            )
        ):
            try:
                use()
            except RuntimeError as error:
                if "parent" not in str(error):
                    wrong |= 1 << index
            except BaseException:
                wrong |= 1 << index
            else:
                wrong |= 1 << index
        client.close()
        os._exit(wrong)
    _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) & ~(1 << 5) == 0  # a clone is a new connection
    with pytest.raises(rlog.Busy):
        other.log(log.name).consumer("c").poll()
    record = next(consumer)
    consumer.commit(record)
    assert record.offset == 1
    consumer.close()
    reader.close()
    producer.close()


def _child(url: str, name: str) -> None:
    with rlog.connect(url) as client:
        client.log(name).append(b"from the child")


def test_a_child_connects_for_itself(server: Server, log: rlog.Log) -> None:
    log.append(b"from the parent")
    child = multiprocessing.get_context("fork").Process(target=_child, args=(server.unix, log.name))
    child.start()
    child.join()
    assert child.exitcode == 0
    assert [r.value for r in log.reader(rlog.OLDEST, block=False)] == [
        b"from the parent",
        b"from the child",
    ]


def test_two_threads_at_once_are_a_runtime_error(client: rlog.Client, log: rlog.Log) -> None:
    reader = log.reader(rlog.OLDEST)
    thread = threading.Thread(target=lambda: reader.poll(timeout=None))
    thread.start()
    eventually(client._transport._inside.locked, "the thread is inside")
    for use in (client.logs, lambda: log.append(b"x"), lambda: reader.poll()):
        with pytest.raises(RuntimeError, match="clone"):
            use()
    reader.stop()
    thread.join()
    log.append(b"one after the other is fine")


def test_a_clone_for_each_thread_works(client: rlog.Client, log: rlog.Log) -> None:
    errors: list[BaseException] = []

    def work(mine: rlog.Client, number: int) -> None:
        try:
            with mine, mine.log(log.name).producer() as producer:
                for i in range(200):
                    producer.send(b"%d %d" % (number, i))
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(client.clone(), i)) for i in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    values = [r.value.split() for r in log.reader(rlog.OLDEST, block=False)]
    assert len(values) == 1200
    for number in range(6):
        mine = [int(i) for n, i in values if int(n) == number]
        assert mine == list(range(200))


# --- what a handler that takes long costs ---------------------------------------------------------


@pytest.mark.parametrize("batch_bytes", [1000, 100_000, 1 << 20])
def test_while_a_record_is_worked_on_no_more_comes_than_was_asked_for(
    client: rlog.Client, log: rlog.Log, batch_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    room = 64 * 1024
    monkeypatch.setattr(SocketTransport, "room_ahead", room)
    lent = 0

    def lend(link: Link, subscription: Subscription, *more: Any) -> None:
        nonlocal lent
        stocked = len(subscription.stock)
        lend_ahead(link, subscription, *more)
        lent += bool(subscription.loan)
        while subscription.loan:
            client._transport.serve()
        came = list(subscription.stock)[stocked:]
        size = sum(len(chunk.payload) for chunk in came if isinstance(chunk, Chunk))
        assert size <= room
        assert bool(came) or batch_bytes > room or subscription.next == subscription.end
        assert not came or batch_bytes <= room, "what does not fit stays where it is"

    with log.producer(batch_bytes=batch_bytes) as producer:
        producer.extend([bytes(500)] * 16_000)
    monkeypatch.setattr("rlog_client.source.lend_ahead", lend)
    assert len(list(log.reader(rlog.OLDEST, block=False))) == 16_000
    assert lent


def test_batches_that_do_not_fit_ahead_are_read_all_the_same(
    log: rlog.Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(SocketTransport, "room_ahead", 64 * 1024)
    with log.producer() as producer:
        producer.extend([bytes(500)] * 16_000)  # into batches of 1 MiB
    fetches = 0
    fetch = Batches._fetch

    def counted(batches: Batches) -> None:
        nonlocal fetches
        fetches += 1
        fetch(batches)

    monkeypatch.setattr(Batches, "_fetch", counted)
    counts = [batch.header.count for batch in Batches(log, 0)]
    assert sum(counts) == 16_000
    assert fetches <= 2 * len(counts), "it goes round and round"

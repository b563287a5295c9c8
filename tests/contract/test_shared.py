"""Shared consumers, a promise a test, over every transport and with every client."""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import anyio
import pytest

import rlog_client as rlog

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

QUICK = rlog.Backoff(first=0.01, cap=0.02, max_attempts=3, pause_after=None)
PATIENCE_SECONDS = 30.0


def fill(log: Any, keys: Sequence[bytes | None]) -> None:
    log.append_many([rlog.Item(b"%d" % n, key=key) for n, key in enumerate(keys)])


def member(log: Any, **options: Any) -> Any:
    return log.consumer("c", shared=True, **options)


def offsets(records: list[rlog.Record]) -> list[int]:
    return [record.offset for record in records]


def some(source: Any, count: int) -> list[rlog.Record]:
    """``count`` records, by as many polls as that takes."""
    records: list[rlog.Record] = []
    while len(records) < count:
        found = source.poll(count - len(records), timeout=PATIENCE_SECONDS)
        assert found, f"nothing more after {offsets(records)}"
        records += found
    return records


@contextmanager
def running(work: Callable[[], object]) -> Iterator[None]:
    """``work`` in another thread, as long as this lasts; what it raises is raised here."""
    failures: list[BaseException] = []

    def run() -> None:
        try:
            work()
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        thread.join(PATIENCE_SECONDS)
    assert not thread.is_alive(), "it never ended"
    for failure in failures:
        raise failure


# --- who gets what --------------------------------------------------------------------------


def test_of_a_key_one_record_is_out_at_a_time_and_in_order(log: Any, other: Any) -> None:
    fill(log, [b"a", b"b", b"a", b"b", b"a"])
    with member(log) as first, member(other.log(log.name)) as second:
        mine = first.poll(timeout=PATIENCE_SECONDS)
        assert offsets(mine) == [0, 1]
        assert second.poll() == []
        first.commit(mine[1])
        [theirs] = some(second, 1)
        assert theirs.offset == 3
        assert second.poll() == first.poll() == []
        first.commit(mine[0])
        [mine_again] = some(first, 1)
        assert mine_again.offset == 2
        second.commit(theirs)
        first.commit(mine_again)
        first.commit(some(first, 1)[0])
        assert log.cursor("c").info().committed == 5


def test_records_without_a_key_go_to_anybody_in_any_order(log: Any, other: Any) -> None:
    fill(log, [None] * 6)
    with member(log) as first, member(other.log(log.name)) as second:
        mine, theirs = some(first, 3), some(second, 3)
        assert sorted(offsets(mine + theirs)) == list(range(6))
        for record in reversed(theirs):
            second.commit(record)
        assert log.cursor("c").info().lag_records == 3
        for record in mine:
            first.commit(record)
        info = log.cursor("c").info()
        assert (info.committed, info.lag_records) == (6, 0)


def test_two_process_at_once_and_each_record_is_done_once_in_order_per_key(
    log: Any, other: Any
) -> None:
    fill(log, [b"%d" % (n % 7) if n % 11 else None for n in range(300)])
    done: list[rlog.Record] = []
    lock = threading.Lock()

    def handle(record: rlog.Record) -> None:
        with lock:
            done.append(record)

    with member(log, block=False) as first, member(other.log(log.name), block=False) as second:
        with running(lambda: second.process(handle, in_flight=8)):
            first.process(handle, in_flight=8)
        first.process(handle)  # (whoever was first at the end did not wait for the other one's)
    assert sorted(offsets(done)) == list(range(300))
    by_key = defaultdict(list)
    for record in done:
        by_key[record.key].append(record.offset)
    del by_key[None]
    assert all(each == sorted(each) for each in by_key.values())
    assert log.cursor("c").info().committed == 300


# --- settling -------------------------------------------------------------------------------


def test_a_commit_is_of_that_record_alone_and_twice_is_once(log: Any) -> None:
    fill(log, [None] * 4)
    with member(log) as source:
        records = some(source, 4)
        source.commit(records[2])
        source.commit(records[2])
        info = log.cursor("c").info()
        assert (info.committed, info.lag_records) == (0, 3)
        source.commit(records[0], wait=False)
        source.commit(records[1])
        assert log.cursor("c").info().committed == 3
    with member(log) as source:
        assert offsets(some(source, 1)) == [3]
        assert source.poll() == []


def test_what_another_has_cannot_be_committed(log: Any, other: Any) -> None:
    fill(log, [None] * 2)
    with member(log) as first, member(other.log(log.name)) as second:
        [record] = some(first, 1)
        with pytest.raises(rlog.Fenced):
            second.commit(record)
        with pytest.raises(rlog.Fenced):
            second.settle(record, rlog.PARK)
        first.commit(record)


def test_what_was_let_go_of_is_anothers(log: Any, other: Any) -> None:
    fill(log, [b"k"])
    with member(log) as first:
        [record] = some(first, 1)
    with member(other.log(log.name)) as second:
        [again] = some(second, 1)
        assert (again.offset, again.attempt) == (0, 1)
        with member(log) as first, pytest.raises(rlog.Fenced):
            first.commit(record)
        second.commit(again)


@pytest.mark.parametrize("verdict", [rlog.COMMIT, rlog.SKIP, rlog.PARK])
def test_settle_by_hand(log: Any, verdict: rlog.Verdict) -> None:
    fill(log, [b"k", b"k"])
    with member(log) as source:
        source.settle(some(source, 1)[0], verdict)
        [record] = some(source, 1)
        assert record.offset == 1
        source.settle(record, rlog.Retry(0.01))
        [record] = some(source, 1)
        assert (record.offset, record.attempt) == (1, 2)
        source.commit(record)
    info = log.cursor("c").info()
    assert (info.committed, info.parked) == (2, 1 if verdict is rlog.PARK else 0)


# --- iterating ------------------------------------------------------------------------------


@pytest.mark.parametrize("blocking", ["block", "nonblock"])
def test_iterate(log: Any, blocking: str) -> None:
    fill(log, [None, b"a", b"b", b"a", None] * 10)
    seen = []
    with member(log, block=blocking == "block") as source:
        for record in source:
            seen.append(record.offset)
            source.commit(record)
            if blocking == "block" and len(seen) == 50:
                break
    assert sorted(seen) == list(range(50))
    assert log.cursor("c").info().committed == 50


def test_iterating_without_commits_ends_where_the_keys_are_out(log: Any) -> None:
    fill(log, [b"a", b"a", b"b"])
    with member(log, block=False) as source:
        assert [record.offset for record in source] == [0, 2]
    with member(log, block=False) as source:
        assert [record.offset for record in source] == [0, 2]


def test_autocommit_commits_a_record_when_the_next_is_asked_for(log: Any) -> None:
    fill(log, [b"a", b"a", b"b", b"a"])
    with member(log, block=False, autocommit=True) as source:
        assert sorted(record.offset for record in source) == [0, 1, 2, 3]
    assert log.cursor("c").info().committed == 4
    fill(log, [None] * 3)
    with member(log, autocommit=True) as source:
        assert offsets(source.poll(2, timeout=PATIENCE_SECONDS)) == [4, 5]
        assert offsets(source.poll(2, timeout=PATIENCE_SECONDS)) == [6]
    assert log.cursor("c").info().committed == 6  # not the last: it was not asked for another


@pytest.mark.parametrize("key", [None, b"a"])
def test_autocommit_leaves_alone_what_was_settled_by_hand(log: Any, key: bytes | None) -> None:
    fill(log, [key] * 4)
    attempts: dict[int, int] = {}
    with member(log, block=False, autocommit=True) as source:
        while log.cursor("c").info().committed < 4:
            for record in source:
                attempts[record.offset] = record.attempt
                if record.offset == 1 and record.attempt < 3:
                    source.settle(record, rlog.Retry(0.01))
                elif record.offset == 2:
                    source.settle(record, rlog.Park("by hand"))
    assert attempts == {0: 1, 1: 3, 2: 1, 3: 1}
    assert [each.record.offset for each in log.cursor("c").parked()] == [2]


def test_a_verdict_that_is_none_leaves_the_record_to_autocommit(log: Any) -> None:
    fill(log, [b"a"] * 4)
    with member(log, block=False, autocommit=True) as source:
        for record in source:
            if record.offset == 1:
                with pytest.raises(rlog.InvalidRequest):
                    source.settle(record, rlog.STOP)
    assert log.cursor("c").info().committed == 4


def test_autocommit_of_a_poll_leaves_alone_what_was_settled_by_hand(log: Any) -> None:
    fill(log, [None] * 4)
    with member(log, autocommit=True) as source:
        records = some(source, 4)
        source.settle(records.pop(1), rlog.Retry(0.01))
        assert [(r.offset, r.attempt) for r in some(source, 1)] == [(1, 2)]
    assert log.cursor("c").info().committed == 1


def test_poll_takes_what_iteration_had_fetched_and_loses_nothing(log: Any) -> None:
    fill(log, [None] * 20)
    with member(log) as source:
        seen = [next(source).offset]
        for _ in range(19):
            seen += offsets(source.poll(1))
        assert seen == list(range(20))
        assert source.poll() == []


def test_poll_with_a_timeout_ends(log: Any) -> None:
    with member(log) as source:
        began = time.monotonic()
        assert source.poll(timeout=0.2) == []
        assert time.monotonic() - began >= 0.2


def test_waiting_for_what_comes_later(log: Any, other: Any) -> None:
    with member(log) as source:
        timer = threading.Timer(0.2, lambda: other.log(log.name).append(b"later", key=b"k"))
        timer.start()
        assert next(source).value == b"later"
        timer.join()


# --- process --------------------------------------------------------------------------------

VERDICTS = ["none", "commit", "skip", "retry", "park", "stop", "raise"]


@pytest.mark.parametrize("in_flight", [1, 4])
@pytest.mark.parametrize("verdict", VERDICTS)
@pytest.mark.parametrize("blocking", ["block", "nonblock"])
def test_process(log: Any, blocking: str, verdict: str, in_flight: int) -> None:
    fill(log, [b"a", b"b", b"a", b"b", None])
    seen: list[tuple[int, int]] = []

    def handle(record: rlog.Record) -> rlog.Verdict | None:
        seen.append((record.offset, record.attempt))
        if seen[-1] != (2, 1) or seen.count((2, 1)) > 1:
            return rlog.COMMIT
        match verdict:
            case "none":
                return None
            case "skip":
                return rlog.Skip("because")
            case "retry":
                return rlog.Retry(delay=0.01)
            case "park":
                return rlog.Park("because")
            case "stop":
                return rlog.STOP
            case "raise":
                raise ArithmeticError("no")
        return rlog.COMMIT

    block = blocking == "block"
    with member(log, block=block) as source:
        limit = 5 if block else None
        if verdict == "raise":
            with pytest.raises(ArithmeticError):
                source.process(handle, limit=limit, in_flight=in_flight)
        else:
            done = source.process(handle, limit=limit, in_flight=in_flight)
            assert done == 5 if verdict != "stop" else done >= 1
    if verdict in ("stop", "raise"):
        with member(log, block=False) as source:
            source.process(handle)
        assert (2, 2 if verdict == "raise" else 1) in seen
    extra = {"retry": [(2, 2)], "raise": [(2, 2)], "stop": [(2, 1)]}.get(verdict, [])
    assert sorted(seen) == sorted([(offset, 1) for offset in range(5)] + extra)
    info = log.cursor("c").info()
    assert (info.committed, info.parked) == (5, verdict == "park")


def test_process_counts_up_to_its_limit(log: Any) -> None:
    fill(log, [None] * 10)
    for in_flight in (1, 4, 100):
        with member(log) as source:
            assert source.process(lambda record: None, limit=3, in_flight=in_flight) == 3
    assert log.cursor("c").info().lag_records == 1
    with member(log, block=False) as source:
        assert source.process(lambda record: None, limit=0) == 0
        assert source.process(lambda record: None) == 1


def test_block_false_ends_at_the_end_it_began_with_under_any_load(log: Any, other: Any) -> None:
    fill(log, [b"k"] * 500)
    enough = threading.Event()

    def load() -> None:
        far = other.log(log.name)
        while not enough.is_set():
            far.append(b"more", key=b"k")

    with member(log, block=False) as source, running(load):
        try:
            done = source.process(lambda record: None)
        finally:
            enough.set()
    assert done >= 500
    info = log.cursor("c").info()
    assert (info.committed, info.lag_records) == (done, log.info().end - done)


def test_block_false_waits_for_its_own_retries(log: Any, other: Any) -> None:
    fill(log, [b"a", b"b", b"a"])
    seen = []

    def handle(record: rlog.Record) -> rlog.Verdict | None:
        seen.append((record.offset, record.attempt))
        return rlog.Retry(0.3) if seen[-1] == (0, 1) else None

    with member(log, block=False) as source, member(other.log(log.name), block=False) as idle:
        assert source.process(handle) == 3
        assert idle.process(handle) == 0
    assert seen == [(0, 1), (1, 1), (0, 2), (2, 1)]


def test_a_retry_holds_its_key_and_nothing_else(log: Any) -> None:
    fill(log, [b"a", b"a", *[b"b"] * 20, *[None] * 5])
    seen = []

    def handle(record: rlog.Record) -> rlog.Verdict | None:
        seen.append(record.offset)
        return rlog.Retry(3600.0) if record.offset == 0 else None

    with member(log) as source:
        assert source.process(handle, limit=25, in_flight=4) == 25
    assert sorted(seen) == [0, *range(2, 27)]
    info = log.cursor("c").info()
    assert (info.committed, info.lag_records) == (0, 2)


def test_process_with_a_timeout_ends(log: Any) -> None:
    with member(log) as source:
        assert source.process(lambda record: None, timeout=0.2) == 0


def test_stopped_from_another_thread(log: Any) -> None:
    with member(log) as source:
        timer = threading.Timer(0.2, source.stop)
        timer.start()
        assert source.process(lambda record: None, in_flight=4) == 0
        timer.join()
        assert source.poll(timeout=None) == []


def test_process_leaves_nothing_in_hand(log: Any, other: Any) -> None:
    fill(log, [None] * 50)
    with member(log) as first, member(other.log(log.name), block=False) as second:
        assert first.process(lambda record: None, limit=10, in_flight=16) == 10
        [one, two] = log.cursor("c").info().members
        assert one.in_hand is two.in_hand is None
        assert second.process(lambda record: None, in_flight=16) == 40


# --- parked, exhausted, paused --------------------------------------------------------------


def test_a_parked_record_lets_its_key_go_on_and_comes_again_when_the_key_is_free(
    log: Any, other: Any
) -> None:
    fill(log, [b"k"] * 4)
    with member(log) as first, member(other.log(log.name)) as second:
        first.settle(some(first, 1)[0], rlog.Park("look at it"))
        [record] = some(first, 1)
        assert record.offset == 1
        cursor = log.cursor("c")
        assert cursor.redrive() == 1
        assert second.poll() == []  # its key is in hand
        first.commit(record)
        [redriven] = some(second, 1)
        assert (redriven.offset, redriven.attempt, redriven.redriven) == (0, 1, True)
        assert first.poll() == []  # ahead of what is new, and one of a key all the same
        second.settle(redriven, rlog.Retry(0.01))
        [redriven] = some(first, 1)
        assert (redriven.offset, redriven.attempt, redriven.redriven) == (0, 2, True)
        assert cursor.info().committed == 2
        first.commit(redriven)
        assert cursor.parked() == []
        for offset in (2, 3):
            [record] = some(second, 1)
            assert record.offset == offset
            second.commit(record)
        assert cursor.info().committed == 4


def test_policy(log: Any) -> None:
    """A handler that never succeeds: tried again by the policy, parked when it is exhausted."""
    fill(log, [b"a", b"b", b"a"])
    attempts: list[int] = []

    def handle(record: rlog.Record) -> None:
        if record.offset == 0:
            attempts.append(record.attempt)
            raise ArithmeticError("never")

    with member(log, block=False) as source:
        assert source.process(handle, retry=QUICK, in_flight=2) == 3
    assert attempts == [1, 2, 3]
    [parked] = log.cursor("c").parked()
    assert (parked.record.offset, parked.attempts) == (0, 3)
    assert "ArithmeticError: never" in parked.error
    assert log.cursor("c").redrive([0, 1]) == 1
    again = []
    with member(log, block=False) as source:
        source.process(lambda record: again.append((record.offset, record.redriven)))
    assert again == [(0, True)]


@pytest.mark.parametrize("what", ["skip", "raise"])
def test_exhausted(log: Any, what: str) -> None:
    fill(log, [b"a", b"a"])

    def handle(record: rlog.Record) -> None:
        if record.offset == 0:
            raise ArithmeticError("never")

    with member(log, block=False) as source:
        if what == "skip":
            assert source.process(handle, retry=QUICK, on_exhausted="skip") == 2
        else:
            with pytest.raises(ArithmeticError):
                source.process(handle, retry=QUICK, on_exhausted="raise")
    info = log.cursor("c").info()
    assert (info.committed, info.parked) == (2 if what == "skip" else 0, 0)


def test_the_breaker_pauses_all_members_and_the_first_success_redrives_the_streak(
    log: Any, other: Any
) -> None:
    fill(log, [None] * 6)
    policy = rlog.Backoff(first=0.01, cap=0.1, max_attempts=1, pause_after=3)
    broken = True
    seen: list[tuple[int, bool]] = []

    def handle(record: rlog.Record) -> None:
        if broken:
            raise ArithmeticError("all of them")
        seen.append((record.offset, record.redriven))

    with member(log, block=False) as first, member(other.log(log.name), block=False) as second:
        with pytest.raises(rlog.Paused):
            first.process(handle, retry=policy)
        assert "ArithmeticError" in (log.cursor("c").info().paused or "")
        with pytest.raises(rlog.Paused):
            second.process(handle, retry=policy)
        broken = False
        # Who may wait tries one; when that is done with, all is.
        assert first.process(handle, retry=policy, block=True, limit=6) == 6
    info = log.cursor("c").info()
    assert (info.paused, info.committed, info.parked) == (None, 6, 0)
    assert sorted(seen) == [(0, True), (1, True), (2, True), (3, False), (4, False), (5, False)]


def test_a_paused_consumer_is_resumed(log: Any, other: Any) -> None:
    fill(log, [None] * 4)
    policy = rlog.Backoff(first=0.01, cap=60.0, max_attempts=1, pause_after=2)
    broken = True

    def handle(record: rlog.Record) -> None:
        if broken:
            raise ArithmeticError("all of them")

    with member(log) as first, member(other.log(log.name), block=False) as second:
        with pytest.raises(rlog.Paused):
            second.process(handle, retry=policy)
        broken = False
        timer = threading.Timer(0.2, lambda: other.log(log.name).cursor("c").resume())
        timer.start()
        assert first.process(handle, retry=policy, limit=4, in_flight=4) == 4
        timer.join()


# --- in hand --------------------------------------------------------------------------------


def nap(source: Any, seconds: float) -> Any:
    """A handler's result that takes a while, for a client of either kind."""
    if hasattr(source, "_bridged"):
        return anyio.sleep(seconds)
    return time.sleep(seconds)


def test_a_record_in_hand_for_too_long_ends_its_members_claim_and_counts_for_it_alone(
    log: Any, other: Any
) -> None:
    fill(log, [b"a", b"b", b"c"])
    again: list[rlog.Record] = []
    begun = threading.Event()

    def handle(record: rlog.Record) -> Any:
        begun.set()
        return nap(first, 3.0) if record.offset == 1 else None

    def take() -> None:
        begun.wait(PATIENCE_SECONDS)
        with member(other.log(log.name)) as second:
            again.extend(some(second, 2))
            for record in again:
                second.commit(record)

    with member(log, hand_seconds=0.5) as first, running(take), pytest.raises(rlog.Fenced):
        first.process(handle, limit=3)
    assert sorted((record.offset, record.attempt) for record in again) == [(1, 2), (2, 1)]
    assert log.cursor("c").info().committed == 3


def test_extend_begins_a_records_time_anew(log: Any) -> None:
    fill(log, [b"a"])
    in_hand: list[rlog.Record] = []
    begun = threading.Event()

    def extend() -> None:
        begun.wait(PATIENCE_SECONDS)
        for _ in range(6):
            time.sleep(0.3)
            source.extend(in_hand[0])

    def handle(record: rlog.Record) -> Any:
        in_hand.append(record)
        begun.set()
        if hasattr(source, "_bridged"):
            return nap(source, 2.2)
        return extend()

    source = member(log, hand_seconds=1.6)
    beside = extend if hasattr(source, "_bridged") else lambda: None
    with source, running(beside):
        assert source.process(handle, limit=1) == 1


# --- from outside ---------------------------------------------------------------------------


def test_evicted_all_are_fenced_and_their_records_anothers(log: Any, other: Any) -> None:
    fill(log, [None] * 2)
    with member(log) as first, member(other.log(log.name)) as second:
        [mine], [theirs] = some(first, 1), some(second, 1)
        with pytest.raises(rlog.NotFound):
            log.cursor("c").evict("somebody else")
        log.cursor("c").evict()
        for source, record in ((first, mine), (second, theirs)):
            with pytest.raises(rlog.Fenced):
                source.commit(record)
    with member(log) as third:
        assert sorted((r.offset, r.attempt) for r in some(third, 2)) == [(0, 1), (1, 1)]


def test_sought_from_outside(log: Any, other: Any) -> None:
    fill(log, [None] * 5)
    cursor = other.log(log.name).cursor("c")
    with member(log) as first:
        records = some(first, 5)
        first.commit(records[0])
        first.commit(records[3])
        with pytest.raises(rlog.Busy):
            cursor.seek(rlog.OLDEST)
        assert cursor.seek(rlog.offset(2), force=True) == (1, 2)
        with pytest.raises(rlog.Fenced):
            first.commit(records[4])
    with member(log, block=False) as first:
        assert sorted(record.offset for record in first) == [2, 3, 4]
    assert cursor.seek(rlog.LATEST) == (2, 5)
    with member(log, block=False) as first:
        assert list(first) == []


def test_deleted_when_nobody_holds_it(log: Any, other: Any) -> None:
    fill(log, [None] * 2)
    cursor = other.log(log.name).cursor("c")
    with member(log) as first:
        first.commit(some(first, 1)[0])
        with pytest.raises(rlog.Busy):
            cursor.delete()
    cursor.delete()
    assert log.cursors() == []
    with log.consumer("c", block=False) as in_order:
        assert [record.offset for record in in_order] == [0, 1]


def test_looked_at_from_outside(log: Any, other: Any) -> None:
    fill(log, [None] * 6)
    with member(log) as first, member(other.log(log.name)) as second:
        first.commit(some(first, 2)[1])
        some(second, 1)
        info = log.cursor("c").info()
        assert (info.committed, info.lag_records, info.held_back) == (0, 5, None)
        assert len(info.members) == 2
        assert first.epoch != second.epoch
        assert [each.id for each in log.cursors()] == ["c"]
        begun = threading.Event()

        def handle(record: rlog.Record) -> Any:
            begun.set()
            return nap(first, 1.0)

        def look() -> None:
            begun.wait(PATIENCE_SECONDS)
            members = other.log(log.name).cursor("c").info().members
            assert [each.in_hand for each in members] == [3, None]  # 0 was handed out, by poll
            assert members[0].in_hand_since_ns >= members[0].since_ns

        with running(look):
            assert first.process(handle, limit=1) == 1
    assert not log.cursor("c").info().members


# --- what is refused ------------------------------------------------------------------------


def test_an_id_is_shared_or_in_order_for_life(log: Any) -> None:
    with log.consumer("in-order") as source:
        source.poll()
    with pytest.raises(rlog.InvalidRequest, match="for life"):
        log.consumer("in-order", shared=True).__enter__()
    with member(log) as source:
        source.poll()
    with pytest.raises(rlog.InvalidRequest, match="for life"):
        log.consumer("c").__enter__()


def test_what_makes_no_sense_for_one_of_many_is_refused(log: Any) -> None:
    for options in ({"standby": True}, {"takeover": True}):
        with pytest.raises(rlog.InvalidRequest):
            member(log, **options).__enter__()
    with pytest.raises(rlog.InvalidRequest):
        log.consumer(rlog.GLOBAL, shared=True).__enter__()
    with member(log) as source:
        with pytest.raises(rlog.InvalidRequest):
            source.seek(rlog.OLDEST)
        with pytest.raises(rlog.InvalidRequest):
            source.process(lambda record: None, in_flight=100_000)
        assert source.poll() == []


def test_one_member_of_each_client(client: Any, log: Any) -> None:
    fill(log, [None] * 2)
    with member(log) as first:
        with pytest.raises(rlog.Busy, match="clone"):
            member(log).__enter__()
        assert offsets(some(first, 1)) == [0]
        with client.clone() as clone, member(clone.log(log.name)) as second:
            assert offsets(some(second, 1)) == [1]

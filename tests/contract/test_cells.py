"""The README's table, a cell a test: style, blocking or not, verdict, transport, client."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest

import rlog_client as rlog

STYLES = ["reader", "consumer", "global"]
BLOCKING = ["block", "nonblock"]


def opened(log: Any, style: str, *, block: bool) -> Any:
    if style == "reader":
        return log.reader(rlog.OLDEST, block=block)
    return log.consumer("c" if style == "consumer" else rlog.GLOBAL, block=block)


def committed(log: Any, style: str) -> int:
    info: rlog.CursorInfo = log.cursor("c" if style == "consumer" else rlog.GLOBAL).info()
    return info.committed


def filled(log: Any, count: int = 5) -> list[bytes]:
    values = [b"%d" % number for number in range(count)]
    log.append_many(values)
    return values


@pytest.mark.parametrize("blocking", BLOCKING)
@pytest.mark.parametrize("style", STYLES)
def test_iterate(log: Any, style: str, blocking: str) -> None:
    values = filled(log)
    with opened(log, style, block=blocking == "block") as source:
        seen = []
        for record in source:
            seen.append(record.value)
            if style != "reader":
                source.commit(record)
            if blocking == "block" and len(seen) == 5:
                break
    assert seen == values
    if style != "reader":
        assert committed(log, style) == 5


@pytest.mark.parametrize("blocking", BLOCKING)
@pytest.mark.parametrize("style", STYLES)
def test_poll(log: Any, style: str, blocking: str) -> None:
    with opened(log, style, block=True) as source:
        assert source.poll() == []
        values = filled(log)
        records = source.poll(timeout=30.0 if blocking == "block" else 0.0)
        assert [record.value for record in records] == values
        if style != "reader":
            source.commit(records[-1])
            assert committed(log, style) == 5


@pytest.mark.parametrize("style", STYLES)
def test_waiting_for_what_comes_later(log: Any, other: Any, style: str) -> None:
    with opened(log, style, block=True) as source:
        timer = threading.Timer(0.2, lambda: other.log(log.name).append(b"later"))
        timer.start()
        assert next(source).value == b"later"
        timer.join()


VERDICTS = ["none", "commit", "skip", "retry", "park", "stop", "raise"]


class Handler:
    """Gives ``verdict`` to record 2 at its first attempt, and is done with all others."""

    def __init__(self, verdict: str, source: Any, count: int) -> None:
        self.seen: list[tuple[int, int]] = []
        self._verdict = verdict
        self._source = source
        self._count = count

    def handle(self, record: rlog.Record) -> rlog.Verdict | None:
        self.seen.append((record.offset, record.attempt))
        if record.offset != 2 or record.attempt != 1:
            return rlog.COMMIT
        match self._verdict:
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


@pytest.mark.parametrize("verdict", VERDICTS)
@pytest.mark.parametrize("blocking", BLOCKING)
@pytest.mark.parametrize("style", STYLES)
def test_process(log: Any, style: str, blocking: str, verdict: str) -> None:
    filled(log)
    block = blocking == "block"
    with opened(log, style, block=block) as source:
        handler = Handler(verdict, source, 5)
        limit = 5 if block else None
        if verdict == "raise":
            with pytest.raises(ArithmeticError):
                source.process(handler.handle, limit=limit)
        elif verdict == "park" and style == "reader":
            with pytest.raises(rlog.InvalidRequest):
                source.process(handler.handle, limit=limit)
            return
        else:
            done = source.process(handler.handle, limit=limit)
            assert done == (2 if verdict == "stop" else 5)
        once = [(offset, 1) for offset in range(5)]
        match verdict:
            case "retry":
                assert handler.seen == [*once[:3], (2, 2), *once[3:]]
            case "stop" | "raise":
                assert handler.seen == once[:3]
            case _:
                assert handler.seen == once
    if style != "reader":
        assert committed(log, style) == (2 if verdict in ("stop", "raise") else 5)
        cursor = log.cursor("c" if style == "consumer" else rlog.GLOBAL)
        parked = cursor.parked()
        assert [p.record.offset for p in parked] == ([2] if verdict == "park" else [])
    if verdict in ("stop", "raise") and style != "reader":
        # It comes again, to whoever is next: after an exception with the attempt counted.
        with opened(log, style, block=False) as source:
            again = Handler("none", source, 5)
            assert source.process(again.handle) == 3
        assert again.seen[0] == (2, 2 if verdict == "raise" else 1)


@pytest.mark.parametrize("blocking", BLOCKING)
def test_policy(log: Any, blocking: str) -> None:
    """A handler that never succeeds: tried again by the policy, parked when it is exhausted."""
    filled(log, 2)
    backoff = rlog.Backoff(first=0.01, cap=0.02, max_attempts=3)
    attempts: list[int] = []

    def handle(record: rlog.Record) -> None:
        if record.offset == 0:
            attempts.append(record.attempt)
            raise ArithmeticError("never")

    block = blocking == "block"
    with log.consumer("c", block=block) as consumer:
        assert consumer.process(handle, retry=backoff, limit=2 if block else None) == 2
    assert attempts == [1, 2, 3]
    (parked,) = log.cursor("c").parked()
    assert (parked.record.offset, parked.attempts) == (0, 3)
    assert "ArithmeticError: never" in parked.error
    assert log.cursor("c").redrive() == 1
    again: list[tuple[int, int, bool]] = []

    def note(record: rlog.Record) -> None:
        again.append((record.offset, record.attempt, record.redriven))

    with log.consumer("c", block=False) as consumer:
        assert consumer.process(note) == 1
    assert again == [(0, 1, True)]


def test_held_once(log: Any, other: Any) -> None:
    with log.consumer("c"), pytest.raises(rlog.Busy):
        other.log(log.name).consumer("c").poll()
    with other.log(log.name).consumer("c") as consumer:
        assert consumer.epoch == 2


def test_taken_over(log: Any, other: Any) -> None:
    filled(log)
    with log.consumer("c") as first:
        record = next(first)
        with other.log(log.name).consumer("c", takeover=True) as second:
            assert second.epoch == 2
            with pytest.raises(rlog.Fenced):
                first.commit(record)
            second.commit(next(second))
    assert committed(log, "consumer") == 1


def test_seek(log: Any) -> None:
    filled(log)
    with log.consumer("c", block=False) as consumer:
        consumer.commit(list(consumer)[-1])
        assert consumer.seek(rlog.offset(3)) == 3
        assert [record.offset for record in consumer] == [3, 4]
        assert consumer.epoch == 2


@pytest.mark.parametrize("kind", ["shared", "named", "exclusive"])
def test_producers(log: Any, other: Any, kind: str) -> None:
    kinds: dict[str, dict[str, Any]]
    kinds = {"shared": {}, "named": {"name": "etl"}, "exclusive": {"exclusive": True}}
    options = kinds[kind]
    with log.producer(**options) as producer:
        pending = [producer.send(b"%d" % number) for number in range(3)]
        assert [each.result() for each in pending] == [0, 1, 2]
        if kind == "named":
            assert producer.epoch == 1
        if kind == "exclusive":
            with pytest.raises(rlog.Busy):
                other.log(log.name).append(b"x")
    with log.producer(**options) as producer:
        assert producer.send(b"3").result() == 3
        assert producer.flush() == 4
    if kind == "named":
        with log.producer(name="etl") as producer:
            assert producer.last_sequence == 3


def test_expectations(client: Any, log: Any) -> None:
    assert log.append(b"a", expect=0) == 0
    with pytest.raises(rlog.Conflict) as conflict:
        log.append(b"b", expect=0)
    assert conflict.value.end == 1
    keyed = client.log(f"{log.name}.keyed", create=True, key_index=True)
    assert keyed.append(b"a", key=b"k", expect_key=-1) == 0
    with pytest.raises(rlog.Conflict) as conflict:
        keyed.append(b"b", key=b"k", expect_key=-1)
    assert conflict.value.key_offset == 0
    assert keyed.append(b"b", key=b"k", expect_key=0) == 1


def test_latest_and_table(client: Any, log: Any) -> None:
    with pytest.raises(rlog.InvalidRequest):
        log.latest(b"k")
    with pytest.raises(rlog.InvalidRequest):
        next(iter(log.table()))
    keyed = client.log(f"{log.name}.table", create=True, key_index=True)
    assert keyed.latest(b"a") is None
    assert list(keyed.table()) == []
    keyed.append_many([rlog.Item(b"%d" % n, b"ab"[n % 2 :][:1]) for n in range(5)])
    keyed.append(b"no key")
    found = keyed.latest(b"a")
    assert (found.offset, found.key, found.value) == (4, b"a", b"4")
    with keyed.table() as table:
        assert table.end == 6
        keyed.append(b"later", key=b"b")  # is not in it
        assert [(each.key, each.offset) for each in table] == [(b"b", 3), (b"a", 4)]
    assert [(each.key, each.offset) for each in keyed.table()] == [(b"a", 4), (b"b", 6)]


def compacted(client: Any, name: str) -> tuple[Any, dict[bytes, int], int]:
    """A log from which records are absent, the last offset of each key, and its end."""
    options = {"key_index": True, "compact": True, "file_roll_size": 4096}
    log = client.log(name, create=True, **options)
    latest: dict[bytes, int] = {}
    end = 0
    for _ in range(40):
        items = [rlog.Item(bytes(50), b"%d" % (n % 7)) for n in range(20)]
        items[9] = rlog.Item(b"no key")
        end = log.append_many(items).end
        latest |= {b"%d" % (n % 7): end - 20 + n for n in range(20) if n != 9}
    deadline = time.monotonic() + 30
    while log.info().bytes > 20 * end:  # a third of what was appended
        assert time.monotonic() < deadline, "it is never compacted"
        time.sleep(0.01)
    return log, latest, end


def test_what_was_compacted_is_absent_for_everybody(client: Any, log: Any) -> None:
    keyed, latest, end = compacted(client, f"{log.name}.compacted")
    with keyed.reader(rlog.OLDEST, block=False) as reader:
        records = list(reader)
        assert reader.offset == end
    offsets = [record.offset for record in records]
    assert offsets == sorted(set(offsets))
    assert len(offsets) < end
    assert {r.key: r.offset for r in records if r.key is not None} == latest
    assert [o for o in range(9, end, 20) if o not in offsets] == []
    assert {r.key: r.offset for r in keyed.table()} == latest
    gone = next(o for o in range(end) if o not in offsets)
    with keyed.reader(rlog.offset(gone), until=rlog.offset(gone + 1)) as reader:
        assert list(reader) == []
        assert reader.offset > gone
    with keyed.consumer("c", block=False) as consumer:
        seen: list[int] = []
        assert consumer.process(lambda record: seen.append(record.offset), in_flight=7) > 0
        assert set(latest.values()) <= set(seen) <= set(offsets)
    assert keyed.cursor("c").info().committed == end
    with keyed.consumer("d", block=False) as consumer:
        polled: list[Any] = []
        while records := consumer.poll(50):
            polled += records
            consumer.commit(records[-1])
    assert set(latest.values()) <= {each.offset for each in polled}
    assert keyed.cursor("d").info().committed == end


def test_receipts(log: Any) -> None:
    receipt = log.append_many([b"a", b"b"])
    assert (receipt.first, receipt.end, receipt.level, receipt.duplicate) == (0, 2, "synced", False)
    log.wait_synced(2, timeout=30)
    with log.producer() as producer:
        assert producer.send(b"c").receipt().first == 2


def test_looked_at_from_outside(log: Any) -> None:
    filled(log)
    with log.consumer("c", block=False) as consumer:
        record = next(consumer)
        consumer.commit(record)
        info = log.cursor("c").info()
        assert (info.committed, info.lag_records, len(info.members)) == (1, 4, 1)
        assert info.lag_bytes > 0
        assert info.lag_seconds >= 0
    assert [each.id for each in log.cursors()] == ["c"]
    assert not log.cursor("c").info().members
    assert log.info().end == 5


def test_stopped_from_another_thread(log: Any) -> None:
    with log.consumer("c") as consumer:
        timer = threading.Timer(0.2, consumer.stop)
        timer.start()
        assert consumer.process(lambda record: None) == 0
        timer.join()


# --- transactions ---------------------------------------------------------------------------


def out_of(client: Any, log: Any) -> Any:
    """Another log, empty."""
    return client.log(f"{log.name}.out", create=True)


def values(log: Any) -> list[bytes]:
    with log.reader(rlog.OLDEST, block=False) as reader:
        return [record.value for record in reader]


def test_a_transaction(client: Any, log: Any) -> None:
    filled(log)
    out = out_of(client, log)
    with log.consumer("c") as consumer, log.consumer("d") as second:
        record = next(consumer)
        with client.transaction() as transaction:
            transaction.append(out.name, b"a")
            transaction.append(log, rlog.Item(b"b", key=b"k"))
            transaction.append(out, b"c", expect=0)
            transaction.commit(consumer, record)
            transaction.commit(consumer, next(consumer))
            transaction.commit(second, next(second))
            assert transaction.receipts == []
        assert [(each.first, each.end) for each in transaction.receipts] == [(0, 1), (5, 6), (1, 2)]
        assert {(each.level, each.duplicate) for each in transaction.receipts} == {
            ("synced", False)
        }
        assert (consumer.committed, second.committed) == (2, 1)
        assert next(consumer).offset == 2
    assert (values(out), values(log)[5:]) == ([b"a", b"c"], [b"b"])
    assert (committed(log, "consumer"), log.cursor("d").info().committed) == (2, 1)


def transact(client: Any, *appends: Any, commit: Any = None, error: Any = None, **more: Any) -> Any:
    """A transaction of these appends (the last one with ``more``) and this commit; its receipts."""
    with client.transaction() as transaction:
        for log, value in appends[:-1]:
            transaction.append(log, value)
        transaction.append(*appends[-1], **more)
        if commit is not None:
            transaction.commit(*commit)
        if error is not None:
            raise error
    return transaction.receipts


def test_a_transaction_that_raises_or_is_empty_sends_nothing(client: Any, log: Any) -> None:
    filled(log)
    with log.consumer("c") as consumer:
        record = next(consumer)
        with pytest.raises(ArithmeticError):
            transact(client, (log, b"no"), commit=(consumer, record), error=ArithmeticError())
        with client.transaction() as empty:
            pass
        assert empty.receipts == []
        assert (consumer.committed, log.info().end) == (0, 5)


def test_a_transaction_is_for_one_use(client: Any, log: Any) -> None:
    with client.transaction() as used:
        used.append(log, b"x")

    def again() -> None:
        with used:
            pass

    with log.consumer("c") as consumer:
        record = next(consumer)
        for use in (
            again,
            lambda: used.append(log, b"late"),
            lambda: used.commit(consumer, record),
            lambda: client.transaction().append(log, b"not entered"),
        ):
            with pytest.raises(RuntimeError):
                use()
    assert values(log) == [b"x"]


def test_a_transaction_that_is_refused_changes_nothing(client: Any, log: Any, other: Any) -> None:
    filled(log)
    out, theirs = out_of(client, log), other.log(log.name)
    with log.consumer("c") as consumer:
        mine = (consumer, next(consumer))
        with pytest.raises(rlog.Conflict, match=out.name) as conflict:
            transact(client, (log, b"no"), (out, b"no"), commit=mine, expect=7)
        assert conflict.value.end == 0
        with pytest.raises(rlog.NotFound):
            transact(client, (log, b"no"), (f"{log.name}.nowhere", b"no"), commit=mine)
        with pytest.raises(rlog.InvalidRequest):
            transact(client, (theirs, b"no"))
        with pytest.raises(rlog.InvalidRequest):
            transact(other, (log.name, b"no"), commit=mine)
        with theirs.consumer("c", takeover=True) as second:
            with pytest.raises(rlog.Fenced):
                transact(client, (out, b"no"), commit=mine)
            transact(other, (out.name, b"yes"), commit=(second, next(second)))
    assert (values(out), log.info().end) == ([b"yes"], 5)


@pytest.mark.parametrize("in_flight", [1, 4])
@pytest.mark.parametrize("blocking", BLOCKING)
def test_process_with_appends(client: Any, log: Any, blocking: str, in_flight: int) -> None:
    """Consume, transform, produce: some records become two, some none."""
    read = filled(log, 7)
    out = out_of(client, log)

    def transform(record: rlog.Record) -> rlog.Verdict | None:
        if record.offset % 3 == 2:
            return None
        item = rlog.Item(record.value, key=b"k")
        return rlog.Commit(appends=[(out.name, item), (out.name, b"again " + record.value)])

    block = blocking == "block"
    with log.consumer("c", block=block) as consumer:
        done = consumer.process(transform, limit=7 if block else None, in_flight=in_flight)
        assert (done, consumer.committed) == (7, 7)
    assert values(out) == [
        value for at, each in enumerate(read) if at % 3 != 2 for value in (each, b"again " + each)
    ]
    assert committed(log, "consumer") == 7


def test_settle_with_appends(client: Any, log: Any) -> None:
    filled(log)
    out = out_of(client, log)
    with log.consumer("c") as consumer:
        next(consumer)
        consumer.settle(next(consumer), rlog.Commit(appends=[(out.name, b"x")]))
        assert (consumer.committed, values(out)) == (2, [b"x"])
        assert next(consumer).offset == 2


def test_redriven_with_appends(client: Any, log: Any) -> None:
    filled(log)
    out = out_of(client, log)
    with log.consumer("c", block=False) as consumer:
        consumer.process(lambda record: rlog.PARK)
        log.cursor("c").redrive([1, 3])
        handed = consumer.process(lambda record: rlog.Commit(appends=[(out.name, record.value)]))
        assert (handed, values(out)) == (2, [b"1", b"3"])
        log.cursor("c").redrive([0])
        (record,) = consumer.poll(timeout=30.0)
        with client.transaction() as transaction:
            transaction.append(out, b"by hand")
            transaction.commit(consumer, record)
        assert consumer.poll() == []
        assert consumer.committed == 5
    assert values(out)[2:] == [b"by hand"]
    assert [parked.record.offset for parked in log.cursor("c").parked()] == [2, 4]


def test_appends_that_fail_are_the_records_fault(client: Any, log: Any) -> None:
    """As if the handler had raised: with a policy it is parked in the end, and others go on."""
    filled(log)
    out = out_of(client, log)
    backoff = rlog.Backoff(first=0.01, cap=0.01, max_attempts=2)

    def handle(record: rlog.Record) -> rlog.Verdict:
        if record.offset == 1:
            return rlog.Commit(appends=[(out.name, b"no"), (f"{log.name}.nowhere", b"no")])
        if record.offset == 3:
            return rlog.Commit(appends=[(out.name, "no")])  # type: ignore[list-item]  # wrong on purpose
        return rlog.Commit(appends=[(out.name, record.value)])

    with log.consumer("c", block=False) as consumer:
        with pytest.raises(rlog.NotFound):
            consumer.process(handle)
        assert consumer.process(handle, retry=backoff) == 4
    parked = [(each.record.offset, each.attempts) for each in log.cursor("c").parked()]
    assert (parked, values(out)) == ([(1, 2), (3, 2)], [b"0", b"2", b"4"])


def test_a_reader_has_nothing_to_commit_appends_with(client: Any, log: Any) -> None:
    filled(log)
    attempts = []

    def handle(record: rlog.Record) -> rlog.Verdict:
        attempts.append(record.attempt)
        return rlog.Commit(appends=[(log.name, b"no")])

    with log.reader(rlog.OLDEST, block=False) as reader:
        for _ in range(2):
            with pytest.raises(rlog.InvalidRequest):
                reader.process(handle)
    assert (attempts, log.info().end) == ([1, 2], 5)


# --- retention ----------------------------------------------------------------------------------

WAYS_TO_READ = ["iterate", "poll", "process"]
TOTAL = 16 * 1024


def rolled(log: Any, count: int = 24) -> None:
    """Records of about a KiB in files of four."""
    log.alter(file_roll_size=4096)
    for number in range(count):
        log.append(b"%d" % number + bytes(900))


def read_on(source: Any, how: str, *, some: bool = True) -> list[int]:
    """The offsets of what is there, if ``some`` is."""
    if how == "iterate":
        return [record.offset for record in source]
    if how == "poll":
        return [record.offset for record in source.poll(1000, timeout=30.0 * some)]
    seen: list[int] = []
    source.process(lambda record: seen.append(record.offset))
    return seen


@pytest.mark.parametrize("how", WAYS_TO_READ)
@pytest.mark.parametrize("style", STYLES)
def test_a_gap_is_told_once(log: Any, style: str, how: str) -> None:
    rolled(log)
    with opened(log, style, block=False) as source:
        source.process(lambda record: None, limit=2)
        log.trim(rlog.offset(20))
        first = log.info().first
        if style == "reader":
            assert source.seek(rlog.offset(first)) == first
            return
    # Behind the cursor the log is gone.
    info = log.cursor("c" if style == "consumer" else rlog.GLOBAL).info()
    assert (info.committed, info.lag_records) == (2, 24 - first)
    with opened(log, style, block=False) as source:
        with pytest.raises(rlog.Gap) as gap:
            read_on(source, how)
        assert (gap.value.first, gap.value.end) == (2, first)
        assert read_on(source, how) == list(range(first, 24))
        assert source.skipped_records == 0
        if how != "process":
            source.commit(rlog.Record(log.name, 23, 0, None, {}, b"", None, 1, source.epoch))
    assert committed(log, style) == 24


@pytest.mark.parametrize("policy", ["oldest", "latest"])
@pytest.mark.parametrize("how", WAYS_TO_READ)
@pytest.mark.parametrize("style", STYLES)
def test_a_gap_is_passed_where_that_was_asked_for(
    log: Any, style: str, how: str, policy: str
) -> None:
    rolled(log)
    consumer = "c" if style == "consumer" else rlog.GLOBAL
    begin = 0
    if style != "reader":
        with log.consumer(consumer, block=False) as source:
            source.process(lambda record: None, limit=2)
        begin = 2
    log.trim(rlog.offset(20))
    first = log.info().first
    more = {"block": False, "on_out_of_range": policy}
    if style == "reader":
        opening = log.reader(rlog.offset(0), **more)
    else:
        opening = log.consumer(consumer, **more)
    with opening as source:
        expected = list(range(first, 24)) if policy == "oldest" else []
        assert read_on(source, how, some=bool(expected)) == expected
        assert source.skipped_records == (first if policy == "oldest" else 24) - begin
        log.append(b"new")
        if how == "poll" or style == "reader":
            assert read_on(source, how) == [24]
        else:
            assert source.process(lambda record: None) == 1
        assert source.skipped_records == (first if policy == "oldest" else 24) - begin
        if style != "reader" and how == "poll":
            source.commit(rlog.Record(log.name, 24, 0, None, {}, b"", None, 1, source.epoch))
    if style != "reader":
        # One commit passes the gap, whatever was in it.
        assert committed(log, style) == 25


@pytest.mark.parametrize("policy", ["oldest", "latest"])
@pytest.mark.parametrize("start", [0, 99])
@pytest.mark.parametrize("style", STYLES)
def test_a_start_outside_the_log(log: Any, style: str, start: int, policy: str) -> None:
    rolled(log)
    log.trim(rlog.offset(20))
    first = log.info().first

    def at(**more: Any) -> Any:
        if style == "reader":
            return log.reader(rlog.offset(start), block=False, **more)
        consumer = "c" if style == "consumer" else rlog.GLOBAL
        return log.consumer(consumer, start=rlog.offset(start), block=False, **more)

    with pytest.raises(rlog.OffsetOutOfRange) as outside, at() as source:
        list(source)
    assert (outside.value.first, outside.value.end) == (first, 24)
    begin = first if policy == "oldest" else 24
    with at(on_out_of_range=policy) as source:
        assert [record.offset for record in source] == list(range(begin, 24))
        assert source.skipped_records == max(0, begin - start)
        with pytest.raises(rlog.OffsetOutOfRange):
            source.seek(rlog.offset(start))
    with pytest.raises(ValueError, match="on_out_of_range"), at(on_out_of_range="first"):
        pass


def test_a_log_is_kept_within_its_size(client: Any, log: Any) -> None:
    name = f"{log.name}.bounded"
    bounded = client.log(name, create=True, max_total_bytes=TOTAL, file_roll_size=4096)
    for number in range(40):
        bounded.append(b"%d" % number + bytes(900))
        assert bounded.info().bytes <= TOTAL
    info = bounded.info()
    assert info.first > 20
    assert info.retention is None
    assert [r.offset for r in bounded.reader(rlog.OLDEST, block=False)] == list(
        range(info.first, 40)
    )
    with pytest.raises(rlog.AlreadyExists) as differs:
        client.log(name, create=True, max_total_bytes=TOTAL + 1)
    assert differs.value.differences == {"max_total_bytes": [TOTAL, TOTAL + 1]}
    assert bounded.alter(max_total_bytes=None).options["max_total_bytes"] is None
    for number in range(20):
        bounded.append(b"%d" % number + bytes(900))
    assert bounded.info().first == info.first


def test_a_record_is_gone_when_it_is_old(log: Any) -> None:
    log.append(b"old")
    log.alter(max_file_age=1.0)
    assert log.info().options["max_file_age"] == 1.0
    deadline = time.monotonic() + 30
    while log.info().first == 0:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert log.append(b"new") == 1


def test_a_protected_consumer_is_waited_for(log: Any) -> None:
    rolled(log)
    log.alter(max_total_bytes=TOTAL, protected=["c", rlog.GLOBAL])
    assert log.info().options["protected"] == ["@global", "c"]
    assert log.trim(rlog.LATEST) == 0
    for who in ("c", rlog.GLOBAL):
        with log.consumer(who, block=False) as consumer:
            assert consumer.process(lambda record: None, limit=20) == 20
    assert 16 < log.trim(rlog.LATEST) <= 20
    with pytest.raises(TypeError, match="protected"):
        log.alter(protected="c")
    log.alter(protected=[])
    assert log.trim(rlog.LATEST) == 24


def test_a_parked_record_outlives_its_place(log: Any) -> None:
    rolled(log)
    with log.consumer("c", block=False) as consumer:
        assert consumer.process(lambda r: rlog.Park("no") if r.offset == 1 else None) == 24
    (before,) = log.cursor("c").parked()
    assert log.trim(rlog.LATEST) == 24
    assert log.cursor("c").parked() == [before]
    assert log.cursor("c").redrive() == 1
    with log.consumer("c", block=False) as consumer:
        (again,) = list(consumer)
        assert (again.offset, again.value, again.redriven) == (1, before.record.value, True)
        consumer.settle(again, rlog.PARK)
        assert log.cursor("c").redrive([1]) == 1
        assert consumer.process(lambda record: None) == 1
    assert log.cursor("c").parked() == []


def test_an_append_waits_for_space_and_goes_on_when_there_is_some(log: Any, other: Any) -> None:
    rolled(log, 8)
    log.alter(max_total_bytes=TOTAL, blocking_minimum_retention=3600.0)
    timer = threading.Timer(0.3, lambda: other.log(log.name).trim(rlog.offset(8)))
    appended = [log.append(b"%d" % number + bytes(900)) for number in range(8, 14)]
    assert log.info().first == 0
    timer.start()
    with log.producer() as producer:
        pending = [producer.send(b"%d" % number + bytes(3000)) for number in range(14, 17)]
        assert [each.result() for each in pending] == list(range(14, 17))
    timer.join()
    assert appended == list(range(8, 14))
    assert log.info().first == 8

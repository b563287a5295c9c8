"""Shared consumers at their limits: what is stuck holds up nothing else, and nothing grows on."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

import rlog_client as rlog
from rlog.dispatch import PENDING_MAX
from rlog.shared import RANGES_MAX
from rlog_client.blocking import Member

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from .serving import Server


def fill(log: rlog.Log, keys: Iterable[bytes | None]) -> int:
    with log.producer() as producer:
        for number, key in enumerate(keys):
            producer.send(b"%d" % number, key=key)
    return log.info().end


def member(log: rlog.Log, *, block: bool = True) -> rlog.Consumer:
    return log.consumer("c", shared=True, block=block)


def done(_record: rlog.Record) -> None:
    pass


@pytest.mark.patience(180)
@pytest.mark.parametrize("stuck", ["one record", "a long run"])
def test_a_stuck_key_holds_up_nobody_else(make_server: Callable[..., Server], stuck: str) -> None:
    server = make_server().start()
    with server.connect() as client, server.connect() as other:
        log = client.log("l", create=True)
        run, count = (1, 100_000) if stuck == "one record" else (70_000, 10_000)
        end = fill(log, [b"s"] * run + [b"k%d" % (n % 1000) for n in range(count)])
        with member(log) as holder, member(other.log("l"), block=False) as source:
            [record] = holder.poll(1, timeout=10)
            before = server.rss_bytes
            assert source.process(done, in_flight=64) == count
            grown = server.rss_bytes - before
            assert grown < 64 << 20, f"{grown:,} bytes for {count:,} records"
            info = log.cursor("c").info()
            assert (info.committed, info.lag_records, info.held_back) == (0, run, None)
            holder.commit(record)
            assert source.process(done, limit=min(run - 1, 500), in_flight=64) == min(run - 1, 500)
        if run == 1:
            assert log.cursor("c").info().committed == end


@pytest.mark.patience(180)
def test_too_many_ranges_settled_above_the_floor_wait_for_it_and_say_so(
    make_server: Callable[..., Server],
) -> None:
    server = make_server().start()
    with server.connect() as client, server.connect() as other:
        log = client.log("l", create=True)
        end = fill(log, (b"s" if n % 2 == 0 else None for n in range(2 * RANGES_MAX + 4000)))
        with member(log) as holder, member(other.log("l"), block=False) as source:
            [record] = holder.poll(1, timeout=10)
            assert record.offset == 0
            first = source.process(done, in_flight=64)
            assert RANGES_MAX - 64 <= first <= RANGES_MAX
            info = log.cursor("c").info()
            assert info.held_back is not None
            assert "above 0" in info.held_back
            assert source.process(done) == 0
            holder.commit(record)
            assert source.process(done, limit=300, in_flight=64) == 300
            info = log.cursor("c").info()
            assert (info.committed >= 300, info.held_back) == (True, None)
        # Nothing of it is lost with the process.
        lag = info.lag_records
        server.stop()
        server.start()
        with member(log) as source:
            assert log.cursor("c").info().lag_records == lag
            assert source.process(done, limit=10, in_flight=64) == 10
            assert log.cursor("c").info().lag_records == lag - 10
            assert log.info().end == end


@pytest.mark.patience(180)
def test_too_many_runs_behind_their_keys_wait_and_say_so(
    make_server: Callable[..., Server],
) -> None:
    server = make_server().start()
    with server.connect() as client, server.connect() as other:
        log = client.log("l", create=True)
        count = PENDING_MAX + 20_000
        fill(log, [*(b"%d" % (n % 2) for n in range(count)), b"last"])
        with member(log) as holder, member(other.log("l"), block=False) as source:
            records = holder.poll(2, timeout=10)
            assert [record.offset for record in records] == [0, 1]
            before = server.rss_bytes
            assert source.process(done) == 0
            assert server.rss_bytes - before < 64 << 20
            info = log.cursor("c").info()
            assert info.held_back is not None
            assert "behind their keys" in info.held_back
            for record in records:
                holder.commit(record)
            assert source.process(done, limit=2000, in_flight=64) == 2000
            assert log.cursor("c").info().committed >= 2000


@pytest.mark.patience(180)
def test_more_than_ten_thousand_parked_records_are_refused_and_nothing_is_lost(
    client: rlog.Client, log: rlog.Log
) -> None:
    fill(log, (b"k%d" % n for n in range(10_010)))
    with member(log, block=False) as source:
        with pytest.raises(rlog.Paused, match="10000 records are parked"):
            source.process(lambda record: rlog.PARK, in_flight=64)
        info = log.cursor("c").info()
        assert (info.parked, info.lag_records) == (10_000, 10)
        assert source.process(done, in_flight=64) == 10
        cursor = log.cursor("c")
        assert cursor.redrive() == 10_000
        assert source.process(done, in_flight=64) == 10_000
        assert cursor.info().parked == 0


# --- sizes ----------------------------------------------------------------------------------


@pytest.mark.patience(180)
def test_batches_of_every_size_and_keys_of_every_length(
    make_server: Callable[..., Server],
) -> None:
    server = make_server("--journal-file-bytes", str(32 << 20)).start()
    with server.connect() as client, server.connect() as other:
        handle_every_size(client.log("l", create=True), other)


def handle_every_size(log: rlog.Log, other: rlog.Client) -> None:
    big = rlog.Item(bytes(1000 * 1000), key=b"big")
    keys: list[bytes | None] = [b"big"] * 7
    log.append_many([big] * 7)  # one batch of 7 MB, of which one record is to be had at a time
    long = [bytes([n]) + bytes(100 << 10) for n in range(3)]
    for number in range(60):
        key = (long[number % 3], b"k%d" % (number % 5), None)[number % 4 % 3]
        log.append(b"%d" % number, key=key)
        keys.append(key)
    small: list[bytes | None] = [b"k%d" % (n % 7) if n % 3 else None for n in range(5000)]
    log.append_many([rlog.Item(b"%d" % n, key=key) for n, key in enumerate(small)])
    keys += small
    seen: list[int] = []

    def handle(record: rlog.Record) -> None:
        assert record.key == keys[record.offset]
        seen.append(record.offset)

    with member(log, block=False) as first, member(other.log(log.name), block=False) as second:
        while len(seen) < len(keys):
            before = len(seen)
            first.process(handle, limit=100, in_flight=8)
            second.process(handle, limit=100, in_flight=8)
            assert len(seen) > before, "it stands still"
    assert sorted(seen) == list(range(len(keys)))
    last: dict[bytes | None, int] = {}
    for offset in seen:
        key = keys[offset]
        assert key is None or last.get(key, -1) < offset, f"{offset} out of order"
        last[key] = offset
    assert log.cursor("c").info().committed == len(keys)


def test_a_member_keeps_no_more_batches_than_it_needs(
    make_server: Callable[..., Server],
) -> None:
    server = make_server().start()
    with server.connect() as client, server.connect() as other:
        log = client.log("l", create=True)
        log.append(b"stuck", key=b"stuck")
        for _ in range(100):
            log.append_many([rlog.Item(bytes(500_000), key=b"a"), rlog.Item(b"", key=b"b")])
        with member(log) as holder, member(other.log("l"), block=False) as source:
            [record] = holder.poll(1, timeout=10)
            before = server.rss_bytes
            assert source.process(done, in_flight=4) == 200
            assert isinstance(source, Member)
            assert len(source._batches) < 40  # 50 MB came; 16 MiB may stay
            assert server.rss_bytes - before < 64 << 20
            holder.commit(record)


# --- what cannot be had ---------------------------------------------------------------------


def test_a_damaged_batch_is_told_to_one_member_once_and_the_floor_passes_it(
    make_server: Callable[..., Server],
) -> None:
    server = make_server().start()
    with server.connect() as client:
        log = client.log("l", create=True)
        for i in range(3):
            # Larger than the last page, which a checkpoint holds and recovery puts back.
            log.append_many(
                [
                    rlog.Item(b"%d first" % i + bytes(4000), key=b"a"),
                    rlog.Item(b"%d second" % i + bytes(4000), key=b"b"),
                ]
            )
    server.stop()
    [segment] = (server.data_dir / "logs").rglob("*.seg")
    data = bytearray(segment.read_bytes())
    data[data.index(b"1 first")] ^= 1
    segment.write_bytes(data)
    server.start()
    seen: list[int] = []
    errors: list[rlog.CorruptData] = []
    with server.connect() as client, server.connect() as other:
        sources = [member(each.log("l"), block=False) for each in (client, other)]
        for _ in range(4):
            for source in sources:
                try:
                    source.process(lambda record: seen.append(record.offset))
                except rlog.CorruptData as error:
                    errors.append(error)
        [told] = errors
        assert (told.log, told.first, told.end) == ("l", 2, 4)
        assert told.file == str(segment.relative_to(server.data_dir))
        assert sorted(seen) == [0, 1, 4, 5]
        log = client.log("l")
        assert log.append(b"and on") == 6
        sources[1].process(lambda record: seen.append(record.offset))
        assert log.cursor("c").info().committed == 7
        for source in sources:
            source.close()


@pytest.mark.parametrize("prefetched", [False, True])
def test_what_was_trimmed_under_members_is_a_gap_told_once_and_the_floor_passes_it(
    client: rlog.Client, other: rlog.Client, prefetched: bool
) -> None:
    name = f"trimmed-{prefetched}".lower()
    log = client.log(name, create=True, file_roll_size=1 << 16)
    for _ in range(20):
        log.append_many([rlog.Item(bytes(7000), key=b"%d" % (m % 3)) for m in range(5)])
    gaps: list[tuple[int, int]] = []
    seen: list[int] = []
    sources = [member(each.log(name), block=False) for each in (client, other)]
    for source in sources:
        assert source.epoch > 0  # it has claimed
        if prefetched:
            source.process(lambda record: seen.append(record.offset), limit=1)
    first = log.trim(rlog.offset(60))
    assert 0 < first <= 60
    for _ in range(4):
        for source in sources:
            try:
                source.process(lambda record: seen.append(record.offset), in_flight=4)
            except rlog.Gap as gap:
                gaps.append((gap.first, gap.end))
    lost = sorted(offset for begin, end in gaps for offset in range(begin, end))
    assert len(lost) == len(set(lost)), f"told twice: {gaps}"
    assert sorted([*lost, *seen]) == list(range(100))
    assert all(offset >= first for offset in seen[2 * prefetched :])
    assert log.cursor("c").info().committed == 100
    for source in sources:
        source.close()

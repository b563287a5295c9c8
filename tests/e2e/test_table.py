"""The latest record of a key, and of every key, beside appends, compaction and kills."""

from __future__ import annotations

import random
import threading
import time
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest

import rlog_client as rlog
from rlog.tables import PAGE_KEYS, TABLES_MAX
from rlog_client.table import TableSteps

from .proxy import Proxy
from .serving import Server, eventually

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

ROLL = 64 * 1024


class Writer:
    """Appends to a log from a thread of its own, and knows what it did. ``made``: every record's
    key, by offset.
    """

    def __init__(self, client: rlog.Client, log: rlog.Log, keys: int, seed: int = 1) -> None:
        self.made: list[bytes | None] = []
        self._rng = random.Random(seed)
        self._keys = keys
        self._client = client.clone()
        self._log = self._client.log(log.name)
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        rng = self._rng
        while not self._over.is_set():
            keys = [
                b"%d" % int(rng.paretovariate(0.5) % self._keys) if rng.random() < 0.97 else None
                for _ in range(rng.randrange(1, 100))
            ]
            first = self._log.append_many([rlog.Item(rng.randbytes(40), key) for key in keys]).first
            assert first == len(self.made)
            self.made += keys
            time.sleep(0.002)

    def latest(self, end: int) -> dict[bytes, int]:
        """Of each key, below ``end``."""
        eventually(lambda: len(self.made) >= end, "the writer hears of what it appended")
        return {key: at for at, key in enumerate(self.made[:end]) if key is not None}

    def stop(self) -> None:
        self._over.set()
        self._thread.join()
        self._client.close()  # (once more does nothing)


@pytest.fixture
def keyed(client: rlog.Client, log: rlog.Log) -> rlog.Log:
    return client.log(
        f"{log.name}-keyed", create=True, key_index=True, compact=True, file_roll_size=ROLL
    )


@pytest.fixture
def writer(client: rlog.Client, keyed: rlog.Log) -> Iterator[Writer]:
    writer = Writer(client, keyed, keys=300)
    yield writer
    writer.stop()


def absent(log: rlog.Log) -> int:
    """How many of its offsets have no record."""
    from rlog.cli import wire

    return sum(segment.absent for segment in wire.segments(log))


def has_absent(log: rlog.Log) -> bool:
    return absent(log) > 0


def test_a_table_is_the_latest_of_each_key_however_fast_the_log_grows(
    keyed: rlog.Log, writer: Writer
) -> None:
    eventually(lambda: absent(keyed) > 1000, "something is compacted")
    for _ in range(25):
        table = keyed.table()
        records = list(table)
        offsets = [record.offset for record in records]
        assert offsets == sorted(offsets)
        assert {r.key: r.offset for r in records} == writer.latest(table.end)
    eventually(lambda: absent(keyed) > 2000, "more was compacted beside all that")


def test_a_table_that_is_read_slowly_loses_nothing_to_compaction(
    keyed: rlog.Log, writer: Writer
) -> None:
    eventually(lambda: absent(keyed) > 500, "something is compacted")
    with keyed.table() as table:
        expected = writer.latest(table.end)
        seen = {}
        for record in table:
            seen[record.key] = record.offset
            if len(seen) in (10, 20):
                before = absent(keyed)
                eventually(lambda: absent(keyed) > before, "more is compacted")  # noqa: B023 (asked at once)
    assert seen == expected


def test_a_slow_reader_meets_no_gap_and_misses_no_latest_record(
    keyed: rlog.Log, writer: Writer
) -> None:
    seen: dict[bytes | None, int] = {}
    last = -1
    with keyed.reader(rlog.OLDEST) as reader:
        while absent(keyed) < 2000 or last < 8000:
            for record in reader.poll(50, timeout=1.0):
                assert record.offset > last
                eventually(lambda: len(writer.made) > record.offset, "it is told")  # noqa: B023 (asked at once)
                assert writer.made[record.offset] == record.key
                seen[record.key], last = record.offset, record.offset
            time.sleep(0.001)
        # What it missed was superseded: at the end it has seen the latest of each.
        writer.stop()
        while records := reader.poll():
            seen |= {record.key: record.offset for record in records}
    seen.pop(None, None)
    assert seen == writer.latest(len(writer.made))


def test_latest_is_what_was_appended_last_also_where_nothing_is_synced_yet(
    client: rlog.Client, log: rlog.Log
) -> None:
    for sync in ("always", "periodic:1h", "bytes:1GiB", "never"):
        keyed = client.log(
            f"{log.name}-{sync.partition(':')[0]}", create=True, key_index=True, sync=sync
        )
        for count in range(3):
            assert keyed.append(b"%d" % count, key=b"k") == count
            found = keyed.latest(b"k")
            assert found is not None
            assert (found.offset, found.value) == (count, b"%d" % count)
            assert [record.offset for record in keyed.table()] == [count]
        assert keyed.latest(b"l") is None


def test_what_is_trimmed_is_nobodys_latest(client: rlog.Client, log: rlog.Log) -> None:
    keyed = client.log(f"{log.name}-k", create=True, key_index=True, file_roll_size=4096)
    keyed.append(bytes(3000), key=b"old")
    keyed.append(bytes(3000), key=b"new")
    table = keyed.table()
    assert table.end == 2
    assert keyed.trim(rlog.LATEST) == 2
    assert keyed.latest(b"old") is None
    with pytest.raises(rlog.Gap) as gap:
        next(table)
    assert (gap.value.first, gap.value.end) == (0, 2)
    assert list(table) == []
    assert list(keyed.table()) == []


def test_a_table_of_many_pages(client: rlog.Client, log: rlog.Log) -> None:
    keyed = client.log(f"{log.name}-k", create=True, key_index=True)
    count = 2 * PAGE_KEYS + 100
    with keyed.producer() as producer:
        for number in range(count):
            producer.send(b"v", key=b"%d" % number)
    numbers = random.Random(1).sample(range(count), 1000)
    keyed.append_many([rlog.Item(b"w", b"%d" % number) for number in numbers])
    moved = {number: count + at for at, number in enumerate(numbers)}
    expected = sorted(moved.get(number, number) for number in range(count))
    assert [record.offset for record in keyed.table()] == expected


def test_few_keys_in_much_are_sought_and_not_read_over(client: rlog.Client, log: rlog.Log) -> None:
    keyed = client.log(f"{log.name}-k", create=True, key_index=True, file_roll_size=4 << 20)
    for number in range(64):
        key = b"%d" % (number // 8) if number % 8 == 0 else b"other"
        keyed.append(bytes(500_000), key=key)
    table = keyed.table()
    assert [record.offset for record in table] == [*range(0, 64, 8), 63]


def test_a_table_outlives_its_connection(
    own_proxy: Proxy, keyed: rlog.Log, writer: Writer, server: Server
) -> None:
    eventually(lambda: len(writer.made) > 3000, "there is something")
    with rlog.connect(own_proxy.url, timeout=30) as client:
        table = client.log(keyed.name).table()
        expected = writer.latest(table.end)
        seen: dict[bytes | None, int] = {}
        lost: list[int] = []
        while True:
            try:
                record = next(table)
            except StopIteration:
                break
            except rlog.Gap as gap:
                lost += range(gap.first, gap.end)
                continue
            seen[record.key] = record.offset
            if len(seen) == 5:
                own_proxy.cut()
    # What it holds is not kept for it any more: it is there, or it is said.
    for key, offset in expected.items():
        assert seen.get(key) == offset or offset in lost


@pytest.fixture
def own_proxy(server: Server) -> Iterator[Proxy]:
    proxy = Proxy(server.tcp)
    yield proxy
    proxy.close()


def test_an_interrupt_in_the_midst_of_reading_loses_nothing(
    keyed: rlog.Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    keyed.append_many([rlog.Item(b"v", b"%d" % number) for number in range(4)])
    chosen = TableSteps._chosen

    def interrupted(self: TableSteps, run: Iterator[rlog.Record]) -> Any:
        chosen(self, run)
        raise KeyboardInterrupt

    table = keyed.table()
    with monkeypatch.context() as patch:
        patch.setattr(TableSteps, "_chosen", interrupted)
        with pytest.raises(KeyboardInterrupt):
            next(table)
    assert [record.offset for record in table] == [0, 1, 2, 3]


def test_what_a_client_that_is_gone_was_reading_is_compacted(
    own_proxy: Proxy, client: rlog.Client, log: rlog.Log
) -> None:
    small = client.log(
        f"{log.name}-small", create=True, key_index=True, compact=True, file_roll_size=4096
    )
    items = [rlog.Item(bytes(900), b"%d" % number) for number in range(4)]
    small.append_many(items)
    with rlog.connect(own_proxy.url, timeout=1) as gone:
        table = gone.log(small.name).table()
        assert next(table).offset == 0
        own_proxy.close()
        for _ in range(2):
            small.append_many(items)
        kept = small.reader(rlog.OLDEST, block=False)
        eventually(lambda: kept.seek(rlog.OLDEST) == 0 and next(kept).offset >= 4, "compacted", 15)


def test_more_tables_than_are_kept_are_read_all_the_same(keyed: rlog.Log, writer: Writer) -> None:
    eventually(lambda: len(writer.made) > 1000, "there is something")
    tables = [keyed.table() for _ in range(TABLES_MAX + 5)]
    expected = [writer.latest(table.end) for table in tables]
    for table, latest in list(zip(tables, expected, strict=True))[5:]:
        assert {record.key: record.offset for record in table} == latest
    for table in tables:
        table.close()
        with pytest.raises(RuntimeError):
            next(table)


def test_damage_is_told_once_and_only_where_it_matters(make_server: Callable[..., Server]) -> None:
    server = make_server().start()
    with server.connect() as client:
        log = client.log("l", create=True, key_index=True)
        for key in (b"a", b"b", b"c", b"b", b"d"):
            log.append(bytes(5000), key=key)
        size = log.info().bytes // 5
    server.stop()
    (segment,) = (server.data_dir / "logs" / "1").iterdir()
    raw = bytearray(segment.read_bytes())
    for batch in (1, 2):  # b's first is superseded, and c's is not
        raw[batch * size + 2000] ^= 1
    segment.write_bytes(raw)
    server.start()
    with server.connect() as client:
        log = client.log("l")
        table = log.table()
        assert next(table).key == b"a"
        with pytest.raises(rlog.CorruptData) as damage:
            next(table)
        assert (damage.value.first, damage.value.end) == (2, 3)
        assert [record.key for record in table] == [b"b", b"d"]
        with pytest.raises(rlog.CorruptData):
            log.latest(b"c")
        assert (log.latest(b"b") or pytest.fail("none")).offset == 3


@pytest.mark.parametrize("shared", [False, True])
def test_what_a_handler_parks_was_not_compacted_since_it_was_sent(
    server: Server, client: rlog.Client, keyed: rlog.Log, shared: bool
) -> None:
    keys = [b"%d" % number for number in range(40)]
    keyed.append_many([rlog.Item(b"old", key) for key in keys])
    keyed.append(bytes(ROLL))
    with server.connect() as other, keyed.consumer("c", block=False, shared=shared) as consumer:
        log = other.log(keyed.name)

        def handle(record: rlog.Record) -> rlog.Verdict | None:
            if record.offset == 0:
                log.append_many([rlog.Item(b"new", key) for key in keys])
                log.append_many([rlog.Item(b"hot", b"hot")] * 60)
                log.append(bytes(ROLL))
                # What nobody was sent goes meanwhile: so the compactor was there.
                eventually(lambda: absent(log) == 59, "it is compacted")
            return rlog.PARK if record.value == b"old" else None

        consumer.process(handle, limit=40, in_flight=5)
        parked = keyed.cursor("c").parked()
    assert [(each.record.offset, each.record.value) for each in parked] == [
        (offset, b"old") for offset in range(40)
    ]


@pytest.mark.patience(180)
def test_killed_again_and_again_while_it_compacts_nothing_latest_is_lost(
    make_server: Callable[..., Server],
) -> None:
    server = make_server("--journal-file-bytes", str(1 << 20)).start()
    rng = random.Random(5)
    made: list[bytes] = []
    generations = 0
    for life in range(8):
        with server.connect() as client:
            log = client.log("l", create=True, key_index=True, compact=True, file_roll_size=ROLL)
            for _ in range(60):
                keys = [b"%d" % rng.randrange(200) for _ in range(rng.randrange(1, 80))]
                assert log.append_many(
                    [rlog.Item(rng.randbytes(60), key) for key in keys]
                ).first == len(made)
                made += keys
            if life == 1:
                eventually(partial(has_absent, log), "it compacts", 60)
            if life % 2:
                time.sleep(rng.random() * 1.5)
        server.kill()
        server.start()
        with server.connect() as client:
            log = client.log("l")
            latest = {key: at for at, key in enumerate(made)}
            assert {r.key: r.offset for r in log.reader(rlog.OLDEST, block=False)} == latest
            assert {r.key: r.offset for r in log.table()} == latest
            generations += absent(log) > 0
        assert "quarantine" not in server.text
    assert generations > 2

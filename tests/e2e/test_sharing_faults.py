"""Members of shared consumers, and what befalls them: lost answers, poison, disks, Ctrl-C."""

from __future__ import annotations

import contextlib
import random
import signal
import threading
import time
from collections import defaultdict
from typing import TYPE_CHECKING

import anyio
import anyio.lowlevel
import pytest

import rlog_client as rlog

from . import member
from .proxy import Proxy
from .serving import Server, eventually
from .test_interrupts import Interrupted, interrupted

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["interrupted"]

QUICK = rlog.Backoff(first=0.01, cap=0.05, max_attempts=3, pause_after=None)


@pytest.fixture
def proxy(server: Server) -> Iterator[Proxy]:
    proxy = Proxy(server.tcp)
    yield proxy
    proxy.close()


# --- connections ----------------------------------------------------------------------------

KEYS = [b"a", b"b", b"a", None, b"b", b"a"]


class Handled:
    """What was handled, by one member alone."""

    def __init__(self) -> None:
        self.calls: list[tuple[int, int]] = []

    def __call__(self, record: rlog.Record) -> rlog.Verdict | None:
        self.calls.append((record.offset, record.attempt))
        if record.offset == 2 and record.attempt == 1:
            return rlog.Retry(0.01)
        return rlog.PARK if record.offset == 4 else None

    def check(self) -> None:
        """Each once, in order per key: as long as nobody else wants it, a member keeps what it has
        in hand.
        """
        once = [(offset, 1) for offset in range(len(KEYS))]
        assert sorted(self.calls) == sorted([*once, (2, 2)])
        order = [offset for offset, _ in self.calls]
        for key in (b"a", b"b"):
            mine = [offset for offset in order if KEYS[offset] == key]
            assert mine == sorted(mine)


def process_blocking(url: str, log: str, handled: Handled, in_flight: int) -> None:
    with (
        rlog.connect(url) as client,
        client.log(log).consumer("c", shared=True, block=False) as consumer,
    ):
        consumer.process(handled, in_flight=in_flight)


def iterate_blocking(url: str, log: str, handled: Handled, _in_flight: int) -> None:
    with rlog.connect(url) as client, client.log(log).consumer("c", shared=True) as consumer:
        for record in consumer:
            consumer.settle(record, handled(record) or rlog.COMMIT)
            if len(handled.calls) == len(KEYS) + 1:
                break


async def process_async(url: str, log: str, handled: Handled, in_flight: int) -> None:
    async def handle(record: rlog.Record) -> rlog.Verdict | None:
        await anyio.lowlevel.checkpoint()
        return handled(record)

    async with (
        rlog.connect_async(url) as client,
        (await client.log(log)).consumer("c", shared=True, block=False) as consumer,
    ):
        await consumer.process(handle, in_flight=in_flight)


async def iterate_async(url: str, log: str, handled: Handled, _in_flight: int) -> None:
    async with (
        rlog.connect_async(url) as client,
        (await client.log(log)).consumer("c", shared=True) as consumer,
    ):
        async for record in consumer:
            await consumer.settle(record, handled(record) or rlog.COMMIT)
            if len(handled.calls) == len(KEYS) + 1:
                break


WAYS: dict[str, Callable[[str, str, Handled, int], None]] = {
    "process": process_blocking,
    "iterate": iterate_blocking,
    "process on trio": lambda *a: anyio.run(process_async, *a, backend="trio"),
    "process on asyncio": lambda *a: anyio.run(process_async, *a, backend="asyncio"),
    "iterate on trio": lambda *a: anyio.run(iterate_async, *a, backend="trio"),
}


@pytest.mark.patience(300)
@pytest.mark.parametrize(
    ("way", "in_flight"),
    [(way, count) for way in WAYS for count in ([1] if "iterate" in way else [1, 4])],
)
@pytest.mark.parametrize("fate", ["the question is lost", "the answer is lost"])
def test_a_connection_cut_at_any_request_costs_nothing(
    client: rlog.Client,
    proxy: Proxy,
    log: rlog.Log,
    way: str,
    fate: str,
    in_flight: int,
    long: bool,
) -> None:
    # (The first is the greeting, and no request.) Each in a long run, else every third.
    first = 2 + (0 if long else list(WAYS).index(way) % 3)
    for fuse in range(first, 90, 1 if long else 3):
        each = client.log(f"{log.name}.{fuse}", create=True)
        each.append_many([rlog.Item(b"%d" % n, key=key) for n, key in enumerate(KEYS)])
        handled = Handled()
        proxy.burn(fuse, arrives=fate == "the answer is lost")
        WAYS[way](proxy.url, each.name, handled, in_flight)
        handled.check()
        info = each.cursor("c").info()
        assert (info.committed, info.parked) == (len(KEYS), 1)
        each.delete()
        if proxy.burns:
            assert fuse > 7, "next to nothing was cut"
            return
    raise AssertionError("it never came to its end without a cut")


@pytest.mark.parametrize("seed", range(3))
def test_of_two_one_is_cut_off_again_and_again_and_all_is_handled_in_order_per_key(
    server: Server, proxy: Proxy, log: rlog.Log, seed: int
) -> None:
    """The one that is cut off may still handle what the other has by then: once more, and never
    too early.
    """
    chance = random.Random(seed)
    keys = [b"k%d" % chance.randrange(20) for _ in range(2000)]
    log.append_many([rlog.Item(b"%d" % n, key=key) for n, key in enumerate(keys)])
    lock, done = threading.Lock(), list[int]()
    before = {o: max((p for p in range(o) if keys[p] == keys[o]), default=-1) for o in range(2000)}
    failures: list[str] = []

    def handle(record: rlog.Record) -> None:
        with lock:
            if before[record.offset] >= 0 and before[record.offset] not in done:
                failures.append(f"{record.offset} before {before[record.offset]}")
        time.sleep(0.0005)
        with lock:
            done.append(record.offset)

    def work(url: str, in_flight: int) -> None:
        with (
            rlog.connect(url, timeout=None) as client,
            client.log(log.name).consumer("c", shared=True) as consumer,
        ):
            sources.append(consumer)
            consumer.process(handle, in_flight=in_flight)

    sources: list[rlog.Consumer] = []
    threads = [
        threading.Thread(target=work, args=(server.unix, 8)),
        threading.Thread(target=work, args=(proxy.url, 8)),
    ]
    for thread in threads:
        thread.start()
    cursor = log.cursor("c")
    eventually(lambda: len(sources) == 2, "both are there")
    deadline = time.monotonic() + 60
    while cursor.info().lag_records:
        time.sleep(chance.random() * 0.1)
        if chance.random() < 0.5:
            proxy.swallow()
            time.sleep(chance.random() * 0.05)
        proxy.cut()
        assert time.monotonic() < deadline, cursor.info()
    for source in sources:
        source.stop()
    for thread in threads:
        thread.join(30)
        assert not thread.is_alive()
    assert failures == []
    assert set(done) == set(range(2000))


# --- members that vanish --------------------------------------------------------------------


@pytest.mark.parametrize("in_flight", [1, 64])
@pytest.mark.parametrize("death", ["exit", "kill"])
def test_a_record_that_kills_its_member_is_found_and_parked_and_no_innocent_one_with_it(
    server: Server, log: rlog.Log, death: str, in_flight: int
) -> None:
    log.append_many([rlog.Item(b"%d" % i, key=b"%d" % (i % 40)) for i in range(120)])
    deaths, called = 0, []
    while deaths < 20:
        code, calls = member.run(
            server.unix, log.name, poison=[57], death=death, in_flight=in_flight, max_attempts=3,
            shared=True,
        )  # fmt: skip
        called += calls
        if code == 0:
            break
        deaths += 1
    # Among many in hand the first death only says that it was one of them.
    assert deaths == (3 if in_flight == 1 else 4)
    cursor = log.cursor("c")
    assert cursor.info().committed == 120
    [parked] = cursor.parked()
    assert (parked.record.offset, parked.attempts) == (57, 3)
    assert "vanished" in parked.error
    assert {offset for offset, _attempt in called} == set(range(120))
    assert all(attempt == 1 for offset, attempt in called if offset != 57)


def test_two_that_kill_are_both_found(server: Server, log: rlog.Log) -> None:
    log.append_many([b"%d" % i for i in range(30)])
    for _ in range(20):
        code, calls = member.run(
            server.unix, log.name, poison=[10, 11], death="kill", in_flight=20, max_attempts=2,
            shared=True,
        )  # fmt: skip
        assert all(attempt == 1 for offset, attempt in calls if offset not in (10, 11))
        if code == 0:
            break
    assert [parked.record.offset for parked in log.cursor("c").parked()] == [10, 11]
    assert log.cursor("c").info().committed == 30


def test_who_has_left_process_and_vanishes_costs_nobody_an_attempt(
    server: Server, log: rlog.Log
) -> None:
    log.append_many([b"%d" % i for i in range(50)])
    for _ in range(3):
        member.run(
            server.unix, log.name, poison=[20], death="return", in_flight=8, max_attempts=1,
            shared=True,
        )  # fmt: skip
    with log.consumer("c", shared=True) as consumer:
        assert {record.attempt for record in consumer.poll(50, timeout=10.0)} == {1}


def test_one_member_is_evicted_by_its_name_and_no_other(
    client: rlog.Client, other: rlog.Client, log: rlog.Log
) -> None:
    log.append_many([b"1", b"2"])
    with (
        log.consumer("c", shared=True) as first,
        other.log(log.name).consumer("c", shared=True) as second,
    ):
        [mine], [theirs] = first.poll(1, timeout=10), second.poll(1, timeout=10)
        log.cursor("c").evict("second")
        assert [each.name for each in log.cursor("c").info().members] == ["first"]
        with pytest.raises(rlog.Fenced):
            second.commit(theirs)
        first.commit(mine)
        [theirs] = first.poll(1, timeout=10)
        assert theirs.attempt == 1


# --- disks ----------------------------------------------------------------------------------


def test_after_a_failed_sync_members_are_told_and_nothing_is_lost(
    make_server: Callable[..., Server],
) -> None:
    server = make_server().start("--kill", "sync:journal:EIO:1")
    handled: list[int] = []

    def handle(record: rlog.Record) -> None:
        if len(handled) == 40:
            server.signal(signal.SIGUSR1)
        handled.append(record.offset)

    with server.connect() as client:
        log = client.log("l", create=True)
        log.append_many([rlog.Item(b"%d" % n, key=b"%d" % (n % 5)) for n in range(100)])
        with (
            contextlib.suppress(rlog.RlogError),
            log.consumer("c", shared=True) as consumer,
            pytest.raises((rlog.StorageFailed, rlog.OutcomeUnknown)),
        ):
            consumer.process(handle, in_flight=4)
    server.stop()
    server.start()
    with server.connect() as client:
        log = client.log("l")
        with log.consumer("c", shared=True, block=False) as consumer:
            consumer.process(lambda record: handled.append(record.offset), in_flight=4)
        assert log.cursor("c").info().committed == 100
    assert set(handled) == set(range(100))


def test_a_full_disk_refuses_appends_and_members_go_on(make_server: Callable[..., Server]) -> None:
    server = make_server().start("--kill", "allocate:logs:ENOSPC:1")
    with server.connect() as client, server.connect() as other:
        log = client.log("l", create=True)
        # Larger than a file is to be: so nothing more is asked for, and then less.
        other.log("m", create=True, file_roll_size=4096)
        log.append_many([rlog.Item(b"%d" % n, key=b"%d" % (n % 5)) for n in range(100)])

        def handle(record: rlog.Record) -> None:
            if record.offset == 50:
                server.signal(signal.SIGUSR1)
                time.sleep(0.1)
                with pytest.raises(rlog.DiskFull):
                    other.log("m").append(bytes(5000))

        with log.consumer("c", shared=True, block=False) as consumer:
            assert consumer.process(handle, in_flight=4) == 100
        assert log.cursor("c").info().committed == 100


# --- Ctrl-C ---------------------------------------------------------------------------------


# (Python prints and drops what is raised while a weak reference is called back.)
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_hundred_interrupts_of_a_member_leave_no_record_out_and_cost_no_attempt(
    server: Server, log: rlog.Log, interrupted: Interrupted
) -> None:
    count = 6000
    log.append_many([rlog.Item(b"%d" % i, key=b"%d" % (i % 17)) for i in range(count)])
    client = server.connect(timeout=None)  # so that an answer that was dropped is seen
    consumer = client.log(log.name).consumer("c", block=False, shared=True)
    following: dict[bytes | None, int] = defaultdict(int)
    reconnects = 0

    def handler(record: rlog.Record) -> None:
        # Handled twice is what an interrupt may cost; left out is what it may not.
        place = record.offset // 17
        assert place <= following[record.key], f"{record.offset} came too early"
        assert record.attempt == 1
        following[record.key] = max(following[record.key], place + 1)

    def work() -> None:
        consumer.process(handler, limit=50, in_flight=8)

    for number in range(100):
        try:
            interrupted(0.001 + 0.0003 * (number % 20), work)
        except rlog.ConnectionLost:
            # Interrupted at a bad moment, the connection is given up rather than guessed at.
            reconnects += 1
            client.close()
            client = server.connect(timeout=None)
            consumer = client.log(log.name).consumer("c", block=False, shared=True)
    assert reconnects < 50
    client.close()
    with log.consumer("c", block=False, shared=True) as consumer:
        consumer.process(handler, in_flight=64)
    assert sum(following.values()) == count
    assert log.cursor("c").info().committed == count

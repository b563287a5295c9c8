"""How much memory does the server take: idle, under heavy load, and for each idle consumer?

An idle consumer has a durable cursor, a claim and a subscription, stands at the end of its log and
waits there in `async for`. Either each has a connection of its own, or a thousand share one. What
it costs is the difference that all of them make to the server, by their number: to its resident
memory (RSS), and to that without what it shares with others (PSS). Each row has a fresh server,
which has served one consumer before. The clients are processes of their own, and wait in them.

Heavy is: two producers, of 100 B and of 64 KiB, and two readers of what they append, all as fast as
they can, for some seconds. `highest` is the kernel's own mark (VmHWM).
"""

from __future__ import annotations

import contextlib
import resource
import time
from contextlib import AsyncExitStack
from functools import partial
from typing import TYPE_CHECKING, Final

import anyio

import rlog_client as rlog

from .crowd import Crowd, Gate
from .harness import Bench, Case, Goal, values
from .machine import MIB, memory
from .server import Server

if TYPE_CHECKING:
    from collections.abc import Sequence

KIB: Final = 1024
SHARE: Final = 1000  # consumers on one connection: a server takes 1,024 subscriptions on each
CONNECTING: Final = 8  # connections that are being made at once, by each process
PROCESSES: Final = 4  # of clients
FILES: Final = 1 << 16
SIZES: Final = (100, 65536)  # bytes of a record, of heavy load
TIMEOUT: Final = 120.0


def allow_files() -> None:
    """As many connections as there are consumers, if the system lets us."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, FILES), max(hard, FILES)))
        return
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


async def wait_for_ever(url: str, connections: Sequence[Sequence[str]], gate: Gate) -> None:
    """``connections``: of each the IDs of its consumers."""
    connecting = anyio.Semaphore(CONNECTING)
    left = len(connections)
    all_wait = anyio.Event()
    if not left:
        all_wait.set()

    async def consume(log: rlog.AsyncLog, consumer_id: str, waits: anyio.Semaphore) -> None:
        async with log.consumer(consumer_id) as consumer:
            assert not await consumer.poll(timeout=0)
            waits.release()
            async for record in consumer:
                raise AssertionError(f"nothing is appended, but {record}")

    async def connect(consumer_ids: Sequence[str]) -> None:
        nonlocal left
        waits = anyio.Semaphore(0)
        async with AsyncExitStack() as stack:
            # Few at once: a loop that is busy with thousands says no hello in time.
            async with connecting:
                client = rlog.connect_async(url, timeout=TIMEOUT)
                await stack.enter_async_context(client)
                log = await client.log("bench")
                group = await stack.enter_async_context(anyio.create_task_group())
                for consumer_id in consumer_ids:
                    group.start_soon(consume, log, consumer_id, waits)
                for _ in consumer_ids:
                    await waits.acquire()
            left -= 1
            if not left:
                all_wait.set()

    async with anyio.create_task_group() as group:
        for consumer_ids in connections:
            group.start_soon(connect, consumer_ids)
        await all_wait.wait()
        gate.ready()
        await anyio.sleep_forever()


def idle_consumers(bench: Bench, consumers: int, each: int) -> list[float]:
    """KiB of the server's memory for each of ``consumers``, ``each`` of them on one connection."""

    def work(number: int, gate: Gate) -> None:
        ids = [f"bench-{n}" for n in range(consumers)]
        connections = [ids[at : at + each] for at in range(0, consumers, each)]
        anyio.run(wait_for_ever, server.url, connections[number::PROCESSES], gate)

    name = f"data-{consumers}-{each}-{time.monotonic_ns()}"
    with Server(bench.directory(name)) as server:
        with (
            rlog.connect(server.url) as client,
            client.log("bench", create=True).consumer("first", block=False) as consumer,
        ):
            assert not list(consumer)
        before = memory(server.pid)
        with Crowd(work, PROCESSES) as crowd:
            crowd.go()
            time.sleep(0.5)  # for the server to be idle, too
            after = memory(server.pid)
    return [
        (after.rss - before.rss) / consumers / KIB,
        (after.pss - before.pss) / consumers / KIB,
    ]


def whole_server(bench: Bench, seconds: float) -> list[float]:
    """MiB: just started, and under and after heavy load."""

    def work(number: int, gate: Gate) -> None:
        size = SIZES[number % 2]
        column = values(size, min(10_000, 16 * MIB // size))
        with rlog.connect(server.url, timeout=TIMEOUT) as client:
            log = client.log(f"bench-{size}", create=True, max_total_bytes=256 * MIB)
            gate.ready()
            over = time.monotonic() + seconds
            if number < 2:
                with log.producer() as producer:
                    while time.monotonic() < over:
                        producer.extend(column)
                return
            with log.reader(rlog.OLDEST, on_out_of_range="oldest") as reader:
                while time.monotonic() < over:
                    reader.poll(10_000, timeout=0.1)

    with Server(bench.directory(f"heavy-{time.monotonic_ns()}")) as server:
        fresh = memory(server.pid)
        with Crowd(work, 4) as crowd:
            crowd.go()
            crowd.results()
        after = memory(server.pid)
    return [size / MIB for size in (fresh.rss, fresh.pss, after.highest, after.rss)]


def main() -> None:
    question = "How much memory does the server take: idle, under heavy load, by idle consumer?"
    options = (
        ("consumers", 10_000, "the larger number of idle ones; the smaller is a tenth"),
        ("seconds", 4.0, "of heavy load"),
    )
    allow_files()
    with Bench(question, 3, *options) as bench:
        seconds, many = bench.options.seconds, bench.options.consumers
        rows = {
            "just started, RSS": Goal(45, at_most=True),
            "just started, PSS": None,
            "heavy load, highest RSS": Goal(128, at_most=True),
            "after heavy load, RSS": None,
        }
        bench.run("the server", "MiB", [Case(rows, partial(whole_server, bench, seconds))])
        cases = []
        for consumers in (many // 10, many):
            for each in (1, min(SHARE, consumers)):
                where = "a connection each" if each == 1 else f"{each:,} on a connection"
                name = f"{consumers:,} idle consumers, {where}"
                rows = {f"{name}, RSS": Goal(8, at_most=True), f"{name}, PSS": None}
                cases.append(Case(rows, partial(idle_consumers, bench, consumers, each)))
        bench.run("an idle consumer, on the server", "KiB", cases)


if __name__ == "__main__":
    main()

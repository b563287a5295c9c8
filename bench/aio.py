"""How many records a second does the async client append and consume, on asyncio and on trio?"""

from __future__ import annotations

import time
from functools import partial
from typing import TYPE_CHECKING, Final

import anyio

import rlog_client as rlog

from .harness import Bench, case, fill, values
from .machine import MIB
from .server import Server

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    Work = Callable[[rlog.AsyncClient], Awaitable[float]]

SIZE: Final = 100  # bytes of a value
COMMIT_EVERY: Final = 10_000
BACKENDS: Final = ("asyncio", "trio")


async def send(count: int, client: rlog.AsyncClient) -> float:
    log = await client.log("bench-send", create=True)
    column = values(SIZE)
    async with log.producer() as producer:
        began = time.perf_counter()
        for number in range(count):
            await producer.send(column[number % len(column)])
        await producer.flush()
        seconds = time.perf_counter() - began
    await log.delete()
    return count / seconds


async def append(tasks: int, count: int, client: rlog.AsyncClient) -> float:
    log = await client.log("bench-append", create=True)
    value = bytes(SIZE)

    async def appender() -> None:
        for _ in range(count // tasks):
            await log.append(value)

    for _ in range(tasks):  # so that what runs is warm
        await log.append(value)
    began = time.perf_counter()
    async with anyio.create_task_group() as group:
        for _ in range(tasks):
            group.start_soon(appender)
    seconds = time.perf_counter() - began
    await log.delete()
    return count // tasks * tasks / seconds


async def read(client: rlog.AsyncClient) -> float:
    log = await client.log("bench")
    count = seen = 0
    began = time.perf_counter()
    async with log.reader(rlog.OLDEST, block=False) as reader:
        async for record in reader:
            count += 1
            seen += len(record.value)
    return count / (time.perf_counter() - began)


async def consume(client: rlog.AsyncClient) -> float:
    log = await client.log("bench")
    count = 0
    began = time.perf_counter()
    async with log.consumer("bench", block=False) as consumer:
        async for record in consumer:
            count += 1
            if record.offset % COMMIT_EVERY == 0:
                await consumer.commit(record, wait=False)
    seconds = time.perf_counter() - began
    await log.cursor("bench").delete()
    return count / seconds


async def process(client: rlog.AsyncClient) -> float:
    log = await client.log("bench")

    async def handler(record: rlog.Record) -> None:
        pass

    began = time.perf_counter()
    async with log.consumer("bench", block=False) as consumer:
        count = await consumer.process(handler, in_flight=1000)
    seconds = time.perf_counter() - began
    await log.cursor("bench").delete()
    return count / seconds


def on(backend: str, url: str, work: Work) -> float:
    async def main() -> float:
        async with rlog.connect_async(url) as client:
            return await work(client)

    return anyio.run(main, backend=backend)


def main() -> None:
    question = "How many records a second does the async client append and consume?"
    options = (
        ("mib", 96, "of a case in bulk"),
        ("appends", 8000, "of one task, one after the other; of 100, ten times as many"),
    )
    with Bench(question, 5, *options) as bench, Server(bench.directory()) as server:
        count, appends = bench.options.mib * MIB // SIZE, bench.options.appends
        with rlog.connect(server.url) as client:
            fill(client.log("bench", create=True), SIZE, count)
        works: dict[str, Work] = {
            "send, one task": partial(send, count),
            "append, one task": partial(append, 1, appends),
            "append, 100 tasks": partial(append, 100, 10 * appends),
            "reader": read,
            f"consumer, commit every {COMMIT_EVERY:,}": consume,
            "process, in_flight=1000": process,
        }
        cases = []
        for name, work in works.items():
            for backend in BACKENDS:
                run = partial(on, backend, server.url, work)
                run()  # a first time, so that nothing is cold
                cases.append(case(f"{name}, {backend}", run))
        title = f"{SIZE} B, sync always, one async client, loopback TCP"
        bench.run(title, "records/s", cases)


if __name__ == "__main__":
    main()

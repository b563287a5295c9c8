"""How many records a second does the async client append and consume, on asyncio and on trio?"""

from __future__ import annotations

import time
from functools import partial
from typing import TYPE_CHECKING, Final

import anyio

import rlog_client as rlog

from .harness import MIB, Bench, Case, Server, values

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    Work = Callable[[rlog.AsyncClient], Awaitable[float]]

SIZE: Final = 100  # bytes of a value
BYTES: Final = 64 * MIB  # of a case
APPENDS: Final = 4000
COMMIT_EVERY: Final = 10_000
BACKENDS: Final = ("asyncio", "trio")


async def send(client: rlog.AsyncClient) -> float:
    log = await client.log("bench-send", create=True)
    column = values(SIZE)
    times = BYTES // SIZE // len(column)
    async with log.producer() as producer:
        began = time.perf_counter()
        for _ in range(times):
            for value in column:
                await producer.send(value)
        await producer.flush()
        seconds = time.perf_counter() - began
    await log.delete()
    return times * len(column) / seconds


async def append(tasks: int, client: rlog.AsyncClient) -> float:
    log = await client.log("bench-append", create=True)
    value = bytes(SIZE)

    async def appender() -> None:
        for _ in range(APPENDS // tasks):
            await log.append(value)

    began = time.perf_counter()
    async with anyio.create_task_group() as group:
        for _ in range(tasks):
            group.start_soon(appender)
    seconds = time.perf_counter() - began
    await log.delete()
    return APPENDS / seconds


def fill(url: str) -> None:
    with rlog.connect(url) as client, client.log("bench", create=True).producer() as producer:
        column = values(SIZE)
        for _ in range(BYTES // SIZE // len(column)):
            producer.extend(column)


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


def case(name: str, url: str, backend: str, work: Work) -> Case:
    async def main() -> float:
        async with rlog.connect_async(url) as client:
            return await work(client)

    return Case(f"{name}, {backend}", lambda: anyio.run(main, backend=backend))


def main() -> None:
    question = "How many records a second does the async client append and consume?"
    with Bench(question, 5) as bench, Server(bench.directory()) as server:
        fill(server.url)
        works: dict[str, Work] = {
            "send, one task": send,
            "append, one task": partial(append, 1),
            "append, 100 tasks": partial(append, 100),
            "reader": read,
            f"consumer, commit every {COMMIT_EVERY:,}": consume,
            "process, in_flight=1000": process,
        }
        cases = [
            case(name, server.url, backend, work)
            for name, work in works.items()
            for backend in BACKENDS
        ]
        title = f"{SIZE} B, sync always, one async client, loopback TCP"
        bench.run(title, "records/s", cases)


if __name__ == "__main__":
    main()

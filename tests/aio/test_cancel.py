"""Cancelled in any wait, a caller gives up its answer and nothing else: no message is torn, no
record is lost or counted, and the client goes on. What it has to clean up, it does, in time.
"""

from __future__ import annotations

import asyncio
import gc
import signal
import subprocess
import sys
import time
import types
from typing import TYPE_CHECKING, Any

import anyio
import anyio.lowlevel
import pytest

import rlog_client as rlog
from rlog_client import process as processing

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine, Generator

    from tests.e2e.serving import Server

    Waiting = Callable[[rlog.AsyncLog], Awaitable[object]]

Run = Any  # what the fixture ``run`` gives


async def nothing(record: rlog.Record) -> None:
    pass


async def iterate(log: rlog.AsyncLog) -> None:
    async for _record in log.reader(rlog.LATEST):
        pass


async def iterate_consumer(log: rlog.AsyncLog) -> None:
    async with log.consumer("c", start=rlog.LATEST, autocommit=True) as consumer:
        async for _record in consumer:
            pass


async def following(log: rlog.AsyncLog) -> None:
    await anext(log.reader(rlog.LATEST))


async def poll(log: rlog.AsyncLog) -> None:
    await log.reader(rlog.LATEST).poll(timeout=None)


async def process(log: rlog.AsyncLog) -> None:
    await log.reader(rlog.LATEST).process(nothing)


async def process_consumer(log: rlog.AsyncLog) -> None:
    await log.consumer("c", start=rlog.LATEST).process(nothing)


async def retry(log: rlog.AsyncLog) -> None:
    async def handler(record: rlog.Record) -> rlog.Verdict:
        return rlog.Retry(delay=3600.0)

    await log.append(b"1")
    await log.consumer("c").process(handler)


async def handler(log: rlog.AsyncLog) -> None:
    async def handler(record: rlog.Record) -> None:
        await anyio.sleep_forever()

    await log.append(b"1")
    await log.consumer("c").process(handler)


async def standby(log: rlog.AsyncLog) -> None:
    async with log.consumer("c"), log.consumer("c", standby=True):
        pass


# The server is paused in these: nothing is answered.


async def append(log: rlog.AsyncLog) -> None:
    await log.append(b"1")


async def append_much(log: rlog.AsyncLog) -> None:
    async with anyio.create_task_group() as group:
        for number in range(40):
            group.start_soon(log.append, b"%d" % (number % 10) * 500_000)


async def flush(log: rlog.AsyncLog) -> None:
    producer = log.producer()
    await producer.send(b"1")
    await producer.flush()


async def result(log: rlog.AsyncLog) -> None:
    await (await log.producer().send(b"1"))


async def send(log: rlog.AsyncLog) -> None:
    producer = log.producer(buffer_bytes=100_000)
    while True:
        await producer.send(bytes(1000))


async def info(log: rlog.AsyncLog) -> None:
    await log.info()


async def synced(log: rlog.AsyncLog) -> None:
    await log.wait_synced(0)


async def claim(log: rlog.AsyncLog) -> None:
    async with log.consumer("c"):
        pass


async def place(log: rlog.AsyncLog) -> None:
    async with log.reader(rlog.OLDEST):
        pass


IDLE: list[Waiting] = [
    iterate, iterate_consumer, following, poll, process, process_consumer, retry, handler, standby,
]  # fmt: skip
PAUSED: list[Waiting] = [append, append_much, flush, result, send, info, synced, claim, place]


async def goes_on(log: rlog.AsyncLog) -> None:
    """The connection is as good as before, and so is everything in the log."""
    await anyio.lowlevel.checkpoint()  # up to here the cancellation itself is held by the loop,
    gc.collect()  # and up to here every claim that was not closed
    end = await log.append(b"still of use") + 1
    async with log.reader(rlog.OLDEST, block=False) as reader:
        values = [record.value async for record in reader]
    assert len(values) == end
    assert all(len(set(value)) == 1 for value in values[:-1])
    async with log.consumer("c"):
        pass


@pytest.mark.parametrize("wait", IDLE, ids=lambda wait: wait.__name__)
def test_a_wait_is_cancelled(
    run: Run, server: Server, name: str, wait: Waiting, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        async with rlog.connect_async(server.unix) as client:
            log = await client.log(name, create=True)
            with anyio.move_on_after(0.1) as scope:
                await wait(log)
            assert scope.cancelled_caught
            await goes_on(log)

    run(main)
    assert not [record for record in caplog.records if record.name == "rlog_client"]


@pytest.mark.parametrize("wait", PAUSED, ids=lambda wait: wait.__name__)
def test_a_wait_for_a_server_that_is_silent_is_cancelled(
    run: Run, make_server: Callable[..., Server], wait: Waiting
) -> None:
    async def main() -> None:
        async with rlog.connect_async(server.unix, timeout=1.0) as client:
            log = await client.log("l", create=True)
            server.pause()
            began = time.monotonic()
            try:
                with anyio.move_on_after(0.1) as scope:
                    await wait(log)
                # What is to be cleaned up has the client's timeout, and no more.
                assert scope.cancelled_caught
                assert time.monotonic() - began < 10
            finally:
                server.resume()
            client._transport.timeout = 30.0
            await goes_on(log)
            assert not client._transport._tries, "it is still the first connection"

    server = make_server().start()
    run(main)


def test_a_cancelled_process_releases_and_counts_nothing(
    run: Run, server: Server, name: str
) -> None:
    attempts: list[int] = []

    async def main() -> None:
        async def slow(record: rlog.Record) -> None:
            attempts.append(record.attempt)
            if record.offset == 2:
                await anyio.sleep_forever()

        async def fast(record: rlog.Record) -> None:
            attempts.append(record.attempt)

        async with rlog.connect_async(server.unix) as client, client.clone() as other:
            log = await client.log(name, create=True)
            await log.append_many([b"v"] * 4)
            with anyio.move_on_after(0.2):
                async with log.consumer("c") as consumer:
                    await consumer.process(slow, in_flight=10)
            [info] = await log.cursors()
            assert (info.committed, info.members) == (2, [])
            async with (await other.log(name)).consumer("c", block=False) as consumer:
                with anyio.move_on_after(0.2):
                    await consumer.process(slow)
                assert await consumer.process(fast) == 2
        assert attempts == [1] * 6

    run(main)


@types.coroutine
def abandoned(
    coroutine: Coroutine[Any, Any, object], when: Callable[[], bool]
) -> Generator[Any, Any, None]:
    """It is let go of in a wait, as by a loop that ends: nothing is thrown in but GeneratorExit."""
    trap = coroutine.send(None)
    while not when():
        trap = coroutine.send((yield trap))
    coroutine.close()


def test_accepted_verdicts_of_a_process_that_is_abandoned_are_not_done_and_come_again(
    run: Run, server: Server, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processing, "LOOK_SECONDS", 100.0)  # they wait to be sent together
    stuck: list[int] = []

    async def main() -> None:
        async def copy(record: rlog.Record) -> rlog.Verdict:
            if record.offset == 2 and not stuck:
                stuck.append(record.offset)
                await anyio.sleep_forever()
            return rlog.Commit([(f"{name}-out", record.value)])

        async with rlog.connect_async(server.unix) as client:
            log = await client.log(name, create=True)
            out = await client.log(f"{name}-out", create=True)
            await log.append_many([b"0", b"1", b"2"])
            async with log.consumer("c", block=False) as consumer:
                await abandoned(consumer.process(copy, in_flight=10), lambda: bool(stuck))
                [info] = await log.cursors()
                assert (info.committed, (await out.info()).end) == (0, 0)
                assert await consumer.process(copy, in_flight=10) == 3
            values = [record.value async for record in out.reader(rlog.OLDEST, block=False)]
            assert values == [b"0", b"1", b"2"]

    run(main)


def test_leaving_by_cancellation_flushes_commits_and_releases(
    run: Run, server: Server, name: str
) -> None:
    async def main() -> None:
        async with rlog.connect_async(server.unix) as client:
            log = await client.log(name, create=True)
            with anyio.CancelScope() as scope:
                async with (
                    rlog.connect_async(server.unix) as inner,
                    (await inner.log(name)).producer(linger=100.0) as producer,
                    (await inner.log(name)).consumer("c") as consumer,
                ):
                    await log.append(b"0")
                    [record] = await consumer.poll(timeout=None)
                    await consumer.commit(record, wait=False)
                    for _ in range(10):
                        await producer.send(b"v")
                    scope.cancel()
                    await anyio.sleep_forever()
            assert (await log.info()).end == 11
            [info] = await log.cursors()
            assert (info.committed, info.members) == (1, [])

    run(main)


def test_leaving_by_cancellation_takes_no_longer_than_the_timeout(
    run: Run, make_server: Callable[..., Server]
) -> None:
    async def main() -> None:
        began = time.monotonic()
        with anyio.move_on_after(0.2) as scope:
            async with rlog.connect_async(server.unix, timeout=1.0) as client:
                log = await client.log("l", create=True)
                async with log.consumer("c"), log.producer() as producer:
                    server.pause()
                    await producer.send(b"v")
                    await anyio.sleep_forever()
        assert scope.cancelled_caught
        assert time.monotonic() - began < 10

    server = make_server().start()
    try:
        run(main)
    finally:
        server.resume()


def test_many_that_are_cancelled_tear_nothing(
    run: Run, server: Server, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        async with rlog.connect_async(server.unix) as client:
            log = await client.log(name, create=True)
            done: list[int] = []

            async def append(number: int) -> None:
                with anyio.move_on_after(number % 7 * 0.004):
                    done.append(await log.append(b"%d" % (number % 10) * 300_000))

            async with anyio.create_task_group() as group:
                for number in range(80):
                    group.start_soon(append, number)
            assert len(set(done)) == len(done)
            await goes_on(log)

    run(main)
    assert not [record for record in caplog.records if record.name == "rlog_client"]


def test_the_cancellation_of_asyncio_itself_is_as_good(server: Server, name: str) -> None:
    async def main() -> None:
        async with rlog.connect_async(server.unix) as client:
            log = await client.log(name, create=True)
            for wait in (iterate, poll, iterate_consumer, standby):
                with pytest.raises(TimeoutError):
                    await asyncio.wait_for(wait(log), 0.05)
                with pytest.raises(TimeoutError):
                    async with asyncio.timeout(0.05):
                        await wait(log)
                task = asyncio.ensure_future(wait(log))
                await asyncio.sleep(0.05)
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
            await goes_on(log)

    asyncio.run(main())


INTERRUPTED = """
import sys, anyio
import rlog_client as rlog

async def main():
    async with rlog.connect_async(sys.argv[1]) as client:
        log = await client.log(sys.argv[2], create=True)
        await log.append(b"1")

        async def handler(record):
            print("waiting", flush=True)
            await anyio.sleep_forever()

        async with log.consumer("c") as consumer, log.producer(linger=100.0) as producer:
            await producer.send(b"2")
            await consumer.process(handler)

anyio.run(main, backend=sys.argv[3])
"""


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_ctrl_c_flushes_and_releases_and_counts_nothing(
    server: Server, name: str, backend: str
) -> None:
    command = [sys.executable, "-c", INTERRUPTED, server.unix, name, backend]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"waiting\n"
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=60)
    assert b"KeyboardInterrupt" in said
    assert b"Group" not in said
    with server.connect() as client:
        log = client.log(name)
        assert log.info().end == 2
        assert [record.attempt for record in log.consumer("c").poll()] == [1, 1]

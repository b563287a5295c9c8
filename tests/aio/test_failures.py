"""Servers that die, come back, are silent, or say nonsense."""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING, Any

import anyio
import pytest

import rlog_client as rlog
from rlog_client.protocol import Append, CommitCursor, GetLog

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.client.peer import Peer
    from tests.e2e.serving import Server

Run = Any  # what the fixture ``run`` gives


def said(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.levelname for record in caplog.records if record.name == "rlog_client"]


def test_all_goes_on_when_the_server_is_killed_and_started_again(
    run: Run, make_server: Callable[..., Server], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "rlog_client")
    tasks, each = 10, 40
    server = make_server().start()
    handled: list[bytes] = []

    async def main() -> None:
        async with rlog.connect_async(server.unix, timeout=60.0) as client:
            log = await client.log("l", create=True)
            offsets: list[int] = []

            async def append(task: int) -> None:
                for number in range(each):
                    offsets.append(await log.append(b"%d %d" % (task, number)))
                    await anyio.sleep(0.002)

            async def send() -> None:
                async with log.producer() as producer:
                    for number in range(each):
                        await producer.send(b"sent %d" % number)
                        await anyio.sleep(0.002)

            async def handle(record: rlog.Record) -> None:
                handled.append(record.value)

            async def consume() -> None:
                async with log.consumer("c") as consumer:
                    await consumer.process(handle, limit=(tasks + 1) * each)
                    assert consumer.committed == (tasks + 1) * each

            async with anyio.create_task_group() as group:
                for task in range(tasks):
                    group.start_soon(append, task)
                group.start_soon(send)
                group.start_soon(consume)
                await anyio.sleep(0.05)
                server.kill()
                await anyio.sleep(0.1)
                await anyio.to_thread.run_sync(server.start)
            assert len(set(offsets)) == tasks * each
            assert (await log.info()).end == (tasks + 1) * each

    run(main)
    assert len(set(handled)) == (tasks + 1) * each
    assert said(caplog) == ["WARNING", "INFO"]


def test_a_request_ends_with_the_timeout_when_the_server_is_gone(
    run: Run, make_server: Callable[..., Server]
) -> None:
    server = make_server().start()

    async def main() -> None:
        async with rlog.connect_async(server.unix, timeout=0.5) as client:
            log = await client.log("l", create=True)
            reader = log.reader(rlog.OLDEST)
            assert await reader.poll() == []
            server.kill()
            began = time.monotonic()
            with pytest.raises(rlog.ConnectionLost):
                await log.info()
            with pytest.raises((rlog.OutcomeUnknown, rlog.ConnectionLost)):
                await log.append(b"v")
            assert 0.5 < time.monotonic() - began < 10
            # Waiting for records is no request: it outlives all of it.
            async with anyio.create_task_group() as group:
                group.start_soon(lambda: reader.poll(timeout=None))
                await anyio.sleep(0.2)
                reader.stop()

    run(main)


def test_a_server_that_is_silent_is_timed_out(run: Run, peer: Peer) -> None:
    peer.refuse = lambda control: "silence" if isinstance(control, GetLog | Append) else None

    async def main() -> None:
        async with rlog.connect_async(peer.url, timeout=0.3) as client:
            log = await client.log("l")
            with pytest.raises(rlog.TimedOut):
                await log.info()
            with pytest.raises(rlog.OutcomeUnknown):
                await log.append(b"v")
            producer = log.producer()
            pending = await producer.send(b"v")
            with pytest.raises(rlog.TimedOut):
                await pending.result(0.05)
            assert not pending.done()
            with pytest.raises(rlog.OutcomeUnknown):
                await producer.flush()
            with pytest.raises(rlog.OutcomeUnknown):
                await pending

    run(main)


def test_what_was_sent_and_not_acknowledged_is_raised_at_the_end(run: Run, peer: Peer) -> None:
    peer.refuse = lambda control: rlog.DiskFull("full") if isinstance(control, Append) else None

    async def leave(producer: rlog.AsyncProducer, error: Exception | None) -> None:
        async with producer:
            await producer.send(b"v")
            if error is not None:
                raise error

    async def main() -> None:
        async with rlog.connect_async(peer.url, timeout=5.0) as client:
            log = await client.log("l")
            with pytest.raises(rlog.DiskFull):
                await leave(log.producer(), None)
            with pytest.raises(KeyError):
                await leave(log.producer(), KeyError())
        with pytest.raises(rlog.DiskFull):
            async with rlog.connect_async(peer.url, timeout=5.0) as client:
                await (await client.log("l")).producer().send(b"v")

    run(main)


def test_an_error_of_a_commit_that_nobody_waits_for_comes_with_the_next(
    run: Run, peer: Peer
) -> None:
    peer.refuse = lambda control: (
        rlog.StorageFailed("no") if isinstance(control, CommitCursor) else None
    )
    peer.append(b"0", b"1")

    async def main() -> None:
        async with rlog.connect_async(peer.url, timeout=5.0) as client:
            consumer = (await client.log("l")).consumer("c")
            [first, _second] = await consumer.poll(timeout=None)
            await consumer.commit(first, wait=False)
            await anyio.sleep(0.1)
            with pytest.raises(rlog.StorageFailed):
                await consumer.poll()

    run(main)


def test_leaving_does_not_wait_for_a_server_that_is_gone(
    run: Run, make_server: Callable[..., Server]
) -> None:
    server = make_server().start()

    async def main() -> None:
        began = time.monotonic()
        async with rlog.connect_async(server.unix, timeout=60.0) as client:
            log = await client.log("l", create=True)
            async with log.consumer("c") as consumer, log.reader(rlog.OLDEST):
                await consumer.poll()
                server.kill()
                await anyio.sleep(0.1)
        assert time.monotonic() - began < 30

    run(main)

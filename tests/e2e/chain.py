"""A stage of a chain, in a process of its own: what comes out of one log goes into the next.

    python -m tests.e2e.chain URL IN OUT WAY

WAY is how a record is committed together with what became of it: ``process:N`` (a verdict, with N
in flight), ``settle``, ``transaction``, or ``async``. It runs until it is killed.
"""

from __future__ import annotations

import sys
import time
from typing import Final

import anyio
from anyio.lowlevel import checkpoint

import rlog_client as rlog

WAYS: Final = ("process:1", "process:50", "settle", "transaction", "async")
CONSUMER: Final = "chain"
TIMEOUT_SECONDS: Final = 3.0
AWAY: Final = (rlog.ConnectionLost, rlog.OutcomeUnknown, rlog.TimedOut)


def transformed(value: bytes, log: str) -> bytes:
    return b"%s>%s" % (value, log.encode())


class Stage:
    def __init__(self, source: str, target: str) -> None:
        self.source = source
        self.target = target

    def transform(self, record: rlog.Record) -> rlog.Verdict:
        return rlog.Commit(appends=[(self.target, transformed(record.value, self.target))])

    async def transform_async(self, record: rlog.Record) -> rlog.Verdict:
        await checkpoint()
        return self.transform(record)

    def run(self, client: rlog.Client, way: str) -> None:
        with client.log(self.source).consumer(CONSUMER, takeover=True) as consumer:
            while True:
                try:
                    self._work(client, consumer, way)
                except AWAY as error:
                    # Whatever became of the last one: the consumer finds out where it stands.
                    print("goes on after", repr(error), flush=True)

    def _work(self, client: rlog.Client, consumer: rlog.Consumer, way: str) -> None:
        kind, _, count = way.partition(":")
        if kind == "process":
            consumer.process(self.transform, in_flight=int(count))
            return
        # What was handed out and not committed comes again.
        consumer.seek(rlog.offset(consumer.committed))
        if kind == "settle":
            for record in consumer:
                consumer.settle(record, self.transform(record))
        while True:
            for record in consumer.poll(20, timeout=1.0):
                with client.transaction() as transaction:
                    transaction.append(self.target, transformed(record.value, self.target))
                    transaction.commit(consumer, record)

    async def run_async(self, url: str) -> None:
        async with rlog.connect_async(url, timeout=TIMEOUT_SECONDS) as client:
            log = await client.log(self.source)
            async with log.consumer(CONSUMER, takeover=True) as consumer:
                while True:
                    try:
                        await consumer.process(self.transform_async, in_flight=8)
                    except AWAY as error:
                        print("goes on after", repr(error), flush=True)


def main() -> None:
    url, source, target, way = sys.argv[1:]
    stage = Stage(source, target)
    while True:
        try:
            if way == "async":
                anyio.run(stage.run_async, url)
            else:
                with rlog.connect(url, timeout=TIMEOUT_SECONDS) as client:
                    stage.run(client, way)
        except AWAY as error:
            print("begins anew after", repr(error), flush=True)
            time.sleep(0.05)


if __name__ == "__main__":
    main()

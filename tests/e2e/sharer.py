"""A member of a shared consumer in a process of its own, which writes down what it does.

    python -m tests.e2e.sharer URL LOG FILE '{"kind": "blocking", "in_flight": 4, "seed": 1, ...}'

``kind``: blocking, iterate, trio or asyncio. It goes on until SIGTERM, which ends it in order. What
a handler does comes from ``seed``. FILE: see ``hands``.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import random
import signal
import sys
import time
from typing import TYPE_CHECKING, Any, NoReturn

import anyio

import rlog_client as rlog

if TYPE_CHECKING:
    from collections.abc import Callable

POLICY = rlog.Backoff(first=0.01, cap=0.05, max_attempts=None, pause_after=None)


class Refused(Exception):
    """What a handler raises."""


class Notes:
    """One file of one process; each line is one write, which a kill does not cut in two."""

    def __init__(self, path: str, seed: int, slow: float) -> None:
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
        self._random = random.Random(seed)
        self._slow = slow

    def begin(self, record: rlog.Record) -> float:
        """-> how long the handler is to take."""
        self._write("begin", record, str(record.attempt))
        chance = self._random.random()
        return 0.0 if chance > self._slow else self._random.random() * 0.02

    def end(self, record: rlog.Record) -> rlog.Verdict | None:
        chance = self._random.random()
        if record.attempt < 4 and chance < 0.03:
            self._write("end", record, "retry")
            return rlog.Retry(self._random.random() * 0.03)
        if record.attempt < 4 and chance < 0.05:
            self._write("end", record, "raise")
            raise Refused
        if chance < 0.06:
            self._write("end", record, "park")
            return rlog.Park("so it is wanted")
        if chance < 0.08:
            self._write("end", record, "skip")
            return rlog.Skip("so it is wanted")
        self._write("end", record, "commit")
        return None

    def _write(self, what: str, record: rlog.Record, middle: str) -> None:
        key = "-" if record.key is None else record.key.decode()
        line = f"{what} {record.offset} {key} {middle} {time.monotonic_ns()}\n"
        os.write(self._fd, line.encode())


def connected(url: str, name: str) -> rlog.Client:
    while True:
        try:
            return rlog.connect(url, timeout=None, name=name)
        except rlog.ConnectionLost:
            time.sleep(0.05)  # the server is not there just now


def run_blocking(url: str, log: str, notes: Notes, options: Any) -> None:
    with connected(url, options["name"]) as client:
        consumer = client.log(log).consumer("c", shared=True)
        signal.signal(signal.SIGTERM, lambda *_: consumer.stop())

        def handle(record: rlog.Record) -> rlog.Verdict | None:
            time.sleep(notes.begin(record))
            return notes.end(record)

        with consumer:
            if options["kind"] == "iterate":
                iterate(consumer, handle)
            else:
                consumer.process(handle, in_flight=options["in_flight"], retry=POLICY)


def iterate(consumer: rlog.Consumer, handle: Callable[[rlog.Record], Any]) -> None:
    for record in consumer:
        try:
            verdict = handle(record) or rlog.COMMIT
        except Refused:
            verdict = rlog.Retry(0.01)
        consumer.settle(record, verdict)


async def run_async(url: str, log: str, notes: Notes, options: Any) -> None:
    async with contextlib.AsyncExitStack() as stack:
        while True:
            client = rlog.connect_async(url, timeout=None, name=options["name"])
            try:
                await stack.enter_async_context(client)
            except rlog.ConnectionLost:
                await anyio.sleep(0.05)
            else:
                break
        consumer = (await client.log(log)).consumer("c", shared=True)
        signal.signal(signal.SIGTERM, lambda *_: consumer.stop())

        async def handle(record: rlog.Record) -> rlog.Verdict | None:
            await anyio.sleep(notes.begin(record))
            return notes.end(record)

        async with consumer:
            await consumer.process(handle, in_flight=options["in_flight"], retry=POLICY)


def main() -> NoReturn:
    url, log, path, options = *sys.argv[1:4], json.loads(sys.argv[4])
    logging.basicConfig(level=logging.INFO, stream=sys.stderr)
    notes = Notes(path, options["seed"], options["slow"])
    if options["kind"] in ("blocking", "iterate"):
        run_blocking(url, log, notes, options)
    else:
        anyio.run(run_async, url, log, notes, options, backend=options["kind"])
    sys.exit(0)


if __name__ == "__main__":
    main()

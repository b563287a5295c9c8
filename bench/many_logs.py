"""How fast are a thousand logs at once: appended to round robin, and consumed?

`send`: record after record, each to the next log, over one producer a log; what a producer has goes
out when its `linger` has passed, so that batches hold few records. `append`: one synced request a
record. One client, or 16 in processes of their own, each of which goes round all of the logs.
Consumed one log after the other, each with a consumer of its own and one commit, by one client, or
by 16 of which each has every sixteenth log. The logs that are appended to are new in every round;
those that are consumed are others, and stay as they are.
"""

from __future__ import annotations

import time
from contextlib import ExitStack
from functools import partial
from typing import TYPE_CHECKING, Final

import rlog_client as rlog

from .crowd import Crowd, Gate
from .harness import Bench, case, fill, values
from .machine import memory
from .server import Server

if TYPE_CHECKING:
    from collections.abc import Callable

    # Of a client, with the numbers of those logs that are its own: how many records it did.
    Work = Callable[[rlog.Client, int, int, Gate], int]

SIZE: Final = 100  # bytes of a record
CLIENTS: Final = (1, 16)
EACH: Final = 100  # records of a log that is consumed


def name(number: int) -> str:
    return f"bench-{number}"


def stored(number: int) -> str:
    return f"stored-{number}"


def send(logs: int, seconds: float) -> Work:
    def work(client: rlog.Client, number: int, clients: int, gate: Gate) -> int:
        column = values(SIZE, 1000)
        with ExitStack() as stack:
            producers = [
                stack.enter_context(client.log(name(log)).producer()) for log in range(logs)
            ]
            gate.ready()
            over, sent = time.monotonic() + seconds, 0
            while time.monotonic() < over:
                producers[sent % logs].send(column[sent % 1000])
                sent += 1
            for producer in producers:
                producer.flush()
        return sent

    return work


def append(logs: int, seconds: float) -> Work:
    def work(client: rlog.Client, number: int, clients: int, gate: Gate) -> int:
        value = values(SIZE, 1)[0]
        # Not all of them begin with the same log.
        opened = [client.log(name((log + number) % logs)) for log in range(logs)]
        gate.ready()
        over, sent = time.monotonic() + seconds, 0
        while time.monotonic() < over:
            opened[sent % logs].append(value)
            sent += 1
        return sent

    return work


def consume(logs: int) -> Work:
    def work(client: rlog.Client, number: int, clients: int, gate: Gate) -> int:
        mine = [client.log(stored(log)) for log in range(number, logs, clients)]
        gate.ready()
        count = 0
        for log in mine:
            with log.consumer("bench", block=False) as consumer:
                records = list(consumer)
                if records:
                    consumer.commit(records[-1])
                count += len(records)
            log.cursor("bench").delete()
        return count

    return work


def crowd(server: Server, work: Work, clients: int) -> float:
    """Records a second."""

    def member(number: int, gate: Gate) -> tuple[int, float]:
        with rlog.connect(server.url, timeout=60.0) as client:
            return work(client, number, clients, gate), time.monotonic()

    with Crowd(member, clients) as members:
        began = members.go()
        found = members.results()
    return sum(count for count, _ in found) / (max(ended for _, ended in found) - began)


def main() -> None:
    question = "How fast are a thousand logs at once: appended to round robin, and consumed?"
    options = (
        ("logs", 1000, "how many"),
        ("seconds", 2.0, "of appending, in one run"),
    )
    with Bench(question, 5, *options) as bench, Server(bench.directory()) as server:
        logs, seconds = bench.options.logs, bench.options.seconds
        idle = memory(server.pid).rss

        def renew() -> None:
            with rlog.connect(server.url, timeout=60.0) as client:
                for log in range(logs):
                    client.log(name(log), create=True).delete()
                    client.log(name(log), create=True)

        with rlog.connect(server.url) as client:
            for log in range(logs):
                client.log(stored(log), create=True)
            made = memory(server.pid).rss
            for log in range(logs):
                fill(client.log(stored(log)), SIZE, EACH)

        works = {
            "send": send(logs, seconds),
            "append": append(logs, seconds),
            "consume": consume(logs),
        }
        cases = [
            case(f"{what}, {clients} clients", partial(crowd, server, work, clients))
            for what, work in works.items()
            for clients in CLIENTS
        ]
        bench.run(
            f"{logs:,} logs, {SIZE} B, sync always, loopback TCP", "records/s", cases, before=renew
        )
        bench.note(f"memory of the server: {(made - idle) / logs / 1024:.1f} KiB a log")


if __name__ == "__main__":
    main()

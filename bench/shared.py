"""How many records a second do the members of a shared consumer settle, all together?

Members are processes of their own with blocking clients. Keys come round robin, or the records have
none.
"""

from __future__ import annotations

import itertools
import time
from contextlib import ExitStack
from typing import TYPE_CHECKING, Final

import rlog_client as rlog

from .crowd import Crowd, Gate
from .harness import Bench, Goal, case, values
from .server import Server

if TYPE_CHECKING:
    from collections.abc import Callable

KEYS: Final = 1_000
_ids: Final = itertools.count()


def share(url: str, log: str, members: int, in_flight: int, count: int) -> Callable[[], float]:
    """The time is from when all are ready to when the last of the records was handled."""
    consumer_id = ""

    def work(_number: int, gate: Gate) -> tuple[int, float]:
        done, ended = 0, 0.0

        def handle(_record: rlog.Record) -> None:
            nonlocal ended
            ended = time.monotonic()

        with rlog.connect(url) as client, ExitStack() as stack:
            opened = client.log(log)
            consumer = stack.enter_context(opened.consumer(consumer_id, shared=True))
            gate.ready()
            while opened.cursor(consumer_id).info().lag_records:
                done += consumer.process(handle, in_flight=in_flight, timeout=0.2)
        return done, ended

    def run() -> float:
        nonlocal consumer_id
        consumer_id = f"bench-{next(_ids)}"
        with Crowd(work, members) as crowd:
            began = crowd.go()
            found = crowd.results()
        settled = sum(done for done, _ in found)
        assert settled == count, f"settled {settled}"
        return count / (max(ended for _, ended in found) - began)

    return run


def main() -> None:
    question = "How many records a second do members of a shared consumer settle, all together?"
    option = ("count", 100_000, "records of one run")
    with Bench(question, 5, option) as bench, Server(bench.directory()) as server:
        count = bench.options.count
        column = values(100)
        with rlog.connect(server.url) as client:
            for name in ("keyed", "plain"):
                with client.log(name, create=True).producer() as producer:
                    for number in range(count):
                        key = b"key %d" % (number % KEYS) if name == "keyed" else None
                        producer.send(column[number % len(column)], key=key)
        cases = [
            case(
                f"{name}, {members} members, in_flight={in_flight}",
                share(server.url, name, members, in_flight, count),
                Goal(30_000) if members == 8 else None,
            )
            for name in ("keyed", "plain")
            for members, in_flight in ((8, 64), (1, 64))
        ]
        title = (
            f"settled of 100 B, {KEYS} keys or none, an empty handler, sync always, loopback TCP"
        )
        bench.run(title, "records/s", cases)


if __name__ == "__main__":
    main()

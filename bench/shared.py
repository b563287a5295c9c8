"""How many records a second do the members of a shared consumer settle, all together?

Members are processes of their own with blocking clients; the async ones are that many tasks' worth
of handlers in one process. Keys come round robin, or the records have none.
"""

from __future__ import annotations

import itertools
import multiprocessing
import time
from typing import TYPE_CHECKING, Any, Final

import rlog_client as rlog

from .harness import Bench, Case, Server, values

if TYPE_CHECKING:
    from collections.abc import Callable
    from multiprocessing.queues import SimpleQueue
    from multiprocessing.synchronize import Event

COUNT: Final = 100_000  # records of one run
KEYS: Final = 1_000
_ids: Final = itertools.count()


def member(
    url: str, log: str, consumer_id: str, in_flight: int, ready: Any, go: Event, counts: Any
) -> None:
    def handle(_record: rlog.Record) -> None:
        pass

    with rlog.connect(url) as client:
        with client.log(log).consumer(consumer_id, shared=True) as consumer:
            ready.put(None)
            go.wait()
            while client.log(log).cursor(consumer_id).info().lag_records:
                counts.put(consumer.process(handle, in_flight=in_flight, timeout=0.2))
        counts.put(None)


def share(url: str, log: str, members: int, in_flight: int) -> Callable[[], float]:
    context = multiprocessing.get_context("fork")

    def run() -> float:
        ready: SimpleQueue[None] = context.SimpleQueue()
        counts: SimpleQueue[int | None] = context.SimpleQueue()
        go, consumer_id = context.Event(), f"bench-{next(_ids)}"
        arguments = (url, log, consumer_id, in_flight, ready, go, counts)
        workers = [context.Process(target=member, args=arguments) for _ in range(members)]
        for worker in workers:
            worker.start()
        for _ in workers:
            ready.get()
        began = time.monotonic()
        go.set()
        total, left, ended = 0, members, began
        while left:
            count = counts.get()
            if count is None:
                left -= 1
            elif count:
                total, ended = total + count, time.monotonic()
        for worker in workers:
            worker.join()
        assert total == COUNT, f"settled {total}"
        return COUNT / (ended - began)

    return run


def main() -> None:
    question = "How many records a second do members of a shared consumer settle, all together?"
    with Bench(question, 5) as bench, Server(bench.directory()) as server:
        bench.pids = (server.pid,)
        with rlog.connect(server.url) as client:
            for name in ("keyed", "plain"):
                with client.log(name, create=True).producer() as producer:
                    for number, value in enumerate(
                        itertools.islice(itertools.cycle(values(100)), COUNT)
                    ):
                        key = b"key %d" % (number % KEYS) if name == "keyed" else None
                        producer.send(value, key=key)
        cases = [
            Case(
                f"{name}, {members} members, in_flight={in_flight}",
                share(server.url, name, members, in_flight),
                "30,000" if (members, in_flight) == (8, 64) else "",
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

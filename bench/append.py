"""How many records a second can one client append, under each sync policy?"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import rlog_client as rlog

from . import limits
from .harness import POLICIES, Bench, Goal, case, per_second, values
from .machine import MIB
from .server import Server

if TYPE_CHECKING:
    from collections.abc import Callable

SIZES: Final = (100, 1024, 65536)
GOALS: Final = {
    ("always", 100, "send"): Goal(3_000_000),
    ("always", 100, "extend"): Goal(4_500_000),
    ("always", 65536, "send"): Goal(0.7, of=(limits.FALLOCATED,)),
    ("always", 65536, "extend"): Goal(0.7, of=(limits.FALLOCATED,)),
}


def appending(
    client: rlog.Client, policy: str, size: int, how: str, mib: int
) -> Callable[[], float]:
    column = values(size, min(50_000, mib * MIB // size))
    times = mib * MIB // size // len(column)

    def run() -> float:
        log = client.log("bench", create=True, sync=policy)
        with log.producer() as producer:

            def send() -> None:
                for _ in range(times):
                    for value in column:
                        producer.send(value)
                producer.flush()

            def extend() -> None:
                for _ in range(times):
                    producer.extend(column)
                producer.flush()

            found = per_second(times * len(column), send if how == "send" else extend)
        log.wait_synced(log.info().end)  # what a lax policy left to do is nobody else's burden
        log.delete()
        return found

    return run


def main() -> None:
    question = "How many records a second can one client append, under each sync policy?"
    option = ("mib", 96, "of one row")
    with (
        Bench(question, 5, option) as bench,
        Server(bench.directory()) as server,
        rlog.connect(server.url) as client,
    ):
        for size in SIZES:
            cases = [
                case(
                    f"{how}, sync {policy}",
                    appending(client, policy, size, how, bench.options.mib),
                    GOALS.get((policy, size, how)),
                )
                for policy in POLICIES
                for how in ("send", "extend")
            ]
            title = f"append of {size} B, acknowledged, one client, loopback TCP"
            bench.run(
                title, "records/s", [*cases, *limits.appending(bench, size, bench.options.mib)]
            )


if __name__ == "__main__":
    main()

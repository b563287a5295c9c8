"""How long does one synced append take, beside the least that it can?"""

from __future__ import annotations

from typing import TYPE_CHECKING

import rlog_client as rlog

from . import limits
from .harness import Bench, Case, Server, percentile, values

if TYPE_CHECKING:
    from collections.abc import Callable


def main() -> None:
    question = "How long does one synced append take, beside the least that it can?"
    option = ("count", 1000, "of one round")
    with Bench(question, 9, option) as bench, Server(bench.directory()) as server:
        bench.pids = (server.pid,)
        ping = limits.PingPong()
        write = limits.SyncedWrite(bench.directory("limit"), limits.REQUEST_BYTES)
        value = values(100, 1)[0]
        with rlog.connect(server.url) as client:
            log = client.log("bench", create=True, sync="always")

            def both(name: str, once: Callable[[], object]) -> list[Case]:
                """p50 and p99 of the same runs."""
                taken: list[float] = []

                def p50() -> float:
                    taken[:] = limits.times(bench.options.count, once)
                    return percentile(taken, 0.50) * 1e6

                def p99() -> float:
                    return percentile(taken, 0.99) * 1e6

                return [Case(f"{name}, p50", p50), Case(f"{'':{len(name)}}  p99", p99)]

            results = bench.run(
                "one append of 100 B at a time, sync always, blocking client, loopback TCP",
                "µs",
                [
                    *both("limit: ping-pong of 300 B against a trio echo", ping.once),
                    *both("limit: synced write of 300 B, recycled file", write.once),
                    *both("append", lambda: log.append(value)),
                ],
            )
        ping.close()
        least = [sum(pair) for pair in zip(results[0].figures, results[2].figures, strict=True)]
        ratios = [mine / limit for mine, limit in zip(results[4].figures, least, strict=True)]
        bench.note(
            f"p50 / (ping-pong + synced write): median of the rounds"
            f" {percentile(ratios, 0.5):.2f}, {min(ratios):.2f} to {max(ratios):.2f} (goal: 1.6)"
        )


if __name__ == "__main__":
    main()

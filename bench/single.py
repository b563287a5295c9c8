"""How long does one synced append take, beside the least that it can?"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import rlog_client as rlog

from . import limits
from .harness import Bench, Case, Goal, Server, percentiles, values

if TYPE_CHECKING:
    from collections.abc import Callable

PING: Final = "limit: ping-pong of 300 B against a trio echo"
WRITE: Final = "limit: synced write of 300 B, recycled file"
# Their sum is what no machine does whose processors go to sleep while they wait for the disk: this
# is the least that a server in Python can take.
BOTH: Final = "limit: that echo, with that write before it answers"


def main() -> None:
    question = "How long does one synced append take, beside the least that it can?"
    option = ("count", 1000, "of one round")
    with Bench(question, 9, option) as bench, Server(bench.directory()) as server:
        count = bench.options.count
        ping = limits.PingPong()
        write = limits.SyncedWrite(bench.directory("limit"), limits.REQUEST_BYTES)
        inside = limits.SyncedWrite(bench.directory("inside"), limits.REQUEST_BYTES)
        both = limits.PingPong(inside.once)
        value = values(100, 1)[0]
        goal = Goal(1.35, at_most=True, of=(f"{PING}, p50", f"{WRITE}, p50"))
        with rlog.connect(server.url) as client:
            log = client.log("bench", create=True, sync="always")

            def taking(
                name: str, once: Callable[[], object], goal: Goal | None = None
            ) -> list[Case]:
                goals = {0.5: goal, 0.99: None}
                return percentiles(name, lambda: limits.times(count, once), goals)

            bench.run(
                "one append of 100 B at a time, sync always, blocking client, loopback TCP",
                "µs",
                [
                    *taking(PING, ping.once),
                    *taking(WRITE, write.once),
                    *taking(BOTH, both.once),
                    *taking("append", lambda: log.append(value), goal),
                ],
            )
        ping.close()
        both.close()


if __name__ == "__main__":
    main()

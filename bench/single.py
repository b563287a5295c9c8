"""How long does one synced append take, beside a bare echo that syncs as much?"""

from __future__ import annotations

from typing import Final

import rlog_client as rlog

from . import limits
from .harness import Bench, Goal, values
from .server import Server

PING: Final = "limit: ping-pong of 300 B against a trio echo"
WRITE: Final = "limit: synced write of 300 B, recycled file"
# Their sum is what no machine does whose processors go to sleep while they wait for the disk: this
# is what a trio echo takes that does nothing else.
BOTH: Final = "limit: that echo, with that write before it answers"


def main() -> None:
    question = "How long does one synced append take, beside a bare echo that syncs as much?"
    option = ("count", 1000, "of one round")
    with Bench(question, 9, option) as bench, Server(bench.directory()) as server:
        count = bench.options.count
        write = limits.Write(bench.directory("limit"), limits.REQUEST_BYTES)
        inside = limits.Write(bench.directory("inside"), limits.REQUEST_BYTES)
        value = values(100, 1)[0]
        goal = Goal(1.35, at_most=True, of=(f"{PING}, p50", f"{WRITE}, p50"))
        with (
            limits.PingPong() as ping,
            limits.PingPong(inside.once) as both,
            rlog.connect(server.url) as client,
        ):
            log = client.log("bench", create=True, sync="always")
            bench.run(
                "one append of 100 B at a time, sync always, blocking client, loopback TCP",
                "µs",
                [
                    limits.timed(PING, count, ping.once),
                    limits.timed(WRITE, count, write.once),
                    limits.timed(BOTH, count, both.once),
                    limits.timed(
                        "append", count, lambda: log.append(value), {0.5: goal, 0.99: None}
                    ),
                ],
            )


if __name__ == "__main__":
    main()

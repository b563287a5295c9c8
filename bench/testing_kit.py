"""What does a test pay for a server of its own?"""

from __future__ import annotations

import time
from functools import partial

import rlog.testing

from .harness import Bench, case, percentile


def milliseconds(servers: int, *, fsync: bool, whole: bool) -> float:
    """Of one server, the median: up to its first answer, or to its end."""
    taken = []
    for _ in range(servers):
        began = time.perf_counter()
        with rlog.testing.Server(fsync=fsync) as server:
            server.connect().logs()
            answered = time.perf_counter()
        taken.append((time.perf_counter() if whole else answered) - began)
    return percentile(taken, 0.5) * 1e3


def main() -> None:
    option = ("servers", 20, "of one round")
    with Bench("What does a test pay for a server of its own?", 5, option) as bench:
        cases = [
            case(name, partial(milliseconds, bench.options.servers, fsync=fsync, whole=whole))
            for fsync in (True, False)
            for name, whole in (
                (f"to the first answer{'' if fsync else ', fsync=False'}", False),
                (f"to the end of its block{'' if fsync else ', fsync=False'}", True),
            )
        ]
        bench.run("rlog.testing.Server(), in a temporary directory", "ms", cases)


if __name__ == "__main__":
    main()

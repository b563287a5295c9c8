"""The goals of the comparison, and which of them a run reached: ratios within the run."""

from __future__ import annotations

from statistics import median
from typing import TYPE_CHECKING, Final, NamedTuple

from .jetstream import JetStream
from .redis_streams import Redis
from .requests import IN_FLIGHT, RAW, TASKS
from .rlog_server import Rlog
from .rows import best_of, equal_of, ratio, times

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .rows import Row, Single

# Work -> records/s of 100 B at least, and how many times each peer's at an equal batch.
BULK: Final = {
    "append": (3_000_000, {Redis.name: 25, JetStream.name: 200}),
    "consume": (4_500_000, {Redis.name: 25, JetStream.name: 80}),
}
EXTEND: Final = 4_500_000
# How many times redis-py's, or redis.asyncio's, by kind and number of clients.
SINGLE: Final = {
    ("blocking client", 1): 1.1,
    ("threads", 16): 2.0,
    ("threads", 128): 2.0,
    (TASKS, IN_FLIGHT): 6.0,
}
CPU_SECONDS: Final = 2.5  # of the server, per 100,000 single appends over 128 connections
CPU_FACTOR: Final = 2.0  # of Redis's


class Goal(NamedTuple):
    text: str
    measured: str
    reached: bool


def of_bulk(work: str, rows: list[Row]) -> Iterator[Goal]:
    """``rows``: of 100 B, synced."""
    ours, best = equal_of(rows, Rlog.name), best_of(rows, Rlog.name)
    if ours is None or best is None:
        return
    least, factors = BULK[work]
    rate = median(best.figures)
    yield Goal(f"{work} 100 B: ≥ {least:,}/s", f"{rate:,.0f}/s", rate >= least)
    for row in rows:
        if row.way.name.startswith("`extend`"):
            rate = median(row.figures)
            text = f"{work} 100 B by `extend`: ≥ {EXTEND:,}/s"
            yield Goal(text, f"{rate:,.0f}/s", rate >= EXTEND)
        elif row.way.equal and row.peer in factors:
            factor, least = ratio(ours.figures, row.figures), factors[row.peer]
            text = f"{work} 100 B: ≥ {least} × {row.peer}, equal batch ({row.way.name})"
            yield Goal(text, times(factor), factor >= least)


def of_singles(rows: list[Single]) -> Iterator[Goal]:
    def pick(peer: str, mode: str, clients: int) -> Single | None:
        """The first such row: of Redis's, the raw program's."""
        for row in rows:
            if (row.peer, row.mode, row.clients) == (peer, mode, clients):
                return row
        return None

    for (mode, clients), least in SINGLE.items():
        mine, its = pick(Rlog.name, mode, clients), pick(Redis.name, mode, clients)
        if mine is None or its is None:
            continue
        text, factor = f"single appends, {clients} {mode}", ratio(mine.rate, its.rate)
        yield Goal(f"{text}: ≥ {least} × redis-py", times(factor), factor >= least)
        if mode == "threads":
            factor = ratio(mine.p99, its.p99)
            yield Goal(f"{text}: p99 ≤ redis-py's", times(factor), factor <= 1.0)
    mine = pick(Rlog.name, "connections", 128)
    its = pick(Redis.name, "connections", 128)
    if mine is not None:
        assert mine.client == RAW
        cpu, text = median(mine.cpu), "server's CPU per 100,000 single appends, 128 connections"
        yield Goal(f"{text}: ≤ {CPU_SECONDS} s", f"{cpu:.2f} s", cpu <= CPU_SECONDS)
        if its is not None:
            factor = ratio(mine.cpu, its.cpu)
            yield Goal(f"{text}: ≤ {CPU_FACTOR} × Redis's", times(factor), factor <= CPU_FACTOR)

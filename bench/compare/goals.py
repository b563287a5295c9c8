"""The goals of the comparison, and which of them a run reached: ratios within the run."""

from __future__ import annotations

from statistics import median
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from ..harness import Verdict, readable, samples_for, verdict
from .peers.jetstream import JetStream
from .peers.redis_streams import Redis
from .peers.rlog_server import Rlog
from .rows import best_of, equal_of, ratios
from .singles import BLOCKING, CONNECTIONS, IN_FLIGHT, RAW, TASKS

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from .rows import Row, Single

# Work -> records/s of 100 B at least, and how many times each peer's fastest at an equal batch.
BULK: Final = {
    "append": (3_000_000, {Redis.name: 25, JetStream.name: 200}),
    "consume": (4_500_000, {Redis.name: 25, JetStream.name: 80}),
}
BULK_CALL: Final = 4_500_000
# How many times redis-py's, or redis.asyncio's, by kind and number of clients.
SINGLE: Final = {
    (BLOCKING, 1): 1.1,
    ("threads", 16): 2.0,
    ("threads", 128): 2.0,
    (TASKS, IN_FLIGHT): 6.0,
}
CPU_SECONDS: Final = 2.5  # of the server, per 100,000 single appends over 128 connections
CPU_FACTOR: Final = 2.0  # of Redis's
PER_SECOND, TIMES, SECONDS = "/s", " ×", " s"


class Judged(NamedTuple):
    """A goal, and what each round had of it."""

    goal: str
    figures: list[float]
    unit: str
    verdict: str

    @classmethod
    def of(
        cls, goal: str, figures: Sequence[float], unit: str, bound: float, *, at_most: bool = False
    ) -> Judged:
        found = verdict(figures, bound, at_most=at_most)
        return cls(f"{goal} {bound:,}{unit}", list(figures), unit, found.value)


def measured(figures: Sequence[float], unit: str) -> str:
    """The median, and the range."""
    middle, low, high = (readable(of(figures)) for of in (median, min, max))
    return f"{middle}{unit} ({low} – {high})"


def of_bulk(work: str, rows: list[Row]) -> Iterator[Judged]:
    """``rows``: of 100 B, synced."""
    ours, best = equal_of(rows, Rlog.name), best_of(rows, Rlog.name)
    if ours is None or best is None:
        return
    least, factors = BULK[work]
    yield Judged.of(f"{work} 100 B: ≥", best.figures, PER_SECOND, least)
    for row in rows:
        if row.way.bulk_call and row.peer == Rlog.name and not row.way.equal:
            text = f"{work} 100 B, {row.way.name}: ≥"
            yield Judged.of(text, row.figures, PER_SECOND, BULK_CALL)
    for peer, factor in factors.items():
        if (its := equal_of(rows, peer)) is not None:
            text = f"{work} 100 B beside {peer}, equal batch ({its.way.name}): ≥"
            yield Judged.of(text, ratios(ours.figures, its.figures), TIMES, factor)


def of_singles(rows: list[Single]) -> Iterator[Judged]:
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
        text, which = f"single appends, {clients} {mode}", "redis-py"
        yield Judged.of(f"{text}, beside {which}: ≥", ratios(mine.rate, its.rate), TIMES, least)
        if mode == "threads":
            text = f"{text}, p99 beside {which}'s: ≤"
            p99 = Judged.of(text, ratios(mine.p99, its.p99), TIMES, 1.0, at_most=True)
            few = min(*mine.samples, *its.samples) < samples_for(0.99)
            yield p99._replace(verdict=Verdict.UNDECIDED.value) if few else p99
    mine = pick(Rlog.name, CONNECTIONS, 128)
    its = pick(Redis.name, CONNECTIONS, 128)
    if mine is not None:
        assert mine.client == RAW
        text = "server's processor time per 100,000 single appends, 128 connections"
        yield Judged.of(f"{text}: ≤", mine.cpu, SECONDS, CPU_SECONDS, at_most=True)
        if its is not None:
            factors = ratios(mine.cpu, its.cpu)
            yield Judged.of(f"{text}, beside Redis: ≤", factors, TIMES, CPU_FACTOR, at_most=True)


def as_rows(goals: list[dict[str, Any]]) -> list[list[str]]:
    return [
        [goal["goal"], measured(goal["figures"], goal["unit"]), goal["verdict"]] for goal in goals
    ]

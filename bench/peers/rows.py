"""What one run of the comparison measured, as rows, and how two of them compare."""

from __future__ import annotations

from statistics import median
from typing import TYPE_CHECKING, NamedTuple

from ..harness import percentile

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .load import Taken
    from .peer import Way


class Row(NamedTuple):
    """One way of one peer; ``figures``: of each round, records a second."""

    peer: str
    client: str
    way: Way
    figures: list[float]


class Single(NamedTuple):
    """One load of single appends on one peer; each list has one figure a round.

    Percentiles in µs. ``cpu``: the server's processor seconds per 100,000 requests.
    """

    peer: str
    client: str
    mode: str
    clients: int
    rate: list[float]
    p50: list[float]
    p99: list[float]
    p999: list[float]
    cpu: list[float]

    @property
    def label(self) -> str:
        return f"{self.peer}: {self.clients} {self.mode}"

    def add(self, taken: Taken, cpu: float | None = None) -> None:
        self.rate.append(taken.rate)
        for share, figures in ((0.5, self.p50), (0.99, self.p99), (0.999, self.p999)):
            figures.append(percentile(taken.seconds, share) * 1e6)
        if cpu is not None:
            self.cpu.append(cpu)


def ratio(mine: Sequence[float], other: Sequence[float]) -> float:
    """Of figures of the same rounds."""
    return median(one / another for one, another in zip(mine, other, strict=True))


def times(factor: float | None) -> str:
    return "" if factor is None else f"{factor:,.2f} ×" if factor < 10 else f"{factor:,.0f} ×"


def show(title: str, others: Sequence[float], head: Sequence[str], rows: list[list[str]]) -> None:
    print(f"\n  {title}; others used {median(others):.2f} processors, at most {max(others):.2f}")
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    for row in (head, *rows):
        print("  " + "  ".join(f"{cell:{width}}" for cell, width in zip(row, widths, strict=True)))


def equal_of(rows: list[Row], peer: str) -> Row | None:
    return next((row for row in rows if row.peer == peer and row.way.equal), None)


def best_of(rows: list[Row], peer: str) -> Row | None:
    ranked = [row for row in rows if row.peer == peer and row.way.ranked]
    return max(ranked, key=lambda row: median(row.figures), default=None)

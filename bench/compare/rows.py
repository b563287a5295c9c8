"""What one run of the comparison measured, as rows, and how two of them compare."""

from __future__ import annotations

from statistics import median
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from ..harness import percentile, readable, samples_for
from .peers.peer import SYNCED
from .peers.rlog_server import Rlog

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from ..harness import Conditions
    from .load import Taken
    from .peers.peer import Peer, Way

SHARES: Final = {"p50": 0.5, "p99": 0.99, "p999": 0.999}


class Row(NamedTuple):
    """One way of one peer, with so many records a round; ``figures``: of each round, records/s."""

    peer: str
    client: str
    way: Way
    records: int
    figures: list[float]


class Single(NamedTuple):
    """One load of single appends on one peer; each list has one figure a round.

    Percentiles in µs, of so many ``samples``. ``cpu``: the server's processor seconds per 100,000
    requests, where they were measured.
    """

    peer: str
    client: str
    mode: str
    clients: int
    per_sync: str
    samples: list[int]
    rate: list[float]
    p50: list[float]
    p99: list[float]
    p999: list[float]
    cpu: list[float]

    @classmethod
    def of(cls, peer: Peer, client: str, mode: str, clients: int) -> Single:
        """Without figures yet."""
        per_sync = f"1 to {clients}" if peer.shares_syncs and clients > 1 else "1"
        return cls(peer.name, client, mode, clients, per_sync, [], [], [], [], [], [])

    @property
    def label(self) -> str:
        return f"{self.peer}: {self.load}"

    @property
    def load(self) -> str:
        """ "1 connection", "16 threads"."""
        return f"{self.clients} {self.mode.removesuffix('s') if self.clients == 1 else self.mode}"

    @property
    def figures(self) -> list[float]:
        return self.rate

    def add(self, taken: Taken, cpu: float | None = None) -> None:
        self.samples.append(len(taken.seconds))
        self.rate.append(taken.rate)
        for name, share in SHARES.items():
            getattr(self, name).append(percentile(taken.seconds, share) * 1e6)
        if cpu is not None:
            self.cpu.append(cpu)


def ratios(mine: Sequence[float], other: Sequence[float]) -> list[float]:
    """Of figures of the same rounds."""
    return [one / another for one, another in zip(mine, other, strict=True)]


def equal_of(rows: list[Row], peer: str) -> Row | None:
    """A peer's fastest at the equal batch; of rlog, whose headline is ``send``, its first."""
    equal = [row for row in rows if row.peer == peer and row.way.equal]
    if peer == Rlog.name:
        return equal[0] if equal else None
    return max(equal, key=lambda row: median(row.figures), default=None)


def one_batch_of(rows: list[Row]) -> Row | None:
    """rlog's, with one batch at a time, as most of the others' ways have it."""
    ours = (row for row in rows if row.peer == Rlog.name and row.way.equal)
    return next((row for row in ours if row.way.in_flight == 1), None)


def best_of(rows: list[Row], peer: str) -> Row | None:
    ranked = [row for row in rows if row.peer == peer and row.way.ranked]
    return max(ranked, key=lambda row: median(row.figures), default=None)


def per_sync(way: Way, durability: str) -> str:
    return way.per_sync if durability == SYNCED or way.per_sync == "never" else "later"


# --- as text ----------------------------------------------------------------------------------


def times(factor: float) -> str:
    return f"{factor:,.2f} ×" if factor < 10 else f"{factor:,.0f} ×"


def ranged(factors: Sequence[float] | None) -> str:
    """ "1.20 × (1.10 – 1.31)"; "" of none."""
    if not factors:
        return ""
    low, high = (times(of(factors)).removesuffix(" ×") for of in (min, max))
    return f"{times(median(factors))} ({low} – {high})"


def latency(figures: Sequence[float], samples: Sequence[int], share: float) -> str:
    """Of a percentile in µs; "max" before it, where so few samples have no such percentile."""
    few = min(samples) < samples_for(share)
    return f"{'max ' if few else ''}{readable(median(figures))}"


def show(
    title: str, conditions: Conditions, head: Sequence[str], rows: Iterable[Sequence[Any]]
) -> None:
    cells = [[str(cell) for cell in row] for row in rows]
    print(f"\n  {title}; {conditions}")
    widths = [max(map(len, column)) for column in zip(head, *cells, strict=True)]
    for row in (head, *cells):
        print("  " + "  ".join(f"{cell:{width}}" for cell, width in zip(row, widths, strict=True)))

"""Many records at a time, by one client: appended, and consumed with a committed cursor."""

from __future__ import annotations

import os
from functools import partial
from statistics import median
from typing import TYPE_CHECKING, Final

from ..harness import MIB, rate, readable
from .peer import NEVER, SYNCED
from .rlog_server import Rlog
from .rows import Row, best_of, equal_of, ratio, show, times

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from ..harness import Bench
    from .peer import Peer

BATCH: Final = 1000
OVERHEAD: Final = 24  # bytes of a record that some protocol adds, in messages of at most 1 MiB
TRY_BATCHES: Final = 5
FILL_FACTOR: Final = 2  # what is to be consumed is what it appends in so many cases' time


def size_of(column: list[bytes]) -> int:
    """Of a record, on average."""
    return max(1, sum(map(len, column)) // len(column))


def batch_of(column: list[bytes]) -> int:
    """The batch that all have in common: what no protocol here takes for too large."""
    return max(1, min(BATCH, MIB // (size_of(column) + OVERHEAD)))


def stretched(column: list[bytes], count: int) -> list[bytes]:
    return (column * (count // len(column) + 1))[:count]


def appends(
    bench: Bench, peers: list[Peer], kept: str, shape: str, column: list[bytes]
) -> list[Row]:
    """One round appends the records by each way of each peer."""
    batch = batch_of(column)
    rows, works = [], []
    for peer in peers:
        for way in peer.appends(batch):
            row = Row(peer.name, peer.client, way, [])
            records = stretched(column, tried(bench, way.run, column))
            rows.append(row)
            works.append(partial(_turn, partial(way.run, records), len(records), row))
    _report(bench, "append", kept, shape, rows, bench.rounds(works))
    return rows


def consumes(
    bench: Bench, peers: list[Peer], kept: str, shape: str, column: list[bytes]
) -> list[Row]:
    """One round consumes all that a peer was filled with, from the first record on, by each way."""
    rows, works = [], []
    for peer in peers:
        count = _filled(bench, peer, column)
        for way in peer.consumes(batch_of(column)):
            row = Row(peer.name, peer.client, way, [])
            way.run(count)  # a first time, so that nobody's caches are cold
            rows.append(row)
            works.append(partial(_turn, partial(way.run, count), count, row))
    _report(bench, "consume", kept, shape, rows, bench.rounds(works))
    return rows


def _turn(run: Callable[[], float], count: int, row: Row) -> None:
    row.figures.append(count / run())
    os.sync()  # what it put off is not for the next one to feel


def tried(bench: Bench, run: Callable[[Sequence[bytes]], float], column: list[bytes]) -> int:
    """How many records it appends in a case's time; if possible, tens of batches."""
    batch, seconds = batch_of(column), bench.options.seconds
    most = max(batch, _most(bench, column))
    count = min(most, TRY_BATCHES * batch)
    while True:
        took = run(stretched(column, count))
        wanted = min(most, int(count / took * seconds))
        if took > seconds / 5 or wanted <= 2 * count:
            unit = 10 * batch if wanted >= 10 * batch else batch
            return max(batch, wanted // unit * unit)
        count = wanted // 2


def _most(bench: Bench, column: list[bytes]) -> int:
    mib: int = bench.options.mib
    return mib * MIB // size_of(column)


def _filled(bench: Bench, peer: Peer, column: list[bytes]) -> int:
    """Have it hold so many records."""
    batch = batch_of(column)
    count = TRY_BATCHES * batch
    seconds = 1 / rate(1, partial(peer.fill, stretched(column, count)))
    wanted = int(count / seconds * bench.options.seconds * FILL_FACTOR)
    count = max(batch, min(wanted, _most(bench, column)) // batch * batch)
    peer.fill(stretched(column, count))
    os.sync()
    return count


def _report(
    bench: Bench, work: str, kept: str, shape: str, rows: list[Row], others: list[float]
) -> None:
    ours, our_best = equal_of(rows, Rlog.name), best_of(rows, Rlog.name)
    shown, report = [], []
    for row in rows:
        way, same = row.way, row.peer == Rlog.name
        per_sync = way.per_sync if kept == SYNCED or way.per_sync == NEVER else "later"
        against: dict[str, float] = {}
        if ours and way.equal and not same:
            against["equal"] = ratio(ours.figures, row.figures)
        if our_best and row is best_of(rows, row.peer) and not same:
            against["best"] = ratio(our_best.figures, row.figures)
        shown.append(
            [
                f"{row.peer}: {way.name}", row.client, way.per_ack, per_sync,
                way.per_commit or "–", readable(median(row.figures)),
                readable(min(row.figures)), readable(max(row.figures)),
                *(times(against.get(key)) for key in ("equal", "best")),
            ]
        )  # fmt: skip
        report.append(
            {
                "peer": row.peer, "client": row.client, "way": way.name,
                "records per acknowledgement": way.per_ack, "per sync": per_sync,
                "per commit": way.per_commit, "equal": way.equal, "ranked": way.ranked,
                "figures": row.figures, "ratios": against,
            }
        )  # fmt: skip
    show(
        f"{work} of {shape}, {kept}, one client, records/s", others,
        ("", "client", "an ack.", "a sync", "a commit", "median", "lowest", "highest",
         "equal batch", "best of each"),
        shown,
    )  # fmt: skip
    bench.report({"work": work, "kept": kept, "shape": shape, "others": others, "rows": report})

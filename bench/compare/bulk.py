"""Many records at a time, by one client: appended, and consumed with a committed cursor."""

from __future__ import annotations

from functools import partial
from statistics import median
from typing import TYPE_CHECKING, Final

from ..harness import readable
from ..machine import MIB
from .peers.rlog_server import Rlog
from .rows import Row, best_of, equal_of, one_batch_of, per_sync, ranged, ratios, show

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from ..harness import Bench, Conditions
    from .field import Field
    from .peers.peer import Peer

BATCH: Final = 1000
OVERHEAD: Final = 24  # bytes of a record that some protocol adds, in messages of at most 1 MiB
TRY_BATCHES: Final = 5


def size_of(column: list[bytes]) -> int:
    """Of a record, on average."""
    return max(1, sum(map(len, column)) // len(column))


def batch_of(column: list[bytes]) -> int:
    """The batch that all have in common: what no protocol here takes for too large."""
    return max(1, min(BATCH, MIB // (size_of(column) + OVERHEAD)))


def stretched(column: list[bytes], count: int) -> list[bytes]:
    return (column * (count // len(column) + 1))[:count]


def appends(field: Field, durability: str, shape: str, column: list[bytes]) -> list[Row]:
    """One round appends the records by each way of each peer."""
    rows, works = [], []
    for peer in field:
        with field.trying(peer):
            for way in peer.appends(batch_of(column)):
                count = tried(field.bench, way.run, column)
                row = Row(peer.name, peer.client, way, count, [])
                rows.append(row)
                run = partial(way.run, stretched(column, count))
                works.append((peer, partial(_turn, run, row)))
    conditions = field.rounds(works)
    return _report(field, "append", durability, shape, rows, conditions)


def consumes(field: Field, durability: str, shape: str, column: list[bytes]) -> list[Row]:
    """One round consumes all that a peer was filled with, from the first record on, by each way."""
    rows, works = [], []
    for peer in field:
        with field.trying(peer):
            count = _filled(field.bench, peer, column)
            for way in peer.consumes(batch_of(column)):
                row = Row(peer.name, peer.client, way, count, [])
                way.run(count)  # a first time, so that nobody's caches are cold
                rows.append(row)
                works.append((peer, partial(_turn, partial(way.run, count), row)))
    conditions = field.rounds(works)
    return _report(field, "consume", durability, shape, rows, conditions)


def _turn(run: Callable[[], float], row: Row) -> None:
    row.figures.append(row.records / run())


def tried(bench: Bench, run: Callable[[Sequence[bytes]], float], column: list[bytes]) -> int:
    """How many records ``run`` does in a case's time; if possible, tens of batches."""
    batch, seconds = batch_of(column), bench.options.seconds
    most = max(batch, _most(bench, column))
    count = min(most, TRY_BATCHES * batch)
    while True:
        records = stretched(column, count)
        took = min(run(records), run(records))  # one that is held up is not to make it few
        wanted = min(most, int(count / took * seconds))
        if took > seconds / 5 or wanted <= 2 * count:
            unit = 10 * batch if wanted >= 10 * batch else batch
            return max(batch, wanted // unit * unit)
        count = wanted // 2


def _most(bench: Bench, column: list[bytes]) -> int:
    mib: int = bench.options.mib
    return mib * MIB // size_of(column)


def _filled(bench: Bench, peer: Peer, column: list[bytes]) -> int:
    """Have it hold as many records as its first way consumes in a case's time."""
    first = peer.consumes(batch_of(column))[0]

    def consumed(records: Sequence[bytes]) -> float:
        peer.fill(records)
        return float(first.run(len(records)))

    count = tried(bench, consumed, column)
    peer.fill(stretched(column, count))
    return count


def _report(
    field: Field, work: str, durability: str, shape: str, rows: list[Row], conditions: Conditions
) -> list[Row]:
    rows = field.whole(rows)
    ours, best, one_batch = (
        equal_of(rows, Rlog.name), best_of(rows, Rlog.name), one_batch_of(rows)
    )  # fmt: skip
    shown, report = [], []
    for row in rows:
        way = row.way
        against: dict[str, list[float]] = {}
        if row.peer != Rlog.name:
            if ours and way.equal:
                against["equal"] = ratios(ours.figures, row.figures)
            if one_batch and way.equal and way.in_flight == 1:
                against["one batch"] = ratios(one_batch.figures, row.figures)
            if best and row is best_of(rows, row.peer):
                against["best"] = ratios(best.figures, row.figures)
        synced = per_sync(way, durability)
        shown.append(
            [
                f"{row.peer}: {way.name}", row.client, f"{row.records:,}", way.per_ack, synced,
                way.per_commit, way.in_flight, readable(median(row.figures)),
                readable(min(row.figures)), readable(max(row.figures)),
                *(ranged(against.get(key)) for key in ("equal", "one batch", "best")),
            ]
        )  # fmt: skip
        report.append(
            {
                "peer": row.peer, "client": row.client, "way": way.name, "records": row.records,
                "per ack": way.per_ack, "per sync": synced, "per commit": way.per_commit,
                "in flight": way.in_flight, "equal": way.equal, "ranked": way.ranked,
                "bulk call": way.bulk_call, "figures": row.figures, "ratios": against,
            }
        )  # fmt: skip
    show(
        f"{work} of {shape}, {durability}, one client, records/s", conditions,
        ("", "client", "records", "an ack.", "a sync", "a commit", "in flight", "median",
         "lowest", "highest", "equal batch", "one batch", "best of each"),
        shown,
    )  # fmt: skip
    field.bench.report(
        {
            "work": work, "durability": durability, "shape": shape, **conditions._asdict(),
            "rows": report,
        }
    )  # fmt: skip
    return rows

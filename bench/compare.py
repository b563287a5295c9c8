"""How does rlog stand beside what a Python program would otherwise use?

The same records go to every system, each started fresh on loopback over a directory of its own:
log lines (of ``--lines FILE``, else made up), and 100 B, 1 KiB and 64 KiB. Systems are compared
within one class of durability only: *synced before acknowledged*, or *synced later*. What each one
calls so, and what its client's fastest documented way is, its module in ``bench/peers`` says.

What makes it fair, as far as it is:

- All run at the same time and take turns, one case of each a round; medians of the rounds, and
  ratios of figures of the same round. Nobody else's work is under way in a turn: what a system
  puts off is synced (``sync(2)``) between them.
- The headline is the ratio at an *equal batch*: 1,000 records (15 of 64 KiB) for one
  acknowledgement, or, where a client acknowledges each, 1,000 in flight; the second column takes
  the best way of each. rlog's rows are one ``send`` per record and a ``for`` loop; ``extend`` is
  another row, and in no ratio.
- Every case is as many records as it does in about ``--seconds``, found by trying.
- One record at a time: closed loops, so more clients wait longer; clients and server share the
  processors. The client counts as much as the server: so the servers that can be are also driven
  by the same raw program, and Redis by its own, in C.
"""

from __future__ import annotations

import contextlib
import csv
import os
import shutil
import subprocess
import time
from functools import partial
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any, Final, NamedTuple, cast

from . import lines
from .harness import MIB, Bench, percentile, readable, values
from .peers import PEERS, load, raw
from .peers.peer import CLASSES, LATER, SYNCED, Missing, Peer, Way
from .peers.redis_streams import Redis
from .peers.rlog_server import Rlog

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

RESULTS: Final = Path(__file__).with_name("results") / "compare.json"
WORKS: Final = ("append", "consume", "single", "server")
BATCH: Final = 1000
SIZES: Final = {"100 B": 100, "1 KiB": 1024, "64 KiB": 65536}
LINES: Final = "log lines"
OVERHEAD: Final = 24  # bytes of a record that some protocol adds, in messages of at most 1 MiB
DISTINCT_BYTES: Final = 32 * MIB  # of all the different records of one shape
TRY_BATCHES: Final = 5
FILL_FACTOR: Final = 2  # what is to be consumed is what it appends in so many cases' time
CLIENTS: Final = (1, 16, 128)
IN_FLIGHT: Final = 128
SPEAKERS: Final[dict[type[Peer], type[raw.Speaker]]] = {
    Rlog: raw.RlogSpeaker,
    Redis: raw.RedisSpeaker,
}


# --- tables -----------------------------------------------------------------------------------


class Row(NamedTuple):
    """One way of one peer; ``figures``: of each round, records a second."""

    peer: str
    client: str
    way: Way
    figures: list[float]


class Single(NamedTuple):
    """One load of single appends on one peer; each list has one figure a round.

    ``seconds``: of each request, all rounds together. ``cpu``: the server's processor seconds per
    100,000 requests.
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

    def add(self, taken: load.Taken, cpu: float | None = None) -> None:
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


class Comparison:
    """One run: what was measured, and which goals it reached."""

    def __init__(self, bench: Bench) -> None:
        self.bench = bench
        self.seconds: float = bench.options.seconds
        self.most: int = bench.options.mib * MIB
        self.synced: dict[str, list[Row]] = {}  # by work and shape, of the class SYNCED
        self.single: list[Single] = []

    # --- many at a time -----------------------------------------------------------------------

    def appends(self, peers: list[Peer], kept: str, shape: str, column: list[bytes]) -> None:
        batch = batch_of(column)
        rows, works = [], []
        for peer in peers:
            for way in peer.appends(batch):
                append = cast("Callable[[Sequence[bytes]], float]", way.run)
                row = Row(peer.name, peer.client, way, [])
                count = self._tried(append, column, batch)
                rows.append(row)
                works.append(partial(self._append, append, stretched(column, count), row))
        others = self.bench.rounds(works)
        self._report("append", kept, shape, rows, others)

    def _append(
        self, run: Callable[[Sequence[bytes]], float], records: list[bytes], row: Row
    ) -> None:
        row.figures.append(len(records) / run(records))
        os.sync()

    def _tried(
        self, run: Callable[[Sequence[bytes]], float], column: list[bytes], batch: int
    ) -> int:
        """How many records it does in a case's time: whole batches, if possible ten of them."""
        count = TRY_BATCHES * batch
        most = max(batch, self.most // size_of(column))
        while True:
            seconds = run(stretched(column, count))
            wanted = min(most, int(count / seconds * self.seconds))
            if seconds > self.seconds / 5 or wanted <= 2 * count:
                unit = 10 * batch if wanted >= 10 * batch else batch
                return max(batch, wanted // unit * unit)
            count = wanted // 2

    def consumes(self, peers: list[Peer], kept: str, shape: str, column: list[bytes]) -> None:
        batch = batch_of(column)
        rows, works = [], []
        for peer in peers:
            count = self._filled(peer, column, batch)
            for way in peer.consumes(batch):
                consume = cast("Callable[[int], float]", way.run)
                row = Row(peer.name, peer.client, way, [])
                consume(count)  # a first time, so that nobody's caches are cold
                rows.append(row)
                works.append(partial(self._consume, consume, count, row))
        others = self.bench.rounds(works)
        self._report("consume", kept, shape, rows, others)

    def _consume(self, run: Callable[[int], float], count: int, row: Row) -> None:
        row.figures.append(count / run(count))
        os.sync()

    def _filled(self, peer: Peer, column: list[bytes], batch: int) -> int:
        count = TRY_BATCHES * batch
        began = time.perf_counter()
        peer.fill(stretched(column, count))
        rate = count / (time.perf_counter() - began)
        wanted = int(min(self.most // size_of(column), rate * self.seconds * FILL_FACTOR))
        count = max(count, wanted // batch * batch)
        peer.fill(stretched(column, count))
        os.sync()
        return count

    def _report(
        self, work: str, kept: str, shape: str, rows: list[Row], others: list[float]
    ) -> None:
        if kept == SYNCED:
            self.synced[f"{work} {shape}"] = rows
        ours = equal_of(rows, Rlog.name)
        our_best = best_of(rows, Rlog.name)
        shown, report = [], []
        for row in rows:
            way, same = row.way, row.peer == Rlog.name
            against: dict[str, float] = {}
            if ours and way.equal and not same:
                against["equal"] = ratio(ours.figures, row.figures)
            if our_best and row is best_of(rows, row.peer) and not same:
                against["best"] = ratio(our_best.figures, row.figures)
            shown.append(
                [
                    f"{row.peer}: {way.name}", row.client, way.per_ack, way.per_sync,
                    way.per_commit or "–", readable(median(row.figures)),
                    readable(min(row.figures)), readable(max(row.figures)),
                    *(times(against.get(key)) for key in ("equal", "best")),
                ]
            )  # fmt: skip
            report.append(
                {
                    "peer": row.peer, "client": row.client, "way": way.name,
                    "records per acknowledgement": way.per_ack, "per sync": way.per_sync,
                    "per commit": way.per_commit, "equal": way.equal, "ranked": way.ranked,
                    "figures": row.figures, "ratios": against,
                }
            )  # fmt: skip
        rounds = self.bench.options.rounds
        show(
            f"{work} of {shape}, {kept}, one client, records/s, {rounds} rounds", others,
            ("", "client", "an ack.", "a sync", "a commit", "median", "lowest", "highest",
             "equal batch", "best of each"),
            shown,
        )  # fmt: skip
        self.bench.report(
            {"work": work, "kept": kept, "shape": shape, "unit": "records/s", "others": others,
             "rows": report}
        )  # fmt: skip

    # --- one at a time ------------------------------------------------------------------------

    def singles(self, peers: list[Peer], record: bytes) -> None:
        """Threads, processes and tasks, of the class SYNCED."""
        works: list[Callable[[], None]] = []
        rows: list[Single] = []

        def add(peer: Peer, mode: str, clients: int, run: Callable[..., load.Taken]) -> None:
            row = Single(peer.name, peer.client, mode, clients, [], [], [], [], [])
            rows.append(row)
            works.append(lambda: row.add(run(peer, clients, record, self.seconds)))

        for clients in CLIENTS:
            for peer in peers:
                if peer.one() is not None:
                    add(
                        peer, "threads" if clients > 1 else "blocking client", clients, load.threads
                    )
                elif clients == 1:
                    add(peer, "asyncio client", 1, load.tasks)
        for clients in CLIENTS[1:]:
            for peer in peers:
                if peer.processes:
                    add(peer, "processes", clients, load.processes)
        for peer in peers:
            if peer.many(1) is not None:
                add(peer, "in flight, one asyncio process", IN_FLIGHT, load.tasks)
        self._singles("one append of 100 B at a time by each client", rows, works)

    def server(self, peers: list[Peer], record: bytes) -> None:
        """The same by the raw program, and by redis-benchmark; what the server takes for it."""
        works: list[Callable[[], None]] = []
        rows: list[Single] = []

        def add(peer: Peer, client: str, clients: int, run: Callable[[int], load.Taken]) -> None:
            row = Single(peer.name, client, "connections", clients, [], [], [], [], [])
            rows.append(row)
            tried = run(max(clients, 100))
            count = max(2 * clients, int(tried.rate * self.seconds))

            def work() -> None:
                before = peer.seconds()
                taken = run(count)
                cpu = (peer.seconds() - before) / len(taken.seconds) * 100_000
                row.add(taken, cpu)

            works.append(work)

        for clients in CLIENTS:
            for peer in peers:
                if (speak := SPEAKERS.get(type(peer))) is None:
                    continue
                assert isinstance(peer, Rlog | Redis)
                add(
                    peer, "raw sockets, one epoll loop", clients,
                    partial(driven, speak, peer.port, clients, record),
                )  # fmt: skip
                if isinstance(peer, Redis) and shutil.which("redis-benchmark"):
                    run = partial(redis_benchmark, peer.port, clients, record)
                    add(peer, "redis-benchmark, in C", clients, run)
        self._singles("one append of 100 B at a time, the cheapest clients", rows, works)

    def _singles(self, title: str, rows: list[Single], works: list[Callable[[], None]]) -> None:
        others = self.bench.rounds(works)
        self.single += rows
        ours = {(row.mode, row.clients): row for row in rows if row.peer == Rlog.name}
        shown, report = [], []
        for row in rows:
            mine = ours.get((row.mode, row.clients))
            against = ratio(mine.rate, row.rate) if mine and mine is not row else None
            shown.append(
                [
                    row.label, row.client, readable(median(row.rate)),
                    *(readable(median(figures)) for figures in (row.p50, row.p99, row.p999)),
                    f"{median(row.cpu):.2f}" if row.cpu else "–",
                    times(against),
                ]
            )  # fmt: skip
            report.append({**row._asdict(), "ratio": against})
        show(
            f"{title}, {SYNCED}, {self.bench.options.rounds} rounds", others,
            ("", "client", "appends/s", "p50 µs", "p99 µs", "p99.9 µs",
             "server's CPU s per 100,000", "rlog's rate to this"),
            shown,
        )  # fmt: skip
        self.bench.report(
            {"work": "single", "title": title, "kept": SYNCED, "unit": "appends/s",
             "others": others, "rows": report}
        )  # fmt: skip

    def pings(self, peers: list[Peer], column: list[bytes]) -> None:
        """Of a second connection, beside each load."""
        batch = batch_of(column)
        works: list[Callable[[], None]] = []
        found: dict[str, tuple[list[float], list[float]]] = {}

        def beside(peer: Rlog | Redis, text: str, run: Callable[[], object]) -> None:
            p50, p99 = found[f"{peer.name}: {text}"] = ([], [])

            def work() -> None:
                with raw.pinging(SPEAKERS[type(peer)], peer.port) as seconds:
                    run()
                p50.append(percentile(seconds, 0.5) * 1e6)
                p99.append(percentile(seconds, 0.99) * 1e6)

            works.append(work)

        for peer in peers:
            if not isinstance(peer, Rlog | Redis):
                continue
            beside(peer, "idle", partial(time.sleep, self.seconds))
            for way in peer.appends(batch)[:2]:
                append = cast("Callable[[Sequence[bytes]], float]", way.run)
                records = stretched(column, self._tried(append, column, batch))
                beside(peer, f"append, {way.name}", partial(append, records))
            speak = SPEAKERS[type(peer)]
            for clients in CLIENTS:
                tried = driven(speak, peer.port, clients, column[0], max(clients, 100))
                count = max(2 * clients, int(tried.rate * self.seconds))
                beside(
                    peer, f"single appends over {clients} connections",
                    partial(driven, speak, peer.port, clients, column[0], count),
                )  # fmt: skip
        others = self.bench.rounds(works)
        show(
            f"a second connection's ping beside a load, 100 B, {SYNCED}, µs", others,
            ("", "p50", "p99"),
            [
                [name, readable(median(p50)), readable(median(p99))]
                for name, (p50, p99) in found.items()
            ],
        )  # fmt: skip
        rows = [{"load": name, "p50": p50, "p99": p99} for name, (p50, p99) in found.items()]
        self.bench.report({"work": "ping", "kept": SYNCED, "unit": "µs", "others": others,
                           "rows": rows})  # fmt: skip

    # --- goals --------------------------------------------------------------------------------

    def goals(self) -> None:
        """Those of them that this run has the figures for."""
        found = [*self._bulk_goals(), *self._single_goals()]
        if found:
            print("\n  goals")
        for goal, measured, reached in found:
            print(f"  {'reached    ' if reached else 'NOT reached'} {goal}: {measured}")
            self.bench.report({"goal": goal, "measured": measured, "reached": reached})

    def _bulk_goals(self) -> Iterator[tuple[str, str, bool]]:
        for work, least, against in (
            ("append", 3e6, {"Redis Streams": 25, "NATS JetStream": 200}),
            ("consume", 4.5e6, {"Redis Streams": 25, "NATS JetStream": 80}),
        ):
            rows = self.synced.get(f"{work} 100 B", [])
            ours, best = equal_of(rows, Rlog.name), best_of(rows, Rlog.name)
            if ours is None or best is None:
                continue
            rate = median(best.figures)
            yield f"{work} 100 B ≥ {least:,.0f}/s", f"{rate:,.0f}/s", rate >= least
            for row in rows:
                if row.way.name.startswith("`extend`"):
                    rate = median(row.figures)
                    yield (
                        "append 100 B with `extend` ≥ 4,500,000/s",
                        f"{rate:,.0f}/s",
                        rate >= 4.5e6,
                    )
            for peer, factor_min in against.items():
                for row in rows:
                    if row.peer == peer and row.way.equal:
                        factor = ratio(ours.figures, row.figures)
                        yield (
                            f"{work} 100 B ≥ {factor_min} × {peer}, equal batch ({row.way.name})",
                            f"{factor:.1f} ×", factor >= factor_min,
                        )  # fmt: skip

    def _single_goals(self) -> Iterator[tuple[str, str, bool]]:
        def pick(peer: str, mode: str, clients: int, client: str = "") -> Single | None:
            for row in self.single:
                same = (row.peer, row.mode, row.clients) == (peer, mode, clients)
                if same and row.client.startswith(client):
                    return row
            return None

        for mode, clients, factor_min in (
            ("blocking client", 1, 1.1), ("threads", 16, 2.0), ("threads", 128, 2.0),
            ("in flight, one asyncio process", IN_FLIGHT, 6.0),
        ):  # fmt: skip
            mine, other = pick(Rlog.name, mode, clients), pick(Redis.name, mode, clients)
            if mine is None or other is None:
                continue
            what = f"single appends, {clients} {mode}"
            factor = ratio(mine.rate, other.rate)
            yield f"{what} ≥ {factor_min} × redis-py", times(factor), factor >= factor_min
            if mode == "threads":
                factor = ratio(mine.p99, other.p99)
                yield f"{what}: p99 ≤ redis-py's", f"{factor:.2f} ×", factor <= 1.0
        mine, other = (pick(name, "connections", 128, "raw") for name in (Rlog.name, Redis.name))
        if mine is not None:
            cpu = median(mine.cpu)
            what = "server's CPU per 100,000 single appends, 128 connections"
            yield f"{what} ≤ 2.5 s", f"{cpu:.2f} s", cpu <= 2.5
            if other is not None:
                factor = ratio(mine.cpu, other.cpu)
                yield f"{what} ≤ 2 × Redis's", f"{factor:.2f} ×", factor <= 2.0


def equal_of(rows: list[Row], peer: str) -> Row | None:
    return next((row for row in rows if row.peer == peer and row.way.equal), None)


def best_of(rows: list[Row], peer: str) -> Row | None:
    ranked = [row for row in rows if row.peer == peer and row.way.ranked]
    return max(ranked, key=lambda row: median(row.figures), default=None)


# --- records ----------------------------------------------------------------------------------


def size_of(column: list[bytes]) -> int:
    """Of a record, on average."""
    return max(1, sum(map(len, column)) // len(column))


def batch_of(column: list[bytes]) -> int:
    """The batch that all have in common: what no protocol here takes for too large."""
    return max(1, min(BATCH, MIB // (size_of(column) + OVERHEAD)))


def stretched(column: list[bytes], count: int) -> list[bytes]:
    return (column * (count // len(column) + 1))[:count]


# --- clients of other kinds -------------------------------------------------------------------


def driven(
    speak: type[raw.Speaker], port: int, clients: int, record: bytes, count: int
) -> load.Taken:
    go, ended = raw.drive(speak, port, clients, record, max(1, count // clients))
    go()
    return ended()


def redis_benchmark(port: int, clients: int, record: bytes, count: int) -> load.Taken:
    """Its own percentiles, each as often as would give them back."""
    command = [
        "redis-benchmark", "-p", str(port), "-c", str(clients), "-n", str(count), "--csv",
        "XADD", "raw", "*", "v", record.decode(),
    ]  # fmt: skip
    said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    row = next(csv.DictReader(said.splitlines()))
    p50, p99 = (float(row[f"p{share}_latency_ms"]) / 1e3 for share in (50, 99))
    longest = float(row["max_latency_ms"]) / 1e3
    seconds = [p50] * (count - count // 50) + [p99] * (count // 50 - 1) + [longest]
    return load.Taken(float(row["rps"]), seconds)


# --- the run ----------------------------------------------------------------------------------


@contextlib.contextmanager
def started(bench: Bench, names: Sequence[str], kept: str) -> Iterator[list[Peer]]:
    """Those that are installed and can be run under this class of durability."""
    with contextlib.ExitStack() as stack:
        peers = []
        print(f"\n  {kept}:")
        for name in names:
            kind = PEERS[name]
            if kept not in kind.kept:
                continue
            try:
                kind.check()
                directory = Path(bench.directory(f"{name}-{CLASSES.index(kept)}"))
                peer = stack.enter_context(kind(directory, kept))
            except Missing as error:
                bench.note(f"{kind.name} is left out: {error}")
                continue
            bench.note(f"{kind.name}: {kind.kept[kept]}; {peer.client}")
            peers.append(peer)
        bench.pids = tuple(pid for peer in peers for pid in peer.pids)
        yield peers
    bench.pids = ()


def chosen(text: str, of: Sequence[str]) -> list[str]:
    names = text.split(",") if text else list(of)
    for name in names:
        if name not in of:
            raise SystemExit(f"{name} is none of {', '.join(of)}")
    return names


def main() -> None:
    options: list[tuple[str, Any, str]] = [
        ("seconds", 0.5, "of one case, about"),
        ("mib", 128, "of one case, at most"),
        ("lines", "", "a file of log lines, in place of made-up ones"),
        ("peers", "", f"some of {','.join(PEERS)}"),
        ("work", "", f"some of {','.join(WORKS)}"),
        ("shapes", "", f"some of {','.join((LINES, *SIZES))}"),
    ]
    question = "How does rlog stand beside what a Python program would otherwise use?"
    with Bench(question, 5, *options) as bench:
        chose = bench.options
        chose.json = chose.json or str(RESULTS)
        names, works = chosen(chose.peers, tuple(PEERS)), chosen(chose.work, WORKS)
        columns = {LINES: lines.read(chose.lines) if chose.lines else lines.generated()}
        columns |= {
            shape: values(size, min(50_000, DISTINCT_BYTES // size))
            for shape, size in SIZES.items()
        }
        shapes = chosen(chose.shapes, tuple(columns))
        kind = f"of {chose.lines}" if chose.lines else "made up"
        bench.note(f"log lines {kind}: {size_of(columns[LINES])} bytes on average")
        comparison = Comparison(bench)
        for kept in (SYNCED, LATER):
            with started(bench, names, kept) as peers:
                for shape in shapes:
                    if "append" in works:
                        comparison.appends(peers, kept, shape, columns[shape])
                    if "consume" in works:
                        comparison.consumes(peers, kept, shape, columns[shape])
                if kept == SYNCED and "single" in works:
                    comparison.singles(peers, columns["100 B"][0])
                if kept == SYNCED and "server" in works:
                    comparison.server(peers, columns["100 B"][0])
                    comparison.pings(peers, columns["100 B"])
        comparison.goals()


if __name__ == "__main__":
    main()

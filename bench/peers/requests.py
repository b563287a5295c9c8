"""One record at a time, by many clients at once; and what a second connection feels of a load."""

from __future__ import annotations

import csv
import shutil
import subprocess
import time
from functools import partial
from statistics import median
from typing import TYPE_CHECKING, Final

from ..harness import percentile, readable
from . import load, raw
from .bulk import stretched, tried
from .peer import SYNCED
from .redis_streams import Redis
from .rlog_server import Rlog
from .rows import Single, ratio, show, times

if TYPE_CHECKING:
    from collections.abc import Callable

    from ..harness import Bench
    from .peer import Peer

IN_FLIGHT: Final = 128
TASKS: Final = "in flight, one asyncio process"
RAW: Final = "raw sockets, one epoll loop"
_SECONDS_FACTOR: Final = 2  # of a bulk case: with many clients, each has its turn but seldom
SPEAKERS: Final[dict[type[Peer], type[raw.Speaker]]] = {
    Rlog: raw.RlogSpeaker,
    Redis: raw.RedisSpeaker,
}


def clients_of(bench: Bench) -> list[int]:
    """How many clients at once, by the option of that name."""
    return [int(text) for text in bench.options.clients.split(",")]


def singles(bench: Bench, peers: list[Peer], record: bytes) -> list[Single]:
    """By threads, by processes and by tasks of one loop."""
    works: list[Callable[[], None]] = []
    rows: list[Single] = []
    seconds = _SECONDS_FACTOR * bench.options.seconds
    some = clients_of(bench)

    def add(peer: Peer, mode: str, clients: int, run: Callable[..., load.Taken]) -> None:
        row = Single(peer.name, peer.client, mode, clients, [], [], [], [], [])
        rows.append(row)
        works.append(lambda: row.add(run(peer, clients, record, seconds)))

    for clients in some:
        for peer in peers:
            if peer.one() is not None:
                add(peer, "threads" if clients > 1 else "blocking client", clients, load.threads)
            elif clients == 1:
                add(peer, "asyncio client", 1, load.tasks)
    for clients in filter((1).__lt__, some):
        for peer in peers:
            if peer.processes:
                add(peer, "processes", clients, load.processes)
    for peer in peers:
        if peer.many(1) is not None:
            add(peer, TASKS, IN_FLIGHT, load.tasks)
    _report(bench, "one append of 100 B at a time by each client", rows, bench.rounds(works))
    return rows


def servers(bench: Bench, peers: list[Peer], record: bytes) -> list[Single]:
    """By the raw program, and by redis-benchmark; with what the server takes for it."""
    works: list[Callable[[], None]] = []
    rows: list[Single] = []

    def add(peer: Peer, client: str, clients: int, run: Callable[[int], load.Taken]) -> None:
        row = Single(peer.name, client, "connections", clients, [], [], [], [], [])
        rows.append(row)
        count = _count(bench, run, clients)

        def work() -> None:
            before = peer.seconds()
            taken = run(count)
            row.add(taken, (peer.seconds() - before) / len(taken.seconds) * 100_000)

        works.append(work)

    for clients in clients_of(bench):
        for peer in peers:
            if isinstance(peer, Rlog | Redis):
                add(peer, RAW, clients, partial(_driven, peer, clients, record))
            if isinstance(peer, Redis) and shutil.which("redis-benchmark"):
                run = partial(_redis_benchmark, peer.port, clients, record)
                add(peer, "redis-benchmark, in C", clients, run)
    _report(bench, "one append of 100 B at a time, the cheapest clients", rows, bench.rounds(works))
    return rows


def _count(bench: Bench, run: Callable[[int], load.Taken], clients: int) -> int:
    """How many requests it does in a case's time."""
    tried = run(10 * clients + 100)
    return max(2 * clients, int(tried.rate * _SECONDS_FACTOR * bench.options.seconds))


def _driven(peer: Rlog | Redis, clients: int, record: bytes, count: int) -> load.Taken:
    return raw.drive(SPEAKERS[type(peer)], peer.port, clients, record, max(1, count // clients))


def _redis_benchmark(port: int, clients: int, record: bytes, count: int) -> load.Taken:
    """Its own rate and percentiles: p50, p99 and, for p99.9, the longest."""
    command = [
        "redis-benchmark", "-p", str(port), "-c", str(clients), "-n", str(count), "--csv",
        "XADD", "raw", "*", "v", record.decode(),
    ]  # fmt: skip
    said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    row = next(csv.DictReader(said.splitlines()))
    p50, p99, longest = (float(row[f"{name}_latency_ms"]) / 1e3 for name in ("p50", "p99", "max"))
    # So many of each that they are the percentiles again.
    seconds = [p50] * (count - count // 50) + [p99] * (count // 50 - count // 500)
    return load.Taken(float(row["rps"]), seconds + [longest] * (count - len(seconds)))


def _report(bench: Bench, title: str, rows: list[Single], others: list[float]) -> None:
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
        report.append({**row._asdict(), "label": row.label, "ratio": against})
    show(
        f"{title}, {SYNCED}", others,
        ("", "client", "appends/s", "p50 µs", "p99 µs", "p99.9 µs", "server's CPU s per 100,000",
         "rlog ÷ it"),
        shown,
    )  # fmt: skip
    bench.report(
        {"work": "single", "title": title, "kept": SYNCED, "others": others, "rows": report}
    )


def pings(bench: Bench, peers: list[Peer], column: list[bytes]) -> None:
    """Of a second connection, in a process of its own, beside each load."""
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
        beside(peer, "idle", partial(time.sleep, bench.options.seconds))
        for way in peer.appends(1000)[:2]:
            records = stretched(column, tried(bench, way.run, column))
            beside(peer, f"append, {way.name}", partial(way.run, records))
        for clients in clients_of(bench):
            driven = partial(_driven, peer, clients, column[0])
            work = partial(driven, _count(bench, driven, clients))
            beside(peer, f"single appends, {clients} connections", work)
    others = bench.rounds(works)
    show(
        f"a second connection's ping beside a load, 100 B, {SYNCED}, µs", others,
        ("", "p50", "p99"),
        [
            [name, readable(median(p50)), readable(median(p99))]
            for name, (p50, p99) in found.items()
        ],
    )  # fmt: skip
    rows = [{"load": name, "p50": p50, "p99": p99} for name, (p50, p99) in found.items()]
    bench.report({"work": "ping", "kept": SYNCED, "others": others, "rows": rows})

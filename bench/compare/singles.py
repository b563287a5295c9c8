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
from .bulk import BATCH, stretched, tried
from .peers.peer import SYNCED
from .peers.redis_streams import Redis
from .peers.rlog_server import Rlog
from .rows import SHARES, Single, latency, ranged, ratios, show

if TYPE_CHECKING:
    from collections.abc import Callable

    from ..harness import Bench, Conditions
    from .field import Field
    from .peers.peer import Peer

    # So many requests; it calls back when the first is about to be sent.
    _Run = Callable[[int, Callable[[], object]], load.Taken]

IN_FLIGHT: Final = 128
BLOCKING: Final = "blocking client"
ASYNCIO: Final = "asyncio client"
TASKS: Final = "in flight, one asyncio process"
CONNECTIONS: Final = "connections"
RAW: Final = "raw sockets, one epoll loop"
REDIS_BENCHMARK: Final = "redis-benchmark, in C (p99.9: the longest)"
SPEAKERS: Final[dict[type[Peer], type[raw.Speaker]]] = {
    Rlog: raw.RlogSpeaker,
    Redis: raw.RedisSpeaker,
}
_SPARE_SECONDS: Final = 120.0  # of a program that takes some seconds


def clients_of(bench: Bench) -> list[int]:
    """How many clients at once, by the option of that name."""
    return [int(text) for text in bench.options.clients.split(",")]


def singles(field: Field, record: bytes) -> list[Single]:
    """By threads, by processes and by tasks of one loop."""
    works: list[tuple[Peer, Callable[[], None]]] = []
    rows: list[Single] = []
    seconds = field.bench.options.single_seconds
    some = clients_of(field.bench)

    def add(peer: Peer, mode: str, clients: int, run: Callable[..., load.Taken]) -> None:
        row = Single.of(peer, peer.client, mode, clients)
        rows.append(row)
        works.append((peer, lambda: row.add(run(peer, clients, record, seconds))))

    for clients in some:
        for peer in field:
            if peer.blocking:
                add(peer, "threads" if clients > 1 else BLOCKING, clients, load.threads)
            elif clients == 1:
                add(peer, ASYNCIO, 1, load.tasks)
    for clients in filter((1).__lt__, some):
        for peer in field:
            if peer.processes:
                add(peer, "processes", clients, load.processes)
    for peer in field:
        if peer.asynchronous:
            add(peer, TASKS, IN_FLIGHT, load.tasks)
    conditions = field.rounds(works)
    return _report(field, "one append of 100 B at a time by each client", rows, conditions)


def servers(field: Field, record: bytes) -> list[Single]:
    """By the raw program, and by redis-benchmark; with what the server takes for it."""
    works: list[tuple[Peer, Callable[[], None]]] = []
    rows: list[Single] = []

    def add(peer: Peer, client: str, clients: int, run: _Run) -> None:
        row = Single.of(peer, client, CONNECTIONS, clients)
        count = _count(field.bench, run, clients)
        rows.append(row)

        def work() -> None:
            before = 0.0

            def begun() -> None:
                nonlocal before
                before = peer.seconds()

            taken = run(count, begun)
            row.add(taken, (peer.seconds() - before) / len(taken.seconds) * 100_000)

        works.append((peer, work))

    for clients in clients_of(field.bench):
        for peer in field:
            with field.trying(peer):
                if isinstance(peer, Rlog | Redis):
                    add(peer, RAW, clients, partial(_driven, peer, clients, record))
                if isinstance(peer, Redis) and shutil.which("redis-benchmark"):
                    run = partial(_redis_benchmark, peer.port, clients, record)
                    add(peer, REDIS_BENCHMARK, clients, run)
    conditions = field.rounds(works)
    return _report(field, "one append of 100 B at a time, the cheapest clients", rows, conditions)


def _count(bench: Bench, run: _Run, clients: int) -> int:
    """How many requests it does in a case's time."""
    found = run(10 * clients + 100, lambda: None)
    return max(2 * clients, int(found.rate * bench.options.single_seconds))


def _driven(
    peer: Rlog | Redis, clients: int, record: bytes, count: int, begun: Callable[[], object]
) -> load.Taken:
    each = max(1, count // clients)
    return raw.drive(SPEAKERS[type(peer)], peer.port, clients, record, each, begun)


def _redis_benchmark(
    port: int, clients: int, record: bytes, count: int, begun: Callable[[], object]
) -> load.Taken:
    """Its own rate and percentiles: p50, p99 and, for p99.9, the longest."""
    command = [
        "redis-benchmark", "-p", str(port), "-c", str(clients), "-n", str(count), "--csv",
        "XADD", "raw", "*", "v", record.decode(),
    ]  # fmt: skip
    begun()
    said = subprocess.run(
        command, check=True, capture_output=True, text=True, timeout=_SPARE_SECONDS
    ).stdout
    row = next(csv.DictReader(said.splitlines()))
    p50, p99, longest = (float(row[f"{name}_latency_ms"]) / 1e3 for name in ("p50", "p99", "max"))
    # So many of each that they are the percentiles again.
    seconds = [p50] * (count - count // 50) + [p99] * (count // 50 - count // 500)
    return load.Taken(float(row["rps"]), seconds + [longest] * (count - len(seconds)))


def _report(field: Field, title: str, rows: list[Single], conditions: Conditions) -> list[Single]:
    rows = field.whole(rows)
    ours = {(row.mode, row.clients): row for row in rows if row.peer == Rlog.name}
    # One client is one client, where there is no blocking one.
    if (BLOCKING, 1) in ours:
        ours[ASYNCIO, 1] = ours[BLOCKING, 1]
    shown, report = [], []
    for row in rows:
        mine = ours.get((row.mode, row.clients))
        against = ratios(mine.rate, row.rate) if mine and mine is not row else None
        shown.append(
            [
                row.label, row.client, "1", row.per_sync, "–", readable(median(row.rate)),
                *(latency(getattr(row, name), row.samples, SHARES[name]) for name in SHARES),
                f"{median(row.cpu):.2f}" if row.cpu else "–",
                ranged(against),
            ]
        )  # fmt: skip
        report.append({**row._asdict(), "label": row.label, "load": row.load, "ratios": against})
    show(
        f"{title}, {SYNCED}", conditions,
        ("", "client", "an ack.", "a sync", "a commit", "appends/s", "p50 µs", "p99 µs",
         "p99.9 µs", "server's CPU s per 100,000", "rlog ÷ it"),
        shown,
    )  # fmt: skip
    field.bench.report(
        {
            "work": "single", "title": title, "durability": SYNCED, **conditions._asdict(),
            "rows": report,
        }
    )  # fmt: skip
    return rows


def pings(field: Field, column: list[bytes]) -> None:
    """Of a second connection, in a process of its own, beside each load."""
    bench = field.bench
    works: list[tuple[Peer, Callable[[], None]]] = []
    found: dict[str, tuple[list[int], list[float], list[float]]] = {}

    def beside(peer: Rlog | Redis, text: str, run: Callable[[], object]) -> None:
        samples, p50, p99 = found[f"{peer.name}: {text}"] = ([], [], [])

        def work() -> None:
            with raw.pinging(SPEAKERS[type(peer)], peer.port) as seconds:
                run()
            samples.append(len(seconds))
            p50.append(percentile(seconds, 0.5) * 1e6)
            p99.append(percentile(seconds, 0.99) * 1e6)

        works.append((peer, work))

    for peer in field:
        if not isinstance(peer, Rlog | Redis):
            continue
        with field.trying(peer):
            beside(peer, "idle", partial(time.sleep, bench.options.seconds))
            for way in [way for way in peer.appends(BATCH) if not way.bulk_call][:2]:
                records = stretched(column, tried(bench, way.run, column))
                beside(peer, f"append, {way.name}", partial(way.run, records))
            for clients in clients_of(bench):
                driven = partial(_driven, peer, clients, column[0])
                work = partial(driven, _count(bench, driven, clients), lambda: None)
                load_ = Single.of(peer, RAW, CONNECTIONS, clients).load
                beside(peer, f"single appends, {load_}", work)
    conditions = field.rounds(works)
    rows = [
        (name, *figures) for name, figures in found.items()
        if len(figures[0]) == bench.options.rounds
    ]  # fmt: skip
    show(
        f"a second connection's ping beside a load, 100 B, {SYNCED}, µs",
        conditions,
        ("", "p50", "p99"),
        [
            [name, latency(p50, samples, SHARES["p50"]), latency(p99, samples, SHARES["p99"])]
            for name, samples, p50, p99 in rows
        ],
    )
    report = [dict(zip(("load", "samples", "p50", "p99"), row, strict=True)) for row in rows]
    bench.report({"work": "ping", "durability": SYNCED, **conditions._asdict(), "rows": report})

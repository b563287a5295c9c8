"""Every example is run as its user would run it: as a program, against a real server."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import time
import urllib.request
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import rlog_client as rlog
from tests.e2e.serving import ROOT, Server, eventually

if TYPE_CHECKING:
    from collections.abc import Iterator

HERE = Path(__file__).parent
BIN = Path(sys.executable).parent
NAMES = {path.name for path in HERE.iterdir() if path.suffix in (".py", ".sh")}


@pytest.fixture
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = Server(tmp_path_factory.mktemp("s") / "data").start()
    yield server
    server.kill()


@pytest.fixture
def client(server: Server) -> Iterator[rlog.Client]:
    with server.connect() as client:
        yield client


class Example:
    """Runs one of them in a directory of its own."""

    def __init__(self, server: Server, directory: Path) -> None:
        self.directory = directory
        path = f"{BIN}{os.pathsep}{os.environ['PATH']}"
        self.environment = {**os.environ, "RLOG_ADDR": server.tcp, "PATH": path}
        self._started: list[subprocess.Popen[str]] = []

    def start(self, name: str, *arguments: object) -> subprocess.Popen[str]:
        interpreter = ["sh"] if name.endswith(".sh") else [sys.executable]
        self._started.append(
            subprocess.Popen(
                [*interpreter, str(HERE / name), *map(str, arguments)],
                cwd=self.directory,
                env=self.environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
        return self._started[-1]

    def run(self, name: str, *arguments: object) -> str:
        process = self.start(name, *arguments)
        output, errors = process.communicate(timeout=60)
        assert process.returncode == 0, errors
        return output

    def end(self) -> None:
        for process in self._started:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            process.communicate()


@pytest.fixture
def example(server: Server, tmp_path: Path) -> Iterator[Example]:
    example = Example(server, tmp_path)
    yield example
    example.end()


def line_of(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().rstrip("\n")


def values(client: rlog.Client, log: str) -> list[bytes]:
    import rlog_client as rlog

    return [r.value for r in client.log(log).reader(rlog.OLDEST, block=False)]


def test_each_is_a_page_or_less() -> None:
    tried = set(re.findall(r"[\w]+\.(?:py|sh)", Path(__file__).read_text()))
    examples = NAMES - {"__init__.py", "test_examples.py"}
    assert len(examples) == 14
    assert examples <= tried
    for name in examples:
        assert len((HERE / name).read_text().splitlines()) <= 66, name


def test_bulk_etl(example: Example, client: rlog.Client) -> None:
    file = example.directory / "lines"
    lines = [b"line %d" % n for n in range(50_000)]
    file.write_bytes(b"\n".join(lines[:20_000]) + b"\n")
    example.run("bulk_etl.py", "access", file)
    file.write_bytes(b"\n".join(lines) + b"\n")
    killed = example.start("bulk_etl.py", "access", file)
    log = client.log("access")
    eventually(lambda: killed.poll() is not None or log.info().end > 20_000, "it goes on")
    killed.kill()
    assert "the log ends at 50000" in example.run("bulk_etl.py", "access", file)
    assert values(client, "access") == lines


def test_tail(example: Example, client: rlog.Client, server: Server) -> None:
    log = client.log("access", create=True)
    log.append_many([b"%d" % n for n in range(20)])
    tail = example.start("tail.py", "access", 2)
    assert [line_of(tail) for _ in range(2)] == ["18 18", "19 19"]
    log.append(b"more")
    assert line_of(tail) == "20 more"
    tail.send_signal(signal.SIGINT)
    assert tail.wait(30) == 0


def test_work_queue(example: Example, client: rlog.Client) -> None:
    log = client.log("orders", create=True)
    orders = [
        {"customer": 1, "amount": 5},
        {"customer": 2, "amount": -1},
        {"customer": 3, "amount": 0},
    ]
    log.append_many([json.dumps(order).encode() for order in orders])
    log.append(b"{")
    log.append(json.dumps({"customer": 4, "amount": 7}).encode())
    worker = example.start("work_queue.py", "orders")
    assert [line_of(worker), line_of(worker)] == ["charged 1 5", "charged 4 7"]
    cursor = log.cursor("billing")
    eventually(lambda: cursor.info().committed == 5, "all are done with")
    worker.send_signal(signal.SIGTERM)
    assert line_of(worker) == "5 orders done with"
    parked = cursor.parked()
    assert [p.record.offset for p in parked] == [1, 3]
    assert "cannot charge -1" in parked[0].error
    assert parked[0].attempts == 3
    assert parked[1].reason.startswith("not an order")


def test_shared_queue(example: Example, client: rlog.Client) -> None:
    log = client.log("parcels", create=True)
    log.append_many(
        [rlog.Item(b"%d" % number, key=b"customer-%d" % (number % 3)) for number in range(30)]
    )
    workers = example.start("shared_queue.py", "parcels", 3)
    lines = [line_of(workers).split() for _ in range(30)]
    for customer in range(3):
        mine = [int(number) for _, key, number in lines if key == f"customer-{customer}"]
        assert mine == list(range(customer, 30, 3))
    cursor = log.cursor("delivery")
    eventually(lambda: cursor.info().committed == 30, "all are done with")
    workers.send_signal(signal.SIGTERM)
    assert workers.wait(30) == 0
    assert not cursor.info().members


def test_fan_in(example: Example, client: rlog.Client) -> None:
    assert example.run("fan_in.py", "events", 4, 500) == "the log ends at 2000\n"
    expected = {b"%d from %d" % (number, thread) for thread in range(4) for number in range(500)}
    assert set(values(client, "events")) == expected


def test_cron_job(example: Example, client: rlog.Client) -> None:
    log = client.log("access", create=True)
    log.append_many([b"12345"] * 10)
    assert example.run("cron_job.py", "access") == "10 records, 50 bytes\n"
    assert example.run("cron_job.py", "access") == "0 records, 0 bytes\n"
    with log.consumer("nightly"):
        second = example.start("cron_job.py", "access")
        assert second.wait(30) == 1
        assert second.stderr is not None
        assert "another one is at it" in second.stderr.read()


def test_replay(example: Example, client: rlog.Client) -> None:
    log = client.log("access", create=True)
    log.append(b"before")
    time.sleep(0.01)
    since = time.time_ns()
    log.append(b"after")
    seconds, rest = divmod(since, 10**9)
    when = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds)) + f".{rest // 1000:06}+00:00"
    output = example.run("replay.py", "access", when)
    assert output.endswith(" 1 after\n")
    assert "before" not in output


def test_sql_etl(example: Example, client: rlog.Client) -> None:
    log = client.log("orders", create=True)

    def append(first: int, end: int) -> None:
        log.append_many(
            [json.dumps({"customer": n, "amount": n % 7}).encode() for n in range(first, end)]
        )

    append(0, 1)
    assert example.run("sql_etl.py", "orders", "orders.db") == "1 orders copied, up to offset 1\n"
    for first in range(1, 60_000, 1_000):
        append(first, first + 1_000)
    killed = example.start("sql_etl.py", "orders", "orders.db")
    with closing(sqlite3.connect(example.directory / "orders.db", timeout=30.0)) as database:

        def copied() -> int:
            (count,) = database.execute("SELECT count(*) FROM orders").fetchone()
            return int(count)

        eventually(lambda: killed.poll() is not None or copied() > 1, "it goes on")
        killed.kill()
        killed.wait()
        output = example.run("sql_etl.py", "orders", "orders.db")
        assert output.endswith(" orders copied, up to offset 60001\n")
        rows = database.execute("SELECT customer, amount FROM orders ORDER BY rowid").fetchall()
    assert rows == [(n, n % 7) for n in range(60_001)]


def test_redrive(example: Example, client: rlog.Client) -> None:
    import rlog_client as rlog

    log = client.log("orders", create=True)
    log.append_many([b"0", b"1", b"2"])
    with log.consumer("c", block=False) as consumer:
        consumer.process(lambda r: rlog.Park(f"reason {r.offset}"))
    output = example.run("redrive.py", "orders", "c", "reason 1")
    assert output.endswith("records to be delivered again: 1\n")
    seen = []
    with log.consumer("c", block=False) as consumer:
        consumer.process(lambda r: seen.append((r.offset, r.redriven)))
    assert seen == [(1, True)]


def test_standby(example: Example, client: rlog.Client) -> None:
    log = client.log("jobs", create=True)
    log.append_many([b"0", b"1"])
    first = example.start("standby.py", "jobs", "one")
    assert line_of(first).startswith("one works under epoch 1")
    second = example.start("standby.py", "jobs", "two")
    assert [line_of(first), line_of(first)] == ["one 0", "one 1"]
    eventually(lambda: log.cursor("pair").info().committed == 2, "both are committed")
    first.kill()
    assert line_of(second).startswith("two works under epoch 2")
    log.append(b"2")
    assert line_of(second) == "two 2"
    second.send_signal(signal.SIGTERM)
    assert second.wait(30) == 0


def test_web_app(example: Example, client: rlog.Client) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    app = Path("web_app.py").stem
    serving = subprocess.Popen(
        [
            *(sys.executable, "-m", "uvicorn", "--factory", f"{app}:application"),
            *("--app-dir", str(HERE), "--port", str(port), "--log-level", "warning"),
        ],
        env=example.environment,
    )
    try:
        url = f"http://127.0.0.1:{port}/events"

        def posted(body: bytes) -> int:
            with urllib.request.urlopen(url, body, timeout=30) as answer:
                return int(answer.read())

        def serves() -> bool:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
                return True
            return False

        eventually(serves, "uvicorn serves")
        assert [posted(b"one"), posted(b"two")] == [0, 1]
        with urllib.request.urlopen(url, timeout=30) as stream:
            assert [stream.readline(), stream.readline()] == [b"one\n", b"two\n"]
            assert posted(b"three") == 2
            assert stream.readline() == b"three\n"
        assert values(client, "events") == [b"one", b"two", b"three"]
    finally:
        serving.terminate()
        serving.wait(30)


def test_embedded(example: Example) -> None:
    subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_embedded.py"],
        cwd=HERE,
        env={**example.environment, "PYTHONPATH": str(ROOT)},
        check=True,
        capture_output=True,
    )


def test_pipes(example: Example) -> None:
    file = example.directory / "log"
    file.write_bytes(b"INFO a\nERROR b\nINFO c\nERROR d\n")
    count, first, second = example.run("pipes.sh", file).splitlines()
    assert count == "2"
    assert first == second


@pytest.mark.skipif(shutil.which("gzip") is None, reason="the script packs with gzip")
def test_queue_in_a_shell_script(example: Example) -> None:
    there = example.directory / "there"
    there.write_text("content")
    parked = example.run("queue.sh", "there", "missing")  # queue.sh
    assert (example.directory / "there.gz").exists()
    assert [json.loads(line)["offset"] for line in parked.splitlines()] == [1]

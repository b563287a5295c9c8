"""Exactly once, though everybody is killed: what was copied is the log, each record once, in order.

A process copies a log into a table with a ``SqlCursor``; it, the server, and PostgreSQL's backend
are killed at seeded moments, and started again. The table has no constraint that would refuse what
comes twice.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import random
import select
import signal
import subprocess
import sys
import time
from collections import Counter
from typing import TYPE_CHECKING, Any, Final

import pytest

import rlog_client as rlog
from tests.e2e.serving import ROOT, Server, eventually

from .databases import Database, Postgres, Sqlite
from .etl import LOST
from .test_cursor import make_copies

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.report import RecordProperty

FAST_KILLS: Final = 6
LONG_KILLS: Final = 125
SEED: Final = 21
DATABASES: Final = ("sqlite", "sqlite-wal", "psycopg")
COME_SECONDS: Final = 2.0  # a moment that does not come is none: some other time will do
MOMENTS: Final = ("inserted", "advanced", "committed", "at any time", "at any time")


class Copying:
    """The process, since it said where it begins."""

    def __init__(self, server: Server, log: str, database: Database, **options: Any) -> None:
        self.process = subprocess.Popen(
            [
                *(sys.executable, "-m", "tests.sql.etl", server.unix, log, database.url),
                json.dumps({"seed": 0} | options),
            ],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout is not None
        try:
            assert select.select([self.process.stdout], [], [], 30.0)[0], "it says nothing"
            line = self.process.stdout.readline()
            assert line, self.process.communicate(timeout=30.0)[1]
            self.began, self.backend = map(int, line.split())
        except BaseException:
            self.end()
            raise

    def wait(self) -> int:
        """-> its exit code; nothing but the loss of its database may have ended it early."""
        _, said = self.process.communicate(timeout=60.0)
        assert self.process.returncode in (0, LOST, -signal.SIGKILL), said
        assert "Traceback" not in said, said
        return self.process.returncode

    def kill(self) -> int:
        self.process.kill()
        return self.wait()

    def end(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.communicate(timeout=30.0)


class Run:
    """Kills, one after the other, while a log that grows is copied."""

    def __init__(self, server: Server, database: Database, postgres: Postgres | None, seed: int):
        self._chance = random.Random(seed)
        self.server = server
        self.database = database
        self._postgres = postgres
        self._client = server.connect()
        self.log = self._client.log("rows", create=True, file_roll_size=1 << 16)
        self._copying: Copying | None = None
        self.killed: Counter[str] = Counter()
        self.begun: list[int] = []
        make_copies(database)

    def feed(self) -> None:
        """Records for longer than anybody lives."""
        for _ in range(self._chance.randint(5, 60)):
            number = self.log.info().end
            values = range(number, number + self._chance.randint(1, 60))
            self.log.append_many([b"%d " % n * self._chance.randint(1, 20) for n in values])

    def start(self, **options: Any) -> Copying:
        self._copying = Copying(
            self.server,
            self.log.name,
            self.database,
            seed=self._chance.getrandbits(32),
            **options,
        )
        self.begun.append(self._copying.began)
        return self._copying

    def kill(self, victim: str) -> None:
        self.feed()
        copying = self._copying
        moment = self._chance.choice(MOMENTS)
        if victim == "client" and moment != "at any time":
            # It alone knows when it is there, so it has to be told before it begins.
            if copying is not None:
                copying.kill()
            copying = self.start(die=[moment, self._chance.randint(1, 20)])
            try:
                copying.process.wait(COME_SECONDS)
            except subprocess.TimeoutExpired:
                moment = "at any time"
        else:
            copying = copying or self.start()
            time.sleep(self._chance.uniform(0, 0.15))
        if victim == "server":
            self.server.kill()
            time.sleep(self._chance.uniform(0, 0.1))
            self.server.start()
            assert copying.process.poll() is None, copying.wait()  # it comes back by itself
            self.killed[victim] += 1
            return
        if victim == "backend":
            assert self._postgres is not None
            self._postgres.kill(copying.backend)
            self.feed()  # for one that has all: it notices with the next row
            assert copying.wait() == LOST
            moment = ""
        else:
            assert copying.kill() == -signal.SIGKILL
        self._copying = None
        self.killed[f"{victim} {moment}".strip()] += 1

    def finish(self) -> None:
        """Copy the rest, undisturbed."""
        if self._copying is not None:
            self._copying.kill()
        self.feed()
        assert self.start(until=self.log.info().end).wait() == 0
        self._copying = None

    def close(self) -> None:
        if self._copying is not None:
            self._copying.end()
        self._client.close()


def wrong(log: rlog.Log, database: Database) -> list[str]:
    """How what was copied is not the log, in sentences."""
    expected = [(r.offset, r.value) for r in log.reader(rlog.OLDEST, block=False)]
    found = [
        (offset, bytes(value))
        for offset, value in database.look("SELECT log_offset, value FROM copies ORDER BY n")
    ]
    if found == expected:
        return []
    times = Counter(offset for offset, _ in found)
    doubled = [offset for offset, count in times.items() if count > 1]
    lost = [offset for offset, _ in expected if offset not in times]
    return [
        f"{len(found)} rows of {len(expected)} records",
        *([f"doubled: {doubled[:20]}"] if doubled else []),
        *([f"lost: {lost[:20]}"] if lost else []),
    ]


@pytest.fixture
def postgres_of(request: pytest.FixtureRequest, database: Database) -> Postgres | None:
    if isinstance(database, Sqlite):
        return None
    postgres: Postgres = request.getfixturevalue("postgres")
    return postgres


@pytest.fixture
def begin(
    make_server: Callable[..., Server], database: Database, postgres_of: Postgres | None
) -> Iterator[Callable[[int], Run]]:
    """``begin(seed)``: a run of its own."""
    made: list[Run] = []

    def make(seed: int) -> Run:
        made.append(Run(make_server().start(), database, postgres_of, seed))
        return made[-1]

    yield make
    for each in made:
        each.close()


def kill_all(run: Run, kills: int, seed: int, backends: bool) -> None:
    victims = ["client", "server", "client", "backend" if backends else "client", "server"]
    dead = list(itertools.islice(itertools.cycle([*victims, "client"]), kills))
    random.Random(seed).shuffle(dead)
    began = time.monotonic()
    for victim in dead:
        run.kill(victim)
    run.finish()
    moved = sum(after > before for before, after in zip(run.begun, run.begun[1:], strict=False))
    print(
        f"seed {seed}: {sum(run.killed.values())} kills {dict(run.killed)}; "
        f"{len(run.begun)} lives, of which {moved} committed something; "
        f"{run.log.info().end} records; {time.monotonic() - began:.1f} s"
    )
    assert sum(run.killed.values()) == kills
    assert moved > 0
    assert wrong(run.log, run.database) == []


@pytest.mark.parametrize("database", DATABASES, indirect=True)
def test_whoever_is_killed_each_record_is_there_once(
    begin: Callable[[int], Run], postgres_of: Postgres | None
) -> None:
    kill_all(begin(SEED), FAST_KILLS, SEED, postgres_of is not None)


@pytest.mark.slow
@pytest.mark.patience(3600)
@pytest.mark.parametrize("database", DATABASES, indirect=True)
def test_a_hundred_and_twenty_five_kills(
    begin: Callable[[int], Run],
    postgres_of: Postgres | None,
    seed: int,
    record_property: RecordProperty,
) -> None:
    run = begin(seed)
    kill_all(run, LONG_KILLS, seed, postgres_of is not None)
    record_property("SIGKILLs of a copy into a database, its server, the database", LONG_KILLS)
    record_property("records copied into a database, each exactly once", run.log.info().end)


@pytest.mark.parametrize("database", ["sqlite", "psycopg"], indirect=True)
@pytest.mark.parametrize(
    ("careless", "moment", "what"),
    [("rows", ["committed", 3], "doubled"), ("offset", ["inserted", 3], "lost")],
)
def test_two_transactions_are_noticed(
    begin: Callable[[int], Run], careless: str, moment: list[object], what: str
) -> None:
    """That the other tests here can fail."""
    run = begin(SEED)
    run.feed()
    assert run.start(careless=careless, die=moment).wait() == -signal.SIGKILL
    run.finish()
    assert any(sentence.startswith(what) for sentence in wrong(run.log, run.database))


@pytest.mark.parametrize("database", DATABASES, indirect=True)
def test_of_two_that_copy_at_once_one_is_fenced_and_nothing_is_doubled(
    begin: Callable[[int], Run],
) -> None:
    run = begin(SEED)
    run.feed()
    end = run.log.info().end
    with contextlib.ExitStack() as stack:
        both = []
        for seed in (1, 2):
            copying = Copying(run.server, "rows", run.database, seed=seed, until=end + 1)
            stack.callback(copying.end)
            both.append(copying)
        run.log.append(b"the last")
        eventually(lambda: all(c.process.poll() is not None for c in both), "both have ended")
        said = [c.process.communicate(timeout=30.0)[1] for c in both]
        assert sorted(c.process.returncode for c in both) in ([0, 0], [0, 1]), said
        fenced = [text for text in said if "Fenced" in text]
        assert len(fenced) == sum(c.process.returncode for c in both), said
    assert wrong(run.log, run.database) == []

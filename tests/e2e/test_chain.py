"""Promises 13, 17, 18, 19, by what users build on them: consume, transform, produce, exactly once.

Three logs, a -> b -> c. Each arrow is a process of its own that commits a record together with what
it made of it. They and the server are killed at random moments: every record of ``a`` is in ``b``
and in ``c`` exactly once, in order.
"""

from __future__ import annotations

import random
import subprocess
import sys
import time
from collections import Counter
from functools import partial
from typing import TYPE_CHECKING, Final

import pytest

import rlog_client as rlog

from .chain import CONSUMER, WAYS, transformed
from .serving import ROOT, Server, eventually

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.report import RecordProperty

LOGS: Final = "abc"
MOMENTS: Final = (
    *("write:journal:before", "write:journal:half", "write:journal:after"),
    *("sync:journal:before", "sync:journal:after", "reply::before", "reply::after"),
    "write:logs:before",
)


class Chain:
    """The server and both stages; ``kill`` ends one of them, and starts it again."""

    def __init__(self, server: Server, said: Path, chance: random.Random) -> None:
        self._server = server
        self._said = said
        self._chance = chance
        self._stages: dict[str, subprocess.Popen[bytes]] = {}
        self.counts: Counter[str] = Counter()

    def begin(self) -> None:
        for arrow in ("ab", "bc"):
            self._start(arrow)

    def _start(self, arrow: str) -> None:
        way = self._chance.choice(WAYS)
        self.counts[way] += 1
        command = [sys.executable, "-m", "tests.e2e.chain", self._server.unix, *arrow, way]
        with self._path(arrow).open("ab") as said:
            self._stages[arrow] = subprocess.Popen(command, cwd=ROOT, stdout=said, stderr=said)

    def _path(self, arrow: str) -> Path:
        return self._said / f"{arrow}.log"

    def kill(self) -> str:
        """-> what."""
        what = self._chance.choice(("ab", "bc", "server", "moment"))
        self.counts[f"killed {what}"] += 1
        if what == "server":
            self._server.kill()
            self._server.start()
        elif what == "moment":
            self._die_at_a_moment()
        else:
            stage = self._stages[what]
            assert stage.poll() is None, self.text
            stage.kill()
            stage.wait()
            self._start(what)
        return what

    def _die_at_a_moment(self) -> None:
        """The server ends at one exact call, while all are at work."""
        moment = f"{self._chance.choice(MOMENTS)}:{self._chance.randrange(1, 40)}"
        self._server.kill()
        process = self._server.launch("--armed", "--kill", moment)
        try:
            process.wait(self._chance.uniform(0.6, 1.2))  # it may die while it starts
            self.counts["at the exact moment"] += 1
        except subprocess.TimeoutExpired:
            self._server.kill()
        self._server.start()

    @property
    def text(self) -> str:
        return "".join(self._path(arrow).read_text(errors="replace") for arrow in ("ab", "bc"))

    def end(self) -> None:
        for stage in self._stages.values():
            stage.kill()
            stage.wait()


def ends(client: rlog.Client) -> list[int]:
    return [client.log(name).info().end for name in LOGS]


def kills(
    server: Server, said: Path, seed: int, count: int, records: int
) -> tuple[Counter[str], int]:
    """``records``: of ``a`` before each kill. -> what was counted, how many went through."""
    chance = random.Random(seed)
    server.start()
    chain = Chain(server, said, chance)
    number = 0
    try:
        with server.connect(timeout=60.0) as client:
            for name in LOGS:
                client.log(name, create=True, file_roll_size=256 << 10)
            chain.begin()
            for _ in range(count):
                several = [b"%d" % (number + each) for each in range(records)]
                client.log("a").append_many(several)
                number += records
                time.sleep(chance.uniform(0.0, 0.8))
                chain.kill()
            while (before := ends(client)) != [number] * 3:
                eventually(partial(_moves, client, before), f"seed {seed}: on from {before}")
            assert not (why := wrong(client, number)), f"seed {seed}: {why}\n{chain.text[-3000:]}"
            # In one frame with the last record: so it is there when that is.
            committed = [client.log(name).cursor(CONSUMER).info().committed for name in "ab"]
            assert committed == [number, number]
    finally:
        chain.end()
    assert "Traceback" not in chain.text, chain.text[-3000:]
    chain.counts["gone on after an error"] = chain.text.count("goes on after")
    return chain.counts, number


def _moves(client: rlog.Client, before: list[int]) -> bool:
    return ends(client) != before


def wrong(client: rlog.Client, number: int) -> str:
    """What is in ``b`` or ``c`` that should not be, or not there."""
    wanted = [b"%d" % each for each in range(number)]
    for name in LOGS:
        if name != "a":
            wanted = [transformed(value, name) for value in wanted]
        reader = client.log(name).reader(rlog.OLDEST, block=False)
        for at, record in enumerate(reader):
            if at >= number or record.value != wanted[at]:
                return f"{name}/{at} is {record.value!r}"
    return ""


@pytest.mark.patience(240)
def test_every_record_goes_through_a_chain_exactly_once_whatever_is_killed(
    make_server: Callable[..., Server], tmp_path: Path
) -> None:
    counts, _ = kills(make_server(), tmp_path, seed=7, count=6, records=200)
    assert sum(counts[what] for what in counts if what.startswith("killed")) == 6


@pytest.mark.slow
@pytest.mark.patience(3600)
def test_every_record_goes_through_a_chain_exactly_once_in_250_kills(
    make_server: Callable[..., Server], tmp_path: Path, seed: int, record_property: RecordProperty
) -> None:
    _, number = kills(make_server(), tmp_path, seed, count=250, records=200)
    record_property("SIGKILLs of a chain of three logs, its stages and its server", 250)
    record_property("records through that chain, each exactly once", number)

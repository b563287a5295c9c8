"""Members of a shared consumer as processes, which are killed, paused, replaced, and outlive their
server: judged by what their handlers wrote down, and nothing that rlog says.
"""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from typing import TYPE_CHECKING, Final

import pytest

from .hands import Call, calls_of, judge, read_calls
from .serving import ROOT, Server, eventually

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import rlog_client as rlog
    from tests.report import RecordProperty

KEYS: Final = 1000
KINDS: Final = (
    ("blocking", 1),
    ("blocking", 4),
    ("blocking", 64),
    ("trio", 16),
    ("asyncio", 16),
    ("iterate", 1),
    ("blocking", 64),
    ("trio", 16),
)
PAUSE_SECONDS_MAX: Final = 1.0  # below the 5 s in which a member has to come back after a start


class Member:
    """One process. ``death_ns``: just before it was killed."""

    def __init__(self, crowd: Crowd, kind: str, in_flight: int) -> None:
        self.name = f"m{len(crowd.files)}"
        self.kind, self.in_flight = kind, in_flight
        crowd.files[self.name] = crowd.place / f"{self.name}.notes"
        self._said = crowd.place / f"{self.name}.err"
        options = {
            "kind": kind,
            "in_flight": in_flight,
            "seed": crowd.random.getrandbits(32),
            "slow": crowd.slow,
            "name": self.name,
        }
        command = [sys.executable, "-m", "tests.e2e.sharer", crowd.server.unix, crowd.log]
        with self._said.open("wb") as said:
            self.process = subprocess.Popen(
                [*command, str(crowd.files[self.name]), json.dumps(options)], cwd=ROOT, stderr=said
            )

    @property
    def text(self) -> str:
        return self._said.read_text(errors="replace")

    def kill(self) -> int:
        death_ns = time.monotonic_ns()
        self.process.send_signal(signal.SIGKILL)
        self.process.wait(30)
        return death_ns

    def leave(self) -> None:
        """In order."""
        self.process.send_signal(signal.SIGCONT)
        self.process.send_signal(signal.SIGTERM)
        code = self.process.wait(60)
        assert code in (0, -signal.SIGTERM), f"{self.name} ({self.kind}): {code}\n{self.text}"
        assert code == 0 or "Traceback" not in self.text, self.text


class Crowd:
    """Eight members and whatever befalls them, all of it out of ``seed``."""

    def __init__(self, server: Server, log: str, place: Path, seed: int, slow: float) -> None:
        self.server, self.log, self.place = server, log, place
        self.random = random.Random(seed)
        self.slow = slow
        self.files: dict[str, Path] = {}
        self.deaths: dict[str, int] = {}
        self.counts: Counter[str] = Counter()
        self._paused: list[tuple[float, Member]] = []
        self.members = [Member(self, *kind) for kind in KINDS]

    def befall(self, kinds: dict[str, int]) -> None:
        """One more thing happens."""
        self.wake()
        what = self.random.choices(list(kinds), list(kinds.values()))[0]
        self.counts[what] += 1
        place = self.random.randrange(len(self.members))
        member = self.members[place]
        match what:
            case "kill":
                self.deaths[member.name] = member.kill()
                self.members[place] = Member(self, member.kind, member.in_flight)
            case "pause":
                member.process.send_signal(signal.SIGSTOP)
                end = time.monotonic() + self.random.random() * PAUSE_SECONDS_MAX
                self._paused.append((end, member))
            case "leave":
                member.leave()
                self.members[place] = Member(self, member.kind, member.in_flight)
            case "restart":
                self.server.stop()
                self.server.start()
            case "kill the server":
                self.server.kill()
                self.server.start()

    def wake(self, *, everybody: bool = False) -> None:
        for entry in list(self._paused):
            if everybody or entry[0] <= time.monotonic():
                self._paused.remove(entry)
                entry[1].process.send_signal(signal.SIGCONT)

    def check_alive(self) -> None:
        for member in self.members:
            assert member.process.poll() is None, f"{member.name} ({member.kind}): {member.text}"

    def end(self) -> None:
        self.wake(everybody=True)
        for member in self.members:
            member.leave()

    def end_somehow(self) -> None:
        for member in self.members:
            if member.process.poll() is None:
                member.process.kill()
                member.process.wait()


def fill(log: rlog.Log, first: int, count: int, keys: dict[int, str | None]) -> None:
    """``count`` records, of every key in turn, and now and then without one."""
    with log.producer() as producer:
        for number in range(first, first + count):
            key = None if number % 50 == 49 else f"k{number * 7919 % KEYS}"
            producer.send(b"%d" % number, key=key.encode() if key is not None else None)
            keys[number] = key


def share(
    server: Server,
    place: Path,
    *,
    seed: int,
    seconds: float,
    records: int,
    between: float,
    slow: float,
    kinds: dict[str, int],
) -> dict[str, int]:
    """Have eight members handle ``records`` at least, for ``seconds`` at least. -> counts."""
    place.mkdir()
    keys: dict[int, str | None] = {}
    with server.connect(timeout=60) as client:
        log = client.log("l", create=True)
        fill(log, 0, records, keys)
        crowd = Crowd(server, "l", place, seed, slow)
        try:
            cursor = log.cursor("c")
            eventually(lambda: log.cursors() != [], "somebody has joined")
            began = time.monotonic()
            while time.monotonic() - began < seconds:
                time.sleep(crowd.random.random() * 2 * between)
                crowd.befall(kinds)
                if cursor.info().lag_records < records // 2:
                    fill(log, len(keys), records // 2, keys)
            crowd.wake(everybody=True)

            def is_done() -> bool:
                crowd.check_alive()
                return cursor.info().lag_records == 0

            eventually(is_done, "all is settled", 120)
            crowd.end()
            info = cursor.info()
            assert info.committed == len(keys), info
            assert not info.members, info
        finally:
            crowd.end_somehow()
    calls = read_calls(crowd.files, crowd.deaths)
    parked = {call.offset for call in calls if call.verdict == "park"}
    assert info.parked <= len(parked)
    return {
        "records": len(keys),
        "members": len(crowd.files),
        **crowd.counts,
        **judge(calls, keys),
    }


ALL: Final = {"kill": 5, "pause": 4, "leave": 3, "restart": 1, "kill the server": 1}


@pytest.mark.parametrize("seed", [1])
def test_no_key_is_in_two_hands_and_none_is_handled_out_of_order_whatever_befalls(
    make_server: Callable[..., Server], place: Path, seed: int
) -> None:
    counts = share(
        make_server().start(),
        place / f"sharing{seed}",
        seed=seed,
        seconds=4.0,
        records=6_000,
        between=0.2,
        slow=0.2,
        kinds=ALL,
    )
    assert counts["records"] >= 6_000
    assert counts["kill"] > 2


@pytest.mark.slow
@pytest.mark.patience(1200)
def test_no_key_is_in_two_hands_for_minutes(
    make_server: Callable[..., Server], place: Path, seed: int, record_property: RecordProperty
) -> None:
    counts = share(
        make_server().start(),
        place / f"sharing{seed}",
        seed=seed,
        seconds=240.0,
        records=20_000,
        between=0.4,
        slow=0.1,
        kinds=ALL,
    )
    for name, count in counts.items():
        record_property(f"eight members judged by their own notes: {name}", count)


@pytest.mark.patience(120)
@pytest.mark.parametrize("kind", ["restart", "kill the server"])
def test_a_server_that_comes_back_gives_nobodys_records_to_others(
    make_server: Callable[..., Server], place: Path, kind: str
) -> None:
    """All members live: nothing is handled twice, not once."""
    counts = share(
        make_server().start(),
        place / f"restarts-{kind[0]}",
        seed=3,
        seconds=4.0,
        records=8_000,
        between=0.5,
        slow=0.3,
        kinds={kind: 1},
    )
    assert counts["again"] == counts["cut short"] == 0


# --- the judge ------------------------------------------------------------------------------


GOOD: Final = calls_of("a", ["begin 0 k 1 10", "end 0 k commit 20"], None)
MORE: Final = calls_of("b", ["begin 1 k 1 30", "end 1 k commit 40"], None)
TWO: Final[dict[int, str | None]] = {0: "k", 1: "k"}


def test_the_judge_lets_good_ones_go() -> None:
    assert judge([*GOOD, *MORE], TWO)["calls"] == 2
    died = calls_of("c", ["begin 0 k 1 1", "end 0 k commit 5"], 7)
    assert judge([*died, *GOOD, *MORE], TWO)["again"] == 1
    cut = calls_of("c", ["begin 0 k 1 1"], 7)
    assert judge([*cut, *GOOD, *MORE], TWO)["cut short"] == 1


@pytest.mark.parametrize(
    ("calls", "complaint"),
    [
        (GOOD, "never done with"),
        ([*GOOD, *calls_of("b", ["begin 1 k 1 15", "end 1 k commit 40"], None)], "two hands"),
        ([*GOOD, *calls_of("b", ["begin 1 k 1 3", "end 1 k commit 4"], None)], "is next"),
        ([*GOOD, *MORE, *calls_of("b", ["begin 0 k 1 21", "end 0 k commit 22"], None)], "set"),
        ([*GOOD, *MORE, *calls_of("b", ["begin 1 k 1 50"], 60)], "settled, and again"),
        ([*MORE, *calls_of("c", ["begin 0 k 1 1", "end 0 k retry 5"], None)], "never done"),
        (
            [
                *calls_of("c", ["begin 0 k 1 1", "end 0 k commit 2"], 15),
                *GOOD,
                *MORE,
            ],
            "before it died",
        ),
        ([*calls_of("c", ["begin 0 k 1 1"], 15), *GOOD, *MORE], "two hands"),
    ],
)  # fmt: skip
def test_the_judge_notices(calls: list[Call], complaint: str) -> None:
    with pytest.raises(AssertionError, match=complaint):
        judge(calls, TWO)

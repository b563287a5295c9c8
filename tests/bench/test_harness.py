"""How a figure is judged, how rounds go, and how processes begin together."""

from __future__ import annotations

import json
import os
import signal
import time
from typing import TYPE_CHECKING

import pytest

from bench.crowd import Crowd, Gate, MemberFailed
from bench.harness import (
    Bench,
    Case,
    Goal,
    Result,
    Verdict,
    case,
    judged,
    percentiles,
    verdict,
)
from bench.machine import Clock, evict
from bench.server import Daemon, DidNotStart, held_back

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

# Python 3.12 warns of every fork beside threads, and a worker of pytest-xdist has some.
pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")


# --- goals ------------------------------------------------------------------------------------


def test_a_goal_is_reached_by_every_round_or_by_none_or_undecided() -> None:
    figures = [1.0, 5.0, 9.0]
    assert verdict(figures, 1.0) is Verdict.REACHED
    assert verdict(figures, 5.0) is Verdict.UNDECIDED
    assert verdict(figures, 9.1) is Verdict.MISSED
    assert verdict(figures, 9.0, at_most=True) is Verdict.REACHED
    assert verdict(figures, 0.9, at_most=True) is Verdict.MISSED


def test_a_goal_by_other_rows_is_judged_round_by_round() -> None:
    one, two = Result("one", [1.0, 2.0, 30.0], None), Result("two", [1.0, 2.0, 10.0], None)
    row = Result("row", [4.0, 4.0, 40.0], Goal(1.0, of=("one", "two")))
    found = judged(row, [one, two, row])
    assert found == {
        "goal": "at least 1 x (one + two)", "figures": [2.0, 1.0, 1.0], "verdict": "reached"
    }  # fmt: skip
    less = Result("row", [4.0, 4.0, 39.0], row.goal)
    assert judged(less, [one, two, less])["verdict"] == "undecided"


def test_a_goal_is_not_judged_by_a_percentile_of_too_few_samples() -> None:
    row = Result("row", [1.0], Goal(2.0, at_most=True), few=True)
    assert judged(row, [row])["verdict"] == "undecided"


# --- cases ------------------------------------------------------------------------------------


def test_percentiles_are_of_all_that_a_run_took() -> None:
    found = percentiles(
        "row", lambda: [n / 1000 for n in range(1000)], {0.5: None, 0.999: None}, 1e3
    )
    assert list(found.rows) == ["row, p50", "row, p99.9"]
    assert list(found.run()) == [500, 999]
    assert not found.few


def test_a_percentile_of_too_few_samples_is_said_to_be_one() -> None:
    found = percentiles("row", lambda: [1.0] * 99, {0.5: None, 0.99: None})
    found.run()
    assert found.few == ["row, p99"]


# --- rounds -----------------------------------------------------------------------------------


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Callable[[int], Bench]]:
    def make(rounds: int) -> Bench:
        options = ("--rounds", str(rounds), "--warm", "0", "--patience", "0")
        places = ("--dir", str(tmp_path), "--json", str(tmp_path / "report.json"))
        monkeypatch.setattr("sys.argv", ["bench", *options, *places])
        return Bench("What is asked?", 5)

    before = signal.getsignal(signal.SIGTERM)
    yield make
    signal.signal(signal.SIGTERM, before)


def test_each_round_begins_with_another_case_and_rows_of_one_run_are_one_turn(
    bench: Callable[[int], Bench], tmp_path: Path
) -> None:
    turns: list[str] = []

    def turn(name: str, *figures: float) -> list[float]:
        turns.append(name)
        return list(figures)

    cases = [
        Case({"a, s": None, "a, KiB": None}, lambda: turn("a", 1.0, 2.0), {"a, KiB": "KiB"}),
        case("b", lambda: turn("b", 3.0)[0], Goal(3.0)),
    ]
    with bench(2) as made:
        made.run("title", "s", cases, before=lambda: turn("before"))
    assert turns == ["before", "a", "b", "before", "b", "a"]
    report = json.loads((tmp_path / "report.json").read_text())
    found = {table["unit"]: table for table in report["tables"]}
    assert found["s"]["results"] == {"a, s": [1.0, 1.0], "b": [3.0, 3.0]}
    assert found["s"]["goals"]["b"]["verdict"] == "reached"
    assert found["KiB"]["results"] == {"a, KiB": [2.0, 2.0]}
    assert found["KiB"]["restless"] == 2, "nobody waited for the machine to be idle"
    assert "ended early" not in report
    assert {"rlog", "date", "memory"} <= report["machine"].keys()


def test_what_was_measured_before_an_error_is_written_and_said_to_have_ended_early(
    bench: Callable[[int], Bench], tmp_path: Path
) -> None:
    made = bench(1)

    def run() -> None:
        with made:
            made.note("so far")
            raise ValueError("no further")

    with pytest.raises(ValueError, match="no further"):
        run()
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["tables"] == [{"note": "so far"}]
    assert report["ended early"] == "ValueError('no further')"
    assert not list(tmp_path.glob("rlog-bench-*"))


def test_a_clock_counts_while_it_runs_and_not_what_is_ours() -> None:
    clock = Clock()
    for _ in range(2):
        with clock:
            until = time.monotonic() + 0.05
            while time.monotonic() < until:
                pass
    assert clock.others() < (os.cpu_count() or 1)


def test_evicting_minds_no_file_that_goes_meanwhile(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "there").write_bytes(b"x")
    (tmp_path / "gone").symlink_to("nowhere")
    monkeypatch.setattr("pathlib.Path.is_file", lambda _path: True)
    evict(str(tmp_path))


# --- other processes --------------------------------------------------------------------------


def test_a_crowd_begins_when_it_is_told_to_and_hands_back_what_it_returns() -> None:
    def work(number: int, gate: Gate) -> tuple[int, int, float]:
        gate.ready()
        began = time.monotonic()
        while not gate.over:
            time.sleep(0.001)
        return number, os.getpid(), began

    with Crowd(work, 3) as crowd:
        before = time.monotonic()
        crowd.go()
        found = crowd.end()
    assert [number for number, _, _ in found] == [0, 1, 2]
    assert len({pid for _, pid, _ in found} | {os.getpid()}) == 4
    assert all(began >= before for _, _, began in found)


def test_a_crowd_of_which_one_fails_ends_the_bench(capfd: pytest.CaptureFixture[str]) -> None:
    def work(number: int, gate: Gate) -> None:
        assert number == 0, "the second one fails"
        gate.ready()

    with Crowd(work, 2) as crowd, pytest.raises(MemberFailed, match="failed"):
        crowd.go()
    assert "the second one fails" in capfd.readouterr().err


def test_a_daemon_that_does_not_start_does_not_stay(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    daemon = Daemon(["sh", "-c", "echo why; sleep 60"], tmp_path / "data")

    def never() -> None:
        raise OSError("nobody is there")

    monkeypatch.setattr("bench.server._START_SECONDS", 0.2)
    with pytest.raises(DidNotStart, match=r"(?s)nobody is there.*why"):
        daemon.wait_for(never, OSError)
    assert not daemon.alive


def test_a_daemon_does_not_stay_when_waiting_for_it_is_interrupted(tmp_path: Path) -> None:
    daemon = Daemon(["sleep", "60"], tmp_path / "data")

    def interrupted() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        daemon.wait_for(interrupted, OSError)
    assert not daemon.alive


def test_an_interrupt_in_the_middle_of_a_start_comes_when_the_process_is_known() -> None:
    known = False

    def start() -> None:
        nonlocal known
        with held_back():
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.01)
            known = True

    with pytest.raises(KeyboardInterrupt):
        start()
    assert known
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler

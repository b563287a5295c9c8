"""How a figure is judged, and how processes begin together."""

from __future__ import annotations

import os
import time

import pytest

from bench.harness import Crowd, Gate, Goal, Result, judged, percentiles, together

# Python 3.12 warns of every fork beside threads, and a worker of pytest-xdist has some.
pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")


def reached(result: Result, *others: Result) -> bool:
    return bool(judged(result, [*others, result])["reached"])


def test_a_goal_is_reached_by_the_median() -> None:
    figures = [1.0, 5.0, 9.0]
    assert reached(Result("row", figures, Goal(5.0)))
    assert not reached(Result("row", figures, Goal(5.1)))
    assert reached(Result("row", figures, Goal(5.0, at_most=True)))
    assert not reached(Result("row", figures, Goal(4.9, at_most=True)))


def test_a_goal_by_other_rows_is_judged_round_by_round() -> None:
    one, two = Result("one", [1.0, 2.0, 30.0], None), Result("two", [1.0, 2.0, 10.0], None)
    row = Result("row", [4.0, 2.0, 40.0], Goal(1.0, of=("one", "two")))
    found = judged(row, [one, two, row])
    assert found == {"goal": "at least 1 x (one + two)", "figure": 1.0, "reached": True}
    assert not reached(Result("row", [4.0, 2.0, 39.0], row.goal), one, two)


def test_rows_that_come_from_one_run_run_it_once_a_round() -> None:
    runs = iter([[1.0, 2.0], [3.0, 4.0]])
    cases = together(lambda: next(runs), {"one": None, "two": Goal(1.0)})
    assert [case.name for case in cases] == ["one", "two"]
    assert [[case.run() for case in cases] for _ in range(2)] == [[1.0, 2.0], [3.0, 4.0]]


def test_percentiles_are_of_all_that_a_run_took() -> None:
    cases = percentiles(
        "row", lambda: [n / 1000 for n in range(1000)], {0.5: None, 0.999: None}, 1e3
    )
    assert [(case.name, case.run()) for case in cases] == [("row, p50", 500), ("row, p99.9", 999)]


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

    with Crowd(work, 2) as crowd, pytest.raises(SystemExit, match="failed"):
        crowd.go()
    assert "the second one fails" in capfd.readouterr().err

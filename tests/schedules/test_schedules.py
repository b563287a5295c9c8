"""Seeded schedules: whatever comes late, is lost or dies, the rules hold.

``RLOG_SEED=N pytest tests/schedules/test_schedules.py`` replays one.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable

import pytest

from tests.schedules import schedule, sharing

SHORT, LONG = 1_200, 20_000
SHARED_SHORT, SHARED_LONG = 800, 20_000
Run = Callable[[int], tuple[list[str], Counter[str]]]


def hold(run: Run, seeds: range) -> Counter[str]:
    counts: Counter[str] = Counter()
    for seed in seeds:
        try:
            wrong, found = run(seed)
        except Exception as error:
            raise AssertionError(f"seed {seed}: the server broke: {error!r}") from error
        assert not wrong, f"seed {seed}: {wrong[0]}"
        counts += found
    return counts


def seeds(count: int, begin: int = 0) -> range:
    one = os.environ.get("RLOG_SEED")
    return range(begin, begin + count) if one is None else range(int(one), int(one) + 1)


def test_a_schedule_is_the_same_every_time() -> None:
    assert schedule.run(7) == schedule.run(7)
    assert sharing.run(7) == sharing.run(7)


def test_schedules_hold() -> None:
    counts = hold(schedule.run, seeds(SHORT))
    assert all(counts.values()), counts


def test_schedules_of_shared_consumers_hold() -> None:
    counts = hold(sharing.run, seeds(SHARED_SHORT))
    assert all(counts.values()), counts


@pytest.mark.slow
def test_many_schedules_hold(capsys: pytest.CaptureFixture[str]) -> None:
    counts = hold(schedule.run, seeds(LONG, SHORT))
    with capsys.disabled():
        print(f"\n{LONG} schedules: {dict(counts)}")


@pytest.mark.slow
def test_many_schedules_of_shared_consumers_hold(capsys: pytest.CaptureFixture[str]) -> None:
    counts = hold(sharing.run, seeds(SHARED_LONG, SHARED_SHORT))
    with capsys.disabled():
        print(f"\n{SHARED_LONG} schedules of shared consumers: {dict(counts)}")

"""Seeded schedules: whatever comes late, is lost or dies, the rules hold.

``RLOG_SEED=N pytest tests/schedules/test_schedules.py`` replays one.
"""

from __future__ import annotations

import os
from collections import Counter

import pytest

from tests.schedules.schedule import run

SHORT, LONG = 2_000, 20_000


def hold(seeds: range) -> Counter[str]:
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
    assert run(7) == run(7)


def test_schedules_hold() -> None:
    counts = hold(seeds(SHORT))
    assert all(counts.values()), counts


@pytest.mark.slow
def test_many_schedules_hold(capsys: pytest.CaptureFixture[str]) -> None:
    counts = hold(seeds(LONG, SHORT))
    with capsys.disabled():
        print(f"\n{LONG} schedules: {dict(counts)}")

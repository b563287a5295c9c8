"""Seeded schedules: whatever comes late, is lost or dies, the rules hold.

``python -m tests.schedules.schedule SEED`` replays one, ``tests.schedules.sharing`` the others.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest

from tests.schedules import schedule, sharing

if TYPE_CHECKING:
    from tests.report import RecordProperty

SHORT, SHARED_SHORT = 1_200, 800
LONG, PARTS = 2_000, 10
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


def test_a_schedule_is_the_same_every_time() -> None:
    assert schedule.run(7) == schedule.run(7)
    assert sharing.run(7) == sharing.run(7)


def test_schedules_hold() -> None:
    counts = hold(schedule.run, range(SHORT))
    assert all(counts.values()), counts


def test_schedules_of_shared_consumers_hold() -> None:
    counts = hold(sharing.run, range(SHARED_SHORT))
    assert all(counts.values()), counts


@pytest.mark.slow
@pytest.mark.parametrize("part", range(PARTS))
def test_many_schedules_hold(part: int, seed: int, record_property: RecordProperty) -> None:
    begin = seed + part * LONG
    hold(schedule.run, range(begin, begin + LONG))
    record_property("schedules of clients, claims and crashes", LONG)


@pytest.mark.slow
@pytest.mark.parametrize("part", range(PARTS))
def test_many_schedules_of_shared_consumers_hold(
    part: int, seed: int, record_property: RecordProperty
) -> None:
    begin = seed + part * LONG
    hold(sharing.run, range(begin, begin + LONG))
    record_property("schedules of shared consumers", LONG)

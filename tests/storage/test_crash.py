"""Promises 1, 3, 9, 14, 17, 18: whatever a crash leaves, what was acknowledged is there.

The real recovery, broker, driver and journal over a simulated disk, cut at every boundary.
"""

from __future__ import annotations

import pytest

from tests.storage.explore import Depth, Explorer, Workload
from tests.storage.workloads import (
    beside,
    bounded,
    compacting,
    everything,
    later,
    periodic,
    transacting,
)

ALL = [everything, periodic, beside, transacting, bounded, compacting]

CI = Depth(enumerate_max=4, samples=26, nested=170, continued=170, rotten=7, lives=3)
LONG = Depth(enumerate_max=8, samples=300, nested=2000, continued=1500, rotten=25, lives=4)


def explored(workload: Workload, depth: Depth, capsys: pytest.CaptureFixture[str]) -> Explorer:
    explorer = Explorer(depth, later)
    explorer.run(workload)
    with capsys.disabled():
        print(f"\n{workload.__name__}: {explorer}")
    return explorer


@pytest.mark.parametrize("workload", ALL)
def test_after_any_crash_what_was_acknowledged_is_there(
    workload: Workload, capsys: pytest.CaptureFixture[str]
) -> None:
    explorer = explored(workload, CI, capsys)
    assert not explorer.violations, "\n".join(map(str, explorer.violations))
    assert explorer.states > 10_000


@pytest.mark.slow
@pytest.mark.parametrize("workload", ALL)
def test_after_any_crash_what_was_acknowledged_is_there_tried_longer(
    workload: Workload, capsys: pytest.CaptureFixture[str]
) -> None:
    explorer = explored(workload, LONG, capsys)
    assert not explorer.violations, "\n".join(map(str, explorer.violations))

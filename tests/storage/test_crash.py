"""Promises 1, 3, 9, 14, 17, 18: whatever a crash leaves, what was acknowledged is there.

The real recovery, broker, driver and journal over a simulated disk, cut at every boundary.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

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

if TYPE_CHECKING:
    from tests.report import RecordProperty

ALL = [everything, periodic, beside, transacting, bounded, compacting]

CI = Depth(enumerate_max=4, samples=26, nested=170, continued=170, rotten=7, lives=3)
LONG = Depth(enumerate_max=10, samples=300, nested=2000, continued=1500, rotten=25, lives=4)


def explored(workload: Workload, depth: Depth, record_property: RecordProperty) -> Explorer:
    explorer = Explorer(depth, later)
    explorer.run(workload)
    record_property("crash states", explorer.states)
    record_property("crash states, distinct and recovered", explorer.recoveries)
    record_property("boundaries at which a life was cut", explorer.boundaries)
    return explorer


@pytest.mark.parametrize("workload", ALL)
def test_after_any_crash_what_was_acknowledged_is_there(
    workload: Workload, record_property: RecordProperty
) -> None:
    explorer = explored(workload, CI, record_property)
    assert not explorer.violations, "\n".join(map(str, explorer.violations))
    assert explorer.states > 10_000


@pytest.mark.slow
@pytest.mark.parametrize("workload", ALL)
def test_after_any_crash_what_was_acknowledged_is_there_tried_longer(
    workload: Workload, record_property: RecordProperty
) -> None:
    explorer = explored(workload, LONG, record_property)
    assert not explorer.violations, "\n".join(map(str, explorer.violations))

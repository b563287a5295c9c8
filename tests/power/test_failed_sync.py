"""Promises 6 and 7: after a failed sync nothing is written; recovery trusts the disk alone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import pytest

from .telling import Done, Missed, Recovered, Trap

if TYPE_CHECKING:
    from collections.abc import Callable

    from .plan import FileSystem
    from .trial import Trial

_MISSES_MAX: Final = 10
_JOURNAL_FILE: Final = "1MiB"  # so that few new files have to be named while the disk fails


def fail_a_sync(trial: Trial, mutants: tuple[str, ...] = ()) -> bool:
    """One boot: a sync fails, the disk works again, another server acknowledges more; cut.

    False: it missed, for the file system's own journal was hit.
    """
    trial.boot(
        until=(Done, Missed),
        seconds=trial.chance.uniform(0.0, 0.3),
        scenario="failed sync",
        mutants=mutants,
        journal_file_size=_JOURNAL_FILE,
    )
    return Missed not in trial.told


@pytest.mark.parametrize("file_system", ["ext4", pytest.param("xfs", marks=pytest.mark.slow)])
def test_what_is_acknowledged_around_a_failed_sync_outlives_a_power_cut(
    begin_trial: Callable[[FileSystem], Trial],
    file_system: FileSystem,
    long: bool,
    record_property: Callable[[str, object], None],
) -> None:
    trial = begin_trial(file_system)
    repaired, misses = 0, 0
    while repaired < (10 if long else 1):
        if fail_a_sync(trial):
            repaired += 1
        else:
            misses += 1
        trial.check()
        assert misses <= _MISSES_MAX
        # Otherwise this could not fail: the trap is there.
        assert trial.judge.traps[-1] == Trap(cached="new", synced=True, on_disk="old")
    trial.boot(until=(Recovered,))
    trial.check()
    record_property(f"failed syncs, {file_system}", repaired)
    record_property(f"failed syncs that hit the file system's journal, {file_system}", misses)
    print(file_system, trial.counts(), f"{misses} misses")

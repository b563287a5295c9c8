"""This harness is tried, too: rules that only a real cut can miss are switched off, and it sees."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import pytest

from .telling import Done
from .test_failed_sync import fail_a_sync

if TYPE_CHECKING:
    from collections.abc import Callable

    from .plan import FileSystem
    from .trial import Trial

_TRIES_MAX: Final = 8

AT_WORK: Final = (
    "the journal is never synced",
    "no directory sync after a journal file got its number",
    "segments are not synced at a checkpoint",
    "consumers see what is not synced",
)
KILLED: Final = ("recovery does not sync what a killed process left in the cache",)
FAILED: Final = (
    "recovery reads the page cache",
    "a sync is tried again after it failed",
    "after a failed sync writing goes on",
)

pytestmark = pytest.mark.slow


def cut(trial: Trial, mutant: str) -> None:
    # A server that was killed under load, and another one that has served its records, and is cut.
    killed = mutant in KILLED
    trial.boot(
        until=(Done,),
        seconds=0.0 if killed else trial.chance.uniform(0.3, 1.5),
        kills=1 if killed else 0,
        mutants=(mutant,),
    )


@pytest.mark.parametrize("mutant", AT_WORK + KILLED + FAILED)
def test_a_rule_switched_off_is_seen(
    begin_trial: Callable[[FileSystem], Trial],
    mutant: str,
    record_property: Callable[[str, object], None],
) -> None:
    trial = begin_trial("ext4")
    while not trial.judge.wrong and trial.boots < _TRIES_MAX:
        if mutant in FAILED:
            fail_a_sync(trial, (mutant,))
        cut(trial, mutant)
    record_property(f"cuts until it was seen: {mutant}", trial.boots)
    print(f"{mutant}: {trial.boots} cuts: {trial.judge.wrong[:1]}")
    assert trial.judge.wrong

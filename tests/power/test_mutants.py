"""This harness is tried, too: rules that only a real cut can miss are switched off, and it sees."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Final

import pytest

from tests.report import PLANTED, Planted

from .telling import Done, Recovered
from .test_failed_sync import fail_a_sync

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.report import RecordProperty

    from .plan import FileSystem
    from .trial import Trial

_CUTS_MAX: Final = 16

AT_WORK: Final = (
    "the journal is never synced",
    "no directory sync after a journal file got its number",
    "segments are not synced at a checkpoint",
)
UNSYNCED: Final = ("consumers see what is not synced",)
FAILED: Final = (
    "recovery reads the page cache",
    "a sync is tried again after it failed",
    "after a failed sync writing goes on",
)

pytestmark = pytest.mark.slow


def cut(trial: Trial, mutant: str) -> None:
    seconds = trial.chance.uniform(0.3, 1.5)
    if mutant in FAILED:
        fail_a_sync(trial, (mutant,))
    elif mutant in UNSYNCED:
        # Much is left to be synced: also, the end of a journal file syncs it.
        plan: dict[str, Any] = {"unsynced": 1.0, "journal_file_size": "4MiB"}
        trial.boot(until=(Done,), seconds=seconds, mutants=(mutant,), **plan)
    else:
        trial.boot(until=(Done,), seconds=seconds, mutants=(mutant,))


@pytest.mark.parametrize("mutant", AT_WORK + UNSYNCED + FAILED)
def test_a_rule_switched_off_is_seen(
    begin_trial: Callable[[FileSystem], Trial],
    mutant: str,
    record_property: RecordProperty,
) -> None:
    began = time.monotonic()
    trial = begin_trial("ext4")
    while not trial.judge.wrong and trial.judge.counts["power cuts"] < _CUTS_MAX:
        cut(trial, mutant)
        if not trial.judge.wrong:
            trial.boot(until=(Recovered,), mutants=(mutant,))
    caught = str(trial.judge.wrong[0]) if trial.judge.wrong else ""
    seconds = round(time.monotonic() - began, 1)
    record_property(PLANTED, Planted(mutant, "U, power cut", caught, seconds)._asdict())
    assert caught

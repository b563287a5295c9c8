"""This harness is tried, too: rules of the storage are switched off, and a power cut shows it.

Not here: what needs a device that forgets or reorders (tests/storage has that), or a moment that a
cut in a thousand meets.
"""

from __future__ import annotations

import re
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

_CUTS_MAX: Final = 30

# By name, and what has to be said of it: that something is wrong for another reason is no catch.
AT_WORK: Final = {
    "the journal is never synced": "is lost",
    "no directory sync after a journal file got its number": "is lost",
    "segments are not synced at a checkpoint": "damaged",
}
UNSYNCED: Final = {"consumers see what is not synced": "is lost"}
FAILED: Final = {
    "recovery reads the page cache": "did not start",  # frames that were synced are missing
    "after a failed sync writing goes on": "goes on writing",
}
MUTANTS: Final = AT_WORK | UNSYNCED | FAILED

pytestmark = pytest.mark.slow


def cut(trial: Trial, mutant: str) -> None:
    if mutant in FAILED:
        fail_a_sync(trial, (mutant,))
        return
    plan: dict[str, Any] = {"mutants": (mutant,)}
    if mutant in UNSYNCED:
        # Much is left to be synced: also, the end of a journal file syncs it.
        plan |= {"unsynced": 1.0, "journal_file_size": "4MiB"}
    trial.boot(until=(Done,), seconds=trial.chance.uniform(0.3, 1.5), **plan)


@pytest.mark.parametrize("mutant", MUTANTS)
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
    about = [each for each in trial.judge.wrong if re.search(MUTANTS[mutant], each)]
    seconds = round(time.monotonic() - began, 1)
    caught = about[0] if about else ""
    record_property(PLANTED, Planted(mutant, "U, power cut", caught, seconds)._asdict())
    assert caught, f"{trial.judge.wrong[:5]}; {trial.said}"

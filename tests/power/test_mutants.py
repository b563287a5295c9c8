"""This harness is tried, too: each rule here is switched off, and a power cut shows it.

Not here: what needs a device that forgets or reorders, or a moment that one cut in a thousand
meets. Those are for the simulated disk.
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
_LOSS: Final = "is lost|damaged|did not start"
AT_WORK: Final = {
    "a sync does nothing": _LOSS,
    "the sync of a directory does nothing": _LOSS,
    "segments are not synced at a checkpoint": _LOSS,
}
UNSYNCED: Final = {"consumers see what is not synced": "is lost"}
FAILED: Final = {
    "the page cache is not dropped": _LOSS,
    "a sync that failed is taken for done": _LOSS,
    "after a failed sync writing goes on": "goes on writing",
}
SEEN_BY: Final = AT_WORK | UNSYNCED | FAILED

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


@pytest.mark.parametrize("mutant", SEEN_BY)
def test_a_rule_switched_off_is_seen(
    begin_trial: Callable[[FileSystem], Trial],
    mutant: str,
    record_property: RecordProperty,
) -> None:
    began = time.monotonic()
    trial = begin_trial("ext4")
    about: list[str] = []
    cuts = 0
    while not about and cuts < _CUTS_MAX:
        if trial.judge.wrong:
            trial = begin_trial("ext4")  # what went wrong for another reason would go on here
        while not trial.judge.wrong and cuts + trial.judge.counts["power cuts"] < _CUTS_MAX:
            cut(trial, mutant)
            if not trial.judge.wrong:
                trial.boot(until=(Recovered,), mutants=(mutant,))
        about = [each for each in trial.judge.wrong if re.search(SEEN_BY[mutant], each)]
        cuts += max(1, trial.judge.counts["power cuts"])
    seconds = round(time.monotonic() - began, 1)
    caught = about[0] if about else ""
    record_property(PLANTED, Planted(mutant, "U, power cut", caught, seconds)._asdict())
    assert caught, f"{trial.judge.wrong[:5]}; {trial.said}"

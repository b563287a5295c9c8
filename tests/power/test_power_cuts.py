"""Promises 1, 2, 3, 9, 13, 14, 17 and 18, on real file systems: what was acknowledged outlives a
power cut and a kill, what was served never changes, and no cursor goes back.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import pytest

from .telling import Booted, Done, Recovered

if TYPE_CHECKING:
    from collections.abc import Callable

    from .plan import FileSystem
    from .trial import Trial

_KILLS_A_BOOT: Final = 20
# How often the kernel writes back by itself, in 1/100 s: so that a cut finds parts of what nobody
# had synced. 0: every 5 s, which is never here.
_FLUSHES: Final = (0, 0, 3, 30)

both = pytest.mark.parametrize("file_system", ["ext4", "xfs"])


def finish(trial: Trial, record_property: Callable[[str, object], None]) -> None:
    """The last cut is judged by one more recovery."""
    trial.boot(until=(Recovered,))
    trial.check()
    for name, count in trial.counts().items():
        record_property(f"{name}, {trial.machine.file_system}", count)
    print(trial.machine.file_system, trial.counts())


def cut_at_work(trial: Trial, kills: int) -> None:
    trial.boot(
        until=(Done,),
        seconds=trial.chance.uniform(0.0, 1.5),
        kills=kills,
        flush_centiseconds=trial.chance.choice(_FLUSHES),
    )
    trial.check()


def cut_while_recovering(trial: Trial) -> None:
    trial.boot(until=(Booted,), seconds=trial.chance.uniform(0.0, 1.0))
    trial.check()


@both
def test_one_disk_that_is_cut_again_and_again_loses_nothing_that_was_acknowledged(
    begin_trial: Callable[[FileSystem], Trial],
    file_system: FileSystem,
    long: bool,
    record_property: Callable[[str, object], None],
) -> None:
    trial = begin_trial(file_system)
    for cut in range(100 if long else 1):
        if cut and trial.chance.random() < 0.2:
            cut_while_recovering(trial)
        else:
            cut_at_work(trial, kills=0 if long else 1)
    finish(trial, record_property)
    assert trial.judge.counts["records synced"]
    assert trial.judge.counts["records read"]


@pytest.mark.slow
@both
def test_servers_that_are_killed_on_a_disk_that_is_cut_lose_nothing_that_was_acknowledged(
    begin_trial: Callable[[FileSystem], Trial],
    file_system: FileSystem,
    record_property: Callable[[str, object], None],
) -> None:
    trial = begin_trial(file_system)
    for _ in range(200 // _KILLS_A_BOOT):
        cut_at_work(trial, kills=_KILLS_A_BOOT)
    finish(trial, record_property)
    assert trial.judge.counts["kills"] == 200

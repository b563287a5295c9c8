"""The harness is tried, too: each rule of the storage is switched off, and that is seen."""

from __future__ import annotations

import errno
import random
from typing import TYPE_CHECKING

import pytest

from tests.storage.build import flip
from tests.storage.explore import Depth, Explorer
from tests.storage.failures import every
from tests.storage.mutants import MUTANTS, Mutant, planted
from tests.storage.rot import Directory, judge, small
from tests.storage.simdisk import Failure
from tests.storage.workloads import beside, everything, later, periodic

if TYPE_CHECKING:
    from collections.abc import Callable

QUICK = Depth(enumerate_max=2, samples=10, nested=200, continued=50, rotten=3, lives=2)


def by_crash(recoveries_max: int = 15_000) -> str:
    for workload in (everything, periodic, beside):
        explorer = Explorer(QUICK, later, violations_max=1, recoveries_max=recoveries_max)
        explorer.run(workload)
        if explorer.violations:
            return str(explorer.violations[0])
    return ""


def by_failure() -> str:
    for mode in Failure:
        if wrong := every(everything, "sync", (errno.EIO, mode)):
            return wrong[0]
    return ""


def by_rot() -> str:
    """At rest a flipped bit is refused or a batch's; busy, in the last frame, reported."""
    try:
        rest = Directory(small, at_rest=True)
        bare = Directory(small, at_rest=True, laid_out=False)
        busy = Directory(small, at_rest=False)
    except Exception as error:
        return f"the server broke: {type(error).__name__}: {error}"
    for made in (rest, bare, busy):
        if (outcome := judge(made, made.disk.copy())).kind != "whole":
            return f"undamaged: {outcome}"
        rng = random.Random(1)
        for path, contents in made.tree.items():
            used = [position for position, byte in enumerate(contents) if byte]
            for position in sorted(rng.sample(used, min(400, len(used)))):
                outcome = judge(made, made.damaged(path, flip(contents, position, position % 8)))
                where = f"{path} at {position}: {outcome}"
                if outcome.kind == "WRONG" or (outcome.kind == "cut" and made is not busy):
                    return where
                if outcome.kind == "cut" and not outcome.detail:
                    return where
    return ""


JUDGES: dict[str, Callable[[], str]] = {"crash": by_crash, "failure": by_failure, "rot": by_rot}


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name.replace(" ", "_"))
def test_a_rule_switched_off_is_seen(mutant: Mutant, capsys: pytest.CaptureFixture[str]) -> None:
    with planted(mutant):
        caught = JUDGES[mutant.judge]()
    with capsys.disabled():
        print(f"\n  {mutant.name}: {caught[:150] or 'SURVIVED'}")
    assert caught


@pytest.mark.parametrize("name", JUDGES)
def test_without_a_planted_bug_no_judge_sees_any(name: str) -> None:
    assert (by_crash(3000) if name == "crash" else JUDGES[name]()) == ""

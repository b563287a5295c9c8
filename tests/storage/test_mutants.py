"""The harness is tried, too: each rule of the storage is switched off, and that is seen."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

import pytest

from rlog import frame
from rlog.journal import scan
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
        for path in made.tree:
            for position, in_a_body in damaging(made, path):
                changed = flip(made.tree[path], position, position % 8)
                outcome = judge(made, made.damaged(path, changed))
                lost_in_silence = outcome.kind == "cut" and not outcome.detail
                too_much = outcome.kind == "cut" and made is not busy
                # The journal's is the only copy: proven, and so that batch's alone.
                refused = made is bare and in_a_body and outcome.kind != "batch"
                if outcome.kind == "WRONG" or lost_in_silence or too_much or refused:
                    return f"{path} at {position}: {outcome}"
    return ""


def damaging(made: Directory, path: str) -> list[tuple[int, bool]]:
    """Positions that matter, and whether each is in a body that no checkpoint covers."""
    if not path.startswith("journal/0"):
        used = [position for position, byte in enumerate(made.tree[path]) if byte]
        return [
            (position, False) for position in used[:: 5 if path.startswith("checkpoint") else 29]
        ]
    found = []
    for seen in scan(made.disk.open(path, write=False), path, None, 0):
        body = seen.position + frame.HEAD_BYTES + seen.head.facts_bytes
        needed = seen.head.number > made.moments[0].number
        found += [(position, False) for position in range(seen.position, body, 3 if needed else 17)]
        bodies = range(body, seen.position + seen.head.length, 97)
        found += [(position, needed) for position in bodies]
    return found


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

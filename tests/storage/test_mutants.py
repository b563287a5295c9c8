"""The harness is tried, too: each rule of the storage is switched off, and that is seen."""

from __future__ import annotations

import errno
import time
from typing import TYPE_CHECKING

import pytest

from rlog import frame
from rlog.journal import scan
from tests.report import PLANTED, Planted, RecordProperty
from tests.storage.build import flip
from tests.storage.directed import SCENARIOS
from tests.storage.explore import Depth, Explorer
from tests.storage.failures import every
from tests.storage.mutants import MUTANTS, Mutant, planted
from tests.storage.rot import Directory, Outcome, judge, small
from tests.storage.simdisk import Failure
from tests.storage.workloads import beside, bounded, compacting, everything, later, periodic

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

QUICK = Depth(enumerate_max=2, samples=10, nested=200, continued=50, rotten=3, lives=2)
WORKLOADS = {
    "everything": everything,
    "periodic": periodic,
    "beside": beside,
    "bounded": bounded,
    "compacting": compacting,
}


def beginning_with(first: str, names: Iterable[str]) -> list[str]:
    """The names, the one that is known to catch first."""
    ordered = list(names)
    assert not first or first in ordered
    return sorted(ordered, key=lambda name: name != first)


def by_crash(first: str = "", recoveries_max: int = 15_000) -> str:
    for name in beginning_with(first, WORKLOADS):
        explorer = Explorer(QUICK, later, violations_max=1, recoveries_max=recoveries_max)
        explorer.run(WORKLOADS[name])
        if explorer.violations:
            return f"{name}: {explorer.violations[0]}"
    return ""


def by_directed(first: str = "") -> str:
    for name in beginning_with(first, SCENARIOS):
        try:
            wrong = SCENARIOS[name]()
        except Exception as error:
            wrong = f"the server broke: {type(error).__name__}: {error}"
        if wrong:
            return f"{name}: {wrong}"
    return ""


def by_failure(first: str = "") -> str:
    for mode in Failure:
        if wrong := every(everything, "sync", (errno.EIO, mode)):
            return wrong[0]
    return ""


STATES = {
    "rest": {"at_rest": True},
    "bare": {"at_rest": True, "laid_out": False},
    "busy": {"at_rest": False},
}


def by_rot(first: str = "") -> str:
    """At rest a flipped bit is refused or a batch's; busy, in the last frame, reported."""
    for name in beginning_with(first, STATES):
        try:
            made = Directory(small, **STATES[name])
        except Exception as error:
            return f"{name}: the server broke: {type(error).__name__}: {error}"
        if (outcome := judge(made, made.disk.copy())).kind != "whole":
            return f"{name}: undamaged: {outcome}"
        for path in made.tree:
            for position, in_a_body in damaging(made, path):
                changed = flip(made.tree[path], position, position % 8)
                outcome = judge(made, made.damaged(path, changed))
                if not allowed(name, outcome, in_a_body=in_a_body):
                    return f"{name}: {path} at {position}: {outcome}"
    return ""


def allowed(name: str, outcome: Outcome, *, in_a_body: bool) -> bool:
    if outcome.kind == "cut":
        return name == "busy" and bool(outcome.detail)
    # The journal's is the only copy: proven, and so that batch's alone.
    if name == "bare" and in_a_body:
        return outcome.kind == "batch"
    return outcome.kind != "WRONG"


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


JUDGES: dict[str, Callable[[str], str]] = {
    "crash": by_crash,
    "directed": by_directed,
    "failure": by_failure,
    "rot": by_rot,
}


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name.replace(" ", "_"))
def test_a_rule_switched_off_is_seen(mutant: Mutant, record_property: RecordProperty) -> None:
    began = time.monotonic()
    with planted(mutant):
        caught = JUDGES[mutant.judge](mutant.first)
    seconds = round(time.monotonic() - began, 1)
    record_property(PLANTED, Planted(mutant.name, f"S, {mutant.judge}", caught, seconds)._asdict())
    assert caught


@pytest.mark.parametrize("name", JUDGES)
def test_without_a_planted_bug_no_judge_sees_any(name: str) -> None:
    assert (by_crash("", 1500) if name == "crash" else JUDGES[name]("")) == ""

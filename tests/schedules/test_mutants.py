"""The schedules are tried, too: each rule is switched off, and that is seen."""

from __future__ import annotations

import inspect
import time
from itertools import product
from typing import TYPE_CHECKING, Any

import pytest

from tests.report import PLANTED, Planted, RecordProperty
from tests.schedules import (
    schedule,
    sharing,
    test_claims,
    test_members,
    test_producers,
    test_retention,
    test_transactions,
    test_verdicts,
)
from tests.schedules.mutants import MUTANTS
from tests.shared.run import Run
from tests.storage.mutants import Mutant, planted

if TYPE_CHECKING:
    from collections import Counter
    from collections.abc import Callable, Iterator

SEEDS = 400


def by_schedules(_first: str) -> str:
    return _by_seeds(schedule.run)


def by_sharing(_first: str) -> str:
    return _by_seeds(sharing.run)


def _by_seeds(run: Callable[[int], tuple[list[str], Counter[str]]]) -> str:
    for seed in range(SEEDS):
        try:
            wrong, _counts = run(seed)
        except Exception as error:
            wrong = [f"the server broke: {type(error).__name__}: {error}"]
        if wrong:
            return f"seed {seed}: {wrong[0]}"
    return ""


def by_model(_first: str) -> str:
    for seed in range(SEEDS):
        try:
            Run(seed).run()
        except Exception as error:
            return f"seed {seed}: {type(error).__name__}: {error}"
    return ""


def by_directed(first: str) -> str:
    [test] = [
        getattr(module, first)
        for module in (
            test_claims,
            test_members,
            test_producers,
            test_retention,
            test_transactions,
            test_verdicts,
        )
        if hasattr(module, first)
    ]
    for arguments in cases(test):
        try:
            test(**arguments)
        except Exception as error:
            line = (str(error) or type(error).__name__).splitlines()[0]
            return f"{first[5:]} {list(arguments.values()) or ''}: {line}"
    return ""


def cases(test: Any) -> Iterator[dict[str, Any]]:
    """The arguments that pytest would give it."""
    marks = [mark for mark in getattr(test, "pytestmark", ()) if mark.name == "parametrize"]
    assert {mark.args[0] for mark in marks} == set(inspect.signature(test).parameters)
    for values in product(*(mark.args[1] for mark in marks)):
        yield {mark.args[0]: value for mark, value in zip(marks, values, strict=True)}


JUDGES = {
    "schedules": by_schedules,
    "sharing": by_sharing,
    "model": by_model,
    "directed": by_directed,
}


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name.replace(" ", "_"))
def test_a_rule_switched_off_is_seen(mutant: Mutant, record_property: RecordProperty) -> None:
    began = time.monotonic()
    with planted(mutant):
        caught = JUDGES[mutant.judge](mutant.first)
    seconds = round(time.monotonic() - began, 1)
    record_property(PLANTED, Planted(mutant.name, f"T, {mutant.judge}", caught, seconds)._asdict())
    assert caught


@pytest.mark.parametrize("first", sorted({each.first for each in MUTANTS} - {""}))
def test_without_a_planted_bug_a_directed_test_sees_none(first: str) -> None:
    assert by_directed(first) == ""

"""Who may have which record of a shared consumer, against a model that looks at everything."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from rlog import dispatch
from tests.shared.run import Run

if TYPE_CHECKING:
    from tests.report import RecordProperty

SHORT, LONG = 250, 20_000


def hold(seeds: range, caps: tuple[int, int] | None = None) -> None:
    for seed in seeds:
        try:
            Run(seed, caps=caps).run()
        except Exception as error:
            raise AssertionError(f"seed {seed}: {type(error).__name__}: {error}") from error


def test_whatever_comes_in_between_a_dispatch_does_as_the_model() -> None:
    hold(range(SHORT))


@pytest.mark.slow
def test_over_many_seeds_a_dispatch_does_as_the_model(
    seed: int, record_property: RecordProperty
) -> None:
    hold(range(seed, seed + LONG))
    record_property("lives of a dispatch beside its model", LONG)


def test_caps_hold_and_when_the_floor_moves_all_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch, "RANGES_MAX", 3)
    monkeypatch.setattr(dispatch, "FAILED_MAX", 3)
    monkeypatch.setattr(dispatch, "PENDING_MAX", 5)
    hold(range(SHORT), caps=(3, 3))

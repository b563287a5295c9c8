"""Who may have which record of a shared consumer, against a model that looks at everything."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from rlog import dispatch, facts, state
from rlog_client.batch import Header
from tests.shared.run import LOG, NAME, Run

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


def test_of_a_key_of_which_one_who_left_had_several_the_lowest_goes_first() -> None:
    """Since the start: a power cut took back that the first of them was settled."""
    made = state.State()
    made.apply(facts.Created(LOG, "log", facts.Options()), 0)
    made.apply(facts.Joined(LOG, NAME, 1, b"1", "m", 0), 0)
    cursor = made.logs[LOG].cursors[NAME]
    group = dispatch.Dispatch(cursor)
    group.begin_life([1], until=60.0, dues={})
    assert group.back(1, None, [0, 2], 3) == [0, 2]
    header, keys = Header(3, 0, 0, 0, 0, 0, 0, LOG, 0, 0), [b"a", b"b", b"a"]
    assert group.known(header, keys) == []
    group.feed(header, keys, dispatch.Lot(0, 3, (0, 0), 0, 100))
    other = group.join(2, None)
    group.gone(1)
    given = group.assign(other, 3, None)
    assert given == [0, 1]
    group.put_down(other, [(0, 1)])
    group.settled([0])
    assert group.assign(other, 3, None) == [2]

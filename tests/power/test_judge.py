"""The judge sees what is wrong, and nothing else: each history told by hand, and spoilt once."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import pytest

from .judge import Judge
from .telling import (
    Acknowledged,
    Claimed,
    Committed,
    Committing,
    Created,
    Creating,
    Cursor,
    Killed,
    Recovered,
    Sending,
    Served,
    Shown,
    digest,
    payload,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .telling import Event

CURSOR: Final = Cursor("owned", "c", 2)
# Three records: two acknowledged as synced, one as written; the first two were committed.
LIFE: Final[tuple[Event, ...]] = (
    Recovered(),
    Creating("owned"),
    Created("owned"),
    Sending("owned", "s", 0, [24, 24, 24]),
    Acknowledged("owned", "s", 0, [24, 24], 0, True),
    Acknowledged("owned", "s", 2, [24], 2, False),
    Claimed("owned", "c", 1, 0),
    Committing(CURSOR),
    Committed(CURSOR, True),
)


def values(*numbers: int) -> list[str]:
    return [digest(payload("s", number, 24)) for number in numbers]


def recovered(digests: Sequence[str], committed: int = 2, first: int = 0) -> tuple[Event, ...]:
    return (
        Served("owned", first, list(digests)),
        Shown("owned", first, first + len(digests), {"c": committed}),
        Recovered(),
    )


def judged(events: Sequence[Event], *, cut: bool) -> list[str]:
    judge = Judge()
    for event in LIFE:
        judge.hear(event)
    if cut:
        judge.power_cut()
    else:
        judge.hear(Killed())
    for event in events:
        judge.hear(event)
    return judge.wrong


def test_all_there_is_right_and_what_was_only_written_may_go_with_the_power() -> None:
    assert judged(recovered(values(0, 1, 2)), cut=False) == []
    assert judged(recovered(values(0, 1, 2)), cut=True) == []
    assert judged(recovered(values(0, 1)), cut=True) == []


@pytest.mark.parametrize(
    ("events", "sentence"),
    [
        (recovered(values(0), committed=1), "owned/1 is lost"),
        (recovered(values(0, 1), committed=1), "moved back"),
        (recovered(values(0, 2)), "owned/1 changed"),
        (recovered(values(0, 1, 1)), "behind"),
        (recovered([*values(0, 1), digest(b"00000009 x 24 ")]), "never sent"),
        (recovered(values(1), first=1), "trimmed to 1, unasked"),
        ((Recovered(),), "log owned is lost"),
        ((*recovered(values(0, 1)), Claimed("owned", "c", 1, 2)), "epoch 1 again"),
        ((*recovered(values(0, 1)), Served("owned", 1, values(2))), "was b'00000001"),
    ],
)
def test_what_is_wrong_after_a_power_cut_is_said(events: Sequence[Event], sentence: str) -> None:
    wrong = judged(events, cut=True)
    assert any(sentence in each for each in wrong), wrong


def test_a_killed_server_loses_nothing_at_all() -> None:
    assert judged(recovered(values(0, 1)), cut=False) == ["owned/2 is lost"]


def test_what_a_recovery_served_that_was_itself_cut_has_to_stay() -> None:
    judge = Judge()
    for event in LIFE:
        judge.hear(event)
    judge.power_cut()
    judge.hear(Served("owned", 0, values(0, 1, 2)))
    judge.power_cut()
    for event in recovered(values(0, 1)):
        judge.hear(event)
    assert judge.wrong == ["owned/2 is lost"]

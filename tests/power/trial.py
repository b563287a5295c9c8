"""A trial: one disk, cut again and again, and its judge."""

from __future__ import annotations

from random import Random
from typing import TYPE_CHECKING, Any, Final

from .judge import Judge
from .plan import Plan

if TYPE_CHECKING:
    from . import telling
    from .telling import Event
    from .uml import Machine

WORK_SECONDS: Final = 600.0  # only to find out that it hangs


class Trial:
    """``told``: the kinds of events of the present boot."""

    said = ""

    def __init__(self, machine: Machine, seed: int) -> None:
        self.machine = machine
        self.judge = Judge()
        self.chance = Random(seed)
        self.boots = 0
        self.torn = 0
        self.told: set[type[Event]] = set()
        self._seed = seed

    def _hear(self, event: telling.Any) -> None:
        self.told.add(type(event))
        self.judge.hear(event)

    def boot(self, until: tuple[type[Event], ...], seconds: float = 0.0, **plan: Any) -> None:
        """Boot, and cut so many seconds after one of ``until`` was told, or a promise broken."""
        order = Plan(self.machine.file_system, self._seed, self.boots, **plan)
        self.boots += 1
        self.told.clear()
        with self.machine.boot(order, self._hear) as guest:
            guest.hear(
                self._hear,
                lambda: bool(self.judge.wrong or self.told.intersection(until)),
                WORK_SECONDS,
            )
            guest.hear_for(self._hear, seconds)
            guest.cut(self._hear)
            self.torn += guest.torn
            self.said = guest.said()
        self.judge.power_cut()

    def check(self) -> None:
        assert not self.judge.wrong, (
            f"seed {self._seed}, boot {self.boots}: {self.judge.wrong[:10]}; {self.said}"
        )

    def counts(self) -> dict[str, int]:
        return {
            **self.judge.counts,
            "recoveries judged": self.judge.recoveries,
            "boots that hung": self.machine.boots_that_hung,
            "torn lines": self.torn,
        }

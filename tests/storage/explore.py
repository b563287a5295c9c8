"""Crashes at every boundary of a life: what the next life finds, enumerated, and checked.

A life is a workload on a server. At every operation boundary its disk and its history are copied:
a *cut*. From each cut follow a kill and many power cuts; each is recovered for real and checked.
Some of the recoveries are lives of their own, which are cut at every boundary as well, and some go
on working before they are.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

from tests.storage.history import History, View, settle
from tests.storage.server import Clock, Server
from tests.storage.simdisk import Choice, Fill, SimDisk, choices

if TYPE_CHECKING:
    from collections.abc import Iterator


Workload = Callable[[Server, "Payloads"], None]


class Payloads:
    """Unique payloads, which sort as they were sent."""

    def __init__(self, rng: random.Random, begin: int) -> None:
        self._rng = rng
        self._next = begin

    def __call__(self, size: int = 0) -> bytes:
        self._next += 1
        head = b"%08d" % self._next
        return head + self._rng.randbytes(max(size - len(head), 0))


class Cut(NamedTuple):
    """The disk and the history at one operation boundary, and what was about to happen."""

    disk: SimDisk
    history: History
    operation: int
    kind: str


class Violation(NamedTuple):
    """``way``: the cuts and choices that lead there, outermost first."""

    way: tuple[str, ...]
    wrong: list[str]

    def __str__(self) -> str:
        return f"{' -> '.join(self.way)}: {'; '.join(self.wrong[:3])}"


class Depth(NamedTuple):
    """How much to try. ``enumerate_max``, ``samples``: see ``choices``. ``nested``, ``continued``:
    one in so many recoveries is cut at each of its own boundaries; or goes on working first."""

    enumerate_max: int
    samples: int
    nested: int
    continued: int
    rotten: int  # in one of so many, the newest checkpoint is destroyed: there is an older one
    lives: int = 3


def live(
    disk: SimDisk, history: History, workload: Workload | None, seed: int
) -> tuple[list[Cut], Server]:
    """A life from recovery to the end of its workload, and its cuts."""
    cuts: list[Cut] = []
    served: list[Server] = []

    def observe(kind: str) -> None:
        if served:
            served[0].note_seen()
        now = served[0].history if served else history
        cuts.append(Cut(disk.copy(), now.copy(), disk.operations, kind))

    disk.on_operation = observe
    server = Server(disk, history)
    # What this recovery served is from now on kept.
    server.history = settle(history, server.view())
    served.append(server)
    if workload is not None:
        workload(server, Payloads(random.Random(seed), len(history.sent)))
    observe("end")
    disk.on_operation = None
    return cuts, server


class Explorer:
    """Runs lives and checks what follows their cuts; ``states`` and the like are counts."""

    def __init__(
        self,
        depth: Depth,
        later: Workload,
        seed: int = 1,
        *,
        violations_max: int = 5,
        recoveries_max: int = 1 << 60,
    ) -> None:
        self.depth = depth
        self.later = later
        self.seed = seed
        self.violations_max = violations_max
        self.recoveries_max = recoveries_max
        self._next: deque[Callable[[], None]] = deque()  # lives that are still to be explored
        self.boundaries = 0
        self.states = 0
        self.recoveries = 0
        self.lives = 0
        self.violations: list[Violation] = []
        self._views: dict[int, View | str] = {}

    def __str__(self) -> str:
        return (
            f"{self.lives} lives, {self.boundaries} boundaries, {self.states} crash states, "
            f"{self.recoveries} of them distinct and recovered"
        )

    def run(self, workload: Workload) -> None:
        """From an empty directory."""
        self._explore(SimDisk(), History(), workload, (), 1)
        while self._next and not self._enough:
            self._next.popleft()()

    @property
    def _enough(self) -> bool:
        return len(self.violations) >= self.violations_max or self.recoveries >= self.recoveries_max

    def _explore(
        self,
        disk: SimDisk,
        history: History,
        workload: Workload | None,
        way: tuple[str, ...],
        life: int,
    ) -> None:
        self.lives += 1
        try:
            cuts, server = live(disk, history, workload, self.seed + life)
        except Exception as error:
            self._violated(way, [f"the server broke: {type(error).__name__}: {error}"])
            return
        if server.failed is not None:
            self._violated(way, [f"the server failed: {server.failed}"])
        self._judge(server.view(), server.history, (*way, "end"), power_cut=True)
        self.boundaries += len(cuts)
        for cut in cuts:
            if life == 1:
                self._check_torn(cut, (f"operation {cut.operation}",))
            for choice, left in self._after(cut, life):
                if self._enough:
                    return
                here = f"life {life}, operation {cut.operation} ({cut.kind}), "
                here += "killed" if choice is None else f"mask {choice.mask:b}, {choice.fill.value}"
                self._recover(cut, left, (*way, here), life, power_cut=choice is not None)

    def _after(self, cut: Cut, life: int) -> Iterator[tuple[Choice | None, SimDisk]]:
        yield None, cut.disk.killed()
        depth = self.depth
        samples = depth.samples if life == 1 else max(depth.samples // 8, 3)
        limit = depth.enumerate_max if life == 1 else min(depth.enumerate_max, 2)
        seed = self.seed + 7919 * cut.operation
        for choice in choices(cut.disk, samples, seed, limit, "logs"):
            yield choice, cut.disk.crash(choice)

    def _check_rotten(self, left: SimDisk, cut: Cut, way: tuple[str, ...]) -> None:
        """With the newest checkpoint destroyed, the one before it and the journal give the same."""
        names = [name for name in left.names("") if name.startswith("checkpoint-")]
        if len(names) < 2:
            if names and int(names[0].rpartition("-")[2]):
                self._violated(way, [f"{names[0]} is the only checkpoint"])
            return
        left.replace(names[-1], b"rot" * 10)
        self.recoveries += 1
        view = self._recovered(left)
        way = (*way, f"{names[-1]} destroyed")
        if isinstance(view, str):
            self._violated(way, [view])
        else:
            self._judge(view, cut.history, way, power_cut=True)

    def _check_torn(self, cut: Cut, way: tuple[str, ...]) -> None:
        """With nothing unsynced in the journal of a first life, nothing may be called torn."""
        below = cut.disk.nodes_below("journal")
        if any(unit.node in below or unit.kind == "names" for unit in cut.disk.units()):
            return
        left = cut.disk.crash(Choice(0, Fill.OLD, 1))
        before = left.names("quarantine")
        if isinstance(self._recovered(left), View) and left.names("quarantine") != before:
            self._violated(way, [f"torn, though all was synced: {left.names('quarantine')}"])

    def _recover(
        self, cut: Cut, left: SimDisk, way: tuple[str, ...], life: int, *, power_cut: bool
    ) -> None:
        self.states += 1
        # After a kill the cache and the disk differ: such a disk is never equal to another.
        known = left.fingerprint() if power_cut else None
        view = self._views.get(known) if known is not None else None
        if view is None:
            view = self._recovered(left.copy())
            if known is not None:
                self._views[known] = view
            self.recoveries += 1
            if power_cut and self.recoveries % self.depth.rotten == 0:
                self._check_rotten(left.copy(), cut, way)
            if life < self.depth.lives and not isinstance(view, str):
                number = self.recoveries
                kept = cut.history.after_power_cut() if power_cut else cut.history.copy()
                work = self.later if number % self.depth.continued == 1 else None
                if work is not None or number % self.depth.nested == 0:
                    disk = left.copy()
                    self._next.append(lambda: self._explore(disk, kept, work, way, life + 1))
        if isinstance(view, str):
            self._violated(way, [view])
        else:
            self._judge(view, cut.history, way, power_cut=power_cut)

    @staticmethod
    def _recovered(disk: SimDisk) -> View | str:
        try:
            server = Server(disk, clock=Clock())
            if server.failed is not None:
                return f"writing failed at the start: {server.failed}"
            return server.view()
        except Exception as error:
            return f"not started: {type(error).__name__}: {error}"

    def _judge(
        self, view: View, history: History, way: tuple[str, ...], *, power_cut: bool
    ) -> None:
        if wrong := history.check(view, power_cut=power_cut):
            self._violated(way, wrong)

    def _violated(self, way: tuple[str, ...], wrong: list[str]) -> None:
        self.violations.append(Violation(way, wrong))

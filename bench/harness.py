"""What every bench shares: options, a quiet machine, interleaved rounds, medians, goals.

A figure is worth what is known about the run that it comes from. So every report names the machine,
the file system and the sync policy; memory is warmed first (on a virtual machine, a page that the
host has taken back costs more than the write into it); what was written is on the disk before the
next turn begins; and each table says how much processor time went to anybody else. No bench
asserts: a figure is read, beside the limits of its own run, and a goal says only whether it was
reached in this one: in every round, in none, or in some, which decides nothing.
"""

from __future__ import annotations

import argparse
import compileall
import json
import os
import signal
import sys
import tempfile
import time
from enum import Enum
from functools import partial
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Self

import rlog
import rlog_client

from .machine import MIB, Clock, machine, settle, warm

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

POLICIES: Final = ("always", "periodic:1s", "bytes:1MiB", "never")
WARM_MIB: Final = 1024
_PAUSE_SECONDS: Final = 0.05  # before a turn, for servers to do what the one before left them


# --- what is judged ---------------------------------------------------------------------------


class Verdict(Enum):
    REACHED = "reached"
    MISSED = "NOT reached"
    UNDECIDED = "undecided"


def verdict(figures: Sequence[float], bound: float, *, at_most: bool = False) -> Verdict:
    """Reached in every round, or in none; else it is undecided."""
    met = [figure <= bound if at_most else figure >= bound for figure in figures]
    return Verdict.REACHED if all(met) else Verdict.UNDECIDED if any(met) else Verdict.MISSED


class Goal(NamedTuple):
    """What a row's figures should reach: ``bound``, or, by rounds, ``bound`` times the sum of the
    rows named ``of``.
    """

    bound: float
    at_most: bool = False
    of: tuple[str, ...] = ()

    def __str__(self) -> str:
        what = f"{'at most' if self.at_most else 'at least'} {readable(self.bound)}"
        return f"{what} x ({' + '.join(self.of)})" if self.of else what


class Result(NamedTuple):
    """A row. ``few``: its figures are the largest of too few samples for what it is called."""

    name: str
    figures: list[float]
    goal: Goal | None
    few: bool = False


def judged(result: Result, results: Sequence[Result]) -> dict[str, Any]:
    """A result beside its goal. A goal that names rows is judged by its ratio to them."""
    goal, figures = result.goal, result.figures
    assert goal is not None
    if goal.of:
        named = {other.name: other.figures for other in results}
        sums = map(sum, zip(*(named[name] for name in goal.of), strict=True))
        figures = [mine / other for mine, other in zip(figures, sums, strict=True)]
    found = verdict(figures, goal.bound, at_most=goal.at_most)
    return {
        "goal": str(goal),
        "figures": figures,
        "verdict": (Verdict.UNDECIDED if result.few else found).value,
    }


# --- what is measured -------------------------------------------------------------------------


class Case(NamedTuple):
    """One run, and the rows that its figures are, in their order, with their goals.

    ``units``: of rows that have another one than their table: they make a table of their own.
    ``few``: rows of a percentile for which a run gave too few samples, so far.
    """

    rows: Mapping[str, Goal | None]
    run: Callable[[], Sequence[float]]
    units: Mapping[str, str] = {}
    few: Sequence[str] = ()


def case(name: str, run: Callable[[], float], goal: Goal | None = None) -> Case:
    """Of one figure."""
    return Case({name: goal}, lambda: [run()])


def samples_for(share: float) -> int:
    """Of how many samples a percentile is more than their largest: 100 for ``share`` 0.99."""
    return round(1 / (1 - share))


def percentiles(
    name: str,
    run: Callable[[], Sequence[float]],
    goals: Mapping[float, Goal | None],
    scale: float = 1e6,
) -> Case:
    """A row for each share of ``goals`` (0.5: p50), of what ``run`` returns: seconds, times
    ``scale``.
    """
    rows = {f"{name}, p{share * 100:g}": goal for share, goal in goals.items()}
    few: list[str] = []

    def figures() -> list[float]:
        taken = sorted(run())
        few.extend(
            row for row, share in zip(rows, goals, strict=True) if len(taken) < samples_for(share)
        )
        return [percentile(taken, share) * scale for share in goals]

    return Case(rows, figures, few=few)


class Conditions(NamedTuple):
    """What the machine was like during the rounds of a table.

    ``others``: of each round, the processors that others used. ``restless``: rounds that began
    though the machine was not seen idle.
    """

    others: list[float]
    restless: int

    def __str__(self) -> str:
        said = f"others used {median(self.others):.2f} processors, at most {max(self.others):.2f}"
        restless = f"; the machine was not seen idle before {self.restless} of {len(self.others)}"
        return said + (restless if self.restless else "")


class Bench:
    """One script's run: its options, its directory, its report."""

    def __init__(self, question: str, rounds: int, *options: tuple[str, Any, str]) -> None:
        """``options``: (name, default, help) of further ones, of the default's type."""
        signal.signal(signal.SIGTERM, _end)
        parser = argparse.ArgumentParser(description=question)
        parser.add_argument("--rounds", type=int, default=rounds, help="interleaved (%(default)s)")
        parser.add_argument("--dir", help="where to make the temporary directory")
        parser.add_argument("--json", metavar="FILE", help="write all figures there, too")
        parser.add_argument(
            "--warm", type=int, default=WARM_MIB, help="MiB of memory to warm first (%(default)s)"
        )
        parser.add_argument(
            "--patience",
            type=float,
            default=3.0,
            help="seconds for the machine to become idle, before each round (%(default)s)",
        )
        for name, default, text in options:
            kind = type(default)
            shown = f"{text} (%(default)s)" if default != "" else text
            parser.add_argument(f"--{name}", type=kind, default=default, help=shown)
        self.options = parser.parse_args()
        self._scratch = tempfile.TemporaryDirectory(prefix="rlog-bench-", dir=self.options.dir)
        self._tables: list[dict[str, Any]] = []
        self._machine = machine(os.path.dirname(self._scratch.name))
        for package in (rlog, rlog_client):
            # As an installation has it: a start is not to compile what it imports.
            compileall.compile_dir(package.__path__[0], quiet=1)
        print(f"\n{question}")
        mib = self.options.warm
        self._machine["memory"] = f"{mib} MiB warmed in {warm(mib):.1f} s" if mib else "not warmed"
        for name, text in self._machine.items():
            print(f"  {name + ':':9}{text}")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        if self.options.json:
            report: dict[str, Any] = {"machine": self._machine, "tables": self._tables}
            if error is not None:
                report["ended early"] = repr(error)
            Path(self.options.json).write_text(json.dumps(report, indent=2) + "\n")
        self._scratch.cleanup()

    def directory(self, name: str = "data") -> str:
        return f"{self._scratch.name}/{name}"

    def rounds(
        self, works: Sequence[Callable[[], None]], before: Callable[[], object] | None = None
    ) -> Conditions:
        """Do each once a round, each round beginning with another one; ``before``: each round.

        A turn begins when the disk has what the others wrote: what they put off is not for the
        next one to feel.
        """
        others, restless = [], 0
        for number in range(self.options.rounds):
            if before is not None:
                before()
            restless += not settle(self.options.patience)
            clock = Clock()
            first = number * len(works) // self.options.rounds
            for work in (*works[first:], *works[:first]):
                os.sync()
                time.sleep(_PAUSE_SECONDS)
                with clock:
                    work()
            others.append(clock.others())
        return Conditions(others, restless)

    def run(
        self,
        title: str,
        unit: str,
        cases: Sequence[Case],
        before: Callable[[], object] | None = None,
    ) -> None:
        """Every case once a round, medians of the rounds, and a table of them for each unit."""
        found: list[list[Sequence[float]]] = [[] for _ in cases]

        def add(case: Case, runs: list[Sequence[float]]) -> None:
            runs.append(case.run())

        conditions = self.rounds(
            [partial(add, *pair) for pair in zip(cases, found, strict=True)], before
        )
        tables: dict[str, list[Result]] = {}
        for case, runs in zip(cases, found, strict=True):
            for (name, goal), figures in zip(
                case.rows.items(), zip(*runs, strict=True), strict=True
            ):
                result = Result(name, list(figures), goal, name in case.few)
                tables.setdefault(case.units.get(name, unit), []).append(result)
        for its_unit, results in tables.items():
            self._show(title, its_unit, results, conditions)

    def _show(self, title: str, unit: str, results: list[Result], conditions: Conditions) -> None:
        width = max(len(result.name) for result in results)
        print(f"\n  {title}, {unit}: {self.options.rounds} rounds; {conditions}")
        print(f"  {'':{width}} {'median':>12} {'lowest':>12} {'highest':>12}")
        goals = {}
        for result in results:
            figures = (median(result.figures), min(result.figures), max(result.figures))
            line = f"  {result.name:{width}} " + " ".join(f"{readable(f):>12}" for f in figures)
            if result.few:
                line += "  (the longest: too few samples)"
            if result.goal is not None:
                found = goals[result.name] = judged(result, results)
                figure = f"{readable(median(found['figures']))} is " if result.goal.of else ""
                line += f"  goal: {found['goal']}: {figure}{found['verdict']}"
            print(line)
        self.report(
            {
                "title": title,
                "unit": unit,
                **conditions._asdict(),
                "results": {result.name: result.figures for result in results},
                "too few samples": [result.name for result in results if result.few],
                "goals": goals,
            }
        )

    def note(self, text: str) -> None:
        print(f"  {text}")
        self.report({"note": text})

    def report(self, table: dict[str, Any]) -> None:
        """Have it written to the JSON file, too."""
        self._tables.append(table)


def _end(*_: object) -> None:
    # A second one is not to interrupt the cleaning up.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    sys.exit(143)


# --- small things -----------------------------------------------------------------------------


def readable(figure: float) -> str:
    return f"{figure:,.0f}" if figure >= 1000 else f"{figure:.3g}"


def values(size: int, count: int = 50_000) -> list[bytes]:
    """Distinct values of ``size`` bytes, which lie apart in memory as those of a user do."""
    return [b"%016d" % number * (size // 16) + b"." * (size % 16) for number in range(count)]


def fill(log: rlog_client.Log, size: int, count: int) -> None:
    """Append ``count`` records of ``size`` bytes, in bulk."""
    column = values(size, min(count, 50_000, max(1, 64 * MIB // size)))
    with log.producer() as producer:
        for left in range(count, 0, -len(column)):
            producer.extend(column[:left])


def seconds_of(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def per_second(count: int, work: Callable[[], object]) -> float:
    """``count`` of whatever ``work`` does, per second."""
    return count / seconds_of(work)


def percentile(seconds: Sequence[float], share: float) -> float:
    return sorted(seconds)[min(len(seconds) - 1, int(len(seconds) * share))]

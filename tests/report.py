"""What the proofs counted: told by each test, shown when a run ends, and written for a program.

    record_property("crash states", 362_082)    # counts of one name are added up
    record_property(PLANTED, Planted(...)._asdict())

Properties go with a test's report, so they come from other processes (``-n 2``) as well.
``--results FILE`` appends one line of JSON for the run: {"passed", "failed", "skipped", "seconds",
"seed", "counts": {name: number}, "planted": [...], "failures": [test]}.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

if TYPE_CHECKING:
    import pytest

RecordProperty = Callable[[str, object], None]
PLANTED: Final = "planted bug"


class Planted(NamedTuple):
    """A rule of the product that was switched off. ``caught``: what was seen of it, or nothing."""

    name: str
    harness: str
    caught: str
    seconds: float


class Report:
    """The plugin that collects them."""

    def __init__(self, seed: int, results: str | None) -> None:
        self._seed = seed
        self._results = results
        self._began = time.monotonic()
        self._counts: Counter[str] = Counter()
        self._outcomes: Counter[str] = Counter()
        self._planted: list[Planted] = []
        self._failures: list[str] = []

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            self._failures.append(report.nodeid)
        elif report.skipped or report.when == "call":
            self._outcomes[report.outcome] += 1
        if report.when == "teardown":
            for name, value in report.user_properties:
                if name == PLANTED and isinstance(value, dict):
                    self._planted.append(Planted(**value))
                elif isinstance(value, int):
                    self._counts[name] += value

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        if self._counts:
            terminalreporter.section("counted")
            for name, number in sorted(self._counts.items()):
                terminalreporter.line(f"{number:>12,}  {name}")
        if self._planted:
            caught = sum(bool(each.caught) for each in self._planted)
            terminalreporter.section(f"{caught} of {len(self._planted)} planted bugs caught")
            for each in sorted(self._planted, key=lambda each: (each.harness, each.name)):
                mark = "" if each.caught else "  SURVIVED"
                terminalreporter.line(f"{each.seconds:6.1f} s  {each.harness:13} {each.name}{mark}")
                if terminalreporter.config.get_verbosity() > 0:
                    terminalreporter.line(f"{'':24}{each.caught[:100]}")
        if self._results is not None:
            with Path(self._results).open("a") as file:
                file.write(json.dumps(self._as_json()) + "\n")

    def _as_json(self) -> dict[str, Any]:
        return {
            "passed": self._outcomes["passed"],
            "failed": len(self._failures),
            "skipped": self._outcomes["skipped"],
            "seconds": round(time.monotonic() - self._began, 1),
            "seed": self._seed,
            "counts": dict(self._counts),
            "planted": [each._asdict() for each in self._planted],
            "failures": self._failures,
        }

"""Every bench of a workload runs, at its smallest, to a report that says what was reached.

What it measures then means nothing: no figure is looked at.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest

ROOT: Final = Path(__file__).parents[2]
ONCE: Final = ("--rounds", "1", "--warm", "0", "--patience", "0")
# Name -> its smallest counts, and how many rows have a goal.
SMALLEST: Final = {
    "append": ("--mib 1", 4),
    "consume": ("--mib 1", 5),
    "latency": ("--seconds 0.05", 2),
    "process": ("--count 1000", 2),
    "fanout": ("--mib 1", 0),
    "shared": ("--count 1000", 2),
    "many_logs": ("--logs 4 --seconds 0.1", 0),
    "single": ("--count 10", 1),
    "ping": ("--seconds 0.05 --mib 1", 0),
    "idle": ("--seconds 0.1 --consumers 40", 6),
    "growth": ("--records 1000 --smallest 1000 --portion 50 --seeks 10 --journal 1", 4),
    "cli": ("--mib 1", 3),
}


@pytest.mark.parametrize("name", SMALLEST)
def test_a_bench_runs_to_its_end_and_judges_its_goals(name: str, tmp_path: Path) -> None:
    options, goals = SMALLEST[name]
    places = ("--dir", str(tmp_path), "--json", str(tmp_path / "reports"))
    command = [sys.executable, "-m", "bench", name, *ONCE, *options.split(), *places]
    subprocess.run(
        command,
        check=True,
        cwd=ROOT,
        timeout=300,
        stdout=subprocess.DEVNULL,
    )
    report = json.loads((tmp_path / "reports" / f"{name}.json").read_text())
    tables = [table for table in report["tables"] if "results" in table]
    assert all(len(row) == 1 for table in tables for row in table["results"].values())
    assert sum(len(table["goals"]) for table in tables) == goals
    assert not list(tmp_path.glob("rlog-bench-*")), "it leaves nothing behind"


def test_only_benches_that_there_are_can_be_named() -> None:
    command = [sys.executable, "-m", "bench", "nothing"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1
    assert "no such bench: nothing" in done.stderr

"""Every bench of a workload runs, at its smallest, to a report that says what was reached.

What it measures then means nothing: no figure is looked at.
"""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Final

import pytest

from bench.__main__ import NAMES

ROOT: Final = Path(__file__).parents[2]
ONCE: Final = ("--rounds", "1", "--warm", "0", "--patience", "0")
# Name -> its smallest counts, and how many rows have a goal.
SMALLEST: Final = {
    "append": ("--mib 1", 4),
    "consume": ("--mib 1", 3),
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
    "aio": ("--mib 1 --appends 10", 0),
    "limits": ("--mib 4 --count 10", 0),
    "table": ("--keys 1000 --compacted 20000", 0),
    "retention": ("--logs 4 --seconds 0.05", 0),
    "testing_kit": ("--servers 1", 0),
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


def running(word: str) -> list[str]:
    """The command lines that have it."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            found.append(path.read_text())
    return [line for line in found if word in line]


def test_ending_it_ends_the_bench_that_runs_and_its_servers(tmp_path: Path) -> None:
    places = ("--dir", str(tmp_path), "--json", str(tmp_path))
    options = ("--warm", "0", "--rounds", "1000", "--mib", "1")
    process = subprocess.Popen(
        [sys.executable, "-m", "bench", "consume", "limits", *options, *places],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        start_new_session=True,
    )
    deadline = time.monotonic() + 60.0
    while not list(tmp_path.glob("rlog-bench-*/data.server-log")):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60.0) == 143
    assert not list(tmp_path.glob("rlog-bench-*")), "it leaves nothing behind"
    assert not running(str(tmp_path))
    assert "ended early" in json.loads((tmp_path / "consume.json").read_text())
    assert not (tmp_path / "limits.json").exists(), "nor does it go on with the next"


def test_every_bench_is_run_by_a_test() -> None:
    assert {*SMALLEST, "compare"} == set(NAMES)


def test_only_benches_that_there_are_can_be_named() -> None:
    command = [sys.executable, "-m", "bench", "nothing"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1
    assert "no such bench: nothing" in done.stderr

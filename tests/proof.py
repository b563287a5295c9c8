"""``make proof``: the long form of every proof, stage by stage; three hours, and it can be resumed.

    python -m tests.proof                  the stages that this commit has not passed yet
    python -m tests.proof --only power     one of them, whether it has passed or not
    python -m tests.proof --table          what the last results counted, as tests/PROOF.md has it

Each stage is a run of pytest with ``--long`` over some of the tests, with a seed of its own, which
is shown. Its result is appended to ``proof/results.jsonl``: what ``tests/report.py`` writes of a
run, and {"stage", "harness", "promises", "commit", "python", "kernel", "at"}.
"""

from __future__ import annotations

import argparse
import datetime
import json
import platform
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any, Final, NamedTuple

ROOT: Final = Path(__file__).parents[1]
RESULTS: Final = ROOT / "proof" / "results.jsonl"
DIRTY: Final = "-dirty"
_JUDGED: Final = (0, 1)  # pytest's exit codes when all tests ran; else a result says too little


class Stage(NamedTuple):
    """``harness``: S simulated disk, U power cuts in a kernel of their own, X the real server, T
    simulated time and network, F fuzzing. The histories of all are checked. ``processes``: how many
    of its tests run at once.
    """

    name: str
    harness: str
    promises: str
    tests: tuple[str, ...]
    processes: int = 2


STAGES: Final = (
    Stage("crashes", "S", "1-4, 9, 10, 14, 17, 18", ("tests/storage/test_crash.py",)),
    Stage("damage", "S", "4, 5, 11", ("tests/storage/test_damage.py",)),
    Stage("failures", "S", "6, 8", ("tests/storage/test_failures.py",)),
    Stage("storage", "S", "3-11, 18, 25", ("tests/storage",)),
    Stage("power", "U", "1-3, 7, 9, 13, 14, 17, 18", ("tests/power",)),
    Stage("schedules", "T", "12-19", ("tests/schedules", "tests/shared")),
    Stage("kills", "X", "1-3, 14, 16, 17", ("tests/e2e/test_kill.py",)),
    Stage("faults", "X", "1, 6, 8, 11, 12, 15, 20, 21, 23, 24", ("tests/faults",)),
    Stage("fuzz", "F", "22", ("tests/fuzz",)),
    Stage("chain", "X", "13, 17-19", ("tests/e2e/test_chain.py", "tests/e2e/test_once.py")),
    Stage("members", "X", "16, 19", ("tests/e2e/test_sharing.py",), 1),
    Stage("databases", "X", "16, 17, 19", ("tests/sql",)),
    Stage("network", "X", "16, 20, 21, 23", ("tests/net",), 1),
    Stage("clients", "X", "2, 13-17, 20-22", ("tests/e2e", "tests/client", "tests/aio")),
    Stage("the rest", "X", "5, 16, 24, 25", ("tests",)),
)


class Results:
    """Those of earlier runs, the last ones of a stage."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.of: dict[str, dict[str, Any]] = {}
        if path.exists():
            for line in path.read_text().splitlines():
                result = json.loads(line)
                self.of[result["stage"]] = result

    def passed(self, stage: Stage, commit: str) -> bool:
        result = self.of.get(stage.name)
        if result is None or commit.endswith(DIRTY):
            return False  # what a tree held that is no commit, nobody knows any more
        return bool(result["commit"] == commit and not result["failed"])

    def add(self, result: dict[str, Any]) -> None:
        self.of[result["stage"]] = result
        self._path.parent.mkdir(exist_ok=True)
        with self._path.open("a") as file:
            file.write(json.dumps(result) + "\n")


def commit() -> str:
    """That of the tree, with a mark if the tree is none."""
    said = subprocess.check_output(
        ["git", "describe", "--always", "--abbrev=12", f"--dirty={DIRTY}"], cwd=ROOT, text=True
    )
    return said.strip()


def taken(stage: Stage) -> list[str]:
    """The tests of the stages before it, which it leaves out."""
    before = STAGES[: STAGES.index(stage)]
    return [f"--ignore={test}" for other in before for test in other.tests]


def run(stage: Stage, seed: int) -> dict[str, Any]:
    """One stage, to the end. What pytest says goes where this says its own."""
    with tempfile.TemporaryDirectory() as place:
        results = Path(place) / "results"
        command = [
            *(sys.executable, "-m", "pytest", "--long", "-q", "-p", "no:cacheprovider"),
            *("--seed", str(seed), "--results", str(results)),
            *("--numprocesses", str(stage.processes), "--dist", "loadgroup"),
            *taken(stage),
            *stage.tests,
        ]
        try:
            done = subprocess.run(command, cwd=ROOT, check=False)
        except KeyboardInterrupt:
            raise SystemExit(f"{stage.name}: interrupted; the stages before it are kept") from None
        if done.returncode not in _JUDGED or not results.exists():
            raise SystemExit(f"{stage.name}: pytest ended with {done.returncode}, and no result")
        [line] = results.read_text().splitlines()
    return {
        "stage": stage.name,
        "harness": stage.harness,
        "promises": stage.promises,
        "commit": commit(),
        "python": platform.python_version(),
        "kernel": platform.release(),
        "at": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        **json.loads(line),
    }


def table(results: Results) -> str:
    """In Markdown: the last run of each stage; what was counted, added up over them."""
    counts: Counter[str] = Counter()
    planted = []
    lines = [
        "| stage | harness | promises | tests passed | failed | minutes | seed | commit |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for stage in STAGES:
        if (result := results.of.get(stage.name)) is not None:
            counts.update(result["counts"])
            planted += result["planted"]
            minutes = f"{result['seconds'] / 60:.1f}"
            ran = (result["passed"], result["failed"], minutes, result["seed"], result["commit"])
            lines.append(f"| {' | '.join(map(str, (*stage[:3], *ran)))} |")
    caught = sum(bool(each["caught"]) for each in planted)
    lines += ["", "| what | how many |", "|---|---|"]
    lines += [f"| {name} | {number:,} |" for name, number in sorted(counts.items())]
    lines.append(f"| rules switched off, each noticed by name | {caught} of {len(planted)} |")
    return "\n".join(lines)


def say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.proof", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--only", choices=[stage.name for stage in STAGES], action="append")
    parser.add_argument("--again", action="store_true", help="also those that have passed")
    parser.add_argument("--seed", type=int, help="of every stage; else new for each")
    parser.add_argument("--table", action="store_true", help="only show what was counted")
    arguments = parser.parse_args()
    results = Results(RESULTS)
    if arguments.table:
        say(table(results))
        return 0
    now = commit()
    stages = [
        stage
        for stage in STAGES
        if (stage.name in arguments.only if arguments.only else True)
        and (arguments.only or arguments.again or not results.passed(stage, now))
    ]
    began = time.monotonic()
    failed = []
    for number, stage in enumerate(stages, 1):
        seed = random.SystemRandom().getrandbits(32) if arguments.seed is None else arguments.seed
        so_far = datetime.timedelta(seconds=int(time.monotonic() - began))
        say(
            f"\n[{number}/{len(stages)}] {stage.name}: harness {stage.harness}, promises "
            f"{stage.promises}; seed {seed}; {so_far} so far"
        )
        result = run(stage, seed)
        results.add(result)
        if result["failed"]:
            failed.append(stage.name)
    say(f"\n{table(results)}\n\nin {RESULTS}")
    say(f"failed: {', '.join(failed)}" if failed else "all stages that ran have passed")
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())

"""Mutation testing of the modules in scripts/judges, with mutmut: see scripts/mutate.

A mutant that survives has to be among the diffs of tests/MUTATION.md, which says of each why no
test sees it; one that is not there makes this exit with 1. The counts are printed as rows of the
table there. A copy of the project is mutated, never the project.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Final, NamedTuple

ROOT: Final = Path(__file__).resolve().parent.parent
WORK: Final = ROOT / "build" / "mutation"
MUTMUT: Final = WORK / "venv" / "bin" / "mutmut"
EXPLAINED: Final = ROOT / "tests" / "MUTATION.md"
# (mypy sees all mutants of a function side by side; no-redef would only say so.)
CONFIGURATION: Final = """\
[mutmut]
source_paths =
    rlog
    rlog_client
only_mutate = {module}
pytest_add_cli_args_test_selection =
    {judges}
pytest_add_cli_args =
    -p
    no:cacheprovider
also_copy =
    tests
    pyproject.toml
type_check_command =
    mypy
    --config-file=
    --output=json
    --disable-error-code=no-redef
    {module}
"""
SEEN: Final = ("killed", "timeout", "caught by type check")


class Diff(NamedTuple):
    """What a mutant changes: lines before and after, without their indentation."""

    before: tuple[str, ...]
    after: tuple[str, ...]

    @classmethod
    def of(cls, text: str) -> Diff:
        changed = [line for line in text.splitlines() if re.match(r"[-+](?![-+]{2} )", line)]
        sides = [tuple(line[1:].strip() for line in changed if line[0] == sign) for sign in "-+"]
        return cls(*sides)

    @property
    def in_words(self) -> bool:
        """Only the wording of a message was changed."""
        plain = [re.sub(r'"[^"]* [^"]*"', '""', " ".join(side)) for side in self]
        return plain[0] == plain[1]

    def __str__(self) -> str:
        return "\n".join(
            [*(f"-{line}" for line in self.before), *(f"+{line}" for line in self.after)]
        )


def judges() -> dict[str, list[str]]:
    """Module -> its tests."""
    lines = (ROOT / "scripts" / "judges").read_text().splitlines()
    rows = [line.split() for line in lines if line and not line.startswith("#")]
    return {module: tests for module, *tests in rows}


def explained() -> dict[str, set[Diff]]:
    """Module -> the survivors that are known."""
    _, *sections = re.split(r"^## `(.+)`$", EXPLAINED.read_text(), flags=re.MULTILINE)
    return {
        module: {
            Diff.of(block) for block in re.findall(r"```diff\n(.*?)```", section, flags=re.DOTALL)
        }
        for module, section in zip(sections[::2], sections[1::2], strict=True)
    }


def mutmut(place: Path, *arguments: str) -> str:
    """What it prints on the data of the mutants in ``place``."""
    return subprocess.run(
        [MUTMUT, *arguments], cwd=place, check=True, capture_output=True, text=True
    ).stdout


def run(module: str, tests: list[str]) -> tuple[Counter[str], dict[str, Diff]]:
    """-> how many mutants came to which end; those that were not seen, by name."""
    place = WORK / module.replace("/", ".")
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir()
    for name in ("rlog", "rlog_client", "tests"):
        shutil.copytree(
            ROOT / name, place / name, ignore=shutil.ignore_patterns("__pycache__", ".*")
        )
    shutil.copy(ROOT / "pyproject.toml", place)
    (place / "setup.cfg").write_text(
        CONFIGURATION.format(module=module, judges="\n    ".join(tests))
    )
    # Not the project, which PYTHONPATH or an installation may name: the copy.
    environment = {name: os.environ[name] for name in os.environ if name != "PYTHONPATH"}
    environment["PATH"] = f"{MUTMUT.parent}:{environment['PATH']}"
    with (place / "log").open("wb") as log:
        subprocess.run(
            [MUTMUT, "run", "--max-children", "1"],
            cwd=place, env=environment, check=True, stdout=log, stderr=log,
        )  # fmt: skip
    ends = dict(re.findall(r"^\s*(\S+): (.+)$", mutmut(place, "results", "--all", "true"), re.M))
    unseen = [name for name, end in ends.items() if end not in SEEN]
    return Counter(ends.values()), {name: Diff.of(mutmut(place, "show", name)) for name in unseen}


def main() -> int:
    known, every = explained(), judges()
    failed = False
    for module in sys.argv[1:] or every:
        counts, unseen = run(module, every[module])
        wording = {name for name, diff in unseen.items() if diff.in_words}
        rest = {name: diff for name, diff in unseen.items() if name not in wording}
        new = {name: diff for name, diff in rest.items() if diff not in known.get(module, ())}
        row = (
            f"`{module}`", counts.total(), *(counts[end] for end in SEEN), len(wording), len(rest)
        )  # fmt: skip
        print(f"| {' | '.join(map(str, row))} |", flush=True)
        for name, diff in new.items():
            print(f"\nnot explained: {name}\n```diff\n{diff}\n```", flush=True)
        for diff in known.get(module, set()) - set(rest.values()):
            print(f"\nno survivor any more:\n```diff\n{diff}\n```", flush=True)
        failed = failed or bool(new)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())

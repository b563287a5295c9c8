"""All benches, one after the other, or some: ``python -m bench [NAME…] [OPTION…]``.

Options go to each of them, but for ``--json DIR``: there each writes a file of its own.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from itertools import takewhile
from pathlib import Path
from typing import Final

NAMES: Final = (
    "limits",
    "append",
    "consume",
    "latency",
    "process",
    "fanout",
    "shared",
    "many_logs",
    "single",
    "ping",
    "aio",
    "idle",
    "table",
    "growth",
    "retention",
    "cli",
    "testing_kit",
    "compare",
)


def main() -> int:
    names = list(takewhile(lambda argument: not argument.startswith("-"), sys.argv[1:]))
    if unknown := set(names) - set(NAMES):
        sys.exit(f"no such bench: {', '.join(unknown)}; there are {', '.join(NAMES)}")
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--json", metavar="DIR", type=Path)
    own, options = parser.parse_known_args(sys.argv[1 + len(names) :])
    if own.json is not None:
        own.json.mkdir(parents=True, exist_ok=True)
    ended = []
    for name in names or NAMES:
        report = [] if own.json is None else ["--json", str(own.json / f"{name}.json")]
        command = [sys.executable, "-m", f"bench.{name}", *options, *report]
        ended.append(subprocess.run(command).returncode)
    return max(map(abs, ended))


if __name__ == "__main__":
    sys.exit(main())

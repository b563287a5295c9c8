"""All benches, one after the other: ``python -m bench [OPTION…]``; options go to each."""

from __future__ import annotations

import subprocess
import sys
from typing import Final

NAMES: Final = (
    "limits",
    "append",
    "consume",
    "process",
    "shared",
    "single",
    "aio",
    "table",
    "startup",
    "retention",
    "testing_kit",
    "compare",
)


def main() -> int:
    ended = [
        subprocess.run([sys.executable, "-m", f"bench.{name}", *sys.argv[1:]]).returncode
        for name in NAMES
    ]
    return max(map(abs, ended))


if __name__ == "__main__":
    sys.exit(main())

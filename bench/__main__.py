"""All benches, one after the other, or some: ``python -m bench [NAME…] [OPTION…]``.

Options go to each of them, but for ``--json DIR``: there each writes a file of its own.
"""

from __future__ import annotations

import argparse
import signal
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
_END_SECONDS: Final = 120.0  # for a bench that is interrupted to stop its servers


def run(command: list[str]) -> int:
    """What ends us ends it first, which has servers to stop."""
    process = subprocess.Popen(command)
    try:
        return process.wait()
    except BaseException as error:
        # An interrupt from the keyboard has reached it, too; a second one would break its end off.
        if not isinstance(error, KeyboardInterrupt):
            process.terminate()
        try:
            process.wait(_END_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
        raise


def main() -> int:
    names = list(takewhile(lambda argument: not argument.startswith("-"), sys.argv[1:]))
    if unknown := set(names) - set(NAMES):
        sys.exit(f"no such bench: {', '.join(unknown)}; there are {', '.join(NAMES)}")
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--json", metavar="DIR", type=Path)
    own, options = parser.parse_known_args(sys.argv[1 + len(names) :])
    if own.json is not None:
        own.json.mkdir(parents=True, exist_ok=True)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    ended = []
    for name in names or NAMES:
        report = [] if own.json is None else ["--json", str(own.json / f"{name}.json")]
        ended.append(run([sys.executable, "-m", f"bench.{name}", *options, *report]))
    return max(map(abs, ended))


if __name__ == "__main__":
    sys.exit(main())

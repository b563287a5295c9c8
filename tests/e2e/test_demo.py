"""``make demo`` works: it is what a new user runs first."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

from .serving import ROOT

if TYPE_CHECKING:
    from pathlib import Path


def test_the_demo_holds_what_it_says(tmp_path: Path) -> None:
    lines = tmp_path / "lines"
    lines.write_bytes(b"".join(b"line %d\n" % number for number in range(20_000)))
    done = subprocess.run(
        [sys.executable, ROOT / "scripts" / "demo.py", lines],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "FAILED" not in done.stdout

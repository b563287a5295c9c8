"""System calls of a real process that fail on demand, by strace's injection.

Fault model: the n-th call of a kind is not made, and the process is told that it failed (``EIO``,
``ENOSPC``, ...) or that it did nothing (``retval=0`` of a write: a short write that is the truth).
The kernel's part is skipped, so what the disk holds is what was there before: a failed sync leaves
its data in the page cache. Of a disk that loses it the simulated one (tests/storage) and the power
cuts know more.

strace counts per thread: ``when="3"`` is the third such call of each thread. It also writes down
every call of that kind, so that a test can tell what was done after the fault: a sync that was
tried again, say.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple, Self

from tests.e2e.serving import eventually

if TYPE_CHECKING:
    from collections.abc import Sequence

_LINE: Final = re.compile(r"^(\d+) +(\w+)\((.*)$")
_RESUMED: Final = re.compile(r"^(\d+) +<\.\.\. (\w+) resumed>")
_ERROR: Final = re.compile(r"= -1 (E[A-Z]+) ")
_PATH: Final = re.compile(r'"(/[^"]*)"|<(/[^>]*)>')


class Fault(NamedTuple):
    """``effect``: "error=EIO" or "retval=0". ``when``: "3" is the third, "3+" it and all others."""

    call: str
    effect: str
    when: str

    @property
    def expression(self) -> str:
        return f"inject={self.call}:{self.effect}:when={self.when}"

    @property
    def error(self) -> str | None:
        return self.effect.removeprefix("error=") if self.effect.startswith("error=") else None


class Call(NamedTuple):
    """One that was made, or was not: ``path`` is relative to the data directory."""

    name: str
    path: str
    injected: bool
    error: str | None

    @property
    def area(self) -> str:
        """journal, logs, checkpoint, lock, reserve, or "." for the data directory itself."""
        return re.split(r"[/.\-]", self.path)[0] or "."

    def ended(self, line: str) -> Call:
        """With what a line of the trace says of its end."""
        error = _ERROR.search(line)
        return self._replace(injected="(INJECTED)" in line, error=error[1] if error else None)


class Strace:
    """``paths``: only calls on these count, and are written down; none: all."""

    def __init__(
        self, data_dir: Path, trace: Path, *faults: Fault, paths: Sequence[str] = ()
    ) -> None:
        self._data_dir = data_dir
        self._trace = trace
        self._options = ["-f", "-y", "-s", "0", "-o", str(trace)]
        calls = ",".join(sorted({fault.call for fault in faults}))
        self._options += ["-e", f"trace={calls}", "-e", "signal=none"]
        for fault in faults:
            self._options += ["-e", fault.expression]
        for path in paths:
            self._options += ["-P", str(data_dir / path)]
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def under(self) -> list[str]:
        """Runs the command behind it, in its own process, with the faults from the beginning."""
        return ["strace", "-D", "--seccomp-bpf", *self._options]

    def attach(self, pid: int) -> None:
        """The faults begin now, in a process that runs; they end with ``detach``."""
        command = ["strace", "-q", *self._options, "-p", str(pid)]
        self._process = subprocess.Popen(command, stderr=subprocess.PIPE)
        threads = Path(f"/proc/{pid}/task")
        eventually(lambda: all(_traced(thread) for thread in threads.iterdir()), "strace attaches")

    def detach(self) -> None:
        if self._process is not None:
            self._process.terminate()
            self._process.communicate()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.detach()

    @property
    def struck(self) -> Call | None:
        """The first call that was made to fail."""
        return next((call for call in self.calls() if call.injected), None)

    def calls(self) -> list[Call]:
        """All below the data directory, in the order in which they began."""
        if not self._trace.exists():
            return []
        found: list[Call] = []
        unfinished: dict[tuple[str, str], int] = {}
        for line in self._trace.read_text(errors="replace").splitlines():
            if (resumed := _RESUMED.match(line)) is not None:
                at = unfinished.pop(resumed.groups(), None)  # type: ignore[arg-type]
                if at is not None:
                    found[at] = found[at].ended(line)
            elif (match := _LINE.match(line)) is not None:
                path = self._relative(match[3])
                if path is None:
                    continue
                if "<unfinished" in line:
                    unfinished[match[1], match[2]] = len(found)
                found.append(Call(match[2], path, False, None).ended(line))
        return found

    def _relative(self, arguments: str) -> str | None:
        """The last path in it: of ``rename`` the new name."""
        ours = f"{self._data_dir}"
        named = [a or b for a, b in _PATH.findall(arguments)]
        inside = [path for path in named if path == ours or path.startswith(f"{ours}/")]
        return inside[-1][len(ours) :].lstrip("/") if inside else None


def _traced(thread: Path) -> bool:
    try:
        status = (thread / "status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return True  # it has ended
    return "TracerPid:\t0\n" not in status


@cache
def unavailable() -> str | None:
    """Why there is no injection here; None: there is."""
    if shutil.which("strace") is None:
        return "there is no strace here: scripts/tools install"
    command = ["strace", "-D", "-f", "--seccomp-bpf", "-o", "/dev/null"]
    command += ["-e", "trace=mkdir", "-e", "inject=mkdir:error=EDOM", "mkdir", "/"]
    done = subprocess.run(
        command, capture_output=True, check=False, env=os.environ | {"LC_ALL": "C"}
    )
    if b"Numerical argument out of domain" not in done.stderr:
        return f"strace cannot inject faults here: {done.stderr.decode().strip()}"
    return None

"""A real ``rlog serve`` in a process of its own, for tests that want the whole thing.

    with ServerProcess(tmp_path / "data") as server:
        rlog_client.connect(server.url)

It listens at a port that was free, and is ended by its pid.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final, Self

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

RLOG: Final = str(Path(sys.executable).with_name("rlog"))
SMALL_JOURNAL: Final = ("--journal-file-size", "1MiB")
START_SECONDS: Final = 120.0  # only to find out that it hangs
STOP_SECONDS: Final = 30.0
_SERVING: Final = re.compile(r"serving .* at (rlog\S*?)(?:,| after)")


def environment(**changes: str) -> dict[str, str]:
    """That of this process, without what would change the command's mind."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith("RLOG_") and k != "NO_COLOR"}
    return kept | changes


class NotStarted(Exception):
    """The server ended before it served; the text is its log."""

    def __init__(self, returncode: int, log: str) -> None:
        super().__init__(f"exit {returncode}: {log}")
        self.returncode = returncode


class ServerProcess:
    """``url``: where it listens. ``pid``: for a test that kills it.

    ``under``: a command that becomes the one behind it, such as ``prlimit --as=...``.
    """

    def __init__(
        self,
        data_dir: Path,
        *flags: str,
        listen: str = "127.0.0.1:0",
        env: Mapping[str, str] | None = None,
        under: Sequence[str] = (),
    ) -> None:
        self.data_dir = data_dir
        self._log = data_dir.with_name(f"{data_dir.name}.log")
        command = [*under, RLOG, "serve", "--data-dir", str(data_dir), "--listen", listen, *flags]
        if "--journal-file-size" not in flags:
            command += SMALL_JOURNAL
        with self._log.open("ab") as log:
            self._log_begin = log.tell()
            self._process = subprocess.Popen(command, stderr=log, env=env or environment())
        try:
            self.url = self._wait_for_url()
        except BaseException:
            self.kill()
            raise

    @property
    def pid(self) -> int:
        return self._process.pid

    def log(self) -> str:
        """What this process said."""
        return self._log.read_bytes()[self._log_begin :].decode()

    def _wait_for_url(self) -> str:
        deadline = time.monotonic() + START_SECONDS
        while (found := _SERVING.search(self.log())) is None:
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise NotStarted(self._process.poll() or 0, self.log())
            time.sleep(0.01)
        return found[1]

    def stop(self) -> int:
        """As an operator does: its exit code."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
        return self._process.wait(STOP_SECONDS)

    def kill(self) -> None:
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait(STOP_SECONDS)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.kill()

"""The server, in the guest: the real ``rlog serve``, in a child of the first process.

It is forked before there is any thread, and not started anew: to load it again takes Python a
second here, and hundreds of servers are killed.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
import traceback
from typing import TYPE_CHECKING, Final

import rlog.cli
import rlog.cli.serve
import rlog.server
import rlog_client
from tests.storage.mutants import planted

from .mutants import BY_NAME

if TYPE_CHECKING:
    from .plan import Plan

DISK: Final = "/run/disk"
URL: Final = "rlog+unix:///run/rlog.sock"
START_SECONDS: Final = 60.0  # only to find out that it hangs


class NotServing(Exception):
    """The server ended before it served: its exit code."""


class Server:
    """One data directory's, started again and again. What it logs goes to the console."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._pid = 0

    def start(self) -> None:
        """Until it serves. Raises NotServing."""
        self._pid = os.fork()
        if self._pid == 0:
            self._serve()
        deadline = time.monotonic() + START_SECONDS
        while True:
            try:
                rlog_client.connect(URL, timeout=0.1).close()
            except rlog_client.RlogError:
                ended, status = os.waitpid(self._pid, os.WNOHANG)
                if ended:
                    raise NotServing(os.waitstatus_to_exitcode(status)) from None
                if time.monotonic() > deadline:
                    raise
            else:
                return

    def _serve(self) -> None:
        options = ["--journal-file-size", self._plan.journal_file_size]
        try:
            with contextlib.ExitStack() as stack:
                for name in self._plan.mutants:
                    stack.enter_context(planted(BY_NAME[name]))
                os._exit(
                    rlog.cli.main(
                        ["serve", "--data-dir", f"{DISK}/data", "--listen", URL, *options]
                    )
                )
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(1)

    def kill(self) -> None:
        os.kill(self._pid, signal.SIGKILL)
        os.waitpid(self._pid, 0)

"""Promise 24: of many servers that start on one directory at once, one gets it."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
from typing import TYPE_CHECKING, Final

import pytest

import rlog_client as rlog
from tests.e2e.serving import eventually
from tests.server_process import RLOG, environment

from .work import Ledger, Work

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.server_process import ServerProcess

LOCKED: Final = 6  # the exit code
RACE_SECONDS: Final = 600.0  # only to find out that it hangs


@pytest.mark.patience(900)
def test_of_racing_starts_one_serves_and_the_others_say_who_has_it_and_touch_nothing(
    start_server: Callable[..., ServerProcess],
    data_dir: Path,
    long: bool,
    record_property: Callable[[str, object], None],
) -> None:
    ledger = Ledger()
    server = start_server(data_dir)
    work = Work(server.url, ledger, 0)
    work.begin()
    work.go_on(200)
    assert work.end() == []
    server.kill()  # so that there is something to recover, which no two may do
    count = 100 if long else 4
    listen = [f"unix:{data_dir.with_name(f'{n}.sock')}" for n in range(count)]
    said = [data_dir.with_name(f"{n}.log") for n in range(count)]
    with contextlib.ExitStack() as stack:
        racers = [
            stack.enter_context(_racer(data_dir, where, path))
            for where, path in zip(listen, said, strict=True)
        ]
        try:
            eventually(
                lambda: sum(racer.poll() is None for racer in racers) == 1, "one left", RACE_SECONDS
            )
            [winner] = [n for n, racer in enumerate(racers) if racer.poll() is None]
            eventually(lambda: "serving" in said[winner].read_text(), "it serves")
            for n, racer in enumerate(racers):
                if n != winner:
                    text = said[n].read_text()
                    assert racer.returncode == LOCKED, text
                    # (Who has only just got it may not have written down its number yet.)
                    assert re.search(r"is in use by process (\d+|\?)", text), text
                    assert "Traceback" not in text
            with rlog.connect(f"rlog+{listen[winner].replace(':', '://')}") as client:
                assert ledger.check(client) == []
        finally:
            for racer in racers:
                racer.kill()
    record_property("racing starts", count)


def _racer(data_dir: Path, listen: str, said: Path) -> subprocess.Popen[bytes]:
    with said.open("wb") as log:
        return subprocess.Popen(
            [RLOG, "serve", "--data-dir", os.fspath(data_dir), "--listen", listen],
            stderr=log,
            env=environment(),
        )

"""A member in a process of its own, which some records kill.

    python -m tests.e2e.member URL LOG '{"poison": [3], "in_flight": 1, ...}'

Handles what there is, and writes each offset with its attempt to stdout before it dies or goes on.
``shared``: as one of many. ``to``: a log to append the handled ones to.
``death``: "exit", "kill", or "return": leave ``process`` at the poison by Stop, then vanish.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from typing import Any

import rlog_client as rlog

from .serving import eventually


def die(how: str) -> None:
    if how == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    os._exit(7)


def alone(log: rlog.Log, consumer: str) -> None:
    """Until the server has seen that whoever died is gone."""

    def nobody() -> bool:
        try:
            return not log.cursor(consumer).info().members
        except rlog.NotFound:
            return True

    eventually(nobody, "it is released")


def main() -> None:
    url, name, options = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
    log = rlog.connect(url, name="member").log(name)
    if not options.get("shared", False):
        alone(log, "c")
    consumer = log.consumer("c", block=False, shared=options.get("shared", False))

    def handler(record: rlog.Record) -> rlog.Verdict:
        print(record.offset, record.attempt, flush=True)
        if record.offset in options["poison"]:
            if options["death"] == "return":
                return rlog.STOP
            die(options["death"])
        if "to" in options:
            return rlog.Commit(appends=[(options["to"], record.value)])
        return rlog.COMMIT

    retry = rlog.Backoff(first=0.01, max_attempts=options["max_attempts"])
    consumer.process(handler, in_flight=options["in_flight"], retry=retry)
    if options["death"] == "return":
        die("kill")
    consumer.close()


def run(url: str, log: str, **options: Any) -> tuple[int, list[tuple[int, int]]]:
    """-> exit code, and the (offset, attempt) of every call."""
    command = [sys.executable, "-m", "tests.e2e.member", url, log, json.dumps(options)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert "Traceback" not in done.stderr, done.stderr
    calls = [(int(o), int(a)) for o, a in (line.split() for line in done.stdout.splitlines())]
    return done.returncode, calls


if __name__ == "__main__":
    main()

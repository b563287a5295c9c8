"""Shared consumers on the command line: several ``rlog process`` at once, and who has what."""

from __future__ import annotations

import json
import re
import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable
    from pathlib import Path

    from tests.cli.conftest import Rlog


def described(rlog: Rlog, log: str) -> dict[str, Any]:
    told: dict[str, Any] = json.loads(rlog.ok("consumers", "describe", log, "work", "-o", "json"))
    return told


def work(rlog: Rlog, log: str, script: str, *flags: str) -> subprocess.Popen[bytes]:
    return rlog.start("process", log, "work", "--shared", *flags, "--", "sh", "-c", script)


def wait_for(condition: Callable[[], object], seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "never"
        time.sleep(0.02)


def test_several_workers_share_a_queue_in_order_per_key(
    rlog: Rlog, log: str, tmp_path: Path
) -> None:
    rows = [{"value": str(n), "key": f"k{n % 3}"} for n in range(30)]
    rlog.ok("append", log, "--jsonl", input="\n".join(map(json.dumps, rows)).encode())
    script = f'read n; echo "$RLOG_KEY $n" >> {tmp_path}/done'
    workers = [work(rlog, log, script) for _ in range(3)]
    try:
        wait_for(lambda: json.loads(rlog.ok("consumers", "ls", log, "-o", "json")))
        wait_for(lambda: described(rlog, log)["committed"] == 30)
    finally:
        for worker in workers:
            worker.terminate()
            worker.communicate(timeout=20)
            assert worker.returncode == 0
    done = [line.split() for line in (tmp_path / "done").read_text().splitlines()]
    assert sorted(int(n) for _, n in done) == list(range(30))
    for key in ("k0", "k1", "k2"):
        mine = [int(n) for k, n in done if k == key]
        assert mine == sorted(mine)


def test_who_has_what_is_shown_and_one_is_evicted(rlog: Rlog, log: str) -> None:
    rlog.ok("append", log, input=b"a\nb\n")
    workers = [work(rlog, log, "echo begun; read x; exec sleep 60") for _ in range(2)]
    try:
        for worker in workers:
            assert worker.stdout is not None
            assert worker.stdout.readline() == b"begun\n"
        told = described(rlog, log)
        assert sorted(each["in_hand"] for each in told["members"]) == [0, 1]
        assert {each["name"].split(":")[-1] for each in told["members"]} == {
            str(worker.pid) for worker in workers
        }
        assert told["held_back"] is None
        table = rlog.ok("consumers", "describe", log, "work").decode()
        assert re.search(r"^members +2$", table, re.MULTILINE)
        assert len(re.findall(r"\d s ago +[01] +\d+\.\d s ago$", table, re.MULTILINE)) == 2
        [listed] = json.loads(rlog.ok("consumers", "ls", log, "-o", "json"))
        assert len(listed["members"]) == 2
        refused = rlog("consumers", "seek", log, "work", "--to", "start")
        assert refused.returncode == 6
        name = f"{told['members'][0]['name']}"
        rlog.ok("consumers", "evict", log, "work", "--member", name)
        assert [each["name"] for each in described(rlog, log)["members"]] == [
            told["members"][1]["name"]
        ]
        rlog.ok("consumers", "seek", log, "work", "--to", "end", "--force")
        assert described(rlog, log)["members"] == []
        rlog.ok("consumers", "rm", log, "work", "--yes")
    finally:
        for worker in workers:
            worker.terminate()
            worker.terminate()
            time.sleep(0.1)
            worker.terminate()
            worker.communicate(timeout=20)


def test_what_a_worker_parks_is_redriven(rlog: Rlog, log: str) -> None:
    rlog.ok("append", log, input=b"a\nb\n")
    script = "read x; [ $x = a ] && [ $RLOG_REDRIVEN = 0 ] && exit 65; exit 0"
    with work(rlog, log, script, "--no-block") as worker:
        _, said = worker.communicate(timeout=20)
    assert (worker.returncode, said) == (0, b"2 records completed, 1 of them parked\n")
    [parked] = json.loads(rlog.ok("consumers", "parked", log, "work", "-o", "json"))
    assert parked["offset"] == 0
    assert rlog.ok("consumers", "redrive", log, "work", "--all") == b"1\n"
    with work(rlog, log, script, "--no-block") as worker:
        _, said = worker.communicate(timeout=20)
    assert (worker.returncode, said) == (0, b"1 record completed\n")


def test_what_makes_no_sense_for_one_of_many_is_a_usage_error(rlog: Rlog, log: str) -> None:
    for flag in ("--standby", "--takeover"):
        done = rlog("process", log, "work", "--shared", flag, "--", "true")
        assert done.returncode == 2
        assert b"--shared" in done.stderr

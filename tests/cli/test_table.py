"""What the command line shows of logs that are compacted, and writes of their records."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING

import rlog_client
from rlog.cli import main

if TYPE_CHECKING:
    from pathlib import Path

    import pytest

    from tests.server_process import ServerProcess

    from .conftest import Rlog

COUNT = 400


def compacted(rlog: Rlog, log: str) -> list[int]:
    """A log of which the first offsets are absent; -> those that are there."""
    made = rlog.ok(
        "logs", "create", log, "--key-index", "--compact", "--file-roll-size", "4096", "-o", "json"
    )
    assert json.loads(made)["compact"] is True
    with rlog_client.connect(rlog.url) as client:
        keyed = client.log(log)
        for number in range(COUNT):
            keyed.append(b"%06d" % number + bytes(300), key=b"%d" % (number % 5))
        deadline = time.monotonic() + 30
        while json.loads(rlog.ok("logs", "describe", log, "-o", "json"))["absent"] < COUNT - 50:
            assert time.monotonic() < deadline, "it is never compacted"
            time.sleep(0.02)
        keyed.alter(compact=False)
        before, absent = -1, 0
        while before != absent:  # what is under way is brought to its end
            time.sleep(0.3)
            found = json.loads(rlog.ok("logs", "describe", log, "-o", "json"))
            before, absent = absent, found["absent"]
        return [record.offset for record in keyed.reader(rlog_client.OLDEST, block=False)]


def test_records_that_are_left_are_written_and_the_rest_is_passed(rlog: Rlog, log: str) -> None:
    there = compacted(rlog, log)
    assert 5 <= len(there) < 60
    lines = rlog.ok("cat", log).splitlines()
    assert [int(line[:6]) for line in lines] == there
    rows = [json.loads(line) for line in rlog.ok("cat", log, "-o", "jsonl").splitlines()]
    assert [row["offset"] for row in rows] == there
    middle = there[len(there) // 2]
    part = rlog.ok("cat", log, "--from", "10", "--to", str(middle)).splitlines()
    assert [int(line[:6]) for line in part] == [o for o in there if 10 <= o < middle]
    assert rlog.ok("cat", log, "--from", "3", "--to", "4") == b""
    tail = rlog.ok("tail", log, "--from", "0").splitlines()
    assert [int(line[:6]) for line in tail] == there
    tail = rlog.ok("tail", log, "-n", "100").splitlines()
    assert [int(line[:6]) for line in tail] == [o for o in there if o >= COUNT - 100]
    assert rlog.ok("tail", log, "-c", "c").count(b"\n") == len(there)
    listed = json.loads(rlog.ok("consumers", "describe", log, "c", "-o", "json"))
    assert listed["lag_records"] == 0


def test_what_is_absent_is_shown(rlog: Rlog, log: str) -> None:
    there = compacted(rlog, log)
    found = json.loads(rlog.ok("inspect", log, "--segments", "--batches", "-o", "json"))
    first = found["segments"][0]
    assert first["generation"] >= 1
    assert first["file"].endswith(f".{first['generation']}.seg")
    gone = [each for each in found["batches"] if each["absent"] == "absent"]
    assert gone[0]["first"] == 0
    left = COUNT - sum(each["end"] - each["first"] for each in gone)
    assert left == len(there)
    records = json.loads(rlog.ok("inspect", log, "--records", "-o", "json"))["records"]
    assert [each["offset"] for each in records] == there


def test_a_directory_with_compacted_segments_is_sound(
    rlog: Rlog, log: str, server: ServerProcess, capfd: pytest.CaptureFixture[str]
) -> None:
    there = compacted(rlog, log)
    directory: Path = server.data_dir
    found = json.loads(rlog.ok("inspect", str(directory), "--log", log, "--records", "-o", "json"))
    assert [each["offset"] for each in found["records"]] == there
    segments = json.loads(
        rlog.ok("inspect", str(directory), "--log", log, "--segments", "-o", "json")
    )["segments"]
    assert segments[0]["absent"] > 0
    file = directory / segments[0]["file"]
    batches = json.loads(rlog.ok("inspect", str(file), "--batches", "-o", "json"))["batches"]
    assert batches[0]["absent"] == "absent"
    assert not any(each["damage"] for each in batches)


def test_compact_needs_an_index_of_keys(rlog: Rlog, log: str) -> None:
    done = rlog("logs", "create", log, "--compact")
    assert done.returncode == 2
    assert b"key_index" in done.stderr
    assert main(["logs", "create", log, "--key-index", "--addr", rlog.url]) == 0
    altered = json.loads(rlog.ok("logs", "alter", log, "--compact", "-o", "json"))
    assert altered["compact"] is True
    altered = json.loads(rlog.ok("logs", "alter", log, "--no-compact", "-o", "json"))
    assert altered["compact"] is False

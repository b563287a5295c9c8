"""A queue in a shell script: ``rlog process``, and what ``consumers`` shows and mends of it."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from rlog.cli.process import KEY_BYTES_MAX, failed

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable, Iterator

    from tests.cli.conftest import Done, Rlog

RLOG_DIR = str(Path(sys.executable).parent)
FAST = ("--retry-first", "10ms", "--retry-cap", "10ms")


def run(rlog: Rlog, log: str, script: str, *flags: str, env: dict[str, str] | None = None) -> Done:
    """``script`` for each record there is, as the consumer ``work``."""
    path = {"PATH": f"{RLOG_DIR}:{os.environ['PATH']}"}
    return rlog(
        "process", log, "work", "--no-block", *flags, "--", "sh", "-c", script,
        env=path | (env or {}),
    )  # fmt: skip


def described(rlog: Rlog, log: str, id: str = "work") -> dict[str, Any]:
    told: dict[str, Any] = json.loads(rlog.ok("consumers", "describe", log, id, "-o", "json"))
    return told


def parked(rlog: Rlog, log: str) -> list[dict[str, Any]]:
    told: list[dict[str, Any]] = json.loads(
        rlog.ok("consumers", "parked", log, "work", "-o", "json")
    )
    return told


def wait_for(condition: Callable[[], object], seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


# --- verdicts -------------------------------------------------------------------------------


def test_a_queue_in_a_shell_script(rlog: Rlog, log: str, tmp_path: Path) -> None:
    for job in (b"a\n", b"wait\nbad\n", b"b\n"):
        rlog.ok("append", log, input=job)
    script = f"""
        read job
        case $job in
            bad) [ $RLOG_REDRIVEN = 1 ] || exit 65 ;;
            wait) [ $RLOG_ATTEMPT -gt 1 ] || exit 75 ;;
        esac
        echo "$RLOG_OFFSET $job $RLOG_ATTEMPT $RLOG_REDRIVEN" >> {tmp_path}/done
    """
    done = run(rlog, log, script)
    assert done.returncode == 0, done.stderr
    assert done.stderr == b"4 records completed, 1 of them parked\n"
    assert (tmp_path / "done").read_text() == "0 a 1 0\n1 wait 2 0\n3 b 1 0\n"
    told = described(rlog, log)
    assert (told["committed"], told["lag_records"], told["parked"]) == (4, 0, 1)

    (bad,) = parked(rlog, log)
    assert (bad["offset"], bad["value"], bad["reason"]) == (2, "bad", "sh exited with 65")
    assert abs(bad["parked_ns"] / 1e9 - time.time()) < 60
    title, line = rlog.ok("consumers", "parked", log, "work").decode().splitlines()
    assert title.split() == ["OFFSET", "ATTEMPTS", "PARKED", "REASON", "ERROR"]
    assert re.match(r" +2 +\d+  20\d\d-\S+Z  sh exited with 65", line)

    assert rlog.ok("consumers", "redrive", log, "work", "2") == b"1\n"
    done = run(rlog, log, script)
    assert (done.returncode, done.stderr) == (0, b"1 record completed\n")
    assert (tmp_path / "done").read_text().splitlines()[-1] == "2 bad 1 1"
    assert parked(rlog, log) == []
    assert run(rlog, log, script, "--fail-empty").returncode == 8


def test_a_failure_leaves_the_record_and_counts_an_attempt(rlog: Rlog, log: str) -> None:
    rlog.ok("append", log, input=b"good\nbad\nrest\n")
    script = 'read job; [ "$job" = good ] || [ $RLOG_ATTEMPT = 3 ] || exit 3'
    done = run(rlog, log, script)
    assert done.returncode == 1
    said = done.stderr.decode()
    assert said == f"1 record completed\nrlog: sh exited with 3 at offset 1 of log {log}\n"
    assert described(rlog, log)["committed"] == 1
    assert described(rlog, log)["holder"] is None
    done = run(rlog, log, "read job; kill -9 $$")
    assert done.returncode == 1
    assert b"sh was killed by SIGKILL at offset 1" in done.stderr
    done = run(rlog, log, script, "-n", "1")
    assert (done.returncode, done.stderr) == (0, b"1 record completed\n")
    assert described(rlog, log)["committed"] == 2


def test_with_a_policy_failures_are_tried_again_and_exhausted_ones_parked(
    rlog: Rlog, log: str
) -> None:
    rlog.ok("append", log, input=b"bad\ngood\nbad\n")
    script = 'read job; [ "$job" = good ] || exit 3'
    done = run(rlog, log, script, "--max-attempts", "2", *FAST)
    assert done.returncode == 0, done.stderr
    assert [each["attempts"] for each in parked(rlog, log)] == [2, 2]
    assert all("sh exited with 3" in each["error"] for each in parked(rlog, log))
    assert rlog.ok("consumers", "redrive", log, "work", "--all") == b"2\n"
    done = run(rlog, log, script, "--max-attempts", "1", "--on-exhausted", "skip")
    assert (done.returncode, parked(rlog, log)) == (0, [])


def test_what_is_exhausted_can_end_it(rlog: Rlog, log: str) -> None:
    rlog.ok("append", log, input=b"bad\n")
    done = run(rlog, log, "exit 3", "--max-attempts", "2", "--on-exhausted", "raise", *FAST)
    assert done.returncode == 1
    assert b"sh exited with 3 at offset 0" in done.stderr
    assert described(rlog, log)["committed"] == 0


def test_many_that_fail_alike_pause_the_consumer(rlog: Rlog, log: str) -> None:
    rlog.ok("append", log, input=b"1\n2\n3\n4\n")
    policy = ("--max-attempts", "1", "--pause-after", "2")
    done = run(rlog, log, "exit $(cat)", *policy)
    assert done.returncode == 0, done.stderr  # four ways to fail
    rlog.ok("append", log, input=b"1\n1\n1\n")
    done = run(rlog, log, "exit $(cat)", *policy)
    assert done.returncode == 6, done.stderr
    assert "2 records in a row were exhausted by sh.Exit1" in described(rlog, log)["paused"]
    assert run(rlog, log, "true", *policy).returncode == 6
    rlog.ok("consumers", "resume", log, "work")
    assert described(rlog, log)["paused"] is None
    assert run(rlog, log, "true", *policy).returncode == 0
    assert described(rlog, log)["lag_records"] == 0


# --- what a command is given ----------------------------------------------------------------


def test_the_environment_and_the_streams_are_the_commands(
    rlog: Rlog, log: str, tmp_path: Path
) -> None:
    value = bytes(range(256)) * 4000
    rlog.ok("append", log, "--whole", "-k", "schl\u00fcssel", _write(tmp_path / "in", value))
    done = run(rlog, log, "env >&2; cat")
    assert done.returncode == 0
    assert done.stdout == value
    told = dict(line.split(b"=", 1) for line in done.stderr.splitlines() if b"=" in line)
    (line,) = rlog.ok("cat", log, "-o", "jsonl").splitlines()
    assert told[b"RLOG_KEY"] == "schl\u00fcssel".encode()
    assert told[b"RLOG_LOG"] == log.encode()
    assert int(told[b"RLOG_TIMESTAMP_NS"]) == json.loads(line)["timestamp_ns"]
    assert [told[b"RLOG_" + n] for n in (b"OFFSET", b"ATTEMPT", b"EPOCH", b"REDRIVEN")] == [
        b"0", b"1", b"1", b"0",
    ]  # fmt: skip


def test_a_key_that_no_variable_holds_is_left_out(rlog: Rlog, log: str) -> None:
    rlog.ok("append", log, "--jsonl", input=b'{"value":"","key":"a\\u0000b"}\n')
    rlog.ok("append", log, "--jsonl", input=b'{"value":"","key_b64":"/w=="}\n')
    long = b'{"value":"","key":"%s"}\n' % (b"x" * (KEY_BYTES_MAX + 1))
    rlog.ok("append", log, "--jsonl", input=long)
    rlog.ok("append", log, input=b"none\n")
    rlog.ok("append", log, "--jsonl", input=b'{"value":"","key":""}\n')
    done = run(rlog, log, 'echo "${RLOG_KEY-none}"', env={"RLOG_KEY": "outer"})
    assert (done.returncode, done.stdout) == (0, b"none\n" * 4 + b"\n")


def test_it_ends_with_its_command_whether_that_reads_or_not(rlog: Rlog, log: str) -> None:
    rlog.ok("append", log, "--whole", input=b"x" * 900_000)
    assert run(rlog, log, "sleep 60 >&- 2>&- & exit 0").returncode == 0


def test_an_append_inside_goes_to_the_same_server_and_keeps_the_key(rlog: Rlog, log: str) -> None:
    rlog.ok("append", log, "-K", ":", input=b"k1:a\nk2:b\n")
    out = f"{log}-out"
    done = rlog(
        "-a", rlog.url, "process", log, "work", "--no-block", "--",
        "sh", "-c", f"rlog append {out} >&2 && rlog append -K = {out} && rlog cat -o jsonl {out} | "
        f"rlog append --jsonl {out}-2",
        env={"RLOG_ADDR": "rlog://127.0.0.1:1", "PATH": f"{RLOG_DIR}:{os.environ['PATH']}"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert rlog.ok("cat", out, "--format", "%k %v;") == b"k1 a;k2 b;"


def test_the_logs_own_consumer_and_where_a_new_one_starts(rlog: Rlog, log: str) -> None:
    rlog.ok("append", log, input=b"a\nb\nc\n")
    told = rlog.ok("process", log, "@global", "--start", "-2", "--no-block", "--", "cat", "-n")
    assert told.split() == [b"1", b"b", b"1", b"c"]
    assert described(rlog, log, "@global")["committed"] == 3


# --- usage ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("process", "t", "me", "true"), "behind --"),
        (("process", "t", "me", "--"), "CMD"),
        (("process", "t", "me", "--retry-first", "90s", "--", "true"), "--retry-first"),
        (("process", "t", "me", "--on-exhausted", "weep", "--", "true"), "weep"),
        (("consumers", "redrive", "t", "me"), "--all"),
        (("consumers", "redrive", "t", "me", "1", "--all"), "--all"),
        (("consumers", "redrive", "t", "me", "-1"), "-1"),
    ],
)
def test_2_usage(rlog: Rlog, arguments: tuple[str, ...], words: str) -> None:
    done = rlog(*arguments)
    assert (done.returncode, done.stdout) == (2, b"")
    assert words in done.stderr.decode()


def test_126_and_127_a_command_that_cannot_be_run_claims_nothing(
    rlog: Rlog, log: str, tmp_path: Path
) -> None:
    rlog.ok("append", log, input=b"a\n")
    done = rlog("process", log, "work", "--", "no-such-command")
    assert (done.returncode, done.stderr) == (
        127, b"rlog: no-such-command: No such file or directory\n",
    )  # fmt: skip
    file = _write(tmp_path / "file", b"neither a script nor a program")
    assert rlog("process", log, "work", "--", file).returncode == 126
    assert rlog("consumers", "describe", log, "work").returncode == 3
    # It may also be found out late: that is no attempt of the record's.
    Path(file).chmod(0o755)
    done = rlog("process", log, "work", "--", file)
    assert (done.returncode, b"Exec format error" in done.stderr) == (126, True)
    assert run(rlog, log, "exit $RLOG_ATTEMPT").returncode == 1
    assert run(rlog, log, "[ $RLOG_ATTEMPT = 2 ]").returncode == 0


def test_3_and_8_of_what_is_not_there(rlog: Rlog, log: str) -> None:
    assert rlog("process", log, "work", "--", "true").returncode == 3
    rlog.ok("logs", "create", log)
    for verb in ("parked", "evict", "resume"):
        assert rlog("consumers", verb, log, "work").returncode == 3
    assert rlog("consumers", "redrive", log, "work", "--all").returncode == 3
    run(rlog, log, "true")
    assert rlog("consumers", "evict", log, "work").returncode == 3  # held by nobody
    assert rlog("consumers", "parked", log, "work", "--fail-empty").returncode == 8
    done = rlog("consumers", "redrive", log, "work", "0", "7", "--fail-empty")
    assert (done.returncode, done.stdout) == (8, b"0\n")
    assert done.stderr.startswith(b"2 of them were not parked")


# --- holding --------------------------------------------------------------------------------


@contextlib.contextmanager
def start(rlog: Rlog, log: str, script: str, *flags: str) -> Iterator[subprocess.Popen[bytes]]:
    with rlog.start("process", log, "work", *flags, "--", "sh", "-c", script) as worker:
        try:
            yield worker
        finally:
            # Until it is gone, and with it what it runs.
            while worker.poll() is None:
                worker.terminate()
                time.sleep(0.05)


def line_of(process: subprocess.Popen[bytes]) -> bytes:
    assert process.stdout is not None
    return process.stdout.readline()


def test_a_blocking_worker_takes_records_as_they_come(rlog: Rlog, log: str) -> None:
    rlog.ok("logs", "create", log)
    with start(rlog, log, "cat; echo", "-q") as worker:
        for job in (b"one\n", b"two\n"):
            rlog.ok("append", log, input=job)
            assert line_of(worker) == job
        wait_for(lambda: described(rlog, log)["committed"] == 2)
        worker.terminate()
        assert worker.wait(10) == 0
        assert worker.stderr is not None
        assert worker.stderr.read() == b""
    assert described(rlog, log)["holder"] is None


def test_what_is_in_hand_is_shown_and_can_be_taken_away(rlog: Rlog, log: str) -> None:
    rlog.ok("append", log, input=b"a\n")
    with start(rlog, log, "echo begun; read x; sleep 60") as worker:
        assert line_of(worker) == b"begun\n"
        told = described(rlog, log)
        assert told["holder"].endswith(f":{worker.pid}")
        assert told["in_hand"] == 0
        assert abs(told["in_hand_since_ns"] / 1e9 - time.time()) < 60
        table = rlog.ok("consumers", "describe", log, "work").decode()
        assert re.search(r"^in hand +0$", table, re.MULTILINE)
        assert re.search(r"^in hand since +20\S+Z \(\d+\.\d s ago\)$", table, re.MULTILINE)
        assert re.search(r"\d s ago +0 +\d\.\d s ago", rlog.ok("consumers", "ls", log).decode())

        assert rlog("process", log, "work", "--", "true").returncode == 6
        assert rlog("consumers", "evict", log, "work", "--member", "nobody").returncode == 3
        rlog.ok("consumers", "evict", log, "work", "--member", told["holder"])
        assert described(rlog, log)["holder"] is None


def test_a_standby_goes_on_where_the_holder_stopped(rlog: Rlog, log: str) -> None:
    rlog.ok("append", log, input=b"a\n")
    with start(rlog, log, "cat; echo begun") as holder:
        assert line_of(holder) == b"abegun\n"
        with start(rlog, log, "cat; echo", "--standby", "-n", "1") as standby:
            time.sleep(0.3)
            holder.terminate()
            assert holder.wait(10) == 0
            rlog.ok("append", log, input=b"b\n")
            assert line_of(standby) == b"b\n"
            assert standby.wait(10) == 0


def test_taking_over_fences_the_holder(rlog: Rlog, log: str) -> None:
    rlog.ok("append", log, input=b"a\n")
    with start(rlog, log, "echo begun; sleep 1") as holder:
        assert line_of(holder) == b"begun\n"
        assert run(rlog, log, "true", "--takeover").returncode == 0
        assert holder.wait(10) == 6


def test_too_long_in_hand_ends_the_claim(rlog: Rlog, log: str) -> None:
    rlog.ok("append", log, input=b"a\n")
    done = run(rlog, log, "sleep 1", "--hand-seconds", "200ms")
    assert done.returncode == 6, done.stderr
    assert run(rlog, log, "[ $RLOG_ATTEMPT = 2 ]").returncode == 0


# --- being told to stop ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, 0), (signal.SIGINT, 130), (signal.SIGHUP, 0)]
)
def test_a_signal_lets_the_command_finish(
    rlog: Rlog, log: str, number: signal.Signals, code: int
) -> None:
    rlog.ok("append", log, input=b"a\nb\n")
    with start(rlog, log, "echo begun; sleep 0.5; echo finished") as worker:
        assert line_of(worker) == b"begun\n"
        worker.send_signal(number)
        assert line_of(worker) == b"finished\n"
        assert worker.wait(10) == code
        assert worker.stderr is not None
        said = worker.stderr.read()
        assert b"finishing offset 0" in said
        assert b"1 record completed" in said
        assert b"Traceback" not in said
    assert described(rlog, log)["committed"] == 1
    assert described(rlog, log)["holder"] is None


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
def test_a_second_signal_ends_the_command_and_all_it_started(
    rlog: Rlog, log: str, number: signal.Signals, code: int
) -> None:
    rlog.ok("append", log, input=b"a\n")
    with start(rlog, log, "sleep 60 & echo $!; wait; echo never") as worker:
        inner = int(line_of(worker))
        worker.send_signal(number)
        time.sleep(0.1)
        assert worker.poll() is None
        worker.send_signal(number)
        assert worker.wait(10) == code
        wait_for(lambda: not _runs(inner))
        assert line_of(worker) == b""
    assert described(rlog, log)["committed"] == 0
    assert run(rlog, log, "[ $RLOG_ATTEMPT = 1 ]").returncode == 0  # not the record's fault


def test_a_third_one_kills_what_ignores_it(rlog: Rlog, log: str) -> None:
    rlog.ok("append", log, input=b"a\n")
    with start(rlog, log, "trap '' TERM; echo begun; while :; do sleep 0.05; done") as worker:
        assert line_of(worker) == b"begun\n"
        for _ in range(3):
            assert worker.poll() is None
            worker.terminate()
            time.sleep(0.2)
        assert worker.wait(10) == 0
    assert run(rlog, log, "[ $RLOG_ATTEMPT = 1 ]").returncode == 0


def test_a_command_that_ends_by_the_same_signal_has_not_failed(rlog: Rlog, log: str) -> None:
    # A service manager sends it to every process there is.
    rlog.ok("append", log, input=b"a\n")
    with start(rlog, log, "echo $$; sleep 60 & wait") as worker:
        inner = int(line_of(worker))
        worker.terminate()
        time.sleep(0.1)
        os.kill(inner, signal.SIGTERM)
        assert worker.wait(10) == 0
    assert run(rlog, log, "[ $RLOG_ATTEMPT = 1 ]").returncode == 0


def test_a_worker_that_waits_ends_at_once(rlog: Rlog, log: str) -> None:
    rlog.ok("append", log, input=b"a\n")
    with start(rlog, log, "cat; echo") as worker:
        assert line_of(worker) == b"a\n"
        wait_for(lambda: described(rlog, log)["committed"] == 1)
        with start(rlog, log, "true", "--standby") as standby:
            wait_for(lambda: _is_connected(standby.pid))
            time.sleep(0.1)
            standby.send_signal(signal.SIGINT)
            assert standby.wait(5) == 130
        worker.send_signal(signal.SIGINT)
        assert worker.wait(5) == 130


def test_a_pause_before_the_next_attempt_ends_at_once(rlog: Rlog, log: str) -> None:
    rlog.ok("append", log, input=b"a\n")
    with start(rlog, log, "echo begun; exit 75", "--retry-first", "30s") as worker:
        assert line_of(worker) == b"begun\n"
        time.sleep(0.2)
        worker.terminate()
        assert worker.wait(5) == 0
    assert described(rlog, log)["committed"] == 0


# --- parts ----------------------------------------------------------------------------------


def test_each_way_to_fail_is_a_class_of_its_own() -> None:
    assert type(failed("sh", 3)) is type(failed("sh", 3))
    assert type(failed("sh", 3)) is not type(failed("sh", 4))
    assert repr(type(failed("/bin/sh", -11))) == "<class 'sh.KilledBySIGSEGV'>"
    assert str(failed("sh", -64)) == "sh was killed by SIGRTMAX"
    assert str(failed("/bin/sh", -40)) == "sh was killed by SIG40"


def test_what_is_parked_can_be_appended_elsewhere(rlog: Rlog, log: str) -> None:
    rlog.ok("append", log, "-k", "key", "-H", "a=b", input=b"\xff\n")
    assert run(rlog, log, "exit 65").returncode == 0
    lines = rlog.ok("consumers", "parked", log, "work", "-o", "jsonl")
    rlog.ok("append", f"{log}-dead", "--jsonl", input=lines)
    assert rlog.ok("cat", f"{log}-dead", "--format", "%k %h %v") == b'key {"a":"b"} \xff'


def test_producers_are_listed(rlog: Rlog, log: str) -> None:
    rlog.ok("append", log, input=b"a\n")
    assert rlog.ok("producers", "ls", log) == b""
    assert rlog("producers", "ls", log, "--fail-empty").returncode == 8
    import rlog_client

    with rlog_client.connect(rlog.url, name="me") as client:
        target = client.log(log)
        with target.producer(name="ingest") as producer:
            producer.extend([b"1", b"2"])
        with target.producer(exclusive=True) as owner:
            owner.send(b"x").result()
            told = json.loads(rlog.ok("producers", "ls", log, "-o", "json"))
            by_name = {each["name"]: each for each in told}
            assert by_name["ingest"]["last_sequence"] == 1
            assert by_name["ingest"]["owner"] is None
            assert [each["owner"] for each in told if each["owner"]] == ["me"]
            assert " s ago" in rlog.ok("producers", "ls", log).decode()


def _write(path: Path, data: bytes) -> str:
    path.write_bytes(data)
    return str(path)


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    # One that has ended and that nobody waits for is still there.
    return b") Z " not in Path(f"/proc/{pid}/stat").read_bytes()


def _is_connected(pid: int) -> bool:
    with contextlib.suppress(FileNotFoundError):
        return any("socket:" in os.readlink(each) for each in Path(f"/proc/{pid}/fd").iterdir())
    return False

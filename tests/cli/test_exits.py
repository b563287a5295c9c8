"""Every exit code, and what is said with it: data on stdout, talk on stderr, no traceback."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import click
import pytest

from rlog.cli import exit_of, root
from rlog.cli.exits import Exit
from rlog.files import Locked
from rlog.journal import Refused
from rlog_client import errors
from tests.server_process import RLOG, NotStarted, environment

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.cli.conftest import Done, Rlog
    from tests.server_process import ServerProcess


def refused(done: Done, code: int, *words: str) -> str:
    said = done.stderr.decode()
    assert done.returncode == code, said
    assert "Traceback" not in said
    for word in words:
        assert word in said
    return said


def test_1_stdout_that_takes_nothing(rlog: Rlog, log: str) -> None:
    rlog.ok("append", log, input=b"a\n")
    env = environment(RLOG_ADDR=rlog.url)
    # Closed, it must not become the socket's number.
    for where, words in ((">/dev/full", b"No space"), (">&-", b"Bad file descriptor")):
        done = subprocess.run(
            ["sh", "-c", f"exec {RLOG} cat {log} {where}"],
            capture_output=True, env=env, timeout=30, check=False,
        )  # fmt: skip
        assert done.returncode == 1
        assert words in done.stderr
        assert b"Traceback" not in done.stderr


def test_every_error_has_its_code() -> None:
    expected = {
        errors.RlogError: 1, errors.ConnectionLost: 4, errors.TimedOut: 4, errors.NotFound: 3,
        errors.AlreadyExists: 6, errors.OffsetOutOfRange: 3, errors.Gap: 3, errors.Conflict: 6,
        errors.Busy: 6, errors.Fenced: 6, errors.Paused: 6, errors.TooLarge: 1,
        errors.InvalidRequest: 2, errors.Unsupported: 1, errors.AccessDenied: 1,
        errors.CorruptData: 5, errors.StorageFailed: 1, errors.DiskFull: 1, errors.Overloaded: 1,
        errors.OutcomeUnknown: 4,
    }  # fmt: skip
    assert expected == {kind: exit_of(kind("x")) for kind in errors.BY_CODE.values()}
    assert exit_of(Locked("x")) is Exit.CONFLICT
    assert exit_of(Refused("x")) is Exit.CORRUPT
    assert exit_of(FileNotFoundError("x")) is Exit.NOT_FOUND
    assert exit_of(PermissionError("x")) is Exit.ERROR
    assert exit_of(ZeroDivisionError()) is None


def test_1_a_directory_is_no_input(rlog: Rlog, log: str, tmp_path: Path) -> None:
    refused(rlog("append", log, str(tmp_path)), 1, "Is a directory")


@pytest.mark.parametrize(
    "arguments",
    [
        ("nonsense",),
        ("cat",),
        ("cat", "t", "--bad"),
        ("cat", "t", "--raw", "-o", "jsonl"),
        ("append", "BAD NAME"),
        ("-a", "http://x", "ping"),
        ("--timeout", "0", "ping"),
        ("append", "t", "--jsonl", "-k", "x"),
        ("append", "t", "--whole", "-0"),
        ("append", "t", "-k", "x", "-K", ":"),
        ("append", "t", "-H", "x"),
        ("append", "t", "--batch-bytes", "lots"),
        ("tail", "t", "-g", "("),
        ("logs", "create", "t", "--sync", "sometimes"),
        ("logs", "alter", "t"),
        ("tail", "t", "-n"),
        ("cat", "t", "--from"),
        ("--timeout",),
        ("append", "t", "--rate", "-1"),
        ("append", "t", "--rate", "often"),
        ("inspect", "t", "--log", "x"),
        *(("ping", "-n", "2", "--interval", text) for text in ("-1", "nan", "inf", "soon")),
        ("serve",),
        ("serve", "--data-dir", "x", "--listen", "nowhere"),
        ("serve", "--data-dir", "x", "--journal-file-size", "1000"),
    ],
)
def test_2_usage(rlog: Rlog, arguments: tuple[str, ...]) -> None:
    done = rlog(*arguments)
    assert done.stdout == b""
    refused(done, 2, "rlog:")


def test_2_a_whence_is_refused_with_its_mark(rlog: Rlog, log: str) -> None:
    said = refused(rlog("cat", log, "--from", "@2026-01-01T00:00:00"), 2, "--from", "zone")
    text, mark = said.splitlines()[1:3]
    assert text.rstrip() == "  @2026-01-01T00:00:00"
    assert mark == " " * len(text) + "^"
    said = refused(rlog("tail", log, "--format", "%o %q"), 2, "--format")
    assert said.splitlines()[2].index("^") == said.splitlines()[1].index("q")


def test_2_destruction_asks_for_yes_off_a_terminal(rlog: Rlog, log: str) -> None:
    rlog.ok("append", log, input=b"a\n")
    rlog.ok("tail", "-c", "me", log)
    for arguments in (
        ("logs", "rm", log),
        ("logs", "trim", log, "--before", "end"),
        ("consumers", "rm", log, "me"),
    ):
        refused(rlog(*arguments), 2, "--yes")
    assert rlog.ok("cat", log) == b"a\n"
    rlog.ok("consumers", "rm", log, "me", "--yes")
    assert rlog.ok("-o", "json", "consumers", "ls", log) == b"[]\n"
    rlog.ok("logs", "rm", log, "--yes")
    refused(rlog("cat", log), 3)


def test_3_not_found_and_out_of_range(rlog: Rlog, log: str, tmp_path: Path) -> None:
    for arguments in (
        ("cat", "no-such-log"),
        ("tail", "no-such-log"),
        ("append", "no-such-log", "--no-create"),
        ("logs", "describe", "no-such-log"),
        ("inspect", "no-such-log"),
        ("append", log, str(tmp_path / "missing")),
        ("inspect", str(tmp_path / "missing")),
        ("verify", str(tmp_path / "missing")),
        ("verify", str(tmp_path)),
    ):
        refused(rlog(*arguments), 3)
    rlog.ok("append", log, input=b"a\n")
    refused(rlog("cat", log, "--from", "7"), 3, "0 to 1")
    refused(rlog("cat", log, "--from", "consumer:nobody"), 3, "nobody")
    refused(rlog("consumers", "describe", log, "nobody"), 3, "nobody")


def test_4_unreachable(rlog: Rlog, tmp_path: Path) -> None:
    refused(rlog("-a", f"rlog+unix://{tmp_path}/none", "ping"), 4, "none")
    refused(rlog("ping", "--addr", "rlog://127.0.0.1:1"), 4, "127.0.0.1:1")


def test_6_exists_busy_and_locked(
    rlog: Rlog, log: str, server: ServerProcess, start_server: Callable[..., ServerProcess]
) -> None:
    rlog.ok("logs", "create", log, "--sync", "never")
    rlog.ok("logs", "create", log, "--sync", "never")
    refused(rlog("logs", "create", log, "--sync", "always"), 6)
    rlog.ok("append", log, input=b"a\n")
    with rlog.start("tail", "-f", "-c", "me", log) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"a\n"
        refused(rlog("tail", "-c", "me", log), 6, "held by")
        refused(rlog("consumers", "seek", log, "me", "--to", "start"), 6, "held by")
        listed = json.loads(rlog.ok("consumers", "ls", log, "-o", "json"))
        assert listed[0]["holder"].endswith(f":{holder.pid}")
        rlog.ok("consumers", "seek", log, "me", "--to", "start", "--force")
        assert holder.wait(10) == 6  # fenced
    refused(rlog("verify", str(server.data_dir)), 6, f"process {server.pid}")
    with pytest.raises(NotStarted) as caught:
        start_server(server.data_dir)
    assert caught.value.returncode == 6


def test_6_an_address_in_use(server: ServerProcess, rlog: Rlog, tmp_path: Path) -> None:
    address = server.url.removeprefix("rlog://")
    rival = ("serve", "--data-dir", str(tmp_path / "rival"), "--listen")
    refused(rlog(*rival, address), 6, f"{address} is in use by another process")


def test_6_a_socket_takes_the_place_of_nothing_else(rlog: Rlog, tmp_path: Path) -> None:
    serve = ("serve", "--data-dir", str(tmp_path / "data"), "--listen")
    file, link, gram = tmp_path / "file", tmp_path / "link", tmp_path / "gram"
    file.write_text("precious")
    link.symlink_to(file)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as other:
        other.bind(str(gram))
        for path in (file, link, tmp_path):
            refused(rlog(*serve, f"unix:{path}"), 6, f"{path} is there, and is no socket")
        refused(rlog(*serve, f"unix:{gram}"), 1, f"{gram}: ")
        assert gram.is_socket()
    assert link.is_symlink()
    assert file.read_text() == "precious"
    link.unlink()
    link.symlink_to(tmp_path / "none")
    refused(rlog(*serve, f"unix:{link}"), 6, f"{link} is in use")
    refused(rlog(*serve, f"unix:{tmp_path}/none/socket"), 3, f"{tmp_path}/none/socket: No such")
    refused(rlog(*serve, f"unix:{tmp_path}/{'x' * 200}"), 1, "too long")


def test_3_a_consumer_is_told_how_to_go_on_behind_a_gap(rlog: Rlog, log: str) -> None:
    rlog.ok("logs", "create", log, "--file-roll-size", "64KiB")
    value = b"x" * 40_000 + b"\n"
    rlog.ok("append", log, input=value)
    rlog.ok("tail", log, "-c", "me 2", "-n", "0")
    for _ in range(5):
        rlog.ok("append", log, input=value)
    rlog.ok("logs", "trim", log, "--before", "3", "--yes")
    first = json.loads(rlog.ok("logs", "describe", log, "-o", "json"))["first"]
    assert first > 0
    told = f"rlog consumers seek --to {first} {log} 'me 2'"
    refused(rlog("process", "--no-block", log, "me 2", "--", "true"), 3, "removed", told)
    refused(rlog("tail", log, "-c", "me 2"), 3, "removed", told)
    rlog.ok("consumers", "seek", log, "me 2", "--to", str(first))
    rlog.ok("process", "--no-block", log, "me 2", "--", "true")


def test_7_a_line_that_is_too_large_leaves_those_before_it(
    rlog: Rlog, log: str, tmp_path: Path
) -> None:
    file = tmp_path / "in"
    file.write_bytes(b"one\ntwo\n" + b"x" * (2 << 20) + b"\nfour\n")
    done = rlog("append", log, str(file))
    refused(done, 7, f"{file}: line 3", "2097152 bytes", "limit is 1048576", "2 records")
    assert done.stdout == b"0 1\n"
    assert rlog.ok("cat", log) == b"one\ntwo\n"
    # Nothing before it: nothing is done partly.
    file.write_bytes(b"x" * (2 << 20))
    done = rlog("append", log, str(file))
    refused(done, 1, "line 1")
    assert done.stdout == b""
    done = rlog("append", log, "--rate", "1000", "-K", ":", input=b"k:a\n" + b"x" * (2 << 20))
    refused(done, 7, "stdin: line 2")
    done = rlog("append", log, "--jsonl", input=b'{"value":"a"}\n{"value":"b"}\n\nbad\n')
    refused(done, 7, "stdin: line 4", "2 records")


def test_7_or_4_when_the_server_dies(
    rlog: Rlog, tmp_path: Path, start_server: Callable[..., ServerProcess]
) -> None:
    server = start_server(tmp_path / "data")
    with rlog.start("-a", server.url, "append", "t") as append:
        assert append.stdin is not None
        append.stdin.write(b"a\n")
        append.stdin.flush()
        while not rlog("cat", "-a", server.url, "t").stdout:
            time.sleep(0.01)
        server.kill()
        said = append.communicate(b"b\n" * 10, timeout=20)
        assert append.returncode == 7, said
        assert said[0] == b"0 0\n"
        assert b"1 records before it are in the log; of up to 10 more it is not known" in said[1]


def test_8_nothing_with_fail_empty(rlog: Rlog, log: str) -> None:
    assert rlog("append", log, "--fail-empty").returncode == 8
    rlog.ok("append", log)
    for arguments in (
        ("cat", log),
        ("tail", log),
        ("tail", log, "-g", "x"),
        ("consumers", "ls", log),
    ):
        assert rlog(*arguments).returncode == 0
        assert rlog(*arguments, "--fail-empty").returncode == 8
    rlog.ok("append", log, input=b"a\n")
    assert rlog("cat", log, "--fail-empty").returncode == 0
    assert rlog("tail", log, "-g", "x", "--fail-empty").returncode == 8


def test_130_appending_tells_what_is_in(rlog: Rlog, log: str) -> None:
    rlog.ok("logs", "create", log)
    with rlog.start("append", log) as append:
        assert append.stdin is not None
        append.stdin.write(b"a\nunfinished")
        append.stdin.flush()
        while not rlog.ok("cat", log):
            time.sleep(0.01)
        append.send_signal(signal.SIGINT)
        assert append.wait(10) == 130
        assert append.stdout is not None
        assert append.stdout.read() == b"0 0\n"
        assert append.stderr is not None
        assert b"Traceback" not in append.stderr.read()


# --- the server's own -----------------------------------------------------------------------


def test_a_server_stops_cleanly_and_says_where_it_listens(
    tmp_path: Path, start_server: Callable[..., ServerProcess]
) -> None:
    path = tmp_path / "s"
    server = start_server(
        tmp_path / "data", "--log-format", "json", listen=f"unix:{path}",
        env=environment(RLOG_LISTEN="127.0.0.1:1", RLOG_SYNC="never"),
    )  # fmt: skip
    assert server.url == f"rlog+unix://{path}"
    assert server.stop() == 0
    lines = [json.loads(line) for line in server.log().splitlines()]
    assert [line["level"] for line in lines] == ["info"] * len(lines)
    assert "sync never" in lines[0]["message"]
    assert lines[0].keys() == {"time", "level", "logger", "message"}


def test_a_server_refuses_what_it_cannot_serve(tmp_path: Path) -> None:
    def serve(*arguments: str) -> Done:
        return subprocess.run(
            [RLOG, "serve", "--listen", f"unix:{tmp_path}/s", *arguments],
            capture_output=True, env=environment(), timeout=30, check=False,
        )  # fmt: skip

    strange = tmp_path / "strange"
    strange.mkdir()
    (strange / "letter").write_text("dear")
    refused(serve("--data-dir", str(strange)), 5, "letter")
    (tmp_path / "file").write_text("")
    refused(serve("--data-dir", str(tmp_path / "file")), 1)


# --- flags ----------------------------------------------------------------------------------


def test_flags_come_from_the_environment_and_stand_anywhere(rlog: Rlog, log: str) -> None:
    rlog.ok("append", log, input=b"a\nb\n")
    told = rlog("cat", log, env={"RLOG_OUTPUT": "jsonl", "RLOG_FROM": "1"}).stdout
    assert json.loads(told)["value"] == "b"
    told = rlog("-o", "table", "cat", "-o", "jsonl", log, env={"RLOG_OUTPUT": "json"}).stdout
    assert len(told.splitlines()) == 2
    assert (
        rlog("logs", "-a", rlog.url, "ls", env={"RLOG_ADDR": "rlog://127.0.0.1:1"}).returncode == 0
    )
    assert rlog("-a", rlog.url, "ping", env={"RLOG_ADDR": "rlog://127.0.0.1:1"}).returncode == 0
    assert rlog("append", log, "-q", input=b"c\n").stderr == b""


def test_every_flag_has_its_variable_and_none_twice() -> None:
    def check(command: click.Command, path: str) -> None:
        flags = [p for p in command.params if isinstance(p, click.Option)]
        names = [opt for p in flags for opt in p.opts]
        assert len(names) == len(set(names)), path
        for each in flags:
            if each.expose_value and each.name != "help":
                long = next(o for o in each.opts if o.startswith("--"))
                assert each.help, (path, long)
                assert each.envvar == f"RLOG_{long[2:].replace('-', '_').upper()}", (path, long)
        if isinstance(command, click.Group):
            context = click.Context(command)
            for name in command.list_commands(context):
                below = command.get_command(context, name)
                assert below is not None
                assert below.help, (path, name)
                check(below, f"{path} {name}")

    check(root, "rlog")


def test_color_is_for_terminals_and_those_who_ask(rlog: Rlog) -> None:
    assert b"\x1b" not in rlog.ok("logs", "ls")
    assert b"\x1b[1m" in rlog.ok("logs", "ls", "--color", "always")
    assert b"\x1b" in rlog("cat", "no-such-log", "--color", "always").stderr
    assert b"\x1b" not in rlog("cat", "no-such-log", "--color", "never").stderr


def test_on_a_terminal_destruction_asks(rlog: Rlog, log: str) -> None:
    rlog.ok("logs", "create", log)
    for answer, code in ((b"n\n", 130), (b"y\n", 0)):
        ours, theirs = os.openpty()
        os.write(ours, answer)
        done = subprocess.run(
            [RLOG, "logs", "rm", log], stdin=theirs, stderr=theirs, stdout=subprocess.PIPE,
            env=environment(RLOG_ADDR=rlog.url), timeout=30, check=False,
        )  # fmt: skip
        os.close(theirs)
        os.close(ours)
        assert done.returncode == code
        assert done.stdout == b""


# --- the small verbs ------------------------------------------------------------------------


def test_ping_version_and_completion(rlog: Rlog) -> None:
    assert rlog.ok("ping").endswith(b" ms\n")
    assert json.loads(rlog.ok("ping", "-o", "json"))["seconds"] > 0
    assert rlog.ok("version") == rlog("--version").stdout
    assert json.loads(rlog.ok("version", "-o", "json"))["protocol"] == 1
    assert b"_RLOG_COMPLETE" in rlog.ok("completion", "zsh")
    told = rlog(
        "", env={"_RLOG_COMPLETE": "bash_complete", "COMP_WORDS": "rlog co", "COMP_CWORD": "1"}
    )
    assert told.stdout == b"plain,consumers\nplain,completion\n"
    assert rlog("--help").returncode == 0


def test_logs_are_made_changed_trimmed_and_listed(rlog: Rlog, log: str) -> None:
    rlog.ok("logs", "create", log, "--file-roll-size", "4KiB", "--sync", "bytes:1MiB")
    for _ in range(3):
        rlog.ok("append", log, input=b"x" * 3000 + b"\n")
    described = json.loads(rlog.ok("logs", "describe", log, "-o", "json"))
    assert described["sync"] == "bytes:1MiB"
    assert (described["first"], described["end"]) == (0, 3)
    altered = json.loads(rlog.ok("logs", "alter", log, "--sync", "always", "-o", "json"))
    assert (altered["sync"], altered["file_roll_size"]) == ("always", 4096)
    assert rlog.ok("logs", "trim", log, "--before", "2", "--yes") == b"2\n"
    assert log in rlog.ok("logs", "ls").decode()
    assert rlog.ok("consumers", "ls", log) == b""


def test_what_a_log_is_to_keep_is_said_in_human_units_and_taken_back_by_none(
    rlog: Rlog, log: str
) -> None:
    flags = ("--max-total-bytes", "10GiB", "--max-file-age", "7d", "--key-index")
    rlog.ok("logs", "create", log, *flags, "--protected", "billing", "--protected", "@global")
    described = json.loads(rlog.ok("logs", "describe", log, "-o", "json"))
    assert (described["max_total_bytes"], described["max_file_age"]) == (10 << 30, 7 * 86400.0)
    assert (described["protected"], described["key_index"]) == (["@global", "billing"], True)
    assert described["retention"] is None
    told = rlog.ok("logs", "describe", log).decode()
    assert "10.0 GiB" in told
    assert "7 d" in told
    assert "@global billing" in told
    # There with these options it is no error, and with others it is.
    rlog.ok("logs", "create", log, "--max-total-bytes", "10GiB", "--protected", "@global",
            "--protected", "billing")  # fmt: skip
    refused(rlog("logs", "create", log, "--max-file-age", "8d"), 6, "max_file_age")
    refused(rlog("logs", "alter", log, "--max-file-age", "soon"), 2, "duration")
    refused(rlog("logs", "alter", log, "--max-total-bytes", "1KiB"), 2, "max_total_bytes")
    nothing = ("--max-total-bytes", "none", "--max-file-age", "none", "--protected", "none")
    altered = json.loads(rlog.ok("logs", "alter", log, *nothing, "-o", "json"))
    assert (altered["max_total_bytes"], altered["max_file_age"]) == (None, None)
    assert altered["protected"] == []


def test_with_dry_run_it_is_said_what_would_go_and_nothing_does(rlog: Rlog, log: str) -> None:
    made = json.loads(rlog.ok("logs", "create", log, "--max-file-age", "1d", "--dry-run",
                              "-o", "json"))  # fmt: skip
    assert (made["id"], made["max_file_age"]) == (0, 86400.0)
    refused(rlog("logs", "describe", log), 3)
    refused(rlog("logs", "create", log, "--max-file-age", "0.1s", "--dry-run"), 2, "max_file_age")
    rlog.ok("logs", "create", log, "--file-roll-size", "4KiB")
    for _ in range(8):
        rlog.ok("append", log, input=b"x" * 3000 + b"\n")
    rlog.ok("process", log, "me", "--limit", "2", "--no-block", "--", "sh", "-c", "exit 65")
    before = rlog.ok("logs", "describe", log, "-o", "json")

    done = rlog("logs", "trim", log, "--before", "5", "--dry-run", "-o", "jsonl")
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert [(row["first"], row["end"]) for row in rows] == [(n, n + 1) for n in range(5)]
    assert sum(row["bytes"] for row in rows) > 15_000
    said = done.stderr.decode()
    assert "5 records would go" in said
    assert "consumer me has not committed 3 of them" in said
    assert "2 parked records would be copied" in said

    done = rlog("logs", "alter", log, "--max-total-bytes", "16KiB", "--dry-run", "-o", "json")
    assert len(json.loads(done.stdout)) == 3
    assert "max_total_bytes would be 16384, not None" in done.stderr.decode()
    done = rlog("logs", "alter", log, "--max-total-bytes", "16KiB", "--protected", "me",
                "--dry-run", "-o", "json")  # fmt: skip
    assert len(json.loads(done.stdout)) == 2
    assert "protected consumer 'me'" in done.stderr.decode()
    done = rlog("logs", "rm", log, "--dry-run", "-o", "json")
    assert len(json.loads(done.stdout)) == 8
    assert "consumers: me" in done.stderr.decode()
    refused(rlog("logs", "trim", log, "--before", "99", "--dry-run"), 3)

    assert rlog.ok("logs", "describe", log, "-o", "json") == before
    assert rlog.ok("logs", "trim", log, "--before", "5", "--yes") == b"5\n"


def test_seek_shows_before_and_after(rlog: Rlog, log: str) -> None:
    rlog.ok("append", log, input=b"a\nb\nc\n")
    rlog.ok("tail", "-c", "me", log)
    told = rlog.ok("consumers", "seek", log, "me", "--to", "-2", "-o", "json")
    assert json.loads(told) == {"before": 3, "after": 1}
    described = json.loads(rlog.ok("consumers", "describe", log, "me", "-o", "json"))
    assert (described["lag_records"], described["committed"]) == (2, 1)
    assert described["lag_seconds"] > 0
    assert rlog.ok("tail", "-c", "me", log) == b"b\nc\n"


def test_reading_loads_no_trio() -> None:
    script = (
        "import sys, rlog.cli.read, rlog.cli.append, rlog.cli.admin, rlog.cli.consumers, "
        "rlog.cli.process, rlog.cli.inspect, rlog.cli.verify, rlog.cli.serve; "
        "sys.exit('trio' in sys.modules)"
    )
    python = sys.executable
    assert subprocess.run([python, "-c", script], timeout=30, check=False).returncode == 0

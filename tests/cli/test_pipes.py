"""What goes in by ``append`` comes out by ``cat`` and ``tail``, byte for byte."""

from __future__ import annotations

import json
import os
import random
import signal
import time
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pathlib import Path

    from tests.cli.conftest import Rlog

NASTY = (
    b"plain\nCRLF\r\n\n\n\0\0\nlone \r inside\n\xff\xfe not UTF-8 \x85\n"
    b"\xe2\x80\xa8 line separator\n\x0b\x0c\x1c\n \t\n"
)


def write(path: Path, data: bytes) -> str:
    path.write_bytes(data)
    return str(path)


@pytest.mark.parametrize(
    "data",
    [NASTY, random.Random(1).randbytes(900_000).replace(b"\n", b"\0") + b"\nafter\n", b"\n", b""],
    ids=["nasty", "long", "newline", "empty"],
)
def test_lines_round_trip(rlog: Rlog, log: str, tmp_path: Path, data: bytes) -> None:
    rlog.ok("append", log, write(tmp_path / "in", data))
    assert rlog.ok("cat", log) == data


def test_an_unfinished_last_line_is_kept_with_keep_newline(rlog: Rlog, log: str) -> None:
    data = NASTY + b"no end"
    assert rlog.ok("append", log, "--keep-newline", input=data) == b"0 10\n"
    assert rlog.ok("cat", "--raw", log) == data


def test_a_whole_file_is_one_record(rlog: Rlog, log: str, tmp_path: Path) -> None:
    first, second = write(tmp_path / "1", NASTY + b"no end"), write(tmp_path / "2", b"")
    assert rlog.ok("append", "--whole", log, first, second) == b"0 1\n"
    assert rlog.ok("cat", "--raw", log, "-n", "1") == NASTY + b"no end"
    assert rlog.ok("cat", log, "--from", "1") == b"\n"


def test_many_batches_come_out_in_order(rlog: Rlog, log: str, tmp_path: Path) -> None:
    lines = [b"%d %s" % (n, b"x" * (n % 300)) for n in range(60_000)]
    data = b"\n".join(lines) + b"\n"
    said = rlog.ok("append", log, write(tmp_path / "in", data), "-o", "json")
    told = json.loads(said)
    assert (told["first"], told["last"], told["records"]) == (0, 59_999, 60_000)
    assert told["level"] == "synced"
    assert rlog.ok("cat", log) == data
    assert rlog.ok("cat", log, "--from", "10001", "--to", "40007") == (
        b"\n".join(lines[10001:40007]) + b"\n"
    )
    offsets = rlog.ok("cat", log, "--format", r"%o\n").split()
    assert offsets == [b"%d" % n for n in range(60_000)]


def test_small_batches_are_joined_with_their_newlines(rlog: Rlog, log: str) -> None:
    rlog.ok("append", log, "--batch-bytes", "100", input=b"".join(b"%d\n" % n for n in range(50)))
    assert rlog.ok("cat", log) == b"".join(b"%d\n" % n for n in range(50))
    assert rlog.ok("cat", "--raw", log) == b"".join(b"%d" % n for n in range(50))


def test_json_lines_round_trip(rlog: Rlog, log: str) -> None:
    source = log + "-source"
    rlog.ok("append", source, "-k", "key", "-H", "a=1", "-H", "b=\udcff", input=NASTY)
    rlog.ok(
        "append", source, "--jsonl", input=b'{"value":"v","event_time_ns":-5,"key_b64":"/w=="}\n'
    )
    lines = rlog.ok("cat", source, "-o", "jsonl")
    rlog.ok("append", "--jsonl", log, input=lines)

    def told(raw: bytes) -> list[dict[str, object]]:
        found = [json.loads(line) for line in raw.splitlines()]
        ignored = ("log", "timestamp_ns")
        return [{k: v for k, v in each.items() if k not in ignored} for each in found]

    again = rlog.ok("cat", log, "-o", "jsonl")
    assert told(again) == told(lines)
    assert told(again)[0] == {
        "offset": 0,
        "key": "key",
        "headers": {"a": "1", "b": {"b64": "/w=="}},
        "value": "plain",
    }
    assert json.loads(rlog.ok("cat", log, "-o", "json")) == [
        json.loads(line) for line in again.splitlines()
    ]
    assert rlog.ok("cat", log, "--to", "0", "-o", "json") == b"[\n]\n"


def test_keys_headers_and_nuls(rlog: Rlog, log: str) -> None:
    rlog.ok("append", log, "-K", r"\t", input=b"k1\tv1\tmore\nno key\n\tempty\n")
    rlog.ok("append", log, "-0", "-H", "n=v=w", input=b"a\nb\0c\0")
    assert rlog.ok("tail", log, "--format", r"%K:%k=%v %h|") == (
        b'2:k1=v1\tmore {}|-1:=no key {}|0:=empty {}|-1:=a\nb {"n":"v=w"}|-1:=c {"n":"v=w"}|'
    )


def test_ranges_are_half_open(rlog: Rlog, log: str) -> None:
    rlog.ok("append", log, input=b"".join(b"%d\n" % n for n in range(10)))
    rlog.ok("tail", log, "-c", "reader", "-n", "4")

    def cat(*flags: str) -> bytes:
        return rlog.ok("cat", log, *flags).replace(b"\n", b"")

    assert cat("--from", "3", "--to", "6") == b"345"
    assert cat("--from=-3") == b"789"
    assert cat("--from", "-3", "--to", "-1") == b"78"
    assert cat("--to", "999") == b"0123456789"
    assert cat("--from", "5", "--to", "5") == b""
    assert cat("--from", "6", "--to", "3") == b""
    assert cat("--from", "end") == b""
    assert cat("--from", "start", "-n", "2") == b"01"
    assert cat("--from", "@-1h") == b"0123456789"
    assert cat("--to", "@-1h") == b""
    assert cat("--from", "consumer:reader") == b"456789"
    assert cat("--to", "consumer:reader") == b"0123"


def test_tail_ends_at_the_end(rlog: Rlog, log: str) -> None:
    rlog.ok("append", log, input=b"".join(b"%d\n" % n for n in range(12)))
    assert rlog.ok("tail", log) == b"".join(b"%d\n" % n for n in range(2, 12))
    assert rlog.ok("tail", log, "-n", "2") == b"10\n11\n"
    assert rlog.ok("tail", log, "-n", "0") == b""
    assert rlog.ok("tail", log, "--from", "start", "-n", "2") == b"0\n1\n"
    assert rlog.ok("tail", log, "--from", "start", "-g", "^1.") == b"10\n11\n"


def test_tail_of_several_logs_names_them(rlog: Rlog, log: str) -> None:
    rlog.ok("append", log, input=b"a\n")
    rlog.ok("append", log + "-2", input=b"b\n")
    assert rlog.ok("tail", log, log + "-2") == (
        f"==> {log} <==\na\n\n==> {log}-2 <==\nb\n".encode()
    )
    assert rlog.ok("tail", "-q", log, log + "-2") == b"a\nb\n"


def test_tail_as_a_consumer_commits_what_was_written(rlog: Rlog, log: str) -> None:
    rlog.ok("append", log, input=b"a\nb\nc\n")
    assert rlog.ok("tail", "-c", "me", log, "-n", "2") == b"a\nb\n"
    assert rlog.ok("tail", "-c", "me", log) == b"c\n"
    assert rlog.ok("tail", "-c", "me", log) == b""
    assert rlog.ok("tail", "-c", "@global", log, "--from", "1") == b"b\nc\n"


@pytest.mark.parametrize("flag", ["-f", "-F", "--follow"])
def test_following_writes_each_record_as_it_comes(rlog: Rlog, log: str, flag: str) -> None:
    rlog.ok("append", log, input=b"before\n")
    with rlog.start("tail", flag, log) as tail:
        assert tail.stdout is not None
        assert tail.stdout.readline() == b"before\n"
        rlog.ok("append", log, input=b"after\nand more\n")
        assert tail.stdout.readline() == b"after\n"
        assert tail.stdout.readline() == b"and more\n"
        tail.send_signal(signal.SIGINT)
        assert tail.wait(10) == 130
        assert tail.stderr is not None
        assert b"Traceback" not in tail.stderr.read()


def test_following_several_logs(rlog: Rlog, log: str) -> None:
    other = log + "-2"
    rlog.ok("logs", "create", log)
    rlog.ok("logs", "create", other)
    with rlog.start("tail", "-f", "-q", log, other) as tail:
        assert tail.stdout is not None
        for name, line in ((other, b"1\n"), (log, b"2\n"), (other, b"3\n")):
            rlog.ok("append", name, input=line)
            assert tail.stdout.readline() == line
        tail.send_signal(signal.SIGINT)
        assert tail.wait(10) == 130


def test_a_pipe_that_is_slow_is_appended_as_it_comes(rlog: Rlog, log: str) -> None:
    rlog.ok("logs", "create", log)
    with rlog.start("append", log) as append, rlog.start("tail", "-f", log) as tail:
        assert append.stdin is not None
        assert tail.stdout is not None
        for line in (b"one\n", b"two\n"):
            append.stdin.write(line)
            append.stdin.flush()
            assert tail.stdout.readline() == line
        append.stdin.close()
        assert append.wait(10) == 0
        tail.send_signal(signal.SIGINT)
        assert tail.wait(10) == 130


def test_a_reader_that_goes_away_ends_it_without_a_word(
    rlog: Rlog, log: str, tmp_path: Path
) -> None:
    rlog.ok("append", log, write(tmp_path / "in", b"x" * 99 + b"\n" + b"line\n" * 400_000))
    for arguments in (("cat", log), ("cat", "-o", "jsonl", log), ("tail", "--from", "0", log)):
        with rlog.start(*arguments) as command:
            assert command.stdout is not None
            os.read(command.stdout.fileno(), 100)
            command.stdout.close()
            assert command.wait(20) == 141
            assert command.stderr is not None
            assert command.stderr.read() == b""


@pytest.mark.parametrize("consumer", [(), ("-c", "me")])
def test_who_waits_for_records_ends_as_well_when_its_reader_goes_away(
    rlog: Rlog, log: str, consumer: tuple[str, ...]
) -> None:
    rlog.ok("append", log, input=b"one\n")
    with rlog.start("tail", "-f", *consumer, log) as command:
        assert command.stdout is not None
        assert command.stdout.readline() == b"one\n"
        command.stdout.close()
        assert command.wait(20) == 141


def test_a_consumer_commits_nothing_that_stdout_did_not_take(
    rlog: Rlog, log: str, tmp_path: Path
) -> None:
    rlog.ok("append", log, write(tmp_path / "in", b"line\n" * 400_000))
    with rlog.start("tail", "-c", "me", log) as command:
        assert command.stdout is not None
        os.read(command.stdout.fileno(), 100)
        command.stdout.close()
        assert command.wait(20) == 141
    described = json.loads(rlog.ok("-o", "json", "consumers", "describe", log, "me"))
    # At most what fits into a pipe, widened to 1 MiB.
    assert described["committed"] <= (1 << 20) // 5
    assert described["holder"] is None


def test_the_rate_is_kept(rlog: Rlog, log: str) -> None:
    began = time.monotonic()
    rlog.ok("append", log, "--rate", "100", input=b"x\n" * 50)
    assert time.monotonic() - began >= 0.4
    assert rlog.ok("cat", log) == b"x\n" * 50

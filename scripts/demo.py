"""The main job for real: append, consume by ID, kill the server half-way, start it again, finish.

    scripts/demo [FILE]

FILE: one record a line, at most its first 64 MiB and first million lines; without it, lines are
generated. Nothing stays behind. Exits with 1 if anything was lost, changed, or handled again after
its commit was acknowledged.
"""

from __future__ import annotations

import hashlib
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Final

import rlog_client as rlog

FILE_BYTES_MAX: Final = 64 << 20
LINES_MAX: Final = 1_000_000
GENERATED: Final = 200_000
IN_FLIGHT: Final = 1000
SECONDS_MAX: Final = 120  # of all of it; then something hangs
RLOG: Final = os.environ.get("DEV_RLOG") or str(Path(sys.executable).with_name("rlog"))
BOLD, GREEN, RED, PLAIN = (
    ("\x1b[1m", "\x1b[32m", "\x1b[31m", "\x1b[0m")
    if sys.stdout.isatty() and not os.environ.get("NO_COLOR")
    else ("", "", "", "")
)


def say(step: str, text: str) -> None:
    print(f"{BOLD}{step:9}{PLAIN}{text}", flush=True)


class Server:
    """``rlog serve`` as a process of its own; it can be started again after its end."""

    def __init__(self, directory: str) -> None:
        with socket.create_server(("127.0.0.1", 0)) as probe:
            listen = f"127.0.0.1:{probe.getsockname()[1]}"
        self.data = f"{directory}/data"
        self.url = f"rlog://{listen}"
        self.command = ["serve", "--data-dir", self.data, "--listen", listen, "--sync", "always"]
        self.log = Path(directory, "server.log")
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> rlog.Client:
        """A client of it, as soon as it answers."""
        say("serve", f"rlog {' '.join(self.command)}")
        began = time.monotonic()
        with self.log.open("ab") as log:
            # In a session of its own: Ctrl-C is ours, and stops it in an orderly way.
            self.process = subprocess.Popen(
                [RLOG, *self.command], stdout=log, stderr=log, start_new_session=True
            )
        while True:
            try:
                client = rlog.connect(self.url)
            except rlog.ConnectionLost:
                if self.process.poll() is not None:
                    sys.exit(f"the server did not start:\n{self.log.read_text()}")
                time.sleep(0.01)
            else:
                say("", f"answers after {time.monotonic() - began:.2f} s")
                return client

    def end(self, number: signal.Signals) -> int:
        """Send the signal, and wait: the exit code."""
        assert self.process is not None
        self.process.send_signal(number)
        return self.process.wait()


class Handler:
    """What a user would write: takes each record, and here notes what it took."""

    def __init__(self, consumer: rlog.Consumer, kill_at: int | None, server: Server) -> None:
        self.consumer = consumer
        self.kill_at = kill_at
        self.server = server
        self.offsets: list[int] = []
        self.hashes: list[bytes] = []
        self.acknowledged = consumer.committed  # the cursor, when last asked for

    def __call__(self, record: rlog.Record) -> None:
        self.hashes.append(hashlib.sha256(record.value).digest())
        self.offsets.append(record.offset)
        if len(self.offsets) == self.kill_at:
            self.acknowledged = self.consumer.committed
            self.server.end(signal.SIGKILL)
            say("SIGKILL", f"in the middle: {len(self.offsets):,} records are handled,")
            say("", f"the cursor at {self.acknowledged:,} is acknowledged")


def lines_of(path: str | None) -> list[bytes]:
    if path is None:
        dice = random.Random(7)
        verbs, paths = ("GET", "GET", "GET", "PUT"), ("/", "/orders", "/orders/%d", "/users/%d")
        lines = []
        for n in range(GENERATED):
            what = dice.choice(paths).replace("%d", str(dice.randrange(10_000)))
            took = dice.expovariate(1 / 20)
            when = f"2024-05-01T{n // 36000 % 24:02}:{n // 600 % 60:02}:{n / 10 % 60:04.1f}Z"
            lines.append(f"{when} web-{n % 7} {dice.choice(verbs)} {what} 200 {took:.1f} ms".encode())
        say("input", f"{GENERATED:,} generated log lines (give it yours: make demo FILE=path)")
        return lines
    try:
        with open(path, "rb") as file:
            data = file.read(FILE_BYTES_MAX)
            whole = not file.read(1)
    except OSError as error:
        sys.exit(f"cannot read {path}: {error.strerror}")
    lines = data.split(b"\n")
    if not lines[-1] or (not whole and len(lines) > 1):
        lines.pop()  # nothing behind the last newline, or half a line
    whole = whole and len(lines) <= LINES_MAX
    lines = lines[:LINES_MAX]
    if not lines:
        sys.exit(f"{path} has no line")
    say("input", f"{path}, {'all' if whole else 'the first'} {len(lines):,} lines")
    return lines


def digest(hashes: list[bytes]) -> str:
    return hashlib.sha256(b"".join(hashes)).hexdigest()[:32]


def speed(lines: list[bytes], count: int, seconds: float) -> str:
    mib = sum(map(len, lines)) * count / len(lines) / 2**20
    return f"{seconds:.2f} s: {count / seconds:,.0f} records/s, {mib / seconds:,.1f} MiB/s"


def demo(server: Server, lines: list[bytes]) -> bool:
    """Whether every check held."""
    client = server.start()

    log = client.log("demo", create=True)
    began = time.monotonic()
    with log.producer() as producer:
        for number, line in enumerate(lines, 1):
            try:
                producer.send(line)
            except rlog.TooLarge as error:
                sys.exit(f"line {number}: {error}")
        end = producer.flush()
    say("append", f"{len(lines):,} records, offsets 0 to {end - 1:,}, each synced when acknowledged")
    say("", speed(lines, len(lines), time.monotonic() - began))

    consumer = log.consumer("demo-consumer", block=False)
    first = Handler(consumer, (len(lines) + 1) // 2, server)
    say("process", f"as consumer demo-consumer, in_flight={IN_FLIGHT}")
    began = time.monotonic()
    try:
        consumer.process(first, in_flight=IN_FLIGHT)
    except rlog.ConnectionLost as error:
        took = time.monotonic() - began
        say("", f"ConnectionLost: {str(error).partition(': ')[2] or error}")
        say("", f"{len(first.offsets):,} records were handled, offsets 0 to {first.offsets[-1]:,}")
        say("", speed(lines, len(first.offsets), took))

    client = server.start()
    consumer = client.log("demo").consumer("demo-consumer", block=False)
    cursor = consumer.committed
    say("process", f"goes on where the commits stood: the cursor is at {cursor:,}")
    second = Handler(consumer, None, server)
    began = time.monotonic()
    consumer.process(second, in_flight=IN_FLIGHT)
    took = time.monotonic() - began
    committed = consumer.committed
    client.close()
    say("", f"{len(second.offsets):,} records, to the end; the cursor is at {committed:,}")
    if second.offsets:
        say("", speed(lines, len(second.offsets), took))

    say("inspect", f"rlog inspect {server.data}")
    shown = subprocess.run(
        [RLOG, "inspect", server.data], capture_output=True, text=True, errors="replace"
    )
    report = (shown.stdout + shown.stderr).splitlines()
    for line in report[:20]:
        say("", line)
    if len(report) > 20:
        say("", f"… {len(report) - 20} more lines")

    code = server.end(signal.SIGTERM)
    say("SIGTERM", f"the server stopped with exit code {code}")

    again = [offset for offset in first.offsets if offset >= cursor]
    sent = digest([hashlib.sha256(line).digest() for line in lines])
    handled = digest(first.hashes[:cursor] + second.hashes)
    checks = [
        (f"the log has all {len(lines):,} records", end == len(lines)),
        (
            "before the kill every offset was handled once, in order, from 0 on",
            first.offsets == list(range(len(first.offsets))),
        ),
        (
            f"after it the same, from the cursor at {cursor:,} to the end: nothing was lost",
            second.offsets == list(range(cursor, len(lines))) and committed == len(lines),
        ),
        (
            f"{len(again):,} records were handled again, at most {IN_FLIGHT:,} (in_flight)",
            len(again) <= IN_FLIGHT,
        ),
        (
            f"none of them below {first.acknowledged:,}: nothing was handled again after its commit",
            cursor >= first.acknowledged,
        ),
        (
            "those that were came with the same content",
            first.hashes[cursor:] == second.hashes[: len(again)],
        ),
        (f"SHA-256 of what went in {sent}", True),
        (f"and of what came out    {handled}", sent == handled),
        ("rlog inspect and the stop succeeded", shown.returncode == 0 and code == 0),
    ]
    for text, held in checks:
        mark = f"{GREEN}ok{PLAIN}      " if held else f"{RED}FAILED{PLAIN}  "
        say("check", mark + text)
    return all(held for _, held in checks)


def hung(*_: object) -> None:
    sys.exit(f"not done within {SECONDS_MAX} s")


def main(arguments: list[str]) -> int:
    if len(arguments) > 1 or arguments[:1] in (["-h"], ["--help"]):
        sys.exit(__doc__)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    signal.signal(signal.SIGALRM, hung)
    signal.alarm(SECONDS_MAX)
    lines = lines_of(arguments[0] if arguments else None)
    with tempfile.TemporaryDirectory(prefix="rlog-demo-") as directory:
        server = Server(directory)
        try:
            held = demo(server, lines)
        except rlog.RlogError as error:
            print(f"{type(error).__name__}: {error}\n{server.log.read_text()}", file=sys.stderr)
            held = False
        finally:
            if server.process is not None and server.process.poll() is None:
                server.end(signal.SIGKILL)
    say("done", f"{directory} is removed")
    return 0 if held else 1


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except KeyboardInterrupt:
        sys.exit(130)

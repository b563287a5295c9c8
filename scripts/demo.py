"""The main job for real: append, consume by ID, kill the server half-way, start it again, finish.

    scripts/demo [FILE]

FILE: one record a line, at most its first 64 MiB and first million lines; without it, lines are
generated. Nothing stays behind. Exits with 1 if anything was lost, changed or handled twice.
"""

from __future__ import annotations

import hashlib
import logging
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

import rlog_client as rlog

if TYPE_CHECKING:
    from collections.abc import Callable

FILE_BYTES_MAX: Final = 64 << 20
LINES_MAX: Final = 1_000_000
INSPECT_LINES: Final = 20
GENERATED: Final = 200_000
IN_FLIGHT: Final = 1000
SECONDS_MAX: Final = 120  # of all of it; then something hangs
RLOG: Final = str(Path(sys.executable).with_name("rlog"))
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
    """What a user would write: takes each record, and notes here what it took."""

    def __init__(self, interrupt: Callable[[], object], interrupt_at: int) -> None:
        self.interrupt, self.interrupt_at = interrupt, interrupt_at
        self.offsets: list[int] = []
        self.hashes: list[bytes] = []

    def __call__(self, record: rlog.Record) -> None:
        self.hashes.append(hashlib.sha256(record.value).digest())
        self.offsets.append(record.offset)
        if len(self.offsets) == self.interrupt_at:
            self.interrupt()


def lines_of(path: str | None) -> list[bytes]:
    if path is None:
        dice = random.Random(7)
        users = [dice.randrange(10_000) for _ in range(GENERATED)]
        say("input", f"{GENERATED:,} generated log lines (or yours: make demo FILE=path)")
        return [b"line %d: GET /users/%d 200" % line for line in enumerate(users)]
    try:
        with open(path, "rb") as file:
            data = file.read(FILE_BYTES_MAX)
            cut = bool(file.read(1))
    except OSError as error:
        sys.exit(f"cannot read {path}: {error.strerror}")
    lines = data.split(b"\n")
    if not lines[-1] or (cut and len(lines) > 1):
        lines.pop()  # nothing behind the last newline, or half a line
    if not lines:
        sys.exit(f"{path} has no line")
    part = "the first" if cut or len(lines) > LINES_MAX else "all"
    lines = lines[:LINES_MAX]
    say("input", f"{path}: {part} {len(lines):,} lines")
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
        for line in lines:
            producer.send(line)
        end = producer.flush()
    say("append", f"offsets 0 to {end - 1:,}, each on the disk before it was acknowledged")
    say("", speed(lines, len(lines), time.monotonic() - began))

    consumer = log.consumer("reports", block=False)
    epoch = consumer.epoch
    acknowledged = 0

    def kill() -> None:
        nonlocal acknowledged
        acknowledged = consumer.committed
        server.end(signal.SIGKILL)
        say("SIGKILL", f"in the middle: {len(handler.offsets):,} records are handled, and the")
        say("", f"cursor is acknowledged at {acknowledged:,}")
        with server.start() as other:
            cursor = other.log("demo").cursor("reports").info().committed
        say("", f"the cursor stands at {cursor:,}; the client comes back, and goes on")

    handler = Handler(kill, (len(lines) + 1) // 2)
    say("process", f"as consumer reports, in_flight={IN_FLIGHT}")
    began = time.monotonic()
    consumer.process(handler, in_flight=IN_FLIGHT)
    took = time.monotonic() - began
    committed, kept = consumer.committed, consumer.epoch == epoch
    client.close()
    say("", f"{len(handler.offsets):,} records handled; the cursor is at the end, {committed:,}")
    say("", speed(lines, len(handler.offsets), took))

    code = server.end(signal.SIGTERM)
    say("SIGTERM", f"the server stopped with exit code {code}")
    say("inspect", f"rlog inspect {server.data}")
    shown = subprocess.run([RLOG, "inspect", server.data], capture_output=True, text=True)
    report = (shown.stdout + shown.stderr).splitlines()
    for text in report[:INSPECT_LINES]:
        say("", text)
    if len(report) > INSPECT_LINES:
        say("", f"… {len(report) - INSPECT_LINES} more lines")

    sent = digest([hashlib.sha256(line).digest() for line in lines])
    handled = digest(handler.hashes)
    checks = {
        f"all {len(lines):,} lines are in the log": end == len(lines),
        "every offset was handled, in order, once": handler.offsets == list(range(end)),
        "the cursor is at the end, and never went back": acknowledged <= committed == end,
        "the claim outlived the kill: its epoch is the same": kept,
        f"SHA-256 of what went in {sent}": True,
        f"and of what came out    {handled}": sent == handled,
        "the stop was clean, and rlog inspect finds no fault": code == shown.returncode == 0,
    }
    for text, held in checks.items():
        say("check", f"{GREEN}ok{PLAIN}      {text}" if held else f"{RED}FAILED{PLAIN}  {text}")
    return all(checks.values())


def main(arguments: list[str]) -> int:
    if len(arguments) > 1 or arguments[:1] in (["-h"], ["--help"]):
        sys.exit(__doc__)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    signal.signal(signal.SIGALRM, lambda *_: sys.exit(f"not done after {SECONDS_MAX} s"))
    signal.alarm(SECONDS_MAX)
    logging.getLogger("rlog_client").setLevel(logging.ERROR)  # of the loss, the demo speaks itself
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

"""What clients do on hosts that vanish, or on hosts that do not.

    python -m tests.net.clients WHAT URL LOG [--id ID] [--small] [--user-timeout MS] [--seconds S]

WHAT is one of DEEDS. Says, a line each: ``port N``, of its connection; ``held EPOCH``, when it has
its claim; ``got OFFSET EPOCH`` for every record; ``told TEXT`` for what the client's logger says;
``error CLASS SECONDS`` when a call failed after so many seconds; ``done ...`` at the end.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import signal
import socket
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

import rlog_client as rlog

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

ID: Final = "c"
REQUEST_SECONDS: Final = 5.0  # the timeout of the clients that ask


class Options(argparse.Namespace):
    what: str
    url: str
    log: str
    id: str
    small: bool
    user_timeout: int | None
    seconds: float


def say(*words: object) -> None:
    print(*words, flush=True)


def tcp_sockets() -> Iterator[socket.socket]:
    """This process's, as duplicates: however the client keeps its own."""
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            found = socket.socket(fileno=os.dup(int(name)))
            with found:
                if found.family == socket.AF_INET:
                    yield found


def port() -> int:
    [only] = [each.getsockname()[1] for each in tcp_sockets()]
    return int(only)


def hold(log: rlog.Log, args: Options) -> None:
    """In a handler that does nothing, until SIGUSR1; then commit what was in hand."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
    with log.consumer(args.id) as consumer:
        record = next(consumer)
        say("held", consumer.epoch)
        signal.sigwait({signal.SIGUSR1})
        timed(lambda: consumer.commit(record))


def consume(log: rlog.Log, args: Options) -> None:
    """Wait for records, and commit each."""
    with log.consumer(args.id) as consumer:
        say("held", consumer.epoch)
        for record in consumer:
            consumer.commit(record)
            say("got", record.offset, record.epoch)


def read(log: rlog.Log, _args: Options) -> None:
    for record in log.reader(rlog.OLDEST):
        say("got", record.offset, record.epoch)


def work(log: rlog.Log, args: Options) -> None:
    """One record, for a long time."""
    with log.consumer(args.id) as consumer:
        say("held", consumer.epoch)

        def handle(record: rlog.Record) -> None:
            say("got", record.offset, record.epoch)
            time.sleep(args.seconds)

        consumer.process(handle, limit=1)
        say("done", "epoch", consumer.epoch, "committed", consumer.committed, "port", port())


def look(log: rlog.Log, args: Options) -> None:
    """Read, and take long over the first record."""
    reader = log.reader(rlog.OLDEST)
    for record in reader:
        say("got", record.offset, record.epoch)
        if record.offset == 0:
            time.sleep(args.seconds)
        if record.offset == 1000:
            break
    say("done", "port", port())


def timed(call: Callable[[], object]) -> None:
    began = time.monotonic()
    try:
        call()
    except Exception as error:
        say("error", type(error).__name__, f"{time.monotonic() - began:.2f}")
        raise


def ask(log: rlog.Log, _args: Options) -> None:
    while True:
        timed(log.info)
        time.sleep(0.05)


def append(log: rlog.Log, _args: Options) -> None:
    while True:
        timed(lambda: log.append(b"x"))
        time.sleep(0.05)


DEEDS: Final = {
    deed.__name__: deed for deed in (hold, consume, read, work, look, ask, append)
}  # fmt: skip


class Teller(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        say("told", record.getMessage())


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("what", choices=DEEDS)
    parser.add_argument("url")
    parser.add_argument("log")
    parser.add_argument("--id", default=ID)
    parser.add_argument("--small", action="store_true", help="little room for what is not read")
    parser.add_argument("--user-timeout", type=int)
    parser.add_argument("--seconds", type=float, default=0.0)
    args = parser.parse_args(namespace=Options())
    logging.getLogger("rlog_client").addHandler(Teller())
    if args.small:
        # This host's alone, as is everything in its network namespace.
        Path("/proc/sys/net/ipv4/tcp_rmem").write_text("4096 16384 16384")
    client = rlog.connect(args.url, timeout=REQUEST_SECONDS, name=args.log)
    if args.user_timeout is not None:
        for each in tcp_sockets():
            each.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, args.user_timeout)
    say("port", port())
    began = time.monotonic()
    try:
        DEEDS[args.what](client.log(args.log), args)
    except rlog.RlogError as error:
        say("ended", type(error).__name__, f"{time.monotonic() - began:.2f}")
        sys.exit(1)


if __name__ == "__main__":
    main()

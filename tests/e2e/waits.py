"""Every way to wait, for a process that is interrupted in it.

    python -m tests.e2e.waits URL LOG WAIT PID

WAIT is one of WAITS; PID is the server's. Says "waiting", and after Ctrl-C "interrupted", provided
that the client can still be used.
"""

from __future__ import annotations

import os
import signal
import sys
from typing import TYPE_CHECKING, Final

import rlog_client as rlog

if TYPE_CHECKING:
    from collections.abc import Callable


def _iterate(log: rlog.Log) -> None:
    for _record in log.reader(rlog.LATEST):
        pass


def _iterate_consumer(log: rlog.Log) -> None:
    for _record in log.consumer("c", start=rlog.LATEST):
        pass


def _next(log: rlog.Log) -> None:
    next(log.reader(rlog.LATEST))


def _poll(log: rlog.Log) -> None:
    log.reader(rlog.LATEST).poll(timeout=None)


def _process(log: rlog.Log) -> None:
    log.reader(rlog.LATEST).process(lambda record: None)


def _process_consumer(log: rlog.Log) -> None:
    log.consumer("c", start=rlog.LATEST).process(lambda record: None)


def _retry(log: rlog.Log) -> None:
    log.append(b"1")
    log.consumer("c").process(lambda record: rlog.Retry(delay=3600.0))


def _handler(log: rlog.Log) -> None:
    log.append(b"1")
    log.consumer("c").process(lambda record: signal.pause())


# The server is stopped in these: nothing is answered.


def _append(log: rlog.Log) -> None:
    log.append(b"1")


def _flush(log: rlog.Log) -> None:
    producer = log.producer()
    producer.send(b"1")
    producer.flush()


def _result(log: rlog.Log) -> None:
    producer = log.producer()
    producer.send(b"1").result()


def _send(log: rlog.Log) -> None:
    producer = log.producer(buffer_bytes=100_000)
    while True:
        producer.send(bytes(1000))


def _info(log: rlog.Log) -> None:
    log.info()


def _synced(log: rlog.Log) -> None:
    log.wait_synced(0)


IDLE: Final[dict[str, Callable[[rlog.Log], None]]] = {
    "iterate": _iterate,
    "iterate a consumer": _iterate_consumer,
    "next": _next,
    "poll": _poll,
    "process": _process,
    "process a consumer": _process_consumer,
    "retry": _retry,
    "handler": _handler,
}
STOPPED: Final[dict[str, Callable[[rlog.Log], None]]] = {
    "append": _append,
    "flush": _flush,
    "result": _result,
    "send": _send,
    "info": _info,
    "wait_synced": _synced,
}


def main() -> None:
    url, name, wait, server = sys.argv[1:]
    client = rlog.connect(url, timeout=None)
    log = client.log(name)
    if wait in STOPPED:
        os.kill(int(server), signal.SIGSTOP)
    print("waiting", flush=True)
    try:
        {**IDLE, **STOPPED}[wait](log)
    except KeyboardInterrupt:
        if wait in STOPPED:
            os.kill(int(server), signal.SIGCONT)
        end = client.log(name).append(b"still of use") + 1
        client.close()
        print("interrupted", end, flush=True)


if __name__ == "__main__":
    main()

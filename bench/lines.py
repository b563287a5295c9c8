"""Log lines: of a file, or made up after the style of real ones, the same every time."""

from __future__ import annotations

import random
import time
from typing import Final

COUNT: Final = 50_000
FILE_BYTES_MAX: Final = 16 << 20  # of a file, what is read
_BEGAN: Final = 1_750_000_000  # seconds since the epoch, of the first line
_PATHS: Final = ("/", "/health", "/login", "/api/v1/orders", "/api/v1/users", "/static/app.js")
_AGENTS: Final = (
    "Mozilla/5.0 (X11; Linux x86_64; rv:128.0) Gecko/20100101 Firefox/128.0",
    "Mozilla/5.0 (Macintosh; Intel Mac OS X 10_15_7) AppleWebKit/537.36 Chrome/126.0 Safari/537.36",
    "curl/8.5.0",
    "kube-probe/1.30",
)
_UNITS: Final = ("sshd", "systemd", "kernel", "cron", "dockerd")
_SAID: Final = (
    "Accepted publickey for deploy from 10.0.{}.{} port {} ssh2",
    "Started session {} of user www-data ({}.{})",
    "eth0: link becomes ready, queue {} of {}, {} packets",
    "pool-{}: connection {} released after {} ms",
)
_LEVELS: Final = ("INFO",) * 8 + ("WARNING", "ERROR")


def read(path: str) -> list[bytes]:
    with open(path, "rb") as file:
        data = file.read(FILE_BYTES_MAX)
    found = [line for line in data.split(b"\n") if line]
    if not found:
        raise SystemExit(f"no lines in {path}")
    return found


def generated() -> list[bytes]:
    """Of a web server's access log, a system's log and a service's, in turns; 40 to 250 bytes."""
    dice = random.Random(7)
    return [_line(dice, _BEGAN + number / 40).encode() for number in range(COUNT)]


def _line(dice: random.Random, now: float) -> str:
    moment = time.gmtime(now)
    number = dice.randrange
    match number(3):
        case 0:
            return (
                f"10.{number(256)}.{number(256)}.{number(256)} - -"
                f" [{time.strftime('%d/%b/%Y:%H:%M:%S +0000', moment)}]"
                f' "GET {dice.choice(_PATHS)}?id={number(100_000)} HTTP/1.1"'
                f' {dice.choice((200, 200, 200, 304, 404, 500))} {number(50_000)} "-"'
                f' "{dice.choice(_AGENTS)}"'
            )
        case 1:
            said = dice.choice(_SAID).format(number(256), number(256), number(65_536))
            day = time.strftime("%b %d %H:%M:%S", moment)
            return f"{day} web-{number(9)} {dice.choice(_UNITS)}[{number(32_768)}]: {said}"
        case _:
            return (
                f"{time.strftime('%Y-%m-%dT%H:%M:%S', moment)}.{number(1000):03}Z"
                f" {dice.choice(_LEVELS)} orders.worker-{number(16)}"
                f" request_id={number(2**64):016x} user={number(10_000)}"
                f" took={number(900)}ms status={dice.choice(('ok', 'ok', 'ok', 'retry'))}"
            )

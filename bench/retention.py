"""What does a server with a thousand logs spend on looking whether anything is to be trimmed?"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Final

import rlog_client as rlog

from .harness import Bench, Case, Server, used, values

if TYPE_CHECKING:
    from collections.abc import Callable

LOGS: Final = 1000
SECONDS: Final = 10.0  # of a measurement: the kernel counts processor time in hundredths
DAY: Final = 86_400.0
# What is set on every log.
KINDS: Final[dict[str, dict[str, Any]]] = {
    "no retention": {"max_total_bytes": None, "max_file_age": None, "protected": []},
    "bounded in size and age, nothing due": {"max_total_bytes": 1 << 30, "max_file_age": 7 * DAY},
    "all of them due, and held back by a consumer": {
        "max_total_bytes": 1 << 14,
        "protected": ["nobody"],
    },
}


def idle(server: Server) -> float:
    """Milliseconds of processor time in a second of an idle server."""
    before, began = used(server.pid), time.monotonic()
    time.sleep(SECONDS)
    return (used(server.pid) - before) * 1e3 / (time.monotonic() - began)


def altered(logs: list[rlog.Log], options: Any, server: Server) -> Callable[[], float]:
    def run() -> float:
        for log in logs:
            log.alter(**options)
        time.sleep(2.0)  # for what is due at once
        return idle(server)

    return run


def main() -> None:
    question = "What does a server with a thousand logs spend on looking for what is to be trimmed?"
    with (
        Bench(question, 3) as bench,
        Server(bench.directory()) as server,
        rlog.connect(server.url, timeout=60) as client,
    ):
        logs = [
            client.log(f"bench-{number}", create=True, sync="never", file_roll_size=4096)
            for number in range(LOGS)
        ]
        column = values(1000, 8)
        for log in logs:
            for _ in range(3):
                log.append_many(column)
        cases = [Case(name, altered(logs, options, server)) for name, options in KINDS.items()]
        bench.run(f"{LOGS} idle logs of 24 records", "ms of processor time in a second", cases)


if __name__ == "__main__":
    main()

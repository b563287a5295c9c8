"""What does a server with a thousand logs spend on looking whether anything is to be trimmed?"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Final

import rlog_client as rlog

from .harness import Bench, case, values
from .machine import used
from .server import Server

if TYPE_CHECKING:
    from collections.abc import Callable

DAY: Final = 86_400.0
# What is set on every log.
KINDS: Final[dict[str, dict[str, Any]]] = {
    "no retention": {"max_total_bytes": None, "max_file_age": None, "protected": []},
    "bounded in size and age, nothing due": {
        "max_total_bytes": 1 << 30,
        "max_file_age": 7 * DAY,
        "protected": [],
    },
    "all of them due, and held back by a consumer": {
        "max_total_bytes": 1 << 14,
        "max_file_age": None,
        "protected": ["nobody"],
    },
}


def idle(server: Server, seconds: float) -> float:
    """Milliseconds of processor time in a second of an idle server."""
    before, began = used(server.pid), time.monotonic()
    time.sleep(seconds)
    return (used(server.pid) - before) * 1e3 / (time.monotonic() - began)


def altered(
    logs: list[rlog.Log], options: Any, server: Server, seconds: float
) -> Callable[[], float]:
    def run() -> float:
        for log in logs:
            log.alter(**options)
        time.sleep(min(2.0, seconds))  # for what is due at once
        return idle(server, seconds)

    return run


def main() -> None:
    question = "What does a server with a thousand logs spend on looking for what is to be trimmed?"
    options = (
        ("logs", 1000, "how many"),
        ("seconds", 10.0, "of a measurement: processor time is counted in hundredths"),
    )
    with (
        Bench(question, 3, *options) as bench,
        Server(bench.directory()) as server,
        rlog.connect(server.url, timeout=60) as client,
    ):
        logs = [
            client.log(f"bench-{number}", create=True, sync="never", file_roll_size=4096)
            for number in range(bench.options.logs)
        ]
        column = values(1000, 8)
        for log in logs:
            for _ in range(3):
                log.append_many(column)
        cases = [
            case(name, altered(logs, settings, server, bench.options.seconds))
            for name, settings in KINDS.items()
        ]
        bench.run(
            f"{len(logs):,} idle logs of 24 records", "ms of processor time in a second", cases
        )


if __name__ == "__main__":
    main()

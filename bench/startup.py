"""How long does a start take, after a clean stop and after SIGKILL?"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import rlog_client as rlog

from .harness import MIB, Bench, Case, Server, values

if TYPE_CHECKING:
    from collections.abc import Callable


def append(server: Server, mib: int) -> None:
    column = values(1024, 8192)
    with (
        rlog.connect(server.url) as client,
        client.log("bench", create=True).producer() as producer,
    ):
        for _ in range(mib // 8):
            producer.extend(column)


def evict(directory: str) -> None:
    """Have the page cache forget the files, so that a start reads them from the disk."""
    for path in Path(directory).rglob("*"):
        if path.is_file():
            fd = os.open(path, os.O_RDONLY)
            try:
                os.fsync(fd)
                os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
            finally:
                os.close(fd)


def main() -> None:
    option = ("gib", 0.25, "size of the log")
    with Bench(
        "How long does a start take, after a clean stop and after SIGKILL?", 5, option
    ) as bench:
        directory = bench.directory()
        mib = int(bench.options.gib * 1024)
        with Server(directory) as server:
            append(server, mib)

        def start(*, killed: bool, cached: bool) -> Callable[[], float]:
            def run() -> float:
                with Server(directory) as server:
                    if killed:
                        append(server, 160)  # so that there is a journal to recover from
                        server.kill()
                if not cached:
                    evict(directory)
                with Server(directory) as server:
                    return server.start_seconds

            return run

        bench.run(
            f"from the start of the process to its first answer, a log of {mib:,} MiB and more,"
            " sync always",
            "seconds",
            [
                Case(
                    "clean stop, files in the page cache",
                    start(killed=False, cached=True),
                    "goal: 1",
                ),
                Case("clean stop, files not cached", start(killed=False, cached=False), "goal: 1"),
                Case(
                    "SIGKILL, files in the page cache", start(killed=True, cached=True), "goal: 5"
                ),
                Case("SIGKILL, files not cached", start(killed=True, cached=False), "goal: 5"),
            ],
        )
        stored = sum(path.stat().st_size for path in Path(directory).rglob("*") if path.is_file())
        bench.note(f"at the end the directory held {stored // MIB:,} MiB")


if __name__ == "__main__":
    main()

"""How fast is the command line, from a file to a log and back?

`rlog append LOG FILE`, `rlog cat LOG > FILE` and `rlog cat LOG | wc -c`, as a user types them: the
start of the command counts. The file holds log lines of many lengths, and is the same in every
run; it is in the page cache, as is the log. Each append goes into a new log, and
is acknowledged when it is synced. Beside them what coreutils need for the same without a server; of
those `dd` alone syncs, and it writes once what a server writes twice, into its journal and into the
log. That what comes back is equal is checked first, and not timed.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import time
from functools import partial

import rlog_client as rlog

from . import lines
from .harness import Bench, Case, Goal, case
from .machine import MIB
from .server import RLOG, Server


def write(path: str, mib: int) -> int:
    """-> the size of the file, at least ``mib``, in whole lines."""
    piece = b"".join(b"%s\n" % line for line in lines.generated())
    with open(path, "wb") as file:
        while file.tell() < mib * MIB:
            file.write(piece)
        os.fsync(file.fileno())
        return file.tell()


def timed(command: str, size: int) -> float:
    """MiB/s of a command line."""
    began = time.perf_counter()
    command = f"set -o pipefail; {command}"
    subprocess.run(["bash", "-c", command], check=True, stdout=subprocess.DEVNULL)
    return size / MIB / (time.perf_counter() - began)


def digest(path: str) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def main() -> None:
    question = "How fast is the command line, from a file to a log and back?"
    option = ("mib", 1024, "of lines")
    with Bench(question, 5, option) as bench, Server(bench.directory()) as server:
        source, back = bench.directory("lines"), bench.directory("back")
        size = write(source, bench.options.mib)
        rlog_ = f"{RLOG} --quiet --addr {server.url}"

        def append(log: str) -> float:
            return timed(f"{rlog_} append {log} {source}", size)

        def append_anew() -> float:
            found = append("anew")
            with rlog.connect(server.url) as client:
                client.log("anew").delete()
            return found

        append("bench")
        timed(f"{rlog_} cat bench > {back}", size)
        if digest(back) != digest(source):
            raise SystemExit("what came back is not what was appended")
        bench.note("what `cat` writes has the SHA-256 of the file that was appended")
        with rlog.connect(server.url) as client:
            count = client.log("bench").info().end

        def row(name: str, command: str, goal: Goal | None = None) -> Case:
            return case(name, partial(timed, command, size), goal)

        bench.run(
            f"{size // MIB:,} MiB in {count:,} lines, sync always, loopback TCP",
            "MiB/s",
            [
                case("rlog append", append_anew, Goal(250)),
                row("rlog cat > file", f"{rlog_} cat bench > {back}", Goal(600)),
                row("rlog cat | wc -c", f"{rlog_} cat bench | wc -c", Goal(300)),
                row(
                    "limit: dd file, synced",
                    f"dd if={source} of={back} bs=1M conv=fsync status=none",
                ),
                row("limit: cat file > file", f"cat {source} > {back}"),
                row("limit: cat file | wc -c", f"cat {source} | wc -c"),
                row("limit: wc -l file", f"wc -l {source}"),
            ],
        )


if __name__ == "__main__":
    main()

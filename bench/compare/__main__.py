"""How does rlog stand beside what a Python program would otherwise use?

The same records go to every system, each started fresh on loopback over a directory of its own:
log lines (of ``--lines FILE``, else made up), and 100 B, 1 KiB and 64 KiB. Systems are compared
within one class of durability only: *synced before acknowledged*, or *synced later*. What each one
calls so, and what its client's fastest documented way is, its module in ``bench/compare/peers``
says.

What makes it fair, as far as it is:

- All run at the same time and take turns, one case of each a round, each round beginning with
  another one; medians of the rounds, and ratios of figures of the same round. Nobody else's work is
  under way in a turn: what a system puts off is synced (``sync(2)``) before the next one's. What
  the servers take while nobody asks them is in the report.
- The headline is the ratio at an *equal batch*: 1,000 records (15 of 64 KiB) for one
  acknowledgement, or, where a client acknowledges each, 1,000 in flight. rlog's row has one
  ``send`` per record and a ``for`` loop; ``extend`` is another row, and in no ratio. Like some
  others, ``send`` has many batches under way before it waits; the column of *one batch* at a time
  has rlog's ``append_many`` in its place, beside those that wait for each as well. A third one
  takes the best way of each.
- Every case is as many records as it does in about ``--seconds``, found by trying.
- One record at a time: closed loops, so more clients wait longer; clients and server share the
  processors. The client counts as much as the server: so the servers that can be are also driven
  by the same raw program, and Redis by its own, in C.

A whole run replaces what is in ``bench/results``, with its tables and its picture; one of some
peers or some shapes, or of fewer rounds, writes only where ``--json FILE`` says, and beside it.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from .. import limits, lines
from ..harness import Bench, values
from ..machine import MIB
from . import report
from .bulk import appends, consumes, size_of
from .field import Field
from .goals import as_rows, of_bulk, of_singles
from .peers import PEERS
from .peers.peer import DURABILITIES, SYNCED
from .singles import pings, servers, singles

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .goals import Judged
    from .rows import Single

WORKS: Final = ("limits", "append", "consume", "single", "server")
SIZES: Final = {"100 B": 100, "1 KiB": 1024, "64 KiB": 65536}
GOALS_OF: Final = "100 B"
LINES: Final = "log lines"
ROUNDS: Final = 5
DISTINCT_BYTES: Final = 32 * MIB  # of all the different records of one shape
LIMIT_COUNT: Final = 200  # of what is timed one by one
OPTIONS: Final[list[tuple[str, Any, str]]] = [
    ("seconds", 0.3, "of one case in bulk, about"),
    ("single-seconds", 2.0, "of one case of single appends"),
    ("mib", 128, "of one case, at most"),
    ("lines", "", "a file of log lines, in place of made-up ones"),
    ("clients", "1,16,128", "that append one record at a time, at once"),
    ("peers", "", f"some of {','.join(PEERS)}"),
    ("work", "", f"some of {','.join(WORKS)}"),
    ("shapes", "", f"some of {','.join((LINES, *SIZES))}"),
]


def chosen(text: str, of: Sequence[str]) -> list[str]:
    names = list(dict.fromkeys(text.split(",") if text else of))
    for name in names:
        if name not in of:
            raise SystemExit(f"{name} is none of {', '.join(of)}")
    return names


def is_whole(options: Any) -> bool:
    """Nothing is left out, or made shorter, so that it may stand for the comparison."""
    defaults = {name.replace("-", "_"): default for name, default, _help in OPTIONS}
    del defaults["lines"]
    return options.rounds >= ROUNDS and all(
        getattr(options, name) == default for name, default in defaults.items()
    )


def compare(bench: Bench) -> None:
    chose = bench.options
    names, works = chosen(chose.peers, tuple(PEERS)), chosen(chose.work, WORKS)
    columns = {LINES: lines.read(chose.lines) if chose.lines else lines.generated()}
    columns |= {
        shape: values(size, min(50_000, DISTINCT_BYTES // size)) for shape, size in SIZES.items()
    }
    shapes = chosen(chose.shapes, tuple(columns))
    kind = f"of {Path(chose.lines).name}" if chose.lines else "made up"
    bench.note(f"log lines {kind}: {size_of(columns[LINES])} bytes on average")
    run = ("rounds", "seconds", "single_seconds")
    bench.report({"run": {name: getattr(chose, name) for name in run}})
    if "limits" in works:
        limits.measure(bench, max(1, chose.mib // 2), LIMIT_COUNT)
    goals: list[Judged] = []
    bulk = {"append": appends, "consume": consumes}
    others = {"single", "server"} & set(works)
    for durability in DURABILITIES:
        if not (bulk.keys() & set(works) or (others and durability == SYNCED)):
            continue
        with Field.started(bench, names, durability) as field:
            for shape in shapes:
                for work, measure in bulk.items():
                    if work in works:
                        rows = measure(field, durability, shape, columns[shape])
                        if (durability, shape) == (SYNCED, GOALS_OF):
                            goals += of_bulk(work, rows)
            if durability == SYNCED:
                found: list[Single] = []
                if "single" in works:
                    found += singles(field, columns[GOALS_OF][0])
                if "server" in works:
                    found += servers(field, columns[GOALS_OF][0])
                    pings(field, columns[GOALS_OF])
                goals += of_singles(found)
    judged = [goal._asdict() for goal in goals]
    for goal in judged:
        bench.report(goal)
    for goal_text, measured, verdict in as_rows(judged):
        print(f"  {verdict}: {goal_text}: {measured}")


def main() -> None:
    question = "How does rlog stand beside what a Python program would otherwise use?"
    with Bench(question, ROUNDS, *OPTIONS) as bench:
        options = bench.options
        ours = not options.json and is_whole(options)
        if ours:  # until it is whole
            options.json = str(report.EARLY)
        compare(bench)
        if ours:
            options.json = str(report.RESULTS)
    if options.json:
        report.write(Path(options.json))


if __name__ == "__main__":
    main()

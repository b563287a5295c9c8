"""How does rlog stand beside what a Python program would otherwise use?

The same records go to every system, each started fresh on loopback over a directory of its own:
log lines (of ``--lines FILE``, else made up), and 100 B, 1 KiB and 64 KiB. Systems are compared
within one class of durability only: *synced before acknowledged*, or *synced later*. What each one
calls so, and what its client's fastest documented way is, its module in ``bench/peers`` says.

What makes it fair, as far as it is:

- All run at the same time and take turns, one case of each a round; medians of the rounds, and
  ratios of figures of the same round. Nobody else's work is under way in a turn: what a system
  puts off is synced (``sync(2)``) between them.
- The headline is the ratio at an *equal batch*: 1,000 records (15 of 64 KiB) for one
  acknowledgement, or, where a client acknowledges each, 1,000 in flight; the second column takes
  the best way of each. rlog's rows are one ``send`` per record and a ``for`` loop; ``extend`` is
  another row, and in no ratio.
- Every case is as many records as it does in about ``--seconds``, found by trying.
- One record at a time: closed loops, so more clients wait longer; clients and server share the
  processors. The client counts as much as the server: so the servers that can be are also driven
  by the same raw program, and Redis by its own, in C.
"""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from . import lines
from .harness import MIB, Bench, values
from .peers import PEERS
from .peers.bulk import appends, consumes, size_of
from .peers.goals import of_bulk, of_singles
from .peers.peer import CLASSES, SYNCED, Missing, Peer
from .peers.requests import pings, servers, singles

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from .peers.goals import Goal

RESULTS: Final = Path(__file__).with_name("results") / "compare.json"
WORKS: Final = ("append", "consume", "single", "server")
SIZES: Final = {"100 B": 100, "1 KiB": 1024, "64 KiB": 65536}
GOALS_OF: Final = "100 B"
LINES: Final = "log lines"
DISTINCT_BYTES: Final = 32 * MIB  # of all the different records of one shape


@contextlib.contextmanager
def started(bench: Bench, names: Sequence[str], kept: str) -> Iterator[list[Peer]]:
    """Those that are installed and can be run under this class of durability."""
    with contextlib.ExitStack() as stack:
        peers = []
        print(f"\n  {kept}:")
        for name in names:
            kind = PEERS[name]
            if kept not in kind.kept:
                continue
            try:
                kind.check()
                directory = Path(bench.directory(f"{name}-{CLASSES.index(kept)}"))
                peer = stack.enter_context(kind(directory, kept))
            except Missing as error:
                bench.note(f"{kind.name} is left out: {error}")
                continue
            bench.note(f"{kind.name}: {kind.kept[kept]}; {peer.client}")
            peers.append(peer)
        yield peers


def chosen(text: str, of: Sequence[str]) -> list[str]:
    names = list(dict.fromkeys(text.split(",") if text else of))
    for name in names:
        if name not in of:
            raise SystemExit(f"{name} is none of {', '.join(of)}")
    return names


def main() -> None:
    options: list[tuple[str, Any, str]] = [
        ("seconds", 0.3, "of one case, about"),
        ("mib", 128, "of one case, at most"),
        ("lines", "", "a file of log lines, in place of made-up ones"),
        ("clients", "1,16,128", "that append one record at a time, at once"),
        ("peers", "", f"some of {','.join(PEERS)}"),
        ("work", "", f"some of {','.join(WORKS)}"),
        ("shapes", "", f"some of {','.join((LINES, *SIZES))}"),
    ]
    question = "How does rlog stand beside what a Python program would otherwise use?"
    with Bench(question, 5, *options) as bench:
        chose = bench.options
        chose.json = chose.json or str(RESULTS)
        names, works = chosen(chose.peers, tuple(PEERS)), chosen(chose.work, WORKS)
        columns = {LINES: lines.read(chose.lines) if chose.lines else lines.generated()}
        columns |= {
            shape: values(size, min(50_000, DISTINCT_BYTES // size))
            for shape, size in SIZES.items()
        }
        shapes = chosen(chose.shapes, tuple(columns))
        kind = f"of {chose.lines}" if chose.lines else "made up"
        bench.note(f"log lines {kind}: {size_of(columns[LINES])} bytes on average")
        bench.report({"run": {"rounds": chose.rounds, "seconds": chose.seconds}})
        goals: list[Goal] = []
        bulk = {"append", "consume"} & set(works)
        for kept in CLASSES if bulk else (SYNCED,):
            with started(bench, names, kept) as peers:
                for shape in shapes:
                    for work, measure in (("append", appends), ("consume", consumes)):
                        if work in works:
                            rows = measure(bench, peers, kept, shape, columns[shape])
                            if (kept, shape) == (SYNCED, GOALS_OF):
                                goals += of_bulk(work, rows)
                if kept == SYNCED:
                    found = []
                    if "single" in works:
                        found += singles(bench, peers, columns[GOALS_OF][0])
                    if "server" in works:
                        found += servers(bench, peers, columns[GOALS_OF][0])
                        pings(bench, peers, columns[GOALS_OF])
                    goals += of_singles(found)
        if goals:
            print("\n  goals")
        for goal in goals:
            bench.report(goal._asdict())
            print(f"  {'' if goal.reached else 'NOT '}reached: {goal.text}: {goal.measured}")


if __name__ == "__main__":
    main()

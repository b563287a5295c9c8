"""From the comparison's JSON to what people read: ``python -m bench.compare.report [FILE.json]``.

Beside the file: every row in Markdown, and a picture, if matplotlib is there. The comparison ends
with it; with ``--readme``, the short of it is put into the README as well, between two comments.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import re
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any, Final

from ..harness import readable
from ..machine import QUIET
from .goals import as_rows
from .peers.peer import DURABILITIES, SYNCED
from .rows import SHARES, latency, ranged, times
from .singles import CONNECTIONS, RAW

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

RESULTS: Final = Path(__file__).resolve().parents[1] / "results" / "compare.json"
EARLY: Final = RESULTS.with_stem("compare-ended-early")  # of a whole run that was not to be
README: Final = Path(__file__).resolve().parents[2] / "README.md"
BEGIN: Final = "<!-- bench: written by python -m bench.compare.report --readme -->"
END: Final = "<!-- bench: end -->"
SHAPE: Final = "100 B"  # what the README and the picture show
WORKS: Final = {"append": "append", "consume": "consume, cursor committed"}
OURS: Final = "rlog"

Table = dict[str, Any]


def line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |"


def grid(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    return "\n".join([line(head), line(["---"] * len(head)), *map(line, rows)])


def counted(text: str, number: int) -> str:
    return f"{number} {text}{'s' * (number != 1)}"


class Report:
    """One run's JSON."""

    def __init__(self, path: Path) -> None:
        self.path = path
        found = json.loads(path.read_text())
        self.machine: dict[str, str] = found["machine"]
        self.tables: list[Table] = found["tables"]
        self.ended: str = found.get("ended early", "")
        self.options: Table = next(table["run"] for table in self.tables if "run" in table)

    def bulk(self, work: str, durability: str, shape: str) -> list[Table]:
        """The rows of one table, none where it was not measured."""
        wanted = (work, durability, shape)
        for table in self.tables:
            if (table.get("work"), table.get("durability"), table.get("shape")) == wanted:
                rows: list[Table] = table["rows"]
                return rows
        return []

    def singles(self) -> list[Table]:
        return [
            row for table in self.tables if table.get("work") == "single" for row in table["rows"]
        ]

    def goals(self) -> list[Table]:
        return [table for table in self.tables if "verdict" in table]

    def how(self) -> str:
        """The run, in a sentence or two."""
        others = [share for table in self.tables for share in table.get("others", ())]
        restless = sum(table.get("restless", 0) for table in self.tables)
        rounds = self.options["rounds"]
        said = [
            self.machine["machine"], self.machine["python"], self.machine["disk"],
            f"memory: {self.machine['memory']}", f"rlog {self.machine['rlog']}",
            self.machine["date"], f"{counted('interleaved round', rounds)}, medians",
            f"every case for about {self.options['seconds']:g} s, of single appends for"
            f" {self.options['single_seconds']:g} s",
        ]  # fmt: skip
        text = f"{'; '.join(said)}."
        if restless:
            text += (
                f" Before {restless} of {len(others)} rounds, of all tables, the machine was not"
                " seen idle."
            )
        if others and median(others) > QUIET:
            text += (
                f" **The machine was busy with other work: {median(others):.1f} of its processors"
                " on average; read the ratios, and those with doubt.**"
            )
        if self.ended:
            text += f" **It ended early: {self.ended}**"
        return text

    # --- the short of it ----------------------------------------------------------------------

    def headline(self, durability: str) -> str:
        """Of each peer its fastest row at the equal batch, and every row of rlog's."""
        rows: dict[str, list[str]] = {}
        best: dict[tuple[str, str], float] = {}
        one_batch_too = "append, one batch at a time"
        for work in WORKS:
            for row in self.bulk(work, durability, SHAPE):
                ours = row["peer"] == OURS
                if not (row["equal"] or (ours and row["bulk call"])):
                    continue
                name = row["peer"]
                if ours and work == "append":
                    name = f"{OURS}, {row['way']}"
                elif ours:
                    name = next(iter(rows), OURS)
                cells = rows.setdefault(name, [name, "", "", "", "", "", "", ""])
                cells[7] = row["client"]
                rate, against = median(row["figures"]), row["ratios"]
                equal, one_batch = (
                    times(median(against[key])) if key in against else ""
                    for key in ("equal", "one batch")
                )
                if rate > best.get((name, work), 0.0):
                    best[name, work] = rate
                    shown = f"{rate:,.0f}"
                    if work == "append":
                        cells[1:4] = [shown, str(row["in flight"]), equal]
                    else:
                        cells[5:7] = [shown, equal]
                # Perhaps of another way, which is slower for it.
                if work == "append" and one_batch and rate > best.get((name, one_batch_too), 0.0):
                    best[name, one_batch_too] = rate
                    cells[4] = one_batch
        head = (
            durability, "appended/s", "batches in flight", "rlog ÷ it", "one batch each, ÷ it",
            "consumed/s", "rlog ÷ it", "client",
        )  # fmt: skip
        return grid(head, rows.values())

    def one_at_a_time_in_short(self) -> str:
        """A row for each system, a column for each load: appends a second, and the ratio."""
        columns: dict[str, None] = {}
        rows: dict[str, dict[str, str]] = {}
        for row in self.singles():
            if row["mode"] == CONNECTIONS and row["client"] != RAW:
                continue
            raw = " (raw)" if row["mode"] == CONNECTIONS else ""
            alone = row["clients"] == 1 and not raw
            column = "1 client" if alone else f"{row['load']}{raw}"
            columns[column] = None
            factor = f" ({times(median(row['ratios']))})" if row["ratios"] else ""
            cells = rows.setdefault(row["peer"], {})
            cells[column] = f"{readable(median(row['rate']))}{factor}"
        return grid(
            ("", *columns),
            (
                [name, *(cells.get(column, "") for column in columns)]
                for name, cells in rows.items()
            ),
        )

    def one_at_a_time(self) -> str:
        rows = (
            [
                row["label"], row["client"], "1", row["per_sync"], "–",
                readable(median(row["samples"])), readable(median(row["rate"])),
                *(latency(row[name], row["samples"], SHARES[name]) for name in SHARES),
                f"{median(row['cpu']):.2f}" if row["cpu"] else "",
                ranged(row["ratios"]),
            ]
            for row in self.singles()
        )  # fmt: skip
        head = (
            "one append at a time, synced", "client", "per acknowledgement", "per sync",
            "per commit", "appends a round", "appends/s", "p50 µs", "p99 µs", "p99.9 µs",
            "server's CPU s per 100,000", "rlog ÷ it",
        )  # fmt: skip
        return grid(head, rows)

    def reached(self) -> str:
        return grid(("goal", "measured: median (range of the rounds)", ""), as_rows(self.goals()))

    def short(self) -> Iterator[str]:
        yield self.how()
        yield f"![Records a second beside the peers](bench/results/{self.path.stem}.svg)"
        yield (
            "100-byte records, one client, 1,000 records for an acknowledgement and a commit (or in"
            " flight, where a client acknowledges each); rlog with one `send` per record and a"
            " `for` loop. `send` has up to 64 batches under way; where the other waits for each,"
            " the second ratio has rlog's `append_many` wait as well:"
        )
        for durability in DURABILITIES:
            if any(self.bulk(work, durability, SHAPE) for work in WORKS):
                yield self.headline(durability)
        if self.singles():
            yield (
                f"One append of 100 B at a time by each client, {SYNCED}: appends a second, and"
                " rlog ÷ it (below 1: the other is faster):"
            )
            yield self.one_at_a_time_in_short()
        if self.goals():
            yield "Goals; undecided are those that some rounds reached and some did not:"
            yield self.reached()
        yield (
            f"All rows, with what each peer's class of durability means, latencies and the limits"
            f" of the machine: [{self.path.stem}.md](bench/results/{self.path.stem}.md)."
        )

    # --- all of it ----------------------------------------------------------------------------

    def whole(self) -> Iterator[str]:
        yield "# rlog beside its peers"
        yield f"Written by `python -m bench.compare` from [{self.path.name}]({self.path.name})."
        yield self.how()
        yield "\n".join(f"- {table['note']}" for table in self.tables if "note" in table)
        if self.goals():
            yield "## Goals"
            yield self.reached()
        for table in self.tables:
            if "results" in table:
                yield f"## {table['title']}, {table['unit']}"
                yield self.limits(table)
        for table in self.tables:
            if table.get("work") in WORKS:
                work = WORKS[table["work"]]
                yield f"## {work}: {table['shape']}, {table['durability']}, records/s"
                yield self.rows(table)
        if self.singles():
            yield f"## One append of 100 B at a time, {SYNCED}"
            yield self.one_at_a_time()
        for table in self.tables:
            if table.get("work") == "ping":
                yield f"## A second connection's ping beside a load, {table['durability']}, µs"
                rows = (
                    [
                        row["load"],
                        *(latency(row[p], row["samples"], SHARES[p]) for p in ("p50", "p99")),
                    ]
                    for row in table["rows"]
                )
                yield grid(("load", "p50", "p99"), rows)

    @staticmethod
    def limits(table: Table) -> str:
        rows = (
            [
                f"{name}{' (the longest)' * (name in table['too few samples'])}",
                *(readable(of(figures)) for of in (median, min, max)),
            ]
            for name, figures in table["results"].items()
        )
        return grid(("", "median", "lowest", "highest"), rows)

    @staticmethod
    def rows(table: Table) -> str:
        rows = (
            [
                row["peer"], row["way"], row["client"], f"{row['records']:,}", row["per ack"],
                row["per sync"], row["per commit"], str(row["in flight"]),
                f"{median(row['figures']):,.0f}",
                f"{min(row['figures']):,.0f} – {max(row['figures']):,.0f}",
                *(ranged(row["ratios"].get(key)) for key in ("equal", "one batch", "best")),
            ]
            for row in table["rows"]
        )  # fmt: skip
        head = (
            "", "way", "client", "records a round", "per acknowledgement", "per sync",
            "per commit", "batches in flight", "median", "range", "rlog ÷ it, equal batch",
            "one batch at a time", "best of each",
        )  # fmt: skip
        return grid(head, rows)

    def picture(self, path: Path) -> None:
        import matplotlib

        matplotlib.use("svg")
        matplotlib.rcParams["svg.hashsalt"] = "rlog"  # the same figures make the same file
        from matplotlib import pyplot

        shown = [each for each in DURABILITIES if self.bulk("append", each, SHAPE)]
        if not shown:
            return
        figure, axes = pyplot.subplots(
            len(shown), len(WORKS), figsize=(11, 2.9 * len(shown)), squeeze=False
        )
        for durability, row_axes in zip(shown, axes, strict=True):
            for work, axis in zip(WORKS, row_axes, strict=True):
                rates: dict[str, float] = {}
                for row in self.bulk(work, durability, SHAPE):
                    # Of ours the headline's, which is the first; of theirs the fastest.
                    if row["equal"] and not (row["peer"] == OURS and OURS in rates):
                        rate = median(row["figures"])
                        rates[row["peer"]] = max(rate, rates.get(row["peer"], 0.0))
                names = list(rates)[::-1]
                bars = axis.barh(
                    names,
                    [rates[name] for name in names],
                    color=["#1f6f54" if name == OURS else "#a8b3b8" for name in names],
                )
                axis.bar_label(bars, labels=[f"{rates[name]:,.0f}" for name in names], padding=3)
                axis.set_xlim(right=max(rates.values(), default=1) * 1.25)
                axis.set_title(f"{work}, {durability}", fontsize=10)
                axis.xaxis.set_visible(False)
                axis.spines[["top", "right", "bottom"]].set_visible(False)
        figure.supxlabel(
            "records/s of 100 B, one client, an equal batch of 1,000; medians", fontsize=9
        )
        figure.tight_layout()
        figure.savefig(path, metadata={"Date": None})
        pyplot.close(figure)


def refresh(readme: str, block: str) -> str:
    """The README with the block in place of the one that it has."""
    pattern = re.compile(f"{re.escape(BEGIN)}.*?{re.escape(END)}", re.DOTALL)
    found, count = pattern.subn(lambda _: f"{BEGIN}\n{block}\n{END}", readme)
    assert count == 1, "the README has no place for it"
    return found


def write(path: Path) -> Report:
    """The tables and the picture of a run, beside its JSON."""
    report = Report(path)
    path.with_suffix(".md").write_text("\n\n".join(report.whole()) + "\n")
    if importlib.util.find_spec("matplotlib"):
        report.picture(path.with_suffix(".svg"))
    else:
        print("  matplotlib is not installed (scripts/peers install): no new picture")
    return report


def main() -> None:
    parser = argparse.ArgumentParser(description="What people read of a comparison.")
    parser.add_argument("json", metavar="FILE.json", type=Path, nargs="?", default=RESULTS)
    parser.add_argument("--readme", action="store_true", help="put the short of it there, too")
    options = parser.parse_args()
    report = write(options.json)
    if options.readme:
        README.write_text(refresh(README.read_text(), "\n\n".join(report.short())))


if __name__ == "__main__":
    main()

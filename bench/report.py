"""From the comparison's JSON to what people read: ``python -m bench.report [FILE.json]``.

Beside the file: every row in Markdown, and a picture, if matplotlib is there. In the README: the
short of it, between two comments. So a new run is shown by running this once more.
"""

from __future__ import annotations

import importlib.util
import json
import re
import sys
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any, Final

from .compare import RESULTS
from .harness import QUIET, readable
from .peers.peer import CLASSES, SYNCED
from .peers.rows import times

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

README: Final = Path(__file__).resolve().parents[1] / "README.md"
BEGIN: Final = "<!-- bench: written by python -m bench.report -->"
END: Final = "<!-- bench: end -->"
SHAPE: Final = "100 B"  # what the README and the picture show
WORKS: Final = {"append": "append", "consume": "consume, cursor committed"}
OURS: Final = "rlog"

Table = dict[str, Any]


def line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |"


def grid(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    return "\n".join([line(head), line(["---"] * len(head)), *map(line, rows)])


class Report:
    """One run's JSON."""

    def __init__(self, path: Path) -> None:
        self.path = path
        found = json.loads(path.read_text())
        self.machine: dict[str, str] = found["machine"]
        self.tables: list[Table] = found["tables"]
        self.options: Table = next(table["run"] for table in self.tables if "run" in table)

    def bulk(self, work: str, kept: str, shape: str) -> list[Table]:
        """The rows of one table, none where it was not measured."""
        for table in self.tables:
            if (table.get("work"), table.get("kept"), table.get("shape")) == (work, kept, shape):
                rows: list[Table] = table["rows"]
                return rows
        return []

    def singles(self) -> list[Table]:
        return [
            row for table in self.tables if table.get("work") == "single" for row in table["rows"]
        ]

    def goals(self) -> list[Table]:
        return [table for table in self.tables if "reached" in table]

    def how(self) -> str:
        """The run, in a sentence or two."""
        others = [share for table in self.tables for share in table.get("others", ())]
        busy = (
            f" **The machine was busy with other work: {median(others):.1f} of its processors on"
            " average; read the ratios, and those with doubt.**"
            if median(others) > QUIET
            else ""
        )
        rounds = self.options["rounds"]
        return (
            f"{self.machine['machine']}; {self.machine['python']}; {self.machine['disk']};"
            f" {rounds} interleaved round{'s' * (rounds > 1)}, medians; every case for about"
            f" {self.options['seconds']} s.{busy}"
        )

    # --- the short of it ----------------------------------------------------------------------

    def headline(self, kept: str) -> str:
        """Of each peer its best row at the equal batch; what cannot be compared has no ratio."""
        rows: dict[str, list[str]] = {}
        for at, work in enumerate(WORKS):
            for row in self.bulk(work, kept, SHAPE):
                extend = row["way"].startswith("`extend`")
                if not (row["equal"] or extend):
                    continue
                name = f"{row['peer']}, `extend`" if extend else row["peer"]
                cells = rows.setdefault(name, [name, "", "", "", "", ""])
                rate, against = median(row["figures"]), row["ratios"].get("equal")
                before = cells[1 + 2 * at]
                if before and float(before.replace(",", "")) >= float(f"{rate:.0f}"):
                    continue
                cells[1 + 2 * at : 3 + 2 * at] = [f"{rate:,.0f}", times(against)]
                cells[5] = row["client"]
        head = (kept, "appended/s", "rlog ÷ it", "consumed/s", "rlog ÷ it", "client")
        return grid(head, rows.values())

    def one_at_a_time(self) -> str:
        rows = (
            [
                row["label"], row["client"], readable(median(row["rate"])),
                *(readable(median(row[key])) for key in ("p50", "p99", "p999")),
                f"{median(row['cpu']):.2f}" if row["cpu"] else "",
                times(row["ratio"]),
            ]
            for row in self.singles()
        )  # fmt: skip
        head = (
            "one append at a time, synced", "client", "appends/s", "p50 µs", "p99 µs",
            "p99.9 µs", "server's CPU s per 100,000", "rlog ÷ it",
        )  # fmt: skip
        return grid(head, rows)

    def reached(self) -> str:
        return grid(
            ("goal", "measured", ""),
            (
                [goal["text"], goal["measured"], "reached" if goal["reached"] else "not reached"]
                for goal in self.goals()
            ),
        )

    def short(self) -> Iterator[str]:
        yield self.how()
        yield f"![Records a second beside the peers](bench/results/{self.path.stem}.svg)"
        yield (
            "100-byte records, one client, 1,000 records for an acknowledgement and a commit (or in"
            " flight, where a client acknowledges each); rlog with one `send` per record and a"
            " `for` loop:"
        )
        for kept in CLASSES:
            if self.bulk("append", kept, SHAPE) or self.bulk("consume", kept, SHAPE):
                yield self.headline(kept)
        yield (
            f"All rows, with what each peer's class of durability means, one append at a time and"
            f" the goals: [{self.path.stem}.md](bench/results/{self.path.stem}.md)."
        )

    # --- all of it ----------------------------------------------------------------------------

    def whole(self) -> Iterator[str]:
        yield "# rlog beside its peers"
        yield f"Written by `python -m bench.report` from [{self.path.name}]({self.path.name})."
        yield self.how()
        yield "\n".join(f"- {table['note']}" for table in self.tables if "note" in table)
        if self.goals():
            yield "## Goals"
            yield self.reached()
        for table in self.tables:
            if table.get("work") in WORKS:
                yield f"## {WORKS[table['work']]}: {table['shape']}, {table['kept']}, records/s"
                yield self.rows(table)
        if self.singles():
            yield f"## One append of 100 B at a time, {SYNCED}"
            yield self.one_at_a_time()
        for table in self.tables:
            if table.get("work") == "ping":
                yield f"## A second connection's ping beside a load, {table['kept']}, µs"
                rows = (
                    [row["load"], *(readable(median(row[key])) for key in ("p50", "p99"))]
                    for row in table["rows"]
                )
                yield grid(("load", "p50", "p99"), rows)

    @staticmethod
    def rows(table: Table) -> str:
        rows = (
            [
                row["peer"], row["way"], row["client"], row["records per acknowledgement"],
                row["per sync"], row["per commit"] or "–", f"{median(row['figures']):,.0f}",
                f"{min(row['figures']):,.0f} – {max(row['figures']):,.0f}",
                times(row["ratios"].get("equal")), times(row["ratios"].get("best")),
            ]
            for row in table["rows"]
        )  # fmt: skip
        head = (
            "", "way", "client", "per acknowledgement", "per sync", "per commit", "median",
            "range", "rlog ÷ it, equal batch", "best of each",
        )  # fmt: skip
        return grid(head, rows)

    def picture(self, path: Path) -> None:
        import matplotlib

        matplotlib.use("svg")
        matplotlib.rcParams["svg.hashsalt"] = "rlog"  # the same figures make the same file
        from matplotlib import pyplot

        shown = [kept for kept in CLASSES if self.bulk("append", kept, SHAPE)]
        figure, axes = pyplot.subplots(
            len(shown), len(WORKS), figsize=(11, 2.9 * len(shown)), squeeze=False
        )
        for kept, row_axes in zip(shown, axes, strict=True):
            for work, axis in zip(WORKS, row_axes, strict=True):
                rates: dict[str, float] = {}
                for row in self.bulk(work, kept, SHAPE):
                    if row["equal"]:
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
                axis.set_title(f"{work}, {kept}", fontsize=10)
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


def main() -> None:
    path = Path(sys.argv[1]) if len(sys.argv) > 1 else RESULTS
    report = Report(path)
    path.with_suffix(".md").write_text("\n\n".join(report.whole()) + "\n")
    if importlib.util.find_spec("matplotlib"):
        report.picture(path.with_suffix(".svg"))
    else:
        print("matplotlib is not installed (scripts/peers install): no new picture")
    if path.resolve() == RESULTS:
        README.write_text(refresh(README.read_text(), "\n\n".join(report.short())))


if __name__ == "__main__":
    main()

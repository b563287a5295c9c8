"""The comparison with peers runs, with its smallest counts, for whatever is installed."""

from __future__ import annotations

import json
import subprocess
import sys
from argparse import Namespace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, cast

import pytest

from bench import lines
from bench.compare.__main__ import OPTIONS, ROUNDS, is_whole
from bench.compare.field import Field
from bench.compare.goals import TIMES, Judged, measured
from bench.compare.peers import PEERS
from bench.compare.peers.peer import DURABILITIES, SYNCED, Missing, Way
from bench.compare.report import BEGIN, END, Report, refresh
from bench.compare.rows import Row, Single, equal_of, latency, one_batch_of, ranged
from bench.harness import Conditions

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from bench.compare.peers.peer import Peer
    from bench.harness import Bench

ROOT: Final = Path(__file__).resolve().parents[2]
SECONDS_MAX: Final = 180
SMALL: Final = (
    *("--rounds", "1", "--warm", "0", "--patience", "0", "--seconds", "0.01"),
    *("--single-seconds", "0.02", "--mib", "1", "--shapes", "100 B"),
)


def compared(tmp_path: Path, *options: str) -> Path:
    found = tmp_path / "compare.json"
    command = [sys.executable, "-m", "bench.compare", *SMALL, "--json", str(found), *options]
    subprocess.run(command, cwd=ROOT, timeout=SECONDS_MAX, check=True, stdout=subprocess.DEVNULL)
    return found


def tables(path: Path, work: str) -> list[dict[str, Any]]:
    return [table for table in json.loads(path.read_text())["tables"] if table.get("work") == work]


@pytest.mark.parametrize("name", PEERS)
def test_each_way_of_a_peer_appends_and_consumes_in_each_of_its_classes(
    tmp_path: Path, name: str
) -> None:
    peer = PEERS[name]
    try:
        peer.check()
    except Missing as missing:
        pytest.skip(f"{name} cannot be run on this machine: {missing}")
    path = compared(tmp_path, "--work", "append,consume", "--peers", f"rlog,{name}")
    for work in ("append", "consume"):
        found = {table["durability"]: table["rows"] for table in tables(path, work)}
        assert tuple(found) == DURABILITIES
        for durability in peer.means:
            rows = [row for row in found[durability] if row["peer"] == peer.name]
            assert any(row["equal"] for row in rows)
            assert all(row["records"] > 0 and row["in flight"] for row in rows)
            assert all(figure > 0 for row in rows for figure in row["figures"])
            if name != "rlog":
                assert all(row["ratios"]["equal"][0] > 0 for row in rows if row["equal"])


def test_single_appends_pings_and_limits_are_measured_and_all_is_reported(tmp_path: Path) -> None:
    path = compared(tmp_path, "--peers", "rlog,redis,sqlite", "--clients", "1,3")
    rows = [row for table in tables(path, "single") for row in table["rows"]]
    ours = {(row["mode"], row["clients"]) for row in rows if row["peer"] == "rlog"}
    assert ours == {
        ("blocking client", 1), ("threads", 3), ("processes", 3), ("connections", 1),
        ("connections", 3), ("in flight, one asyncio process", 128),
    }  # fmt: skip
    assert all(0 < row["p50"][0] <= row["p99"][0] <= row["p999"][0] for row in rows)
    assert all(row["samples"][0] > 0 for row in rows)
    assert all(row["p99"][0] > 0 for table in tables(path, "ping") for row in table["rows"])
    report = Report(path)
    whole = path.with_suffix(".md").read_text()
    assert f"## append: 100 B, {SYNCED}, records/s" in whole
    assert "limit: synced write, fallocated, by MiB" in whole
    assert "≥ 3,000,000/s" in whole
    assert "memory: not warmed" in whole
    block = "\n\n".join(report.short())
    assert "≥ 3,000,000/s" in block
    assert "| rlog |" in report.one_at_a_time_in_short()
    assert refresh(f"before\n{BEGIN}\nold\n{END}\nafter", block) == (
        f"before\n{BEGIN}\n{block}\n{END}\nafter"
    )


def test_the_readme_has_a_place_for_the_report() -> None:
    assert refresh((ROOT / "README.md").read_text(), "").count(BEGIN) == 1


def test_only_a_whole_run_stands_for_the_comparison() -> None:
    default = {name.replace("-", "_"): value for name, value, _help in OPTIONS}
    assert is_whole(Namespace(**default, rounds=ROUNDS))
    assert is_whole(Namespace(**default | {"lines": "a file"}, rounds=ROUNDS + 1))
    for part in ({"peers": "redis"}, {"work": "append"}, {"shapes": "100 B"}, {"seconds": 0.1}):
        assert not is_whole(Namespace(**default | part, rounds=ROUNDS))
    assert not is_whole(Namespace(**default, rounds=1))


class OneRound:
    """In place of a bench."""

    def __init__(self, rounds: int) -> None:
        self.options = Namespace(rounds=rounds)
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)

    def rounds(self, works: Sequence[Callable[[], None]]) -> Conditions:
        for _ in range(self.options.rounds):
            for work in works:
                work()
        return Conditions([0.0] * self.options.rounds, 0)


def row(peer: str, *figures: float, **way: Any) -> Row:
    return Row(peer, "client", Way("way", lambda: 1.0, "1", "1", **way), 10, list(figures))


def test_a_peer_that_fails_is_left_out_with_its_rows_and_the_others_go_on() -> None:
    bench = OneRound(2)
    peers = [Namespace(name="frail"), Namespace(name="sound")]
    field = Field(cast("Bench", bench), cast("list[Peer]", peers))
    rows = [row("frail"), row("sound")]

    def turn(row: Row) -> None:
        row.figures.append(1.0)
        if row.peer == "frail" and len(row.figures) == 2:
            row.figures.pop()
            raise ValueError("its server is gone")

    field.rounds([(peer, partial(turn, row)) for peer, row in zip(field, rows, strict=True)])
    assert field.whole(rows) == [rows[1]]
    assert [peer.name for peer in field] == ["sound"]
    assert bench.notes == [
        "frail failed, and is left out from here on: ValueError: its server is gone"
    ]


def test_ours_at_the_equal_batch_is_the_first_row_and_theirs_the_fastest() -> None:
    rows = [
        row("rlog", 2.0, equal=True, in_flight=64), row("rlog", 3.0, equal=True),
        row("other", 1.0, equal=True), row("other", 4.0, equal=True), row("other", 9.0),
    ]  # fmt: skip
    assert equal_of(rows, "rlog") is rows[0]
    assert one_batch_of(rows) is rows[1]
    assert equal_of(rows, "other") is rows[3]


def test_a_goal_that_only_some_rounds_reached_is_undecided() -> None:
    assert Judged.of("a goal: ≥", [25.0, 31.0], TIMES, 25).verdict == "reached"
    assert Judged.of("a goal: ≥", [24.0, 31.0], TIMES, 25).verdict == "undecided"
    assert Judged.of("a goal: ≤", [24.0], TIMES, 23, at_most=True).verdict == "NOT reached"
    assert Judged.of("a goal: ≥", [], TIMES, 25).goal == "a goal: ≥ 25 ×"
    assert measured([24.0, 31.0, 26.0], TIMES) == "26 × (24 – 31)"
    assert ranged([1.0, 12.0, 30.0]) == "12 × (1.00 – 30)"
    assert ranged(None) == ""


def test_a_percentile_of_too_few_samples_is_called_their_largest() -> None:
    assert latency([7.0], [99], 0.99) == "max 7"
    assert latency([7.0], [100], 0.99) == "7"
    assert latency([7.0], [1000, 999], 0.999) == "max 7"


def test_a_sync_is_shared_by_as_many_single_appends_as_there_are_clients_at_most() -> None:
    alone, grouped = Namespace(name="a", shares_syncs=False), Namespace(name="g", shares_syncs=True)
    per_sync = [
        Single.of(cast("Peer", peer), "client", "threads", clients).per_sync
        for peer in (alone, grouped)
        for clients in (1, 16)
    ]
    assert per_sync == ["1", "1", "1", "1 to 16"]


def test_made_up_lines_are_the_same_every_time_and_those_of_a_file_are_its_own(
    tmp_path: Path,
) -> None:
    made = lines.generated()
    assert made == lines.generated()
    assert len(set(made)) > len(made) * 0.9
    (tmp_path / "log").write_bytes(b"one\n\r\n\ntwo")
    assert lines.read(str(tmp_path / "log")) == [b"one", b"\r", b"two"]

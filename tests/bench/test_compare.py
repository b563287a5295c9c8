"""The comparison with peers runs, with its smallest counts, for whatever is installed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any, Final

import pytest

from bench import lines
from bench.peers import PEERS
from bench.peers.peer import CLASSES, SYNCED, Missing
from bench.report import BEGIN, END, Report, refresh

ROOT: Final = Path(__file__).resolve().parents[2]
SECONDS_MAX: Final = 180
SMALL: Final = (
    *("--rounds", "1", "--warm", "0", "--patience", "0"),
    *("--seconds", "0.01", "--mib", "1", "--shapes", "100 B"),
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
        pytest.skip(str(missing))
    path = compared(tmp_path, "--work", "append,consume", "--peers", f"rlog,{name}")
    for work in ("append", "consume"):
        found = {table["kept"]: table["rows"] for table in tables(path, work)}
        assert tuple(found) == CLASSES
        for kept in peer.kept:
            rows = [row for row in found[kept] if row["peer"] == peer.name]
            assert any(row["equal"] for row in rows)
            assert all(figure > 0 for row in rows for figure in row["figures"])
            if name != "rlog":
                assert all(row["ratios"]["equal"] > 0 for row in rows if row["equal"])


def test_single_appends_and_pings_are_measured_and_all_is_reported(tmp_path: Path) -> None:
    path = compared(tmp_path, "--peers", "rlog,redis,sqlite", "--clients", "1,3")
    rows = [row for table in tables(path, "single") for row in table["rows"]]
    ours = {(row["mode"], row["clients"]) for row in rows if row["peer"] == "rlog"}
    assert ours == {
        ("blocking client", 1), ("threads", 3), ("processes", 3), ("connections", 1),
        ("connections", 3), ("in flight, one asyncio process", 128),
    }  # fmt: skip
    assert all(0 < row["p50"][0] <= row["p99"][0] <= row["p999"][0] for row in rows)
    assert all(row["p99"][0] > 0 for table in tables(path, "ping") for row in table["rows"])
    report = Report(path)
    assert f"## append: 100 B, {SYNCED}, records/s" in report.whole()
    assert any("≥ 3,000,000/s" in part for part in report.whole())
    block = "\n\n".join(report.short())
    assert refresh(f"before\n{BEGIN}\nold\n{END}\nafter", block) == (
        f"before\n{BEGIN}\n{block}\n{END}\nafter"
    )


def test_the_readme_has_a_place_for_the_report() -> None:
    assert refresh((ROOT / "README.md").read_text(), "").count(BEGIN) == 1


def test_made_up_lines_are_the_same_every_time_and_those_of_a_file_are_its_own(
    tmp_path: Path,
) -> None:
    made = lines.generated()
    assert made == lines.generated()
    assert len(set(made)) > len(made) * 0.9
    (tmp_path / "log").write_bytes(b"one\n\r\n\ntwo")
    assert lines.read(str(tmp_path / "log")) == [b"one", b"\r", b"two"]

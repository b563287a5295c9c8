"""``repair`` of real directories: what it says, what it touches, and what clients then find."""

from __future__ import annotations

import json
import os
import shutil
import time
from typing import TYPE_CHECKING, NamedTuple

import pytest

import rlog_client
from rlog import frame, offline
from rlog.cli import main
from rlog.facts import Appended
from rlog.files import Disk, Lock
from rlog.journal import file_names
from rlog.offline import FrameView
from rlog.segment import path
from rlog_client import CorruptData
from rlog_client.batch import parse_header
from tests.server_process import ServerProcess

if TYPE_CHECKING:
    from pathlib import Path

    from rlog_client.batch import Header

VALUES = [b"%d " % number + b"x" * 3000 for number in range(8)]


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory after two clean stops: all of it is below a checkpoint."""
    directory = tmp_path_factory.mktemp("repair") / "stopped"
    for part in (VALUES[:4], VALUES[4:]):
        with ServerProcess(directory) as server:
            with rlog_client.connect(server.url) as client:
                log = client.log("orders", create=True, file_roll_size=8192)
                for value in part:
                    log.append(value)
                with log.consumer("me") as consumer:
                    consumer.commit(consumer.poll(timeout=None)[0])
            assert server.stop() == 0
    return directory


class Tree(NamedTuple):
    """A copy to be damaged."""

    root: Path

    def flip(self, name: str, position: int) -> None:
        file = self.root / name
        data = bytearray(file.read_bytes())
        data[position] ^= 1
        file.write_bytes(data)

    def state(self) -> dict[str, tuple[int, int, bytes]]:
        """Every name, when it was changed, and what it holds."""
        return {
            str(p): (p.stat().st_mtime_ns, p.stat().st_mode, p.read_bytes() if p.is_file() else b"")
            for p in sorted(self.root.rglob("*"))
        }

    def frames(self) -> list[FrameView]:
        files = Disk(str(self.root))
        return [
            view
            for name in file_names(files)
            for view in offline.frames(files.open(name, write=False), name)
            if isinstance(view, FrameView)
        ]


@pytest.fixture
def tree(stopped: Path, tmp_path: Path) -> Tree:
    shutil.copytree(stopped, tmp_path / "data")
    return Tree(tmp_path / "data")


def run(capfd: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    """The command, in this process."""
    code = main(arguments)
    said = capfd.readouterr()
    return code, said.out, said.err


def test_a_sound_directory_needs_nothing(tree: Tree, capfd: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(capfd, "repair", str(tree.root))
    assert (code, out, err) == (0, "", "nothing to repair\n")


def damage_a_batch(tree: Tree) -> str:
    """In its segment and in the journal, so that it cannot be had from there."""
    tree.flip(path(1, 2), 100)
    for view in tree.frames():
        for header in appended(view):
            if header.base == 2:
                tree.flip(view.seen.file, view.seen.position + view.seen.head.length - 10)
    return path(1, 2)


def appended(view: FrameView) -> list[Header]:
    return [parse_header(fact.header) for fact in view.facts if isinstance(fact, Appended)]


def test_what_would_lose_something_takes_its_flag_and_a_dry_run_touches_nothing(
    tree: Tree, capfd: pytest.CaptureFixture[str]
) -> None:
    segment = damage_a_batch(tree)
    before = tree.state()
    for flags, code in (((), 5), (("--truncate-tail",), 5), (("--accept-loss", "--dry-run"), 0)):
        found, out, err = run(capfd, "repair", str(tree.root), *flags)
        assert found == code
        assert f"lost   log orders, offsets 2 to 3 ({segment}): lost" in out
        assert f"to do  take {segment} away" in out
        assert "nothing was touched" in err
        assert ("it takes --accept-loss" in err) == (code == 5)
        after = tree.state()
        after.pop(str(tree.root / "lock"))  # a repair that may act takes the lock
        assert after == {k: v for k, v in before.items() if not k.endswith("/lock")}
    code, out, err = run(capfd, "repair", str(tree.root), "--accept-loss")
    assert code == 0
    assert "did  write checkpoint-" in out
    assert "is in quarantine/repair-1; what is lost is named above" in err
    assert run(capfd, "repair", str(tree.root))[0] == 0
    assert run(capfd, "verify", str(tree.root))[0] == 0


def test_clients_are_told_what_is_lost_and_find_the_rest_where_it_was(
    tree: Tree, capfd: pytest.CaptureFixture[str]
) -> None:
    damage_a_batch(tree)
    assert run(capfd, "repair", str(tree.root), "--accept-loss")[0] == 0
    with ServerProcess(tree.root) as server, rlog_client.connect(server.url) as client:
        log = client.log("orders")
        reader = log.reader(rlog_client.OLDEST, block=False)
        found: list[tuple[int, bytes]] = []
        with pytest.raises(CorruptData, match="lost, as a repair declared") as told:
            found.extend((record.offset, record.value) for record in reader)
        assert (told.value.first, told.value.end) == (2, 3)
        found = [(record.offset, record.value) for record in reader]
        assert found == list(enumerate(VALUES))[3:]
        assert log.append(b"new") == len(VALUES)
        assert log.cursor("me").info().committed == 2
        assert server.stop() == 0
    assert run(capfd, "verify", str(tree.root))[0] == 0


def test_damage_at_the_end_of_the_journal_takes_the_flag_for_that(
    tree: Tree, capfd: pytest.CaptureFixture[str]
) -> None:
    with ServerProcess(tree.root) as server:
        with rlog_client.connect(server.url) as client:
            client.log("orders").append(b"last")
            client.log("orders").wait_synced(len(VALUES) + 1)
        for _ in range(400):
            if not tree.frames()[-1].facts:
                break  # an empty frame: it proves the one before it
            time.sleep(0.05)
        else:
            pytest.fail("a server at rest wrote no empty frame within 20 s")
        server.kill()
    last = next(view for view in reversed(tree.frames()) if appended(view))
    tree.flip(last.seen.file, last.seen.position + frame.HEAD_BYTES)
    assert run(capfd, "repair", str(tree.root))[0] == 5
    code, out, _err = run(capfd, "repair", "-o", "json", str(tree.root))
    told = json.loads(out)
    assert (code, told["needs"], told["quarantine"]) == (5, "--truncate-tail", None)
    assert f"frames {last.seen.head.number} to" in told["lost"][0]["reason"]
    assert run(capfd, "repair", str(tree.root), "--truncate-tail")[0] == 0
    with ServerProcess(tree.root) as server, rlog_client.connect(server.url) as client:
        values = [
            record.value for record in client.log("orders").reader(rlog_client.OLDEST, block=False)
        ]
        assert values == [*VALUES, b"last"]  # it was in its segment


def test_what_costs_nothing_takes_no_flag(tree: Tree, capfd: pytest.CaptureFixture[str]) -> None:
    newest = max(p.name for p in tree.root.glob("checkpoint-*"))
    tree.flip(newest, 30)
    (tree.root / "logs/1/note.txt").write_text("hello")
    code, out, err = run(capfd, "repair", str(tree.root))
    assert (code, "repaired" in err, "lost" in out) == (0, True, False)
    (where,) = (tree.root / "quarantine").iterdir()
    assert (where / "logs-1-note.txt").read_text() == "hello"
    assert newest in {p.name for p in where.iterdir()}
    told = json.loads((where / "report.json").read_text())
    assert told["taken"][f"quarantine/{where.name}/{newest}"] == newest


def test_a_directory_that_is_in_use_is_refused(
    tree: Tree, capfd: pytest.CaptureFixture[str]
) -> None:
    lock = Lock(str(tree.root))
    before = tree.state()
    try:
        for flags in ((), ("--dry-run",)):
            code, _, err = run(capfd, "repair", str(tree.root), *flags)
            assert (code, "is in use by process" in err) == (6, True)
    finally:
        lock.release()
    assert tree.state() == before


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a directory away")
def test_files_that_the_server_could_not_open_are_not_made(
    tree: Tree, capfd: pytest.CaptureFixture[str]
) -> None:
    os.chown(tree.root, 12345, -1)
    before = tree.state()
    code, _, err = run(capfd, "repair", str(tree.root))
    assert (code, "belongs to user id 12345" in err) == (1, True)
    assert tree.state() == before
    assert run(capfd, "repair", "--dry-run", str(tree.root))[0] == 0


def test_what_is_no_data_directory_is_not_made_one(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    for directory in (tmp_path, tmp_path / "nothing"):
        assert run(capfd, "repair", str(directory))[0] == 3
    assert list(tmp_path.iterdir()) == []

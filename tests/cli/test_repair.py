"""``repair`` of real directories: what it says, what it touches, and what clients then find."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
import time
from typing import TYPE_CHECKING, NamedTuple

import pytest

import rlog
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
            str(p): (
                p.lstat().st_mtime_ns,
                p.lstat().st_mode,
                p.read_bytes() if p.is_file() else b"",
            )
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


# --- what is not where, or what, it should be -------------------------------------------------


@pytest.mark.parametrize("kind", ["directory", "pipe", "link to nowhere"])
@pytest.mark.parametrize(
    "name",
    [
        "logs/1/stray",
        "logs/stray/stray",
        path(1, 4),  # since the older checkpoint: it is in the journal, too
        "journal/0000000099",
        "checkpoint-stray",
        "reserve",
    ],
)
def test_what_is_no_file_is_moved_away_as_it_is(
    kind: str, name: str, tree: Tree, capfd: pytest.CaptureFixture[str]
) -> None:
    stray = tree.root / name
    stray.parent.mkdir(exist_ok=True)
    stray.unlink(missing_ok=True)
    if kind == "directory":
        stray.mkdir()
        (stray / "inside").write_text("hello")
    elif kind == "pipe":
        os.mkfifo(stray)
    else:
        stray.symlink_to("nowhere")
    before = tree.state()
    assert run(capfd, "repair", str(tree.root), "--dry-run", "--accept-loss")[0] == 0
    assert tree.state() == before
    # (Nobody knows that there was no journal file of that number.)
    flags = ("--truncate-tail",) if name.startswith("journal") else ()
    code, out, err = run(capfd, "repair", str(tree.root), *flags)
    assert (code, f"wrong  {name}: it is not the kind of file" in out) == (0, True), err
    aside = tree.root / "quarantine/repair-1" / name.replace("/", "-")
    assert os.path.lexists(aside)
    assert aside.is_symlink() or kind != "link to nowhere"
    assert kind != "directory" or (aside / "inside").read_text() == "hello"
    assert served(tree) == VALUES
    assert "nothing to repair" in run(capfd, "repair", str(tree.root))[2]


def served(tree: Tree) -> list[bytes]:
    with rlog.open(tree.root) as client:
        return [
            record.value for record in client.log("orders").reader(rlog_client.OLDEST, block=False)
        ]


def test_a_plain_file_in_the_place_of_a_directory_is_moved_away(
    tree: Tree, capfd: pytest.CaptureFixture[str]
) -> None:
    shutil.rmtree(tree.root / "logs")
    (tree.root / "logs").write_text("hello")
    _code, out, _err = run(capfd, "repair", str(tree.root), "--accept-loss", "-o", "json")
    assert (tree.root / "quarantine/repair-1/logs").read_text() == "hello"
    spans = [(each["first"], each["end"]) for each in json.loads(out)["lost"]]
    assert spans == [(0, 2), (2, 4)]  # the others are in the journal
    with rlog.open(tree.root) as client:
        reader = client.log("orders").reader(rlog.offset(4), block=False)
        assert [record.value for record in reader] == VALUES[4:]


def test_a_name_is_no_reason_not_to_repair(tree: Tree, capfd: pytest.CaptureFixture[str]) -> None:
    (tree.root / "logs/1-1").mkdir()
    names = [b"logs/1/\xff", b"logs/1/" + b"x" * 255, b"logs/1/1-x", b"logs/1-1/x"]
    root = os.fsencode(tree.root)
    for name in names:
        with open(root + b"/" + name, "wb") as file:
            file.write(name)
    for form in ("json", "jsonl", "table"):
        assert run(capfd, "repair", str(tree.root), "--dry-run", "-o", form)[0] == 0
    assert run(capfd, "repair", str(tree.root), "-o", "json")[0] == 0
    told = json.loads((tree.root / "quarantine/repair-1/report.json").read_bytes())
    assert {os.fsencode(original) for original in told["taken"].values()} == set(names)
    for aside, original in told["taken"].items():
        assert (tree.root / aside).read_bytes() == os.fsencode(original)


def test_a_journal_on_another_disk_is_taken_away_from_there(
    tree: Tree, capfd: pytest.CaptureFixture[str]
) -> None:
    there = tempfile.mkdtemp(dir="/dev/shm")
    try:
        if os.stat(there).st_dev == tree.root.stat().st_dev:
            pytest.skip("it takes two file systems, and /dev/shm is on the same one here")
        (tree.root / "journal").rename(tree.root / "moved")
        shutil.copytree(tree.root / "moved", there, dirs_exist_ok=True)
        (tree.root / "journal").symlink_to(there)
        (tree.root / path(1, 4)).unlink()
        before = {name: (tree.root / "moved" / name).read_bytes() for name in os.listdir(there)}
        assert run(capfd, "repair", str(tree.root))[0] == 0
        for name, contents in before.items():
            if name != "spare":
                aside = tree.root / f"quarantine/repair-1/journal-{name}"
                assert aside.read_bytes() == contents
        assert served(tree) == VALUES
    finally:
        shutil.rmtree(there)


@pytest.mark.parametrize("name", ["logs/app.log", "journal/x/system.journal", "checkpoint-best.pt"])
def test_the_files_of_others_are_not_repaired(
    name: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).write_text("theirs")
    before = Tree(tmp_path).state()
    code, _, err = run(capfd, "repair", str(tmp_path), "--accept-loss")
    assert (code, "is no data directory" in err) == (3, True)
    assert Tree(tmp_path).state() == before


@pytest.fixture
def other(tmp_path: Path) -> Path:
    """Another directory, with more frames."""
    with rlog.open(tmp_path / "other") as client:
        log = client.log("orders", create=True)
        for number in range(40):
            log.append(b"another %d" % number)
    return tmp_path / "other"


def test_checkpoints_of_another_directory_are_told_from_ours(
    tree: Tree, other: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    newest = max(other.glob("checkpoint-*"))
    assert newest.name > max(p.name for p in tree.root.glob("checkpoint-*"))
    shutil.copy(newest, tree.root)
    code, out, _err = run(capfd, "repair", str(tree.root))
    assert (code, f"{newest.name}: it is a checkpoint of another directory" in out) == (0, True)
    assert "lost" not in out
    assert served(tree) == VALUES


def test_what_a_journal_file_of_another_directory_took_the_place_of_is_lost(
    tree: Tree, other: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    ours = max((tree.root / "journal").glob("0*"))
    shutil.copy(other / "journal/0000000001", ours)
    code, out, err = run(capfd, "repair", str(tree.root))
    assert (code, "it takes --truncate-tail" in err) == (5, True)
    assert "it is of another directory's journal: what stood in its place is lost" in out
    assert "the cursor of me stands at 2: it may have been further" in out
    assert run(capfd, "repair", str(tree.root), "--truncate-tail")[0] == 0
    assert served(tree) == VALUES


def test_a_journal_that_is_all_of_another_directory_is_a_loss(
    tree: Tree, other: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    shutil.rmtree(tree.root / "journal")
    shutil.copytree(other / "journal", tree.root / "journal")
    code, out, err = run(capfd, "repair", str(tree.root))
    assert (code, "it takes --accept-loss" in err) == (5, True)
    assert "all of it is of another directory, or else the checkpoints are" in out
    assert run(capfd, "repair", str(tree.root), "--accept-loss")[0] == 0
    assert served(tree) == VALUES


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can limit a file system")
def test_without_space_it_says_what_it_takes_and_leaves_nothing(
    stopped: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    small = tmp_path / "small"
    small.mkdir()
    room = sum(p.stat().st_size for p in stopped.rglob("*") if p.is_file()) + (1 << 20)
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={room}", "none", str(small)], check=False
    )
    if mounted.returncode:
        pytest.skip("it takes a small file system, and this root may not mount one")
    try:
        shutil.copytree(stopped, small / "data")
        tree = Tree(small / "data")
        damage_a_batch(tree)
        before = {k: v for k, v in tree.state().items() if not k.endswith("/lock")}
        for _ in range(2):
            code, _, err = run(capfd, "repair", str(tree.root), "--accept-loss")
            assert (code, "no space for copies" in err) == (1, True)
            assert list((tree.root / "quarantine").iterdir()) == []
            (tree.root / "quarantine").rmdir()
            after = {k: v for k, v in tree.state().items() if not k.endswith("/lock")}
            assert {k: v[2] for k, v in after.items()} == {k: v[2] for k, v in before.items()}
    finally:
        subprocess.run(["umount", str(small)], check=True)


def test_a_checkpoint_is_not_believed_that_knows_other_segments_than_there_are(
    tree: Tree, other: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    for mine in tree.root.glob("checkpoint-*"):
        mine.write_bytes(b"rot")
    with rlog.open(other) as client:
        for number in range(3):
            client.log(f"more-{number}", create=True).append(b"more")
    newest = max(other.glob("checkpoint-*"))
    shutil.copy(newest, tree.root)
    code, out, _err = run(capfd, "repair", str(tree.root), "--accept-loss")
    assert (code, f"{newest.name}: it is a checkpoint of another directory" in out) == (0, True)
    with rlog.open(tree.root) as client:
        (log,) = (client.log(info.name) for info in client.logs())  # its name is lost
        reader = log.reader(rlog_client.OLDEST, block=False)
        assert [record.value for record in reader] == VALUES


def test_a_new_checkpoint_never_has_the_name_of_one_that_is_taken_away(
    tree: Tree, other: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    newest = max(tree.root.glob("checkpoint-*"))
    foreign = newest.with_name(f"checkpoint-{int(newest.name[-20:]) + 1:020}")
    shutil.copy(max(other.glob("checkpoint-*")), foreign)
    theirs = foreign.read_bytes()
    damage_a_batch(tree)
    assert run(capfd, "repair", str(tree.root), "--accept-loss")[0] == 0
    assert (tree.root / "quarantine/repair-1" / foreign.name).read_bytes() == theirs
    assert max(tree.root.glob("checkpoint-*")).name > foreign.name
    assert "nothing to repair" in run(capfd, "repair", str(tree.root))[2]

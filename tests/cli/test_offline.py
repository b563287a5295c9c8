"""``inspect`` and ``verify`` of directories: sound, torn, and damaged in each way there is."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING, Any, NamedTuple

import msgpack
import pytest

import rlog
import rlog_client
from rlog import facts, frame, offline
from rlog.cli import main
from rlog.files import Disk
from rlog.journal import DIRECTORY, file_names
from rlog.offline import Counted, Finding, FrameView, Stop
from rlog.segment import path
from rlog_client import batch
from rlog_client.batch import HEADER_BYTES
from tests.server_process import ServerProcess

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.cli.conftest import Rlog

LARGE = b"x" * 3000


def fill(url: str, count: int) -> None:
    with rlog_client.connect(url) as client:
        a = client.log("a", create=True, file_roll_size=8192)
        b = client.log("b", create=True)
        for number in range(count):
            a.append(b"%d " % number + LARGE)
            b.append_many([b"small %d" % number, b"\xff"])
        with a.consumer("me") as consumer:
            consumer.commit(consumer.poll(timeout=None)[-1])


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory after two clean stops: all of it is below a checkpoint."""
    directory = tmp_path_factory.mktemp("offline") / "stopped"
    for count in (5, 2):
        with ServerProcess(directory) as server:
            fill(server.url, count)
            assert server.stop() == 0
    return directory


@pytest.fixture(scope="module")
def killed(stopped: Path) -> Path:
    """The same, and then a server that was killed with more in its journal."""
    directory = stopped.with_name("killed")
    shutil.copytree(stopped, directory)
    with ServerProcess(directory) as server:
        fill(server.url, 3)
        server.kill()
    return directory


class Tree(NamedTuple):
    """A copy to be damaged."""

    root: Path

    def flip(self, name: str, position: int) -> None:
        file = self.root / name
        data = bytearray(file.read_bytes())
        data[position] ^= 1
        file.write_bytes(data)

    def names(self, pattern: str) -> list[str]:
        return sorted(str(p.relative_to(self.root)) for p in self.root.glob(pattern))

    def state(self) -> dict[str, tuple[int, int]]:
        return {
            str(p): (p.stat().st_mtime_ns, p.stat().st_size) for p in sorted(self.root.rglob("*"))
        }

    def frames(self) -> list[FrameView]:
        files = Disk(str(self.root))
        found = [
            view
            for name in file_names(files)
            for view in offline.frames(files.open(name, write=False), name)
        ]
        return [view for view in found if isinstance(view, FrameView)]

    def verify(self) -> list[Finding]:
        """Also that nothing is touched."""
        before = self.state()
        found = list(offline.verify(Disk(str(self.root)), Counted()))
        assert self.state() == before
        return found


@pytest.fixture
def tree(stopped: Path, tmp_path: Path) -> Tree:
    shutil.copytree(stopped, tmp_path / "copy")
    return Tree(tmp_path / "copy")


@pytest.fixture
def torn(killed: Path, tmp_path: Path) -> Tree:
    shutil.copytree(killed, tmp_path / "copy")
    return Tree(tmp_path / "copy")


def run(capfd: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    """The command, in this process."""
    code = main(arguments)
    said = capfd.readouterr()
    return code, said.out, said.err


# --- verify ---------------------------------------------------------------------------------


def test_a_stopped_directory_is_sound(tree: Tree, capfd: pytest.CaptureFixture[str]) -> None:
    assert tree.verify() == []
    code, out, err = run(capfd, "verify", str(tree.root))
    assert (code, "all sound" in err) == (0, True)
    assert out.startswith("checked 2 checkpoints, ")
    assert "2 logs, 5 segments, 14 batches, 21 records" in out


def test_a_killed_servers_directory_is_sound(torn: Tree) -> None:
    assert [each for each in torn.verify() if each.damage] == []


def test_each_checkpoint_is_checked(tree: Tree, capfd: pytest.CaptureFixture[str]) -> None:
    old, new = tree.names("checkpoint-*")
    tree.flip(new, 40)
    (finding,) = tree.verify()
    assert (finding.damage, finding.file) == (True, new)
    assert "CRC is" in finding.text
    assert "stored is" in finding.text
    tree.flip(old, 5)
    assert [each.file for each in tree.verify()] == [old, new, ""]
    code, out, _ = run(capfd, "verify", str(tree.root))
    assert code == 5
    assert f"damage  {old}, position 0: checkpoint: content has" in out


def test_damaged_facts_are_found_and_named(tree: Tree) -> None:
    # Above the older checkpoint, which is what the chain is for.
    above = int(tree.names("checkpoint-*")[0][-20:])
    view = next(v for v in tree.frames() if v.seen.head.number == above + 2)
    tree.flip(view.seen.file, view.seen.position + frame.HEAD_BYTES)
    (finding,) = tree.verify()
    assert finding.damage
    assert f"frames {above + 2} to" in finding.text


def test_a_damaged_body_in_the_journal_is_named(torn: Tree) -> None:
    view = torn.frames()[-4]
    tree_end = view.seen.position + view.seen.head.length
    torn.flip(view.seen.file, tree_end - 10)
    (finding,) = (each for each in torn.verify() if each.damage)
    assert finding.log in ("a", "b")
    assert finding.end is not None
    assert f"frame {view.seen.head.number}: body CRC" in finding.text


@pytest.mark.parametrize("position", [9, HEADER_BYTES + 50], ids=["header", "body"])
def test_a_damaged_batch_is_named(
    tree: Tree, position: int, capfd: pytest.CaptureFixture[str]
) -> None:
    segment = path(1, 2)
    tree.flip(segment, position)
    (finding,) = tree.verify()
    assert finding[2:] == (segment, 0, "a", 2, 3)
    code, out, err = run(capfd, "verify", str(tree.root))
    assert code == 5
    assert f"damage  log a, offsets 2 to 3 ({segment}, position 0):" in out
    assert "damage" in err
    code, out, err = run(capfd, "verify", "-o", "json", str(tree.root))
    assert code == 5
    told = json.loads(out)
    assert told["damaged"] is True
    assert told["findings"][0]["file"] == segment


def test_a_short_and_a_missing_segment_are_named(tree: Tree) -> None:
    segment = tree.root / path(1, 0)
    segment.write_bytes(segment.read_bytes()[:4000])
    (finding,) = tree.verify()
    assert (finding.file, finding.log, finding.first, finding.end) == (path(1, 0), "a", 1, 2)
    segment.unlink()
    (finding,) = tree.verify()
    assert (finding.log, finding.first, finding.end) == ("a", 0, 2)
    assert "not there" in finding.text


def test_a_torn_tail_is_no_damage(torn: Tree) -> None:
    last = torn.frames()[-1].seen
    file = torn.root / last.file
    data = bytearray(file.read_bytes())
    data[last.end : last.end + 300] = b"RLF" + b"?" * 297
    file.write_bytes(data)
    (finding,) = torn.verify()
    assert (finding.damage, finding.file, finding.position) == (False, last.file, last.end)
    assert "torn tail" in finding.text


def test_the_unfinished_page_that_the_checkpoint_has_may_be_torn(tree: Tree) -> None:
    tree.flip(path(2, 0), 100)  # log b is smaller than a page: recovery puts all of it back
    assert tree.verify() == []


def test_strangers_are_noted(tree: Tree) -> None:
    (tree.root / "logs/1/note.txt").write_text("hello")
    (finding,) = tree.verify()
    assert (finding.damage, finding.file) == (False, "logs/1/note.txt")


def test_a_directory_without_checkpoints_is_damaged(tree: Tree) -> None:
    for name in tree.names("checkpoint-*"):
        (tree.root / name).unlink()
    (finding,) = tree.verify()
    assert finding == Finding(True, "there is no checkpoint")


# --- inspect --------------------------------------------------------------------------------


def rows(capfd: pytest.CaptureFixture[str], *arguments: str) -> list[dict[str, Any]]:
    code, out, err = run(capfd, "inspect", "-o", "jsonl", *arguments)
    assert code == 0, err
    return [json.loads(line) for line in out.splitlines()]


def of_kind(found: list[dict[str, Any]], kind: str) -> list[dict[str, Any]]:
    return [row for row in found if row["kind"] == kind]


def test_the_overview_of_a_directory(tree: Tree, capfd: pytest.CaptureFixture[str]) -> None:
    before = tree.state()
    found = rows(capfd, str(tree.root))
    assert [row["crc"] == row["crc_computed"] for row in of_kind(found, "checkpoints")] == [
        True
    ] * 2
    assert {row["damage"] for row in of_kind(found, "journal")} == {None}
    logs = of_kind(found, "logs")
    assert [(row["name"], row["end"], row["consumers"]) for row in logs] == [
        ("a", 7, {"me": 7}),
        ("b", 14, {}),
    ]
    code, out, _ = run(capfd, "inspect", str(tree.root))
    assert code == 0
    assert out.startswith("# checkpoints\n")
    code, out, _ = run(capfd, "inspect", "-o", "json", str(tree.root))
    assert json.loads(out).keys() == {"checkpoints", "journal", "logs"}
    assert tree.state() == before


def test_segments_batches_records_and_frames(tree: Tree, capfd: pytest.CaptureFixture[str]) -> None:
    found = rows(capfd, str(tree.root), "--segments", "--batches", "--records", "--frames")
    segments = [row for row in of_kind(found, "segments") if row["log"] == "a"]
    assert [(row["first"], row["end"]) for row in segments] == [(0, 2), (2, 4), (4, 6), (6, 7)]
    batches = of_kind(found, "batches")
    assert all(row["body_crc"] == row["body_crc_computed"] for row in batches)
    records = [row for row in of_kind(found, "records") if row["log"] == "b"]
    assert [row["offset"] for row in records] == list(range(14))
    assert records[0]["value"] == "small 0"
    assert records[1]["value_b64"] == "/w=="
    frames = of_kind(found, "frames")
    assert [row["number"] for row in frames] == list(range(1, len(frames) + 1))
    kinds = [fact["fact"] for row in frames for fact in row["facts"]]
    assert {"opened", "created", "appended", "claimed", "committed", "released"} == set(kinds)
    # In a table, too.
    code, out, _ = run(capfd, "inspect", str(tree.root), "--records", "--frames", "-n", "3")
    assert code == 0
    assert len(out.splitlines()) == 2 * (1 + 1 + 3) + 1


def test_a_log_of_a_directory_and_one_batch_of_it_in_hex(
    tree: Tree, capfd: pytest.CaptureFixture[str]
) -> None:
    found = rows(capfd, str(tree.root), "--log", "b", "--batches")
    assert {row["log"] for row in found} == {"b"}
    code, out, _ = run(capfd, "inspect", str(tree.root), "--log", "b", "--hex", "3")
    assert code == 0
    position = found[1]["position"]
    assert f"\n{position:08x}  52 4c 42 01 " in out
    assert "|RLB" in out
    assert run(capfd, "inspect", str(tree.root), "--log", "b", "--hex", "99")[0] == 3
    assert run(capfd, "inspect", str(tree.root), "--log", "nope")[0] == 3
    assert run(capfd, "inspect", str(tree.root), "--hex", "0")[0] == 2


def test_single_files(tree: Tree, capfd: pytest.CaptureFixture[str]) -> None:
    batches = rows(capfd, str(tree.root / path(1, 2)))
    assert [(row["first"], row["damage"]) for row in batches] == [(2, None), (3, None)]
    frames = rows(capfd, str(tree.root / tree.names(f"{DIRECTORY}/0*")[0]))
    assert [fact["fact"] for fact in frames[0]["facts"]] == ["opened"]
    found = rows(capfd, str(tree.root / tree.names("checkpoint-*")[1]))
    assert [row["kind"] for row in found] == ["checkpoints", "logs", "logs"]
    # A copy by another name is known by how it begins.
    shutil.copy(tree.root / path(1, 2), tree.root / "copy")
    assert len(rows(capfd, str(tree.root / "copy"), "--records")) == 2
    (tree.root / "letter").write_text("dear")
    assert run(capfd, "inspect", str(tree.root / "letter"))[0] == 1


def test_where_a_segment_stops_being_valid(tree: Tree, capfd: pytest.CaptureFixture[str]) -> None:
    tree.flip(path(1, 2), 9)
    damaged, sound = rows(capfd, str(tree.root), "--batches", "--log", "a")[2:4]
    assert (damaged["first"], damaged["end"], damaged["position"]) == (2, 3, 0)
    assert "header CRC is" in damaged["damage"]
    assert (sound["first"], sound["damage"]) == (3, None)
    lost = [row for row in rows(capfd, str(tree.root), "--records") if row["damage"]]
    assert [(row["offset"], row["end"]) for row in lost] == [(2, 3)]
    tree.flip(path(1, 4), 500)
    (row,) = (r for r in rows(capfd, str(tree.root / path(1, 4))) if r["damage"])
    assert row["body_crc"] != row["body_crc_computed"]


def test_where_and_why_a_journal_file_stops_being_valid(
    tree: Tree, capfd: pytest.CaptureFixture[str]
) -> None:
    views = [view for view in tree.frames() if view.seen.head.number in (3, 4)]
    victim = views[0].seen
    raw = (tree.root / victim.file).read_bytes()
    tree.flip(victim.file, raw.index(b"file_roll_size", victim.position))  # it unpacks all the same
    found = rows(capfd, str(tree.root), "--frames")
    (stop,) = (row for row in found if row["damage"])
    assert (stop["file"], stop["position"]) == (victim.file, victim.position)
    assert "frame CRC is" in stop["damage"]
    assert f"stored is {victim.head.crc:08x}" in stop["damage"]
    assert stop["facts"][0]["fact"] == "?"
    assert stop["facts"][0]["unpacked"][0] in (2, 3)
    assert [row["number"] for row in found[:3]] == [1, 2, None]


def test_a_torn_directory_shows_what_recovery_will_do(
    torn: Tree, capfd: pytest.CaptureFixture[str]
) -> None:
    for name in torn.names("logs/1/*"):
        if int(name[-24:-4]) >= 6:
            (torn.root / name).unlink()  # as if nothing of it had come to the disk
    found = rows(capfd, str(torn.root), "--batches", "--log", "a")
    unlaid = [row for row in found if row["damage"]]
    assert unlaid
    assert any("not laid out, but in the journal" in row["damage"] for row in unlaid)
    newest = torn.names("checkpoint-*")[1]
    torn.flip(newest, 30)
    torn.flip(torn.names("checkpoint-*")[0], 30)
    code, out, err = run(capfd, "inspect", str(torn.root))
    assert code == 0
    assert "none of the checkpoints is whole" in out + err


def journal_file(tmp_path: Path, packed: bytes) -> Path:
    raw, _, _ = frame.encode(frame.Frame(1, packed, []), 7, 1, 0, 0)
    file = tmp_path / "0000000001"
    file.write_bytes(raw.ljust(65536, b"\0"))
    return file


def test_unknown_facts_are_unpacked_as_far_as_they_go(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    strange = msgpack.packb([[1], [99, "from", {"the": b"\xff"}], [2, b"no header"]])
    (row,) = rows(capfd, str(journal_file(tmp_path, strange)))
    assert row["number"] == 1
    assert "unknown facts" in row["damage"]
    assert row["facts"][1] == {"fact": "?", "unpacked": [99, "from", {"the": "ff"}]}


def test_garbage_facts_are_no_obstacle(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for garbage in (b"", b"\xc1", b"\xdd\xff\xff\xff\xff", b"\x93\x91", b"\xc4\x05"):
        (row,) = rows(capfd, str(journal_file(tmp_path, garbage)))
        assert "unknown facts" in row["damage"]


def frame_with(value: bytes) -> tuple[bytes, bytes]:
    """A frame of one append of one value -> its header with facts, and its body."""
    produced = batch.encode([value])
    fact = facts.Appended(batch.stamp(produced, 1, 0, 1))
    body = bytes(produced[HEADER_BYTES:])
    return frame.encode(frame.Frame(1, facts.encode([fact]), [body]), 7, 1, 0, 0)[0], body


def test_a_frame_inside_a_body_is_not_one_of_the_journal(tmp_path: Path) -> None:
    # A body is its user's, and may hold a journal, also where a frame could begin.
    inner = frame.encode(frame.Frame(1, facts.encode([facts.Opened()]), []), 7, 99, 0, 0)[0]
    inside = inner.ljust(4096, b"\0")
    head, body = frame_with(bytes(4096) + inside)
    shift = -(len(head) + body.index(inner)) % 4096
    head, body = frame_with(bytes(4096 + shift) + inside)
    assert (len(head) + body.index(inner)) % 4096 == 0
    file = tmp_path / "0000000001"
    file.write_bytes((head + body).ljust(65536, b"\0"))
    found = list(offline.frames(Disk(str(tmp_path)).open(file.name, write=False), file.name))
    assert [v.seen.head.number for v in found if isinstance(v, FrameView)] == [1]
    assert not [v for v in found if isinstance(v, Stop)]


# --- beside a running server ----------------------------------------------------------------


@pytest.fixture
def running(server: ServerProcess) -> Iterator[ServerProcess]:
    yield server
    assert server.log().count("WARNING") == 0


def test_inspect_beside_a_running_server(rlog: Rlog, log: str, running: ServerProcess) -> None:
    rlog.ok("append", log, input=b"one\ntwo\n")
    found = rlog.ok("inspect", str(running.data_dir), "--records", "--log", log, "-o", "jsonl")
    assert [json.loads(line)["value"] for line in found.splitlines()] == ["one", "two"]
    rlog.ok("inspect", str(running.data_dir))
    rlog.ok("append", log, input=b"three\n")


def test_inspect_online(rlog: Rlog, log: str) -> None:
    rlog.ok("append", log, input=b"one\ntwo\n")
    rlog.ok("append", log, "-k", "k", input=b"three\n")
    told = json.loads(rlog.ok("inspect", log, "--segments", "--batches", "--records", "-o", "json"))
    assert [row["end"] for row in told["logs"]] == [3]
    assert [(row["first"], row["end"]) for row in told["segments"]] == [(0, 3)]
    assert [(row["first"], row["body_crc"]) for row in told["batches"]] == [
        (row["first"], row["body_crc_computed"]) for row in told["batches"]
    ]
    assert [row["value"] for row in told["records"]] == ["one", "two", "three"]
    assert told["records"][2]["key"] == "k"
    assert b"|RLB" in rlog.ok("inspect", log, "--hex", "2")
    assert b"segments" in rlog.ok("inspect", log)
    assert rlog("inspect", log, "--frames").returncode == 2


def test_reserved_space_is_told_from_what_was_written() -> None:
    assert offline.only_zeros(lambda p, n: b"\0" * min(n, 10 - p), 0, 10)
    assert not offline.only_zeros(lambda p, n: b"\1" * min(n, 10 - p), 0, 10)


def test_a_transaction_is_shown_with_all_that_it_did(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    directory = str(tmp_path / "data")
    with rlog.open(directory, journal_file_size=65536) as client:
        client.log("a", create=True).append(b"x")
        client.log("b", create=True)
        with client.log("a").consumer("me") as consumer, client.transaction() as transaction:
            transaction.append("b", b"y")
            transaction.append("b", b"z")
            transaction.commit(consumer, next(consumer))
    [frame] = [
        row["facts"]
        for row in of_kind(rows(capfd, directory, "--frames"), "frames")
        if any(fact["fact"] == "transacted" for fact in row["facts"])
    ]
    assert [fact["fact"] for fact in frame] == ["appended", "committed", "transacted"]
    transacted = frame[-1]
    assert (transacted["number"], transacted["appends"]) == (1, [[2, 0, 2]])
    assert transacted["client"] > 0
    code, out, _ = run(capfd, "inspect", directory, "--frames")
    assert (code, "transacted client=" in out) == (0, True)

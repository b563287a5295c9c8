"""Recovery judges everything before it writes anything, and what it does, it says."""

from __future__ import annotations

from struct import pack
from typing import TYPE_CHECKING

import pytest
from crc32c import crc32c

from rlog import facts, frame
from rlog.journal import Refused, scan
from rlog.recovery import Recovered, recover
from rlog_client.batch import HEADER_BYTES
from tests.storage.build import flip
from tests.storage.rot import Directory, judge, small
from tests.storage.server import FILE_BYTES, ROLL, START_NS, Server
from tests.storage.simdisk import PAGE, Choice, Fill, SimDisk

if TYPE_CHECKING:
    from collections.abc import Callable

NOTHING = Choice(0, Fill.OLD, 1)
CHANGES = ("write", "truncate", "allocate", "create", "rename", "unlink", "remove_directory")


def start(disk: SimDisk) -> Recovered:
    return recover(disk, file_bytes=FILE_BYTES, journal_id=7, now_ns=START_NS)


def refused(disk: SimDisk) -> str:
    """Refused for a reason, and not one byte or name is different."""
    before, names = disk.tree(), {path: disk.names(path) for path in ("", "journal", "logs")}
    calls = {kind: disk.calls[kind] for kind in CHANGES}
    with pytest.raises(Refused) as error:
        start(disk)
    assert disk.tree() == before
    assert {path: disk.names(path) for path in names} == names
    assert {kind: disk.calls[kind] for kind in CHANGES} == calls
    return str(error.value)


@pytest.fixture(scope="module")
def rest() -> Directory:
    return Directory(small, at_rest=True)


@pytest.fixture
def disk(rest: Directory) -> SimDisk:
    return rest.disk.copy()


def used(disk: SimDisk) -> list[str]:
    """The journal files that hold frames, in order."""
    names = [f"journal/{name}" for name in disk.names("journal") if name.isdecimal()]
    return [name for name in names if list(scan(disk.open(name), name, None, 0))]


# --- a torn tail --------------------------------------------------------------------------------


def torn() -> tuple[SimDisk, Server]:
    """The last frame, which nobody synced, lost its second page."""
    disk = SimDisk()
    server = Server(disk, file_bytes=16 * PAGE)
    server.create("n", sync="never", file_roll_size=16 * ROLL)
    server.batch("n", b"00000001")
    server.driver.journal.wait(server.driver.journal.tail())
    server.batch("n", b"00000002" + bytes(range(256)) * 20)
    units, journal = disk.units(), disk.nodes_below("journal")
    pages = [i for i, unit in enumerate(units) if unit.node in journal and unit.kind == "page"]
    left = disk.crash(Choice(1 << pages[0], Fill.OLD, 1))
    return left, server


def test_a_torn_tail_is_cut_quarantined_and_reported_once() -> None:
    disk, server = torn()
    number = server.driver.journal.tail()
    [name] = used(disk)
    first = start(disk)
    assert first.state.logs[1].end == 1
    assert first.journal.tail() == number - 1
    [report] = first.reports
    assert f"{name} at " in report
    assert f"behind frame {number - 1} are a torn tail, copied to quarantine/" in report
    assert f"frame {number}, perhaps acknowledged: 1 facts; log 1 offsets 1 to 2" in report
    [kept] = disk.names("quarantine")
    assert f"copied to quarantine/{kept};" in report
    position = (number - 1) * PAGE
    assert disk.contents(f"quarantine/{kept}") == disk.contents(name)[position:].rstrip(b"\0")
    # It is durable before anything is done that could make it wrong.
    assert disk.crash(NOTHING).contents(f"quarantine/{kept}") == disk.contents(f"quarantine/{kept}")
    # The server that comes up goes on elsewhere; the next one has nothing to report.
    disk, _ = torn()
    again = Server(disk)
    again.batch("n", b"00000003")
    names = disk.names("quarantine")
    for left in (disk.killed(), disk.crash(NOTHING)):
        assert start(left).reports == []
        assert left.names("quarantine") == names


def test_a_recovery_that_was_cut_sets_the_torn_tail_aside_again_beside_the_first() -> None:
    disk, _ = torn()
    start(disk)
    start(disk)
    first, second = disk.names("quarantine")
    assert second == f"{first}.1"
    assert disk.contents(f"quarantine/{first}") == disk.contents(f"quarantine/{second}")


# --- refusals write nothing ---------------------------------------------------------------------


def test_a_frame_that_is_proven_and_lost_is_refused_and_nothing_is_written(
    rest: Directory,
) -> None:
    first = rest.moments[0].number
    proven = rest.moments[-1].number - 1  # the witness itself has nothing behind it
    lost = 0
    for name in used(rest.disk):
        for seen in scan(rest.disk.open(name), name, None, 0):
            if not first < seen.head.number <= proven:
                continue
            disk = rest.disk.copy()
            contents, begin = disk.contents(name), seen.position
            disk.replace(name, contents[:begin] + bytes(PAGE) + contents[begin + PAGE :])
            assert f"frames {seen.head.number} to {proven} were synced" in refused(disk)
            lost += 1
    assert lost > 5


def resealed(raw: bytes, begin: int, changed: Callable[[bytearray], None]) -> bytes:
    """A frame at ``begin`` changed, under a CRC that is right."""
    data = bytearray(raw)
    _length, facts_bytes = frame.peek(data[begin : begin + frame.HEAD_BYTES]) or (0, 0)
    whole = bytearray(data[begin : begin + frame.HEAD_BYTES + facts_bytes])
    changed(whole)
    crc = crc32c(bytes(whole[frame.HEAD_BYTES :]), crc32c(bytes(whole[: frame.HEAD_BYTES - 4])))
    whole[frame.HEAD_BYTES - 4 : frame.HEAD_BYTES] = pack("<I", crc)
    data[begin : begin + len(whole)] = whole
    return bytes(data)


def with_frame(disk: SimDisk, number: int, changed: Callable[[bytearray], None]) -> str:
    """Change a frame in its file. -> the file's name"""
    for name in used(disk):
        for seen in scan(disk.open(name), name, None, 2**63):
            if seen.head.number == number:
                disk.replace(name, resealed(disk.contents(name), seen.position, changed))
                return name
    raise AssertionError(number)


def test_a_frame_of_another_version_is_refused(rest: Directory, disk: SimDisk) -> None:
    def newer(raw: bytearray) -> None:
        raw[3] = 2

    with_frame(disk, rest.moments[0].number + 1, newer)
    assert "frame version 2 is not known here" in refused(disk)


def test_a_frame_with_an_unknown_fact_is_refused(rest: Directory, disk: SimDisk) -> None:
    def unknown(raw: bytearray) -> None:
        assert raw[frame.HEAD_BYTES] & 0xF0 == 0x90  # an array of facts, each an array
        raw[frame.HEAD_BYTES + 2] = 0x63

    number = rest.moments[0].number + 1
    name = with_frame(disk, number, unknown)
    text = refused(disk)
    assert f"frame {number} holds facts unknown here" in text
    assert name in text


def test_a_batch_of_another_version_is_refused(rest: Directory, disk: SimDisk) -> None:
    def newer(raw: bytearray) -> None:
        found = facts.decode(bytes(raw[frame.HEAD_BYTES :]))
        [appended] = [fact for fact in found if isinstance(fact, facts.Appended)]
        header = bytearray(appended.header)
        header[3] = 2
        header[-4:] = pack("<I", crc32c(bytes(header[:-4])))
        raw[frame.HEAD_BYTES :] = facts.encode([facts.Appended(bytes(header))])
        assert len(header) == HEADER_BYTES

    number = rest.moments[0].number + 1
    name = with_frame(disk, number, newer)
    text = refused(disk)
    assert f"frame {number} holds facts unknown here" in text
    assert "version 2" in text
    assert name in text


@pytest.mark.parametrize("which", [0, -1])
def test_a_checkpoint_of_another_version_is_refused(disk: SimDisk, which: int) -> None:
    name = [name for name in disk.names("") if name.startswith("checkpoint-")][which]
    raw = bytearray(disk.contents(name))
    raw[3] = 2
    raw[8:12] = pack("<I", crc32c(bytes(raw[12:]), crc32c(bytes(raw[:8]))))
    disk.replace(name, bytes(raw))
    text = refused(disk)
    assert name in text
    assert "version 2 is not known here" in text


def test_frames_of_another_version_without_a_checkpoint_are_refused(disk: SimDisk) -> None:
    def newer(raw: bytearray) -> None:
        raw[3] = 2

    name = used(disk)[0]
    with_frame(disk, next(scan(disk.open(name), name, None, 0)).head.number, newer)
    for name in disk.names(""):
        if name.startswith("checkpoint"):
            disk.unlink(name)
    assert "frame version 2" in refused(disk)


# --- whose directory it is ----------------------------------------------------------------------


def touched(disk: SimDisk, path: str, contents: bytes = b"mine") -> None:
    parts = path.split("/")[:-1]
    for depth in range(len(parts)):
        disk.make_directory("/".join(parts[: depth + 1]))
    disk.create(path).write(0, [contents])


@pytest.mark.parametrize("path", ["thesis.txt", "src/main.c", ".hidden"])
def test_a_strangers_directory_is_refused(path: str) -> None:
    disk = SimDisk()
    touched(disk, path)
    assert "not a data directory, and not empty" in refused(disk)


@pytest.mark.parametrize("path", ["lock", "lost+found/x", "reserve", "journal/new"])
def test_what_may_stand_in_an_empty_directory_is_in_nobodys_way(path: str) -> None:
    disk = SimDisk()
    touched(disk, path)
    assert start(disk).reports == []


def test_frames_or_segments_without_a_checkpoint_are_refused(disk: SimDisk) -> None:
    for name in disk.names(""):
        if name.startswith("checkpoint"):
            disk.unlink(name)
    assert "holds frames, but there is no checkpoint" in refused(disk)
    for name in disk.names("journal"):
        disk.unlink(f"journal/{name}")
    assert "holds segments, but there is no checkpoint" in refused(disk)


# --- checkpoints --------------------------------------------------------------------------------


def test_a_damaged_newest_checkpoint_is_set_aside_for_the_one_before_it(
    rest: Directory, disk: SimDisk
) -> None:
    older, newest = [name for name in disk.names("") if name.startswith("checkpoint-")]
    bad = flip(disk.contents(newest), 30)
    disk.replace(newest, bad)
    found = start(disk)
    assert found.marks == [int(older.rpartition("-")[2])]
    [report] = found.reports
    assert report.startswith(f"{newest} is damaged (CRC is ")
    assert newest not in disk.names("")
    [aside] = disk.names("quarantine")
    assert aside.endswith(newest)
    assert disk.contents(f"quarantine/{aside}") == bad
    assert found.state.logs[1].end == rest.moments[-1].ends["a"][1]
    # Two whole ones are kept again as soon as there is another.
    disk = rest.disk.copy()
    disk.replace(newest, bad)
    server = Server(disk)
    server.batch("a", b"99999999")
    server.checkpoint()
    kept = [name for name in disk.names("") if name.startswith("checkpoint-")]
    assert kept[0] == older
    assert len(kept) == 2


def test_the_name_of_a_damaged_checkpoint_proves_the_frames_that_are_lost_with_it() -> None:
    disk = SimDisk()
    server = Server(disk, file_bytes=16 * PAGE)
    server.create("a", sync="always")
    marks = []
    for step in range(2):
        server.batch("a", b"%08d" % step)
        server.checkpoint()
        marks.append(server.driver.journal.tail())
    left = disk.crash(NOTHING)
    newest = [name for name in left.names("") if name.startswith("checkpoint-")][-1]
    left.replace(newest, b"rot")
    for name in used(left):
        for seen in scan(left.open(name), name, None, 0):
            if seen.head.number > marks[0]:
                contents = left.contents(name)
                zeros = bytes(len(contents) - seen.position)
                left.replace(name, contents[: seen.position] + zeros)
                break
    assert f"frames {marks[0] + 1} to {marks[1]} were synced" in refused(left)


def test_nothing_is_used_again_that_the_older_checkpoint_needs(disk: SimDisk) -> None:
    """At every moment of a long life, the older checkpoint and the journal give the same."""
    server = Server(disk)
    before = server.driver.journal.tail()
    for step in range(30):
        server.batch("a", b"%08d" % (90_000_000 + step) + bytes(900 * (step % 7)))
        if step % 5 == 4:
            server.checkpoint()
        left = disk.crash(NOTHING)
        names = [name for name in left.names("") if name.startswith("checkpoint-")]
        left.replace(names[-1], b"rot")
        found = start(left)
        assert found.journal.tail() == server.driver.journal.tail()
        assert found.state.logs[1].end == server.driver.broker.books.state.logs[1].end
    assert server.driver.journal.tail() >= before + 30
    # And what neither needs is used again: the journal does not grow.
    assert len(disk.names("journal")) < 12


# --- leftovers ----------------------------------------------------------------------------------


def test_what_a_trim_or_a_deletion_left_behind_is_removed() -> None:
    disk = SimDisk()
    server = Server(disk)
    for name in ("a", "d"):
        server.create(name, sync="always", file_roll_size=ROLL)
        for step in range(3):
            server.batch(name, b"%08d" % (len(server.history.sent) + 1) + bytes(3900 + step))
    server.checkpoint()
    server.trim("a", 2)
    server.delete("d")
    left = disk.crash(NOTHING)  # the facts are synced, the names are not
    assert [n for n in left.names("logs/1") if n.startswith("0")] != disk.names("logs/1")
    assert left.names("logs/2")
    found = start(left)
    assert left.names("logs/1") == disk.names("logs/1")
    assert left.names("logs") == ["1"]
    assert found.reports == []
    assert "quarantine" not in left.names("")


def test_what_nothing_explains_is_set_aside_and_named(disk: SimDisk) -> None:
    strange = {
        "logs/1/00000000000000009999.seg": b"a segment of nothing",
        "logs/1/notes.txt": b"not a segment",
        "logs/1/7.seg": b"nor is this",
        "logs/3/00000000000000000000.seg": b"of the log that would be the next",
        "logs/99/00000000000000000000.seg": b"of a log that never was",
        "logs/mine/letter": b"dear",
    }
    for path, contents in strange.items():
        touched(disk, path, contents)
    found = start(disk)
    assert sorted(disk.contents(f"quarantine/{name}") for name in disk.names("quarantine")) == (
        sorted(strange.values())
    )
    for path in strange:
        assert any(f"{path} belongs to nothing here; set aside as" in r for r in found.reports)
    assert len(found.reports) == len(strange)
    assert disk.names("logs") == ["1", "2"]
    assert start(disk).reports == []


def test_a_file_that_is_no_directory_of_a_log_is_set_aside_and_named(disk: SimDisk) -> None:
    touched(disk, "logs/README")
    found = start(disk)
    assert found.state.logs
    assert "README" not in disk.names("logs")


def test_space_that_was_reserved_and_not_used_is_given_back(disk: SimDisk) -> None:
    disk.create("logs/1/00000000000000009999.seg").allocate(0, ROLL)
    assert start(disk).reports == []
    assert disk.names("quarantine") == []
    assert "00000000000000009999.seg" not in disk.names("logs/1")


# --- segments -----------------------------------------------------------------------------------


def test_a_segment_that_lost_its_end_or_all_of_it_is_reported_and_served_as_damage(
    rest: Directory, disk: SimDisk
) -> None:
    path = next(path for path in disk.paths() if path.startswith("logs/1/"))
    whole = disk.contents(path)
    disk.replace(path, whole[: len(whole) - 100])
    [report] = start(disk.copy()).reports
    assert f"{path} of log 'a' has {len(whole) - 100} bytes instead of {len(whole)}" in report
    assert judge(rest, disk).kind == "batch"
    disk = rest.disk.copy()
    disk.unlink(path)
    [report] = start(disk.copy()).reports
    assert f"has 0 bytes instead of {len(whole)}" in report
    assert judge(rest, disk).kind == "batch"


def test_bytes_behind_the_end_of_a_segment_are_cut(disk: SimDisk) -> None:
    path = [path for path in disk.paths() if path.startswith("logs/1/")][-1]
    whole = disk.contents(path)
    disk.replace(path, whole + b"never a part of it" * 300)
    found = start(disk)
    assert found.state.logs[1].segments[-1].bytes <= len(whole)
    assert disk.contents(path) == whole[: found.state.logs[1].segments[-1].bytes]


def test_a_damaged_body_of_the_journal_is_reported_with_its_offsets() -> None:
    made = Directory(small, at_rest=True, laid_out=False)
    disk = made.disk.copy()
    [name, *_] = [
        n for n in used(disk)
        if any(s.head.number == made.moments[1].number for s in scan(disk.open(n), n, None, 0))
    ]  # fmt: skip
    [seen] = [
        s for s in scan(disk.open(name), name, None, 0) if s.head.number == made.moments[1].number
    ]
    disk.replace(name, flip(disk.contents(name), seen.position + seen.head.length - 3))
    [report] = start(disk).reports
    assert f"frame {seen.head.number}: the batch of log 1, offsets " in report
    assert "is damaged in the journal" in report


def test_a_fact_that_does_not_fit_the_state_is_refused_by_its_name() -> None:
    made = Directory(small, at_rest=False)
    disk = made.disk.copy()
    number = made.moments[-1].number

    def misfit(raw: bytearray) -> None:
        length = len(raw) - frame.HEAD_BYTES
        fact = facts.encode([facts.Deleted(99)])
        padding = length - len(facts.encode([facts.Deleted(99), facts.Forgotten(9, "")]))
        raw[frame.HEAD_BYTES :] = facts.encode(
            [facts.Deleted(99), facts.Forgotten(9, "x" * (padding - 1))]
        )
        assert len(fact) < length
        assert len(raw) - frame.HEAD_BYTES == length

    with_frame(disk, number, misfit)
    assert f"frame {number}: Deleted does not fit the state" in refused(disk)

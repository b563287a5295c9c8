"""A repair loses what it names and nothing else, in silence or at all, whatever is damaged."""

from __future__ import annotations

import errno
import json
import random
import tracemalloc
from collections import Counter
from functools import cache
from typing import TYPE_CHECKING, Any

import pytest

from rlog import checkpoint as checkpoints
from rlog import facts, frame, state
from rlog.journal import Mark, Refused, Seen, scan
from rlog.offline import Counted, salvaged, verify
from rlog.repair import REPORT, carry_out, make_plan
from rlog.salvage import EPOCH_LEAP, Level, _named_by, chain
from rlog.segment import path
from rlog_client import batch
from tests.storage.build import JOURNAL, flip, frame_of
from tests.storage.mending import (
    DAMAGES,
    NOW_NS,
    Mended,
    covers,
    cut_anywhere,
    hurt,
    mend,
    start,
    work,
)
from tests.storage.rot import Directory
from tests.storage.server import ROLL, Server
from tests.storage.simdisk import PAGE, Choice, Fill, SimDisk, SimFile

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from tests.storage.explore import Payloads

SAMPLES = 3  # positions of each file, in CI
STRIDE = 149  # between positions of each file, in the long form


@cache
def directory(*, at_rest: bool = True, laid_out: bool = True) -> Directory:
    return Directory(work, at_rest=at_rest, laid_out=laid_out)


ALL: list[Any] = [
    pytest.param({"at_rest": rest, "laid_out": laid}, id=f"{'rest' if rest else 'busy'}-{laid}")
    for rest in (True, False)
    for laid in (True, False)
]


def tally(
    found: Iterable[tuple[str, Mended]],
    record_property: Callable[[str, object], None],
) -> Counter[str]:
    """Counts by what the repair cost; what went wrong is shown."""
    counts: Counter[str] = Counter()
    wrong = []
    for where, mended in found:
        counts["nothing to do" if mended.plan.empty else mended.plan.level.name] += 1
        if bool(mended.plan.lost) != (mended.plan.level > Level.NOTHING):
            wrong.append(f"{where}: {mended.plan.level.name}, {len(mended.plan.lost)} losses")
        wrong += [f"{where}: {each}" for each in mended.wrong]
    record_property("damaged directories repaired", sum(counts.values()))
    assert not wrong, "\n".join(wrong[:10])
    return counts


@pytest.mark.parametrize("kind", ALL)
def test_a_sound_directory_needs_no_repair(kind: dict[str, bool]) -> None:
    made = directory(**kind)
    mended = mend(made, made.disk.copy())
    assert mended.plan.empty
    assert not mended.wrong


@pytest.mark.parametrize("damage", DAMAGES)
def test_what_is_lost_is_named_and_the_rest_is_where_it_was(
    damage: str, long: bool, seed: int, record_property: Callable[[str, object], None]
) -> None:
    def cases() -> Iterable[tuple[str, Mended]]:
        rng = random.Random(f"{damage}{seed}")
        kinds = [kind.values[0] for kind in ALL]
        for kind in kinds if long else [rng.choice(kinds)]:
            made = directory(**kind)
            for name, contents in made.tree.items():
                if name == "reserve" or not contents:
                    continue
                every = range(rng.randrange(STRIDE), len(contents), STRIDE)
                some = [rng.randrange(len(contents)) for _ in range(SAMPLES)]
                for at in every if long else some:
                    disk = made.damaged(name, DAMAGES[damage](contents, at))
                    yield f"{name} of {kind}, {damage} at {at}", mend(made, disk)

    counts = tally(cases(), record_property)
    assert counts["LOSS"]
    assert counts["NOTHING"]


@pytest.mark.parametrize("kind", ALL)
def test_a_lost_file_is_named_or_had_from_elsewhere(
    kind: dict[str, bool], record_property: Callable[[str, object], None]
) -> None:
    def cases() -> Iterable[tuple[str, Mended]]:
        made = directory(**kind)
        for name in made.tree:
            disk = made.disk.copy()
            disk.unlink(name)
            yield name, mend(made, disk)

    counts = tally(cases(), record_property)
    assert counts["LOSS"]
    assert counts["NOTHING"]


def test_whatever_is_damaged_at_the_same_time(
    long: bool, seed: int, record_property: Callable[[str, object], None]
) -> None:
    def cases() -> Iterable[tuple[str, Mended]]:
        rng = random.Random(seed)
        for _ in range(6000 if long else 60):
            made = directory(**rng.choice(ALL).values[0])
            disk = made.disk.copy()
            done = hurt(disk, rng)
            yield f"seed {seed}: {done}", mend(made, disk)

    assert tally(cases(), record_property)["LOSS"]


@pytest.mark.parametrize(
    ("name", "at"),
    [
        ("logs/1/00000000000000000002.seg", 100),
        ("journal/0000000005", PAGE + 100),
        ("checkpoint-00000000000000000019", 40),
    ],
)
def test_killed_anywhere_it_is_repaired_by_another(
    name: str, at: int, long: bool, seed: int, record_property: Callable[[str, object], None]
) -> None:
    if not long and name.startswith("checkpoint"):
        pytest.skip("every way a file is replaced is tried by the others; with --long")
    made = directory(laid_out=False)
    disk = made.damaged(name, flip(made.tree[name], at))
    if not name.startswith("logs"):
        disk.replace("logs/1/00000000000000000002.seg", bytes(3988))
    wrong = list(cut_anywhere(made, disk, seed, 12 if long else 1))
    record_property("cut repairs repaired", 1)
    assert not wrong, "\n".join(wrong[:10])


# --- what is had from elsewhere -------------------------------------------------------------


def test_a_batch_that_is_damaged_in_its_segment_is_had_from_the_journal() -> None:
    def between_checkpoints(server: Server, payload: Payloads, directory: Directory) -> None:
        server.create("a", sync="always", file_roll_size=ROLL)
        for _ in range(2):
            server.checkpoint()
            for _ in range(3):
                server.batch("a", payload(3000))

    made = Directory(between_checkpoints, at_rest=True)
    name = path(1, 1)
    disk = made.damaged(name, flip(made.tree[name], 1500))
    mended = mend(made, disk)
    assert [(each.damage, each.first) for each in mended.plan.wrong] == [(True, 1)]
    assert mended.plan.level is Level.NOTHING
    assert not mended.wrong
    assert None not in Server(disk).view().logs["a"].records


def test_records_of_a_damaged_frame_are_had_from_their_segments_and_from_what_unpacks() -> None:
    for laid_out in (True, False):
        made = directory(laid_out=laid_out)
        seen = appended(made, 6)
        # In its time: everything else of it is as it was, and not to be believed.
        changed = flip(made.tree[seen.file], seen.position + 41)
        mended = mend(made, made.damaged(seen.file, changed))
        assert not mended.wrong
        assert mended.plan.level is Level.LOSS
        assert f"frames {seen.head.number} to {seen.head.number}" in mended.plan.lost[0].text
        assert "the offsets 6 to 8 of log a" in mended.plan.lost[0].text
        assert not any(each.first == 6 for each in mended.plan.lost)
        expected = [payload for place, payload in made.records.items() if place.log == "a"]
        assert Server(mended.disk).view().logs["a"].records[6:8] == expected[6:8]


def appended(made: Directory, base: int) -> Seen:
    """The frame above the checkpoint in which log a got this offset."""
    for name in (name for name in made.tree if name.startswith("journal/0")):
        for seen in scan(made.disk.open(name), name, None, 0):
            raw = made.disk.open(name).read(seen.position, seen.head.length)
            for fact in frame.facts_of(seen.head, raw):
                if isinstance(fact, facts.Appended):
                    header = batch.parse_header(fact.header)
                    if (header.log, header.base) == (1, base):
                        return seen
    raise AssertionError


# --- what is lost ---------------------------------------------------------------------------


def without_frame(laid_out: bool = False) -> tuple[Directory, Mended]:
    """A directory that lost a frame in the middle, with the offsets 6 and 7 of log a."""
    made = directory(laid_out=laid_out)
    seen = appended(made, 6)
    contents = bytearray(made.tree[seen.file])
    contents[seen.position : seen.position + PAGE] = bytes(PAGE)
    return made, mend(made, made.damaged(seen.file, bytes(contents)))


def test_a_lost_offset_is_a_declared_hole_and_the_others_stay_where_they_were() -> None:
    made, mended = without_frame()
    assert not mended.wrong
    assert [each for each in mended.plan.lost if covers(each, "a", 6)]
    disk = mended.disk
    log = Server(disk).view().logs["a"]
    expected = [payload for place, payload in made.records.items() if place.log == "a"]
    assert log.records[6:8] == [None, None]
    assert [*log.records[:6], *log.records[8:11]] == [*expected[:6], *expected[8:]]
    notes = [each for each in verify(disk, Counted()) if each.log == "a"]
    assert [(each.damage, each.first, each.end) for each in notes] == [(False, 6, 8)]
    assert "lost, as a repair declared" in notes[0].text


def test_a_declared_hole_outlives_compaction() -> None:
    made = directory(laid_out=False)
    disk = made.disk.copy()
    name = path(3, 0, 1)
    disk.replace(name, flip(made.tree[name], 20))
    mended = mend(made, disk)
    assert [each for each in mended.plan.lost if covers(each, "k", 0)]
    server = Server(disk)
    before = server.view().logs["k"]
    for number in range(12):
        server.batch("k", b"%08d" % (70_000_000 + number) + bytes(900), keys=[b"x"])
    assert server.compact()
    after = Server(disk).view().logs["k"].records[before.first :][: len(before.records)]
    assert [index for index, payload in enumerate(after) if payload is None] == [
        index for index, payload in enumerate(before.records) if payload is None
    ]
    assert not [each for each in verify(disk, Counted()) if each.damage]


def test_offsets_that_anything_names_are_not_given_again() -> None:
    """The last append is lost but for what names it: a cursor, a batch's header, a file's name."""
    made = directory(laid_out=False)
    last = appended(made, 10)
    contents = bytearray(made.tree[last.file])
    contents[last.position + 8] ^= 1  # the length of its facts: they unpack, its body is not found
    contents[last.position + 41] ^= 1
    mended = mend(made, made.damaged(last.file, bytes(contents)))
    assert not mended.wrong
    assert Server(mended.disk).view().logs["a"].end >= 11


def test_claims_are_over_and_their_epochs_rise_where_facts_are_lost() -> None:
    made, mended = without_frame()
    assert mended.plan.checkpoint is not None
    (log,) = (each for each in mended.plan.checkpoint.state.logs.values() if each.name == "a")
    before = made.moments[-1].cursors["a", "c"]
    assert log.cursors["c"].epoch == before[1] + EPOCH_LEAP
    assert log.cursors["c"].holder is None


def test_a_cursor_that_may_have_moved_back_is_named() -> None:
    made = directory()
    seen = next(
        each
        for name in made.tree
        if name.startswith("journal/0")
        for each in scan(made.disk.open(name), name, None, 0)
        if "Committed(log=4" in str(frame.facts_of(each.head, made.disk.open(name).read(
            each.position, each.head.length)))
    )  # fmt: skip
    zeroed = bytearray(made.tree[seen.file])
    zeroed[seen.position : seen.position + PAGE] = bytes(PAGE)
    mended = mend(made, made.damaged(seen.file, bytes(zeroed)))
    assert not mended.wrong
    told = [each.text for each in mended.plan.lost if each.log == "late"]
    assert any("the cursor of d stands at 0: it may have been further" in text for text in told)


def test_without_any_checkpoint_logs_keep_their_names_if_they_can_still_be_read() -> None:
    for length in (0, 50):
        made = directory()
        disk = made.disk.copy()
        for name in (name for name in made.tree if name.startswith("checkpoint")):
            disk.replace(name, flip(made.tree[name], 9) if length else b"")
        mended = mend(made, disk)
        assert not mended.wrong
        assert mended.plan.level is Level.LOSS
        logs = set(Server(disk).view().logs)
        assert logs == (
            {*"ank", "late"} if length else {f"recovered-{n}" for n in (1, 2, 3)} | {"late"}
        )
        told = " ".join(each.text for each in mended.plan.lost)
        assert ("not believed: the cursor of c stood at" in told) == bool(length)


def without_checkpoints(made: Directory) -> SimDisk:
    disk = made.disk.copy()
    for name in (name for name in made.tree if name.startswith("checkpoint")):
        disk.replace(name, b"rot")
    return disk


def test_what_may_have_been_before_the_first_file_of_a_log_made_anew_is_named() -> None:
    made = directory()
    disk = without_checkpoints(made)
    disk.unlink(path(1, 0))
    mended = mend(made, disk)
    assert not mended.wrong
    named = [
        (each.file, each.first, each.end)
        for each in mended.plan.lost
        if each.text.startswith("there may have been records before")
    ]
    assert named == [("logs/1", 0, 2)]


@pytest.mark.parametrize(("gone", "named"), [((), []), ((4,), [(4, 5)]), ((4, 5), [(4, 6)])])
def test_what_was_trimmed_by_a_fact_that_is_there_is_not_lost(
    gone: tuple[int, ...], named: list[tuple[int, int]]
) -> None:
    def trimmed(server: Server, payload: Payloads, directory: Directory) -> None:
        server.create("a", sync="always", file_roll_size=ROLL)
        server.batch("a", *(payload(100) for _ in range(3)))
        for _ in range(4):
            server.batch("a", payload(3000))
        server.checkpoint()
        server.checkpoint()
        server.trim("a", 4)
        server.batch("a", payload(100))

    made = Directory(trimmed, at_rest=True)
    disk = without_checkpoints(made)
    # That of the trim is the first fact left.
    blank_until(made, disk, facts.Trimmed)
    for base in gone:
        disk.unlink(path(1, base))
    plan = make_plan(disk, NOW_NS)
    told = [(each.first, each.end) for each in plan.lost if each.log]
    assert told == named
    carry_out(disk, plan)
    (log,) = Server(disk).view().logs.values()
    expected = [*made.records.values()]
    assert log.first == (named[0][1] if named else 4)
    assert log.records == expected[log.first :]


def blank_until(made: Directory, disk: SimDisk, kind: type[facts.Fact]) -> None:
    """Without the frames before the one with such a fact."""
    for name in (name for name in made.tree if name.startswith("journal/0")):
        for seen in scan(made.disk.open(name), name, None, 0):
            raw = made.disk.open(name).read(seen.position, seen.head.length)
            if any(isinstance(fact, kind) for fact in frame.facts_of(seen.head, raw)):
                return
            blank(disk, seen)
    raise AssertionError


def blank(disk: SimDisk, seen: Seen) -> None:
    contents = bytearray(disk.contents(seen.file))
    contents[seen.position : seen.end] = bytes(seen.end - seen.position)
    disk.replace(seen.file, bytes(contents))


def test_offsets_that_only_a_trim_names_are_not_given_again() -> None:
    def trimmed(server: Server, payload: Payloads, directory: Directory) -> None:
        server.create("a", sync="always", file_roll_size=ROLL)
        server.batch("a", payload(100))
        server.checkpoint()
        server.checkpoint()
        for _ in range(3):
            server.batch("a", payload(3000))
        server.trim("a", 3)

    made = Directory(trimmed, at_rest=True)
    disk = made.disk.copy()
    for base in (1, 2, 3):
        blank(disk, appended(made, base))
        if path(1, base) in made.tree:
            disk.unlink(path(1, base))
    mended = mend(made, disk)
    assert not mended.wrong
    assert mended.plan.checkpoint is not None
    (log,) = mended.plan.checkpoint.state.logs.values()
    assert (log.first, log.end) == (3, 3)


def test_what_is_parked_is_not_given_again_though_its_cursor_was_put_back() -> None:
    log = state.Log(1, "a", facts.Options(), end=3)
    log.cursors["c"] = state.Cursor(2, 1, parked={7: state.Parked("", "", 1, 0)})
    assert max(_named_by(log)) == 8


def test_what_a_killed_server_had_not_synced_is_before_its_journal_is_taken_away() -> None:
    disk = SimDisk()
    server = Server(disk, file_bytes=16 * PAGE)
    server.create("a", sync="always", file_roll_size=16 * ROLL)
    payloads = [b"%08d" % number + bytes(3000) for number in range(4)]
    for payload in payloads:
        server.batch("a", payload)
    left = disk.killed()  # what was laid out since the checkpoint is in the cache alone
    journal = [f"journal/{name}" for name in left.names("journal") if name.isdecimal()]
    name, seen = next(
        (name, each)
        for name in journal
        for each in scan(left.open(name), name, None, 0)
        if each.head.number == server.driver.journal.tail() - 1
    )
    left.replace(name, flip(left.contents(name), seen.position + 20))
    with pytest.raises(Refused):
        Server(left.copy())
    plan = make_plan(left, NOW_NS)
    carry_out(left, plan)
    assert plan.kept
    after = left.crash(Choice(0, Fill.OLD, 1))
    assert Server(after).view().logs["a"].records == payloads


def without_journal() -> tuple[Directory, SimDisk]:
    made = directory()
    disk = made.disk.copy()
    for name in made.tree:
        if name.startswith("journal/0"):
            disk.unlink(name)
    return made, disk


def test_a_journal_that_lost_the_frame_of_its_checkpoint_lost_what_came_behind_it() -> None:
    made, disk = without_journal()
    with pytest.raises(Refused, match="at which the checkpoint stands, is missing"):
        Server(disk.copy())
    mended = mend(made, disk)
    assert not mended.wrong
    assert "and all frames behind it are not there" in mended.plan.lost[0].text
    named = {each.log for each in mended.plan.lost if each.text.startswith("there may have been")}
    assert named >= {"a", "n", "k"}


@pytest.mark.parametrize("is_file", [True, False])
def test_the_name_of_a_damaged_checkpoint_proves_the_frame_that_it_stands_at(
    is_file: bool,
) -> None:
    made, disk = without_journal()
    newest = max(name for name in made.tree if name.startswith("checkpoint"))
    if is_file:
        disk.replace(newest, b"rot")
    else:
        disk.unlink(newest)
        disk.make_directory(newest)
    older = max(name for name in disk.tree() if name.startswith("checkpoint") and name != newest)
    # The frame of the older one is there, and nothing else.
    number = checkpoints.decode(disk.contents(older)).number
    first = min(name for name in made.tree if name.startswith("journal/0"))
    (seen,) = [
        each
        for name in made.tree
        if name.startswith("journal/0")
        for each in scan(made.disk.open(name), name, None, 0)
        if each.head.number == number
    ]
    disk.create(first).write(
        0, [made.tree[seen.file][: seen.end].ljust(len(made.tree[first]), b"\0")]
    )
    if is_file:
        with pytest.raises(Refused, match="were synced and are missing"):
            Server(disk.copy())
        assert not mend(made, disk.copy()).wrong
    plan = make_plan(disk, NOW_NS)
    assert "are missing or damaged" in plan.lost[0].text


def test_the_spare_file_is_asked_for_frames_that_are_missing() -> None:
    made = directory()
    last = max(name for name in made.tree if name.startswith("journal/0"))
    disk = made.disk.copy()
    disk.replace(last, bytes(len(made.tree[last])))
    if "journal/spare" not in disk.tree():
        disk.create("journal/spare")
    disk.replace("journal/spare", made.tree[last])
    with pytest.raises(Refused, match="journal/spare holds frame"):
        Server(disk.copy())
    mended = mend(made, disk)
    assert not mended.wrong
    assert not mended.plan.lost
    point = mended.plan.checkpoint
    assert point is not None
    assert {log.name: (log.first, log.end) for log in point.state.logs.values()} == (
        made.moments[-1].ends
    )


def test_a_torn_tail_is_named_where_a_start_would_be_refused() -> None:
    made = directory()
    disk = made.disk.copy()
    frames = [
        seen
        for name in made.tree
        if name.startswith("journal/0")
        for seen in scan(disk.open(name), name, None, 0)
    ]
    for seen in (appended(made, 6), max(frames, key=lambda each: each.head.number)):
        disk.replace(seen.file, flip(disk.contents(seen.file), seen.position + 41))
    mended = mend(made, disk)
    assert not mended.wrong
    told = " ".join(each.text for each in mended.plan.lost)
    last = max(each.head.number for each in frames)
    assert f"frames {last} to {last} are missing or damaged" in told


def test_a_damaged_length_takes_no_memory() -> None:
    raw = bytes(frame.HEAD_BYTES) + b"\xdd\x05\xff\xff\xff" * 100
    tracemalloc.start()
    try:
        assert salvaged(raw, len(raw) - frame.HEAD_BYTES) == []
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


# --- what stays as it is --------------------------------------------------------------------


def test_the_report_says_what_was_lost_and_put_back_everything_is_as_it_was() -> None:
    made = directory()
    name = path(1, 2)
    disk = made.damaged(name, flip(made.tree[name], 100))
    before = disk.tree()
    where = carry_out(disk, make_plan(disk, NOW_NS))
    told = json.loads(disk.contents(f"{where}/{REPORT}"))
    assert [(each["log"], each["first"], each["end"]) for each in told["lost"]] == [("a", 2, 3)]
    assert told["wrong"][0]["file"] == name
    for made_name in told["made"]:
        disk.unlink(made_name)
    for taken, original in told["taken"].items():
        disk.rename(taken, original)
    disk.unlink(f"{where}/{REPORT}")
    assert disk.tree() == before


def test_what_another_version_made_is_refused_and_not_touched() -> None:
    made = directory()
    newest = max(name for name in made.tree if name.startswith("checkpoint"))
    raw = bytearray(made.tree[newest])
    raw[3] = 9
    stored = checkpoints.crcs(bytes(raw))
    assert stored is not None
    raw[8:12] = stored[1].to_bytes(4, "little")
    disk = made.damaged(newest, bytes(raw))
    with pytest.raises(Refused, match="version 9 is not known"):
        make_plan(disk, NOW_NS)


def test_a_frame_that_was_given_up_is_not_taken_for_one_that_is_missing() -> None:
    """Number 12 of an earlier life, behind the lost 11; its successor began a file with 11 again,
    and is now damaged there.
    """
    disk = SimDisk()
    disk.make_directory("journal")

    def put(name: str, *raws: bytes) -> None:
        file = disk.create(f"journal/{name}")
        file.write(0, [b"".join(raw.ljust(PAGE, b"\0") for raw in raws)])

    ten, crc = frame_of([], number=10, previous=5, synced=9)
    stale, _ = frame_of([], facts.Deleted(7), number=12, previous=99, synced=10)
    thirteen, crc_13 = frame_of([], number=13, previous=77, synced=12)
    fourteen, _ = frame_of([], number=14, previous=crc_13, synced=13)
    put("0000000001", ten, b"rot", stale)
    put("0000000002", b"rot", b"rot", thirteen, fourteen)
    heads = [
        seen
        for name in ("journal/0000000001", "journal/0000000002")
        for seen in scan(disk.open(name), name, JOURNAL, 9)
    ]
    assert [seen.head.number for seen in heads] == [10, 12, 13, 14]
    taken, gaps = chain(disk, heads, Mark(9, 5), 13)
    assert [seen.head.number for seen in taken] == [10, 13, 14]
    assert [(gap.first, gap.last) for gap in gaps] == [(11, 12)]
    assert crc == heads[0].head.crc


class Sick(SimDisk):
    """A disk that cannot read one page of one file."""

    def open(self, path: str, *, write: bool = True) -> SimFile:
        file = super().open(path, write=write)
        return SickFile(self, file._node, writable=write) if path == path_that_is_sick else file


class SickFile(SimFile):
    def read(self, position: int, count: int) -> bytes:
        if position < 100 < position + count:
            raise OSError(errno.EIO, "Input/output error (simulated)")
        return super().read(position, count)


path_that_is_sick = path(1, 2)


def test_a_sector_that_cannot_be_read_is_damage_like_any_other() -> None:
    made = directory()
    disk = made.disk.copy()
    disk.__class__ = Sick
    plan = make_plan(disk, NOW_NS)
    assert plan.level is Level.LOSS
    assert [(each.log, each.first, each.end) for each in plan.lost] == [("a", 2, 3)]
    carry_out(disk, plan)
    log = Server(disk).view().logs["a"]
    assert [index for index, payload in enumerate(log.records) if payload is None] == [2]


def test_without_space_nothing_changes_and_none_is_taken() -> None:
    made = directory()
    name = path(1, 2)
    disk = made.damaged(name, flip(made.tree[name], 100))
    before = disk.tree()
    expected = start(disk)
    plan = make_plan(disk, NOW_NS)
    for free in range(12):
        tight = disk.copy()
        tight.free = free
        with pytest.raises(OSError, match="no space"):
            carry_out(tight, plan)
        assert tight.tree() == before
        tight.free = None
        assert start(tight) == expected
        assert make_plan(tight, NOW_NS).level is Level.LOSS

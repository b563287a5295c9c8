"""The journal in local files: what was appended is found again, in its order, or refused."""

from __future__ import annotations

import errno
import logging
import threading

import pytest

from rlog import facts, frame
from rlog.frame import Frame
from rlog.journal import (
    FRAME_OVERHEAD,
    LocalJournal,
    Mark,
    Outcome,
    Refused,
    batch_bytes_max,
    file_names,
    scan,
)
from rlog_client.batch import HEADER_BYTES
from tests.storage.build import JOURNAL, batch_of, flip, frame_of
from tests.storage.simdisk import PAGE, Choice, Failure, Fill, SimDisk

FILE = 6 * PAGE
NOTHING = Choice(0, Fill.OLD, 1)
BEGIN = Mark(0, 0)


def opened(
    disk: SimDisk, mark: Mark = BEGIN, proven: int = 0, file_bytes: int = FILE
) -> LocalJournal:
    journal = LocalJournal(disk, JOURNAL, file_bytes, mark, proven)
    assert journal.open() == file_bytes
    return journal


def made() -> tuple[SimDisk, LocalJournal]:
    disk = SimDisk()
    disk.make_directory("journal")
    disk.sync_directory("")
    return disk, opened(disk)


def item(*batches: bytes, more: tuple[facts.Fact, ...] = ()) -> Frame:
    found: list[facts.Fact] = [facts.Appended(each[:HEADER_BYTES]) for each in batches]
    return Frame(1000, facts.encode([*found, *more]), [each[HEADER_BYTES:] for each in batches])


def append(journal: LocalJournal, size: int = 10, *, wait: bool = True) -> int:
    number = journal.tail() + 1
    journal.append(item(batch_of([b"%d" % number + bytes(size)], base=number)), number)
    if wait:
        assert journal.wait(number) is Outcome.SYNCED
    return number


def numbers(journal: LocalJournal, begin: int = 1) -> list[int]:
    return [journal.read(n).head.number for n in range(begin, journal.tail() + 1)]


# --- where frames stand -------------------------------------------------------------------------


def test_what_was_appended_is_read_back_after_a_power_cut() -> None:
    disk, journal = made()
    for size in (10, 5000, 10, 9000, 3000, 10):
        append(journal, size)
    again = opened(disk.crash(NOTHING))
    assert numbers(again) == [1, 2, 3, 4, 5, 6]
    assert [len(again.read(n).bodies) for n in (1, 2)] == [1, 1]
    places = [again.place(n) for n in range(1, 7)]
    assert [place.head.number for place in places] == [1, 2, 3, 4, 5, 6]
    assert [(place.file, place.position) for place in places] == sorted(
        (place.file, place.position) for place in places
    )
    assert again.torn == []
    assert again.last == journal.last


def test_a_frame_begins_on_a_page_and_a_zero_page_stands_behind_it() -> None:
    disk, journal = made()
    append(journal, 5000)
    append(journal, 10)
    [name] = [name for name in file_names(disk) if any(disk.contents(name))]
    seen = list(scan(disk.open(name), name, JOURNAL, 0))
    assert [(s.position, s.end) for s in seen] == [(0, 2 * PAGE), (2 * PAGE, 3 * PAGE)]
    assert not any(disk.contents(name)[3 * PAGE : 4 * PAGE])


def test_the_zero_page_is_written_over_old_bytes_but_not_beyond_the_file() -> None:
    disk, journal = made()
    for _ in range(2):
        append(journal, 2 * PAGE)  # 3 pages each: the file is full
    journal.trim(2)
    append(journal, 2 * PAGE)  # in another file: now the first may be used again
    append(journal, 2 * PAGE)
    assert journal.prepare()
    append(journal, 10)
    name = file_names(disk)[-1]
    assert any(disk.contents(name)[2 * PAGE : 3 * PAGE])  # of frame 1
    assert not any(disk.contents(name)[PAGE : 2 * PAGE])
    assert all(disk.open(name).size() == FILE for name in file_names(disk))


def test_a_frame_says_what_was_synced_when_it_was_made() -> None:
    disk, journal = made()
    append(journal)
    append(journal, wait=False)
    append(journal, wait=False)
    append(journal)
    append(journal)
    name = file_names(disk)[-1]
    assert [s.head.synced for s in scan(disk.open(name), name, JOURNAL, 0)] == [0, 1, 1, 1, 4]


def test_a_file_is_synced_before_the_next_is_begun() -> None:
    disk, journal = made()
    for _ in range(7):
        append(journal, wait=False)
    # Six were in the first file: durable, and the seventh says so.
    assert journal.synced == 6
    assert journal.wait(6) is Outcome.SYNCED
    assert numbers(opened(disk.crash(NOTHING))) == [1, 2, 3, 4, 5, 6]
    assert [s.head.synced for s in scan(disk.open(file_names(disk)[-1]), "", JOURNAL, 0)] == [6]


def test_every_start_begins_a_file() -> None:
    disk, journal = made()
    append(journal)
    before = file_names(disk)
    again = opened(disk)
    append(again)
    assert len(file_names(disk)) == len(before) + 1
    assert numbers(opened(disk)) == [1, 2]


def test_the_largest_batch_fits_into_a_file() -> None:
    _disk, journal = made()
    largest = batch_bytes_max(FILE)
    batch = batch_of([bytes(largest - HEADER_BYTES - 8)])
    assert largest - 4 <= len(batch) <= largest
    journal.append(item(batch), 1)
    assert journal.wait(1) is Outcome.SYNCED


def test_frames_are_handed_over_in_order_and_fit() -> None:
    _disk, journal = made()
    with pytest.raises(AssertionError, match="one frame at a time"):
        journal.append(item(), 2)
    with pytest.raises(AssertionError, match="largest frame"):
        journal.append(item(batch_of([bytes(FILE)])), 1)


def test_facts_of_more_than_a_page_are_found_at_the_begin_of_a_file() -> None:
    """Which is where it is decided whether the files before it matter."""
    disk, journal = made()
    append(journal)
    many = tuple(facts.Released(1, f"c{n}", n) for n in range(1000))
    journal = opened(disk)
    journal.append(item(more=many), 2)
    assert journal.wait(2) is Outcome.SYNCED
    mark = journal.last
    append(journal)
    again = opened(disk, mark, mark.number)
    assert again.tail() == 3
    assert numbers(opened(disk)) == [1, 2, 3]
    again = opened(disk, Mark(1, opened(disk).read(1).head.crc), 1)
    assert len(again.read(2).facts) == 1000


# --- the chain ----------------------------------------------------------------------------------


def test_of_two_frames_with_one_number_the_later_files_counts() -> None:
    disk, journal = made()
    append(journal)
    append(journal, 5000, wait=False)
    name = file_names(disk)[-1]
    whole = disk.contents(name)
    # The second page of frame 2 is lost: it is torn, and the next life writes another frame 2.
    disk.replace(name, whole[: 2 * PAGE] + bytes(len(whole) - 2 * PAGE))
    journal = opened(disk)
    assert journal.tail() == 1
    assert len(journal.torn) == 1
    journal.append(item(more=(facts.Opened(),)), 2)
    journal.wait(2)
    append(journal)
    # Even if what was lost is there again.
    disk.replace(name, whole)
    again = opened(disk)
    assert again.tail() == 3
    assert again.read(2).facts == [facts.Opened()]


def test_a_frame_that_names_another_before_it_is_no_part_of_the_chain() -> None:
    disk, journal = made()
    for _ in range(4):
        append(journal, wait=False)
    name = file_names(disk)[-1]
    lost = disk.contents(name)
    disk.replace(name, lost[:PAGE] + bytes(PAGE) + lost[2 * PAGE :])
    journal = opened(disk)
    assert journal.tail() == 1
    journal.append(item(more=(facts.Opened(),)), 2)
    journal.wait(2)
    assert opened(disk).tail() == 2


def test_a_body_that_holds_a_copy_of_a_journal_is_not_taken_for_one() -> None:
    disk, journal = made()
    append(journal)
    forged, _ = frame_of([batch_of([b"forged"])], number=3, previous=0, synced=99)
    page = forged.ljust(PAGE, b"\0")
    # Wherever a page begins in the body, there stands a frame.
    padding = PAGE - frame.HEAD_BYTES - HEADER_BYTES - 200
    batch = batch_of([b"x" * padding + b"y" * shift + page * 2 for shift in (0,)])
    at = batch.find(forged)
    head = frame.HEAD_BYTES + len(facts.encode([facts.Appended(batch[:HEADER_BYTES])]))
    shift = -(head + at - HEADER_BYTES) % PAGE
    batch = batch_of([b"x" * (padding + shift) + page * 2])
    journal.append(item(batch), 2)
    journal.wait(2)
    name = file_names(disk)[-1]
    copies = [p for p in range(0, FILE, PAGE) if disk.contents(name)[p:].startswith(forged)]
    assert copies
    again = opened(disk)
    assert again.tail() == 2
    assert again.torn == []


def test_a_frame_of_another_journal_is_none() -> None:
    disk, journal = made()
    append(journal)
    other, _ = frame_of([], number=2, previous=journal.last.crc, journal=JOURNAL + 1, synced=50)
    disk.open(file_names(disk)[-1]).write(PAGE, [other])
    again = opened(disk)
    assert again.tail() == 1
    # It is nothing that this journal wrote, so it is shown.
    assert [(t.file, t.position) for t in again.torn] == [(file_names(disk)[-1], PAGE)]
    assert again.torn[0].report == "nothing of it can be read"


@pytest.mark.parametrize("length", [500, 2 * PAGE, FILE])
@pytest.mark.parametrize("number", [0, 50])
def test_a_file_of_another_journal_is_refused_and_not_touched(number: int, length: int) -> None:
    disk, journal = made()
    append(journal)

    def foreign(name: str) -> bytes:
        fact = facts.Released(1, name, 1)
        return frame_of([], fact, number=2, previous=journal.last.crc, journal=JOURNAL + 1)[0]

    other = foreign("x" * (300 + length - len(foreign("x" * 300))))
    assert len(other) == length
    name = f"journal/{number:010}"
    disk.create(name).write(0, [other.ljust(FILE, b"\0")])
    before = disk.tree()
    with pytest.raises(Refused, match=f"{name} begins with a frame of another directory's journal"):
        opened(disk)
    assert disk.tree() == before


def test_files_below_the_mark_are_not_needed() -> None:
    disk, journal = made()
    for _ in range(14):
        append(journal)
    mark = journal.last
    append(journal)
    first, second, third = [n for n in file_names(disk) if any(disk.contents(n))]
    for name in (first, second):
        disk.replace(name, bytes(FILE))
    again = opened(disk, mark, mark.number)
    assert again.tail() == 15
    assert again.torn == []
    with pytest.raises(Refused, match="frames 1 to"):
        opened(disk)
    assert third in disk.paths()


def test_a_frame_that_is_proven_and_missing_is_refused_by_its_name() -> None:
    disk, journal = made()
    for _ in range(4):
        append(journal)
    name = file_names(disk)[-1]
    whole = disk.contents(name)
    for number in (1, 2, 3):
        begin = (number - 1) * PAGE
        disk.replace(name, whole[:begin] + bytes(PAGE) + whole[begin + PAGE :])
        before = disk.tree()
        with pytest.raises(Refused, match=f"frames {number} to 3 were synced") as error:
            opened(disk)
        where = f"behind {name} at {begin}" if number > 1 else "in journal/"
        assert where in str(error.value)
        assert disk.tree() == before
    # The last has nothing behind it that proves it, unless a checkpoint does.
    disk.replace(name, whole[: 3 * PAGE] + bytes(FILE - 3 * PAGE))
    assert opened(disk).tail() == 3
    with pytest.raises(Refused, match="frames 4 to 4"):
        opened(disk, BEGIN, 4)


def test_a_damaged_body_is_its_batchs_alone_if_proven_and_torn_if_not() -> None:
    disk, journal = made()
    sizes = [batch_of([b"a" * 50], base=0), batch_of([b"b" * 50], base=1)]
    for number in (1, 2):
        journal.append(item(*sizes), number)
        journal.wait(number)
    name = file_names(disk)[-1]
    whole = disk.contents(name)
    disk.replace(name, flip(whole, whole.find(b"b" * 50) + 3))
    again = opened(disk)
    assert again.tail() == 2
    one, other = again.read(1).bodies
    assert one.body is not None
    assert other.body is None
    assert "CRC" in other.damage
    disk.replace(name, flip(whole, whole.rfind(b"b" * 50) + 3))
    again = opened(disk)
    assert again.tail() == 1
    [torn] = again.torn
    assert (torn.file, torn.position) == (name, PAGE)
    assert "frame 2, perhaps acknowledged: 2 facts" in torn.report
    assert "log 1 offsets 0 to 1, log 1 offsets 1 to 2 (damaged)" in torn.report


def test_a_torn_frame_of_unknown_facts_is_reported_as_that() -> None:
    disk, journal = made()
    append(journal)
    name = file_names(disk)[-1]
    raw, _ = frame_of([], number=9, previous=7)
    head = Frame(1, b"\x91\x91\x63", [])  # a fact of number 99
    unknown, _length, _crc = frame.encode(head, JOURNAL, 9, 7, 0)
    assert len(raw) > frame.HEAD_BYTES
    whole = disk.contents(name)
    disk.replace(name, whole[:PAGE] + unknown.ljust(FILE - PAGE, b"\0"))
    with pytest.raises(Refused, match="facts unknown here"):
        opened(disk)


def test_a_torn_tail_is_measured_to_its_last_byte_in_a_large_file() -> None:
    size = 3 << 20
    disk = SimDisk()
    disk.make_directory("journal")
    journal = opened(disk, file_bytes=size)
    append(journal)
    name = file_names(disk)[-1]
    for end in (PAGE + 5, (2 << 20) + 7):
        contents = bytearray(disk.contents(name)[:PAGE].ljust(size, b"\0"))
        contents[PAGE] = contents[end - 1] = 1
        disk.replace(name, bytes(contents))
        [torn] = opened(disk, file_bytes=size).torn
        assert (torn.position, torn.length) == (PAGE, end - PAGE)


@pytest.mark.parametrize("size", [0, PAGE, FILE - 1, FILE + PAGE])
def test_a_journal_file_of_another_size_is_refused_by_its_name(size: int) -> None:
    disk, journal = made()
    append(journal)
    name = file_names(disk)[-1]
    disk.replace(name, disk.contents(name).ljust(size, b"\0")[:size])
    with pytest.raises(Refused, match=f"{name} has {size} bytes instead of {FILE}"):
        opened(disk)


# --- what stands behind the last frame ----------------------------------------------------------


def two_files() -> tuple[SimDisk, LocalJournal, str]:
    """Frames 1 to 6 fill the first file; 7 and 8 begin the second, which is named."""
    disk, journal = made()
    for _ in range(8):
        append(journal)
    return disk, journal, file_names(disk)[-1]


def garbage(disk: SimDisk, name: str, position: int, raw: bytes) -> None:
    disk.open(name).write(position, [raw])


@pytest.mark.parametrize("at_mark", [False, True])
def test_a_torn_tail_is_found_behind_the_last_frame_also_if_that_is_a_checkpoints(
    at_mark: bool,
) -> None:
    disk, journal, name = two_files()
    garbage(disk, name, 2 * PAGE, b"torn X")
    again = opened(disk, journal.last, 8) if at_mark else opened(disk)
    assert again.tail() == 8
    [torn] = again.torn
    assert (torn.file, torn.position, torn.length) == (name, 2 * PAGE, 6)


def test_of_two_frames_that_a_checkpoint_may_stand_at_the_later_files_counts() -> None:
    disk, journal, name = two_files()
    whole = disk.contents(name)
    later = f"journal/{9:010}"
    disk.create(later).write(0, [whole])
    again = opened(disk, journal.last, 8)
    assert again.torn == []
    garbage(disk, later, 2 * PAGE, b"torn")
    assert [torn.file for torn in opened(disk, journal.last, 8).torn] == [later]


def test_a_file_of_garbage_behind_the_last_one_is_a_torn_tail_from_its_begin_on() -> None:
    disk, _journal, _ = two_files()
    later = f"journal/{9:010}"
    disk.create(later).write(0, [b"garbage".ljust(FILE, b"\0")])
    [torn] = opened(disk).torn
    assert (torn.file, torn.position, torn.length) == (later, 0, 7)


def test_an_old_frame_behind_the_last_one_is_none_of_its_tail() -> None:
    """Of a recycled file."""
    disk, _journal, name = two_files()
    old = disk.contents(file_names(disk)[0])[:PAGE]
    garbage(disk, name, 2 * PAGE, old)
    assert opened(disk).torn == []
    garbage(disk, name, 3 * PAGE, old)
    garbage(disk, name, 2 * PAGE, b"torn".ljust(PAGE, b"\0"))
    [torn] = opened(disk).torn
    assert torn.length == 4


def test_frames_are_found_wherever_they_stand_in_a_large_file() -> None:
    size = (3 << 20) + PAGE
    disk = SimDisk()
    disk.make_directory("journal")
    journal = opened(disk, file_bytes=size)
    for length in (10, (1 << 20) - PAGE, 5000, 700_000, 10, 900_000, 10):
        append(journal, length)
    [name] = [name for name in file_names(disk) if any(disk.contents(name))]
    assert disk.open(name).size() == size
    seen = list(scan(disk.open(name), name, JOURNAL, 0))
    assert [each.head.number for each in seen] == [1, 2, 3, 4, 5, 6, 7]
    assert numbers(opened(disk, file_bytes=size)) == [1, 2, 3, 4, 5, 6, 7]
    assert journal.prepare()
    assert disk.contents("journal/spare") == bytes(size)


def test_a_frame_that_claims_more_than_its_file_holds_is_none() -> None:
    disk, journal = made()
    append(journal)
    name = file_names(disk)[-1]
    raw, _ = frame_of([batch_of([bytes(2 * PAGE)])], number=2, previous=journal.last.crc)
    garbage(disk, name, FILE - PAGE, raw[:PAGE])
    assert [each.head.number for each in scan(disk.open(name), name, JOURNAL, 0)] == [1]


def test_a_frame_may_fill_its_file_to_the_last_byte() -> None:
    disk, journal = made()
    spare = FILE - len(frame_of([batch_of([bytes(FILE // 2)])])[0]) + FILE // 2
    whole = batch_of([bytes(spare)])
    raw, _ = frame_of([whole])
    assert len(raw) == FILE
    journal.append(item(whole), 1)
    assert journal.wait(1) is Outcome.SYNCED
    append(journal)
    assert numbers(opened(disk.crash(NOTHING))) == [1, 2]
    assert all(disk.open(name).size() == FILE for name in file_names(disk))


def test_files_whose_frames_nobody_needs_are_not_read() -> None:
    disk, journal = made()
    marks = []
    for _ in range(24):  # four files
        append(journal)
        marks.append(journal.last)

    def reads(mark: Mark, files: int) -> None:
        """Of each file where it begins, and its head; of so many the pages, and each frame's head;
        above the mark, its body.
        """
        before = disk.calls["read"]
        assert opened(disk, mark, mark.number).tail() == 24
        expected = 2 * 4 + files * (1 + 6) + (24 - mark.number)
        assert disk.calls["read"] == before + expected

    reads(BEGIN, 4)
    reads(marks[0], 4)
    reads(marks[5], 3)
    reads(marks[16], 2)  # in the third file
    reads(marks[17], 1)  # at its end
    reads(marks[23], 1)


def test_a_file_without_frames_is_above_nothing() -> None:
    disk, _journal, _ = two_files()
    disk.create(f"journal/{9:010}").write(0, [bytes(FILE)])
    again = opened(disk)
    assert [again.files_above(number) for number in (0, 6, 8)] == [2, 1, 0]


def test_frames_of_one_file_are_read_through_one_handle() -> None:
    disk, _journal, _ = two_files()
    again = opened(disk)
    opens = disk.calls["open"]
    for number in (1, 2, 3, 7, 8):
        again.read(number)
    assert disk.calls["open"] == opens + 2


def test_trimmed_frames_are_no_longer_known() -> None:
    disk, _journal, _ = two_files()
    again = opened(disk)
    again.trim(3)
    with pytest.raises(KeyError):
        again.read(3)
    assert again.read(4).head.number == 4


def test_a_file_that_was_synced_is_not_synced_again_when_the_next_is_begun() -> None:
    disk, journal = made()
    for _ in range(6):
        append(journal)
    assert journal.prepare()
    syncs = disk.calls["sync"]
    append(journal, wait=False)
    assert disk.calls["sync"] == syncs


def test_the_largest_batch_leaves_its_frame_what_that_needs() -> None:
    assert batch_bytes_max(FILE) + HEADER_BYTES + FRAME_OVERHEAD == FILE


# --- syncs that fail ----------------------------------------------------------------------------


@pytest.mark.parametrize("mode", Failure)
@pytest.mark.parametrize("error", [errno.EIO, errno.ENOSPC, errno.EDQUOT])
def test_a_sync_that_failed_is_never_tried_again(mode: Failure, error: int) -> None:
    disk, journal = made()
    disk.failure = mode
    append(journal)
    disk.fail("sync", disk.calls["sync"] + 1, error)
    number = append(journal, wait=False)
    assert journal.wait(number) is Outcome.UNKNOWN
    syncs = disk.calls["sync"]
    for _ in range(3):
        assert journal.wait(number) is Outcome.UNKNOWN
    assert journal.wait(number - 1) is Outcome.SYNCED  # that is known, and stays so
    assert disk.calls["sync"] == syncs
    assert opened(disk.killed()).tail() == number - 1


def test_that_a_sync_failed_is_said_aloud(caplog: pytest.LogCaptureFixture) -> None:
    logging.disable(logging.NOTSET)
    disk, journal = made()
    number = append(journal, wait=False)
    disk.fail("sync", disk.calls["sync"] + 1, errno.EIO)
    journal.wait(number)
    [said] = [record.getMessage() for record in caplog.records]
    assert said == f"sync of {file_names(disk)[-1]} failed: nothing more will be written"


# --- files --------------------------------------------------------------------------------------


def test_only_a_file_that_is_wholly_trimmed_is_used_again() -> None:
    disk, journal = made()
    for _ in range(7):
        append(journal)
    first = file_names(disk)[0]
    assert journal.files_above(0) == 2
    assert journal.files_above(6) == 1
    journal.trim(5)  # the file holds 6, too
    assert journal.prepare()
    assert first in disk.paths()
    for _ in range(6):
        append(journal)
    journal.trim(6)
    assert journal.prepare()
    assert first not in disk.paths()
    assert journal.spare
    # Never the one that is written, however far the trim goes.
    journal.trim(journal.tail())
    current = file_names(disk)[-1]
    for _ in range(3):
        journal._spare = False
        if "spare" in disk.names("journal"):
            disk.unlink("journal/spare")
        assert journal.prepare()
    assert current in disk.paths()
    with pytest.raises(KeyError):
        journal.read(1)


def test_a_file_of_one_frame_is_not_used_again_before_that_is_trimmed() -> None:
    disk, journal = made()
    append(journal)
    [first] = file_names(disk)
    again = opened(disk)
    append(again)
    assert again.prepare()
    assert first in disk.paths()
    assert again.files_above(0) == 2
    again.trim(1)
    again._spare = False
    disk.unlink("journal/spare")
    assert again.prepare()
    assert first not in disk.paths()


def test_a_file_that_is_used_again_begins_with_a_zero_page_on_the_disk() -> None:
    disk, journal = made()
    for _ in range(7):
        append(journal)
    journal.trim(6)
    assert journal.prepare()
    left = disk.crash(NOTHING)
    assert not any(left.contents("journal/spare")[:PAGE])
    assert any(left.contents("journal/spare")[PAGE:])


def test_a_spare_half_made_is_made_anew() -> None:
    disk, journal = made()
    append(journal)
    for name, size in (("spare", PAGE), ("new", 3 * PAGE)):
        if name in disk.names("journal"):
            disk.unlink(f"journal/{name}")
        disk.create(f"journal/{name}").write(0, [b"x" * size])
    again = opened(disk)
    assert not again.spare
    assert again.prepare()
    assert disk.contents("journal/spare") == bytes(FILE)
    append(again)
    assert numbers(opened(disk)) == [1, 2]


def test_a_whole_spare_is_taken_over() -> None:
    disk, journal = made()
    append(journal)
    assert journal.prepare()
    again = opened(disk)
    assert again.spare
    creates = disk.calls["create"]
    append(again)
    assert disk.calls["create"] == creates


def test_a_spare_that_holds_what_is_missing_is_refused_and_an_old_one_is_not() -> None:
    disk, journal = made()
    for _ in range(3):
        append(journal)
    mark = journal.last
    append(journal)
    [name] = file_names(disk)
    begun = disk.contents(name)
    disk.replace(name, bytes(FILE))
    disk.create("journal/spare").write(0, [begun])
    # All its frames are below the mark: it is there to be used again.
    later = Mark(4, journal.last.crc)
    disk.create("journal/0000000002").write(
        0, [frame_of([], number=5, previous=later.crc)[0].ljust(FILE, b"\0")]
    )
    assert opened(disk, later, 4).spare
    # And of these the highest is the last one that there is.
    disk.replace("journal/spare", frame_of([], number=5)[0].ljust(FILE, b"\0"))
    assert opened(disk, later, 4).spare
    disk.unlink("journal/0000000002")
    newer = frame_of([], number=4, previous=mark.crc)[0].ljust(FILE, b"\0")
    disk.replace("journal/spare", newer)
    disk.replace(name, begun[: 3 * PAGE] + bytes(FILE - 3 * PAGE))
    with pytest.raises(Refused, match="spare holds frame 4: it has another file's name"):
        opened(disk, mark, 3)


def test_a_journal_without_the_frame_that_its_checkpoint_stands_at_is_refused() -> None:
    disk, journal = made()
    for _ in range(3):
        append(journal)
    mark = journal.last
    [name] = file_names(disk)
    whole = disk.contents(name)
    disk.replace(name, whole[: 2 * PAGE] + bytes(FILE - 2 * PAGE))
    with pytest.raises(Refused, match="frame 3, at which the checkpoint stands, is missing"):
        opened(disk, mark, 3)
    disk.replace(name, whole)
    assert opened(disk, mark, 3).tail() == 3


def test_a_spare_made_beside_the_beginning_of_a_file_does_not_take_the_place_of_its_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    disk, journal = made()
    for _ in range(6):
        append(journal)
    assert journal.prepare()
    beside = threading.Thread(target=journal.prepare)
    rename = disk.rename

    def rename_beside(old: str, new: str) -> None:
        if old == "journal/spare":
            beside.start()
            beside.join(0.2)  # it gets as far as it can
        rename(old, new)

    monkeypatch.setattr(disk, "rename", rename_beside)
    append(journal)
    beside.join()
    monkeypatch.undo()
    assert journal.spare == ("spare" in disk.names("journal"))
    for _ in range(12):
        append(journal)
    assert numbers(opened(disk)) == list(range(1, 20))


@pytest.mark.parametrize("spare", [False, True])
def test_after_a_failed_sync_of_the_directory_none_is_made_for_the_next_file_either(
    spare: bool,
) -> None:
    disk, journal = made()
    for _ in range(6):
        append(journal)
    disk.fail("sync_directory", disk.calls["sync_directory"] + 1)
    with pytest.raises(OSError, match="simulated"):
        journal.prepare()
    journal._spare = spare  # one that was made before
    syncs = disk.calls["sync_directory"]
    with pytest.raises(OSError, match="the journal failed before") as caught:
        append(journal)
    assert caught.value.errno == errno.EIO
    assert disk.calls["sync_directory"] == syncs
    assert journal.wait(journal.tail() + 1) is Outcome.UNKNOWN


@pytest.mark.parametrize("free", [0, 1, 3, FILE // PAGE - 1])
def test_without_space_for_a_file_there_is_none_and_nothing_is_broken(free: int) -> None:
    disk, journal = made()
    for _ in range(6):
        append(journal)
    disk.free = free
    assert journal.prepare() is False
    assert not journal.spare
    with pytest.raises(OSError, match="no space for another journal file") as error:
        append(journal)
    assert error.value.errno == errno.ENOSPC
    disk.free = 100
    assert journal.prepare()
    assert journal.prepare()  # there is one
    append(journal)
    assert numbers(opened(disk.crash(NOTHING))) == [1, 2, 3, 4, 5, 6, 7]


@pytest.mark.parametrize("kind", ["create", "allocate", "write", "sync", "rename"])
def test_a_file_that_cannot_be_made_for_another_reason_is_an_error(kind: str) -> None:
    disk, journal = made()
    append(journal)
    disk.fail(kind, disk.calls[kind] + 1)
    with pytest.raises(OSError, match="simulated"):
        journal.prepare()
    assert not journal.spare
    assert numbers(opened(disk.killed())) == [1]

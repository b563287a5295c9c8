"""One log's files: what was laid out is read back, and reading never gives more than that."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlog import index as indexes
from rlog.files import PAGE, Disk
from rlog.index import Index, Milestone, with_milestone
from rlog.log import RESERVE_MIN, Chunk, Handles, LogFiles
from rlog.segment import Damage, Extent, Place, path
from rlog_client.batch import HEADER_BYTES, check_body, hole, parse_header
from tests.storage.build import batch_of, flip
from tests.storage.simdisk import SimDisk

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

ROLL = 1 << 20


class Laid:
    """A log of some batches in one segment, and where they are."""

    def __init__(
        self, sizes: list[int], *, count: int = 2, base: int = 0, noting: bool = False
    ) -> None:
        """``noting``: milestones."""
        self.disk = SimDisk()
        self.disk.make_directory("logs")
        self.files = LogFiles(Handles(self.disk), 1)
        self.files.make()
        self.batches: list[bytes] = []
        self.places: list[Place] = []
        self.base, self.count = base, count
        self.noting, self.milestones = noting, b""
        for size in sizes:
            self.append(size)

    @property
    def length(self) -> int:
        return sum(map(len, self.batches))

    @property
    def extent(self) -> Extent:
        end = self.base + self.count * len(self.batches)
        return Extent(1, self.base, end, self.length, 0, self.milestones)

    def append(self, size: int) -> None:
        values = [bytes([65 + len(self.batches) % 26]) * size] * self.count
        number = len(self.batches)
        raw = batch_of(values, base=self.extent.end, time_ns=100 * number)
        place = Place(1, self.base, self.length, not self.batches)
        if self.noting:
            newest_ns = 100 * (number - 1)
            self.milestones = with_milestone(
                self.milestones, self.extent.end, place.position, newest_ns
            )
        self.files.reserve(place, len(raw), ROLL)
        self.files.write(place, [raw[:HEADER_BYTES], raw[HEADER_BYTES:]], len(raw))
        self.places.append(place)
        self.batches.append(raw)

    def read(
        self, offset: int, bytes_max: int = 1, *, position: int | None = None, wait: bool = True
    ) -> Chunk | Damage | None:
        return self.files.read(self.extent, position, offset, bytes_max, wait=wait)

    def damage(self, position: int) -> None:
        name = path(1, self.base)
        self.disk.replace(name, flip(self.disk.contents(name), position))


def test_every_offset_is_read_from_the_batch_that_holds_it() -> None:
    laid = Laid([10, 200, 3000, 1], base=40)
    for index, raw in enumerate(laid.batches):
        for offset in (40 + 2 * index, 41 + 2 * index):
            chunk = laid.read(offset)
            assert isinstance(chunk, Chunk)
            assert bytes(chunk.data) == raw
            assert chunk.next == 42 + 2 * index
            assert chunk.position == laid.places[index].position


def test_a_chunk_is_whole_batches_of_about_the_size_asked_for() -> None:
    laid = Laid([100] * 20)
    size = len(laid.batches[0])
    for wanted in range(1, 5 * size, 7):
        chunk = laid.read(0, wanted)
        assert isinstance(chunk, Chunk)
        assert len(chunk.data) == max(wanted // size, 1) * size
        assert chunk.next == max(wanted // size, 1) * 2


def test_a_chunk_says_how_long_the_batch_behind_it_is_where_that_was_seen() -> None:
    laid = Laid([100, 300])
    first, second = map(len, laid.batches)
    for wanted in range(1, first + second + 1):
        chunk = laid.read(0, wanted)
        assert isinstance(chunk, Chunk)
        seen = first + HEADER_BYTES <= wanted < first + second
        assert chunk.following == (second if seen else 0)


@pytest.mark.parametrize("wait", [True, False])
def test_a_batch_that_is_larger_than_it_may_be_is_not_read(wait: bool) -> None:
    laid = Laid([100, 5000, 100])
    for offset, raw, place in zip((0, 2, 4), laid.batches, laid.places, strict=True):
        for wanted in (1, HEADER_BYTES, len(raw) - 1, len(raw)):
            for largest in (len(raw) - 1, len(raw)):
                chunk = laid.files.read(
                    laid.extent, place.position, offset, wanted, batch_max=largest, wait=wait
                )
                assert isinstance(chunk, Chunk)
                fits = largest == len(raw) or wanted == len(raw)
                assert bytes(chunk.data) == (raw if fits else b"")
                assert chunk.next == offset + (2 if fits else 0)


def test_a_read_goes_on_where_the_last_one_ended() -> None:
    laid = Laid([50, 5000, 1, 700, 90_000, 3])
    offset, position, got = 0, 0, b""
    while offset < laid.extent.end:
        chunk = laid.read(offset, 1000, position=position)
        assert isinstance(chunk, Chunk)
        assert chunk.position == position
        got += chunk.data
        offset, position = chunk.next, position + len(chunk.data)
    assert got == b"".join(laid.batches)


def test_nothing_behind_the_visible_end_is_read() -> None:
    laid = Laid([100] * 5)
    seen = laid.extent
    laid.append(100)
    laid.append(100)
    chunk = laid.files.read(seen, None, 0, 1 << 20, wait=True)
    assert isinstance(chunk, Chunk)
    assert bytes(chunk.data) == b"".join(laid.batches[:5])
    assert chunk.next == seen.end


def test_a_cold_read_is_refused_rather_than_waited_for() -> None:
    laid = Laid([100] * 3)
    assert isinstance(laid.read(0, wait=False), Chunk)
    laid.disk.cold = True
    assert laid.read(0, wait=False) is None
    assert isinstance(laid.read(0, wait=True), Chunk)


def test_a_damaged_header_is_an_error_with_its_address_and_the_rest_goes_on() -> None:
    laid = Laid([100, 100, 100])
    begin = laid.places[1].position
    for byte in range(HEADER_BYTES):
        laid = Laid([100, 100, 100])
        laid.damage(begin + byte)
        before = laid.read(0, 1 << 20)
        assert isinstance(before, Chunk)
        assert before.next == 2
        for position in (begin, None):
            found = laid.read(2, 1 << 20, position=position)
            assert isinstance(found, Damage)
            assert (found.first, found.end, found.position) == (2, 4, begin)
        behind = laid.read(4)
        assert isinstance(behind, Chunk)
        assert bytes(behind.data) == laid.batches[2]


def test_in_the_middle_of_a_damaged_batch_the_damage_begins_where_it_was_asked_for() -> None:
    laid = Laid([100, 100, 100])
    laid.damage(laid.places[1].position + 20)
    found = laid.read(3)
    assert isinstance(found, Damage)
    assert (found.first, found.end) == (3, 4)


def test_a_segment_truncated_at_every_byte_serves_what_is_whole_and_names_the_rest() -> None:
    sizes = [10, 30, 5]
    whole = Laid(sizes)
    for length in range(whole.length):
        laid = Laid(sizes)
        name = path(1, 0)
        laid.disk.replace(name, laid.disk.contents(name)[:length])
        offset, served = 0, []
        while offset < laid.extent.end:
            found = laid.read(offset)
            if isinstance(found, Chunk):
                header = parse_header(found.data)
                check_body(header, found.data[HEADER_BYTES : header.bytes])
                served.append(header.base)
                offset = found.next
            else:
                assert isinstance(found, Damage)
                assert found.first == offset < found.end
                offset = found.end
        ends = [sum(map(len, whole.batches[: index + 1])) for index in range(3)]
        assert served == [2 * index for index in range(3) if ends[index] <= length]


def test_a_lost_segment_is_an_error_of_the_disk() -> None:
    laid = Laid([10])
    laid.disk.unlink(path(1, 0))
    laid.files._handles.drop(1, 0, 0)
    with pytest.raises(FileNotFoundError):
        laid.read(0)


def test_a_read_error_is_the_readers_and_not_hidden() -> None:
    laid = Laid([10])
    laid.disk.fail("read", laid.disk.calls["read"] + 1)
    with pytest.raises(OSError, match="read failed"):
        laid.read(0)
    assert isinstance(laid.read(0), Chunk)


def test_the_first_record_at_or_after_a_time_is_found() -> None:
    laid = Laid([5000] * 40)  # times 0, 100, 200, ...
    for _again in range(2):
        for index in range(40):
            assert laid.files.find_time(laid.extent, 100 * index) == 2 * index
            assert laid.files.find_time(laid.extent, 100 * index - 50) == 2 * index
        assert laid.files.find_time(laid.extent, 100_000) == laid.extent.end


@given(st.permutations(range(12)), st.lists(st.integers(1, 30_000), min_size=12, max_size=12))
def test_in_whatever_order_offsets_are_asked_for_the_answers_are_the_same(
    order: list[int], sizes: list[int]
) -> None:
    laid = Laid(sizes)
    for index in order:
        chunk = laid.read(2 * index + index % 2)
        assert isinstance(chunk, Chunk)
        assert chunk.position == laid.places[index].position
        assert bytes(chunk.data) == laid.batches[index]


def test_writing_never_needs_space_that_was_not_reserved() -> None:
    laid = Laid([100])
    place = Place(1, 0, laid.length, False)
    raw = batch_of([b"x" * 3000] * 2, base=2)
    laid.files.reserve(place, len(raw), ROLL)
    laid.disk.free = 0
    laid.files.write(place, [raw], len(raw))


def test_space_that_is_there_need_not_be_reserved() -> None:
    laid = Laid([100])
    end = laid.length
    laid.files.reserve(Place(1, 0, end, False), RESERVE_MIN, ROLL)
    have = laid.files._reserved[0]
    assert laid.files.reserved(Place(1, 0, end, False), have - end)
    assert not laid.files.reserved(Place(1, 0, end, False), have - end + 1)
    # Not of a segment that is yet to be made, nor of one that a checkpoint has taken to sync.
    assert not laid.files.reserved(Place(1, 2, 0, True), 1)
    laid.files.take_dirty()
    assert not laid.files.reserved(Place(1, 0, end, False), 1)


def test_nor_does_writing_a_batch_that_is_larger_than_a_segment_is_to_get() -> None:
    laid = Laid([])
    raw = batch_of([b"x" * 3 * RESERVE_MIN])
    place = Place(1, 0, 0, True)
    laid.files.reserve(place, len(raw), RESERVE_MIN)
    laid.disk.free = 0
    laid.files.write(place, [raw], len(raw))


def test_without_space_a_reservation_fails_and_a_later_one_succeeds() -> None:
    laid = Laid([100])
    laid.disk.free = 2
    place = Place(1, 0, laid.length, False)
    with pytest.raises(OSError) as caught:  # noqa: PT011 (its errno is looked at)
        laid.files.reserve(place, 2 * RESERVE_MIN, ROLL)
    assert caught.value.errno == errno.ENOSPC
    new = Place(1, 2, 0, True)
    with pytest.raises(OSError):  # noqa: PT011 (the errno is that above)
        laid.files.reserve(new, 2 * RESERVE_MIN, ROLL)
    laid.disk.free = 1000
    laid.files.reserve(place, 2 * RESERVE_MIN, ROLL)
    laid.files.reserve(new, 2 * RESERVE_MIN, ROLL)


def test_with_little_space_no_more_is_reserved_than_is_needed() -> None:
    laid = Laid([100])
    have = len(laid.disk.contents(path(1, 0)))
    laid.disk.free = 3
    place = Place(1, 0, have - 10, False)
    laid.files.reserve(place, 10 + PAGE, ROLL)
    assert len(laid.disk.contents(path(1, 0))) == have + PAGE
    assert laid.files.reserved(place, 10 + PAGE)
    assert not laid.files.reserved(place, 11 + PAGE)


def test_what_fails_for_another_reason_than_space_is_not_tried_for_less() -> None:
    laid = Laid([100])
    laid.disk.fail("allocate", laid.disk.calls["allocate"] + 1, errno.EIO)
    with pytest.raises(OSError) as caught:  # noqa: PT011 (its errno is looked at)
        laid.files.reserve(Place(1, 0, laid.length, False), 2 * RESERVE_MIN, ROLL)
    assert caught.value.errno == errno.EIO
    assert laid.disk.calls["allocate"] == 2


def test_a_rolled_segment_is_cut_to_its_length() -> None:
    laid = Laid([100, 100])
    assert len(laid.disk.contents(path(1, 0))) > laid.length
    raw = batch_of([b"n"], base=4)
    laid.files.reserve(Place(1, 4, 0, True), len(raw), ROLL)
    laid.files.write(Place(1, 4, 0, True), [raw], len(raw))
    assert laid.disk.contents(path(1, 0)) == b"".join(laid.batches)


def test_what_a_checkpoint_has_to_sync_is_told_once() -> None:
    laid = Laid([100])
    files, names = laid.files.take_dirty()
    assert (len(files), names) == (1, True)
    assert laid.files.take_dirty() == ([], False)
    laid.append(10)
    assert len(laid.files.take_dirty()[0]) == 1


def test_a_trim_removes_the_files_and_an_open_reader_keeps_its_own() -> None:
    laid = Laid([100])
    chunk = laid.read(1)
    assert isinstance(chunk, Chunk)
    laid.files.trim([0])
    assert laid.disk.paths() == []
    assert bytes(chunk.data) == laid.batches[0]
    assert not laid.files._indexes, "or they would pile up for as long as it is trimmed"
    raw = batch_of([b"n"], base=2)
    laid.files.reserve(Place(1, 2, 0, True), len(raw), ROLL)
    laid.files.write(Place(1, 2, 0, True), [raw], len(raw))
    got = laid.files.read(Extent(1, 2, 3, len(raw)), None, 2, 1, wait=True)
    assert isinstance(got, Chunk)


def test_a_deleted_log_leaves_nothing() -> None:
    laid = Laid([100])
    laid.files.delete()
    assert laid.disk.names("logs") == []


def test_a_segment_is_put_back_page_by_page_and_cut() -> None:
    laid = Laid([3000, 3000])
    want = b"".join(laid.batches)
    disk, name = laid.disk, path(1, 0)
    disk.replace(name, b"\xff" * (len(want) + 3 * PAGE))
    again = LogFiles(Handles(disk), 1)
    again.restore(0, 0, [want[:5000]])
    again.restore(0, 5000, [want[5000:6000], want[6000:]])
    again.cut(0, len(want))
    assert disk.contents(name) == want
    again.adopt(0, len(want))
    raw = batch_of([b"more"], base=4)
    again.reserve(Place(1, 0, len(want), False), len(raw), ROLL)
    again.write(Place(1, 0, len(want), False), [raw], len(raw))
    assert disk.contents(name)[: len(want) + len(raw)] == want + raw


def test_a_lost_segment_is_put_back_from_nothing() -> None:
    laid = Laid([100])
    laid.disk.unlink(path(1, 0))
    again = LogFiles(Handles(laid.disk), 1)
    again.restore(0, 0, [laid.batches[0]])
    again.cut(0, laid.length)
    files, names = again.take_dirty()
    assert (len(files), names) == (1, True)
    assert laid.disk.contents(path(1, 0)) == laid.batches[0]


def test_no_more_files_are_held_open_than_so_many() -> None:
    disk = SimDisk()
    disk.make_directory("logs")
    handles = Handles(disk)
    handles.open_max = 2
    LogFiles(handles, 1).make()
    for base in range(4):
        disk.create(path(1, base))
    for base in (0, 1, 0, 2):
        handles.get(1, base)
    opens = disk.calls["open"]
    handles.get(1, 0)
    handles.get(1, 2)
    assert disk.calls["open"] == opens
    handles.get(1, 1)  # the least recently used was closed
    assert disk.calls["open"] == opens + 1


def test_a_deleted_log_takes_strange_files_along() -> None:
    laid = Laid([100])
    laid.disk.create("logs/1/notes.txt")
    laid.files.delete()
    assert laid.disk.names("logs") == []


def test_a_cache_that_is_damaged_where_the_disk_is_not_is_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    laid = Laid([100, 100])
    from tests.storage.simdisk import SimFile

    whole = SimFile.read

    def cached(self: SimFile, position: int, count: int) -> bytes:
        return flip(whole(self, position, min(count, laid.length)), 9)

    monkeypatch.setattr(SimFile, "read_cached", cached)
    found = laid.read(0, 1 << 20, position=0, wait=False)
    assert found == Damage(0, 0, 4, "two reads differ")


def test_a_batch_of_another_log_or_place_is_never_served() -> None:
    for base, log in ((5, 1), (0, 2), (2, 2)):
        laid = Laid([100, 100])
        strange = batch_of([b"A" * 100] * 2, base=base, log=log)
        name = path(1, 0)
        for at in (0, laid.places[1].position):
            whole = laid.disk.contents(name)
            laid.disk.replace(name, whole[:at] + strange + whole[at + len(strange) :])
            offset = 0 if at == 0 else 2
            assert isinstance(laid.read(offset, position=at), Damage)
            laid.disk.replace(name, whole)


def test_an_offset_that_lies_in_no_batch_is_damage() -> None:
    """The state says more than the segment holds."""
    laid = Laid([100, 100])
    extent = laid.extent._replace(end=9)
    found = laid.files.read(extent, None, 7, 100, wait=True)
    assert isinstance(found, Damage)
    assert (found.first, found.end) == (7, 9)
    assert laid.files.find(extent, 7) is None


def test_what_is_looked_for_behind_damage_is_found() -> None:
    laid = Laid([100, 100, 100])
    laid.damage(laid.places[1].position + 2)
    spot = laid.files.find(laid.extent, 4)
    assert spot is not None
    assert (spot.position, spot.time_ns) == (laid.places[2].position, 200)
    assert laid.files.find(laid.extent, 2) is None
    assert laid.files.find_time(laid.extent, 10**6) == laid.extent.end


def test_without_a_place_a_read_that_may_not_wait_gives_nothing() -> None:
    laid = Laid([100, 100])
    assert laid.read(2, wait=False) is None
    assert laid.read(0, wait=False) is not None


def test_an_offset_behind_the_end_is_named_and_found_nowhere() -> None:
    laid = Laid([100, 100])
    assert laid.read(4) == Damage(laid.length, 4, 4, "no such offset in the segment")
    assert laid.files.find(laid.extent, 4) is None


def test_a_part_of_a_segment_is_read_for_a_checkpoint() -> None:
    laid = Laid([100, 100])
    assert laid.files.tail(0, 50, 100) == laid.batches[0][50:150]


def test_a_lost_segment_is_made_anew_when_it_is_cut() -> None:
    laid = Laid([100])
    laid.disk.unlink(path(1, 0))
    laid.files.take_dirty()
    laid.files.cut(0, laid.length)
    assert laid.disk.contents(path(1, 0)) == bytes(laid.length)
    files, names = laid.files.take_dirty()
    assert (len(files), names) == (1, True)
    # One that has its length is not touched.
    laid.files.cut(0, laid.length)
    assert laid.files.take_dirty() == ([], False)


# --- compaction ---------------------------------------------------------------------------------


def rewritten(laid: Laid) -> Extent:
    """The log's one segment as of generation 1, in which its first batch is a hole."""
    left = hole(1, 0, 2, 0) + laid.batches[1]
    laid.files.make_rewritten(0, 1).write(0, [left])
    return Extent(1, 0, 4, len(left), 1)


def test_a_rewritten_segment_is_another_file_and_the_old_one_stays_until_it_is_unlinked() -> None:
    laid = Laid([100, 100])
    extent = rewritten(laid)
    assert laid.files.find(laid.extent, 2) is not None  # and the old file's index is made
    laid.files.replace([(0, 0)], 0, 1)
    assert laid.files.take_dirty() == ([], True), "what is not a part of the log is not synced"
    chunk = laid.files.read(extent, None, 1, 1 << 20, wait=True)
    assert isinstance(chunk, Chunk)
    assert bytes(chunk.data) == hole(1, 0, 2, 0) + laid.batches[1]
    spot = laid.files.find(extent, 2)
    assert spot is not None
    assert spot.position == HEADER_BYTES + 5 + 1, "an index of its own"
    assert isinstance(laid.read(2), Chunk)
    laid.files.unlink(0, 0)
    assert laid.disk.names("logs/1") == [path(1, 0, 1).rpartition("/")[2]]
    assert laid.files.take_dirty() == ([], True)
    with pytest.raises(FileNotFoundError):
        laid.read(0)
    laid.files.unlink(0, 0)  # once more


def test_what_a_rewriting_that_was_given_up_left_is_overwritten() -> None:
    laid = Laid([100, 100])
    rewritten(laid)
    assert laid.files.make_rewritten(0, 1).size() == 0


@pytest.mark.parametrize("recovered", [False, True])
def test_a_trim_removes_the_generation_that_is_there(recovered: bool) -> None:
    laid = Laid([100, 100])
    extent = rewritten(laid)
    files = LogFiles(Handles(laid.disk), 1) if recovered else laid.files
    if recovered:
        files.cut(0, extent.length - 1, 1)
        assert len(laid.disk.contents(path(1, 0, 1))) == extent.length - 1
        assert len(laid.disk.contents(path(1, 0))) > extent.length
    else:
        files.replace([(0, 0)], 0, 1)
    laid.disk.unlink(path(1, 0))
    files.trim([0])
    assert laid.disk.names("logs/1") == []


def test_names_are_synced_and_those_of_a_deleted_log_are_not_missed() -> None:
    laid = Laid([100])
    before = laid.disk.calls["sync_directory"]
    laid.files.sync_names()
    assert laid.disk.calls["sync_directory"] == before + 2
    laid.files.delete()
    laid.files.sync_names()


def test_a_deleted_log_takes_every_generation_along_and_is_open_nowhere() -> None:
    laid = Laid([100, 100])
    extent = rewritten(laid)
    assert isinstance(laid.files.read(extent, None, 0, 1, wait=True), Chunk)
    assert isinstance(laid.read(0), Chunk)
    laid.files.delete()
    assert laid.disk.names("logs") == []
    assert laid.files._handles.dirty == 0
    for each in (extent, laid.extent):
        with pytest.raises(FileNotFoundError):
            laid.files.read(each, None, 0, 1, wait=True)


# --- what is reserved, and what is open ---------------------------------------------------------


def test_the_name_of_a_new_log_is_to_be_synced() -> None:
    disk = SimDisk()
    disk.make_directory("logs")
    files = LogFiles(Handles(disk), 1)
    files.make()
    assert files.take_dirty() == ([], True)


def test_space_is_reserved_in_steps_that_grow_and_never_beyond_the_roll() -> None:
    laid = Laid([1])
    held = [len(laid.disk.contents(path(1, 0)))]
    allocates = laid.disk.calls["allocate"]
    for end in (held[0], held[0] + 1, 5 * RESERVE_MIN, 10 * RESERVE_MIN, ROLL):
        laid.files.reserve(Place(1, 0, end - 10, False), 10, ROLL)
        held.append(len(laid.disk.contents(path(1, 0))))
    step = RESERVE_MIN
    first = laid.length + step
    assert held[:4] == [first, first, 2 * (first + 1), 10 * step]
    assert held[-1] == ROLL
    assert laid.disk.calls["allocate"] == allocates + 3


def test_a_checkpoint_in_between_does_not_hinder_the_roll() -> None:
    laid = Laid([100])
    laid.files.take_dirty()  # and so nobody holds the file any more
    raw = batch_of([b"n"], base=2)
    laid.files.reserve(Place(1, 2, 0, True), len(raw), ROLL)
    laid.files.write(Place(1, 2, 0, True), [raw], len(raw))
    assert laid.disk.contents(path(1, 0)) == laid.batches[0]
    assert len(laid.files.take_dirty()[0]) == 2


def test_how_many_files_wait_for_a_checkpoint_is_known_of_all_logs_together() -> None:
    laid = Laid([100])
    handles = laid.files._handles
    other = LogFiles(handles, 2)
    other.make()
    other.reserve(Place(2, 0, 0, True), 10, ROLL)
    laid.files.reserve(Place(1, 2, 0, True), 10, ROLL)
    assert handles.dirty == 3
    laid.files.take_dirty()
    assert handles.dirty == 1
    other.trim([0])
    assert handles.dirty == 0


def test_a_segment_that_is_put_back_stays_open_until_it_is_synced() -> None:
    """The kernel tells a failed write-back to those who hold the file."""
    laid = Laid([100, 100])
    again = LogFiles(Handles(laid.disk), 1)
    again.restore(0, 0, [laid.batches[0]])
    opens = laid.disk.calls["open"]
    again.restore(0, len(laid.batches[0]), [laid.batches[1]])
    assert laid.disk.calls["open"] == opens


def test_what_is_open_for_reading_is_not_for_writing(tmp_path: Path) -> None:
    disk = Disk(str(tmp_path))
    for name in ("logs", "logs/1"):
        disk.make_directory(name)
    disk.create(path(1, 0))
    with pytest.raises(OSError, match="Bad file descriptor"):
        Handles(disk).get(1, 0).write(0, [b"x"])


# --- what does not fit --------------------------------------------------------------------------


def test_the_batch_before_the_one_asked_for_is_not_it() -> None:
    laid = Laid([100, 100])
    found = laid.read(2, position=0)
    assert isinstance(found, Damage)
    assert found.first == 2


def test_behind_the_end_is_nothing_also_where_its_position_is_known() -> None:
    laid = Laid([100, 100])
    found = laid.read(4, position=laid.length)
    assert isinstance(found, Damage)
    assert (found.first, found.end) == (4, 4)


def test_a_batch_that_begins_again_what_was_there_is_not_the_next() -> None:
    laid = Laid([100, 100])
    strange = batch_of([b"A"] * 4, base=0)
    whole = laid.disk.contents(path(1, 0))
    at = laid.places[1].position
    laid.disk.replace(path(1, 0), whole[:at] + strange.ljust(laid.length - at, b"\0"))
    chunk = laid.read(0, 1 << 20)
    assert isinstance(chunk, Chunk)
    assert (chunk.next, bytes(chunk.data)) == (2, laid.batches[0])


def test_a_batch_is_not_read_beyond_the_length_that_its_segment_has() -> None:
    laid = Laid([100, 100])
    short = laid.extent._replace(length=laid.length - 1)
    at = laid.places[1].position
    chunk = laid.files.read(short, None, 0, 1 << 20, wait=True)
    assert isinstance(chunk, Chunk)
    assert chunk.next == 2
    found = laid.files.read(short, at, 2, 1, wait=True)
    assert found == Damage(at, 2, 4, "a batch that reaches beyond the segment")


# --- promise 10: an index is a hint -------------------------------------------------------------


def answers(laid: Laid) -> list[object]:
    """Where each offset is found, and each time."""
    offsets = range(laid.base, laid.extent.end, 3)
    found: list[object] = [laid.files.find(laid.extent, offset) for offset in offsets]
    chunks = [laid.read(offset) for offset in offsets]
    found += [(type(each), each.position if each is not None else None) for each in chunks]
    return found + [laid.files.find_time(laid.extent, 100 * n - 50) for n in range(12)]


def changed(number: int, *, long: bool) -> Iterator[int]:
    """Every byte of a number of 64 bits: zeroed, full, a bit flipped; or all other values."""
    raw = number.to_bytes(8, "little")
    for at in range(8):
        values = range(256) if long else {0, 0xFF, raw[at] ^ 1, raw[at] ^ 0x80}
        for byte in values:
            if byte != raw[at]:
                yield int.from_bytes(raw[:at] + bytes([byte]) + raw[at + 1 :], "little")


@pytest.mark.parametrize("part", ["_offsets", "_positions", "end", "position"])
@pytest.mark.parametrize("damaged", [False, True])
def test_whatever_byte_of_an_index_is_another_the_answers_are_the_same(
    part: str, damaged: bool, long: bool, record_property: Callable[[str, object], None]
) -> None:
    laid = Laid([20_000] * 10)  # four entries
    if damaged:
        laid.damage(laid.places[6].position + 9)
    wanted = answers(laid)
    [index] = laid.files._indexes[laid.base, 0].values()
    whole = {name: getattr(index, name) for name in ("_offsets", "_positions", "_times")}
    end, position, count = index.end, index.position, 0
    assert len(whole["_offsets"]) >= 4
    numbers = whole.get(part) or [getattr(index, part)]
    for entry, number in enumerate(numbers):
        for wrong in changed(number, long=long):
            again = Index(laid.base)
            again._offsets, again._positions, again._times = (list(each) for each in whole.values())
            again.end, again.position = end, position
            if part in whole:
                getattr(again, part)[entry] = wrong
            else:
                setattr(again, part, wrong)
            laid.files._indexes[laid.base, 0][0] = again
            assert answers(laid) == wanted, (part, entry, wrong)
            count += 1
    record_property("indexes with one byte changed", count)


def test_without_an_index_or_with_one_of_a_shorter_log_the_answers_are_the_same() -> None:
    laid = Laid([20_000] * 4)
    answers(laid)
    stale = laid.files._indexes[laid.base, 0][0]
    for _ in range(6):
        laid.append(20_000)
    laid.files._indexes.clear()
    wanted = answers(laid)
    laid.files._indexes.clear()
    assert answers(laid) == wanted
    laid.files._indexes[laid.base, 0] = {0: stale}
    assert answers(laid) == wanted


def test_an_index_of_another_segment_changes_no_answer() -> None:
    laid, other = Laid([20_000] * 10), Laid([7_000] * 30)
    wanted = answers(laid)
    answers(other)
    index = other.files._indexes[laid.base, 0][0]
    index._times = [-1] * len(index._times)
    laid.files._indexes[laid.base, 0] = {0: index}
    assert answers(laid) == wanted
    assert laid.files._indexes[laid.base, 0][0] is not index, "it is not found wrong every time"


def test_a_seek_reads_no_more_than_what_lies_behind_the_nearest_entry() -> None:
    laid = Laid([20_000] * 40)
    answers(laid)
    for offset in (1, 41, 79):
        before = laid.disk.calls["read"]
        assert laid.files.find(laid.extent, offset) is not None
        assert laid.disk.calls["read"] == before + 1
    before = laid.disk.calls["read"]
    laid.files._indexes.clear()
    assert laid.files.find(laid.extent, 79) is not None
    assert laid.disk.calls["read"] > before + 4, "without an index all of it is walked"


@pytest.fixture
def some_milestones(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fewer than batches."""
    monkeypatch.setattr(indexes, "MILESTONE_SPACING", 100_000)


@pytest.mark.usefixtures("some_milestones")
@pytest.mark.parametrize("damaged", [None, 3, 5, 6, 9])
def test_with_milestones_the_answers_are_the_same(damaged: int | None) -> None:
    with_some = Laid([20_000] * 10, noting=True)
    without = Laid([20_000] * 10)
    if damaged is not None:
        for each in (with_some, without):
            each.damage(each.places[damaged].position + 9)
    assert answers(with_some) == answers(without)
    assert answers(with_some) == answers(without)  # also with what was learned by that
    assert with_some.milestones


@pytest.mark.usefixtures("some_milestones")
@pytest.mark.parametrize("number", [0, 1])  # offset, position
@pytest.mark.parametrize("damaged", [False, True])
def test_whatever_byte_of_a_milestone_is_another_the_answers_are_the_same(
    number: int, damaged: bool, long: bool, record_property: Callable[[str, object], None]
) -> None:
    laid = Laid([20_000] * 10, noting=True)
    if damaged:
        laid.damage(laid.places[6].position + 9)
    wanted = answers(laid)
    size, count = len(Milestone._fields) * 8, 0
    whole = laid.milestones
    assert len(whole) >= 2 * size
    for begin in range(8 * number, len(whole), size):
        right = int.from_bytes(whole[begin : begin + 8], "little")
        for wrong in changed(right, long=long):
            laid.milestones = whole[:begin] + wrong.to_bytes(8, "little") + whole[begin + 8 :]
            laid.files._indexes.clear()
            assert answers(laid) == wanted, (begin, wrong)
            count += 1
    record_property("milestones with one byte changed", count)


@pytest.mark.usefixtures("some_milestones")
def test_the_first_seek_of_all_reads_no_more_than_what_lies_behind_the_nearest_milestone() -> None:
    laid = Laid([20_000] * 100, noting=True)
    reads = []
    for offset in (1, 81, 199):
        laid.files._indexes.clear()
        before = laid.disk.calls["read"]
        assert laid.files.find(laid.extent, offset) is not None
        reads.append(laid.disk.calls["read"] - before)
        before = laid.disk.calls["read"]
        laid.files._indexes.clear()
        assert laid.files.find_time(laid.extent, 100 * (offset // 2)) == offset // 2 * 2
        reads.append(laid.disk.calls["read"] - before)
    assert max(reads) <= 2
    # What was learned behind one milestone is not taken for what lies behind another.
    for offset in (3, 199, 197, 83, 81, 5):
        before = laid.disk.calls["read"]
        spot = laid.files.find(laid.extent, offset)
        assert spot is not None
        assert spot.position == laid.places[offset // 2].position
        assert laid.disk.calls["read"] == before + 1


def test_of_a_log_that_was_only_found_nothing_is_to_be_synced() -> None:
    laid = Laid([100])
    assert LogFiles(Handles(laid.disk), 1).take_dirty() == ([], False)

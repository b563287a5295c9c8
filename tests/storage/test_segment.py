"""A walk through a segment gives every sound batch at its offset, and names what it cannot give."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlog.segment import Damage, Extent, Found, base_of, directory, parse_name, path, walk
from rlog_client.batch import COUNT_MAX, HEADER_BYTES, MAGIC, lost
from tests.storage.build import batch_of, flip, segment_of

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

BATCHES = [[b"a" * 10], [b"b", b"bb", b"bbb"], [b"c" * 300], [b"d"] * 7]
DATA, EXTENT = segment_of(BATCHES, base=100)
ENDS = [101, 104, 105, 112]


def reader(data: bytes) -> Callable[[int, int], bytes]:
    return lambda position, count: data[position : position + count]


def walked(data: bytes, extent: Extent = EXTENT, *at: int) -> list[Found | Damage]:
    return list(walk(reader(data), extent, *at))


def sound(found: Sequence[Found | Damage]) -> list[int]:
    """The bases of the batches that were found."""
    return [each.header.base for each in found if isinstance(each, Found)]


def covered(found: Sequence[Found | Damage], extent: Extent) -> bool:
    """Every offset is either in a batch or named as damaged, in order, once."""
    expected = extent.base
    for each in found:
        begin, end = (
            (each.header.base, each.header.end)
            if isinstance(each, Found)
            else (each.first, each.end)
        )
        if begin != expected or end <= begin:
            return False
        expected = end
    return expected == extent.end


PLACES = [each.position for each in walked(DATA)]


def test_a_whole_segment_is_walked_batch_by_batch() -> None:
    found = walked(DATA)
    assert sound(found) == [100, 101, 104, 105]
    assert covered(found, EXTENT)
    assert [each.position for each in found] == PLACES


def test_a_walk_begins_at_any_batch() -> None:
    for index, position in enumerate(PLACES):
        offset = EXTENT.base if index == 0 else ENDS[index - 1]
        assert walked(DATA, EXTENT, position, offset) == walked(DATA)[index:]


def test_nothing_behind_the_extent_is_walked() -> None:
    more = DATA + batch_of([b"later"], base=112)
    assert walked(more) == walked(DATA)


@pytest.mark.parametrize(
    ("length", "share", "times"), [(2_000_000, 0.02, 20), (100_000, 1.01, 7), (100, 1.01, 1)]
)
def test_a_walk_reads_long_bodies_not_at_all_and_others_once(
    length: int, share: float, times: int
) -> None:
    data, extent = segment_of([[bytes(length)]] * 20, base=0)
    read = []

    def counted(position: int, count: int) -> bytes:
        read.append(data[position : position + count])
        return read[-1]

    assert sound(list(walk(counted, extent))) == list(range(20))
    assert sum(map(len, read)) <= share * len(data)
    assert len(read) <= times


def test_an_empty_segment_has_nothing() -> None:
    assert walked(b"", Extent(1, 5, 5, 0)) == []


def test_every_flipped_bit_of_a_header_costs_that_batch_and_no_other() -> None:
    for index, begin in enumerate(PLACES):
        for position in range(begin, begin + HEADER_BYTES):
            found = walked(flip(DATA, position, position % 8))
            damage = [each for each in found if isinstance(each, Damage)]
            assert covered(found, EXTENT)
            assert len(damage) == 1
            assert damage[0].position == begin
            assert damage[0].end == ENDS[index]
            assert len(sound(found)) == len(BATCHES) - 1


def test_a_flipped_bit_of_a_body_is_not_the_walks_business() -> None:
    bodies = set(range(len(DATA))) - {
        position for begin in PLACES for position in range(begin, begin + HEADER_BYTES)
    }
    for position in bodies:
        assert walked(flip(DATA, position)) == walked(DATA)


def test_truncated_at_every_byte_the_lost_offsets_are_named() -> None:
    for length in range(len(DATA)):
        found = walked(DATA[:length])
        assert covered(found, EXTENT)
        # A header that is whole is found; that its body is cut is seen by whoever checks the body.
        whole = sum(begin + HEADER_BYTES <= length for begin in PLACES)
        assert sound(found) == [100, 101, 104, 105][:whole]


def test_zeroed_from_every_byte_on_the_lost_offsets_are_named() -> None:
    for position in range(len(DATA)):
        found = walked(DATA[:position] + bytes(len(DATA) - position))
        assert covered(found, EXTENT)
        whole = sum(begin + HEADER_BYTES <= position for begin in PLACES)
        assert len(sound(found)) <= whole + (whole < len(PLACES))


def test_a_batch_of_another_log_is_damage() -> None:
    stranger = batch_of([b"a" * 10], log=2, base=100)
    found = walked(stranger + DATA[len(stranger) :])
    assert isinstance(found[0], Damage)
    assert "log 2" in found[0].reason
    assert sound(found) == [101, 104, 105]


def test_a_batch_at_the_wrong_place_is_damage() -> None:
    """A misdirected write: the sound bytes of a neighbour."""
    swapped = batch_of([b"x" * 10], base=105) + DATA[PLACES[1] :]
    found = walked(swapped)
    assert isinstance(found[0], Damage)
    assert (found[0].first, found[0].end) == (100, 101)
    assert covered(found, EXTENT)


def test_a_batch_that_reaches_beyond_the_segment_is_damage() -> None:
    extent = EXTENT._replace(length=len(DATA) - 1)
    found = walked(DATA, extent)
    assert isinstance(found[-1], Damage)
    assert (found[-1].first, found[-1].end) == (105, 112)
    found = walked(DATA, EXTENT._replace(end=110))
    assert isinstance(found[-1], Damage)
    assert (found[-1].first, found[-1].end) == (105, 110)


FORGERIES = {
    "the next offset": lambda: batch_of([b"forged"], base=102),
    "a far offset": lambda: batch_of([b"forged"], base=105),
    "an old offset": lambda: batch_of([b"forged"], base=3),
    "the damaged offset": lambda: batch_of([b"forged"], base=101),
    "another log": lambda: batch_of([b"forged"], log=9, base=102),
    "the last offset": lambda: batch_of([b"forged"], base=124),
    "beyond the last offset": lambda: batch_of([b"d"] * 7, base=124),
    "only the magic": lambda: MAGIC * 100,
}


@pytest.mark.parametrize("name", FORGERIES)
@pytest.mark.parametrize("flipped", [0, 4, 12, 48, 79])
def test_a_header_forged_in_a_body_is_never_taken_for_a_batch(name: str, flipped: int) -> None:
    """The header that could tell body from batch is damaged; what the body holds is not served."""
    forged = FORGERIES[name]()
    data, extent = segment_of([[b"a"], [b"<" + forged + b">"] + [b"x"] * 22, [b"z"]], base=100)
    begin = len(batch_of([b"a"], base=100))
    whole = walked(data, extent)
    assert sound(whole) == [100, 101, 124]
    found = walked(flip(data, begin + flipped), extent)
    assert all(each in whole for each in found if isinstance(each, Found))
    assert covered(found, extent)
    assert sound(found) == [100, 124]
    assert found[-1] == walked(data, extent)[-1]


def test_a_header_forged_in_the_last_body_of_another_log_is_never_taken_for_a_batch() -> None:
    """It ends where the segment ends, and with its last offset."""
    forged = batch_of([b"forged"], log=9, base=104)
    data, extent = segment_of([[b"a"], [b"x", b"x", b"x", forged]], base=100)
    begin = len(batch_of([b"a"], base=100))
    # The segment is one that was cut behind it.
    cut = data.rfind(forged) + len(forged)
    extent = extent._replace(length=cut)
    found = walked(flip(data, begin)[:cut], extent)
    assert sound(found) == [100]
    assert covered(found, extent)


def test_of_what_looks_like_batches_behind_damage_the_first_that_is_one_counts() -> None:
    body = MAGIC + b"x" * 200 + MAGIC
    data, extent = segment_of([[b"a"], [body], [b"b"], [MAGIC * 3], [b"z"]], base=100)
    begin = len(batch_of([b"a"], base=100))
    found = walked(flip(data, begin), extent)
    assert sound(found) == [100, 102, 103, 104]
    assert covered(found, extent)


def test_a_batch_behind_a_single_strange_byte_is_found() -> None:
    rest = batch_of([b"b"], base=101)
    extent = Extent(1, 100, 102, 1 + len(rest))
    assert [each.position for each in walked(b"?" + rest, extent)] == [0, 1]
    assert sound(walked(b"?" + rest, extent)) == [101]


def test_the_lost_batch_itself_at_a_strange_place_is_not_taken() -> None:
    """No reader would look for it there."""
    first, lost, last = (
        batch_of([value], base=100 + n) for n, value in enumerate((b"a", b"b", b"c"))
    )
    data = first + bytes(100) + lost + last
    extent = Extent(1, 100, 103, len(data))
    found = walked(data, extent)
    assert covered(found, extent)
    assert sound(found) == [100, 102]


def test_damage_says_what_is_wrong() -> None:
    def reason(data: bytes, extent: Extent = EXTENT) -> str:
        [damage] = [each for each in walked(data, extent) if isinstance(each, Damage)]
        return damage.reason

    begin = PLACES[1]
    assert reason(flip(DATA, begin + 20)).startswith("header CRC is ")
    assert reason(flip(DATA, begin)) == "no batch begins here"
    stranger = batch_of([b"a" * 10], base=7) + DATA[begin:]
    assert reason(stranger) == "a batch of offset 7 instead of 100"
    inside = EXTENT._replace(length=PLACES[3] + 10)
    assert reason(DATA, inside) == f"the segment ends at {inside.length}"
    beyond = "a batch that reaches beyond the segment"
    assert reason(DATA, EXTENT._replace(length=len(DATA) - 1)) == beyond


def test_many_small_batches_are_walked_in_few_reads() -> None:
    data, extent = segment_of([[b"x"]] * 1000)
    reads = []

    def read(position: int, count: int) -> bytes:
        reads.append(position)
        return data[position : position + count]

    assert len(list(walk(read, extent))) == 1000
    assert reads == [0]


def test_the_batch_behind_damage_is_found_across_windows() -> None:
    """A body larger than what is read at once, whose successor's header lies across the seam."""
    for size in range(256 * 1024 - 200, 256 * 1024, 37):
        data, extent = segment_of([[b"a"], [b"\0" * size], [b"z"]])
        begin = len(batch_of([b"a"]))
        assert sound(walked(flip(data, begin), extent)) == [0, 2]


@given(
    st.lists(st.lists(st.binary(max_size=40), min_size=1, max_size=4), min_size=1, max_size=8),
    st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), max_size=6),
)
def test_whatever_is_damaged_every_offset_is_accounted_for(
    batches: list[list[bytes]], changes: list[tuple[int, int]]
) -> None:
    data, extent = segment_of(batches)
    whole = {each.header.base: each for each in walked(data, extent) if isinstance(each, Found)}
    changed = bytearray(data)
    for position, byte in changes:
        changed[position % len(data)] = byte
    found = walked(bytes(changed), extent)
    assert covered(found, extent)
    for each in found:
        if isinstance(each, Found):
            assert whole[each.header.base] == each


def test_a_segments_name_is_its_base() -> None:
    assert path(7, 123) == "logs/7/00000000000000000123.seg"
    assert base_of("00000000000000000123.seg") == 123
    assert path(7, 123).startswith(directory(7))
    assert path(7, 123, 4) == "logs/7/00000000000000000123.4.seg"
    assert parse_name("00000000000000000123.4.seg") == (123, 4)
    assert parse_name("00000000000000000123.seg") == (123, 0)


@pytest.mark.parametrize(
    "name",
    [
        "",
        "123.seg",
        "123.4.seg",
        "00000000000000000123",
        "00000000000000000123.tmp",
        "00000000000000000123.4.tmp",
        "00000000000000000123..seg",
        "00000000000000000123.0.seg",
        "00000000000000000123.04.seg",
        "00000000000000000123.4.4.seg",
        "00000000000000000123.four.seg",
        "00000000000000000123.seg.seg",
        "0000000000000000012٣.seg",
        "x" * 20 + ".seg",
    ],
)
def test_what_is_no_segments_name_is_none(name: str) -> None:
    assert base_of(name) is None
    assert parse_name(name) is None


def test_what_was_declared_lost_is_told_and_what_stands_around_it_is_found() -> None:
    middle, end = PLACES[1], PLACES[2]
    for begin, until in ((middle, end), (0, middle), (end, len(DATA))):
        base = ([100, *ENDS])[PLACES.index(begin)]
        behind = ENDS[PLACES.index(until) - 1] if until in PLACES else ENDS[-1]
        data = DATA[:begin] + lost(EXTENT.log, base, behind, 9) + DATA[until:]
        found = walked(data, EXTENT._replace(length=len(data)))
        (damage,) = (each for each in found if isinstance(each, Damage))
        assert (damage.declared, damage.first, damage.end) == (True, base, behind)
        assert "as a repair declared" in damage.reason
        assert sound(found) == [b for b in [100, 101, 104, 105] if not base <= b < behind]
        # Beside damage, too: which alone is damage.
        hit = 0 if begin else PLACES[3]
        again = walked(flip(data, hit + (len(data) - len(DATA) if hit > begin else 0)),
                       EXTENT._replace(length=len(data)))  # fmt: skip
        assert covered(again, EXTENT)
        assert [each.declared for each in again if isinstance(each, Damage)].count(False) == 1


def test_what_was_declared_lost_at_the_very_end_is_found_behind_damage() -> None:
    data = DATA[: PLACES[3]] + lost(EXTENT.log, 105, 112, 9)
    found = walked(flip(data, PLACES[2]), EXTENT._replace(length=len(data)))
    assert sound(found) == [100, 101]
    damage = [each for each in found if isinstance(each, Damage)]
    assert [(each.first, each.end) for each in damage] == [(104, 105), (105, 112)]
    assert [each.declared for each in damage] == [False, True]


def test_more_offsets_than_one_header_covers_are_declared_by_several() -> None:
    data = lost(1, 5, 5 + 2 * COUNT_MAX, 9) + batch_of([b"x"], base=5 + 2 * COUNT_MAX)
    extent = Extent(1, 5, 6 + 2 * COUNT_MAX, len(data))
    found = walked(data, extent)
    assert sound(found) == [5 + 2 * COUNT_MAX]
    assert covered(found, extent)

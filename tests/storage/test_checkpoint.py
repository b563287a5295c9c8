"""A checkpoint is whole or it is none, and its name never stands on a half one."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlog import checkpoint as checkpoints
from rlog import facts
from rlog.checkpoint import Checkpoint, InvalidCheckpoint, Tail, UnknownFormat
from rlog.files import PAGE
from rlog.state import State
from tests.storage.build import flip
from tests.storage.simdisk import Crash, SimDisk, choices


def made(number: int) -> Checkpoint:
    state = State()
    state.apply(facts.Created(1, "orders", facts.Options()), 5)
    state.apply(facts.Claimed(1, "c", number, b"t" * 16, "host:1", 0), 5)
    return Checkpoint(77, 65536, number, 1234, 99, state, [Tail(1, 0, PAGE, b"tail" * 3)])


def write(disk: SimDisk, number: int) -> bool:
    return checkpoints.write(disk, number, checkpoints.encode(made(number)))


RAW = checkpoints.encode(made(7))


def test_a_checkpoint_is_read_back_as_it_was_written() -> None:
    assert checkpoints.decode(RAW) == made(7)


def test_no_flipped_bit_goes_unseen() -> None:
    for position in range(len(RAW)):
        for bit in range(8):
            with pytest.raises((InvalidCheckpoint, UnknownFormat)):
                checkpoints.decode(flip(RAW, position, bit))


def test_one_cut_anywhere_or_with_more_behind_it_is_none() -> None:
    for length in range(len(RAW)):
        with pytest.raises(InvalidCheckpoint):
            checkpoints.decode(RAW[:length])
        with pytest.raises(InvalidCheckpoint):
            checkpoints.decode(RAW[:length] + bytes(len(RAW) - length))
    with pytest.raises(InvalidCheckpoint):
        checkpoints.decode(RAW + b"\0")


@given(st.binary(max_size=100))
def test_no_bytes_crash_the_decoder(raw: bytes) -> None:
    for tried in (raw, b"RLC\x01" + raw):
        with pytest.raises(InvalidCheckpoint):
            checkpoints.decode(tried)


def framed(content: bytes, version: int) -> bytes:
    """What a version of rlog that knows ``version`` would write."""
    own, checkpoints.VERSION = checkpoints.VERSION, version  # type: ignore[misc]  # what no writer of ours makes
    encoder = checkpoints._encoder
    checkpoints._encoder = Verbatim()  # type: ignore[misc, assignment]  # what no writer of ours makes
    try:
        return checkpoints.encode(content)  # type: ignore[arg-type]  # what no writer of ours makes
    finally:
        checkpoints.VERSION, checkpoints._encoder = own, encoder  # type: ignore[misc]  # what no writer of ours makes


class Verbatim:
    def encode(self, content: bytes) -> bytes:
        return content


def test_another_version_is_named_and_not_taken_for_damage() -> None:
    with pytest.raises(UnknownFormat, match="version 2"):
        checkpoints.decode(framed(b"whatever it holds", 2))


DEEP = b"\x98" + RAW[13:] + b"\x91" * 100_000  # a field of a later version, too deep


@pytest.mark.parametrize("content", [b"", b"\x97", b"\x90", b"\xff\xff", DEEP], ids=len)
def test_content_that_does_not_unpack_is_no_checkpoint(content: bytes) -> None:
    with pytest.raises(InvalidCheckpoint):
        checkpoints.decode(framed(content, 1))


def test_two_are_kept() -> None:
    disk = SimDisk()
    for number in (0, 3, 8, 11):
        write(disk, number)
    assert checkpoints.names(disk) == [checkpoints.name_of(8), checkpoints.name_of(11)]


def test_at_every_crash_the_newest_durable_checkpoint_is_whole() -> None:
    """Once written, it or a newer one is found whole; no name stands on a half one."""
    disk, cuts, done = SimDisk(), [], [0]
    disk.sync_directory("")
    write(disk, 0)

    def observe(_kind: str) -> None:
        cuts.append((disk.copy(), done[0]))

    disk.on_operation = observe
    for number in (3, 8, 11):
        write(disk, number)
        done[0] = number
    observe("end")
    states = 0
    for cut, proven in cuts:
        for choice in choices(cut, 1000, 1):
            left = cut.crash(choice)
            states += 1
            whole = []
            for name in checkpoints.names(left):
                found = checkpoints.decode(left.contents(name))
                assert checkpoints.name_of(found.number) == name
                whole.append(found.number)
            assert max(whole) >= proven
    assert states > 100


def test_the_reserve_file_gives_its_space_when_there_is_no_other() -> None:
    disk = SimDisk()
    checkpoints.keep_reserve(disk, 4 * PAGE)
    checkpoints.keep_reserve(disk, 4 * PAGE)
    assert disk.names("") == [checkpoints.RESERVE]
    disk.free = 0
    assert write(disk, 3)
    assert disk.names("") == [checkpoints.name_of(3)]
    assert checkpoints.decode(disk.contents(checkpoints.name_of(3))) == made(3)


def test_without_space_for_it_there_is_no_reserve_file() -> None:
    disk = SimDisk()
    disk.free = 3
    checkpoints.keep_reserve(disk, 4 * PAGE)
    assert disk.names("") == []


def test_without_space_and_reserve_the_older_checkpoint_stays() -> None:
    disk = SimDisk()
    write(disk, 3)
    disk.free = 0
    assert not write(disk, 8)
    assert checkpoints.names(disk) == [checkpoints.name_of(3)]


def test_a_checkpoint_whose_sync_failed_gets_no_name() -> None:
    disk = SimDisk()
    write(disk, 3)
    disk.fail("sync", disk.calls["sync"] + 1)
    with pytest.raises(OSError, match="sync failed"):
        write(disk, 8)
    assert checkpoints.names(disk) == [checkpoints.name_of(3)]


def test_a_half_written_temporary_is_in_nobodys_way() -> None:
    disk = SimDisk()

    def stop(kind: str) -> None:
        if kind == "sync":
            raise Crash

    disk.on_operation = stop
    with pytest.raises(Crash):
        write(disk, 3)
    after = disk.killed()
    write(after, 3)
    assert checkpoints.names(after) == [checkpoints.name_of(3)]

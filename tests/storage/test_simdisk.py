"""The simulated disk forgets what it may, keeps what it must, and agrees with the real one."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlog.files import Disk, Files
from tests.storage.simdisk import PAGE, Choice, Crash, Failure, Fill, SimDisk, choices

if TYPE_CHECKING:
    import pathlib


def accepts(files: Files) -> Files:
    return files


def states(disk: SimDisk) -> set[tuple[tuple[str, bytes], ...]]:
    """All that the next process may find, without garbage."""
    return {
        tuple(disk.crash(choice).tree().items())
        for choice in choices(disk, 1000, 1)
        if choice.fill is not Fill.GARBAGE
    }


def durable(*paths: str) -> SimDisk:
    disk = SimDisk()
    for path in paths:
        file = disk.create(path)
        file.write(0, [b"old"])
        file.sync()
    disk.sync_directory("")
    return disk


def test_it_is_files() -> None:
    accepts(SimDisk())


def test_what_is_synced_stays_whatever_happens() -> None:
    assert states(durable("a")) == {(("a", b"old"),)}


def test_a_file_without_a_synced_name_may_be_gone() -> None:
    disk = SimDisk()
    file = disk.create("a")
    file.write(0, [b"x"])
    file.sync()
    assert states(disk) == {(), (("a", b"x"),)}


def test_a_synced_name_says_nothing_about_its_content() -> None:
    disk = SimDisk()
    disk.create("a").write(0, [b"x"])
    disk.sync_directory("")
    assert states(disk) == {(("a", b""),), (("a", b"\0"),), (("a", b"x"),)}


def test_unsynced_pages_persist_one_without_the_other() -> None:
    disk = durable("a")
    file = disk.open("a")
    file.write(0, [b"A" * PAGE, b"B" * PAGE])
    file.sync()
    file.write(0, [b"C" * PAGE, b"D" * PAGE])
    zero = b"\0" * PAGE
    firsts = {b"A" * PAGE, b"C" * PAGE, zero}
    seconds = {b"B" * PAGE, b"D" * PAGE, zero}
    got = {contents for ((_, contents),) in states(disk)}
    # Two fills are never mixed in one state; the garbage fill does that.
    mixed = {zero + b"B" * PAGE, b"A" * PAGE + zero}
    assert got == {a + b for a in firsts for b in seconds} - mixed


def test_a_page_may_come_back_as_any_version_since_the_sync() -> None:
    disk = durable("a")
    file = disk.open("a")
    for value in (b"one", b"two", b"six"):
        file.write(0, [value])
    found = {disk.crash(Choice(1, Fill.OLD, s, any_version=True)).contents("a") for s in range(50)}
    assert found == {b"one", b"two", b"six"}


def test_a_torn_page_is_mixed_by_sectors() -> None:
    disk = durable("a")
    file = disk.open("a")
    file.write(0, [b"o" * PAGE])
    file.sync()
    file.write(0, [b"n" * PAGE])
    sectors: set[str] = set()
    for seed in range(20):
        page = disk.crash(Choice(0, Fill.GARBAGE, seed)).contents("a")
        for begin in range(0, PAGE, 512):
            kinds = set(page[begin : begin + 512])
            sectors.add(chr(min(kinds)) if len(kinds) == 1 else "garbage")
    assert sectors == {"o", "n", "\0", "garbage"}


def test_a_rename_is_atomic() -> None:
    disk = durable("a", "b")
    disk.open("a").write(0, [b"new"])
    disk.open("a").sync()
    disk.rename("a", "b")
    assert states(disk) == {(("a", b"new"), ("b", b"old")), (("b", b"new"),)}


def test_an_unlinked_file_may_come_back() -> None:
    disk = durable("a")
    disk.unlink("a")
    assert states(disk) == {(), (("a", b"old"),)}
    disk.sync_directory("")
    assert states(disk) == {()}


def test_one_directory_is_synced_without_the_other() -> None:
    disk = SimDisk()
    disk.make_directory("d")
    disk.create("d/a")
    disk.sync_directory("d")
    assert states(disk) == {(), (("d/a", b""),)}
    disk.create("b")
    disk.sync_directory("")
    disk.create("d/c")
    assert states(disk) == {
        (("b", b""), ("d/a", b"")),
        (("b", b""), ("d/a", b""), ("d/c", b"")),
    }


def test_a_kill_of_the_process_loses_nothing() -> None:
    disk = SimDisk()
    disk.create("a").write(0, [b"x"])
    after = disk.killed()
    assert after.contents("a") == b"x"
    disk.open("a").write(0, [b"y"])
    assert after.contents("a") == b"x", "the next process has its own"
    assert () in states(after), "and it is as unsynced as before"


def test_a_write_may_be_half_done() -> None:
    disk = durable("a")
    seen: list[tuple[str, bytes]] = []
    disk.on_operation = lambda kind: seen.append((kind, disk.copy().contents("a")))
    disk.open("a").write(0, [b"A" * PAGE, b"B" * PAGE])
    assert seen == [("write", b"old"), ("half a write", b"A" * PAGE)]


def test_after_a_crash_nothing_is_written_any_more() -> None:
    disk = durable("a")

    def stop(kind: str) -> None:
        raise Crash

    disk.on_operation = stop
    file = disk.open("a")
    for _again in range(2):
        with pytest.raises(Crash):
            file.write(0, [b"x"])
    assert disk.killed().contents("a") == b"old"


def test_a_failed_sync_in_ext4s_mode_lies_until_the_cache_is_dropped() -> None:
    disk = durable("a")
    file = disk.open("a")
    disk.fail("sync", disk.calls["sync"] + 1)
    file.write(0, [b"new"])
    with pytest.raises(OSError, match="sync failed"):
        file.sync()
    assert file.read(0, 9) == b"new"
    file.sync()
    assert disk.killed().contents("a") == b"new"
    assert states(disk) == {(("a", b"old"),)}
    file.forget()
    assert file.read(0, 9) == b"old"


def test_a_failed_sync_in_revert_mode_shows_the_old_pages() -> None:
    disk = durable("a")
    disk.failure = Failure.REVERT
    disk.fail("sync", disk.calls["sync"] + 1)
    file = disk.open("a")
    file.write(0, [b"new"])
    with pytest.raises(OSError, match="sync failed"):
        file.sync()
    assert file.read(0, 9) == b"old"


def test_what_is_unsynced_cannot_be_forgotten() -> None:
    disk = durable("a")
    file = disk.open("a")
    file.write(0, [b"new"])
    file.forget()
    assert file.read(0, 9) == b"new"


def test_a_failing_write_leaves_half_of_it() -> None:
    disk = durable("a")
    disk.fail("write", disk.calls["write"] + 1)
    with pytest.raises(OSError, match="write failed"):
        disk.open("a").write(0, [b"A" * 2 * PAGE])
    assert disk.contents("a") == b"A" * PAGE


def test_space_runs_out_where_nothing_was_allocated() -> None:
    disk = durable("a")
    file = disk.open("a")
    disk.free = 2
    with pytest.raises(OSError) as caught:  # noqa: PT011 (its errno is looked at)
        file.allocate(0, 4 * PAGE)
    assert caught.value.errno == errno.ENOSPC
    file.allocate(0, 3 * PAGE)
    assert (disk.free, file.size()) == (0, 3 * PAGE)
    file.write(PAGE, [b"x" * 2 * PAGE])
    with pytest.raises(OSError, match="no space"):
        file.write(3 * PAGE, [b"x"])
    with pytest.raises(OSError, match="no space"):
        disk.create("b")
    disk.unlink("a")
    assert disk.free == 3


def test_few_units_are_enumerated_and_many_are_sampled() -> None:
    disk = durable("a")
    disk.open("a").write(0, [b"x" * 4 * PAGE])
    assert len(disk.units()) == 5  # four pages and the size
    assert len(list(choices(disk, 100, 1))) == 2**5 * 3
    disk.open("a").write(0, [b"x" * 20 * PAGE])
    assert len(list(choices(disk, 100, 1))) == 100
    assert list(choices(disk, 100, 1)) == list(choices(disk, 100, 1))


def test_equal_disks_have_equal_fingerprints() -> None:
    disk = durable("a", "b")
    one = disk.crash(Choice(0, Fill.OLD, 1))
    assert one.fingerprint() == disk.crash(Choice(0, Fill.ZERO, 2)).fingerprint()
    disk.open("a").write(2, [b"x"])
    assert disk.crash(Choice(3, Fill.OLD, 1)).fingerprint() != one.fingerprint()
    disk.rename("b", "c")
    assert disk.crash(Choice(2, Fill.OLD, 1)).fingerprint() != one.fingerprint()


operations = st.one_of(
    st.tuples(st.just("create"), st.sampled_from("abc")),
    st.tuples(st.just("unlink"), st.sampled_from("abc")),
    st.tuples(st.just("rename"), st.sampled_from("abc"), st.sampled_from("abc")),
    st.tuples(st.just("write"), st.sampled_from("abc"), st.integers(0, 9000), st.integers(1, 9000)),
    st.tuples(st.just("truncate"), st.sampled_from("abc"), st.integers(0, 20_000)),
    st.tuples(
        st.just("allocate"), st.sampled_from("abc"), st.integers(0, 9000), st.integers(1, 9000)
    ),
    st.tuples(st.just("read"), st.sampled_from("abc"), st.integers(0, 9000), st.integers(0, 9000)),
    st.tuples(st.just("sync"), st.sampled_from("abc")),
)


def run(files: Files, operation: tuple[str, ...], step: int) -> object:
    kind, name, *rest = operation
    try:
        match kind:
            case "create":
                files.create(name)
            case "unlink":
                files.unlink(name)
            case "rename":
                files.rename(name, str(rest[0]))
            case "write":
                files.open(name).write(int(rest[0]), [bytes([step % 255 + 1]) * int(rest[1])])
            case "truncate":
                files.open(name).truncate(int(rest[0]))
            case "allocate":
                files.open(name).allocate(int(rest[0]), int(rest[1]))
            case "read":
                return files.open(name).read(int(rest[0]), int(rest[1]))
            case "sync":
                files.open(name).sync()
                files.sync_directory("")
    except OSError as error:
        return type(error)
    return {each: files.open(each).read(0, 1 << 20) for each in files.names("")}


@given(st.lists(operations, max_size=25))
def test_without_faults_it_is_the_real_disk(
    tmp_path_factory: pytest.TempPathFactory, ops: list[tuple[str, ...]]
) -> None:
    root: pathlib.Path = tmp_path_factory.mktemp("disk")
    real, simulated = Disk(str(root)), SimDisk()
    for step, operation in enumerate(ops):
        assert run(simulated, operation, step) == run(real, operation, step)

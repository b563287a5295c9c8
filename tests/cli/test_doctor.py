"""``doctor``: every verdict by a table of facts; then the real machine, left as it was."""

from __future__ import annotations

import json
import os
import resource
from typing import TYPE_CHECKING, Any

import pytest

from rlog import doctor as judge
from rlog.cli import doctor as gather
from rlog.cli import main
from rlog.doctor import MIB, Clock, Limits, Place, Software, Verdict
from rlog.files import Lock

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

PLACE = Place("ext4", frozenset({"rw", "relatime"}), "sda", "", False, 10**12, 10**13, 10**6, 10**7)
NOW = 1_800_000_000.0


def levels(verdicts: Iterable[Verdict]) -> list[str]:
    found = list(verdicts)
    for each in found:
        assert bool(each.advice) == (each.level != "ok"), "whoever is warned is told what to do"
    return [each.level for each in found]


@pytest.mark.parametrize(
    ("kind", "options", "expected"),
    [
        ("ext4", "rw,relatime", ["ok"]),
        ("xfs", "rw", ["ok"]),
        ("ext3", "rw", ["warn"]),
        ("btrfs", "rw", ["warn"]),
        ("zfs", "rw", ["warn"]),
        ("f2fs", "rw", ["warn"]),
        ("hammer9", "rw", ["warn"]),
        ("overlay", "rw", ["bad"]),
        ("tmpfs", "rw", ["bad"]),
        ("nfs4", "rw", ["bad"]),
        ("cifs", "rw", ["bad"]),
        ("9p", "rw", ["bad"]),
        ("virtiofs", "rw", ["bad"]),
        ("exfat", "rw", ["bad"]),
        ("ext4", "ro", ["ok", "bad"]),
        ("ext4", "rw,nobarrier", ["ok", "bad"]),
        ("xfs", "rw,barrier=0", ["ok", "bad"]),
    ],
)
def test_file_systems(kind: str, options: str, expected: list[str]) -> None:
    place = PLACE._replace(kind=kind, options=frozenset(options.split(",")))
    assert levels(judge.judge_file_system(place)) == expected


@pytest.mark.parametrize(
    ("free", "inodes", "of", "expected"),
    [
        (2048 * MIB, 4096, 10**6, ["ok", "ok"]),
        (2048 * MIB - 1, 4095, 10**6, ["warn", "warn"]),
        (512 * MIB, 64, 10**6, ["warn", "warn"]),
        (512 * MIB - 1, 63, 10**6, ["bad", "bad"]),
        (2048 * MIB, 0, 0, ["ok"]),  # made as they are needed
    ],
)
def test_space(free: int, inodes: int, of: int, expected: list[str]) -> None:
    place = PLACE._replace(free_bytes=free, free_inodes=inodes, total_inodes=of)
    assert levels(judge.judge_space(place)) == expected


@pytest.mark.parametrize(
    ("kind", "cache", "virtual", "seconds", "expected"),
    [
        ("ext4", "write back", False, [200e-6] * 100, ["ok", "ok"]),
        ("ext4", "", False, [200e-6], ["ok", "ok"]),
        ("ext4", "write back", False, [49e-6] * 100, ["ok", "warn"]),
        ("ext4", "write back", True, [49e-6] * 100, ["ok", "warn"]),
        ("ext4", "", True, [49e-6] * 100, ["ok", "warn"]),
        ("ext4", "write through", False, [10e-6] * 100, ["ok", "ok"]),
        ("tmpfs", "", False, [2e-6] * 100, ["ok", "bad"]),
        ("ext4", "write back", False, [21e-3] * 100, ["warn", "ok"]),
        ("ext4", "write back", False, [200e-6] * 98 + [2.0] * 2, ["warn", "ok"]),
        ("ext4", "write back", False, [200e-6] * 99 + [2.0], ["ok", "ok"]),
    ],
)
def test_syncs(
    kind: str, cache: str, virtual: bool, seconds: list[float], expected: list[str]
) -> None:
    place = PLACE._replace(kind=kind, write_cache=cache, virtual=virtual)
    assert levels(judge.judge_syncs(place, seconds)) == expected


@pytest.mark.parametrize(
    ("limits", "expected"),
    [
        (Limits(None, None, None), ["ok"]),
        (Limits(65536, None, None), ["ok"]),
        (Limits(4095, None, None), ["warn"]),
        (Limits(255, None, None), ["bad"]),
        (Limits(65536, 512 * MIB, None), ["warn", "ok"]),
        (Limits(65536, None, 100 * MIB), ["warn", "ok"]),
        (Limits(65536, None, MIB), ["bad", "ok"]),
    ],
)
def test_limits(limits: Limits, expected: list[str]) -> None:
    assert levels(judge.judge_limits(limits)) == expected


@pytest.mark.parametrize(
    ("clock", "expected"),
    [
        (Clock(True, 0.001, 0.0, NOW), ["ok"]),
        (Clock(None, 0.0, 0.0, NOW), ["ok"]),
        (Clock(False, 16.0, 0.0, NOW), ["warn"]),
        (Clock(True, 0.001, -0.2, NOW), ["warn", "ok"]),
        (Clock(True, 0.001, 0.0, 0.0), ["bad", "ok"]),
    ],
)
def test_clocks(clock: Clock, expected: list[str]) -> None:
    assert levels(judge.judge_clock(clock)) == expected


@pytest.mark.parametrize(
    ("installed", "hardware", "expected"),
    [
        ({"trio": "0.27"}, True, ["ok", "ok"]),
        ({"trio": "0.27.1rc1"}, True, ["ok", "ok"]),
        ({"trio": "1"}, False, ["ok", "ok", "warn"]),
        ({"trio": "0.9"}, True, ["ok", "bad", "ok"]),
        ({}, True, ["ok", "bad"]),
    ],
)
def test_software(installed: dict[str, str], hardware: bool, expected: list[str]) -> None:
    software = Software("3.13.1", "6.1", {"trio": "0.27"}, installed, hardware)
    assert levels(judge.judge_software(software)) == expected


def run(capfd: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, list[dict[str, Any]]]:
    code = main(("doctor", "-o", "jsonl", "--syncs", "3", *arguments))
    return code, [json.loads(line) for line in capfd.readouterr().out.splitlines()]


def test_the_real_machine_is_judged_and_left_as_it_was(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    code, verdicts = run(capfd, str(tmp_path))
    assert code == any(each["level"] == "bad" for each in verdicts)
    assert {each["about"] for each in verdicts} == {
        "file system", "space", "sync", "write cache", "directory", "limits", "clock", "software"
    }  # fmt: skip
    assert not list(tmp_path.iterdir())
    code = main(("doctor", "--syncs", "1", "--color", "never", str(tmp_path)))
    lines = capfd.readouterr().out.splitlines()
    assert all(line[:4].strip() in ("ok", "warn", "bad", "") for line in lines)


def test_memory_is_no_place_for_a_log(capfd: pytest.CaptureFixture[str]) -> None:
    if gather.look_at_place("/dev/shm").kind != "tmpfs":
        pytest.skip("it takes a tmpfs, and /dev/shm is none on this machine")
    code, verdicts = run(capfd, "/dev/shm")
    assert code == 1
    assert [each["level"] for each in verdicts if each["about"] == "write cache"] == ["bad"]


def test_it_tells_who_has_the_directory_and_whether_a_server_answers(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    lock = Lock(str(tmp_path))
    code, verdicts = run(capfd, "--addr", f"rlog+unix://{tmp_path}/nobody", str(tmp_path))
    lock.release()
    assert code == 1
    assert f"process {os.getpid()} serves it" in [each["found"] for each in verdicts]
    (server,) = (each for each in verdicts if each["about"] == "server")
    assert server["level"] == "bad"


def test_what_is_no_directory_is_said_so(tmp_path: Path) -> None:
    assert main(("doctor", str(tmp_path / "nothing"))) == 3


def test_the_mount_is_found_by_its_longest_point() -> None:
    assert gather.look_at_place("/proc").kind == "proc"
    assert gather.look_at_place("/proc/self/fd").kind == "proc"
    assert gather.look_at_place("/").kind != "proc"


def test_a_mount_of_nothing_and_one_with_blanks_in_its_name_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = tmp_path / "a b"
    here.mkdir()
    table = tmp_path / "mountinfo"
    point = str(here).replace(" ", "\\040")
    table.write_text(f"""\
22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw
43 22 0:39 / /elsewhere rw,relatime - tmpfs  rw
44 22 0:40 / {point} rw,nosuid - tmpfs  rw,size=1k
""")
    monkeypatch.setattr(gather, "MOUNTS", str(table))
    place = gather.look_at_place(str(here))
    assert place.kind == "tmpfs"
    assert place.options == {"rw", "nosuid", "size=1k"}
    assert gather.look_at_place(str(tmp_path)).kind == "ext4"


def test_what_the_system_does_not_say_is_not_guessed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gather, "MOUNTS", str(tmp_path / "not there"))
    place = gather.look_at_place(str(tmp_path))
    assert levels(judge.judge_file_system(place)) == ["ok"]


def test_the_limits_are_those_that_a_server_started_here_would_have() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (32 * MIB, hard))
    try:
        assert gather.look_at_limits().file_size == 32 * MIB
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be somebody else")
def test_the_directory_of_somebody_else_is_judged_as_far_as_it_can_be(tmp_path: Path) -> None:
    Lock(str(tmp_path)).release()
    (tmp_path / "lock").chmod(0o600)
    for each in (tmp_path, *tmp_path.parents[:2]):
        each.chmod(0o755)
    os.seteuid(12345)
    try:
        verdict = gather.look_at_holder(str(tmp_path))
    finally:
        os.seteuid(0)
    assert (verdict.level, "Permission denied" in verdict.found) == ("warn", True)


@pytest.mark.parametrize("device", ["ram0", "zram1"])
def test_a_disk_of_memory_is_none(device: str) -> None:
    place = PLACE._replace(device=device, write_cache="write through")
    assert levels(judge.judge_syncs(place, [10e-6])) == ["ok", "bad"]

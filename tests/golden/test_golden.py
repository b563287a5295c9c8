"""Promise 25: what was written by an older version is read; what is of an unknown version, or of
another directory, is refused and not touched.

``v1.json`` is a data directory of format version 1 (see ``make``): path -> contents, deflated, in
base64. It was made once, and is never made again.
"""

from __future__ import annotations

import json
import zlib
from base64 import b64decode
from pathlib import Path
from struct import pack
from typing import TYPE_CHECKING, Any, Final

import pytest
from crc32c import crc32c

import rlog
from rlog import frame
from rlog_client import batch

if TYPE_CHECKING:
    from collections.abc import Callable

GOLDEN: Final = {
    path: zlib.decompress(b64decode(raw))
    for path, raw in json.loads(Path(__file__).with_name("v1.json").read_text()).items()
}
CHECKPOINTS: Final = sorted(path for path in GOLDEN if path.startswith("checkpoint-"))
JOURNALS: Final = sorted(path for path in GOLDEN if path.startswith("journal/0"))
SEGMENTS: Final = sorted(path for path in GOLDEN if path.endswith(".seg"))


def laid(directory: Path, **changed: bytes) -> Path:
    """The golden directory in ``directory``, some of its files with other contents."""
    for path, raw in (GOLDEN | changed).items():
        (directory / path).parent.mkdir(parents=True, exist_ok=True)
        (directory / path).write_bytes(raw)
    return directory


def tree(directory: Path) -> dict[str, bytes]:
    files = (path for path in directory.rglob("*") if path.is_file())
    return {str(path.relative_to(directory)): path.read_bytes() for path in files}


def values(log: rlog.Log) -> dict[int, bytes]:
    return {record.offset: record.value for record in log.reader(rlog.OLDEST, block=False)}


def test_a_directory_of_version_1_is_read_as_it_was_written(tmp_path: Path) -> None:
    with rlog.open(laid(tmp_path)) as client:
        assert [log.name for log in client.logs()] == ["latest", "orders", "trimmed"]
        orders, latest, trimmed = (client.log(name) for name in ("orders", "latest", "trimmed"))
        assert values(orders) == {
            0: b"first",
            1: b"second",
            2: b"large" * 700,
            3: b"named",
            4: b"done",
            5: b"last",
        }
        _, second, *_ = orders.reader(rlog.OLDEST, block=False)
        assert (second.key, dict(second.headers), second.event_time_ns) == (
            *(b"k", {"trace": b"\xff"}, -5),
        )
        assert second.timestamp_ns == 1_700_000_100_000_000_008
        # Compacted: of each key the latest is there, and what has no key.
        left = values(latest)
        assert [left[offset] for offset in sorted(left)][-3:] == [b"5" * 900, b"free", b"together"]
        assert set(left) >= {1, 3, 5, 7, 9, 11, 12}
        assert not set(left) & {0, 2, 4}
        assert values(trimmed) == {n: b"%d" % n * 1900 for n in range(2, 6)}


def test_consumers_producers_and_options_of_version_1_are_as_they_were(tmp_path: Path) -> None:
    with rlog.open(laid(tmp_path)) as client:
        orders, latest, trimmed = (client.log(name) for name in ("orders", "latest", "trimmed"))
        assert {info.id: info.committed for info in orders.cursors()} == {"billing": 1, "crew": 0}
        [parked] = orders.cursor("billing").parked()
        assert (parked.record.value, parked.reason, parked.error, parked.attempts) == (
            *(b"first", "bad", "ValueError: no", 2),
        )
        assert trimmed.cursor(rlog.GLOBAL).info().committed == 3
        [etl] = [info for info in orders.producers() if info.name]
        assert (etl.name, etl.last_sequence) == ("etl", 41)
        with orders.producer(name="etl") as producer:
            assert producer.send(b"named", sequence=41).receipt().duplicate
            assert producer.send(b"next", sequence=42).result() == 6
        assert orders.info().options["max_file_age"] == 1e9
        options = latest.info().options
        assert (options["sync"], options["key_index"], options["compact"]) == ("never", True, True)
        assert trimmed.info().options["sync"] == "periodic:1s"
        record = latest.latest(b"k1")
        assert record is not None
        assert record.value == b"5" * 900
        seen: list[tuple[int, int]] = []

        def look(record: rlog.Record) -> rlog.Verdict:
            seen.append((record.offset, record.attempt))
            return rlog.STOP

        # It failed once, an hour before it was due.
        with orders.consumer("billing", takeover=True, block=False) as consumer:
            consumer.process(look, timeout=0.1)
        assert seen == [(1, 2)]


def test_what_is_written_behind_it_is_there_when_it_is_opened_once_more(tmp_path: Path) -> None:
    with rlog.open(laid(tmp_path)) as client:
        before = {log.name: values(client.log(log.name)) for log in client.logs()}
        assert client.log("orders").append(b"more") == 6
    with rlog.open(tmp_path) as client:
        before["orders"][6] = b"more"
        assert {log.name: values(client.log(log.name)) for log in client.logs()} == before


# --- what is not known here ---------------------------------------------------------------------


def resealed_checkpoint(raw: bytes, version: int) -> bytes:
    head, content = raw[:3] + bytes([version]) + raw[4:8], raw[12:]
    return head + pack("<I", crc32c(content, crc32c(head))) + content


def with_frames(raw: bytes, change: Callable[[bytearray], None]) -> bytes:
    """``change`` is made to the header of every frame, under a CRC that is right."""
    made = bytearray(raw)
    for position in range(0, len(raw), 4096):
        claimed = frame.peek(raw[position : position + frame.HEAD_BYTES])
        if claimed is not None:
            head = made[position : position + 48]
            change(head)
            facts = raw[position + frame.HEAD_BYTES :][: claimed[1]]
            made[position : position + 52] = head + pack("<I", crc32c(facts, crc32c(bytes(head))))
    return bytes(made)


def newer_frame(head: bytearray) -> None:
    head[3] = 2


def foreign_frame(head: bytearray) -> None:
    head[16:24] = b"stranger"


NEWEST: Final = [name for name in JOURNALS if any(GOLDEN[name])][-1]
UNKNOWN: Final[dict[str, dict[str, bytes]]] = {
    "the newest checkpoint of a newer version": {
        CHECKPOINTS[-1]: resealed_checkpoint(GOLDEN[CHECKPOINTS[-1]], 2)
    },
    "the older checkpoint of a newer version": {
        CHECKPOINTS[0]: resealed_checkpoint(GOLDEN[CHECKPOINTS[0]], 255)
    },
    "frames of a newer version": {NEWEST: with_frames(GOLDEN[NEWEST], newer_frame)},
    "frames of another directory": {NEWEST: with_frames(GOLDEN[NEWEST], foreign_frame)},
    "all frames of another directory": {
        name: with_frames(GOLDEN[name], foreign_frame) for name in JOURNALS
    },
    "a journal file of another size": {NEWEST: GOLDEN[NEWEST] + bytes(4096)},
    "no checkpoint but a stranger's": {name: b"RLX" + GOLDEN[name][3:] for name in CHECKPOINTS},
}


@pytest.mark.parametrize("what", UNKNOWN)
def test_what_is_unknown_or_foreign_is_refused_and_not_touched(tmp_path: Path, what: str) -> None:
    before = tree(laid(tmp_path, **UNKNOWN[what]))
    with pytest.raises(rlog.Refused) as refused:
        rlog.open(tmp_path)
    assert str(refused.value)
    after = tree(tmp_path)
    after.pop("lock", None)  # taken to look, and empty
    assert after == before


def resealed_batch(raw: bytes, position: int, changed: bytes) -> bytes:
    head = bytearray(raw[:76])
    head[position : position + len(changed)] = changed
    return bytes(head) + pack("<I", crc32c(bytes(head))) + raw[80:]


BATCHES: Final[dict[str, tuple[int, bytes]]] = {
    "of a newer version": (3, b"\x02"),
    "of an unknown codec": (4, b"\x09"),
    "of another log": (44, pack("<I", 99)),
    "of another offset": (48, pack("<Q", 77)),
}


@pytest.mark.parametrize("what", BATCHES)
def test_a_batch_that_is_unknown_or_foreign_is_its_readers_error_and_not_touched(
    tmp_path: Path, what: str
) -> None:
    """Below the checkpoints it is the only copy. It is named; what is behind it is read."""
    name = "logs/3/00000000000000000002.seg"
    changed = resealed_batch(GOLDEN[name], *BATCHES[what])
    assert batch.parse_header(GOLDEN[name]).base == 2
    with rlog.open(laid(tmp_path, **{name: changed})) as client:
        reader = client.log("trimmed").reader(rlog.OLDEST, block=False)
        with pytest.raises(rlog.CorruptData) as damage:
            next(reader)
        assert (damage.value.first, damage.value.end, damage.value.file) == (2, 3, name)
        assert [record.offset for record in reader] == [3, 4, 5]
    assert (tmp_path / name).read_bytes() == changed


def test_the_script_makes_what_it_made() -> None:
    """Of the same paths: the contents are of that day, with their ids."""
    from .make import make

    found: dict[str, Any] = make().tree()
    assert {path.partition("/")[0] for path in found} == {path.partition("/")[0] for path in GOLDEN}
    assert [path for path in found if path.endswith(".seg")] == SEGMENTS

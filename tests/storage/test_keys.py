"""The key index: the last offset of each key, and how that is written."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import msgspec
import pytest

from rlog import keys, state
from rlog.facts import Options
from rlog.keys import Keys
from rlog.state import Log, State

if TYPE_CHECKING:
    from collections.abc import Iterable


def keys_of(pairs: Iterable[tuple[bytes, int]]) -> Keys:
    made = Keys()
    for key, offset in pairs:
        made.put(key, offset)
    return made


THREE = keys_of([(b"a", 0), (b"b", 1), (b"c", 2), (b"a", 3), (b"b", 4)])


def test_of_each_key_the_last_offset_is_known() -> None:
    assert [THREE.get(key) for key in (b"a", b"b", b"c", b"d")] == [3, 4, 2, -1]
    assert THREE.get(b"d", 7) == 7
    assert len(THREE) == 3
    assert not Keys()


def test_put_tells_what_it_displaced() -> None:
    made = Keys()
    assert [made.put(b"a", 5), made.put(b"a", 9), made.put(b"b", 9)] == [-1, 5, -1]


def test_a_key_keeps_its_place_whatever_is_put() -> None:
    made = keys_of([(b"a", 0), (b"b", 1), (b"c", 2)])
    made.put(b"b", 8)
    assert list(made.offsets(0, 2)) == [0, 8]
    assert list(made.offsets(1, 9)) == [8, 2]


def test_trimmed_away_are_the_keys_whose_last_offset_is_below() -> None:
    left = THREE.since(3)
    assert dict(left.items()) == {b"a": 3, b"b": 4}
    assert list(left.offsets(0, 9)) == [3, 4], "and their places, too"


def test_two_are_alike_if_they_say_the_same() -> None:
    assert keys_of([(b"a", 1), (b"b", 2)]) == keys_of([(b"b", 2), (b"a", 1)])
    assert keys_of([(b"a", 1)]) != keys_of([(b"a", 2)])
    assert keys_of([]) != {}


def test_an_index_is_loaded_as_it_was() -> None:
    made = State(logs={1: Log(1, "l", Options(), keys=THREE)})
    again = state.load(state.dump(made))
    assert again == made
    assert again.logs[1].keys.put(b"b", 9) == 4
    assert again != made


def test_what_was_written_once_is_read() -> None:
    assert dict(Keys.from_wire({b"k": 7, b"l": 2}).items()) == {b"k": 7, b"l": 2}
    assert Keys.from_wire({}) == Keys()


def test_an_empty_index_is_loaded_as_it_was() -> None:
    assert Keys.from_wire(Keys().to_wire()) == Keys()


@pytest.mark.parametrize("order", ["big", "little"])
def test_offsets_are_little_endian_on_every_machine(
    monkeypatch: pytest.MonkeyPatch, order: str
) -> None:
    swapped = order != sys.byteorder
    monkeypatch.setattr(sys, "byteorder", order)
    made = keys_of([(b"k", 0x0102)])
    raw = bytes([2, 1, 0, 0, 0, 0, 0, 0])
    assert made.to_wire() == ({b"k": 0}, raw[::-1] if swapped else raw)
    assert made.get(b"k") == 0x0102, "what is in use was not swapped"
    assert Keys.from_wire(made.to_wire()) == made


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        ([], "no index of keys"),
        (5, "no index of keys"),
        ([{}, b"12345678"], "an index of keys whose slots do not fit"),
        ([{b"k": 1}, bytes(8)], "an index of keys whose slots do not fit"),
        ([{b"k": 0}, b"1234567"], "not a multiple"),
        ([{b"k": 0, b"l": 1}, bytes(8)], "an index of keys whose slots do not fit"),
        ({b"k": -1}, "no offset: "),
        ({b"k": "1"}, "interpreted as an integer|an integer is required"),
        ([{b"k": "0"}, bytes(8)], "str"),
    ],
)
def test_what_is_no_index_is_not_loaded(wrong: object, reason: str) -> None:
    raw = msgspec.msgpack.encode([wrong])
    with pytest.raises(msgspec.ValidationError, match=reason):
        msgspec.msgpack.decode(raw, type=tuple[Keys], dec_hook=keys.dec_hook)

"""The key index of a log: the last offset of each key. A part of the state.

Its own wire form, too, since msgspec knows neither the class nor the array in it.
"""

from __future__ import annotations

import sys
from array import array
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator


class Keys:
    """The last offset of each key.

    Two levels, so that a thread can go through the offsets a part at a time while others change.
    """

    __slots__ = ("_offsets", "_slots")

    def __init__(self) -> None:
        self._slots: dict[bytes, int] = {}  # key -> index in _offsets
        self._offsets = array("Q")

    def get(self, key: bytes, default: int = -1) -> int:
        slot = self._slots.get(key)
        return default if slot is None else self._offsets[slot]

    def put(self, key: bytes, offset: int) -> int:
        """-> the offset that it had, -1 for none."""
        slot = self._slots.get(key)
        if slot is None:
            # In this order: a thread that compacts may be looking.
            self._offsets.append(offset)
            self._slots[key] = len(self._offsets) - 1
            return -1
        before = self._offsets[slot]
        self._offsets[slot] = offset
        return before

    def offsets(self, begin: int, end: int) -> array[int]:
        """Some of them, in no order; a key keeps its index for as long as this lives."""
        return self._offsets[begin:end]

    def since(self, first: int) -> Keys:
        """Without those whose last offset is below ``first``."""
        new, offsets = Keys(), self._offsets
        for key, slot in self._slots.items():
            if offsets[slot] >= first:
                new.put(key, offsets[slot])
        return new

    def __len__(self) -> int:
        return len(self._slots)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Keys) and dict(self.items()) == dict(other.items())

    def items(self) -> Iterator[tuple[bytes, int]]:
        return ((key, self._offsets[slot]) for key, slot in self._slots.items())

    def to_wire(self) -> tuple[dict[bytes, int], bytes]:
        """The slots, and the offsets as little-endian numbers of 64 bits."""
        offsets = self._offsets
        if sys.byteorder == "big":
            offsets = offsets[:]
            offsets.byteswap()
        return self._slots, offsets.tobytes()

    @classmethod
    def from_wire(cls, wire: object) -> Keys:
        """Raises ValueError or TypeError."""
        keys = cls()
        if isinstance(wire, dict):  # as it was written once: the offsets themselves
            keys._slots = {key: slot for slot, key in enumerate(wire)}
            try:
                keys._offsets.extend(wire.values())
            except OverflowError as error:
                raise ValueError(f"no offset: {error}") from None
            return keys
        match wire:
            case [dict(slots), bytes(raw)]:
                keys._slots = slots
                keys._offsets.frombytes(raw)
            case _:
                raise ValueError("no index of keys")
        if sys.byteorder == "big":
            keys._offsets.byteswap()
        if max(slots.values(), default=-1) + 1 != len(slots) or len(slots) != len(keys._offsets):
            raise ValueError("an index of keys whose slots do not fit")
        return keys


def enc_hook(value: object) -> object:
    """What msgspec does not know, for it to encode."""
    assert isinstance(value, Keys)
    return value.to_wire()


def dec_hook(kind: type, wire: object) -> object:
    assert kind is Keys
    return Keys.from_wire(wire)

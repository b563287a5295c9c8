"""Who may have which record of a shared consumer: the same rules, by looking at everything.

Slow, and plain: every record has one place, and what may be given is found by a look at all.
"""

from __future__ import annotations

from enum import Enum


class At(Enum):
    FREE = "nobody has it"
    HAND = "somebody has it"
    LATE = "it failed, and is not due"
    DONE = "it is done with"


class Entry:
    """A record. ``sure``: that it is done with is durable. ``gone``: it cannot be had."""

    def __init__(self, offset: int, key: bytes | None, *, gone: bool) -> None:
        self.offset, self.key, self.gone = offset, key, gone
        self.at = At.FREE
        self.sure = True
        self.holder: int | None = None
        self.due = 0.0
        self.attempts = 0
        self.alone = self.parked = self.redriven = False
        self.looked_up = False  # its key, in this life

    @property
    def is_out(self) -> bool:
        return self.at in (At.HAND, At.LATE) or not self.sure

    def settle(self, *, parked: bool = False) -> None:
        self.at, self.holder, self.attempts = At.DONE, None, 0
        self.alone = self.redriven = False
        self.parked = parked

    def free(self) -> None:
        self.at, self.holder = At.FREE, None


class Model:
    """``paused``: one record at a time."""

    def __init__(self) -> None:
        self.entries: list[Entry] = []
        self.paused = False

    @property
    def floor(self) -> int:
        for entry in self.entries:
            if entry.at is not At.DONE and not entry.redriven:
                return entry.offset
        return len(self.entries)

    def hands(self, epoch: int) -> list[Entry]:
        return [entry for entry in self.entries if entry.holder == epoch]

    def why_not(self, entry: Entry, epoch: int) -> str:
        """What forbids that this member gets this record now."""
        if entry.at is not At.FREE:
            return f"{entry.offset}: {entry.at.value}"
        mine = self.hands(epoch)
        if mine and (entry.alone or any(each.alone for each in mine)):
            return f"{entry.offset} is a suspect, or is to go beside one"
        if self.paused and any(each.at is At.HAND for each in self.entries):
            return f"{entry.offset} is not the only one of a consumer that is paused"
        for other in self.entries if entry.key is not None else ():
            if other is entry or other.key != entry.key:
                continue
            new = not other.redriven and not entry.redriven
            late = other.at is At.LATE and other.sure
            if late and (other.gone or entry.redriven or (new and other.offset > entry.offset)):
                continue  # not looked up since the start, or in hand since then and too early
            if other.is_out:
                return f"{other.offset}, of the same key, is out"
            first = other.at is At.FREE and not other.gone and other.offset < entry.offset
            if first and new:
                return f"{other.offset}, of the same key, goes before {entry.offset}"
        return ""

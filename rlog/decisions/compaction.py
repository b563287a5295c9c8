"""Decisions about compaction: from when on a rewritten segment counts."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rlog_client import protocol
from rlog_client.errors import InvalidRequest

from .. import facts
from ..shared import add, holes, pairs
from .desk import Answer

if TYPE_CHECKING:
    from .. import state
    from .desk import Books, Desk, Make, Waiting


class Compact(protocol.Control):
    """Segments were rewritten into one file, which is on the disk. Never on the wire.

    ``sources``: base and generation of each. ``in_use``: see there, when it began.
    """

    log: int
    base: int
    end: int
    generation: int
    bytes: int
    absent: int
    stale: int
    sources: list[tuple[int, int]]
    in_use: list[int]


def in_use(books: Books, log: state.Log, base: int, end: int) -> list[int]:
    """The offsets in a range whose records consumers have parked, or may still park: what was sent
    to them and is not settled, for they have the bytes. These records stay. As ranges: begin, end,
    begin, end, ...
    """
    found: list[int] = []

    def use(begin: int, behind: int) -> None:
        if (low := max(begin, base)) < (high := min(behind, end)):
            add(found, low, high)

    for name, cursor in log.cursors.items():
        for offset in cursor.parked:
            use(offset, offset + 1)
        if cursor.shared is None:
            use(cursor.committed, max(cursor.begun, books.delivered((log.id, name))))
            continue
        for member in cursor.shared.members.values():
            for offset in member.begun:
                use(offset, offset + 1)
        if (group := books.groups.get((log.id, name))) is not None:
            for begin, behind in holes(cursor.shared.settled, cursor.committed, group.head):
                use(begin, behind)
            for mate in group.mates.values():
                for offset in mate.hands:
                    use(offset, offset + 1)
    return found


def protected_end(log: state.Log) -> int:
    """Up to where consumers whom nothing may overtake are done."""
    cursors = [log.cursors.get(name) for name in log.options.protected]
    return min((0 if c is None else c.committed for c in cursors), default=log.end)


def compact(desk: Desk, waiting: Waiting, control: Compact) -> Make:
    desk.writable()
    log = desk.log(control.log)
    base, end, generation, sources = control.base, control.end, control.generation, control.sources
    there = [(each.base, each.generation) for each in log.segments if base <= each.base < end]
    if there != sources:
        raise InvalidRequest("segments were trimmed while they were compacted")
    needed = pairs(in_use(desk.books, log, base, end))
    came = any(any(holes(control.in_use, begin, behind)) for begin, behind in needed)
    if came or protected_end(log) < end:
        raise InvalidRequest("consumers came to need what was compacted")
    books, files = desk.books, desk.books.files[log.id]
    desk.fact(
        facts.Compacted(log.id, base, end, generation, control.bytes, control.absent, control.stale)
    )

    def unlink() -> None:
        for each in sources:
            files.unlink(*each)

    def replace() -> None:
        files.replace(sources, base, generation)
        # Not yet: should this frame rot while it is the last one, it counts as torn, and then it is
        # the old files that are named.
        books.outdated.append(unlink)

    desk.effects.append(replace)
    return lambda _synced: Answer(protocol.Done())

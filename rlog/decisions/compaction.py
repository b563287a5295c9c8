"""Decisions about compaction: from when on a rewritten segment counts."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rlog_client import protocol
from rlog_client.errors import InvalidRequest

from .. import facts
from .desk import Answer

if TYPE_CHECKING:
    from .. import state
    from .desk import Desk, Make, Waiting


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
    in_use: set[int]


def in_use(log: state.Log, base: int, end: int) -> set[int]:
    """The offsets in a range whose records consumers have parked, or in hand: they stay."""
    found: set[int] = set()
    for cursor in log.cursors.values():
        found.update(offset for offset in cursor.parked if base <= offset < end)
        found.update(range(max(cursor.committed, base), min(cursor.begun, end)))
        for member in cursor.shared.members.values() if cursor.shared is not None else ():
            found.update(offset for offset in member.begun if base <= offset < end)
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
    if in_use(log, base, end) - control.in_use or protected_end(log) < end:
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

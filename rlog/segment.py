"""One segment: batches one behind the other, exactly as their producers made them, and nothing
else. (Of one that was compacted: and sparse ones, where records are absent. It is another file, of
another *generation*.)

A walk checks headers one after the other: each must be the next offset of this log, and where one
is not, the walk says from which offset to which the records are lost and goes on behind them.
(Readers that are served find whole batches by the same rules in ``log``, and walk where those are
broken.) It is pure: it sees bytes through a function.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from rlog_client.batch import HEADER_BYTES, MAGIC, Header, InvalidBatch, Lost, parse_header

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_WINDOW: Final = 256 * 1024
_PAGE: Final = 4096


def directory(log: int) -> str:
    return f"logs/{log}"


def path(log: int, base: int, generation: int = 0) -> str:
    return f"logs/{log}/{base:020}{f'.{generation}' if generation else ''}.seg"


def parse_name(name: str) -> tuple[int, int] | None:
    """The base and the generation in a segment's file name, or None if it is not one."""
    stem, _, rest = name.partition(".")
    middle = rest.rpartition(".")[0]
    if len(stem) != 20 or not (stem + middle).isdecimal():
        return None
    found = int(stem), int(middle or 0)
    return found if path(0, *found).rpartition("/")[2] == name else None


def base_of(name: str) -> int | None:
    """The base in a segment's file name, or None if it is not one."""
    found = parse_name(name)
    return None if found is None else found[0]


class Found(NamedTuple):
    """A batch whose header is sound, and where it begins."""

    position: int
    header: Header


class Damage(NamedTuple):
    """The records ``first`` to ``end`` (exclusive) cannot be reached: ``reason`` at
    ``position``. ``declared``: a repair has said so already.
    """

    position: int
    first: int
    end: int
    reason: str
    declared: bool = False


class Place(NamedTuple):
    """Where a batch lies: log id, base of its segment, position in that file; ``new``: it begins
    one.
    """

    log: int
    segment: int
    position: int
    new: bool


class Extent(NamedTuple):
    """What a segment should hold: offsets ``base`` to ``end``, in its first ``length`` bytes.

    ``milestones``: see ``index``.
    """

    log: int
    base: int
    end: int
    length: int
    generation: int = 0
    milestones: bytes = b""


class _Window:
    """A sliding view of a file: small headers, far apart or close together, in few reads."""

    def __init__(self, read: Callable[[int, int], bytes]) -> None:
        self._read = read
        self._begin = 0
        self._data = b""

    def get(self, position: int, count: int) -> memoryview:
        at = position - self._begin
        if not 0 <= at <= at + count <= len(self._data):
            # Behind a long body lies another one, as a rule: not to be read for its header's sake.
            far = self._data and at - len(self._data) > _WINDOW
            self._data = self._read(position, max(count, _PAGE if far else _WINDOW))
            self._begin, at = position, 0
        return memoryview(self._data)[at : at + count]


def walk(
    read: Callable[[int, int], bytes], extent: Extent, position: int = 0, offset: int | None = None
) -> Iterator[Found | Damage]:
    """The batches from ``position`` on, the first of which should hold ``offset`` (default: the
    base).

    ``read(position, count)`` gives fewer bytes at the end of the file only.
    """
    window = _Window(read)
    expected = extent.base if offset is None else offset
    while expected < extent.end:
        header, reason = _header_at(window, extent, position, expected)
        if header is not None:
            if header.lost:
                yield Damage(position, expected, header.end, str(Lost(header)), True)
            else:
                yield Found(position, header)
            position += header.bytes
            expected = header.end
            continue
        found = _resume(window, extent, position + 1, expected)
        end = found.header.base if found else extent.end
        yield Damage(position, expected, end, reason)
        if found is None:
            return
        position, expected = found.position, end


def _parse(raw: bytes | memoryview) -> Header:
    """A header, also of a batch that was declared lost. Raises InvalidBatch."""
    try:
        return parse_header(raw)
    except Lost as lost:
        return lost.header


def _header_at(
    window: _Window, extent: Extent, position: int, expected: int
) -> tuple[Header | None, str]:
    """The header at ``position`` if it is sound, of this log, the expected one and inside the
    extent.
    """
    if position + HEADER_BYTES > extent.length:
        return None, f"the segment ends at {extent.length}"
    try:
        header = _parse(window.get(position, HEADER_BYTES))
    except InvalidBatch as error:
        return None, str(error)
    if header.log != extent.log:
        return None, f"a batch of log {header.log}"
    if header.base != expected:
        return None, f"a batch of offset {header.base} instead of {expected}"
    if header.end > extent.end or position + header.bytes > extent.length:
        return None, "a batch that reaches beyond the segment"
    return header, ""


def _resume(window: _Window, extent: Extent, position: int, expected: int) -> Found | None:
    """The next batch behind damage.

    A body is its user's and may hold anything, also what looks like a header. So one counts only if
    what follows it is the next batch again, or the end of the segment. (A body cannot by chance
    hold two that follow each other: they would have this log's id and offsets that did not exist
    yet when it was appended. One who forges them would still need the rot to strike that very
    batch.)
    """
    while position + HEADER_BYTES <= extent.length:
        # One header more than a window, so that none is cut in two.
        wanted = min(_WINDOW + HEADER_BYTES, extent.length - position)
        chunk = bytes(window.get(position, wanted))
        at = chunk.find(MAGIC)
        while 0 <= at <= len(chunk) - HEADER_BYTES:
            found = _candidate(
                window, extent, position + at, chunk[at : at + HEADER_BYTES], expected
            )
            if found is not None:
                return found
            at = chunk.find(MAGIC, at + 1)
        if len(chunk) < wanted:
            return None  # the file is shorter than it should be
        position += max(wanted - HEADER_BYTES, 1)
    return None


def _candidate(
    window: _Window, extent: Extent, position: int, raw: bytes, expected: int
) -> Found | None:
    try:
        header = _parse(raw)
    except InvalidBatch:
        return None
    if header.log != extent.log or not expected < header.base < header.end <= extent.end:
        return None
    behind = position + header.bytes
    if header.end == extent.end:
        return Found(position, header) if behind == extent.length else None
    follows, _ = _header_at(window, extent, behind, header.end)
    return Found(position, header) if follows is not None else None

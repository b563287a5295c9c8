"""One log's files: reserve, write, read, trim.

What lies where is the state's business, not decided here.
"""

from __future__ import annotations

import contextlib
import errno
import threading
from collections import OrderedDict
from itertools import chain
from typing import TYPE_CHECKING, Final, NamedTuple

from rlog_client.batch import HEADER_BYTES, InvalidBatch, parse_header

from .index import Index, Milestone, milestone_at_offset, milestone_at_time
from .segment import Damage, Extent, Found, Place, directory, parse_name, path, walk

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from .files import File, Files

RESERVE_MIN: Final = 64 * 1024
RESERVE_MAX: Final = 16 << 20
HANDLES_MAX: Final = 256

Buffer = bytes | bytearray | memoryview


class Chunk(NamedTuple):
    """Whole batches, contiguous, the first of which holds the offset asked for; none where that is
    too large. ``next``: the offset after them; ``following``: how many bytes the batch there has, 0
    where that was not seen.
    """

    data: memoryview
    next: int
    position: int
    following: int


class Spot(NamedTuple):
    """A batch's position in its segment, and its append time."""

    position: int
    time_ns: int


class Handles:
    """Segments open for reading, the least recently used closed first; shared by all logs of a
    server.
    """

    def __init__(self, files: Files) -> None:
        self.files = files
        self.open_max = HANDLES_MAX
        self.dirty = 0  # files that were written and wait for a checkpoint to sync them
        self._open: OrderedDict[tuple[int, int, int], File] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, log: int, base: int, generation: int = 0) -> File:
        key = (log, base, generation)
        with self._lock:
            file = self._open.get(key)
            if file is None:
                file = self._open[key] = self.files.open(path(*key), write=False)
                if len(self._open) > self.open_max:
                    self._open.popitem(last=False)
            else:
                self._open.move_to_end(key)
            return file

    def drop(self, log: int, base: int, generation: int) -> None:
        with self._lock:
            self._open.pop((log, base, generation), None)


class LogFiles:
    """The segments of one log on the disk.

    Written by one thread; read by any, since what is below the visible end does not change.
    """

    def __init__(self, handles: Handles, log: int) -> None:
        self._handles = handles
        self._files = handles.files
        self.id = log
        self._base = -1  # of the segment being written
        self._length = 0  # of it, as far as it is written
        self._reserved: dict[int, int] = {}  # base -> bytes that are sure to have space
        # By base and generation, and by where they begin: at a milestone, or with the segment.
        self._indexes: dict[tuple[int, int], dict[int, Index]] = {}
        self._generations: dict[int, int] = {}  # of the segments that were rewritten, by base
        self._index_lock = threading.Lock()
        # A file that is written stays open until a checkpoint has synced it, and no longer: the
        # kernel tells a failed write-back to those who hold the file, and forgets it with them.
        self._dirty: dict[int, File] = {}
        self._names_changed = False

    def make(self) -> None:
        self._files.make_directory(directory(self.id))
        self._names_changed = True

    # --- at recovery --------------------------------------------------------------------------

    def restore(self, base: int, position: int, pieces: Sequence[Buffer]) -> None:
        """Write a part of a segment anew; the file is made if it is not there."""
        # Also where it is: a process that was killed may have made it, and nobody synced its name.
        self._names_changed = True
        file = self._dirty.get(base)
        if file is None:
            try:
                file = self._files.open(path(self.id, base))
            except FileNotFoundError:
                file = self._files.create(path(self.id, base))
            self._soil(base, file)
        file.write(position, pieces)

    def cut(self, base: int, length: int, generation: int = 0) -> None:
        """Give a segment its length: what is behind it was never part of the log, what is missing
        reads as zeros.
        """
        if generation:
            self._generations[base] = generation
        name = path(self.id, base, generation)
        try:
            file = self._dirty.get(base) or self._files.open(name)
        except FileNotFoundError:
            file = self._files.create(name)
            self._names_changed = True
        if file.size() != length:
            file.truncate(length)
            self._soil(base, file)

    def adopt(self, base: int, length: int) -> None:
        """Go on writing this segment behind ``length`` bytes."""
        self._base, self._length = base, length
        self._reserved[base] = length

    # --- at run time --------------------------------------------------------------------------

    def reserved(self, place: Place, size: int) -> bool:
        """``reserve`` has nothing to do."""
        base, end = place.segment, place.position + size
        return base == self._base and base in self._dirty and end <= self._reserved[base]

    def reserve(self, place: Place, size: int, roll_bytes: int) -> None:
        """Make sure that ``write`` at ``place`` cannot run out of space.

        Raises OSError (ENOSPC).
        """
        # The files are opened here, where a failure refuses one append; ``write`` must not fail.
        if self._base >= 0:
            self._hold(self._base)
        if place.segment not in self._dirty:
            # A leftover of an append that was refused halfway is as good as new.
            with contextlib.suppress(FileNotFoundError):
                self._files.unlink(path(self.id, place.segment))
            self._soil(place.segment, self._files.create(path(self.id, place.segment)))
            self._names_changed = True
        end = place.position + size
        have = self._reserved.get(place.segment, 0)
        if end > have:
            # Steps that grow with the file: little waste for small logs, few calls for large ones.
            step = min(max(end, RESERVE_MIN), RESERVE_MAX)
            goal = max(end, min(end + step, roll_bytes))
            try:
                self._dirty[place.segment].allocate(have, goal - have)
            except OSError as error:
                if goal == end or error.errno not in (errno.ENOSPC, errno.EDQUOT):
                    raise
                goal = end  # what there is may do for this one
                self._dirty[place.segment].allocate(have, goal - have)
            self._reserved[place.segment] = goal

    def _hold(self, base: int) -> None:
        if base not in self._dirty:
            self._soil(base, self._files.open(path(self.id, base)))

    def write(self, place: Place, pieces: Sequence[Buffer], size: int) -> None:
        """Lay out batches, ``size`` bytes in all, at ``place``, which was reserved.

        An older segment is cut to its length.
        """
        if place.segment != self._base:
            if self._base >= 0:
                self._dirty[self._base].truncate(self._length)
                del self._reserved[self._base]
            self._base = place.segment
        self._dirty[self._base].write(place.position, pieces)
        self._length = place.position + size

    def take_dirty(self) -> tuple[list[File], bool]:
        """What a checkpoint has to sync: files, and whether the directory too."""
        taken = list(self._dirty.values())
        for base in list(self._dirty):
            self._clean(base)
        changed, self._names_changed = self._names_changed, False
        return taken, changed

    def _soil(self, base: int, file: File) -> None:
        self._handles.dirty += base not in self._dirty
        self._dirty[base] = file

    def _clean(self, base: int) -> None:
        self._handles.dirty -= self._dirty.pop(base, None) is not None

    def tail(self, base: int, position: int, count: int) -> bytes:
        """Bytes of a segment, for a checkpoint."""
        return self._handles.get(self.id, base).read(position, count)

    def trim(self, bases: Sequence[int]) -> None:
        """Remove whole segments."""
        for base in bases:
            generation = self._generations.pop(base, 0)
            self._clean(base)
            self._reserved.pop(base, None)
            if base == self._base:
                self._base = -1
            self.unlink(base, generation)

    def make_rewritten(self, base: int, generation: int) -> File:
        """An empty file for what compaction leaves. Raises OSError."""
        # One that was given up halfway is as good as new.
        with contextlib.suppress(FileNotFoundError):
            self._files.unlink(path(self.id, base, generation))
        return self._files.create(path(self.id, base, generation))

    def sync_names(self) -> None:
        """The names of its files are on the disk. Nothing happens if the log was deleted."""
        self._files.sync_directory("logs")  # its own name: before a checkpoint nobody needs that
        with contextlib.suppress(FileNotFoundError):
            self._files.sync_directory(directory(self.id))

    def replace(self, old: Sequence[tuple[int, int]], base: int, generation: int) -> None:
        """The segments ``old`` (base, generation) are this one now. Their files stay."""
        for each, _ in old:
            self._generations.pop(each, None)
            self._clean(each)
        self._generations[base] = generation

    def unlink(self, base: int, generation: int) -> None:
        """Remove a file that is no part of the log any more. Who has it open reads on."""
        self._handles.drop(self.id, base, generation)
        self._indexes.pop((base, generation), None)
        self._names_changed = True
        with contextlib.suppress(FileNotFoundError):  # lost before, and known to its readers
            self._files.unlink(path(self.id, base, generation))

    def delete(self) -> None:
        """Remove the log's files and its directory."""
        for base in list(self._dirty):
            self._clean(base)
        for name in self._files.names(directory(self.id)):
            if (segment := parse_name(name)) is not None:
                self._handles.drop(self.id, *segment)
            self._files.unlink(f"{directory(self.id)}/{name}")
        self._files.remove_directory(directory(self.id))

    # --- reading ------------------------------------------------------------------------------

    def read(
        self,
        extent: Extent,
        position: int | None,
        offset: int,
        bytes_max: int,
        *,
        batch_max: int | None = None,
        wait: bool,
    ) -> Chunk | Damage | None:
        """Batches of ``extent`` from the one that holds ``offset``, of ``bytes_max`` bytes at most;
        but at least one, unless that is larger than ``batch_max``.

        ``position``: where ``offset`` begins, if known. None is returned rather than waiting for
        the disk, unless ``wait``. OSError: the disk could not be read.
        """
        file = self.file(extent)
        if position is None:
            at = self._seek(file, extent, offset, wait)
            if at is None or isinstance(at, Damage):
                return at
            position = at
        count = min(max(bytes_max, HEADER_BYTES), extent.length - position)
        while True:
            data: bytes | bytearray | None
            data = file.read(position, count) if wait else file.read_cached(position, count)
            if data is None:
                return None
            end, at_end, want = self._cut(data, extent, position, offset)
            if end:
                return Chunk(memoryview(data)[:end], at_end, position, want)
            if want <= count or len(data) < count:
                break
            if batch_max is not None and want > batch_max:
                return Chunk(memoryview(b""), offset, position, want)
            count = want  # a batch larger than what was asked for
        found = next(walk(file.read, extent, position, offset), None)
        if isinstance(found, Damage):
            return found
        # What is cached was damaged, and the disk was not: say so rather than go round for ever.
        return Damage(position, offset, extent.end, "two reads differ")

    def file(self, extent: Extent) -> File:
        """Open for reading. Raises OSError."""
        return self._handles.get(self.id, extent.base, extent.generation)

    @staticmethod
    def _cut(data: Buffer, extent: Extent, position: int, offset: int) -> tuple[int, int, int]:
        """How much of ``data`` is whole, sound batches: bytes, the offset behind them, bytes the
        next one needs.
        """
        at, expected, first = 0, offset, True
        while at + HEADER_BYTES <= len(data) and expected < extent.end:
            try:
                header = parse_header(data, at)
            except InvalidBatch:
                return at, expected, 0
            # The first batch may begin below the offset asked for; every other one is the next.
            fits = header.base <= expected < header.end if first else header.base == expected
            if not fits or header.log != extent.log or header.end > extent.end:
                return at, expected, 0
            if at + header.bytes > len(data):
                # Beyond the segment's length it is no batch, whatever its CRC says.
                inside = position + at + header.bytes <= extent.length
                return at, expected, header.bytes if inside else 0
            at += header.bytes
            expected, first = header.end, False
        return at, expected, 0

    def _seek(self, file: File, extent: Extent, offset: int, wait: bool) -> int | Damage | None:
        """The position of the batch that holds ``offset``."""
        if offset == extent.base:
            return 0
        if not wait:
            return None
        for found in self._walk_from_index(file, extent, offset=offset):
            if found.header.end > offset if isinstance(found, Found) else found.end > offset:
                if isinstance(found, Found):
                    return found.position
                return Damage(found.position, offset, found.end, found.reason)
        return Damage(extent.length, offset, extent.end, "no such offset in the segment")

    def find(self, extent: Extent, offset: int) -> Spot | None:
        """Where the batch that holds ``offset`` begins, and when it was appended. May wait.

        None: it cannot be read.
        """
        file = self.file(extent)
        for found in self._walk_from_index(file, extent, offset=offset):
            if isinstance(found, Damage):
                if found.end > offset:
                    break  # unreadable: the next sound batch is as near as one can tell
            elif found.header.end > offset:
                return Spot(found.position, found.header.time_ns)
        return None

    def find_time(self, extent: Extent, time_ns: int) -> int:
        """The first offset in ``extent`` of a batch appended at or after ``time_ns``, or its end.

        May wait.
        """
        file = self.file(extent)
        for found in self._walk_from_index(file, extent, time_ns=time_ns):
            if isinstance(found, Found) and found.header.time_ns >= time_ns:
                return found.header.base
        return extent.end

    def _walk_from_index(
        self, file: File, extent: Extent, *, offset: int | None = None, time_ns: int | None = None
    ) -> Iterator[Found | Damage]:
        """A walk from the nearest place that the index knows; what it learns stays in the index."""
        if offset is not None:
            milestone = milestone_at_offset(extent.milestones, offset)
        else:
            assert time_ns is not None
            milestone = milestone_at_time(extent.milestones, time_ns)
        begin = milestone or Milestone(extent.base, 0, -1)
        with self._index_lock:
            indexes = self._indexes.setdefault((extent.base, extent.generation), {})
            index = indexes.setdefault(begin.position, Index(begin.offset, begin.position))
            if offset is not None:
                start, position = index.at_offset(min(offset, index.end))
            else:
                assert time_ns is not None
                start, position = index.at_time(time_ns)
        walked = walk(file.read, extent, position, start)
        first = next(walked, None)
        if not isinstance(first, Found) and (start, position) != (extent.base, 0):
            # The batch is damaged, or the index is wrong: without it that can be told.
            with self._index_lock:
                index = indexes[0] = Index(extent.base)
            walked = walk(file.read, extent)
            first = next(walked, None)
        for found in chain(() if first is None else (first,), walked):
            if isinstance(found, Found):
                with self._index_lock:
                    if found.position >= index.position:
                        index.add(found.position, found.header)
            yield found

"""Compaction by key: segments rewritten without the records that later ones of a key supersede.

Offsets stay. What is left of a batch covers the same offsets as before (see ``sparse`` in
``rlog_client.batch``), so what is absent can still be told from what is damaged. A batch from which
nothing goes is copied as it is, its producer's checksum with it; so is one that is damaged, for its
readers to be told.

A segment is *due* when half of its records are stale. So what a rewriting copies, records that went
have paid for: all rewriting together copies no more records than were ever superseded. Small
segments before it are taken along, each at most as large as what it joins or SMALL_BYTES: their
records are copied once for every doubling. Several in a row that are due become one. But no file
gets larger, or holds records of more time, than retention lets one be that is written.

Safe at every moment: the new file is another generation, written and synced, with its name, before
the fact says that it counts; the old one is unlinked behind a frame that comes after that. Recovery
removes whichever of the two the state does not name.

What counts as superseded is what was so at the moment when the job began (``Books.displaced``
remembers what is superseded since), and it counts only when that is durable. So a reader finds a
record absent only if it finds the later one; and a table that is asked for later misses nothing.
Tables that were asked for before keep what is theirs.

A job is done in slices beside the work, of about SLICE_SECONDS, with rests in between. In memory it
has one batch, what it has not written yet, and the offsets that it may not touch.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import time
from functools import partial
from typing import TYPE_CHECKING, Final, NamedTuple

from rlog_client import protocol
from rlog_client.batch import COUNT_MAX, HEADER_BYTES, InvalidBatch, decode, hole, thinned

from .decisions import Compact, Nobody, Waiting, in_use, protected_end
from .segment import Damage, Extent, walk
from .shared import holds, pairs
from .state import ROLLS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from rlog_client.batch import Header
    from rlog_client.protocol import Control

    from . import state
    from .broker import Broker
    from .decisions import Books
    from .files import File

logger = logging.getLogger("rlog.compaction")

SLICE_SECONDS: Final = 0.005
REST_FACTOR: Final = 3  # so a quarter of one core at most
LOOK_SECONDS: Final = 1.0  # between looks for segments that are due
AGAIN_SECONDS: Final = 30.0  # after one that could not be done, or not all of it
SMALL_BYTES: Final = 64 * 1024
WRITE_BYTES: Final = 256 * 1024
_COPY_BYTES: Final = 1 << 20
_AT_ONCE: Final = 1024  # records that are looked at before somebody else gets the interpreter
_NO_SPACE: Final = (errno.ENOSPC, errno.EDQUOT)


class Run(NamedTuple):
    """Neighbouring segments of a log, by index: ``first`` to ``behind`` (exclusive)."""

    first: int
    behind: int


def due(log: state.Log, limit: int, free: Callable[[int], int | None] | None = None) -> Run | None:
    """What is to be rewritten next, below the offset ``limit``: of several in a row that are due,
    as many as make one. Pure.

    ``free``: how many records of a segment, by its index, may go; None: let it be. By default, all
    that are stale.
    """

    def free_in(index: int) -> int | None:
        return log.segments[index].stale if free is None else free(index)

    def about(index: int) -> int | None:
        """What is to be left of it, in bytes; None: it is not due."""
        segment, end = log.segments[index], log.segment_end(index)
        left = end - segment.base - segment.absent
        if end > limit or (goes := free_in(index)) is None or not 0 < left <= 2 * goes:
            return None
        return segment.bytes * max(0, left - goes) // left

    roll = log.roll_bytes  # retention removes whole files: no more must go with one than before
    last = len(log.segments) - 1  # it is being written
    for first in range(last):
        if (size := about(first)) is None:
            continue
        behind, base = first + 1, log.segments[first].base
        while (
            behind < last
            and (more := about(behind)) is not None
            and size + more <= roll
            and log.segment_end(behind) - base <= COUNT_MAX
            and _of_an_age(log, first, behind)
        ):
            size += more
            behind += 1
        # Small ones before it go along.
        end = log.segment_end(behind - 1)
        while (
            first > 0
            and (before := log.segments[first - 1]).bytes <= max(size, SMALL_BYTES)
            and size + before.bytes <= roll
            and end - before.base <= COUNT_MAX
            and free_in(first - 1) is not None
            and _of_an_age(log, first - 1, behind - 1)
        ):
            size += before.bytes
            first -= 1
        return Run(first, behind)
    return None


def _of_an_age(log: state.Log, first: int, last: int) -> bool:
    """Whether all that is in these segments may be in one by ``max_file_age``, as it may in one
    that is written: else what is old would stay for as long as the young beside it.
    """
    age = log.options.max_file_age
    if age is None:
        return True
    # (Of the very first one it is not known any more when it was begun.)
    began_ns = log.segments[first - 1].time_max_ns if first else 0
    return (log.segments[last].time_max_ns - began_ns) * ROLLS <= age * 1e9


class Rewriting:
    """One run of segments on its way into one new file. ``failure``: why it was given up."""

    def __init__(self, books: Books, log: state.Log, run: Run) -> None:
        """Raises OSError: there is no file to be had."""
        segments = log.segments[run.first : run.behind]
        self.log = log.id
        self.name = log.name
        self.sources = [(each.base, each.generation) for each in segments]
        self.base, self.end = segments[0].base, log.segment_end(run.behind - 1)
        self.generation = max(each.generation for each in segments) + 1
        self.stale = sum(each.stale for each in segments)
        self.held = 0  # of these, records that have to stay for now
        self.bound = log.end  # what was superseded was so by a record below it
        self.bytes = 0
        self.absent = 0
        self.failure: OSError | None = None
        self.reading = self.sources[0]
        self._files = books.files[log.id]
        self._extents = [
            Extent(log.id, each.base, log.segment_end(index), each.bytes, each.generation)
            for index, each in enumerate(segments, run.first)
        ]
        self._keys = log.keys
        self.in_use = in_use(books, log, self.base, self.end)
        self._tables = books.tables.of(log.id)
        self._kept: set[int] = set()  # for them
        self._hole: tuple[int, int, int] | None = None  # base, end, append time
        self._pieces: list[bytes | memoryview] = []
        self._waiting_bytes = 0
        self._syncing = False
        # In the thread of all that changes names in there: the log may be deleted at any time.
        self._file: File = self._files.make_rewritten(self.base, self.generation)
        self._displaced: set[int] = set()
        books.displaced[log.id] = self._displaced
        self._steps = self._rewrite()

    def work(self, seconds: float) -> bool:
        """A slice of it; whether it is done, or given up. Raises OSError: a sync failed."""
        end = time.monotonic() + seconds
        try:
            for _ in self._steps:
                if time.monotonic() >= end:
                    return False
                time.sleep(0)  # whoever waits for the interpreter has it first
        except OSError as error:
            if self._syncing:
                raise
            self.failure = error
        return True

    def _rewrite(self) -> Iterator[None]:
        for table in self._tables:
            for offsets in table.between(self.base, self.end):
                self._kept.update(offsets)
                yield
        for extent in self._extents:
            self.reading = extent.base, extent.generation
            file, at = self._files.file(extent), 0
            for found in walk(file.read, extent):
                if isinstance(found, Damage):
                    continue
                yield from self._copy(file, at, found.position)
                yield from self._take(found.header, file.read(found.position, found.header.bytes))
                at = found.position + found.header.bytes
                yield
            yield from self._copy(file, at, extent.length)
        self._fill_hole()
        self._write()
        self._syncing = True
        self._file.sync()
        self._files.sync_names()

    def _copy(self, file: File, begin: int, end: int) -> Iterator[None]:
        """What is damaged, byte for byte."""
        if begin < end:
            self._fill_hole()
        while begin < end and (raw := file.read(begin, min(_COPY_BYTES, end - begin))):
            self._put(raw)
            begin += len(raw)
            yield

    def _take(self, header: Header, raw: bytes) -> Iterator[None]:
        """What stays of one batch."""
        try:
            columns = decode(header, memoryview(raw)[HEADER_BYTES:])
        except InvalidBatch:
            # Never made anew: the checksum that says so is to be found by its readers.
            self._fill_hole()
            self._put(raw)
            return
        yield
        offsets, keys = columns.offsets(header), columns.keys
        stays: Sequence[int] = range(len(offsets))
        if keys is not None:
            stays = some = []
            for begin in range(0, len(keys), _AT_ONCE):
                some += [
                    index
                    for index, key in enumerate(keys[begin : begin + _AT_ONCE], begin)
                    if key is None or self._stays(offsets[index], key)
                ]
                yield
        self.absent += header.count - len(stays)
        if not stays:
            self._widen_hole(header)
            return
        self._fill_hole()
        self._put(raw if len(stays) == len(offsets) else thinned(header, columns, stays))

    def _stays(self, offset: int, key: bytes) -> bool:
        # In this order: it is displaced before the index of keys says so.
        if self._keys.get(key) <= offset or offset in self._displaced:
            return True
        held = offset in self._kept or holds(self.in_use, offset)
        self.held += held
        return held

    def _widen_hole(self, header: Header) -> None:
        base, end, time_ns = self._hole or (header.base, header.base, header.time_ns)
        if end != header.base or header.end - base > COUNT_MAX:
            self._fill_hole()
            base, time_ns = header.base, header.time_ns
        self._hole = base, header.end, max(time_ns, header.time_ns)

    def _fill_hole(self) -> None:
        if self._hole is not None:
            base, end, time_ns = self._hole
            self._hole = None
            self._put(hole(self.log, base, end, time_ns))

    def _put(self, raw: bytes) -> None:
        self._pieces.append(raw)
        self._waiting_bytes += len(raw)
        if self._waiting_bytes >= WRITE_BYTES:
            self._write()

    def _write(self) -> None:
        if not self._pieces:
            return
        # Reserved first, so that neither the write nor the sync can run out of space.
        self._file.allocate(self.bytes, self._waiting_bytes)
        self._file.write(self.bytes, self._pieces)
        self.bytes += self._waiting_bytes
        self._pieces, self._waiting_bytes = [], 0

    def remove(self) -> None:
        """Remove what was written: nothing names it."""
        with contextlib.suppress(OSError):  # the next start does
            self._files.unlink(self.base, self.generation)


class Compactor(Nobody):
    """Finds what is due, and has it done: one job at a time. It asks the broker as a peer would."""

    def __init__(self, broker: Broker, clock: Callable[[], float]) -> None:
        super().__init__()
        self.slice_seconds = SLICE_SECONDS
        self._broker = broker
        self._clock = clock
        self._job: Rewriting | None = None
        self._written = False  # the job is, and waits for what it asked for
        self._took = 0.0
        self._next_at = 0.0  # of the next slice, or the next look
        # Of segments in which some were held, or that could not be read.
        self._not_before: dict[tuple[int, int, int], float] = {}

    def due(self) -> bool:
        """Whether ``work`` has something to do; to be asked between flights."""
        if self._broker.books.failed is not None or self._clock() < self._next_at:
            return False
        if self._job is None:
            self._next_at = self._clock() + LOOK_SECONDS
            self._job = self._begin()
        return self._job is not None and not self._written

    @property
    def deadline(self) -> float | None:
        """When there is more to do of what was begun."""
        return self._next_at if self._job is not None and not self._written else None

    def _begin(self) -> Rewriting | None:
        books, now = self._broker.books, self._clock()
        self._not_before = {name: at for name, at in self._not_before.items() if at > now}
        for log in books.state.logs.values():
            if not log.options.compact or log.id not in books.visible:
                continue
            # Laid out, durable, and behind the segment that is being written.
            limit = min(books.synced_end[log.id], books.visible[log.id].base, protected_end(log))
            if not books.tables.whole(log.id):
                continue
            run = due(log, limit, partial(self._free, log))
            if run is not None:
                try:
                    return Rewriting(books, log, run)
                except OSError as error:
                    self._complain(log.name, error)
                    self._rest(AGAIN_SECONDS)
                    break
        return None

    def _free(self, log: state.Log, index: int) -> int | None:
        segment, end = log.segments[index], log.segment_end(index)
        if (log.id, segment.base, segment.generation) in self._not_before:
            return None
        used = pairs(in_use(self._broker.books, log, segment.base, end))
        return segment.stale - sum(behind - begin for begin, behind in used)

    def work(self) -> bool:
        """A slice, which may run beside the work. Raises OSError: a sync failed."""
        assert self._job is not None
        began = time.monotonic()  # in a thread, where the loop's clock is not to be had
        try:
            return self._job.work(self.slice_seconds)
        finally:
            self._took = time.monotonic() - began

    def worked(self, result: bool | OSError) -> OSError | None:
        """A slice is over. What is given back is final."""
        job, books = self._job, self._broker.books
        assert job is not None
        self._next_at = self._clock() + REST_FACTOR * self._took
        if result is False:
            return None
        books.displaced.pop(job.log, None)
        if isinstance(result, OSError):
            self._job = None
            return result
        if job.failure is not None:
            job.remove()
            self._complain(job.name, job.failure)
            self._not_before[job.log, *job.reading] = self._clock() + AGAIN_SECONDS
            self._rest(AGAIN_SECONDS if job.failure.errno in _NO_SPACE else LOOK_SECONDS)
            return None
        self._written = True
        # A later record takes the place of what is absent now only when it is durable.
        self._broker.submit(Waiting(self, 0, protocol.WaitSynced(job.log, job.bound)))
        return None

    def answer(self, request: int, control: Control, payload: bytes | memoryview = b"") -> None:
        """The broker answers: what superseded is durable, or the new file counts now."""
        job = self._job
        assert job is not None
        if isinstance(control, protocol.Error):
            # Where writing has ended, the fact may be durable all the same: the file stays.
            if self._broker.books.failed is None:
                job.remove()
            self._rest(LOOK_SECONDS)
        elif request == 0:
            compact = Compact(
                log=job.log,
                base=job.base,
                end=job.end,
                generation=job.generation,
                bytes=job.bytes,
                absent=job.absent,
                stale=job.stale - job.held,
                sources=job.sources,
                in_use=job.in_use,
            )
            self._broker.submit(Waiting(self, 1, compact))
        else:
            logger.debug(
                "log %s: offsets %d to %d compacted to %d bytes",
                job.name, job.base, job.end, job.bytes,
            )  # fmt: skip
            if job.held:
                again = self._clock() + AGAIN_SECONDS
                self._not_before[job.log, job.base, job.generation] = again
            self._rest(0.0)

    def _rest(self, seconds: float) -> None:
        self._job, self._written = None, False
        self._next_at = self._clock() + seconds

    @staticmethod
    def _complain(name: str, error: OSError) -> None:
        what = "no space" if error.errno in _NO_SPACE else str(error)
        # (A file that is not there was trimmed, or its readers are told.)
        level = logging.DEBUG if error.errno == errno.ENOENT else logging.WARNING
        logger.log(level, "log %s cannot be compacted now: %s", name, what)

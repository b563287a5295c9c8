"""A data directory as it lies there: read, judged, and never touched.

Nothing here takes the lock, opens a file for writing, syncs, or drops a cache: it is safe beside a
running server and on a directory that a crash tore. What stands on the disk is judged by the code
that serves it (the chain by ``journal``, batches by ``segment``); here it is only shown.
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import msgpack
from crc32c import crc32c

from rlog_client.batch import HEADER_BYTES, Columns, InvalidBatch, decode, parse_header

from . import checkpoint as checkpoints
from . import frame, state
from .checkpoint import Checkpoint, InvalidCheckpoint, UnknownFormat
from .facts import Fact, InvalidFacts
from .files import PAGE, DiskFile, Files
from .frame import UnknownVersion
from .journal import DIRECTORY, SPARE, LocalJournal, Refused, Seen, file_names, scan
from .recovery import follow
from .segment import Damage, Extent, base_of, parse_name, path, walk

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from rlog_client.batch import Header

    from .files import File
    from .journal import Torn
    from .state import State

OFFSET_MAX: Final = 2**63 - 1
_NO_BODIES: Final = 2**64  # as scan's look_above: bodies are looked at here, one frame at a time
_CHUNK: Final = 1 << 20
_TRIES: Final = 5  # to get a whole view of a directory that is being written
_SALVAGE_MAX: Final = 1 << 16  # facts of a frame that is damaged
# What opening something that is no plain file ends with: a directory, a pipe, a link to nowhere.
_NO_FILE: Final = frozenset({errno.EISDIR, errno.ENXIO, errno.ENOENT, errno.ELOOP})


# --- read only ------------------------------------------------------------------------------


class ReadOnlyFile:
    """A file that is never changed, and whose cache is left alone."""

    def __init__(self, file: File) -> None:
        self._file = file

    def size(self) -> int:
        return self._file.size()

    def read(self, position: int, count: int) -> bytes:
        return self._file.read(position, count)

    def read_cached(self, position: int, count: int) -> bytes | None:
        return None

    def sync(self) -> None:
        """What is on the disk is the server's business."""

    def forget(self) -> None:
        """The cache may be a running server's."""

    def write(self, position: int, pieces: Sequence[bytes | bytearray | memoryview]) -> None:
        raise AssertionError("read only")

    def allocate(self, position: int, count: int) -> None:
        raise AssertionError("read only")

    def truncate(self, size: int) -> None:
        raise AssertionError("read only")

    def close(self) -> None:
        self._file.close()


class ReadOnly:
    """``Files`` over others, without any way to change them, and without those that are
    ``hidden``, or lie below such a path.
    """

    def __init__(self, files: Files, hidden: Iterable[str] = ()) -> None:
        self._files = files
        self._hidden = frozenset(hidden)

    def _hides(self, path: str) -> bool:
        while path and path not in self._hidden:
            path = path.rpartition("/")[0]
        return bool(path)

    def open(self, path: str, *, write: bool = True) -> ReadOnlyFile:
        if self._hidden and self._hides(path):
            raise FileNotFoundError(errno.ENOENT, "it does not count", path)
        return ReadOnlyFile(self._files.open(path, write=False))

    def names(self, path: str) -> list[str]:
        if self._hidden and self._hides(path):
            return []
        prefix = f"{path}/" if path else ""
        return [name for name in self._files.names(path) if prefix + name not in self._hidden]

    def create(self, path: str) -> DiskFile:
        raise AssertionError("read only")

    def rename(self, old: str, new: str) -> None:
        raise AssertionError("read only")

    def unlink(self, path: str) -> None:
        raise AssertionError("read only")

    def make_directory(self, path: str) -> None:
        raise AssertionError("read only")

    def remove_directory(self, path: str) -> None:
        raise AssertionError("read only")

    def sync_directory(self, path: str) -> None:
        """Nothing was changed in it."""


# --- checkpoints ----------------------------------------------------------------------------


class CheckpointFile(NamedTuple):
    """``stored``, ``computed``: its CRC. ``content`` None: ``damage`` says why."""

    name: str
    bytes: int
    stored: int | None
    computed: int | None
    content: Checkpoint | None
    damage: str = ""


def look_at_checkpoint(file: File, name: str) -> CheckpointFile:
    raw = file.read(0, file.size())
    # Its own words on its CRC, before it is believed: they are shown also when it is damaged.
    stored, computed = checkpoints.crcs(raw) or (None, None)
    try:
        return CheckpointFile(name, len(raw), stored, computed, checkpoints.decode(raw))
    except (InvalidCheckpoint, UnknownFormat) as error:
        return CheckpointFile(name, len(raw), stored, computed, None, str(error))


# --- segments -------------------------------------------------------------------------------


class BatchView(NamedTuple):
    """A batch whose header is sound. ``columns`` None: ``damage`` says why its body is not."""

    position: int
    header: Header
    header_crc: int
    body_crc: int
    columns: Columns | None
    damage: str = ""


def batches(
    read: Callable[[int, int], bytes], extent: Extent, position: int = 0, offset: int | None = None
) -> Iterator[BatchView | Damage]:
    """Every batch of a segment with its checksums made anew, and what stands in between."""
    for found in walk(read, extent, position, offset):
        if isinstance(found, Damage):
            yield found
            continue
        raw = read(found.position, found.header.bytes)
        yield look_at_batch(found.position, raw)


def look_at_batch(position: int, raw: bytes | memoryview) -> BatchView:
    """``raw``: the whole batch, whose header is sound."""
    header = parse_header(raw)
    body = memoryview(raw)[HEADER_BYTES : header.bytes]
    header_crc = crc32c(bytes(raw[: HEADER_BYTES - 4]))
    body_crc = crc32c(body)
    try:
        return BatchView(position, header, header_crc, body_crc, decode(header, body))
    except InvalidBatch as error:
        return BatchView(position, header, header_crc, body_crc, None, str(error))


def lone_segment(file: File, name: str) -> Extent:
    """The extent of a segment of which only the file is known: as far as it goes. Refused."""
    try:
        header = parse_header(file.read(0, HEADER_BYTES))
    except InvalidBatch as error:
        base = base_of(name.rpartition("/")[2])
        parent = name.rpartition("/")[0].rpartition("/")[2]
        if base is None or not parent.isdecimal():
            raise Refused(f"{name} at 0: {error}") from None
        return Extent(int(parent), base, OFFSET_MAX, file.size())
    return Extent(header.log, header.base, OFFSET_MAX, file.size())


def only_zeros(read: Callable[[int, int], bytes], position: int, end: int) -> bool:
    """Space that was reserved and not written yet."""
    while position < end:
        data = read(position, min(_CHUNK, end - position))
        if not data:
            return True
        if any(data):
            return False
        position += len(data)
    return True


# --- the journal ----------------------------------------------------------------------------


class FrameView(NamedTuple):
    """A frame whose header and facts are whole. ``facts``: as they are, or what can be unpacked of
    facts that are unknown here; ``damage``: of facts or bodies, "" for none."""

    seen: Seen
    facts: list[Fact] | list[Any]
    damage: str

    @property
    def known(self) -> bool:
        return all(isinstance(fact, Fact) for fact in self.facts)


class Stop(NamedTuple):
    """Where a journal file is neither zeros nor a frame. ``salvage``: facts that still unpack."""

    file: str
    position: int
    reason: str
    salvage: list[Any]


def frames(file: File, name: str) -> Iterator[FrameView | Stop]:
    """The frames of a journal file, in the order of the file, and the places where it is neither
    frame nor zeros."""
    expected = 0
    try:
        for seen in scan(file, name, None, _NO_BODIES):
            if seen.position < expected:
                continue  # inside a body, which is its user's and may hold anything
            yield from _stops(file, name, expected, seen.position)
            view = _look_at_frame(file, seen)
            yield view
            # Behind a damaged one the scan may find what its length hides.
            expected = seen.position + PAGE if view.damage else seen.end
    except UnknownVersion as error:
        yield Stop(name, expected, str(error), [])
        return
    yield from _stops(file, name, expected, file.size())


def _look_at_frame(file: File, seen: Seen) -> FrameView:
    raw = file.read(seen.position, seen.head.length)
    try:
        found = frame.facts_of(seen.head, raw)
        bodies = frame.bodies_of(seen.head, raw, found)
    except (InvalidFacts, InvalidBatch) as error:
        return FrameView(seen, salvaged(raw, seen.head.facts_bytes), f"unknown facts: {error}")
    damaged = [
        f"the batch of log {body.header.log}, offsets {body.header.base} to {body.header.end}: "
        f"{body.damage}"
        for body in bodies
        if body.body is None
    ]
    return FrameView(seen, found, "; ".join(damaged))


def _stops(file: File, name: str, begin: int, end: int) -> Iterator[Stop]:
    """The first page in a stretch without frames that is not zeros, if there is one."""
    for position in range(begin, end, _CHUNK):
        chunk = file.read(position, min(_CHUNK, end - position))
        if not any(chunk):
            continue
        at = next(p for p in range(0, len(chunk), PAGE) if any(chunk[p : p + PAGE]))
        yield _why(file, name, position + at, end)
        return


def _why(file: File, name: str, position: int, end: int) -> Stop:
    head = file.read(position, frame.HEAD_BYTES)
    claimed = frame.peek(head)
    if claimed is None:
        return Stop(name, position, "no frame begins here", [])
    length, facts_bytes = claimed
    raw = file.read(position, frame.HEAD_BYTES + min(facts_bytes, _SALVAGE_MAX))
    salvage = salvaged(raw, facts_bytes)
    if position + length > file.size():
        return Stop(
            name, position, f"a frame of {length} bytes would reach beyond the file", salvage
        )
    if facts_bytes > _SALVAGE_MAX:
        raw = file.read(position, frame.HEAD_BYTES + facts_bytes)
    stored, computed = frame.crcs(raw, facts_bytes)
    reason = f"frame CRC is {computed:08x}, stored is {stored:08x}"
    return Stop(name, position, reason, salvage)


def salvaged(raw: bytes, facts_bytes: int) -> list[Any]:
    """Of facts that are damaged or unknown, those that unpack: to be shown, not believed."""
    raw = raw[frame.HEAD_BYTES : frame.HEAD_BYTES + facts_bytes]
    # Of itself it would make room for as many elements as damage says there are.
    unpacker = msgpack.Unpacker(
        strict_map_key=False, unicode_errors="surrogateescape", max_buffer_size=max(len(raw), 1)
    )
    unpacker.feed(raw)
    found: list[Any] = []
    try:
        for _ in range(min(unpacker.read_array_header(), _SALVAGE_MAX)):
            found.append(unpacker.unpack())
    except (msgpack.UnpackException, ValueError, TypeError, RecursionError):
        pass  # that much, and no more
    return found


# --- the directory --------------------------------------------------------------------------


class Survey(NamedTuple):
    """What a directory stands for. ``base``: the newest whole checkpoint; ``final``: the state with
    the journal behind it, as the next start would have it; None where ``refusal`` says why not."""

    files: Files
    checkpoints: list[CheckpointFile]
    base: Checkpoint | None
    journal: LocalJournal | None
    final: State | None
    torn: list[Torn]
    refusal: str = ""

    @property
    def whole(self) -> list[Checkpoint]:
        """Those that are, oldest first."""
        return _whole(self.checkpoints)

    @property
    def state(self) -> State | None:
        """The best there is."""
        return self.final or (self.base.state if self.base else None)


def is_data_directory(files: Files) -> bool:
    """Whether anything in it has a name that only a server gives. Others have a ``journal/``, a
    ``logs/`` or a ``checkpoint-best.pt``, too, and nothing of theirs is ours to touch.
    """
    files = ReadOnly(files, misfits(files))
    return (
        any(checkpoints.number_in(name) >= 0 for name in checkpoints.names(files))
        or any(len(name) == len(f"{DIRECTORY}/{0:010}") for name in file_names(files))
        or any(parse_name(name.rpartition("/")[2]) for name in stored(files))
    )


def misfits(files: Files) -> list[str]:
    """What is no plain file, or no directory, where a server has one. Whatever else can be wrong
    with a file is wrong inside of it.
    """
    found = []
    for name in {DIRECTORY, "logs"}.intersection(files.names("")):
        try:
            files.names(name)
        except NotADirectoryError:
            found.append(name)
    files = ReadOnly(files, found)
    own = {checkpoints.TEMPORARY, checkpoints.RESERVE}.intersection(files.names(""))
    spare = {SPARE}.intersection(f"{DIRECTORY}/{name}" for name in files.names(DIRECTORY))
    for name in (*checkpoints.names(files), *own, *file_names(files), *spare, *stored(files)):
        try:
            files.open(name).close()
        except OSError as error:
            if error.errno not in _NO_FILE:
                raise
            found.append(name)
    return sorted(found)


def survey(files: Files) -> Survey:
    """Read checkpoints and journal. Whatever is found there is told, not raised."""
    files = ReadOnly(files)
    for _ in range(_TRIES):
        before = checkpoints.names(files)
        try:
            found = _survey(files)
        except FileNotFoundError:
            continue
        # A running server made a checkpoint and recycled what was being read: look again.
        if not found.refusal or checkpoints.names(files) == before:
            return found
    return _survey(files)


def _survey(files: Files) -> Survey:
    found = [look_at_checkpoint(files.open(name), name) for name in checkpoints.names(files)]
    whole = _whole(found)
    if not whole:
        what = "none of the checkpoints is whole" if found else "there is no checkpoint"
        return Survey(files, found, None, None, None, [], what)
    base = whole[-1]
    proven = max(base.number, *(checkpoints.number_in(each.name) for each in found))
    try:
        journal, final = follow(files, base, proven)
    except Refused as error:
        return Survey(files, found, base, None, None, [], str(error))
    return Survey(files, found, base, journal, final, journal.torn)


def _whole(found: Iterable[CheckpointFile]) -> list[Checkpoint]:
    whole = [each.content for each in found if each.content is not None]
    return sorted(whole, key=lambda point: point.number)


class SegmentView(NamedTuple):
    """A segment as the state has it, and as it lies there. ``durable``: what has left the journal:
    up to here it is the only copy; behind it, recovery writes it anew."""

    log: state.Log
    extent: Extent
    absent: int  # how many of its offsets compaction left without a record
    durable: Extent | None
    file: str
    file_bytes: int | None  # None: it is not there

    def read_of(self, survey: Survey) -> Callable[[int, int], bytes]:
        """Reads as recovery would: with the unfinished page that the checkpoint keeps put back."""
        if self.file_bytes is None:
            return lambda _position, _count: b""
        try:
            read = survey.files.open(self.file).read
        except FileNotFoundError:  # trimmed since, by a running server
            return lambda _position, _count: b""
        assert survey.base is not None
        for tail in survey.base.tails:
            place = (tail.log, tail.base, 0)
            if place == (self.extent.log, self.extent.base, self.extent.generation):
                return overlaid(read, tail.position, tail.data)
        return read


def overlaid(
    read: Callable[[int, int], bytes], begin: int, data: bytes
) -> Callable[[int, int], bytes]:
    """A file as it reads with ``data`` at ``begin``, whatever stands there."""
    end = begin + len(data)

    def read_overlaid(position: int, count: int) -> bytes:
        raw = read(position, count)
        low, high = max(position, begin), min(position + count, end)
        if low >= high:
            return raw
        before = raw[: low - position].ljust(low - position, b"\0")
        return before + data[low - begin : high - begin] + raw[high - position :]

    return read_overlaid


def segments(survey: Survey) -> Iterator[SegmentView]:
    """Every segment there should be."""
    assert survey.state is not None
    durable = {}
    if survey.base is not None:
        for log in survey.base.state.logs.values():
            for index, each in enumerate(log.segments):
                durable[log.id, each.base, each.generation] = extent_of(log, index)
    for log in survey.state.logs.values():
        for index, each in enumerate(log.segments):
            extent = extent_of(log, index)
            name = path(log.id, each.base, each.generation)
            try:
                size = survey.files.open(name).size()
            except FileNotFoundError:
                size = None
            left = durable.get((log.id, each.base, each.generation))
            if each.generation:
                left = extent  # it was on the disk before the journal said so
            yield SegmentView(log, extent, each.absent, left, name, size)


def extent_of(log: state.Log, index: int) -> Extent:
    each = log.segments[index]
    return Extent(log.id, each.base, log.segment_end(index), each.bytes, each.generation)


# --- verify ---------------------------------------------------------------------------------


class Finding(NamedTuple):
    """``damage``: what was acknowledged is lost or in danger; else something to know. ``log`` with
    ``first`` and ``end`` (exclusive): the records it concerns."""

    damage: bool
    text: str
    file: str = ""
    position: int | None = None
    log: str = ""
    first: int | None = None
    end: int | None = None


class Counted:
    """What was looked at."""

    def __init__(self) -> None:
        self.checkpoints = 0
        self.frames = 0
        self.logs = 0
        self.segments = 0
        self.batches = 0
        self.records = 0
        self.bytes = 0


def verify(files: Files, counted: Counted) -> Iterator[Finding]:
    """Check every byte that matters, of a directory that nobody writes to."""
    strays = misfits(files)
    for name in strays:
        # Among the segments the next start sets it aside; elsewhere it is in the way.
        yield Finding(not name.startswith("logs/"), "it is not the kind of file to be here", name)
    seen = survey(ReadOnly(files, strays))
    yield from _verify_checkpoints(seen, counted)
    yield from _verify_journal(seen, counted)
    if seen.state is not None:
        counted.logs = len(seen.state.logs)
        for segment in segments(seen):
            yield from _verify_segment(seen, segment, counted)
        yield from _verify_names(seen)


def _verify_checkpoints(seen: Survey, counted: Counted) -> Iterator[Finding]:
    for each in seen.checkpoints:
        counted.checkpoints += 1
        if each.content is None:
            yield Finding(True, f"checkpoint: {each.damage}", each.name, 0)
        elif each.name != checkpoints.name_of(each.content.number):
            yield Finding(True, f"it is the checkpoint at frame {each.content.number}", each.name)
    if seen.base is None:
        yield Finding(True, seen.refusal, "", None)


def _verify_journal(seen: Survey, counted: Counted) -> Iterator[Finding]:
    whole = seen.whole
    if not whole:
        return
    if seen.refusal:
        yield Finding(True, seen.refusal, DIRECTORY, None)
        yield from _verify_frames(seen, counted)
        return
    for torn in seen.torn:
        text = (
            f"{torn.length} bytes of a torn tail, to be set aside by the next start: {torn.report}"
        )
        yield Finding(False, text, torn.file, torn.position)
    # From the older checkpoint on: it is what is left should the newest be lost.
    oldest = whole[0]
    try:
        chain, _state = follow(seen.files, oldest, whole[-1].number)
    except Refused as error:
        text = f"the way from the older checkpoint (frame {oldest.number}) on: {error}"
        yield Finding(True, text, DIRECTORY, None)
        assert seen.journal is not None
        yield from _verify_chain(seen, seen.journal, whole[-1].number, counted)
        return
    yield from _verify_chain(seen, chain, oldest.number, counted)


def _verify_chain(
    seen: Survey, journal: LocalJournal, above: int, counted: Counted
) -> Iterator[Finding]:
    for number in range(above + 1, journal.tail() + 1):
        counted.frames += 1
        for body in journal.read(number).bodies:
            if body.body is None:
                yield _batch_damage(
                    seen, body.header, f"frame {number}: {body.damage}", DIRECTORY, None
                )


def _verify_frames(seen: Survey, counted: Counted) -> Iterator[Finding]:
    """Without a chain: where each file stops being valid."""
    for name in file_names(seen.files):
        for view in frames(seen.files.open(name), name):
            if isinstance(view, Stop):
                yield Finding(True, view.reason, view.file, view.position)
            else:
                counted.frames += 1
                if view.damage:
                    text = f"frame {view.seen.head.number}: {view.damage}"
                    yield Finding(True, text, name, view.seen.position)


def _batch_damage(
    seen: Survey, header: Header, text: str, file: str, position: int | None
) -> Finding:
    log = seen.state.logs.get(header.log) if seen.state else None
    name = log.name if log else f"id {header.log}"
    return Finding(True, text, file, position, name, header.base, header.end)


def _verify_segment(seen: Survey, segment: SegmentView, counted: Counted) -> Iterator[Finding]:
    extent = segment.durable
    if extent is None:
        return  # all of it is in the journal still
    counted.segments += 1
    name = segment.log.name
    if segment.file_bytes is None:
        text = "the segment is not there"
        yield Finding(True, text, segment.file, None, name, extent.base, extent.end)
        return
    read = segment.read_of(seen)
    for view in batches(read, extent):
        if isinstance(view, Damage):
            damage = not view.declared
            yield Finding(
                damage, view.reason, segment.file, view.position, name, view.first, view.end
            )
            continue
        counted.batches += 1
        counted.records += len(view.columns.values) if view.columns else view.header.count
        counted.bytes += view.header.bytes
        if view.columns is None:
            header = view.header
            yield Finding(
                True, view.damage, segment.file, view.position, name, header.base, header.end
            )


def _verify_names(seen: Survey) -> Iterator[Finding]:
    """What lies in ``logs/`` and belongs to nothing."""
    assert seen.state is not None
    known = {path(*segment) for segment in seen.state.segments()}
    if seen.base is not None:
        known |= {path(*segment) for segment in seen.base.state.segments()}
    for name in stored(seen.files):
        if name not in known:
            yield Finding(False, "belongs to no log; the next start deals with it", name)


def stored(files: Files) -> Iterator[str]:
    """Every file in ``logs/``, whatever it is."""
    for directory in files.names("logs"):
        try:
            for entry in files.names(f"logs/{directory}"):
                yield f"logs/{directory}/{entry}"
        except NotADirectoryError:
            yield f"logs/{directory}"

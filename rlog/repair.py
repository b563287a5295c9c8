"""Repair of a data directory that nobody serves: a plan, which only reads, and its execution.

The plan is a state, as good as it can be had, the segments that hold its records, and what of them
is lost. Where the journal tells the state, it is the one that a start would have: what is damaged
are segments, a checkpoint that has an older one, or bytes behind the last frame. Where a start
would be refused, it is what ``salvage`` makes of the rest. Segments that are as the state says stay
where they are; the others are written anew from all that is left of them, wherever it lies. Where
nothing is left, a header says which offsets are lost (``lost`` in ``rlog_client.batch``).

The execution removes nothing, and writes over nothing. What is to go is first copied into
``quarantine/``, beside a report; what is no file is moved there. New segments are of a new
generation. Then a checkpoint is written, with a number above that of every frame: from the moment
it has its name, the directory is what it says, and what was before is of no use. Last, the
originals take the places of their copies. Before that moment an error undoes what was done, and
one that is killed has done nothing; killed behind it, another repair takes away what is left over.
"""

from __future__ import annotations

import errno
import json
from bisect import bisect_right
from collections import Counter
from contextlib import ExitStack
from itertools import chain
from typing import TYPE_CHECKING, Final, NamedTuple

from rlog_client.batch import lost

from . import checkpoint as checkpoints
from .checkpoint import Checkpoint, InvalidCheckpoint, Tail, UnknownFormat, tail_begin
from .files import PAGE, Files
from .frame import UnknownVersion
from .journal import DIRECTORY, SPARE, Refused, file_names
from .offline import (
    OFFSET_MAX,
    BatchView,
    Counted,
    Finding,
    ReadOnly,
    batches,
    extent_of,
    misfits,
    overlaid,
    stored,
    survey,
    verify,
)
from .recovery import QUARANTINE, follow
from .salvage import (
    Batch,
    Found,
    Level,
    Patient,
    Salvage,
    heads,
    journal_id,
    of_frame,
    segment_files,
    sound,
    strangers,
)
from .segment import Damage, directory, path, walk

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from .offline import Survey
    from .segment import Extent
    from .state import Log, State

REPORT: Final = "report.json"
_CHUNK: Final = 1 << 20
_FILE_BYTES: Final = 64 << 20  # of a journal file, where nothing is left to tell
_NAME_BYTES_MAX: Final = 200  # of a name in quarantine; a file system takes 255


class Hole(NamedTuple):
    """Offsets whose records are lost."""

    base: int
    end: int


class Rewrite(NamedTuple):
    """A segment that is to be written, and what it is to hold, in order."""

    file: str
    log: int
    parts: list[Batch | Hole]


class Plan(NamedTuple):
    """``wrong``: what was found. ``lost``: what of it cannot be had back; ``level``: what that is.

    ``checkpoint`` None: there is no state to be written. ``rewrites`` and ``kept`` are the segments
    that it needs. ``taken``: the files that go to quarantine; ``strays``: what else does, being no
    file, or no directory, where there should be one.
    """

    level: Level
    wrong: list[Finding]
    lost: list[Finding]
    checkpoint: Checkpoint | None
    rewrites: list[Rewrite]
    kept: list[str]
    taken: list[str]
    strays: list[str]

    @property
    def empty(self) -> bool:
        return self.checkpoint is None and not self.taken and not self.strays

    @property
    def made(self) -> list[str]:
        """The files that come new."""
        point = self.checkpoint
        names = [each.file for each in self.rewrites]
        return names if point is None else [*names, checkpoints.name_of(point.number)]


# --- the plan -------------------------------------------------------------------------------


def make_plan(files: Files, now_ns: int) -> Plan:
    """What is to be done. Nothing is touched.

    Raises Refused for what another version made, which is no damage, and OSError.
    """
    strays = misfits(files)
    numbers = [checkpoints.number_in(name) for name in checkpoints.names(files)]
    files = ReadOnly(files, strays)
    try:
        number = max(0, *numbers, *_frame_numbers(Patient(files))) + 1
        foreign = _foreign(Patient(files))
        files = ReadOnly(files, foreign)
        left_over = _left_over(Patient(files))
        no_files = [name for name in strays if _tells(name)]
        going = [*foreign, *left_over]
        plan = _plan(Patient(files, left_over), going, no_files, number, now_ns)
    except UnknownVersion as error:
        raise Refused(str(error)) from None
    wrong = [Finding(True, "it is not the kind of file to be here", name) for name in strays]
    wrong += [Finding(True, "it is a checkpoint of another directory", name) for name in foreign]
    return plan._replace(wrong=[*wrong, *plan.wrong], strays=strays)


def _tells(name: str) -> bool:
    """Whether a name alone tells of frames: that there may have been some in it, or up to it."""
    return name.removeprefix(f"{DIRECTORY}/").isdecimal() or checkpoints.number_in(name) >= 0


def _foreign(files: Patient) -> list[str]:
    """Checkpoints of another journal than that of the frames. Where all are, the frames may be the
    strangers as well: then those count of which most segments are there.
    """
    whole = {name: point for name in checkpoints.names(files) if (point := _whole(files, name))}
    ours = journal_id(files)
    theirs = [name for name, point in whole.items() if ours and point.journal != ours]
    if len(theirs) < len(whole):
        return theirs
    return [name for name in theirs if not _has_segments(files, whole[name])]


def _has_segments(files: Patient, point: Checkpoint) -> bool:
    there = total = 0
    for log in point.state.logs.values():
        for segment in log.segments:
            total += 1
            try:
                size = files.open(path(log.id, segment.base, segment.generation)).size()
            except FileNotFoundError:
                continue
            there += size >= segment.bytes
    return 2 * there >= total


def _left_over(files: Patient) -> list[str]:
    """What a repair that was killed did not come to take away: its checkpoint stands at no frame,
    and what is older was of use to nobody but it.
    """
    names = checkpoints.names(files)
    whole = {name: point for name in names if (point := _whole(files, name))}
    newest = max(whole, default="")
    if not newest or not whole[newest].number or whole[newest].crc:
        return []
    highest: dict[str, int] = {}
    for seen in heads(files, whole[newest].journal, OFFSET_MAX):
        highest[seen.file] = max(highest.get(seen.file, 0), seen.head.number)
    journal = [
        name
        for name, number in highest.items()
        if number < whole[newest].number and name != SPARE  # which is still one
    ]
    return [name for name in names if name < newest] + journal


def _whole(files: Patient, name: str) -> Checkpoint | None:
    try:
        return checkpoints.decode(files.contents(name))
    except InvalidCheckpoint:
        return None
    except UnknownFormat as error:
        raise Refused(f"{name}: {error}") from None


def _plan(
    files: Patient, left_over: list[str], no_files: list[str], number: int, now_ns: int
) -> Plan:
    """``left_over``: what goes anyway; ``no_files``: as for Salvage;
    ``number``: above every frame and checkpoint, also of those that do not count.
    """
    seen = survey(files)
    # (What is no damage and of a log was declared lost by a repair before.)
    wrong = [each for each in verify(files, Counted()) if each.damage or not each.log]
    wrong += [
        Finding(True, "the directory is not there", name)
        for name in (DIRECTORY, "logs")
        if name not in files.names("")
    ]
    if not seen.torn and not no_files and not any(each.damage for each in wrong):
        unknown = [each.file for each in wrong]
        return Plan(Level.NOTHING, wrong, [], None, [], [], [*left_over, *unknown], [])
    level, losses, state = Level.NOTHING, list[Finding](), seen.final
    if state is not None and not no_files and DIRECTORY in files.names(""):
        found = _of_the_chain(files, seen)
        ends = {log.id: log.end for log in state.logs.values()}
    else:
        salvage = Salvage(files, seen, no_files)
        level, losses, state = salvage.level, salvage.lost, salvage.state
        found, ends = salvage.found, salvage.ends
    base = seen.base
    layout = _Layout(files, base, state, found)
    for log, hole, file in layout.lost:
        # What was appended behind the first frame that is missing is lost with the frames.
        level = max(level, Level.TAIL if hole.base >= ends.get(log.id, OFFSET_MAX) else Level.LOSS)
        losses.append(Finding(True, "lost", file, None, log.name, hole.base, hole.end))
    point = Checkpoint(
        base.journal if base else journal_id(files) or now_ns,
        base.file_bytes if base else _file_bytes(files),
        number,
        0,
        now_ns,
        state,
        layout.tails,
    )
    needed = {path(*segment) for segment in state.segments()}
    taken = [*left_over, *checkpoints.names(files), *file_names(files)]
    taken += {SPARE}.intersection(each.file for each in heads(files, None, OFFSET_MAX))
    taken += [name for name in stored(files) if name not in needed]
    return Plan(level, wrong, losses, point, layout.rewrites, layout.kept, taken, [])


def _of_the_chain(files: Patient, seen: Survey) -> Found:
    """The batches in the journal, from the older checkpoint on if its frames are there."""
    found = Found()
    for base in seen.whole:
        try:
            journal, _state = follow(files, base, seen.whole[-1].number)
        except Refused:
            continue
        for number in range(base.number + 1, journal.tail() + 1):
            entry, place = journal.read(number), journal.place(number)
            read = files.reader(place.file)
            for batch in of_frame(read, place.position, entry.head.facts_bytes, entry.facts):
                found.put(batch)
        break
    return found


def _frame_numbers(files: Patient) -> Iterator[int]:
    """Every one that a frame names."""
    for seen in heads(files, journal_id(files), OFFSET_MAX):
        yield max(seen.head.number, seen.head.synced)


def _file_bytes(files: Patient) -> int:
    """Of the journal's files, as most of them are."""
    sizes = Counter(files.open(name).size() for name in file_names(files))
    return next((n for n, _ in sizes.most_common() if n and not n % PAGE), _FILE_BYTES)


class _Layout:
    """The segments of a state. Those that are written anew are changed in it.

    ``kept``: those that can stay; ``tails``: their unfinished last pages, for a checkpoint.
    ``lost``: what was not known to be lost: of which log, and in which file.
    """

    def __init__(self, files: Patient, base: Checkpoint | None, state: State, found: Found) -> None:
        self.rewrites: list[Rewrite] = []
        self.kept: list[str] = []
        self.tails: list[Tail] = []
        self.lost: list[tuple[Log, Hole, str]] = []
        self._files = files
        self._found = found
        self._tails = {(t.log, t.base): t for t in base.tails} if base else {}
        self._generations: dict[tuple[int, int], int] = {}  # the highest there is, by log and base
        self._sizes: dict[str, int] = {}
        for name, log_id, begin, generation in segment_files(files):
            key = log_id, begin
            self._generations[key] = max(generation, self._generations.get(key, 0))
            self._sizes[name] = files.open(name).size()
        named = {path(*segment): (OFFSET_MAX, OFFSET_MAX) for segment in state.segments()}
        self._strangers = strangers(files, named)
        for log in state.logs.values():
            for index in range(len(log.segments)):
                self._lay_out(log, index)

    def _lay_out(self, log: Log, index: int) -> None:
        extent = extent_of(log, index)
        file = path(log.id, extent.base, extent.generation)
        read = self._reader(file)
        if all(_in_order(view) for view in batches(read, extent)):
            self.kept.append(file)
            begin = tail_begin(extent.length)
            if index + 1 == len(log.segments) and not extent.generation and begin < extent.length:
                data = read(begin, extent.length - begin)
                self.tails.append(Tail(log.id, extent.base, begin, data))
            return
        parts = self._parts(log, extent, file, read)
        segment = log.segments[index]
        segment.generation = self._generations.get((log.id, extent.base), 0) + 1
        segment.absent = sum(part.absent for part in parts if isinstance(part, Batch))
        segment.bytes = sum(_bytes_of(log.id, part) for part in parts)
        self.rewrites.append(Rewrite(path(log.id, extent.base, segment.generation), log.id, parts))

    def _reader(self, file: str) -> Callable[[int, int], bytes]:
        return self._files.reader(file) if file in self._sizes else lambda _position, _count: b""

    def _parts(
        self, log: Log, extent: Extent, file: str, read: Callable[[int, int], bytes]
    ) -> list[Batch | Hole]:
        """What a segment is to hold, from whatever has it: itself, the journal, other files."""
        tail = self._tails.get((log.id, extent.base))
        if tail is not None and not extent.generation:
            read = overlaid(read, tail.position, tail.data)
        own = Found()
        for batch in sound(read, batches(read, extent)):
            own.put(batch)
        known = [view for view in walk(read, extent) if isinstance(view, Damage) and view.declared]
        sources = [each.of(log.id) for each in (own, self._found, self._strangers)]
        bases = sorted({base for source in sources for base in source})
        parts: list[Batch | Hole] = []
        at = extent.base
        while at < extent.end:
            fits = (s[at] for s in sources if at in s and s[at].header.end <= extent.end)
            if (piece := next(fits, None)) is not None:
                parts.append(piece)
                at = piece.header.end
                continue
            following = bisect_right(bases, at)
            end = min(extent.end, bases[following] if following < len(bases) else extent.end)
            hole = Hole(at, end)
            parts.append(hole)
            if not any(each.first <= at and end <= each.end for each in known):
                self.lost.append((log, hole, file))
            at = end
        return parts


def _in_order(view: BatchView | Damage) -> bool:
    return view.declared if isinstance(view, Damage) else view.columns is not None


def _bytes_of(log: int, part: Batch | Hole) -> int:
    if isinstance(part, Hole):
        return len(lost(log, part.base, part.end, 0))
    return part.header.bytes


# --- its execution --------------------------------------------------------------------------


def carry_out(files: Files, plan: Plan) -> str:
    """Do what is planned. -> the directory, in ``quarantine/``, that holds what was taken away.

    The directory has to be ours. Raises OSError; as long as there is no new checkpoint, nothing has
    changed but for copies in quarantine.
    """
    where = _make_directory(files)
    with ExitStack() as undo:
        undo.callback(files.remove_directory, where)
        places = _set_aside(files, plan, where, undo)
        if plan.checkpoint is not None:
            _lay_out(files, plan, plan.checkpoint, undo)
            raw = checkpoints.encode(plan.checkpoint)
            with ExitStack() as unsure:
                # An error tells nothing: it may have its name, and then its segments are needed.
                unsure.callback(undo.pop_all)
                written = checkpoints.write(files, plan.checkpoint.number, raw, remove=False)
                unsure.pop_all()
            if not written:
                raise OSError(errno.ENOSPC, "no space for a checkpoint")
        undo.pop_all()
    # From here on it is repaired.
    for name in plan.taken:
        _take_away(files, name, places[name])
    for name in (where, *sorted({name.rpartition("/")[0] for name in plan.taken})):
        files.sync_directory(name)
    return where


def _set_aside(files: Files, plan: Plan, where: str, undo: ExitStack) -> dict[str, str]:
    """Copy what is to be taken away, and move what is no file. -> the places, by name."""
    places = _places(plan, where)
    patient = Patient(files)
    for name in plan.taken:
        _write(files, places[name], _read(patient, name), undo)
    _write(files, f"{where}/{REPORT}", [report(plan, places)], undo)
    for name in (where, QUARANTINE, ""):
        files.sync_directory(name)
    for name in plan.strays:
        files.rename(name, places[name])
        undo.callback(files.rename, places[name], name)
    for name in sorted({name.rpartition("/")[0] for name in plan.strays}):
        files.sync_directory(name)
    return places


def _take_away(files: Files, name: str, place: str) -> None:
    try:
        files.rename(name, place)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        files.unlink(name)  # of another file system, by a link; its copy is there, and synced


def _lay_out(files: Files, plan: Plan, point: Checkpoint, undo: ExitStack) -> None:
    logs = [directory(log) for log in point.state.logs]
    for name in (DIRECTORY, "logs", *logs):
        files.make_directory(name)
    for each in plan.rewrites:
        _write(files, each.file, _bytes_in(each, point.time_ns), undo)
    for name in plan.kept:
        files.open(name).sync()  # what was laid out since the last checkpoint nobody has synced
    for name in (*logs, "logs", DIRECTORY, ""):
        files.sync_directory(name)


def _bytes_in(rewrite: Rewrite, time_ns: int) -> Iterator[bytes]:
    for part in rewrite.parts:
        if isinstance(part, Hole):
            yield lost(rewrite.log, part.base, part.end, time_ns)
        else:
            yield part.raw + part.body()


def _make_directory(files: Files) -> str:
    """One for each repair, also for one that was killed."""
    files.make_directory(QUARANTINE)
    numbers = [0]
    for name in files.names(QUARANTINE):
        number = name.removeprefix("repair-")
        if number != name and number.isdecimal():
            numbers.append(int(number))
    where = f"{QUARANTINE}/repair-{max(numbers) + 1}"
    files.make_directory(where)
    return where


def _places(plan: Plan, where: str) -> dict[str, str]:
    """A place in quarantine for each path: readable, and short enough to be a name."""
    places: dict[str, str] = {}
    used = {REPORT}
    for name in (*plan.taken, *plan.strays):
        raw = name.replace("/", "-").encode(errors="surrogateescape")
        stem = raw[:_NAME_BYTES_MAX].decode(errors="surrogateescape")
        flat, again = stem, 0
        while flat in used:
            again += 1
            flat = f"{stem}.{again}"
        used.add(flat)
        places[name] = f"{where}/{flat}"
    return places


def _read(files: Patient, name: str) -> Iterator[bytes]:
    file = files.open(name)
    for position in range(0, file.size(), _CHUNK):
        yield file.read(position, _CHUNK)


def _write(files: Files, name: str, parts: Iterable[bytes], undo: ExitStack) -> None:
    """A new file, synced; its name is not."""
    file = files.create(name)
    undo.callback(files.unlink, name)
    position, waiting, size = 0, list[bytes](), 0
    for part in chain(parts, (b"",)):
        waiting.append(part)
        size += len(part)
        if size >= _CHUNK or not part:
            file.write(position, waiting)
            position, waiting, size = position + size, [], 0
    file.sync()


def report(plan: Plan, places: dict[str, str]) -> bytes:
    """What stands beside what was taken away: why, what is lost, and how to undo it."""
    back = "With nobody on the directory, move each file of taken from here to its place."
    if plan.checkpoint is not None:
        back = (
            "With nobody on the directory, remove what is in made, and every checkpoint and journal"
            f" file that came since. {back} What was appended since the repair is then gone."
        )
    told = {
        "put_back": back,
        "wrong": [each._asdict() for each in plan.wrong],
        "lost": [each._asdict() for each in plan.lost],
        "made": plan.made,
        "taken": {place: name for name, place in places.items()},
    }
    # (Of the standard library: a file's name need not be UTF-8.)
    return json.dumps(told, indent=2).encode() + b"\n"

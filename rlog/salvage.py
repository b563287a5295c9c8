"""What can be had of a data directory whose journal or checkpoints are damaged: a state.

Frames that can be read are applied though some before them are missing, each at its own offsets.
For the missing ones their batches are looked for in the segments, where they were laid out, and in
what still unpacks of the frames. What is found nowhere stays a hole: its offsets are never given
again. What else those frames said is not known, and so must not be said again with another meaning:
all claims are over, under higher epochs, and whatever names an offset raises the end of its log.

Everything is judged by the rules of recovery as far as they reach. Nothing here writes.
"""

from __future__ import annotations

import errno
import re
from bisect import bisect_right
from collections import Counter
from enum import IntEnum
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import msgpack

from rlog_client.batch import HEADER_BYTES, InvalidBatch, check_body, parse_header
from rlog_client.model import PRODUCER_ID

from . import checkpoint as checkpoints
from . import facts, frame, state
from .files import PAGE, Files
from .journal import DIRECTORY, SPARE, Mark, file_names, scan
from .offline import (
    OFFSET_MAX,
    BatchView,
    Finding,
    ReadOnly,
    ReadOnlyFile,
    batches,
    salvaged,
    stored,
)
from .segment import Extent, directory, parse_name, path
from .state import Log, Segment, State

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from rlog_client.batch import Header

    from .checkpoint import Checkpoint
    from .journal import Seen
    from .offline import Survey
    from .segment import Damage

# Epochs rise by this when claims may be lost: more than the claims that lost frames can have held.
EPOCH_LEAP: Final = 1 << 16
_LOG_NAME: Final = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")
_SHOWN_MAX: Final = 160  # characters of a fact that is shown


class Level(IntEnum):
    """What a repair costs, and so what its user has to agree to."""

    NOTHING = 0
    TAIL = 1  # what stood at the journal's damaged end
    LOSS = 2  # anything else


# --- files that cannot all be read ----------------------------------------------------------


class _PatientFile(ReadOnlyFile):
    def read(self, position: int, count: int) -> bytes:
        try:
            return super().read(position, count)
        except OSError as error:
            if error.errno != errno.EIO or count <= 0:
                raise
            if count <= PAGE:
                return bytes(min(count, max(self.size() - position, 0)))
            end = position + count
            pages = range(position, end, PAGE)
            return b"".join(self.read(at, min(PAGE, end - at)) for at in pages)


class Patient(ReadOnly):
    """What the disk does not give reads as zeros, which are never valid, and so count as
    damage.
    """

    def open(self, path: str, *, write: bool = True) -> _PatientFile:
        return _PatientFile(super().open(path))

    def contents(self, name: str) -> bytes:
        file = self.open(name)
        return file.read(0, file.size())

    def reader(self, name: str) -> Callable[[int, int], bytes]:
        """Opens the file for each read: there may be more of them than can be open."""
        return lambda position, count: self.open(name).read(position, count)


# --- batches, wherever they lie -------------------------------------------------------------


class Batch(NamedTuple):
    """A batch that is sound. Its body is read where it lies."""

    header: Header
    raw: bytes  # the header, as it is stored
    read: Callable[[int, int], bytes]
    position: int  # of the body
    absent: int = 0  # offsets without a record

    def body(self) -> bytes:
        return self.read(self.position, self.header.body_bytes)


class Found(dict[int, dict[int, Batch]]):
    """Batches by log and first offset. What was put first stays."""

    def put(self, batch: Batch) -> None:
        self.setdefault(batch.header.log, {}).setdefault(batch.header.base, batch)

    def of(self, log: int) -> dict[int, Batch]:
        return self.get(log, {})


def of_frame(
    read: Callable[[int, int], bytes], position: int, facts_bytes: int, found: Iterable[facts.Fact]
) -> Iterator[Batch]:
    """The batches of a frame at ``position`` whose bodies are sound. Raises InvalidBatch."""
    at = position + frame.HEAD_BYTES + facts_bytes
    for fact in found:
        if isinstance(fact, facts.Appended):
            header = parse_header(fact.header)
            try:
                check_body(header, read(at, header.body_bytes))
                yield Batch(header, fact.header, read, at)
            except InvalidBatch:
                pass  # that batch alone is damaged
            at += header.body_bytes


def sound(
    read: Callable[[int, int], bytes], views: Iterable[BatchView | Damage]
) -> Iterator[Batch]:
    """Of what stands in a segment, the batches that are sound."""
    for view in views:
        if isinstance(view, BatchView) and view.columns is not None:
            header, body = view.header, view.position + HEADER_BYTES
            absent = header.count - len(view.columns.values)
            yield Batch(header, read(view.position, HEADER_BYTES), read, body, absent)


def segment_files(files: Files) -> Iterator[tuple[str, int, int, int]]:
    """Every segment in ``logs/``: its name, log, base and generation."""
    for name in stored(files):
        log, _, entry = name.removeprefix("logs/").partition("/")
        if log.isdecimal() and (found := parse_name(entry)) is not None:
            yield name, int(log), *found


def strangers(files: Patient, known: dict[str, tuple[int, int]]) -> Found:
    """The sound batches in segments that are not known, and in those that are from a place on:
    name -> (position, offset).
    """
    found = Found()
    for name, log, base, generation in segment_files(files):
        position, offset = known.get(name, (0, base))
        size = files.open(name).size()
        if position < size:
            extent = Extent(log, base, OFFSET_MAX, size, generation)
            read = files.reader(name)
            for batch in sound(read, batches(read, extent, position, offset)):
                found.put(batch)
    return found


# --- the journal ----------------------------------------------------------------------------


def heads(files: Files, journal: int | None, above: int) -> list[Seen]:
    """The frames in the journal's files that are whole, in the order of the files. Bodies are
    looked at above ``above``. Raises UnknownVersion, or Refused.

    What stands inside another's extent is its user's; what has a lower number than the frame before
    it is what a recycled file held before. The spare file has such frames alone, unless it is
    another that got its name: then it has some above all others.
    """
    found = []
    top = above if above < OFFSET_MAX else 0
    for name in _journal_files(files):
        highest = top if name == SPARE else 0
        behind = 0
        for seen in scan(files.open(name, write=False), name, journal, above):
            if seen.position >= behind and seen.head.number > highest:
                found.append(seen)
                highest, behind = seen.head.number, seen.end
        top = max(top, highest)
    return found


def _journal_files(files: Files) -> list[str]:
    """In order, and last the spare one if it is there."""
    spare = [SPARE] if SPARE.rpartition("/")[2] in files.names(DIRECTORY) else []
    return [*file_names(files), *spare]


def journal_id(files: Files) -> int:
    """That of most of the frames; 0 if there are none."""
    ids = Counter(seen.head.journal for seen in heads(files, None, OFFSET_MAX))
    return ids.most_common(1)[0][0] if ids else 0


class Gap(NamedTuple):
    """The frames ``first`` to ``last`` are missing, between two that are there (None: an end)."""

    first: int
    last: int
    before: Seen | None
    after: Seen | None


def chain(
    files: Files, found: Sequence[Seen], mark: Mark, proven: int
) -> tuple[list[Seen], list[Gap]]:
    """The frames above ``mark`` that count, in order, and what is missing between them.

    A link is followed as recovery does it. Behind a gap there is none; what must not be taken then
    is a frame that an earlier life lost or gave up. The start behind that life began another file,
    and gave its number again, or a lower one.
    """
    limits = _limits(files, found)
    by_number: dict[int, list[Seen]] = {}
    for seen in found:
        by_number.setdefault(seen.head.number, []).append(seen)
    numbers = sorted(by_number)
    before = next((s for s in by_number.get(mark.number, ()) if s.head.crc == mark.crc), None)
    taken: list[Seen] = []
    gaps: list[Gap] = []
    last = mark
    while True:
        follows = [s for s in by_number.get(last.number + 1, ()) if s.head.previous == last.crc]
        if not follows and last.number < proven:
            later = numbers[bisect_right(numbers, last.number + 1) :]
            theirs = ([s for s in by_number[n] if n < limits.get(s.file, n + 1)] for n in later)
            follows = next(filter(None, theirs), [])
        if not follows or (not follows[-1].sound and follows[-1].head.number > proven):
            break
        seen = follows[-1]
        if seen.head.number > last.number + 1:
            gaps.append(Gap(last.number + 1, seen.head.number - 1, before, seen))
        taken.append(seen)
        before, last = seen, Mark(seen.head.number, seen.head.crc)
    if last.number < proven:
        gaps.append(Gap(last.number + 1, proven, before, None))
    return taken, gaps


def _limits(files: Files, found: Sequence[Seen]) -> dict[str, int]:
    """For each journal file, the lowest number that a later one can begin with."""
    first: dict[str, Seen] = {}
    for seen in found:
        first.setdefault(seen.file, seen)
    limits, lowest = {}, OFFSET_MAX
    for name in reversed(file_names(files)):
        limits[name] = lowest
        file = files.open(name, write=False)
        if name in first:
            # Each page before it may have held a frame that cannot be read.
            lowest = min(lowest, first[name].head.number - first[name].position // PAGE)
        elif any(file.read(0, PAGE)):
            lowest = max(0, lowest - file.size() // PAGE) if lowest < OFFSET_MAX else 0
    return limits


# --- the state ------------------------------------------------------------------------------


class Salvage:
    """``state``: what the frames add up to that can be read. ``lost``: what may be lost with the
    others, in words, and ``level`` what that amounts to. ``found``: the batches that were found.

    ``ends``: where the logs ended before the first gap, by id; empty where there is none.
    """

    def __init__(self, files: Patient, seen: Survey, no_files: Sequence[str] = ()) -> None:
        """``no_files``: the journal's, and checkpoints, where there is something else now."""
        self._files = files
        self._survey = seen
        self._base = base = seen.base
        self.state = state.load(state.dump(base.state)) if base else State()
        self.level = Level.NOTHING
        self.lost: list[Finding] = []
        self.found = Found()
        self.ends: dict[int, int] = {}
        self._loose = strangers(files, _known(base))
        self._named: dict[int, int] = {}  # by log: the offset behind all that a frame names
        self._deleted: set[int] = set()
        # Of logs made anew: the offset from which on there may have been records.
        self._since: dict[int, int] = {}
        # What was said since the last gap is so: of these cursors, and where these logs end.
        self._stands: set[tuple[int, str]] = set()
        self._appended: set[int] = set()
        if base is None:
            self._lose(Level.LOSS, f"{seen.refusal}: what was only there is lost")
        if DIRECTORY not in files.names(""):
            self._lose(Level.LOSS, "the journal is not there: what was only there is lost")
        mark = Mark(base.number, base.crc) if base else Mark(0, 0)
        frames = heads(files, base.journal if base else journal_id(files), mark.number)
        proven = max([mark.number, *(each.head.synced for each in frames)])
        damaged = (point.name for point in seen.checkpoints if point.content is None)
        proven = max([proven, *map(checkpoints.number_in, (*damaged, *no_files))])
        taken, gaps = chain(files, frames, mark, proven)
        after = {gap.after: gap for gap in gaps}
        for each in taken:
            self._take(each, after.get(each))
        if None in after:
            self._open(after[None])
        elif (torn := self._torn(frames, taken, mark)) is not None:
            self._open(torn)
        self._judge_others(frames, no_files)
        self._judge_mark(frames)
        self._judge_ends(taken)
        if self.level > Level.NOTHING:
            self._close()
        for loose in self._loose.values():
            for batch in loose.values():
                self.found.put(batch)

    def _lose(self, level: Level, text: str, file: str = DIRECTORY, at: int | None = None) -> None:
        self.level = max(self.level, level)
        self.lost.append(Finding(True, text, file, at))

    def _lose_of(
        self,
        log: Log,
        text: str,
        file: str = "",
        first: int | None = None,
        end: int | None = None,
    ) -> None:
        self.lost.append(Finding(True, text, file, None, log.name, first, end))

    # --- frames -------------------------------------------------------------------------------

    def _take(self, seen: Seen, gap: Gap | None) -> None:
        read = self._files.reader(seen.file)
        facts_bytes, time_ns = seen.head.facts_bytes, seen.head.time_ns
        said = frame.facts_of(seen.head, read(seen.position, frame.HEAD_BYTES + facts_bytes))
        if gap is not None:
            self._open(gap)
        if self.level and not all(isinstance(fact, facts.Opened) for fact in said):
            self.level = Level.LOSS  # it is more than a tail that is missing
        for batch in of_frame(read, seen.position, facts_bytes, said):
            self.found.put(batch)
        for fact in said:
            self._apply(fact, time_ns)

    def _open(self, gap: Gap) -> None:
        self._interrupt()
        held = "; ".join(self._unpack(gap))
        where = f", behind {gap.before.file} at {gap.before.end}" if gap.before else ""
        what = f"as far as it unpacks, they held {held}" if held else "nothing in them unpacks"
        frames = f"frames {gap.first} to {gap.last}"
        self._lose(Level.TAIL, f"{frames} are missing or damaged{where}: {what}")

    def _interrupt(self) -> None:
        """From here on, facts come without what was before them, if any come."""
        self._stands.clear()
        self._appended.clear()
        self.ends = self.ends or {log.id: log.end for log in self.state.logs.values()}

    def _unpack(self, gap: Gap) -> Iterator[str]:
        """What still unpacks in a gap, in words. Batches prove themselves, and are kept."""
        if (place := self._place_of(gap)) is None:
            return
        name, position, end = place
        read = self._files.reader(name)
        for _ in range(gap.last - gap.first + 1):
            claimed = frame.peek(read(position, frame.HEAD_BYTES))
            if claimed is None or position + claimed[0] > end:
                return
            length, facts_bytes = claimed
            said = []
            for each in salvaged(read(position, frame.HEAD_BYTES + facts_bytes), facts_bytes):
                if (fact := _known_fact(each)) is None:
                    break  # behind it, nothing tells whose body begins where
                said.append(fact)
                yield self._words(fact)
            for batch in of_frame(read, position, facts_bytes, said):
                self._loose.put(batch)
            position += frame.padded(length)

    def _place_of(self, gap: Gap) -> tuple[str, int, int] | None:
        """Where frames of a gap stand for sure, one behind the other: file, position, end.

        Every start begins a file. So what stands before a frame in its file is of its life; what
        stands behind one is so if no later file was begun: else a crash may have left it there.
        """
        before, after = gap.before, gap.after
        if after is not None and (before is None or before.file != after.file):
            return after.file, 0, after.position
        if before is None:
            return None
        size = self._files.open(before.file).size()
        if after is not None:
            return before.file, before.end, after.position
        later = [
            name
            for name in file_names(self._files)
            if name > before.file and any(self._files.open(name).read(0, PAGE))
        ]
        if not later:
            return before.file, before.end, size
        return (later[0], 0, self._files.open(later[0]).size()) if len(later) == 1 else None

    def _words(self, fact: facts.Fact) -> str:
        if not isinstance(fact, facts.Appended):
            return f"{fact!r}"[:_SHOWN_MAX]
        header = parse_header(fact.header)
        self._named[header.log] = max(self._named.get(header.log, 0), header.end)
        log = self.state.logs.get(header.log)
        name = f"log {log.name}" if log else f"log id {header.log}"
        return f"the offsets {header.base} to {header.end} of {name}"

    def _torn(self, frames: Sequence[Seen], taken: Sequence[Seen], mark: Mark) -> Gap | None:
        """What begins behind the last frame and is not whole. (A start that goes well tells it.)"""
        ends = [*taken, *(seen for seen in frames if (seen.head.number, seen.head.crc) == mark)]
        if not ends:
            return None
        last = taken[-1] if taken else ends[-1]
        later = [(name, 0) for name in file_names(self._files) if name > last.file]
        for name, position in ((last.file, last.end), *later):
            read = self._files.reader(name)
            if not any(read(position, PAGE)):
                continue
            claimed = frame.peek(read(position, frame.HEAD_BYTES))
            facts_bytes = claimed[1] if claimed else 0
            head = frame.parse(read(position, frame.HEAD_BYTES + facts_bytes), None)
            if head is None or head.number > last.head.number:  # else the file held that before
                return Gap(last.head.number + 1, last.head.number + 1, last, None)
        return None

    def _judge_others(self, frames: Sequence[Seen], no_files: Sequence[str]) -> None:
        """Nobody knows what stood where no file of this journal is now, if no later one goes on."""
        if self._base is None:
            return
        ours = {seen.file for seen in frames}
        theirs = {s.file for s in heads(self._files, None, OFFSET_MAX)} - {*ours, SPARE}
        last = max(ours, default="")
        lost = (name for name in no_files if name.startswith(DIRECTORY))
        for name in sorted(name for name in (*theirs, *lost) if name > last):
            self._interrupt()
            what = "of another directory's journal" if name in theirs else "no file"
            self._lose(Level.TAIL, f"it is {what}: what stood in its place is lost", name)
        if theirs and not ours:
            text = (
                "all of it is of another directory, or else the checkpoints are: those are believed"
                " (if they are the strangers, take them away and repair again)"
            )
            self._lose(Level.LOSS, text)

    def _judge_mark(self, frames: Sequence[Seen]) -> None:
        """The frame that a checkpoint stands at is in the journal for as long as that is the
        newest. Where it is not, what came behind it is gone as well. (A repair's stands at none.)
        """
        base = self._base
        if base is None or not base.crc or any(s.head.number >= base.number for s in frames):
            return
        self._interrupt()
        text = (
            f"frame {base.number}, at which the checkpoint stands, and all frames behind it"
            " are not there: what was only there is lost"
        )
        self._lose(Level.TAIL, text)

    def _judge_ends(self, taken: Sequence[Seen]) -> None:
        """Nobody knows what a journal file held that is too short, unless a later one goes on."""
        last = taken[-1].file if taken else ""
        for name in file_names(self._files):
            size = self._files.open(name).size()
            if self._base is not None and size < self._base.file_bytes and name >= last:
                self._interrupt()
                text = f"the file ends at {size}: what stood behind that is lost"
                self._lose(Level.TAIL, text, name, size)

    # --- facts --------------------------------------------------------------------------------

    def _apply(self, fact: facts.Fact, time_ns: int) -> None:
        match fact:
            case facts.Appended(raw):
                header = parse_header(raw)
                log = self._log(header.log)
                self._advance(log, header.base)
                self._appended.add(log.id)
            case facts.Created(_, name):
                before = self.state.by_name(name)
                if before is not None:
                    # It was deleted before: that fact is lost.
                    self._apply(facts.Deleted(before.id), time_ns)
            case facts.Deleted(log_id):
                self._deleted.add(log_id)
                if log_id not in self.state.logs:
                    return
            case _:
                fact = self._fitted(fact)
        try:
            self.state.apply(fact, time_ns)
        except (LookupError, AssertionError, InvalidBatch) as error:
            shown = f"{fact!r}"[:_SHOWN_MAX]
            self._lose(Level.LOSS, f"{shown} does not fit what is known before it ({error!r})")

    def _fitted(self, fact: Any) -> Any:
        """The fact, where its log, its consumer's cursor and what it names are there."""
        if not hasattr(fact, "log"):
            return fact
        log = self._log(fact.log)
        if isinstance(fact, facts.Trimmed):
            parked = {(name, at) for name, cursor in log.cursors.items() for at in cursor.parked}
            copies = [copy for copy in fact.copies if copy[:2] in parked]
            if log.id in self._since:
                self._since[log.id] = fact.first
            # Before it, appends may be missing; behind it, files that it left.
            self._advance(log, fact.first)
            return facts.Trimmed(fact.log, max(fact.first, log.first), copies)
        consumer = getattr(fact, "consumer", PRODUCER_ID)
        if consumer != PRODUCER_ID:
            self._stands.add((log.id, consumer))
            if consumer not in log.cursors and isinstance(fact, facts.Committed):
                sought = facts.Sought(log.id, consumer, fact.epoch, fact.offset, False)
                self.state.apply(sought, 0)
        return fact

    def _log(self, log: int) -> Log:
        """A log. If it is not there, its creation is lost."""
        if log not in self.state.logs:
            name = self._names().get(log, f"recovered-{log}")
            if self.state.by_name(name) is not None:
                name = f"recovered-{log}"
            next_log = self.state.next_log
            self.state.apply(facts.Created(log, name, facts.Options()), 0)
            self.state.next_log = max(next_log, log + 1)
            made = self.state.logs[log]
            made.first = made.end = min(
                (base for _, each, base, _ in segment_files(self._files) if each == log), default=0
            )
            self._since[log] = 0
            self._lose(Level.LOSS, f"log {log} was made anew as {name}: its options are lost",
                       directory(log))  # fmt: skip
        return self.state.logs[log]

    # --- offsets ------------------------------------------------------------------------------

    def _advance(self, log: Log, end: int) -> None:
        """Fill a log up to ``end`` with what is found of it, and holes."""
        loose = self._loose.of(log.id)
        while log.end < end:
            batch = loose.get(log.end)
            if batch is not None and batch.header.end <= end:
                keys = b""
                if log.options.key_index:
                    keys = batch.read(batch.position + 1, batch.header.keys_bytes)
                self.state.apply(facts.Appended(batch.raw, keys), batch.header.time_ns)
                continue
            if not log.segments:
                log.segments.append(Segment(log.end, 0, log.time_max_ns))
            log.end = min((base for base in loose if log.end < base < end), default=end)

    def _close(self) -> None:
        """What the lost facts may have said must not be said again, with another meaning."""
        begun = self._base.state.next_log if self._base else 0
        for _, log_id, base, _ in segment_files(self._files):
            if self._loose.of(log_id) and log_id >= begun and log_id not in self._deleted:
                self._log(log_id)
            self._named[log_id] = max(self._named.get(log_id, 0), base)
            self.state.next_log = max(self.state.next_log, log_id + 1)
        for client in self.state.clients.values():
            for done in client.done:
                for log_id, _first, end in done.appends:
                    self._named[log_id] = max(self._named.get(log_id, 0), end)
        for log in self.state.logs.values():
            if (since := self._since.get(log.id, log.first)) < log.first:
                # A trim left nothing there, or a file is gone: the state, which is lost, told.
                text = "there may have been records before those found: trimmed, or else lost"
                self._lose_of(log, text, directory(log.id), since, log.first)
            found = [batch.header.end for batch in self._loose.of(log.id).values()]
            self._advance(log, max(self._named.get(log.id, 0), *found, *_named_by(log)))
            if log.id not in self._appended:
                self._lose_of(log, "there may have been more records, lost", first=log.end)
            self._end_claims(log)
        for file, told in self._damaged_checkpoints() if self._base is None else ():
            for log in told.state.logs.values():
                self._lose_of(log, f"not believed: its options were {log.options!r}", file)
                for name, cursor in sorted(log.cursors.items()):
                    text = f"not believed: the cursor of {name} stood at {cursor.committed}"
                    self._lose_of(log, text, file)

    def _end_claims(self, log: Log) -> None:
        if log.owner.epoch:
            self._evict(log, PRODUCER_ID, log.owner.epoch)
        for name, cursor in sorted(log.cursors.items()):
            if (log.id, name) not in self._stands:
                text = (
                    f"the cursor of {name} stands at {cursor.committed}: it may have been further"
                )
                self._lose_of(log, text)
            self._evict(log, name, cursor.epoch)

    def _evict(self, log: Log, consumer: str, epoch: int) -> None:
        self.state.apply(facts.Evicted(log.id, consumer, epoch + EPOCH_LEAP, False), 0)

    # --- damaged checkpoints ------------------------------------------------------------------

    def _damaged_checkpoints(self) -> Iterator[tuple[str, Checkpoint]]:
        """Newest first, what they still say."""
        for each in reversed(self._survey.checkpoints):
            if (told := checkpoints.salvaged(self._files.contents(each.name))) is not None:
                yield each.name, told

    def _names(self) -> dict[int, str]:
        """Of logs: the one thing of damaged checkpoints that is used. A wrong one does no harm."""
        names: dict[int, str] = {}
        for _, told in self._damaged_checkpoints() if self._base is None else ():
            for log in told.state.logs.values():
                if _LOG_NAME.fullmatch(log.name):
                    names.setdefault(log.id, log.name)
        return names


def _known(base: Checkpoint | None) -> dict[str, tuple[int, int]]:
    """The segments of a checkpoint, and from where on it knows nothing of them."""
    known = {}
    for log in base.state.logs.values() if base else ():
        for segment in log.segments:
            last = segment is log.segments[-1]
            behind = (segment.bytes, log.end) if last else (OFFSET_MAX, OFFSET_MAX)
            known[path(log.id, segment.base, segment.generation)] = behind
    return known


def _known_fact(unpacked: Any) -> facts.Fact | None:
    """A fact out of a damaged frame, if it is one. An append's header has a CRC of its own."""
    try:
        [fact] = facts.decode(msgpack.packb([unpacked], unicode_errors="surrogateescape"))
        if isinstance(fact, facts.Appended):
            parse_header(fact.header)
    except (facts.InvalidFacts, InvalidBatch, ValueError, TypeError, OverflowError):
        return None
    return fact


def _named_by(log: Log) -> Iterator[int]:
    """The offsets behind those that a log's state names, beside its records."""
    yield log.end
    for producer in log.producers.values():
        yield from (sent.base + sent.records for sent in producer.sent)
    for cursor in log.cursors.values():
        yield from (cursor.committed, cursor.begun)
        yield from (offset + 1 for offset in [*cursor.parked, *cursor.streak])
        if cursor.shared is not None:
            yield from cursor.shared.settled
            yield from (offset + 1 for offset in cursor.shared.failed)

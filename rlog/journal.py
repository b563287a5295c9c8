"""The journal: the server's one durable sequence of frames. The second of the two seams.

``Journal`` is the protocol of six calls that a replicated engine will have to offer.
``LocalJournal``
keeps the journal in local files; what the driver asks of it besides (``room``, ``spare``,
``prepare``, ``files_above``) is their upkeep. The broker sees neither.

Files of one size, named by rising numbers, hold frames one behind the other (``frame`` draws them).
A file is zeroed throughout and synced before it gets its number, and a file is synced before the
next one is begun; so frames follow each other on the disk as they did in time, whatever the policy,
but for what was written since the last sync. Every start begins a file: what a crash left behind
the last whole frame is never written over, only ever found to be no part of the chain.

The chain: each frame names the CRC of the one before it. Where two frames have one number, an
earlier life wrote the first, lost it or gave it up, and the later file's counts.
"""

from __future__ import annotations

import errno
import logging
import threading
from enum import Enum
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol

from rlog_client.batch import HEADER_BYTES, InvalidBatch

from . import facts, frame
from .facts import InvalidFacts
from .files import PAGE, File, Files

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .frame import Body, Frame, Head

logger = logging.getLogger("rlog.journal")

DIRECTORY: Final = "journal"
SPARE: Final = f"{DIRECTORY}/spare"
_TEMPORARY: Final = f"{DIRECTORY}/new"
_CHUNK: Final = 1 << 20
_ZERO_PAGE: Final = bytes(PAGE)
# What a frame of one batch needs beside the batch: its header as a fact, and the frame's own.
FRAME_OVERHEAD: Final = 2 * PAGE


class Outcome(Enum):
    """How a wait ends. All but SYNCED end the broker that waited."""

    SYNCED = "synced"
    FENCED = "fenced"
    UNKNOWN = "unknown"


class Entry(NamedTuple):
    """A frame as read back: a body that is damaged is None, and its neighbours are not."""

    head: Head
    facts: list[facts.Fact]
    bodies: list[Body]


class Journal(Protocol):
    def open(self) -> int:
        """Find the chain. -> length of the largest frame it takes, in bytes.

        Raises Refused; writes nothing.
        """

    def append(self, item: Frame, expect: int) -> None:
        """Hand over the frame that is to be number ``expect``. Durable only when waited for."""

    def wait(self, number: int) -> Outcome:
        """Until that frame, and so every one before it, is durable; or never will be for sure."""

    def read(self, number: int) -> Entry:
        """A frame of those that ``open`` found."""

    def tail(self) -> int:
        """The number of the last frame."""

    def trim(self, number: int) -> None:
        """Frames up to ``number`` are no longer needed."""


class Refused(Exception):
    """The directory is not served, and was not touched: the text names what, where, and why."""


class NoSpace(OSError):
    """There is no space to begin a journal file; nothing was done."""


class Mark(NamedTuple):
    """A frame's number and CRC: where a checkpoint stands and the chain begins.

    (0, 0) is before the first.
    """

    number: int
    crc: int


class Torn(NamedTuple):
    """Bytes behind the last frame that are no frame: the tail of an append that a crash cut."""

    file: str
    position: int
    length: int
    report: str


class Seen(NamedTuple):
    """A frame in a file whose header and facts are whole; ``sound``: so are its bodies (if they
    were looked at).
    """

    head: Head
    file: str
    position: int
    sound: bool

    @property
    def end(self) -> int:
        return self.position + frame.padded(self.head.length)


def file_names(files: Files) -> list[str]:
    """The journal's files, in order."""
    return [f"{DIRECTORY}/{name}" for name in files.names(DIRECTORY) if name.isdecimal()]


def scan(file: File, name: str, journal: int | None, look_above: int) -> Iterator[Seen]:
    """Every frame in a file whose header and facts are whole.

    Bodies are checked above ``look_above``.

    Page by page, but over the extent of a frame that is sound: a body is its user's and could hold
    a copy of a journal.
    """
    size = file.size()
    position = 0
    chunk, begin = b"", 0
    while position < size:
        if not begin <= position < position + PAGE <= begin + len(chunk):
            chunk, begin = file.read(position, _CHUNK), position
        at = position - begin
        claimed = frame.peek(chunk[at : at + frame.HEAD_BYTES])
        step = PAGE
        if claimed is not None and position + claimed[0] <= size:
            seen = _look(file, name, journal, look_above, position, claimed)
            if seen is not None:
                yield seen
                if seen.sound and seen.head.number > look_above:
                    step = frame.padded(seen.head.length)
        position += step


def _look(
    file: File,
    name: str,
    journal: int | None,
    look_above: int,
    position: int,
    claimed: tuple[int, int],
) -> Seen | None:
    length, facts_bytes = claimed
    raw = file.read(position, frame.HEAD_BYTES + facts_bytes)
    head = frame.parse(raw, journal)
    if head is None:
        return None
    if head.number <= look_above:
        return Seen(head, name, position, True)
    entry = _entry(head, name, position, file.read(position, length))
    return Seen(head, name, position, all(body.body is not None for body in entry.bodies))


def _entry(head: Head, name: str, position: int, raw: bytes) -> Entry:
    try:
        found = frame.facts_of(head, raw)
        return Entry(head, found, frame.bodies_of(head, raw, found))
    except (InvalidFacts, InvalidBatch) as error:
        raise Refused(
            f"{name} at {position}: frame {head.number} holds facts unknown here: {error}"
        ) from None


class LocalJournal:
    """The journal in files of the data directory.

    ``mark``: where the newest whole checkpoint stands. ``proven``: the highest number that any
    checkpoint proves to have been synced, a damaged one by its name. ``file_bytes``: as the
    directory was made.
    """

    def __init__(
        self, files: Files, journal: int, file_bytes: int, mark: Mark, proven: int
    ) -> None:
        self._files = files
        self.id = journal
        self.file_bytes = file_bytes
        self._mark = mark
        self._proven = proven
        self._chain: dict[int, Seen] = {}
        self.torn: list[Torn] = []
        self.last = mark  # the last frame appended, or found
        self.synced = mark.number  # the highest number known synced
        self._sync_failed = False
        self._trimmed = 0
        self._highest: dict[str, int] = {}  # file -> the highest number in it
        self._name = f"{DIRECTORY}/{0:010}"
        self._file: File | None = None  # the one being written
        self._position = file_bytes
        self._spare = False
        self._preparing = threading.Lock()
        self._reading: tuple[str, File] | None = None  # the file that ``read`` read last

    # --- open ---------------------------------------------------------------------------------

    def open(self) -> int:
        names = file_names(self._files)
        opened = {name: self._files.open(name) for name in names}
        for name, file in opened.items():
            if (size := file.size()) != self.file_bytes:
                raise Refused(f"journal file {name} has {size} bytes instead of {self.file_bytes}")
            # After a failed sync the page cache may hold what the disk does not, and call it clean.
            # So: what can still be written is written, then the cache is dropped, then we read.
            file.sync()
            file.forget()
        heads = self._scan_all(opened)
        self._follow(heads)
        self._look_behind(opened, heads)
        if names:
            self._name = names[-1]
        for seen in heads:
            self._highest[seen.file] = max(self._highest[seen.file], seen.head.number)
        self._spare = "spare" in self._files.names(DIRECTORY)
        if self._spare:
            spare = self._files.open(SPARE)
            self._spare = spare.size() == self.file_bytes
            first = self._first(spare)
            # Such a file is below every frame that is needed; what is above them got its name.
            if first is not None and first.journal == self.id and first.number > self.last.number:
                raise Refused(f"{SPARE} holds frame {first.number}: it has another file's name")
        return self.file_bytes

    def _scan_all(self, opened: dict[str, File]) -> list[Seen]:
        """The frames of all files that can matter, in the order of the files."""
        names = list(opened)
        firsts = {name: self._first(file) for name, file in opened.items()}
        for name, first in firsts.items():
            # No crash leaves that behind. (A body may hold such frames, but begins no file.)
            if first is not None and first.journal != self.id:
                raise Refused(f"{name} begins with a frame of another directory's journal")
        # A file is of no interest when a later one begins at or before the first frame we need:
        # all its frames are below the mark, or were given up by an earlier start. (But where files
        # got each other's names, one that begins above it may come before it.)
        begin, highest = 0, 0
        for index, first in enumerate(firsts.values()):
            number = 0 if first is None else first.number
            if number and highest <= number <= self._mark.number + 1:
                begin = index
            highest = max(highest, number)
        # Not read, but needed by the older checkpoint, should the newest be found damaged.
        self._highest = dict.fromkeys(names[:begin], self._mark.number)
        heads: list[Seen] = []
        for name in names[begin:]:
            self._highest[name] = 0
            heads.extend(scan(opened[name], name, self.id, self._mark.number))
        return heads

    def _first(self, file: File) -> Head | None:
        """Of the frame that a file begins with, whosever it is."""
        claimed = frame.peek(file.read(0, frame.HEAD_BYTES))
        if claimed is None or claimed[0] > self.file_bytes:
            return None
        return frame.parse(file.read(0, frame.HEAD_BYTES + claimed[1]), None)

    def _follow(self, heads: list[Seen]) -> None:
        """Find the chain from the mark on, or refuse."""
        by_number: dict[int, list[Seen]] = {}
        for seen in heads:
            by_number.setdefault(seen.head.number, []).append(seen)
        # Proof beyond the chain counts too: a later frame that says "up to 7 is synced" makes a
        # missing 7 rot, not a torn tail.
        proven = max([self._proven, *(seen.head.synced for seen in heads)])
        last = self._mark
        while True:
            follows = [s for s in by_number.get(last.number + 1, ()) if s.head.previous == last.crc]
            if not follows:
                break
            seen = follows[-1]
            if not seen.sound and seen.head.number > proven:
                break  # torn: its header came to the disk, a body did not
            self._chain[seen.head.number] = seen
            last = Mark(seen.head.number, seen.head.crc)
        if proven > last.number:
            before = self._chain.get(last.number)
            where = f"behind {before.file} at {before.end}" if before else f"in {DIRECTORY}/"
            raise Refused(
                f"frames {last.number + 1} to {proven} were synced "
                f"and are missing or damaged, {where}"
            )
        if not self._chain and last.crc and all(seen.head.number < last.number for seen in heads):
            # It stays until a newer checkpoint is there. Who lost it lost what came behind it, too.
            raise Refused(
                f"frame {last.number}, at which the checkpoint stands, is missing or damaged"
            )
        self.last = last
        self.synced = last.number

    def _look_behind(self, opened: dict[str, File], heads: list[Seen]) -> None:
        """Find what stands behind the last frame and is neither a zero page nor older than it."""
        here = [s for s in heads if (s.head.number, s.head.crc) == self.last]
        end = here[-1] if here else None
        for name, file in opened.items():
            if end is not None and name < end.file:
                continue
            begin = end.end if end is not None and name == end.file else 0
            # Old frames of a recycled file end the region, younger ones are part of what was lost.
            old = (s for s in heads if s.file == name and s.position >= begin)
            stop = next(
                (s.position for s in old if s.head.number <= self.last.number), self.file_bytes
            )
            if begin < stop and any(file.read(begin, PAGE)):
                self.torn.append(self._tear(file, name, begin, stop))

    def _tear(self, file: File, name: str, begin: int, stop: int) -> Torn:
        length = 0
        for position in range(begin, stop, _CHUNK):
            data = file.read(position, min(_CHUNK, stop - position)).rstrip(b"\0")
            if data:
                length = position - begin + len(data)
        return Torn(name, begin, length, self._describe(file.read(begin, length)))

    def _describe(self, raw: bytes) -> str:
        """What can be read of a torn frame."""
        head = frame.parse(raw, self.id)
        if head is None:
            return "nothing of it can be read"
        # (That its facts are known here was seen when it was scanned.)
        found = frame.facts_of(head, raw)
        bodies = frame.bodies_of(head, raw, found)
        spans = ", ".join(
            f"log {b.header.log} offsets {b.header.base} to {b.header.end}"
            f"{'' if b.body is not None else ' (damaged)'}"
            for b in bodies
        )
        what = f"{len(found)} facts; {spans or 'no appends'}"
        return f"frame {head.number}, perhaps acknowledged: {what}"

    # --- at run time --------------------------------------------------------------------------

    def read(self, number: int) -> Entry:
        seen = self._chain[number]
        if self._reading is None or self._reading[0] != seen.file:
            self._reading = (seen.file, self._files.open(seen.file, write=False))
        raw = self._reading[1].read(seen.position, seen.head.length)
        return _entry(seen.head, seen.file, seen.position, raw)

    def place(self, number: int) -> Seen:
        """Where a frame lies of those that ``open`` found."""
        return self._chain[number]

    def tail(self) -> int:
        return self.last.number

    def append(self, item: Frame, expect: int) -> None:
        assert expect == self.last.number + 1, "one broker, one frame at a time"
        head, length, crc = self._encode(item, expect)
        if self._position + frame.padded(length) > self.file_bytes:
            self._begin_file()
            head, length, crc = self._encode(item, expect)  # beginning a file synced the one before
        need = frame.padded(length)
        assert need <= self.file_bytes, "the broker was told the largest frame"
        pieces = [head, *item.bodies, bytes(need - length)]
        if self._position + need < self.file_bytes:
            pieces.append(_ZERO_PAGE)
        assert self._file is not None
        self._file.write(self._position, pieces)
        self._position += need
        self._highest[self._name] = expect
        self.last = Mark(expect, crc)

    def _encode(self, item: Frame, number: int) -> tuple[bytes, int, int]:
        return frame.encode(item, self.id, number, self.last.crc, self.synced)

    def wait(self, number: int) -> Outcome:
        if self.synced >= number:
            return Outcome.SYNCED
        if self._sync_failed:
            return Outcome.UNKNOWN
        try:
            self._sync()
        except OSError:
            logger.exception("sync of %s failed: nothing more will be written", self._name)
            return Outcome.UNKNOWN
        return Outcome.SYNCED

    def _sync(self) -> None:
        written = self.last.number
        assert self._file is not None
        try:
            self._file.sync()
        except OSError:
            # Never again: a second sync would say yes and mean only what was written since.
            self._sync_failed = True
            raise
        self.synced = written

    def trim(self, number: int) -> None:
        self._trimmed = number
        for old in [n for n in self._chain if n <= number]:
            del self._chain[old]

    # --- files --------------------------------------------------------------------------------

    def files_above(self, number: int) -> int:
        """How many files hold frames above ``number``."""
        return sum(highest > number for highest in self._highest.values())

    @property
    def room(self) -> int:
        """Bytes that the current file still takes."""
        return self.file_bytes - self._position

    @property
    def spare(self) -> bool:
        """The next file is ready."""
        return self._spare

    def prepare(self) -> bool:
        """Have a spare file ready. May run in another thread, beside ``append`` and ``wait``.

        False: there is no space. Any other failure is an OSError, and final.
        """
        with self._preparing:
            self._check_failed()
            try:
                self._spare = self._spare or self._make_spare()
            except OSError:
                # Known at once: whoever begins a file beside this syncs the same directory, and
                # would believe it.
                self._sync_failed = True
                raise
            return self._spare

    def _check_failed(self) -> None:
        if self._sync_failed:
            raise OSError(errno.EIO, "the journal failed before")

    def _make_spare(self) -> bool:
        old = self._recyclable()
        if old is not None:
            # With its first page zero and synced, it holds no frame that could be taken for one
            # of the chain: its first would be, and the others name what went before them.
            file = self._files.open(old)
            file.write(0, [_ZERO_PAGE])
            file.sync()
            self._files.rename(old, SPARE)
        elif self._make_zeroed():
            self._files.rename(_TEMPORARY, SPARE)
        else:
            return False
        self._files.sync_directory(DIRECTORY)
        return True

    def _recyclable(self) -> str | None:
        """Take a file that is wholly trimmed out of the books."""
        for name in sorted(self._highest):
            if self._highest[name] <= self._trimmed and name != self._name:
                del self._highest[name]
                return name
        return None

    def _make_zeroed(self) -> bool:
        """Write out a new file; False: there is no space for it."""
        if "new" in self._files.names(DIRECTORY):
            self._files.unlink(_TEMPORARY)
        try:
            file = self._files.create(_TEMPORARY)
            file.allocate(0, self.file_bytes)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                return False
            raise
        # Written, not only allocated: a synced write into space never written costs half more.
        zeros = bytes(_CHUNK)
        for position in range(0, self.file_bytes, _CHUNK):
            file.write(position, [zeros[: min(_CHUNK, self.file_bytes - position)]])
        file.sync()
        return True

    def _begin_file(self) -> None:
        if self._file is not None and self.synced < self.last.number:
            self._sync()
        if not self.prepare():
            raise NoSpace(errno.ENOSPC, "no space for another journal file")
        self._name = f"{DIRECTORY}/{int(self._name[len(DIRECTORY) + 1 :]) + 1:010}"
        with self._preparing:  # else the next spare, made beside this, could take its place first
            self._check_failed()
            self._files.rename(SPARE, self._name)
            self._spare = False
            # Its name is durable before a frame is: a frame in a file without a name is lost.
            self._files.sync_directory(DIRECTORY)
        self._file = self._files.open(self._name)
        self._position = 0
        self._highest[self._name] = 0


def batch_bytes_max(frame_bytes_max: int) -> int:
    """The largest batch that fits into a frame of so many bytes."""
    return frame_bytes_max - FRAME_OVERHEAD - HEADER_BYTES


if TYPE_CHECKING:
    _conforms: type[Journal] = LocalJournal

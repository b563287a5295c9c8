"""The driver: takes frames from the broker to the journal and outcomes back. It decides nothing.

It is plain: no task, no thread, no clock of its own. Whoever runs it (the server's task, a test)
calls ``begin``, then ``journal.wait`` wherever that may block, then ``finish``; and between two
flights, when ``checkpoint_due``, ``begin_checkpoint``, the job that it gives,
``finish_checkpoint``.
"""

from __future__ import annotations

import contextlib
import logging
import secrets
from typing import TYPE_CHECKING, Final, NamedTuple

from rlog_client.batch import HEADER_BYTES, RECORD_OVERHEAD

from . import checkpoint as checkpoints
from . import facts
from .broker import FRAME_BYTES_GOAL, Broker, Decided
from .checkpoint import Checkpoint, Tail
from .compaction import Compactor
from .decisions import NOBODY, Books, Copying, Waiting, copying
from .files import Boot
from .frame import Frame
from .journal import LocalJournal, NoSpace, Outcome, batch_bytes_max
from .recovery import recover

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from .files import File, Files
    from .policy import Policy

logger = logging.getLogger("rlog.driver")

FILES_IN_USE_MAX: Final = 4  # journal files; then a checkpoint lets the older ones go
WITNESS_SECONDS: Final = 1.0
AGAIN_SECONDS: Final = 0.25  # between two tries to get space
RESERVE_BYTES_MAX: Final = 1 << 20
ROOM_MIN: Final = 64 * 1024  # of the journal, for a frame without appends
# Why appends are refused, while all else that writes goes on.
NO_FILE: Final = "no space for another journal file"
NO_RESERVE: Final = "no space that a checkpoint could use up"


class Limits(NamedTuple):
    """What a directory is made with, and what its server allows; sizes in bytes."""

    policy: Policy
    journal_file_bytes: int = 64 << 20
    batch_bytes_max: int = 8 << 20
    record_bytes_max: int = 1 << 20
    files_max: int = 4096  # of the process: an eighth are segments to be synced, another is read


_NEVER: Final = float("inf")


def attempt(job: Callable[[], bool]) -> bool | OSError:
    """Run a job of upkeep: whether there was space, or how the disk failed."""
    try:
        return job()
    except OSError as error:
        return error


class Flight(NamedTuple):
    """What is under way: ``decided`` in frame ``number``, or only a sync up to it."""

    number: int
    decided: Decided | None
    bytes: int = 0  # of the bodies in it
    witness: bool = True  # its sync wants a frame that records it


class Driver:
    """One broker, one journal. ``clock``: monotonic seconds; ``wall``: UTC nanoseconds."""

    def __init__(
        self,
        files: Files,
        broker: Broker,
        journal: LocalJournal,
        marks: Sequence[int],
        *,
        dirty_max: int,
        clock: Callable[[], float],
        wall: Callable[[], int],
        boot: Boot,
    ) -> None:
        self.broker = broker
        self.journal = journal
        self.flush: Callable[[], None] = lambda: None  # sends the answers that were made so far
        self._files = files
        self._marks = list(marks)[-2:]  # the checkpoints' numbers, older first
        self.compactor = Compactor(broker, clock)
        self._dirty_max = dirty_max
        self._clock = clock
        self._wall = wall
        self._uptime_ns = boot.uptime_ns
        self._witness_due: float | None = None  # a sync that no frame records yet
        # The first frame, until it is written.
        self._opening: Decided | None = broker.open(wall(), clock(), boot.id, boot.uptime_ns())
        self._again_at = 0.0  # not before then is space for a journal file tried for again,
        self._checkpoint_again_at = 0.0  # and for a checkpoint
        self.upkeep = False  # one of its jobs runs beside the work, says whoever runs it
        # Whether a checkpoint has its space, whatever else has none; None: not looked at yet.
        self._reserved: bool | None = None
        self._flying = False  # a flight was begun and is not finished
        self._pending = self._marks[-1]  # the number of a checkpoint under way
        if len(self._marks) == 2:
            journal.trim(self._marks[0])

    def open(self) -> Flight | None:
        """The first flight of a process: the fact that it took the directory.

        On a full disk it waits, and with it everything that writes.
        """
        assert self._opening is not None
        return self._append(self._opening)

    # --- flights ------------------------------------------------------------------------------

    @property
    def flying(self) -> bool:
        """A flight was begun and is not finished. If not, all that was decided is laid out."""
        return self._flying

    def begin(self) -> Flight | None:
        """The next thing to wait for. None: nothing now; whatever needed no wait is done."""
        if self.broker.books.alarm != _NEVER:
            self.broker.ring(self._clock())
        failed = self.broker.books.failed is not None
        if self._opening is not None and not failed and self._clock() >= self._again_at:
            flight = self.open()
            if flight is not None:
                return flight
        while (decided := self._decide()) is not None:
            if decided.frame is None:
                self._settle(decided, synced=False)
                continue
            flight = self._append(decided)
            if flight is not None:
                return flight
        flight = self._begin_due()
        # What was answered there may have asked for more.
        again = flight is None and self.broker.waiting and not self.held
        return self.begin() if again else flight

    @property
    def held(self) -> bool:
        """Nothing is decided now: there is no space, and what is under way may change that.

        So what comes on a full disk is served late rather than refused.
        """
        stuck = self.broker.books.stuck is not None
        if self.upkeep:
            return stuck or self._reserved is False
        return stuck and self._one_frame_short

    @property
    def _one_frame_short(self) -> bool:
        """One more checkpoint would let a file go, and there is no frame for it to stand at."""
        journal, marks = self.journal, self._marks
        return journal.tail() == marks[-1] and journal.files_above(marks[0]) > 1

    def _decide(self) -> Decided | None:
        if not self.broker.waiting:
            return None
        books, goal = self.broker.books, FRAME_BYTES_GOAL
        if books.failed is None and self._opening is None:
            goal = self._make_room()
            # Without this much, not even a commit is sure to fit: it is refused, and tried again.
            room_min = min(ROOM_MIN, self.journal.file_bytes // 4)
            lacking = self.journal.room < room_min and not self.journal.spare
            books.stuck = books.full if lacking else None
            if self.held:
                return None
        # Where writing has ended, what only reads is still answered, and the rest refused.
        return self.broker.decide(
            self._wall(), goal, now=self._clock(), uptime_ns=self._uptime_ns()
        )

    def _append(self, decided: Decided) -> Flight | None:
        assert decided.frame is not None
        number = self.journal.tail() + 1
        try:
            self.journal.append(decided.frame, number)
        except OSError as error:
            if isinstance(error, NoSpace) and decided is self._opening:
                self._no_space()  # for any other frame it was made sure of before the decision
            else:
                self._fail(f"the journal cannot be written: {error}", decided)
            return None
        if decided is self._opening:
            self._opening = self.broker.books.stuck = None
        if not decided.sync:
            self._settle(decided, synced=False)
            return None
        self._witness_due = None  # this frame says what was synced before it, and will be synced
        self._flying = True
        return Flight(number, decided, sum(map(len, decided.frame.bodies)))

    def _append_empty(self) -> Flight | None:
        """Without this frame, rot in the last synced one could not be told from a torn tail."""
        empty = Decided(Frame(self._wall(), facts.encode([]), []), True, None, [], [], [])
        flight = self._append(empty)
        return flight and flight._replace(witness=False)

    def _begin_due(self) -> Flight | None:
        """A sync that some policy makes due, or an empty frame that records the last one."""
        now = self._clock()
        self.broker.answer_sync_waits(now)
        if self.broker.books.failed is not None:
            return None
        tail = self.journal.tail()
        if self.broker.sync_due is not None and self.broker.sync_due <= now:
            self._flying = True
            return Flight(tail, None)
        if self._witness_due is not None and self._witness_due <= now:
            return self._append_empty()
        if self.held and not self.upkeep:
            return self._append_empty()
        return None

    def finish(self, flight: Flight, outcome: Outcome) -> None:
        """The wait for a flight ended."""
        self._flying = False
        if outcome is not Outcome.SYNCED:
            self._fail(f"frame {flight.number} is not durable ({outcome.value})", flight.decided)
            return
        if flight.decided is None:
            self.broker.synced()
        else:
            self._settle(flight.decided, synced=True)
        if flight.witness:
            self._witness_due = self._clock() + WITNESS_SECONDS
        self.broker.answer_sync_waits(self._clock())

    def _settle(self, decided: Decided, *, synced: bool) -> None:
        self.broker.answer(decided, synced=synced)
        self.flush()  # the client need not wait for the segment, which is only derived
        outdated: list[Callable[[], None]] = []
        if synced and decided.frame is not None:
            # This frame is the proof of the one before it.
            outdated, self.broker.books.outdated = self.broker.books.outdated, outdated
        try:
            self.broker.lay_out(decided, synced=synced, now=self._clock())
            for remove in outdated:
                remove()
        except OSError as error:
            # The frame stands, and its answers too; what could not be laid out, recovery will.
            self._fail(f"a segment cannot be written: {error}", None)

    def _fail(self, reason: str, decided: Decided | None) -> None:
        self._witness_due = None
        self.broker.fail(reason, decided)
        self.broker.answer_sync_waits(self._clock())

    def deadline(self) -> float | None:
        """When ``begin`` will have something to do though nobody asks (monotonic)."""
        if self.broker.books.failed is not None:
            return None
        again = self._again_at if self._opening is not None else None
        alarm = self.broker.books.alarm if self.broker.books.alarm != _NEVER else None
        dues = (self.broker.sync_due, self._witness_due, again, alarm, self.compactor.deadline)
        return min((d for d in dues if d is not None), default=None)

    # --- space --------------------------------------------------------------------------------

    def _make_room(self) -> int:
        """How large the next frame may get, in bytes.

        Appends are taken only while the journal has room to spare: the rest of it is for commits,
        claims and trims.
        """
        journal, books = self.journal, self.broker.books
        largest = min(journal.file_bytes, self.broker.batch_bytes_max + FRAME_BYTES_GOAL)
        ample = max(2 * largest, journal.file_bytes // 8)
        if not journal.spare and journal.room < ample and self._clock() >= self._again_at:
            self.prepared(attempt(journal.prepare))
        if self._reserved is False and not self.upkeep:
            self.reserve_kept(attempt(self.keep_reserve))
        books.full = None
        if not journal.spare and journal.room < ample:
            books.full = NO_FILE
        elif self._reserved is False:
            books.full = NO_RESERVE
        if books.full is None or journal.spare:
            return min(FRAME_BYTES_GOAL, journal.file_bytes // 2)
        return min(FRAME_BYTES_GOAL, journal.room // 2)

    @property
    def spare_wanted(self) -> bool:
        """``journal.prepare`` has something to do, which may be done beside the work."""
        failed = self.broker.books.failed is not None
        return not failed and not self.journal.spare and self._clock() >= self._again_at

    @property
    def reserve_wanted(self) -> bool:
        """``keep_reserve`` was not called yet in this life; it may run beside the work."""
        begun = self._opening is None and self.broker.books.failed is None
        return begun and self._reserved is None

    def keep_reserve(self) -> bool:
        """Have what a checkpoint may use up. False: there is no space for it. Raises OSError."""
        size = min(RESERVE_BYTES_MAX, self.journal.file_bytes // 4)
        self._reserved = checkpoints.keep_reserve(self._files, size)
        return self._reserved

    def reserve_kept(self, result: bool | OSError) -> None:
        """How ``keep_reserve`` ended."""
        if isinstance(result, OSError):
            self._fail(f"no space can be kept for a checkpoint: {result}", None)

    def prepared(self, result: bool | OSError) -> None:
        """How ``journal.prepare`` ended."""
        if isinstance(result, OSError):
            self._fail(f"the next journal file cannot be made: {result}", None)
        elif result:
            self.broker.books.full = None
        else:
            self._no_space()

    def _no_space(self) -> None:
        books = self.broker.books
        books.full = NO_FILE
        if self._opening is not None:
            books.stuck = books.full
        self._again_at = self._clock() + AGAIN_SECONDS

    # --- parked records at a trim -------------------------------------------------------------

    def copying(self) -> Copying | None:
        """A look at the disk that a trim waits for; it may run beside the work."""
        return copying(self.broker.books, self._clock())

    def copied(self, look: Copying) -> None:
        """It is done."""
        self.broker.submit(Waiting(NOBODY, 0, look.request()))

    # --- compaction ---------------------------------------------------------------------------

    def compacted(self, result: bool | OSError) -> None:
        """How a slice of ``compactor.work`` ended."""
        if (error := self.compactor.worked(result)) is not None:
            self._fail(f"a compacted segment cannot be synced: {error}", None)

    # --- checkpoints --------------------------------------------------------------------------

    @property
    def checkpoint_due(self) -> bool:
        if self._flying or self._opening is not None or self.broker.books.failed is not None:
            return False
        if self.journal.tail() == self._marks[-1] or self._clock() < self._checkpoint_again_at:
            return False
        journal = self.journal
        # About half of the files lie before the last checkpoint: the next one lets them go.
        return (
            (
                journal.files_above(self._marks[0]) >= FILES_IN_USE_MAX
                and journal.files_above(self._marks[-1]) >= FILES_IN_USE_MAX // 2
            )
            or self.broker.books.handles.dirty >= self._dirty_max
            or (self.broker.books.full == NO_FILE and journal.room < journal.file_bytes // 2)
        )

    def begin_checkpoint(self) -> Callable[[], bool] | None:
        """The state as it stands, in a job that makes it durable; it may run beside later flights.

        To be called between flights. The job returns whether there was space, and raises OSError.
        None: the journal could not be synced, and writing is over.
        """
        # What is under way is in the state already, and not yet in the segments.
        assert not self._flying, "a checkpoint is made between flights"
        journal, books = self.journal, self.broker.books
        number, crc = journal.last
        if journal.wait(number) is not Outcome.SYNCED:
            self._fail(f"frame {number} is not durable", None)
            return None
        self.broker.synced()
        try:
            tails = self._tails()
        except OSError as error:
            self._fail(f"a segment cannot be read for a checkpoint: {error}", None)
            return None
        point = Checkpoint(
            journal.id, journal.file_bytes, number, crc, self._wall(), books.state, tails
        )
        raw = checkpoints.encode(point)
        files: list[File] = []
        directories = ["logs"]
        for log_id, log_files in books.files.items():
            dirty, renamed = log_files.take_dirty()
            files += dirty
            if renamed:
                directories.append(f"logs/{log_id}")
        self._pending = number
        if books.full is not None:
            self._reserved = False  # it may be what this one is made of

        def job() -> bool:
            for file in files:
                file.sync()
            for directory in directories:
                # A log that was deleted since has no directory, and its name is not to last.
                with contextlib.suppress(FileNotFoundError):
                    self._files.sync_directory(directory)
            if not checkpoints.write(self._files, number, raw):
                return False
            self.keep_reserve()
            return True

        return job

    def _tails(self) -> list[Tail]:
        """The unfinished last page of every segment that is being written."""
        tails = []
        for log in self.broker.books.state.logs.values():
            # (One that was rewritten is not being written.)
            if log.segments and not log.segments[-1].generation:
                base, size = log.segments[-1].base, log.segments[-1].bytes
                begin = checkpoints.tail_begin(size)
                if begin < size:
                    data = self.broker.books.files[log.id].tail(base, begin, size - begin)
                    tails.append(Tail(log.id, base, begin, data))
        return tails

    def finish_checkpoint(self, result: bool | OSError) -> None:
        """The job ended. What lies below the older of the two checkpoints may be recycled."""
        if isinstance(result, OSError):
            self._fail(f"a checkpoint cannot be made: {result}", None)
        elif result:
            self._marks = [self._marks[-1], self._pending]
            self.journal.trim(self._marks[0])
            self._again_at = 0.0  # a file that was let go needs no space
        else:
            logger.warning("no space for a checkpoint: the journal grows until there is")
            self._checkpoint_again_at = self._clock() + AGAIN_SECONDS

    def checkpoint(self) -> None:
        """A checkpoint here and now, unless nothing happened since the last one."""
        if self.broker.books.failed is not None or self.journal.tail() == self._marks[-1]:
            return
        job = self.begin_checkpoint()
        if job is not None:
            self.finish_checkpoint(attempt(job))


def open_driver(
    files: Files,
    limits: Limits,
    *,
    clock: Callable[[], float],
    wall: Callable[[], int],
    boot: Boot | None = None,
) -> Driver:
    """Recover a data directory and stand a broker and its driver on it.

    ``boot``: of the machine; None: nothing is known of it, and ``clock`` stands in. Raises Refused,
    or OSError.
    """
    recovered = recover(
        files,
        file_bytes=limits.journal_file_bytes,
        journal_id=secrets.randbits(64),
        now_ns=wall(),
    )
    books = Books(recovered.state, recovered.handles, recovered.logs, limits.policy)
    batch_bytes = min(limits.batch_bytes_max, batch_bytes_max(recovered.journal.file_bytes))
    broker = Broker(
        books,
        frame_bytes_max=recovered.journal.file_bytes,
        batch_bytes_max=batch_bytes,
        record_bytes_max=min(limits.record_bytes_max, batch_bytes - HEADER_BYTES - RECORD_OVERHEAD),
    )
    recovered.handles.open_max = limits.files_max // 8
    return Driver(
        files,
        broker,
        recovered.journal,
        recovered.marks,
        dirty_max=limits.files_max // 8,
        clock=clock,
        wall=wall,
        boot=boot or Boot("", lambda: round(clock() * 1e9)),
    )

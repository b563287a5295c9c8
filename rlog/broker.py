"""The broker: requests -> facts -> effects. It decides, and never calls the journal: a driver does.

One frame is under way at a time. What arrives meanwhile waits, undecided, and is then decided in
order into the next frame. So a claim, a fence or an expectation is judged at one moment, and what
a frame holds is true together::

    submit ... -> decide -> frame -> (the driver: append, sync) -> settle: answers, layout, visible
    end

Nothing that cannot be undone (an unlink, a grant, an answer) happens before its frame is as durable
as the policy of its log says.
"""

from __future__ import annotations

import logging
from collections import deque
from typing import TYPE_CHECKING, Final, NamedTuple

from rlog_client import protocol
from rlog_client.batch import HEADER_BYTES
from rlog_client.errors import (
    NotFound,
    OffsetOutOfRange,
    OutcomeUnknown,
    RlogError,
    StorageFailed,
)

from . import facts
from .decisions import (
    DECISIONS,
    Answer,
    Books,
    Desk,
    Layout,
    Look,
    Make,
    Seen,
    Visible,
    Waiting,
    watch_clock,
)
from .frame import Frame

if TYPE_CHECKING:
    from collections.abc import Callable

logger = logging.getLogger("rlog.broker")

FRAME_BYTES_GOAL: Final = 1 << 20  # a frame closes at so much, or with one larger batch


class Reply(NamedTuple):
    """An answer that waits for its frame."""

    waiting: Waiting
    make: Make


class SyncWait(NamedTuple):
    """Somebody who waits until all of ``log`` below ``offset`` is synced, and the answer then."""

    waiting: Waiting
    log: int
    offset: int
    answer: Answer | Look


class Decided(NamedTuple):
    """One frame's worth of decisions.

    ``frame`` None: nothing is to be stored. ``sync``: at once.
    """

    frame: Frame | None
    sync: bool
    delay_seconds: float | None  # how long it may stay unsynced, if it is not synced at once
    replies: list[Reply]
    layouts: list[Layout]
    effects: list[Callable[[], None]]


class Broker:
    """All that the server decides. Synchronous, and called from one thread."""

    def __init__(
        self, books: Books, *, frame_bytes_max: int, batch_bytes_max: int, record_bytes_max: int
    ) -> None:
        self.books = books
        books.batch_bytes_max = batch_bytes_max
        self.frame_bytes_max = frame_bytes_max
        self.batch_bytes_max = batch_bytes_max
        self.record_bytes_max = record_bytes_max
        self.sync_due: float | None = None  # monotonic: a sync is due then, frame or no frame
        self._queue: deque[Waiting] = deque()
        self._unsynced: dict[int, Visible] = {}  # logs laid out further than they are synced
        self._unsynced_bytes: dict[int, int] = {}
        self._sync_waits: list[SyncWait] = []

    def submit(self, waiting: Waiting) -> None:
        """Put a request into the queue; its answer comes through its peer."""
        control = waiting.control
        if isinstance(control, protocol.WaitSynced):
            done = Answer(protocol.Done())
            self._sync_waits.append(SyncWait(waiting, control.log, control.offset, done))
        else:
            self._queue.append(waiting)

    def open(
        self, now_ns: int, now: float, boot: str = "", uptime_ns: int | None = None
    ) -> Decided:
        """The first frame of a process's life: it took the directory.

        ``boot``: the id of the machine's boot, "" if it is not known, and the time since then.
        """
        books, state = self.books, self.books.state
        books.watch.boot = boot
        books.watch.stored_ns = max((log.time_max_ns for log in state.logs.values()), default=0)
        difference_ns: int | None = state.difference_ns
        if not boot or boot != state.boot:
            # What the clock should say is not known, but that time does not go back.
            difference_ns = now_ns - (round(now * 1e9) if uptime_ns is None else uptime_ns)
            if now_ns < books.watch.stored_ns:
                difference_ns = None
        books.begin_life(now_ns, now)
        opened = facts.Opened(boot, difference_ns)
        state.apply(opened, now_ns)
        return Decided(Frame(now_ns, facts.encode([opened]), []), True, None, [], [], [])

    @property
    def waiting(self) -> int:
        """How many requests wait to be decided."""
        return len(self._queue)

    @property
    def sync_wanted(self) -> bool:
        """Somebody waits for a sync, whatever the policy."""
        return bool(self._sync_waits)

    # --- deciding -----------------------------------------------------------------------------

    def ring(self, now: float) -> None:
        """Take up what is due by the clock."""
        self._queue.extend(self.books.ring(now))
        self._take_called()

    def _take_called(self) -> None:
        """Whoever waited for a claim that has ended goes before those who ask for it only now."""
        called = self.books.called
        while called:
            self._queue.appendleft(called.pop())

    def decide(
        self,
        now_ns: int,
        bytes_goal: int = FRAME_BYTES_GOAL,
        *,
        now: float,
        uptime_ns: int | None = None,
    ) -> Decided | None:
        """Decide what waits, up to one frame; None if nothing does.

        What is refused is answered here: no frame has to carry it.
        """
        if not self._queue:
            return None
        desk = Desk(self.books, now_ns, now, uptime_ns)
        if self.books.watch.dated:
            watch_clock(desk)
        replies = []
        while self._queue and desk.takes(self._queue[0], bytes_goal):
            waiting = self._queue.popleft()
            try:
                make = DECISIONS[type(waiting.control)](desk, waiting, waiting.control)
            except RlogError as error:
                waiting.peer.answer(waiting.request, protocol.error_control(error))
            else:
                if make is not None:
                    replies.append(Reply(waiting, make))
        frame = None
        if desk.facts:
            bodies = [layout.body for layout in desk.layouts]
            encoded = facts.encode(desk.facts)
            assert len(encoded) <= desk.facts_bytes, "the frame's size is promised"
            frame = Frame(now_ns, encoded, bodies)
        return Decided(frame, desk.sync, desk.delay_seconds, replies, desk.layouts, desk.effects)

    # --- effects ------------------------------------------------------------------------------

    def answer(self, decided: Decided, *, synced: bool) -> None:
        """The frame is in the journal, ``synced`` or not: say so to those who asked."""
        for waiting, make in decided.replies:
            answer = make(synced)
            if isinstance(answer, Seen):
                self._sync_waits.append(SyncWait(waiting, *answer))
            else:
                self._give(waiting, answer)

    @staticmethod
    def _give(waiting: Waiting, answer: Answer | Look) -> None:
        if isinstance(answer, Answer):
            waiting.peer.answer(waiting.request, answer.control, answer.payload)
        else:
            waiting.peer.answer_later(waiting.request, answer)

    def lay_out(self, decided: Decided, *, synced: bool, now: float) -> None:
        """Write the batches to their segments, do what could not be undone, raise the visible end.

        Raises OSError if a write fails: writing is over then, but no answer is taken back.
        """
        self._write(decided.layouts)
        for effect in decided.effects:
            effect()
        self._take_called()
        if decided.frame is not None and synced:
            self.synced()
        else:
            self._raise_unsynced(decided, now)

    def _write(self, layouts: list[Layout]) -> None:
        at = 0
        while at < len(layouts):
            # Neighbours in one segment are one write.
            place = layouts[at].place
            pieces: list[bytes | bytearray | memoryview] = []
            size = 0
            while at < len(layouts) and layouts[at].place[:2] == place[:2]:
                layout = layouts[at]
                pieces += (layout.header, layout.body)
                size += HEADER_BYTES + len(layout.body)
                at += 1
            self.books.files[place.log].write(place, pieces, size)
            behind = Visible(layouts[at - 1].end, place.segment, place.position + size)
            self._unsynced[place.log] = behind
            self._unsynced_bytes[place.log] = self._unsynced_bytes.get(place.log, 0) + size

    def _raise_unsynced(self, decided: Decided, now: float) -> None:
        """Nothing was synced: some see their records all the same, others wait for a sync that is
        now due.
        """
        for log_id in {layout.place.log for layout in decided.layouts}:
            # It is there: a frame that deletes one is synced.
            policy = self.books.policy_of(self.books.state.logs[log_id])
            if policy.visible_unsynced:
                self.books.visible[log_id] = self._unsynced[log_id]
                self.books.raised.add(log_id)
            elif policy.bytes_max is not None and self._unsynced_bytes[log_id] >= policy.bytes_max:
                self.sync_due = now
        if decided.delay_seconds is not None:
            self._due(now + decided.delay_seconds)

    def _due(self, when: float) -> None:
        self.sync_due = when if self.sync_due is None else min(self.sync_due, when)

    def synced(self) -> None:
        """Everything that was laid out is durable now."""
        for log_id, behind in self._unsynced.items():
            if log_id in self.books.visible:
                self.books.visible[log_id] = behind
                self.books.synced_end[log_id] = behind.end
                self.books.raised.add(log_id)
        self._unsynced.clear()
        self._unsynced_bytes.clear()
        self.sync_due = None

    def answer_sync_waits(self, now: float) -> None:
        """Answer who waits for a sync and has it; the others make one due."""
        waits, self._sync_waits = self._sync_waits, []
        for wait in waits:
            waiting, wanted = wait.waiting, wait.offset
            log = self.books.state.logs.get(wait.log)
            error: RlogError | None = None
            if log is None:
                error = NotFound(f"there is no log with id {wait.log}: it was deleted")
            elif wanted > log.end:
                error = OffsetOutOfRange(
                    f"log {log.name!r} ends at {log.end}, before {wanted}",
                    first=log.first,
                    end=log.end,
                )
            elif self.books.synced_end[log.id] >= wanted:
                self._give(waiting, wait.answer)
                continue
            elif self.books.failed is not None:
                error = StorageFailed(self.books.failed)
            if error is not None:
                waiting.peer.answer(waiting.request, protocol.error_control(error))
                continue
            self._sync_waits.append(wait)
            self._due(now)

    # --- failure ------------------------------------------------------------------------------

    def fail(self, reason: str, decided: Decided | None) -> None:
        """Writing is over for the life of this process. ``decided``: what was under way."""
        if self.books.failed is None:
            self.books.failed = reason
            logger.critical("writing has ended: %s", reason)
        self.sync_due = None
        for log in {*self.books.watch.blocked, *self.books.watch.trims}:
            self.books.call_blocked(log)
            self.books.call_trims(log)
        self._take_called()
        for waiting, _make in decided.replies if decided is not None else ():
            waiting.peer.answer(
                waiting.request, protocol.error_control(self._unknown(waiting, reason))
            )

    @staticmethod
    def _unknown(waiting: Waiting, reason: str) -> RlogError:
        if isinstance(waiting.control, protocol.Append):
            [(header, _produced, _body)] = waiting.batches
            return OutcomeUnknown(
                f"the append may be in the log or not: {reason}",
                producer=header.producer,
                sequence=header.sequence,
            )
        producer = sequence = 0
        if isinstance(waiting.control, protocol.Transact):
            producer, sequence = waiting.control.client, waiting.control.number
        text = f"it may have been done or not: {reason}"
        return OutcomeUnknown(text, producer=producer, sequence=sequence)

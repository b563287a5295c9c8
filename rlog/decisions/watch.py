"""What retention keeps in memory beside the state: when to look at which log, and who waits for it.

Nothing here lasts: the next process finds all of it by looking at every log once.
"""

from __future__ import annotations

import logging
import math
from typing import TYPE_CHECKING, Final, NamedTuple

from rlog_client import protocol

if TYPE_CHECKING:
    from .. import state
    from ..retention import Held, Uncopied
    from .desk import Waiting

logger = logging.getLogger("rlog.retention")

TICK_SECONDS: Final = 1.0  # between two looks at a log that is held back,
IDLE_SECONDS: Final = 60.0  # and at any other, for the wall clock may be moved
LOOKS_MAX: Final = 256  # logs in one Retain
RECENT_SECONDS: Final = 10.0  # for so long it counts as held back that an append was
# An append that waits for space is refused before its client, by its default timeout, gives up.
WAIT_SECONDS: Final = 5.0
GLANCE_SECONDS: Final = 0.05
FOREVER: Final = math.inf


class Retain(protocol.Control):
    """These logs are to be looked at. Never on the wire."""

    logs: list[int]


class Copied(protocol.Control):
    """What a look at the disk found of parked records. Never on the wire.

    ``copies``: consumer, offset, a batch of that record. ``lost``: offsets that cannot be read any
    more. ``failed``: consumer -> why its records cannot be read now.
    """

    log: int
    consumers: list[str]
    copies: list[tuple[str, int, bytes]]
    lost: list[int]
    failed: dict[str, str]


class Noted(NamedTuple):
    """Why a log was found held back; ``until``: then it counts no more (monotonic seconds)."""

    held: Held
    until: float


class Watch:
    """See the module. Times are monotonic seconds, but for ``stored_ns``."""

    def __init__(self) -> None:
        self.due: dict[int, float] = {}  # logs with retention -> when to look at them next
        self.dated: set[int] = set()  # those of them to which time matters
        self.room: dict[int, int] = {}  # bytes that may be appended before a look is due
        self.held: dict[int, Noted] = {}
        self.blocked: dict[int, list[Waiting]] = {}  # appends that wait for space, in their order
        self.trims: dict[int, list[Waiting]] = {}  # trims by hand that wait for copies
        # Parked records that are to be copied, and of which logs some are being copied now.
        self.uncopied: dict[int, tuple[Uncopied, ...]] = {}
        self.copying: set[int] = set()
        self.copy_at: dict[int, float] = {}  # not before then is it tried again
        self.stuck: dict[tuple[int, str], str] = {}  # consumers whose records cannot be copied
        self.lost: set[tuple[int, int]] = set()  # parked records that cannot be read any more
        self.clock_due = 0.0  # when to look at the clock next, if any of ``dated`` is there
        self.boot = ""
        self.stored_ns = 0  # the latest time that was stored when this process began
        self.doubt: str | None = None  # why the wall clock is not believed

    # --- which logs, and when -----------------------------------------------------------------

    def follow(self, log: state.Log, now: float) -> None:
        """A log is there, or has other options."""
        options = log.options
        self.room.pop(log.id, None)
        self.dated.discard(log.id)
        if options.max_file_age is not None or options.blocking_minimum_retention is not None:
            self.dated.add(log.id)
        if options.retains:
            self.due[log.id] = now
            if (noted := self.held.get(log.id)) is not None:
                self.held[log.id] = noted._replace(until=now)
        else:
            self.due.pop(log.id, None)
            self.free(log)

    def forget(self, log: int) -> None:
        """A log is gone."""
        self.due.pop(log, None)
        self.room.pop(log, None)
        self.held.pop(log, None)
        self.uncopied.pop(log, None)
        self.copy_at.pop(log, None)
        self.dated.discard(log)
        for key in [key for key in self.stuck if key[0] == log]:
            del self.stuck[key]
        self.lost = {each for each in self.lost if each[0] != log}

    def look_again(self, log: int, now: float, seconds: float) -> None:
        """Look at a log after so many seconds, or up to a tick later: all in one go."""
        if log in self.due:
            self.due[log] = _tick_after(now + min(seconds, IDLE_SECONDS))

    def look_soon(self, log: int, now: float, seconds: float) -> None:
        """Somebody waits for it."""
        if log in self.due:
            self.due[log] = min(self.due[log], now + max(seconds, GLANCE_SECONDS))

    @property
    def alarm(self) -> float:
        clock_due = self.clock_due if self.dated else FOREVER
        return min((clock_due, *self.due.values()))

    def ring(self, now: float) -> list[Retain]:
        """What is to be looked at; no log at all: the clock alone."""
        due = [log for log, when in self.due.items() if when <= now]
        for log in due:
            self.look_again(log, now, 0.0)
        looks = [Retain(due[at : at + LOOKS_MAX]) for at in range(0, len(due), LOOKS_MAX)]
        if self.dated and self.clock_due <= now:
            self.clock_due = _tick_after(now)
            looks = looks or [Retain([])]
        return looks

    def judge(self, doubt: str | None, now: float) -> None:
        """The wall clock is believed, or why it is not; where time matters, that changes all."""
        changed = (doubt is None) != (self.doubt is None)
        self.doubt = doubt
        if changed:
            logger.warning("%s", "the clock is believed again" if doubt is None else doubt)
            self.due.update((log, now) for log in self.dated if log in self.due)

    # --- why a log is held back ---------------------------------------------------------------

    def hold(self, log: state.Log, held: Held, now: float, *, by_append: bool) -> None:
        before = self.held.get(log.id)
        # An append comes and goes: whoever tries again every second is no news.
        self.held[log.id] = Noted(held, now + RECENT_SECONDS if by_append else now)
        if before is None or before.held.why is not held.why:
            logger.warning("log %r is not trimmed as it should be: %s", log.name, held.text)

    def free(self, log: state.Log, now: float = FOREVER) -> None:
        """Nothing holds it back (any more)."""
        before = self.held.get(log.id)
        if before is not None and before.until <= now:
            del self.held[log.id]
            logger.warning("log %r is trimmed as it should be again", log.name)

    def stuck_at(self, log: int, consumer: str) -> str | None:
        return self.stuck.get((log, consumer))


def _tick_after(moment: float) -> float:
    return (math.floor(moment / TICK_SECONDS) + 1) * TICK_SECONDS

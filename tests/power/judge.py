"""The judge of one disk: what its guests told, into the history; what they recovered, against it.

The history checker is the storage harness's. Here a payload is known by its digest, and whatever
happens between two recoveries is one life of a server, ended by a kill or by a power cut.
"""

from __future__ import annotations

from collections import Counter
from functools import singledispatchmethod
from typing import TYPE_CHECKING

from tests.storage.history import Group, History, LogView, Place, View, settle

from .load import LOGS
from .telling import (
    Acknowledged,
    Broke,
    Claimed,
    Committed,
    Committing,
    Created,
    Creating,
    Deleted,
    Deleting,
    Event,
    Killed,
    Recovered,
    Refused,
    Sending,
    Served,
    Shown,
    Transacting,
    Trap,
    Trimmed,
    Trimming,
    Wrong,
    digest,
    payload,
)

if TYPE_CHECKING:
    from collections.abc import Iterable

UNBOUNDED = 1 << 60


def identity(sender: str, number: int, size: int) -> bytes:
    return digest(payload(sender, number, size)).encode()


class Judge:
    """``hear`` what is told. ``wrong``: the promises that were broken, as sentences."""

    def __init__(self) -> None:
        self.history = History()
        self.wrong: list[str] = []
        self.recoveries = 0
        self.counts: Counter[str] = Counter()
        self.traps: list[Trap] = []
        self._recovering = True
        self._served: dict[str, dict[int, bytes]] = {}  # by the recovery under way
        self._shown: dict[str, Shown] = {}

    def power_cut(self) -> None:
        """What was told is all there is; the next recovery follows a power cut."""
        # What a recovery that was cut itself had served by then is kept as well.
        for log, served in self._served.items():
            self._keep(self.history.seen, log, served.items())
        self.history = self.history.after_power_cut()
        self._begin_recovery()
        self.counts["power cuts"] += 1

    def _begin_recovery(self) -> None:
        self._recovering = True
        self._served, self._shown = {}, {}

    def _keep(
        self, book: dict[Place, bytes], log: str, values: Iterable[tuple[int, bytes]]
    ) -> None:
        """The same offset, the same bytes: whoever gave them away, and when."""
        for offset, value in values:
            place = Place(log, offset)
            for known in (self.history.synced, self.history.written, self.history.seen):
                if known.get(place, value) != value:
                    self.wrong.append(f"{log}/{offset} was {known[place]!r}, and is {value!r}")
            book[place] = value

    # --- what is told -------------------------------------------------------------------------

    @singledispatchmethod
    def hear(self, event: Event) -> None:
        """Of anything else there is nothing to remember."""

    @hear.register
    def _(self, event: Wrong) -> None:
        self.wrong.append(event.sentence)

    @hear.register
    def _(self, event: Broke) -> None:
        raise AssertionError(f"the guest's program broke: {event.traceback}")

    @hear.register
    def _(self, event: Trap) -> None:
        self.traps.append(event)

    @hear.register
    def _(self, event: Killed) -> None:
        self._begin_recovery()
        self.counts["kills"] += 1

    @hear.register
    def _(self, event: Served) -> None:
        values = [(at, text.encode()) for at, text in enumerate(event.digests, event.first)]
        if self._recovering:
            self._served.setdefault(event.log, {}).update(values)
            return
        self.counts["records read"] += len(values)
        unsynced = LOGS.get(event.log, {}).get("sync") == "never"
        self._keep(self.history.written if unsynced else self.history.seen, event.log, values)

    @hear.register
    def _(self, event: Shown) -> None:
        self._shown[event.log] = event

    @hear.register
    def _(self, event: Recovered) -> None:
        view = View({log: self._view(shown) for log, shown in self._shown.items()})
        self.wrong += self.history.check(view, power_cut=False)  # what a cut takes was forgotten
        self.history = settle(self.history, view)
        self.recoveries += 1
        self._recovering = False

    def _view(self, shown: Shown) -> LogView:
        served = self._served.get(shown.log, {})
        records = [served.get(offset) for offset in range(shown.first, shown.end)]
        if len(served) != len(records):
            self.wrong.append(f"{shown}: {len(served)} records were served")
        # Epochs can only be seen by whoever claims: see Claimed.
        cursors = {
            consumer: (committed, self.history.epochs.get((shown.log, consumer), 0))
            for consumer, committed in shown.cursors.items()
        }
        return LogView(shown.first, shown.end, records, cursors)

    @hear.register
    def _(self, event: Creating) -> None:
        self.history.asked.add(event.log)
        if LOGS.get(event.log, {}).get("max_total_bytes") is not None:
            self.history.trim_asked[event.log] = UNBOUNDED  # whatever is due goes

    @hear.register
    def _(self, event: Created) -> None:
        self.history.created.add(event.log)

    @hear.register
    def _(self, event: Deleting) -> None:
        self.history.deletion_asked.add(event.log)

    @hear.register
    def _(self, event: Deleted) -> None:
        self.history.deleted.add(event.log)
        self.counts["logs deleted"] += 1

    @hear.register
    def _(self, event: Sending) -> None:
        values = [identity(event.sender, n, s) for n, s in enumerate(event.sizes, event.first)]
        self._sent(event.log, event.sender, values)
        if event.together:
            self.history.groups.append(Group(tuple((event.log, value) for value in values)))

    def _sent(self, log: str, sender: str, values: Iterable[bytes]) -> None:
        for value in values:
            self.history.sent[value] = log
            self.history.senders[value] = sender

    @hear.register
    def _(self, event: Acknowledged) -> None:
        values = [identity(event.sender, n, s) for n, s in enumerate(event.sizes, event.first)]
        placed = list(enumerate(values, event.offset))
        self._keep(self.history.written, event.log, placed)
        if event.synced:
            self._keep(self.history.synced, event.log, placed)
        self.counts[f"records {'synced' if event.synced else 'written'}"] += len(values)

    @hear.register
    def _(self, event: Refused) -> None:
        self.history.refused.add(identity(event.sender, event.number, event.size))

    @hear.register
    def _(self, event: Transacting) -> None:
        values = []
        for each in event.appends:
            values.append((each.log, identity(each.sender, each.number, each.size)))
            self._sent(each.log, each.sender, [values[-1][1]])
        for at in event.commits:
            self._asked(at.log, at.consumer, at.offset)
        commits = tuple((at.log, at.consumer, at.offset) for at in event.commits)
        self.history.groups.append(Group(tuple(values), commits, whole=True))
        self.counts["transactions"] += 1

    def _asked(self, log: str, consumer: str, offset: int) -> None:
        asked = self.history.commits_asked
        asked[log, consumer] = max(asked.get((log, consumer), 0), offset)

    @hear.register
    def _(self, event: Claimed) -> None:
        name = (event.log, event.consumer)
        if event.epoch <= self.history.epochs.get(name, 0):
            self.wrong.append(f"{name}: epoch {event.epoch} again")
        if event.committed < self.history.commits_synced.get(name, 0):
            self.wrong.append(f"{name}: claimed at {event.committed}, before its commit")
        self.history.epochs[name] = event.epoch

    @hear.register
    def _(self, event: Committing) -> None:
        self._asked(*event.at)

    @hear.register
    def _(self, event: Committed) -> None:
        log, consumer, offset = event.at
        books = [self.history.commits_written]
        books += [self.history.commits_synced] if event.synced else []
        for book in books:
            book[log, consumer] = max(book.get((log, consumer), 0), offset)
        self.counts["commits"] += 1

    @hear.register
    def _(self, event: Trimming) -> None:
        asked = self.history.trim_asked
        asked[event.log] = max(asked.get(event.log, 0), event.before)

    @hear.register
    def _(self, event: Trimmed) -> None:
        self.history.trim_done[event.log] = event.first
        self.counts["trims"] += 1

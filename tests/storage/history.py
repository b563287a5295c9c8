"""The history checker: what was asked, answered and seen, against what a recovery serves.

Every payload is unique and begins with its number, in the order in which its sender sent it. A
violation is a sentence; no sentences, no violation.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final, NamedTuple

ABSENT: Final = b""  # in place of a record that compaction took away


@dataclass
class LogView:
    """One log as it is served: ``records`` are those of the offsets ``first`` to ``end``, in order.

    A record that is named as damaged, or cannot be read, is None; one that is absent, ABSENT.
    """

    first: int
    end: int
    records: list[bytes | None]
    cursors: dict[str, tuple[int, int]]  # consumer -> (committed, epoch)
    # Parked records by consumer and offset, from their place or their copy; None: from neither.
    parked: dict[tuple[str, int], bytes | None] = field(default_factory=dict)
    protected: tuple[str, ...] = ()

    def at(self, offset: int) -> bytes | None:
        return self.records[offset - self.first]


@dataclass
class View:
    """All that a server serves."""

    logs: dict[str, LogView]
    reports: list[str] = field(default_factory=list)


class Place(NamedTuple):
    log: str
    offset: int


class ParkedPlace(NamedTuple):
    log: str
    consumer: str
    offset: int


class Group(NamedTuple):
    """What was decided together: all of it is there, or nothing. ``whole``: commits, too, were
    refused only together with the rest.
    """

    payloads: tuple[tuple[str, bytes], ...]
    commits: tuple[tuple[str, str, int], ...] = ()
    whole: bool = False


class History:
    """What a client may hold the server to."""

    def __init__(self) -> None:
        self.sent: dict[bytes, str] = {}  # payload -> log
        self.senders: dict[bytes, str] = {}  # payload -> who sent it, where several send
        self.keys: dict[bytes, bytes] = {}  # payload -> key, of those that have one
        self.refused: set[bytes] = set()  # answered so that they are in no log, for sure
        self.synced: dict[Place, bytes] = {}  # acknowledged as synced
        self.written: dict[Place, bytes] = {}  # acknowledged as written
        self.seen: dict[Place, bytes] = {}  # served to a consumer, where what is served stays
        self.groups: list[Group] = []
        self.commits_synced: dict[tuple[str, str], int] = {}
        self.commits_written: dict[tuple[str, str], int] = {}
        self.commits_asked: dict[tuple[str, str], int] = {}
        self.epochs: dict[tuple[str, str], int] = {}
        self.trim_asked: dict[str, int] = {}  # the highest first offset that a trim may give
        self.trim_done: dict[str, int] = {}
        self.parked: dict[ParkedPlace, bytes] = {}  # acknowledged as synced, and not settled since
        self.settle_asked: set[ParkedPlace] = set()
        self.created: set[str] = set()
        self.asked: set[str] = set()
        self.deletion_asked: set[str] = set()
        self.deleted: set[str] = set()

    def copy(self) -> History:
        new = History.__new__(History)
        for name, value in vars(self).items():
            setattr(new, name, value.copy())
        return new

    def after_power_cut(self) -> History:
        """What is left to hold the server to when the power was cut."""
        new = self.copy()
        new.written, new.commits_written = {}, {}
        return new

    def check(self, view: View, *, power_cut: bool) -> list[str]:
        """What is wrong with what a recovery serves after a kill, or a power cut."""
        wrong: list[str] = []
        self._check_logs(view, wrong)
        for name, log in view.logs.items():
            if name in self.asked:
                self._check_log(name, log, wrong)
        kept = {**self.synced, **self.seen}
        commits = dict(self.commits_synced)
        if not power_cut:
            kept.update(self.written)
            commits.update(self.commits_written)
        for place, payload in kept.items():
            self._check_kept(view, place, payload, wrong)
        for (name, consumer), committed in commits.items():
            log_view = view.logs.get(name)
            if log_view is None:
                continue  # _check_logs judges that
            found = log_view.cursors.get(consumer)
            if found is None or found[0] < committed:
                wrong.append(f"{name}/{consumer}: the commit of {committed} moved back to {found}")
        for (name, consumer), epoch in self.epochs.items():
            if name in view.logs:
                found = view.logs[name].cursors.get(consumer)
                if found is None or found[1] < epoch:
                    wrong.append(f"{name}/{consumer}: epoch {epoch} was lost: {found}")
        for place_parked, payload in self.parked.items():
            self._check_parked(view, place_parked, payload, wrong)
        self._check_groups(view, wrong)
        return wrong

    def _check_parked(
        self, view: View, place: ParkedPlace, payload: bytes, wrong: list[str]
    ) -> None:
        log = view.logs.get(place.log)
        if log is None or place in self.settle_asked:
            return
        key = (place.consumer, place.offset)
        if key not in log.parked:
            wrong.append(f"{place}: it is not parked any more")
        elif log.parked[key] != payload:
            wrong.append(f"{place}: neither in its place nor copied: {log.parked[key]!r:.20}")

    def _check_logs(self, view: View, wrong: list[str]) -> None:
        wrong.extend(
            f"log {name} is lost" for name in self.created - self.deletion_asked - set(view.logs)
        )
        wrong.extend(f"log {name} came back" for name in self.deleted & set(view.logs))
        wrong.extend(f"log {name} was never asked for" for name in set(view.logs) - self.asked)

    def _check_log(self, name: str, log: LogView, wrong: list[str]) -> None:
        if len(log.records) != log.end - log.first:
            wrong.append(f"{name}: {len(log.records)} records in {log.first} to {log.end}")
        if log.first > self.trim_asked.get(name, 0):
            wrong.append(f"{name}: trimmed to {log.first}, unasked")
        for consumer in log.protected:
            if log.first > log.cursors.get(consumer, (0, 0))[0]:
                wrong.append(f"{name}: trimmed to {log.first}, past protected {consumer}")
        if log.first < self.trim_done.get(name, 0):
            wrong.append(f"{name}: the trim to {self.trim_done[name]} was undone: {log.first}")
        last: dict[str, bytes] = {}
        for offset, payload in enumerate(log.records, log.first):
            if payload == ABSENT:
                continue  # _check_kept judges that
            if payload is None:
                wrong.append(f"{name}/{offset} cannot be read")
                continue
            sender = self.senders.get(payload, "")
            before = last.get(sender, b"")
            if self.sent.get(payload) != name:
                wrong.append(f"{name}/{offset} was never sent: {payload[:20]!r}")
            elif payload in self.refused:
                wrong.append(f"{name}/{offset} was refused: {payload[:20]!r}")
            elif payload[:8] <= before:
                wrong.append(f"{name}/{offset}: {payload[:8]!r} behind {before!r}")
            last[sender] = payload[:8]
        for consumer, (committed, _epoch) in log.cursors.items():
            if committed > log.end:
                wrong.append(f"{name}/{consumer}: cursor at {committed} outlived the records")
            if committed > self.commits_asked.get((name, consumer), 0):
                wrong.append(f"{name}/{consumer}: cursor at {committed}, which nobody committed")

    def _check_kept(self, view: View, place: Place, payload: bytes, wrong: list[str]) -> None:
        log = view.logs.get(place.log)
        if log is None or place.offset < log.first:
            return  # _check_logs and _check_log judge that
        if place.offset >= log.end:
            wrong.append(f"{place.log}/{place.offset} is lost")
        elif (found := log.at(place.offset)) == ABSENT:
            if not self._superseded(log, place.offset, payload):
                wrong.append(f"{place.log}/{place.offset} is absent, and nothing superseded it")
        elif found != payload and found is not None:
            wrong.append(f"{place.log}/{place.offset} changed: {found[:20]!r}")

    def _superseded(self, log: LogView, offset: int, payload: bytes) -> bool:
        """A later record of its key is there."""
        key = self.keys.get(payload)
        later = log.records[offset + 1 - log.first :]
        return key is not None and any(p and self.keys.get(p) == key for p in later)

    def _check_groups(self, view: View, wrong: list[str]) -> None:
        there = {
            payload for log in view.logs.values() for payload in log.records if payload is not None
        }
        # What is absent is there, for this: a later record of its key took its place.
        latest: dict[tuple[str, bytes], bytes] = {}
        for payload in sorted(there & self.keys.keys()):
            latest[self.sent[payload], self.keys[payload]] = payload
        for payload, key in self.keys.items():
            if payload < latest.get((self.sent[payload], key), b""):
                there.add(payload)
        for group in self.groups:
            parts = [
                payload in there
                for name, payload in group.payloads
                if name in view.logs and view.logs[name].first == 0 and payload not in self.refused
            ]
            if any(parts) and not all(parts):
                wrong.append(f"a part of {group.payloads[0][1][:8]!r} and its frame is there")
            if group.whole and parts and all(parts):
                for name, consumer, committed in group.commits:
                    cursor = view.logs[name].cursors.get(consumer) if name in view.logs else None
                    if name in view.logs and (cursor is None or cursor[0] < committed):
                        wrong.append(f"records are there, and their commit {committed} is not")
            if parts and not any(parts):
                for name, consumer, committed in group.commits:
                    cursor = view.logs[name].cursors.get(consumer) if name in view.logs else None
                    if cursor is not None and cursor[0] == committed:
                        wrong.append(
                            f"the commit {committed} is there, its frame's records are not"
                        )


def settle(history: History, view: View) -> History:
    """The history of the next life: what a recovery served is from now on kept."""
    new = history.copy()
    new.synced, new.written, new.seen = {}, {}, {}
    new.parked, new.settle_asked = {}, set()
    new.groups = []
    for name, log in view.logs.items():
        for offset, payload in enumerate(log.records, log.first):
            if payload:
                new.synced[Place(name, offset)] = payload
        new.trim_done[name] = log.first
        new.trim_asked[name] = max(new.trim_asked.get(name, 0), log.first)
        for (consumer, offset), parked in log.parked.items():
            if parked is not None:
                new.parked[ParkedPlace(name, consumer, offset)] = parked
        for consumer, (committed, epoch) in log.cursors.items():
            new.commits_synced[name, consumer] = committed
            new.epochs[name, consumer] = epoch
    new.commits_written = {}
    new.created = set(view.logs)
    new.deleted = new.deletion_asked - set(view.logs)
    new.deletion_asked = set(new.deleted)
    return new

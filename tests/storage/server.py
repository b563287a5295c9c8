"""The real recovery, broker, driver and journal over a simulated disk, driven synchronously.

What a connection does is done here by hand: requests go to the broker, flights are waited for in
place, answers go into the history at the moment they are given.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rlog import driver as drivers
from rlog.decisions import Batch, Waiting
from rlog.driver import Driver, Limits, open_driver
from rlog.files import Boot
from rlog.log import Chunk
from rlog.policy import parse_policy
from rlog_client import batch, model, protocol
from rlog_client.errors import OutcomeUnknown, RlogError
from tests.storage.history import ABSENT, Group, History, LogView, ParkedPlace, Place, View

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from rlog import state
    from rlog.decisions import Grant
    from tests.storage.simdisk import SimDisk

FILE_BYTES = 6 * 4096  # of a journal file
ROLL = 4096
CLIENT = 7  # of the transactions
START_NS = 1_700_000_000_000_000_000


class Clock:
    """Time that moves when told to."""

    def __init__(self) -> None:
        self.now = 100.0
        self.ticks = 0

    def monotonic(self) -> float:
        return self.now

    def wall(self) -> int:
        self.ticks += 1
        return START_NS + int(self.now * 1e9) + self.ticks


class Asker:
    """A peer: what is answered goes to whoever asked."""

    def __init__(self, name: str = "test:1") -> None:
        self.name = name
        self.closed = False
        self.grants: dict[tuple[int, str], Grant] = {}
        self.waits: set[tuple[int, str]] = set()
        self.recalls: list[tuple[int, str]] = []
        self.standings: list[tuple[int, str, str | None]] = []
        self.answers: dict[int, protocol.Control] = {}
        self.payloads: dict[int, bytes] = {}
        self.waiting: dict[int, Callable[[protocol.Control], None]] = {}
        self.lost_claims: list[tuple[int, str, int]] = []
        self.tickets: dict[int, int] = {}
        self._next = 0

    def begin(self, then: Callable[[protocol.Control], None]) -> int:
        self._next += 1
        self.waiting[self._next] = then
        return self._next

    def answer(
        self, request: int, control: protocol.Control, payload: bytes | memoryview = b""
    ) -> None:
        if isinstance(control, protocol.Queued):
            self.tickets[request] = control.ticket
            return
        assert request not in self.answers, "answered twice"
        self.answers[request] = control
        self.payloads[request] = bytes(payload)
        self.waiting.pop(request)(control)

    def answer_later(self, request: int, look: Callable[[], Any]) -> None:
        found = look()
        self.answer(request, found.control, found.payload)

    def granted(self, key: tuple[int, str], grant: Grant) -> None:
        self.grants[key] = grant

    def lost(self, log: int, consumer: str, epoch: int) -> None:
        self.lost_claims.append((log, consumer, epoch))

    def recall(self, log: int, consumer: str) -> None:
        self.recalls.append((log, consumer))

    def standing(self, log: int, consumer: str, paused: str | None) -> None:
        self.standings.append((log, consumer, paused))


class Server:
    """One life of a server on one disk. ``history`` is kept up to date as answers are given."""

    def __init__(
        self,
        disk: SimDisk,
        history: History | None = None,
        *,
        file_bytes: int = FILE_BYTES,
        policy: str = "always",
        clock: Clock | None = None,
        boot: str = "",
    ) -> None:
        """``boot``: the machine's, as its id."""
        self.disk = disk
        self.history = history if history is not None else History()
        self.clock = clock or Clock()
        self.peer = Asker()
        self.in_upkeep = False
        limits = Limits(parse_policy(policy), journal_file_bytes=file_bytes)
        self.driver: Driver = open_driver(
            disk,
            limits,
            clock=self.clock.monotonic,
            wall=self.clock.wall,
            boot=Boot(boot, lambda: round(self.clock.monotonic() * 1e9)),
        )
        self.driver.compactor.slice_seconds = 0.0  # step by step, whatever the machine is up to
        self.ids: dict[str, int] = {
            log.name: log.id for log in self.driver.broker.books.state.logs.values()
        }
        self._fly(self.driver.open())
        self.note_seen()

    # --- driving ------------------------------------------------------------------------------

    def _fly(self, flight: drivers.Flight | None) -> None:
        if flight is not None:
            self.driver.finish(flight, self.driver.journal.wait(flight.number))

    def pump(self) -> None:
        """Until nothing is under way."""
        while True:
            while (flight := self.driver.begin()) is not None:
                self._fly(flight)
                self.note_seen()
            self.note_seen()
            if (look := self.driver.copying()) is None:
                break
            look.run()
            self.driver.copied(look)

    def ask(
        self,
        control: protocol.Control,
        then: Callable[[protocol.Control], None] = lambda _control: None,
        batches: Sequence[Batch] = (),
    ) -> int:
        """Submit a request, undecided until ``pump``."""
        request = self.peer.begin(then)
        self.driver.broker.submit(Waiting(self.peer, request, control, batches))
        return request

    def call(self, control: protocol.Control) -> protocol.Control:
        """Submit a request and wait for its answer."""
        request = self.ask(control)
        self.pump()
        return self.peer.answers[request]

    def sleep(self, seconds: float) -> None:
        """Let time pass, and do what is due."""
        end = self.clock.now + seconds
        for _due in range(10):  # a planted bug may leave one due for ever
            if (due := self.driver.deadline()) is None or due > end:
                break
            self.clock.now = max(due, self.clock.now)
            self.pump()
        self.clock.now = end
        self.pump()

    @property
    def failed(self) -> str | None:
        return self.driver.broker.books.failed

    # --- requests, and what they leave in the history ---------------------------------------------

    def create(self, name: str, **options: Any) -> None:
        self.history.asked.add(name)
        if options.keys() & {"max_total_bytes", "max_file_age"}:
            self.history.trim_asked[name] = 1 << 60  # whatever is due goes
        answer = self.call(protocol.OpenLog(name, True, options))
        if isinstance(answer, protocol.LogReply):
            self.ids[name] = answer.info.id
            self.history.created.add(name)

    def append(self, log: str, *payloads: bytes, keys: Sequence[bytes | None] = ()) -> int:
        """Submit one batch; ``pump`` does the rest."""
        if log not in self.ids:
            return 0  # it could not be made
        for payload, key in zip(payloads, keys, strict=False):
            if key is not None:
                self.history.keys[payload] = key
        for payload in payloads:
            assert payload not in self.history.sent, "every payload is unique"
            self.history.sent[payload] = log

        def then(control: protocol.Control) -> None:
            if isinstance(control, protocol.Error) and control.code != OutcomeUnknown.code:
                self.history.refused.update(payloads)
            if not isinstance(control, protocol.Appended):
                return
            book = self.history.synced if control.synced else self.history.written
            for offset, payload in enumerate(payloads, control.first):
                book[Place(log, offset)] = payload
                self.history.written[Place(log, offset)] = payload

        produced = bytes(batch.encode(list(payloads), list(keys) or None))
        return self.ask(
            protocol.Append(self.ids[log]),
            then,
            [judged(produced)],
        )

    def frame(
        self,
        appends: Sequence[tuple[str, bytes]],
        commits: Sequence[tuple[str, str, int]] = (),
    ) -> list[protocol.Control | None]:
        """Appends and commits that are decided together, into one frame."""
        self.history.groups.append(Group(tuple(appends), tuple(commits)))
        requests = [self.append(log, payload) for log, payload in appends]
        requests += [self.commit(*commit, pump=False) for commit in commits]
        self.pump()
        return [self.peer.answers.get(request) for request in requests]

    def transact(
        self,
        number: int,
        appends: Sequence[tuple[str, bytes]],
        commits: Sequence[tuple[str, str, int]] = (),
    ) -> protocol.Control | None:
        """A transaction: its commits are there if and only if its records are."""
        self.history.groups.append(Group(tuple(appends), tuple(commits), whole=True))
        request = self.ask_transaction(number, appends, commits)
        self.pump()
        return self.peer.answers.get(request)

    def ask_transaction(
        self,
        number: int,
        appends: Sequence[tuple[str, bytes]],
        commits: Sequence[tuple[str, str, int]],
    ) -> int:
        """Submit a transaction, perhaps once more; ``pump`` does the rest."""
        if any(
            (self.ids.get(log, 0), consumer) not in self.peer.grants for log, consumer, _ in commits
        ):
            return 0  # it could not be claimed
        payloads: dict[str, list[bytes]] = {}
        for log, payload in appends:
            self.history.sent[payload] = log
            payloads.setdefault(log, []).append(payload)
        batches = []
        for each in payloads.values():
            raw = bytes(batch.encode(each))
            batches.append(judged(raw))
        sizes = [batch.HEADER_BYTES + len(each.body) for each in batches]
        control = protocol.Transact(
            CLIENT,
            number,
            [
                protocol.LogBatch(self.ids[log], size)
                for log, size in zip(payloads, sizes, strict=True)
            ],
            [self._through(*each) for each in commits],
        )

        def then(answer: protocol.Control) -> None:
            if isinstance(answer, protocol.Error) and answer.code != OutcomeUnknown.code:
                self.history.refused.update(payload for _, payload in appends)
            if not isinstance(answer, protocol.Transacted):
                return
            books = [self.history.written, *([self.history.synced] if answer.synced else [])]
            for (log, each), (first, _end) in zip(payloads.items(), answer.appends, strict=True):
                for offset, payload in enumerate(each, first):
                    for book in books:
                        book[Place(log, offset)] = payload
            cursors = [self.history.commits_written]
            cursors += [self.history.commits_synced] if answer.synced else []
            for log, consumer, offset in commits:
                for kept in cursors:
                    kept[log, consumer] = max(kept.get((log, consumer), 0), offset)

        request = self.peer.begin(then)
        waiting = Waiting(self.peer, request, control, batches)
        self.driver.broker.submit(waiting)
        return request

    def _through(self, log: str, consumer: str, offset: int) -> protocol.CommitThrough:
        grant = self.peer.grants[self.ids[log], consumer]
        grant.delivered = max(grant.delivered, offset)
        asked = self.history.commits_asked
        asked[log, consumer] = max(asked.get((log, consumer), 0), offset)
        return protocol.CommitThrough(self.ids[log], consumer, grant.epoch, offset)

    def batch(
        self, log: str, *payloads: bytes, keys: Sequence[bytes | None] = ()
    ) -> protocol.Control | None:
        self.history.groups.append(Group(tuple((log, payload) for payload in payloads)))
        request = self.append(log, *payloads, keys=keys)
        self.pump()
        return self.peer.answers.get(request)

    def claim(self, log: str, consumer: str) -> None:
        if log not in self.ids:
            return
        answer = self.call(
            protocol.Claim(self.ids[log], consumer, model.OLDEST, b"0123456789abcdef")
        )
        if isinstance(answer, protocol.Claimed):
            self.history.epochs[log, consumer] = answer.epoch
            self.history.commits_synced.setdefault((log, consumer), answer.committed)

    def commit(self, log: str, consumer: str, offset: int, *, pump: bool = True) -> int:
        key = (self.ids.get(log, 0), consumer)
        if key not in self.peer.grants:
            return 0  # it could not be claimed
        grant = self.peer.grants[key]
        grant.delivered = max(grant.delivered, offset)  # what a connection does when it sends
        name = (log, consumer)
        self.history.commits_asked[name] = max(self.history.commits_asked.get(name, 0), offset)

        def then(control: protocol.Control) -> None:
            if isinstance(control, protocol.Committed):
                books = [self.history.commits_written]
                if control.synced:
                    books.append(self.history.commits_synced)
                for book in books:
                    book[name] = max(book.get(name, 0), offset)

        request = self.ask(protocol.CommitCursor(*key, grant.epoch, offset), then)
        if pump:
            self.pump()
        return request

    def trim(self, log: str, before: int) -> None:
        if log not in self.ids:
            return
        asked = self.history.trim_asked
        asked[log] = max(asked.get(log, 0), before)
        answer = self.call(protocol.TrimLog(self.ids[log], model.offset(before)))
        if isinstance(answer, protocol.Place):
            self.history.trim_done[log] = answer.offset

    def settle(self, log: str, consumer: str, offset: int, verdict: Any, **more: Any) -> None:
        """A verdict on the record at the cursor, or on a redriven one."""
        key = (self.ids.get(log, 0), consumer)
        if key not in self.peer.grants:
            return  # it could not be claimed
        grant = self.peer.grants[key]
        grant.delivered = max(grant.delivered, offset + 1)
        place = ParkedPlace(log, consumer, offset)
        if more.get("redriven"):
            self.history.settle_asked.add(place)
        else:
            name = (log, consumer)
            asked = self.history.commits_asked
            asked[name] = max(asked.get(name, 0), offset + 1)
        settle = protocol.Settle(*key, grant.epoch, offset, verdict, **more)
        answer = self.call(settle)
        if isinstance(answer, protocol.Judged) and answer.synced and verdict == "park":
            self.history.parked[place] = self.history.written[Place(log, offset)]

    def redrive(self, log: str, consumer: str) -> None:
        if log in self.ids:
            self.call(protocol.Redrive(self.ids[log], consumer))

    def delete(self, log: str) -> None:
        if log not in self.ids:
            return
        self.history.deletion_asked.add(log)
        if isinstance(self.call(protocol.DeleteLog(self.ids[log])), protocol.Done):
            self.history.deleted.add(log)

    def checkpoint(self) -> None:
        self.driver.checkpoint()
        self.note_seen()

    def checkpoint_beside(self, work: Callable[[], None]) -> None:
        """A checkpoint that is decided now and made while other work goes on."""
        job = self.driver.begin_checkpoint() if self.failed is None else None
        work()
        if job is not None:
            # It is in a thread of its own: that writing has ended meanwhile does not stop it.
            self.in_upkeep = True
            self.driver.finish_checkpoint(drivers.attempt(job))
            self.in_upkeep = False
        self.note_seen()

    def _rested(self) -> bool:
        """Whether the compactor goes on. It rests by how long its slice took of our time, which on
        a machine that stood still is more than a second of the simulated one.
        """
        for _ in range(100):
            self.clock.now += 1
            if self.failed is not None or self.driver.compactor.due():
                break
        return self.driver.compactor.due()

    def compact(self, work: Callable[[], None] = lambda: None) -> int:
        """Do all compaction that is due; ``work`` goes on beside it. -> how many jobs."""
        jobs, worked = 0, False
        self.clock.now += 1
        while self.driver.compactor.due():
            done = False
            while not done:
                self.in_upkeep = True
                result = drivers.attempt(self.driver.compactor.work)
                self.in_upkeep = False
                if not worked:
                    worked = True
                    work()
                done = result is not False
                self.driver.compacted(result)
                if not done and not self._rested():
                    assert self.failed is not None
                    break
            self.pump()
            jobs += 1
            self.clock.now += 1
        self.pump()  # the frame that lets the old files go
        self.note_seen()
        return jobs

    # --- looking ------------------------------------------------------------------------------

    def note_seen(self) -> None:
        """What a consumer can see now must be there for ever, but under ``never``."""
        books = self.driver.broker.books
        for log in books.state.logs.values():
            if log.id not in books.visible or books.policy_of(log).visible_unsynced:
                continue
            end = books.visible[log.id].end
            for offset in range(end - 1, log.first - 1, -1):
                place = Place(log.name, offset)
                if place in self.history.seen:
                    break
                if place in self.history.written:
                    self.history.seen[place] = self.history.written[place]

    def view(self) -> View:
        """Everything that is served, read as a reader reads it."""
        return view_of(self.driver)


def judged(raw: bytes) -> Batch:
    """A batch as its producer made it, as the broker has it."""
    return Batch(batch.parse_header(raw), raw[: batch.HEADER_BYTES], raw[batch.HEADER_BYTES :])


def view_of(driver: Driver) -> View:
    books = driver.broker.books
    logs = {}
    for log in books.state.logs.values():
        records: list[bytes | None] = []
        offset = log.first
        end = books.visible[log.id].end
        while offset < end:
            extent = books.extent(log, offset)
            try:
                found = books.files[log.id].read(extent, None, offset, 1 << 20, wait=True)
            except (OSError, RlogError):
                found = None
            if not isinstance(found, Chunk):
                until = found.end if found is not None else extent.end
                records += [None] * (min(until, end) - offset)
                offset = until
                continue
            records += records_of(found, offset, end)
            offset = found.next
        cursors = {name: (c.committed, c.epoch) for name, c in log.cursors.items()}
        shown = LogView(log.first, end, records, cursors, protected=log.options.protected)
        for name, cursor in log.cursors.items():
            for at, parked in cursor.parked.items():
                here = log.first <= at < end
                value = shown.at(at) if here else copy_of(parked, at)
                shown.parked[name, at] = value
        logs[log.name] = shown
    return View(logs)


def copy_of(parked: state.Parked, offset: int) -> bytes | None:
    """The value of a parked record's copy."""
    if not parked.copy:
        return None
    header = batch.parse_header(parked.copy)
    assert (header.base, header.count) == (offset, 1)
    return batch.decode(header, parked.copy[batch.HEADER_BYTES :]).values[0]


def records_of(chunk: Chunk, offset: int, end: int) -> list[bytes | None]:
    """The payloads of a chunk from ``offset`` on, checked as a client checks them."""
    records: list[bytes | None] = []
    position = 0
    while position < len(chunk.data):
        header = batch.parse_header(chunk.data, position)
        body = chunk.data[position + batch.HEADER_BYTES : position + header.bytes]
        skip = max(offset - header.base, 0)
        try:
            columns = batch.decode(header, body)
            values: list[bytes | None] = [ABSENT] * header.count
            for at, value in zip(columns.offsets(header), columns.values, strict=True):
                values[at - header.base] = value
        except batch.InvalidBatch:
            values = [None] * header.count
        records += values[skip : end - header.base]
        position += header.bytes
    return records

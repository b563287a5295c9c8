"""Schedules: from one seed, a random history of members, producers and whoever looks after them, of
connections that are lost and requests that come late, of time, kills and power cuts; checked.

``python -m tests.schedules.schedule SEED`` prints what one seed does.
"""

from __future__ import annotations

import logging
import random
import sys
from collections import Counter, deque
from typing import TYPE_CHECKING, Any, NamedTuple

from rlog.decisions import Leave
from rlog_client import batch, errors, model, protocol
from rlog_client.model import PRODUCER_ID
from tests.schedules.checker import Checker
from tests.schedules.record import Decision, Given, Recorder, Start, recording
from tests.schedules.world import LOG, NOTHING, OUT, TEN_YEARS_NS, Client, World, packed
from tests.storage.server import ROLL, judged
from tests.storage.simdisk import Choice, Fill

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from rlog.decisions import Batch, Copying
    from rlog_client.protocol import Control

STEPS = 300
PAGES = 24  # of a journal file: a history goes through several
CONSUMERS = ("c", "d")
KINDS = ("unnamed", "named", "named", "exclusive", "both", "both")
NAMES = ("n", "m")
HAND_SECONDS = (None, None, 1.0, 4.0)
AGAIN_SECONDS = 1800.0  # for which a client repeats what was not answered


class BootedWorld(World):
    """Its machine is never booted anew, so it knows for good what the clock should say."""

    boot = "the boot"


class Sent(NamedTuple):
    request: int
    control: Control
    batches: Sequence[Batch]


class Asked(NamedTuple):
    """What a member waits to be answered; ``batches``: of a transaction."""

    control: Control
    batches: Sequence[Batch] = ()


class Line:
    """A connection: what was sent over it comes to the server later, in order, or never."""

    def __init__(self, plan: Plan, name: str) -> None:
        self.client = Client(plan.world, name)
        self.out: deque[Sent] = deque()
        self.stopped = 0  # steps for which nothing of it arrives
        plan.lines.append(self)

    def send(
        self,
        control: Control,
        then: Callable[[Control], None],
        batches: Sequence[Batch] = (),
    ) -> None:
        request = self.client.begin(then)
        self.out.append(Sent(request, control, batches))


class Actor:
    """Somebody with a connection, or without."""

    def __init__(self, plan: Plan, name: str) -> None:
        self.plan, self.rng = plan, plan.rng
        self.name = name
        self.line: Line | None = None
        self.stopped = 0  # steps for which it does nothing

    def connect(self) -> Line:
        self.line = Line(self.plan, self.name)
        return self.line

    def drop(self) -> Line | None:
        """Its connection is lost; the server may not know."""
        line, self.line = self.line, None
        if line is not None:
            line.client.deaf = True
        return line

    def step(self) -> None:
        raise NotImplementedError


class Member(Actor):
    def __init__(self, plan: Plan, name: str, consumer: str) -> None:
        super().__init__(plan, name)
        self.consumer = consumer
        self.key = (LOG, consumer)
        self.hand_seconds = self.rng.choice(HAND_SECONDS)
        self.id = self.rng.getrandbits(63) | 1
        self.number = 0  # of its last transaction
        self.done: deque[tuple[float, Asked]] = deque(maxlen=20)  # transactions, and since when
        self.forget()

    def forget(self) -> None:
        """It holds nothing, and asks for nothing."""
        self.state = "idle"
        self.token = b""
        self.epoch = self.next = self.delivered = self.attempts = self.ticket = 0
        self.redriven: tuple[int, int] | None = None
        self.unanswered: list[Asked] = []

    def step(self) -> None:
        line = self.line
        if line is None:
            line = self.connect()
            line.client.on_lost = lambda _key: self.forget() if self.line is line else None
            if self.state != "idle":
                self._claim(line)
                for asked in self.unanswered:
                    self._send(line, *asked)
        elif self.state == "idle":
            self.token = self.rng.randbytes(8)
            self.state = "asked"
            self._claim(line)
        elif self.state == "asked":
            if self.rng.random() < 0.05:
                self._release(line)
        else:
            self._work(line)

    def _claim(self, line: Line) -> None:
        claim = protocol.Claim(
            LOG,
            self.consumer,
            model.OLDEST,
            self.token,
            standby=self.rng.random() < 0.5,
            takeover=not self.epoch and self.rng.random() < 0.15,
            hand_seconds=self.hand_seconds,
            epoch=self.epoch,
            delivered=self.delivered,
        )
        token = self.token

        def then(answer: Control) -> None:
            if self.line is not line or self.token != token:
                return
            if not isinstance(answer, protocol.Claimed):
                self.forget()
                return
            if answer.epoch != self.epoch:
                self.unanswered = []
                self.delivered = answer.committed
            self.state, self.epoch = "held", answer.epoch
            if not self.unanswered:
                self.next, self.attempts = answer.committed, answer.attempts
                self.redriven = None

        line.send(claim, then)

    def _send(self, line: Line, control: Control, batches: Sequence[Batch] = ()) -> None:
        epoch = self.epoch

        def then(answer: Control) -> None:
            if self.line is not line or self.epoch != epoch:
                return
            self.unanswered = [each for each in self.unanswered if each.control is not control]
            if isinstance(answer, protocol.Error):
                # Fenced, or out of step: it begins anew.
                if answer.code != errors.Fenced.code:
                    self._release(line)
                self.forget()
            elif isinstance(answer, protocol.Taken) and answer.offset >= 0:
                self.redriven = (answer.offset, answer.attempts)
            elif isinstance(answer, protocol.Moved):
                self.epoch, self.next, self.attempts = answer.epoch, answer.after, 0
                self.delivered, self.redriven, self.unanswered = answer.after, None, []

        line.send(control, then, batches=batches)

    def _ask(self, line: Line, control: Control, batches: Sequence[Batch] = ()) -> None:
        self.unanswered.append(Asked(control, batches))
        self._send(line, control, batches)

    def _release(self, line: Line) -> None:
        line.send(protocol.Release(LOG, self.consumer), lambda _answer: None)
        self.forget()

    def _settle(self, offset: int, verdict: Any, **more: Any) -> protocol.Settle:
        return protocol.Settle(LOG, self.consumer, self.epoch, offset, verdict, **more)

    def _work(self, line: Line) -> None:
        rng = self.rng
        if any(isinstance(each.control, protocol.Transact) for each in self.unanswered):
            return  # a commit sent behind it would pass its records, should it be refused
        grant = line.client.grants.get(self.key)
        if grant is not None and grant.epoch == self.epoch:
            grant.delivered = max(grant.delivered, self.plan.world.books.visible[LOG].end)
            self.delivered = grant.delivered
        have = self.next < self.delivered
        match rng.choices(
            (
                *(
                    "commit",
                    "begin",
                    "retry",
                    "park",
                    "take",
                    "settle",
                    "seek",
                    "release",
                    "extend",
                ),
                *("produce", "again"),
            ),
            (8, 8, 3, 4, 5, 8, 0.6, 0.6, 0.5, 9, 3),
        )[0]:
            case "commit" if have:
                self.next += rng.randint(1, min(3, self.delivered - self.next))
                self.attempts = 0
                begun = rng.choice((0, 0, min(self.next + 1, self.delivered)))
                self._ask(line, self._commit(begun if begun > self.next else 0))
            case "begin" if have:
                self._ask(line, self._commit(self.next + rng.randint(1, 2), clip=True))
            case "retry" if have:
                self.attempts += 1
                delay = rng.choice((0.0, 0.5, 20.0))
                more = {"attempts": self.attempts, "delay": delay, "error": "E"}
                self._ask(line, self._settle(self.next, "retry", **more))
            case "park" if have:
                self._park(line, self.next, redriven=False)
                self.next, self.attempts = self.next + 1, 0
            case "take":
                begin = rng.random() < 0.7
                take = protocol.TakeRedriven(LOG, self.consumer, self.epoch, begin)
                self._ask(line, take)
            case "settle" if self.redriven is not None and rng.random() < 0.3:
                self._produce(line, have=False)
            case "settle" if self.redriven is not None:
                (offset, attempts), self.redriven = self.redriven, None
                verdict = rng.choice(("commit", "skip", "retry", "park"))
                if verdict == "park":
                    self._park(line, offset, redriven=True)
                else:
                    more = {"attempts": attempts + 1 if verdict == "retry" else 0}
                    self._ask(line, self._settle(offset, verdict, redriven=True, **more))
            case "seek" if not self.unanswered:
                whence = rng.choice((model.OLDEST, model.LATEST, model.last(2)))
                seek = protocol.SeekCursor(LOG, self.consumer, whence, self.epoch)
                self._send(line, seek)
            case "release":
                self._release(line)
            case "extend":
                self._send(line, protocol.Extend(LOG, self.consumer, self.epoch))
            case "produce":
                self._produce(line, have=have)
            case "again":
                self._again(line)
            case _:
                pass

    def _produce(self, line: Line, *, have: bool) -> None:
        """A transaction: what was made of some records, and their commit."""
        rng, epoch = self.rng, self.epoch
        commits: list[protocol.Commitment] = []
        if have:
            self.next += rng.randint(1, min(3, self.delivered - self.next))
            self.attempts = 0
            begun = rng.choice((0, min(self.next + 1, self.delivered)))
            begun = begun if begun > self.next else 0
            commits.append(protocol.CommitThrough(LOG, self.consumer, epoch, self.next, begun))
        if self.redriven is not None:
            (offset, _attempts), self.redriven = self.redriven, None
            commits.append(protocol.CommitRedriven(LOG, self.consumer, epoch, offset))
        logs = rng.choice(((OUT,), (OUT,), (OUT, LOG), (LOG, OUT), (LOG,), ()))
        appends = []
        for log in logs:
            end = self.plan.world.books.state.logs[log].end
            expect = end + rng.choice((0, 0, 0, -1)) if rng.random() < 0.2 else None
            appends.append(protocol.LogBatch(log, 0, expect))
        if commits or appends:
            self.number += 1
            control = protocol.Transact(self.id, self.number, appends, commits)
            values = [[self.plan.payload() for _ in range(rng.randint(1, 2))] for _ in logs]
            made, batches = packed(control, *values)
            self.done.append((self.plan.world.clock.now, Asked(made, batches)))
            self._ask(line, made, batches)

    def _again(self, line: Line) -> None:
        """A transaction that was answered, or given up, comes once more, from whatever claim."""
        if self.done:
            since, asked = self.rng.choice(self.done)
            if self.plan.world.clock.now < since + AGAIN_SECONDS:
                line.send(asked.control, lambda _answer: None, batches=asked.batches)

    def _commit(self, begun: int, *, clip: bool = False) -> protocol.CommitCursor:
        begun = min(begun, self.delivered) if clip else begun
        return protocol.CommitCursor(LOG, self.consumer, self.epoch, self.next, begun)

    def _park(self, line: Line, offset: int, *, redriven: bool) -> None:
        exhausted = self.rng.random() < 0.7
        more: dict[str, Any] = {"redriven": redriven, "attempts": 3}
        if exhausted:
            more |= {"exhausted": True, "cause": self.rng.choice("EEEF"), "pause_after": 2}
        verdict = "skip" if exhausted and self.rng.random() < 0.2 else "park"
        self._ask(line, self._settle(offset, verdict, **more))


class Maker(Actor):
    """A producer; with a name that others open too, or exclusive, or both, or neither."""

    def __init__(self, plan: Plan, name: str, kind: str) -> None:
        super().__init__(plan, name)
        self.kind = kind
        self.exclusive = kind in ("exclusive", "both")
        self.forget()

    def forget(self) -> None:
        self.state = "open" if self.kind == "unnamed" else "idle"
        self.id = self.rng.getrandbits(48) | 1
        self.named = self.rng.choice(NAMES) if self.kind in ("named", "both") else None
        self.token = self.rng.randbytes(8)
        self.epoch = self.next = 0
        self.last = -1  # the last sequence sent
        self.under_way: list[tuple[int, bytes, int]] = []  # sequence, batch, after

    def step(self) -> None:
        line = self.line
        if line is None:
            line = self.connect()
            line.client.on_lost = lambda _key: None  # its next append tells it
            if self.state == "opening" or (self.kind != "unnamed" and self.state == "open"):
                self._open(line)
            for each in self.under_way:
                self._send(line, *each)
        elif self.state == "idle":
            self.state = "opening"
            self._open(line)
        elif self.state == "open":
            if self.exclusive and self.rng.random() < 0.1:
                self._release(line)
            else:
                self._append(line)

    def _release(self, line: Line) -> None:
        line.send(protocol.Release(LOG, PRODUCER_ID), lambda _answer: None)
        self.forget()

    def _open(self, line: Line) -> None:
        control = protocol.OpenProducer(
            LOG,
            self.id,
            self.named,
            exclusive=self.exclusive,
            standby=self.rng.random() < 0.3,
            takeover=not self.epoch and self.rng.random() < 0.4,
            token=self.token,
            epoch=self.epoch,
        )
        token = self.token

        def then(answer: Control) -> None:
            if self.line is not line or self.token != token:
                return
            if not isinstance(answer, protocol.ProducerOpened):
                self.forget()
                return
            if not self.epoch:
                self.id, self.epoch = answer.producer, answer.epoch
                self.last = answer.last_sequence
                self.next = self.last + 1
            self.state = "open"

        line.send(control, then)

    def _append(self, line: Line) -> None:
        count = self.rng.randint(1, 3)
        values = [self.plan.payload() for _ in range(count)]
        if self.last >= 0 and not self.under_way and self.rng.random() < 0.1:
            self.next += 1  # numbers may be left out
        keys = self.plan.keys(count)
        raw = batch.encode(values, keys, producer=self.id, sequence=self.next, epoch=self.epoch)
        sent = (self.next, bytes(raw), self.last)
        self.last = self.next + count - 1
        self.next += count
        self.under_way.append(sent)
        self._send(line, *sent)

    def _send(self, line: Line, sequence: int, raw: bytes, after: int) -> None:
        identity = self.id, self.epoch

        def then(answer: Control) -> None:
            if self.line is not line or (self.id, self.epoch) != identity:
                return
            self.under_way = [each for each in self.under_way if each[0] != sequence]
            if isinstance(answer, protocol.Error):
                if self.exclusive and answer.code != errors.Fenced.code:
                    self._release(line)
                self.forget()

        line.send(protocol.Append(LOG, after=after), then, [judged(raw)])


class Keeper(Actor):
    """Whoever looks after consumers from outside."""

    consumers = CONSUMERS

    def step(self) -> None:
        line = self.line or self.connect()
        rng, consumer = self.rng, self.rng.choice(self.consumers)
        control: Control
        match rng.choices(("seek", "evict", "disown", "redrive", "resume"), (2, 2, 1, 6, 1))[0]:
            case "seek":
                whence = rng.choice((model.OLDEST, model.last(3), model.LATEST))
                force = rng.random() < 0.5
                control = protocol.SeekCursor(LOG, consumer, whence, force=force)
            case "evict":
                control = protocol.Evict(LOG, consumer)
            case "disown":
                control = protocol.Evict(LOG, PRODUCER_ID)
            case "redrive":
                some = sorted(rng.sample(range(20), 5)) if rng.random() < 0.4 else None
                control = protocol.Redrive(LOG, consumer, some)
            case _:
                control = protocol.Resume(LOG, consumer)
        line.send(control, lambda _answer: None)


class Plan:
    """One schedule."""

    retains = True  # some have a log that trims itself

    def __init__(self, seed: int, *, trace: bool = False) -> None:
        self.seed = seed
        self.rng = random.Random(seed)
        self.trace = trace
        self.counts: Counter[str] = Counter()
        self.recorder = Recorder()
        self.lines: list[Line] = []
        self._payloads = 0
        policy = "always" if seed % 4 else self.rng.choice(("periodic:1s", "never"))
        self.options: dict[str, Any] = {}
        if self.retains and seed % 5 == 2:
            self.options = {
                "max_total_bytes": 16 * 1024,
                "max_file_age": self.rng.choice((None, 3600.0)),
                "blocking_minimum_retention": self.rng.choice((None, 3.0, 60.0)),
                "protected": self.rng.choice(((), ("c",))),
            }
        self.copying: Copying | None = None
        self.world = BootedWorld(policy=policy, pages=PAGES, recorder=self.recorder, **self.options)
        self.world.server.create("b", file_roll_size=16 * ROLL)
        mix = self.rng.choice(
            (("unnamed", "unnamed", "named", "named"), ("named", "both", "both"), KINDS)
        )
        kinds = self.rng.sample(mix, 3)
        self.actors: list[Actor] = [
            *(Member(self, f"member {n}", self.rng.choice(CONSUMERS)) for n in range(3)),
            *(Maker(self, f"{kind} {n}", kind) for n, kind in enumerate(kinds)),
            Keeper(self, "keeper"),
        ]
        self._weights = [8, 8, 8, 6, 6, 6, 3]

    def payload(self) -> bytes:
        self._payloads += 1
        payload = b"%d:%d" % (self.seed, self._payloads)
        return payload.ljust(700) if self.options else payload

    def keys(self, _count: int) -> list[bytes | None] | None:
        """Of the next so many records."""
        return None

    # --- the steps ----------------------------------------------------------------------------

    def run(self, steps: int = STEPS) -> list[str]:
        """What is wrong."""
        ways: tuple[tuple[Callable[[], None], float], ...] = (
            (self._act, 30.0), (self._arrive, 30.0), (self._fly, 12.0), (self._land, 12.0),
            (self._pass, 5.0), (self._lose, 2.0), (self._notice, 3.0), (self._stop, 2.0),
            (self._jump, 1.0), (self._restart, 0.7),
        )  # fmt: skip
        if self.options:
            ways = (*ways, (self._copy, 10.0), (self._trim, 3.0))
        kinds, weights = [way for way, _ in ways], [weight for _, weight in ways]
        with recording(self.recorder):
            for way in self.rng.choices(kinds, weights, k=steps):
                way()
            self.world.pump()
            wrong = self._check_books()
            self.world.restart(None)
            return wrong + self.check()

    def _check_books(self) -> list[str]:
        """Nobody waits for what is free, and who holds something knows it."""
        books, log = self.world.books, self.world.log
        wrong = []
        for key in books.waiting:
            claim = log.claimable(key[1])
            if key not in books.returning and not (key in books.holders and claim and claim.held):
                wrong.append(f"{key[1]}: somebody waits, and nobody holds it")
        for key, peer in books.holders.items():
            claim, grant = log.claimable(key[1]), peer.grants.get(key)
            if not claim or not grant or not claim.held or claim.epoch != grant.epoch:
                wrong.append(f"{key[1]}: {peer.name} is its holder, and the state says {claim}")
        return wrong

    def check(self) -> list[str]:
        checker = self._checker()
        checker.run(self.recorder.entries)
        checker.compare(self.world.log, self.world.values(), self.world.values("b"))
        self.counts["decisions"] = len(self.recorder.entries)
        if self.trace:
            for number, entry in enumerate(self.recorder.entries):
                self._show(number, entry)
        return checker.wrong

    def _checker(self) -> Checker:
        protected = "c" if "c" in self.options.get("protected", ()) else ""
        return Checker(always=self.world.policy == "always", protected=protected)

    def _show(self, number: int, entry: Decision | Start | Given) -> None:
        if isinstance(entry, Given):
            print(f"{number:4} {entry.now:8.1f}     {entry.peer.name} is sent {entry.assigned}")
            return
        if isinstance(entry, Start):
            print(f"{number:4} --- a start at {entry.now:.1f}, {len(entry.lost)} lost")
            return
        peer = f"{entry.waiting.peer.name} {id(entry.waiting.peer) % 9973:04}"
        outcome = f"{type(entry.error).__name__}" if entry.error is not None else entry.answer
        kinds = [fact for fact in entry.facts if "Appended" not in type(fact).__name__]
        print(f"{number:4} {entry.now:8.1f} {entry.frame:3} {peer}: {entry.control}")
        print(f"         -> {outcome} {'' if entry.heard else '(unheard)'} {kinds}")

    def _act(self) -> None:
        actor = self.rng.choices(self.actors, self._weights)[0]
        if actor.stopped:
            actor.stopped -= 1
            return
        for _ in range(self.rng.randint(1, 4)):
            actor.step()

    def _arrive(self) -> None:
        lines = [line for line in self.lines if line.out and not line.client.closed]
        if not lines:
            return
        line = self.rng.choice(lines)
        if line.stopped:
            line.stopped -= 1
            return
        for _ in range(self.rng.randint(1, 4)):
            if line.out:
                sent = line.out.popleft()
                self.world.submit(line.client, *sent)

    def _fly(self) -> None:
        self.world.fly()

    def _land(self) -> None:
        self.world.land()

    def _copy(self) -> None:
        """Parked records are looked up; or what was found is handed over, some time later."""
        driver = self.world.server.driver
        if self.copying is None:
            self.copying = driver.copying()
        elif self.rng.random() < 0.5:
            look, self.copying = self.copying, None
            look.run()
            driver.copied(look)
            self.counts["copied"] += 1

    def _trim(self) -> None:
        whence = self.rng.choice((model.LATEST, model.last(5), model.last(15)))
        self.world.ask(self.world.client("trimmer"), protocol.TrimLog(LOG, whence))
        self.counts["trims by hand"] += 1

    def _pass(self) -> None:
        seconds = self.rng.choices((0.3, 1.5, 6.0, 3700.0), (8, 6, 3, 0.4))[0]
        self.world.clock.now += seconds

    def _lose(self) -> None:
        """Somebody's connection is lost; answers under way do not reach it."""
        self.rng.choice(self.actors).drop()
        self.counts["connections lost"] += 1

    def _notice(self) -> None:
        """The server sees that a connection is gone. What it had received before, it decides."""
        gone = [line for line in self.lines if line.client.deaf and not line.client.closed]
        if gone:
            client = self.rng.choice(gone).client
            client.closed = True
            for key in sorted({*client.grants, *client.waits}):
                self.world.submit(client, 0, Leave(*key))

    def _stop(self) -> None:
        """A process is stopped, or its requests are held up."""
        actor = self.rng.choice(self.actors)
        if self.rng.random() < 0.5:
            actor.stopped = self.rng.randint(3, 15)
        elif actor.line is not None:
            actor.line.stopped = self.rng.randint(2, 8)

    def _jump(self) -> None:
        self.world.clock.jump_ns = self.rng.choice((0, TEN_YEARS_NS, -TEN_YEARS_NS))

    def _restart(self) -> None:
        """Clean, killed, or with a power cut; a frame may be under way."""
        how = self.rng.choice(("clean", "killed", "cut", "cut", "torn"))
        self.counts[how] += 1
        self.copying = None  # it dies with its process
        for line in self.lines:
            line.client.closed = line.client.deaf = True
        self.lines = []
        for actor in self.actors:
            actor.drop()
        if how == "clean":
            self.world.restart(clean=True)
        elif how == "killed":
            self.world.restart(None)
        elif how == "cut":
            self.world.restart(NOTHING)
        else:
            mask = self.rng.getrandbits(32)
            self.world.restart(Choice(mask, Fill.ZERO, self.rng.getrandbits(16)))


def run(seed: int, *, trace: bool = False) -> tuple[list[str], Counter[str]]:
    plan = Plan(seed, trace=trace)
    return plan.run(), plan.counts


if __name__ == "__main__":
    logging.disable(logging.CRITICAL)  # of a server that is killed all the time
    found, _ = run(int(sys.argv[1]), trace=True)
    print("\n".join(found) or "nothing is wrong")

"""Schedules of shared consumers: members that come, vanish, come back and settle in any order,
beside producers and whoever looks after them; and what the checker holds against the rules.

What members are sent is sent by real memberships that read the real log.

``python -m tests.schedules.sharing SEED`` prints what one seed does.
"""

from __future__ import annotations

import logging
import sys
from typing import TYPE_CHECKING, Any

from rlog import facts
from rlog.decisions import NOBODY, Leave, Unreadable, Vanish, Waiting
from rlog.decisions.desk import Lapse
from rlog.membership import Membership
from rlog_client import batch, errors, model, protocol
from tests.schedules.checker import SLACK, Checker, Consumer
from tests.schedules.record import Decision, Given, Start
from tests.schedules.schedule import Actor, Keeper, Line, Plan
from tests.schedules.world import LOG

if TYPE_CHECKING:
    from collections import Counter
    from collections.abc import Sequence

    from rlog import state
    from rlog_client.protocol import Control
    from tests.schedules.world import Client

NAMES = ("s", "t")
KEYS = (None, b"a", b"b", b"c", b"d" * 65)
HAND_SECONDS = (None, None, None, 1.0, 4.0)


class Outlet:
    """Where a membership's messages go: to its member, as long as that hears any."""

    def __init__(self, member: Sharer, client: Client, epoch: int) -> None:
        self.member, self.client, self.epoch = member, client, epoch

    def answer(self, request: int, control: Control, payload: bytes | memoryview = b"") -> None:
        plan, heard = self.member.plan, not (self.client.deaf or self.client.closed)
        assert isinstance(plan, SharedPlan)
        if isinstance(control, protocol.Assigned):
            plan.recorder.entries.append(
                Given(
                    self.client, self.member.consumer, self.epoch, control,
                    plan.world.clock.now, plan.landed,
                )
            )  # fmt: skip
        if heard and self.member.epoch == self.epoch:
            self.member.told(control)

    def ask(self, control: Control) -> None:
        self.member.plan.world.server.driver.broker.submit(Waiting(NOBODY, 0, control))

    def wake(self) -> None:
        pass


class Sharer(Actor):
    """A member of a shared consumer, as the client has it."""

    def __init__(self, plan: Plan, name: str, consumer: str) -> None:
        super().__init__(plan, name)
        self.consumer = consumer
        self.key = (LOG, consumer)
        self.hand_seconds = self.rng.choice(HAND_SECONDS)
        self.honest = self.rng.random() < 0.7
        self.forget()

    def forget(self) -> None:
        self.state = "idle"
        self.token = b""
        self.epoch = 0
        self.out: dict[int, tuple[int, bool]] = {}  # in hand: failed attempts, redriven
        self.begun: list[int] = []
        self.unanswered: list[Control] = []
        self.membership: Membership | None = None

    def told(self, control: Control) -> None:
        if isinstance(control, protocol.Assigned):
            failed = dict(zip(control.failed[::2], control.failed[1::2], strict=True))
            for offset in control.offsets:
                self.out[offset] = (failed.get(offset, 0), offset in control.redriven)

    def in_hand(self) -> list[int]:
        told: set[int] = set(self.out)
        for each in self.unanswered:
            if isinstance(each, protocol.CommitRecords):
                for begin, end in zip(each.done[::2], each.done[1::2], strict=True):
                    told.update(range(begin, end))
            elif isinstance(each, protocol.Settle):
                told.add(each.offset)
        return sorted(told)

    def step(self) -> None:
        line = self.line
        if line is None:
            line = self.connect()
            self.membership = None
            line.client.on_lost = lambda key: self._lost(line, key)
            if self.state != "idle":
                self._claim(line)
                for control in self.unanswered:
                    self._send(line, control)
        elif self.state == "idle":
            self.token = self.rng.randbytes(8)
            self.state = "asked"
            self._claim(line)
        elif self.state == "held":
            self._work(line)

    def _lost(self, line: Line, key: tuple[int, str]) -> None:
        if self.line is line and key == self.key:
            self.forget()

    def _claim(self, line: Line) -> None:
        claim = protocol.Claim(
            LOG, self.consumer, model.OLDEST, self.token, hand_seconds=self.hand_seconds,
            epoch=self.epoch, shared=True, in_hand=self.in_hand(),
        )  # fmt: skip
        token = self.token

        def then(answer: Control) -> None:
            if self.line is not line or self.token != token:
                return
            if not isinstance(answer, protocol.Claimed):
                self.forget()
                return
            kept = set(answer.in_hand) if answer.epoch == self.epoch else set()
            if answer.epoch != self.epoch:
                self.unanswered = []
            self.out = {offset: how for offset, how in self.out.items() if offset in kept}
            self.begun = [offset for offset in self.begun if offset in self.out]
            self.state, self.epoch = "held", answer.epoch

        line.send(claim, then)

    def _send(self, line: Line, control: Control) -> None:
        epoch = self.epoch

        def then(answer: Control) -> None:
            if self.line is not line or self.epoch != epoch:
                return
            self.unanswered = [each for each in self.unanswered if each is not control]
            if isinstance(answer, protocol.Error) and answer.code != errors.Fenced.code:
                line.send(protocol.Release(LOG, self.consumer), lambda _answer: None)
                self.forget()

        line.send(control, then)

    def _ask(self, line: Line, control: Control) -> None:
        self.unanswered.append(control)
        self._send(line, control)
        if self.rng.random() < 0.05:
            line.send(control, lambda _answer: None)  # twice

    def _borrow(self, line: Line) -> None:
        """Have records sent: subscribe, and lend."""
        books, grant = self.plan.world.books, line.client.grants.get(self.key)
        if grant is None or grant.epoch != self.epoch or line.client.closed:
            return
        if self.membership is None:
            log = self.plan.world.log
            outlet = Outlet(self, line.client, self.epoch)
            self.membership = Membership(outlet, books, 0, log, self.consumer, grant)
            assert isinstance(self.plan, SharedPlan)
            self.plan.memberships.append((line.client, self.membership))
        records = self.rng.randint(1, 4)
        self.membership.lend(0, protocol.Credit(0, 0, records, now=self.rng.random() < 0.3))

    def _work(self, line: Line) -> None:
        rng, mine = self.rng, sorted(self.out)
        plain = [offset for offset in mine if not self.out[offset][1]]
        match rng.choices(
            ("borrow", "commit", "begin", "verdict", "back", "release", "extend", "wrong"),
            (10, 10, 5, 6, 1.5, 0.4, 0.5, 0.5),
        )[0]:
            case "borrow":
                self._borrow(line)
            case "commit" if plain:
                done = sorted(rng.sample(plain, rng.randint(1, min(3, len(plain)))))
                for offset in done:
                    del self.out[offset]
                self._say(line, done)
            case "begin" if mine:
                self.begun = sorted(rng.sample(mine, rng.randint(1, min(3, len(mine)))))
                self._say(line, [])
            case "verdict" if mine:
                self._judge(line, rng.choice(mine))
            case "back" if mine:
                offset = rng.choice(mine)
                del self.out[offset]
                self._say(line, [], [offset])
            case "release":
                line.send(protocol.Release(LOG, self.consumer), lambda _answer: None)
                self.forget()
            case "extend" if self.begun:
                extend = protocol.Extend(LOG, self.consumer, self.epoch, rng.choice(self.begun))
                self._send(line, extend)
            case "wrong" if not self.honest:
                offset = rng.randrange(30)
                wrong = protocol.CommitRecords(
                    LOG, self.consumer, self.epoch, done=[offset, offset + rng.randint(1, 3)]
                )
                line.send(wrong, lambda _answer: None)
            case _:
                pass

    def _say(self, line: Line, done: Sequence[int], back: Sequence[int] = ()) -> None:
        self.begun = [offset for offset in self.begun if offset in self.out]
        flat = [bound for offset in done for bound in (offset, offset + 1)]
        ranges: list[int] = []
        for begin, end in zip(flat[::2], flat[1::2], strict=True):
            if ranges and ranges[-1] == begin:
                ranges[-1] = end
            else:
                ranges += (begin, end)
        self._ask(
            line,
            protocol.CommitRecords(
                LOG, self.consumer, self.epoch, ranges, self.begun, list(back),
                anew=self.rng.random() < 0.2,
            ),
        )  # fmt: skip

    def _judge(self, line: Line, offset: int) -> None:
        failed, redriven = self.out.pop(offset)
        self.begun = [each for each in self.begun if each != offset]
        more: dict[str, Any] = {"redriven": redriven}
        verdict: Any = self.rng.choice(("retry", "retry", "park", "commit" if redriven else "park"))
        if verdict == "retry":
            more |= {"attempts": failed + 1, "delay": self.rng.choice((0.0, 0.5, 20.0))}
        elif verdict == "park":
            more["attempts"] = 3
            if self.rng.random() < 0.6:
                more |= {"exhausted": True, "cause": self.rng.choice("EEEF"), "pause_after": 2}
                verdict = "skip" if self.rng.random() < 0.2 else "park"
        self._ask(line, protocol.Settle(LOG, self.consumer, self.epoch, offset, verdict, **more))


class Overseer(Keeper):
    consumers = NAMES


class SharedPlan(Plan):
    """One schedule with shared consumers."""

    retains = False

    def __init__(self, seed: int, *, trace: bool = False) -> None:
        self.memberships: list[tuple[Client, Membership]] = []
        super().__init__(seed, trace=trace)
        makers = [actor for actor in self.actors if actor.name.split()[0] not in _OTHERS]
        sharers = [Sharer(self, f"sharer {n}", self.rng.choice("sst")) for n in range(4)]
        self.actors = [*sharers, *makers, Overseer(self, "keeper")]
        self._weights = [12] * 4 + [3] * len(makers) + [2]

    def keys(self, count: int) -> list[bytes | None] | None:
        keys = [self.rng.choice(KEYS) for _ in range(count)]
        return keys if any(keys) else None

    @property
    def landed(self) -> int:
        """The number of the last frame whose effects were carried out."""
        flight = self.world.flight
        tail = self.world.server.driver.journal.tail()
        return tail if flight is None or flight.decided is None else flight.number - 1

    def _show_members(self) -> None:
        """What a server does for readers after each of its turns."""
        books = self.world.books
        books.raised.clear()
        for client, membership in list(self.memberships):
            if client.closed or membership.ended or membership.books is not books:
                self.memberships.remove((client, membership))
                continue
            while (read := membership.next_read()) is not None:
                found = read.run(wait=True)
                assert found is not None
                membership.deliver(read, found)
        if books.raised:
            self._show_members()

    def _act(self) -> None:
        super()._act()
        self._show_members()

    def _fly(self) -> None:
        super()._fly()
        self._show_members()

    def _land(self) -> None:
        super()._land()
        self._show_members()

    def _check_books(self) -> list[str]:
        wrong, books = super()._check_books(), self.world.books
        for (log, name, epoch), peer in books.seats.items():
            shared, grant = self.world.log.shared(name), peer.grants.get((log, name))
            if not shared or epoch not in shared.members or not grant or grant.epoch != epoch:
                wrong.append(f"{name}: {peer.name} has seat {epoch}, and the state says {shared}")
        for (_log, name), group in books.groups.items():
            shared = self.world.log.shared(name)
            if not shared or set(shared.members) != set(group.mates):
                wrong.append(f"{name}: members are {shared}, mates {set(group.mates)}")
        return wrong

    def _checker(self) -> Checker:
        for entry in self.recorder.entries:
            if isinstance(entry, Given):
                self.counts["given"] += len(entry.assigned.offsets)
            elif isinstance(entry, Decision) and getattr(entry.control, "shared", False):
                back = isinstance(entry.answer, protocol.Claimed) and entry.answer.in_hand
                self.counts["back with something in hand"] += bool(back)
            for fact in entry.facts if isinstance(entry, Decision) else ():
                if getattr(fact, "consumer", "") in NAMES:
                    lapsed = isinstance(fact, facts.Vanished) and fact.lapsed
                    self.counts["lapsed" if lapsed else type(fact).__name__.lower()] += 1
        return SharedChecker(always=self.world.policy == "always")


_OTHERS = ("member", "keeper")


class Seat:
    """A member, as far as was granted."""

    def __init__(self, token: bytes, peer: object, hand_seconds: float | None) -> None:
        self.token, self.hand_seconds = token, hand_seconds
        self.peer: object | None = peer
        self.hands: set[int] = set()
        self.begun: list[int] = []
        self.since: dict[int, float] = {}

    def put_down(self, offset: int) -> None:
        self.hands.discard(offset)
        self.begun = [each for each in self.begun if each != offset]
        self.since.pop(offset, None)


class Sharing(Consumer):
    """A shared consumer. ``freed``: in which frame what was out ended to be so."""

    def __init__(self) -> None:
        super().__init__()
        self.seats: dict[int, Seat] = {}
        self.settled: set[int] = set()
        self.failed: dict[int, int] = {}
        self.due: dict[int, float] = {}
        self.alone: set[int] = set()
        self.freed: dict[int, int] = {}

    def settle(self, offset: int) -> None:
        self.settled.add(offset)
        self.failed.pop(offset, None)
        self.due.pop(offset, None)
        self.alone.discard(offset)
        while self.committed in self.settled:
            self.settled.discard(self.committed)
            self.committed += 1

    def move(self, offset: int) -> None:
        """(It moves by what is settled, only.)"""

    def is_settled(self, offset: int) -> bool:
        return offset < self.committed or offset in self.settled

    def is_done(self, offset: int) -> bool:
        """Settled, and not to come again."""
        parked = self.parked.get(offset)
        return self.is_settled(offset) and not (parked is not None and parked.redriven)

    def redrive(self, offsets: Sequence[int]) -> None:
        for offset in offsets:
            parked = self.parked.get(offset)
            if parked is not None and not parked.redriven and self.is_settled(offset):
                parked.redriven, parked.failures = True, 0

    def attempts(self, offset: int) -> int:
        parked = self.parked.get(offset)
        if parked is not None and parked.redriven:
            return parked.failures
        return self.failed.get(offset, 0)

    def count(self, offset: int, attempts: int) -> None:
        parked = self.parked.get(offset)
        if parked is not None and parked.redriven:
            parked.failures = attempts
        else:
            self.failed[offset] = attempts

    def leave(self, epoch: int, frame: int) -> Seat:
        seat = self.seats.pop(epoch)
        for offset in seat.hands:
            self.freed[offset] = frame
        return seat

    def clear(self) -> None:
        self.settled, self.failed, self.due, self.alone = set(), {}, {}, set()
        self.freed = {}


class SharedChecker(Checker):
    def __init__(self, *, always: bool) -> None:
        super().__init__(always=always)
        self.sharing: dict[str, Sharing] = {}
        self.keys: list[bytes | None] = []

    def run(self, entries: Sequence[Decision | Start | Given]) -> None:
        for self.at, entry in enumerate(entries):
            if isinstance(entry, Start):
                self._start(entry)
            elif isinstance(entry, Given):
                self._given(entry)
            elif entry.error is None:
                self._decision(entry)

    def _start(self, start: Start) -> None:
        super()._start(start)
        for sharing in self.sharing.values():
            sharing.freed = {}
            sharing.due = {}  # by the wall clock of then and now, which may have jumped
            for seat in sharing.seats.values():
                seat.peer = None
                seat.hands, seat.since = set(), {}

    def _decision(self, made: Decision) -> None:
        control = made.control
        name = getattr(control, "consumer", "")
        if name not in NAMES:
            super()._decision(made)
            if isinstance(control, protocol.Append) and any(
                isinstance(fact, facts.Appended) for fact in made.facts
            ):
                [asked] = made.waiting.batches
                keys = batch.decode(asked.header, bytes(asked.body)).keys
                self.keys += keys if keys is not None else [None] * asked.header.count
            return
        sharing = self.sharing.setdefault(name, Sharing())
        match control:
            case protocol.Claim():
                self._join(made, sharing, control)
            case protocol.Release() | Leave():
                self._go(made, sharing)
            case protocol.Evict():
                for epoch in list(sharing.seats):
                    sharing.leave(epoch, made.frame)
                self._raise_epoch(made, sharing)
            case Vanish() | Lapse():
                self._vanish(made, sharing, control)
            case protocol.SeekCursor():
                self._move(made, sharing, control)
            case protocol.CommitRecords():
                self._complete(made, sharing, control)
            case protocol.Settle():
                self._judge(made, sharing, control)
            case protocol.Extend(_, _, epoch, offset):
                seat = self._seat(made, sharing, epoch)
                if seat is not None and offset in seat.since:
                    seat.since[offset] = made.now
            case protocol.Redrive(_, _, offsets):
                sharing.redrive(sorted(sharing.parked) if offsets is None else offsets)
            case protocol.Resume():
                if sharing.paused:
                    sharing.succeed()
            case Unreadable():
                self.say(f"nothing is unreadable here: {control}")
            case _:
                pass

    # --- members ------------------------------------------------------------------------------

    def _raise_epoch(self, made: Decision, sharing: Sharing) -> None:
        for fact in made.facts:
            assert isinstance(fact, facts.Evicted | facts.Sought | facts.Joined)
            if fact.epoch <= sharing.epoch:
                self.say(f"epoch {sharing.epoch} is used again: {fact}")
            sharing.epoch = fact.epoch

    def _join(self, made: Decision, sharing: Sharing, control: protocol.Claim) -> None:
        peer, answer = made.waiting.peer, made.answer
        mine = [epoch for epoch, seat in sharing.seats.items() if seat.token == control.token]
        if any(isinstance(fact, facts.Joined) for fact in made.facts):
            if mine:
                self.say(f"{control} became a second member")
            self._raise_epoch(made, sharing)
            sharing.seats[sharing.epoch] = Seat(control.token, peer, control.hand_seconds)
            return
        if len(mine) != 1:
            self.say(f"{control} came back to {mine}")
            return
        [epoch] = mine
        seat = sharing.seats[epoch]
        seat.peer, seat.hand_seconds = peer, control.hand_seconds
        others = {o for e, other in sharing.seats.items() if e != epoch for o in other.hands}
        kept = set(answer.in_hand) if isinstance(answer, protocol.Claimed) else set()
        for offset in kept:
            if offset not in control.in_hand:
                self.say(f"{offset} is said to be in hand, and was not: {control}")
            if offset in others:
                self.say(f"{offset} is believed to be in hand, and another has it")
            if sharing.is_done(offset):
                self.say(f"{offset} is believed to be in hand, and is settled")
        for offset in seat.hands - kept:
            sharing.freed[offset] = 0
        seat.hands = kept
        seat.begun = [offset for offset in seat.begun if offset in kept]
        seat.since = dict.fromkeys(seat.begun, made.now)

    def _go(self, made: Decision, sharing: Sharing) -> None:
        peer = made.waiting.peer
        mine = [epoch for epoch, seat in sharing.seats.items() if seat.peer is peer]
        if bool(mine) != bool(made.facts):
            self.say(f"{made.control} with {made.facts}, and holds {mine}")
        for epoch in mine:
            if isinstance(made.control, Leave):
                sharing.seats[epoch].peer = None
            else:
                sharing.leave(epoch, made.frame)

    def _vanish(self, made: Decision, sharing: Sharing, control: Vanish | Lapse) -> None:
        """Of several in hand none is counted, and each is delivered alone. What another has settled
        since is nobody's fault: after a start in which the end of a claim was lost, it came back
        with what it had been given when that claim ended.
        """
        if not made.facts:
            return
        [fact] = made.facts
        assert isinstance(fact, facts.Vanished)
        seat = sharing.seats[control.epoch]
        if isinstance(control, Vanish):
            if seat.peer is not None:
                self.say(f"{control.epoch} is there, and is said to have vanished")
            begun = [offset for offset in seat.begun if not sharing.is_done(offset)]
            if len(begun) == 1:
                sharing.count(begun[0], sharing.attempts(begun[0]) + 1)
            sharing.alone.update(begun)
        else:
            seconds = seat.hand_seconds
            late = [
                o
                for o, since in seat.since.items()
                if seconds and made.now >= since + seconds - SLACK
            ]
            if not late:
                self.say(f"a lapse at {made.now}: {seat.since} for {seconds}")
            for offset in late:
                sharing.count(offset, sharing.attempts(offset) + 1)
        for offset in seat.begun:
            sharing.due.pop(offset, None)
        sharing.leave(control.epoch, made.frame)

    def _move(self, made: Decision, sharing: Sharing, control: protocol.SeekCursor) -> None:
        if any(seat.peer is not None for seat in sharing.seats.values()) and not control.force:
            self.say(f"a seek under members, without force: {control}")
        self._raise_epoch(made, sharing)
        for epoch in list(sharing.seats):
            sharing.leave(epoch, made.frame)
        [fact] = made.facts
        assert isinstance(fact, facts.Sought)
        sharing.clear()
        sharing.committed = fact.offset
        for offset, parked in sharing.parked.items():
            parked.redriven = parked.redriven and offset < fact.offset

    # --- verdicts -----------------------------------------------------------------------------

    def _seat(self, made: Decision, sharing: Sharing, epoch: int) -> Seat | None:
        seat = sharing.seats.get(epoch)
        if seat is None or seat.peer is not made.waiting.peer:
            self.say(f"accepted from one who is no member at that moment: {made.control}")
            return None
        return seat

    def _complete(self, made: Decision, sharing: Sharing, control: protocol.CommitRecords) -> None:
        seat = self._seat(made, sharing, control.epoch)
        if seat is None:
            return
        done = [
            offset
            for begin, end in zip(control.done[::2], control.done[1::2], strict=True)
            for offset in range(begin, end)
            if not sharing.is_settled(offset)
        ]
        for offset in done:
            if offset not in seat.hands:
                self.say(f"{offset} was settled by one that has it not: {control}")
            self._settle_one(made, sharing, offset)
            seat.put_down(offset)
        for offset in control.begun:
            if offset not in seat.hands:
                self.say(f"{offset} is begun by one that has it not: {control}")
        seat.begun = list(control.begun)
        since = {} if control.anew else seat.since
        seat.since = {offset: since.get(offset, made.now) for offset in control.begun}
        for offset in set(control.back) & seat.hands - set(control.begun):
            seat.hands.discard(offset)
        if done:
            if not made.facts:
                self.say(f"accepted, and not kept: {control}")
            sharing.succeed()

    def _settle_one(self, made: Decision, sharing: Sharing, offset: int) -> None:
        """Of a key's records, the ones before it are settled before."""
        key = self.keys[offset]
        before = [
            other
            for other in range(sharing.committed, offset)
            if self.keys[other] == key and not sharing.is_settled(other)
        ]
        if key is not None and before and self.always:
            self.say(f"{offset} was settled before {before}, of the same key")
        sharing.freed[offset] = made.frame
        sharing.settle(offset)

    def _judge(self, made: Decision, sharing: Sharing, control: protocol.Settle) -> None:
        seat = self._seat(made, sharing, control.epoch)
        offset = control.offset
        if seat is None or not made.facts:
            return  # (a repeated one)
        if offset not in seat.hands:
            self.say(f"a verdict of one that has it not: {control}")
        seat.put_down(offset)
        sharing.freed[offset] = made.frame
        [fact] = made.facts
        match fact:
            case facts.Failed(attempts=attempts):
                if attempts > sharing.attempts(offset) + 1 and self.always:
                    self.say(f"{attempts} attempts after {sharing.attempts(offset)}: {control}")
                sharing.count(offset, attempts)
                sharing.due[offset] = made.now + control.delay
            case facts.Parked():
                if not sharing.is_settled(offset):
                    self._settle_one(made, sharing, offset)
                sharing.alone.discard(offset)
                self._park(sharing, control, offset)
            case facts.Unparked():
                sharing.alone.discard(offset)
                del sharing.parked[offset]
                sharing.succeed()
            case _:
                self.say(f"a verdict became {fact}")

    def _given(self, given: Given) -> None:
        sharing, assigned = self.sharing[given.consumer], given.assigned
        seat = sharing.seats.get(given.epoch)
        hands = [offset for each in sharing.seats.values() for offset in each.hands]
        if seat is None:
            return  # its claim is ended, which is carried out when that is durable
        failed = dict(zip(assigned.failed[::2], assigned.failed[1::2], strict=True))
        for offset in assigned.offsets:
            parked = sharing.parked.get(offset)
            redriven = parked is not None and parked.redriven
            if offset in hands:
                self.say(f"{offset} is given, and is in somebody's hands")
            if sharing.is_settled(offset) != redriven or redriven != (offset in assigned.redriven):
                self.say(f"{offset} is given: settled, redriven as {assigned.redriven}: {redriven}")
            if failed.get(offset, 0) != sharing.attempts(offset):
                self.say(f"{offset} failed {sharing.attempts(offset)} times, and is said {failed}")
            if given.now < sharing.due.get(offset, 0.0) - SLACK:
                self.say(f"{offset} is given at {given.now}, due at {sharing.due[offset]}")
            key = self.keys[offset]
            same = [o for o, k in enumerate(self.keys) if k == key or o == offset]
            if key is None:
                same = [offset]
            if others := [o for o in hands if o in same]:
                self.say(f"{offset} is given, and {others}, of the same key, is in hand")
            if late := [o for o in same if sharing.freed.get(o, 0) > given.landed]:
                self.say(f"{offset} is given before it is durable what became of {late}")
            suspects = sharing.alone & {offset, *seat.hands}
            if suspects and seat.hands:
                self.say(f"{offset} is given beside {seat.hands}: suspects are {suspects}")
            if sharing.paused and hands:
                self.say(f"{offset} is given beside {hands}, and the consumer is paused")
            seat.hands.add(offset)
            hands.append(offset)

    # --- the end ------------------------------------------------------------------------------

    def compare(
        self, log: state.Log, values: Sequence[bytes | None], copies: Sequence[bytes | None]
    ) -> None:
        super().compare(log, values, copies)
        for name, sharing in self.sharing.items():
            cursor, shared = log.cursors.get(name), log.shared(name)
            if cursor is None or shared is None:
                if sharing.epoch:
                    self.say(f"{name} is lost")
                continue
            ranges = zip(shared.settled[::2], shared.settled[1::2], strict=True)
            found = {
                "floor": cursor.committed,
                "settled": {o for begin, end in ranges for o in range(begin, end)},
                "epoch": cursor.epoch,
                "members": {epoch: each.begun for epoch, each in shared.members.items()},
                "failed": {o: failure.attempts for o, failure in shared.failed.items()},
                "alone": shared.alone,
                "parked": {
                    o: (p.redriven, p.redriven and p.attempts) for o, p in cursor.parked.items()
                },
                "paused": cursor.paused is not None,
            }
            wanted = {
                "floor": sharing.committed,
                "settled": sharing.settled,
                "epoch": sharing.epoch,
                "members": {epoch: seat.begun for epoch, seat in sharing.seats.items()},
                "failed": sharing.failed,
                "alone": sharing.alone,
                "parked": {
                    o: (p.redriven, p.redriven and p.failures) for o, p in sharing.parked.items()
                },
                "paused": sharing.paused,
            }
            for what, value in found.items():
                if value != wanted[what]:
                    self.say(f"{name}: {what}: {value}, and not {wanted[what]}")


def run(seed: int, *, trace: bool = False) -> tuple[list[str], Counter[str]]:
    plan = SharedPlan(seed, trace=trace)
    return plan.run(), plan.counts


if __name__ == "__main__":
    logging.disable(logging.CRITICAL)
    found, _ = run(int(sys.argv[1]), trace=True)
    print("\n".join(found) or "nothing is wrong")

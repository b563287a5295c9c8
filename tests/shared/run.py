"""A dispatch and the state that it stands on, moved at random beside a model of both.

Decisions are made as the broker makes them: the fact is applied at once, and what is done when it
is durable waits for ``land``. What a membership does is done by hand: it looks up batches and keys.

``python -m tests.shared.run SEED`` prints what one seed does.
"""

from __future__ import annotations

import copy
import random
import sys
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from rlog import facts, state
from rlog.dispatch import Dispatch, Loss, Lot, Mate
from rlog_client.batch import Header
from rlog_client.errors import CorruptData, Gap
from tests.shared.model import At, Entry, Model

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from rlog.shared import Shared

LOG, NAME = 1, "c"
AWAIT_SECONDS = 5.0
KEYS = (
    (None,),
    (b"a", b"b"),
    (None, b"a", b"b", b"c"),
    tuple(b"%d" % n for n in range(40)),
    (b"x" * 65, b"x" * 66, b"a"),
)


class Batch(NamedTuple):
    header: Header
    keys: list[bytes | None] | None
    damaged: bool

    @property
    def lot(self) -> Lot:
        return Lot(self.header.base, self.header.end, (0, 0), 100 * self.header.base, 90)


class Life(NamedTuple):
    """What is durable."""

    raw: bytes
    model: Model


class Run:
    def __init__(self, seed: int, *, caps: tuple[int, int] | None = None, trace: bool = False):
        """``caps``: of ranges and of failed records, where they are small."""
        self.rng = random.Random(seed)
        self.trace, self.caps = trace, caps
        self.now = 100.0
        self.state = state.State()
        self.state.apply(facts.Created(LOG, "log", facts.Options()), 0)
        self.model = Model()
        self.batches: list[Batch] = []
        self.first = 0
        self.effects: list[Callable[[], None]] = []
        self.believed: dict[int, dict[int, None]] = {}  # what each member's client has in hand
        self.connected: set[int] = set()
        self.keys = self.rng.choice(KEYS)
        self.damages = self.rng.random() < 0.4
        self.fact(facts.Joined(LOG, NAME, 1, b"1", "m", 0))
        self.begin(1)
        self.group = Dispatch(self.cursor)
        self.group.join(1, None)
        self.life = self.durable()

    # --- shorthands ---------------------------------------------------------------------------

    @property
    def cursor(self) -> state.Cursor:
        return self.state.logs[LOG].cursors[NAME]

    @property
    def shared(self) -> Shared:
        found = self.cursor.shared
        assert found is not None
        return found

    @property
    def end(self) -> int:
        return len(self.model.entries)

    def fact(self, fact: facts.Fact) -> None:
        if self.trace:
            print(f"{self.now:8.2f} {fact}")
        self.state.apply(fact, int(self.now * 1e9))

    def begin(self, epoch: int) -> None:
        self.believed[epoch] = {}
        self.connected.add(epoch)

    def durable(self) -> Life:
        return Life(state.dump(self.state), copy.deepcopy(self.model))

    def land(self) -> None:
        effects, self.effects = self.effects, []
        for effect in effects:
            effect()
        self.life = self.durable()

    def mate(self, epoch: int) -> Mate:
        return self.group.mates[epoch]

    def busy(self) -> list[tuple[int, Entry]]:
        """What those who are there may settle."""
        return [
            (epoch, self.model.entries[offset])
            for epoch in sorted(self.connected & set(self.group.mates) & set(self.shared.members))
            for offset in self.mate(epoch).hands
        ]

    # --- the steps ----------------------------------------------------------------------------

    def run(self, steps: int = 150) -> None:
        ways = (
            (self.append, 8), (self.ask, 30), (self.complete, 14), (self.fail, 5), (self.park, 4),
            (self.redrive, 4), (self.give_back, 3), (self.start, 8), (self.lose, 3),
            (self.come_back, 4), (self.vanish, 2), (self.release, 1), (self.evict, 0.7),
            (self.join, 3), (self.seek, 0.5), (self.trim, 1), (self.wait, 10), (self.land, 25),
            (self.restart, 1.2),
        )  # fmt: skip
        for way in self.rng.choices([w for w, _ in ways], [n for _, n in ways], k=steps):
            if self.trace:
                print(f"         {way.__name__}")
            way()
            self.check()
        self.drain()

    def append(self) -> None:
        count = self.rng.randint(1, 6)
        keys = [self.rng.choice(self.keys) for _ in range(count)]
        damaged = self.damages and self.rng.random() < 0.2
        header = Header(count, 0, 0, 0, 0, 0, 0, LOG, self.end, 0)
        has_keys = any(key is not None for key in keys)
        self.batches.append(Batch(header, keys if has_keys else None, damaged))
        for offset, key in enumerate(keys, self.end):
            self.model.entries.append(Entry(offset, key, gone=damaged))
        self.land()  # (what is visible is durable)

    def batch_at(self, offset: int) -> Batch:
        return next(b for b in self.batches if b.header.base <= offset < b.header.end)

    def ask(self) -> None:
        """A member wants some: what ``Membership`` does."""
        epochs = sorted(self.connected & set(self.group.mates))
        if not epochs:
            return
        epoch = self.rng.choice(epochs)
        mate, group = self.mate(epoch), self.group
        group.trimmed(self.first, self.gap)
        if (loss := group.next_loss(mate)) is not None:
            assert not group.awaiting
            self.pass_over(epoch, loss)
            return
        count = self.rng.randint(1, 4)
        end = self.rng.choice((None, None, self.rng.randint(0, self.end)))
        if given := group.assign(mate, count, end):
            self.given(epoch, given, count, end)
        elif group.awaiting:
            pass
        elif group.unknown is not None:
            self.look_up(group.unknown)
        elif (at := group.scan_at(self.end)) is not None:
            self.scan(at)
        elif end is None and not self.effects:
            self.check_nothing_is_kept_back(epoch)

    def gap(self, begin: int, end: int) -> Gap:
        return Gap("removed", first=begin, end=end)

    def scan(self, at: int) -> None:
        batch = self.batch_at(at)
        if batch.damaged:
            error = CorruptData("damaged", log="log", first=at, end=batch.header.end)
            self.group.skip(Loss(at, batch.header.end, error))
        else:
            self.group.feed(batch.header, batch.keys, batch.lot)
            self.looked_up(batch)

    def looked_up(self, batch: Batch) -> None:
        for entry in self.model.entries[batch.header.base : batch.header.end]:
            entry.looked_up = True

    def look_up(self, offset: int) -> None:
        batch = self.batch_at(offset)
        end = max(batch.header.end, self.first if offset < self.first else 0)
        for entry in self.model.entries[batch.header.base : end]:
            in_hand = entry.at is At.HAND or not entry.sure  # or was, and nobody may say so yet
            if entry.gone and in_hand and not entry.looked_up:
                entry.key = None  # nobody can tell any more
        if offset < self.first:
            self.unreadable(self.group.unreadable(offset, self.first), keep=False)
        elif batch.damaged:
            self.unreadable(self.group.unreadable(batch.header.base, batch.header.end), keep=True)
        else:
            self.group.known(batch.header, batch.keys)
            self.looked_up(batch)

    def unreadable(self, offsets: Iterable[int], *, keep: bool) -> None:
        for offset in offsets:
            entry = self.model.entries[offset]
            assert entry.redriven
            assert entry.gone
            if keep:
                self.fact(facts.Parked(LOG, NAME, 0, offset, 1, "", "", "", None, True, 0))
            else:
                self.fact(facts.Unparked(LOG, NAME, 0, offset))
            if not keep:
                self.model.paused = False
            entry.settle(parked=keep)
            self.effects.append(partial(self.group.forget_redriven, offset))

    def given(self, epoch: int, given: list[int], count: int, end: int | None) -> None:
        assert len(given) <= count
        self.say(f"{epoch} is given {given}")
        for offset in given:
            entry = self.model.entries[offset]
            assert not (why := self.model.why_not(entry, epoch)), why
            assert end is None or offset < end or entry.redriven
            entry.at, entry.holder = At.HAND, epoch
            self.believed[epoch][offset] = None
        removed = [o for o in given if o < self.first]
        if removed:
            self.removed(epoch, removed)

    def removed(self, epoch: int, offsets: list[int]) -> None:
        """It was trimmed before it could be sent."""
        again = [offset for offset in offsets if self.group.is_redriven(offset)]
        self.group.settled(offsets)
        for offset in offsets:
            self.model.entries[offset].free()
            del self.believed[epoch][offset]
        for offset in set(offsets).difference(again):
            loss = Loss(offset, offset + 1, self.gap(offset, offset + 1))
            self.mate(epoch).losses.append(loss)
            self.pass_over(epoch, loss)
        self.unreadable(again, keep=False)

    def say(self, text: str) -> None:
        if self.trace:
            print(f"         {text}")

    # --- verdicts -----------------------------------------------------------------------------

    def pass_over(self, epoch: int, loss: Loss) -> None:
        """Who is told of something that nobody can have passes over it."""
        self.say(f"{epoch} is told of {loss.begin} to {loss.end}")
        assert self.group.has(self.mate(epoch), loss.begin, loss.end)
        for entry in self.model.entries[loss.begin : loss.end]:
            assert entry.gone
            assert entry.at in (At.FREE, At.LATE)
            assert not entry.redriven
        self.settle(epoch, [(loss.begin, loss.end)])

    def settle(self, epoch: int, done: list[tuple[int, int]]) -> None:
        begun = [
            o for o in self.shared.members[epoch].begun if not any(b <= o < e for b, e in done)
        ]
        flat = [bound for pair in done for bound in pair]
        self.fact(facts.Completed(LOG, NAME, epoch, flat, begun))
        self.resume()
        offsets = self.group.put_down(self.mate(epoch), done)
        self.later(offsets, epoch)
        for begin, end in done:
            for offset in range(begin, end):
                if not self.model.entries[offset].redriven:
                    self.model.entries[offset].settle()

    def later(self, offsets: list[int], epoch: int) -> None:
        for offset in offsets:
            self.model.entries[offset].sure = False

        def effect() -> None:
            self.group.settled(offsets)
            for offset in offsets:
                self.model.entries[offset].sure = True
                self.believed.get(epoch, {}).pop(offset, None)

        self.effects.append(effect)

    def complete(self) -> None:
        if not (busy := [each for each in self.busy() if not each[1].redriven]):
            return
        epoch = self.rng.choice(busy)[0]
        mine = sorted(entry.offset for other, entry in busy if other == epoch)
        some = sorted(self.rng.sample(mine, self.rng.randint(1, len(mine))))
        self.settle(epoch, [(offset, offset + 1) for offset in some])

    def start(self) -> None:
        if not (busy := self.busy()):
            return
        epoch = self.rng.choice(busy)[0]
        mine = sorted(entry.offset for other, entry in busy if other == epoch)
        begun = mine[: self.rng.randint(0, len(mine))]
        self.fact(facts.Completed(LOG, NAME, epoch, [], begun))
        self.group.begin(self.mate(epoch), begun, 0, self.now, anew=False)

    def fail(self) -> None:
        if not (busy := self.busy()):
            return
        epoch, entry = self.rng.choice(busy)
        delay = self.rng.choice((0.0, 0.5, 20.0))
        entry.attempts += 1
        attempts, due = entry.attempts, self.now + delay
        self.fact(facts.Failed(LOG, NAME, epoch, entry.offset, attempts, "E", round(delay * 1e9)))
        mate = self.mate(epoch)
        assert self.group.put_down(mate, [(entry.offset, entry.offset + 1)])
        entry.at, entry.holder, entry.due = At.LATE, None, due
        entry.sure = False

        def effect() -> None:
            self.group.failed(entry.offset, mate, due)
            entry.sure = True
            self.believed.get(epoch, {}).pop(entry.offset, None)

        self.effects.append(effect)

    def park(self) -> None:
        """Or, of a redriven one, commit."""
        if not (busy := self.busy()):
            return
        epoch, entry = self.rng.choice(busy)
        if entry.redriven and self.rng.random() < 0.6:
            self.fact(facts.Unparked(LOG, NAME, epoch, entry.offset))
            parked = False
        else:
            pause = "why" if self.rng.random() < 0.15 else self.cursor.paused
            self.fact(facts.Parked(LOG, NAME, epoch, entry.offset, 1, "", "", "", pause, True, 0))
            parked = True
        if parked:
            self.model.paused = self.cursor.paused is not None
        else:
            self.resume()
        offsets = self.group.put_down(self.mate(epoch), [(entry.offset, entry.offset + 1)])
        assert offsets == [entry.offset]
        self.later(offsets, epoch)
        entry.settle(parked=parked)

    def resume(self) -> None:
        self.model.paused = False
        self.effects.append(lambda: self.group.recall())

    def redrive(self) -> None:
        offsets = [e.offset for e in self.model.entries if e.parked and not e.redriven]
        offsets = [o for o in offsets if self.cursor.is_settled(o)]
        if not offsets:
            return
        some = sorted(self.rng.sample(offsets, self.rng.randint(1, len(offsets))))
        self.fact(facts.Redriven(LOG, NAME, some))
        for offset in some:
            entry = self.model.entries[offset]
            entry.redriven, entry.at, entry.attempts = True, At.FREE, 0
            entry.gone = entry.offset < self.first or self.batch_at(offset).damaged
        self.effects.append(lambda: self.group.recall())

    def give_back(self) -> None:
        busy = [
            (epoch, entry)
            for epoch, entry in self.busy()
            if entry.offset not in self.shared.members[epoch].begun
        ]
        if not busy:
            return
        epoch, entry = self.rng.choice(busy)
        self.group.give_back(self.mate(epoch), [entry.offset])
        entry.free()
        del self.believed[epoch][entry.offset]

    # --- members ------------------------------------------------------------------------------

    def join(self) -> None:
        if len(self.shared.members) < 4:
            epoch = self.cursor.epoch + 1
            self.fact(facts.Joined(LOG, NAME, epoch, b"%d" % epoch, "m", 0))

            def effect() -> None:
                if epoch in self.shared.members:
                    self.group.join(epoch, None)
                    self.begin(epoch)

            self.effects.append(effect)

    def lose(self) -> None:
        here = sorted(self.connected & set(self.shared.members))
        if not here:
            return
        epoch = self.rng.choice(here)
        self.connected.discard(epoch)
        self.fact(facts.Left(LOG, NAME, epoch))
        mate = self.group.mates.get(epoch)
        if mate is not None:
            self.effects.append(lambda: self.group.away(mate))

    def come_back(self) -> None:
        away = sorted(set(self.shared.members) & set(self.group.mates) - self.connected)
        if away:
            self.back(self.rng.choice(away))

    def back(self, epoch: int) -> None:
        awaited = self.group.awaiting and self.mate(epoch).away
        in_hand = list(self.believed[epoch])
        dropped = [o for o in in_hand if self.rng.random() < 0.1]
        asked = [o for o in in_hand if o not in dropped]
        liar = not self.caps and self.rng.random() < 0.3
        lies = [self.rng.randrange(-2, self.end + 3) for _ in range(3)] if liar else []
        self.fact(facts.Returned(LOG, NAME, epoch))
        kept = self.group.back(epoch, None, [*asked, *lies], self.end)
        self.say(f"{epoch} is back with {asked} and {lies}, and keeps {kept}")
        assert len(kept) == len(set(kept))
        for entry in self.model.hands(epoch):
            if entry.offset not in kept:
                entry.free()
        for offset in kept:
            entry = self.model.entries[offset]
            assert entry.holder in (None, epoch), f"{offset} is in the hands of {entry.holder}"
            assert entry.at is not At.DONE, f"{offset} is done with"
            assert entry.holder == epoch or awaited, f"nobody gave it {offset}"
            entry.at, entry.holder = At.HAND, epoch
        for offset in asked:
            entry = self.model.entries[offset]
            mine = entry.at in (At.FREE, At.LATE) and entry.sure and not entry.parked
            assert offset in kept or not (awaited and mine), f"{epoch} lost {offset}"
        begun = [o for o in self.shared.members[epoch].begun if o in kept]
        self.fact(facts.Completed(LOG, NAME, epoch, [], begun))
        self.believed[epoch] = dict.fromkeys(kept)
        self.connected.add(epoch)

    def vanish(self) -> None:
        if self.group.awaiting:
            return
        for epoch in self.group.overstayed():
            self.end_of(epoch)

    def end_of(self, epoch: int) -> None:
        """It vanished."""
        member = self.shared.members.get(epoch)
        if member is None or epoch in self.connected:
            return
        begun = [o for o in member.begun if self.model.entries[o].at is not At.DONE]
        self.fact(facts.Vanished(LOG, NAME, epoch, [], "E"))
        for offset in begun:
            self.model.entries[offset].alone = True
        if len(begun) == 1:
            self.model.entries[begun[0]].attempts += 1
        self.ended(epoch)

    def ended(self, epoch: int) -> None:
        self.connected.discard(epoch)

        def effect() -> None:
            self.group.gone(epoch)
            for entry in self.model.hands(epoch):
                entry.free()
            self.believed.pop(epoch, None)

        self.effects.append(effect)

    def release(self) -> None:
        if len(self.connected) > 1 and (here := self.connected & set(self.shared.members)):
            epoch = self.rng.choice(sorted(here))
            self.fact(facts.Released(LOG, NAME, epoch))
            self.ended(epoch)

    def evict(self) -> None:
        epochs = list(self.shared.members)
        self.fact(facts.Evicted(LOG, NAME, self.cursor.epoch + 1, False, None))
        for epoch in epochs:
            self.ended(epoch)

    def seek(self) -> None:
        to = self.rng.randint(self.first, self.end)
        epochs = list(self.shared.members)
        self.fact(facts.Sought(LOG, NAME, self.cursor.epoch + 1, to, False))
        self.group.move()
        for epoch in self.group.mates:
            assert not self.group.assign(self.mate(epoch), 4, None), "that is not durable yet"
        for epoch in epochs:
            self.ended(epoch)
        self.effects.append(lambda: self.group.clear())
        self.land()
        for entry in self.model.entries:
            if entry.offset >= to:
                entry.at, entry.attempts = At.FREE, 0
                entry.redriven = entry.alone = False
            elif not entry.redriven:
                entry.settle(parked=entry.parked)
            elif entry.at is At.LATE:
                # The dispatch has forgotten the delay of one that a seek has passed.
                entry.free()
            entry.alone = False
        self.life = self.durable()

    def trim(self) -> None:
        self.land()
        first = self.rng.randint(self.first, self.end)
        self.first = next((b.header.base for b in self.batches if b.header.end > first), self.end)
        for entry in self.model.entries[: self.first]:
            entry.gone = True
        self.life = self.durable()

    # --- time, and the end of a life ----------------------------------------------------------

    def wait(self) -> None:
        self.now += self.rng.choice((0.1, 0.6, 3.0, 25.0))
        self.ring()

    def ring(self) -> None:
        if self.group.alarm > self.now:
            return
        late, missing = self.group.ring(self.now)
        assert not late
        assert self.group.alarm > self.now
        for entry in self.model.entries:
            if entry.at is At.LATE and entry.sure and entry.due <= self.now:
                entry.free()
        for epoch in missing:
            self.end_of(epoch)

    def restart(self) -> None:
        """A crash: what was not durable is gone, but not what clients have in their hands."""
        self.effects = []
        self.state, self.model = state.load(self.life.raw), copy.deepcopy(self.life.model)
        self.fact(facts.Opened())
        for member in self.shared.members.values():
            assert not member.held
        dues = {}
        for entry in self.model.entries:
            entry.sure = True
            entry.gone = entry.gone or entry.offset < self.first
            entry.looked_up = False
            if entry.at is At.HAND:
                entry.free()
            if entry.at is At.LATE and entry.due > self.now:
                dues[entry.offset] = entry.due
            elif entry.at is At.LATE:
                entry.free()
        self.connected = set()
        self.group = Dispatch(self.cursor)
        self.group.begin_life(self.shared.members, self.now + AWAIT_SECONDS, dues)
        self.believed = {epoch: self.believed.get(epoch, {}) for epoch in self.shared.members}
        self.land()

    def drain(self) -> None:
        """Whoever is left settles all there is: nothing is lost on the way."""
        self.wait()
        self.land()
        for epoch in [epoch for epoch in self.shared.members if epoch not in self.connected]:
            if epoch in self.group.mates:
                self.back(epoch)
        while len(self.shared.members) < 1:
            self.join()
            self.land()
        for _ in range(40 * (self.end + 10)):
            self.ask()
            while self.rng.random() < 0.7 and self.busy():
                self.rng.choice((self.complete, self.finish_redriven))()
            self.land()
            self.now += 1.0
            self.ring()
            self.check()
            if self.cursor.committed == self.end and self.cursor.redriven is None:
                return
        raise AssertionError(f"{self.cursor.committed} of {self.end} are settled: {self.cursor}")

    def finish_redriven(self) -> None:
        for epoch, entry in self.busy():
            if entry.redriven:
                self.fact(facts.Unparked(LOG, NAME, epoch, entry.offset))
                self.resume()
                span = [(entry.offset, entry.offset + 1)]
                self.later(self.group.put_down(self.mate(epoch), span), epoch)
                entry.settle()
                return

    # --- what holds after every step ----------------------------------------------------------

    def check(self) -> None:
        cursor, shared, group = self.cursor, self.shared, self.group
        assert cursor.committed == self.model.floor
        assert self.model.paused == (cursor.paused is not None)
        for entry in self.model.entries:
            offset = entry.offset
            settled = entry.at is At.DONE or entry.redriven
            assert cursor.is_settled(offset) == settled, offset
            assert cursor.attempts_of(offset) == (
                entry.attempts if not entry.parked or entry.redriven or not settled else 0
            )
            assert (offset in shared.alone) == entry.alone, offset
            if entry.at is At.LATE and entry.sure:
                assert group.alarm <= entry.due, f"nobody is woken for {offset}"
        if self.caps is not None:
            assert len(shared.settled) // 2 <= self.caps[0]
            assert len(shared.failed) <= self.caps[1]
        for epoch, member in shared.members.items():
            for offset in member.begun:
                # (Who is away may have lost it to one that lied.)
                assert epoch not in self.connected or self.model.entries[offset].at is At.HAND

    def check_nothing_is_kept_back(self, epoch: int) -> None:
        """What nobody gets though nothing stands in its way would be for ever."""
        capped = self.caps is not None or self.group.held_back is not None
        if capped or self.group.head < self.end:
            return
        late = {entry.key for entry in self.model.entries if entry.at is At.LATE} - {None}
        free = [
            entry
            for entry in self.model.entries
            if not entry.gone and not self.model.why_not(entry, epoch) and entry.key not in late
        ]
        # (Where a suspect is the next, whoever has something in hand is to be through first.)
        if self.model.hands(epoch) and any(e.alone and e.at is At.FREE for e in self.model.entries):
            return
        assert not free, f"{epoch} might have {[entry.offset for entry in free]}"


if __name__ == "__main__":
    Run(int(sys.argv[1]), trace=True).run()

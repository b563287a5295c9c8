"""The history checker: the decisions of a whole history, replayed against the rules of the design.

It shares no code with the state: what it knows of a consumer or a producer follows from who asked
for what and what was granted. One pass, O(n). A violation is a sentence.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rlog import facts
from rlog.decisions import Leave
from rlog.decisions.desk import FIRST_RIGHT_SECONDS, Lapse
from rlog_client import batch, protocol
from rlog_client.model import PRODUCER_ID
from tests.schedules.record import Decision, Given, Start
from tests.schedules.world import LOG

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rlog import state

SILENT_SECONDS = 3600.0
REMEMBERED = 64
SLACK = 1e-6


class Claimable:
    """Who holds something, as far as was granted. ``peer`` None: its connection is gone."""

    def __init__(self) -> None:
        self.epoch = 0
        self.token: bytes | None = None  # of whoever may come back
        self.peer: object | None = None
        self.first_right = 0.0

    def end(self) -> None:
        self.token = self.peer = None
        self.first_right = 0.0


class Parked:
    def __init__(self) -> None:
        self.redriven = False
        self.failures = 0
        self.copied = False


class Consumer(Claimable):
    def __init__(self) -> None:
        super().__init__()
        self.committed = 0
        self.begun = 0
        self.hand: int | None = None
        self.hand_since: float | None = None
        self.hand_seconds: float | None = None
        self.failures = 0
        self.parked: dict[int, Parked] = {}
        self.streak: list[int] = []
        self.cause = ""
        self.paused = False

    def put_down(self) -> None:
        self.begun, self.hand, self.hand_since = 0, None, None

    def end(self) -> None:
        super().end()
        self.put_down()

    def vanish(self) -> None:
        """Only a record that was begun fails, and only if it was the only one."""
        if self.hand is not None and self.hand in self.parked:
            self.parked[self.hand].failures += 1
        elif self.begun == self.committed + 1:
            self.failures += 1
        self.put_down()

    def move(self, offset: int) -> None:
        if offset != self.committed:
            self.committed, self.failures = offset, 0

    def redrive(self, offsets: Sequence[int]) -> None:
        for offset in offsets:
            parked = self.parked.get(offset)
            if parked is not None and not parked.redriven and offset < self.committed:
                parked.redriven, parked.failures = True, 0

    def succeed(self) -> None:
        if self.paused:
            self.redrive(self.streak)
        self.paused, self.streak, self.cause = False, [], ""


class Producer:
    def __init__(self) -> None:
        self.last = -1
        self.offsets: dict[int, int] = {}  # sequence -> offset
        self.batches: list[int] = []  # their first sequences
        self.name: str | None = None
        self.epoch = 0
        self.exclusive = False
        self.heard = 0.0


class Checker:
    def __init__(self, *, always: bool, protected: str = "") -> None:
        """``always``: every frame is synced. ``protected``: a consumer."""
        self.always = always
        self.protected = protected
        self.first = 0
        self.wrong: list[str] = []
        self.values: list[bytes] = []
        self.copies: list[bytes] = []  # of the other log, which only transactions append to
        self.transactions: dict[tuple[int, int], list[tuple[int, int]]] = {}  # that were done
        self.clients: dict[int, float] = {}  # when their last ones were
        self.consumers: dict[str, Consumer] = {}
        self.owner = Claimable()
        self.producers: dict[int, Producer] = {}
        self.began = 0.0
        self.at = 0

    def say(self, text: str) -> None:
        self.wrong.append(f"decision {self.at}: {text}")

    def run(self, entries: Sequence[Decision | Start | Given]) -> None:
        for self.at, entry in enumerate(entries):
            if isinstance(entry, Start):
                self._start(entry)
                continue
            if not isinstance(entry, Decision):
                continue
            self._trims(entry)
            if entry.error is None:
                self._decision(entry)

    # --- lives --------------------------------------------------------------------------------

    def _start(self, start: Start) -> None:
        for lost in start.lost:
            if isinstance(lost, Decision) and lost.heard and self._is_missed(lost):
                self.say(f"{lost.control} was answered {lost.answer} and is lost")
        self.began = start.now
        for claim in (self.owner, *self.consumers.values()):
            claim.peer = None
            if claim.token is not None:
                claim.first_right = start.now + FIRST_RIGHT_SECONDS
            if isinstance(claim, Consumer):
                claim.hand_since = None
        for producer in self.producers.values():
            producer.heard = start.now
        self.clients = dict.fromkeys(self.clients, start.now)

    def _is_missed(self, lost: Decision) -> bool:
        """Its answer promised that what it did, or what it repeated, is on the disk."""
        answer = lost.answer
        if isinstance(answer, protocol.Appended):
            return answer.synced and answer.end > len(self.values)
        if isinstance(lost.control, protocol.Transact) and isinstance(answer, protocol.Transacted):
            logs = [each.log for each in lost.control.appends]
            ends = [end for _first, end in answer.appends]
            gone = any(end > len(self._of(log)) for log, end in zip(logs, ends, strict=True))
            return answer.synced and (gone or bool(lost.facts))
        if isinstance(answer, protocol.Committed | protocol.Judged):
            return answer.synced and bool(lost.facts)
        # These say nothing of it: they are as durable as the log's policy makes them.
        kept_by_policy = facts.Took | facts.Redriven | facts.Resumed
        return any(self.always or not isinstance(fact, kept_by_policy) for fact in lost.facts)

    # --- trims --------------------------------------------------------------------------------

    def _trims(self, made: Decision) -> None:
        """Taken out of what was decided: they come with any request, also with one refused."""
        for fact in made.facts:
            if isinstance(fact, facts.Trimmed):
                self._trim(fact)
        made.facts = [fact for fact in made.facts if not isinstance(fact, facts.Trimmed)]

    def _trim(self, fact: facts.Trimmed) -> None:
        if not self.first <= fact.first <= len(self.values):
            self.say(f"{fact}, in a log from {self.first} to {len(self.values)}")
        for name, offset, copy in fact.copies:
            self.consumers[name].parked[offset].copied = True
            if value_of(copy) != self.values[offset]:
                self.say(f"{name}: the copy of parked record {offset} is of another one")
        for name, consumer in self.consumers.items():
            for offset, parked in consumer.parked.items():
                if self.first <= offset < fact.first and not parked.copied:
                    self.say(
                        f"{name}: parked record {offset} lost its place: trimmed to {fact.first}"
                    )
        if self.protected:
            guard = self.consumers.get(self.protected)
            if fact.first > (guard.committed if guard is not None else 0):
                self.say(f"trimmed to {fact.first}, past protected {self.protected}")
        self.first = fact.first

    # --- decisions ----------------------------------------------------------------------------

    def _decision(self, made: Decision) -> None:
        match made.control:
            case protocol.Claim():
                self._claim(made, made.control)
            case protocol.OpenProducer():
                self._open(made, made.control)
            case protocol.Append():
                self._append(made)
            case protocol.Release(_, name) | Leave(_, name):
                self._let_go(made, name)
            case protocol.Evict(_, name):
                self._end(made, name)
            case Lapse(_, name, _):
                if made.facts:
                    self._lapse(made, self.consumers[name])
            case protocol.SeekCursor():
                self._seek(made, made.control)
            case protocol.CommitCursor():
                self._commit(made, made.control)
            case protocol.Settle():
                self._settle(made, made.control)
            case protocol.TakeRedriven():
                self._take(made, made.control)
            case protocol.Transact():
                self._transact(made, made.control)
            case protocol.Extend(_, name, epoch):
                consumer = self._held(made, name, epoch)
                if consumer.hand_since is not None:
                    consumer.hand_since = made.now
            case protocol.Redrive(_, name, offsets):
                consumer = self.consumers[name]
                consumer.redrive(sorted(consumer.parked) if offsets is None else offsets)
            case protocol.Resume(_, name):
                if self.consumers[name].paused:
                    self.consumers[name].succeed()
            case _:
                pass

    def _claim_of(self, name: str) -> Claimable:
        if name == PRODUCER_ID:
            return self.owner
        return self.consumers.setdefault(name, Consumer())

    def _granted(
        self, made: Decision, name: str, control: protocol.Claim | protocol.OpenProducer
    ) -> Claimable:
        """A claim anew, or one who comes back."""
        claim = self._claim_of(name)
        claimed = [fact for fact in made.facts if isinstance(fact, facts.Claimed)]
        if not claimed:
            if claim.token != control.token:
                self.say(f"{name}: {control} came back to a claim that is not its own")
            claim.peer, claim.first_right = made.waiting.peer, 0.0
            return claim
        [fact] = claimed
        if fact.epoch <= claim.epoch:
            self.say(f"{name}: epoch {fact.epoch} was given behind {claim.epoch}")
        if control.epoch:
            self.say(f"{name}: {control} came back and got a claim of its own")
        if claim.peer is not None and not control.takeover:
            self.say(f"{name}: two holders: {fact} while the one before is there")
        if claim.first_right > made.now + SLACK and not control.takeover:
            self.say(f"{name}: {fact} while another has first right")
        if isinstance(claim, Consumer):
            if claim.token is not None and claim.peer is None:
                claim.vanish()
            claim.put_down()
            if not claim.epoch:
                claim.committed = self.first  # all of them begin at the oldest
        claim.epoch, claim.token, claim.peer = fact.epoch, control.token, made.waiting.peer
        claim.first_right = 0.0
        return claim

    def _claim(self, made: Decision, control: protocol.Claim) -> None:
        consumer = self._granted(made, control.consumer, control)
        assert isinstance(consumer, Consumer)
        consumer.hand_seconds = control.hand_seconds
        in_hand = consumer.hand is not None or consumer.begun > consumer.committed
        consumer.hand_since = made.now if in_hand else None
        if isinstance(answer := made.answer, protocol.Claimed):
            told = (answer.epoch, answer.committed, answer.attempts)
            known = (consumer.epoch, consumer.committed, consumer.failures)
            if told != known:
                self.say(f"{control.consumer}: epoch, cursor, attempts {told} and not {known}")

    def _let_go(self, made: Decision, name: str) -> None:
        claim = self._claim_of(name)
        here = claim.peer is not None and claim.peer is made.waiting.peer
        if here != bool(made.facts):
            self.say(f"{name}: {made.control} with {made.facts}, but holds it: {here}")
        if here:
            if isinstance(made.control, Leave):
                claim.peer = None
                if isinstance(claim, Consumer):
                    claim.hand_since = None
            else:
                claim.end()

    def _end(self, made: Decision, name: str) -> None:
        claim = self._claim_of(name)
        for fact in made.facts:
            assert isinstance(fact, facts.Evicted)
            if fact.epoch <= claim.epoch:
                self.say(f"{name}: an end without a new epoch: {fact}")
            claim.epoch = fact.epoch
        claim.end()

    def _lapse(self, made: Decision, consumer: Consumer) -> None:
        since, seconds = consumer.hand_since, consumer.hand_seconds
        if since is None or seconds is None or made.now < since + seconds - SLACK:
            self.say(f"a lapse at {made.now}: in hand since {since}, for {seconds}")
        consumer.vanish()
        assert isinstance(made.control, Lapse)
        self._end(made, made.control.consumer)

    # --- verdicts -----------------------------------------------------------------------------

    def _held(self, made: Decision, name: str, epoch: int) -> Consumer:
        """Only the holder's work is accepted, under its epoch, at that very moment."""
        consumer = self.consumers[name]
        if consumer.peer is not made.waiting.peer:
            self.say(f"{name}: accepted from one who is not the holder: {made.control}")
        if epoch != consumer.epoch:
            self.say(f"{name}: accepted at epoch {consumer.epoch}: {made.control}")
        return consumer

    def _commit(
        self,
        made: Decision,
        control: protocol.CommitCursor | protocol.CommitThrough,
        made_facts: Sequence[facts.Fact] | None = None,
    ) -> None:
        consumer = self._held(made, control.consumer, control.epoch)
        if control.offset > len(self.values):
            self.say(f"a commit beyond the end: {control}")
        found = made.facts if made_facts is None else made_facts
        for fact in found:
            assert isinstance(fact, facts.Committed)
            if fact.offset < consumer.committed:
                self.say(f"the cursor moved back from {consumer.committed}: {fact}")
            if fact.offset > consumer.committed:
                consumer.move(fact.offset)
                consumer.succeed()
            consumer.begun = fact.begun
            if not fact.begun:
                consumer.put_down()  # nothing is in hand, and nothing redriven either
            in_hand = bool(fact.begun) or consumer.hand is not None
            consumer.hand_since = made.now if in_hand else None
        if not found and control.offset > consumer.committed:
            self.say(f"accepted, and not kept: {control} at {consumer.committed}")

    def _settle(self, made: Decision, control: protocol.Settle) -> None:
        consumer = self._held(made, control.consumer, control.epoch)
        parked = consumer.parked.get(control.offset) if control.redriven else None
        for fact in made.facts:
            if control.redriven and (parked is None or not parked.redriven):
                self.say(f"a verdict on a record that was not redriven: {control}")
            if not control.redriven and control.offset != consumer.committed:
                self.say(f"a verdict at cursor {consumer.committed}: {control}")
            if control.redriven:
                consumer.hand = None
            else:
                consumer.put_down()
            consumer.hand_since = made.now if consumer.begun > consumer.committed else None
            match fact:
                case facts.Failed(attempts=attempts):
                    failed = parked or consumer
                    # (Where a power cut may take commits back, a member that does not know yet
                    # counts on from what it knew.)
                    if attempts > failed.failures + 1 and self.always:
                        self.say(f"{attempts} attempts after {failed.failures} failures")
                    failed.failures = attempts
                case facts.Parked(offset=offset, begun=begun):
                    self._park(consumer, control, offset)
                    if not control.redriven:
                        consumer.begun = begun
                        consumer.hand_since = made.now if begun else None
                case facts.Unparked(offset=offset):
                    del consumer.parked[offset]
                    consumer.succeed()
                case _:
                    self.say(f"a verdict became {fact}")

    def _park(self, consumer: Consumer, control: protocol.Settle, offset: int) -> None:
        cause = control.cause if control.exhausted and control.pause_after is not None else ""
        if not consumer.paused and (not cause or cause != consumer.cause):
            consumer.cause, consumer.streak = cause, []
        if cause:
            consumer.streak.append(offset)
            assert control.pause_after is not None
            if len(consumer.streak) >= control.pause_after:
                consumer.paused = True
        if control.verdict == "park" and (offset >= self.first or offset in consumer.parked):
            before, consumer.parked[offset] = consumer.parked.get(offset), Parked()
            consumer.parked[offset].copied = before is not None and before.copied
        else:
            consumer.parked.pop(offset, None)
        if not control.redriven:
            consumer.move(offset + 1)

    def _take(self, made: Decision, control: protocol.TakeRedriven) -> None:
        consumer = self._held(made, control.consumer, control.epoch)
        lowest = min((o for o, parked in consumer.parked.items() if parked.redriven), default=-1)
        if isinstance(answer := made.answer, protocol.Taken):
            attempts = consumer.parked[lowest].failures if lowest >= 0 else 0
            if (answer.offset, answer.attempts) != (lowest, attempts):
                self.say(f"{answer}, but the lowest is {lowest}, failed {attempts} times")
        if made.facts:
            consumer.hand, consumer.hand_since = lowest, made.now

    def _seek(self, made: Decision, control: protocol.SeekCursor) -> None:
        consumer = self._claim_of(control.consumer)
        assert isinstance(consumer, Consumer)
        [fact] = made.facts
        assert isinstance(fact, facts.Sought)
        if control.epoch is not None:
            self._held(made, control.consumer, control.epoch)
            consumer.put_down()
        else:
            if consumer.peer is not None and not control.force:
                self.say(f"a seek under a holder, without force: {control}")
            consumer.end()
        if fact.epoch <= consumer.epoch:
            self.say(f"a seek without a new epoch: {fact}")
        consumer.epoch = fact.epoch
        consumer.move(fact.offset)
        for offset, parked in consumer.parked.items():
            parked.redriven = parked.redriven and offset < fact.offset

    # --- producers ----------------------------------------------------------------------------

    def _open(self, made: Decision, control: protocol.OpenProducer) -> None:
        if control.exclusive:
            self._granted(made, PRODUCER_ID, control)
        for fact in made.facts:
            if isinstance(fact, facts.Named):
                producer = self.producers.setdefault(fact.producer, Producer())
                if fact.epoch <= producer.epoch:
                    self.say(f"a name was opened without a new epoch: {fact}")
                producer.name, producer.epoch = fact.name, fact.epoch
                producer.exclusive = fact.exclusive
        if isinstance(answer := made.answer, protocol.ProducerOpened):
            known = self.producers.get(answer.producer)
            last = known.last if known is not None else -1
            if answer.last_sequence != last:
                self.say(f"{answer}, but the last sequence is {last}")
            if control.exclusive and answer.epoch != self.owner.epoch:
                self.say(f"{answer}, but the log is at epoch {self.owner.epoch}")

    def _append(self, made: Decision) -> None:
        [asked] = made.waiting.batches
        header = batch.parse_header(asked.produced)
        values = batch.decode(header, bytes(asked.body)).values
        producer = self.producers.get(header.producer)
        for fact in made.facts:
            if isinstance(fact, facts.Dropped):
                for each in fact.producers:
                    silent = self.producers.pop(each)
                    if silent.name is not None or made.now - silent.heard < SILENT_SECONDS - SLACK:
                        self.say(f"producer {each} was forgotten too early")
        appended = [fact for fact in made.facts if isinstance(fact, facts.Appended)]
        if not appended:
            self._duplicate(made, header, values, producer)
            return
        stamped = batch.parse_header(appended[0].header)
        if stamped.base != len(self.values):
            self.say(f"offset {stamped.base} at the end {len(self.values)}")
        self._check_fence(made, header, producer)
        if header.producer:
            if producer is None:
                producer = self.producers[header.producer] = Producer()
            if header.sequence <= producer.last:
                self.say(f"sequence {header.sequence} came behind {producer.last}")
            for index in range(header.count):
                producer.offsets[header.sequence + index] = stamped.base + index
            producer.last = header.sequence + header.count - 1
            producer.batches.append(header.sequence)
            producer.heard = made.now
        self.values += values

    def _check_fence(self, made: Decision, header: Any, producer: Producer | None) -> None:
        named = producer is not None and producer.name is not None
        if producer is not None and named and header.epoch != producer.epoch:
            self.say(f"an append under epoch {header.epoch}, the name is at {producer.epoch}")
        owned = header.epoch and (not named or (producer is not None and producer.exclusive))
        if owned and header.epoch != self.owner.epoch:
            self.say(f"an append under epoch {header.epoch}, the log is at {self.owner.epoch}")
        if owned and self.owner.peer is not made.waiting.peer:
            self.say("an append as the owner, from one who is not")
        if not owned and self.owner.peer is not None:
            self.say("an append beside the owner")
        if not owned and self.owner.first_right > made.now + SLACK:
            self.say("an append while the owner has first right")

    def _duplicate(
        self, made: Decision, header: Any, values: Sequence[bytes], producer: Producer | None
    ) -> None:
        if producer is None or header.sequence + header.count - 1 > producer.last:
            self.say(f"taken for a duplicate: sequence {header.sequence}")
            return
        if not isinstance(answer := made.answer, protocol.Appended):
            return
        offset = producer.offsets.get(header.sequence)
        if answer.first < 0:
            if header.sequence in producer.batches[-REMEMBERED:]:
                self.say(f"the offset of sequence {header.sequence} was forgotten")
        elif answer.first != offset:
            self.say(f"sequence {header.sequence} is at {offset}, not at {answer.first}")
        elif made.heard and self.values[answer.first : answer.end] != list(values):
            self.say(f"told that {values[0]!r} is at {answer.first}, where other bytes are")

    # --- transactions -------------------------------------------------------------------------

    def _of(self, log: int) -> list[bytes]:
        """What was accepted into a log."""
        return self.values if log == LOG else self.copies

    def _transact(self, made: Decision, control: protocol.Transact) -> None:
        """All of it, or nothing; and once."""
        name = control.client, control.number
        last = made.facts[-1] if made.facts else None
        if not isinstance(last, facts.Transacted):
            known, answer = self.transactions.get(name), made.answer
            if known is None or made.facts:
                self.say(f"taken for one that was done: {name}, with {made.facts}")
            elif isinstance(answer, protocol.Transacted) and answer.appends != known:
                self.say(f"{name} is told {answer.appends}, and was at {known}")
            return
        for client in last.dropped:
            if made.now - self.clients.pop(client) < SILENT_SECONDS - SLACK:
                self.say(f"client {client} was forgotten too early")
            self.transactions = {n: at for n, at in self.transactions.items() if n[0] != client}
        if name in self.transactions:
            self.say(f"{name} was done twice")
        self.clients[control.client] = made.now
        appended = [fact for fact in made.facts if isinstance(fact, facts.Appended)]
        if len(appended) != len(control.appends):
            self.say(f"of {len(control.appends)} batches {len(appended)} were appended")
        places = []
        for asked, batch_made, fact in zip(
            control.appends, made.waiting.batches, appended, strict=True
        ):
            stamped, values = batch.parse_header(fact.header), self._of(asked.log)
            if (stamped.log, stamped.base) != (asked.log, len(values)):
                self.say(f"at {stamped.base} of log {stamped.log}, for {asked} at {len(values)}")
            if asked.expect not in (None, len(values)):
                self.say(f"it expected the end {asked.expect}, and it is {len(values)}")
            if asked.log == LOG:
                self._check_owner(made)
            header = batch.parse_header(batch_made.produced)
            values += batch.decode(header, bytes(batch_made.body)).values
            places.append((stamped.base, stamped.end))
        self.transactions[name] = places
        for commit in control.commits:
            if isinstance(commit, protocol.CommitThrough):
                committed = [fact for fact in made.facts if isinstance(fact, facts.Committed)]
                self._commit(made, commit, committed)
            elif isinstance(commit, protocol.CommitRedriven):
                self._commit_redriven(made, commit)
        others = facts.Appended | facts.Committed | facts.Unparked
        if any(not isinstance(fact, others) for fact in made.facts[:-1]):
            self.say(f"a transaction became {made.facts}")

    def _commit_redriven(self, made: Decision, commit: protocol.CommitRedriven) -> None:
        consumer = self._held(made, commit.consumer, commit.epoch)
        parked = consumer.parked.get(commit.offset)
        unparked = [fact for fact in made.facts if isinstance(fact, facts.Unparked)]
        if bool(unparked) != (parked is not None and parked.redriven):
            self.say(f"{commit} became {unparked}")
        if unparked:
            consumer.hand = None
            consumer.hand_since = made.now if consumer.begun > consumer.committed else None
            consumer.parked.pop(commit.offset, None)
            consumer.succeed()

    def _check_owner(self, made: Decision) -> None:
        """Appended to by its owner, or while it has none."""
        if self.owner.peer not in (None, made.waiting.peer):
            self.say("a transaction beside the owner")
        if self.owner.peer is None and self.owner.first_right > made.now + SLACK:
            self.say("a transaction while the owner has first right")

    # --- the end ------------------------------------------------------------------------------

    def compare(
        self, log: state.Log, values: Sequence[bytes | None], copies: Sequence[bytes | None]
    ) -> None:
        """What a last recovery serves is what was granted, no more and no less."""
        if list(values) != self.values[self.first :] or log.first != self.first:
            text = f"{len(values)} records are served from {log.first} on, {len(self.values)} were "
            self.say(f"{text}accepted, and trimmed to {self.first}")
        if list(copies) != self.copies:
            self.say(f"{len(copies)} copies are served, of {len(self.copies)}")
        for name, consumer in self.consumers.items():
            cursor = log.cursors.get(name)
            if cursor is None:
                if consumer.epoch:
                    self.say(f"{name} is lost")
                continue
            parked = {
                offset: (each.redriven, each.attempts if each.redriven else 0)
                for offset, each in cursor.parked.items()
            }
            known = {
                offset: (each.redriven, each.failures if each.redriven else 0)
                for offset, each in consumer.parked.items()
            }
            if parked != known:
                self.say(f"{name}: parked are {parked}, not {known}")
            for offset, each in cursor.parked.items():
                if offset < self.first and value_of(each.copy) != self.values[offset]:
                    self.say(f"{name}: parked record {offset} is lost")
            found = (cursor.committed, cursor.epoch, cursor.attempts, cursor.paused is not None)
            wanted = (consumer.committed, consumer.epoch, consumer.failures, consumer.paused)
            if found != wanted:
                self.say(f"{name}: cursor, epoch, attempts, paused: {found}, not {wanted}")
        if log.owner.epoch != self.owner.epoch:
            self.say(f"the log's epoch is {log.owner.epoch}, not {self.owner.epoch}")
        for number, producer in self.producers.items():
            entry = log.producers.get(number)
            if entry is None or entry.last != producer.last:
                self.say(f"producer {number}: {entry}, the last sequence was {producer.last}")


def value_of(copy: bytes) -> bytes:
    """Of a batch of one record."""
    header = batch.parse_header(copy)
    [value] = batch.decode(header, copy[batch.HEADER_BYTES :]).values
    return value

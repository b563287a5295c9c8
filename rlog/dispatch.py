"""A shared consumer's records on their way out: who may have which next, and who has which now.

Pure, and in memory only: it dies with the process, and is made again from the cursor and from what
its members say they have in hand. Rules:

- Of a key's records, one is *out* at a time: ready, in somebody's hands, or waiting for its delay.
  The others stand behind it, in order. So a retry holds up its key and nothing else.
- A record is out until its settlement is durable (the broker says so by an effect): should that be
  lost in a crash, nothing of its key has overtaken it.
- Whoever loses its connection keeps its records until somebody else could use them: then its
  claim is over, durably first. After a start all members come back before anything is given out.
- What may be given is bounded: by the ranges settled above the floor, by the records that failed,
  and by what is looked up ahead (``PENDING_MAX`` runs of records).

Records are looked up by whoever wants some (``scan_at``, ``feed``): their keys column is read,
their values are not. Everything here costs a small constant per record, but for what is rare.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_right, insort
from collections import deque
from heapq import heapify, heappop, heappush
from typing import TYPE_CHECKING, Final, NamedTuple

from .shared import FAILED_MAX, RANGES_MAX, add, holes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from rlog_client.batch import Header
    from rlog_client.errors import RlogError

    from .state import Cursor

PENDING_MAX: Final = 1 << 16  # runs of records that are looked up and not in anybody's hands
SENT_BYTES_MAX: Final = 16 << 20  # of batches that one member keeps
KEY_BYTES_MAX: Final = 64  # longer keys are told apart by a digest
_LOTS_MAX: Final = 4096
_ABSENT_MAX: Final = 400  # bounds of ranges that one completion takes along
_NEVER: Final = float("inf")


class Lot(NamedTuple):
    """Where a batch lies that was looked up: its offsets, segment, position and length."""

    base: int
    end: int
    segment: tuple[int, int]  # its base and generation
    position: int
    bytes: int


class Loss(NamedTuple):
    """Offsets that nobody can have: damaged, or removed. Whoever is told passes over them."""

    begin: int
    end: int
    error: RlogError


class Mate:
    """A member, as long as its claim lasts. ``away``: its connection is lost.

    ``hands``: what is assigned to it. ``sent``: the batches that it has, base -> bytes, the oldest
    first.
    """

    def __init__(self, epoch: int, hand_seconds: float | None = None) -> None:
        self.epoch = epoch
        self.hand_seconds = hand_seconds
        self.away = False
        self.ending = False  # it is being decided that its claim is over
        self.hands: dict[int, None] = {}
        self.losses: list[Loss] = []
        self.sent: dict[int, int] = {}
        self.since_ns: dict[int, int] = {}  # what it has begun, and since when (UTC)
        self.due: dict[int, float] = {}  # and, with ``hand_seconds``, when that is too long
        self._sent_bytes = 0

    def keep(self, base: int, size: int) -> None:
        """A batch is sent to it."""
        self._sent_bytes += size - self.sent.pop(base, 0)
        self.sent[base] = size

    def forget(self, ends: Callable[[int], int | None], floor: int, keep: set[int]) -> list[int]:
        """The batches that it need not keep any longer, but for ``keep``: those below the floor,
        and the oldest of too many.
        """
        gone = []
        for base in list(self.sent):
            end = ends(base)
            if end is not None and end > floor and self._sent_bytes <= SENT_BYTES_MAX:
                break
            if base not in keep:
                gone.append(base)
                self._sent_bytes -= self.sent.pop(base)
        return gone


class Dispatch:
    """One shared consumer's. ``alarm``: when ``ring`` has something to do (monotonic seconds)."""

    def __init__(self, cursor: Cursor) -> None:
        self.cursor = cursor
        self.mates: dict[int, Mate] = {}
        self.alarm = _NEVER
        # What was looked up last, to be sent from there: segment, position and bytes.
        self.chunk: tuple[tuple[int, int], int, memoryview] | None = None
        self._awaited: set[int] = set()  # members from before the start, who come back first
        self._await_until = _NEVER
        self._due_at: dict[int, float] = {}  # records that failed
        self._reset()

    def _reset(self) -> None:
        self.head = self.cursor.committed  # everything below it has been looked up
        self.place: tuple[tuple[int, int], int] | None = None  # of the head, if known
        self.first = 0  # the log's, as far as it was seen to
        self._ready: list[int] = []
        self._holder: dict[int, Mate] = {}
        self._key_of: dict[int, bytes] = {}  # of records that are out
        self._behind: dict[bytes, deque[list[int]]] = {}  # of each key that has a record out: the
        # runs behind it
        self._runs = 0
        self._due: list[tuple[float, int]] = []
        self._late: dict[int, Mate] = {}  # waits for its delay, and who had it
        self._losses: deque[Loss] = deque()
        self._absent: list[int] = []  # ranges that were compacted away
        self._redriven: set[int] = set()  # those under way, here or in somebody's hands
        self._unknown: deque[int] = deque()  # redriven, and their keys not looked up yet
        self._lots: list[Lot] = []
        self._drained: Mate | None = None  # gets nothing more, until it has nothing in hand
        self.chunk = None

    # --- members ------------------------------------------------------------------------------

    def begin_life(self, epochs: Iterable[int], until: float, dues: dict[int, float]) -> None:
        """After a start: these may come back first, and these records are not due yet."""
        self._due_at = dues
        self._awaited = set(epochs)
        for epoch in self._awaited:
            self.mates[epoch] = mate = Mate(epoch)
            mate.away = True
        if self._awaited:
            self._await_until = until
            self._set_alarm(until)

    def join(self, epoch: int, hand_seconds: float | None) -> None:
        self.mates[epoch] = Mate(epoch, hand_seconds)
        self.recall()

    def back(
        self, epoch: int, hand_seconds: float | None, in_hand: Iterable[int], end: int
    ) -> list[int]:
        """A member's new connection says what it has in hand: what of that is still its own.

        What else was assigned to it, it has dropped. ``end``: the log's.
        """
        before = self.mates[epoch]
        self.mates[epoch] = mate = Mate(epoch, hand_seconds)
        self._losses.extendleft(before.losses)
        kept = []
        for offset in in_hand:
            holder = self._holder.get(offset)
            if holder is None and not self._can_restore(offset, end):
                continue
            if holder is None or holder is before:
                self._holder[offset] = mate
                mate.hands[offset] = None
                kept.append(offset)
        self._give_back([offset for offset in before.hands if offset not in mate.hands])
        self._awaited.discard(epoch)
        self.recall()
        return kept

    def _can_restore(self, offset: int, end: int) -> bool:
        """A member that was there before the start had it, and nobody has it since."""
        if self.cursor.is_settled(offset):
            parked = self.cursor.parked.get(offset)
            if parked is None or not parked.redriven or offset in self._redriven:
                return False
            self._redriven.add(offset)
            self._unknown.append(offset)
            return True
        return self.head <= offset < end

    def away(self, epoch: int) -> None:
        """A member's connection is lost."""
        if (mate := self.mates.get(epoch)) is not None:
            mate.away = True
            self._undrain(mate)

    def gone(self, epoch: int) -> None:
        """A member's claim is over: what it had is to be had again."""
        self._awaited.discard(epoch)
        mate = self.mates.pop(epoch, None)
        if mate is None:
            return
        self._undrain(mate)
        self._losses.extendleft(mate.losses)
        self._give_back(list(mate.hands))
        if not self.mates:
            self._reset()

    def clear(self) -> None:
        """The cursor was put somewhere else; every claim is over."""
        self.mates.clear()
        self._awaited.clear()
        self._due_at.clear()
        self._reset()

    def overstayed(self) -> list[int]:
        """Somebody could use what those have whose connections are lost: their epochs, once."""
        if self._awaited:
            return []
        found = [mate for mate in self.mates.values() if mate.away and not mate.ending]
        for mate in found:
            mate.ending = True
        return [mate.epoch for mate in found]

    def not_ended(self, epoch: int) -> None:
        """It could not be decided: it is to be asked for again."""
        if (mate := self.mates.get(epoch)) is not None:
            mate.ending = False

    def _undrain(self, mate: Mate) -> None:
        if self._drained is mate:
            self._drained = None

    # --- records come in ----------------------------------------------------------------------

    def scan_at(self, end: int) -> int | None:
        """The offset from which on to look up more, below ``end``; None: not now."""
        if self.head >= end or self._runs + len(self._ready) >= PENDING_MAX or self._awaited:
            return None
        return self.head

    def feed(
        self,
        header: Header,
        keys: Sequence[bytes | None] | None,
        lot: Lot,
        there: Sequence[int] | None = None,
    ) -> None:
        """A batch was looked up; ``keys`` None: none of its records has any. ``there``: the offsets
        of its records, if some are absent.
        """
        begin = max(self.head, header.base, self.cursor.committed)
        self.head = max(self.head, header.end)
        self.place = (lot.segment, lot.position + lot.bytes)
        self._lots.append(lot)
        if len(self._lots) > _LOTS_MAX:
            del self._lots[: _LOTS_MAX // 2]
        if there is not None:
            self._feed_sparse(begin, header.end, keys, there)
            return
        assert self.cursor.shared is not None
        for low, high in holes(self.cursor.shared.settled, begin, header.end):
            if keys is None:
                for offset in range(low, high):
                    if offset not in self._holder:
                        self._offer(offset)
            else:
                for offset in range(low, high):
                    self._enter(offset, keys[offset - header.base])

    def _feed_sparse(
        self, begin: int, end: int, keys: Sequence[bytes | None] | None, there: Sequence[int]
    ) -> None:
        for index, offset in enumerate(there):
            if offset < begin:
                continue
            if begin < offset:
                add(self._absent, begin, offset)
            begin = offset + 1
            if not self.cursor.is_settled(offset):
                self._enter(offset, None if keys is None else keys[index])
        if begin < end:
            add(self._absent, begin, end)

    def skip(self, loss: Loss) -> None:
        """Nothing can be looked up there."""
        begin = max(self.head, loss.begin)
        self.head, self.place = max(self.head, loss.end), None
        self._lose(begin, loss.end, lambda _begin, _end: loss.error)

    def gone_absent(self, offset: int) -> None:
        """A record was compacted away after it had been looked up."""
        add(self._absent, offset, offset + 1)
        self._done(offset)

    def take_absent(self) -> list[int]:
        """Ranges to be passed over with the next completion."""
        taken, self._absent = self._absent[:_ABSENT_MAX], self._absent[_ABSENT_MAX:]
        return taken

    def _lose(self, begin: int, end: int, error: Callable[[int, int], RlogError]) -> None:
        assert self.cursor.shared is not None
        known = list(self.cursor.shared.settled)
        for offset in self._holder:
            add(known, offset, offset + 1)
        for low, high in holes(known, max(begin, self.cursor.committed), end):
            self._losses.append(Loss(low, high, error(low, high)))

    def trimmed(self, first: int, error: Callable[[int, int], RlogError]) -> None:
        """The log begins at ``first`` now: what was looked up below and is nobody's, is lost."""
        if first <= self.first:
            return
        self.first = first
        gone = {o for o in self._ready if o < first} | {o for _, o in self._due if o < first}
        gone -= self._redriven
        lost: list[int] = []
        while gone:
            for offset in gone:
                add(lost, offset, offset + 1)
                self._due_at.pop(offset, None)
                self._late.pop(offset, None)
            self._ready = [offset for offset in self._ready if offset not in gone]
            self._due = [entry for entry in self._due if entry[1] not in gone]
            heapify(self._ready)
            heapify(self._due)
            # What stood behind them is out now, and may lie below as well.
            following = [self._release(offset) for offset in gone]
            gone = {offset for offset in following if offset is not None and offset < first}
        for begin, end in zip(lost[::2], lost[1::2], strict=True):
            self._losses.append(Loss(begin, end, error(begin, end)))
        if self.head < first:
            begin, self.head, self.place = self.head, first, None
            self._lose(begin, first, error)

    def _enter(self, offset: int, key: bytes | None) -> None:
        behind = self._take_key(offset, key)
        if behind is None:
            if offset not in self._holder:
                self._offer(offset)
        elif behind and behind[-1][1] == offset:
            behind[-1][1] = offset + 1
        else:
            behind.append([offset, offset + 1])
            self._runs += 1

    def _take_key(self, offset: int, key: bytes | None) -> deque[list[int]] | None:
        """The record is out with its key, or has none; else what it is to stand behind."""
        if key is None:
            return None
        if len(key) > KEY_BYTES_MAX:
            key = hashlib.blake2b(key, digest_size=KEY_BYTES_MAX).digest()
        behind = self._behind.get(key)
        if behind is not None and offset not in self._holder:
            return behind
        self._behind.setdefault(key, deque())
        self._key_of[offset] = key
        return None

    def _offer(self, offset: int) -> None:
        """It is out: ready, or soon."""
        due = self._due_at.get(offset)
        if due is None:
            heappush(self._ready, offset)
        else:
            heappush(self._due, (due, offset))
            self._set_alarm(due)

    # --- redriven records ---------------------------------------------------------------------

    def recall(self) -> None:
        """Look for records that were redriven."""
        for offset, parked in self.cursor.parked.items():
            if parked.redriven and offset not in self._redriven:
                self._redriven.add(offset)
                self._unknown.append(offset)

    @property
    def unknown(self) -> int | None:
        """A redriven record whose key is to be looked up before anything is given out."""
        return self._unknown[0] if self._unknown else None

    def known(self, offset: int, key: bytes | None) -> None:
        """Its key was looked up."""
        if not self._unknown or self._unknown[0] != offset:
            return
        self._unknown.popleft()
        if offset not in self._redriven:
            return  # whoever had it from before the start has settled it meanwhile
        behind = self._take_key(offset, key)
        if behind is not None:
            behind.appendleft([offset, offset + 1])  # ahead of what is new
            self._runs += 1
        elif offset not in self._holder:
            self._offer(offset)

    def unreadable(self, offset: int) -> None:
        """It cannot be looked up; it is being decided what becomes of it."""
        if self._unknown and self._unknown[0] == offset:
            self._unknown.popleft()

    def forget_redriven(self, offset: int) -> None:
        """It is redriven no more."""
        self._redriven.discard(offset)

    # --- records go out -----------------------------------------------------------------------

    def assign(self, mate: Mate, count: int, end: int | None) -> list[int]:
        """Up to ``count`` records for a member, the lowest first, and below ``end``."""
        if self._awaited or self._unknown or not self._ready:
            return []
        if (self._drained is mate or self._is_alone(mate)) and mate.hands:
            return []
        if self.cursor.paused is not None:
            count = 1 - len(self._holder)  # one is tried
        assert self.cursor.shared is not None
        alone = self.cursor.shared.alone
        out: list[int] = []
        passed: list[int] = []
        room = self._room()
        while self._ready and len(out) < count:
            offset = self._ready[0]
            redriven = offset in self._redriven
            if end is not None and offset >= end and not redriven:
                break
            if offset in alone:
                if mate.hands or out:
                    if self._drained is None or self._drained is mate:
                        self._drained = mate
                        break
                    passed.append(heappop(self._ready))
                    continue
                self._undrain(mate)
                out.append(heappop(self._ready))
                break
            if room <= len(out) and not (redriven or self._always(offset)):
                break  # sooner or later the floor itself comes to be the lowest
            out.append(heappop(self._ready))
        for offset in passed:
            heappush(self._ready, offset)
        for offset in out:
            mate.hands[offset] = None
            self._holder[offset] = mate
        return out

    def _is_alone(self, mate: Mate) -> bool:
        assert self.cursor.shared is not None
        alone = self.cursor.shared.alone
        return bool(alone) and any(offset in alone for offset in mate.hands)

    def _room(self) -> int:
        """How many more records may be out beside those that can only help."""
        assert self.cursor.shared is not None
        ranges = len(self.cursor.shared.settled) // 2
        out = len(self._holder)
        return min(RANGES_MAX - ranges, FAILED_MAX - len(self.cursor.shared.failed)) - out

    def _always(self, offset: int) -> bool:
        """To settle this one makes nothing larger."""
        assert self.cursor.shared is not None
        return offset == self.cursor.committed or offset in self.cursor.shared.failed

    @property
    def held_back(self) -> str | None:
        """Why nothing new is given out, if so."""
        assert self.cursor.shared is not None
        shared, floor = self.cursor.shared, self.cursor.committed
        if self._room() <= 0:
            # (Together, because each record in hand may come to be one of either.)
            ranges, failed, out = len(shared.settled) // 2, len(shared.failed), len(self._holder)
            return (
                f"{ranges} ranges are settled above {floor}, which is not, {failed} records have "
                f"failed, and {out} are in hand: the limit is {RANGES_MAX}"
            )
        if self._runs + len(self._ready) >= PENDING_MAX:
            return f"{PENDING_MAX} runs of records wait, from {floor} on, most behind their keys"
        return None

    def next_loss(self, mate: Mate) -> Loss | None:
        """Something that is to be told to one member."""
        if not self._losses or self._awaited:
            return None
        loss = self._losses.popleft()
        mate.losses.append(loss)
        return loss

    def lot_of(self, offset: int) -> Lot | None:
        """Where the batch that holds ``offset`` lies, if that is still known."""
        index = bisect_right(self._lots, offset, key=_base) - 1
        if index >= 0 and self._lots[index].end > offset:
            return self._lots[index]
        return None

    def note(self, lot: Lot) -> None:
        """A batch was found that was not known any more."""
        if self.lot_of(lot.base) is None:
            insort(self._lots, lot)

    def lot_end(self, base: int) -> int | None:
        lot = self.lot_of(base)
        return lot.end if lot is not None and lot.base == base else None

    def waits_for_own(self, mate: Mate) -> bool:
        """A record that this member had retried is still to come, or what others had who are gone:
        they come back, or it is decided that their claims are over.
        """
        mine = any(other is mate for other in self._late.values())
        return mine or bool(self._awaited) or any(other.away for other in self.mates.values())

    # --- what becomes of them -----------------------------------------------------------------

    def has(self, mate: Mate, begin: int, end: int) -> bool:
        """All of this is in the member's hands, or it was told that nobody can have it."""
        at = begin
        while at < end:
            if at in mate.hands:
                at += 1
                continue
            told = [loss.end for loss in mate.losses if loss.begin <= at < loss.end]
            if not told:
                return False
            at = told[0]
        return True

    def begin(
        self, mate: Mate, begun: Sequence[int], now_ns: int, now: float, *, anew: bool
    ) -> None:
        """What the member has begun, all of it. ``anew``: their time begins once more."""
        since = mate.since_ns
        mate.since_ns = {offset: since.get(offset, now_ns) for offset in begun}
        if mate.hand_seconds is None:
            return
        late = now + mate.hand_seconds
        due = {} if anew else mate.due
        mate.due = {offset: due.get(offset, late) for offset in begun}
        if mate.due:
            self._set_alarm(min(mate.due.values()))

    def extend(self, mate: Mate, offset: int, now: float) -> None:
        """A record's hand_seconds begin anew."""
        if offset in mate.due and mate.hand_seconds is not None:
            mate.due[offset] = now + mate.hand_seconds

    def lapsed(self, mate: Mate, now: float) -> list[int]:
        """What the member has had in hand for too long."""
        return [offset for offset, due in mate.due.items() if due <= now]

    def settled(self, done: Iterable[tuple[int, int]], mate: Mate) -> None:
        """Durably done with."""
        for begin, end in done:
            mate.losses = [x for x in mate.losses if not begin <= x.begin < x.end <= end]
            some = range(begin, end) if end - begin <= len(mate.hands) else list(mate.hands)
            for offset in some:
                if begin <= offset < end:
                    self._done(offset)

    def lose_hands(self, mate: Mate, offsets: Iterable[int]) -> None:
        """These were assigned, and cannot be had: they do not hold up their keys."""
        for offset in offsets:
            self._done(offset)

    def _done(self, offset: int) -> None:
        self._drop_hand(offset)
        self._due_at.pop(offset, None)
        self._redriven.discard(offset)
        self._release(offset)

    def _release(self, offset: int) -> int | None:
        """The key of a record that was out is free: the next one is out, and returned."""
        key = self._key_of.pop(offset, None)
        if key is None:
            return None
        behind = self._behind[key]
        if not behind:
            del self._behind[key]
            return None
        run = behind[0]
        following = run[0]
        run[0] += 1
        if run[0] == run[1]:
            behind.popleft()
            self._runs -= 1
        self._key_of[following] = key
        self._offer(following)
        return following

    def failed(self, offset: int, mate: Mate, due: float) -> None:
        """It comes again, to anybody, when it is due."""
        if offset not in self._holder:
            return  # said twice, by a connection and by the one that came after it
        self._drop_hand(offset)
        self._due_at[offset] = due
        self._late[offset] = mate
        self._return(offset)

    def give_back(self, mate: Mate, offsets: Iterable[int]) -> None:
        """A member has not begun these, and others may have them."""
        self._give_back([offset for offset in offsets if offset in mate.hands])

    def _give_back(self, offsets: list[int]) -> None:
        for offset in offsets:
            self._drop_hand(offset)
            self._return(offset)

    def _return(self, offset: int) -> None:
        """It is in nobody's hands any more."""
        parked = self.cursor.parked.get(offset)
        redriven = parked is not None and parked.redriven
        if self.cursor.is_settled(offset) and not redriven:
            return  # by this very frame: it is done with when that is durable
        # What a member had from before the start is looked up in its turn. Offered now it would be
        # out twice, and without its key.
        if (redriven or offset < self.head) and offset not in self._unknown:
            self._offer(offset)

    def _drop_hand(self, offset: int) -> None:
        if (mate := self._holder.pop(offset, None)) is not None:
            mate.hands.pop(offset, None)
            mate.due.pop(offset, None)
            mate.since_ns.pop(offset, None)

    # --- time ---------------------------------------------------------------------------------

    def _set_alarm(self, when: float) -> None:
        self.alarm = min(self.alarm, when)

    def ring(self, now: float) -> tuple[list[int], list[int]]:
        """What is due by the clock: members that have something in hand for too long, and those
        that did not come back, by their epochs.
        """
        while self._due and self._due[0][0] <= now:
            _, offset = heappop(self._due)
            self._due_at.pop(offset, None)
            self._late.pop(offset, None)
            heappush(self._ready, offset)
        missing: list[int] = []
        if self._await_until <= now:
            self._await_until = _NEVER
            missing = sorted(self._awaited)
            self._awaited.clear()
            for epoch in missing:
                self.mates[epoch].ending = True
        late = [mate.epoch for mate in self.mates.values() if self.lapsed(mate, now)]
        dues = [due for mate in self.mates.values() for due in mate.due.values() if due > now]
        if not self._awaited:
            self._await_until = _NEVER
        self.alarm = min([*dues, self._await_until, self._due[0][0] if self._due else _NEVER])
        return late, missing


def _base(lot: Lot) -> int:
    return lot.base

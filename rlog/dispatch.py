"""A shared consumer's records on their way out: who may have which next, and who has which now.

Pure, and in memory only: it dies with the process, and is made again from the cursor and from what
its members say they have in hand. Rules:

- Of a key's records, one is *out* at a time: ready, in somebody's hands, or waiting for its delay.
  The others stand behind it, in order. So a retry holds up its key and nothing else.
- A record is out until its settlement is durable (the broker says so by an effect): should that be
  lost in a crash, nothing of its key has overtaken it.
- From a place at which the cursor is only decided to stand, nothing is given out: should that be
  lost in a crash, those who had it from there would come back with it, ahead of what goes before.
- Whoever loses its connection keeps its records until somebody else could use them: then its
  claim is over, durably first. After a start all members come back before anything is given out,
  and the keys of what they have in hand are looked up before anything else is.
- A suspect (``Shared.alone``) goes to somebody with empty hands. While one is the next, nobody who
  has something in hand gets more: whoever is through first takes it.
- What may be given is bounded: by the ranges settled above the floor, by the records that failed,
  and by what is looked up ahead (``PENDING_MAX`` runs of records).

Records are looked up by whoever wants some (``scan_at``, ``feed``): their keys column is read,
their values are not. Everything here costs a small constant per record, but for what is rare.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_left, bisect_right, insort
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
FORGET_MAX: Final = 300  # batches that one message lets go: it has to fit into a control
KEY_BYTES_MAX: Final = 64  # longer keys are told apart by a digest
_LOTS_MAX: Final = 4096
ABSENT_MAX: Final = 400  # bounds of ranges that one completion takes along
AGAIN_SECONDS: Final = 0.25  # where nothing can be written just now
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

    ``hands``: what is assigned to it, and was not said to be settled. ``sent``: the batches that it
    has, base -> bytes, the oldest first. ``late``: how many of the records that it had retried are
    not due yet.
    """

    def __init__(self, epoch: int, hand_seconds: float | None = None) -> None:
        self.epoch = epoch
        self.hand_seconds = hand_seconds
        self.away = False
        self.ending = False  # it is being decided whether its claim is over
        self.hands: dict[int, None] = {}
        self.losses: list[Loss] = []
        self.sent: dict[int, int] = {}
        self.since_ns: dict[int, int] = {}  # what it has begun, and since when (UTC)
        self.due: dict[int, float] = {}  # and, with ``hand_seconds``, when that is too long
        self.late = 0
        self._sent_bytes = 0

    def keep(self, base: int, size: int) -> None:
        """A batch is sent to it."""
        self._sent_bytes += size - self.sent.pop(base, 0)
        self.sent[base] = size

    def forget(self, ends: Callable[[int], int | None], floor: int, keep: set[int]) -> list[int]:
        """The batches that it need not keep any longer, but for ``keep``: those below the floor,
        and the oldest of too many.
        """
        gone: list[int] = []
        left = self._sent_bytes
        for base, size in self.sent.items():
            end = ends(base)
            if end is not None and end > floor and left <= SENT_BYTES_MAX:
                break
            if len(gone) == FORGET_MAX:
                break
            if base not in keep:
                gone.append(base)
                left -= size
        for base in gone:
            del self.sent[base]
        self._sent_bytes = left
        return gone

    def forget_all(self) -> None:
        """It has none of them any more."""
        self.sent.clear()
        self._sent_bytes = 0


class _Line:
    """What is behind the records of one key that are ``out``: one, but where members came back with
    several in hand.

    ``again``: those that come again, redriven for the most part, a heap. ``runs``: new ones, in
    order.
    """

    __slots__ = ("again", "out", "runs")

    def __init__(self) -> None:
        self.out = 0
        self.again: list[int] | None = None  # (made when needed: most keys have nothing behind)
        self.runs: deque[list[int]] | None = None


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
        self._moving = False  # the cursor is to stand somewhere else, which is not durable yet
        # When records that failed are due: by offset, and as a heap, which may hold more. It stays
        # when all else is looked up anew.
        self._due_at: dict[int, float] = {}
        self._due: list[tuple[float, int]] = []
        self._away: dict[int, Mate] = {}
        self._reset()

    def _reset(self) -> None:
        self.head = self.cursor.committed  # everything below it has been looked up
        self.place: tuple[tuple[int, int], int] | None = None  # of the head, if known
        self.first = 0  # the log's, as far as it was seen to
        self._ready: list[int] = []
        self._again: list[int] = []  # ready as well, and redriven: they go first
        self._waiting: dict[int, Mate | None] = {}  # out, and not due; who had it retried
        self._holder: dict[int, Mate] = {}
        self._key_of: dict[int, bytes] = {}  # of records that are out
        self._lines: dict[bytes, _Line] = {}  # of each key that has a record out
        self._runs = 0  # in all of them
        self._losses: list[Loss] = []  # by their begin
        self._absent: list[int] = []  # ranges that were compacted away
        self._redriven: set[int] = set()  # those under way, here or in somebody's hands
        # Sorted: whose keys are to be looked up before all else. What is in hand since before the
        # start comes first: what is redriven may have to stand behind it.
        self._unsure: list[int] = []
        self._unknown: list[int] = []
        self._lots: list[Lot] = []
        self.chunk = None
        self.recall()

    # --- members ------------------------------------------------------------------------------

    def begin_life(self, epochs: Iterable[int], until: float, dues: dict[int, float]) -> None:
        """After a start: these may come back first, and these records are not due yet."""
        for offset, due in dues.items():
            self._delay(offset, due)
        self._awaited = set(epochs)
        for epoch in self._awaited:
            self.mates[epoch] = self._away[epoch] = mate = Mate(epoch)
            mate.away = True
        if self._awaited:
            self._await_until = until
            self._set_alarm(until)

    @property
    def awaiting(self) -> bool:
        """Nothing is given out yet: members may come back from before the start, or it is not sure
        from where on.
        """
        return bool(self._awaited) or self._moving

    def join(self, epoch: int, hand_seconds: float | None) -> Mate:
        self.mates[epoch] = mate = Mate(epoch, hand_seconds)
        return mate

    def back(
        self, epoch: int, hand_seconds: float | None, in_hand: Iterable[int], end: int
    ) -> list[int]:
        """A member's new connection says what it has in hand: what of that is still its own.

        What else was assigned to it, it has dropped. ``end``: the log's.
        """
        before = self.mates[epoch]
        self.mates[epoch] = mate = Mate(epoch, hand_seconds)
        self._away.pop(epoch, None)
        self._untold(before)
        mate.late = before.late
        for offset, other in self._waiting.items() if mate.late else ():
            if other is before:
                self._waiting[offset] = mate
        kept = []
        for offset in in_hand:
            if offset in before.hands:
                del before.hands[offset]
            elif epoch not in self._awaited or not self._restore(offset, end):
                continue
            mate.hands[offset] = None
            self._holder[offset] = mate
            kept.append(offset)
        self._come_again(list(before.hands))
        self._awaited.discard(epoch)
        return kept

    def _restore(self, offset: int, end: int) -> bool:
        """A member that was there before the start had it, and nobody has it since."""
        if offset in self._holder:
            return False
        if offset in self._redriven:
            _take(self._unknown, offset, offset + 1)
        elif not self.head <= offset < end or self.cursor.is_settled(offset):
            return False
        insort(self._unsure, offset)
        return True

    def away(self, mate: Mate) -> None:
        """A member's connection is lost."""
        mate.away = True
        if self.mates.get(mate.epoch) is mate:  # (or it is back already)
            self._away[mate.epoch] = mate

    def gone(self, epoch: int) -> None:
        """A member's claim is over: what it had is to be had again."""
        self._awaited.discard(epoch)
        self._away.pop(epoch, None)
        mate = self.mates.pop(epoch, None)
        if mate is None:
            return
        self._untold(mate)
        self._come_again(list(mate.hands))
        if not self.mates:
            self._reset()

    def move(self) -> None:
        """It is decided that the cursor is put somewhere else, or deleted: ``clear`` follows when
        that is durable.
        """
        self._moving = True

    def clear(self) -> None:
        """The cursor was put somewhere else; every claim is over."""
        self._moving = False
        self.mates.clear()
        self._awaited.clear()
        self._away.clear()
        self._due_at.clear()
        self._due.clear()
        self._reset()

    @property
    def any_away(self) -> bool:
        """There is somebody whose connection is lost."""
        return bool(self._away)

    def overstayed(self) -> list[int]:
        """Somebody could use what those have whose connections are lost: their epochs, once."""
        if self.awaiting:
            return []
        found = [mate for mate in self._away.values() if not mate.ending]
        for mate in found:
            mate.ending = True
        return [mate.epoch for mate in found]

    def stays(self, epoch: int) -> None:
        """It could not be decided that its claim is over."""
        if (mate := self.mates.get(epoch)) is not None:
            mate.ending = False

    def look_again(self, now: float) -> None:
        """Something could not be decided now, and is to be asked for again soon."""
        self._set_alarm(now + AGAIN_SECONDS)

    # --- records come in ----------------------------------------------------------------------

    def scan_at(self, end: int) -> int | None:
        """The offset from which on to look up more, below ``end``; None: not now."""
        if self.head >= end or self._is_full or self.awaiting:
            return None
        return self.head

    @property
    def _is_full(self) -> bool:
        return self._runs + len(self._ready) >= PENDING_MAX

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
            for offset in range(low, high):
                if offset in self._holder:
                    continue  # since before the start: it was looked up by itself
                if keys is None:
                    self._offer(offset)
                else:
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
            if offset not in self._holder and not self.cursor.is_settled(offset):
                self._enter(offset, None if keys is None else keys[index])
        if begin < end:
            add(self._absent, begin, end)

    def skip(self, loss: Loss) -> None:
        """Nothing can be looked up there."""
        begin = max(self.head, loss.begin)
        self.head, self.place = max(self.head, loss.end), None
        self._lose(begin, loss.end, lambda _begin, _end: loss.error)

    def gone_absent(self, offsets: Iterable[int]) -> None:
        """Records were compacted away after they had been looked up."""
        for offset in offsets:
            add(self._absent, offset, offset + 1)
        self.settled(offsets)

    def take_absent(self, bounds_max: int = ABSENT_MAX) -> list[int]:
        """Ranges to be passed over with the next completion; ``bounds_max`` is even."""
        taken, self._absent = self._absent[:bounds_max], self._absent[bounds_max:]
        return taken

    def _lose(self, begin: int, end: int, error: Callable[[int, int], RlogError]) -> None:
        assert self.cursor.shared is not None
        known = list(self.cursor.shared.settled)
        for offset in self._holder:
            add(known, offset, offset + 1)
        for low, high in holes(known, max(begin, self.cursor.committed), end):
            self._add_loss(Loss(low, high, error(low, high)))

    def _add_loss(self, loss: Loss) -> None:
        insort(self._losses, loss, key=_begin)

    def _untold(self, mate: Mate) -> None:
        """What it was told it may not have heard."""
        for loss in mate.losses:
            self._add_loss(loss)

    def trimmed(self, first: int, error: Callable[[int, int], RlogError]) -> None:
        """The log begins at ``first`` now: what was looked up below and is nobody's, is lost."""
        if first <= self.first or self.awaiting:
            return
        self.first = first
        gone = {o for o in self._ready if o < first}
        gone |= {o for o in self._waiting if o < first and o not in self._redriven}
        lost: list[int] = []
        while gone:
            for offset in gone:
                add(lost, offset, offset + 1)
                self._no_delay(offset)
            self._ready = [offset for offset in self._ready if offset not in gone]
            heapify(self._ready)
            # What stood behind them is out now, and may lie below as well.
            following = [self._release(offset) for offset in gone]
            gone = {o for o in following if o is not None and o < first and o not in self._redriven}
        for begin, end in zip(lost[::2], lost[1::2], strict=True):
            self._add_loss(Loss(begin, end, error(begin, end)))
        if self.head < first:
            begin, self.head, self.place = self.head, first, None
            self._lose(begin, first, error)

    def _enter(self, offset: int, key: bytes | None) -> None:
        """A record that is new: out with its key, or behind what is out of it."""
        if key is None:
            self._offer(offset)
            return
        key = _short(key)
        line = self._lines.get(key)
        if line is None:
            self._go_out(offset, key)
            self._offer(offset)
            return
        if line.runs is None:
            line.runs = deque()
        if line.runs and line.runs[-1][1] == offset:
            line.runs[-1][1] = offset + 1
        else:
            line.runs.append([offset, offset + 1])
            self._runs += 1

    def _go_out(self, offset: int, key: bytes) -> None:
        line = self._lines.get(key)
        if line is None:
            line = self._lines[key] = _Line()
        line.out += 1
        self._key_of[offset] = key

    def _offer(self, offset: int, mate: Mate | None = None) -> None:
        """It is out: ready, or soon. ``mate``: who has just had it retried."""
        if offset not in self._due_at:
            heappush(self._again if offset in self._redriven else self._ready, offset)
            return
        self._waiting[offset] = mate
        if mate is not None:
            mate.late += 1

    def _delay(self, offset: int, due: float) -> None:
        self._due_at[offset] = due
        heappush(self._due, (due, offset))
        self._set_alarm(due)

    def _no_delay(self, offset: int) -> None:
        """It waits no more. (In the heap it may stay until then.)"""
        self._due_at.pop(offset, None)
        if (mate := self._waiting.pop(offset, None)) is not None:
            mate.late -= 1

    # --- records that are looked up by themselves -----------------------------------------------

    def recall(self) -> None:
        """Look for records that were redriven."""
        for offset, parked in self.cursor.parked.items():
            if parked.redriven and offset not in self._redriven:
                self._redriven.add(offset)
                insort(self._unknown, offset)

    @property
    def unknown(self) -> int | None:
        """A record whose key is to be looked up before anything is given out: it was redriven, or
        is in hand since before the start.
        """
        first = self._unsure or self._unknown
        return first[0] if first else None

    def known(
        self,
        header: Header,
        keys: Sequence[bytes | None] | None,
        there: Sequence[int] | None = None,
    ) -> list[int]:
        """A batch was looked up for what is unknown in it; ``keys`` and ``there`` as for ``feed``.

        Those that are absent, of which it is to be decided what becomes of them.
        """

        def key_of(offset: int) -> bytes | None:
            if keys is None:
                return None
            return keys[offset - header.base if there is None else bisect_left(there, offset)]

        def is_absent(offset: int) -> bool:
            return there is not None and offset not in there

        for offset in _take(self._unsure, header.base, header.end):
            if not is_absent(offset) and (key := key_of(offset)) is not None:
                self._go_out(offset, _short(key))
        if self._unsure:
            return []
        absent = []
        for offset in _take(self._unknown, header.base, header.end):
            if is_absent(offset):
                absent.append(offset)
                continue
            key = key_of(offset)
            if key is not None and (line := self._lines.get(_short(key))) is not None:
                self._put_behind(line, offset)
            else:
                self._enter(offset, key)
        return absent

    def unreadable(self, begin: int, end: int) -> list[int]:
        """These cannot be looked up. Of which of them it is to be decided what becomes of them:
        what is in somebody's hands counts as one without a key.
        """
        _take(self._unsure, begin, end)
        return _take(self._unknown, begin, end)

    def is_redriven(self, offset: int) -> bool:
        return offset in self._redriven

    def look_up_again(self, offset: int) -> None:
        """It could not be decided what becomes of one that is unreadable."""
        _take(self._unknown, offset, offset + 1)
        self._redriven.discard(offset)
        self.recall()

    def forget_redriven(self, offset: int) -> None:
        """It is redriven no more."""
        self._redriven.discard(offset)
        self._no_delay(offset)

    # --- records go out -----------------------------------------------------------------------

    def assign(self, mate: Mate, count: int, end: int | None) -> list[int]:
        """Up to ``count`` records for a member, the lowest first, and below ``end``."""
        if self.awaiting or self.unknown is not None or (mate.hands and self._is_alone(mate)):
            return []
        if self.cursor.paused is not None:
            count = 1 - len(self._holder)  # one is tried
        assert self.cursor.shared is not None
        alone = self.cursor.shared.alone
        out: list[int] = []
        room = self._room()
        while len(out) < count and (ready := self._again or self._ready):
            offset, is_new = ready[0], ready is self._ready
            if is_new and end is not None and offset >= end:
                break
            if offset in alone:
                if not (mate.hands or out):
                    out.append(heappop(ready))
                break
            if is_new and room <= len(out) and not self._always(offset):
                break  # sooner or later the floor itself comes to be the lowest
            out.append(heappop(ready))
        for offset in out:
            mate.hands[offset] = None
            self._holder[offset] = mate
        return out

    def _is_alone(self, mate: Mate) -> bool:
        assert self.cursor.shared is not None
        alone = self.cursor.shared.alone
        return bool(alone) and not alone.isdisjoint(mate.hands)

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
        if self._is_full:
            return f"{PENDING_MAX} runs of records wait, from {floor} on, most behind their keys"
        return None

    def next_loss(self, mate: Mate) -> Loss | None:
        """Something that is to be told to one member."""
        if not self._losses or self.awaiting:
            return None
        if self._losses[0].begin > self.cursor.committed and self._room() <= 0:
            return None  # to pass over it makes one more range
        loss = self._losses.pop(0)
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

    def put_down(self, mate: Mate, done: Iterable[tuple[int, int]]) -> list[int]:
        """It is decided that these are settled: the records among them, which are in the member's
        hands no more. They stay out until that is durable (``settled``, ``failed``).
        """
        offsets: list[int] = []
        for begin, end in done:
            mate.losses = [x for x in mate.losses if not begin <= x.begin < x.end <= end]
            some = range(begin, end) if end - begin <= len(mate.hands) else list(mate.hands)
            offsets += [o for o in some if begin <= o < end and o in mate.hands]
        for offset in offsets:
            del mate.hands[offset]
            mate.due.pop(offset, None)
            mate.since_ns.pop(offset, None)
        return offsets

    def settled(self, offsets: Iterable[int]) -> None:
        """Durably done with, or to be had by nobody: they hold up their keys no more."""
        for offset in offsets:
            self._drop_hand(offset)
            if offset in self._due_at:
                self._no_delay(offset)
            if self._unsure:
                _take(self._unsure, offset, offset + 1)
            if offset in self._redriven:
                self._redriven.discard(offset)
                # (Redriven once more since: that comes to be seen.)
                _take(self._unknown, offset, offset + 1)
            self._release(offset)

    def _release(self, offset: int) -> int | None:
        """The key of a record that was out is free: the next one is out, and returned."""
        key = self._key_of.pop(offset, None)
        if key is None:
            return None
        line = self._lines[key]
        if line.out > 1:
            line.out -= 1
            return None
        again, runs = line.again, line.runs
        if again and (not runs or again[0] < runs[0][0] or again[0] in self._redriven):
            following = heappop(again)
        elif runs:
            run = runs[0]
            following = run[0]
            run[0] += 1
            if run[0] == run[1]:
                runs.popleft()
                self._runs -= 1
        else:
            del self._lines[key]
            return None
        self._key_of[following] = key
        self._offer(following)
        return following

    def failed(self, offset: int, mate: Mate, due: float) -> None:
        """It comes again, to anybody, when it is due."""
        self._delay(offset, due)
        self._come_again([offset], self.mates.get(mate.epoch))

    def give_back(self, mate: Mate, offsets: Iterable[int]) -> None:
        """A member has not begun these, and others may have them."""
        self._come_again([offset for offset in offsets if offset in mate.hands])

    def _come_again(self, offsets: list[int], mate: Mate | None = None) -> None:
        for offset in offsets:
            self._drop_hand(offset)
            redriven = offset in self._redriven
            if _take(self._unsure, offset, offset + 1) and redriven:
                insort(self._unknown, offset)
            elif not redriven and offset >= self.head:
                self._release(offset)  # in hand since before the start: it is looked up in its turn
            elif not self._goes_behind(offset):
                self._offer(offset, mate)

    def _goes_behind(self, offset: int) -> bool:
        """Others of its key go first: it was in hand beside them, or before them, since the start.
        (Where a power cut may take back what was answered, their settlement was.)
        """
        key = self._key_of.get(offset)
        if key is None:
            return False
        line = self._lines[key]
        runs_before = line.runs and line.runs[0][0] < offset
        again_before = line.again and line.again[0] < offset
        is_before = (runs_before or again_before) and offset not in self._redriven
        if line.out == 1 and not is_before:
            return False
        self._put_behind(line, offset)
        self._release(offset)
        return True

    @staticmethod
    def _put_behind(line: _Line, offset: int) -> None:
        if line.again is None:
            line.again = []
        heappush(line.again, offset)

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
            due, offset = heappop(self._due)
            if self._due_at.get(offset) == due:
                waits = offset in self._waiting
                self._no_delay(offset)
                if waits:
                    self._offer(offset)
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


def _take(offsets: list[int], begin: int, end: int) -> list[int]:
    """Remove from a sorted list what is from ``begin`` to ``end``."""
    low, high = bisect_left(offsets, begin), bisect_left(offsets, end)
    taken = offsets[low:high]
    del offsets[low:high]
    return taken


def _base(lot: Lot) -> int:
    return lot.base


def _begin(loss: Loss) -> int:
    return loss.begin


def _short(key: bytes) -> bytes:
    if len(key) <= KEY_BYTES_MAX:
        return key
    return hashlib.blake2b(key, digest_size=KEY_BYTES_MAX).digest()

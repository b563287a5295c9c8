"""Decisions about the members of shared consumers: they come and go, and settle records one by one.

A member's claim has an epoch of its own, which names it. Who has which record in hand is not state:
the consumer's ``Dispatch`` knows, and is told by effects, so that a record is somebody else's only
when that is durable.
"""

from __future__ import annotations

import itertools
from functools import partial
from typing import TYPE_CHECKING, Final

from rlog_client import model, protocol
from rlog_client.errors import Busy, Fenced, InvalidRequest, NotFound

from .. import facts, state
from ..dispatch import ABSENT_MAX, Dispatch
from ..shared import Shared, add, holds, holes, pairs
from .desk import Answer, Grant, resolve
from .parking import put_aside

if TYPE_CHECKING:
    from collections.abc import Callable

    from ..dispatch import Mate
    from .desk import Books, Desk, Key, Lapse, Make, Peer, Unreadable, Vanish, Waiting

OFFSETS_MAX: Final = 1000  # in each list of one request
# Bounds of ranges that a transaction's commit takes along: what it adds to a frame is promised (see
# ``protocol.transact_bytes``). Of two ranges a record there is sooner or later none left, as there
# are records between them.
SINGLE_ABSENT_MAX: Final = 4
LAPSED: Final = "it was in hand for longer than hand_seconds"


# --- coming and going -----------------------------------------------------------------------


def join(desk: Desk, waiting: Waiting, control: protocol.Claim, log: state.Log) -> Make | None:
    """A claim on a shared consumer: of a new member, or of one that comes back."""
    peer, key = waiting.peer, (log.id, control.consumer)
    if control.standby or control.takeover:
        raise InvalidRequest("members of a shared consumer neither wait for nor take over a claim")
    if control.consumer == model.GLOBAL_ID:
        raise InvalidRequest("the log's own cursor is for one holder: it cannot be shared")
    if not 1 <= len(control.token) <= 64:
        raise InvalidRequest("a claim's token has 1 to 64 bytes")
    if peer.closed:
        raise InvalidRequest("the connection is closed")  # and nobody hears this
    cursor = log.cursors.get(control.consumer)
    if cursor is None and control.epoch:
        raise NotFound(f"log {log.name!r} has no consumer {control.consumer!r} any more")
    shared = cursor.shared if cursor is not None else None
    epoch = shared.member_of(control.token) if shared is not None else None
    grant = peer.grants.get(key)
    if any(each[:2] == (peer, key) for each in desk.joined) or (
        grant is not None and grant.epoch != epoch
    ):
        raise Busy(
            f"this connection is a member of {control.consumer!r} already: clone() the client",
            holder=peer.name,
            since_ns=0,
        )
    if cursor is not None and shared is not None and epoch is not None:
        return _come_back(desk, waiting, control, cursor, shared, epoch)
    epoch = cursor.epoch + 1 if cursor is not None else 1
    committed = resolve(log, control.start, log.end) if cursor is None else cursor.committed
    desk.fact(facts.Joined(*key, epoch, control.token, peer.name, committed))
    cursor = log.cursors[control.consumer]
    grant = Grant(epoch, 0, control.hand_seconds)
    books = desk.books

    def give() -> None:
        member = cursor.shared.members.get(epoch) if cursor.shared is not None else None
        if member is None or log.cursors.get(control.consumer) is not cursor:
            return
        group = books.group(key, cursor)
        mate = group.join(epoch, control.hand_seconds)
        if member.held:
            books.seats[*key, epoch] = peer
            peer.granted(key, grant)
        else:
            group.away(mate)  # it left in the frame in which it came

    desk.joined.append((peer, key, epoch))
    desk.effects.append(give)
    answer = protocol.Claimed(epoch, cursor.committed, paused=cursor.paused)
    return lambda _synced: Answer(answer)


def _come_back(
    desk: Desk,
    waiting: Waiting,
    control: protocol.Claim,
    cursor: state.Cursor,
    shared: Shared,
    epoch: int,
) -> Make | None:
    desk.writable()
    books, peer, key = desk.books, waiting.peer, (control.log, control.consumer)
    group = books.group(key, cursor)
    if epoch not in group.mates:
        # It joined in this very frame, by a connection that is lost already: after that.
        desk.effects.append(lambda: books.called.append(waiting))
        return None
    before = books.seats.get((*key, epoch))
    if before is not None and before is not peer:
        # Its connection is lost, and it does not know yet.
        grant = before.grants.get(key)
        if grant is not None and grant.epoch == epoch:
            del before.grants[key]
    member = shared.members[epoch]
    if not member.held:
        desk.fact(facts.Returned(*key, epoch))
    end = books.visible[key[0]].end
    kept = group.back(epoch, control.hand_seconds, control.in_hand[:OFFSETS_MAX], end)
    mate = group.mates[epoch]
    begun = [offset for offset in member.begun if offset in mate.hands]
    if begun != member.begun:
        # What it has lost is in others' hands: it is not to be blamed for that any more.
        desk.fact(facts.Completed(*key, epoch, [], begun))
    group.begin(mate, begun, desk.now_ns, desk.now, anew=True)
    # At once: nothing of it is new, and what is pipelined behind it is judged by it.
    books.seats[*key, epoch] = peer
    peer.granted(key, Grant(epoch, 0, control.hand_seconds))
    _stir(desk, key)
    answer = protocol.Claimed(epoch, cursor.committed, paused=cursor.paused, in_hand=kept)
    return lambda _synced: Answer(answer)


def give_up(desk: Desk, peer: Peer, key: Key, *, gone: bool) -> None:
    """A peer's claim ends: ``gone`` for good, or its connection is lost.

    Where nothing can be written that is refused, and still the claim is nobody's from here on.
    """
    books = desk.books
    grant = peer.grants.pop(key, None)
    epochs = {grant.epoch} if grant is not None else set()
    epochs |= {epoch for other, at, epoch in desk.joined if other is peer and at == key}
    for epoch in epochs:
        if books.seats.get((*key, epoch)) is peer:
            del books.seats[*key, epoch]
    log = desk.state.logs.get(key[0])  # a log that was deleted took its claims with it
    shared = log.shared(key[1]) if log is not None else None
    group = books.groups.get(key)
    mates = group.mates if group is not None else {}
    for epoch in epochs:
        member = shared.members.get(epoch) if shared is not None else None
        if member is None or not member.held:
            continue
        if gone and desk.can_write:
            desk.fact(facts.Released(*key, epoch))
            _then(desk, key, partial(Dispatch.gone, epoch=epoch))
            continue
        if desk.can_write:
            desk.fact(facts.Left(*key, epoch))
        if epoch in mates:
            # Of now: it may be back before this is carried out.
            _then(desk, key, partial(Dispatch.away, mate=mates[epoch]))
    desk.writable()


def vanish(desk: Desk, waiting: Waiting, control: Vanish) -> Make:
    """It did not come back in time."""
    key = (control.log, control.consumer)
    _writable_or_again(desk, key, lambda group: group.stays(control.epoch))
    log = desk.state.logs.get(control.log)
    shared = log.shared(control.consumer) if log is not None else None
    member = shared.members.get(control.epoch) if shared is not None else None
    if member is not None and not desk.is_seated(key, control.epoch):
        error = f"{member.name} vanished with it in hand"
        desk.fact(facts.Vanished(*key, control.epoch, [], error))
        _then(desk, key, lambda group: group.gone(control.epoch))
    else:
        _stir(desk, key)  # somebody waits for this
    return lambda _synced: Answer(protocol.Done())


def _writable_or_again(desk: Desk, key: Key, undo: Callable[[Dispatch], None]) -> None:
    """Of what is asked from within. Where nothing can be written now, it is asked again soon.

    Raises what ``desk.writable`` does.
    """
    group = desk.books.groups.get(key)
    if group is not None and not desk.can_write:
        undo(group)
        group.look_again(desk.now)
        desk.books.alarm = min(desk.books.alarm, group.alarm)
    desk.writable()


def evict(desk: Desk, log: state.Log, consumer: str, shared: Shared, name: str | None) -> None:
    """End the claims of ``name``'s, or all; no attempt is counted. Raises NotFound."""
    epochs = shared.named(name)
    if not epochs:
        held = "held by nobody" if name is None else f"not held by {name}"
        raise NotFound(f"{consumer!r} of log {log.name!r} is {held}")
    # One fact, however many there are: what a request may add to a frame is promised.
    after = log.cursors[consumer].epoch + 1
    desk.fact(facts.Evicted(log.id, consumer, after, False, name))
    for epoch in epochs:
        end(desk, (log.id, consumer), epoch)


def lapse(desk: Desk, key: Key, shared: Shared, control: Lapse) -> None:
    """A member has had something in hand for too long, unless it was settled meanwhile."""
    _writable_or_again(desk, key, lambda _group: None)
    group = desk.books.groups.get(key)
    mate = group.mates.get(control.epoch) if group is not None else None
    if group is None or mate is None or control.epoch not in shared.members:
        return
    if lapsed := group.lapsed(mate, desk.now):
        desk.fact(facts.Vanished(*key, control.epoch, lapsed, LAPSED))
        end(desk, key, control.epoch)


def end(desk: Desk, key: Key, epoch: int) -> None:
    """A claim was ended from outside."""
    desk.effects.append(ending(desk.books, key, epoch))


def ending(books: Books, key: Key, epoch: int) -> Callable[[], None]:
    """An effect: the member is told that its claim is over."""

    def tell() -> None:
        peer = books.seats.pop((*key, epoch), None)
        grant = peer.grants.get(key) if peer is not None else None
        if peer is not None and grant is not None and grant.epoch == epoch:
            del peer.grants[key]
            peer.lost(*key, epoch)
        if (group := books.groups.get(key)) is not None:
            group.gone(epoch)
        books.raised.add(key[0])

    return tell


def end_all(desk: Desk, key: Key, shared: Shared) -> None:
    """The cursor is to be put somewhere else, or deleted."""
    if (group := desk.books.groups.get(key)) is not None:
        group.move()
    for epoch in shared.members:
        end(desk, key, epoch)
    _then(desk, key, lambda group: group.clear())


def _then(desk: Desk, key: Key, change: Callable[[Dispatch], None]) -> None:
    """An effect on the dispatch; then its members are looked after."""
    books = desk.books

    def effect() -> None:
        if (group := books.groups.get(key)) is not None:
            change(group)
            books.alarm = min(books.alarm, group.alarm)
            books.raised.add(key[0])

    desk.effects.append(effect)


def _stir(desk: Desk, key: Key) -> None:
    """Its members are looked after."""
    _then(desk, key, lambda _group: None)


# --- settling -------------------------------------------------------------------------------


def member_of(
    desk: Desk, peer: Peer, key: Key, cursor: state.Cursor, epoch: int
) -> tuple[Dispatch, Mate]:
    """The member that asks, if it is one under this epoch at this very moment."""
    grant = peer.grants.get(key)
    group = desk.books.groups.get(key)
    mate = group.mates.get(epoch) if group is not None else None
    held = cursor.shared is not None and epoch in cursor.shared.members
    if grant is None or grant.epoch != epoch or group is None or mate is None or not held:
        raise Fenced(f"you are no member of {key[1]!r} any more", epoch=cursor.epoch)
    return group, mate


def commit_records(desk: Desk, waiting: Waiting, control: protocol.CommitRecords) -> Make:
    desk.writable()
    log = desk.log(control.log)
    cursor, key = desk.cursor(log, control.consumer), (log.id, control.consumer)
    group, mate = member_of(desk, waiting.peer, key, cursor, control.epoch)
    assert cursor.shared is not None
    done = _checked(cursor, cursor.shared, group, mate, control)
    if done or control.begun != cursor.shared.members[control.epoch].begun:
        flat = control.done if done else []
        _complete(desk, key, group, mate, done, (flat, control.begun))
    group.begin(mate, control.begun, desk.now_ns, desk.now, anew=control.anew)
    desk.books.alarm = min(desk.books.alarm, group.alarm)
    if control.back:
        # At once: what it is given between this and the frame's end it has not given back.
        group.give_back(mate, set(control.back).difference(control.begun))
        _stir(desk, key)
    return lambda synced: Answer(protocol.Committed(synced))


def check_single(desk: Desk, peer: Peer, control: protocol.CommitSingle) -> None:
    """Raises what stands in the way of committing this one record now."""
    log, offset = desk.log(control.log), control.offset
    cursor, key = desk.cursor(log, control.consumer), (log.id, control.consumer)
    group, mate = member_of(desk, peer, key, cursor, control.epoch)
    if not cursor.is_settled(offset) and not group.has(mate, offset, offset + 1):
        raise _not_in_hands(cursor, offset)


def commit_single(desk: Desk, peer: Peer, control: protocol.CommitSingle) -> None:
    """What ``check_single`` allowed."""
    log, offset = desk.log(control.log), control.offset
    cursor, key = log.cursors[control.consumer], (log.id, control.consumer)
    group, mate = member_of(desk, peer, key, cursor, control.epoch)
    if not cursor.is_settled(offset):
        flat = [offset, offset + 1]
        done = [(offset, offset + 1)]
        _complete(desk, key, group, mate, done, (flat, None), SINGLE_ABSENT_MAX)


def _complete(
    desk: Desk,
    key: Key,
    group: Dispatch,
    mate: Mate,
    done: list[tuple[int, int]],
    told: tuple[list[int], list[int] | None],
    absent_max: int = ABSENT_MAX,
) -> None:
    """``done``: what is not settled yet. ``told``: done and begun, as for the fact."""
    flat, begun = told
    log = desk.log(key[0])
    paused = group.cursor.paused is not None
    absent = group.take_absent(absent_max) if done else []
    desk.fact(facts.Completed(*key, mate.epoch, [*flat, *absent], begun), log)
    if done:
        _settled(desk, key, group, mate, done)
        if paused:
            resumed(desk, key)


def _settled(
    desk: Desk, key: Key, group: Dispatch, mate: Mate, done: list[tuple[int, int]]
) -> None:
    """The member has these no more, from now on; others may have what they held up, when it is
    durable.
    """
    offsets = group.put_down(mate, done)
    _then(desk, key, lambda group: group.settled(offsets))


def _checked(
    cursor: state.Cursor,
    shared: Shared,
    group: Dispatch,
    mate: Mate,
    control: protocol.CommitRecords,
) -> list[tuple[int, int]]:
    """What the request settles that is not settled yet. Raises InvalidRequest and Fenced."""
    if max(len(control.done), len(control.begun), len(control.back)) > OFFSETS_MAX:
        raise InvalidRequest(f"at most {OFFSETS_MAX} offsets in one list")
    flat = control.done
    if len(flat) % 2 or any(a >= b for a, b in itertools.pairwise(flat)):
        raise InvalidRequest("done: begin, end, begin, end, ... in rising order")
    done = [
        hole
        for begin, end in pairs(flat)
        for hole in holes(shared.settled, max(begin, cursor.committed), end)
    ]
    for begin, end in done:
        if not group.has(mate, begin, end):
            text = f"the offsets {begin} to {end} are not, or no longer, in your hands"
            raise Fenced(text, epoch=cursor.epoch)
    finished: list[int] = []
    for begin, end in done:
        add(finished, begin, end)
    if any(a >= b for a, b in itertools.pairwise(control.begun)):
        raise InvalidRequest("begun: offsets in rising order")
    for offset in control.begun:
        if offset not in mate.hands or holds(finished, offset):
            raise _not_in_hands(cursor, offset)
    return done


def _not_in_hands(cursor: state.Cursor, offset: int) -> Fenced:
    text = f"offset {offset} is not, or no longer, in your hands"
    return Fenced(text, epoch=cursor.epoch)


def settle(
    desk: Desk, waiting: Waiting, log: state.Log, cursor: state.Cursor, control: protocol.Settle
) -> Make:
    """A verdict on one record; see ``consumers.settle``."""
    key, offset = (log.id, control.consumer), control.offset
    group, mate = member_of(desk, waiting.peer, key, cursor, control.epoch)
    if offset not in mate.hands:
        # Given once more, because its answer was lost, or of what somebody else has by now?
        parked = cursor.parked.get(offset)
        open_ = parked is not None and parked.redriven if control.redriven else True
        again = control.verdict == "retry" and cursor.attempts_of(offset) >= control.attempts
        if (open_ and not again) and (control.redriven or not cursor.is_settled(offset)):
            raise _not_in_hands(cursor, offset)
        return lambda synced: Answer(protocol.Judged(synced, cursor.paused))
    if control.redriven != cursor.is_settled(offset):
        raise InvalidRequest(f"offset {offset} is {'not ' if control.redriven else ''}redriven")
    paused = cursor.paused
    if control.verdict == "retry":
        _retry(desk, log, key, group, mate, control)
    elif control.verdict == "park" or control.exhausted:
        put_aside(desk, log, cursor, control)
        _settled(desk, key, group, mate, [(offset, offset + 1)])
    elif control.redriven:
        _unpark(desk, log, key, group, mate, offset)
    else:
        raise InvalidRequest("a shared consumer's records are committed by CommitRecords")
    if cursor.paused is not None and paused is None:
        _tell_standing(desk, key, cursor.paused)
    return lambda synced: Answer(protocol.Judged(synced, cursor.paused))


def check_redriven(desk: Desk, peer: Peer, control: protocol.CommitRedriven) -> None:
    """Raises what stands in the way of committing this redriven record now."""
    log = desk.log(control.log)
    cursor, key = desk.cursor(log, control.consumer), (log.id, control.consumer)
    _group, mate = member_of(desk, peer, key, cursor, control.epoch)
    parked = cursor.parked.get(control.offset)
    if control.offset not in mate.hands and parked is not None and parked.redriven:
        raise _not_in_hands(cursor, control.offset)


def commit_redriven(desk: Desk, peer: Peer, control: protocol.CommitRedriven) -> None:
    """What ``check_redriven`` allowed."""
    log, offset = desk.log(control.log), control.offset
    cursor, key = log.cursors[control.consumer], (log.id, control.consumer)
    group, mate = member_of(desk, peer, key, cursor, control.epoch)
    if offset in mate.hands and offset in cursor.parked:
        _unpark(desk, log, key, group, mate, offset)


def _unpark(desk: Desk, log: state.Log, key: Key, group: Dispatch, mate: Mate, offset: int) -> None:
    paused = group.cursor.paused is not None
    desk.fact(facts.Unparked(*key, mate.epoch, offset), log)
    _settled(desk, key, group, mate, [(offset, offset + 1)])
    if paused:
        resumed(desk, key)


def _retry(
    desk: Desk,
    log: state.Log,
    key: Key,
    group: Dispatch,
    mate: Mate,
    control: protocol.Settle,
) -> None:
    due, offset = desk.now + control.delay, control.offset
    desk.fact(
        facts.Failed(
            *key, control.epoch, offset, control.attempts, control.error, round(control.delay * 1e9)
        ),
        log,
    )
    group.put_down(mate, [(offset, offset + 1)])
    _then(desk, key, lambda group: group.failed(offset, mate, due))


def resumed(desk: Desk, key: Key) -> None:
    """Redriven records wait, and the consumer may be paused no more."""
    _then(desk, key, lambda group: group.recall())
    cursor = desk.state.logs[key[0]].cursors[key[1]]
    if cursor.paused is None:
        _tell_standing(desk, key, None)


def _tell_standing(desk: Desk, key: Key, paused: str | None) -> None:
    books = desk.books

    def tell() -> None:
        for seat in [seat for seat in books.seats if seat[:2] == key]:
            books.seats[seat].standing(*key, paused)

    desk.effects.append(tell)


def unreadable(desk: Desk, waiting: Waiting, control: Unreadable) -> Make:
    """A redriven record that cannot be had: removed, it is done with; damaged, it stays parked."""
    here = (control.log, control.consumer)
    _writable_or_again(desk, here, lambda group: group.look_up_again(control.offset))
    log = desk.state.logs.get(control.log)
    cursor = log.cursors.get(control.consumer) if log is not None else None
    parked = cursor.parked.get(control.offset) if cursor is not None else None
    if log is not None and parked is not None and parked.redriven:
        key = (log.id, control.consumer)
        if control.damaged:
            desk.fact(
                facts.Parked(
                    *key, 0, control.offset, parked.attempts, "it cannot be read", control.reason,
                    "", None, True, 0,
                ),
                log,
            )  # fmt: skip
        else:
            desk.fact(facts.Unparked(*key, 0, control.offset), log)
        _then(desk, key, lambda group: group.forget_redriven(control.offset))
    return lambda _synced: Answer(protocol.Done())


def extend(desk: Desk, waiting: Waiting, key: Key, control: protocol.Extend) -> None:
    cursor = desk.state.logs[key[0]].cursors[key[1]]
    group, mate = member_of(desk, waiting.peer, key, cursor, control.epoch)
    group.extend(mate, control.offset, desk.now)


def members(desk: Desk, log: state.Log, name: str, shared: Shared) -> tuple[model.Member, ...]:
    """As ``CursorInfo`` tells of them."""
    group = desk.books.groups.get((log.id, name))
    infos = []
    for epoch, member in shared.members.items():
        if not member.held:
            continue
        mate = group.mates.get(epoch) if group is not None else None
        begun = mate.since_ns if mate is not None else {}
        lowest = min(begun, default=None)
        since_ns = begun[lowest] if lowest is not None else None
        infos.append(model.Member(member.name, member.since_ns, lowest, since_ns))
    return tuple(infos)

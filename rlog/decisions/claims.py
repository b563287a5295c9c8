"""Decisions about claims: of a consumer by its member, and of a log by its exclusive producer.

A claim is a connection. It ends by release, with its connection, when a record was in hand for too
long, or from outside; whoever waits for it is then decided again. Whoever lost its connection comes
back with the token of its claim, and as long as nobody else has claimed, goes on where it was.
"""

from __future__ import annotations

from bisect import insort
from enum import Enum
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from rlog_client import model, protocol
from rlog_client.errors import Fenced, InvalidRequest, NotFound, Overloaded

from .. import facts, state
from . import members
from .desk import WAITS_MAX, Answer, Grant, resolve

if TYPE_CHECKING:
    from .desk import Desk, Key, Lapse, Leave, Make, Peer, Waiting

HAND_SECONDS_MIN = 0.1
HAND_SECONDS_MAX = 366 * 86400.0


class Turn(Enum):
    FREE = "it may be claimed anew"
    RETURNED = "it is this peer's already, which comes back"
    WAITS = "the request stays, and is decided again"


class Ask(NamedTuple):
    """A wish to hold something."""

    log: state.Log
    name: str  # a consumer's, or PRODUCER_ID
    control: protocol.Claim | protocol.OpenProducer

    @property
    def key(self) -> Key:
        return self.log.id, self.name


def take(desk: Desk, waiting: Waiting, ask: Ask) -> Turn:
    """Whose turn it is. Raises Busy, or Fenced for one that comes back too late."""
    control, peer, books = ask.control, waiting.peer, desk.books
    if not 1 <= len(control.token) <= 64:
        raise InvalidRequest("a claim's token has 1 to 64 bytes")
    if peer.closed:
        raise InvalidRequest("the connection is closed")  # and nobody hears this
    claim = ask.log.claimable(ask.name)
    if claim is None:
        if control.epoch:
            raise NotFound(f"log {ask.log.name!r} has no consumer {ask.name!r} any more")
        return Turn.FREE
    if claim.holder is not None and claim.holder.token == control.token:
        _come_back(desk, peer, ask, claim)
        return Turn.RETURNED
    if control.epoch:
        raise Fenced(
            f"{ask.name!r} of log {ask.log.name!r} is at epoch {claim.epoch}, not yours",
            epoch=claim.epoch,
        )
    if control.takeover:
        return Turn.FREE
    if ask.key in books.returning:
        _wait(desk, waiting, ask)  # for as long as the last holder has first right
        return Turn.WAITS
    held = desk.is_held(ask.key, claim)
    if not held and ask.key in books.waiting:
        # It ended in this very frame: those who wait are called when that is durable, and are not
        # passed by whoever asks meanwhile.
        _wait(desk, waiting, ask)
        return Turn.WAITS
    if control.standby and held:
        _wait(desk, waiting, ask)
        return Turn.WAITS
    desk.check_free(ask.log, ask.name, claim)
    return Turn.FREE


def _come_back(desk: Desk, peer: Peer, ask: Ask, claim: state.Cursor | state.Owner) -> None:
    key, books = ask.key, desk.books
    before = books.holders.get(key)
    if before is not None and before is not peer:
        # Its connection is lost, and it does not know yet. (Or it is one that was taken over from
        # in this very frame, and is told of that when it is durable.)
        grant = before.grants.get(key)
        if grant is not None and grant.epoch == claim.epoch:
            del before.grants[key]
    if not claim.held:
        desk.fact(facts.Returned(*key, claim.epoch))
    if isinstance(claim, state.Cursor) and isinstance(ask.control, protocol.Claim):
        visible = books.visible[ask.log.id].end
        delivered = max(claim.committed, min(ask.control.delivered, visible))
        grant = Grant(claim.epoch, delivered, ask.control.hand_seconds)
        books.hands.pop(key, None)
        books.put_in_hand(key, grant, claim.in_hand, desk)
    else:
        grant = Grant(claim.epoch, 0)
    # At once: nothing of it is new, and what is pipelined behind it is judged by it.
    books.holders[key] = peer
    peer.granted(key, grant)
    desk.claimed[key] = (peer, claim.epoch)
    if books.returning.pop(key, None) is not None:
        desk.effects.append(lambda: books.call(key))


def _wait(desk: Desk, waiting: Waiting, ask: Ask) -> None:
    peer, key, books = waiting.peer, ask.key, desk.books
    if key in peer.waits:
        raise InvalidRequest("this connection waits for this claim already")
    if len(peer.waits) >= WAITS_MAX:
        raise Overloaded(f"this connection waits for {WAITS_MAX} claims already")
    queue = books.waiting.setdefault(key, [])
    if not (ticket := ask.control.ticket):
        # Behind all those before it, also when the wall clock was put back.
        ticket = max(desk.now_ns, books.ticket + 1, _ticket(queue[-1]) + 1 if queue else 0)
        books.ticket = ticket
        peer.answer(waiting.request, protocol.Queued(ticket))
        control = msgspec.structs.replace(ask.control, ticket=ticket)
        waiting = waiting._replace(control=control)
    peer.waits.add(key)
    insort(queue, waiting, key=_ticket)


def _ticket(waiting: Waiting) -> int:
    assert isinstance(waiting.control, protocol.Claim | protocol.OpenProducer)
    return waiting.control.ticket


def claim_anew(desk: Desk, peer: Peer, ask: Ask, grant: Grant) -> None:
    """A claim that is decided; whoever held it before is told when that is durable."""
    key, books = ask.key, desk.books
    claim = ask.log.claimable(ask.name)
    if claim is not None and claim.held:
        desk.effects.append(books.ending(key))
    token, name = ask.control.token, peer.name
    desk.fact(facts.Claimed(*key, grant.epoch, token, name, grant.delivered))
    if books.returning.pop(key, None) is not None:
        desk.effects.append(lambda: books.call(key))

    def give() -> None:
        now = ask.log.claimable(ask.name)
        here = desk.claimed[key] == (peer, grant.epoch)  # not back already by another connection
        if here and now is not None and now.held and now.epoch == grant.epoch:
            books.holders[key] = peer
            peer.granted(key, grant)

    desk.claimed[key] = (peer, grant.epoch)
    desk.effects.append(give)


def claim(desk: Desk, waiting: Waiting, control: protocol.Claim) -> Make | None:
    desk.writable()
    log = desk.log(control.log)
    if control.consumer != model.GLOBAL_ID:
        model.check_consumer(control.consumer)
    hand = control.hand_seconds
    if hand is not None and not HAND_SECONDS_MIN <= hand <= HAND_SECONDS_MAX:
        raise InvalidRequest(f"hand_seconds is {HAND_SECONDS_MIN} to {HAND_SECONDS_MAX:.0f}")
    cursor = log.cursors.get(control.consumer)
    if cursor is not None and (cursor.shared is not None) != control.shared:
        kind = "in order" if control.shared else "shared"
        raise InvalidRequest(
            f"consumer {control.consumer!r} of log {log.name!r} is {kind} for life"
        )
    if control.shared:
        return members.join(desk, waiting, control, log)
    ask = Ask(log, control.consumer, control)
    turn = take(desk, waiting, ask)
    if turn is Turn.WAITS:
        return None
    epoch = 0 if cursor is None else cursor.epoch
    if turn is Turn.FREE:
        epoch += 1
        committed = resolve(log, control.start, log.end) if cursor is None else cursor.committed
        claim_anew(desk, waiting.peer, ask, Grant(epoch, committed, hand))
    cursor = log.cursors[control.consumer]
    answer = protocol.Claimed(
        epoch,
        cursor.committed,
        attempts=cursor.attempts,
        wait_seconds=desk.wait_seconds(ask.key, cursor.committed, cursor),
        one_by_one=cursor.one_by_one if cursor.one_by_one > cursor.committed else 0,
        redriven=cursor.redriven is not None,
        paused=cursor.paused,
    )
    return lambda _synced: Answer(answer)


def release(desk: Desk, waiting: Waiting, control: protocol.Release) -> Make:
    key = (control.log, control.consumer)
    if _is_shared(desk, key):
        members.give_up(desk, waiting.peer, key, gone=True)
    elif (epoch := _give_up(desk, waiting.peer, key)) is not None:
        desk.fact(facts.Released(*key, epoch))
    return lambda _synced: Answer(protocol.Done())


def leave(desk: Desk, waiting: Waiting, control: Leave) -> Make:
    key = (control.log, control.consumer)
    if _is_shared(desk, key):
        members.give_up(desk, waiting.peer, key, gone=False)
    elif (epoch := _give_up(desk, waiting.peer, key)) is not None:
        desk.fact(facts.Left(*key, epoch))
    return lambda _synced: Answer(protocol.Done())


def _is_shared(desk: Desk, key: Key) -> bool:
    log = desk.state.logs.get(key[0])
    return log is not None and log.shared(key[1]) is not None


def _give_up(desk: Desk, peer: Peer, key: Key) -> int | None:
    """A peer lets go of what it holds or waits for: the epoch of the claim that this ends.

    Where nothing can be written that is refused, and still the claim is nobody's from here on.
    """
    books = desk.books
    books.stop_waiting(peer, key)
    # The grant goes now, so that a commit behind this release in the same frame is refused.
    grant = peer.grants.pop(key, None)
    epoch = grant.epoch if grant is not None else None
    claimed = desk.claimed.get(key)
    if claimed is not None and claimed[0] is peer:
        # Claimed in this very frame, and not granted yet; perhaps over a grant of its own.
        epoch = max(claimed[1], epoch or 0)
    if books.holders.get(key) is peer:
        del books.holders[key]
        books.hands.pop(key, None)
    if epoch is not None:
        desk.effects.append(lambda: books.call(key))
    desk.writable()
    log = desk.state.logs.get(key[0])  # a log that was deleted took its claims with it
    claim = log.claimable(key[1]) if log is not None else None
    if claim is None or not claim.held or claim.epoch != epoch:
        return None
    return epoch


def evict(desk: Desk, waiting: Waiting, control: protocol.Evict) -> Make:
    desk.writable()
    log = desk.log(control.log)
    at_log = control.consumer == model.PRODUCER_ID
    if (shared := log.shared(control.consumer)) is not None:
        members.evict(desk, log, control.consumer, shared, control.member)
        return lambda _synced: Answer(protocol.Done())
    claim = log.owner if at_log else desk.cursor(log, control.consumer)
    # Also one whose connection is gone: it shall not come back to it.
    if claim.holder is None or control.member not in (None, claim.holder.name):
        name = control.member
        held = "held by nobody" if name is None else f"not held by {name}"
        raise NotFound(f"{control.consumer!r} of log {log.name!r} is {held}")
    _end(desk, log, control.consumer, claim, lapsed=False)
    return lambda _synced: Answer(protocol.Done())


def lapse(desk: Desk, waiting: Waiting, control: Lapse) -> Make:
    log = desk.state.logs.get(control.log)
    cursor = log.cursors.get(control.consumer) if log is not None else None
    # What was asked for before the time ran out is decided before this: it may have put the record
    # down, or begun its time anew.
    key = (control.log, control.consumer)
    if cursor is not None and cursor.shared is not None:
        members.lapse(desk, key, cursor.shared, control)
        return lambda _synced: Answer(protocol.Done())
    desk.writable()
    peer = desk.books.holders.get(key)
    grant = peer.grants.get(key) if peer is not None else None
    late = grant is not None and grant.in_hand is not None and key not in desk.books.hands
    if log is not None and cursor is not None and cursor.epoch == control.epoch and late:
        _end(desk, log, control.consumer, cursor, lapsed=True)
    return lambda _synced: Answer(protocol.Done())


def _end(
    desk: Desk, log: state.Log, name: str, claim: state.Cursor | state.Owner, *, lapsed: bool
) -> None:
    key, books = (log.id, name), desk.books
    desk.fact(facts.Evicted(*key, claim.epoch + 1, lapsed))
    books.returning.pop(key, None)
    desk.end_claim(key)


def extend(desk: Desk, waiting: Waiting, control: protocol.Extend) -> Make:
    log = desk.log(control.log)
    key = (log.id, control.consumer)
    if log.shared(control.consumer) is not None:
        members.extend(desk, waiting, key, control)
        return lambda _synced: Answer(protocol.Done())
    desk.held_cursor(waiting.peer, log, control.consumer, control.epoch)
    grant = waiting.peer.grants[key]
    # (Its time may have run out a moment ago, and be back in ``hands`` by this.)
    if grant.in_hand is not None and grant.hand_seconds is not None:
        desk.books.put_in_hand(key, grant, grant.in_hand, desk)
    return lambda _synced: Answer(protocol.Done())

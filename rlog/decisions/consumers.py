"""Decisions about consumers: commits and verdicts, parked records, seeks, and how they stand."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from rlog_client import model, protocol
from rlog_client.errors import InvalidRequest

from .. import facts, state
from ..shared import pairs
from . import members
from .desk import Answer, Grant, listing, resolve
from .parking import put_aside
from .trims import behind_own, unprotect

if TYPE_CHECKING:
    from collections.abc import Callable

    from ..log import LogFiles, Spot
    from ..segment import Extent
    from .desk import Desk, Key, Make, Peer, Waiting

TEXT_BYTES_MAX: Final = 4096  # of an error, and of a reason
CAUSE_BYTES_MAX: Final = 255
DELAY_SECONDS_MAX: Final = 366 * 86400.0
LIST_MAX: Final = 1000  # offsets in one request, or parked records in one listing


def commit(desk: Desk, waiting: Waiting, control: protocol.CommitCursor) -> Make:
    desk.writable()
    check_commit(desk, waiting.peer, control)
    commit_checked(desk, waiting.peer, control)
    return lambda synced: Answer(protocol.Committed(synced))


def check_commit(desk: Desk, peer: Peer, control: protocol.CommitCursor) -> None:
    """Raises what stands in the way of this commit now."""
    log = desk.log(control.log)
    desk.held_cursor(peer, log, control.consumer, control.epoch)
    highest = max(control.offset, control.begun)
    if highest > peer.grants[log.id, control.consumer].delivered:
        raise InvalidRequest(f"offset {highest} was not delivered to this consumer yet")


def commit_checked(desk: Desk, peer: Peer, control: protocol.CommitCursor) -> None:
    log, key = desk.log(control.log), (control.log, control.consumer)
    cursor, grant = log.cursors[control.consumer], peer.grants[key]
    begun = control.begun if control.begun > control.offset else 0
    if control.offset > cursor.committed or (
        control.offset == cursor.committed
        and (begun != cursor.begun or (not begun and cursor.hand is not None))
    ):
        passes = control.offset > cursor.committed
        if passes:
            desk.books.due.pop((*key, cursor.committed), None)
        recalls = cursor.paused is not None and passes
        desk.fact(
            facts.Committed(log.id, control.consumer, control.epoch, control.offset, begun), log
        )
        desk.books.put_in_hand(key, grant, cursor.in_hand, desk)
        if recalls:
            _recall(desk, key)


def _recall(desk: Desk, key: Key) -> None:
    """Tell the holder that there are redriven records to take."""
    if desk.state.logs[key[0]].shared(key[1]) is not None:
        members.resumed(desk, key)
        return

    def tell() -> None:
        if (peer := desk.books.holders.get(key)) is not None:
            peer.recall(*key)

    desk.effects.append(tell)


# --- verdicts -------------------------------------------------------------------------------


def settle(desk: Desk, waiting: Waiting, control: protocol.Settle) -> Make:
    desk.writable()
    log = desk.log(control.log)
    _check_texts(control)
    if log.shared(control.consumer) is not None:
        return members.settle(desk, waiting, log, log.cursors[control.consumer], control)
    cursor = desk.held_cursor(waiting.peer, log, control.consumer, control.epoch)
    grant = waiting.peer.grants[log.id, control.consumer]
    if max(control.offset + 1, control.begun) > grant.delivered and not control.redriven:
        raise InvalidRequest(f"offset {control.offset} was not delivered to this consumer yet")
    # A verdict that was lost on its way back is given again: it stands.
    if control.redriven:
        settle_redriven(desk, log, cursor, grant, control)
    elif control.offset > cursor.committed:
        raise InvalidRequest(f"the record to settle is {cursor.committed}, not {control.offset}")
    elif control.offset == cursor.committed:
        _settle_next(desk, log, cursor, grant, control)
    return lambda synced: Answer(protocol.Judged(synced, cursor.paused))


def _check_texts(control: protocol.Settle) -> None:
    for text, limit in (
        (control.error, TEXT_BYTES_MAX),
        (control.reason, TEXT_BYTES_MAX),
        (control.cause, CAUSE_BYTES_MAX),
    ):
        if len(text.encode(errors="replace")) > limit:
            raise InvalidRequest(f"a text of more than {limit} bytes")
    if not 0 <= control.delay <= DELAY_SECONDS_MAX:
        raise InvalidRequest(f"a delay is 0 to {DELAY_SECONDS_MAX:.0f} seconds")
    if not 0 <= control.attempts < 2**31:
        raise InvalidRequest("attempts are 0 to 2**31")


def _settle_next(
    desk: Desk, log: state.Log, cursor: state.Cursor, grant: Grant, control: protocol.Settle
) -> None:
    if control.verdict == "retry":
        _fail(desk, log, cursor, grant, control)
    elif control.verdict == "park" or control.exhausted:
        _park(desk, log, cursor, grant, control)
    else:
        raise InvalidRequest("a record at the cursor is committed or skipped by CommitCursor")


def settle_redriven(
    desk: Desk, log: state.Log, cursor: state.Cursor, grant: Grant, control: protocol.Settle
) -> None:
    key = (log.id, control.consumer)
    parked = cursor.parked.get(control.offset)
    if parked is None or not parked.redriven:
        return
    if control.verdict == "retry":
        _fail(desk, log, cursor, grant, control)
        return
    desk.books.due.pop((*key, control.offset), None)
    if control.verdict == "park":
        _park(desk, log, cursor, grant, control)
    else:
        paused = cursor.paused is not None
        desk.fact(facts.Unparked(*key, control.epoch, control.offset), log)
        desk.books.put_in_hand(key, grant, cursor.in_hand, desk)
        if paused:
            _recall(desk, key)


def _fail(
    desk: Desk, log: state.Log, cursor: state.Cursor, grant: Grant, control: protocol.Settle
) -> None:
    key = (log.id, control.consumer)
    desk.fact(
        facts.Failed(
            *key,
            control.epoch,
            control.offset,
            control.attempts,
            control.error,
            round(control.delay * 1e9),
        ),
        log,
    )
    desk.books.due[*key, control.offset] = desk.now + control.delay
    desk.books.put_in_hand(key, grant, cursor.in_hand, desk)


def _park(
    desk: Desk, log: state.Log, cursor: state.Cursor, grant: Grant, control: protocol.Settle
) -> None:
    key = (log.id, control.consumer)
    put_aside(desk, log, cursor, control)
    desk.books.due.pop((*key, control.offset), None)
    desk.books.put_in_hand(key, grant, cursor.in_hand, desk)


# --- parked records -------------------------------------------------------------------------


def take_redriven(desk: Desk, waiting: Waiting, control: protocol.TakeRedriven) -> Make:
    log = desk.log(control.log)
    cursor = desk.held_cursor(waiting.peer, log, control.consumer, control.epoch)
    key = (log.id, control.consumer)
    if (offset := cursor.redriven) is None:
        return lambda _synced: Answer(protocol.Taken(-1))
    parked = cursor.parked[offset]
    if control.begin and cursor.hand != offset:
        desk.writable()
        desk.fact(facts.Took(*key, control.epoch, offset), log)
        desk.books.put_in_hand(key, waiting.peer.grants[key], offset, desk)
    answer = protocol.Taken(offset, parked.attempts, desk.wait_seconds(key, offset, parked))
    return lambda _synced: Answer(answer)


def list_parked(desk: Desk, waiting: Waiting, control: protocol.ListParked) -> Make:
    log = desk.log(control.log)
    cursor = desk.cursor(log, control.consumer)
    offsets = sorted(offset for offset in cursor.parked if offset >= control.begin)[:LIST_MAX]
    infos = []
    for offset in offsets:
        parked = cursor.parked[offset]
        infos.append(
            protocol.ParkedInfo(
                offset,
                parked.reason,
                parked.error,
                parked.attempts,
                parked.parked_ns,
                parked.redriven,
                bool(parked.copy),
            )
        )
    return lambda _synced: listing(infos)


def redrive(desk: Desk, waiting: Waiting, control: protocol.Redrive) -> Make:
    desk.writable()
    log = desk.log(control.log)
    cursor = desk.cursor(log, control.consumer)
    # (What is not settled, after a seek back, is delivered in its turn.)
    wanted = cursor.parked if control.offsets is None else set(control.offsets)
    if control.offsets is not None and len(control.offsets) > LIST_MAX:
        raise InvalidRequest(f"at most {LIST_MAX} offsets at once")
    offsets = sorted(
        o
        for o in wanted
        if o in cursor.parked and cursor.is_settled(o) and not cursor.parked[o].redriven
    )[:LIST_MAX]
    if offsets:
        desk.fact(facts.Redriven(log.id, control.consumer, offsets), log)
        _recall(desk, (log.id, control.consumer))
    return lambda _synced: Answer(protocol.Counted(len(offsets)))


def resume(desk: Desk, waiting: Waiting, control: protocol.Resume) -> Make:
    desk.writable()
    log = desk.log(control.log)
    if desk.cursor(log, control.consumer).paused is not None:
        desk.fact(facts.Resumed(log.id, control.consumer), log)
        _recall(desk, (log.id, control.consumer))
    return lambda _synced: Answer(protocol.Done())


# --- seen from outside ----------------------------------------------------------------------


def seek(desk: Desk, waiting: Waiting, control: protocol.SeekCursor) -> Make:
    desk.writable()
    log = desk.log(control.log)
    peer, key = waiting.peer, (log.id, control.consumer)
    by_holder = control.epoch is not None
    if control.epoch is not None:
        if log.shared(control.consumer) is not None:
            raise InvalidRequest("a shared consumer is moved from outside: cursor(...).seek(...)")
        cursor = desk.held_cursor(peer, log, control.consumer, control.epoch)
    elif control.force:
        cursor = desk.cursor(log, control.consumer)
    else:
        cursor = desk.free_cursor(log, control.consumer)
    before, epoch = cursor.committed, cursor.epoch + 1
    after = resolve(log, control.whence, log.end)
    if cursor.shared is not None:
        members.end_all(desk, key, cursor.shared)
    desk.fact(facts.Sought(*key, epoch, after, by_holder))
    if after != before:
        for offset in (before, *(parked for parked in cursor.parked if parked >= after)):
            desk.books.due.pop((*key, offset), None)
    if by_holder:
        # At once: what was pipelined behind the seek under the old epoch is fenced.
        peer.grants[key] = Grant(epoch, after, peer.grants[key].hand_seconds)
        desk.books.put_in_hand(key, peer.grants[key], None, desk)
    else:
        desk.books.returning.pop(key, None)
        desk.end_claim(key)
    return lambda _synced: Answer(protocol.Moved(before, after, epoch))


def delete_cursor(desk: Desk, waiting: Waiting, control: protocol.DeleteCursor) -> Make:
    desk.writable()
    log = desk.log(control.log)
    cursor, key = desk.free_cursor(log, control.consumer), (log.id, control.consumer)
    if cursor.shared is not None:
        members.end_all(desk, key, cursor.shared)
    desk.fact(facts.Forgotten(*key))
    if control.consumer in log.options.protected:
        unprotect(desk, log, control.consumer)
    desk.books.returning.pop(key, None)
    desk.books.forget_consumer(key)
    desk.end_claim(key)
    return lambda _synced: Answer(protocol.Done())


def list_cursors(desk: Desk, waiting: Waiting, control: protocol.ListCursors) -> Make:
    log = desk.log(control.log)
    looks = [_look_at(desk, log, name) for name in sorted(log.cursors)]
    return lambda _synced: lambda: listing([look() for look in looks])


def get_cursor(desk: Desk, waiting: Waiting, control: protocol.GetCursor) -> Make | None:
    log = desk.log(control.log)
    desk.cursor(log, control.consumer)
    if behind_own(desk, waiting, (log.id, control.consumer)):
        return None
    look = _look_at(desk, log, control.consumer)
    return lambda _synced: lambda: Answer(protocol.CursorReply(look()))


def _look_at(desk: Desk, log: state.Log, name: str) -> Callable[[], model.CursorInfo]:
    """A cursor as it is now; how far it lags in bytes and seconds has to be looked up on the
    disk.
    """
    cursor = log.cursors[name]
    committed, log_name, now_ns = cursor.committed, log.name, desk.now_ns
    holders, parked, paused = _members(desk, log, name), len(cursor.parked), cursor.paused
    end, start = log.end, max(cursor.committed, log.first)
    lag = end - start
    if cursor.shared is not None:
        lag -= sum(max(0, e - max(b, start)) for b, e in pairs(cursor.shared.settled))
    books = desk.books
    group = books.groups.get((log.id, name))
    held_back = group.held_back if group is not None else None
    extent = books.extent(log, start) if start < books.visible[log.id].end else None
    files = books.files[log.id]
    later = sum(s.bytes for s in log.segments if extent is not None and s.base > extent.base)

    def look() -> model.CursorInfo:
        lag_bytes, time_ns = later, now_ns
        if extent is not None and (spot := _find(files, extent, start)) is not None:
            lag_bytes, time_ns = later + extent.length - spot.position, spot.time_ns
        return model.CursorInfo(
            log=log_name,
            id=name,
            committed=committed,
            lag_records=lag,
            lag_bytes=lag_bytes,
            lag_seconds=max(0, now_ns - time_ns) / 1e9,
            members=holders,
            parked=parked,
            paused=paused,
            held_back=held_back,
        )

    return look


def _members(desk: Desk, log: state.Log, name: str) -> tuple[model.Member, ...]:
    cursor = log.cursors[name]
    if cursor.shared is not None:
        return members.members(desk, log, name, cursor.shared)
    if not cursor.held or cursor.holder is None:
        return ()
    peer = desk.books.holders.get((log.id, name))
    grant = peer.grants.get((log.id, name)) if peer is not None else None
    in_hand = grant.in_hand if grant is not None else None
    since_ns = grant.in_hand_ns if grant is not None and in_hand is not None else None
    return (model.Member(cursor.holder.name, cursor.holder.since_ns, in_hand, since_ns),)


def _find(files: LogFiles, extent: Extent, offset: int) -> Spot | None:
    try:
        return files.find(extent, offset)
    except FileNotFoundError:
        return None  # trimmed since

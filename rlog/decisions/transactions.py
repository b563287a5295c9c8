"""Decisions about transactions: appends to any logs and commits of any consumers, or nothing.

Everything is checked, and space for every batch is reserved, before the first fact. All facts stand
in one frame, so that no crash can leave a part of them. The last one names the client and its
number: by it a request that is repeated is recognised, before anything else is asked of it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from rlog_client import batch as batches
from rlog_client import protocol
from rlog_client.errors import Conflict, InvalidRequest, OutcomeUnknown, TooLarge
from rlog_client.model import PRODUCER_ID

from .. import facts, state
from . import appends, consumers, members
from .desk import SETTLE_BYTES_MAX, Answer, note_heard
from .trims import behind_others, make_room

if TYPE_CHECKING:
    from .desk import Batch, Desk, Make, Peer, Waiting


class _Append(NamedTuple):
    """One that nothing stands in the way of. ``keys``: see ``appends.put``."""

    log: state.Log
    batch: Batch
    keys: bytes


def transact(desk: Desk, waiting: Waiting, control: protocol.Transact) -> Make | None:
    client, number, peer = control.client, control.number, waiting.peer
    known = desk.state.clients.get(client)
    if known is not None and (done := known.find(number)) is not None:
        return _duplicate(desk, client, done)
    desk.writable()
    _check_request(desk, control, known)
    checked = [
        _check_append(desk, peer, asked, batch)
        for asked, batch in zip(control.appends, waiting.batches, strict=True)
    ]
    for commit in control.commits:
        _check_commit(desk, peer, commit)
    for commit in control.commits if checked else ():
        _check_undone(desk, commit)
    _check_size(desk, control, checked)
    for append in checked:
        # (What a log has to lose for it goes in any case.)
        size = append.batch.header.bytes
        if behind_others(desk, append.log, waiting) or not make_room(
            desk, append.log, waiting, size
        ):
            return None
    places = [appends.reserve(desk, each.log, each.batch.header.bytes) for each in checked]
    # From here on nothing is refused.
    put = []
    for (log, batch, keys), place in zip(checked, places, strict=True):
        put.append((log.id, *appends.put(desk, log, place, batch, keys)))
    for commit in control.commits:
        _do_commit(desk, peer, commit)
    dropped = note_heard(desk.books.silent_clients, client, desk.now)
    # As durable as all of it: the policies of the others have been heard by now.
    log = checked[0].log if checked else desk.log(control.commits[0].log)
    desk.fact(facts.Transacted(client, number, put, dropped), log)
    answer = [(first, end) for _log, first, end in put]
    time_ns = desk.now_ns
    return lambda synced: Answer(protocol.Transacted(answer, time_ns, synced))


def _duplicate(desk: Desk, client: int, done: state.Transaction) -> Make:
    books = desk.books

    def make(synced: bool) -> Answer:
        # One frame holds all of it, so what is synced of a log tells of the rest. (A log that is
        # gone was deleted by a later frame, which was synced.)
        ends = [(books.synced_end.get(log, end), end) for log, _first, end in done.appends]
        durable = synced or (bool(ends) and all(have >= end for have, end in ends))
        if not durable and books.failed is not None:
            text = f"the transaction may have been done or not: {books.failed}"
            error = OutcomeUnknown(text, producer=client, sequence=done.number)
            return Answer(protocol.error_control(error))
        answer = [(first, end) for _log, first, end in done.appends]
        return Answer(protocol.Transacted(answer, done.time_ns, durable, duplicate=True))

    return make


def _check_request(desk: Desk, control: protocol.Transact, known: state.Client | None) -> None:
    """What can be said of it without a look at logs and cursors."""
    if not 0 < control.client < 2**64 or not 0 <= control.number < 2**63:
        raise InvalidRequest("a client's id is positive and has 64 bits, its numbers have 63")
    if known is not None and known.forgot(control.number):
        raise OutcomeUnknown(
            f"transaction {control.number} is so old that it is not known whether it was done",
            producer=control.client,
            sequence=control.number,
        )
    if not control.appends and not control.commits:
        raise InvalidRequest("a transaction of nothing")
    if len({each.log for each in control.appends}) < len(control.appends):
        raise InvalidRequest("a transaction has at most one batch for each log")
    commits = {_what(each) for each in control.commits}
    if len(commits) < len(control.commits):
        raise InvalidRequest("a transaction commits a consumer, or a redriven record, once")
    size, limit = protocol.transact_bytes(control), desk.books.batch_bytes_max
    if size > limit:
        raise TooLarge(
            f"a transaction of {size} bytes; the limit is {limit}", size=size, limit=limit
        )


def _what(commit: protocol.Commitment) -> tuple[int, str, int | None]:
    through = isinstance(commit, protocol.CommitThrough)
    return commit.log, commit.consumer, None if through else commit.offset


# --- appends --------------------------------------------------------------------------------


def _check_append(desk: Desk, peer: Peer, asked: protocol.LogBatch, batch: Batch) -> _Append:
    header, epoch = batch.header, batch.header.epoch
    log = desk.log(asked.log)
    if header.producer or header.sequence:
        raise InvalidRequest("a transaction's batches have producer 0 and sequence 0")
    grant = peer.grants.get((log.id, PRODUCER_ID))
    if epoch or grant is None or grant.epoch != log.owner.epoch:
        appends.check_fence(desk, peer, log, None, epoch)
    keys = appends.keys_of(desk, log, batch)
    appends.check_end(log, asked.expect)
    if asked.expect_keys:
        decoded = batches.decode_keys(keys) if keys else None
        for index, expect_key in asked.expect_keys:
            appends.check_key(log, decoded, index, expect_key)
    return _Append(log, batch, keys)


def _check_size(desk: Desk, control: protocol.Transact, checked: list[_Append]) -> None:
    """Whether there may be space for all of it."""
    size = protocol.transact_bytes(control) + sum(len(each.keys) for each in checked)
    if size > (limit := desk.books.batch_bytes_max):
        text = f"a transaction of {size} bytes, its keys counted twice; the limit is {limit}"
        raise TooLarge(text, size=size, limit=limit)
    if checked or size > SETTLE_BYTES_MAX:
        appends.check_space(desk)


# --- commits --------------------------------------------------------------------------------


def _check_commit(desk: Desk, peer: Peer, commit: protocol.Commitment) -> None:
    match commit:
        case protocol.CommitThrough():
            consumers.check_commit(desk, peer, _commit(commit))
        case protocol.CommitSingle():
            members.check_single(desk, peer, commit)
        case protocol.CommitRedriven(log, consumer, epoch):
            if desk.log(log).shared(consumer) is not None:
                members.check_redriven(desk, peer, commit)
            else:
                desk.held_cursor(peer, desk.log(log), consumer, epoch)


def _check_undone(desk: Desk, commit: protocol.Commitment) -> None:
    """With appends, what is committed already is refused: they were made with that commit, or were
    not to be made. Whoever gave up on a transaction that waits for space, and has its record once
    more, must not append twice.
    """
    log = desk.log(commit.log)
    if _is_done(log.cursors[commit.consumer], commit):
        offset = commit.offset - isinstance(commit, protocol.CommitThrough)
        text = f"log {log.name!r}: record {offset} is committed by {commit.consumer!r} already"
        raise Conflict(text, end=log.end, key_offset=None)


def _is_done(cursor: state.Cursor, commit: protocol.Commitment) -> bool:
    match commit:
        case protocol.CommitThrough():
            return commit.offset <= cursor.committed
        case protocol.CommitSingle():
            return cursor.is_settled(commit.offset)
        case protocol.CommitRedriven():
            parked = cursor.parked.get(commit.offset)
            return parked is None or not parked.redriven


def _do_commit(desk: Desk, peer: Peer, commit: protocol.Commitment) -> None:
    match commit:
        case protocol.CommitThrough():
            consumers.commit_checked(desk, peer, _commit(commit))
        case protocol.CommitSingle():
            members.commit_single(desk, peer, commit)
        case protocol.CommitRedriven(log_id, consumer, epoch, offset):
            log = desk.log(log_id)
            if log.shared(consumer) is not None:
                members.commit_redriven(desk, peer, commit)
                return
            cursor, grant = log.cursors[consumer], peer.grants[log.id, consumer]
            settle = protocol.Settle(log_id, consumer, epoch, offset, "commit", redriven=True)
            consumers.settle_redriven(desk, log, cursor, grant, settle)


def _commit(commit: protocol.CommitThrough) -> protocol.CommitCursor:
    """The request that would do the same by itself."""
    return protocol.CommitCursor(
        commit.log, commit.consumer, commit.epoch, commit.offset, commit.begun
    )

"""Decisions about appends: who may, whether it is there already, where it goes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rlog_client import batch as batches
from rlog_client import protocol
from rlog_client.errors import (
    Busy,
    Conflict,
    DiskFull,
    Fenced,
    InvalidRequest,
    OutcomeUnknown,
    TooLarge,
)
from rlog_client.model import PRODUCER_ID

from .. import facts, state
from .desk import Answer, Layout, note_heard, refusing, reopened
from .trims import behind_others, make_room

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ..segment import Place
    from .desk import Batch, Desk, Make, Peer, Waiting


def append(desk: Desk, waiting: Waiting, control: protocol.Append) -> Make | None:
    [batch] = waiting.batches
    header = batch.header
    count, producer, sequence, epoch = header.count, header.producer, header.sequence, header.epoch
    log = desk.log(control.log)
    entry = log.producers.get(producer) if producer else None
    if entry is not None and sequence + count - 1 <= entry.last:
        original = entry.original(sequence, count)
        _check_own(log, entry, original, epoch)
        return _duplicate(desk, log, entry, original, producer, sequence, count)
    if behind_others(desk, log, waiting):
        return None
    desk.writable()
    check_fence(desk, waiting.peer, log, entry, epoch)
    _check_sequence(log, entry, control.after, sequence)
    keys = keys_of(desk, log, batch)
    _check_expectations(log, control, keys)
    check_space(desk)
    if not make_room(desk, log, waiting, header.bytes):
        return None
    place = reserve(desk, log, header.bytes)
    first, end = put(desk, log, place, batch, keys)
    if producer and (entry is None or entry.name is None):
        _note_heard(desk, log.id, producer)
    time_ns = desk.now_ns
    return lambda synced: Answer(protocol.Appended(first, end, time_ns, synced))


def check_space(desk: Desk) -> None:
    if desk.books.full is not None:
        raise DiskFull(desk.books.full)


def reserve(desk: Desk, log: state.Log, size: int) -> Place:
    """Space for a batch of so many bytes, where it will lie. It may stay unused."""
    place = log.place(size, desk.now_ns)
    files = desk.books.files[log.id]
    if not files.reserved(place, size):
        with refusing(f"an append of {size} bytes to log {log.name!r}"):
            files.reserve(place, size, log.roll_bytes)
    return place


def put(desk: Desk, log: state.Log, place: Place, batch: Batch, keys: bytes) -> tuple[int, int]:
    """Append a batch to which nothing stands in the way, at its reserved place: first offset, end.

    ``keys``: the keys column, if the log has an index of keys.
    """
    base = log.end
    raw = batches.stamp(batch.produced, log.id, base, desk.now_ns)
    header = batches.stamped(batch.header, log.id, base, desk.now_ns)
    applied = desk.append(log, raw, header, keys)
    assert applied == place
    desk.layouts.append(Layout(place, raw, batch.body, log.end))
    return base, log.end


def _check_own(
    log: state.Log, entry: state.Producer, original: state.Sent | None, epoch: int
) -> None:
    """What stands under these numbers may be of a successor, who opened the name meanwhile: only
    what was sent under the same epoch, or is repeated under the present one, is a retry.
    """
    if entry.name is None or epoch == entry.epoch:
        return
    if original is None or original.epoch != epoch:
        raise reopened(log, entry.name, entry.epoch)


def _duplicate(
    desk: Desk,
    log: state.Log,
    entry: state.Producer,
    original: state.Sent | None,
    producer: int,
    sequence: int,
    count: int,
) -> Make:
    """It is in the log already: recognised before anything else is asked of it."""
    first = end = -1
    time_ns, durable_end = 0, log.end  # no longer known where: somewhere below the end
    if original is not None:
        first, time_ns = original.base + sequence - original.sequence, original.time_ns
        end = durable_end = first + count
    parts = entry.parts(sequence, count) if original is None else []

    def make(synced: bool) -> Answer:
        durable = synced or desk.books.synced_end.get(log.id, 0) >= durable_end
        if not durable and desk.books.failed is not None:
            return Answer(
                protocol.error_control(
                    OutcomeUnknown(
                        f"the append may be in the log or not: {desk.books.failed}",
                        producer=producer,
                        sequence=sequence,
                    )
                )
            )
        return Answer(protocol.Appended(first, end, time_ns, durable, duplicate=True, parts=parts))

    return make


def check_fence(
    desk: Desk, peer: Peer, log: state.Log, entry: state.Producer | None, epoch: int
) -> None:
    """Whether this producer may append at this very moment."""
    owner, key = log.owner, (log.id, PRODUCER_ID)
    named = entry is not None and entry.name is not None
    if epoch and (not named or (entry is not None and entry.exclusive)):
        grant = peer.grants.get(key)
        if grant is None or grant.epoch != owner.epoch or epoch != owner.epoch:
            text = f"log {log.name!r} is at epoch {owner.epoch}: it is no longer yours alone"
            raise Fenced(text, epoch=owner.epoch)
        return
    if entry is not None and named and epoch != entry.epoch:
        raise reopened(log, entry.name, entry.epoch)
    if key in desk.books.returning and owner.holder is not None:
        text = f"log {log.name!r} was owned by {owner.holder.name}, who may come back"
        raise Busy(text, holder=owner.holder.name, since_ns=owner.holder.since_ns)
    desk.check_free(log, PRODUCER_ID, owner)


def _check_sequence(
    log: state.Log, entry: state.Producer | None, after: int | None, sequence: int
) -> None:
    last = entry.last if entry is not None else -1
    if sequence <= last:
        raise Conflict(
            f"log {log.name!r}: part of this batch is in the log already, up to sequence {last}",
            end=log.end,
            key_offset=None,
        )
    if after is not None and after != last:
        raise Conflict(
            f"log {log.name!r}: this batch is to follow sequence {after}, but {last} is the last",
            end=log.end,
            key_offset=None,
        )


def keys_of(desk: Desk, log: state.Log, batch: Batch) -> bytes:
    """The keys column, if the log has an index of keys."""
    if not log.options.key_index:
        return b""
    header, body = batch.header, batch.body
    size = header.bytes + header.keys_bytes
    if size > desk.books.batch_bytes_max:
        limit = desk.books.batch_bytes_max
        text = f"a batch of {size} bytes, its keys counted twice; the limit is {limit}"
        raise TooLarge(text, size=size, limit=limit)
    column = bytes(body[1 : 1 + header.keys_bytes])
    try:
        keys = batches.decode_keys(column)
    except batches.InvalidBatch as error:
        raise InvalidRequest(f"not a sound batch: {error}") from None
    if keys is None:
        return b""
    if len(keys) != header.count:
        raise InvalidRequest(f"not a sound batch: {len(keys)} keys for {header.count} records")
    return column


def _check_expectations(log: state.Log, control: protocol.Append, keys: bytes) -> None:
    check_end(log, control.expect)
    if control.expect_key is not None:
        decoded = batches.decode_keys(keys) if keys else None
        one = decoded if decoded is not None and len(decoded) == 1 else None
        check_key(log, one, 0, control.expect_key)


def check_end(log: state.Log, expect: int | None) -> None:
    if expect is not None and expect != log.end:
        text = f"log {log.name!r} ends at {log.end}, not at {expect}"
        raise Conflict(text, end=log.end, key_offset=None)


def check_key(
    log: state.Log, keys: Sequence[bytes | None] | None, index: int, expect_key: int
) -> None:
    """``index``: of the record, in the batch with these ``keys``."""
    if not log.options.key_index:
        raise InvalidRequest(f"expect_key: log {log.name!r} was made without key_index")
    key = keys[index] if keys is not None and 0 <= index < len(keys) else None
    if key is None:
        raise InvalidRequest("expect_key is for one record with a key")
    last = log.keys.get(key, -1)
    if last != expect_key:
        text = f"log {log.name!r}: the key's last offset is {last}, not {expect_key}"
        raise Conflict(text, end=log.end, key_offset=last)


def _note_heard(desk: Desk, log_id: int, producer: int) -> None:
    """Forget producers without a name when no retry of theirs can come any more."""
    for log, oldest in note_heard(desk.books.silent, (log_id, producer), desk.now):
        if log in desk.state.logs:
            desk.fact(facts.Dropped(log, [oldest]), desk.state.logs[log])

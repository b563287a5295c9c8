"""Decisions about what goes of a log: by its own options, and by hand; and parked records at it.

What is to go, ``retention`` says. Here it becomes a fact; the files are removed when that is
durable, and readers are told behind that. A parked record that would lose its place is copied into
the state first: it is looked up on the disk, where that harms nobody, and comes back as a request
like any other, so that a trim and its copies are judged at one moment.
"""

from __future__ import annotations

import logging
from functools import partial
from typing import TYPE_CHECKING, Final

import msgspec

from rlog_client import batch as batches
from rlog_client import model, protocol
from rlog_client.errors import DiskFull, InvalidRequest, OffsetOutOfRange

from .. import facts, retention, state
from ..log import Chunk
from .desk import Answer, resolve
from .watch import FOREVER, IDLE_SECONDS, TICK_SECONDS, WAIT_SECONDS, Copied, Retain

if TYPE_CHECKING:
    from ..log import LogFiles
    from ..retention import Plan, Uncopied
    from ..segment import Extent
    from .desk import Books, Desk, Key, Make, Waiting

logger = logging.getLogger("rlog.retention")

COPY_BYTES_GOAL: Final = 1 << 20  # of records that are copied in one frame, unless one is larger
COPY_OVERHEAD: Final = 1024  # what a frame needs beside one copy


# --- by the log's own options ---------------------------------------------------------------


def retain(desk: Desk, waiting: Waiting, control: Retain) -> Make:
    for log_id in control.logs:
        log = desk.state.logs.get(log_id)
        # Where nothing can be written it is looked at again at the next tick.
        if log is None or desk.books.failed is not None or desk.books.stuck is not None:
            continue
        if log_id in desk.books.watch.blocked:
            # They look, with what is to be appended. An effect, or an append that is decided in
            # this frame would overtake them.
            desk.effects.append(partial(desk.books.call_blocked, log_id))
        else:
            look(desk, log)
    return lambda _synced: Answer(protocol.Done())


def look(desk: Desk, log: state.Log, *, adding: int = 0, rolls: bool = False) -> Plan:
    """Trim ``log`` by its options, and see to it that it is looked at again.

    ``adding``: the bytes of an append that is about to be decided; ``rolls``: into a new segment.
    """
    watch = desk.books.watch
    plan = retention.plan(
        log,
        desk.now_ns,
        doubt=watch.doubt,
        adding=adding,
        rolls=rolls,
        stuck=partial(watch.stuck_at, log.id),
        lost=_lost(desk.books, log),
    )
    trimmed = plan.first > log.first
    if trimmed:
        cut(desk, log, plan.first)
    if plan.uncopied and desk.now >= watch.copy_at.get(log.id, 0.0):
        watch.uncopied[log.id] = plan.uncopied
    if plan.held is not None:
        watch.hold(log, plan.held, desk.now, by_append=adding > 0)
    else:
        watch.free(log, FOREVER if trimmed else desk.now)
    waits = log.id in watch.held or bool(plan.uncopied)
    options = log.options
    if options.max_total_bytes is not None:
        room = options.max_total_bytes - log.bytes - adding
        if waits and options.blocking_minimum_retention is None:
            # It grows, and an append need not look anew each time.
            room = max(room, log.roll_bytes // state.ROLLS)
        watch.room[log.id] = room
    # What is appended from now on is no matter before it has that age.
    idle = IDLE_SECONDS if options.max_file_age is None else options.max_file_age
    if plan.again_ns is not None:
        idle = min(idle, plan.again_ns / 1e9)
    watch.look_again(log.id, desk.now, 0.0 if waits else idle)
    desk.books.ring_at(watch.due.get(log.id, FOREVER))
    return plan


def cut(
    desk: Desk, log: state.Log, first: int, copies: list[tuple[str, int, bytes]] | None = None
) -> None:
    """It is decided: the log begins at ``first``, and ``copies`` are kept."""
    books, files = desk.books, desk.books.files[log.id]
    gone = [s.base for i, s in enumerate(log.segments) if log.segment_end(i) <= first]
    desk.fact(facts.Trimmed(log.id, first, copies or []))
    books.watch.room.pop(log.id, None)
    if gone:
        desk.effects.append(lambda: files.trim(gone))
        desk.effects.append(lambda: books.begin_at(log.id, first))


def unprotect(desk: Desk, log: state.Log, consumer: str) -> None:
    """Its cursor is deleted. Without one it would keep all that there is, for one that is to come:
    and that is the opposite of what was asked for.
    """
    protected = tuple(name for name in log.options.protected if name != consumer)
    options = msgspec.structs.replace(log.options, protected=protected)
    desk.fact(facts.Altered(log.id, options))
    desk.books.watch.follow(log, desk.now)
    desk.books.ring_at(desk.books.watch.alarm)


# --- appends that wait for space ------------------------------------------------------------


def behind_others(desk: Desk, log: state.Log, waiting: Waiting) -> bool:
    """Whether an append has to wait because others to its log do: it is not to overtake them."""
    if waiting.since is not None and waiting.peer.closed:
        raise InvalidRequest("the connection is closed")  # and nobody hears this
    if log.id not in desk.books.watch.blocked:
        return False
    if _waited(desk, waiting):
        raise DiskFull(f"log {log.name!r}: others wait for space before this")
    _block(desk, log, waiting)
    return True


def behind_own(desk: Desk, waiting: Waiting, consumer: Key) -> bool:
    """Whether a transaction of the same peer that commits ``consumer`` waits for space. Then what
    is asked of the cursor waits behind it: who has given up on its answer goes by that.
    """
    for others in desk.books.watch.blocked.values():
        for each in others:
            control = each.control
            if (
                each.peer is waiting.peer
                and isinstance(control, protocol.Transact)
                and any((commit.log, commit.consumer) == consumer for commit in control.commits)
            ):
                others.append(waiting)
                return True
    return False


def make_room(desk: Desk, log: state.Log, waiting: Waiting, size: int) -> bool:
    """Have a log be within its size with ``size`` bytes more, as far as that can be.

    False: the append has to wait. Raises DiskFull when it has waited for long enough. Trims that
    are due are decided even so: they stand for themselves, whatever becomes of the append.
    """
    limit = log.options.max_total_bytes
    if limit is None:
        return True
    watch = desk.books.watch
    left = watch.room.get(log.id, -1) - size
    if left >= 0:
        watch.room[log.id] = left
        return True
    plan = look(desk, log, adding=size, rolls=log.place(size, desk.now_ns).new)
    if not plan.over or log.options.blocking_minimum_retention is None:
        return True
    watch.room.pop(log.id, None)
    if _waited(desk, waiting):
        raise DiskFull(_full(log, plan))
    _block(desk, log, waiting)
    left_ns = plan.again_ns if plan.again_ns is not None else round(TICK_SECONDS * 1e9)
    since = desk.now if waiting.since is None else waiting.since
    watch.look_soon(log.id, desk.now, min(left_ns / 1e9, since + WAIT_SECONDS - desk.now))
    desk.books.ring_at(watch.due.get(log.id, FOREVER))
    return False


def _block(desk: Desk, log: state.Log, waiting: Waiting) -> None:
    if waiting.since is None:
        waiting = waiting._replace(since=desk.now)
    desk.books.watch.blocked.setdefault(log.id, []).append(waiting)


def _waited(desk: Desk, waiting: Waiting) -> bool:
    """It has waited for long enough."""
    return waiting.since is not None and desk.now >= waiting.since + WAIT_SECONDS


def _full(log: state.Log, plan: Plan) -> str:
    held = plan.held.text if plan.held is not None else "parked records are being copied"
    text = (
        f"log {log.name!r} holds {log.bytes} of max_total_bytes {log.options.max_total_bytes}, and "
        f"nothing of it may go yet: {held}"
    )
    if plan.again_ns is not None:
        return f"{text}; space is expected in {plan.again_ns / 1e9:.1f} s"
    return f"{text}; there will be space when that has changed"


# --- by hand --------------------------------------------------------------------------------


def trim_log(desk: Desk, waiting: Waiting, control: protocol.TrimLog) -> Make | None:
    desk.writable()
    log, watch = desk.log(control.log), desk.books.watch
    # (One that has waited for copies: the log may have been trimmed meanwhile, by itself.)
    again = waiting.since is not None
    before = resolve(log, control.before, log.end) if not again else control.before.value
    lost = _lost(desk.books, log)
    if control.dry:
        lost = {o for cursor in log.cursors.values() for o in cursor.parked}
    plan = retention.trim(log, before, stuck=partial(watch.stuck_at, log.id), lost=lost)
    blocked = again and any(watch.stuck_at(log.id, each.consumer) for each in plan.uncopied[:1])
    if plan.uncopied and not blocked:
        watch.uncopied[log.id] = plan.uncopied
        control = protocol.TrimLog(log.id, model.Whence("offset", before))
        waiting = waiting._replace(control=control, since=waiting.since or desk.now)
        watch.trims.setdefault(log.id, []).append(waiting)
        return None
    first, end = plan.first, log.end
    if plan.held is not None and not control.dry:
        logger.warning("log %r is trimmed to %d only: %s", log.name, first, plan.held.text)
    if first > log.first and not control.dry:
        cut(desk, log, first)
    return lambda _synced: Answer(protocol.Place(first, first, end))


# --- parked records at a trim ---------------------------------------------------------------


def _lost(books: Books, log: state.Log) -> set[int]:
    return {offset for log_id, offset in books.watch.lost if log_id == log.id}


class Copying:
    """A look at the disk for parked records; ``run`` reads, and ``request`` is what came of it."""

    def __init__(
        self, log: int, files: LogFiles, wanted: list[tuple[Uncopied, Extent]], bytes_max: int
    ) -> None:
        self._log = log
        self._files = files
        self._wanted = wanted
        self._bytes_max = bytes_max  # of one copy
        self._copies: list[tuple[str, int, bytes]] = []
        self._lost: list[int] = []
        self._failed: dict[str, str] = {}
        self._header: batches.Header | None = None
        self._columns: batches.Columns | None = None  # of the batch that was unpacked last

    def run(self) -> bool:
        """Where waiting for the disk harms nobody."""
        size = 0
        for (offset, consumer), extent in self._wanted:
            try:
                copy = self._copy(offset, extent)
            except OSError as error:
                self._failed[consumer] = f"it cannot be read: {error}"
                continue
            if copy is None:
                self._lost.append(offset)
            elif len(copy) > self._bytes_max:
                self._failed[consumer] = f"a record of {len(copy)} bytes is too large to be copied"
            else:
                size += len(copy)
                if self._copies and size > min(COPY_BYTES_GOAL, self._bytes_max):
                    break
                self._copies.append((consumer, offset, copy))
        return True

    def _copy(self, offset: int, extent: Extent) -> bytes | None:
        """A batch of this record alone, under its own offset and time; None: it cannot be had."""
        header, columns = self._header, self._columns
        if header is None or columns is None or not header.base <= offset < header.end:
            try:
                found = self._files.read(extent, None, offset, 1, wait=True)
                if not isinstance(found, Chunk):
                    return None
                header = batches.parse_header(found.data)
                columns = batches.decode(header, found.data[batches.HEADER_BYTES : header.bytes])
            except (FileNotFoundError, batches.InvalidBatch):
                return None
            self._header, self._columns = header, columns
        there = columns.there
        if there is not None and offset not in there:
            return None
        return alone(header, columns, offset)

    def request(self) -> Copied:
        consumers = sorted({each.consumer for each, _extent in self._wanted})
        return Copied(self._log, consumers, self._copies, self._lost, self._failed)


def alone(header: batches.Header, columns: batches.Columns, offset: int) -> bytes:
    """One record of a batch as a batch of its own, in its place."""
    keys, values, headers, times_ns, there = columns
    at = offset - header.base if there is None else there.index(offset)
    produced = batches.encode(
        [values[at]],
        None if keys is None else [keys[at]],
        None if headers is None else [headers[at]],
        None if times_ns is None else [times_ns[at]],
    )
    stamped = batches.stamp(produced, header.log, offset, header.time_ns)
    return stamped + bytes(produced[batches.HEADER_BYTES :])


def copying(books: Books, now: float) -> Copying | None:
    """The next look at the disk that is wanted, if any is."""
    watch = books.watch
    while watch.uncopied:
        log_id, wanted = watch.uncopied.popitem()
        log = books.state.logs.get(log_id)
        if log is None or log_id in watch.copying or log_id not in books.visible:
            continue
        # Those that were copied or trimmed since the look that asked for them need nothing.
        found = [
            (each, books.extent(log, each.offset)) for each in wanted if each.offset >= log.first
        ]
        watch.copying.add(log_id)
        watch.copy_at[log_id] = now + TICK_SECONDS
        bytes_max = books.batch_bytes_max - COPY_OVERHEAD
        return Copying(log_id, books.files[log_id], found, bytes_max)
    return None


def copied(desk: Desk, waiting: Waiting, control: Copied) -> Make:
    """The records are here: copy them, and trim what waited for them, in this one frame."""
    books, watch = desk.books, desk.books.watch
    watch.copying.discard(control.log)
    desk.effects.append(partial(books.call_trims, control.log))
    log = desk.state.logs.get(control.log)
    if log is None:
        return lambda _synced: Answer(protocol.Done())
    for consumer in control.consumers:
        watch.stuck.pop((log.id, consumer), None)
    if books.failed is not None or books.stuck is not None or books.full is not None:
        # A frame of this size is an append's: it waits for space like any other.
        control = Copied(log.id, control.consumers, [], control.lost, control.failed)
        for consumer in control.consumers:
            watch.stuck[log.id, consumer] = books.failed or books.full or books.stuck or ""
    for consumer, reason in control.failed.items():
        watch.stuck[log.id, consumer] = reason
    for offset in control.lost:
        if (log.id, offset) not in watch.lost:
            logger.error("log %r: parked record %d is damaged, and trimmed", log.name, offset)
            watch.lost.add((log.id, offset))
    if copies := _within_caps(desk, log, control.copies):
        cut(desk, log, log.first, copies)
    if books.failed is None and books.stuck is None:
        if copies or control.lost:
            watch.copy_at.pop(log.id, None)  # there may be more of them: at once
        if log.id in watch.blocked:
            desk.effects.append(partial(books.call_blocked, log.id))
        elif log.options.retains:
            look(desk, log)
    return lambda _synced: Answer(protocol.Done())


def _within_caps(
    desk: Desk, log: state.Log, found: list[tuple[str, int, bytes]]
) -> list[tuple[str, int, bytes]]:
    """What of it is still parked, and within what a consumer's copies may take."""
    copies = []
    taken: dict[str, int] = {}
    for consumer, offset, copy in found:
        cursor = log.cursors.get(consumer)
        parked = cursor.parked.get(offset) if cursor is not None else None
        if cursor is None or parked is None or parked.copy:
            continue
        if consumer not in taken:
            taken[consumer] = sum(len(each.copy) for each in cursor.parked.values())
        if taken[consumer] + len(copy) > retention.COPIES_BYTES_MAX:
            text = f"its copies would take more than {retention.COPIES_BYTES_MAX >> 20} MiB"
            desk.books.watch.stuck[log.id, consumer] = text
            continue
        taken[consumer] += len(copy)
        copies.append((consumer, offset, copy))
    return copies


def read_parked(desk: Desk, waiting: Waiting, control: protocol.ReadParked) -> Make:
    log = desk.log(control.log)
    parked = desk.cursor(log, control.consumer).parked.get(control.offset)
    if parked is None or not parked.copy:
        raise OffsetOutOfRange(
            f"log {log.name!r}: there is no copy of a parked record {control.offset}",
            first=log.first,
            end=log.end,
        )
    copy = parked.copy
    return lambda _synced: Answer(protocol.ParkedCopy(), copy)


# --- the clock ------------------------------------------------------------------------------


def watch_clock(desk: Desk) -> None:
    """Judge the wall clock before anything is decided by it, and note when that has changed."""
    books, watch, now = desk.books, desk.books.watch, desk.state
    difference_ns = desk.now_ns - desk.uptime_ns
    doubt = retention.doubt_of(difference_ns, now.difference_ns, desk.now_ns, watch.stored_ns)
    watch.judge(doubt, desk.now)
    books.ring_at(watch.alarm)
    if books.failed is not None or books.stuck is not None:
        return
    if doubt is not None and now.doubted is None:
        desk.facts_bytes += COPY_OVERHEAD
        desk.fact(facts.Doubted())
    elif doubt is None and (now.doubted is not None or now.difference_ns is None):
        desk.facts_bytes += COPY_OVERHEAD
        believe(desk, difference_ns if now.difference_ns is None else now.difference_ns)


def believe(desk: Desk, difference_ns: int) -> None:
    """From here on the wall clock is to be so far ahead of the time since the boot."""
    desk.fact(facts.Trusted(desk.books.watch.boot, difference_ns))
    desk.books.watch.judge(None, desk.now)
    desk.books.ring_at(desk.books.watch.alarm)

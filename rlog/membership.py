"""What a member of a shared consumer is sent: batches, once each, and which of their records are
its own.

Bookkeeping like ``subscription``, and used in its place: it reads nothing and waits for nothing.
Reading on is what its loans are for; a member without a loan is given nothing.
"""

from __future__ import annotations

import errno
import logging
from typing import TYPE_CHECKING, Final

from rlog_client import protocol
from rlog_client.batch import (
    HEADER_BYTES,
    InvalidBatch,
    check_body,
    decode,
    decode_keys,
    parse_header,
)
from rlog_client.errors import Gap, NotFound, RlogError, StorageFailed

from .decisions import Unreadable, Vanish
from .dispatch import Loss, Lot
from .segment import Damage, path
from .subscription import Read, damaged

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rlog_client.batch import Header
    from rlog_client.protocol import Credit

    from . import state
    from .decisions import Books, Grant
    from .dispatch import Dispatch, Mate
    from .log import Chunk
    from .subscription import Outlet

logger = logging.getLogger("rlog.membership")

SCAN_BYTES: Final = 256 * 1024  # looked up at once: it takes the loop some milliseconds
ASSIGNED_MAX: Final = 300  # offsets in one message, each in up to three lists


class Membership:
    """One member's place at a dispatch. ``id``: of the Subscribe, under which it is told all."""

    __slots__ = (
        "_asked",
        "_dispatch",
        "_end",
        "_given",
        "_left",
        "_loan",
        "_mate",
        "_name",
        "_now",
        "_own",
        "_reading",
        "_seen_to",
        "_sent",
        "books",
        "consumer",
        "ended",
        "grant",
        "id",
        "log",
        "outlet",
    )

    def __init__(
        self,
        outlet: Outlet,
        books: Books,
        request: int,
        log: state.Log,
        consumer: str,
        grant: Grant,
    ) -> None:
        self.outlet = outlet
        self.books = books
        self.id = request
        self.log = log.id
        self.consumer = consumer
        self.grant = grant
        self.ended = False
        self._name = log.name
        self._dispatch: Dispatch = books.groups[log.id, consumer]
        self._mate: Mate = self._dispatch.mates[grant.epoch]
        self._loan: int | None = None  # the request id of the open Credit,
        self._left = 0  # what is left of it, in records,
        self._end: int | None = None  # below which offset,
        self._now = self._own = False  # what it may wait for,
        self._sent = False  # and whether anything came of it
        self._given: list[int] = []  # assigned, and not told yet,
        self._seen_to = 0  # and of how many of them the batch is sent
        self._mate.forget_all()  # whoever subscribes anew begins anew
        self._reading: tuple[Read, str] | None = None  # a read under way, and what for

    def lend(self, request: int, credit: Credit) -> None:
        """A Credit: it ends the open loan, and opens one."""
        self.settle()
        self._loan, self._left, self._end = request, credit.records, credit.end
        self._now, self._own, self._sent = credit.now, credit.own, False
        if credit.records <= 0:
            self.settle()

    def settle(self) -> None:
        """End the open loan, if there is one."""
        if self._loan is not None:
            if self._given:
                self._dispatch.give_back(self._mate, self._given)
                self._stir()
            self._give([])
            self._reading = None
            visible = self.books.visible.get(self.log)
            end = visible.end if visible is not None else 0
            self.outlet.answer(self._loan, protocol.Settled(self._dispatch.cursor.committed, end))
            self._loan = None

    def end(self, error: RlogError | None = None) -> None:
        """Nothing more will come; ``error`` says why, under the subscription's own id."""
        if error is not None:
            self.outlet.answer(self.id, protocol.error_control(error))
        self.settle()
        self.ended = True

    def lost(self, epoch: int) -> None:
        """The claim is over."""
        self.outlet.answer(self.id, protocol.Lost(epoch))
        self.end()

    def _give(self, offsets: list[int]) -> None:
        self._given, self._seen_to = offsets, 0

    def _stir(self) -> None:
        """Others may have something now."""
        self.books.raised.add(self.log)
        self.outlet.wake()

    # --- what to read -------------------------------------------------------------------------

    def next_read(self) -> Read | None:
        """What to read next; None: nothing for now, or for ever (``ended``)."""
        if self._loan is None:
            return None
        log, visible = self.books.state.logs.get(self.log), self.books.visible.get(self.log)
        if visible is None:
            self.end(NotFound(f"log {self._name!r} was deleted"))
            return None
        dispatch = self._dispatch
        if log is None or dispatch.mates.get(self.grant.epoch) is not self._mate:
            return None  # it is decided that this ends, and told when that is durable
        dispatch.trimmed(self.books.first[self.log], self._gap)
        while self._lent:
            if self._given:
                read = self._next_batch(log)
                if read is not None:
                    return read
            elif (loss := dispatch.next_loss(self._mate)) is not None:
                self._tell_loss(loss)
            elif given := self._assign():
                self._give(given)
            else:
                return self._look_further(log, visible.end)
        return None

    @property
    def _lent(self) -> bool:
        return self._loan is not None

    def _assign(self) -> list[int]:
        return self._dispatch.assign(self._mate, min(self._left, ASSIGNED_MAX), self._end)

    def _look_further(self, log: state.Log, end: int) -> Read | None:
        """Nothing is ready. What may change that?"""
        dispatch = self._dispatch
        if not dispatch.awaiting:
            if (offset := dispatch.unknown) is not None:
                return self._read(log, offset, "key")
            if self._end is not None:
                end = min(end, self._end)
            if not self._sent and (offset := dispatch.scan_at(end)) is not None:
                return self._read(log, offset, "scan")
        if not self._sent and self.books.failed is None:
            for epoch in dispatch.overstayed():
                self.outlet.ask(Vanish(self.log, self.consumer, epoch))
            # What others had who are gone is to be had when they are back, or it is decided that
            # their claims are over.
            if not self._now or (self._own and (self._mate.late or dispatch.any_away)):
                return None
        if self._sent or self._now:
            self.settle()
        return None

    def _read(self, log: state.Log, offset: int, why: str) -> Read | None:
        if offset < log.first:
            if why == "key":
                if copy := self._copy_of(offset):
                    self._know(memoryview(copy))
                else:
                    self._cannot_read(offset, offset + 1, "it was removed", damaged=False)
                return self.next_read()
            return None  # decided, and seen to when that is durable
        extent = self.books.extent(log, offset)
        position, size, segment = None, HEADER_BYTES, (extent.base, extent.generation)
        if why == "scan":
            place = self._dispatch.place
            if place is not None and place[0] == segment:
                position = place[1]
            size = SCAN_BYTES
        elif (lot := self._dispatch.lot_of(offset)) is not None and lot.segment == segment:
            # Where the batch begins is where to read, also for a record in the midst of it.
            position, offset, size = lot.position, lot.base, lot.bytes
        read = Read(self.books.files[log.id], extent, position, offset, size)
        self._reading = (read, why)
        return read

    def _copy_of(self, offset: int) -> bytes:
        """A parked record that outlived its place in the log."""
        parked = self._dispatch.cursor.parked.get(offset)
        return parked.copy if parked is not None else b""

    # --- what was read ------------------------------------------------------------------------

    def deliver(self, read: Read, found: Chunk | Damage | OSError) -> None:
        """What came of a read. Dropped if things have moved on since."""
        if self._reading is None or self._reading[0] is not read or self._loan is None:
            return
        why, self._reading = self._reading[1], None
        file = _file(self.log, read)
        if isinstance(found, OSError):
            log = self.books.state.logs.get(self.log)
            if log is None or log.first > read.offset:
                return  # deleted or trimmed meanwhile: the next look says so
            now = self.books.extent(log, read.offset)
            if (now.base, now.generation) != (read.extent.base, read.extent.generation):
                return  # compacted meanwhile: the next look finds it
            if found.errno != errno.ENOENT:
                logger.error("%s cannot be read: %s", file, found)
                self.end(StorageFailed(f"{file} cannot be read: {found}"))
                return
            found = Damage(0, read.offset, read.extent.end, "the file is missing")
        if why == "scan":
            if read.offset == self._dispatch.head:
                self._scanned(read, found)
        elif why == "key":
            self._key_found(read, found)
        else:
            self._batch_found(read, found)

    def _scanned(self, read: Read, found: Chunk | Damage) -> None:
        if isinstance(found, Damage):
            error = damaged(self._name, _file(self.log, read), found)
            self._dispatch.skip(Loss(found.first, found.end, error))
            return
        segment, at = (read.extent.base, read.extent.generation), 0
        self._dispatch.chunk = (segment, found.position, found.data)
        while at < len(found.data):
            header = parse_header(found.data, at)
            body = found.data[at + HEADER_BYTES : at + header.bytes]
            lot = Lot(header.base, header.end, segment, found.position + at, header.bytes)
            try:
                keys, there = _keys(header, body)
            except InvalidBatch as error:
                damage = Damage(lot.position, header.base, header.end, str(error))
                loss = damaged(self._name, _file(self.log, read), damage)
                self._dispatch.skip(Loss(header.base, header.end, loss))
            else:
                self._dispatch.feed(header, keys, lot, there)
            at += header.bytes

    def _key_found(self, read: Read, found: Chunk | Damage) -> None:
        """Of records that are looked up by themselves, all those in one batch. (Another member may
        have found them meanwhile.)
        """
        if isinstance(found, Damage):
            self._cannot_read(max(read.offset, found.first), found.end, found.reason, damaged=True)
            return
        self._know(found.data)

    def _know(self, data: memoryview) -> None:
        header = parse_header(data)
        try:
            keys, there = _keys(header, data[HEADER_BYTES : header.bytes])
        except InvalidBatch as error:
            self._cannot_read(header.base, header.end, str(error), damaged=True)
        else:
            for offset in self._dispatch.known(header, keys, there):
                self._ask_about(offset, "it was compacted away", damaged=False)

    def _cannot_read(self, begin: int, end: int, reason: str, *, damaged: bool) -> None:
        """Redriven records must not stand in the way of all others for ever."""
        for offset in self._dispatch.unreadable(begin, end):
            self._ask_about(offset, reason, damaged=damaged)

    def _ask_about(self, offset: int, reason: str, *, damaged: bool) -> None:
        self.outlet.ask(Unreadable(self.log, self.consumer, offset, reason, damaged))

    # --- sending ------------------------------------------------------------------------------

    def _next_batch(self, log: state.Log) -> Read | None:
        """See to the next batch that the member has not got; when it has all, say what it was
        given.
        """
        dispatch, mate = self._dispatch, self._mate
        while self._seen_to < len(self._given):
            offset = self._given[self._seen_to]
            if offset < log.first:
                if not (copy := self._copy_of(offset)):
                    self._drop_removed(log)
                    return None
                if offset not in mate.sent:
                    alone = Lot(offset, offset + 1, (0, 0), 0, len(copy))
                    self._send_batch(alone, memoryview(copy))
                self._seen_to += 1
                continue
            lot = dispatch.lot_of(offset)
            if lot is None or lot.base not in mate.sent:
                chunk = dispatch.chunk
                if lot is None or chunk is None or chunk[0] != lot.segment:
                    return self._read(log, offset, "batch")
                at = lot.position - chunk[1]
                if not 0 <= at <= len(chunk[2]) - lot.bytes:
                    return self._read(log, offset, "batch")
                self._send_batch(lot, chunk[2][at : at + lot.bytes])
            self._seen_to += 1
        self._tell_given()
        return None

    def _drop_removed(self, log: state.Log) -> None:
        """What was given was trimmed before it could be sent."""
        gone = [o for o in self._given if o < log.first and not self._copy_of(o)]
        lost = self._drop_given(gone, "it was removed", damaged=False)
        for offset in lost:
            loss = Loss(offset, offset + 1, self._gap(offset, offset + 1))
            self._mate.losses.append(loss)
            self._answer(loss.error, offset + 1)
        self._after_loss(lost)

    def _drop_given(self, gone: list[int], reason: str, *, damaged: bool) -> list[int]:
        """What was given cannot be had: those that the member is to pass over."""
        dispatch = self._dispatch
        self._give([offset for offset in self._given if offset not in set(gone)])
        redriven = [offset for offset in gone if dispatch.is_redriven(offset)]
        dispatch.settled(gone)
        self._stir()
        for offset in redriven:
            self._ask_about(offset, reason, damaged=damaged)
        return [offset for offset in gone if offset not in set(redriven)]

    def _batch_found(self, read: Read, found: Chunk | Damage) -> None:
        if not self._given:
            return
        if isinstance(found, Damage):
            error = damaged(self._name, _file(self.log, read), found)
            gone = [offset for offset in self._given if found.first <= offset < found.end]
            lost = self._drop_given(gone, found.reason, damaged=True)
            self._mate.losses += [Loss(offset, offset + 1, error) for offset in lost]
            if lost:
                self._answer(error, found.end)
            self._after_loss(lost)
            return
        header = parse_header(found.data)
        segment = (read.extent.base, read.extent.generation)
        lot = Lot(header.base, header.end, segment, found.position, header.bytes)
        if header.sparse and self._drop_absent(header, found.data):
            return
        self._dispatch.note(lot)
        self._send_batch(lot, found.data[: header.bytes])

    def _drop_absent(self, header: Header, data: memoryview) -> bool:
        """What was given may have been compacted away since it was looked up."""
        try:
            there = set(decode(header, data[HEADER_BYTES : header.bytes]).there or ())
        except InvalidBatch:
            return False  # the member finds out
        gone = {o for o in self._given if header.base <= o < header.end and o not in there}
        if gone:
            self._give([offset for offset in self._given if offset not in gone])
            self._dispatch.gone_absent(gone)
            self._stir()
        return bool(gone)

    def _send_batch(self, lot: Lot, data: memoryview) -> None:
        records = protocol.Records(lot.base, path(self.log, *lot.segment), lot.position)
        self.outlet.answer(self.id, records, data)
        self._mate.keep(lot.base, lot.bytes)

    def _tell_given(self) -> None:
        given = self._given
        self._give([])
        cursor = self._dispatch.cursor
        failed: list[int] = []
        redriven: list[int] = []
        for offset in given:
            if (attempts := cursor.attempts_of(offset)) > 0:
                failed += (offset, attempts)
            if cursor.is_settled(offset):
                redriven.append(offset)
        needed = {lot.base for o in given if (lot := self._dispatch.lot_of(o)) is not None}
        forget = self._mate.forget(self._dispatch.lot_end, cursor.committed, needed)
        self.outlet.answer(self.id, protocol.Assigned(given, failed, redriven, forget))
        self._left -= len(given)
        self._sent = True
        if self._left <= 0:
            self.settle()

    def _tell_loss(self, loss: Loss) -> None:
        self._answer(loss.error, loss.end)
        self._after_loss([loss.begin])

    def _answer(self, error: RlogError, following: int) -> None:
        self.outlet.answer(self.id, protocol.Damaged(protocol.error_control(error), following))

    def _after_loss(self, told: list[int]) -> None:
        self._sent = self._sent or bool(told)
        if self._sent and not self._given:
            self.settle()

    def _gap(self, first: int, end: int) -> RlogError:
        text = f"log {self._name!r}: the offsets {first} to {end} were removed"
        return Gap(text, first=first, end=end)


def _keys(
    header: Header, body: memoryview
) -> tuple[Sequence[bytes | None] | None, Sequence[int] | None]:
    """The keys of a batch's records, and their offsets where some are absent. Raises
    InvalidBatch.
    """
    if header.sparse:
        columns = decode(header, body)
        return columns.keys, columns.there
    check_body(header, body)
    keys = decode_keys(body[1 : 1 + header.keys_bytes])
    if keys is not None and len(keys) != header.count:
        raise InvalidBatch(f"{len(keys)} keys for {header.count} records")
    return keys, None


def _file(log: int, read: Read) -> str:
    return path(log, read.extent.base, read.extent.generation)

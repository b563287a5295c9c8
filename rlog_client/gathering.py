"""Appends of many tasks, gathered: those that come at one moment go as one batch.

Each task of an event loop that appends a record waits for its own; alone, every one of them would
cost a batch, a message and a decision. Between two moments at which the loop looks at the socket
they are put together instead: one batch for each log, in the order in which they came. What is to
be judged by itself (an ``expect``) is not put here.
"""

from __future__ import annotations

from time import monotonic
from typing import TYPE_CHECKING, Final

from .batch import HEADER_BYTES
from .client import check_batch
from .errors import OutcomeUnknown
from .producer import Columns, checked, receipt_at
from .protocol import Append, Appended
from .session import Call
from .steps import Wait, give_up, overdue, until

if TYPE_CHECKING:
    from .aio_transport import AsyncTransport, Waiter
    from .identity import AppendIds
    from .model import Item

LOT_BYTES: Final = 1 << 20  # of one batch, unless one record is larger
LOT_SECONDS: Final = 0.01  # that one is open, while nothing can be written


class Lot:
    """Records that go together. ``room``: for more, in bytes; ``full_at``: the moment from which
    none joins them; ``count``: how many there are, once it is sealed. ``waiter``: ends with the
    answer of ``call``, or too late; ``waiting``: how many tasks wait for it. ``lent``: its id is in
    use, and not given back yet.
    """

    __slots__ = (
        "call", "columns", "count", "full_at", "lent", "producer", "room", "sequence", "waiter",
        "waiting",
    )  # fmt: skip

    def __init__(
        self, producer: int, sequence: int, room: int, call: Call[Appended], waiter: Waiter
    ) -> None:
        self.producer = producer
        self.sequence = sequence
        self.columns = Columns()
        self.count = 0
        self.room = room
        self.full_at = monotonic() + LOT_SECONDS
        self.call = call
        self.waiter = waiter
        self.waiting = 0
        self.lent = True

    def takes(self, bound: int) -> bool:
        """Whether a record of up to ``bound`` bytes may join. Its deadline is the first one's."""
        open_yet = monotonic() < self.full_at and not self.waiter.ended.is_set()
        return bound <= self.room and open_yet


class Gathering:
    """The appends of one client to one log."""

    def __init__(self, transport: AsyncTransport, ids: AppendIds, log_id: int) -> None:
        self._transport = transport
        self._ids = ids
        self._log_id = log_id
        self._lot: Lot | None = None  # that is not sealed yet

    async def append(self, item: Item) -> int:
        """The record's offset. Errors as of ``Log.append``; cancelled, it is appended or not."""
        transport = self._transport
        transport.check()
        if (ended := transport.session.ended) is not None:
            raise ended.with_traceback(None)
        limits = transport.session.limits
        item, bound = checked(item, None, limits.record_bytes_max)
        check_batch(HEADER_BYTES + bound, limits.batch_bytes_max, None)
        lot = self._lot
        if lot is None or not lot.takes(bound):
            lot = self._open(min(LOT_BYTES, limits.batch_bytes_max // 2) - HEADER_BYTES)
        lot.room -= bound
        index = len(lot.columns.values)
        lot.columns.add(item)
        lot.waiting += 1
        try:
            await lot.waiter.ended.wait()
        except BaseException:
            lot.waiting -= 1
            if not lot.waiting:
                self._give_up(lot)
            raise
        return self._offset(lot, index)

    def _open(self, room: int) -> Lot:
        self._seal()
        transport = self._transport
        producer, sequence = self._ids.borrow()
        call = Call(Appended, append=(producer, sequence))
        waiter = transport.wait_for(Wait(lambda: call.done, until(transport.timeout)))
        lot = self._lot = Lot(producer, sequence, room, call, waiter)
        transport.before_write(self._seal)
        return lot

    def _seal(self) -> None:
        """Put what there is on its way; what comes from now on is another lot's."""
        lot, self._lot = self._lot, None
        if lot is None or lot.waiter.ended.is_set():
            return
        payload = lot.columns.encode(lot.producer, lot.sequence)
        lot.count = len(lot.columns.values)
        lot.columns = Columns()
        self._transport.session.start(lot.call, Append(self._log_id), payload)

    def _give_up(self, lot: Lot) -> None:
        """All who waited for it were cancelled: what was not sent yet is not sent any more."""
        if self._lot is lot:
            self._lot = None
        if not lot.call.done:
            give_up(self._transport, lot.call)
            self._transport.ring()
        if lot.lent and not lot.call.sent:
            lot.lent = False
            self._ids.give_back(lot.producer, lot.sequence + lot.count)

    def _offset(self, lot: Lot, index: int) -> int:
        call = lot.call
        if self._lot is lot:
            self._lot = None  # it waited too long for a connection, or for one that takes anything
        if lot.waiter.error is not None:
            raise lot.waiter.error
        session = self._transport.session
        if not call.done:
            call.fail(session.ended or overdue(self._transport, call))
            session.forget(call)
        # (Not what may be on its way still: it could be taken for another.)
        if lot.lent and not isinstance(call.error, OutcomeUnknown):
            lot.lent = False
            self._ids.give_back(lot.producer, lot.sequence + lot.count)
        answer = call.get()
        return answer.first + index if answer.first >= 0 else receipt_at(answer, index).first

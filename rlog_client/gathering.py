"""Appends of many tasks, gathered: those that come at one moment go as one batch.

Each task of an event loop that appends a record waits for its own; alone, every one of them would
cost a batch, a message and a decision. Between two moments at which the loop looks at the socket
they are put together instead: one batch for each log, in the order in which they came. What is to
be judged by itself (an ``expect``) is not put here.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Final

from .batch import HEADER_BYTES
from .client import check_batch
from .errors import OutcomeUnknown
from .producer import Columns, checked, receipt_at
from .protocol import Append, Appended
from .session import Call
from .steps import Wait, overdue, until

if TYPE_CHECKING:
    from .aio_transport import AsyncTransport, Waiter
    from .identity import AppendIds
    from .model import Item

LOT_BYTES: Final = 1 << 20  # of one batch, unless one record is larger


class Lot:
    """Records that go together. ``room``: for more, in bytes; ``waiter``: ends with the answer of
    ``call``, or too late; ``lent``: the id is in use, and not given back yet.
    """

    __slots__ = ("call", "columns", "lent", "producer", "room", "sequence", "waiter")

    def __init__(
        self, producer: int, sequence: int, room: int, call: Call[Appended], waiter: Waiter
    ) -> None:
        self.producer = producer
        self.sequence = sequence
        self.columns = Columns()
        self.room = room
        self.call = call
        self.waiter = waiter
        self.lent = False


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
        limits = transport.session.limits
        item, bound = checked(item, None, limits.record_bytes_max)
        check_batch(HEADER_BYTES + bound, limits.batch_bytes_max, None)
        lot = self._lot
        if lot is None or bound > lot.room:
            lot = self._open(min(LOT_BYTES, limits.batch_bytes_max // 2) - HEADER_BYTES)
        lot.room -= bound
        index = len(lot.columns.values)
        lot.columns.add(item)
        await lot.waiter.ended.wait()
        return self._offset(lot, index)

    def _open(self, room: int) -> Lot:
        if self._lot is not None:
            self._seal(self._lot)
        transport = self._transport
        producer, sequence = self._ids.borrow()
        call = Call(Appended, append=(producer, sequence))
        waiter = transport.wait_for(Wait(lambda: call.done, until(transport.timeout)))
        lot = self._lot = Lot(producer, sequence, room, call, waiter)
        transport.before_write(partial(self._seal, lot))
        return lot

    def _seal(self, lot: Lot) -> None:
        """Put it on its way; what comes from now on is another one's."""
        if self._lot is not lot:
            return
        self._lot = None
        if not lot.call.done:
            lot.lent = True
            payload = lot.columns.encode(lot.producer, lot.sequence)
            self._transport.session.start(lot.call, Append(self._log_id), payload)

    def _offset(self, lot: Lot, index: int) -> int:
        call = lot.call
        if self._lot is lot:
            self._lot = None  # it waited for a connection for too long
        if lot.waiter.error is not None:
            raise lot.waiter.error
        if not call.done:
            call.fail(self._transport.session.ended or overdue(self._transport, call))
        # (Not what may be on its way still: it could be taken for another.)
        if lot.lent and not isinstance(call.error, OutcomeUnknown):
            lot.lent = False
            self._ids.give_back(lot.producer, lot.sequence + len(lot.columns.values))
        answer = call.get()
        return answer.first + index if answer.first >= 0 else receipt_at(answer, index).first

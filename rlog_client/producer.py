"""The producer: records in, batches out, many of them in flight.

``send`` costs a few branches and a list append; everything else is done once per batch. A batch
goes through three places: it is open (records are being added), it is under way (encoded, its
append in flight), it is settled (answered or failed).
"""

from __future__ import annotations

import logging
import os
from bisect import bisect_right
from collections import deque
from itertools import accumulate, islice
from time import monotonic
from typing import TYPE_CHECKING, Final, Self, TypeVar, cast

from msgspec import Struct

from .batch import HEADER_BYTES, RECORD_OVERHEAD, encode
from .errors import RlogError, TimedOut, TooLarge
from .model import Bytes, Item, Level, Receipt, to_bytes, to_headers, to_time_ns
from .protocol import Append, Appended
from .session import Call
from .transport import until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from types import TracebackType

    from .transport import Transport

IN_FLIGHT_MAX: Final = 64  # batches; as many as a server remembers of a named producer
HEADER_OVERHEAD: Final = 10  # bytes: more than one header adds to its name and value
_CHUNK_RECORDS: Final = 1024

T = TypeVar("T")

_logger = logging.getLogger("rlog_client")


def new_producer_id() -> int:
    """63 random bits, not 0."""
    return int.from_bytes(os.urandom(8), "little") >> 1 | 1


def receipt_of(appended: Appended) -> Receipt:
    level: Level = "synced" if appended.synced else "written"
    return Receipt(appended.first, appended.end, appended.timestamp_ns, level)


class Columns:
    """The columns of a batch that is being filled."""

    __slots__ = ("headers", "keys", "times_ns", "values")

    def __init__(self) -> None:
        self.values: list[bytes] = []
        # Made when the first record has one, and filled up with None at the end: a plain value
        # never looks at them.
        self.keys: list[bytes | None] | None = None
        self.headers: list[Mapping[str, bytes] | None] | None = None
        self.times_ns: list[int | None] | None = None

    def add(self, item: Item) -> None:
        """``item`` is a checked one: its key and its value are bytes."""
        index = len(self.values)
        if item.key is not None:
            self.keys = _filled(self.keys, index)
            self.keys.append(cast("bytes", item.key))
        if item.headers:
            self.headers = _filled(self.headers, index)
            self.headers.append(item.headers)
        if item.event_time_ns is not None:
            self.times_ns = _filled(self.times_ns, index)
            self.times_ns.append(item.event_time_ns)
        self.values.append(cast("bytes", item.value))

    def encode(self, producer: int, sequence: int) -> bytearray:
        count = len(self.values)
        return encode(
            self.values,
            None if self.keys is None else _filled(self.keys, count),
            None if self.headers is None else _filled(self.headers, count),
            None if self.times_ns is None else _filled(self.times_ns, count),
            producer=producer,
            sequence=sequence,
        )


def _filled(column: list[T | None] | None, count: int) -> list[T | None]:
    """``column``, or a new one, filled up with None to ``count`` entries."""
    if column is None:
        return [None] * count
    column.extend([None] * (count - len(column)))
    return column


def checked(item: Bytes | Item, index: int | None, limit: int) -> tuple[Item, int]:
    """``item`` with everything in it checked and made bytes, and what it adds to a batch at most.

    ``limit``: of key, value and headers of one record together, in bytes; beyond it TooLarge.
    """
    if not isinstance(item, Item):
        item = Item(item)
    value = to_bytes(item.value)
    key = None if item.key is None else to_bytes(item.key, "a key")
    headers = to_headers(item.headers) if item.headers is not None else None
    time_ns = None if item.event_time_ns is None else to_time_ns(item.event_time_ns)
    size = len(value) + (len(key) if key else 0)
    bound = RECORD_OVERHEAD
    if headers:
        size += sum(len(name.encode()) + len(content) for name, content in headers.items())
        bound += HEADER_OVERHEAD * len(headers)
    if size > limit:
        what = "a record" if index is None else f"record {index}"
        raise TooLarge(
            f"{what} of {size} bytes; the limit is {limit}", size=size, limit=limit, index=index
        )
    return Item(value, key, headers, time_ns), size + bound


class _Batch:
    """``call`` is None while it is open."""

    __slots__ = ("bytes", "call", "columns", "producer")

    def __init__(self, producer: Producer) -> None:
        self.producer = producer
        self.columns = Columns()
        self.call: Call[Appended] | None = None
        self.bytes = 0


class Pending(Struct, frozen=True, gc=False):
    """One record on its way. Made for the producer's thread: to ask it drives the socket."""

    # gc=False as for Record: it can be in no cycle, and there are millions of them.
    _batch: _Batch
    _index: int

    def done(self) -> bool:
        """Whether ``result`` has its answer at once. Never waits."""
        return self._batch.producer._done(self._batch)

    def result(self, timeout: float | None = None) -> int:
        """The record's offset, once it is acknowledged, or its error raised.

        TimedOut after ``timeout`` seconds: the append goes on. OutcomeUnknown: its answer is lost.
        """
        return self._batch.producer._answer(self._batch, timeout).first + self._index

    def receipt(self, timeout: float | None = None) -> Receipt:
        """Like ``result``, with the time of the append and how durable it was when answered."""
        answer = self._batch.producer._answer(self._batch, timeout)
        offset = answer.first + self._index
        whole = receipt_of(answer)
        return Receipt(offset, offset + 1, whole.timestamp_ns, whole.level, whole.duplicate)


class Producer:
    """Sends records to one log, batched and pipelined. A context manager that flushes at its end.

    A record goes on the wire when its batch is full (``batch_bytes``), when ``linger`` seconds have
    passed since the last batch (looked at on every call into the client: nothing runs in between),
    or on ``flush``, ``Pending.result`` or leaving. More than ``buffer_bytes`` unacknowledged block.
    The first failure is raised by the next ``send`` or ``flush``, or at the end of the ``with``;
    every record's own is raised by its Pending.
    """

    def __init__(
        self,
        transport: Transport,
        log: str,
        log_id: int,
        *,
        linger: float,
        batch_bytes: int,
        buffer_bytes: int,
    ) -> None:
        if not linger >= 0:
            raise ValueError(f"linger is at least 0 seconds, not {linger}")
        if batch_bytes < 1 or buffer_bytes < 1:
            raise ValueError("batch_bytes and buffer_bytes are at least 1")
        limits = transport.session.limits
        self._transport = transport
        self._log = log
        self._log_id = log_id
        self._linger = linger
        self._record_max = limits.record_bytes_max
        self._batch_max = limits.batch_bytes_max
        self._buffer_bytes = buffer_bytes
        # What a batch is filled with; one record may be larger, and then is a batch alone.
        self._fill = max(0, min(batch_bytes, buffer_bytes, self._batch_max) - HEADER_BYTES)
        self._id = new_producer_id()
        self._sequence = 0  # of the next batch's first record
        self._end = 0  # the offset after the last acknowledged record
        self._under_way: deque[_Batch] = deque()
        self._unacknowledged = 0  # bytes
        self._heard = 0.0  # when the server last settled something, or was first asked
        self._failure: RlogError | None = None
        self._closed = False
        self._due = monotonic() + linger
        self._sealed: tuple[_Batch, bytearray] | None = None  # and not on its way yet, for sure
        self._batch = _Batch(self)
        self._values = self._batch.columns.values
        self._room = self._fill  # bytes that may still go into the open batch
        transport.tended.add(self)

    # --- public -------------------------------------------------------------------------------

    def send(
        self,
        value: Bytes,
        *,
        key: Bytes | None = None,
        headers: Mapping[str, bytes] | None = None,
        event_time_ns: int | None = None,
    ) -> Pending:
        """Add one record. Blocks while the buffer is full.

        Raises TooLarge, or the first failure of an earlier batch: then this record is not added.
        """
        if type(value) is bytes and key is None and headers is None and event_time_ns is None:
            size = len(value)
            room = self._room - size - RECORD_OVERHEAD
            # A failure makes the open batch due and close() takes its room: they cost nothing here.
            if room >= 0 and size <= self._record_max and monotonic() < self._due:
                self._room = room
                values = self._values
                index = len(values)
                values.append(value)
                return Pending(self._batch, index)
        return self._send(Item(value, key, headers, event_time_ns), None)

    def extend(self, values: Iterable[Bytes]) -> None:
        """Add many plain values, the fastest way in. Errors as for ``send``."""
        remaining = iter(values)
        count = 0
        while chunk := list(islice(remaining, _CHUNK_RECORDS)):
            self._extend(chunk, count)
            count += len(chunk)

    def flush(self, timeout: float | None = None) -> int:
        """Send all and wait until it is acknowledged: the offset after the last of ours.

        0 when nothing was ever sent. TimedOut after ``timeout`` seconds: what is under way goes on.
        """
        deadline = until(timeout)
        self._begin()
        self._push(deadline)
        if not self._wait(lambda: not self._under_way, deadline):
            raise TimedOut(f"{len(self._under_way)} batches are not acknowledged yet")
        self._raise_failure()
        return self._end

    def close(self) -> None:
        """Flush, and take no more records. A second close does nothing."""
        if self._closed:
            return
        try:
            self.flush()
        finally:
            self._closed = True
            self._room = -1
            self._transport.tended.discard(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            self.close()
        except (RlogError, RuntimeError) as failed:
            if error is None:
                raise
            # What the block raised is what its caller has to see.
            _logger.warning("log %s: flushing on the way out failed: %s", self._log, failed)

    def __del__(self) -> None:
        count = len(getattr(self, "_values", ()))
        if count and not self._closed:
            _logger.warning("log %s: %d records were never sent: close() it", self._log, count)

    # --- filling ------------------------------------------------------------------------------

    def _begin(self) -> None:
        if self._closed:
            raise RuntimeError("this producer is closed")
        self._transport.check()
        self._resume()
        self._reap()

    def _send(self, item: Item, index: int | None) -> Pending:
        """The way in for everything that is not a plain value with room and time left."""
        self._begin()
        self._raise_failure()
        item, bound = checked(item, index, self._record_max)
        if bound + HEADER_BYTES > self._batch_max:
            size, limit = bound + HEADER_BYTES, self._batch_max
            raise TooLarge(
                f"a batch of up to {size} bytes; the limit is {limit}",
                size=size,
                limit=limit,
                index=index,
            )
        if bound > self._room and self._values:
            self._push(None)
            self._raise_failure()
        pending = Pending(self._batch, len(self._values))
        self._batch.columns.add(item)
        self._room -= bound
        if self._room <= 0:
            self._push(None)
        elif (now := monotonic()) >= self._due:
            if len(self._under_way) < IN_FLIGHT_MAX:
                self._seal()
            else:
                self._due = now + self._linger
            self._transport.serve()
        return pending

    def _extend(self, chunk: list[Bytes], before: int) -> None:
        """``before``: how many values of the call came before this chunk."""
        plain = set(map(type, chunk)) == {bytes} and max(map(len, chunk)) <= self._record_max
        bounds = list(accumulate(map(RECORD_OVERHEAD.__add__, map(len, chunk)))) if plain else []
        at = taken = 0
        while at < len(chunk):
            to = at
            if plain and monotonic() < self._due:
                to = bisect_right(bounds, taken + self._room, at)
            if to > at:
                self._values.extend(cast("list[bytes]", chunk[at:to]))
                self._room -= bounds[to - 1] - taken
            else:
                # The record that ends a batch, or is due, or is not plain.
                to = at + 1
                self._send(Item(chunk[at]), before + at)
            at = to
            taken = bounds[at - 1] if plain else 0

    # --- on the way ---------------------------------------------------------------------------

    def tend(self, now: float) -> None:
        """On every call into the client: seal the open batch if it has waited long enough."""
        self._resume()
        if self._values and now >= self._due and len(self._under_way) < IN_FLIGHT_MAX:
            self._seal()

    def _seal(self) -> None:
        """Encode the open batch, put it on its way and open the next."""
        self._resume()
        batch, following = self._batch, _Batch(self)
        call = Call(Appended, append=(self._id, self._sequence))
        payload = batch.columns.encode(self._id, self._sequence)
        size, count = len(payload), len(self._values)
        values, nothing = following.columns.values, Columns()
        now = monotonic()
        # An interrupt comes at a call: before all of these stores, or behind them.
        if not self._unacknowledged:
            self._heard = now
        batch.call = call
        batch.bytes = size
        batch.columns = nothing  # its values are in the payload now
        self._sealed = (batch, payload)
        self._unacknowledged += size
        self._sequence += count
        self._batch = following
        self._values = values
        self._room = self._fill
        self._due = now + self._linger
        self._resume()

    def _resume(self) -> None:
        """Put the batch that was sealed on its way: now, or after the interrupt that came then."""
        if self._sealed is None:
            return
        batch, payload = self._sealed
        if batch not in self._under_way:
            self._under_way.append(batch)
        # Nothing has been written since: it is either in there, or was never put there.
        if not any(piece is payload for piece in self._transport.session.outgoing):
            assert batch.call is not None, "it is sealed"
            self._transport.session.start(batch.call, Append(self._log_id), payload)
        self._sealed = None

    def _push(self, deadline: float | None) -> None:
        """Seal the open batch, and wait until there is room for another."""
        if self._values:
            if not self._wait(lambda: len(self._under_way) < IN_FLIGHT_MAX, deadline):
                raise TimedOut(f"{IN_FLIGHT_MAX} batches are under way and none is acknowledged")
            self._seal()
            self._transport.serve()
        self._reap()
        if not self._wait(self._has_room, deadline):
            raise TimedOut(f"{self._unacknowledged} bytes are not acknowledged yet")

    def _has_room(self) -> bool:
        return not self._under_way or self._unacknowledged + self._fill <= self._buffer_bytes

    def _wait(self, done: Callable[[], bool], deadline: float | None) -> bool:
        """Until ``done()``; False when the deadline has passed.

        The client's timeout bounds the server's silence, not the whole wait: with many batches in
        flight the last one's answer may take long while others come in.
        """

        def settled() -> bool:
            self._reap()
            return done()

        patience = self._transport.timeout
        while not settled():
            limit = None if patience is None else self._heard + patience
            ends = [moment for moment in (limit, deadline) if moment is not None]
            if self._transport.wait(settled, min(ends, default=None)):
                continue
            now = monotonic()
            if patience is not None and now >= self._heard + patience:
                self._give_up()
            elif deadline is not None and now >= deadline:
                return False
        return True

    def _done(self, batch: _Batch) -> bool:
        if batch.call is None or not batch.call.done:
            self._transport.serve()
        return batch.call is not None and batch.call.done

    def _answer(self, batch: _Batch, timeout: float | None) -> Appended:
        deadline = until(timeout)
        if batch.call is None:
            self._begin()
            self._push(deadline)
        call = batch.call
        assert call is not None, "the open batch has just been sealed"
        if not self._wait(lambda: call.done, deadline):
            raise TimedOut("not acknowledged yet")
        return call.get()

    def _give_up(self) -> None:
        reason = f"{self._transport.address} did not answer within {self._transport.timeout} s"
        for batch in self._under_way:
            if batch.call is not None and (error := batch.call.unknown(reason)):
                batch.call.fail(error)
        self._reap()

    def _reap(self) -> None:
        """Take note of the batches that are settled, from the oldest on."""
        under_way = self._under_way
        while under_way:
            batch = under_way[0]
            call = batch.call
            assert call is not None, "an open batch is not under way"
            if not call.done:
                return
            under_way.popleft()
            self._unacknowledged -= batch.bytes
            self._heard = monotonic()
            if call.answer is not None:
                self._end = call.answer.end
            elif self._failure is None:
                self._failure = call.error
                self._due = 0.0  # the next send leaves the fast path, and raises it

    def _raise_failure(self) -> None:
        failure, self._failure = self._failure, None
        if failure is not None:
            raise failure.with_traceback(None)

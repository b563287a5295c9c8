"""The producer: records in, batches out, many of them in flight.

``send`` costs a few branches and a list append; everything else is done once per batch. A batch
goes through three places: it is open (records are being added), it is under way (encoded, its
append in flight), it is settled (answered or failed).

Every record has a sequence number, and every batch names the last one sent before it: the server
recognises a batch that is repeated, and refuses one that does not follow. So when a batch fails,
nothing behind it gets in: what is under way is refused, what is still open is not sent, and all of
it fails. Later sends begin anew: under a fresh id, or, by name, behind what was accepted last.

A record that is sent again on purpose, under a sequence at or below the last one accepted, goes in
a batch with its like, which follows nothing: the server recognises it whatever comes before it.
"""

from __future__ import annotations

import logging
from bisect import bisect_right
from collections import deque
from itertools import accumulate, islice
from time import monotonic
from typing import TYPE_CHECKING, Final, NamedTuple, TypeVar, cast

from .batch import HEADER_BYTES, RECORD_OVERHEAD, encode, renumbered
from .errors import (
    Conflict,
    ConnectionLost,
    Fenced,
    InvalidRequest,
    OutcomeUnknown,
    RlogError,
    TimedOut,
    TooLarge,
)
from .identity import IDLE_SECONDS, new_producer_id
from .model import OFFSET_MAX, Bytes, Item, Level, Receipt, to_bytes, to_headers, to_time_ns
from .protocol import Append, Appended
from .session import Call
from .steps import Wait, finishing, give_up, until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from .identity import AppendIds, Identity
    from .steps import Link, Steps

IN_FLIGHT_MAX: Final = 64  # batches; as many as a server remembers of a named producer
HEADER_OVERHEAD: Final = 10  # bytes: more than one header adds to its name and value
_CHUNK_RECORDS: Final = 1024

T = TypeVar("T")

_logger = logging.getLogger("rlog_client")


def receipt_of(appended: Appended) -> Receipt:
    level: Level = "synced" if appended.synced else "written"
    return Receipt(appended.first, appended.end, appended.timestamp_ns, level, appended.duplicate)


def receipt_at(appended: Appended, index: int) -> Receipt:
    """Of one record of a batch; one that is not known any more is at -1."""
    whole = receipt_of(appended)
    if appended.first >= 0:
        offset = appended.first + index
        return Receipt(offset, offset + 1, whole.timestamp_ns, whole.level, whole.duplicate)
    for begin, records, first, timestamp_ns in appended.parts:
        if begin <= index < begin + records:
            offset = first + index - begin
            return Receipt(offset, offset + 1, timestamp_ns, whole.level, whole.duplicate)
    return whole


def appending(
    link: Link,
    ids: AppendIds,
    log_id: int,
    columns: Columns,
    expect: int | None,
    expect_key: int | None = None,
) -> Steps[Appended]:
    """Append one batch that stands alone, and wait for its answer."""
    check_expected(expect, "expect")
    check_expected(expect_key, "expect_key")
    producer, sequence = ids.borrow()
    call = Call(Appended, append=(producer, sequence))
    link.start(call, Append(log_id, expect, expect_key), columns.encode(producer, sequence))
    following = sequence + len(columns.values)
    try:
        appended = yield from finishing(link, call)
    except OutcomeUnknown:
        raise  # it may be on its way still
    except RlogError:
        ids.give_back(producer, following)
        raise
    except BaseException:
        give_up(link, call)
        raise
    ids.give_back(producer, following)
    return appended


def check_expected(value: int | None, what: str) -> None:
    if value is not None and (isinstance(value, bool) or not isinstance(value, int)):
        raise TypeError(f"{what} is an offset, an int, not {type(value).__name__}")


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

    def encode(self, producer: int, sequence: int, epoch: int = 0) -> bytearray:
        count = len(self.values)
        return encode(
            self.values,
            None if self.keys is None else _filled(self.keys, count),
            None if self.headers is None else _filled(self.headers, count),
            None if self.times_ns is None else _filled(self.times_ns, count),
            producer=producer,
            sequence=sequence,
            epoch=epoch,
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


class Batch:
    """Records that are appended together. ``call`` is None while it is open.

    ``again``: it was numbered anew once. ``behind``: what fails it if the server refuses it,
    because a batch before it has failed.
    """

    __slots__ = (
        "again",
        "behind",
        "bytes",
        "call",
        "columns",
        "count",
        "payload",
        "producer",
        "sequence",
    )

    def __init__(self, producer: ProducerSteps) -> None:
        self.producer = producer
        self.columns = Columns()
        self.call: Call[Appended] | None = None
        self.payload: bytearray | None = None  # while it is under way
        self.bytes = 0
        self.count = 0
        self.sequence = 0
        self.again = False
        self.behind: RlogError | None = None


class _Start(NamedTuple):
    """A batch that is sealed, and not on its way yet, for sure."""

    batch: Batch
    call: Call[Appended]
    append: Append
    payload: bytearray


def _behind(error: RlogError) -> RlogError:
    """What became of the records behind those that failed with ``error``: they are not in the log.

    The same kind of error, since what is to be done about it is the same; but nothing is unknown.
    """
    text = f"not appended: what was sent before it failed: {error}"
    if isinstance(error, OutcomeUnknown):
        return ConnectionLost(text)
    return type(error)(text, **error.details())


class ProducerSteps:
    """Sends records to one log, batched and pipelined. Its face adds the fast path of ``send``."""

    def __init__(
        self,
        transport: Link,
        who: Identity,
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
        self._who = who
        self._log = who.log
        self._log_id = who.log_id
        self._linger = linger
        self._record_max = limits.record_bytes_max
        self._batch_max = limits.batch_bytes_max
        self._buffer_bytes = buffer_bytes
        # What a batch is filled with; one record may be larger, and then is a batch alone.
        self._fill = max(0, min(batch_bytes, buffer_bytes, self._batch_max) - HEADER_BYTES)
        self._sequence = 0  # of the open batch's first record
        self._after = -1  # the last sequence put on its way
        self._known = -1  # up to here, sequences were accepted before it was opened,
        self._repeated = -1  # and up to here they were sent again
        self._old = False  # the open batch is of such
        self._accepted = -1  # the last sequence accepted under the name
        self._end = 0  # the offset after the last acknowledged record
        self._under_way: deque[Batch] = deque()
        self._unacknowledged = 0  # bytes
        self._heard = 0.0  # when the server last settled something, or was first asked
        self._failure: RlogError | None = None
        self._fenced: Fenced | None = None
        self._closed = False
        self._due = monotonic() + linger
        self._sealed: tuple[_Start, ...] = ()
        self._batch = Batch(self)
        self._values = self._batch.columns.values
        # What plain values may still go into the open batch, in bytes: all together, and each.
        # Less than 0: none may. What is not open yet has no room.
        self._room = self._fill if who.ready else -1
        self._plain_max = self._record_max
        transport.tended.add(self)

    # --- the public operations ----------------------------------------------------------------

    def _extend(self, values: Iterable[Bytes]) -> Steps[None]:
        remaining = iter(values)
        count = 0
        while chunk := list(islice(remaining, _CHUNK_RECORDS)):
            yield from self._extend_chunk(chunk, count)
            count += len(chunk)

    def _flush(self, timeout: float | None) -> Steps[int]:
        deadline = until(timeout)
        self._begin()
        yield from self._push(deadline)
        if not (yield from self._wait(lambda: not self._under_way, deadline)):
            raise TimedOut(f"{len(self._under_way)} batches are not acknowledged yet")
        self._raise_failure()
        return self._end

    def _close(self) -> Steps[None]:
        if self._closed:
            return
        try:
            yield from self._flush(None)
        except GeneratorExit:
            self._shut()
            self._who.let_go(self._transport)
            raise
        except BaseException:
            self._shut()
            yield from self._who.releasing(self._transport)
            raise
        self._shut()
        yield from self._who.releasing(self._transport)

    def _shut(self) -> None:
        self._closed = True
        self._room = -1
        self._transport.tended.discard(self)

    def _open(self) -> Steps[None]:
        """For who asks about the name or the claim; once it is over, what it was is the answer."""
        if self._who.epoch and (self._closed or self._fenced is not None):
            return
        self._begin()
        yield from self._ready()

    def __del__(self) -> None:
        count = len(getattr(self, "_values", ()))
        if count and not self._closed:
            _logger.warning("log %s: %d records were never sent: close() it", self._log, count)
        if hasattr(self, "_who") and self._who.opened:
            self._who.let_go(self._transport)

    def _owns(self, log_id: int) -> int:
        """The epoch of its claim on this log, 0 for none."""
        who = self._who
        return who.epoch if who.exclusive and who.opened and who.log_id == log_id else 0

    # --- filling ------------------------------------------------------------------------------

    def _begin(self) -> None:
        if self._closed:
            raise RuntimeError("this producer is closed")
        self._transport.check()
        self._resume()
        self._reap()

    def _ready(self) -> Steps[None]:
        """Have an identity to send under: opened at the first use, and anew after a failure."""
        who = self._who
        if self._fenced is None:
            self._fenced = who.lost
        if self._fenced is not None:
            raise self._fenced.with_traceback(None)
        if who.ready:
            return
        assert not self._values, "an open batch fails with what was sent before it"
        try:
            yield from who.opening(self._transport)
        except Fenced as error:
            self._fenced = error
            raise
        self._known = self._accepted = self._after = who.last
        self._repeated = -1
        self._sequence = who.last + 1
        self._room = self._fill

    def _send(
        self, item: Item, index: int | None, sequence: int | None = None
    ) -> Steps[tuple[Batch, int]]:
        """The way in for everything that is not a plain value with room and time left.

        Where the record went: its batch, and its index in it.
        """
        self._begin()
        self._raise_failure()
        if sequence is not None and self._who.name is None:
            raise TypeError("sequence is for a producer with a name")
        item, bound = checked(item, index, self._record_max)
        if bound + HEADER_BYTES > self._batch_max:
            size, limit = bound + HEADER_BYTES, self._batch_max
            raise TooLarge(
                f"a batch of up to {size} bytes; the limit is {limit}",
                size=size,
                limit=limit,
                index=index,
            )
        yield from self._ready()
        if sequence is not None:
            self._check_sequence(sequence)
        if self._values and (bound > self._room or not self._follows(sequence)):
            yield from self._push(None)
            self._raise_failure()
        self._place(sequence)
        place = self._batch, len(self._values)
        self._batch.columns.add(item)
        self._room -= bound
        if self._room <= 0:
            yield from self._push(None)
        elif (now := monotonic()) >= self._due:
            if len(self._under_way) < IN_FLIGHT_MAX:
                self._seal()
            else:
                self._due = now + self._linger
            self._transport.serve()
        return place

    def _check_sequence(self, sequence: int) -> None:
        """What a caller numbers its records with rises strictly."""
        if isinstance(sequence, bool) or not isinstance(sequence, int):
            raise TypeError(f"a sequence is an int, not {type(sequence).__name__}")
        last = self._sequence + len(self._values) - 1
        if last <= self._known:
            last = self._repeated  # nothing new was sent yet
        if not last < sequence <= OFFSET_MAX:
            raise InvalidRequest(f"sequences rise: {sequence} cannot follow {last}")

    def _follows(self, sequence: int | None) -> bool:
        """The open batch can take it: its numbers are consecutive, and all old or all new."""
        if sequence is None:
            return not self._old
        following = self._sequence + len(self._values)
        return sequence == following and (sequence <= self._known) is self._old

    def _place(self, sequence: int | None) -> None:
        """Number the next record of the open batch, which can take it."""
        if sequence is None:
            return
        old = sequence <= self._known
        if not self._values:
            self._sequence = sequence
            self._old = old
            # What is sent without a number is new: it does not go into a batch of old ones.
            self._plain_max = -1 if old else self._record_max
        if old:
            self._repeated = sequence

    def _extend_chunk(self, chunk: list[Bytes], before: int) -> Steps[None]:
        """``before``: how many values of the call came before this chunk."""
        plain = set(map(type, chunk)) == {bytes} and max(map(len, chunk)) <= self._plain_max
        if plain and monotonic() < self._due:
            size = sum(map(len, chunk)) + RECORD_OVERHEAD * len(chunk)
            if size <= self._room:
                self._room -= size  # first: an interrupt in between costs room, not a limit
                self._values.extend(cast("list[bytes]", chunk))
                return
        bounds = list(accumulate(map(RECORD_OVERHEAD.__add__, map(len, chunk)))) if plain else []
        at = taken = 0
        while at < len(chunk):
            to = at
            if plain and monotonic() < self._due:
                to = bisect_right(bounds, taken + self._room, at)
            if to > at:
                self._room -= bounds[to - 1] - taken
                self._values.extend(cast("list[bytes]", chunk[at:to]))
            else:
                # The record that ends a batch, or is due, or is not plain.
                to = at + 1
                yield from self._send(Item(chunk[at]), before + at)
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
        now = monotonic()
        self._leave_idle_id(now)
        who, batch, following = self._who, self._batch, Batch(self)
        old, sequence, count = self._old, self._sequence, len(self._values)
        call = Call(Appended, append=(who.id, sequence))
        append = Append(self._log_id, after=None if old else self._after)
        payload = batch.columns.encode(who.id, sequence, who.epoch)
        size = len(payload)
        start = _Start(batch, call, append, payload)
        values, nothing = following.columns.values, Columns()
        # An interrupt comes at a call: before all of these stores, or behind them.
        if not self._unacknowledged:
            self._heard = now
        batch.call = call
        batch.bytes = size
        batch.count = count
        batch.sequence = sequence
        batch.columns = nothing  # its values are in the payload now
        self._sealed = (start,)
        self._unacknowledged += size
        if old:
            self._sequence = self._known + 1
        else:
            self._after = sequence + count - 1
            self._sequence = sequence + count
        self._batch = following
        self._values = values
        self._room = self._fill
        self._plain_max = self._record_max
        self._old = False
        self._due = now + self._linger
        self._resume()

    def _leave_idle_id(self, now: float) -> None:
        """The server forgets an id that has no name: be first."""
        idle = not self._under_way and self._after >= 0 and now > self._heard + IDLE_SECONDS
        if idle and self._who.name is None:
            self._number_anew(new_producer_id())

    def _number_anew(self, producer: int) -> None:
        # No call in here: see _seal.
        self._who.id = producer
        self._sequence = 0
        self._after = -1

    def _resume(self) -> None:
        """Put what was sealed on its way: now, or after the interrupt that came then."""
        if not self._sealed:
            return
        for batch, call, append, payload in self._sealed:
            if batch not in self._under_way:
                self._under_way.append(batch)
            batch.payload = payload
            if batch.call is not None and batch.call is not call:
                batch.call.fail(ConnectionLost("sent again under another id"))
            batch.call = call
            # Nothing has been written since: it is either in there, or was never put there.
            if not any(piece is payload for piece in self._transport.session.outgoing):
                self._transport.session.start(call, append, payload)
        self._sealed = ()

    def _push(self, deadline: float | None) -> Steps[None]:
        """Seal the open batch, and wait until there is room for another."""
        if self._values:
            free = self._wait(lambda: len(self._under_way) < IN_FLIGHT_MAX, deadline)
            if not (yield from free):
                raise TimedOut(f"{IN_FLIGHT_MAX} batches are under way and none is acknowledged")
            if self._values:  # it fails unsent when what is under way does
                self._seal()
                self._transport.serve()
        self._reap()
        if not (yield from self._wait(self._has_room, deadline)):
            raise TimedOut(f"{self._unacknowledged} bytes are not acknowledged yet")

    def _has_room(self) -> bool:
        return not self._under_way or self._unacknowledged + self._fill <= self._buffer_bytes

    def _wait(self, done: Callable[[], bool], deadline: float | None) -> Steps[bool]:
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
            if (yield Wait(settled, min(ends, default=None))):
                continue
            now = monotonic()
            if patience is not None and now >= self._heard + patience:
                self._give_up()
            elif deadline is not None and now >= deadline:
                return False
        return True

    def _done(self, batch: Batch) -> bool:
        if not self._is_settled(batch):
            self._transport.serve()
        return self._is_settled(batch)

    def _is_settled(self, batch: Batch) -> bool:
        """Its call is answered, and will not be made again."""
        self._reap()
        return batch.call is not None and batch.call.done and batch.payload is None

    def _answer(self, batch: Batch, timeout: float | None) -> Steps[Appended]:
        if not self._is_settled(batch):
            deadline = until(timeout)
            if batch.call is None:
                self._begin()
                yield from self._push(deadline)
            if not (yield from self._wait(lambda: self._is_settled(batch), deadline)):
                raise TimedOut("not acknowledged yet")
        assert batch.call is not None, "it is settled"
        return batch.call.get()

    def _give_up(self) -> None:
        reason = f"{self._transport.address} did not answer within {self._transport.timeout} s"
        lost = self._transport.session.lost is not None
        for batch in self._under_way:
            if batch.call is not None:
                unsent = ConnectionLost(reason) if lost else TimedOut(reason)
                batch.call.fail(batch.call.unknown(reason) or unsent)
        self._reap()

    # --- what became of it --------------------------------------------------------------------

    def _reap(self) -> None:
        """Take note of the batches that are settled, from the oldest on."""
        under_way = self._under_way
        while under_way:
            batch = under_way[0]
            call = batch.call
            assert call is not None, "an open batch is not under way"
            if not call.done:
                return
            if call.answer is not None:
                self._note_accepted(batch, call.answer)
            elif self._is_forgotten(batch, call):
                self._send_again()
                return
            else:
                self._note_failed(batch, call)
            self._heard = monotonic()
            batch.payload = None
            self._unacknowledged -= batch.bytes
            batch.bytes = 0
            under_way.popleft()  # last: an interrupt before it leaves all of this to be done again

    def _note_accepted(self, batch: Batch, answer: Appended) -> None:
        ends = [first + records for _, records, first, _ in answer.parts]
        self._end = max(self._end, answer.end, *ends)
        if self._who.name is not None:
            self._accepted = max(self._accepted, batch.sequence + batch.count - 1)

    def _note_failed(self, batch: Batch, call: Call[Appended]) -> None:
        error = call.error
        assert error is not None, "it is done, and not answered"
        if batch.behind is not None:
            if isinstance(error, Conflict):
                call.error = batch.behind
            return
        behind = _behind(error)
        for each in self._under_way:
            if each is not batch:
                each.behind = behind
        self._drop_open(behind)
        if isinstance(error, Fenced):
            self._fenced = error
        if self._who.name is None:
            self._number_anew(new_producer_id())
        else:
            self._who.ready = False
            self._room = -1
        if self._failure is None:
            self._failure = error
        self._due = 0.0  # the next send leaves the fast path, and raises it

    def _drop_open(self, error: RlogError) -> None:
        """The open batch fails, unsent."""
        if not self._values:
            return
        batch, following, nothing = self._batch, Batch(self), Columns()
        values = following.columns.values
        call = Call(Appended)
        call.fail(error)
        # No call from here on: see _seal.
        batch.call = call
        batch.columns = nothing
        self._batch = following
        self._values = values
        self._room = self._fill
        self._plain_max = self._record_max
        self._old = False

    def _is_forgotten(self, batch: Batch, call: Call[Appended]) -> bool:
        """It does not follow, although nothing before it has failed: the server has lost what was
        not synced, or has forgotten this id.
        """
        fresh = batch.behind is None and not batch.again and self._who.name is None
        return fresh and isinstance(call.error, Conflict)

    def _send_again(self) -> None:
        """Once, in order, and under a fresh id: nothing of it can be in the log."""
        producer, sequence = new_producer_id(), 0
        starts = []
        for batch in self._under_way:
            call = Call(Appended, append=(producer, sequence))
            append = Append(self._log_id, after=sequence - 1)
            assert batch.payload is not None, "it is under way"
            payload = renumbered(batch.payload, producer, sequence)
            starts.append(_Start(batch, call, append, payload))
            batch.sequence = sequence
            sequence += batch.count
        sealed = tuple(starts)
        # No call from here on: see _seal.
        self._who.id = producer
        self._sequence = sequence
        self._after = sequence - 1
        self._sealed = sealed
        for batch in self._under_way:
            batch.again = True
        self._resume()

    def _raise_failure(self) -> None:
        failure, self._failure = self._failure, None
        if failure is not None:
            raise failure.with_traceback(None)

"""Transactions: appends to any logs and commits of consumers, sent as one request.

They are collected, and sent at the end as one batch a log. The server does all of it at one moment,
or nothing. Where its answer is lost for good, nobody here knows which: then a consumer that took
part asks where its cursor stands before it goes on, so that nothing is done once more.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol

from .batch import HEADER_BYTES
from .errors import (
    ConnectionLost,
    InvalidRequest,
    NotFound,
    OutcomeUnknown,
    RlogError,
    TimedOut,
    TooLarge,
)
from .identity import new_producer_id
from .model import Item, Receipt
from .producer import Columns, ProducerSteps, check_expected, checked
from .protocol import LogBatch, LogReply, OpenLog, Transact, Transacted, transact_bytes
from .session import Call
from .steps import Wait, asking, finishing, until

if TYPE_CHECKING:
    from collections.abc import Iterable

    from .model import Bytes, Level, Record
    from .protocol import Commitment
    from .steps import Link, Steps

IN_FLIGHT_MAX: Final = 64  # of one client; as many as a server remembers


class Participant(Protocol):
    """A consumer that commits with others. ``_settles_each``: records are committed one by one."""

    _transport: Any
    _settles_each: bool

    def _check_record(self, record: Record) -> None:
        """Raise what stands in the way of committing ``record``, as far as it is known here."""

    def _take_over(self, record: Record) -> None:
        """It is for this to be committed, or not: autocommit leaves it alone."""

    def _joining(self, record: Record) -> Steps[None]:
        """Have nothing else in flight, and know where the cursor stands."""

    def _commitment(self, record: Record, begun: int | None) -> Commitment:
        """``begun``: the offset after the highest record in hand from then on; None: as it is."""

    def _join(self, commitment: Commitment) -> None:
        """It is on its way: from here on it may have been done."""

    def _joined(self, commitment: Commitment, *, done: bool) -> None:
        """It was done, or refused."""


class _Append(NamedTuple):
    log: str | int  # a name, or a log's id
    item: Item
    expect: int | None
    expect_key: int | None


class _Commit(NamedTuple):
    consumer: Participant
    record: Record
    begun: int | None


class _Batch:
    """What goes to one log."""

    def __init__(self, log: int) -> None:
        self.log = log
        self.columns = Columns()
        self.expect: int | None = None
        self.expect_keys: list[tuple[int, int]] = []

    def add(self, append: _Append) -> int:
        """The record's index."""
        index = len(self.columns.values)
        self.columns.add(append.item)
        if append.expect is not None:
            if self.expect not in (None, append.expect):
                text = f"one log cannot end at {self.expect} and at {append.expect}"
                raise InvalidRequest(text)
            self.expect = append.expect
        if append.expect_key is not None:
            self.expect_keys.append((index, append.expect_key))
        return index


class _Request(NamedTuple):
    """``places``: of each append, the index of its batch and the record's index in that."""

    control: Transact
    payload: bytes
    places: list[tuple[int, int]]


class TransactionSteps:
    """One transaction. Its face lets it be entered, and sends it at the end."""

    def __init__(self, link: Link) -> None:
        self._transport = link
        self._appends: list[_Append] = []
        self._commits: list[_Commit] = []
        self._bytes = 0  # of the appends, at most
        self._began = self._ended = False
        self.receipts: list[Receipt] = []

    # --- collecting ---------------------------------------------------------------------------

    def _begin(self) -> None:
        if self._began:
            raise RuntimeError("a transaction is for one use: make another one")
        self._transport.check()
        self._began = True

    def _check_open(self) -> None:
        if self._ended:
            raise RuntimeError("this transaction is over")
        if not self._began:
            raise RuntimeError("enter this transaction first: it is sent at the end of its `with`")

    def _add(
        self,
        log: str | int,
        item: Bytes | Item,
        expect: int | None = None,
        expect_key: int | None = None,
    ) -> None:
        self._check_open()
        check_expected(expect, "expect")
        check_expected(expect_key, "expect_key")
        limits, index = self._transport.session.limits, len(self._appends)
        item, bound = checked(item, index, limits.record_bytes_max)
        if expect_key is not None and item.key is None:
            raise InvalidRequest("expect_key is for a record with a key")
        size = self._bytes + bound
        least = transact_bytes(Transact(0, 0, [LogBatch(0, HEADER_BYTES + size)]))
        _check_size(least, limits.batch_bytes_max, index)
        self._bytes = size
        self._appends.append(_Append(log, item, expect, expect_key))

    def _add_commit(self, consumer: Participant, record: Record, begun: int | None = None) -> None:
        self._check_open()
        if consumer._transport is not self._transport:
            raise InvalidRequest("a transaction commits consumers of its own client")
        consumer._check_record(record)
        consumer._take_over(record)
        self._commits.append(_Commit(consumer, record, begun))

    # --- sending ------------------------------------------------------------------------------

    def _send(self) -> Steps[None]:
        """Do all of it, or nothing."""
        self._ended = True
        if not self._appends and not self._commits:
            return
        self._transport.check()
        for consumer, record, _begun in self._commits:
            yield from consumer._joining(record)
            consumer._check_record(record)
        cached = self._transport.session.transactions.logs
        known = {each.log for each in self._appends} & cached.keys()
        try:
            yield from self._ask()
        except NotFound:
            if not known:
                raise
            # A name may stand for another log by now. Nothing was done, so it is asked once more.
            for name in known:
                cached.pop(str(name), None)
            yield from self._ask()

    def _ask(self) -> Steps[None]:
        commits: list[tuple[Participant, Commitment]] = []
        for each, record, begun in self._highest():
            commits.append((each, each._commitment(record, begun)))
        request = self._request((yield from self._ids()), [made for _, made in commits])
        yield from self._take_turn()
        transactions = self._transport.session.transactions
        control = request.control
        transactions.client = transactions.client or new_producer_id()
        transactions.number += 1
        control.client, control.number = transactions.client, transactions.number
        call = Call(Transacted, append=(control.client, control.number))
        for consumer, commitment in commits:
            consumer._join(commitment)
        try:
            transactions.under_way[control.number] = None
            self._transport.start(call, control, request.payload)
            answer = yield from finishing(self._transport, call)
        except RlogError as error:
            if not isinstance(error, OutcomeUnknown):
                _tell(commits, done=False)
            raise
        except BaseException:
            # Interrupted or cancelled, nobody waits for it: a later connection need not repeat it.
            call.fail(ConnectionLost("given up by its caller"))
            raise
        finally:
            if transactions.ahead >= IN_FLIGHT_MAX:
                self._transport.wake()  # another task may wait for its turn
            transactions.under_way.pop(control.number, None)
        _tell(commits, done=True)
        self.receipts = [_receipt(answer, *place) for place in request.places]

    def _highest(self) -> list[_Commit]:
        """Of several commits through a record of one consumer the highest does for all."""
        found: dict[tuple[int, int | None], _Commit] = {}
        for each in self._commits:
            record = each.record
            alone = record.redriven or each.consumer._settles_each
            what = (id(each.consumer), record.offset if alone else None)
            if what not in found or found[what].record.offset < record.offset:
                found[what] = each
        return list(found.values())

    def _ids(self) -> Steps[dict[str | int, int]]:
        """The id of each log, asked for once by every client."""
        cached = self._transport.session.transactions.logs
        ids: dict[str | int, int] = {}
        for log in dict.fromkeys(each.log for each in self._appends):
            if isinstance(log, int):
                ids[log] = log
                continue
            if log not in cached:
                reply = yield from asking(self._transport, OpenLog(log), LogReply)
                cached[log] = reply.info.id
            ids[log] = cached[log]
        return ids

    def _request(self, ids: dict[str | int, int], commits: list[Commitment]) -> _Request:
        batches: dict[int, _Batch] = {}
        order: list[tuple[int, int]] = []  # of each append: its log's id, the record's index
        for append in self._appends:
            log = ids[append.log]
            batch = batches.setdefault(log, _Batch(log))
            order.append((log, batch.add(append)))
        encoded = [
            each.columns.encode(0, 0, _owned(self._transport, each.log))
            for each in batches.values()
        ]
        appends = [
            LogBatch(each.log, len(raw), each.expect, each.expect_keys)
            for each, raw in zip(batches.values(), encoded, strict=True)
        ]
        control = Transact(0, 0, appends, commits)
        _check_size(transact_bytes(control), self._transport.session.limits.batch_bytes_max, None)
        index = {log: at for at, log in enumerate(batches)}
        places = [(index[log], at) for log, at in order]
        return _Request(control, b"".join(encoded), places)

    def _take_turn(self) -> Steps[None]:
        """So many at once, that the server knows each when it is repeated: it forgets by number,
        so the oldest of them bounds how far the others get ahead while it waits for space.
        """
        transactions = self._transport.session.transactions
        deadline = until(self._transport.timeout)
        # One that ends wakes all that wait, and only the first of them finds its place free.
        while transactions.ahead >= IN_FLIGHT_MAX:
            if not (yield Wait(lambda: transactions.ahead < IN_FLIGHT_MAX, deadline)):
                text = f"of {IN_FLIGHT_MAX} transactions under way the oldest is not answered"
                raise TimedOut(text)


class Verdicts(TransactionSteps):
    """Records of one consumer, in order, with what their verdicts append: one transaction."""

    def __init__(self, link: Link, consumer: Participant) -> None:
        super().__init__(link)
        self._consumer = consumer
        self._record: Record | None = None  # the last one
        self._begin()

    def add(self, record: Record, appends: Iterable[Any]) -> None:
        """``appends``: as a handler gave them. All of it, or it raises: TypeError, TooLarge and
        what else ``append`` does.
        """
        before = len(self._appends), self._bytes
        try:
            for pair in appends:
                if not isinstance(pair, tuple) or len(pair) != 2 or not isinstance(pair[0], str):
                    text = f"appends are pairs of a log's name and a value or an Item, not {pair!r}"
                    raise TypeError(text)
                self._add(*pair)
        except BaseException:
            del self._appends[before[0] :]
            self._bytes = before[1]
            raise
        self._record = record

    @property
    def end(self) -> int:
        """The offset after the last record."""
        assert self._record is not None, "nothing is in it"
        return self._record.offset + 1

    def sending(self, begun: int | None = None) -> Steps[None]:
        """``begun``: the offset after the highest record in hand from then on; None: as it is."""
        assert self._record is not None, "sent with nothing in it"
        self._add_commit(self._consumer, self._record, begun)
        yield from self._send()


def _tell(commits: list[tuple[Participant, Commitment]], *, done: bool) -> None:
    for consumer, commitment in commits:
        consumer._joined(commitment, done=done)


def _check_size(size: int, limit: int, index: int | None) -> None:
    if size > limit:
        text = f"a transaction of up to {size} bytes; the limit is {limit}"
        raise TooLarge(text, size=size, limit=limit, index=index)


def _owned(link: Link, log: int) -> int:
    """The epoch under which this client is the log's only producer, or was before it lost it."""
    for each in link.tended:
        if isinstance(each, ProducerSteps) and (epoch := each._owns(log)):
            return epoch
    return 0


def _receipt(answer: Transacted, batch: int, index: int) -> Receipt:
    offset = answer.appends[batch][0] + index
    level: Level = "synced" if answer.synced else "written"
    return Receipt(offset, offset + 1, answer.timestamp_ns, level, answer.duplicate)

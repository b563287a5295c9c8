"""A log seen as a table: the latest record of one key, and of every key at one offset.

The server says which offsets (see ``protocol.TablePage``), and the log is read in order: what is
far away is sought, what is near is read over. All offsets are here before the first record is,
packed as they came, so that what happens to the connection afterwards does not matter.
"""

from __future__ import annotations

from itertools import accumulate
from typing import TYPE_CHECKING, Final

import msgspec

from .errors import CorruptData, Gap, NotFound, OffsetOutOfRange, Unsupported
from .model import Bytes, Record, offset, to_bytes
from .parked import Picker
from .protocol import Done, GetLatest, GetTable, Latest, TablePage
from .session import LOAN_BYTES, Call
from .source import ReaderSteps
from .steps import asking, finishing

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .session import Buffer
    from .steps import Link, Steps

SEEK_BYTES: Final = 64 * 1024  # the first loan at a new place: perhaps one record is all
TRIES: Final = 5  # to get all pages of one table

_decoder: Final = msgspec.msgpack.Decoder(list[int])


def latest(link: Link, log: str, log_id: int, key: Bytes) -> Steps[Record | None]:
    """The key's latest record, or None."""
    asked, before = GetLatest(log_id, to_bytes(key, "a key")), -1
    while (at := (yield from asking(link, asked, Latest)).offset) >= 0:
        try:
            return (yield from _picking(link, log, log_id, at))
        except OffsetOutOfRange:
            if at == before:
                raise
            before = at  # it was trimmed, or superseded and compacted: there is another one now
    return None


def _picking(link: Link, log: str, log_id: int, at: int) -> Steps[Record]:
    picker = Picker(link, log, log_id)
    try:
        return (yield from picker.pick(at))
    finally:
        picker.leave()


class _Scan(ReaderSteps):
    """Reads chosen records of a log, in order."""

    _lends_ahead = False  # what is wanted next may lie elsewhere

    def __init__(self, link: Link, log: str, log_id: int, end: int) -> None:
        super().__init__(link, log, log_id, block=True)
        self._final_end = self._known_end = end
        self._span = 1  # offsets that the last loan brought

    def to(self, wanted: int) -> Steps[Iterator[Record]]:
        """Records in order, from one at or below ``wanted`` on, some of them. Raises what a reader
        raises, and Gap where ``wanted`` is absent.
        """
        run = None
        if self._offset <= wanted:  # else it was passed
            cut = self._cut
            if self._held is None and (cut is None or wanted >= cut.end):
                yield from self._go_to(wanted)
            run = yield from self._next_run(self._final_end, None)
        if run is None:
            text = f"log {self._log}: the record at {wanted} was superseded and compacted meanwhile"
            raise Gap(text, first=wanted, end=wanted + 1)
        return run

    def hand_back(self, record: Record) -> None:
        """It comes once more."""
        self._held = record

    def begin_anew(self, at: int) -> None:
        self._drop()
        self._place = at

    def _go_to(self, wanted: int) -> Steps[None]:
        subscription = self._subscription
        if (
            subscription is not None
            and not subscription.broken
            and self._offset <= wanted < subscription.next + self._span
        ):
            # What lies before it is passed without being unpacked.
            self._cut, self._place = None, wanted
            return
        self._loan_bytes = SEEK_BYTES
        try:
            yield from self._seek(offset(wanted))
        except OffsetOutOfRange as error:
            self._place = wanted
            raise self._gap(error) from None

    def _fetch(self, deadline: float | None) -> Steps[bool]:
        before = self._subscription.next if self._subscription is not None else 0
        fetched = yield from super()._fetch(deadline)
        if (subscription := self._subscription) is not None:
            self._span = max(1, subscription.next - before)
        self._loan_bytes = min(2 * self._loan_bytes, LOAN_BYTES)
        return fetched


class TableSteps:
    """The latest record of each key below one offset: what both clients do."""

    def __init__(self, link: Link, log: str, log_id: int) -> None:
        self._link = link
        self._log = log
        self._log_id = log_id
        self._number = 0  # of the server's, 0: none, or it was given back
        self._pages: list[Buffer] = []  # those to come, the next one last
        self._page: list[int] = []
        self._at = 0  # in it, the next offset
        self._end: int | None = None
        self._scan: _Scan | None = None
        self._torn = False  # what was read may have been lost by an interrupt
        self._ready: Iterator[Record] = iter(())  # read, and not handed out yet
        self._closed = False

    def _open(self) -> Steps[None]:
        if self._closed:
            raise RuntimeError("this table is closed")
        self._link.check()
        if self._end is not None:
            return
        for left in reversed(range(TRIES)):
            try:
                pages, end = yield from self._ask()
            except NotFound:
                # It went with its connection, or there were too many.
                if not left or not self._number:
                    raise
                self._number = 0
            else:
                self._pages, self._end = pages[::-1], end
                self._scan = _Scan(self._link, self._log, self._log_id, end)
                return

    def _ask(self) -> Steps[tuple[list[Buffer], int]]:
        first: Call[TablePage] = self._link.request(GetTable(self._log_id), TablePage)
        head = yield from finishing(self._link, first)
        self._number = head.table
        pages = [first.payload] if head.pages else []
        for page in range(1, head.pages):
            call = self._link.request(GetTable(self._log_id, head.table, page), TablePage)
            yield from finishing(self._link, call)
            pages.append(call.payload)
        return pages, head.end

    def _next(self) -> Steps[bool]:
        """Have the next records ready, at least one. False: this is the end."""
        yield from self._open()
        while self._turn_page():
            assert self._scan is not None
            wanted = self._page[self._at]
            if self._torn:
                self._scan.begin_anew(wanted)
                self._torn = False
            try:
                run = yield from self._scan.to(wanted)
            except (CorruptData, OffsetOutOfRange) as error:
                # What none of the table's records is in does not matter.
                if self._pass(error.end) or not isinstance(error, CorruptData | Gap):
                    raise
                continue
            self._torn = True
            found, at = self._chosen(run)
            # Both, with nothing in between where an interrupt could get in.
            self._at, self._ready = at, iter(found)
            self._torn = False
            if found:
                return True
        self._give_back()
        return False

    def _turn_page(self) -> bool:
        """False: this is the end."""
        while self._at >= len(self._page):
            if not self._pages:
                return False
            try:
                self._page = list(accumulate(_decoder.decode(self._pages[-1])))
            except msgspec.MsgspecError as error:
                raise Unsupported(f"a table does not decode: {error}") from None
            self._pages.pop()
            self._at = 0
        return True

    def _chosen(self, run: Iterator[Record]) -> tuple[list[Record], int]:
        """Of a run, the records of this page; and the place in it behind them."""
        found: list[Record] = []
        page, at = self._page, self._at
        wanted = page[at]
        for record in run:
            if record.offset < wanted:
                continue
            if record.offset > wanted:
                assert self._scan is not None
                self._scan.hand_back(record)
                break
            found.append(record)
            at += 1
            if at >= len(page):
                break
            wanted = page[at]
        return found, at

    def _pass(self, end: int) -> bool:
        """Go on at ``end``; whether that leaves out any."""
        passed = False
        while self._turn_page() and self._page[self._at] < end:
            self._at += 1
            passed = True
        return passed

    def _give_back(self) -> None:
        """Let the server compact what is in there."""
        number, self._number = self._number, 0
        if number:
            self._link.start(Call(Done), GetTable(self._log_id, number, None))
            self._link.serve()

    def _close(self) -> Steps[None]:
        yield from ()
        if not self._closed:
            self._closed = True
            self._pages, self._page, self._at = [], [], 0
            self._ready = iter(())
            if self._scan is not None:
                self._scan._drop()
            self._give_back()

    def __del__(self) -> None:
        if number := getattr(self, "_number", 0):
            drop = GetTable(self._log_id, number, None)
            self._link.post(lambda session: session.start(Call(Done), drop))

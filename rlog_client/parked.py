"""Records that were put aside: what they are, and having them delivered again."""

from __future__ import annotations

import logging
from itertools import islice
from typing import TYPE_CHECKING, Final

import msgspec

from .batch import HEADER_BYTES, Cut, InvalidBatch, decode, parse_header
from .errors import CorruptData, OffsetOutOfRange
from .model import Parked, Record, offset
from .protocol import (
    Counted,
    Listing,
    ListParked,
    ParkedCopy,
    ParkedInfo,
    ReadParked,
    Redrive,
    listed,
)
from .source import ReaderSteps
from .steps import asking, finishing

if TYPE_CHECKING:
    from collections.abc import Iterable

    from .session import Call
    from .steps import Link, Steps

PAGE: Final = 1000  # offsets of one request, and records of one listing

_logger = logging.getLogger("rlog_client")


class Picker(ReaderSteps):
    """Reads single records, wherever they lie."""

    _loan_bytes = 1  # one batch, whatever its size
    _lends_ahead = False

    def __init__(self, transport: Link, log: str, log_id: int) -> None:
        super().__init__(transport, log, log_id, block=True)

    def pick(self, at: int) -> Steps[Record]:
        """The record with offset ``at``. OffsetOutOfRange: it was removed. CorruptData."""
        cut = self._cut
        if cut is None or not cut.offset <= at < cut.end:
            yield from self._seek(offset(at))
        while True:
            self._until = at + 1  # or it would wait for a record behind one that is absent
            found = yield from self._poll(1, self._transport.timeout)
            if not found or found[0].offset > at:
                raise OffsetOutOfRange(f"log {self._log}: offset {at} is not there", first=0, end=0)
            if found[0].offset == at:
                return found[0]

    def leave(self) -> None:
        self._drop()


def picking(link: Link, log: str, log_id: int, consumer: str, at: int) -> Steps[Record]:
    """One parked record, from its place or from its copy; errors as of ``pick``."""
    picker = Picker(link, log, log_id)
    try:
        return (yield from _wherever(picker, link, log, log_id, consumer, at))
    finally:
        picker.leave()


def _wherever(
    picker: Picker, link: Link, log: str, log_id: int, consumer: str, at: int
) -> Steps[Record]:
    try:
        return (yield from picker.pick(at))
    except OffsetOutOfRange:
        return (yield from _reading_copy(link, log, log_id, consumer, at))


def _reading_copy(link: Link, log: str, log_id: int, consumer: str, at: int) -> Steps[Record]:
    """A record whose place was trimmed. OffsetOutOfRange: it was not kept. CorruptData."""
    call: Call[ParkedCopy] = link.request(ReadParked(log_id, consumer, at), ParkedCopy)
    yield from finishing(link, call)
    try:
        header = parse_header(call.payload)
        columns = decode(header, call.payload[HEADER_BYTES:])
        if at not in columns.offsets(header):
            raise InvalidBatch("another record is in it")
    except InvalidBatch as error:
        text = f"log {log}, the copy of parked record {at}: {error}"
        raise CorruptData(text, log=log, first=at, end=at + 1) from None
    return next(Cut(log, header, columns, at, 0).records)


def listing_parked(link: Link, log: str, log_id: int, consumer: str) -> Steps[list[Parked]]:
    """What a consumer has parked, by offset, with the records themselves."""
    picker = Picker(link, log, log_id)
    found: list[Parked] = []
    begin = 0
    try:
        while infos := (yield from _page(link, log_id, consumer, begin)):
            for info in infos:
                picking = (
                    _reading_copy(link, log, log_id, consumer, info.offset)
                    if info.copied
                    else _wherever(picker, link, log, log_id, consumer, info.offset)
                )
                record = yield from _picked(picking, info)
                if record is not None:
                    found.append(
                        Parked(record, info.reason, info.error, info.attempts, info.parked_ns)
                    )
            begin = infos[-1].offset + 1
    finally:
        picker.leave()
    return found


def _picked(picking: Steps[Record], info: ParkedInfo) -> Steps[Record | None]:
    """The record, or None for one that is not to be had: the others are listed all the same."""
    try:
        record = yield from picking
    except (OffsetOutOfRange, CorruptData) as error:
        _logger.warning("parked record %d is not to be had: %s", info.offset, error)
        return None
    return msgspec.structs.replace(record, redriven=info.redriven)


def _page(link: Link, log_id: int, consumer: str, begin: int) -> Steps[list[ParkedInfo]]:
    call: Call[Listing] = link.request(ListParked(log_id, consumer, begin), Listing)
    yield from finishing(link, call)
    return listed(call.payload, ParkedInfo)


def redriving(link: Link, log_id: int, consumer: str, offsets: Iterable[int] | None) -> Steps[int]:
    """Have parked records delivered again, ``offsets`` or all: how many."""
    count = 0
    if offsets is None:
        # A page at a time: what is redriven already does not count, so the end is a short page.
        while page := (yield from asking(link, Redrive(log_id, consumer), Counted)).count:
            count += page
            if page < PAGE:
                break
        return count
    rest = iter(sorted({offset(each).value for each in offsets}))
    while some := list(islice(rest, PAGE)):
        count += (yield from asking(link, Redrive(log_id, consumer, some), Counted)).count
    return count

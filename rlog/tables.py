"""Tables: the offsets of each key's latest record, as they are at one end of a log.

Nothing is copied on the loop. The index of keys is gone through in a thread, a part at a time,
while appends go on changing it; which offsets they displace meanwhile is noted (``displaced``). A
key's latest record at the end ``E`` is the one that the index has, if that is below ``E``; else it
is the one that was displaced first: the only offset below ``E`` that the key gave up since.

A page is a msgpack array of the distances from one offset to the next (the first: from 0), one to
five bytes a key. The server keeps the pages of a table for as long as somebody reads it: what is in
them is not compacted meanwhile.
"""

from __future__ import annotations

import time
from array import array
from bisect import bisect_left, bisect_right
from itertools import accumulate
from operator import sub
from typing import TYPE_CHECKING, Final

import msgspec

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from .keys import Keys

PAGE_KEYS: Final = 1 << 16
TABLES_MAX: Final = 16  # of a server; the oldest is given up for one more
_BUCKET_BITS: Final = 14  # offsets that are alike but for these are sorted together
_LOW: Final = (1 << _BUCKET_BITS) - 1
_AT_ONCE: Final = 2048
_encode: Final = msgspec.msgpack.Encoder().encode
_decoder: Final = msgspec.msgpack.Decoder(list[int])


class Table:
    """One of them, at ``end``; ``owner``: who reads it.

    ``displaced``: what appends since displaced, until the pages are made.
    """

    def __init__(self, number: int, owner: object, log: int, end: int) -> None:
        self.number = number
        self.owner = owner
        self.log = log
        self.end = end
        self.displaced: set[int] | None = set()
        self.pages: list[bytes] | None = None  # None: being packed
        self._firsts: list[int] = []

    def pack(self, keys: Keys, count: int) -> list[bytes]:
        """Make the pages; ``count``: how many keys there were at the end. For a thread."""
        buckets: dict[int, array[int]] = {}
        for begin in range(0, count, _AT_ONCE):
            self._sort_in(keys.offsets(begin, min(begin + _AT_ONCE, count)), buckets)
            time.sleep(0)  # whoever waits for the interpreter has it first
        # Behind the others: what one of those had displaced before it was looked at is in here.
        self._sort_in(list(self.displaced or ()), buckets)
        self.displaced = None
        pages = []
        for page in _paged(buckets):
            self._firsts.append(page[0])
            pages.append(_encode(list(map(sub, page, [0, *page]))))
            time.sleep(0)
        self.pages = pages
        return pages

    def _sort_in(self, offsets: Iterable[int], buckets: dict[int, array[int]]) -> None:
        for offset in offsets:
            if offset < self.end:
                if (bucket := buckets.get(offset >> _BUCKET_BITS)) is None:
                    bucket = buckets[offset >> _BUCKET_BITS] = array("H")
                bucket.append(offset & _LOW)

    def between(self, begin: int, end: int) -> Iterator[list[int]]:
        """Its offsets from ``begin`` up to ``end``, a page at a time."""
        assert self.pages is not None
        for index in range(max(0, bisect_right(self._firsts, begin) - 1), len(self.pages)):
            if self._firsts[index] >= end:
                return
            page = list(accumulate(_decoder.decode(self.pages[index])))
            yield page[bisect_left(page, begin) : bisect_left(page, end)]


def _paged(buckets: dict[int, array[int]]) -> Iterator[list[int]]:
    page: list[int] = []
    for high in sorted(buckets):
        base = high << _BUCKET_BITS
        # (Once: one may have been displaced just after it was looked at.)
        page += [base + low for low in sorted(set(buckets.pop(high)))]
        if len(page) >= PAGE_KEYS:
            yield page
            page = []
    if page:
        yield page


class Tables:
    """The tables that are being read on a server."""

    def __init__(self) -> None:
        self._tables: dict[int, Table] = {}
        self._last = 0

    def begin(self, owner: object, log: int, end: int) -> Table:
        self._last += 1
        table = self._tables[self._last] = Table(self._last, owner, log, end)
        while len(self._tables) > TABLES_MAX:
            del self._tables[next(iter(self._tables))]
        return table

    def get(self, owner: object, log: int, number: int) -> Table | None:
        table = self._tables.get(number)
        return table if table and table.owner is owner and table.log == log else None

    def end(self, owner: object, number: int | None = None) -> None:
        """One of an owner's is read no more; None: none of them is."""
        for table in list(self._tables.values()):
            if table.owner is owner and number in (None, table.number):
                del self._tables[table.number]

    def whole(self, log: int) -> bool:
        """None of a log's is still being packed."""
        return all(table.pages is not None for table in self.of(log))

    def of(self, log: int) -> list[Table]:
        return [table for table in self._tables.values() if table.log == log]

"""A subscription: where one reader stands, what to read for it next, and what it is told.

Pure bookkeeping: it reads nothing and waits for nothing. Its connection runs the reads that it
asks for (``next_read``), on the loop where the page cache has the records and in a thread where it
has not, and gives it what was found (``deliver``).
"""

from __future__ import annotations

import errno
import logging
from typing import TYPE_CHECKING, NamedTuple, Protocol

from rlog_client import protocol
from rlog_client.errors import CorruptData, Gap, NotFound, RlogError, StorageFailed
from rlog_client.protocol import PUSH_BYTES, Control, Credit

from .segment import Damage, Extent, path

if TYPE_CHECKING:
    from .decisions import Books, Grant
    from .log import Chunk, LogFiles

logger = logging.getLogger("rlog.subscription")


class Outlet(Protocol):
    """Where a subscription's messages go."""

    def answer(self, request: int, control: Control, payload: bytes | memoryview = b"") -> None: ...

    def ask(self, control: Control) -> None:
        """Have the broker decide what it asks of itself."""

    def wake(self) -> None:
        """There is more to see for others: see to it that they are shown it."""


class Read(NamedTuple):
    """A read of one segment, to ``run`` with ``wait`` where waiting for the disk harms nobody.

    ``batch_max``: a batch that is larger is not wanted, even if it is the first. ``loan``: the
    request id of the loan that it is for.
    """

    files: LogFiles
    extent: Extent
    position: int | None
    offset: int
    bytes_max: int
    batch_max: int | None = None
    loan: int = 0

    def run(self, *, wait: bool) -> Chunk | Damage | None:
        """See ``LogFiles.read``. Raises OSError."""
        return self.files.read(
            self.extent,
            self.position,
            self.offset,
            self.bytes_max,
            batch_max=self.batch_max,
            wait=wait,
        )


def damaged(log: str, file: str, found: Damage) -> CorruptData:
    """What is said of damage: of which log, by name, and where."""
    return CorruptData(
        f"log {log!r}: the offsets {found.first} to {found.end} are damaged: "
        f"{found.reason} ({file} at {found.position})",
        log=log,
        first=found.first,
        end=found.end,
        file=file,
        position=found.position,
    )


class Subscription:
    """One reader's place in one log. ``id``: of the Subscribe, under which it is told everything.

    ``consumer`` and ``grant``: the claim whose deliveries these are, if it is a consumer's.
    ``ended``: nothing more will come.
    """

    __slots__ = (
        "_ahead",
        "_left",
        "_loan",
        "_name",
        "_position",
        "_segment",
        "_sent",
        "books",
        "consumer",
        "ended",
        "grant",
        "id",
        "log",
        "offset",
        "outlet",
    )

    def __init__(
        self, outlet: Outlet, books: Books, request: int, log: int, name: str, offset: int
    ) -> None:
        self.outlet = outlet
        self.books = books
        self.id = request
        self.log = log
        self.offset = offset
        self.consumer: str | None = None
        self.grant: Grant | None = None
        self.ended = False
        self._name = name
        # In this one (base, generation), at _position, lies the next batch, if that is known.
        self._segment = (-1, 0)
        self._position = 0
        self._loan: int | None = None  # the request id of the open Credit,
        self._left = 0  # what is left of it, in bytes,
        self._ahead = False  # whether nobody waits for it yet,
        self._sent = False  # and whether anything came of it

    def lend(self, request: int, credit: Credit) -> None:
        """A Credit: it ends the open loan, and opens one."""
        self.settle()
        self._loan, self._left, self._sent = request, credit.bytes, False
        self._ahead = credit.ahead
        if credit.bytes <= 0:
            self.settle()

    def settle(self) -> None:
        """End the open loan, if there is one."""
        if self._loan is not None:
            visible = self.books.visible.get(self.log)
            end = visible.end if visible is not None else self.offset
            self.outlet.answer(self._loan, protocol.Settled(self.offset, end))
            self._loan = None

    def end(self, error: RlogError | None = None) -> None:
        """Nothing more will come; ``error`` says why, under the subscription's own id."""
        if error is not None:
            self.outlet.answer(self.id, protocol.error_control(error))
        self.settle()
        self.ended = True

    def lost(self, epoch: int) -> None:
        """The claim is somebody else's now."""
        self.outlet.answer(self.id, protocol.Lost(epoch))
        self.end()

    def next_read(self) -> Read | None:
        """What to read next; None: nothing for now, or for ever (``ended``)."""
        if self._loan is None:
            return None
        log, visible = self.books.state.logs.get(self.log), self.books.visible.get(self.log)
        if visible is None:
            self.end(NotFound(f"log {self._name!r} was deleted"))
            return None
        if log is None:
            return None  # its deletion is decided, and told when it is durable
        first = self.books.first[self.log]
        if self.offset < first:
            text = f"log {log.name!r}: the offsets {self.offset} to {first} were removed"
            self._skip(Gap(text, first=self.offset, end=first), first)
        if self.offset < log.first:
            return None  # the same of a trim
        if self.offset >= visible.end:
            if self._sent:
                self.settle()
            return None
        extent = self.books.extent(log, self.offset)
        known = self._position if (extent.base, extent.generation) == self._segment else None
        files = self.books.files[log.id]
        return Read(
            files,
            extent,
            known,
            self.offset,
            min(self._left, PUSH_BYTES),
            self._left if self._ahead or self._sent else None,
            self._loan,
        )

    def deliver(self, read: Read, found: Chunk | Damage | OSError) -> None:
        """What came of a read. Dropped if the subscription has moved on since, or was lent anew."""
        if self._loan != read.loan or self.offset != read.offset:
            return
        file = path(self.log, read.extent.base, read.extent.generation)
        if isinstance(found, OSError):
            self._unreadable(read, file, found)
        elif isinstance(found, Damage):
            self._damaged(file, found)
        elif not found.data:
            self.settle()  # the next batch is more than what is left
        else:
            records = protocol.Records(self.offset, file, found.position)
            self.outlet.answer(self.id, records, found.data)
            self._segment = read.extent.base, read.extent.generation
            self._position = found.position + len(found.data)
            self._advance(found.next)
            self._left -= len(found.data)
            if self._left <= 0 or found.following > self._left:
                self.settle()

    def _damaged(self, file: str, found: Damage) -> None:
        self._skip(damaged(self._name, file, found), found.end)

    def _unreadable(self, read: Read, file: str, error: OSError) -> None:
        log = self.books.state.logs.get(self.log)
        if log is None or log.first > read.offset:
            return  # deleted or trimmed meanwhile: the next look says so
        if error.errno == errno.ENOENT:
            now = self.books.extent(log, read.offset)
            if (now.base, now.generation) != (read.extent.base, read.extent.generation):
                return  # compacted meanwhile: the next look reads that
            self._damaged(file, Damage(0, read.offset, read.extent.end, "the file is missing"))
            return
        logger.error("%s cannot be read: %s", file, error)
        self.end(StorageFailed(f"{file} cannot be read: {error}"))

    def _skip(self, error: RlogError, following: int) -> None:
        """Tell the reader what it does not get, in its place, and go on behind it."""
        self.outlet.answer(self.id, protocol.Damaged(protocol.error_control(error), following))
        self._segment = (-1, 0)
        self._advance(following)

    def _advance(self, offset: int) -> None:
        self.offset = offset
        self._sent = True
        if self.grant is not None and self.grant.delivered < offset:
            self.grant.delivered = offset

"""Decisions: one function per request. It reads the state, then refuses or adds facts.

A function here runs once, in the order of arrival, against the state as it will be when the frame
under decision is durable. It answers nobody: what it returns makes the answer, and what must wait
for the frame's sync goes to ``desk.effects``. Up to its first fact it may raise any RlogError and
has
then done nothing that lasts. Space is reserved here, before the first fact, so that a full disk is
met by the one request that it concerns and by nothing behind it.
"""

from __future__ import annotations

import contextlib
import errno
import re
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol

import msgspec

from rlog_client import batch as batches
from rlog_client import model, protocol
from rlog_client.errors import (
    AlreadyExists,
    Busy,
    Conflict,
    DiskFull,
    Fenced,
    InvalidRequest,
    NotFound,
    OffsetOutOfRange,
    StorageFailed,
    TooLarge,
)

from . import facts, state
from .log import Handles, LogFiles, Spot
from .policy import Policy, parse_policy
from .segment import Extent, Place, path

if TYPE_CHECKING:
    from rlog_client.protocol import Control

    from .state import State

_LOG_NAME: Final = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")
ROLL_MIN: Final = 4096
ROLL_MAX: Final = 1 << 40
FACT_BYTES_MAX: Final = 1024  # what a request adds to a frame beside a body, at most

Buffer = bytes | bytearray | memoryview


class Grant:
    """A claim as its connection holds it.

    ``delivered``: the offset after the last record sent to it.
    """

    __slots__ = ("delivered", "epoch")

    def __init__(self, epoch: int, delivered: int) -> None:
        self.epoch = epoch
        self.delivered = delivered


class Peer(Protocol):
    """Who asks: a connection, seen from below."""

    name: str
    grants: dict[tuple[int, str], Grant]

    def answer(self, request: int, control: Control, payload: bytes | memoryview = b"") -> None: ...

    def answer_later(self, request: int, look: Look) -> None:
        """Answer with what ``look()`` gives; it reads the disk, so not on the loop."""

    def granted(self, key: tuple[int, str], grant: Grant) -> None:
        """A claim is durable, and this peer's."""

    def lost(self, log: int, consumer: str, epoch: int) -> None:
        """The grant has ended; tell whoever reads under it."""


class Waiting(NamedTuple):
    """A request that waits to be decided.

    ``produced`` and ``body``: of an append, already checked.
    """

    peer: Peer
    request: int
    control: Control
    produced: bytes = b""  # the batch's header as its producer stamped it
    body: Buffer = b""


class Answer(NamedTuple):
    control: Control
    payload: bytes = b""


Look = Callable[[], Answer]
Make = Callable[[bool], Answer | Look]  # of whether the frame is synced


class Layout(NamedTuple):
    """A batch that goes to its segment once its frame is as durable as it is asked to be."""

    place: Place
    header: bytes
    body: Buffer
    end: int  # the offset behind it


class Visible(NamedTuple):
    """Up to where a log is served: offset ``end``, which is ``length`` bytes into segment
    ``base``.
    """

    end: int
    base: int
    length: int


class Books:
    """What a broker keeps in memory beside the state, for one life of the process."""

    def __init__(
        self, recovered: State, handles: Handles, files: dict[int, LogFiles], policy: Policy
    ) -> None:
        self.state = recovered
        self.handles = handles
        self.files = files
        self.policy = policy
        self.failed: str | None = None  # why nothing is written any more
        self.full: str | None = None  # why no append is taken just now,
        self.stuck: str | None = None  # and why nothing that writes is
        self.visible: dict[int, Visible] = {}
        self.synced_end: dict[int, int] = {}
        self.first: dict[int, int] = {}  # where each log begins, as far as that is durable
        self.holders: dict[tuple[int, str], Peer] = {}
        self.raised: set[int] = set()  # logs in which there is more to see; the server empties it
        for log in recovered.logs.values():
            self.begin(log)

    def begin(self, log: state.Log) -> None:
        """A log that is new, or was recovered: all of it is durable."""
        last = log.segments[-1] if log.segments else state.Segment(log.end, 0, 0)
        self.visible[log.id] = Visible(log.end, last.base, last.bytes)
        self.synced_end[log.id] = log.end
        self.first[log.id] = log.first

    def begin_at(self, log: int, first: int) -> None:
        """A trim is durable: readers may be told of it."""
        self.first[log] = first
        self.raised.add(log)

    def policy_of(self, log: state.Log) -> Policy:
        return self.policy if log.options.sync is None else parse_policy(log.options.sync)

    def end_grant(self, key: tuple[int, str]) -> None:
        """Tell a holder that its claim is over, and forget it."""
        peer = self.holders.pop(key, None)
        if peer is not None and (grant := peer.grants.pop(key, None)) is not None:
            peer.lost(*key, grant.epoch)

    def extent(self, log: state.Log, offset: int) -> Extent:
        """The segment that holds ``offset``, as far as it is visible."""
        visible = self.visible[log.id]
        index = log.segment_index(offset)
        segment = log.segments[index]
        if segment.base == visible.base:
            return Extent(log.id, segment.base, visible.end, visible.length)
        return Extent(log.id, segment.base, log.segment_end(index), segment.bytes)


class Desk:
    """One frame while it is decided."""

    def __init__(self, books: Books, now_ns: int) -> None:
        self.books = books
        self.state = books.state
        self.now_ns = now_ns
        self.facts: list[facts.Fact] = []
        self.layouts: list[Layout] = []
        self.effects: list[Callable[[], None]] = []
        self.claimed: dict[tuple[int, str], tuple[Peer, int]] = {}  # in this frame: by whom, epoch
        self.sync = False  # something in it asks to be synced at once
        self.delay_seconds: float | None = None  # what is not may stay unsynced for so long
        self._bytes = 0

    def takes(self, waiting: Waiting, bytes_goal: int) -> bool:
        """One more request fits; a first one always does."""
        size = len(waiting.body) + FACT_BYTES_MAX
        if self._bytes and self._bytes + size > bytes_goal:
            return False
        self._bytes += size
        return True

    def fact(self, fact: facts.Fact, log: state.Log | None = None) -> state.Append | None:
        """A fact is decided: from here on it is in the frame, and nothing may be refused any more.

        ``log``: whose policy it follows; None: it is synced at once.
        """
        policy = None if log is None else self.books.policy_of(log)
        if policy is None or policy.at_once:
            self.sync = True
        elif policy.delay_seconds is not None:
            delay = self.delay_seconds
            self.delay_seconds = min(policy.delay_seconds, delay or policy.delay_seconds)
        self.facts.append(fact)
        return self.state.apply(fact, self.now_ns)

    def writable(self) -> None:
        if self.books.failed is not None:
            raise StorageFailed(self.books.failed)
        if self.books.stuck is not None:
            raise DiskFull(self.books.stuck)

    def log(self, log: int) -> state.Log:
        found = self.state.logs.get(log)
        if found is None:
            raise NotFound(f"there is no log with id {log}: it was deleted")
        return found

    def cursor(self, log: state.Log, consumer: str) -> state.Cursor:
        cursor = log.cursors.get(consumer)
        if cursor is None:
            raise NotFound(f"log {log.name!r} has no consumer {consumer!r}")
        return cursor

    def free_cursor(self, log: state.Log, consumer: str) -> state.Cursor:
        """The cursor, if nobody holds it."""
        cursor = self.cursor(log, consumer)
        check_free(log, consumer, cursor)
        return cursor

    def held_cursor(self, peer: Peer, log: state.Log, consumer: str, epoch: int) -> state.Cursor:
        """The cursor, if this peer holds it under this epoch at this very moment."""
        cursor = self.cursor(log, consumer)
        grant = peer.grants.get((log.id, consumer))
        if grant is None or grant.epoch != cursor.epoch or epoch != cursor.epoch:
            raise Fenced(
                f"consumer {consumer!r} of log {log.name!r} is at epoch {cursor.epoch}, not yours",
                epoch=cursor.epoch,
            )
        return cursor


def check_free(log: state.Log, consumer: str, cursor: state.Cursor) -> None:
    if cursor.holder is not None:
        raise Busy(
            f"consumer {consumer!r} of log {log.name!r} is held by {cursor.holder.name}",
            holder=cursor.holder.name,
            since_ns=cursor.holder.since_ns,
        )


def resolve(log: state.Log, whence: model.Whence, end: int) -> int:
    """The offset that ``whence`` means in a log that ends at ``end``.

    (A time was made an offset on arrival.)
    """
    match whence.kind:
        case "oldest":
            return log.first
        case "latest":
            return end
        case "last":
            return max(log.first, end - max(0, whence.value))
        case "offset":
            if not log.first <= whence.value <= end:
                raise OffsetOutOfRange(
                    f"log {log.name!r} holds the offsets {log.first} to {end}, not {whence.value}",
                    first=log.first,
                    end=end,
                )
            return whence.value
        case _:
            raise InvalidRequest(f"a whence of kind {whence.kind!r} cannot be resolved here")


# --- appends --------------------------------------------------------------------------------


def append(desk: Desk, waiting: Waiting, control: protocol.Append) -> Make:
    desk.writable()
    log = desk.log(control.log)
    if control.expect is not None and control.expect != log.end:
        raise Conflict(f"log {log.name!r} ends at {log.end}, not at {control.expect}", end=log.end)
    if desk.books.full is not None:
        raise DiskFull(desk.books.full)
    size = batches.HEADER_BYTES + len(waiting.body)
    place = log.place(size)
    with _refusing(f"an append of {size} bytes to log {log.name!r}"):
        desk.books.files[log.id].reserve(place, size, log.options.file_roll_size)
    header = batches.stamp(waiting.produced, log.id, log.end, desk.now_ns)
    applied = desk.fact(facts.Appended(header), log)
    assert applied is not None
    assert applied.place == place
    first, end, time_ns = applied.header.base, applied.header.end, desk.now_ns
    desk.layouts.append(Layout(place, header, waiting.body, end))
    return lambda synced: Answer(protocol.Appended(first, end, time_ns, synced))


@contextlib.contextmanager
def _refusing(what: str) -> Iterator[None]:
    """What fails before a fact is decided refuses one request, and nothing more."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DiskFull(f"no space for {what}") from None
        raise StorageFailed(f"no space can be reserved for {what}: {error}") from None


# --- logs -----------------------------------------------------------------------------------


def open_log(desk: Desk, waiting: Waiting, control: protocol.OpenLog) -> Make:
    log = desk.state.by_name(control.name)
    if log is None and control.create:
        log = _create(desk, control)
    elif log is None:
        raise NotFound(f"there is no log {control.name!r}")
    elif control.create:
        _compare(desk.books, log, control.options)
    return _log_reply(desk, log)


def _create(desk: Desk, control: protocol.OpenLog) -> state.Log:
    desk.writable()
    if not _LOG_NAME.fullmatch(control.name):
        raise InvalidRequest(
            "a log's name is 1 to 63 of a-z 0-9 . _ - and begins with a letter or a digit: "
            f"{control.name!r}"
        )
    options = _options(facts.Options(), control.options)
    log_id = desk.state.next_log
    files = LogFiles(desk.books.handles, log_id)
    with _refusing(f"log {control.name!r}"):
        files.make()
    desk.fact(facts.Created(log_id, control.name, options))
    desk.books.files[log_id] = files
    desk.books.begin(desk.state.logs[log_id])
    return desk.state.logs[log_id]


def _options(old: facts.Options, changes: dict[str, Any]) -> facts.Options:
    try:
        options = msgspec.convert({**msgspec.to_builtins(old), **changes}, facts.Options)
    except msgspec.ValidationError as error:
        raise InvalidRequest(f"log options: {error}") from None
    if options.sync is not None:
        parse_policy(options.sync)
    if not ROLL_MIN <= options.file_roll_size <= ROLL_MAX:
        raise InvalidRequest(f"file_roll_size is {ROLL_MIN} to {ROLL_MAX} bytes")
    return options


def _compare(books: Books, log: state.Log, asked: dict[str, Any]) -> None:
    """Opening with ``create`` asks for nothing that the log is not."""
    _options(log.options, asked)
    there = _effective(books, log)
    differences = {
        name: [there[name], value] for name, value in asked.items() if there[name] != value
    }
    if differences:
        text = ", ".join(f"{name} is {old}, not {new}" for name, (old, new) in differences.items())
        raise AlreadyExists(f"log {log.name!r} exists: {text}", differences=differences)


def _effective(books: Books, log: state.Log) -> dict[str, Any]:
    return {"sync": books.policy_of(log).text, "file_roll_size": log.options.file_roll_size}


def _info(books: Books, log: state.Log) -> model.LogInfo:
    return model.LogInfo(
        name=log.name,
        id=log.id,
        first=log.first,
        end=log.end,
        synced_end=books.synced_end[log.id],
        bytes=log.bytes,
        options=_effective(books, log),
    )


def _log_reply(desk: Desk, log: state.Log) -> Make:
    info = _info(desk.books, log)
    return lambda _synced: Answer(protocol.LogReply(info))


def list_logs(desk: Desk, waiting: Waiting, control: protocol.ListLogs) -> Make:
    infos = [_info(desk.books, log) for log in desk.state.logs.values()]
    return lambda _synced: _listing(sorted(infos, key=lambda info: info.name))


def get_log(desk: Desk, waiting: Waiting, control: protocol.GetLog) -> Make:
    return _log_reply(desk, desk.log(control.log))


def alter_log(desk: Desk, waiting: Waiting, control: protocol.AlterLog) -> Make:
    desk.writable()
    log = desk.log(control.log)
    desk.fact(facts.Altered(log.id, _options(log.options, control.options)))
    return _log_reply(desk, log)


def trim_log(desk: Desk, waiting: Waiting, control: protocol.TrimLog) -> Make:
    desk.writable()
    log = desk.log(control.log)
    first = log.trim_to(resolve(log, control.before, log.end))
    gone = [s.base for i, s in enumerate(log.segments) if log.segment_end(i) <= first]
    if gone:
        books, files = desk.books, desk.books.files[log.id]
        desk.fact(facts.Trimmed(log.id, first))
        desk.effects.append(lambda: files.trim(gone))
        desk.effects.append(lambda: books.begin_at(log.id, first))
    end = log.end
    return lambda _synced: Answer(protocol.Place(first, first, end))


def delete_log(desk: Desk, waiting: Waiting, control: protocol.DeleteLog) -> Make:
    desk.writable()
    log = desk.log(control.log)
    books = desk.books
    desk.fact(facts.Deleted(log.id))

    def remove() -> None:
        for key in [key for key in books.holders if key[0] == log.id]:
            books.end_grant(key)
        books.visible.pop(log.id)
        books.synced_end.pop(log.id)
        books.first.pop(log.id)
        books.raised.add(log.id)
        books.files.pop(log.id).delete()

    desk.effects.append(remove)
    return lambda _synced: Answer(protocol.Done())


def list_segments(desk: Desk, waiting: Waiting, control: protocol.ListSegments) -> Make:
    log = desk.log(control.log)
    infos = [
        protocol.SegmentInfo(s.base, s.bytes, s.time_max_ns, path(log.id, s.base))
        for s in log.segments
    ]
    return lambda _synced: _listing(infos)


def _listing(infos: Any) -> Answer:
    payload = msgspec.msgpack.encode(infos)
    if len(payload) > protocol.LISTING_BYTES_MAX:
        text = f"a listing of {len(payload)} bytes, the limit is {protocol.LISTING_BYTES_MAX}"
        error = TooLarge(text, size=len(payload), limit=protocol.LISTING_BYTES_MAX)
        return Answer(protocol.error_control(error))
    return Answer(protocol.Listing(), payload)


# --- consumers ------------------------------------------------------------------------------


def claim(desk: Desk, waiting: Waiting, control: protocol.Claim) -> Make:
    desk.writable()
    log = desk.log(control.log)
    if control.consumer != model.GLOBAL_ID:
        model.check_consumer(control.consumer)
    if not 1 <= len(control.token) <= 64:
        raise InvalidRequest("a claim's token has 1 to 64 bytes")
    cursor = log.cursors.get(control.consumer)
    if cursor is None:
        committed, epoch = resolve(log, control.start, log.end), 1
    else:
        check_free(log, control.consumer, cursor)
        committed, epoch = cursor.committed, cursor.epoch + 1
    peer, key = waiting.peer, (log.id, control.consumer)
    desk.fact(facts.Claimed(*key, epoch, control.token, peer.name, committed))

    def grant() -> None:
        now = log.cursors.get(control.consumer)
        if now is not None and now.holder is not None and now.epoch == epoch:
            desk.books.holders[key] = peer
            peer.granted(key, Grant(epoch, committed))

    desk.claimed[key] = (peer, epoch)
    desk.effects.append(grant)
    return lambda _synced: Answer(protocol.Claimed(epoch, committed))


def commit(desk: Desk, waiting: Waiting, control: protocol.CommitCursor) -> Make:
    desk.writable()
    log = desk.log(control.log)
    cursor = desk.held_cursor(waiting.peer, log, control.consumer, control.epoch)
    if control.offset > waiting.peer.grants[log.id, control.consumer].delivered:
        raise InvalidRequest(f"offset {control.offset} was not delivered to this consumer yet")
    if control.offset > cursor.committed:
        desk.fact(facts.Committed(log.id, control.consumer, control.epoch, control.offset), log)
    return lambda synced: Answer(protocol.Committed(synced))


def release(desk: Desk, waiting: Waiting, control: protocol.Release) -> Make:
    desk.writable()
    key = (control.log, control.consumer)
    # The grant goes now, so that a commit behind this release in the same frame is refused.
    grant = waiting.peer.grants.pop(key, None)
    epoch = grant.epoch if grant is not None else None
    claimed = desk.claimed.get(key)
    if epoch is None and claimed is not None and claimed[0] is waiting.peer:
        epoch = claimed[1]  # claimed in this very frame, and not granted yet
    if desk.books.holders.get(key) is waiting.peer:
        del desk.books.holders[key]
    log = desk.state.logs.get(control.log)  # a log that was deleted took its claims with it
    cursor = log.cursors.get(control.consumer) if log is not None else None
    if cursor is not None and cursor.holder is not None and cursor.epoch == epoch:
        desk.fact(facts.Released(*key, cursor.epoch))
    return lambda _synced: Answer(protocol.Done())


def seek(desk: Desk, waiting: Waiting, control: protocol.SeekCursor) -> Make:
    desk.writable()
    log = desk.log(control.log)
    peer, key = waiting.peer, (log.id, control.consumer)
    by_holder = control.epoch is not None
    if control.epoch is not None:
        cursor = desk.held_cursor(peer, log, control.consumer, control.epoch)
    elif control.force:
        cursor = desk.cursor(log, control.consumer)
    else:
        cursor = desk.free_cursor(log, control.consumer)
    before, epoch = cursor.committed, cursor.epoch + 1
    after = resolve(log, control.whence, log.end)
    desk.fact(facts.Sought(*key, epoch, after, by_holder))
    if by_holder:
        # At once: what was pipelined behind the seek under the old epoch is fenced.
        peer.grants[key] = Grant(epoch, after)
    else:
        desk.effects.append(lambda: desk.books.end_grant(key))
    return lambda _synced: Answer(protocol.Moved(before, after, epoch))


def delete_cursor(desk: Desk, waiting: Waiting, control: protocol.DeleteCursor) -> Make:
    desk.writable()
    log = desk.log(control.log)
    desk.free_cursor(log, control.consumer)
    desk.fact(facts.Forgotten(log.id, control.consumer))
    return lambda _synced: Answer(protocol.Done())


def list_cursors(desk: Desk, waiting: Waiting, control: protocol.ListCursors) -> Make:
    log = desk.log(control.log)
    looks = [_look_at(desk, log, name) for name in sorted(log.cursors)]
    return lambda _synced: lambda: _listing([look() for look in looks])


def get_cursor(desk: Desk, waiting: Waiting, control: protocol.GetCursor) -> Make:
    log = desk.log(control.log)
    desk.cursor(log, control.consumer)
    look = _look_at(desk, log, control.consumer)
    return lambda _synced: lambda: Answer(protocol.CursorReply(look()))


def _look_at(desk: Desk, log: state.Log, name: str) -> Callable[[], model.CursorInfo]:
    """A cursor as it is now; how far it lags in bytes and seconds has to be looked up on the
    disk.
    """
    cursor = log.cursors[name]
    committed, holder, log_name, now_ns = cursor.committed, cursor.holder, log.name, desk.now_ns
    end, start = log.end, max(cursor.committed, log.first)
    books = desk.books
    extent = books.extent(log, start) if start < books.visible[log.id].end else None
    files = books.files[log.id]
    later = sum(s.bytes for s in log.segments if extent is not None and s.base > extent.base)

    def look() -> model.CursorInfo:
        lag_bytes, time_ns = later, now_ns
        if extent is not None and (spot := _find(files, extent, start)) is not None:
            lag_bytes, time_ns = later + extent.length - spot.position, spot.time_ns
        return model.CursorInfo(
            log=log_name,
            id=name,
            committed=committed,
            lag_records=end - committed,
            lag_bytes=lag_bytes,
            lag_seconds=max(0, now_ns - time_ns) / 1e9,
            members=() if holder is None else (model.Member(holder.name, holder.since_ns),),
        )

    return look


def _find(files: LogFiles, extent: Extent, offset: int) -> Spot | None:
    try:
        return files.find(extent, offset)
    except FileNotFoundError:
        return None  # trimmed since


# --- the table ------------------------------------------------------------------------------

_Decide = Callable[[Desk, Waiting, Any], Make]
DECISIONS: Final[dict[type[Control], _Decide]] = {
    protocol.Append: append,
    protocol.OpenLog: open_log,
    protocol.ListLogs: list_logs,
    protocol.GetLog: get_log,
    protocol.AlterLog: alter_log,
    protocol.TrimLog: trim_log,
    protocol.DeleteLog: delete_log,
    protocol.ListSegments: list_segments,
    protocol.Claim: claim,
    protocol.CommitCursor: commit,
    protocol.Release: release,
    protocol.SeekCursor: seek,
    protocol.DeleteCursor: delete_cursor,
    protocol.ListCursors: list_cursors,
    protocol.GetCursor: get_cursor,
}

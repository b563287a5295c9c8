"""A client as the broker sees it, without I/O: requests in, answers and records out.

Pure but for the reads of what the page cache has. What waits is a shell's, and there are two:
``connection`` waits under trio for a socket, and for the disk in threads; ``embedded`` lets a
thread of the same process wait. A shell hands over what it received, calls ``obey_all``, and takes
what is to be sent from the out-buffer.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from functools import partial
from typing import TYPE_CHECKING, Final, NamedTuple, TypeVar

from rlog_client import __version__, model, protocol
from rlog_client.batch import HEADER_BYTES, InvalidBatch, check_body, parse_header
from rlog_client.errors import (
    Fenced,
    InvalidRequest,
    NotFound,
    Overloaded,
    RlogError,
    StorageFailed,
    TooLarge,
    Unsupported,
)
from rlog_client.protocol import Control, Message, ProtocolError, Side

from .decisions import DECISIONS, NOBODY, Answer, Batch, Grant, Leave, Look, Waiting, resolve
from .membership import Membership
from .subscription import Subscription

if TYPE_CHECKING:
    from collections.abc import Callable

    from . import state
    from .driver import Driver
    from .log import Chunk, LogFiles
    from .segment import Damage, Extent

OUT_BYTES_MAX: Final = 2 << 20  # what waits to be sent; beyond it nothing more is read or pushed
WAITING_BYTES_MAX: Final = 16 << 20  # of requests that wait to be answered, per connection
WAITING_MAX: Final = 4096  # requests that wait to be answered, per connection
SUBSCRIPTIONS_MAX: Final = 1024
NAME_BYTES_MAX: Final = 255
LOOK_WEIGHT: Final = 64 * 1024  # what a request that reads the disk counts as, in bytes
_HEADERS_SLACK: Final = 64 * 1024  # what packing adds to a record with many headers, at most
_LISTINGS: Final = (
    protocol.ListLogs,
    protocol.ListCursors,
    protocol.ListSegments,
    protocol.ListParked,
    protocol.ListProducers,
    protocol.ReadParked,
    protocol.GetTable,
)
_Placed = (
    protocol.Resolve | protocol.Subscribe | protocol.Claim | protocol.SeekCursor | protocol.TrimLog
)
_WHENCES: Final = ("whence", "start", "before")  # the fields of requests that name a place

_Found = TypeVar("_Found")


class Upkeep(NamedTuple):
    """A job that may run beside the work, and who is told how it ended."""

    job: Callable[[], bool]
    done: Callable[[bool | OSError], None]


class Hub(ABC):
    """What the peers of one broker share: who has something to send, and who reads which log."""

    def __init__(self, driver: Driver) -> None:
        self.driver = driver
        self.broker = driver.broker
        self._ready: set[Peer] = set()
        self._readers: dict[int, set[Peer]] = {}

    @abstractmethod
    def wake(self, peer: Peer | None = None) -> None:
        """The broker has something to decide; ``peer``: who asked for it."""

    def ready(self, peer: Peer) -> None:
        """The peer has something to send; it is flushed before anybody waits."""
        self._ready.add(peer)

    def flush(self) -> None:
        """Send what has piled up: one send a peer."""
        while self._ready:
            self._ready.pop().flush()

    def subscribe(self, log: int, peer: Peer) -> None:
        """Tell the peer when there is more to see in ``log``."""
        self._readers.setdefault(log, set()).add(peer)

    def unsubscribe(self, log: int, peer: Peer) -> None:
        readers = self._readers.get(log, set())
        readers.discard(peer)
        if not readers:
            self._readers.pop(log, None)

    def show_raised(self) -> None:
        """Show readers what they can see now."""
        raised = self.broker.books.raised
        while raised:
            log = raised.pop()
            for peer in list(self._readers.get(log, ())):
                peer.raised(log)

    def upkeep_due(self) -> Upkeep | None:
        """What keeps the journal small and its next file ready, and looks at the disk for trims; to
        be asked between flights.
        """
        if self.driver.checkpoint_due:
            job = self.driver.begin_checkpoint()
            return None if job is None else Upkeep(job, self.driver.finish_checkpoint)
        if self.driver.spare_wanted:
            return Upkeep(self.driver.journal.prepare, self.driver.prepared)
        if self.driver.reserve_wanted:
            return Upkeep(self.driver.keep_reserve, self.driver.reserve_kept)
        if (look := self.driver.copying()) is not None:
            return Upkeep(look.run, lambda _result: self.driver.copied(look))
        if self.driver.compactor.due():
            return Upkeep(self.driver.compactor.work, self.driver.compacted)
        return None


class Peer(ABC):
    """A client: its requests under way, its claims and subscriptions, and what it is to be sent."""

    def __init__(self, hub: Hub, address: str) -> None:
        self._hub = hub
        self._broker = hub.broker
        self._books = hub.broker.books
        self.address = address
        self.name = address
        self.grants: dict[tuple[int, str], Grant] = {}
        self.waits: set[tuple[int, str]] = set()
        self.closed = False
        self._protocol = protocol.Connection(Side.SERVER)
        self._subscriptions: dict[int, Subscription | Membership] = {}
        self._out: list[bytes | memoryview] = []  # (an empty deque is ten times as large)
        self._out_bytes = 0
        self._submitted: dict[int, int] = {}  # requests not answered yet -> bytes of their appends
        self._submitted_bytes = 0

    # --- what a shell adds --------------------------------------------------------------------

    @abstractmethod
    def flush(self) -> None:
        """Send what can be sent without waiting, and see to it that the rest follows."""

    @abstractmethod
    def _pump(self, subscription: Subscription | Membership) -> None:
        """``_push``, and see to it that what has to wait follows."""

    @abstractmethod
    def _look_up(
        self, request: int, look: Callable[[], _Found], then: Callable[[_Found], None]
    ) -> None:
        """Have ``look`` read the disk where waiting harms nobody, and give what it found, or its
        OSError, to ``_looked``.
        """

    def _eased(self) -> None:
        """There may be room for more requests."""
        return

    # --- obeying ------------------------------------------------------------------------------

    def obey_all(self) -> bool:
        """Obey what is here, or as much of it as may be under way at once.

        Whether any message was whole. Raises ProtocolError.
        """
        any_whole = False
        message: Message | None = None
        while not self.overfull():
            while (message := self._protocol.next_message()) is not None:
                any_whole = True
                if self._protocol.greeted:
                    self._obey(message)
                else:
                    self._greet(message)
                if self.overfull():
                    break
            self.flush()
            if self._broker.waiting or self._broker.sync_wanted:
                self._hub.wake(self)  # which may answer all of it, and so make room for the rest
            if message is None:
                break
        return any_whole

    def overfull(self) -> bool:
        """Requests are not obeyed faster than they are answered, nor than the answers are taken."""
        return (
            self._submitted_bytes > WAITING_BYTES_MAX
            or len(self._submitted) > WAITING_MAX
            or self._out_bytes > OUT_BYTES_MAX
        )

    def _greet(self, message: Message) -> None:
        hello = message.control
        assert isinstance(hello, protocol.Hello)
        if hello.protocol != protocol.PROTOCOL:
            raise ProtocolError(
                "protocol version",
                message.request,
                Unsupported(f"protocol {hello.protocol} is not known here, {protocol.PROTOCOL} is"),
            )
        if hello.name:
            printable = "".join(c if c.isprintable() else "?" for c in hello.name)
            self.name = printable.encode()[:NAME_BYTES_MAX].decode(errors="ignore")
        self._protocol.greeted = True
        self._protocol.payload_bytes_max = self._broker.batch_bytes_max
        welcome = protocol.Welcome(
            protocol=protocol.PROTOCOL,
            server=f"rlog {__version__}",
            record_bytes_max=self._broker.record_bytes_max,
            batch_bytes_max=self._broker.batch_bytes_max,
            push_bytes_max=max(protocol.PUSH_BYTES, self._broker.frame_bytes_max),
        )
        self.answer(message.request, welcome)

    def _obey(self, message: Message) -> None:
        control = message.control
        try:
            if isinstance(control, protocol.Append):
                self._append(message, control)
            elif isinstance(control, protocol.Transact):
                self._transact(message, control)
            elif (whence := _time_in(control)) is not None:
                self._resolve_time(message, whence)
            elif type(control) in DECISIONS or isinstance(control, protocol.WaitSynced):
                self._submit(
                    Waiting(self, message.request, control),
                    protocol.LISTING_BYTES_MAX if isinstance(control, _LISTINGS) else 0,
                )
            elif isinstance(control, protocol.Credit):
                self._credit(message.request, control)
            elif isinstance(control, protocol.Subscribe):
                self._subscribe(message.request, control)
            elif isinstance(control, protocol.Unsubscribe):
                self._unsubscribe(self._subscription(control.subscription))
                self.answer(message.request, protocol.Done())
            elif isinstance(control, protocol.Resolve):
                self.answer(message.request, self._place(control.log, control.whence))
            elif isinstance(control, protocol.Ping):
                self.answer(message.request, protocol.Done())
            else:
                raise Unsupported(f"{type(control).__name__} is not a request here")
        except RlogError as error:
            self.answer(message.request, protocol.error_control(error))

    def _submit(self, waiting: Waiting, weight: int) -> None:
        self._enter(waiting.request, weight)
        self._broker.submit(waiting)

    def _enter(self, request: int, weight: int) -> None:
        """Count a request until it is answered; ``weight``: the bytes it may take until then."""
        if request in self._submitted:
            raise ProtocolError(f"request id {request} is in use")
        self._submitted[request] = weight
        self._submitted_bytes += weight

    def _leave(self, request: int) -> None:
        weight = self._submitted.pop(request, None)
        if weight is not None:
            self._submitted_bytes -= weight
            self._eased()

    def _append(self, message: Message, control: protocol.Append) -> None:
        batch = self._judge(memoryview(message.payload))
        self._submit(Waiting(self, message.request, control, (batch,)), len(batch.body))

    def _transact(self, message: Message, control: protocol.Transact) -> None:
        view, at, batches = memoryview(message.payload), 0, []
        for each in control.appends:
            end = at + max(0, each.bytes)
            batches.append(self._judge(view[at:end]))
            at = end
        if at != len(view):
            raise InvalidRequest(f"batches of {at} bytes in a payload of {len(view)}")
        self._submit(Waiting(self, message.request, control, batches), len(view))

    def _judge(self, view: memoryview) -> Batch:
        """A batch, judged before anything is decided about it, at a cost per batch, not per
        record.
        """
        produced, body = bytes(view[:HEADER_BYTES]), view[HEADER_BYTES:]
        try:
            header = parse_header(produced)
            if header.sparse:
                raise InvalidBatch("a producer's batch has all its records")
            check_body(header, body)
        except InvalidBatch as error:
            raise InvalidRequest(f"not a sound batch: {error}") from None
        limit = self._broker.record_bytes_max
        if header.count == 1 and header.body_bytes > limit + _HEADERS_SLACK:
            raise TooLarge(
                f"a record of about {header.body_bytes} bytes, the limit is {limit}",
                size=header.body_bytes,
                limit=limit,
                index=0,
            )
        return Batch(header, produced, body)

    def _place(self, log_id: int, whence: model.Whence) -> protocol.Place:
        log = self._books.state.logs.get(log_id)
        if log is None or log_id not in self._books.visible:
            raise NotFound(f"there is no log with id {log_id}")
        end = self._books.visible[log_id].end
        return protocol.Place(resolve(log, whence, end), log.first, end)

    def _resolve_time(self, message: Message, whence: model.Whence) -> None:
        """Replace a time by the offset that it means, which takes a look at the disk, and go on."""
        control = message.control
        assert isinstance(control, _Placed), "no other request names a place"
        log, visible = self._books.state.logs.get(control.log), self._books.visible.get(control.log)
        if log is None or visible is None:
            raise NotFound(f"there is no log with id {control.log}")
        self._enter(message.request, LOOK_WEIGHT)
        time_ns = whence.value
        for segment in log.segments:
            if segment.time_max_ns >= time_ns and segment.base < visible.end:
                extent, files = self._books.extent(log, segment.base), self._books.files[log.id]
                look = partial(_find_time, files, extent, time_ns)
                then = partial(self._found_time, message, log, extent)
                self._look_up(message.request, look, then)
                return
        self._resolved(message, log, visible.end)

    def _found_time(
        self, message: Message, log: state.Log, extent: Extent, found: int | OSError
    ) -> None:
        if isinstance(found, int):
            self._resolved(message, log, found)
        elif log.id in self._books.visible and extent.base < log.first:
            self._resolved(message, log, log.first)  # trimmed meanwhile
        elif (
            log.id in self._books.visible
            and self._books.extent(log, extent.base).generation != extent.generation
        ):
            # Compacted meanwhile: its file is another.
            self._leave(message.request)
            self._resolve_time(message, _time_in(message.control) or model.OLDEST)
        else:
            self.answer(message.request, protocol.error_control(StorageFailed(str(found))))

    def _resolved(self, message: Message, log: state.Log, offset: int) -> None:
        place = model.Whence("offset", max(offset, log.first))  # it may have been trimmed meanwhile
        for name in _WHENCES:
            if hasattr(message.control, name):
                setattr(message.control, name, place)
        self._leave(message.request)
        self._obey(message)
        self._hub.wake()

    def _looked(
        self, request: int, found: _Found | OSError, then: Callable[[_Found], None]
    ) -> None:
        """What came of a look at the disk."""
        if isinstance(found, OSError):
            self.answer(request, protocol.error_control(StorageFailed(str(found))))
        elif not self.closed:
            then(found)

    # --- reading ------------------------------------------------------------------------------

    def _subscribe(self, request: int, control: protocol.Subscribe) -> None:
        if len(self._subscriptions) >= SUBSCRIPTIONS_MAX:
            raise Overloaded(f"a connection has at most {SUBSCRIPTIONS_MAX} subscriptions")
        if request in self._subscriptions:
            raise InvalidRequest(f"subscription {request} exists")
        grant = None
        if control.consumer is not None:
            grant = self.grants.get((control.log, control.consumer))
            if grant is None and self._books.failed is not None:
                # What was claimed in the last frame was answered, and did not come into effect.
                raise StorageFailed(self._books.failed)
            if grant is None:
                raise Fenced(f"consumer {control.consumer!r} is not held here", epoch=0)
        log = self._books.state.logs.get(control.log)
        if grant is not None and log is not None and control.whence.kind == "offset":
            # A cursor may stand below what was trimmed: its holder is told of the gap, in order.
            end = self._books.visible[control.log].end
            place = protocol.Place(min(control.whence.value, end), log.first, end)
        else:
            place = self._place(control.log, control.whence)
        assert log is not None
        self._subscriptions[request] = self._reading(request, log, control.consumer, grant, place)
        self._hub.subscribe(log.id, self)
        self.answer(request, place)

    def _reading(
        self,
        request: int,
        log: state.Log,
        consumer: str | None,
        grant: Grant | None,
        place: protocol.Place,
    ) -> Subscription | Membership:
        if consumer is not None and grant is not None and log.shared(consumer) is not None:
            return Membership(self, self._books, request, log, consumer, grant)
        subscription = Subscription(self, self._books, request, log.id, log.name, place.offset)
        subscription.consumer, subscription.grant = consumer, grant
        return subscription

    def _subscription(self, request: int) -> Subscription | Membership:
        subscription = self._subscriptions.get(request)
        if subscription is None:
            raise NotFound(f"there is no subscription {request}")
        return subscription

    def _unsubscribe(self, subscription: Subscription | Membership) -> None:
        if not subscription.ended:
            subscription.end()
        if self._subscriptions.pop(subscription.id, None) is not None and all(
            other.log != subscription.log for other in self._subscriptions.values()
        ):
            self._hub.unsubscribe(subscription.log, self)

    def _credit(self, request: int, control: protocol.Credit) -> None:
        subscription = self._subscription(control.subscription)
        subscription.lend(request, control)
        self._pump(subscription)

    def raised(self, log: int) -> None:
        """There is more to see in a log."""
        for subscription in list(self._subscriptions.values()):
            if subscription.log == log:
                self._pump(subscription)

    def lost(self, log: int, consumer: str, epoch: int) -> None:
        for subscription in list(self._subscriptions.values()):
            if (subscription.log, subscription.consumer) == (log, consumer):
                subscription.lost(epoch)
                self._unsubscribe(subscription)

    def _push(self, subscription: Subscription | Membership, *, wait: bool = False) -> bool:
        """Push records as far as the loan goes.

        False: the out-buffer is full, or the disk would have to be waited for, and ``wait`` forbids
        it.
        """
        while (read := subscription.next_read()) is not None:
            if self._out_bytes >= OUT_BYTES_MAX:
                return False
            try:
                found: Chunk | Damage | OSError | None = read.run(wait=wait)
            except OSError as error:
                found = error
            if found is None:
                return False
            subscription.deliver(read, found)
            # At once: the peer takes this one in while the next is read.
            self.flush()
        if subscription.ended:
            self._unsubscribe(subscription)
        return True

    # --- as the broker's peer -----------------------------------------------------------------

    def answer(self, request: int, control: Control, payload: bytes | memoryview = b"") -> None:
        """Put a message into the out-buffer; the hub flushes it before anybody waits."""
        if self.closed:
            return
        if not isinstance(control, protocol.Queued):
            self._leave(request)
        head = protocol.encode(request, control, len(payload))
        self._out.append(head)
        self._out_bytes += len(head) + len(payload)
        if payload:
            self._out.append(payload)
        self._hub.ready(self)

    def answer_later(self, request: int, look: Look) -> None:
        def then(found: Answer) -> None:
            self.answer(request, found.control, found.payload)

        self._look_up(request, look, then)

    def granted(self, key: tuple[int, str], grant: Grant) -> None:
        self.grants[key] = grant
        if self.closed:
            self._let_go(key)

    def recall(self, log: int, consumer: str) -> None:
        for subscription in self._subscriptions.values():
            if (subscription.log, subscription.consumer) == (log, consumer):
                self.answer(subscription.id, protocol.Recall())

    def standing(self, log: int, consumer: str, paused: str | None) -> None:
        for subscription in self._subscriptions.values():
            if (subscription.log, subscription.consumer) == (log, consumer):
                self.answer(subscription.id, protocol.Standing(paused))

    def _let_go(self, key: tuple[int, str]) -> None:
        self._broker.submit(Waiting(self, 0, Leave(*key)))
        self._hub.wake()

    def ask(self, control: Control) -> None:
        self._broker.submit(Waiting(NOBODY, 0, control))
        self._hub.wake()

    def wake(self) -> None:
        self._hub.wake()

    def close(self) -> None:
        """It is over: its claims end, and nothing more is sent."""
        if self.closed:
            return
        self.closed = True
        for key in {*self.grants, *self.waits}:
            self._let_go(key)
        for subscription in self._subscriptions.values():
            self._hub.unsubscribe(subscription.log, self)
        self._subscriptions.clear()
        self._books.tables.end(self)
        self._out.clear()
        self._out_bytes = 0


def _find_time(files: LogFiles, extent: Extent, time_ns: int) -> int | OSError:
    """The offset, or that the file is not there."""
    try:
        return files.find_time(extent, time_ns)
    except FileNotFoundError as error:
        return error


def _time_in(control: Control) -> model.Whence | None:
    """The time that a request names as a place, if it does."""
    for name in _WHENCES:
        whence = getattr(control, name, None)
        if whence is not None and whence.kind == "time":
            assert isinstance(whence, model.Whence)
            return whence
    return None

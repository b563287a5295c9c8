"""One connection: a socket on one side, the broker on the other.

Plain non-blocking calls under trio's ``wait_readable``: one receive takes many messages, one send
carries all answers of a frame, and an idle connection holds one task and no buffer. What is to be
sent goes out at once where the socket takes it; where it does not, a drain task of the connection
waits, and it alone reads the disk when the page cache has not got the records.
"""

from __future__ import annotations

import logging
import socket
from collections import deque
from functools import partial
from struct import Struct
from typing import TYPE_CHECKING, Final, Protocol

import trio

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

from .decisions import DECISIONS, Grant, Look, Waiting, resolve
from .subscription import Subscription

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from .broker import Broker
    from .log import Chunk
    from .segment import Damage

logger = logging.getLogger("rlog.connection")

RECEIVE_BYTES: Final = 64 * 1024
OUT_BYTES_MAX: Final = 2 << 20  # what waits to be sent; beyond it nothing more is read or pushed
WAITING_BYTES_MAX: Final = 16 << 20  # of appends that wait to be answered, per connection
WAITING_MAX: Final = 4096  # requests that wait to be answered, per connection
SUBSCRIPTIONS_MAX: Final = 1024
NAME_BYTES_MAX: Final = 255
LOOK_WEIGHT: Final = 64 * 1024  # what a request that reads the disk counts as, in bytes
HELLO_SECONDS: Final = 5.0
MESSAGE_SECONDS: Final = 30.0
VANISHED_SECONDS: Final = 15.0
# Of Linux's struct tcp_info: tcpi_retransmits, tcpi_probes, tcpi_last_ack_recv (ms).
_TCP_INFO: Final = Struct("=2xBB52xI")
assert _TCP_INFO.size == 60
_SEND_PIECES: Final = 64
_HEADERS_SLACK: Final = 64 * 1024  # what packing adds to a record with many headers, at most
_LISTINGS: Final = (protocol.ListLogs, protocol.ListCursors, protocol.ListSegments)
_Placed = (
    protocol.Resolve | protocol.Subscribe | protocol.Claim | protocol.SeekCursor | protocol.TrimLog
)
_WHENCES: Final = ("whence", "start", "before")  # the fields of requests that name a place


class Hub(Protocol):
    """What a connection needs of the server around it."""

    broker: Broker

    def wake(self, connection: Connection | None = None) -> None:
        """The broker has something to decide; ``connection``: who asked for it."""

    def ready(self, connection: Connection) -> None:
        """The connection has something to send; it is flushed before the loop goes on."""

    def start(
        self, connection: Connection, task: Callable[..., Awaitable[None]], *args: object
    ) -> None:
        """Run a task of the connection's."""

    def subscribe(self, log: int, connection: Connection) -> None:
        """Tell the connection when there is more to see in ``log``."""

    def unsubscribe(self, log: int, connection: Connection) -> None: ...


class Connection:
    """A client, as the server sees it: reads requests, sends answers, pushes records."""

    def __init__(self, hub: Hub, sock: socket.socket, address: str) -> None:
        self._hub = hub
        self._broker = hub.broker
        self._books = hub.broker.books
        self._socket = sock
        self.address = address
        self.name = address
        self.grants: dict[tuple[int, str], Grant] = {}
        self.closed = False
        self._protocol = protocol.Connection(Side.SERVER)
        self._subscriptions: dict[int, Subscription] = {}
        self._out: deque[bytes | memoryview] = deque()
        self._out_bytes = 0
        self._draining = False
        self._drained: trio.Event | None = None  # set when the drain task has ended
        self._submitted: dict[int, int] = {}  # requests not answered yet -> bytes of their appends
        self._submitted_bytes = 0
        self._eased: trio.Event | None = None  # set when there is room for more requests

    # --- receiving ----------------------------------------------------------------------------

    async def serve(self) -> None:
        """Read and obey until the peer is gone, or misbehaves."""
        reason = "closed by the client"
        try:
            if not await self._serve():
                reason = "too slow: no greeting, or half a message, for too long"
                logger.warning("%s: %s", self.address, reason)
        except ProtocolError as error:
            reason = str(error)
            logger.warning("%s misbehaved: %s", self.address, reason)
            self.answer(error.request, protocol.error_control(error.error))
            self.flush()
        except (OSError, trio.ClosedResourceError) as error:
            reason = str(error)
        logger.debug("%s (%s) ended: %s", self.address, self.name, reason)

    async def _serve(self) -> bool:
        """False: the peer was too slow."""
        deadline = trio.current_time() + HELLO_SECONDS
        while True:
            with trio.CancelScope(deadline=deadline) as scope:
                await self._read(scope)
            if not scope.cancelled_caught:
                return True
            # The loop may have stood still, not the peer: what has arrived since counts.
            if not self._receive() or not self._obey_all() or self._unfinished:
                return False
            deadline = float("inf")

    async def _read(self, scope: trio.CancelScope) -> None:
        while not self.closed:
            # Wait first, even if there may be more: each connection has its turn.
            await trio.lowlevel.wait_readable(self._socket)
            if not self._receive():
                return
            if self._obey_all():
                scope.deadline = float("inf")
            while self._overfull and not self.closed:
                # Requests are not obeyed faster than they are answered, nor than the answers are
                # taken; meanwhile it is us who do not read, and no deadline of the peer's.
                scope.deadline = float("inf")
                self._eased = trio.Event()
                await self._eased.wait()
                self._obey_all()
            if self._unfinished and scope.deadline == float("inf"):
                scope.deadline = trio.current_time() + MESSAGE_SECONDS

    @property
    def _unfinished(self) -> bool:
        return self._protocol.midway or not self._protocol.greeted

    def _receive(self) -> bool:
        """Take what has arrived. False: that was all, the peer has closed."""
        room = self._protocol.room()
        try:
            if room is not None:
                count = self._socket.recv_into(room)
                self._protocol.filled(count)
                return count > 0
            data = self._socket.recv(RECEIVE_BYTES)
        except BlockingIOError:
            return True
        self._protocol.received(data)
        return bool(data)

    def _obey_all(self) -> bool:
        """Obey what is here, or as much of it as may be under way at once.

        Whether any message was whole.
        """
        any_whole = False
        message: Message | None = None
        while not self._overfull:
            while not self._overfull and (message := self._protocol.next_message()) is not None:
                any_whole = True
                if self._protocol.greeted:
                    self._obey(message)
                else:
                    self._greet(message)
            self.flush()
            if self._broker.waiting or self._broker.sync_wanted:
                self._hub.wake(self)  # which may answer all of it, and so make room for the rest
            if message is None:
                break
        return any_whole

    @property
    def _overfull(self) -> bool:
        return (
            self._submitted_bytes > WAITING_BYTES_MAX
            or len(self._submitted) > WAITING_MAX
            or self._out_bytes > OUT_BYTES_MAX
        )

    def _ease(self) -> None:
        if self._eased is not None and not self._overfull:
            self._eased.set()
            self._eased = None

    # --- obeying ------------------------------------------------------------------------------

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
            elif (whence := _time_in(control)) is not None:
                self._enter(message.request, LOOK_WEIGHT)
                self._hub.start(self, self._resolve_time, message, whence)
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
            self._ease()

    def _append(self, message: Message, control: protocol.Append) -> None:
        """Judge a batch before anything is decided about it, at a cost per batch, not per
        record.
        """
        view = memoryview(message.payload)
        produced, body = bytes(view[:HEADER_BYTES]), view[HEADER_BYTES:]
        try:
            header = parse_header(produced)
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
        self._submit(Waiting(self, message.request, control, produced, body), len(body))

    def _place(self, log_id: int, whence: model.Whence) -> protocol.Place:
        log = self._books.state.logs.get(log_id)
        if log is None or log_id not in self._books.visible:
            raise NotFound(f"there is no log with id {log_id}")
        end = self._books.visible[log_id].end
        return protocol.Place(resolve(log, whence, end), log.first, end)

    async def _resolve_time(self, message: Message, whence: model.Whence) -> None:
        """Replace a time by the offset that it means, which takes a look at the disk, and go on."""
        control = message.control
        assert isinstance(control, _Placed), "no other request names a place"
        try:
            offset = await self._offset_of_time(control.log, whence.value)
        except (RlogError, OSError) as error:
            failure = error if isinstance(error, RlogError) else StorageFailed(str(error))
            self.answer(message.request, protocol.error_control(failure))
        else:
            for name in _WHENCES:
                if hasattr(control, name):
                    setattr(control, name, model.Whence("offset", offset))
            self._leave(message.request)
            if not self.closed:
                self._obey(message)
                self._hub.wake()
        self.flush()

    async def _offset_of_time(self, log_id: int, time_ns: int) -> int:
        log, visible = self._books.state.logs.get(log_id), self._books.visible.get(log_id)
        if log is None or visible is None:
            raise NotFound(f"there is no log with id {log_id}")
        for segment in log.segments:
            if segment.time_max_ns >= time_ns and segment.base < visible.end:
                extent, files = self._books.extent(log, segment.base), self._books.files[log_id]
                offset = await trio.to_thread.run_sync(files.find_time, extent, time_ns)
                return max(offset, log.first)  # the log may have been trimmed meanwhile
        return visible.end

    # --- reading ------------------------------------------------------------------------------

    def _subscribe(self, request: int, control: protocol.Subscribe) -> None:
        if len(self._subscriptions) >= SUBSCRIPTIONS_MAX:
            raise Overloaded(f"a connection has at most {SUBSCRIPTIONS_MAX} subscriptions")
        if request in self._subscriptions:
            raise InvalidRequest(f"subscription {request} exists")
        grant = None
        if control.consumer is not None:
            grant = self.grants.get((control.log, control.consumer))
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
        subscription = Subscription(self, self._books, request, log.id, log.name, place.offset)
        subscription.consumer, subscription.grant = control.consumer, grant
        self._subscriptions[request] = subscription
        self._hub.subscribe(log.id, self)
        self.answer(request, place)

    def _subscription(self, request: int) -> Subscription:
        subscription = self._subscriptions.get(request)
        if subscription is None:
            raise NotFound(f"there is no subscription {request}")
        return subscription

    def _unsubscribe(self, subscription: Subscription) -> None:
        if not subscription.ended:
            subscription.end()
        if self._subscriptions.pop(subscription.id, None) is not None and all(
            other.log != subscription.log for other in self._subscriptions.values()
        ):
            self._hub.unsubscribe(subscription.log, self)

    def _credit(self, request: int, control: protocol.Credit) -> None:
        subscription = self._subscription(control.subscription)
        subscription.lend(request, control.bytes)
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

    def _pump(self, subscription: Subscription) -> None:
        """Push what can be pushed without waiting; the rest is the drain task's."""
        if not self._draining and not self._push(subscription):
            self._start_draining()

    def _push(self, subscription: Subscription) -> bool:
        """Push records as far as the loan goes.

        False: the socket or the disk has to be waited for.
        """
        while (read := subscription.next_read()) is not None:
            if self._out_bytes >= OUT_BYTES_MAX:
                return False
            try:
                found: Chunk | Damage | OSError | None = read.run(wait=False)
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

    async def _push_waiting(self, subscription: Subscription) -> None:
        """One push whose records may have to come from the disk."""
        read = subscription.next_read()
        if read is not None:
            try:
                found = await trio.to_thread.run_sync(partial(read.run, wait=True))
            except OSError as error:
                subscription.deliver(read, error)
            else:
                assert found is not None
                subscription.deliver(read, found)

    # --- sending ------------------------------------------------------------------------------

    def answer(self, request: int, control: Control, payload: bytes | memoryview = b"") -> None:
        """Put a message into the out-buffer; the hub flushes it before the loop goes on."""
        if self.closed:
            return
        self._leave(request)
        head = protocol.encode(request, control, len(payload))
        self._out.append(head)
        self._out_bytes += len(head) + len(payload)
        if payload:
            self._out.append(payload)
        self._hub.ready(self)

    def flush(self) -> None:
        """Send what the socket takes; what it does not take becomes the drain task's."""
        if self._draining or not self._out:
            return
        try:
            done = self._send_some()
        except OSError:
            self._out.clear()  # the reader is told of the same end, and closes
            self._out_bytes = 0
            return
        if not done:
            self._start_draining()

    async def sent(self) -> None:
        """Wait until everything is sent, or the connection is closed."""
        self.flush()
        if self._draining:
            self._drained = trio.Event()
            await self._drained.wait()

    def _send_some(self) -> bool:
        """True: everything is sent."""
        out = self._out
        while out:
            pieces = [out[i] for i in range(min(len(out), _SEND_PIECES))]
            try:
                count = (
                    self._socket.sendmsg(pieces) if len(pieces) > 1 else self._socket.send(out[0])
                )
            except BlockingIOError:
                return False
            self._out_bytes -= count
            while count:
                if count >= len(out[0]):
                    count -= len(out.popleft())
                else:
                    out[0] = memoryview(out[0])[count:]
                    count = 0
        return True

    def _start_draining(self) -> None:
        if not self._draining and not self.closed:
            self._draining = True
            self._hub.start(self, self._drain)

    async def _drain(self) -> None:
        """Send and push until there is nothing left that has to wait."""
        try:
            while not self.closed:
                while self._out:
                    await trio.lowlevel.wait_writable(self._socket)
                    self._send_some()
                    self._ease()
                waited = False
                for subscription in list(self._subscriptions.values()):
                    if not self._push(subscription) and self._out_bytes < OUT_BYTES_MAX:
                        await self._push_waiting(subscription)
                        waited = True  # and missed what came for the others
                if not self._out and not waited:
                    return
        except (OSError, trio.ClosedResourceError):
            self.close()
        finally:
            self._draining = False
            self._ease()
            if self._drained is not None:
                self._drained.set()

    async def _look(self, request: int, look: Look) -> None:
        """Answer with what has to be looked up on the disk."""
        try:
            answer = await trio.to_thread.run_sync(look)
        except OSError as error:
            self.answer(request, protocol.error_control(StorageFailed(str(error))))
        else:
            self.answer(request, answer.control, answer.payload)
        self.flush()

    # --- as the broker's peer -----------------------------------------------------------------

    def answer_later(self, request: int, look: Look) -> None:
        self._hub.start(self, self._look, request, look)

    def vanished(self) -> bool:
        """The peer's host has acknowledged nothing for 15 s, though it was sent something again and
        again.

        TCP_USER_TIMEOUT would do this for us, but counts a peer that is there and does not read as
        well: its host answers every probe, with a window of zero.
        """
        if self.closed or self._socket.family == socket.AF_UNIX:
            return False
        info = self._socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO.size)
        retransmits, probes, silent_ms = _TCP_INFO.unpack(info)
        return bool(max(retransmits, probes) >= 2 and silent_ms > VANISHED_SECONDS * 1000)

    def granted(self, key: tuple[int, str], grant: Grant) -> None:
        self.grants[key] = grant
        if self.closed:
            self._release(key)

    def _release(self, key: tuple[int, str]) -> None:
        self._broker.submit(Waiting(self, 0, protocol.Release(*key)))
        self._hub.wake()

    def close(self) -> None:
        """The connection is over: its claims end, and nothing more is sent."""
        if self.closed:
            return
        self.closed = True
        for key in list(self.grants):
            self._release(key)
        for subscription in self._subscriptions.values():
            self._hub.unsubscribe(subscription.log, self)
        self._subscriptions.clear()
        self._out.clear()
        self._out_bytes = 0
        if self._eased is not None:
            self._eased.set()
        trio.lowlevel.notify_closing(self._socket)
        self._socket.close()


def _time_in(control: Control) -> model.Whence | None:
    """The time that a request names as a place, if it does."""
    for name in _WHENCES:
        whence = getattr(control, name, None)
        if whence is not None and whence.kind == "time":
            assert isinstance(whence, model.Whence)
            return whence
    return None

"""One connection of the server: a peer of the broker's behind a socket.

Plain non-blocking calls under trio's ``wait_readable``: one receive takes many messages, one send
carries all answers of a frame, and an idle connection holds one task and no buffer. What is to be
sent goes out at once where the socket takes it; where it does not, a drain task of the connection
waits, and it alone reads the disk when the page cache has not got the records.
"""

from __future__ import annotations

import logging
import socket
from abc import abstractmethod
from functools import partial
from struct import Struct
from typing import TYPE_CHECKING, Final, TypeVar

import trio

from rlog_client import protocol
from rlog_client.protocol import ProtocolError

from .peer import OUT_BYTES_MAX, Hub, Peer

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from .membership import Membership
    from .subscription import Subscription

logger = logging.getLogger("rlog.connection")

RECEIVE_BYTES: Final = 64 * 1024
HELLO_SECONDS: Final = 5.0
MESSAGE_SECONDS: Final = 30.0
VANISHED_SECONDS: Final = 15.0
# Of Linux's struct tcp_info: tcpi_retransmits, tcpi_probes, tcpi_last_ack_recv (ms).
_TCP_INFO: Final = Struct("=2xBB52xI")
assert _TCP_INFO.size == 60
_SEND_PIECES: Final = 64

_Found = TypeVar("_Found")


class TaskHub(Hub):
    """A hub that runs the tasks of its connections."""

    @abstractmethod
    def start(
        self, connection: Connection, task: Callable[..., Awaitable[None]], *args: object
    ) -> None: ...


class Connection(Peer):
    """A client, as the server sees it: reads requests, sends answers, pushes records."""

    def __init__(self, hub: TaskHub, sock: socket.socket, address: str) -> None:
        super().__init__(hub, address)
        self._tasks = hub
        self._socket = sock
        self._draining = False
        self._drained: trio.Event | None = None  # set when the drain task has ended
        self._room: trio.Event | None = None  # set when there is room for more requests

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
            if not self._receive() or not self.obey_all() or self._unfinished:
                return False
            deadline = float("inf")

    async def _read(self, scope: trio.CancelScope) -> None:
        while not self.closed:
            # Wait first, even if there may be more: each connection has its turn.
            await trio.lowlevel.wait_readable(self._socket)
            if not self._receive():
                return
            if self.obey_all():
                scope.deadline = float("inf")
            while self.overfull and not self.closed:
                # Requests are not obeyed faster than they are answered, nor than the answers are
                # taken; meanwhile it is us who do not read, and no deadline of the peer's.
                scope.deadline = float("inf")
                self._room = trio.Event()
                await self._room.wait()
                self.obey_all()
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

    def _eased(self) -> None:
        if self._room is not None and not self.overfull:
            self._room.set()
            self._room = None

    # --- reading the disk ---------------------------------------------------------------------

    def _pump(self, subscription: Subscription | Membership) -> None:
        """Push what can be pushed without waiting; the rest is the drain task's."""
        if not self._draining and not self._push(subscription):
            self._start_draining()

    async def _push_waiting(self, subscription: Subscription | Membership) -> None:
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

    def _look_up(
        self, request: int, look: Callable[[], _Found], then: Callable[[_Found], None]
    ) -> None:
        self._tasks.start(self, self._look_in_thread, request, look, then)

    async def _look_in_thread(
        self, request: int, look: Callable[[], _Found], then: Callable[[_Found], None]
    ) -> None:
        found: _Found | OSError
        try:
            found = await trio.to_thread.run_sync(look)
        except OSError as error:
            found = error
        self._looked(request, found, then)
        self.flush()

    # --- sending ------------------------------------------------------------------------------

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
            self._tasks.start(self, self._drain)

    async def _drain(self) -> None:
        """Send and push until there is nothing left that has to wait."""
        try:
            while not self.closed:
                while self._out:
                    await trio.lowlevel.wait_writable(self._socket)
                    self._send_some()
                    self._eased()
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
            self._eased()
            if self._drained is not None:
                self._drained.set()

    # --- the end ------------------------------------------------------------------------------

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

    def close(self) -> None:
        if self.closed:
            return
        super().close()
        if self._room is not None:
            self._room.set()
        trio.lowlevel.notify_closing(self._socket)
        self._socket.close()

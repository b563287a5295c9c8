"""One connection of the server: a peer of the broker's behind a socket.

Plain non-blocking calls: one receive takes many messages, one send carries all answers of a frame,
and an idle connection holds no task and no buffer. One task reads all of them, by an epoll of its
own: a task switch and a system call to wait anew would be half of what a small request costs. What
is to be sent goes out at once where the socket takes it; where it does not, a drain task of the
connection waits, and it alone reads the disk when the page cache has not got the records.
"""

from __future__ import annotations

import logging
import math
import select
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

    from .driver import Driver
    from .membership import Membership
    from .subscription import Subscription

logger = logging.getLogger("rlog.connection")

RECEIVE_BYTES: Final = 64 * 1024
HELLO_SECONDS: Final = 5.0
MESSAGE_SECONDS: Final = 30.0
LATE_SECONDS: Final = 0.5  # between two looks at who is too slow
VANISHED_SECONDS: Final = 15.0
# Of Linux's struct tcp_info: tcpi_retransmits, tcpi_probes, tcpi_last_ack_recv (ms).
_TCP_INFO: Final = Struct("=2xBB52xI")
assert _TCP_INFO.size == 60
_SEND_PIECES: Final = 64
_READY_MAX: Final = 64  # connections that are read before anybody else has a turn

_Found = TypeVar("_Found")


class TaskHub(Hub):
    """A hub that reads its connections, and runs their tasks."""

    def __init__(self, driver: Driver) -> None:
        super().__init__(driver)
        self.connections: set[Connection] = set()  # that are open
        self._epoll = select.epoll()
        self._read: dict[int, Connection] = {}  # by descriptor: those who are read
        self._late_at: dict[Connection, float] = {}  # when what has begun is to be whole
        self._some_begun = trio.Event()  # set when ``_late_at`` is not empty

    @abstractmethod
    def start(
        self, connection: Connection, task: Callable[..., Awaitable[None]], *args: object
    ) -> None: ...

    @abstractmethod
    def failed(self, connection: Connection, error: Exception) -> None:
        """Something of ours failed in a connection: end that one."""

    def add(self, connection: Connection) -> None:
        """Raises OSError: then it is to be closed."""
        self.connections.add(connection)
        self.read(connection)
        self.await_whole(connection, HELLO_SECONDS)

    def remove(self, connection: Connection) -> None:
        self.ignore(connection)
        self.await_nothing(connection)
        self.connections.discard(connection)

    def end_all(self) -> None:
        """It is over. (``read_all`` has ended.)"""
        for connection in list(self.connections):
            connection.close()
        self._epoll.close()

    def read(self, connection: Connection) -> None:
        """Have ``connection.readable`` called when there is something to receive."""
        descriptor = connection.fileno()
        self._epoll.register(descriptor, select.EPOLLIN)
        self._read[descriptor] = connection

    def ignore(self, connection: Connection) -> None:
        """Read it no more."""
        descriptor = connection.fileno()
        if self._read.get(descriptor) is connection:
            del self._read[descriptor]
            # Not left to the close: a child of this process may have the socket, too.
            self._epoll.unregister(descriptor)

    async def read_all(self) -> None:
        """Read whoever has sent something."""
        while True:
            await trio.lowlevel.wait_readable(self._epoll)
            # Level-triggered, and each has one turn: there may be more.
            for descriptor, _ in self._epoll.poll(0, _READY_MAX):
                connection = self._read.get(descriptor)
                if connection is not None:  # or another one has just ended it
                    self._attend(connection, connection.readable)

    def _attend(self, connection: Connection, act: Callable[[], None]) -> None:
        """What fails in a connection, should it ever, ends that one alone."""
        try:
            act()
        except Exception as error:
            self.failed(connection, error)

    def await_whole(self, connection: Connection, seconds: float) -> None:
        """Something has begun: it is to be whole by then."""
        if connection not in self._late_at:
            self._late_at[connection] = trio.current_time() + seconds
            self._some_begun.set()

    def await_nothing(self, connection: Connection) -> None:
        self._late_at.pop(connection, None)

    def is_late(self, connection: Connection) -> bool:
        """What has begun was to be whole by now."""
        return self._late_at.get(connection, math.inf) <= trio.current_time()

    async def end_the_late(self) -> None:
        """End those who take too long over a greeting, or over a message."""
        while True:
            if not self._late_at:
                self._some_begun = trio.Event()
                await self._some_begun.wait()
            before = trio.current_time()
            await trio.sleep(LATE_SECONDS)
            stood = trio.current_time() - before - LATE_SECONDS
            if stood > LATE_SECONDS:
                # It was this process that stood still, or its machine: that is no time of theirs.
                for connection in self._late_at:
                    self._late_at[connection] += stood
            for connection in list(filter(self.is_late, self._late_at)):
                self._attend(connection, connection.late)


class Connection(Peer):
    """A client, as the server sees it: reads requests, sends answers, pushes records."""

    def __init__(self, hub: TaskHub, sock: socket.socket, address: str) -> None:
        super().__init__(hub, address)
        self._tasks = hub
        self._socket = sock
        self._draining = False
        self._drained: trio.Event | None = None  # set when the drain task has ended
        self._full = False  # nothing is read before there is room for more requests

    def fileno(self) -> int:
        return self._socket.fileno()

    # --- receiving ----------------------------------------------------------------------------

    def readable(self) -> None:
        """Take some of what has arrived, and obey it."""
        try:
            if self._receive():
                self._go_on()
            else:
                self._end("closed by the client")
        except ProtocolError as error:
            self._misbehaved(error)
        except OSError as error:
            self._end(str(error))

    def late(self) -> None:
        """It has taken too long over a greeting, or over a message."""
        self.readable()  # what has arrived, and not had its turn yet
        if self._tasks.is_late(self):
            reason = "too slow: no greeting, or half a message, for too long"
            logger.warning("%s: %s", self.address, reason)
            self._end(reason)

    def _go_on(self) -> None:
        """Obey what is here, and see to it that the rest is read. Raises ProtocolError."""
        if self.obey_all():
            self._tasks.await_nothing(self)
        if self.closed:
            return
        if self.overfull():
            # Requests are not obeyed faster than they are answered, nor than the answers are
            # taken; meanwhile it is us who do not read, and no deadline of the peer's.
            self._full = True
            self._tasks.ignore(self)
            self._tasks.await_nothing(self)
        elif self._unfinished():
            self._tasks.await_whole(self, MESSAGE_SECONDS)

    def _eased(self) -> None:
        if self._full and not self.overfull() and not self.closed:
            self._full = False
            # Not from in here: the broker may be in the middle of a frame.
            self._tasks.start(self, self._read_again)

    async def _read_again(self) -> None:
        if self.closed:
            return
        try:
            self._tasks.read(self)
            self._go_on()
        except ProtocolError as error:
            self._misbehaved(error)

    def _unfinished(self) -> bool:
        return self._protocol.midway or not self._protocol.greeted

    def _misbehaved(self, error: ProtocolError) -> None:
        logger.warning("%s misbehaved: %s", self.address, error)
        self.answer(error.request, protocol.error_control(error.error))
        self.flush()
        self._end(str(error))

    def _end(self, reason: str) -> None:
        logger.debug("%s (%s) ended: %s", self.address, self.name, reason)
        self.close()

    def _receive(self) -> bool:
        """Take some of what has arrived. False: that was all, the peer has closed."""
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
            self._out.clear()  # whoever reads it next is told of the same end, and closes it
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
            try:
                if len(out) == 1:
                    count = self._socket.send(out[0])
                else:
                    count = self._socket.sendmsg(out[:_SEND_PIECES])
            except BlockingIOError:
                return False
            self._out_bytes -= count
            whole = 0
            while whole < len(out) and count >= len(out[whole]):
                count -= len(out[whole])
                whole += 1
            del out[:whole]
            if count:
                out[0] = memoryview(out[0])[count:]
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
        self._tasks.remove(self)
        trio.lowlevel.notify_closing(self._socket)
        self._socket.close()

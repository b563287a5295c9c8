"""The async driver: one connection and its tasks, and any number of tasks that wait for answers.

The tasks live in a task group as long as the client does. One keeps the connection: it reads the
socket, has another one write it, and connects anew when it is lost. One knows what is due at which
moment. One listens to wake-ups from other threads, signal handlers and finalizers. Whoever asks
puts its request into the session and waits; so a caller that is cancelled abandons an answer, and
never tears a message.

The tasks are shielded from what cancels the body of the ``async with``: they end last, when
everything that was opened there has been closed.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import socket
import threading
from itertools import islice
from random import random
from time import monotonic
from typing import TYPE_CHECKING, Any, Final, TypeVar
from weakref import WeakSet

import anyio
from anyio.lowlevel import cancel_shielded_checkpoint, checkpoint

from .errors import ConnectionLost, TimedOut
from .protocol import Control, ProtocolError
from .session import LOAN_BYTES, TRY_SECONDS, AnswerT, Buffer, Call, Session, retry_seconds
from .steps import Await, Wait, asking, until
from .transport import RECEIVE_BYTES, Address, _configure

if TYPE_CHECKING:
    from collections.abc import Callable

    from .steps import Prefetching, Steps, Tended

CLEANING_SECONDS: Final = 10.0  # for what is left to clean up, where timeout is None
_PIECES_MAX: Final = 16  # buffers of one sendmsg
_TURN_SECONDS: Final = 0.001  # that steps may go on before other tasks have their turn

_logger = logging.getLogger("rlog_client")
_Result = TypeVar("_Result")

_open: Final[WeakSet[AsyncTransport]] = WeakSet()


def _after_fork_in_child() -> None:
    # A claim must not outlive the process that made it because a child has its socket too.
    for transport in list(_open):
        transport.forked()


os.register_at_fork(after_in_child=_after_fork_in_child)


class Waiter:
    """A task that waits; ``answer`` and ``error`` are there once ``ended`` is set."""

    __slots__ = ("answer", "deadline", "done", "ended", "error")

    def __init__(self, wait: Wait) -> None:
        self.done = wait.done
        self.deadline = math.inf if wait.deadline is None else wait.deadline
        self.ended = anyio.Event()
        self.answer = False
        self.error: Exception | None = None


class AsyncTransport:
    """A connection to ``address``, made while it is entered. See ``steps.Link``."""

    def __init__(self, address: Address, name: str, timeout: float | None) -> None:
        self.address = address
        self.name = name
        self.timeout = timeout
        self.tended: WeakSet[Tended] = WeakSet()
        self.sources: WeakSet[Prefetching] = WeakSet()
        self.session = Session(name, monotonic)
        self._closed = "this client is not entered yet: it is for async with"
        self._entered = False
        self._thread = 0
        self._waiters: dict[Waiter, None] = {}  # in the order in which they came
        self._posted: list[Callable[[Session], object]] = []
        self._sealing: dict[Callable[[], None], None] = {}  # what is done before the next write
        self._tending = math.inf  # the moment at which something wants to be tended
        self._alarm = math.inf  # the moment for which the clock is set
        self._turn = 0.0  # the last moment at which other tasks could run
        self._greeted = False  # once: from then on a connection that is lost is replaced
        self._away = False  # lost, and not greeted again since
        self._tries = 0  # to connect, that failed in a row

    def clone(self) -> AsyncTransport:
        """Another one to the same server, to be entered."""
        return AsyncTransport(self.address, self.name, self.timeout)

    # --- its life -----------------------------------------------------------------------------

    async def enter(self) -> None:
        """Connect, once. What is entered has to be left, by the same task."""
        if self._entered:
            raise RuntimeError("a client is entered once: use clone() for another one")
        self._entered = True
        self._thread = threading.get_ident()
        deadline = until(self.timeout)
        self._socket = await _connect(self.address, deadline)
        self._waker, self._woken = socket.socketpair()
        for each in (self._waker, self._woken):
            each.setblocking(False)
        self._closed = ""
        _open.add(self)
        self._to_write, self._to_time = anyio.Event(), anyio.Event()
        self._line = anyio.create_task_group()
        self._tasks = anyio.CancelScope(shield=True)
        self._group = anyio.create_task_group()
        await self._group.__aenter__()
        self._group.start_soon(self._run_tasks)
        greeting = self.session.greeting
        try:
            if not await self._wait(Wait(lambda: greeting.done, deadline)):
                raise ConnectionLost(f"no greeting from {self.address} within {self.timeout} s")
            greeting.get()
            self._greeted = True
        except BaseException as error:
            await self.leave(error)
            raise

    async def leave(self, error: BaseException | None) -> None:
        """End the connection: the server ends every claim of it. Waits for no answer.

        ``error``: what the body of the ``async with`` raised.
        """
        self.close()
        # The group is told of cancellation only: whatever else the body raised is no error of the
        # tasks, and comes out as it is, not in a group.
        if isinstance(error, anyio.get_cancelled_exc_class()):
            await self._group.__aexit__(type(error), error, error.__traceback__)
        else:
            await self._group.__aexit__(None, None, None)

    def close(self) -> None:
        """Hang up. A second time does nothing."""
        if not self._closed:
            self._write()
            self._closed = "this client is closed"
            self.session.break_off(self._closed)
            self.ring()
            self._tasks.cancel()

    def forked(self) -> None:
        """In the child of a fork: the connection stays the parent's."""
        if not self._closed:
            self._closed = "this client belongs to the parent process: connect again in the child"
            self.session.break_off(self._closed)
            self._hang_up()
            for source in list(self.sources):
                source.forked()

    @property
    def closed(self) -> bool:
        return bool(self._closed)

    def _hang_up(self) -> None:
        for each in (self._socket, self._waker, self._woken):
            each.close()

    # --- asking -------------------------------------------------------------------------------

    def start(self, call: Call[AnswerT], control: Control, payload: Buffer = b"") -> Call[AnswerT]:
        """Put a request on its way."""
        self.check()
        self._tend()  # what has lingered long enough goes first
        return self.session.start(call, control, payload)

    def request(self, control: Control, expects: type[AnswerT]) -> Call[AnswerT]:
        """``start`` a new call."""
        return self.start(Call(expects), control)

    def post(self, action: Callable[[Session], object]) -> None:
        """For finalizers, which run in any thread at any moment."""
        if not self._closed:
            self._posted.append(action)
            self.wake()

    @property
    def room_ahead(self) -> int:
        return LOAN_BYTES  # it is read by a task beside whoever asks

    def serve(self) -> None:
        """Write and read what can be without waiting."""
        self.check()
        self._tend()
        self._write()
        self._read()
        self.ring()

    def wake(self) -> None:
        """Have all that wait ask their ``done`` again. From any thread, and signal handlers."""
        # A full pipe wakes as well; a closed one, or none yet, has nobody to wake.
        with contextlib.suppress(OSError, AttributeError):
            self._waker.send(b"\0")

    def check(self) -> None:
        """RuntimeError for a use that cannot be right."""
        if self._closed:
            raise RuntimeError(self._closed)
        if self._thread != threading.get_ident():
            raise RuntimeError("a client belongs to one event loop: use clone() for another one")

    def tend_at(self, moment: float) -> None:
        """Look at what is to be tended at ``moment``, whether anybody calls then or not.

        Whoever was tended and still has something to send, says so anew.
        """
        if moment < self._tending:
            self._tending = moment
            self._set_alarm(moment)

    def _tend(self) -> None:
        if self.tended:
            now = monotonic()
            for each in self.tended:
                each.tend(now)

    # --- waiting ------------------------------------------------------------------------------

    async def run(self, steps: Steps[_Result], *, limit: float | None = None) -> _Result:
        """Do ``steps``, and wait for what they wait for: their result.

        What interrupts a wait is raised inside them: they clean up before it comes out of here.
        From then on their waits are shielded from cancellation, and have the client's timeout, all
        together. With ``limit`` they are shielded from the beginning, up to that moment.
        """
        cancelled: BaseException | None = None
        result: _Result
        try:
            await self._give_way(limit)
            asked = next(steps)
            while True:
                try:
                    await self._give_way(limit)
                    if isinstance(asked, Await):
                        answer = await asked.awaitable
                    elif asked.done() or self.session.ended is not None:
                        answer = True
                    else:
                        answer = await self._wait(asked, limit)
                except BaseException as error:
                    if isinstance(error, anyio.get_cancelled_exc_class()):
                        cancelled = error
                        limit = limit or self.limit_after(error)
                    asked = steps.throw(error)
                else:
                    asked = steps.send(answer)
        except StopIteration as ended:
            result = ended.value
        except Exception as error:
            if cancelled is None:
                raise
            _logger.warning("cleaning up after a cancellation failed: %s", error)
        finally:
            # Interrupted between two waits they are abandoned: now, not when the traceback goes.
            steps.close()
        try:
            if cancelled is not None:
                raise cancelled  # whatever became of the steps, a cancelled task ends as one
            return result
        finally:
            del cancelled  # it refers to this frame: claims would be held until it is collected

    async def _give_way(self, limit: float | None) -> None:
        """Steps and handlers that find all they want would leave other tasks no turn."""
        if monotonic() - self._turn > _TURN_SECONDS:
            await (checkpoint() if limit is None else cancel_shielded_checkpoint())
            self._turn = monotonic()

    async def call(self, control: Control, expects: type[AnswerT]) -> AnswerT:
        """Ask, and wait for the answer. Raises its error; after the timeout ``overdue``'s."""
        return await self.run(asking(self, control, expects))

    def limit_after(self, error: BaseException | None) -> float | None:
        """Up to when what has to be cleaned up is waited for, if ``error`` is a cancellation."""
        if isinstance(error, anyio.get_cancelled_exc_class()):
            return monotonic() + (CLEANING_SECONDS if self.timeout is None else self.timeout)
        return None

    def wait_for(self, wait: Wait, limit: float | None = None) -> Waiter:
        """Have a wait be looked after: its ``ended`` is to be waited for."""
        waiter = Waiter(wait)
        if limit is not None:
            waiter.deadline = min(waiter.deadline, limit)
        self._waiters[waiter] = None
        self._set_alarm(waiter.deadline)
        self._to_write.set()
        return waiter

    def before_write(self, action: Callable[[], None]) -> None:
        """Do it just before the next write, once. Tasks that can run now run first."""
        self._sealing[action] = None
        self._to_write.set()

    async def _wait(self, wait: Wait, limit: float | None = None) -> bool:
        """Until ``done()`` or the session's end (True), or the deadline (False).

        ``limit``: wait in the face of cancellation, but not longer; then TimedOut.
        """
        waiter = self.wait_for(wait, limit)
        try:
            if limit is None:
                await waiter.ended.wait()
            else:
                with anyio.CancelScope(shield=True):
                    await waiter.ended.wait()
        finally:
            self._waiters.pop(waiter, None)
            self._turn = monotonic()
        if waiter.error is not None:
            raise waiter.error
        if not waiter.answer and limit is not None and monotonic() >= limit:
            raise TimedOut(f"{self.address} did not answer what was to be cleaned up")
        return waiter.answer

    def ring(self) -> None:
        """End the waits that are over, and have written what came of all this."""
        if self.session.outgoing:
            self._to_write.set()
        ended = self.session.ended is not None
        for waiter in list(self._waiters):
            try:
                waiter.answer = ended or waiter.done()
            except Exception as error:
                waiter.error = error
            if waiter.answer or waiter.error is not None:
                self._end(waiter)

    def _end(self, waiter: Waiter) -> None:
        del self._waiters[waiter]
        waiter.ended.set()

    def _set_alarm(self, moment: float) -> None:
        if moment < self._alarm:
            self._alarm = moment
            self._to_time.set()

    # --- the tasks ----------------------------------------------------------------------------

    async def _run_tasks(self) -> None:
        try:
            with self._tasks:
                async with anyio.create_task_group() as tasks:
                    for each in (self._connected, self._timing, self._listening):
                        tasks.start_soon(each)
        finally:
            self._hang_up()  # now that nobody waits for these sockets

    async def _connected(self) -> None:
        """One connection after the other."""
        session = self.session
        while True:
            async with anyio.create_task_group() as self._line:
                self._line.start_soon(self._writing)
                self._line.start_soon(self._greeting)
                await self._reading()
            self._socket.close()
            self.ring()
            while session.lost is not None:
                if session.ended is not None:
                    return
                await anyio.sleep(retry_seconds(self._tries, random()))
                self._tries += 1
                with contextlib.suppress(ConnectionLost):
                    self._socket = await _connect(self.address, monotonic() + TRY_SECONDS)
                    session.begin()

    async def _greeting(self) -> None:
        """Between the moment a connection is there and the server's word on it."""
        greeting = self.session.greeting
        if not await self._wait(Wait(lambda: greeting.done, monotonic() + TRY_SECONDS)):
            self._lose(f"no greeting within {TRY_SECONDS:.0f} s")
        elif not self.session.greeted:
            self._lose("it refused")
        elif self._away:
            self._away = False
            _logger.info("connected to %s again", self.address)

    async def _reading(self) -> None:
        while self.session.lost is None:
            await anyio.wait_readable(self._socket)
            self._read()
            self.ring()

    async def _writing(self) -> None:
        while self.session.lost is None:
            self._write()
            if self.session.outgoing:
                await anyio.wait_writable(self._socket)
            elif not self._sealing:
                self._to_write = anyio.Event()
                await self._to_write.wait()

    async def _timing(self) -> None:
        while True:
            ends = (waiter.deadline for waiter in self._waiters)
            self._alarm = min(ends, default=math.inf)
            self._alarm = min(self._alarm, self._tending)
            self._to_time = anyio.Event()
            with anyio.move_on_after(self._alarm - monotonic()):
                await self._to_time.wait()
                continue
            now = monotonic()
            if now >= self._tending:
                self._tending = math.inf
                self._tend()
            # What came while this process was held up comes before anybody's deadline.
            self._read()
            self.ring()
            for waiter in [each for each in self._waiters if now >= each.deadline]:
                self._end(waiter)

    async def _listening(self) -> None:
        while True:
            await anyio.wait_readable(self._woken)
            with contextlib.suppress(BlockingIOError):
                self._woken.recv(4096)
            while self._posted:
                self._posted.pop()(self.session)
            self.ring()

    # --- the socket ---------------------------------------------------------------------------

    def _write(self) -> None:
        """Send what the kernel takes."""
        while self._sealing:
            action = next(iter(self._sealing))
            del self._sealing[action]
            action()
        outgoing = self.session.outgoing
        try:
            while outgoing and self.session.lost is None:
                # Never joined: a batch goes from where it was packed into the kernel.
                self._sent(self._socket.sendmsg(list(islice(outgoing, _PIECES_MAX))))
        except BlockingIOError:
            pass
        except OSError as error:
            self._read()  # perhaps the server has said why
            self._lose(str(error))
        except BaseException:
            # Ctrl-C: how much of it was sent is not known.
            outgoing.clear()
            self._lose("interrupted while something was being sent")
            raise

    def _sent(self, count: int) -> None:
        outgoing = self.session.outgoing
        while count:
            piece = outgoing[0]
            if count < len(piece):
                outgoing[0] = memoryview(piece)[count:]
                return
            count -= len(piece)
            outgoing.popleft()

    def _read(self) -> None:
        """Take in what is there."""
        session = self.session
        try:
            full = True
            while full and session.lost is None:
                room = session.room()
                if room is None:
                    data = self._socket.recv(RECEIVE_BYTES)
                    count, full = len(data), len(data) == RECEIVE_BYTES
                    session.received(data)
                else:
                    count = self._socket.recv_into(room)
                    full = count == len(room)
                    session.filled(count)
                if count == 0:
                    self._lose("the server closed it")
        except BlockingIOError:
            pass
        except OSError as error:
            self._lose(str(error))
        except ProtocolError as error:
            session.taken = 0  # it may well do so again
            self._lose(f"the server broke the protocol: {error}")
        except BaseException:
            self._lose("interrupted while an answer was being taken in")
            raise

    def _lose(self, reason: str) -> None:
        session = self.session
        reason = f"lost the connection to {self.address}: {reason}"
        if session.greeted and session.taken > 0:
            self._tries = 0
        if self._greeted:
            session.lose(reason)
        else:
            session.break_off(reason)
        for source in list(self.sources):
            source.disconnected()
        if self._greeted and not self._away and session.ended is None:
            self._away = True
            _logger.warning("%s; it is tried again", session.lost)
        self._line.cancel_scope.cancel()  # the tasks of this connection


async def _connect(address: Address, deadline: float | None) -> socket.socket:
    failed: OSError = TimeoutError("timed out")
    with anyio.move_on_after(math.inf if deadline is None else deadline - monotonic()):
        try:
            for family, where in await _resolve(address):
                try:
                    return await _connect_to(family, where)
                except OSError as error:
                    failed = error
        except OSError as error:
            failed = error
    raise ConnectionLost(f"cannot connect to {address}: {failed}") from failed


async def _resolve(address: Address) -> list[tuple[int, Any]]:
    if address.path is not None:
        return [(socket.AF_UNIX, address.path)]
    found = await anyio.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)
    return [(family, where) for family, _, _, _, where in found]


async def _connect_to(family: int, where: Any) -> socket.socket:
    connecting = socket.socket(family, socket.SOCK_STREAM)
    try:
        connecting.setblocking(False)
        _configure(connecting, family)
        try:
            connecting.connect(where)
        except BlockingIOError:
            if family == socket.AF_UNIX:
                raise  # its backlog is full
            await anyio.wait_writable(connecting)
            if number := connecting.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
                raise OSError(number, os.strerror(number)) from None
        # Where nobody listens, a port of this host's own may have been connected to itself.
        if family != socket.AF_UNIX and connecting.getpeername() == connecting.getsockname():
            raise OSError("it was this socket itself that answered")
    except BaseException:
        connecting.close()
        raise
    return connecting

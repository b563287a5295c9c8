"""The blocking driver: one socket, one thread at a time, and no wait that cannot be ended.

Nothing runs between two calls. Inside a call the connection is read while it is written, so two
full buffers never wait for each other.

An interrupt can strike between any two bytecodes, most likely right after a system call that it
ended. So what a system call did is recorded by the same C call that made it (``_record``), before
an exception can get in, and taken into account at the beginning of the next step: an interrupted
send goes on where it stopped. Should one strike in the few microseconds in which an answer is
being taken in, the connection is given up, since what it carries is no longer known, and the next
one goes on with what had no answer.

A lost connection is replaced inside the same waits, at growing intervals, and they go on: an
attempt to connect is one more thing to poll for. Nothing of it happens between two calls.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import random
import socket
import threading
from abc import ABC, abstractmethod
from itertools import islice
from select import POLLIN, POLLOUT, poll
from time import monotonic
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeVar
from urllib.parse import unquote, urlsplit
from weakref import WeakSet

from .errors import ConnectionLost
from .protocol import DEFAULT_PORT, Control, ProtocolError
from .session import TRY_SECONDS, AnswerT, Buffer, Call, Session, retry_seconds
from .steps import Wait, asking, finishing
from .steps import until as until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from .steps import Prefetching, Steps, Tended

DEFAULT_URL: Final = f"rlog://127.0.0.1:{DEFAULT_PORT}"
RECEIVE_BYTES: Final = 64 * 1024
AHEAD_BYTES: Final = 64 * 1024
TEND_SECONDS: Final = 5e-6  # between two looks at all producers, for each: so looking costs little
_WAIT_SECONDS_MAX: Final = 86_400.0
_PIECES_MAX: Final = 16  # buffers of one sendmsg
# A host that stops acknowledging is found out within 15 s: 5 s of silence, two probes 5 s apart.
_KEEPALIVE: Final = (
    ("TCP_KEEPIDLE", 5),
    ("TCP_KEEPALIVE", 5),  # its name on macOS
    ("TCP_KEEPINTVL", 5),
    ("TCP_KEEPCNT", 2),
    ("TCP_USER_TIMEOUT", 15_000),
)

_logger = logging.getLogger("rlog_client")

_Argument = TypeVar("_Argument")
_Result = TypeVar("_Result")


class Address(NamedTuple):
    """Where a server listens: ``path`` of a Unix socket, or ``host`` and ``port``."""

    host: str
    port: int
    path: str | None = None

    def __str__(self) -> str:
        if self.path is not None:
            return f"rlog+unix://{self.path}"
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"rlog://{host}:{self.port}"


def parse_url(url: str | None = None) -> Address:
    """``rlog://HOST[:PORT]`` or ``rlog+unix:///PATH``; None: $RLOG_ADDR, else the default.

    A bad one is a ValueError that names what is wrong.
    """
    if url is None:
        url = os.environ.get("RLOG_ADDR") or DEFAULT_URL
    if not isinstance(url, str):
        raise TypeError(f"a URL is a str, not {type(url).__name__}")
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise ValueError(f"{url!r}: {error}") from None
    if parts.scheme not in ("rlog", "rlog+unix"):
        raise ValueError(f"{url!r}: begins with rlog:// or rlog+unix://")
    if parts.query or parts.fragment:
        raise ValueError(f"{url!r}: takes no query and no fragment")
    if parts.username is not None or parts.password is not None:
        raise ValueError(f"{url!r}: takes no user and no password")
    if parts.scheme == "rlog+unix":
        path = unquote(parts.path)
        if parts.netloc or not path.startswith("/") or path == "/":
            raise ValueError(f"{url!r}: a Unix socket is rlog+unix:///PATH, with three slashes")
        return Address("", 0, path)
    if not host:
        raise ValueError(f"{url!r}: names no host")
    if parts.path not in ("", "/"):
        raise ValueError(f"{url!r}: takes no path, but has {parts.path!r}")
    if port == 0:
        raise ValueError(f"{url!r}: port 0 is no port to connect to")
    return Address(host, DEFAULT_PORT if port is None else port)


_open: Final[WeakSet[Transport]] = WeakSet()


def _after_fork_in_child() -> None:
    # A claim must not outlive the process that made it because a child has its socket too.
    for transport in list(_open):
        transport.forked()


os.register_at_fork(after_in_child=_after_fork_in_child)


class Transport(ABC):
    """A greeted connection. ``timeout``: seconds for connecting, and for each request.

    What is behind it is the subclass's affair: a socket here, a broker in this process elsewhere.
    """

    def __init__(self, address: object, name: str, timeout: float | None) -> None:
        """``address``: of what it talks to, as texts name it."""
        self.address = address
        self.name = name
        self.timeout = timeout
        self.tended: WeakSet[Tended] = WeakSet()
        self.sources: WeakSet[Prefetching] = WeakSet()
        self._tend_at = 0.0  # they are not looked at again before then
        self.session = Session(name, monotonic)
        self._greeted_before = False  # from then on a lost connection is replaced
        self._closed = ""
        self._inside = threading.Lock()
        self._thread = threading.get_ident()  # that used it last
        self._posted: list[Callable[[Session], object]] = []

    # --- what a subclass adds -----------------------------------------------------------------

    @abstractmethod
    def clone(self) -> Transport:
        """Another connection to the same server."""

    @abstractmethod
    def _write(self) -> None:
        """Put on its way what the session has to send, as far as that needs no wait."""

    @abstractmethod
    def _look(self, seconds: float | None) -> bool:
        """Wait for something to come or a wake-up, and take it in. False: nothing came."""

    @abstractmethod
    def wake(self) -> None:
        """Have the wait under way, or the next one, ask its ``done`` again. From any thread."""

    @property
    @abstractmethod
    def room_ahead(self) -> int:
        """Bytes that may come while nobody waits for them."""

    @abstractmethod
    def _hang_up(self) -> None:
        """Let go of what is behind it; perhaps in the child of a fork."""

    def _greet(self, deadline: float | None) -> None:
        _open.add(self)
        greeting = self.session.greeting
        try:
            if not self.wait(lambda: greeting.done, deadline):
                raise ConnectionLost(f"no greeting from {self.address} within {self.timeout} s")
            greeting.get()
            self._greeted_before = True
        except BaseException:
            self.close()
            raise

    # --- asking -------------------------------------------------------------------------------

    def start(self, call: Call[AnswerT], control: Control, payload: Buffer = b"") -> Call[AnswerT]:
        """Put a request on its way, without waiting. It leaves with the next wait or ``serve``."""
        with self._entered():
            self._tend()  # what has lingered long enough goes first
            return self.session.start(call, control, payload)

    def request(self, control: Control, expects: type[AnswerT]) -> Call[AnswerT]:
        return self.start(Call(expects), control)

    def call(self, control: Control, expects: type[AnswerT]) -> AnswerT:
        """Ask, and wait for the answer. Raises its error; after the timeout as ``finish``."""
        return self.run(asking(self, control, expects))

    def finish(self, call: Call[AnswerT]) -> AnswerT:
        """The answer. After the client's timeout OutcomeUnknown, of what was sent and may have been
        done; else ConnectionLost, or TimedOut when the server is there and silent.
        """
        return self.run(finishing(self, call))

    def post(self, action: Callable[[Session], object]) -> None:
        """For finalizers, which run in any thread at any moment: done now if this is the client's
        thread and not inside a call, else by the next call. Never waits.
        """
        if self._closed:
            return
        self._posted.append(action)
        if self._thread == threading.get_ident() and self._inside.acquire(blocking=False):
            try:
                self._tend()
                self._write()
            except ValueError:
                pass  # collected together with its sockets: those are closed already
            finally:
                self._inside.release()

    # --- waiting ------------------------------------------------------------------------------

    def run(self, steps: Steps[_Result]) -> _Result:
        """Do ``steps``, and wait for what they wait for: their result.

        What interrupts a wait is raised inside them: they clean up before it comes out of here.
        """
        try:
            asked = next(steps)
            while True:
                assert isinstance(asked, Wait), "nothing blocking returns an awaitable"
                try:
                    answer = self.wait(asked.done, asked.deadline)
                except BaseException as error:
                    asked = steps.throw(error)
                else:
                    asked = steps.send(answer)
        except StopIteration as ended:
            result: _Result = ended.value
            return result
        finally:
            # Interrupted between two waits they are abandoned: now, not when the traceback goes.
            steps.close()

    def wait(self, done: Callable[[], bool], deadline: float | None = None) -> bool:
        """Serve the connection until ``done()`` (True), or until ``deadline`` has passed (False).

        The end of the session ends it too: by then whatever was in flight has failed.
        """
        session = self.session
        with self._entered():
            self._tend()
            while not done() and session.ended is None:
                self._write()
                left = None if deadline is None else max(0.0, deadline - monotonic())
                if not self._look(left) and left == 0.0:
                    return done()
            if session.ended is not None:
                session.break_off("")  # all of it, should an interrupt have stopped it
        return True

    def serve(self) -> None:
        """Write and read what can be without waiting."""
        with self._entered():
            self._tend()
            self._write()
            self._look(0.0)

    @property
    def closed(self) -> bool:
        """Closed, or left behind in the child of a fork."""
        return bool(self._closed)

    def check(self) -> None:
        """RuntimeError for a use that cannot be right."""
        if self._closed:
            raise RuntimeError(self._closed)
        if self._inside.locked():
            raise RuntimeError("a client is for one thread at a time: use clone() for another one")

    def _entered(self) -> threading.Lock:
        # `with` on the lock itself is one bytecode, where an acquire() before a `try` could be
        # interrupted and leave it locked. Two threads that both find it unlocked queue up once.
        self.check()
        return self._inside

    def _tend(self) -> None:
        self._thread = threading.get_ident()
        while self._posted:
            self._posted.pop()(self.session)
        if self.tended and (now := monotonic()) >= self._tend_at:
            for each in self.tended:
                each.tend(now)
            self._tend_at = now + len(self.tended) * TEND_SECONDS

    def close(self) -> None:
        """End the connection: the server ends every claim of it. Waits for no answer."""
        if not self._closed:
            with self._inside if not self._inside.locked() else contextlib.nullcontext():
                if self.session.lost is None and self.session.outgoing:
                    with contextlib.suppress(OSError):
                        self._write()
            self._shut("this client is closed")

    def forked(self) -> None:
        """In the child of a fork: the connection stays the parent's."""
        if not self._closed:
            self._shut("this client belongs to the parent process: connect again in the child")
            for source in list(self.sources):
                source.forked()

    def _shut(self, reason: str) -> None:
        self._closed = reason
        self.session.break_off(reason)
        self._hang_up()

    def _lose(self, reason: str) -> None:
        self.session.break_off(f"lost the connection to {self.address}: {reason}")


class SocketTransport(Transport):
    """Over TCP or a Unix socket, and over another one when that is lost."""

    def __init__(self, address: Address, name: str, timeout: float | None) -> None:
        super().__init__(address, name, timeout)
        self._where = address
        # What system calls did and nobody has taken in yet: bytes sent, filled, received.
        self._sent: list[int] = []
        self._filled: list[int] = []
        self._received: list[bytes] = []
        self._away = False  # lost, and not greeted again since
        self._tries = 0  # that failed in a row
        self._try_at = 0.0  # when the next one begins
        self._give_up_at = 0.0  # when the one under way has taken too long
        self._connecting = False
        self._candidates: list[tuple[int, Any]] = []  # what the name resolved to, not tried yet
        deadline = until(timeout)
        self._socket = _connect(address, deadline)
        self._waker, self._woken = socket.socketpair()
        for each in (self._socket, self._waker, self._woken):
            each.setblocking(False)
        self._poll = poll()
        self._mask = 0  # what the socket is watched for
        self._poll.register(self._woken, POLLIN)
        self._greet(deadline)

    def clone(self) -> SocketTransport:
        return SocketTransport(self._where, self.name, self.timeout)

    def wake(self) -> None:
        """Have the wait under way, or the next one, ask its ``done`` again. From any thread."""
        # A full pipe wakes as well; a closed one has nobody to wake.
        with contextlib.suppress(OSError):
            self._waker.send(b"\0")

    @property
    def room_ahead(self) -> int:
        # As much as the kernel takes by itself: a peer that is busy for long is to be told from one
        # that is gone, by what its host acknowledges.
        buffer = self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF)
        return max(AHEAD_BYTES, buffer // 4)

    def _hang_up(self) -> None:
        for each in (self._socket, self._waker, self._woken):
            each.close()

    # --- coming back --------------------------------------------------------------------------

    def _lose(self, reason: str) -> None:
        """The connection is lost. Interrupted, it is done again."""
        session = self.session
        useful = session.greeted and session.taken > 0
        if session.lost is None:
            self._tries = 0 if useful else self._tries
            self._try_later()
        self._disconnect()
        if self._sent:
            session.outgoing.clear()  # nobody knows what of it has left
        self._sent.clear()
        self._received.clear()
        self._filled.clear()
        if not self._greeted_before:
            session.break_off(f"lost the connection to {self.address}: {reason}")
            return
        session.lose(f"lost the connection to {self.address}: {reason}")
        for source in list(self.sources):
            source.disconnected()
        if not self._away and session.ended is None:
            self._away = True
            _logger.warning("%s; it is tried again", session.lost)

    def _try_later(self) -> None:
        self._try_at = monotonic() + retry_seconds(self._tries, random.random())
        self._tries += 1

    def _disconnect(self) -> None:
        # Another poll object: the number of a closed socket may soon be that of another file.
        fresh = poll()
        fresh.register(self._woken, POLLIN)
        self._poll, self._mask, self._connecting = fresh, 0, False
        self._socket.close()

    def _come_back(self, seconds: float | None) -> bool:
        """One step towards another connection, or a wait for it. False: nothing came of it."""
        left = (self._give_up_at if self._connecting else self._try_at) - monotonic()
        if left > 0:
            events = self._polled(left if seconds is None else min(seconds, left))
            if self._connecting and self._socket.fileno() in events:
                self._finish_connecting()
            return bool(events)
        if self._connecting:
            self._fail(f"no answer within {TRY_SECONDS} s")
        else:
            self._try()
        return True

    def _try(self) -> None:
        self._disconnect()  # from what an interrupt may have left
        try:
            if not self._candidates:
                self._candidates.extend(_resolve(self._where))
            family, where = self._candidates.pop(0)
            self._socket = socket.socket(family, socket.SOCK_STREAM)
            self._socket.setblocking(False)
            _configure(self._socket, family)
            self._give_up_at = monotonic() + TRY_SECONDS
            self._poll.register(self._socket, POLLOUT)
            self._connecting = True
            # Should an interrupt take the result away, the socket is asked for it.
            code = self._socket.connect_ex(where)
        except OSError as error:
            self._fail(str(error))
        else:
            if code not in (0, errno.EINPROGRESS):
                self._fail(os.strerror(code))

    def _finish_connecting(self) -> None:
        try:
            if code := self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
                raise OSError(code, os.strerror(code))
            # Where nobody listens, a port of this host's own may have been connected to itself.
            itself = self._socket.getpeername() == self._socket.getsockname()
        except OSError as error:
            self._fail(str(error))
        else:
            if itself and self._where.path is None:
                self._fail("it was this socket itself that answered")
            else:
                self.session.begin()
                self._connecting = False

    def _fail(self, reason: str) -> None:
        """An attempt failed: the name's next address, or all of them later."""
        _logger.debug("connecting to %s: %s", self.address, reason)
        self._disconnect()
        if not self._candidates:
            self._try_later()

    def _look_at_greeting(self) -> None:
        """Between the moment a connection is there and the server's word on it."""
        if self.session.greeted:
            self._candidates.clear()
            self._away = False
            _logger.info("connected to %s again", self.address)
        elif self.session.greeting.done:
            self._lose("it refused")
        elif monotonic() >= self._give_up_at:
            self._lose(f"no greeting within {TRY_SECONDS} s")

    def _polled(self, seconds: float | None) -> dict[int, int]:
        """What is ready, after ``seconds`` at most: descriptor -> events."""
        # Interrupted, poll() runs the signal handlers: the exception of Ctrl-C comes out of here.
        ready = dict(self._poll.poll(_milliseconds(seconds)))
        if self._woken.fileno() in ready:
            with contextlib.suppress(BlockingIOError):
                self._woken.recv(4096)
        return ready

    # --- the connection that is there ---------------------------------------------------------

    def _look(self, seconds: float | None) -> bool:
        if self.session.lost is not None:
            return self._come_back(seconds)
        if self._received or self._filled:
            # Interrupted just behind a receive: poll() knows nothing of what is already here.
            self._take_in()
            return True
        mask = POLLIN | POLLOUT if self.session.outgoing else POLLIN
        if mask != self._mask:
            if self._socket.fileno() < 0:
                self._lose("interrupted while it was being given up")
                return True
            self._mask = 0  # should an interrupt come in between, it is registered again
            self._poll.register(self._socket, mask)
            self._mask = mask
        if self._away:
            left = max(0.0, self._give_up_at - monotonic())
            seconds = left if seconds is None else min(seconds, left)
        # Interrupted, poll() runs the signal handlers: the exception of Ctrl-C comes out of here.
        ready = self._poll.poll(_milliseconds(seconds))
        for descriptor, event in ready:
            if descriptor == self._woken.fileno():
                with contextlib.suppress(BlockingIOError):
                    self._woken.recv(4096)
            elif event != POLLOUT:
                self._read()
        if self._away and self.session.lost is None:
            self._look_at_greeting()
        return bool(ready)

    def _write(self) -> None:
        outgoing = self.session.outgoing
        try:
            self._account()
            while outgoing:
                # Never joined: a batch goes from where it was packed into the kernel.
                pieces = list(islice(outgoing, _PIECES_MAX))
                _record(self._sent, self._socket.sendmsg, pieces)
                self._account()
        except BlockingIOError:
            pass
        except OSError as error:
            self._read()  # perhaps the server has said why
            self._lose(str(error))

    def _account(self) -> None:
        """Take what was sent off the front of what is to be sent."""
        outgoing = self.session.outgoing
        try:
            for count in self._sent:
                while count:
                    piece = outgoing[0]
                    if count < len(piece):
                        outgoing[0] = memoryview(piece)[count:]
                        break
                    count -= len(piece)
                    outgoing.popleft()
            self._sent.clear()
        except BaseException:
            self._lose("interrupted while what was sent was being noted")
            raise

    def _read(self) -> None:
        try:
            self._take_in()
            while self.session.lost is None:
                room = self.session.room()
                if room is None:
                    _record(self._received, self._socket.recv, RECEIVE_BYTES)
                    full = len(self._received[0]) == RECEIVE_BYTES
                else:
                    _record(self._filled, self._socket.recv_into, room)
                    full = self._filled[0] == len(room)
                self._take_in()
                if not full:
                    return  # the socket is empty: poll() knows better when there is more
        except BlockingIOError:
            pass
        except OSError as error:
            self._lose(str(error))

    def _take_in(self) -> None:
        """Hand what was received to the session: all of it, or the connection is given up."""
        try:
            for data in self._received:
                if data:
                    self.session.received(data)
                else:
                    self._lose("the server closed it")
            self._received.clear()
            for count in self._filled:
                if count:
                    self.session.filled(count)
                else:
                    self._lose("the server closed it")
            self._filled.clear()
        except ProtocolError as error:
            self.session.taken = 0  # it may well do so again
            self._lose(f"the server broke the protocol: {error}")
        except BaseException:
            self._lose("interrupted while an answer was being taken in")
            raise


def _record(
    results: list[_Result], call: Callable[[_Argument], _Result], argument: _Argument
) -> None:
    """Append ``call(argument)`` to ``results``, all in C: no exception comes between the two."""
    results.extend(map(call, (argument,)))


def _milliseconds(seconds: float | None) -> float | None:
    """For poll(), which takes no more than fits its int: whoever waits longer asks again."""
    return None if seconds is None else min(seconds, _WAIT_SECONDS_MAX) * 1000


def _connect(address: Address, deadline: float | None) -> socket.socket:
    error: OSError | None = None
    try:
        for family, where in _resolve(address):
            left = None if deadline is None else deadline - monotonic()
            if left is not None and left <= 0:
                raise TimeoutError("timed out")
            connecting = socket.socket(family, socket.SOCK_STREAM)
            try:
                connecting.settimeout(None if left is None else min(left, _WAIT_SECONDS_MAX))
                _configure(connecting, family)
                connecting.connect(where)
            except OSError as failed:
                error = failed
                connecting.close()
            except BaseException:
                connecting.close()
                raise
            else:
                return connecting
    except OSError as failed:
        error = failed
    raise ConnectionLost(f"cannot connect to {address}: {error}") from error


def _resolve(address: Address) -> Iterable[tuple[int, Any]]:
    if address.path is not None:
        return [(socket.AF_UNIX, address.path)]
    found = socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)
    return [(family, where) for family, _, _, _, where in found]


def _configure(connecting: socket.socket, family: int) -> None:
    if family == socket.AF_UNIX:
        return
    connecting.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connecting.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in _KEEPALIVE:
        if (number := getattr(socket, option, None)) is not None:
            connecting.setsockopt(socket.IPPROTO_TCP, number, value)

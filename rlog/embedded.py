"""A data directory without a server: the broker and its driver in this process, and no task.

Nothing runs between two calls. The threads whose clients share a directory take turns under one
lock: each hands over what its client asks, drives what waits, takes what is there for it, and
sleeps until somebody rings. Only one drives at a time; while it waits for the disk the lock is
free, and what others bring meanwhile goes into the next frame. What is due at a moment is done by
whoever sleeps, or calls next.

An interrupt in the middle of a turn would leave the broker in pieces, so signal handlers run behind
a turn, never in it. Should something else break a turn off, the directory is given up as in a
crash: everything acknowledged is safe, every client has lost its connection, and whoever opens it
anew recovers it.
"""

from __future__ import annotations

import contextlib
import logging
import os
import resource
import signal
import threading
import time
from collections import deque
from functools import partial
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Final, Protocol, TypeVar

from rlog_client.client import Client, check_timeout, default_name
from rlog_client.protocol import ProtocolError
from rlog_client.transport import Transport, until

from .driver import Driver, Limits, attempt, open_driver
from .files import PAGE, Disk, Lock, this_boot
from .files import Locked as Locked
from .journal import Refused as Refused
from .peer import Hub, Peer
from .policy import parse_policy

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import FrameType

    from rlog_client.session import Session

    from .membership import Membership
    from .subscription import Subscription

logger = logging.getLogger("rlog.embedded")

JOURNAL_FILE_BYTES: Final = 16 << 20
JOURNAL_FILE_MIN: Final = 64 * 1024
JOURNAL_FILE_MAX: Final = 1 << 30
FOREVER: Final = float("inf")
AWAKE: Final = float("-inf")
GLANCE_SECONDS: Final = 1.0  # a sleeper looks so often what is due while another thread drives
SLEEP_SECONDS_MAX: Final = 3600.0  # in one go: queues refuse what is too long
FLIGHTS_MAX: Final = 4  # that a thread drives in one turn, if another can go on
# The usual ones whose handlers may raise.
_HELD_BACK: Final = (signal.SIGALRM, signal.SIGHUP, signal.SIGTERM, signal.SIGINT)

_Result = TypeVar("_Result")
Buffer = bytes | bytearray | memoryview


def open(
    directory: str | os.PathLike[str],
    *,
    timeout: float | None = 10.0,
    name: str = "",
    sync: str = "always",
    journal_file_size: int = JOURNAL_FILE_BYTES,
) -> Client:
    """A client of the logs in ``directory``, without a server. It is made if it is not there.

    ``timeout`` and ``name``: as of ``connect``. ``sync``: the policy of logs without one of their
    own. ``journal_file_size``: in bytes; counts only when the directory is made. ``clone()`` gives
    clients for other threads. The last one that is closed leaves the directory to others.

    Locked: a server, or somebody else here, has it. Refused: it is damaged, and was not touched.
    """
    check_timeout(timeout)
    if not JOURNAL_FILE_MIN <= journal_file_size <= JOURNAL_FILE_MAX or journal_file_size % PAGE:
        raise ValueError(
            f"journal_file_size is a multiple of {PAGE} from {JOURNAL_FILE_MIN} to "
            f"{JOURNAL_FILE_MAX} bytes, not {journal_file_size}"
        )
    files_max, _hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    limits = Limits(parse_policy(sync), journal_file_size)
    limits = limits._replace(files_max=min(files_max, limits.files_max))
    engine = Engine(os.fspath(directory), limits)
    try:
        return Client(EmbeddedTransport(engine, name or default_name(), timeout))
    except BaseException:
        engine.give_up("it could not be opened")
        raise


class EmbeddedPeer(Peer):
    """A client of this process, as the broker sees it. ``asleep_until``: AWAKE when it is not."""

    def __init__(self, hub: Hub, address: str) -> None:
        super().__init__(hub, address)
        self.asleep_until = AWAKE
        self._bell: SimpleQueue[None] = SimpleQueue()
        self._full = False  # pushing ended at a full out-buffer

    # --- its client's thread ------------------------------------------------------------------

    def sleep(self, seconds: float) -> None:
        """At most, until somebody rings. The handlers of signals run here, and may end it."""
        with contextlib.suppress(Empty):
            self._bell.get(timeout=min(max(0.0, seconds), SLEEP_SECONDS_MAX))

    def room(self) -> memoryview | None:
        return self._protocol.room()

    def filled(self, count: int) -> None:
        self._protocol.filled(count)
        self.obey_all()

    def received(self, data: bytes) -> None:
        self._protocol.received(data)
        self.obey_all()

    def collect(self) -> list[bytes | memoryview]:
        """What there is for the client."""
        pieces = list(self._out)
        self._out.clear()
        self._out_bytes = 0
        if self._full:
            self._full = False
            for subscription in list(self._subscriptions.values()):
                self._pump(subscription)
        return pieces

    # --- any thread ---------------------------------------------------------------------------

    @property
    def unanswered(self) -> bool:
        """It has asked for something that is not answered yet."""
        return bool(self._submitted)

    @property
    def has_some(self) -> bool:
        """There is something for the client."""
        return bool(self._out)

    def ring(self) -> None:
        # A full bell rings as well. From signal handlers, too: none of this takes a lock twice.
        if self._bell.empty():
            self._bell.put(None)

    def flush(self) -> None:
        if self._out and self.asleep_until != AWAKE:
            self.ring()

    def _pump(self, subscription: Subscription | Membership) -> None:
        if not self._push(subscription, wait=True):
            self._full = True

    def _look_up(
        self, request: int, look: Callable[[], _Result], then: Callable[[_Result], None]
    ) -> None:
        found: _Result | OSError
        try:
            found = look()
        except OSError as error:
            found = error
        self._looked(request, found, then)


class Engine(Hub):
    """A directory that is open here. ``dead``: why nothing is to be done with it any more."""

    def __init__(self, directory: str, limits: Limits) -> None:
        self.directory = directory
        self.dead = ""
        self._files_lock = Lock(directory)
        try:
            super().__init__(_open(directory, limits))
        except BaseException:
            self._files_lock.release()
            raise
        self._lock = threading.Lock()
        self._holder = 0  # the thread that has the lock
        self._peers: set[EmbeddedPeer] = set()
        self._gone: deque[EmbeddedPeer] = deque()  # whose clients were collected as garbage
        self._errands: deque[Callable[[], None]] = deque()
        self._driving = False
        self._apart_count = 0  # threads that wait for the disk

    # --- clients come and go ------------------------------------------------------------------

    def join(self) -> EmbeddedPeer:
        with self._lock:
            if self.dead:
                raise RuntimeError(f"{self.directory}: {self.dead}")
            peer = EmbeddedPeer(self, self.directory)
            self._peers.add(peer)
        return peer

    def leave(self, peer: EmbeddedPeer) -> None:
        """Its claims end. Behind the last one the directory is left as by a server that stops."""
        with _uninterrupted():
            with self._turn() as alive:
                if alive:
                    peer.close()
                    self._drive(peer)
                    self._peers.discard(peer)  # until now it keeps the directory open
                    if self._deserted:
                        self.driver.checkpoint()
                        self.give_up("its last client was closed")
            self._give_up_if_deserted()

    def collected(self, peer: EmbeddedPeer) -> None:
        """The same, from a finalizer: in any thread at any moment. Never waits."""
        if self.dead or peer.closed:
            return
        self._gone.append(peer)
        self._give_up_if_deserted()
        for other in self._peers.difference(self._gone):
            other.ring()

    @property
    def _deserted(self) -> bool:
        return not self.dead and not self._peers.difference(self._gone)

    def _give_up_if_deserted(self) -> None:
        # Whoever has the lock instead looks for itself, behind its turn.
        if self._deserted and self._lock.acquire(blocking=False):
            self.give_up("its clients were collected")
            self._lock.release()

    def forked(self) -> None:
        """In the child: the directory stays the parent's."""
        self._apart_count = 0  # those threads are not here
        self.give_up("it belongs to the parent process")

    def give_up(self, reason: str) -> None:
        """Let others have the directory, as it is: as soon as no thread is writing to it."""
        if not self.dead:
            self.dead = reason
            if not self._apart_count:
                self._files_lock.release()

    # --- turns --------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _turn(self) -> Iterator[bool]:
        """Whether there is still something to be done with the directory."""
        with self._lock:
            self._holder = threading.get_ident()
            try:
                yield not self.dead
            except ProtocolError:
                raise  # one peer's
            except BaseException as error:
                logger.exception("%s: given up for an error of ours", self.directory)
                self.give_up(f"given up for {error!r}")
                for peer in self._peers:
                    peer.ring()
                raise
            finally:
                self._holder = 0

    def exchange(self, peer: EmbeddedPeer, session: Session) -> bool:
        """Hand over what the session has to send, drive, and let it take in what came of it.

        False: nothing came. Raises ProtocolError.
        """
        with _uninterrupted():
            with self._turn() as alive:
                if not alive:
                    session.break_off(f"lost {self.directory}: {self.dead}")
                    return True
                while session.outgoing and not peer.overfull():
                    _pour(session.outgoing.popleft(), peer)
                self._drive(peer)
                self._wake_for_what_is_due()
                pieces = peer.collect()
            for piece in pieces:
                _pour(piece, session)
        while self._errands:
            self._errands.popleft()()
        return bool(pieces)

    def postpone(self, errand: Callable[[], None]) -> bool:
        """Whether this thread is in a turn, called from a finalizer; ``errand`` is then done behind
        it.
        """
        inside = self._holder == threading.get_ident()
        if inside:
            self._errands.append(errand)
        return inside

    def rest(self, peer: EmbeddedPeer, seconds: float) -> None:
        """Sleep for so long, or until there is something for ``peer``, or something is due."""
        try:
            with self._lock:
                now, due = time.monotonic(), self.driver.deadline()
                undriven = self.broker.waiting and not self._driving and not self.driver.held
                if self.dead or peer.has_some or undriven:
                    return
                due = FOREVER if due is None else due
                if self._driving:
                    # What is due then will be known when it has landed.
                    due = now + GLANCE_SECONDS if due <= now else min(due, now + GLANCE_SECONDS)
                peer.asleep_until = min(now + seconds, due)
            peer.sleep(peer.asleep_until - now)
        finally:
            peer.asleep_until = AWAKE

    def wake(self, peer: Peer | None = None) -> None:
        """Whoever brings something drives it, at the end of its turn."""

    # --- driving ------------------------------------------------------------------------------

    def _drive(self, peer: EmbeddedPeer) -> None:
        """Drive until nothing is left to do, or ``peer`` is served and another thread can go on."""
        while self._gone:
            gone = self._gone[0]
            gone.close()
            self._peers.discard(gone)
            self._gone.popleft()
        if self._driving:
            return  # whoever does takes along what this one brought
        self._driving = True
        flights = 0
        try:
            while (flight := self.driver.begin()) is not None:
                outcome = self._apart(partial(self.driver.journal.wait, flight.number))
                if self.dead:
                    return
                self.driver.finish(flight, outcome)
                flights += 1
                served = not peer.unanswered or flights >= FLIGHTS_MAX
                if served and self._hand_over():
                    break
        finally:
            self._driving = False
        self.show_raised()
        self.flush()
        self._keep_up()

    def _hand_over(self) -> bool:
        """Wake those whose requests wait. False: none of them sleeps."""
        if not self.broker.waiting:
            return False
        sleepers = [peer for peer in self._peers if peer.unanswered and peer.asleep_until != AWAKE]
        for peer in sleepers:
            peer.ring()
        return bool(sleepers)

    def _apart(self, job: Callable[[], _Result]) -> _Result:
        """Run what waits for the disk while other threads have their turns."""
        self.show_raised()
        self.flush()
        self._apart_count += 1
        self._holder = 0
        self._lock.release()
        try:
            return job()
        finally:
            self._lock.acquire()
            self._holder = threading.get_ident()
            self._apart_count -= 1
            if self.dead and not self._apart_count:
                self._files_lock.release()

    def _keep_up(self) -> None:
        while not self.driver.upkeep and (due := self.upkeep_due()) is not None:
            self.driver.upkeep = True
            try:
                due.done(self._apart(partial(attempt, due.job)))
            finally:
                self.driver.upkeep = False
            if self.dead or self.broker.books.stuck is None:
                break
            # On a full disk it takes two checkpoints to let a file go.
        self._hand_over()  # what was held meanwhile

    def _wake_for_what_is_due(self) -> None:
        """Nobody may sleep longer than until the driver's deadline."""
        due = self.driver.deadline()
        if due is not None:
            for peer in self._peers:
                if peer.asleep_until > due:
                    peer.ring()


class EmbeddedTransport(Transport):
    """A client's way to an engine."""

    room_ahead = 0  # what comes is read by this thread itself

    def __init__(self, engine: Engine, name: str, timeout: float | None) -> None:
        super().__init__(engine.directory, name, timeout)
        self._engine = engine
        self._peer = engine.join()
        self._came = False
        self._greet(until(timeout))

    def __del__(self) -> None:
        if (peer := getattr(self, "_peer", None)) is not None:
            self._engine.collected(peer)

    def clone(self) -> EmbeddedTransport:
        return EmbeddedTransport(self._engine, self.name, self.timeout)

    def wake(self) -> None:
        self._peer.ring()

    def forked(self) -> None:
        self._engine.forked()
        super().forked()

    def _write(self) -> None:
        if self._engine.postpone(self._run_errand):
            return
        try:
            self._came |= self._engine.exchange(self._peer, self.session)
        except ProtocolError as error:
            self._lose(f"the protocol was broken: {error}")

    def _run_errand(self) -> None:
        self.post(lambda _session: None)

    def _look(self, seconds: float | None) -> bool:
        if not self._came and seconds != 0:
            self._engine.rest(self._peer, FOREVER if seconds is None else seconds)
        came, self._came = self._came, False
        return came

    def _hang_up(self) -> None:
        if not self._engine.dead:  # in the child of a fork nobody would ever give its lock back
            self._engine.leave(self._peer)


def _open(directory: str, limits: Limits) -> Driver:
    driver = open_driver(
        Disk(directory), limits, clock=time.monotonic, wall=time.time_ns, boot=this_boot()
    )
    flight = driver.open()
    if flight is not None:
        driver.finish(flight, driver.journal.wait(flight.number))
    return driver


class _Sink(Protocol):
    """See ``protocol.Connection``."""

    def room(self) -> memoryview | None: ...

    def filled(self, count: int) -> None: ...

    def received(self, data: bytes) -> None: ...


def _pour(piece: Buffer, sink: _Sink) -> None:
    """Hand over a piece as if it had come out of a socket."""
    rest = memoryview(piece)
    while rest:
        room = sink.room()
        count = len(rest) if room is None else min(len(rest), len(room))
        if room is None:
            sink.received(bytes(rest))
        else:
            room[:count] = rest[:count]
            sink.filled(count)
        rest = rest[count:]


@contextlib.contextmanager
def _uninterrupted() -> Iterator[None]:
    """Handlers of signals that come in this block run behind it. They run in the main thread, so
    only there is anything to be done.
    """
    if threading.get_ident() != threading.main_thread().ident:
        yield
        return
    came: dict[int, FrameType | None] = {}

    def restore(number: int, handler: Callable[[int, FrameType | None], object]) -> None:
        signal.signal(number, handler)
        if number in came:
            handler(number, came[number])

    with contextlib.ExitStack() as stack:
        for number in _HELD_BACK:
            if callable(handler := signal.getsignal(number)):
                stack.callback(restore, number, handler)
                signal.signal(number, came.__setitem__)
        yield

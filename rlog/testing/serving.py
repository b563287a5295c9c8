"""The server that a test holds, and the faults that it orders there."""

from __future__ import annotations

import contextlib
import os
import resource
import shutil
import socket
import tempfile
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final, Self
from weakref import WeakSet

import rlog_client
from rlog_client.model import consumer_name

from ..config import AddressInUse, Listen
from ..driver import Limits
from ..files import PAGE, Lock, remove_socket
from ..policy import parse_policy
from .faults import KINDS, FailedSync, Faults, FaultyDisk, FullDisk, LostReply
from .life import Clock, Life, ServerFailed, alone

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import TracebackType

    from rlog_client import AsyncClient, Client, Global

    from .faults import Fault, Reply

JOURNAL_FILE_BYTES: Final = 4 << 20
JOURNAL_FILE_MIN: Final = 64 * 1024
JOURNAL_FILE_MAX: Final = 1 << 30
HOST: Final = "127.0.0.1"
BIND_SECONDS: Final = 5.0
YEAR_SECONDS: Final = 366 * 86_400.0
AHEAD_SECONDS_MAX: Final = 200 * YEAR_SECONDS  # times are ns since 1970, in 64 bits with a sign


class Server:
    """A real rlog server in a thread of this process, with a data directory of its own.

        with rlog.testing.Server() as server:
            log = server.connect().log("orders", create=True)
            with server.lose_reply(to="append"):
                log.append(b"an order")  # is sent again, and recognised

    It is the server of ``rlog serve``: the same loop, broker, journal and files, at a free port of
    the loopback interface (``unix=True``: at a Unix socket). Being in a thread of its own, it
    serves blocking clients, trio and asyncio alike, and stands still for none of them. Every method
    here may be called from any thread, also from async code: each takes milliseconds, but for
    ``stop``, which gives a client 5 s to take what it has asked for.

    ``directory``: of the data, kept at the end; None: a temporary one, removed at the end.
    ``sync``: the policy of logs without one of their own, as of ``rlog serve``.
    ``journal_file_size``: in bytes, counts when the directory is made; the largest batch is what
    fits into one of these. ``fsync=False`` leaves out the system calls that wait for the disk. An
    answer then says ``synced`` of what only the system has; since a test cuts no power it sees no
    difference, ``crash`` and ``fail_sync`` included, and is faster where disks are slow.

    What is wrong with the server itself is raised as ServerFailed by whatever is called next, and
    at the end of the ``with``.
    """

    def __init__(
        self,
        directory: str | os.PathLike[str] | None = None,
        *,
        unix: bool = False,
        sync: str = "always",
        journal_file_size: int = JOURNAL_FILE_BYTES,
        fsync: bool = True,
    ) -> None:
        if (
            not JOURNAL_FILE_MIN <= journal_file_size <= JOURNAL_FILE_MAX
            or journal_file_size % PAGE
        ):
            raise ValueError(
                f"journal_file_size is a multiple of {PAGE} from {JOURNAL_FILE_MIN} to "
                f"{JOURNAL_FILE_MAX} bytes, not {journal_file_size}"
            )
        files_max, _hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        limits = Limits(parse_policy(sync), journal_file_size)
        self._limits = limits._replace(files_max=min(files_max, limits.files_max))
        self._fsync = fsync
        self._given = None if directory is None else Path(directory)
        self._unix = unix
        self._home: Path | None = None  # what is removed at the end
        self._port: socket.socket | None = None  # keeps it ours while nobody listens
        self._listen = self._url = ""
        self._process = os.getpid()
        self._turn = threading.Lock()  # of whoever starts or ends it
        self._faults = Faults()
        self._clock = Clock()
        self._life: Life | None = None
        self._lock: Lock | None = None
        self._disk: FaultyDisk | None = None
        self._clients: list[Client] = []
        self._errors: list[BaseException] = []  # of lives that are over
        _servers.add(self)

    # --- what a test connects to --------------------------------------------------------------

    @property
    def url(self) -> str:
        """For ``rlog.connect`` and ``connect_async``, and for $RLOG_ADDR. Stays the same across
        restarts.
        """
        if not self._url:
            raise RuntimeError("this server was never started: use it with `with`, or start()")
        return self._url

    @property
    def directory(self) -> Path:
        """Where its data is: for ``rlog inspect``, while it runs, or for ``rlog.open``, while it
        does not.
        """
        if self._given is not None:
            return self._given
        if self._home is None:
            raise RuntimeError("this server was never started: use it with `with`, or start()")
        return self._home / "data"

    @property
    def running(self) -> bool:
        """It was started, and neither stopped nor crashed since."""
        return self._life is not None

    def connect(self, *, timeout: float | None = 10.0, name: str = "") -> Client:
        """A blocking client, closed at the end of the test if it is not before."""
        self._check()
        client = rlog_client.connect(self.url, timeout=timeout, name=name)
        self._clients.append(client)
        return client

    def connect_async(self, *, timeout: float | None = 10.0, name: str = "") -> AsyncClient:
        """A client for trio and asyncio, to be entered and left by the test: ``async with``."""
        self._check()
        return rlog_client.connect_async(self.url, timeout=timeout, name=name)

    # --- its lives ----------------------------------------------------------------------------

    def start(self) -> Self:
        """Start it: for the first time, or again, with the same directory at the same URL.

        Raises what ``rlog serve`` would say: Locked, Refused, OSError.
        """
        self._check()
        with self._turn, contextlib.ExitStack() as stack:
            if self._life is not None:
                raise RuntimeError("this server is running")
            if not self._url:
                stack.callback(self._move_out)
                self._move_in()
            directory = str(self.directory)
            self._lock = Lock(directory)
            stack.callback(self._unlock)
            listener = self._bind()
            self._disk = FaultyDisk(directory, self._faults, fsync=self._fsync)
            self._life = Life(self._disk, self._limits, self._clock, listener)
            stack.pop_all()  # what it has, it keeps
        return self

    def stop(self) -> None:
        """Stop it as SIGTERM would: what was asked is answered, a checkpoint made.

        Clients see their connection end, and try to come back until their ``timeout``: that is the
        way to test what they do while nobody is there. Claims end with it.
        """
        self._alive()
        self._end(crash=False)

    def restart(self) -> None:
        """Stop it in order, and start it again.

        Clients come back by themselves. Whoever held a claim has the first right to it for 5 s, and
        keeps its epoch and the record in hand.
        """
        self.stop()
        self.start()

    def crash(self) -> None:
        """End it as SIGKILL would: nothing is answered, flushed or checkpointed any more.

        What was acknowledged is there after ``start``, and of what was not, perhaps some: whatever
        it had written the system still has. (A power cut is more than that, and not to be had
        here.)
        """
        self._alive()
        self._end(crash=True)

    def close(self) -> None:
        """Close the clients that ``connect`` made, end the server, and remove its directory.

        Raises ServerFailed.
        """
        if self._process != os.getpid():
            return  # the parent's
        with contextlib.ExitStack() as stack:
            stack.callback(self._raise_errors)
            stack.callback(self._move_out)
            # Of what is removed a moment later, nothing has to be tidied up.
            stack.callback(self._end, crash=self._given is None)
            while self._clients:
                stack.callback(self._clients.pop().close)

    def __enter__(self) -> Self:
        return self if self.running else self.start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        state = "" if self.running else ", not running"
        return f"<rlog.testing.Server {self._url or 'without a place'}{state}>"

    # --- faults -------------------------------------------------------------------------------

    def lose_reply(
        self, to: Reply | None = None, *, log: str | None = None, times: int | None = 1
    ) -> Fault:
        """The next reply to a change is lost: the change is done, and the connection is reset.

        ``to``: a reply to what; None: to anything that changes something. A ``commit`` is that of
        a consumer's place, a ``verdict`` any other one (Retry, Park, an exception, what is said of
        redriven records); ``create`` is ``log(create=True)``, ``producer`` one that is named or
        exclusive. ``log``: only of this one. ``times``: how often; None: every time.

        The client comes back by itself and asks again; the server knows what it has done already.
        So the change is made once, an append returns the offset that it got the first time (its
        receipt says ``duplicate``), and the program notices nothing. Where every reply is lost,
        the request ends after the client's ``timeout``: with OutcomeUnknown if it was an append.

        Ordered at once; as a ``with`` it is taken back at the end of the block, which raises
        AssertionError if nothing was lost in it.
        """
        if to is not None and to not in KINDS.values():
            raise ValueError(f"to is one of {', '.join(sorted({*KINDS.values()}))}, not {to!r}")
        if times is not None and (not isinstance(times, int) or times < 1):
            raise ValueError(f"times is a whole number from 1 on, or None, not {times!r}")
        return self._faults.order(LostReply(self._faults, to, log, times))

    def cut(self, name: str | None = None) -> int:
        """Reset every connection, or those of the clients of that name. -> how many.

        The client comes back by itself: a claim keeps its epoch and the record in hand, unless
        somebody else has claimed meanwhile; what was not answered is asked again; prefetched
        records are fetched again. Whoever waits or handles a record notices nothing.
        """
        return self._alive().call(self._alive().server.cut, name)

    def lapse(self, log: str, consumer: str | Global) -> None:
        """End a claim as if the record in hand had been there for longer than ``hand_seconds``,
        whether that was asked for or not.

        An attempt is counted of that record. The handler runs on, and knows nothing; its verdict
        is Fenced, and ``process`` raises that. The record comes again to whoever claims next, with
        ``attempt`` one higher. Of a shared consumer this ends the claims of all members that have
        something in hand. RuntimeError: no record is in hand (``Cursor.evict`` ends any claim, and
        counts nothing). NotFound: there is no such consumer.
        """
        self._alive().call(self._alive().server.lapse, log, consumer_name(consumer))

    def full_disk(self) -> Fault:
        """There is no space on the disk, until the end of the block, or ``cancel()``.

        Whatever needs more gets ENOSPC: appends raise DiskFull from the first one on; commits,
        verdicts and claims go on for as long as the journal has room, and reading does. Afterwards
        appends are taken as before, without a restart: at once, or, where the journal had run out
        of room as well, within a quarter of a second. A server that is started meanwhile starts,
        and takes no append; a new directory cannot be made.
        """
        fault = self._faults.order(FullDisk(self._faults))
        if self._life is not None:
            try:
                self._life.call(self._life.server.forget_reserved)
            except BaseException:
                fault.cancel()
                raise
        return fault

    def fail_sync(self, *, lost: bool = False) -> Fault:
        """The next sync of the journal that a change waits for fails with EIO.

        Writing ends for the life of this server, as it has to: the change raises OutcomeUnknown,
        whatever is written later StorageFailed. Reading what is durable goes on. After a
        ``restart`` everything that was acknowledged is there, and writing goes on. (Under a policy
        other than ``always`` an answer says ``written``, and such an append may be gone.)

        What had the failed sync on its way is there too, or, with ``lost=True``, is not: those are
        the two outcomes that nobody can tell apart before.

        Ordered at once; as a ``with`` it is taken back at the end of the block, which raises
        AssertionError if no sync failed in it.
        """
        return self._faults.order(FailedSync(self._faults, lost=lost))

    @contextlib.contextmanager
    def pause(self) -> Iterator[None]:
        """The server stands still until the end of the block, as after SIGSTOP: connections stay,
        and nothing is answered.

        A request takes as long as that, or ends after the client's ``timeout``: with
        OutcomeUnknown if it was an append, else with TimedOut; what was sent is done when the
        server goes on. In the block nothing can be asked of this object.
        """
        life = self._alive()
        until = threading.Event()
        life.pause(until)
        try:
            yield
        finally:
            life.paused = False
            until.set()

    def advance(self, seconds: float) -> None:
        """Move the server's clocks ahead, both of them, and have it do what is due then.

        That is: ``hand_seconds`` run out, the first right after a start ends (5 s), unnamed
        producers are forgotten (an hour), a sync of ``periodic`` is due, connections that have not
        greeted (5 s) or finished a message (30 s) are cut off, and records get their timestamps
        that much later. A delay of Retry or Backoff is over for whoever claims next.

        It does not move the clocks of clients: they wait for a delay that they have been told, for
        their ``timeout`` and between attempts to connect as ever. The way stays, also across
        restarts: time does not go back.
        """
        if not seconds >= 0:
            raise ValueError(f"time does not go back: {seconds} s")
        if self._clock.ahead_seconds + seconds > AHEAD_SECONDS_MAX:
            raise ValueError(f"not more than {AHEAD_SECONDS_MAX / YEAR_SECONDS:.0f} years in all")
        if self._life is None:
            self._clock.ahead_seconds += seconds
        else:
            self._alive().advance(seconds)

    # --- inside -------------------------------------------------------------------------------

    def _move_in(self) -> None:
        """At the first start: a place in the file system, and one to listen at."""
        if self._given is None or self._unix:
            # Short: the path of a socket has at most 107 bytes.
            self._home = Path(tempfile.mkdtemp(prefix="rlog-"))
        if self._unix:
            self._listen = f"unix:{self._home}/socket"
            self._url = f"rlog+unix://{self._home}/socket"
        else:
            # Bound and not listening: who connects while the server is away is refused, and nobody
            # else is given this port.
            self._port = socket.socket()
            self._port.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            self._port.bind((HOST, 0))
            self._listen = f"{HOST}:{self._port.getsockname()[1]}"
            self._url = f"rlog://{self._listen}"

    def _bind(self) -> socket.socket:
        """A child that was forked a moment ago has the last life's listener until it runs."""
        patience = time.monotonic() + BIND_SECONDS
        while True:
            try:
                return Listen(self._listen).bind()
            except AddressInUse:
                if time.monotonic() > patience:
                    raise
            time.sleep(0.01)

    def _move_out(self) -> None:
        if self._home is not None:
            shutil.rmtree(self._home, ignore_errors=True)
        if self._port is not None:
            self._port.close()
        self._home, self._port, self._url = None, None, ""

    def _unlock(self) -> None:
        lock, self._lock = self._lock, None
        if lock is not None:
            lock.release()

    def _check(self) -> None:
        if self._process != os.getpid():
            raise RuntimeError("this server belongs to the parent process")
        if self._life is not None and self._life.error is not None:
            raise ServerFailed("the server ended by an error of its own") from self._life.error

    def _alive(self) -> Life:
        self._check()
        if self._life is None:
            raise RuntimeError("this server is not running")
        return self._life

    def _end(self, *, crash: bool) -> None:
        with self._turn:
            life, disk = self._life, self._disk
            if life is None:
                return  # another thread was faster
            assert disk is not None
            try:
                if crash:
                    life.crash()
                else:
                    life.stop()
            finally:
                if not life.paused:
                    self._life = None
                    self._errors += life.errors
                    disk.forget_lost()
                    if self._unix:
                        remove_socket(self._listen.removeprefix("unix:"))
                    self._unlock()

    def _raise_errors(self) -> None:
        errors, self._errors = self._errors, []
        if errors:
            group = BaseExceptionGroup("in the server", errors)
            raise ServerFailed("the server failed by an error of its own") from alone(group)

    def _forked(self) -> None:
        """In the child of a fork: nothing of it may keep the port, a connection or the lock."""
        if self._process == os.getpid():
            return
        if self._life is not None:
            self._life.forked()
        self._life = None
        self._unlock()
        if self._port is not None:
            self._port.close()


_servers: Final[WeakSet[Server]] = WeakSet()


def _after_fork_in_child() -> None:
    for each in list(_servers):
        each._forked()


os.register_at_fork(after_in_child=_after_fork_in_child)

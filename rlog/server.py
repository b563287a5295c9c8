"""The server: a data directory, sockets, and the one task that drives frames between them."""

from __future__ import annotations

import contextlib
import logging
import os
import queue
import signal
import socket
import time
from typing import TYPE_CHECKING, Final

import trio

from rlog_client import protocol
from rlog_client.errors import Overloaded

from .config import Config, notify_manager
from .connection import Connection, TaskHub
from .driver import Driver, Flight, attempt, open_driver
from .files import Disk, Lock, raise_file_limit, remove_socket, this_boot
from .journal import LocalJournal, Outcome

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from .peer import Peer, Upkeep

logger = logging.getLogger("rlog.server")

# The sync runs on the loop while the disk answers in microseconds, since a hop to a thread costs as
# much; beyond these, in one thread of its own.
INLINE_REPLIES_MAX: Final = 32
INLINE_BYTES_MAX: Final = 64 * 1024
INLINE_SECONDS_MAX: Final = 400e-6  # of recent syncs, on average
SLOW_SECONDS: Final = 2e-3  # after one such sync it is the thread for a while:
SLOW_PAUSE_FACTOR: Final = (
    4  # times as long as that took, so that a slow disk stops the loop rarely
)
_AVERAGE_OVER: Final = 16
ALONE_MIN: Final = 8  # requests in a row, and a connection counts as the only one
STOP_SECONDS: Final = 5.0
ACCEPT_PAUSE_SECONDS: Final = 0.1
REAP_SECONDS: Final = 5.0
_TCP_RTO_MAX_MS: Final = 44
# Of the file descriptors that connections leave to the files, or half of all if that is less:
# without them, whoever connects often enough would end writing.
DESCRIPTORS_RESERVED: Final = 1024


def _url_of(sock: socket.socket) -> str:
    name = sock.getsockname()
    if sock.family == socket.AF_UNIX:
        return f"rlog+unix://{os.path.abspath(name)}"
    host = f"[{name[0]}]" if ":" in name[0] else name[0]
    return f"rlog://{host}:{name[1]}"


class SyncThread:
    """One thread for syncs: a hop to it and back costs less than one to a pool."""

    def __init__(self, journal: LocalJournal) -> None:
        self._journal = journal
        self._numbers: queue.SimpleQueue[int | None] = queue.SimpleQueue()
        self._token = trio.lowlevel.current_trio_token()
        self._waited: tuple[Outcome, float] | BaseException = (Outcome.UNKNOWN, 0.0)
        self._done = trio.Event()

    def run(self) -> None:
        """In the thread."""
        while (number := self._numbers.get()) is not None:
            try:
                self._waited = timed_wait(self._journal, number)
            except BaseException as error:
                self._waited = error  # the loop's affair
            self._token.run_sync_soon(self._done.set)

    async def wait(self, number: int) -> tuple[Outcome, float]:
        """Like ``timed_wait``, in the thread."""
        self._done = trio.Event()
        self._numbers.put(number)
        with trio.CancelScope(shield=True):  # the disk does not stop, so neither do we
            await self._done.wait()
        if isinstance(self._waited, BaseException):
            raise self._waited
        return self._waited

    def end(self) -> None:
        self._numbers.put(None)


def timed_wait(journal: LocalJournal, number: int) -> tuple[Outcome, float]:
    """Wait for a frame: the outcome, and how many seconds the disk took."""
    began = time.monotonic()
    return journal.wait(number), time.monotonic() - began


class Server(TaskHub):
    """Serves one data directory. ``urls``: where, once it runs.

    ``connection``: makes a connection of an accepted socket and the address that it came from.
    """

    def __init__(
        self,
        driver: Driver,
        connections_max: int = 1 << 16,
        *,
        connection: Callable[[TaskHub, socket.socket, str], Connection] = Connection,
    ) -> None:
        super().__init__(driver)
        self._connections_max = connections_max
        self._connection = connection
        driver.flush = self.flush
        self.urls: list[str] = []
        self._nursery: trio.Nursery | None = None
        self._sleeper: trio.lowlevel.Task | None = None  # the drive loop, when it has nothing to do
        self._flight: Flight | None = None  # begun by a turn, and left to the drive loop
        self._broken: BaseException | None = None  # what a turn failed with
        self._latest: Peer | None = None  # who asked for something last,
        self._alone = 0  # and how many times nobody else did
        self._alarm = float("inf")  # when it is woken at the latest
        self._alarm_changed = trio.Event()
        self._stop = trio.Event()
        self._stopping = False
        self._drained = trio.Event()  # everything that was asked before the stop is answered
        # Of its own, so that looks at the disk for clients cannot keep a checkpoint waiting.
        self._upkeep_thread = trio.CapacityLimiter(1)
        self._sync_average = 0.0
        self._slow_until = 0.0

    # --- tasks --------------------------------------------------------------------------------

    def start(
        self, connection: Connection, task: Callable[..., Awaitable[None]], *args: object
    ) -> None:
        assert self._nursery is not None
        self._nursery.start_soon(self._contain, connection, task, *args)

    async def _contain(
        self, connection: Connection, task: Callable[..., Awaitable[None]], *args: object
    ) -> None:
        """A task of a connection."""
        try:
            await task(*args)
        except Exception as error:
            self.failed(connection, error)

    def failed(self, connection: Connection, error: Exception) -> None:
        logger.error("%s: ended by an error of ours", connection.address, exc_info=error)
        connection.close()

    # --- the drive loop -----------------------------------------------------------------------

    async def _drive(
        self, syncs: SyncThread, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        task_status.started()
        while not (self._stopping and not self.broker.waiting):
            if self._flight is None and (not self.broker.waiting or self.driver.held):
                await self._sleep()
            # Connections that are ready run once before the frame is closed, so that their
            # requests share its sync: without this, an inline sync groups nothing.
            await trio.lowlevel.checkpoint()
            flight, self._flight = self._flight or self.driver.begin(), None
            if flight is not None:
                if self._inline(flight):
                    outcome, took = timed_wait(self.driver.journal, flight.number)
                else:
                    outcome, took = await syncs.wait(flight.number)
                self._land(flight, outcome, took)
            self._after()
        self._drained.set()

    def _turn(self) -> None:
        """One turn of the drive loop while it sleeps, without waking it: inside the call of whoever
        asked.
        """
        flight = self.driver.begin()
        if flight is not None and not self._inline(flight):
            self._flight = flight
        elif flight is not None:
            self._land(flight, *timed_wait(self.driver.journal, flight.number))
        self._after()

    async def _sleep(self) -> None:
        """Until ``wake``, or until the driver's deadline."""
        self._set_alarm()
        self._sleeper = trio.lowlevel.current_task()

        def abort(_raise_cancel: object) -> trio.lowlevel.Abort:
            self._sleeper = None
            return trio.lowlevel.Abort.SUCCEEDED

        await trio.lowlevel.wait_task_rescheduled(abort)
        if self._broken is not None:
            raise self._broken

    def wake(self, peer: Peer | None = None) -> None:
        """There may be something to drive; ``peer``: whose requests it is."""
        sleeper, self._sleeper = self._sleeper, None
        if sleeper is None:
            return
        # A client that has been alone for a while shares no frame with anybody: two task switches
        # would be half of what its append costs here.
        again = peer is not None and peer is self._latest
        self._alone = self._alone + 1 if again else 0
        self._latest = peer
        sleeps_on = False
        try:
            if self._alone >= ALONE_MIN:
                self._turn()
                if self._flight is None and (not self.broker.waiting or self.driver.held):
                    self._set_alarm()
                    sleeps_on = True
        except BaseException as error:
            # What was decided may not have been written, and no connection is to blame: the drive
            # loop fails with it, and so does the server.
            self._broken = error
        if sleeps_on:
            self._sleeper = sleeper
        else:
            trio.lowlevel.reschedule(sleeper)

    def _set_alarm(self) -> None:
        deadline = self.driver.deadline()
        if deadline is not None and deadline < self._alarm:
            self._alarm = deadline
            self._alarm_changed.set()

    async def _ring_alarms(self) -> None:
        """Wake the drive loop at the driver's deadlines.

        A task of its own: most deadlines move on before they come, and a scope around every sleep
        of the drive loop would cost more than all that it does for one small append.
        """
        while True:
            self._alarm_changed = trio.Event()
            with trio.CancelScope(deadline=self._alarm) as scope:
                await self._alarm_changed.wait()
            if scope.cancelled_caught:
                deadline = self.driver.deadline()
                self._alarm = float("inf") if deadline is None else deadline
                if self._alarm <= trio.current_time():
                    self._alarm = float("inf")  # set anew when the drive loop goes to sleep
                    self.wake()

    def _inline(self, flight: Flight) -> bool:
        """Whether to wait for this flight here, or in the thread: where it costs least."""
        fast = self._sync_average <= INLINE_SECONDS_MAX and time.monotonic() >= self._slow_until
        return fast and self._small(flight)

    @staticmethod
    def _small(flight: Flight) -> bool:
        replies = len(flight.decided.replies) if flight.decided is not None else 0
        return flight.bytes <= INLINE_BYTES_MAX and replies <= INLINE_REPLIES_MAX

    def _land(self, flight: Flight, outcome: Outcome, took: float) -> None:
        """The wait for a flight ended, and the disk took so many seconds."""
        if self._small(flight):
            # Cut, so that one stall does not outweigh what is typical.
            self._sync_average += (min(took, SLOW_SECONDS) - self._sync_average) / _AVERAGE_OVER
            if took > SLOW_SECONDS:
                self._slow_until = time.monotonic() + SLOW_PAUSE_FACTOR * took
        self.driver.finish(flight, outcome)

    def _after(self) -> None:
        """Show readers what they can see now, and send what has piled up."""
        self.show_raised()
        self.flush()
        self._keep_up()

    def _keep_up(self) -> None:
        """Start what keeps the journal small and its next file ready, beside the work."""
        if self.driver.upkeep or self._stopping or (due := self.upkeep_due()) is None:
            return
        assert self._nursery is not None
        self.driver.upkeep = True
        self._nursery.start_soon(self._run_upkeep, due)

    async def _run_upkeep(self, due: Upkeep) -> None:
        due.done(await trio.to_thread.run_sync(attempt, due.job, limiter=self._upkeep_thread))
        self.driver.upkeep = False
        self._keep_up()  # on a full disk it takes two checkpoints to let a file go
        self.wake()

    # --- sockets ------------------------------------------------------------------------------

    async def _accept(self, listener: socket.socket) -> None:
        while True:
            await trio.lowlevel.wait_readable(listener)
            try:
                sock, address = listener.accept()
            except BlockingIOError:
                continue
            except OSError as error:
                # Out of file descriptors, or a peer that left at once: those who are here are
                # served, and accepting resumes.
                logger.warning("cannot accept a connection: %s", error)
                await trio.sleep(ACCEPT_PAUSE_SECONDS)
                continue
            _prepare_socket(sock)
            if len(self.connections) >= self._connections_max:
                _refuse(sock, f"{self._connections_max} connections are open: that is the limit")
                continue
            where = f"{address[0]}:{address[1]}" if isinstance(address, tuple) else "unix"
            connection = self._connection(self, sock, where)
            try:
                self.add(connection)
            except OSError as error:
                logger.warning("cannot watch a connection: %s", error)  # no memory for it
                connection.close()

    async def _reap(self) -> None:
        """End the connections of hosts that vanished with something under way to them."""
        while True:
            await trio.sleep(REAP_SECONDS)
            for connection in list(self.connections):
                if connection.vanished():
                    logger.warning("%s: its host does not answer any more", connection.address)
                    connection.close()

    # --- life ---------------------------------------------------------------------------------

    async def run(
        self,
        listeners: Sequence[socket.socket],
        *,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Serve until ``stop``; then answer what was asked, make a checkpoint, and end.

        Cancelling it instead is a crash: what was acknowledged is safe, and nothing else is done.
        """
        self.urls = [_url_of(listener) for listener in listeners]
        try:
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                syncs = SyncThread(self.driver.journal)
                nursery.start_soon(trio.to_thread.run_sync, syncs.run)
                try:
                    await self._run(listeners, syncs, task_status)
                finally:
                    syncs.end()  # in the nursery: it waits for the thread, also when cancelled
                    self.end_all()
        finally:
            for listener in listeners:
                listener.close()
        self.driver.checkpoint()

    async def _run(
        self,
        listeners: Sequence[socket.socket],
        syncs: SyncThread,
        task_status: trio.TaskStatus[None],
    ) -> None:
        assert self._nursery is not None
        flight = self.driver.open()
        if flight is not None:
            self.driver.finish(flight, self.driver.journal.wait(flight.number))
        await self._nursery.start(self._drive, syncs)
        async with trio.open_nursery() as accepting:
            accepting.start_soon(self._ring_alarms)
            accepting.start_soon(self._reap)
            accepting.start_soon(self.read_all)
            accepting.start_soon(self.end_the_late)
            for listener in listeners:
                accepting.start_soon(self._accept, listener)
            task_status.started()
            await self._stop.wait()
            self._stopping = True  # nothing is read any more: what was asked for is answered
            accepting.cancel_scope.cancel()
        self.wake()
        with trio.move_on_after(STOP_SECONDS):
            await self._drained.wait()
            for connection in list(self.connections):
                await connection.sent()
        self._nursery.cancel_scope.cancel()

    def stop(self) -> None:
        """End ``run``; from a task of the same loop."""
        self._stop.set()


def _refuse(sock: socket.socket, reason: str) -> None:
    logger.warning("a connection was refused: %s", reason)
    with sock, contextlib.suppress(OSError):
        sock.send(protocol.encode(0, protocol.error_control(Overloaded(reason))))


def _prepare_socket(sock: socket.socket) -> None:
    """Non-blocking, no delay, and a host that vanished while nothing was sent is noticed in 15
    s.
    """
    sock.setblocking(False)
    if sock.family == socket.AF_UNIX:
        return
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 5)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 5)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 2)
    # While a peer does not read, the kernel asks it ever more rarely whether it is still there: in
    # the end every two minutes. Kernels before 6.15 know no other way.
    with contextlib.suppress(OSError):
        sock.setsockopt(socket.IPPROTO_TCP, _TCP_RTO_MAX_MS, 5000)


async def serve(config: Config) -> None:
    """Serve a data directory until SIGTERM or SIGINT.

    Raises Locked, Refused, AddressInUse, ValueError, OSError.
    """
    lock = Lock(config.data_dir)
    listeners: list[socket.socket] = []
    try:
        descriptors = raise_file_limit()
        for listen in config.listen:
            listeners.append(listen.bind())
        began = time.monotonic()
        files = Disk(config.data_dir)
        limits = config.limits._replace(files_max=min(descriptors, config.limits.files_max))
        driver = open_driver(
            files, limits, clock=trio.current_time, wall=time.time_ns, boot=this_boot()
        )
        server = Server(driver, descriptors - min(DESCRIPTORS_RESERVED, descriptors // 2))
        async with trio.open_nursery() as nursery:
            with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
                await nursery.start(server.run, listeners)
                logger.info(
                    "serving %s at %s after %.2f s (%d logs, sync %s)",
                    config.data_dir,
                    ", ".join(server.urls),
                    time.monotonic() - began,
                    len(driver.broker.books.state.logs),
                    config.limits.policy.text,
                )
                notify_manager("READY=1")
                async for number in signals:
                    logger.info("stopping on %s", signal.Signals(number).name)
                    notify_manager("STOPPING=1")
                    server.stop()
                    break
                # From here on a second signal ends the process as if nobody had asked to wait.
        logger.info("stopped")
    finally:
        # Only of what was bound: behind a path that was refused there is another server.
        for listen, listener in zip(config.listen, listeners, strict=False):
            listener.close()
            if listen.path is not None:
                remove_socket(listen.path)
        lock.release()

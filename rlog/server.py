"""The server: a data directory, sockets, and the one task that drives frames between them."""

from __future__ import annotations

import logging
import queue
import signal
import socket
import time
from typing import TYPE_CHECKING, Final

import trio

from .config import Config, notify_manager
from .connection import Connection
from .driver import Driver, Flight, attempt, open_driver
from .files import Disk, Lock, raise_file_limit
from .journal import LocalJournal, Outcome

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from rlog_client import model
    from rlog_client.protocol import Message

    from .decisions import Look

logger = logging.getLogger("rlog.server")

# The sync runs on the loop while the disk answers in microseconds, since a hop to a thread costs as
# much; beyond these, in one thread of its own.
INLINE_REPLIES_MAX: Final = 32
INLINE_BYTES_MAX: Final = 64 * 1024
INLINE_SECONDS_MAX: Final = 400e-6  # of recent syncs, on average
SLOW_SECONDS: Final = 2e-3  # one such sync, and the thread it is for a while
SLOW_PAUSE_SECONDS: Final = 1.0
_AVERAGE_OVER: Final = 16
STOP_SECONDS: Final = 5.0
ACCEPT_PAUSE_SECONDS: Final = 0.1


def _url_of(sock: socket.socket) -> str:
    name = sock.getsockname()
    if sock.family == socket.AF_UNIX:
        return f"rlog+unix://{name}"
    host = f"[{name[0]}]" if ":" in name[0] else name[0]
    return f"rlog://{host}:{name[1]}"


class SyncThread:
    """One thread for syncs: a hop to it and back costs less than one to a pool."""

    def __init__(self, journal: LocalJournal) -> None:
        self._journal = journal
        self._numbers: queue.SimpleQueue[int | None] = queue.SimpleQueue()
        self._token = trio.lowlevel.current_trio_token()
        self._outcome = Outcome.UNKNOWN
        self._done = trio.Event()

    def run(self) -> None:
        """In the thread."""
        while (number := self._numbers.get()) is not None:
            self._outcome = self._journal.wait(number)
            self._token.run_sync_soon(self._done.set)

    async def wait(self, number: int) -> Outcome:
        self._done = trio.Event()
        self._numbers.put(number)
        with trio.CancelScope(shield=True):  # the disk does not stop, so neither do we
            await self._done.wait()
        return self._outcome

    def end(self) -> None:
        self._numbers.put(None)


class Server:
    """Serves one data directory. ``urls``: where, once it runs."""

    def __init__(self, driver: Driver) -> None:
        self.driver = driver
        self.broker = driver.broker
        self.urls: list[str] = []
        self._nursery: trio.Nursery | None = None
        self._connections: set[Connection] = set()
        self._ready: set[Connection] = set()
        self._readers: dict[int, set[Connection]] = {}
        self._woken = trio.Event()
        self._stop = trio.Event()
        self._stopping = False
        self._drained = trio.Event()  # everything that was asked before the stop is answered
        self._upkeep = False  # a checkpoint or a spare file is being made in a thread
        self._sync_average = 0.0
        self._slow_until = 0.0

    # --- what connections ask of it -----------------------------------------------------------

    def wake(self) -> None:
        self._woken.set()

    def ready(self, connection: Connection) -> None:
        self._ready.add(connection)

    def drain(self, connection: Connection) -> None:
        self._start(connection.drain)

    def look(self, connection: Connection, request: int, look: Look) -> None:
        self._start(connection.look, request, look)

    def resolve(self, connection: Connection, message: Message, whence: model.Whence) -> None:
        self._start(connection.resolve_time, message, whence)

    def subscribe(self, log: int, connection: Connection) -> None:
        self._readers.setdefault(log, set()).add(connection)

    def unsubscribe(self, log: int, connection: Connection) -> None:
        readers = self._readers.get(log, set())
        readers.discard(connection)
        if not readers:
            self._readers.pop(log, None)

    def _start(self, task: Callable[..., object], *args: object) -> None:
        assert self._nursery is not None
        self._nursery.start_soon(task, *args)  # type: ignore[arg-type]

    # --- the drive loop -----------------------------------------------------------------------

    async def _drive(
        self, syncs: SyncThread, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        driver = self.driver
        task_status.started()
        while not (self._stopping and not self.broker.waiting):
            if not self.broker.waiting:
                await self._sleep()
            # Connections that are ready run once before the frame is closed, so that their
            # requests share its sync: without this, an inline sync groups nothing.
            await trio.lowlevel.checkpoint()
            flight = driver.begin()
            while flight is not None:
                driver.finish(flight, await self._wait(syncs, flight))
                self._after()
                await trio.lowlevel.checkpoint()
                flight = driver.begin()
            self._after()
            self._keep_up()
        self._drained.set()

    async def _sleep(self) -> None:
        self._woken = trio.Event()
        deadline = self.driver.deadline()
        with trio.CancelScope(deadline=float("inf") if deadline is None else deadline):
            await self._woken.wait()

    async def _wait(self, syncs: SyncThread, flight: Flight) -> Outcome:
        """Wait for a flight where it costs least: here, or in the thread."""
        small = flight.bytes <= INLINE_BYTES_MAX and (
            flight.decided is None or len(flight.decided.replies) <= INLINE_REPLIES_MAX
        )
        now = time.monotonic()
        fast = self._sync_average <= INLINE_SECONDS_MAX and now >= self._slow_until
        if small and fast:
            outcome = self.driver.journal.wait(flight.number)
        else:
            outcome = await syncs.wait(flight.number)
        took = time.monotonic() - now
        if small:
            self._sync_average += (took - self._sync_average) / _AVERAGE_OVER
        if took > SLOW_SECONDS and small:
            self._slow_until = now + took + SLOW_PAUSE_SECONDS
        return outcome

    def _after(self) -> None:
        """Show readers what they can see now, and send what has piled up: one send a connection."""
        raised = self.broker.books.raised
        while raised:
            log = raised.pop()
            for connection in list(self._readers.get(log, ())):
                connection.raised(log)
        while self._ready:
            self._ready.pop().flush()

    def _keep_up(self) -> None:
        """Start what keeps the journal small and its next file ready, beside the work."""
        if self._upkeep or self._stopping:
            return
        if self.driver.checkpoint_due:
            job = self.driver.begin_checkpoint()
            if job is not None:
                self._upkeep = True
                self._start(self._run_upkeep, job, self.driver.finish_checkpoint)
        elif self.driver.spare_wanted:
            self._upkeep = True
            self._start(self._run_upkeep, self.driver.journal.prepare, self.driver.prepared)

    async def _run_upkeep(
        self, job: Callable[[], bool], done: Callable[[bool | OSError], None]
    ) -> None:
        done(await trio.to_thread.run_sync(attempt, job))
        self._upkeep = False
        self.wake()

    # --- sockets ------------------------------------------------------------------------------

    async def _accept(self, listener: socket.socket, nursery: trio.Nursery) -> None:
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
            where = f"{address[0]}:{address[1]}" if isinstance(address, tuple) else "unix"
            nursery.start_soon(self._serve, Connection(self, sock, where))

    async def _serve(self, connection: Connection) -> None:
        self._connections.add(connection)
        try:
            await connection.serve()
        finally:
            # At a stop it is only its reading that ends: what it asked for is still answered.
            if not self._stopping:
                connection.close()
                self._connections.discard(connection)

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
        syncs = SyncThread(self.driver.journal)
        try:
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                nursery.start_soon(trio.to_thread.run_sync, syncs.run)
                flight = self.driver.open()
                if flight is not None:
                    self.driver.finish(flight, self.driver.journal.wait(flight.number))
                await nursery.start(self._drive, syncs)
                async with trio.open_nursery() as accepting:
                    for listener in listeners:
                        accepting.start_soon(self._accept, listener, accepting)
                    task_status.started()
                    await self._stop.wait()
                    self._stopping = True
                    accepting.cancel_scope.cancel()
                self.wake()
                with trio.move_on_after(STOP_SECONDS):
                    await self._drained.wait()
                    for connection in self._connections:
                        await connection.sent()
                for connection in self._connections:
                    connection.close()
                syncs.end()
        finally:
            syncs.end()
            for listener in listeners:
                listener.close()
        self.driver.checkpoint()

    def stop(self) -> None:
        """End ``run``; from a task of the same loop."""
        self._stop.set()


def _prepare_socket(sock: socket.socket) -> None:
    """Non-blocking, no delay, and a host that vanished is noticed within 15 s."""
    sock.setblocking(False)
    if sock.family == socket.AF_UNIX:
        return
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 5)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 5)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 2)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 15_000)


async def serve(config: Config) -> None:
    """Serve a data directory until SIGTERM or SIGINT.

    Raises Locked, Refused, ValueError, OSError.
    """
    lock = Lock(config.data_dir)
    try:
        raise_file_limit()
        listeners = [listen.bind() for listen in config.listen]
        began = time.monotonic()
        files = Disk(config.data_dir)
        driver = open_driver(files, config.limits, clock=time.monotonic, wall=time.time_ns)
        server = Server(driver)
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
        lock.release()

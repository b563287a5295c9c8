"""One life of a server: the real one, on a trio loop in a thread of its own."""

from __future__ import annotations

import contextlib
import threading
import time
from concurrent.futures import Future
from functools import partial
from typing import TYPE_CHECKING, Final, TypeVar

import trio

from rlog_client import protocol
from rlog_client.errors import NotFound, RlogError

from .. import server
from ..decisions.desk import Lapse, Nobody, Waiting
from ..driver import open_driver
from .faults import FaultyConnection

if TYPE_CHECKING:
    import socket
    from collections.abc import Awaitable, Callable

    from ..connection import Connection
    from ..decisions import Look
    from ..driver import Driver, Limits
    from .faults import Faults, FaultyDisk

CALL_SECONDS: Final = 60.0  # only to find out that it hangs

ResultT = TypeVar("ResultT")


class ServerFailed(Exception):
    """The server of a test ended by an error of its own; ``__cause__`` is that error."""


class Clock(trio.abc.Clock):
    """The system's, and ahead of it by what it was told: for all that the server waits for."""

    def __init__(self) -> None:
        self.ahead_seconds = 0.0

    def start_clock(self) -> None:
        pass

    def current_time(self) -> float:
        return time.monotonic() + self.ahead_seconds

    def deadline_to_sleep_time(self, deadline: float) -> float:
        return deadline - self.current_time()

    def wall_ns(self) -> int:
        return time.time_ns() + round(self.ahead_seconds * 1e9)


class _Asker(Nobody):
    """Asks the broker something itself, and is woken by the answer."""

    def __init__(self) -> None:
        super().__init__()
        self.answered = trio.Event()
        self.error: RlogError | None = None

    def answer(
        self, request: int, control: protocol.Control, payload: bytes | memoryview = b""
    ) -> None:
        if isinstance(control, protocol.Error):
            self.error = protocol.raised(control)
        self.answered.set()

    def answer_later(self, request: int, look: Look) -> None:
        self.answered.set()


class LiveServer(server.Server):
    """The server, and what a test may do to it. All but ``errors`` belongs to its loop."""

    def __init__(self, driver: Driver, faults: Faults) -> None:
        super().__init__(driver, connection=partial(FaultyConnection, faults))
        self.errors: list[Exception] = []  # that ended a connection

    def failed(self, connection: Connection, error: Exception) -> None:
        self.errors.append(error)
        super().failed(connection, error)

    @property
    def faulty(self) -> list[FaultyConnection]:
        return [c for c in self.connections if isinstance(c, FaultyConnection)]

    async def cut(self, name: str | None) -> int:
        found = [c for c in self.faulty if name in (None, c.name)]
        for connection in found:
            connection.reset()
        return len(found)

    async def forget_reserved(self) -> None:
        """Logs have no space beyond what is written, as after a start: the next append needs
        some.
        """
        while self.driver.flying:
            await trio.lowlevel.checkpoint()
        books = self.broker.books
        for log in books.state.logs.values():
            if log.segments:
                books.files[log.id].adopt(log.segments[-1].base, log.segments[-1].bytes)

    async def settle(self) -> None:
        """Until what is due by the clock has been decided, and what follows from it."""
        for _ in range(2):
            await self._ask(protocol.ListLogs())

    async def lapse(self, log_name: str, consumer: str) -> None:
        books = self.broker.books
        log = books.state.by_name(log_name)
        cursor = log.cursors.get(consumer) if log is not None else None
        if log is None or cursor is None:
            raise NotFound(f"there is no consumer {consumer!r} of a log {log_name!r}")
        key, epoch = (log.id, consumer), cursor.epoch
        if cursor.shared is not None:
            await self._lapse_members(key, log_name)
            return
        while cursor.epoch == epoch:
            peer = books.holders.get(key)
            grant = peer.grants.get(key) if peer is not None else None
            if grant is None or grant.in_hand is None:
                raise _nothing_in_hand(log_name, consumer)
            books.hands.pop(key, None)  # its time is over
            await self._ask(Lapse(*key, epoch))

    async def _lapse_members(self, key: tuple[int, str], log_name: str) -> None:
        group = self.broker.books.groups.get(key)
        begun = [mate for mate in group.mates.values() if mate.since_ns] if group else []
        if not begun:
            raise _nothing_in_hand(log_name, key[1])
        for mate in begun:
            mate.due = dict.fromkeys(mate.since_ns, 0.0)  # their time is over
            await self._ask(Lapse(*key, mate.epoch))

    async def _ask(self, control: protocol.Control) -> None:
        asker = _Asker()
        self.broker.submit(Waiting(asker, 0, control))
        self.wake()
        await asker.answered.wait()
        if asker.error is not None:
            raise asker.error


def _nothing_in_hand(log: str, consumer: str) -> RuntimeError:
    return RuntimeError(
        f"consumer {consumer!r} of log {log!r} has no record in hand, so none can be in hand for "
        "too long: only process() puts records in hand. Cursor.evict() ends any claim."
    )


class Life:
    """A server from its start to its end, for one thread that is not its own.

    ``error``: what ended it, if nobody did.
    """

    def __init__(
        self, disk: FaultyDisk, limits: Limits, clock: Clock, listener: socket.socket
    ) -> None:
        self.error: BaseException | None = None
        self.paused = False
        self._disk = disk
        self._limits = limits
        self._clock = clock
        self._listener = listener
        self._begun: Future[LiveServer] = Future()
        self._thread = threading.Thread(target=self._run, name="rlog.testing", daemon=True)
        self._thread.start()
        try:
            self.server = self._begun.result(CALL_SECONDS)
        except Exception:
            self._thread.join(CALL_SECONDS)
            raise

    # --- in its thread ------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            trio.run(self._main, clock=self._clock)
        except BaseException as error:
            self.error = error
            if not self._begun.done():
                self._begun.set_exception(alone(error))
        finally:
            self._listener.close()
            self._disk.close()

    async def _main(self) -> None:
        driver = open_driver(
            self._disk, self._limits, clock=trio.current_time, wall=self._clock.wall_ns
        )
        live = LiveServer(driver, self._disk.faults)
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            self._token = trio.lowlevel.current_trio_token()
            await nursery.start(live.run, [self._listener])
            self._begun.set_result(live)

    # --- from outside -------------------------------------------------------------------------

    @property
    def errors(self) -> list[BaseException]:
        """Everything that went wrong in there."""
        return [*self.server.errors, *([] if self.error is None else [self.error])]

    def call(self, function: Callable[..., Awaitable[ResultT]], *args: object) -> ResultT:
        """Run an async function there: its result. Waits, whatever loop the caller is on."""
        result: Future[ResultT] = Future()

        async def run() -> None:
            try:
                result.set_result(await function(*args))
            except BaseException as error:
                result.set_exception(error)
                if not isinstance(error, Exception):
                    raise

        self._post(lambda: self._nursery.start_soon(run))
        try:
            return result.result(CALL_SECONDS)
        except trio.Cancelled:
            raise ServerFailed("the server ended meanwhile") from self.error

    def advance(self, seconds: float) -> None:
        self.call(self._advance, seconds)

    async def _advance(self, seconds: float) -> None:
        self._clock.ahead_seconds += seconds
        await self.server.settle()

    def pause(self, until: threading.Event) -> None:
        """Have the loop stand still until the event is set."""
        stands = threading.Event()

        def stand_still() -> None:
            stands.set()
            until.wait()

        self._post(stand_still)
        self.paused = True
        stands.wait()

    def stop(self) -> None:
        """In order, as after SIGTERM."""
        self._end(self.server.stop)

    def crash(self) -> None:
        """Here and now."""
        self._end(self._nursery.cancel_scope.cancel)

    def _end(self, how: Callable[[], None]) -> None:
        with contextlib.suppress(ServerFailed):  # it has ended already
            self._post(how)
        self._thread.join(CALL_SECONDS)
        if self._thread.is_alive():
            raise ServerFailed(f"the server has not ended within {CALL_SECONDS} s")

    def _post(self, action: Callable[[], None]) -> None:
        if self.paused:
            raise RuntimeError("the server is paused: it can do nothing until the block ends")
        try:
            self._token.run_sync_soon(action)
        except trio.RunFinishedError:
            raise ServerFailed("the server has ended") from self.error

    def forked(self) -> None:
        """In the child of a fork, where this thread is not: the sockets stay the parent's."""
        for connection in self.server.faulty:
            connection.forked()
        self._listener.close()
        self._disk.close()


def alone(error: BaseException) -> BaseException:
    """What is alone in a group of exceptions."""
    while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    return error

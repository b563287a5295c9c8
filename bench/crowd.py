"""Other processes that begin at the same moment, and hand back what they found."""

from __future__ import annotations

import multiprocessing
import signal
import threading
import time
import traceback
from typing import TYPE_CHECKING, Final, Generic, Self, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable
    from multiprocessing.connection import Connection

# Only to find out that they hang: for all to be ready, and for what they do after that.
_READY_SECONDS: Final = 300.0
_WORK_SECONDS: Final = 900.0

T = TypeVar("T")


class MemberFailed(Exception):
    """A process of the crowd failed, or hung; its own traceback is printed."""


class Gate:
    """What the processes of a crowd wait at, and look at."""

    def __init__(self, count: int) -> None:
        context = multiprocessing.get_context("fork")
        self._all = context.Barrier(count + 1)
        self._over = context.Event()

    def ready(self) -> None:
        """Wait until everybody is."""
        self._all.wait(_READY_SECONDS)

    @property
    def over(self) -> bool:
        return self._over.is_set()

    def end(self) -> None:
        self._over.set()

    def give_up(self) -> None:
        self._all.abort()


class Crowd(Generic[T]):
    """``count`` processes, each of which runs ``work(number, gate)``, and what they return.

    All of them call ``gate.ready()`` once, and so begin when ``go`` is called, at the same moment.
    """

    def __init__(self, work: Callable[[int, Gate], T], count: int) -> None:
        context = multiprocessing.get_context("fork")
        self._gate = Gate(count)
        self._members = []
        for number in range(count):
            mine, theirs = context.Pipe(duplex=False)
            arguments = (work, number, self._gate, theirs)
            process = context.Process(target=_member, args=arguments, daemon=True)
            process.start()
            theirs.close()
            self._members.append((process, mine))

    def go(self) -> float:
        """-> the moment, on the clock of ``time.monotonic``, which is the same in all processes."""
        try:
            self._gate.ready()
        except threading.BrokenBarrierError:
            raise MemberFailed("a process of the bench failed, or was never ready") from None
        return time.monotonic()

    def end(self) -> list[T]:
        """Tell those who look (``gate.over``) that it is over, and wait for all: what they
        returned.
        """
        self._gate.end()
        return self.results()

    def results(self) -> list[T]:
        deadline = time.monotonic() + _WORK_SECONDS
        found = []
        for _process, mine in self._members:
            try:
                if not mine.poll(max(0.0, deadline - time.monotonic())):
                    raise MemberFailed("a process of the bench did not end")
                found.append(mine.recv())
            except EOFError:
                raise MemberFailed("a process of the bench failed") from None
        for process, _mine in self._members:
            process.join()
        return found

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        for process, mine in self._members:
            process.kill()
            process.join()
            mine.close()


def _member(
    work: Callable[[int, Gate], object], number: int, gate: Gate, results: Connection
) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    try:
        results.send(work(number, gate))
    except BaseException:
        traceback.print_exc()
        gate.give_up()  # last: whoever waits there ends us
        raise

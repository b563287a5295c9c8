"""One record at a time by many clients at once: as threads, as processes, as tasks of one loop.

Every client has a connection of its own, sends its next record when the one before is acknowledged,
and begins when all are connected. All that the clients use of the processors is taken from the
server's, as it is for a user whose services run beside it; every figure is of both together.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import signal
import threading
import time
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from .peer import Once, OnceAsync, Peer

_CONNECT_SECONDS: Final = 60.0
_END_SECONDS: Final = 60.0


class Taken(NamedTuple):
    """What a load came to: acknowledged records a second, and the seconds of each."""

    rate: float
    seconds: list[float]


def _joined(parts: list[tuple[float, float, list[float]]]) -> Taken:
    """``parts``: of each client, when it began and ended, and its requests' seconds."""
    seconds = [each for _began, _ended, taken in parts for each in taken]
    elapsed = max(ended for _, ended, _ in parts) - min(began for began, _, _ in parts)
    return Taken(len(seconds) / elapsed, seconds)


def _repeat(once: Once, record: bytes, duration: float) -> tuple[float, float, list[float]]:
    taken = []
    began = now = time.perf_counter()
    while now - began < duration:
        once(record)
        then, now = now, time.perf_counter()
        taken.append(now - then)
    return began, now, taken


async def _repeat_async(
    once: OnceAsync, record: bytes, duration: float
) -> tuple[float, float, list[float]]:
    taken = []
    began = now = time.perf_counter()
    while now - began < duration:
        await once(record)
        then, now = now, time.perf_counter()
        taken.append(now - then)
    return began, now, taken


def threads(peer: Peer, clients: int, record: bytes, duration: float) -> Taken:
    barrier = threading.Barrier(clients)
    parts: list[tuple[float, float, list[float]]] = []
    errors: list[BaseException] = []

    def client() -> None:
        try:
            opened = peer.one()
            assert opened is not None
            with opened as once:
                once(record)
                barrier.wait(_CONNECT_SECONDS)
                parts.append(_repeat(once, record, duration))
        except BaseException as error:
            errors.append(error)
            barrier.abort()

    workers = [threading.Thread(target=client) for _ in range(clients)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    if errors:
        raise errors[0]
    return _joined(parts)


def tasks(peer: Peer, in_flight: int, record: bytes, duration: float) -> Taken:
    return asyncio.run(_tasks(peer, in_flight, record, duration, _nothing))


async def _nothing() -> None:
    pass


async def _tasks(
    peer: Peer,
    in_flight: int,
    record: bytes,
    duration: float,
    ready: Callable[[], Awaitable[None]],
) -> Taken:
    opened = peer.many(in_flight)
    assert opened is not None
    async with opened as once:
        await asyncio.gather(*(once(record) for _ in range(in_flight)))
        await ready()
        return _joined(
            await asyncio.gather(*(_repeat_async(once, record, duration) for _ in range(in_flight)))
        )


def processes(peer: Peer, clients: int, record: bytes, duration: float) -> Taken:
    """Each with the blocking client, or, where there is none, the asyncio one and one task."""
    context = multiprocessing.get_context("fork")
    barrier = context.Barrier(clients)
    blocking = peer.one() is not None

    def client(end: multiprocessing.connection.Connection) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)

        async def ready() -> None:
            barrier.wait(_CONNECT_SECONDS)

        if blocking:
            opened = peer.one()
            assert opened is not None
            with opened as once:
                once(record)
                barrier.wait(_CONNECT_SECONDS)
                end.send(_repeat(once, record, duration))
        else:
            began = time.perf_counter()
            taken = asyncio.run(_tasks(peer, 1, record, duration, ready))
            ended = time.perf_counter()
            began = ended - len(taken.seconds) / taken.rate if taken.seconds else began
            end.send((began, ended, taken.seconds))

    pipes = []
    workers = []
    try:
        for _ in range(clients):
            mine, its = context.Pipe(duplex=False)
            worker = context.Process(target=client, args=(its,))
            worker.start()
            its.close()
            pipes.append(mine)
            workers.append(worker)
        parts = [pipe.recv() for pipe in pipes]
        for worker in workers:
            worker.join(_END_SECONDS)
    finally:
        for worker in workers:
            worker.kill()
            worker.join()
    return _joined(parts)

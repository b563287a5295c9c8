"""One record at a time by many clients at once: as threads, as processes, as tasks of one loop.

Every client has a connection of its own, sends its next record when the one before is acknowledged,
and begins when all are connected. All that the clients use of the processors is taken from the
server's, as it is for a user whose services run beside it; every figure is of both together.
"""

from __future__ import annotations

import asyncio
import threading
import time
from typing import TYPE_CHECKING, Final, NamedTuple, TypeAlias

from ..crowd import Crowd

if TYPE_CHECKING:
    from collections.abc import Callable

    from ..crowd import Gate
    from .peers.peer import Once, OnceAsync, Peer

_CONNECT_SECONDS: Final = 60.0
_END_SECONDS: Final = 60.0  # of what was begun when the time was over

Part: TypeAlias = tuple[float, float, list[float]]  # when it began and ended; of each, the seconds


class Taken(NamedTuple):
    """What a load came to: acknowledged records a second, and the seconds of each."""

    rate: float
    seconds: list[float]


def _joined(parts: list[Part]) -> Taken:
    """``parts``: of each client."""
    seconds = [each for _began, _ended, taken in parts for each in taken]
    elapsed = max(ended for _, ended, _ in parts) - min(began for began, _, _ in parts)
    return Taken(len(seconds) / elapsed, seconds)


def _repeat(once: Once, record: bytes, duration: float) -> Part:
    taken = []
    began = now = time.perf_counter()
    while now - began < duration:
        once(record)
        then, now = now, time.perf_counter()
        taken.append(now - then)
    return began, now, taken


async def _repeat_async(once: OnceAsync, record: bytes, duration: float) -> Part:
    taken = []
    began = now = time.perf_counter()
    while now - began < duration:
        await once(record)
        then, now = now, time.perf_counter()
        taken.append(now - then)
    return began, now, taken


def threads(peer: Peer, clients: int, record: bytes, duration: float) -> Taken:
    barrier = threading.Barrier(clients)
    parts: list[Part] = []
    errors: list[BaseException] = []

    def client() -> None:
        try:
            with peer.one() as once:
                once(record)
                barrier.wait(_CONNECT_SECONDS)
                parts.append(_repeat(once, record, duration))
        except BaseException as error:
            errors.append(error)
            barrier.abort()

    workers = [threading.Thread(target=client, daemon=True) for _ in range(clients)]
    for worker in workers:
        worker.start()
    deadline = time.monotonic() + _CONNECT_SECONDS + duration + _END_SECONDS
    for worker in workers:
        worker.join(max(0.0, deadline - time.monotonic()))
    if errors:
        raise errors[0]
    if any(worker.is_alive() for worker in workers):
        raise TimeoutError(f"not all of {clients} threads came to their end")
    return _joined(parts)


def tasks(peer: Peer, in_flight: int, record: bytes, duration: float) -> Taken:
    return _joined(asyncio.run(_tasks(peer, in_flight, record, duration, lambda: None)))


async def _tasks(
    peer: Peer, in_flight: int, record: bytes, duration: float, ready: Callable[[], None]
) -> list[Part]:
    async with peer.many(in_flight) as once:
        await asyncio.gather(*(once(record) for _ in range(in_flight)))
        ready()
        async with asyncio.timeout(duration + _END_SECONDS):
            return await asyncio.gather(
                *(_repeat_async(once, record, duration) for _ in range(in_flight))
            )


def processes(peer: Peer, clients: int, record: bytes, duration: float) -> Taken:
    """Each with the blocking client, or, where there is none, the asyncio one and one task."""

    def client(_number: int, gate: Gate) -> Part:
        if not peer.blocking:
            [part] = asyncio.run(_tasks(peer, 1, record, duration, gate.ready))
            return part
        with peer.one() as once:
            once(record)
            gate.ready()
            return _repeat(once, record, duration)

    with Crowd(client, clients) as crowd:
        crowd.go()
        return _joined(crowd.results())

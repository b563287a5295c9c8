"""What the comparison asks of every system: to start, to append, to consume, to say how.

A peer is started over an empty directory, under one of two classes of durability, which are never
compared with each other:

- ``SYNCED``: what is acknowledged was synced to the disk before (fsync, fdatasync or O_SYNC: every
  peer's module says what it calls, as seen by strace).
- ``LATER``: what is acknowledged is synced some time later, or never; the peer's ``means`` says so.

Where a client has several ways to do a thing, each is a ``Way`` with what it costs in safety: how
many records share an acknowledgement, a sync, a commit, and how many batches are under way before
it waits for one. Every peer has one way at the batch that all have in common, and the others that
its documentation recommends for speed.
"""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from importlib import metadata
from typing import TYPE_CHECKING, ClassVar, Final, NamedTuple, Self

from ...machine import used

if TYPE_CHECKING:
    from pathlib import Path

    from ...server import Daemon

SYNCED: Final = "synced before acknowledged"
LATER: Final = "synced later"
DURABILITIES: Final = (SYNCED, LATER)
NEVER: Final = "never"  # as many records as share a sync
PUSHED: Final = "pushed"  # by the server, without being asked for each batch

Once = Callable[[bytes], object]  # one record, acknowledged when it returns
OnceAsync = Callable[[bytes], Awaitable[object]]


class Missing(Exception):
    """A peer cannot be run here: why."""


class Way(NamedTuple):
    """One way to append, or to consume, many records.

    ``run``: of an append, it takes records and returns the seconds from the first until the last is
    acknowledged; of a consumer, it takes a number of records and returns the seconds until so many
    were handed to a ``for`` loop (or the callback that the client has in its place) and the cursor
    behind the last is committed. Connections are made before, and leftovers removed after that.

    ``per_ack``, ``per_sync``, ``per_commit``: records that share one. ``in_flight``: batches that
    are under way before it waits. ``equal``: it is at the common batch. ``ranked``: it takes part
    in the best of each. ``bulk_call``: one call is given many records.
    """

    name: str
    run: Callable[..., float]
    per_ack: str
    per_sync: str
    per_commit: str = "–"
    in_flight: int | str = 1
    equal: bool = False
    ranked: bool = True
    bulk_call: bool = False


class Peer(ABC):
    """A system that runs, as a context manager, over a directory of its own.

    ``means``: what each class of durability that it can be run under is called there. ``server``,
    ``client``: what runs, and what speaks to it, with their versions, once it is started.
    ``blocking``, ``asynchronous``: it has such a client; ``processes``: which several can use at
    once. ``shares_syncs``: one sync is enough for single appends of many clients.
    """

    name: ClassVar[str]
    means: ClassVar[dict[str, str]]
    server: str
    client: str
    blocking: ClassVar[bool] = True
    asynchronous: ClassVar[bool] = True
    processes: ClassVar[bool] = True
    shares_syncs: ClassVar[bool] = True
    _daemon: Daemon | None = None

    @classmethod
    @abstractmethod
    def check(cls) -> None:
        """Missing, if it cannot be run here."""

    def __init__(self, directory: Path, durability: str) -> None:
        """``directory``: where there is none yet."""
        self._directory = directory
        self._durability = durability
        self._stack = contextlib.ExitStack()

    @abstractmethod
    def _start(self) -> None:
        """What is to be ended is entered into ``_stack`` as soon as it is there."""

    @property
    def pids(self) -> list[int]:
        """The server's processes."""
        return [] if self._daemon is None else self._daemon.pids

    @abstractmethod
    def appends(self, batch: int) -> list[Way]:
        """``batch``: the common one, in records. Each run ends with the stream removed."""

    @abstractmethod
    def consumes(self, batch: int) -> list[Way]: ...

    @abstractmethod
    def fill(self, records: Sequence[bytes]) -> None:
        """Make the stream that ``consumes`` reads anew, of these records."""

    # Not abstract: who has no such client (``blocking`` or ``asynchronous`` says so) is not asked,
    # and has nothing to say here. To ask all the same is an error of the comparison.

    def one(self) -> AbstractContextManager[Once]:
        """A client of its own, for threads and processes; asked only of who is ``blocking``."""
        raise NotImplementedError(f"{self.name} has no blocking client here")

    def many(self, in_flight: int) -> AbstractAsyncContextManager[OnceAsync]:
        """A client for so many tasks at once; asked only of who is ``asynchronous``."""
        raise NotImplementedError(f"{self.name} has no asynchronous client here")

    def seconds(self) -> float:
        """Processor seconds that its server used so far."""
        return sum(map(used, self.pids))

    def __enter__(self) -> Self:
        try:
            self._start()
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(self, *exception: object) -> None:
        # A client whose server is gone may say so; all that is left is ended nevertheless.
        with contextlib.suppress(Exception):
            self._stack.close()


def by_key_range(client: str, batch: int, consume: Callable[[int, int], float]) -> list[Way]:
    """How a queue table is read; ``consume(count, batch)``: seconds."""
    return [
        Way(
            f"{client}key range, LIMIT {size:,}, the cursor in the same transaction",
            lambda count, size=size: consume(count, size),
            "–", f"{size:,}", f"{size:,}", equal=size == batch,
        )
        for size in (batch, 10 * batch)
    ]  # fmt: skip


def versions(*names: str) -> str:
    """ "redis 8.1.0, hiredis 3.5.0"; Missing, where one is not installed."""
    try:
        return ", ".join(f"{name} {metadata.version(name)}" for name in names)
    except metadata.PackageNotFoundError as error:
        raise Missing(f"{error.name} is not installed: scripts/peers install") from None


def chunks(records: Sequence[bytes], batch: int) -> list[Sequence[bytes]]:
    return [records[at : at + batch] for at in range(0, len(records), batch)]

"""What do this machine, its kernel and its disk allow? Other benches print it beside theirs."""

from __future__ import annotations

import contextlib
import os
import socket
import time
from functools import partial
from typing import TYPE_CHECKING, Final, Self

import trio
from crc32c import crc32c

from rlog_client import batch

from .crowd import Crowd, Gate
from .harness import Bench, Case, Goal, case, per_second, percentiles, values
from .machine import MIB

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

REQUEST_BYTES: Final = 300  # about what one append of 100 bytes is on the wire, and in a frame
FILE_BYTES: Final = 64 * MIB
# Rows that others have goals by. rlog's journal syncs about once a MiB under a bulk load.
LOOPBACK: Final = "limit: loopback"
FALLOCATED: Final = "limit: synced write, fallocated, by MiB"
LARGE: Final = 4  # MiB, of a sync that is larger than any of rlog's
_PAGE: Final = 4096
_SECONDS: Final = 60.0


@contextlib.contextmanager
def serving(serve: Callable[[socket.socket], None]) -> Iterator[socket.socket]:
    """A connection to another process, which runs ``serve`` on its end until it is closed."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def work(_number: int, gate: Gate) -> None:
            gate.ready()
            with listener.accept()[0] as connection:
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                serve(connection)

        with (
            Crowd(work, 1) as crowd,
            socket.create_connection(listener.getsockname(), _SECONDS) as connection,
        ):
            crowd.go()
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            yield connection


def _echo(connection: socket.socket, before: Callable[[], object] | None = None) -> None:
    async def echo() -> None:
        connection.setblocking(False)
        while True:
            await trio.lowlevel.wait_readable(connection)
            data = connection.recv(65536)
            if not data:
                return
            if before is not None:
                before()
            connection.send(data)

    trio.run(echo)


def _sink(connection: socket.socket) -> None:
    room = memoryview(bytearray(MIB))
    while connection.recv_into(room):
        pass


class PingPong:
    """A blocking client of a trio echo server: what one request and answer cost without a log.

    ``before``: what the server does before it answers.
    """

    def __init__(self, before: Callable[[], object] | None = None) -> None:
        self._stack = contextlib.ExitStack()
        self._socket = self._stack.enter_context(serving(partial(_echo, before=before)))
        self._message = b"x" * REQUEST_BYTES

    def once(self) -> None:
        self._socket.sendall(self._message)
        left = len(self._message)
        while left:
            data = self._socket.recv(65536)
            assert data, "the echo ended"
            left -= len(data)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self._stack.close()


class Write:
    """Writes of ``size`` bytes, one behind the other, each in pages of its own.

    ``fallocated``: into ``room`` bytes that were reserved and never written; ``prepare`` makes them
    so again. Otherwise into a file that was written before, over and over. ``synced``: each.
    """

    def __init__(
        self,
        path: str,
        size: int,
        *,
        fallocated: bool = False,
        synced: bool = True,
        room: int = FILE_BYTES,
    ) -> None:
        self.size = size
        self._path = path
        self._buffer = b"x" * size
        self._step = -(-size // _PAGE) * _PAGE
        self._room = max(room, self._step) // self._step * self._step
        self._fallocated = fallocated
        self._synced = synced
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        self._at = 0
        if not fallocated:
            for at in range(0, self._room, MIB):
                os.pwrite(self._fd, bytes(min(MIB, self._room - at)), at)
            os.fsync(self._fd)

    def prepare(self) -> None:
        """What does not count."""
        self._at = 0
        if self._fallocated:
            os.ftruncate(self._fd, 0)
            os.posix_fallocate(self._fd, 0, self._room)
            os.fsync(self._fd)

    def once(self) -> None:
        if self._at == self._room:
            assert not self._fallocated, "what was reserved is written"
            self._at = 0
        os.pwrite(self._fd, self._buffer, self._at)
        if self._synced:
            os.fdatasync(self._fd)
        self._at += self._step


def each(count: int, once: Callable[[], object]) -> list[float]:
    """Seconds of each of ``count`` runs of ``once``."""
    taken = []
    for _ in range(count):
        began = time.perf_counter()
        once()
        taken.append(time.perf_counter() - began)
    return taken


def timed(
    name: str,
    count: int,
    once: Callable[[], object],
    goals: Mapping[float, Goal | None] | None = None,
) -> Case:
    """Percentiles of ``count`` runs of ``once``, p50 and p99, in µs."""
    return percentiles(name, lambda: each(count, once), goals or {0.5: None, 0.99: None})


def loopback(mib: int) -> float:
    """MiB/s through a TCP connection to another process."""
    piece = bytes(MIB)
    with serving(_sink) as connection:

        def send() -> None:
            for _ in range(mib):
                connection.sendall(piece)

        return per_second(mib, send)


def checksum(mib: int) -> float:
    """MiB/s."""
    piece = values(MIB, 1)[0]
    return per_second(mib, lambda: [crc32c(piece) for _ in range(mib)])


def pack(size: int, count: int) -> float:
    """Records/s into batches of 1 MiB, with their checksums."""
    column = values(size, MIB // size)
    runs = max(1, count // len(column))
    return per_second(runs * len(column), lambda: [batch.encode(column) for _ in range(runs)])


def unpack(size: int, count: int) -> float:
    """Records/s out of batches of 1 MiB, with their checksums."""
    column = values(size, MIB // size)
    encoded = batch.encode(column)
    header, body = batch.parse_header(encoded), memoryview(encoded)[batch.HEADER_BYTES :]
    runs = max(1, count // len(column))
    return per_second(runs * len(column), lambda: [batch.decode(header, body) for _ in range(runs)])


def writing(bench: Bench, mib: int, per_mib: float = 1.0) -> list[Case]:
    """``mib`` MiB written, recycled and fallocated, synced and not; ``per_mib``: the figure is so
    many times MiB/s.
    """
    rows = {
        "limit: synced write, recycled, by MiB": (1, False, True),
        FALLOCATED: (1, True, True),
        f"limit: synced write, fallocated, by {LARGE} MiB": (LARGE, True, True),
        "limit: write, recycled, not synced": (1, False, False),
        "limit: write, fallocated, not synced": (1, True, False),
    }

    def run(write: Write) -> float:
        count = max(1, mib * MIB // write.size)
        write.prepare()
        return per_second(count, lambda: each(count, write.once)) * write.size / MIB * per_mib

    cases = []
    for number, (name, (each_mib, fallocated, synced)) in enumerate(rows.items()):
        write = Write(
            bench.directory(f"write-{number}"),
            each_mib * MIB,
            fallocated=fallocated,
            synced=synced,
            room=max(each_mib, mib) * MIB if fallocated else FILE_BYTES,
        )
        cases.append(case(name, partial(run, write)))
    return cases


def appending(bench: Bench, size: int, mib: int) -> list[Case]:
    """The limits of appending ``mib`` MiB of records of ``size`` bytes in bulk."""
    return [
        case(f"limit: pack {size} B", lambda: pack(size, mib * MIB // size)),
        case(LOOPBACK, lambda: loopback(mib) * MIB / size),
        case(f"limit: CRC32C of {size} B", lambda: checksum(mib) * MIB / size),
        *writing(bench, mib, MIB / size),
    ]


def consuming(size: int, mib: int) -> list[Case]:
    """The limits of consuming ``mib`` MiB of records of ``size`` bytes in bulk."""
    return [
        case(LOOPBACK, lambda: loopback(mib) * MIB / size),
        case(f"limit: CRC32C of {size} B", lambda: checksum(mib) * MIB / size),
        case(f"limit: unpack {size} B", lambda: unpack(size, mib * MIB // size)),
    ]


def measure(bench: Bench, mib: int, count: int) -> None:
    """All of them: ``mib`` MiB of each bulk row, ``count`` of each that is timed one by one."""
    small = Write(bench.directory("small"), REQUEST_BYTES)
    pages = Write(bench.directory("pages"), 2 * _PAGE)
    large = Write(bench.directory("large"), MIB)
    fresh = Write(bench.directory("fresh"), _PAGE, fallocated=True, room=count * _PAGE)

    def allocated() -> list[float]:
        fresh.prepare()
        return each(count, fresh.once)

    with PingPong() as ping:
        bench.run(
            "limits, one at a time",
            "µs",
            [
                timed("limit: ping-pong of 300 B against a trio echo", count, ping.once),
                timed("limit: synced write of 300 B, recycled", count, small.once),
                timed("limit: synced write of 8 KiB, recycled", count, pages.once),
                timed("limit: synced write of 1 MiB, recycled", count, large.once),
                percentiles(
                    "limit: synced write of 4 KiB, fallocated", allocated, {0.5: None, 0.99: None}
                ),
            ],
        )
    bench.run(
        "limits, bytes",
        "MiB/s",
        [
            case("limit: loopback TCP between two processes", lambda: loopback(4 * mib)),
            *writing(bench, mib),
            case("limit: CRC32C", lambda: checksum(4 * mib)),
        ],
    )
    bench.run(
        "limits, records in batches of 1 MiB, checksums included",
        "records/s",
        [
            case(f"limit: {name} {size} B", partial(work, size, mib * MIB // 256))
            for size in (100, 1024)
            for name, work in (("pack", pack), ("unpack", unpack))
        ],
    )


def main() -> None:
    options = (("mib", 128, "of one row"), ("count", 500, "of what is timed one by one"))
    with Bench("What do this machine, its kernel and its disk allow?", 5, *options) as bench:
        measure(bench, bench.options.mib, bench.options.count)


if __name__ == "__main__":
    main()

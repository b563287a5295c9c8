"""What do this machine, its kernel and its disk allow? Other benches print it beside theirs."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import socket
import time
from functools import partial
from typing import TYPE_CHECKING, Final

import trio
from crc32c import crc32c

from rlog_client import batch

from .harness import MIB, Bench, Case, percentiles, rate, values

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

REQUEST_BYTES: Final = 300  # about what one append of 100 bytes is on the wire, and in a frame
FILE_BYTES: Final = 64 * MIB
# Rows that others have goals by.
LOOPBACK: Final = "limit: loopback"
FALLOCATED: Final = "limit: synced write, fallocated, by MiB"
_PAGE: Final = 4096


@contextlib.contextmanager
def _child(serve: Callable[[socket.socket], None]) -> Iterator[socket.socket]:
    """A connection to another process, which runs ``serve`` on its end."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        child = multiprocessing.get_context("fork").Process(target=serve, args=(listener,))
        child.start()
        try:
            with socket.create_connection(listener.getsockname()) as connection:
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                yield connection
            child.join(10.0)
        finally:
            child.kill()
            child.join()


def _echo(listener: socket.socket, before: Callable[[], object] | None = None) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)

    async def echo() -> None:
        with listener.accept()[0] as connection:
            connection.setblocking(False)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            while True:
                await trio.lowlevel.wait_readable(connection)
                data = connection.recv(65536)
                if not data:
                    return
                if before is not None:
                    before()
                connection.send(data)

    trio.run(echo)


def _sink(listener: socket.socket) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    with listener.accept()[0] as connection:
        room = memoryview(bytearray(MIB))
        while connection.recv_into(room):
            pass


class PingPong:
    """A blocking client of a trio echo server: the least that one request and answer cost.

    ``before``: what the server does before it answers.
    """

    def __init__(self, before: Callable[[], object] | None = None) -> None:
        self._stack = contextlib.ExitStack()
        self._socket = self._stack.enter_context(_child(partial(_echo, before=before)))
        self._message = b"x" * REQUEST_BYTES

    def once(self) -> None:
        self._socket.sendall(self._message)
        got = 0
        while got < len(self._message):
            got += len(self._socket.recv(65536))

    def close(self) -> None:
        self._stack.close()


class SyncedWrite:
    """Writes into a file that was written before, each in pages of its own, each synced."""

    def __init__(self, path: str, size: int) -> None:
        self._buffer = b"x" * size
        self._step = -(-size // _PAGE) * _PAGE
        self._at = 0
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        for at in range(0, FILE_BYTES, MIB):
            os.pwrite(self._fd, bytes(MIB), at)
        os.fsync(self._fd)

    def once(self) -> None:
        os.pwritev(self._fd, [self._buffer], self._at)
        os.fdatasync(self._fd)
        self._at = (self._at + self._step) % FILE_BYTES

    def close(self) -> None:
        os.close(self._fd)


class FallocatedWrite:
    """Writes, each synced, one behind the other into a new file whose space was reserved but never
    written; when it is full, into another one.
    """

    def __init__(self, path: str, size: int) -> None:
        self._path = path
        self._buffer = b"x" * size
        self._fd = -1
        self._begin()

    def _begin(self) -> None:
        self._fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600)
        os.posix_fallocate(self._fd, 0, FILE_BYTES)
        os.fsync(self._fd)
        self._at = 0

    def once(self) -> None:
        if self._at + len(self._buffer) > FILE_BYTES:
            self.close()
            self._begin()
        os.pwrite(self._fd, self._buffer, self._at)
        os.fdatasync(self._fd)
        self._at += len(self._buffer)

    def close(self) -> None:
        os.close(self._fd)


def times(count: int, once: Callable[[], object]) -> list[float]:
    """Seconds of each of ``count`` runs of ``once``."""
    taken = []
    for _ in range(count):
        began = time.perf_counter()
        once()
        taken.append(time.perf_counter() - began)
    return taken


def loopback(mib: int = 512) -> float:
    """MiB/s through a TCP connection to another process."""
    piece = bytes(MIB)
    with _child(_sink) as connection:

        def send() -> None:
            for _ in range(mib):
                connection.sendall(piece)

        return rate(mib, send)


def checksum(mib: int = 512) -> float:
    piece = values(MIB, 1)[0]
    return rate(mib, lambda: [crc32c(piece) for _ in range(mib)])


def pack(size: int = 100, count: int = 500_000) -> float:
    """Records/s into batches of 1 MiB, with their checksums."""
    column = values(size, MIB // size)
    runs = max(1, count // len(column))
    return rate(runs * len(column), lambda: [batch.encode(column) for _ in range(runs)])


def unpack(size: int = 100, count: int = 500_000) -> float:
    """Records/s out of batches of 1 MiB, with their checksums."""
    column = values(size, MIB // size)
    encoded = batch.encode(column)
    header, body = batch.parse_header(encoded), memoryview(encoded)[batch.HEADER_BYTES :]
    runs = max(1, count // len(column))
    return rate(runs * len(column), lambda: [batch.decode(header, body) for _ in range(runs)])


def appending(bench: Bench, size: int, mib: int) -> list[Case]:
    """The limits of appending ``mib`` MiB of records of ``size`` bytes in bulk."""
    large = SyncedWrite(bench.directory("limit"), MIB)
    fresh = FallocatedWrite(bench.directory("fresh"), MIB)
    return [
        Case(f"limit: pack {size} B", lambda: pack(size, mib * MIB // size)),
        Case(LOOPBACK, lambda: loopback(mib) * MIB / size),
        Case(f"limit: CRC32C of {size} B", lambda: checksum(mib) * MIB / size),
        Case("limit: synced write, recycled, by MiB", lambda: _bulk(large, mib) * MIB / size),
        Case(FALLOCATED, lambda: _bulk(fresh, mib) * MIB / size),
    ]


def consuming(size: int, mib: int) -> list[Case]:
    """The limits of consuming ``mib`` MiB of records of ``size`` bytes in bulk."""
    return [
        Case(LOOPBACK, lambda: loopback(mib) * MIB / size),
        Case(f"limit: CRC32C of {size} B", lambda: checksum(mib) * MIB / size),
        Case(f"limit: unpack {size} B", lambda: unpack(size, mib * MIB // size)),
    ]


def _bulk(write: SyncedWrite | FallocatedWrite, mib: int = 128) -> float:
    """MiB/s of synced writes of 1 MiB each."""
    return rate(mib, lambda: times(mib, write.once))


def main() -> None:
    with Bench("What do this machine, its kernel and its disk allow?", 5) as bench:
        ping = PingPong()
        small = SyncedWrite(bench.directory("small"), REQUEST_BYTES)
        pages = SyncedWrite(bench.directory("pages"), 2 * _PAGE)
        large = SyncedWrite(bench.directory("large"), MIB)
        fresh = FallocatedWrite(bench.directory("fresh"), MIB)

        def taking(name: str, once: Callable[[], object]) -> list[Case]:
            return percentiles(name, lambda: times(500, once), {0.5: None, 0.99: None})

        bench.run(
            "one at a time",
            "µs",
            [
                *taking("ping-pong of 300 B against a trio echo", ping.once),
                *taking("synced write of 300 B, recycled", small.once),
                *taking("synced write of 8 KiB, recycled", pages.once),
                *taking("synced write of 1 MiB, recycled", large.once),
                *taking("synced write of 1 MiB, fallocated", fresh.once),
            ],
        )
        bench.run(
            "bytes",
            "MiB/s",
            [
                Case("loopback TCP between two processes", loopback),
                Case("synced writes of 1 MiB, recycled", lambda: _bulk(large)),
                Case("synced writes of 1 MiB, fallocated", lambda: _bulk(fresh)),
                Case("CRC32C", checksum),
            ],
        )
        bench.run(
            "records in batches of 1 MiB, checksums included",
            "records/s",
            [
                Case("pack 100 B", pack),
                Case("unpack 100 B", unpack),
                Case("pack 1 KiB", lambda: pack(1024)),
                Case("unpack 1 KiB", lambda: unpack(1024)),
            ],
        )
        ping.close()


if __name__ == "__main__":
    main()

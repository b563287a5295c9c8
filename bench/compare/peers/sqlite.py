"""SQLite as a queue file, in the program's own process: no server, no socket.

Two clients: persist-queue's SQLiteQueue, which commits every record by itself, in threads of one
process (every put and every task_done; it has no call for many); and what is fastest from Python,
the standard library's sqlite3, ``executemany`` of many rows a transaction. Both in WAL mode.
``SYNCED`` is ``synchronous=FULL``: each commit calls ``fdatasync`` on the write-ahead log.
``LATER`` is ``NORMAL``: synced at checkpoints only; persist-queue has no option for it.
"""

from __future__ import annotations

import contextlib
import sqlite3
import time
from typing import TYPE_CHECKING, Any, ClassVar, Final

from ...harness import seconds_of
from .peer import LATER, SYNCED, Peer, Way, by_key_range, chunks, versions

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from .peer import Once

SYNCHRONOUS: Final = {SYNCED: "FULL", LATER: "NORMAL"}


class SQLite(Peer):
    name = "SQLite file"
    means: ClassVar = {each: f"WAL, synchronous {how}" for each, how in SYNCHRONOUS.items()}
    asynchronous = False
    processes = False  # persist-queue is for the threads of one
    shares_syncs = False

    @classmethod
    def check(cls) -> None:
        versions("persist-queue")

    def _start(self) -> None:
        directory = self._directory
        directory.mkdir()
        self.server = "no server"
        self.client = f"sqlite3 {sqlite3.sqlite_version}, {versions('persist-queue')}"
        self._connection = self._stack.enter_context(contextlib.closing(self._open()))
        self._connection.execute("PRAGMA journal_mode=WAL")
        self._connection.execute(f"PRAGMA synchronous={SYNCHRONOUS[self._durability]}")
        for name in ("bulk", "stored"):
            self._connection.execute(f"CREATE TABLE {name} (id INTEGER PRIMARY KEY, value BLOB)")
        self._connection.execute("CREATE TABLE cursors (name TEXT PRIMARY KEY, id INTEGER)")
        if self._durability == SYNCED:
            self._one = self._stack.enter_context(contextlib.closing(self._queue("one")))

    def _open(self) -> sqlite3.Connection:
        return sqlite3.connect(self._directory / "queue.db", isolation_level=None)

    # --- many at a time -----------------------------------------------------------------------

    def appends(self, batch: int) -> list[Way]:
        ways = [
            Way(
                f"sqlite3, `executemany` of {size:,}, a transaction each",
                lambda records, size=size: self._append(records, size),
                f"{size:,}", f"{size:,}", equal=size == batch,
            )
            for size in (batch, 10 * batch)
        ]  # fmt: skip
        if self._durability == SYNCED:
            ways.append(Way("persist-queue, `put`", self._put, "1", "1"))
        return ways

    def _append(self, records: Sequence[bytes], batch: int) -> float:
        seconds = seconds_of(lambda: self._insert("bulk", records, batch))
        self._connection.execute("DELETE FROM bulk")
        return seconds

    def _insert(self, table: str, records: Sequence[bytes], batch: int) -> None:
        statement = f"INSERT INTO {table} (value) VALUES (?)"
        for some in chunks(records, batch):
            self._connection.execute("BEGIN")
            self._connection.executemany(statement, ((record,) for record in some))
            self._connection.execute("COMMIT")

    def _queue(self, name: str) -> Any:
        from persistqueue import SQLiteQueue

        return SQLiteQueue(str(self._directory / name), multithreading=True)

    def _put(self, records: Sequence[bytes]) -> float:
        with contextlib.closing(self._queue(f"put-{time.monotonic_ns()}")) as queue:
            return seconds_of(lambda: [queue.put(record) for record in records])

    def fill(self, records: Sequence[bytes]) -> None:
        self._connection.execute("DELETE FROM stored")
        self._insert("stored", records, 10_000)

    def consumes(self, batch: int) -> list[Way]:
        return by_key_range("sqlite3, ", batch, self._consume)

    def _consume(self, count: int, batch: int) -> float:
        connection = self._connection
        connection.execute("INSERT INTO cursors VALUES ('bench', 0)")
        read = "SELECT id, value FROM stored WHERE id > ? ORDER BY id LIMIT ?"
        seen = size = at = 0
        began = time.perf_counter()
        while seen < count:
            connection.execute("BEGIN")
            for id_, value in connection.execute(read, (at, batch)):
                size += len(value)
                at = id_
                seen += 1
            connection.execute("UPDATE cursors SET id = ? WHERE name = 'bench'", (at,))
            connection.execute("COMMIT")
        seconds = time.perf_counter() - began
        connection.execute("DELETE FROM cursors")
        return seconds

    # --- one at a time ------------------------------------------------------------------------

    @contextlib.contextmanager
    def one(self) -> Iterator[Once]:
        """persist-queue's, which threads share, as its documentation has it."""
        yield self._one.put

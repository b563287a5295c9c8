"""PostgreSQL with a table as the queue, by psycopg.

``SYNCED`` is ``synchronous_commit=on``: a commit returns when the write-ahead log was synced
(``fdatasync``), for all transactions that were waiting at that moment. ``LATER`` is ``off``: the
log's writer syncs it within 0.6 s. Values are not compressed.

Fastest documented ways: binary COPY, a transaction each; single INSERTs, prepared, in autocommit.
The consumer reads by key range from a cursor that is a row of another table, and moves it in the
same transaction. (With one consumer, that is as safe as SKIP LOCKED, which would have to write
every row; with several producers a key can become visible behind a larger one, which a real queue
has to heed, and this bench has not to.)
"""

from __future__ import annotations

import contextlib
import signal
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Final

import psycopg

from ...harness import seconds_of
from ...server import Daemon, free_port
from .peer import LATER, SYNCED, Missing, Peer, Way, by_key_range, chunks, versions

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator, Sequence

    from .peer import Once, OnceAsync

_SCRIPT: Final = Path(__file__).resolve().parents[3] / "scripts" / "postgres"
_CONNECTIONS: Final = 300
COMMIT: Final = {SYNCED: "on", LATER: "off"}
BULK: Final = "bulk"
STORED: Final = "stored"
ONE: Final = "one"
_TABLE: Final = """
CREATE TABLE {name} (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, value bytea NOT NULL)
WITH (autovacuum_enabled = off);
ALTER TABLE {name} ALTER COLUMN value SET STORAGE EXTERNAL;
"""


class Postgres(Peer):
    name = "PostgreSQL table"
    means: ClassVar = {each: f"synchronous_commit {commit}" for each, commit in COMMIT.items()}

    @classmethod
    def check(cls) -> None:
        found = subprocess.run([_SCRIPT, "which"], capture_output=True, text=True)
        if found.returncode:
            raise Missing(found.stderr.strip())

    def _start(self) -> None:
        directory = self._directory
        directory.mkdir()
        port = free_port()
        settings = [
            "listen_addresses=127.0.0.1", f"port={port}", f"max_connections={_CONNECTIONS}",
            f"synchronous_commit={COMMIT[self._durability]}", "shared_buffers=512MB",
            "max_wal_size=4GB",
        ]  # fmt: skip
        # Its user has to get at a directory below one that is private to us.
        for parent in (directory, *directory.parents[:1]):
            parent.chmod(0o755)
        daemon = Daemon([_SCRIPT, "serve", directory, *settings], directory, stop=signal.SIGINT)
        self._daemon = self._stack.enter_context(daemon)
        self._where: dict[str, Any] = {
            "host": "127.0.0.1", "port": port, "user": "postgres", "autocommit": True
        }  # fmt: skip
        daemon.wait_for(self._connect_once, psycopg.OperationalError)
        self.client = versions("psycopg", "psycopg-binary").partition(",")[0] + ", binary"
        connection = psycopg.connect(**self._where)
        self._connection = self._stack.enter_context(contextlib.closing(connection))
        version, minor = divmod(connection.info.server_version, 10_000)
        self.server = f"PostgreSQL {version}.{minor}"
        for name in (BULK, STORED, ONE):
            self._connection.execute(_TABLE.format(name=name))
        self._connection.execute("CREATE TABLE cursors (name text PRIMARY KEY, id bigint)")

    def _connect_once(self) -> None:
        psycopg.connect(**self._where).close()

    # --- many at a time -----------------------------------------------------------------------

    def appends(self, batch: int) -> list[Way]:
        return [
            Way(
                f"COPY of {size:,}, a transaction each",
                lambda records, size=size: self._append(records, size),
                f"{size:,}", f"{size:,}", equal=size == batch,
            )
            for size in (batch, 10 * batch)
        ]  # fmt: skip

    def _append(self, records: Sequence[bytes], batch: int) -> float:
        seconds = seconds_of(lambda: self._copy(BULK, records, batch))
        self._connection.execute("TRUNCATE bulk")
        return seconds

    def _copy(self, table: str, records: Sequence[bytes], batch: int) -> None:
        statement = f"COPY {table} (value) FROM STDIN (FORMAT binary)"
        with self._connection.cursor() as cursor:
            for some in chunks(records, batch):
                with cursor.copy(statement) as copy:
                    copy.set_types(["bytea"])
                    for record in some:
                        copy.write_row((record,))

    def fill(self, records: Sequence[bytes]) -> None:
        self._connection.execute("TRUNCATE stored RESTART IDENTITY")
        self._copy(STORED, records, 10_000)
        self._connection.execute("ANALYZE stored")

    def consumes(self, batch: int) -> list[Way]:
        return by_key_range("", batch, self._consume)

    def _consume(self, count: int, batch: int) -> float:
        connection = self._connection
        connection.execute("INSERT INTO cursors VALUES ('bench', 0)")
        read = "SELECT id, value FROM stored WHERE id > %s ORDER BY id LIMIT %s"
        seen = size = at = 0
        with connection.cursor(binary=True) as cursor:
            began = time.perf_counter()
            while seen < count:
                with connection.transaction():
                    rows = cursor.execute(read, (at, batch)).fetchall()
                    for _id, value in rows:
                        size += len(value)
                    at = rows[-1][0]
                    seen += len(rows)
                    cursor.execute("UPDATE cursors SET id = %s WHERE name = 'bench'", (at,))
            seconds = time.perf_counter() - began
        connection.execute("DELETE FROM cursors")
        return seconds

    # --- one at a time ------------------------------------------------------------------------

    @contextlib.contextmanager
    def one(self) -> Iterator[Once]:
        with psycopg.connect(**self._where) as connection, connection.cursor() as cursor:
            insert = "INSERT INTO one (value) VALUES (%b)"
            yield lambda record: cursor.execute(insert, (record,), prepare=True)

    @contextlib.asynccontextmanager
    async def many(self, in_flight: int) -> AsyncIterator[OnceAsync]:
        """A connection each, as many as tasks: a connection does one statement at a time."""
        async with contextlib.AsyncExitStack() as stack:
            free = []
            for _ in range(in_flight):
                connection = await psycopg.AsyncConnection.connect(**self._where)
                free.append(await stack.enter_async_context(connection))

            async def insert(record: bytes) -> None:
                connection = free.pop()
                try:
                    statement = "INSERT INTO one (value) VALUES (%b)"
                    await connection.execute(statement, (record,), prepare=True)
                finally:
                    free.append(connection)

            yield insert

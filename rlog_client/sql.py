"""Exactly once into a database of one's own: rows and offset change in the same transaction.

    from rlog_client.sql import SqlCursor

    cursor = SqlCursor(connection, "etl", log)
    for record in log.reader(cursor.whence()):
        with connection:  # one transaction: both, or neither (psycopg: connection.transaction())
            connection.execute("INSERT INTO orders VALUES (?)", (record.value,))
            cursor.advance(record)

``connection``: of sqlite3, psycopg or psycopg2, none of which is imported here. The offset lies
beside the rows, in a table that is made with the first of them, in the same transaction:

    rlog_cursor
      name, log            the cursor's and the log's (the key): any number of them share the table
      log_id               the log's id: one that was deleted and made again has another
      last_offset          of the last record whose rows are in the database
      last_timestamp_ns    when the server appended it (UTC)

The row is only ever changed from what this cursor knows to be there. So of two processes with one
name, one is Fenced, whenever they meet; and so is one whose work was rolled back and who goes on
as if it had not been.
"""

from __future__ import annotations

import logging
import sys
from contextlib import closing
from typing import TYPE_CHECKING, Any, ClassVar, Final, NamedTuple

from .client import Log
from .errors import Conflict, CorruptData, Fenced, InvalidRequest, OffsetOutOfRange
from .model import OLDEST, Record, check_consumer, offset

if TYPE_CHECKING:
    from .model import Whence

_logger = logging.getLogger("rlog_client")

# "?" stands for a parameter, in whatever style the driver has it.
_CREATE: Final = """CREATE TABLE IF NOT EXISTS rlog_cursor (
    name TEXT NOT NULL,
    log TEXT NOT NULL,
    log_id BIGINT NOT NULL,
    last_offset BIGINT NOT NULL,
    last_timestamp_ns BIGINT NOT NULL,
    PRIMARY KEY (name, log)
)"""
_SELECT: Final = """SELECT log_id, last_offset, last_timestamp_ns
FROM rlog_cursor WHERE name = ? AND log = ?"""
# Of two first inserts the second waits for the first, and then inserts nothing.
_INSERT: Final = """INSERT INTO rlog_cursor (name, log, log_id, last_offset, last_timestamp_ns)
VALUES (?, ?, ?, ?, ?) ON CONFLICT (name, log) DO NOTHING"""
_UPDATE: Final = """UPDATE rlog_cursor SET last_offset = ?, last_timestamp_ns = ?
WHERE name = ? AND log = ? AND log_id = ? AND last_offset = ? AND last_timestamp_ns = ?"""


class _Mark(NamedTuple):
    """What the row says: the last record whose rows are in the database."""

    log_id: int
    offset: int
    timestamp_ns: int


class SqlCursor:
    """Where a program stands in a log, kept in its own database. For one connection and thread.

    Roll back whenever ``advance`` raises, or anything else does: then ``whence`` tells where to go
    on. The connection's transactions stay the caller's: they are begun, committed and rolled back
    by nobody else.
    """

    def __init__(self, connection: Any, name: str, log: Log) -> None:
        """``connection``: of sqlite3, psycopg or psycopg2. ``name``: like a consumer ID; with the
        log's name it is the key of the row.

        InvalidRequest: no such name. TypeError: any other connection, or an async one.
        """
        if not isinstance(name, str):
            raise TypeError(f"a cursor's name is a str, not {type(name).__name__}")
        check_consumer(name, "a cursor's name")
        if not isinstance(log, Log):
            raise TypeError(f"the log is a Log of the blocking client, not {type(log).__name__}")
        self._database = _database(connection)
        self._name = name
        self._log = log
        self._mark: _Mark | None = None
        self._read = False  # whether _mark is what whence() read, and advance() made of it

    def whence(self) -> Whence:
        """Where to read on: after the last record that was advanced to, or OLDEST.

        What the database says now: to be called at the beginning, and after every rollback, and
        the log to be read from there. Inside a transaction it is a part of it (with sqlite3's
        ``autocommit=False`` there is always one: end it before waiting for records); outside, it
        leaves none behind.

        Conflict: the log is not the one that was read before. It was deleted and made again, or
        put back from a backup, or lost its end in a power cut under the sync policy ``never``.
        A last record that retention has taken cannot be compared, only the log's id can; if more
        is gone, the reader raises OffsetOutOfRange. NotFound: the log was deleted.
        """
        self._read = False
        mark = self._stored()
        if mark is not None:
            self._compare(mark)
        self._mark, self._read = mark, True
        return OLDEST if mark is None else offset(mark.offset + 1)

    def advance(self, record: Record) -> None:
        """Let everything up to ``record`` count as done, once the transaction is committed.

        It belongs to the transaction that is open, or begins it, as the rows do. Any record after
        the last one will do: once per batch is enough, and records may be left out.

        Fenced: the row is not what this cursor left there: another process has the same name, or
        this cursor was rolled back and ``whence`` not called since. Roll back, or rows are doubled.
        InvalidRequest: the record is of another log, or not after the last one. RuntimeError:
        ``whence`` was not called; the connection commits each statement by itself, and no
        transaction is open; or it is in psycopg's pipeline mode.
        """
        mark = self._checked(record)
        try:
            changed = self._insert(mark) if self._mark is None else self._update(mark, self._mark)
        except Exception as error:
            if not self._database.overtaken(error):
                raise
            raise self._fenced() from error
        if changed != 1:
            raise self._fenced()
        self._mark = mark

    def _checked(self, record: Record) -> _Mark:
        if not isinstance(record, Record):
            raise TypeError(f"a cursor advances to a Record, not {type(record).__name__}")
        if not self._read:
            raise RuntimeError("read from where whence() says, then advance")
        if record.log != self._log.name:
            raise InvalidRequest(f"{self}: the record is of log {record.log}")
        if self._mark is not None and record.offset <= self._mark.offset:
            raise InvalidRequest(
                f"{self}: offset {record.offset} is not after {self._mark.offset}, the last one; "
                "after a rollback, begin again from whence()"
            )
        if self._database.commits_each:
            raise RuntimeError(
                "this connection commits each statement by itself: begin a transaction, so that "
                "rows and offset are committed together"
            )
        return _Mark(self._log._id, record.offset, record.timestamp_ns)

    def _stored(self) -> _Mark | None:
        database = self._database
        ours = not database.in_transaction
        try:
            if not database.has_table():
                return None
            _, rows = database.execute(_SELECT, self._name, self._log.name)
        finally:
            if ours and database.in_transaction:
                # Begun by the driver for our reading alone. Left open, it would hold a snapshot
                # and locks for as long as the reader waits for records.
                database.connection.rollback()
        return _Mark(*rows[0]) if rows else None

    def _compare(self, mark: _Mark) -> None:
        """Raise Conflict unless ``mark`` is of this log's past."""
        found_ns = self._timestamp_now(mark)
        info = self._log.info()  # after that: what retention took meanwhile is below its first
        if info.id != mark.log_id:
            text = "the log was deleted, and made again, since it was read"
        elif found_ns is None and mark.offset >= info.first:
            text = f"it was read up to offset {mark.offset}, and now the log ends at {info.end}"
        elif found_ns is not None and found_ns != mark.timestamp_ns:
            text = f"there is another record at offset {mark.offset} than the one that was read"
        else:
            return
        raise Conflict(f"{self}: {text}", end=info.end)

    def _timestamp_now(self, mark: _Mark) -> int | None:
        """Of the record at the mark's offset; None where there is none."""
        place, end = offset(mark.offset), offset(mark.offset + 1)
        try:
            with self._log.reader(place, until=end, block=False) as reader:
                record = next(reader, None)
        except OffsetOutOfRange:
            return None
        except CorruptData as error:
            # It is done with. To refuse to go on would cost more than what the comparison proves.
            _logger.warning("%s: cannot tell whether the log is the same: %s", self, error)
            return mark.timestamp_ns
        return None if record is None else record.timestamp_ns

    def _insert(self, mark: _Mark) -> int:
        database = self._database
        if not database.has_table():
            database.make_table()
        return database.execute(_INSERT, self._name, self._log.name, *mark)[0]

    def _update(self, mark: _Mark, known: _Mark) -> int:
        changes = (mark.offset, mark.timestamp_ns)
        return self._database.execute(_UPDATE, *changes, self._name, self._log.name, *known)[0]

    def _fenced(self) -> Fenced:
        return Fenced(
            f"{self}: another process has moved it, or a rollback has; "
            "roll back, and begin again from whence()",
            epoch=0,
        )

    def __repr__(self) -> str:
        return f"<rlog_client.sql.SqlCursor {self._name!r} of log {self._log.name}>"


class _Sqlite:
    """What PEP 249 does not say, for sqlite3."""

    _PARAMETER: ClassVar[str] = "?"
    _HAS_TABLE: ClassVar[str] = "SELECT count(*) FROM sqlite_master WHERE name = 'rlog_cursor'"

    def __init__(self, connection: Any, module: Any) -> None:
        self.connection = connection
        self._module = module

    def execute(self, statement: str, *parameters: object) -> tuple[int, list[tuple[Any, ...]]]:
        """-> how many rows were changed, and the rows that were read."""
        with closing(self._cursor()) as cursor:
            cursor.execute(statement.replace("?", self._PARAMETER), parameters)
            # All of them: half-read, a statement of sqlite3 holds its lock.
            return cursor.rowcount, [] if cursor.description is None else cursor.fetchall()

    def has_table(self) -> bool:
        return bool(self.execute(self._HAS_TABLE)[1][0][0])

    def make_table(self) -> None:
        self.execute(_CREATE)

    @property
    def in_transaction(self) -> bool:
        return bool(self.connection.in_transaction)

    @property
    def commits_each(self) -> bool:
        """A statement now would be committed by itself."""
        connection = self.connection
        alone = connection.isolation_level is None or getattr(connection, "autocommit", 0) is True
        return alone and not connection.in_transaction

    def overtaken(self, error: Exception) -> bool:
        """Whether this says that the row is not what the cursor left there."""
        # SQLITE_BUSY does not: it tells that somebody wrote something. But the table may have been
        # made in a transaction that was rolled back.
        return str(error) == "no such table: rlog_cursor"

    def _cursor(self) -> Any:
        # Not connection.cursor(), whose rows can be anything: these are tuples.
        return self._module.Cursor(self.connection)


class _Psycopg(_Sqlite):
    """The same for psycopg."""

    _PARAMETER = "%s"
    _HAS_TABLE = "SELECT to_regclass('rlog_cursor') IS NOT NULL"

    def make_table(self) -> None:
        # Two at once would both see no table, and IF NOT EXISTS does not save the second one.
        self.execute("SELECT pg_advisory_xact_lock(?)", int.from_bytes(b"rlog_cur"))
        super().make_table()

    @property
    def in_transaction(self) -> bool:
        return self._status in (1, 2, 3)  # ACTIVE, INTRANS, INERROR

    @property
    def commits_each(self) -> bool:
        return bool(self.connection.autocommit) and self._status == 0  # IDLE

    @property
    def _status(self) -> int:
        """A PQTransactionStatus; of a connection that is lost, 4."""
        return int(self.connection.info.transaction_status)

    def overtaken(self, error: Exception) -> bool:
        diag = getattr(error, "diag", None)
        if diag is None:
            return False
        if diag.sqlstate == "42P01":  # undefined table: as above
            return True
        # From REPEATABLE READ on, this is how an UPDATE or INSERT meets a row that was changed by
        # a transaction it cannot see. A serialization failure from another file of the server is
        # not about our row, but about the caller's statements, and the same may succeed later.
        return bool(diag.sqlstate == "40001" and diag.source_file == "nodeModifyTable.c")

    def _cursor(self) -> Any:
        if self.connection.pgconn.pipeline_status:
            # There, whether the row was changed is known only when it is too late to refuse.
            raise RuntimeError("a SqlCursor needs its answers: use it outside of the pipeline")
        return self._module.Cursor(self.connection, row_factory=self._module.rows.tuple_row)


class _Psycopg2(_Psycopg):
    def _cursor(self) -> Any:
        return self._module.cursor(self.connection)


_DRIVERS: Final = (
    ("sqlite3", "Connection", _Sqlite),
    ("psycopg", "Connection", _Psycopg),
    ("psycopg2.extensions", "connection", _Psycopg2),
)


def _database(connection: object) -> _Sqlite:
    for name, cls, database in _DRIVERS:
        # Whoever has a connection has loaded its driver.
        module = sys.modules.get(name)
        if module is not None and isinstance(connection, getattr(module, cls)):
            return database(connection, module)
    cls = f"{type(connection).__module__}.{type(connection).__qualname__}"
    raise TypeError(f"a blocking connection of sqlite3, psycopg or psycopg2 is needed, not {cls}")

"""The databases that rows go into, and a PostgreSQL of one's own: what differs is here."""

from __future__ import annotations

import importlib
import os
import signal
import sqlite3
import subprocess
import tempfile
from abc import ABC, abstractmethod
from contextlib import closing
from pathlib import Path
from typing import Any, ClassVar, Final, Self

import psycopg

from tests.e2e.serving import ROOT, eventually

UNAVAILABLE: Final = 69  # the exit code of scripts/postgres where there is none


class Database(ABC):
    """One with no table in it. ``url`` opens it from another process, by ``open_database``."""

    parameter: ClassVar[str] = "%s"
    serial: ClassVar[str] = "SERIAL PRIMARY KEY"
    binary: ClassVar[str] = "BYTEA"
    url: str

    @abstractmethod
    def connect(self) -> Any:
        """A connection as its driver makes them unless told otherwise."""

    @abstractmethod
    def autocommitting(self) -> Any:
        """A connection that commits each statement by itself."""

    @abstractmethod
    def in_transaction(self, connection: Any) -> bool: ...

    def execute(self, connection: Any, statement: str, *parameters: Any) -> list[Any]:
        with closing(connection.cursor()) as cursor:
            cursor.execute(statement.replace("?", self.parameter), parameters)
            return [] if cursor.description is None else list(cursor.fetchall())

    def look(self, statement: str, *parameters: Any) -> list[Any]:
        """What others see of it."""
        with closing(self.autocommitting()) as connection:
            return self.execute(connection, statement, *parameters)


class Sqlite(Database):
    parameter = "?"
    serial = "INTEGER PRIMARY KEY AUTOINCREMENT"
    binary = "BLOB"

    def __init__(self, path: str) -> None:
        self.url = f"sqlite:{path}"
        self._path = path

    def connect(self, **options: Any) -> sqlite3.Connection:
        # A thread of a test may end what the test began.
        options = {"timeout": 30.0, "check_same_thread": False} | options
        return sqlite3.connect(self._path, **options)

    def autocommitting(self) -> sqlite3.Connection:
        return self.connect(isolation_level=None)

    def in_transaction(self, connection: Any) -> bool:
        return bool(connection.in_transaction)


class Psycopg(Database):
    """One schema of the cluster whose socket is in ``host``."""

    def __init__(self, host: str, schema: str) -> None:
        self.url = f"{type(self).__name__.lower()}:{host}:{schema}"
        self._options = f"host={host} user=postgres dbname=postgres options=-csearch_path={schema}"

    def connect(self, **options: Any) -> Any:
        return psycopg.connect(self._options, **options)

    def autocommitting(self) -> Any:
        return self.connect(autocommit=True)

    def in_transaction(self, connection: Any) -> bool:
        return bool(connection.info.transaction_status)


class Psycopg2(Psycopg):
    def connect(self, **options: Any) -> Any:
        return importlib.import_module("psycopg2").connect(self._options, **options)

    def autocommitting(self) -> Any:
        connection = self.connect()
        connection.autocommit = True
        return connection


def open_database(url: str) -> Database:
    kind, _, where = url.partition(":")
    if kind == "sqlite":
        return Sqlite(where)
    host, _, schema = where.partition(":")
    return {"psycopg": Psycopg, "psycopg2": Psycopg2}[kind](host, schema)


class Unavailable(Exception):
    """PostgreSQL cannot be had here, and why."""


class Postgres:
    """A cluster of its own, with syncs, behind a Unix socket. See ``scripts/postgres``."""

    def __init__(self) -> None:
        # Not below pytest's: the user that the server runs as cannot pass through that.
        self._directory = tempfile.TemporaryDirectory(prefix="rlog-pg-", ignore_cleanup_errors=True)
        self.host = self._directory.name
        self._schemas = 0
        self._said = Path(self.host, "said")
        with self._said.open("wb") as said:
            self._process = subprocess.Popen(
                [ROOT / "scripts" / "postgres", "serve", self.host], stdout=said, stderr=said
            )
        try:
            self._wait()
        except BaseException:
            self.close()
            raise

    def kill(self, backend: int) -> None:
        """Which it takes for ill: it ends all others, recovers, and serves again."""
        before = self._said.read_bytes().count(b"reinitializing")
        os.kill(backend, signal.SIGKILL)
        eventually(
            lambda: self._said.read_bytes().count(b"reinitializing") > before, "it has noticed"
        )
        self._wait()

    def _wait(self) -> None:
        eventually(lambda: self._process.poll() is not None or self._serves, "it serves", 60.0)
        if (code := self._process.poll()) is not None:
            text = self._said.read_text(errors="replace")
            assert code == UNAVAILABLE, text
            raise Unavailable(text.strip())

    @property
    def _serves(self) -> bool:
        try:
            self._connect().close()
        except psycopg.OperationalError:
            return False
        return True

    def _connect(self) -> psycopg.Connection:
        return psycopg.connect(host=self.host, user="postgres", dbname="postgres", autocommit=True)

    def make(self, kind: type[Psycopg]) -> Psycopg:
        self._schemas += 1
        schema = f"s{self._schemas}"
        with self._connect() as connection:
            connection.execute(f"CREATE SCHEMA {schema}".encode())
        return kind(self.host, schema)

    def waits_for_a_lock(self) -> bool:
        """Somebody is held up by another's transaction."""
        query = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
        with self._connect() as connection:
            found = connection.execute(query).fetchone()
        return found is not None and found[0] > 0

    def close(self) -> None:
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGINT)  # do not wait for those who are connected
            try:
                self._process.wait(60.0)
            except subprocess.TimeoutExpired:
                os.kill(self._process.pid, signal.SIGQUIT)
                self._process.wait(60.0)
        self._directory.cleanup()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

"""``SqlCursor``: rows and offset change together, or not at all, and nobody else's."""

from __future__ import annotations

import logging
import os
import re
import shutil
import sqlite3
import subprocess
import sys
import threading
from contextlib import closing, suppress
from typing import TYPE_CHECKING, Any

import psycopg
import pytest

import rlog
from rlog_client.sql import SqlCursor
from tests.e2e.serving import ROOT, Server, eventually

from .databases import Database, Postgres, Psycopg, Sqlite

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

COPIES = "SELECT log_offset FROM copies ORDER BY n"
CURSORS = "SELECT name, log, last_offset FROM rlog_cursor ORDER BY name, log"


class Etl:
    """What a user writes: copies the records of a log, from one's own connection."""

    def __init__(self, database: Database, log: rlog.Log, name: str = "etl", **options: Any):
        self.database = database
        self.log = log
        self.connection = database.connect(**options)
        self.cursor = SqlCursor(self.connection, name, log)

    def records(self) -> list[rlog.Record]:
        """All that are left."""
        with self.log.reader(self.cursor.whence(), block=False) as reader:
            return list(reader)

    def copy(self, *records: rlog.Record) -> None:
        for record in records:
            statement = "INSERT INTO copies (log_offset, value) VALUES (?, ?)"
            self.database.execute(self.connection, statement, record.offset, record.value)
        self.cursor.advance(records[-1])

    def commit(self) -> None:
        self.connection.commit()

    def rollback(self) -> None:
        self.connection.rollback()

    @property
    def in_transaction(self) -> bool:
        return self.database.in_transaction(self.connection)


@pytest.fixture
def etl(database: Database, log: rlog.Log) -> Iterator[Callable[..., Etl]]:
    """``etl(name="etl", **options)``: one with a connection of its own, to a log of ten records."""
    make_copies(database)
    log.append_many([b"%d" % n for n in range(10)])
    made: list[Etl] = []

    def make(name: str = "etl", on: rlog.Log = log, **options: Any) -> Etl:
        made.append(Etl(database, on, name, **options))
        return made[-1]

    yield make
    for each in made:
        each.connection.close()


def make_copies(database: Database) -> None:
    # No constraint: what comes twice is to be seen, not refused.
    database.look(
        f"CREATE TABLE copies (n {database.serial}, log_offset BIGINT, value {database.binary})"
    )


def copied(database: Database) -> list[int]:
    return [row[0] for row in database.look(COPIES)]


def test_a_cursor_goes_on_after_the_last_record(
    database: Database, log: rlog.Log, etl: Callable[..., Etl]
) -> None:
    first = etl()
    assert first.cursor.whence() == rlog.OLDEST
    first.copy(*first.records()[:4])
    first.commit()
    assert first.cursor.whence() == etl().cursor.whence() == rlog.offset(4)
    for record in first.records():  # and one by one, in one transaction
        first.copy(record)
    first.commit()
    assert etl().cursor.whence() == rlog.offset(10)
    assert copied(database) == list(range(10))
    assert database.look(CURSORS) == [("etl", log.name, 9)]


def test_rows_and_offset_are_committed_together_or_not_at_all(
    database: Database, etl: Callable[..., Etl]
) -> None:
    one = etl()
    records = one.records()
    one.copy(*records[:3])
    assert etl().cursor.whence() == rlog.OLDEST
    assert copied(database) == []
    one.rollback()
    assert copied(database) == []
    assert one.cursor.whence() == rlog.OLDEST
    one.copy(*records[:3])
    one.commit()
    one.copy(*records[3:5])
    assert one.cursor.whence() == rlog.offset(5)  # as this transaction sees it
    one.rollback()
    assert one.cursor.whence() == rlog.offset(3)
    assert copied(database) == [0, 1, 2]


def test_reading_leaves_no_transaction_and_no_table_behind(
    database: Database, etl: Callable[..., Etl]
) -> None:
    one = etl()
    for _ in range(2):
        one.cursor.whence()
        assert not one.in_transaction
    with pytest.raises(database_error(database), match="rlog_cursor"):
        database.look(CURSORS)
    one.copy(*one.records())
    one.commit()
    one.cursor.whence()
    assert not one.in_transaction


def test_a_transaction_that_is_open_stays_open(database: Database, etl: Callable[..., Etl]) -> None:
    one = etl()
    records = one.records()
    database.execute(one.connection, "INSERT INTO copies (log_offset) VALUES (-1)")
    assert one.cursor.whence() == rlog.OLDEST
    assert one.in_transaction
    one.copy(records[0])
    one.cursor.whence()
    assert one.in_transaction
    assert copied(database) == []
    one.rollback()
    assert copied(database) == []
    assert one.cursor.whence() == rlog.OLDEST


def test_going_on_as_if_nothing_had_been_rolled_back_is_fenced(
    database: Database, etl: Callable[..., Etl]
) -> None:
    one = etl()
    records = one.records()
    one.copy(*records[:2])
    one.commit()
    one.copy(*records[2:4])
    one.rollback()
    with pytest.raises(rlog.Fenced, match=r"begin again from whence\(\)"):
        one.copy(*records[4:6])  # 2 and 3 would be lost
    one.rollback()
    with pytest.raises(rlog.InvalidRequest, match=r"after a rollback, begin again from whence\(\)"):
        one.copy(records[3])  # 2 would be
    one.rollback()
    assert one.cursor.whence() == rlog.offset(2)
    one.copy(*one.records())
    one.commit()
    assert copied(database) == list(range(10))


def test_a_first_advance_that_was_rolled_back_is_none(
    database: Database, etl: Callable[..., Etl]
) -> None:
    one = etl()
    records = one.records()
    one.copy(*records[:2])
    one.rollback()
    with pytest.raises(rlog.Fenced):  # though the table has gone, too
        one.copy(*records[2:4])
    one.rollback()
    assert one.cursor.whence() == rlog.OLDEST
    assert copied(database) == []


def test_a_part_that_is_rolled_back_to_a_savepoint_is_fenced_too(
    database: Database, etl: Callable[..., Etl]
) -> None:
    one = etl()
    records = one.records()
    one.copy(records[0])
    database.execute(one.connection, "SAVEPOINT here")
    one.copy(records[1])
    database.execute(one.connection, "ROLLBACK TO SAVEPOINT here")
    with pytest.raises(rlog.Fenced):
        one.copy(records[2])
    one.rollback()


def test_offsets_only_rise_and_may_be_left_out(database: Database, etl: Callable[..., Etl]) -> None:
    one = etl()
    records = one.records()
    one.copy(records[2])
    for done in (0, 1, 2):
        with pytest.raises(rlog.InvalidRequest, match=f"offset {done} is not after 2"):
            one.cursor.advance(records[done])
    one.cursor.advance(records[7])
    one.commit()
    assert etl().cursor.whence() == rlog.offset(8)


def test_names_and_logs_have_rows_of_their_own(
    client: rlog.Client, database: Database, log: rlog.Log, etl: Callable[..., Etl]
) -> None:
    other = client.log(f"{log.name}.other", create=True)
    other.append_many([b"x", b"y"])
    both = [etl("a"), etl("b"), etl("a", on=other)]
    for number, one in enumerate(both):
        one.copy(one.records()[number // 2])
        one.commit()
    assert database.look(CURSORS) == [
        ("a", log.name, 0), ("a", other.name, 1), ("b", log.name, 0),
    ]  # fmt: skip
    assert [one.cursor.whence() for one in both] == [
        rlog.offset(1), rlog.offset(1), rlog.offset(2),
    ]  # fmt: skip


def test_a_name_is_kept_as_it_was_given(database: Database, etl: Callable[..., Etl]) -> None:
    name = "Ätl%s '?' :x"
    one = etl(name)
    one.copy(one.records()[0])
    one.commit()
    assert database.look(CURSORS)[0][0] == name
    assert etl(name).cursor.whence() == rlog.offset(1)
    assert etl(name.lower()).cursor.whence() == rlog.OLDEST


def test_the_readmes_example_copies_each_record_once(
    server: Server, client: rlog.Client, tmp_path: Path
) -> None:
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    (program,) = [block for block in blocks if "SqlCursor" in block]
    log = client.log("orders", create=True)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "RLOG_ADDR": server.tcp}
    for value in (b"one", b"two"):
        log.append(value)
        subprocess.run(
            [sys.executable, "-c", program], cwd=tmp_path, env=environment, check=True, timeout=60
        )
    with closing(sqlite3.connect(tmp_path / "orders.db")) as database:
        assert database.execute("SELECT value FROM orders").fetchall() == [(b"one",), (b"two",)]


# --- misuse --------------------------------------------------------------------------------------


def test_what_makes_no_sense_is_refused_before_anything_is_done(
    client: rlog.Client, log: rlog.Log, etl: Callable[..., Etl]
) -> None:
    one = etl()
    (record,) = one.records()[:1]
    other = client.log(f"{log.name}.other", create=True)
    other.append(b"v")
    (foreign,) = other.reader(rlog.OLDEST, block=False)
    with pytest.raises(rlog.InvalidRequest, match=f"of log {other.name}"):
        one.cursor.advance(foreign)
    with pytest.raises(TypeError, match="a Record, not int"):
        one.cursor.advance(record.offset)  # type: ignore[arg-type]  # wrong on purpose
    fresh = SqlCursor(one.connection, "fresh", log)
    with pytest.raises(RuntimeError, match=r"whence\(\)"):
        fresh.advance(record)
    assert not one.in_transaction


@pytest.mark.parametrize("name", ["", "@etl", "a\nb", "x" * 256])
def test_a_name_is_like_a_consumer_id(name: str, sqlite: Sqlite, log: rlog.Log) -> None:
    with (
        closing(sqlite.connect()) as connection,
        pytest.raises(rlog.InvalidRequest, match="a cursor's name"),
    ):
        SqlCursor(connection, name, log)


def test_other_types_are_refused(sqlite: Sqlite, log: rlog.Log) -> None:
    with closing(sqlite.connect()) as connection:
        with pytest.raises(TypeError, match="a cursor's name is a str, not Global"):
            SqlCursor(connection, rlog.GLOBAL, log)  # type: ignore[arg-type]  # wrong on purpose
        with pytest.raises(TypeError, match="a Log of the blocking client, not str"):
            SqlCursor(connection, "etl", log.name)  # type: ignore[arg-type]  # wrong on purpose
        with pytest.raises(TypeError, match=r"psycopg2 is needed, not sqlite3\.Cursor"):
            SqlCursor(connection.cursor(), "etl", log)


def test_an_async_connection_is_refused(log: rlog.Log) -> None:
    connection = psycopg.AsyncConnection.__new__(psycopg.AsyncConnection)
    with pytest.raises(TypeError, match="a blocking connection"):
        SqlCursor(connection, "etl", log)


def test_an_offset_that_would_be_committed_by_itself_is_refused(
    database: Database, log: rlog.Log, etl: Callable[..., Etl]
) -> None:
    (record,) = etl().records()[:1]
    with closing(database.autocommitting()) as connection:
        cursor = SqlCursor(connection, "etl", log)
        assert cursor.whence() == rlog.OLDEST
        with pytest.raises(RuntimeError, match="commits each statement by itself"):
            cursor.advance(record)
        assert cursor.whence() == rlog.OLDEST
        database.execute(connection, "BEGIN")
        cursor.advance(record)
        assert etl().cursor.whence() == rlog.OLDEST
        database.execute(connection, "COMMIT")
    assert etl().cursor.whence() == rlog.offset(1)


def test_an_autocommitting_psycopg_connection_has_its_transaction_blocks(
    psycopg_database: Psycopg, log: rlog.Log
) -> None:
    make_copies(psycopg_database)
    log.append_many([b"0", b"1"])
    for options in ({"autocommit": True}, {"autocommit": False}):
        with psycopg_database.connect(**options) as connection:
            cursor = SqlCursor(connection, str(options), log)
            records = list(log.reader(cursor.whence(), block=False))
            # Had whence() left a transaction open, this would be a part of it, and not end it.
            with connection.transaction():
                cursor.advance(records[0])
            with suppress(ZeroDivisionError), connection.transaction():
                cursor.advance(records[1])
                raise ZeroDivisionError
        query = "SELECT last_offset FROM rlog_cursor WHERE name = ?"
        assert psycopg_database.look(query, str(options)) == [(0,)]


def test_a_pipeline_is_refused(psycopg_database: Psycopg, log: rlog.Log) -> None:
    log.append(b"v")
    with psycopg_database.connect() as connection:
        cursor = SqlCursor(connection, "etl", log)
        (record,) = log.reader(cursor.whence(), block=False)
        with connection.pipeline(), pytest.raises(RuntimeError, match="outside of the pipeline"):
            cursor.advance(record)
        with connection.pipeline(), pytest.raises(RuntimeError, match="outside of the pipeline"):
            cursor.whence()
        assert cursor.whence() == rlog.OLDEST


@pytest.mark.skipif(sys.version_info < (3, 12), reason="sqlite3 has no autocommit before 3.12")
def test_the_autocommit_of_newer_sqlite3(sqlite: Sqlite, log: rlog.Log) -> None:
    log.append(b"v")
    with closing(sqlite.connect(autocommit=True)) as connection:
        cursor = SqlCursor(connection, "etl", log)
        (record,) = log.reader(cursor.whence(), block=False)
        with pytest.raises(RuntimeError, match="commits each statement by itself"):
            cursor.advance(record)
        connection.execute("BEGIN")
        cursor.advance(record)
        connection.execute("ROLLBACK")
        assert cursor.whence() == rlog.OLDEST
    with closing(sqlite.connect(autocommit=False)) as connection:
        cursor = SqlCursor(connection, "etl", log)
        assert cursor.whence() == rlog.OLDEST
        cursor.advance(record)
        connection.rollback()
        assert cursor.whence() == rlog.OLDEST
        cursor.advance(record)
        connection.commit()
        assert cursor.whence() == rlog.offset(1)


def test_what_a_connection_makes_of_its_rows_does_not_matter(
    sqlite: Sqlite, psycopg_database: Psycopg, log: rlog.Log
) -> None:
    log.append(b"v")

    class Connection(sqlite3.Connection):
        pass

    def odd(cursor: Any, row: Any) -> str:
        return "a row"

    ours = sqlite.connect(factory=Connection)
    ours.row_factory = odd
    ours.text_factory = bytes
    theirs = psycopg_database.connect(
        row_factory=psycopg.rows.dict_row, cursor_factory=psycopg.RawCursor
    )
    for connection in (ours, theirs):
        with closing(connection):
            cursor = SqlCursor(connection, "etl", log)
            (record,) = log.reader(cursor.whence(), block=False)
            cursor.advance(record)
            connection.commit()
            assert cursor.whence() == rlog.offset(1)


def test_no_driver_is_loaded_that_was_not() -> None:
    program = (
        "import sys, rlog_client.sql; "
        "assert not {'sqlite3', 'psycopg', 'psycopg2', 'anyio'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


# --- two with one name ---------------------------------------------------------------------------


@pytest.fixture(params=["first", "later"])
def begun(request: pytest.FixtureRequest, etl: Callable[..., Etl]) -> int:
    """The offset at which both find the cursor: of a first insert, or of an update."""
    if request.param == "first":
        return 0
    one = etl()
    one.copy(*one.records()[:2])
    one.commit()
    return 2


def test_whoever_comes_second_is_fenced(
    database: Database, begun: int, etl: Callable[..., Etl]
) -> None:
    one, two = etl(), etl()
    mine, theirs = one.records(), two.records()
    one.copy(mine[0])
    one.commit()
    with pytest.raises(rlog.Fenced, match="another process"):
        two.copy(*theirs[:3])
    two.rollback()
    with pytest.raises(rlog.Fenced, match="another process"):
        two.copy(*theirs[1:3])
    two.rollback()
    assert two.cursor.whence() == rlog.offset(begun + 1)
    two.copy(*two.records())
    two.commit()
    assert copied(database) == list(range(10))
    with pytest.raises(rlog.Fenced):
        one.copy(mine[1])
    one.rollback()


class Race:
    """``two`` copies while the transaction of ``one`` is open: it has to wait for that."""

    def __init__(self, one: Etl, two: Etl, held_up: Callable[[], bool] | None) -> None:
        mine, theirs = one.records(), two.records()
        self.error: Exception | None = None
        one.copy(*mine[:3])
        begun = threading.Event()

        def copy() -> None:
            begun.set()
            try:
                two.copy(*theirs[:2])
                two.commit()
            except Exception as error:
                self.error = error
                two.rollback()

        self._thread = threading.Thread(target=copy)
        self._thread.start()
        assert begun.wait(30.0)
        if held_up is not None:
            eventually(held_up, "the second one waits")

    def end(self) -> None:
        self._thread.join(30.0)
        assert not self._thread.is_alive()


@pytest.fixture
def held_up(request: pytest.FixtureRequest, database: Database) -> Callable[[], bool] | None:
    """Whether somebody waits for another's transaction, where that can be asked."""
    if isinstance(database, Sqlite):
        return None  # it waits in its own process; whether it had begun to is all the same
    postgres: Postgres = request.getfixturevalue("postgres")
    return postgres.waits_for_a_lock


def test_of_two_at_once_the_second_is_fenced(
    database: Database,
    begun: int,
    etl: Callable[..., Etl],
    held_up: Callable[[], bool] | None,
) -> None:
    one, two = etl(), etl()
    race = Race(one, two, held_up)
    one.commit()
    race.end()
    assert isinstance(race.error, rlog.Fenced)
    assert copied(database) == list(range(begun + 3))


def test_of_two_at_once_the_second_goes_on_if_the_first_is_rolled_back(
    database: Database,
    begun: int,
    etl: Callable[..., Etl],
    held_up: Callable[[], bool] | None,
) -> None:
    one, two = etl(), etl()
    race = Race(one, two, held_up)
    one.rollback()
    race.end()
    assert race.error is None
    assert copied(database) == list(range(begun + 2))
    assert one.cursor.whence() == rlog.offset(begun + 2)


def test_two_names_at_once_do_not_stand_in_each_others_way(
    database: Database, etl: Callable[..., Etl], held_up: Callable[[], bool] | None
) -> None:
    """Though both find no table."""
    one, two = etl("a"), etl("b")
    race = Race(one, two, held_up)
    one.commit()
    race.end()
    assert race.error is None
    assert etl("a").cursor.whence() == rlog.offset(3)
    assert etl("b").cursor.whence() == rlog.offset(2)


@pytest.fixture(params=["REPEATABLE READ", "SERIALIZABLE"])
def isolated(
    request: pytest.FixtureRequest, psycopg_database: Psycopg, log: rlog.Log
) -> Iterator[Callable[..., Etl]]:
    """``isolated(name="etl")``, where a transaction sees only what was there when it began."""
    make_copies(psycopg_database)
    log.append_many([b"%d" % n for n in range(10)])
    made: list[Etl] = []

    def make(name: str = "etl") -> Etl:
        made.append(Etl(psycopg_database, log, name))
        made[-1].connection.execute(f"SET default_transaction_isolation TO '{request.param}'")
        made[-1].connection.commit()
        return made[-1]

    yield make
    for each in made:
        each.connection.close()


@pytest.mark.parametrize("first", [True, False])
def test_a_transaction_that_cannot_see_the_other_is_fenced(
    psycopg_database: Psycopg,
    postgres: Postgres,
    isolated: Callable[..., Etl],
    first: bool,
) -> None:
    one, two = isolated(), isolated()
    if not first:
        one.copy(one.records()[0])
        one.commit()
    race = Race(one, two, postgres.waits_for_a_lock)
    one.commit()
    race.end()
    assert isinstance(race.error, rlog.Fenced)
    assert isinstance(race.error.__cause__, psycopg.errors.SerializationFailure)
    copies = copied(psycopg_database)
    # And when the other has ended, but the snapshot is older.
    stale = two.records()
    two.connection.execute("SELECT count(*) FROM copies")
    one.copy(*one.records()[:2])
    one.commit()
    with pytest.raises(rlog.Fenced):
        two.cursor.advance(stale[0])
    two.rollback()
    assert copied(psycopg_database) == [*copies, len(copies), len(copies) + 1]


@pytest.mark.parametrize("isolated", ["SERIALIZABLE"], indirect=True)
def test_a_serialization_failure_about_other_rows_is_the_drivers(
    psycopg_database: Psycopg, isolated: Callable[..., Etl]
) -> None:
    one, two = isolated("a"), isolated("b")
    psycopg_database.look("CREATE TABLE left_hand (v INT)")
    psycopg_database.look("CREATE TABLE right_hand (v INT)")
    (record,) = one.records()[:1]
    two.cursor.whence()
    one.connection.execute("SELECT * FROM left_hand")
    two.connection.execute("SELECT * FROM right_hand")
    one.connection.execute("INSERT INTO right_hand VALUES (1)")
    two.connection.execute("INSERT INTO left_hand VALUES (1)")
    one.commit()
    with pytest.raises(psycopg.errors.SerializationFailure):
        two.cursor.advance(record)
    two.rollback()
    two.copy(*two.records()[:1])  # as with any of them: the same once more
    two.commit()
    assert copied(psycopg_database) == [0]


def test_a_database_that_is_locked_says_so_itself(sqlite: Sqlite, log: rlog.Log) -> None:
    log.append(b"v")
    with closing(sqlite.connect(timeout=0)) as one, closing(sqlite.connect(timeout=0)) as two:
        mine, theirs = SqlCursor(one, "a", log), SqlCursor(two, "b", log)
        (record,) = log.reader(mine.whence(), block=False)
        theirs.whence()
        mine.advance(record)
        with pytest.raises(sqlite3.OperationalError, match="locked"):
            theirs.advance(record)
        one.commit()
        theirs.advance(record)  # nothing had happened: it can simply be tried again
        two.commit()
        assert theirs.whence() == rlog.offset(1)


def test_a_table_that_is_there_need_not_be_made(psycopg_database: Psycopg, log: rlog.Log) -> None:
    log.append_many([b"0", b"1"])
    with psycopg_database.connect() as connection:
        cursor = SqlCursor(connection, "owner", log)
        records = list(log.reader(cursor.whence(), block=False))
        cursor.advance(records[0])
        schema = psycopg_database.url.rpartition(":")[2]
        connection.execute(
            f"CREATE ROLE r{schema}; GRANT USAGE ON SCHEMA {schema} TO r{schema};"
            f"GRANT SELECT, INSERT, UPDATE ON rlog_cursor TO r{schema}"
        )
        connection.commit()
        connection.execute(f"SET ROLE r{schema}")
        connection.commit()
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            connection.execute("CREATE TABLE another ()")
        connection.rollback()
        cursor = SqlCursor(connection, "guest", log)
        for number, record in enumerate(records):
            assert cursor.whence() == (rlog.offset(number) if number else rlog.OLDEST)
            cursor.advance(record)
            connection.commit()


# --- a past that has changed ---------------------------------------------------------------------


class Place:
    """Logs in a directory, which can be put back as it was."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._saved = directory.with_name("saved")
        self.client = rlog.open(directory)

    def save(self) -> None:
        self.client.close()
        shutil.copytree(self.directory, self._saved)
        self.client = rlog.open(self.directory)

    def restore(self) -> None:
        self.client.close()
        shutil.rmtree(self.directory)
        self._saved.rename(self.directory)
        self.client = rlog.open(self.directory)

    def log(self, **options: Any) -> rlog.Log:
        return self.client.log("l", create=True, **options)


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[Place]:
    place = Place(tmp_path / "data")
    yield place
    place.client.close()


@pytest.fixture
def rows(sqlite: Sqlite) -> Iterator[sqlite3.Connection]:
    with closing(sqlite.connect()) as connection:
        yield connection


def read_all(rows: sqlite3.Connection, log: rlog.Log) -> SqlCursor:
    cursor = SqlCursor(rows, "etl", log)
    with rows:
        for record in log.reader(cursor.whence(), block=False):
            cursor.advance(record)
    return cursor


def test_a_log_that_was_made_again_is_a_conflict(
    database: Database, client: rlog.Client, log: rlog.Log, etl: Callable[..., Etl]
) -> None:
    one = etl()
    one.copy(*one.records())
    one.commit()
    log.delete()
    with pytest.raises(rlog.NotFound):
        one.cursor.whence()
    again = client.log(log.name, create=True)
    again.append_many([b"%d" % n for n in range(20)])
    two = etl(on=again)
    with pytest.raises(rlog.Conflict, match="deleted, and made again") as caught:
        two.cursor.whence()
    assert caught.value.end == 20
    (record,) = again.reader(rlog.last(1), block=False)
    with pytest.raises(RuntimeError, match="whence"):
        two.cursor.advance(record)
    assert not two.in_transaction


def test_a_cursor_that_met_a_conflict_advances_no_more(
    database: Database, etl: Callable[..., Etl]
) -> None:
    one = etl()
    records = one.records()
    one.copy(records[0])
    one.commit()
    database.look("UPDATE rlog_cursor SET last_timestamp_ns = 1")
    with pytest.raises(rlog.Conflict, match="another record at offset 0"):
        one.cursor.whence()
    with pytest.raises(RuntimeError, match="whence"):
        one.cursor.advance(records[1])


@pytest.mark.parametrize("sync", ["always", "never"])
def test_a_log_that_was_put_back_and_is_shorter_is_a_conflict(
    directory: Place, rows: sqlite3.Connection, sync: str
) -> None:
    directory.log(sync=sync).append_many([b"0", b"1"])
    directory.save()
    directory.log().append_many([b"2", b"3"])
    read_all(rows, directory.log())
    directory.restore()
    cursor = SqlCursor(rows, "etl", directory.log())
    with pytest.raises(rlog.Conflict, match="up to offset 3, and now the log ends at 2") as caught:
        cursor.whence()
    assert caught.value.end == 2


def test_a_log_that_was_put_back_and_ends_just_there_is_a_conflict(
    directory: Place, rows: sqlite3.Connection
) -> None:
    directory.log().append(b"0")
    directory.save()
    directory.log().append(b"1")
    read_all(rows, directory.log())
    directory.restore()
    with pytest.raises(rlog.Conflict, match="up to offset 1, and now the log ends at 1"):
        SqlCursor(rows, "etl", directory.log()).whence()


def test_another_record_in_the_place_of_the_last_is_a_conflict(
    directory: Place, rows: sqlite3.Connection
) -> None:
    directory.log().append_many([b"0", b"1"])
    directory.save()
    directory.log().append_many([b"2", b"3"])
    read_all(rows, directory.log())
    directory.restore()
    directory.log().append_many([b"2", b"3", b"4"])
    cursor = SqlCursor(rows, "etl", directory.log())
    with pytest.raises(rlog.Conflict, match="another record at offset 3"):
        cursor.whence()


def test_a_log_that_was_put_back_as_it_was_read_is_no_conflict(
    directory: Place, rows: sqlite3.Connection
) -> None:
    directory.log().append_many([b"0", b"1"])
    read_all(rows, directory.log())
    directory.save()
    directory.log().append(b"2")
    directory.restore()
    assert SqlCursor(rows, "etl", directory.log()).whence() == rlog.offset(2)


def fill(log: rlog.Log, count: int) -> None:
    """Records of which each has a segment of its own."""
    for _ in range(count):
        log.append(bytes(5000))


def test_a_last_record_that_retention_took_is_not_asked_for(
    directory: Place, rows: sqlite3.Connection
) -> None:
    log = directory.log(file_roll_size=4096)
    fill(log, 3)
    cursor = read_all(rows, log)
    fill(log, 2)
    assert log.trim(rlog.offset(3)) == 3
    assert cursor.whence() == rlog.offset(3)
    assert [r.offset for r in log.reader(cursor.whence(), block=False)] == [3, 4]


def test_a_last_record_that_retention_takes_while_it_is_compared_is_no_conflict(
    directory: Place, rows: sqlite3.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = directory.log(file_roll_size=4096)
    fill(log, 3)
    cursor = read_all(rows, log)
    fill(log, 2)
    ask = log.info

    def info() -> rlog.LogInfo:
        found = ask()
        log.trim(rlog.offset(3))
        return found

    monkeypatch.setattr(log, "info", info)
    assert cursor.whence() == rlog.offset(3)


def test_what_retention_took_unread_is_out_of_range_at_the_reader(
    directory: Place, rows: sqlite3.Connection
) -> None:
    log = directory.log(file_roll_size=4096)
    fill(log, 3)
    cursor = read_all(rows, log)
    fill(log, 3)
    assert log.trim(rlog.offset(5)) == 5
    with pytest.raises(rlog.OffsetOutOfRange) as caught:
        log.reader(cursor.whence())
    assert (caught.value.first, caught.value.end) == (5, 6)
    with rows:  # going on behind the gap is the program's decision
        (record,) = log.reader(rlog.OLDEST, block=False)
        cursor.advance(record)
    assert cursor.whence() == rlog.offset(6)


def test_a_last_record_that_is_damaged_is_no_reason_to_stop(
    directory: Place, rows: sqlite3.Connection, caplog: pytest.LogCaptureFixture
) -> None:
    log = directory.log(file_roll_size=4096)
    fill(log, 2)
    read_all(rows, log)
    fill(log, 1)
    directory.client.close()
    segment = sorted((directory.directory / "logs").rglob("*.seg"))[1]
    damaged = bytearray(segment.read_bytes())
    damaged[2000] ^= 1
    segment.write_bytes(damaged)
    directory.client = rlog.open(directory.directory)
    log = directory.log()
    cursor = SqlCursor(rows, "etl", log)
    with caplog.at_level(logging.WARNING, "rlog_client"):
        assert cursor.whence() == rlog.offset(2)
    assert "cannot tell whether the log is the same" in caplog.text
    assert [r.offset for r in log.reader(cursor.whence(), block=False)] == [2]


def database_error(database: Database) -> type[Exception]:
    return sqlite3.OperationalError if isinstance(database, Sqlite) else Exception

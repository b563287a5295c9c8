"""A real server, real databases, and a log of one's own."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.e2e.conftest import client, guard, log, make_server, place, server

from .databases import Database, Postgres, Psycopg, Psycopg2, Sqlite, Unavailable

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

__all__ = ["client", "guard", "log", "make_server", "place", "server"]


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "patience(seconds): how long this test may take; not a goal")


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    try:
        postgres = Postgres()
    except Unavailable as error:
        pytest.skip(str(error))
    with postgres:
        yield postgres


@pytest.fixture
def sqlite(tmp_path: Path) -> Sqlite:
    return Sqlite(str(tmp_path / "rows.db"))


@pytest.fixture
def psycopg_database(postgres: Postgres) -> Psycopg:
    return postgres.make(Psycopg)


@pytest.fixture(params=["sqlite", "sqlite-wal", "psycopg", "psycopg2"])
def database(request: pytest.FixtureRequest) -> Database:
    """One of each."""
    if request.param.startswith("sqlite"):
        sqlite: Database = request.getfixturevalue("sqlite")
        if request.param == "sqlite-wal":
            sqlite.look("PRAGMA journal_mode = WAL")  # it stays so
        return sqlite
    if request.param == "psycopg2":
        pytest.importorskip("psycopg2")
    postgres: Postgres = request.getfixturevalue("postgres")
    return postgres.make(Psycopg if request.param == "psycopg" else Psycopg2)

"""Copies a log into a table, in a process of its own, which others kill.

    python -m tests.sql.etl URL LOG DATABASE '{"seed": 1, "die": ["advanced", 3], ...}'

Says where it begins, and the process id of its backend. ``die``: kills itself the n-th time that it
is there: a row "inserted", the cursor "advanced", the transaction "committed". ``until``: ends at
this offset. ``careless``: what a user must not do: commits the "rows" first, or the "offset".
Ends with 3 when it loses its database.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sqlite3
import sys
from contextlib import closing
from typing import Any

import psycopg

import rlog_client as rlog
from rlog_client.sql import SqlCursor

from .databases import Database, Sqlite, open_database

LOST = 3
BATCH_RECORDS_MAX = 50
INSERT = "INSERT INTO copies (log_offset, value) VALUES (?, ?)"


class Copier:
    def __init__(self, database: Database, connection: Any, log: rlog.Log, options: dict[str, Any]):
        self._database = database
        self._connection = connection
        self._cursor = SqlCursor(connection, "etl", log)
        self._log = log
        self._chance = random.Random(options["seed"])
        self._moment, self._left = options.get("die", ("never", 0))
        self._careless = options.get("careless")
        self._until = options.get("until")

    def reached(self, moment: str) -> None:
        if moment == self._moment:
            self._left -= 1
            if self._left == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    def run(self) -> None:
        backend = 0
        if not isinstance(self._database, Sqlite):
            backend = self._connection.info.backend_pid
        until = None if self._until is None else rlog.offset(self._until)
        with self._log.reader(self._cursor.whence(), until=until) as reader:
            print(reader.offset, backend, flush=True)
            while records := reader.poll(self._chance.randint(1, BATCH_RECORDS_MAX), timeout=None):
                self.copy(records)

    def copy(self, records: list[rlog.Record]) -> None:
        if self._careless == "offset":
            self._cursor.advance(records[-1])
            self._connection.commit()
        for record in records:
            self._database.execute(self._connection, INSERT, record.offset, record.value)
            self.reached("inserted")
            if self._careless is None and self._chance.random() < 0.1 and record != records[-1]:
                self._cursor.advance(record)
                self.reached("advanced")
        if self._careless == "rows":
            self._connection.commit()
            self.reached("committed")
        if self._careless != "offset":
            self._cursor.advance(records[-1])
            self.reached("advanced")
        self._connection.commit()
        self.reached("committed")


def main() -> None:
    url, name, where, options = *sys.argv[1:4], json.loads(sys.argv[4])
    database = open_database(where)
    try:
        with rlog.connect(url, timeout=30.0) as client, closing(database.connect()) as connection:
            Copier(database, connection, client.log(name), options).run()
    except (psycopg.OperationalError, sqlite3.OperationalError) as error:
        print(error, file=sys.stderr)
        sys.exit(LOST)


if __name__ == "__main__":
    main()

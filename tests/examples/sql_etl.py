"""Copy orders into SQLite, each exactly once, however often this is killed.

    python sql_etl.py LOG DATABASE

The offset is stored with the rows, in the same transaction: there is no moment at which one is on
the disk and the other is not. Run it again, and it goes on after the last order that is there; two
at once do no harm, one of them ends with Fenced.
"""

import json
import sqlite3
import sys
from contextlib import closing

import rlog_client as rlog
from rlog_client.sql import SqlCursor

log_name, path = sys.argv[1:]
with rlog.connect() as client, closing(sqlite3.connect(path)) as database:
    database.execute("CREATE TABLE IF NOT EXISTS orders (customer INT, amount INT)")
    log = client.log(log_name)
    cursor = SqlCursor(database, "orders", log)
    reader = log.reader(cursor.whence(), until=rlog.LATEST)
    done = 0
    while records := reader.poll(1000, timeout=None):
        orders = [json.loads(record.value) for record in records]
        with database:  # one transaction a batch: all of this, or nothing
            database.executemany("INSERT INTO orders VALUES (:customer, :amount)", orders)
            cursor.advance(records[-1])
        done += len(records)
    print(f"{done} orders copied, up to offset {reader.offset}")

"""Read again what was appended since a time, up to now, without touching anybody's cursor.

python replay.py LOG 2026-11-22T08:00:00+00:00
"""

import sys
from datetime import datetime

import rlog_client as rlog

since = datetime.fromisoformat(sys.argv[2])  # with a zone: a naive time is refused
with rlog.connect() as client:
    log = client.log(sys.argv[1])
    for record in log.reader(rlog.time(since), until=rlog.LATEST):
        print(record.timestamp_ns, record.offset, record.value.decode(errors="replace"))

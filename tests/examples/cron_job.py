"""Handle what has come since the last time, but no longer than a minute; for cron.

    python cron_job.py LOG

A second one that starts while this one runs gets Busy, says so, and leaves it to it.
"""

import sys

import rlog_client as rlog

total = 0


def add(record: rlog.Record) -> None:
    global total
    total += len(record.value)


with rlog.connect() as client:
    try:
        with client.log(sys.argv[1]).consumer("nightly", block=False) as consumer:
            done = consumer.process(add, timeout=60.0, in_flight=1000)
    except rlog.Busy as busy:
        sys.exit(f"another one is at it: {busy}")
print(f"{done} records, {total} bytes")

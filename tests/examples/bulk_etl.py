"""Load a file into a log, once: killed and started again, it goes on where the log stands.

    python bulk_etl.py LOG FILE

The producer has a name, so the server remembers the number of the last line that it has. Lines are
numbered from 0; those that are in the log already are skipped, and one whose answer was lost is
recognised and not appended twice.
"""

import sys
from itertools import islice

import rlog_client as rlog

log_name, path = sys.argv[1:]
with rlog.connect() as client, open(path, "rb") as lines:
    log = client.log(log_name, create=True)
    with log.producer(name=f"etl:{path}") as producer:
        done = producer.last_sequence + 1
        for line in islice(lines, done, None):
            producer.send(line.rstrip(b"\n"))
        end = producer.flush()
    print(f"{done} lines were there, the log ends at {max(end, log.info().end)}")

"""Follow a log from its last records on, like tail(1).

    python tail.py LOG [RECORDS]

A reader keeps no cursor on the server. It waits for more until Ctrl-C, also while the server is
restarted.
"""

import contextlib
import sys

import rlog_client as rlog

log_name, records = sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 10
with rlog.connect() as client, contextlib.suppress(KeyboardInterrupt):
    for record in client.log(log_name).reader(rlog.last(records)):
        print(record.offset, record.value.decode(errors="replace"), flush=True)

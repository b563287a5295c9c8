"""One of a pair: the first one works, the other takes over at the moment it ends.

    python standby.py LOG NAME

However it ends: released, killed, or its host gone. Then what it had in hand comes again.
"""

import signal
import sys

import rlog_client as rlog

log_name, name = sys.argv[1:]
with rlog.connect(name=name) as client:
    consumer = client.log(log_name).consumer("pair", standby=True)
    signal.signal(signal.SIGTERM, lambda *_: consumer.stop())
    with consumer:
        print(name, "works under epoch", consumer.epoch, flush=True)
        consumer.process(lambda r: print(name, r.offset, flush=True))

"""Look at the records that a consumer has parked, and deliver again those that failed one way.

    python redrive.py LOG CONSUMER TEXT

They come first, in order, with attempt 1 and ``redriven`` set; the cursor stays where it is.
"""

import sys

import rlog_client as rlog

log_name, consumer, text = sys.argv[1:]
with rlog.connect() as client:
    cursor = client.log(log_name).cursor(consumer)
    chosen = []
    for parked in cursor.parked():
        reason = parked.reason or parked.error.strip().rpartition("\n")[2]
        print(parked.record.offset, f"{parked.attempts} attempts:", reason)
        if text in reason:
            chosen.append(parked.record.offset)
    print("records to be delivered again:", cursor.redrive(chosen))

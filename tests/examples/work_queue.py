"""A worker: one job after the other, with retries; what cannot be done is parked.

    python work_queue.py LOG

Stopped with SIGTERM it finishes the job in hand and leaves without costing it an attempt.
"""

import json
import signal
import sys

import rlog_client as rlog


def charge(order: dict[str, int]) -> None:
    if order["amount"] < 0:
        raise ValueError(f"cannot charge {order['amount']}")
    print("charged", order["customer"], order["amount"], flush=True)


def handle(record: rlog.Record) -> rlog.Verdict | None:
    try:
        order = json.loads(record.value)
    except ValueError as error:
        return rlog.Park(f"not an order: {error}")  # nobody will ever be able to read it
    if order["amount"] == 0:
        return rlog.Skip("nothing to charge")
    charge(order)  # what this raises is tried again, and parked when it is exhausted
    return rlog.COMMIT


with rlog.connect() as client, client.log(sys.argv[1]).consumer("billing") as consumer:
    signal.signal(signal.SIGTERM, lambda *_: consumer.stop())
    done = consumer.process(handle, retry=rlog.Backoff(first=0.05, cap=1.0, max_attempts=3))
    print(f"{done} orders done with")

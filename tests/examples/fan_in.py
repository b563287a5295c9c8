"""Many threads append to one log. A client belongs to one thread: each one has a clone.

python fan_in.py LOG THREADS RECORDS
"""

import sys
import threading

import rlog_client as rlog


def produce(client: rlog.Client, log_name: str, thread: int, records: int) -> None:
    with client, client.log(log_name).producer() as producer:
        for number in range(records):
            producer.send(b"%d from %d" % (number, thread), key=b"%d" % thread)


log_name, threads, records = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
with rlog.connect() as client:
    log = client.log(log_name, create=True)
    workers = [
        threading.Thread(target=produce, args=(client.clone(), log_name, number, records))
        for number in range(threads)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    print(f"the log ends at {log.info().end}")

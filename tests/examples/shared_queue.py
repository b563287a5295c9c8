"""A keyed work queue with several workers: each customer's orders in order, many customers at once.

    python shared_queue.py LOG [WORKERS]

Start it as often as you like, on as many machines: all of them share the work. A worker that is
killed costs its orders one more attempt at most, and the others go on with them.
"""

import multiprocessing
import signal
import sys

import rlog_client as rlog


def deliver(record: rlog.Record) -> None:
    assert record.key is not None
    print("delivered", record.key.decode(), record.value.decode(), flush=True)


def work(log: str) -> None:
    with rlog.connect() as client, client.log(log).consumer("delivery", shared=True) as consumer:
        signal.signal(signal.SIGTERM, lambda *_: consumer.stop())
        consumer.process(deliver, in_flight=8, retry=rlog.Backoff(first=0.05, cap=1.0))


if __name__ == "__main__":
    # Each worker a process of its own: a connection is never shared with a fork.
    context = multiprocessing.get_context("spawn")
    count = int(sys.argv[2]) if len(sys.argv) > 2 else 4
    workers = [context.Process(target=work, args=(sys.argv[1],)) for _ in range(count)]
    for worker in workers:
        worker.start()

    def stop(*_: object) -> None:
        for worker in workers:
            worker.terminate()

    signal.signal(signal.SIGTERM, stop)
    for worker in workers:
        worker.join()

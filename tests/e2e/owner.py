"""An exclusive producer in a process of its own, to stop and to kill.

    python -m tests.e2e.owner URL LOG VALUE [--name NAME] [--standby]

It says "owner" when it holds the log, then sends VALUE and a number, one after the other, and says
the error that ends it.
"""

from __future__ import annotations

import argparse

import rlog_client as rlog


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("url")
    parser.add_argument("log")
    parser.add_argument("value")
    parser.add_argument("--name")
    parser.add_argument("--standby", action="store_true")
    asked = parser.parse_args()
    with rlog.connect(asked.url, name=asked.value) as client:
        log = client.log(asked.log)
        producer = log.producer(
            name=asked.name, exclusive=True, standby=asked.standby, linger=0.0005, batch_bytes=1000
        )
        print("owner", producer.epoch, flush=True)
        number = 0
        try:
            while True:
                producer.send(f"{asked.value} {number}".encode())
                number += 1
        except rlog.RlogError as error:
            print(type(error).__name__, flush=True)


if __name__ == "__main__":
    main()

"""Makes the golden directory: ``python -m tests.golden.make > tests/golden/v1.json``.

A data directory with one of everything that the format knows, as a server left it that was killed:
two checkpoints, frames behind them, segments whole, unfinished and compacted. It is made once for
each format version and then never again: what it is for is to be read by every rlog to come.
"""

from __future__ import annotations

import json
import sys
import zlib
from base64 import b64encode

from rlog_client import batch, model, protocol
from tests.storage.server import ROLL, Server, judged
from tests.storage.simdisk import SimDisk


def append(server: Server, log: str, *records: model.Item, **producer: int) -> None:
    values, keys, headers, times = (
        [getattr(record, name) for record in records]
        for name in ("value", "key", "headers", "event_time_ns")
    )
    raw = bytes(batch.encode(values, keys, headers, times, **producer))
    control = protocol.Append(server.ids[log])
    request = server.ask(control, batches=[judged(raw)])
    server.pump()
    assert isinstance(server.peer.answers[request], protocol.Appended)


def ask(server: Server, control: protocol.Control) -> None:
    answer = server.call(control)
    assert not isinstance(answer, protocol.Error), answer


def make() -> SimDisk:
    disk = SimDisk()
    server = Server(disk, boot="golden")
    item = model.Item
    server.create("orders", sync="always", file_roll_size=ROLL, max_file_age=1e9)
    server.create("latest", sync="never", file_roll_size=ROLL, key_index=True, compact=True)
    server.create("trimmed", sync="periodic:1s", file_roll_size=ROLL, protected=["@global"])
    server.create("gone", sync="bytes:1MiB")
    append(server, "orders", item(b"first"), item(b"second", b"k", {"trace": b"\xff"}, -5))
    append(server, "orders", item(b"large" * 700))
    named = server.call(protocol.OpenProducer(server.ids["orders"], 7, "etl"))
    assert isinstance(named, protocol.ProducerOpened)
    append(
        server, "orders", item(b"named"), producer=named.producer, sequence=41, epoch=named.epoch
    )
    for number in range(6):
        append(server, "latest", item(b"%d" % number * 900, b"k%d" % (number % 2)), item(b"free"))
        append(server, "trimmed", item(b"%d" % number * 1900))
    server.checkpoint()
    server.claim("orders", "billing")
    orders, error = server.ids["orders"], "ValueError: no"
    billing = server.peer.grants[orders, "billing"]
    billing.delivered = 3
    park = protocol.Settle(orders, "billing", 1, 0, "park", reason="bad", attempts=2, error=error)
    ask(server, park)
    again = protocol.Settle(orders, "billing", 1, 1, "retry", delay=3600.0, attempts=1, error=error)
    ask(server, again)
    server.claim("trimmed", "@global")
    server.commit("trimmed", "@global", 3)
    server.trim("trimmed", 3)
    assert server.compact()
    server.checkpoint()
    ask(server, protocol.Claim(orders, "crew", model.OLDEST, b"t" * 16, shared=True))
    server.transact(3, [("orders", b"done"), ("latest", b"together")], [])
    server.delete("gone")
    append(server, "orders", item(b"last"))
    server.sleep(1.5)  # the witness of the last sync
    return disk.killed()


if __name__ == "__main__":
    tree = {
        path: b64encode(zlib.compress(raw, 9)).decode()
        for path, raw in sorted(make().tree().items())
    }
    json.dump(tree, sys.stdout, indent=1)
    sys.stdout.write("\n")

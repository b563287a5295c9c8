"""In a test, the log is a directory: the same broker and journal, without a server."""

from pathlib import Path

import rlog


def settle(log: rlog.Log) -> list[bytes]:
    """What is tested here: it takes each order once, and parks what is no number."""
    done = []

    def handle(record: rlog.Record) -> rlog.Verdict | None:
        if not record.value.isdigit():
            return rlog.Park("not a number")
        done.append(record.value)
        return None

    with log.consumer("settlement", block=False) as consumer:
        consumer.process(handle)
    return done


def test_orders_are_settled_once(tmp_path: Path) -> None:
    with rlog.open(tmp_path) as client:
        log = client.log("orders", create=True)
        log.append_many([b"7", b"x", b"9"])
        assert settle(log) == [b"7", b"9"]
    with rlog.open(tmp_path) as client:  # and after a restart nothing is left to do
        log = client.log("orders")
        assert settle(log) == []
        assert [p.record.value for p in log.cursor("settlement").parked()] == [b"x"]

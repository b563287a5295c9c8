"""What a client is told when the disk fails, is full, or holds something else than was written."""

from __future__ import annotations

import contextlib
import signal
from typing import TYPE_CHECKING

import pytest

import rlog_client as rlog

from .serving import Server, eventually

if TYPE_CHECKING:
    from collections.abc import Callable


def values(log: rlog.Log) -> list[bytes]:
    return [record.value for record in log.reader(rlog.OLDEST, block=False)]


def test_after_a_failed_sync_nothing_is_written_and_what_was_durable_is_served(
    make_server: Callable[..., Server],
) -> None:
    server = make_server().start("--kill", "sync:journal:EIO:1")
    with server.connect() as client:
        log = client.log("l", create=True)
        log.append(b"durable")
        consumer = log.consumer("c")
        [record] = consumer.poll()
        server.signal(signal.SIGUSR1)
        with pytest.raises(rlog.OutcomeUnknown):
            log.append(b"nobody knows")
        for use in (
            lambda: log.append(b"refused"),
            lambda: consumer.commit(record),
            lambda: client.log("new", create=True),
            lambda: log.consumer("d").poll(),
            lambda: log.trim(rlog.LATEST),
            log.delete,
        ):
            with pytest.raises(rlog.StorageFailed) as raised:
                use()
            assert not raised.value.retriable
        assert values(log) == [b"durable"]
        assert log.info().synced_end == 1
        log.wait_synced(1, timeout=10.0)
        with pytest.raises(rlog.StorageFailed):
            log.wait_synced(2, timeout=10.0)
        with contextlib.suppress(rlog.StorageFailed):
            consumer.close()
    assert "CRITICAL" in server.text
    server.stop()
    server.start()
    with server.connect() as client:
        log = client.log("l")
        assert values(log) in ([b"durable"], [b"durable", b"nobody knows"])
        log.append(b"goes on")


def test_a_full_disk_refuses_one_append_and_the_next_one_may_succeed(
    make_server: Callable[..., Server],
) -> None:
    server = make_server().start("--kill", "allocate:logs:ENOSPC:1")
    with server.connect() as client:
        # Larger than a file is to be: so nothing more is asked for, and then less.
        log = client.log("l", create=True, file_roll_size=4096)
        server.signal(signal.SIGUSR1)
        with pytest.raises(rlog.DiskFull) as raised:
            log.append(bytes(5000))
        assert raised.value.retriable
        assert log.append(b"there is now") == 0
        assert values(log) == [b"there is now"]


@pytest.mark.parametrize("who", [None, "c", rlog.GLOBAL])
def test_a_damaged_batch_is_told_once_with_its_address_and_reading_goes_on_behind_it(
    make_server: Callable[..., Server], who: str | rlog.Global | None
) -> None:
    server = make_server().start()
    with server.connect() as client:
        log = client.log("l", create=True)
        for i in range(3):
            # Larger than the last page, which a checkpoint holds and recovery puts back.
            log.append_many([b"%d first" % i + bytes(4000), b"%d second" % i + bytes(4000)])
    server.stop()
    [segment] = (server.data_dir / "logs").rglob("*.seg")
    data = bytearray(segment.read_bytes())
    data[data.index(b"1 first")] ^= 1
    segment.write_bytes(data)
    server.start()
    with server.connect() as client:
        log = client.log("l")
        source = (
            log.reader(rlog.OLDEST, block=False) if who is None else log.consumer(who, block=False)
        )
        seen: list[int] = []

        def handler(record: rlog.Record) -> None:
            seen.append(record.offset)

        with pytest.raises(rlog.CorruptData) as raised:
            source.process(handler)
        error = raised.value
        assert (error.log, error.first, error.end) == ("l", 2, 4)
        assert error.file == str(segment.relative_to(server.data_dir))
        assert error.position is not None
        assert error.position > 0
        assert seen == [0, 1]
        assert source.process(handler) == 2
        assert seen == [0, 1, 4, 5]
        assert log.append(b"and on") == 6
        if who is not None:
            assert log.cursor(who).info().committed == 6


def test_too_many_readers_of_one_connection_are_overloaded(client: rlog.Client) -> None:
    log = client.log("overloaded", create=True)
    readers = [log.reader(rlog.OLDEST) for _ in range(1024)]
    with pytest.raises(rlog.Overloaded) as raised:
        log.reader(rlog.OLDEST)
    assert raised.value.retriable
    readers.pop().close()
    eventually(lambda: bool(log.reader(rlog.OLDEST)), "there is room for one again")
    log.append(b"1")
    assert readers[0].poll(timeout=None)[0].value == b"1"


def test_closing_a_client_says_what_was_lost_with_its_connection(
    make_server: Callable[..., Server],
) -> None:
    server = make_server().start()
    client = server.connect(timeout=0.5)
    producer = client.log("l", create=True).producer(linger=60.0)
    producer.send(b"perhaps")
    server.signal(signal.SIGKILL)
    with pytest.raises((rlog.OutcomeUnknown, rlog.ConnectionLost)):
        client.close()
    client.close()  # closed all the same

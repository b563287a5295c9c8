"""What once broke, each as the claim that it broke."""

from __future__ import annotations

import socket
import threading
import time
from typing import TYPE_CHECKING

import pytest

import rlog_client as rlog
from rlog_client import protocol
from rlog_client.model import OLDEST as OLDEST_WHENCE
from rlog_client.protocol import encode

from .serving import Server, eventually

if TYPE_CHECKING:
    from collections.abc import Callable


class Raw:
    """A client without manners: says what it is told to, and reads when it is told to."""

    def __init__(self, server: Server) -> None:
        self.protocol = protocol.Connection(protocol.Side.CLIENT)
        host, _, port = server.tcp.removeprefix("rlog://").rpartition(":")
        self.socket = socket.create_connection((host, int(port)), timeout=30)
        self.socket.sendall(encode(1, protocol.Hello(protocol.PROTOCOL, "raw")))
        welcome = self.next()
        assert isinstance(welcome.control, protocol.Welcome)
        self.protocol.greeted = True
        self.protocol.payload_bytes_max = welcome.control.push_bytes_max

    def next(self) -> protocol.Message:
        while (message := self.protocol.next_message()) is None:
            room = self.protocol.room()
            if room is not None:
                count = self.socket.recv_into(room)
                assert count
                self.protocol.filled(count)
            else:
                data = self.socket.recv(65536)
                assert data
                self.protocol.received(data)
        return message


def test_many_holders_that_are_gone_at_once_do_not_end_the_server(
    make_server: Callable[..., Server],
) -> None:
    server = make_server().start()
    with server.connect() as client:
        log = client.log("l", create=True)
        raws = []
        for number in range(14):
            raw = Raw(server)
            claim = protocol.Claim(log.info().id, f"c{number}", OLDEST_WHENCE, b"t" * 16)
            raw.socket.sendall(encode(2, claim))
            assert isinstance(raw.next().control, protocol.Claimed)
            raws.append(raw)
        for raw in raws:
            raw.socket.close()
            time.sleep(0.05)
        eventually(lambda: not any(info.members for info in log.cursors()), "all are released")
        assert server.alive


def test_a_claim_that_is_released_in_its_own_frame_is_free(
    make_server: Callable[..., Server],
) -> None:
    server = make_server().start()
    with server.connect() as client:
        log = client.log("l", create=True)
        raw = Raw(server)
        number = log.info().id
        raw.socket.sendall(
            encode(2, protocol.Claim(number, "c", OLDEST_WHENCE, b"t" * 16))
            + encode(3, protocol.Release(number, "c"))
        )
        assert isinstance(raw.next().control, protocol.Claimed)
        assert isinstance(raw.next().control, protocol.Done)
        with log.consumer("c") as consumer:
            assert consumer.epoch == 2
        raw.socket.close()


@pytest.mark.parametrize("in_flight", [1, 1000])
def test_a_handler_that_seeks_is_not_committed_over(
    server: Server, log: rlog.Log, in_flight: int
) -> None:
    log.append_many([b"%d" % n for n in range(600)])
    seen: list[int] = []
    with log.consumer("c", block=False) as consumer:

        def handler(record: rlog.Record) -> None:
            seen.append(record.offset)
            if record.offset == 500 and seen.count(500) == 1:
                consumer.seek(rlog.OLDEST)

        consumer.process(handler, in_flight=in_flight)
        assert seen == [*range(501), *range(600)]
        assert consumer.committed == 600


def test_a_client_that_asks_and_never_reads_is_not_given_more_than_its_share(
    make_server: Callable[..., Server],
) -> None:
    server = make_server().start()
    with server.connect() as client:
        for number in range(200):
            client.log(f"log-{number}", create=True)
        raw = Raw(server)
        raw.socket.sendall(b"".join(encode(n, protocol.ListLogs()) for n in range(2, 2000)))
        time.sleep(1.0)
        assert server.rss_bytes < 150 << 20
        assert len(client.logs()) == 200  # others are served meanwhile
        for _ in range(1998):
            assert isinstance(raw.next().control, protocol.Listing)
        raw.socket.close()


def test_what_is_stored_is_read_also_when_less_is_taken_now(
    make_server: Callable[..., Server],
) -> None:
    server = make_server().start("--journal-file-bytes", str(8 << 20))
    big = [bytes(1 << 20)] * 4
    with server.connect() as client:
        client.log("l", create=True).append_many(big)
    server.stop()
    server.start("--journal-file-bytes", str(8 << 20), "--batch-bytes-max", str(1 << 20))
    with server.connect() as client:
        values = [r.value for r in client.log("l").reader(rlog.OLDEST, block=False)]
        assert values == big
        with pytest.raises(rlog.TooLarge):
            client.log("l").append_many(big)


# --- found by attacking clients, claims and verdicts ----------------------------------------


def test_what_is_redriven_reaches_a_worker_that_was_cut_off_while_idle(
    make_server: Callable[..., Server],
) -> None:
    server = make_server().start()
    with server.connect() as client:
        log = client.log("orders", create=True)
        log.append_many([b"0", b"1"])
        consumer = log.consumer("c")
        consumer.process(lambda r: rlog.Park() if r.offset == 0 else None, block=False)
        server.kill()
        server.start()
        seen: list[tuple[int, bool]] = []

        def note(record: rlog.Record) -> None:
            seen.append((record.offset, record.redriven))

        consumer.process(note, block=False)
        assert log.cursor("c").redrive() == 1
        consumer.process(note, block=False)
        assert seen == [(0, True)]


@pytest.mark.parametrize("style", ["reader", "consumer"])
def test_a_handlers_stop_iteration_comes_out_as_it_is(log: rlog.Log, style: str) -> None:
    log.append(b"x")
    source = log.reader(rlog.OLDEST) if style == "reader" else log.consumer("c")
    with source, pytest.raises(StopIteration):
        source.process(lambda r: next(iter(())))


def test_values_that_cannot_be_are_refused_where_they_are_made(log: rlog.Log) -> None:
    wrong: list[tuple[type[Exception], Callable[[], object]]] = [
        (TypeError, lambda: rlog.Park(None)),  # type: ignore[arg-type]  # wrong on purpose
        (TypeError, lambda: rlog.Skip(b"")),  # type: ignore[arg-type]  # wrong on purpose
        (TypeError, lambda: rlog.Retry("1")),  # type: ignore[arg-type]  # wrong on purpose
        (ValueError, lambda: rlog.Retry(float("nan"))),
        (ValueError, lambda: rlog.Retry(1e10)),
        (TypeError, lambda: log.consumer("c", hand_seconds="5")),  # type: ignore[arg-type]  # wrong on purpose
        (TypeError, lambda: log.consumer("c").commit(None)),  # type: ignore[arg-type]  # wrong on purpose
        (TypeError, lambda: log.consumer("c").process(len, in_flight=1.5)),  # type: ignore[arg-type]  # wrong on purpose
    ]
    for error, make in wrong:
        with pytest.raises(error):
            make()
    # What is only true or false by way of speaking is not worth a connection.
    assert log.consumer("d", standby=1).poll() == []  # type: ignore[arg-type]  # truth is enough


def test_a_request_that_the_server_cannot_read_is_not_sent_for_ever(client: rlog.Client) -> None:
    with pytest.raises(rlog.InvalidRequest):
        client._transport.call(protocol.GetLog("one"), protocol.LogReply)  # type: ignore[arg-type]


def test_a_standby_that_is_stopped_is_told_nothing_else(log: rlog.Log, other: rlog.Client) -> None:
    with log.consumer("c"):
        waits = other.log(log.name).consumer("c", standby=True)
        timer = threading.Timer(0.05, waits.stop)
        timer.start()
        assert waits.process(lambda r: None) == 0
        timer.join()
        time.sleep(0.05)  # the server's word on it has come
        assert waits.poll() == []


def test_a_wait_may_be_longer_than_the_kernel_counts(log: rlog.Log) -> None:
    with log.reader(rlog.LATEST) as reader:
        timer = threading.Timer(0.1, reader.stop)
        timer.start()
        assert reader.poll(timeout=1e10) == []
        timer.join()

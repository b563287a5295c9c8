"""Promises 20 to 23: whatever a peer sends or leaves undone, the server serves the others.

(That it may send anything at all is the business of tests/fuzz.)
"""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import socket
import struct
import time
from typing import TYPE_CHECKING

import msgspec
import pytest
import trio
import trio.testing

import rlog_client as rlog
from rlog.driver import Limits, open_driver
from rlog.files import Disk
from rlog.policy import parse_policy
from rlog.server import Server as TrioServer
from rlog_client import batch, protocol
from rlog_client.protocol import Append, Hello, encode
from tests.fuzz.messages import HELLO
from tests.fuzz.target import Target, drained

from .serving import Server, eventually

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator
    from pathlib import Path

OLDEST = rlog.OLDEST


@pytest.fixture(scope="module")
def target(place: Path) -> Iterator[Target]:
    server = Server(place / "target", "--journal-file-bytes", str(4 << 20)).start()
    try:
        yield Target(server)
    finally:
        server.kill()


# --- before and beside the protocol ---------------------------------------------------------


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(200),  # TLS
        b"SSH-2.0-OpenSSH_9.9\r\n",
        b"\0" * 1000,
        b"\xff" * 1000,
        encode(1, protocol.ListLogs()),  # before HELLO
        encode(1, Hello(protocol.PROTOCOL, "x" * 2000)),
        encode(1, Hello(2, "from the future")),
        HELLO[:-1],
    ],
    ids=["HTTP", "TLS", "SSH", "zeros", "ones", "no HELLO", "long HELLO", "version", "half"],
)
def test_what_is_no_greeting_is_the_end(target: Target, data: bytes) -> None:
    answer = target.send(data)
    assert len(answer) < 1000
    assert b"target" not in answer
    target.check()


def test_another_protocol_version_is_told_so(target: Target) -> None:
    assert b"protocol 2 is not known here" in target.send(encode(1, Hello(2)))


def test_a_greeting_is_answered_with_the_limits(target: Target) -> None:
    connection = protocol.Connection(protocol.Side.CLIENT)
    connection.received(target.send(HELLO))
    message = connection.next_message()
    assert message is not None
    assert isinstance(message.control, protocol.Welcome)
    assert message.control.record_bytes_max <= 1 << 20


@pytest.mark.parametrize("kind", [0, 38, 63, 64, 65, 70, 96, 255])
def test_an_unknown_kind_is_the_end(target: Target, kind: int) -> None:
    head = struct.pack("<IBBHI", 1, kind, 0, 1, 2)
    assert b"is not known here" in target.send(HELLO + head + b"\x80")
    target.check()


def test_flags_nobody_knows_are_the_end(target: Target) -> None:
    head = struct.pack("<IBBHI", 1, protocol.Ping.kind, 1, 1, 2)
    assert b"flags" in target.send(HELLO + head + b"\x80")


def test_a_payload_where_none_belongs_is_the_end(target: Target) -> None:
    assert b"has no payload" in target.send(HELLO + encode(2, protocol.Ping(), 5) + b"extra")
    target.check()


def test_a_control_longer_than_its_message_is_the_end(target: Target) -> None:
    head = struct.pack("<IBBHI", 1, protocol.Ping.kind, 0, 2, 2)
    assert b"control of 2 bytes" in target.send(HELLO + head + b"\x80\x80")
    head = struct.pack("<IBBHI", 20_000, protocol.Ping.kind, 0, 20_000, 2)
    assert b"control of 20000 bytes" in target.send(HELLO + head + bytes(20_000))


@pytest.mark.parametrize("length", [2**32 - 1, 1 << 30, 5 << 20])
def test_an_oversized_message_is_refused_by_its_header_alone(target: Target, length: int) -> None:
    control = msgspec.msgpack.encode(Append(1))
    head = struct.pack("<IBBHI", length, Append.kind, 0, len(control), 7)
    with target.dial() as sock:
        sock.sendall(HELLO + head + control)
        # Nothing more is sent: it does not wait for what it is not going to take.
        answer = drained(sock)
    assert b"payload of" in answer
    assert b"limit" in answer
    target.check()


def test_a_batch_that_is_not_sound_is_refused_and_the_connection_goes_on(target: Target) -> None:
    good = bytes(batch.encode([b"x"]))
    bad = [b"", good[:-1], good + b"x", bytes(len(good)), good[:80] + bytes(len(good) - 80)]
    data = HELLO + b"".join(encode(i, Append(3), len(body)) + body for i, body in enumerate(bad, 2))
    answer = target.send(data + encode(99, protocol.Ping()))
    assert answer.count(b"not a sound batch") == len(bad)
    target.check()


def test_a_request_id_in_use_is_the_end(target: Target) -> None:
    wait = encode(5, protocol.WaitSynced(1, 0))
    assert b"is in use" in target.send(HELLO + wait + wait)


# --- slow ones, and many --------------------------------------------------------------------


def test_clients_that_never_read_cost_the_others_nothing(target: Target) -> None:
    with target.server.connect() as client, contextlib.ExitStack() as stack:
        log = client.log("flood", create=True, sync="never")
        for _ in range(30):
            log.append_many([bytes(1000)] * 900)
        for _ in range(20):
            sock = stack.enter_context(target.dial())
            subscribe = encode(2, protocol.Subscribe(log._id, OLDEST))
            sock.sendall(HELLO + subscribe + encode(3, protocol.Credit(2, 2**40)))
        for i in range(100):
            log.append(b"%d" % i)
        assert sum(1 for _ in log.reader(OLDEST, block=False)) == 30 * 900 + 100
        log.delete()
    target.check()


def test_a_client_that_asks_and_never_takes_an_answer_is_not_read_for_ever(
    target: Target,
) -> None:
    with target.dial() as sock:
        sock.sendall(HELLO)
        sock.setblocking(False)
        asked = 0
        quiet = 0
        for request in range(2, 1 << 20):
            ask = encode(request, protocol.ListLogs())
            try:
                asked += sock.send(ask)
                quiet = 0
            except BlockingIOError:
                # Full, and it stays full: nobody reads at the other end.
                quiet += 1
                time.sleep(0.01)
            if quiet == 100:
                break
        assert asked < 1 << 22
        target.check()
    target.check()


def test_two_hundred_connections_are_served(target: Target) -> None:
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(target.server.connect()) for _ in range(200)]
        logs = [client.log("crowd", create=True) for client in clients]
        offsets = [log.append(b"%d" % i) for i, log in enumerate(logs)]
        assert offsets == list(range(200))
        readers = [log.reader(rlog.last(1), block=False) for log in logs[::20]]
        assert [[r.value for r in reader] for reader in readers] == [[b"199"]] * 10
    target.check()


def test_running_out_of_descriptors_passes(make_server: Callable[..., Server]) -> None:
    server = make_server("--nofile", "60").start()
    with server.connect() as client:
        log = client.log("l", create=True, file_roll_size=1 << 20)
        log.append(b"1")
        with contextlib.ExitStack() as stack:
            for _ in range(100):
                sock = stack.enter_context(socket.socket(socket.AF_UNIX))
                sock.connect(str(server.socket))
                with contextlib.suppress(ConnectionError):
                    sock.sendall(HELLO)
            eventually(lambda: "that is the limit" in server.text, "it is full")
            with pytest.raises(rlog.ConnectionLost, match="30 connections are open"):
                server.connect()
            # Who is there is served: new segments, new journal files, checkpoints.
            for _ in range(300):
                log.append(bytes(10_000))
            assert [r.offset for r in log.reader(OLDEST, block=False)] == list(range(301))
        eventually(lambda: _can_connect(server), "accepting resumes")
        log.append(b"2")
    assert "CRITICAL" not in server.text, server.text
    server.stop()


def _can_connect(server: Server) -> bool:
    try:
        with server.connect(timeout=1.0) as client:
            client.logs()
    except rlog.RlogError:
        return False
    return True


@pytest.mark.patience(180)
def test_memory_is_bounded_whatever_is_left_undone(make_server: Callable[..., Server]) -> None:
    """Promise 20: hundreds of hostile clients, in 400 MiB of address space."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    if 0 <= hard < 1000:
        pytest.skip(f"this machine allows {hard} open files")
    server = make_server("--address-space", str(400 << 20), "--sync", "never").start()
    with server.connect() as client, contextlib.ExitStack() as stack:
        log = client.log("l", create=True)
        half = encode(2, Append(log._id), 900_000) + bytes(100_000)
        for number in range(200):
            sock = stack.enter_context(socket.socket(socket.AF_UNIX))
            sock.connect(str(server.socket))
            sock.sendall(HELLO + (half if number % 2 else half[:10]))
        for i in range(100):
            assert log.append(bytes(100_000)) == i
    assert server.alive, server.text


# --- deadlines, in no time ------------------------------------------------------------------


@pytest.fixture
async def timed(
    tmp_path: Path, mock_clock: trio.testing.MockClock
) -> AsyncIterator[tuple[str, int]]:
    """A server on this very loop, whose hours pass in no time: its address."""
    mock_clock.autojump_threshold = 0.02
    (tmp_path / "d").mkdir()
    limits = Limits(parse_policy("always"), 1 << 20)
    driver = open_driver(
        Disk(str(tmp_path / "d")), limits, clock=trio.current_time, wall=time.time_ns
    )
    listener = socket.create_server(("127.0.0.1", 0))
    listener.setblocking(False)
    server = TrioServer(driver)
    async with trio.open_nursery() as nursery:
        await nursery.start(server.run, [listener])
        yield listener.getsockname()
        server.stop()


async def lasted(stream: trio.SocketStream) -> float:
    """How long until the server cut it, in its own time."""
    began = trio.current_time()
    try:
        while await stream.receive_some():
            pass
    except trio.BrokenResourceError:
        pass
    return trio.current_time() - began


async def test_a_peer_without_a_greeting_is_cut_after_5_seconds(
    timed: tuple[str, int], mock_clock: trio.testing.MockClock
) -> None:
    for data in (b"", HELLO[:5]):
        stream = await trio.open_tcp_stream(*timed)
        async with stream:
            if data:
                await stream.send_all(data)
            assert 4.9 < await lasted(stream) < 6


async def test_drops_of_a_greeting_do_not_put_it_off(
    timed: tuple[str, int], mock_clock: trio.testing.MockClock
) -> None:
    stream = await trio.open_tcp_stream(*timed)
    async with stream, trio.open_nursery() as nursery:

        async def drip() -> None:
            for byte in HELLO[:-1]:
                await trio.sleep(1.0)
                await stream.send_all(bytes([byte]))

        nursery.start_soon(drip)
        assert 4.9 < await lasted(stream) < 7
        nursery.cancel_scope.cancel()


async def test_an_unfinished_message_is_cut_after_30_seconds(
    timed: tuple[str, int], mock_clock: trio.testing.MockClock
) -> None:
    whole = encode(2, Append(1), 1000) + bytes(1000)
    for data in (whole[:3], whole[:20], whole[:500]):
        stream = await trio.open_tcp_stream(*timed)
        async with stream:
            await stream.send_all(HELLO + data)
            assert 29 < await lasted(stream) < 32


async def test_drops_of_a_message_do_not_put_it_off(
    timed: tuple[str, int], mock_clock: trio.testing.MockClock
) -> None:
    stream = await trio.open_tcp_stream(*timed)
    async with stream, trio.open_nursery() as nursery:
        await stream.send_all(HELLO + encode(2, Append(1), 1000))

        async def drip() -> None:
            for _ in range(999):
                await trio.sleep(1.0)
                await stream.send_all(b"x")

        nursery.start_soon(drip)
        assert 29 < await lasted(stream) < 33
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("follows", ["nothing", "half of another"])
async def test_what_came_while_the_server_stood_still_is_in_time(
    timed: tuple[str, int], mock_clock: trio.testing.MockClock, follows: str
) -> None:
    whole = encode(2, Append(1), 100_000) + bytes(100_000)  # more than one receive takes
    for _ in range(10):  # whose turn it is first is up to chance
        async with await trio.open_tcp_stream(*timed) as stream:
            stream.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
            await stream.send_all(HELLO + whole[:1000])
            assert await stream.receive_some()
            await trio.testing.wait_all_tasks_blocked()
            rest = whole[1000:] + (b"" if follows == "nothing" else whole[:1000])
            while rest:  # and no other task has a turn
                rest = rest[os.write(stream.socket.fileno(), rest) :]
            mock_clock.jump(31)
            assert await stream.receive_some(), "it was cut"


async def test_a_client_that_is_idle_is_never_cut(
    timed: tuple[str, int], mock_clock: trio.testing.MockClock
) -> None:
    stream = await trio.open_tcp_stream(*timed)
    async with stream:
        await stream.send_all(HELLO)
        assert await stream.receive_some()
        with trio.move_on_after(900.0) as quarter:
            await stream.receive_some()
        assert quarter.cancelled_caught
        await stream.send_all(encode(2, protocol.Ping()))
        assert await stream.receive_some()


async def test_a_server_that_is_cancelled_ends(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    limits = Limits(parse_policy("always"), 1 << 20)
    driver = open_driver(
        Disk(str(tmp_path / "d")), limits, clock=trio.current_time, wall=time.time_ns
    )
    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            await nursery.start(TrioServer(driver).run, [])
            nursery.cancel_scope.cancel()


async def test_a_connection_that_cannot_be_watched_is_closed_and_the_next_one_is_served(
    timed: tuple[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    def none(_server: TrioServer, _connection: object) -> None:
        raise OSError(errno.ENOSPC, "no watch is left")

    with monkeypatch.context() as patch:
        patch.setattr(TrioServer, "read", none)
        async with await trio.open_tcp_stream(*timed) as stream:
            assert await stream.receive_some() == b""
    async with await trio.open_tcp_stream(*timed) as stream:
        await stream.send_all(HELLO)
        assert await stream.receive_some()

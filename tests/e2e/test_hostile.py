"""Promises 20 to 23: whatever a peer sends or leaves undone, the server serves the others."""

from __future__ import annotations

import contextlib
import random
import re
import resource
import socket
import struct
import time
from typing import TYPE_CHECKING, Any, Final

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
from rlog_client.protocol import REQUESTS, Append, Control, Hello, encode

from .serving import Server, eventually

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator
    from pathlib import Path

MANY_LOGS: Final = 300  # so that no byte changed in an id names the bystander
HELLO: Final = encode(1, Hello(protocol.PROTOCOL, "hostile"))
OLDEST = rlog.OLDEST


class Target:
    """A server that is attacked, and a log in it that must not care."""

    def __init__(self, server: Server) -> None:
        self.server = server
        with server.connect() as client:
            for i in range(MANY_LOGS):
                client.log(f"target{i}", create=True, sync="never", key_index=i % 2 == 1)
            self.kept = client.log("kept", create=True).info().id
            client.log("kept").append_many([b"%d" % i for i in range(100)])

    def dial(self) -> socket.socket:
        sock = socket.socket(socket.AF_UNIX)
        sock.settimeout(30.0)
        sock.connect(str(self.server.socket))
        return sock

    def send(self, data: bytes) -> bytes:
        """Everything that comes back on a connection of its own."""
        with self.dial() as sock:
            with contextlib.suppress(ConnectionError):
                sock.sendall(data)
                sock.shutdown(socket.SHUT_WR)
            return drained(sock)

    def check(self) -> None:
        """It is up, has nothing to be ashamed of, and the bystander is as it was."""
        assert self.server.alive, self.server.text
        with self.server.connect() as client:
            log = client.log("kept")
            assert log.info().end == 100
            values = [r.value for r in log.reader(OLDEST, block=False)]
            assert values == [b"%d" % i for i in range(100)]
            scratch = client.log("scratch", create=True)
            scratch.append(b"writing works, too")
        assert "Traceback" not in self.server.text, self.server.text
        assert not re.search(r"^(ERROR|CRITICAL)", self.server.text, re.MULTILINE), self.server.text


def drained(sock: socket.socket) -> bytes:
    parts = []
    try:
        while data := sock.recv(65536):
            parts.append(data)
    except ConnectionError:
        pass
    return b"".join(parts)


@pytest.fixture(scope="module")
def target(place: Path) -> Iterator[Target]:
    server = Server(place / "target", "--journal-file-bytes", str(4 << 20)).start()
    try:
        yield Target(server)
    finally:
        server.kill()


def one_of_each() -> list[bytes]:
    """A valid message of every kind that a client can send."""
    whence = rlog.offset(0)
    body = bytes(batch.encode([b"value", b"other"], [b"k", None], [{"h": b"v"}, None], [None, 5]))
    controls: list[tuple[Control, bytes]] = [
        (Hello(protocol.PROTOCOL, "again"), b""),
        (protocol.Ping(), b""),
        (protocol.OpenLog("target1", True, {"sync": "never"}), b""),
        (protocol.ListLogs(), b""),
        (protocol.GetLog(1), b""),
        (protocol.AlterLog(1, {"file_roll_size": 8192, "max_file_age": 5.0}), b""),
        (protocol.TrimLog(1, whence), b""),
        (protocol.DeleteLog(1), b""),
        (Append(2, 0), body),
        (protocol.Resolve(2, rlog.time(1.5)), b""),
        (protocol.Subscribe(2, rlog.LATEST), b""),
        (protocol.Credit(11, 1000), b""),
        (protocol.Unsubscribe(11), b""),
        (protocol.Claim(2, "c", whence, bytes(16)), b""),
        (protocol.Release(2, "c"), b""),
        (protocol.CommitCursor(2, "c", 1, 0), b""),
        (protocol.SeekCursor(2, "c", whence, None, True), b""),
        (protocol.ListCursors(2), b""),
        (protocol.GetCursor(2, "c"), b""),
        (protocol.DeleteCursor(2, "c"), b""),
        (protocol.WaitSynced(2, 0), b""),
        (protocol.ListSegments(2), b""),
        (protocol.Settle(2, "c", 1, 0, "retry", delay=1.5, attempts=1, error="no"), b""),
        (protocol.TakeRedriven(2, "c", 1, True), b""),
        (protocol.ListParked(2, "c"), b""),
        (protocol.Redrive(2, "c", [0, 1]), b""),
        (protocol.Evict(2, "c"), b""),
        (protocol.Resume(2, "c"), b""),
        (protocol.Extend(2, "c", 1), b""),
        (protocol.OpenProducer(2, 7, "etl", exclusive=True, token=b"t"), b""),
        (protocol.ListProducers(2), b""),
        (
            protocol.Transact(
                7,
                1,
                [protocol.LogBatch(2, len(body), 0, [(0, 3)]), protocol.LogBatch(3, len(body))],
                [
                    protocol.CommitThrough(2, "c", 1, 0),
                    protocol.CommitRedriven(2, "c", 1, 0),
                    protocol.CommitSingle(2, "s", 1, 0),
                ],
            ),
            body + body,
        ),
        (protocol.ReadParked(2, "c", 0), b""),
        (protocol.GetLatest(2, b"k"), b""),
        (protocol.GetTable(2), b""),
        (protocol.CommitRecords(2, "s", 1, [0, 1], [2], [3]), b""),
    ]
    assert [type(control) for control, _ in controls] == list(REQUESTS)
    return [encode(i, c, len(p)) + p for i, (c, p) in enumerate(controls, 1)]


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


# --- mutations and fuzz ---------------------------------------------------------------------


def test_no_changed_byte_of_a_valid_message_does_harm(target: Target, long: bool) -> None:
    chance = random.Random(1)
    for message in one_of_each():
        for at in range(len(message)):
            changes = range(256) if long else {0, 0xFF, message[at] ^ 1, chance.randrange(256)}
            for changed in changes:
                mutant = message[:at] + bytes([changed]) + message[at + 1 :]
                target.send(HELLO + mutant + encode(1 << 20, protocol.Ping()))
        assert target.server.alive, target.server.text
    target.check()


class Fuzz:
    """Valid, half-valid and invalid messages, by a seed."""

    def __init__(self, seed: int) -> None:
        self.chance = random.Random(seed)
        self.samples = one_of_each()
        self.request = 1

    def number(self) -> int:
        chance = self.chance
        if chance.random() < 0.7:
            return chance.randrange(MANY_LOGS)
        # The bystander's id is just behind the others': far, or negative, but never that.
        return chance.choice([-1, 1 << 20, 2**31, 2**32, 2**63 - 1, -(2**63), 2**64 - 1])

    def text(self) -> str:
        return self.chance.choice(
            ["", "c", "@global", "target7", "x" * 300, "\0", "é" * 100, "../../etc", "never"]
        )

    def value(self, depth: int = 0) -> Any:
        chance = self.chance
        kind = chance.randrange(9 if depth < 3 else 6)
        match kind:
            case 0:
                return self.number()
            case 1:
                return self.text()
            case 2:
                return chance.randbytes(chance.randrange(20))
            case 3:
                return chance.choice([None, True, False, 1.5, float("inf"), float("nan")])
            case 4:
                return [chance.choice(["oldest", "latest", "offset", "last", "time", "x"]), 3]
            case 5:
                return {}
            case 6:
                return [self.value(depth + 1) for _ in range(chance.randrange(4))]
            case _:
                return {self.text(): self.value(depth + 1) for _ in range(chance.randrange(4))}

    def message(self) -> bytes:
        chance = self.chance
        self.request += 1
        kind = chance.choice(REQUESTS[1:])
        fields = {}
        for name, annotation in kind.__annotations__.items():
            if name == "kind" or chance.random() < 0.01:
                continue
            if chance.random() < 0.02:
                fields[name] = self.value()
            elif "Whence" in str(annotation):
                places = ["oldest", "latest", "offset", "last", "time"]
                fields[name] = [chance.choice(places), abs(self.number()) % 2**63]
            elif "int" in str(annotation):
                fields[name] = self.number()
            elif "str" in str(annotation):
                fields[name] = self.text()
            elif "bytes" in str(annotation):
                fields[name] = chance.randbytes(16)
            else:
                fields[name] = self.value()
        control = msgspec.msgpack.encode(fields)
        payload = b""
        if kind is Append:
            payload = bytes(batch.encode([chance.randbytes(chance.randrange(50))] * 3))
            if chance.random() < 0.3:
                at = chance.randrange(len(payload))
                payload = payload[:at] + chance.randbytes(1) + payload[at + 1 :]
        head = struct.pack(
            "<IBBHI", len(control) + len(payload), kind.kind, 0, len(control), self.request
        )
        return head + control + payload

    def connection(self) -> tuple[int, bytes]:
        """How many messages, and their bytes."""
        chance = self.chance
        messages = [self.message() for _ in range(chance.randrange(1, 40))]
        if chance.random() < 0.3:
            data = bytearray(b"".join(messages))
            for _ in range(chance.randrange(1, 4)):
                data[chance.randrange(len(data))] = chance.randrange(256)
            return len(messages), bytes(data)
        if chance.random() < 0.1:
            messages.insert(chance.randrange(len(messages)), chance.randbytes(100))
        if chance.random() < 0.1:
            messages[-1] = messages[-1][:-1]
        return len(messages), b"".join(messages)


@pytest.mark.patience(300)
@pytest.mark.parametrize("seed", range(4))
def test_twenty_thousand_messages_of_all_kinds_do_no_harm(
    target: Target, seed: int, long: bool
) -> None:
    fuzz = Fuzz(seed)
    count = 0
    while count < (50_000 if long else 5_000):
        messages, data = fuzz.connection()
        count += messages
        target.send(HELLO + data)
        assert target.server.alive, (seed, count, target.server.text)
    target.check()


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

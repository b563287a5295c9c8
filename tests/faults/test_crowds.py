"""Promises 20, 21 and 23: crowds of hostile clients, and what they cost the server and the others.

The real server under ``prlimit``. Its address space is what it has when nothing happens, and for
each client what the product's own constants allow it: so a cap that does not hold ends the server.
Good clients work all the while; how far they get is counted, never how fast.
"""

from __future__ import annotations

import contextlib
import shutil
import time
from typing import TYPE_CHECKING, Final

import pytest

import rlog_client as rlog
from rlog import connection, peer
from rlog_client import batch, model, protocol
from tests.e2e.history import payload
from tests.e2e.serving import eventually

from .raw import Raw, dial, packed
from .work import Ledger

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.server_process import ServerProcess

pytestmark = [
    pytest.mark.patience(300),
    pytest.mark.skipif(
        shutil.which("prlimit") is None, reason="there is no `prlimit` here: scripts/tools install"
    ),
]

MIB: Final = 1 << 20
BATCH_BYTES: Final = 1 * MIB  # the largest that this server takes
BASE_BYTES: Final = 320 * MIB  # address space of an idle server, with the stacks of its threads
IDLE_BYTES: Final = 64 * 1024
# What a client can make the server hold, by the constants: a message under way, what waits to be
# answered and the message that went beyond, what waits to be sent and the push that went beyond.
# Half as much again: what the allocator cannot use for others.
HOSTILE_BYTES: Final = int(
    1.5 * (BATCH_BYTES + peer.WAITING_BYTES_MAX + BATCH_BYTES + peer.OUT_BYTES_MAX + 2 * MIB)
)
BLOCKED: Final = rlog.LogOptions(max_total_bytes=32 << 10, file_roll_size=8 << 10)


class Hostile:
    """Sends as much as the server takes, of something that does not end, and reads nothing."""

    def __init__(self, url: str, said: Callable[[Raw], bytes]) -> None:
        self.raw = Raw(url)
        self._data = memoryview(said(self.raw))
        self._at = 0
        self.raw.socket.setblocking(False)

    def push(self) -> None:
        with contextlib.suppress(OSError):  # full, or cut
            while self._at < len(self._data):
                self._at += self.raw.socket.send(self._data[self._at : self._at + 65536])


def _half_a_message(raw: Raw) -> bytes:
    body = bytes(batch.encode([bytes(BATCH_BYTES - 200)]))
    return packed(9, protocol.Append(raw.open("flood")), body)[:-1]


def _never_reads(raw: Raw) -> bytes:
    flood = raw.open("flood")
    credit = [packed(20, protocol.Subscribe(flood, model.OLDEST))]
    credit += [packed(21 + n, protocol.Credit(20, 1 << 40)) for n in range(3)]
    return b"".join(credit)


def _appends_and_takes_no_answer(raw: Raw) -> bytes:
    log, one = raw.open("blocked"), bytes(batch.encode([bytes(400_000)]))
    return b"".join(packed(n, protocol.Append(log), one) for n in range(20, 80))


def _asks_and_takes_no_answer(_raw: Raw) -> bytes:
    return b"".join(packed(n, protocol.ListLogs()) for n in range(20, 50_000))


KINDS: Final = (
    _half_a_message,
    _never_reads,
    _appends_and_takes_no_answer,
    _asks_and_takes_no_answer,
)


class Good:
    """One client that appends, reads and commits, and keeps a ledger."""

    def __init__(self, client: rlog.Client) -> None:
        self.log = client.log("good", create=True)
        self.ledger = Ledger("good")
        self.consumer = self.log.consumer("c", block=False)
        self.rounds = 0

    def work(self) -> None:
        values = [payload("good", self.rounds * 10 + n, 500) for n in range(10)]
        self.ledger.sends("good", values)
        self.ledger.acknowledges("good", self.log.append_many(values).first, values)
        assert self.consumer.process(lambda _record: None) == 10
        self.rounds += 1

    def check(self) -> None:
        wrong: list[str] = []
        for record in self.log.reader(rlog.OLDEST, block=False):
            self.ledger.serves("good", record, wrong)
        assert wrong == []
        assert self.log.info().end == self.consumer.committed == 10 * self.rounds


@pytest.fixture
def crowd() -> Iterator[contextlib.ExitStack]:
    with contextlib.ExitStack() as stack:
        yield stack


@pytest.mark.patience(900)
def test_memory_is_what_the_caps_allow_and_good_clients_are_served(
    start_server: Callable[..., ServerProcess],
    crowd: contextlib.ExitStack,
    data_dir: Path,
    long: bool,
    record_property: Callable[[str, object], None],
) -> None:
    idle, hostile, rounds = (1000, 200, 30) if long else (200, 24, 5)
    space = BASE_BYTES + idle * IDLE_BYTES + hostile // len(KINDS) * len(KINDS) * HOSTILE_BYTES
    server = start_server(
        data_dir,
        *("--sync", "never", "--journal-file-size", "4MiB", "--batch-bytes-max", str(BATCH_BYTES)),
        under=["prlimit", f"--as={space}", "--nofile=4096"],
    )
    good = Good(crowd.enter_context(rlog.connect(server.url, timeout=60.0)))
    with rlog.connect(server.url, timeout=60.0) as client:
        flood = client.log("flood", create=True)
        for _ in range(30):
            flood.append(bytes(900_000))
        blocked = client.log("blocked", create=True, **BLOCKED)
        blocked.append(bytes(8 << 10))
        blocked.alter(blocking_minimum_retention=3600.0)
    # They are greeted, and say nothing more.
    idlers = [crowd.enter_context(Raw(server.url)) for _ in range(idle)]
    enemies = [Hostile(server.url, KINDS[n % len(KINDS)]) for n in range(hostile)]
    for enemy in enemies:
        crowd.enter_context(enemy.raw)
    for _ in range(rounds):
        for enemy in enemies:
            enemy.push()
        good.work()
    good.check()
    for idler in idlers[:: idle // 20]:
        assert isinstance(idler.ask(protocol.Ping()), protocol.Done), "it was never cut off"
    peak = _peak_bytes(server.pid)
    crowd.close()
    assert server.stop() == 0, server.log()
    assert "MemoryError" not in server.log(), server.log()
    assert "Traceback" not in server.log(), server.log()
    record_property("idle clients", idle)
    record_property("hostile clients", hostile)
    record_property("MiB of address space they were allowed", space // MIB)
    record_property("MiB that they took", peak // MIB)


def _peak_bytes(pid: int) -> int:
    with open(f"/proc/{pid}/status") as file:
        return next(int(line.split()[1]) << 10 for line in file if line.startswith("VmPeak"))


def test_whoever_does_not_read_delays_nobody_costs_its_credit_and_is_not_cut_off(
    start_server: Callable[..., ServerProcess], crowd: contextlib.ExitStack, data_dir: Path
) -> None:
    server = start_server(data_dir, "--sync", "never", "--journal-file-size", "4MiB")
    good = Good(crowd.enter_context(rlog.connect(server.url, timeout=60.0)))
    with rlog.connect(server.url, timeout=60.0) as client:
        flood = client.log("flood", create=True)
        for number in range(100):
            flood.append(payload("flood", number, 100_000))
        sleepers = [crowd.enter_context(Raw(server.url)) for _ in range(50)]
        subscriptions = []
        for raw in sleepers:
            request = raw.send(protocol.Subscribe(flood.info().id, model.OLDEST))
            raw.send(protocol.Credit(request, 1 << 20))
            subscriptions.append(request)
        before = _peak_bytes(server.pid)
        for number in range(100, 200):
            flood.append(payload("flood", number, 100_000))
            good.work()
        # A credit of 1 MiB each, and the batch that went beyond: not the 10 MB that came since.
        assert _peak_bytes(server.pid) - before < 50 * 3 * MIB
        good.check()
        # Late as they are, they get what they have credit for, from where they stood; and more.
        for raw, request in zip(sleepers, subscriptions, strict=True):
            assert isinstance(raw.answer(request), protocol.Place)
            records = raw.answer(request)
            assert isinstance(records, protocol.Records)
            assert records.first == 0
        assert isinstance(sleepers[0].ask(protocol.Ping()), protocol.Done)


@pytest.mark.slow
@pytest.mark.patience(300)
def test_peers_that_dribble_are_cut_off_and_those_that_are_here_are_served(
    start_server: Callable[..., ServerProcess],
    crowd: contextlib.ExitStack,
    data_dir: Path,
    record_property: Callable[[str, object], None],
) -> None:
    """Slowloris: a byte now and then, of a greeting, or of a message that never gets whole."""
    server = start_server(data_dir, "--sync", "never")
    good = Good(crowd.enter_context(rlog.connect(server.url, timeout=60.0)))
    hello = packed(1, protocol.Hello(protocol.PROTOCOL, "slow"))
    message = packed(2, protocol.OpenLog("x" * 40))
    dribblers: dict[socket.socket, Iterator[int]] = {}
    for number in range(200):
        sock = crowd.enter_context(dial(server.url))
        if number % 2:
            sock.sendall(hello)
        dribblers[sock] = iter((message if number % 2 else hello)[:-1])
        sock.setblocking(False)
    count, deadline = len(dribblers), time.monotonic() + 4 * connection.MESSAGE_SECONDS
    while dribblers:
        assert time.monotonic() < deadline, f"{len(dribblers)} are still here"
        for sock, rest in list(dribblers.items()):
            if _is_cut(sock, next(rest, None)):
                del dribblers[sock]
        good.work()
        time.sleep(0.5)
    good.check()
    eventually(lambda: server.log().count("too slow") == count, "each has its line")
    record_property("dribbling peers cut off", count)


def _is_cut(sock: socket.socket, byte: int | None) -> bool:
    """Send one byte more, if there is one; whether the server has closed."""
    try:
        if byte is not None:
            sock.send(bytes([byte]))
        while data := sock.recv(65536):
            assert data
    except BlockingIOError:
        return False
    except OSError:
        return True
    return True

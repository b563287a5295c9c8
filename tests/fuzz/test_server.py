"""Promise 22: no sequence of bytes crashes the server, hangs it, changes what it was not asked to,
or makes it grow.

The fault model: a peer that may send anything. The server is a real one, in a process of its own.
Each mutant has a connection of its own, behind a greeting that is right (else it would be cut off
before it is read) and before a valid request; noise comes many messages to a connection. While that
goes on, another client appends and reads.
"""

from __future__ import annotations

import random
import time
from typing import TYPE_CHECKING, Final

import pytest

from rlog_client import protocol
from rlog_client.protocol import HEAD_BYTES, REQUESTS, encode
from tests.e2e.serving import Server

from .messages import HELLO, Noise, requests
from .mutation import one_byte_each, spoiled, truncated_each
from .target import Served, Target

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

PING: Final = encode(1 << 20, protocol.Ping())
GROWTH_BYTES_MAX: Final = 48 << 20  # for what the noise rightly asks for: logs, cursors, producers


@pytest.fixture(scope="module")
def target(place: Path) -> Iterator[Target]:
    server = Server(place / "fuzzed", "--journal-file-bytes", str(4 << 20)).start()
    try:
        yield Target(server)
    finally:
        server.kill()


@pytest.mark.patience(3600)
@pytest.mark.parametrize("which", range(len(REQUESTS)), ids=[kind.__name__ for kind in REQUESTS])
def test_no_changed_byte_of_a_valid_message_does_harm(
    target: Target, which: int, long: bool, record_property: Callable[[str, object], None]
) -> None:
    message = requests()[which]
    # All 256 values of every byte; in the short tier each 97th, so every byte two or three times.
    mutants = [*one_byte_each(message, 1 if long else 97), *truncated_each(message)]
    with Served(target) as beside:
        for mutant in mutants:
            target.send(HELLO + mutant + PING)
    assert beside.rounds
    target.check()
    record_property("messages with one byte changed, or cut", len(mutants))


def answered(raw: bytes) -> int:
    """How many messages these are."""
    count = at = 0
    while at < len(raw):
        at += HEAD_BYTES + int.from_bytes(raw[at : at + 4], "little")
        count += 1
    return count


@pytest.mark.patience(3600)
@pytest.mark.parametrize("part", range(4))
def test_no_noise_does_harm_or_makes_the_server_grow(
    target: Target, part: int, seed: int, long: bool,
    record_property: Callable[[str, object], None],
) -> None:  # fmt: skip
    chance = random.Random(f"{seed} {part}")
    noise, count, wanted = Noise(chance), 0, 50_000 if long else 2_000
    grown_from = 0
    with Served(target) as beside:
        while count < wanted:
            # What is behind the first that is refused as a whole is not read: it does not count.
            count += answered(target.send(HELLO + noise.connection()))
            assert target.server.alive, (seed, part, count, target.server.text)
            if not grown_from and count > wanted // 4:
                grown_from = target.server.rss_bytes  # what is to be loaded once, is by now
    assert beside.rounds
    assert target.server.rss_bytes < grown_from + GROWTH_BYTES_MAX
    target.check()
    record_property("fuzzed messages that were answered", count)


@pytest.mark.patience(600)
def test_spliced_extended_and_doubled_messages_do_no_harm(
    target: Target, seed: int, long: bool, record_property: Callable[[str, object], None]
) -> None:
    chance, valid = random.Random(f"{seed} spliced"), requests()
    mutants = [
        spoiled(chance, chance.choice(valid), valid) for _ in range(50_000 if long else 1_000)
    ]
    for mutant in mutants:
        target.send(HELLO + mutant + PING)
    target.check()
    record_property("messages spliced, extended or doubled", len(mutants))


def test_one_byte_at_a_time_is_a_message_as_well(target: Target) -> None:
    """How the bytes are cut into packets does not matter."""
    whole = HELLO + encode(2, protocol.OpenLog("drops", True)) + PING
    with target.dial() as sock:
        for byte in whole:
            sock.sendall(bytes([byte]))
            time.sleep(0)
        connection = protocol.Connection(protocol.Side.CLIENT)
        connection.greeted, connection.payload_bytes_max = True, 1 << 20
        kinds: list[type[protocol.Control]] = []
        while len(kinds) < 3:
            connection.received(sock.recv(65536))
            while (message := connection.next_message()) is not None:
                kinds.append(type(message.control))
    assert set(kinds) == {protocol.Welcome, protocol.LogReply, protocol.Done}


def test_after_all_that_a_restart_finds_what_was_served(target: Target) -> None:
    """(It comes last in this module: what went before is in the journal.)"""
    target.server.stop()
    target.server.start()
    target.check()

"""Promises 21 and 23 where only real hosts can tell: silence ends a claim, and nothing else does.

What takes time is done once, for all clients together; the tests look at what came of it. No claim
may end before ``SOON``, since then it would not be the silence that ended it, and all have to by
``LATE``: 15 s, the server's look every 5 s, and patience with a slow machine.
"""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from typing import TYPE_CHECKING, Final, NamedTuple

import pytest

import rlog_client as rlog
from tests.e2e.serving import eventually

from .clients import ID, REQUEST_SECONDS
from .conftest import Client, FarServer
from .hosts import KEEPALIVE, PROBE, RETRANSMIT

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from .hosts import Link, Net

# One stage for all of them: not once in each process.
pytestmark = [pytest.mark.patience(280), pytest.mark.xdist_group("vanish")]

SOON: Final = 5.0
LATE: Final = 40.0
STALL_SECONDS: Final = 25.0  # that a client may stand still without being cut off: here,
LONG_STALL_SECONDS: Final = 90.0  # and in the long form
WINDOW_RECORDS: Final = 600  # of 1 KB: more than a window takes, less than a loan


class Part(NamedTuple):
    """What a client does when its host vanishes."""

    what: str
    options: tuple[str, ...] = ()
    timer: int | None = None  # what the server's kernel waits for then; None: that depends
    ready: str = "^held 1$"


IN_HAND: Final = "a handler runs"
WAITING: Final = "waits for records"
PUSHED: Final = "pushed to"
STREAM: Final = "in the middle of a stream"
READER: Final = "a reader in a stream"
FULL: Final = "a full window"

PARTS: Final = {
    IN_HAND: Part("hold", timer=KEEPALIVE),
    WAITING: Part("consume", timer=KEEPALIVE),
    PUSHED: Part("consume", timer=RETRANSMIT),
    STREAM: Part("consume", ready="^got 20 1$"),
    READER: Part("read", ready="^got 20 0$"),
    FULL: Part("consume", ("--small",), PROBE),
}
ASK, APPEND, READ, CONSUME = "asks", "appends", "reads", "consumes"
LEFT_BEHIND: Final = {
    ASK: Part("ask", ready="^port"),
    APPEND: Part("append", ready="^port"),
    READ: Part("read", ready="^got 0 0$"),
    CONSUME: Part("consume", ready="^got 0 1$"),
}


def held(log: rlog.Log) -> bool:
    return bool(log.cursor(ID).info().members)


class Stage:
    """A server, and clients by (what became of their host, their part)."""

    def __init__(self, server: FarServer, client: rlog.Client) -> None:
        self.server = server
        self.client = client
        self.clients: dict[tuple[str, str], Client] = {}
        self.logs: dict[tuple[str, str], rlog.Log] = {}
        self.ended: dict[tuple[str, str], float] = {}  # seconds from the cut to the end
        self.waited_for: dict[tuple[str, str], int | None] = {}  # by the server's kernel meanwhile
        self.noticed: dict[str, float] = {}  # and until the client said so
        self.epochs: dict[tuple[str, str], int] = {}  # of the next holder

    def put(self, link: Link, fate: str, parts: dict[str, Part]) -> None:
        for name, part in parts.items():
            key = (fate, name)
            # Few records are synced, since it is not the disk that is tried here.
            log = self.client.log(f"{fate}.{name}".replace(" ", "-"), create=True, sync="never")
            if name in (IN_HAND, READ, CONSUME):
                log.append(b"the first")
            self.logs[key] = log
            self.clients[key] = Client(self.server, link, log.name, part.what, *part.options)

    def wait(self, fate: str, parts: dict[str, Part]) -> None:
        for name, part in parts.items():
            self.clients[fate, name].wait_for(part.ready)

    def fill(self, key: tuple[str, str]) -> None:
        """Stop a client, and send it more than it has room for."""
        self.clients[key].pause()
        self.logs[key].append_many([bytes(1000)] * WINDOW_RECORDS)
        eventually(lambda: self.clients[key].waits_for(PROBE), "the window is full")

    def gone(self, key: tuple[str, str]) -> bool:
        if key[1] == READER:
            return not self.clients[key].connected
        return not held(self.logs[key])


@contextlib.contextmanager
def feeding(server: FarServer, logs: list[rlog.Log]) -> Iterator[None]:
    """Meanwhile, append to all of them."""
    stop = threading.Event()

    def feed() -> None:
        with server.connect() as client:
            mine = [client.log(log.name) for log in logs]
            while not stop.wait(0.01):
                for log in mine:
                    log.append(bytes(1000))

    thread = threading.Thread(target=feed)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


@pytest.fixture(scope="module")
def stage(net: Net, make_far_server: Callable[..., FarServer]) -> Iterator[Stage]:
    """Hosts vanish; one of them comes back. For the clients ``behind`` it is the server's."""
    server = make_far_server()
    with server.connect() as client:
        stage = Stage(server, client)
        unplugged = {name: PARTS[name] for name in (WAITING, PUSHED, FULL)}
        there = {name: PARTS[name] for name in (IN_HAND, WAITING, PUSHED, FULL)}
        casts = {"cut": PARTS, "unplugged": unplugged, "there": there, "behind": LEFT_BEHIND}
        links = {fate: net.link() for fate in casts}
        for fate, parts in casts.items():
            stage.put(links[fate], fate, parts)
        streams = [stage.logs["cut", STREAM], stage.logs["cut", READER]]
        with feeding(server, streams):
            for fate, parts in casts.items():
                stage.wait(fate, parts)
            for name in there:
                stage.clients["there", name].pause()
            for fate in ("cut", "unplugged", "there"):
                stage.fill((fate, FULL))
            stage.logs["there", PUSHED].append(b"pushed, and not read")
            vanish(stage, links)
        for key in stage.ended:
            if key[1] != READER:
                with stage.logs[key].consumer(ID) as consumer:
                    stage.epochs[key] = consumer.epoch
        yield stage
        assert server.alive, server.text
        assert "Traceback" not in server.text, server.text


def vanish(stage: Stage, links: dict[str, Link]) -> None:
    """Cut what is to be cut, and note until all is over what ends when."""
    before = time.monotonic()
    links["cut"].cut()
    links["behind"].cut()
    links["unplugged"].unplug()
    after = time.monotonic()
    lost = [key for key in stage.clients if key[0] in ("cut", "unplugged")]
    for key in lost:
        if key[1] == PUSHED:
            stage.logs[key].append_many([bytes(1000)] * 10)
    deadline = before + LATE + 5.0
    while time.monotonic() < deadline:
        for key in lost:
            if key not in stage.ended and stage.gone(key):
                stage.ended[key] = time.monotonic() - after
            elif key not in stage.waited_for and time.monotonic() > after + 1.0:
                connection = stage.clients[key].connection
                stage.waited_for[key] = None if connection is None else connection.timer
        for name in LEFT_BEHIND:
            if name not in stage.noticed and stage.clients["behind", name].says("^(told|ended)"):
                stage.noticed[name] = time.monotonic() - after
        everything = len(stage.ended) == len(lost) and len(stage.noticed) == len(LEFT_BEHIND)
        if everything and time.monotonic() > after + STALL_SECONDS:
            break
        time.sleep(0.05)


GONE: Final = [("cut", name) for name in PARTS] + [
    ("unplugged", name) for name in (WAITING, PUSHED, FULL)
]
gone = pytest.mark.parametrize("key", GONE, ids=": ".join)


@gone
def test_a_host_that_vanishes_is_let_go(stage: Stage, key: tuple[str, str]) -> None:
    assert SOON < stage.ended.get(key, float("inf")) < LATE
    assert not stage.clients[key].connected
    # It was in the state that it is here for: else it would only be the first one again.
    timer = PARTS[key[1]].timer
    assert timer is None or stage.waited_for[key] == timer


@pytest.mark.parametrize("key", [key for key in GONE if key[1] != READER], ids=": ".join)
def test_and_its_claim_can_be_claimed(stage: Stage, key: tuple[str, str]) -> None:
    assert stage.epochs[key] == 2


def test_a_holder_whose_host_comes_back_commits_nothing(stage: Stage) -> None:
    """Its claim was somebody else's meanwhile."""
    assert stage.epochs["cut", IN_HAND] == 2
    client = stage.clients["cut", IN_HAND]
    client.link.mend()
    client.process.send_signal(signal.SIGUSR1)
    client.wait_for(r"^error (Fenced|ConnectionLost) ")
    assert stage.logs["cut", IN_HAND].cursor(ID).info().committed == 0


@pytest.mark.parametrize("name", [IN_HAND, WAITING, PUSHED, FULL])
def test_a_stopped_client_whose_host_is_there_keeps_its_claim(stage: Stage, name: str) -> None:
    client, log = stage.clients["there", name], stage.logs["there", name]
    assert client.connected
    with pytest.raises(rlog.Busy) as raised:
        log.consumer(ID).poll()
    assert raised.value.holder == log.name
    client.resume()
    if name == IN_HAND:
        client.process.send_signal(signal.SIGUSR1)
    elif name == WAITING:
        log.append(b"after all")
    end = log.info().end
    eventually(lambda: log.cursor(ID).info().committed == end, "all is committed")
    if name == IN_HAND:
        eventually(lambda: not held(log), "it is released, after all")
    else:
        client.wait_for(rf"^got {end - 1} 1$")
        assert held(log)
    assert not client.says("^(told|error|ended)")


@pytest.mark.parametrize("name", [ASK, APPEND])
def test_a_request_to_a_host_that_vanished_fails_by_its_timeout(stage: Stage, name: str) -> None:
    how = "OutcomeUnknown" if name == APPEND else "TimedOut|ConnectionLost"
    found = stage.clients["behind", name].wait_for(rf"^error ({how}) (\S+)$")
    # Not before: nobody has said that the host is gone.
    assert REQUEST_SECONDS * 0.9 < float(found[2]) < REQUEST_SECONDS + 10.0


@pytest.mark.parametrize("name", [READ, CONSUME])
def test_a_blocked_iteration_notices_that_the_servers_host_vanished(
    stage: Stage, name: str
) -> None:
    assert SOON < stage.noticed.get(name, float("inf")) < LATE


@pytest.mark.parametrize("name", [READ, CONSUME])
def test_and_goes_on_when_it_is_back(stage: Stage, name: str) -> None:
    client, log = stage.clients["behind", name], stage.logs["behind", name]
    assert client.process.poll() is None, client.text
    log.append_many([b"while it was away"] * 3)
    client.link.mend()
    end = log.append(b"when it was back") + 1
    client.wait_for(rf"^got {end - 1} \d+$")
    offsets = [int(line.split()[1]) for line in client.text.splitlines() if line[:3] == "got"]
    assert sorted(set(offsets)) == list(range(end))


# --- the long form ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def stalled(net: Net, make_far_server: Callable[..., FarServer]) -> Iterator[Stage]:
    """Clients that stand still for longer than any deadline; then the host of some vanishes."""
    server = make_far_server()
    with server.connect() as client:
        stage = Stage(server, client)
        parts = {name: PARTS[name] for name in (IN_HAND, WAITING, FULL)}
        links = {fate: net.link() for fate in ("stalled", "late")}
        for fate, link in links.items():
            stage.put(link, fate, parts)
        for fate in links:
            stage.wait(fate, parts)
            stage.clients[fate, IN_HAND].pause()
            stage.clients[fate, WAITING].pause()
            stage.fill((fate, FULL))
        time.sleep(LONG_STALL_SECONDS)
        for key, log in stage.logs.items():
            assert held(log), key
            assert stage.clients[key].connected, key
        links["late"].cut()
        after = time.monotonic()
        late = [("late", name) for name in parts]
        while time.monotonic() < after + LATE + 5.0 and len(stage.ended) < len(late):
            for key in late:
                if key not in stage.ended and stage.gone(key):
                    stage.ended[key] = time.monotonic() - after
            time.sleep(0.05)
        yield stage


@pytest.mark.slow
@pytest.mark.parametrize("name", [IN_HAND, WAITING, FULL])
def test_standing_still_for_long_is_no_reason_to_be_cut_off(stalled: Stage, name: str) -> None:
    client, log = stalled.clients["stalled", name], stalled.logs["stalled", name]
    assert client.connected
    assert held(log)
    client.resume()
    if name == IN_HAND:
        client.process.send_signal(signal.SIGUSR1)
    elif name == WAITING:
        log.append(b"after all")
    end = log.info().end
    eventually(lambda: log.cursor(ID).info().committed == end, "all is committed")
    assert not client.says("^(told|error|ended)")


@pytest.mark.slow
@pytest.mark.parametrize("name", [IN_HAND, WAITING, FULL])
def test_nor_to_be_kept_when_the_host_vanishes_then(stalled: Stage, name: str) -> None:
    assert SOON < stalled.ended.get(("late", name), float("inf")) < LATE

"""Promise 21 where only real TCP can tell: a handler that runs for long is not a dead one.

Both kernels give up a connection after ``USER_TIMEOUT_MS`` without an acknowledgment, a third of
what they do otherwise, so a handler has to outlast it by far less: all the while somebody else
appends, and what is pushed to a client that does not read must fit into its kernel.
"""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Final

import pytest

from tests.e2e.serving import eventually

from .clients import ID
from .conftest import Client, FarServer
from .hosts import PROBE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import rlog_client as rlog

    from .hosts import Net

USER_TIMEOUT_MS: Final = 5000


class Feed:
    """Somebody else, who appends all the time: large batches, and single records."""

    def __init__(self, server: FarServer, log: str) -> None:
        self._server = server
        self._log = log
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self.failed: Exception | None = None
        self._thread.start()

    def _run(self) -> None:
        try:
            with self._server.connect() as client:
                log = client.log(self._log)
                while not self._stop.wait(0.2):
                    log.append_many([bytes(1000)] * 300)  # more than a kernel takes at first
                    log.append_many([bytes(1000)] * 50)
                    for _ in range(20):  # each takes more room in a kernel than it is long
                        log.append(bytes(100))
        except Exception as error:
            self.failed = error

    def stop(self) -> None:
        self._stop.set()
        self._thread.join()


@pytest.fixture
def server(make_far_server: Callable[..., FarServer]) -> FarServer:
    return make_far_server(USER_TIMEOUT_MS)


@pytest.fixture
def client(server: FarServer) -> Iterator[rlog.Client]:
    with server.connect() as client:
        yield client


@pytest.mark.parametrize("seconds", [12.0, pytest.param(60.0, marks=pytest.mark.slow)])
@pytest.mark.patience(180)
def test_a_long_handler_keeps_its_claim_and_its_connection(
    net: Net, server: FarServer, client: rlog.Client, seconds: float
) -> None:
    log = client.log("busy", create=True, sync="never")
    log.append(b"the first")
    impatient = ("--user-timeout", str(USER_TIMEOUT_MS), "--seconds", str(seconds))
    links = {"roomy": net.link(), "small": net.link()}
    options = {"roomy": impatient, "small": ("--small", *impatient)}
    # Each consumer has an ID of its own; readers need none.
    workers = {
        name: Client(server, link, "busy", "work", "--id", name, *options[name])
        for name, link in links.items()
    }
    readers = {
        name: Client(server, link, "busy", "look", *options[name]) for name, link in links.items()
    }
    everyone = [*workers.values(), *readers.values()]
    for each in everyone:
        each.wait_for(r"^got 0 \d$")
    began = time.monotonic()
    feed = Feed(server, "busy")
    try:
        while time.monotonic() < began + seconds * 0.9:
            for name, worker in workers.items():
                assert worker.connected, (name, worker.text, server.text)
                assert log.cursor(name).info().members, name
            assert all(reader.connected for reader in readers.values()), server.text
            time.sleep(0.2)
        for worker in workers.values():
            port = worker.wait_for(r"^port (\d+)$")[1]
            done = worker.wait_for(r"^done epoch (\d+) committed (\d+) port (\d+)$", seconds + 60.0)
            assert done.groups() == ("1", "1", port)
        for reader in readers.values():
            port = reader.wait_for(r"^port (\d+)$")[1]
            assert reader.wait_for(r"^done port (\d+)$", seconds + 60.0)[1] == port
            assert reader.says("^got 1000 0$")
    finally:
        feed.stop()
    assert feed.failed is None
    for name in workers:
        info = log.cursor(name).info()
        assert info.committed == 1
    assert not any(each.says("^(told|error|ended)") for each in everyone)


def test_the_timeout_of_these_tests_is_in_force(
    net: Net, server: FarServer, client: rlog.Client
) -> None:
    """Otherwise the other one would show nothing: who does not take what is under way is cut off,
    here and nowhere else.
    """
    log = client.log("strict", create=True, sync="never")
    reader = Client(server, net.link(), "strict", "consume", "--small")
    # It is to be paused while a loan of its is open, which it does not say; but most of the time
    # one is.
    for attempt in range(1, 6):
        reader.wait_for(rf"^got {log.append(b'one')} 1$")
        reader.pause()
        log.append_many([bytes(1000)] * 600)
        if _within(5.0, lambda: reader.waits_for(PROBE) or not reader.connected):
            break
        assert attempt < 5, "the window is never full"
        reader.resume()
    eventually(lambda: not log.cursor(ID).info().members, "it is cut off", 40.0)
    assert not reader.connected


def _within(seconds: float, condition: Callable[[], bool]) -> bool:
    try:
        eventually(condition, "", seconds)
    except AssertionError:
        return False
    return True

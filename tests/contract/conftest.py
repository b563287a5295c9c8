"""One suite, every transport and every client."""

from __future__ import annotations

import itertools
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
from anyio.from_thread import start_blocking_portal

import rlog
from tests.e2e.serving import Server

from .bridge import Bridge

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

WAYS = [
    *(
        f"{transport}-{client}"
        for transport in ("tcp", "unix")
        for client in ("blocking", "trio", "asyncio")
    ),
    "embedded-blocking",
]
_numbers = itertools.count()


class Way(NamedTuple):
    """How a test reaches a log: by what transport, with what client."""

    name: str
    connect: Callable[[], Any]  # a client, entered; closed at the test's end


@pytest.fixture(scope="session")
def contract_place() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="rlog-", ignore_cleanup_errors=True) as name:
        yield Path(name)


@pytest.fixture(scope="session")
def contract_server(contract_place: Path) -> Iterator[Server]:
    server = Server(contract_place / "contract").start()
    try:
        yield server
        assert server.alive, server.text
    finally:
        server.kill()


@pytest.fixture(params=WAYS)
def way(
    request: pytest.FixtureRequest, contract_server: Server, contract_place: Path
) -> Iterator[Way]:
    transport, _, kind = request.param.partition("-")
    with ExitStack() as stack:
        if transport == "embedded":
            first = stack.enter_context(rlog.open(contract_place / f"embedded{next(_numbers)}"))
            yield Way(request.param, lambda: stack.enter_context(first.clone()))
            return
        url = contract_server.tcp if transport == "tcp" else contract_server.unix
        if kind == "blocking":
            yield Way(request.param, lambda: stack.enter_context(rlog.connect(url, timeout=30)))
            return
        portal = stack.enter_context(start_blocking_portal(kind))

        def connect() -> Any:
            client = Bridge(rlog.connect_async(url, timeout=30), portal)
            return stack.enter_context(client)

        yield Way(request.param, connect)


@pytest.fixture
def client(way: Way) -> Any:
    return way.connect()


@pytest.fixture
def other(way: Way) -> Any:
    """A second client."""
    return way.connect()


@pytest.fixture
def log(client: Any) -> Any:
    """A log of one's own, empty."""
    return client.log(f"contract{next(_numbers)}", create=True)

"""Each test here runs on asyncio and on trio: it is a plain function that runs coroutines."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

import anyio
import pytest

from tests.client.peer import Peer
from tests.e2e.conftest import guard, make_server, place, server

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["guard", "make_server", "place", "server"]

_numbers = itertools.count()


@pytest.fixture(params=["asyncio", "trio"])
def run(request: pytest.FixtureRequest) -> Callable[..., Any]:
    """``run(main)``: what ``main`` returns, in an event loop of its own."""
    return lambda main: anyio.run(main, backend=request.param)


@pytest.fixture
def name() -> str:
    """Of a log of one's own."""
    return f"aio{next(_numbers)}"


@pytest.fixture
def peer() -> Iterator[Peer]:
    peer = Peer()
    yield peer
    peer.close()

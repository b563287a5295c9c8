"""The kit's own fixture, and one client after the other: each fault is seen by all of them."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import pytest
from anyio.from_thread import start_blocking_portal

from rlog.testing import rlog_server
from tests.contract.bridge import Bridge
from tests.e2e.conftest import guard

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import rlog

__all__ = ["guard", "rlog_server"]


@pytest.fixture(params=["blocking", "trio", "asyncio"])
def connect(
    request: pytest.FixtureRequest, rlog_server: rlog.testing.Server
) -> Iterator[Callable[..., Any]]:
    """``connect(timeout=, name=)``: a client of ``rlog_server``; an async one has a blocking face
    here, and its own loop behind it.
    """
    if request.param == "blocking":
        yield rlog_server.connect
        return
    with ExitStack() as stack:

        def connect(**options: Any) -> Any:
            # Each on a loop of its own: a handler here may stand still.
            portal = stack.enter_context(start_blocking_portal(request.param))
            return stack.enter_context(Bridge(rlog_server.connect_async(**options), portal))

        yield connect


@pytest.fixture
def client(connect: Callable[..., Any]) -> Any:
    return connect(timeout=30.0)


@pytest.fixture
def log(client: Any) -> Any:
    return client.log("l", create=True)

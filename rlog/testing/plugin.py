"""The pytest side: fixtures. Nothing else here needs pytest."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from .serving import Server

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def rlog_server() -> Iterator[Server]:
    """A real rlog server for this test, empty, in a thread of this process: ``rlog_server.url``,
    ``.connect()``, ``.connect_async()``, and faults on demand.
    """
    with Server() as server:
        yield server

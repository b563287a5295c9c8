from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

import rlog_client as rlog

from .peer import Peer

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def peer() -> Iterator[Peer]:
    peer = Peer()
    yield peer
    peer.close()


@pytest.fixture
def client(peer: Peer) -> Iterator[rlog.Client]:
    with rlog.connect(peer.url, timeout=5.0, name="test") as client:
        yield client


@pytest.fixture
def log(client: rlog.Client) -> rlog.Log:
    return client.log("l")

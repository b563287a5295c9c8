"""The storage tests crash the product ten thousand times; what it logs then is not their report."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import pytest

from rlog import index

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


@pytest.fixture(autouse=True)
def close_milestones(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a log has every 4 MiB, these small ones have, too."""
    monkeypatch.setattr(index, "MILESTONE_SPACING", 512)

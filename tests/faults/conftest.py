"""Places for servers that meet faults, and servers under commands that bring them about."""

from __future__ import annotations

import itertools
import shutil
from typing import TYPE_CHECKING

import pytest

from tests.e2e.conftest import guard, place
from tests.server_process import ServerProcess

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

__all__ = ["guard", "place"]

_numbers = itertools.count()


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "patience(seconds): how long this test may take; not a goal")


@pytest.fixture
def data_dir(place: Path) -> Iterator[Path]:
    """Of a server to come, with room for sockets and logs beside it."""
    own = place / f"faults{next(_numbers)}"
    own.mkdir()
    yield own / "data"
    shutil.rmtree(own, ignore_errors=True)


@pytest.fixture
def start_server() -> Iterator[Callable[..., ServerProcess]]:
    """``start_server(data_dir, *flags, under=...)``: the real ``rlog serve``, killed at the end."""
    started: list[ServerProcess] = []

    def start(data_dir: Path, *flags: str, **named: object) -> ServerProcess:
        started.append(ServerProcess(data_dir, *flags, **named))  # type: ignore[arg-type]
        return started[-1]

    yield start
    for each in started:
        each.kill()

"""Machines whose power can be cut, where there is user-mode Linux."""

from __future__ import annotations

from itertools import count
from typing import TYPE_CHECKING

import pytest

from .trial import Trial
from .uml import Machine, Unavailable

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from .plan import FileSystem


@pytest.fixture
def begin_trial(tmp_path: Path, seed: int) -> Callable[[FileSystem], Trial]:
    """``begin_trial(file_system)``: a new disk. Skips where there is no such machine."""
    seeds = count(seed)

    def begin(file_system: FileSystem) -> Trial:
        try:
            return Trial(Machine(tmp_path, file_system), next(seeds))
        except Unavailable as error:
            pytest.skip(str(error))

    return begin

"""``PROMISES.md`` names a test for every promise, and each of them exists."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

HERE = Path(__file__).parent
TEXT = (HERE / "PROMISES.md").read_text()
NUMBERS = range(1, 27)
WITHOUT_TESTS = {26}  # access control is not there yet


def sections() -> dict[int, str]:
    parts = re.split(r"^## (\d+)\. ", TEXT, flags=re.MULTILINE)[1:]
    return {int(number): text for number, text in zip(parts[::2], parts[1::2], strict=True)}


def test_every_promise_has_its_section_in_order() -> None:
    assert list(sections()) == list(NUMBERS)


@pytest.mark.parametrize("number", NUMBERS)
def test_what_is_named_for_a_promise_exists(number: int) -> None:
    named = re.findall(r"^- [SUXTF] `(\S+?)::(\w+)`$", sections()[number], re.MULTILINE)
    assert bool(named) == (number not in WITHOUT_TESTS)
    assert len(named) == sections()[number].count("\n- ")
    for path, test in named:
        assert re.search(rf"^(async )?def {test}\(", (HERE / path).read_text(), re.MULTILINE), test

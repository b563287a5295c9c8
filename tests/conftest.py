"""What all tests share: ``--long``, ``--seed``, the report, and the profiles of hypothesis."""

from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

from tests.report import Report

settings.register_profile(
    "ci",
    derandomize=True,
    deadline=None,
    max_examples=60,
    database=None,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.register_profile(
    "long",
    deadline=None,
    max_examples=5000,
    suppress_health_check=[HealthCheck.too_slow],
)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--long", action="store_true", help="run the tests marked slow, too")
    parser.addoption("--results", metavar="FILE", help="append what was counted as a line of JSON")
    parser.addoption("--seed", type=int, help="what random tests begin with; 0, or new if --long")


def pytest_configure(config: pytest.Config) -> None:
    if hasattr(config, "workerinput"):
        config.option.seed = config.workerinput["seed"]
    elif config.option.seed is None:
        config.option.seed = random.randrange(1 << 32) if config.getoption("--long") else 0
    if not hasattr(config, "workerinput"):
        config.pluginmanager.register(Report(config.option.seed, config.option.results))
    settings.load_profile("long" if config.getoption("--long") else "ci")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--long"):
        return
    skip = pytest.mark.skip(reason="slow: runs only with --long")
    for item in items:
        if "slow" in item.keywords:
            item.add_marker(skip)


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    """What pytest-xdist tells a worker: all have the same seed."""
    node.workerinput["seed"] = node.config.option.seed


def pytest_report_header(config: pytest.Config) -> str:
    return f"seed: {config.option.seed}"


@pytest.fixture
def seed(request: pytest.FixtureRequest) -> int:
    """What a random test begins with: the same again with ``--seed``."""
    return int(request.config.option.seed)


@pytest.fixture
def long(request: pytest.FixtureRequest) -> bool:
    """Whether the long tier was asked for."""
    return bool(request.config.getoption("--long"))

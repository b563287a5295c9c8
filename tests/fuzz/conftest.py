"""The guard against hanging, and the short-named place for sockets, are those of tests/e2e."""

from tests.e2e.conftest import guard, make_server, place, pytest_configure

__all__ = ["guard", "make_server", "place", "pytest_configure"]

"""A real rlog server for the tests of programs that use one, with faults on demand.

    pytest_plugins = ["rlog.testing"]  # in conftest.py, or in the test's own file

    def test_an_order_is_billed_once(rlog_server):
        orders = rlog_server.connect().log("orders", create=True)
        orders.append(b"7")
        with rlog_server.lose_reply(to="commit"):
            bill_all(rlog_server.url)
        assert billed == [7]

The server is the one of ``rlog serve``, in a thread of the test's process, at a port of its own and
with a directory of its own; so tests run beside each other. It serves any event loop::

    async def test_on_trio(rlog_server):  # pytest-trio; for asyncio the same, with anyio's marker
        async with rlog_server.connect_async() as client:
            ...

What a test may do to it are the methods of ``Server``: ``restart``, ``stop``, ``crash`` and
``start``; ``lose_reply``, ``cut``, ``lapse``, ``full_disk``, ``fail_sync``, ``pause`` and
``advance``. Without pytest, for another scope, or with other options: ``with
rlog.testing.Server(...) as server``.

(PYTEST_DONT_REWRITE: whoever imports this before pytest does is not to be warned.)
"""

from .faults import Fault, Reply
from .life import ServerFailed
from .serving import Server

try:
    from .plugin import rlog_server as rlog_server
except ModuleNotFoundError as error:
    if error.name != "pytest":
        raise

__all__ = ["Fault", "Reply", "Server", "ServerFailed"]

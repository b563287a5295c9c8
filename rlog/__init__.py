"""rlog, a standalone append-only log server with consumer groups.

``import rlog`` gives the client's names, and ``rlog.open(dir)``: a client of a directory in this
process, without a server. The server is ``rlog.server``, run by ``rlog serve``; ``rlog.testing``
has one for the tests of those who use it.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

import rlog_client
from rlog_client import *  # noqa: F403 (all of its surface, under a second name)
from rlog_client import __all__ as __all__
from rlog_client import __version__ as __version__

if TYPE_CHECKING:
    from rlog_client import AsyncClient as AsyncClient
    from rlog_client import AsyncConsumer as AsyncConsumer
    from rlog_client import AsyncCursor as AsyncCursor
    from rlog_client import AsyncLog as AsyncLog
    from rlog_client import AsyncPending as AsyncPending
    from rlog_client import AsyncProducer as AsyncProducer
    from rlog_client import AsyncReader as AsyncReader
    from rlog_client import AsyncSource as AsyncSource
    from rlog_client import AsyncTable as AsyncTable
    from rlog_client import AsyncTransaction as AsyncTransaction
    from rlog_client import connect_async as connect_async

    from . import testing as testing
    from .embedded import Locked as Locked
    from .embedded import Refused as Refused
    from .embedded import open as open

# Not in __all__: ``from rlog import *`` is not to replace the built-in ``open``.
_EMBEDDED = ("Locked", "Refused", "open")


def __getattr__(name: str) -> Any:
    # Loaded when it is asked for: who only talks to a server needs no broker, and many no anyio.
    if name in rlog_client.ASYNC:
        return getattr(rlog_client, name)
    if name == "testing":
        # Not by ``from . import``, which would ask here again.
        return import_module(".testing", __name__)
    if name not in _EMBEDDED:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from . import embedded

    return getattr(embedded, name)


def __dir__() -> list[str]:
    return [*globals(), "testing", *_EMBEDDED, *rlog_client.ASYNC]

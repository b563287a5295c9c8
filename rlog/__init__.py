"""rlog, a standalone append-only log server with consumer groups.

``import rlog`` gives the client's names; the server is ``rlog.server``, run by ``rlog serve``.
"""

from rlog_client import *  # noqa: F403 (the same surface under a second name)
from rlog_client import __all__ as __all__
from rlog_client import __version__ as __version__

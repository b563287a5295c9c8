"""Runs a server as ``tests.e2e.serve_here`` does, with TCP_USER_TIMEOUT on all that it accepts.

    python -m tests.net.serve_there MILLISECONDS DIR --listen ADDRESS ...

A listening socket hands its options on to what it accepts, so the server itself is as it is.
"""

from __future__ import annotations

import socket
import sys
from typing import Any

from tests.e2e import serve_here

_create_server = socket.create_server


def main() -> None:
    milliseconds = int(sys.argv.pop(1))

    def create_server(*arguments: Any, **options: Any) -> socket.socket:
        listener = _create_server(*arguments, **options)
        if listener.family != socket.AF_UNIX:
            listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, milliseconds)
        return listener

    socket.create_server = create_server
    serve_here.main()


if __name__ == "__main__":
    main()

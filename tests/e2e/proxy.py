"""A TCP proxy in front of a server, that loses what the server answers."""

from __future__ import annotations

import contextlib
import selectors
import socket
import threading
import time
from urllib.parse import urlsplit

LOST_SECONDS = 0.03  # that the server has for an answer which nobody gets


class Proxy:
    """``swallow()``: from now on nothing of what the server says comes through, until ``cut()``
    ends all connections; new ones are let through again.

    ``burn(n)``: they are cut when the client says something for the n-th time; it ``arrives`` at
    the server, and the answer is lost, or it does not.
    """

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self._server = (parts.hostname, parts.port)
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.url = f"rlog://127.0.0.1:{self._listening.getsockname()[1]}"
        self.swallowed = 0  # bytes
        self._swallows = False
        self._fuse = 0
        self._arrives = False
        self._pairs: list[tuple[socket.socket, socket.socket]] = []
        self._accepting = threading.Thread(target=self._accept, daemon=True)
        self._accepting.start()

    def swallow(self) -> None:
        self._swallows = True

    def burn(self, fuse: int, *, arrives: bool) -> None:
        self._fuse, self._arrives = fuse, arrives

    @property
    def burns(self) -> bool:
        """It has not come to that yet."""
        return self._fuse > 0

    def cut(self) -> None:
        self._swallows = False
        pairs, self._pairs = self._pairs, []
        for pair in pairs:
            for each in pair:
                with contextlib.suppress(OSError):
                    each.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()
        self._accepting.join(5)
        self.cut()

    @property
    def _burnt_down(self) -> bool:
        self._fuse -= 1
        return self._fuse == 0

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listening.accept()
            except OSError:
                return
            try:
                server = socket.create_connection(self._server)
            except OSError:
                client.close()  # nobody is there now
                continue
            self._pairs.append((client, server))
            threading.Thread(target=self._carry, args=(client, server), daemon=True).start()

    def _carry(self, client: socket.socket, server: socket.socket) -> None:
        with selectors.DefaultSelector() as selector, client, server:
            selector.register(client, selectors.EVENT_READ, server)
            selector.register(server, selectors.EVENT_READ, client)
            with contextlib.suppress(OSError):
                while True:
                    for key, _ in selector.select():
                        source, target = key.fileobj, key.data
                        assert isinstance(source, socket.socket)
                        if not (data := source.recv(65536)):
                            return
                        if source is client and self._fuse and self._burnt_down:
                            if self._arrives:
                                self.swallow()
                                target.sendall(data)
                                time.sleep(LOST_SECONDS)
                            self.cut()
                            return
                        if source is server and self._swallows:
                            self.swallowed += len(data)
                        else:
                            target.sendall(data)

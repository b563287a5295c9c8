"""Where a server listens, and what it is told at its start."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import stat
from typing import TYPE_CHECKING, Final, NamedTuple

from .files import alone_in, remove_socket

if TYPE_CHECKING:
    from .driver import Limits

BACKLOG: Final = 1024


class AddressInUse(Exception):
    """Another process listens there, or the path of a socket is something else's."""


class Listen:
    """An address to listen at: ``HOST:PORT``, ``[IPV6]:PORT``, or ``unix:PATH``.

    ValueError for others.
    """

    def __init__(self, text: str) -> None:
        self.text = text
        self.path: str | None = None
        self.host, self.port = "", 0
        if text.startswith("unix:"):
            self.path = text.removeprefix("unix:")
            if not self.path or "\0" in self.path:
                raise ValueError("unix: needs a path behind it")
            return
        host, colon, port = text.rpartition(":")
        if not colon or not port.isdecimal() or int(port) > 65535:
            raise ValueError(f"an address is HOST:PORT or unix:PATH, not {text!r}")
        self.host, self.port = host.removeprefix("[").removesuffix("]"), int(port)

    def bind(self) -> socket.socket:
        """A listening socket. Raises AddressInUse, ValueError, OSError."""
        if self.path is None:
            family = socket.AF_INET6 if ":" in self.host else socket.AF_INET
            try:
                sock = socket.create_server((self.host, self.port), family=family, backlog=BACKLOG)
            except OSError as error:
                if error.errno != errno.EADDRINUSE:
                    raise
                raise AddressInUse(f"{self.text} is in use by another process") from None
        else:
            try:
                with alone_in(os.path.dirname(self.path) or "."):
                    sock = _bind_unix(self.path)
            except OSError as error:
                if error.errno == errno.EADDRINUSE:
                    raise AddressInUse(f"{self.path} is in use") from None
                if error.errno is None:
                    raise ValueError(f"{self.path}: {error}") from None  # the path is too long
                raise OSError(error.errno, os.strerror(error.errno), self.path) from None
        sock.setblocking(False)
        return sock


def _bind_unix(path: str) -> socket.socket:
    """What is at ``path`` is removed only if it is a socket at which nobody listens any more."""
    with socket.socket(socket.AF_UNIX) as probe:
        probe.setblocking(False)
        try:
            probe.connect(path)
        except FileNotFoundError:
            pass
        except ConnectionRefusedError:  # the same for what is no socket
            if not stat.S_ISSOCK(os.lstat(path).st_mode):
                raise AddressInUse(f"{path} is there, and is no socket") from None
            remove_socket(path)
        except BlockingIOError:  # there is a queue
            raise AddressInUse(f"a server listens at {path}") from None
        else:
            raise AddressInUse(f"a server listens at {path}")
    return socket.create_server(path, family=socket.AF_UNIX, backlog=BACKLOG)


class Config(NamedTuple):
    """What ``rlog serve`` is told."""

    data_dir: str
    listen: tuple[Listen, ...]
    limits: Limits


def notify_manager(message: str) -> None:
    """Tell systemd, if it started us (sd_notify(3)); nothing happens otherwise."""
    path = os.environ.get("NOTIFY_SOCKET")
    if path:
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
            sock.sendto(message.encode(), "\0" + path[1:] if path.startswith("@") else path)

"""Servers that are none of ours, to be met by mistake: somebody mistyped a port."""

from __future__ import annotations

import contextlib
import http.server
import socket
import ssl
import subprocess
import threading
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path


class _Quiet(http.server.BaseHTTPRequestHandler):
    def log_message(self, *_args: object) -> None:
        """To nobody."""


def _speaks_http(sock: socket.socket, _home: Path) -> None:
    _Quiet(sock, ("client", 0), None)  # type: ignore[arg-type]


def _speaks_tls(sock: socket.socket, home: Path) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(home / "cert.pem", home / "key.pem")
    context.wrap_socket(sock, server_side=True).recv(1)


def _speaks_first(sock: socket.socket, _home: Path) -> None:
    sock.sendall(b"220 mail.example.org ESMTP\r\n")
    while sock.recv(1000):
        sock.sendall(b"500 unrecognized command\r\n")


def _is_silent(sock: socket.socket, _home: Path) -> None:
    while sock.recv(1000):
        pass


def _closes(sock: socket.socket, _home: Path) -> None:
    """At once."""


def _closes_later(sock: socket.socket, _home: Path) -> None:
    sock.recv(1000)


def _never_stops(sock: socket.socket, _home: Path) -> None:
    while True:
        sock.sendall(bytes(1 << 16))


def _promises_much(sock: socket.socket, _home: Path) -> None:
    """The header of a greeting of 1 KiB, and nothing behind it."""
    sock.sendall(b"\0\4\0\0\x40\0\0\4\1\0\0\0")
    _is_silent(sock, _home)


STRANGERS: Final[dict[str, Callable[[socket.socket, Path], None]]] = {
    "HTTP": _speaks_http,
    "TLS": _speaks_tls,
    "SMTP": _speaks_first,
    "silence": _is_silent,
    "a closed door": _closes,
    "a door that closes": _closes_later,
    "a flood": _never_stops,
    "half a greeting": _promises_much,
}


@contextlib.contextmanager
def stranger(kind: str, home: Path) -> Iterator[int]:
    """One listens while the block runs: its port."""
    if kind == "TLS":
        command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"]
        command += ["-subj", "/CN=localhost", "-keyout", str(home / "key.pem")]
        subprocess.run([*command, "-out", str(home / "cert.pem")], check=True, capture_output=True)
    open_now: set[socket.socket] = set()
    threads: list[threading.Thread] = []

    def talk(sock: socket.socket) -> None:
        with sock, contextlib.suppress(OSError):
            STRANGERS[kind](sock, home)

    def listen() -> None:
        with contextlib.suppress(OSError):
            while True:
                sock, _ = listener.accept()
                open_now.add(sock)
                threads.append(threading.Thread(target=talk, args=(sock,)))
                threads[-1].start()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threads.append(threading.Thread(target=listen))
        threads[0].start()
        try:
            yield listener.getsockname()[1]
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            threads[0].join()
            for sock in open_now:
                with contextlib.suppress(OSError):
                    sock.shutdown(socket.SHUT_RDWR)
            for thread in threads:
                thread.join()

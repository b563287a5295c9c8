"""A client that says what it likes: messages by hand, on a socket of its own."""

from __future__ import annotations

import socket
import struct
from typing import TYPE_CHECKING, Final, Self

import msgspec

from rlog_client import protocol
from rlog_client.transport import parse_url

if TYPE_CHECKING:
    from rlog_client.protocol import Control

SECONDS: Final = 30.0  # only to find out that nothing comes


def dial(url: str) -> socket.socket:
    """A connection to a server, with nothing said yet."""
    where = parse_url(url)
    return socket.create_connection((where.host, where.port), SECONDS)


def packed(request: int, control: Control, payload: bytes = b"") -> bytes:
    """A message, however long: ``protocol.encode`` knows the limits, this does not."""
    body = msgspec.msgpack.encode(control)
    head = struct.pack("<IBBHI", len(body) + len(payload), control.kind, 0, len(body), request)
    return head + body + payload


class Raw:
    """A connection that has been greeted, unless ``hello`` is None."""

    def __init__(self, url: str, hello: Control | None = None) -> None:
        self.socket = dial(url)
        self._protocol = protocol.Connection(protocol.Side.CLIENT)
        self._protocol.payload_bytes_max = 64 << 20
        self._protocol.greeted = True
        self._request = 0
        self._kept: dict[int, list[Control]] = {}
        hello = protocol.Hello(protocol.PROTOCOL, "raw") if hello is None else hello
        try:
            self.welcome = self.ask(hello)
        except BaseException:
            self.socket.close()
            raise

    def send(self, control: Control, payload: bytes = b"") -> int:
        """-> The number that its answer will bear."""
        self._request += 1
        self.socket.sendall(packed(self._request, control, payload))
        return self._request

    def answer(self, request: int) -> Control:
        """The next one to this request; an error is raised, ConnectionError where none comes."""
        while not self._kept.get(request):
            message = self._protocol.next_message()
            if message is not None:
                self._kept.setdefault(message.request, []).append(message.control)
                continue
            room = self._protocol.room()
            data = self.socket.recv(1 << 16 if room is None else len(room))
            if not data:
                raise ConnectionError("the server closed it")
            if room is None:
                self._protocol.received(data)
            else:
                room[: len(data)] = data
                self._protocol.filled(len(data))
        control = self._kept[request].pop(0)
        if isinstance(control, protocol.Error):
            raise protocol.raised(control)
        return control

    def ask(self, control: Control, payload: bytes = b"") -> Control:
        return self.answer(self.send(control, payload))

    def open(self, name: str, **options: object) -> int:
        """The id of a log."""
        reply = self.ask(protocol.OpenLog(name, True, options))
        assert isinstance(reply, protocol.LogReply)
        return reply.info.id

    def ended(self) -> bool:
        """Whether the server has nothing more to say and closes, in bounded time."""
        try:
            while self.socket.recv(1 << 16):
                pass
        except ConnectionError:
            pass
        return True

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.socket.close()

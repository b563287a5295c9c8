"""The cheapest client there is in Python: requests encoded beforehand, raw sockets, one epoll loop.

It stands for a client in C, for servers which have none: the same program for each of them, so that
what differs is the server. It runs in a process of its own. (redis-benchmark, which is one in C,
stands beside it for Redis.)
"""

from __future__ import annotations

import contextlib
import select
import socket
import time
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Final

import msgspec

from rlog_client import batch, protocol
from rlog_client.identity import new_producer_id

from ..crowd import Crowd
from .load import Taken

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from ..crowd import Gate

_HEAD: Final = 4  # bytes: the length that begins a message of rlog's
_SECONDS: Final = 60.0  # for an answer: only to find out that there is none
_PAUSE_SECONDS: Final = 0.001  # between two pings


class Speaker(ABC):
    """One connection's requests, as bytes."""

    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=_SECONDS)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    @abstractmethod
    def appends(self, record: bytes, count: int) -> list[bytes]:
        """So many requests, each of which appends the record."""

    @abstractmethod
    def ping(self) -> bytes: ...

    @abstractmethod
    def whole(self, answer: bytes) -> bool:
        """An answer is all there; AssertionError, if it is none that was hoped for."""

    def ask(self, request: bytes) -> bytes:
        self.socket.sendall(request)
        answer = b""
        while not self.whole(answer):
            data = self.socket.recv(65536)
            assert data, "the server hung up"
            answer += data
        return answer


class RlogSpeaker(Speaker):
    """As rlog's own clients ask: every connection numbers its records."""

    def __init__(self, port: int) -> None:
        super().__init__(port)
        self._request = 0
        self.ask(self._encode(protocol.Hello(protocol.PROTOCOL, "raw")))
        answer = self.ask(self._encode(protocol.OpenLog("raw", create=True)))
        reply = msgspec.msgpack.decode(answer[protocol.HEAD_BYTES :], type=protocol.LogReply)
        self._log = reply.info.id

    def _encode(self, control: protocol.Control, payload: bytes = b"") -> bytes:
        self._request += 1
        return protocol.encode(self._request, control, len(payload)) + payload

    def appends(self, record: bytes, count: int) -> list[bytes]:
        producer = new_producer_id()
        return [
            self._encode(
                protocol.Append(self._log),
                bytes(batch.encode([record], producer=producer, sequence=sequence)),
            )
            for sequence in range(count)
        ]

    def ping(self) -> bytes:
        return self._encode(protocol.Ping())

    def whole(self, answer: bytes) -> bool:
        if len(answer) < protocol.HEAD_BYTES:
            return False
        assert answer[_HEAD] != protocol.Error.kind, answer
        return len(answer) == protocol.HEAD_BYTES + int.from_bytes(answer[:_HEAD], "little")


class RedisSpeaker(Speaker):
    def appends(self, record: bytes, count: int) -> list[bytes]:
        command = b"*5\r\n$4\r\nXADD\r\n$3\r\nraw\r\n$1\r\n*\r\n$1\r\nv\r\n$%d\r\n%s\r\n"
        return [command % (len(record), record)] * count

    def ping(self) -> bytes:
        return b"*1\r\n$4\r\nPING\r\n"

    def whole(self, answer: bytes) -> bool:
        assert not answer.startswith(b"-"), answer
        return answer.endswith(b"\r\n") and answer.count(b"\r\n") == (
            2 if answer.startswith(b"$") else 1
        )


def drive(
    speak: type[Speaker],
    port: int,
    clients: int,
    record: bytes,
    each: int,
    begun: Callable[[], object] = lambda: None,
) -> Taken:
    """``clients`` connections with ``each`` appends, in another process.

    The clock starts, and ``begun`` is called here, when all are connected and have had their first
    answer, and all is encoded.
    """

    def work(_number: int, gate: Gate) -> Taken:
        speakers = [speak(port) for _ in range(clients)]
        for speaker in speakers:
            speaker.ask(*speaker.appends(record, 1))
        left = {
            speaker.socket.fileno(): (speaker, iter(speaker.appends(record, each)))
            for speaker in speakers
        }
        gate.ready()
        return _loop(left)

    with Crowd(work, 1) as crowd:
        crowd.go()
        begun()
        [taken] = crowd.results()
    return taken


def _loop(left: dict[int, tuple[Speaker, Iterator[bytes]]]) -> Taken:
    """One request in flight on each connection, until none has any left."""
    taken = []
    sent: dict[int, float] = {}
    came = dict.fromkeys(left, b"")
    began = time.perf_counter()
    with select.epoll() as epoll:
        for number, (speaker, requests) in left.items():
            epoll.register(number, select.EPOLLIN)
            sent[number] = time.perf_counter()
            speaker.socket.sendall(next(requests))
        under_way = len(left)
        while under_way:
            events = epoll.poll(_SECONDS)
            assert events, "nobody is answered any more"
            for number, _events in events:
                speaker, requests = left[number]
                data = speaker.socket.recv(65536)
                assert data, "the server hung up"
                answer = came[number] + data
                if not speaker.whole(answer):
                    came[number] = answer
                    continue
                came[number] = b""
                now = time.perf_counter()
                taken.append(now - sent[number])
                request = next(requests, None)
                if request is None:
                    under_way -= 1
                else:
                    sent[number] = now
                    speaker.socket.sendall(request)
    return Taken(len(taken) / (time.perf_counter() - began), taken)


@contextlib.contextmanager
def pinging(speak: type[Speaker], port: int) -> Iterator[list[float]]:
    """A connection of its own, in a process of its own, that pings every millisecond or so.

    What it yields has each ping's seconds, at least one, once the block is over.
    """

    def work(_number: int, gate: Gate) -> list[float]:
        speaker = speak(port)
        speaker.ask(speaker.ping())
        taken = []
        gate.ready()
        while True:
            request = speaker.ping()
            began = time.perf_counter()
            speaker.ask(request)
            taken.append(time.perf_counter() - began)
            if gate.over:
                return taken
            time.sleep(_PAUSE_SECONDS)

    with Crowd(work, 1) as crowd:
        crowd.go()
        found: list[float] = []
        yield found
        found += crowd.end()[0]

"""A server that answers every request with what it should, or with what it should not.

It keeps no state: what it says comes from the samples, some of them spoiled byte by byte, others
sound but absurd: any field of them has another value of its kind.
"""

from __future__ import annotations

import contextlib
import socket
import threading
from typing import TYPE_CHECKING, Final

from rlog_client import protocol
from rlog_client.protocol import Connection, Control, Side, encode

from .messages import answers
from .mutation import absurd, spoiled

if TYPE_CHECKING:
    from collections.abc import Iterator
    from random import Random

ANSWERED: Final[dict[type[Control], type[Control]]] = {
    protocol.Hello: protocol.Welcome,
    protocol.Ping: protocol.Done,
    protocol.OpenLog: protocol.LogReply,
    protocol.ListLogs: protocol.Listing,
    protocol.GetLog: protocol.LogReply,
    protocol.AlterLog: protocol.LogReply,
    protocol.TrimLog: protocol.Place,
    protocol.DeleteLog: protocol.Done,
    protocol.Append: protocol.Appended,
    protocol.Resolve: protocol.Place,
    protocol.Subscribe: protocol.Place,
    protocol.Credit: protocol.Settled,
    protocol.Unsubscribe: protocol.Done,
    protocol.Claim: protocol.Claimed,
    protocol.Release: protocol.Done,
    protocol.CommitCursor: protocol.Committed,
    protocol.SeekCursor: protocol.Moved,
    protocol.ListCursors: protocol.Listing,
    protocol.GetCursor: protocol.CursorReply,
    protocol.DeleteCursor: protocol.Done,
    protocol.WaitSynced: protocol.Done,
    protocol.ListSegments: protocol.Listing,
    protocol.Settle: protocol.Judged,
    protocol.TakeRedriven: protocol.Taken,
    protocol.ListParked: protocol.Listing,
    protocol.Redrive: protocol.Counted,
    protocol.Evict: protocol.Done,
    protocol.Resume: protocol.Done,
    protocol.Extend: protocol.Done,
    protocol.OpenProducer: protocol.ProducerOpened,
    protocol.ListProducers: protocol.Listing,
    protocol.Transact: protocol.Transacted,
    protocol.ReadParked: protocol.ParkedCopy,
    protocol.GetLatest: protocol.Latest,
    protocol.GetTable: protocol.TablePage,
    protocol.CommitRecords: protocol.Committed,
}
assert set(ANSWERED) == set(protocol.REQUESTS), "a new request needs its answer here"
_PUSHED: Final = (
    protocol.Records, protocol.Records, protocol.Damaged, protocol.Lost, protocol.Recall,
    protocol.Standing, protocol.Assigned,
)  # fmt: skip
_SAMPLES: Final = {type(control): (control, payload) for control, payload in answers()}
_EVERY: Final = [encode(7, control, len(payload)) + payload for control, payload in answers()]


class Nonsense:
    """What comes back, by chance; ``badness``: how much of it is not what it should be."""

    def __init__(self, chance: Random, badness: float) -> None:
        self.chance = chance
        self.badness = badness
        self.subscription = 0

    def replies(self, request: int, control: Control) -> Iterator[bytes]:
        chance, kind = self.chance, ANSWERED[type(control)]
        if isinstance(control, protocol.Subscribe):
            self.subscription = request
        elif isinstance(control, protocol.Credit):
            for _ in range(chance.randrange(4)):
                yield self.message(chance.choice(_PUSHED), self.subscription)
        if chance.random() < self.badness:
            kind = chance.choice((kind, kind, protocol.Error, chance.choice(list(_SAMPLES))))
        if isinstance(control, protocol.Hello) and chance.random() > 0.2 * self.badness:
            yield self._whole(protocol.Welcome, request)
        else:
            yield self.message(kind, request)

    def message(self, kind: type[Control], request: int) -> bytes:
        chance = self.chance
        bad = chance.random() < self.badness
        if not bad:
            return self._whole(kind, request)
        if chance.random() < 0.5:
            return spoiled(chance, self._whole(kind, request), _EVERY)
        control, payload = _SAMPLES[kind]
        changed = absurd(chance, control)
        if payload and chance.random() < 0.5:
            payload = spoiled(chance, payload, [payload])
        try:
            return encode(request, changed, len(payload)) + payload
        except Exception:  # more than a control holds
            return self._whole(kind, request)

    @staticmethod
    def _whole(kind: type[Control], request: int) -> bytes:
        control, payload = _SAMPLES[kind]
        return encode(request, control, len(payload)) + payload


class HostileServer:
    """Listens on ``url``; a thread a connection, which ends with it."""

    def __init__(self, nonsense: Nonsense) -> None:
        self.answered = 0
        self._nonsense = nonsense
        self._lock = threading.Lock()  # one chance for all connections
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.url = f"rlog://127.0.0.1:{self._listening.getsockname()[1]}"
        self._open: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self._threads[0].start()

    def _accept(self) -> None:
        while True:
            try:
                accepted, _ = self._listening.accept()
            except OSError:
                return
            accepted.settimeout(30.0)
            self._open.append(accepted)
            self._threads.append(threading.Thread(target=self._run, args=(accepted,), daemon=True))
            self._threads[-1].start()

    def _run(self, connected: socket.socket) -> None:
        connection = Connection(Side.SERVER)
        connection.greeted, connection.payload_bytes_max = True, 8 << 20
        with contextlib.suppress(OSError):
            while data := connected.recv(65536):
                connection.received(data)
                while (message := connection.next_message()) is not None:
                    with self._lock:
                        self.answered += 1
                        replies = b"".join(self._nonsense.replies(message.request, message.control))
                    connected.sendall(replies)
        connected.close()

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()
        self._threads[0].join(5)
        for each in self._open:
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(5)

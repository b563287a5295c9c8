"""A tiny server in memory: enough of the protocol to drive the client, and to misbehave."""

from __future__ import annotations

import contextlib
import socket
import threading
from typing import TYPE_CHECKING, Any

from rlog_client import batch
from rlog_client.errors import Busy, Conflict, Fenced, NotFound, OffsetOutOfRange, RlogError
from rlog_client.model import LogInfo, Whence
from rlog_client.protocol import (
    PROTOCOL,
    Append,
    Appended,
    Claim,
    Claimed,
    CommitCursor,
    Committed,
    Connection,
    Control,
    Credit,
    Damaged,
    Done,
    Hello,
    Judged,
    ListCursors,
    Listing,
    ListLogs,
    LogReply,
    Lost,
    Moved,
    OpenLog,
    Place,
    Records,
    Release,
    Resolve,
    SeekCursor,
    Settle,
    Settled,
    Side,
    Subscribe,
    Taken,
    TakeRedriven,
    Unsubscribe,
    Welcome,
    encode,
    error_control,
)

if TYPE_CHECKING:
    from collections.abc import Callable

RECORD_BYTES_MAX = 1 << 20
BATCH_BYTES_MAX = 8 << 20


class Reading:
    def __init__(self, request: int, at: int, consumer: str | None) -> None:
        self.request = request
        self.at = at
        self.consumer = consumer
        self.credit = 0
        self.loan = 0
        self.sent = False


class Peer:
    """One log, "l". ``refuse(control)`` may return an error, "silence" or "cut"."""

    def __init__(self) -> None:
        self.batches: list[bytes] = []
        self.end = 0
        self.cursors: dict[str, int] = {}
        self.holders: dict[str, tuple[Line, int]] = {}
        self.epochs: dict[str, int] = {}
        self.tokens: dict[str, bytes] = {}
        self.damaged: dict[int, tuple[RlogError, int]] = {}  # base -> what stands there, next
        self.asked: list[Control] = []
        self.refuse: Callable[[Control], RlogError | str | None] = lambda control: None
        self.lines: list[Line] = []
        self.lock = threading.RLock()
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.url = f"rlog://127.0.0.1:{self._listening.getsockname()[1]}"
        self._accepting = threading.Thread(target=self._accept, daemon=True)
        self._accepting.start()

    def _accept(self) -> None:
        while True:
            try:
                accepted, _ = self._listening.accept()
            except OSError:
                return
            line = Line(self, accepted)
            self.lines.append(line)
            line.thread.start()

    def close(self) -> None:
        # shutdown() is what ends an accept() that another thread is in.
        with contextlib.suppress(OSError):
            self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()
        self._accepting.join(5)
        for line in self.lines:
            line.cut()
            line.thread.join(5)

    def append(self, *values: bytes, **columns: Any) -> None:
        """One batch, as if somebody had appended it."""
        with self.lock:
            self.put(batch.encode(values, **columns))

    def put(self, produced: Any) -> tuple[int, int]:
        header = batch.parse_header(produced)
        first = self.end
        self.batches.append(batch.stamp(produced, 1, first, 1000 + first) + bytes(produced[80:]))
        self.end += header.count
        for line in self.lines:
            line.push()
        return first, self.end


class Line:
    def __init__(self, peer: Peer, connected: socket.socket) -> None:
        self.peer = peer
        self.socket = connected
        self.connection = Connection(Side.SERVER)
        self.readings: dict[int, Reading] = {}
        self.thread = threading.Thread(target=self._run, daemon=True)

    def cut(self) -> None:
        with contextlib.suppress(OSError):
            self.socket.shutdown(socket.SHUT_RDWR)

    def send(self, request: int, control: Control, payload: bytes = b"") -> None:
        with contextlib.suppress(OSError):
            self.socket.sendall(encode(request, control, len(payload)) + payload)

    def _run(self) -> None:
        with contextlib.suppress(OSError):
            while self._receive():
                while (message := self.connection.next_message()) is not None:
                    with self.peer.lock:
                        self._answer(message.request, message.control, message.payload)
        with self.peer.lock:
            holders = self.peer.holders
            for name in [name for name, (line, _) in holders.items() if line is self]:
                del holders[name]
        self.socket.close()

    def _receive(self) -> bool:
        room = self.connection.room()
        if room is not None:
            count = self.socket.recv_into(room)
            self.connection.filled(count)
            return count > 0
        data = self.socket.recv(65536)
        self.connection.received(data)
        return bool(data)

    def _answer(self, request: int, control: Control, payload: Any) -> None:
        peer = self.peer
        peer.asked.append(control)
        refused = peer.refuse(control)
        if refused == "silence":
            return
        if refused == "cut":
            self.cut()
            return
        try:
            if isinstance(refused, RlogError):
                raise refused
            answer = self._decide(request, control, payload)
        except RlogError as error:
            answer = error_control(error)
        if answer is not None:
            self.send(request, answer)
        self.push()

    def _decide(self, request: int, control: Control, payload: Any) -> Control | None:
        peer = self.peer
        match control:
            case Hello():
                self.connection.greeted = True
                self.connection.payload_bytes_max = BATCH_BYTES_MAX
                return Welcome(PROTOCOL, "peer", RECORD_BYTES_MAX, BATCH_BYTES_MAX, 1 << 20)
            case OpenLog(name=name):
                if name != "l":
                    raise NotFound(f"no log {name}")
                return LogReply(LogInfo("l", 1, 0, peer.end, peer.end, 0, {}))
            case ListLogs() | ListCursors():
                self.send(request, Listing(), b"\x90")
                return None
            case Append(expect=expect):
                if expect is not None and expect != peer.end:
                    raise Conflict("the end is another", end=peer.end)
                first, end = peer.put(payload)
                return Appended(first, end, 1000 + first, True)
            case Resolve(whence=whence):
                return self._place(whence)
            case Subscribe(whence=whence, consumer=consumer):
                place = self._place(whence)
                self.readings[request] = Reading(request, place.offset, consumer)
                return place
            case Credit(subscription=number, bytes=amount):
                reading = self.readings[number]
                if reading.loan:
                    self._settle(reading)
                reading.loan, reading.credit, reading.sent = request, amount, False
                if not amount:
                    self._settle(reading)
                return None
            case Unsubscribe(subscription=number):
                self.readings.pop(number)
                return Done()
            case Claim(consumer=consumer, start=start):
                if control.token == peer.tokens.get(consumer) and control.epoch:
                    peer.holders[consumer] = (self, peer.epochs[consumer])
                    return Claimed(peer.epochs[consumer], peer.cursors[consumer])
                if control.epoch:
                    raise Fenced("somebody else claimed it", epoch=peer.epochs[consumer])
                if consumer in peer.holders:
                    raise Busy("held", holder="somebody", since_ns=1)
                peer.tokens[consumer] = control.token
                peer.epochs[consumer] = peer.epochs.get(consumer, 0) + 1
                peer.holders[consumer] = (self, peer.epochs[consumer])
                if consumer not in peer.cursors:
                    peer.cursors[consumer] = self._place(start).offset
                return Claimed(peer.epochs[consumer], peer.cursors[consumer])
            case Release(consumer=consumer):
                peer.holders.pop(consumer, None)
                return Done()
            case CommitCursor(consumer=consumer, epoch=epoch, offset=offset):
                if epoch != peer.epochs[consumer]:
                    raise Fenced("an old epoch", epoch=peer.epochs[consumer])
                peer.cursors[consumer] = max(peer.cursors[consumer], offset)
                return Committed(True)
            case Settle(consumer=consumer, offset=offset, verdict=verdict):
                if verdict != "retry":
                    peer.cursors[consumer] = max(peer.cursors[consumer], offset + 1)
                return Judged(True)
            case TakeRedriven():
                return Taken(-1)
            case SeekCursor(consumer=consumer, whence=whence, epoch=epoch):
                if epoch is None and consumer in peer.holders:
                    raise Busy("held", holder="somebody", since_ns=1)
                before, after = peer.cursors[consumer], self._place(whence).offset
                peer.cursors[consumer] = after
                peer.epochs[consumer] += 1
                return Moved(before, after, peer.epochs[consumer])
            case _:
                return Done()

    def _place(self, whence: Whence) -> Place:
        end = self.peer.end
        offset = {"oldest": 0, "latest": end, "last": max(0, end - whence.value)}.get(
            whence.kind, whence.value
        )
        if offset > end:
            raise OffsetOutOfRange("outside", first=0, end=end)
        return Place(offset, 0, end)

    def push(self) -> None:
        for reading in self.readings.values():
            while reading.loan and reading.at < self.peer.end:
                self._push_one(reading)
            if reading.loan and reading.sent:
                self._settle(reading)

    def _push_one(self, reading: Reading) -> None:
        for each in self.peer.batches:
            header = batch.parse_header(each)
            if header.base <= reading.at < header.end:
                break
        else:
            raise AssertionError("no such batch")
        if header.base in self.peer.damaged:
            error, reading.at = self.peer.damaged[header.base]
            self.send(reading.request, Damaged(error_control(error), reading.at))
        else:
            self.send(reading.request, Records(header.base, "seg", 4096), each)
            reading.at = header.end
        reading.credit -= len(each)
        reading.sent = True
        if reading.credit <= 0:
            self._settle(reading)

    def _settle(self, reading: Reading) -> None:
        loan, reading.loan = reading.loan, 0
        self.send(loan, Settled(reading.at, self.peer.end))

    def lose(self, consumer: str) -> None:
        """Take the claim away."""
        with self.peer.lock:
            self.peer.epochs[consumer] += 1
            self.peer.holders.pop(consumer, None)
            for reading in self.readings.values():
                if reading.consumer == consumer:
                    self.send(reading.request, Lost(self.peer.epochs[consumer]))

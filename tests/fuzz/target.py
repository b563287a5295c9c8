"""A real server under attack; beside the attack, a bystander that must not change, and a client
that must be served.
"""

from __future__ import annotations

import contextlib
import re
import socket
import threading
from typing import TYPE_CHECKING, Any, Self

import rlog_client as rlog

from .messages import MANY_LOGS

if TYPE_CHECKING:
    from tests.e2e.serving import Server


class Target:
    """A server that is attacked, and a log in it that must not care."""

    def __init__(self, server: Server) -> None:
        self.server = server
        with server.connect() as client:
            for i in range(MANY_LOGS):
                client.log(f"target{i}", create=True, sync="never", key_index=i % 2 == 1)
            self.kept = client.log("kept", create=True).info().id
            client.log("kept").append_many([b"%d" % i for i in range(100)])
            with client.log("kept").producer(name="etl") as producer:
                producer.send(b"named", key=b"k", headers={"h": b"1"})
            client.log("kept").consumer("c").process(self._judged, limit=3, block=False)
        self.before = self.view()

    @staticmethod
    def _judged(record: rlog.Record) -> rlog.Verdict:
        return rlog.PARK if record.offset == 1 else rlog.COMMIT

    def view(self) -> dict[str, Any]:
        """All that a client can see of the bystander."""
        with self.server.connect() as client:
            log = client.log("kept")
            cursor = log.cursor("c").info()
            return {
                "info": log.info(),
                "records": list(log.reader(rlog.OLDEST, block=False)),
                "cursor": (cursor.committed, cursor.lag_records, cursor.members, cursor.paused),
                "cursors": [each.id for each in log.cursors()],
                "parked": log.cursor("c").parked(),
                "producers": [(each.name, each.last_sequence) for each in log.producers()],
            }

    def dial(self) -> socket.socket:
        sock = socket.socket(socket.AF_UNIX)
        sock.settimeout(30.0)
        sock.connect(str(self.server.socket))
        return sock

    def send(self, data: bytes) -> bytes:
        """Everything that comes back on a connection of its own."""
        with self.dial() as sock:
            with contextlib.suppress(ConnectionError):
                sock.sendall(data)
                sock.shutdown(socket.SHUT_WR)
            return drained(sock)

    def check(self) -> None:
        """It is up, has nothing to be ashamed of, and the bystander is as it was."""
        assert self.server.alive, self.server.text
        assert self.view() == self.before
        with self.server.connect() as client:
            client.log("scratch", create=True).append(b"writing works, too")
        assert "Traceback" not in self.server.text, self.server.text
        assert not re.search(r"^(ERROR|CRITICAL)", self.server.text, re.MULTILINE), self.server.text


class Served:
    """A client that appends and reads in a thread of its own for as long as this is entered; what
    it was refused, it raises at the end.
    """

    def __init__(self, target: Target) -> None:
        self.rounds = 0
        self._target = target
        self._over = threading.Event()
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        try:
            with self._target.server.connect() as client:
                log = client.log("beside", create=True)
                first = log.info().end
                while not self._over.is_set() or not self.rounds:
                    value = b"%d" % self.rounds
                    assert log.append(value) == first + self.rounds
                    [record] = log.reader(rlog.last(1), block=False)
                    assert record.value == value
                    self.rounds += 1
        except BaseException as error:
            self._error = error

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_exception: object) -> None:
        self._over.set()
        self._thread.join()
        if self._error is not None:
            raise self._error


def drained(sock: socket.socket) -> bytes:
    parts = []
    try:
        while data := sock.recv(65536):
            parts.append(data)
    except ConnectionError:
        pass
    return b"".join(parts)

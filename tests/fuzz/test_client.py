"""Promise 22, the other way round: no server can do more to a client than refuse it.

Whatever comes back, an operation ends in its time, with a result or with an RlogError. Nothing is
believed before it is looked at: no crash in the middle of the client.
"""

from __future__ import annotations

import contextlib
import logging
import random
import time
from typing import TYPE_CHECKING

import pytest

import rlog_client as rlog
from rlog_client import protocol
from rlog_client.errors import RlogError
from rlog_client.protocol import ProtocolError
from rlog_client.session import Call, Session

from .hostile_server import ANSWERED, HostileServer, Nonsense

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

TIMEOUT = 0.25


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


# --- without a socket: the session alone --------------------------------------------------------


def receive(session: Session, data: bytes) -> None:
    """As a driver does: into the room, if there is one."""
    while data:
        if (room := session.room()) is None:
            session.received(data)
            return
        part, data = data[: len(room)], data[len(room) :]
        room[: len(part)] = part
        session.filled(len(part))


def session_of(chance: random.Random, nonsense: Nonsense) -> int:
    """One connection's life: every kind of request, and nonsense for each. -> how many answers."""
    session = Session("fuzzed", time.monotonic)
    subscription = None
    calls: list[Call[protocol.Control]] = []
    answered = 0
    session.received(Nonsense._whole(protocol.Welcome, session.greeting.request))
    session.outgoing.clear()
    requests = [(control, payload) for control, payload in _requests() if chance.random() < 0.5]
    for control, payload in requests:
        expected = ANSWERED[type(control)]
        if isinstance(control, protocol.Subscribe):
            subscription = session.subscribe(control)
            request = subscription.id
        elif isinstance(control, protocol.Credit):
            if subscription is None:
                continue
            session.lend(subscription, 1000)
            request = subscription.loan
        else:
            call: Call[protocol.Control] = Call(expected)
            calls.append(session.start(call, control, payload))
            request = call.request
        try:
            for reply in nonsense.replies(request, control):
                receive(session, reply)
                answered += 1
        except ProtocolError as error:
            session.break_off(str(error))
            break
    session.break_off("the end")
    for call in calls:
        assert call.done
        with contextlib.suppress(RlogError):
            call.get()
    return answered


def _requests() -> list[tuple[protocol.Control, bytes]]:
    from .messages import requests

    found = []
    connection = protocol.Connection(protocol.Side.SERVER)
    connection.greeted, connection.payload_bytes_max = True, 1 << 20
    for raw in requests()[1:]:
        connection.received(raw)
        message = connection.next_message()
        assert message is not None
        found.append((message.control, bytes(message.payload)))
    return found


def test_no_answer_surprises_a_session(
    seed: int, long: bool, record_property: Callable[[str, object], None]
) -> None:
    chance = random.Random(f"{seed} session")
    answered = 0
    for _ in range(50_000 if long else 500):
        answered += session_of(chance, Nonsense(chance, chance.choice((0.05, 0.3, 1.0))))
    record_property("answers and pushes to a session", answered)


# --- the whole client ---------------------------------------------------------------------------


def uses(client: rlog.Client) -> Iterator[Callable[[], object]]:
    """All that a client can ask for, each with an end of its own."""
    log = client.log("l")
    yield client.logs
    yield lambda: client.log("l", create=True, sync="never")
    yield log.info
    yield lambda: log.append(b"v", key=b"k", expect=3)
    yield lambda: log.append_many([b"a", b"b"])
    yield lambda: log.wait_synced(1, timeout=TIMEOUT)
    yield lambda: log.alter(sync="never")
    yield lambda: log.trim(rlog.offset(1))
    yield log.cursors
    yield log.producers
    yield lambda: log.latest(b"k")
    yield lambda: list(log.table())
    yield lambda: log.reader(rlog.OLDEST).poll(timeout=TIMEOUT)
    yield lambda: log.reader(rlog.OLDEST, on_out_of_range="oldest").poll(timeout=TIMEOUT)
    yield lambda: log.reader(rlog.OLDEST, until=rlog.LATEST).poll(timeout=TIMEOUT)
    yield lambda: producing(log)
    for shared in (False, True):
        yield lambda shared=shared: consuming(log, shared=shared)  # type: ignore[misc]  # bound to this turn of the loop
        yield lambda shared=shared: processing(log, shared=shared)  # type: ignore[misc]  # bound to this turn of the loop
    cursor = log.cursor("c")
    yield cursor.info
    yield lambda: cursor.seek(rlog.OLDEST, force=True)
    yield cursor.parked
    yield cursor.redrive
    yield cursor.evict
    yield cursor.resume
    yield cursor.delete
    yield lambda: transacting(client)
    yield log.delete


def producing(log: rlog.Log) -> None:
    with log.producer(name="etl") as producer:
        pending = [producer.send(b"x") for _ in range(3)]
        producer.flush(TIMEOUT)
        for each in pending:
            each.receipt(TIMEOUT)


def consuming(log: rlog.Log, *, shared: bool) -> None:
    with log.consumer("c", shared=shared) as consumer:
        for record in consumer.poll(timeout=TIMEOUT):
            consumer.commit(record, wait=False)
        consumer.seek(rlog.OLDEST)


def processing(log: rlog.Log, *, shared: bool) -> None:
    verdicts = iter((rlog.COMMIT, rlog.Retry(0.0), rlog.SKIP, rlog.PARK, rlog.STOP))
    with log.consumer("c", shared=shared) as consumer:
        consumer.process(lambda record: next(verdicts, rlog.STOP), limit=5, timeout=TIMEOUT)


def transacting(client: rlog.Client) -> None:
    with client.transaction() as transaction:
        transaction.append("l", b"v")


def attack(chance: random.Random, badness: float) -> int:
    """A client's life with one server: how many requests it answered."""
    server = HostileServer(Nonsense(chance, badness))
    try:
        with contextlib.suppress(RlogError), rlog.connect(server.url, timeout=TIMEOUT) as client:
            every = list(uses(client))
            chance.shuffle(every)
            for use in every[:8]:
                with contextlib.suppress(RlogError):
                    use()
    finally:
        server.close()
    return server.answered


@pytest.mark.patience(7200)
def test_no_server_surprises_a_client(
    seed: int, long: bool, record_property: Callable[[str, object], None]
) -> None:
    chance = random.Random(f"{seed} client")
    answered = 0
    for _ in range(1_000 if long else 12):
        answered += attack(chance, chance.choice((0.02, 0.1, 0.4)))
    record_property("requests answered by a hostile server", answered)

"""The session without a socket: what is in flight, and what comes of it."""

from __future__ import annotations

import pytest

from rlog_client import errors, protocol
from rlog_client.model import OLDEST
from rlog_client.protocol import PROTOCOL, Appended, Done, Place, Records, Settled, encode
from rlog_client.session import Call, Chunk, Session, Subscription

WELCOME = protocol.Welcome(PROTOCOL, "server", 1000, 5000, 1 << 20)


def greeted() -> Session:
    session = Session("n")
    session.received(encode(1, WELCOME))
    session.outgoing.clear()
    return session


def ask(session: Session) -> tuple[int, Call[Done]]:
    call = session.start(Call(Done), protocol.Ping())
    return request_of(session.outgoing[-1]), call


def request_of(message: bytes | bytearray | memoryview) -> int:
    return int.from_bytes(message[8:12], "little")


def subscribed(session: Session) -> Subscription:
    subscription = session.subscribe(protocol.Subscribe(1, OLDEST))
    session.received(encode(subscription.id, Place(4, 0, 9)))
    assert subscription.place.get().offset == 4
    return subscription


def test_the_greeting_tells_the_limits() -> None:
    session = Session("n")
    session.received(encode(1, WELCOME))
    assert session.greeting.get() == WELCOME
    assert session.limits.batch_bytes_max == 5000


def test_another_protocol_is_unsupported() -> None:
    session = Session("n")
    session.received(encode(1, protocol.Welcome(PROTOCOL + 1, "server", 1, 1, 1)))
    with pytest.raises(errors.Unsupported):
        session.greeting.get()


def test_a_refused_greeting_is_its_error() -> None:
    session = Session("n")
    session.received(encode(1, protocol.error_control(errors.Overloaded("full"))))
    with pytest.raises(errors.Overloaded):
        session.greeting.get()


def test_answers_come_in_any_order() -> None:
    session = greeted()
    (first, one), (second, two) = ask(session), ask(session)
    session.received(encode(second, Done()))
    assert (one.done, two.done) == (False, True)
    session.received(encode(first, protocol.error_control(errors.NotFound("no"))))
    with pytest.raises(errors.NotFound):
        one.get()


def test_a_late_answer_to_what_was_given_up_is_dropped() -> None:
    session = greeted()
    request, call = ask(session)
    call.fail(errors.TimedOut("too late"))
    session.received(encode(request, Done()))
    with pytest.raises(errors.TimedOut):
        call.get()


def test_an_answer_of_another_kind_ends_the_connection() -> None:
    session = greeted()
    request, _ = ask(session)
    with pytest.raises(protocol.ProtocolError):
        session.received(encode(request, Place(0, 0, 0)))


def test_a_lost_connection_fails_all_and_says_what_may_have_been_done() -> None:
    session = greeted()
    _, ping = ask(session)
    append = session.start(Call(Appended, append=(7, 30)), protocol.Append(1), b"batch")
    session.break_off("reset")
    with pytest.raises(errors.ConnectionLost, match="reset"):
        ping.get()
    with pytest.raises(errors.OutcomeUnknown) as raised:
        append.get()
    assert (raised.value.producer, raised.value.sequence) == (7, 30)
    assert not session.outgoing
    later = session.start(Call(Appended, append=(7, 31)), protocol.Append(1), b"batch")
    with pytest.raises(errors.ConnectionLost):  # never sent: its outcome is known
        later.get()


def test_the_servers_last_word_is_told() -> None:
    session = greeted()
    session.received(encode(0, protocol.error_control(errors.Overloaded("too slow"))))
    session.break_off("closed")
    assert "too slow" in str(session.lost)


def test_a_loan_brings_records_until_it_is_settled() -> None:
    session = greeted()
    subscription = subscribed(session)
    session.lend(subscription, 1000)
    loan = subscription.loan
    assert loan == request_of(session.outgoing[-1])
    session.received(encode(subscription.id, Records(4, "f", 80), 3) + b"abc")
    assert subscription.loan
    session.received(encode(loan, Settled(6, 9)))
    assert not subscription.loan
    assert subscription.next == 6
    (chunk,) = subscription.stock
    assert isinstance(chunk, Chunk)
    assert (bytes(chunk.payload), chunk.first, chunk.position) == (b"abc", 4, 80)


def test_what_comes_for_a_closed_subscription_is_dropped() -> None:
    session = greeted()
    subscription = subscribed(session)
    session.lend(subscription, 1000)
    session.unsubscribe(subscription)
    session.received(encode(subscription.id, Records(4, "f", 80), 3) + b"abc")
    session.received(encode(subscription.id, Settled(6, 9)))
    assert not subscription.stock


def test_a_later_loan_outlives_the_settlement_of_an_earlier_one() -> None:
    session = greeted()
    subscription = subscribed(session)
    session.lend(subscription, 1000)
    earlier = subscription.loan
    session.lend(subscription, 1000)
    session.received(encode(earlier, Settled(6, 9)))
    assert subscription.loan not in (0, earlier)
    session.received(encode(subscription.loan, Settled(8, 9)))
    assert (subscription.loan, subscription.next) == (0, 8)


def test_a_lost_claim_settles_its_loan() -> None:
    session = greeted()
    subscription = subscribed(session)
    session.lend(subscription, 1000)
    session.received(encode(subscription.id, protocol.Lost(5)))
    assert subscription.lost is not None
    assert not subscription.loan


def test_request_numbers_wrap_around_those_in_use() -> None:
    session = greeted()
    subscription = subscribed(session)
    session._request = protocol.REQUEST_MAX
    seen = [ask(session)[0] for _ in range(4)]
    assert subscription.id not in seen
    assert seen == [n for n in (1, 2, 3, 4, 5) if n != subscription.id][:4]

"""The session without a socket: what is in flight, and what comes of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import pytest

from rlog_client import errors, protocol
from rlog_client.model import OLDEST
from rlog_client.protocol import PROTOCOL, Appended, Done, Place, Records, Settled, encode
from rlog_client.session import (
    APPEND_SECONDS_MAX,
    RETRY_SECONDS_MAX,
    RETRY_SECONDS_MIN,
    Call,
    Chunk,
    Claiming,
    Session,
    Subscription,
    retry_seconds,
)
from rlog_client.source import lend_ahead

if TYPE_CHECKING:
    from rlog_client.steps import Link

WELCOME = protocol.Welcome(PROTOCOL, "server", 1000, 5000, 1 << 20)


def greeted() -> Session:
    session = Session("n", float)
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
    session = Session("n", float)
    session.received(encode(1, WELCOME))
    assert session.greeting.get() == WELCOME
    assert session.limits.batch_bytes_max == 5000


def test_another_protocol_is_unsupported() -> None:
    session = Session("n", float)
    session.received(encode(1, protocol.Welcome(PROTOCOL + 1, "server", 1, 1, 1)))
    with pytest.raises(errors.Unsupported):
        session.greeting.get()


def test_a_refused_greeting_is_its_error() -> None:
    session = Session("n", float)
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


@pytest.mark.parametrize(
    ("producer", "epoch", "last"),
    [(-1, 0, -1), (0, -1, -1), (0, 1 << 32, -1), (0, 0, -2), (0, 0, 1 << 63)],
)
def test_an_identity_that_fits_no_batch_ends_the_connection(
    producer: int, epoch: int, last: int
) -> None:
    session = greeted()
    session.start(Call(protocol.ProducerOpened), protocol.OpenProducer(1, 7, "etl"))
    request = request_of(session.outgoing[-1])
    with pytest.raises(protocol.ProtocolError):
        session.received(encode(request, protocol.ProducerOpened(producer, epoch, last)))


@pytest.mark.parametrize("appends", [[], [(0, 1), (5, 6)]])
def test_a_transaction_that_is_answered_for_another_number_of_logs_ends_the_connection(
    appends: list[tuple[int, int]],
) -> None:
    session = greeted()
    asked = protocol.Transact(1, 1, [protocol.LogBatch(1, 100)])
    session.start(Call(protocol.Transacted, append=(1, 1)), asked)
    request = request_of(session.outgoing[-1])
    with pytest.raises(protocol.ProtocolError):
        session.received(encode(request, protocol.Transacted(appends, 0, True)))


def test_attempts_without_an_offset_end_the_connection() -> None:
    session = greeted()
    subscription = subscribed(session)
    subscription.shared = True
    good, bad = protocol.Assigned([4], [4, 1]), protocol.Assigned([4], [4, 1])
    session.received(encode(subscription.id, good))
    bad.failed.append(5)
    with pytest.raises(protocol.ProtocolError):
        session.received(encode(subscription.id, bad))


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


def test_what_a_loan_ahead_brings_is_no_stock_before_it_is_settled() -> None:
    session = greeted()
    subscription = subscribed(session)
    session.lend(subscription, 1000, ahead=True)
    session.received(encode(subscription.id, Records(4, "f", 0), 3) + b"abc")
    assert (list(subscription.stock), subscription.next) == ([], 4)
    session.received(encode(subscription.loan, Settled(6, 9)))
    assert [chunk.first for chunk in subscription.stock if isinstance(chunk, Chunk)] == [4]
    assert (subscription.next, subscription.end, subscription.ahead) == (6, 9, False)


@pytest.mark.parametrize("following", [1000, 0])
def test_a_loan_ahead_that_is_called_back_loses_nothing(following: int) -> None:
    session = greeted()
    subscription = subscribed(session)
    session.lend(subscription, 1000, ahead=True)
    loan = subscription.loan
    session.received(encode(subscription.id, Records(4, "f", 0), 3) + b"abc")
    session.lend(subscription, following)
    session.received(encode(subscription.id, Records(6, "f", 80), 3) + b"def")
    session.received(encode(loan, Settled(8, 9)))
    session.received(encode(subscription.id, Records(8, "f", 160), 3) + b"ghi")
    chunks = [chunk.first for chunk in subscription.stock if isinstance(chunk, Chunk)]
    assert chunks == [4, 6, 8]
    assert bool(subscription.loan) is bool(following)


class Linked:
    """What ``lend_ahead`` wants of a client."""

    room_ahead = 1000

    def __init__(self, session: Session) -> None:
        self.session = session

    def serve(self) -> None: ...


def behind(session: Session) -> Subscription:
    """A subscription with more in the log than its first loan brought."""
    subscription = subscribed(session)
    session.lend(subscription, 1000)
    session.received(encode(subscription.loan, Settled(6, 9)))
    session.outgoing.clear()
    return subscription


def test_more_is_asked_for_ahead_where_there_is_more() -> None:
    session = greeted()
    subscription = behind(session)
    lend_ahead(cast("Link", Linked(session)), subscription, 1000, None)
    assert subscription.ahead
    assert subscription.loan == request_of(session.outgoing[-1])


@pytest.mark.parametrize(
    "ending", [protocol.Lost(7), protocol.error_control(errors.StorageFailed("EIO"))]
)
def test_nothing_is_asked_for_ahead_of_what_has_ended(ending: protocol.Control) -> None:
    session = greeted()
    subscription = behind(session)
    session.lend(subscription, 1000)
    loan = subscription.loan
    session.received(encode(subscription.id, Records(6, "f", 0), 3) + b"abc")
    session.received(encode(subscription.id, ending) + encode(loan, Settled(7, 9)))
    session.outgoing.clear()
    lend_ahead(cast("Link", Linked(session)), subscription, 1000, None)
    assert not session.outgoing
    assert not subscription.loan


def test_an_interrupt_leaves_no_loan_that_somebody_would_wait_for() -> None:
    session = greeted()
    subscription = behind(session)

    def interrupted(*_arguments: object) -> None:
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(session, "_put_new", interrupted)
        with pytest.raises(KeyboardInterrupt):
            lend_ahead(cast("Link", Linked(session)), subscription, 1000, None)
    assert not session.outgoing
    assert not subscription.ahead, "else the next fetch waits for it"
    session.lend(subscription, 1000)
    assert subscription.loan == request_of(session.outgoing[-1])


def test_without_a_connection_what_is_given_up_is_not_kept() -> None:
    session = greeted()
    session.lose("gone")
    for _ in range(100):
        _, call = session.start(Call(Done), protocol.Ping()), session._calls[session._request]
        call.fail(errors.TimedOut("too late"))
        session.forget(call)
    assert not session._calls


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


# --- from one connection to the next --------------------------------------------------------------


def come_back(session: Session, welcome: protocol.Welcome = WELCOME) -> list[int]:
    """Lose the connection and greet another: the numbers of the requests that go out on it."""
    session.outgoing.clear()  # all of it was sent
    session.lose("reset")
    session.begin()
    hello = request_of(session.outgoing[0])
    session.outgoing.clear()
    session.received(encode(hello, welcome))
    heads = [piece for piece in session.outgoing if isinstance(piece, bytes)]
    return [request_of(piece) for piece in heads]


def held(session: Session, epoch: int = 0) -> tuple[Claiming, list[protocol.Claimed]]:
    """A claim, and what it was answered with."""
    answers: list[protocol.Claimed] = []

    def control() -> protocol.Claim:
        return protocol.Claim(1, "c", OLDEST, b"token", epoch=epoch)

    return Claiming(control, protocol.Claimed, answers.append), answers


def test_calls_without_an_answer_go_out_again_in_their_order() -> None:
    session = greeted()
    first, second, third = ask(session), ask(session), ask(session)
    session.received(encode(second[0], Done()))
    assert come_back(session) == [first[0], third[0]]
    assert come_back(session) == [first[0], third[0]]
    session.received(encode(first[0], Done()) + encode(third[0], Done()))
    assert first[1].get() == third[1].get() == Done()


def test_what_is_asked_without_a_connection_waits_for_the_next() -> None:
    session = greeted()
    session.lose("reset")
    call = session.start(Call(Done), protocol.Ping())
    assert not session.outgoing
    assert not call.done
    assert come_back(session) == [call.request]


def test_nothing_goes_out_before_the_greeting() -> None:
    session = greeted()
    session.lose("reset")
    session.begin()
    session.start(Call(Done), protocol.Ping())
    assert len(session.outgoing) == 1


def test_a_call_that_was_given_up_is_not_repeated() -> None:
    session = greeted()
    _, call = ask(session)
    call.fail(errors.TimedOut("too late"))
    assert come_back(session) == []


def test_a_payload_goes_out_again_as_it_is() -> None:
    session = greeted()
    batch = bytearray(b"batch")
    call = session.start(Call(Appended, append=(7, 1)), protocol.Append(1), batch)
    come_back(session)
    assert session.outgoing[-1] is batch
    session.received(encode(call.request, Appended(5, 6, 1, True, True)))
    assert call.get().duplicate
    assert call.body == b""


def test_claims_go_out_before_everything_else() -> None:
    session = greeted()
    request, _ = ask(session)
    claiming, answers = held(session)
    claimed = session.claim(claiming)
    session.received(encode(claimed.request, protocol.Claimed(3, 10)))
    assert claimed.get().epoch == 3
    sent = come_back(session)
    assert sent == [claiming.call.request, request]
    session.received(encode(sent[0], protocol.Claimed(3, 11)))
    assert [each.committed for each in answers] == [10, 11]


def test_a_claim_that_waits_comes_back_with_its_ticket() -> None:
    session = greeted()
    claiming, _ = held(session)
    call = session.claim(claiming)
    session.received(encode(call.request, protocol.Queued(77)))
    assert not call.done
    assert come_back(session) == [call.request]
    assert claiming.call is call
    assert isinstance(call.control, protocol.Claim)
    assert call.control.ticket == 77
    session.received(encode(call.request, protocol.Claimed(1, 0)))
    assert call.get() == protocol.Claimed(1, 0)
    assert claiming.ticket == 0


def test_a_claim_that_is_refused_is_not_made_again() -> None:
    session = greeted()
    claiming, _ = held(session, epoch=3)
    call = session.claim(claiming)
    session.received(encode(call.request, protocol.Claimed(3, 0)))
    (request,) = come_back(session)
    session.received(encode(request, protocol.error_control(errors.Fenced("late", epoch=4))))
    assert isinstance(claiming.lost, errors.Fenced)
    assert come_back(session) == []


def test_a_claim_that_nobody_waits_for_any_more_is_released() -> None:
    session = greeted()
    claiming, answers = held(session)
    call = session.claim(claiming)
    session.unclaim(claiming)
    session.outgoing.clear()
    session.received(encode(call.request, protocol.Claimed(1, 0)))
    assert not answers
    assert len(session.outgoing) == 1
    assert come_back(session) == []


def test_a_release_is_for_its_own_connection() -> None:
    session = greeted()
    claiming, _ = held(session)
    call = session.claim(claiming)
    session.received(encode(call.request, protocol.Claimed(1, 0)))
    released = session.unclaim(claiming)
    assert not released.done
    assert come_back(session) == []
    assert released.get() == Done()
    other, _ = held(session)
    session.claim(other)
    session.lose("reset")
    assert session.unclaim(other).done


def test_of_two_claims_for_the_same_one_cannot_release_the_other() -> None:
    session = greeted()
    (first, _), (second, _) = held(session), held(session)
    session.received(encode(session.claim(first).request, protocol.Claimed(1, 0)))
    session.claim(second)
    session.outgoing.clear()
    assert session.unclaim(second).done
    assert not session.outgoing


def test_a_subscription_ends_with_its_connection() -> None:
    session = greeted()
    subscription = subscribed(session)
    session.lend(subscription, 1000)
    unanswered = session.subscribe(protocol.Subscribe(1, OLDEST))
    assert come_back(session) == []
    assert subscription.broken
    assert not subscription.loan
    assert unanswered.broken
    with pytest.raises(errors.ConnectionLost):
        unanswered.place.get()
    other = session.subscribe(protocol.Subscribe(1, OLDEST))
    subscription.id = other.id
    session.outgoing.clear()
    session.lend(subscription, 1000)
    session.unsubscribe(subscription)  # one of the same number is another's
    assert not session.outgoing
    assert not other.broken


def test_what_was_never_sent_is_known_not_to_be_done() -> None:
    session = greeted()
    sent = session.start(Call(Appended, append=(7, 30)), protocol.Append(1), b"one")
    session.outgoing.clear()
    unsent = session.start(Call(Appended, append=(7, 31)), protocol.Append(1), b"two")
    session.lose("reset")
    assert isinstance(sent.unknown("late"), errors.OutcomeUnknown)
    assert unsent.unknown("late") is None


def test_what_was_sent_once_may_be_done_though_its_repetition_never_left() -> None:
    session = greeted()
    call = session.start(Call(Appended, append=(7, 30)), protocol.Append(1), bytearray(b"one"))
    assert come_back(session) == [call.request]
    session.lose("reset once more")
    assert isinstance(call.unknown("late"), errors.OutcomeUnknown)


@pytest.mark.parametrize("control", [protocol.DeleteLog(1), protocol.DeleteCursor(1, "c")])
def test_what_is_not_there_at_the_second_time_was_deleted_at_the_first(
    control: protocol.Control,
) -> None:
    session = greeted()
    gone = protocol.error_control(errors.NotFound("no such thing"))
    call = session.start(Call(Done), control)
    come_back(session)
    session.received(encode(call.request, gone))
    assert call.get() == Done()
    fresh = session.start(Call(Done), control)
    session.received(encode(fresh.request, gone))
    with pytest.raises(errors.NotFound):
        fresh.get()


def test_a_repeated_change_on_a_disk_that_failed_may_have_been_done() -> None:
    session = greeted()
    append = session.start(Call(Appended, append=(7, 1)), protocol.Append(1), b"one")
    come_back(session)
    failed = protocol.error_control(errors.StorageFailed("disk"))
    session.received(encode(append.request, failed))
    with pytest.raises(errors.OutcomeUnknown):
        append.get()
    fresh = session.start(Call(Appended, append=(7, 2)), protocol.Append(1), b"two")
    session.received(encode(fresh.request, failed))
    with pytest.raises(errors.StorageFailed):
        fresh.get()


def test_an_eviction_is_not_repeated() -> None:
    session = greeted()
    call = session.start(Call(Done), protocol.Evict(1, "c"))
    assert come_back(session) == []
    with pytest.raises(errors.OutcomeUnknown):
        call.get()


def test_an_append_that_has_become_too_large_is_refused_here() -> None:
    session = greeted()
    session.lose("reset")
    unsent = session.start(Call(Appended, append=(7, 1)), protocol.Append(1), bytes(4000))
    smaller = protocol.Welcome(PROTOCOL, "server", 1000, 3000, 1 << 20)
    assert come_back(session, smaller) == []
    with pytest.raises(errors.TooLarge) as raised:
        unsent.get()
    assert (raised.value.size, raised.value.limit) == (4000, 3000)
    assert session.limits.batch_bytes_max == 3000


def test_an_append_is_repeated_for_half_an_hour() -> None:
    now = 0.0
    session = Session("n", lambda: now)
    session.received(encode(1, WELCOME))
    call = session.start(Call(Appended, append=(7, 1)), protocol.Append(1), bytearray(b"one"))
    now = APPEND_SECONDS_MAX - 1
    assert come_back(session) == [call.request]
    now = APPEND_SECONDS_MAX + 1
    assert come_back(session) == []
    with pytest.raises(errors.OutcomeUnknown):
        call.get()


@pytest.mark.parametrize("under", ["0", "hello"])
@pytest.mark.parametrize("error", [errors.Unsupported("old"), errors.AccessDenied("no")])
def test_what_no_new_connection_can_change_ends_the_session(
    error: errors.RlogError, under: str
) -> None:
    session = greeted()
    _, call = ask(session)
    session.lose("reset")
    session.begin()
    request = 0 if under == "0" else request_of(session.outgoing[0])
    session.received(encode(request, protocol.error_control(error)))
    session.lose("the server closed it")
    assert isinstance(session.ended, type(error))
    with pytest.raises(type(error)):
        call.get()
    with pytest.raises(type(error)):
        session.start(Call(Done), protocol.Ping()).get()


def test_an_overloaded_server_is_tried_again() -> None:
    session = greeted()
    _, call = ask(session)
    session.lose("reset")
    session.begin()
    request = request_of(session.outgoing[0])
    session.received(encode(request, protocol.error_control(errors.Overloaded("full"))))
    session.lose("the server closed it")
    assert session.ended is None
    assert not call.done
    assert "full" in str(session.lost)
    assert come_back(session) == [call.request]


def test_an_interrupted_loss_is_completed_by_the_next_beginning() -> None:
    session = greeted()
    subscription = subscribed(session)
    request, _ = ask(session)
    session.lost = errors.ConnectionLost("reset")  # and no further
    session.begin()
    assert subscription.broken
    hello = request_of(session.outgoing[0])
    assert len(session.outgoing) == 1
    session.received(encode(hello, WELCOME))
    assert request_of(session.outgoing[-1]) == request


def test_a_recall_is_noted() -> None:
    session = greeted()
    subscription = subscribed(session)
    session.received(encode(subscription.id, protocol.Recall()))
    assert subscription.recalled


def test_what_claimed_and_was_collected_is_not_claimed_again() -> None:
    class Owner:
        def control(self) -> protocol.Claim:
            return protocol.Claim(1, "c", OLDEST, b"token")

        def answered(self, answer: protocol.Claimed) -> None:
            pass

    session = greeted()
    owner = Owner()
    call = session.claim(Claiming(owner.control, protocol.Claimed, owner.answered))
    session.received(encode(call.request, protocol.Claimed(1, 0)))
    del owner
    assert come_back(session) == []
    assert not session.claims


def test_the_time_between_tries_grows_with_chance_in_it() -> None:
    assert retry_seconds(0, 0.0) == RETRY_SECONDS_MIN
    longest = [retry_seconds(tries, 1.0) for tries in range(30)]
    assert longest == sorted(longest)
    assert longest[0] == 2 * RETRY_SECONDS_MIN
    assert longest[-1] == RETRY_SECONDS_MAX
    assert all(retry_seconds(tries, 0.5) < longest[tries] for tries in range(30))

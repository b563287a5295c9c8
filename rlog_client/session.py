"""The client's side of a connection, without I/O: what is in flight, and what comes of it.

The driver writes ``outgoing`` and hands over what it reads. Rules:

- A request is a ``Call``; it is done when its answer comes, when its caller gives it up, or when
  the connection is lost, and never changes after that: a late answer is dropped.
- An append in flight when the connection is lost is OutcomeUnknown, everything else ConnectionLost.
- What the server pushes goes into the stock of the ``Subscription`` that asked for it; what comes
  for one that is closed is dropped.
"""

from __future__ import annotations

from collections import deque
from typing import Any, Final, Generic, TypeVar

from .errors import ConnectionLost, OutcomeUnknown, RlogError, Unsupported
from .protocol import (
    PROTOCOL,
    REQUEST_MAX,
    Connection,
    Control,
    Credit,
    Damaged,
    Error,
    Hello,
    Lost,
    Message,
    Place,
    ProtocolError,
    Records,
    Settled,
    Side,
    Subscribe,
    Unsubscribe,
    Welcome,
    encode,
    raised,
)

LOAN_BYTES: Final = 1 << 20  # of one fetch: larger ones only leave the processor's caches

Buffer = bytes | bytearray | memoryview
AnswerT = TypeVar("AnswerT", bound=Control)


class Call(Generic[AnswerT]):
    """One request. ``append``: (producer id, first sequence) of one that may be done unseen."""

    __slots__ = ("answer", "append", "done", "error", "expects", "payload")

    def __init__(self, expects: type[AnswerT], append: tuple[int, int] | None = None) -> None:
        self.expects = expects
        self.append = append
        self.done = False
        self.answer: AnswerT | None = None
        self.payload: Buffer = b""
        self.error: RlogError | None = None

    def get(self) -> AnswerT:
        """The answer, or its error raised."""
        if self.error is not None:
            # One batch's error is raised for each of its records: without the last one's traceback.
            raise self.error.with_traceback(None)
        assert self.answer is not None, "asked before it is done"
        return self.answer

    def fail(self, error: RlogError) -> None:
        if not self.done:
            self.error, self.done = error, True

    def unknown(self, reason: str) -> RlogError | None:
        """What it means for an append that no answer will come."""
        if self.append is None:
            return None
        producer, sequence = self.append
        return OutcomeUnknown(
            f"an append may or may not be in the log: {reason}",
            producer=producer,
            sequence=sequence,
        )


class Chunk:
    """A payload of whole batches, and how far it is unpacked (``at``, in bytes).

    ``file`` and ``position``: where its first byte is stored.
    """

    __slots__ = ("at", "file", "first", "payload", "position")

    def __init__(self, records: Records, payload: Buffer) -> None:
        self.first = records.first
        self.file = records.file
        self.position = records.position
        self.payload = memoryview(payload)
        self.at = 0


class Subscription:
    """What one Subscribe brings. ``loan``: the request id of the open Credit, 0 for none."""

    __slots__ = ("error", "id", "loan", "lost", "next", "place", "stock")

    def __init__(self, request: int, place: Call[Place]) -> None:
        self.id = request
        self.place = place
        self.stock: deque[Chunk | Damaged] = deque()
        self.loan = 0
        self.next = 0  # the offset after the stock; exact while no loan is open
        self.lost: Lost | None = None
        self.error: RlogError | None = None


class Session:
    """One connection's requests and subscriptions."""

    def __init__(self, name: str) -> None:
        """``name``: shown as the holder of what this connection claims."""
        # In the order they are to be sent. A message enters it by one call, so that an interrupt
        # (KeyboardInterrupt between two bytecodes) cannot leave half of one in it.
        self.outgoing: deque[Buffer] = deque()
        self.lost: ConnectionLost | None = None
        self.farewell: RlogError | None = None  # the server's own word on why it closed
        self._connection = Connection(Side.CLIENT)
        self._request = 0
        self._calls: dict[int, Call[Any]] = {}
        self._subscriptions: dict[int, Subscription] = {}
        self._loans: dict[int, Subscription] = {}
        self._welcome: Welcome | None = None
        self.greeting = self.start(Call(Welcome), Hello(PROTOCOL, name))

    @property
    def limits(self) -> Welcome:
        """The server's limits, known once the greeting is done."""
        assert self._welcome is not None, "not greeted yet"
        return self._welcome

    # --- out ----------------------------------------------------------------------------------

    def start(self, call: Call[AnswerT], control: Control, payload: Buffer = b"") -> Call[AnswerT]:
        """Put a request on its way."""
        if self.lost is not None:
            # Not a byte of it has been sent, so an append's outcome is known.
            call.fail(ConnectionLost(str(self.lost)))
            return call
        request = self._number()
        self._calls[request] = call
        self._put(request, control, payload)
        return call

    def subscribe(self, control: Subscribe) -> Subscription:
        request = self._number()
        place = Call(Place)
        subscription = Subscription(request, place)
        if self.lost is not None:
            place.fail(ConnectionLost(str(self.lost)))
            return subscription
        self._calls[request] = place
        self._subscriptions[request] = subscription
        self._put(request, control)
        return subscription

    def lend(self, subscription: Subscription, amount: int) -> None:
        """Open a loan of ``amount`` bytes; 0 only calls the open one back."""
        if self.lost is not None or subscription.id not in self._subscriptions:
            return
        request = self._number()
        if amount:
            self._end_loan(subscription)
            self._loans[request] = subscription
            subscription.loan = request
        self._put(request, Credit(subscription.id, amount))

    def unsubscribe(self, subscription: Subscription) -> None:
        """Its answer is of no interest, nor is what still comes."""
        if self._subscriptions.pop(subscription.id, None) is None:
            return
        self._loans.pop(subscription.loan, None)
        if self.lost is None:
            self._put(self._number(), Unsubscribe(subscription.id))

    def _number(self) -> int:
        """The next request id that is not in use; 0 is nobody's."""
        while True:
            self._request = self._request % REQUEST_MAX + 1
            if (
                self._request not in self._calls
                and self._request not in self._subscriptions
                and self._request not in self._loans
            ):
                return self._request

    def _put(self, request: int, control: Control, payload: Buffer = b"") -> None:
        head = encode(request, control, len(payload))
        self.outgoing.extend((head, payload) if len(payload) else (head,))

    # --- in -----------------------------------------------------------------------------------

    def room(self) -> memoryview | None:
        """See Connection.room."""
        return self._connection.room()

    def filled(self, count: int) -> None:
        """``count`` bytes were received into the room. Raises ProtocolError."""
        self._connection.filled(count)
        self._take_all()

    def received(self, data: bytes) -> None:
        """Raises ProtocolError."""
        self._connection.received(data)
        self._take_all()

    def break_off(self, reason: str) -> None:
        """The connection is lost: so is everything in flight."""
        if self.lost is None:
            if self.farewell is not None:
                reason = f"{reason}: {self.farewell}"
            self.lost = ConnectionLost(reason)
        reason = str(self.lost)
        # One by one, and each removed only when it has failed: an interrupt in the middle leaves
        # the
        # rest to the next call, which every wait ends with.
        while self._calls:
            request, call = next(iter(self._calls.items()))
            call.fail(call.unknown(reason) or ConnectionLost(reason))
            del self._calls[request]
        for subscription in list(self._subscriptions.values()):
            subscription.loan = 0
        self._subscriptions.clear()
        self._loans.clear()
        self.outgoing.clear()

    def _take_all(self) -> None:
        while (message := self._connection.next_message()) is not None:
            self._take(message)

    def _take(self, message: Message) -> None:
        request, control, payload = message
        if isinstance(control, Settled):
            # Nothing is to be noted of one that a later Credit called back, or of 0 bytes.
            if (lent := self._loans.pop(request, None)) is not None:
                lent.loan, lent.next = 0, control.offset
            return
        if isinstance(control, Records | Damaged | Lost):
            if (subscription := self._subscriptions.get(request)) is not None:
                self._pushed(subscription, control, payload)
            return
        call = self._calls.get(request)
        self._answered(request, control, payload, call)
        self._calls.pop(request, None)  # last: what is in here can still be failed

    def _answered(
        self, request: int, control: Control, payload: Buffer, call: Call[Any] | None
    ) -> None:
        if isinstance(control, Error):
            self._refused(request, call, raised(control))
        elif call is None:
            return  # the answer to an Unsubscribe
        elif not isinstance(control, call.expects):
            raise ProtocolError(f"{type(control).__name__} does not answer request {request}")
        elif isinstance(control, Welcome):
            self._greeted(call, control)
        elif not call.done:
            if isinstance(control, Place) and request in self._subscriptions:
                self._subscriptions[request].next = control.offset
            call.answer, call.payload, call.done = control, payload, True

    def _pushed(
        self, subscription: Subscription, control: Records | Damaged | Lost, payload: Buffer
    ) -> None:
        if isinstance(control, Records):
            subscription.stock.append(Chunk(control, payload))
        elif isinstance(control, Damaged):
            subscription.stock.append(control)
        else:
            subscription.lost = control
            self._end_loan(subscription)

    def _end_loan(self, subscription: Subscription) -> None:
        self._loans.pop(subscription.loan, None)
        subscription.loan = 0

    def _refused(self, request: int, call: Call[Any] | None, error: RlogError) -> None:
        subscription = self._subscriptions.get(request) or self._loans.get(request)
        if call is not None:
            call.fail(error)
            self._subscriptions.pop(request, None)  # a Subscribe that was refused
        elif subscription is not None:
            subscription.error = error
            self._end_loan(subscription)
        elif request == 0:
            self.farewell = error

    def _greeted(self, call: Call[Any], welcome: Welcome) -> None:
        if welcome.protocol != PROTOCOL:
            text = f"the server speaks protocol {welcome.protocol}, this client {PROTOCOL}"
            call.fail(Unsupported(text))
            return
        connection = self._connection
        connection.greeted = True
        connection.payload_bytes_max = welcome.push_bytes_max
        self._welcome = call.answer = welcome
        call.done = True

"""The client's side of its connections, without I/O: what is in flight, and what comes of it.

A session outlives its connections. The driver writes ``outgoing`` and hands over what it reads;
when it has lost a connection it says so (``lose``), and begins the next (``begin``). Rules:

- A request is a ``Call``; it is done when its answer comes, when its caller gives it up, or when
  the session ends, and never changes after that: a late answer is dropped.
- On a new connection the claims come first (``Claiming``), then every call without an answer, in
  their old order: what is behind a claim that came back is judged by it.
- A repeated request does no more than the first one did. So what cannot be repeated is not: it is
  OutcomeUnknown, if any of it may have been sent.
- What the server pushes goes into the stock of the ``Subscription`` that asked for it; what comes
  for one that is closed is dropped. A subscription ends with its connection: it is ``broken``.
"""

from __future__ import annotations

from collections import deque
from types import MethodType
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar
from weakref import WeakMethod

from .errors import (
    AccessDenied,
    ConnectionLost,
    InvalidRequest,
    NotFound,
    OutcomeUnknown,
    RlogError,
    StorageFailed,
    TooLarge,
    Unsupported,
)
from .model import PRODUCER_ID
from .protocol import (
    PROTOCOL,
    REQUEST_MAX,
    AlterLog,
    Append,
    Assigned,
    Claim,
    CommitCursor,
    CommitRecords,
    Connection,
    Control,
    Credit,
    Damaged,
    DeleteCursor,
    DeleteLog,
    Done,
    Error,
    Evict,
    Hello,
    Lost,
    Message,
    OpenProducer,
    Place,
    ProtocolError,
    Queued,
    Recall,
    Records,
    Redrive,
    Release,
    Resume,
    SeekCursor,
    Settle,
    Settled,
    Side,
    Standing,
    Subscribe,
    Transact,
    Transacted,
    TrimLog,
    Unsubscribe,
    Welcome,
    encode,
    raised,
)

if TYPE_CHECKING:
    from collections.abc import Callable

LOAN_BYTES: Final = 1 << 20  # of one fetch: larger ones only leave the processor's caches
APPEND_SECONDS_MAX: Final = 1800.0  # an append is sent again; the server forgets after an hour

# What is not the same after it was done as before. Claims are not here: their own token names them.
_CHANGES: Final = (
    Append, AlterLog, TrimLog, DeleteLog, CommitCursor, CommitRecords, SeekCursor, DeleteCursor,
    Settle, Redrive, Evict, Resume, Transact,
)  # fmt: skip
_GONE_IS_DONE: Final = (DeleteLog, DeleteCursor)  # a repeated one that finds nothing did it before
_ONCE: Final = (Evict,)  # a repeated one would strike the next holder
# What the server's farewell can say that no new connection will change.
# (Or that it could not read what it was sent: it would be sent the same again.)
_FINAL: Final = (Unsupported, AccessDenied, InvalidRequest)

RETRY_SECONDS_MIN: Final = 0.05  # between two tries to connect,
RETRY_SECONDS_MAX: Final = 3.0  # well below the 5 s in which, after a start, who held may come back
TRY_SECONDS: Final = 5.0  # and for one of them, greeting included

Buffer = bytes | bytearray | memoryview
AnswerT = TypeVar("AnswerT", bound=Control)


def retry_seconds(tries: int, chance: float) -> float:
    """How long to wait after ``tries`` failed ones; ``chance``: in [0, 1).

    All of it is left to chance, so that clients that lost one server do not come back as one.
    """
    longest = min(RETRY_SECONDS_MAX, RETRY_SECONDS_MIN * 2.0 ** min(tries + 1, 16))
    return RETRY_SECONDS_MIN + chance * (longest - RETRY_SECONDS_MIN)


class Call(Generic[AnswerT]):
    """One request. ``append``: (producer id, first sequence) of one that may be done unseen; of a
    transaction, (client id, number).

    ``request``: its number, 0 before it was started. ``control``, ``head`` and ``body``: what it
    takes to send it again. ``sent``: how often any of it may have left; ``since``: when an append
    did first.
    """

    __slots__ = (
        "answer", "append", "body", "claiming", "control", "done", "error", "expects", "head",
        "payload", "request", "sent", "since",
    )  # fmt: skip

    def __init__(self, expects: type[AnswerT], append: tuple[int, int] | None = None) -> None:
        self.expects = expects
        self.append = append
        self.done = False
        self.answer: AnswerT | None = None
        self.payload: Buffer = b""
        self.error: RlogError | None = None
        self.request = 0
        self.control: Control | None = None
        self.head = b""
        self.body: Buffer = b""
        self.sent = 0
        self.since = 0.0
        self.claiming: Claiming | None = None

    def get(self) -> AnswerT:
        """The answer, or its error raised."""
        if self.error is not None:
            # One batch's error is raised for each of its records: without the last one's traceback.
            raise self.error.with_traceback(None)
        assert self.answer is not None, "asked before it is done"
        return self.answer

    def succeed(self, answer: AnswerT, payload: Buffer = b"") -> None:
        if not self.done:
            self.answer, self.payload, self.done = answer, payload, True
            self.body = b""  # the call may be kept for long, what was sent need not

    def fail(self, error: RlogError) -> None:
        if not self.done:
            self.error, self.done = error, True
            self.body = b""

    def unknown(self, reason: str) -> RlogError | None:
        """What it means that no answer will come, if it may have changed something."""
        if not self.sent or not isinstance(self.control, _CHANGES):
            return None
        producer, sequence = self.append or (0, 0)
        what = "an append may or may not be in the log"
        if not isinstance(self.control, Append):
            what = f"{type(self.control).__name__} may or may not have been done"
        return OutcomeUnknown(f"{what}: {reason}", producer=producer, sequence=sequence)


class Claiming:
    """A claim that is held or waited for: made again, first thing, on every new connection.

    ``call``: the last time it was made. ``ticket``: its place among those who wait, 0 for none.
    ``lost``: why it could not be had, or not again.
    """

    def __init__(
        self,
        control: Callable[[], Claim | OpenProducer],
        expects: type[Control],
        answered: Callable[[Any], None],
    ) -> None:
        """``control``: the request as it is to be sent now, but for its ticket. ``answered`` is
        called with Claimed or ProducerOpened whenever it was granted, the first time included.
        """
        # What claims is collected as garbage although it is claimed for here, and says so then.
        self._control = _weak(control)
        self._answered = _weak(answered)
        self.ticket = 0
        self.lost: RlogError | None = None
        self.call: Call[Any] = Call(expects)
        self.call.claiming = self

    def control(self) -> Claim | OpenProducer | None:
        """The request as it is to be sent now; None when nobody is there for it any more."""
        if (control := self._control()) is None:
            return None
        request = control()
        request.ticket = self.ticket
        return request

    def answered(self, control: Control) -> None:
        self.ticket = 0
        if (answered := self._answered()) is not None:
            answered(control)

    def again(self) -> Call[Any]:
        """The call for the next time: another one, if the last one has its answer."""
        if self.call.done:
            following: Call[Any] = Call(self.call.expects)
            following.claiming = self
            following.control = self.call.control
            self.call = following
        return self.call


def _release(call: Call[Any]) -> Release | None:
    """What lets go of a claim; None where only a name was taken."""
    control = call.control
    if isinstance(control, OpenProducer):
        return Release(control.log, PRODUCER_ID) if control.exclusive else None
    # (None: interrupted before it was asked for.)
    return Release(control.log, control.consumer) if isinstance(control, Claim) else None


_MethodT = TypeVar("_MethodT", bound="Callable[..., Any]")


def _weak(method: _MethodT) -> Callable[[], _MethodT | None]:
    """``method``, as long as its object lives; a plain function lives for ever."""
    return WeakMethod(method) if isinstance(method, MethodType) else lambda: method


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
    """What one Subscribe brings. ``loan``: the request id of the open Credit, 0 for none.

    ``broken``: its connection is lost, and it with it. ``recalled``: the consumer it reads for has
    redriven records to take; whoever takes them says that it has seen it. ``shared``: records were
    lent to it, as a member of a shared consumer; ``standing``: the last word on whether that is
    paused. ``ahead``: the open loan is one that nobody waits for yet; what it brings is kept in
    ``coming``, and is no part of the stock before it is settled.
    """

    __slots__ = (
        "ahead", "broken", "coming", "end", "error", "id", "loan", "lost", "next", "place",
        "recalled", "shared", "standing", "stock",
    )  # fmt: skip

    def __init__(self, request: int, place: Call[Place]) -> None:
        self.id = request
        self.place = place
        self.stock: deque[Chunk | Damaged | Assigned] = deque()
        self.loan = 0
        self.ahead = False
        self.coming: list[Chunk | Damaged | Assigned] = []
        # The offset after the stock, while it is whole and no loan is open but one ahead.
        self.next = 0
        self.end = 0  # of the log, when the last loan was settled
        self.broken = False
        self.recalled = False
        self.shared = False
        self.standing: Standing | None = None
        self.lost: Lost | None = None
        self.error: RlogError | None = None


def _fits(answer: Control, asked: Control | None) -> bool:
    """It says as much as was asked for."""
    if isinstance(answer, Transacted) and isinstance(asked, Transact):
        return len(answer.appends) == len(asked.appends)
    return True


class Transactions:
    """What a client's transactions share. ``client``: its random id in them, 0 before the first;
    ``number``: the last one given. ``under_way``: the numbers of those without an answer, rising.
    ``logs``: ids by name.
    """

    def __init__(self) -> None:
        self.client = 0
        self.number = 0
        self.under_way: dict[int, None] = {}
        self.logs: dict[str, int] = {}

    @property
    def ahead(self) -> int:
        """How many numbers were given since the oldest that is under way, which is one of them."""
        return next((self.number + 1 - oldest for oldest in self.under_way), 0)


class Session:
    """A client's requests, subscriptions and claims, over one connection after the other."""

    def __init__(self, name: str, clock: Callable[[], float]) -> None:
        """``name``: shown as the holder of what is claimed. ``clock``: monotonic seconds."""
        # In the order they are to be sent. A message enters it by one call, so that an interrupt
        # (KeyboardInterrupt between two bytecodes) cannot leave half of one in it.
        self.outgoing: deque[Buffer] = deque()
        self.lost: ConnectionLost | None = None  # why there is no connection just now
        self.ended: RlogError | None = None  # why there will never be one again
        self.farewell: RlogError | None = None  # the server's own word on why it closed
        self.claims: list[Claiming] = []
        self.taken = 0  # messages that came, greetings aside
        self.transactions = Transactions()
        self._name = name
        self._clock = clock
        self._request = 0
        self._calls: dict[int, Call[Any]] = {}
        self._subscriptions: dict[int, Subscription] = {}
        self._loans: dict[int, Subscription] = {}
        self._welcome: Welcome | None = None
        self._connection = Connection(Side.CLIENT)
        self.greeting: Call[Welcome] = Call(Welcome)
        self._greet()

    @property
    def limits(self) -> Welcome:
        """The server's limits, known once the first greeting is done."""
        assert self._welcome is not None, "not greeted yet"
        return self._welcome

    @property
    def greeted(self) -> bool:
        """There is a connection, and what is asked for goes out on it."""
        return self.lost is None and self._connection.greeted

    # --- connections come and go --------------------------------------------------------------

    def begin(self) -> None:
        """A new connection is there, in place of the one that was lost."""
        assert self.ended is None, "over for good"
        if self.lost is not None:
            self.lose("")  # all of it, should an interrupt have stopped it
        self._connection = Connection(Side.CLIENT)
        self.farewell = None
        self._greet()
        self.lost = None  # last: until then it can be begun anew

    def _greet(self) -> None:
        self.greeting = Call(Welcome)
        self._register(self.greeting, Hello(PROTOCOL, self._name))
        self._put(self.greeting)

    def lose(self, reason: str) -> None:
        """The connection is lost; another one may follow. Calls and claims wait for it."""
        if self.ended is not None:
            return
        if self.farewell is not None:
            if isinstance(self.farewell, _FINAL):
                self.break_off(reason)
                return
            reason = f"{reason}: {self.farewell}"
        if self.lost is None:
            self.lost = ConnectionLost(reason)
        # In steps that can be repeated: an interrupt in the middle leaves the rest to the next one.
        self._break_subscriptions()
        unsent = {id(piece) for piece in self.outgoing}
        for request, call in list(self._calls.items()):
            if call.sent == 1 and id(call.head) in unsent:
                call.sent = 0  # not a byte of it has left, so its outcome is known
            if isinstance(call.control, Release):
                call.succeed(Done())  # the claim went with the connection
            elif isinstance(call.control, Subscribe | Hello):
                call.fail(ConnectionLost(str(self.lost)))
            elif isinstance(call.control, _ONCE) and call.sent:
                call.fail(call.unknown(str(self.lost)) or self.lost)
            if call.done or call.claiming is not None:
                self._calls.pop(request, None)  # claims are kept in their own list
        self.outgoing.clear()

    def break_off(self, reason: str) -> None:
        """The session is over: so is everything in flight."""
        if self.farewell is not None:
            reason = f"{reason}: {self.farewell}"
        if self.lost is None:
            self.lost = ConnectionLost(reason)
        if self.ended is None:
            if isinstance(self.farewell, _FINAL):
                self.ended = self.farewell
            else:
                self.ended = ConnectionLost(reason or str(self.lost))
        # One by one, and each removed only when it has failed: an interrupt in the middle leaves
        # the rest to the next call, which every wait ends with.
        while self._calls:
            request, call = next(iter(self._calls.items()))
            call.fail(call.unknown(str(self.ended)) or self.ended)
            del self._calls[request]
        for claiming in list(self.claims):
            claiming.call.fail(self.ended)
        self._break_subscriptions()
        self.outgoing.clear()

    def _break_subscriptions(self) -> None:
        for subscription in list(self._subscriptions.values()):
            subscription.broken = True
            subscription.loan, subscription.ahead = 0, False
        self._subscriptions.clear()
        self._loans.clear()

    def _resume(self) -> None:
        """Greeted: claims first, then whatever has no answer yet, in its old order."""
        for claiming in list(self.claims):
            if claiming.lost is None:
                self._ask(claiming)
        now = self._clock()
        for request, call in list(self._calls.items()):
            if call.claiming is None and call is not self.greeting:
                if not call.done:
                    self._send_again(call, now)
                if call.done:
                    self._calls.pop(request, None)

    def _send_again(self, call: Call[Any], now: float) -> None:
        if call.append is not None and call.sent and now - call.since > APPEND_SECONDS_MAX:
            reason = f"it could not be repeated within {APPEND_SECONDS_MAX:.0f} s"
            call.fail(call.unknown(reason) or ConnectionLost(reason))
        elif (size := len(call.body)) > self.limits.batch_bytes_max:
            limit = self.limits.batch_bytes_max
            reason = f"a batch of {size} bytes; the limit is now {limit}"
            call.fail(call.unknown(reason) or TooLarge(reason, size=size, limit=limit))
        else:
            self._put(call)

    # --- out ----------------------------------------------------------------------------------

    def start(self, call: Call[AnswerT], control: Control, payload: Buffer = b"") -> Call[AnswerT]:
        """Put a request on its way; without a connection it waits for the next one."""
        if self.ended is not None:
            call.fail(self.ended)  # not a byte of it has been sent, so its outcome is known
            return call
        self._register(call, control, payload)
        if self.greeted:
            self._put(call)
        elif isinstance(control, Release):
            self._release_unsent(call)
        return call

    def forget(self, call: Call[Any]) -> None:
        """It is done, and nobody waits for it: without a connection nothing of it is under way."""
        if self.lost is not None and self._calls.get(call.request) is call:
            del self._calls[call.request]

    def claim(self, claiming: Claiming) -> Call[Any]:
        """Claim, and claim again on every connection that comes, until ``unclaim``."""
        if self.ended is not None:
            claiming.call.fail(self.ended)
            return claiming.call
        claiming.call.control = claiming.control()
        self.claims.append(claiming)
        if self.greeted:
            self._ask(claiming)
        return claiming.call

    def unclaim(self, claiming: Claiming) -> Call[Done]:
        """Let go of it, or of the wait for it. Done at once where it went with its connection."""
        if claiming in self.claims:
            self.claims.remove(claiming)
        return self._let_go(claiming.call)

    def _let_go(self, call: Call[Any]) -> Call[Done]:
        released, release = Call(Done), _release(call)
        refused = call.claiming is None or (call.answer is None and call.claiming.lost is not None)
        alike = any(_release(other.call) == release for other in self.claims)
        if refused or release is None or alike or self.ended is not None:
            # Released would be what is alike. Should this one be granted yet, it goes then.
            released.succeed(Done())
        else:
            self.start(released, release)
        return released

    def subscribe(self, control: Subscribe) -> Subscription:
        place = Call(Place)
        if self.greeted:
            self._register(place, control)
            subscription = Subscription(place.request, place)
            self._subscriptions[place.request] = subscription
            self._put(place)
        else:
            subscription = Subscription(0, place)
            subscription.broken = True
            place.fail(self.ended or ConnectionLost(str(self.lost or "not greeted yet")))
        return subscription

    def lend(self, subscription: Subscription, amount: int, *, ahead: bool = False) -> None:
        """Open a loan of ``amount`` bytes; 0 only calls the open one back."""
        self.lend_as(subscription, Credit(subscription.id, amount, ahead=ahead))

    def lend_as(self, subscription: Subscription, credit: Credit) -> None:
        """Open a loan, or call the open one back."""
        if self._subscriptions.get(subscription.id) is not subscription:
            return
        request = self._number()
        subscription.shared = subscription.shared or credit.records > 0
        opens = credit.bytes or credit.records
        if opens:
            self._end_loan(subscription)
            self._loans[request] = subscription
            subscription.loan = request
        self._put_new(request, credit)
        if opens:
            # Last: should an interrupt leave a loan that was not asked for, the next one ends it.
            subscription.ahead = credit.ahead

    def unsubscribe(self, subscription: Subscription) -> None:
        """Its answer is of no interest, nor is what still comes."""
        if self._subscriptions.get(subscription.id) is not subscription:
            return
        del self._subscriptions[subscription.id]
        self._loans.pop(subscription.loan, None)
        self._put_new(self._number(), Unsubscribe(subscription.id))

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

    def _register(self, call: Call[Any], control: Control, payload: Buffer = b"") -> None:
        """From here on the call is sent on every connection, until it is done."""
        request = call.request or self._number()
        call.head = encode(request, control, len(payload))
        call.control, call.body = control, payload
        call.request = request  # started once more after an interrupt, it keeps its place
        self._calls[request] = call

    def _put(self, call: Call[Any]) -> None:
        if not call.sent and call.append is not None:
            call.since = self._clock()
        call.sent += 1
        if call.body:
            self.outgoing.extend((call.head, call.body))
        else:
            self.outgoing.append(call.head)

    def _put_new(self, request: int, control: Control) -> None:
        self.outgoing.append(encode(request, control))

    def _ask(self, claiming: Claiming) -> None:
        if (control := claiming.control()) is None:
            self.claims.remove(claiming)
            return
        call = claiming.again()
        self._register(call, control)
        self._put(call)

    def _release_unsent(self, call: Call[Any]) -> None:
        """The claim has gone with its connection, and nothing claims it on the next one. A later
        one may, of the same name, which this must not release.
        """
        self._calls.pop(call.request, None)
        call.succeed(Done())

    # --- in -----------------------------------------------------------------------------------

    def room(self) -> memoryview | None:
        """Where to receive into, see ``protocol.Connection``."""
        return self._connection.room()

    def filled(self, count: int) -> None:
        """``count`` bytes were received into the room. Raises ProtocolError."""
        self._connection.filled(count)
        self._take_all()

    def received(self, data: bytes) -> None:
        """Raises ProtocolError."""
        self._connection.received(data)
        self._take_all()

    def _take_all(self) -> None:
        while (message := self._connection.next_message()) is not None:
            self._take(message)

    def _take(self, message: Message) -> None:
        request, control, payload = message
        self.taken += 1
        if isinstance(control, Settled):
            # Nothing is to be noted of one that a later Credit called back, or of 0 bytes.
            if (lent := self._loans.pop(request, None)) is not None:
                lent.next, lent.end = control.offset, control.end
                self._end_loan(lent)
            return
        if isinstance(control, Records | Damaged | Lost | Recall | Assigned | Standing):
            if (subscription := self._subscriptions.get(request)) is not None:
                self._pushed(subscription, control, payload)
            return
        call = self._calls.get(request)
        if isinstance(control, Queued):
            if call is not None and call.claiming is not None:
                call.claiming.ticket = control.ticket
            return
        self._answered(request, control, payload, call)
        self._calls.pop(request, None)  # last: what is in here can still be failed

    def _answered(
        self, request: int, control: Control, payload: Buffer, call: Call[Any] | None
    ) -> None:
        if isinstance(control, Error):
            self._refused(request, call, raised(control))
        elif call is None:
            return  # the answer to an Unsubscribe
        elif not isinstance(control, call.expects) or not _fits(control, call.control):
            raise ProtocolError(f"{type(control).__name__} does not answer request {request}")
        elif isinstance(control, Welcome):
            self._welcomed(call, control)
        elif call.claiming is not None:
            self._claimed(call, call.claiming, control)
        elif not call.done:
            if isinstance(control, Place) and request in self._subscriptions:
                self._subscriptions[request].next = control.offset
            call.succeed(control, payload)

    def _pushed(
        self,
        subscription: Subscription,
        control: Records | Damaged | Lost | Recall | Assigned | Standing,
        payload: Buffer,
    ) -> None:
        stock = subscription.coming if subscription.ahead else subscription.stock
        if isinstance(control, Records):
            stock.append(Chunk(control, payload))
        elif isinstance(control, Assigned) and not subscription.shared:
            raise ProtocolError("records were assigned to one who shares none")
        elif isinstance(control, Assigned) and len(control.failed) % 2:
            raise ProtocolError("an offset without its failed attempts")
        elif isinstance(control, Damaged | Assigned):
            stock.append(control)
        elif isinstance(control, Recall):
            subscription.recalled = True
        elif isinstance(control, Standing):
            subscription.standing = control
        else:
            subscription.lost = control
            self._end_loan(subscription)

    def _end_loan(self, subscription: Subscription) -> None:
        if subscription.ahead:
            # (What an interrupt leaves in both comes twice, and is passed over.)
            subscription.stock.extend(subscription.coming)
            subscription.coming = []
            subscription.ahead = False
        self._loans.pop(subscription.loan, None)
        subscription.loan = 0

    def _claimed(self, call: Call[Any], claiming: Claiming, control: Control) -> None:
        if claiming in self.claims:
            claiming.answered(control)
        else:
            self._let_go(call)  # nobody waits for it any more
        call.succeed(control)

    def _refused(self, request: int, call: Call[Any] | None, error: RlogError) -> None:
        subscription = self._subscriptions.get(request) or self._loans.get(request)
        if call is not None:
            self._fail(call, error)
            self._subscriptions.pop(request, None)  # a Subscribe that was refused
        elif subscription is not None:
            subscription.error = error
            self._end_loan(subscription)
        elif request == 0:
            self.farewell = error

    def _fail(self, call: Call[Any], error: RlogError) -> None:
        """An answer that is an error. Of a request that is repeated it may mean something else."""
        if call is self.greeting:
            self.farewell = error
        elif call.claiming is not None:
            call.claiming.lost = error
        elif call.sent > 1:
            if isinstance(error, NotFound) and isinstance(call.control, _GONE_IS_DONE):
                call.succeed(Done())
            elif isinstance(error, StorageFailed):
                error = call.unknown(str(error)) or error
        call.fail(error)

    def _welcomed(self, call: Call[Any], welcome: Welcome) -> None:
        if welcome.protocol != PROTOCOL:
            text = f"the server speaks protocol {welcome.protocol}, this client {PROTOCOL}"
            self._fail(call, Unsupported(text))
            return
        connection = self._connection
        connection.payload_bytes_max = welcome.push_bytes_max
        self._welcome = welcome
        self.taken = 0
        connection.greeted = True
        call.succeed(welcome)
        self._resume()

"""What talks to the server, written as steps: generators that yield what they wait for.

A step does no I/O and never blocks. It runs the same in a blocking client and in an async one: the
driver (``run`` of the transport) waits in its own way and sends the answer back in. What a driver
is interrupted or cancelled with while it waits is raised at the ``yield``, so a step may clean up,
and wait for that too.

A step may also be abandoned: interrupted between two waits, the driver closes it, which raises
GeneratorExit at the ``yield``. Then it must not yield again. So there is no ``yield`` in a
``finally``, and an ``except BaseException`` that waits is preceded by ``except GeneratorExit``.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Generator
from time import monotonic
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeAlias, TypeVar

from .errors import ConnectionLost, RlogError, TimedOut

if TYPE_CHECKING:
    from weakref import WeakSet

    from .protocol import Control
    from .session import AnswerT, Buffer, Call, Session

_logger = logging.getLogger("rlog_client")


class Wait(NamedTuple):
    """Until ``done()`` (answered with True), or until ``deadline`` has passed (False).

    ``deadline``: monotonic seconds; None: for ever. It outlives lost connections; the end of the
    session ends it with True, too.
    """

    done: Callable[[], bool]
    deadline: float | None = None


class Await(NamedTuple):
    """What a handler returned that is a coroutine function; answered with its result."""

    awaitable: Awaitable[Any]


T = TypeVar("T")
Steps: TypeAlias = Generator[Wait | Await, Any, T]


class Tended(Protocol):
    """What wants to be looked at on every call into the client."""

    def tend(self, now: float) -> None: ...


class Prefetching(Protocol):
    """What hands out records that have come before."""

    def forked(self) -> None: ...

    def disconnected(self) -> None:
        """What was prefetched and not handed out is not to be handed out any more."""


class Link(Protocol):
    """A greeted connection as steps see it, whoever drives it. Nothing here waits."""

    @property
    def address(self) -> object: ...

    @property
    def timeout(self) -> float | None:
        """Seconds for each request."""

    @property
    def session(self) -> Session: ...

    @property
    def tended(self) -> WeakSet[Tended]: ...

    @property
    def sources(self) -> WeakSet[Prefetching]: ...

    @property
    def room_ahead(self) -> int:
        """Bytes that may come while nobody waits for them."""

    def start(self, call: Call[AnswerT], control: Control, payload: Buffer = b"") -> Call[AnswerT]:
        """Put a request on its way. It leaves with the next wait or ``serve``."""

    def request(self, control: Control, expects: type[AnswerT]) -> Call[AnswerT]:
        """``start`` a new call."""

    def post(self, action: Callable[[Session], object]) -> None:
        """For finalizers, from any thread: done now if that is safe, else by the next call."""

    def serve(self) -> None:
        """Write and read what can be without waiting."""

    def wake(self) -> None:
        """Have the wait under way, or the next one, ask its ``done`` again. From any thread."""

    def check(self) -> None:
        """RuntimeError for a use that cannot be right."""


def until(timeout: float | None) -> float | None:
    """The moment, on the monotonic clock, at which ``timeout`` seconds from now are over."""
    return None if timeout is None else monotonic() + timeout


def asking(link: Link, control: Control, expects: type[AnswerT]) -> Steps[AnswerT]:
    """Ask, and wait for the answer. Raises its error; after the client's timeout ``overdue``'s."""
    call = link.request(control, expects)
    try:
        return (yield from finishing(link, call))
    except BaseException:
        give_up(link, call)
        raise


def give_up(link: Link, call: Call[Any]) -> None:
    """Interrupted or cancelled, nobody waits for it: a later connection need not repeat it."""
    call.fail(ConnectionLost("given up by its caller"))
    link.session.forget(call)


def finishing(link: Link, call: Call[AnswerT]) -> Steps[AnswerT]:
    """The answer. After the client's timeout, reconnects included, the error is ``overdue``'s."""
    if not call.done and not (yield Wait(lambda: call.done, until(link.timeout))):
        call.fail(overdue(link, call))
        link.session.forget(call)
    return call.get()


def overdue(link: Link, call: Call[Any]) -> RlogError:
    """The error of a call that has taken too long: OutcomeUnknown of what was sent and may have
    been done; else ConnectionLost, or TimedOut when the server is there and silent.
    """
    reason = f"{link.address} did not answer within {link.timeout} s"
    if (lost := link.session.lost) is not None:
        reason = f"{reason}: {lost}"
    if (unknown := call.unknown(reason)) is not None:
        return unknown
    return TimedOut(reason) if lost is None else ConnectionLost(reason)


def leaving(closing: Steps[None], error: BaseException | None, what: str) -> Steps[None]:
    """The end of a ``with`` block that raised ``error``. ``what``: what ``closing`` does."""
    try:
        yield from closing
    except (RlogError, RuntimeError) as failed:
        if error is None:
            raise
        # What the block raised is what its caller has to see.
        _logger.warning("%s on the way out failed: %s", what, failed)

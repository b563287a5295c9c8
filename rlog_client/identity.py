"""Who a producer is to the server: its id, its epoch, its name, perhaps its claim on the log."""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING, Final

from msgspec.structs import replace

from .errors import ConnectionLost, Fenced
from .model import check_consumer
from .protocol import OpenProducer, ProducerOpened
from .session import Claiming
from .steps import Wait, asking, finishing

if TYPE_CHECKING:
    from .steps import Link, Steps

# The server forgets an id without a name that was silent for an hour: then what is repeated would
# no longer be recognised.
IDLE_SECONDS: Final = 1800.0


def new_producer_id() -> int:
    """63 random bits, not 0."""
    return int.from_bytes(os.urandom(8), "little") >> 1 | 1


class AppendIds:
    """Ids for appends that stand alone. Each is lent to one at a time, with its next sequence.

    An append that was given up keeps its id: what is still on its way can be taken for no other.
    """

    def __init__(self) -> None:
        self._free: list[tuple[int, int]] = []

    def borrow(self) -> tuple[int, int]:
        """An id and its next sequence, nobody else's until they are given back."""
        try:
            return self._free.pop()
        except IndexError:
            return new_producer_id(), 0

    def give_back(self, producer: int, sequence: int) -> None:
        """``sequence``: the next one."""
        self._free.append((producer, sequence))


class Identity:
    """Refers to no producer: the session keeps claims, and must keep no producer alive by that.

    ``ready``: records can be sent under it. ``last``: the last sequence accepted under its name
    when it was opened, -1 for none.
    """

    def __init__(
        self,
        log: str,
        log_id: int,
        *,
        name: str | None,
        exclusive: bool,
        standby: bool,
        takeover: bool,
    ) -> None:
        if name is not None:
            if not isinstance(name, str):
                raise TypeError(f"a producer's name is a str, not {type(name).__name__}")
            check_consumer(name, "a producer's name")
        if (standby or takeover) and not exclusive:
            raise ValueError("standby and takeover are for exclusive=True")
        if standby and takeover:
            raise ValueError("standby waits for the claim to end, takeover ends it: not both")
        self.log = log
        self.log_id = log_id
        self.name = name
        self.exclusive = bool(exclusive)
        self.id = new_producer_id()
        self.epoch = 0
        self.last = -1
        self.opened = False
        self.ready = not self.opens
        self._standby = bool(standby)
        self._takeover = bool(takeover)
        self._token = os.urandom(16) if exclusive else b""
        self._claiming: Claiming | None = None

    @property
    def opens(self) -> bool:
        """The server is asked before the first record is sent."""
        return self.name is not None or self.exclusive

    @property
    def lost(self) -> Fenced | None:
        """Why its claim could not be had again."""
        if not self.opened or self._claiming is None or (lost := self._claiming.lost) is None:
            return None
        if isinstance(lost, Fenced):
            return lost
        return Fenced(f"log {self.log}: the claim is lost: {lost}", epoch=self.epoch)

    # --- opening ------------------------------------------------------------------------------

    def opening(self, link: Link) -> Steps[None]:
        """Have it ready: open it, or find out after a failure where it stands."""
        if self.exclusive:
            yield from (self._asking_again(link) if self.opened else self._claim(link))
        else:
            if self.opened:
                # Fenced if somebody else has opened the name. If not, it is opened anew: what may
                # still be on its way under the old epoch is refused from here on.
                yield from asking(link, self._control(), ProducerOpened)
            asked = replace(self._control(), epoch=0)
            self._answered((yield from asking(link, asked, ProducerOpened)))
        self.opened = self.ready = True

    def _asking_again(self, link: Link) -> Steps[None]:
        self._answered((yield from asking(link, self._control(), ProducerOpened)))

    def _claim(self, link: Link) -> Steps[None]:
        session = link.session
        self._claiming = claiming = Claiming(self._control, ProducerOpened, self._answered)
        try:
            call = session.claim(claiming)
            while self._standby and not call.done:
                # Waiting for one's turn is no request: it takes as long as it takes.
                yield Wait(lambda: call.done)
            yield from finishing(link, call)
        except BaseException:
            # Given up, interrupted or cancelled, it may still be granted: to nobody.
            session.unclaim(claiming)
            raise

    def _answered(self, opened: ProducerOpened) -> None:
        """Also when it came back on a new connection."""
        self.id, self.epoch, self.last = opened.producer, opened.epoch, opened.last_sequence

    def releasing(self, link: Link) -> Steps[None]:
        """Give the log back, if it is ours."""
        if self.opened and self._claiming is not None:
            self.opened = self.ready = False
            released = link.session.unclaim(self._claiming)
            with contextlib.suppress(ConnectionLost):  # then the claim went with it
                yield from finishing(link, released)

    def let_go(self, link: Link) -> None:
        """The same without waiting: for finalizers, and for steps that are abandoned."""
        if self.opened and (claiming := self._claiming) is not None:
            self.opened = self.ready = False
            link.post(lambda session: session.unclaim(claiming))

    def _control(self) -> OpenProducer:
        return OpenProducer(
            self.log_id,
            self.id,
            self.name,
            exclusive=self.exclusive,
            standby=self._standby,
            takeover=self._takeover,
            token=self._token,
            epoch=self.epoch,
        )

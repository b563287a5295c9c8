"""What was decided, in the order in which it was, with the frame that each decision stands in.

The real decisions are wrapped, not rewritten: a record holds who asked for what, the facts that it
added, and the answer as it was made. What a crash loses is cut off at the next start.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any, NamedTuple
from unittest import mock

import msgspec

from rlog import facts
from rlog.broker import Broker
from rlog.decisions import DECISIONS, Answer
from rlog.decisions.watch import Retain
from rlog_client.errors import RlogError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from rlog.broker import Decided
    from rlog.decisions import Desk, Make, Peer, Waiting
    from rlog_client.protocol import Assigned, Control


class Decision:
    """``control``: as it was when it was decided. ``frame``: the number of the frame that it waits
    for, 0 for none.

    ``heard``: its answer reached the client.
    """

    __slots__ = ("answer", "control", "error", "facts", "frame", "heard", "now", "waiting")

    def __init__(self, waiting: Waiting, now: float) -> None:
        self.waiting = waiting
        self.control: Control = msgspec.structs.replace(waiting.control)
        self.now = now
        self.facts: list[facts.Fact] = []
        self.error: RlogError | None = None
        self.answer: Control | None = None
        self.frame = 0
        self.heard = False


class Start:
    """A life begins. ``lost``: it found nothing of these."""

    def __init__(self, now: float, lost: Sequence[Decision | Start | Given]) -> None:
        self.now = now
        self.lost = lost


class Given(NamedTuple):
    """A member of a shared consumer was sent records. ``landed``: the last frame carried out."""

    peer: Peer
    consumer: str
    epoch: int
    assigned: Assigned
    now: float
    landed: int


class Recorder:
    def __init__(self) -> None:
        self.entries: list[Decision | Start | Given] = []
        self._open: list[Decision] = []  # of the frame that is being decided
        self._by_request: dict[tuple[int, int], Decision] = {}
        # The number of the last frame that was handed over.
        self.tail: Callable[[], int] = lambda: 0

    def decided(self, waiting: Waiting, now: float) -> Decision:
        decision = Decision(waiting, now)
        self.entries.append(decision)
        self._open.append(decision)
        if waiting.request:
            self._by_request[id(waiting.peer), waiting.request] = decision
        return decision

    def undecided(self) -> None:
        """The last one."""
        self._open.pop()
        self.entries.pop()

    def closed(self, number: int) -> None:
        """What was decided since stands in frame ``number``."""
        for decision in self._open:
            decision.frame = number if decision.error is None or decision.facts else 0
        self._open = []

    def heard(self, client: object, request: int) -> None:
        """An answer reached its client."""
        decision = self._by_request.get((id(client), request))
        if decision is not None and decision.answer is not None:
            decision.heard = True

    def start(self, now: float, recovered: int) -> None:
        """``recovered``: the number of the last frame that the new life found."""
        self._open = []
        keep = len(self.entries)
        for index, entry in enumerate(self.entries):
            if isinstance(entry, Decision) and entry.frame > recovered:
                keep = index
                break
        lost, self.entries = self.entries[keep:], self.entries[:keep]
        self.entries.append(Start(now, lost))
        self._by_request.clear()


@contextlib.contextmanager
def recording(recorder: Recorder) -> Iterator[None]:
    def wrapped(decide: Any) -> Any:
        def decided(desk: Desk, waiting: Waiting, control: Control) -> Make | None:
            decision = recorder.decided(waiting, desk.now)
            before = len(desk.facts)
            try:
                make: Make | None = decide(desk, waiting, control)
            except RlogError as error:
                decision.error, decision.facts = error, desk.facts[before:]
                # (A trim that was due stands for itself.)
                others = [fact for fact in decision.facts if not isinstance(fact, facts.Trimmed)]
                assert not others, f"{control} was refused behind its first fact"
                raise
            decision.facts = desk.facts[before:]
            if make is None:
                if decision.facts:
                    decision.control = Retain([])  # what it found was trimmed, and stands
                else:
                    recorder.undecided()  # it waits, and is decided again
                return None
            given = make
            if getattr(control, "shared", False):
                # A member is back at once, whether it hears of it or a crash is faster.
                answer = make(True)
                assert isinstance(answer, Answer)
                decision.answer = answer.control

            def noted(synced: bool) -> Any:
                answer = given(synced)
                if isinstance(answer, Answer):
                    decision.answer = answer.control
                return answer

            return noted

        return decided

    original = Broker.decide

    def decide(self: Broker, now_ns: int, *args: Any, **more: Any) -> Decided | None:
        made = original(self, now_ns, *args, **more)
        if made is not None and made.frame is not None:
            recorder.closed(recorder.tail() + 1)
        else:
            recorder.closed(0)
        return made

    with (
        mock.patch.dict(DECISIONS, {kind: wrapped(each) for kind, each in DECISIONS.items()}),
        mock.patch.object(Broker, "decide", decide),
    ):
        yield

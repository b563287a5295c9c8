"""Promise 16 with ``autocommit``: whatever a loop does, nothing is committed that was neither
asked beyond nor settled, and nothing is skipped. Random loops beside a model, with every client.
"""

from __future__ import annotations

import contextlib
import random
import time
from typing import TYPE_CHECKING, Any, Final

import pytest

import rlog_client as rlog
from rlog_client.consumer import AUTOCOMMIT_SECONDS

if TYPE_CHECKING:
    from collections.abc import Sequence

RECORDS: Final = 40
LIVES: Final = 12  # of a consumer, before what is left is read to the end
LOOPS: Final = 4  # of a short run, of each kind


class InOrder:
    """What may be committed: all below ``bound``. ``following``: what has to be handed out next."""

    def __init__(self) -> None:
        self.bound = self.following = 0
        self.hand: list[int] = []

    def asked(self) -> None:
        self.bound = max([self.bound, *(offset + 1 for offset in self.hand)])
        self.hand = []

    def handed(self, offsets: Sequence[int]) -> None:
        self.asked()
        assert list(offsets) == list(range(self.following, self.following + len(offsets)))
        self.hand, self.following = list(offsets), self.following + len(offsets)

    def settled(self, offset: int) -> None:
        self.bound = max(self.bound, offset + 1)
        self.hand = [each for each in self.hand if each > offset]

    def retried(self, offset: int) -> None:
        self.bound, self.following, self.hand = max(self.bound, offset), offset, []

    def left_alone(self, offset: int) -> None:
        self.hand = []

    def sought(self, offset: int) -> None:
        self.bound = self.following = offset
        self.hand = []

    def ended(self, committed: int) -> None:
        self.check(committed)
        self.sought(committed)

    def check(self, committed: int) -> None:
        assert committed <= self.bound, "committed, and nobody asked beyond it"


class Shared:
    """What may be committed: ``done``, one by one."""

    def __init__(self) -> None:
        self.done: set[int] = set()
        self.hand: set[int] = set()

    def asked(self) -> None:
        self.done |= self.hand
        self.hand = set()

    def handed(self, offsets: Sequence[int]) -> None:
        self.asked()
        self.hand = set(offsets)

    def settled(self, offset: int) -> None:
        self.done.add(offset)
        self.hand.discard(offset)

    def retried(self, offset: int) -> None:
        self.hand.discard(offset)

    left_alone = retried

    def ended(self, committed: int) -> None:
        self.hand = set()
        self.check(committed)

    def check(self, committed: int) -> None:
        assert set(range(committed)) <= self.done, "committed, and nobody asked beyond it"


class Loop:
    """A program that consumes one log, and does whatever comes to its mind with each record."""

    def __init__(
        self, client: Any, other: Any, name: str, rng: random.Random, shared: bool
    ) -> None:
        self.client = client
        self.log = client.log(name)
        self.seen = other.log(name).cursor("c")
        self.rng = rng
        self.shared = shared
        self.model: Any = Shared() if shared else InOrder()
        self.earlier: list[rlog.Record] = []  # that were handed out under this claim

    @property
    def committed(self) -> int:
        return int(self.seen.info().committed)

    def consumer(self) -> Any:
        return self.log.consumer("c", autocommit=True, block=False, shared=self.shared)

    def live(self) -> None:
        """One consumer, from its claim to its end."""
        consumer = self.consumer()
        self.earlier.clear()
        how = self.rng.choice(("close", "evict", "leave"))
        for _ in range(self.rng.randrange(1, 4)):
            if self.rng.random() < 0.3:
                records = consumer.poll(self.rng.randrange(1, 6))
                self.model.handed([record.offset for record in records])
                if records:
                    self.do(consumer, self.rng.choice(records))
                continue
            for record in consumer:
                self.model.handed([record.offset])
                self.do(consumer, record)
                if self.rng.random() < 0.2:
                    break
            else:
                self.model.asked()
        if how == "evict":
            with contextlib.suppress(rlog.NotFound):  # it has claimed nothing
                self.seen.evict()
        with contextlib.suppress(rlog.Fenced):
            consumer.close()
        self.model.ended(self.committed)

    def do(self, consumer: Any, record: rlog.Record) -> None:
        rng, model, offset = self.rng, self.model, record.offset
        deeds = ("verdict", "retry", "late", "commit", "transaction", "seek")
        match rng.choice(("nothing",) * 4 + deeds):
            case "verdict":
                verdict = rng.choice((rlog.COMMIT, rlog.Skip("it may"), rlog.Park("it may")))
                consumer.settle(record, verdict, wait=rng.random() < 0.5)
                model.settled(offset)
            case "retry":
                consumer.settle(record, rlog.Retry(0.0))
                model.retried(offset)
            case "late" if not self.shared and self.earlier:
                late = rng.choice(self.earlier)
                with contextlib.suppress(rlog.InvalidRequest):
                    consumer.settle(late, rlog.Retry(0.0))
                    assert late.offset >= model.bound, "that was asked beyond"
                    model.retried(late.offset)
            case "commit":
                consumer.commit(record, wait=rng.random() < 0.5)
                model.settled(offset)
            case "transaction":
                self.transact(consumer, record)
            case "seek" if not self.shared and rng.random() < 0.3:
                model.sought(consumer.seek(rlog.offset(rng.randrange(offset + 1))))
                self.earlier.clear()
                return
            case _:
                with contextlib.suppress(rlog.InvalidRequest):
                    consumer.settle(record, rlog.STOP)  # which is a mistake
        self.earlier.append(record)
        if rng.random() < 0.3:
            time.sleep(1.5 * AUTOCOMMIT_SECONDS)
            self.client.logs()  # and any call sends what is due
        if rng.random() < 0.3:
            model.check(self.committed)

    def transact(self, consumer: Any, record: rlog.Record) -> None:
        fate = self.rng.choice(("done", "refused", "given up"))
        with contextlib.suppress(rlog.Conflict, ZeroDivisionError):
            with self.client.transaction() as transaction:
                transaction.commit(consumer, record)
                # What is expected is never so: only the log's own records are in it.
                never = 10**6 if fate == "refused" else None
                transaction.append(f"{self.log.name}.out", b"", expect=never)
                if fate == "given up":
                    raise ZeroDivisionError
            assert fate == "done"
            self.model.settled(record.offset)
        if fate != "done":
            self.model.left_alone(record.offset)

    def finish(self) -> None:
        while self.committed < RECORDS:
            with self.consumer() as consumer:
                for record in consumer:
                    self.model.handed([record.offset])
                self.model.asked()
            self.model.ended(self.committed)


@pytest.mark.parametrize("shared", [False, True], ids=["in order", "shared"])
def test_autocommit_commits_what_was_asked_beyond_or_settled_and_nothing_else(
    client: Any, other: Any, log: Any, shared: bool, seed: int, long: bool
) -> None:
    for number in range(100 if long else LOOPS):
        name = f"{log.name}.{number}"
        rng = random.Random(f"{seed} {number}")
        client.log(f"{name}.out", create=True)
        client.log(name, create=True).append_many([b"%d" % n for n in range(RECORDS)])
        loop = Loop(client, other, name, rng, shared)
        try:
            for _ in range(LIVES):
                loop.live()
            loop.finish()
        except BaseException as error:
            error.add_note(f"seed {seed}, loop {number}")
            raise

"""A loan brings what was lent for, and one that nobody waits for yet no more than that."""

from __future__ import annotations

import pytest

from rlog.decisions import Grant
from rlog.segment import Damage
from rlog.subscription import Read, Subscription
from rlog_client import protocol
from rlog_client.protocol import PUSH_BYTES
from tests.storage.outlet import Outlet
from tests.storage.server import Server
from tests.storage.simdisk import SimDisk

LARGE, SMALL = 5000, 100


class Reading:
    """A reader of a log of some batches of one record each, of so many bytes."""

    def __init__(self, *sizes: int) -> None:
        self.server = Server(SimDisk(), file_bytes=4 * PUSH_BYTES)
        self.server.create("a")
        for number, size in enumerate(sizes):
            self.server.batch("a", b"%d" % number + bytes(size))
        self.outlet = Outlet()
        books = self.server.driver.broker.books
        self.subscription = Subscription(self.outlet, books, 1, 1, "a", 0)

    def lend(self, request: int, amount: int, *, ahead: bool = False) -> None:
        self.subscription.lend(request, protocol.Credit(1, amount, ahead=ahead))

    def read(self) -> Read:
        read = self.subscription.next_read()
        assert read is not None
        return read

    def push(self) -> list[int]:
        """The offsets from which on each push was, until there is nothing to do."""
        begun = len(self.outlet.told)
        while (read := self.subscription.next_read()) is not None:
            found = read.run(wait=True)
            assert found is not None
            self.subscription.deliver(read, found)
        told = self.outlet.told[begun:]
        return [each.first for each in told if isinstance(each, protocol.Records)]

    def settled(self) -> int | None:
        """Up to where the last one was; None: it is open."""
        last = self.outlet.told[-1] if self.outlet.told else None
        return last.offset if isinstance(last, protocol.Settled) else None


def test_what_somebody_waits_for_brings_a_batch_of_any_size_and_then_what_fits() -> None:
    reading = Reading(LARGE, SMALL, SMALL, LARGE)
    reading.lend(2, 1)
    assert (reading.push(), reading.settled()) == ([0], 1)
    reading.lend(3, 1000)
    assert (reading.push(), reading.settled()) == ([1], 3), "both small ones, in one push"
    assert len(reading.outlet.data) < LARGE + 1500


def test_what_nobody_waits_for_brings_what_fits_or_nothing() -> None:
    reading = Reading(LARGE, SMALL, SMALL)
    reading.lend(2, 1000, ahead=True)
    assert (reading.push(), reading.settled()) == ([], 0)
    reading.lend(3, 1000)
    assert (reading.push(), reading.settled()) == ([0], 1)
    reading.lend(4, 1000, ahead=True)
    assert (reading.push(), reading.settled()) == ([1], 3)


def test_a_loan_of_more_than_one_push_goes_on_behind_the_first() -> None:
    reading = Reading(SMALL, PUSH_BYTES + LARGE, SMALL)
    reading.lend(2, 3 * PUSH_BYTES, ahead=True)
    assert (reading.push(), reading.settled()) == ([0, 1, 2], 3)


def test_one_that_waits_at_the_end_brings_nothing_that_does_not_fit() -> None:
    reading = Reading()
    reading.lend(2, 1000, ahead=True)
    assert (reading.push(), reading.settled()) == ([], None)
    reading.server.batch("a", b"0" + bytes(LARGE))
    assert (reading.push(), reading.settled()) == ([], 0)


@pytest.mark.parametrize("first_ahead", [True, False])
def test_a_read_for_one_loan_is_no_other_ones(first_ahead: bool) -> None:
    reading = Reading(LARGE, SMALL)
    reading.lend(2, 1000, ahead=first_ahead)
    stale = reading.read()
    found = stale.run(wait=True)  # it took a while, and meanwhile:
    assert found is not None
    reading.lend(3, 1000, ahead=not first_ahead)
    told = len(reading.outlet.told)
    reading.subscription.deliver(stale, found)
    assert len(reading.outlet.told) == told
    assert reading.push() == ([0] if first_ahead else [])


def test_what_its_holder_is_told_that_it_does_not_get_counts_as_delivered() -> None:
    reading = Reading(SMALL, SMALL)
    reading.subscription.grant = grant = Grant(1, 0)
    reading.lend(2, 1000)
    reading.subscription.deliver(reading.read(), Damage(0, 0, 1, "rot"))
    assert grant.delivered == 1, "or it could not be passed by a commit"

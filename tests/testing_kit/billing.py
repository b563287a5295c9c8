"""A user's application, and its tests: copied to a directory of its own, and run there by pytest.

An order is charged once, although ``process`` may hand it out again: what was charged is known by
the record's offset, in the same place as the charge itself.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import anyio
import pytest

import rlog

if TYPE_CHECKING:
    from rlog.testing import Server

pytest_plugins = ["rlog.testing"]

# --- the application ----------------------------------------------------------------------------


class Bank:
    """What is outside: it keeps what it was told, and under which name it was told so."""

    def __init__(self) -> None:
        self.charged: dict[str, int] = {}
        self.calls = 0

    def charge(self, name: str, amount: int) -> None:
        self.calls += 1
        self.charged.setdefault(name, amount)


def bill(log: rlog.Log, bank: Bank) -> int:
    """Charge what was ordered: how many orders are done with."""

    def handle(record: rlog.Record) -> rlog.Verdict | None:
        if not record.value.isdigit():
            return rlog.Park("not an amount")
        bank.charge(f"{record.log}/{record.offset}", int(record.value))
        return None

    with log.consumer("billing", block=False) as consumer:
        return consumer.process(handle, retry=rlog.Backoff(first=0.01))


def order(log: rlog.Log, amount: int) -> int:
    """-> the order's number. Raises TryLater: nothing was ordered."""
    try:
        return log.append(b"%d" % amount)
    except rlog.DiskFull as error:
        raise TryLater from error


class TryLater(Exception):
    pass


# --- its tests ----------------------------------------------------------------------------------


@pytest.fixture
def orders(rlog_server: Server) -> rlog.Log:
    return rlog_server.connect(name="shop").log("orders", create=True)


def test_an_order_is_charged_once_whatever_is_lost(rlog_server: Server, orders: rlog.Log) -> None:
    bank = Bank()
    with rlog_server.lose_reply(to="append"):
        assert [order(orders, amount) for amount in (5, 7, 9)] == [0, 1, 2]
    with rlog_server.lose_reply(to="commit"):
        assert bill(orders, bank) == 3
    assert bank.charged == {"orders/0": 5, "orders/1": 7, "orders/2": 9}
    assert bank.calls == 3


def test_a_charge_that_is_repeated_is_the_same_charge(
    rlog_server: Server, orders: rlog.Log
) -> None:
    class Slow(Bank):
        def charge(self, name: str, amount: int) -> None:
            super().charge(name, amount)
            if self.calls == 1:
                rlog_server.lapse("orders", "billing")  # it took too long

    bank = Slow()
    order(orders, 5)
    with pytest.raises(rlog.Fenced):
        bill(orders, bank)
    assert bill(orders, bank) == 1
    assert bank.charged == {"orders/0": 5}
    assert bank.calls == 2


def test_a_full_disk_is_not_the_end(rlog_server: Server, orders: rlog.Log) -> None:
    with rlog_server.full_disk(), pytest.raises(TryLater):
        order(orders, 5)
    assert order(orders, 5) == 0


def test_what_was_ordered_survives(rlog_server: Server, orders: rlog.Log) -> None:
    order(orders, 5)
    with rlog_server.fail_sync(), pytest.raises(rlog.OutcomeUnknown):
        order(orders, 7)
    rlog_server.restart()
    order(orders, 9)
    rlog_server.crash()
    rlog_server.start()
    bank = Bank()
    assert bill(orders, bank) >= 2
    assert {5, 9} <= set(bank.charged.values()) <= {5, 7, 9}


async def bill_async(url: str) -> list[bytes]:
    billed: list[bytes] = []

    async def handle(record: rlog.Record) -> None:
        billed.append(record.value)

    async with rlog.connect_async(url) as client:
        log = await client.log("orders", create=True)
        await log.append(b"5")
        async with log.consumer("billing", block=False) as consumer:
            await consumer.process(handle)
    return billed


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_the_same_with_async(rlog_server: Server, backend: str) -> None:
    with rlog_server.lose_reply(to="append"):
        assert anyio.run(bill_async, rlog_server.url, backend=backend) == [b"5"]


@pytest.mark.anyio  # anyio's own plugin of pytest; pytest-trio and pytest-asyncio do as well
async def test_in_a_loop_that_runs(rlog_server: Server) -> None:
    async with rlog_server.connect_async() as client:
        log = await client.log("orders", create=True)
        assert await log.append(b"5") == 0
        assert rlog_server.cut() == 1
        assert await log.append(b"7") == 1

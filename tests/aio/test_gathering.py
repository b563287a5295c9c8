"""What many tasks append at one moment goes as one batch, and each is told of its own."""

from __future__ import annotations

from functools import partial
from time import monotonic
from typing import TYPE_CHECKING, Any

import anyio.lowlevel
import pytest

import rlog_client as rlog
from rlog_client import gathering, protocol
from rlog_client.batch import parse_header
from rlog_client.steps import Wait

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.client.peer import Peer

Run = Any


def appends(peer: Peer) -> int:
    return sum(isinstance(each, protocol.Append) for each in peer.asked)


async def together(
    log: Any, values: list[bytes], done: Callable[[int, Any], None], **more: Any
) -> None:
    """Append each of ``values`` by a task of its own."""

    async def one(index: int, value: bytes) -> None:
        try:
            done(index, await log.append(value, **more))
        except rlog.RlogError as error:
            done(index, error)

    async with anyio.create_task_group() as tasks:
        for index, value in enumerate(values):
            tasks.start_soon(one, index, value)


def test_appends_of_one_moment_are_one_batch_in_their_order(run: Run, peer: Peer) -> None:
    async def main() -> dict[int, Any]:
        told: dict[int, Any] = {}
        async with rlog.connect_async(peer.url) as client:
            log = await client.log("l")
            await together(log, [b"%d" % n for n in range(100)], told.__setitem__)
            assert await log.append(b"after") == 100
        return told

    told = run(main)
    assert appends(peer) == 2
    assert sorted(told.values()) == list(range(100))
    with rlog.connect(peer.url) as client:
        records = list(client.log("l").reader(rlog.OLDEST, block=False))
    # Each was told where its own record is.
    assert {n: records[told[n]].value for n in told} == {n: b"%d" % n for n in range(100)}
    assert records[100].value == b"after"


def test_keys_headers_and_times_stay_with_their_records(run: Run, peer: Peer) -> None:
    async def main() -> None:
        async with rlog.connect_async(peer.url) as client:
            log = await client.log("l")
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(log.append, b"plain")
                for number in range(3):
                    dressed: dict[str, Any] = {
                        "key": b"k%d" % number,
                        "headers": {"h": b"%d" % number},
                    }
                    tasks.start_soon(partial(log.append, b"dressed", **dressed))

    run(main)
    assert appends(peer) == 1
    with rlog.connect(peer.url) as client:
        found = list(client.log("l").reader(rlog.OLDEST, block=False))
    assert sorted((r.value, r.key, r.headers.get("h")) for r in found if r.key is not None) == [
        (b"dressed", b"k%d" % n, b"%d" % n) for n in range(3)
    ]
    assert [r.value for r in found if r.key is None] == [b"plain"]


def test_what_expects_something_is_judged_alone(run: Run, peer: Peer) -> None:
    async def main() -> dict[int, Any]:
        told: dict[int, Any] = {}
        async with rlog.connect_async(peer.url) as client:
            log = await client.log("l")
            await together(log, [b"0", b"1", b"2"], told.__setitem__, expect=0)
        return told

    told = run(main)
    assert appends(peer) == 3
    names = sorted(type(each).__name__ for each in told.values())
    assert names == ["Conflict", "Conflict", "int"]


def test_a_record_that_is_too_large_is_refused_and_no_other(run: Run, peer: Peer) -> None:
    async def main() -> dict[int, Any]:
        told: dict[int, Any] = {}
        async with rlog.connect_async(peer.url) as client:
            log = await client.log("l")
            await together(log, [b"a", bytes(1 << 22), b"b"], told.__setitem__)
        return told

    told = run(main)
    assert isinstance(told[1], rlog.TooLarge)
    assert sorted([told[0], told[2]]) == [0, 1]


def test_more_than_a_batch_takes_goes_as_several(run: Run, peer: Peer) -> None:
    async def main() -> dict[int, Any]:
        told: dict[int, Any] = {}
        async with rlog.connect_async(peer.url) as client:
            log = await client.log("l")
            await together(log, [b"%06d" % n * 20_000 for n in range(20)], told.__setitem__)
        return told

    told = run(main)
    assert sorted(told.values()) == list(range(20))
    assert 1 < appends(peer) < 20
    assert max(map(len, peer.batches)) <= 1 << 20


def test_a_batch_that_is_refused_is_everybodys_error(run: Run, peer: Peer) -> None:
    def refuse(control: protocol.Control) -> rlog.RlogError | None:
        return rlog.DiskFull("no space") if isinstance(control, protocol.Append) else None

    async def main() -> dict[int, Any]:
        told: dict[int, Any] = {}
        async with rlog.connect_async(peer.url) as client:
            log = await client.log("l")
            peer.refuse = refuse
            await together(log, [b"0", b"1", b"2"], told.__setitem__)
            peer.refuse = lambda _control: None
            told[3] = await log.append(b"3")
        return told

    told = run(main)
    assert [type(told[n]).__name__ for n in range(4)] == ["DiskFull"] * 3 + ["int"]


def test_one_that_is_cancelled_leaves_the_others_theirs(run: Run, peer: Peer) -> None:
    async def main() -> dict[int, Any]:
        told: dict[int, Any] = {}
        async with rlog.connect_async(peer.url) as client:
            log = await client.log("l")
            async with anyio.create_task_group() as tasks:
                scope = anyio.CancelScope()

                async def cancelled() -> None:
                    with scope:
                        await log.append(b"cancelled")

                tasks.start_soon(cancelled)
                tasks.start_soon(together, log, [b"0", b"1"], told.__setitem__)
                await anyio.lowlevel.checkpoint()
                scope.cancel()
            assert scope.cancelled_caught or peer.end
        return told

    told = run(main)
    with rlog.connect(peer.url) as client:
        records = list(client.log("l").reader(rlog.OLDEST, block=False))
    assert {n: records[told[n]].value for n in told} == {0: b"0", 1: b"1"}


@pytest.mark.parametrize("sent", [True, False])
def test_without_an_answer_everybody_is_told_in_time(run: Run, peer: Peer, sent: bool) -> None:
    def refuse(control: protocol.Control) -> str | None:
        return "silence" if isinstance(control, protocol.Append) else None

    async def main() -> dict[int, Any]:
        told: dict[int, Any] = {}
        async with rlog.connect_async(peer.url, timeout=0.5) as client:
            log = await client.log("l")
            peer.refuse = refuse
            if not sent:
                peer.close()
                await client._transport._wait(Wait(lambda: not client._transport.session.greeted))
            await together(log, [b"0", b"1"], told.__setitem__)
        return told

    told = run(main)
    expected = rlog.OutcomeUnknown if sent else rlog.ConnectionLost
    assert [type(told[n]) for n in range(2)] == [expected] * 2


def test_a_batch_whose_outcome_is_not_known_keeps_its_id(run: Run, peer: Peer) -> None:
    async def main() -> None:
        async with rlog.connect_async(peer.url, timeout=0.3) as client:
            log = await client.log("l")
            await log.append(b"1")
            peer.refuse = lambda c: "silence" if isinstance(c, protocol.Append) else None
            with pytest.raises(rlog.OutcomeUnknown):
                await log.append(b"2")
            peer.refuse = lambda c: None
            await log.append(b"3")

    run(main)
    first, second = [parse_header(batch) for batch in peer.batches]
    assert second.producer != first.producer
    assert second.sequence == 0


async def outage(client: Any, peer: Peer) -> None:
    """The connection is lost, and does not come back."""
    peer.close()
    await client._transport._wait(Wait(lambda: not client._transport.session.greeted))


def test_who_comes_late_in_an_outage_has_all_of_its_own_time(run: Run, peer: Peer) -> None:
    async def main() -> float:
        async with rlog.connect_async(peer.url, timeout=1.0) as client:
            log = await client.log("l")
            await outage(client, peer)
            told: dict[int, Any] = {}
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(together, log, [b"0"], told.__setitem__)
                await anyio.sleep(0.8)
                began = monotonic()
                with pytest.raises(rlog.ConnectionLost):
                    await log.append(b"1")
        return monotonic() - began

    assert run(main) >= 1.0


def test_an_outage_keeps_nothing_of_what_was_given_up(
    run: Run, peer: Peer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gathering, "LOT_SECONDS", 60.0)

    async def main() -> None:
        async with rlog.connect_async(peer.url) as client:
            log = await client.log("l")
            await outage(client, peer)
            transport = client._transport
            transport.timeout = 0.05
            told: dict[int, Any] = {}
            for _ in range(5):
                await together(log, [bytes(100_000)] * 5, told.__setitem__)
                assert [type(told[n]) for n in range(5)] == [rlog.ConnectionLost] * 5
            assert len(transport._sealing) <= 1
            assert not transport.session._calls
            # Their numbers were not used: all were to go out under the same id, and still can.
            [(_, sequence)] = client._append_ids._free
            assert sequence == 0

    run(main)


@pytest.mark.parametrize("seconds", [0.0, 60.0])
def test_what_everybody_was_cancelled_in_an_outage_is_not_appended_after_it(
    run: Run, peer: Peer, monkeypatch: pytest.MonkeyPatch, seconds: float
) -> None:
    monkeypatch.setattr(gathering, "LOT_SECONDS", seconds)

    async def main() -> None:
        async with rlog.connect_async(peer.url) as client:
            log = await client.log("l")
            await outage(client, peer)
            for _ in range(20):
                with anyio.move_on_after(0.01) as scope:
                    await log.append(bytes(10_000))
                assert scope.cancelled_caught
            transport = client._transport
            assert not transport.session._calls
            await transport._wait(Wait(lambda: len(transport._waiters) == 1))  # this one

    run(main)


def test_what_ended_for_good_says_so_at_once(run: Run, peer: Peer) -> None:
    async def main() -> None:
        async with rlog.connect_async(peer.url, timeout=None) as client:
            log = await client.log("l")
            client._transport.session.farewell = rlog.Unsupported("another protocol")
            client._transport.session.lose("gone")
            with anyio.fail_after(10), pytest.raises(rlog.Unsupported):
                await log.append(b"v")

    run(main)

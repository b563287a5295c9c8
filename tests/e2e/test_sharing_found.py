"""What broke once in shared consumers, each by the claim that it broke."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

import rlog_client as rlog
from rlog import open as rlog_open
from rlog_client.blocking import Member

from .proxy import Proxy
from .serving import Server, eventually

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path


@pytest.fixture
def own(make_server: Callable[..., Server]) -> Server:
    return make_server().start()


@pytest.fixture
def proxy(own: Server) -> Iterator[Proxy]:
    proxy = Proxy(own.tcp)
    yield proxy
    proxy.close()


def keyed(log: rlog.Log, *keys: bytes | None) -> None:
    log.append_many([rlog.Item(b"%d" % n, key=key) for n, key in enumerate(keys)])


def again_on_its_port(server: Server) -> None:
    """Killed, and back where its clients look for it."""
    port = server.tcp.rpartition(":")[2]
    server.kill()
    server.start("--listen", f"127.0.0.1:{port}")


def test_a_retry_that_is_repeated_after_a_start_is_out_once(own: Server, proxy: Proxy) -> None:
    """It was given back before it had been looked up, and again when it was."""
    with own.connect(timeout=60) as outside, rlog.connect(proxy.url, timeout=60) as client:
        keyed(outside.log("l", create=True), *[b"k"] * 3)
        with client.log("l").consumer("c", shared=True) as source:
            [record] = source.poll(timeout=10)
            proxy.swallow()
            source.settle(record, rlog.Retry(0.2), wait=False)
            client._transport.serve()
            # Durable, and its answer lost.
            eventually(lambda: proxy.swallowed > 0, "it is answered")
            again_on_its_port(own)
            proxy.cut()
            seen = []
            for _ in range(3):
                [record] = source.poll(timeout=10)
                seen.append((record.offset, record.attempt))
                assert source.poll() == [], "twice, or its key with it"
                source.commit(record)
    assert seen == [(0, 2), (1, 1), (2, 1)]


def test_what_was_answered_is_not_in_hand_after_coming_back(own: Server, proxy: Proxy) -> None:
    """Named as in hand, with nothing left that would settle it, it was nobody's for ever."""
    with own.connect(timeout=60) as outside, rlog.connect(proxy.url, timeout=60) as client:
        log = outside.log("l", create=True)
        keyed(log, b"k", b"k")
        with client.log("l").consumer("c", shared=True) as source:
            [record] = source.poll(timeout=10)
            source.settle(record, rlog.Retry(0.05), wait=False)
            assert isinstance(source, Member)

            def driven(condition: Callable[[], bool], what: str) -> None:
                def happens() -> bool:
                    client._transport.serve()
                    return condition()

                eventually(happens, what)

            # By the connection alone, as for a handler's task: nobody looks at the answer yet.
            driven(lambda: source._flight[0].call.done, "it is answered")
            again_on_its_port(own)
            proxy.cut()
            driven(lambda: client._transport.session.lost is not None, "it is lost")
            driven(lambda: client._transport.session.greeted, "it is back")
            driven(lambda: source._claiming.call.done, "the claim is")
            for expected in ((0, 2), (1, 1)):
                [record] = source.poll(timeout=10)
                assert (record.offset, record.attempt) == expected
                source.commit(record)


def test_poll_drops_nothing_of_what_was_fetched_before(log: rlog.Log) -> None:
    keyed(log, *[None] * 5)
    with log.consumer("c", shared=True) as source:
        assert next(source).offset == 0
        assert [record.offset for record in source.poll(2)] == [1, 2]
        assert [record.offset for record in source.poll(2)] == [3, 4]


def test_who_may_not_wait_gets_what_a_killed_member_had(
    own: Server,
) -> None:
    with own.connect() as client, own.connect() as other:
        keyed(client.log("l", create=True), b"k", None)
        gone = other.log("l").consumer("c", shared=True)
        assert len(gone.poll(timeout=10)) == 2
        other._transport._lose("it is cut")
        with client.log("l").consumer("c", shared=True, block=False) as source:
            assert source.process(lambda record: None) == 2
        with pytest.raises(rlog.Fenced):
            gone.commit(rlog.Record("l", 0, 0, None, {}, b"", None, 1, gone.epoch, False))


def test_who_may_not_wait_waits_for_the_first_right_of_those_from_before_a_start(
    own: Server,
) -> None:
    with own.connect() as client:
        keyed(client.log("l", create=True), b"k", None)
        consumer = client.log("l").consumer("c", shared=True)
        assert len(consumer.poll(timeout=10)) == 2
        own.kill()
        own.start()  # and nobody drives the first client, so that it does not come back
        with (
            own.connect() as other,
            other.log("l").consumer("c", shared=True, block=False) as source,
        ):
            assert source.process(lambda record: None) == 2


def test_a_refused_verdict_gives_its_record_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of several that were refused one was raised, and the others by whatever came next."""
    monkeypatch.setattr("rlog.decisions.parking.PARKED_MAX", 2)
    with rlog_open(tmp_path / "d") as client, client.clone() as other:
        keyed(client.log("l", create=True), *[b"%d" % n for n in range(8)])
        source = client.log("l").consumer("c", shared=True)
        with pytest.raises(rlog.Paused, match="2 records are parked"):
            source.process(lambda record: rlog.PARK, in_flight=8)
        with other.log("l").consumer("c", shared=True, block=False) as second:
            assert second.process(lambda record: None, in_flight=4) == 6
        assert source.poll() == []
        info = client.log("l").cursor("c").info()
        assert (info.committed, info.parked) == (8, 2)


def test_who_stands_still_at_its_limit_says_so(log: rlog.Log, other: rlog.Client) -> None:
    """What is in hand counts as well: each may come to be a range of its own."""
    keyed(log, *[None] * 10_500)
    with (
        log.consumer("c", shared=True) as first,
        other.log(log.name).consumer("c", shared=True) as second,
    ):
        held = 0
        while some := first.poll(1000):
            held += len(some)
        assert held == 10_000
        assert second.poll() == []
        held_back = log.cursor("c").info().held_back
        assert held_back is not None
        assert "10000 are in hand" in held_back

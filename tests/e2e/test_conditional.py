"""Appends under a condition, against a real server; and answers that are lost on their way."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import pytest

import rlog_client as rlog

from .proxy import Proxy
from .serving import Server, eventually

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


def values(log: rlog.Log) -> list[bytes]:
    return [record.value for record in log.reader(rlog.OLDEST, block=False)]


@pytest.fixture
def keyed(client: rlog.Client, log: rlog.Log) -> rlog.Log:
    return client.log(f"{log.name}-keyed", create=True, key_index=True)


@pytest.fixture
def proxy(server: Server) -> Iterator[Proxy]:
    proxy = Proxy(server.tcp)
    yield proxy
    proxy.close()


# --- expectations -------------------------------------------------------------------------------


def test_expect_is_the_end(log: rlog.Log) -> None:
    assert log.append(b"a", expect=0) == 0
    assert log.append_many([b"b", b"c"], expect=1).end == 3
    for append in (lambda: log.append(b"x", expect=1), lambda: log.append_many([b"x"], expect=1)):
        with pytest.raises(rlog.Conflict) as raised:
            append()
        assert (raised.value.end, raised.value.key_offset) == (3, None)
    assert log.append(b"d", expect=3) == 3
    assert values(log) == [b"a", b"b", b"c", b"d"]


def test_expect_key_is_the_keys_last_offset(keyed: rlog.Log) -> None:
    assert keyed.append(b"1", key=b"k", expect_key=-1) == 0
    assert keyed.append(b"2", key=b"other", expect_key=-1) == 1
    assert keyed.append(b"3", key=b"k", expect_key=0) == 2
    with pytest.raises(rlog.Conflict) as raised:
        keyed.append(b"4", key=b"k", expect_key=0)
    assert (raised.value.end, raised.value.key_offset) == (3, 2)
    with pytest.raises(rlog.Conflict) as raised:
        keyed.append(b"4", key=b"new", expect_key=2)
    assert (raised.value.end, raised.value.key_offset) == (3, -1)
    assert keyed.append(b"4", key=b"k", expect=3, expect_key=2) == 3
    with keyed.producer() as producer:
        producer.send(b"5", key=b"other").result()
    assert keyed.append(b"6", key=b"other", expect_key=4) == 5


def test_expectations_that_make_no_sense(log: rlog.Log, keyed: rlog.Log) -> None:
    with pytest.raises(rlog.InvalidRequest, match="key_index"):
        log.append(b"1", key=b"k", expect_key=-1)
    with pytest.raises(rlog.InvalidRequest, match="key"):
        keyed.append(b"1", expect_key=-1)
    for wrong in ("0", 0.0, True):
        with pytest.raises(TypeError, match="expect"):
            log.append(b"1", expect=wrong)  # type: ignore[arg-type]  # wrong on purpose
        with pytest.raises(TypeError, match="expect_key"):
            keyed.append(b"1", key=b"k", expect_key=wrong)  # type: ignore[arg-type]  # wrong on purpose
    with pytest.raises(rlog.InvalidRequest):
        log.append(b"1", expect=2**64)
    assert log.append(b"1") == 0


def test_an_index_of_keys_is_for_a_new_log(client: rlog.Client, log: rlog.Log) -> None:
    with pytest.raises(rlog.AlreadyExists):
        client.log(log.name, create=True, key_index=True)
    with pytest.raises(rlog.InvalidRequest):
        log.alter(key_index=True)
    assert log.append(b"1", key=b"k") == 0


def test_an_index_of_keys_outlives_its_server(make_server: Callable[..., Server]) -> None:
    server = make_server().start()
    with server.connect() as client:
        log = client.log("l", create=True, key_index=True)
        for n in range(100):
            log.append(b"%d" % n, key=b"%d" % (n % 7))
        for end in (server.kill, server.stop):
            end()
            server.start()
            for key in range(7):
                last = max(n for n in range(100) if n % 7 == key)
                with pytest.raises(rlog.Conflict) as raised:
                    log.append(b"x", key=b"%d" % key, expect_key=-1)
                assert raised.value.key_offset == last
        assert log.append(b"y", key=b"1", expect_key=99) == 100
    server.stop()


@pytest.mark.parametrize("what", ["end", "key"])
def test_of_two_who_race_one_wins_each_time(server: Server, keyed: rlog.Log, what: str) -> None:
    """Each counts in the log: were a condition judged at another moment, a number would repeat."""

    def append(log: rlog.Log, number: int) -> rlog.Conflict | None:
        value = b"%d" % number
        try:
            if what == "end":
                log.append(value, expect=number)
            else:
                log.append(value, key=b"k", expect_key=number - 1)
        except rlog.Conflict as conflict:
            return conflict
        return None

    def count(log: rlog.Log, upto: int) -> None:
        seen = 0
        while seen < upto:
            conflict = append(log, seen)
            if conflict is None:
                seen += 1
            else:
                assert conflict.end > seen
                assert what == "end" or conflict.key_offset == conflict.end - 1
                seen = conflict.end

    def run() -> None:
        with server.connect() as client:
            count(client.log(keyed.name), 300)

    threads = [threading.Thread(target=run) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert values(keyed) == [b"%d" % n for n in range(300)]


# --- answers that are lost ------------------------------------------------------------------------


def lose_the_answer(proxy: Proxy, log: rlog.Log, end: int) -> threading.Thread:
    """Once the log has this end, and the answer that said so is lost, so is its connection."""
    proxy.swallowed = 0
    proxy.swallow()

    def watch() -> None:
        eventually(lambda: proxy.swallowed > 0 and log.info().end >= end, "it is appended")
        proxy.cut()

    watching = threading.Thread(target=watch)
    watching.start()
    return watching


def test_a_lost_answer_is_asked_for_again(
    proxy: Proxy, other: rlog.Client, keyed: rlog.Log
) -> None:
    watched = other.log(keyed.name)
    with rlog.connect(proxy.url) as client:
        log = client.log(keyed.name)
        log.append(b"0", key=b"k")
        appends: list[Callable[[], int]] = [
            lambda: log.append(b"1"),
            lambda: log.append(b"2", expect=2),
            lambda: log.append(b"3", key=b"k", expect_key=0),
        ]
        for offset, append in enumerate(appends, 1):
            watching = lose_the_answer(proxy, watched, offset + 1)
            assert append() == offset
            watching.join()
        watching = lose_the_answer(proxy, watched, 6)
        receipt = log.append_many([b"4", b"5"], expect=4)
        watching.join()
        assert (receipt.first, receipt.end, receipt.duplicate) == (4, 6, True)
    assert values(keyed) == [b"%d" % n for n in range(6)]


@pytest.mark.parametrize("name", [None, "p"])
@pytest.mark.parametrize("exclusive", [False, True])
def test_lost_answers_of_a_producer_are_asked_for_again(
    proxy: Proxy, other: rlog.Client, log: rlog.Log, name: str | None, exclusive: bool
) -> None:
    watched = other.log(log.name)
    with rlog.connect(proxy.url) as client:
        producer = client.log(log.name).producer(
            name=name, exclusive=exclusive, batch_bytes=300, linger=3600.0
        )
        producer.send(b"0").result()
        for begin in (1, 101, 201):
            watching = lose_the_answer(proxy, watched, begin + 20)
            pending = [producer.send(b"%d" % n) for n in range(begin, begin + 100)]
            assert [each.result() for each in pending] == list(range(begin, begin + 100))
            watching.join()
            assert pending[0].receipt().duplicate
        producer.close()
    assert values(log) == [b"%d" % n for n in range(301)]

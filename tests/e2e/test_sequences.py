"""Producers with a name, against a real server: nothing twice, whatever is sent again."""

from __future__ import annotations

import gc
import shutil
import signal
from typing import TYPE_CHECKING

import pytest

import rlog_client as rlog
from rlog_client.producer import IN_FLIGHT_MAX

from .serving import Server, eventually

if TYPE_CHECKING:
    from collections.abc import Callable


def values(log: rlog.Log) -> list[bytes]:
    return [record.value for record in log.reader(rlog.OLDEST, block=False)]


def test_a_name_keeps_its_last_sequence(server: Server, log: rlog.Log) -> None:
    with log.producer(name="p") as producer:
        assert (producer.last_sequence, producer.epoch) == (-1, 1)
        producer.send(b"a")
        producer.send(b"b")
        producer.flush()
        assert producer.last_sequence == 1
    with server.connect() as another, another.log(log.name).producer(name="p") as producer:
        assert (producer.last_sequence, producer.epoch) == (1, 2)
        producer.send(b"c")
        producer.flush()
        assert producer.last_sequence == 2
    assert values(log) == [b"a", b"b", b"c"]


def test_a_producer_without_a_name_has_neither(log: rlog.Log) -> None:
    with log.producer() as producer:
        producer.send(b"a").result()
        assert (producer.last_sequence, producer.epoch) == (-1, 0)
        with pytest.raises(TypeError, match="name"):
            producer.send(b"b", sequence=1)


def test_nothing_is_opened_before_the_first_use(log: rlog.Log) -> None:
    producer = log.producer(name="p", exclusive=True)
    assert log.producers() == []
    producer.close()
    assert log.producers() == []
    with pytest.raises(RuntimeError):
        producer.send(b"x")


def test_what_was_accepted_is_not_appended_again(log: rlog.Log) -> None:
    with log.producer(name="p") as producer:
        first = [producer.send(b"%d" % n, sequence=n) for n in range(100)]
        offsets = [pending.result() for pending in first]
    log.append(b"between")
    with log.producer(name="p") as producer:
        assert producer.last_sequence == 99
        again = [producer.send(b"%d" % n, sequence=n) for n in range(50, 150)]
        producer.flush()
        assert producer.last_sequence == 149
        assert [pending.result() for pending in again[:50]] == offsets[50:]
        assert all(pending.receipt().duplicate for pending in again[:50])
        assert [pending.result() for pending in again[50:]] == list(range(101, 151))
        assert not any(pending.receipt().duplicate for pending in again[50:])
        assert again[3].receipt().timestamp_ns == first[53].receipt().timestamp_ns
    numbers = [b"%d" % n for n in range(150)]
    assert values(log) == [*numbers[:100], b"between", *numbers[100:]]


def test_originals_are_found_however_they_were_batched(log: rlog.Log, other: rlog.Client) -> None:
    offsets = []
    beside = other.log(log.name)
    with log.producer(name="p", linger=3600.0) as producer:
        for n in range(40):
            offsets.append(producer.send(b"%d" % n, sequence=2 * n // 3 + n).result())
            if n % 3 == 0:
                beside.append(b"between")
    with log.producer(name="p", linger=3600.0) as producer:
        again = [producer.send(b"?", sequence=2 * n // 3 + n) for n in range(40)]
        assert [pending.result() for pending in again] == offsets
    assert log.info().end == 54


def test_an_old_one_is_known_by_its_number_only(log: rlog.Log) -> None:
    with log.producer(name="p") as producer:
        for n in range(IN_FLIGHT_MAX + 1):
            producer.send(b"%d" % n).result()
    with log.producer(name="p") as producer:
        first, second = producer.send(b"0", sequence=0), producer.send(b"1", sequence=1)
        assert first.result() == -1
        receipt = first.receipt()
        assert (receipt.first, receipt.duplicate) == (-1, True)
        assert second.result() == 1
        assert producer.send(b"new").result() == IN_FLIGHT_MAX + 1


def test_sequences_rise_and_may_have_gaps(log: rlog.Log) -> None:
    with log.producer(name="p") as producer:
        pending = [producer.send(b"%d" % n, sequence=n) for n in (0, 1, 5, 6, 100)]
        for n in (100, 99, 0):
            with pytest.raises(rlog.InvalidRequest, match="rise"):
                producer.send(b"x", sequence=n)
        for wrong in ("1", 1.0, True):
            with pytest.raises(TypeError):
                producer.send(b"x", sequence=wrong)  # type: ignore[arg-type]  # wrong on purpose
        with pytest.raises(rlog.InvalidRequest):
            producer.send(b"x", sequence=-1)
        last = producer.send(b"101")
        assert [each.result() for each in pending] == [0, 1, 2, 3, 4]
        assert last.result() == 5
        assert producer.last_sequence == 101
    assert values(log) == [b"0", b"1", b"5", b"6", b"100", b"101"]


def test_old_and_new_and_unnumbered_ones_mix(log: rlog.Log) -> None:
    with log.producer(name="p") as producer:
        producer.extend([b"%d" % n for n in range(10)])
    with log.producer(name="p") as producer:
        old = producer.send(b"7", sequence=7)
        with pytest.raises(rlog.InvalidRequest):
            producer.send(b"7", sequence=7)
        new = producer.send(b"10")
        with pytest.raises(rlog.InvalidRequest):
            producer.send(b"8", sequence=8)
        producer.extend([b"11", b"12"])
        later = producer.send(b"20", sequence=20)
        producer.extend([b"21"])
        assert (old.result(), new.result(), later.result()) == (7, 10, 13)
    with log.producer(name="p") as producer:
        producer.send(b"21", sequence=21)
        producer.extend([b"22", b"23"])
    assert values(log) == [b"%d" % n for n in [*range(13), 20, 21, 22, 23]]


def test_whoever_opens_a_name_fences_the_one_before(log: rlog.Log, other: rlog.Client) -> None:
    first = log.producer(name="p")
    assert first.send(b"1").result() == 0
    second = other.log(log.name).producer(name="p")
    assert second.last_sequence == 0
    late = first.send(b"2")
    with pytest.raises(rlog.Fenced):
        late.result()
    with pytest.raises(rlog.Fenced):
        first.flush()
    for _ in range(2):
        with pytest.raises(rlog.Fenced):
            first.send(b"3")
    first.close()
    assert second.send(b"4").result() == 1
    second.close()
    assert values(log) == [b"1", b"4"]


def test_a_log_of_producers_lists_them(log: rlog.Log) -> None:
    log.append(b"x")
    with log.producer(name="b") as b, log.producer(name="a") as a:
        b.send(b"1").result()
        infos = log.producers()
        assert [(i.name, i.epoch, i.last_sequence, i.owner) for i in infos] == [
            ("a", a.epoch, -1, None),
            ("b", b.epoch, 0, None),
        ]


def test_a_name_outlives_its_producer_and_its_server(
    make_server: Callable[..., Server],
) -> None:
    server = make_server().start()
    sources = [b"%d" % n for n in range(300)]
    offsets: dict[int, int] = {}
    for begin, upto in ((0, 100), (100, 220), (220, 300)):
        with server.connect() as client:
            log = client.log("l", create=True)
            with log.producer(name="p", batch_bytes=700) as producer:
                pending = {n: producer.send(sources[n], sequence=n) for n in range(upto)}
                producer.flush()
                for n, each in pending.items():
                    if (at := each.result()) >= 0:
                        assert offsets.setdefault(n, at) == at
                    assert each.receipt().duplicate is (n < begin)
        server.kill()
        server.start()
    with server.connect() as client:
        assert values(client.log("l")) == sources
    assert offsets == {n: n for n in range(300)}
    server.stop()


# --- failures ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [None, "p"])
def test_nothing_behind_a_failed_batch_gets_in(
    make_server: Callable[..., Server], name: str | None
) -> None:
    """One reservation fails for want of space; what follows it would find some."""
    server = make_server().start("--kill", "allocate:logs:ENOSPC:1")
    with server.connect() as client:
        # Each batch is larger than a file is to be: so nothing more is asked for, and then less.
        log = client.log("l", create=True, file_roll_size=4096)
        producer = log.producer(name=name, batch_bytes=200, linger=3600.0)
        if name is not None:
            assert producer.last_sequence == -1
        server.signal(signal.SIGUSR1)
        client.logs()  # it has come
        server.pause()
        pending = [producer.send(b"%d" % n + bytes(5000)) for n in range(20)]
        server.resume()
        with pytest.raises(rlog.DiskFull):
            producer.flush()
        for each in pending:
            assert each.done()
            with pytest.raises(rlog.DiskFull):
                each.result()
        with pytest.raises(rlog.DiskFull, match="not appended"):
            pending[-1].result()
        assert values(log) == []
        again = [producer.send(b"%d" % n) for n in range(20)]
        assert producer.flush() == 20
        assert [each.result() for each in again] == list(range(20))
        assert producer.last_sequence == (19 if name is not None else -1)
        producer.close()
    server.stop()


def test_after_a_refusal_a_producer_goes_on_in_order(log: rlog.Log, other: rlog.Client) -> None:
    beside = other.log(log.name)
    for name in (None, "p"):
        producer = log.producer(name=name, linger=3600.0)
        begin = producer.send(b"before").result()
        with beside.producer(exclusive=True) as owner:
            assert owner.epoch > 0
            pending = [producer.send(b"%d" % n + bytes(50)) for n in range(8)]
            with pytest.raises(rlog.Busy):
                producer.flush()
            for each in pending:
                assert each.done()
                with pytest.raises(rlog.Busy):
                    each.result()
        again = [producer.send(b"%d" % n) for n in range(8)]
        assert [each.result() for each in again] == list(range(begin + 1, begin + 9))
        if name is not None:
            assert producer.last_sequence == 8
        producer.close()


def test_numbers_that_failed_can_be_used_again(log: rlog.Log, other: rlog.Client) -> None:
    beside = other.log(log.name)
    with log.producer(name="p") as producer:
        assert producer.send(b"3", sequence=3).result() == 0
        with beside.producer(exclusive=True):
            producer.send(b"5", sequence=5)
            with pytest.raises(rlog.Busy):
                producer.flush()
        assert producer.last_sequence == 3
        assert producer.send(b"5", sequence=5).result() == 1
        assert producer.last_sequence == 5


def test_a_producer_is_forgotten_with_its_last_reference(log: rlog.Log) -> None:
    producer = log.producer(name="p", exclusive=True)
    assert producer.send(b"1").result() == 0
    assert log.info().owner is not None
    del producer
    gc.collect()
    eventually(lambda: log.info().owner is None, "it is released")


# --- restarts -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [None, "p"])
def test_a_producer_goes_on_over_restarts(
    make_server: Callable[..., Server], name: str | None
) -> None:
    server = make_server().start()
    with server.connect() as client:
        log = client.log("l", create=True)
        pending = []
        with log.producer(name=name, batch_bytes=300) as producer:
            for n in range(1000):
                pending.append(producer.send(b"%d" % n))
                if n % 300 == 150:
                    server.kill()
                    server.start()
        assert [each.result() for each in pending] == list(range(1000))
        assert values(log) == [b"%d" % n for n in range(1000)]
    server.stop()


@pytest.mark.parametrize("name", [None, "p"])
def test_what_the_server_lost_unsynced_fails_a_name_and_nobody_else(
    make_server: Callable[..., Server], name: str | None
) -> None:
    """A power cut takes a batch that was only written, and its number."""
    server = make_server().start()
    kept = server.data_dir.with_name(server.data_dir.name + "-kept")
    with server.connect() as client:
        log = client.log("l", create=True, sync="never")
        producer = log.producer(name=name, linger=3600.0, batch_bytes=200)
        assert producer.send(b"0").result() == 0
        server.stop()
        shutil.copytree(server.data_dir, kept)
        server.start()
        assert producer.send(b"lost").result() == 1
        server.kill()
        shutil.rmtree(server.data_dir)
        kept.rename(server.data_dir)
        server.start()
        pending = [producer.send(b"%d" % n + bytes(100)) for n in range(1, 9)]
        if name is None:
            assert [each.result() for each in pending] == list(range(1, 9))
            assert producer.send(b"9").result() == 9
            producer.close()
            assert [value[:1] for value in values(log)] == [b"%d" % n for n in range(10)]
        else:
            with pytest.raises(rlog.Conflict):
                producer.flush()
            assert producer.last_sequence == 0
            assert values(log) == [b"0"]
            assert producer.send(b"1", sequence=1).result() == 1
            producer.close()
    server.stop()

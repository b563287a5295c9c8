"""Logs and what one client asks of them: creating, appending, altering, trimming, errors."""

from __future__ import annotations

import datetime as dt
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest

import rlog_client as rlog

from .serving import Server, eventually

if TYPE_CHECKING:
    from collections.abc import Callable


KEEPS_ALL: dict[str, object] = {
    "max_total_bytes": None,
    "max_file_age": None,
    "blocking_minimum_retention": None,
    "protected": [],
}


@pytest.fixture(params=["unix", "tcp"])
def anywhere(request: pytest.FixtureRequest, server: Server) -> str:
    return str(getattr(server, request.param))


def values(source: rlog.Source) -> list[bytes]:
    return [record.value for record in source]


# --- the way in and out ---------------------------------------------------------------------


def test_what_is_appended_comes_out_byte_for_byte(anywhere: str) -> None:
    name = "whole-" + anywhere.partition(":")[0].replace("+", "-")
    with rlog.connect(anywhere) as client:
        log = client.log(name, create=True)
        headers = {"trace": b"\x00\xff", "naïve": b""}
        first = log.append(b"\r\n\0\xff", key=b"", headers=headers, event_time_ns=-5)
        assert first == 0
        receipt = log.append_many(
            [b"", bytearray(b"x"), memoryview(b"yz"), rlog.Item(b"v", key=b"k")]
        )
        assert (receipt.first, receipt.end, receipt.level) == (1, 5, "synced")
        with log.producer() as producer:
            pending = [producer.send(bytes([i]) * 1000) for i in range(256)]
            producer.extend([b"e"] * 100)
            assert producer.flush() == 361
            assert [p.result() for p in pending] == list(range(5, 261))
        records = list(log.reader(rlog.OLDEST, block=False))
        assert [r.offset for r in records] == list(range(361))
        one = records[0]
        assert (one.value, one.key, one.event_time_ns) == (b"\r\n\0\xff", b"", -5)
        assert dict(one.headers) == headers
        assert (one.log, one.attempt, one.epoch, one.redriven) == (name, 1, 0, False)
        assert abs(one.timestamp_ns - time.time_ns()) < 3600 * 10**9
        assert [r.value for r in records[1:5]] == [b"", b"x", b"yz", b"v"]
        assert [r.key for r in records[1:5]] == [None, None, None, b"k"]
        assert dict(records[1].headers) == {}
        assert records[5].value == bytes(1000)
        assert receipt.timestamp_ns == records[1].timestamp_ns


def test_large_and_small_records_mix(log: rlog.Log) -> None:
    limit = log._transport.session.limits.record_bytes_max
    sizes = [0, 1, 900_000, 2, limit, 5, 65_536, 4095, 4096]
    for size in sizes:
        log.append(b"x" * size)
    assert [len(v) for v in values(log.reader(rlog.OLDEST, block=False))] == sizes


@pytest.mark.parametrize(
    ("whence", "offset"),
    [
        (rlog.OLDEST, 0),
        (rlog.LATEST, 10),
        (rlog.offset(0), 0),
        (rlog.offset(7), 7),
        (rlog.offset(10), 10),
        (rlog.last(0), 10),
        (rlog.last(3), 7),
        (rlog.last(99), 0),
        (rlog.time(0), 0),
        (rlog.time(2**62), 10),
        (rlog.time(dt.datetime(2000, 1, 1, tzinfo=dt.UTC)), 0),
    ],
)
def test_a_whence_is_a_place(log: rlog.Log, whence: rlog.Whence, offset: int) -> None:
    for i in range(5):
        log.append_many([b"%d" % i] * 2)
    reader = log.reader(whence, block=False)
    assert reader.offset == offset
    assert [r.offset for r in reader] == list(range(offset, 10))
    assert reader.seek(whence) == offset


def test_a_time_is_the_first_record_appended_at_or_after_it(log: rlog.Log) -> None:
    stamps = []
    for i in range(5):
        stamps.append(log.append_many([b"%d" % i] * 3).timestamp_ns)
        time.sleep(0.002)
    for i, stamp in enumerate(stamps):
        moment = dt.datetime.fromtimestamp(0, dt.UTC) + dt.timedelta(microseconds=stamp // 1000)
        assert log.reader(rlog.time(moment)).offset == 3 * i
        after = moment + dt.timedelta(microseconds=1)
        assert log.reader(rlog.time(after)).offset == 3 * (i + 1)


def test_a_reader_that_is_closed_leaves_the_others_of_its_client_awake(
    server: Server, log: rlog.Log
) -> None:
    def append() -> None:
        with server.connect() as elsewhere:
            elsewhere.log(log.name).append(b"on")

    with log.reader(rlog.LATEST) as stays:
        with log.reader(rlog.LATEST) as goes:
            assert goes.poll() == []
        timer = threading.Timer(0.3, append)
        timer.start()
        assert [record.value for record in stays.poll(timeout=10.0)] == [b"on"]
        timer.join()


# --- logs -----------------------------------------------------------------------------------


def test_a_log_that_is_not_there_is_not_found(client: rlog.Client) -> None:
    with pytest.raises(rlog.NotFound, match="nowhere"):
        client.log("nowhere")


def test_create_returns_the_log_that_exists(client: rlog.Client, log: rlog.Log) -> None:
    log.append(b"1")
    again = client.log(log.name, create=True)
    assert again.info() == log.info()
    assert again.info().end == 1


def test_options_that_differ_are_named(client: rlog.Client) -> None:
    client.log("differs", create=True, sync="never", file_roll_size=8192)
    client.log("differs", create=True, sync="never")
    with pytest.raises(rlog.AlreadyExists) as raised:
        client.log("differs", create=True, sync="always", file_roll_size=8192)
    assert raised.value.differences == {"sync": ["never", "always"]}
    with pytest.raises(rlog.AlreadyExists) as raised:
        client.log("differs", create=True, file_roll_size=4096)
    assert raised.value.differences == {"file_roll_size": [8192, 4096]}


@pytest.mark.parametrize("name", ["", ".", "-a", "A", "a b", "a/b", "../x", "é", "a" * 64, "a\0"])
def test_a_bad_name_is_refused(client: rlog.Client, name: str) -> None:
    with pytest.raises(rlog.InvalidRequest, match="name"):
        client.log(name, create=True)


@pytest.mark.parametrize("name", ["0", "a.b_c-d", "a" * 63])
def test_a_good_name_is_taken(client: rlog.Client, name: str) -> None:
    client.log(name, create=True).append(b"1")
    client.log(name).delete()


@pytest.mark.parametrize(
    "options",
    [
        {"sync": "sometimes"},
        {"sync": "periodic:"},
        {"sync": "periodic:-1s"},
        {"sync": "bytes:0"},
        {"sync": 5},
        {"file_roll_size": 1},
        {"file_roll_size": "64MiB"},
        {"file_roll_size": 2**63},
    ],
    ids=str,
)
def test_a_bad_option_is_refused(client: rlog.Client, options: dict[str, Any]) -> None:
    with pytest.raises(rlog.InvalidRequest):
        client.log("bad-options", create=True, **options)
    with pytest.raises(rlog.NotFound):
        client.log("bad-options")
    log = client.log("good-options", create=True)
    with pytest.raises(rlog.InvalidRequest):
        log.alter(**options)


def test_an_unknown_option_is_a_type_error(client: rlog.Client, log: rlog.Log) -> None:
    with pytest.raises(TypeError, match="compression"):
        client.log("x", create=True, compression="zstd")  # type: ignore[call-arg]  # wrong on purpose
    with pytest.raises(TypeError, match="compression"):
        log.alter(compression="zstd")  # type: ignore[call-arg]  # wrong on purpose
    with pytest.raises(TypeError, match="create"):
        client.log(log.name, sync="always")


def test_options_can_be_altered(client: rlog.Client, log: rlog.Log) -> None:
    assert log.info().options["sync"] == "always"
    info = log.alter(sync="periodic:1s", file_roll_size=4096)
    assert info.options == {
        "sync": "periodic:1s",
        "file_roll_size": 4096,
        "key_index": False,
        **KEEPS_ALL,
        "compact": False,
    }
    assert log.info().options == info.options
    assert log.append_many([b"1"]).level == "written"
    log.alter(sync="always")
    assert log.append_many([b"1"]).level == "synced"
    assert log.info().options == {
        "sync": "always",
        "file_roll_size": 4096,
        "key_index": False,
        **KEEPS_ALL,
        "compact": False,
    }


def test_logs_are_listed_by_name(make_server: Callable[..., Server]) -> None:
    with make_server().start().connect() as client:
        assert client.logs() == []
        for name in ("b", "a", "c"):
            client.log(name, create=True)
        client.log("b").append(b"12345")
        assert [info.name for info in client.logs()] == ["a", "b", "c"]
        [info] = [info for info in client.logs() if info.name == "b"]
        assert (info.first, info.end, info.synced_end, info.owner) == (0, 1, 1, None)
        assert 80 < info.bytes < 200


def test_a_name_that_was_deleted_is_a_new_log(client: rlog.Client) -> None:
    log = client.log("phoenix", create=True)
    log.append(b"old")
    log.consumer("c").process(lambda record: None, block=False)
    log.delete()
    with pytest.raises(rlog.NotFound):
        log.append(b"to nobody")
    with pytest.raises(rlog.NotFound):
        log.info()
    with pytest.raises(rlog.NotFound):
        log.wait_synced(0)
    with pytest.raises(rlog.NotFound):
        client.log("phoenix")
    again = client.log("phoenix", create=True)
    assert again.info().id != log._id
    assert (again.info().end, again.cursors()) == (0, [])


def test_a_log_deleted_under_its_readers_is_not_found(
    client: rlog.Client, other: rlog.Client, log: rlog.Log
) -> None:
    log.append(b"1")
    reader, consumer = log.reader(rlog.OLDEST), log.consumer("c")
    assert next(reader).value == next(consumer).value == b"1"
    other.log(log.name).delete()
    for source in (reader, consumer):
        for _again in range(2):
            with pytest.raises((rlog.NotFound, rlog.Fenced)) as raised:
                source.poll(timeout=None)
            assert (type(raised.value) is rlog.NotFound) == (source is reader)


# --- expectations and limits ----------------------------------------------------------------


def test_expect_is_the_end_of_the_log(log: rlog.Log) -> None:
    assert log.append(b"1", expect=0) == 0
    assert log.append_many([b"2", b"3"], expect=1).end == 3
    for expected in (0, 2, 4):
        with pytest.raises(rlog.Conflict) as raised:
            log.append(b"no", expect=expected)
        assert raised.value.end == 3
        with pytest.raises(rlog.Conflict):
            log.append_many([b"no"], expect=expected)
    assert log.info().end == 3


def test_too_large_is_refused_before_anything_is_sent(
    server: Server, client: rlog.Client, log: rlog.Log
) -> None:
    limits = log._transport.session.limits
    server.pause()  # nobody is there to refuse it but the client
    try:
        with pytest.raises(rlog.TooLarge) as raised:
            log.append(bytes(limits.record_bytes_max + 1))
        error = raised.value
        assert (error.size, error.limit) == (limits.record_bytes_max + 1, limits.record_bytes_max)
        with pytest.raises(rlog.TooLarge) as raised:
            log.append_many([b"1", bytes(limits.record_bytes_max + 1)])
        assert raised.value.index == 1
        with pytest.raises(rlog.TooLarge) as raised:
            log.append_many([bytes(limits.batch_bytes_max // 2)] * 3)
        assert raised.value.limit == limits.batch_bytes_max
        producer = log.producer()
        with pytest.raises(rlog.TooLarge):
            producer.send(bytes(limits.record_bytes_max + 1))
        with pytest.raises(rlog.TooLarge) as raised:
            producer.extend([b"1", b"2", bytes(limits.record_bytes_max + 1)])
        assert raised.value.index == 2
    finally:
        server.resume()
    assert producer.flush() == 2
    assert values(log.reader(rlog.OLDEST, block=False)) == [b"1", b"2"]


def test_text_where_bytes_belong_is_a_type_error_that_helps(log: rlog.Log) -> None:
    with pytest.raises(TypeError, match=r"\.encode\(\)"):
        log.append("text")  # type: ignore[arg-type]  # wrong on purpose
    with pytest.raises(TypeError, match=r"\.encode\(\)"):
        log.append(b"1", key="k")  # type: ignore[arg-type]  # wrong on purpose
    with pytest.raises(TypeError):
        log.append(b"1", headers={"h": "text"})  # type: ignore[dict-item]  # wrong on purpose
    with pytest.raises(TypeError, match=r"\.encode\(\)"):
        log.append_many([b"1", "text"])  # type: ignore[list-item]  # wrong on purpose
    with log.producer() as producer, pytest.raises(TypeError, match=r"\.encode\(\)"):
        producer.send("text")  # type: ignore[arg-type]  # wrong on purpose
    with pytest.raises(ValueError, match="never empty"):
        log.append_many([])
    assert log.info().end == 0


# --- trim -----------------------------------------------------------------------------------


@pytest.fixture
def rolled(client: rlog.Client, log: rlog.Log) -> rlog.Log:
    """Twenty records in segments of four."""
    log.alter(file_roll_size=4096)
    for i in range(20):
        log.append(b"%d" % i + bytes(850))
    return log


def test_trim_lets_whole_segments_go(rolled: rlog.Log) -> None:
    first = rolled.trim(rlog.offset(10))
    assert 0 < first <= 10
    assert rolled.info().first == first
    assert [r.offset for r in rolled.reader(rlog.OLDEST, block=False)] == list(range(first, 20))
    assert rolled.trim(rlog.OLDEST) == first
    with pytest.raises(rlog.OffsetOutOfRange) as raised:
        rolled.reader(rlog.offset(first - 1))
    assert (raised.value.first, raised.value.end) == (first, 20)
    assert rolled.append(b"on") == 20
    end = rolled.trim(rlog.LATEST)
    assert end <= 21
    assert rolled.append(b"and on") == 21


def test_the_time_of_each_record_is_its_place_also_at_the_end_of_a_segment(
    rolled: rlog.Log,
) -> None:
    for record in rolled.reader(rlog.OLDEST, block=False):
        exactly = rlog.Whence("time", record.timestamp_ns)
        assert rolled.reader(exactly).offset == record.offset


@pytest.mark.parametrize("at", [21, 2**63 - 1])
def test_outside_the_log_there_is_no_place(rolled: rlog.Log, at: int) -> None:
    for ask in (
        lambda: rolled.reader(rlog.offset(at)),
        lambda: rolled.trim(rlog.offset(at)),
        lambda: rolled.reader(rlog.OLDEST).seek(rlog.offset(at)),
        lambda: rolled.consumer("c", start=rlog.offset(at)).poll(),
    ):
        with pytest.raises(rlog.OffsetOutOfRange) as raised:
            ask()
        assert not isinstance(raised.value, rlog.Gap)
        assert (raised.value.first, raised.value.end) == (0, 20)


def test_a_reader_is_told_of_the_gap_once_and_goes_on_behind_it(rolled: rlog.Log) -> None:
    reader = rolled.reader(rlog.OLDEST, block=False)
    assert [r.offset for r in reader.poll(2)] == [0, 1]
    rolled.trim(rlog.offset(12))
    first = rolled.info().first
    seen, gaps = [2 - 1], []
    while reader.offset < 20:
        try:
            seen += [r.offset for r in reader]
        except rlog.Gap as gap:
            gaps.append((gap.first, gap.end))
    # What was fetched before the trim is still good; from there on to the new first is the gap.
    assert len(gaps) <= 1
    missing = set(range(20)) - set(seen) - {0}
    assert missing == {o for a, b in gaps for o in range(a, b)}
    late = rolled.reader(rlog.LATEST, block=False)
    assert late.seek(rlog.offset(first)) == first


@pytest.mark.parametrize("who", ["c", rlog.GLOBAL])
def test_a_consumer_is_told_of_the_gap_and_its_commit_passes_it(rolled: rlog.Log, who: Any) -> None:
    with rolled.consumer(who) as consumer:
        consumer.process(lambda record: None, limit=2)
    rolled.trim(rlog.offset(12))
    first = rolled.info().first
    assert first > 2
    with rolled.consumer(who, block=False) as consumer:
        assert consumer.committed == 2
        with pytest.raises(rlog.Gap) as raised:
            consumer.process(lambda record: None)
        assert (raised.value.first, raised.value.end) == (2, first)
        assert rolled.cursor(who).info().committed == 2
        seen: list[int] = []
        assert consumer.process(lambda record: seen.append(record.offset)) == 20 - first
        assert seen == list(range(first, 20))
        assert rolled.cursor(who).info().committed == 20


# --- sync policies --------------------------------------------------------------------------

POLICIES = ["always", "periodic:300ms", "bytes:10KiB", "never"]


@pytest.mark.parametrize("sync", POLICIES)
def test_an_answer_says_how_durable_it_is(client: rlog.Client, sync: str) -> None:
    log = client.log("level-" + sync.partition(":")[0], create=True, sync=sync)
    wanted = "synced" if sync == "always" else "written"
    assert log.append_many([b"1"]).level == wanted
    with log.producer() as producer:
        assert producer.send(b"2").receipt().level == wanted
    log.wait_synced(2)
    info = log.info()
    assert (info.end, info.synced_end) == (2, 2)
    log.delete()


def test_periodic_shows_records_after_their_sync_and_not_before(
    client: rlog.Client, other: rlog.Client
) -> None:
    log = client.log("slow-sync", create=True, sync="periodic:1h")
    log.append(b"1")
    seen = other.log("slow-sync").reader(rlog.OLDEST, block=False)
    info = log.info()
    if info.synced_end == 0:  # else something on this server has synced it with its own frame
        assert values(seen) == []
        assert seen.poll() == []
    log.wait_synced(1)  # really synced, whatever the policy
    assert values(seen) == [b"1"]
    assert log.info().synced_end == 1


def test_periodic_syncs_by_itself_within_its_time(client: rlog.Client, other: rlog.Client) -> None:
    log = client.log("timed", create=True, sync="periodic:50ms")
    reader = other.log("timed").reader(rlog.OLDEST)
    for i in range(5):
        log.append(b"%d" % i)
        [record] = reader.poll(timeout=None)
        assert record.offset == i
        assert log.info().synced_end > i


def test_bytes_syncs_by_itself_after_so_many(client: rlog.Client) -> None:
    log = client.log("many", create=True, sync="bytes:10KiB")
    log.append(bytes(20_000))
    eventually(lambda: log.info().synced_end == 1, "it is synced for its size")
    log.append(b"and a small one")
    eventually(lambda: log.info().synced_end == 2, "it is synced within a second or so")


def test_never_shows_records_at_once(make_server: Callable[..., Server]) -> None:
    server = make_server("--sync", "never").start()
    with server.connect() as client, server.connect() as other:
        log = client.log("l", create=True)
        assert log.info().options["sync"] == "never"
        reader = other.log("l").reader(rlog.OLDEST, block=False)
        for i in range(20):
            assert log.append_many([b"%d" % i]).level == "written"
            assert values(reader) == [b"%d" % i]
        log.wait_synced(20)
        assert log.info().synced_end == 20


def test_the_servers_policy_is_that_of_logs_without_one(
    make_server: Callable[..., Server],
) -> None:
    with make_server("--sync", "periodic:10ms").start().connect() as client:
        assert client.log("a", create=True).append_many([b"1"]).level == "written"
        assert client.log("b", create=True, sync="always").append_many([b"1"]).level == "synced"


def test_a_commit_of_an_unsynced_log_never_outlives_its_records(
    make_server: Callable[..., Server],
) -> None:
    with make_server("--sync", "never").start().connect() as client:
        log = client.log("l", create=True)
        log.append_many([b"1", b"2"])
        with log.consumer("c", block=False) as consumer:
            assert consumer.process(lambda record: None) == 2
        info = log.cursor("c").info()
        assert info.committed <= log.info().end


def test_wait_synced_times_out_and_asks_for_no_future(server: Server, log: rlog.Log) -> None:
    log.append(b"1")
    log.wait_synced(0)
    log.wait_synced(1)
    with pytest.raises(rlog.OffsetOutOfRange) as raised:
        log.wait_synced(2)
    assert raised.value.end == 1
    server.pause()
    try:
        with pytest.raises(rlog.TimedOut) as timed:
            log.wait_synced(1, timeout=0.05)
        assert isinstance(timed.value, TimeoutError)
    finally:
        server.resume()


# --- connecting -----------------------------------------------------------------------------


def test_nobody_there_is_a_lost_connection() -> None:
    for url in ("rlog+unix:///nowhere/at/all", "rlog://127.0.0.1:1"):
        with pytest.raises(rlog.ConnectionLost) as raised:
            rlog.connect(url)
        assert isinstance(raised.value, ConnectionError)
        assert raised.value.retriable


def test_a_server_that_does_not_answer_is_lost_after_the_timeout(
    make_server: Callable[..., Server],
) -> None:
    server = make_server().start()
    with server.connect(timeout=0.2) as client:
        log = client.log("l", create=True)
        server.pause()
        with pytest.raises(rlog.ConnectionLost, match="no greeting"):
            rlog.connect(server.unix, timeout=0.1)
        with pytest.raises((rlog.TimedOut, rlog.ConnectionLost)):
            log.info()
        with pytest.raises(rlog.OutcomeUnknown) as raised:
            log.append(b"1")
        assert (raised.value.sequence, raised.value.producer > 0) == (0, True)
        server.resume()
        eventually(lambda: log.info().end == 1, "the append was done after all")


def test_the_address_comes_from_the_environment(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RLOG_ADDR", server.tcp)
    with rlog.connect() as client:
        client.logs()


def test_what_is_closed_cannot_be_used(server: Server, log: rlog.Log) -> None:
    client = server.connect()
    mine = client.log(log.name)
    producer, reader, consumer = mine.producer(), mine.reader(rlog.OLDEST), mine.consumer("c")
    client.close()
    client.close()
    for use in (
        client.logs,
        lambda: mine.append(b"1"),
        lambda: producer.send(b"1"),
        lambda: next(reader),
        lambda: consumer.poll(),
        lambda: client.log("x"),
    ):
        with pytest.raises(RuntimeError, match="closed"):
            use()

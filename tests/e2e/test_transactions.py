"""Promises 13, 18, 19: a transaction is all or nothing, and once, whoever dies or loses what."""

from __future__ import annotations

import signal
import socket
import threading
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import anyio
import pytest

import rlog_client as rlog
from rlog import offline
from rlog.files import Disk
from rlog.journal import file_names

from .member import run
from .proxy import Proxy
from .serving import Server, eventually

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@pytest.fixture
def own(make_server: Callable[..., Server]) -> Server:
    """A server that is found at the same TCP port in every life."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    server = make_server("--listen", f"127.0.0.1:{port}").start()
    server.tcp = f"rlog://127.0.0.1:{port}"
    return server


@pytest.fixture
def proxy(own: Server) -> Iterator[Proxy]:
    proxy = Proxy(own.tcp)
    yield proxy
    proxy.close()


def values(log: rlog.Log) -> list[bytes]:
    return [record.value for record in log.reader(rlog.OLDEST, block=False)]


def restart(server: Server) -> None:
    tcp = server.tcp
    server.kill()
    server.start()
    server.tcp = tcp


def made(client: rlog.Client, count: int = 5) -> tuple[rlog.Log, rlog.Log]:
    """A log with so many records, and an empty one."""
    log, out = client.log("a", create=True), client.log("b", create=True)
    log.append_many([b"%d" % number for number in range(count)])
    return log, out


# --- answers that are lost ------------------------------------------------------------------


@pytest.mark.parametrize("how", ["cut", "killed"])
def test_a_transaction_whose_answer_is_lost_is_done_once(
    own: Server, proxy: Proxy, how: str
) -> None:
    with rlog.connect(proxy.url) as client, own.connect() as onlooker:
        log, out = made(client)
        consumer = log.consumer("c")
        record = next(consumer)

        def lose() -> None:
            eventually(lambda: onlooker.log("b").info().end == 1, "it is done")
            eventually(lambda: proxy.swallowed > 0, "and its answer is lost")
            if how == "killed":
                restart(own)
            proxy.cut()

        proxy.swallow()
        losing = threading.Thread(target=lose)
        losing.start()
        with client.transaction() as transaction:
            # By the time this is asked again, neither is true any more.
            transaction.append(out, b"x", expect=0)
            transaction.commit(consumer, record)
        losing.join()
        [receipt] = transaction.receipts
        assert (receipt.first, receipt.end, receipt.duplicate) == (0, 1, True)
        assert (consumer.committed, values(out)) == (1, [b"x"])
        assert next(consumer).offset == 1
        assert consumer.epoch == 1
        consumer.close()


@pytest.mark.parametrize("moment", ["write:journal:before:1", "write:journal:after:1"])
def test_the_server_is_killed_in_the_middle_of_it(
    make_server: Callable[..., Server], moment: str
) -> None:
    server = make_server().start("--kill", moment)
    with server.connect() as client:
        log, out = made(client)
        consumer = log.consumer("c")
        record = next(consumer)
        assert server.process is not None
        process = server.process
        server.signal(signal.SIGUSR1)

        def revive() -> None:
            process.wait()
            server.start()

        reviving = threading.Thread(target=revive)
        reviving.start()
        with client.transaction() as transaction:
            transaction.append(out, b"x", expect=0)
            transaction.append(log, b"y", expect=5)
            transaction.commit(consumer, record)
        reviving.join()
        assert [each.duplicate for each in transaction.receipts] == [moment.endswith("after:1")] * 2
        assert (consumer.committed, values(out), values(log)[5:]) == (1, [b"x"], [b"y"])
        consumer.close()


def test_one_whose_claim_went_with_its_connection_to_another_does_nothing(
    own: Server, proxy: Proxy
) -> None:
    with rlog.connect(proxy.url) as client, own.connect() as other:
        log, out = made(client)
        consumer = log.consumer("c")
        transaction = client.transaction()
        transaction.__enter__()
        transaction.append(out, b"x")
        transaction.commit(consumer, next(consumer))
        proxy.cut()
        with other.log("a").consumer("c", takeover=True) as second:
            with pytest.raises(rlog.Fenced):
                transaction.__exit__(None, None, None)
            assert (second.committed, out.info().end) == (0, 0)


# --- answers that never come ----------------------------------------------------------------


def interrupt_later(seconds: float) -> None:
    main = threading.main_thread().ident
    assert main is not None
    threading.Timer(seconds, lambda: signal.pthread_kill(main, signal.SIGINT)).start()


@pytest.mark.parametrize("how", ["unknown", "interrupted"])
@pytest.mark.parametrize("in_flight", [1, 4])
def test_process_asks_before_it_handles_a_record_again_that_may_be_committed(
    own: Server, how: str, in_flight: int
) -> None:
    """The server does it after nobody waited for it any more."""
    with rlog.connect(own.tcp, timeout=0.5 if how == "unknown" else 30.0) as client:
        log, out = made(client)
        with client.transaction() as transaction:
            transaction.append("b", b"first")  # its name is known from here on
        seen: list[int] = []

        def handle(record: rlog.Record) -> rlog.Verdict:
            seen.append(record.offset)
            if seen == [0, 1]:
                own.pause()
                threading.Timer(2.0, own.resume).start()
                if how == "interrupted":
                    interrupt_later(0.3)
            return rlog.Commit(appends=[("b", record.value)])

        consumer = log.consumer("c", block=False)
        with pytest.raises(rlog.OutcomeUnknown if how == "unknown" else KeyboardInterrupt):
            consumer.process(handle, in_flight=in_flight)
        eventually(lambda: reaches(own, out.name, 3), "it is done after all")
        assert consumer.process(handle, in_flight=in_flight) == 3
        assert seen == [0, 1, 2, 3, 4]
        assert values(out) == [b"first", b"0", b"1", b"2", b"3", b"4"]
        assert consumer.committed == 5
        consumer.close()


def test_verdicts_that_could_not_be_sent_come_again_each_with_all_that_it_appends(
    own: Server,
) -> None:
    with rlog.connect(own.tcp, timeout=0.5) as client:
        log, out = made(client)
        seen: list[int] = []

        def handle(record: rlog.Record) -> rlog.Verdict | None:
            seen.append(record.offset)
            if seen == [0]:
                own.pause()  # not even the name of "b" can be asked for
                threading.Timer(2.0, own.resume).start()
            return rlog.Commit(appends=[("b", record.value)]) if record.offset < 4 else None

        consumer = log.consumer("c", block=False)
        with pytest.raises(rlog.TimedOut):
            consumer.process(handle, in_flight=50)
        eventually(lambda: reaches(own, out.name, 0), "it answers again")
        assert consumer.process(handle, in_flight=50) == 5
        assert (seen[-5:], values(out)) == ([0, 1, 2, 3, 4], [b"0", b"1", b"2", b"3"])
        consumer.close()


def test_of_several_that_are_refused_together_only_the_one_to_blame_is(
    client: rlog.Client, log: rlog.Log
) -> None:
    out = client.log(f"{log.name}.out", create=True)
    log.append_many([b"%d" % number for number in range(20)])
    backoff = rlog.Backoff(first=0.01, cap=0.01, max_attempts=2)
    calls: list[tuple[int, int]] = []

    def handle(record: rlog.Record) -> rlog.Verdict:
        calls.append((record.offset, record.attempt))
        if record.offset % 4 == 2:
            return rlog.COMMIT
        to = f"{log.name}.nowhere" if record.offset == 7 else out.name
        return rlog.Commit(appends=[(to, record.value)])

    with log.consumer("c", block=False) as consumer:
        assert consumer.process(handle, in_flight=20, retry=backoff) == 20
    assert [each.record.offset for each in log.cursor("c").parked()] == [7]
    assert {offset for offset, attempt in calls if attempt > 1} == {7}
    assert values(out) == [b"%d" % n for n in range(20) if n != 7 and n % 4 != 2]


@pytest.mark.parametrize("verdict", [rlog.PARK, rlog.Skip("no"), rlog.STOP, None, "raise"])
@pytest.mark.parametrize("limit", [None, 3])
def test_whatever_comes_behind_verdicts_with_appends_finds_them_done(
    client: rlog.Client, log: rlog.Log, verdict: Any, limit: int | None
) -> None:
    out = client.log(f"{log.name}.out", create=True)
    log.append_many([b"%d" % number for number in range(6)])

    def handle(record: rlog.Record) -> rlog.Verdict | None:
        if record.offset != 3:
            return rlog.Commit(appends=[(out.name, record.value)])
        if verdict == "raise":
            raise ArithmeticError
        return verdict  # type: ignore[no-any-return]

    with log.consumer("c", block=False) as consumer:
        ends = verdict in ("raise", rlog.STOP) or limit is not None
        if verdict == "raise" and limit is None:
            with pytest.raises(ArithmeticError):
                consumer.process(handle, in_flight=100)
        else:
            completed = consumer.process(handle, in_flight=100, limit=limit)
            assert completed == (3 if ends else 6)
        assert consumer.committed == (3 if ends else 6)
    done = [b"0", b"1", b"2"]
    assert values(out) == (done if ends else [*done, b"4", b"5"])


def test_a_commit_inside_a_handler_passes_no_verdict_before_it(
    client: rlog.Client, log: rlog.Log
) -> None:
    out = client.log(f"{log.name}.out", create=True)
    log.append_many([b"%d" % number for number in range(6)])

    with log.consumer("c", block=False) as consumer:

        def handle(record: rlog.Record) -> rlog.Verdict | None:
            if record.offset == 3:
                consumer.commit(record)
                assert values(out) == [b"0", b"1", b"2"]
                return None
            return rlog.Commit(appends=[(out.name, record.value)])

        assert consumer.process(handle, in_flight=100) == 6
    assert values(out) == [b"0", b"1", b"2", b"4", b"5"]


def test_many_verdicts_are_few_frames(make_server: Callable[..., Server]) -> None:
    server = make_server().start()
    with server.connect() as client:
        log, out = made(client, 2000)
        with log.consumer("c", block=False) as consumer:
            before = frames(server)
            append = lambda record: rlog.Commit(appends=[("b", record.value)])  # noqa: E731
            assert consumer.process(append, in_flight=1000) == 2000
            assert frames(server) - before < 1000
        assert values(out) == [b"%d" % number for number in range(2000)]


def reaches(server: Server, log: str, end: int) -> bool:
    with server.connect() as client:
        return client.log(log).info().end == end


def test_after_an_unknown_outcome_the_cursor_tells(own: Server) -> None:
    with rlog.connect(own.tcp, timeout=0.5) as client:
        log, out = made(client)
        consumer = log.consumer("c")
        record = next(consumer)
        own.pause()
        with pytest.raises(rlog.OutcomeUnknown) as unknown:
            by_hand(client, (out, b"x"), (consumer, record))
        own.resume()
        eventually(lambda: reaches(own, out.name, 1), "it is done after all")
        assert unknown.value.sequence == 1
        assert unknown.value.producer > 0
        assert (consumer.committed, next(consumer).offset) == (1, 1)
        consumer.close()


def by_hand(
    client: rlog.Client, append: tuple[Any, bytes], commit: tuple[rlog.Consumer, rlog.Record]
) -> None:
    with client.transaction() as transaction:
        transaction.append(*append)
        transaction.commit(*commit)


FULL: dict[str, Any] = {"max_total_bytes": 16 * 1024, "blocking_minimum_retention": 3600.0}


def filled(client: rlog.Client, name: str) -> rlog.Log:
    """A log with no space for 2,000 bytes more, and for an hour there will be none."""
    log = client.log(name, create=True, **FULL)
    while log.info().bytes < FULL["max_total_bytes"] - 2000:
        log.append(bytes(900))
    return log


@pytest.mark.parametrize("shared", [False, True])
def test_given_up_while_they_wait_for_space_a_records_appends_are_made_once(
    own: Server, shared: bool
) -> None:
    with rlog.connect(own.tcp) as admin, rlog.connect(own.tcp, timeout=0.5) as client:
        log = client.log("a", create=True)
        log.append(b"an order")
        out = filled(admin, "b")
        before = out.info().end
        calls = 0

        def handle(record: rlog.Record) -> rlog.Verdict:
            nonlocal calls
            calls += 1
            if calls == 3:
                out.alter(max_total_bytes=None)  # the others wait still
            return rlog.Commit(appends=[("b", bytes(2000))])

        with log.consumer("c", shared=shared) as consumer:
            for _ in range(2):
                with pytest.raises((rlog.OutcomeUnknown, rlog.TimedOut)):
                    consumer.process(handle, limit=1)
            if not shared:
                assert calls == 1, "what may be committed is not handled once more"
                out.alter(max_total_bytes=None)
            eventually(lambda: consumer.process(handle, block=False) in (0, 1), "it goes on")
            eventually(lambda: log.cursor("c").info().committed == 1, "it is committed")
        log.append(b"another")
        with log.consumer("c", shared=shared) as consumer:
            assert consumer.process(lambda _record: rlog.COMMIT, limit=1) == 1
        assert out.info().end == before + 1


def test_while_one_waits_for_space_no_other_gets_so_far_ahead_that_it_is_forgotten(
    own: Server,
) -> None:
    async def program() -> None:
        async with rlog.connect_async(own.tcp) as client:
            receipts: list[rlog.Receipt] = []

            async def one(log: str, size: int) -> None:
                async with client.transaction() as transaction:
                    transaction.append(log, bytes(size))
                receipts.extend(transaction.receipts)

            async with anyio.create_task_group() as tasks:
                tasks.start_soon(one, "b", 2000)
                for _ in range(100):
                    tasks.start_soon(one, "a", 1)
                await anyio.sleep(0.5)
                assert len(receipts) == 63
                await (await client.log("b")).alter(max_total_bytes=None)
            assert len(receipts) == 101

    with rlog.connect(own.tcp) as admin:
        made(admin)[1].delete()
        filled(admin, "b")
        anyio.run(program)


def test_what_was_never_sent_is_not_unknown(own: Server) -> None:
    with rlog.connect(own.tcp, timeout=0.4) as client:
        log, out = made(client)
        consumer = log.consumer("c")
        record = next(consumer)
        own.kill()
        with pytest.raises(rlog.ConnectionLost):
            log.info()
        with pytest.raises(rlog.ConnectionLost):
            by_hand(client, (out, b"x"), (consumer, record))
        tcp = own.tcp
        own.start()
        own.tcp = tcp
        eventually(lambda: answers(client), "it is back")
        by_hand(client, (out, b"x"), (consumer, record))
        assert (consumer.committed, values(out)) == (1, [b"x"])
        consumer.close()


def answers(client: rlog.Client) -> bool:
    try:
        return bool(client.logs())
    except rlog.ConnectionLost:
        return False


def test_a_cancelled_transaction_is_asked_about_before_its_consumer_goes_on(own: Server) -> None:
    async def program() -> None:
        async with rlog.connect_async(own.tcp) as client:
            log, out = await client.log("a"), await client.log("b")
            async with log.consumer("c") as consumer:
                record = await anext(consumer)
                own.pause()
                with anyio.move_on_after(0.5) as scope:
                    async with client.transaction() as transaction:
                        transaction.append(out, b"x")
                        transaction.commit(consumer, record)
                assert scope.cancelled_caught
                assert consumer.committed == 0
                own.resume()
                [following, *_] = await consumer.poll(timeout=30.0)
                assert (following.offset, consumer.committed) == (1, 1)
                async with out.reader(rlog.OLDEST, block=False) as reader:
                    assert [each.value async for each in reader] == [b"x"]

    with own.connect() as client:
        made(client)
    anyio.run(program)


def test_hundreds_at_once_over_many_connections_are_each_done_once(
    own: Server, proxy: Proxy
) -> None:
    count = 300
    receipts: dict[int, int] = {}
    most: list[int] = []  # under way, whenever one ends

    async def program() -> None:
        async with rlog.connect_async(proxy.url) as client:
            under_way = client._transport.session.transactions.under_way

            async def one(number: int) -> None:
                async with client.transaction() as transaction:
                    transaction.append("b", b"%d" % number)
                    transaction.append("a", b"%d" % number)
                most.append(len(under_way))
                receipts[number] = transaction.receipts[0].first

            async with anyio.create_task_group() as tasks:
                for number in range(count):
                    tasks.start_soon(one, number)
                for _ in range(6):
                    await anyio.sleep(0.02)
                    proxy.swallow()
                    await anyio.sleep(0.02)
                    proxy.cut()

    with own.connect() as client:
        log, out = made(client, 1)
        anyio.run(program)
        found = values(out)
        assert 0 < max(most) <= 64  # as many as the server would know again
        assert sorted(map(int, found)) == list(range(count))
        assert {int(value): offset for offset, value in enumerate(found)} == receipts
        assert values(log)[1:] == found


# --- whose logs -----------------------------------------------------------------------------


def test_a_name_stands_for_the_log_that_has_it_now(client: rlog.Client, other: rlog.Client) -> None:
    for name in ("t.one", "t.two"):
        client.log(name, create=True)
    old = client.log("t.two")
    for _ in range(2):
        with client.transaction() as transaction:
            transaction.append("t.one", b"x")
            transaction.append("t.two", b"x")
        assert transaction.receipts[1].first == 0
        other.log("t.two").delete()
        other.log("t.two", create=True)
    assert client.log("t.one").info().end == 2
    with pytest.raises(rlog.NotFound), client.transaction() as transaction:
        transaction.append(old, b"that very log, which is gone")
    with (
        pytest.raises(rlog.InvalidRequest, match="cannot end"),
        client.transaction() as transaction,
    ):
        one_log_two_ends(transaction)
    assert client.log("t.one").info().end == 2


def one_log_two_ends(transaction: rlog.Transaction) -> None:
    transaction.append("t.one", b"x", expect=2)
    transaction.append("t.one", b"x", expect=3)


def test_the_owner_of_a_log_appends_under_its_claim(
    client: rlog.Client, other: rlog.Client
) -> None:
    log, free = client.log("t.owned", create=True), client.log("t.free", create=True)

    def both(client: rlog.Client) -> None:
        with client.transaction() as transaction:
            transaction.append("t.free", b"x")
            transaction.append("t.owned", b"x")

    with log.producer(exclusive=True) as producer:
        producer.send(b"first").result()
        both(client)
        with pytest.raises(rlog.Busy):
            both(other)
        with other.log("t.owned").producer(exclusive=True, takeover=True):
            pass
        # Nobody owns it now, and still it is not what its old owner takes it for.
        with pytest.raises(rlog.Fenced):
            both(client)
        late = producer.send(b"late")
        with pytest.raises(rlog.Fenced):
            late.result()
        assert (log.info().end, free.info().end) == (2, 1)
        with pytest.raises(rlog.Fenced):
            producer.close()
    both(client)
    assert (log.info().end, free.info().end) == (3, 2)


def test_expectations_are_of_the_log_before_the_transaction(client: rlog.Client) -> None:
    client.log("t.keyed", create=True, key_index=True).append(b"0", key=b"k")

    def put(*expected: int | None) -> None:
        with client.transaction() as transaction:
            for expect_key in expected:
                item = rlog.Item(b"v", key=b"k")
                transaction.append("t.keyed", item, expect=1, expect_key=expect_key)

    for wrong in ((-1,), (0, 1), (None, 1)):
        with pytest.raises(rlog.Conflict) as conflict:
            put(*wrong)
        assert (conflict.value.key_offset, conflict.value.end) == (0, 1)
    put(0, None, 0)
    assert client.log("t.keyed").info().end == 4
    with pytest.raises(rlog.InvalidRequest), client.transaction() as transaction:
        transaction.append("t.keyed", b"without a key", expect_key=0)


def test_what_is_too_large_is_refused_before_it_is_sent(client: rlog.Client) -> None:
    log = client.log("t.large", create=True)
    limits = client._transport.session.limits
    with client.transaction() as transaction:
        transaction.append(log, b"small")
        with pytest.raises(rlog.TooLarge) as large:
            transaction.append(log, bytes(limits.record_bytes_max + 1))
        assert large.value.index == 1
        transaction.append("t.large", b"small, too")
    assert [each.first for each in transaction.receipts] == [0, 1]
    with pytest.raises(rlog.TooLarge) as large:
        several(client, limits.batch_bytes_max // 4)
    assert large.value.index == 3
    with pytest.raises(rlog.InvalidRequest, match="the limit is 16384"):
        many(client, 2000)
    assert log.info().end == 2


def several(client: rlog.Client, size: int) -> None:
    with client.transaction() as transaction:
        for _ in range(5):
            transaction.append("t.large", bytes(size))


def many(client: rlog.Client, count: int) -> None:
    """More expectations than a request can hold."""
    with client.transaction() as transaction:
        for number in range(count):
            item = rlog.Item(b"", key=b"%d" % number)
            transaction.append("t.large", item, expect_key=1 << 60)


@pytest.mark.parametrize(
    "appends",
    ["b", [b"value"], [("b", "text")], [("b",)], [(b"b", b"value")], [("b", b"v", 1)], 5],
)
def test_appends_that_are_none_are_a_type_error_of_the_handlers(
    log: rlog.Log, appends: Any
) -> None:
    log.append(b"x")
    with log.consumer("c", block=False) as consumer:
        with pytest.raises(TypeError):
            consumer.process(lambda record: rlog.Commit(appends=appends))
        assert consumer.process(lambda record: rlog.STOP if record.attempt == 2 else None) == 0


# --- what is committed, and what goes on ----------------------------------------------------


def test_what_was_prefetched_and_what_commits_by_itself_go_on(log: rlog.Log) -> None:
    log.append_many([b"%d" % number for number in range(6)])
    client = log._client
    seen = []
    with log.consumer("c", block=False, autocommit=True) as consumer:
        for record in consumer:
            seen.append(record.offset)
            if record.offset in (1, 4):
                by_hand(client, (log, b"more"), (consumer, record))
                assert consumer.committed == record.offset + 1
    assert seen == [0, 1, 2, 3, 4, 5]
    assert log.cursor("c").info().committed == 6


@pytest.mark.parametrize("by", ["iteration", "poll"])
def test_what_commits_by_itself_is_not_committed_before_its_transaction(
    client: rlog.Client, log: rlog.Log, by: str
) -> None:
    log.append_many([b"%d" % number for number in range(3)])
    with log.consumer("c", block=False, autocommit=True) as consumer:
        record = next(consumer) if by == "iteration" else consumer.poll()[0]
        with pytest.raises(rlog.Conflict), client.transaction() as transaction:
            conflicting(transaction, log, consumer, record)
        assert log.cursor("c").info().committed == 0, "nothing of it was done"
        by_hand(client, (log, b"more"), (consumer, record))
        assert log.cursor("c").info().committed == 1


def test_after_a_refused_transaction_all_is_as_before(client: rlog.Client, log: rlog.Log) -> None:
    log.append_many([b"%d" % number for number in range(4)])
    with log.consumer("c") as consumer:
        first, second = next(consumer), next(consumer)
        consumer.commit(first, wait=False)
        with pytest.raises(rlog.Conflict), client.transaction() as transaction:
            conflicting(transaction, log, consumer, second)
        assert (consumer.committed, next(consumer).offset) == (1, 2)
        consumer.commit(second)
        assert consumer.committed == 2


def conflicting(
    transaction: rlog.Transaction, log: rlog.Log, consumer: rlog.Consumer, record: rlog.Record
) -> None:
    transaction.append(log, b"no", expect=77)
    transaction.commit(consumer, record)


def test_a_records_own_transaction_inside_its_handler(client: rlog.Client, log: rlog.Log) -> None:
    out = client.log(f"{log.name}.inside", create=True)
    log.append_many([b"%d" % number for number in range(6)])

    with log.consumer("c", block=False) as consumer:

        def handle(record: rlog.Record) -> None:
            if record.offset % 2:
                by_hand(client, (out, record.value), (consumer, record))

        assert consumer.process(handle, in_flight=3) == 6
        assert consumer.committed == 6
    assert values(out) == [b"1", b"3", b"5"]


@pytest.mark.parametrize("in_flight", [1, 5])
def test_the_next_record_is_begun_by_the_transaction_of_the_one_before(
    make_server: Callable[..., Server], in_flight: int
) -> None:
    server = make_server().start()
    counts: list[int] = []
    with server.connect() as client:
        log, _out = made(client)

        def handle(record: rlog.Record) -> rlog.Verdict:
            counts.append(frames(server))
            return rlog.Commit(appends=[("b", record.value)])

        with log.consumer("c", block=False) as consumer:
            consumer.process(handle, in_flight=in_flight)
    assert [after - before for before, after in pairwise(counts)] == [1] * 4


def test_a_member_killed_with_a_record_in_hand_that_a_transaction_began_failed_it(
    server: Server, client: rlog.Client, log: rlog.Log
) -> None:
    out = client.log(f"{log.name}.out", create=True)
    log.append_many([b"%d" % number for number in range(5)])
    options = {"poison": [3], "in_flight": 1, "death": "kill", "max_attempts": 5, "to": out.name}
    code, calls = run(server.unix, log.name, **options)
    assert (code, calls) == (-signal.SIGKILL, [(0, 1), (1, 1), (2, 1), (3, 1)])
    with log.consumer("c", standby=True) as consumer:  # until the server sees that it is gone
        [record, *_] = consumer.poll(timeout=30.0)
        assert (record.offset, record.attempt) == (3, 2)
        assert values(out) == [b"0", b"1", b"2"]


def frames(server: Server) -> int:
    """How many frames with facts the journal of a running server holds."""
    disk = Disk(str(server.data_dir))
    names = file_names(disk)
    found = [each for name in names for each in offline.frames(disk.open(name, write=False), name)]
    return sum(isinstance(each, offline.FrameView) and bool(each.facts) for each in found)

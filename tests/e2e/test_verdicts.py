"""The table: every verdict, for every kind of source, blocking or not, with and without limits.

The log holds four records. The handler is content with all but the second, to which it gives the
verdict under test once; whatever comes of that can be told in advance.
"""

from __future__ import annotations

import itertools
import time
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest

import rlog_client as rlog
from rlog_client import process as processes

if TYPE_CHECKING:
    from collections.abc import Callable

RECORDS = 4
ODD = 1  # the offset of the record that gets the verdict under test


class Refused(Exception):
    """What a handler raises."""


class Case(NamedTuple):
    """``verdict()`` is returned, or raises. ``again``: the record comes a second time at once."""

    verdict: Callable[[], Any]
    completes: bool = True
    again: bool = False
    ends: bool = False
    raises: type[Exception] | None = None


def fail() -> None:
    raise Refused


CASES = {
    "None": Case(lambda: None),
    "COMMIT": Case(lambda: rlog.COMMIT),
    "Commit": Case(lambda: rlog.Commit()),
    "RETRY": Case(lambda: rlog.RETRY, again=True),
    "Retry with a delay": Case(lambda: rlog.Retry(delay=0.01), again=True),
    "Retry with delay 0": Case(lambda: rlog.Retry(delay=0.0), again=True),
    "Skip": Case(lambda: rlog.Skip("not for us")),
    "Park": Case(lambda: rlog.Park("smells")),
    "Stop": Case(lambda: rlog.STOP, completes=False, ends=True),
    "exception": Case(fail, completes=False, raises=Refused),
    "wrong type": Case(lambda: True, completes=False, raises=TypeError),
}
READERS_PARK = Case(lambda: rlog.PARK, completes=False, raises=rlog.InvalidRequest)
KINDS = {"reader": None, "consumer": "an ID", "GLOBAL": rlog.GLOBAL}


class Expected(NamedTuple):
    calls: list[tuple[int, int]]  # (offset, attempt)
    completed: int
    following: tuple[int, int]  # what would come next


def expect(case: Case, limit: int | None) -> Expected:
    calls: list[tuple[int, int]] = []
    completed = 0
    attempt = 1
    offset = 0
    while offset < RECORDS and (limit is None or completed < limit):
        calls.append((offset, attempt))
        if offset == ODD and attempt == 1:
            if case.ends:
                return Expected(calls, completed, (offset, 1))
            if case.raises is not None:
                return Expected(calls, completed, (offset, 2))
            if case.again:
                attempt = 2
                continue
        completed += 1
        offset, attempt = offset + 1, 1
    return Expected(calls, completed, (offset, 1))


def open_source(log: rlog.Log, kind: str, block: bool) -> rlog.Source:
    who = KINDS[kind]
    if who is None:
        return log.reader(rlog.OLDEST, block=block)
    return log.consumer(who, block=block)


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A Retry without a delay waits half a second in earnest."""
    monkeypatch.setattr(processes, "DEFAULT", rlog.Backoff(first=0.02))


def run(
    source: rlog.Source, case: Case, calls: list[tuple[int, int]], stop_at_end: bool, **how: Any
) -> int | None:
    """-> how many it completed; None if it raised what it should."""

    def handler(record: rlog.Record) -> Any:
        calls.append((record.offset, record.attempt))
        if stop_at_end and record.offset == RECORDS - 1:
            source.stop()
        if record.offset == ODD and calls.count((ODD, record.attempt)) == 1 == record.attempt:
            return case.verdict()
        return None

    if case.raises is not None:
        try:
            return source.process(handler, **how)
        except case.raises:
            return None
    return source.process(handler, **how)


@pytest.mark.parametrize("timeout", [None, 30.0], ids=["no timeout", "timeout"])
@pytest.mark.parametrize("limit", [None, 0, 1, 2, 3], ids=lambda limit: f"limit {limit}")
@pytest.mark.parametrize("block", [True, False], ids=["blocking", "non-blocking"])
@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("kind", KINDS)
def test_a_verdict_does_what_it_says(
    log: rlog.Log, kind: str, name: str, block: bool, limit: int | None, timeout: float | None
) -> None:
    case = CASES[name]
    if kind == "reader" and name == "Park":
        case = READERS_PARK
    log.append_many([b"%d" % i for i in range(RECORDS)])
    wanted = expect(case, limit)
    calls: list[tuple[int, int]] = []
    with open_source(log, kind, block) as source:
        # Blocking without a limit only ends by a Stop, an exception, or stop().
        completed = run(source, case, calls, block, limit=limit, timeout=timeout)
        assert calls == wanted.calls
        if case.raises is not None and wanted.calls[-1:] == [(ODD, 1)]:
            assert completed is None
        else:
            assert completed == wanted.completed
        offset, attempt = wanted.following
        if isinstance(source, rlog.Reader):
            assert source.offset == offset
        else:
            assert isinstance(source, rlog.Consumer)
            assert source.committed == offset
            assert log.cursor(KINDS[kind] or "").info().committed == offset
        if offset < RECORDS:
            [following] = source.poll(1)
            assert (following.offset, following.attempt) == (offset, attempt)


@pytest.mark.parametrize("name", ["None", "RETRY", "Skip", "Stop", "exception"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_blocking_process_ends_by_its_timeout_and_the_next_one_goes_on(
    log: rlog.Log, kind: str, name: str
) -> None:
    case = CASES[name]
    log.append_many([b"%d" % i for i in range(RECORDS)])
    wanted = expect(case, None)
    calls: list[tuple[int, int]] = []
    with open_source(log, kind, True) as source:
        began = time.monotonic()
        run(source, case, calls, False, timeout=0.15)
        took = time.monotonic() - began
        ended_early = bool(calls) and calls[-1] == (ODD, 1) and (case.ends or case.raises)
        assert took >= 0.15 or ended_early
        assert calls == wanted.calls[: len(calls)]
        # On a slow machine the time may have been over early; nothing is lost by that.
        rest = run(source, CASES["None"], calls, False, block=False)
        done = [offset for offset, _attempt in calls]
        assert sorted(set(done)) == list(range(RECORDS))
        assert rest is not None


@pytest.mark.parametrize("kind", KINDS)
def test_a_timeout_is_looked_at_between_records_and_never_within_one(
    log: rlog.Log, kind: str
) -> None:
    log.append_many([b"1", b"2", b"3"])
    with open_source(log, kind, True) as source:

        def handler(record: rlog.Record) -> None:
            time.sleep(0.3)

        assert source.process(handler, timeout=0.2) == 1
        assert [r.offset for r in source.poll()] == [1, 2]


@pytest.mark.parametrize("kind", KINDS)
def test_a_timeout_of_zero_handles_nothing(log: rlog.Log, kind: str) -> None:
    log.append(b"1")
    with open_source(log, kind, True) as source:
        assert source.process(lambda record: None, timeout=0.0) == 0
        assert [r.value for r in source.poll()] == [b"1"]


@pytest.mark.parametrize("opened", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_block_of_process_overrides_how_it_was_opened(
    log: rlog.Log, kind: str, opened: bool
) -> None:
    log.append_many([b"1", b"2"])
    with open_source(log, kind, opened) as source:
        assert source.process(lambda record: None, block=False) == 2
        # Blocking, there would be no end: its timeout is what ends it.
        began = time.monotonic()
        assert source.process(lambda record: None, block=True, timeout=0.1) == 0
        assert time.monotonic() - began >= 0.1
        began = time.monotonic()
        assert source.process(lambda record: None, timeout=0.1) == 0
        assert (time.monotonic() - began >= 0.1) is opened


@pytest.mark.parametrize("in_flight", [1, 2, 64])
@pytest.mark.parametrize("who", ["an ID", rlog.GLOBAL])
def test_all_that_was_completed_is_committed_when_process_returns_or_raises(
    client: rlog.Client, other: rlog.Client, log: rlog.Log, who: Any, in_flight: int
) -> None:
    log.append_many([b"%d" % i for i in range(100)])

    def handler(record: rlog.Record) -> None:
        if record.offset == 70:
            raise Refused

    with log.consumer(who) as consumer:
        assert consumer.process(handler, limit=50, in_flight=in_flight) == 50
        cursor = other.log(log.name).cursor(who)
        assert cursor.info().committed == 50
        with pytest.raises(Refused):
            consumer.process(handler, in_flight=in_flight)
        assert cursor.info().committed == 70


@pytest.mark.parametrize("kind", KINDS)
def test_an_interrupt_in_a_handler_gives_the_record_back_uncounted(
    log: rlog.Log, kind: str
) -> None:
    log.append_many([b"1", b"2"])

    def handler(record: rlog.Record) -> None:
        if record.offset == 1:
            raise KeyboardInterrupt

    with open_source(log, kind, True) as source:
        with pytest.raises(KeyboardInterrupt):
            source.process(handler)
        [again] = source.poll()
        assert (again.offset, again.attempt) == (1, 1)


@pytest.mark.parametrize("kind", KINDS)
def test_attempts_count_up_and_nothing_overtakes(log: rlog.Log, kind: str) -> None:
    log.append_many([b"1", b"2"])
    calls: list[tuple[int, int]] = []

    def handler(record: rlog.Record) -> rlog.Verdict:
        calls.append((record.offset, record.attempt))
        return rlog.Retry(delay=0.0) if record.attempt < 4 else rlog.COMMIT

    with open_source(log, kind, False) as source:
        assert source.process(handler) == 2
    assert calls == [(offset, attempt) for offset in (0, 1) for attempt in (1, 2, 3, 4)]


@pytest.mark.parametrize("kind", KINDS)
def test_a_retry_without_delay_is_no_hot_loop(log: rlog.Log, kind: str) -> None:
    log.append(b"1")
    calls: list[float] = []

    def handler(record: rlog.Record) -> rlog.Verdict:
        calls.append(time.monotonic())
        return rlog.RETRY if record.attempt < 4 else rlog.COMMIT

    with open_source(log, kind, False) as source:
        source.process(handler)
    gaps = [after - before for before, after in itertools.pairwise(calls)]
    assert all(gap >= least for gap, least in zip(gaps, (0.015, 0.03, 0.06), strict=True))


@pytest.mark.parametrize(
    "how", [{"limit": -1}, {"in_flight": 0}], ids=["negative limit", "nothing in flight"]
)
@pytest.mark.parametrize("kind", KINDS)
def test_what_process_cannot_do_is_a_value_error(
    log: rlog.Log, kind: str, how: dict[str, Any]
) -> None:
    with open_source(log, kind, False) as source, pytest.raises(ValueError, match="at least"):
        source.process(lambda record: None, **how)


def test_an_unknown_parameter_of_process_is_a_type_error(log: rlog.Log) -> None:
    with pytest.raises(TypeError, match="retries"):
        log.reader(rlog.OLDEST).process(lambda record: None, retries=1)  # type: ignore[call-arg]  # wrong on purpose


def test_an_async_handler_is_refused_before_it_is_called(log: rlog.Log) -> None:
    async def handler(record: rlog.Record) -> None:
        raise AssertionError("called")

    log.append(b"")
    with log.consumer("an ID", block=False) as consumer:
        with pytest.raises(TypeError, match="connect_async"):
            consumer.process(handler)  # type: ignore[arg-type]  # wrong on purpose
        assert [record.attempt for record in consumer] == [1]

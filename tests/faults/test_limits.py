"""Every limit of the product is tried: at it, and one past it.

What is past a limit gets a clear, typed error: from the client where that knows it, and from the
server whatever its client knows (the raw one here knows nothing). The server goes on, and so does
the connection, unless it is the framing itself that was broken.

The limits are found, not listed: every constant named ..._MAX or ..._MIN in the two packages is a
case here, or names its test elsewhere, or says why nobody can run into it. A new one without any of
these fails the first test.
"""

from __future__ import annotations

import importlib
import itertools
import pkgutil
import re
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeVar

import msgspec
import pytest

import rlog
import rlog_client
import rlog_client as client_api
from rlog import embedded, peer, policy, state
from rlog.cli import serve as cli_serve
from rlog.decisions import claims, consumers, desk, logs, members
from rlog.testing import serving
from rlog_client import batch, consumer, model, process, protocol
from rlog_client.errors import (
    AlreadyExists,
    InvalidRequest,
    NotFound,
    OffsetOutOfRange,
    Overloaded,
    TooLarge,
)
from tests.server_process import RLOG, ServerProcess

from .raw import Raw, packed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from rlog_client.protocol import Control

ROOT: Final = Path(__file__).parents[2]
TRIED: Final[set[str]] = set()  # by the tests below
_numbers = itertools.count()
T = TypeVar("T", bound="Callable[..., None]")

SHARED: Final = "tests/shared/test_membership.py"
FITS: Final = f"{SHARED}::test_what_one_message_may_say_fits_into_it_whatever_the_offsets"
CAPS: Final = "tests/shared/test_dispatch.py::test_caps_hold_and_when_the_floor_moves_all_goes_on"
SHARING: Final = "tests/e2e/test_sharing_limits.py"
SESSION: Final = "tests/client/test_session.py"
OLD: Final = "tests/e2e/test_sequences.py::test_an_old_one_is_known_by_its_number_only"
ELSEWHERE: Final = {
    "rlog.cli.process.KEY_BYTES_MAX": "tests/cli/test_process.py",
    "rlog.decisions.desk.SILENT_MAX": (
        "tests/schedules/test_transactions.py::test_of_many_clients_the_most_silent_are_forgotten"
    ),
    "rlog.decisions.parking.PARKED_MAX": (
        f"{SHARING}::test_more_than_ten_thousand_parked_records_are_refused_and_nothing_is_lost"
    ),
    "rlog.dispatch.PENDING_MAX": CAPS,
    "rlog.dispatch.SENT_BYTES_MAX": (
        f"{SHARED}::test_a_member_keeps_so_much_and_gets_again_what_it_let_go"
    ),
    "rlog.dispatch.FORGET_MAX": (
        f"{SHARED}::test_one_message_lets_go_as_much_as_fits_and_the_next_the_rest"
    ),
    "rlog.dispatch.KEY_BYTES_MAX": (
        f"{SHARING}::test_batches_of_every_size_and_keys_of_every_length"
    ),
    "rlog.driver.FILES_IN_USE_MAX": (
        "tests/storage/test_driver.py"
        "::test_a_checkpoint_is_due_when_so_many_files_are_in_use_and_lets_them_go"
    ),
    "rlog.driver.ROOM_MIN": (
        "tests/storage/test_driver.py"
        "::test_when_not_even_a_commit_is_sure_to_fit_it_is_refused_until_there_is_space"
    ),
    "rlog.driver.RESERVE_BYTES_MAX": (
        "tests/storage/test_driver.py"
        "::test_appends_leave_a_checkpoint_its_space_and_resume_when_it_has_it_again"
    ),
    "rlog.log.RESERVE_MIN": (
        "tests/storage/test_log.py::test_writing_never_needs_space_that_was_not_reserved"
    ),
    "rlog.membership.ASSIGNED_MAX": (
        f"{SHARED}::test_a_loan_larger_than_a_message_is_told_in_several"
    ),
    "rlog.peer.OUT_BYTES_MAX": (
        "tests/e2e/test_hostile.py"
        "::test_a_client_that_asks_and_never_takes_an_answer_is_not_read_for_ever"
    ),
    "rlog.peer.SUBSCRIPTIONS_MAX": (
        "tests/e2e/test_failures.py::test_too_many_readers_of_one_connection_are_overloaded"
    ),
    "rlog.retention.COPIES_BYTES_MAX": (
        "tests/schedules/test_retention.py::test_beyond_the_cap_the_trim_waits_and_says_so"
    ),
    "rlog.shared.RANGES_MAX": CAPS,
    "rlog.shared.FAILED_MAX": CAPS,
    "rlog.state.SENT_MAX": OLD,
    "rlog.tables.TABLES_MAX": (
        "tests/e2e/test_table.py::test_more_tables_than_are_kept_are_read_all_the_same"
    ),
    "rlog_client.member.OFFSETS_MAX": FITS,
    "rlog_client.member.RANGES_MAX": FITS,
    "rlog_client.member.BACK_MAX": FITS,
    "rlog_client.producer.IN_FLIGHT_MAX": (
        "tests/client/test_producer.py::test_a_silent_server_is_given_up_after_the_timeout"
    ),
    "rlog_client.protocol.LISTING_BYTES_MAX": (
        "tests/storage/test_broker.py::test_a_listing_beyond_its_limit_is_an_error_and_not_a_part"
    ),
    "rlog_client.protocol.REQUEST_MAX": (
        f"{SESSION}::test_request_numbers_wrap_around_those_in_use"
    ),
    "rlog.testing.serving.AHEAD_SECONDS_MAX": (
        "tests/testing_kit/test_faults.py::test_what_makes_no_sense_is_refused_and_breaks_no_server"
    ),
    "rlog_client.session.APPEND_SECONDS_MAX": (
        f"{SESSION}::test_an_append_is_repeated_for_half_an_hour"
    ),
    "rlog_client.session.RETRY_SECONDS_MIN": (
        f"{SESSION}::test_the_time_between_tries_grows_with_chance_in_it"
    ),
    "rlog_client.session.RETRY_SECONDS_MAX": (
        f"{SESSION}::test_the_time_between_tries_grows_with_chance_in_it"
    ),
}

_PORTION: Final = "a portion of work: what is more is done in the next one"
_BUDGET: Final = "of a frame: what a request within its own limits takes at most"
_OPINION: Final = "what `rlog doctor` thinks too little: tests/cli/test_doctor.py"
_SCREEN: Final = "of what is shown, with a mark that there is more"
NO_LIMITS: Final = {
    "rlog.checkpoint._NUMBER_MAX": "beyond what any journal comes to",
    "rlog.cli.inspect._SHOWN_MAX": _SCREEN,
    "rlog.connection._READY_MAX": _PORTION,
    "rlog.decisions.desk.FACT_BYTES_MAX": _BUDGET,
    "rlog.decisions.desk.SETTLE_BYTES_MAX": _BUDGET,
    "rlog.decisions.desk.LIST_BYTES_MAX": _BUDGET,
    "rlog.decisions.desk._DROPS_MAX": _PORTION,
    "rlog.decisions.watch.LOOKS_MAX": _PORTION,
    "rlog.doctor.FILES_MIN": _OPINION,
    "rlog.doctor.FILE_SIZE_MIN": _OPINION,
    "rlog.doctor.SPACE_MIN": _OPINION,
    "rlog.decisions.members.SINGLE_ABSENT_MAX": _PORTION,
    "rlog.dispatch.ABSENT_MAX": _PORTION,
    "rlog.dispatch._LOTS_MAX": "of a cache",
    "rlog.embedded.FLIGHTS_MAX": _PORTION,
    "rlog.embedded.SLEEP_SECONDS_MAX": _PORTION,
    "rlog.files._PIECES_MAX": _PORTION,
    "rlog.log.HANDLES_MAX": "of a cache",
    "rlog.log.RESERVE_MAX": _PORTION,
    "rlog.offline._SALVAGE_MAX": _SCREEN,
    "rlog.salvage._SHOWN_MAX": _SCREEN,
    "rlog.repair._NAME_BYTES_MAX": "of a name in quarantine, which is cut",
    "rlog.server.ALONE_MIN": "a threshold between two ways that do the same",
    "rlog.server.INLINE_BYTES_MAX": "a threshold between two ways that do the same",
    "rlog.server.INLINE_REPLIES_MAX": "a threshold between two ways that do the same",
    "rlog.server.INLINE_SECONDS_MAX": "a threshold between two ways that do the same",
    "rlog_client.aio_transport._PIECES_MAX": _PORTION,
    "rlog_client.batch.COUNT_MAX": "as wide as its field: the batch's bytes end before it",
    "rlog_client.member.IN_FLIGHT_MAX": _PORTION,
    "rlog_client.transport._PIECES_MAX": _PORTION,
    "rlog_client.transport._WAIT_SECONDS_MAX": _PORTION,
}


def tries(*names: str) -> Callable[[T], T]:
    """Says which limits a test tries."""
    TRIED.update(names)
    return lambda test: test


def limits() -> set[str]:
    """Every constant that is named as a limit, by where it is made."""
    found = set()
    for package in (rlog, rlog_client):
        for info in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            source = Path(importlib.import_module(info.name).__file__ or "").read_text()
            names = re.findall(
                r"^(_?[A-Z][A-Z0-9_]*_(?:MAX|MIN))\b *(?::[^=\n]+)?= *(.*)", source, re.M
            )
            # One that only gives another its name has none of its own.
            own = [name for name, value in names if not re.match(r"[a-z]+\.[A-Z_]+$", value)]
            found |= {f"{info.name}.{name}" for name in own}
    return found


def test_every_limit_is_tried_at_it_and_past_it_or_cannot_be_met() -> None:
    accounted = [TRIED, ELSEWHERE.keys(), NO_LIMITS.keys()]
    for one, other in itertools.combinations(accounted, 2):
        assert not one & other, "accounted for twice"
    known = set().union(*accounted)
    assert limits() - known == set(), "limits that nobody tries"
    assert known - limits() == set(), "no such limits any more"
    for place in ELSEWHERE.values():
        path, _, name = place.partition("::")
        assert f"def {name}" in (ROOT / path).read_text(), place


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    data_dir = tmp_path_factory.mktemp("limits") / "data"
    with ServerProcess(data_dir, "--sync", "never", "--journal-file-size", "32MiB") as running:
        with rlog.connect(running.url) as client:
            client.log("bystander", create=True).append(b"as it was")
        yield running
        with rlog.connect(running.url) as client:
            [record] = client.log("bystander").reader(rlog.OLDEST, block=False)
            assert (record.offset, record.value) == (0, b"as it was")
        assert running.stop() == 0, running.log()
        assert "Traceback" not in running.log(), running.log()
        assert "CRITICAL" not in running.log(), running.log()


@pytest.fixture
def client(server: ServerProcess) -> Iterator[rlog.Client]:
    with rlog.connect(server.url, timeout=30.0) as client:
        yield client


@pytest.fixture
def log(client: rlog.Client) -> rlog.Log:
    """A log of one's own, empty."""
    return client.log(f"log{next(_numbers)}", create=True)


@pytest.fixture
def raw(server: ServerProcess) -> Iterator[Raw]:
    with Raw(server.url) as raw:
        yield raw
        assert isinstance(raw.ask(protocol.Ping()), protocol.Done), "it is of use still"


# --- names --------------------------------------------------------------------------------------


def test_a_log_name_has_63_characters(client: rlog.Client, raw: Raw) -> None:
    assert client.log("n" * 63, create=True).append(b"1") == 0
    with pytest.raises(InvalidRequest, match="1 to 63"):
        client.log("n" * 64, create=True)
    with pytest.raises(InvalidRequest, match="1 to 63"):
        raw.open("n" * 64)
    with pytest.raises(InvalidRequest, match="1 to 63"):
        raw.open("")


@pytest.mark.parametrize("name", ["c" * 255, "é" * 127 + "c"])
def test_a_consumer_id_and_a_producers_name_have_255_bytes(
    log: rlog.Log, raw: Raw, name: str
) -> None:
    with log.consumer(name, block=False) as source:
        assert list(source) == []
    assert log.cursor(name).info().id == name
    with log.producer(name=name) as producer:
        assert producer.last_sequence == -1
    asks: list[Control] = [
        protocol.Claim(raw.open(log.name), name + "x", model.OLDEST, bytes(16)),
        protocol.OpenProducer(raw.open(log.name), 7, name + "x"),
    ]
    for ask in asks:
        with pytest.raises(InvalidRequest, match="1 to 255 bytes, not 256"):
            raw.ask(ask)
    with pytest.raises(InvalidRequest, match="1 to 255 bytes"):
        log.consumer(name + "x")
    with pytest.raises(InvalidRequest, match="1 to 255 bytes"), log.producer(name=name + "x"):
        pass


@tries("rlog.peer.NAME_BYTES_MAX")
@pytest.mark.parametrize("more", [0, 1])
def test_the_name_of_a_client_is_cut(server: ServerProcess, log: rlog.Log, more: int) -> None:
    name = "h" * (peer.NAME_BYTES_MAX + more)
    with Raw(server.url, protocol.Hello(protocol.PROTOCOL, name)) as raw:
        raw.ask(protocol.Claim(raw.open(log.name), "c", model.OLDEST, bytes(16)))
        [member] = log.cursor("c").info().members
        assert member.name == name[: peer.NAME_BYTES_MAX]


# --- options of a log ---------------------------------------------------------------------------

OPTIONS: Final = [
    ("file_roll_size", logs.ROLL_MIN, -1),
    ("file_roll_size", logs.ROLL_MAX, 1),
    ("max_total_bytes", logs.TOTAL_MIN, -1),
    ("max_total_bytes", logs.TOTAL_MAX, 1),
    ("max_file_age", logs.AGE_SECONDS_MIN, -0.001),
    ("max_file_age", logs.AGE_SECONDS_MAX, 1.0),
    ("blocking_minimum_retention", logs.AGE_SECONDS_MAX, 1.0),
]


@tries(
    "rlog.state.ROLL_MIN",
    "rlog.decisions.logs.ROLL_MAX",
    "rlog.decisions.logs.TOTAL_MIN",
    "rlog.decisions.logs.TOTAL_MAX",
    "rlog.decisions.logs.AGE_SECONDS_MIN",
    "rlog.decisions.logs.AGE_SECONDS_MAX",
)
@pytest.mark.parametrize(("option", "limit", "step"), OPTIONS)
def test_an_option_of_a_log_at_its_limit_is_taken_and_past_it_refused(
    log: rlog.Log, raw: Raw, option: str, limit: float, step: float
) -> None:
    assert state.ROLL_MIN == logs.ROLL_MIN
    log_id = raw.open(log.name)
    raw.ask(protocol.AlterLog(log_id, {option: limit}))
    assert dict(log.info().options)[option] == limit
    for wrong in (limit + step, -limit, 0 if step < 0 else 2**63):
        with pytest.raises(InvalidRequest, match=option):
            raw.ask(protocol.AlterLog(log_id, {option: wrong}))
    with pytest.raises(InvalidRequest, match=option):
        raw.open(f"{log.name}-new", **{option: limit + step})
    assert dict(log.info().options)[option] == limit


@tries("rlog.decisions.logs.PROTECTED_MAX")
def test_so_many_consumers_are_protected_and_no_more(log: rlog.Log) -> None:
    many = [f"{'p' * 250}{number:02}" for number in range(logs.PROTECTED_MAX + 1)]
    log.alter(protected=many[:-1])
    with pytest.raises(InvalidRequest, match="at most 32 consumers are protected"):
        log.alter(protected=many)
    assert log.info().options["protected"] == many[:-1]


@tries("rlog.policy._TEXT_MAX")
def test_a_policy_is_short(log: rlog.Log) -> None:
    text = "bytes:4" + " " * (policy._TEXT_MAX - 10) + "MiB"
    assert len(text) == policy._TEXT_MAX
    log.alter(sync=text)
    with pytest.raises(InvalidRequest, match="a sync policy is"):
        log.alter(sync=text.replace("4", "44"))
    assert log.info().options["sync"] == text


# --- claims and verdicts ------------------------------------------------------------------------


@tries("rlog.decisions.claims.HAND_SECONDS_MIN", "rlog.decisions.claims.HAND_SECONDS_MAX")
@pytest.mark.parametrize(
    ("at", "past"), [(claims.HAND_SECONDS_MIN, 0.099), (claims.HAND_SECONDS_MAX, 366 * 86400.0 + 1)]
)
def test_hand_seconds(log: rlog.Log, raw: Raw, at: float, past: float) -> None:
    log_id = raw.open(log.name)
    claim = protocol.Claim(log_id, "c", model.OLDEST, bytes(16), hand_seconds=past)
    with pytest.raises(InvalidRequest, match="hand_seconds is"):
        raw.ask(claim)
    with log.consumer("c", hand_seconds=at, block=False) as source:
        assert source.epoch == 1


@tries("rlog.decisions.desk.WAITS_MAX")
def test_a_connection_waits_for_so_many_claims(server: ServerProcess, raw: Raw) -> None:
    log_id = raw.open("waits")
    asks = [
        protocol.Claim(log_id, f"c{number}", model.OLDEST, bytes(16), standby=True)
        for number in range(desk.WAITS_MAX + 1)
    ]
    with Raw(server.url) as waiting:
        for request in [raw.send(ask) for ask in asks]:
            assert isinstance(raw.answer(request), protocol.Claimed)
        others = [msgspec.structs.replace(ask, token=b"another's " + bytes(6)) for ask in asks]
        requests = [waiting.send(ask) for ask in others]
        for request in requests[:-1]:
            assert isinstance(waiting.answer(request), protocol.Queued)
        with pytest.raises(Overloaded, match="waits for 1024 claims already"):
            waiting.answer(requests[-1])
        assert isinstance(waiting.ask(protocol.Ping()), protocol.Done)


def held(log: rlog.Log, raw: Raw, records: int = 3) -> int:
    """The raw client holds consumer "c" of a log with some records; -> the log's id."""
    log.append_many([b"%d" % number for number in range(records)])
    log_id = raw.open(log.name)
    raw.ask(protocol.Claim(log_id, "c", model.OLDEST, bytes(16)))
    request = raw.send(protocol.Subscribe(log_id, model.OLDEST, "c"))
    raw.answer(request)
    raw.send(protocol.Credit(request, 1 << 20))
    assert isinstance(raw.answer(request), protocol.Records)
    return log_id


PAST_TEXT: Final = "x" * (consumers.TEXT_BYTES_MAX + 1)
PAST_CAUSE: Final = "x" * (consumers.CAUSE_BYTES_MAX + 1)


@tries(
    "rlog.decisions.consumers.TEXT_BYTES_MAX",
    "rlog.decisions.consumers.CAUSE_BYTES_MAX",
    "rlog.decisions.consumers.DELAY_SECONDS_MAX",
)
@pytest.mark.parametrize(
    ("field", "at", "past"),
    [
        ("error", PAST_TEXT[1:], PAST_TEXT),
        ("reason", PAST_TEXT[1:], PAST_TEXT),
        ("cause", PAST_CAUSE[1:], PAST_CAUSE),
        ("error", "é" * 2048, "é" * 2048 + "x"),
        ("delay", consumers.DELAY_SECONDS_MAX, consumers.DELAY_SECONDS_MAX + 1),
        ("attempts", 2**31 - 1, 2**31),
    ],
)
def test_what_a_verdict_says_is_limited(
    log: rlog.Log, raw: Raw, field: str, at: object, past: object
) -> None:
    verdict = protocol.Settle(held(log, raw), "c", 1, 0, "retry", attempts=1)
    with pytest.raises(InvalidRequest):
        raw.ask(msgspec.structs.replace(verdict, **{field: past}))
    assert isinstance(raw.ask(msgspec.structs.replace(verdict, **{field: at})), protocol.Judged)


@tries("rlog_client.model.SECONDS_MAX")
def test_the_seconds_of_a_retry() -> None:
    assert rlog.Retry(delay=model.SECONDS_MAX).delay == consumers.DELAY_SECONDS_MAX
    for wrong in (model.SECONDS_MAX + 1, -0.1, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="seconds are 0 to"):
            rlog.Retry(delay=wrong)


@tries(
    "rlog_client.consumer.TEXT_BYTES_MAX",
    "rlog_client.process.SUMMARY_BYTES_MAX",
    "rlog_client.process.CAUSE_BYTES_MAX",
)
def test_long_texts_of_a_handler_are_cut_by_the_client(log: rlog.Log) -> None:
    kind = type("E" * (process.CAUSE_BYTES_MAX + 1), (Exception,), {})
    log.append_many([b"reason", b"error"])

    def handle(record: rlog.Record) -> rlog.Verdict:
        if record.value == b"reason":
            return rlog.Park("r" * (consumer.TEXT_BYTES_MAX + 1))
        raise kind("x" * (consumer.TEXT_BYTES_MAX + 1))

    once = rlog.Backoff(max_attempts=1)
    assert log.consumer("c", block=False).process(handle, retry=once) == 2
    by_reason, by_error = log.cursor("c").parked()
    assert by_reason.reason == "r" * consumer.TEXT_BYTES_MAX
    assert process.SUMMARY_BYTES_MAX <= len(by_error.error.encode()) <= consumer.TEXT_BYTES_MAX
    assert log.cursor("c").info().paused is None


@tries("rlog.decisions.consumers.LIST_MAX")
def test_so_many_offsets_are_redriven_at_once_and_more_in_several_requests(
    log: rlog.Log, raw: Raw
) -> None:
    count = consumers.LIST_MAX + 1
    log.append_many([b"%d" % number for number in range(count)])
    assert log.consumer("c", block=False).process(lambda _: rlog.PARK, in_flight=64) == count
    assert [each.record.offset for each in log.cursor("c").parked()] == list(range(count))
    log_id, offsets = raw.open(log.name), list(range(count))
    with pytest.raises(InvalidRequest, match="at most 1000 offsets at once"):
        raw.ask(protocol.Redrive(log_id, "c", offsets))
    assert raw.ask(protocol.Redrive(log_id, "c", offsets[:-1])) == protocol.Counted(count - 1)
    assert log.cursor("c").redrive() == 1


@tries("rlog.decisions.members.OFFSETS_MAX")
def test_a_member_names_so_many_offsets_at_once(log: rlog.Log, raw: Raw) -> None:
    log_id = raw.open(log.name)
    raw.ask(protocol.Claim(log_id, "s", model.OLDEST, bytes(16), shared=True))
    offsets = list(range(members.OFFSETS_MAX + 1))
    none = protocol.CommitRecords(log_id, "s", 1)
    for name in ("begun", "back"):
        with pytest.raises(InvalidRequest, match="at most 1000 offsets in one list"):
            raw.ask(msgspec.structs.replace(none, **{name: offsets}))
    # So many may be named; that they are none of its own is another matter.
    with pytest.raises(client_api.RlogError) as raised:
        raw.ask(protocol.CommitRecords(log_id, "s", 1, begun=offsets[:-1]))
    assert "at most" not in str(raised.value)


@tries("rlog_client.consumer.COMMITS_MAX")
def test_more_commits_than_may_be_in_flight_are_all_done(log: rlog.Log) -> None:
    count = consumer.COMMITS_MAX * 2 + 1
    log.append_many([b"%d" % number for number in range(count)])
    with log.consumer("c", block=False) as source:
        for record in source:
            source.commit(record, wait=False)
    assert log.cursor("c").info().committed == count


# --- offsets ------------------------------------------------------------------------------------


@tries("rlog_client.model.OFFSET_MAX", "rlog.offline.OFFSET_MAX")
def test_an_offset_has_63_bits(log: rlog.Log, raw: Raw) -> None:
    assert model.OFFSET_MAX == 2**63 - 1
    with pytest.raises(OffsetOutOfRange):
        log.reader(rlog.offset(model.OFFSET_MAX))
    with pytest.raises(InvalidRequest, match="between 0 and"):
        rlog.offset(model.OFFSET_MAX + 1)
    with pytest.raises(client_api.RlogError):
        raw.ask(protocol.WaitSynced(1 << 40, model.OFFSET_MAX))


# --- records and batches ------------------------------------------------------------------------


def test_a_record_at_its_limit_is_taken_and_one_byte_more_is_too_large(log: rlog.Log) -> None:
    limit = 1 << 20
    assert log.append(b"v" * limit) == 0
    assert log.append(b"v" * (limit - 20), key=b"k" * 10, headers={"h" * 5: b"v" * 5}) == 1
    for value, key in ((limit + 1, 0), (limit, 1)):
        with pytest.raises(TooLarge) as raised:
            log.append(b"v" * value, key=b"k" * key)
        assert (raised.value.size, raised.value.limit) == (limit + 1, limit)
    with pytest.raises(TooLarge) as raised:
        log.append_many([b"small", b"v" * (limit + 1)])
    assert raised.value.index == 1
    assert log.info().end == 2


def batch_of(size: int) -> bytes:
    """A sound batch of exactly so many bytes."""
    values = [bytes(700_000)] * (size // 700_000)
    made, rest = b"", 0
    while len(made) != size:
        rest += size - len(made) if made else size % 700_000 - 5 * len(values) - 100
        made = bytes(batch.encode([*values[:-1], bytes(700_000 * bool(values) + rest)]))
    return made


def test_a_batch_at_its_limit_is_taken_and_one_byte_more_ends_the_connection(
    server: ServerProcess, log: rlog.Log, raw: Raw
) -> None:
    limit = 8 << 20
    assert isinstance(raw.welcome, protocol.Welcome)
    assert raw.welcome.batch_bytes_max == limit
    log_id = raw.open(log.name)
    assert isinstance(raw.ask(protocol.Append(log_id), batch_of(limit)), protocol.Appended)
    with Raw(server.url) as other:
        # By its header alone: it does not wait for what it is not going to take.
        other.socket.sendall(packed(2, protocol.Append(log_id), batch_of(limit + 1))[:1000])
        with pytest.raises(TooLarge):
            other.answer(2)
        assert other.ended()
    many = [bytes(1 << 20)] * 8
    with pytest.raises(TooLarge) as raised:
        log.append_many(many)
    assert raised.value.limit == limit
    with log.producer(batch_bytes=1 << 20) as producer:
        producer.extend(many)
    assert log.info().end == len(many) + limit // 700_000


# --- messages -----------------------------------------------------------------------------------


def long_ask(control_bytes: int) -> protocol.OpenLog:
    """A request whose control has exactly so many bytes."""
    short = len(msgspec.msgpack.encode(protocol.OpenLog("x" * 300)))
    ask = protocol.OpenLog("x" * (300 + control_bytes - short))
    assert len(msgspec.msgpack.encode(ask)) == control_bytes
    return ask


@tries("rlog_client.protocol.CONTROL_BYTES_MAX", "rlog_client.protocol.TEXT_MAX")
def test_a_control_at_its_limit_is_answered_and_one_byte_more_ends_the_connection(
    server: ServerProcess, client: rlog.Client, raw: Raw
) -> None:
    with pytest.raises((InvalidRequest, NotFound)) as raised:
        raw.ask(long_ask(protocol.CONTROL_BYTES_MAX))
    assert protocol.TEXT_MAX - 20 <= len(str(raised.value)) <= protocol.TEXT_MAX
    with Raw(server.url) as other:
        request = other.send(long_ask(protocol.CONTROL_BYTES_MAX + 1))
        with pytest.raises((client_api.RlogError, ConnectionError)):
            other.answer(request)
        assert other.ended()
    with pytest.raises(InvalidRequest, match="the limit is 16384"):
        client.log("x" * protocol.CONTROL_BYTES_MAX)
    assert client.logs(), "nothing was sent"


@tries("rlog_client.protocol.HELLO_BYTES_MAX")
@pytest.mark.parametrize("more", [0, 1])
def test_a_greeting_at_its_limit_is_answered_and_one_byte_more_is_the_end(
    server: ServerProcess, more: int
) -> None:
    size = protocol.HELLO_BYTES_MAX + more
    hello = protocol.Hello(protocol.PROTOCOL, "h" * 300)
    rest = size - len(packed(1, hello)) + protocol.HEAD_BYTES
    hello = protocol.Hello(protocol.PROTOCOL, "h" * (300 + rest))
    assert len(packed(1, hello)) == size + protocol.HEAD_BYTES
    if more:
        with pytest.raises((client_api.RlogError, ConnectionError)):
            Raw(server.url, hello)
    else:
        with Raw(server.url, hello) as raw:
            assert isinstance(raw.ask(protocol.Ping()), protocol.Done)


@tries("rlog_client.protocol.DETAILS_BYTES_MAX")
def test_details_beyond_their_limit_are_left_out_of_an_error(client: rlog.Client) -> None:
    for count, told in ((1, True), (20, False)):
        client.log(f"details{count}", create=True)
        protected = [f"{'p' * 250}{number:02}" for number in range(count)]
        client.log(f"full{count}", create=True, protected=protected)
        others = [f"{'q' * 250}{number:02}" for number in range(count)]
        with pytest.raises(AlreadyExists) as raised:
            client.log(f"full{count}", create=True, protected=others)
        assert bool(raised.value.differences) == told


# --- what waits ---------------------------------------------------------------------------------


def answered(raw: Raw, request: int) -> bool:
    """Whether the answer is here in a moment: to show that one is not, for as long as it takes."""
    raw.socket.settimeout(0.3)
    try:
        raw.answer(request)
    except TimeoutError:
        return False
    finally:
        raw.socket.settimeout(30.0)
    return True


@tries("rlog.peer.WAITING_MAX", "rlog.peer.WAITING_BYTES_MAX")
@pytest.mark.parametrize(
    ("count", "size"), [(peer.WAITING_MAX, 100), (peer.WAITING_BYTES_MAX // 100_000 + 1, 100_000)]
)
def test_beyond_so_much_that_waits_no_more_is_read_until_some_of_it_is_answered(
    client: rlog.Client, log: rlog.Log, raw: Raw, count: int, size: int
) -> None:
    """Appends wait: for a log that rather takes none than lose what is younger than an hour."""
    log.alter(max_total_bytes=32 << 10, file_roll_size=8 << 10, blocking_minimum_retention=3600.0)
    log.append(bytes(8 << 10))
    log_id, one = raw.open(log.name), batch_of(size)
    waiting = [raw.send(protocol.Append(log_id), batch_of(30_000))]
    while len(waiting) < count:
        waiting.append(raw.send(protocol.Append(log_id), one))
    assert isinstance(raw.ask(protocol.Ping()), protocol.Done)
    waiting.append(raw.send(protocol.Append(log_id), one))
    ping = raw.send(protocol.Ping())
    assert not answered(raw, ping)
    log.alter(max_total_bytes=None, blocking_minimum_retention=None)
    assert isinstance(raw.answer(ping), protocol.Done)
    for request in waiting:
        assert isinstance(raw.answer(request), protocol.Appended)


@tries("rlog_client.transaction.IN_FLIGHT_MAX")
def test_more_transactions_than_are_remembered_are_all_done(
    client: rlog.Client, log: rlog.Log
) -> None:
    for number in range(2 * 64 + 1):
        with client.transaction() as transaction:
            transaction.append(log, b"%d" % number)
    assert log.info().end == 2 * 64 + 1


# --- the directory ------------------------------------------------------------------------------


@tries("rlog.cli.serve.JOURNAL_FILE_MIN", "rlog.cli.serve.SIZE_MAX")
@pytest.mark.parametrize(
    ("size", "taken"),
    [
        (cli_serve.JOURNAL_FILE_MIN, True),
        (cli_serve.JOURNAL_FILE_MIN - 4096, False),
        (cli_serve.SIZE_MAX, True),
        (cli_serve.SIZE_MAX + 4096, False),
    ],
)
def test_the_size_of_a_journal_file(server: ServerProcess, size: int, taken: bool) -> None:
    # The directory is another's: whatever size is taken, nothing of it is made.
    command = [RLOG, "serve", "--data-dir", str(server.data_dir), "--listen", "127.0.0.1:0"]
    done = subprocess.run(
        [*command, "--journal-file-size", str(size)], capture_output=True, check=False
    )
    assert done.returncode == (6 if taken else 2), done.stderr
    assert (b"in use by process" if taken else b"from 64KiB to 1GiB") in done.stderr


@tries(
    "rlog.embedded.JOURNAL_FILE_MIN",
    "rlog.embedded.JOURNAL_FILE_MAX",
    "rlog.testing.serving.JOURNAL_FILE_MIN",
    "rlog.testing.serving.JOURNAL_FILE_MAX",
)
def test_the_size_of_a_journal_file_of_ones_own(server: ServerProcess, tmp_path: Path) -> None:
    assert (embedded.JOURNAL_FILE_MIN, embedded.JOURNAL_FILE_MAX) == (64 << 10, 1 << 30)
    assert (serving.JOURNAL_FILE_MIN, serving.JOURNAL_FILE_MAX) == (64 << 10, 1 << 30)
    for past in (embedded.JOURNAL_FILE_MIN - 4096, embedded.JOURNAL_FILE_MAX + 4096):
        with pytest.raises(ValueError, match="journal_file_size is a multiple of"):
            rlog.open(tmp_path / "none", journal_file_size=past)
        with pytest.raises(ValueError, match="journal_file_size is a multiple of"):
            serving.Server(journal_file_size=past)
    assert not (tmp_path / "none").exists()
    with rlog.open(tmp_path / "own", journal_file_size=embedded.JOURNAL_FILE_MIN) as client:
        client.log("l", create=True).append(b"1")
    with serving.Server(journal_file_size=serving.JOURNAL_FILE_MIN) as own:
        own.connect().log("l", create=True).append(b"1")
    # Somebody else's: the size was taken, nothing of it is made.
    with pytest.raises(Exception, match="in use by process"):
        rlog.open(server.data_dir, journal_file_size=embedded.JOURNAL_FILE_MAX)

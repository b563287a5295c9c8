"""The state is what the facts add up to, and nothing besides."""

from __future__ import annotations

import struct
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlog import facts, index, state
from rlog.index import Milestone
from rlog.segment import Place
from rlog.state import SENT_MAX, Producer, Sent, State
from rlog_client import batch
from rlog_client.batch import HEADER_BYTES
from tests.storage.build import batch_of

ROLL = 500
OPTIONS = facts.Options(None, ROLL)


def appended(log: int, base: int, size: int, count: int = 1, time_ns: int = 1000) -> facts.Appended:
    """An append of a batch of ``size`` bytes; of one more where no batch has so many."""
    for value in range(size):
        values = [b"x" * value] + [b""] * (count - 1)
        raw = batch_of(values, log=log, base=base, time_ns=time_ns)
        if len(raw) >= size:
            return facts.Appended(raw[:HEADER_BYTES])
    raise AssertionError(size)


def with_log(*more: facts.Fact) -> State:
    made = State()
    for fact in (facts.Created(1, "orders", OPTIONS), *more):
        made.apply(fact, 5)
    return made


def places(made: State, *appends: facts.Appended) -> list[Place]:
    found = []
    for fact in appends:
        append = made.apply(fact, 5)
        assert append is not None
        found.append(append.place)
    return found


def test_batches_lie_one_behind_the_other() -> None:
    made = with_log()
    assert places(made, appended(1, 0, 100), appended(1, 1, 150, 3), appended(1, 4, 100)) == [
        Place(1, 0, 0, True),
        Place(1, 0, 100, False),
        Place(1, 0, 250, False),
    ]
    log = made.logs[1]
    assert (log.first, log.end, log.bytes) == (0, 5, 350)


def test_the_roll_is_decided_before_the_write() -> None:
    made = with_log()
    found = places(made, appended(1, 0, 400), appended(1, 1, 100), appended(1, 2, 100))
    assert found == [Place(1, 0, 0, True), Place(1, 0, 400, False), Place(1, 2, 0, True)]
    assert all(segment.bytes <= ROLL for segment in made.logs[1].segments)


def test_an_oversized_batch_lies_alone_in_its_file() -> None:
    made = with_log()
    found = places(made, appended(1, 0, 100), appended(1, 1, 900), appended(1, 2, 100))
    assert found == [Place(1, 0, 0, True), Place(1, 1, 0, True), Place(1, 2, 0, True)]


@given(
    st.lists(st.tuples(st.integers(90, 700), st.integers(1, 3)), max_size=30), st.integers(0, 80)
)
def test_offsets_stay_dense_through_rolls_and_trims(
    sizes: list[tuple[int, int]], before: int
) -> None:
    made = with_log()
    end = 0
    for size, count in sizes:
        places(made, appended(1, end, max(size, 90 + 2 * count), count))
        end += count
    log = made.logs[1]
    assert log.end == end
    first = log.trim_to(before)
    assert log.first <= first <= max(log.first, before)
    made.apply(facts.Trimmed(1, first), 5)
    assert (log.first, log.end) == (first, end)
    assert [segment.base for segment in log.segments] == sorted({s.base for s in log.segments})
    assert not log.segments or log.segments[0].base == first
    assert log.trim_to(before) == first, "a trim is done once"


def test_a_trim_takes_whole_segments_and_never_past_its_bound() -> None:
    made = with_log(*(appended(1, offset, 300) for offset in range(4)))
    log = made.logs[1]
    assert [segment.base for segment in log.segments] == [0, 1, 2, 3]
    assert [log.trim_to(before) for before in (0, 1, 2, 3, 4, 9)] == [0, 1, 2, 3, 4, 4]
    made.apply(facts.Trimmed(1, 2), 5)
    assert (log.first, [segment.base for segment in log.segments]) == (2, [2, 3])
    made.apply(facts.Trimmed(1, 4), 5)
    assert (log.first, log.end, log.segments) == (4, 4, [])
    assert places(made, appended(1, 4, 100)) == [Place(1, 4, 0, True)]


def test_a_trim_leaves_the_list_that_a_reader_walks() -> None:
    made = with_log(*(appended(1, offset, 300) for offset in range(3)))
    walked = made.logs[1].segments
    made.apply(facts.Trimmed(1, 2), 5)
    assert [segment.base for segment in walked] == [0, 1, 2]


def test_a_segment_is_found_by_any_offset_in_it() -> None:
    made = with_log(appended(1, 0, 200, 3), appended(1, 3, 200, 2), appended(1, 5, 200, 4))
    log = made.logs[1]
    assert [segment.base for segment in log.segments] == [0, 5]
    assert [log.segment_index(offset) for offset in range(9)] == [0] * 5 + [1] * 4
    assert [log.segment_end(index) for index in (0, 1)] == [5, 9]


def test_time_never_runs_backwards_in_the_running_maximum() -> None:
    made = with_log(
        appended(1, 0, 300, time_ns=50),
        appended(1, 1, 300, time_ns=20),
        appended(1, 2, 300, time_ns=60),
    )
    assert [segment.time_max_ns for segment in made.logs[1].segments] == [50, 50, 60]


CLAIM = facts.Claimed(1, "c", 1, b"t" * 16, "host:1", 0)


def test_a_claim_holds_until_it_is_released() -> None:
    made = with_log(CLAIM, facts.Committed(1, "c", 1, 4))
    cursor = made.logs[1].cursors["c"]
    assert cursor.holder == state.Holder(b"t" * 16, "host:1", 5)
    assert (cursor.committed, cursor.epoch) == (4, 1)
    made.apply(facts.Released(1, "c", 1), 6)
    again = made.logs[1].cursors["c"]
    assert again == state.Cursor(4, 1, None)


def test_opened_ends_every_claim_and_keeps_every_epoch() -> None:
    made = with_log(CLAIM, facts.Claimed(1, "d", 9, b"u" * 16, "host:2", 3), facts.Opened())
    cursors = made.logs[1].cursors
    assert [(c.epoch, c.committed, c.held) for c in cursors.values()] == [
        (1, 0, False),
        (9, 3, False),
    ]


@pytest.mark.parametrize("keep", [True, False])
def test_a_seek_moves_the_cursor_under_a_new_epoch(keep: bool) -> None:
    made = with_log(CLAIM, facts.Sought(1, "c", 2, 7, keep))
    cursor = made.logs[1].cursors["c"]
    assert (cursor.committed, cursor.epoch, cursor.holder is not None) == (7, 2, keep)


def test_a_seek_makes_a_cursor_that_is_not_there() -> None:
    made = with_log(facts.Sought(1, "new", 1, 7, False))
    assert made.logs[1].cursors["new"] == state.Cursor(7, 1, None)


def test_a_forgotten_cursor_is_gone() -> None:
    assert with_log(CLAIM, facts.Forgotten(1, "c")).logs[1].cursors == {}


def test_an_id_is_never_used_again() -> None:
    made = with_log(facts.Created(2, "b", OPTIONS), facts.Deleted(2))
    assert made.next_log == 3
    assert made.by_name("b") is None
    again = state.load(state.dump(made))
    assert again.next_log == 3


def test_altered_options_hold_from_then_on() -> None:
    made = with_log(appended(1, 0, 300), facts.Altered(1, facts.Options("never", 200)))
    assert places(made, appended(1, 1, 100)) == [Place(1, 1, 0, True)]
    assert made.logs[1].options.sync == "never"


def test_two_logs_do_not_share_anything() -> None:
    made = with_log(facts.Created(2, "b", OPTIONS), CLAIM, appended(1, 0, 100))
    assert (made.logs[2].end, made.logs[2].segments, made.logs[2].cursors) == (0, [], {})
    assert State().logs == {}, "no default is shared"


def test_a_dumped_state_is_loaded_as_it_was() -> None:
    made = with_log(CLAIM, appended(1, 0, 300), appended(1, 1, 300), facts.Trimmed(1, 1))
    again = state.load(state.dump(made))
    assert again == made
    assert again.segments() == {(1, 1, 0)}
    again.apply(appended(1, 2, 100), 5)
    assert again != made, "a copy shares nothing"


@pytest.mark.parametrize("raw", [b"", b"\x92", b"\x90\x90", b"\x92\x80\xa1x"])
def test_what_is_no_state_is_not_loaded(raw: bytes) -> None:
    with pytest.raises(msgspec.MsgspecError):
        state.load(raw)


# --- what recognises a repetition ---------------------------------------------------------------


def sent(
    log: int, base: int, sequence: int, count: int, *, producer: int = 7, epoch: int = 0
) -> facts.Appended:
    made = batch.encode([b"x"] * count, producer=producer, sequence=sequence, epoch=epoch)
    return facts.Appended(batch.stamp(made, log, base, 1000 + base))


def test_a_producers_batches_are_known_by_their_sequences() -> None:
    made = with_log(sent(1, 0, 0, 3), sent(1, 3, 5, 4, epoch=2), sent(1, 7, 9, 1, producer=8))
    first, second = Sent(0, 3, 0, 1000, 0), Sent(5, 4, 3, 1003, 2)
    producer = made.logs[1].producers[7]
    assert producer == Producer(None, 0, 8, [first, second])
    assert [producer.original(sequence, 1) for sequence in range(-1, 10)] == [
        *(None, first, first, first, None, None),
        *(second, second, second, second, None),
    ]
    assert [producer.original(0, 3), producer.original(5, 4)] == [first, second]
    assert [producer.original(0, 4), producer.original(4, 5)] == [None, None]
    assert made.logs[1].producers[8].last == 9
    assert with_log(appended(1, 0, 100)).logs[1].producers == {}, "nobody's batch"


def test_of_a_retry_in_other_batches_it_is_known_which_parts_were_accepted() -> None:
    producer = with_log(sent(1, 0, 0, 3), sent(1, 10 - 7, 5, 4)).logs[1].producers[7]
    assert producer.parts(0, 9) == [(0, 3, 0, 1000), (5, 4, 3, 1003)]
    assert producer.parts(2, 4) == [(0, 1, 2, 1000), (3, 1, 3, 1003)]
    assert producer.parts(7, 1) == [(0, 1, 5, 1003)]
    assert producer.parts(3, 2) == []
    assert producer.parts(9, 5) == []


def test_so_many_batches_of_a_producer_are_known_and_no_more() -> None:
    made = with_log(*(sent(1, n, n, 1) for n in range(SENT_MAX + 3)))
    producer = made.logs[1].producers[7]
    assert [each.sequence for each in producer.sent] == list(range(3, SENT_MAX + 3))


def test_a_named_producer_keeps_its_sequence_under_every_new_epoch() -> None:
    made = with_log(
        facts.Named(1, 7, "etl", 1, False), sent(1, 0, 0, 3), facts.Named(1, 7, "etl", 2, True)
    )
    log = made.logs[1]
    assert log.producers == {7: Producer("etl", 2, 2, [Sent(0, 3, 0, 1000)], True)}
    assert log.producer_named("etl") == (7, log.producers[7])
    assert log.producer_named("other") is None


def test_producers_that_are_dropped_are_gone() -> None:
    made = with_log(sent(1, 0, 0, 1), sent(1, 1, 0, 1, producer=8), facts.Dropped(1, [7, 9]))
    assert list(made.logs[1].producers) == [8]


def test_a_transaction_is_known_by_its_number() -> None:
    made = with_log(
        facts.Transacted(3, 20, [(1, 0, 2)]),
        facts.Transacted(3, 10, []),
        facts.Transacted(4, 1, []),
    )
    client = made.clients[3]
    assert [each.number for each in client.done] == [10, 20], "in the order of their numbers"
    assert client.find(20) == state.Transaction(20, 5, [(1, 0, 2)])
    assert [client.find(number) for number in (9, 15, 21)] == [None] * 3
    made.apply(facts.Transacted(4, 2, [], [3, 9]), 5)
    assert list(made.clients) == [4]


def test_so_many_transactions_of_a_client_are_known_and_older_ones_may_have_been_done() -> None:
    made = with_log(*(facts.Transacted(3, number, []) for number in range(10, 10 + SENT_MAX - 1)))
    client = made.clients[3]
    assert not client.forgot(9)
    for number in (80, 81):
        made.apply(facts.Transacted(3, number, []), 5)
    assert (len(client.done), client.done[0].number) == (SENT_MAX, 11)
    assert [client.forgot(number) for number in (10, 11)] == [True, False]


# --- ages ---------------------------------------------------------------------------------------


def test_a_segment_rolls_by_age_so_that_what_is_old_can_go() -> None:
    aged = facts.Options(None, ROLL, max_file_age=4.0)  # rolls after a quarter of that
    made = with_log(facts.Altered(1, aged))
    first = appended(1, 0, 100, time_ns=10**9)
    assert places(made, first, appended(1, 1, 100, time_ns=2 * 10**9)) == [
        Place(1, 0, 0, True),
        Place(1, 0, 100, False),
    ]
    late = appended(1, 2, 100, time_ns=2 * 10**9 + 1)
    assert places(made, late) == [Place(1, 2, 0, True)]
    assert made.logs[1].begun_ns == 2 * 10**9 + 1


@pytest.mark.parametrize(
    ("total", "roll"),
    [(None, 1 << 20), (1 << 30, 1 << 20), (1 << 20, 1 << 18), (100, 4096), (4 * 4097, 4097)],
)
def test_a_segment_is_a_part_of_what_a_log_may_hold(total: int | None, roll: int) -> None:
    made = with_log(facts.Altered(1, facts.Options(None, 1 << 20, max_total_bytes=total)))
    assert made.logs[1].roll_bytes == roll


def test_what_was_appended_under_doubt_counts_as_appended_when_that_ended() -> None:
    made = with_log(appended(1, 0, 300, time_ns=10), appended(1, 1, 300, time_ns=20))
    made.apply(facts.Doubted(), 30)
    assert made.doubted == {1: 2}
    made.apply(facts.Created(2, "young", OPTIONS), 30)
    for fact in (appended(1, 2, 300, time_ns=9999), appended(2, 0, 300, time_ns=1)):
        made.apply(fact, 30)
    made.apply(facts.Trusted("boot", 7), 40)
    assert (made.boot, made.difference_ns) == ("boot", 7)
    assert not made.doubted
    old, young = made.logs[1], made.logs[2]
    assert [segment.time_max_ns for segment in old.segments] == [10, 20, 40]
    assert (old.time_max_ns, old.begun_ns) == (40, 40)
    assert [segment.time_max_ns for segment in young.segments] == [40]


def test_trust_without_doubt_dates_nothing() -> None:
    made = with_log(appended(1, 0, 300, time_ns=10), facts.Trusted("boot", 7))
    assert (made.logs[1].time_max_ns, made.logs[1].begun_ns) == (10, 10)


def test_opened_tells_the_boot() -> None:
    made = with_log(facts.Opened("boot", 9))
    assert (made.boot, made.difference_ns) == ("boot", 9)


# --- keys and compaction ------------------------------------------------------------------------


def keyed(base: int, *keys: bytes | None, size: int = 10) -> facts.Appended:
    made = batch.encode([bytes(size)] * len(keys), list(keys))
    header = batch.parse_header(made)
    column = bytes(made[HEADER_BYTES + 1 :][: header.keys_bytes])
    return facts.Appended(batch.stamp(made, 1, base, 1000 + base), column)


def test_of_each_key_the_last_record_is_known_and_what_it_superseded_is_counted() -> None:
    made = with_log(
        keyed(0, b"a", b"b", b"a", size=100),
        keyed(3, b"b", None, size=200),
        keyed(5, b"b", b"c", size=200),
    )
    log = made.logs[1]
    assert dict(log.keys.items()) == {b"a": 2, b"b": 5, b"c": 6}
    assert [(segment.base, segment.stale) for segment in log.segments] == [(0, 2), (3, 1), (5, 0)]
    made.apply(facts.Trimmed(1, 3), 5)
    assert dict(log.keys.items()) == {b"b": 5, b"c": 6}
    # A batch without keys, of a log that has an index.
    made.apply(facts.Appended(keyed(7, None).header, b"\xc0"), 5)
    assert log.end == 8


def test_a_superseded_record_in_the_segment_being_written_is_counted_there() -> None:
    made = with_log(keyed(0, b"a"), keyed(1, b"a"), keyed(2, b"b"))
    assert [segment.stale for segment in made.logs[1].segments] == [1]


def test_compacted_segments_are_one_and_the_others_stay() -> None:
    made = with_log(*(keyed(n, b"k", size=150 + n % 2) for n in range(6)))
    log = made.logs[1]
    walked = log.segments
    assert [(segment.base, segment.stale) for segment in walked] == [(0, 2), (2, 2), (4, 1)]
    made.apply(facts.Compacted(1, 0, 4, 1, 500, 3, 3), 5)
    new, last = log.segments
    assert new == state.Segment(0, 500, 1003, 1, 3, 1)
    assert last is walked[2]
    assert len(walked) == 3, "a reader may be walking it"
    assert made.segments() == {(1, 0, 1), (1, 4, 0)}
    # More were looked for than were counted: those of a time before they were counted.
    made.apply(facts.Compacted(1, 0, 4, 2, 400, 4, 9), 5)
    assert log.segments[0].stale == 0
    assert log.segments[0].generation == 2


def test_compacted_is_also_a_segment_of_one_record() -> None:
    made = with_log(*(keyed(n, b"k", size=300) for n in range(4)))
    made.apply(facts.Compacted(1, 1, 3, 1, 500, 1, 2), 5)
    segments = made.logs[1].segments
    assert [(each.base, each.generation) for each in segments] == [(0, 0), (1, 1), (3, 0)]


@pytest.mark.parametrize(("base", "end"), [(1, 4), (0, 3)])
def test_only_whole_segments_are_compacted(base: int, end: int) -> None:
    made = with_log(*(keyed(n, b"k", size=150) for n in range(6)))
    with pytest.raises(AssertionError):
        made.apply(facts.Compacted(1, base, end, 1, 500, 3, 3), 5)


# --- ends ---------------------------------------------------------------------------------------


def test_a_log_is_found_by_its_name() -> None:
    made = with_log(facts.Created(2, "b", OPTIONS))
    assert (made.by_name("b"), made.by_name("orders")) == (made.logs[2], made.logs[1])


def test_offsets_are_dense() -> None:
    with pytest.raises(AssertionError, match="dense"):
        with_log(appended(1, 1, 100))


def test_a_verdict_of_another_kind_of_consumer_is_no_fact_of_this_one() -> None:
    joined = facts.Joined(1, "s", 1, b"t", "host:1", 10)
    for wrong in (facts.Committed(1, "s", 1, 12), facts.Took(1, "s", 1, 9)):
        with pytest.raises(AssertionError, match="not of a shared consumer"):
            with_log(joined, wrong)
    with pytest.raises(AssertionError, match="of a shared consumer"):
        with_log(CLAIM, facts.Completed(1, "c", 1, [0, 1], []))


# --- milestones -----------------------------------------------------------------------------------


def milestones_of(made: State) -> list[list[tuple[int, int, int]]]:
    """Of each segment."""
    return [
        [(each.offset, each.position, each.time_max_ns) for each in all_of(segment.milestones)]
        for segment in made.logs[1].segments
    ]


def all_of(milestones: bytes) -> list[Milestone]:
    numbers = struct.unpack(f"<{len(milestones) // 8}Q", milestones)
    return [Milestone(*numbers[at : at + 3]) for at in range(0, len(numbers), 3)]


def test_milestones_are_noted_as_batches_are_appended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index, "MILESTONE_SPACING", 200)
    # A clock that is set back, and a roll.
    times = [1000, 9000, 3000, 2000, 5000, 1000, 1000, 4000]
    appends = [appended(1, base, 100, time_ns=time_ns) for base, time_ns in enumerate(times)]
    made = with_log()
    places(made, *appends)
    assert milestones_of(made) == [[(2, 200, 9000), (4, 400, 9000)], [(7, 200, 1000)]]
    again = state.load(state.dump(made))
    assert milestones_of(again) == milestones_of(made)
    more = [appended(1, base, 100, time_ns=500) for base in (8, 9)]
    for each in (made, again):
        places(each, *more)
    assert milestones_of(again) == milestones_of(made)
    assert milestones_of(made)[1] == [(7, 200, 1000), (9, 400, 4000)]


def test_what_a_segment_of_before_milestones_says_of_times_is_not_known(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(index, "MILESTONE_SPACING", 100)
    made = with_log()
    places(made, *[appended(1, base, 100, time_ns=1000) for base in range(3)])
    raw = msgspec.msgpack.decode(state.dump(made))

    def shortened(value: Any) -> Any:
        """As it was written when there was neither ``milestones`` nor ``newest_ns``."""
        if isinstance(value, dict):
            return {key: shortened(each) for key, each in value.items()}
        if not isinstance(value, list):
            return value
        if value[:1] == [0] and value[1:3] == [300, 1000]:
            return value[:6]
        if value[:2] == [1, "orders"]:
            return [shortened(each) for each in value[:12]]
        return [shortened(each) for each in value]

    old = state.load(msgspec.msgpack.encode(shortened(raw)))
    assert milestones_of(old) == [[]]
    assert old.logs[1].newest_ns == index.UNKNOWN_NS
    places(old, *[appended(1, base, 100, time_ns=1000) for base in (3, 4, 5, 6)])
    # Where the batches lie is known, and of times nothing before the next segment.
    assert milestones_of(old) == [
        [(3, 300, index.UNKNOWN_NS), (4, 400, index.UNKNOWN_NS)],
        [(6, 100, 1000)],
    ]

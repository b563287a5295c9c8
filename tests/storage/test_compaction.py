"""Compaction: what goes is what a later record of its key supersedes, and nothing else, ever."""

from __future__ import annotations

import errno
import random
from itertools import accumulate
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import msgspec
import pytest

from rlog import compaction, facts, state
from rlog.compaction import Compactor, due
from rlog.decisions import protected_end
from rlog.keys import Keys
from rlog.log import Chunk
from rlog.segment import parse_name, path
from rlog.shared import Member, Shared
from rlog.subscription import Subscription
from rlog.tables import Tables
from rlog_client import batch, protocol
from rlog_client.batch import HEADER_BYTES, decode, hole, parse_header, thinned
from rlog_client.errors import InvalidRequest
from tests.storage.build import flip
from tests.storage.explore import Payloads, live
from tests.storage.history import ABSENT, History
from tests.storage.outlet import Outlet
from tests.storage.server import ROLL, Server
from tests.storage.simdisk import Choice, Fill, SimDisk, choices
from tests.storage.workloads import compacting

if TYPE_CHECKING:
    from collections.abc import Sequence

KEYED: dict[str, Any] = {"file_roll_size": ROLL, "key_index": True, "compact": True}


class Twins:
    """A log that is compacted, and one that is not, with the same records."""

    def __init__(self, seed: int = 1, sync: str = "always", file_bytes: int = 16 * 4096) -> None:
        self.disk = SimDisk()
        self.server = Server(self.disk, file_bytes=file_bytes)
        self.server.create("a", sync=sync, **KEYED)
        self.server.create("b", **{**KEYED, "compact": False})
        self.payload = Payloads(random.Random(seed), 0)
        self.keys: dict[bytes, bytes] = {}

    def put(self, *keys: bytes | None, size: int = 100) -> None:
        payloads = [self.payload(size) for _ in keys]
        for payload, key in zip(payloads, keys, strict=True):
            if key is not None:
                self.keys[payload] = key
        self.server.batch("a", *payloads, keys=keys)
        twins = [b"%s b" % payload for payload in payloads]
        self.server.batch("b", *twins, keys=keys)

    @property
    def log(self) -> state.Log:
        return self.server.driver.broker.books.state.logs[self.server.ids["a"]]

    def records(self, name: str) -> dict[int, bytes | None]:
        view = self.server.view().logs[name]
        return {o: r for o, r in enumerate(view.records, view.first) if r != ABSENT}

    def latest(self, name: str) -> dict[bytes, int]:
        found = {}
        for offset, payload in self.records(name).items():
            assert payload is not None, f"{name}/{offset} cannot be read"
            if (key := self.keys.get(payload.removesuffix(b" b"))) is not None:
                found[key] = offset
        return found

    def check(self) -> None:
        """They tell the same of every key, and nothing that has none is missing."""
        ours, theirs = self.records("a"), self.records("b")
        first = self.log.first
        for offset, payload in theirs.items():
            plain = cast("bytes", payload).removesuffix(b" b")
            if offset >= first and (plain not in self.keys or offset in ours):
                assert ours[offset] == plain, offset
        assert ours.keys() <= theirs.keys()
        latest = {key: at for key, at in self.latest("b").items() if at >= first}
        assert self.latest("a") == latest
        assert dict(self.log.keys.items()) == latest
        books = self.server.driver.broker.books
        named = {path(*each) for each in books.state.segments()}
        there = {name for name in self.disk.paths() if name.startswith("logs/")}
        assert there == named or (there > named and books.outdated)

    def restart(self, disk: SimDisk) -> None:
        self.disk = disk
        self.server = Server(disk, self.server.history, file_bytes=16 * 4096)


def test_superseded_records_go_and_all_others_stay() -> None:
    twins = Twins()
    twins.put(b"a", b"b", None, b"c", size=900)
    twins.put(b"a", b"b", b"b", size=900)
    twins.put(b"d", size=1500)
    assert twins.server.compact() == 1
    assert sorted(twins.records("a")) == [2, 3, 4, 5, 6, 7]  # the next one is not half stale
    twins.check()
    [first, *_] = twins.log.segments
    assert (first.generation, first.absent, first.stale) == (1, 2, 0)
    names = [name for name in twins.disk.paths() if name.startswith("logs/1/")]
    assert names[0] == path(1, 0, 1)
    assert twins.disk.contents(names[0])[:3] == b"RLB"


@pytest.mark.parametrize("seed", range(12))
def test_whatever_happens_the_twins_tell_the_same_of_every_key(seed: int) -> None:
    rng = random.Random(seed)
    twins = Twins(seed)
    jobs = 0

    def append() -> None:
        count = rng.choice((1, 2, 5, 20))
        keys = [rng.choice((None, *(b"%d" % n for n in range(8)))) for _ in range(count)]
        twins.put(*keys, size=rng.choice((8, 60, 300, 900)))

    def trim() -> None:
        before = rng.randrange(twins.log.first, twins.log.end + 1)
        twins.server.trim("a", before)

    def append_some() -> None:
        for _ in range(3):
            append()

    def sometimes(*actions: Any) -> Any:
        return lambda: rng.choice(actions)()

    for _ in range(120):
        match rng.randrange(12):
            case 0:
                jobs += twins.server.compact(sometimes(append, trim, lambda: None))
            case 1:
                jobs += twins.server.compact(append_some)
            case 2:
                twins.server.checkpoint()
            case 3 if rng.random() < 0.3:
                trim()
            case 4:
                twins.restart(twins.disk.killed())
            case 5:
                twins.restart(twins.disk.crash(Choice(0, Fill.OLD, 1)))
            case _:
                append()
        twins.check()
    assert jobs > 5


def test_at_every_crash_just_the_files_are_left_that_the_state_names() -> None:
    cuts, _ = live(SimDisk(), History(), compacting, 1)
    tried = 0
    for cut in cuts:
        ways = [("killed", cut.disk.killed())]
        ways += [(str(c), cut.disk.crash(c)) for c in choices(cut.disk, 6, cut.operation, 1)]
        for way, left in ways:
            server = Server(left)
            named = {path(*each) for each in server.driver.broker.books.state.segments()}
            there = {name for name in left.paths() if name.startswith("logs/")}
            assert there == named, (cut.operation, way)
            # (Under ``never``, segments may come through without the frames that explain them.)
            aside = [name for name in left.names("quarantine") if "-logs-1-" in name]
            assert not aside, (cut.operation, way)
            tried += 1
    assert tried > 1000


def test_with_the_newest_checkpoint_lost_bodies_of_an_old_generation_are_not_laid_out_again() -> (
    None
):
    twins = Twins()
    twins.put(b"a", b"b", size=900)
    twins.server.checkpoint()
    twins.put(b"a", b"b", size=900)
    twins.put(b"a", b"b", size=900)
    twins.server.checkpoint()
    twins.put(b"a", b"c", size=900)
    assert twins.server.compact() == 1
    twins.server.checkpoint()
    twins.put(b"a", size=900)
    left = twins.disk.crash(Choice(0, Fill.OLD, 1))
    left.replace(max(n for n in left.names("") if n.startswith("checkpoint-")), b"rot" * 10)
    before = twins.records("a")
    twins.restart(left)
    assert twins.records("a") == before
    twins.check()


def test_damage_stays_damage_and_is_never_taken_for_absent() -> None:
    """Every third byte of a segment, and its length: the same records are lost before and after."""
    twins = Twins()
    twins.put(b"a", b"b", None, size=300)
    twins.put(b"a", None, b"c", size=300)
    twins.put(b"b", b"a", None, size=300)
    twins.put(b"a", b"b", b"c", size=800)
    twins.put(b"d", size=3000)
    name = path(1, 0)
    disk = twins.disk.crash(Choice((1 << 64) - 1, Fill.OLD, 1))
    whole = disk.contents(name)
    changes = [flip(whole, position, position % 8) for position in range(0, len(whole), 3)]
    changes += [whole[:cut] + bytes(len(whole) - cut) for cut in range(0, len(whole), 97)]
    for changed in changes:
        left = disk.copy()
        server = Server(left, file_bytes=16 * 4096)
        left.replace(name, changed)
        server.driver.broker.books.handles.drop(1, 0, 0)
        before = server.view().logs["a"].records
        assert server.compact() == 1
        after = server.view().logs["a"].records
        for offset, (old, new) in enumerate(zip(before, after, strict=True)):
            assert new == old or (new == ABSENT and old is not None), offset
        lost = [offset for offset, record in enumerate(before) if record is None]
        assert lost == [offset for offset, record in enumerate(after) if record is None]


def test_a_file_that_is_lost_or_short_is_still_missed_afterwards() -> None:
    for length in (0, 100, 1000):
        twins = Twins()
        twins.put(b"a", b"b", size=500)
        twins.put(b"a", b"b", size=500)
        twins.put(b"c", size=3500)
        twins.disk.replace(path(1, 0), twins.disk.contents(path(1, 0))[:length])
        before = twins.server.view().logs["a"].records
        twins.server.compact()
        after = twins.server.view().logs["a"].records
        assert [r is None for r in before] == [r is None for r in after]
        assert before.count(None) >= 2


def test_a_segment_that_cannot_be_read_does_not_stand_in_the_way_of_others() -> None:
    twins = Twins()
    for _ in range(6):
        twins.put(b"a", b"b", size=1700)
    twins.disk.unlink(path(1, 0))
    twins.server.driver.broker.books.handles.drop(1, 0, 0)
    assert twins.server.compact() == 2, "the first one was given up"
    assert [s.generation for s in twins.log.segments] == [0, 1, 0]
    assert twins.server.failed is None


def test_on_a_full_disk_nothing_is_compacted_and_nothing_fails() -> None:
    twins = Twins()
    twins.put(b"a", b"b", size=1700)
    twins.put(b"a", b"b", size=1700)
    before = twins.disk.paths()
    for free in (0, 0):
        twins.disk.free = free
        assert twins.server.compact() <= 1
        assert twins.server.failed is None
        assert twins.disk.paths() == before
        twins.check()
        twins.server.clock.now += compaction.AGAIN_SECONDS
    twins.disk.free = 100
    assert twins.server.compact() == 1
    assert sorted(twins.records("a")) == [2, 3]


@pytest.mark.parametrize("kind", ["read", "open", "create", "allocate", "write"])
def test_a_disk_that_fails_under_a_job_ends_the_job_alone(kind: str) -> None:
    twins = Twins()
    twins.put(b"a", b"b", size=1700)
    twins.put(b"a", b"b", size=1700)
    twins.server.driver.broker.books.handles.drop(1, 0, 0)
    twins.disk.fail(kind, twins.disk.calls[kind] + 1)
    twins.server.compact()
    assert twins.disk.failed == [kind]
    assert twins.server.failed is None
    twins.check()
    twins.server.clock.now += compaction.AGAIN_SECONDS
    assert twins.server.compact() == 1
    twins.check()


@pytest.mark.parametrize("kind", ["sync", "sync_directory"])
def test_a_failed_sync_of_a_rewritten_segment_is_final(kind: str) -> None:
    twins = Twins()
    twins.put(b"a", b"b", size=1700)
    twins.put(b"a", b"b", size=1700)
    twins.disk.fail(kind, twins.disk.calls[kind] + 1, errno.EIO)
    twins.server.compact()
    assert twins.server.failed is not None
    assert sorted(twins.records("a")) == [0, 1, 2, 3]


def test_parked_records_and_those_in_hand_stay() -> None:
    twins = Twins()
    twins.put(b"a", b"a", b"a", b"a", b"a", b"a", size=600)
    twins.put(b"a", b"b", size=1500)
    twins.server.claim("a", "c")
    cursor = twins.log.cursors["c"]
    cursor.parked[1] = state.Parked("", "", 1, 0)
    cursor.committed, cursor.begun = 3, 5
    twins.server.compact()
    assert sorted(twins.records("a")) == [1, 3, 4, 6, 7]


def test_what_members_have_in_hand_since_before_a_start_stays() -> None:
    twins = Twins()
    twins.put(b"a", b"a", b"a", b"a", b"a", b"a", size=600)
    twins.put(b"a", b"b", size=1500)
    member = Member(b"token", "m", 0, begun=[1, 4])
    twins.log.cursors["s"] = state.Cursor(0, 1, shared=Shared(members={1: member}))
    twins.server.compact()
    assert sorted(twins.records("a")) == [1, 4, 6, 7]


def test_what_was_sent_to_a_consumer_and_may_still_be_parked_stays() -> None:
    twins = Twins()
    twins.put(b"a", b"a", b"a", b"a", b"a", b"a", size=600)
    twins.put(b"a", b"b", size=1500)
    twins.server.claim("a", "c")
    grant = twins.server.peer.grants[1, "c"]
    grant.delivered = 2
    twins.server.compact()
    assert sorted(twins.records("a")) == [0, 1, 6, 7]
    # And what comes to be sent while it is compacted: of the old file, perhaps.
    twins.put(b"b", b"b", b"b", b"b", size=1500)

    def send() -> None:
        grant.delivered = 8

    assert twins.server.compact(send) == 1
    assert sorted(twins.records("a"))[:4] == [0, 1, 6, 7]


def test_what_is_parked_while_it_is_compacted_stays() -> None:
    twins = Twins()
    twins.put(b"a", b"a", b"a", size=1200)
    twins.put(b"a", b"b", size=1500)
    twins.server.claim("a", "c")

    def park() -> None:
        twins.log.cursors["c"].parked[1] = state.Parked("", "", 1, 0)

    assert twins.server.compact(park) == 2, "the first one was given up"
    assert sorted(twins.records("a")) == [1, 3, 4]


def test_nothing_is_compacted_that_a_protected_consumer_has_not_read() -> None:
    log = state.Log(1, "a", facts.Options(), end=9)
    log.cursors = {"c": state.Cursor(4, 1), "d": state.Cursor(6, 1)}
    with_options = cast("Any", log)
    for names, end in (([], 9), (["c"], 4), (["d", "c"], 4), (["d"], 6), (["d", "new"], 0)):
        with_options.options = SimpleNamespace(protected=names)
        assert protected_end(log) == end


def test_what_a_protected_consumer_goes_back_to_while_it_is_compacted_stays() -> None:
    twins = Twins()
    twins.put(b"a", b"a", b"a", size=1200)
    twins.put(b"a", b"b", size=1500)
    twins.server.claim("a", "c")
    cursor = twins.log.cursors["c"]
    cursor.committed = twins.log.end
    log, protected = twins.server.ids["a"], {"protected": ["c"]}
    twins.server.call(protocol.AlterLog(log, protected))

    def go_back() -> None:
        cursor.committed = 1

    assert twins.server.compact(go_back) == 1
    assert sorted(twins.records("a")) == [0, 1, 2, 3, 4]


def test_what_was_compacted_goes_behind_a_frame_that_is_synced_and_no_other() -> None:
    """Until then the fact may count as torn, and it is the old files that are named."""
    twins = Twins()
    twins.server.create("c", sync="never")
    gone: list[str] = []
    twins.server.driver.broker.books.outdated.append(lambda: gone.append("the old file"))
    twins.server.batch("c", twins.payload(10))
    assert not gone
    twins.put(b"a")
    assert gone == ["the old file"]


def test_a_table_is_for_its_owner_alone_and_of_its_log() -> None:
    tables, owner = Tables(), object()
    table = tables.begin(owner, 1, 5)
    assert tables.get(owner, 1, table.number) is table
    assert tables.get(object(), 1, table.number) is None
    assert tables.get(owner, 2, table.number) is None
    tables.end(object(), table.number)
    assert tables.get(owner, 1, table.number) is table
    tables.end(owner, table.number)
    assert tables.get(owner, 1, table.number) is None


def test_the_active_segment_and_what_is_not_synced_are_let_be() -> None:
    twins = Twins(sync="periodic:100s")
    for _ in range(4):
        twins.put(b"a", b"a", size=1700)
    books = twins.server.driver.broker.books
    # (The twin is synced at once, and all before it.)
    twins.server.batch("a", twins.payload(1700), keys=[b"x"])
    assert books.synced_end[1] < twins.log.end
    twins.server.compact()
    assert twins.log.segments[-1].generation == 0
    assert sorted(twins.records("a"))[-1] >= 7


def test_nothing_is_absent_before_what_superseded_it_can_be_seen() -> None:
    twins = Twins(sync="periodic:100s")
    twins.put(b"a", b"b", size=1700)
    twins.put(b"c", size=1700)
    twins.server.checkpoint()
    server, driver = twins.server, twins.server.driver
    server.batch("a", twins.payload(50), twins.payload(50), keys=[b"a", b"b"])
    server.clock.now += 1
    books = driver.broker.books
    assert books.visible[1].end == 3
    assert driver.compactor.due()
    while driver.compactor.work() is False:
        pass
    driver.compacted(True)
    seen: list[Sequence[bytes | None]] = []
    while (flight := driver.begin()) is not None:
        seen.append(server.view().logs["a"].records)
        driver.finish(flight, driver.journal.wait(flight.number))
        seen.append(server.view().logs["a"].records)
    for records in seen:
        assert ABSENT not in records or len(records) == 5
    assert ABSENT in seen[-1]


def offsets_in(data: bytes, begin: int) -> list[int]:
    found: list[int] = []
    position = 0
    while position < len(data):
        header = parse_header(data, position)
        body = data[position + HEADER_BYTES : position + header.bytes]
        found += [o for o in decode(header, body).offsets(header) if o >= begin]
        begin, position = header.end, position + header.bytes
    return found


@pytest.mark.parametrize("way", ["open", "by name"])
def test_a_slow_reader_goes_on_when_its_file_is_replaced(way: str) -> None:
    """After each of its reads, and between a read's beginning and its end, all is compacted."""
    gone = 0
    for step in range(12):
        twins = Twins()
        for _ in range(6):
            twins.put(b"a", b"b", None, b"c", size=300)
        books = twins.server.driver.broker.books
        outlet = Outlet()
        reader = Subscription(outlet, books, 1, 1, "a", 0)
        steps = 0
        while reader.offset < twins.log.end:
            reader.lend(1, protocol.Credit(1, 1))
            read = reader.next_read()
            assert read is not None
            if steps == step:
                file = books.files[1].file(read.extent)
                assert twins.server.compact() > 0
                if way == "open":  # as whoever is in the middle of a read has it
                    name = (1, read.extent.base, read.extent.generation)
                    books.handles._open[name] = file
            try:
                found = read.run(wait=True)
            except OSError as error:
                gone += error.errno == errno.ENOENT
                reader.deliver(read, error)
            else:
                assert isinstance(found, Chunk)
                reader.deliver(read, found)
            steps += 1
        assert not [c for c in outlet.told if isinstance(c, protocol.Damaged | protocol.Error)]
        seen = offsets_in(outlet.data, 0)
        assert seen == sorted(set(seen))
        assert set(seen) >= set(twins.records("a"))
    assert bool(gone) is (way == "by name")


def test_a_table_keeps_its_records_for_as_long_as_it_is_read() -> None:
    twins = Twins()
    server = twins.server
    twins.put(b"a", b"b", b"c", size=1200)
    twins.put(b"d", size=3000)
    answers = []
    for _ in range(2):
        request = server.ask(protocol.GetTable(1))
        server.pump()
        answer = server.peer.answers[request]
        assert isinstance(answer, protocol.TablePage)
        assert (answer.end, answer.pages) == (4, 1)
        answers.append(answer)
    twins.put(b"a", b"b", b"c", b"d", size=900)
    twins.put(b"e", size=3000)
    server.compact()
    assert sorted(twins.records("a")) == list(range(9))
    for answer in answers:
        server.call(protocol.GetTable(1, answer.table, None))
    assert server.compact() == 0, "it is not looked at again and again"
    server.clock.now += compaction.AGAIN_SECONDS
    assert server.compact() == 1
    twins.check()
    assert not set(twins.records("a")) & {0, 1, 2, 3}


def test_no_job_begins_while_a_table_is_being_packed() -> None:
    twins = Twins()
    twins.put(b"a", b"a", size=1700)
    twins.put(b"b", size=3000)
    books, compactor = twins.server.driver.broker.books, twins.server.driver.compactor
    table = books.tables.begin(object(), twins.log.id, twins.log.end)
    twins.server.clock.now += compaction.LOOK_SECONDS
    assert not compactor.due()
    table.pack(twins.log.keys, len(twins.log.keys))
    twins.server.clock.now += compaction.LOOK_SECONDS
    assert compactor.due()


def test_a_table_that_is_asked_for_while_a_job_runs_misses_nothing() -> None:
    twins = Twins()
    server = twins.server
    twins.put(b"a", b"b", b"a", b"c", size=900)
    twins.put(b"d", b"c", b"a", size=1200)
    latest: list[dict[bytes, int]] = []

    def table() -> None:
        latest.append(dict(twins.log.keys.items()))
        assert isinstance(server.call(protocol.GetTable(1)), protocol.TablePage)
        twins.put(b"b", b"a", b"c", b"d", size=900)  # all of it is superseded at once

    compactor = server.driver.compactor
    server.clock.now += 1
    assert compactor.due()
    table()  # before the job has looked at anything
    while compactor.work() is False:
        pass
    server.driver.compacted(True)
    server.pump()
    assert twins.log.segments[0].generation == 1
    assert set(latest[0].values()) <= set(twins.records("a"))


@pytest.mark.parametrize("seed", range(20))
def test_a_table_is_of_one_moment_whatever_is_appended_while_it_is_made(seed: int) -> None:
    """Appends get in between any two parts of the index that are looked at."""
    rng = random.Random(seed)
    end = 0

    def put(displaced: set[int] | None) -> None:
        nonlocal end
        key = b"%d" % rng.randrange(60_000)
        if displaced is not None and (older := keys.get(key)) >= 0:
            displaced.add(older)
        keys.put(key, end)
        end += rng.choice((1, 1, 5, 100_000))

    class Looked(Keys):
        def offsets(self, begin: int, behind: int) -> Any:
            found = super().offsets(begin, behind)
            for _ in range(rng.randrange(500)):
                put(table.displaced)
            return found

    keys = Looked()
    for _ in range(rng.randrange(50_000)):
        put(None)
    expected = sorted(offset for _, offset in keys.items())
    table = Tables().begin(None, 1, end)
    pages = table.pack(keys, len(keys))
    offsets = [o for page in pages for o in accumulate(msgspec.msgpack.decode(page))]
    assert offsets == expected
    begin, behind = sorted((rng.randrange(end + 1), rng.randrange(end + 1)))
    between = [offset for some in table.between(begin, behind) for offset in some]
    assert between == [offset for offset in expected if begin <= offset < behind]


def test_rewriting_copies_no_more_records_than_were_superseded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def alone(log: state.Log, limit: int, free: Any = None) -> compaction.Run | None:
        """The last of them, which is due, without those that go along."""
        run = due(log, limit, free)
        return run and compaction.Run(run.behind - 1, run.behind)

    monkeypatch.setattr(compaction, "due", alone)
    rng = random.Random(3)
    twins = Twins()
    copied = superseded = 0
    for _ in range(300):
        twins.put(*(b"%d" % rng.randrange(30) for _ in range(4)), size=200)
        before = {s.base: (s.absent, s.generation) for s in twins.log.segments}
        twins.server.compact()
        for index, each in enumerate(twins.log.segments):
            absent, generation = before.get(each.base, (0, 0))
            if each.generation != generation:
                copied += twins.log.segment_end(index) - each.base - each.absent
                superseded += each.absent - absent
    assert copied <= superseded
    twins.check()


def test_small_neighbours_become_one() -> None:
    twins = Twins()
    for _ in range(200):
        twins.put(b"a", b"b", size=1700)
        twins.server.compact()
    assert len(twins.log.segments) <= 3
    assert sorted(twins.records("a"))[-2:] == [398, 399]
    twins.check()


@pytest.mark.parametrize(
    ("stale", "limit", "found"),
    [
        ((0, 0, 0), 30, None),
        ((5, 0, 0), 30, (0, 1)),
        ((4, 0, 0), 30, None),
        ((0, 5, 0), 30, (0, 2)),  # the small one before it goes along
        ((0, 5, 9), 19, None),
        ((0, 0, 9), 30, None),  # the last one is being written
        ((5, 9, 0), 30, (0, 2)),
        ((5, 9, 0), 19, (0, 1)),
        ((5, 0, 5, 0), 40, (0, 1)),
    ],
)
def test_a_segment_is_due_when_half_of_its_records_are_stale(
    stale: tuple[int, ...], limit: int, found: tuple[int, int] | None
) -> None:
    segments = [state.Segment(10 * index, 1000, 0, stale=each) for index, each in enumerate(stale)]
    log = state.Log(1, "a", facts.Options(), end=30, segments=segments)
    assert due(log, limit) == found


def test_what_is_absent_counts_no_more() -> None:
    segments = [state.Segment(0, 1000, 0, 1, absent=8, stale=1), state.Segment(10, 1000, 0)]
    log = state.Log(1, "a", facts.Options(), end=30, segments=segments)
    assert due(log, 30) == (0, 1)


def test_a_thinned_batch_covers_what_it_did_and_says_when_and_by_whom() -> None:
    raw = bytes(
        batch.encode(
            [b"0", b"1", b"2", b"3"],
            [b"k", None, b"l", b"k"],
            [None, {"h": b"v"}, None, None],
            [None, 7, None, 9],
            producer=5,
            sequence=40,
            epoch=2,
        )
    )
    raw = batch.stamp(raw, 3, 100, 77) + raw[HEADER_BYTES:]
    header = parse_header(raw)
    columns = decode(header, raw[HEADER_BYTES:])
    some = thinned(header, columns, [1, 3])
    again = parse_header(some)
    assert again.sparse
    assert (again.log, again.base, again.end, again.time_ns) == (3, 100, 104, 77)
    assert (again.producer, again.sequence, again.epoch) == (5, 40, 2)
    left = decode(again, some[HEADER_BYTES:])
    assert tuple(left) == ([None, b"k"], [b"1", b"3"], [{"h": b"v"}, None], [7, 9], [101, 103])
    once_more = thinned(again, left, [1])
    last = decode(parse_header(once_more), once_more[HEADER_BYTES:])
    assert (last.values, last.there) == ([b"3"], [103])
    none = hole(3, 100, 104, 77)
    assert parse_header(none).end == 104
    assert decode(parse_header(none), none[HEADER_BYTES:]).there == []


def test_no_producer_makes_a_sparse_batch() -> None:
    from rlog.peer import Peer

    raw = hole(0, 0, 5, 0)
    peer = cast("Any", SimpleNamespace())
    with pytest.raises(InvalidRequest, match="all its records"):
        Peer._judge(peer, memoryview(raw))


def test_names_of_segments_are_read_as_they_are_written() -> None:
    for base, generation in ((0, 0), (7, 1), (10**19, 12)):
        assert parse_name(path(1, base, generation).rpartition("/")[2]) == (base, generation)
    for name in ("1.seg", f"{7:020}.0.seg", f"{7:020}.01.seg", f"{7:020}.x.seg", f"{7:020}.1.tmp"):
        assert parse_name(name) is None


def test_a_batch_from_which_nothing_goes_keeps_its_producers_bytes() -> None:
    twins = Twins()
    twins.put(b"a", b"b", b"e", size=400)
    twins.put(b"c", None, size=400)
    twins.put(b"a", size=400)
    twins.put(b"a", b"b", b"e", size=1200)
    before = twins.disk.contents(path(1, 0))
    twins.server.compact()
    after = twins.disk.contents(path(1, 0, 1))
    header = parse_header(before)
    second = parse_header(before, header.bytes)
    kept = before[header.bytes : header.bytes + second.bytes]
    assert kept in after
    assert after.startswith(hole(1, 0, 3, header.time_ns))


def test_the_compactor_rests_in_between_and_says_when_it_goes_on() -> None:
    twins = Twins()
    compactor: Compactor = twins.server.driver.compactor
    deadlines = [compactor.deadline]
    twins.put(b"a", b"b", size=1700)
    twins.put(b"a", b"b", size=1700)
    twins.server.sleep(5.0)
    assert twins.server.driver.deadline() is None, "an idle server is not woken for nothing"
    assert compactor.due()
    compactor._took = 0.5
    assert compactor.worked(False) is None
    deadlines.append(compactor.deadline)
    assert deadlines == [None, twins.server.clock.now + 1.5]
    assert twins.server.driver.deadline() == deadlines[1]
    early = compactor.due()
    twins.server.clock.now += 1.5
    assert (early, compactor.due()) == (False, True)

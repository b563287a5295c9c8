"""A directory without a server: the same promises, from threads of one process."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import rlog
import rlog_client
from rlog import driver, embedded

from ..e2e.serving import ROOT, Server, eventually

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import FrameType

PATIENCE_SECONDS = 60.0  # only to find out that it hangs


def small(directory: str | Path, **options: Any) -> rlog.Client:
    """With journal files so small that a test fills them."""
    return rlog.open(directory, **{"journal_file_size": 256 * 1024, **options})


@pytest.fixture
def client(tmp_path: Path) -> Iterator[rlog.Client]:
    with small(tmp_path / "data") as client:
        yield client


@pytest.fixture
def log(client: rlog.Client) -> rlog.Log:
    return client.log("l", create=True)


def values(log: rlog.Log) -> list[bytes]:
    return [record.value for record in log.reader(rlog.OLDEST, block=False)]


class Beside:
    """A thread of its own; what is raised in it is raised by ``join``."""

    def __init__(self, work: Callable[[], object]) -> None:
        self._work = work
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._work()
        except BaseException as error:
            self._error = error

    def join(self) -> None:
        self._thread.join(PATIENCE_SECONDS)
        assert not self._thread.is_alive(), "it hangs"
        if self._error is not None:
            raise self._error


class Rang(Exception):
    """A signal's handler raised it."""


# --- the surface ----------------------------------------------------------------------------


def test_importing_rlog_gives_the_clients_names_and_loads_neither_trio_nor_a_broker() -> None:
    program = """
import sys, rlog, rlog_client
assert rlog.__all__ == rlog_client.__all__
assert all(getattr(rlog, name) is getattr(rlog_client, name) for name in rlog.__all__)
assert "open" in dir(rlog)
assert not {"trio", "rlog.broker", "rlog.embedded"} & set(sys.modules)
from rlog import *
assert open is __builtins__.open
try:
    rlog.no_such_name
except AttributeError as error:
    assert "no_such_name" in str(error)
"""
    subprocess.run([sys.executable, "-c", program], check=True, cwd=ROOT)


def test_an_embedded_client_never_loads_trio(tmp_path: Path) -> None:
    program = """
import sys, rlog
with rlog.open(sys.argv[1], sync="periodic:10ms") as client:
    log = client.log("l", create=True)
    with log.producer() as producer:
        producer.send(b"v")
    log.wait_synced(1, timeout=30)
    consumer = log.consumer("c", block=False)
    assert consumer.process(lambda record: None) == 1
assert "trio" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", program, str(tmp_path)], check=True, cwd=ROOT)


@pytest.mark.parametrize("kind", [str, Path])
def test_a_directory_is_made_where_there_is_none(kind: type, tmp_path: Path) -> None:
    with small(kind(tmp_path / "not" / "there")) as client:
        assert client.logs() == []
    assert (tmp_path / "not" / "there" / "journal").is_dir()


def test_what_makes_no_sense_is_refused(tmp_path: Path) -> None:
    for wrong in ({"timeout": 0.0}, {"journal_file_size": 1000}, {"journal_file_size": 1 << 40}):
        with pytest.raises(ValueError, match="not"):
            rlog.open(tmp_path / "data", **wrong)
    with pytest.raises(rlog.InvalidRequest):
        rlog.open(tmp_path / "data", sync="sometimes")
    assert not (tmp_path / "data").exists()


# --- the same promises ----------------------------------------------------------------------


def test_what_was_appended_and_committed_is_there_when_it_is_opened_again(tmp_path: Path) -> None:
    with small(tmp_path) as client:
        log = client.log("l", create=True)
        assert log.append(b"0", key=b"k", headers={"h": b"v"}) == 0
        assert log.append_many([b"1", b"2"]).level == "synced"
        with log.producer() as producer:
            producer.extend(b"%d" % n for n in range(3, 1000))
        with log.consumer("c") as consumer:
            consumer.commit(next(consumer))
            assert next(consumer).value == b"1"
    with small(tmp_path) as client:
        log = client.log("l")
        assert values(log) == [b"%d" % n for n in range(1000)]
        with log.consumer("c") as consumer:
            record = next(consumer)
            assert (record.value, record.epoch) == (b"1", 2)
        assert log.cursor("c").info().committed == 1
        first = next(iter(log.reader(rlog.time(0.0), block=False)))
        assert (first.key, first.headers) == (b"k", {"h": b"v"})


def test_much_more_than_the_buffers_take_comes_in_order(client: rlog.Client) -> None:
    limit = client.log("l", create=True)._transport.session.limits.batch_bytes_max
    log = client.log("l")
    record = bytes(limit // 4)
    for n in range(100):
        log.append_many([b"%d" % n, record, record])
    readers = [log.reader(rlog.OLDEST, block=False) for _ in range(3)]
    for each in readers:
        each.poll(1, timeout=0.0)  # all three have records under way
    for each in readers:
        assert [r.value for r in each if len(r.value) < 4] == [b"%d" % n for n in range(1, 100)]


def test_errors_are_those_of_a_server(client: rlog.Client, log: rlog.Log) -> None:
    with pytest.raises(rlog.NotFound):
        client.log("other")
    with pytest.raises(rlog.Conflict):
        log.append(b"v", expect=7)
    with log.consumer("c"), pytest.raises(rlog.Busy), client.clone() as other:
        other.log("l").consumer("c").epoch  # noqa: B018 (it claims)
    assert values(log) == []


def test_a_server_and_embedded_clients_serve_one_directory_by_turns(tmp_path: Path) -> None:
    directory = Path(tempfile.mkdtemp(prefix="rlog-"))  # so short that a socket fits
    server = Server(directory / "data")
    expected = []
    try:
        for turn in range(3):
            with small(directory / "data") as client:
                log = client.log("l", create=True)
                log.append(b"embedded %d" % turn)
                expected.append(b"embedded %d" % turn)
                assert values(log) == expected
                assert server.launch().wait(PATIENCE_SECONDS) != 0
                assert "Locked" in server.text
            server.start()
            with pytest.raises(rlog.Locked, match="in use by process"):
                rlog.open(directory / "data")
            with server.connect() as client:
                log = client.log("l")
                log.append(b"served %d" % turn)
                expected.append(b"served %d" % turn)
                assert values(log) == expected
            server.stop()
    finally:
        server.kill()
    assert "Traceback" not in server.text


# --- threads --------------------------------------------------------------------------------


def test_one_thread_waits_for_records_and_another_appends_them(
    client: rlog.Client, log: rlog.Log
) -> None:
    count = 300
    seen: list[bytes] = []

    def consume() -> None:
        with client_of_thread, client_of_thread.log("l").consumer("c") as consumer:
            for record in consumer:
                seen.append(record.value)
                consumer.commit(record)
                if len(seen) == count:
                    return

    client_of_thread = client.clone()
    thread = Beside(consume)
    for n in range(count):
        log.append(b"%d" % n)
        if n % 50 == 0:
            eventually(lambda n=n: len(seen) > n, "the record came")  # type: ignore[misc]  # bound to this turn of the loop
    thread.join()
    assert seen == [b"%d" % n for n in range(count)]
    assert log.cursor("c").info().committed == count


def test_threads_that_append_at_once_get_every_offset_once(
    client: rlog.Client, log: rlog.Log
) -> None:
    offsets: list[int] = []

    def append(mine: rlog.Client) -> None:
        with mine:
            offsets.extend(mine.log("l").append(b"v") for _ in range(200))

    clients = [client.clone() for _ in range(4)]
    threads = [Beside(lambda mine=mine: append(mine)) for mine in clients]  # type: ignore[misc]  # bound to this turn of the loop
    for thread in threads:
        thread.join()
    assert sorted(offsets) == list(range(800))
    assert log.info().end == 800


def test_nobody_starves_beside_a_thread_that_appends_all_the_time(
    client: rlog.Client, log: rlog.Log
) -> None:
    done = threading.Event()

    def append() -> None:
        with busy:
            mine = busy.log("l")
            while not done.is_set():
                mine.append(b"v")

    busy = client.clone()
    thread = Beside(append)
    try:
        for _ in range(100):
            began = time.monotonic()
            log.append(b"mine")
            assert time.monotonic() - began < 10
    finally:
        done.set()
    thread.join()


def test_a_second_thread_inside_one_client_is_a_misuse(client: rlog.Client, log: rlog.Log) -> None:
    reader = log.reader(rlog.OLDEST)
    thread = Beside(lambda: next(reader, None))
    eventually(client._transport._inside.locked, "the thread is inside")
    with pytest.raises(RuntimeError, match="clone"):
        log.append(b"v")
    reader.stop()
    thread.join()


def test_what_a_policy_leaves_for_later_is_synced_while_somebody_waits(tmp_path: Path) -> None:
    with small(tmp_path, sync="periodic:50ms") as client:
        log = client.log("l", create=True)
        other = client.clone()
        seen: list[bytes] = []

        def consume() -> None:
            with other, other.log("l").consumer("c") as consumer:
                seen.append(next(consumer).value)

        thread = Beside(consume)
        eventually(lambda: bool(log.cursors()), "it has claimed")
        assert log.append_many([b"v"]).level == "written"
        thread.join()  # and no call from here made anything due
        assert seen == [b"v"]
        log.append(b"w")
        log.wait_synced(2, timeout=PATIENCE_SECONDS)
        assert log.info().synced_end == 2


def test_a_thread_that_waits_for_space_alone_is_refused_in_the_end_and_goes_on(
    client: rlog.Client, log: rlog.Log
) -> None:
    log.alter(max_total_bytes=16 * 1024)
    for _ in range(3):
        log.append(bytes(4000))
    log.alter(blocking_minimum_retention=3600.0)
    with pytest.raises(rlog.DiskFull, match="blocking_minimum_retention"):
        log.append(bytes(8000))
    assert log.info().end == 3
    # Alone, it is this thread that copies what a trim has to keep.
    with log.consumer("c", block=False) as consumer:
        assert consumer.process(lambda record: rlog.PARK) == 3
    assert log.trim(rlog.LATEST) == 3
    assert log.append(bytes(8000)) == 3
    assert [each.record.offset for each in log.cursor("c").parked()] == [0, 1, 2]


# --- waits end ------------------------------------------------------------------------------


def test_stop_ends_a_wait_from_another_thread(log: rlog.Log) -> None:
    reader = log.reader(rlog.OLDEST)
    timer = threading.Timer(0.05, reader.stop)
    timer.start()
    assert list(reader) == []
    timer.join()


def test_stop_ends_a_wait_from_a_signal_handler(log: rlog.Log) -> None:
    reader = log.reader(rlog.OLDEST)
    before = signal.signal(signal.SIGALRM, lambda *_: reader.stop())
    signal.setitimer(signal.ITIMER_REAL, 0.05)
    try:
        assert list(reader) == []
    finally:
        signal.signal(signal.SIGALRM, before)


def test_ctrl_c_ends_a_wait_and_the_client_goes_on(log: rlog.Log) -> None:
    reader = log.reader(rlog.OLDEST)
    timer = threading.Timer(0.05, lambda: os.kill(os.getpid(), signal.SIGINT))
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        next(reader)
    timer.join()
    log.append(b"v")
    assert next(reader).value == b"v"


def test_a_wait_ends_at_its_deadline(tmp_path: Path) -> None:
    with small(tmp_path, sync="never") as client:
        log = client.log("l", create=True)
        assert log.reader(rlog.LATEST).poll(timeout=0.05) == []
        with pytest.raises(rlog.OffsetOutOfRange):
            log.wait_synced(1, timeout=0.05)


# (Python prints and drops what is raised while a weak reference is called back.)
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_interrupts_at_any_moment_leave_everything_whole(tmp_path: Path) -> None:
    acknowledged = rung = 0
    armed = [False]

    def ring(number: int, frame: FrameType | None) -> None:
        if armed[0]:
            armed[0] = False
            raise Rang

    before = signal.signal(signal.SIGALRM, ring)
    try:
        with small(tmp_path) as client:
            log = client.log("l", create=True)
            signal.setitimer(signal.ITIMER_REAL, 0.001, 0.0013)
            while rung < 500:
                try:
                    armed[0] = True
                    log.append(b"v")
                    acknowledged += 1
                    armed[0] = False
                except Rang:
                    rung += 1
            signal.setitimer(signal.ITIMER_REAL, 0.0)
            assert acknowledged <= log.info().end <= acknowledged + rung
            end = log.append(b"last") + 1
            assert len(values(log)) == end
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        signal.signal(signal.SIGALRM, before)
    with small(tmp_path) as client:
        assert len(values(client.log("l"))) == end


# --- the end --------------------------------------------------------------------------------


def test_a_directory_is_one_openers_at_a_time(tmp_path: Path) -> None:
    with small(tmp_path) as client:
        with pytest.raises(rlog.Locked, match=f"in use by process {os.getpid()}"):
            rlog.open(tmp_path)
        program = "import sys, rlog; rlog.open(sys.argv[1])"
        command = [sys.executable, "-c", program, str(tmp_path)]
        other = subprocess.run(command, check=False, capture_output=True, text=True, cwd=ROOT)
        assert "Locked" in other.stderr
        client.log("l", create=True).append(b"v")


def test_the_last_client_that_is_closed_leaves_the_directory(tmp_path: Path) -> None:
    client = small(tmp_path)
    other = client.clone()
    client.close()
    client.close()
    assert other.log("l", create=True).append(b"v") == 0
    with pytest.raises(rlog.Locked):
        rlog.open(tmp_path)
    other.close()
    with pytest.raises(RuntimeError, match="closed"):
        client.clone()
    checkpoints = list(tmp_path.glob("checkpoint-*"))
    assert checkpoints, "the last one left it as a server does that stops"
    with small(tmp_path) as again:
        assert values(again.log("l")) == [b"v"]


def test_a_client_that_is_closed_holds_nothing(client: rlog.Client, log: rlog.Log) -> None:
    other = client.clone()
    consumer = other.log("l").consumer("c")
    assert consumer.epoch == 1
    other.close()
    assert log.consumer("c").epoch == 2


def test_clients_that_are_garbage_hold_nothing(tmp_path: Path) -> None:
    client = small(tmp_path)
    log = client.log("l", create=True)
    other = client.clone()
    consumer = other.log("l").consumer("c")
    assert consumer.epoch == 1
    del other, consumer
    gc.collect()
    with log.consumer("c") as mine:
        assert mine.epoch == 2
    log.append(b"v")
    del client, log, mine
    gc.collect()
    with small(tmp_path) as again:
        assert values(again.log("l")) == [b"v"]


def test_the_last_to_close_waits_for_no_garbage(tmp_path: Path) -> None:
    client = small(tmp_path)
    garbage = client.clone()
    del garbage
    gc.collect()
    client.close()
    with small(tmp_path) as again:
        assert again.logs() == []


def test_what_a_thread_left_under_way_is_done_by_another(
    client: rlog.Client, log: rlog.Log
) -> None:
    log.append_many([b"v"] * 100)
    other = client.clone()

    def consume() -> None:
        consumer = other.log("l").consumer("c")
        for record in consumer.poll(100, timeout=PATIENCE_SECONDS):
            consumer.commit(record, wait=False)

    thread = Beside(consume)
    for _ in range(100):
        log.append(b"w")
    thread.join()
    eventually(lambda: log.cursor("c").info().committed == 100, "all of it is committed")
    other.close()


def test_a_fork_leaves_the_directory_to_the_parent(tmp_path: Path) -> None:
    client = small(tmp_path)
    log = client.log("l", create=True)
    reading, writing = os.pipe()
    forked, told = os.pipe()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            for use in (lambda: log.append(b"child"), client.clone):
                with pytest.raises(RuntimeError, match="parent"):
                    use()
            client.close()
            os.close(writing)
            os.write(told, b"!")
            os.read(reading, 1)  # until the parent has seen that the directory is free
            code = 0
        finally:
            os._exit(code)
    os.close(told)
    try:
        os.read(forked, 1)
        log.append(b"parent")
        client.close()
        with small(tmp_path) as again:
            assert values(again.log("l")) == [b"parent"]
    finally:
        for end in (writing, reading, forked):
            os.close(end)
        status = os.waitpid(child, 0)[1]
    assert os.waitstatus_to_exitcode(status) == 0


def test_a_process_that_is_killed_loses_nothing_that_was_acknowledged(tmp_path: Path) -> None:
    program = """
import sys, threading, rlog
client = rlog.open(sys.argv[1], journal_file_size=256 * 1024)
client.log("l", create=True)
def append(mine, number):
    log = mine.log("l")
    while True:
        value = b"%d:" % number + bytes(500)
        sys.stdout.write("%d %d\\n" % (number, log.append(value)))
        sys.stdout.flush()
for number in range(2):
    threading.Thread(target=append, args=(client.clone(), number)).start()
"""
    acknowledged: dict[int, int] = {}
    for wanted in (50, 400, 900):
        command = [sys.executable, "-c", program, str(tmp_path)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, cwd=ROOT)
        assert process.stdout is not None
        for _ in range(wanted):
            number, offset = map(int, process.stdout.readline().split())
            assert offset not in acknowledged
            acknowledged[offset] = number
        process.kill()
        for line in process.stdout.read().splitlines(keepends=True):
            if line.endswith(b"\n"):
                number, offset = map(int, line.split())
                acknowledged[offset] = number
        process.stdout.close()
        process.wait()
        with small(tmp_path) as client:
            found = values(client.log("l"))
        for offset, number in acknowledged.items():
            assert found[offset].startswith(b"%d:" % number)


def test_a_turn_that_breaks_off_gives_the_directory_up_and_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = small(tmp_path)
    log = client.log("l", create=True)
    other = client.clone()
    log.append(b"v")

    def fail(*_: object) -> None:
        raise ZeroDivisionError

    with monkeypatch.context() as patch:
        patch.setattr(driver.Driver, "finish", fail)
        with pytest.raises(ZeroDivisionError):
            log.append(b"w")
    with pytest.raises(rlog.ConnectionLost, match="given up"):
        other.log("l")
    with small(tmp_path) as again:
        assert values(again.log("l"))[:1] == [b"v"]
    other.close()
    client.close()


def test_one_that_is_refused_leaves_the_directory(tmp_path: Path) -> None:
    with small(tmp_path) as client:
        client.log("l", create=True).append(b"v")
    for file in tmp_path.glob("checkpoint-*"):
        file.write_bytes(b"no checkpoint")
    for _ in range(2):
        with pytest.raises(rlog.Refused):
            rlog.open(tmp_path)


def test_the_names_of_the_errors_are_those_of_the_modules_below() -> None:
    assert rlog.Client is rlog_client.Client
    assert rlog.open is embedded.open

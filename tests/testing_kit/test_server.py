"""The kit itself: lives, what they leave behind, what fails in them, and users' own test runs."""

from __future__ import annotations

import contextlib
import gc
import os
import re
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Final

import anyio
import pytest
import trio

import rlog
from rlog.testing import Server, ServerFailed
from rlog.testing.faults import FaultyFile
from rlog.testing.life import LiveServer
from tests.e2e.serving import eventually

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

ROOT: Final = Path(__file__).parents[2]
EXAMPLE: Final = Path(__file__).with_name("billing.py")
SECONDS_MAX: Final = 120.0  # only to find out that it hangs
TRIO_THREADS_MAX: Final = 4  # that trio keeps for a while, of all its runs together


def descriptors() -> set[str]:
    """What is open in this process, pipes and sockets by their numbers."""
    found = set()
    for fd in os.listdir("/proc/self/fd"):
        try:
            found.add(os.readlink(f"/proc/self/fd/{fd}"))
        except FileNotFoundError:
            continue  # that of the listing itself
    return found


def run_program(program: str, *arguments: object) -> str:
    done = subprocess.run(
        [sys.executable, "-X", "dev", "-W", "error", "-c", program, *map(str, arguments)],
        cwd=ROOT, capture_output=True, text=True, timeout=SECONDS_MAX, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


# --- lives --------------------------------------------------------------------------------------


def test_url_and_directory_stay_the_same_through_all_its_lives(rlog_server: Server) -> None:
    url, directory = rlog_server.url, rlog_server.directory
    log = rlog_server.connect().log("l", create=True)
    log.append(b"0")
    for end in (rlog_server.stop, rlog_server.crash):
        end()
        assert not rlog_server.running
        with pytest.raises(rlog.ConnectionLost):
            rlog.connect(rlog_server.url, timeout=0.2)
        rlog_server.start()
        assert (rlog_server.url, rlog_server.directory) == (url, directory)
        log.append(b"1")
    assert [record.offset for record in log.reader(rlog.OLDEST, block=False)] == [0, 1, 2]


def test_a_crash_makes_no_checkpoint_and_a_stop_does(rlog_server: Server) -> None:
    def checkpoints() -> set[str]:
        return {path.name for path in rlog_server.directory.glob("checkpoint-*")}

    log = rlog_server.connect().log("l", create=True)
    log.append(b"0")
    before = checkpoints()
    rlog_server.crash()
    assert checkpoints() == before
    rlog_server.start()
    assert checkpoints() == before
    rlog_server.stop()
    assert checkpoints() > before


class Appending:
    """A thread that appends all the time, and tries again what was refused."""

    def __init__(self, server: Server, value_bytes: int) -> None:
        self.acknowledged: dict[int, int] = {}  # offset -> number
        self.number = 0
        self._log = server.connect(timeout=SECONDS_MAX).log("l", create=True)
        self._padding = bytes(value_bytes)
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        while not self._over.is_set():
            with contextlib.suppress(rlog.DiskFull):
                offset = self._log.append(b"%08d" % self.number + self._padding)
                self.acknowledged[offset] = self.number
                self.number += 1

    def wait_for_more(self) -> None:
        goal = self.number + 20
        eventually(lambda: self.number >= goal, "appends are acknowledged")

    def end(self) -> None:
        self._over.set()
        self._thread.join(SECONDS_MAX)
        assert not self._thread.is_alive()


@pytest.fixture(params=[100, 100_000])  # synced on the loop, and in a thread beside it
def appending(request: pytest.FixtureRequest, rlog_server: Server) -> Iterator[Appending]:
    appending = Appending(rlog_server, request.param)
    yield appending
    appending.end()


def test_whatever_was_acknowledged_before_a_crash_is_there(
    rlog_server: Server, appending: Appending
) -> None:
    for _ in range(3):
        appending.wait_for_more()
        rlog_server.crash()
        rlog_server.start()
    appending.end()
    log = rlog_server.connect().log("l")
    found = {r.offset: int(r.value[:8]) for r in log.reader(rlog.OLDEST, block=False)}
    assert found == appending.acknowledged


def test_from_the_moment_when_the_disk_is_full_nothing_is_appended(
    rlog_server: Server, appending: Appending
) -> None:
    log = rlog_server.connect().log("l")
    appending.wait_for_more()
    with rlog_server.full_disk() as fault:
        end, refused = log.info().end, fault.struck
        eventually(lambda: fault.struck > refused + 3, "appends are refused")
        assert log.info().end == end
    appending.wait_for_more()


def test_a_disk_gets_full_between_two_frames_and_never_within_one(
    rlog_server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = rlog_server.connect().log("l", create=True, file_roll_size=150_000)
    value = bytes(100_000)  # one to a segment, which is cut when the next one is begun
    log.append(value)
    syncing, go_on = threading.Event(), threading.Event()
    sync = FaultyFile.sync

    def stop_and_sync(file: FaultyFile) -> None:
        syncing.set()
        assert go_on.wait(SECONDS_MAX)
        sync(file)

    monkeypatch.setattr(FaultyFile, "sync", stop_and_sync)
    threads = [threading.Thread(target=log.append, args=(value,))]
    threads[0].start()
    assert syncing.wait(SECONDS_MAX)
    threads.append(threading.Thread(target=rlog_server.full_disk))
    threads[1].start()
    threads[1].join(0.05)
    go_on.set()
    for thread in threads:
        thread.join(SECONDS_MAX)
    with pytest.raises(rlog.DiskFull):
        log.append(value)
    sizes = [path.stat().st_size for path in sorted(rlog_server.directory.glob("logs/1/*.seg"))]
    assert len(sizes) >= 2
    assert len(value) < sizes[0] < len(value) + 4096


def test_what_cannot_be_is_refused() -> None:
    server = Server()
    for use in (lambda: server.url, lambda: server.directory, server.stop, server.cut):
        with pytest.raises(RuntimeError, match=r"was never started|is not running"):
            use()
    with server:
        with pytest.raises(RuntimeError, match="is running"):
            server.start()
        with pytest.raises(rlog.Locked):
            Server(server.directory).start()
        with pytest.raises(rlog.Locked):
            rlog.open(server.directory)
    assert not server.running
    server.close()
    for size in (4096, 64 * 1024 + 1, 2 << 30):
        with pytest.raises(ValueError, match="journal_file_size"):
            Server(journal_file_size=size)
    with pytest.raises(rlog.InvalidRequest, match="policy"):
        Server(sync="sometimes")


def test_a_given_directory_is_kept_and_another_one_is_not(tmp_path: Path) -> None:
    with Server(tmp_path / "data", unix=True) as server:
        server.connect().log("l", create=True).append(b"0")
        socket = Path(server.url.removeprefix("rlog+unix://"))
        assert socket.is_socket()
        server.restart()
    assert not socket.parent.exists()
    with rlog.open(tmp_path / "data") as client:
        assert client.log("l").info().end == 1
    with Server() as server:
        directory = server.directory
        assert repr(server) == f"<rlog.testing.Server {server.url}>"
    assert not directory.parent.exists()
    assert repr(server) == "<rlog.testing.Server without a place, not running>"


def test_without_fsync_all_is_as_before_but_for_the_waiting() -> None:
    with Server(fsync=False, sync="never", journal_file_size=64 * 1024) as server:
        log = server.connect().log("l", create=True, sync="always")
        assert log.append_many([b"0"]).level == "synced"
        server.crash()
        server.start()
        with server.fail_sync(lost=True), pytest.raises(rlog.OutcomeUnknown):
            log.append(b"1")
        server.restart()
        assert log.append(b"1") == 1


def test_a_record_of_the_default_limit_fits(rlog_server: Server) -> None:
    log = rlog_server.connect().log("l", create=True)
    assert log.append(bytes(1 << 20)) == 0
    with pytest.raises(rlog.TooLarge):
        log.append(bytes((1 << 20) + 1))


def test_clients_are_closed_at_the_end() -> None:
    with Server() as server:
        client = server.connect()
        log = client.log("l", create=True)
        log.consumer("c", block=False).poll()
    with pytest.raises(RuntimeError, match="closed"):
        log.append(b"0")


# --- what they leave behind ---------------------------------------------------------------------


def test_fifty_servers_leave_nothing_behind() -> None:
    def use() -> None:
        with Server() as server:
            with rlog.connect(server.url) as client:
                client.log("l", create=True).append(b"0")
                server.cut()
            server.crash()
            server.start()
            assert server.connect().log("l").info().end == 1

    use()  # what is loaded and made once
    gc.collect()
    before = descriptors()
    gc.disable()  # nothing here may wait for the collector
    try:
        for _ in range(50):
            use()
            assert descriptors() <= before
    finally:
        gc.enable()
    gc.collect()  # and what it then finds is closed: a ResourceWarning would be an error
    threads = [thread.name for thread in threading.enumerate()]
    assert not [name for name in threads if name.startswith("rlog")]
    assert len([name for name in threads if name.startswith("Trio")]) <= TRIO_THREADS_MAX


def test_a_child_process_holds_nothing_of_a_server() -> None:
    program = """
import os, sys, time, warnings
warnings.filterwarnings("ignore", category=DeprecationWarning)  # of fork beside threads, 3.12 on
import rlog
server = rlog.testing.Server().start()
client = rlog.connect(server.url)  # the child forgets this one by itself
client.log("l", create=True).append(b"0")
while server._life.server.driver.upkeep:
    time.sleep(0.001)  # a file that is just being opened nobody can close in a child
directory = server.directory
reading, writing = os.pipe()
looked, looking = os.pipe()
if (child := os.fork()) == 0:
    try:
        server.connect()
    except RuntimeError as error:
        assert "parent process" in str(error)
        server.close()
        os.close(writing)
        left = {os.readlink(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd")
                if os.path.lexists(f"/proc/self/fd/{fd}")}
        bad = [path for path in left if str(directory) in path]
        if not bad and directory.exists():
            os.write(1, b"child ok\\n")
            os.write(looking, b"x")
            os.read(reading, 1)  # it stays while the parent's server goes on
        else:
            print("open in the child:", bad, "there:", directory.exists(), file=sys.stderr)
            sys.stderr.flush()
    os._exit(0)
os.close(reading)
os.close(looking)
server.restart()  # the port is free, and so is the lock
assert client.log("l").info().end == 1
assert os.read(looked, 1), "the child found something, or the directory gone"
client.close()
server.close()
os.write(writing, b"x")
os.waitpid(child, 0)
"""
    assert "child ok" in run_program(program)


def test_importing_rlog_loads_neither_trio_nor_pytest_and_the_kit_needs_no_pytest() -> None:
    program = """
import sys
sys.modules["pytest"] = None  # as if it were not installed
import rlog
assert "testing" in dir(rlog)
assert not {"trio", "rlog.testing", "_pytest"} & set(sys.modules)
with rlog.testing.Server() as server:
    assert server.connect().log("l", create=True).append(b"0") == 0
assert not hasattr(rlog.testing, "rlog_server")
assert "_pytest" not in sys.modules
"""
    run_program(program)


# --- what fails in them -------------------------------------------------------------------------


def test_an_error_of_the_server_is_raised_by_the_next_call_and_at_the_end() -> None:
    with pytest.raises(ServerFailed) as caught, Server() as server:  # noqa: PT012
        client = server.connect(timeout=0.2)
        life = server._life
        assert life is not None
        life.server.broker.decide = lambda *_args, **_options: 1 / 0  # type: ignore[assignment]  # of this one alone
        with pytest.raises(rlog.ConnectionLost):
            client.log("l", create=True)
        for use in (server.connect, server.stop, server.cut):
            with pytest.raises(ServerFailed, match="error of its own"):
                use()
    assert isinstance(caught.value.__cause__, ZeroDivisionError)
    assert not server.running
    assert not server._faults._ordered


def test_an_error_that_ends_one_connection_is_raised_at_the_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with pytest.raises(ServerFailed) as caught, Server() as server:  # noqa: PT012
        life = server._life
        assert life is not None
        client = server.connect(timeout=0.2)
        (connection,) = life.server.connections
        monkeypatch.setattr(connection, "obey_all", lambda: 1 / 0)
        client.logs()  # by another connection
    assert isinstance(caught.value.__cause__, ZeroDivisionError)


def test_what_a_call_raises_on_the_loop_comes_out_of_it(
    rlog_server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(*_args: object) -> int:
        raise ZeroDivisionError

    async def wait(*_args: object) -> int:
        await trio.sleep_forever()
        raise AssertionError

    monkeypatch.setattr(LiveServer, "cut", fail)
    with pytest.raises(ZeroDivisionError):
        rlog_server.cut()
    monkeypatch.setattr(LiveServer, "cut", wait)
    timer = threading.Timer(0.05, rlog_server.crash)
    timer.start()
    with pytest.raises(ServerFailed, match="ended meanwhile"):
        rlog_server.cut()
    timer.join()


def test_a_start_that_fails_raises_why_and_leaves_nothing_behind(tmp_path: Path) -> None:
    (tmp_path / "stranger").touch()
    before = descriptors()
    server = Server(tmp_path)
    for _ in range(2):
        with pytest.raises(rlog.Refused, match="stranger"):
            server.start()
    (tmp_path / "stranger").unlink()
    with server:
        server.connect().log("l", create=True)
    assert descriptors() <= before


# --- on a loop that runs ------------------------------------------------------------------------


async def exercise(server: Server) -> None:
    """Every call of the kit from a task, beside another one that reads all the time."""
    seen: list[bytes] = []
    all_seen = anyio.Event()
    async with server.connect_async(timeout=30.0) as client, anyio.create_task_group() as tasks:
        log = await client.log("l", create=True)

        async def read() -> None:
            async with log.reader(rlog.OLDEST) as reader:
                async for record in reader:
                    seen.append(record.value)
                    if record.value == b"5":
                        all_seen.set()

        tasks.start_soon(read)
        with server.lose_reply():
            await log.append(b"0")
        assert server.cut() == 1
        await log.append(b"1")
        server.restart()
        await log.append(b"2")
        server.crash()
        server.start()
        await log.append(b"3")
        server.advance(3.0)
        with server.full_disk(), pytest.raises(rlog.DiskFull):
            await log.append(b"no")
        with server.pause(), anyio.move_on_after(0.05) as scope:
            await log.append(b"4")
        assert scope.cancelled_caught
        await log.append(b"5")
        await all_seen.wait()
        tasks.cancel_scope.cancel()
    assert seen == [b"0", b"1", b"2", b"3", b"4", b"5"]


async def test_every_call_works_in_a_trio_task(rlog_server: Server) -> None:
    with trio.fail_after(SECONDS_MAX):
        await exercise(rlog_server)


def test_every_call_works_in_an_asyncio_task(rlog_server: Server) -> None:
    anyio.run(exercise, rlog_server, backend="asyncio")


# --- in a user's own test run -------------------------------------------------------------------


@pytest.fixture
def run_pytest(tmp_path: Path) -> Callable[..., subprocess.Popen[str]]:
    """``run_pytest(text)``: of a test file, in a directory of its own, warnings being errors."""

    def run(text: str, name: str = "project") -> subprocess.Popen[str]:
        directory = tmp_path / name
        directory.mkdir()
        (directory / "test_it.py").write_text(text)
        command = ["-m", "pytest", "-p", "no:cacheprovider", "-W", "error", "-q", "--color=no"]
        return subprocess.Popen(
            [sys.executable, *command],
            cwd=directory,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    return run


def end(process: subprocess.Popen[str]) -> str:
    output, _ = process.communicate(timeout=SECONDS_MAX)
    return output


def test_an_applications_tests_pass_and_runs_beside_each_other_do_not_meet(
    run_pytest: Callable[..., subprocess.Popen[str]],
) -> None:
    runs = [run_pytest(EXAMPLE.read_text(), name) for name in ("one", "two", "three")]
    for each in runs:
        assert " passed" in (output := end(each)), output
        assert each.returncode == 0, output


def test_an_application_that_is_not_idempotent_is_found_out(
    run_pytest: Callable[..., subprocess.Popen[str]],
) -> None:
    text = EXAMPLE.read_text()
    wrong = text.replace('f"{record.log}/{record.offset}"', 'f"{record.epoch}/{record.offset}"')
    assert wrong != text
    process = run_pytest(wrong)
    output = end(process)
    assert process.returncode == 1
    assert "FAILED test_it.py::test_a_charge_that_is_repeated_is_the_same_charge" in output


def test_the_readmes_example_passes(run_pytest: Callable[..., subprocess.Popen[str]]) -> None:
    section = (ROOT / "README.md").read_text().partition("\n## Testing your application\n")[2]
    found = re.search(r"```python\n(.*?)```", section.partition("\n## ")[0], re.DOTALL)
    assert found is not None
    process = run_pytest(found[1])
    output = end(process)
    assert re.search(r"\d passed", output), output
    assert process.returncode == 0, output


def test_an_error_of_the_server_fails_the_test_with_its_traceback(
    run_pytest: Callable[..., subprocess.Popen[str]],
) -> None:
    text = """
import rlog.testing  # before pytest loads it as a plugin: no warning may come of that
pytest_plugins = ["rlog.testing"]

def test_it(rlog_server):
    def break_down(*args, **options):
        raise LookupError("something is wrong in the server")
    rlog_server._life.server.driver.begin = break_down
    try:
        rlog_server.connect(timeout=0.2).log("l", create=True)
    except rlog.ConnectionLost:
        pass
"""
    process = run_pytest(text)
    output = end(process)
    assert process.returncode == 1
    assert "1 passed, 1 error" in output
    assert "LookupError: something is wrong in the server" in output
    assert "ServerFailed: the server failed by an error of its own" in output


def test_the_fixture_tells_what_it_is(tmp_path: Path) -> None:
    shutil.copy(EXAMPLE, tmp_path / "test_it.py")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "--fixtures", "-p", "no:cacheprovider"],
        cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True,
        timeout=SECONDS_MAX, check=True,
    )  # fmt: skip
    assert re.search(r"rlog_server -- .*\n +A real rlog server for this test", done.stdout)

"""Promises 1, 2, 3, 6 and 11: any one system call on the data directory fails, and nothing is lost.

Every kind of call that the server makes on its files, by every error that matters, at its first,
second, ... n-th time: while it starts on an empty directory, while it recovers a used one, while it
serves clients of all kinds. The faults are strace's (see ``injection``); what the clients were told
is held against the server that failed, and against the one that is started after it.

Of ``fdatasync`` interrupted by a signal (EINTR) there is no test: Python itself calls it again, and
the kernel has then neither synced nor given anything up.
"""

from __future__ import annotations

import resource
import shutil
import time
from functools import partial
from typing import TYPE_CHECKING, Final, NamedTuple

import pytest

import rlog_client as rlog
from rlog_client import batch, protocol
from tests.e2e.serving import eventually
from tests.server_process import NotStarted, ServerProcess, environment

from .injection import Call, Fault, Strace, unavailable
from .raw import Raw, packed
from .work import CONSUMER, LATER, LOGS, PLAIN, Ledger, Work, said_ended

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

needs_injection = pytest.mark.skipif(unavailable() is not None, reason=unavailable() or "")

# Small files, so that all that is ever done to files is done every few hundred appends.
SMALL: Final = ("--journal-file-size", "128KiB")
STRIKES_SECONDS: Final = 10.0  # a call that is not made by then is none of this run's
MORE_ANSWERS: Final = 60  # that clients have after the fault


class Ks(NamedTuple):
    """Which k-th call is made to fail: up to ``all`` in the long tier, in the short one a few."""

    all: int
    on_empty: tuple[int, ...] = ()
    on_used: tuple[int, ...] = ()


CALLS: Final = {
    ("fdatasync", "error=EIO"): Ks(50, on_empty=(30,), on_used=(2,)),
    ("fdatasync", "error=ENOSPC"): Ks(50, on_empty=(12,)),
    ("fdatasync", "error=EDQUOT"): Ks(10),
    ("fdatasync", "error=EAGAIN"): Ks(10),
    ("fsync", "error=EIO"): Ks(20, on_used=(8,)),
    ("fsync", "error=ENOSPC"): Ks(10),
    ("pwritev2", "error=EIO"): Ks(50, on_used=(40,)),
    ("pwritev2", "error=ENOSPC"): Ks(50),
    ("pwritev2", "retval=0"): Ks(20),
    ("fallocate", "error=ENOSPC"): Ks(20, on_empty=(8,)),
    ("fallocate", "error=EIO"): Ks(20),
    ("rename", "error=EIO"): Ks(15, on_used=(4,)),
    ("rename", "error=ENOSPC"): Ks(15),
    ("unlink", "error=EIO"): Ks(20),
    ("ftruncate", "error=EIO"): Ks(15),
    ("mkdir", "error=ENOSPC"): Ks(8),
}


class Life(NamedTuple):
    """``struck``: the call that failed, if the server ever made it. ``served``: whether it did.

    ``unknown``: answers that what was asked for may be done or not.
    """

    struck: Call | None
    served: bool
    unknown: int


def ends_writing(call: Call) -> bool:
    """Whether this failure is final for a server at work. Else one request is refused."""
    if call.error is None:
        return False  # a short write: the rest is written
    if call.name == "fallocate" and call.error in ("ENOSPC", "EDQUOT"):
        return False
    # What is needed for a request is asked for before the request is decided.
    made_ready = ("fallocate", "openat", "mkdir", "unlink")
    return not (call.name in made_ready and call.area == "logs")


@pytest.fixture(scope="module")
def used(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Ledger]:
    """A directory whose server was killed at work, and what its clients were told."""
    data_dir = tmp_path_factory.mktemp("used") / "data"
    ledger = Ledger()
    with ServerProcess(data_dir, *SMALL) as server:
        work = Work(server.url, ledger, 0)
        work.begin()
        work.go_on(300)
        assert work.end() == []
        server.kill()
    return data_dir, ledger


def suffer(data_dir: Path, ledger: Ledger, *faults: Fault) -> Life:
    """One life of a server with these faults, and the next one without them."""
    strace = Strace(data_dir, data_dir.with_name("trace"), *faults)
    quiet = environment(PYTHONDONTWRITEBYTECODE="1")  # whose files are not ours
    served = True
    try:
        with ServerProcess(data_dir, *SMALL, env=quiet, under=strace.under) as server:
            _work_through(server, strace, ledger)
    except NotStarted as refused:
        if not _says_why(refused):
            raise
        served = False
    struck = strace.struck
    _check_no_sync_was_repeated(strace.calls())
    with (
        ServerProcess(data_dir, *SMALL) as server,
        rlog.connect(server.url, timeout=30.0) as client,
    ):
        wrong = ledger.check(client)
        assert not wrong, (struck, wrong[:10], server.log())
        assert client.log("new", create=True).append(b"goes on") == 0
        assert server.stop() == 0, server.log()
    return Life(struck, served, ledger.counts["OutcomeUnknown"] + ledger.counts["unknown"])


def _says_why(refused: NotStarted) -> bool:
    """Whether it ended as it should, with a line about it."""
    return refused.returncode == 1 and "rlog: " in str(refused) and "Traceback" not in str(refused)


def _work_through(server: ServerProcess, strace: Strace, ledger: Ledger) -> None:
    work = Work(server.url, ledger, 1 + ledger.counts["lives"])
    ledger.counts["lives"] += 1
    work.begin()
    deadline = time.monotonic() + STRIKES_SECONDS
    while strace.struck is None and time.monotonic() < deadline:
        work.go_on(10)
    work.go_on(MORE_ANSWERS)
    surprises = work.end()
    struck = strace.struck
    assert not surprises, (struck, surprises, server.log())
    ended = said_ended(server.log())
    assert ended or struck is None or not ends_writing(struck), (struck, server.log())
    with rlog.connect(server.url, timeout=30.0) as client:
        # What was laid out no more is durable all the same, and served after the next start.
        laid_out = not any(call.injected and call.area == "logs" for call in strace.calls())
        wrong = ledger.check_live(client, all_of_it=laid_out)
        assert not wrong, (struck, wrong[:10])
        (_check_refusals if ended else _check_use)(client)
    assert server.stop() == 0, (struck, server.log())


def _check_refusals(client: rlog.Client) -> None:
    """Nothing is written, for as long as this process lives."""
    uses: list[Callable[[], object]] = [lambda: client.log("new", create=True)]
    for name in {info.name for info in client.logs()} & set(LOGS):
        log = client.log(name)
        uses += [
            partial(log.append, b"refused"),
            partial(log.trim, rlog.LATEST),
            log.consumer("another").poll,
            log.delete,
        ]
    for use in uses:
        with pytest.raises(rlog.StorageFailed) as raised:
            use()
        assert not raised.value.retriable


def _check_use(client: rlog.Client) -> None:
    def of_use() -> bool:
        try:
            client.log("scratch", create=True).append(b"of use")
        except rlog.DiskFull:
            return False  # not at once, but without a restart
        return True

    eventually(of_use, "it is of use again")
    log = client.log("scratch")
    assert [record.value for record in log.reader(rlog.last(1), block=False)] == [b"of use"]


def _check_no_sync_was_repeated(calls: list[Call]) -> None:
    failed: set[tuple[str, str]] = set()
    for call in calls:
        if call.name in ("fdatasync", "fsync"):
            assert (call.name, call.path) not in failed, f"{call} after it had failed"
            if call.injected:
                failed.add((call.name, call.path))


def named(call: str, effect: str, ks: Ks) -> object:
    marks = () if ks.on_empty or ks.on_used else (pytest.mark.slow,)
    return pytest.param(call, effect, ks, id=f"{call} {effect}", marks=marks)


@needs_injection
@pytest.mark.patience(3600)
@pytest.mark.parametrize(("call", "effect", "ks"), [named(*what, ks) for what, ks in CALLS.items()])
def test_whatever_call_fails_nothing_acknowledged_is_lost_and_no_sync_is_retried(
    used: tuple[Path, Ledger],
    data_dir: Path,
    call: str,
    effect: str,
    ks: Ks,
    long: bool,
    record_property: Callable[[str, object], None],
) -> None:
    lives: list[Life] = []
    every = tuple(range(1, ks.all + 1))
    for is_used, chosen in ((False, ks.on_empty), (True, ks.on_used)):
        for k in every if long else chosen:
            shutil.rmtree(data_dir, ignore_errors=True)
            ledger = Ledger()
            if is_used:
                shutil.copytree(used[0], data_dir)
                ledger = used[1].copy()
            lives.append(suffer(data_dir, ledger, Fault(call, effect, str(k))))
            print(f"{k} on {'a used' if is_used else 'an empty'} directory: {lives[-1]}")
    struck = [life for life in lives if life.struck is not None]
    # Not every k-th call is ever made, but most are.
    assert len(struck) > len(lives) // 3, lives
    if long and call == "fdatasync":
        assert any(life.unknown for life in struck), "what was pending was not told"
    record_property("system calls failed", len(struck))
    record_property("of these while the server started", sum(not life.served for life in struck))


@needs_injection
def test_a_claim_that_writing_ended_behind_is_told_so_and_not_that_it_was_fenced(
    start_server: Callable[..., ServerProcess], data_dir: Path
) -> None:
    server = start_server(data_dir, *SMALL)
    body = bytes(batch.encode([b"value"]))
    segment = "logs/1/00000000000000000000.seg"
    strace = Strace(
        data_dir, data_dir.with_name("trace"), Fault("pwritev2", "error=EIO", "1"), paths=[segment]
    )
    with Raw(server.url) as raw, strace:
        log_id = raw.open("l")
        raw.ask(protocol.Append(log_id), body)
        strace.attach(server.pid)
        # In one frame: both are answered, then the layout fails, and the claim is never granted.
        claim = protocol.Claim(log_id, "c", rlog.OLDEST, bytes(16))
        asked = [packed(100, protocol.Append(log_id), body), packed(101, claim)]
        raw.socket.sendall(b"".join(asked))
        assert isinstance(raw.answer(100), protocol.Appended)
        assert isinstance(raw.answer(101), protocol.Claimed)
        with pytest.raises(rlog.StorageFailed):
            raw.ask(protocol.Subscribe(log_id, rlog.OLDEST, "c"))


@needs_injection
def test_a_write_that_does_nothing_twice_ends_writing(data_dir: Path) -> None:
    faults = (Fault("pwritev2", "retval=0", "20"), Fault("pwrite64", "retval=0", "2+"))
    life = suffer(data_dir, Ledger(), *faults)
    assert life.struck is not None


@pytest.mark.patience(600)
def test_a_frame_cut_at_any_byte_by_a_limit_ends_writing_and_is_no_part_of_the_log(
    data_dir: Path, long: bool, record_property: Callable[[str, object], None]
) -> None:
    """RLIMIT_FSIZE makes true short writes: so much is written, and for the rest there is EFBIG."""
    cuts = [70_000 + 977 * i for i in range(40 if long else 2)]
    for cut in cuts:
        shutil.rmtree(data_dir, ignore_errors=True)
        ledger = Ledger()
        with ServerProcess(data_dir, *SMALL) as server:
            resource.prlimit(server.pid, resource.RLIMIT_FSIZE, (cut, cut))
            work = Work(server.url, ledger, 0)
            work.begin()
            while not said_ended(server.log()):
                work.go_on(10)
            work.go_on(MORE_ANSWERS)
            assert work.end() == []
            with rlog.connect(server.url) as client:
                assert ledger.check_live(client, all_of_it=True) == []
                _check_refusals(client)
            assert server.stop() == 0, server.log()
        with ServerProcess(data_dir, *SMALL) as server, rlog.connect(server.url) as client:
            assert ledger.check(client) == [], (cut, server.log())
    record_property("frames cut short", len(cuts))


READS: Final = {
    "the page cache": (Fault("preadv2", "error=EIO", "2+3"),),
    "the disk": (Fault("preadv2", "error=EAGAIN", "1+"), Fault("pread64", "error=EIO", "2+3")),
    "opening": (Fault("openat", "error=EIO", "1+3"),),
}


@needs_injection
@pytest.mark.parametrize("where", READS)
def test_a_read_error_is_its_readers_alone_and_never_gives_wrong_bytes(
    start_server: Callable[..., ServerProcess], data_dir: Path, where: str
) -> None:
    ledger = Ledger()
    server = start_server(data_dir, *SMALL)
    work = Work(server.url, ledger, 0)
    work.begin()
    work.go_on(300)
    assert work.end() == []
    # Of what is read: an error in the journal, of which the bystander needs new files, is
    # everybody's.
    read = [str(path.relative_to(data_dir)) for path in (data_dir / "logs").rglob("*.seg")]
    assert read
    strace = Strace(data_dir, data_dir.with_name("trace"), *READS[where], paths=read)
    with rlog.connect(server.url, timeout=30.0) as client, strace:
        bystander = client.log("scratch", create=True)
        bystander.append(b"0")
        strace.attach(server.pid)
        errors = 0
        for name in (PLAIN, LATER):
            log = client.log(name)
            offset, end = 0, log.info().synced_end
            while offset < end:
                reader = log.reader(rlog.offset(offset), block=False)
                wrong: list[str] = []
                try:
                    for record in reader:
                        assert record.offset == offset
                        ledger.serves(name, record, wrong)
                        offset += 1
                except rlog.StorageFailed:
                    errors += 1
                    assert errors < 10_000, "it gets nowhere"
                assert wrong == []
                # Nobody else is any the worse for it.
                bystander.append(b"%d" % errors)
        assert errors > 0
    assert not said_ended(server.log()), server.log()
    with rlog.connect(server.url) as client:
        assert ledger.check(client) == []
        assert client.log(PLAIN).consumer(CONSUMER, takeover=True, block=False).epoch > 0
    assert server.stop() == 0, server.log()

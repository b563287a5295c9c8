"""Promise 1, 3, 14, 16, 17: the real server, killed at seeded moments, loses nothing it told of.

Clients of all kinds work on logs of all policies while the server runs; it is killed at the n-th
call of some kind on its disk or socket, before it, after it, or half-way through a write; or at any
time. Then it is started again and held to all that was ever answered or served.
"""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import threading
import traceback
from typing import TYPE_CHECKING, Final

import pytest

import rlog_client as rlog

from .history import History, payload
from .serving import Server, eventually

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.report import RecordProperty

LOGS: Final = {
    "always": "always",
    "periodic": "periodic:20ms",
    "bytes": "bytes:64KiB",
    "never": "never",
}
ROLL_BYTES: Final = 96 * 1024
LIVES_EACH: Final = 10  # kills of one directory
CONSUMER: Final = "c"

# Where it can die, and about how often that happens while the clients below are at work.
MOMENTS: Final = {
    "write:journal": ("before", "half", "after"),
    "sync:journal": ("before", "after"),
    "reply:": ("before", "after"),
    "write:logs": ("before", "half", "after"),
    "allocate:logs": ("before", "after"),
    "create:logs": ("before", "after"),
    "truncate:logs": ("before", "after"),
    "sync:logs": ("before", "after"),
    "sync_directory:": ("before", "after"),
    "create:journal": ("before", "after"),
    "rename:journal": ("before", "after"),
    "create:checkpoint": ("before", "after"),
    "write:checkpoint": ("before", "half", "after"),
    "sync:checkpoint": ("before", "after"),
    "rename:checkpoint": ("before", "after"),
    "unlink:checkpoint": ("before", "after"),
    "at any time": ("",),
}
_OFTEN: Final = {"write:journal", "sync:journal", "reply:", "write:logs"}

# A moment that does not come is none: some other time will do.
WORK_SECONDS: Final = 4.0
REQUEST_SECONDS = 1.5


class Clients:
    """Everybody who works on one life of a server. They end with it."""

    def __init__(self, server: Server, history: History, life: int, seed: int) -> None:
        self._server = server
        self._history = history
        self._life = life
        self._random = random.Random(seed)
        self.wrong: list[str] = []
        self.surprises: list[str] = []
        self._over = False
        self._sources: list[rlog.Source] = []  # they would wait for the next life
        self._threads = [
            *(self._thread(self._produce, log, "p") for log in LOGS),
            *(self._thread(self._append, log, "a") for log in LOGS),
            *(self._thread(self._consume, log) for log in LOGS),
            self._thread(self._watch, "periodic"),
            self._thread(self._watch, "never"),
        ]

    def _thread(self, work: Callable[..., None], *args: str) -> threading.Thread:
        seed = self._random.getrandbits(32)

        def run() -> None:
            try:
                # As long as it takes a client of a life that is over to learn it.
                with self._server.connect(timeout=REQUEST_SECONDS) as client:
                    work(client, random.Random(seed), *args)
            except (rlog.ConnectionLost, rlog.OutcomeUnknown):
                pass  # what a kill looks like
            except Exception as error:
                self.surprises.append(f"{work.__name__}{args}: {error!r}")

        # A daemon: one that hangs fails its test, and must not keep the whole run from its end.
        return threading.Thread(target=run, name=f"{work.__name__}{args}", daemon=True)

    def begin(self) -> None:
        for thread in self._threads:
            thread.start()

    def end(self) -> None:
        self._over = True
        for source in self._sources:
            source.stop()
        for thread in self._threads:
            thread.join(60.0)
            assert not thread.is_alive(), f"a client hangs: {self._standing()}"

    def _standing(self) -> str:
        """Which threads are not over, and where each of them stands."""
        frames = sys._current_frames()
        return "\n".join(
            f"{thread.name}\n{''.join(traceback.format_stack(frame))}"
            for thread in self._threads
            if (frame := frames.get(thread.ident or 0)) is not None
        )

    def _produce(self, client: rlog.Client, chance: random.Random, name: str, kind: str) -> None:
        """``send``, with many records in flight."""
        log, history = client.log(name), self._history
        producer_name, number = f"{kind}{self._life}", 0
        waiting: list[tuple[bytes, rlog.Pending]] = []

        def settle(keep: int) -> None:
            while len(waiting) > keep:
                value, pending = waiting.pop(0)
                history.acknowledges(name, pending.result(), [value])

        with log.producer(linger=0.0, batch_bytes=16 << 10, buffer_bytes=128 << 10) as producer:
            try:
                while True:
                    value = payload(producer_name, number, chance.choice((30, 200, 3000)))
                    history.sends(name, [value])
                    waiting.append((value, producer.send(value)))
                    number += 1
                    settle(200)
                    if chance.random() < 0.02:
                        producer.flush()
            finally:
                # Some were answered before the end, and those count as well.
                while waiting:
                    value, pending = waiting.pop(0)
                    try:
                        history.acknowledges(name, pending.result(), [value])
                    except rlog.RlogError:
                        continue

    def _append(self, client: rlog.Client, chance: random.Random, name: str, kind: str) -> None:
        """``append_many``, one at a time."""
        log, history = client.log(name), self._history
        number = 0
        while True:
            values = [
                payload(f"{kind}{self._life}", number + i, chance.choice((30, 5000)))
                for i in range(chance.choice((1, 1, 2, 7)))
            ]
            number += len(values)
            history.sends(name, values)
            receipt = log.append_many(values)
            history.acknowledges(name, receipt.first, values)
            if name == "always" and receipt.level != "synced":
                self.wrong.append(f"{name}: answered {receipt.level}")

    def _consume(self, client: rlog.Client, chance: random.Random, name: str) -> None:
        """``process``, a few at a time: it begins where the commits stood."""
        log, history = client.log(name), self._history
        # Who held it in the last life has first right for a while, and will not come.
        with log.consumer(CONSUMER, takeover=True) as consumer:
            if consumer.epoch <= history.epochs[name]:
                self.wrong.append(f"{name}: epoch {consumer.epoch} again")
            history.epochs[name] = consumer.epoch
            following = consumer.committed
            if following < history.acknowledged[name]:
                self.wrong.append(f"{name}: begins at {following}, before its commit")

            def handle(record: rlog.Record) -> None:
                nonlocal following
                if record.offset != following:
                    self.wrong.append(f"{name}: {record.offset} came where {following} was due")
                following = record.offset + 1
                history.serves(name, record, self.wrong)
                # Sent no earlier than now, for all that this thread can know.
                history.asked[name] = max(history.asked[name], following)

            self._sources.append(consumer)
            while not self._over:
                consumer.process(handle, limit=chance.choice((1, 5, 50)), in_flight=16)
                history.acknowledged[name] = consumer.committed
                history.counts["committed"] += 1

    def _watch(self, client: rlog.Client, chance: random.Random, name: str) -> None:
        """A reader: what it has seen has to stay. (Promise 2; a kill is no power cut.)"""
        self._sources.append(reader := client.log(name).reader(rlog.LATEST))
        if self._over:
            return  # the sources may have been stopped before this one was among them
        for record in reader:
            self._history.serves(name, record, self.wrong)


def end_of(server: Server) -> bool:
    """Wait until the server has died of what it was told, and see to it if need be.

    -> Whether that moment came.
    """
    assert server.process is not None
    exact = True
    try:
        server.wait(WORK_SECONDS)
    except subprocess.TimeoutExpired:
        exact = False
        server.kill()
    assert server.process.returncode == -signal.SIGKILL, server.text
    return exact


def seeds(count: int) -> list[object]:
    """The first in CI, all with --long."""
    return [pytest.param(seed, marks=() if seed < 1 else pytest.mark.slow) for seed in range(count)]


@pytest.mark.patience(400)
@pytest.mark.parametrize("seed", seeds(20))
def test_ten_kills_in_a_row_lose_nothing_that_was_acknowledged(
    make_server: Callable[..., Server],
    seed: int,
    record_property: RecordProperty,
) -> None:
    chance = random.Random(seed)
    history = History()
    server = make_server("--journal-file-bytes", str(256 << 10))
    server.start()
    with server.connect() as client:
        for name, sync in LOGS.items():
            client.log(name, create=True, sync=sync, file_roll_size=ROLL_BYTES)
    server.stop()
    kinds = list(MOMENTS)
    for life in range(LIVES_EACH):
        # Each kind has its turn: the seeds together go round them all again and again.
        kind = kinds[(seed * LIVES_EACH + life) % len(kinds)]
        when = chance.choice(MOMENTS[kind])
        if kind == "at any time":
            server.start()
        else:
            count = chance.randrange(1, 150 if kind in _OFTEN else 6)
            server.start("--kill", f"{kind}:{when}:{count}")
        clients = Clients(server, history, life, chance.getrandbits(32))
        clients.begin()
        if kind == "at any time":
            with pytest.raises(subprocess.TimeoutExpired):
                server.wait(chance.uniform(0.02, 0.6))
            server.kill()
        else:
            server.signal(signal.SIGUSR1)
            history.counts["at the exact moment"] += end_of(server)
        clients.end()
        where = f"seed {seed}, life {life}, killed {when} {kind}"
        if chance.random() < 0.2:
            _die_while_starting(server, chance)
        server.start()
        with server.connect() as client:
            wrong = clients.wrong + clients.surprises + history.check(client, list(LOGS), CONSUMER)
        assert not wrong, f"{where}: {wrong[:10]}"
        assert server.alive, server.text
        if chance.random() < 0.5:
            server.stop()  # with a checkpoint; else the next life finds a journal to replay
        else:
            server.kill()
    record_property("SIGKILLs of the real server", LIVES_EACH)
    for what, count in history.counts.items():
        record_property(f"SIGKILLs: {what}", count)
    assert history.counts["acknowledged"] > 0
    assert history.counts["committed"] > 0
    assert history.counts["at the exact moment"] > 0


def _die_while_starting(server: Server, chance: random.Random) -> None:
    """Recovery is killed as well. It may be over before: then it dies at work, doing nothing."""
    kind = chance.choice(("write:logs:half", "write:journal:half", "sync::after", "create::after"))
    process = server.launch("--armed", "--kill", f"{kind}:{chance.randrange(1, 12)}")
    eventually(lambda: process.poll() is not None or "serving" in server.text, "it dies or serves")
    server.kill()

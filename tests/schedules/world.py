"""A server on a simulated disk and the clients around it, moved by hand: requests, connections that
are lost, time, frames under way, kills and power cuts.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

import msgspec

from rlog.decisions import Batch, Leave, Waiting
from rlog_client import batch, model, protocol
from tests.storage.server import ROLL, Asker, Clock, Server, judged
from tests.storage.simdisk import PAGE, Choice, Fill, SimDisk

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from rlog import state
    from rlog.decisions import Books, Grant
    from rlog.driver import Flight
    from rlog_client.protocol import Control
    from tests.schedules.record import Recorder

LOG = 1
OUT = 2  # the log that transactions append to, where there is one
TEN_YEARS_NS = 10 * 366 * 86_400 * 10**9
NOTHING = Choice(0, Fill.OLD, 1)  # of what was not synced comes through a power cut
Answered = TypeVar("Answered", bound=protocol.Control)
Values: TypeAlias = "Sequence[bytes] | Mapping[bytes, bytes]"  # of one batch; or key -> value


class WallClock(Clock):
    """A clock whose UTC can be put forward and back; the monotonic one goes on."""

    def __init__(self) -> None:
        super().__init__()
        self.jump_ns = 0

    def wall(self) -> int:
        return super().wall() + self.jump_ns


class Client(Asker):
    """One connection, as the broker sees it. Nothing reaches a closed one."""

    def __init__(self, world: World, name: str) -> None:
        super().__init__(name)
        self.world = world
        self.deaf = False  # its connection is lost, and the server does not know yet
        self.on_lost: Callable[[tuple[int, str]], None] = lambda _key: None

    def answer(self, request: int, control: Control, payload: bytes | memoryview = b"") -> None:
        if not self.closed and not self.deaf:
            if self.world.recorder is not None:
                self.world.recorder.heard(self, request)
            super().answer(request, control, payload)

    def lost(self, log: int, consumer: str, epoch: int) -> None:
        super().lost(log, consumer, epoch)
        if not self.closed and not self.deaf:
            self.on_lost((log, consumer))

    def granted(self, key: tuple[int, str], grant: Grant) -> None:
        super().granted(key, grant)
        if self.closed:
            self.world.submit(self, 0, Leave(*key))

    def last(self, kind: type[Answered]) -> Answered:
        """The last answer, which is of this kind."""
        found = self.answers[max(self.answers)]
        assert isinstance(found, kind), found
        return found


class World:
    """A server with one log, ``a``, of id 1."""

    boot = ""  # its machine's id of that; "" if nothing is known

    def __init__(
        self,
        records: int = 0,
        *,
        policy: str = "always",
        pages: int = 64,
        recorder: Recorder | None = None,
        **options: Any,
    ) -> None:
        self.recorder = recorder
        self.clock = WallClock()
        self.policy, self.pages = policy, pages
        self.disk = SimDisk()
        self.flight: Flight | None = None
        self.server = self._serve()
        self.server.create("a", file_roll_size=16 * ROLL, **options)
        for number in range(records):
            self.send(self.client("filler"), [b"record %d" % number])

    def _serve(self) -> Server:
        server = Server(
            self.disk,
            file_bytes=self.pages * PAGE,
            policy=self.policy,
            clock=self.clock,
            boot=self.boot,
        )
        if self.recorder is not None:
            journal = server.driver.journal
            # The frame of the start itself came behind what was found.
            self.recorder.start(self.clock.now, journal.tail() - 1)
            self.recorder.tail = journal.tail
        return server

    # --- looking ------------------------------------------------------------------------------

    @property
    def books(self) -> Books:
        return self.server.driver.broker.books

    @property
    def log(self) -> state.Log:
        return self.books.state.logs[LOG]

    def cursor(self, consumer: str = "c") -> state.Cursor:
        return self.log.cursors[consumer]

    def parked(self, consumer: str = "c") -> list[protocol.ParkedInfo]:
        client = self.client("onlooker")
        request = self.ask(client, protocol.ListParked(LOG, consumer))
        self.pump()
        return msgspec.msgpack.decode(client.payloads[request], type=list[protocol.ParkedInfo])

    def values(self, log: str = "a") -> list[bytes | None]:
        return self.server.view().logs[log].records

    # --- asking -------------------------------------------------------------------------------

    def client(self, name: str) -> Client:
        return Client(self, name)

    def submit(
        self,
        client: Client,
        request: int,
        control: Control,
        batches: Sequence[Batch] = (),
    ) -> None:
        # A copy: a request that is sent twice is decoded twice.
        control = msgspec.structs.replace(control)
        waiting = Waiting(client, request, control, batches)
        self.server.driver.broker.submit(waiting)

    def ask(self, client: Client, control: Control, batches: Sequence[Batch] = ()) -> int:
        """Submit a request, undecided until ``pump``."""
        request = client.begin(lambda _control: None)
        self.submit(client, request, control, batches)
        return request

    def call(self, client: Client, control: Control) -> Any:
        """The answer; None while there is none."""
        request = self.ask(client, control)
        self.pump()
        return client.answers.get(request)

    def together(self, *asked: tuple[Client, Control]) -> list[Any]:
        """The answers to what is decided in one go."""
        requests = [self.ask(client, control) for client, control in asked]
        self.pump()
        return [
            client.answers.get(request)
            for (client, _control), request in zip(asked, requests, strict=True)
        ]

    def claim(self, client: Client, token: bytes = b"", consumer: str = "c", **more: Any) -> Any:
        token = token or client.name.encode()
        claim = protocol.Claim(LOG, consumer, model.OLDEST, token, **more)
        answer = self.call(client, claim)
        self.deliver(client, consumer)
        return answer

    def deliver(self, client: Client, consumer: str = "c") -> None:
        """Push all there is to whoever holds the claim."""
        if (grant := client.grants.get((LOG, consumer))) is not None:
            grant.delivered = self.books.visible[LOG].end

    def commit(self, client: Client, epoch: int, offset: int, begun: int = 0) -> Any:
        return self.call(client, protocol.CommitCursor(LOG, "c", epoch, offset, begun))

    def settle(self, client: Client, epoch: int, offset: int, verdict: Any, **more: Any) -> Any:
        return self.call(client, protocol.Settle(LOG, "c", epoch, offset, verdict, **more))

    def take(self, client: Client, epoch: int, *, begin: bool = False) -> Any:
        return self.call(client, protocol.TakeRedriven(LOG, "c", epoch, begin))

    def ask_append(
        self,
        client: Client,
        values: Sequence[bytes],
        keys: Sequence[bytes | None] | None = None,
        *,
        producer: int = 0,
        sequence: int = 0,
        epoch: int = 0,
        **more: Any,
    ) -> int:
        raw = bytes(
            batch.encode(list(values), keys, producer=producer, sequence=sequence, epoch=epoch)
        )
        return self.ask(client, protocol.Append(LOG, **more), [judged(raw)])

    def send(self, client: Client, values: Sequence[bytes], *args: Any, **more: Any) -> Any:
        request = self.ask_append(client, values, *args, **more)
        self.pump()
        return client.answers.get(request)

    def ask_transact(self, client: Client, control: protocol.Transact, *values: Values) -> int:
        """``values``: of each batch; see ``packed``."""
        request = client.begin(lambda _control: None)
        self.submit(client, request, *packed(control, *values))
        return request

    def transact(self, client: Client, control: protocol.Transact, *values: Values) -> Any:
        request = self.ask_transact(client, control, *values)
        self.pump()
        return client.answers.get(request)

    def open(self, client: Client, producer: int, name: str | None = None, **more: Any) -> Any:
        more.setdefault("token", client.name.encode())
        return self.call(client, protocol.OpenProducer(LOG, producer, name, **more))

    # --- time, connections, kills -------------------------------------------------------------

    def pump(self) -> None:
        self.land()
        self.server.pump()

    def fly(self) -> bool:
        """Decide what waits; whether a frame is under way now."""
        if self.flight is None:
            self.flight = self.server.driver.begin()
        return self.flight is not None

    def land(self) -> None:
        """The frame under way is synced."""
        if self.flight is not None:
            flight, self.flight = self.flight, None
            self.server.driver.finish(flight, self.server.driver.journal.wait(flight.number))

    def sleep(self, seconds: float) -> None:
        self.land()
        self.server.sleep(seconds)

    def leave(self, client: Client, *, pump: bool = True) -> None:
        """The connection is gone, and the server sees it."""
        client.closed = True
        for key in {*client.grants, *client.waits}:
            self.submit(client, 0, Leave(*key))
        if pump:
            self.pump()

    def restart(self, choice: Choice | None = NOTHING, *, clean: bool = False) -> None:
        """The next life: after a clean stop, a kill (``choice`` None), or a power cut."""
        if clean:
            self.pump()
            self.server.checkpoint()
        self.flight = None
        self.disk = self.disk.killed() if choice is None or clean else self.disk.crash(choice)
        self.server = self._serve()


def packed(control: protocol.Transact, *values: Values) -> tuple[protocol.Transact, list[Batch]]:
    """A transaction as it is submitted: its control with the lengths of its batches, and those."""
    batches = []
    appends = []
    for asked, each in zip(control.appends, values, strict=True):
        keys = each.keys() if isinstance(each, dict) else None
        plain = list(each.values() if isinstance(each, dict) else each)
        raw = bytes(batch.encode(plain, None if keys is None else list(keys)))
        batches.append(judged(raw))
        appends.append(msgspec.structs.replace(asked, bytes=len(raw)))
    return msgspec.structs.replace(control, appends=appends), batches


def code(answer: Any) -> int:
    assert isinstance(answer, protocol.Error), answer
    return answer.code

"""A member of a shared consumer in a ``World``: what a connection does for it, done by hand."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rlog.decisions import NOBODY, Waiting
from rlog.membership import Membership
from rlog.segment import Damage
from rlog_client import batch, model, protocol
from tests.schedules.world import LOG, Client, World

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rlog.subscription import Read
    from rlog_client.protocol import Control

NAME = "s"


class Seat:
    """``heard``: every message that its membership sent, as (request, control)."""

    def __init__(self, world: World, name: str = "a", **more: Any) -> None:
        self.world = world
        self.client = Client(world, name)
        self.heard: list[tuple[int, Control]] = []
        self.batches: list[int] = []  # by their first offsets, in the order in which they came
        self.woken = 0
        self._loans = 0
        self.claimed = self.claim(**more)
        assert isinstance(self.claimed, protocol.Claimed), self.claimed
        self.epoch = self.claimed.epoch
        self.subscribe()

    def claim(self, **more: Any) -> Any:
        token = more.pop("token", self.client.name.encode())
        claim = protocol.Claim(LOG, NAME, model.OLDEST, token, shared=True, **more)
        return self.world.call(self.client, claim)

    def subscribe(self) -> None:
        world = self.world
        grant = self.client.grants[LOG, NAME]
        self.membership = Membership(self, world.books, 7, world.log, NAME, grant)

    # --- as an outlet -------------------------------------------------------------------------

    def answer(self, request: int, control: Control, payload: bytes | memoryview = b"") -> None:
        protocol.encode(request, control, len(payload))  # (it has to fit)
        self.heard.append((request, control))
        if isinstance(control, protocol.Records):
            header = batch.parse_header(payload)
            batch.check_body(header, payload[batch.HEADER_BYTES :])
            self.batches.append(header.base)

    def ask(self, control: Control) -> None:
        self.world.server.driver.broker.submit(Waiting(NOBODY, 0, control))

    def wake(self) -> None:
        self.woken += 1

    # --- doing --------------------------------------------------------------------------------

    def lend(self, records: int = 1000, **more: Any) -> None:
        self._loans += 1
        self.membership.lend(100 + self._loans, protocol.Credit(7, 0, records, **more))

    def read(self) -> Read | None:
        return self.membership.next_read()

    def deliver(self, read: Read) -> None:
        found = read.run(wait=True)
        assert found is not None
        self.membership.deliver(read, found)

    def step(self) -> None:
        """One read."""
        read = self.read()
        assert read is not None
        self.deliver(read)

    def pump(self) -> None:
        while (read := self.read()) is not None:
            self.deliver(read)

    def take(self, records: int = 1000, **more: Any) -> list[int]:
        """Lend, and what it is assigned by that."""
        before = len(self.assigned)
        self.lend(records, **more)
        self.pump()
        return self.assigned[before:]

    def commit(self, *done: int, begun: tuple[int, ...] = (), **more: Any) -> Any:
        return self.world.call(self.client, self.committing(*done, begun=begun, **more))

    def committing(self, *done: int, begun: tuple[int, ...] = (), **more: Any) -> Control:
        flat: list[int] = []
        for offset in sorted(done):
            if flat and flat[-1] == offset:
                flat[-1] = offset + 1
            else:
                flat += (offset, offset + 1)
        return protocol.CommitRecords(LOG, NAME, self.epoch, flat, list(begun), **more)

    def settling(self, offset: int, verdict: Any, **more: Any) -> Control:
        return protocol.Settle(LOG, NAME, self.epoch, offset, verdict, **more)

    def settle(self, offset: int, verdict: Any, **more: Any) -> Any:
        return self.world.call(self.client, self.settling(offset, verdict, **more))

    # --- looking ------------------------------------------------------------------------------

    def all(self, kind: type[Any]) -> list[Any]:
        return [control for _request, control in self.heard if isinstance(control, kind)]

    @property
    def assigned(self) -> list[int]:
        return [offset for each in self.all(protocol.Assigned) for offset in each.offsets]

    def is_lending(self) -> bool:
        """Its last loan is open."""
        return not any(
            request == 100 + self._loans and isinstance(control, protocol.Settled)
            for request, control in self.heard
        )


def world_of(*batches: Sequence[bytes | None], **more: Any) -> World:
    """A log of batches with these keys."""
    world = World(**more)
    filler = world.client("filler")
    for number, keys in enumerate(batches):
        values = [b"%d %d" % (number, index) for index in range(len(keys))]
        world.send(filler, values, keys if any(keys) else None)
    return world


def rot(read: Read) -> Damage:
    return Damage(read.position or 0, read.offset, read.extent.end, "rot")

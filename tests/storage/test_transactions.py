"""Promises 13, 18: a transaction that is repeated after any crash was done once, all of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rlog_client import model, protocol
from tests.storage.explore import live
from tests.storage.history import History, settle
from tests.storage.server import ROLL, Server
from tests.storage.simdisk import SimDisk, choices

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.storage.explore import Cut, Payloads
    from tests.storage.simdisk import Choice

TOKEN = b"0123456789abcdef"  # of the claim, see ``Server.claim``
STEPS = 5


def made_of(step: int) -> list[tuple[str, bytes]]:
    """What record ``step`` of "in" becomes, in one log or in two."""
    made = [("out", b"%08d out" % step + bytes(200 * step))]
    return made if step % 2 else [*made, ("two", b"%08d two" % step)]


def work(server: Server, payload: Payloads) -> None:
    for name, sync in (("in", "always"), ("out", "never"), ("two", "always")):
        server.create(name, sync=sync, file_roll_size=ROLL)
    server.batch("in", *(payload() for _ in range(STEPS)))
    server.claim("in", "c")
    for step in range(STEPS):
        server.transact(step, made_of(step), [("in", "c", step + 1)])
        if step == 2:
            server.checkpoint()


def states(cut: Cut) -> Iterator[tuple[Choice | None, SimDisk]]:
    yield None, cut.disk.killed()
    for choice in choices(cut.disk, 6, cut.operation, 2, "logs"):
        yield choice, cut.disk.crash(choice)


def go_on(server: Server) -> None:
    """Whoever was at work comes back, and asks for all of it once more, in its old order."""
    peer, log = server.peer, server.ids["in"]
    claim = protocol.Claim(log, "c", model.OLDEST, TOKEN, epoch=1)
    answer = server.call(claim)
    if not isinstance(answer, protocol.Claimed):
        answer = server.call(protocol.Claim(log, "c", model.OLDEST, TOKEN, takeover=True))
    assert isinstance(answer, protocol.Claimed)
    assert (log, "c") in peer.grants
    requests = []
    for step in range(STEPS):
        requests.append(server.ask_transaction(step, made_of(step), [("in", "c", step + 1)]))
    server.pump()
    assert all(isinstance(peer.answers[each], protocol.Transacted) for each in requests)


def test_whatever_crashes_each_transaction_is_done_once_when_all_are_repeated() -> None:
    cuts, _ = live(SimDisk(), History(), work, 1)
    tried = repeated = 0
    for cut in cuts:
        for choice, left in states(cut):
            way = f"operation {cut.operation} ({cut.kind}), {choice}"
            server = Server(left)
            view = server.view()
            if set(view.logs) != {"in", "out", "two"} or view.logs["in"].end < STEPS:
                continue  # it was only being set up
            tried += 1
            power_cut = choice is not None
            assert not (wrong := cut.history.check(view, power_cut=power_cut)), f"{way}: {wrong}"
            server.history = settle(cut.history, view)
            known = server.driver.broker.books.state.clients
            done = [each.number for client in known.values() for each in client.done]
            repeated += len(done)
            assert done == list(range(len(done))), way
            go_on(server)
            for again in (server, Server(left.killed())):
                logs = again.view().logs
                for name in ("out", "two"):
                    wanted = [p for step in range(STEPS) for n, p in made_of(step) if n == name]
                    assert logs[name].records == wanted, f"{way}: {name}"
                assert logs["in"].cursors["c"][0] == STEPS, way
    assert tried > 300
    assert repeated > 300

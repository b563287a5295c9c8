"""What the servers of the crash tests are asked to do. Small pages, small files: much happens."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.storage.explore import Payloads
    from tests.storage.server import Server

ROLL = 4096


def everything(server: Server, payload: Payloads) -> None:
    """Two logs of different policies; rolls, claims, commits, trims, a deletion, checkpoints."""
    server.create("a", sync="always", file_roll_size=ROLL)
    server.create("n", sync="never", file_roll_size=ROLL)
    server.batch("a", payload(100), payload(), payload(10))
    server.batch("n", payload(900))
    server.claim("a", "c")
    server.batch("n", payload(), payload(1500))
    server.frame([("a", payload(500)), ("n", payload(300)), ("a", payload())], [("a", "c", 3)])
    server.batch("a", payload(3600))
    server.claim("n", "g")
    server.batch("n", payload(700))
    server.commit("n", "g", 2)
    server.checkpoint()
    server.batch("a", payload(1200))
    server.batch("n", payload(200))
    server.batch("a", payload(4500))  # larger than a segment: alone in its file
    server.create("d", sync="always", file_roll_size=ROLL)
    server.frame([("d", payload(600)), ("a", payload(60))], [("a", "c", 6)])
    server.trim("a", 6)
    server.batch("n", payload(3000))
    server.batch("d", payload(2000))
    server.batch("d", payload(3000))  # so that not all of it lies in a page of the checkpoint
    server.checkpoint()
    server.batch("n", payload(1300))
    server.batch("a", payload(800))
    server.delete("d")
    server.batch("n", payload(100))
    server.commit("n", "g", 5)
    server.batch("a", payload(2500))
    server.sleep(1.5)
    server.batch("n", payload(2800))
    server.batch("n", payload(2800))
    server.batch("n", payload(2800))
    server.batch("n", payload(1000))
    server.trim("n", 7)
    server.checkpoint()
    server.batch("n", payload(50))
    server.batch("a", payload(3000))
    server.frame([("n", payload(2000)), ("a", payload(2000))], [("n", "g", 8)])


def periodic(server: Server, payload: Payloads) -> None:
    """A log that is synced every now and then, beside one that always is."""
    server.create("p", sync="periodic:1s", file_roll_size=ROLL)
    server.create("a", sync="always", file_roll_size=2 * ROLL)
    server.claim("p", "c")
    for step in range(6):
        server.batch("p", payload(400 * step), payload())
        server.frame([("p", payload(30)), ("p", payload(900))], [("p", "c", 2 * step + 1)])
        if step % 2:
            server.sleep(1.2)
        if step == 3:
            server.batch("a", payload(1700), payload(300))
            server.checkpoint()
    server.trim("p", 8)
    server.checkpoint()
    server.batch("p", payload(2000))
    server.batch("a", payload(10))


def beside(server: Server, payload: Payloads) -> None:
    """Checkpoints that are made while appends, rolls, trims, creations and deletions go on."""
    server.create("a", sync="always", file_roll_size=ROLL)
    server.create("n", sync="never", file_roll_size=ROLL)
    server.create("d", sync="never", file_roll_size=ROLL)
    server.claim("a", "c")
    for _step in range(3):
        server.batch("n", payload(1900))
        server.batch("a", payload(2500), payload(100))
    server.batch("d", payload(200))

    def work() -> None:
        server.batch("n", payload(700))
        server.batch("a", payload(3000))
        server.create("e", sync="always", file_roll_size=ROLL)
        server.batch("e", payload(600))
        server.commit("a", "c", 3)
        server.trim("a", 4)
        server.delete("d")
        server.batch("n", payload(2200))

    server.checkpoint_beside(work)
    server.batch("a", payload(1000))
    server.checkpoint_beside(lambda: server.trim("n", 3))
    server.batch("n", payload(800))
    server.checkpoint_beside(lambda: server.delete("e"))
    server.batch("a", payload(10))


def transacting(server: Server, payload: Payloads) -> None:
    """Records of one log become records of two others, and are committed with them."""
    server.create("in", sync="always", file_roll_size=ROLL)
    server.create("out", sync="never", file_roll_size=ROLL)
    server.create("two", sync="periodic:1s", file_roll_size=ROLL)
    server.batch("in", *(payload(300) for _ in range(8)))
    server.claim("in", "c")
    server.claim("two", "d")
    for step in range(1, 7):
        appends = [("out", payload(900)), ("two", payload(20)), ("out", payload())]
        if step % 2:
            appends.append(("in", payload(10)))
        server.transact(step, appends, [("in", "c", step)])
        if step == 3:
            server.checkpoint()
        if step == 4:
            server.sleep(1.2)
    server.transact(7, [("two", payload(3000))], [("in", "c", 7), ("two", "d", 6)])
    server.transact(8, [], [("two", "d", 7)])
    server.checkpoint()
    server.transact(9, [("out", payload(3000)), ("two", payload(3000))], [("in", "c", 9)])


def bounded(server: Server, payload: Payloads) -> None:
    """A log that trims itself, with a protected consumer and parked records in its way."""
    server.create(
        "r", sync="always", file_roll_size=ROLL, max_total_bytes=4 * ROLL, protected=["c"]
    )
    server.claim("r", "c")
    server.claim("r", "d")
    server.batch("r", payload(900), payload(), payload(1200))
    server.settle("r", "d", 0, "park")
    server.settle("r", "d", 1, "park")
    server.commit("r", "c", 3)
    for step in range(4):
        server.batch("r", payload(2800), payload(400 * step))
    server.settle("r", "d", 2, "park")
    server.checkpoint()
    server.commit("r", "c", 7)
    server.batch("r", payload(2000))
    server.batch("r", payload(3000))
    server.sleep(1.5)
    server.redrive("r", "d")
    server.settle("r", "d", 0, "park", redriven=True)
    server.settle("r", "d", 1, "commit", redriven=True)
    server.batch("r", payload(3500))
    server.trim("r", 7)
    server.checkpoint()
    server.commit("r", "c", 11)
    server.batch("r", payload(5000))
    server.sleep(1.5)
    server.batch("r", payload(100))


def compacting(server: Server, payload: Payloads) -> None:
    """Logs that are compacted, beside appends, a trim, a deletion and checkpoints."""
    keyed = {"file_roll_size": ROLL, "key_index": True, "compact": True}
    server.create("k", sync="always", **keyed)
    server.create("n", sync="never", **keyed)

    def put(log: str, *keys: bytes | None, size: int = 500) -> None:
        server.batch(log, *(payload(size) for _ in keys), keys=keys)

    put("k", b"a", b"b", None, b"c")
    put("n", b"x", b"x", b"y")
    put("k", b"d", b"a", b"b", b"c")
    put("k", b"a", b"b", b"b")
    server.compact()
    put("n", b"x", b"y", b"x", b"y", size=900)
    put("k", b"c", b"e", size=1500)
    server.checkpoint()
    put("k", b"a", b"c", b"e", size=1200)
    put("n", b"x", b"y", size=1800)

    def work() -> None:
        put("k", b"a", b"d", b"b", size=900)
        put("n", b"x", size=2000)

    def compact() -> None:
        server.compact()

    server.compact(work)
    server.claim("k", "c")
    server.commit("k", "c", 3)
    put("k", b"a", b"e", b"b", b"c", size=900)
    put("k", b"a", b"c", b"e", b"b", size=900)
    server.checkpoint_beside(compact)
    server.trim("k", 8)
    put("k", b"a", b"b", b"c", b"e", size=900)
    server.compact(lambda: server.trim("k", 14))
    put("n", b"x", b"y", size=1800)
    put("n", b"x", b"y", size=1800)
    server.compact(lambda: server.delete("n"))
    put("k", b"a", size=50)


def later(server: Server, payload: Payloads) -> None:
    """What a recovered server goes on with, whatever it found."""
    logs = sorted(server.ids)
    for log in logs:
        server.batch(log, payload(700), payload(20))
    if not logs:
        server.create("z", sync="always", file_roll_size=ROLL)
        logs = ["z"]
    server.checkpoint()
    for log in logs:
        server.batch(log, payload(1500))
    server.frame([(log, payload(200)) for log in logs])

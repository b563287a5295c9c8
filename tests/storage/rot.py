"""Damage to a directory that nobody is writing: what may come of it, and nothing else.

The server is stopped in the middle of its work, *at rest* (idle for a while) or *busy* (right after
an answer). Then bytes change. What the next server does must be one of these: it serves everything;
it serves everything but batches which it names as damaged; it refuses to start, names why, and has
touched nothing. A busy server may lose what its very last sync made durable, if it reports it.
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, NamedTuple

from rlog.journal import Refused
from tests.storage.explore import Payloads
from tests.storage.history import Place
from tests.storage.server import ROLL, Server
from tests.storage.simdisk import Choice, Fill, SimDisk

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from tests.storage.history import View


class Moment(NamedTuple):
    """What the frames up to ``number`` add up to."""

    number: int
    ends: dict[str, tuple[int, int]]  # log -> (first, end)
    cursors: dict[tuple[str, str], tuple[int, int]]  # (log, consumer) -> (committed, epoch)


class Directory:
    """A directory as a server left it: its files, and what it was frame by frame."""

    def __init__(
        self,
        work: Callable[[Server, Payloads, Directory], None],
        *,
        at_rest: bool,
        laid_out: bool = True,
    ) -> None:
        """``laid_out``: what segments got since the last checkpoint came to the disk, too."""
        disk = SimDisk()
        self.at_rest = at_rest
        self.moments: list[Moment] = []
        self.server = Server(disk)
        work(self.server, Payloads(random.Random(1), 0), self)
        if at_rest:
            self.server.sleep(1.5)
        self.note()
        self.records: Mapping[Place, bytes] = self.server.history.written
        segments = disk.nodes_below("logs")
        kept = [laid_out or unit.node not in segments for unit in disk.units()]
        mask = sum(1 << index for index, keep in enumerate(kept) if keep)
        self.disk = disk.crash(Choice(mask, Fill.OLD, 1))
        self.tree = self.disk.tree()

    def note(self) -> None:
        """What there is now is a moment: the frames up to here."""
        state = self.server.driver.broker.books.state
        moment = Moment(
            self.server.driver.journal.tail(),
            {log.name: (log.first, log.end) for log in state.logs.values()},
            {
                (log.name, name): (cursor.committed, cursor.epoch)
                for log in state.logs.values()
                for name, cursor in log.cursors.items()
            },
        )
        self.moments.append(moment)

    def damaged(self, path: str, contents: bytes) -> SimDisk:
        disk = self.disk.copy()
        disk.replace(path, contents)
        return disk


class Outcome(NamedTuple):
    """``kind``: whole, batch, refused, cut, or WRONG; ``detail`` says more."""

    kind: str
    detail: str
    lost: tuple[Place, ...] = ()
    moments: tuple[int, ...] = ()  # the frames up to which what is served stands, if it was cut


def judge(directory: Directory, disk: SimDisk) -> Outcome:
    """Start a server on a damaged directory, and judge what it serves."""
    before = disk.tree()
    try:
        server = Server(disk)
        view = server.view()
    except Refused as error:
        if disk.tree() != before:
            return Outcome("WRONG", f"refused, and touched: {error}")
        return Outcome("refused" if str(error) else "WRONG", str(error))
    except Exception as error:
        return Outcome("WRONG", f"not started: {type(error).__name__}: {error}")
    if server.failed is not None:
        return Outcome("WRONG", f"writing failed: {server.failed}")
    if wrong := list(served_wrongly(directory, view)):
        return Outcome("WRONG", "; ".join(wrong[:3]))
    lost = tuple(
        Place(name, offset)
        for name, log in view.logs.items()
        for offset, payload in enumerate(log.records, log.first)
        if payload is None
    )
    stands_at = moments_of(directory, view)
    if directory.moments[-1] in stands_at:
        return Outcome("batch", "", lost) if lost else Outcome("whole", "")
    if not stands_at:
        return Outcome("WRONG", "what is served is not what it was at any moment", lost)
    # A segment that was laid out for a lost frame is set aside as well: that is no report of it.
    quarantined = [name for name in disk.names("quarantine") if not name.endswith(".seg")]
    numbers = tuple(moment.number for moment in stands_at)
    return Outcome("cut", "reported" if quarantined else "", lost, numbers)


def served_wrongly(directory: Directory, view: View) -> list[str]:
    return [
        f"{name}/{offset} is not what was appended"
        for name, log in view.logs.items()
        for offset, payload in enumerate(log.records, log.first)
        if payload is not None and directory.records.get(Place(name, offset)) != payload
    ]


def moments_of(directory: Directory, view: View) -> list[Moment]:
    """The moments at which everything was as it is served."""
    ends = {name: (log.first, log.end) for name, log in view.logs.items()}
    cursors = {
        (name, consumer): cursor
        for name, log in view.logs.items()
        for consumer, cursor in log.cursors.items()
    }
    return [each for each in directory.moments if each.ends == ends and each.cursors == cursors]


def small(server: Server, payload: Payloads, directory: Directory) -> None:
    """Two checkpoints, and frames behind each; segments that are full, and unfinished."""
    note = directory.note
    server.create("a", sync="always", file_roll_size=ROLL)
    server.create("n", sync="never", file_roll_size=ROLL)
    server.claim("a", "c")
    server.batch("a", payload(300), payload(40))
    server.batch("a", payload(3900))
    server.batch("n", payload(200))
    server.checkpoint()
    server.batch("a", payload(900))
    server.commit("a", "c", 2)
    server.batch("n", payload(700))
    server.checkpoint()
    note()
    server.batch("a", payload(400))
    note()
    server.batch("a", payload(100), payload(100))
    note()
    server.batch("n", payload(1000))
    note()
    server.commit("a", "c", 3)
    note()
    server.frame([("a", payload(50)), ("n", payload(60))], [("a", "c", 4)])
    note()
    for _ in range(3):
        server.batch("a", payload(2000))
        note()

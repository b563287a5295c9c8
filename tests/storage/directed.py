"""Crashes made by hand: each needs one rule that cuts at random meet once in ten thousand.

A scenario gives a sentence about what is wrong, or none. What they do not try, and why it needs no
trial of its own:

- *The names in journal/ are not synced at the start.* A start begins a file, and beginning one
  syncs that directory before a frame goes in; no frame ever stood in a file whose name was not
  synced. The data directory's own names are another matter: ``killed_then_cut``.
- *Checkpoints are read from the cache.* A checkpoint gets its name behind a sync that succeeded, so
  one that can be found is on the disk; after a sync that failed it has no name. (For the journal,
  which is named before it is written, the cache does matter: the harness of failing calls.)
- *A frame of a recycled file is accepted.* Its number is at or below the older checkpoint's, and
  the chain takes only the next number that names the CRC before it: two rules, either of which is
  enough, so only both together are switched off as one mutant. What a file's first page decides
  (whether the files before it matter) is the mutant of the page that is not zeroed, again with a
  second rule: that it fits what the files before it begin with.
- *Going on in the old file after a start* loses no record while the chain and the zero page stand:
  a frame is only ever written over what is no part of the chain. What it loses is the evidence, of
  which quarantine holds a copy, and so the rule itself is what is tried: ``evidence``.
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

from rlog import frame
from rlog.journal import Refused, scan
from rlog_client.batch import HEADER_BYTES
from tests.storage.build import flip
from tests.storage.explore import Payloads, live
from tests.storage.history import History, View, settle
from tests.storage.server import ROLL, Server
from tests.storage.simdisk import PAGE, Choice, Fill, SimDisk

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

NOTHING = Choice(0, Fill.OLD, 1)  # nothing that was not synced came through


def payloads(history: History) -> Payloads:
    return Payloads(random.Random(1), len(history.sent))


def served(view: View) -> dict[str, tuple[int, list[bytes | None]]]:
    return {name: (log.first, log.records) for name, log in view.logs.items()}


def unsynced(sizes: tuple[int, ...]) -> tuple[SimDisk, History]:
    """A disk with frames that nobody synced, one for each size."""
    disk = SimDisk()
    server = Server(disk, file_bytes=16 * PAGE)
    server.create("a", sync="always", file_roll_size=ROLL)
    server.create("n", sync="never", file_roll_size=16 * ROLL)
    payload = payloads(server.history)
    server.batch("a", payload(100))
    for size in sizes:
        server.batch("n", payload(size))
    return disk, server.history


def halves(disk: SimDisk) -> Iterator[tuple[str, SimDisk]]:
    """Every subset of the journal's unsynced pages; what else there is came through."""
    units, journal = disk.units(), disk.nodes_below("journal")
    pages = [i for i, unit in enumerate(units) if unit.node in journal and unit.kind == "page"]
    rest = sum(1 << i for i in range(len(units)) if i not in pages)
    for subset in range(1 << len(pages)):
        mask = rest | sum(1 << page for bit, page in enumerate(pages) if subset >> bit & 1)
        for fill in Fill:
            yield f"pages {subset:b}, {fill.value}", disk.crash(Choice(mask, fill, subset))


def lost_in_the_middle() -> str:
    """Any of the unsynced frames is lost, or a part of one; then come three lives more.

    What the first of them does not serve stays away for ever, and what a later one answers stays.
    """
    for sizes in ((100, 100, 100, 100), (100, 5000, 100), (9000, 100, 5000)):
        disk, before = unsynced(sizes)
        for way, left in halves(disk):
            history = before.after_power_cut()
            known = None
            for life in (2, 3, 4, 5):
                try:
                    server = Server(left, history)
                except (Refused, AssertionError) as error:
                    return f"frames of {sizes}, {way}: life {life} is not started: {error!r}"
                view = server.view()
                if wrong := history.check(view, power_cut=True):
                    return f"frames of {sizes}, {way}: life {life}: {wrong[0]}"
                if known is not None and served(view) != known:
                    return f"frames of {sizes}, {way}: life {life} serves something else"
                server.history = history = settle(history, view)
                if life >= 3:
                    server.batch("a", payloads(history)(50))
                    server.batch("n", payloads(history)(50))
                    server.batch("a", payloads(history)(50))
                known = served(server.view())
                left = left.killed() if life == 2 else left.crash(NOTHING)
    return ""


def little(server: Server, payload: Payloads) -> None:
    server.create("a", sync="always", file_roll_size=ROLL)
    server.batch("a", payload(100))
    server.create("n", sync="never", file_roll_size=ROLL)
    server.batch("n", payload(3000))
    server.batch("n", payload(3000))
    server.checkpoint()
    server.batch("a", payload(4000))
    server.batch("n", payload(100))
    server.checkpoint()
    server.trim("a", 1)


def killed_then_cut() -> str:
    """Killed at every boundary, started again, something answered; then the power is cut, and all
    that was not synced is gone.
    """
    cuts, _ = live(SimDisk(), History(), little, 1)
    for cut in cuts:
        way = f"killed at operation {cut.operation} ({cut.kind})"
        disk, history = cut.disk.killed(), cut.history.copy()
        server = Server(disk, history)
        if wrong := history.check(server.view(), power_cut=False):
            return f"{way}: {wrong[0]}"
        server.history = settle(history, server.view())
        server.create("z", sync="always", file_roll_size=ROLL)
        server.batch("z", payloads(server.history)(100))
        for fill in Fill:
            try:
                view = Server(disk.crash(Choice(0, fill, 1))).view()
            except Refused as error:
                return f"{way}, then the power cut, {fill.value}: refused: {error}"
            if wrong := server.history.check(view, power_cut=True):
                return f"{way}, then the power cut, {fill.value}: {wrong[0]}"
    return ""


def recycled() -> str:
    """Small frames in files that held large ones: behind the last frame old bytes may stand, which
    are nothing.
    """
    disk = SimDisk()
    server = Server(disk)
    server.create("a", sync="always", file_roll_size=16 * ROLL)
    payload = payloads(server.history)
    for size in (9000, 9000, 9000, 9000, 9000, 9000, 20, 20, 5000, 20, 20, 9000, 20, 20, 20):
        server.batch("a", payload(size))
        left = disk.crash(NOTHING)
        after = Server(left)
        if torn := left.names("quarantine"):
            return f"behind the frame of {size} bytes: {torn[0]} is called torn, all was synced"
        if wrong := server.history.check(after.view(), power_cut=True):
            return f"behind the frame of {size} bytes: {wrong[0]}"
        if size == 9000:
            server.checkpoint()
    return ""


def evidence() -> str:
    """What a crash left behind the last frame is never written over, only found to be nothing."""
    disk, before = unsynced((9000, 5000))
    for way, left in halves(disk):
        names = [f"journal/{name}" for name in left.names("journal") if name.isdecimal()]
        kept = {name: left.contents(name) for name in names}
        server = Server(left, before.after_power_cut())
        for _ in range(3):
            server.batch("a", payloads(server.history)(3000))
        if changed := [name for name in kept if left.contents(name) != kept[name]]:
            return f"{way}: {changed[0]} was written to by a later life"
    return ""


def foreign() -> str:
    """A frame of another directory's journal is no part of this one's chain."""
    trees = []
    for name in ("mine", "other"):
        disk = SimDisk()
        server = Server(disk)
        server.create(name, sync="always", file_roll_size=ROLL)
        server.batch(name, b"%08d %s" % (1, name.encode()))
        server.batch(name, b"%08d %s" % (2, name.encode()))
        trees.append((server, disk.crash(NOTHING)))
    (mine, disk), (_, other) = trees
    later = f"journal/{99:010}"
    # Not at the begin: that file would be refused.
    shifted = bytes(PAGE) + other.contents("journal/0000000001")[:-PAGE]
    disk.create(later).write(0, [shifted])
    if wrong := mine.history.check(Server(disk).view(), power_cut=True):
        return wrong[0]
    return ""


def answered() -> str:
    """Under ``always`` an answer says synced, and after a power cut right behind it, it is so."""
    disk = SimDisk()
    server = Server(disk)
    server.create("a", sync="always", file_roll_size=16 * ROLL)
    payload = payloads(server.history)
    server.claim("a", "c")
    for offset in range(1, 6):
        server.batch("a", payload(50))
        server.commit("a", "c", offset)
        if server.history.commits_synced["a", "c"] != offset:
            return f"the commit of {offset} was not answered as synced"
        if wrong := server.history.check(Server(disk.crash(NOTHING)).view(), power_cut=True):
            return wrong[0]
    return ""


def witnessed() -> str:
    """A server that has been idle for a while left proof of all that it acknowledged as synced, of
    which a power cut takes nothing; so damage to any of that is refused, not called torn.
    """
    disk = SimDisk()
    server = Server(disk, file_bytes=16 * PAGE)
    server.create("n", sync="never", file_roll_size=16 * ROLL)
    server.create("a", sync="always", file_roll_size=16 * ROLL)
    payload = payloads(server.history)
    server.batch("a", payload(50))
    number = server.driver.journal.tail()
    server.sleep(0.5)
    server.batch("n", payload(50))
    server.sleep(5)
    left = disk.crash(NOTHING)
    name = next(f"journal/{name}" for name in left.names("journal") if name.isdecimal())
    contents = left.contents(name)
    begin = (number - 1) * PAGE
    left.replace(name, contents[: begin + 60] + b"rot" + contents[begin + 63 :])
    try:
        Server(left)
    except Refused:
        return ""
    return f"frame {number} was acknowledged, the server idle, and its damage is called torn"


def consumed() -> tuple[SimDisk, Server]:
    """A directory at rest: a batch below the checkpoint, and commits above it."""
    disk = SimDisk()
    server = Server(disk, file_bytes=16 * PAGE)
    server.create("a", sync="always", file_roll_size=16 * ROLL)
    payload = payloads(server.history)
    server.claim("a", "c")
    for size in (5000, 50, 50, 50):  # so that the first is not in a page of the checkpoint
        server.batch("a", payload(size))
    server.checkpoint()
    for offset in range(1, 5):
        server.commit("a", "c", offset)
    server.sleep(5)
    return disk.crash(NOTHING), server


def flipped_commits() -> str:
    """Any bit of the frames that hold nothing but commits: refused, and never another commit."""
    disk, server = consumed()
    cursors = {"c": (4, 1)}
    for name in [f"journal/{name}" for name in disk.names("journal") if name.isdecimal()]:
        for seen in scan(disk.open(name), name, None, 2**63):
            begin = seen.position
            if seen.head.number == server.driver.journal.tail():
                continue  # the witness: nothing proves it
            for position in range(begin, begin + frame.HEAD_BYTES + seen.head.facts_bytes):
                for bit in range(8):
                    left = disk.copy()
                    left.replace(name, flip(disk.contents(name), position, bit))
                    try:
                        view = Server(left).view()
                    except Refused:
                        continue
                    wrong = server.history.check(view, power_cut=True)
                    if wrong or view.logs["a"].cursors != cursors:
                        return f"frame {seen.head.number}, bit {bit} at {position}: {wrong[:1]}"
    return ""


def flipped_header() -> str:
    """Any bit of a batch's header in a segment, also of what nothing else would notice."""
    disk, _server = consumed()
    [name] = [path for path in disk.paths() if path.startswith("logs/")]
    whole = disk.contents(name)
    for position in range(HEADER_BYTES):
        for bit in range(8):
            left = disk.copy()
            left.replace(name, flip(whole, position, bit))
            if Server(left).view().logs["a"].records[0] is not None:
                return f"bit {bit} at {position} of a header is not noticed"
    return ""


SCENARIOS: dict[str, Callable[[], str]] = {
    "lost in the middle": lost_in_the_middle,
    "killed then cut": killed_then_cut,
    "recycled": recycled,
    "evidence": evidence,
    "foreign": foreign,
    "answered": answered,
    "witnessed": witnessed,
    "flipped commits": flipped_commits,
    "flipped header": flipped_header,
}

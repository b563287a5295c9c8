"""Repair, judged: a damaged directory, what a repair says of it, and what is served behind it.

The directories are those of ``rot``: a server that stopped in the middle of its work, at rest or
busy. Then bytes change, files vanish or swap places. A repair plans, which must touch nothing, and
does what it planned. Behind it, this has to be so, or there is a sentence for what is not:

- whatever was taken away or changed is in quarantine as it was;
- the server starts; what it serves was appended, and stands at its offset; what it does not serve
  any more, and every cursor that moved back, the plan has named;
- with nothing named, nothing is missing;
- it takes appends, under offsets that nobody ever had; a restart serves the same; ``verify`` finds
  no damage, and another repair nothing to do.
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, NamedTuple

from rlog.journal import Refused
from rlog.offline import Counted, Finding, verify
from rlog.repair import Plan, carry_out, make_plan
from tests.storage.build import flip
from tests.storage.explore import Payloads
from tests.storage.history import Place
from tests.storage.server import ROLL, Server
from tests.storage.simdisk import SECTOR, SimDisk, choices

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from tests.storage.history import View
    from tests.storage.rot import Directory

NOW_NS = 1_800_000_000_000_000_000


def work(server: Server, payload: Payloads, directory: Directory) -> None:
    """As ``small`` in ``rot``, and with what a state holds besides: keys, a parked record, a
    transaction, a shared consumer, an owner, segments that were trimmed and compacted.
    """
    server.create("a", sync="always", file_roll_size=ROLL)
    server.create("n", sync="never", file_roll_size=ROLL)
    server.create("k", sync="always", file_roll_size=ROLL, key_index=True, compact=True)
    server.claim("a", "c")
    server.batch("a", payload(300), payload(40))
    server.batch("a", payload(3900))
    for _ in range(3):
        server.batch("k", payload(700), payload(700), payload(700), keys=[b"x", b"y", b"x"])
    server.batch("n", payload(200))
    server.settle("a", "c", 0, "park")
    server.checkpoint()
    server.compact()
    server.batch("a", payload(900))
    server.commit("a", "c", 2)
    server.batch("n", payload(700))
    server.batch("a", payload(2500))
    server.checkpoint()
    directory.note()
    server.batch("a", payload(400))
    directory.note()
    server.batch("a", payload(100), payload(100))
    directory.note()
    server.batch("n", payload(1000))
    directory.note()
    server.commit("a", "c", 3)
    directory.note()
    server.transact(1, [("a", payload(50)), ("n", payload(60))], [("a", "c", 4)])
    directory.note()
    server.create("late", sync="always", file_roll_size=ROLL)
    directory.note()
    server.claim("late", "d")
    directory.note()
    server.batch("late", payload(80), payload(30))
    directory.note()
    server.batch("k", payload(900), keys=[b"x"])
    directory.note()
    server.commit("late", "d", 1)
    directory.note()
    for _ in range(2):
        server.batch("a", payload(2000))
        directory.note()


class Mended(NamedTuple):
    """What a repair came to. ``wrong``: sentences; none if it did what it has to."""

    plan: Plan
    disk: SimDisk
    wrong: list[str]


def mend(made: Directory, disk: SimDisk) -> Mended:
    """Repair a damaged directory, and judge that."""
    before = disk.tree()
    operations = disk.operations
    started = start(disk)
    plan = make_plan(disk, NOW_NS)
    if disk.tree() != before or disk.operations != operations:
        return Mended(plan, disk, ["the plan touched something"])
    if not plan.empty:
        carry_out(disk, plan)
    wrong = [*evidence(before, disk.tree()), *served(made, disk, plan.lost, started)]
    if started is None and plan.empty:
        wrong.append("a start is refused, and there is nothing to do")
    return Mended(plan, disk, wrong)


def cut_anywhere(made: Directory, disk: SimDisk, seed: int, samples: int) -> Iterator[str]:
    """Repair a directory, killed at every operation and the power cut there; then repair again,
    which has to take no more than the first. What is wrong.
    """
    before, started, plan = disk.tree(), start(disk), make_plan(disk, NOW_NS)
    cuts: list[tuple[str, SimDisk]] = []
    acting = disk.copy()
    acting.on_operation = lambda kind: cuts.append(
        (f"operation {acting.operations}, {kind}", acting.copy())
    )
    carry_out(acting, plan)
    known: set[int] = set()
    for where, cut in cuts:
        lefts = [("killed", cut.killed())]
        for choice in choices(cut, samples, seed, 0):
            lefts.append((f"cut, {choice.mask:b}, {choice.fill.value}", cut.crash(choice)))
        for how, left in lefts:
            if left.fingerprint() in known:
                continue
            known.add(left.fingerprint())
            again = make_plan(left, NOW_NS)
            if again.level > plan.level:
                yield f"{where}, {how}: it takes {again.level.name}"
            if not again.empty:
                carry_out(left, again)
            wrong = [*evidence(before, left.tree())]
            wrong += served(made, left, [*plan.lost, *again.lost], started)
            yield from (f"{where}, {how}: {each}" for each in wrong)


def evidence(before: dict[str, bytes], after: dict[str, bytes]) -> Iterator[str]:
    """Whatever was there is there, or in quarantine."""
    kept = {contents for path, contents in after.items() if path.startswith("quarantine/")}
    for path, contents in before.items():
        if after.get(path) != contents and contents not in kept and path != "checkpoint.tmp":
            yield f"{path} is gone, or changed, and not in quarantine"


def start(disk: SimDisk) -> View | None:
    """What a start as it is would serve; None: it is refused."""
    try:
        return Server(disk.copy()).view()
    except Refused:
        return None


def served(
    made: Directory, disk: SimDisk, lost: Sequence[Finding], started: View | None
) -> Iterator[str]:
    """What is wrong with a directory behind its repair, by the rules above. What a start would not
    have served either, for want of any trace of it, is not the repair's.
    """
    try:
        server = Server(disk)
    except Refused as error:
        yield f"refused behind the repair: {error}"
        return
    if server.failed is not None:
        yield f"writing failed: {server.failed}"
        return
    view = server.view()
    if lost or started is None:
        yield from missing(made, view, lost, started)
    else:
        yield from dropped(made, view, started)
    payload = Payloads(random.Random(7), 50_000_000)
    for name, log in view.logs.items():
        for size in (20, 3000, 3000):
            server.batch(name, payload(size))
        if server.driver.broker.books.state.logs[server.ids[name]].end != log.end + 3:
            yield f"{name} takes no appends"
    grown = server.view()
    server.checkpoint()
    again = Server(disk)
    if again.view().logs != grown.logs:
        yield "a restart serves something else"
    for finding in verify(disk, Counted()):
        if finding.damage:
            yield f"verify behind it: {finding}"
    if not (second := make_plan(disk, NOW_NS)).empty:
        yield f"another repair has something to do: {second.wrong}"


def missing(
    made: Directory, view: View, lost: Sequence[Finding], started: View | None
) -> Iterator[str]:
    """What was lost, or changed, and was not named."""
    final = made.moments[-1]
    for place, payload in made.records.items():
        log = view.logs.get(place.log)
        first, end = final.ends[place.log]
        if started is not None:
            end = started.logs[place.log].end if place.log in started.logs else 0
        if not first <= place.offset < end:
            continue
        if log is None:
            if not names_log(lost):
                yield f"log {place.log} is gone, and was not named"
            continue
        if log.first <= place.offset < log.end:
            found = log.at(place.offset)
            if found not in (None, b"", payload):
                yield f"{place} is not what was appended: {found!r:.30}"
            if found is not None:
                continue
        if not any(covers(each, place.log, place.offset) for each in lost):
            yield f"{place} is missing, and was not named"
    for (name, consumer), (committed, epoch) in final.cursors.items():
        if started is not None and name in started.logs:
            committed, epoch = started.logs[name].cursors.get(consumer, (0, 0))
        found_cursor = view.logs[name].cursors.get(consumer) if name in view.logs else None
        back = found_cursor is None or found_cursor < (committed, epoch)
        if back and not any(consumer in each.text or not each.log for each in lost):
            yield f"the cursor {consumer} of {name} went back, and was not named"


def dropped(made: Directory, view: View, started: View) -> Iterator[str]:
    """What a start would have served, and is not served behind a repair that lost nothing."""
    if [*view.logs] != [*started.logs]:
        yield f"logs {[*view.logs]} instead of {[*started.logs]}"
        return
    for name, log in started.logs.items():
        after = view.logs[name]
        if (after.first, after.end, after.cursors) != (log.first, log.end, log.cursors):
            yield f"{name}: {after.first} to {after.end}, {after.cursors}"
        for offset, payload in enumerate(after.records, after.first):
            if payload is None or payload not in (b"", made.records.get(Place(name, offset))):
                yield f"{name}/{offset} is {payload!r:.30}"


def covers(finding: Finding, log: str, offset: int) -> bool:
    if finding.log != log or finding.first is None:
        return False
    return finding.first <= offset and (finding.end is None or offset < finding.end)


def names_log(lost: Sequence[Finding]) -> bool:
    """That what else there was is not known."""
    return any("frames" in each.text or "only there" in each.text for each in lost)


# --- damage ---------------------------------------------------------------------------------

# How the bytes of a file change around a position.
DAMAGES: dict[str, Callable[[bytes, int], bytes]] = {
    "a bit flipped": lambda old, at: flip(old, at, at % 8),
    "cut": lambda old, at: old[:at],
    "zeroed from there on": lambda old, at: old[:at] + bytes(len(old) - at),
    "a sector zeroed": lambda old, at: _sector(old, at, bytes(SECTOR)),
    "a sector of another place": lambda old, at: _sector(old, at, old[:SECTOR]),
}


def _sector(old: bytes, at: int, contents: bytes) -> bytes:
    begin = at // SECTOR * SECTOR
    return (old[:begin] + contents + old[begin + SECTOR :])[: len(old)]


def hurt(disk: SimDisk, rng: random.Random) -> str:
    """Damage a directory in one to four places, in every way there is. -> what was done."""
    done = []
    paths = [path for path in disk.paths() if path != "reserve"]
    # Without the journal's last file there is no trace of what was in it.
    paths.remove(max(path for path in paths if path.startswith("journal/0")))
    for _ in range(rng.choice((1, 2, 2, 3, 4))):
        path = rng.choice(paths)
        if path not in disk.paths() or not (contents := disk.contents(path)):
            continue
        at = rng.randrange(len(contents))
        kind = rng.choice([*DAMAGES, "longer", "lost", "swapped", "another's"])
        done.append(f"{path} {kind} at {at}")
        if kind in DAMAGES:
            disk.replace(path, DAMAGES[kind](contents, at))
        elif kind == "longer":
            disk.replace(path, contents + rng.randbytes(5000))
        elif kind == "lost":
            disk.unlink(path)
        else:
            alike = [each for each in paths if each[:5] == path[:5] and each in disk.paths()]
            other = rng.choice(alike)
            disk.replace(path, disk.contents(other))
            if kind == "swapped":
                disk.replace(other, contents)
    return ", ".join(done)

"""Promises 4, 5: damage is named and costs what it hit; nothing is wrong or missing in silence."""

from __future__ import annotations

import random
from collections import Counter
from functools import cache
from typing import TYPE_CHECKING

import pytest

from rlog import frame
from rlog.journal import scan
from tests.storage.build import flip
from tests.storage.rot import Directory, Outcome, judge, small
from tests.storage.simdisk import PAGE, SECTOR

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from tests.report import RecordProperty

SAMPLE = 400  # of positions, in CI


@cache
def directory(*, at_rest: bool, laid_out: bool = True) -> Directory:
    return Directory(small, at_rest=at_rest, laid_out=laid_out)


def paths(kind: str, *, at_rest: bool = True) -> list[str]:
    return [path for path in directory(at_rest=at_rest).tree if path.startswith(kind)]


def frames(path: str, *, at_rest: bool = True) -> list[tuple[int, int, int, int]]:
    """(position, end of facts, end of bodies, number) of every frame in a journal file."""
    file = directory(at_rest=at_rest).disk.open(path, write=False)
    return [
        (s.position, s.position + frame.HEAD_BYTES + s.head.facts_bytes, s.position + s.head.length,
         s.head.number)
        for s in scan(file, path, None, 0)
    ]  # fmt: skip


def tally(
    found: Iterable[tuple[str, Outcome]], title: str, record_property: RecordProperty
) -> Counter[str]:
    """Counts by kind, all together recorded; WRONG ones are shown."""
    counts: Counter[str] = Counter()
    wrong = []
    for where, outcome in found:
        counts[outcome.kind] += 1
        if outcome.kind == "WRONG":
            wrong.append(f"{where}: {outcome.detail}")
    record_property(title, counts.total())
    assert not wrong, "\n".join(wrong[:10])
    return counts


def flipped(
    path: str, positions: Iterable[int], *, every_bit: bool, at_rest: bool = True
) -> Iterable[tuple[str, Outcome]]:
    made = directory(at_rest=at_rest)
    for position in positions:
        for bit in range(8) if every_bit else (position % 8,):
            changed = flip(made.tree[path], position, bit)
            yield f"{path} at {position} bit {bit}", judge(made, made.damaged(path, changed))


def header_bytes(path: str, *, at_rest: bool = True) -> set[int]:
    """Every byte of the frames' headers and facts in a journal file; of a checkpoint, its begin."""
    if not path.startswith("journal"):
        return set(range(min(200, len(directory(at_rest=at_rest).tree[path]))))
    return {
        position
        for begin, end, _, _ in frames(path, at_rest=at_rest)
        for position in range(begin, end)
    }


def below_the_last_frame(path: str) -> int:
    if not path.startswith("journal"):
        return len(directory(at_rest=True).tree[path])
    return max((end for _, _, end, _ in frames(path)), default=0)


@pytest.mark.parametrize("kind", ["journal/", "logs/", "checkpoint"])
def test_at_rest_no_flipped_bit_is_served_or_missed(
    kind: str, long: bool, record_property: RecordProperty
) -> None:
    def cases() -> Iterable[tuple[str, Outcome]]:
        rng = random.Random(kind)
        for path in paths(kind):
            end = below_the_last_frame(path)
            positions = set(range(end))
            if not long:
                some = rng.sample(range(end), min(SAMPLE, end))
                positions &= header_bytes(path) | {*some}
            yield from flipped(path, sorted(positions), every_bit=long)

    counts = tally(cases(), "bits flipped in journal, segments and checkpoint", record_property)
    assert counts["cut"] == 0, "at rest there is no record that the last sync alone made durable"
    assert counts["whole"]
    assert counts["batch"] or kind != "logs/"


def test_a_damaged_body_in_the_journal_that_was_never_laid_out_is_that_batchs_alone(
    record_property: RecordProperty,
) -> None:
    """The journal has the only copy; its header is proven, so the records are known, and lost."""
    made = directory(at_rest=True, laid_out=False)
    assert judge(made, made.disk.copy()).kind == "whole"

    def cases() -> Iterable[tuple[str, Outcome]]:
        for path in paths("journal/0"):
            for _begin, facts_end, end, number in frames(path):
                for position in range(facts_end, end, 5):
                    changed = flip(made.tree[path], position)
                    outcome = judge(made, made.damaged(path, changed))
                    yield f"frame {number} at {position}", outcome
                    assert (outcome.kind == "batch") == (number > made.moments[0].number)

    tally(cases(), "bodies damaged in the journal", record_property)


def test_a_flipped_bit_in_a_segment_costs_one_batch(record_property: RecordProperty) -> None:
    made = directory(at_rest=True)
    batches = [{payload for _, payload in group.payloads} for group in made.server.history.groups]
    hit = 0
    for path in paths("logs/"):
        for position in range(0, len(made.tree[path]), 13):
            outcome = judge(made, made.damaged(path, flip(made.tree[path], position)))
            lost = {made.records[place] for place in outcome.lost}
            hit += bool(lost)
            assert outcome.kind in ("whole", "batch")
            assert not lost or any(lost <= batch for batch in batches)
    assert hit


def test_a_damaged_newest_checkpoint_costs_nothing() -> None:
    """The one before it, and the journal since, are still there: also after a restart, or two."""
    for restarts in range(3):
        made = directory(at_rest=True)
        disk = made.disk.copy()
        for _ in range(restarts):
            assert judge(made, disk).kind in ("whole", "cut")
        newest = paths("checkpoint")[-1]
        disk.replace(newest, flip(made.tree[newest], len(made.tree[newest]) // 2))
        outcome = judge(made, disk)
        assert (restarts, outcome.kind, outcome.detail) == (restarts, "whole", "")


def test_without_any_whole_checkpoint_the_start_is_refused() -> None:
    made = directory(at_rest=True)
    disk = made.disk.copy()
    for path in paths("checkpoint"):
        disk.replace(path, flip(made.tree[path], 50))
    outcome = judge(made, disk)
    assert outcome.kind == "refused"
    assert "checkpoint" in outcome.detail
    for path in paths("checkpoint"):
        disk.unlink(path)
    assert judge(made, disk).kind == "refused"


def zeroed_from(path: str, position: int) -> dict[str, bytes]:
    """The journal, with zeros from a byte on: in that file, and in all later ones."""
    tree = directory(at_rest=True).tree
    changed = {path: tree[path][:position] + bytes(len(tree[path]) - position)}
    changed |= {later: bytes(len(tree[later])) for later in paths("journal/0") if later > path}
    return changed


def test_zeroed_from_every_byte_on_a_journal_gives_the_right_prefix(
    long: bool, record_property: RecordProperty
) -> None:
    """All behind a byte is gone, and the proof with it: what is left is a prefix, as it was."""
    made = directory(at_rest=True)
    first, last = made.moments[0].number, made.moments[-1].number

    def cases() -> Iterable[tuple[str, Outcome]]:
        rng = random.Random(1)
        whole = 0
        for path in paths("journal/0"):
            contents = made.tree[path]
            positions = set(range(len(contents) + 1))
            if not long:
                some = rng.sample(range(len(contents)), SAMPLE)
                edges = {p + d for p in range(0, len(contents), PAGE) for d in (-1, 0, 1)}
                positions &= header_bytes(path) | edges | {*some}
            own = frames(path)
            for position in sorted(positions):
                disk = made.disk.copy()
                for name, changed in zeroed_from(path, position).items():
                    disk.replace(name, changed)
                outcome = judge(made, disk)
                yield f"{path} at {position}", outcome
                # (A frame that ends with zeros has lost nothing with them.)
                here = [number for _, _, end, number in own if not any(contents[position:end])]
                right = min(max([whole, *here, first]), last)
                if outcome.kind == "cut":
                    assert right in outcome.moments, (path, position, outcome)
                elif outcome.kind == "whole":
                    # The witness at the end says nothing that anybody reads.
                    assert right >= last - 1
            whole = max([whole, *(number for _, _, _, number in own)])

    counts = tally(cases(), "positions from which on the journal was zeroed", record_property)
    assert counts["cut"]
    assert counts["WRONG"] == 0


def test_zeros_in_one_journal_file_with_a_later_one_behind_it_are_a_named_refusal(
    long: bool, record_property: RecordProperty
) -> None:
    made = directory(at_rest=True)
    needed = [path for path in paths("journal/0") if frames(path)]

    def cases() -> Iterable[tuple[str, Outcome]]:
        for path in needed[:-1]:
            contents = made.tree[path]
            for position in range(0, len(contents), 1 if long else 41):
                zeroed = contents[:position] + bytes(len(contents) - position)
                yield f"{path} at {position}", judge(made, made.damaged(path, zeroed))

    counts = tally(cases(), "positions from which on one journal file was zeroed", record_property)
    assert counts["refused"]
    assert counts["cut"] == counts["batch"] == 0


def test_a_short_or_long_journal_file_is_a_named_refusal() -> None:
    made = directory(at_rest=True)
    for path in paths("journal/0"):
        for length in (0, 1, PAGE, len(made.tree[path]) - 1, len(made.tree[path]) + PAGE):
            outcome = judge(made, made.damaged(path, made.tree[path].ljust(length, b"\0")[:length]))
            assert outcome.kind == "refused"
            assert path in outcome.detail


def sectors(path: str) -> range:
    return range(0, below_the_last_frame(path), SECTOR)


DAMAGES: dict[str, Callable[[bytes, int], bytes]] = {
    "zeroed": lambda old, at: old[:at] + bytes(len(old[at : at + SECTOR])) + old[at + SECTOR :],
    "of the sector before": lambda old, at: (
        old[:at] + old[max(at - SECTOR, 0) :][: len(old[at : at + SECTOR])] + old[at + SECTOR :]
    ),
    "of the first sector": lambda old, at: (
        old[:at] + old[: len(old[at : at + SECTOR])] + old[at + SECTOR :]
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_at_rest_a_lost_or_misdirected_sector_is_named(
    damage: str, record_property: RecordProperty
) -> None:
    made = directory(at_rest=True)

    def cases() -> Iterable[tuple[str, Outcome]]:
        for path, contents in made.tree.items():
            if path == "reserve":
                continue
            for at in sectors(path):
                changed = DAMAGES[damage](contents, at)
                yield f"{path} at {at}", judge(made, made.damaged(path, changed))

    counts = tally(cases(), "sectors zeroed, or the contents of another", record_property)
    assert counts["cut"] == 0


def test_a_lost_file_is_named() -> None:
    made = directory(at_rest=True)
    for path in paths("logs/"):
        disk = made.disk.copy()
        disk.unlink(path)
        outcome = judge(made, disk)
        assert outcome.kind in ("whole", "batch", "refused")
    # A journal file whose frames no checkpoint covers; the last one is its own proof, and gone.
    needed = [path for path in paths("journal/0") if frames(path)]
    for path in needed[:-1]:
        disk = made.disk.copy()
        disk.unlink(path)
        assert judge(made, disk).kind in ("whole", "refused")


def test_a_segment_of_another_log_is_named() -> None:
    made = directory(at_rest=True)
    for one in paths("logs/1/"):
        for other in paths("logs/2/"):
            outcome = judge(made, made.damaged(one, made.tree[other]))
            assert outcome.kind in ("whole", "batch", "refused")


def test_busy_the_very_last_sync_is_cut_only_with_a_report() -> None:
    """Nothing stands behind it that could prove it: it counts as torn, and is set aside."""
    made = directory(at_rest=False)
    path = [path for path in paths("journal/0", at_rest=False) if frames(path, at_rest=False)][-1]
    begin, _facts, end, number = frames(path, at_rest=False)[-1]
    assert number == made.moments[-1].number
    for where, outcome in flipped(path, range(begin, end, 3), every_bit=False, at_rest=False):
        assert outcome.kind == "cut", (where, outcome)
        assert outcome.detail == "reported"
    # And nothing before it: that is proven by what came after.
    for earlier, facts_end, _end, _number in frames(path, at_rest=False)[:-1]:
        for where, outcome in flipped(
            path, range(earlier, facts_end), every_bit=False, at_rest=False
        ):
            assert outcome.kind in ("refused", "whole"), (where, outcome)


@pytest.mark.parametrize("kind", ["journal/0", "checkpoint"])
def test_files_that_got_each_others_names_are_told_by_what_they_hold(kind: str) -> None:
    made = directory(at_rest=True)
    for one in paths(kind):
        for other in paths(kind):
            disk = made.disk.copy()
            disk.replace(one, made.tree[other])
            disk.replace(other, made.tree[one])
            assert judge(made, disk).kind == "whole", (one, other)

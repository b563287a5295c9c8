"""Planted bugs: each switches one rule of the storage off, by rewriting a line of the real code."""

from __future__ import annotations

import contextlib
import importlib
import inspect
import textwrap
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator


class Edit(NamedTuple):
    """In ``where`` (module:qualified name), ``old`` becomes ``new``; ``old`` must be there once."""

    where: str
    old: str
    new: str


class Mutant(NamedTuple):
    name: str
    judge: str  # which harness is to catch it: crash, directed, failure or rot
    edits: tuple[Edit, ...]
    first: str = ""  # what of it to begin with: the judge stops at the first catch


@contextlib.contextmanager
def planted(mutant: Mutant) -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        for edit in mutant.edits:
            stack.enter_context(_rewritten(edit))
        yield


@contextlib.contextmanager
def _rewritten(edit: Edit) -> Iterator[None]:
    module_name, _, qualified = edit.where.partition(":")
    module = importlib.import_module(module_name)
    *outer, name = qualified.split(".")
    owner: Any = module
    for each in outer:
        owner = getattr(owner, each)
    original = inspect.getattr_static(owner, name)
    source = textwrap.dedent(inspect.getsource(original))
    assert source.count(edit.old) == 1, (
        f"{edit.where} holds {edit.old!r} {source.count(edit.old)} times: rewrite the mutant"
    )
    changed = source.replace(edit.old, edit.new)
    made: dict[str, Any] = {}
    code = compile(
        "from __future__ import annotations\n" + changed, f"<mutant of {edit.where}>", "exec"
    )
    exec(code, vars(module), made)
    # The code alone is swapped: whoever has the function already has the mutant, too.
    whole, original.__code__ = original.__code__, made[name].__code__
    try:
        yield
    finally:
        original.__code__ = whole


JOURNAL = "rlog.journal:LocalJournal"
DRIVER = "rlog.driver:Driver"

# What a file begins with has to fit what is before it, or files are not passed over for it. That
# rule and the zeroed page of a recycled file are each enough: they are switched off together.
BEGINNINGS_ARE_BELIEVED = Edit(f"{JOURNAL}._scan_all", "highest <= number <=", "number <=")

MUTANTS = (
    Mutant(
        "no directory sync after a journal file got its number",
        "crash",
        (
            Edit(
                f"{JOURNAL}._begin_file",
                "self._files.sync_directory(DIRECTORY)",
                "pass",
            ),
        ),
    ),
    Mutant(
        "a journal file is not synced before the next is begun",
        "crash",
        (Edit(f"{JOURNAL}._begin_file", "    self._sync()\n", "    pass\n"),),
    ),
    Mutant(
        "frames do not begin on a page",
        "crash",
        (Edit("rlog.frame:padded", "-(-length // PAGE) * PAGE", "-(-length // 64) * 64"),),
    ),
    Mutant(
        "the first page of a recycled file is not zeroed",
        "crash",
        (
            Edit(f"{JOURNAL}._make_spare", "file.write(0, [_ZERO_PAGE])", "pass"),
            BEGINNINGS_ARE_BELIEVED,
        ),
    ),
    Mutant(
        "a zeroed first page is not synced before the file gets its number",
        "crash",
        (
            Edit(
                f"{JOURNAL}._make_spare",
                "file.write(0, [_ZERO_PAGE])\n        file.sync()",
                "file.write(0, [_ZERO_PAGE])",
            ),
            BEGINNINGS_ARE_BELIEVED,
        ),
    ),
    Mutant(
        "a new journal file is not synced before it gets its number",
        "crash",
        (Edit(f"{JOURNAL}._make_zeroed", "    file.sync()\n", ""),),
    ),
    Mutant(
        "a checkpoint gets its name before it is synced",
        "crash",
        (Edit("rlog.checkpoint:write", "    file.sync()\n", ""),),
    ),
    Mutant(
        "the directory is not synced after a checkpoint got its name",
        "crash",
        (Edit("rlog.checkpoint:write", '    files.sync_directory("")\n', ""),),
    ),
    Mutant(
        "a checkpoint without a sync of the journal",
        "crash",
        (
            Edit(
                f"{DRIVER}.begin_checkpoint",
                "journal.wait(number) is not Outcome.SYNCED",
                "False",
            ),
        ),
        "everything",
    ),
    Mutant(
        "segments are not synced at a checkpoint",
        "crash",
        (Edit(f"{DRIVER}.begin_checkpoint", "file.sync()", "pass"),),
    ),
    Mutant(
        "the directories of segments are not synced at a checkpoint",
        "crash",
        (Edit(f"{DRIVER}.begin_checkpoint", "self._files.sync_directory(directory)", "pass"),),
    ),
    Mutant(
        "the unfinished pages are not put back",
        "crash",
        (Edit("rlog.recovery:_lay_out", "for tail in base.tails:", "for tail in ():"),),
    ),
    Mutant(
        "files above the older checkpoint are recycled",
        "crash",
        (
            Edit(
                f"{DRIVER}.finish_checkpoint",
                "self.journal.trim(self._marks[0])",
                "self.journal.trim(self._marks[1])",
            ),
        ),
    ),
    Mutant(
        "one checkpoint is kept",
        "crash",
        (Edit("rlog.checkpoint:write", "[:-2]", "[:-1]"),),
    ),
    Mutant(
        "segments are unlinked before the trim is synced",
        "crash",
        (
            Edit(
                "rlog.decisions.trims:cut",
                "desk.effects.append(lambda: files.trim(gone))",
                "files.trim(gone)",
            ),
        ),
    ),
    Mutant(
        "a trim passes a parked record that is not copied",
        "crash",
        (
            Edit(
                "rlog.retention:trim",
                "first = log.trim_to(min(first, uncopied[0].offset))",
                "pass",
            ),
        ),
        "bounded",
    ),
    Mutant(
        "a trim passes what a protected consumer has not committed",
        "crash",
        (
            Edit(
                "rlog.retention:trim",
                "(reached := log.trim_to(min(floor, first))) < first",
                "(reached := first) < first",
            ),
        ),
        "bounded",
    ),
    Mutant(
        "the copy of a parked record is of another one",
        "crash",
        (Edit("rlog.decisions.trims:alone", "[values[at]]", "[values[0]]"),),
        "bounded",
    ),
    Mutant(
        "a log is removed before its deletion is synced",
        "crash",
        (Edit("rlog.decisions.logs:delete_log", "desk.effects.append(remove)", "remove()"),),
    ),
    Mutant(
        "answered before the sync",
        "crash",
        (
            Edit(
                f"{DRIVER}._append",
                "    if not decided.sync:\n"
                "        self._settle(decided, synced=False)\n"
                "        return None\n",
                "    self._settle(decided, synced=True)\n"
                "    if decided.sync:\n"
                "        self.journal.wait(number)\n"
                "    return None\n",
            ),
        ),
    ),
    Mutant(
        "the journal is never synced",
        "crash",
        (Edit(f"{JOURNAL}._sync", "self._file.sync()", "pass"),),
    ),
    Mutant(
        "consumers see what is not synced",
        "crash",
        (Edit("rlog.broker:Broker._raise_unsynced", "if policy.visible_unsynced:", "if True:"),),
        "periodic",
    ),
    Mutant(
        "a torn body is taken for a whole one",
        "crash",
        (
            Edit(
                f"{JOURNAL}._follow",
                "not seen.sound and seen.head.number > proven",
                "False",
            ),
        ),
    ),
    Mutant(
        "of two frames with one number the earlier file's counts",
        "directed",
        (Edit(f"{JOURNAL}._follow", "follows[-1]", "follows[0]"),),
        "lost in the middle",
    ),
    Mutant(
        "recovery does not sync what a killed process left in the cache",
        "directed",
        (Edit(f"{JOURNAL}.open", "file.sync()", "pass"),),
        "killed then cut",
    ),
    Mutant(
        "the CRC of the frame before is not compared",
        "directed",
        (Edit(f"{JOURNAL}._follow", "if s.head.previous == last.crc", ""),),
        "lost in the middle",
    ),
    Mutant(
        "names that a killed process left are not synced at the start",
        "directed",
        (Edit("rlog.recovery:recover", "files.sync_directory(name)", "pass"),),
        "killed then cut",
    ),
    Mutant(
        "no zero page behind a frame",
        "directed",
        (Edit(f"{JOURNAL}.append", "pieces.append(_ZERO_PAGE)", "pass"),),
        "recycled",
    ),
    Mutant(
        "a start goes on in the old journal file",
        "directed",
        (
            Edit(
                f"{JOURNAL}.open",
                "self._name = names[-1]",
                "self._name = names[-1]\n"
                "        here = self._chain.get(self.last.number)\n"
                "        if here is not None and here.file == names[-1]:\n"
                "            self._file, self._position = opened[here.file], here.end",
            ),
        ),
        "evidence",
    ),
    Mutant(
        "a frame of a recycled file is accepted",
        "directed",
        (
            Edit(
                f"{JOURNAL}._follow",
                "s for s in by_number.get(last.number + 1, ()) if s.head.previous == last.crc",
                "s for s in heads if s.head.number not in self._chain "
                "and s.head.number != last.number",
            ),
        ),
        "recycled",
    ),
    Mutant(
        "a frame of another directory's journal is accepted",
        "directed",
        (
            Edit(
                "rlog.frame:parse",
                "journal is not None and owner != journal",
                "False",
            ),
        ),
        "foreign",
    ),
    Mutant(
        "a commit is not synced",
        "directed",
        (
            Edit(
                "rlog.decisions.desk:Desk.fact",
                "self._follow(log)",
                "isinstance(fact, facts.Committed) or self._follow(log)",
            ),
        ),
        "answered",
    ),
    Mutant(
        "a frame that is only written counts as the witness of the last sync",
        "directed",
        (
            Edit(
                f"{DRIVER}._append",
                "    if not decided.sync:\n",
                "    self._witness_due = None\n    if not decided.sync:\n",
            ),
        ),
        "witnessed",
    ),
    Mutant(
        "journal files are recycled before the checkpoint is durable",
        "crash",
        (
            Edit(
                f"{DRIVER}.begin_checkpoint",
                "self._pending = number",
                "self._pending = number; journal.trim(number)",
            ),
        ),
        "beside",
    ),
    Mutant(
        "the epoch of a claim is not kept",
        "crash",
        (
            Edit(
                "rlog.state:State._change",
                "claim.epoch, claim.held = epoch, True",
                "claim.epoch, claim.held = 0, True",
            ),
        ),
    ),
    Mutant(
        "a sync is tried again after it failed",
        "failure",
        (
            Edit(
                f"{JOURNAL}.wait",
                "self._name)\n        return Outcome.UNKNOWN\n",
                "self._name)\n        self._sync()\n",
            ),
        ),
    ),
    Mutant(
        "after a failed sync writing goes on",
        "failure",
        (
            Edit(
                "rlog.broker:Broker.fail",
                "self.books.failed = reason",
                "pass",
            ),
        ),
    ),
    Mutant(
        "recovery reads the page cache",
        "failure",
        (Edit(f"{JOURNAL}.open", "file.forget()", "pass"),),
    ),
    Mutant(
        "frames do not say what was synced before them",
        "rot",
        (
            Edit(
                f"{JOURNAL}._encode",
                "self.last.crc, self.synced)",
                "self.last.crc, 0)",
            ),
        ),
    ),
    Mutant(
        "an idle server leaves no witness of its last sync",
        "rot",
        (
            Edit(
                f"{DRIVER}._begin_due",
                "self._witness_due is not None and self._witness_due <= now",
                "False",
            ),
        ),
    ),
    Mutant(
        "proof behind the chain does not count",
        "rot",
        (
            Edit(
                f"{JOURNAL}._follow",
                "max([self._proven, *(seen.head.synced for seen in heads)])",
                "self._proven",
            ),
        ),
    ),
    Mutant(
        "a damaged body that is proven is taken for torn",
        "rot",
        (
            Edit(
                f"{JOURNAL}._follow",
                "not seen.sound and seen.head.number > proven",
                "not seen.sound",
            ),
        ),
        "bare",
    ),
    Mutant(
        "the CRC of a frame is not looked at",
        "directed",
        (Edit("rlog.frame:parse", "crc != computed", "False"),),
        "flipped commits",
    ),
    Mutant(
        "the CRC of a batch's header is not looked at",
        "directed",
        (
            Edit(
                "rlog_client.batch:parse_header",
                "stored != (computed := crc32c(raw[:_CRC_AT]))",
                "(computed := 0)",
            ),
        ),
        "flipped header",
    ),
    Mutant(
        "the CRC of a batch's body is not looked at",
        "rot",
        (
            Edit(
                "rlog_client.batch:check_body",
                "(computed := crc32c(body)) != header.body_crc",
                "(computed := 0)",
            ),
        ),
    ),
    Mutant(
        "the CRC of a checkpoint is not looked at",
        "rot",
        (Edit("rlog.checkpoint:decode", "computed != stored", "False"),),
    ),
    Mutant(
        "the segment that was compacted is unlinked before that is synced",
        "crash",
        (
            Edit(
                "rlog.decisions.compaction:compact",
                "desk.effects.append(replace)",
                "files.replace(sources, base, generation); unlink()",
            ),
        ),
        "compacting",
    ),
    Mutant(
        "compaction takes the latest record of a key away",
        "crash",
        (
            Edit(
                "rlog.compaction:Rewriting._stays",
                "self._keys.get(key) <= offset",
                "self._keys.get(key) < offset",
            ),
        ),
        "compacting",
    ),
    Mutant(
        "a rewritten segment is not synced before it counts",
        "crash",
        (Edit("rlog.compaction:Rewriting._rewrite", "self._file.sync()", "pass"),),
        "compacting",
    ),
    Mutant(
        "the name of a rewritten segment is not synced before it counts",
        "crash",
        (Edit("rlog.compaction:Rewriting._rewrite", "self._files.sync_names()", "pass"),),
        "compacting",
    ),
    Mutant(
        "the name of a log's directory is not synced before a rewritten segment counts",
        "crash",
        (
            Edit(
                "rlog.log:LogFiles.sync_names",
                'self._files.sync_directory("logs")',
                "pass",
            ),
        ),
        "compacting",
    ),
    Mutant(
        "torn bytes are not set aside",
        "rot",
        (
            Edit(
                "rlog.recovery:_set_torn_aside",
                "for index, torn in enumerate(journal.torn):",
                "for index, torn in ():",
            ),
        ),
        "busy",
    ),
)

"""Recovery: from the files of a directory to the state and the logs that it stands for.

Everything is judged before anything is written: a directory that is refused is not touched. What
lies above the last checkpoint is derived from the journal and written anew, never trusted; what
lies below it has left the journal, and its damage is found by whoever reads it.
"""

from __future__ import annotations

import errno
import logging
from typing import TYPE_CHECKING, Final, NamedTuple

from . import checkpoint as checkpoints
from . import state
from .checkpoint import Checkpoint, InvalidCheckpoint, UnknownFormat
from .files import PAGE, Files
from .frame import UnknownVersion
from .journal import DIRECTORY, LocalJournal, Mark, Refused, file_names, scan
from .log import Handles, LogFiles
from .segment import parse_name, path
from .state import State

if TYPE_CHECKING:
    from collections.abc import Sequence

logger = logging.getLogger("rlog.recovery")

QUARANTINE: Final = "quarantine"
FORMAT_FILES: Final = frozenset(
    {"journal", "logs", "lock", "quarantine", "reserve", "lost+found", "checkpoint.tmp"}
)


class Recovered(NamedTuple):
    """What a broker begins with. ``marks``: the numbers of the whole checkpoints, oldest first."""

    state: State
    journal: LocalJournal
    handles: Handles
    logs: dict[int, LogFiles]
    marks: list[int]
    reports: list[str]


def recover(files: Files, *, file_bytes: int, journal_id: int, now_ns: int) -> Recovered:
    """Open a data directory, or make a new one out of an empty one.

    ``file_bytes`` (of a journal file) and ``journal_id`` (random) count only for a new directory.
    Raises Refused, or OSError.
    """
    reports: list[str] = []
    for name in ("", DIRECTORY):
        # Names that a killed process left in the cache must be there after a power cut as well.
        if name == "" or files.names(name):
            files.sync_directory(name)
    whole, damaged = _load_checkpoints(files, reports)
    if not whole:
        whole = [_make_new(files, file_bytes, journal_id, now_ns)]
    base = whole[-1]
    # Twice: this pass tells which segments there are at the end, and what a trim or a deletion has
    # removed since is not asked for by the second, let alone written.
    proven = max([base.number, *map(checkpoints.number_in, damaged)])
    journal, final = follow(files, base, proven)
    for name in damaged:
        # Else it would count as one of the two that are kept, and push a whole one out.
        files.make_directory(QUARANTINE)
        files.rename(name, f"{QUARANTINE}/{journal.tail() + 1:020}-{name}")
    _set_torn_aside(files, journal, reports)
    logs = _lay_out(files, base, journal, final, reports)
    for report in reports:
        logger.warning("%s", report)
    return Recovered(final, journal, logs.handles, logs.logs, [c.number for c in whole], reports)


def follow(files: Files, base: Checkpoint, proven: int) -> tuple[LocalJournal, State]:
    """The chain from a checkpoint on, and what it adds up to.

    ``proven``: the highest number that a checkpoint names. Raises Refused.
    """
    mark = Mark(base.number, base.crc)
    journal = LocalJournal(files, base.journal, base.file_bytes, mark, proven)
    try:
        journal.open()
    except UnknownVersion as error:
        raise Refused(str(error)) from None
    final = state.load(state.dump(base.state))
    for number in range(base.number + 1, journal.tail() + 1):
        entry = journal.read(number)
        for fact in entry.facts:
            try:
                final.apply(fact, entry.head.time_ns)
            except Exception as error:  # of a version or a bug to come, so it may be anything
                raise Refused(
                    f"frame {number}: {type(fact).__name__} does not fit the state: {error!r}"
                ) from None
    return journal, final


def _load_checkpoints(files: Files, reports: list[str]) -> tuple[list[Checkpoint], list[str]]:
    """The whole ones, oldest first, and the names of the damaged ones."""
    whole, damaged = [], []
    names = checkpoints.names(files)
    for name in names:
        file = files.open(name)
        file.sync()
        file.forget()
        try:
            whole.append(checkpoints.decode(file.read(0, file.size())))
        except InvalidCheckpoint as error:
            damaged.append(name)
            reports.append(
                f"{name} is damaged ({error}); the one before it and the journal are used"
            )
        except UnknownFormat as error:
            raise Refused(f"{name}: {error}") from None
    if names and not whole:
        raise Refused(f"no whole checkpoint: {'; '.join(reports)}")
    # By what they say: their names may have been swapped.
    return sorted(whole, key=lambda point: point.number), damaged


def _make_new(files: Files, file_bytes: int, journal_id: int, now_ns: int) -> Checkpoint:
    """Make a data directory. Only one without frames and without strangers' files is."""
    if strangers := [name for name in files.names("") if name not in FORMAT_FILES]:
        raise Refused(f"not a data directory, and not empty: it holds {strangers[0]!r}")
    for name in file_names(files):
        try:
            found = next(scan(files.open(name, write=False), name, None, 2**63), None)
        except UnknownVersion as error:
            raise Refused(f"{name}: {error}, and there is no checkpoint") from None
        if found is not None:
            raise Refused(f"{name} holds frames, but there is no checkpoint")
    for log in files.names("logs"):
        if files.names(f"logs/{log}"):
            raise Refused(f"logs/{log} holds segments, but there is no checkpoint")
    for name in files.names(DIRECTORY):
        files.unlink(f"{DIRECTORY}/{name}")
    files.make_directory(DIRECTORY)
    files.make_directory("logs")
    # Before the checkpoint has its name: a directory with a checkpoint has these, or is damaged.
    files.sync_directory("")
    new = Checkpoint(journal_id, file_bytes, 0, 0, now_ns, State(), [])
    if not checkpoints.write(files, new.number, checkpoints.encode(new)):
        raise OSError(errno.ENOSPC, "no space for a first checkpoint")
    return new


def _set_torn_aside(files: Files, journal: LocalJournal, reports: list[str]) -> None:
    for index, torn in enumerate(journal.torn):
        files.make_directory(QUARANTINE)
        file = torn.file.rpartition("/")[2]
        name = f"{QUARANTINE}/{journal.tail() + 1:020}-{index}-{torn.position}-{file}"
        stem, again = name, 0
        while name.rpartition("/")[2] in files.names(QUARANTINE):
            again += 1  # a recovery that was itself cut
            name = f"{stem}.{again}"
        copy = files.create(name)
        copy.write(0, [files.open(torn.file, write=False).read(torn.position, torn.length)])
        copy.sync()
        files.sync_directory(QUARANTINE)
        files.sync_directory("")
        reports.append(
            f"{torn.file} at {torn.position}: {torn.length} bytes behind frame {journal.tail()} "
            f"are a torn tail, copied to {name}; {torn.report}"
        )


class _Logs:
    def __init__(self, files: Files) -> None:
        self.handles = Handles(files)
        self.logs: dict[int, LogFiles] = {}
        self._there = set(files.names("logs"))

    def get(self, log: int) -> LogFiles:
        if log not in self.logs:
            self.logs[log] = LogFiles(self.handles, log)
            if str(log) not in self._there:
                self.logs[log].make()
        return self.logs[log]


def _lay_out(
    files: Files, base: Checkpoint, journal: LocalJournal, final: State, reports: list[str]
) -> _Logs:
    """Write the segments above the checkpoint anew, and remove what should not be there."""
    logs = _Logs(files)
    alive = final.segments()
    for log_id in sorted(final.logs):
        logs.get(log_id)
    known = base.state.segments()
    for log in base.state.logs.values():
        for segment in log.segments:
            if (log.id, segment.base, segment.generation) in alive:
                _check_length(files, log.name, log.id, segment, reports)
    for log in final.logs.values():
        for segment in log.segments:
            # What was compacted since was on the disk before anything said so.
            name = (log.id, segment.base, segment.generation)
            if segment.generation and name not in known:
                _check_length(files, log.name, log.id, segment, reports)
    for tail in base.tails:
        # (A segment that was compacted since is complete, and in another file.)
        if (tail.log, tail.base, 0) in alive:
            logs.get(tail.log).restore(tail.base, tail.position, [tail.data])
    replay = state.load(state.dump(base.state))
    for number in range(base.number + 1, journal.tail() + 1):
        entry = journal.read(number)
        bodies = iter(entry.bodies)
        for fact in entry.facts:
            append = replay.apply(fact, entry.head.time_ns)
            if append is None:
                continue
            body = next(bodies)
            place = append.place
            if body.body is None:
                reports.append(
                    f"frame {number}: the batch of log {place.log}, offsets {append.header.base} "
                    f"to {append.header.end}, is damaged in the journal: {body.damage}"
                )
            if (place.log, place.segment, 0) in alive:
                # A damaged body is not laid out: its header is, and its reader will be told.
                pieces: list[bytes | memoryview] = [append.raw]
                if body.body is not None:
                    pieces.append(body.body)
                logs.get(place.log).restore(place.segment, place.position, pieces)
    for log in final.logs.values():
        for segment in log.segments:
            logs.get(log.id).cut(segment.base, segment.bytes, segment.generation)
        if log.segments and not log.segments[-1].generation:
            logs.get(log.id).adopt(log.segments[-1].base, log.segments[-1].bytes)
    _tidy(files, final, alive, journal.tail() + 1, reports)
    return logs


def _check_length(
    files: Files, name: str, log: int, segment: state.Segment, reports: list[str]
) -> None:
    """A segment that is short or lost has lost records: they are damage with an address, like any
    other.
    """
    try:
        size = files.open(path(log, segment.base, segment.generation), write=False).size()
    except FileNotFoundError:
        size = 0
    if size < segment.bytes:
        reports.append(
            f"{path(log, segment.base, segment.generation)} of log {name!r} has {size} bytes "
            f"instead of {segment.bytes}: records in it are lost, and their readers will be told"
        )


def _tidy(
    files: Files, final: State, alive: set[tuple[int, int, int]], number: int, reports: list[str]
) -> None:
    """Remove what a trim or a deletion left, and set aside what nothing explains."""
    for name in files.names("logs"):
        try:
            files.names(f"logs/{name}")
        except NotADirectoryError:
            _remove_or_set_aside(files, "logs", [name], None, number, reports)
            continue
        log_id = int(name) if name.isdecimal() else None
        if log_id is None or log_id >= final.next_log:
            entries = files.names(f"logs/{name}")
            unknown = entries
        elif log_id not in final.logs:
            for entry in files.names(f"logs/{name}"):
                files.unlink(f"logs/{name}/{entry}")
            files.remove_directory(f"logs/{name}")
            continue
        else:
            unknown = [
                entry
                for entry in files.names(f"logs/{name}")
                if (found := parse_name(entry)) is None or (log_id, *found) not in alive
            ]
        log = final.logs.get(log_id) if log_id is not None else None
        _remove_or_set_aside(files, f"logs/{name}", unknown, log, number, reports)
        if log_id not in final.logs:
            files.remove_directory(f"logs/{name}")


def _remove_or_set_aside(
    files: Files,
    where: str,
    entries: Sequence[str],
    log: state.Log | None,
    number: int,
    reports: list[str],
) -> None:
    for entry in entries:
        file = f"{where}/{entry}"
        if _explained(log, entry) or _only_reserved(files, file):
            files.unlink(file)
            continue
        files.make_directory(QUARANTINE)
        aside = f"{QUARANTINE}/{number:020}-{file.replace('/', '-')}"
        files.rename(file, aside)
        reports.append(f"{file} belongs to nothing here; set aside as {aside}")


def _only_reserved(files: Files, file: str) -> bool:
    """Space that was reserved for an append which then was not made holds zeros."""
    try:
        return not any(files.open(file, write=False).read(0, PAGE))
    except OSError:
        return False  # a directory, a link to nowhere, or what cannot be read: it is kept


def _explained(log: state.Log | None, entry: str) -> bool:
    """A segment that was trimmed, or that was compacted, or what was to replace it and did not:
    which of the two files counts is the state's to say, and the other one is of no use.
    """
    if log is None or (found := parse_name(entry)) is None:
        return False
    base, generation = found
    if base < log.first or generation:
        return True
    index = log.segment_index(base)
    return index >= 0 and log.segments[index].generation > 0

"""``rlog inspect``: what is stored, as it is stored. A log by its name, through the server; a data
directory, or one of its files, by its path: read only, beside a running server or after a crash.
"""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import click

from rlog_client.batch import MAGIC as BATCH_MAGIC
from rlog_client.batch import Columns, Header, parse_header
from rlog_client.errors import CorruptData

from .. import checkpoint as checkpoints
from .. import offline
from ..facts import Appended, Trimmed
from ..files import Disk, Files
from ..frame import MAGIC as FRAME_MAGIC
from ..journal import Refused, file_names
from ..offline import BatchView, FrameView, Stop, Survey
from ..segment import Damage, base_of
from . import wire
from .exits import Exit, Stopped
from .options import Settings, command, option
from .output import rfc3339, size
from .records import text_or_b64

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from rlog_client import Log

    from ..files import File
    from .output import Output, Row

HEX_COLUMNS: Final = 16
_SHOWN_MAX: Final = 60  # characters of a value in a table


def _short(text: object) -> str:
    shown = str(text)
    return shown if len(shown) <= _SHOWN_MAX else f"{shown[:_SHOWN_MAX]}... ({len(shown)})"


_HUMAN: Final = {
    "bytes": size,
    "on_disk": size,
    "time_ns": lambda ns: rfc3339(ns, 3),
    "timestamp_ns": lambda ns: rfc3339(ns, 3),
    "value": _short,
    "value_b64": _short,
    "facts": lambda facts: "; ".join(map(_fact_text, facts)),
}


class Wanted(NamedTuple):
    """Which sections were asked for."""

    segments: bool
    batches: bool
    records: bool
    frames: bool
    hex_offset: int | None
    rows_max: int | None
    log: str | None

    @property
    def any(self) -> bool:
        named = (self.segments, self.batches, self.records, self.frames)
        return any(named) or self.hex_offset is not None


class Stored(NamedTuple):
    """A batch, or damage, with the log and the file that it is in."""

    log: str
    file: str
    view: BatchView | Damage


class Sections:
    """Writes named listings: tables with titles, one JSON object, or lines that name their kind."""

    def __init__(self, out: Output, count: int | None) -> None:
        self._out = out
        self._count = count
        self._written = 0

    def __enter__(self) -> Sections:
        if self._out.form == "json":
            self._out.write(b"{")
        return self

    def __exit__(self, *_exception: object) -> None:
        if self._out.form == "json":
            self._out.write(b"}\n")

    def add(self, name: str, rows: Iterable[Row]) -> None:
        out = self._out
        rows = rows if self._count is None else _first(rows, self._count)
        if out.form == "json":
            out.write(f'{"," if self._written else ""}\n"{name}": '.encode())
            out.array(rows)
        elif out.form == "jsonl":
            out.rows({"kind": name, **row} for row in rows)
        else:
            if self._written:
                out.print("")
            out.print(out.paint(f"# {name}", "36"))
            if not out.table(rows, _HUMAN):
                out.print("none")
        self._written += 1


def _first(rows: Iterable[Row], count: int) -> Iterator[Row]:
    for index, row in enumerate(rows):
        if index >= count:
            return
        yield row


# --- rows -----------------------------------------------------------------------------------


def _crc(value: int | None) -> str | None:
    return None if value is None else f"{value:08x}"


def _checkpoint_row(each: offline.CheckpointFile) -> Row:
    content = each.content
    return {
        "file": each.name,
        "bytes": each.bytes,
        "frame": content and content.number,
        "time_ns": content and content.time_ns,
        "logs": content and len(content.state.logs),
        "crc": _crc(each.stored),
        "crc_computed": _crc(each.computed),
        "damage": each.damage or None,
    }


def _journal_files(files: Files) -> Iterator[tuple[str, File]]:
    for name in file_names(files):
        # A running server may have recycled it since.
        with contextlib.suppress(FileNotFoundError):
            yield name, files.open(name, write=False)


def _journal_row(name: str, file: File) -> Row:
    numbers: list[int] = []
    damage = []
    for view in offline.frames(file, name):
        if isinstance(view, Stop):
            damage.append(f"at {view.position}: {view.reason}")
        else:
            numbers.append(view.seen.head.number)
            if view.damage:
                damage.append(f"frame {view.seen.head.number}: {view.damage}")
    return {
        "file": name,
        "bytes": file.size(),
        "frames": len(numbers),
        "first": min(numbers, default=None),
        "last": max(numbers, default=None),
        "damage": "; ".join(damage) or None,
    }


def _log_rows(survey: Survey) -> Iterator[Row]:
    assert survey.state is not None
    for log in survey.state.logs.values():
        yield {
            "name": log.name,
            "id": log.id,
            "first": log.first,
            "end": log.end,
            "records": log.end - log.first,
            "bytes": log.bytes,
            "segments": len(log.segments),
            "consumers": {name: cursor.committed for name, cursor in log.cursors.items()},
        }


def _segment_row(each: offline.SegmentView) -> Row:
    return {
        "log": each.log.name,
        "first": each.extent.base,
        "end": each.extent.end,
        "bytes": each.extent.length,
        "generation": each.extent.generation,
        "absent": each.absent,
        "on_disk": each.file_bytes,
        "durable_end": each.durable.end if each.durable else each.extent.base,
        "file": each.file,
    }


def _batch_row(stored: Stored) -> Row:
    view = stored.view
    if isinstance(view, Damage):
        return {
            **_blank_batch(stored),
            "first": view.first,
            "end": None if view.end >= offline.OFFSET_MAX else view.end,
            "position": view.position,
            "damage": view.reason,
        }
    header = view.header
    return {
        "log": stored.log,
        "first": header.base,
        "end": header.end,
        "time_ns": header.time_ns,
        "bytes": header.bytes,
        # A header that is believed has the checksum that it should have.
        "header_crc": _crc(view.header_crc),
        "header_crc_computed": _crc(view.header_crc),
        "body_crc": _crc(header.body_crc),
        "body_crc_computed": _crc(view.body_crc),
        "producer": f"{header.producer:016x}",
        "sequence": header.sequence,
        "absent": _absent(view),
        "file": stored.file,
        "position": view.position,
        "damage": view.damage or None,
    }


def _absent(view: BatchView) -> str | int | None:
    """How many of its offsets have no record; of a batch that has none at all, just that."""
    header, columns = view.header, view.columns
    if not header.sparse or columns is None:
        return None
    return header.count - len(columns.values) if columns.values else "absent"


def _blank_batch(stored: Stored) -> Row:
    names = (
        "log first end time_ns bytes header_crc header_crc_computed body_crc body_crc_computed "
        "producer sequence absent file position damage"
    )
    return {**dict.fromkeys(names.split()), "log": stored.log, "file": stored.file}


def _record_rows(found: Iterable[Stored]) -> Iterator[Row]:
    for stored in found:
        view = stored.view
        if isinstance(view, Damage):
            end = None if view.end >= offline.OFFSET_MAX else view.end
            yield _lost_records(stored, view.first, end, view.position, view.reason)
        elif view.columns is None:
            header = view.header
            yield _lost_records(stored, header.base, header.end, view.position, view.damage)
        else:
            yield from _records_of(stored.log, view.header, view.columns)


def _lost_records(stored: Stored, first: int, end: int | None, position: int, reason: str) -> Row:
    return {
        "log": stored.log,
        "offset": first,
        "end": end,
        "damage": f"{stored.file} at {position}: {reason}",
    }


def _records_of(log: str, header: Header, columns: Columns) -> Iterator[Row]:
    offsets = columns.offsets(header)
    for index, value in enumerate(columns.values):
        row: Row = {"log": log, "offset": offsets[index], "timestamp_ns": header.time_ns}
        key = columns.keys[index] if columns.keys else None
        row |= {"key": None} if key is None else text_or_b64("key", key)
        headers = columns.headers[index] if columns.headers else None
        row["headers"] = (
            {n: text_or_b64("text", c) for n, c in headers.items()} if headers else None
        )
        row["event_time_ns"] = columns.times_ns[index] if columns.times_ns else None
        row |= text_or_b64("value", value)
        row["damage"] = None
        yield row


def _frame_row(view: FrameView | Stop) -> Row:
    if isinstance(view, Stop):
        facts = [{"fact": "?", "unpacked": _plain(fact)} for fact in view.salvage]
        names = "number file position bytes time_ns synced previous_crc crc facts damage"
        return {
            **dict.fromkeys(names.split()),
            "file": view.file,
            "position": view.position,
            "facts": facts,
            "damage": view.reason,
        }
    head = view.seen.head
    return {
        "number": head.number,
        "file": view.seen.file,
        "position": view.seen.position,
        "bytes": head.length,
        "time_ns": head.time_ns,
        "synced": head.synced,
        "previous_crc": _crc(head.previous),
        # One that does not fit its frame makes it none: see the rows without a number.
        "crc": _crc(head.crc),
        "facts": [_fact_row(fact) for fact in view.facts],
        "damage": view.damage or None,
    }


def _fact_row(fact: Any) -> Row:
    if isinstance(fact, Appended):
        header = parse_header(fact.header)
        return {
            "fact": "appended",
            "log": header.log,
            "first": header.base,
            "end": header.end,
            "body_bytes": header.body_bytes,
            "body_crc": _crc(header.body_crc),
        }
    if isinstance(fact, Trimmed):
        # Records that are kept may be large: where they came from is enough.
        copies = [[consumer, offset, len(copy)] for consumer, offset, copy in fact.copies]
        return {"fact": "trimmed", "log": fact.log, "first": fact.first, "copies": copies}
    fields = getattr(fact, "__struct_fields__", None)
    if fields is None:
        return {"fact": "?", "unpacked": _plain(fact)}
    row: Row = {"fact": type(fact).__name__.lower()}
    row |= {name: _plain(getattr(fact, name)) for name in fields}
    return row


def _plain(value: Any) -> Any:
    """As JSON has it: bytes in hexadecimal."""
    match value:
        case bytes():
            return value.hex()
        case list() | tuple():
            return [_plain(each) for each in value]
        case dict():
            return {str(_plain(name)): _plain(content) for name, content in value.items()}
        case None | str() | int() | float():
            return value
        case _:
            fields = getattr(value, "__struct_fields__", ())
            return {name: _plain(getattr(value, name)) for name in fields} or str(value)


def _fact_text(fact: Row) -> str:
    rest = " ".join(f"{name}={value}" for name, value in fact.items() if name != "fact")
    return f"{fact['fact']} {rest}".rstrip()


# --- hex ------------------------------------------------------------------------------------


def hex_lines(raw: bytes | memoryview, position: int) -> Iterator[str]:
    """Like hexdump -C, with the file's own positions."""
    for begin in range(0, len(raw), HEX_COLUMNS):
        piece = bytes(raw[begin : begin + HEX_COLUMNS])
        text = "".join(chr(c) if 32 <= c < 127 else "." for c in piece)
        yield f"{position + begin:08x}  {piece.hex(' '):<{HEX_COLUMNS * 3 - 1}}  |{text}|"


def _show_hex(
    out: Output, found: Iterable[Stored], offset: int, read: Callable[[Stored], bytes]
) -> None:
    for stored in found:
        view = stored.view
        if isinstance(view, Damage):
            first, end, position = view.first, view.end, view.position
        else:
            first, end, position = view.header.base, view.header.end, view.position
        if first <= offset < end:
            raw = read(stored)
            if out.form is not None and out.form != "table":
                out.one({**_batch_row(stored), "hex": raw.hex()})
                return
            out.one(_batch_row(stored), _HUMAN)
            out.print("")
            out.print("\n".join(hex_lines(raw, position)))
            return
    raise Stopped(Exit.NOT_FOUND, f"offset {offset} is not there")


# --- online ---------------------------------------------------------------------------------


class _Online:
    """A log, through its server."""

    def __init__(self, log: Log) -> None:
        self._log = log
        self._raw: memoryview = memoryview(b"")

    def batches(self) -> Iterator[Stored]:
        info = self._log.info()
        if info.first >= info.end:
            return
        source = wire.Batches(self._log, info.first)
        while True:
            try:
                batch = next(source)
            except StopIteration:
                return
            except CorruptData as error:
                damage = Damage(error.position or 0, error.first, error.end, str(error))
                yield Stored(self._log.name, error.file or "", damage)
                continue
            self._raw = batch.raw
            yield Stored(
                self._log.name, batch.file, offline.look_at_batch(batch.position, batch.raw)
            )

    def raw(self, _stored: Stored) -> bytes:
        return bytes(self._raw)

    def segments(self) -> Iterator[Row]:
        found = wire.segments(self._log)
        ends = [each.base for each in found[1:]] + [self._log.info().end]
        for each, end in zip(found, ends, strict=True):
            yield {
                "log": self._log.name,
                "first": each.base,
                "end": end,
                "bytes": each.bytes,
                "generation": each.generation,
                "absent": each.absent,
                "time_ns": each.time_max_ns,
                "file": each.file,
            }


def _inspect_online(settings: Settings, name: str, wanted: Wanted) -> None:
    if wanted.frames:
        raise click.UsageError("--frames: the journal is not seen through the server; give its DIR")
    out = settings.out
    with settings.client() as client:
        log = client.log(name)
        source = _Online(log)
        if wanted.hex_offset is not None:
            _show_hex(out, source.batches(), wanted.hex_offset, source.raw)
            return
        with Sections(out, wanted.rows_max) as sections:
            info = log.info()
            sections.add(
                "logs",
                [
                    {
                        "name": info.name,
                        "id": info.id,
                        "first": info.first,
                        "end": info.end,
                        "synced_end": info.synced_end,
                        "bytes": info.bytes,
                        "options": info.options,
                    }
                ],
            )
            if wanted.segments or not wanted.any:
                sections.add("segments", source.segments())
            _add_batches(sections, wanted, source.batches)


def _add_batches(sections: Sections, wanted: Wanted, found: Callable[[], Iterator[Stored]]) -> None:
    if wanted.batches:
        sections.add("batches", map(_batch_row, found()))
    if wanted.records:
        sections.add("records", _record_rows(found()))


# --- a directory ----------------------------------------------------------------------------


class _Directory:
    """A data directory, offline."""

    def __init__(self, survey: Survey, log: str | None) -> None:
        self._survey = survey
        self._log = log

    def segments(self) -> Iterator[offline.SegmentView]:
        if self._survey.state is None:
            return
        for each in offline.segments(self._survey):
            if self._log in (None, each.log.name):
                yield each

    def batches(self) -> Iterator[Stored]:
        for each in self.segments():
            durable = each.durable.length if each.durable else 0
            for view in offline.batches(each.read_of(self._survey), each.extent):
                if isinstance(view, Damage) and view.position >= durable:
                    # Nothing is lost: the journal has it, and recovery lays it out.
                    view = view._replace(reason=f"not laid out, but in the journal ({view.reason})")
                yield Stored(each.log.name, each.file, view)

    def frames(self) -> Iterator[Row]:
        files = self._survey.files
        for name, file in _journal_files(files):
            yield from map(_frame_row, offline.frames(file, name))

    def raw(self, stored: Stored) -> bytes:
        view = stored.view
        length = 4096 if isinstance(view, Damage) else view.header.bytes
        return self._survey.files.open(stored.file, write=False).read(view.position, length)


def _inspect_directory(out: Output, directory: str, wanted: Wanted) -> None:
    survey = offline.survey(Disk(directory))
    if not offline.is_data_directory(survey.files):
        text = f"{directory} is no data directory: it has no journal (a log's name: --online)"
        raise Stopped(Exit.NOT_FOUND, text)
    source = _Directory(survey, wanted.log)
    if wanted.log is not None and (
        survey.state is None or survey.state.by_name(wanted.log) is None
    ):
        raise Stopped(Exit.NOT_FOUND, f"{directory} has no log {wanted.log!r}")
    if wanted.hex_offset is not None:
        if wanted.log is None:
            raise click.UsageError("--hex OFFSET of which log? Say --log NAME")
        _show_hex(out, source.batches(), wanted.hex_offset, source.raw)
        return
    with Sections(out, wanted.rows_max) as sections:
        if not wanted.any:
            _add_overview(sections, survey)
        if wanted.segments:
            sections.add("segments", map(_segment_row, source.segments()))
        _add_batches(sections, wanted, source.batches)
        if wanted.frames:
            sections.add("frames", source.frames())
    if survey.refusal:
        out.say(f"the next start will refuse: {survey.refusal}")


def _add_overview(sections: Sections, survey: Survey) -> None:
    sections.add("checkpoints", map(_checkpoint_row, survey.checkpoints))
    sections.add(
        "journal", (_journal_row(name, file) for name, file in _journal_files(survey.files))
    )
    if survey.state is not None:
        sections.add("logs", _log_rows(survey))
    findings = [
        {"file": torn.file, "position": torn.position, "finding": f"torn tail: {torn.report}"}
        for torn in survey.torn
    ]
    if survey.refusal:
        findings.append({"file": None, "position": None, "finding": survey.refusal})
    if findings:
        sections.add("findings", findings)


# --- a file ---------------------------------------------------------------------------------


def _inspect_file(out: Output, path: str, wanted: Wanted) -> None:
    path = os.path.abspath(path)
    directory, _, name = path.rpartition("/")
    file = offline.ReadOnly(Disk(directory or "/")).open(name)
    kind = _kind_of(file, name)
    if kind == "segment":
        _inspect_segment(out, file, path, wanted)
    elif kind == "journal":
        with Sections(out, wanted.rows_max) as sections:
            sections.add("frames", map(_frame_row, offline.frames(file, name)))
    elif kind == "checkpoint":
        with Sections(out, wanted.rows_max) as sections:
            found = offline.look_at_checkpoint(file, name)
            sections.add("checkpoints", [_checkpoint_row(found)])
            if found.content is not None:
                survey = Survey(Disk(directory), [found], found.content, None, None, [])
                sections.add("logs", _log_rows(survey))
    else:
        raise Stopped(Exit.ERROR, f"{path} is no segment, no journal file and no checkpoint")


def _kind_of(file: File, name: str) -> str:
    """By its name, which damage leaves alone; a copy by another name by how it begins."""
    if base_of(name) is not None:
        return "segment"
    if name.startswith("checkpoint-"):
        return "checkpoint"
    if name.isdecimal() and len(name) == 10:
        return "journal"
    magics = {BATCH_MAGIC: "segment", FRAME_MAGIC: "journal", checkpoints.MAGIC: "checkpoint"}
    return magics.get(file.read(0, 3), "")


def _inspect_segment(out: Output, file: File, path: str, wanted: Wanted) -> None:
    try:
        extent = offline.lone_segment(file, path)
    except Refused as error:
        raise Stopped(Exit.CORRUPT, str(error)) from None
    log = f"id {extent.log}"

    def found() -> Iterator[Stored]:
        for view in offline.batches(file.read, extent):
            if isinstance(view, Damage) and offline.only_zeros(
                file.read, view.position, extent.length
            ):
                return  # space that is reserved, or the end of the file: it ends as it should
            yield Stored(log, path, view)

    if wanted.hex_offset is not None:
        _show_hex(
            out,
            found(),
            wanted.hex_offset,
            lambda stored: file.read(
                stored.view.position,
                4096 if isinstance(stored.view, Damage) else stored.view.header.bytes,
            ),
        )
        return
    with Sections(out, wanted.rows_max) as sections:
        if wanted.batches or not wanted.any:
            sections.add("batches", map(_batch_row, found()))
        if wanted.records:
            sections.add("records", _record_rows(found()))


# --- the verb -------------------------------------------------------------------------------


@command(
    short_help="Show what is stored, online or offline.",
    help="Show what is stored: of LOG through the server, of DIR or FILE offline, read only.",
)
@click.argument("target", metavar="LOG|DIR|FILE")
@option("--segments", is_flag=True, help="The files that hold the records.")
@option("--batches", is_flag=True, help="With checksums, stored and made anew.")
@option("--records", is_flag=True, help="Every record: its place, its time and its sizes.")
@option("--frames", is_flag=True, help="The journal's, with their facts.")
@option("--hex", "hex_offset", type=click.IntRange(min=0), metavar="OFFSET", help="Its batch, raw.")
@option("--log", "log", metavar="NAME", help="Of a DIR: only this log.")
@option("-n", "--count", type=click.IntRange(min=0), help="Of each listing, only so many rows.")
@option("--online", is_flag=True, help="TARGET is a log's name, though there is such a path.")
def inspect(
    settings: Settings,
    target: str,
    segments: bool,
    batches: bool,
    records: bool,
    frames: bool,
    hex_offset: int | None,
    log: str | None,
    count: int | None,
    online: bool,
) -> None:
    # It shows and does not judge: damage is in what it shows, and `verify` has an exit code for it.
    wanted = Wanted(segments, batches, records, frames, hex_offset, count, log)
    path = not online and ("/" in target or target in (".", "..") or os.path.exists(target))
    directory = path and os.path.isdir(target)
    if log is not None and not directory:
        raise click.UsageError("--log is for a directory")
    if not path:
        _inspect_online(settings, target, wanted)
    elif directory:
        _inspect_directory(settings.out, target, wanted)
    else:
        _inspect_file(settings.out, target, wanted)

"""``rlog cat`` and ``rlog tail``: records out, whole batches at a time."""

from __future__ import annotations

import contextlib
import fcntl
import re
from bisect import bisect_left
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import click

from rlog_client import OLDEST, Consumer, Global, Reader, Record, last, offset
from rlog_client.batch import InvalidBatch, decode

from . import wire
from .consumers import telling_how_to_go_on
from .exits import Exit
from .options import CONSUMER, TEMPLATE, WHENCE, ParamType, Settings, command, fail_empty, option
from .output import STDOUT, check_reader
from .records import to_lines, to_objects
from .template import FORMAT_HELP, compile_template
from .whence import GRAMMAR

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rlog_client import Log

    from .output import Output
    from .whence import Place

PIPE_BYTES: Final = 1 << 20
WRITE_BYTES: Final = 256 * 1024  # small batches are put together up to this
POLL_RECORDS: Final = 10_000
TURN_SECONDS: Final = 0.05  # of waiting for one of several logs
READER_SECONDS: Final = 1.0  # of waiting, until it is asked whether anybody still reads
TAIL_RECORDS: Final = 10
TABLE: Final = r"%o\t%t\t%k\t%v\n"

Render: TypeAlias = Callable[[Sequence[Record]], bytes]


def _widen_pipe() -> None:
    """A pipe of 64 KiB has the two ends wait for each other at every turn."""
    with contextlib.suppress(OSError, AttributeError):
        fcntl.fcntl(STDOUT, fcntl.F_SETPIPE_SZ, PIPE_BYTES)


def _lines(records: Sequence[Record]) -> bytes:
    return b"".join([record.value + b"\n" for record in records])


class _Array:
    """Records as the elements of a JSON array that is being written."""

    def __init__(self) -> None:
        self._separator = b"\n"

    def __call__(self, records: Sequence[Record]) -> bytes:
        if not records:
            return b""
        data = self._separator + b",\n".join(to_objects(records))
        self._separator = b",\n"
        return data


def _renderer(out: Output, template: Render | None) -> Render:
    if template is not None:
        return template
    match out.form:
        case "json":
            return _Array()
        case "jsonl":
            return to_lines
        case "table":
            return compile_template(TABLE)
        case _:
            return _lines


@contextlib.contextmanager
def _rendered(out: Output, render: Render) -> Iterator[None]:
    """An array is closed also when what was to be in it ends early."""
    if not isinstance(render, _Array):
        yield
        return
    out.write(b"[")
    try:
        yield
    finally:
        out.write(b"\n]\n")


# --- cat ------------------------------------------------------------------------------------


@command(
    short_help="Write the records of a log to stdout.",
    help="Write the values of LOG to stdout, up to the end it has now, each with a newline.",
)
@click.argument("log")
@option(
    "--from",
    "begin",
    type=WHENCE,
    default="start",
    show_default=True,
    help=f"Begin there: {GRAMMAR}.",
)
@option(
    "--to",
    "end",
    type=WHENCE,
    default="end",
    show_default=True,
    help=f"End before it: {GRAMMAR}.",
)
@option("-n", "--count", type=click.IntRange(min=0), help="At most so many records.")
@option("--raw", is_flag=True, help="Values alone, without a newline of our own.")
@option("--format", "template", type=TEMPLATE, help=FORMAT_HELP)
@fail_empty()
def cat(
    settings: Settings,
    log: str,
    begin: Place,
    end: Place,
    count: int | None,
    raw: bool,
    template: Render | None,
    fail_empty: bool,
) -> int:
    out = settings.out
    if raw and (template is not None or out.form is not None):
        raise click.UsageError("--raw is values alone: --format and --output do not go with it")
    _widen_pipe()
    with wire.collecting_seldom(), settings.client() as client:
        source = client.log(log)
        first, final = _range(source, begin, end, count)
        if template is None and out.form is None:
            _cat_values(out, source, first, final, b"" if raw else b"\n")
        else:
            _cat_records(out, source, first, final, _renderer(out, template))
    return Exit.EMPTY if fail_empty and first >= final else Exit.OK


def _range(log: Log, begin: Place, end: Place, count: int | None) -> tuple[int, int]:
    """The offsets from which and up to which to read."""
    place = wire.resolve(log, begin)
    until = wire.whence_of(log, end)
    # An offset means itself, also one that the log has not reached.
    final = until.value if until.kind == "offset" else wire.resolve(log, until).offset
    final = min(final, place.end)
    if count is not None:
        final = min(final, place.offset + count)
    return place.offset, final


def _cat_values(out: Output, log: Log, first: int, final: int, newline: bytes) -> None:
    """The fast way: columns of values, and no record is ever made."""
    if first >= final:
        return
    waiting: list[bytes] = []
    size = 0
    try:
        for batch in wire.Batches(log, first, final):
            header = batch.header
            try:
                columns = decode(header, batch.body)
            except InvalidBatch as error:
                raise wire.corrupt(
                    log.name, header.base, header.end, batch.file, batch.position, str(error)
                ) from None
            values = columns.values
            if header.base < first or header.end > final:
                offsets = columns.offsets(header)
                values = values[bisect_left(offsets, first) : bisect_left(offsets, final)]
            if not values:
                continue  # what was here was compacted
            values.append(b"")  # so that the last one ends with a newline, too
            waiting.append(newline.join(values))
            size += header.body_bytes
            if size >= WRITE_BYTES:
                data, waiting, size = waiting, [], 0
                out.write(_joined(data))
    finally:
        # Also in front of damage: what was good before it is written.
        if waiting:
            out.write(_joined(waiting))


def _joined(pieces: Sequence[bytes]) -> bytes:
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)


def _cat_records(out: Output, log: Log, first: int, final: int, render: Render) -> None:
    with _rendered(out, render):
        if first >= final:
            return
        with log.reader(offset(first), until=offset(final)) as reader:
            while reader.offset < final:
                out.write(render(reader.poll(POLL_RECORDS, timeout=None)))


# --- tail -----------------------------------------------------------------------------------


class _Tail:
    """One log being followed. ``end`` None: for ever. ``left``: how many records more, at most."""

    def __init__(
        self, log: Log, source: Reader | Consumer, place: int, end: int | None, left: int | None
    ) -> None:
        self.log = log
        self._source = source
        self._place = place
        self._end = end
        self._left = left

    @property
    def over(self) -> bool:
        return self._left == 0 or (self._end is not None and self._place >= self._end)

    def poll(self, timeout: float) -> list[Record]:
        """What comes next. Never more than what will be written: a consumer commits it."""
        wanted = POLL_RECORDS
        if self._left is not None:
            wanted = min(wanted, self._left)
        if self._end is not None:
            wanted = min(wanted, self._end - self._place)
            # What is left may have been compacted since: then nothing comes, but the place moves.
            timeout = min(timeout, TURN_SECONDS)
        explained = (
            telling_how_to_go_on(self.log.name, self._source._consumer)
            if isinstance(self._source, Consumer)
            else contextlib.nullcontext()
        )
        with explained:
            records = self._source.poll(wanted, timeout=timeout)
        self._place = self._source._offset
        if self._end is not None:
            # (Where records were compacted there are fewer than offsets.)
            records = [r for r in records if r.redriven or r.offset < self._end]
        if records:
            self._place = records[-1].offset + 1
            if self._left is not None:
                self._left -= len(records)
        return records

    def taken(self, records: Sequence[Record]) -> None:
        """stdout has them."""
        if isinstance(self._source, Consumer):
            self._source.commit(records[-1], wait=False)


class _Regex(ParamType):
    name = "regex"

    def convert(self, value: Any, param: Any, ctx: Any) -> re.Pattern[bytes]:
        if isinstance(value, re.Pattern):
            return value
        try:
            return re.compile(value.encode("utf-8", "surrogateescape"))
        except re.error as error:
            self.fail(f"{value!r}: {error}", param, ctx)


@command(
    short_help="Write the last records, and those that come.",
    help="Write the last records of LOGs, and with -f those that come.",
)
@click.argument("logs", nargs=-1, required=True, metavar="LOG...")
@option(
    "-n",
    "--count",
    type=click.IntRange(min=0),
    help="The last so many; with --from or -c, at most so many.  [default: 10]",
)
@option("-f", "-F", "--follow", is_flag=True, help="Go on as records come.")
@option(
    "--from",
    "begin",
    type=WHENCE,
    help=f"Begin there; with -c only if there is no such consumer yet: {GRAMMAR}.",
)
@option("-g", "--grep", type=_Regex(), help="Only values in which this is found.")
@option("--format", "template", type=TEMPLATE, help=FORMAT_HELP)
@option(
    "-c",
    "--consumer",
    type=CONSUMER,
    help="Read as this consumer; commit what stdout has taken. What is in a pipe counts as taken, "
    "whether or not somebody reads it.",
)
@fail_empty()
def tail(
    settings: Settings,
    logs: Sequence[str],
    count: int | None,
    follow: bool,
    begin: Place | None,
    grep: re.Pattern[bytes] | None,
    template: Render | None,
    consumer: str | Global | None,
    fail_empty: bool,
) -> int:
    out = settings.out
    render = _renderer(out, template)
    titled = len(logs) > 1 and render is _lines and not out.quiet
    with settings.client() as client, contextlib.ExitStack() as stack:
        tails = []
        for name in logs:
            log = client.log(name)
            if consumer is not None:
                tails.append(_consume(stack, log, consumer, begin, count, follow))
            else:
                tails.append(_follow(stack, log, begin, count, follow))
        with _rendered(out, render):
            written = _write_tails(out, tails, render, grep, titled)
    return Exit.EMPTY if fail_empty and not written else Exit.OK


def _follow(
    stack: contextlib.ExitStack, log: Log, begin: Place | None, count: int | None, follow: bool
) -> _Tail:
    if begin is None:
        whence, count = last(TAIL_RECORDS if count is None else count), None
    else:
        whence = wire.whence_of(log, begin)
    end = None if follow else wire.resolve(log, whence).end
    reader = stack.enter_context(log.reader(whence))
    return _Tail(log, reader, reader.offset, end, count)


def _consume(
    stack: contextlib.ExitStack,
    log: Log,
    consumer_id: str | Global,
    begin: Place | None,
    count: int | None,
    follow: bool,
) -> _Tail:
    start = OLDEST if begin is None else wire.whence_of(log, begin)
    consumer = stack.enter_context(log.consumer(consumer_id, start=start))
    end = None if follow else log.info().end
    return _Tail(log, consumer, consumer.committed, end, count)


def _write_tails(
    out: Output,
    tails: list[_Tail],
    render: Render,
    grep: re.Pattern[bytes] | None,
    titled: bool,
) -> int:
    """-> how many records were written."""
    written = 0
    title: _Tail | None = None
    patience = 0.0  # of one turn: nobody waits for one log while another has some
    while tails := [each for each in tails if not each.over]:
        quiet = True
        if patience:
            check_reader()
            patience = READER_SECONDS if len(tails) == 1 else TURN_SECONDS
        for each in tails:
            records = each.poll(patience)
            if not records:
                continue
            quiet = False
            matching = [r for r in records if grep.search(r.value)] if grep else records
            if matching:
                if titled and title is not each:
                    out.write(f"{chr(10) if title else ''}==> {each.log.name} <==\n".encode())
                    title = each
                out.write(render(matching))
                written += len(matching)
            each.taken(records)
        patience = TURN_SECONDS if quiet else 0.0
    return written

r"""``rlog append``: files and pipes in, one record a line.

Large reads, one split, and whole lists of values to the producer: nothing is done per line that
can be done per read. Of each read the last record is sent by itself: its ``Pending`` says how far
the server has acknowledged, for the progress bar and for the word on what stays when it fails.
"""

from __future__ import annotations

import os
import select
import stat
import time
from collections import deque
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import click
from click.core import ParameterSource

from rlog_client import Item, NotFound, RlogError, TooLarge

from ..policy import parse_bytes
from . import wire
from .exits import Exit, Stopped
from .options import SIZE, ParamType, Settings, command, fail_empty, option
from .output import Progress, size
from .records import InvalidLine, from_line

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from rlog_client import Client, Log, Pending, Producer

    from .output import Output

READ_BYTES: Final = 512 * 1024
LINGER_SECONDS: Final = 0.05  # of a batch, while there is more to read
IDLE_MILLISECONDS: Final = 5  # without input, and what was read goes out
# How far a line is followed that is too large already, to say how large it is.
TOO_LARGE_FOLLOWED: Final = 64 << 20
PACE_SECONDS: Final = 0.05  # between two portions with --rate


class Source(NamedTuple):
    """An input. ``total``: its length in bytes, None for a pipe."""

    name: str
    file: int
    total: int | None


class Shape(NamedTuple):
    """How bytes become records. ``delimiter`` b"": all of a file is one record."""

    delimiter: bytes
    keep: bool
    jsonl: bool
    key: bytes | None
    key_delimiter: bytes
    headers: Mapping[str, bytes] | None

    @property
    def plain(self) -> bool:
        """Records are values and nothing else."""
        return not (self.jsonl or self.key is not None or self.key_delimiter or self.headers)

    def item(self, line: bytes) -> Item:
        """Raises InvalidLine."""
        if self.jsonl:
            return from_line(line)
        key, value = self.key, line
        if self.key_delimiter:
            before, found, after = line.partition(self.key_delimiter)
            if found:
                key, value = before, after
        return Item(value, key, self.headers)


class Unfit(Exception):
    """A record that cannot be appended: ``number`` of it in its input, from 1."""

    def __init__(self, number: int, reason: str) -> None:
        super().__init__(reason)
        self.number = number


# --- bytes to records -----------------------------------------------------------------------


def split(
    reads: Iterator[bytes], delimiter: bytes, *, keep: bool, bytes_max: int
) -> Iterator[list[bytes]]:
    """The records of each read. The last needs no delimiter; one beyond ``bytes_max`` is cut."""
    carried: list[bytes] = []
    carried_bytes = 0
    for data in reads:
        records = data.split(delimiter)
        last = records.pop()
        if records:
            if carried:
                records[0] = b"".join((*carried, records[0]))
                carried, carried_bytes = [], 0
            yield [record + delimiter for record in records] if keep else records
        if last:
            carried.append(last)
            carried_bytes += len(last)
            if carried_bytes > bytes_max:
                break  # too large, and to be refused: how much of it there is makes no difference
    if carried:
        yield [b"".join(carried)]


def _reads(source: Source, idle: Callable[[], None]) -> Iterator[bytes]:
    """What is read, in large pieces. ``idle()`` before a wait for more."""
    poll = None
    if source.total is None:
        poll = select.poll()
        poll.register(source.file, select.POLLIN)
    while True:
        if poll is not None and not poll.poll(IDLE_MILLISECONDS):
            idle()
            poll.poll()
        data = os.read(source.file, READ_BYTES)
        if not data:
            return
        yield data


def records_of(
    source: Source, shape: Shape, bytes_max: int, idle: Callable[[], None]
) -> Iterator[list[bytes]]:
    reads = _reads(source, idle)
    if shape.delimiter:
        yield from split(reads, shape.delimiter, keep=shape.keep, bytes_max=bytes_max)
        return
    whole: list[bytes] = []
    length = 0
    for data in reads:
        whole.append(data)
        length += len(data)
        if length > bytes_max:
            break
    yield [b"".join(whole)]


# --- records to the server ------------------------------------------------------------------


class Feed:
    """A producer, and how far it is: ``records`` and ``bytes`` handed over, and acknowledged."""

    def __init__(self, producer: Producer, record_bytes_max: int) -> None:
        self._producer = producer
        self._record_max = record_bytes_max
        self._first: Pending | None = None
        self._newest: Pending | None = None
        self._marks: deque[tuple[Pending, int, int]] = deque()
        self.records = 0
        self.bytes = 0
        self.acknowledged = 0
        self.acknowledged_bytes = 0
        self.last: int | None = None  # the offset of the last acknowledged record
        self.level = "synced"  # how durable it was when acknowledged

    @property
    def first(self) -> int | None:
        """The offset of the first record, if it is acknowledged."""
        return self._first.result() if self._first is not None and self.acknowledged else None

    def extend(self, values: Sequence[bytes]) -> None:
        """Hand over plain values, at least one. Unfit: those before it were handed over."""
        handed = 0
        try:
            if self._first is None:
                self._first = self._send(values[0])
                handed = 1
            if handed < len(values):
                self._producer.extend(values[handed:-1])
                handed = len(values) - 1
                self._mark(self._send(values[-1]), values)
            else:
                self._mark(self._first, values)
        except TooLarge as error:
            raise self._refused(values, error) from None

    def send(self, items: Sequence[Item]) -> None:
        pending = None
        for number, item in enumerate(items):
            try:
                pending = self._producer.send(
                    item.value,
                    key=item.key,
                    headers=item.headers,
                    event_time_ns=item.event_time_ns,
                )
            except TooLarge as error:
                self.records += number
                raise Unfit(number, _too_large(error)) from None
            self._first = self._first or pending
        if pending is not None:
            self._mark(pending, [bytes(item.value) for item in items])

    def _send(self, value: bytes) -> Pending:
        return self._producer.send(value)

    def _mark(self, pending: Pending, values: Sequence[bytes]) -> None:
        self.records += len(values)
        self.bytes += sum(map(len, values))
        self._newest = pending
        self._marks.append((pending, self.records, self.bytes))

    def _refused(self, values: Sequence[bytes], error: TooLarge) -> Exception:
        for number, value in enumerate(values):
            if len(value) > self._record_max:
                self.records += number
                self.bytes += sum(map(len, values[:number]))
                return Unfit(number, _too_large(error))
        return error  # the server's own word, on something else

    def look(self) -> None:
        """Take note of what is acknowledged by now. Raises nothing."""
        while self._marks and self._marks[0][0].done():
            pending, records, count = self._marks.popleft()
            try:
                self.last = pending.result()
                self.level = pending.receipt().level
            except RlogError:
                self._marks.clear()
                return
            self.acknowledged, self.acknowledged_bytes = records, count

    def flush(self) -> None:
        """Wait until all of it is acknowledged. Raises what failed."""
        end = self._producer.flush()
        self._marks.clear()
        if self.records:
            self.last = end - 1
            newest = self._newest or self._first
            assert newest is not None, "something was handed over"
            self.level = newest.receipt().level
        self.acknowledged, self.acknowledged_bytes = self.records, self.bytes


def _too_large(error: TooLarge) -> str:
    return f"has {error.size} bytes; the limit is {error.limit}"


class Pace:
    """``--rate``: portions so small, and pauses so long, that it comes out right."""

    def __init__(self, rate: float, *, of_bytes: bool) -> None:
        self._rate = rate
        self._of_bytes = of_bytes
        self._began = time.monotonic()
        self._done = 0

    def portions(self, values: Sequence[bytes]) -> Iterator[Sequence[bytes]]:
        allowed = self._rate * PACE_SECONDS
        begin, weight = 0, 0
        for index, value in enumerate(values, 1):
            weight += len(value) if self._of_bytes else 1
            if weight >= allowed:
                yield values[begin:index]
                begin, weight = index, 0
        if begin < len(values):
            yield values[begin:]

    def pause(self, values: Sequence[bytes]) -> None:
        self._done += sum(map(len, values)) if self._of_bytes else len(values)
        time.sleep(max(0.0, self._began + self._done / self._rate - time.monotonic()))


class Appending:
    """One run of the verb: its inputs, one after the other, into one log."""

    def __init__(self, feed: Feed, shape: Shape, bytes_max: int, pace: Pace | None) -> None:
        self._feed = feed
        self._shape = shape
        self._bytes_max = bytes_max
        self._pace = pace

    def run(self, sources: Sequence[Source], progress: Progress) -> None:
        for source in sources:
            done = 0  # records of this input
            for values in records_of(source, self._shape, self._bytes_max, self._feed.flush):
                try:
                    self._hand_over(values)
                except (Unfit, InvalidLine) as error:
                    number = done + (error.number if isinstance(error, Unfit) else 0) + 1
                    where = f"line {number}" if self._shape.delimiter else "it"
                    raise Unfit(number, f"{source.name}: {where} {error}") from None
                done += len(values)
                now = time.monotonic()
                if progress.due(now):
                    self._feed.look()
                    progress.show(self._feed.acknowledged_bytes, now)

    def _hand_over(self, values: Sequence[bytes]) -> None:
        if self._pace is None:
            self._portion(values)
            return
        handed = 0
        for portion in self._pace.portions(values):
            try:
                self._portion(portion)
            except Unfit as error:
                raise Unfit(handed + error.number, str(error)) from None
            self._feed.flush()
            self._pace.pause(portion)
            handed += len(portion)

    def _portion(self, values: Sequence[bytes]) -> None:
        if self._shape.plain:
            self._feed.extend(values)
            return
        items: list[Item] = []
        for number, line in enumerate(values):
            if self._shape.jsonl and not line.strip():
                continue
            try:
                items.append(self._shape.item(line))
            except InvalidLine as error:
                self._feed.send(items)
                raise Unfit(number, str(error)) from None
        self._feed.send(items)


# --- the verb -------------------------------------------------------------------------------


class _Rate(ParamType):
    name = "rate"

    def convert(self, value: Any, param: Any, ctx: Any) -> tuple[int, bool]:
        if isinstance(value, tuple):
            return value
        text = value.removesuffix("/s")
        number = parse_bytes(text)
        if not number:
            self.fail(f"{value!r}: a rate is records a second, or bytes: 1000, 1MiB", param, ctx)
        return number, not text.isdecimal()


def _delimiter(_ctx: click.Context, _param: click.Parameter, value: str | None) -> bytes:
    escapes = {"\\t": "\t", "\\0": "\0", "\\n": "\n"}
    return escapes.get(value or "", value or "").encode("utf-8", "surrogateescape")


def _unless_from_environment(key: str | None) -> str | None:
    """`rlog process` sets RLOG_KEY for every command: what is typed there overrules it."""
    source = click.get_current_context().get_parameter_source("key")
    return None if source is ParameterSource.ENVIRONMENT else key


def _headers(
    _ctx: click.Context, _param: click.Parameter, values: Sequence[str]
) -> dict[str, bytes] | None:
    headers = {}
    for value in values:
        name, equals, content = value.partition("=")
        if not equals or not name:
            raise click.BadParameter(f"{value!r}: a header is NAME=VALUE")
        headers[name] = content.encode("utf-8", "surrogateescape")
    return headers or None


@command(
    short_help="Append lines of files, or of stdin.",
    help="Append lines of FILEs (- is stdin) to LOG, which is made if there is none.",
)
@click.argument("log")
@click.argument("files", nargs=-1, metavar="[FILE]...")
@option("-k", "--key", metavar="KEY", help="The key of every record.")
@option(
    "-K",
    "--key-delimiter",
    metavar="TEXT",
    callback=_delimiter,
    help="What is before it in a line is the record's key, the rest its value.",
)
@option(
    "-H",
    "--header",
    multiple=True,
    metavar="NAME=VALUE",
    callback=_headers,
    help="A header of every record. Several are possible.",
)
@option("-0", "--null", is_flag=True, help="Records end with a NUL, not with a newline.")
@option("--whole", is_flag=True, help="Each FILE is one record.")
@option("--keep-newline", is_flag=True, help="The newline is part of the value.")
@option("--jsonl", is_flag=True, help="Lines as `cat -o jsonl` writes them.")
@option("--batch-bytes", type=SIZE, default="1MiB", show_default=True, help="Of a full batch.")
@option("--rate", type=_Rate(), metavar="RATE", help="Records a second; with a unit (1MiB), bytes.")
@option("--create/--no-create", default=True, help="Make the log if there is none (the default).")
@fail_empty()
def append(
    settings: Settings,
    log: str,
    files: Sequence[str],
    key: str | None,
    key_delimiter: bytes,
    header: dict[str, bytes] | None,
    null: bool,
    whole: bool,
    keep_newline: bool,
    jsonl: bool,
    batch_bytes: int,
    rate: tuple[int, bool] | None,
    create: bool,
    fail_empty: bool,
) -> int:
    if jsonl or key_delimiter:
        key = _unless_from_environment(key)
    if jsonl and (key is not None or key_delimiter or header or null or whole or keep_newline):
        raise click.UsageError("--jsonl says everything about a record: no other flag goes with it")
    if whole and (null or keep_newline or key_delimiter):
        raise click.UsageError(
            "--whole takes no lines apart: -0, -K, --keep-newline do not go with it"
        )
    if key is not None and key_delimiter:
        raise click.UsageError("-k or -K, not both")
    shape = Shape(
        delimiter=b"" if whole else b"\0" if null else b"\n",
        keep=keep_newline,
        jsonl=jsonl,
        key=None if key is None else key.encode("utf-8", "surrogateescape"),
        key_delimiter=key_delimiter,
        headers=header,
    )
    with ExitStack() as stack:
        sources = [_open(stack, name) for name in files or ("-",)]
        client = stack.enter_context(settings.client())
        target = _log(settings.out, client, log, create)
        pace = None if rate is None else Pace(rate[0], of_bytes=rate[1])
        return _append(settings.out, client, target, sources, shape, batch_bytes, pace, fail_empty)


def _open(stack: ExitStack, name: str) -> Source:
    """Opened before anything is appended: a name that is wrong costs nothing."""
    file = 0
    if name != "-":
        file = os.open(name, os.O_RDONLY | os.O_CLOEXEC)
        stack.callback(os.close, file)
    status = os.fstat(file)
    if stat.S_ISDIR(status.st_mode):
        raise IsADirectoryError(21, "Is a directory", name)
    regular = stat.S_ISREG(status.st_mode)
    return Source("stdin" if name == "-" else name, file, status.st_size if regular else None)


def _log(out: Output, client: Client, name: str, create: bool) -> Log:
    try:
        return client.log(name)
    except NotFound:
        if not create:
            raise
    log = client.log(name, create=True)
    out.say(f"created log {name}")
    return log


def _append(
    out: Output,
    client: Client,
    log: Log,
    sources: Sequence[Source],
    shape: Shape,
    batch_bytes: int,
    pace: Pace | None,
    fail_empty: bool,
) -> int:
    record_max = wire.limits(client).record_bytes_max
    producer = log.producer(linger=LINGER_SECONDS, batch_bytes=batch_bytes)
    feed = Feed(producer, record_max)
    totals = [source.total for source in sources]
    total = None if None in totals else sum(filter(None, totals))
    began = time.monotonic()
    progress = Progress(out, total, began)
    failure: Unfit | RlogError | KeyboardInterrupt | None = None
    try:
        with wire.collecting_seldom():
            Appending(feed, shape, record_max + TOO_LARGE_FOLLOWED, pace).run(sources, progress)
    except (Unfit, RlogError, KeyboardInterrupt) as error:
        failure = error
    try:
        feed.flush()  # what was handed over before a failure is as good as anything
    except RlogError as error:
        feed.look()
        failure = failure or error
    progress.end()
    _report(out, log.name, feed, time.monotonic() - began)
    if failure is not None:
        _fail(feed, failure)
    return Exit.EMPTY if fail_empty and not feed.acknowledged else Exit.OK


def _report(out: Output, log: str, feed: Feed, seconds: float) -> None:
    first, last = feed.first, feed.last
    if first is None or last is None:
        out.say("nothing was appended")
        return
    count, length = feed.acknowledged, feed.acknowledged_bytes
    if out.form in ("json", "jsonl"):
        out.one(
            {
                "log": log,
                "first": first,
                "last": last,
                "records": count,
                "bytes": length,
                "level": feed.level,
                "seconds": round(seconds, 6),
            }
        )
        return
    out.print(f"{first} {last}")
    out.say(
        f"{log}: {count} records, {size(length)} in {seconds:.2f} s "
        f"({size(length / max(seconds, 1e-6))}/s), {feed.level}"
    )


def _fail(feed: Feed, failure: Unfit | RlogError | KeyboardInterrupt) -> None:
    if isinstance(failure, KeyboardInterrupt):
        raise failure
    if not feed.acknowledged:
        if isinstance(failure, Unfit):
            raise Stopped(Exit.ERROR, str(failure))
        raise failure
    more = feed.records - feed.acknowledged
    unknown = f"; of up to {more} more it is not known" if more else ""
    raise Stopped(
        Exit.PARTLY,
        f"{failure}\n{feed.acknowledged} records before it are in the log{unknown}",
    )

"""What a command says: data on stdout, talk on stderr.

Data goes out by plain writes to the descriptor, whole batches at a time: no buffer of Python's is
left over when the reader goes away, and what was written is known.
"""

from __future__ import annotations

import json
import os
import select
import sys
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final, Literal

import msgspec

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

STDOUT: Final = 1
STDERR: Final = 2
Form = Literal["table", "json", "jsonl"]
_BATCH_ROWS: Final = 500  # are aligned together, so that a listing of any length streams

Row = dict[str, Any]


class StdoutGone(Exception):
    """Nobody reads what we write any more."""


def write_all(descriptor: int, data: bytes | memoryview) -> None:
    """Raises StdoutGone when the reader is gone."""
    rest = memoryview(data)
    while rest:
        try:
            rest = rest[os.write(descriptor, rest) :]
        except BlockingIOError:
            # Somebody made the pipe non-blocking, perhaps for its other end.
            select.select([], [descriptor], [])
        except BrokenPipeError:
            raise StdoutGone from None


def check_reader() -> None:
    """Raises StdoutGone when nobody can read it any more: for whoever writes seldom."""
    watch = select.poll()
    watch.register(STDOUT, 0)  # only what is told unasked
    if watch.poll(0):
        raise StdoutGone


def rfc3339(time_ns: int, digits: int = 3) -> str:
    """UTC, with so many digits of the second's fraction."""
    seconds, fraction = divmod(time_ns, 10**9)
    try:
        moment = datetime.fromtimestamp(seconds, UTC)
    except (ValueError, OverflowError, OSError):
        return f"{time_ns}ns"  # beyond the years there are: a damaged header may say so
    fraction_text = f".{fraction:09}"[: digits + 1] if digits else ""
    return f"{moment:%Y-%m-%dT%H:%M:%S}{fraction_text}Z"


def size(count: float) -> str:
    """A number of bytes, for people."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024 or unit == "GiB":
            break
        count /= 1024
    return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"


def duration(seconds: float) -> str:
    """For people: 4 h."""
    for unit, name in ((86400.0, "d"), (3600.0, "h"), (60.0, "min")):
        if seconds >= 2 * unit:
            return f"{seconds / unit:.0f} {name}"
    return f"{seconds:.1f} s"


class Output:
    """One command's voice. ``form`` None: as the command does by default."""

    def __init__(
        self, *, form: Form | None, quiet: bool, verbose: bool, color: str, no_color: bool
    ) -> None:
        self.form = form
        self.quiet = quiet
        self.verbose = verbose
        self._color = color
        self._no_color = no_color

    # --- talk ---------------------------------------------------------------------------------

    def say(self, text: str) -> None:
        """To the person who started it; nothing with -q."""
        if not self.quiet:
            self.complain(text)

    def detail(self, text: str) -> None:
        """Only with -v."""
        if self.verbose:
            self.complain(text)

    def complain(self, text: str, *, error: bool = False) -> None:
        """To stderr, in any case. An error has our name: many a script has many commands talk."""
        if error:
            text = f"{self.paint('rlog:', '31;1', STDERR)} {text}"
        write_all(STDERR, f"{text}\n".encode("utf-8", "surrogateescape"))

    def paint(self, text: str, code: str, descriptor: int = STDOUT) -> str:
        return f"\x1b[{code}m{text}\x1b[0m" if self._colored(descriptor) else text

    def _colored(self, descriptor: int) -> bool:
        if self._color != "auto":
            return self._color == "always"
        return not self._no_color and os.isatty(descriptor) and os.environ.get("TERM") != "dumb"

    # --- data ---------------------------------------------------------------------------------

    def write(self, data: bytes | memoryview) -> None:
        write_all(STDOUT, data)

    def print(self, text: str) -> None:
        self.write(f"{text}\n".encode("utf-8", "surrogateescape"))

    def rows(self, rows: Iterable[Row], human: Mapping[str, Any] | None = None) -> int:
        """A listing: a table, an array, or an object a line. -> how many there were.

        ``human``: column -> how to show its value in a table.
        """
        if self.form == "json":
            with self.document():
                return self.array(rows)
        return self._jsonl(rows) if self.form == "jsonl" else self.table(rows, human)

    def one(self, row: Row, human: Mapping[str, Any] | None = None) -> None:
        """One thing: a line for each of its fields, or an object."""
        if self.form in ("json", "jsonl"):
            self.write(_json(row) + b"\n")
            return
        titles = {name: _title(name, human).lower() for name in row}
        width = max(map(len, titles.values()))
        for name, value in row.items():
            shown = _shown(name, value, human)
            self.print(f"{self.paint(titles[name].ljust(width), '1')}  {shown}".rstrip())

    def table(self, rows: Iterable[Row], human: Mapping[str, Any] | None = None) -> int:
        count = 0
        widths: dict[str, int] = {}
        right: set[str] = set()
        for batch in _batches(rows):
            cells = [{k: _shown(k, v, human) for k, v in row.items()} for row in batch]
            if not count:
                # All that any of these rows has: of a value, one has its text and one its base64.
                named = dict(item for row in reversed(batch) for item in row.items())
                order = dict.fromkeys(name for row in batch for name in row)
                widths = {name: len(_title(name, human)) for name in order}
                right = {n for n in order if type(named[n]) in (int, float)}
            for name in widths:
                widths[name] = max(widths[name], *(len(row.get(name, "-")) for row in cells))
            lines = []
            if not count:
                names = [_aligned(_title(n, human), w, n in right) for n, w in widths.items()]
                lines.append(self.paint("  ".join(names).rstrip(), "1"))
            for row in cells:
                line = [_aligned(row.get(n, "-"), w, n in right) for n, w in widths.items()]
                lines.append("  ".join(line).rstrip())
            self.print("\n".join(lines))
            count += len(batch)
        return count

    def _jsonl(self, rows: Iterable[Row]) -> int:
        count = 0
        for batch in _batches(rows):
            self.write(b"".join(_json(row) + b"\n" for row in batch))
            count += len(batch)
        return count

    @contextmanager
    def document(self) -> Iterator[None]:
        """What is written inside is one JSON value: end it with a newline, whatever happens."""
        yield
        self.write(b"\n")

    def array(self, rows: Iterable[Row]) -> int:
        count = 0
        self.write(b"[")
        for batch in _batches(rows):
            self.write((b",\n" if count else b"\n") + b",\n".join(map(_json, batch)))
            count += len(batch)
        self.write(b"\n]" if count else b"]")
        return count


def _batches(rows: Iterable[Row]) -> Iterator[list[Row]]:
    batch: list[Row] = []
    for row in rows:
        batch.append(row)
        if len(batch) == _BATCH_ROWS:
            yield batch
            batch = []
    if batch:
        yield batch


def _title(name: str, human: Mapping[str, Any] | None) -> str:
    """A unit that is not shown is not named."""
    if human is not None and name in human:
        name = name.removesuffix("_ns")
    return name.replace("_", " ").upper()


def _aligned(text: str, width: int, right: bool) -> str:
    return text.rjust(width) if right else text.ljust(width)


def _json(row: Any) -> bytes:
    try:
        return msgspec.json.encode(row)
    except UnicodeEncodeError:
        return json.dumps(row).encode()  # the name of a file that is no UTF-8


def _shown(name: str, value: Any, human: Mapping[str, Any] | None) -> str:
    if value is None:
        return "-"
    if human is not None and name in human:
        value = human[name](value)
    elif isinstance(value, dict | list | tuple):
        value = _json(value).decode()
    # A name may hold anything: what would move the cursor is escaped.
    text = str(value)
    return text if text.isprintable() else repr(text)[1:-1]


class Progress:
    """A line on the terminal that shows how far it is; nothing where stderr is no terminal.

    It appears when the work turns out to be long: what ends at once needs none.
    """

    APPEARS_SECONDS: Final = 0.5
    EVERY_SECONDS: Final = 0.1

    def __init__(self, out: Output, total: int | None, now: float) -> None:
        self._shown = False
        self._possible = not out.quiet and os.isatty(STDERR)
        self._total = total
        self._began = now
        self._next = now + self.APPEARS_SECONDS

    def due(self, now: float) -> bool:
        return self._possible and now >= self._next

    def show(self, done: int, now: float) -> None:
        """``done`` of ``total`` bytes."""
        self._next = now + self.EVERY_SECONDS
        self._shown = True
        write_all(STDERR, f"\r{bar(done, self._total, now - self._began)}\x1b[K".encode())

    def end(self) -> None:
        if self._shown:
            self._shown = False
            write_all(STDERR, b"\r\x1b[K")


def bar(done: int, total: int | None, seconds: float) -> str:
    """The line itself."""
    speed = done / seconds if seconds > 0 else 0.0
    text = f"{size(done)}  {size(speed)}/s"
    if not total:
        return text
    part = min(1.0, done / total)
    filled = round(part * 24)
    left = f"  {(total - done) / speed:.0f} s left" if 0 < done < total and speed else ""
    return f"[{'#' * filled}{'.' * (24 - filled)}] {part:4.0%}  {text}{left}"


def no_traceback_at_exit() -> None:
    """Have the interpreter's own last flush go nowhere: the reader of stdout is gone."""
    with open(os.devnull, "wb") as nowhere:
        os.dup2(nowhere.fileno(), STDOUT)
    sys.stdout = None

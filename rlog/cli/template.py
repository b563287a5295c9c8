r"""The template of ``--format``: ``'%o %t %k %v\n'``, compiled once to a function of many records.

    %o  offset              %v  value              %l  log
    %t  time, RFC 3339      %V  its length         %h  headers, as JSON
    %T  time, ns            %k  key                %e  event time, ns
    %%  a percent sign      %K  its length, or -1

Escapes: \\n \\t \\r \\0 \\\\ \\a \\e and \\xHH. A record without a key has an empty one. Nothing is
added: a newline is there when the template has one.
"""

from __future__ import annotations

from operator import attrgetter
from typing import TYPE_CHECKING, Any, Final

from .output import rfc3339
from .records import headers_json
from .whence import marked

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from rlog_client import Record

_ESCAPES: Final = {
    "n": b"\n", "t": b"\t", "r": b"\r", "0": b"\0", "\\": b"\\", "a": b"\a", "e": b"\x1b"
}  # fmt: skip


class InvalidTemplate(Exception):
    """``reason``, at the character ``at`` of the template."""

    def __init__(self, text: str, at: int, reason: str) -> None:
        super().__init__(f"{reason}\n{marked(text, at)}")
        self.at = at
        self.reason = reason


def _times(records: Sequence[Record]) -> Iterable[bytes]:
    known: dict[int, bytes] = {}  # a batch has one time
    for record in records:
        time_ns = record.timestamp_ns
        if time_ns not in known:
            known = {time_ns: rfc3339(time_ns, 9).encode()}
        yield known[time_ns]


FORMAT_HELP: Final = r"""Such as '%o %t %k %v\n': %o offset, %t time (%T in ns), %k key (%K its
length, or -1), %v value (%V its length), %l log, %h headers, %e event time in ns, %% a percent
sign."""

# What a directive is printed with, and its column: whole columns, since a call for each record and
# directive would cost more than all the rest.
_DIRECTIVES: Final[dict[str, tuple[bytes, Callable[[Sequence[Record]], Iterable[Any]]]]] = {
    "o": (b"%d", lambda records: map(attrgetter("offset"), records)),
    "t": (b"%b", _times),
    "T": (b"%d", lambda records: map(attrgetter("timestamp_ns"), records)),
    "k": (b"%b", lambda records: [record.key or b"" for record in records]),
    "K": (b"%d", lambda records: [-1 if r.key is None else len(r.key) for r in records]),
    "v": (b"%b", lambda records: map(attrgetter("value"), records)),
    "V": (b"%d", lambda records: [len(record.value) for record in records]),
    "l": (b"%b", lambda records: [record.log.encode() for record in records]),
    "h": (b"%b", lambda records: [headers_json(record.headers) for record in records]),
    "e": (
        b"%b",
        lambda records: [
            b"" if r.event_time_ns is None else b"%d" % r.event_time_ns for r in records
        ],
    ),
}


def compile_template(text: str) -> Callable[[Sequence[Record]], bytes]:
    """A function from records to what is to be written for them. Raises InvalidTemplate."""
    form, columns = _parse(text)
    if not columns:
        return lambda records: form % () * len(records)

    def render(records: Sequence[Record]) -> bytes:
        return b"".join(
            map(form.__mod__, zip(*(column(records) for column in columns), strict=True))
        )

    return render


def _parse(text: str) -> tuple[bytes, list[Callable[[Sequence[Record]], Iterable[Any]]]]:
    pieces: list[bytes] = []
    columns = []
    at = 0
    while at < len(text):
        character, following = text[at], text[at + 1 : at + 2]
        if character == "%":
            if following == "%":
                pieces.append(b"%%")
            elif following in _DIRECTIVES:
                form, column = _DIRECTIVES[following]
                pieces.append(form)
                columns.append(column)
            else:
                known = " ".join(f"%{name}" for name in (*_DIRECTIVES, "%"))
                raise InvalidTemplate(text, at + 1, f"a template knows {known}")
            at += 2
        elif character == "\\":
            escaped, length = _escape(text, at)
            pieces.append(escaped.replace(b"%", b"%%"))
            at += length
        else:
            pieces.append(character.encode("utf-8", "surrogateescape"))
            at += 1
    return b"".join(pieces), columns


def _escape(text: str, at: int) -> tuple[bytes, int]:
    """The byte for the escape at ``at``, and the escape's length."""
    following = text[at + 1 : at + 2]
    if following == "x":
        digits = text[at + 2 : at + 4]
        if len(digits) == 2 and all(digit in "0123456789abcdefABCDEF" for digit in digits):
            return bytes([int(digits, 16)]), 4
        raise InvalidTemplate(text, at + 2, "two hexadecimal digits belong here")
    if following in _ESCAPES:
        return _ESCAPES[following], 2
    known = " ".join(f"\\{name}" for name in (*_ESCAPES, "xHH"))
    raise InvalidTemplate(text, at + 1, f"a template knows {known}")

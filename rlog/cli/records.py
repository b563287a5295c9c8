"""Records as JSON lines: ``append --jsonl`` reads exactly what ``cat -o jsonl`` writes.

Bytes are text where they are UTF-8, and base64 under another name where they are not: ``value`` or
``value_b64``, ``key`` or ``key_b64``; a header is ``"text"`` or ``{"b64": "..."}``.
"""

from __future__ import annotations

from base64 import b64decode, b64encode
from typing import TYPE_CHECKING, Any, Final

import msgspec
from msgspec import UNSET, Struct, UnsetType

from rlog_client import Item

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from rlog_client import Record


class InvalidLine(Exception):
    """A line that is no record; the text says why."""


class _Coded(Struct):
    b64: str


class _Line(Struct, omit_defaults=True):
    """One record. Offset, time and log are what it had where it came from: reading ignores them."""

    log: str | UnsetType = UNSET
    offset: int | UnsetType = UNSET
    timestamp_ns: int | UnsetType = UNSET
    event_time_ns: int | UnsetType | None = UNSET
    key: str | UnsetType | None = UNSET
    key_b64: str | UnsetType = UNSET
    headers: dict[str, str | _Coded] | UnsetType | None = UNSET
    value: str | UnsetType = UNSET
    value_b64: str | UnsetType = UNSET


_encoder: Final = msgspec.json.Encoder()
_decoder: Final = msgspec.json.Decoder(_Line)


def to_lines(records: Iterable[Record]) -> bytes:
    """One line of JSON a record."""
    return _encoder.encode_lines([_line_of(record) for record in records])


def to_objects(records: Sequence[Record]) -> list[bytes]:
    return [_encoder.encode(_line_of(record)) for record in records]


def to_row(record: Record) -> dict[str, Any]:
    """What ``to_lines`` says of it, for a line that says more."""
    row: dict[str, Any] = msgspec.to_builtins(_line_of(record))
    return row


def headers_json(headers: Mapping[str, bytes]) -> bytes:
    return _encoder.encode(_headers_of(headers))


def text_or_b64(name: str, content: bytes) -> dict[str, str]:
    """``{name: text}`` where it is UTF-8, else ``{name_b64: ...}``."""
    try:
        return {name: content.decode()}
    except UnicodeDecodeError:
        return {f"{name}_b64": b64encode(content).decode()}


def _line_of(record: Record) -> _Line:
    line = _Line(record.log, record.offset, record.timestamp_ns)
    try:
        line.value = record.value.decode()
    except UnicodeDecodeError:
        line.value_b64 = b64encode(record.value).decode()
    if record.key is not None:
        try:
            line.key = record.key.decode()
        except UnicodeDecodeError:
            line.key_b64 = b64encode(record.key).decode()
    if record.headers:
        line.headers = _headers_of(record.headers)
    if record.event_time_ns is not None:
        line.event_time_ns = record.event_time_ns
    return line


def _headers_of(headers: Mapping[str, bytes]) -> dict[str, str | _Coded]:
    coded: dict[str, str | _Coded] = {}
    for name, content in headers.items():
        try:
            coded[name] = content.decode()
        except UnicodeDecodeError:
            coded[name] = _Coded(b64encode(content).decode())
    return coded


def from_line(raw: bytes) -> Item:
    """Raises InvalidLine."""
    try:
        line = _decoder.decode(raw)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidLine(f"is no record: {error}") from None
    value = _bytes_of("value", line.value, line.value_b64)
    if value is None:
        raise InvalidLine("has neither value nor value_b64")
    headers = None
    if line.headers:
        headers = {name: _header_of(name, content) for name, content in line.headers.items()}
    event_time_ns = None if line.event_time_ns is UNSET else line.event_time_ns
    return Item(value, _bytes_of("key", line.key, line.key_b64), headers, event_time_ns)


def _bytes_of(name: str, text: str | UnsetType | None, coded: str | UnsetType) -> bytes | None:
    if coded is UNSET:
        return None if text is UNSET or text is None else text.encode()
    if text is not UNSET:
        raise InvalidLine(f"has both {name} and {name}_b64")
    return _decoded(f"{name}_b64", coded)


def _header_of(name: str, content: str | _Coded) -> bytes:
    return (
        content.encode() if isinstance(content, str) else _decoded(f"header {name!r}", content.b64)
    )


def _decoded(name: str, coded: Any) -> bytes:
    try:
        return b64decode(coded, validate=True)
    except ValueError as error:
        raise InvalidLine(f"{name} is no base64: {error}") from None

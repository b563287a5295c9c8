"""What a guest tells the host before the power is cut: one event a line, each with a checksum.

A cut may tear the last line, or take the last few: of what has happened the host then knows too
little, never what is wrong. So what *may* happen (something is sent, a commit or a trim is asked
for) is told before it is asked for, and what *has* happened (an answer, a record that was read)
after it.
"""

from __future__ import annotations

from typing import Final, NamedTuple, TypeAlias
from zlib import crc32

import msgspec
from msgspec import Struct


def payload(sender: str, number: int, size: int) -> bytes:
    """The ``number``-th value of a sender, unique, of ``size`` bytes if its head leaves room."""
    head = f"{number:08} {sender} {size} ".encode()
    return (head * (size // len(head) + 1))[: max(size, len(head))]


def digest(value: bytes) -> str:
    """What tells a value from every other one, and a whole one from a damaged one: its first words
    and the checksum of all of it.
    """
    return f"{value[:24].decode(errors='replace')}|{crc32(value):08x}"


class Appended(NamedTuple):
    """So many bytes to a log, by a transaction."""

    log: str
    sender: str
    number: int
    size: int


class Cursor(NamedTuple):
    log: str
    consumer: str
    offset: int


class Event(Struct, tag=True, array_like=True):
    """The base of what is told. ``synced``: acknowledged so, by the receipt or the policy."""


class Booted(Event):
    """The kernel runs; nothing has touched the disk yet."""


class Served(Event):
    """A reader was given these values, as their digests, from the offset ``first`` on."""

    log: str
    first: int
    digests: list[str]


class Shown(Event):
    """After a recovery: a log, and where its cursors stand (committed). Its records were told."""

    log: str
    first: int
    end: int
    cursors: dict[str, int]


class Recovered(Event):
    """After a recovery: all logs are shown."""


class Creating(Event):
    log: str


class Created(Event):
    log: str


class Deleting(Event):
    log: str


class Deleted(Event):
    log: str


class Sending(Event):
    """Values of a sender, numbered from ``first`` on, are sent to a log. ``together``: as one
    batch, all or nothing.
    """

    log: str
    sender: str
    first: int
    sizes: list[int]
    together: bool = False


class Acknowledged(Event):
    log: str
    sender: str
    first: int
    sizes: list[int]
    offset: int
    synced: bool


class Refused(Event):
    """Answered so that it is in no log, for sure."""

    sender: str
    number: int
    size: int


class Transacting(Event):
    """Appends and commits that are asked for together. Acknowledged one by one."""

    appends: list[Appended]
    commits: list[Cursor]


class Claimed(Event):
    log: str
    consumer: str
    epoch: int
    committed: int


class Committing(Event):
    at: Cursor


class Committed(Event):
    at: Cursor
    synced: bool


class Trimming(Event):
    log: str
    before: int


class Trimmed(Event):
    log: str
    first: int


class Killed(Event):
    """The server, not the machine."""


class Trap(Event):
    """After a failed sync on a disk that works again: what a new descriptor reads, whether a second
    sync succeeds, and what is on the disk.
    """

    cached: str
    synced: bool
    on_disk: str


class Missed(Event):
    """The failure met the file system's own journal, too; it is read-only for good now."""


class Done(Event):
    """All that was to be done is; if there is a load, it goes on until the cut."""


class Wrong(Event):
    """The guest itself saw a promise broken."""

    sentence: str


class Broke(Event):
    """The guest's own program failed: no verdict on anything."""

    traceback: str


Any: TypeAlias = (
    Booted
    | Served
    | Shown
    | Recovered
    | Creating
    | Created
    | Deleting
    | Deleted
    | Sending
    | Acknowledged
    | Refused
    | Transacting
    | Claimed
    | Committing
    | Committed
    | Trimming
    | Trimmed
    | Killed
    | Trap
    | Missed
    | Done
    | Wrong
    | Broke
)

_encoder: Final = msgspec.json.Encoder()
_decoder: Final = msgspec.json.Decoder(Any)


def encode(event: Event) -> bytes:
    text = _encoder.encode(event)
    return b"%08x %s\n" % (crc32(text), text)


def decode(line: bytes) -> Any | None:
    """The event of a whole line, without its end; None: it is torn."""
    text = line[9:]
    return _decoder.decode(text) if line[:9] == b"%08x " % crc32(text) else None

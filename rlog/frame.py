"""A frame: one group commit as it stands in the journal. Pure: bytes in, bytes out.

Little-endian::

    position  size
           0     3  magic "RLF"
           3     1  version, 1
           4     4  length of the frame, in bytes, without padding
           8     4  length of the facts
          12     4  CRC of the previous frame (position 48 of it)
          16     8  journal id
          24     8  number, dense from 1
          32     8  synced: the highest number known synced when this frame was made
          40     8  time, ns since 1970 UTC
          48     4  CRC32C of the bytes 0 to 48 and of the facts
          52        facts (msgpack), then the bodies of the appended batches, raw

The fact of an append is the batch's header, so the facts alone give the state, and each body is
covered by the CRC in its own header: a frame of 8 MiB is not checksummed twice. A frame names no
file and no position: where a batch lies follows from the facts before it.

In a file, a frame begins on a page and fills its last one with zeros, and one zero page is written
behind it, where the next one begins. So no page that holds a frame is ever rewritten (a torn write
can take the whole page), and behind the last frame stand zeros, not old bytes.
"""

from __future__ import annotations

from struct import Struct
from typing import TYPE_CHECKING, Final, NamedTuple

from crc32c import crc32c

from rlog_client.batch import Header, InvalidBatch, check_body, parse_header

from . import facts
from .files import PAGE

if TYPE_CHECKING:
    from collections.abc import Sequence

_HEAD: Final = Struct("<3sBIIIQQQQ")
_CRC: Final = Struct("<I")
HEAD_BYTES: Final = 52
assert _HEAD.size + _CRC.size == HEAD_BYTES
MAGIC: Final = b"RLF"
VERSION: Final = 1

Buffer = bytes | bytearray | memoryview


class Frame(NamedTuple):
    """What a broker hands to a journal: the journal gives it number and chain."""

    time_ns: int
    facts: bytes
    bodies: Sequence[Buffer]


class Head(NamedTuple):
    """A frame's header, checked together with its facts."""

    length: int
    facts_bytes: int
    previous: int
    journal: int
    number: int
    synced: int
    time_ns: int
    crc: int


class Body(NamedTuple):
    """A batch in a frame: its header, and its body or None where that is damaged, and why."""

    header: Header
    body: memoryview | None
    damage: str = ""


class UnknownVersion(Exception):
    """Made by another version of rlog, and therefore not touched."""


def padded(length: int) -> int:
    """The length of a frame with its padding."""
    return -(-length // PAGE) * PAGE


def encode(
    frame: Frame, journal: int, number: int, previous: int, synced: int
) -> tuple[bytes, int, int]:
    """-> header with facts, the frame's length, its CRC. The bodies follow as they are."""
    length = HEAD_BYTES + len(frame.facts) + sum(map(len, frame.bodies))
    head = _HEAD.pack(
        MAGIC, VERSION, length, len(frame.facts), previous, journal, number, synced, frame.time_ns
    )
    crc = crc32c(frame.facts, crc32c(head))
    return head + _CRC.pack(crc) + frame.facts, length, crc


def peek(raw: Buffer) -> tuple[int, int] | None:
    """(length, facts length) that a header claims, unchecked: how much to read.

    None: no header is here.
    """
    if len(raw) < HEAD_BYTES or bytes(raw[:3]) != MAGIC:
        return None
    length, facts_bytes = _HEAD.unpack_from(raw)[2:4]
    return (length, facts_bytes) if HEAD_BYTES + facts_bytes <= length else None


def crcs(raw: Buffer, facts_bytes: int) -> tuple[int, int]:
    """The CRC as it is stored, and as it should be, over the header and so many bytes of facts."""
    (stored,) = _CRC.unpack_from(raw, _HEAD.size)
    view = memoryview(raw)
    computed = crc32c(view[HEAD_BYTES : HEAD_BYTES + facts_bytes], crc32c(view[: _HEAD.size]))
    return stored, computed


def parse(raw: Buffer, journal: int | None) -> Head | None:
    """The header at the beginning of ``raw`` if it and its facts are whole and of this journal,
    else None.
    """
    claimed = peek(raw)
    if claimed is None or len(raw) < HEAD_BYTES + claimed[1]:
        return None
    length, facts_bytes = claimed
    crc, computed = crcs(raw, facts_bytes)
    if crc != computed:
        return None
    _magic, version, _length, _facts, previous, owner, number, synced, time_ns = _HEAD.unpack_from(
        raw
    )
    if journal is not None and owner != journal:
        return None  # a frame of another directory's life
    if version != VERSION:
        raise UnknownVersion(f"frame version {version} is not known here (known: {VERSION})")
    return Head(length, facts_bytes, previous, owner, number, synced, time_ns, crc)


def facts_of(head: Head, raw: Buffer) -> list[facts.Fact]:
    return facts.decode(memoryview(raw)[HEAD_BYTES : HEAD_BYTES + head.facts_bytes])


def bodies_of(head: Head, raw: Buffer, found: Sequence[facts.Fact]) -> list[Body]:
    """The batches of a frame, in order, each checked by itself; ``raw`` may end early."""
    view = memoryview(raw)[: head.length]
    at = HEAD_BYTES + head.facts_bytes
    bodies = []
    for fact in found:
        if isinstance(fact, facts.Appended):
            header = parse_header(fact.header)
            body = view[at : at + header.body_bytes]
            at += header.body_bytes
            try:
                check_body(header, body)
                bodies.append(Body(header, body))
            except InvalidBatch as error:
                bodies.append(Body(header, None, str(error)))
    return bodies

"""The batch: records packed together, the unit of append, storage, transfer and checksum.

A batch is made once. The bytes that a producer packs and checksums here are the bytes on the wire,
in the journal, in the segment and at the consumer; the server stamps the header and never looks
into the body. All integers are little-endian::

    position  size
           0     3  magic "RLB"
           3     1  version, 1
           4     1  codec of the body, 0: none, 1: sparse, 255: lost
           5     3  zero
           8     4  count of the offsets that it covers, at least 1: of its records, unless sparse
          12     4  body length, in bytes
          16     4  keys length: bytes of the keys column
          20     4  CRC32C of the body
          24     8  producer id                          } stamped by
          32     8  sequence of the first record         } the producer
          40     4  epoch of the producer                }
          44     4  log id                               } stamped by
          48     8  offset of the first record           } the server,
          56     8  append time, ns since 1970 UTC       } 0 before
          64    12  zero
          76     4  CRC32C of the bytes 0 to 76, by whoever stamped last
          80        the body

The body is one msgpack array of four columns, because a column packs and unpacks at C speed and a
row does not: keys ``nil | [bin|nil]``, values ``[bin]``, headers ``nil | [map|nil]``, event times
``nil | [int|nil]`` in ns. Keys come first: they are the one column that a server may read.

A *sparse* batch is what compaction leaves of others: it covers their offsets, and some of these are
absent, perhaps all of them. Its body is an array of five: the same columns, of the records that are
left, and then ``steps``, ``[int]``: how far each record's offset lies behind the one before it (the
first: behind the offset before the batch), so at least 1. A sparse batch has the checksum of its
compactor, who checked the one before; where nothing is absent, the producer's own bytes stay. No
producer makes one, and none is taken from one.

A batch that is *lost* is a header alone: `rlog repair` writes it where the records of those offsets
were, so that whoever reads them is told that they are gone for good, and why nobody looks for them.

No batch is empty and no magic is zero, so zeros are never a batch.
"""

from __future__ import annotations

from bisect import bisect_left
from itertools import accumulate, islice, repeat
from operator import length_hint, sub
from struct import Struct
from typing import TYPE_CHECKING, Final, NamedTuple

import msgspec
from crc32c import crc32c
from msgspec.structs import replace

from .model import NO_HEADERS, Record

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

Buffer = bytes | bytearray | memoryview

_HEADER: Final = Struct("<3sBB3sIIIIQQIIQQ12sI")
HEADER_BYTES: Final = 80
assert _HEADER.size == HEADER_BYTES
_CRC_AT: Final = HEADER_BYTES - 4
_PRODUCED: Final = Struct("<3sBB3xIIIIQQI")  # the producer's part: positions 0 to 44
_STAMPED: Final = Struct("<IQQ12x")  # the server's part: positions 44 to 76
assert _PRODUCED.size + _STAMPED.size == _CRC_AT
_U32: Final = Struct("<I")
_IDENTITY: Final = Struct("<QQ")  # producer id, first sequence
_IDENTITY_AT: Final = 24

MAGIC: Final = b"RLB"
VERSION: Final = 1
CODEC_NONE: Final = 0
CODEC_SPARSE: Final = 1
CODEC_LOST: Final = 255
COUNT_MAX: Final = 2**32 - 1
_ARRAY_OF_FOUR: Final = b"\x94"
_ARRAY_OF_FIVE: Final = b"\x95"
_NIL: Final = b"\xc0"
RECORD_OVERHEAD: Final = (
    32  # bytes: more than a record without key, headers and time adds to its value
)


class InvalidBatch(Exception):
    """These bytes are not a sound batch; the text says why."""


class Lost(InvalidBatch):
    """In place of a batch: its records are lost, and were declared so. ``header``: which ones."""

    def __init__(self, header: Header) -> None:
        super().__init__("the records are lost, as a repair declared")
        self.header = header


class Header(msgspec.Struct, frozen=True, gc=False):
    """A batch's header, without its constants. ``body_bytes`` and ``keys_bytes`` are lengths."""

    count: int
    body_bytes: int
    keys_bytes: int
    body_crc: int
    producer: int
    sequence: int
    epoch: int
    log: int
    base: int
    time_ns: int
    sparse: bool = False  # some of its offsets are absent
    lost: bool = False  # there is no body: a repair declared that its records are lost

    @property
    def end(self) -> int:
        """The offset after the last one that the batch covers."""
        return self.base + self.count

    @property
    def bytes(self) -> int:
        """Length of the whole batch."""
        return HEADER_BYTES + self.body_bytes


_Columns = tuple[
    list[bytes | None] | None,
    list[bytes],
    list[dict[str, bytes] | None] | None,
    list[int | None] | None,
]


_SparseColumns = tuple[
    list[bytes | None] | None,
    list[bytes],
    list[dict[str, bytes] | None] | None,
    list[int | None] | None,
    list[int],
]


class Columns(NamedTuple):
    """A batch's body, unpacked: one list per column, or None where no record has any.

    ``there``: the offsets of the records of a sparse batch, rising; None: of every other one, all
    that it covers.
    """

    keys: list[bytes | None] | None
    values: list[bytes]
    headers: list[dict[str, bytes] | None] | None
    times_ns: list[int | None] | None
    there: list[int] | None = None

    def offsets(self, header: Header) -> Sequence[int]:
        """Of its records."""
        return range(header.base, header.end) if self.there is None else self.there


_encoder: Final = msgspec.msgpack.Encoder()
# Typed, so that a column of anything but bytes is an error here and not at the user's.
_decoder: Final = msgspec.msgpack.Decoder(_Columns)
_sparse_decoder: Final = msgspec.msgpack.Decoder(_SparseColumns)
_keys_decoder: Final = msgspec.msgpack.Decoder(list[bytes | None] | None)


def encode(
    values: Sequence[bytes],
    keys: Sequence[bytes | None] | None = None,
    headers: Sequence[Mapping[str, bytes] | None] | None = None,
    times_ns: Sequence[int | None] | None = None,
    *,
    producer: int = 0,
    sequence: int = 0,
    epoch: int = 0,
) -> bytearray:
    """A batch as its producer makes it: header and body, both CRCs set, the server's part zero."""
    if not values:
        raise ValueError("a batch is never empty")
    columns = (keys, values, headers, times_ns)
    return _made(CODEC_NONE, len(values), columns, producer, sequence, epoch)


def _made(
    codec: int,
    count: int,
    columns: Sequence[Sequence[object] | None],
    producer: int,
    sequence: int,
    epoch: int,
) -> bytearray:
    # Each column straight into the one buffer: a batch of large records is copied once.
    batch = bytearray(HEADER_BYTES) + (_ARRAY_OF_FIVE if codec else _ARRAY_OF_FOUR)
    lengths = [len(batch)]
    for column in columns:
        if column is None:
            batch += _NIL
        else:
            _encoder.encode_into(column, batch, len(batch))
        lengths.append(len(batch))
    with memoryview(batch) as view:
        body_crc = crc32c(view[HEADER_BYTES:])
    _PRODUCED.pack_into(
        batch, 0, MAGIC, VERSION, codec, count, len(batch) - HEADER_BYTES,
        lengths[1] - lengths[0], body_crc, producer, sequence, epoch,
    )  # fmt: skip
    _U32.pack_into(batch, _CRC_AT, crc32c(bytes(batch[:_CRC_AT])))
    return batch


def thinned(header: Header, columns: Columns, stays: Sequence[int]) -> bytes:
    """The batch, header and all, with those of its records alone whose indexes ``stays`` has.

    It covers the same offsets, from the same producer, appended at the same time.
    """
    offsets = columns.offsets(header)
    there = [offsets[index] for index in stays]
    left: list[Sequence[object] | None] = [
        None if column is None else [column[index] for index in stays] for column in columns[:4]
    ]
    left.append(list(map(sub, there, [header.base - 1, *there])))
    made = _made(CODEC_SPARSE, header.count, left, header.producer, header.sequence, header.epoch)
    return stamp(made, header.log, header.base, header.time_ns) + made[HEADER_BYTES:]


def hole(log: int, base: int, end: int, time_ns: int) -> bytes:
    """A sparse batch without records, which covers ``base`` to ``end`` (exclusive)."""
    made = _made(CODEC_SPARSE, end - base, (None, (), None, None, ()), 0, 0, 0)
    return stamp(made, log, base, time_ns) + made[HEADER_BYTES:]


def lost(log: int, base: int, end: int, time_ns: int) -> bytes:
    """What declares, at ``time_ns``, that ``base`` to ``end`` (exclusive) are lost."""
    declared = b""
    for begin in range(base, end, COUNT_MAX):
        count = min(COUNT_MAX, end - begin)
        head = _PRODUCED.pack(MAGIC, VERSION, CODEC_LOST, count, 0, 0, crc32c(b""), 0, 0, 0)
        declared += stamp(head, log, begin, time_ns)
    return declared


def renumbered(batch: Buffer, producer: int, sequence: int) -> bytearray:
    """A copy of what ``encode`` made, under another producer id and sequence."""
    copy = bytearray(batch)
    _IDENTITY.pack_into(copy, _IDENTITY_AT, producer, sequence)
    _U32.pack_into(copy, _CRC_AT, crc32c(bytes(copy[:_CRC_AT])))
    return copy


def parse_header(buffer: Buffer, position: int = 0) -> Header:
    """The header at ``position``. Nothing in it is believed before its CRC.

    Raises InvalidBatch: Lost, where that is what it says.
    """
    raw = bytes(buffer[position : position + HEADER_BYTES])
    if len(raw) < HEADER_BYTES:
        raise InvalidBatch(f"a batch's header has {HEADER_BYTES} bytes, here are {len(raw)}")
    (
        magic, version, codec, pad, count, body, keys, crc, producer, sequence, epoch, log, base,
        time_ns, zero, stored,
    ) = _HEADER.unpack(raw)  # fmt: skip
    if magic != MAGIC:
        raise InvalidBatch("no batch begins here" if any(raw) else "zeros")
    if stored != (computed := crc32c(raw[:_CRC_AT])):
        raise InvalidBatch(f"header CRC is {computed:08x}, stored is {stored:08x}")
    if version != VERSION:
        raise InvalidBatch(f"batch version {version} is not known here (known: {VERSION})")
    if codec not in (CODEC_NONE, CODEC_SPARSE, CODEC_LOST):
        raise InvalidBatch(f"codec {codec} is not known here")
    if any(pad) or any(zero):
        raise InvalidBatch("reserved bytes are not zero")
    if codec == CODEC_LOST and count and not body:
        raise Lost(Header(count, 0, 0, crc, 0, 0, 0, log, base, time_ns, lost=True))
    if codec == CODEC_LOST or count == 0 or keys == 0 or keys + 2 > body:
        raise InvalidBatch("lengths that cannot be")
    sparse = codec == CODEC_SPARSE
    return Header(count, body, keys, crc, producer, sequence, epoch, log, base, time_ns, sparse)


def check_body(header: Header, body: Buffer) -> None:
    """Raise InvalidBatch unless ``body`` is what was checksummed, and its values are as many as
    the header says.

    This much the server checks before it stamps, and no more: it costs the same for one record
    as for ten thousand.
    """
    if len(body) != header.body_bytes:
        raise InvalidBatch(f"body has {len(body)} bytes, the header says {header.body_bytes}")
    if (computed := crc32c(body)) != header.body_crc:
        raise InvalidBatch(f"body CRC is {computed:08x}, stored is {header.body_crc:08x}")
    at = 1 + header.keys_bytes
    head = bytes(body[at : at + 5])
    if header.sparse:
        if body[0] != _ARRAY_OF_FIVE[0]:
            raise InvalidBatch("a sparse batch has five columns")
    elif body[0] != _ARRAY_OF_FOUR[0] or _array_length(head) != header.count:
        raise InvalidBatch(f"the values column has not {header.count} entries")


def _array_length(head: bytes) -> int | None:
    """The length that a msgpack array beginning with ``head`` (1 to 5 bytes) declares."""
    if head[0] & 0xF0 == 0x90:
        return head[0] & 0x0F
    if head[0] == 0xDC:
        return int.from_bytes(head[1:3], "big")
    if head[0] == 0xDD:
        return int.from_bytes(head[1:5], "big")
    return None


def stamp(produced: Buffer, log: int, base: int, time_ns: int) -> bytes:
    """The header of a checked batch with the server's part filled in, and its CRC made anew."""
    head = bytes(produced[: _PRODUCED.size]) + _STAMPED.pack(log, base, time_ns)
    return head + _U32.pack(crc32c(head))


def stamped(header: Header, log: int, base: int, time_ns: int) -> Header:
    """What ``parse_header`` finds in a header after ``stamp``."""
    return replace(header, log=log, base=base, time_ns=time_ns)


def decode(header: Header, body: Buffer) -> Columns:
    """The columns of a batch, after its checksum. Raises InvalidBatch."""
    check_body(header, body)
    steps: list[int] | None = None
    try:
        if header.sparse:
            keys, values, headers, times, steps = _sparse_decoder.decode(body)
        else:
            keys, values, headers, times = _decoder.decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidBatch(f"body does not unpack: {error}") from None
    count = header.count if steps is None else len(steps)
    for column in (keys, values, headers, times):
        if column is not None and len(column) != count:
            raise InvalidBatch(f"a column has {len(column)} entries, not {count}")
    if steps is None:
        return Columns(keys, values, headers, times)
    there = list(islice(accumulate(steps, initial=header.base - 1), 1, None))
    if steps and (min(steps) < 1 or there[-1] >= header.end):
        raise InvalidBatch("offsets that do not rise, or lie behind the batch")
    return Columns(keys, values, headers, times, there)


def decode_keys(column: Buffer) -> list[bytes | None] | None:
    """The keys column by itself. Raises InvalidBatch."""
    try:
        keys: list[bytes | None] | None = _keys_decoder.decode(column)
    except msgspec.MsgspecError as error:
        raise InvalidBatch(f"the keys column does not unpack: {error}") from None
    return keys


class Cut:
    """The records of one batch, handed out at C speed, with an exact place and a brake.

    ``records`` is an iterator; ``offset`` is the offset of the next record that it will give; after
    ``stop()`` it gives no more. No Python code runs per record: the place is read off the range
    iterator that numbers the records, and the brake is a list of names that is emptied, which the
    iterator looks at before it takes anything from the other columns.
    """

    __slots__ = ("_names", "_offsets", "_there", "begin", "end", "records")

    def __init__(self, log: str, header: Header, columns: Columns, begin: int, epoch: int) -> None:
        """``begin``: the first offset wanted, within the batch.

        ``epoch``: the claim's, 0 for a reader.
        """
        keys, values, headers, times_ns, there = columns
        skip = begin - header.base if there is None else bisect_left(there, begin)
        self.begin = begin
        self.end = header.end
        self._there = there
        self._names = [log] * (len(values) - skip)
        self._offsets = iter(range(begin, header.end) if there is None else there[skip:])
        no_headers: Sequence[Mapping[str, bytes]] | None = None
        if headers is not None:
            no_headers = [h or NO_HEADERS for h in headers[skip:]]
        self.records: Iterator[Record] = map(
            Record,
            self._names,
            self._offsets,
            repeat(header.time_ns),
            repeat(None) if keys is None else keys[skip:],
            repeat(NO_HEADERS) if no_headers is None else no_headers,
            values[skip:] if skip else values,
            repeat(None) if times_ns is None else times_ns[skip:],
            repeat(1),
            repeat(epoch),
        )

    @property
    def offset(self) -> int:
        left = length_hint(self._offsets)
        if self._there is None:
            return self.end - left
        return self._there[-left] if left else self.end

    def until(self, end: int) -> Iterator[Record]:
        """Its records below ``end``."""
        left, there = end - self.offset, self._there
        if there is not None:
            left = bisect_left(there, end) - bisect_left(there, self.offset)
        return islice(self.records, max(0, left))

    def absent(self, begin: int, end: int) -> bool:
        """Whether this says that there is no record from ``begin`` up to ``end``."""
        there = self._there
        if there is None or not self.begin <= begin <= end <= self.end:
            return begin >= end
        return bisect_left(there, begin) == bisect_left(there, end)

    @property
    def behind(self) -> int:
        """The offset after its last record: from there to ``end`` all are absent."""
        if self._there is None:
            return self.end
        return max(self.begin, self._there[-1] + 1) if self._there else self.begin

    def stop(self) -> None:
        """Give no more records, from any thread or signal handler."""
        self._names.clear()

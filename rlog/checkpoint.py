"""A checkpoint: the state at one frame number, written whole. Two are kept.

Little-endian::

    position  size
           0     3  magic "RLC"
           3     1  version, 1: of everything in the directory
           4     4  length of the content
           8     4  CRC32C of the bytes 0 to 8 and of the content
          12        content: msgpack

The content holds the state, the number and CRC of the frame it stands at, the journal's constants,
and the unfinished last page of each segment that was being written: that page is written again by
later appends, and a torn write can take all of it.
"""

from __future__ import annotations

import errno
from struct import Struct as Layout
from typing import Final

import msgspec
from crc32c import crc32c
from msgspec import Struct

from .files import PAGE, File, Files
from .keys import dec_hook, enc_hook
from .state import State

_HEAD: Final = Layout("<3sBI")
_CRC: Final = Layout("<I")
_HEAD_BYTES: Final = 12
assert _HEAD.size + _CRC.size == _HEAD_BYTES
MAGIC: Final = b"RLC"
VERSION: Final = 1
_PREFIX: Final = "checkpoint-"
_NUMBER_MAX: Final = 1 << 62  # no journal comes that far
TEMPORARY: Final = "checkpoint.tmp"
RESERVE: Final = "reserve"  # a file that gives its space to a checkpoint when there is no other


class Tail(Struct, array_like=True):
    """The bytes from ``position`` (a page's begin) to where the segment ended then."""

    log: int
    base: int
    position: int
    data: bytes


class Checkpoint(Struct, array_like=True):
    """``number`` and ``crc``: of the frame that the state stands at, 0 and 0 before the first."""

    journal: int
    file_bytes: int
    number: int
    crc: int
    time_ns: int
    state: State
    tails: list[Tail]


class InvalidCheckpoint(Exception):
    """Not a whole checkpoint; the text says why."""


class UnknownFormat(Exception):
    """Made by another version of rlog, and therefore not touched."""


_encoder: Final = msgspec.msgpack.Encoder(enc_hook=enc_hook)
_decoder: Final = msgspec.msgpack.Decoder(Checkpoint, dec_hook=dec_hook)


def encode(checkpoint: Checkpoint) -> bytes:
    content = _encoder.encode(checkpoint)
    head = _HEAD.pack(MAGIC, VERSION, len(content))
    return head + _CRC.pack(crc32c(content, crc32c(head))) + content


def crcs(raw: bytes) -> tuple[int, int] | None:
    """The CRC as it is stored, and as it should be; None where there is not so much as a head."""
    if len(raw) < _HEAD_BYTES:
        return None
    (stored,) = _CRC.unpack_from(raw, _HEAD.size)
    return stored, crc32c(memoryview(raw)[_HEAD_BYTES:], crc32c(raw[: _HEAD.size]))


def decode(raw: bytes) -> Checkpoint:
    """Raises InvalidCheckpoint, or UnknownFormat where the damage is a version."""
    found = crcs(raw)
    if found is None:
        raise InvalidCheckpoint(f"{len(raw)} bytes are no checkpoint")
    stored, computed = found
    magic, version, length = _HEAD.unpack_from(raw)
    if magic != MAGIC:
        raise InvalidCheckpoint("no checkpoint begins here")
    content = memoryview(raw)[_HEAD_BYTES:]
    if len(content) != length:
        raise InvalidCheckpoint(f"content has {len(content)} bytes, the header says {length}")
    if computed != stored:
        raise InvalidCheckpoint(f"CRC is {computed:08x}, stored is {stored:08x}")
    if version != VERSION:
        raise UnknownFormat(f"format version {version} is not known here (known: {VERSION})")
    try:
        return _decoder.decode(content)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidCheckpoint(f"content does not unpack: {error}") from None


def salvaged(raw: bytes) -> Checkpoint | None:
    """What one says whose CRC is wrong, if it unpacks: to be shown, not believed."""
    try:
        return _decoder.decode(memoryview(raw)[_HEAD_BYTES:])
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return None


def name_of(number: int) -> str:
    return f"{_PREFIX}{number:020}"


def number_in(name: str) -> int:
    """The number in the name of a checkpoint, also of a damaged one: a file has that name only if
    this frame was synced. -1 for any other name.
    """
    number = name.removeprefix(_PREFIX)
    if not number.isdecimal() or name_of(int(number)) != name or int(number) >= _NUMBER_MAX:
        return -1
    return int(number)


def names(files: Files) -> list[str]:
    """The checkpoint files there are, oldest first."""
    return [name for name in files.names("") if name.startswith(_PREFIX)]


def write(files: Files, number: int, raw: bytes, *, remove: bool = True) -> bool:
    """Make an encoded checkpoint durable, then (``remove``) remove all but the two newest.

    False: there is no space, and nothing happened. Any other failure is an OSError, and final.
    """
    file = _reserve_temporary(files, len(raw))
    if file is None and RESERVE in files.names(""):
        # Given up for a moment, its space would be somebody else's.
        files.rename(RESERVE, TEMPORARY)
        file = _allocated(files.open(TEMPORARY), len(raw))
    if file is None:
        return False
    file.write(0, [raw])
    # Synced before it gets its name: a name must never stand on a file that is not whole.
    file.sync()
    files.rename(TEMPORARY, name_of(number))
    files.sync_directory("")
    # Two stay: should the newest be found damaged, the one before it and the journal since still
    # do.
    for name in names(files)[:-2] if remove else ():
        files.unlink(name)
    return True


def _reserve_temporary(files: Files, size: int) -> File | None:
    """The temporary file with its space, so that neither its write nor its sync can run out of
    it.
    """
    if TEMPORARY in files.names(""):
        files.unlink(TEMPORARY)
    try:
        file = files.create(TEMPORARY)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            return None
        raise
    return _allocated(file, size)


def _allocated(file: File, size: int) -> File | None:
    """The file with ``size`` bytes, neither more nor less; None: there is no space for them."""
    try:
        file.allocate(0, size)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            return None
        raise
    if file.size() > size:
        file.truncate(size)
    return file


def keep_reserve(files: Files, size: int) -> bool:
    """Have the reserve file. False: there is no space for it."""
    if RESERVE in files.names(""):
        return True
    try:
        files.create(RESERVE).allocate(0, size)
    except OSError as error:
        if RESERVE in files.names(""):
            files.unlink(RESERVE)
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        return False
    return True


def tail_begin(length: int) -> int:
    """Where the unfinished last page of a file of so many bytes begins."""
    return length // PAGE * PAGE

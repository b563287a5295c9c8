"""Every parser of ours that sees bytes it did not make: valid samples, and what it may raise.

Where a checksum stands before a parser, spoiled bytes are *sealed* anew, so that what is behind it
is reached as well: what a bug of ours, or a version to come, could write.
"""

from __future__ import annotations

import contextlib
from base64 import b64encode
from random import Random
from struct import pack
from typing import TYPE_CHECKING, Final, NamedTuple

from crc32c import crc32c

from rlog import checkpoint, facts, frame, offline, policy, state
from rlog.cli.records import InvalidLine, from_line, to_lines
from rlog.cli.template import InvalidTemplate, compile_template
from rlog.cli.whence import InvalidWhence, parse
from rlog.journal import Refused, scan
from rlog.recovery import Recovered, recover
from rlog.segment import Damage, parse_name, walk
from rlog_client import batch, protocol
from rlog_client.batch import HEADER_BYTES, InvalidBatch
from rlog_client.errors import InvalidRequest, RlogError
from rlog_client.model import Record
from rlog_client.protocol import HEAD_BYTES, Connection, ProtocolError, Side
from rlog_client.transport import parse_url
from tests.storage.build import batch_of, every_fact, frame_of, segment_of
from tests.storage.rot import Directory, small
from tests.storage.server import START_NS

from .messages import answers, requests, stamped
from .mutation import absurd

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.storage.simdisk import SimDisk


class Parser(NamedTuple):
    """``refusals``: all that ``parse`` may raise. ``cost``: how many times slower it is than a
    parser of a few bytes, so that each gets its share of the time.
    """

    name: str
    samples: list[bytes]
    parse: Callable[[bytes], object]
    refusals: tuple[type[Exception], ...]
    seal: Callable[[bytes], bytes] = bytes
    cost: int = 1


# --- messages -----------------------------------------------------------------------------------


def _messages(side: Side) -> Callable[[bytes], object]:
    def parse(raw: bytes) -> object:
        connection = Connection(side)
        connection.greeted, connection.payload_bytes_max = True, 1 << 20
        connection.received(raw)
        found = []
        while (message := connection.next_message()) is not None:
            found.append(message)
            if isinstance(message.control, protocol.Error):
                str(protocol.raised(message.control))
        return found

    return parse


def _answers() -> list[bytes]:
    made = [protocol.encode(7, control, len(body)) + body for control, body in answers()]
    assert all(len(each) >= HEAD_BYTES for each in made)
    return made


# --- batches ------------------------------------------------------------------------------------


def _seal_batch(raw: bytes) -> bytes:
    """Its body's length and both CRCs are right."""
    if len(raw) < HEADER_BYTES:
        return raw
    body = raw[HEADER_BYTES:]
    head = raw[:12] + pack("<I", len(body)) + raw[16:20] + pack("<I", crc32c(body)) + raw[24:76]
    return head + pack("<I", crc32c(head)) + body


def _batch(raw: bytes) -> object:
    header = batch.parse_header(raw)
    columns = batch.decode(header, raw[HEADER_BYTES:])
    cut = batch.Cut("l", header, columns, header.base, 0)
    cut.absent(header.base, header.end)
    assert header.base <= cut.behind <= header.end
    batch.thinned(header, columns, range(0, len(columns.values), 2))
    found = [*cut.until(header.base + 1), *cut.records]
    assert len(found) == len(columns.values)
    assert cut.offset == header.end
    return found


def _sparse() -> list[bytes]:
    raw = stamped([b"a", b"b", b"c"])
    header = batch.parse_header(raw)
    columns = batch.decode(header, raw[HEADER_BYTES:])
    return [batch.thinned(header, columns, [0, 2]), batch.hole(1, 5, 90, 7)]


# --- what stands on the disk --------------------------------------------------------------------


def _seal_frame(raw: bytes) -> bytes:
    """The length of its facts fits, and the CRC is right; the bodies are taken for facts."""
    if len(raw) < frame.HEAD_BYTES:
        return raw
    length, facts_bytes = pack("<I", len(raw)), int.from_bytes(raw[8:12], "little")
    known = min(facts_bytes, len(raw) - frame.HEAD_BYTES)
    head = raw[:4] + length + pack("<I", known) + raw[12:48]
    crc = crc32c(raw[frame.HEAD_BYTES : frame.HEAD_BYTES + known], crc32c(head))
    return head + pack("<I", crc) + raw[frame.HEAD_BYTES :]


def _frame(raw: bytes) -> object:
    head = frame.parse(raw, None)
    if head is None:
        raise InvalidBatch("no frame")
    return frame.bodies_of(head, raw, frame.facts_of(head, raw))


def _seal_checkpoint(raw: bytes) -> bytes:
    content = raw[12:]
    head = raw[:4] + pack("<I", len(content))
    return head + pack("<I", crc32c(content, crc32c(head))) + content


def _checkpoint(raw: bytes) -> object:
    found = checkpoint.decode(raw)
    return state.load(state.dump(found.state))


def _segment(raw: bytes) -> object:
    expected = EXTENT.base
    for each in walk(lambda position, count: raw[position : position + count], EXTENT):
        begin, end = (
            (each.first, each.end)
            if isinstance(each, Damage)
            else (each.header.base, each.header.end)
        )
        assert begin == expected < end, "every offset is accounted for, once"
        expected = end
    assert expected == EXTENT.end
    return expected


SEGMENT, EXTENT = segment_of([[b"a" * 10], [b"b", b"bb"], [b"c" * 300], [b"d"] * 3], base=100)


def fitting() -> bytes:
    """Facts that fit the state of the directory below, of most kinds."""
    return facts.encode(
        [
            facts.Claimed(1, "d", 1, b"t" * 16, "host:1", 2),
            facts.Failed(1, "d", 1, 2, 1, "ValueError", 5),
            facts.Parked(1, "d", 1, 2, 2, "why", "error", "E", None, True, 4),
            facts.Redriven(1, "d", [2]),
            facts.Took(1, "d", 1, 2),
            facts.Joined(1, "s", 1, b"t" * 16, "host:1", 0),
            facts.Completed(1, "s", 1, [1, 3], [0, 4]),
            facts.Vanished(1, "s", 1, [4], "gone"),
            facts.Trimmed(2, 0, []),
            facts.Named(1, 9, "etl", 1, True),
            facts.Transacted(3, 4, [(1, 0, 1)], [5]),
            facts.Created(3, "new", facts.Options()),
            facts.Altered(3, facts.Options("never")),
            facts.Doubted(),
            facts.Trusted("boot", 3),
        ]
    )


def _absurd_facts(raw: bytes) -> bytes:
    """Facts that decode, each of a kind that fits, and perhaps not one of its values."""
    chance, every = Random(crc32c(raw)), facts.decode(fitting())
    if raw == fitting():
        return raw
    wild = chance.choice((0.05, 0.3))
    chosen = [fact for fact in every if chance.random() > wild]
    return facts.encode([absurd(chance, f) if chance.random() < wild else f for f in chosen])


class Directories:
    """A whole data directory of which one file is spoiled: it starts, or is refused untouched."""

    def __init__(self) -> None:
        self.made = Directory(small, at_rest=True)
        tree = dict(sorted(self.made.tree.items()))
        self.checkpoints = [path for path in tree if path.startswith("checkpoint-")]
        self.journals = [path for path in tree if path.startswith("journal/0") and any(tree[path])]
        self.segments = [path for path in tree if path.endswith(".seg")]

    def start(self, path: str) -> Callable[[bytes], object]:
        size = len(self.made.tree[path])

        def parse(raw: bytes) -> object:
            if path in self.journals:
                raw = raw[:size].ljust(size, b"\0")  # another size is a refusal of its own
            return self.start_on(self.made.damaged(path, raw), size)

        return parse

    @staticmethod
    def start_on(disk: SimDisk, size: int) -> Recovered:
        """Looked at and checked offline, then started. Raises Refused."""
        for finding in offline.verify(disk, offline.Counted()):
            assert str(finding)
        before = disk.tree()
        try:
            return recover(disk, file_bytes=size, journal_id=7, now_ns=START_NS)
        except Refused as error:
            if disk.tree() != before:
                raise AssertionError("refused, and touched") from error
            raise

    def follow(self, raw: bytes) -> object:
        """One frame more, of any facts, under a CRC that is right and in the chain."""
        disk, path = self.made.disk.copy(), self.journals[-1]
        contents = disk.contents(path)
        frames = scan(disk.open(path), path, None, 0)
        last = max(frames, key=lambda seen: seen.head.number)  # of a recycled file
        head, _, _ = frame.encode(
            frame.Frame(START_NS, raw, []),
            last.head.journal,
            last.head.number + 1,
            last.head.crc,
            last.head.number,
        )
        changed = contents[: last.end] + head + contents[last.end + len(head) :]
        disk.replace(path, changed[: len(contents)])
        found = self.start_on(disk, len(contents))
        assert found.journal.tail() == last.head.number + 1, "it is in the chain, or refused"
        return found

    def parsers(self) -> Iterator[Parser]:
        refused = (Refused,)
        yield Parser("a directory's next facts", [fitting()], self.follow, refused, cost=20)
        yield Parser(
            "a directory's next facts, absurd", [fitting()], self.follow, refused, _absurd_facts, 20
        )
        for paths, seal in (
            (self.checkpoints, _seal_checkpoint),
            (self.journals, self._seal_journal),
            (self.segments, bytes),
        ):
            path = paths[-1]
            name = f"a directory's {path.rpartition('/')[2]}"
            sample = [self.made.tree[path]]
            yield Parser(name, sample, self.start(path), (Refused,), cost=100)
            if seal is not bytes:
                yield Parser(f"{name}, sealed", sample, self.start(path), (Refused,), seal, 100)

    @staticmethod
    def _seal_journal(raw: bytes) -> bytes:
        """Every frame's CRC is right again, though it may not be in the chain."""
        made = bytearray(raw)
        for position in range(0, len(raw) - frame.HEAD_BYTES, 4096):
            claimed = frame.peek(raw[position : position + frame.HEAD_BYTES])
            if claimed is not None and claimed[1] < len(raw) - position:
                _, computed = frame.crcs(bytes(made[position:]), claimed[1])
                made[position + 48 : position + 52] = pack("<I", computed)
        return bytes(made)


# --- what a user writes -------------------------------------------------------------------------

RECORD: Final = Record("l", 7, 1_000_000_000, b"k", {"h": b"\xff"}, b"value", 5, 1, 0)


def _text(parse: Callable[[str], object]) -> Callable[[bytes], object]:
    """As it comes from a command line: bytes that are no UTF-8 are surrogates."""
    return lambda raw: parse(raw.decode("utf-8", "surrogateescape"))


def _whence(text: str) -> object:
    try:
        return parse(text, START_NS)
    except InvalidWhence as error:
        if not 0 <= error.at <= len(text):
            raise AssertionError("the mark stands beside the text") from error
        raise


def _template(text: str) -> object:
    return compile_template(text)([RECORD, RECORD])


def _amounts(text: str) -> object:
    return policy.parse_bytes(text), policy.parse_seconds(text), parse_name(text)


def _line(raw: bytes) -> object:
    item = from_line(raw)
    with contextlib.suppress(UnicodeDecodeError):
        assert isinstance(item.value, bytes)
    return item


_WHENCES: Final = (
    "start", "end", "0", "9223372036854775807", "-10", "@-90m", "@-7d", "consumer:billing",
    "@2026-01-02T03:04:05.123456789Z", "@2026-01-02T03:04:05+05:30", "consumer:@global",
)  # fmt: skip
_TEMPLATES: Final = ("%o %t %k %v\\n", "%%%%", "\\x00\\xff\\t\\\\", "%l\t%h %e", "%v")
_POLICIES: Final = ("always", "never", "periodic:1s", "periodic:250ms", "bytes:1MiB", "bytes:4096")
_URLS: Final = ("rlog://127.0.0.1:7171", "rlog+unix:///run/rlog%20x.sock", "rlog://[::1]:1")


def _encoded(texts: tuple[str, ...]) -> list[bytes]:
    return [text.encode() for text in texts]


def parsers() -> list[Parser]:
    directories = Directories()
    appended = [batch_of([b"one"]), batch_of([b"two"] * 3, base=1)]
    whole, _ = frame_of(appended, *every_fact()[2:])
    batches = [stamped([b"a", b"b", b"c"]), bytes(batch.encode([b"v"], [b"k"], [{"h": b"1"}], [5]))]
    tree = directories.made.tree
    lines = [
        *to_lines([RECORD]).splitlines(),
        b'{"value":"x","key_b64":"' + b64encode(b"\xff") + b'","headers":{"h":{"b64":"AA=="}}}',
    ]
    no_message = (ProtocolError,)
    return [
        Parser("requests", requests(), _messages(Side.SERVER), no_message),
        Parser("answers", _answers(), _messages(Side.CLIENT), (*no_message, RlogError)),
        Parser("batches", batches, _batch, (InvalidBatch,)),
        Parser("batches, sealed", batches, _batch, (InvalidBatch,), _seal_batch),
        Parser("sparse batches, sealed", _sparse(), _batch, (InvalidBatch,), _seal_batch),
        Parser("keys columns", [b"\xc0", b"\x92\xc4\x01k\xc0"], batch.decode_keys, (InvalidBatch,)),
        Parser("facts", [facts.encode(every_fact())], facts.decode, (facts.InvalidFacts,)),
        Parser("frames", [whole], _frame, (InvalidBatch,)),
        Parser(
            "frames, sealed",
            [whole],
            _frame,
            (InvalidBatch, facts.InvalidFacts, frame.UnknownVersion),
            _seal_frame,
        ),
        Parser(
            "checkpoints, sealed",
            [tree[path] for path in directories.checkpoints],
            _checkpoint,
            (checkpoint.InvalidCheckpoint, checkpoint.UnknownFormat),
            _seal_checkpoint,
            cost=4,
        ),
        Parser("segments", [SEGMENT], _segment, (), cost=4),
        *directories.parsers(),
        Parser("whences", _encoded(_WHENCES), _text(_whence), (InvalidWhence,)),
        Parser("templates", _encoded(_TEMPLATES), _text(_template), (InvalidTemplate,)),
        Parser("policies", _encoded(_POLICIES), _text(policy.parse_policy), (InvalidRequest,)),
        Parser("amounts", [b"1MiB", b"1.5s", b"9m"], _text(_amounts), ()),
        Parser("URLs", _encoded(_URLS), _text(parse_url), (ValueError,)),
        Parser("JSON lines", lines, _line, (InvalidLine,)),
    ]

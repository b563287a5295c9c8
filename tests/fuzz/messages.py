"""Messages of the protocol: a valid one of every kind, and noise that looks like them."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Any, Final

import msgspec

import rlog_client as rlog
from rlog_client import batch, errors, protocol
from rlog_client.model import CursorInfo, LogInfo, Member
from rlog_client.protocol import ANSWERS, REQUESTS, Append, Control, Hello, encode

from .mutation import spoiled

if TYPE_CHECKING:
    from random import Random

MANY_LOGS: Final = 300  # so that no byte changed in an id names the bystander
HELLO: Final = encode(1, Hello(protocol.PROTOCOL, "hostile"))


def requests() -> list[bytes]:
    """A valid message of every kind that a client can send, in the protocol's own order."""
    whence = rlog.offset(0)
    body = bytes(batch.encode([b"value", b"other"], [b"k", None], [{"h": b"v"}, None], [None, 5]))
    controls: list[tuple[Control, bytes]] = [
        (Hello(protocol.PROTOCOL, "again"), b""),
        (protocol.Ping(), b""),
        (protocol.OpenLog("target1", True, {"sync": "never"}), b""),
        (protocol.ListLogs(), b""),
        (protocol.GetLog(1), b""),
        (protocol.AlterLog(1, {"file_roll_size": 8192, "max_file_age": 5.0}), b""),
        (protocol.TrimLog(1, whence), b""),
        (protocol.DeleteLog(1), b""),
        (Append(2, 0), body),
        (protocol.Resolve(2, rlog.time(1.5)), b""),
        (protocol.Subscribe(2, rlog.LATEST), b""),
        (protocol.Credit(11, 1000), b""),
        (protocol.Unsubscribe(11), b""),
        (protocol.Claim(2, "c", whence, bytes(16)), b""),
        (protocol.Release(2, "c"), b""),
        (protocol.CommitCursor(2, "c", 1, 0), b""),
        (protocol.SeekCursor(2, "c", whence, None, True), b""),
        (protocol.ListCursors(2), b""),
        (protocol.GetCursor(2, "c"), b""),
        (protocol.DeleteCursor(2, "c"), b""),
        (protocol.WaitSynced(2, 0), b""),
        (protocol.ListSegments(2), b""),
        (protocol.Settle(2, "c", 1, 0, "retry", delay=1.5, attempts=1, error="no"), b""),
        (protocol.TakeRedriven(2, "c", 1, True), b""),
        (protocol.ListParked(2, "c"), b""),
        (protocol.Redrive(2, "c", [0, 1]), b""),
        (protocol.Evict(2, "c"), b""),
        (protocol.Resume(2, "c"), b""),
        (protocol.Extend(2, "c", 1), b""),
        (protocol.OpenProducer(2, 7, "etl", exclusive=True, token=b"t"), b""),
        (protocol.ListProducers(2), b""),
        (
            protocol.Transact(
                7,
                1,
                [protocol.LogBatch(2, len(body), 0, [(0, 3)]), protocol.LogBatch(3, len(body))],
                [
                    protocol.CommitThrough(2, "c", 1, 0),
                    protocol.CommitRedriven(2, "c", 1, 0),
                    protocol.CommitSingle(2, "s", 1, 0),
                ],
            ),
            body + body,
        ),
        (protocol.ReadParked(2, "c", 0), b""),
        (protocol.GetLatest(2, b"k"), b""),
        (protocol.GetTable(2), b""),
        (protocol.CommitRecords(2, "s", 1, [0, 1], [2], [3]), b""),
    ]
    assert [type(control) for control, _ in controls] == list(REQUESTS)
    return [encode(i, c, len(p)) + p for i, (c, p) in enumerate(controls, 1)]


def stamped(values: list[bytes], *, log: int = 1, base: int = 0) -> bytes:
    """A batch as a server pushes it."""
    made = batch.encode(values, [b"k", *[None] * (len(values) - 1)])
    return batch.stamp(made, log, base, 1000) + bytes(made[batch.HEADER_BYTES :])


def answers() -> list[tuple[Control, bytes]]:
    """What a server can say, of every kind, in the protocol's own order: control and payload."""
    pack = msgspec.msgpack.encode
    info = LogInfo("l", 1, 0, 9, 9, 1000, {"sync": "always"})
    member = Member("host:1", 5, 3, 6)
    cursor = CursorInfo("l", "c", 3, 6, 600, 1.5, (member,), 1)
    gap = protocol.error_control(errors.Gap("gone", first=0, end=3))
    records = stamped([b"a", b"b"]) + stamped([b"c"], base=2)
    made: list[tuple[Control, bytes]] = [
        (protocol.Welcome(protocol.PROTOCOL, "rlog", 1 << 20, 8 << 20, 1 << 20), b""),
        (protocol.error_control(errors.Conflict("no", end=3)), b""),
        (protocol.Done(), b""),
        (protocol.LogReply(info), b""),
        (protocol.Listing(), pack([info])),
        (protocol.Appended(0, 2, 1000, True, True, [(0, 1, 0, 5), (1, 1, 7, 5)]), b""),
        (protocol.Place(0, 0, 3), b""),
        (protocol.Claimed(1, 0, 1, 0.0, 2, True, None, [1]), b""),
        (protocol.Moved(0, 1, 2), b""),
        (protocol.CursorReply(cursor), b""),
        (protocol.Committed(True), b""),
        (protocol.Settled(3, 3), b""),
        (protocol.Judged(True, "paused"), b""),
        (protocol.Taken(1, 1, 0.5), b""),
        (protocol.Counted(2), b""),
        (protocol.ProducerOpened(7, 1, 5), b""),
        (protocol.Transacted([(0, 1)], 1000, True), b""),
        (protocol.ParkedCopy(), stamped([b"a"])),
        (protocol.Latest(2, 3), b""),
        (protocol.TablePage(1, 3, 1), pack([1, 2])),
        (protocol.Records(0, "logs/1/0.seg", 0), records),
        (protocol.Lost(2), b""),
        (protocol.Damaged(gap, 3), b""),
        (protocol.Queued(4), b""),
        (protocol.Recall(), b""),
        (protocol.Assigned([0, 1], [1, 2], [0], [0]), b""),
        (protocol.Standing("paused"), b""),
    ]
    assert [type(control) for control, _ in made] == list(ANSWERS), "one of each kind"
    return made


class Noise:
    """Requests that are valid, half-valid and invalid."""

    def __init__(self, chance: Random) -> None:
        self.chance = chance
        self.samples = requests()
        self.request = 1

    def number(self) -> int:
        chance = self.chance
        if chance.random() < 0.7:
            return chance.randrange(MANY_LOGS)
        # The bystander's id is just behind the others': far, or negative, but never that.
        return chance.choice([-1, 1 << 20, 2**31, 2**32, 2**63 - 1, -(2**63), 2**64 - 1])

    def text(self) -> str:
        return self.chance.choice(
            ["", "c", "@global", "target7", "x" * 300, "\0", "é" * 100, "../../etc", "never"]
        )

    def value(self, depth: int = 0) -> Any:
        chance = self.chance
        kind = chance.randrange(9 if depth < 3 else 6)
        match kind:
            case 0:
                return self.number()
            case 1:
                return self.text()
            case 2:
                return chance.randbytes(chance.randrange(20))
            case 3:
                return chance.choice([None, True, False, 1.5, float("inf"), float("nan")])
            case 4:
                return [chance.choice(["oldest", "latest", "offset", "last", "time", "x"]), 3]
            case 5:
                return {}
            case 6:
                return [self.value(depth + 1) for _ in range(chance.randrange(4))]
            case _:
                return {self.text(): self.value(depth + 1) for _ in range(chance.randrange(4))}

    def message(self) -> bytes:
        chance = self.chance
        self.request += 1
        kind = chance.choice(REQUESTS[1:])
        fields = {}
        for name, annotation in kind.__annotations__.items():
            if name == "kind" or chance.random() < 0.01:
                continue
            if chance.random() < 0.02:
                fields[name] = self.value()
            elif "Whence" in str(annotation):
                places = ["oldest", "latest", "offset", "last", "time"]
                fields[name] = [chance.choice(places), abs(self.number()) % 2**63]
            elif "int" in str(annotation):
                fields[name] = self.number()
            elif "str" in str(annotation):
                fields[name] = self.text()
            elif "bytes" in str(annotation):
                fields[name] = chance.randbytes(16)
            else:
                fields[name] = self.value()
        control = msgspec.msgpack.encode(fields)
        payload = b""
        if kind is Append:
            payload = bytes(batch.encode([chance.randbytes(chance.randrange(50))] * 3))
            if chance.random() < 0.3:
                at = chance.randrange(len(payload))
                payload = payload[:at] + chance.randbytes(1) + payload[at + 1 :]
        head = struct.pack(
            "<IBBHI", len(control) + len(payload), kind.kind, 0, len(control), self.request
        )
        return head + control + payload

    def connection(self) -> bytes:
        """Some messages."""
        chance = self.chance
        messages = [self.message() for _ in range(chance.randrange(1, 40))]
        spoilt = chance.random()
        if spoilt < 0.2:
            at = chance.randrange(len(messages))
            messages[at] = spoiled(chance, messages[at], self.samples)
        elif spoilt < 0.4:
            messages.append(spoiled(chance, chance.choice(self.samples), messages))
        return b"".join(messages)

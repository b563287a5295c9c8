"""Bytes <-> messages: every split gives the same, and no bytes raise anything but ProtocolError."""

from __future__ import annotations

import contextlib

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlog_client import errors, protocol
from rlog_client.model import LATEST, OLDEST
from rlog_client.protocol import Connection, Message, ProtocolError, Side

REQUESTS: list[tuple[protocol.Control, bytes]] = [
    (protocol.Ping(), b""),
    (protocol.OpenLog("orders", True, {"sync": "never"}), b""),
    (protocol.Append(3, expect=9), b"payload" * 500),
    (protocol.Append(2**32 - 1), b"x"),
    (protocol.Subscribe(1, LATEST, "billing"), b""),
    (protocol.Claim(1, "billing", OLDEST, bytes(16)), b""),
    (protocol.CommitCursor(1, "billing", 4, 2**63 - 1), b""),
    (protocol.Credit(5, 1 << 20), b""),
    (
        protocol.Transact(
            2**64 - 1,
            5,
            [protocol.LogBatch(1, 300, 7), protocol.LogBatch(2, 200, None, [(0, -1), (3, 9)])],
            [
                protocol.CommitThrough(1, "billing", 4, 2**63 - 1, 2),
                protocol.CommitRedriven(1, "billing", 4, 0),
            ],
        ),
        b"payload" * 500,
    ),
]


def stream(messages: list[tuple[protocol.Control, bytes]]) -> bytes:
    return b"".join(
        protocol.encode(number, control, len(payload)) + payload
        for number, (control, payload) in enumerate(messages)
    )


def connection(greeted: bool = True) -> Connection:
    made = Connection(Side.SERVER)
    made.greeted = greeted
    made.payload_bytes_max = 1 << 20
    return made


def feed(made: Connection, data: bytes, sizes: list[int]) -> list[Message]:
    """``data`` in pieces of ``sizes``, over and over, as a socket would bring it."""
    got: list[Message] = []
    at = turn = 0
    while at < len(data):
        size = sizes[turn % len(sizes)]
        turn += 1
        room = made.room()
        if room is None:
            piece = data[at : at + size]
            made.received(piece)
        else:
            piece = data[at : at + min(size, len(room))]
            room[: len(piece)] = piece
            made.filled(len(piece))
        at += len(piece)
        while (message := made.next_message()) is not None:
            got.append(message)
    return got


@given(st.lists(st.sampled_from(REQUESTS), max_size=8), st.lists(st.integers(1, 3000), min_size=1))
def test_every_split_gives_the_same_messages(
    messages: list[tuple[protocol.Control, bytes]], sizes: list[int]
) -> None:
    made = connection()
    got = feed(made, stream(messages), sizes)
    assert [(m.control, bytes(m.payload)) for m in got] == messages
    assert [m.request for m in got] == list(range(len(messages)))
    assert not made.midway


@pytest.mark.parametrize("size", [10, 60_000, 200_000])
def test_of_what_was_taken_nothing_is_kept(size: int) -> None:
    made = connection()
    for taken in (100_000, 1 << 20):
        assert len(feed(made, stream([(protocol.Append(1), bytes(size))]), [taken])) == 1
        assert (made._data, made._payload) == (b"", None)


@given(st.sampled_from(REQUESTS), st.data())
def test_a_changed_byte_is_refused_or_another_message(
    message: tuple[protocol.Control, bytes], data: st.DataObject
) -> None:
    raw = bytearray(stream([message]))
    raw[data.draw(st.integers(0, min(len(raw), 200) - 1))] ^= data.draw(st.integers(1, 255))
    try:
        for got in feed(connection(), bytes(raw), [100_000]):
            assert isinstance(got.control, protocol.Control)
    except ProtocolError:
        pass


@given(st.binary(max_size=300))
def test_any_bytes_are_refused_or_messages(data: bytes) -> None:
    for greeted in (False, True):
        with contextlib.suppress(ProtocolError):
            feed(connection(greeted), data, [7])


@pytest.mark.parametrize(("control", "payload"), REQUESTS)
def test_a_control_is_standard_msgpack(control: protocol.Control, payload: bytes) -> None:
    raw = protocol.encode(7, control, len(payload))
    assert int.from_bytes(raw[:4], "little") == len(raw) - 12 + len(payload)
    decoded = msgpack.unpackb(raw[protocol.HEAD_BYTES :])
    assert isinstance(decoded, dict)
    assert all(isinstance(name, str) for name in decoded)


def test_only_a_greeting_comes_first() -> None:
    with pytest.raises(ProtocolError):
        feed(connection(greeted=False), stream([(protocol.Ping(), b"")]), [100])
    hello: list[tuple[protocol.Control, bytes]] = [(protocol.Hello(1, "n"), b"")]
    assert len(feed(connection(greeted=False), stream(hello), [100])) == 1


def test_lengths_are_judged_before_anything_is_allocated() -> None:
    made = connection()
    made.payload_bytes_max = 10
    with pytest.raises(ProtocolError, match="limit is 10"):
        feed(made, protocol.encode(1, protocol.Append(1), 4_000_000_000), [100])


@pytest.mark.parametrize("side", protocol.Side)
def test_what_is_only_announced_is_not_allocated(side: protocol.Side) -> None:
    """Whatever limit the other side named: a buffer grows with what has come."""
    made = protocol.Connection(side)
    made.greeted, made.payload_bytes_max = True, 2**64 - 1
    control = protocol.Append(1) if side is protocol.Side.SERVER else protocol.Records(0, "f", 0)
    made.received(protocol.encode(7, control, 4_000_000_000))
    assert made.next_message() is None
    room = made.room()
    assert room is not None
    assert len(room) <= 16 << 20


def test_a_listing_that_does_not_decode_is_a_clear_error() -> None:
    names = protocol.listed(b"\x91\xa1x", str)
    assert names == ["x"]
    deep = b"\x91" * 100_000
    for wrong in (b"", b"\x91", b"\x91\xa2\xff\xfe", b"\x91\x01", deep, b"\x90\x90"):
        with pytest.raises(errors.Unsupported, match="a listing does not decode"):
            protocol.listed(wrong, str)


@pytest.mark.parametrize("code", sorted(errors.BY_CODE))
def test_every_error_travels_as_itself(code: int) -> None:
    cls = errors.BY_CODE[code]
    error = cls("text", **dict.fromkeys(cls.fields, 5))
    raised = protocol.raised(protocol.error_control(error))
    assert type(raised) is cls
    assert (str(raised), raised.details()) == ("text", error.details())


def test_an_error_of_a_later_version_is_still_an_error() -> None:
    raised = protocol.raised(protocol.Error(999, "new", details={"new": 1}))
    assert type(raised) is errors.RlogError

"""What is torn is no event: the host knows too little then, and never what is wrong."""

from __future__ import annotations

from .telling import Cursor, Event, Sending, Served, Transacting, decode, digest, encode, payload

EVENTS: tuple[Event, ...] = (
    Served("a", 7, [digest(b"1"), digest(b"\xff" * 100)]),
    Sending("a", "s1", 3, [1, 20_000], together=True),
    Transacting([], [Cursor("a", "c", 9)]),
)


def test_a_whole_line_is_the_event() -> None:
    for event in EVENTS:
        assert decode(encode(event).removesuffix(b"\n")) == event


def test_a_line_that_is_torn_or_mixed_with_another_is_none() -> None:
    for event in EVENTS:
        line = encode(event).removesuffix(b"\n")
        for position in range(len(line)):
            assert decode(line[:position]) is None
            assert decode(line[position:] if position else b"") is None
            assert decode(line[:position] + line[: position + 1]) is None
            assert decode(line[:position] + b"[ 1.0] oops" + line[position:]) is None


def test_a_payload_is_its_senders_and_numbers_alone_and_so_is_its_digest() -> None:
    values = [payload(s, n, size) for s in ("a", "b") for n in (0, 1) for size in (24, 99, 5000)]
    assert len(set(values)) == len({digest(value) for value in values}) == len(values)
    assert [len(value) for value in values[:3]] == [24, 99, 5000]
    for value in values:
        changed = value[:-1] + bytes([value[-1] ^ 1])
        assert digest(changed) != digest(value)
        assert digest(value[:-1]) != digest(value)

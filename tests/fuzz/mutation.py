"""How bytes are spoiled: once in every way there is, or at random by a seed; and how what they say
is: sound, but absurd.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import msgspec

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from random import Random

# What is large, negative, or begins something in msgpack: where a parser takes its lengths from.
_TELLING: Final = (
    b"\0", b"\x7f", b"\x80", b"\x8f", b"\x90", b"\x94", b"\x9f", b"\xa0", b"\xbf", b"\xc0",
    b"\xc1", b"\xc4\xff", b"\xc6\xff\xff\xff\xff", b"\xc7\x01\x05", b"\xca\x7f\xc0\0\0",
    b"\xcb\x7f\xf0\0\0\0\0\0\0", b"\xcf\xff\xff\xff\xff\xff\xff\xff\xff",
    b"\xd3\x80\0\0\0\0\0\0\0", b"\xd6\xff\0\0\0\0", b"\xd9\x02\xff\xfe", b"\xdb\xff\xff\xff\xff",
    b"\xdc\xff\xff", b"\xdd\xff\xff\xff\xff", b"\xdf\xff\xff\xff\xff", b"\xff",
    b"\xff\xff\xff\xff", b"\x91" * 1100, b"\x81\x01" * 1100, b"\xff" * 8,
)  # fmt: skip

_NUMBERS: Final = (0, 1, 2, 3, -1, 5, 255, 2**31, 2**32, 2**53, 2**63 - 1, -(2**63), 2**64 - 1)


def one_byte_each(raw: bytes, step: int = 1) -> Iterator[bytes]:
    """Every other value of every byte; ``step``: only each so manieth of them."""
    for number in range(0, 256 * len(raw), step):
        at, byte = divmod(number, 256)
        if raw[at] != byte:
            yield raw[:at] + bytes([byte]) + raw[at + 1 :]


def truncated_each(raw: bytes) -> Iterator[bytes]:
    return (raw[:length] for length in range(len(raw)))


def spoiled(chance: Random, raw: bytes, others: Sequence[bytes]) -> bytes:
    """Changed in one to four places; ``others``: what pieces are taken from."""
    for _ in range(chance.choice((1, 1, 1, 2, 3, 4))):
        raw = _spoiled_once(chance, raw, others)
    return raw


def _spoiled_once(chance: Random, raw: bytes, others: Sequence[bytes]) -> bytes:
    at = chance.randrange(len(raw) + 1)
    to = min(len(raw), at + chance.choice((1, 1, 2, 4, 8, 100)))
    other = chance.choice(others)
    match chance.randrange(8):
        case 0:
            return raw[:at]
        case 1:
            return raw + chance.randbytes(chance.randrange(1, 40))
        case 2:  # spliced: the beginning of one, the end of another
            return raw[:at] + other[chance.randrange(len(other) + 1) :]
        case 3:  # a piece of it twice
            return raw[:to] + raw[at:]
        case 4:  # without a piece
            return raw[:at] + raw[to:]
        case 5:  # zeroed, or noise
            return raw[:at] + chance.choice((bytes(to - at), chance.randbytes(to - at))) + raw[to:]
        case 6:
            return raw[:at] + chance.choice(_TELLING) + raw[to:]
        case _:
            return (
                raw[:at] + bytes(byte ^ 1 << chance.randrange(8) for byte in raw[at:to]) + raw[to:]
            )


def absurd(chance: Random, value: Any) -> Any:
    """Another value of its kind."""
    match value:
        case bool():
            return chance.choice((True, False))
        case int():
            return chance.choice(_NUMBERS)
        case float():
            return chance.choice((0.0, -1.0, 1e-9, 0.01, 1e18, 1e300, float("inf"), float("nan")))
        case str():
            return chance.choice(("", "l", "x" * 3000, "\0", "é" * 200, "@global"))
        case list() | tuple():
            return type(value)(
                absurd(chance, each) for each in value for _ in range(chance.choice((0, 1, 1, 3)))
            )
        case dict():
            return {key: absurd(chance, each) for key, each in value.items()}
        case msgspec.Struct():
            return msgspec.structs.replace(
                value,
                **{
                    name: absurd(chance, getattr(value, name))
                    for name in value.__struct_fields__
                    if chance.random() < 0.4
                },
            )
    return value

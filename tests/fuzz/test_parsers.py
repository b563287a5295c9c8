"""Promise 22, in process and much faster than through a socket: whatever bytes a parser is given,
it takes them, or says in its own words why not. Never another exception, never a hang.
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Final

import pytest

from .mutation import one_byte_each, spoiled, truncated_each
from .parsers import Parser, parsers

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

PARSERS: Final = {parser.name: parser for parser in parsers()}
EACH: Final = 4_000  # mutants of a parser in the short tier, divided by its cost,
EACH_LONG: Final = 400_000  # and in the long one


def refused(parser: Parser, raw: bytes) -> bool:
    try:
        parser.parse(raw)
    except parser.refusals as error:
        if not str(error):
            raise AssertionError(f"{parser.name} does not say why it refuses {raw!r}") from error
        return True
    except BaseException as error:
        raise AssertionError(f"{parser.name}: {type(error).__name__} of {raw!r}") from error
    return False


@pytest.mark.parametrize("parser", PARSERS.values(), ids=PARSERS)
def test_what_is_valid_is_taken(parser: Parser) -> None:
    for sample in parser.samples:
        assert not refused(parser, sample)
        assert parser.seal(sample) == sample, "a seal changes nothing that is right"


def enumerated(parser: Parser, *, long: bool) -> Iterator[bytes]:
    """Samples with one byte changed, or cut: all of them in the long tier, if that is feasible."""
    wanted = (EACH_LONG if long else EACH) // parser.cost
    values = 256 * sum(map(len, parser.samples))
    step = max(1, -(-values // wanted)) | 1  # odd, so that it meets all values of a byte
    for sample in parser.samples:
        yield from one_byte_each(sample, step)
        if long or len(sample) < 1000:
            yield from list(truncated_each(sample))[:: max(1, step // 64)]


@pytest.mark.parametrize("parser", PARSERS.values(), ids=PARSERS)
def test_no_changed_byte_surprises_a_parser(
    parser: Parser, long: bool, record_property: Callable[[str, object], None]
) -> None:
    mutants = refusals = 0
    for mutant in enumerated(parser, long=long):
        refusals += refused(parser, parser.seal(mutant))
        mutants += 1
    assert mutants
    record_property(f"{parser.name} with one byte changed, or cut", mutants)
    record_property(f"{parser.name} of these refused", refusals)


@pytest.mark.parametrize("parser", PARSERS.values(), ids=PARSERS)
def test_no_noise_surprises_a_parser(
    parser: Parser, seed: int, long: bool, record_property: Callable[[str, object], None]
) -> None:
    chance = random.Random(f"{seed} {parser.name}")
    mutants = (EACH_LONG if long else EACH) // parser.cost
    for _ in range(mutants):
        sample = chance.choice(parser.samples)
        refused(parser, parser.seal(spoiled(chance, sample, parser.samples)))
    record_property(f"{parser.name} spoiled at random", mutants)

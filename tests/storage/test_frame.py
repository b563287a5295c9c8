"""Frames: what is whole is read back, and nothing else is."""

from __future__ import annotations

import struct

import pytest
from crc32c import crc32c
from hypothesis import given
from hypothesis import strategies as st

from rlog import facts, frame
from rlog.files import PAGE
from rlog_client.batch import HEADER_BYTES
from tests.storage.build import JOURNAL, batch_of, every_fact, flip, frame_of

BATCHES = [batch_of([b"one", b"two"]), batch_of([b"three" * 100], base=2)]
COMMIT = facts.Committed(1, "billing", 3, 2)


def test_a_frame_is_read_back_as_it_was_written() -> None:
    raw, crc = frame_of(BATCHES, COMMIT, number=7, previous=99, synced=5, time_ns=123)
    head = frame.parse(raw, JOURNAL)
    assert head is not None
    assert head == (len(raw), head.facts_bytes, 99, JOURNAL, 7, 5, 123, crc)
    found = frame.facts_of(head, raw)
    assert found == [*(facts.Appended(each[:HEADER_BYTES]) for each in BATCHES), COMMIT]
    bodies = frame.bodies_of(head, raw, found)
    assert [bytes(body.body or b"") for body in bodies] == [each[HEADER_BYTES:] for each in BATCHES]


def test_an_empty_frame_is_a_frame() -> None:
    raw, _ = frame_of([])
    head = frame.parse(raw, JOURNAL)
    assert head is not None
    assert frame.facts_of(head, raw) == []


def test_the_layout_is_as_drawn() -> None:
    raw, crc = frame_of([], number=2**40, previous=0xAABBCCDD, synced=2**39, time_ns=2**60)
    facts_bytes = len(raw) - frame.HEAD_BYTES
    drawn = b"RLF\x01" + struct.pack(
        "<IIIQQQQ", len(raw), facts_bytes, 0xAABBCCDD, JOURNAL, 2**40, 2**39, 2**60
    )
    assert raw[:48] == drawn
    assert raw[48:52] == struct.pack("<I", crc)
    assert crc == crc32c(raw[52:], crc32c(drawn))


def test_no_flipped_bit_of_header_or_facts_goes_unseen() -> None:
    raw, _ = frame_of(BATCHES[:1], COMMIT)
    head = frame.parse(raw, JOURNAL)
    assert head is not None
    for position in range(frame.HEAD_BYTES + head.facts_bytes):
        for bit in range(8):
            assert frame.parse(flip(raw, position, bit), JOURNAL) is None


def test_a_damaged_body_is_that_batchs_alone() -> None:
    raw, _ = frame_of(BATCHES)
    head = frame.parse(raw, JOURNAL)
    assert head is not None
    found = frame.facts_of(head, raw)
    first = frame.HEAD_BYTES + head.facts_bytes
    second = first + len(BATCHES[0]) - HEADER_BYTES
    for position in range(first, len(raw)):
        damaged = flip(raw, position, position % 8)
        assert frame.parse(damaged, JOURNAL) == head, "the header does not cover the bodies"
        bodies = frame.bodies_of(head, damaged, found)
        assert [body.body is None for body in bodies] == [position < second, position >= second]
        assert [body.damage != "" for body in bodies] == [position < second, position >= second]


def test_a_frame_cut_anywhere_is_not_whole() -> None:
    raw, _ = frame_of(BATCHES)
    whole = frame.parse(raw, JOURNAL)
    assert whole is not None
    for length in range(len(raw)):
        head = frame.parse(raw[:length], JOURNAL)
        if length < frame.HEAD_BYTES + whole.facts_bytes:
            assert head is None
        else:
            found = frame.facts_of(whole, raw)
            assert any(b.body is None for b in frame.bodies_of(whole, raw[:length], found))


def test_a_frame_of_another_journal_is_none() -> None:
    raw, _ = frame_of(BATCHES, journal=JOURNAL + 1)
    assert frame.parse(raw, JOURNAL) is None
    assert frame.parse(raw, None) is not None


def test_another_version_is_named_and_only_under_a_right_crc() -> None:
    raw = bytearray(frame_of(BATCHES)[0])
    head = frame.parse(raw, JOURNAL)
    assert head is not None
    raw[3] = 2
    assert frame.parse(raw, JOURNAL) is None, "a flipped version is damage, not a version"
    end = frame.HEAD_BYTES + head.facts_bytes
    raw[48:52] = struct.pack("<I", crc32c(bytes(raw[52:end]), crc32c(bytes(raw[:48]))))
    with pytest.raises(frame.UnknownVersion, match="version 2"):
        frame.parse(raw, JOURNAL)


def test_zeros_are_never_a_frame() -> None:
    assert frame.peek(bytes(PAGE)) is None
    assert frame.parse(bytes(PAGE), JOURNAL) is None
    assert frame.parse(bytes(PAGE), None) is None


@given(st.binary(max_size=200))
def test_no_bytes_crash_the_parser(raw: bytes) -> None:
    assert frame.parse(raw, JOURNAL) is None
    assert frame.parse(b"RLF\x01" + raw, JOURNAL) is None


@given(st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1))
def test_claimed_lengths_are_bounded_by_what_is_there(length: int, facts_bytes: int) -> None:
    raw = b"RLF\x01" + struct.pack("<II", length, facts_bytes) + bytes(PAGE)
    claimed = frame.peek(raw)
    assert claimed is None or claimed == (length, facts_bytes)
    assert frame.parse(raw, None) is None


@given(st.integers(1, 20 * PAGE))
def test_padding_fills_the_last_page(length: int) -> None:
    assert frame.padded(length) % PAGE == 0
    assert 0 <= frame.padded(length) - length < PAGE


def test_every_fact_is_read_back() -> None:
    every = every_fact()
    assert facts.decode(facts.encode(every)) == every


@pytest.mark.parametrize(
    "raw",
    [
        *(
            b"",
            b"\x91",
            b"\x91\x91\x63",
            b"\x91\x92\x05\xa1a",
            b"\x91\x93\x0b\x01\xa1\xff",
            b"\x80",
        ),
        b"\x91\x93\x05\x01" + b"\x91" * 100_000,  # a field of a later version, too deep
    ],
    ids=len,
)
def test_facts_that_do_not_unpack_are_an_error_of_their_own(raw: bytes) -> None:
    with pytest.raises(facts.InvalidFacts):
        facts.decode(raw)

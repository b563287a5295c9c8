"""What a guest is told to do, before it boots."""

from __future__ import annotations

from base64 import urlsafe_b64decode, urlsafe_b64encode
from typing import Literal, Self, TypeAlias

from msgspec import Struct, json

FileSystem: TypeAlias = Literal["ext4", "xfs"]
Scenario: TypeAlias = Literal["load", "failed sync"]


class Plan(Struct, frozen=True):
    """One boot. ``seed`` and ``boot`` together give all of its chances; ``boot`` counts from 0.

    ``kills``: so many servers are killed under load before the one that the power cut meets.
    ``mutants``: planted bugs by name (``mutants``).
    ``flush_centiseconds``: how often the kernel writes back what nobody synced; 0: as it likes.
    """

    file_system: FileSystem
    seed: int
    boot: int
    scenario: Scenario = "load"
    kills: int = 0
    mutants: tuple[str, ...] = ()
    flush_centiseconds: int = 0
    load_seconds: float = 0.6  # of a server that is killed, at most
    unsynced: float = 0.4  # the share of servers of which nobody asks that it sync at once
    journal_file_size: str = "64KiB"  # counts when the directory is made

    def word(self) -> str:
        """As one word of a kernel's command line."""
        return urlsafe_b64encode(json.encode(self)).decode()

    @classmethod
    def from_word(cls, word: str) -> Self:
        return json.decode(urlsafe_b64decode(word), type=cls)

"""Sync policies: when a fact is durable, and when it is answered. Pure.

``always``: answered when synced. The others are answered when written, and synced later:
``periodic:1s`` within that time, ``bytes:1MiB`` after so much or within a second, ``never`` only
with what else is synced.
"""

from __future__ import annotations

import functools
import math
import re
from typing import Final

from msgspec import Struct

from rlog_client.errors import InvalidRequest

_UNITS: Final = {"": 1, "b": 1, "kib": 1 << 10, "mib": 1 << 20, "gib": 1 << 30, "tib": 1 << 40}
_TIMES: Final = {"ms": 0.001, "s": 1.0, "": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
BYTES_POLICY_SECONDS: Final = 1.0
_TEXT_MAX: Final = 32  # characters


class Policy(Struct, frozen=True):
    """``delay_seconds``: how long an unsynced fact may stay so; None for ever.

    ``bytes_max``: how much of it.
    """

    text: str
    at_once: bool
    delay_seconds: float | None = None
    bytes_max: int | None = None

    @property
    def visible_unsynced(self) -> bool:
        """Consumers see records before they are synced (``never`` alone)."""
        return not self.at_once and self.delay_seconds is None


@functools.lru_cache(maxsize=256)  # asked for every append
def parse_policy(text: str) -> Policy:
    """Raises InvalidRequest."""
    kind, _, amount = text.partition(":") if len(text) <= _TEXT_MAX else ("", "", "")
    if kind == "always" and not amount:
        return Policy(text, True)
    if kind == "never" and not amount:
        return Policy(text, False)
    if kind == "periodic":
        seconds = parse_seconds(amount)
        if seconds is not None and 0.001 <= seconds <= 86400:
            return Policy(text, False, seconds)
    if kind == "bytes":
        size = parse_bytes(amount)
        if size is not None and size >= 1:
            return Policy(text, False, BYTES_POLICY_SECONDS, size)
    raise InvalidRequest(
        f"a sync policy is always, periodic:SECONDS, bytes:SIZE or never, not {text[:_TEXT_MAX]!r}"
    )


def parse_bytes(text: str) -> int | None:
    """``1MiB``, ``64KiB``, ``4096``; None for anything else."""
    match = re.fullmatch(r"([0-9]{1,15})\s*([A-Za-z]*)", text)
    unit = _UNITS.get(match[2].lower()) if match else None
    return int(match[1]) * unit if match and unit else None


def parse_seconds(text: str) -> float | None:
    """``1s``, ``250ms``, ``2m``, ``1.5``; None for anything else."""
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)\s*([a-z]*)", text)
    unit = _TIMES.get(match[2]) if match else None
    seconds = float(match[1]) * unit if match and unit else None
    return seconds if seconds is not None and math.isfinite(seconds) else None

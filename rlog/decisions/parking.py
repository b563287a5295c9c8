"""Putting a record aside: what decides it for consumers of both kinds."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Final

from rlog_client.errors import Paused

from .. import facts, state

if TYPE_CHECKING:
    from rlog_client import protocol

    from .desk import Desk

logger = logging.getLogger("rlog.retention")

PARKED_MAX: Final = 10_000  # records of one consumer: each keeps its texts in memory


def put_aside(desk: Desk, log: state.Log, cursor: state.Cursor, control: protocol.Settle) -> None:
    """Park a record, or pass over it for good. Raises Paused when too many are parked."""
    keep = control.verdict == "park"
    if keep and control.offset < log.first and control.offset not in cursor.parked:
        # It was handed out before it was trimmed: there is nothing left to put aside.
        logger.warning("log %r: parked record %d is trimmed, and gone", log.name, control.offset)
        keep = False
    if keep and control.offset not in cursor.parked and len(cursor.parked) >= PARKED_MAX:
        raise Paused(
            f"consumer {control.consumer!r}: {PARKED_MAX} records are parked: redrive or skip some",
            reason=f"{PARKED_MAX} records are parked",
        )
    cause, pause = breaker(cursor, control)
    begun = control.begun if control.begun > control.offset + 1 and not control.redriven else 0
    desk.fact(
        facts.Parked(
            log.id,
            control.consumer,
            control.epoch,
            control.offset,
            control.attempts,
            control.reason,
            control.error or cursor.last_error(control.offset),
            cause,
            cursor.paused or pause,
            keep,
            begun,
        ),
        log,
    )


def breaker(cursor: state.Cursor, control: protocol.Settle) -> tuple[str, str | None]:
    """What exhausted the record, as far as it counts for the breaker, and why that pauses the
    consumer, if it does.
    """
    # Without a breaker there is no row: it would grow for as long as a handler fails.
    if not control.exhausted or control.pause_after is None or not control.cause:
        return "", None
    row = len(cursor.streak) + 1 if control.cause == cursor.cause else 1
    if row < control.pause_after:
        return control.cause, None
    return control.cause, f"{row} records in a row were exhausted by {control.cause}"

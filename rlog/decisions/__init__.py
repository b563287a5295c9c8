"""Decisions: one function per request. It reads the state, then refuses or adds facts.

A function here runs once, in the order of arrival, against the state as it will be when the frame
under decision is durable. It answers nobody: what it returns makes the answer, and what must wait
for the frame's sync goes to ``desk.effects``. What returns None keeps the request: it is decided
again when it is its turn. Up to its first fact a decision may raise any RlogError and has then done
nothing that lasts (but for the trims that an append makes due: they stand, whatever becomes of it).
Space is reserved here, before the first fact, so that a full disk is met by the
one request that it concerns and by nothing behind it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from rlog_client import protocol

from . import (
    appends,
    claims,
    compaction,
    consumers,
    logs,
    members,
    producers,
    tables,
    transactions,
    trims,
)
from .compaction import Compact, in_use, protected_end
from .desk import (
    NOBODY,
    Answer,
    Batch,
    Books,
    Desk,
    Grant,
    Lapse,
    Layout,
    Leave,
    Look,
    Make,
    Nobody,
    Peer,
    Seen,
    Unreadable,
    Vanish,
    Visible,
    Waiting,
    resolve,
)
from .trims import Copying, copying, watch_clock
from .watch import Copied, Retain

if TYPE_CHECKING:
    from rlog_client.protocol import Control

__all__ = [
    "DECISIONS",
    "NOBODY",
    "Answer",
    "Batch",
    "Books",
    "Compact",
    "Copying",
    "Desk",
    "Grant",
    "Layout",
    "Leave",
    "Look",
    "Make",
    "Nobody",
    "Peer",
    "Seen",
    "Unreadable",
    "Vanish",
    "Visible",
    "Waiting",
    "copying",
    "in_use",
    "protected_end",
    "resolve",
    "watch_clock",
]

_Decide = Callable[[Desk, Waiting, Any], Make | None]
DECISIONS: Final[dict[type[Control], _Decide]] = {
    protocol.Append: appends.append,
    protocol.OpenProducer: producers.open_producer,
    protocol.ListProducers: producers.list_producers,
    protocol.OpenLog: logs.open_log,
    protocol.ListLogs: logs.list_logs,
    protocol.GetLog: logs.get_log,
    protocol.AlterLog: logs.alter_log,
    protocol.TrimLog: trims.trim_log,
    protocol.DeleteLog: logs.delete_log,
    protocol.ListSegments: logs.list_segments,
    protocol.Claim: claims.claim,
    protocol.Release: claims.release,
    protocol.Evict: claims.evict,
    protocol.Extend: claims.extend,
    Leave: claims.leave,
    Lapse: claims.lapse,
    protocol.CommitCursor: consumers.commit,
    protocol.Settle: consumers.settle,
    protocol.TakeRedriven: consumers.take_redriven,
    protocol.ListParked: consumers.list_parked,
    protocol.Redrive: consumers.redrive,
    protocol.Resume: consumers.resume,
    protocol.SeekCursor: consumers.seek,
    protocol.DeleteCursor: consumers.delete_cursor,
    protocol.ListCursors: consumers.list_cursors,
    protocol.GetCursor: consumers.get_cursor,
    protocol.Transact: transactions.transact,
    protocol.ReadParked: trims.read_parked,
    protocol.CommitRecords: members.commit_records,
    Vanish: members.vanish,
    Unreadable: members.unreadable,
    Retain: trims.retain,
    Copied: trims.copied,
    protocol.GetLatest: tables.latest,
    protocol.GetTable: tables.table,
    Compact: compaction.compact,
}

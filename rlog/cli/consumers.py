"""``rlog consumers`` and ``rlog producers``: who holds what, and what stands in the way."""

from __future__ import annotations

import contextlib
import shlex
import time
from typing import TYPE_CHECKING, Final

import click

from rlog_client import CorruptData, Gap, Global
from rlog_client.model import GLOBAL_ID, OFFSET_MAX

from . import wire
from .exits import Exit
from .options import (
    CONSUMER,
    WHENCE,
    Group,
    Settings,
    confirm,
    fail_empty,
    option,
    pass_settings,
    yes_flag,
)
from .output import duration, rfc3339, size
from .records import to_row
from .whence import GRAMMAR

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from typing import Any

    from rlog_client import CursorInfo, Member, Parked, ProducerInfo

    from .output import Output, Row
    from .whence import Place


def _cursor_row(info: CursorInfo, out: Output) -> Row:
    """Of several members, the one that has had something in hand for longest is shown."""
    member = min(info.members, key=_in_hand_since, default=None)
    told = out.form in ("json", "jsonl")
    return {
        "log": info.log,
        "id": info.id,
        "committed": info.committed,
        "lag_records": info.lag_records,
        "lag_bytes": info.lag_bytes,
        "lag_seconds": info.lag_seconds,
        "holder": member and member.name,
        "held_since_ns": member and member.since_ns,
        "in_hand": member and member.in_hand,
        "in_hand_since_ns": member and member.in_hand_since_ns,
        "members": [_member_row(each) for each in info.members] if told else len(info.members),
        "parked": info.parked,
        "paused": info.paused,
        "held_back": info.held_back,
    }


def _in_hand_since(member: Member) -> int:
    return OFFSET_MAX if member.in_hand_since_ns is None else member.in_hand_since_ns


def _member_row(member: Member) -> Row:
    return {
        "name": member.name,
        "held_since_ns": member.since_ns,
        "in_hand": member.in_hand,
        "in_hand_since_ns": member.in_hand_since_ns,
    }


def _parked_row(parked: Parked, out: Output) -> Row:
    if out.form in ("json", "jsonl"):
        return to_row(parked.record) | {
            "attempts": parked.attempts,
            "reason": parked.reason,
            "error": parked.error,
            "parked_ns": parked.parked_ns,
            "redriven": parked.record.redriven,
        }
    return {
        "offset": parked.record.offset,
        "attempts": parked.attempts,
        "parked_ns": parked.parked_ns,
        "reason": parked.reason,
        "error": parked.error,
    }


def _producer_row(info: ProducerInfo) -> Row:
    return {
        "name": info.name,
        "epoch": info.epoch,
        "last_sequence": info.last_sequence,
        "owner": info.owner,
        "since_ns": info.since_ns,
    }


def _name(id: str | Global) -> str:
    """As it is typed."""
    return GLOBAL_ID if isinstance(id, Global) else id


@contextlib.contextmanager
def telling_how_to_go_on(log: str, id: str | Global) -> Iterator[None]:
    """At a gap or damage a command ends with its cursor in front of it: as the next one would.
    (The members of a shared consumer pass it by themselves.)
    """
    try:
        yield
    except (Gap, CorruptData) as error:
        name = shlex.quote(_name(id))
        name = f"-- {name}" if name.startswith("-") else name
        error.add_note(f"To go on behind it: rlog consumers seek --to {error.end} {log} {name}")
        raise


def _ago(time_ns: int) -> str:
    # By the server's clock and ours, which may differ.
    return f"{duration(max(0, time.time_ns() - time_ns) / 1e9)} ago"


def _when_and_ago(time_ns: int) -> str:
    return f"{rfc3339(time_ns, 0)} ({_ago(time_ns)})"


def _last_line(text: str) -> str:
    """Of a traceback, what it is about."""
    return (text.rstrip().splitlines() or [""])[-1].strip()


def _human(since: Callable[[int], str]) -> Mapping[str, Any]:
    return {
        "lag_bytes": size,
        "lag_seconds": lambda seconds: f"{seconds:.1f}",
        "held_since_ns": since,
        "in_hand_since_ns": since,
        "since_ns": since,
        "parked_ns": lambda ns: rfc3339(ns, 0),
        "error": _last_line,
    }


# One line has to be enough in a listing; of one thing alone there is room for both.
_LISTED: Final = _human(_ago)
_DESCRIBED: Final = _human(_when_and_ago)


# --- consumers ------------------------------------------------------------------------------

consumers = Group(
    "consumers",
    no_args_is_help=True,
    help=f"""See, move, mend and remove consumers.

    The ID {GLOBAL_ID} is that of the log's own cursor, rlog.GLOBAL in a program.""",
)


@consumers.command("ls", help="The consumers of LOG, or of all logs.")
@click.argument("log", required=False)
@fail_empty()
@pass_settings
def consumers_ls(settings: Settings, log: str | None, fail_empty: bool) -> int:
    with settings.client() as client:
        names = [log] if log is not None else [info.name for info in client.logs()]
        rows = (_cursor_row(c, settings.out) for name in names for c in client.log(name).cursors())
        count = settings.out.rows(rows, _LISTED)
    return Exit.EMPTY if fail_empty and not count else Exit.OK


@consumers.command(
    "describe",
    help="One consumer: where it stands, who holds it, what is in hand; a line for each member.",
)
@click.argument("log")
@click.argument("id", type=CONSUMER)
@pass_settings
def consumers_describe(settings: Settings, log: str, id: str | Global) -> None:
    with settings.client() as client:
        info = client.log(log).cursor(id).info()
    settings.out.one(_cursor_row(info, settings.out), _DESCRIBED)
    if len(info.members) > 1 and settings.out.form not in ("json", "jsonl"):
        settings.out.print("")
        settings.out.table(map(_member_row, info.members), _LISTED)


@consumers.command("seek", help="Put a cursor elsewhere; prints where it stood, and stands.")
@click.argument("log")
@click.argument("id", type=CONSUMER)
@option("--to", type=WHENCE, required=True, help=f"The next record to read: {GRAMMAR}.")
@option("--force", is_flag=True, help="Also when it is held: the holder is fenced.")
@pass_settings
def consumers_seek(settings: Settings, log: str, id: str | Global, to: Place, force: bool) -> None:
    with settings.client() as client:
        target = client.log(log)
        before, after = target.cursor(id).seek(wire.whence_of(target, to), force=force)
    settings.out.one({"before": before, "after": after})


@consumers.command("rm", help="Delete a consumer's cursor.")
@click.argument("log")
@click.argument("id", type=CONSUMER)
@yes_flag
@pass_settings
def consumers_rm(settings: Settings, log: str, id: str | Global, yes: bool) -> None:
    confirm(settings, f"delete consumer {_name(id)} of log {log}", yes)
    with settings.client() as client:
        client.log(log).cursor(id).delete()
    settings.out.say(f"deleted consumer {_name(id)} of log {log}")


@consumers.command("parked", help="The records that were put aside, and why.")
@click.argument("log")
@click.argument("id", type=CONSUMER)
@fail_empty()
@pass_settings
def consumers_parked(settings: Settings, log: str, id: str | Global, fail_empty: bool) -> int:
    out = settings.out
    with settings.client() as client:
        parked = client.log(log).cursor(id).parked()
    count = out.rows((_parked_row(each, out) for each in parked), _LISTED)
    return Exit.EMPTY if fail_empty and not count else Exit.OK


@consumers.command(
    "redrive",
    short_help="Deliver parked records again.",
    help="Deliver parked records again, before any new one; prints how many.",
)
@click.argument("log")
@click.argument("id", type=CONSUMER)
@click.argument("offsets", nargs=-1, type=click.IntRange(0, OFFSET_MAX), metavar="[OFFSET]...")
@option("--all", "everything", is_flag=True, help="All that are parked.")
@fail_empty()
@pass_settings
def consumers_redrive(
    settings: Settings,
    log: str,
    id: str | Global,
    offsets: Sequence[int],
    everything: bool,
    fail_empty: bool,
) -> int:
    if everything == bool(offsets):
        raise click.UsageError("say which: OFFSETs, or --all")
    with settings.client() as client:
        count = client.log(log).cursor(id).redrive(None if everything else offsets)
    if settings.out.form in ("json", "jsonl"):
        settings.out.one({"log": log, "id": _name(id), "redriven": count})
    else:
        settings.out.print(str(count))
    if others := len(set(offsets)) - count if offsets else 0:
        settings.out.say(f"{others} of them were not parked, or were redriven before")
    return Exit.EMPTY if fail_empty and not count else Exit.OK


@consumers.command("evict", help="End the claim on a consumer now; who held it is fenced.")
@click.argument("log")
@click.argument("id", type=CONSUMER)
@option("--member", metavar="NAME", help="Only what is held under this name.")
@pass_settings
def consumers_evict(settings: Settings, log: str, id: str | Global, member: str | None) -> None:
    with settings.client() as client:
        client.log(log).cursor(id).evict(member)
    ended = "is free" if member is None else f"is not held by {member} any more"
    settings.out.say(f"consumer {_name(id)} of log {log} {ended}")


@consumers.command(
    "resume", help="Have a paused consumer go on, with the records that paused it first."
)
@click.argument("log")
@click.argument("id", type=CONSUMER)
@pass_settings
def consumers_resume(settings: Settings, log: str, id: str | Global) -> None:
    with settings.client() as client:
        client.log(log).cursor(id).resume()
    settings.out.say(f"consumer {_name(id)} of log {log} goes on")


# --- producers ------------------------------------------------------------------------------

producers = Group("producers", no_args_is_help=True, help="See who appends under a name.")


@producers.command("ls", help="The named producers of LOG, and the one that owns it.")
@click.argument("log")
@fail_empty()
@pass_settings
def producers_ls(settings: Settings, log: str, fail_empty: bool) -> int:
    with settings.client() as client:
        count = settings.out.rows(map(_producer_row, client.log(log).producers()), _LISTED)
    return Exit.EMPTY if fail_empty and not count else Exit.OK

"""``rlog logs``, ``ping``, ``version``, ``completion``."""

from __future__ import annotations

import platform
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

import click
from click.shell_completion import get_completion_class

from rlog_client import GLOBAL, NotFound, __version__
from rlog_client.model import GLOBAL_ID
from rlog_client.protocol import PROTOCOL

from . import wire
from .exits import Exit
from .options import (
    CONSUMER,
    NONE,
    PAUSE,
    SECONDS_OR_NONE,
    SIZE,
    SIZE_OR_NONE,
    SYNC,
    WHENCE,
    Group,
    Settings,
    confirm,
    dry_run,
    fail_empty,
    option,
    pass_settings,
    yes_flag,
)
from .options import command as verb
from .output import duration, size
from .whence import GRAMMAR

if TYPE_CHECKING:
    from collections.abc import Callable

    from rlog_client import Log, LogInfo

    from .output import Row
    from .whence import Place

_HUMAN: Final = {
    "bytes": size,
    "file_roll_size": size,
    "max_total_bytes": size,
    "max_file_age": duration,
    "blocking_minimum_retention": duration,
    "protected": lambda names: " ".join(names) or "-",
}


def _log_row(info: LogInfo) -> Row:
    return {
        "name": info.name,
        "id": info.id,
        "first": info.first,
        "end": info.end,
        "synced_end": info.synced_end,
        "records": info.end - info.first,
        "bytes": info.bytes,
        **info.options,
        "retention": info.retention,
    }


# --- logs -----------------------------------------------------------------------------------

logs = Group("logs", no_args_is_help=True, help="See, make, change and remove logs.")
# What the flags of a log's options are called, in the order in which they are shown.
_FLAGS: Final = (
    option("--sync", type=SYNC, metavar="POLICY", help="always, periodic:1s, bytes:1MiB or never."),
    option("--file-roll-size", type=SIZE, help="Of a segment file."),
    option(
        "--compact/--no-compact",
        default=None,
        help="Let go what later records of the same key supersede. Needs --key-index.",
    ),
    option(
        "--max-total-bytes",
        type=SIZE_OR_NONE,
        metavar="SIZE|none",
        help="Of the whole log: the oldest files go.",
    ),
    option(
        "--max-file-age",
        type=SECONDS_OR_NONE,
        metavar="AGE|none",
        help="Of a record, or up to a quarter more: 7d.",
    ),
    option(
        "--blocking-minimum-retention",
        type=SECONDS_OR_NONE,
        metavar="AGE|none",
        help="Rather than remove what is younger for --max-total-bytes, appends wait.",
    ),
    option(
        "--protected",
        type=CONSUMER,
        multiple=True,
        metavar="ID",
        help="No trim passes what this consumer has not committed; may be repeated; none: nobody.",
    ),
)


def _options(function: Callable[..., Any]) -> Callable[..., Any]:
    for flag in reversed(_FLAGS):
        function = flag(function)
    return function


def _given(options: dict[str, Any]) -> dict[str, Any]:
    """The options that were named; those called none have no value."""
    given: dict[str, Any] = {}
    for name, value in options.items():
        if name == "protected":
            if value:
                given[name] = [] if value == ("none",) else list(value)
        elif value is not None:
            given[name] = None if value is NONE else value
    return given


def _going(target: Log, first: int) -> list[Row]:
    """The segments that lie wholly below ``first``."""
    found = wire.segments(target)
    ends = [*(each.base for each in found[1:]), target.info().end]
    return [
        {"file": each.file, "first": each.base, "end": end, "bytes": each.bytes}
        for each, end in zip(found, ends, strict=True)
        if end <= first
    ]


def _say_going(settings: Settings, target: Log, first: int) -> None:
    """What a trim up to ``first`` would remove, and whom that would concern."""
    rows, out = _going(target, first), settings.out
    out.rows(rows, _HUMAN)
    if not rows:
        out.say(f"{target.name}: nothing would go")
        return
    begin, total = rows[0]["first"], sum(row["bytes"] for row in rows)
    out.say(f"{target.name}: {first - begin} records would go, {size(total)} in {len(rows)} files")
    for cursor in target.cursors():
        if cursor.committed < first:
            count = first - max(cursor.committed, begin)
            out.say(f"consumer {cursor.id} has not committed {count} of them")
        if cursor.parked:
            parked = target.cursor(GLOBAL if cursor.id == GLOBAL_ID else cursor.id).parked()
            if count := sum(begin <= each.record.offset < first for each in parked):
                out.say(f"of consumer {cursor.id}, {count} parked records would be copied")


@logs.command("ls", help="All logs.")
@fail_empty()
@pass_settings
def logs_ls(settings: Settings, fail_empty: bool) -> int:
    with settings.client() as client:
        count = settings.out.rows(map(_log_row, client.logs()), _HUMAN)
    return Exit.EMPTY if fail_empty and not count else Exit.OK


@logs.command("describe", help="One log.")
@click.argument("log")
@pass_settings
def logs_describe(settings: Settings, log: str) -> None:
    with settings.client() as client:
        found = client.log(log)
        row, segments = _log_row(found.info()), wire.segments(found)
    # (``records`` are offsets: those that compaction left without a record are among them.)
    row |= {"segments": len(segments), "absent": sum(each.absent for each in segments)}
    settings.out.one(row, _HUMAN)


@logs.command("create", help="Make a log. One that is there already has to have these options.")
@click.argument("log")
@_options
@option("--key-index", is_flag=True, help="Have the server know the last offset of every key.")
@dry_run
@pass_settings
def logs_create(
    settings: Settings, log: str, key_index: bool, dry_run: bool, **options: Any
) -> None:
    given = _given(options) | ({"key_index": True} if key_index else {})
    out = settings.out
    with settings.client() as client:
        there = False
        with suppress(NotFound):
            client.log(log)
            there = True
        if dry_run:
            info = wire.would_create(client, log, given)
            out.say(f"log {log} is there" if there else f"log {log} would be created")
        else:
            info = client.log(log, create=True, **given).info()
            out.say(f"log {log} was there" if there else f"created log {log}")
        if out.form is not None or dry_run:
            out.one(_log_row(info), _HUMAN)


@logs.command("alter", help="Change options of a log; those not named stay.")
@click.argument("log")
@_options
@dry_run
@pass_settings
def logs_alter(settings: Settings, log: str, dry_run: bool, **options: Any) -> None:
    given = _given(options)
    if not given:
        raise click.UsageError("nothing to alter: give --sync, --max-total-bytes or another")
    with settings.client() as client:
        target = client.log(log)
        if not dry_run:
            settings.out.one(_log_row(target.alter(**given)), _HUMAN)
            return
        now, then = target.info(), wire.would_alter(target, given)
        for name, value in then.options.items():
            if value != now.options[name]:
                settings.out.say(f"{log}: {name} would be {value}, not {now.options[name]}")
        _say_going(settings, target, then.first)
        if then.retention is not None:
            settings.out.say(f"{log}: not more, for now: {then.retention}")


@logs.command("rm", help="Delete a log, its records and its consumers.")
@click.argument("log")
@yes_flag
@dry_run
@pass_settings
def logs_rm(settings: Settings, log: str, yes: bool, dry_run: bool) -> None:
    if not dry_run:
        confirm(settings, f"delete log {log} with its records and consumers", yes)
    with settings.client() as client:
        target = client.log(log)
        if not dry_run:
            target.delete()
            settings.out.say(f"deleted log {log}")
            return
        info = target.info()
        settings.out.rows(_going(target, info.end), _HUMAN)
        ids = ", ".join(str(cursor.id) for cursor in target.cursors())
        what = f"{info.end - info.first} records, {size(info.bytes)}"
        settings.out.say(f"log {log} would be deleted: {what}, consumers: {ids or 'none'}")


@logs.command("trim", help="Let whole segments below WHENCE go; prints the new first offset.")
@click.argument("log")
@option("--before", type=WHENCE, required=True, help=f"This one stays: {GRAMMAR}.")
@yes_flag
@dry_run
@pass_settings
def logs_trim(settings: Settings, log: str, before: Place, yes: bool, dry_run: bool) -> None:
    if not dry_run:
        confirm(settings, f"delete the oldest records of log {log}", yes)
    with settings.client() as client:
        target = client.log(log)
        was = target.info().first
        whence = wire.whence_of(target, before)
        if dry_run:
            _say_going(settings, target, wire.would_trim(target, whence))
            return
        first = target.trim(whence)
    if settings.out.form is None:
        settings.out.print(str(first))
    else:
        settings.out.one({"log": log, "before": was, "first": first})
    settings.out.say(f"{log}: {first - was} records are gone")


# --- the rest -------------------------------------------------------------------------------


@verb(help="Ask the server for a sign of life; prints the round trip time.")
@option("-n", "--count", type=click.IntRange(min=1), default=1, show_default=True, help="So often.")
@option("--interval", type=PAUSE, default=1.0, show_default=True, help="Between two.")
def ping(settings: Settings, count: int, interval: float) -> None:
    out = settings.out
    with settings.client() as client:
        for number in range(count):
            if number:
                time.sleep(interval)
            began = time.perf_counter()
            wire.ping(client)
            seconds = time.perf_counter() - began
            if out.form in ("json", "jsonl"):
                out.one({"addr": wire.address(client), "seconds": seconds})
            else:
                out.print(f"{wire.address(client)}: {seconds * 1e3:.3f} ms")


@verb(help="Print the version.")
def version(settings: Settings) -> None:
    details: Row = {
        "version": __version__,
        "protocol": PROTOCOL,
        "python": platform.python_version(),
    }
    if settings.out.form is None and not settings.verbose:
        settings.out.print(f"rlog {__version__}")
    else:
        settings.out.one(details)


@verb(
    short_help="Print a script for the shell's completion.",
    help='Print a script that completes verbs and flags: eval "$(rlog completion bash)".',
)
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(settings: Settings, shell: str) -> None:
    from . import COMPLETE_VARIABLE, root

    found = get_completion_class(shell)
    assert found is not None, "click knows all three"
    settings.out.print(found(root, {}, "rlog", COMPLETE_VARIABLE).source())

"""``rlog logs``, ``ping``, ``version``, ``completion``."""

from __future__ import annotations

import platform
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

import click
from click.shell_completion import get_completion_class

from rlog_client import NotFound, __version__
from rlog_client.protocol import PROTOCOL

from . import wire
from .exits import Exit
from .options import (
    SIZE,
    SYNC,
    WHENCE,
    Group,
    Settings,
    confirm,
    fail_empty,
    option,
    pass_settings,
    yes_flag,
)
from .options import command as verb
from .output import size
from .whence import GRAMMAR

if TYPE_CHECKING:
    from collections.abc import Callable

    from rlog_client import LogInfo

    from .output import Row
    from .whence import Place

_HUMAN: Final = {"bytes": size, "file_roll_size": size}


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
    }


# --- logs -----------------------------------------------------------------------------------

logs = Group("logs", no_args_is_help=True, help="See, make, change and remove logs.")


def _options(function: Callable[..., Any]) -> Callable[..., Any]:
    help_sync = "always, periodic:1s, bytes:1MiB or never."
    help_compact = "Let go what later records of the same key supersede. Needs --key-index."
    function = option("--compact/--no-compact", default=None, help=help_compact)(function)
    function = option("--file-roll-size", type=SIZE, help="Of a segment file.")(function)
    return option("--sync", type=SYNC, metavar="POLICY", help=help_sync)(function)


def _given(**options: Any) -> Any:
    return {name: value for name, value in options.items() if value is not None}


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
@option("--key-index", is_flag=True, default=None, help="Know the last offset of every key.")
@pass_settings
def logs_create(settings: Settings, log: str, **options: Any) -> None:
    with settings.client() as client:
        there = False
        with suppress(NotFound):
            client.log(log)
            there = True
        made = client.log(log, create=True, **_given(**options))
        settings.out.say(f"log {log} was there" if there else f"created log {log}")
        if settings.out.form is not None:
            settings.out.one(_log_row(made.info()), _HUMAN)


@logs.command("alter", help="Change options of a log; those not named stay.")
@click.argument("log")
@_options
@pass_settings
def logs_alter(settings: Settings, log: str, **options: Any) -> None:
    changes = _given(**options)
    if not changes:
        raise click.UsageError("nothing to alter: give --sync, --file-roll-size or --[no-]compact")
    with settings.client() as client:
        settings.out.one(_log_row(client.log(log).alter(**changes)), _HUMAN)


@logs.command("rm", help="Delete a log, its records and its consumers.")
@click.argument("log")
@yes_flag
@pass_settings
def logs_rm(settings: Settings, log: str, yes: bool) -> None:
    confirm(settings, f"delete log {log} with its records and consumers", yes)
    with settings.client() as client:
        client.log(log).delete()
    settings.out.say(f"deleted log {log}")


@logs.command("trim", help="Let whole segments below WHENCE go; prints the new first offset.")
@click.argument("log")
@option("--before", type=WHENCE, required=True, help=f"This one stays: {GRAMMAR}.")
@yes_flag
@pass_settings
def logs_trim(settings: Settings, log: str, before: Place, yes: bool) -> None:
    confirm(settings, f"delete the oldest records of log {log}", yes)
    with settings.client() as client:
        target = client.log(log)
        was = target.info().first
        first = target.trim(wire.whence_of(target, before))
    if settings.out.form is None:
        settings.out.print(str(first))
    else:
        settings.out.one({"log": log, "before": was, "first": first})
    settings.out.say(f"{log}: {first - was} records are gone")


# --- the rest -------------------------------------------------------------------------------


@verb(help="Ask the server for a sign of life; prints the round trip time.")
@option("-n", "--count", type=click.IntRange(min=1), default=1, show_default=True, help="So often.")
@option("--interval", type=float, default=1.0, show_default=True, help="Seconds between two.")
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

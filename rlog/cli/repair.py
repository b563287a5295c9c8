"""``rlog repair DIR``: make a directory that is damaged one that is served.

By itself it does what loses nothing. What would lose something it only names, with the flag that it
takes: ``--truncate-tail`` or ``--accept-loss``. It removes nothing: what it takes away lies in
``quarantine/``, beside a report of what was wrong, what is lost, and how to put it back.
"""

from __future__ import annotations

import errno
import os
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

import click

from ..files import Disk, Lock
from ..offline import is_data_directory
from ..repair import REPORT, carry_out, make_plan
from ..salvage import Level
from .exits import Exit, Stopped
from .options import Settings, command, dry_run, option
from .output import size
from .verify import held, row, sentence

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ..offline import Finding
    from ..repair import Plan
    from .output import Output

_FLAGS: Final = {Level.TAIL: "--truncate-tail", Level.LOSS: "--accept-loss"}


@contextmanager
def _ours(directory: str) -> Iterator[None]:
    """Nobody serves it, and no server starts meanwhile. Raises Locked."""
    lock = Lock(directory)
    try:
        yield
    finally:
        lock.release()


@command(
    short_help="Make a damaged directory one that is served.",
    help="Make DIR, of a server that is stopped, one that is served, whatever is damaged in it. "
    "Without flags it does what loses nothing. What would lose something it names, with the flag "
    "that it takes, and exits 5. Nothing is removed: what is taken away lies in DIR/quarantine, "
    "with a report.",
)
@click.argument("directory", metavar="DIR")
@dry_run
@option(
    "--truncate-tail",
    is_flag=True,
    help="Give up what stood at the journal's damaged end.",
)
@option(
    "--accept-loss",
    is_flag=True,
    help="Give up whatever cannot be read any more.",
)
def repair(
    settings: Settings, directory: str, dry_run: bool, truncate_tail: bool, accept_loss: bool
) -> int:
    if not os.path.isdir(directory):
        raise Stopped(Exit.NOT_FOUND, f"{directory} is no directory")
    files = Disk(directory)
    if not is_data_directory(files):
        raise Stopped(Exit.NOT_FOUND, f"{directory} is no data directory: nothing in it is ours")
    if not dry_run and (owner := os.stat(directory).st_uid) != os.geteuid():
        # Its files would be ours, and the server could not open them.
        raise Stopped(Exit.ERROR, f"{directory} belongs to user id {owner}: repair it as that user")
    allowed = Level.LOSS if accept_loss else Level.TAIL if truncate_tail else Level.NOTHING
    with held(directory, "repair") if dry_run else _ours(directory):
        plan = make_plan(files, time.time_ns())
        enough = plan.level <= allowed
        where = None
        if enough and not plan.empty and not dry_run:
            where = _carried_out(files, plan)
    _show(settings.out, plan, where)
    _say(settings.out, plan, where, enough=enough)
    return Exit.OK if enough else Exit.CORRUPT


def _carried_out(files: Disk, plan: Plan) -> str:
    try:
        return carry_out(files, plan)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        copied = sum(os.path.getsize(f"{files.root}/{name}") for name in plan.taken)
        text = f"no space for copies of what is taken away, {size(copied)}; nothing has changed"
        raise Stopped(Exit.ERROR, text) from None


def _show(out: Output, plan: Plan, where: str | None) -> None:
    told: list[tuple[str, Finding]] = [("wrong", each) for each in plan.wrong]
    told += [("lost", each) for each in plan.lost]
    actions = [f"take {name} away" for name in (*plan.taken, *plan.strays)]
    actions += [f"write {name}" for name in plan.made]
    if out.form == "json":
        out.one(
            {
                "needs": _FLAGS.get(plan.level),
                "wrong": [row(each) for each in plan.wrong],
                "lost": [row(each) for each in plan.lost],
                "actions": actions,
                "quarantine": where,
            }
        )
    elif out.form == "jsonl":
        out.rows({"kind": kind, **row(each)} for kind, each in told)
    else:
        for kind, each in told:
            mark = out.paint("lost ", "31;1") if kind == "lost" else "wrong"
            out.print(f"{mark}  {sentence(each)}")
        for action in actions:
            out.print(f"{'did' if where else 'to do'}  {action}")


def _say(out: Output, plan: Plan, where: str | None, *, enough: bool) -> None:
    if plan.empty:
        out.say("nothing to repair")
    elif where is not None:
        out.say(
            f"repaired; what was taken away, and {REPORT}, is in {where}"
            f"{'; what is lost is named above' if plan.lost else ''}"
        )
    elif enough:
        out.say("nothing was touched; it would be repaired")
    else:
        out.say(
            f"nothing was touched: it takes {_FLAGS[plan.level]}, "
            "and then what is named above is lost"
        )

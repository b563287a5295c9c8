"""``rlog verify DIR``: check everything that is stored; exit 5 on damage, naming it.

Of a stopped directory. One that a server holds is refused with exit 6: what it writes while it is
read would be judged at a moment that never was. (Records are checked end to end by any read:
``rlog cat LOG > /dev/null``.) While it runs, the directory is held against a server's start, by a
lock that any number of readers share; nothing is written.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from typing import TYPE_CHECKING

import click

from .. import offline
from ..files import Disk, Locked
from .exits import Exit, Stopped
from .options import Settings, command
from .output import size

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ..offline import Counted, Finding
    from .output import Output, Row


@contextlib.contextmanager
def held(directory: str, verb: str = "verify") -> Iterator[None]:
    """No server starts meanwhile. Raises Locked when one runs."""
    try:
        file = os.open(f"{directory}/lock", os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        yield  # a copy: nobody serves it
        return
    try:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(file, 32, 0).decode(errors="replace").strip()
            raise Locked(
                f"{directory} is in use by process {holder or '?'}: stop it, or {verb} a copy"
            ) from None
        yield
    finally:
        os.close(file)


def row(finding: Finding) -> Row:
    return {
        "damage": finding.damage,
        "file": finding.file or None,
        "position": finding.position,
        "log": finding.log or None,
        "first": finding.first,
        "end": finding.end,
        "reason": finding.text,
    }


def sentence(finding: Finding) -> str:
    where = finding.file
    if finding.position is not None:
        where += f", position {finding.position}"
    if finding.log:
        records = f"log {finding.log}"
        if finding.end is not None:
            records += f", offsets {finding.first} to {finding.end}"
        elif finding.first is not None:
            records += f", from offset {finding.first} on"
        where = f"{records} ({where})" if where else records
    return f"{where or 'the directory'}: {finding.text}"


@command(
    short_help="Check everything that is stored.",
    help="Check everything stored in DIR, of a server that is stopped. Exits 5 on damage.",
)
@click.argument("directory", metavar="DIR")
def verify(settings: Settings, directory: str) -> int:
    if not os.path.isdir(directory):
        raise Stopped(Exit.NOT_FOUND, f"{directory} is no directory")
    out = settings.out
    files = Disk(directory)
    if not offline.is_data_directory(files):
        raise Stopped(Exit.NOT_FOUND, f"{directory} is no data directory: it has no journal")
    counted = offline.Counted()
    began = time.monotonic()
    with held(directory):
        damaged = _show(out, offline.verify(files, counted), counted)
    seconds = time.monotonic() - began
    out.say(
        f"{size(counted.bytes)} of segments in {seconds:.2f} s: "
        f"{'damage, see above' if damaged else 'all sound'}"
    )
    return Exit.CORRUPT if damaged else Exit.OK


def _show(out: Output, findings: Iterator[Finding], counted: Counted) -> int:
    """-> how many of them are damage."""
    damaged = 0
    rows = []
    for finding in findings:
        damaged += finding.damage
        if out.form is None or out.form == "table":
            mark = out.paint("damage", "31;1") if finding.damage else "note  "
            out.print(f"{mark}  {sentence(finding)}")
        else:
            rows.append(row(finding))
    if out.form == "json":
        out.one({"damaged": bool(damaged), "checked": vars(counted), "findings": rows})
    elif out.form == "jsonl":
        out.rows(rows)
    else:
        checked = ", ".join(f"{value} {name}" for name, value in vars(counted).items())
        out.print(f"checked {checked}")
    return damaged

"""``rlog process``: a command for each record, whose exit status is the verdict.

    0        done with it: committed
    75       EX_TEMPFAIL: again later
    65       EX_DATAERR: parked
    else     also death by a signal: a failure. It counts as an attempt, and ends ``rlog process``
             with 1; with a policy for failures (--max-attempts and its like) it is tried again

The record's value is the command's stdin, and what else it has is in its environment. A command
that cannot be run says nothing about a record: that counts no attempt.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import signal
import subprocess
import tempfile
from functools import cache
from typing import IO, TYPE_CHECKING, Any, Final, Literal, cast

import click

from rlog_client import COMMIT, RETRY, STOP, Backoff, Global, Park

from . import wire
from .consumers import telling_how_to_go_on
from .exits import Exit, Stopped
from .options import CONSUMER, SECONDS, WHENCE, Command, Settings, fail_empty, option, pass_settings
from .output import StdoutGone
from .whence import GRAMMAR

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from types import FrameType

    from rlog_client import Consumer, Record, Verdict

    from .output import Output
    from .whence import Place

# One variable may have 128 KiB on Linux, and a longer one would have no command start at all.
KEY_BYTES_MAX: Final = 100_000
_STOPPING: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_CUT_SHORT: Final = (*_STOPPING, signal.SIGKILL)


class CommandFailed(Exception):
    """The command ended with a status that is no verdict."""


@cache
def _failure(command: str, name: str) -> type[CommandFailed]:
    """A class for each way to fail: a consumer is paused when many records fail *alike*."""
    # Shown as sh.Exit3: there the command says more than the name of this module.
    return cast("type[CommandFailed]", type(name, (CommandFailed,), {"__module__": command}))


def failed(command: str, status: int) -> CommandFailed:
    """``status`` as ``subprocess`` has it: negative for a signal."""
    command = os.path.basename(command)
    if status >= 0:
        return _failure(command, f"Exit{status}")(f"{command} exited with {status}")
    try:
        name = signal.Signals(-status).name
    except ValueError:
        name = f"SIG{-status}"  # a real-time one, which has no name of its own
    return _failure(command, f"KilledBy{name}")(f"{command} was killed by {name}")


# --- being told to stop ---------------------------------------------------------------------


class Stopping:
    """Signals while commands run. The first lets the running one finish, the second ends it, and
    one that ignores that is killed by the third. While none runs every wait ends at once.

    A command has a process group of its own: Ctrl-C at a terminal is for whoever is in front, and
    the first one shall not reach it; and what it started itself ends with it.
    """

    def __init__(self, out: Output) -> None:
        self._out = out
        self._source: Consumer | None = None
        self._where = ""  # what the running command is busy with
        self._busy = False
        self._group = 0
        self._count = 0
        self.signal: int | None = None  # the first that came

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        before = {}
        for number in _STOPPING:
            # Whoever starts us in the background, or with nohup, has us ignore some.
            if signal.getsignal(number) is not signal.SIG_IGN:
                before[number] = signal.signal(number, self._come)
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    @contextlib.contextmanager
    def stops(self, source: Consumer) -> Iterator[None]:
        """From now on ``source`` is told to stop, where waiting for it would be interrupted."""
        self._source = source
        try:
            yield
        finally:
            self._source = None

    @contextlib.contextmanager
    def running(self, where: str) -> Iterator[None]:
        """While this lasts nothing is raised: a command may just be starting."""
        self._where = where
        self._busy = True
        try:
            yield
        finally:
            self._busy, self._group = False, 0

    def started(self, group: int) -> None:
        self._group = group
        if self._count > 1:
            self._end(signal.SIGTERM)  # it came while the command was being started

    def cut_short(self, status: int) -> bool:
        """Whether a command ended so because all of this is being stopped.

        Not only by us: a service manager sends the signal to every process it knows.
        """
        ends = (*(-number for number in _CUT_SHORT), *(128 + number for number in _CUT_SHORT))
        return self.signal is not None and status in ends

    def _come(self, number: int, _frame: FrameType | None) -> None:
        if number == signal.SIGHUP and self._count:
            return  # the terminal says it, and its shell again: nobody has asked twice
        self._count += 1
        if self.signal is None:
            self.signal = number
        if self._source is not None:
            self._source.stop()
        if self._busy:
            if self._count == 1:
                self._say(f"finishing {self._where}; once more ends it")
            elif self._group:
                self._end(signal.SIGTERM if self._count == 2 else signal.SIGKILL)
        elif self._source is None or self._count > 1:
            raise KeyboardInterrupt

    def _end(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._group, number)

    def _say(self, text: str) -> None:
        # Whoever reads it may be gone: no reason not to finish.
        with contextlib.suppress(StdoutGone, OSError):
            self._out.say(text)


# --- one record -----------------------------------------------------------------------------


class Runner:
    """Runs the command for one record after the other."""

    def __init__(self, command: Sequence[str], addr: str, stopping: Stopping) -> None:
        self._command = command
        self._stopping = stopping
        # What a variable of ours would say about a record of some outer `rlog process`.
        ours = (b"RLOG_KEY",)
        self._environment = {k: v for k, v in os.environb.items() if k not in ours}
        self._environment[b"RLOG_ADDR"] = addr.encode("utf-8", "surrogateescape")
        self.offset = -1  # of the last record that it was run for
        self.completed = 0
        self.parked = 0
        self.broken: OSError | None = None  # why the command could not be run

    def __call__(self, record: Record) -> Verdict:
        self.offset = record.offset
        with self._stopping.running(f"offset {record.offset} of log {record.log}"):
            try:
                status = self._run(record)
            except OSError as error:
                self.broken = error
                return STOP
        match status:
            case 0:
                self.completed += 1
                return COMMIT
            case os.EX_TEMPFAIL:
                return RETRY
            case os.EX_DATAERR:
                self.completed += 1
                self.parked += 1
                return Park(f"{self._command[0]} exited with {status}")
        if self._stopping.cut_short(status):
            return STOP
        raise failed(self._command[0], status)

    def _run(self, record: Record) -> int:
        with _file_of(record.value) as stdin:
            child = subprocess.Popen(
                self._command,
                stdin=stdin,
                env=self._environment | _variables(record),
                process_group=0,
            )
        self._stopping.started(child.pid)
        return child.wait()


def _file_of(value: bytes) -> IO[bytes]:
    """A file and no pipe: nobody has to wait until the command reads it, or does not.

    Open: the caller's to close, hence no ``with`` here.
    """
    if hasattr(os, "memfd_create"):
        file: IO[bytes] = open(os.memfd_create("record"), "w+b", buffering=0)  # noqa: SIM115 (the caller closes it)
    else:
        file = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115 (the caller closes it)
    try:
        rest = memoryview(value)
        while rest:
            rest = rest[file.write(rest) :]
        file.seek(0)
    except BaseException:
        file.close()
        raise
    return file


def _variables(record: Record) -> dict[bytes, bytes]:
    """What a command is told about its record. A key that no variable can hold is left out."""
    told = {
        b"RLOG_LOG": record.log.encode(),
        b"RLOG_OFFSET": b"%d" % record.offset,
        b"RLOG_TIMESTAMP_NS": b"%d" % record.timestamp_ns,
        b"RLOG_ATTEMPT": b"%d" % record.attempt,
        b"RLOG_EPOCH": b"%d" % record.epoch,
        b"RLOG_REDRIVEN": b"%d" % record.redriven,
    }
    key = record.key
    if key is not None and b"\0" not in key and len(key) <= KEY_BYTES_MAX:
        with contextlib.suppress(UnicodeDecodeError):
            key.decode()
            told[b"RLOG_KEY"] = key
    return told


# --- the verb -------------------------------------------------------------------------------


class _Process(Command):
    """Its flags end at ``--``: what is behind it is the command's, and none of it is looked at."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        asks_for_help = any(flag in args for flag in ctx.help_option_names)
        if "--" not in args and not asks_for_help and not ctx.resilient_parsing:
            raise click.UsageError("a command belongs behind --, as in: -- sh -c 'cat'", ctx)
        return super().parse_args(ctx, args)


_HELP: Final = """Run CMD once for each record of LOG, as the consumer ID.

The record's value is its stdin. RLOG_LOG, RLOG_OFFSET, RLOG_TIMESTAMP_NS, RLOG_ATTEMPT, RLOG_EPOCH
and RLOG_REDRIVEN (0 or 1) are in its environment, and RLOG_KEY where there is one that is text, so
that an `rlog append` inside keeps the key.

Exit 0 commits the record, 75 has it come again, 65 parks it. Anything else, a death by a signal
too, is a failure: it counts as an attempt, and `rlog process` exits with 1 and leaves the record
uncommitted. With --max-attempts, --pause-after, --retry-first or --retry-cap a failure is tried
again, like 75.

SIGTERM, SIGINT and SIGHUP let the command that runs finish; a second one ends it, and its record
is not committed. Exit status: 0 after SIGTERM and SIGHUP, 130 after SIGINT; 1 after a failure,
whatever CMD's own status was; 3 where records were removed before they were read, 5 where they are
damaged; 6 when the consumer is held by somebody else, lost to somebody else, or paused; 127 when
there is no CMD, 126 when it cannot be run.
"""


@click.command("process", cls=_Process, short_help="Run a command for each record.", help=_HELP)
@click.argument("log")
@click.argument("id", type=CONSUMER)
@click.argument(
    "command", nargs=-1, required=True, type=click.UNPROCESSED, metavar="-- CMD [ARG]..."
)
@option("-n", "--limit", type=click.IntRange(min=0), help="End when so many are completed.")
@option("--block/--no-block", default=True, help="Wait for records (the default), or end there.")
@option(
    "--start",
    type=WHENCE,
    default="start",
    show_default=True,
    help=f"Where a cursor begins that does not exist yet: {GRAMMAR}.",
)
@option(
    "--shared",
    is_flag=True,
    help="As one of many, started likewise: in order per key, and each record goes to one of them.",
)
@option("--standby", is_flag=True, help="Held by somebody else: wait until it is free.")
@option("--takeover", is_flag=True, help="Held by somebody else: end that claim.")
@option("--retry-first", type=SECONDS, help="Before the second attempt, then doubled.  [0.5]")
@option("--retry-cap", type=SECONDS, help="The longest.  [60]")
@option(
    "--max-attempts",
    type=click.IntRange(min=0),
    help="Then it is exhausted; 0: never.  [with a policy: 5]",
)
@option(
    "--pause-after",
    type=click.IntRange(min=0),
    help="So many exhausted alike in a row pause the consumer; 0: never.  [with a policy: 10]",
)
@option(
    "--on-exhausted",
    type=click.Choice(["park", "skip", "raise"]),
    default="park",
    show_default=True,
    help="What becomes of a record after --max-attempts.",
)
@option("--hand-seconds", type=SECONDS, help="A record in hand for longer ends the claim.")
@fail_empty()
@pass_settings
def process(
    settings: Settings,
    log: str,
    id: str | Global,
    command: tuple[str, ...],
    limit: int | None,
    block: bool,
    start: Place,
    shared: bool,
    standby: bool,
    takeover: bool,
    retry_first: float | None,
    retry_cap: float | None,
    max_attempts: int | None,
    pause_after: int | None,
    on_exhausted: Literal["park", "skip", "raise"],
    hand_seconds: float | None,
    fail_empty: bool,
) -> int:
    if shared and (standby or takeover):
        raise click.UsageError("--shared needs neither --standby nor --takeover: there may be many")
    retry = _backoff(retry_first, retry_cap, max_attempts, pause_after)
    _check_runs(command[0])
    out = settings.out
    stopping = Stopping(out)
    runner = None
    try:
        with stopping.listening(), settings.client() as client:
            runner = Runner(command, wire.address(client), stopping)
            source = client.log(log)
            whence = wire.whence_of(source, start)
            with (
                source.consumer(
                    id,
                    start=whence,
                    block=block,
                    shared=shared,
                    standby=standby,
                    takeover=takeover,
                    hand_seconds=hand_seconds,
                ) as consumer,
                stopping.stops(consumer),
                contextlib.nullcontext() if shared else telling_how_to_go_on(log, id),
            ):
                completed = consumer.process(
                    runner, limit=limit, retry=retry, on_exhausted=on_exhausted
                )
    except CommandFailed as error:
        assert runner is not None, "it was the runner that raised it"
        _tell(out, runner.completed, runner.parked)
        text = f"{error} at offset {runner.offset} of log {log}"
        raise Stopped(Exit.ERROR, text) from None
    except KeyboardInterrupt:
        return _stopped_by(stopping)
    _tell(out, completed, runner.parked)
    if runner.broken is not None:
        raise _not_run(command[0], runner.broken)
    if stopping.signal is not None:
        return _stopped_by(stopping)
    return Exit.EMPTY if fail_empty and not completed else Exit.OK


def _backoff(
    first: float | None, cap: float | None, max_attempts: int | None, pause_after: int | None
) -> Backoff | None:
    """A policy, if any of it is given."""
    given: dict[str, Any] = {
        "first": first,
        "cap": cap,
        "max_attempts": max_attempts,
        "pause_after": pause_after,
    }
    given = {name: value or None for name, value in given.items() if value is not None}
    try:
        return Backoff(**given) if given else None
    except ValueError as error:
        raise click.UsageError(f"--retry-first and --retry-cap: {error}") from None


def _check_runs(command: str) -> None:
    """Before anything is claimed: a command that is not there says nothing about a record."""
    if shutil.which(command) is None:
        there = os.sep in command and os.path.exists(command)
        kind = PermissionError if there else FileNotFoundError
        number = errno.EACCES if there else errno.ENOENT
        raise _not_run(command, kind(number, os.strerror(number)))


def _not_run(command: str, error: OSError) -> Stopped:
    code = Exit.ERROR
    if isinstance(error, FileNotFoundError):
        code = Exit.NO_COMMAND
    elif isinstance(error, PermissionError) or error.errno == errno.ENOEXEC:
        code = Exit.CANNOT_RUN
    return Stopped(code, f"{command}: {error.strerror}")


def _stopped_by(stopping: Stopping) -> Exit:
    """Told to end, it has ended: only Ctrl-C is for the shell to know, which may be in a loop."""
    return Exit.INTERRUPTED if stopping.signal in (None, signal.SIGINT) else Exit.OK


def _tell(out: Output, completed: int, parked: int) -> None:
    records = "record" if completed == 1 else "records"
    out.say(f"{completed} {records} completed" + (f", {parked} of them parked" if parked else ""))

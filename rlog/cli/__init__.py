"""The command line. A verb's module is imported when the verb is used: a read starts fast, and
without trio.

Exit codes: 0 ok; 1 error; 2 usage; 3 not found, out of range; 4 unreachable, timed out, outcome
unknown; 5 corruption; 6 conflict, busy, fenced, exists, paused, locked; 7 partly done; 8 nothing
matched, with --fail-empty; 130 and 141 for SIGINT and SIGPIPE. Of ``process`` also 126 and 127: its
command cannot be run, or is not there.
"""

from __future__ import annotations

import logging
import os
import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

import click
from click.shell_completion import shell_complete

from rlog_client import __version__
from rlog_client import errors as client_errors

from ..files import Locked
from ..journal import Refused
from .exits import Exit, Stopped
from .options import Group, Settings
from .output import StdoutGone, no_traceback_at_exit

if TYPE_CHECKING:
    from collections.abc import Sequence

# verb -> the module that holds it
_VERBS: Final = {
    "serve": "serve",
    "append": "append",
    "tail": "read",
    "cat": "read",
    "inspect": "inspect",
    "logs": "admin",
    "consumers": "consumers",
    "producers": "consumers",
    "process": "process",
    "verify": "verify",
    "repair": "repair",
    "doctor": "doctor",
    "ping": "admin",
    "version": "admin",
    "completion": "admin",
}
COMPLETE_VARIABLE: Final = "_RLOG_COMPLETE"


class _Root(Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _VERBS:
            return None
        module = import_module(f"{__name__}.{_VERBS[cmd_name]}")
        verb = getattr(module, cmd_name)
        assert isinstance(verb, click.Command)
        return verb


root: Final = _Root(
    "rlog",
    environment=True,
    no_args_is_help=True,
    help="An append-only log server with consumer groups.",
    epilog="Every flag also reads RLOG_ and its name: --data-dir is RLOG_DATA_DIR.",
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
root.params.append(
    click.Option(
        ["-V", "--version"],
        is_flag=True,
        is_eager=True,
        expose_value=False,
        help="Print the version.",
        callback=lambda ctx, _param, value: _print_version(ctx) if value else None,
    )
)


def _print_version(ctx: click.Context) -> None:
    click.echo(f"rlog {__version__}")
    ctx.exit()


# With click 8.1 it is no error, and exits 0.
_NO_ARGUMENTS: Final[Any] = getattr(click.exceptions, "NoArgsIsHelpError", ())


# --- the way out ----------------------------------------------------------------------------

_EXITS: Final[tuple[tuple[type[BaseException] | tuple[type[BaseException], ...], Exit], ...]] = (
    (client_errors.InvalidRequest, Exit.USAGE),
    (
        (client_errors.NotFound, client_errors.OffsetOutOfRange, FileNotFoundError),
        Exit.NOT_FOUND,
    ),
    (
        (client_errors.ConnectionLost, client_errors.TimedOut, client_errors.OutcomeUnknown),
        Exit.UNREACHABLE,
    ),
    ((client_errors.CorruptData, Refused), Exit.CORRUPT),
    (
        (
            client_errors.Conflict,
            client_errors.Busy,
            client_errors.Fenced,
            client_errors.AlreadyExists,
            client_errors.Paused,
            Locked,
        ),
        Exit.CONFLICT,
    ),
    ((client_errors.RlogError, OSError), Exit.ERROR),
)


def exit_of(error: BaseException) -> Exit | None:
    """The exit code of an error that is told in a line; None for one that nobody expected."""
    for kinds, code in _EXITS:
        if isinstance(error, kinds):
            return code
    return None


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command: its exit code."""
    settings = Settings()
    _fill_descriptors()
    try:
        try:
            return _run(list(sys.argv[1:] if arguments is None else arguments), settings)
        except (KeyboardInterrupt, click.Abort):
            return Exit.INTERRUPTED
        except StdoutGone:
            raise
        except BaseException as error:
            return _explain(error, settings)
    except (StdoutGone, BrokenPipeError):
        no_traceback_at_exit()
        return Exit.PIPE


def _fill_descriptors() -> None:
    """A descriptor that our caller closed would be the next one we open: the server's socket. What
    stands in for it can do nothing, so that using it is an error (but for talk: that is lost)."""
    for number, mode in enumerate((os.O_WRONLY, os.O_RDONLY, os.O_WRONLY)):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, mode)


def _run(arguments: list[str], settings: Settings) -> int:
    if instruction := os.environ.get(COMPLETE_VARIABLE):
        return shell_complete(root, {}, "rlog", COMPLETE_VARIABLE, instruction)
    _log_to_stderr(settings, arguments)
    with root.make_context("rlog", arguments, obj=settings) as ctx:
        result: Any = root.invoke(ctx)
        return result if isinstance(result, int) else Exit.OK


def _log_to_stderr(settings: Settings, arguments: Sequence[str]) -> None:
    """What the libraries have to say, as talk: with -q errors, with -v everything."""
    logging.basicConfig(format="rlog: %(message)s", handlers=[_Talk(settings)])
    # The flags are not parsed yet, and need not be: the handler looks at the settings they make.
    logging.getLogger("rlog_client").setLevel(logging.INFO)


class _Talk(logging.Handler):
    def __init__(self, settings: Settings) -> None:
        super().__init__()
        self._settings = settings

    def emit(self, record: logging.LogRecord) -> None:
        level = logging.WARNING
        if self._settings.quiet:
            level = logging.ERROR
        elif self._settings.verbose:
            level = logging.DEBUG
        if record.levelno >= level:
            self._settings.out.complain(self.format(record))


def _explain(error: BaseException, settings: Settings) -> int:
    """Say what went wrong; anything that is no error of ours goes on, with its traceback."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]  # of a nursery: the first is as good as any
    if isinstance(error, click.exceptions.Exit):
        return error.exit_code
    if isinstance(error, Stopped):
        if str(error):
            settings.out.complain(str(error), error=True)
        return error.code
    if isinstance(error, click.ClickException):
        return _explain_usage(error, settings)
    if isinstance(error, KeyboardInterrupt):
        return Exit.INTERRUPTED
    code = exit_of(error)
    if code is None:
        raise error
    if isinstance(error, OSError) and error.strerror and error.filename is not None:
        text = f"{os.fsdecode(error.filename)}: {error.strerror}"
    else:
        text = str(error) or type(error).__name__
    if isinstance(error, client_errors.RlogError):
        settings.out.detail(f"{type(error).__name__} {error.details() or ''}".rstrip())
    settings.out.complain(text, error=True)
    for note in getattr(error, "__notes__", ()):
        settings.out.say(note)
    return code


def _explain_usage(error: click.ClickException, settings: Settings) -> int:
    if isinstance(error, _NO_ARGUMENTS):
        error.show()
        return Exit.USAGE
    settings.out.complain(error.format_message(), error=True)
    if isinstance(error, click.UsageError):
        # (click says of some mistakes only later, or never, in which command they are.)
        where = error.ctx.command_path if error.ctx is not None else "rlog"
        settings.out.say(f"Try: {where} --help")
        return Exit.USAGE
    return Exit.ERROR

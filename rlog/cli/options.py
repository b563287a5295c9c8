"""What all verbs share: flags that also come from the environment, and the settings they make.

Every flag reads ``RLOG_`` and its long name, whatever the verb: ``--data-dir`` is RLOG_DATA_DIR.
The common ones may stand before the verb or behind it; the one nearer to the end counts.
"""

from __future__ import annotations

import os
import sys
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final, TypeVar, cast

import click

import rlog_client
from rlog_client import GLOBAL, Global
from rlog_client.model import GLOBAL_ID
from rlog_client.transport import DEFAULT_URL, parse_url

from ..policy import parse_bytes, parse_policy, parse_seconds
from .output import Output
from .template import InvalidTemplate, compile_template
from .whence import InvalidWhence, Place, parse

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from rlog_client import Client, Record

TIMEOUT_SECONDS: Final = 10.0
if TYPE_CHECKING:
    ParamType = click.ParamType[Any]
else:
    ParamType = click.ParamType  # not to be subscripted before click 8.2

FunctionT = TypeVar("FunctionT", bound="Callable[..., Any]")


class Settings:
    """What the common flags say. ``main`` makes one, the flags fill it in."""

    def __init__(self) -> None:
        self.addr: str | None = None
        self.timeout: float | None = TIMEOUT_SECONDS
        self.output: Any = None
        self.quiet = False
        self.verbose = False
        self.color = "auto"

    @property
    def out(self) -> Output:
        return Output(
            form=self.output,
            quiet=self.quiet,
            verbose=self.verbose,
            color=self.color,
            no_color=bool(os.environ.get("NO_COLOR")),
        )

    @property
    def url(self) -> str | None:
        """Checked here, so that a bad one is a mistake in usage."""
        try:
            return str(parse_url(self.addr))
        except ValueError as error:
            raise click.UsageError(f"--addr {error}") from None

    @contextmanager
    def client(self) -> Iterator[Client]:
        with rlog_client.connect(self.url, timeout=self.timeout) as client:
            yield client


def confirm(settings: Settings, what: str, yes: bool) -> None:
    """Ask before something is destroyed: a person at a terminal; anyone else has to say --yes."""
    if yes:
        return
    if not (sys.stdin.isatty() and os.isatty(2)):
        raise click.UsageError(f"{what}: this cannot be undone; say --yes")
    if not click.confirm(f"{what}: this cannot be undone. Go on?", err=True):
        raise click.Abort


# --- types ----------------------------------------------------------------------------------


class _Size(ParamType):
    name = "size"

    def convert(self, value: Any, param: Any, ctx: Any) -> int:
        number = value if isinstance(value, int) else parse_bytes(value)
        if number is None or number < 1:
            self.fail(f"{value!r}: a size is a number of bytes, with KiB, MiB, GiB...", param, ctx)
        return number


class _Seconds(ParamType):
    name = "seconds"

    def __init__(self, *, or_zero: bool = False) -> None:
        self._or_zero = or_zero

    def convert(self, value: Any, param: Any, ctx: Any) -> float:
        number = value if isinstance(value, float) else parse_seconds(value)
        if number is None or (number <= 0 and not self._or_zero):
            least = "a duration" if self._or_zero else "a duration is more than 0"
            self.fail(f"{value!r}: {least}: 10, 1.5s, 2m, 7d", param, ctx)
        return number


class Nothing:
    """Said by ``none``: an option is to have no value."""


NONE: Final = Nothing()


class _OrNone(ParamType):
    """What ``inner`` takes, or ``none``."""

    def __init__(self, inner: ParamType) -> None:
        self.inner = inner
        self.name = f"{inner.name}|none"

    def convert(self, value: Any, param: Any, ctx: Any) -> Any:
        return NONE if value in ("none", NONE) else self.inner.convert(value, param, ctx)


class _Sync(ParamType):
    name = "policy"

    def convert(self, value: Any, param: Any, ctx: Any) -> str:
        try:
            return parse_policy(value).text
        except rlog_client.InvalidRequest as error:
            self.fail(str(error), param, ctx)


class _Whence(ParamType):
    name = "whence"

    def convert(self, value: Any, param: Any, ctx: Any) -> Place:
        if not isinstance(value, str):
            return cast("Place", value)  # click converts a value that it has converted before
        try:
            return parse(value, time.time_ns())
        except InvalidWhence as error:
            self.fail(str(error), param, ctx)


class _Template(ParamType):
    name = "template"

    def convert(self, value: Any, param: Any, ctx: Any) -> Callable[[Sequence[Record]], bytes]:
        if not isinstance(value, str):
            return cast("Callable[[Sequence[Record]], bytes]", value)
        try:
            return compile_template(value)
        except InvalidTemplate as error:
            self.fail(str(error), param, ctx)


class _Consumer(ParamType):
    name = "id"

    def convert(self, value: Any, param: Any, ctx: Any) -> str | Global:
        return GLOBAL if value == GLOBAL_ID else value


SIZE: Final = _Size()
SIZE_OR_NONE: Final = _OrNone(SIZE)
SECONDS: Final = _Seconds()
PAUSE: Final = _Seconds(or_zero=True)
SECONDS_OR_NONE: Final = _OrNone(SECONDS)
SYNC: Final = _Sync()
WHENCE: Final = _Whence()
TEMPLATE: Final = _Template()
CONSUMER: Final = _Consumer()


# --- flags ----------------------------------------------------------------------------------


def variable_of(declarations: Sequence[str]) -> str | None:
    """RLOG_DATA_DIR for --data-dir."""
    for declaration in declarations:
        if declaration.startswith("--"):
            name = declaration.split("/")[0].removeprefix("--")
            return f"RLOG_{name.replace('-', '_').upper()}"
    return None


def option(*declarations: str, **attributes: Any) -> Callable[[FunctionT], FunctionT]:
    """A flag that also reads its variable."""
    attributes.setdefault("envvar", variable_of(declarations))
    return click.option(*declarations, **attributes)


def _remember(ctx: click.Context, param: click.Parameter, value: Any) -> None:
    if value not in (None, False) and param.name is not None:
        setattr(ctx.ensure_object(Settings), param.name, value)


_ADDR_HELP: Final = f"rlog://HOST[:PORT] or rlog+unix:///PATH.  [default: {DEFAULT_URL}]"
_TIMEOUT_HELP: Final = (
    f"For connecting, and for each request.  [default: {TIMEOUT_SECONDS:g} seconds]"
)
# Declarations and attributes of the flags of every verb.
_COMMON: Final[tuple[tuple[tuple[str, ...], dict[str, Any]], ...]] = (
    (("-a", "--addr"), {"metavar": "URL", "help": _ADDR_HELP}),
    (("--timeout",), {"type": SECONDS, "help": _TIMEOUT_HELP}),
    (
        ("-o", "--output"),
        {
            "type": click.Choice(["table", "json", "jsonl"]),
            "help": "For people, or for programs: one JSON document, or one a line.",
        },
    ),
    (("-q", "--quiet"), {"is_flag": True, "help": "No talk on stderr, but for errors."}),
    (("-v", "--verbose"), {"is_flag": True, "help": "More of it."}),
    (
        ("--color",),
        {
            "type": click.Choice(["auto", "always", "never"]),
            "help": "auto: at a terminal.  [default: auto]",
        },
    ),
)


def _common(*, environment: bool) -> list[click.Parameter]:
    """Only the outermost read the environment: else it would overrule a flag before the verb."""
    return [
        click.Option(
            list(declarations),
            expose_value=False,
            callback=_remember,
            envvar=variable_of(declarations) if environment else None,
            **attributes,
        )
        for declarations, attributes in _COMMON
    ]


class Command(click.Command):
    def __init__(self, *args: Any, **attributes: Any) -> None:
        super().__init__(*args, **attributes)
        self.params.extend(_common(environment=False))


class Group(click.Group):
    command_class = Command

    def __init__(self, *args: Any, environment: bool = False, **attributes: Any) -> None:
        super().__init__(*args, **attributes)
        self.params.extend(_common(environment=environment))


Group.group_class = Group


def command(**attributes: Any) -> Callable[[Callable[..., Any]], Command]:
    """A verb. Its function takes the settings first."""

    def decorate(function: Callable[..., Any]) -> Command:
        return click.command(cls=Command, **attributes)(pass_settings(function))

    return decorate


def pass_settings(function: Callable[..., Any]) -> Callable[..., Any]:
    return click.make_pass_decorator(Settings, ensure=True)(function)


def fail_empty() -> Callable[[FunctionT], FunctionT]:
    return option("--fail-empty", is_flag=True, help="Exit 8 when there was nothing.")


def yes_flag(function: FunctionT) -> FunctionT:
    return option("--yes", is_flag=True, help="Do not ask.")(function)


def dry_run(function: FunctionT) -> FunctionT:
    return option("--dry-run", is_flag=True, help="Only say what would be done.")(function)

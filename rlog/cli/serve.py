"""``rlog serve``: a server's flags, its log lines, its end. The one verb that loads trio."""

from __future__ import annotations

import logging
import time
from typing import Any, Final

import click
import msgspec

from ..config import AddressInUse, Config, Listen
from ..driver import Limits
from ..files import PAGE
from ..policy import parse_policy
from .exits import Exit, Stopped
from .options import SIZE, SYNC, ParamType, Settings, command, option
from .output import rfc3339

JOURNAL_FILE_MIN: Final = 64 * 1024
SIZE_MAX: Final = 1 << 30
_LEVELS: Final = ("debug", "info", "warning", "error")


class _Listen(ParamType):
    name = "address"

    def convert(self, value: Any, param: Any, ctx: Any) -> Listen:
        if isinstance(value, Listen):
            return value
        # A client's URL says the same: what the server prints may be given back to it.
        text = value.removeprefix("rlog://")
        if value.startswith("rlog+unix://"):
            text = f"unix:{value.removeprefix('rlog+unix://')}"
        try:
            return Listen(text)
        except ValueError as error:
            self.fail(str(error), param, ctx)


class _TextLines(logging.Formatter):
    """2026-01-31T08:00:00.000Z INFO rlog.server: serving ..."""

    def formatTime(self, record: logging.LogRecord, datefmt: str | None = None) -> str:
        return rfc3339(round(record.created * 1e6) * 1000)


class _JsonLines(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": rfc3339(round(record.created * 1e6) * 1000, 6),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return msgspec.json.encode(line).decode()


def _set_up_logging(form: str, level: str) -> None:
    handler = logging.StreamHandler()
    handler.setFormatter(
        _JsonLines()
        if form == "json"
        else _TextLines("%(asctime)s %(levelname)s %(name)s: %(message)s")
    )
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    logging.Formatter.converter = time.gmtime


@command(help="Serve a data directory until SIGTERM or SIGINT.")
@option("--data-dir", required=True, metavar="DIR", help="Made if it is not there.")
@option(
    "--listen",
    type=_Listen(),
    multiple=True,
    metavar="ADDR",
    default=["127.0.0.1:7171"],
    show_default=True,
    help="HOST:PORT (port 0: a free one) or unix:PATH. Several are possible.",
)
@option(
    "--sync",
    type=SYNC,
    default="always",
    show_default=True,
    metavar="POLICY",
    help="always, periodic:1s, bytes:1MiB or never: for logs without a policy of their own.",
)
@option(
    "--journal-file-size",
    type=SIZE,
    default="64MiB",
    show_default=True,
    help="Of each journal file; counts only when the directory is made.",
)
@option(
    "--batch-bytes-max",
    type=SIZE,
    default="8MiB",
    show_default=True,
    help="The largest batch that is taken; never more than fits in a journal file.",
)
@option(
    "--record-bytes-max",
    type=SIZE,
    default="1MiB",
    show_default=True,
    help="The largest record that is taken; never more than fits in a batch.",
)
@option(
    "--log-format",
    type=click.Choice(["text", "json"]),
    default="text",
    show_default=True,
    help="Of the server's own log, on stderr.",
)
@option(
    "--log-level",
    type=click.Choice(_LEVELS),
    default="info",
    show_default=True,
    help="What is less is not logged.",
)
def serve(
    settings: Settings,
    data_dir: str,
    listen: tuple[Listen, ...],
    sync: str,
    journal_file_size: int,
    batch_bytes_max: int,
    record_bytes_max: int,
    log_format: str,
    log_level: str,
) -> None:
    if not JOURNAL_FILE_MIN <= journal_file_size <= SIZE_MAX or journal_file_size % PAGE:
        raise click.BadParameter(
            f"a multiple of {PAGE} from 64KiB to 1GiB, not {journal_file_size}",
            param_hint="--journal-file-size",
        )
    limits = Limits(parse_policy(sync), journal_file_size, batch_bytes_max, record_bytes_max)
    _set_up_logging(log_format, log_level)
    import trio

    from ..server import serve as run

    try:
        trio.run(run, Config(data_dir, listen, limits))
    except AddressInUse as error:
        raise Stopped(Exit.CONFLICT, str(error)) from None
    except ValueError as error:
        raise Stopped(Exit.ERROR, str(error)) from None

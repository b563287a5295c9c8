"""Decisions about logs: made, opened, altered, trimmed, deleted, listed."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final

import msgspec

from rlog_client import model, protocol
from rlog_client.errors import AlreadyExists, InvalidRequest, NotFound

from .. import facts, state
from ..log import LogFiles
from ..policy import parse_policy
from ..segment import path
from .desk import Answer, listing, refusing, resolve

if TYPE_CHECKING:
    from .desk import Books, Desk, Make, Waiting

_LOG_NAME: Final = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")
ROLL_MIN: Final = 4096
ROLL_MAX: Final = 1 << 40


def open_log(desk: Desk, waiting: Waiting, control: protocol.OpenLog) -> Make:
    log = desk.state.by_name(control.name)
    if log is None and control.create:
        log = _create(desk, control)
    elif log is None:
        raise NotFound(f"there is no log {control.name!r}")
    elif control.create:
        _compare(desk.books, log, control.options)
    return _log_reply(desk, log)


def _create(desk: Desk, control: protocol.OpenLog) -> state.Log:
    desk.writable()
    if not _LOG_NAME.fullmatch(control.name):
        raise InvalidRequest(
            "a log's name is 1 to 63 of a-z 0-9 . _ - and begins with a letter or a digit: "
            f"{control.name!r}"
        )
    options = _options(facts.Options(), control.options)
    log_id = desk.state.next_log
    files = LogFiles(desk.books.handles, log_id)
    with refusing(f"log {control.name!r}"):
        files.make()
    desk.fact(facts.Created(log_id, control.name, options))
    desk.books.files[log_id] = files
    desk.books.begin(desk.state.logs[log_id])
    return desk.state.logs[log_id]


def _options(old: facts.Options, changes: dict[str, Any]) -> facts.Options:
    try:
        options = msgspec.convert({**msgspec.to_builtins(old), **changes}, facts.Options)
    except msgspec.ValidationError as error:
        raise InvalidRequest(f"log options: {error}") from None
    if options.sync is not None:
        parse_policy(options.sync)
    if options.compact and not options.key_index:
        raise InvalidRequest("compact needs key_index: it is by key")
    if not ROLL_MIN <= options.file_roll_size <= ROLL_MAX:
        raise InvalidRequest(f"file_roll_size is {ROLL_MIN} to {ROLL_MAX} bytes")
    return options


def _compare(books: Books, log: state.Log, asked: dict[str, Any]) -> None:
    """Opening with ``create`` asks for nothing that the log is not."""
    _options(log.options, asked)
    there = _effective(books, log)
    differences = {
        name: [there[name], value] for name, value in asked.items() if there[name] != value
    }
    if differences:
        text = ", ".join(f"{name} is {old}, not {new}" for name, (old, new) in differences.items())
        raise AlreadyExists(f"log {log.name!r} exists: {text}", differences=differences)


def _effective(books: Books, log: state.Log) -> dict[str, Any]:
    return {
        "sync": books.policy_of(log).text,
        "file_roll_size": log.options.file_roll_size,
        "key_index": log.options.key_index,
        "compact": log.options.compact,
    }


def _info(books: Books, log: state.Log) -> model.LogInfo:
    return model.LogInfo(
        name=log.name,
        id=log.id,
        first=log.first,
        end=log.end,
        synced_end=books.synced_end[log.id],
        bytes=log.bytes,
        options=_effective(books, log),
        owner=log.owner.holder.name if log.owner.held and log.owner.holder is not None else None,
    )


def _log_reply(desk: Desk, log: state.Log) -> Make:
    info = _info(desk.books, log)
    return lambda _synced: Answer(protocol.LogReply(info))


def list_logs(desk: Desk, waiting: Waiting, control: protocol.ListLogs) -> Make:
    infos = [_info(desk.books, log) for log in desk.state.logs.values()]
    return lambda _synced: listing(sorted(infos, key=lambda info: info.name))


def get_log(desk: Desk, waiting: Waiting, control: protocol.GetLog) -> Make:
    return _log_reply(desk, desk.log(control.log))


def alter_log(desk: Desk, waiting: Waiting, control: protocol.AlterLog) -> Make:
    desk.writable()
    log = desk.log(control.log)
    options = _options(log.options, control.options)
    if options.key_index != log.options.key_index:
        raise InvalidRequest("key_index is decided when a log is made")
    desk.fact(facts.Altered(log.id, options))
    return _log_reply(desk, log)


def trim_log(desk: Desk, waiting: Waiting, control: protocol.TrimLog) -> Make:
    desk.writable()
    log = desk.log(control.log)
    before = resolve(log, control.before, log.end)
    # A parked record stays in place until it is done with.
    parked = (offset for cursor in log.cursors.values() for offset in cursor.parked)
    first = log.trim_to(min([before, *parked]))
    gone = [s.base for i, s in enumerate(log.segments) if log.segment_end(i) <= first]
    if gone:
        books, files = desk.books, desk.books.files[log.id]
        desk.fact(facts.Trimmed(log.id, first))
        desk.effects.append(lambda: files.trim(gone))
        desk.effects.append(lambda: books.begin_at(log.id, first))
    end = log.end
    return lambda _synced: Answer(protocol.Place(first, first, end))


def delete_log(desk: Desk, waiting: Waiting, control: protocol.DeleteLog) -> Make:
    desk.writable()
    log = desk.log(control.log)
    books = desk.books
    desk.fact(facts.Deleted(log.id))

    def remove() -> None:
        for key in [key for key in books.holders if key[0] == log.id]:
            books.ending(key)()
        for key in [key for key in books.waiting if key[0] == log.id]:
            books.call(key)
        for name in log.cursors:
            books.forget_due((log.id, name))
        books.visible.pop(log.id)
        books.synced_end.pop(log.id)
        books.first.pop(log.id)
        books.raised.add(log.id)
        books.files.pop(log.id).delete()

    desk.effects.append(remove)
    return lambda _synced: Answer(protocol.Done())


def list_segments(desk: Desk, waiting: Waiting, control: protocol.ListSegments) -> Make:
    log = desk.log(control.log)
    infos = [
        protocol.SegmentInfo(
            s.base,
            s.bytes,
            s.time_max_ns,
            path(log.id, s.base, s.generation),
            s.generation,
            s.absent,
        )
        for s in log.segments
    ]
    return lambda _synced: listing(infos)

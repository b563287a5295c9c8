"""Decisions about logs: made, opened, altered, trimmed, deleted, listed."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final

import msgspec

from rlog_client import model, protocol
from rlog_client.errors import AlreadyExists, InvalidRequest, NotFound

from .. import facts, retention, state
from ..log import LogFiles
from ..policy import parse_policy
from ..segment import path
from . import members, trims
from .desk import Answer, listing, refusing

if TYPE_CHECKING:
    from .desk import Books, Desk, Make, Waiting

_LOG_NAME: Final = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")
ROLL_MIN: Final = state.ROLL_MIN
ROLL_MAX: Final = 1 << 40
TOTAL_MIN: Final = state.ROLLS * ROLL_MIN
TOTAL_MAX: Final = 1 << 50
AGE_SECONDS_MIN: Final = 1.0
AGE_SECONDS_MAX: Final = 100 * 366 * 86_400.0
PROTECTED_MAX: Final = 32


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
    if control.dry:
        return state.Log(0, control.name, options)
    files = LogFiles(desk.books.handles, log_id)
    with refusing(f"log {control.name!r}"):
        files.make()
    desk.fact(facts.Created(log_id, control.name, options))
    desk.books.files[log_id] = files
    desk.books.begin(desk.state.logs[log_id])
    desk.books.ring_at(desk.books.watch.alarm)
    return desk.state.logs[log_id]


def _options(old: facts.Options, changes: dict[str, Any]) -> facts.Options:
    try:
        options = msgspec.convert({**msgspec.to_builtins(old), **changes}, facts.Options)
        options = msgspec.structs.replace(options, protected=tuple(sorted({*options.protected})))
    except msgspec.ValidationError as error:
        raise InvalidRequest(f"log options: {error}") from None
    if options.sync is not None:
        parse_policy(options.sync)
    if options.compact and not options.key_index:
        raise InvalidRequest("compact needs key_index: it is by key")
    if not ROLL_MIN <= options.file_roll_size <= ROLL_MAX:
        raise InvalidRequest(f"file_roll_size is {ROLL_MIN} to {ROLL_MAX} bytes")
    _check_retention(options)
    return options


def _check_retention(options: facts.Options) -> None:
    total, age = options.max_total_bytes, options.max_file_age
    minimum = options.blocking_minimum_retention
    if total is not None and not TOTAL_MIN <= total <= TOTAL_MAX:
        raise InvalidRequest(f"max_total_bytes is {TOTAL_MIN} to {TOTAL_MAX} bytes, or None")
    if age is not None and not AGE_SECONDS_MIN <= age <= AGE_SECONDS_MAX:
        text = f"max_file_age is {AGE_SECONDS_MIN:g} to {AGE_SECONDS_MAX:.0f} seconds, or None"
        raise InvalidRequest(text)
    if minimum is not None and not 0 < minimum <= AGE_SECONDS_MAX:
        text = f"more than 0 and up to {AGE_SECONDS_MAX:.0f} seconds, or None"
        raise InvalidRequest(f"blocking_minimum_retention is {text}")
    if minimum is not None and age is not None and age < minimum:
        raise InvalidRequest(
            f"max_file_age ({age:g} s) is shorter than blocking_minimum_retention ({minimum:g} s)"
        )
    if len(options.protected) > PROTECTED_MAX:
        raise InvalidRequest(f"at most {PROTECTED_MAX} consumers are protected")
    for name in options.protected:
        if name != model.GLOBAL_ID:
            model.check_consumer(name, "a protected consumer's ID")


def _compare(books: Books, log: state.Log, asked: dict[str, Any]) -> None:
    """Opening with ``create`` asks for nothing that the log is not."""
    wanted = _effective(books, _options(log.options, asked))
    there = _effective(books, log.options)
    differences = {
        name: [there[name], wanted[name]] for name in asked if there[name] != wanted[name]
    }
    if differences:
        text = ", ".join(f"{name} is {old}, not {new}" for name, (old, new) in differences.items())
        raise AlreadyExists(f"log {log.name!r} exists: {text}", differences=differences)


def _effective(books: Books, options: facts.Options) -> dict[str, Any]:
    return {
        "sync": books.policy.text if options.sync is None else options.sync,
        "file_roll_size": options.file_roll_size,
        "key_index": options.key_index,
        "compact": options.compact,
        "max_total_bytes": options.max_total_bytes,
        "max_file_age": options.max_file_age,
        "blocking_minimum_retention": options.blocking_minimum_retention,
        "protected": list(options.protected),
    }


def _info(books: Books, log: state.Log) -> model.LogInfo:
    noted = books.watch.held.get(log.id)
    return model.LogInfo(
        name=log.name,
        id=log.id,
        first=log.first,
        end=log.end,
        synced_end=books.synced_end.get(log.id, 0),
        bytes=log.bytes,
        options=_effective(books, log.options),
        owner=log.owner.holder.name if log.owner.held and log.owner.holder is not None else None,
        retention=noted.held.text if noted is not None else None,
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
    if control.dry:
        return _altered(desk, log, options)
    if log.options.max_file_age is None and options.max_file_age is not None:
        _believe(desk)
    desk.fact(facts.Altered(log.id, options))
    desk.books.watch.follow(log, desk.now)
    desk.books.ring_at(desk.books.watch.alarm)
    return _log_reply(desk, log)


def _believe(desk: Desk) -> None:
    """Whoever turns the removal by age on by hand says that the clock is right. Not so one who
    makes a log, or names the age that it has: programs do that at every start.
    """
    difference_ns = desk.now_ns - desk.uptime_ns
    believed_ns, stored_ns = desk.state.difference_ns, desk.books.watch.stored_ns
    if retention.doubt_of(difference_ns, believed_ns, desk.now_ns, stored_ns) is not None:
        trims.believe(desk, difference_ns)


def _altered(desk: Desk, log: state.Log, options: facts.Options) -> Make:
    """The log as it would be with ``options``, and trimmed by them."""
    would = msgspec.structs.replace(log, options=options)
    copied = {offset for cursor in log.cursors.values() for offset in cursor.parked}
    plan = retention.plan(would, desk.now_ns, doubt=desk.books.watch.doubt, lost=copied)
    kept = [s for i, s in enumerate(log.segments) if log.segment_end(i) > plan.first]
    would = msgspec.structs.replace(would, first=plan.first, segments=kept)
    info = _info(desk.books, would)
    info = msgspec.structs.replace(info, retention=plan.held.text if plan.held else None)
    return lambda _synced: Answer(protocol.LogReply(info))


def delete_log(desk: Desk, waiting: Waiting, control: protocol.DeleteLog) -> Make:
    desk.writable()
    log = desk.log(control.log)
    books = desk.books
    desk.fact(facts.Deleted(log.id))

    def remove() -> None:
        for key in [key for key in books.holders if key[0] == log.id]:
            books.ending(key)()
        for seat in [seat for seat in books.seats if seat[0] == log.id]:
            members.ending(books, seat[:2], seat[2])()
        for key in [key for key in books.waiting if key[0] == log.id]:
            books.call(key)
        for name in log.cursors:
            books.forget_consumer((log.id, name))
        books.call_blocked(log.id)
        books.call_trims(log.id)
        books.watch.forget(log.id)
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

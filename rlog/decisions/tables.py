"""Decisions about keys: the latest record of one, and of all at one end."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rlog_client import protocol
from rlog_client.errors import InvalidRequest, NotFound, Overloaded

from .desk import Answer, Seen

if TYPE_CHECKING:
    from .. import state
    from .desk import Desk, Look, Make, Waiting


def _check_index(log: state.Log) -> None:
    if not log.options.key_index:
        raise InvalidRequest(f"log {log.name!r} was made without key_index")


def _when_seen(desk: Desk, log: state.Log, end: int, answer: Answer | Look) -> Make:
    """Answer when readers can see what is below ``end``: an append that was decided may still be
    lost, and must not be told of.
    """
    books, at_once = desk.books, desk.books.policy_of(log).visible_unsynced

    def make(synced: bool) -> Answer | Look | Seen:
        visible = books.visible.get(log.id)
        if synced or at_once or visible is None or end <= visible.end:
            return answer
        return Seen(log.id, end, answer)

    return make


def latest(desk: Desk, waiting: Waiting, control: protocol.GetLatest) -> Make:
    log = desk.log(control.log)
    _check_index(log)
    offset = log.keys.get(control.key)
    return _when_seen(desk, log, offset + 1, Answer(protocol.Latest(offset, log.end)))


def table(desk: Desk, waiting: Waiting, control: protocol.GetTable) -> Make:
    log = desk.log(control.log)
    tables, peer = desk.books.tables, waiting.peer
    if control.page is None:
        tables.end(peer, control.table)
        return lambda _synced: Answer(protocol.Done())
    if control.table:
        found = tables.get(peer, log.id, control.table)
        if found is None or found.pages is None or not 0 <= control.page < len(found.pages):
            raise NotFound(f"there is no page {control.page} of table {control.table} here")
        page, head = found.pages[control.page], _head(found.number, found.end, found.pages)
        return lambda _synced: Answer(head, page)
    _check_index(log)
    # All that was decided, so what the index of keys says is so below this very end.
    keys, count, end = log.keys, len(log.keys), log.end
    made = tables.begin(peer, log.id, end)

    def look() -> Answer:
        pages = made.pack(keys, count)
        if tables.get(peer, log.id, made.number) is None:
            # What was displaced since is not noted any more.
            error = Overloaded("too many tables are read at once")
            return Answer(protocol.error_control(error))
        return Answer(_head(made.number, end, pages), pages[0] if pages else b"")

    return _when_seen(desk, log, log.end, look)


def _head(number: int, end: int, pages: list[bytes]) -> protocol.TablePage:
    return protocol.TablePage(number, end, len(pages))

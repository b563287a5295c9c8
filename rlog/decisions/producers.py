"""Decisions about producers: opened by name, or as the only one of a log; listed."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rlog_client import model, protocol
from rlog_client.errors import InvalidRequest
from rlog_client.model import PRODUCER_ID

from .. import facts, state
from .claims import Ask, Turn, claim_anew, take
from .desk import Answer, Grant, listing, reopened

if TYPE_CHECKING:
    from .desk import Desk, Make, Waiting


def open_producer(desk: Desk, waiting: Waiting, control: protocol.OpenProducer) -> Make | None:
    desk.writable()
    log = desk.log(control.log)
    entry = _entry(log, control)
    named = log.producer_named(control.name) if control.name is not None else None
    producer = named[0] if named is not None else control.producer
    epoch = entry.epoch + 1
    if control.exclusive:
        epoch = max(epoch, log.owner.epoch + 1)
        _check_not_reopened(log, entry, control)
        turn = take(desk, waiting, Ask(log, PRODUCER_ID, control))
        if turn is Turn.WAITS:
            return None
        if turn is Turn.RETURNED:
            epoch = log.owner.epoch
        else:
            claim_anew(desk, waiting.peer, Ask(log, PRODUCER_ID, control), Grant(epoch, 0))
    elif control.epoch:
        if entry.epoch != control.epoch:
            raise reopened(log, control.name, entry.epoch)
        epoch = control.epoch
    if control.name is not None and entry.epoch != epoch:
        desk.fact(facts.Named(log.id, producer, control.name, epoch, control.exclusive))
    answer = protocol.ProducerOpened(producer, epoch, entry.last)
    return lambda _synced: Answer(answer)


def _check_not_reopened(
    log: state.Log, entry: state.Producer, control: protocol.OpenProducer
) -> None:
    """An owner that comes back does so under its epoch: not if its name has a later one."""
    holder = log.owner.holder
    if (
        control.name is not None
        and holder is not None
        and holder.token == control.token
        and entry.epoch > log.owner.epoch
    ):
        raise reopened(log, control.name, entry.epoch)


def _entry(log: state.Log, control: protocol.OpenProducer) -> state.Producer:
    """What is known of the producer that is asked for; raises InvalidRequest."""
    if not 0 < control.producer < 2**64:
        raise InvalidRequest("a producer's id is a positive number of 64 bits")
    if control.name is not None:
        model.check_consumer(control.name, "a producer's name")
        named = log.producer_named(control.name)
        if named is not None:
            return named[1]
    elif not control.exclusive:
        raise InvalidRequest("a producer that is neither named nor exclusive needs no opening")
    known = log.producers.get(control.producer)
    if known is not None and (control.name is not None or not control.epoch):
        raise InvalidRequest("this producer's id is in use")
    return known or state.Producer()


def list_producers(desk: Desk, waiting: Waiting, control: protocol.ListProducers) -> Make:
    log = desk.log(control.log)
    owner = log.owner
    holder = owner.holder if owner.held else None
    infos = []
    for entry in log.producers.values():
        if entry.name is not None:
            here = holder if entry.exclusive and entry.epoch == owner.epoch else None
            infos.append(_info(entry, here))
    if holder is not None and not any(info.owner is not None for info in infos):
        infos.append(_info(state.Producer(epoch=owner.epoch), holder))
    return lambda _synced: listing(sorted(infos, key=lambda info: info.name or ""))


def _info(entry: state.Producer, holder: state.Holder | None) -> model.ProducerInfo:
    return model.ProducerInfo(
        name=entry.name,
        epoch=entry.epoch,
        last_sequence=entry.last,
        owner=holder.name if holder is not None else None,
        since_ns=holder.since_ns if holder is not None else None,
    )

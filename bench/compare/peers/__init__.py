"""What rlog is compared with: one module a peer, all behind the interface of ``peer``.

A peer's client is imported when it is started: whoever has not installed it can do without.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from .jetstream import JetStream
from .kafka import Kafka
from .postgres import Postgres
from .rabbitmq import RabbitMQ
from .redis_streams import Redis
from .rlog_server import Rlog
from .sqlite import SQLite

if TYPE_CHECKING:
    from .peer import Peer

PEERS: Final[dict[str, type[Peer]]] = {
    "rlog": Rlog,
    "redis": Redis,
    "jetstream": JetStream,
    "kafka": Kafka,
    "rabbitmq": RabbitMQ,
    "postgres": Postgres,
    "sqlite": SQLite,
}

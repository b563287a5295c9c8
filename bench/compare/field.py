"""The systems that are compared with each other, and take turns."""

from __future__ import annotations

import contextlib
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeVar

from .peers import PEERS
from .peers.peer import DURABILITIES, Missing, Peer
from .peers.rlog_server import Rlog

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from ..harness import Bench, Conditions
    from .rows import Row, Single

    R = TypeVar("R", Row, Single)

_IDLE_FACTOR: Final = 10  # so many cases' time, for the kernel counts in hundredths of a second


class Field:
    """The peers under one class of durability. Whoever fails is out from there on, with a note,
    and the others go on; only rlog may not.
    """

    def __init__(self, bench: Bench, peers: Sequence[Peer] = ()) -> None:
        self.bench = bench
        self._peers = list(peers)

    def __iter__(self) -> Iterator[Peer]:
        return iter(self._peers.copy())

    @classmethod
    @contextlib.contextmanager
    def started(cls, bench: Bench, names: Sequence[str], durability: str) -> Iterator[Field]:
        """Those that are installed and can be run so."""
        field = cls(bench)
        with contextlib.ExitStack() as stack:
            print(f"\n  {durability}:")
            for name in names:
                kind = PEERS[name]
                if durability not in kind.means:
                    continue
                directory = bench.directory(f"{name}-{DURABILITIES.index(durability)}")
                try:
                    kind.check()
                    peer = stack.enter_context(kind(Path(directory), durability))
                except Exception as error:
                    if kind is Rlog:
                        raise
                    why = "" if isinstance(error, Missing) else f"{type(error).__name__}: "
                    bench.note(f"{kind.name} is left out: {why}{error}")
                    continue
                bench.note(f"{kind.name}: {kind.means[durability]}; {peer.server}; {peer.client}")
                field._peers.append(peer)
            field._note_idle()
            yield field

    def _note_idle(self) -> None:
        before = [(peer, peer.seconds()) for peer in self if peer.pids]
        began = time.monotonic()
        time.sleep(_IDLE_FACTOR * self.bench.options.seconds)
        seconds = time.monotonic() - began
        shares = (f"{peer.name} {(peer.seconds() - was) / seconds:.1%}" for peer, was in before)
        self.bench.note(f"of a processor, while nobody asks: {', '.join(shares)}")

    @contextlib.contextmanager
    def trying(self, peer: Peer) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            if isinstance(peer, Rlog):
                raise
            self._peers.remove(peer)
            said = " ".join(f"{type(error).__name__}: {error}".split())
            self.bench.note(f"{peer.name} failed, and is left out from here on: {said}")

    def rounds(self, works: Sequence[tuple[Peer, Callable[[], None]]]) -> Conditions:
        """The rounds of those that are still there."""

        def turn(peer: Peer, work: Callable[[], None]) -> None:
            if peer in self._peers:
                with self.trying(peer):
                    work()

        return self.bench.rounds([partial(turn, *pair) for pair in works])

    def whole(self, rows: Sequence[R]) -> list[R]:
        """Of those who were there to the end."""
        return [row for row in rows if len(row.figures) == self.bench.options.rounds]

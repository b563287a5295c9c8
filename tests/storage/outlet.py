"""Where a subscription's messages go, for tests without a connection."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rlog_client import protocol


class Outlet:
    """Notes what a reader is told."""

    def __init__(self) -> None:
        self.told: list[protocol.Control] = []
        self.data = b""

    def ask(self, control: protocol.Control) -> None:
        raise AssertionError("readers ask for nothing")

    def wake(self) -> None:
        raise AssertionError("readers let nobody have anything")

    def answer(
        self, request: int, control: protocol.Control, payload: bytes | memoryview = b""
    ) -> None:
        self.told.append(control)
        self.data += payload

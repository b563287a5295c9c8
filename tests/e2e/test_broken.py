"""Promises 1 to 3, 20: an error of ours in the midst of a decision ends the server, and no more.

What was decided may not have been written then, and the server must not go on from it: whoever's
call it was in, and whatever the error, nothing is acknowledged any more, and the next start finds
all that was.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import pytest
import trio

import rlog_client as rlog
from rlog import facts
from rlog.config import Listen
from rlog.driver import Driver, Limits, open_driver
from rlog.files import Disk
from rlog.policy import parse_policy
from rlog.server import ALONE_MIN, Server

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

RECORDS = 50
assert RECORDS > ALONE_MIN


def opened(data_dir: Path) -> Driver:
    limits = Limits(parse_policy("always"), 1 << 20)
    return open_driver(Disk(str(data_dir)), limits, clock=trio.current_time, wall=time.time_ns)


class Breaking:
    """A function of ours that fails once, when it is armed."""

    def __init__(self, function: Callable[..., Any], error: Exception) -> None:
        self._function = function
        self._error: Exception | None = error
        self.armed = False

    def __call__(self, *arguments: Any) -> Any:
        if self.armed and self._error is not None:
            error, self._error = self._error, None
            raise error
        return self._function(*arguments)


# What there is behind the last acknowledged record: written it may be, and not acknowledged.
@pytest.mark.parametrize(("where", "unacknowledged"), [("deciding", 0), ("settling", 1)])
@pytest.mark.parametrize("error", [MemoryError("none left"), OSError(5, "not of a socket")])
def test_a_turn_that_fails_ends_the_server(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    where: str,
    unacknowledged: int,
    error: Exception,
) -> None:
    if where == "deciding":
        breaking = Breaking(facts.encode, error)
        monkeypatch.setattr(facts, "encode", breaking)
    else:
        breaking = Breaking(Driver.finish, error)
        monkeypatch.setattr(Driver, "finish", lambda *arguments: breaking(*arguments))
    # However slow the disk is just now, it is waited for here, in the turn, and not in the thread.
    monkeypatch.setattr(Server, "_inline", lambda _server, _flight: True)
    acknowledged: list[int] = []
    failed: list[BaseException] = []

    async def append(server: Server) -> None:
        async with rlog.connect_async(server.urls[0], timeout=5.0) as client:
            log = await client.log("a", create=True)
            for _ in range(RECORDS):
                acknowledged.append(await log.append(b"v"))
            # From now on this client's requests are decided inside the call that reads them.
            assert server._alone >= ALONE_MIN
            breaking.armed = True
            with pytest.raises(rlog.RlogError):
                acknowledged.append(await log.append(b"lost"))

    async def main() -> None:
        server = Server(opened(tmp_path))
        listening = Listen("127.0.0.1:0").bind()

        async def run(task_status: trio.TaskStatus[None]) -> None:
            try:
                await server.run([listening], task_status=task_status)
            except BaseException as ended:
                failed.append(ended)

        async with trio.open_nursery() as nursery:
            await nursery.start(run)
            await append(server)

    trio.run(main)
    assert acknowledged == list(range(RECORDS))
    [ended] = failed
    assert isinstance(ended, BaseExceptionGroup)
    assert ended.subgroup(lambda each: each is error) is not None

    async def ends() -> list[int]:
        return [log.end for log in opened(tmp_path).broker.books.state.logs.values()]

    assert trio.run(ends) == [RECORDS + unacknowledged]


def test_so_does_one_that_fails_at_its_very_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Server, "_inline", lambda _server, _flight: True)

    async def main() -> None:
        server = Server(opened(tmp_path))
        breaking = Breaking(server._set_alarm, MemoryError("none left"))
        monkeypatch.setattr(server, "_set_alarm", breaking)
        async with trio.open_nursery() as nursery:
            await nursery.start(server.run, [Listen("127.0.0.1:0").bind()])
            async with rlog.connect_async(server.urls[0], timeout=5.0) as client:
                log = await client.log("a", create=True)
                for _ in range(RECORDS):
                    await log.append(b"v")
                breaking.armed = True
                await log.append(b"the last")
                await trio.sleep_forever()

    with pytest.raises(BaseExceptionGroup) as raised:
        trio.run(main)
    assert raised.value.subgroup(MemoryError) is not None

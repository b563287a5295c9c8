"""A web application: POST /events appends, GET /events streams what is there and what comes.

    uvicorn --factory web_app:application

Plain ASGI, so that it fits below any framework. One client for all requests: each talks in its own
task, and their appends share batches on the wire and syncs on the disk.
"""

from collections.abc import Awaitable, Callable
from typing import Any

import anyio

import rlog_client as rlog

Send = Callable[[dict[str, Any]], Awaitable[None]]
Receive = Callable[[], Awaitable[dict[str, Any]]]


class Application:
    async def __call__(self, scope: dict[str, Any], receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.live(receive, send)
        elif scope["method"] == "POST":
            body = b""
            more = True
            while more:
                message = await receive()
                body, more = body + message.get("body", b""), message.get("more_body", False)
            offset = await self.events.append(body)  # on the disk when this returns
            await respond(send, 201, b"%d\n" % offset)
        else:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self.stream, send)
                while (await receive())["type"] != "http.disconnect":
                    pass
                tasks.cancel_scope.cancel()  # the browser has gone

    async def stream(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        async with self.events.reader(rlog.OLDEST) as reader:
            async for record in reader:
                line = record.value + b"\n"
                await send({"type": "http.response.body", "body": line, "more_body": True})

    async def live(self, receive: Receive, send: Send) -> None:
        await receive()
        async with rlog.connect_async() as client:
            self.events = await client.log("events", create=True)
            await send({"type": "lifespan.startup.complete"})
            await receive()
        await send({"type": "lifespan.shutdown.complete"})


async def respond(send: Send, status: int, body: bytes) -> None:
    await send({"type": "http.response.start", "status": status, "headers": []})
    await send({"type": "http.response.body", "body": body})


def application() -> Application:
    return Application()

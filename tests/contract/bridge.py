"""The async client driven from plain code, so that one test says what holds for every client."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from anyio.from_thread import BlockingPortal


class Bridge:
    """An object of the async client with the blocking one's face: what talks runs in the portal."""

    def __init__(self, bridged: Any, portal: BlockingPortal) -> None:
        self._bridged = bridged
        self._portal = portal
        self._items: Any = None
        self._context: Any = None

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._bridged, name)
        return self._function(found) if callable(found) else found

    def __setattr__(self, name: str, value: Any) -> None:
        if name.startswith("_"):
            super().__setattr__(name, value)
        else:
            setattr(self._bridged, name, value)

    def _function(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            async def inside() -> Any:
                result = function(*(self._handler(arg) for arg in args), **kwargs)
                return await result if inspect.isawaitable(result) else result

            return self._wrap(self._portal.call(inside))

        return call

    def _handler(self, argument: Any) -> Any:
        """What is handed to the async client is a coroutine function; what it is handed, plain."""
        if not inspect.isfunction(argument) and not inspect.ismethod(argument):
            return argument._bridged if isinstance(argument, Bridge) else argument

        async def handler(record: Any) -> Any:
            result = argument(record)
            return await result if inspect.isawaitable(result) else result

        return handler

    def _wrap(self, result: Any) -> Any:
        if isinstance(result, list):
            return [self._wrap(each) for each in result]
        return Bridge(result, self._portal) if type(result).__name__.startswith("Async") else result

    def __enter__(self) -> Bridge:
        # In one task from beginning to end, as the task group in there has to be.
        self._context = self._portal.wrap_async_context_manager(self._bridged)
        self._context.__enter__()
        return self

    def __exit__(self, *exception: Any) -> None:
        self._context.__exit__(*exception)

    def __iter__(self) -> Iterator[Any]:
        async def begin() -> Any:
            return aiter(self._bridged)

        items = self._portal.call(begin)
        while True:
            try:
                yield self._portal.call(items.__anext__)
            except StopAsyncIteration:
                return

    def __next__(self) -> Any:
        if self._items is None:
            self._items = iter(self)
        return next(self._items)

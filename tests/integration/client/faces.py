"""Both clients under one test body: the async one is run through a loop in a thread and looks like the sync one."""

from __future__ import annotations

import asyncio
import inspect
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from typing import TypeVar, cast

import lmq
from lmq._async import AsyncClient
from lmq._async_job import AsyncEventStream, AsyncJob, AsyncPipeline

T = TypeVar("T")

CALL_WITHIN_S = 30


class LoopThread:
    """An event loop that runs in a thread of its own."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self._thread.start()

    def run(self, act: Callable[[], object]) -> object:
        """Call something in the loop, await what it gives, and return that."""

        async def call() -> object:
            value = act()
            return await value if inspect.isawaitable(value) else value

        return asyncio.run_coroutine_threadsafe(call(), self.loop).result(CALL_WITHIN_S)

    def close(self) -> None:
        async def end() -> None:
            await self.loop.shutdown_asyncgens()
            await self.loop.shutdown_default_executor()

        asyncio.run_coroutine_threadsafe(end(), self.loop).result(CALL_WITHIN_S)
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(CALL_WITHIN_S)
        self.loop.close()


class Blocking:
    """Something of the async face that waits where the sync one would."""

    def __init__(self, target: object, thread: LoopThread) -> None:
        self._target = target
        self._thread = thread

    def __getattr__(self, name: str) -> object:
        member = getattr(self._target, name)
        if not callable(member):
            return self._wrap(member)

        def call(*args: object, **kwargs: object) -> object:
            bare = [self._bare(arg) for arg in args]
            return self._wrap(self._thread.run(lambda: member(*bare, **kwargs)))

        return call

    def __enter__(self) -> object:
        return self._wrap(self._thread.run(lambda: self._target.__aenter__()))  # type: ignore[attr-defined]  # both have it

    def __exit__(self, *exc: object) -> None:
        self._thread.run(lambda: self._target.__aexit__(*exc))  # type: ignore[attr-defined]  # both have it

    def __iter__(self) -> Iterator[object]:
        return self._steps(cast("AsyncIterator[object]", self._target))

    def __next__(self) -> object:
        return next(iter(self))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Blocking) and other._target == self._target

    def __hash__(self) -> int:
        return hash(self._target)

    def _steps(self, items: AsyncIterator[object]) -> Iterator[object]:
        try:
            while True:
                try:
                    yield self._wrap(self._thread.run(items.__anext__))
                except StopAsyncIteration:
                    return
        finally:
            if inspect.isasyncgen(items):
                self._thread.run(items.aclose)

    def _wrap(self, value: object) -> object:
        if isinstance(value, AsyncClient | AsyncJob | AsyncEventStream | AsyncPipeline):
            return Blocking(value, self._thread)
        if isinstance(value, list):
            return [self._wrap(item) for item in value]
        if isinstance(value, tuple):
            return tuple(self._wrap(item) for item in value)
        if isinstance(value, AsyncIterator):
            return self._steps(value)
        return value

    def _bare(self, value: object) -> object:
        if isinstance(value, Blocking):
            return value._target
        if isinstance(value, list):
            return [self._bare(item) for item in value]
        return value


def blocking_client(client: AsyncClient, thread: LoopThread) -> lmq.Client:
    """Return an async client that may be used as if it were the sync one."""
    return cast(lmq.Client, Blocking(client, thread))

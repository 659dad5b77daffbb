"""Where the I/O thread puts what it received and a caller waits for it: one kind for threads, one for event loops.

An inbox has one consumer. Putting never blocks and never wakes; the I/O thread wakes each inbox it filled once,
after the whole burst. No sockets here, and nothing about jobs.
"""

from __future__ import annotations

import sys
import threading
import time
from collections import deque
from typing import TYPE_CHECKING, Protocol

from lmq.errors import LmqError, NotReachable, WaitTimeout

if TYPE_CHECKING:
    from asyncio import AbstractEventLoop, Future
    from collections.abc import Iterable

# A thread that waits for a lock on Windows does not see Ctrl-C: it looks up this often.
LOOK_UP_S = 0.2 if sys.platform == "win32" else threading.TIMEOUT_MAX


class Failure:
    """An error on its way to the caller; raised there."""

    __slots__ = ("error",)

    def __init__(self, error: LmqError) -> None:
        self.error = error


class Receiver(Protocol):
    """What the I/O thread can hand things to."""

    def put(self, item: object, touched: set[Inbox]) -> None:
        """Take an item; add to `touched` each inbox that now has something."""

    def fail(self, error: LmqError, touched: set[Inbox]) -> None:
        """Take an error: the last thing to come."""


class Reach(Protocol):
    """What a waiting caller wants to know about the connection."""

    @property
    def welcomes(self) -> int:
        """How often a broker has greeted this client."""

    @property
    def is_up(self) -> bool:
        """Whether a broker knows this client now."""

    @property
    def url(self) -> str:
        """The address in use."""


class Patience:
    """How long a caller still waits, and the error it gets then.

    Args:
        reach: the connection.
        what: what is waited for, for people.
        timeout_s: None waits for ever.
        connect_timeout_s: bound on waiting for the very first contact with a broker; None for no such bound.
    """

    __slots__ = ("_connect_by_s", "_deadline_s", "_reach", "_timeout_s", "_welcomes", "_what")

    def __init__(
        self, reach: Reach, what: str, timeout_s: float | None, connect_timeout_s: float | None
    ) -> None:
        now_s = time.monotonic()
        self._reach = reach
        self._what = what
        self._timeout_s = timeout_s
        self._welcomes = reach.welcomes
        self._deadline_s = None if timeout_s is None else now_s + timeout_s
        first_contact = connect_timeout_s is not None and not self._welcomes
        self._connect_by_s = now_s + connect_timeout_s if first_contact and connect_timeout_s else None

    def slice_s(self) -> float | None:
        """Return how long to wait before asking again; None for until something comes.

        Raises:
            NotReachable: no broker was heard of in all this time.
            WaitTimeout: the time is over.
        """
        if self._deadline_s is None and self._connect_by_s is None:
            return None
        now_s = time.monotonic()
        waits = []
        if self._connect_by_s is not None:
            if self._reach.welcomes:
                self._connect_by_s = None
            elif now_s >= self._connect_by_s:
                raise NotReachable(self._reach.url)
            else:
                waits.append(self._connect_by_s - now_s)
        if self._deadline_s is not None:
            if now_s >= self._deadline_s:
                if not self._reach.is_up and self._reach.welcomes == self._welcomes:
                    raise NotReachable(self._reach.url)
                raise WaitTimeout(self._what, self._timeout_s or 0)
            waits.append(self._deadline_s - now_s)
        return min(waits, default=None)


class Inbox:
    """Items in order of arrival. The base of both kinds; `loop` is set for the one of an event loop."""

    __slots__ = ("items", "loop")

    def __init__(self) -> None:
        self.items: deque[object] = deque()
        self.loop: AbstractEventLoop | None = None

    def put(self, item: object, touched: set[Inbox]) -> None:
        self.items.append(item)
        touched.add(self)

    def fail(self, error: LmqError, touched: set[Inbox]) -> None:
        self.items.append(Failure(error))
        touched.add(self)

    def take(self) -> object:
        """Return the next item, which must be there; raise it if it is an error."""
        item = self.items.popleft()
        if isinstance(item, Failure):
            raise item.error
        return item

    def release(self) -> None:
        """Wake the consumer. Waking twice, or nobody, does no harm."""
        raise NotImplementedError


class SyncInbox(Inbox):
    """An inbox for a thread. An interrupt (Ctrl-C) leaves it as it was."""

    __slots__ = ("_latch",)

    def __init__(self) -> None:
        super().__init__()
        self._latch = threading.Lock()
        self._latch.acquire()

    def release(self) -> None:
        try:
            self._latch.release()
        except RuntimeError:
            pass  # it was open already

    def get(self, patience: Patience) -> object:
        """Return the next item, waiting for it.

        Raises:
            LmqError: the item is an error, or patience ran out.
        """
        while not self.items:
            wait_s = patience.slice_s()
            self._latch.acquire(timeout=LOOK_UP_S if wait_s is None else min(wait_s, LOOK_UP_S))
        return self.take()


class AsyncInbox(Inbox):
    """An inbox for a coroutine of the event loop that made it."""

    __slots__ = ("_waiter",)

    def __init__(self) -> None:
        import asyncio

        super().__init__()
        self.loop = asyncio.get_running_loop()
        self._waiter: Future[None] | None = None

    def release(self) -> None:
        """Wake the consumer; called in the loop."""
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def get(self, patience: Patience) -> object:
        """Return the next item, waiting for it; a cancelled wait loses nothing.

        Raises:
            LmqError: the item is an error, or patience ran out.
        """
        import asyncio

        assert self.loop is not None
        while not self.items:
            wait_s = patience.slice_s()
            self._waiter = self.loop.create_future()
            try:
                # No await stands between the look at `items` and this one, so a wake-up cannot be missed.
                await asyncio.wait([self._waiter], timeout=wait_s)
            finally:
                self._waiter.cancel()
                self._waiter = None
        return self.take()


def wake(touched: Iterable[Inbox]) -> None:
    """Wake the consumers of these inboxes: threads one by one, the coroutines of a loop all at once."""
    by_loop: dict[AbstractEventLoop, list[Inbox]] = {}
    for inbox in touched:
        if inbox.loop is None:
            inbox.release()
        else:
            by_loop.setdefault(inbox.loop, []).append(inbox)
    for loop, inboxes in by_loop.items():
        try:
            loop.call_soon_threadsafe(_release_all, inboxes)
        except RuntimeError:
            pass  # the loop is closed: nobody waits there any more


def _release_all(inboxes: list[Inbox]) -> None:
    for inbox in inboxes:
        inbox.release()

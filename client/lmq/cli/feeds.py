"""Several blocking iterators read as one: each by a thread of its own, so that a command can also watch the clock."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Iterable
from typing import NamedTuple

from lmq.errors import ClientClosed, LmqError

LOOK_UP_S = 0.2
"""A thread that waits on a queue may not see Ctrl-C on every platform: it looks up this often."""


class Item(NamedTuple):
    """What one iterator gave; or its end, with the error that ended it, if any."""

    name: str
    value: object
    is_end: bool = False
    error: LmqError | None = None


class Feeds:
    """Iterators under names. Their threads end with the iterators, or with the client they read from."""

    def __init__(self) -> None:
        self._items: queue.SimpleQueue[Item] = queue.SimpleQueue()
        self.names: set[str] = set()

    def add(self, name: str, values: Iterable[object]) -> None:
        """Read an iterator from now on."""
        self.names.add(name)
        threading.Thread(target=self._read, args=(name, values), name=f"feed-{name}", daemon=True).start()

    def get(self, timeout_s: float | None = None) -> Item | None:
        """Return the next item of any of them, or None when none came in time."""
        deadline_s = None if timeout_s is None else time.monotonic() + timeout_s
        while True:
            left_s = LOOK_UP_S if deadline_s is None else min(LOOK_UP_S, deadline_s - time.monotonic())
            try:
                item = self._items.get(timeout=max(0.0, left_s))
            except queue.Empty:
                if deadline_s is not None and time.monotonic() >= deadline_s:
                    return None
                continue
            if item.is_end:
                self.names.discard(item.name)
            return item

    def _read(self, name: str, values: Iterable[object]) -> None:
        error: LmqError | None = None
        try:
            for value in values:
                self._items.put(Item(name, value))
        except ClientClosed:
            pass  # the command is over
        except LmqError as caught:
            error = caught
        finally:
            # Whatever ended it, nobody may wait for it for ever.
            self._items.put(Item(name, None, is_end=True, error=error))

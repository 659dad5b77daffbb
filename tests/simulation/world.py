"""The world's clocks, its chance and what happens next: everything that a seed decides comes from here."""

from __future__ import annotations

import hashlib
import heapq
from random import Random
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

# Where the wall clock stands when a world begins: some day in 2026.
_WALL_START_MS = 1_780_000_000_000

# A world that does more than this at one instant is in a loop that time cannot end.
_HAPPENINGS_AT_ONE_MS = 20_000


class World:
    """A virtual monotonic clock, a wall clock that may jump, and a heap of what will happen."""

    def __init__(self, seed: int) -> None:
        self.random = Random(seed)
        self.mono_ms = self.random.randrange(1, 1_000_000)
        self.happenings = 0
        self.raging = True
        """Whether faults may happen; once False, all must drain."""
        self._wall_offset_ms = self._latest_offset_ms = _WALL_START_MS
        self._heap: list[tuple[int, int, Callable[[], None]]] = []
        self._serial = 0
        self._trace = hashlib.blake2b(digest_size=8)
        self._at_once = 0

    @property
    def wall_ms(self) -> int:
        return self.mono_ms + self._wall_offset_ms

    def jump_wall(self, by_ms: int) -> None:
        self._wall_offset_ms += by_ms
        self._latest_offset_ms = max(self._latest_offset_ms, self._wall_offset_ms)
        self.note("wall", by_ms)

    def outrun_wall(self, by_ms: int) -> None:
        """Set the wall clock later than it ever showed."""
        self.jump_wall(self._latest_offset_ms - self._wall_offset_ms + by_ms)

    def chance(self, probability: float) -> bool:
        return self.random.random() < probability

    def after(self, wait_ms: int, call: Callable[[], None]) -> None:
        """Have something happen after a while; what is due at one time happens in the order it was asked for."""
        self._serial += 1
        heapq.heappush(self._heap, (self.mono_ms + max(0, wait_ms), self._serial, call))

    def run_until(self, mono_ms: int, done: Callable[[], bool] | None = None) -> None:
        """Let everything happen that is due by then, or until `done`."""
        while self._heap and self._heap[0][0] <= mono_ms:
            if done is not None and done():
                return
            at_ms, _, call = heapq.heappop(self._heap)
            self._at_once = self._at_once + 1 if at_ms == self.mono_ms else 0
            assert self._at_once < _HAPPENINGS_AT_ONE_MS, "time stands still: something happens for ever"
            self.mono_ms = at_ms
            self.happenings += 1
            call()
        self.mono_ms = max(self.mono_ms, mono_ms)

    def note(self, *facts: object) -> None:
        """Add what happened to the trace by which two runs are compared."""
        self._trace.update(repr((self.mono_ms, facts)).encode())

    def digest(self) -> str:
        """Return what identifies this run: equal seeds must give equal digests."""
        return self._trace.hexdigest()

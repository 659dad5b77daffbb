"""Who submits how often: what will come while a job waits can overtake it.

A rate is what came in this window and, as far as it is not past, in the one before. What one user submits at one time
counts once: it was one wish.
"""

import heapq

import msgspec

from lmq_broker.core.policies.places import LaneKey

WINDOW_MS = 300_000
"""Over which what comes is counted."""
RECENT = 0.7
"""Of a rate that is believed in. Who has just submitted much does so more often than is usual for them, and one asks
just then: predictions that took rates as they were came out too long by as much."""
FLOWS = 1000
"""Of those who submitted last; the others are one crowd."""
NAMED = 16
"""Flows that are played by name: those that ask for most. The others come as strangers."""
MOST_MS = 3_600_000
"""Strangers who come more rarely than this are not waited for."""

Source = tuple[str, int, str]
"""(pool, band, user)."""


class Rate(msgspec.Struct):
    """How often something comes, and what it costs."""

    lane: LaneKey
    """Of the last that came."""
    window: int = -1
    count: int = 0
    before: int = 0
    """Those of the window before."""
    cost: float = 0.0
    """A decayed mean."""
    last_ms: int = -1

    def note(self, lane: LaneKey, cost: float, now_ms: int) -> None:
        """One more has come."""
        self.cost += (cost - self.cost) * (0.1 if self.cost else 1.0)
        self.lane = lane
        self.last_ms = now_ms
        window = now_ms // WINDOW_MS
        if window != self.window:
            self.before = self.count if window == self.window + 1 else 0
            self.count = 0
            self.window = window
        self.count += 1

    def per_ms(self, now_ms: int) -> float:
        """Return how many come in a millisecond."""
        window, into_ms = divmod(now_ms, WINDOW_MS)
        left = 1.0 - into_ms / WINDOW_MS
        if window == self.window:
            return (self.count + self.before * left) * RECENT / WINDOW_MS
        return self.count * left * RECENT / WINDOW_MS if window == self.window + 1 else 0.0


class Expected(msgspec.Struct, frozen=True):
    """Jobs that are expected of one flow, or of many that are strangers."""

    pool: str
    band: int
    user: str | None
    """None: of strangers."""
    lane: LaneKey
    every_ms: float
    cost: float


class Arrivals:
    """The rates of those who submitted last."""

    def __init__(self) -> None:
        self._rates: dict[Source, Rate] = {}
        """In the order in which they last submitted."""
        self._of_all: dict[tuple[str, int], Rate] = {}

    @property
    def size(self) -> int:
        """How many rates there are."""
        return len(self._rates)

    def note(self, source: Source, lane: LaneKey, cost: float, now_ms: int) -> None:
        """A job has come."""
        rate = self._rates.pop(source, None)
        if rate is None:
            if len(self._rates) >= FLOWS:
                del self._rates[next(iter(self._rates))]
            rate = Rate(lane)
        self._rates[source] = rate
        if rate.last_ms == now_ms:
            return
        rate.note(lane, cost, now_ms)
        of_all = self._of_all.get(source[:2])
        if of_all is None:
            of_all = self._of_all[source[:2]] = Rate(lane)
        of_all.note(lane, cost, now_ms)

    def expected(self, now_ms: int) -> list[Expected]:
        """Return what is to be expected if all go on as they did."""
        ranked = heapq.nlargest(
            NAMED, ((rate.per_ms(now_ms) * rate.cost, source) for source, rate in self._rates.items())
        )
        found = []
        crowd = {key: rate.per_ms(now_ms) for key, rate in self._of_all.items()}
        for worth, source in ranked:
            if worth > 0:
                rate = self._rates[source]
                per_ms = rate.per_ms(now_ms)
                found.append(Expected(*source, rate.lane, 1 / per_ms, rate.cost))
                crowd[source[:2]] -= per_ms
        for (pool, band), per_ms in crowd.items():
            if per_ms * MOST_MS > 1:
                rate = self._of_all[pool, band]
                found.append(Expected(pool, band, None, rate.lane, 1 / per_ms, rate.cost))
        return found

"""When to leave an endpoint alone: closed, open, and one probe at a time in between. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable


class EndpointBreaker:
    """Counts what happens at one endpoint. Times are monotonic seconds, brought by the caller."""

    def __init__(
        self, *, failures: int, probe_s: float, probe_max_s: float, jitter: Callable[[], float]
    ) -> None:
        """Make a closed breaker.

        Args:
            failures: connection failures in a row that open it.
            probe_s: first wait before a probe; doubles with each probe that fails.
            probe_max_s: ceiling of the wait.
            jitter: draws from [0, 1).
        """
        self._failures_max, self._probe_s, self._probe_max_s, self._jitter = (
            failures,
            probe_s,
            probe_max_s,
            jitter,
        )
        self._failures = 0
        self._probes = 0
        self.reason = ""
        self.opened_s: float | None = None
        self.probe_at_s = 0.0

    @property
    def is_open(self) -> bool:
        return self.opened_s is not None

    def may_probe(self, now_s: float) -> bool:
        """Tell whether the endpoint may be looked at: always while closed, else when the next probe is due."""
        return self.opened_s is None or now_s >= self.probe_at_s

    def failed(self, now_s: float, reason: str) -> None:
        """Count a connection failure of a job."""
        self._failures += 1
        if self.opened_s is None and self._failures >= self._failures_max:
            self._open(now_s, reason)

    def probe_failed(self, now_s: float, reason: str) -> None:
        """Take a look at the endpoint that failed: it opens at once, or stays open for longer."""
        if self.opened_s is None:
            self._open(now_s, reason)
            return
        self.reason = reason
        self._probes += 1
        self._plan_probe(now_s)

    def succeeded(self) -> None:
        """Take an answer of the endpoint, whatever it said: it is there."""
        self._failures = self._probes = 0
        self.opened_s = None
        self.reason = ""

    def _open(self, now_s: float, reason: str) -> None:
        self.opened_s = now_s
        self.reason = reason
        self._probes = 0
        self._plan_probe(now_s)

    def _plan_probe(self, now_s: float) -> None:
        ceiling_s = min(self._probe_max_s, self._probe_s * 2 ** min(self._probes, 30))
        # Between half and all of it: never at once, never all workers of an endpoint together.
        self.probe_at_s = now_s + ceiling_s * (0.5 + 0.5 * self._jitter())

"""How long an engine takes from one token of a stream to the next, as a line in the number of streams. Pure."""

from __future__ import annotations

# What an older window counts beside the next one: half is forgotten after 34 windows.
FORGETTING = 0.98
# Windows before the line is drawn, and how far the number of streams must have varied: of its mean, and in streams.
WINDOWS_LEAST = 3
SPREAD_RATIO = 0.05
SPREAD_STREAMS = 0.25


class GapLine:
    """`base_s + per_stream_s * n`, neither of them negative: exponentially weighted least squares over windows."""

    __slots__ = ("_n", "_nn", "_ny", "_weight", "_y", "base_s", "per_stream_s", "windows")

    def __init__(self, base_s: float = 0.0, per_stream_s: float = 0.0) -> None:
        """Make a line from its shape, if one is known; the first windows then say how steep it is."""
        self.base_s, self.per_stream_s = base_s, per_stream_s
        self.windows = 0
        self._weight = self._n = self._nn = self._y = self._ny = 0.0

    @property
    def is_known(self) -> bool:
        """Tell whether the number of streams has ever varied enough to draw a line."""
        return self.base_s > 0.0 or self.per_stream_s > 0.0

    def at(self, streams: float) -> float:
        """Return the gap that the line expects, in seconds."""
        return self.base_s + self.per_stream_s * streams

    def add(self, streams: float, gap_s: float) -> None:
        """Take in a window: its mean number of streams and its mean gap."""
        self._weight = self._weight * FORGETTING + 1.0
        self._n = self._n * FORGETTING + streams
        self._nn = self._nn * FORGETTING + streams * streams
        self._y = self._y * FORGETTING + gap_s
        self._ny = self._ny * FORGETTING + streams * gap_s
        self.windows += 1
        self._draw()

    def _draw(self) -> None:
        n, y = self._n / self._weight, self._y / self._weight
        spread = self._nn / self._weight - n * n
        if self.windows >= WINDOWS_LEAST and spread >= max(SPREAD_STREAMS, SPREAD_RATIO * n) ** 2:
            slope = max((self._ny / self._weight - n * y) / spread, 0.0)
            self.base_s, self.per_stream_s = y - slope * n, slope
            if self.base_s < 0.0:
                self.base_s, self.per_stream_s = 0.0, self._ny / self._nn
        elif self.is_known:
            # The number of streams has not varied lately: the shape stays, and all takes longer or less long.
            scale = y / self.at(n)
            self.base_s, self.per_stream_s = self.base_s * scale, self.per_stream_s * scale

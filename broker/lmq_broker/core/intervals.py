"""Ranges around predictions that hold as often as they say, whatever the predictions are worth.

A range reaches from one quantile to another of what the latest predictions were wrong by, as a ratio. Which quantiles
follows from how often ranges held: each miss makes the next ones wider, each hit a little narrower, so that in the long
run as many hold as were to hold, however things drift.

Source: adaptive conformal inference (Gibbs & Candes, NeurIPS 2021), with both tails apart.
"""

import bisect
from collections import deque

Range = tuple[float, float]

MISSES = 0.08
"""Of all ranges: so many may miss. What became of one is known after the wait only, when others are told already: so
that nine in ten hold, a few more are aimed at."""
GAMMA = 0.02
WINDOW = 200
"""Scores that count, the newest."""
LEAST = 20
"""Scores from which a range can be told; 1 in 20 is what falls out on one side."""
LEAST_ALPHA = -0.1
MOST_ALPHA = 0.5
FAR = 1.5
"""Beyond the worst that was seen, when even that does not hold often enough."""
ONE_MS = 1000.0
"""Added to both times before one is divided by the other: nobody cares for less than a second, and 0 has a ratio."""


class Interval:
    """Ranges around one kind of predictions."""

    __slots__ = ("_alpha", "_default", "_newest", "_sorted")

    def __init__(self, default: Range) -> None:
        """Make one that has seen nothing.

        Args:
            default: ratios between which nine in ten fall, until it is known better.
        """
        self._default = default
        self._newest: deque[float] = deque()
        self._sorted: list[float] = []
        self._alpha = MISSES

    def around_ms(self, predicted_ms: float) -> Range:
        """Return the range that holds nine times in ten."""
        low, high = self._ratios()
        base_ms = max(0.0, predicted_ms) + ONE_MS
        return max(0.0, base_ms * low - ONE_MS), max(0.0, base_ms * high - ONE_MS)

    def learn(self, predicted_ms: float, range_ms: Range, actual_ms: float) -> None:
        """Take in what became of a prediction and of the range that was told."""
        held = range_ms[0] <= actual_ms <= range_ms[1]
        alpha = self._alpha + GAMMA * (MISSES - (0.0 if held else 1.0))
        self._alpha = min(max(alpha, LEAST_ALPHA), MOST_ALPHA)
        score = (max(0.0, actual_ms) + ONE_MS) / (max(0.0, predicted_ms) + ONE_MS)
        self._newest.append(score)
        bisect.insort(self._sorted, score)
        if len(self._newest) > WINDOW:
            del self._sorted[bisect.bisect_left(self._sorted, self._newest.popleft())]

    def _ratios(self) -> Range:
        scores = self._sorted
        count = len(scores)
        if count < LEAST:
            return self._default
        outside = int(self._alpha / 2 * (count + 1)) if self._alpha > 0 else 0
        if outside:
            return scores[outside - 1], scores[count - outside]
        far = FAR if self._alpha <= 0 else 1.0
        return scores[0] / far, scores[-1] * far

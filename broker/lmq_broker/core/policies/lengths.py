"""How far answers fall from what was foreseen of them: a mean says when many are over, not when the next one is.

What is learnt is the ratio of an answer's length to its prediction, so that users with long answers and with short
ones teach the same shape.
"""

from bisect import bisect_right

POINTS = 64
"""Lengths that stand for the whole of a shape, each as likely as the other."""
_BEFORE = (0.06, 0.21, 0.37, 0.58, 0.83, 1.16, 1.67, 2.77)
"""Of a kind that nobody has measured: as if answers could end at any token with the same chance."""
_KEPT = 500
"""Answers that a shape is made of, the newest."""
_EVERY = 20
"""Answers after which the points are made anew."""
_MIX = 0x9E3779B1
"""2**32 over the golden ratio: its multiples fill the range evenly, whatever they begin with."""
_SHIFT = 0x6A09E667
"""2**32 times a half of the root of 2, less a half: draws of one job in several runs lie apart too."""
_SURPRISE = 0.25
"""Of what an answer has, once it is longer than any before: so much more is thought to come."""


class Shape:
    """The ratios of one kind of answers."""

    __slots__ = ("_fresh", "_is_known", "_next", "_ratios", "mean", "points")

    def __init__(self) -> None:
        self._ratios = list(_BEFORE)
        self._is_known = False
        """What stood in for answers is gone."""
        self._next = 0
        self._fresh = 0
        self._draw_points()

    def learn(self, ratio: float) -> None:
        """Take in one more answer."""
        if len(self._ratios) == len(_BEFORE) + POINTS and not self._is_known:
            self._is_known = True
            del self._ratios[: len(_BEFORE)]
        if len(self._ratios) < _KEPT:
            self._ratios.append(ratio)
        else:
            self._ratios[self._next] = ratio
            self._next = (self._next + 1) % _KEPT
        self._fresh += 1
        if self._fresh >= _EVERY:
            self._fresh = 0
            self._draw_points()

    def mean_left(self, had: float) -> float:
        """Return how much of an answer is to come on average, over its prediction, when so much of it has come."""
        left = self.points[bisect_right(self.points, had) :]
        return sum(left) / len(left) - had if left else had * _SURPRISE

    def draw_left(self, had: float, at: float) -> float:
        """Return how much is to come of an answer that stands at this fraction of all that come so far."""
        first = bisect_right(self.points, had)
        if first == POINTS:
            return had * _SURPRISE
        return self.points[first + int(at * (POINTS - first))] - had

    def _draw_points(self) -> None:
        self.points = _points(self._ratios)
        self.mean = sum(self.points) / POINTS


def even_draw(number: int, run: int) -> float:
    """Return a fraction for a job's number in a run: those of jobs in a row lie far apart, and all together evenly."""
    return ((number * _MIX + run * _SHIFT) & 0xFFFFFFFF) / 4294967296.0


def _points(ratios: list[float]) -> list[float]:
    """Return the quantiles in the middle of equal parts."""
    ordered = sorted(ratios)
    count = len(ordered)
    found = []
    for part in range(POINTS):
        at = (part + 0.5) / POINTS * count - 0.5
        low = min(max(int(at), 0), count - 1)
        high = min(low + 1, count - 1)
        found.append(ordered[low] + (ordered[high] - ordered[low]) * max(0.0, at - low))
    return found


UNMEASURED = Shape()

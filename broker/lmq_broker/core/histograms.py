"""Counts of times between fixed edges, so that those of many days and users can be added up; and their quantiles."""

from bisect import bisect_left
from collections.abc import Mapping

Counts = dict[int, int]
"""Bucket -> how many times fell into it; only those that have any."""

_FIRST_MS = 10
_STEPS_PER_DOUBLING = 4
_DOUBLINGS = 28
EDGES_MS = tuple(
    round(_FIRST_MS * 2 ** (n / _STEPS_PER_DOUBLING)) for n in range(_STEPS_PER_DOUBLING * _DOUBLINGS + 1)
)
"""From 10 ms to 31 days, each 19 % above the one before. Never to be changed: what was counted between them is kept."""


def bucket_of(ms: int) -> int:
    """Return where a time belongs: bucket n is above edge n-1, up to and including edge n."""
    return bisect_left(EDGES_MS, ms)


def add(counts: Counts, more: Mapping[int, int]) -> None:
    """Add what others counted."""
    for bucket, count in more.items():
        counts[bucket] = counts.get(bucket, 0) + count


def quantile(counts: Mapping[int, int], share: float) -> int | None:
    """Return the time that this share of all stays within, right to the width of a bucket; None if there are none."""
    total = sum(counts.values())
    if not total:
        return None
    wanted = share * total
    seen = 0
    for bucket in sorted(counts):
        before, seen = seen, seen + counts[bucket]
        if seen >= wanted:
            low = EDGES_MS[bucket - 1] if bucket else 0
            high = EDGES_MS[bucket] if bucket < len(EDGES_MS) else low
            return round(low + (high - low) * (wanted - before) / counts[bucket])
    raise AssertionError("the last bucket holds the rest")

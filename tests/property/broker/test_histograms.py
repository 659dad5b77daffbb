"""Counts of times: added up in any order they are those of all, and their quantiles are right to a bucket."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given, strategies as st

from lmq_broker.core.histograms import EDGES_MS, Counts, add, bucket_of, quantile

times = st.lists(st.integers(0, 40 * 86_400_000), min_size=1, max_size=60)


def counted(some: list[int]) -> Counts:
    counts: Counts = {}
    for ms in some:
        add(counts, {bucket_of(ms): 1})
    return counts


@given(st.lists(times, min_size=1, max_size=5))
def test_counts_of_parts_add_up_to_those_of_the_whole(parts: list[list[int]]) -> None:
    together: Counts = {}
    for part in parts:
        add(together, counted(part))
    assert together == counted([ms for part in parts for ms in part])


@given(times, st.floats(0.01, 1.0))
def test_a_quantile_lies_in_the_bucket_of_the_true_one(some: list[int], share: float) -> None:
    told = quantile(counted(some), share)
    assert told is not None
    ordered = sorted(some)
    # The smallest time that at least this share of all stays within.
    true = next(ms for number, ms in enumerate(ordered, 1) if number >= share * len(ordered))
    low = max((edge for edge in EDGES_MS if edge < true), default=0)
    high = min((edge for edge in EDGES_MS if edge >= true), default=EDGES_MS[-1])
    assert low <= told <= high


def test_edges_are_those_of_all_that_was_ever_counted() -> None:
    assert (len(EDGES_MS), EDGES_MS[:6], EDGES_MS[40], EDGES_MS[-1]) == (
        113, (10, 12, 14, 17, 20, 24), 10_240, 2_684_354_560,
    )  # fmt: skip
    assert all(low < high <= low * 1.22 for low, high in pairwise(EDGES_MS))


def test_nothing_counted_has_no_quantile() -> None:
    assert quantile({}, 0.5) is None

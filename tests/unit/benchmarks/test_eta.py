"""The benchmark of what is foreseen: its measures on cases that can be worked out by hand, and a small run."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from benchmarks import eta, fair_traffic
from benchmarks.eta import Asked, Case, Word, figures_of

from lmq_broker.core.settings import Settings
from lmq_broker.forecast.replay import Request, Served

if TYPE_CHECKING:
    from collections.abc import Sequence


def asked(actual_ms: int, *, high_s: float = 12.0, latest_ms: Sequence[float] = ()) -> Asked:
    """Return a job that was asked for at once: a start in 10 s was foreseen, in 8 s at the soonest."""
    served = Served(Request(0, "ann", 0, 50), actual_ms, actual_ms, actual_ms, "gpu-1", 1, "done")
    return Asked(served, 0, (10_000.0, 10_000.0), ((8.0, high_s), (8.0, high_s)), list(latest_ms))


def test_errors_are_of_what_took_long_enough_and_ranges_of_all() -> None:
    words = [Word(10_000, 8000, 12_000, 20_000), Word(10_000, 8000, 12_000, 8000), Word(5000, 0, 9000, 1000)]
    found = figures_of(words)
    assert (found.jobs, found.judged) == (3, 2)
    assert found.error == pytest.approx((0.5 + 0.25) / 2)
    assert found.bias == pytest.approx((-0.5 + 0.25) / 2)
    assert found.covered == found.kept == pytest.approx(2 / 3)


def test_what_comes_sooner_than_said_keeps_the_word_and_misses_the_range() -> None:
    early = Word(10_000, 8000, 12_000, 2000)
    assert (early.held, early.kept) == (False, True)


def test_moves_of_a_range_are_told_and_which_of_them_put_it_off() -> None:
    by_s, off = eta.updates([asked(10_000, latest_ms=[12_000, 15_000, 14_000])])
    assert by_s == pytest.approx(2.0)
    assert off == pytest.approx(0.5)


def test_a_target_that_is_missed_by_little_is_shown_to_be_missed() -> None:
    case = Case("one", [], [])
    found = [(case, [asked(10_000)] * 932 + [asked(30_000)] * 68)]
    error, holds = eta.targets_of(found, quick=False)
    assert (error.seen, error.reached) == ("0%", True)
    assert (holds.seen, holds.reached) == ("0.932", False)


def test_a_run_asks_for_what_waits_and_says_the_same_again() -> None:
    arena = fair_traffic.trace(fair_traffic.ARENA, fair_traffic.FOLDER)[:120]
    first, again = (eta.ask(arena, [fair_traffic.ARENA_ONE], Settings()) for _ in range(2))
    assert first
    assert [each.words() for each in first] == [each.words() for each in again]
    assert all(each.at_ms >= each.served.request.at_ms + eta.ASKED_AFTER_MS for each in first)

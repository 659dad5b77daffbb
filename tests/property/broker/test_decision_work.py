"""P15: how much a decision does is the same beside a hundred jobs and ten thousand. Steps are counted, not timed."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import pytest
from benchmarks.decisions import World

if TYPE_CHECKING:
    from types import FrameType

DECISIONS = 100
_MORE = 1.25
"""A heap of a hundred times as many flows is as deep again."""


def steps(jobs: int, users: int, monkeypatch: pytest.MonkeyPatch) -> float:
    """Return how many calls a decision makes on average, those into C among them."""
    world = World("blfq", jobs, users)
    world.decide(20)
    counted = 0

    def note(_frame: FrameType, event: str, _what: object) -> None:
        nonlocal counted
        counted += event in ("call", "c_call")

    policy = world.policy
    decide = policy.decide

    def watched(*asked: object) -> object:
        sys.setprofile(note)
        try:
            return decide(*asked)  # type: ignore[arg-type]
        finally:
            sys.setprofile(None)

    with monkeypatch.context() as patched:
        patched.setattr(policy, "decide", watched)
        decisions = world.decide(DECISIONS)
    return counted / len(decisions)


@pytest.mark.parametrize("users", [1, 10, 100, 1000])
def test_a_decision_does_no_more_where_more_wait(users: int, monkeypatch: pytest.MonkeyPatch) -> None:
    few = steps(100, users, monkeypatch)
    assert few > 20, "nothing was counted"
    assert steps(10_000, users, monkeypatch) <= _MORE * few

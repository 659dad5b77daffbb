"""Ranks against counting by hand; the order of a queue against sorting by hand."""

from __future__ import annotations

from hypothesis import given, settings, strategies as st

from lmq_broker.core.leases import fleet
from lmq_broker.core.ranks import Ranks
from lmq_broker.core.settings import Settings
from unit.broker.builders import a_broker, idle, job_id, ready, started

orders = st.integers(0, 5000)


@settings(max_examples=100, deadline=None)
@given(st.sets(orders, max_size=60), st.sets(orders, max_size=60), st.lists(orders, max_size=20))
def test_a_rank_is_how_many_are_smaller(added: set[int], removed: set[int], asked: list[int]) -> None:
    ranks = Ranks()
    for order in added:
        ranks.add(order)
    for order in added & removed:
        ranks.remove(order)
    left = added - removed
    assert ranks.size == len(left)
    for order in [*asked, *left]:
        assert ranks.below(order) == sum(each < order for each in left)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, 9), min_size=1, max_size=12), st.sets(st.integers(0, 11), max_size=4))
def test_jobs_start_by_priority_then_arrival_and_ahead_says_how_many_before(
    priorities: list[int], withdrawn: set[int]
) -> None:
    broker = a_broker(
        jobs=[ready(str(at), priority=priority) for at, priority in enumerate(priorities)],
        settings=Settings(policy="strict"),
    )
    names = {str(at) for at in withdrawn if at < len(priorities)}
    if names:
        broker.cancel("ann", *sorted(names))
    left = [str(at) for at in range(len(priorities)) if str(at) not in names]
    expected = sorted(left, key=lambda name: (-priorities[int(name)], int(name)))
    broker.worker(idle("w1", slots=0))
    policy, view = broker.state.policy, fleet(broker.state)
    ahead = {name: policy.crowd(broker.job(name), view).ahead_of(broker.job(name)) for name in left}
    assert ahead == {name: at for at, name in enumerate(expected)}
    broker.worker(idle("w1", request_id=2))
    order: list[str] = []
    while fresh := started(broker.turn(1), "w1"):
        order += fresh
        broker.reports("w1", fresh[0], "complete")
    assert order == expected
    assert all(job_id(name) in broker.state.finished for name in order)

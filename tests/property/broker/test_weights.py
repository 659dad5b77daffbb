"""A weight that changes while jobs wait and run: nobody gets credit out of it, and shares follow the new weight."""

from __future__ import annotations

from collections import defaultdict
from random import Random

import pytest
from hypothesis import given, settings, strategies as st

from lmq_broker.core.policies.blfq import Blfq
from lmq_broker.core.policies.ledger import Band, Flow
from lmq_broker.core.settings import Rates, Settings
from lmq_broker.forecast.engines import EngineModel
from lmq_broker.forecast.replay import Replay, Request

RATES = Rates(prompt_ms=0.5, output_ms=5.0)
WEIGHTS = (0.25, 0.5, 1.0, 2.0, 4.0)
seeds = st.integers(0, 1 << 32)


class Ledger:
    """A band in which users come, are served, are refunded and leave; with what each run has had so far."""

    def __init__(self, random: Random) -> None:
        self.random = random
        self.band = Band(0, 0.0)
        self.runs: list[tuple[Flow, list[float]]] = []
        """(flow, [predicted and not received yet, received])."""

    def act(self) -> None:
        """Let one thing happen."""
        random, band = self.random, self.band
        flow = band.flow(f"user-{random.randrange(4)}", random.choice(WEIGHTS))
        match random.randrange(4):
            case 0:
                band.enter(flow)
            case 1 if flow.queued:
                band.leave(flow)
                cost = random.uniform(1, 1000)
                band.start(flow, cost)
                self.runs.append((flow, [cost, 0.0]))
            case 2 if self.runs:
                running, run = random.choice(self.runs)
                more = random.uniform(0, 500)
                foreseen = min(more, run[0])
                run[0] -= foreseen
                run[1] += more
                band.serve(running, more, foreseen)
            case 3 if self.runs:
                running, run = self.runs.pop(random.randrange(len(self.runs)))
                band.end(running, random.choice((0.0, run[1], run[1] * 1.5)), run[1], run[0])

    def start_of_newcomers(self) -> float:
        """Return where a flow would begin that came now, while others wait or run."""
        waiting = [flow.service for flow in self.band.flows.values() if flow.queued]
        return max(self.band.virtual, min(waiting)) if waiting else self.band.virtual


def a_ledger(seed: int) -> tuple[Random, Ledger, Flow]:
    """Return a ledger in the middle of its life, and one of its flows."""
    random = Random(seed)
    ledger = Ledger(random)
    while not ledger.band.flows or random.random() < 0.98:
        ledger.act()
    return random, ledger, random.choice(list(ledger.band.flows.values()))


def refunded(flow: Flow) -> float:
    """Return the service that a flow is left with if all that runs of it is refunded."""
    return flow.service - flow.unsettled / flow.weight


@settings(max_examples=300, deadline=None)
@given(seeds, st.sampled_from(WEIGHTS))
def test_no_weight_puts_a_user_before_where_it_stood_or_newcomers_begin(seed: int, weight: float) -> None:
    """Neither now nor once all that runs is refunded."""
    _, ledger, flow = a_ledger(seed)
    start = ledger.start_of_newcomers()
    service, back = flow.service, refunded(flow)
    ledger.band.weigh(flow, weight)
    assert flow.service >= min(service, start) - 1e-6
    assert refunded(flow) >= min(back, start) - 1e-6


@settings(max_examples=300, deadline=None)
@given(seeds, st.sampled_from(WEIGHTS))
def test_what_a_user_owes_is_the_same_in_cost(seed: int, weight: float) -> None:
    _, ledger, flow = a_ledger(seed)
    start = ledger.start_of_newcomers()
    owed = (flow.service - start) * flow.weight
    is_settled_debt = refunded(flow) >= start
    ledger.band.weigh(flow, weight)
    if is_settled_debt:
        assert (flow.service - start) * flow.weight == pytest.approx(owed, abs=1e-6, rel=1e-9)


@settings(max_examples=300, deadline=None)
@given(seeds, st.lists(st.sampled_from(WEIGHTS), min_size=1, max_size=6))
def test_weights_to_and_fro_gain_nothing(seed: int, weights: list[float]) -> None:
    _, ledger, flow = a_ledger(seed)
    service, back, first = flow.service, refunded(flow), flow.weight
    for weight in (*weights, first):
        ledger.band.weigh(flow, weight)
    assert flow.service >= service - 1e-6
    assert refunded(flow) >= back - 1e-6


@settings(max_examples=100, deadline=None)
@given(seeds)
def test_others_lose_nothing_and_newcomers_never_begin_earlier(seed: int) -> None:
    random, ledger, flow = a_ledger(seed)
    virtual = ledger.band.virtual
    for _ in range(20):
        others = {each.user: each.service for each in ledger.band.flows.values() if each is not flow}
        ledger.band.weigh(flow, random.choice(WEIGHTS))
        assert others == {each.user: each.service for each in ledger.band.flows.values() if each is not flow}
        ledger.act()
        assert ledger.band.virtual >= virtual
        virtual = ledger.band.virtual
        if ledger.band.flows.get(flow.user) is not flow:
            return


@settings(max_examples=10, deadline=None)
@given(seeds)
def test_shares_follow_the_weight_from_its_change_on(seed: int) -> None:
    """Within 3 % of what is charged between the change and the end of the wait, whatever was before."""
    random = Random(seed)
    requests = [
        Request(0, user, random.randint(50, 150), random.randint(50, 150), model="m0")
        for user in ("user-1", "user-2", "user-3")
        for _ in range(600)
    ]
    fair = Settings(policy="blfq", rates={"m0": RATES}, weights={"user-2": 4.0})
    replay = Replay(requests, [EngineModel(slots=4, models=("m0",))], fair)
    policy = replay.state.policy
    assert isinstance(policy, Blfq)
    change_ms = random.randint(10_000, 60_000)
    had: dict[str, float] = defaultdict(float)
    is_changed = False
    for _ in replay.turns():
        if not is_changed and replay.now_ms >= change_ms:
            is_changed = True
            for user, weight in (("user-1", 3.0), ("user-2", 1.0)):
                policy.weigh(user, weight)
        if is_changed and min(share.queued for share in policy.shares()) == 0:
            break
    for each in replay.served.values():
        if each.started_ms >= change_ms:
            had[each.request.user] += (
                each.request.prompt_tokens * RATES.prompt_ms + each.request.output_tokens * RATES.output_ms
            )
    total = sum(had.values())
    for user, weight in (("user-1", 3.0), ("user-2", 1.0), ("user-3", 1.0)):
        assert had[user] / total == pytest.approx(weight / 5, abs=0.03)

"""Users of an app that share as one: one share for all of them, and inside it each in turn."""

from __future__ import annotations

from collections import Counter, defaultdict
from itertools import groupby
from random import Random

import pytest
from hypothesis import given, settings, strategies as st

from lmq_broker.core import leases
from lmq_broker.core.policies.blfq import Blfq
from lmq_broker.core.settings import Rates, Settings
from lmq_broker.core.state import Job
from lmq_broker.forecast.engines import EngineModel
from lmq_broker.forecast.replay import Replay, Request, Served
from lmq_proto.states import State

RATES = Rates(prompt_ms=0.5, output_ms=5.0)
MODELS = ("m0", "m1")
seeds = st.integers(0, 1 << 32)


def fair(**fields: object) -> Settings:
    return Settings(policy="blfq", rates=dict.fromkeys(MODELS, RATES), **fields)  # type: ignore[arg-type]


def a_request(random: Random, user: str, at_ms: int = 0, **fields: object) -> Request:
    told = {"model": "m0", **fields}
    return Request(at_ms, user, random.randint(1, 200), random.randint(1, 100), **told)  # type: ignore[arg-type]


def policy_of(replay: Replay) -> Blfq:
    policy = replay.state.policy
    assert isinstance(policy, Blfq)
    return policy


def run(replay: Replay) -> list[Served]:
    """Run to the end; return the jobs in the order in which they started."""
    for turn, _ in enumerate(replay.turns()):
        assert turn < 200_000, "jobs wait for ever"
    return sorted(replay.served.values(), key=lambda each: each.started_ms)


@settings(max_examples=25, deadline=None)
@given(seeds)
def test_two_users_of_an_app_alternate_though_one_has_a_hundred_jobs_and_the_other_three(seed: int) -> None:
    random = Random(seed)
    at_ms = random.randint(0, 10_000)
    requests = [a_request(random, "shop/alice") for _ in range(100)]
    requests += [a_request(random, "shop/bob", at_ms) for _ in range(3)]
    order = run(Replay(requests, [EngineModel(slots=1, models=("m0",))], fair()))
    users = [each.request.user for each in order if each.started_ms > at_ms]
    first = users.index("shop/bob")
    assert first <= 1
    assert users[first : first + 5 : 2] == ["shop/bob"] * 3
    assert users[first + 1 : first + 5 : 2] == ["shop/alice"] * 2


@settings(max_examples=25, deadline=None)
@given(seeds)
def test_those_who_wait_all_the_time_have_had_as_many_turns_but_for_one(seed: int) -> None:
    random = Random(seed)
    users = [f"shop/user-{number}" for number in range(random.randint(2, 6))]
    requests = [a_request(random, user) for user in users for _ in range(random.randint(5, 40))]
    order = run(Replay(requests, [EngineModel(slots=random.randint(1, 4), models=("m0",))], fair()))
    left = Counter(request.user for request in requests)
    had: Counter[str] = Counter()
    for _, at_once in groupby(order, key=lambda each: each.started_ms):
        for each in at_once:
            had[each.request.user] += 1
            left[each.request.user] -= 1
        still = [had[user] for user in users if left[user]]
        assert max(still, default=0) - min(still, default=0) <= 1


@settings(max_examples=15, deadline=None)
@given(seeds, st.sampled_from(["pooled", "each"]))
def test_pooled_is_one_share_and_each_is_one_for_everybody(seed: int, how: str) -> None:
    random = Random(seed)
    users = [*(f"shop/user-{number}" for number in range(3)), "tom"]
    requests = [a_request(random, user) for user in users for _ in range(500)]
    replay = Replay(requests, [EngineModel(slots=4, models=("m0",))], fair(apps={"shop": how}))
    for _ in replay.turns():
        waiting = {job.user for job in replay.state.jobs.values() if job.state is State.READY}
        if len(waiting) < len(users):
            break
    had: dict[str, float] = defaultdict(float)
    for each in replay.served.values():
        if each.started_ms >= 0:
            request = each.request
            had[request.user] += (
                request.prompt_tokens * RATES.prompt_ms + request.output_tokens * RATES.output_ms
            )
    total = sum(had.values())
    assert had["tom"] / total == pytest.approx(0.5 if how == "pooled" else 0.25, abs=0.03)
    if how == "pooled":
        for user in users[:3]:
            assert had[user] / total == pytest.approx(1 / 6, abs=0.05)


@settings(max_examples=25, deadline=None)
@given(seeds)
def test_every_job_starts_and_all_charges_settle_whoever_leaves(seed: int) -> None:
    """As for plain users: cancels, priorities, models, the app's own jobs among those of its users."""
    random = Random(seed)
    users = ("shop", "shop/alice", "shop/bob", "cafe/alice", "tom")
    requests = [
        a_request(random, random.choice(users), random.randint(0, 60_000), model=random.choice(MODELS),
                  priority=random.choice((2, 5, 6, 8)))
        for _ in range(150)
    ]  # fmt: skip
    engines = [EngineModel(slots=random.randint(1, 4), models=MODELS, load_s=1.0) for _ in range(2)]
    replay = Replay(requests, engines, fair())
    for turn, _ in enumerate(replay.turns()):
        assert turn < 200_000, "jobs wait for ever"
        jobs = [job for job in replay.state.jobs.values() if job.state is State.READY]
        assert sum(share.queued for share in policy_of(replay).shares()) == len(jobs)
        assert {share.user for share in policy_of(replay).shares()} <= {"shop", "cafe", "tom"}
        still_open = [key for key, each in replay.served.items() if each.ended_ms < 0 and not each.cancelled]
        if still_open and random.random() < 0.05:
            replay.cancel(random.choice(still_open))
    assert all(each.cancelled or each.started_ms >= 0 for each in replay.served.values())
    assert all(share.predicted == 0.0 for share in policy_of(replay).shares() if not share.running)


@settings(max_examples=25, deadline=None)
@given(seeds)
def test_ahead_is_right_but_for_a_round(seed: int) -> None:
    """Where one slot serves one app, as many start before a job as was said, give or take one of each user."""
    random = Random(seed)
    users = [f"shop/user-{number}" for number in range(random.randint(1, 5))]
    requests = [a_request(random, random.choice(users)) for _ in range(40)]
    replay = Replay(requests, [EngineModel(slots=1, models=("m0",))], fair())
    told: dict[bytes, int] = {}
    for _ in replay.turns():
        if not told and len(replay.state.jobs) == len(requests):
            waiting: list[Job] = [job for job in replay.state.jobs.values() if job.state is State.READY]
            fleet = leases.fleet(replay.state)
            told = {job.id: policy_of(replay).crowd(job, fleet).ahead_of(job) for job in waiting}
    order = sorted(told, key=lambda job_id: replay.served[job_id].started_ms)
    for place, job_id in enumerate(order):
        assert abs(told[job_id] - place) <= len(users)


@settings(max_examples=25, deadline=None)
@given(seeds)
def test_who_comes_again_and_again_gets_no_more_turns_than_who_waits(seed: int) -> None:
    """One has a line of a hundred, one has a single job at a time and asks for the next when it has started."""
    random = Random(seed)
    requests = [a_request(random, "shop/line") for _ in range(60)]
    requests += [
        a_request(random, "shop/drop", at_ms) for at_ms in range(0, 60_000, random.randint(100, 400))
    ]
    order = run(Replay(requests, [EngineModel(slots=1, models=("m0",))], fair()))
    line = [each for each in order if each.request.user == "shop/line"]
    until_ms = line[-1].started_ms
    drops = sum(each.request.user == "shop/drop" and each.started_ms < until_ms for each in order)
    assert drops <= len(line) + 1

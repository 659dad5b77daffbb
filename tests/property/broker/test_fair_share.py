"""What the fair policy promises, over random workloads on modelled engines: the properties of scheduling's fact sheet.

Each world is drawn from one number; the bounds are computed from what happened in it, not chosen.
"""

from __future__ import annotations

from collections import defaultdict
from random import Random
from typing import TYPE_CHECKING

import msgspec
import pytest
from hypothesis import example, given, settings, strategies as st

from lmq_broker.core.policies.blfq import Blfq
from lmq_broker.core.policies.lanes import Share
from lmq_broker.core.settings import BANDS, BandSettings, Rates, Settings
from lmq_broker.forecast.engines import EngineModel
from lmq_broker.forecast.replay import Replay, Request, Served

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

RATES = Rates(prompt_ms=0.5, output_ms=5.0)
MODELS = ("m0", "m1", "m2")
NO_SHARES = (
    BandSettings("interactive", 7, 0.0, 1.0),
    BandSettings("normal", 4, 0.0, 3.0),
    BandSettings("background", 0, 0.0, 5.0),
)

NO_RESERVE = tuple(msgspec.structs.replace(band, reserve=0) for band in BANDS)

seeds = st.integers(0, 1 << 32)


def fair(**fields: object) -> Settings:
    rates = dict.fromkeys((*MODELS, "model"), RATES)
    return Settings(policy="blfq", rates=rates, outlook_every_ms=0, **fields)  # type: ignore[arg-type]


def cost(request: Request) -> float:
    return 1.0 + request.prompt_tokens * RATES.prompt_ms + request.output_tokens * RATES.output_ms


def an_engine(random: Random, models: Sequence[str] = MODELS) -> EngineModel:
    return EngineModel(
        slots=random.randint(1, 8), first_ms=random.choice((5, 20, 30)), more_ms=random.choice((0, 1, 4)),
        load_s=random.choice((1, 5, 10)), models=tuple(models),
    )  # fmt: skip


def shares_of(replay: Replay) -> list[Share]:
    policy = replay.state.policy
    assert isinstance(policy, Blfq)
    return policy.shares()


def some_requests(
    random: Random,
    *,
    users: int,
    count: int,
    over_ms: int,
    models: Sequence[str],
    priorities: Sequence[int] = (5,),
) -> list[Request]:
    """Return requests of users who differ in how much they ask for."""
    sizes = {user: (random.randint(1, 400), random.randint(1, 300)) for user in range(users)}
    found = []
    for _ in range(count):
        user = min(random.randrange(users), random.randrange(users))
        prompt, output = sizes[user]
        found.append(
            Request(
                random.randint(0, over_ms), f"user-{user}", random.randint(1, prompt), random.randint(1, output),
                model=random.choice(list(models)), priority=random.choice(list(priorities)),
                output_tokens_told=random.choice((0, output, 2 * output)),
            )
        )  # fmt: skip
    return found


def run(replay: Replay, look: Callable[[], None] | None = None, most_turns: int = 200_000) -> list[Served]:
    """Run to the end; a world that does not end starves somebody."""
    for turn, _ in enumerate(replay.turns()):
        assert turn < most_turns, "jobs wait for ever"
        if look is not None:
            look()
    return list(replay.served.values())


@settings(max_examples=40, deadline=None)
@given(seeds)
def test_every_job_starts_no_slot_is_over_and_all_charges_settle(seed: int) -> None:
    """P1, P5, P7, P10, P14: in a quiet system nothing is predicted and nothing runs."""
    random = Random(seed)
    models = MODELS[: random.randint(1, 3)]
    engines = [an_engine(random, models) for _ in range(random.randint(1, 2))]
    requests = some_requests(
        random,
        users=random.randint(1, 8),
        count=120,
        over_ms=120_000,
        models=models,
        priorities=(0, 2, 5, 6, 8),
    )
    replay = Replay(requests, engines, fair())
    virtual: dict[int, float] = defaultdict(float)

    def look() -> None:
        for number, engine in enumerate(engines):
            assert replay.running[f"gpu-{number + 1}"] <= engine.slots
        policy = replay.state.policy
        assert isinstance(policy, Blfq)
        for index, value in policy.virtual_times().items():
            assert value >= virtual[index]
            virtual[index] = value
        # Some leave before their answer, some before their turn.
        open_jobs = [
            job_id for job_id, each in replay.served.items() if each.ended_ms < 0 and not each.cancelled
        ]
        if open_jobs and random.random() < 0.02:
            replay.cancel(random.choice(open_jobs))

    for each in run(replay, look):
        assert each.cancelled or each.started_ms >= 0
    for _ in range(1):
        assert all(each.running == each.queued == 0 for each in shares_of(replay)) or any(
            replay.running.values()
        )
        assert all(each.predicted == 0.0 for each in shares_of(replay) if not each.running)


@settings(max_examples=40, deadline=None)
@given(seeds, st.sampled_from(("vtc", "strict", "blfq")))
def test_no_endpoint_is_kept_for_a_model_that_has_come_up_elsewhere(seed: int, policy: str) -> None:
    """P5 with three models on two endpoints, whatever the patience: every job starts."""
    random = Random(seed)
    engines = [an_engine(random) for _ in range(2)]
    requests = some_requests(random, users=12, count=150, over_ms=300_000, models=MODELS)
    rates = dict.fromkeys(MODELS, RATES)
    assert all(
        each.started_ms >= 0 for each in run(Replay(requests, engines, Settings(policy=policy, rates=rates)))
    )


@settings(max_examples=25, deadline=None)
@given(seeds)
def test_service_is_what_jobs_cost(seed: int) -> None:
    """P1: where all wait from the start nobody is lifted, so that service is cost, to the last token."""
    random = Random(seed)
    requests = some_requests(random, users=random.randint(1, 6), count=80, over_ms=0, models=["m0"])
    replay = Replay(requests, [an_engine(random, ["m0"])], fair())
    run(replay)
    asked: dict[str, float] = defaultdict(float)
    for request in requests:
        asked[request.user] += cost(request)
    for share in shares_of(replay):
        assert share.service == pytest.approx(asked[share.user])


@settings(max_examples=25, deadline=None)
@given(seeds)
def test_no_slot_is_free_while_a_job_for_its_model_waits(seed: int) -> None:
    """P2, P12: with one model there is nothing to wait for but a slot; equals start in order."""
    random = Random(seed)
    requests = some_requests(random, users=4, count=100, over_ms=60_000, models=["m0"], priorities=(2, 5, 8))
    engine = an_engine(random, ["m0"])
    replay = Replay(requests, [engine], fair(bands=NO_RESERVE))

    def look() -> None:
        waiting = any(share.queued for share in shares_of(replay))
        assert not waiting or sum(replay.running.values()) == engine.slots

    served = run(replay, look)
    by_kind: dict[tuple[str, int], list[Served]] = defaultdict(list)
    for each in served:
        by_kind[each.request.user, each.request.priority].append(each)
    for equals in by_kind.values():
        starts = [each.started_ms for each in equals]
        assert starts == sorted(starts)


@settings(max_examples=40, deadline=None)
@given(seeds)
def test_keys_of_those_who_wait_stay_within_the_bound(seed: int) -> None:
    """P3: K_f - K_g <= H + (c_max + n * delta) / w_f + n * rho / w_g for users who wait all the time."""
    random = Random(seed)
    users = random.randint(2, 5)
    weights = {f"user-{number}": random.choice((1.0, 2.0, 4.0)) for number in range(users)}
    models = MODELS[: random.randint(1, 3)]
    engine = an_engine(random, models)
    requests = [
        Request(0, user, random.randint(1, 400), random.randint(1, 300), model=random.choice(models),
                output_tokens_told=random.choice((0, 300)))
        for user in weights
        for _ in range(60)
    ]  # fmt: skip
    replay = Replay(requests, [engine], fair(weights=weights))
    policy = replay.state.policy
    assert isinstance(policy, Blfq)
    most_cost = max(cost(request) for request in requests)
    # A guess lies between nothing and the longest answer: both errors are less than the costliest job.
    guess = 1.0 + 400 * RATES.prompt_ms + 300 * RATES.output_ms

    def look() -> None:
        waiting = [share for share in shares_of(replay) if share.queued]
        slots = engine.slots
        for f in waiting:
            for g in waiting:
                bound = (
                    policy.widest_lead + (max(most_cost, guess) + slots * most_cost) / f.weight
                    + slots * guess / g.weight
                )  # fmt: skip
                assert f.key - g.key <= bound

    run(replay, look)


@settings(max_examples=20, deadline=None)
@given(seeds)
def test_cutting_work_into_pieces_gains_no_more_than_the_bound(seed: int) -> None:
    """P9: of two users who wait all the time, the one with small jobs is ahead by no more than P3 allows."""
    random = Random(seed)
    parts = random.choice((2, 5, 20))
    output = random.randint(100, 300)
    engine = an_engine(random, MODELS[:1])
    whole = [Request(0, "whole", 40, output, model="m0", output_tokens_told=output) for _ in range(40)]
    pieces = [
        Request(0, "pieces", 40 // parts, output // parts, model="m0", output_tokens_told=output // parts)
        for _ in range(40 * parts)
    ]
    replay = Replay(whole + pieces, [engine], fair())
    policy = replay.state.policy
    assert isinstance(policy, Blfq)
    largest = max(map(cost, whole + pieces))
    seen = 0

    def look() -> None:
        nonlocal seen
        shares = {share.user: share for share in shares_of(replay) if share.queued}
        if len(shares) == 2:
            seen += 1
            gained = shares["pieces"].key - shares["whole"].key
            assert gained <= policy.widest_lead + (1 + 2 * engine.slots) * largest

    run(replay, look)
    assert seen > 10


@settings(max_examples=10, deadline=None)
@given(seeds)
def test_shares_follow_weights(seed: int) -> None:
    """P4: within 2 % once each has had some 200 jobs."""
    random = Random(seed)
    weights = {"user-1": 1.0, "user-2": 2.0, "user-3": 3.0, "user-4": 4.0}
    requests = [
        Request(0, user, random.randint(50, 150), random.randint(50, 150), model="m0")
        for user in weights
        for _ in range(800)
    ]
    replay = Replay(requests, [EngineModel(slots=4, models=("m0",))], fair(weights=weights))
    had: dict[str, float] = defaultdict(float)
    for _ in replay.turns():
        if min(share.queued for share in shares_of(replay)) == 0:
            for each in replay.served.values():
                if each.started_ms >= 0:
                    had[each.request.user] += cost(each.request)
            break
    total = sum(had.values())
    for user, weight in weights.items():
        assert had[user] / total == pytest.approx(weight / 10, abs=0.02)


@settings(max_examples=25, deadline=None)
@given(seeds)
def test_without_least_shares_a_lower_band_never_starts_before_a_higher_one_that_could(seed: int) -> None:
    """P6."""
    random = Random(seed)
    requests = some_requests(random, users=4, count=120, over_ms=60_000, models=["m0"], priorities=(1, 5, 8))
    replay = Replay(requests, [an_engine(random, ["m0"])], fair(bands=NO_SHARES))
    served = run(replay)
    for low in served:
        for high in served:
            if _band(high) < _band(low):
                assert not high.request.at_ms < low.started_ms < high.started_ms


def test_a_lower_band_has_its_least_share_and_no_more() -> None:
    """P5, P6: 10 % of what stricter bands get, counted in cost."""
    bands = (BandSettings("interactive", 7, 0.0, 1.0), BandSettings("normal", 0, 0.1, 3.0))
    requests = [Request(0, "ann", 50, 50, model="m0", priority=8) for _ in range(600)]
    requests += [Request(0, "tom", 50, 50, model="m0", priority=5) for _ in range(600)]
    replay = Replay(requests, [EngineModel(slots=4, models=("m0",))], fair(bands=bands))
    started: list[Served] = []
    for _ in replay.turns():
        started = [each for each in replay.served.values() if each.started_ms >= 0]
        if sum(each.request.user == "ann" for each in started) >= 500:
            break
    low = sum(each.request.user == "tom" for each in started)
    assert 0.08 <= low / 500 <= 0.12


@settings(max_examples=20, deadline=None)
@given(seeds)
def test_idling_banks_nothing(seed: int) -> None:
    """P8: who comes late begins where the others are, and gets ahead by no more than what they have in flight."""
    random = Random(seed)
    slots = random.randint(1, 6)
    requests = [Request(0, "busy", 100, 100, model="m0") for _ in range(300)]
    requests += [Request(0, "idle", 10, 10, model="m0")]
    late_ms = random.randint(20_000, 60_000)
    requests += [Request(late_ms, "idle", 100, 100, model="m0") for _ in range(300)]
    replay = Replay(requests, [EngineModel(slots=slots, models=("m0",))], fair())
    since: dict[str, float] = {}

    def look() -> None:
        waiting = {share.user: share for share in shares_of(replay) if share.queued}
        if len(waiting) < 2:
            return
        if not since:
            since.update({user: share.service for user, share in waiting.items()})
        gained = {user: share.service + share.predicted - since[user] for user, share in waiting.items()}
        one = cost(requests[0])
        # What a first guess is off by is more than what a job costs here.
        guess = 1.0 + 100 * RATES.prompt_ms + 256 * RATES.output_ms
        assert gained["idle"] - gained["busy"] <= 2 * (slots + 1) * max(one, guess)

    run(replay, look)


@settings(max_examples=10, deadline=None)
@given(seeds)
def test_the_same_traffic_is_decided_the_same_way(seed: int) -> None:
    """P11."""
    runs = []
    for _ in range(2):
        random = Random(seed)
        requests = some_requests(
            random, users=5, count=80, over_ms=60_000, models=MODELS, priorities=(2, 5, 8)
        )
        replay = Replay(requests, [an_engine(random) for _ in range(2)], fair())
        runs.append([(each.started_ms, each.worker) for each in run(replay)])
    assert runs[0] == runs[1]


@settings(max_examples=20, deadline=None)
@given(seeds)
def test_models_are_swapped_no_oftener_than_patience_allows(seed: int) -> None:
    """P13: at most one swap in each load plus the patience of its band, while work waits on both sides."""
    random = Random(seed)
    load_s = random.choice((5, 10))
    requests = [
        Request(0, f"user-{number % 2}", 100, random.randint(20, 200), model=f"m{number % 2}")
        for number in range(200)
    ]
    engine = EngineModel(slots=random.randint(1, 8), load_s=load_s, models=("m0", "m1"))
    replay = Replay(requests, [engine], fair())
    served = run(replay)
    horizon_ms = max(each.ended_ms for each in served)
    assert replay.swaps <= 2 + horizon_ms / (4 * load_s * 1000)


@settings(max_examples=20, deadline=None)
@given(seeds)
def test_whoever_is_passed_over_waits_for_patience_drain_and_load(seed: int) -> None:
    """P5: the affinity delay. One asks for another model while the present one is wanted without end."""
    random = Random(seed)
    load_s, output = random.choice((2, 10)), random.randint(20, 200)
    requests = [Request(0, "many", 50, output, model="m0") for _ in range(400)]
    at_ms = random.randint(1000, 30_000)
    requests.append(Request(at_ms, "one", 50, output, model="m1"))
    engine = EngineModel(slots=random.randint(1, 4), load_s=load_s, models=("m0", "m1"))
    replay = Replay(requests, [engine], fair())
    served = run(replay)
    one = next(each for each in served if each.request.user == "one")
    longest_ms = max(each.ended_ms - each.started_ms for each in served)
    assert one.wait_ms <= 3 * load_s * 1000 + 2 * longest_ms + load_s * 1000 + 1000


@settings(max_examples=8, deadline=None)
@given(seeds)
@example(1)
@example(21)
@example(12975)
def test_whoever_asks_now_and_then_is_not_kept_waiting_by_lower_bands_or_floods(seed: int) -> None:
    """P5 with all bands at work and three models for two endpoints: three turns, each of patience, drain and loads.

    Two are of flows of the same band that want the other models; what lower bands drain for, or are owed, adds nothing.
    """
    random = Random(seed)
    load_s = random.choice((2, 5, 10))
    output = random.randint(20, 200)
    requests = [
        Request(random.randint(0, 400_000), f"many-{model}-{priority}", 50, random.randint(10, output),
                model=model, priority=priority)
        for model, priority in (("m0", 8), ("m1", 8), ("m0", 5), ("m1", 5), ("m2", 5), ("m1", 1), ("m2", 1))
        for _ in range(random.randint(50, 400))
    ]  # fmt: skip
    requests += [
        Request(60_000 * turn + random.randint(0, 30_000), "one", 50, output, model="m2", priority=8)
        for turn in range(6)
    ]
    engine = EngineModel(slots=random.randint(1, 4), load_s=load_s, models=MODELS)
    served = run(Replay(requests, [engine, engine], fair()))
    longest_ms = max(each.ended_ms - each.started_ms for each in served)
    for one in served:
        if one.request.user == "one":
            assert one.wait_ms <= 3 * (3 * load_s * 1000 + 2 * longest_ms) + 1000


def _band(served: Served) -> int:
    priority = served.request.priority
    return 0 if priority >= 7 else 1 if priority >= 4 else 2

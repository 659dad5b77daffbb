"""What a replay came to, in figures: how long it took, who waited how long, how evenly they were served.

Service is counted in tokens as the published measurements of fair queues do: a prompt's once, an answer's twice, spread
evenly over the time in which the answer is written. Wherever users are compared, it is over their weights.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean

import msgspec

from lmq_broker.core.policies.lanes import band_of
from lmq_broker.core.settings import Settings
from lmq_broker.forecast.replay import Replay, Request, Served

WINDOW_MS = 60_000
TICKS = 100
"""Windows in which the gap is looked at, evenly over the time in which requests came."""
OUTPUT_WEIGHT = 2


class Waits(msgspec.Struct, frozen=True):
    """How long requests waited for their start, in seconds."""

    requests: int
    p50_s: float
    p95_s: float
    p99_s: float


class UserFigures(msgspec.Struct, frozen=True):
    """How one user fared."""

    user: str
    requests: int
    demand: int
    """Tokens asked for: prompts once, answers twice."""
    light: bool
    waits: Waits | None


class Fairness(msgspec.Struct, frozen=True):
    """How evenly users were served."""

    gap_max: float
    """In the worst minute: what all users got less than the best served while they asked for more, in tokens/s."""
    gap_mean: float
    jain_mean: float | None
    """Jain's index of service over weight, of users who waited in one band all through a minute; None: never two."""
    jain_least: float | None


class Figures(msgspec.Struct, frozen=True):
    """What one replay came to."""

    makespan_s: float
    """From the first request to the last answer."""
    answered: int
    unanswered: int
    """Refused, expired, dead, or still waiting."""
    stranded: int
    """Of these, those that waited for ever: the policy stood still with nothing running."""
    tokens_per_s: float
    """Read and written, over the makespan."""
    slots_used_ratio: float
    swaps: int
    loading_s: float
    """For how long endpoints loaded models and answered nothing, all together."""
    waits: Waits | None
    bands: dict[str, Waits]
    """Of those that have requests."""
    light: Waits | None
    """Of users who asked for less than the middle one."""
    fairness: Fairness
    users: list[UserFigures]
    """Those who asked for most first."""


def cost(request: Request) -> int:
    """Return what a request is counted as."""
    return request.prompt_tokens + OUTPUT_WEIGHT * request.output_tokens


_Flow = tuple[int, str]
"""(band, user)."""


def percentile(values: Sequence[float], hundredths: int) -> float:
    """Return the value below which `hundredths` percent of sorted values lie, by the nearest rank."""
    return values[max(-(-len(values) * hundredths // 100), 1) - 1]


def demands(requests: Iterable[Request]) -> dict[str, int]:
    """Return how much each user asked for."""
    found: dict[str, int] = defaultdict(int)
    for each in requests:
        found[each.user] += cost(each)
    return dict(found)


def light_users(demand: Mapping[str, int]) -> frozenset[str]:
    """Return the users who asked for less than the middle one."""
    if not demand:
        return frozenset()
    middle = sorted(demand.values())[len(demand) // 2]
    return frozenset(user for user, tokens in demand.items() if tokens < middle)


def waits_of(served: Iterable[Served]) -> Waits | None:
    """Return how long those waited that were started; None if none was."""
    waits_s = sorted(each.wait_ms / 1000 for each in served if each.started_ms >= 0)
    if not waits_s:
        return None
    p50_s, p95_s, p99_s = (percentile(waits_s, hundredths) for hundredths in (50, 95, 99))
    return Waits(len(waits_s), p50_s, p95_s, p99_s)


def figures_of(replay: Replay, settings: Settings) -> Figures:
    """Return what a replay came to that has run to its end."""
    served = list(replay.served.values())
    answered = [each for each in served if each.done]
    demand = demands(replay.requests)
    light = light_users(demand)
    makespan_ms = max((each.ended_ms for each in answered), default=0)
    slots = sum(engine.slots for engine in replay.engines)
    tokens = sum(each.request.prompt_tokens + each.request.output_tokens for each in answered)
    by_band: dict[int, list[Served]] = defaultdict(list)
    by_user: dict[str, list[Served]] = defaultdict(list)
    for each in served:
        by_band[band_of(each.request.priority, settings)].append(each)
        by_user[each.request.user].append(each)
    return Figures(
        makespan_s=makespan_ms / 1000,
        answered=len(answered),
        unanswered=len(served) - len(answered),
        stranded=replay.left,
        tokens_per_s=tokens * 1000 / makespan_ms if makespan_ms else 0.0,
        slots_used_ratio=sum(each.ended_ms - each.started_ms for each in answered) / (slots * makespan_ms)
        if makespan_ms
        else 0.0,
        swaps=replay.swaps,
        loading_s=replay.loading_ms / 1000,
        waits=waits_of(served),
        bands={
            settings.bands[index].name: waits
            for index in sorted(by_band)
            if (waits := waits_of(by_band[index])) is not None
        },
        light=waits_of(each for each in served if each.request.user in light),
        fairness=fairness_of(answered, settings),
        users=[
            UserFigures(user, len(by_user[user]), tokens, user in light, waits_of(by_user[user]))
            for user, tokens in sorted(demand.items(), key=lambda each: (-each[1], each[0]))
        ],
    )


def fairness_of(served: Sequence[Served], settings: Settings) -> Fairness:
    """Return how evenly those were served that were answered."""
    gaps = gaps_of(served, settings.weights)
    jains = jains_of(served, settings)
    return Fairness(
        gap_max=max(gaps, default=0.0),
        gap_mean=fmean(gaps) if gaps else 0.0,
        jain_mean=fmean(jains) if jains else None,
        jain_least=min(jains, default=None),
    )


def gaps_of(served: Sequence[Served], weights: Mapping[str, float]) -> list[float]:
    """Return, for each of many minutes, how far all users were behind the best served, as far as they asked for more.

    Of a user it is the difference to the best served, or of what he asked for and what he got if that is less. Source:
    Sheng et al., "Fairness in Serving Large Language Models", OSDI 2024, section 5, and its artifact.
    """
    last_ms = max((each.request.at_ms for each in served), default=0)
    tick_ms = last_ms / TICKS
    got: list[dict[str, float]] = [defaultdict(float) for _ in range(TICKS)]
    asked: list[dict[str, float]] = [defaultdict(float) for _ in range(TICKS)]
    if not tick_ms:
        return []
    half_ms = WINDOW_MS / 2
    for each in served:
        user = each.request.user
        weight = weights.get(user, 1.0)
        for tick in _ticks(each.first_ms - half_ms, each.ended_ms + half_ms, tick_ms):
            middle_ms = tick * tick_ms
            got[tick][user] += service(each, middle_ms - half_ms, middle_ms + half_ms) / weight
        for tick in _ticks(each.request.at_ms - half_ms, each.request.at_ms + half_ms, tick_ms):
            asked[tick][user] += cost(each.request) / weight
    users = sorted({each.request.user for each in served})
    return [
        sum(min(max(had.values(), default=0.0) - had.get(user, 0.0), abs(wanted.get(user, 0.0) - had.get(user, 0.0)))
            for user in users) / (WINDOW_MS / 1000)
        for had, wanted in zip(got, asked, strict=True)
    ]  # fmt: skip


def jains_of(served: Sequence[Served], settings: Settings) -> list[float]:
    """Return Jain's index of each band and minute, over the users who waited all through it, if there were two."""
    flows: dict[_Flow, list[Served]] = defaultdict(list)
    for each in served:
        flows[band_of(each.request.priority, settings), each.request.user].append(each)
    got: dict[tuple[int, int], dict[str, float]] = defaultdict(dict)
    for (band, user), own in sorted(flows.items()):
        for minute in _waiting_minutes(own):
            got[band, minute][user] = 0.0
    for (band, user), own in flows.items():
        weight = settings.weights.get(user, 1.0)
        for each in own:
            for minute in range(each.first_ms // WINDOW_MS, each.ended_ms // WINDOW_MS + 1):
                if user in got.get((band, minute), ()):
                    start_ms = minute * WINDOW_MS
                    got[band, minute][user] += service(each, start_ms, start_ms + WINDOW_MS) / weight
    return [jain(list(got[key].values())) for key in sorted(got) if len(got[key]) > 1]


def jain(values: Sequence[float]) -> float:
    """Return Jain's index: 1 if all are equal, 1/n if one has all; 1 if nobody has anything."""
    squares = sum(value * value for value in values)
    return sum(values) ** 2 / (len(values) * squares) if squares else 1.0


def service(served: Served, from_ms: float, to_ms: float) -> float:
    """Return what a request was served between two times."""
    if served.ended_ms <= served.first_ms:
        return float(cost(served.request)) if from_ms < served.ended_ms <= to_ms else 0.0
    overlap_ms = min(to_ms, served.ended_ms) - max(from_ms, served.first_ms)
    if overlap_ms <= 0:
        return 0.0
    return cost(served.request) * overlap_ms / (served.ended_ms - served.first_ms)


def _ticks(from_ms: float, to_ms: float, tick_ms: float) -> range:
    first = max(0, -int(-from_ms // tick_ms))
    return range(first, min(TICKS - 1, int(to_ms // tick_ms)) + 1)


def _waiting_minutes(served: Iterable[Served]) -> list[int]:
    """Return the minutes all through which at least one of these waited."""
    found: list[int] = []
    begin_ms, end_ms = 0, -1
    spans = sorted((each.request.at_ms, each.started_ms) for each in served)
    for from_ms, to_ms in [*spans, (1 << 62, 1 << 62)]:
        if from_ms <= end_ms:
            end_ms = max(end_ms, to_ms)
        else:
            found += range(-(-begin_ms // WINDOW_MS), end_ms // WINDOW_MS)
            begin_ms, end_ms = from_ms, to_ms
    return found

"""Models and load, for `fairness`: what loads cost and whom, too much of everything, an hour of a public cloud."""

from __future__ import annotations

from statistics import fmean
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from benchmarks import fair_traffic as traffic
from benchmarks.fair_runs import UNBOUNDED, Part, Plan, at_full_load, prose, run, two_endpoints
from benchmarks.results import markdown_table
from benchmarks.targets import Target
from lmq_broker.core.settings import BANDS, Settings
from lmq_broker.forecast.choices import engines
from lmq_broker.forecast.figures import demands, light_users, waits_of
from lmq_broker.forecast.replay import Replay
from lmq_broker.forecast.traces import dealt, stretched

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lmq_broker.forecast.engines import EngineModel
    from lmq_broker.forecast.figures import Waits
    from lmq_broker.forecast.replay import Request

LOADS_S = (10.0, 30.0)
LIMITS = {10.0: 1.15, 30.0: 1.20}
"""Time of a load -> the makespan over the ideal one that is to be reached."""


class Mean(NamedTuple):
    """Means over several ways to deal users over models."""

    makespan_s: float
    swaps: float
    p50_s: float
    light_p50_s: float
    light_p99_s: float
    stood_still: int
    """Maps in which requests waited for ever while nothing ran; the means are over the others."""


def over_maps(plan: Plan, choice: str, load_s: float, settings: Settings | None = None) -> Mean | None:
    """Return means over ways to deal 27 users over 3 models on 2 endpoints; None: it stood still in all of them."""
    rows = []
    for seed in range(plan.seeds):
        figures = run(choice, dealt(at_full_load(plan), 3, seed), two_endpoints(3, load_s), settings).figures
        assert figures.waits is not None
        assert figures.light is not None
        if not figures.stranded:
            light = figures.light
            rows.append((figures.makespan_s, figures.swaps, figures.waits.p50_s, light.p50_s, light.p99_s))
    if not rows:
        return None
    makespan_s, swaps, p50_s, light_p50_s, light_p99_s = (fmean(column) for column in zip(*rows, strict=True))
    return Mean(makespan_s, swaps, p50_s, light_p50_s, light_p99_s, plan.seeds - len(rows))


def ideal_makespan_s(plan: Plan) -> float:
    """Return the makespan with one model, which nobody has to wait for."""
    return run("fifo", dealt(at_full_load(plan), 1, 0), two_endpoints(1, 10.0)).figures.makespan_s


def models(plan: Plan) -> Part:
    """Three models on two endpoints that hold one each."""
    ideal_s = ideal_makespan_s(plan)
    rows: list[list[str]] = []
    targets = []
    still = False
    for load_s in LOADS_S:
        found: dict[str, Mean | None] = {}
        for choice in ("fifo", "strict", UNBOUNDED, "vtc", "blfq"):
            plan.say(f"3 models, loads of {load_s:.0f} s: {choice}")
            found[choice] = mean = over_maps(plan, choice, load_s)
            if mean is None or mean.stood_still:
                still = True
            rows.append([f"{load_s:.0f} s", choice, *_mean_cells(mean, ideal_s, plan.seeds)])
        ours, free = found["blfq"], found[UNBOUNDED]
        assert ours is not None
        assert free is not None
        ratio, limit = ours.makespan_s / ideal_s, LIMITS[load_s]
        targets += [
            Target(f"makespan / ideal without swaps, loads of {load_s:.0f} s", f"<= {limit:.2f}", f"{ratio:.3f}",
                   ratio <= limit),
            Target(f"light users' p99 / unbounded, loads of {load_s:.0f} s", "<= 0.5",
                   f"{ours.light_p99_s / free.light_p99_s:.2f}", ours.light_p99_s <= free.light_p99_s / 2),
            Target(f"swaps / unbounded, loads of {load_s:.0f} s", "<= 2", f"{ours.swaps / free.swaps:.2f}",
                   ours.swaps <= 2 * free.swaps),
        ]  # fmt: skip
    batch = [msgspec.structs.replace(each, at_ms=0) for each in dealt(at_full_load(plan), 3, 0)]
    swaps = run(UNBOUNDED, batch, two_endpoints(3, 10.0)[:1]).figures.swaps
    targets.append(
        Target(
            "swaps of a static batch, endless patience, one endpoint",
            "= models not loaded = 2",
            str(swaps),
            swaps == 2,
        )
    )
    stood = (
        prose("""
            Where a policy "stood still", an endpoint was empty while requests waited for ever: a swap whose
            model had come up elsewhere meanwhile kept it reserved. The means are over the other maps.""")
        if still
        else ""
    )
    head = [
        "load",
        "policy",
        "makespan (s)",
        "/ ideal",
        "swaps",
        "wait p50 (s)",
        "light users' p50 (s)",
        "p99",
    ]
    return Part(
        "### Three models on two endpoints\n\n"
        + prose(f"""
            The arena replay, stretched {traffic.STRETCH} times, its 27 users dealt over 3 models; 2
            endpoints of 8 slots (20 + 3n ms a token) that hold one model each. Means over {plan.seeds}
            user-to-model maps. Ideal is the makespan with one model and no swaps, {ideal_s:,.0f} s: the
            stretch was chosen once so that it is that of the comparison that the goals come from (1,339 s).
            `unbounded` is blfq with endless patience: whoever wants the loaded model goes first. `fifo` and
            `vtc` have no patience at all.""")
        + markdown_table(head, rows, text_columns=2)
        + ("\n" + stood if stood else ""),
        targets,
    )


def _mean_cells(mean: Mean | None, ideal_s: float, maps: int) -> list[str]:
    if mean is None:
        return ["stood still", *["-"] * 5]
    still = f" ({mean.stood_still} of {maps} stood still)" if mean.stood_still else ""
    return [
        f"{mean.makespan_s:,.0f}{still}", f"{mean.makespan_s / ideal_s:.2f}", f"{mean.swaps:.0f}", f"{mean.p50_s:,.1f}",
        f"{mean.light_p50_s:,.1f}", f"{mean.light_p99_s:,.0f}",
    ]  # fmt: skip


# --- overload --------------------------------------------------------------------------------------------------------


class Pressed(NamedTuple):
    """What became of requests under overload."""

    goodput: float
    answered: int
    refused: int
    expired: int
    attempts: int
    most_open: int
    waits: Waits
    light_ratio: float
    """Of light users' requests, those that were answered."""


_OPEN_MAX = 200
_EXPIRES_S = 60
_CAPACITY_STRETCH = 1.54
"""Of the arena replay: as many tokens come as two endpoints of 8 busy slots can serve."""


def overload(plan: Plan) -> Part:
    """Three times the load that endpoints can bear, with bounded queues and requests that expire."""
    settings = Settings(jobs_open=_OPEN_MAX, jobs_open_per_user=_OPEN_MAX // 4, policy="blfq")
    found: dict[float, Pressed] = {}
    rows = []
    for load in (0.5, 1.0, 1.5, 2.0, 3.0):
        plan.say(f"overload, {load} times")
        once = [
            msgspec.structs.replace(each, expires_ms=_EXPIRES_S * 1000)
            for each in stretched(traffic.trace(traffic.ARENA, plan.folder), _CAPACITY_STRETCH / load)
        ]
        requests = traffic.repeated(once, max(1, round(2 * load)))
        found[load] = each = pressed(requests, settings, two_endpoints(1, 10.0))
        rows.append([
            f"{load:g}", f"{len(requests):,}", f"{each.answered:,}", f"{each.refused:,}", f"{each.expired:,}",
            f"{each.goodput:.0f}", str(each.most_open), f"{each.waits.p99_s:.0f}", f"{each.light_ratio:.0%}",
        ])  # fmt: skip
    peak = max(each.goodput for each in found.values())
    ratio = found[3.0].goodput / peak
    most_open = max(each.most_open for each in found.values())
    again = sum(each.attempts for each in found.values()) / sum(each.answered for each in found.values()) - 1
    head = [
        "load", "requests", "answered", "refused", "expired", "goodput (tokens/s)", "most open jobs", "wait p99 (s)",
        "of light users answered",
    ]  # fmt: skip
    return Part(
        "### Overload\n\n"
        + prose(f"""
            The arena replay at several times what 2 endpoints of 8 slots can bear, over and over for about
            half an hour; at most {_OPEN_MAX} open jobs and {_OPEN_MAX // 4} of one user, and a request that
            has not started within {_EXPIRES_S} s expires. Goodput counts the tokens of those that were
            answered. What is refused is told when to come back; here it does not.""")
        + markdown_table(head, rows),
        [
            Target("goodput at 3 times the load / peak", ">= 0.90", f"{ratio:.2f}", ratio >= 0.9),
            Target("open jobs under overload", f"<= {_OPEN_MAX}", str(most_open), most_open <= _OPEN_MAX),
            Target("attempts that had to be made again", "<= 10 %", f"{again:.1%}", again <= 0.1),
        ],
    )


def pressed(requests: Sequence[Request], settings: Settings, on: Sequence[EngineModel]) -> Pressed:
    """Replay under the bounds of these settings."""
    requests = [msgspec.structs.replace(each, model=on[0].models[0]) for each in requests]
    replay = Replay(requests, on, settings)
    most_open = 0
    for _ in replay.turns():
        most_open = max(most_open, len(replay.state.jobs))
    served = list(replay.served.values())
    done = [each for each in served if each.done]
    waits = waits_of(done)
    assert waits is not None
    light = light_users(demands(requests))
    of_light = [each for each in served if each.request.user in light]
    tokens = sum(each.request.prompt_tokens + each.request.output_tokens for each in done)
    return Pressed(
        goodput=tokens * 1000 / max(each.ended_ms for each in done),
        answered=len(done),
        refused=sum(each.state == "refused" for each in served),
        expired=sum(each.state == "expired" for each in served),
        attempts=sum(each.attempts for each in served),
        most_open=most_open,
        waits=waits,
        light_ratio=sum(each.done for each in of_light) / len(of_light),
    )


# --- a larger trace --------------------------------------------------------------------------------------------------


def azure(plan: Plan) -> Part:
    """An hour of a public cloud's chats, on three large endpoints."""
    requests = traffic.in_bands(traffic.among_users(traffic.trace(traffic.AZURE, plan.folder), 40, 1), 1)
    on = engines([(f"gpu-{number}", traffic.LARGE.slots) for number in (1, 2, 3)], ["model"], traffic.LARGE)
    rows = []
    used = 0.0
    for choice in ("fifo", "strict", "vtc", "blfq"):
        plan.say(f"Azure's chats: {choice}")
        figures = run(choice, requests, on).figures
        fairness, used = figures.fairness, figures.slots_used_ratio
        row = [choice, f"{figures.makespan_s:,.0f}"]
        for band in BANDS:
            waits = figures.bands[band.name]
            row += [f"{waits.p50_s:.1f}", f"{waits.p95_s:,.1f}", f"{waits.p99_s:,.0f}"]
        row += [
            f"{fairness.jain_mean:.3f}" if fairness.jain_mean is not None else "-",
            f"{fairness.gap_mean:,.0f}",
        ]
        rows.append(row)
    head = ["policy", "makespan (s)"]
    for band in BANDS:
        head += [f"{band.name} p50 (s)", "p95", "p99"]
    return Part(
        "### An hour of a public cloud\n\n"
        + prose(f"""
            {len(requests):,} chats of Azure's trace of 2023 within {requests[-1].at_ms / 1000:,.0f} s,
            which names no users: dealt to 40 by chance, the nth of whom asks for 1/n as much as the first;
            one in five is interactive, one in five background. 3 endpoints of {traffic.LARGE.slots} slots,
            of which {used:.0%} are in use. Jain's index is of users who wait in the same band; the gap is
            over all users, in tokens/s.""")
        + markdown_table([*head, "Jain, mean", "gap, mean"], rows),
    )

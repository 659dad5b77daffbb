"""Bands, for `fairness`: a person beside a flood, and slots that go to a lower band."""

from __future__ import annotations

from collections import defaultdict
from statistics import fmean
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from benchmarks import fair_traffic as traffic
from benchmarks.fair_runs import Part, Plan, at_full_load, changed_bands, patient, prose, run, two_endpoints
from benchmarks.results import markdown_table
from benchmarks.targets import Target
from lmq_broker.core.policies.lanes import band_of
from lmq_broker.core.settings import BANDS, Settings
from lmq_broker.forecast.figures import waits_of
from lmq_broker.forecast.traces import dealt

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lmq_broker.forecast.engines import EngineModel
    from lmq_broker.forecast.figures import Waits
    from lmq_broker.forecast.replay import Served

_LOAD_S = 10.0
_ENGINE = msgspec.structs.replace(traffic.COMMON, slots=4, load_s=_LOAD_S)
LONGEST_S = _ENGINE.gap_ms(4) * traffic.FLOOD_TOKENS_MAX / 1000
MEAN_S = _ENGINE.gap_ms(4) * (traffic.FLOOD_TOKENS_MIN + traffic.FLOOD_TOKENS_MAX) / 2000
"""Of a background job beside three others."""


class Flooded(NamedTuple):
    """What became of the person beside the flood, over some seeds."""

    waits: Waits
    swaps: float
    done_s: float
    """When the last background job was."""


def floods(plan: Plan) -> Part:
    """A person beside 300 background jobs, who wants the same model or another."""
    shipped, bare = Settings(), changed_bands(Settings(), reserve=0)
    kinds: dict[tuple[str, str], tuple[str, Settings]] = {
        ("the same", "fifo"): ("fifo", bare), ("the same", "strict"): ("strict", bare),
        ("the same", "blfq, no slot reserved"): ("blfq", bare), ("the same", "blfq"): ("blfq", shipped),
        ("another", "fifo"): ("fifo", bare), ("another", "strict"): ("strict", bare),
        ("another", "blfq, no slot reserved"): ("blfq", bare), ("another", "blfq"): ("blfq", shipped),
        ("another", "blfq, interactive patience 3 loads"): ("blfq", patient(3.0, shipped, bands=(0,))),
    }  # fmt: skip
    found: dict[tuple[str, str], Flooded] = {}
    for (model, name), (choice, settings) in kinds.items():
        plan.say(f"300 background jobs and a person, {model} model: {name}")
        found[model, name] = flooded(plan, choice, model, settings)
    rows = [
        [model, name, f"{each.waits.p50_s:,.1f}", f"{each.waits.p95_s:,.1f}", f"{each.waits.p99_s:,.1f}",
         f"{each.swaps:.0f}", f"{each.done_s:,.0f}"]
        for (model, name), each in found.items()
    ]  # fmt: skip
    same, kept = found["the same", "blfq, no slot reserved"], found["the same", "blfq"]
    slower = kept.done_s / same.done_s - 1
    targets = [
        Target("person beside a flood, same model, p50", f"<= mean job / slots = {MEAN_S / 4:.1f} s",
               f"{same.waits.p50_s:.1f} s", same.waits.p50_s <= MEAN_S / 4),
        Target("person beside a flood, same model, p99", f"<= one background job = {LONGEST_S:.1f} s",
               f"{same.waits.p99_s:.1f} s", same.waits.p99_s <= LONGEST_S),
        Target("the same with a reserved slot, p50", "0 s", f"{kept.waits.p50_s:.1f} s, the flood {slower:+.0%}",
               kept.waits.p50_s == 0),
    ]  # fmt: skip
    for name, patience in (("blfq", BANDS[0].patience), ("blfq, interactive patience 3 loads", 3.0)):
        limit_s = patience * _LOAD_S + LONGEST_S + 2 * _LOAD_S
        p99_s = found["another", name].waits.p99_s
        targets.append(
            Target(f"person beside a flood, another model, T {patience * _LOAD_S:.0f} s, p99",
                   f"<= T + longest job + 2 loads = {limit_s:.1f} s", f"{p99_s:.1f} s", p99_s <= limit_s)
        )  # fmt: skip
    head = ["wants", "policy", "person's wait p50 (s)", "p95", "p99", "swaps", "flood done after (s)"]
    return Part(
        "### A person beside a flood\n\n"
        + prose(f"""
            300 background jobs of {traffic.FLOOD_TOKENS_MIN} to {traffic.FLOOD_TOKENS_MAX} tokens at once
            on one endpoint of 4 slots (beside three others {MEAN_S:.1f} s each, {LONGEST_S:.1f} s at most),
            and for 600 s a person who asks for 40 to 80 tokens every 5 to 15 s; a load takes {_LOAD_S:.0f}
            s; seeds: {plan.seeds}. As it ships, blfq keeps one slot of an instance free of background jobs
            while people are about.""")
        + markdown_table(head, rows, text_columns=2),
        targets,
    )


def flooded(plan: Plan, choice: str, model: str, settings: Settings) -> Flooded:
    """Run the flood under a policy, over all seeds."""
    persons: list[Served] = []
    swaps, ends_s = [], []
    wanted = "model" if model == "the same" else "other"
    engine: EngineModel = msgspec.structs.replace(_ENGINE, models=tuple(dict.fromkeys(("model", wanted))))
    for seed in range(plan.seeds):
        done = run(choice, traffic.flood(seed, model=wanted), [engine], settings)
        persons += [each for each in done.served if each.request.user == "person"]
        swaps.append(done.figures.swaps)
        ends_s.append(max(each.ended_ms for each in done.served if each.request.user == "flood") / 1000)
    waits = waits_of(persons)
    assert waits is not None
    return Flooded(waits, fmean(swaps), fmean(ends_s))


def inversions(plan: Plan) -> Part:
    """How long slots were given to a band while a stricter one waited for the same model."""
    free = changed_bands(Settings(), share=0.0)
    rows = []
    seen: dict[tuple[int, str], float] = {}
    for models in (1, 3):
        for name, choice, settings in (
            ("fifo", "fifo", Settings()), ("strict", "strict", Settings()), ("blfq, no least shares", "blfq", free),
            ("blfq", "blfq", Settings()),
        ):  # fmt: skip
            plan.say(f"priority inversion, {models} models: {name}")
            inverted, used = 0.0, 0.0
            interactive: list[Served] = []
            for seed in range(plan.seeds):
                requests = traffic.in_bands(at_full_load(plan, traffic.STRETCH / 2), seed)
                done = run(choice, dealt(requests, models, seed), two_endpoints(models, 10.0), settings)
                inverted += inversion_s(done.served, settings)
                used += sum(each.ended_ms - each.started_ms for each in done.served) / 1000
                interactive += [each for each in done.served if band_of(each.request.priority, settings) == 0]
            waits = waits_of(interactive)
            assert waits is not None
            seen[models, name] = inverted
            rows.append([
                str(models), name, f"{inverted:,.0f}", f"{inverted / used:.1%}", f"{waits.p50_s:,.1f}",
                f"{waits.p99_s:,.0f}",
            ])  # fmt: skip
    one, three = seen[1, "blfq, no least shares"], seen[3, "blfq, no least shares"]
    head = ["models", "policy", "slot seconds", "of all", "interactive wait p50 (s)", "p99"]
    return Part(
        "### Priority inversion\n\n"
        + prose(f"""
            Slot seconds that went to a band while a stricter one had something waiting for the same model:
            the arena replay, one user in five interactive and one in five background, 2 endpoints of 8
            slots at twice the load of the part "Three models on two endpoints"; seeds: {plan.seeds}. With
            one model and without least shares there is no reason for any; with them it is what they are
            owed. With three models, slots that fall free while a model is drained are filled with what is
            soon over.""")
        + markdown_table(head, rows, text_columns=2),
        [
            Target("avoidable priority inversion, one model", "0 s", f"{one:.0f} s", one == 0),
            Target("the same, three models, with what fills drains", "0 s", f"{three:.0f} s", three == 0),
        ],
    )


def inversion_s(served: Sequence[Served], settings: Settings) -> float:
    """Return for how long slots were used by a band while a stricter one waited for the same model, summed."""
    waiting: dict[str, list[tuple[int, int, int]]] = defaultdict(list)
    for each in served:
        band = band_of(each.request.priority, settings)
        waiting[each.request.model].append((each.request.at_ms, each.started_ms, band))
    total_ms = 0
    for each in served:
        band = band_of(each.request.priority, settings)
        until_ms = max(
            (to_ms for from_ms, to_ms, other in waiting[each.request.model]
             if other < band and from_ms <= each.started_ms < to_ms),
            default=0,
        )  # fmt: skip
        total_ms += max(0, min(until_ms, each.ended_ms) - each.started_ms)
    return total_ms / 1000

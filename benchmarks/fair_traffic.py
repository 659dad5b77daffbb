"""Traffic for `fairness`: the public traces, and floods that are drawn from a seed.

No logarithms and no powers, so that it is the same on any machine. What is done with it is in `fair_shares`,
`fair_bands` and `fair_models`.
"""

from __future__ import annotations

from random import Random
from typing import TYPE_CHECKING

import msgspec

from benchmarks.results import ROOT
from lmq_broker.forecast import traces
from lmq_broker.forecast.engines import EngineModel
from lmq_broker.forecast.figures import cost
from lmq_broker.forecast.replay import Request

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

FOLDER = ROOT / "benchmarks" / "traces"
ARENA = "arena27_users.csv"
AZURE = "azure2023_conv.csv"

FLOOD_TOKENS_MIN, FLOOD_TOKENS_MAX = 128, 384
"""Of the answers of background jobs."""
STRETCH = 2.2
"""Of the arena trace on two endpoints of 8 slots. Found once: with one model, first come first served, the makespan is
then 1,340 s, the last request comes after 1,320 s, and 70 % of the slots are in use; at 2.0 it is 79 %, at 1.8 86 %.
What loads take comes on top."""


class NoTrace(Exception):
    """A trace is not where it was looked for; the text says what to do."""

    def __init__(self, name: str, folder: Path) -> None:
        super().__init__(
            f"no {name} in {folder}; name its folder with --traces or LMQ_TRACES (sources: benchmarks/traces/README.md)"
        )
        self.name, self.folder = name, folder


def trace(name: str, folder: Path) -> list[Request]:
    """Read a public trace.

    Raises:
        NoTrace: there is none in this folder.
    """
    path = folder / name
    if not path.exists():
        raise NoTrace(name, folder)
    with path.open(encoding="utf-8") as lines:
        return traces.read(lines)


def two_users(told: str, seed: int, over_s: int = 600) -> list[Request]:
    """Return two users who ask for more than half each, one twice as often; all requests are of 256 and 256 tokens.

    The set-up `overload` of VTC-artifact, for 600 s. `told` is what is known of lengths: "nothing", "half" (within 50 %
    of the truth) or "truth".
    """
    return _steady({"user-1": 1.5, "user-2": 3.0}, told, seed, over_s)


def eight_users(told: str, seed: int, over_s: int = 600) -> list[Request]:
    """Return eight users who ask for more than an eighth each (`overload-multi` of VTC-artifact)."""
    rates = {f"user-{number + 1}": 0.4 if number < 3 else 0.6 for number in range(8)}
    return _steady(rates, told, seed, over_s)


BACKLOG = EngineModel(slots=24, first_ms=20.0, more_ms=1.65, prompt_tokens_per_s=8000)
"""Serves some 1.55 requests of 256 and 256 tokens a second, as the endpoint of the published measurement did."""
ARENA_ONE = EngineModel(slots=28, first_ms=20.0, more_ms=1.18)
"""One endpoint on which the arena replay, first come first served, runs at the published 777 tokens/s."""
LARGE = EngineModel(slots=16, first_ms=15.0, more_ms=1.5, prompt_tokens_per_s=4000)
"""A card of a data centre, with a small model."""
COMMON = EngineModel(slots=8, first_ms=20.0, more_ms=3.0)
"""A card at home."""


def weighted_users(seed: int) -> tuple[list[Request], dict[str, float]]:
    """Return four users with weights 1 to 4 who have everything queued from the start, and their weights."""
    random = Random(seed)
    weights = {f"user-{number}": float(number) for number in range(1, 5)}
    requests = [
        Request(0, user, random.randint(50, 450), random.randint(50, 450))
        for user in weights
        for _ in range(2000)
    ]
    return requests, weights


def flood(seed: int, *, model: str = "model", over_s: int = 600) -> list[Request]:
    """Return 300 background jobs at once, and a person who asks for something short about every 10 s."""
    random = Random(seed)
    requests = [
        Request(0, "flood", 200, random.randint(FLOOD_TOKENS_MIN, FLOOD_TOKENS_MAX), priority=2)
        for _ in range(300)
    ]
    at_ms = 0
    while (at_ms := at_ms + random.randint(5000, 15_000)) < over_s * 1000:
        requests.append(Request(at_ms, "person", 100, random.randint(40, 80), model=model, priority=8))
    return requests


def in_bands(requests: Sequence[Request], seed: int) -> list[Request]:
    """Return requests with a priority by user: one user in five is interactive, one in five background."""
    users = sorted({each.user for each in requests})
    Random(seed).shuffle(users)
    priority = {user: (8, 5, 5, 5, 2)[number % 5] for number, user in enumerate(users)}
    return [msgspec.structs.replace(each, priority=priority[each.user]) for each in requests]


def among_users(requests: Sequence[Request], users: int, seed: int) -> list[Request]:
    """Return requests dealt to users by chance, the nth of whom asks for 1/n as much as the first (Zipf)."""
    random = Random(seed)
    names = [f"user-{number + 1:02}" for number in range(users)]
    shares = [1 / (number + 1) for number in range(users)]
    found = random.choices(names, shares, k=len(requests))
    return [msgspec.structs.replace(each, user=user) for each, user in zip(requests, found, strict=True)]


def repeated(requests: Sequence[Request], times: int) -> list[Request]:
    """Return a trace several times over, one after the other."""
    span_ms = max(each.at_ms for each in requests) + 1
    return [
        msgspec.structs.replace(each, at_ms=each.at_ms + number * span_ms)
        for number in range(times)
        for each in requests
    ]


def most_cost(requests: Sequence[Request]) -> int:
    """Return what the dearest request is counted as."""
    return max(cost(each) for each in requests)


def _steady(rates: dict[str, float], told: str, seed: int, over_s: int) -> list[Request]:
    random = Random(seed)
    found = []
    for user, per_s in rates.items():
        for number in range(int(over_s * per_s)):
            length = {"nothing": 0, "half": random.randint(128, 384), "truth": 256}[told]
            found.append(Request(round(number * 1000 / per_s), user, 256, 256, output_tokens_told=length))
    return found

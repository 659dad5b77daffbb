"""What the parts of `fairness` have in common: a replay to its end, settings to compare with, curves of service.

Everything runs through the broker's own core under a virtual clock, so that it depends on the code and the seeds alone.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from benchmarks import fair_traffic as traffic
from lmq_broker.core.settings import Settings
from lmq_broker.forecast.choices import engines, replay_of, told
from lmq_broker.forecast.figures import service
from lmq_broker.forecast.traces import stretched

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from pathlib import Path

    from benchmarks.targets import Target
    from lmq_broker.forecast.engines import EngineModel
    from lmq_broker.forecast.figures import Figures
    from lmq_broker.forecast.replay import Replay, Request, Served

UNBOUNDED = "unbounded"
"""The loaded model first for as long as anybody wants it: blfq with endless patience. To compare with, not shipped."""
_ENDLESS = 1e9


@dataclass(frozen=True, slots=True)
class Part:
    """A part of the section, and what was to be reached in it."""

    text: str
    targets: list[Target] = field(default_factory=list)


class Plan(NamedTuple):
    """How much is tried."""

    seeds: int
    folder: Path
    """Of the public traces."""
    say: Callable[[str], None]


class Run(NamedTuple):
    """A replay that has ended, and its figures."""

    replay: Replay
    figures: Figures

    @property
    def served(self) -> list[Served]:
        """What was started."""
        return [each for each in self.replay.served.values() if each.started_ms >= 0]


def run(
    choice: str, requests: Sequence[Request], on: Sequence[EngineModel], settings: Settings | None = None
) -> Run:
    """Replay requests under a policy to their end."""
    settings = settings or Settings()
    if choice == UNBOUNDED:
        choice, settings = "blfq", patient(_ENDLESS, settings)
    replay = replay_of(choice, requests, on, settings)
    replay.run()
    return Run(replay, told(replay, requests, settings))


def patient(loads: float, settings: Settings | None = None, *, bands: Iterable[int] = range(10)) -> Settings:
    """Return settings whose bands prefer the loaded model for so many times of a load."""
    return changed_bands(settings or Settings(), bands, patience=loads)


def changed_bands(settings: Settings, bands: Iterable[int] = range(10), **fields: float) -> Settings:
    """Return settings with some fields of some bands replaced."""
    chosen = set(bands)
    changed = tuple(
        msgspec.structs.replace(band, **fields) if index in chosen else band
        for index, band in enumerate(settings.bands)
    )
    return msgspec.structs.replace(settings, bands=changed)


def at_full_load(plan: Plan, stretch: float = traffic.STRETCH) -> list[Request]:
    """Return the arena replay, stretched."""
    return stretched(traffic.trace(traffic.ARENA, plan.folder), stretch)


def two_endpoints(models: int, load_s: float) -> list[EngineModel]:
    """Return two cards at home with so many models to choose from."""
    names = [f"model-{number + 1}" for number in range(models)]
    like = msgspec.structs.replace(traffic.COMMON, load_s=load_s)
    return engines([("gpu-1", like.slots), ("gpu-2", like.slots)], names, like)


def cumulative(served: Iterable[Served], over_s: int) -> dict[str, list[float]]:
    """Return what each user had been served by each second."""
    found: dict[str, list[float]] = defaultdict(lambda: [0.0] * (over_s + 1))
    for each in served:
        curve = found[each.request.user]
        for second in range(max(0, each.first_ms // 1000), min(over_s - 1, each.ended_ms // 1000) + 1):
            curve[second + 1] += service(each, second * 1000, second * 1000 + 1000)
    for curve in found.values():
        for second in range(over_s):
            curve[second + 1] += curve[second]
    return dict(found)


def prose(text: str) -> str:
    """Return a paragraph in one line."""
    return " ".join(text.split()) + "\n\n"

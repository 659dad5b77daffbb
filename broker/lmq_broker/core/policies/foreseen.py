"""What a look-out begins with, and what it finds: when jobs would start and end."""

from collections.abc import Collection, Mapping

import msgspec

from lmq_broker.core.limits import Limits
from lmq_broker.core.policies.arrivals import Arrivals
from lmq_broker.core.policies.base import Fleet
from lmq_broker.core.policies.costs import Costs
from lmq_broker.core.policies.lanes import Pool
from lmq_broker.core.policies.places import LaneKey
from lmq_broker.core.policies.placing import Placing
from lmq_broker.core.settings import Settings
from lmq_broker.core.state import Job

_PACED = 10
"""Starts from which their pace can be told."""


class Parts(msgspec.Struct, frozen=True):
    """What a policy knows, to look at."""

    settings: Settings
    pools: Mapping[str, Pool]
    costs: Costs
    placing: Placing
    arrivals: Arrivals
    fleet: Fleet
    limits: Limits
    taken: Collection[str]
    """Resources, and so workers, that own tasks have for themselves."""
    now_ms: int


class Foreseen(msgspec.Struct):
    """When a job would start and end, in milliseconds from when it was looked at; means over several runs."""

    job: Job
    group: int
    """-1: it runs."""
    place: float
    """So many jobs that want the same places start before it."""
    start_ms: float
    end_ms: float = 0.0
    runs: int = 1

    def note_start(self, place: int, start_ms: float) -> None:
        """It started in one more run."""
        self.runs += 1
        self.place += (place - self.place) / self.runs
        self.start_ms += (start_ms - self.start_ms) / self.runs

    def note_end(self, end_ms: float) -> None:
        """It ended in the run in which it started last."""
        self.end_ms += (end_ms - self.end_ms) / self.runs


class Group(msgspec.Struct):
    """Jobs that want the same places: how soon one after the other starts."""

    jobs: int = 0
    slots: int = 0
    starts: int = 0
    first_ms: float = 0.0
    last_ms: float = 0.0
    runs_ms: float = 0.0
    """For how long those that started run, in sum."""

    @property
    def pace_ms(self) -> float:
        """Return the time from one start to the next."""
        if self.starts >= _PACED:
            return (self.last_ms - self.first_ms) / (self.starts - 1)
        return self.runs_ms / self.starts / max(self.slots, 1) if self.starts else 0.0


class Outlook(msgspec.Struct):
    """What was found."""

    made_ms: int
    """Monotonic."""
    jobs: dict[int, Foreseen] = msgspec.field(default_factory=dict)
    """By number."""
    groups: list[Group] = msgspec.field(default_factory=list)
    """As the first run has them."""
    group_of: dict[tuple[str, int, LaneKey], int] = msgspec.field(default_factory=dict)
    """(pool, band, lane) -> its group."""

    def group_at(self, lane: tuple[str, int, LaneKey]) -> Group | None:
        """Return the group of a lane; None: no job of it waited."""
        number = self.group_of.get(lane)
        return None if number is None else self.groups[number]

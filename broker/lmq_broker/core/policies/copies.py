"""Copies of what a policy knows, that change while a look-out is played: flows, lanes, workers, engines.

No copy refers back to what refers to it: the broker runs without the cyclic garbage collector.
"""

from collections.abc import Container
from typing import NamedTuple

from lmq_broker.core.policies.arrivals import Expected
from lmq_broker.core.policies.lanes import Lane
from lmq_broker.core.policies.ledger import Flow, Rank
from lmq_broker.core.policies.lines import NEVER_MS, Line, Place
from lmq_broker.core.policies.places import LaneKey
from lmq_broker.core.settings import Rates
from lmq_broker.core.state import Job, Worker

LAST: Place = (NEVER_MS, NEVER_MS, 0)
"""Of jobs that are still to come."""


class FlowCopy:
    """A flow's key as it grows, and how many jobs came on meanwhile."""

    __slots__ = ("coming", "cost", "flow", "key", "weight")

    def __init__(self, flow: Flow) -> None:
        self.flow = flow
        self.key = flow.key
        self.weight = flow.weight
        self.coming = 0
        self.cost = 0.0
        """Of each of those."""


class Ahead:
    """The first jobs of one flow in one lane, as many as were looked at: more of them each time. All runs share it."""

    __slots__ = ("_known", "_line", "jobs")

    def __init__(self, line: Line | None) -> None:
        self._line = line
        self._known: set[int] = set()
        self.jobs: list[Job] = []

    def look_further(self) -> bool:
        """Look at more of them; return whether there are any."""
        if self._line is None:
            return False
        more = [job for job in self._line.first(2 * len(self.jobs) + 1) if job.number not in self._known]
        if not more:
            self._line = None
        self.jobs += more
        self._known.update(job.number for job in more)
        return bool(more)


class LineCopy:
    """What is left of those."""

    __slots__ = ("_ahead", "_next")

    def __init__(self, ahead: Ahead) -> None:
        self._ahead = ahead
        self._next = 0

    def head(self) -> Job | None:
        """Return the first job that is left."""
        if self._next < len(self._ahead.jobs) or self._ahead.look_further():
            return self._ahead.jobs[self._next]
        return None

    def take(self) -> None:
        """Its head has started."""
        self._next += 1


class HeadCopy(NamedTuple):
    """What stands first in a lane; no job: one that came on meanwhile."""

    key: float
    place: Place
    flow: FlowCopy
    line: LineCopy
    job: Job | None


class LaneCopy:
    """A lane: its flows by key, and its jobs."""

    __slots__ = (
        "band",
        "group",
        "heap",
        "homes",
        "jobs",
        "key",
        "lines",
        "names",
        "number",
        "pool",
        "startable",
    )

    def __init__(self, number: int, pool: str, band: int, lane: Lane) -> None:
        self.number = number
        self.pool = pool
        self.band = band
        self.key: LaneKey = lane.key
        self.jobs = lane.jobs - sum(flow.lines[lane.key].size for flow in lane.parked)
        """That may start: a limit holds none of them."""
        self.names = lane.places.names
        self.heap: list[tuple[Rank, int, Flow]] = lane.standing.entries()
        self.startable: Container[Flow] = lane.standing.noted
        """The flows of which jobs may start; those that a limit holds are not among them."""
        self.lines: dict[Flow, LineCopy] = {}
        self.homes: list[tuple[SiteCopy, str]] = []
        """Workers that could load a model for it, with the model's key there."""
        self.group = -1

    def hold(self) -> None:
        """A limit holds all of its jobs."""
        self.jobs = 0
        self.startable = ()


class SiteCopy:
    """A worker: the room that its engines share."""

    __slots__ = ("alone", "free", "number", "worker")

    def __init__(self, number: int, worker: Worker) -> None:
        self.number = number
        self.worker = worker
        limit = worker.capacity.slots
        self.free = NEVER_MS if limit is None else limit - worker.busy
        self.alone = worker.alone


class Stream(NamedTuple):
    """A job on an engine: when it started, and what it takes of the engine's time, as drawn and on average."""

    job: Job
    start_ms: float
    drawn_ms: float
    mean_ms: float
    group: int
    """Of those that want the same places; -1: it ran already."""
    frees: bool = True
    """Its end leaves a slot; of a group that shares one the first stands for all."""


class EngineCopy:
    """An instance: streams in equal shares of its time."""

    __slots__ = (
        "at_ms", "awaited", "clock", "ends", "free", "group", "id", "lanes", "leads", "loaded_ms", "model", "rates",
        "shares", "site", "slots",
    )  # fmt: skip

    def __init__(
        self, site: SiteCopy, name: str, model: str, slots: int, at_ms: float, leased: int = 0
    ) -> None:
        self.site = site
        self.id = name
        self.model = model
        """Empty: any."""
        self.slots = slots
        self.free = slots - leased
        self.at_ms = at_ms
        self.loaded_ms = at_ms
        self.clock = 0.0
        """Engine time that each stream has had."""
        self.ends: list[tuple[float, int, Stream | None]] = []
        """Heap of (reading of the clock at which a stream ends, order, stream); no stream: of a job that came on."""
        self.lanes: list[LaneCopy] = []
        self.rates: dict[tuple[str, str], Rates] = {}
        """(task type, model) -> as measured here."""
        self.leads: dict[int, float] = {}
        """Band -> H."""
        self.shares = True
        """What runs here shares one engine; own tasks do not."""
        self.group = -1
        self.awaited = 0
        """Order of the event that stands for its next end: others are out of date."""

    def advance(self, at_ms: float) -> None:
        """Let time pass."""
        if self.ends:
            passed_ms = at_ms - self.at_ms
            self.clock += passed_ms / len(self.ends) if self.shares else passed_ms
        self.at_ms = at_ms

    def next_ms(self) -> float:
        """Return when the next stream ends if none comes to it."""
        left_ms = max(0.0, self.ends[0][0] - self.clock)
        return self.at_ms + (left_ms * len(self.ends) if self.shares else left_ms)

    def last_ms(self) -> float:
        """Return when the last stream ends if none comes to it."""
        lefts_ms = [end - self.clock for end, _, _ in self.ends]
        if not lefts_ms:
            return self.at_ms
        return self.at_ms + (sum(lefts_ms) if self.shares else max(lefts_ms))

    def in_order(self) -> list[tuple[float, int, Stream | None]]:
        """Return its streams by when they end."""
        return sorted(self.ends, key=_end_of)


class SwapCopy:
    """A model that comes at a site, and the engines that go for it."""

    __slots__ = (
        "band", "begun", "cost", "due_ms", "key", "load_ms", "loading", "model", "most_cost", "ready_ms",
        "victims",
    )  # fmt: skip

    def __init__(self, model: str, victims: list[EngineCopy], load_ms: float, due_ms: float = 0.0) -> None:
        self.model = model
        self.victims = victims
        self.load_ms = load_ms
        self.due_ms = due_ms
        self.band = -1
        self.key = 0.0
        """Of the flow whose turn has come."""
        self.cost = 0.0
        """Of what started on its victims meanwhile."""
        self.most_cost = 0.0
        self.begun = False
        """Its victims are drained."""
        self.loading = False
        self.ready_ms = 0.0
        """When it is there, once it is loading."""

    @property
    def is_drained(self) -> bool:
        """Whether nothing runs any more on what goes."""
        return not any(each.ends for each in self.victims)


class Guest(NamedTuple):
    """Jobs that come on, and where they wait."""

    expected: Expected
    lane: LaneCopy
    flow: FlowCopy


def _end_of(entry: tuple[float, int, Stream | None]) -> float:
    return entry[0]

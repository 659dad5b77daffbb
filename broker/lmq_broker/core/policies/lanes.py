"""Ready jobs as the fair policy sees them: lanes of jobs that can run in the same places, in bands, in pools."""

import msgspec

from lmq_broker.core.policies.ledger import Band, Flow, Standing
from lmq_broker.core.policies.lines import Place
from lmq_broker.core.policies.places import LaneKey, Places
from lmq_broker.core.settings import ENGINE_TASKS, Settings
from lmq_broker.core.state import Job

LLM_POOL = "llm"
Head = tuple[float, Place, "Lane", Flow, Job]


class Lane:
    """Ready jobs of one band that can run in the same places, and whose they are."""

    __slots__ = ("jobs", "key", "mean_cost", "parked", "places", "standing")

    def __init__(self, key: LaneKey, places: Places, *, shares: bool) -> None:
        self.key = key
        self.places = places
        self.jobs = 0
        self.mean_cost = 0.0
        """Of those that were queued lately."""
        self.standing = Standing(key_of if shares else self._place_of_head)
        """Flows with jobs here that no limit holds."""
        self.parked: dict[Flow, None] = {}
        """Those that one does."""

    def _place_of_head(self, flow: Flow) -> Place:
        return flow.lines[self.key].head()[0]


class Pool:
    """What is shared by one kind of work: engines are one pool, each queue of own tasks another."""

    __slots__ = ("bands", "lanes", "name")

    def __init__(self, name: str, settings: Settings) -> None:
        self.name = name
        self.bands = [Band(index, each.share) for index, each in enumerate(settings.bands)]
        self.lanes: list[dict[LaneKey, Lane]] = [{} for _ in settings.bands]


class Share(msgspec.Struct, frozen=True):
    """How one user stands in one band of a pool; costs in milliseconds of engine time."""

    pool: str
    band: int
    user: str
    weight: float
    service: float
    """Received, or forgiven when it was lifted."""
    predicted: float
    key: float
    queued: int
    running: int


class BandShare(msgspec.Struct, frozen=True):
    """How one band of a pool stands."""

    pool: str
    band: int
    lowest: int
    """Its lowest priority."""
    least: float
    """Its least share of what stricter bands get."""
    queued: int
    running: int
    owed: float
    """Of its least share, in milliseconds of engine time."""


def key_of(flow: Flow) -> float:
    """Return K of a flow; as a function, which is quicker than the property."""
    return flow.service + flow.predicted / flow.weight


def standing_of(head: Head) -> tuple[float, Place]:
    """Return what heads are ordered by."""
    return head[0], head[1]


def pool_name(job: Job) -> str:
    """Return which pool a job's work belongs to."""
    return pool_name_of(job.task_type, job.queue)


def pool_name_of(task_type: str, queue: str) -> str:
    """Return which pool the work of a task type belongs to."""
    return LLM_POOL if task_type in ENGINE_TASKS else f"tasks/{queue}"


def band_of(priority: int, settings: Settings) -> int:
    """Return the index of the band that a priority falls in; bands are in settings from the strictest on."""
    for index, band in enumerate(settings.bands):
        if priority >= band.lowest:
            return index
    return len(settings.bands) - 1

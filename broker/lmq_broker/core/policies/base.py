"""What a scheduling policy is told and asked. It owns only its own ledger and never moves a job; the core does."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Protocol

import msgspec

if TYPE_CHECKING:
    from lmq_broker.core.policies.crowd import Crowd
    from lmq_broker.core.policies.foreseen import Parts
    from lmq_broker.core.policies.lanes import BandShare, Share
    from lmq_broker.core.policies.places import LaneKey
    from lmq_broker.core.state import Instance, Job, Lease, OrderKey, Worker
    from lmq_broker.core.stimuli import Now
    from lmq_proto.messages import Order


FlowKey = tuple[str, int, str]
"""(pool, index of the band, user)."""


class Start(msgspec.Struct, frozen=True):
    """Run these ready jobs together in one slot of this instance."""

    group: "tuple[Job, ...]"
    instance: "Instance"


class Load(msgspec.Struct, frozen=True):
    """Have this worker load this model of its catalog."""

    worker: "Worker"
    model: str
    user: str = ""
    """Whose job it is for, or who ordered it."""
    since_ms: int = 0
    """Monotonic time since which room was made for it; 0: there was room."""


class Unload(msgspec.Struct, frozen=True):
    """Have this worker unload this instance, on which nothing runs."""

    worker: "Worker"
    instance: "Instance"
    user: str = ""
    """Whose job it makes room for, or who ordered it."""
    since_ms: int = 0
    """Monotonic time since which it was drained."""
    is_ordered: bool = False
    """A person wants it gone, whoever loaded it; without that it is one that lmq loaded."""


class WakeAt(msgspec.Struct, frozen=True):
    """Nothing now; ask again at this monotonic time at the latest."""

    mono_ms: int


def sooner(known: WakeAt | None, other: WakeAt) -> WakeAt:
    """Return the one that comes first."""
    return other if known is None or other.mono_ms < known.mono_ms else known


Decision = Start | Load | Unload | WakeAt


class Spent(msgspec.Struct, frozen=True, gc=False):
    """What a lease came to."""

    prompt_tokens: int = 0
    output_tokens: int = 0
    engine_ms: int = 0
    complete: bool = False
    """The work was done: what it took can be learnt from."""
    innocent: bool = False
    """It ended through no fault of the job, which is not charged for it."""


NOTHING_SPENT = Spent()
TAKEN_BACK = Spent(innocent=True)


class Fleet(msgspec.Struct, frozen=True):
    """What a policy may look at: the workers that can take jobs now, and what is held."""

    workers: "Mapping[str, Worker]"
    held_queues: Mapping[str, object]
    held_workers: Mapping[str, object]
    version: int
    """Another number whenever who can run what has changed, or what is ordered, or what an alias stands for."""
    aliases: Mapping[str, tuple[str, ...]] = {}
    """Normal form of a name -> the models it stands for."""
    orders: "Mapping[OrderKey, Order]" = {}
    """What people want loaded, unloaded or kept where, in the order it was said."""


class Policy(Protocol):
    """Decides whose job runs next. All calls are made by the core, in the order things happen."""

    def queued(self, job: "Job", now: "Now") -> None:
        """A job became ready."""

    def withdrawn(self, job: "Job") -> None:
        """A ready job is no longer to be started: cancelled, expired, changed, or given back to its worker."""

    def started(self, lease: "Lease", instance: "Instance", now: "Now") -> None:
        """A ready job was leased, as `decide` said."""

    def resumed(self, lease: "Lease") -> None:
        """A lease goes on that another life of the broker gave, or that was thought lost; its job is not ready."""

    def lend(self, lease: "Lease") -> None:
        """A lease waits for jobs that it submitted: it counts against no limit, and holds no resource."""

    def take_back(self, lease: "Lease") -> None:
        """It goes on, or has ended."""

    def served(self, lease: "Lease", tokens: int) -> None:
        """A running lease has produced this many output tokens so far."""

    def ended(self, lease: "Lease", spent: Spent, now: "Now") -> None:
        """A lease is over, for whatever reason."""

    def loaded(self, worker: "Worker", model: str, took_ms: int, *, no_memory: bool) -> None:
        """A load that `decide` asked for has ended: the model is there, or there was no memory for it."""

    def changes(self) -> dict[str, bytes]:
        """Return what of its ledger has changed since it was last asked, for the journal; empty values: forget it."""

    def restore(self, kept: dict[str, bytes]) -> None:
        """Bring back what the journal kept of its ledger, before anything else is told."""

    def decide(self, fleet: Fleet, now: "Now") -> Decision | None:
        """Say what to do now; asked again until it says None or WakeAt. What it says is done."""

    def lane_of(self, job: "Job") -> "tuple[str, int, LaneKey]":
        """Return where a job waits: pool, band, lane."""

    def parts(self, fleet: Fleet, now: "Now") -> "Parts":
        """Return what it knows, for who looks out; nothing of it is changed."""

    def crowd(self, job: "Job", fleet: Fleet) -> "Crowd":
        """Return who stands before the jobs of this ready job's lane, as of now."""

    def waiting_for(self, model: str) -> int:
        """Return how many ready jobs name this model (normal form)."""

    def weigh(self, user: str, weight: float) -> None:
        """A user has another weight from now on."""

    def shares(self, *, idle: bool = True) -> "list[Share]":
        """Return how users stand; without `idle`, those only who wait or run."""

    def bands(self) -> "list[BandShare]":
        """Return how the bands of each pool stand, from the strictest on."""

    @property
    def has_shares(self) -> bool:
        """Whether users have shares; no: jobs go by priority and arrival, whoever asked."""

    def charged(self) -> dict[FlowKey, float]:
        """Return what users have received since this was last asked, in milliseconds of engine time."""

"""The broker's whole state: data holders, no behaviour.

`msgspec.Struct` is used for its small, fast objects. A running job and its lease name each other; `leases.close` cuts
that ring, because the broker runs without the cyclic garbage collector.
"""

from collections import deque
from random import Random
from typing import TYPE_CHECKING

import msgspec

from lmq_broker.core.finished import Finished
from lmq_broker.core.histograms import Counts
from lmq_broker.core.limits import Limits
from lmq_broker.core.reads import ReadEvents, ReadText
from lmq_broker.core.records import Past, Terms, UsageAdded
from lmq_broker.core.settings import Settings
from lmq_broker.core.stimuli import HostFacts
from lmq_proto.errors import ErrorInfo, WrongKind
from lmq_proto.events import Event
from lmq_proto.ids import InstanceId, JobId, PeerId, UserName, WorkerName
from lmq_proto.messages import Alias, Allowance, Capacity, DefaultModel, EventFilter, Hold, Order, Piece
from lmq_proto.states import State

if TYPE_CHECKING:
    from lmq_broker.core.eta import Eta
    from lmq_broker.core.policies.base import FlowKey, Policy


class Job(msgspec.Struct, gc=False):
    """An open job. Its payload is not here: the shell keeps it, or the journal."""

    number: int
    """Order of arrival, never reused."""
    id: JobId
    user: UserName
    principal: str
    task_type: str
    queue: str
    priority: int
    state: State
    order: int
    """Place among its equals: its number, or a newer one after a charged retry."""
    created_at_ms: int
    payload_bytes: int
    models: tuple[str, ...]
    terms: Terms
    past: Past
    prompt_tokens: int = 0
    output_tokens: int = 0
    """As its submitter estimates."""
    due_at_ms: int = 0
    """Wall time before which it does not start, as its submitter wished."""
    expires_at_ms: int = 0
    started_at_ms: int = 0
    attempt: int = 0
    epoch: int = 0
    """Of the last lease."""
    failures: int = 0
    worker: str = ""
    model: str = ""
    text_attempt: int = 0
    text_last: int = 0
    """The last piece of that attempt's text that has a journal record."""
    lease: "Lease | None" = None
    ready_since_ms: int = 0
    """Monotonic."""
    backoff_until_ms: int = 0
    """Monotonic; 0: none."""


class Slot(msgspec.Struct):
    """What one request of an endpoint takes; the leases of a group share it."""

    leases: int = 1


class Lease(msgspec.Struct):
    """The right of a worker to one attempt."""

    job: Job
    epoch: int
    attempt: int
    worker: WorkerName
    instance_id: str
    granted_ms: int
    """Monotonic."""
    deadline_ms: int
    """Monotonic; the broker's own end of the attempt's time, later than the worker's; 0: none."""
    position: int
    """Journal position of its record: text of it is pushed to readers from there on."""
    stopping: bool = False
    """The job has passed on or ended; the slot is taken until the worker says that it stopped."""
    uncharged: bool = False
    """It was taken back from the worker: its user does not pay for it."""
    parked_since_ms: int | None = None
    """Monotonic: since when its slot is lent; None: it is not."""
    parked_ms: int = 0
    """For how long it was before."""
    phase: str = "sent"
    progress: float = 0.0
    stage: str = ""
    log: str = ""
    tokens: int = 0
    tokens_per_s: float = 0.0
    published_ms: int = 0
    text: "TextLog | None" = None
    slot: Slot = msgspec.field(default_factory=Slot)


class TextLog(msgspec.Struct):
    """The text of a running attempt: pieces `first` .. in memory, older ones in the journal only."""

    first: int = 1
    pieces: list[Piece] = msgspec.field(default_factory=list)
    held_bytes: int = 0
    stored: int = 0
    """Last piece that has a journal record."""
    unstored_bytes: int = 0
    unstored_since_ms: int = 0

    @property
    def last(self) -> int:
        """Number of the newest piece; `first` - 1 if there is none."""
        return self.first + len(self.pieces) - 1


LeaseKey = tuple[bytes, int, int]
"""(job id, epoch, attempt)."""


class Instance(msgspec.Struct):
    """A model loaded at a worker's endpoint, with room for `slots` jobs."""

    worker: "Worker"
    id: str
    names: frozenset[str]
    """Every name it answers to, as `models.names_of` gives them; empty: any model."""
    kind: str
    slots: int
    ours: bool
    model: str
    budget_tokens: int = 0
    """Of all that runs on it together; 0: no such bound."""
    leased: int = 0
    """Slots that are taken."""


class Change(msgspec.Struct, frozen=True):
    """A load or unload that is over, with the drain before it."""

    began_ms: int
    """Monotonic, as the next."""
    ended_ms: int
    model: str
    user: str
    """Whose job, or who, it was for."""
    loaded: bool
    """The model is there now; false: it was unloaded, or could not be loaded."""


class Conduct(msgspec.Struct):
    """How an endpoint has behaved lately. Outlives the worker's process, not the broker's."""

    trust: float = 1.0
    """As it was at `trust_ms`; it recovers from there."""
    trust_ms: int = 0
    crashes: dict[str, int] = msgspec.field(default_factory=dict)
    """Instance -> when an engine last died under a job there."""
    missed: dict[str, tuple[str, int]] = msgspec.field(default_factory=dict)
    """Instances that vanished while jobs ran on them, with model and time: whether they crashed is told soon."""
    changes: deque[Change] = msgspec.field(default_factory=deque)
    """Of the last hour, oldest first."""
    told_ms: int = -1
    """When it was last told that swaps are costly; -1: never."""


class Worker(msgspec.Struct):
    """A worker, connected or lately gone."""

    name: WorkerName
    instance: InstanceId
    endpoint: str
    backend: str
    host: str
    pid: int
    software: str
    protocol: int
    queues: frozenset[str]
    """Empty: all."""
    task_types: frozenset[str]
    capacity: Capacity
    connected_ms: int
    """Monotonic."""
    heard_ms: int
    peer: PeerId | None
    """None: not connected."""
    gone_ms: int = 0
    """Monotonic time at which the connection was found gone; 0: it is there."""
    stopped: bool = False
    """It said that it goes, and has not come back."""
    enlist_id: int = 0
    """Request number of its last `enlist`; the same once more is a repeat of it."""
    enlisted_position: int = 0
    """Journal position of its `enlisted`: work and loads are sent after it."""
    instances: dict[str, Instance] = msgspec.field(default_factory=dict)
    leases: dict[LeaseKey, Lease] = msgspec.field(default_factory=dict)
    busy: int = 0
    """Slots that its leases take, over all instances."""
    alone: bool = False
    """A suspect runs here: nothing else may start, so that its crash is known to be its own."""
    loading: str = ""
    """Model or instance that a `load` or `unload` is under way for."""
    loading_since_ms: int = 0
    """Of a load; 0: an `unload` is under way."""
    loading_for: str = ""
    """User whose job it is done for, or who ordered it."""
    draining_since_ms: int = 0
    """When room began to be made for it: the beginning of what it costs."""
    command_id: int = 0
    refused_loads: dict[str, int] = msgspec.field(default_factory=dict)
    """Model -> monotonic time from which it may be tried again."""
    memory_full: bool = False
    """The last load failed for want of memory."""
    says_full_until_ms: int = 0
    conduct: Conduct = msgspec.field(default_factory=Conduct)


OrderKey = tuple[str, str]
"""(worker, model): there is one order each, the latest."""


class Identity(msgspec.Struct, frozen=True):
    """Who sends: the owner of the key or account, the user it acts for, and its role."""

    principal: str
    user: str
    role: str


class Session(msgspec.Struct):
    """A connection that has said hello or enlisted."""

    peer: PeerId
    instance: InstanceId
    who: Identity
    software: str
    protocol: int
    heard_ms: int
    sent_ms: int
    gone_ms: int = 0
    worker: WorkerName | None = None
    results_credit_bytes: int = 0
    follows: set[bytes] = msgspec.field(default_factory=set)
    undelivered: deque[bytes] = msgspec.field(default_factory=deque)
    """Followed jobs that ended while there was no credit."""
    fetching: bool = False
    """A `ReadEnds` is under way."""
    subscriptions: dict[int, "Subscription"] = msgspec.field(default_factory=dict)
    readers: dict[bytes, "TextReader"] = msgspec.field(default_factory=dict)


class Subscription(msgspec.Struct):
    """A reader of durable events."""

    id: int
    cursor: int
    """The last event looked at."""
    told: int
    """The last cursor that the reader was told."""
    credit: int
    match: EventFilter
    only_user: str
    """Events of this user only; empty: all."""
    fetching: ReadEvents | None = None
    """The read that is under way; what another brings back is not for this one."""


class TextReader(msgspec.Struct):
    """A reader of one job's text."""

    peer: PeerId
    job_id: JobId
    attempt: int
    piece: int
    """The last piece it was sent."""
    credit_bytes: int
    fetching: ReadText | None = None
    """The read that is under way; what another brings back is not for this one."""


class Key(msgspec.Struct, frozen=True, gc=False):
    """What an idempotency key stands for."""

    job_id: JobId
    digest: bytes


class Queue(msgspec.Struct):
    """Counts of open jobs of one queue."""

    counts: dict[State, int]
    changed: bool = True
    published_ms: int = 0


class Disk(msgspec.Struct, frozen=True):
    """What is wrong with the journal's disk; `trouble` empty: nothing."""

    trouble: str = ""
    free_bytes: int = 0
    floor_bytes: int = 0


class End(msgspec.Struct, frozen=True, gc=False):
    """A job's end with its result, on its way to a follower."""

    job_id: JobId
    state: str
    attempt: int
    failures: int
    result: bytes
    error: ErrorInfo | None
    story: tuple[ErrorInfo, ...]
    worker: str
    model: str
    queued_ms: int
    leased_ms: int


class Times(msgspec.Struct):
    """How long something took, each time."""

    counts: Counts = msgspec.field(default_factory=dict)
    total_ms: int = 0


class Meters(msgspec.Struct):
    """What has been counted since the start, for `metrics` alone."""

    bands: list[tuple[Times, Times]] = msgspec.field(default_factory=list)
    """Of each band so far: from accepted to the first start, and from there to the end."""
    prompt_tokens: dict[str, int] = msgspec.field(default_factory=dict)
    """By model, as are the next two."""
    output_tokens: dict[str, int] = msgspec.field(default_factory=dict)
    engine_ms: dict[str, int] = msgspec.field(default_factory=dict)
    users_engine_ms: dict[str, int] = msgspec.field(default_factory=dict)
    loads: dict[str, int] = msgspec.field(default_factory=dict)
    """By what came of them: `done` or `failed`."""
    unloads: dict[str, int] = msgspec.field(default_factory=dict)


class BrokerState(msgspec.Struct):
    """Everything the broker knows."""

    settings: Settings
    broker_id: bytes
    epoch: int
    software: str
    secret: bytes
    """Makes the channel ids of jobs; random, kept in the journal."""
    random: Random
    """The only source of chance: seeded, so that a run can be repeated."""
    limits: Limits
    policy: "Policy"
    eta: "Eta"
    started_ms: int
    started_at_ms: int

    # jobs
    jobs: dict[bytes, Job] = msgspec.field(default_factory=dict)
    finished: Finished = msgspec.field(default_factory=Finished)
    """Final jobs that are kept: id -> number, in the order they ended."""
    tombstones: dict[bytes, int] = msgspec.field(default_factory=dict)
    """Deleted jobs: id -> wall time until which the id is remembered."""
    keys: dict[tuple[str, str], Key] = msgspec.field(default_factory=dict)
    keys_of_finished: dict[bytes, tuple[str, str]] = msgspec.field(default_factory=dict)
    reopened: dict[bytes, int] = msgspec.field(default_factory=dict)
    """Jobs that were retried since the start and are not deleted: id -> journal position of the last time."""
    children: dict[bytes, dict[bytes, None]] = msgspec.field(default_factory=dict)
    """Job -> blocked jobs that wait for it. It is open, or has ended and not all of them have been told."""
    settling: dict[bytes, State] = msgspec.field(default_factory=dict)
    """Jobs that have ended and whose children have not all been told -> how they ended."""
    freed: deque[Job] = msgspec.field(default_factory=deque)
    """Blocked jobs that came back from the journal and wait for nobody any more."""
    unweighed: dict[bytes, None] = msgspec.field(default_factory=dict)
    """Jobs whose priority may no longer be what they and those that wait for them call for."""
    last_number: int = 0
    last_order: int = 0
    queues: dict[str, Queue] = msgspec.field(default_factory=dict)
    users_open: dict[str, int] = msgspec.field(default_factory=dict)
    shared_terms: dict[tuple[object, ...], Terms] = msgspec.field(default_factory=dict)
    """Terms of jobs that asked for nothing of their own: (timeout, failures, keep) -> one object."""
    model_lists: dict[tuple[str, ...], tuple[str, ...]] = msgspec.field(default_factory=dict)
    """One tuple for each list of models that jobs ask for."""
    names: dict[str, str] = msgspec.field(default_factory=dict)
    """One string object a name, for memory."""

    # time
    due: list[tuple[int, int, Job]] = msgspec.field(default_factory=list)
    """Heap by wall time: delayed jobs."""
    backoffs: list[tuple[int, int, Job]] = msgspec.field(default_factory=list)
    """Heap by monotonic time: failed jobs."""
    expiries: list[tuple[int, int, Job]] = msgspec.field(default_factory=list)
    """Heap by wall time: jobs that must have started by then."""
    deadlines: list[tuple[int, int, Lease]] = msgspec.field(default_factory=list)
    """Heap by monotonic time: attempts."""
    pushes: int = 0
    """Things ever put on a heap."""
    next_tick_ms: int = 0
    next_retention_ms: int = 0
    retention_reading: bool = False
    wall_offset_ms: int = 0
    """wall - mono as last seen; a change is a jump of the wall clock."""
    clock_trouble: str = ""
    clock_held_until_ms: int = 0

    # workers
    workers: dict[str, Worker] = msgspec.field(default_factory=dict)
    orphans: dict[LeaseKey, Lease] = msgspec.field(default_factory=dict)
    """Leases that the journal names and no worker has claimed since the start."""
    recovery_until_ms: int = 0
    fleet_version: int = 0
    """Grows with every change of who can run what."""
    known_models: dict[str, list[str]] = msgspec.field(default_factory=dict)
    """Worker -> every model name it ever announced."""
    known_names: frozenset[str] | None = None
    """All names that jobs may use for them; None: to be worked out anew."""
    last_command: int = 0

    # peers
    sessions: dict[bytes, Session] = msgspec.field(default_factory=dict)
    peers: dict[bytes, PeerId] = msgspec.field(default_factory=dict)
    """Instance of a client or worker -> its connection."""
    followers: dict[bytes, list[PeerId]] = msgspec.field(default_factory=dict)
    text_readers: dict[bytes, list[TextReader]] = msgspec.field(default_factory=dict)

    # holds: noun -> name -> hold
    queue_holds: dict[str, Hold] = msgspec.field(default_factory=dict)
    worker_holds: dict[str, Hold] = msgspec.field(default_factory=dict)
    alerts: set[str] = msgspec.field(default_factory=set)
    """Limits whose alert is raised."""

    moves: dict[tuple[str, str], tuple[int, float | None]] = msgspec.field(default_factory=dict)
    """(limit, user) -> when, and in how long the first of what fills it may start, as was found when it refused."""

    # users
    allowances: dict[str, Allowance] = msgspec.field(default_factory=dict)
    """What commands gave users."""
    ceilings: dict[str, int] = msgspec.field(default_factory=dict)
    """In force, by command or from the settings."""
    charged_lately: deque[tuple[int, dict["FlowKey", float]]] = msgspec.field(default_factory=deque)
    """(monotonic time, what users received up to then), second by second."""

    # models, as people steer them
    aliases_set: dict[str, Alias] = msgspec.field(default_factory=dict)
    """Normal name -> what a command made of it."""
    aliases: dict[str, tuple[str, ...]] = msgspec.field(default_factory=dict)
    """Normal name -> models: what is in force, by command or by the configuration file."""
    defaults_set: dict[str, DefaultModel] = msgspec.field(default_factory=dict)
    """Task type -> what a command made of it."""
    orders: dict[OrderKey, Order] = msgspec.field(default_factory=dict)
    contexts: dict[tuple[str, ...], tuple[str, int]] = msgspec.field(default_factory=dict)
    """(task type, models ..) -> the model with the largest context and its tokens; 0: one is not known."""
    contexts_version: int = -1
    """`fleet_version` that they were worked out for."""
    kinds: dict[str, set[str]] = msgspec.field(default_factory=dict)
    """Name of a model -> the kinds it has at all endpoints."""
    misfits: dict[tuple[str, ...], WrongKind | None] = msgspec.field(default_factory=dict)
    """(task type, models ..) -> how such a job is refused because of these kinds."""
    kinds_version: int = -1
    """`fleet_version` that both were worked out for."""

    # journal and events
    position: int = 0
    turn_has_records: bool = False
    last_seq: int = 0
    events: list[Event] = msgspec.field(default_factory=list)
    """The latest events, oldest first."""
    oldest_cursor: int = 0
    """Events after this are kept, here or in the journal."""
    subscribers: dict[bytes, None] = msgspec.field(default_factory=dict)
    """Peers with event subscriptions."""
    turn_events: list[Event] = msgspec.field(default_factory=list)
    disk: Disk = Disk()
    host: HostFacts = HostFacts()
    stopping: bool = False

    # usage
    usage_rows: dict[int, set[tuple[str, str, str]]] = msgspec.field(default_factory=dict)
    """Day -> (user, model, task type) of the rows it has; of the latest days only."""
    usage_oldest_day: int = 0
    """0: there are no sums."""

    # work of the turn
    fresh_text: dict[bytes, None] = msgspec.field(default_factory=dict)
    fresh_ends: dict[PeerId, list[End]] = msgspec.field(default_factory=dict)
    acks: dict[PeerId, list[LeaseKey]] = msgspec.field(default_factory=dict)
    awake: list[TextReader] = msgspec.field(default_factory=list)
    """Text readers that came, or were given credit, this turn."""
    unstored_text: dict[bytes, None] = msgspec.field(default_factory=dict)
    fresh_usage: dict[tuple[int, str, str, str], UsageAdded] = msgspec.field(default_factory=dict)

    # counters since the start
    ended: dict[str, int] = msgspec.field(default_factory=dict)
    refused: dict[str, int] = msgspec.field(default_factory=dict)
    stale_results: int = 0
    ends_lately: deque[tuple[int, int]] = msgspec.field(default_factory=deque)
    """(monotonic second, jobs ended in it), of the last minute."""
    meters: Meters = msgspec.field(default_factory=Meters)

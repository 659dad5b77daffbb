"""Every message of the wire, as the header of its four frames. PROTOCOL.md says who may send which, and when.

Names of fields carry their unit; a duration is in milliseconds, a time is Unix milliseconds. A field that holds its
default may be left out. Unknown fields are ignored, so that a newer peer may say more. Header structs only: bodies are
bytes beside them, cut up by the `..._bytes` lengths in the order of the list.
"""

from lmq_proto.errors import ErrorInfo
from lmq_proto.events import Event
from lmq_proto.nouns import (
    Backup as Backup,
    BackupDone as BackupDone,
    Done as Done,
    Drain as Drain,
    Health as Health,
    HealthReply as HealthReply,
    LimitsReply as LimitsReply,
    ListLimits as ListLimits,
    ListModels as ListModels,
    ListQueues as ListQueues,
    ListUsers as ListUsers,
    ListWorkers as ListWorkers,
    Metrics as Metrics,
    MetricsReply as MetricsReply,
    Models as Models,
    OrderModel as OrderModel,
    Pause as Pause,
    Queues as Queues,
    ResetLimits as ResetLimits,
    ResetUser as ResetUser,
    Resume as Resume,
    SetAlias as SetAlias,
    SetDefaultModel as SetDefaultModel,
    SetLimit as SetLimit,
    SetUser as SetUser,
    Usage as Usage,
    UsageReply as UsageReply,
    Users as Users,
    Workers as Workers,
)
from lmq_proto.parts import (
    Alias as Alias,
    Allowance as Allowance,
    BandView as BandView,
    Breaker as Breaker,
    Capacity as Capacity,
    CatalogModel as CatalogModel,
    DefaultModel as DefaultModel,
    Ended as Ended,
    EventFilter as EventFilter,
    Group as Group,
    Held as Held,
    Hold as Hold,
    HostLoad as HostLoad,
    InstanceInfo as InstanceInfo,
    JobEnd as JobEnd,
    JobFilter as JobFilter,
    JobSpec as JobSpec,
    JobView as JobView,
    Lease as Lease,
    LeaseRef as LeaseRef,
    Limit as Limit,
    LimitView as LimitView,
    ModelView as ModelView,
    Order as Order,
    Outcome as Outcome,
    Part as Part,
    PhaseReport as PhaseReport,
    Piece as Piece,
    QueueView as QueueView,
    Reason as Reason,
    Target as Target,
    TextMark as TextMark,
    UsageRow as UsageRow,
    UserView as UserView,
    WorkerView as WorkerView,
)

# --- both directions -------------------------------------------------------------------------------------------------


class Heartbeat(Part, frozen=True, kw_only=True):
    """Proof of life. Says nothing about any job."""


class Bye(Part, frozen=True, kw_only=True):
    """The sender goes away on purpose."""

    reason: str = ""


class ErrorReply(Part, frozen=True, kw_only=True):
    """A command was refused. `request_id` is 0 where the command could not be read."""

    request_id: int
    error: ErrorInfo


# --- session ---------------------------------------------------------------------------------------------------------


class Hello(Part, frozen=True, kw_only=True):
    """First message of a client, and again whenever the broker asks `who`."""

    request_id: int
    instance: bytes
    protocol_oldest: int
    protocol_newest: int
    software: str = ""
    user: str = ""
    """The name it claims; counts over loopback TCP in open mode only."""


class Welcome(Part, frozen=True, kw_only=True):
    """The broker knows this session now."""

    request_id: int
    protocol: int
    software: str
    broker_id: bytes
    """Of the journal: the same over restarts, another after a restore elsewhere."""
    epoch: int
    """Grows by one at each start of the broker."""
    user: str
    role: str
    wall_ms: int
    heartbeat_ms: int
    events_port: int = 0
    """Port of the PUB socket on the host that was connected to; 0 over ipc."""
    events_path: str = ""
    """Path of the PUB socket's ipc file; empty over TCP."""
    payload_bytes: int = 0
    results_credit_bytes: int = 0
    cursor: int = 0
    """The last event's seq: where `subscribe` begins that wants only the new."""


class Who(Part, frozen=True, kw_only=True):
    """The broker does not know this connection (it may have restarted): say hello or enlist again."""


# --- jobs: submit ----------------------------------------------------------------------------------------------------


class Submit(Part, frozen=True, kw_only=True):
    """One to 1,000 jobs; the body holds their payloads in order."""

    request_id: int
    jobs: list[JobSpec]
    as_user: str = ""
    atomic: bool = False
    """All or nothing."""
    follow: bool = False
    """Send each result when it is there, as `follow` would."""


class Submitted(Part, frozen=True, kw_only=True):
    """One outcome per job, in the order of the submit. Sent when all that was accepted is on disk."""

    request_id: int
    outcomes: list[Outcome]


# --- jobs: follow, results, text -------------------------------------------------------------------------------------


class Follow(Part, frozen=True, kw_only=True):
    """Send what these jobs end with, once each; at once for those that have ended."""

    request_id: int
    job_ids: list[bytes]


class Unfollow(Part, frozen=True, kw_only=True):
    """No more results or text of these jobs. No reply."""

    job_ids: list[bytes]


class Followed(Part, frozen=True, kw_only=True):
    """One outcome per job: `unchanged` (its end will come) or `refused` (no such job)."""

    request_id: int
    outcomes: list[Outcome]


class Finished(Part, frozen=True, kw_only=True):
    """Jobs that this session follows and that have ended (push)."""

    jobs: list[JobEnd]


class FollowText(Part, frozen=True, kw_only=True):
    """Send the text of a job from a cursor on: pieces after `piece` of attempt `attempt` (0, 0: from the start)."""

    request_id: int
    job_id: bytes
    attempt: int = 0
    piece: int = 0
    credit_bytes: int = 262_144


class Text(Part, frozen=True, kw_only=True):
    """Pieces `first`, `first` + 1, ... of one attempt (push to readers, and report of a worker).

    To readers, `restart` says that an earlier attempt's text is void: drop what was shown and begin anew.
    """

    job_id: bytes
    attempt: int
    first: int
    pieces: list[Piece]
    restart: str = ""
    final: bool = False
    """The job has ended; no text follows."""


class Credit(Part, frozen=True, kw_only=True):
    """A session grants more pushes: result bytes, events of a subscription, text bytes of a job. No reply."""

    results_bytes: int = 0
    subscription_id: int = 0
    events: int = 0
    job_id: bytes = b""
    text_bytes: int = 0


# --- jobs: look ------------------------------------------------------------------------------------------------------


class Status(Part, frozen=True, kw_only=True):
    """Ask for up to 1,000 jobs by id."""

    request_id: int
    job_ids: list[bytes]


class Statuses(Part, frozen=True, kw_only=True):
    """The jobs that were found and may be seen, in the order asked."""

    request_id: int
    jobs: list[JobView]
    missing: list[bytes] = []


class ListJobs(Part, frozen=True, kw_only=True):
    """One page of jobs, newest first unless `oldest_first`."""

    request_id: int
    match: JobFilter
    after: int = 0
    """The `number` of the last job of the page before."""
    limit: int = 100
    oldest_first: bool = False


class Listed(Part, frozen=True, kw_only=True):
    """A page. `more` tells whether another may follow."""

    request_id: int
    jobs: list[JobView]
    more: bool = False


class GetPayload(Part, frozen=True, kw_only=True):
    """Ask for what was submitted."""

    request_id: int
    job_id: bytes


class Payload(Part, frozen=True, kw_only=True):
    """The body is the payload."""

    request_id: int
    job: JobView


class Why(Part, frozen=True, kw_only=True):
    """Ask why a job waits, or what became of it."""

    request_id: int
    job_id: bytes


class WhyReply(Part, frozen=True, kw_only=True):
    """The job, the cause that matters most first, and what its owner can type."""

    request_id: int
    job: JobView
    reasons: list[Reason]
    hints: list[str] = []


# --- jobs: act -------------------------------------------------------------------------------------------------------


class Cancel(Part, frozen=True, kw_only=True):
    """Make jobs `cancelled`; a leased one keeps its slot until its worker has stopped."""

    request_id: int
    target: Target
    if_attempt: int | None = None


class Retry(Part, frozen=True, kw_only=True):
    """Make dead, cancelled or expired jobs ready again, with no failures."""

    request_id: int
    target: Target
    if_attempt: int | None = None


class Delete(Part, frozen=True, kw_only=True):
    """Remove final jobs with their results."""

    request_id: int
    target: Target


class Update(Part, frozen=True, kw_only=True):
    """Change what a job that has not ended may still change. Absent means: leave."""

    request_id: int
    target: Target
    priority: int | None = None
    queue: str | None = None
    models: list[str] | None = None
    labels: dict[str, str] | None = None
    expires_ms: int | None = None
    timeout_ms: int | None = None
    keep_ms: int | None = None
    failures: int | None = None
    if_attempt: int | None = None


class Changed(Part, frozen=True, kw_only=True):
    """One outcome per job that was named or matched; `more` when a filter matched over 1,000: ask again."""

    request_id: int
    outcomes: list[Outcome]
    more: bool = False


# --- events ----------------------------------------------------------------------------------------------------------


class Subscribe(Part, frozen=True, kw_only=True):
    """Send events after a cursor; -1: from now on; or from a wall time on (`since_ms`, cursor -1)."""

    request_id: int
    subscription_id: int
    cursor: int = -1
    since_ms: int = 0
    last: int = 0
    """With cursor -1: begin with about this many past events."""
    match: EventFilter = EventFilter()
    credit: int = 1000


class Subscribed(Part, frozen=True, kw_only=True):
    """Pushes begin after `cursor`."""

    request_id: int
    subscription_id: int
    cursor: int


class Unsubscribe(Part, frozen=True, kw_only=True):
    """No more events. No reply."""

    subscription_id: int


class Events(Part, frozen=True, kw_only=True):
    """Events after cursor `before` up to cursor `after` that match (push). `before` equals the last push's `after`."""

    subscription_id: int
    before: int
    after: int
    events: list[Event]
    expired: bool = False
    """The events after the asked cursor are gone: `before` is the oldest kept, ask for the state anew."""


# --- worker ----------------------------------------------------------------------------------------------------------


class Enlist(Part, frozen=True, kw_only=True):
    """First message of a worker, and again whenever the broker asks `who`."""

    request_id: int
    instance: bytes
    protocol_oldest: int
    protocol_newest: int
    name: str
    endpoint: str
    """URL of the model server, or a name for what is no server; one live worker each."""
    backend: str
    capacity: Capacity
    software: str = ""
    host: str = ""
    pid: int = 0
    queues: list[str] = []
    """Queues it serves; none means all."""
    task_types: list[str] = []
    held: list[Held] = []
    replaces: bytes = b""
    """The instance that ran here before and is surely dead: its leases may pass on at once."""


class Enlisted(Part, frozen=True, kw_only=True):
    """The broker knows this worker now. Leases in `stop` are no longer its own."""

    request_id: int
    protocol: int
    software: str
    broker_id: bytes
    epoch: int
    wall_ms: int
    heartbeat_ms: int
    stop: list[Held] = []


class Work(Part, frozen=True, kw_only=True):
    """New leases (to a worker)."""

    groups: list[Group]


class Results(Part, frozen=True, kw_only=True):
    """Ended leases (report of a worker). It keeps them until `acked`."""

    ended: list[Ended]


class Acked(Part, frozen=True, kw_only=True):
    """These ends are durable, or of a lease that had passed on: forget them."""

    leases: list[LeaseRef]


class Stop(Part, frozen=True, kw_only=True):
    """End these leases: cancelled, timed out, or passed on. The worker says `stopped` for each."""

    leases: list[LeaseRef]
    reason: str = ""


class Phases(Part, frozen=True, kw_only=True):
    """Progress of several leases (report of a worker, at most some a second)."""

    leases: list[PhaseReport]


class TextReport(Part, frozen=True, kw_only=True):
    """Text of several leases (report of a worker)."""

    texts: list[Text]


class TextDurable(Part, frozen=True, kw_only=True):
    """Pieces up to these are on disk: forget them."""

    marks: list[TextMark]


class CapacityReport(Part, frozen=True, kw_only=True):
    """What changed at the endpoint (report of a worker)."""

    capacity: Capacity


class LoadModel(Part, frozen=True, kw_only=True):
    """Load a model (to a worker)."""

    command_id: int
    model: str
    context_tokens: int = 0


class UnloadModel(Part, frozen=True, kw_only=True):
    """Unload an instance (to a worker)."""

    command_id: int
    instance_id: str


class LoadEnded(Part, frozen=True, kw_only=True):
    """A load or unload is over (report of a worker). A `capacity` report came before it."""

    command_id: int
    seconds: float = 0.0
    error: ErrorInfo | None = None


# --- PUB -------------------------------------------------------------------------------------------------------------


class Tick(Part, frozen=True, kw_only=True):
    """Topic `tick`, once a second."""

    wall_ms: int
    counts: dict[str, int]
    workers: int
    cursor: int


class QueueSize(Part, frozen=True, kw_only=True):
    """Topic `queue/NAME`, when its counts changed, at most some times a second."""

    name: str
    counts: dict[str, int]


class WorkerState(Part, frozen=True, kw_only=True):
    """Topic `worker/NAME`, when it changed."""

    name: str
    state: str
    leased: int
    instances: list[InstanceInfo] = []
    loading: str = ""


class Progress(Part, frozen=True, kw_only=True):
    """Topic `job/` + channel in hex: where a job is. Names nobody and holds no text."""

    state: str
    phase: str = ""
    progress: float = 0.0
    stage: str = ""
    tokens: int = 0
    tokens_per_s: float = 0.0
    attempt: int = 0
    ahead: int | None = None


FromClient = (
    Hello | Submit | Follow | Unfollow | FollowText | Credit | Status | ListJobs | GetPayload | Why | Cancel | Retry
    | Delete | Update | Subscribe | Unsubscribe | Pause | Drain | Resume | ListQueues | ListWorkers | ListModels
    | SetAlias | SetDefaultModel | OrderModel | SetLimit | ResetLimits | ListLimits | ListUsers | SetUser | ResetUser
    | Health | Usage | Metrics | Backup
)  # fmt: skip
FromWorker = Enlist | Results | Phases | TextReport | CapacityReport | LoadEnded
FromPeer = FromClient | FromWorker | Heartbeat | Bye
ToClient = (
    Welcome | Submitted | Followed | Finished | Text | Statuses | Listed | Payload | WhyReply | Changed | Subscribed
    | Events | Done | Queues | Workers | Models | LimitsReply | Users | HealthReply | UsageReply | MetricsReply
    | BackupDone
)  # fmt: skip
ToWorker = Enlisted | Work | Acked | Stop | TextDurable | LoadModel | UnloadModel
ToPeer = ToClient | ToWorker | Heartbeat | Bye | Who | ErrorReply
OnPub = Tick | QueueSize | WorkerState | Progress
Message = FromPeer | ToPeer | OnPub

FROM_PEER: dict[str, type[FromPeer]] = {
    "hello": Hello, "submit": Submit, "follow": Follow, "unfollow": Unfollow, "follow_text": FollowText,
    "credit": Credit, "status": Status, "list": ListJobs, "get_payload": GetPayload, "why": Why, "cancel": Cancel,
    "retry": Retry, "delete": Delete, "update": Update, "subscribe": Subscribe, "unsubscribe": Unsubscribe,
    "pause": Pause, "drain": Drain, "resume": Resume, "list_queues": ListQueues, "list_workers": ListWorkers,
    "list_models": ListModels, "set_alias": SetAlias, "set_default_model": SetDefaultModel, "order_model": OrderModel,
    "set_limit": SetLimit, "reset_limits": ResetLimits, "list_limits": ListLimits, "list_users": ListUsers,
    "set_user": SetUser, "reset_user": ResetUser, "health": Health, "usage": Usage, "metrics": Metrics,
    "backup": Backup, "enlist": Enlist, "results": Results, "phases": Phases, "text_report": TextReport,
    "capacity": CapacityReport, "load_ended": LoadEnded, "heartbeat": Heartbeat, "bye": Bye,
}  # fmt: skip
"""Verb to header: what a client or worker sends."""

TO_PEER: dict[str, type[ToPeer]] = {
    "welcome": Welcome, "submitted": Submitted, "followed": Followed, "finished": Finished, "text": Text,
    "statuses": Statuses, "listed": Listed, "payload": Payload, "why_reply": WhyReply, "changed": Changed,
    "subscribed": Subscribed, "events": Events, "done": Done, "queues": Queues, "workers": Workers, "models": Models,
    "limits": LimitsReply, "users": Users, "health_reply": HealthReply, "usage_reply": UsageReply,
    "metrics_reply": MetricsReply, "backup_done": BackupDone, "enlisted": Enlisted, "work": Work, "acked": Acked,
    "stop": Stop, "text_durable": TextDurable, "load": LoadModel, "unload": UnloadModel, "heartbeat": Heartbeat,
    "bye": Bye, "who": Who, "error": ErrorReply,
}  # fmt: skip
"""Verb to header: what the broker sends."""

ON_PUB: dict[str, type[OnPub]] = {
    "tick": Tick, "queue_size": QueueSize, "worker_state": WorkerState, "progress": Progress,
}  # fmt: skip
"""Verb to header: what the PUB socket carries."""

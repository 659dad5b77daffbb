"""The pieces that messages are made of: jobs, leases, models and workers as both sides speak of them.

Headers themselves are in `messages`. Names of fields carry their unit; a field that holds its default may be left out.
"""

import msgspec

from lmq_proto.errors import ErrorInfo


class Part(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True, gc=False):
    """A piece of a message; also the base of all messages."""


class JobSpec(Part, frozen=True, kw_only=True):
    """One job as it is submitted. Absent means: as the task type's defaults say."""

    id: bytes
    task_type: str
    payload_bytes: int
    queue: str = ""
    priority: int | None = None
    models: list[str] = []
    """Any of these will do, best first; none means any model of the right kind."""
    prompt_tokens: int = 0
    output_tokens: int = 0
    labels: dict[str, str] = {}
    key: str = ""
    delay_ms: int = 0
    at_ms: int = 0
    expires_ms: int = 0
    timeout_ms: int = 0
    failures: int = 0
    """Charged attempts after which it is dead."""
    keep_ms: int = 0
    session: str = ""
    """Jobs of one session prefer the endpoint that ran the last of them."""
    uses: list[str] = []
    """Named resources it holds while it runs; a worker's name is one: its endpoint is drained first."""
    merge: str = ""
    """Jobs with one merge key may ride in one request, each with its own lease, charge and result; empty: alone."""
    parents: list[bytes] = []
    """Jobs that must be done before it starts."""
    root: bytes = b""


class Outcome(Part, frozen=True, kw_only=True):
    """What became of one job of a command: `accepted`, `duplicate`, `changed`, `unchanged` or `refused`."""

    job_id: bytes
    outcome: str
    channel: bytes = b""
    """Random topic of this job's progress on the PUB socket."""
    error: ErrorInfo | None = None
    priority: int | None = None
    """What it was given, where its user's ceiling is under what was asked for."""


class JobEnd(Part, frozen=True, kw_only=True):
    """How one job ended; its result is the next `result_bytes` of the body."""

    job_id: bytes
    state: str
    attempt: int = 0
    failures: int = 0
    result_bytes: int = 0
    error: ErrorInfo | None = None
    story: list[ErrorInfo] = []
    """Why each failed attempt failed, oldest first."""
    worker: str = ""
    model: str = ""
    queued_ms: int = 0
    leased_ms: int = 0


class Piece(Part, frozen=True, kw_only=True):
    """A piece of text. Channel `end` closes an attempt's text and holds the finish reason."""

    channel: str
    text: str


class JobView(Part, frozen=True, kw_only=True):
    """A job as people see it."""

    id: bytes
    number: int
    """Order of arrival at the broker."""
    user: str
    principal: str
    task_type: str
    queue: str
    priority: int
    state: str
    created_at_ms: int
    phase: str = ""
    progress: float = 0.0
    """0..1 within the phase, where known."""
    stage: str = ""
    log: str = ""
    tokens: int = 0
    tokens_per_s: float = 0.0
    models: list[str] = []
    model: str = ""
    """What it runs or ran on."""
    worker: str = ""
    attempt: int = 0
    failures: int = 0
    failures_max: int = 0
    suspect: bool = False
    ahead: int | None = None
    starts_in_s: tuple[float, float] | None = None
    done_in_s: tuple[float, float] | None = None
    due_at_ms: int = 0
    expires_at_ms: int = 0
    started_at_ms: int = 0
    finished_at_ms: int = 0
    deletes_at_ms: int = 0
    timeout_ms: int = 0
    payload_bytes: int = 0
    result_bytes: int = 0
    prompt_tokens: int = 0
    """As its submitter counted them; once it is done, as the worker did."""
    output_tokens: int = 0
    """The same of its answer."""
    labels: dict[str, str] = {}
    key: str = ""
    session: str = ""
    channel: bytes = b""
    error: ErrorInfo | None = None
    story: list[ErrorInfo] = []
    parents: list[bytes] = []
    waits_for: list[bytes] = []
    """Those of its parents that are not done yet."""
    own_priority: int | None = None
    """What it was given, while a job that waits for it lifts it above that."""
    hindrance: str = ""
    """In two or three words what keeps it from running, but for those ahead, while it is ready; empty: nothing."""


class JobFilter(Part, frozen=True, kw_only=True):
    """Jobs that match all fields that are set."""

    states: list[str] = []
    user: str = ""
    queue: str = ""
    task_type: str = ""
    model: str = ""
    worker: str = ""
    key: str = ""
    labels: dict[str, str] = {}
    id_ending: str = ""
    """Last characters of the id as people type them."""


class Reason(Part, frozen=True, kw_only=True):
    """One cause: a stable `code`, a sentence, and its facts."""

    code: str
    text: str
    fields: dict[str, str | int | float | bool | list[str] | None] = {}


class Target(Part, frozen=True, kw_only=True):
    """Jobs to act on: by id, or all open ones (all final ones for retry and delete) that match a filter."""

    job_ids: list[bytes] = []
    match: JobFilter | None = None


class EventFilter(Part, frozen=True, kw_only=True):
    """Events that match all fields that are set."""

    kinds: list[str] = []
    user: str = ""
    queue: str = ""
    job_ids: list[bytes] = []
    labels: dict[str, str] = {}


class Hold(Part, frozen=True, kw_only=True):
    """A pause or drain in force."""

    kind: str
    """`pause` or `drain`."""
    by: str
    since_ms: int
    until_ms: int = 0
    reason: str = ""


class UsageRow(Part, frozen=True, kw_only=True):
    """Sums over some days, users, models and task types; of these only what they were asked apart by is named."""

    day: str = ""
    """UTC, as `2026-11-23`."""
    user: str = ""
    model: str = ""
    task_type: str = ""
    done: int = 0
    dead: int = 0
    cancelled: int = 0
    expired: int = 0
    prompt_tokens: int = 0
    output_tokens: int = 0
    engine_ms: int = 0
    """Of all attempts, the failed ones too, as their workers counted."""
    wait_p50_ms: int | None = None
    """From accepted to the first start; None: no job that ended had started."""
    wait_p95_ms: int | None = None
    run_p50_ms: int | None = None
    """From the first start to the end."""
    run_p95_ms: int | None = None


class QueueView(Part, frozen=True, kw_only=True):
    """A queue and how many jobs of it are in each open state."""

    name: str
    delayed: int = 0
    blocked: int = 0
    ready: int = 0
    leased: int = 0
    asking: int = 0
    oldest_ready_ms: int = 0
    """How long the oldest ready job waits."""
    workers: list[str] = []
    hold: Hold | None = None


class UserView(Part, frozen=True, kw_only=True):
    """How one user stands in one band of one pool, or several of them in one row."""

    pool: str
    """`llm`, or `tasks/QUEUE` for the own tasks of a queue."""
    band: str
    user: str = ""
    """Empty: those of others whom the asker may not see, or who are too many to be named."""
    users: int = 1
    """How many the row sums up."""
    weight: float = 1.0
    running: int = 0
    queued: int = 0
    wanted_ratio: float = 0.0
    """Weight over the weights of all who wait or run in the band; 0 for who does neither."""
    received_ratio: float = 0.0
    """Of the engine time that was charged in the band within the last minute."""
    service_ms: int = 0
    """Engine time received, or forgiven to who came late."""
    key_ms: int = 0
    """Who has the smallest of the band is served next."""


class BandView(Part, frozen=True, kw_only=True):
    """One band of one pool."""

    pool: str
    name: str
    lowest: int
    """Its lowest priority."""
    share_ratio: float = 0.0
    """Least share of what stricter bands get."""
    queued: int = 0
    running: int = 0
    owed_ms: int = 0
    """Of its least share, in engine time."""


class Allowance(Part, frozen=True, kw_only=True):
    """What a user is given: a weight in the fair share, and a ceiling of the priorities that may be asked for."""

    user: str
    weight: float | None = None
    ceiling: int | None = None
    by: str = ""
    """Who set it; empty: the configuration file."""
    since_ms: int = 0


class InstanceInfo(Part, frozen=True, kw_only=True):
    """A model loaded at an endpoint, with room for `slots` jobs at once."""

    instance_id: str
    model: str
    """The model's key, or `*` for any."""
    kind: str = "llm"
    """`llm`, `embedding` or `any`."""
    slots: int = 1
    limit_by: str = ""
    """What keeps `slots` from being more, a word for people."""
    context_tokens: int = 0
    budget_tokens: int = 0
    """Tokens that all jobs on it may take together, prompts and answers; 0: each job has a context of its own."""
    ours: bool = False
    """lmq loaded it, so lmq may unload it."""
    variants: list[str] = []
    """Other names it answers to."""


class CatalogModel(Part, frozen=True, kw_only=True):
    """A model that an endpoint has on disk."""

    model: str
    kind: str = "llm"
    size_bytes: int = 0
    context_tokens: int = 0
    variants: list[str] = []


class HostLoad(Part, frozen=True, kw_only=True):
    """Load of the worker's machine; only where the endpoint is on it."""

    cpu_ratio: float = 0.0
    memory_ratio: float = 0.0
    memory_bytes: int = 0


class Breaker(Part, frozen=True, kw_only=True):
    """The endpoint keeps failing: nothing is sent there until it answers again."""

    since_ms: int
    reason: str
    probe_at_ms: int = 0


class Capacity(Part, frozen=True, kw_only=True):
    """What a worker can take now (report of a worker)."""

    instances: list[InstanceInfo] = []
    catalog: list[CatalogModel] = []
    may_load: bool = False
    """It may load models of its catalog when told so."""
    slots: int | None = None
    """Jobs over all instances; absent: the sum of theirs."""
    models_max: int | None = None
    """Models in memory at once; absent: as many as fit."""
    breaker: Breaker | None = None
    host: HostLoad | None = None
    notes: list[str] = []
    """What an operator should know about the endpoint, in sentences."""


class Limit(Part, frozen=True, kw_only=True):
    """How much may run, wait, or begin in a while, of the jobs it names; a name left out stands for all."""

    of: str
    """`running`, `queued` (jobs that wait), `bytes` (of payloads that wait), the rates `jobs` and `tokens`, or the
    alerts `depth` (jobs that wait) and `wait` (milliseconds that the oldest ready job has waited)."""
    value: float
    """-1: none, where the file has one."""
    user: str = ""
    """One user, or `*`: each by itself."""
    queue: str = ""
    task_type: str = ""
    model: str = ""
    worker: str = ""
    resource: str = ""
    per_ms: int = 0
    """Of a rate: `value` in so long."""
    burst: float = 0.0
    """Of a rate: so much at once; 0: `value`."""
    refuse: bool = False
    """Of a rate: what is over it is refused at submit; otherwise it waits."""


class LimitView(Part, frozen=True, kw_only=True):
    """A limit as people see it."""

    name: str
    limit: Limit
    origin: str
    """`file` or `command`."""
    by: str = ""
    since_ms: int = 0
    used: float = 0.0
    used_by: str = ""
    """Of a limit for each user: who has used most of it."""
    raised: bool = False
    """The alert of a depth or wait is raised."""
    unknown: list[str] = []
    """Names in it that no queue, model or worker has now, as `worker=gpu-9`."""


class WorkerView(Part, frozen=True, kw_only=True):
    """A worker as people see it."""

    name: str
    endpoint: str
    backend: str
    host: str
    state: str
    """`up`, `silent`, `gone`, `draining` or `paused`."""
    queues: list[str] = []
    task_types: list[str] = []
    software: str = ""
    protocol: int = 0
    pid: int = 0
    connected_ms: int = 0
    heard_ms: int = 0
    leased: int = 0
    capacity: Capacity | None = None
    loading: str = ""
    loading_ms: int = 0
    """How long that has been under way."""
    instances_leased: dict[str, int] = {}
    """Instance -> slots of it that are taken; jobs that ride together take one."""
    hold: Hold | None = None
    trust: float = 1.0
    """Sinks with each load or unload that was not ours, and recovers; places are compared with it."""
    loads: int = 0
    """Models loaded within the last hour."""
    lost_ms: int = 0
    """Of the last ten minutes, how much went into drains, unloads and loads."""
    stopped: bool = False
    """It is gone on purpose: it said so."""


class Alias(Part, frozen=True, kw_only=True):
    """A name that stands for any of some models."""

    name: str
    models: list[str] = []
    """Best first; none: the name is no alias, whatever the configuration file says."""
    by: str = ""
    """Empty: the configuration file."""
    since_ms: int = 0


class DefaultModel(Part, frozen=True, kw_only=True):
    """What jobs of a task type run on that name no model."""

    task_type: str
    model: str
    """A model or an alias; empty: any model, whatever the configuration file says."""
    by: str = ""
    """Empty: the configuration file."""
    since_ms: int = 0


class Order(Part, frozen=True, kw_only=True):
    """What somebody wants of a model at a worker."""

    kind: str
    """`load`, `unload` or `pin`."""
    worker: str
    model: str
    by: str
    since_ms: int
    until_ms: int = 0
    """Of a pin; 0: until it is taken back."""
    note: str = ""
    """Why it is not carried out yet; empty: it is."""


class ModelView(Part, frozen=True, kw_only=True):
    """A model and where it is."""

    model: str
    kind: str
    loaded_on: list[str] = []
    on_disk_at: list[str] = []
    slots: int = 0
    leased: int = 0
    waiting: int = 0
    aliases: list[str] = []
    """Names that stand for it, among others perhaps."""
    orders: list[Order] = []


class Held(Part, frozen=True, kw_only=True):
    """A lease that a worker still holds: running, or ended and not yet acknowledged."""

    job_id: bytes
    epoch: int
    attempt: int
    ended: bool = False
    instance_id: str = ""
    """Where it runs; empty once it has ended."""


class Lease(Part, frozen=True, kw_only=True):
    """The right to one attempt; its payload is the next `payload_bytes` of the body."""

    job_id: bytes
    epoch: int
    attempt: int
    task_type: str
    payload_bytes: int
    instance_id: str = ""
    models: list[str] = []
    timeout_ms: int = 0
    failures: int = 0
    failures_max: int = 0
    alone: bool = False
    """A suspect: nothing else runs on this instance meanwhile."""
    user: str = ""
    labels: dict[str, str] = {}
    session: str = ""
    prompt_tokens: int = 0
    """As its submitter says; a worker that counts more than a quarter more gives the job back with its count."""


class Group(Part, frozen=True, kw_only=True):
    """Leases that share one slot. The order of all leases in a message is the order of the body."""

    leases: list[Lease]


class Ended(Part, frozen=True, kw_only=True):
    """How a worker ended one lease; the result is the next `result_bytes` of the body.

    `outcome`: `complete`, `fail` (charged), `release` (no fault of the job), `crash` (the engine died under it),
    `stopped` (told to).
    """

    job_id: bytes
    epoch: int
    attempt: int
    outcome: str
    result_bytes: int = 0
    error: ErrorInfo | None = None
    permanent: bool = False
    """Another attempt would fail the same way."""
    retry_after_ms: int = 0
    """The server asked for this much patience."""
    shared: bool = False
    """Others ran on the same instance when the engine crashed."""
    model: str = ""
    prompt_tokens: int = 0
    output_tokens: int = 0
    engine_ms: int = 0


class LeaseRef(Part, frozen=True, kw_only=True):
    """Names one lease."""

    job_id: bytes
    epoch: int
    attempt: int


class PhaseReport(Part, frozen=True, kw_only=True):
    """Latest value of one lease's progress."""

    job_id: bytes
    attempt: int
    phase: str
    progress: float = 0.0
    stage: str = ""
    log: str = ""
    tokens: int = 0
    tokens_per_s: float = 0.0


class TextMark(Part, frozen=True, kw_only=True):
    """A place in an attempt's text."""

    job_id: bytes
    attempt: int
    piece: int

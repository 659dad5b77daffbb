"""Messages about nouns: queues, workers, models, the broker itself. `messages` has them all in its tables."""

from lmq_proto.parts import (
    Alias,
    Allowance,
    BandView,
    DefaultModel,
    Limit,
    LimitView,
    ModelView,
    Part,
    QueueView,
    UsageRow,
    UserView,
    WorkerView,
)


class Pause(Part, frozen=True, kw_only=True):
    """Hold a queue (nothing of it starts) or a worker (nothing starts there)."""

    request_id: int
    noun: str
    """`queue` or `worker`."""
    name: str
    for_ms: int = 0
    """0: until resumed."""
    now: bool = False
    """A worker also gives back what it runs, uncharged."""
    reason: str = ""


class Drain(Part, frozen=True, kw_only=True):
    """A queue takes no more and finishes what it holds; a worker finishes what it runs and takes no more."""

    request_id: int
    noun: str
    name: str
    reason: str = ""


class Resume(Part, frozen=True, kw_only=True):
    """End a pause or drain."""

    request_id: int
    noun: str
    name: str


class Done(Part, frozen=True, kw_only=True):
    """The command was carried out. `changed` is false when there was nothing to do."""

    request_id: int
    changed: bool = True


class ListQueues(Part, frozen=True, kw_only=True):
    """Ask for all queues."""

    request_id: int


class Queues(Part, frozen=True, kw_only=True):
    """All queues, by name."""

    request_id: int
    queues: list[QueueView]


class ListWorkers(Part, frozen=True, kw_only=True):
    """Ask for all workers, the lately gone too."""

    request_id: int


class Workers(Part, frozen=True, kw_only=True):
    """All workers, by name."""

    request_id: int
    workers: list[WorkerView]


class ListModels(Part, frozen=True, kw_only=True):
    """Ask for all models of all endpoints."""

    request_id: int


class Models(Part, frozen=True, kw_only=True):
    """All models, by name; aliases and default models in force."""

    request_id: int
    models: list[ModelView]
    aliases: list[Alias] = []
    defaults: list[DefaultModel] = []


class SetAlias(Part, frozen=True, kw_only=True):
    """Make a name stand for any of some models; for none: make it no alias."""

    request_id: int
    name: str
    models: list[str] = []
    reset: bool = False
    """Let the configuration file say again what it stands for."""


class SetDefaultModel(Part, frozen=True, kw_only=True):
    """Say what jobs of a task type run on that name no model; nothing: on any."""

    request_id: int
    task_type: str
    model: str = ""
    reset: bool = False
    """Let the configuration file say again."""


class OrderModel(Part, frozen=True, kw_only=True):
    """Have a model loaded, unloaded or kept at a worker, or take such an order back."""

    request_id: int
    kind: str
    """`load`, `unload`, `pin` or `unpin`."""
    model: str
    worker: str = ""
    """Empty, to unload and unpin: wherever it is."""
    for_ms: int = 0
    """Of a pin; 0: until it is taken back."""


class SetLimit(Part, frozen=True, kw_only=True):
    """Set a limit until it is reset; its name is what it is of and whom it names. Answered by `done`."""

    request_id: int
    limit: Limit


class ResetLimits(Part, frozen=True, kw_only=True):
    """Go back to what the broker's file says of a limit, or of all of them. Answered by `done`."""

    request_id: int
    name: str = ""
    """Empty: all."""


class ListLimits(Part, frozen=True, kw_only=True):
    """Ask for all limits."""

    request_id: int


class LimitsReply(Part, frozen=True, kw_only=True):
    """All limits (to `list_limits`)."""

    request_id: int
    limits: list[LimitView]


class ListUsers(Part, frozen=True, kw_only=True):
    """Ask who waits and runs, with which share."""

    request_id: int


class Users(Part, frozen=True, kw_only=True):
    """Users in the bands where they wait, run, or ran within the last minute; all bands; all allowances."""

    request_id: int
    policy: str
    has_shares: bool
    """Whether the policy knows shares, or goes by priority and arrival, whoever asked."""
    users: list[UserView]
    bands: list[BandView]
    allowances: list[Allowance] = []
    each: list[str] = []
    """Apps whose users (`shop/alice`) have a share each; those of all others share as their app."""


class SetUser(Part, frozen=True, kw_only=True):
    """Give a user a weight, a ceiling or both. Absent means: leave."""

    request_id: int
    user: str
    weight: float | None = None
    ceiling: int | None = None


class ResetUser(Part, frozen=True, kw_only=True):
    """Take back what commands gave a user: the configuration file counts again."""

    request_id: int
    user: str


class Health(Part, frozen=True, kw_only=True):
    """Ask how the broker is."""

    request_id: int


class HealthReply(Part, frozen=True, kw_only=True):
    """The broker's own facts. Counts by open state; the rest since its start."""

    request_id: int
    software: str
    protocol: int
    broker_id: bytes
    epoch: int
    wall_ms: int
    uptime_ms: int
    counts: dict[str, int]
    ended: dict[str, int] = {}
    ended_last_min: int = 0
    """Jobs that reached each final state since the start."""
    refused: dict[str, int] = {}
    """Commands refused since the start, by error code."""
    stale_results: int = 0
    cursor: int = 0
    """The newest event's seq."""
    sessions: int = 0
    workers: int = 0
    journal_path: str = ""
    journal_bytes: int = 0
    journal_free_bytes: int = 0
    journal_floor_bytes: int = 0
    commit_p50_us: int = 0
    commit_p99_us: int = 0
    disk_trouble: str = ""
    clock_trouble: str = ""
    """Why expiry and retention are held, or empty."""
    jobs_open: int = 0
    jobs_open_max: int = 0
    memory_bytes: int = 0


class Usage(Part, frozen=True, kw_only=True):
    """Ask what jobs have used, summed by UTC day: the days that touch `since_ms` up to `until_ms`."""

    request_id: int
    since_ms: int = 0
    """0: from the first day kept."""
    until_ms: int = 0
    """0: up to now."""
    by: list[str] = []
    """What gets rows of its own: `day`, `user`, `model`, `task_type`, in the order to sort by; none: one row."""
    user: str = ""
    """Only this user's."""
    after: list[str] = []
    """What the last row of the page before was of, in the order of `by`."""


class UsageReply(Part, frozen=True, kw_only=True):
    """A page of sums. `more` tells whether another may follow."""

    request_id: int
    since_ms: int
    """Beginning of the first day, of those that could be."""
    until_ms: int
    """End of the last day."""
    rows: list[UsageRow]
    total: UsageRow
    """Over all pages."""
    more: bool = False


class Metrics(Part, frozen=True, kw_only=True):
    """Ask for the broker's own measurements in Prometheus' text format."""

    request_id: int
    users: bool = False
    """Those of each user too."""


class MetricsReply(Part, frozen=True, kw_only=True):
    """The body is the text, UTF-8."""

    request_id: int


class Backup(Part, frozen=True, kw_only=True):
    """Copy the journal, online, to a path on the broker's machine."""

    request_id: int
    path: str


class BackupDone(Part, frozen=True, kw_only=True):
    """The copy is whole and on disk."""

    request_id: int
    path: str
    copied_bytes: int

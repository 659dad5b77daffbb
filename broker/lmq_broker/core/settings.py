"""What the core is told at its start: bounds and defaults, each with its unit. No file or environment is read here."""

import msgspec

from lmq_proto import bounds
from lmq_proto.parts import Limit

ENGINE_TASKS = frozenset({"chat", "complete", "embed", "bulk_embed", "echo"})
"""Task types with no side effects: their dispatch need not wait for the disk."""

EMBEDDING_TASKS = frozenset({"embed", "bulk_embed"})
TASKS_WITH_DEFAULT = ("chat", "complete", "embed", "bulk_embed")
"""Task types that may have a default model."""


POOLED, EACH = "pooled", "each"
"""How users of an app share."""


class TaskDefaults(msgspec.Struct, frozen=True):
    """What a job gets where its submitter says nothing."""

    queue: str = "default"
    priority: int = 5
    failures: int = 3
    timeout_ms: int = 600_000
    keep_ms: int = 7 * bounds.DAY_MS
    model: str = ""
    """A model or an alias, for jobs that name none; empty: any will do."""
    expected_ms: int = 60_000
    """Of own tasks: how long one is thought to take, until some have ended."""


TASK_DEFAULTS: dict[str, TaskDefaults] = {
    "chat": TaskDefaults(priority=5, failures=3, timeout_ms=600_000),
    "complete": TaskDefaults(priority=5, failures=3, timeout_ms=600_000),
    "embed": TaskDefaults(priority=6, failures=3, timeout_ms=60_000),
    "bulk_embed": TaskDefaults(priority=2, failures=1, timeout_ms=3_600_000),
    "workflow": TaskDefaults(priority=4, failures=2, timeout_ms=600_000),
}


class BandSettings(msgspec.Struct, frozen=True):
    """A strict group of priorities."""

    name: str
    lowest: int
    """Priorities from here up to the next band's."""
    share: float = 0.0
    """Least share of what stricter bands get, 0..1."""
    patience: float = 3.0
    """How long the loaded model is preferred to the fair choice, in times of a load."""
    reserve: int = 0
    """Slots of each instance left free for stricter bands, while these have started jobs within ten minutes."""


BANDS = (
    BandSettings("interactive", 7, 0.0, 1.0),
    BandSettings("normal", 4, 0.10, 3.0),
    BandSettings("background", 0, 0.05, 5.0, 1),
)


class Rates(msgspec.Struct, frozen=True):
    """What a model takes of an engine's time, in milliseconds a token."""

    prompt_ms: float
    output_ms: float


class Settings(msgspec.Struct, frozen=True):
    """Every bound of the core has a name and a number."""

    policy: str = "blfq"
    task_defaults: dict[str, TaskDefaults] = msgspec.field(default_factory=lambda: dict(TASK_DEFAULTS))
    bands: tuple[BandSettings, ...] = BANDS
    """From the strictest on."""
    shares: bool = True
    """Users have shares; no: a band serves all its jobs as if one user had asked for them."""
    foresees: bool = True
    """What a job will cost is charged when it starts; no: as it is received."""
    weights: dict[str, float] = msgspec.field(default_factory=dict)
    """User -> weight in the fair share; 1 for all others. What commands say wins."""
    apps: dict[str, str] = msgspec.field(default_factory=dict)
    """App -> `pooled` (its users, `app/name`, share as one) or `each` (each has a share); pooled for all others."""
    ceilings: dict[str, int] = msgspec.field(default_factory=dict)
    """User -> the highest priority that may be asked for; none for all others. What commands say wins."""
    rates: dict[str, Rates] = msgspec.field(default_factory=dict)
    """Model -> rates by which jobs are charged; those of other models are learnt."""
    outlook_every_ms: int = 2000
    """How often starts are foreseen while jobs wait and nobody asks, so that ranges hold once somebody does; 0: not."""
    aliases: dict[str, tuple[str, ...]] = msgspec.field(default_factory=dict)
    """Name -> models it stands for, where no command says otherwise."""
    limits: tuple[Limit, ...] = ()
    """Those of the file, until a command sets others."""
    open_role: str = "admin"
    """Open mode: the role of local peers."""

    payload_bytes: int = bounds.PAYLOAD_BYTES
    jobs_open: int = 2_000_000
    jobs_open_per_user: int = 1_000_000
    jobs_kept: int = 1_000_000
    """Final jobs kept; the oldest go first beyond it."""
    journal_bytes: int = 16 * 1024**3
    """What the journal may take on disk before the oldest final jobs go."""
    queues: int = 10_000
    workers: int = 1000
    allowances: int = 10_000
    """Users to whom commands gave a weight or a ceiling."""
    aliases_set: int = 1000
    """Aliases by command."""
    orders: int = 1000
    """Loads and unloads that are not done yet, and pins."""
    usage_rows: int = 5000
    """Rows of the daily sums (user, model, task type) that one day gets; what comes beyond has one row together."""
    usage_days: int = 731
    """How long the daily sums are kept."""
    names: int = 100_000
    """Names of which one string object is kept."""
    tombstones: int = 200_000
    tombstone_ms: int = 7 * bounds.DAY_MS
    sessions: int = 20_000
    follows: int = bounds.FOLLOWS
    events_in_memory: int = 20_000
    events_per_push: int = 500
    text_memory_bytes: int = 1024 * 1024
    """Text of one running attempt held in memory; older pieces are read from the journal."""
    text_readers: int = 100_000

    text_flush_ms: int = 1000
    text_flush_bytes: int = 16 * 1024

    heartbeat_ms: int = 1000
    client_heartbeat_ms: int = 2000
    silent_ms: int = 15_000
    """Connected but silent for this long: the session is dead."""
    gone_ms: int = 3000
    """The connection is gone for this long: a worker's leases pass on."""
    recovery_ms: int = 15_000
    """After a restart of the broker, workers may take up their leases for this long."""

    backoff_base_ms: int = 1000
    backoff_cap_ms: int = 60_000
    release_backoff_cap_ms: int = 30_000
    releases_free: int = 3
    """Uncharged releases in a row that are ready again at once; further ones wait a little."""
    strikes: int = 2
    timeout_slack_ms: int = 10_000
    """How much later than the worker the broker ends an attempt that is over its time."""
    load_retry_ms: int = 30_000
    """How long a model is not tried again where its load failed."""

    clock_jump_ms: int = 5000
    clock_hold_ms: int = 600_000
    """How long expiry and retention are held after the wall clock jumped."""
    retention_step: int = 500
    retention_every_ms: int = 5000

    @property
    def least_weight(self) -> float:
        """The smallest weight that any user has."""
        return min(1.0, *self.weights.values()) if self.weights else 1.0

"""What the journal keeps: the image of a job, and one record per change. How it lies on disk is not said here."""

import msgspec

from lmq_broker.core.histograms import Counts
from lmq_proto.errors import ErrorInfo
from lmq_proto.events import Event


class Terms(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a submitter asked for and the scheduler seldom looks at."""

    timeout_ms: int = 0
    failures_max: int = 1
    keep_ms: int = 0
    labels: dict[str, str] = {}
    key: str = ""
    digest: bytes = b""
    """Of the payload, for jobs with a key."""
    session: str = ""
    uses: tuple[str, ...] = ()
    merge: str = ""
    parents: tuple[bytes, ...] = ()
    root: bytes = b""


class Past(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a job has been through. Replaced, never changed."""

    story: tuple[ErrorInfo, ...] = ()
    strikes: int = 0
    suspect: bool = False
    releases: int = 0
    backoff_ms: int = 0
    """A wait that a restart grants again."""
    error: ErrorInfo | None = None
    own_priority: int | None = None
    """What it was given, while a job that waits for it lifts it above that."""


NO_PAST = Past()
"""Of all jobs to which nothing has happened yet."""


class StoredJob(msgspec.Struct, frozen=True, gc=False):
    """A job as the journal knows it: its latest image."""

    number: int
    id: bytes
    user: str
    principal: str
    task_type: str
    queue: str
    priority: int
    state: str
    order: int
    created_at_ms: int
    payload_bytes: int
    models: tuple[str, ...] = ()
    prompt_tokens: int = 0
    output_tokens: int = 0
    due_at_ms: int = 0
    expires_at_ms: int = 0
    started_at_ms: int = 0
    finished_at_ms: int = 0
    deletes_at_ms: int = 0
    attempt: int = 0
    epoch: int = 0
    failures: int = 0
    worker: str = ""
    model: str = ""
    result_bytes: int = 0
    terms: Terms = Terms()
    past: Past = Past()


class JobAdded(msgspec.Struct, frozen=True, gc=False):
    """A job was accepted."""

    job: StoredJob
    payload: bytes


class JobChanged(msgspec.Struct, frozen=True, gc=False):
    """A job has a new image; what its submitter gave and no command changes stays."""

    job: StoredJob


class ResultAdded(msgspec.Struct, frozen=True, gc=False):
    """A job's result."""

    number: int
    result: bytes


class ResultDropped(msgspec.Struct, frozen=True, gc=False):
    """A final job runs again: its result and text are void."""

    number: int


class TextAdded(msgspec.Struct, frozen=True, gc=False):
    """Pieces `first` to `last` of an attempt, packed as MessagePack."""

    number: int
    attempt: int
    first: int
    last: int
    packed: bytes


class JobsDeleted(msgspec.Struct, frozen=True):
    """Final jobs are gone with all they had; their ids and keys are remembered until `until_ms`."""

    numbers: list[int]
    until_ms: int


class TombstonesDropped(msgspec.Struct, frozen=True):
    """Ids and keys remembered up to this time are forgotten."""

    until_ms: int


class EventsAdded(msgspec.Struct, frozen=True):
    """The durable events of one turn, in order."""

    events: list[Event]


class MetaSet(msgspec.Struct, frozen=True):
    """A named value: pauses, known models. Empty removes it."""

    name: str
    value: bytes


class UsageAdded(msgspec.Struct):
    """What one turn adds to a row of the daily sums. Filled while the turn lasts, never changed afterwards."""

    day: int
    """UTC, counted from 1970-01-01."""
    user: str
    model: str
    task_type: str
    ended: dict[str, int] = msgspec.field(default_factory=dict)
    """Jobs by final state."""
    prompt_tokens: int = 0
    output_tokens: int = 0
    engine_ms: int = 0
    waits: Counts = msgspec.field(default_factory=dict)
    """Of jobs that ended: from accepted to the first start."""
    runs: Counts = msgspec.field(default_factory=dict)
    """From the first start to the end."""


class UsageDropped(msgspec.Struct, frozen=True):
    """The sums of this day and all before it are forgotten."""

    day: int


RECORDS = (
    JobChanged, JobAdded, ResultAdded, EventsAdded, UsageAdded, MetaSet, TextAdded, ResultDropped, JobsDeleted,
    TombstonesDropped, UsageDropped,
)  # fmt: skip
"""What there are most of comes first."""
Record = (
    JobAdded | JobChanged | ResultAdded | ResultDropped | TextAdded | JobsDeleted | TombstonesDropped | EventsAdded
    | MetaSet | UsageAdded | UsageDropped
)  # fmt: skip

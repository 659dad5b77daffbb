"""What the core asks the reading thread for, and what it gets back.

A request carries the `context` that the core needs to go on: whom to answer, and which command it was. Jobs are found
by their numbers, which grow: an index over random ids on disk would cost each accepted job as much as its row.
"""

import msgspec

from lmq_broker.core.records import StoredJob
from lmq_proto.events import Event
from lmq_proto.ids import PeerId
from lmq_proto.messages import FromPeer, JobFilter, Piece, UsageRow


class Context(msgspec.Struct, frozen=True):
    """Whom the answer is for: a peer and its command, or nobody (the broker's own housekeeping)."""

    peer: PeerId = PeerId(b"")
    command: FromPeer | None = None
    position: int = 0
    """Journal position at the question: the answer may not show what was opened again later."""


class ReadJobs(msgspec.Struct, frozen=True):
    """Jobs by id; `numbers` are theirs, 0 for one that nobody knows."""

    context: Context
    ids: list[bytes]
    numbers: list[int]


class ReadList(msgspec.Struct, frozen=True):
    """A page of jobs by filter."""

    context: Context
    match: JobFilter
    user: str
    """Only this user's; empty: all."""
    after: int
    limit: int
    oldest_first: bool


class ReadEnds(msgspec.Struct, frozen=True):
    """Ended jobs with results, in this order, up to about `limit_bytes` of them (at least one)."""

    context: Context
    ids: list[bytes]
    numbers: list[int]
    limit_bytes: int


class ReadPayload(msgspec.Struct, frozen=True):
    """One job with its payload."""

    context: Context
    id: bytes
    number: int


class ReadText(msgspec.Struct, frozen=True):
    """Text of a job after (attempt, piece); of its latest attempt with text if that is a later one."""

    context: Context
    id: bytes
    number: int
    attempt: int
    piece: int
    limit_bytes: int


class ReadEvents(msgspec.Struct, frozen=True):
    """Events after a cursor, or (cursor -1) from a time on."""

    context: Context
    subscription_id: int
    cursor: int
    since_ms: int
    limit: int


class ReadDue(msgspec.Struct, frozen=True):
    """Final jobs whose time to be kept is over."""

    context: Context
    wall_ms: int
    limit: int


class ReadUsage(msgspec.Struct, frozen=True):
    """A page of daily sums over the days `first` to `last`, both included."""

    context: Context
    first: int
    last: int
    by: tuple[str, ...]
    """Columns that get rows of their own: `day`, `user`, `model`, `task_type`."""
    user: str
    """Only this user's; empty: all."""
    after: tuple[str, ...]
    """Values of those columns in the last row of the page before; empty: from the start."""
    limit: int


class CopyJournal(msgspec.Struct, frozen=True):
    """Write a copy of the journal to a path."""

    context: Context
    path: str


ReadRequest = (
    ReadJobs | ReadList | ReadEnds | ReadPayload | ReadText | ReadEvents | ReadDue | ReadUsage | CopyJournal
)


class StoredText(msgspec.Struct, frozen=True):
    """Pieces `first` .. of one attempt."""

    attempt: int
    first: int
    pieces: list[Piece]


class StoredEnd(msgspec.Struct, frozen=True):
    """A job with its result."""

    job: StoredJob
    result: bytes


class ListReply(msgspec.Struct, frozen=True):
    """A page of jobs, by number."""

    jobs: list[StoredJob]
    more: bool


class JobsReply(msgspec.Struct, frozen=True):
    """The jobs found, in no order."""

    jobs: list[StoredJob]


class EndsReply(msgspec.Struct, frozen=True):
    """Ended jobs with their results, of the first ids asked for; `missing` are those of them that are gone."""

    ends: list[StoredEnd]
    missing: list[bytes]


class PayloadReply(msgspec.Struct, frozen=True):
    """One job with its payload."""

    job: StoredJob | None
    payload: bytes


class TextReply(msgspec.Struct, frozen=True):
    """Text of a job's last attempt that has any; `more` is on disk."""

    job: StoredJob | None
    texts: list[StoredText]
    more: bool


class EventsReply(msgspec.Struct, frozen=True):
    """Events after a cursor; `oldest` is the smallest cursor that can still be asked for."""

    events: list[Event]
    oldest: int
    cursor: int
    """The cursor that was asked for, or found by time."""


class UsageSums(msgspec.Struct, frozen=True):
    """A page of daily sums in the order of its columns, and those over all pages."""

    rows: list[UsageRow]
    total: UsageRow
    more: bool


class CopyReply(msgspec.Struct, frozen=True):
    """How a backup went; `error` is empty if well."""

    copied_bytes: int
    error: str


ReadReply = ListReply | JobsReply | EndsReply | PayloadReply | TextReply | EventsReply | UsageSums | CopyReply

"""What a user gets back: results of jobs, their status, their text, their events. Frozen data."""

from __future__ import annotations

import sys
from array import array
from collections.abc import Mapping, Sequence

import msgpack  # type: ignore[import-untyped]  # it ships no types
import msgspec

from lmq_proto import ids, states
from lmq_proto.errors import ErrorInfo, Field, ProtocolError
from lmq_proto.messages import (
    Alias,
    Allowance,
    BandView,
    DefaultModel,
    HealthReply,
    Hold,
    InstanceInfo,
    JobView,
    Limit,
    LimitView,
    ModelView,
    Order,
    Progress,
    QueueSize,
    QueueView,
    Reason,
    Tick,
    UsageReply,
    UsageRow,
    Users,
    UserView,
    WhyReply,
    WorkerState,
    WorkerView,
)

__all__ = [
    "Alias",
    "Allowance",
    "BandView",
    "ChatResult",
    "DefaultModel",
    "EmbedResult",
    "ErrorInfo",
    "Event",
    "HealthReply",
    "Hold",
    "InstanceInfo",
    "JobStatus",
    "Json",
    "Limit",
    "LimitView",
    "ModelView",
    "Order",
    "Outcome",
    "Piece",
    "Progress",
    "QueueSize",
    "QueueView",
    "Reason",
    "Restart",
    "Tick",
    "Usage",
    "UsageReply",
    "UsageRow",
    "UserView",
    "Users",
    "Why",
    "WorkerState",
    "WorkerView",
]

Json = None | bool | int | float | str | bytes | Sequence["Json"] | Mapping[str, "Json"]
"""What MessagePack can hold: payloads and results of your own tasks."""


class Usage(msgspec.Struct, frozen=True):
    """Tokens as the engine counted them."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    total_tokens: int = 0


class ChatResult(msgspec.Struct, frozen=True):
    """The answer of a `chat` or `complete` job."""

    text: str = ""
    reasoning: str = ""
    tool_calls: list[dict[str, Json]] = []
    """As the engine gave them: OpenAI's `{"id", "type", "function": {"name", "arguments"}}`."""
    finish_reason: str = ""
    usage: Usage = Usage()
    model: str = ""
    raw: dict[str, Json] = {}
    """The other fields of the engine's reply."""


class EmbedResult(msgspec.Struct, frozen=True):
    """The vectors of an `embed` job, in the order of the texts."""

    array: bytes
    """`count` x `dims` float32, little-endian, packed."""
    count: int
    dims: int
    model: str = ""
    usage: Usage = Usage()

    @property
    def vectors(self) -> list[list[float]]:
        """The vectors as lists; unpacked anew at each look, so keep what you got."""
        numbers = array("f")
        numbers.frombytes(self.array)
        if sys.byteorder == "big":
            numbers.byteswap()
        flat = numbers.tolist()
        return [flat[start : start + self.dims] for start in range(0, len(flat), self.dims or 1)]


class JobStatus(msgspec.Struct, frozen=True, kw_only=True):
    """A job as people see it. Times are Unix milliseconds, 0 where there is none."""

    id: str
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
    """Ready jobs that would start before it, while it is ready."""
    starts_in_s: tuple[float, float] | None = None
    """(soonest, latest) of nine in ten, while it is ready; None where nothing is foreseen to start."""
    done_in_s: tuple[float, float] | None = None
    """The same of its end, while it is ready or leased."""
    due_at_ms: int = 0
    expires_at_ms: int = 0
    started_at_ms: int = 0
    finished_at_ms: int = 0
    deletes_at_ms: int = 0
    timeout_ms: int = 0
    payload_bytes: int = 0
    result_bytes: int = 0
    prompt_tokens: int = 0
    """As its submitter counted them, 0 where it did not; once it is done, as the worker did."""
    output_tokens: int = 0
    """The same of its answer."""
    labels: dict[str, str] = {}
    key: str = ""
    session: str = ""
    channel: bytes = b""
    """Topic of its progress on the PUB socket."""
    error: ErrorInfo | None = None
    story: list[ErrorInfo] = []
    parents: list[str] = []
    """Ids of the jobs that must be done before it starts."""
    waits_for: list[str] = []
    """Those of them that are not done yet."""
    own_priority: int | None = None
    """What it was given, while a job that waits for it lifts it above that."""
    hindrance: str = ""
    """In two or three words what keeps it from running, but for those ahead, while it is ready; empty: nothing."""

    @property
    def is_final(self) -> bool:
        """Whether the job has ended, one way or another."""
        return self.state in states.FINAL

    @classmethod
    def of(cls, view: JobView) -> JobStatus:
        """Return the wire's view with its id as text."""
        fields = {name: getattr(view, name) for name in _VIEW_FIELDS}
        return cls(
            **fields, id=ids.to_text(view.id), parents=[ids.to_text(each) for each in view.parents],
            waits_for=[ids.to_text(each) for each in view.waits_for],
        )  # fmt: skip


_VIEW_FIELDS = tuple(name for name in JobView.__struct_fields__ if name not in ("id", "parents", "waits_for"))


class Why(msgspec.Struct, frozen=True):
    """Why a job waits, or what became of it: the cause that matters most first, and what its owner can type."""

    status: JobStatus
    reasons: list[Reason]
    hints: list[str] = []

    @classmethod
    def of(cls, reply: WhyReply) -> Why:
        """Return the wire's answer with its ids as text."""
        return cls(JobStatus.of(reply.job), reply.reasons, reply.hints)


class Event(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that happened. `seq` is its number in the broker's one stream, and a cursor for `events(since=...)`."""

    seq: int
    at_ms: int
    kind: str
    job_id: str = ""
    """Empty for events of no job, as are the other fields of a job."""
    user: str = ""
    queue: str = ""
    task_type: str = ""
    state: str = ""
    """The job's state after it."""
    attempt: int = 0
    worker: str = ""
    model: str = ""
    labels: dict[str, str] = {}
    detail: dict[str, Field] = {}


class Outcome(msgspec.Struct, frozen=True):
    """What an act did to one job: `changed`, `unchanged`, or `refused` with the error."""

    job_id: str
    outcome: str
    error: ErrorInfo | None = None
    priority: int | None = None
    """What an update gave it, where its user's ceiling is under what was asked for."""


class Piece(msgspec.Struct, frozen=True):
    """A piece of text. Channel: `content`, `reasoning`, `tool`, or `end`, which holds the finish reason."""

    channel: str
    text: str
    attempt: int
    number: int
    """1-based within the attempt."""


class Restart(msgspec.Struct, frozen=True):
    """A new attempt began: what was shown of earlier ones is void."""

    attempt: int
    reason: str


def pack(value: Json) -> bytes:
    """Return a payload's bytes.

    Raises:
        TypeError, ValueError, OverflowError: MessagePack cannot hold it.
    """
    packed = msgpack.packb(value, use_bin_type=True)
    assert isinstance(packed, bytes)
    return packed


def unpack(data: bytes) -> Json:
    """Return what a payload or result holds; nothing for no bytes.

    Raises:
        ProtocolError: the bytes are no MessagePack.
    """
    if not data:
        return None
    try:
        value: Json = msgpack.unpackb(data, raw=False, strict_map_key=False)
    except (ValueError, msgpack.exceptions.UnpackException, RecursionError) as error:
        raise ProtocolError(f"the bytes are no MessagePack: {error}") from error
    return value


def read_chat(data: bytes) -> ChatResult:
    """Return the answer in a chat's result bytes; absent and null fields give the defaults."""
    fields = _map(unpack(data))
    return ChatResult(
        text=_str(fields.get("text")),
        reasoning=_str(fields.get("reasoning")),
        tool_calls=[dict(call) for call in _list(fields.get("tool_calls")) if isinstance(call, Mapping)],
        finish_reason=_str(fields.get("finish_reason")),
        usage=read_usage(fields.get("usage")),
        model=_str(fields.get("model")),
        raw=dict(_map(fields.get("raw"))),
    )


def read_embed(data: bytes) -> EmbedResult:
    """Return the vectors in an embedding's result bytes.

    Raises:
        ProtocolError: the vectors are not there, or not as many as said.
    """
    fields = _map(unpack(data))
    packed, count, dims = fields.get("vectors"), fields.get("count"), fields.get("dims")
    if not isinstance(packed, bytes) or not isinstance(count, int) or not isinstance(dims, int):
        raise ProtocolError("the result of an embedding lacks vectors, count or dims")
    if len(packed) != 4 * count * dims:
        raise ProtocolError(f"{len(packed)} bytes of vectors instead of 4 x {count} x {dims}")
    return EmbedResult(packed, count, dims, _str(fields.get("model")), read_usage(fields.get("usage")))


def join_embeds(parts: Sequence[EmbedResult]) -> EmbedResult:
    """Return the vectors of several jobs as one result, in order.

    Raises:
        ProtocolError: the parts differ in dimensions.
    """
    filled = [part for part in parts if part.count]
    if len({part.dims for part in filled}) > 1:
        raise ProtocolError("the parts of one embedding differ in dimensions")
    return EmbedResult(
        b"".join(part.array for part in parts),
        sum(part.count for part in parts),
        filled[0].dims if filled else 0,
        parts[0].model if parts else "",
        Usage(
            sum(part.usage.prompt_tokens for part in parts),
            sum(part.usage.completion_tokens for part in parts),
            sum(part.usage.total_tokens for part in parts),
        ),
    )


def read_usage(value: Json) -> Usage:
    """Return the token counts of a result; what is missing counts 0."""
    fields = _map(value)
    return Usage(
        _int(fields.get("prompt_tokens")),
        _int(fields.get("completion_tokens")),
        _int(fields.get("total_tokens")),
    )


def _map(value: Json) -> Mapping[str, Json]:
    return value if isinstance(value, Mapping) else {}


def _list(value: Json) -> Sequence[Json]:
    return value if isinstance(value, list | tuple) else []


def _str(value: Json) -> str:
    return value if isinstance(value, str) else ""


def _int(value: Json) -> int:
    return value if isinstance(value, int) else 0

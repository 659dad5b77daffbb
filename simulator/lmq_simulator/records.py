"""What the engine holds: instances, the requests inside them, and how a request can end. Data, no behaviour."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Literal

from lmq_simulator.config import ModelSpec


class Channel(StrEnum):
    """Where a piece of output belongs."""

    REASONING = "reasoning"
    CONTENT = "content"
    TOOL_CALL = "tool_call"
    TOOL_ARGUMENTS = "tool_arguments"


@dataclass(frozen=True, slots=True)
class Piece:
    """One token of output. For TOOL_CALL the text is the tool's name."""

    channel: Channel
    text: str


@dataclass(frozen=True, slots=True)
class Plan:
    """What a model is going to answer, decided before it starts."""

    pieces: tuple[Piece, ...]
    finish_reason: str = "stop"
    stop_reason: str = "eosFound"


@dataclass(frozen=True, slots=True)
class Failure:
    """How a request fails, in the words and the form that the server uses for it.

    Attributes:
        text: the server's message.
        status: HTTP status, if no byte of the answer was sent yet.
        shape: form of the body: "string" (A), "openai" (B), "native" (C); D is a string with an object inside.
        code: machine-readable word of B and C.
        ending: what happens to a stream that has begun: an error event (F), a cut connection, or an end in good
            order that never said why.
        at_once: the connection is cut even if no byte was sent.
    """

    text: str
    status: int = 400
    shape: Literal["string", "openai", "native"] = "string"
    type: str = "invalid_request_error"
    code: str | None = None
    param: str | None = None
    ending: Literal["event", "abrupt", "eof"] = "event"
    at_once: bool = False


class Refused(Exception):
    """The engine does not take a request; the failure says how that is told."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.text)
        self.failure = failure


class Kind(StrEnum):
    """What a ticket waits for."""

    CHAT = "chat"
    EMBED = "embed"
    LOAD = "load"


class Phase(StrEnum):
    """Where a ticket is. The last three are final."""

    LOADING = "loading"
    WAITING = "waiting"
    PREFILL = "prefill"
    DECODE = "decode"
    EMBEDDING = "embedding"
    DONE = "done"
    FAILED = "failed"
    ABANDONED = "abandoned"


FINAL_PHASES = frozenset({Phase.DONE, Phase.FAILED, Phase.ABANDONED})


@dataclass(slots=True, eq=False)
class Ticket:
    """One request inside the engine. The HTTP side reads it; only the engine writes it, but for the marks below."""

    number: int
    kind: Kind
    instance: Instance
    arrived_ms: float
    prompt_tokens: int = 0
    plan: Plan = Plan(())
    strings: int = 0

    phase: Phase = Phase.WAITING
    prefilled: int = 0
    emitted: int = 0
    started_ms: float | None = None
    first_piece_ms: float | None = None
    ended_ms: float | None = None
    load_ms: float | None = None
    failure: Failure | None = None
    client_left: bool = False

    # Marks of the HTTP side: wake me for every change, or only for the start and the end.
    wants_pieces: bool = False
    # A fault to fall into once so many pieces are out; no failure means that the ticket gets stuck there.
    fault_after: int | None = None
    fault: Failure | None = None

    # Goes up with every change that the HTTP side should see.
    revision: int = 0

    @property
    def is_final(self) -> bool:
        return self.phase in FINAL_PHASES

    @property
    def is_stuck(self) -> bool:
        """Whether it fell into a fault that keeps it in its slot, silent."""
        if self.fault_after is None or self.fault is not None:
            return False
        return self.kind is Kind.EMBED or (self.phase is Phase.DECODE and self.emitted >= self.fault_after)

    @property
    def pieces_left(self) -> int:
        """Pieces still to come before its end or its fault."""
        last = len(self.plan.pieces) if self.fault_after is None else self.fault_after
        return last - self.emitted

    @property
    def kv_used(self) -> int:
        return self.prefilled + self.emitted


class Status(StrEnum):
    """What an instance is doing."""

    LOADING = "loading"
    IDLE = "idle"
    PROCESSING_PROMPT = "processingPrompt"
    GENERATING = "generating"
    EMBEDDING = "computingEmbedding"


@dataclass(frozen=True, slots=True)
class Work:
    """The one thing an instance does at a time: a slice of a load, a piece of a prompt, a decode step, a batch."""

    status: Status
    ends_ms: float
    ticket: Ticket | None = None
    tokens: int = 0


@dataclass(slots=True, eq=False)
class Instance:
    """One copy of a model in memory, or on its way there."""

    id: str
    model: ModelSpec
    context_length: int
    parallel: int
    jit: bool
    ttl_s: float | None
    last_used_ms: float
    status: Status = Status.LOADING
    load_progress: float = 0.0
    load_started_ms: float | None = None
    load_ms: float = 0.0
    work: Work | None = None
    active: list[Ticket] = field(default_factory=list)
    waiting: deque[Ticket] = field(default_factory=deque)

    @property
    def is_loaded(self) -> bool:
        return self.status is not Status.LOADING

    @property
    def is_busy(self) -> bool:
        return bool(self.active or self.waiting)

    @property
    def kv_used(self) -> int:
        return sum(ticket.kv_used for ticket in self.active)


@dataclass(slots=True)
class Counters:
    """What has happened since the start, counted."""

    requests: int = 0
    completed: int = 0
    failed: int = 0
    abandoned: int = 0
    refused: int = 0
    injected: int = 0
    disconnects: int = 0
    loads: int = 0
    unloads: int = 0
    evictions: int = 0
    expirations: int = 0
    crashes: int = 0
    overflows: int = 0
    max_active: int = 0
    max_waiting: int = 0
    generated_tokens: int = 0

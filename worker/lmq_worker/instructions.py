"""What the core can ask its shell for. Frozen records; the union `Instruction` is closed."""

from dataclasses import dataclass, field

from lmq_proto.errors import ErrorInfo, Field
from lmq_proto.messages import Ended, FromPeer
from lmq_worker.attempt import Attempt, Key


@dataclass(frozen=True, slots=True)
class SendMessage:
    """Send this to the broker; drop it if the connection is given up first."""

    message: FromPeer
    body: bytes = b""


@dataclass(frozen=True, slots=True)
class Reconnect:
    """Drop the connection and all that waits to be sent on it; connect anew, to the next address of several."""


@dataclass(frozen=True, slots=True)
class StartGroup:
    """Run these attempts in one slot of an instance; report each end by `attempt_ended`."""

    instance_id: str
    attempts: tuple[Attempt, ...]


@dataclass(frozen=True, slots=True)
class StopAttempt:
    """End this attempt; `attempt_ended` is still called, with whatever it came to."""

    key: Key
    reason: str


@dataclass(frozen=True, slots=True)
class Load:
    """Load a model; then `capacity_changed`, then `load_ended`."""

    command_id: int
    model: str
    context_tokens: int


@dataclass(frozen=True, slots=True)
class Unload:
    """Unload an instance; then `capacity_changed`, then `load_ended`."""

    command_id: int
    instance_id: str


@dataclass(frozen=True, slots=True)
class Persist:
    """Write an unacknowledged result where a crash of this process cannot reach it."""

    ended: Ended
    result: bytes


@dataclass(frozen=True, slots=True)
class Forget:
    """Remove a result that was persisted."""

    key: Key


@dataclass(frozen=True, slots=True)
class GiveUp:
    """The broker will never take this worker as it is: end the process and say why."""

    error: ErrorInfo


@dataclass(frozen=True, slots=True)
class Note:
    """Something worth a log line."""

    event: str
    fields: dict[str, Field] = field(default_factory=dict)


Instruction = (
    SendMessage | Reconnect | StartGroup | StopAttempt | Load | Unload | Persist | Forget | GiveUp | Note
)

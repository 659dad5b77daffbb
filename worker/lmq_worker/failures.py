"""How work at an endpoint goes wrong: one exception for all of it, carrying the verdict for the job."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from lmq_proto import bounds
from lmq_proto.errors import ErrorInfo
from lmq_worker.attempt import Outcome

if TYPE_CHECKING:
    from lmq_proto.errors import Field


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a failure means for the attempt."""

    code: str
    outcome: str = "fail"
    """`fail` (charged), `release` (no fault of the job) or `crash` (the engine died)."""
    permanent: bool = False
    action: str = "retry"
    """What has to happen before another attempt can succeed; a word of the table in errors_table.py."""


class AttemptFailed(Exception):
    """An attempt came to nothing. `verdict` says whose fault that is."""

    reached_endpoint: ClassVar[bool] = True
    """Whether the endpoint answered at all: what the breaker counts."""

    def __init__(self, verdict: Verdict, message: str, *, retry_after_ms: int = 0, **fields: Field) -> None:
        super().__init__(message)
        self.verdict, self.message, self.fields = verdict, message, fields
        self.retry_after_ms = retry_after_ms

    def judged(self, verdict: Verdict) -> AttemptFailed:
        """Return the same failure under another verdict."""
        judged = AttemptFailed(verdict, self.message, retry_after_ms=self.retry_after_ms)
        judged.fields = self.fields
        return judged

    def outcome(self) -> Outcome:
        """Return what is told to the broker."""
        return Outcome(
            self.verdict.outcome,
            error=self.info(),
            permanent=self.verdict.permanent,
            retry_after_ms=self.retry_after_ms,
        )

    def info(self) -> ErrorInfo:
        """Return the error alone, as loads report it."""
        message = self.message[: bounds.REASON_CHARS]
        return ErrorInfo(self.verdict.code, message, not self.verdict.permanent, dict(self.fields))


class Unreachable(AttemptFailed):
    """No connection to the endpoint, or none that answers."""

    reached_endpoint = False

    def __init__(self, why: str) -> None:
        super().__init__(Verdict("endpoint_unreachable", "release", action="wait"), f"no connection: {why}")


class Stalled(AttemptFailed):
    """The endpoint went silent. `code` says before the first text (`first_byte_timeout`) or later (`chunk_timeout`)."""

    def __init__(self, code: str, silent_s: float) -> None:
        super().__init__(Verdict(code), f"no byte from the server for {silent_s:g} s", silent_s=silent_s)


class StreamCut(AttemptFailed):
    """A stream ended without a finish reason: what came is not the whole answer."""

    def __init__(self, why: str) -> None:
        super().__init__(Verdict("stream_cut"), f"the answer broke off: {why}")


class EmptyAnswer(AttemptFailed):
    """A success without content, reasoning or tool call: most often a prompt that did not fit."""

    def __init__(self) -> None:
        super().__init__(
            Verdict("empty_answer"),
            "the server answered with nothing; the prompt may be longer than the context",
        )


class BadPayload(AttemptFailed):
    """The payload is not what PROTOCOL.md says for its task type."""

    def __init__(self, field: str, why: str) -> None:
        super().__init__(
            Verdict("bad_payload", permanent=True, action="none"), f"{field}: {why}", field=field
        )


class ResultTooLarge(AttemptFailed):
    """The result does not fit in one message."""

    def __init__(self, size: int, hint: str) -> None:
        super().__init__(
            Verdict("result_too_large", permanent=True, action="none"),
            f"the result has {size} bytes, the limit is {bounds.PAYLOAD_BYTES}; {hint}",
            value=size,
            limit=bounds.PAYLOAD_BYTES,
        )


class InstanceGone(AttemptFailed):
    """The instance that the lease names is not loaded (any more)."""

    def __init__(self, instance_id: str) -> None:
        super().__init__(
            Verdict("instance_gone", "release", action="load"),
            f"instance {instance_id!r} is not loaded",
            instance_id=instance_id,
        )


class WrongModel(AttemptFailed):
    """Another model answered than was asked."""

    def __init__(self, asked: str, answered: str) -> None:
        super().__init__(
            Verdict("wrong_model", action="load"),
            f"asked {asked!r}, but {answered!r} answered",
            asked=asked,
            answered=answered,
        )

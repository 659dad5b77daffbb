"""What crosses the wall between core, agent and backends: one attempt, and how it ended. Data only."""

from dataclasses import dataclass

from lmq_proto.errors import ErrorInfo
from lmq_proto.messages import Lease

Key = tuple[bytes, int, int]
"""(job_id, epoch, attempt): one lease, for ever."""


@dataclass(frozen=True, slots=True)
class Attempt:
    """A lease and the payload that came with it."""

    lease: Lease
    payload: bytes

    @property
    def key(self) -> Key:
        return (self.lease.job_id, self.lease.epoch, self.lease.attempt)


@dataclass(frozen=True, slots=True)
class Outcome:
    """How an attempt ended, in the words of `messages.Ended`."""

    outcome: str
    """`complete`, `fail`, `release`, `crash` or `stopped`."""
    result: bytes = b""
    error: ErrorInfo | None = None
    permanent: bool = False
    retry_after_ms: int = 0
    model: str = ""
    prompt_tokens: int = 0
    output_tokens: int = 0
    engine_ms: int = 0

"""What a backend is: the code that talks to one endpoint. What it never does: decide whose turn it is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Sequence

    from lmq_proto.errors import ErrorInfo
    from lmq_proto.messages import Capacity
    from lmq_worker.attempt import Attempt, Outcome


class Report(Protocol):
    """Where a running attempt tells how far it is."""

    def text(self, channel: str, text: str) -> None:
        """Hand on a piece of text: `content`, `reasoning`, `tool`, or `end` with the finish reason."""

    def phase(
        self,
        phase: str,
        progress: float = 0.0,
        *,
        stage: str = "",
        tokens: int = 0,
        tokens_per_s: float = 0.0,
    ) -> None:
        """Replace what is known of the progress: `loading`, `reading` or `writing`, 0..1 where known."""


class Backend(Protocol):
    """One endpoint. All methods run in the worker's one event loop."""

    name: str
    task_types: list[str]
    wake: asyncio.Event
    """Set when the endpoint should be looked at soon; `discover` clears it."""

    async def discover(self) -> Capacity:
        """Look at the endpoint and return what it can do now. Never raises for an endpoint that does not answer."""

    @property
    def discover_every_s(self) -> float:
        """How long until the next look."""

    def immediate(self, attempt: Attempt) -> Outcome | None:
        """Return the outcome of an attempt that takes no time at all, or None: then `run` is called."""

    async def run(self, attempt: Attempt, report: Report) -> Outcome:
        """Carry out one attempt. Cancelled when the attempt must stop; it returns once its slot is free again."""

    def merges(self, attempts: Sequence[Attempt]) -> bool:
        """Tell whether these attempts can be one request to the endpoint."""

    async def run_merged(self, attempts: Sequence[Attempt], report: Report) -> list[Outcome]:
        """Carry out attempts that `merges` approved, as one request."""

    async def load(self, model: str, context_tokens: int) -> ErrorInfo | None:
        """Load a model; return what went wrong."""

    async def unload(self, instance_id: str) -> ErrorInfo | None:
        """Unload an instance; return what went wrong."""

    async def close(self) -> None:
        """Let go of connections."""

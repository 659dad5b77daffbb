"""What the commands need of the SDK, no more: `lmq.Client` has it, and so has the stand-in of the tests."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Protocol, Self, Unpack

if TYPE_CHECKING:
    from lmq import (
        Alias,
        ChatOptions,
        DefaultModel,
        Event,
        HealthReply,
        JobMatch,
        JobOptions,
        JobStatus,
        Json,
        LimitView,
        ModelView,
        Outcome,
        Piece,
        Progress,
        QueueSize,
        QueueView,
        Restart,
        State,
        Tick,
        UpdateOptions,
        UsageReply,
        Users,
        Why,
        WorkerState,
        WorkerView,
    )
    from lmq._payloads import JobLike
    from lmq_proto.messages import BackupDone


class JobPort(Protocol):
    """A job."""

    task_type: str
    given_priority: int | None

    @property
    def id(self) -> str:
        """The whole id."""

    def status(self) -> JobStatus:
        """Where it is now."""

    def why(self) -> Why:
        """Why it waits."""

    def payload(self) -> Json:
        """What was submitted."""

    def wait(self, timeout_s: float | None = None) -> State:
        """Wait for its end."""

    def result(self, timeout_s: float | None = None) -> object:
        """Wait for its result."""

    def pieces(self, *, restart: str = ..., timeout_s: float | None = None) -> Iterator[Piece | Restart]:
        """Read its text."""

    def cancel(self, *, if_attempt: int | None = None) -> bool:
        """Cancel it."""


class EventsPort(Protocol):
    """A stream of events."""

    def __iter__(self) -> Self:
        """Itself."""

    def __next__(self) -> Event:
        """The next event."""

    def close(self) -> None:
        """Stop reading."""


class BrokerPort(Protocol):
    """A client."""

    @property
    def url(self) -> str:
        """The broker's address."""

    def close(self) -> None:
        """End the connection."""

    def chat(
        self,
        prompt: str | Sequence[Mapping[str, Json]],
        *,
        model: str | Sequence[str] | None = None,
        system: str = "",
        **options: Unpack[ChatOptions],
    ) -> JobPort:
        """Submit a chat."""

    def embed(
        self,
        texts: str | Sequence[str],
        *,
        model: str | Sequence[str] | None = None,
        extra: Mapping[str, Json] | None = None,
        **options: Unpack[JobOptions],
    ) -> JobPort:
        """Submit an embedding."""

    def submit(
        self,
        task_type: str,
        payload: Json = None,
        *,
        model: str | Sequence[str] | None = None,
        **options: Unpack[JobOptions],
    ) -> JobPort:
        """Submit any job."""

    def submit_many(self, jobs: Iterable[JobLike], *, atomic: bool = False) -> Sequence[JobPort]:
        """Submit many jobs."""

    def job(self, job_id: str) -> JobPort:
        """A handle by whole id."""

    def jobs(
        self, *, limit: int = 100, after: int = 0, oldest_first: bool = False, **match: Unpack[JobMatch]
    ) -> list[JobStatus]:
        """Jobs that match."""

    def cancel(self, *jobs: str, if_attempt: int | None = None, **match: Unpack[JobMatch]) -> list[Outcome]:
        """Cancel jobs."""

    def retry(self, *jobs: str, if_attempt: int | None = None, **match: Unpack[JobMatch]) -> list[Outcome]:
        """Retry jobs."""

    def delete(self, *jobs: str, **match: Unpack[JobMatch]) -> list[Outcome]:
        """Delete jobs."""

    def update(
        self, *jobs: str, match: JobMatch | None = None, **changes: Unpack[UpdateOptions]
    ) -> list[Outcome]:
        """Change jobs."""

    def events(
        self,
        *,
        since: int | datetime | None = None,
        last: int = 0,
        kinds: Sequence[str] = (),
        user: str = "",
        queue: str = "",
        jobs: Sequence[str] = (),
        labels: Mapping[str, str] | None = None,
        timeout_s: float | None = None,
    ) -> EventsPort:
        """Durable events."""

    def watch(
        self, *topics: str, timeout_s: float | None = None
    ) -> Iterator[Tick | QueueSize | WorkerState | Progress]:
        """Latest values."""

    def queues(self) -> list[QueueView]:
        """All queues."""

    def workers(self) -> list[WorkerView]:
        """All workers."""

    def models(self) -> list[ModelView]:
        """All models."""

    def users(self) -> Users:
        """How users and bands stand."""

    def set_user(self, user: str, *, weight: float | None = None, ceiling: int | None = None) -> bool:
        """Give a user a weight or a ceiling."""

    def reset_user(self, user: str) -> bool:
        """Take that back."""

    def aliases(self) -> list[Alias]:
        """Aliases in force."""

    def default_models(self) -> list[DefaultModel]:
        """Default models in force."""

    def set_alias(self, name: str, models: str | Sequence[str], *, reset: bool = False) -> bool:
        """Make a name stand for models."""

    def set_default_model(self, task_type: str, model: str, *, reset: bool = False) -> bool:
        """Say what jobs run on that name no model."""

    def load_model(self, model: str, worker: str) -> bool:
        """Load a model once."""

    def unload_model(self, model: str, worker: str = "") -> bool:
        """Unload a model."""

    def pin_model(self, model: str, worker: str, *, for_s: float | None = None) -> bool:
        """Keep a model somewhere."""

    def unpin_model(self, model: str, worker: str = "") -> bool:
        """Take orders of a model back."""

    def health(self) -> HealthReply:
        """How the broker is."""

    def usage(
        self,
        *,
        since: datetime | None = None,
        until: datetime | None = None,
        by: str | Sequence[str] = (),
        user: str = "",
    ) -> UsageReply:
        """Sums of what jobs have used."""

    def metrics(self, *, users: bool = False) -> str:
        """The broker's measurements."""

    def backup(self, path: str) -> BackupDone:
        """Copy the journal."""

    def pause(
        self,
        *,
        queue: str = "",
        worker: str = "",
        for_s: float | None = None,
        now: bool = False,
        reason: str = "",
    ) -> bool:
        """Hold a queue or worker."""

    def drain(self, *, queue: str = "", worker: str = "", reason: str = "") -> bool:
        """Drain a queue or worker."""

    def resume(self, *, queue: str = "", worker: str = "") -> bool:
        """End a hold."""

    def limits(self) -> list[LimitView]:
        """All limits."""

    def set_limit(
        self,
        of: str,
        value: float,
        *,
        per_s: float = 0.0,
        burst: float = 0.0,
        refuse: bool = False,
        **names: str,
    ) -> bool:
        """Set a limit."""

    def reset_limits(self, name: str = "") -> bool:
        """Reset limits."""

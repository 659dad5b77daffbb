"""What happened in the demo, counted from the durable events alone. Pure.

Who waited how long, and whether each job was answered exactly once.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from lmq_proto.states import FINAL

if TYPE_CHECKING:
    from lmq import Event


@dataclass(slots=True)
class Record:
    """One job's life so far."""

    user: str
    task_type: str
    state: str = "ready"
    accepted_ms: int = 0
    started_ms: int = 0
    ended_ms: int = 0
    attempts: int = 0
    answers: int = 0

    @property
    def waited_s(self) -> float:
        """From submit to the first start."""
        return (self.started_ms - self.accepted_ms) / 1000 if self.started_ms else 0.0

    @property
    def total_s(self) -> float:
        """From submit to the end."""
        return (self.ended_ms - self.accepted_ms) / 1000 if self.ended_ms else 0.0


@dataclass(slots=True)
class Score:
    """All jobs of the demo, by id, and the events seen."""

    jobs: dict[str, Record] = field(default_factory=dict)
    last_seq: int = 0
    events: int = 0
    gaps: int = 0
    """Events that came twice, or out of order: there must be none."""
    broker_starts: int = 0

    def take(self, event: Event) -> None:
        """Count an event."""
        self.events += 1
        if event.seq <= self.last_seq:
            self.gaps += 1
        self.last_seq = max(self.last_seq, event.seq)
        if event.kind == "broker_started":
            self.broker_starts += 1
        if not event.job_id:
            return
        job = self.jobs.setdefault(event.job_id, Record(event.user, event.task_type))
        job.state = event.state or job.state
        job.attempts = max(job.attempts, event.attempt)
        if event.kind == "accepted":
            job.accepted_ms = event.at_ms
        elif event.kind == "started":
            job.started_ms = job.started_ms or event.at_ms
        if event.state in FINAL:
            job.ended_ms = event.at_ms
            job.answers += event.kind == "done"

    @property
    def ended(self) -> int:
        """How many jobs have ended."""
        return sum(job.state in FINAL for job in self.jobs.values())

    def of(self, user: str) -> list[Record]:
        """Return a user's jobs."""
        return [job for job in self.jobs.values() if job.user == user]

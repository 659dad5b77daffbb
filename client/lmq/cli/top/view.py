"""What the screen shows, as the broker told it at one moment; and what only several moments tell."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lmq import Event, HealthReply, JobStatus, ModelView, QueueView, Users, WorkerView
    from lmq.cli.port import BrokerPort

RUNNING_SHOWN = 100
OLDEST_SHOWN = 60
NEWEST_SHOWN = 40
"""Jobs that wait: where there are more, the first to start may be among the newest."""
WAITING_STATES = ("ready", "asking", "delayed", "blocked")
HOUR_MS = 3_600_000
SWAP_KINDS = ("model_loaded", "model_unloaded", "worker_up")


@dataclass(frozen=True, slots=True)
class View:
    """All that the screen shows, as of one moment."""

    url: str
    health: HealthReply
    users: Users
    queues: list[QueueView]
    workers: list[WorkerView]
    models: list[ModelView]
    running: list[JobStatus]
    waiting: list[JobStatus]
    user: str = ""
    """Jobs are this user's only; empty: all."""

    @property
    def waiting_count(self) -> int:
        """How many jobs wait in all."""
        return sum(self.health.counts.get(state, 0) for state in WAITING_STATES)


def look(client: BrokerPort, user: str = "") -> View:
    """Ask for all that the screen shows."""
    running = client.jobs(states=["leased"], limit=RUNNING_SHOWN, oldest_first=True, user=user)
    waiting = client.jobs(states=list(WAITING_STATES), limit=OLDEST_SHOWN, oldest_first=True, user=user)
    if len(waiting) == OLDEST_SHOWN:
        known = {job.id for job in waiting}
        newest = client.jobs(states=list(WAITING_STATES), limit=NEWEST_SHOWN, user=user)
        waiting += [job for job in reversed(newest) if job.id not in known]
    return View(
        client.url, client.health(), client.users(), client.queues(), client.workers(), client.models(), running,
        waiting, user,
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Swaps:
    """When at which worker a model took the place of another: a load after an unload."""

    made: tuple[tuple[int, str], ...] = ()
    """(wall time, worker), oldest first."""
    emptied: frozenset[str] = frozenset()
    """Workers where a model has gone and none come since."""

    def after(self, event: Event) -> Swaps:
        """Return them with what an event tells."""
        if event.kind == "model_unloaded":
            return Swaps(self.made, self.emptied | {event.worker})
        if event.kind == "model_loaded" and event.worker in self.emptied:
            recent = tuple(each for each in self.made if each[0] > event.at_ms - HOUR_MS)
            return Swaps((*recent, (event.at_ms, event.worker)), self.emptied - {event.worker})
        # Whatever a worker that comes anew has loaded took nobody's place.
        return Swaps(self.made, self.emptied - {event.worker}) if event.kind == "worker_up" else self

    def lately(self, worker: str, now_ms: int) -> int:
        """Return how many there were at a worker within the last hour."""
        return sum(at_ms > now_ms - HOUR_MS and name == worker for at_ms, name in self.made)

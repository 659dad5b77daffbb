"""For how long ready jobs wait: from when they were accepted or due, whatever a restart or a lost worker did since."""

from collections.abc import Iterable, Iterator
from itertools import islice

from lmq_broker.core.state import BrokerState, Job
from lmq_broker.core.stimuli import Now
from lmq_proto.messages import Limit
from lmq_proto.states import State

_LOOK_AT_JOBS = 20_000
"""Open jobs, in the order they came, among which the oldest is looked for: enough, and never a long step."""


def waits_ms(state: BrokerState, job: Job, now: Now) -> int:
    """Return for how long a ready job waits; of one that its parents or its own end held up, since it is ready."""
    if job.terms.parents or job.id in state.reopened:
        return now.mono_ms - job.ready_since_ms
    return max(0, now.wall_ms - max(job.created_at_ms, job.due_at_ms))


def oldest_waits(state: BrokerState, now: Now) -> dict[str, int]:
    """Return how long the oldest ready job of each queue waits, in milliseconds; queues without one are left out."""
    oldest: dict[str, int] = {}
    for job in _looked_at(state.jobs.values()):
        if job.queue not in oldest:
            oldest[job.queue] = waits_ms(state, job, now)
            if len(oldest) == len(state.queues):
                break
    return oldest


def oldest_ms(state: BrokerState, limit: Limit, now: Now) -> int:
    """Return how long the oldest ready job that a rule is about waits; 0: there is none."""
    for job in _looked_at(state.jobs.values()):
        if limit.queue in ("", job.queue) and limit.task_type in ("", job.task_type):
            return waits_ms(state, job, now)
    return 0


def _looked_at(jobs: Iterable[Job]) -> Iterator[Job]:
    return (job for job in islice(jobs, _LOOK_AT_JOBS) if job.state is State.READY)

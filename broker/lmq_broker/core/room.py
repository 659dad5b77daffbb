"""Limits at submit: whether they have room, and when one that is full has some again, as far as that is known."""

from lmq_broker.core.briefly import Found, is_to_go
from lmq_broker.core.chronicle import full
from lmq_broker.core.limits import COUNTED, Bucket, burst_of, covers
from lmq_broker.core.state import BrokerState, Job
from lmq_broker.core.stimuli import Now
from lmq_proto.errors import LimitReached
from lmq_proto.states import State

_LOOK_AT_JOBS = 1000
"""Open jobs among which one is looked for that is about to start; where there are more, one of them may be."""
_FRESH_MS = 1000
"""What was found is found again for so long: refusals come in floods."""


def refused(
    state: BrokerState, user: str, queue: str, task_type: str, adding: tuple[int, int], now: Now
) -> LimitReached | None:
    """Return the refusal of jobs, so many with so many bytes, that some limit has no room for."""
    found = state.limits.full(user, queue, task_type, adding, now.mono_ms)
    if found is None:
        return None
    bucket, wait_s = found
    if bucket.limit.of in COUNTED:
        moves_ms = _moves_in_ms(state, bucket, now)
        used, value = int(bucket.used), int(bucket.limit.value)
        if moves_ms == 0:
            return full(state, now, bucket.name, used, value, user=bucket.subject)
        return LimitReached(bucket.name, used, value, None if moves_ms is None else _seconds(moves_ms))
    burst = int(burst_of(bucket.limit))
    return LimitReached(bucket.name, burst, burst, _seconds(wait_s * 1000))


def _seconds(wait_ms: float) -> float:
    return round(max(wait_ms / 1000, 0.1), 1)


def _moves_in_ms(state: BrokerState, bucket: Bucket, now: Now) -> float | None:
    """Return when the first job that fills a limit may start; 0: that is up to its turn, None: nothing says so."""
    key = bucket.name, bucket.subject
    known = state.moves.get(key)
    if known is None or now.mono_ms - known[0] >= _FRESH_MS:
        if len(state.moves) > state.settings.names:
            state.moves.clear()
        known = state.moves[key] = now.mono_ms, _look(state, bucket, now)
    return known[1]


def _look(state: BrokerState, bucket: Bucket, now: Now) -> float | None:
    if len(state.jobs) > _LOOK_AT_JOBS:
        return 0.0
    found = Found()
    soonest_ms: float | None = None
    for job in state.jobs.values():
        if not covers(bucket.limit, bucket.subject, (job.user, job.queue, job.task_type, "", "")):
            continue
        if job.state is State.READY and is_to_go(state, job, found, now):
            return 0.0
        if job.state is State.DELAYED:
            wait_ms = max(1.0, _due_in_ms(job, now))
            soonest_ms = wait_ms if soonest_ms is None else min(soonest_ms, wait_ms)
    return soonest_ms


def _due_in_ms(job: Job, now: Now) -> float:
    return job.backoff_until_ms - now.mono_ms if job.backoff_until_ms else job.due_at_ms - now.wall_ms

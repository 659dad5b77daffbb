"""Why nothing runs a ready job, in two or three words, for lists: `reasons` says it in sentences, job by job."""

import msgspec

from lmq_broker.core.hindrances import hindrances
from lmq_broker.core.limits import RATES, Bucket
from lmq_broker.core.policies.places import LaneKey, lane_of
from lmq_broker.core.state import BrokerState, Job
from lmq_broker.core.stimuli import Now

WORDS = {
    "no_worker": "no worker",
    "no_worker_for_queue": "no worker takes it",
    "worker_paused": "workers paused",
    "worker_gone": "worker gone",
    "breaker_open": "endpoint away",
    "no_model": "no endpoint has it",
    "wrong_kind": "wrong kind of model",
    "load_failed": "model load failed",
    "may_not_load": "model not loaded",
    "pinned": "pins take the room",
    "limit": "limit reached",
}
"""Of the reasons that time alone does not remove. Others, as that its model is being loaded, are no hindrance."""
_SOON_MS = 1000
"""A rate that has room so soon holds nothing back."""
_LANES = 100
"""Of one page that are looked into: a page whose jobs are all different is no reason for a long step."""


class Found(msgspec.Struct):
    """What was found for the jobs of one page: those of one lane are looked at once."""

    lanes: dict[LaneKey, str] = msgspec.field(default_factory=dict)
    limits: dict[tuple[str, str, str], bool] = msgspec.field(default_factory=dict)
    """(user, queue, task type) -> whether a limit holds such jobs."""


def briefly(state: BrokerState, job: Job, found: Found, now: Now) -> str:
    """Return what keeps a ready job from running, but for those ahead of it; empty: nothing."""
    if state.disk.trouble:
        return "disk trouble"
    if _is_paused(state, job):
        return "queue paused"
    if state.limits.active and _is_limited(state, job, found, now):
        return WORDS["limit"]
    return _of_lane(state, job, found, now)


def is_to_go(state: BrokerState, job: Job, found: Found, now: Now) -> bool:
    """Tell whether a ready job starts once its turn comes, in the line or at a limit that lets others through."""
    if state.disk.trouble or _is_paused(state, job) or _of_lane(state, job, found, now):
        return False
    return all(each.limit.value > 0 for each in state.limits.taken_by(job.user, job.queue, job.task_type))


def _is_paused(state: BrokerState, job: Job) -> bool:
    hold = state.queue_holds.get(job.queue)
    return hold is not None and hold.kind == "pause"


def _of_lane(state: BrokerState, job: Job, found: Found, now: Now) -> str:
    # Which band it is in has no part in where it can run.
    lane = lane_of(job)
    words = found.lanes.get(lane)
    if words is None:
        words = found.lanes[lane] = _of_workers(state, job, now) if len(found.lanes) < _LANES else ""
    return words


def _is_limited(state: BrokerState, job: Job, found: Found, now: Now) -> bool:
    alike = job.user, job.queue, job.task_type
    is_limited = found.limits.get(alike)
    if is_limited is None:
        buckets = state.limits.taken_by(*alike)
        is_limited = found.limits[alike] = any(_holds(each, now) for each in buckets)
    return is_limited


def _holds(bucket: Bucket, now: Now) -> bool:
    if bucket.limit.of in RATES:
        return bucket.room_in_ms(now.mono_ms, 0) >= _SOON_MS
    return bucket.used >= bucket.limit.value


def _of_workers(state: BrokerState, job: Job, now: Now) -> str:
    told = hindrances(state, job, now)
    if told.is_able or any(reason.code not in WORDS for reason in told.reasons):
        return ""
    return WORDS[told.reasons[0].code] if told.reasons else ""

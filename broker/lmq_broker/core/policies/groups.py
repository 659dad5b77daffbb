"""Which jobs ride in one request: embeddings of one kind that had to wait, users in turn."""

from heapq import heapify, heappop, heappush, nsmallest

from lmq_broker.core.limits import Limits
from lmq_broker.core.policies.costs import Costs, prompt_tokens
from lmq_broker.core.policies.lanes import Head
from lmq_broker.core.policies.places import room
from lmq_broker.core.state import Instance, Job
from lmq_proto.bounds import BODY_BYTES

_MERGE_JOBS = 64
_MERGE_TOKENS = 16_384
"""That ride in one request at most; embedding servers are bounded by tokens."""


def group_of(
    head: Head, instance: Instance, limits: Limits, costs: Costs, now_ms: int, *, shares: bool
) -> tuple[Job, ...]:
    """Return the jobs that ride with a head, users in turn: few enough for every free slot to have some."""
    _, _, lane, _, job = head
    key = lane.key
    if not key.merge or key.suspect or lane.jobs == 1:
        return (job,)
    count = min(-(-lane.jobs // room(instance)), _MERGE_JOBS)
    count = min(count, limits.most(None, key.queue, key.task_type, now_ms))
    count = max(1, min(count, limits.most_at(job, instance)))
    turns = []
    noted = lane.standing.noted
    first = nsmallest(count, noted, key=lambda each: (noted[each], each.number))
    for number, flow in enumerate(first):
        standing, tie = (flow.key, flow.number) if shares else (0.0, number)
        turns.append((standing, tie, flow, iter(flow.lines[key].first(count))))
    # The head itself may start, or nobody would have come here.
    left = {job.user: max(1, _left_of(job, instance, limits, now_ms))}
    heapify(turns)
    group: list[Job] = []
    tokens = 0
    size_bytes = 0
    while turns and len(group) < count:
        turn, number, flow, rest = heappop(turns)
        other = next(rest, None)
        if other is None:
            continue
        if other.user not in left:
            left[other.user] = _left_of(other, instance, limits, now_ms)
        if not left[other.user]:
            heappush(turns, (turn, number, flow, rest))
            continue
        tokens += prompt_tokens(other)
        size_bytes += other.payload_bytes
        if group and (tokens > _MERGE_TOKENS or size_bytes > BODY_BYTES // 2):
            break
        left[other.user] -= 1
        group.append(other)
        heappush(turns, (turn + costs.predict(other, instance.model) / flow.weight, number, flow, rest))
    return tuple(group)


def _left_of(job: Job, instance: Instance, limits: Limits, now_ms: int) -> int:
    """Return how many jobs of a job's user may start on an instance at once."""
    return min(
        limits.most(job.user, job.queue, job.task_type, now_ms),
        limits.most_at(job, instance),
    )

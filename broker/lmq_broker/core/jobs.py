"""The life of a job outside its leases: waiting, ready, ended, deleted."""

import heapq
from typing import TypeVar

from lmq_broker.core import parents, readers, usage
from lmq_broker.core.chronicle import (
    Out,
    count_end,
    image,
    move,
    put,
    queue_named,
    save,
    tell,
)
from lmq_broker.core.records import (
    JobChanged,
    JobsDeleted,
    Past,
    ResultAdded,
    StoredJob,
    TombstonesDropped,
)
from lmq_broker.core.state import BrokerState, End, Job, Lease
from lmq_broker.core.stimuli import Now
from lmq_proto import bounds
from lmq_proto.errors import (
    ErrorInfo,
)
from lmq_proto.events import Kind
from lmq_proto.ids import JobId, UserName
from lmq_proto.states import State

T = TypeVar("T", Job, Lease)


def admit(state: BrokerState, job: Job, now: Now) -> None:
    """Count an open job and put it where its state says; also used when it comes back from the journal."""
    queue = queue_named(state, job.queue)
    queue.counts[job.state] += 1
    queue.changed = True
    state.users_open[job.user] = state.users_open.get(job.user, 0) + 1
    if job.expires_at_ms:
        push(state, state.expiries, job.expires_at_ms, job)
    if job.state is not State.LEASED:
        state.limits.entered(job.user, job.queue, job.task_type, job.payload_bytes)
    if job.state is State.READY:
        job.ready_since_ms = now.mono_ms
        state.policy.queued(job, now)
    elif job.state is State.DELAYED:
        if job.past.backoff_ms:
            delay(state, job, job.past.backoff_ms, now)
        else:
            push(state, state.due, job.due_at_ms, job)
    elif job.state is State.BLOCKED:
        parents.wait(state, job)


_HEAP_SLACK = 1000
"""Entries of ended jobs that the heap of expiries may hold before it is cleared of them."""
STATES: dict[str, State] = {str(each): each for each in State}


def from_stored(stored: StoredJob) -> Job:
    """Return the job that an image shows, without a lease."""
    # In the order of its fields, as in `image`.
    return Job(
        stored.number, JobId(stored.id), UserName(stored.user), stored.principal, stored.task_type, stored.queue,
        stored.priority, STATES[stored.state], stored.order, stored.created_at_ms, stored.payload_bytes,
        stored.models, stored.terms, stored.past, stored.prompt_tokens, stored.output_tokens, stored.due_at_ms,
        stored.expires_at_ms, stored.started_at_ms, stored.attempt, stored.epoch, stored.failures, stored.worker,
        stored.model,
    )  # fmt: skip


def push(state: BrokerState, heap: list[tuple[int, int, T]], at_ms: int, item: T) -> None:
    """Put something on a heap by time; of what is due at one time, the first put in comes out first."""
    state.pushes += 1
    heapq.heappush(heap, (at_ms, state.pushes, item))


# --- waiting ---------------------------------------------------------------------------------------------------------


def delay(state: BrokerState, job: Job, wait_ms: int, now: Now) -> None:
    """Let a delayed job wait out its backoff on the monotonic clock."""
    job.backoff_until_ms = now.mono_ms + wait_ms
    push(state, state.backoffs, job.backoff_until_ms, job)


def make_ready(state: BrokerState, out: Out, job: Job, now: Now) -> None:
    """Make a waiting or leased job ready."""
    move(state, job, State.READY)
    job.backoff_until_ms = 0
    job.ready_since_ms = now.mono_ms
    if job.past.backoff_ms:
        job.past = changed_past(job.past, backoff_ms=0)
    state.policy.queued(job, now)
    save(state, out, job)


def changed_past(past: Past, **changes: object) -> Past:
    """Return a past with some fields replaced."""
    fields = {name: getattr(past, name) for name in past.__struct_fields__}
    return Past(**(fields | changes))


def next_order(state: BrokerState) -> int:
    """Return a place behind all jobs of equal priority."""
    state.last_order += 1
    return state.last_order


def wake_due(state: BrokerState, out: Out, now: Now) -> bool:
    """Make ready what has waited long enough, and end what has not started in time; False if some are left over."""
    left = bounds.BATCH_JOBS
    if len(state.expiries) > 4 * len(state.jobs) + _HEAP_SLACK:
        state.expiries = [entry for entry in state.expiries if entry[2].id in state.jobs]
        heapq.heapify(state.expiries)
    while state.backoffs and state.backoffs[0][0] <= now.mono_ms and left:
        at_ms, _, job = heapq.heappop(state.backoffs)
        if job.state is State.DELAYED and job.backoff_until_ms == at_ms:
            left -= 1
            make_ready(state, out, job, now)
    while state.due and state.due[0][0] <= now.wall_ms and left:
        at_ms, _, job = heapq.heappop(state.due)
        if job.state is State.DELAYED and job.due_at_ms == at_ms and not job.backoff_until_ms:
            left -= 1
            make_ready(state, out, job, now)
            tell(state, now, Kind.READY, job)
    while not state.clock_trouble and state.expiries and state.expiries[0][0] <= now.wall_ms and left:
        at_ms, _, job = heapq.heappop(state.expiries)
        waits = job.state in (State.DELAYED, State.READY, State.BLOCKED)
        if job.expires_at_ms == at_ms and waits and not job.started_at_ms:
            left -= 1
            withdraw(state, job)
            end(state, out, job, State.EXPIRED, now)
    return left > 0


def withdraw(state: BrokerState, job: Job) -> None:
    """Take a job out of the policy's hands if it is there."""
    if job.state is State.READY:
        state.policy.withdrawn(job)


# --- ending ----------------------------------------------------------------------------------------------------------

_END_KINDS = {
    State.DONE: Kind.DONE,
    State.DEAD: Kind.DEAD,
    State.CANCELLED: Kind.CANCELLED,
    State.EXPIRED: Kind.EXPIRED,
}


def end(
    state: BrokerState,
    out: Out,
    job: Job,
    target: State,
    now: Now,
    *,
    result: bytes = b"",
    error: ErrorInfo | None = None,
    by: str = "",
) -> None:
    """Bring a job to a final state: journal, event, counts, followers and readers."""
    readers.store_text(state, out, job)
    if job.terms.parents or job.id in state.children or job.past.own_priority is not None:
        parents.note_end(state, job, target)
    move(state, job, target)
    if error is None and by:
        error = ErrorInfo(str(target), f"{target} by {by}", fields={"by": by})
    if error is not None:
        job.past = changed_past(job.past, error=error)
    put(state, out, JobChanged(image(
        job, finished_at_ms=now.wall_ms, deletes_at_ms=now.wall_ms + job.terms.keep_ms, result_bytes=len(result),
    )))  # fmt: skip
    if result:
        put(state, out, ResultAdded(job.number, result))
    tell(
        state,
        now,
        _END_KINDS[target],
        job,
        worker=job.worker,
        model=job.model,
        detail=_end_detail(job, error, by, now),
    )
    readers.text_ended(state, out, job)
    job.lease = None
    del state.jobs[job.id]
    state.finished.add(job.id, job.number, job.user, target, job.priority)
    if job.terms.key:
        state.keys_of_finished[job.id] = (job.user, job.terms.key)
    open_jobs = state.users_open[job.user] - 1
    if open_jobs:
        state.users_open[job.user] = open_jobs
    else:
        del state.users_open[job.user]
    state.ended[target] = state.ended.get(target, 0) + 1
    usage.job_ended(state, job, target, now)
    count_end(state, now)
    if job.id in state.followers:
        started_ms = job.started_at_ms or now.wall_ms
        readers.ended(state, End(
            job.id, target, job.attempt, job.failures, result, error, job.past.story, job.worker, job.model,
            max(0, started_ms - job.created_at_ms), max(0, now.wall_ms - started_ms),
        ))  # fmt: skip


def _end_detail(
    job: Job, error: ErrorInfo | None, by: str, now: Now
) -> dict[str, str | int | float | bool | list[str] | None]:
    """Return what an end's event says beside the job."""
    detail: dict[str, str | int | float | bool | list[str] | None] = {}
    if job.started_at_ms:
        detail["queued_ms"] = max(0, job.started_at_ms - job.created_at_ms)
        detail["leased_ms"] = max(0, now.wall_ms - job.started_at_ms)
    if error is not None and not by:
        detail["code"], detail["error"] = error.code, error.message
    if by:
        detail["by"] = by
    if job.failures:
        detail["failures"] = job.failures
    return detail


# --- retention -------------------------------------------------------------------------------------------------------


def delete(state: BrokerState, out: Out, gone: list[StoredJob], now: Now, *, by: str) -> None:
    """Remove final jobs with all they had; their ids and keys stay known for a while."""
    until_ms = now.wall_ms + state.settings.tombstone_ms
    numbers = []
    for stored in gone:
        if not state.finished.pop(stored.id):
            continue
        numbers.append(stored.number)
        state.reopened.pop(stored.id, None)
        state.tombstones[JobId(stored.id)] = until_ms
        tell(state, now, Kind.DELETED, from_stored(stored), detail={"by": by})
        readers.job_deleted(state, out, stored.id)
    if numbers:
        put(state, out, JobsDeleted(numbers, until_ms))
    forgotten_ms = 0
    while len(state.tombstones) > state.settings.tombstones:
        job_id, until_ms = next(iter(state.tombstones.items()))
        forgotten_ms = max(forgotten_ms, until_ms)
        _forget(state, job_id)
    if forgotten_ms:
        put(state, out, TombstonesDropped(forgotten_ms))


def drop_tombstones(state: BrokerState, out: Out, now: Now) -> None:
    """Forget the ids and keys of jobs that were deleted long enough ago."""
    dropped = False
    while state.tombstones:
        job_id, until_ms = next(iter(state.tombstones.items()))
        if until_ms > now.wall_ms:
            break
        _forget(state, job_id)
        dropped = True
    if dropped:
        put(state, out, TombstonesDropped(now.wall_ms))


def _forget(state: BrokerState, job_id: bytes) -> None:
    del state.tombstones[job_id]
    key = state.keys_of_finished.pop(job_id, None)
    if key is not None and key in state.keys and state.keys[key].job_id == job_id:
        del state.keys[key]

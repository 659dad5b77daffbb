"""What the end of a job and a new priority mean to those that wait, in steps of bounded length.

A job whose last parent is done may start. A job with a parent that ended otherwise never could: it is cancelled, and so
are those that wait for it. Nothing of this is journaled before it happens: who is blocked, by whom, and how each parent
ended is on disk, so that a broker that starts finds what was left over.
"""

from itertools import islice

from lmq_broker.core import jobs, parents
from lmq_broker.core.chronicle import Out, move, save, tell
from lmq_broker.core.state import BrokerState, Job
from lmq_broker.core.stimuli import Now
from lmq_proto import bounds
from lmq_proto.errors import ParentEnded
from lmq_proto.events import Kind
from lmq_proto.ids import to_text
from lmq_proto.states import State

_MOVES = bounds.BATCH_JOBS
"""Jobs that move in one step."""
_LOOK_AT_JOBS = 20_000
"""Children that are looked at in one step to work out the priority of their parents: some milliseconds."""


def settle(state: BrokerState, out: Out, now: Now) -> bool:
    """Tell children how their parents ended, and put ancestors in their place; False if some is left over."""
    left = _MOVES
    while state.freed and left:
        job = state.freed.popleft()
        if job.state is State.BLOCKED:
            left -= 1
            _release(state, out, job, now)
    while state.settling and left:
        parent, ended_as = state.settling.popitem()
        for child_id in list(islice(state.children.get(parent, ()), left)):
            left -= 1
            _tell_child(state, out, parent, ended_as, state.jobs[child_id], now)
        if parent in state.children:
            state.settling[parent] = ended_as
    return _weigh(state, out, now) and not state.settling and not state.freed


def _tell_child(state: BrokerState, out: Out, parent: bytes, ended_as: State, job: Job, now: Now) -> None:
    """Let a blocked job start if this parent was the last that was not done; cancel it if it is not done now."""
    if ended_as is not State.DONE:
        error = ParentEnded(to_text(parent), ended_as).info()
        jobs.end(state, out, job, State.CANCELLED, now, error=error)
        return
    parents.told(state, parent, job)
    if not parents.awaited(state, job):
        _release(state, out, job, now)


def _release(state: BrokerState, out: Out, job: Job, now: Now) -> None:
    """Make a blocked job ready, or let it wait for the time at which its submitter wants it to start."""
    if job.due_at_ms > now.wall_ms:
        move(state, job, State.DELAYED)
        jobs.push(state, state.due, job.due_at_ms, job)
        save(state, out, job)
    else:
        jobs.make_ready(state, out, job, now)
        tell(state, now, Kind.READY, job)


def _weigh(state: BrokerState, out: Out, now: Now) -> bool:
    """Give jobs the priority that they and those that wait for them call for; False if some are left over."""
    left, moves = _LOOK_AT_JOBS, _MOVES
    while state.unweighed and left > 0 and moves:
        job_id, _ = state.unweighed.popitem()
        job = state.jobs.get(job_id)
        if job is None:
            continue
        left -= 1 + len(state.children.get(job_id, ()))
        wanted = parents.wanted_priority(state, job)
        if wanted == job.priority:
            continue
        moves -= 1
        jobs.withdraw(state, job)
        parents.lift(job, wanted)
        if job.state is State.READY:
            state.policy.queued(job, now)
        save(state, out, job)
        parents.mark(state, job)
    return not state.unweighed

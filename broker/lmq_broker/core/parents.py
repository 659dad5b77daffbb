"""Who waits for whom: what a job may wait for, who waits for it, and what priority either has from the other.

Here it is only noted. What follows (children that move, ancestors that change their place in line) is done in bounded
steps by `settle`.
"""

import msgspec

from lmq_broker.core.chronicle import full, number_of
from lmq_broker.core.records import StoredJob
from lmq_broker.core.rights import may_act_for
from lmq_broker.core.state import BrokerState, Job, Session
from lmq_broker.core.stimuli import Now
from lmq_proto import bounds
from lmq_proto.errors import BadField, NotFound, ParentEnded, WrongState
from lmq_proto.ids import JOB_ID_BYTES, short, to_text
from lmq_proto.messages import JobSpec
from lmq_proto.states import State


class Batch(msgspec.Struct):
    """What the jobs of a submit that stand before one mean to those behind them."""

    known: dict[bytes, bytes] = msgspec.field(default_factory=dict)
    """Id that was sent -> id of the job that is there already under its key."""
    coming: set[bytes] = msgspec.field(default_factory=set)
    """Jobs that are there once all of an atomic batch is accepted."""
    children: dict[bytes, int] = msgspec.field(default_factory=dict)
    """Job -> how many of those wait for it."""

    def expect(self, spec: JobSpec) -> None:
        """Note a job of an atomic batch that can be accepted if all can."""
        self.coming.add(spec.id)
        for parent in parents_of(spec, self):
            self.children[parent] = self.children.get(parent, 0) + 1


# --- at submit and retry ----------------------------------------------------------------------------------------------


def check_ids(spec: JobSpec) -> None:
    """Refuse parents that are none, by their ids alone."""
    if len(spec.parents) > bounds.PARENTS:
        raise BadField("parents", len(spec.parents), f"at most {bounds.PARENTS}")
    for parent in spec.parents:
        if len(parent) != JOB_ID_BYTES:
            raise BadField("parents", parent.hex(), f"ids of {JOB_ID_BYTES} bytes")
    if len(set(spec.parents)) < len(spec.parents):
        raise BadField("parents", len(spec.parents), "each id once")
    if spec.id in spec.parents:
        raise BadField("parents", to_text(spec.id), "other jobs than itself")


def parents_of(spec: JobSpec, batch: Batch) -> tuple[bytes, ...]:
    """Return the jobs that a spec names as its parents; an id whose key stood for another job means that one."""
    return tuple(dict.fromkeys(batch.known.get(parent, parent) for parent in spec.parents))


def check(
    state: BrokerState, session: Session, user: str, parents: tuple[bytes, ...], batch: Batch, now: Now
) -> None:
    """Refuse a job that would wait for one that is not there, has failed, or has as many waiting as may."""
    who = session.who
    for parent in parents:
        ended = state.finished.ended(parent)
        found = ended or state.jobs.get(parent)
        if found is not None:
            if found.user != user and not may_act_for(who.principal, who.role, who.user, found.user):
                raise NotFound("parent", to_text(parent))
        elif parent not in batch.coming:
            raise NotFound("parent", to_text(parent))
        if ended is None:
            waiting = len(state.children.get(parent, ())) + batch.children.get(parent, 0)
            if waiting >= bounds.CHILDREN:
                raise full(state, now, "children", waiting, bounds.CHILDREN)
        elif ended.state is not State.DONE:
            raise ParentEnded(to_text(parent), ended.state)


def check_settled(state: BrokerState, past: StoredJob) -> None:
    """Refuse to touch an ended job while some that wait for it have not been told of its end."""
    if past.id in state.settling:
        wanted = "that those who wait for it have been told: try again in a moment"
        raise WrongState(short(past.id), past.state, wanted)


def is_awaited(state: BrokerState, parents: tuple[bytes, ...]) -> bool:
    """Tell whether any of these jobs is not done yet; each is known to be there, and none to have failed."""
    return any(parent in state.jobs for parent in parents)


def inherited(state: BrokerState, user: str, parents: tuple[bytes, ...]) -> int | None:
    """Return the highest priority that parents of the same user have of their own; None if there is none."""
    found = []
    for parent in parents:
        job = state.jobs.get(parent)
        ended = state.finished.ended(parent)
        if job is not None and job.user == user:
            found.append(own_priority(job))
        elif ended is not None and ended.user == user:
            found.append(ended.priority)
    return max(found, default=None)


def check_again(state: BrokerState, session: Session, past: StoredJob, now: Now) -> bool:
    """Tell whether a job that is retried has to wait for a parent; refuse one that never could start.

    A job that had started once waits for nobody: its parents were done then, and what is done stays so.
    """
    parents = () if past.attempt else past.terms.parents
    for parent in parents:
        if number_of(state, parent) > past.number:
            # It is gone for so long that its id is that of another job.
            raise NotFound("parent", to_text(parent))
    check(state, session, past.user, parents, Batch(), now)
    return is_awaited(state, parents)


# --- while it waits ---------------------------------------------------------------------------------------------------


def wait(state: BrokerState, job: Job) -> None:
    """Have a blocked job wait for its parents; they come back from the journal before it does."""
    for parent in job.terms.parents:
        ended = state.finished.ended(parent)
        if number_of(state, parent) > job.number or (ended is None and parent not in state.jobs):
            # It was done, and is deleted: one that failed is kept until all who wait have been told. Who has its id
            # now, long after, is another job.
            continue
        if ended is not None:
            if ended.state is State.DONE:
                continue
            state.settling[parent] = ended.state
        state.children.setdefault(parent, {})[job.id] = None
    if awaited(state, job):
        mark(state, job)
    else:
        state.freed.append(job)


def awaited(state: BrokerState, job: Job) -> list[bytes]:
    """Return the parents that a job still waits for."""
    return [parent for parent in job.terms.parents if job.id in state.children.get(parent, ())]


def told(state: BrokerState, parent: bytes, job: Job) -> None:
    """Have a job wait for one parent less."""
    children = state.children[parent]
    del children[job.id]
    if not children:
        del state.children[parent]


def note_end(state: BrokerState, job: Job, target: State) -> None:
    """Note that an open job is about to end: it waits for nobody, and who waits for it is to be told."""
    for parent in awaited(state, job):
        told(state, parent, job)
        _mark_parent(state, parent, job)
    if job.id in state.children:
        state.settling[job.id] = target
    lift(job, own_priority(job))


# --- priority ---------------------------------------------------------------------------------------------------------


def own_priority(job: Job) -> int:
    """Return what a job was given, whoever waits for it."""
    return job.priority if job.past.own_priority is None else job.past.own_priority


def lift(job: Job, priority: int) -> None:
    """Have a job run at a priority, and remember its own where that is another. No policy may hold it."""
    own = own_priority(job)
    job.priority = priority
    if job.past.own_priority != (lifted := None if own == priority else own):
        job.past = msgspec.structs.replace(job.past, own_priority=lifted)


def give_priority(state: BrokerState, job: Job, priority: int) -> None:
    """Give a job another priority of its own; one that waits for it may lift it again. No policy may hold it."""
    own = job.past.own_priority
    if own is None or priority >= job.priority:
        job.priority, own = priority, None
    else:
        own = priority
    if job.past.own_priority != own:
        job.past = msgspec.structs.replace(job.past, own_priority=own)
    state.unweighed[job.id] = None
    mark(state, job)


def wanted_priority(state: BrokerState, job: Job) -> int:
    """Return the highest of a job's own priority and those of jobs of its user that wait for it."""
    highest = own_priority(job)
    for child_id in state.children.get(job.id, ()):
        child = state.jobs[child_id]
        if child.user == job.user and child.priority > highest:
            highest = child.priority
    return highest


def mark(state: BrokerState, job: Job) -> None:
    """Note that the parents of a job may have to run at another priority because of it."""
    for parent in awaited(state, job):
        _mark_parent(state, parent, job)


def _mark_parent(state: BrokerState, parent: bytes, job: Job) -> None:
    other = state.jobs.get(parent)
    if other is not None and (job.priority > other.priority or other.past.own_priority is not None):
        state.unweighed[parent] = None

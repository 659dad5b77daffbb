"""Commands on jobs that exist: cancel, retry, update, delete; by id or by filter, with one outcome each."""

from lmq_broker.core import fields, jobs, kinds, leases, parents, room, users
from lmq_broker.core.chronicle import (
    Out,
    full,
    image,
    numbers_of,
    put,
    queue_named,
    refusal,
    refuse,
    reply,
    save,
    tell,
)
from lmq_broker.core.effects import Read
from lmq_broker.core.reads import Context, JobsReply, ListReply, ReadJobs, ReadList
from lmq_broker.core.records import (
    Past,
    ResultDropped,
    StoredJob,
    Terms,
)
from lmq_broker.core.rights import SEES_ALL, may_act_for
from lmq_broker.core.state import BrokerState, Job, Session
from lmq_broker.core.stimuli import Now
from lmq_proto import bounds
from lmq_proto.errors import (
    AttemptMoved,
    BadField,
    LmqError,
    NotFound,
    Stopping,
    WrongState,
)
from lmq_proto.events import Kind
from lmq_proto.ids import short, suffix_bounds, to_text
from lmq_proto.messages import (
    Cancel,
    Changed,
    Delete,
    JobFilter,
    Outcome,
    Retry,
    Update,
)
from lmq_proto.states import FINAL, State

JobCommand = Cancel | Retry | Delete | Update


def act(state: BrokerState, out: Out, session: Session, command: JobCommand, now: Now) -> None:
    """Carry out a command on jobs: find those that are open here, read the others first."""
    target = command.target
    if state.stopping:
        refuse(state, out, session.peer, command.request_id, Stopping())
        return
    if bool(target.job_ids) == (target.match is not None):
        refuse(state, out, session.peer, command.request_id,
               BadField("target", len(target.job_ids), "either ids or a filter"))  # fmt: skip
        return
    if len(target.job_ids) > bounds.BATCH_JOBS:
        refuse(state, out, session.peer, command.request_id,
               BadField("job_ids", len(target.job_ids), f"at most {bounds.BATCH_JOBS}"))  # fmt: skip
        return
    try:
        if isinstance(command, Update):
            _check_update(command)
        if target.match is not None:
            check_match(target.match)
    except LmqError as error:
        refuse(state, out, session.peer, command.request_id, error)
        return
    context = Context(session.peer, command, state.position)
    if target.match is not None:
        wanted = [
            str(each) for each in (FINAL if isinstance(command, Retry | Delete) else set(State) - FINAL)
        ]
        states = [each for each in target.match.states or wanted if each in wanted]
        only = "" if session.who.role in SEES_ALL else session.who.user
        match = _with_states(target.match, states or wanted)
        out.append(
            Read(ReadList(context, match, only, 0, bounds.BATCH_JOBS, oldest_first=True), state.position)
        )
    elif all(job_id in state.jobs for job_id in target.job_ids):
        _carry_out(state, out, session, command, target.job_ids, {}, now, more=False)
    else:
        ids = [job_id for job_id in target.job_ids if job_id not in state.jobs]
        out.append(Read(ReadJobs(context, ids, numbers_of(state, ids)), state.position))


def check_match(match: JobFilter) -> None:
    """Raise BadField for a filter that cannot match anything: an unknown state, an ending that is not of an id."""
    unknown = [each for each in match.states if each not in State.__members__.values()]
    if unknown:
        raise BadField("states", unknown[0], ", ".join(State))
    if match.id_ending:
        suffix_bounds(match.id_ending)


def _with_states(match: JobFilter, states: list[str]) -> JobFilter:
    fields = {name: getattr(match, name) for name in match.__struct_fields__}
    return JobFilter(**(fields | {"states": states}))


def act_on_loaded(
    state: BrokerState,
    out: Out,
    session: Session,
    command: JobCommand,
    reply_: JobsReply | ListReply,
    position: int,
    now: Now,
) -> None:
    """Go on with a command on jobs for which the journal had to be read; ask again for what it shows no more."""
    stored = {job.id: job for job in reply_.jobs}
    finished = [job_id for job_id in command.target.job_ids if job_id in state.finished]
    is_old = any(state.reopened.get(job_id, 0) > position for job_id in stored)
    if is_old or any(job_id not in stored for job_id in finished):
        act(state, out, session, command, now)
        return
    if isinstance(reply_, ListReply):
        _carry_out(state, out, session, command, list(stored), stored, now, more=reply_.more)
    else:
        _carry_out(state, out, session, command, command.target.job_ids, stored, now, more=False)


def _carry_out(
    state: BrokerState,
    out: Out,
    session: Session,
    command: JobCommand,
    job_ids: list[bytes],
    stored: dict[bytes, StoredJob],
    now: Now,
    *,
    more: bool,
) -> None:
    """Act on each job and answer with one outcome each."""
    outcomes = []
    deleted: list[StoredJob] = []
    for job_id in job_ids:
        job = state.jobs.get(job_id)
        past = None if job is not None or job_id not in state.finished else stored.get(job_id)
        found = job if job is not None else past
        try:
            if found is None or not _may_touch(session, found.user):
                raise NotFound("job", to_text(job_id))
            changed = _act_on(state, out, session, command, job, past, deleted, now)
            asked = command.priority if isinstance(command, Update) else None
            given = None if asked is None or job is None else parents.own_priority(job)
            outcomes.append(
                Outcome(
                    job_id=job_id,
                    outcome="changed" if changed else "unchanged",
                    priority=given if given != asked else None,
                )
            )
        except LmqError as error:
            outcomes.append(Outcome(job_id=job_id, outcome="refused", error=refusal(state, error)))
    if deleted:
        jobs.delete(state, out, deleted, now, by=session.who.user)
    reply(state, out, session.peer, Changed(request_id=command.request_id, outcomes=outcomes, more=more))


def _may_touch(session: Session, user: str) -> bool:
    who = session.who
    return may_act_for(who.principal, who.role, who.user, user)


def _act_on(
    state: BrokerState,
    out: Out,
    session: Session,
    command: JobCommand,
    job: Job | None,
    past: StoredJob | None,
    deleted: list[StoredJob],
    now: Now,
) -> bool:
    """Carry out a command on one job, open (`job`) or final (`past`); return whether anything changed."""
    attempt = job.attempt if job is not None else past.attempt if past is not None else 0
    job_id = job.id if job is not None else past.id if past is not None else b""
    if not isinstance(command, Delete) and command.if_attempt is not None and command.if_attempt != attempt:
        raise AttemptMoved(to_text(job_id), command.if_attempt, attempt)
    if isinstance(command, Cancel):
        if job is None:
            return False
        cancel(state, out, job, now, by=session.who.user)
        return True
    if isinstance(command, Update):
        if job is None:
            raise WrongState(
                short(job_id), past.state if past is not None else "", "a job that has not ended"
            )
        misfit = kinds.wrong_kind(state, job.task_type, command.models or ())
        if misfit is not None:
            raise misfit
        return _update(state, out, job, command, now)
    if job is not None:
        raise WrongState(short(job_id), job.state, "a job that has ended")
    assert past is not None
    parents.check_settled(state, past)
    if isinstance(command, Delete):
        deleted.append(past)
        return True
    if past.state == State.DONE:
        raise WrongState(short(job_id), past.state, "dead, cancelled or expired; submit it again instead")
    _check_room(state, past, now)
    is_awaited = parents.check_again(state, session, past, now)
    _retry(state, out, past, State.BLOCKED if is_awaited else State.READY, now, by=session.who.user)
    return True


def cancel(state: BrokerState, out: Out, job: Job, now: Now, *, by: str) -> None:
    """Cancel an open job at once; its lease, if any, goes on until the worker has stopped."""
    jobs.withdraw(state, job)
    lease = job.lease
    jobs.end(state, out, job, State.CANCELLED, now, by=by)
    if lease is not None:
        leases.stop(state, out, lease, "cancelled", now)


def _check_room(state: BrokerState, past: StoredJob, now: Now) -> None:
    """Raise LimitReached if one more open job would be too many."""
    limits = state.settings
    if len(state.jobs) >= limits.jobs_open:
        raise full(state, now, "jobs_open", len(state.jobs), limits.jobs_open, user="")
    mine = state.users_open.get(past.user, 0)
    if mine >= limits.jobs_open_per_user:
        raise full(state, now, "jobs_open_per_user", mine, limits.jobs_open_per_user, user=past.user)
    over = room.refused(state, past.user, past.queue, past.task_type, (1, past.payload_bytes), now)
    if over is not None:
        raise over


def _retry(state: BrokerState, out: Out, past: StoredJob, target: State, now: Now, *, by: str) -> None:
    """Open a final job again, with no failures and behind its equals."""
    job = jobs.from_stored(past)
    assert past.state in (State.DEAD, State.CANCELLED, State.EXPIRED)
    job.state = target
    job.order = jobs.next_order(state)
    job.failures = 0
    job.past = Past(story=past.past.story)
    job.due_at_ms = 0
    job.expires_at_ms = 0
    state.finished.pop(job.id)
    state.keys_of_finished.pop(job.id, None)
    state.jobs[job.id] = job
    jobs.admit(state, job, now)
    put(state, out, ResultDropped(job.number))
    save(state, out, job)
    state.reopened[job.id] = state.position
    tell(state, now, Kind.RETRIED, job, detail={"by": by})


def _check_update(command: Update) -> None:
    """Refuse an update whose values are out of bounds."""
    if command.priority is not None:
        fields.check_within("priority", command.priority, 0, bounds.PRIORITY_MAX)
    if command.queue is not None:
        fields.check_name("queue", command.queue)
    if command.models is not None:
        if len(command.models) > bounds.MODELS:
            raise BadField("models", len(command.models), f"at most {bounds.MODELS}")
        for model in command.models:
            fields.check_name("model", model)
    if command.labels is not None:
        fields.check_labels(command.labels)
    for field, value in (
        ("expires_ms", command.expires_ms), ("timeout_ms", command.timeout_ms), ("keep_ms", command.keep_ms),
    ):  # fmt: skip
        if value is not None:
            fields.check_within(field, value, 0, bounds.DURATION_MS)
    if command.failures is not None:
        fields.check_within("failures", command.failures, 1, bounds.FAILURES_MAX)


def _update(state: BrokerState, out: Out, job: Job, command: Update, now: Now) -> bool:
    """Change an open job; where it waits in line is worked out anew."""
    before = image(job)
    jobs.withdraw(state, job)
    if command.queue is not None and command.queue != job.queue:
        queue = state.queues[job.queue]
        queue.counts[job.state] -= 1
        queue.changed = True
        waits = job.state is not State.LEASED
        if waits:
            state.limits.left(job.user, job.queue, job.task_type, job.payload_bytes)
        job.queue = state.names.setdefault(command.queue, command.queue)
        queue_named(state, job.queue).counts[job.state] += 1
        if waits:
            state.limits.entered(job.user, job.queue, job.task_type, job.payload_bytes)
    if command.priority is not None:
        parents.give_priority(state, job, users.allowed(state, job.user, command.priority))
    if command.models is not None:
        job.models = tuple(command.models)
    if command.expires_ms is not None:
        job.expires_at_ms = now.wall_ms + command.expires_ms if command.expires_ms else 0
        if job.expires_at_ms:
            jobs.push(state, state.expiries, job.expires_at_ms, job)
    terms = job.terms
    job.terms = Terms(
        timeout_ms=terms.timeout_ms if command.timeout_ms is None else command.timeout_ms,
        failures_max=terms.failures_max if command.failures is None else max(command.failures, job.failures + 1),
        keep_ms=terms.keep_ms if command.keep_ms is None else command.keep_ms,
        labels=terms.labels if command.labels is None else command.labels,
        key=terms.key, digest=terms.digest, session=terms.session, uses=terms.uses,
        merge=terms.merge, parents=terms.parents, root=terms.root,
    )  # fmt: skip
    if job.state is State.READY:
        state.policy.queued(job, now)
    after = image(job)
    if after == before:
        return False
    save(state, out, job)
    tell(state, now, Kind.UPDATED, job, detail={"priority": parents.own_priority(job)})
    return True

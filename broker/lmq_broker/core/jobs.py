"""The life of a job outside its leases: submitted, delayed, ready, ended, retried, changed, deleted."""

import heapq

from lmq_broker.core import leases, models, readers
from lmq_broker.core.chronicle import (
    Out,
    channel,
    count_end,
    full,
    image,
    move,
    put,
    queue_named,
    refusal,
    refuse,
    reply,
    save,
    tell,
)
from lmq_broker.core.digest import digest
from lmq_broker.core.effects import Read
from lmq_broker.core.reads import Context, JobsReply, ListReply, ReadJobs, ReadList
from lmq_broker.core.records import (
    JobAdded,
    JobChanged,
    JobsDeleted,
    Past,
    ResultAdded,
    ResultDropped,
    StoredJob,
    Terms,
    TombstonesDropped,
)
from lmq_broker.core.rights import SEES_ALL, may_act_for
from lmq_broker.core.settings import TaskDefaults
from lmq_broker.core.state import BrokerState, End, Job, Key, Session
from lmq_broker.core.stimuli import Now
from lmq_proto import bounds
from lmq_proto.codec import cut
from lmq_proto.errors import (
    AttemptMoved,
    BadField,
    DiskFull,
    ErrorInfo,
    IdempotencyConflict,
    LmqError,
    NotAllowed,
    NotFound,
    QueueDraining,
    Stopping,
    TooLarge,
    UnknownModel,
    WrongState,
)
from lmq_proto.events import Kind
from lmq_proto.ids import JOB_ID_BYTES, JobId, UserName, short, to_text
from lmq_proto.messages import (
    Cancel,
    Changed,
    Delete,
    JobFilter,
    JobSpec,
    Outcome,
    Retry,
    Submit,
    Submitted,
    Update,
)
from lmq_proto.states import FINAL, State

_DEFAULTS = TaskDefaults()
_NO_TERMS = Terms()
_NO_PAST = Past()

# --- submit ----------------------------------------------------------------------------------------------------------


def submit(state: BrokerState, out: Out, session: Session, command: Submit, body: bytes, now: Now) -> None:
    """Accept, recognise or refuse each job of a batch; all or none of them where `atomic`."""
    specs = command.jobs
    user = command.as_user or session.who.user
    try:
        _check_batch(state, session, command, user)
        payloads = cut(body, [spec.payload_bytes for spec in specs])
    except LmqError as error:
        refuse(state, out, session.peer, command.request_id, error)
        return
    outcomes: list[Outcome] = []
    if command.atomic:
        for spec, payload in zip(specs, payloads, strict=True):
            problem = _problem(state, spec, payload, user, now, len(specs))
            if problem is not None:
                info = refusal(state, problem)
                outcomes = [Outcome(job_id=each.id, outcome="refused", error=info) for each in specs]
                reply(state, out, session.peer, Submitted(request_id=command.request_id, outcomes=outcomes))
                return
    for spec, payload in zip(specs, payloads, strict=True):
        known = _known(state, spec, payload, user)
        if isinstance(known, LmqError):
            outcomes.append(Outcome(job_id=spec.id, outcome="refused", error=refusal(state, known)))
            continue
        if known is not None:
            outcomes.append(Outcome(job_id=known, outcome="duplicate", channel=channel(state, known)))
        else:
            refused = _refused(state, spec, payload, user, now, 1)
            if refused is not None:
                outcomes.append(Outcome(job_id=spec.id, outcome="refused", error=refusal(state, refused)))
                continue
            job = _accept(state, out, session, spec, payload, user, now)
            outcomes.append(Outcome(job_id=job.id, outcome="accepted", channel=channel(state, job.id)))
        if command.follow:
            readers.follow_one(state, out, session, outcomes[-1].job_id)
    reply(state, out, session.peer, Submitted(request_id=command.request_id, outcomes=outcomes))


def _check_batch(state: BrokerState, session: Session, command: Submit, user: str) -> None:
    """Refuse what is wrong with a submit as a whole."""
    if state.stopping:
        raise Stopping
    if state.disk.trouble:
        raise DiskFull(state.disk.free_bytes, state.disk.floor_bytes, 10.0)
    if not 1 <= len(command.jobs) <= bounds.BATCH_JOBS:
        raise BadField("jobs", len(command.jobs), f"1 to {bounds.BATCH_JOBS} in one submit")
    _name("as_user", user)
    if not may_act_for(session.who.principal, session.who.role, session.who.user, user):
        raise NotAllowed("submit", session.who.role, f"{session.who.principal} may not act for {user}")
    if command.follow and len(session.follows) + len(command.jobs) > state.settings.follows:
        raise BadField(
            "follow", len(session.follows), f"{state.settings.follows} followed jobs in one session"
        )


def _problem(
    state: BrokerState, spec: JobSpec, payload: bytes, user: str, now: Now, adding: int
) -> LmqError | None:
    """Return why a job of an atomic batch cannot be accepted, if so."""
    known = _known(state, spec, payload, user)
    if isinstance(known, LmqError):
        return known
    return None if known is not None else _refused(state, spec, payload, user, now, adding)


def _known(state: BrokerState, spec: JobSpec, payload: bytes, user: str) -> JobId | LmqError | None:
    """Return the job that this submit repeats, an error if it contradicts one, None if it is new."""
    if spec.id in state.jobs or spec.id in state.finished or spec.id in state.tombstones:
        return JobId(spec.id)
    if not spec.key:
        return None
    key = state.keys.get((user, spec.key))
    if key is None:
        return None
    return key.job_id if key.digest == digest(payload) else IdempotencyConflict(spec.key, to_text(key.job_id))


def _refused(
    state: BrokerState, spec: JobSpec, payload: bytes, user: str, now: Now, adding: int
) -> LmqError | None:
    """Return why a new job cannot be accepted, if so."""
    try:
        _check_spec(state, spec)
    except LmqError as error:
        return error
    limits = state.settings
    if len(payload) > limits.payload_bytes:
        return TooLarge("payload", len(payload), limits.payload_bytes)
    if len(state.jobs) + adding > limits.jobs_open:
        return full(state, now, "jobs_open", len(state.jobs), limits.jobs_open)
    mine = state.users_open.get(user, 0)
    if mine + adding > limits.jobs_open_per_user:
        return full(state, now, "jobs_open_per_user", mine, limits.jobs_open_per_user)
    hold = state.queue_holds.get(spec.queue or _defaults(state, spec.task_type).queue)
    if hold is not None and hold.kind == "drain":
        return QueueDraining(spec.queue or _defaults(state, spec.task_type).queue)
    return _unknown_model(state, spec)


def _unknown_model(state: BrokerState, spec: JobSpec) -> LmqError | None:
    """Return an error if endpoints are known and none has any of the models asked for."""
    if not spec.models or not state.known_models:
        return None
    names = {models.normal(model) for model in spec.models}
    known = [name for worker in state.known_models.values() for name in worker]
    if models.ANY in known:
        return None
    if any(names & models.names_of(name) for name in known):
        return None
    return UnknownModel(spec.models[0], models.nearest(spec.models[0], known))


def _check_spec(state: BrokerState, spec: JobSpec) -> None:
    """Raise the typed error of the first field that is out of its bounds."""
    if len(spec.id) != JOB_ID_BYTES:
        raise BadField("id", len(spec.id), f"{JOB_ID_BYTES} bytes")
    _name("task_type", spec.task_type)
    if spec.queue:
        _name("queue", spec.queue)
    if spec.priority is not None:
        _within("priority", spec.priority, 0, bounds.PRIORITY_MAX)
    if len(spec.models) > bounds.MODELS:
        raise BadField("models", len(spec.models), f"at most {bounds.MODELS}")
    for model in spec.models:
        _name("model", model)
    if spec.labels:
        check_labels(spec.labels)
    if len(spec.key) > bounds.KEY_CHARS:
        raise BadField("key", spec.key, f"at most {bounds.KEY_CHARS} characters")
    if len(spec.session) > bounds.NAME_CHARS:
        raise BadField("session", spec.session, f"at most {bounds.NAME_CHARS} characters")
    for field, value in (
        ("delay_ms", spec.delay_ms), ("expires_ms", spec.expires_ms), ("timeout_ms", spec.timeout_ms),
        ("keep_ms", spec.keep_ms),
    ):  # fmt: skip
        if value:
            _within(field, value, 0, bounds.DURATION_MS)
    if spec.at_ms:
        _within("at_ms", spec.at_ms, 0, 1 << 52)
    _within("failures", spec.failures, 0, bounds.FAILURES_MAX)
    if spec.prompt_tokens or spec.output_tokens:
        _within("prompt_tokens", spec.prompt_tokens, 0, 1 << 31)
        _within("output_tokens", spec.output_tokens, 0, 1 << 31)
    if spec.parents:
        raise BadField("parents", len(spec.parents), "none: this broker does not know dependencies yet")


def check_labels(labels: dict[str, str]) -> None:
    """Raise BadField for too many labels, or a name or value out of bounds."""
    if len(labels) > bounds.LABELS:
        raise BadField("labels", len(labels), f"at most {bounds.LABELS}")
    for name, value in labels.items():
        _name("label name", name)
        if len(value) > bounds.LABEL_CHARS:
            raise BadField(f"label {name}", value, f"at most {bounds.LABEL_CHARS} characters")


def _name(field: str, value: str) -> None:
    if not 0 < len(value) <= bounds.NAME_CHARS or not value.isprintable():
        raise BadField(field, value, f"1 to {bounds.NAME_CHARS} printable characters")


def _within(field: str, value: int, low: int, high: int) -> None:
    if not low <= value <= high:
        raise BadField(field, value, f"{low} to {high}")


def _defaults(state: BrokerState, task_type: str) -> TaskDefaults:
    return state.settings.task_defaults.get(task_type, _DEFAULTS)


def _accept(
    state: BrokerState, out: Out, session: Session, spec: JobSpec, payload: bytes, user: str, now: Now
) -> Job:
    """Make a job of a spec that is in order, and let it wait or be ready."""
    defaults = _defaults(state, spec.task_type)
    intern = state.names.setdefault
    state.last_number += 1
    state.last_order += 1
    due_at_ms = spec.at_ms or (now.wall_ms + spec.delay_ms if spec.delay_ms else 0)
    job = Job(
        number=state.last_number,
        id=JobId(spec.id),
        user=UserName(intern(user, user)),
        principal=session.who.principal,
        task_type=intern(spec.task_type, spec.task_type),
        queue=intern(spec.queue, spec.queue) if spec.queue else defaults.queue,
        priority=defaults.priority if spec.priority is None else spec.priority,
        state=State.READY,
        order=state.last_order,
        created_at_ms=now.wall_ms,
        payload_bytes=len(payload),
        models=tuple(intern(model, model) for model in spec.models),
        terms=_terms(state, spec, payload, defaults),
        past=_NO_PAST,
        due_at_ms=due_at_ms,
        expires_at_ms=now.wall_ms + spec.expires_ms if spec.expires_ms else 0,
    )
    if due_at_ms > now.wall_ms:
        job.state = State.DELAYED
    state.jobs[job.id] = job
    if spec.key:
        state.keys[user, spec.key] = Key(job.id, job.terms.digest)
    put(state, out, JobAdded(image(job), payload))
    admit(state, job, now)
    tell(state, now, Kind.ACCEPTED, job)
    return job


def _terms(state: BrokerState, spec: JobSpec, payload: bytes, defaults: TaskDefaults) -> Terms:
    """Return a job's terms; jobs that say nothing special share one object per task type."""
    plain = not (
        spec.labels or spec.key or spec.session or spec.prompt_tokens or spec.output_tokens or spec.timeout_ms
        or spec.failures or spec.keep_ms or spec.root
    )  # fmt: skip
    if plain:
        shared = state.plain_terms.get(spec.task_type)
        if shared is None:
            shared = state.plain_terms[spec.task_type] = Terms(
                timeout_ms=defaults.timeout_ms, failures_max=defaults.failures, keep_ms=defaults.keep_ms
            )
        return shared
    return Terms(
        timeout_ms=spec.timeout_ms or defaults.timeout_ms,
        failures_max=spec.failures or defaults.failures,
        keep_ms=spec.keep_ms or defaults.keep_ms,
        prompt_tokens=spec.prompt_tokens,
        output_tokens=spec.output_tokens,
        labels=spec.labels,
        key=spec.key,
        digest=digest(payload) if spec.key else b"",
        session=spec.session,
        root=spec.root,
    )


def admit(state: BrokerState, job: Job, now: Now) -> None:
    """Count an open job and put it where its state says; also used when it comes back from the journal."""
    queue = queue_named(state, job.queue)
    queue.counts[job.state] += 1
    queue.changed = True
    state.users_open[job.user] = state.users_open.get(job.user, 0) + 1
    if job.expires_at_ms:
        heapq.heappush(state.expiries, (job.expires_at_ms, job.number, job))
    if job.state is State.READY:
        job.ready_since_ms = now.mono_ms
        state.policy.queued(job, now)
    elif job.state is State.DELAYED:
        if job.past.backoff_ms:
            delay(state, job, job.past.backoff_ms, now)
        else:
            heapq.heappush(state.due, (job.due_at_ms, job.number, job))


# --- waiting ---------------------------------------------------------------------------------------------------------


def delay(state: BrokerState, job: Job, wait_ms: int, now: Now) -> None:
    """Let a delayed job wait out its backoff on the monotonic clock."""
    job.backoff_until_ms = now.mono_ms + wait_ms
    heapq.heappush(state.backoffs, (job.backoff_until_ms, job.number, job))


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
        if job.expires_at_ms == at_ms and job.state in (State.DELAYED, State.READY, State.BLOCKED):
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
    move(state, job, target)
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
        detail=_end_detail(job, error, by),
    )
    readers.text_ended(state, out, job)
    del state.jobs[job.id]
    state.finished[job.id] = job.number
    if job.terms.key:
        state.keys_of_finished[job.id] = (job.user, job.terms.key)
    open_jobs = state.users_open[job.user] - 1
    if open_jobs:
        state.users_open[job.user] = open_jobs
    else:
        del state.users_open[job.user]
    state.ended[target] = state.ended.get(target, 0) + 1
    count_end(state, now)
    if job.id in state.followers:
        started_ms = job.started_at_ms or now.wall_ms
        readers.ended(state, End(
            job.id, target, job.attempt, job.failures, result, error, job.past.story, job.worker, job.model,
            max(0, started_ms - job.created_at_ms), max(0, now.wall_ms - started_ms),
        ))  # fmt: skip


def _end_detail(
    job: Job, error: ErrorInfo | None, by: str
) -> dict[str, str | int | float | bool | list[str] | None]:
    """Return what an end's event says beside the job."""
    detail: dict[str, str | int | float | bool | list[str] | None] = {}
    if error is not None:
        detail["code"], detail["error"] = error.code, error.message
    if by:
        detail["by"] = by
    if job.failures:
        detail["failures"] = job.failures
    return detail


# --- commands on jobs ------------------------------------------------------------------------------------------------

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
    if isinstance(command, Update):
        try:
            _check_update(command)
        except LmqError as error:
            refuse(state, out, session.peer, command.request_id, error)
            return
    context = Context(session.peer, command)
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
        out.append(Read(ReadJobs(context, ids), state.position))


def _with_states(match: JobFilter, states: list[str]) -> JobFilter:
    fields = {name: getattr(match, name) for name in match.__struct_fields__}
    return JobFilter(**(fields | {"states": states}))


def act_on_loaded(
    state: BrokerState,
    out: Out,
    session: Session,
    command: JobCommand,
    reply_: JobsReply | ListReply,
    now: Now,
) -> None:
    """Go on with a command on jobs for which the journal had to be read."""
    stored = {job.id: job for job in reply_.jobs}
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
            outcomes.append(Outcome(job_id=job_id, outcome="changed" if changed else "unchanged"))
        except LmqError as error:
            outcomes.append(Outcome(job_id=job_id, outcome="refused", error=refusal(state, error)))
    if deleted:
        delete(state, out, deleted, now, by=session.who.user)
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
        return _update(state, out, job, command, now)
    if job is not None:
        raise WrongState(short(job_id), job.state, "a job that has ended")
    assert past is not None
    if isinstance(command, Delete):
        deleted.append(past)
        return True
    if past.state == State.DONE:
        raise WrongState(short(job_id), past.state, "dead, cancelled or expired; submit it again instead")
    _retry(state, out, past, now, by=session.who.user)
    return True


def cancel(state: BrokerState, out: Out, job: Job, now: Now, *, by: str) -> None:
    """Cancel an open job at once; its lease, if any, goes on until the worker has stopped."""
    withdraw(state, job)
    lease = job.lease
    end(state, out, job, State.CANCELLED, now, by=by)
    if lease is not None:
        leases.stop(state, out, lease, "cancelled")


def _retry(state: BrokerState, out: Out, past: StoredJob, now: Now, *, by: str) -> None:
    """Open a final job again, with no failures and behind its equals."""
    job = from_stored(past)
    assert past.state in (State.DEAD, State.CANCELLED, State.EXPIRED)
    job.state = State.READY
    job.order = next_order(state)
    job.failures = 0
    job.past = Past(story=past.past.story)
    job.due_at_ms = 0
    job.expires_at_ms = 0
    state.finished.pop(job.id)
    state.keys_of_finished.pop(job.id, None)
    state.jobs[job.id] = job
    admit(state, job, now)
    put(state, out, ResultDropped(job.number))
    save(state, out, job)
    tell(state, now, Kind.RETRIED, job, detail={"by": by})


def from_stored(stored: StoredJob) -> Job:
    """Return the job that an image shows, without a lease."""
    return Job(
        number=stored.number, id=JobId(stored.id), user=UserName(stored.user), principal=stored.principal,
        task_type=stored.task_type, queue=stored.queue, priority=stored.priority, state=State(stored.state),
        order=stored.order, created_at_ms=stored.created_at_ms, payload_bytes=stored.payload_bytes,
        models=stored.models, terms=stored.terms, past=stored.past, due_at_ms=stored.due_at_ms,
        expires_at_ms=stored.expires_at_ms, started_at_ms=stored.started_at_ms, attempt=stored.attempt,
        epoch=stored.epoch, failures=stored.failures, worker=stored.worker, model=stored.model,
    )  # fmt: skip


def _check_update(command: Update) -> None:
    """Refuse an update whose values are out of bounds."""
    if command.priority is not None:
        _within("priority", command.priority, 0, bounds.PRIORITY_MAX)
    if command.queue is not None:
        _name("queue", command.queue)
    if command.models is not None:
        if len(command.models) > bounds.MODELS:
            raise BadField("models", len(command.models), f"at most {bounds.MODELS}")
        for model in command.models:
            _name("model", model)
    if command.labels is not None:
        check_labels(command.labels)
    for field, value in (
        ("expires_ms", command.expires_ms), ("timeout_ms", command.timeout_ms), ("keep_ms", command.keep_ms),
    ):  # fmt: skip
        if value is not None:
            _within(field, value, 0, bounds.DURATION_MS)
    if command.failures is not None:
        _within("failures", command.failures, 1, bounds.FAILURES_MAX)


def _update(state: BrokerState, out: Out, job: Job, command: Update, now: Now) -> bool:
    """Change an open job; where it waits in line is worked out anew."""
    before = image(job)
    withdraw(state, job)
    if command.queue is not None and command.queue != job.queue:
        queue = state.queues[job.queue]
        queue.counts[job.state] -= 1
        queue.changed = True
        job.queue = state.names.setdefault(command.queue, command.queue)
        queue_named(state, job.queue).counts[job.state] += 1
    if command.priority is not None:
        job.priority = command.priority
    if command.models is not None:
        job.models = tuple(command.models)
    if command.expires_ms is not None:
        job.expires_at_ms = now.wall_ms + command.expires_ms if command.expires_ms else 0
        if job.expires_at_ms:
            heapq.heappush(state.expiries, (job.expires_at_ms, job.number, job))
    terms = job.terms
    job.terms = Terms(
        timeout_ms=terms.timeout_ms if command.timeout_ms is None else command.timeout_ms,
        failures_max=terms.failures_max if command.failures is None else command.failures,
        keep_ms=terms.keep_ms if command.keep_ms is None else command.keep_ms,
        prompt_tokens=terms.prompt_tokens, output_tokens=terms.output_tokens,
        labels=terms.labels if command.labels is None else command.labels,
        key=terms.key, digest=terms.digest, session=terms.session, parents=terms.parents, root=terms.root,
    )  # fmt: skip
    if job.state is State.READY:
        state.policy.queued(job, now)
    after = image(job)
    if after == before:
        return False
    save(state, out, job)
    tell(state, now, Kind.UPDATED, job, detail={"priority": job.priority})
    return True


# --- retention -------------------------------------------------------------------------------------------------------


def delete(state: BrokerState, out: Out, gone: list[StoredJob], now: Now, *, by: str) -> None:
    """Remove final jobs with all they had; their ids and keys stay known for a while."""
    until_ms = now.wall_ms + state.settings.tombstone_ms
    numbers = []
    for stored in gone:
        if state.finished.pop(stored.id, None) is None:
            continue
        numbers.append(stored.number)
        state.tombstones[JobId(stored.id)] = until_ms
        tell(state, now, Kind.DELETED, from_stored(stored), detail={"by": by})
        readers.job_deleted(state, out, stored.id)
    if numbers:
        put(state, out, JobsDeleted(numbers, until_ms))
    while len(state.tombstones) > state.settings.tombstones:
        _forget(state, next(iter(state.tombstones)))


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

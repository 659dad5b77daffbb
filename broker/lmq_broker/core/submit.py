"""Submit: each job of a batch is accepted, recognised or refused; and what the fields of a job may hold."""

from collections.abc import Sequence

from lmq_broker.core import aliases, contexts, fields, jobs, kinds, parents, readers, room, users
from lmq_broker.core.chronicle import (
    Out,
    channel,
    full,
    image,
    put,
    refusal,
    refuse,
    reply,
    tell,
)
from lmq_broker.core.digest import digest
from lmq_broker.core.records import (
    NO_PAST,
    JobAdded,
    Terms,
)
from lmq_broker.core.rights import may_act_for
from lmq_broker.core.settings import EMBEDDING_TASKS, ENGINE_TASKS, TaskDefaults
from lmq_broker.core.state import BrokerState, Job, Key, Session
from lmq_broker.core.stimuli import Now
from lmq_proto import bounds
from lmq_proto.codec import cut
from lmq_proto.errors import (
    BadField,
    DiskFull,
    IdempotencyConflict,
    LmqError,
    NotAllowed,
    QueueDraining,
    Stopping,
    TooLarge,
)
from lmq_proto.events import Kind
from lmq_proto.ids import JOB_ID_BYTES, JobId, UserName, to_text
from lmq_proto.messages import (
    JobSpec,
    Outcome,
    Submit,
    Submitted,
)
from lmq_proto.states import State

_DEFAULTS = TaskDefaults()
_RESOURCES = 4
"""That one job may use."""


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
    batch = parents.Batch()
    if command.atomic:
        keys: dict[str, bytes] = {}
        for spec, payload in zip(specs, payloads, strict=True):
            problem = _problem(state, session, spec, payload, user, now, (len(specs), len(body)), batch)
            if spec.key and keys.setdefault(spec.key, payload) != payload:
                problem = IdempotencyConflict(spec.key, to_text(spec.id))
            if problem is not None:
                info = refusal(state, problem)
                outcomes = [Outcome(job_id=each.id, outcome="refused", error=info) for each in specs]
                reply(state, out, session.peer, Submitted(request_id=command.request_id, outcomes=outcomes))
                return
        batch = parents.Batch()
    for spec, payload in zip(specs, payloads, strict=True):
        known = _known(state, spec, payload, user)
        if isinstance(known, LmqError):
            outcomes.append(Outcome(job_id=spec.id, outcome="refused", error=refusal(state, known)))
            continue
        if known is not None:
            batch.known[spec.id] = known
            outcomes.append(Outcome(job_id=known, outcome="duplicate", channel=channel(state, known)))
        else:
            # All of an atomic batch was found to fit together: now it goes in whole.
            alone = (1, len(payload))
            refused = (
                None if command.atomic else _refused(state, session, spec, payload, user, now, alone, batch)
            )
            if refused is not None:
                outcomes.append(Outcome(job_id=spec.id, outcome="refused", error=refusal(state, refused)))
                continue
            job = _accept(state, out, session, spec, payload, user, now, batch)
            asked = _asked(state, spec, user, job.terms.parents)
            outcomes.append(
                Outcome(job_id=job.id, outcome="accepted", channel=channel(state, job.id),
                        priority=job.priority if job.priority != asked else None)
            )  # fmt: skip
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
    fields.check_name("as_user", user)
    if not may_act_for(session.who.principal, session.who.role, session.who.user, user):
        raise NotAllowed("submit", session.who.role, f"{session.who.principal} may not act for {user}")
    if command.follow and len(session.follows) + len(command.jobs) > state.settings.follows:
        raise BadField(
            "follow", len(session.follows), f"{state.settings.follows} followed jobs in one session"
        )


def _problem(
    state: BrokerState, session: Session, spec: JobSpec, payload: bytes, user: str, now: Now,
    adding: tuple[int, int], batch: parents.Batch,
) -> LmqError | None:  # fmt: skip
    """Return why a job of an atomic batch cannot be accepted, if so; `adding`: jobs and bytes of the whole."""
    known = _known(state, spec, payload, user)
    if isinstance(known, LmqError):
        return known
    if known is not None:
        batch.known[spec.id] = known
        return None
    problem = _refused(state, session, spec, payload, user, now, adding, batch)
    if problem is None:
        batch.expect(spec)
    return problem


def _known(state: BrokerState, spec: JobSpec, payload: bytes, user: str) -> JobId | LmqError | None:
    """Return the job that this submit repeats, an error if it contradicts one, None if it is new."""
    job = state.jobs.get(spec.id)
    if job is not None and job.user != user:
        return BadField("id", to_text(spec.id), "an id that no other user's job has")
    if job is not None or spec.id in state.finished or spec.id in state.tombstones:
        return JobId(spec.id)
    if not spec.key:
        return None
    key = state.keys.get((user, spec.key))
    if key is None:
        return None
    return key.job_id if key.digest == digest(payload) else IdempotencyConflict(spec.key, to_text(key.job_id))


def _refused(
    state: BrokerState, session: Session, spec: JobSpec, payload: bytes, user: str, now: Now,
    adding: tuple[int, int], batch: parents.Batch,
) -> LmqError | None:  # fmt: skip
    """Return why a new job cannot be accepted, if so."""
    try:
        _check_spec(state, spec)
        if spec.parents:
            parents.check(state, session, user, parents.parents_of(spec, batch), batch, now)
    except LmqError as error:
        return error
    limits = state.settings
    if len(payload) > limits.payload_bytes:
        return TooLarge("payload", len(payload), limits.payload_bytes)
    if len(state.jobs) + adding[0] > limits.jobs_open:
        return full(state, now, "jobs_open", len(state.jobs), limits.jobs_open, user="")
    mine = state.users_open.get(user, 0)
    if mine + adding[0] > limits.jobs_open_per_user:
        return full(state, now, "jobs_open_per_user", mine, limits.jobs_open_per_user, user=user)
    queue = spec.queue or _defaults(state, spec.task_type).queue
    if queue not in state.queues and len(state.queues) >= limits.queues:
        return full(state, now, "queues", len(state.queues), limits.queues)
    hold = state.queue_holds.get(queue)
    if hold is not None and hold.kind == "drain":
        return QueueDraining(queue)
    over = room.refused(state, user, queue, spec.task_type, adding, now)
    if over is not None:
        return over
    wanted = aliases.models_asked(state, spec.task_type, spec.models)
    return (
        aliases.unknown_model(state, wanted)
        or kinds.wrong_kind(state, spec.task_type, wanted)
        or contexts.never_fits(state, spec, wanted)
    )


def _check_spec(state: BrokerState, spec: JobSpec) -> None:
    """Raise the typed error of the first field that is out of its bounds."""
    if len(spec.id) != JOB_ID_BYTES:
        raise BadField("id", len(spec.id), f"{JOB_ID_BYTES} bytes")
    fields.check_name("task_type", spec.task_type)
    if spec.queue:
        fields.check_name("queue", spec.queue)
    if spec.priority is not None:
        fields.check_within("priority", spec.priority, 0, bounds.PRIORITY_MAX)
    if len(spec.models) > bounds.MODELS:
        raise BadField("models", len(spec.models), f"at most {bounds.MODELS}")
    for model in spec.models:
        fields.check_name("model", model)
    if spec.labels:
        fields.check_labels(spec.labels)
    if len(spec.key) > bounds.KEY_CHARS:
        raise BadField("key", spec.key, f"at most {bounds.KEY_CHARS} characters")
    if len(spec.session) > bounds.NAME_CHARS:
        raise BadField("session", spec.session, f"at most {bounds.NAME_CHARS} characters")
    if spec.delay_ms or spec.expires_ms or spec.timeout_ms or spec.keep_ms:
        for field in ("delay_ms", "expires_ms", "timeout_ms", "keep_ms"):
            fields.check_within(field, getattr(spec, field), 0, bounds.DURATION_MS)
    if spec.at_ms:
        fields.check_within("at_ms", spec.at_ms, 0, 1 << 52)
    if spec.failures:
        fields.check_within("failures", spec.failures, 0, bounds.FAILURES_MAX)
    if spec.prompt_tokens or spec.output_tokens:
        fields.check_within("prompt_tokens", spec.prompt_tokens, 0, bounds.TOKENS)
        fields.check_within("output_tokens", spec.output_tokens, 0, bounds.TOKENS)
    if spec.uses:
        if len(spec.uses) > _RESOURCES:
            raise BadField("uses", len(spec.uses), f"at most {_RESOURCES}")
        if spec.task_type in ENGINE_TASKS:
            raise BadField("uses", spec.uses[0], f"none for {spec.task_type}; task types of your own may")
        for resource in spec.uses:
            fields.check_name("uses", resource)
    if len(spec.merge) > bounds.NAME_CHARS or (spec.merge and spec.task_type not in EMBEDDING_TASKS):
        raise BadField("merge", spec.merge, f"at most {bounds.NAME_CHARS} characters, for embeddings only")
    if spec.parents:
        parents.check_ids(spec)
    if len(spec.root) not in (0, JOB_ID_BYTES):
        raise BadField("root", len(spec.root), f"{JOB_ID_BYTES} bytes, or none")


def _defaults(state: BrokerState, task_type: str) -> TaskDefaults:
    return state.settings.task_defaults.get(task_type, _DEFAULTS)


def _accept(
    state: BrokerState, out: Out, session: Session, spec: JobSpec, payload: bytes, user: str, now: Now,
    batch: parents.Batch,
) -> Job:  # fmt: skip
    """Make a job of a spec that is in order, and let it wait or be ready."""
    defaults = _defaults(state, spec.task_type)
    intern = state.names.setdefault
    if max(len(state.names), len(state.shared_terms), len(state.model_lists)) > state.settings.names:
        state.names.clear()
        state.shared_terms.clear()
        state.model_lists.clear()
    state.last_number += 1
    state.last_order += 1
    due_at_ms = spec.at_ms or (now.wall_ms + spec.delay_ms if spec.delay_ms else 0)
    waits_for = parents.parents_of(spec, batch) if spec.parents else ()
    priority = users.allowed(state, user, _asked(state, spec, user, waits_for))
    # In the order of its fields, as in `image`.
    job = Job(
        state.last_number, JobId(spec.id), UserName(intern(user, user)), session.who.principal,
        intern(spec.task_type, spec.task_type), intern(spec.queue, spec.queue) if spec.queue else defaults.queue,
        priority, State.READY, state.last_order, now.wall_ms, len(payload),
        _shared_models(state, aliases.models_asked(state, spec.task_type, spec.models)),
        _terms(state, spec, payload, waits_for, defaults), NO_PAST, spec.prompt_tokens, spec.output_tokens,
        due_at_ms, now.wall_ms + spec.expires_ms if spec.expires_ms else 0,
    )  # fmt: skip
    if waits_for and parents.is_awaited(state, waits_for):
        job.state = State.BLOCKED
    elif due_at_ms > now.wall_ms:
        job.state = State.DELAYED
    state.jobs[job.id] = job
    if spec.key:
        state.keys[user, spec.key] = Key(job.id, job.terms.digest)
    put(state, out, JobAdded(image(job), payload))
    jobs.admit(state, job, now)
    if state.limits.active:
        state.limits.submitted(
            job.user, job.queue, job.task_type, job.prompt_tokens + job.output_tokens, now.mono_ms
        )
    tell(state, now, Kind.ACCEPTED, job)
    return job


def _shared_models(state: BrokerState, models: Sequence[str]) -> tuple[str, ...]:
    """Return the models asked for as the one tuple that all such jobs have."""
    names = tuple(models)
    return state.model_lists.setdefault(names, names)


def _asked(state: BrokerState, spec: JobSpec, user: str, waits_for: tuple[bytes, ...]) -> int:
    """Return the priority that was asked for, or else what a job has from its parents, or from its task type."""
    if spec.priority is not None:
        return spec.priority
    inherited = parents.inherited(state, user, waits_for) if waits_for else None
    return _defaults(state, spec.task_type).priority if inherited is None else inherited


def _terms(
    state: BrokerState, spec: JobSpec, payload: bytes, waits_for: tuple[bytes, ...], defaults: TaskDefaults
) -> Terms:
    """Return a job's terms; jobs that have nothing of their own in them share one object, for memory."""
    times = (
        spec.timeout_ms or defaults.timeout_ms, spec.failures or defaults.failures, spec.keep_ms or defaults.keep_ms,
    )  # fmt: skip
    uses = tuple(sorted(set(spec.uses)))
    if not (spec.labels or spec.key or spec.session or spec.root or waits_for):
        alike = *times, uses, spec.merge
        shared = state.shared_terms.get(alike)
        if shared is None:
            shared = state.shared_terms[alike] = Terms(*times, uses=uses, merge=spec.merge)
        return shared
    return Terms(
        *times, labels=spec.labels, key=spec.key, digest=digest(payload) if spec.key else b"", session=spec.session,
        uses=uses, merge=spec.merge, parents=waits_for, root=spec.root,
    )  # fmt: skip

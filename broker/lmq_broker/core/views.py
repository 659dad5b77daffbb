"""What people are shown: jobs, queues, workers, models, the broker's health. Why a job waits is in `reasons`."""

import msgspec

from lmq_broker.core import (
    aliases,
    commands,
    fields,
    models,
    orders,
    parents,
    swapcosts,
    trust,
    waiting,
    workers,
)
from lmq_broker.core.briefly import Found, briefly
from lmq_broker.core.chronicle import (
    FULL,
    Out,
    channel,
    ended_within,
    inform,
    number_of,
    numbers_of,
    queue_names,
    read_position,
    refuse,
    reply,
)
from lmq_broker.core.effects import Publish, Read
from lmq_broker.core.reads import (
    Context,
    CopyJournal,
    CopyReply,
    JobsReply,
    ListReply,
    PayloadReply,
    ReadJobs,
    ReadList,
    ReadPayload,
)
from lmq_broker.core.records import StoredJob
from lmq_broker.core.rights import SEES_ALL, may_act_for
from lmq_broker.core.state import BrokerState, Job, Session, Worker
from lmq_broker.core.stimuli import Now
from lmq_proto import bounds
from lmq_proto.errors import BackupFailed, BadField, NotFound
from lmq_proto.ids import short
from lmq_proto.messages import (
    Backup,
    BackupDone,
    GetPayload,
    Health,
    HealthReply,
    JobView,
    Listed,
    ListJobs,
    ListModels,
    ListQueues,
    ListWorkers,
    Models,
    ModelView,
    Order,
    Payload,
    Queues,
    QueueSize,
    QueueView,
    Status,
    Statuses,
    Tick,
    Workers,
    WorkerView,
)
from lmq_proto.states import OPEN, State

_QUEUE_EVERY_MS = 250
_MINUTE_S = 60
_PAGE_BYTES = bounds.HEADER_BYTES - 64 * 1024
"""What the views of one reply may take; the ids that are missing take less than the rest."""
_STARTS_LATER = (State.DELAYED, State.BLOCKED)

_pack = msgspec.msgpack.Encoder()

# --- jobs ------------------------------------------------------------------------------------------------------------


def may_see(session: Session, user: str) -> bool:
    who = session.who
    return who.role in SEES_ALL or may_act_for(who.principal, who.role, who.user, user)


def of_job(state: BrokerState, job: Job, now: Now, found: Found | None = None) -> JobView:
    """Return an open job as people see it; `found` is what the jobs of one page share."""
    lease = job.lease
    ahead = starts = done = None
    hindrance = ""
    if job.state is State.READY:
        ahead = state.eta.ahead(state, job, now)
        hindrance = briefly(state, job, Found() if found is None else found, now)
        starts, done = state.eta.waits(state, job, ahead, now) or (None, None)
    elif lease is not None:
        done = state.eta.runs_for(lease, now)
    return JobView(
        id=job.id, number=job.number, user=job.user, principal=job.principal, task_type=job.task_type,
        queue=job.queue, priority=job.priority, state=job.state, created_at_ms=job.created_at_ms,
        phase="" if lease is None else lease.phase, progress=0.0 if lease is None else lease.progress,
        stage="" if lease is None else lease.stage, log="" if lease is None else lease.log,
        tokens=0 if lease is None else lease.tokens, tokens_per_s=0.0 if lease is None else lease.tokens_per_s,
        models=list(job.models), model=job.model if lease is not None else "",
        worker=job.worker if lease is not None else "", attempt=job.attempt, failures=job.failures,
        failures_max=job.terms.failures_max, suspect=job.past.suspect,
        ahead=ahead, starts_in_s=starts, done_in_s=done,
        due_at_ms=job.due_at_ms if job.state in _STARTS_LATER else 0, expires_at_ms=job.expires_at_ms,
        started_at_ms=job.started_at_ms, timeout_ms=job.terms.timeout_ms, payload_bytes=job.payload_bytes,
        prompt_tokens=job.prompt_tokens, output_tokens=job.output_tokens,
        labels=job.terms.labels, key=job.terms.key, session=job.terms.session, channel=channel(state, job.id),
        story=list(job.past.story), parents=list(job.terms.parents), waits_for=parents.awaited(state, job),
        own_priority=job.past.own_priority, hindrance=hindrance,
    )  # fmt: skip


def of_stored(state: BrokerState, job: StoredJob) -> JobView:
    """Return a final job as people see it."""
    return JobView(
        id=job.id, number=job.number, user=job.user, principal=job.principal, task_type=job.task_type,
        queue=job.queue, priority=job.priority, state=job.state, created_at_ms=job.created_at_ms,
        models=list(job.models), model=job.model, worker=job.worker, attempt=job.attempt, failures=job.failures,
        failures_max=job.terms.failures_max, suspect=job.past.suspect, expires_at_ms=job.expires_at_ms,
        started_at_ms=job.started_at_ms, finished_at_ms=job.finished_at_ms, deletes_at_ms=job.deletes_at_ms,
        timeout_ms=job.terms.timeout_ms, payload_bytes=job.payload_bytes, result_bytes=job.result_bytes,
        prompt_tokens=job.prompt_tokens, output_tokens=job.output_tokens,
        labels=job.terms.labels, key=job.terms.key, session=job.terms.session, channel=channel(state, job.id),
        error=job.past.error, story=list(job.past.story), parents=list(job.terms.parents),
    )  # fmt: skip


def status(state: BrokerState, out: Out, session: Session, command: Status, now: Now) -> None:
    """Answer with jobs by id; those that have ended are read first."""
    if len(command.job_ids) > bounds.BATCH_JOBS:
        error = BadField("job_ids", len(command.job_ids), f"at most {bounds.BATCH_JOBS}")
        refuse(state, out, session.peer, command.request_id, error)
        return
    is_full = state.disk.trouble == FULL
    on_disk = [job_id for job_id in command.job_ids if is_full or job_id in state.finished]
    if on_disk:
        out.append(
            Read(
                ReadJobs(Context(session.peer, command), on_disk, numbers_of(state, on_disk)),
                read_position(state),
            )
        )
    else:
        status_loaded(state, out, session, command, JobsReply([]), now)


def status_loaded(
    state: BrokerState, out: Out, session: Session, command: Status, answer: JobsReply, now: Now
) -> None:
    """Answer a status with what was read and what is open."""
    stored = {job.id: job for job in answer.jobs}
    alike = Found()
    found = []
    missing = []
    for job_id in command.job_ids:
        past = stored.get(job_id)
        job = None if state.disk.trouble == FULL else state.jobs.get(job_id)
        if job is not None and may_see(session, job.user):
            found.append(of_job(state, job, now, alike))
        elif job is None and past is not None and may_see(session, past.user):
            found.append(of_stored(state, past))
        else:
            missing.append(job_id)
    if sum(len(_pack.encode(view)) for view in found) > _PAGE_BYTES:
        error = BadField(
            "job_ids", len(command.job_ids), "views that fit a header: ask for half of them at a time"
        )
        refuse(state, out, session.peer, command.request_id, error)
        return
    inform(state, out, session.peer, Statuses(request_id=command.request_id, jobs=found, missing=missing))


def list_jobs(state: BrokerState, out: Out, session: Session, command: ListJobs) -> None:
    """Have a page of jobs read."""
    if not 1 <= command.limit <= bounds.PAGE_JOBS:
        error = BadField("limit", command.limit, f"1 to {bounds.PAGE_JOBS}")
        refuse(state, out, session.peer, command.request_id, error)
        return
    try:
        fields.check_within("after", command.after, 0, 1 << 62)
        commands.check_match(command.match)
    except BadField as error:
        refuse(state, out, session.peer, command.request_id, error)
        return
    only = "" if session.who.role in SEES_ALL else session.who.user
    context = Context(session.peer, command)
    request = ReadList(context, command.match, only, command.after, command.limit, command.oldest_first)
    out.append(Read(request, read_position(state)))


def listed(
    state: BrokerState, out: Out, session: Session, command: ListJobs, answer: ListReply, now: Now
) -> None:
    """Answer a list; what is open is shown as it is now."""
    live = {} if state.disk.trouble == FULL else state.jobs
    views: list[JobView] = []
    alike = Found()
    size = 0
    for job in answer.jobs:
        view = of_job(state, state.jobs[job.id], now, alike) if job.id in live else of_stored(state, job)
        size += len(_pack.encode(view))
        if views and size > _PAGE_BYTES:
            break
        views.append(view)
    more = answer.more or len(views) < len(answer.jobs)
    inform(state, out, session.peer, Listed(request_id=command.request_id, jobs=views, more=more))


def get_payload(state: BrokerState, out: Out, session: Session, command: GetPayload) -> None:
    """Have a payload read."""
    out.append(
        Read(
            ReadPayload(Context(session.peer, command), command.job_id, number_of(state, command.job_id)),
            read_position(state),
        )
    )


def payload_loaded(
    state: BrokerState, out: Out, session: Session, command: GetPayload, answer: PayloadReply, now: Now
) -> None:
    """Answer with a payload, to whom it may concern."""
    who = session.who
    if answer.job is None or not may_act_for(who.principal, who.role, who.user, answer.job.user):
        refuse(state, out, session.peer, command.request_id, NotFound("job", short(command.job_id)))
        return
    job = None if state.disk.trouble == FULL else state.jobs.get(command.job_id)
    view = of_stored(state, answer.job) if job is None else of_job(state, job, now)
    inform(state, out, session.peer, Payload(request_id=command.request_id, job=view), answer.payload)


# --- nouns -----------------------------------------------------------------------------------------------------------


def queues(state: BrokerState, out: Out, session: Session, command: ListQueues, now: Now) -> None:
    """Answer with all queues."""
    oldest = waiting.oldest_waits(state, now)
    found = [_queue(state, name, oldest.get(name, 0)) for name in sorted(queue_names(state))]
    inform(state, out, session.peer, Queues(request_id=command.request_id, queues=found))


def _queue(state: BrokerState, name: str, oldest_ms: int) -> QueueView:
    queue = state.queues.get(name)
    counts = queue.counts if queue is not None else {}
    return QueueView(
        name=name, delayed=counts.get(State.DELAYED, 0), blocked=counts.get(State.BLOCKED, 0),
        ready=counts.get(State.READY, 0), leased=counts.get(State.LEASED, 0), asking=counts.get(State.ASKING, 0),
        oldest_ready_ms=oldest_ms,
        workers=[worker.name for worker in state.workers.values() if not worker.queues or name in worker.queues],
        hold=state.queue_holds.get(name),
    )  # fmt: skip


def list_workers(state: BrokerState, out: Out, session: Session, command: ListWorkers, now: Now) -> None:
    """Answer with all workers."""
    found = [_worker(state, worker, now) for _, worker in sorted(state.workers.items())]
    inform(state, out, session.peer, Workers(request_id=command.request_id, workers=found))


def _worker(state: BrokerState, worker: Worker, now: Now) -> WorkerView:
    return WorkerView(
        name=worker.name, endpoint=worker.endpoint, backend=worker.backend, host=worker.host,
        state=workers.state_of(state, worker), queues=sorted(worker.queues), task_types=sorted(worker.task_types),
        software=worker.software, protocol=worker.protocol, pid=worker.pid,
        connected_ms=now.mono_ms - worker.connected_ms, heard_ms=now.mono_ms - worker.heard_ms,
        leased=len(worker.leases), capacity=worker.capacity, loading=worker.loading,
        loading_ms=now.mono_ms - worker.loading_since_ms if worker.loading else 0,
        instances_leased={each.id: each.leased for each in worker.instances.values() if each.leased},
        hold=state.worker_holds.get(worker.name), trust=round(trust.trust_of(worker, now.mono_ms), 3),
        loads=swapcosts.loads(worker, now.mono_ms), lost_ms=swapcosts.lost_ms(worker, now.mono_ms),
        stopped=worker.stopped,
    )  # fmt: skip


def list_models(state: BrokerState, out: Out, session: Session, command: ListModels, now: Now) -> None:
    """Answer with all models of all connected endpoints, those that are ordered too, and what else they are called."""
    inform(state, out, session.peer, Models(
        request_id=command.request_id, models=all_models(state, now), aliases=aliases.listed(state),
        defaults=aliases.defaults(state),
    ))  # fmt: skip


def all_models(state: BrokerState, now: Now) -> list[ModelView]:
    """Return the models of all connected endpoints, and those that are ordered, by name."""
    found: dict[str, ModelView] = {}
    for worker in state.workers.values():
        if worker.peer is None:
            continue
        for entry in worker.capacity.catalog:
            view = found.get(entry.model) or ModelView(model=entry.model, kind=entry.kind)
            found[entry.model] = _with(view, on_disk_at=worker.name)
        for instance in worker.instances.values():
            view = found.get(instance.model) or ModelView(model=instance.model, kind=instance.kind)
            found[instance.model] = _with(
                view, loaded_on=worker.name, slots=instance.slots, leased=instance.leased
            )
    given: dict[str, list[Order]] = {}
    for order in state.orders.values():
        # A variant, or an instance by its number, is shown with its model.
        key = order.model if order.model in found else order.model.partition("@")[0]
        key = key if key in found else key.rpartition(":")[0] if models.is_numbered(key) else key
        found.setdefault(key, ModelView(model=key, kind=""))
        given.setdefault(key, []).append(orders.shown(state, order, now))
    return [
        msgspec.structs.replace(
            view, waiting=state.policy.waiting_for(view.model), aliases=_aliases_of(state, view.model),
            orders=given.get(view.model, []),
        )
        for _, view in sorted(found.items())
    ]  # fmt: skip


def _aliases_of(state: BrokerState, model: str) -> list[str]:
    """Return the aliases that stand for a model or a variant of it."""
    names = models.names_of(model)
    return [
        alias.name
        for alias in aliases.listed(state)
        if any(names & models.names_of(each) for each in alias.models)
    ]


def _with(
    view: ModelView, *, loaded_on: str = "", on_disk_at: str = "", slots: int = 0, leased: int = 0
) -> ModelView:
    """Return a model's view with one more place."""
    return ModelView(
        model=view.model, kind=view.kind, loaded_on=[*view.loaded_on, loaded_on] if loaded_on else view.loaded_on,
        on_disk_at=[*view.on_disk_at, on_disk_at] if on_disk_at else view.on_disk_at, slots=view.slots + slots,
        leased=view.leased + leased,
    )  # fmt: skip


def counts(state: BrokerState) -> dict[str, int]:
    """Return how many open jobs are in each state."""
    total = dict.fromkeys((str(each) for each in sorted(OPEN)), 0)
    for queue in state.queues.values():
        for each, count in queue.counts.items():
            total[each] += count
    return total


def health(state: BrokerState, out: Out, session: Session, command: Health, now: Now) -> None:
    """Answer with the broker's own facts."""
    host = state.host
    inform(state, out, session.peer, HealthReply(
        request_id=command.request_id, software=state.software, protocol=bounds.PROTOCOL_NEWEST,
        broker_id=state.broker_id, epoch=state.epoch, wall_ms=now.wall_ms, uptime_ms=now.mono_ms - state.started_ms,
        counts=counts(state), ended=dict(state.ended), refused=dict(state.refused),
        ended_last_min=ended_within(state, _MINUTE_S, now),
        stale_results=state.stale_results, cursor=state.last_seq, sessions=len(state.sessions),
        workers=sum(worker.peer is not None for worker in state.workers.values()), journal_path=host.journal_path,
        journal_bytes=host.journal_bytes, journal_free_bytes=host.journal_free_bytes,
        journal_floor_bytes=host.journal_floor_bytes, commit_p50_us=host.commit_p50_us,
        commit_p99_us=host.commit_p99_us, disk_trouble=state.disk.trouble, clock_trouble=state.clock_trouble,
        jobs_open=len(state.jobs), jobs_open_max=state.settings.jobs_open, memory_bytes=host.memory_bytes,
    ))  # fmt: skip


def backup(state: BrokerState, out: Out, session: Session, command: Backup) -> None:
    """Have the journal copied. The path is the broker's, whose working folder is nobody's business."""
    if not command.path.startswith("/") or len(command.path) > 4096 or not command.path.isprintable():
        error = BadField(
            "path", command.path, "an absolute path on the broker's machine, up to 4096 characters"
        )
        refuse(state, out, session.peer, command.request_id, error)
        return
    out.append(Read(CopyJournal(Context(session.peer, command), command.path), state.position))


def copied(state: BrokerState, out: Out, session: Session, command: Backup, answer: CopyReply) -> None:
    """Answer a backup."""
    if answer.error:
        refuse(state, out, session.peer, command.request_id, BackupFailed(command.path, answer.error))
        return
    done = BackupDone(request_id=command.request_id, path=command.path, copied_bytes=answer.copied_bytes)
    reply(state, out, session.peer, done)


# --- latest values ---------------------------------------------------------------------------------------------------


def publish_queues(state: BrokerState, out: Out, now: Now) -> None:
    """Put the sizes of queues that changed on their topics, at most four times a second each."""
    for name, queue in state.queues.items():
        if queue.changed and now.mono_ms - queue.published_ms >= _QUEUE_EVERY_MS:
            queue.changed = False
            queue.published_ms = now.mono_ms
            sizes = {str(each): count for each, count in queue.counts.items()}
            out.append(Publish(f"queue/{name}", QueueSize(name=name, counts=sizes)))


def publish_tick(state: BrokerState, out: Out, now: Now) -> None:
    """Put the tick of each second on its topic."""
    connected = sum(worker.peer is not None for worker in state.workers.values())
    tick = Tick(wall_ms=now.wall_ms, counts=counts(state), workers=connected, cursor=state.last_seq)
    out.append(Publish("tick", tick))

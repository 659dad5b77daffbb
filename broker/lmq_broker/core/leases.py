"""The life of a lease: granted, reported on, ended, stopped, lost, taken up again."""

import heapq

import msgspec

from lmq_broker.core import fields, jobs, models, readers, trust, usage, workers
from lmq_broker.core.chronicle import Out, channel, move, save, tell
from lmq_broker.core.effects import Publish, Send, SendWork
from lmq_broker.core.policies.base import NOTHING_SPENT, TAKEN_BACK, Fleet, Load, Spent, Start, Unload, WakeAt
from lmq_broker.core.settings import ENGINE_TASKS
from lmq_broker.core.state import BrokerState, Instance, Job, Lease, Session, Slot, Worker
from lmq_broker.core.stimuli import Now
from lmq_proto import bounds
from lmq_proto.codec import cut
from lmq_proto.errors import ErrorInfo
from lmq_proto.events import Kind
from lmq_proto.messages import (
    Acked,
    Ended,
    Group,
    Held,
    Lease as LeaseMessage,
    LeaseRef,
    Phases,
    Progress,
    Results,
    Stop,
    Work,
)
from lmq_proto.states import Phase, State

_WORK_LEASES = 64
"""Leases in one `work` message: enough to spread its cost, few enough for the worker to begin early."""
_STORY_ENTRIES = 20
_PROGRESS_EVERY_MS = 100
_HEAP_SLACK = 1000
"""Entries of ended leases that the heap of deadlines may hold before it is cleared of them."""


class Parcel(msgspec.Struct):
    """What one turn sends to a worker."""

    groups: list[Group]
    sizes: list[tuple[int, int]]
    """Number and payload bytes of each job."""
    held: bool = False
    """It waits until it is on disk: own tasks, and jobs with parents, whose ends are on disk then as well."""


# --- granted ---------------------------------------------------------------------------------------------------------


def fleet(state: BrokerState) -> Fleet:
    """Return what the policy may look at."""
    paused = {name: held for name, held in state.queue_holds.items() if held.kind == "pause"}
    return Fleet(
        state.workers, paused, state.worker_holds, state.fleet_version, aliases=state.aliases, orders=state.orders
    )  # fmt: skip


def dispatch(state: BrokerState, out: Out, now: Now) -> int | None:
    """Do what the policy says until it has nothing more to say; return when to ask again at the latest."""
    if state.stopping or state.disk.trouble:
        return None
    view = fleet(state)
    parcels: dict[str, Parcel] = {}
    wake_ms: int | None = None
    left = bounds.BATCH_JOBS
    while left > 0:
        decision = state.policy.decide(view, now)
        if isinstance(decision, Start):
            worker = decision.instance.worker
            slot = Slot(len(decision.group))
            decision.instance.leased += 1
            worker.busy += 1
            left -= slot.leases
            parcel = parcels.get(worker.name)
            if parcel is None:
                parcel = parcels[worker.name] = Parcel([], [])
            leases = []
            for job in decision.group:
                leases.append(_grant(state, out, job, decision.instance, slot, now))
                parcel.sizes.append((job.number, job.payload_bytes))
                if job.task_type not in ENGINE_TASKS or job.terms.parents:
                    parcel.held = True
            parcel.groups.append(Group(leases=leases))
        elif isinstance(decision, Load):
            workers.load(state, out, decision, now)
        elif isinstance(decision, Unload):
            workers.unload(state, out, decision, now)
        else:
            wake_ms = decision.mono_ms if isinstance(decision, WakeAt) else None
            break
    for name, parcel in parcels.items():
        _send_work(state, out, state.workers[name], parcel)
    return now.mono_ms if left <= 0 else wake_ms


def _grant(state: BrokerState, out: Out, job: Job, instance: Instance, slot: Slot, now: Now) -> LeaseMessage:
    """Lease a ready job to a slot of an instance."""
    worker = instance.worker
    move(state, job, State.LEASED)
    job.attempt += 1
    job.epoch = state.epoch
    job.worker = worker.name
    wanted = models.expanded(job.models, state.aliases)
    job.model = instance.model if instance.names else (wanted[0] if wanted else "")
    if not job.started_at_ms:
        job.started_at_ms = now.wall_ms
    save(state, out, job)
    timeout_ms = job.terms.timeout_ms
    deadline_ms = now.mono_ms + timeout_ms + state.settings.timeout_slack_ms if timeout_ms else 0
    lease = Lease(
        job=job, epoch=state.epoch, attempt=job.attempt, worker=worker.name, instance_id=instance.id,
        granted_ms=now.mono_ms, deadline_ms=deadline_ms, position=state.position, slot=slot,
    )  # fmt: skip
    job.lease = lease
    state.policy.started(lease, instance, now)
    state.eta.started(job, now)
    worker.leases[job.id, lease.epoch, lease.attempt] = lease
    worker.alone = job.past.suspect
    if deadline_ms:
        jobs.push(state, state.deadlines, deadline_ms, lease)
    tell(state, now, Kind.STARTED, job, worker=worker.name, model=job.model)
    return LeaseMessage(
        job_id=job.id, epoch=lease.epoch, attempt=lease.attempt, task_type=job.task_type,
        payload_bytes=job.payload_bytes, instance_id=instance.id, models=list(wanted[: bounds.MODELS]),
        timeout_ms=timeout_ms, failures=job.failures, failures_max=job.terms.failures_max, alone=job.past.suspect,
        user=job.user, labels=job.terms.labels, session=job.terms.session,
        prompt_tokens=job.prompt_tokens,
    )  # fmt: skip


def _send_work(state: BrokerState, out: Out, worker: Worker, parcel: Parcel) -> None:
    """Send leases to a worker in messages of bounded size."""
    assert worker.peer is not None
    after = state.position if parcel.held else worker.enlisted_position
    batch: list[Group] = []
    numbers: list[int] = []
    total_bytes = 0
    position = 0
    for group in parcel.groups:
        mine = parcel.sizes[position : position + len(group.leases)]
        position += len(group.leases)
        group_bytes = sum([size for _, size in mine])
        if batch and (len(numbers) >= _WORK_LEASES or total_bytes + group_bytes > bounds.BODY_BYTES // 2):
            out.append(SendWork(worker.peer, Work(groups=batch), numbers, after))
            batch, numbers, total_bytes = [], [], 0
        batch.append(group)
        numbers.extend([number for number, _ in mine])
        total_bytes += group_bytes
    out.append(SendWork(worker.peer, Work(groups=batch), numbers, after))


# --- reported on -----------------------------------------------------------------------------------------------------


def phases(state: BrokerState, out: Out, session: Session, command: Phases, now: Now) -> None:
    """Take in latest values of progress and pass them on, at most ten a second a job."""
    for report in command.leases:
        job = state.jobs.get(report.job_id)
        lease = job.lease if job is not None else None
        if job is None or lease is None or lease.attempt != report.attempt or lease.worker != session.worker:
            continue
        changed = lease.phase != report.phase
        lease.phase = report.phase if report.phase in Phase.__members__.values() else lease.phase
        if (lease.phase == Phase.PARKED) is (lease.parked_since_ms is None):
            _lend_or_take_back(state, state.workers[lease.worker], lease, now)
        known = report.progress == report.progress  # NaN is not itself
        lease.progress = min(max(report.progress, 0.0), 1.0) if known else 0.0
        lease.stage = report.stage[: bounds.REASON_CHARS]
        lease.log = report.log[: bounds.REASON_CHARS]
        tokens = fields.put_within(report.tokens, bounds.TOKENS)
        if tokens > lease.tokens:
            lease.tokens = tokens
            state.policy.served(lease, tokens)
        is_number = 0.0 <= report.tokens_per_s <= bounds.TOKENS  # nor NaN
        lease.tokens_per_s = report.tokens_per_s if is_number else 0.0
        if changed or now.mono_ms - lease.published_ms >= _PROGRESS_EVERY_MS:
            lease.published_ms = now.mono_ms
            publish_progress(state, out, job)


def _lend_or_take_back(state: BrokerState, worker: Worker, lease: Lease, now: Now) -> None:
    """Lend the slot of a task that waits for its own jobs, which may need it; or take it back, whoever is in it."""
    if lease.job.task_type in ENGINE_TASKS or lease.stopping:
        return
    if lease.parked_since_ms is None:
        lease.parked_since_ms = now.mono_ms
        _free_slot(worker, lease)
        state.policy.lend(lease)
        return
    _count_again(state, lease, lease.parked_since_ms, now)
    lease.slot.leases += 1
    worker.busy += 1
    instance = worker.instances.get(lease.instance_id)
    if instance is not None:
        instance.leased += 1


def _count_again(state: BrokerState, lease: Lease, since_ms: int, now: Now) -> None:
    """What a lease counts against is its own again; its slot is not yet."""
    lease.parked_ms += now.mono_ms - since_ms
    lease.parked_since_ms = None
    state.policy.take_back(lease)


def _free_slot(worker: Worker, lease: Lease) -> None:
    """A lease leaves its slot, which is free if no other of its group is in it."""
    lease.slot.leases -= 1
    if not lease.slot.leases:
        worker.busy -= 1
        instance = worker.instances.get(lease.instance_id)
        if instance is not None:
            instance.leased -= 1


def publish_progress(state: BrokerState, out: Out, job: Job, ahead: int | None = None) -> None:
    """Put where a job is on its channel; of one that waits, how many are ahead of it."""
    lease = job.lease
    if lease is None:
        message = Progress(state=job.state, attempt=job.attempt, ahead=ahead)
    else:
        message = Progress(
            state=job.state, phase=lease.phase, progress=lease.progress, stage=lease.stage, tokens=lease.tokens,
            tokens_per_s=lease.tokens_per_s, attempt=lease.attempt,
        )  # fmt: skip
    out.append(Publish("job/" + channel(state, job.id).hex(), message))


# --- ended -----------------------------------------------------------------------------------------------------------


def results(
    state: BrokerState, out: Out, session: Session, worker: Worker, command: Results, body: bytes, now: Now
) -> None:
    """Take in the ends of leases; each is acknowledged when it is on disk, late ones of lost leases too."""
    parts = cut(body, [ended.result_bytes for ended in command.ended])
    acks = state.acks.setdefault(session.peer, [])
    for ended, result in zip(command.ended, parts, strict=True):
        key = (ended.job_id, ended.epoch, ended.attempt)
        lease = worker.leases.get(key)
        if lease is None:
            state.stale_results += 1
        else:
            _end_lease(state, out, worker, lease, ended, result, now)
        acks.append(key)


def send_acks(state: BrokerState, out: Out) -> None:
    """Acknowledge what this turn took in, once it is durable."""
    for peer, keys in state.acks.items():
        refs = [LeaseRef(job_id=job_id, epoch=epoch, attempt=attempt) for job_id, epoch, attempt in keys]
        for start in range(0, len(refs), bounds.BATCH_JOBS):
            out.append(
                Send(peer, Acked(leases=refs[start : start + bounds.BATCH_JOBS]), after=state.position)
            )
    state.acks.clear()


def _end_lease(
    state: BrokerState, out: Out, worker: Worker, lease: Lease, ended: Ended, result: bytes, now: Now
) -> None:
    """Move the job as its worker says that the attempt went."""
    job = lease.job
    innocent = lease.uncharged or (not lease.stopping and ended.outcome in ("release", "stopped", "crash"))
    spent = Spent(
        min(max(ended.prompt_tokens, 0), bounds.TOKENS), min(max(ended.output_tokens, 0), bounds.TOKENS),
        min(max(ended.engine_ms, 0), bounds.DURATION_MS), ended.outcome == "complete", innocent,
    )  # fmt: skip
    if ended.outcome == "crash":
        trust.crashed(worker, lease.instance_id, now)
    close(state, worker, lease, now, spent)
    usage.lease_ended(state, lease, ended.model[: bounds.NAME_CHARS], spent, now)
    if lease.stopping:
        is_latest = (job.epoch, job.attempt) == (lease.epoch, lease.attempt)
        if is_latest and job.lease is None and state.jobs.get(job.id) is job:
            # No worker that comes back may take this attempt up: it is over.
            job.epoch = 0
            save(state, out, job)
        return
    if ended.model:
        job.model = ended.model[: bounds.NAME_CHARS]
    if ended.outcome == "complete":
        job.prompt_tokens = spent.prompt_tokens or job.prompt_tokens
        job.output_tokens = spent.output_tokens or job.output_tokens
        if len(result) <= state.settings.payload_bytes:
            jobs.end(state, out, job, State.DONE, now, result=result)
            return
        text = f"result of {len(result)} bytes, limit {state.settings.payload_bytes}"
        fail(state, out, job, ErrorInfo("result_too_large", text), now, permanent=True)
        return
    wait_ms = fields.put_within(ended.retry_after_ms, bounds.DURATION_MS)
    # No worker that comes back may take this attempt up: it is over.
    job.epoch = 0
    error = fields.put_error_within(
        ended.error or ErrorInfo(ended.outcome, f"the worker gave no reason ({ended.outcome})")
    )
    if error.code == "prompt_longer" and ended.outcome == "release":
        # It is charged, and weighed, by what it is.
        job.prompt_tokens = max(job.prompt_tokens, spent.prompt_tokens)
    if ended.outcome in ("release", "stopped"):
        release(state, out, job, error, now, wait_ms=wait_ms, alone=error.code == "kv_overflow")
    elif ended.outcome == "crash" and ended.shared:
        release(state, out, job, error, now, alone=True)
    elif ended.outcome == "crash":
        strike(state, out, job, error, now)
    else:
        fail(state, out, job, error, now, permanent=ended.permanent, wait_ms=wait_ms)


def close(
    state: BrokerState, worker: Worker | None, lease: Lease, now: Now, spent: Spent = NOTHING_SPENT
) -> None:
    """End a lease: free its slot and cut the ring between job and lease."""
    job = lease.job
    key = (job.id, lease.epoch, lease.attempt)
    if worker is not None and worker.leases.pop(key, None) is not None:
        if lease.parked_since_ms is None:
            _free_slot(worker, lease)
        worker.alone = worker.alone and bool(worker.leases)
    state.orphans.pop(key, None)
    if lease.parked_since_ms is not None:
        _count_again(state, lease, lease.parked_since_ms, now)
    state.policy.ended(lease, spent, now)
    state.eta.closed(lease, spent, now)


def fail(
    state: BrokerState,
    out: Out,
    job: Job,
    error: ErrorInfo,
    now: Now,
    *,
    permanent: bool = False,
    wait_ms: int = 0,
) -> None:
    """Charge a failure: another attempt after a backoff, or dead."""
    job.failures += 1
    job.past = jobs.changed_past(
        job.past, story=(*job.past.story, _told(job, error))[-_STORY_ENTRIES:], releases=0
    )
    is_last = permanent or job.failures >= job.terms.failures_max
    tell(state, now, Kind.ATTEMPT_FAILED, job, worker=job.worker, model=job.model, detail={
        "code": error.code, "error": error.message, "failures": job.failures, "failures_max": job.terms.failures_max,
        "again": not is_last,
    })  # fmt: skip
    if is_last:
        jobs.end(state, out, job, State.DEAD, now, error=error)
        return
    settings = state.settings
    ceiling = min(settings.backoff_cap_ms, settings.backoff_base_ms << min(job.failures - 1, 20))
    backoff_ms = max(int(ceiling * state.random.random()), wait_ms, 1)
    _leave_worker(state, out, job)
    move(state, job, State.DELAYED)
    job.order = jobs.next_order(state)
    job.past = jobs.changed_past(job.past, backoff_ms=backoff_ms)
    jobs.delay(state, job, backoff_ms, now)
    save(state, out, job)


def _told(job: Job, error: ErrorInfo) -> ErrorInfo:
    """Return an error as the story of a job tells it: with the attempt."""
    return ErrorInfo(error.code, error.message, error.retryable, error.fields | {"attempt": job.attempt})


def strike(state: BrokerState, out: Out, job: Job, error: ErrorInfo, now: Now) -> None:
    """The engine or worker died under this job alone: it runs alone from now on; the second time it is dead."""
    strikes = job.past.strikes + 1
    if strikes >= state.settings.strikes:
        job.past = jobs.changed_past(job.past, strikes=strikes, suspect=True)
        fail(state, out, job, error, now, permanent=True)
        return
    story = (*job.past.story, _told(job, error))[-_STORY_ENTRIES:]
    job.past = jobs.changed_past(job.past, strikes=strikes, story=story)
    release(state, out, job, error, now, alone=True)


def release(
    state: BrokerState,
    out: Out,
    job: Job,
    error: ErrorInfo,
    now: Now,
    *,
    wait_ms: int = 0,
    alone: bool = False,
) -> None:
    """The attempt ended through no fault of the job: ready again where it was, uncharged."""
    releases = job.past.releases + 1
    job.past = jobs.changed_past(job.past, releases=releases, suspect=job.past.suspect or alone)
    tell(state, now, Kind.RELEASED, job, worker=job.worker, model=job.model,
         detail={"code": error.code, "error": error.message, "suspect": job.past.suspect})  # fmt: skip
    _leave_worker(state, out, job)
    over = releases - state.settings.releases_free
    if over > 0:
        wait_ms = max(wait_ms, min(state.settings.release_backoff_cap_ms, 1000 << min(over - 1, 10)))
    if wait_ms:
        move(state, job, State.DELAYED)
        job.past = jobs.changed_past(job.past, backoff_ms=wait_ms)
        jobs.delay(state, job, wait_ms, now)
        save(state, out, job)
    else:
        jobs.make_ready(state, out, job, now)


def _leave_worker(state: BrokerState, out: Out, job: Job) -> None:
    """Put the text of the attempt on disk and forget the lease."""
    readers.store_text(state, out, job)
    job.lease = None


# --- stopped, lost, taken up -----------------------------------------------------------------------------------------


def stop(state: BrokerState, out: Out, lease: Lease, reason: str, now: Now) -> None:
    """Tell the worker to end a lease that is over; the slot stays taken until it says so."""
    lease.stopping = True
    lease.phase = Phase.STOPPING
    lease.job.lease = None
    lease.text = None
    worker = state.workers.get(lease.worker)
    if worker is None or (lease.job.id, lease.epoch, lease.attempt) not in worker.leases:
        close(state, worker, lease, now)
    elif worker.peer is not None:
        refs = [LeaseRef(job_id=lease.job.id, epoch=lease.epoch, attempt=lease.attempt)]
        out.append(Send(worker.peer, Stop(leases=refs, reason=reason), after=state.position))


def end_overdue(state: BrokerState, out: Out, now: Now) -> None:
    """End attempts that are over their time and whose worker has not said so itself."""
    leased = sum(len(worker.leases) for worker in state.workers.values())
    if len(state.deadlines) > 4 * leased + _HEAP_SLACK:
        state.deadlines = [entry for entry in state.deadlines if entry[2].job.lease is entry[2]]
        heapq.heapify(state.deadlines)
    while state.deadlines and state.deadlines[0][0] <= now.mono_ms:
        _, _, lease = heapq.heappop(state.deadlines)
        job = lease.job
        if job.lease is lease and not lease.stopping:
            seconds = job.terms.timeout_ms / 1000
            error = ErrorInfo("attempt_timeout", f"no end after {seconds:g} s", True, {"timeout_s": seconds})
            fail(state, out, job, error, now)
            stop(state, out, lease, "timeout", now)


def lose_all(
    state: BrokerState, out: Out, worker: Worker, now: Now, error: ErrorInfo, *, crashed: bool
) -> None:
    """Pass on every lease of a worker that is gone.

    If it crashed, what ran together is suspect and uncharged; what ran alone takes a strike.
    What was being stopped still ran.
    """
    leases = list(worker.leases.values())
    for lease in leases:
        close(
            state, worker, lease, now, TAKEN_BACK if lease.uncharged or not lease.stopping else NOTHING_SPENT
        )
    for lease in leases:
        if lease.stopping:
            continue
        if crashed and len(leases) == 1:
            strike(state, out, lease.job, error, now)
        else:
            release(state, out, lease.job, error, now, alone=crashed)


def give_back(state: BrokerState, out: Out, lease: Lease, reason: str, now: Now) -> None:
    """Take a running lease away from its worker, uncharged (a pause with `now`)."""
    lease.uncharged = True
    release(state, out, lease.job, ErrorInfo("taken_back", reason), now)
    stop(state, out, lease, reason, now)


def take_up(state: BrokerState, out: Out, worker: Worker, held: Held, now: Now) -> bool:
    """Give a lease back to a worker that still holds it; False if it has passed on."""
    key = (held.job_id, held.epoch, held.attempt)
    lease = worker.leases.get(key)
    if lease is not None:
        return not lease.stopping
    lease = state.orphans.get(key)
    if lease is not None:
        if lease.worker != worker.name:
            return False
        del state.orphans[key]
        lease.instance_id = held.instance_id
        worker.leases[key] = lease
        return True
    job = state.jobs.get(key[0])
    if job is None or job.state is not State.READY or (job.epoch, job.attempt) != key[1:]:
        return False
    if not job.attempt or job.worker != worker.name:
        return False
    state.policy.withdrawn(job)
    move(state, job, State.LEASED)
    if job.past.strikes:
        # It was struck because its worker was taken for dead; the worker lives, so nobody knows of any crash.
        job.past = jobs.changed_past(job.past, strikes=job.past.strikes - 1)
    save(state, out, job)
    lease = Lease(
        job=job, epoch=key[1], attempt=key[2], worker=worker.name, instance_id=held.instance_id,
        granted_ms=now.mono_ms, deadline_ms=0, position=state.position, text=readers.log_of(job),
    )  # fmt: skip
    job.lease = lease
    state.policy.resumed(lease)
    worker.leases[key] = lease
    return True


def end_recovery(state: BrokerState, out: Out, now: Now, worker: str | None = None) -> None:
    """Pass on the leases that no worker took up after a restart: all of them, or those of one worker that is back."""
    error = ErrorInfo(
        "lease_lost", "the broker restarted and the worker did not take up the job", retryable=True
    )
    for key, lease in list(state.orphans.items()):
        if worker is None or lease.worker == worker:
            del state.orphans[key]
            state.policy.ended(lease, TAKEN_BACK, now)
            release(state, out, lease.job, error, now)

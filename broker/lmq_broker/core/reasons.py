"""Why a job waits, in a sentence and in structure, and what its owner can type."""

from lmq_broker.core import aliases, models, orders, views
from lmq_broker.core.chronicle import Out, refuse, reply
from lmq_broker.core.effects import Read
from lmq_broker.core.reads import Context, JobsReply, ReadJobs
from lmq_broker.core.state import BrokerState, Job, Session, Worker
from lmq_broker.core.stimuli import Now
from lmq_proto import bounds
from lmq_proto.errors import Field, NotFound
from lmq_proto.ids import SHORT_CHARS, short, to_text
from lmq_proto.messages import Hold, JobView, Reason, Why, WhyReply
from lmq_proto.states import State

_NAMED_PARENTS = 5
"""That a sentence names; all are in its fields."""


def why(state: BrokerState, out: Out, session: Session, command: Why, now: Now) -> None:
    """Answer why a job waits or what it does; of one that has ended, from the journal."""
    job = state.jobs.get(command.job_id)
    if job is None and command.job_id in state.finished:
        out.append(
            Read(
                ReadJobs(Context(session.peer, command), [command.job_id], [state.finished[command.job_id]]),
                state.position,
            )
        )
        return
    if job is None or not views.may_see(session, job.user):
        refuse(state, out, session.peer, command.request_id, NotFound("job", short(command.job_id)))
        return
    view = views.of_job(state, job)
    reasons, hints = _why_open(state, job, view, now)
    reply(
        state,
        out,
        session.peer,
        WhyReply(request_id=command.request_id, job=view, reasons=reasons, hints=hints),
    )


def why_loaded(state: BrokerState, out: Out, session: Session, command: Why, answer: JobsReply) -> None:
    """Answer why about a job that has ended."""
    if not answer.jobs or not views.may_see(session, answer.jobs[0].user):
        refuse(state, out, session.peer, command.request_id, NotFound("job", short(command.job_id)))
        return
    view = views.of_stored(state, answer.jobs[0])
    reasons = [Reason(code=view.state, text=f"it is {view.state}")]
    hints = []
    if view.error is not None:
        text = (
            f"it is {view.error.message}"
            if "by" in view.error.fields
            else f"it is {view.state}: {view.error.message}"
        )
        reasons = [Reason(code=view.state, text=text, fields={"code": view.error.code})]
    reasons += [
        Reason(code="attempt_failed", text=f"attempt {entry.fields.get('attempt', '?')}: {entry.message}")
        for entry in view.story
    ]
    if view.error is not None and view.error.code == "parent_ended":
        hints.append(f"lmq retry {str(view.error.fields['parent'])[-SHORT_CHARS:]}")
    if view.state in (State.DEAD, State.CANCELLED, State.EXPIRED):
        hints.append(f"lmq retry {short(view.id)}")
    elif view.state == State.DONE:
        hints.append(f"lmq result {short(view.id)}")
    reply(
        state,
        out,
        session.peer,
        WhyReply(request_id=command.request_id, job=view, reasons=reasons, hints=hints),
    )


def _why_open(state: BrokerState, job: Job, view: JobView, now: Now) -> tuple[list[Reason], list[str]]:
    """Return the reasons that hold for an open job, the weightiest first, and what its owner can type."""
    name = short(job.id)
    if job.state is State.LEASED and job.lease is not None:
        since = _in_words(now.mono_ms - job.lease.granted_ms)
        what = f"it runs on {job.worker} for {since} ({job.lease.phase})"
        return [Reason(code="running", text=what, fields={"worker": job.worker, "phase": job.lease.phase})], [
            f"lmq stream {name}", f"lmq cancel {name}"]  # fmt: skip
    hints = [f"lmq cancel {name}"]
    if job.state is State.DELAYED:
        return [_why_delayed(job, now)], hints
    if job.state is State.BLOCKED:
        return [_why_blocked(state, view)], [f"lmq why {short(each)}" for each in view.waits_for[:1]] + hints
    reasons = []
    hold = state.queue_holds.get(job.queue)
    if hold is not None and hold.kind == "pause":
        reasons.append(Reason(code="queue_paused", text=f"queue {job.queue} is paused{_held(hold, now)}",
                              fields={"queue": job.queue, "by": hold.by, "until_ms": hold.until_ms}))  # fmt: skip
        hints.insert(0, f"lmq queues resume {job.queue}")
    reasons += _why_no_place(state, job, hints, now)
    if view.ahead:
        plural = "job is" if view.ahead == 1 else "jobs are"
        reasons.append(
            Reason(code="ahead", text=f"{view.ahead} {plural} ahead of it", fields={"ahead": view.ahead})
        )
        if job.priority < bounds.PRIORITY_MAX:
            hints.insert(0, f"lmq update {name} --priority {min(job.priority + 3, bounds.PRIORITY_MAX)}")
    if view.own_priority is not None:
        text = f"a job that waits for it lifts it from priority {view.own_priority} to {job.priority}"
        reasons.append(Reason(code="lifted", text=text,
                              fields={"priority": job.priority, "own_priority": view.own_priority}))  # fmt: skip
    if not reasons:
        reasons.append(Reason(code="next", text="it is next: the first slot that falls free is its own"))
    return reasons, hints


def _why_delayed(job: Job, now: Now) -> Reason:
    """Return why a delayed job waits."""
    if job.backoff_until_ms:
        seconds = max(0, job.backoff_until_ms - now.mono_ms) / 1000
        cause = f" ({job.past.story[-1].message})" if job.past.story else ""
        text = f"attempt {job.attempt} did not succeed{cause}; the next one comes in {_in_words(int(seconds * 1000))}"
        return Reason(code="backoff", text=text, fields={"seconds": seconds, "failures": job.failures})
    seconds = max(0, job.due_at_ms - now.wall_ms) / 1000
    return Reason(
        code="delayed",
        text=f"its submitter wants it to start in {_in_words(int(seconds * 1000))}",
        fields={"seconds": seconds},
    )


def _why_blocked(state: BrokerState, view: JobView) -> Reason:
    """Return which jobs a blocked one waits for."""
    open_jobs = {parent: state.jobs.get(parent) for parent in view.waits_for}
    states = [str(state.settling[id_] if job is None else job.state) for id_, job in open_jobs.items()]
    named = [
        f"{short(id_)} ({'running' if each == State.LEASED else each})"
        for id_, each in zip(open_jobs, states, strict=True)
    ]
    more = len(named) - _NAMED_PARENTS
    told = ", ".join(named[:_NAMED_PARENTS]) + (f" and {more} more" if more > 0 else "")
    count = "1 job" if len(named) == 1 else f"{len(named)} jobs"
    ids = [to_text(id_) for id_ in open_jobs]
    text = f"it waits for {count}: {told}" if named else "its parents are done: it is ready in a moment"
    return Reason(code="parents", text=text, fields={"jobs": ids, "states": states})


def _in_words(ms: int) -> str:
    """Return a time as people say it: `40 s`, `3 min`, `2 h 5 min`."""
    minutes, seconds = divmod(max(0, ms) // 1000, 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min" if minutes else f"{hours} h"
    return f"{minutes} min" if minutes else f"{seconds} s"


def _held(hold: Hold, now: Now) -> str:
    """Return by whom, why and for how long something is held, as the end of a sentence."""
    text = f" by {hold.by}"
    if hold.until_ms:
        text += f" for another {_in_words(hold.until_ms - now.wall_ms)}"
    return text + (f" ({hold.reason})" if hold.reason else "")


def _why_no_place(state: BrokerState, job: Job, hints: list[str], now: Now) -> list[Reason]:
    """Return what keeps each worker that could run a job from doing so; nothing if one only is busy."""
    connected = [worker for worker in state.workers.values() if worker.peer is not None]
    if not connected:
        hints.insert(0, "lmq worker --endpoint http://localhost:1234")
        return [Reason(code="no_worker", text="no worker is connected")]
    serving = [
        worker for worker in connected
        if job.task_type in worker.task_types and (not worker.queues or job.queue in worker.queues)
    ]  # fmt: skip
    if not serving:
        taken = sorted({each for worker in connected for each in worker.task_types})
        text = f"no worker takes {job.task_type} jobs of queue {job.queue}"
        if job.task_type not in taken:
            text += f"; they take {', '.join(taken)}"
        hints.insert(0, "lmq workers list")
        return [
            Reason(
                code="no_worker_for_queue", text=text, fields={"queue": job.queue, "task_type": job.task_type}
            )
        ]
    names = frozenset(models.normal(model) for model in models.expanded(job.models, state.aliases))
    reasons: list[Reason] = []
    for worker in serving:
        told = _why_not_here(state, worker, job, names, hints, now)
        if told is None:
            return []
        reasons += told
    if not reasons:
        reasons = _why_no_model(state, job, hints)
    return reasons


def _why_not_here(
    state: BrokerState, worker: Worker, job: Job, names: frozenset[str], hints: list[str], now: Now
) -> list[Reason] | None:
    """Return what keeps a worker that serves a job's queue from running it; None if nothing but other jobs does."""
    hold = state.worker_holds.get(worker.name)
    breaker = worker.capacity.breaker
    ever = names_known(state, worker)
    if names and names.isdisjoint(ever) and models.ANY not in ever:
        return []
    if hold is not None:
        hints.append(f"lmq workers resume {worker.name}")
        text = f"{worker.name} is {'draining' if hold.kind == 'drain' else 'paused'}{_held(hold, now)}"
        return [Reason(code="worker_paused", text=text, fields={"worker": worker.name, "by": hold.by})]
    if breaker is not None:
        since_s = max(0, now.wall_ms - breaker.since_ms) // 1000
        text = f"the endpoint of {worker.name} fails since {since_s} s: {breaker.reason}"
        return [Reason(code="breaker_open", text=text, fields={"worker": worker.name, "since_s": since_s})]
    named = [
        instance
        for instance in worker.instances.values()
        if not names or not instance.names or names & instance.names
    ]
    fitting = [instance for instance in named if models.suits(instance.kind, job.task_type)]
    if fitting:
        unload = orders.unloading(state, worker, fitting)
        if unload is None:
            return None
        text = f"{worker.name} unloads {unload.model}, as {unload.by} ordered"
        facts: dict[str, Field] = {"worker": worker.name, "model": unload.model, "by": unload.by}
        return [Reason(code="unloading", text=text, fields=facts)]
    if worker.loading:
        text = f"{worker.name} is loading {worker.loading}"
        return [Reason(code="loading", text=text, fields={"worker": worker.name, "model": worker.loading})]
    if named:
        able = "vectors" if named[0].kind == "embedding" else "text"
        text = f"{named[0].model} on {worker.name} makes {able} only, and this is a {job.task_type}"
        return [Reason(code="wrong_kind", text=text, fields={"worker": worker.name, "model": named[0].model})]
    return _why_not_loaded(state, worker, names, now)


def names_known(state: BrokerState, worker: Worker) -> frozenset[str]:
    """Return every name that a model a worker ever announced answers to."""
    known = state.known_models.get(worker.name, [])
    return frozenset(name for model in known for name in (models.names_of(model) | {model}))


def _why_no_model(state: BrokerState, job: Job, hints: list[str]) -> list[Reason]:
    """Return that no connected endpoint has a model, and which are near."""
    if not job.models:
        return [
            Reason(code="no_model", text=f"no connected endpoint has a model loaded for {job.task_type} jobs")
        ]
    near = [
        name for name in models.nearest(job.models[0], aliases.all_known(state)) if name not in job.models
    ]
    stands_for = state.aliases.get(models.normal(job.models[0]), ())
    called = f" ({' or '.join(stands_for)})" if stands_for else ""
    text = f"no connected endpoint has {job.models[0]}{called}" + (
        f"; nearest: {', '.join(near)}" if near else ""
    )
    hints.extend(f"lmq update {short(job.id)} --model {each}" for each in near[:1])
    return [Reason(code="no_model", text=text, fields={"model": job.models[0], "nearest": near})]


def _why_not_loaded(state: BrokerState, worker: Worker, names: frozenset[str], now: Now) -> list[Reason]:
    """Return why a worker that has a model on disk has not loaded it."""
    entry = next((each for each in worker.capacity.catalog if names & models.catalog_names(each)), None)
    if entry is None:
        return []
    again_ms = worker.refused_loads.get(entry.model, 0)
    if not worker.capacity.may_load:
        text = f"{worker.name} has {entry.model} on disk but may not load models"
    elif again_ms > now.mono_ms:
        text = f"{worker.name} could not load {entry.model}; it is tried again in {(again_ms - now.mono_ms) // 1000} s"
    elif (pin := orders.in_the_way(state, worker)) is not None:
        until = f" for another {_in_words(pin.until_ms - now.wall_ms)}" if pin.until_ms else ""
        text = f"{worker.name} keeps {pin.model}, which {pin.by} pinned there{until}, and has no room for {entry.model}"
        fields: dict[str, Field] = {
            "worker": worker.name,
            "model": entry.model,
            "pinned": pin.model,
            "by": pin.by,
        }
        return [Reason(code="pinned", text=text, fields=fields)]
    else:
        busy = len(worker.leases)
        text = f"{worker.name} finishes {busy} job{'s' if busy != 1 else ''}, then loads {entry.model}"
    return [Reason(code="not_loaded", text=text, fields={"worker": worker.name, "model": entry.model})]

"""Why a job waits, in a sentence and in structure, and what its owner can type."""

import shlex
from collections.abc import Collection

from lmq_broker.core import leases, limiting, views
from lmq_broker.core.briefly import WORDS
from lmq_broker.core.chronicle import Out, refuse, reply
from lmq_broker.core.effects import Read
from lmq_broker.core.hindrances import hindrances
from lmq_broker.core.limits import RATES
from lmq_broker.core.reads import Context, JobsReply, ReadJobs
from lmq_broker.core.rights import SEES_ALL
from lmq_broker.core.state import BrokerState, Identity, Job, Session
from lmq_broker.core.stimuli import Now
from lmq_broker.core.words import counted, how_long, in_words
from lmq_proto import bounds
from lmq_proto.errors import Field, NotFound
from lmq_proto.ids import SHORT_CHARS, short, to_text
from lmq_proto.messages import JobView, Reason, Why, WhyReply
from lmq_proto.states import Phase, State

_LEAD_MS = 2000
"""Less engine time than this is not told: everybody has had a little more than somebody."""
_SOON_MS = 1000
"""A rate that has room so soon holds nothing back."""
_NAMED_PARENTS = 5
"""That a sentence names; all are in its fields."""
_ALONE = Reason(code="alone", text="an engine died under it: it runs alone, once a worker falls idle")


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
    view = views.of_job(state, job, now)
    reasons, hints = _why_open(state, job, view, session.who, now)
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


def _why_open(
    state: BrokerState, job: Job, view: JobView, who: Identity, now: Now
) -> tuple[list[Reason], list[str]]:
    """Return the reasons that hold for an open job, the weightiest first, and what its owner can type."""
    name = short(job.id)
    cancel = f"lmq cancel {name}"
    if job.state is State.LEASED and job.lease is not None:
        since = in_words(now.mono_ms - job.lease.granted_ms)
        does = (
            "waits for jobs of its own, its slot lent" if job.lease.phase == Phase.PARKED else job.lease.phase
        )
        what = f"it runs on {job.worker} for {since} ({does})"
        running = Reason(code="running", text=what, fields={"worker": job.worker, "phase": job.lease.phase})
        return [running], [f"lmq stream {name}", cancel]
    if job.state is State.DELAYED:
        return [_why_delayed(job, now)], [cancel]
    if job.state is State.BLOCKED:
        return [_why_blocked(state, view)], [f"lmq why {short(each)}" for each in view.waits_for[:1]] + [
            cancel
        ]
    reasons, hints = _why_held(state, job, view.ahead or 0, now)
    told = hindrances(state, job, now)
    hints += told.hints
    reasons += [] if told.is_able else told.reasons
    hints += [_lifting(state, each) for each in reasons if each.code == "limit"]
    if view.ahead:
        reasons += _why_behind(state, job, view.ahead, who)
        if job.priority < bounds.PRIORITY_MAX and not any(_is_in_the_way(each) for each in reasons):
            sooner = f"lmq update {name} --priority {min(job.priority + 3, bounds.PRIORITY_MAX)}"
            hints.insert(0 if reasons[0].code == "ahead" else len(hints), sooner)
    if view.own_priority is not None:
        text = f"a job that waits for it lifts it from priority {view.own_priority} to {job.priority}"
        fields: dict[str, Field] = {"priority": job.priority, "own_priority": view.own_priority}
        reasons.append(Reason(code="lifted", text=text, fields=fields))
    if job.past.suspect:
        reasons.append(_ALONE)
    if not reasons:
        reasons.append(Reason(code="next", text="it is next: the first slot that falls free is its own"))
    reasons += told.reasons if told.is_able else []
    return reasons, [*hints, cancel]


def _why_held(state: BrokerState, job: Job, ahead: int, now: Now) -> tuple[list[Reason], list[str]]:
    """Return what holds a ready job that has nothing to do with workers or other jobs, and what to type."""
    reasons = []
    hints = []
    if state.disk.trouble:
        text = "the broker's disk takes no more: nothing is started"
        reasons.append(Reason(code="disk", text=text, fields={"free_bytes": state.disk.free_bytes}))
        hints.append("lmq doctor")
    hold = state.queue_holds.get(job.queue)
    if hold is not None and hold.kind == "pause":
        text = f"queue {job.queue} is paused by {hold.by}{how_long(hold, now)}"
        reasons.append(Reason(code="queue_paused", text=text,
                              fields={"queue": job.queue, "by": hold.by, "until_ms": hold.until_ms}))  # fmt: skip
        hints.append(f"lmq queues resume {job.queue}")
    if job.terms.uses:
        taken = state.policy.parts(leases.fleet(state), now).taken
        used = [_why_in_use(state, name, taken) for name in job.terms.uses]
        reasons += [each for each in used if each is not None]
    limited = _why_limited(state, job, ahead, now)
    if limited is not None:
        reasons.append(limited)
    return reasons, hints


def _why_in_use(state: BrokerState, name: str, taken: Collection[str]) -> Reason | None:
    """Return why a resource that a task uses is not free; None: it is."""
    worker = state.workers.get(name)
    if name in taken or state.limits.resource(name) < 1:
        text = f"other tasks have {name}, which it uses"
    elif worker is not None and (worker.busy or worker.loading):
        does = f"runs {counted(worker.busy, 'job')}" if worker.busy else f"is busy with {worker.loading}"
        text = f"it uses {name}, which {does} and has to fall idle first"
    else:
        return None
    fields = {"resource": name, "worker": name if worker is not None else ""}
    return Reason(code="resource", text=text, fields=dict(fields))


def _is_in_the_way(reason: Reason) -> bool:
    """Tell whether a reason holds whatever comes first: another priority helps nothing."""
    return reason.code in WORDS or reason.code in ("disk", "queue_paused")


def _lifting(state: BrokerState, reason: Reason) -> str:
    """Return what to type to lift a limit: what a command has set is reset, the rest is shown."""
    name = str(reason.fields["limit"])
    if name in state.limits.by_command:
        return f"lmq limits reset {shlex.quote(name)}"
    return "lmq limits"


def _why_limited(state: BrokerState, job: Job, ahead: int, now: Now) -> Reason | None:
    """Return which limit holds a job back, now or once its turn in the line has come: the one that does so longest."""
    buckets = list(state.limits.taken_by(job.user, job.queue, job.task_type))
    if not buckets:
        return None
    crowd = state.eta.crowd(state, job)
    found: Reason | None = None
    longest_ms = 0.0
    for bucket in buckets:
        if bucket.limit.of in RATES:
            before = crowd.own_before(job) if bucket.subject else ahead
            wait_ms = bucket.room_in_ms(now.mono_ms, before)
            holds = wait_ms >= _SOON_MS
        else:
            before = 0
            wait_ms = 0.0
            holds = bucket.used >= bucket.limit.value
        if holds and (found is None or wait_ms > longest_ms):
            text, details = limiting.sentence_of(bucket, now, before)
            found, longest_ms = Reason(code="limit", text=text, fields=details), wait_ms
    return found


def _why_behind(state: BrokerState, job: Job, ahead: int, who: Identity) -> list[Reason]:
    """Return why others come first: how many, how many of them of a stricter band, and who has had less."""
    plural = "job is" if ahead == 1 else "jobs are"
    reasons = [Reason(code="ahead", text=f"{ahead:,} {plural} ahead of it", fields={"ahead": ahead})]
    crowd = state.eta.crowd(state, job)
    if crowd.stricter:
        comes = "comes" if crowd.stricter == 1 else "come"
        text = f"{counted(crowd.stricter, 'job')} of stricter priority {comes} first"
        reasons.append(Reason(code="band", text=text, fields={"jobs": crowd.stricter}))
    lead_ms, others = crowd.had_less(job)
    if others and lead_ms >= _LEAD_MS:
        had = "you have" if job.user == who.user else f"{job.user} has"
        if who.role in SEES_ALL:
            names = " and ".join(others) if len(others) < 3 else f"{', '.join(others[:-1])} and {others[-1]}"
        else:
            names = "others"
        first = "comes" if len(others) == 1 and who.role in SEES_ALL else "come"
        text = f"{had} had {in_words(lead_ms)} more of engine time than {names}, who {first} first"
        reasons.append(
            Reason(code="share", text=text, fields={"seconds": lead_ms // 1000, "users": len(others)})
        )
    return reasons


def _why_delayed(job: Job, now: Now) -> Reason:
    """Return why a delayed job waits."""
    if job.backoff_until_ms:
        seconds = max(0, job.backoff_until_ms - now.mono_ms) / 1000
        cause = f" ({job.past.story[-1].message})" if job.past.story else ""
        text = f"attempt {job.attempt} did not succeed{cause}; the next one comes in {in_words(int(seconds * 1000))}"
        return Reason(code="backoff", text=text, fields={"seconds": seconds, "failures": job.failures})
    seconds = max(0, job.due_at_ms - now.wall_ms) / 1000
    return Reason(
        code="delayed",
        text=f"its submitter wants it to start in {in_words(int(seconds * 1000))}",
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
    ids = [to_text(id_) for id_ in open_jobs]
    text = (
        f"it waits for {counted(len(named), 'job')}: {told}"
        if named
        else "its parents are done: it is ready in a moment"
    )
    return Reason(code="parents", text=text, fields={"jobs": ids, "states": states})

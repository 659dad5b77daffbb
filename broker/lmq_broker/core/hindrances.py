"""What keeps workers from running a job: none is there, it is held, its endpoint is away, its model must come first."""

import msgspec

from lmq_broker.core import aliases, leases, limiting, models, orders
from lmq_broker.core.policies.foreseen import Parts
from lmq_broker.core.policies.placing import BUDGET_RATIO
from lmq_broker.core.state import BrokerState, Instance, Job, Worker
from lmq_broker.core.stimuli import Now
from lmq_broker.core.words import counted, how_long, in_words
from lmq_proto.errors import Field
from lmq_proto.ids import short
from lmq_proto.messages import Reason

Fields = dict[str, Field]

_SOON_MS = 1000
_TOLD = 4
"""Workers that are told of: a farm of them is no answer."""


class Hindrances(msgspec.Struct):
    """What there is to say of the workers."""

    is_able: bool = False
    """One of them can run the job, and is busy with others."""
    reasons: list[Reason] = msgspec.field(default_factory=list)
    hints: list[str] = msgspec.field(default_factory=list)


def hindrances(state: BrokerState, job: Job, now: Now) -> Hindrances:
    """Return what keeps each worker that serves a ready job's queue from running it."""
    found = Hindrances()
    connected = [worker for worker in state.workers.values() if worker.peer is not None]
    if not connected:
        found.hints.append("lmq worker --endpoint http://localhost:1234")
        found.reasons = [Reason(code="no_worker", text="no worker is connected")]
        return found
    serving = [worker for worker in connected if _serves(worker, job)]
    if not serving:
        _say_who_serves(found, connected, job)
        return found
    names = frozenset(models.normal(model) for model in models.expanded(job.models, state.aliases))
    band = state.policy.lane_of(job)[1]
    parts = state.policy.parts(leases.fleet(state), now)
    others = []
    for worker in serving:
        if not _knows(state, worker, names):
            continue
        fitting = _fitting(worker, job, names)
        if worker.name in state.worker_holds or worker.capacity.breaker is not None:
            _say_closed(state, found, worker, names, now, has_it=bool(fitting))
        elif fitting:
            why = _why_not_on(state, worker, fitting, job, parts, now)
            if why is None:
                found.is_able = True
            else:
                others.append(why)
        else:
            others += _why_not_here(state, worker, job, names, band, parts, now)
    if names:
        _say_gone(state, found, job, names, now)
    if not found.is_able:
        found.reasons = others + found.reasons
        if not found.reasons:
            _say_no_model(state, found, job)
        elif names:
            _hint_at_loaded(state, found, serving, job, names)
    del found.reasons[_TOLD:]
    return found


def _serves(worker: Worker, job: Job) -> bool:
    return job.task_type in worker.task_types and (not worker.queues or job.queue in worker.queues)


def _knows(state: BrokerState, worker: Worker, names: frozenset[str]) -> bool:
    """Tell whether a worker ever had a model for a job."""
    ever = map(models.names_of, state.known_models.get(worker.name, ()))
    return not names or any(models.ANY in each or not names.isdisjoint(each) for each in ever)


def _fitting(worker: Worker, job: Job, names: frozenset[str]) -> list[Instance]:
    return [each for each in _named(worker, names) if models.suits(each.kind, job.task_type)]


def _named(worker: Worker, names: frozenset[str]) -> list[Instance]:
    return [each for each in worker.instances.values() if not names or not each.names or names & each.names]


def _say_who_serves(found: Hindrances, connected: list[Worker], job: Job) -> None:
    taken = sorted({each for worker in connected for each in worker.task_types})
    text = f"no worker takes {job.task_type} jobs of queue {job.queue}"
    if job.task_type not in taken:
        text += f"; they take {', '.join(taken)}"
    found.hints.append("lmq workers list")
    fields: Fields = {"queue": job.queue, "task_type": job.task_type}
    found.reasons = [Reason(code="no_worker_for_queue", text=text, fields=fields)]


def _say_gone(state: BrokerState, found: Hindrances, job: Job, names: frozenset[str], now: Now) -> None:
    """Say which workers had a model and are not connected any more."""
    for worker in state.workers.values():
        if worker.peer is None and _serves(worker, job) and _knows(state, worker, names):
            since_s = max(0, now.mono_ms - worker.heard_ms) // 1000
            text = f"{worker.name} had it, and was last heard of {in_words(since_s * 1000)} ago"
            fields: Fields = {"worker": worker.name, "since_s": since_s}
            found.reasons.append(Reason(code="worker_gone", text=text, fields=fields))


def _say_closed(
    state: BrokerState, found: Hindrances, worker: Worker, names: frozenset[str], now: Now, *, has_it: bool
) -> None:
    """Say that a worker is held, by whom and until when, or since when its endpoint is away."""
    hold = state.worker_holds.get(worker.name)
    breaker = worker.capacity.breaker
    if hold is not None:
        found.hints.append(f"lmq workers resume {worker.name}")
        could = "could run it" if not names else "has it" if has_it else "has it on disk"
        does = "paused it" if hold.kind == "pause" else "drains it"
        text = f"{worker.name} {could}, but {hold.by} {does}{how_long(hold, now)}"
        fields: Fields = {"worker": worker.name, "by": hold.by, "until_ms": hold.until_ms}
        found.reasons.append(Reason(code="worker_paused", text=text, fields=fields))
    elif breaker is not None:
        since_s = max(0, now.wall_ms - breaker.since_ms) // 1000
        text = f"the endpoint of {worker.name} has failed for {in_words(since_s * 1000)}: {breaker.reason}"
        if breaker.probe_at_ms > now.wall_ms:
            text += f"; it is tried again in {in_words(breaker.probe_at_ms - now.wall_ms + 999)}"
        found.reasons.append(
            Reason(code="breaker_open", text=text, fields={"worker": worker.name, "since_s": since_s})
        )


def _why_not_on(
    state: BrokerState, worker: Worker, fitting: list[Instance], job: Job, parts: Parts, now: Now
) -> Reason | None:
    """Return why none of the instances that fit takes a job; None: they do, and are busy with others."""
    unload = orders.unloading(state, worker, fitting)
    if unload is not None:
        text = f"{worker.name} unloads {unload.model}, as {unload.by} ordered"
        fields: Fields = {"worker": worker.name, "model": unload.model, "by": unload.by}
        return Reason(code="unloading", text=text, fields=fields)
    swap = parts.placing.swap_at(worker.name)
    if swap is not None and all(each.id in swap.victims for each in fitting):
        whose = f"as {swap.user} ordered" if swap.order is not None else "whose turn it is"
        text = f"{worker.name} gives {fitting[0].model} up for {swap.model}, {whose}"
        return Reason(code="drained", text=text, fields={"worker": worker.name, "model": swap.model})
    if worker.name in parts.taken:
        text = f"a task that uses {worker.name} has it for itself"
        return Reason(code="resource", text=text, fields={"resource": worker.name, "worker": worker.name})
    holds = [state.limits.blocks_at(job, each) for each in fitting]
    if holds[0] is not None and all(holds):
        text, details = limiting.sentence_of(holds[0], now)
        return Reason(code="limit", text=text, fields=details)
    lacks = [parts.placing.lacks_tokens(job, each) for each in fitting if each.leased < each.slots]
    if lacks and all(lacks) and lacks[0] is not None:
        taken, need = lacks[0]
        budget = int(BUDGET_RATIO * fitting[0].budget_tokens)
        text = (
            f"what runs on {worker.name} may come to {taken:,} of the {budget:,} tokens that its cache has room for, "
            f"and this needs {need:,}"
        )
        fields = {"worker": worker.name, "used": taken, "needs": need, "limit_value": budget}
        return Reason(code="budget", text=text, fields=fields)
    return None


def _why_not_here(
    state: BrokerState, worker: Worker, job: Job, names: frozenset[str], band: int, parts: Parts, now: Now
) -> list[Reason]:
    """Return why an open worker without a fitting instance does not run a job."""
    if worker.loading and not worker.loading_since_ms:
        text = f"{worker.name} is unloading {worker.loading}"
        return [Reason(code="loading", text=text, fields={"worker": worker.name, "model": worker.loading})]
    if worker.loading:
        load_ms = parts.placing.memory.load_ms(worker, worker.loading)
        left_s = max(1, int(worker.loading_since_ms + load_ms - now.mono_ms) // 1000)
        text = f"{worker.name} is loading {worker.loading} (about {in_words(left_s * 1000)} more)"
        return [
            Reason(
                code="loading", text=text,
                fields={"worker": worker.name, "model": worker.loading, "seconds": left_s},
            )
        ]  # fmt: skip
    on_disk = [each for each in worker.capacity.catalog if names & models.catalog_names(each)]
    fits = next((each for each in on_disk if models.suits(each.kind, job.task_type)), None)
    if fits is not None:
        return [_why_not_loaded(state, worker, fits.model, names, band, parts, now)]
    misfits = [(each.model, each.kind) for each in _named(worker, names)]
    misfits += [(each.model, each.kind) for each in on_disk]
    return [_wrong_kind(worker, job, *misfits[0])] if misfits else []


def _wrong_kind(worker: Worker, job: Job, model: str, kind: str) -> Reason:
    able = "vectors" if kind == "embedding" else "text"
    text = f"{model} on {worker.name} makes {able} only, and this is of type {job.task_type}"
    return Reason(code="wrong_kind", text=text, fields={"worker": worker.name, "model": model})


def _why_not_loaded(
    state: BrokerState, worker: Worker, model: str, names: frozenset[str], band: int, parts: Parts, now: Now
) -> Reason:
    """Return why a worker has a model on disk only."""
    again_ms = worker.refused_loads.get(model, 0)
    load_ms = parts.placing.memory.load_ms(worker, model)
    load_s = max(1, int(load_ms) // 1000)
    loads = f"loads {model} (about {in_words(load_s * 1000)})"
    swap = parts.placing.swap_at(worker.name)
    code = "not_loaded"
    if not worker.capacity.may_load:
        code = "may_not_load"
        text = f"{worker.name} has {model} on disk but may not load models"
    elif again_ms > now.mono_ms:
        code = "load_failed"
        text = (
            f"{worker.name} could not load {model}; it is tried again in {in_words(again_ms - now.mono_ms)}"
        )
    elif (pin := orders.in_the_way(state, worker)) is not None:
        until = f" for another {in_words(pin.until_ms - now.wall_ms)}" if pin.until_ms else ""
        text = f"{worker.name} keeps {pin.model}, which {pin.by} pinned there{until}, and has no room for {model}"
        fields: Fields = {"worker": worker.name, "model": model, "pinned": pin.model, "by": pin.by}
        return Reason(code="pinned", text=text, fields=fields)
    elif swap is not None and swap.model != model:
        text = f"{worker.name} changes to {swap.model} first, which others wait for"
    elif worker.leases:
        before = _until_then(worker, names, band, load_ms, parts, now) if swap is None else _finishes(worker)
        text = f"{worker.name} {before}, then {loads}"
    else:
        text = f"{worker.name} {loads} next"
    return Reason(code=code, text=text, fields={"worker": worker.name, "model": model, "seconds": load_s})


def _until_then(
    worker: Worker, names: frozenset[str], band: int, load_ms: float, parts: Parts, now: Now
) -> str:
    """Return what a worker does before it changes models: patience for the loaded one, then what still runs."""
    busy = [each.model for each in worker.instances.values() if each.leased]
    bypass = parts.placing.bypass_of(band, names)
    if bypass is not None and len(busy) == 1:
        left_ms = bypass.since_ms + parts.settings.bands[band].patience * load_ms - now.mono_ms
        if left_ms >= _SOON_MS:
            return f"goes on with {busy[0]} for up to {in_words(left_ms)}"
    return _finishes(worker)


def _finishes(worker: Worker) -> str:
    busy = [each.model for each in worker.instances.values() if each.leased]
    on = f" on {busy[0]}" if len(busy) == 1 else ""
    return f"finishes {counted(len(worker.leases), 'job')}{on}"


def _say_no_model(state: BrokerState, found: Hindrances, job: Job) -> None:
    """Say that no connected endpoint has a model, and which are near."""
    if not job.models:
        text = f"no connected endpoint has a model loaded for {job.task_type} jobs"
        found.reasons = [Reason(code="no_model", text=text)]
        return
    known = aliases.all_known(state)
    near = [name for name in models.nearest(job.models[0], known) if name not in job.models]
    stands_for = state.aliases.get(models.normal(job.models[0]), ())
    called = f" ({' or '.join(stands_for)})" if stands_for else ""
    text = f"no connected endpoint has {job.models[0]}{called}"
    text += f"; nearest: {', '.join(near)}" if near else ""
    found.hints.extend(f"lmq update {short(job.id)} --model {each}" for each in near[:1])
    found.reasons = [Reason(code="no_model", text=text, fields={"model": job.models[0], "nearest": near})]


def _hint_at_loaded(
    state: BrokerState, found: Hindrances, serving: list[Worker], job: Job, names: frozenset[str]
) -> None:
    """Hint at a model that is loaded now, where the one asked for is not."""
    for worker in serving:
        if worker.capacity.breaker is None and worker.name not in state.worker_holds:
            for each in worker.instances.values():
                if each.names and not names & each.names and models.suits(each.kind, job.task_type):
                    found.hints.append(f"lmq update {short(job.id)} --model {each.model}")
                    return

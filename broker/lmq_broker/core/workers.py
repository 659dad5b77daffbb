"""Workers: enlisted, what they report of their endpoint, models loaded and unloaded, silence and death."""

from lmq_broker.core import fields, leases, models, orders, sessions, swapcosts, trust
from lmq_broker.core.chronicle import Out, full, put, refuse, reply, tell
from lmq_broker.core.effects import Log, Publish, Send
from lmq_broker.core.policies.base import TAKEN_BACK, Load, Unload
from lmq_broker.core.records import MetaSet
from lmq_broker.core.state import BrokerState, Conduct, Instance, Session, Worker
from lmq_broker.core.stimuli import Now, Received
from lmq_proto import bounds
from lmq_proto.errors import (
    BadField,
    EndpointTaken,
    ErrorInfo,
    LmqError,
    ProtocolError,
    UpgradeRequired,
)
from lmq_proto.events import Kind
from lmq_proto.ids import InstanceId, PeerId, WorkerName
from lmq_proto.messages import (
    Capacity,
    CapacityReport,
    Enlist,
    Enlisted,
    Held,
    InstanceInfo,
    LeaseRef,
    LoadEnded,
    LoadModel,
    Stop,
    UnloadModel,
    WorkerState,
)

_INSTANCES = 256
_CATALOG = 4096
_QUEUES = 1024
_SLOTS = 4096
_NEVER_MS = 1 << 52
KNOWN_MODELS = "known_models/"
"""Prefix of the journal's names for the models a worker ever announced, separated by line ends."""


def enlist(state: BrokerState, out: Out, stimulus: Received, command: Enlist, now: Now) -> None:
    """Take in a worker, new or back again, and settle which of its leases are still its own."""
    peer = stimulus.peer
    try:
        protocol = sessions.agreed_protocol(command.protocol_oldest, command.protocol_newest)
        _check(command)
        who = sessions.identify(state, stimulus.credential, "", command)
        here = state.sessions.get(peer)
        if here is not None and here.worker not in (None, command.name):
            raise ProtocolError(f"this connection is that of worker {here.worker}")
        worker = _admit(state, out, command, now)
    except (LmqError, UpgradeRequired) as error:
        refuse(state, out, peer, command.request_id, error)
        return
    repeats = worker.peer == peer and worker.enlist_id == command.request_id
    session = sessions.open_session(
        state, out, peer, InstanceId(command.instance), who, command.software, protocol, now
    )
    session.worker = worker.name
    if worker.peer is None:
        tell(state, now, Kind.WORKER_UP, worker=worker.name,
             detail={"endpoint": worker.endpoint, "backend": worker.backend, "host": worker.host})  # fmt: skip
    worker.peer = peer
    worker.enlist_id = command.request_id
    worker.gone_ms, worker.stopped = 0, False
    worker.heard_ms = now.mono_ms
    worker.software, worker.protocol = command.software, protocol
    worker.queues = frozenset(command.queues)
    worker.task_types = frozenset(command.task_types)
    stop = _settle(state, out, worker, peer, command, now)
    if not repeats:
        # What it was loading, or the word that it had, may be lost: its capacity says what there is.
        worker.loading, worker.loading_since_ms, worker.command_id = "", 0, 0
        _pass_on_unnamed(state, out, worker, command, now)
    set_capacity(state, out, worker, command.capacity, now)
    reply(state, out, peer, Enlisted(
        request_id=command.request_id, protocol=protocol, software=state.software, broker_id=state.broker_id,
        epoch=state.epoch, wall_ms=now.wall_ms, heartbeat_ms=state.settings.heartbeat_ms, stop=stop,
    ))  # fmt: skip
    worker.enlisted_position = state.position


def _check(command: Enlist) -> None:
    """Refuse an enlistment that is out of bounds."""
    fields.check_name("name", command.name)
    sessions.check_instance(command.instance)
    if not 0 < len(command.endpoint) <= 1024:
        raise BadField("endpoint", command.endpoint, "1 to 1024 characters")
    if not 1 <= len(command.task_types) <= bounds.NAME_CHARS:
        raise BadField("task_types", len(command.task_types), f"1 to {bounds.NAME_CHARS}")
    for task_type in command.task_types:
        fields.check_name("task_types", task_type)
    if len(command.queues) > _QUEUES:
        raise BadField("queues", len(command.queues), f"at most {_QUEUES}")
    for queue in command.queues:
        fields.check_name("queues", queue)
    if len(command.held) > 2 * _SLOTS + bounds.BATCH_JOBS:
        raise BadField("held", len(command.held), f"at most {2 * _SLOTS + bounds.BATCH_JOBS}")
    check_capacity(command.capacity)


def check_capacity(capacity: Capacity) -> None:
    """Refuse a report that is out of bounds.

    Raises:
        BadField: too many instances, models or slots, or a name twice.
    """
    if len(capacity.instances) > _INSTANCES:
        raise BadField("instances", len(capacity.instances), f"at most {_INSTANCES}")
    if len({info.instance_id for info in capacity.instances}) < len(capacity.instances):
        raise BadField("instances", len(capacity.instances), "each instance_id once")
    if len(capacity.catalog) > _CATALOG:
        raise BadField("catalog", len(capacity.catalog), f"at most {_CATALOG}")
    for info in capacity.instances:
        if not 0 <= info.slots <= _SLOTS:
            raise BadField("slots", info.slots, f"0 to {_SLOTS}")


def _admit(state: BrokerState, out: Out, command: Enlist, now: Now) -> Worker:
    """Return the record of a worker that may serve, after parting with a predecessor that is surely dead.

    Raises:
        EndpointTaken: a living worker has this endpoint or this name.
    """
    for other in list(state.workers.values()):
        same_process = other.instance == command.instance
        if same_process and other.name == command.name:
            continue
        if not same_process and other.name != command.name and other.endpoint != command.endpoint:
            continue
        lives = other.peer is not None and not other.gone_ms
        if lives and not same_process and other.instance != command.replaces:
            raise EndpointTaken(command.endpoint, other.name, 2.0)
        error = ErrorInfo("worker_died", f"worker {other.name} died and was started again", retryable=True)
        part(state, out, other, now, error, crashed=not same_process)
    worker = state.workers.get(command.name)
    if worker is not None and worker.instance == command.instance:
        return worker
    conduct = worker.conduct if worker is not None and worker.endpoint == command.endpoint else Conduct()
    _make_room(state, now)
    worker = Worker(
        name=WorkerName(command.name), instance=InstanceId(command.instance), endpoint=command.endpoint,
        backend=command.backend, host=command.host, pid=command.pid, software=command.software, protocol=0,
        queues=frozenset(), task_types=frozenset(), capacity=Capacity(), connected_ms=now.mono_ms,
        heard_ms=now.mono_ms, peer=None, conduct=conduct,
    )  # fmt: skip
    state.workers[worker.name] = worker
    return worker


def _make_room(state: BrokerState, now: Now) -> None:
    """Forget the worker that is gone longest when there are as many as may be known.

    Raises:
        LimitReached: all of them are connected.
    """
    limit = state.settings.workers
    if len(state.workers) < limit:
        return
    gone = [worker for worker in state.workers.values() if worker.peer is None]
    if not gone:
        raise full(state, now, "workers", len(state.workers), limit)
    oldest = min(gone, key=lambda worker: worker.heard_ms)
    del state.workers[oldest.name]


def _settle(
    state: BrokerState, out: Out, worker: Worker, peer: PeerId, command: Enlist, now: Now
) -> list[Held]:
    """Compare the leases a worker says it holds with ours; return those it has lost."""
    stop = []
    for held in command.held:
        key = (held.job_id, held.epoch, held.attempt)
        if leases.take_up(state, out, worker, held, now):
            continue
        if key in worker.leases:
            # It is stopping: its slot is free when the worker says so, not now.
            refs = [LeaseRef(job_id=held.job_id, epoch=held.epoch, attempt=held.attempt)]
            out.append(Send(peer, Stop(leases=refs, reason="passed on"), after=state.position))
        else:
            stop.append(held)
    leases.end_recovery(state, out, now, worker.name)
    return stop


def _pass_on_unnamed(state: BrokerState, out: Out, worker: Worker, command: Enlist, now: Now) -> None:
    """Pass on the leases that a worker holds no more: the work never reached it."""
    named = {(held.job_id, held.epoch, held.attempt) for held in command.held}
    for key, lease in list(worker.leases.items()):
        if key in named:
            continue
        leases.close(state, worker, lease, now, TAKEN_BACK)
        if not lease.stopping:
            error = ErrorInfo("lease_lost", f"worker {worker.name} no longer knew the job", retryable=True)
            leases.release(state, out, lease.job, error, now)


# --- the endpoint ----------------------------------------------------------------------------------------------------


def capacity_report(
    state: BrokerState, out: Out, session: Session, worker: Worker, command: CapacityReport, now: Now
) -> None:
    """Take in what changed at an endpoint."""
    try:
        check_capacity(command.capacity)
    except BadField as error:
        refuse(state, out, session.peer, 0, error)
        return
    if _only_load_differs(worker.capacity, command.capacity):
        worker.capacity = command.capacity
    else:
        before, was_failing = worker.instances, worker.capacity.breaker is not None
        set_capacity(state, out, worker, command.capacity, now)
        if command.capacity.may_load and not was_failing:
            # A server that was away comes back with what it likes.
            trust.judge(state, worker, before, now)


def _only_load_differs(before: Capacity, after: Capacity) -> bool:
    """Tell whether nothing has changed but the load of the machine, which nothing that is kept depends on."""
    names = [name for name in Capacity.__struct_fields__ if name != "host"]
    return all(getattr(before, name) == getattr(after, name) for name in names)


def set_capacity(state: BrokerState, out: Out, worker: Worker, capacity: Capacity, now: Now) -> None:
    """Make a worker's instances what it says they are; observed state beats belief."""
    before = worker.capacity
    old = worker.instances
    worker.capacity = capacity
    worker.instances = {info.instance_id: _instance(worker, info) for info in capacity.instances}
    slots: set[int] = set()
    for lease in worker.leases.values():
        instance = worker.instances.get(lease.instance_id)
        if instance is None and not lease.instance_id and len(worker.instances) == 1:
            instance = next(iter(worker.instances.values()))
            lease.instance_id = instance.id
        if lease.parked_since_ms is not None:
            continue
        if instance is not None and id(lease.slot) not in slots:
            instance.leased += 1
        slots.add(id(lease.slot))
    worker.busy = len(slots)
    worker.alone = any(lease.job.past.suspect for lease in worker.leases.values())
    for name, instance in worker.instances.items():
        if name not in old:
            worker.memory_full = False
            worker.refused_loads.pop(instance.model, None)
            tell(state, now, Kind.MODEL_LOADED, worker=worker.name, model=instance.model)
    for name, instance in old.items():
        if name not in worker.instances:
            worker.memory_full = False
            tell(state, now, Kind.MODEL_UNLOADED, worker=worker.name, model=instance.model)
    if capacity.breaker is not None and before.breaker is None:
        tell(state, now, Kind.BREAKER_OPEN, worker=worker.name, detail={"reason": capacity.breaker.reason})
    if capacity.breaker is None and before.breaker is not None:
        tell(state, now, Kind.BREAKER_CLOSED, worker=worker.name)
    state.fleet_version += 1
    _remember_models(state, out, worker)
    orders.settle(state, out, worker, now)
    publish(state, out, worker)


def _instance(worker: Worker, info: InstanceInfo) -> Instance:
    return Instance(
        worker=worker, id=info.instance_id, names=models.instance_names(info), kind=info.kind, slots=info.slots,
        ours=info.ours, model=info.model, budget_tokens=info.budget_tokens,
    )  # fmt: skip


def _remember_models(state: BrokerState, out: Out, worker: Worker) -> None:
    """Note in the journal which models a worker can have, so that a job for one may wait while the worker is away."""
    known = [name for entry in worker.capacity.catalog for name in (entry.model, *entry.variants)]
    known += [instance.model for instance in worker.instances.values()]
    known += [name for info in worker.capacity.instances for name in info.variants]
    fresh = sorted(set(known) - set(state.known_models.get(worker.name, ())))
    if fresh:
        state.known_names = None
        state.known_models[worker.name] = sorted({*state.known_models.get(worker.name, ()), *fresh})[
            :_CATALOG
        ]
        put(
            state,
            out,
            MetaSet(KNOWN_MODELS + worker.name, "\n".join(state.known_models[worker.name]).encode()),
        )


def load(state: BrokerState, out: Out, decision: Load, now: Now) -> None:
    """Have a worker load a model; one load at a time per endpoint."""
    worker = decision.worker
    worker.loading_since_ms = now.mono_ms
    command_id = _begin(state, worker, decision.model, decision, now)
    assert worker.peer is not None
    command = LoadModel(command_id=command_id, model=decision.model)
    out.append(Send(worker.peer, command, after=worker.enlisted_position))
    publish(state, out, worker)


def unload(state: BrokerState, out: Out, decision: Unload, now: Now) -> None:
    """Have a worker unload an instance on which nothing runs: one that lmq loaded, unless a person ordered it."""
    worker, instance = decision.worker, decision.instance
    assert instance.ours or decision.is_ordered
    assert not instance.leased
    command_id = _begin(state, worker, instance.id, decision, now)
    assert worker.peer is not None
    instance.slots = 0
    command = UnloadModel(command_id=command_id, instance_id=instance.id)
    out.append(Send(worker.peer, command, after=worker.enlisted_position))


def _begin(state: BrokerState, worker: Worker, what: str, decision: Load | Unload, now: Now) -> int:
    """Note what a worker is told to do, for whom, and since when that has cost something; return its number."""
    assert not worker.loading
    state.last_command += 1
    worker.loading, worker.command_id = what, state.last_command
    worker.loading_for = decision.user
    worker.draining_since_ms = decision.since_ms or now.mono_ms
    return state.last_command


def load_ended(state: BrokerState, out: Out, worker: Worker, command: LoadEnded, now: Now) -> None:
    """Take in how a load or unload went; a model that does not load is left alone for a while."""
    if command.command_id != worker.command_id:
        return
    model, worker.loading = worker.loading, ""
    state.fleet_version += 1
    since_ms, worker.loading_since_ms = worker.loading_since_ms, 0
    error = command.error or _disobeyed(worker, model, is_load=since_ms > 0)
    if model:
        counted = state.meters.loads if since_ms else state.meters.unloads
        outcome = "done" if error is None else "failed"
        counted[outcome] = counted.get(outcome, 0) + 1
    if since_ms and (error is None or error.code == "insufficient_memory"):
        state.policy.loaded(worker, model, now.mono_ms - since_ms, no_memory=error is not None)
    instance = worker.instances.get(model)
    swapcosts.note(
        state,
        worker,
        model if instance is None else instance.model,
        now,
        loaded=since_ms > 0 and error is None,
    )
    if error is None:
        worker.refused_loads.pop(model, None)
    else:
        _load_failed(state, worker, model, error, now)
        orders.failed(state, out, worker, model, error, now)
    orders.settle(state, out, worker, now)
    publish(state, out, worker)


def _disobeyed(worker: Worker, model: str, *, is_load: bool) -> ErrorInfo | None:
    """Return an error if an endpoint says that it did as it was told and shows that it did not."""
    if not is_load:
        text = f"the endpoint says that it unloaded {model}, and still shows it"
        return ErrorInfo("not_unloaded", text, retryable=True) if model in worker.instances else None
    if any(not each.names or models.normal(model) in each.names for each in worker.instances.values()):
        return None
    text = f"the endpoint says that it loaded {model}, and does not show it"
    return ErrorInfo("not_loaded", text, retryable=True)


def _load_failed(state: BrokerState, worker: Worker, model: str, error: ErrorInfo, now: Now) -> None:
    """Leave a model, or an instance that does not go, alone for a while; make room first if that was it."""
    instance = worker.instances.get(model)
    if instance is not None:
        instance.slots = next(
            info.slots for info in worker.capacity.instances if info.instance_id == instance.id
        )
    kept = orders.pinned(state, worker)
    could_free = any(each.ours and each.id not in kept for each in worker.instances.values())
    worker.memory_full = error.code == "insufficient_memory" and could_free
    if not worker.memory_full:
        permanent = error.code == "model_not_found"
        wait_ms = _NEVER_MS if permanent else state.settings.load_retry_ms
        worker.refused_loads[model] = now.mono_ms + wait_ms
    told = fields.put_error_within(error)
    tell(state, now, Kind.LOAD_FAILED, worker=worker.name, model=model,
         detail={"code": told.code, "error": told.message})  # fmt: skip


def publish(state: BrokerState, out: Out, worker: Worker) -> None:
    """Put a worker's state on its topic."""
    message = WorkerState(
        name=worker.name, state=state_of(state, worker), leased=len(worker.leases),
        instances=worker.capacity.instances, loading=worker.loading,
    )  # fmt: skip
    out.append(Publish(f"worker/{worker.name}", message))


def state_of(state: BrokerState, worker: Worker) -> str:
    """Return a worker's state in one word."""
    held = state.worker_holds.get(worker.name)
    if worker.peer is None:
        return "gone"
    if worker.gone_ms:
        return "silent"
    if held is not None:
        return "draining" if held.kind == "drain" else "paused"
    return "up"


# --- silence and death -----------------------------------------------------------------------------------------------


def check_all(state: BrokerState, out: Out, now: Now) -> None:
    """Part with workers that are silent, or whose connection has been gone for too long."""
    for worker in list(state.workers.values()):
        if worker.peer is None:
            continue
        if now.mono_ms - worker.heard_ms >= state.settings.silent_ms:
            why = f"worker {worker.name} was silent for {state.settings.silent_ms // 1000} s"
        elif worker.gone_ms and now.mono_ms - worker.gone_ms >= state.settings.gone_ms:
            why = f"worker {worker.name} died"
        else:
            continue
        part(state, out, worker, now, ErrorInfo("worker_lost", why, retryable=True), crashed=True)


def part(state: BrokerState, out: Out, worker: Worker, now: Now, error: ErrorInfo, *, crashed: bool) -> None:
    """Pass on all that a worker held, and forget its connection."""
    leases.lose_all(state, out, worker, now, error, crashed=crashed)
    if worker.peer is not None:
        sessions.forget(state, worker.peer)
        tell(state, now, Kind.WORKER_DOWN, worker=worker.name, detail={"error": error.message})
        out.append(Log("worker_down", {"worker": worker.name, "why": error.message}, warning=crashed))
    worker.peer = None
    worker.loading, worker.loading_since_ms = "", 0
    worker.instances = {}
    worker.conduct.missed.clear()
    worker.busy = 0
    state.fleet_version += 1
    publish(state, out, worker)


def say_bye(state: BrokerState, out: Out, worker: Worker, reason: str, now: Now) -> None:
    """A worker goes on purpose: what it has not given back passes on, and nobody is to blame."""
    error = ErrorInfo(
        "worker_stopped", f"worker {worker.name} stopped: {reason or 'no reason given'}", retryable=True
    )
    part(state, out, worker, now, error, crashed=False)
    worker.stopped = True

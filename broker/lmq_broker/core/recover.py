"""From what the journal keeps back to a state: open jobs, leases in doubt, keys, holds, models, aliases, orders."""

from collections.abc import Iterable
from random import Random

import msgspec

from lmq_broker.core import aliases, jobs, limiting, readers, users
from lmq_broker.core.aliases import ALIAS, DEFAULT
from lmq_broker.core.chronicle import LEDGER, Out, put, tell
from lmq_broker.core.effects import Effect
from lmq_broker.core.eta import Eta
from lmq_broker.core.holds import HOLD
from lmq_broker.core.orders import ORDER
from lmq_broker.core.policies import POLICIES
from lmq_broker.core.records import MetaSet, StoredJob
from lmq_broker.core.settings import Settings
from lmq_broker.core.state import BrokerState, Job, Key, Lease
from lmq_broker.core.stimuli import Now
from lmq_broker.core.users import ALLOWANCE
from lmq_broker.core.workers import KNOWN_MODELS
from lmq_proto.events import Kind
from lmq_proto.ids import JobId, WorkerName
from lmq_proto.messages import Alias, Allowance, DefaultModel, Hold, Order
from lmq_proto.states import State

EPOCH = "epoch"
BROKER_ID = "broker_id"
SECRET = "secret"


class StoredKey(msgspec.Struct, frozen=True):
    """An idempotency key in force; `until_ms` is set once its job is deleted."""

    user: str
    key: str
    job_id: bytes
    digest: bytes


class Memory(msgspec.Struct, frozen=True):
    """All that a journal holds for a broker that starts."""

    meta: dict[str, bytes]
    open_jobs: Iterable[StoredJob]
    """In the order they arrived."""
    finished: Iterable[tuple[bytes, int, str, str, int]]
    """Id, number, user, final state and priority, in the order they ended."""
    keys: Iterable[StoredKey]
    tombstones: Iterable[tuple[bytes, int]]
    stored_text: dict[int, tuple[int, int]]
    """Number of an open job -> (attempt, last piece of its text on disk)."""
    last_number: int
    last_order: int
    last_seq: int
    oldest_cursor: int
    last_event_ms: int
    usage_rows: Iterable[tuple[int, str, str, str]] = ()
    """Day, user, model and task type of the rows of the latest days."""
    usage_oldest_day: int = 0


def recover(
    memory: Memory,
    settings: Settings,
    now: Now,
    *,
    software: str,
    seed: int,
    fresh_id: bytes,
    fresh_secret: bytes,
) -> tuple[BrokerState, list[Effect]]:
    """Return the state that a journal stands for, and the records of the new epoch, which must be durable first."""
    meta = memory.meta
    limits = limiting.restored(settings, meta, now)
    state = BrokerState(
        settings=settings,
        broker_id=meta.get(BROKER_ID, fresh_id),
        epoch=int(meta.get(EPOCH, b"0")) + 1,
        software=software,
        secret=meta.get(SECRET, fresh_secret),
        random=Random(seed),
        limits=limits,
        policy=POLICIES[settings.policy](settings, limits),
        eta=Eta(),
        started_ms=now.mono_ms,
        started_at_ms=now.wall_ms,
        last_number=memory.last_number,
        last_order=memory.last_order,
        last_seq=memory.last_seq,
        oldest_cursor=memory.oldest_cursor,
        next_tick_ms=now.mono_ms,
        next_retention_ms=now.mono_ms + settings.retention_every_ms,
        wall_offset_ms=now.wall_ms - now.mono_ms,
    )
    out: Out = []
    put(state, out, MetaSet(BROKER_ID, state.broker_id))
    put(state, out, MetaSet(SECRET, state.secret))
    put(state, out, MetaSet(EPOCH, str(state.epoch).encode()))
    for name in limiting.empty_again(meta, now):
        put(state, out, MetaSet(name, b""))
    for name, value in meta.items():
        if name.startswith(HOLD):
            noun, _, what = name.removeprefix(HOLD).partition("/")
            held = msgspec.msgpack.decode(value, type=Hold)
            (state.queue_holds if noun == "queue" else state.worker_holds)[what] = held
        elif name.startswith(KNOWN_MODELS):
            state.known_models[name.removeprefix(KNOWN_MODELS)] = value.decode().split("\n")
        elif name.startswith(ALLOWANCE):
            given = msgspec.msgpack.decode(value, type=Allowance)
            state.allowances[given.user] = given
        elif name.startswith(ALIAS):
            state.aliases_set[name.removeprefix(ALIAS)] = msgspec.msgpack.decode(value, type=Alias)
        elif name.startswith(DEFAULT):
            state.defaults_set[name.removeprefix(DEFAULT)] = msgspec.msgpack.decode(value, type=DefaultModel)
        elif name.startswith(ORDER):
            order = msgspec.msgpack.decode(value, type=Order)
            state.orders[order.worker, order.model] = order
    state.orders = dict(sorted(state.orders.items(), key=lambda each: (each[1].since_ms, each[0])))
    aliases.refresh(state)
    for user in [*state.allowances, *settings.ceilings]:
        users.apply(state, user)
    state.policy.restore({
        name.removeprefix(LEDGER): value for name, value in meta.items() if name.startswith(LEDGER) and value
    })  # fmt: skip
    for job_id, number, user, ended_as, priority in memory.finished:
        state.finished.add(
            job_id, number, state.names.setdefault(user, user), jobs.STATES[ended_as], priority
        )
    state.tombstones.update((JobId(job_id), until_ms) for job_id, until_ms in memory.tombstones)
    state.usage_oldest_day = memory.usage_oldest_day
    for day, *names in memory.usage_rows:
        state.usage_rows.setdefault(day, set()).add((names[0], names[1], names[2]))
    for stored in memory.open_jobs:
        _reopen(state, stored, memory, now)
    for key in memory.keys:
        state.keys[key.user, key.key] = Key(JobId(key.job_id), key.digest)
        if key.job_id not in state.jobs:
            state.keys_of_finished[key.job_id] = (key.user, key.key)
    if state.orphans:
        state.recovery_until_ms = now.mono_ms + settings.recovery_ms
    if memory.last_event_ms > now.wall_ms + settings.clock_jump_ms:
        behind_s = (memory.last_event_ms - now.wall_ms) / 1000
        state.clock_trouble = f"the wall clock is {behind_s:.0f} s behind the journal"
        state.clock_held_until_ms = now.mono_ms + max(
            settings.clock_hold_ms, memory.last_event_ms - now.wall_ms
        )
    tell(state, now, Kind.BROKER_STARTED, detail={"epoch": state.epoch, "software": software})
    return state, out


def _reopen(state: BrokerState, stored: StoredJob, memory: Memory, now: Now) -> None:
    """Bring an open job back; a leased one waits for its worker to take it up."""
    job = jobs.from_stored(stored)
    intern = state.names.setdefault
    job.queue, job.task_type = intern(job.queue, job.queue), intern(job.task_type, job.task_type)
    job.user = type(job.user)(intern(job.user, job.user))
    job.principal = intern(job.principal, job.principal)
    job.models = state.model_lists.setdefault(job.models, job.models)
    job.text_attempt, job.text_last = memory.stored_text.get(job.number, (0, 0))
    state.jobs[job.id] = job
    jobs.admit(state, job, now)
    if job.past.own_priority is not None:
        state.unweighed[job.id] = None
    if job.state is State.LEASED:
        job.lease = _lease_in_doubt(state, job, now)


def _lease_in_doubt(state: BrokerState, job: Job, now: Now) -> Lease:
    """Return the lease that the journal names, until a worker takes it up or nobody does."""
    lease = Lease(
        job=job, epoch=job.epoch, attempt=job.attempt, worker=WorkerName(job.worker), instance_id="",
        granted_ms=now.mono_ms, deadline_ms=0, position=0,
    )  # fmt: skip
    if job.text_attempt == job.attempt:
        lease.text = readers.log_of(job)
    state.orphans[job.id, job.epoch, job.attempt] = lease
    state.policy.resumed(lease)
    return lease

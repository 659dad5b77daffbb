"""How a change is written down: records with their journal position, durable events, counts, and the image of a job."""

import hashlib

from lmq_broker.core.effects import Effect, Send
from lmq_broker.core.records import JobChanged, MetaSet, Record, StoredJob
from lmq_broker.core.state import BrokerState, Job, Queue
from lmq_broker.core.stimuli import Now
from lmq_proto.errors import ErrorInfo, Field, LimitReached, LmqError
from lmq_proto.events import Event, Kind
from lmq_proto.ids import PeerId
from lmq_proto.messages import ErrorReply, ToPeer
from lmq_proto.states import OPEN, State, may_move

Out = list[Effect]
"""The effects of the present step, in order."""

LEDGER = "ledger/"
"""Prefix of the journal's names for what a policy keeps."""
_RATE_WINDOW_S = 30
"""In which ends of jobs say how fast there is room."""
_ENDS_KEPT_S = 60
FULL = "full"
"""The trouble of a disk that takes no more records."""


def put(state: BrokerState, out: Out, record: Record) -> None:
    """Append a record; the first of a turn opens a new journal position, which all of the turn share."""
    if not state.turn_has_records:
        state.turn_has_records = True
        state.position += 1
    out.append(record)


def tell(
    state: BrokerState,
    now: Now,
    kind: Kind,
    job: Job | None = None,
    *,
    user: str = "",
    queue: str = "",
    worker: str = "",
    model: str = "",
    detail: dict[str, Field] | None = None,
) -> None:
    """Add a durable event to the turn; it is journaled, and pushed, when the turn ends."""
    if not state.turn_has_records:
        state.turn_has_records = True
        state.position += 1
    state.last_seq += 1
    if job is None:
        event = Event(
            seq=state.last_seq, at_ms=now.wall_ms, kind=kind, user=user, queue=queue, worker=worker,
            model=model, detail=detail or {},
        )  # fmt: skip
    else:
        event = Event(
            seq=state.last_seq, at_ms=now.wall_ms, kind=kind, job_id=job.id, user=job.user, queue=job.queue,
            task_type=job.task_type, state=job.state, attempt=job.attempt, worker=worker, model=model,
            labels=job.terms.labels, detail=detail or {},
        )  # fmt: skip
    state.turn_events.append(event)


def reply(state: BrokerState, out: Out, peer: PeerId, message: ToPeer, body: bytes = b"") -> None:
    """Answer a peer when all that the answer tells is on disk."""
    out.append(Send(peer, message, body, state.position))


def read_position(state: BrokerState) -> int:
    """Return the journal position that an answer about what is on disk waits for.

    On a full disk nothing would ever be answered if reads waited for the records that do not fit. What is read then
    comes from the journal alone, which holds nothing that a crash can undo.
    """
    return 0 if state.disk.trouble == FULL else state.position


def inform(state: BrokerState, out: Out, peer: PeerId, message: ToPeer, body: bytes = b"") -> None:
    """Answer with what was read, or with facts of the broker itself."""
    out.append(Send(peer, message, body, read_position(state)))


def refuse(state: BrokerState, out: Out, peer: PeerId, request_id: int, error: LmqError) -> None:
    """Answer a command with an error, and count it."""
    out.append(
        Send(peer, ErrorReply(request_id=request_id, error=refusal(state, error)), after=read_position(state))
    )


def refusal(state: BrokerState, error: LmqError) -> ErrorInfo:
    """Count an error that is told to a peer and return its wire form."""
    state.refused[error.code] = state.refused.get(error.code, 0) + 1
    return error.info()


def image(job: Job, *, finished_at_ms: int = 0, deletes_at_ms: int = 0, result_bytes: int = 0) -> StoredJob:
    """Return what the journal keeps of a job."""
    # In the order of its fields: so many names would take as long again as all the rest.
    return StoredJob(
        job.number, job.id, job.user, job.principal, job.task_type,
        job.queue, job.priority, job.state, job.order, job.created_at_ms,
        job.payload_bytes, job.models,
        job.prompt_tokens, job.output_tokens, job.due_at_ms,
        job.expires_at_ms, job.started_at_ms, finished_at_ms,
        deletes_at_ms, job.attempt, job.epoch, job.failures, job.worker,
        job.model, result_bytes, job.terms, job.past,
    )  # fmt: skip


def save(state: BrokerState, out: Out, job: Job) -> None:
    """Append the present image of an open job."""
    put(state, out, JobChanged(image(job)))


def keep_ledger(state: BrokerState, out: Out) -> None:
    """Note in the journal what has changed in the policy's ledger; what a crash takes of it is a second's worth."""
    for name, value in state.policy.changes().items():
        put(state, out, MetaSet(LEDGER + name, value))


def move(state: BrokerState, job: Job, target: State) -> None:
    """Move an open job to another state and keep the counts."""
    origin = job.state
    assert may_move(origin, target), f"{origin} -> {target}"
    queue = state.queues[job.queue]
    queue.counts[origin] -= 1
    is_open = target in OPEN
    if is_open:
        queue.counts[target] += 1
    queue.changed = True
    job.state = target
    if origin is State.LEASED:
        if is_open:
            state.limits.entered(job.user, job.queue, job.task_type, job.payload_bytes)
    elif target is State.LEASED or not is_open:
        state.limits.left(job.user, job.queue, job.task_type, job.payload_bytes)


def queue_named(state: BrokerState, name: str) -> Queue:
    """Return the counts of a queue, made at its first job."""
    queue = state.queues.get(name)
    if queue is None:
        queue = state.queues[name] = Queue(dict.fromkeys(sorted(OPEN), 0))
    return queue


def queue_names(state: BrokerState) -> set[str]:
    """Return the queues that there are: with jobs now or before, held, a task type's own, or a worker's."""
    defaults = {each.queue for each in state.settings.task_defaults.values()}
    of_workers = {queue for worker in state.workers.values() for queue in worker.queues}
    return {*state.queues, *state.queue_holds, *defaults, *of_workers}


def number_of(state: BrokerState, job_id: bytes) -> int:
    """Return a job's number, by which the journal finds it; 0 if there is no such job."""
    job = state.jobs.get(job_id)
    return job.number if job is not None else state.finished.get(job_id, 0)


def numbers_of(state: BrokerState, job_ids: list[bytes]) -> list[int]:
    """Return the numbers of jobs, 0 for one that is not there."""
    return [number_of(state, job_id) for job_id in job_ids]


def channel(state: BrokerState, job_id: bytes) -> bytes:
    """Return the random topic of a job's progress: not to be guessed from its id, the same after a restart."""
    return hashlib.blake2b(job_id, key=state.secret, digest_size=8).digest()


def count_end(state: BrokerState, now: Now) -> None:
    """Note that a job ended now."""
    second = now.mono_ms // 1000
    ends = state.ends_lately
    if ends and ends[-1][0] == second:
        ends[-1] = (second, ends[-1][1] + 1)
        return
    ends.append((second, 1))
    while ends[0][0] < second - _ENDS_KEPT_S:
        ends.popleft()


def ended_within(state: BrokerState, seconds: int, now: Now) -> int:
    """Return how many jobs ended in so many seconds up to now, a minute at most."""
    since = now.mono_ms // 1000 - seconds
    return sum(count for at, count in state.ends_lately if at >= since)


def full(
    state: BrokerState, now: Now, limit: str, value: int, limit_value: int, *, user: str | None = None
) -> LimitReached:
    """Return the refusal for a full bound, with the time, if known, until as many jobs have ended as are over it.

    Args:
        state: the broker's.
        now: the time.
        limit: its name.
        value: how much there is.
        limit_value: how much there may be.
        user: whose jobs must end, empty for anybody's; None: it is not about jobs.
    """
    wait_ms = None if user is None else _room_in_ms(state, max(1, value - limit_value + 1), user, now)
    wait_s = None if wait_ms is None else round(min(max(wait_ms / 1000, 0.1), 600.0), 1)
    return LimitReached(limit, value, limit_value, wait_s)


def _room_in_ms(state: BrokerState, over: int, user: str, now: Now) -> float | None:
    """Return when so many jobs have ended, as is foreseen, or as they did lately; None: nothing says so."""
    wait_ms = state.eta.ends_in_ms(over, user, now)
    if wait_ms is not None:
        return wait_ms
    ended = ended_within(state, _RATE_WINDOW_S, now)
    return over * _RATE_WINDOW_S * 1000 / ended if ended else None

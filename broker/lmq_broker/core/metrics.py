"""The broker's own measurements in Prometheus' text format, version 0.0.4. docs/metrics.md lists them.

No job, and no user unless asked for: a name that anyone can make up would be a series that is kept for months. Counters
begin at 0 with each start of the broker, as Prometheus expects.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import islice

from lmq_broker.core import views, waiting
from lmq_broker.core.chronicle import Out, inform, refuse
from lmq_broker.core.histograms import EDGES_MS
from lmq_broker.core.state import BrokerState, Session, Times, Worker
from lmq_broker.core.stimuli import Now
from lmq_broker.core.usage import METERED, OTHERS
from lmq_proto.errors import NotAllowed
from lmq_proto.messages import Metrics, MetricsReply
from lmq_proto.states import FINAL, OPEN

NAMED = 500
"""Queues, workers and models that have series of their own. Other queues and models are added up, workers left out."""
_EDGES = range(8, 92, 4)
"""Of `EDGES_MS`, those that are told: 40 ms to 12 h, each twice the one before."""

Sample = tuple[dict[str, str], float]
"""Labels and value."""


def metrics(state: BrokerState, out: Out, session: Session, command: Metrics, now: Now) -> None:
    """Answer with all measurements; those of each user are for admins."""
    if command.users and session.who.role != "admin":
        error = NotAllowed("metrics", session.who.role, "with users")
        refuse(state, out, session.peer, command.request_id, error)
        return
    text = "".join(_rendered(state, now, users=command.users))
    inform(state, out, session.peer, MetricsReply(request_id=command.request_id), text.encode())


def _rendered(state: BrokerState, now: Now, *, users: bool) -> Iterator[str]:
    yield from _jobs(state, now)
    yield from _times(state)
    yield from _work(state)
    yield from _workers(state)
    yield from _models(state, now)
    yield from _broker(state, now)
    if users:
        yield from _users(state)


# --- what is measured ------------------------------------------------------------------------------------------------


def _jobs(state: BrokerState, now: Now) -> Iterator[str]:
    oldest = waiting.oldest_waits(state, now)
    counts: dict[tuple[str, str], int] = {}
    waits: dict[str, float] = {}
    for number, (queue_name, queue) in enumerate(state.queues.items()):
        name = queue_name if number < NAMED else OTHERS
        for each in sorted(OPEN):
            counts[name, each] = counts.get((name, each), 0) + queue.counts[each]
        waits[name] = max(waits.get(name, 0.0), oldest.get(queue_name, 0) / 1000)
    yield from _family(
        "lmq_jobs", "gauge", "Open jobs by queue and state.",
        [({"queue": name, "state": each}, count) for (name, each), count in counts.items()],
    )  # fmt: skip
    text = "How long the oldest ready job of a queue waits; 0: there is none."
    yield from _by("lmq_queue_oldest_wait_seconds", "gauge", text, "queue", waits)
    ended = {str(each): state.ended.get(each, 0) for each in sorted(FINAL)}
    yield from _by("lmq_jobs_ended_total", "counter", "Jobs that reached a final state.", "state", ended)
    text = "Refusals that peers were told, by error code."
    yield from _by("lmq_refused_total", "counter", text, "code", state.refused)


def _times(state: BrokerState) -> Iterator[str]:
    counted = state.meters.bands
    for place, name, text in (
        (0, "lmq_job_wait_seconds", "From accepted to the first start, of jobs that ended."),
        (1, "lmq_job_run_seconds", "From the first start to the end, of jobs that ended."),
    ):
        yield f"# HELP {name} {text}\n# TYPE {name} histogram\n"
        for number, band in enumerate(state.settings.bands):
            times = counted[number][place] if number < len(counted) else Times()
            yield from _histogram(name, {"band": band.name}, times)


def _work(state: BrokerState) -> Iterator[str]:
    meters = state.meters
    tokens = [("prompt", meters.prompt_tokens), ("output", meters.output_tokens)]
    yield from _family(
        "lmq_tokens_total", "counter", "Tokens that workers counted, those of failed attempts too.",
        [({"model": name, "kind": kind}, count) for kind, table in tokens for name, count in table.items()],
    )  # fmt: skip
    engine_s = {name: ms / 1000 for name, ms in meters.engine_ms.items()}
    text = "Time of attempts, as workers counted."
    yield from _by("lmq_engine_seconds_total", "counter", text, "model", engine_s)
    text = "Ends of leases that had passed on: dropped."
    yield from _one("lmq_stale_results_total", "counter", text, state.stale_results)


def _workers(state: BrokerState) -> Iterator[str]:
    up = sum(worker.peer is not None for worker in state.workers.values())
    yield from _one("lmq_workers_up", "gauge", "Connected workers.", up)
    known = list(islice(state.workers.values(), NAMED))
    for name, text, value_of in _OF_WORKERS:
        values = [({"worker": str(worker.name)}, value_of(worker)) for worker in known]
        yield from _family(name, "gauge", text, values)


def _slots(worker: Worker) -> int:
    slots = sum(instance.slots for instance in worker.instances.values())
    return slots if worker.capacity.slots is None else min(slots, worker.capacity.slots)


_OF_WORKERS: tuple[tuple[str, str, Callable[[Worker], float]], ...] = (
    ("lmq_worker_up", "Whether a worker is connected.", lambda worker: worker.peer is not None),
    ("lmq_worker_leases", "Jobs that a worker runs.", lambda worker: len(worker.leases)),
    ("lmq_worker_slots", "Slots of a worker.", _slots),
    ("lmq_worker_slots_taken", "Those of them that are taken.", lambda worker: worker.busy),
    (
        "lmq_worker_breaker_open", "Whether a worker's model server fails, so that its jobs wait.",
        lambda worker: worker.capacity.breaker is not None,
    ),
)  # fmt: skip


def _models(state: BrokerState, now: Now) -> Iterator[str]:
    slots: dict[str, int] = {}
    taken: dict[str, int] = {}
    waiting: dict[str, int] = {}
    for model in views.all_models(state, now):
        if model.loaded_on or model.waiting:
            name = model.model if len(slots) < NAMED else OTHERS
            slots[name] = slots.get(name, 0) + model.slots
            taken[name] = taken.get(name, 0) + model.leased
            waiting[name] = waiting.get(name, 0) + model.waiting
    yield from _by("lmq_model_slots", "gauge", "Slots of a model's instances.", "model", slots)
    yield from _by("lmq_model_slots_taken", "gauge", "Those of them that are taken.", "model", taken)
    yield from _by("lmq_model_waiting", "gauge", "Ready jobs that name a model.", "model", waiting)
    none = {"done": 0, "failed": 0}
    for verb, table in (("loads", state.meters.loads), ("unloads", state.meters.unloads)):
        text = f"{verb.capitalize()} that the broker asked for, by outcome."
        yield from _by(f"lmq_model_{verb}_total", "counter", text, "outcome", none | table)


def _broker(state: BrokerState, now: Now) -> Iterator[str]:
    host = state.host
    labels = {"software": state.software, "broker_id": state.broker_id.hex()}
    yield from _family("lmq_broker_info", "gauge", "The broker's version and journal.", [(labels, 1)])
    for name, text, value in (
        ("lmq_broker_epoch", "Starts of the broker on this journal.", state.epoch),
        (
            "lmq_broker_uptime_seconds",
            "Time since the broker started.",
            (now.mono_ms - state.started_ms) / 1000,
        ),
        ("lmq_broker_memory_bytes", "Resident memory of the broker.", host.memory_bytes),
        ("lmq_sessions", "Connections that have said hello or enlisted.", len(state.sessions)),
        ("lmq_jobs_kept", "Final jobs that are kept.", len(state.finished)),
        ("lmq_jobs_open_max", "Open jobs beyond which submits are refused.", state.settings.jobs_open),
        ("lmq_event_cursor", "Number of the newest durable event.", state.last_seq),
        ("lmq_journal_bytes", "What the journal takes on disk.", host.journal_bytes),
        ("lmq_journal_free_bytes", "What is free on the journal's disk.", host.journal_free_bytes),
        (
            "lmq_journal_trouble",
            "Whether the journal's disk has no room, or too little.",
            bool(state.disk.trouble),
        ),
        ("lmq_clock_trouble", "Whether expiry and retention are held.", bool(state.clock_trouble)),
    ):
        yield from _one(name, "gauge", text, value)
    commits = [("0.5", host.commit_p50_us), ("0.99", host.commit_p99_us)]
    yield from _family(
        "lmq_journal_commit_seconds", "summary", "Time of the latest commits, the fsync included.",
        [({"quantile": share}, us / 1_000_000) for share, us in commits],
    )  # fmt: skip


def _users(state: BrokerState) -> Iterator[str]:
    engine_s = {user: ms / 1000 for user, ms in state.meters.users_engine_ms.items()}
    text = "Time of a user's attempts, as workers counted."
    yield from _by("lmq_user_engine_seconds_total", "counter", text, "user", engine_s)
    jobs: dict[str, int] = {}
    for number, (user, count) in enumerate(state.users_open.items()):
        name = user if number < METERED else OTHERS
        jobs[name] = jobs.get(name, 0) + count
    yield from _by("lmq_user_jobs", "gauge", "Open jobs of a user.", "user", jobs)


# --- how it is written -----------------------------------------------------------------------------------------------


def _one(name: str, kind: str, text: str, value: float) -> Iterator[str]:
    return _family(name, kind, text, [({}, value)])


def _by(name: str, kind: str, text: str, label: str, table: Mapping[str, float]) -> Iterator[str]:
    return _family(name, kind, text, [({label: key}, value) for key, value in table.items()])


def _family(name: str, kind: str, text: str, samples: Iterable[Sample]) -> Iterator[str]:
    yield f"# HELP {name} {text}\n# TYPE {name} {kind}\n"
    for labels, value in samples:
        yield _sample(name, labels, value)


def _histogram(name: str, labels: dict[str, str], times: Times) -> Iterator[str]:
    for edge in _EDGES:
        within = sum(count for bucket, count in times.counts.items() if bucket <= edge)
        yield _sample(f"{name}_bucket", labels | {"le": repr(EDGES_MS[edge] / 1000)}, within)
    total = sum(times.counts.values())
    yield _sample(f"{name}_bucket", labels | {"le": "+Inf"}, total)
    yield _sample(f"{name}_sum", labels, times.total_ms / 1000)
    yield _sample(f"{name}_count", labels, total)


def _sample(name: str, labels: dict[str, str], value: float) -> str:
    told = ",".join(f'{label}="{_escaped(text)}"' for label, text in labels.items())
    return f"{name}{{{told}}} {+value!r}\n" if told else f"{name} {+value!r}\n"


def _escaped(text: str) -> str:
    """Return a label's value as it stands between quotes; a character that is not printable is told by its number."""
    if not text.isprintable():
        text = "".join(char if char.isprintable() else f"\\u{ord(char):04x}" for char in text)
    return text.replace("\\", "\\\\").replace('"', '\\"')

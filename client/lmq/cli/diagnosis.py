"""What is wrong, from facts that were gathered. Pure, so that each fault can be planted in a test."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from lmq.cli.humane import count, duration, held, model_of, short, size, time_of_day

if TYPE_CHECKING:
    from lmq import HealthReply, JobStatus, LimitView, ModelView, QueueView, WorkerView
    from lmq.cli.endpoint import Endpoint

SMALL_CONTEXT_TOKENS = 4096
"""A prompt and its answer seldom fit in less."""
CLOCK_OFF_MS = 2000
"""More than any network takes; expiry and `--at` go by the broker's clock."""
DISK_LOW_FACTOR = 2
"""Under so many times the floor, submits will soon be refused."""
COMMIT_SLOW_US = 100_000
"""A disk that needs so long for one commit is worn out, or on a network."""
TOLD_ELSEWHERE = (
    "queue paused", "limit reached", "no worker", "no worker takes it", "workers paused", "worker gone",
    "endpoint away", "no endpoint has it", "disk trouble",
)  # fmt: skip
"""Hindrances that are findings of their own, or as they should be."""
LOOPBACK = ("127.0.0.1", "localhost", "[::1]")


@dataclass(frozen=True, slots=True)
class Finding:
    """Something found: `ok`, `advice` (it works, and could be better) or `fault`."""

    level: str
    text: str
    cure: str = ""
    """What to type or do."""


@dataclass(frozen=True, slots=True)
class Facts:
    """What was gathered.

    Attributes:
        url: the broker that was asked.
        trouble: why it did not answer; empty if it did.
        needs_upgrade: it speaks no protocol of ours.
        health: its own facts.
        other_brokers: addresses of this machine where another broker answers.
        queues, workers, models: as the broker lists them.
        waiting: jobs that are ready, the oldest first.
        local: what is at LM Studio's usual address on this machine.
        limits: as the broker lists them.
        version: of this client.
        host: this machine, as workers name theirs.
        now_ms: the wall clock here.
    """

    url: str
    trouble: str = ""
    needs_upgrade: bool = False
    health: HealthReply | None = None
    other_brokers: list[str] = field(default_factory=list)
    queues: list[QueueView] = field(default_factory=list)
    workers: list[WorkerView] = field(default_factory=list)
    models: list[ModelView] = field(default_factory=list)
    waiting: list[JobStatus] = field(default_factory=list)
    local: Endpoint | None = None
    limits: list[LimitView] = field(default_factory=list)
    version: str = ""
    host: str = ""
    now_ms: int = 0


def diagnose(facts: Facts) -> list[Finding]:
    """Return all that was found, in the order of the parts: broker, workers, endpoints, models."""
    if facts.health is None:
        return [*_no_broker(facts), *_local_endpoint(facts)]
    found = [_broker_is_up(facts, facts.health)]
    for look in (_second_broker, _versions, _clock, _disk, _room):
        found += look(facts, facts.health)
    for look_at in (
        _queues, _alerts, _workers, _gone, _endpoints, _instances, _missing_models, _missing_task_types, _hindered,
        _local_endpoint,
    ):  # fmt: skip
        found += look_at(facts)
    return found


# --- the broker ------------------------------------------------------------------------------------------------------


def _no_broker(facts: Facts) -> Iterator[Finding]:
    if facts.needs_upgrade:
        yield Finding("fault", facts.trouble, "pip install --upgrade lmq, on both machines")
    else:
        yield Finding("fault", f"no broker at {facts.url}", "lmq up")


def _broker_is_up(facts: Facts, health: HealthReply) -> Finding:
    return Finding("ok", f"broker at {facts.url}, up {duration(health.uptime_ms / 1000)}")


def _second_broker(facts: Facts, health: HealthReply) -> Iterator[Finding]:
    for url in facts.other_brokers:
        yield Finding(
            "fault",
            f"a second broker answers at {url}; jobs of the one are not seen by the other",
            f"stop one of them, or say which is meant: export LMQ_URL={facts.url}",
        )


def _versions(facts: Facts, health: HealthReply) -> Iterator[Finding]:
    ours = facts.version
    theirs = _version_of(health.software)
    if theirs and theirs != ours:
        yield Finding(
            "advice", f"the broker is version {theirs}, this client {ours}", "pip install --upgrade lmq"
        )
    for worker in facts.workers:
        version = _version_of(worker.software)
        if version and theirs and version != theirs and worker.state != "gone":
            yield Finding(
                "advice",
                f"worker {worker.name} is version {version}, the broker {theirs}",
                f"on {worker.host}: pip install --upgrade lmq, then restart the worker",
            )


def _clock(facts: Facts, health: HealthReply) -> Iterator[Finding]:
    off_ms = health.wall_ms - facts.now_ms
    if abs(off_ms) > CLOCK_OFF_MS:
        way = "ahead of" if off_ms > 0 else "behind"
        yield Finding(
            "fault",
            f"the broker's clock is {duration(abs(off_ms) / 1000)} {way} this machine's",
            "on the machine that is wrong: sudo timedatectl set-ntp true",
        )
    if health.clock_trouble:
        yield Finding(
            "fault", f"expiry and retention are held: {health.clock_trouble}", "sudo timedatectl set-ntp true"
        )


def _disk(facts: Facts, health: HealthReply) -> Iterator[Finding]:
    low = health.journal_free_bytes < DISK_LOW_FACTOR * health.journal_floor_bytes
    cure = (
        f"free some space on the disk of {health.journal_path or 'the journal'}, or: lmq delete --state done"
    )
    if health.disk_trouble:
        yield Finding("fault", f"the journal's disk: {health.disk_trouble}", cure)
    elif low:
        free, floor = size(health.journal_free_bytes), size(health.journal_floor_bytes)
        yield Finding("fault", f"the journal's disk has {free} free; under {floor} submits are refused", cure)
    if health.commit_p99_us > COMMIT_SLOW_US:
        slow = duration(health.commit_p99_us / 1e6)
        yield Finding(
            "advice", f"a commit takes up to {slow}", "put the journal on a local SSD: lmq broker --data DIR"
        )


def _room(facts: Facts, health: HealthReply) -> Iterator[Finding]:
    if health.jobs_open_max and health.jobs_open > 0.9 * health.jobs_open_max:
        yield Finding(
            "fault",
            f"{health.jobs_open:,} of {health.jobs_open_max:,} jobs are open; more are refused",
            "lmq queues, then cancel what is not needed",
        )


def _queues(facts: Facts) -> Iterator[Finding]:
    for queue in facts.queues:
        if queue.hold is not None and queue.ready and queue.hold.kind == "pause":
            waits = f"{count(queue.ready, 'job')} {'waits' if queue.ready == 1 else 'wait'} there"
            cure = f"lmq queues resume {queue.name}"
            yield Finding("advice", f"queue {queue.name} is {held(queue.hold)}; {waits}", cure)


def _alerts(facts: Facts) -> Iterator[Finding]:
    for view in facts.limits:
        if not view.raised:
            continue
        limit = view.limit
        if limit.of == "wait":
            text = f"the oldest job waits {duration(view.used / 1000)}, over {duration(limit.value / 1000)}"
        else:
            verb = "waits" if view.used == 1 else "wait"
            text = f"{count(int(view.used), 'job')} {verb}, over {limit.value:g}"
        named = [("--queue", limit.queue), ("--type", limit.task_type)]
        only = "".join(f" {option} {shlex.quote(name)}" for option, name in named if name)
        yield Finding("fault", f"alert {view.name}: {text}", f"lmq list --state ready{only}")


# --- workers and endpoints -------------------------------------------------------------------------------------------


def _workers(facts: Facts) -> Iterator[Finding]:
    alive = [worker for worker in facts.workers if worker.state not in ("gone", "silent")]
    if not alive:
        verb = "waits" if len(facts.waiting) == 1 else "wait"
        waiting = f"; {count(len(facts.waiting), 'job')} {verb}" if facts.waiting else ""
        local = facts.local is not None and facts.local.kind
        cure = "lmq up" if local else "lmq worker --endpoint http://HOST:1234"
        yield Finding("fault", f"no worker is connected{waiting}", cure)
    for worker in facts.workers:
        if worker.state == "silent":
            heard = duration(worker.heard_ms / 1000)
            yield Finding("fault", f"worker {worker.name} is silent for {heard}", f"look at {worker.host}")
        elif worker.state == "paused":
            by = f" by {worker.hold.by}" if worker.hold else ""
            yield Finding(
                "advice", f"worker {worker.name} is paused{by}", f"lmq workers resume {worker.name}"
            )
        elif worker.state == "up" and not (worker.capacity and worker.capacity.breaker):
            yield Finding("ok", f"worker {worker.name} for {worker.endpoint}")


def _gone(facts: Facts) -> Iterator[Finding]:
    """Workers that are lost, and those that were stopped while jobs wait for them, where no other took their place."""
    served = {worker.endpoint for worker in facts.workers if worker.state != "gone"}
    is_missed = any(job.hindrance == "worker gone" for job in facts.waiting)
    for worker in facts.workers:
        if worker.state != "gone" or worker.endpoint in served or (worker.stopped and not is_missed):
            continue
        how = "was stopped, and jobs wait for it; last heard of" if worker.stopped else "is gone since"
        start = f"lmq worker --endpoint {worker.endpoint}"
        yield Finding(
            "advice" if worker.stopped else "fault",
            f"worker {worker.name} {how} {time_of_day(facts.now_ms - worker.heard_ms)}",
            start if worker.host in ("", facts.host) else f"on {worker.host}: {start}",
        )


def _endpoints(facts: Facts) -> Iterator[Finding]:
    for worker in facts.workers:
        breaker = worker.capacity.breaker if worker.capacity else None
        if breaker is None or worker.state == "gone":
            continue
        host = worker.endpoint.partition("://")[2].rpartition(":")[0] or worker.host
        text = f"the endpoint {worker.endpoint} of worker {worker.name} is down: {breaker.reason}"
        if worker.backend != "lm_studio":
            yield Finding("fault", text, f"start the model server at {worker.endpoint}, or see what it says")
        elif host in LOOPBACK:
            yield Finding("fault", text, f"on {worker.host}: start LM Studio's server, or: lms server start")
        else:
            yield Finding(
                "fault",
                f"{text}; if LM Studio runs there, it may not serve the network",
                f'on {host}: in LM Studio turn on "Serve on Local Network", or: lms server start --bind 0.0.0.0',
            )


def _instances(facts: Facts) -> Iterator[Finding]:
    for worker in facts.workers:
        if worker.capacity is None or worker.state == "gone":
            continue
        told = []
        for one in worker.capacity.instances:
            if one.kind != "llm" or one.model == "*":
                continue
            if 0 < one.context_tokens < SMALL_CONTEXT_TOKENS:
                told.append(one.instance_id)
                yield Finding(
                    "fault",
                    f"{one.model} on {worker.name} is loaded with a context of {one.context_tokens:,} tokens",
                    f"on {worker.host}: lms load {one.model} --context-length 8192",
                )
            if one.slots == 1 and one.limit_by in ("", "slots") and worker.backend == "lm_studio":
                told.append(one.instance_id)
                yield Finding(
                    "advice",
                    f"{one.model} on {worker.name} is loaded with parallel = 1: one job at a time",
                    f"on {worker.host}: lms load {one.model} --parallel 4",
                )
        for note in worker.capacity.notes:
            if not any(note.startswith(name) for name in told):
                text, _, cure = note.partition("; type: ")
                yield Finding("advice", f"{worker.name}: {text}", cure)


def _missing_models(facts: Facts) -> Iterator[Finding]:
    """Jobs that wait for a model that no endpoint has."""
    if not any(worker.state not in ("gone", "silent") for worker in facts.workers):
        return
    names = {name.casefold() for model in facts.models for name in (model.model, *model.aliases)}
    for worker in facts.workers:
        if worker.capacity is not None:
            names |= {
                name.casefold()
                for one in worker.capacity.instances
                for name in (one.instance_id, *one.variants)
            }
            names |= {name.casefold() for one in worker.capacity.catalog for name in one.variants}
    if "*" in names:
        return
    missing: dict[str, int] = {}
    for job in facts.waiting:
        if job.models and not any(_has(names, model) for model in job.models):
            missing[job.models[0]] = missing.get(job.models[0], 0) + 1
    for model, waiting in missing.items():
        jobs = f"{count(waiting, 'job')} {'waits' if waiting == 1 else 'wait'}"
        yield Finding(
            "fault", f"{jobs} for {model}, which no endpoint has", f"lms get {model}, or: lmq models"
        )


def _missing_task_types(facts: Facts) -> Iterator[Finding]:
    """Jobs of a task type that no worker takes: a typing error, or a worker that was not started."""
    taken = {name for worker in facts.workers if worker.state != "gone" for name in worker.task_types}
    if not taken:
        return
    missing: dict[str, int] = {}
    for job in facts.waiting:
        if job.task_type not in taken:
            missing[job.task_type] = missing.get(job.task_type, 0) + 1
    for task_type, waiting in missing.items():
        verb = "waits" if waiting == 1 else "wait"
        yield Finding(
            "advice",
            f"{count(waiting, 'job')} of type {task_type} {verb}; the workers take {', '.join(sorted(taken))}",
            f"lmq cancel --type {shlex.quote(task_type)}, or start a worker that takes it",
        )


def _hindered(facts: Facts) -> Iterator[Finding]:
    """Jobs that something keeps from running that no other finding is about."""
    alike: dict[tuple[str, str, str], list[JobStatus]] = {}
    for job in facts.waiting:
        if job.hindrance and job.hindrance not in TOLD_ELSEWHERE:
            alike.setdefault((job.task_type, model_of(job), job.hindrance), []).append(job)
    for (task_type, model, hindrance), jobs in alike.items():
        verb = "waits" if len(jobs) == 1 else "wait"
        text = f"{count(len(jobs), 'job')} of type {task_type} for {model} {verb}: {hindrance}"
        yield Finding("fault", text, f"lmq why {short(jobs[0].id)}")


def _local_endpoint(facts: Facts) -> Iterator[Finding]:
    """LM Studio on this machine: there, and with something to answer with."""
    local = facts.local
    if local is None:
        return
    served = any(_same_port(worker.endpoint, local.url) for worker in facts.workers if worker.state != "gone")
    if local.kind and not served and facts.health is not None:
        yield Finding(
            "advice", f"nobody serves the model server at {local.url}", f"lmq worker --endpoint {local.url}"
        )
    elif not local.kind and not any(worker.state != "gone" for worker in facts.workers):
        yield Finding(
            "fault", f"no LM Studio at {local.url}", "lms server start, or try it without: lmq up --simulator"
        )
    if local.kind == "lm_studio" and not local.llms:
        yield Finding("advice", f"LM Studio at {local.url} has no chat model loaded", "lms load")


def _same_port(one: str, other: str) -> bool:
    """Tell whether both name the same port of this machine."""
    hosts = [url.partition("://")[2].rstrip("/").rpartition(":") for url in (one, other)]
    return hosts[0][2] == hosts[1][2] and hosts[0][0] in LOOPBACK


def _has(names: set[str], model: str) -> bool:
    plain = model.casefold()
    return (
        plain in names
        or plain.partition("@")[0] in names
        or any(name.rpartition("/")[2] == plain for name in names)
    )


def _version_of(software: str) -> str:
    """Return the version in `lmq-worker 0.1.0` or `lmq-broker/0.1.0`."""
    return software.replace("/", " ").rpartition(" ")[2]

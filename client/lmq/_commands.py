"""Each command once, for both faces: the message to send and how its reply is read. No waiting here."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Generic, TypeVar, cast

import msgspec

from lmq import results
from lmq._handle import refusal
from lmq._payloads import JobMatch, UpdateOptions, id_of, models_of, ms, priority_of
from lmq.results import JobStatus, Json, Outcome, Why
from lmq_proto import bounds, ids, messages
from lmq_proto.errors import NotFound

if TYPE_CHECKING:
    from lmq._handle import Handle
    from lmq_proto.events import Event as WireEvent
    from lmq_proto.messages import FromPeer

T = TypeVar("T")

PUB_ALL = (b"tick", b"queue/", b"worker/")
"""What `watch` shows unless told otherwise."""
PROGRESS_LOOK_S = 1.0
"""Silence on the PUB socket after which progress is asked for."""


@dataclass(frozen=True, slots=True)
class Ask(Generic[T]):
    """A command and the reading of its reply. `what` names it for people."""

    what: str
    message: FromPeer
    read: Callable[[object], T]


def status(job_id: bytes) -> Ask[JobStatus]:
    def read(reply: object) -> JobStatus:
        found = cast(messages.Statuses, reply).jobs
        if not found:
            raise NotFound("job", ids.to_text(job_id))
        return JobStatus.of(found[0])

    return Ask("the job's status", messages.Status(request_id=0, job_ids=[job_id]), read)


def statuses(job_ids: list[bytes]) -> Ask[list[JobStatus]]:
    return Ask(
        "the jobs' status",
        messages.Status(request_id=0, job_ids=job_ids),
        lambda reply: [JobStatus.of(view) for view in cast(messages.Statuses, reply).jobs],
    )


def page(match: JobMatch, after: int, limit: int, oldest_first: bool) -> Ask[tuple[list[JobStatus], bool]]:
    """Ask for a page of jobs; the reply is (jobs, whether more follow)."""
    message = messages.ListJobs(
        request_id=0, match=job_filter(match), after=after, limit=min(limit, bounds.PAGE_JOBS),
        oldest_first=oldest_first,
    )  # fmt: skip

    def read(reply: object) -> tuple[list[JobStatus], bool]:
        listed = cast(messages.Listed, reply)
        return [JobStatus.of(view) for view in listed.jobs], listed.more

    return Ask("the list of jobs", message, read)


def why(job_id: bytes) -> Ask[Why]:
    return Ask(
        "the reasons",
        messages.Why(request_id=0, job_id=job_id),
        lambda reply: Why.of(cast(messages.WhyReply, reply)),
    )


def payload(job_id: bytes) -> Ask[Json]:
    def read(reply: object) -> Json:
        return results.unpack(reply[1] if isinstance(reply, tuple) else b"")

    return Ask("the payload", messages.GetPayload(request_id=0, job_id=job_id), read)


def target(jobs: Sequence[str | Handle[object]], match: JobMatch) -> messages.Target:
    """Return the jobs named, or those that match.

    Raises:
        ValueError: neither, both, or too many are given.
    """
    if bool(jobs) == bool(match):
        raise ValueError("name jobs, or say what they match; not both, and not neither")
    if len(jobs) > bounds.BATCH_JOBS:
        raise ValueError(f"at most {bounds.BATCH_JOBS} jobs at once")
    if match:
        return messages.Target(match=job_filter(match))
    return messages.Target(job_ids=[id_of(job) for job in jobs])


def cancel(on: messages.Target, if_attempt: int | None = None) -> Ask[tuple[list[Outcome], bool]]:
    return _act("the cancelling", messages.Cancel(request_id=0, target=on, if_attempt=if_attempt))


def retry(on: messages.Target, if_attempt: int | None = None) -> Ask[tuple[list[Outcome], bool]]:
    return _act("the retry", messages.Retry(request_id=0, target=on, if_attempt=if_attempt))


def delete(on: messages.Target) -> Ask[tuple[list[Outcome], bool]]:
    return _act("the deletion", messages.Delete(request_id=0, target=on))


def update(on: messages.Target, changes: UpdateOptions) -> Ask[tuple[list[Outcome], bool]]:
    unknown = changes.keys() - UpdateOptions.__annotations__.keys()
    if unknown:
        raise TypeError(f"unknown changes: {', '.join(sorted(unknown))}")
    message = messages.Update(
        request_id=0,
        target=on,
        priority=priority_of(changes.get("priority")),
        queue=changes.get("queue"),
        models=models_of(changes["model"]) if "model" in changes else None,
        labels=dict(changes["labels"]) if "labels" in changes else None,
        expires_ms=_ms_or_none(changes.get("expires_s")),
        timeout_ms=_ms_or_none(changes.get("timeout_s")),
        keep_ms=_ms_or_none(changes.get("keep_s")),
        failures=changes.get("failures"),
        if_attempt=changes.get("if_attempt"),
    )
    return _act("the update", message)


def changed(outcomes: list[Outcome]) -> bool:
    """Return whether an act on one job changed it.

    Raises:
        LmqError: it was refused.
    """
    for outcome in outcomes:
        if outcome.outcome == "refused":
            wire = messages.Outcome(job_id=b"", outcome="refused", error=outcome.error)
            raise refusal(wire)
    return any(outcome.outcome == "changed" for outcome in outcomes)


def queues() -> Ask[list[results.QueueView]]:
    return Ask(
        "the queues", messages.ListQueues(request_id=0), lambda reply: cast(messages.Queues, reply).queues
    )


def workers() -> Ask[list[results.WorkerView]]:
    return Ask(
        "the workers", messages.ListWorkers(request_id=0), lambda reply: cast(messages.Workers, reply).workers
    )


def models() -> Ask[list[results.ModelView]]:
    return Ask(
        "the models", messages.ListModels(request_id=0), lambda reply: cast(messages.Models, reply).models
    )


def users() -> Ask[results.Users]:
    return Ask("the users", messages.ListUsers(request_id=0), lambda reply: cast(messages.Users, reply))


def set_user(user: str, weight: float | None, ceiling: int | None) -> Ask[bool]:
    if weight is None and ceiling is None:
        raise ValueError("give a weight, a ceiling or both")
    message = messages.SetUser(request_id=0, user=user, weight=weight, ceiling=ceiling)
    return Ask("the setting", message, _was_changed)


def reset_user(user: str) -> Ask[bool]:
    return Ask("the reset", messages.ResetUser(request_id=0, user=user), _was_changed)


def aliases() -> Ask[list[results.Alias]]:
    return Ask(
        "the aliases", messages.ListModels(request_id=0), lambda reply: cast(messages.Models, reply).aliases
    )


def default_models() -> Ask[list[results.DefaultModel]]:
    return Ask(
        "the default models",
        messages.ListModels(request_id=0),
        lambda reply: cast(messages.Models, reply).defaults,
    )


def set_alias(name: str, models: str | Sequence[str], reset: bool) -> Ask[bool]:
    message = messages.SetAlias(request_id=0, name=name, models=models_of(models), reset=reset)
    return Ask("the alias", message, _was_changed)


def set_default_model(task_type: str, model: str, reset: bool) -> Ask[bool]:
    message = messages.SetDefaultModel(request_id=0, task_type=task_type, model=model, reset=reset)
    return Ask("the default model", message, _was_changed)


def order_model(kind: str, model: str, worker: str, for_s: float | None = None) -> Ask[bool]:
    message = messages.OrderModel(request_id=0, kind=kind, model=model, worker=worker, for_ms=ms(for_s))
    return Ask(f"the {kind}", message, _was_changed)


def health() -> Ask[results.HealthReply]:
    return Ask(
        "the broker's health",
        messages.Health(request_id=0),
        lambda reply: cast(messages.HealthReply, reply),
    )


def usage(
    since: datetime | None, until: datetime | None, by: str | Sequence[str], user: str
) -> Ask[results.UsageReply]:
    """Ask for the first page of the sums."""
    message = messages.Usage(
        request_id=0, since_ms=_at_ms(since), until_ms=_at_ms(until), by=[by] if isinstance(by, str) else list(by),
        user=user,
    )  # fmt: skip
    return _usage(message)


def usage_after(ask: Ask[results.UsageReply], page: results.UsageReply) -> Ask[results.UsageReply]:
    """Ask for the page after another."""
    message = cast(messages.Usage, ask.message)
    last = page.rows[-1]
    return _usage(msgspec.structs.replace(message, after=[getattr(last, name) for name in message.by]))


def joined(pages: list[results.UsageReply]) -> results.UsageReply:
    """Return several pages as one."""
    return msgspec.structs.replace(pages[-1], rows=[row for page in pages for row in page.rows])


def _usage(message: messages.Usage) -> Ask[results.UsageReply]:
    return Ask("the usage", message, lambda reply: cast(messages.UsageReply, reply))


def metrics(users: bool) -> Ask[str]:
    def read(reply: object) -> str:
        return reply[1].decode() if isinstance(reply, tuple) else ""

    return Ask("the metrics", messages.Metrics(request_id=0, users=users), read)


def backup(path: str) -> Ask[messages.BackupDone]:
    return Ask(
        "the backup",
        messages.Backup(request_id=0, path=path),
        lambda reply: cast(messages.BackupDone, reply),
    )


def pause(queue: str, worker: str, for_s: float | None, now: bool, reason: str) -> Ask[bool]:
    noun, name = _held(queue, worker)
    message = messages.Pause(request_id=0, noun=noun, name=name, for_ms=ms(for_s), now=now, reason=reason)
    return Ask("the pause", message, _was_changed)


def drain(queue: str, worker: str, reason: str) -> Ask[bool]:
    noun, name = _held(queue, worker)
    return Ask("the drain", messages.Drain(request_id=0, noun=noun, name=name, reason=reason), _was_changed)


def resume(queue: str, worker: str) -> Ask[bool]:
    noun, name = _held(queue, worker)
    return Ask("the resuming", messages.Resume(request_id=0, noun=noun, name=name), _was_changed)


def limits() -> Ask[list[results.LimitView]]:
    return Ask(
        "the limits",
        messages.ListLimits(request_id=0),
        lambda reply: cast(messages.LimitsReply, reply).limits,
    )


def set_limit(
    of: str, value: float, per_s: float, burst: float, refuse: bool, names: Mapping[str, str]
) -> Ask[bool]:
    unknown = names.keys() - _LIMIT_NAMES
    if unknown:
        raise TypeError(
            f"unknown names: {', '.join(sorted(unknown))}; there are: {', '.join(sorted(_LIMIT_NAMES))}"
        )
    limit = messages.Limit(of=of, value=value, per_ms=ms(per_s), burst=burst, refuse=refuse, **names)
    return Ask("the limit", messages.SetLimit(request_id=0, limit=limit), _was_changed)


def reset_limits(name: str) -> Ask[bool]:
    return Ask("the reset", messages.ResetLimits(request_id=0, name=name), _was_changed)


_LIMIT_NAMES = frozenset({"user", "queue", "task_type", "model", "worker", "resource"})


@dataclass(frozen=True, slots=True)
class EventsFrom:
    """Where a subscription begins, in the wire's words."""

    cursor: int
    since_ms: int
    last: int


def events_from(since: int | datetime | None, last: int) -> EventsFrom:
    """Return where to begin: after a cursor, at a time, with some past events, or from now on.

    Raises:
        ValueError: both a beginning and a number of past events are given.
    """
    if since is not None and last:
        raise ValueError("say since or last, not both")
    if isinstance(since, datetime):
        return EventsFrom(-1, int(since.timestamp() * 1000), 0)
    return EventsFrom(-1 if since is None else since, 0, last)


def event_filter(
    kinds: Sequence[str],
    user: str,
    queue: str,
    jobs: Sequence[str | Handle[object]],
    labels: Mapping[str, str] | None,
) -> messages.EventFilter:
    return messages.EventFilter(
        kinds=list(kinds),
        user=user,
        queue=queue,
        job_ids=[id_of(job) for job in jobs],
        labels=dict(labels or {}),
    )


def event(wire: WireEvent) -> results.Event:
    """Return an event with its id as text."""
    return results.Event(
        seq=wire.seq, at_ms=wire.at_ms, kind=wire.kind, job_id=ids.to_text(wire.job_id) if wire.job_id else "",
        user=wire.user, queue=wire.queue, task_type=wire.task_type, state=wire.state, attempt=wire.attempt,
        worker=wire.worker, model=wire.model, labels=wire.labels, detail=wire.detail,
    )  # fmt: skip


def job_topic(channel: bytes) -> bytes:
    """Return the PUB topic of a job's progress."""
    return b"job/" + channel.hex().encode()


def progress_of(view: JobStatus) -> messages.Progress:
    """Return what the PUB socket would say of a job."""
    return messages.Progress(
        state=view.state, phase=view.phase, progress=view.progress, stage=view.stage, tokens=view.tokens,
        tokens_per_s=view.tokens_per_s, attempt=view.attempt, ahead=view.ahead,
    )  # fmt: skip


def job_filter(match: JobMatch) -> messages.JobFilter:
    """Return the wire's filter.

    Raises:
        TypeError: something else than the known fields is given.
    """
    unknown = match.keys() - JobMatch.__annotations__.keys()
    if unknown:
        known = ", ".join(sorted(JobMatch.__annotations__))
        raise TypeError(f"unknown filters: {', '.join(sorted(unknown))}; there are: {known}")
    return messages.JobFilter(
        states=list(match.get("states") or ()),
        user=match.get("user") or "",
        queue=match.get("queue") or "",
        task_type=match.get("task_type") or "",
        model=match.get("model") or "",
        worker=match.get("worker") or "",
        key=match.get("key") or "",
        labels=dict(match.get("labels") or {}),
        id_ending=match.get("id_ending") or "",
    )


def _act(what: str, message: FromPeer) -> Ask[tuple[list[Outcome], bool]]:
    """Ask for an act; the reply is (outcomes, whether the filter matched more)."""

    def read(reply: object) -> tuple[list[Outcome], bool]:
        done = cast(messages.Changed, reply)
        outcomes = [
            Outcome(ids.to_text(one.job_id), one.outcome, one.error, one.priority) for one in done.outcomes
        ]
        return outcomes, done.more

    return Ask(what, message, read)


def _held(queue: str, worker: str) -> tuple[str, str]:
    if bool(queue) == bool(worker):
        raise ValueError("name a queue or a worker")
    return ("queue", queue) if queue else ("worker", worker)


def _was_changed(reply: object) -> bool:
    return cast(messages.Done, reply).changed


def _at_ms(at: datetime | None) -> int:
    return 0 if at is None else max(0, int(at.timestamp() * 1000))


def _ms_or_none(seconds: float | None) -> int | None:
    return None if seconds is None else ms(seconds)

"""One event as one line: when, which job, what, and what about it. Used by `tail` and `logs`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from lmq.cli.humane import duration, short, time_of_day
from lmq.cli.tables import GAP, SHORT, cut, one_line, padded, room

if TYPE_CHECKING:
    from lmq import Event, JobStatus

KIND_COLORS = {
    "started": "cyan",
    "done": "green",
    "dead": "red",
    "attempt_failed": "red",
    "released": "yellow",
    "expired": "red",
    "cancelled": "magenta",
    "worker_up": "green",
    "worker_down": "red",
    "breaker_open": "red",
    "load_failed": "red",
    "foreign_use": "yellow",
    "swaps_costly": "yellow",
    "broker_started": "yellow",
    "broker_stopped": "yellow",
}
KIND_WIDTH = 14
TYPE_WIDTH = 10
USER_WIDTH = 10

_SINGLE_DETAILS = ("reason", "error", "endpoint", "software", "by")


def event_line(event: Event) -> str:
    """Return an event as a line that fits the terminal."""
    head = f"{time_of_day(event.at_ms)}{GAP}{short(event.job_id):{SHORT}}{GAP}"
    kind = padded(event.kind.replace("_", " "), KIND_WIDTH)
    if event.job_id:
        about = f"{padded(event.task_type, TYPE_WIDTH)} {padded(event.user, USER_WIDTH)} {one_line(_job_detail(event))}"
    else:
        about = one_line(f"{event.worker or event.queue or event.user} {_other_detail(event)}")
    left = room() - len(head) - KIND_WIDTH - len(GAP)
    color = KIND_COLORS.get(event.kind)
    return f"{head}{click.style(kind, fg=color)}{GAP}{cut(about, max(left, 20))}".rstrip()


def phase_line(at_ms: int, job: JobStatus) -> str:
    """Return the line that says that a job has come to its next phase."""
    head = f"{time_of_day(at_ms)}{GAP}{short(job.id):{SHORT}}{GAP}"
    kind = padded(job.phase, KIND_WIDTH)
    place = one_line(f"{job.worker} {job.model}")
    about = f"{padded(job.task_type, TYPE_WIDTH)} {padded(job.user, USER_WIDTH)} {place}"
    left = room() - len(head) - KIND_WIDTH - len(GAP)
    return f"{head}{click.style(kind, fg='blue')}{GAP}{cut(about, max(left, 20))}".rstrip()


def _job_detail(event: Event) -> str:
    detail = event.detail
    match event.kind:
        case "accepted":
            return f"queue {event.queue}"
        case "started":
            again = f"attempt {event.attempt}, " if event.attempt > 1 else ""
            return f"{again}{event.worker} {event.model}"
        case "attempt_failed":
            return (
                f"failure {detail.get('failures')} of {detail.get('failures_max')}: {detail.get('error', '')}"
            )
        case "done":
            return _took(event)
        case "updated":
            return f"priority {detail.get('priority')}"
    return _first_detail(event)


def _took(event: Event) -> str:
    leased_ms = event.detail.get("leased_ms")
    took = f"took {duration(leased_ms / 1000)}" if isinstance(leased_ms, int | float) else ""
    again = f"attempt {event.attempt}" if event.attempt > 1 else ""
    return ", ".join(part for part in (took, again) if part)


def _other_detail(event: Event) -> str:
    if event.kind == "broker_started":
        return f"epoch {event.detail.get('epoch', '?')}"
    if event.kind in ("queue_held", "worker_held"):
        reason = event.detail.get("reason")
        words = "drains" if event.detail.get("hold") == "drain" else "paused"
        return f"{words} by {event.detail.get('by', '?')}" + (f" ({reason})" if reason else "")
    if event.kind == "user_set":
        given = [
            f"{name} {event.detail[name]}"
            for name in ("weight", "ceiling")
            if event.detail.get(name) is not None
        ]
        return f"{', '.join(given)} by {event.detail.get('by', '?')}"
    return _model_detail(event) or event.model or _first_detail(event)


def _model_detail(event: Event) -> str:
    """Return what an event says of models beside their name; nothing of the other kinds."""
    detail = event.detail
    match event.kind:
        case "model_ordered":
            return f"{detail.get('order')} {event.model} by {detail.get('by')}"
        case "order_ended":
            error = detail.get("error")
            return f"{detail.get('order')} {event.model}: {detail.get('why')}" + (
                f" ({error})" if error else ""
            )
        case "foreign_use":
            return f"{event.model} {detail.get('what')} by others, trust {detail.get('trust')}"
        case "swaps_costly":
            models, users = detail.get("models"), detail.get("users")
            names = "/".join(models) if isinstance(models, list) else ""
            people = f" for {', '.join(users)}" if isinstance(users, list) and users else ""
            return f"{detail.get('lost_s')} of {detail.get('of_s')} s lost to {names}{people}"
        case "alias_set":
            models = detail.get("models")
            stands_for = " or ".join(models) if isinstance(models, list) and models else "nothing"
            return f"{detail.get('alias')} stands for {stands_for} by {detail.get('by')}"
        case "default_set":
            return f"{detail.get('task_type')} runs on {event.model or 'any model'} by {detail.get('by')}"
    return ""


def _first_detail(event: Event) -> str:
    for name in _SINGLE_DETAILS:
        value = event.detail.get(name)
        if value:
            return f"by {value}" if name == "by" else str(value)
    return ""

"""`lmq show`: all that is known of a job."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from lmq.cli import session as cli
from lmq.cli.errors import clean
from lmq.cli.humane import duration, model_of, short, since, size, time_of_day, until, when, where
from lmq.cli.params import job_argument, job_ids
from lmq.cli.tables import STATE_COLORS, state_word

if TYPE_CHECKING:
    from lmq import JobStatus
    from lmq.cli.session import Session

EXAMPLE = """
lmq show 7KQ2M9
lmq show @last --payload
"""
NAME_WIDTH = 12


@cli.command("show", example=EXAMPLE)
@job_argument
@click.option("--payload", is_flag=True, help="Also what was submitted.")
@cli.pass_session
def command(session: Session, job: str, payload: bool) -> None:
    """Show all that is known of a job. JOB is an id, its last 6 characters, or @last."""
    with session.client() as client:
        handle = client.job(job_ids(client, (job,))[0])
        status = handle.status()
        submitted = handle.payload() if payload else None
    if session.json:
        shown = cli.jsonable(status)
        session.emit({**shown, "payload": submitted} if payload else shown)
        return
    for name, text in facts(status):
        click.echo(f"{name:{NAME_WIDTH}}{text}")
    if payload:
        import json

        click.echo(json.dumps(cli.jsonable(submitted), ensure_ascii=False, indent=2))


def facts(job: JobStatus) -> list[tuple[str, str]]:
    """Return names and texts of what is known, leaving out what is not."""
    state = click.style(state_word(job.state), fg=STATE_COLORS.get(job.state))
    doing = where(job)
    owner = job.user if job.user == job.principal else f"{job.user} (submitted by {job.principal})"
    found = [
        ("job", f"{short(job.id)}   {job.id}"),
        ("state", f"{state}{'   ' + doing if doing else ''}"),
        ("type", job.task_type),
        ("user", owner),
        ("queue", f"{job.queue}, priority {_priority(job)}"),
        ("parents", _parents(job)),
        ("model", model_of(job) if job.model or job.models else ""),
        ("worker", job.worker),
        ("attempt", _attempts(job)),
        ("created", f"{time_of_day(job.created_at_ms)}, {since(job.created_at_ms)} ago"),
        ("due", _ahead(job.due_at_ms)),
        ("started", _past(job.started_at_ms, job.created_at_ms, "after waiting")),
        ("finished", _past(job.finished_at_ms, job.started_at_ms, "after running")),
        ("done", _done(job)),
        ("expires", _ahead(job.expires_at_ms) if not job.is_final else ""),
        ("deleted", _ahead(job.deletes_at_ms)),
        ("time limit", f"{duration(job.timeout_ms / 1000)} an attempt" if job.timeout_ms else ""),
        ("payload", size(job.payload_bytes)),
        ("result", size(job.result_bytes) if job.result_bytes else ""),
        ("labels", ", ".join(f"{name}={value}" for name, value in sorted(job.labels.items()))),
        ("key", job.key),
        ("session", job.session),
        ("error", (job.error.message or job.error.code) if job.error else ""),
    ]
    found += [
        ("failure" if n == 1 else "", f"{n}. {e.message or e.code}") for n, e in enumerate(job.story, 1)
    ]
    return [
        (name, " ".join(clean(text).split(" ")) if name != "state" else text) for name, text in found if text
    ]


def _priority(job: JobStatus) -> str:
    if job.own_priority is None:
        return str(job.priority)
    return f"{job.priority} (its own is {job.own_priority}, a job that waits for it has more)"


def _parents(job: JobStatus) -> str:
    waits = f"; waits for {', '.join(map(short, job.waits_for))}" if job.waits_for else ""
    return ", ".join(map(short, job.parents)) + waits


def _attempts(job: JobStatus) -> str:
    if not job.attempt:
        return ""
    text = f"{job.attempt}, failures {job.failures} of {job.failures_max}"
    return text + (", runs alone since a crash" if job.suspect else "")


def _past(at_ms: int, before_ms: int, words: str) -> str:
    if not at_ms:
        return ""
    return time_of_day(at_ms) + (f", {words} {duration((at_ms - before_ms) / 1000)}" if before_ms else "")


def _done(job: JobStatus) -> str:
    """Return when a job that waits is done; of one that runs its state says so."""
    if job.done_in_s is None or job.state == "leased":
        return ""
    return when(job.done_in_s, "").strip()


def _ahead(at_ms: int) -> str:
    return f"{time_of_day(at_ms)}, in {until(at_ms)}" if at_ms else ""

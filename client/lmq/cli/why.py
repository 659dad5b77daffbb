"""`lmq why`: why a job waits, or what became of it, and what its owner can type."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING

from lmq.cli import session as cli
from lmq.cli.errors import clean
from lmq.cli.humane import duration, model_of, now_ms, place_of, short, when, where
from lmq.cli.params import job_argument, job_ids
from lmq.cli.tables import WIDTH, width_of

if TYPE_CHECKING:
    from lmq import JobStatus, Why
    from lmq.cli.session import Session

EXAMPLE = "lmq why 7KQ2M9"
INDENT = 10
BETWEEN = "    "


@cli.command("why", example=EXAMPLE)
@job_argument
@cli.pass_session
def command(session: Session, job: str) -> None:
    """Say why a job waits, or what became of it, and what you can do. JOB as for lmq show.

    The first line says where it is: how many jobs start before it, when it starts and when it is done. Such a
    range is to hold nine times in ten; it is left out where nothing is foreseen to start. Then come the causes,
    the weightiest first, and commands you can type.
    """
    with session.client() as client:
        answer = client.job(job_ids(client, (job,))[0]).why()
    if session.json:
        session.emit(answer)
    else:
        session.lines(why_lines(answer))


def why_lines(answer: Why) -> list[str]:
    """Return the answer: the job, the weightiest cause, the others, what to type."""
    job = answer.status
    head = f"{short(job.id)} {job.task_type} {job.user} {model_of(job)}"
    lines = [clean(f"{head}   {situation(job)}")]
    for number, reason in enumerate(answer.reasons):
        lines += _wrapped("because" if number == 0 else "also", reason.text)
    for number, row in enumerate(_rows(answer.hints)):
        lines.append(f"{'you can' if number == 0 else '':{INDENT}}{clean(row)}")
    return lines


def situation(job: JobStatus) -> str:
    """Return where a job is in one line: how long it waits, how many are ahead, when it starts and is done."""
    if job.is_final:
        doing = where(job)
        return job.state + (f", {doing}" if doing and job.error is None else "")
    if job.state == "leased":
        return f"running, {where(job)}"
    parts = [f"waiting {duration((now_ms() - job.created_at_ms) / 1000)}"]
    if job.ahead is not None:
        parts.append(place_of(job))
    if job.starts_in_s is not None:
        parts.append(when(job.starts_in_s, "starts"))
    if job.done_in_s is not None:
        parts.append(when(job.done_in_s, "done"))
    return ", ".join(parts)


def _wrapped(title: str, text: str) -> list[str]:
    rows = textwrap.wrap(clean(text), WIDTH - INDENT) or [""]
    return [f"{title if n == 0 else '':{INDENT}}{row}" for n, row in enumerate(rows)]


def _rows(hints: list[str]) -> list[str]:
    """Return the hints side by side, as many as fit a line."""
    rows: list[str] = []
    for hint in hints:
        if rows and width_of(rows[-1]) + len(BETWEEN) + width_of(hint) <= WIDTH - INDENT:
            rows[-1] += BETWEEN + hint
        else:
            rows.append(hint)
    return rows

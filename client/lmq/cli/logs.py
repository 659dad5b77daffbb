"""`lmq logs`: what happened to a job, and when."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from lmq.cli import session as cli
from lmq.cli.errors import clean
from lmq.cli.eventlines import event_line
from lmq.cli.history import past_events
from lmq.cli.params import job_argument, job_ids

if TYPE_CHECKING:
    from lmq.cli.session import Session

EXAMPLE = "lmq logs 7KQ2M9"


@cli.command("logs", example=EXAMPLE)
@job_argument
@cli.pass_session
def command(session: Session, job: str) -> None:
    """Print what happened to a job, and when: each attempt, each failure. JOB as for lmq show."""
    with session.client() as client:
        handle = client.job(job_ids(client, (job,))[0])
        status = handle.status()
        for event in past_events(client, since=0, jobs=[handle.id]):
            session.emit(event) if session.json else click.echo(event_line(event))
    if status.log and not session.json:
        click.echo(f"its last word: {clean(status.log)}")

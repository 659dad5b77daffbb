"""`lmq wait`: wait until jobs have ended."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import click

from lmq.cli import session as cli
from lmq.cli.errors import Failure, Status, leaving
from lmq.cli.humane import count, short
from lmq.cli.params import DURATION, job_ids, jobs_argument
from lmq.cli.reading import wait_for
from lmq.cli.tables import STATE_COLORS
from lmq.errors import WaitTimeout

if TYPE_CHECKING:
    from lmq.cli.session import Session

EXAMPLE = """
lmq wait @last
lmq wait 7KQ2M9 X3M1PD --timeout 10m && echo all done
"""


@cli.command("wait", example=EXAMPLE)
@jobs_argument
@click.option("--timeout", type=DURATION, metavar="TIME", help="Give up after so long; the jobs go on.")
@cli.pass_session
def command(session: Session, job: tuple[str, ...], timeout: float | None) -> None:
    """Wait until all these jobs have ended; the status is 0 if all are done. JOB as for lmq show.

    In a terminal a line says meanwhile why the job waits and when it starts, or what it does and when it is done.
    """
    if not job:
        raise click.UsageError("name the jobs to wait for, as: lmq wait @last")
    deadline_s = None if timeout is None else time.monotonic() + timeout
    states: dict[str, str] = {}
    with leaving("left; the jobs go on"), session.client() as client:
        for job_id in job_ids(client, job):
            try:
                left_s = None if deadline_s is None else max(0.0, deadline_s - time.monotonic())
                states[job_id] = wait_for(session, client.job(job_id), left_s)
            except WaitTimeout as error:
                # What was asked for, not what the jobs before this one left of it.
                raise WaitTimeout(error.what, timeout or 0.0) from error
            if not session.json:
                state = states[job_id]
                click.echo(f"{short(job_id)}  {click.style(state, fg=STATE_COLORS.get(state))}")
    if session.json:
        session.emit(states)
    failed = [job_id for job_id, state in states.items() if state != "done"]
    if failed:
        raise Failure(
            f"{count(len(failed), 'job')} not done; type: lmq why {short(failed[0])}", Status.FAILED
        )

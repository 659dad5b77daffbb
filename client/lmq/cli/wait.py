"""`lmq wait`: wait until jobs have ended."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import click

from lmq.cli import session as cli
from lmq.cli.errors import Failure, Status
from lmq.cli.humane import count, short
from lmq.cli.params import DURATION, job_ids, jobs_argument
from lmq.cli.reading import PATIENCE_S, StatusLine, situation
from lmq.cli.tables import STATE_COLORS
from lmq.errors import WaitTimeout

if TYPE_CHECKING:
    from lmq.cli.port import JobPort
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
    with session.client() as client:
        for job_id in job_ids(client, job):
            try:
                states[job_id] = _wait(session, client.job(job_id), deadline_s)
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


def _wait(session: Session, job: JobPort, deadline_s: float | None) -> str:
    """Wait for one job; tell a person who looks on where it is meanwhile.

    Raises:
        WaitTimeout: the deadline has passed.
    """
    status = StatusLine(session)
    try:
        while True:
            left_s = None if deadline_s is None else max(0.0, deadline_s - time.monotonic())
            if not status.is_on or (left_s is not None and left_s <= PATIENCE_S):
                return job.wait(left_s)
            try:
                return job.wait(PATIENCE_S)
            except WaitTimeout:
                status.show(lambda: situation(job))
    finally:
        status.clear()

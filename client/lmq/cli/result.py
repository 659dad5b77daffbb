"""`lmq result`: wait for a job's result and print it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import click

from lmq import ChatResult, EmbedResult
from lmq.cli import session as cli
from lmq.cli.embed import print_vectors
from lmq.cli.errors import clean, leaving
from lmq.cli.params import DURATION, job_argument, job_ids
from lmq.cli.reading import wait_for

if TYPE_CHECKING:
    from lmq.cli.session import Session

EXAMPLE = """
lmq result @last
lmq result 7KQ2M9 --timeout 5m
"""


@cli.command("result", example=EXAMPLE)
@job_argument
@click.option(
    "--timeout", type=DURATION, metavar="TIME", help="Give up waiting after so long; the job goes on."
)
@cli.pass_session
def command(session: Session, job: str, timeout: float | None) -> None:
    """Wait for a job's result and print it; what waits is never cancelled. JOB as for lmq show."""
    with leaving("left; the job goes on"), session.client() as client:
        handle = client.job(job_ids(client, (job,))[0])
        wait_for(session, handle, timeout)
        print_result(session, handle.id, handle.result())


def print_result(session: Session, job_id: str, result: object) -> None:
    """Print a result: text of a chat, an overview of vectors, JSON of anything else."""
    if isinstance(result, EmbedResult):
        print_vectors(session, job_id, result)
    elif session.json:
        session.emit({"job": job_id, "result": cli.jsonable(result)})
    elif isinstance(result, ChatResult):
        if result.text or not result.tool_calls:
            click.echo(clean(result.text))
        if result.tool_calls:
            click.echo(json.dumps(cli.jsonable(result.tool_calls), ensure_ascii=False, indent=2))
    else:
        click.echo(json.dumps(cli.jsonable(result), ensure_ascii=False, indent=2))

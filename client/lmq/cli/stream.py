"""`lmq stream`: a job's text from the start of its attempt, as it is written."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from lmq.cli import session as cli
from lmq.cli.errors import leaving
from lmq.cli.params import job_argument, job_ids
from lmq.cli.reading import print_text

if TYPE_CHECKING:
    from lmq.cli.session import Session

EXAMPLE = """
lmq stream @last
lmq stream 7KQ2M9 --reasoning
"""


@cli.command("stream", example=EXAMPLE)
@job_argument
@click.option("--reasoning", is_flag=True, help="Show the model's reasoning too, on stderr.")
@cli.pass_session
def command(session: Session, job: str, reasoning: bool) -> None:
    """Print a job's text from its start, whenever you come, until it ends. Ctrl-C only leaves."""
    with leaving("left; the job goes on"), session.client() as client:
        print_text(session, client, client.job(job_ids(client, (job,))[0]), reasoning=reasoning)

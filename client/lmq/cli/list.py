"""`lmq list`: jobs in a table, newest first."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from lmq.cli import session as cli
from lmq.cli.humane import model_of, short, since, where
from lmq.cli.params import match_of, match_options
from lmq.cli.tables import Row, state_cell, table

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lmq import JobStatus
    from lmq.cli.session import Session

EXAMPLE = """
lmq list --state waiting --user anna
lmq list --state dead --state expired -n 5
lmq --json list --label chat=42 | jq -r '.[].id'
"""


@cli.command("list", example=EXAMPLE)
@click.option(
    "--limit", "-n", type=click.IntRange(min=1), default=20, show_default=True, help="At most so many."
)
@click.option("--open", "only_open", is_flag=True, help="Only those that have not ended.")
@match_options
@cli.pass_session
def command(session: Session, /, limit: int, only_open: bool, **said: Any) -> None:
    """List jobs, newest first.

    The last column says of a job that waits how many start before it and when it starts, of one that runs what it
    does and when it is done: ranges that are to hold nine times in ten. lmq why says more of one job.
    """
    match = match_of(said)
    if only_open:
        from lmq import OPEN

        match["states"] = sorted(OPEN)
    with session.client() as client:
        found = client.jobs(limit=limit, **match)
    if session.json:
        session.emit(found)
    elif found:
        session.lines(job_table(found))
        if len(found) == limit:
            session.note(f"(the newest {limit}; more with -n)")
    else:
        session.note("no job" + (" fits that" if match else " yet; type: lmq chat Hello"))


def job_table(found: Sequence[JobStatus]) -> list[str]:
    """Return the table of some jobs."""
    rows: list[Row] = [
        [short(job.id), state_cell(job.state), job.task_type, job.user, model_of(job), since(job.created_at_ms),
         where(job)]
        for job in found
    ]  # fmt: skip
    return table(["ID", "STATE", "TYPE", "USER", "MODEL", "AGE", ""], rows, right=(5,))

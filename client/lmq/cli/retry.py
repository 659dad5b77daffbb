"""`lmq retry`: Let dead."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lmq.cli import session as cli
from lmq.cli.acting import meant_jobs, tell_outcomes
from lmq.cli.params import jobs_argument, match_of, match_options
from lmq_proto.states import FINAL, State

if TYPE_CHECKING:
    from lmq.cli.session import Session

EXAMPLE = """
lmq retry 7KQ2M9
lmq retry --state dead --queue training
lmq retry 7KQ2M9 3HGA9T       # a job, and one that waited for it
"""


@cli.command("retry", example=EXAMPLE)
@jobs_argument
@match_options
@cli.pass_session
def command(session: Session, /, job: tuple[str, ...], **said: Any) -> None:
    """Let dead, cancelled or expired jobs run again, with no failures, by name or by filter.

    JOB is an id, its last 6 characters, or @last. A filter asks back first, unless --yes.

    Jobs that waited for a job that failed were cancelled with it, and stay so when it is retried: name them behind it.
    """
    match = match_of(said)
    with session.client() as client:
        named = meant_jobs(session, client, "retry", job, match, FINAL - {State.DONE})
        outcomes = client.retry(*named) if named else client.retry(**match)
    tell_outcomes(session, outcomes, "open again")

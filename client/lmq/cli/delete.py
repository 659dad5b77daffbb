"""`lmq delete`: Remove ended jobs with their results."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lmq.cli import session as cli
from lmq.cli.acting import meant_jobs, tell_outcomes
from lmq.cli.params import jobs_argument, match_of, match_options
from lmq_proto.states import FINAL

if TYPE_CHECKING:
    from lmq.cli.session import Session

EXAMPLE = """
lmq delete 7KQ2M9
lmq delete --user anna --state done --yes
"""


@cli.command("delete", example=EXAMPLE)
@jobs_argument
@match_options
@cli.pass_session
def command(session: Session, /, job: tuple[str, ...], **said: Any) -> None:
    """Remove ended jobs with their results, by name or by filter.

    JOB is an id, its last 6 characters, or @last. A filter asks back first, unless --yes.
    """
    match = match_of(said)
    with session.client() as client:
        named = meant_jobs(session, client, "delete", job, match, FINAL)
        outcomes = client.delete(*named) if named else client.delete(**match)
    tell_outcomes(session, outcomes, "deleted")

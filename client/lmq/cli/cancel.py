"""`lmq cancel`: Cancel jobs by name."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lmq.cli import session as cli
from lmq.cli.acting import meant_jobs, tell_outcomes
from lmq.cli.params import jobs_argument, match_of, match_options
from lmq_proto.states import OPEN

if TYPE_CHECKING:
    from lmq.cli.session import Session

EXAMPLE = """
lmq cancel 7KQ2M9
lmq cancel --user anna --queue training --yes
"""


@cli.command("cancel", example=EXAMPLE)
@jobs_argument
@match_options
@cli.pass_session
def command(session: Session, /, job: tuple[str, ...], **said: Any) -> None:
    """Cancel jobs by name, or all open ones that fit a filter. The text so far stays.

    JOB is an id, its last 6 characters, or @last. A filter asks back first, unless --yes.
    """
    match = match_of(said)
    with session.client() as client:
        named = meant_jobs(session, client, "cancel", job, match, OPEN)
        outcomes = client.cancel(*named) if named else client.cancel(**match)
    tell_outcomes(session, outcomes, "cancelled")

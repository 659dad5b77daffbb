"""What cancel, retry, update and delete share: which jobs are meant, asking first, telling what became of each."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import TYPE_CHECKING

import click

from lmq._payloads import priority_of
from lmq.cli.errors import Failure, Status, sentence_of, status_of
from lmq.cli.humane import count, short
from lmq.cli.params import job_ids
from lmq.cli.tables import padded
from lmq.errors import LmqError
from lmq_proto.errors import from_info

if TYPE_CHECKING:
    from lmq import JobMatch, Outcome
    from lmq.cli.port import BrokerPort
    from lmq.cli.session import Session

COUNTED = 1000
"""Jobs counted for the question; more are `over 1,000`."""
ALREADY = {"cancelled": "had ended already", "updated": "nothing to change"}
"""Said of a job that stayed as it was, where the verb's own words would not fit."""
TOLD = 20
"""Jobs named one by one; of more only the number is told."""


def meant_jobs(
    session: Session,
    client: BrokerPort,
    verb: str,
    names: tuple[str, ...],
    match: JobMatch,
    states: Iterable[str],
) -> list[str]:
    """Return the ids that were named; none if a filter is meant, which was confirmed then.

    Args:
        session: asks back.
        client: counts.
        verb: for the question.
        names: jobs as people name them.
        match: the filter.
        states: what the act can touch at all.

    Raises:
        UsageError: neither or both are given.
        Failure: nothing matches, or the answer was no.
    """
    if bool(names) == bool(match):
        raise click.UsageError(f"name jobs, or filter them: lmq {verb} 7KQ2M9, or lmq {verb} --user anna")
    if names:
        return job_ids(client, names)
    if "states" not in match:
        match["states"] = sorted(states)
    found = len(client.jobs(limit=COUNTED, **match))
    if not found:
        raise Failure("no job fits that", Status.NOT_FOUND)
    number = f"over {COUNTED:,} jobs" if found == COUNTED else count(found, "job")
    session.confirm(f"{verb} {number}?")
    return []


def tell_outcomes(session: Session, outcomes: list[Outcome], done: str) -> None:
    """Print what became of each job.

    Args:
        session: how to print.
        outcomes: one for each job.
        done: the word for a job that was changed, as `cancelled`.

    Raises:
        Failure: one was refused; the status is that of the first refusal.
    """
    refused = [outcome for outcome in outcomes if outcome.outcome == "refused"]
    if session.json:
        session.emit(outcomes)
    else:
        shown = outcomes if len(outcomes) <= TOLD else []
        for outcome in shown:
            if outcome.outcome != "refused":
                words = done if outcome.outcome == "changed" else ALREADY.get(done, f"was {done} already")
                click.echo(f"{padded(short(outcome.job_id), 6)}  {words}")
        if not shown:
            changed = sum(outcome.outcome == "changed" for outcome in outcomes)
            click.echo(f"{count(changed, 'job')} {done}")
    if refused:
        errors = [_error(outcome) for outcome in refused]
        sentences = "\nlmq: ".join(dict.fromkeys(sentence_of(error) for error in errors[:TOLD]))
        raise Failure(sentences, status_of(errors[0]), error=errors[0])


def tell_ceilings(
    session: Session, client: BrokerPort, given: Iterable[tuple[str, int | None]], asked: int | str | None
) -> None:
    """Say where the ceiling of a job's user is under the priority that was asked for.

    Args:
        session: how to print.
        client: knows whose jobs they are.
        given: (job id, the priority it was given if that is less than was asked for) of each job.
        asked: priority or name of a band; None: the task type's default.
    """
    lowered = [(job_id, priority) for job_id, priority in given if priority is not None]
    whose = Counter((client.job(job_id).status().user, priority) for job_id, priority in lowered[:TOLD])
    more = f", asked {priority_of(asked)}" if asked is not None else ""
    for (user, priority), number in whose.items():
        jobs = f"{count(number, 'job')}: " if len(lowered) > 1 else ""
        session.note(f"{jobs}priority {priority} (ceiling of {user}){more}")
    if len(lowered) > TOLD:
        session.note(f"and {len(lowered) - TOLD:,} jobs more")


def _error(outcome: Outcome) -> LmqError:
    return from_info(outcome.error) if outcome.error else LmqError(f"{short(outcome.job_id)} was refused")

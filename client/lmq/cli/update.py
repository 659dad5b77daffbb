"""`lmq update`: change jobs that have not ended."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, cast

import click

from lmq.cli import session as cli
from lmq.cli.acting import meant_jobs, tell_ceilings, tell_outcomes
from lmq.cli.params import (
    DURATION,
    LABEL,
    MODEL,
    PRIORITY,
    QUEUE,
    STATE,
    jobs_argument,
    match_of,
    match_options,
)
from lmq_proto.states import OPEN

if TYPE_CHECKING:
    from lmq import JobMatch, UpdateOptions
    from lmq.cli.session import Session

EXAMPLE = """
lmq update 7KQ2M9 --priority 8 --model llama-8b
lmq update --user anna --state ready --queue night
lmq update --where queue=night --priority 2
"""
FILTERS = ("user", "queue", "state", "type", "model", "worker", "key", "label")
CHANGED = ("queue", "model", "label")
"""Filters of the other commands whose names say here what to change."""


@cli.command("update", example=EXAMPLE)
@jobs_argument
@partial(match_options, but=CHANGED)
@click.option("--where", type=LABEL, multiple=True, metavar="FIELD=VALUE",
              help="A filter by its name, as queue=night, model=llama-8b, label=chat=42.")  # fmt: skip
@click.option("--priority", "-p", type=PRIORITY, metavar="0-9|BAND", help="Larger runs sooner.")
@click.option("--queue", type=QUEUE, help="Where it waits.")
@click.option("--model", "-m", type=MODEL, multiple=True, help="Any of these; may be given several times.")
@click.option("--label", type=LABEL, multiple=True, metavar="NAME=VALUE", help="In place of its labels.")
@click.option("--expires", type=DURATION, metavar="TIME", help="It must have started by then.")
@click.option("--timeout", type=DURATION, metavar="TIME", help="Of one attempt.")
@click.option("--keep", type=DURATION, metavar="TIME", help="How long its result stays.")
@click.option("--failures", type=click.IntRange(1, 100), help="So many, and it is dead.")
@cli.pass_session
def command(
    session: Session, /, job: tuple[str, ...], where: tuple[tuple[str, str], ...], **said: Any
) -> None:
    """Change jobs that have not ended, by name or by filter. What is not said stays.

    JOB is an id, its last 6 characters, or @last. A filter asks back first, unless --yes. --queue, --model and --label
    say what the jobs get; to filter by these, write --where.
    """
    changes = changes_of(said)
    if not changes:
        raise click.UsageError("say what to change, as: lmq update 7KQ2M9 --priority 8")
    match = filter_of(said, where)
    with session.client() as client:
        named = meant_jobs(session, client, "update", job, match, OPEN)
        outcomes = client.update(*named, match=None if named else match, **changes)
        given = [(outcome.job_id, outcome.priority) for outcome in outcomes]
        tell_ceilings(session, client, given, changes.get("priority"))
    tell_outcomes(session, outcomes, "updated")


def changes_of(said: dict[str, Any]) -> UpdateOptions:
    """Return the SDK's changes from what was typed."""
    seconds = {"expires": "expires_s", "timeout": "timeout_s", "keep": "keep_s"}
    changes: dict[str, Any] = {
        seconds.get(name, name): said[name]
        for name in ("priority", "queue", "expires", "timeout", "keep", "failures")
        if said[name] is not None
    }
    if said["model"]:
        changes["model"] = list(said["model"])
    if said["label"]:
        changes["labels"] = dict(said["label"])
    return cast("UpdateOptions", changes)


def filter_of(said: dict[str, Any], where: tuple[tuple[str, str], ...]) -> JobMatch:
    """Return the SDK's filter from the options of `match_options` and from pairs.

    Raises:
        UsageError: a field is none to filter by.
    """
    match: dict[str, Any] = {name: value for name, value in said.items() if name not in CHANGED}
    for name, value in where:
        if name not in FILTERS:
            raise click.UsageError(f"--where {name}: there is {', '.join(FILTERS)}")
        if name == "state":
            match["state"] = [*match.get("state", ()), STATE.convert(value, None, None)]
        elif name == "label":
            match["label"] = [*match.get("label", ()), LABEL.convert(value, None, None)]
        else:
            match["task_type" if name == "type" else name] = value
    return match_of(match)

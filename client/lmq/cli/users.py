"""`lmq users`: who has which share of the engines, and giving a user a weight or a ceiling."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING

import click

from lmq._payloads import priority_of
from lmq.cli import session as cli
from lmq.cli.errors import near
from lmq.cli.held import tell
from lmq.cli.humane import count, since
from lmq.cli.list import job_table
from lmq.cli.params import PRIORITY, USER
from lmq.cli.tables import Cell, Row, table
from lmq.errors import NotFound
from lmq_proto.bounds import WEIGHT_MAX

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lmq import Allowance, Users, UserView
    from lmq.cli.session import Session

EXAMPLE = """
lmq users
lmq users set anna --weight 2 --ceiling 6
lmq users reset anna
"""
JOBS_SHOWN = 20
SHORT_RATIO = 0.5
"""Received as a part of what is wanted: below it, who waits is worth a look."""


@cli.noun("users", example=EXAMPLE)
@cli.pass_session
@click.pass_context
def command(context: click.Context, session: Session) -> None:
    """List users and their shares; show one, give one a weight or a ceiling."""
    if context.invoked_subcommand is None:
        _list(session)


@command.command("list", example="lmq users list")
@cli.pass_session
def list_command(session: Session) -> None:
    """List who waits and runs, with the share wanted and received.

    WANTED is the user's weight over the weights of all who wait or run in the band, RECEIVED its part of the engine
    time of the last minute.
    """
    _list(session)


@command.command("show", example="lmq users show anna")
@click.argument("name", type=USER)
@cli.pass_session
def show_command(session: Session, name: str) -> None:
    """Show one user: weight, ceiling, share in each band, jobs."""
    with session.client() as client:
        found = client.users()
        shares_as = share_of(found, name)
        rows = [row for row in found.users if row.user == shares_as]
        given = next((each for each in found.allowances if each.user == name), None)
        states = ["leased", "ready", "asking", "delayed", "blocked"]
        jobs = client.jobs(user=name, states=states, limit=JOBS_SHOWN, oldest_first=True)
    if not rows and given is None and not jobs and shares_as == name:
        raise NotFound("user", name, near(name, [row.user for row in found.users if row.user]))
    if session.json:
        told = {"users": rows, "allowance": given, "jobs": jobs}
        session.emit({what: cli.jsonable(value) for what, value in told.items()})
        return
    if shares_as == name:
        click.echo(f"{name}   {given_words(given)}")
    else:
        ceiling = "" if given is None or given.ceiling is None else f"   ceiling {given.ceiling}"
        click.echo(f"{name} shares as {shares_as}{ceiling}")
    if rows:
        session.lines(["", *user_table(rows, [given] if given and shares_as == name else [])])
    if jobs:
        session.lines(["", *job_table(jobs)])


@command.command("set", example="lmq users set anna --weight 2 --ceiling 6")
@click.argument("name", type=USER)
@click.option("--weight", type=click.FloatRange(1 / WEIGHT_MAX, WEIGHT_MAX), metavar="NUMBER",
              help="Its share follows it; 1 is what others have.")  # fmt: skip
@click.option("--ceiling", type=PRIORITY, metavar="0-9|BAND",
              help="The highest priority that its jobs are given.")  # fmt: skip
@cli.pass_session
def set_command(session: Session, name: str, weight: float | None, ceiling: int | str | None) -> None:
    """Give a user a weight or a ceiling, in place of what the broker's configuration says, until reset.

    A weight counts at once, also for what waits. A ceiling counts for what is asked for from now on.
    """
    if weight is None and ceiling is None:
        raise click.UsageError(f"say what to give, as: lmq users set {name} --weight 2")
    highest = None if ceiling is None else priority_of(ceiling)
    with session.client() as client:
        changed = client.set_user(name, weight=weight, ceiling=highest)
        shares_as = share_of(client.users(), name) if "/" in name and weight is not None else name
    given = [f"weight {weight:g}"] if weight is not None else []
    given += [f"ceiling {highest}"] if highest is not None else []
    tell(session, name, f"has {' and '.join(given)}", changed, otherwise="had that already")
    if shares_as != name:
        session.note(
            f"{name} shares as {shares_as}: its own weight does not count; "
            f"type: lmq users set {shlex.quote(shares_as)} --weight {weight:g}"
        )


@command.command("reset", example="lmq users reset anna")
@click.argument("name", type=USER)
@cli.pass_session
def reset_command(session: Session, name: str) -> None:
    """Take back what was set: the broker's configuration counts again."""
    with session.client() as client:
        changed = client.reset_user(name)
    tell(session, name, "is as the configuration says", changed, otherwise="was as the configuration says")


def share_of(found: Users, user: str) -> str:
    """Return in whose name a user has its share: that of its app, unless each of the app's users has one."""
    app, is_of_app, _ = user.partition("/")
    return app if is_of_app and found.has_shares and app not in found.each else user


def name_of(row: UserView) -> str:
    """Return whom a row is about."""
    if row.user:
        return row.user
    return count(row.users, "other")


def given_words(given: Allowance | None) -> str:
    """Return what a user is given, and who said so."""
    if given is None:
        return "weight 1"
    words = f"weight {1.0 if given.weight is None else given.weight:g}"
    words += "" if given.ceiling is None else f", ceiling {given.ceiling}"
    origin = f"by {given.by}, {since(given.since_ms)} ago" if given.by else "by the configuration"
    return f"{words}   ({origin})"


def is_short(row: UserView) -> bool:
    """Tell whether a user who waits got far less than its share."""
    return bool(row.queued) and row.received_ratio < SHORT_RATIO * row.wanted_ratio


def user_table(rows: Sequence[UserView], allowances: Sequence[Allowance]) -> list[str]:
    """Return the table of some users, in the bands where they are; then of those who have only an allowance."""
    ceilings = {each.user: str(each.ceiling) for each in allowances if each.ceiling is not None}
    shown: list[Row] = []
    for row in rows:
        received = Cell(f"{row.received_ratio:.0%}", "yellow" if is_short(row) else "")
        wanted = f"{row.wanted_ratio:.0%}" if row.wanted_ratio else ""
        shown.append(
            [row.pool, row.band, name_of(row), f"{row.weight:g}", ceilings.get(row.user, ""),
             f"{row.running:,}", f"{row.queued:,}", wanted, received]
        )  # fmt: skip
    here = {row.user for row in rows}
    for each in allowances:
        if each.user not in here:
            weight = 1.0 if each.weight is None else each.weight
            shown.append(["", "", each.user, f"{weight:g}", ceilings.get(each.user, ""), "", "", "", ""])
    titles = ["POOL", "BAND", "USER", "WEIGHT", "CEILING", "RUNS", "WAITS", "WANTED", "RECEIVED"]
    hidden = {"POOL": len({row.pool for row in rows}) < 2, "BAND": not rows, "CEILING": not ceilings}
    kept = [n for n, title in enumerate(titles) if not hidden.get(title)]
    return table(
        [titles[n] for n in kept], [[row[n] for n in kept] for row in shown],
        right=[at for at, n in enumerate(kept) if n >= titles.index("WEIGHT")],
    )  # fmt: skip


def user_lines(found: Users) -> list[str]:
    """Return the table of all users; none, where there is nothing to tell."""
    if not found.users and not found.allowances:
        return []
    return user_table(found.users, found.allowances)


def _list(session: Session) -> None:
    with session.client() as client:
        found = client.users()
    if session.json:
        session.emit(found)
        return
    lines = user_lines(found)
    if lines:
        session.lines(lines)
    else:
        session.note("nobody waits or runs, and nobody is given a weight or a ceiling")
    if not found.has_shares:
        session.note(f"policy {found.policy}: by priority, then arrival; users have no shares")

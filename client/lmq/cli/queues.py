"""`lmq queues`: what waits where, and holding a queue."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from lmq.cli import session as cli
from lmq.cli.errors import near
from lmq.cli.held import for_words, tell
from lmq.cli.humane import duration, held
from lmq.cli.list import job_table
from lmq.cli.params import DURATION, QUEUE
from lmq.cli.tables import Cell, Row, table
from lmq.errors import NotFound

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lmq import QueueView
    from lmq.cli.session import Session

EXAMPLE = """
lmq queues
lmq queues pause training --for 3h --reason "new data comes"
"""
JOBS_SHOWN = 20
QUEUES_NAMED = 5


@cli.noun("queues", example=EXAMPLE)
@cli.pass_session
@click.pass_context
def command(context: click.Context, session: Session) -> None:
    """List queues; show, pause, resume or drain one."""
    if context.invoked_subcommand is None:
        _list(session)


@command.command("list", example="lmq queues list")
@cli.pass_session
def list_command(session: Session) -> None:
    """List all queues and what waits in them."""
    _list(session)


@command.command("show", example="lmq queues show training")
@click.argument("name", type=QUEUE)
@cli.pass_session
def show_command(session: Session, name: str) -> None:
    """Show one queue and its jobs, those that come first at the top."""
    with session.client() as client:
        found = [queue for queue in client.queues() if queue.name == name]
        if not found:
            raise NotFound("queue", name, near(name, [queue.name for queue in client.queues()]))
        states = ["leased", "ready", "asking", "delayed", "blocked"]
        jobs = client.jobs(queue=name, states=states, limit=JOBS_SHOWN, oldest_first=True)
    if session.json:
        session.emit({"queue": cli.jsonable(found[0]), "jobs": cli.jsonable(jobs)})
        return
    session.lines(queue_table(found))
    if jobs:
        session.lines(["", *job_table(jobs)])


@command.command("pause", example='lmq queues pause training --for 3h --reason "new data comes"')
@click.argument("name", type=QUEUE)
@click.option("--for", "for_s", type=DURATION, metavar="TIME", help="Resume by itself after so long.")
@click.option("--reason", default="", help="For people.")
@cli.pass_session
def pause_command(session: Session, name: str, for_s: float | None, reason: str) -> None:
    """Let nothing of a queue start; what runs goes on."""
    with session.client() as client:
        known = [queue.name for queue in client.queues()]
        changed = client.pause(queue=name, for_s=for_s, reason=reason)
    tell(session, name, f"paused{for_words(for_s)}", changed, otherwise="was paused already")
    _note_new(session, name, known)


@command.command("resume", example="lmq queues resume training")
@click.argument("name", type=QUEUE)
@cli.pass_session
def resume_command(session: Session, name: str) -> None:
    """End a pause or drain."""
    with session.client() as client:
        changed = client.resume(queue=name)
    tell(session, name, "goes on", changed, otherwise="was not held")


@command.command("drain", example="lmq queues drain training")
@click.argument("name", type=QUEUE)
@click.option("--reason", default="", help="For people.")
@cli.pass_session
def drain_command(session: Session, name: str, reason: str) -> None:
    """Let a queue finish what it holds and take no more."""
    with session.client() as client:
        known = [queue.name for queue in client.queues()]
        changed = client.drain(queue=name, reason=reason)
    tell(session, name, "drains: it takes no more jobs", changed, otherwise="drained already")
    _note_new(session, name, known)


def _note_new(session: Session, name: str, known: Sequence[str]) -> None:
    """Say that a queue is held that nobody has named before: it may be a typing error."""
    if name not in known:
        session.note(f"there was no queue {name}; there are: {', '.join(known[:QUEUES_NAMED]) or 'none'}")


def queue_table(found: Sequence[QueueView]) -> list[str]:
    """Return the table of some queues."""
    rows: list[Row] = []
    for queue in found:
        later = queue.delayed + queue.blocked + queue.asking
        note = held(queue.hold) if queue.hold else "" if queue.workers or not queue.ready else "no worker"
        rows.append(
            [queue.name, _number(queue.leased, "cyan"), _number(queue.ready, "yellow"), _number(later, "blue"),
             duration(queue.oldest_ready_ms / 1000) if queue.ready else "", Cell(note, "yellow")]
        )  # fmt: skip
    return table(["QUEUE", "RUNS", "WAITS", "LATER", "OLDEST", ""], rows, right=(1, 2, 3, 4))


def _number(count: int, color: str) -> Cell:
    return Cell(f"{count:,}", color if count else "")


def _list(session: Session) -> None:
    with session.client() as client:
        found = client.queues()
    if session.json:
        session.emit(found)
    elif found:
        session.lines(queue_table(found))
    else:
        session.note("no queue yet; a queue comes with its first job")

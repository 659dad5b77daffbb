"""`lmq workers`: who works, on what, and holding a worker."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from lmq.cli import session as cli
from lmq.cli.errors import clean, near
from lmq.cli.held import for_words, tell
from lmq.cli.humane import duration, held, size
from lmq.cli.list import job_table
from lmq.cli.params import DURATION, WORKER
from lmq.cli.tables import Cell, Row, state_cell, table
from lmq.errors import NotFound

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lmq import WorkerView
    from lmq.cli.session import Session

EXAMPLE = """
lmq workers
lmq workers pause gpu-2 --for 3h --now --reason gaming
"""
_TRUSTED = 0.995
"""From here on nothing is said of it: half of what is missing comes back in an hour."""

# What keeps an instance from taking more jobs at once, in words.
LIMITS = {
    "setting": "as it was set",
    "slots": "it has no more slots",
    "gain": "more would bring hardly more text",
    "slo": "more would make text too slow",
    "cache": "no more jobs of the usual size fit into its context",
    "guard": "its cache ran full",
    "errors": "jobs failed there",
    "most": "the most that its worker allows",
    "probe": "more once there is work for it",
}
HELD_BACK = frozenset({"guard", "errors"})


@cli.noun("workers", example=EXAMPLE)
@cli.pass_session
@click.pass_context
def command(context: click.Context, session: Session) -> None:
    """List workers; show, pause, resume or drain one."""
    if context.invoked_subcommand is None:
        _list(session)


@command.command("list", example="lmq workers list")
@cli.pass_session
def list_command(session: Session) -> None:
    """List all workers, the lately gone too."""
    _list(session)


@command.command("show", example="lmq workers show gpu-2")
@click.argument("name", type=WORKER)
@cli.pass_session
def show_command(session: Session, name: str) -> None:
    """Show one worker: its endpoint, its models, what runs there."""
    with session.client() as client:
        all_workers = client.workers()
        worker = next((one for one in all_workers if one.name == name), None)
        if worker is None:
            raise NotFound("worker", name, near(name, [one.name for one in all_workers]))
        jobs = client.jobs(worker=name, states=["leased"])
    if session.json:
        session.emit({"worker": cli.jsonable(worker), "jobs": cli.jsonable(jobs)})
        return
    for title, text in facts(worker):
        click.echo(f"{title:11}{clean(text)}")
    if jobs:
        session.lines(["", *job_table(jobs)])


@command.command("pause", example="lmq workers pause gpu-2 --for 3h --now --reason gaming")
@click.argument("name", type=WORKER)
@click.option("--for", "for_s", type=DURATION, metavar="TIME", help="Resume by itself after so long.")
@click.option("--now", is_flag=True, help="Give back what runs there; it runs elsewhere or later, uncharged.")
@click.option("--reason", default="", help="For people, as gaming.")
@cli.pass_session
def pause_command(session: Session, name: str, for_s: float | None, now: bool, reason: str) -> None:
    """Let nothing start on a worker; what runs there finishes, unless --now."""
    with session.client() as client:
        changed = client.pause(worker=name, for_s=for_s, now=now, reason=reason)
    tell(session, name, f"paused{for_words(for_s)}", changed, otherwise="was paused already")


@command.command("resume", example="lmq workers resume gpu-2")
@click.argument("name", type=WORKER)
@cli.pass_session
def resume_command(session: Session, name: str) -> None:
    """End a pause or drain."""
    with session.client() as client:
        changed = client.resume(worker=name)
    tell(session, name, "goes on", changed, otherwise="was not held")


@command.command("drain", example="lmq workers drain gpu-2 --reason update")
@click.argument("name", type=WORKER)
@click.option("--reason", default="", help="For people.")
@cli.pass_session
def drain_command(session: Session, name: str, reason: str) -> None:
    """Let a worker finish what it runs and take no more."""
    with session.client() as client:
        changed = client.drain(worker=name, reason=reason)
    tell(session, name, "drains: it takes no more jobs", changed, otherwise="drained already")


def worker_table(found: Sequence[WorkerView]) -> list[str]:
    """Return the table of some workers."""
    rows: list[Row] = []
    for worker in found:
        capacity = worker.capacity
        models = ", ".join(one.model for one in capacity.instances) if capacity else ""
        rows.append(
            [worker.name, state_cell(state_of(worker)), taken_of(worker),
             worker.endpoint.removeprefix("http://"), models, Cell(note_of(worker), "yellow")]
        )  # fmt: skip
    return table(["WORKER", "STATE", "SLOTS", "ENDPOINT", "MODELS", ""], rows, right=(2,))


def slots_of(worker: WorkerView) -> int:
    """Return how many jobs a worker takes at once."""
    if worker.capacity is None:
        return 0
    slots = sum(one.slots for one in worker.capacity.instances)
    return slots if worker.capacity.slots is None else min(slots, worker.capacity.slots)


def taken_of(worker: WorkerView) -> str:
    """Return how many of its slots are taken, `3/4`; embeddings that ride together take one."""
    slots = slots_of(worker)
    return f"{sum(worker.instances_leased.values())}/{slots}" if slots else f"{worker.leased:,}"


def state_of(worker: WorkerView) -> str:
    """Return its state; `down` where it is up itself and its endpoint is not."""
    is_broken = worker.capacity is not None and worker.capacity.breaker is not None
    return "down" if is_broken and worker.state == "up" else worker.state


def note_of(worker: WorkerView) -> str:
    """Return what people should know first about a worker."""
    if worker.hold is not None:
        return held(worker.hold)
    if worker.capacity is not None and worker.capacity.breaker is not None:
        return f"endpoint down: {worker.capacity.breaker.reason}"
    if worker.loading:
        return f"loads {worker.loading}"
    for one in worker.capacity.instances if worker.capacity is not None else []:
        if one.limit_by in HELD_BACK:
            return f"only {one.slots} at once: {LIMITS[one.limit_by]}"
    return ""


def facts(worker: WorkerView) -> list[tuple[str, str]]:
    """Return names and texts of what is known of a worker."""
    found = [
        ("worker", worker.name),
        ("state", f"{state_of(worker)}{'   ' + note_of(worker) if note_of(worker) else ''}"),
        ("endpoint", f"{worker.endpoint} ({worker.backend})"),
        ("host", f"{worker.host}, process {worker.pid}"),
        ("software", f"{worker.software}, protocol {worker.protocol}"),
        (
            "connected",
            f"for {duration(worker.connected_ms / 1000)}, heard {duration(worker.heard_ms / 1000)} ago",
        ),
        ("queues", ", ".join(worker.queues) or "all"),
        ("tasks", ", ".join(worker.task_types)),
    ]
    if worker.capacity is not None:
        for one in worker.capacity.instances:
            context = f", context {one.context_tokens:,}" if one.context_tokens else ""
            why = f" ({LIMITS.get(one.limit_by, one.limit_by)})" if one.limit_by else ""
            found.append(("loaded", f"{one.model} ({one.kind}), {one.slots} at once{why}{context}"))
        on_disk = [f"{one.model} ({size(one.size_bytes)})" for one in worker.capacity.catalog]
        found.append(("on disk", ", ".join(on_disk)))
        found += [("note", note) for note in worker.capacity.notes]
    if worker.loads or worker.lost_ms:
        lost = (
            f"; {duration(worker.lost_ms / 1000)} of the last 10 min lost to swaps" if worker.lost_ms else ""
        )
        found.append(("loads", f"{worker.loads:,} in the last hour{lost}"))
    if worker.trust < _TRUSTED:
        found.append(("trust", f"{worker.trust:.2f}: others load and unload models there"))
    return [(title, text) for title, text in found if text]


def _list(session: Session) -> None:
    with session.client() as client:
        found = client.workers()
    if session.json:
        session.emit(found)
    elif found:
        session.lines(worker_table(found))
    else:
        session.note("no worker; type: lmq up")

"""`lmq top`: queues, workers and jobs in one live table."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import click

from lmq.cli import session as cli
from lmq.cli.feeds import Feeds
from lmq.cli.humane import count, duration, size
from lmq.cli.list import job_table
from lmq.cli.queues import queue_table
from lmq.cli.tables import GAP, cut
from lmq.cli.workers import worker_table
from lmq.errors import LmqError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lmq import HealthReply, JobStatus, QueueView, WorkerView
    from lmq.cli.port import BrokerPort
    from lmq.cli.session import Session

JOBS_SHOWN = 10
RATE_WINDOW_S = 60.0
TICK_WITHIN_S = 3.0

EXAMPLE = """
lmq top
lmq top --once
"""


@dataclass(frozen=True, slots=True)
class View:
    """All that the table shows, as of one moment."""

    url: str
    health: HealthReply
    queues: list[QueueView]
    workers: list[WorkerView]
    running: list[JobStatus]
    waiting: list[JobStatus]


@cli.command("top", example=EXAMPLE)
@click.option("--once", is_flag=True, help="Print it once and end, as on a pipe.")
@cli.pass_session
def command(session: Session, once: bool) -> None:
    """Watch queues, workers and jobs in one table, renewed each second. Ctrl-C leaves."""
    with session.client() as client:
        view = look(client)
        if session.json:
            session.emit({name: cli.jsonable(getattr(view, name)) for name in View.__slots__})
        elif once or sys.stdout is None or not sys.stdout.isatty():
            session.lines(lines_of(view, None))
        else:
            _live(client, view)


def look(client: BrokerPort) -> View:
    """Ask for all that the table shows."""
    return View(
        client.url, client.health(), client.queues(), client.workers(),
        client.jobs(states=["leased"], limit=JOBS_SHOWN, oldest_first=True),
        client.jobs(states=["ready"], limit=JOBS_SHOWN, oldest_first=True),
    )  # fmt: skip


def lines_of(view: View, done_per_min: float | None) -> list[str]:
    """Return the table as lines."""
    health = view.health
    rate = "" if done_per_min is None else f", {done_per_min:.0f} done/min"
    facts = [view.url, f"up {duration(health.uptime_ms / 1000)}"]
    facts.append(f"{count(sum(health.counts.values()), 'open job')}{rate}")
    disk = [f"ended {_ended(health)}", f"journal {size(health.journal_bytes)}"]
    disk += [f"{size(health.journal_free_bytes)} free", f"commit {health.commit_p50_us / 1000:.1f} ms"]
    lines = [GAP.join([click.style("lmq", bold=True), *facts]), GAP.join(disk)]
    troubles = (health.disk_trouble, health.clock_trouble)
    lines += [click.style(trouble, fg="red") for trouble in troubles if trouble]
    for title, table in (
        ("no queue", queue_table(view.queues) if view.queues else []),
        ("no worker; type: lmq up", worker_table(view.workers) if view.workers else []),
        ("nothing runs", job_table(view.running) if view.running else []),
        ("nothing waits", job_table(view.waiting) if view.waiting else []),
    ):
        lines += ["", *(table or [click.style(title, dim=True)])]
    return lines


def _ended(health: HealthReply) -> str:
    shown = [f"{number:,} {state}" for state, number in sorted(health.ended.items()) if number]
    return ", ".join(shown) or "none yet"


class Rate:
    """How many jobs are done a minute, over the last minute that was watched."""

    def __init__(self) -> None:
        self._seen: list[tuple[float, int]] = []

    def add(self, now_s: float, done: int) -> float | None:
        """Take a count; return the rate, None while there is only one."""
        if self._seen and done < self._seen[-1][1]:
            # The broker has started anew, and counts from its start.
            self._seen.clear()
        self._seen.append((now_s, done))
        while self._seen[0][0] < now_s - RATE_WINDOW_S and len(self._seen) > 2:
            del self._seen[0]
        first_s, first = self._seen[0]
        return (done - first) * 60 / (now_s - first_s) if now_s > first_s else None


def _live(client: BrokerPort, view: View) -> None:
    from rich.console import Console
    from rich.live import Live
    from rich.text import Text

    console = Console(highlight=False)
    feeds = Feeds()
    feeds.add("views", _views(client))
    rate = Rate()
    color = click.get_current_context().color is not False

    def shown(lines: list[str]) -> Text:
        room = max(5, console.height - 1)
        text = "\n".join(lines[:room])
        return Text.from_ansi(text, no_wrap=True) if color else Text(click.unstyle(text), no_wrap=True)

    with Live(console=console, screen=True, auto_refresh=False) as live:
        while True:
            lines = lines_of(view, rate.add(time.monotonic(), view.health.ended.get("done", 0)))
            live.update(shown(lines), refresh=True)
            item = feeds.get(TICK_WITHIN_S)
            while item is None:
                away = click.style(
                    cut(f"no word from the broker at {client.url}; waiting for it", 79), fg="red"
                )
                live.update(shown([away, *lines]), refresh=True)
                item = feeds.get(TICK_WITHIN_S)
            if item.error is not None:
                raise item.error
            view = cast("View", item.value)


def _views(client: BrokerPort) -> Iterator[View]:
    """Give a view at each tick of the broker."""
    for _ in client.watch("tick"):
        try:
            yield look(client)
        except LmqError:
            # Away just now; the next tick will tell.
            continue

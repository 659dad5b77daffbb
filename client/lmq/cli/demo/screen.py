"""How the demo is shown: one live screen on a terminal, plain lines anywhere else."""

from __future__ import annotations

import sys
import textwrap
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import click

from lmq.cli.errors import clean
from lmq.cli.eventlines import event_line
from lmq.cli.humane import duration
from lmq.cli.list import job_table
from lmq.cli.tables import WIDTH, Row, bar, table

if TYPE_CHECKING:
    from lmq import Event, JobStatus
    from lmq.cli.demo.cast import User
    from lmq.cli.demo.score import Score

JOBS_SHOWN = 9
OTHER_LINES = 22
"""Lines of the screen that are no jobs: title, users, answer, news, and what stands between them."""
ANSWER_LINES = 4
NEWS_SHOWN = 5
REDRAWS_PER_S = 8


@dataclass(slots=True)
class Scene:
    """All that there is to show."""

    score: Score
    users: list[User] = field(default_factory=list)
    open_jobs: list[JobStatus] = field(default_factory=list)
    headline: str = ""
    asked: str = ""
    answer: str = ""
    news: deque[str] = field(default_factory=lambda: deque(maxlen=NEWS_SHOWN))


class Screen(Protocol):
    """Where the demo is shown."""

    def __enter__(self) -> Screen:
        """Begin."""

    def __exit__(self, *exc: object) -> None:
        """End."""

    def tell(self, sentence: str) -> None:
        """Say something that happened."""

    def event(self, event: Event) -> None:
        """Show an event."""

    def text(self, text: str) -> None:
        """Show a piece of the answer that is read along."""

    def draw(self) -> None:
        """Show what has changed."""


def screen_for(scene: Scene) -> Screen:
    """Return the screen that fits where we run."""
    if sys.stdout is not None and sys.stdout.isatty():
        return LiveScreen(scene)
    return PlainScreen(scene)


class PlainScreen:
    """A line for each thing that happens."""

    def __init__(self, scene: Scene) -> None:
        self._scene = scene

    def __enter__(self) -> PlainScreen:
        return self

    def __exit__(self, *exc: object) -> None:
        """Nothing was opened."""

    def tell(self, sentence: str) -> None:
        click.echo(f"-- {sentence}")

    def event(self, event: Event) -> None:
        if event.kind in ("started", "done", "dead", "attempt_failed", "broker_started", "worker_up"):
            click.echo(event_line(event))

    def text(self, text: str) -> None:
        """The summary has it whole: pieces between other lines are not to be read."""

    def draw(self) -> None:
        """Nothing: all was said when it happened."""


class LiveScreen:
    """Users, jobs with their positions, the answer as it is written, and the news, drawn in place."""

    def __init__(self, scene: Scene) -> None:
        self._scene = scene
        self._live: Any = None

    def __enter__(self) -> LiveScreen:
        from rich.console import Console
        from rich.live import Live

        self._live = Live(
            console=Console(highlight=False), screen=True, refresh_per_second=REDRAWS_PER_S, transient=True
        )
        self._live.__enter__()
        return self

    def __exit__(self, *exc: object) -> None:
        self._live.__exit__(None, None, None)
        for line in self._scene.news:
            click.echo(f"-- {line}")

    def tell(self, sentence: str) -> None:
        self._scene.news.append(sentence)
        self.draw()

    def event(self, event: Event) -> None:
        """The tables show it."""

    def text(self, text: str) -> None:
        self.draw()

    def draw(self) -> None:
        from rich.text import Text

        text = "\n".join(lines_of(self._scene, self._live.console.height))
        colored = click.get_current_context().color is not False
        self._live.update(Text.from_ansi(text if colored else click.unstyle(text), no_wrap=True))


def lines_of(scene: Scene, height: int) -> list[str]:
    """Return the whole screen; where it is low, fewer jobs are shown."""
    total = len(scene.score.jobs) or 1
    ended = scene.score.ended
    lines = [
        f"{click.style('lmq demo', bold=True)}   {scene.headline}",
        f"{bar(ended / total, 30)}  {ended} of {len(scene.score.jobs)} jobs have ended",
        "",
    ]
    if scene.users:
        lines += [*user_table(scene), ""]
    if scene.open_jobs:
        lines += [*job_table(scene.open_jobs[: min(JOBS_SHOWN, max(2, height - OTHER_LINES))]), ""]
    if scene.asked:
        shown = wrapped(scene.answer).split("\n")[-ANSWER_LINES:]
        lines += [click.style(scene.asked, bold=True), *shown, ""]
    return [*lines, *(click.style(f"-- {line}", fg="yellow") for line in scene.news)]


def user_table(scene: Scene) -> list[str]:
    """Return who has how many jobs where."""
    rows: list[Row] = []
    for user in scene.users:
        jobs = scene.score.of(user.name)
        states = [job.state for job in jobs]
        rows.append(
            [
                user.name,
                str(states.count("leased")),
                str(states.count("ready")),
                str(states.count("done")),
                user.wish,
            ]
        )
    return table(["USER", "RUNS", "WAITS", "DONE", ""], rows, right=(1, 2, 3))


def summary_table(scene: Scene) -> list[str]:
    """Return what each user waited."""
    rows: list[Row] = []
    for user in scene.users:
        jobs = scene.score.of(user.name)
        waits = sorted(job.waited_s for job in jobs)
        rows.append(
            [user.name, str(len(jobs)), str(sum(job.answers for job in jobs)),
             duration(sum(waits) / len(waits)) if waits else "", duration(waits[-1]) if waits else "",
             duration(max((job.total_s for job in jobs), default=0.0))]
        )  # fmt: skip
    titles = ["USER", "JOBS", "ANSWERED", "WAITED ON AVERAGE", "AT MOST", "ALL DONE AFTER"]
    return table(titles, rows, right=(1, 2, 3, 4, 5))


def wrapped(text: str) -> str:
    """Return an answer in lines that fit."""
    flat = " ".join(clean(text).split())
    return "\n".join(textwrap.wrap(flat, WIDTH)) or "..."

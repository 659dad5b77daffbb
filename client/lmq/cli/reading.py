"""A job's text on its way to a person: pieces as they come, and while none come, where the job is."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, cast

import click

from lmq import Piece, Restart
from lmq.cli.errors import clean
from lmq.cli.feeds import Feeds
from lmq.cli.humane import short, when, where
from lmq.errors import LmqError

if TYPE_CHECKING:
    from lmq.cli.port import JobPort
    from lmq.cli.session import Session

PATIENCE_S = 1.0
"""Silence after which a person is told where the job is."""


def print_text(
    session: Session, job: JobPort, *, reasoning: bool = False, shown: Shown | None = None
) -> None:
    """Print a job's text until its end, as it is written.

    The text goes to stdout; all that is about it goes to stderr. With `--json` each piece is a line.

    Args:
        session: how to print.
        job: whose text.
        reasoning: show the model's reasoning, too.
        shown: keeps what was printed, for who wants to know if this is broken off.

    Raises:
        JobDead, JobCancelled, JobExpired: the job ended so, after the text there was.
    """
    status = StatusLine(session)
    feeds = Feeds()
    feeds.add("text", job.pieces(restart="continue"))
    shown = shown or Shown()
    try:
        while True:
            item = feeds.get(None if shown.any_text else PATIENCE_S)
            if item is None:
                status.show(lambda: situation(job))
                continue
            if item.is_end:
                if item.error is not None:
                    raise item.error
                return
            status.clear()
            _print_piece(session, shown, cast("Piece | Restart", item.value), reasoning=reasoning)
    finally:
        status.clear()
        shown.end_line()


class Shown:
    """What has been printed of a text."""

    def __init__(self) -> None:
        self.any_text = False
        self.any_reasoning = False
        self._open = False

    def put(self, text: str) -> None:
        """Print a piece of text."""
        text = clean(text)
        if text:
            self.any_text = True
            self._open = not text.endswith("\n")
            click.echo(text, nl=False)
            if sys.stdout is not None:
                sys.stdout.flush()

    def end_line(self) -> None:
        """End the last line, if there is an unfinished one."""
        if self._open:
            self._open = False
            click.echo()


class StatusLine:
    """One line on stderr that is written over and wiped; nothing unless a person looks at it."""

    def __init__(self, session: Session) -> None:
        self.is_on = not session.quiet and not session.json and sys.stderr is not None and sys.stderr.isatty()
        self._is_shown = False

    def show(self, text: Callable[[], str]) -> None:
        """Write the line anew; the text is asked for only if somebody looks."""
        if not self.is_on:
            return
        try:
            line = text()
        except LmqError:
            line = "no word from the broker; waiting for it"
        self.clear()
        click.echo(click.style(f"({line})", dim=True)[:200], err=True, nl=False)
        self._is_shown = True

    def clear(self) -> None:
        """Wipe the line."""
        if self._is_shown:
            self._is_shown = False
            click.echo("\r\x1b[2K", err=True, nl=False)


def _print_piece(session: Session, shown: Shown, piece: Piece | Restart, *, reasoning: bool) -> None:
    if session.json:
        session.emit(piece)
        return
    if isinstance(piece, Restart):
        shown.end_line()
        why = f": {piece.reason}" if piece.reason else ""
        session.note(f"-- attempt {piece.attempt} begins anew{why} --")
    elif piece.channel == "content":
        if shown.any_reasoning and not shown.any_text:
            click.echo("\n", err=True)
        shown.put(piece.text)
    elif piece.channel == "reasoning" and reasoning:
        shown.any_reasoning = True
        click.echo(click.style(clean(piece.text), dim=True), nl=False, err=True)


def situation(job: JobPort) -> str:
    """Return what a job waits for, or what it does."""
    answer = job.why()
    if answer.status.state == "leased" or not answer.reasons:
        return clean(f"{short(job.id)}: {where(answer.status)}")
    soon = answer.status.starts_in_s
    hope = f"; {when(soon, 'starts')}" if soon is not None else ""
    return clean(f"{short(job.id)} waits: {answer.reasons[0].text}{hope}")

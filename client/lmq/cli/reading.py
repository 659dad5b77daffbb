"""A job's text on its way to a person: pieces as they come, and while none come, where the job is."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, cast

import click

from lmq import Piece, Restart
from lmq.cli.errors import clean
from lmq.cli.feeds import Feeds
from lmq.cli.history import past_events
from lmq.cli.humane import short, when, where
from lmq.cli.tables import cut, one_line
from lmq.errors import LmqError

if TYPE_CHECKING:
    from lmq.cli.port import BrokerPort, JobPort
    from lmq.cli.session import Session

PATIENCE_S = 1.0
"""Silence after which a person is told where the job is."""
ANSWER_S = 0.5
"""How long the broker may take to say where; a person is told that it is silent then."""
GAP_S = 3.0
"""Silence in the middle of a text after which a person is told if the broker is gone."""
NO_WORD = "no word from the broker; waiting for it"
COLUMNS = 80
"""Of a terminal that does not say."""


def print_text(
    session: Session,
    client: BrokerPort,
    job: JobPort,
    *,
    reasoning: bool = False,
    shown: Shown | None = None,
) -> None:
    """Print a job's text until its end, as it is written.

    The text goes to stdout; all that is about it goes to stderr. With `--json` each piece is a line.

    Args:
        session: how to print.
        client: knows why an attempt ended.
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
    is_told = False
    try:
        while True:
            item = feeds.get((GAP_S if shown.any_text else PATIENCE_S) if status.is_on else None)
            if item is None:
                # A text that goes into a file stays as it is, and leaves the terminal to the line.
                if not shown.any_text or sys.stdout is None or not sys.stdout.isatty():
                    status.show(lambda: situation(job))
                elif not is_told and status.ask(lambda: situation(job)) == NO_WORD:
                    shown.end_line()
                    session.note(f"-- {NO_WORD} --")
                    is_told = True
                continue
            is_told = False
            if item.is_end:
                if item.error is not None:
                    raise item.error
                return
            status.clear()
            piece = cast("Piece | Restart", item.value)
            if isinstance(piece, Restart) and not session.json:
                shown.end_line()
                session.note(f"-- {_new_attempt(client, job, piece)} --")
            else:
                _print_piece(session, shown, piece, reasoning=reasoning)
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
        self._question: _Question | None = None

    def show(self, text: Callable[[], str]) -> None:
        """Write the line anew; the text is asked for only if somebody looks."""
        if not self.is_on:
            return
        line = cut(one_line(f"({self.ask(text)})"), _columns() - 1)
        self.clear()
        click.echo(click.style(line, dim=True), err=True, nl=False)
        self._is_shown = True

    def ask(self, text: Callable[[], str]) -> str:
        """Return what the broker says, or that it is silent; what it then says late is returned the next time."""
        if self._question is None:
            self._question = _Question(text)
        answer = self._question.answer()
        if answer is None:
            return NO_WORD
        self._question = None
        return answer

    def clear(self) -> None:
        """Wipe the line."""
        if self._is_shown:
            self._is_shown = False
            click.echo("\r\x1b[2K", err=True, nl=False)


class _Question:
    """A question to the broker, by a thread of its own: a broker that is gone leaves nobody without a word."""

    def __init__(self, ask: Callable[[], str]) -> None:
        self._ask = ask
        self._answer: str | None = None
        self._thread = threading.Thread(target=self._run, name="question", daemon=True)
        self._thread.start()

    def answer(self) -> str | None:
        """Return the answer, if it comes in time."""
        self._thread.join(ANSWER_S)
        return self._answer

    def _run(self) -> None:
        try:
            self._answer = self._ask()
        except LmqError:
            self._answer = NO_WORD


def _columns() -> int:
    """Return the width of the terminal on stderr."""
    try:
        return os.get_terminal_size(sys.stderr.fileno()).columns or COLUMNS
    except (OSError, ValueError):
        return COLUMNS


def wait_for(session: Session, job: JobPort, timeout_s: float | None = None) -> str:
    """Wait for a job's end and return its state; tell a person who looks on where it is meanwhile.

    Raises:
        WaitTimeout: it did not end in time; it goes on.
    """
    status = StatusLine(session)
    if not status.is_on:
        return job.wait(timeout_s)
    feeds = Feeds()
    feeds.add("end", (job.wait(timeout_s) for _ in "1"))
    try:
        while True:
            item = feeds.get(PATIENCE_S)
            if item is None:
                status.show(lambda: situation(job))
            elif item.error is not None:
                raise item.error
            else:
                return str(item.value)
    finally:
        status.clear()


def _print_piece(session: Session, shown: Shown, piece: Piece | Restart, *, reasoning: bool) -> None:
    if session.json:
        session.emit(piece)
        return
    if isinstance(piece, Restart):
        return
    if piece.channel == "content":
        if shown.any_reasoning and not shown.any_text:
            click.echo("\n", err=True)
        shown.put(piece.text)
    elif piece.channel == "reasoning" and reasoning:
        shown.any_reasoning = True
        click.echo(click.style(clean(piece.text), dim=True), nl=False, err=True)


def _new_attempt(client: BrokerPort, job: JobPort, restart: Restart) -> str:
    """Return that a job is begun anew, and why the attempt before ended, which an event says best."""
    why = restart.reason
    try:
        for event in past_events(client, since=0, jobs=[job.id], kinds=["released", "attempt_failed"]):
            why = str(event.detail.get("error") or why)
    except LmqError:
        pass
    return clean(f"attempt {restart.attempt} begins anew" + (f": {why}" if why else ""))


def situation(job: JobPort) -> str:
    """Return what a job waits for, or what it does."""
    answer = job.why()
    if answer.status.state == "leased" or not answer.reasons:
        return clean(f"{short(job.id)}: {where(answer.status)}")
    soon = answer.status.starts_in_s
    hope = f"; {when(soon, 'starts')}" if soon is not None else ""
    return clean(f"{short(job.id)} waits: {answer.reasons[0].text}{hope}")

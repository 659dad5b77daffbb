"""`lmq top`: between the terminal, the model and the broker. What is shown is said in `model` and `draw`."""

from __future__ import annotations

import signal
import sys
import time
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING, cast

import click

from lmq.cli import session as cli
from lmq.cli.errors import sentence_of
from lmq.cli.feeds import Feeds
from lmq.cli.humane import count, duration, short, size
from lmq.cli.list import job_table
from lmq.cli.queues import queue_table
from lmq.cli.tables import GAP
from lmq.cli.top.draw import draw
from lmq.cli.top.model import (
    Act,
    AskWhy,
    CancelJob,
    Did,
    Happened,
    Key,
    Leave,
    Look,
    Message,
    Model,
    Passed,
    PauseIt,
    Prioritise,
    ResumeIt,
    Seen,
    Told,
    update,
)
from lmq.cli.top.view import SWAP_KINDS, View, look
from lmq.cli.users import user_lines
from lmq.cli.why import why_lines
from lmq.cli.workers import worker_table
from lmq.errors import LmqError
from lmq_proto.errors import from_info

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import FrameType
    from typing import TextIO

    from lmq import Event, HealthReply, Outcome
    from lmq.cli.feeds import Item
    from lmq.cli.port import BrokerPort
    from lmq.cli.session import Session

ROWS_ONCE = 10
"""Jobs of each kind in the table that is printed once."""
LOOK_UP_S = 0.2
"""How long nothing may happen before time is taken to have passed; a new size of the terminal is seen then too."""

EXAMPLE = """
lmq top
lmq top --once
"""


@cli.command("top", example=EXAMPLE)
@click.option("--once", is_flag=True, help="Print it once and end, as on a pipe.")
@cli.pass_session
def command(session: Session, once: bool) -> None:
    """Watch users, queues, workers and jobs, and act on them: a screen to leave open.

    Tab goes to the next pane, arrows select; c cancels, p pauses, + and - change a priority, w says why; each asks
    first. ? shows all keys, q leaves. On a pipe, and with --once, the tables are printed once.
    """
    with session.client() as client:
        if session.json:
            view = look(client)
            session.emit(
                {name: cli.jsonable(getattr(view, name)) for name in View.__slots__ if name != "user"}
            )
        elif once or not (_is_terminal(sys.stdout) and _is_terminal(sys.stdin)):
            session.lines(lines_of(look(client)))
        else:
            Screen(client).run()


def lines_of(view: View) -> list[str]:
    """Return all of it as tables below each other."""
    health = view.health
    facts = [view.url, f"up {duration(health.uptime_ms / 1000)}"]
    facts.append(count(sum(health.counts.values()), "open job"))
    disk = [f"ended {_ended(health)}", f"journal {size(health.journal_bytes)}"]
    disk += [f"{size(health.journal_free_bytes)} free", f"commit {health.commit_p50_us / 1000:.1f} ms"]
    lines = [GAP.join([click.style("lmq", bold=True), *facts]), GAP.join(disk)]
    troubles = (health.disk_trouble, health.clock_trouble)
    lines += [click.style(trouble, fg="red") for trouble in troubles if trouble]
    ready = [job for job in view.waiting if job.state == "ready"]
    for title, table in (
        ("nobody waits or runs", user_lines(view.users)),
        ("no queue", queue_table(view.queues) if view.queues else []),
        ("no worker; type: lmq up", worker_table(view.workers) if view.workers else []),
        ("nothing runs", job_table(view.running[:ROWS_ONCE]) if view.running else []),
        ("nothing waits", job_table(ready[:ROWS_ONCE]) if ready else []),
    ):
        lines += ["", *(table or [click.style(title, dim=True)])]
    return lines


def _ended(health: HealthReply) -> str:
    shown = [f"{number:,} {state}" for state, number in sorted(health.ended.items()) if number]
    return ", ".join(shown) or "none yet"


def _is_terminal(stream: TextIO | None) -> bool:
    return stream is not None and stream.isatty()


class Screen:
    """The live screen. Keys, views, events and answers come from threads of their own; all else is done here."""

    def __init__(self, client: BrokerPort) -> None:
        self._client = client
        self._feeds = Feeds()
        self._model = Model()
        self._is_over = False
        self._is_interrupted = False

    def run(self) -> None:
        """Show it until somebody leaves.

        Raises:
            Abort: by ctrl-c.
        """
        from lmq.cli.top.keys import Keys
        from lmq.cli.top.terminal import Terminal

        color = click.get_current_context().color is not False
        # The broker is asked before the terminal is taken over: where there is none, that is said as ever.
        self._take(Seen(look(self._client), time.monotonic()))
        self._feeds.add("views", self._views())
        self._feeds.add("swaps", self._swaps())
        ends = signal.signal(signal.SIGTERM, self._end)
        try:
            with Terminal(color=color) as terminal, Keys() as keys:
                self._feeds.add("keys", keys.pressed())
                while not self._is_over:
                    extent = terminal.size
                    terminal.paint(draw(self._model, *extent), extent)
                    item = self._feeds.get(LOOK_UP_S)
                    self._take(Passed(time.monotonic()) if item is None else self._message(item))
        finally:
            signal.signal(signal.SIGTERM, ends)
        if self._is_interrupted:
            raise click.Abort

    def _end(self, number: int, frame: FrameType | None) -> None:
        """Leave in order when the process is told to end."""
        self._is_over = True

    def _message(self, item: Item) -> Message:
        """Return what came from a thread as a message.

        Raises:
            LmqError: the views have ended, and with them the screen.
        """
        if item.is_end:
            if item.name == "keys":
                self._is_over = True
            if item.error is not None and item.name == "views":
                raise item.error
            if item.error is not None and item.name == "act":
                return Did(sentence_of(item.error), failed=True)
            return Passed(time.monotonic())
        match item.value:
            case str():
                return Key(item.value)
            case View():
                return Seen(item.value, time.monotonic())
            case Did() | Told():
                return item.value
        return Happened(cast("Event", item.value))

    def _take(self, message: Message) -> None:
        """Let the model take a message, and carry out what it wishes."""
        self._model, wishes = update(self._model, message)
        for wish in wishes:
            match wish:
                case Leave():
                    self._is_over, self._is_interrupted = True, wish.interrupted
                case Look():
                    self._begin("look", partial(look, self._client, wish.user))
                case AskWhy():
                    self._begin("act", partial(why, self._client, wish))
                case _:
                    self._begin("act", partial(carry_out, self._client, wish))

    def _begin(self, name: str, act: Callable[[], object]) -> None:
        """Do something that waits for the broker; its value comes as an item."""
        self._feeds.add(name, (each() for each in (act,)))

    def _views(self) -> Iterator[View]:
        """Give a view at each tick of the broker."""
        for _ in self._client.watch("tick"):
            try:
                yield look(self._client, self._model.user)
            except LmqError:
                # Away just now; the next tick will tell.
                continue

    def _swaps(self) -> Iterator[Event]:
        """Give the events of models that come and go, those of the last hour first."""
        hour = datetime.now(UTC) - timedelta(hours=1)
        yield from self._client.events(since=hour, kinds=SWAP_KINDS)


def why(client: BrokerPort, wish: AskWhy) -> Told:
    """Ask why a job waits."""
    return Told(wish.job_id, tuple(click.unstyle(line) for line in why_lines(client.job(wish.job_id).why())))


def carry_out(client: BrokerPort, act: Act) -> Did:
    """Carry out an act and return what is to be said of it.

    Raises:
        LmqError: it was refused.
    """
    match act:
        case CancelJob():
            changed = _was_changed(client.cancel(act.job_id)[0])
            return Did(f"{short(act.job_id)} {'cancelled' if changed else 'had ended already'}")
        case Prioritise():
            outcome = client.update(act.job_id, priority=act.priority)[0]
            _was_changed(outcome)
            if outcome.priority is None:
                return Did(f"{short(act.job_id)} has priority {act.priority}")
            user = client.job(act.job_id).status().user
            return Did(
                f"{short(act.job_id)} has priority {outcome.priority} (ceiling of {user}), asked {act.priority}"
            )
        case PauseIt():
            queue, worker = _held(act)
            changed = client.pause(queue=queue, worker=worker, for_s=act.for_s)
            return Did(f"{act.name} {'paused' if changed else 'was paused already'}")
        case ResumeIt():
            queue, worker = _held(act)
            changed = client.resume(queue=queue, worker=worker)
            return Did(f"{act.name} {'goes on' if changed else 'was not held'}")


def _held(act: PauseIt | ResumeIt) -> tuple[str, str]:
    """Return the queue and the worker that an act names, one of them empty."""
    return (act.name, "") if act.noun == "queue" else ("", act.name)


def _was_changed(outcome: Outcome) -> bool:
    """Tell whether an act changed its job.

    Raises:
        LmqError: it was refused.
    """
    if outcome.error is not None:
        raise from_info(outcome.error)
    return outcome.outcome == "changed"

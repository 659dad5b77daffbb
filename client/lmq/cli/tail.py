"""`lmq tail`: live events, phases and text of everything, one user, queue or job; no gap and no double over restarts.

The events come from the SDK with a cursor, so that a broker that is killed and comes back leaves no mark in them.
Each tick of the broker (one a second) makes this look at what runs; when no tick comes, the broker is away.
"""

from __future__ import annotations

import sys
from collections import deque
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any, cast

import click

from lmq import Event, JobStatus, Piece, Restart
from lmq.cli import session as cli
from lmq.cli.errors import Failure, Status, clean
from lmq.cli.eventlines import event_line, phase_line
from lmq.cli.feeds import Feeds, Item
from lmq.cli.history import past_events
from lmq.cli.humane import now_ms, short
from lmq.cli.livefoot import Foot
from lmq.cli.params import JOB, KIND, QUEUE, SINCE, job_ids
from lmq.errors import CursorExpired, LmqError, NotFound
from lmq_proto.states import FINAL

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lmq import JobMatch
    from lmq.cli.port import BrokerPort
    from lmq.cli.session import Session

SILENCE_S = 4.0
"""Without a tick for so long, a person is told; the broker ticks once a second."""
RUNNING_SHOWN = 8
TEXTS_AT_ONCE = 16
"""Jobs whose text is read at a time."""

EXAMPLE = """
lmq tail
lmq tail --user anna --since 10m --text
lmq --json tail --event done --event dead --no-follow -n 100
"""


@dataclass(slots=True)
class Wish:
    """What a person wants to see."""

    jobs: list[str]
    user: str
    queue: str
    kinds: list[str]
    since: int | datetime | None
    last: int
    text: bool

    def match(self) -> JobMatch:
        """Return the filter for jobs that run."""
        match: JobMatch = {"states": ["leased"]}
        if self.user:
            match["user"] = self.user
        if self.queue:
            match["queue"] = self.queue
        return match


@cli.command("tail", example=EXAMPLE)
@click.option("--job", type=JOB, multiple=True, help="Of this job; ends with it.")
@click.option("--user", default="", help="Of this user's jobs.")
@click.option("--queue", type=QUEUE, default="", help="Of this queue.")
@click.option(
    "--event", type=KIND, multiple=True, metavar="KIND", help="Of this kind, as done or worker_down."
)
@click.option("--text", is_flag=True, help="Also the text of jobs as it is written.")
@click.option("-n", "last", type=click.IntRange(min=0), help="Begin with about so many past events; 10.")
@click.option(
    "--since", type=SINCE, metavar="TIME|CURSOR", help="Begin 10m ago, at 18:00, or after a cursor."
)
@click.option("--no-follow", is_flag=True, help="Stop at the present.")
@cli.pass_session
def command(
    session: Session, job: tuple[str, ...], user: str, queue: str, event: tuple[str, ...], text: bool,
    last: int | None, since: int | datetime | None, no_follow: bool,
) -> None:  # fmt: skip
    """Follow everything that happens: of all, or of one user, queue or job.

    Goes on through a restart of the broker without a gap or a double. Ctrl-C leaves.
    """
    if since is not None and last is not None:
        raise click.UsageError("give --since or -n, not both")
    if text and no_follow:
        raise click.UsageError("--text follows; for the text of a job that has ended: lmq stream JOB")
    with session.client() as client:
        named = job_ids(client, job)
        start = 0 if named and since is None and last is None else since
        begin = 10 if last is None and start is None else last or 0
        wish = Wish(named, user, queue, list(event), start, begin, text)
        if no_follow:
            for past in past_events(
                client, since=start, last=begin, kinds=wish.kinds, user=user, queue=queue, jobs=named
            ):
                session.emit(past) if session.json else click.echo(event_line(past))
        else:
            Tail(session, client, wish).run()


@dataclass(slots=True)
class Tail:
    """One following: what was printed, what runs, whose text is read."""

    session: Session
    client: BrokerPort
    wish: Wish
    feeds: Feeds = field(default_factory=Feeds)
    phases: dict[str, str] = field(default_factory=dict)
    texts: dict[str, str] = field(default_factory=dict)
    """Job to the beginning of a line that has not ended."""
    read_out: set[str] = field(default_factory=set)
    """Jobs whose text was read to its end; a look at what runs may be older than that."""
    held: deque[Event] = field(default_factory=deque)
    """Events behind the end of a job whose text has not ended: text comes first, and events keep their order."""
    open_jobs: set[str] = field(default_factory=set)
    seq: int = -1
    is_away: bool = False
    failed: str = ""

    def run(self) -> None:
        """Print until Ctrl-C, or until all jobs that were named have ended.

        Raises:
            Failure: a job that was named ended without a result.
        """
        self.client.health()
        self.open_jobs = set(self.wish.jobs)
        self._follow(self.wish.since, self.wish.last)
        self.feeds.add("running", self._running())
        with Foot(self.session) as foot:
            while not self.wish.jobs or self.open_jobs or self.held or self._reads_text():
                item = self.feeds.get(SILENCE_S)
                foot.clear()
                if item is None:
                    self._tell_away()
                elif item.is_end:
                    self._ended(item)
                else:
                    self._take(item, foot)
                foot.draw()
        if self.failed:
            raise Failure(self.failed, Status.FAILED)

    def _follow(self, since: int | datetime | None, last: int) -> None:
        # A job's own events decide when to stop, so a filter by kind is applied here then and not by the broker.
        kinds = [] if self.wish.jobs else self.wish.kinds
        events = self.client.events(
            since=since,
            last=last,
            kinds=kinds,
            user=self.wish.user,
            queue=self.wish.queue,
            jobs=self.wish.jobs,
        )
        self.feeds.add("events", events)

    def _take(self, item: Item, foot: Foot) -> None:
        match item.value:
            case Event():
                self.held.append(item.value)
                self._let_events_go()
            case Piece() | Restart():
                self._piece(item.name, item.value)
            case list():
                self._now(cast("list[JobStatus]", item.value), foot)
            case _:
                raise AssertionError(f"nothing gives {item.value!r}")

    def _ended(self, item: Item) -> None:
        if item.name in self.texts:
            self._end_text(item.name)
            self.read_out.add(item.name)
            self._let_events_go()
        elif isinstance(item.error, CursorExpired):
            self.session.note(f"events up to {item.error.oldest} are no longer kept; going on after them")
            self._follow(item.error.oldest, 0)
        elif item.error is not None:
            raise item.error

    # --- events ------------------------------------------------------------------------------------------------------

    def _let_events_go(self) -> None:
        while self.held and not (self.held[0].state in FINAL and self.held[0].job_id in self.texts):
            self._event(self.held.popleft())

    def _event(self, event: Event) -> None:
        assert event.seq > self.seq, f"event {event.seq} after {self.seq}"
        self.seq = event.seq
        if not self.wish.kinds or event.kind in self.wish.kinds:
            self._print(event_line(event), event)
        if not event.job_id:
            return
        self.phases.pop(event.job_id, None)
        if event.kind == "started":
            self.read_out.discard(event.job_id)
            self._read_text(event.job_id)
        if event.state in FINAL:
            self.open_jobs.discard(event.job_id)
            if event.job_id in self.wish.jobs and event.state != "done":
                self.failed = f"{short(event.job_id)} is {event.state}; type: lmq why {short(event.job_id)}"
        elif event.job_id in self.wish.jobs:
            self.open_jobs.add(event.job_id)
            self.failed = ""

    def _print(self, line: str, value: object) -> None:
        if self.session.json:
            self.session.emit(value)
        else:
            click.echo(line)
        if sys.stdout is not None:
            sys.stdout.flush()

    # --- what runs ---------------------------------------------------------------------------------------------------

    def _running(self) -> Iterator[list[JobStatus]]:
        """Give what runs, once for each tick of the broker."""
        for _ in self.client.watch("tick"):
            try:
                found = self.client.jobs(limit=100, **self.wish.match())
            except LmqError:
                # Away just now; the next tick will tell.
                continue
            wanted = set(self.wish.jobs)
            yield [job for job in found if not wanted or job.id in wanted]

    def _now(self, running: list[JobStatus], foot: Foot) -> None:
        if self.is_away:
            self.is_away = False
            self.session.note("the broker is back")
        self.read_out &= {job.id for job in running}
        for job in running:
            if job.phase and job.phase != "sent" and self.phases.get(job.id) != job.phase:
                self.phases[job.id] = job.phase
                if not self.wish.kinds and not self.session.json:
                    self._print(phase_line(now_ms(), job), job)
            if job.id not in self.read_out:
                self._read_text(job.id)
        foot.put_jobs(running[:RUNNING_SHOWN], more=max(0, len(running) - RUNNING_SHOWN))

    def _tell_away(self) -> None:
        if not self.is_away:
            self.is_away = True
            self.session.note(f"no word from the broker at {self.client.url}; waiting for it")

    # --- text --------------------------------------------------------------------------------------------------------

    def _read_text(self, job_id: str) -> None:
        if self.wish.text and job_id not in self.texts and len(self.texts) < TEXTS_AT_ONCE:
            self.texts[job_id] = ""
            self.feeds.add(job_id, self._pieces(job_id))

    def _pieces(self, job_id: str) -> Iterator[Any]:
        try:
            yield from self.client.job(job_id).pieces(restart="continue")
        except NotFound:
            return
        except LmqError as error:
            # How a job ended stands in its events; here only its text is read.
            if error.code not in ("job_dead", "job_cancelled", "job_expired"):
                raise

    def _reads_text(self) -> bool:
        return bool(self.feeds.names & self.texts.keys())

    def _piece(self, job_id: str, piece: Piece | Restart) -> None:
        if self.session.json:
            self.session.emit({"job_id": job_id, **cli.jsonable(piece)})
        elif isinstance(piece, Restart):
            self._end_text(job_id)
            self.texts[job_id] = ""
            self._text_line(job_id, f"-- attempt {piece.attempt} begins anew: {piece.reason} --")
        elif piece.channel == "content":
            *lines, rest = (self.texts.get(job_id, "") + clean(piece.text)).split("\n")
            for line in lines:
                self._text_line(job_id, line)
            while len(rest) > TEXT_WIDTH and " " in rest[:TEXT_WIDTH]:
                line, _, after = rest[:TEXT_WIDTH].rpartition(" ")
                rest = after + rest[TEXT_WIDTH:]
                self._text_line(job_id, line)
            self.texts[job_id] = rest

    def _end_text(self, job_id: str) -> None:
        rest = self.texts.pop(job_id, "")
        if rest:
            self._text_line(job_id, rest)

    def _text_line(self, job_id: str, line: str) -> None:
        click.echo(f"{'':8}  {short(job_id)}  | {line}")


TEXT_WIDTH = 61
"""Columns of text beside the job's name."""

"""`lmq up`: a broker and a worker for the model server found, as children of this command, until Ctrl-C."""

from __future__ import annotations

import re
import time
from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING

import click

from lmq import config
from lmq.cli import session as cli
from lmq.cli.children import Child, Children, daemon_words, needs_daemon
from lmq.cli.endpoint import LOCAL_URL, Endpoint, look
from lmq.cli.errors import Failure, Status
from lmq.cli.humane import count
from lmq.errors import LmqError, NotReachable

if TYPE_CHECKING:
    from lmq.cli.session import Session

EXAMPLE = """
lmq up
lmq up --endpoint http://gpu-2:1234
lmq up --simulator
"""
BROKER_READY = r"broker ready at (\S+)"
WORKER_READY = r"worker (\S+) ready at (\S+)"
SIMULATOR_READY = r"simulator ready at (\S+)"
COLORS = {"broker": "blue", "worker": "green", "simulator": "magenta"}
PLAIN = {"LMQ_BROKER_LOG_FORMAT": "plain", "LMQ_WORKER_LOG_FORMAT": "plain"}
"""Whatever the file says: these logs are read here."""
DIGEST_EVERY_S = 60.0
_ROUTINE = re.compile(r"(?:\d\d:\d\d:\d\d )?(?:debug|info) ", re.IGNORECASE)
_JOB_ENDED = re.compile(r"job_ended .*?\bstate=(\w+)")


@cli.command("up", example=EXAMPLE)
@click.option("--endpoint", metavar="URL", help=f"The model server; default: {LOCAL_URL}.")
@click.option("--simulator", is_flag=True, help="A simulated LM Studio instead of a real one.")
@click.option(
    "--data", type=click.Path(file_okay=False), help="Folder of the journal; default: the broker's own."
)
@click.option("--verbose", "-v", is_flag=True, help="Every line of their logs.")
@cli.pass_session
def command(session: Session, endpoint: str | None, simulator: bool, data: str | None, verbose: bool) -> None:
    """Start a broker and a worker for the LM Studio found here; both stop on Ctrl-C.

    It prints what goes wrong, and once a minute how many jobs have ended; each of them is in lmq tail. Where a broker
    runs already, only the worker is added. For services that outlive the terminal: lmq systemd install.
    """
    if endpoint and simulator:
        raise click.UsageError("give --endpoint or --simulator, not both")
    needs_daemon("worker")
    found = None if simulator else _model_server(endpoint or LOCAL_URL)
    broker_url = running_broker(session)
    if broker_url and found:
        _refuse_second_worker(session, broker_url, found.url)
    try:
        with Children() as children:
            served = found.url if found else _start_simulator(children)
            if broker_url:
                click.echo(f"a broker runs at {broker_url} already; only the worker is added")
            else:
                broker_url = _start_broker(children, session, data)
            _start_worker(children, broker_url, served)
            click.echo("up. In another terminal, type: lmq chat Hello        Ctrl-C stops it all")
            _relay(children, Digest(verbose=verbose))
    except KeyboardInterrupt:
        click.echo("stopped")


def running_broker(session: Session) -> str:
    """Return the address of a broker that answers; empty if none does."""
    try:
        with replace(session, connect_timeout_s=cli.PROBE_TIMEOUT_S).client() as client:
            client.health()
            return client.url
    except NotReachable:
        return ""


def _model_server(url: str) -> Endpoint:
    found = look(url)
    if not found.kind:
        raise Failure(
            f"no LM Studio at {found.url} ({found.why}); start its server, in LM Studio or by: lms server start; "
            "or type: lmq up --simulator",
            Status.NO_BROKER,
        )
    if found.kind == "lm_studio" and not found.llms:
        click.echo(
            f"LM Studio at {found.url} has no chat model loaded; jobs that name one will load it", err=True
        )
    return found


def _refuse_second_worker(session: Session, broker_url: str, endpoint: str) -> None:
    """End well if a worker serves this endpoint already."""
    with replace(session, url=broker_url).client() as client:
        try:
            names = [one.name for one in client.workers() if one.endpoint == endpoint and one.state != "gone"]
        except LmqError:
            return
    if names:
        click.echo(f"it is up already: broker at {broker_url}, worker {names[0]} for {endpoint}")
        raise click.exceptions.Exit(0)


def _start_broker(children: Children, session: Session, data: str | None) -> str:
    needs_daemon("broker")
    words = [*daemon_words("broker"), *(["--data", data] if data else [])]
    settings = config.load(session.url or None)
    if settings.origins["url"] != "default":
        # Where this person's commands look for it.
        words += ["--listen", settings.urls[0]]
    child = children.start("broker", words, PLAIN)
    url = children.await_ready(child, BROKER_READY)[1]
    click.echo(f"broker ready at {url}")
    return url


def _start_simulator(children: Children) -> str:
    needs_daemon("simulator")
    child = children.start("simulator", [*daemon_words("simulator"), "--port", "0"])
    url = children.await_ready(child, SIMULATOR_READY)[1]
    click.echo(f"simulated LM Studio ready at {url}")
    return url


def _start_worker(children: Children, broker_url: str, endpoint: str) -> None:
    child = children.start(
        "worker", [*daemon_words("worker"), "--broker", broker_url, "--endpoint", endpoint], PLAIN
    )
    name = children.await_ready(child, WORKER_READY)[1]
    click.echo(f"worker {name} ready, serving {endpoint}")


class Digest:
    """What of the daemons' lines is worth a person's eye: all that is no routine, and how many jobs have ended."""

    def __init__(self, *, verbose: bool) -> None:
        self._verbose = verbose
        self._ended: Counter[str] = Counter()

    def is_shown(self, text: str) -> bool:
        """Tell whether a line is printed; one that tells of an ended job is counted."""
        found = _JOB_ENDED.search(text)
        if found:
            self._ended[found[1]] += 1
        return self._verbose or _ROUTINE.match(text) is None

    def sum_up(self) -> str:
        """Return how many jobs have ended since this was asked last; empty if none has."""
        ended, self._ended = self._ended, Counter()
        if self._verbose or not ended:
            return ""
        states = ", ".join(f"{number:,} {state}" for state, number in ended.most_common())
        return f"{count(ended.total(), 'job')} ended in the last minute: {states}"


def _relay(children: Children, digest: Digest) -> None:
    """Print what people should know of what the children say, until one of them ends.

    Raises:
        Failure: one ended by itself.
    """
    due_s = time.monotonic() + DIGEST_EVERY_S
    while True:
        line = children.next_line(due_s - time.monotonic())
        if line is None:
            due_s = time.monotonic() + DIGEST_EVERY_S
            if said := digest.sum_up():
                click.echo(said)
        elif line.is_end:
            raise Failure(
                f"{line.child.name} {line.child.how_it_ended}; the others are stopped. "
                "What was accepted is on disk; to go on, type: lmq up",
                Status.FAILED,
            )
        elif digest.is_shown(line.text):
            _print(line.child, line.text)


def _print(child: Child, text: str) -> None:
    click.echo(f"{click.style(f'{child.name:9}', fg=COLORS.get(child.name))} | {text}")

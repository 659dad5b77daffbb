"""`lmq doctor`: gather the facts, say what is wrong and what to type. What is wrong, `diagnosis` knows."""

from __future__ import annotations

import socket
import textwrap
from dataclasses import replace
from typing import TYPE_CHECKING

import click

from lmq import config
from lmq._version import __version__
from lmq.cli import session as cli
from lmq.cli.diagnosis import Facts, Finding, diagnose
from lmq.cli.endpoint import LOCAL_URL, look
from lmq.cli.errors import Failure, Status, clean, sentence_of, status_of
from lmq.cli.humane import count, now_ms
from lmq.cli.tables import WIDTH
from lmq.errors import LmqError, UpgradeRequired

if TYPE_CHECKING:
    from lmq.cli.session import Session

EXAMPLE = "lmq doctor"
COLORS = {"ok": "green", "advice": "yellow", "fault": "red"}
WAITING_LOOKED_AT = 500
INDENT = 8
PROGRAMS = ("lmq", "lms", "pip", "sudo")


@cli.command("doctor", example=EXAMPLE)
@click.option(
    "--endpoint", metavar="URL", default=LOCAL_URL, show_default=True, help="A model server to look at too."
)
@cli.pass_session
def command(session: Session, endpoint: str) -> None:
    """Look at broker, workers, model servers, disk and clocks; say what is wrong and what to type.

    The status is 0 if nothing is wrong, 1 if something is, 69 if there is no broker.
    """
    facts, failure = gather(session, endpoint)
    found = diagnose(facts)
    if session.json:
        session.emit([{"level": one.level, "text": one.text, "cure": one.cure} for one in found])
    else:
        session.lines(lines_of(found))
    faults = sum(one.level == "fault" for one in found)
    if failure is not None:
        raise Failure(sentence_of(failure), status_of(failure), error=failure)
    if faults:
        raise Failure(f"{count(faults, 'fault')} found", Status.FAILED)
    hints = sum(one.level == "advice" for one in found)
    session.note(f"nothing is broken; {count(hints, 'hint')}" if hints else "all is well")


def lines_of(found: list[Finding]) -> list[str]:
    """Return the findings as lines, the cure under each."""
    lines = []
    for one in found:
        first, *rest = textwrap.wrap(clean(one.text), WIDTH - INDENT) or [""]
        lines.append(f"{click.style(f'{one.level:{INDENT}}', fg=COLORS[one.level])}{first}")
        lines += [f"{'':{INDENT}}{row}" for row in rest]
        if one.cure:
            lines.append(f"{'':{INDENT}}{how_to(one.cure)}: {clean(one.cure)}")
    return lines


def how_to(cure: str) -> str:
    """Return the word before a cure: `type` for a command, `do` for anything else."""
    return "type" if cure.partition(" ")[0] in PROGRAMS else "do"


def gather(session: Session, endpoint: str) -> tuple[Facts, LmqError | None]:
    """Return the facts, and what kept the broker from being asked."""
    local = look(endpoint)
    url = ", ".join(config.load(session.url or None).urls)
    try:
        with session.client() as client:
            health = client.health()
            facts = Facts(
                url=client.url, health=health, queues=client.queues(), workers=client.workers(), models=client.models(),
                waiting=client.jobs(states=["ready"], limit=WAITING_LOOKED_AT, oldest_first=True), local=local,
                limits=client.limits(), version=__version__, host=socket.gethostname(), now_ms=now_ms(),
            )  # fmt: skip
    except LmqError as error:
        upgrade = isinstance(error, UpgradeRequired)
        return Facts(url=url, trouble=sentence_of(error), needs_upgrade=upgrade, local=local), error
    others = _other_brokers(session, facts.url, health.broker_id)
    return replace(facts, other_brokers=others), None


def _other_brokers(session: Session, url: str, broker_id: bytes) -> list[str]:
    """Return the usual addresses of this machine where a broker of another journal answers."""
    found = []
    for other in dict.fromkeys([config.default_url(), config.DEFAULT_URL]):
        if other == url:
            continue
        try:
            with replace(session, url=other, connect_timeout_s=cli.PROBE_TIMEOUT_S).client() as client:
                if client.health().broker_id != broker_id:
                    found.append(other)
        except LmqError:
            continue
    return found

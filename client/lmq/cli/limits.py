"""`lmq limits`: how much may run, wait, or begin in a while."""

from __future__ import annotations

import re
import shlex
from typing import TYPE_CHECKING, Any

import click

from lmq.cli import session as cli
from lmq.cli.humane import duration, since, size
from lmq.cli.params import MODEL, QUEUE, WORKER, parse_duration
from lmq.cli.tables import Cell, Row, table

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from lmq import LimitView
    from lmq.cli.session import Session

EXAMPLE = """
lmq limits
lmq limits set running 2 --type train
lmq limits set jobs 10/min --queue gmail
"""
UNLIMITED = "none"
_OF = ("running", "queued", "bytes", "jobs", "tokens", "depth", "wait")
_RATE = re.compile(r"([0-9]+(?:\.[0-9]+)?)([kM]?)/(.+)")
_BYTES = re.compile(r"([0-9]+(?:\.[0-9]+)?) ?([kMGT]B?)?")
_PERIODS = {
    "s": 1.0,
    "sec": 1.0,
    "min": 60.0,
    "m": 60.0,
    "h": 3600.0,
    "hour": 3600.0,
    "d": 86400.0,
    "day": 86400.0,
}
_SIZES = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
_NAMES = ("user", "queue", "task_type", "model", "worker", "resource")
_NEAR = 0.8
"""Share of a limit from which its use is shown in colour."""


@cli.noun("limits", example=EXAMPLE)
@cli.pass_session
@click.pass_context
def command(context: click.Context, session: Session) -> None:
    """List limits; set or reset one."""
    if context.invoked_subcommand is None:
        _list(session)


@command.command("list", example="lmq limits list")
@cli.pass_session
def list_command(session: Session) -> None:
    """List all limits and how much of each is used."""
    _list(session)


@command.command(
    "set",
    example="""
lmq limits set running 4 --user '*'        4 jobs of each user
lmq limits set running 2 --type train      two trainings at once
lmq limits set running 1 --resource gpu-1  its endpoint, or one task
lmq limits set queued 1000 --user '*'      more is refused
lmq limits set jobs 10/min --queue gmail   the rest waits
lmq limits set tokens 50k/h --user guest
lmq limits set wait 2min --queue default   tells of longer waits
lmq limits set running none --type train   lifts the file's
""",
)
@click.argument("of", type=click.Choice(_OF), metavar="OF")
@click.argument("value", metavar="VALUE")
@click.option("--user", default="", metavar="USER", help="Of one user, or '*': each by itself.")
@click.option("--queue", type=QUEUE, default="", help="Of jobs in this queue.")
@click.option("--type", "task_type", default="", metavar="TYPE", help="Of this task type, as train.")
@click.option("--model", "-m", type=MODEL, default="", help="On this model (running).")
@click.option("--worker", type=WORKER, default="", help="At this worker (running).")
@click.option("--resource", default="", metavar="NAME", help="Of jobs that use it (running).")
@click.option(
    "--burst", type=float, default=0.0, metavar="N", help="Of a rate: so much at once; else all of a period."
)
@click.option("--refuse", is_flag=True, help="Of a rate: refuse what is over it; else it waits.")
@cli.pass_session
def set_command(session: Session, /, of: str, value: str, burst: float, refuse: bool, **names: str) -> None:
    """Set a limit, until it is reset.

    OF is running, queued or bytes (what runs, waits, and the payloads that wait), jobs or tokens (rates of what
    begins), depth or wait (alerts: nothing is held back). Without names it is about all jobs together. VALUE is a
    number, a rate, a size or a time; 0 lets nothing through, none lifts a limit.
    """
    number, per_s = parse_value(of, value)
    with session.client() as client:
        changed = client.set_limit(of, number, per_s=per_s, burst=burst, refuse=refuse, **names)
        listed = client.limits()
    name = " ".join([of, *(f"{field}={names[field]}" for field in _NAMES if names[field])])
    if session.json:
        session.emit({"limit": name, "changed": changed})
    else:
        click.echo(f"{name} is {'now ' if changed else 'already '}{value}")
    for sentence in remarks(name, of, number, listed):
        session.note(sentence)


def remarks(name: str, of: str, number: float, listed: Sequence[LimitView]) -> Iterator[str]:
    """Yield what somebody who has set a limit may not have meant."""
    for view in listed:
        for what in view.unknown if view.name == name else ():
            noun, _, unknown = what.partition("=")
            yield f"there is no {noun} {unknown} now; it counts once there is one"
    if of == "running" and number == 0:
        yield f"nothing that it covers starts any more; to let it again: lmq limits reset {shlex.quote(name)}"


@command.command("reset", example="lmq limits reset 'running task_type=train'")
@click.argument("name", nargs=-1, metavar="[NAME]...")
@click.option("--all", "every", is_flag=True, help="All that commands have set.")
@cli.pass_session
def reset_command(session: Session, name: tuple[str, ...], every: bool) -> None:
    """Go back to what the broker's file says of a limit, named as `lmq limits` lists it."""
    if every is bool(name):
        raise click.UsageError("give the name of a limit as lmq limits lists it, or --all")
    names = [""] if every else list(dict.fromkeys((*name, " ".join(name))))
    known = {""} if every else set()
    with session.client() as client:
        if not every:
            # The words of one name may come unquoted.
            listed = {limit.name for limit in client.limits()}
            known = {each for each in names if each in listed} or {" ".join(name)}
        changed = [client.reset_limits(each) for each in sorted(known)]
    if session.json:
        session.emit({"changed": any(changed)})
    else:
        click.echo("as the file says" if any(changed) else "nothing was set by command")


def parse_value(of: str, text: str) -> tuple[float, float]:
    """Return (value, seconds of the period of a rate) of what somebody typed.

    Raises:
        BadParameter: it is no number, rate, size or duration, whichever is asked for.
    """
    text = text.strip()
    if text == UNLIMITED:
        return -1.0, 1.0 if of in ("jobs", "tokens") else 0.0
    if of in ("jobs", "tokens"):
        found = _RATE.fullmatch(text)
        per_s = None if found is None else _PERIODS.get(found[3]) or parse_duration(found[3])
        if found is None or not per_s:
            raise click.BadParameter(f"{text!r} is no rate; write 10/min, 50k/h or 1/30s")
        return float(found[1]) * {"": 1, "k": 1000, "M": 1_000_000}[found[2]], per_s
    if of == "wait":
        seconds = parse_duration(text)
        if seconds is None:
            raise click.BadParameter(f"{text!r} is no duration; write 90s, 10m or 3h")
        return seconds * 1000, 0.0
    found = _BYTES.fullmatch(text)
    if found is None or (of != "bytes" and found[2]):
        raise click.BadParameter(f"{text!r} is no {'size; write 100MB' if of == 'bytes' else 'number'}")
    return float(found[1]) * _SIZES[(found[2] or "")[:1]], 0.0


def _list(session: Session) -> None:
    with session.client() as client:
        found = client.limits()
    if session.json:
        session.emit(found)
    elif found:
        session.lines(limit_table(found))
    else:
        session.note("no limit; set one with: lmq limits set running 4 --user '*'")


def limit_table(found: Sequence[LimitView]) -> list[str]:
    """Return the table of some limits."""
    rows: list[Row] = []
    for view in found:
        limit = view.limit
        full = limit.value >= 0 and view.used >= _NEAR * limit.value and view.used > 0
        used = (
            ""
            if limit.value < 0
            else _used(limit.of, view.used) + (f" ({view.used_by})" if view.used_by else "")
        )
        refuses = limit.refuse or limit.of in ("queued", "bytes")
        how = "refuses" if refuses else "tells" if limit.of in ("depth", "wait") else "waits"
        origin = f"{view.by}, {since(view.since_ms)} ago" if view.origin == "command" else "file"
        rows.append([view.name, _worded(limit), Cell(used, "yellow" if full else ""), how, origin])
    return table(["LIMIT", "VALUE", "USED", "", "SET BY"], rows, right=(1, 2))


def _used(of: str, value: float) -> str:
    """Return how much is used; of a rate, which flows off all the time, without the fractions of a job or token."""
    return f"{value:,.0f}" if of in ("jobs", "tokens") else _amount(of, value)


def _worded(limit: Any) -> str:
    if limit.value < 0:
        return UNLIMITED
    amount = _amount(limit.of, limit.value)
    if not limit.per_ms:
        return amount
    seconds = limit.per_ms / 1000
    named = next((name for name in ("s", "min", "h", "d") if _PERIODS[name] == seconds), duration(seconds))
    burst = f", {limit.burst:g} at once" if limit.burst else ""
    return f"{amount}/{named}{burst}"


def _amount(of: str, value: float) -> str:
    if of == "bytes":
        return size(int(value))
    return duration(value / 1000) if of == "wait" else f"{value:,.10g}"

"""`lmq chat`: submit a chat and print the answer as it is written. Ctrl-C cancels it."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import click

from lmq.cli import session as cli
from lmq.cli.acting import tell_ceilings
from lmq.cli.errors import LEFT, Failure, Status, leaving
from lmq.cli.humane import short
from lmq.cli.params import MODEL, job_options, options_of
from lmq.cli.places import remember_last
from lmq.cli.reading import Shown, print_text
from lmq.errors import LmqError

if TYPE_CHECKING:
    from lmq import ChatOptions
    from lmq.cli.port import BrokerPort, JobPort
    from lmq.cli.session import Session

LIVE_PRIORITY = 8
"""A person sits in front of it: the interactive band."""

EXAMPLE = """
lmq chat "Why is the sky blue?"
git diff | lmq chat -m qwen/qwen3-8b "Review this:" -
lmq chat -d "Write a long story"; lmq result @last
"""


@cli.command("chat", example=EXAMPLE)
@click.argument("text", nargs=-1, metavar="[TEXT|-]...")
@click.option("--model", "-m", type=MODEL, multiple=True, help="Any of these; may be given several times.")
@click.option("--system", "-s", default="", metavar="TEXT", help="What the model is told first.")
@click.option("--image", type=click.Path(exists=True, dir_okay=False, path_type=Path), multiple=True,
              help="A picture to look at.")  # fmt: skip
@click.option("--schema", type=click.Path(exists=True, dir_okay=False, path_type=Path),
              help="A file with the JSON Schema that the answer must fit.")  # fmt: skip
@click.option("--max-tokens", type=click.IntRange(min=1), help="Longest answer.")
@click.option("--temperature", type=click.FloatRange(0, 2), help="0 is the most sober.")
@click.option("--reasoning", is_flag=True, help="Show the model's reasoning too, on stderr.")
@click.option("--detach", "-d", is_flag=True, help="Print the job's id and leave.")
@job_options
@cli.pass_session
def command(session: Session, /, text: tuple[str, ...], reasoning: bool, detach: bool, **said: Any) -> None:
    """Ask a model and print the answer as it is written; - stands for what comes in on a pipe.

    Ctrl-C cancels the job. With -d the job goes on without you.
    """
    prompt = prompt_of(text)
    options = chat_options(said)
    with leaving(LEFT), session.client() as client:
        options = cast("ChatOptions", {**options, **options_of(client, said)})
        if not detach:
            options.setdefault("priority", LIVE_PRIORITY)
        job = client.chat(prompt, model=list(said["model"]) or None, system=said["system"], **options)
        remember_last(job.id)
        tell_ceilings(session, client, [(job.id, job.given_priority)], options.get("priority"))
        if detach:
            print_id(session, job)
            return
        _converse(session, client, job, reasoning=reasoning)


def _converse(session: Session, client: BrokerPort, job: JobPort, *, reasoning: bool) -> None:
    shown = Shown()
    try:
        print_text(session, client, job, reasoning=reasoning, shown=shown)
        if session.json:
            session.emit({"job": job.id, "result": cli.jsonable(job.result())})
    except KeyboardInterrupt:
        raise Failure(_cancelled(job, shown), Status.INTERRUPTED) from None


def _cancelled(job: JobPort, shown: Shown) -> str:
    """Cancel a job and return the sentence that says so."""
    name = short(job.id)
    try:
        job.cancel()
    except LmqError as error:
        return f"left; {name} could not be cancelled: {error.message}"
    return f"cancelled {name}" + (f"; the text so far stays: lmq stream {name}" if shown.any_text else "")


def prompt_of(words: tuple[str, ...]) -> str:
    """Return the words as one prompt, with what comes in on a pipe in place of `-`.

    Raises:
        UsageError: there is nothing to ask.
    """
    if not words:
        if sys.stdin is None or sys.stdin.isatty():
            raise click.UsageError('say what to ask, as: lmq chat "Why is the sky blue?"')
        words = ("-",)
    parts: list[str] = []
    for word in words:
        if word == "-":
            parts.append("\n\n" if parts else "")
            parts.append(read_pipe())
        else:
            parts.append(f" {word}" if parts and parts[-1] and not parts[-1].endswith("\n") else word)
    prompt = "".join(parts)
    if not prompt.strip():
        raise click.UsageError("the prompt is empty")
    return prompt


def read_pipe() -> str:
    """Return all that comes in on stdin."""
    return "" if sys.stdin is None else sys.stdin.read()


def chat_options(said: dict[str, Any]) -> ChatOptions:
    """Return the options of a chat that are no options of a job.

    Raises:
        BadParameter: the schema is no JSON.
    """
    options: dict[str, Any] = {}
    if said["image"]:
        options["images"] = list(said["image"])
    if said["schema"] is not None:
        try:
            options["schema"] = json.loads(said["schema"].read_text(encoding="utf-8"))
        except ValueError as error:
            raise click.BadParameter(
                f"{said['schema']} is no JSON: {error}", param_hint="--schema"
            ) from error
    for name in ("max_tokens", "temperature"):
        if said[name] is not None:
            options[name] = said[name]
    return cast("ChatOptions", options)


def print_id(session: Session, job: JobPort) -> None:
    """Print the id of a job that goes on without us."""
    if session.json:
        session.emit({"job": job.id})
        return
    click.echo(job.id)
    session.note("its answer, now or later: lmq result @last")

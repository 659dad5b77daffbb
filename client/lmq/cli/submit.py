"""`lmq submit`: jobs of any task type, one from the command line or many from a file."""

from __future__ import annotations

import json
from typing import IO, TYPE_CHECKING, Any

import click

from lmq import drafts
from lmq.cli import session as cli
from lmq.cli.acting import tell_ceilings
from lmq.cli.chat import read_pipe
from lmq.cli.errors import LEFT, Failure, leaving, status_of
from lmq.cli.humane import count, short
from lmq.cli.params import MODEL, job_options, options_of
from lmq.cli.places import remember_last
from lmq.errors import LmqError, PartlyRefused

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lmq import Draft, JobOptions, Json
    from lmq.cli.port import BrokerPort
    from lmq.cli.session import Session

EXAMPLE = """
lmq submit train '{"custom_dir": "data"}' --queue training --key norms-2026-11
lmq submit echo -f payloads.jsonl --priority background
lmq submit chat '{"body": {"messages": [{"role": "user", "content": "Hi"}]}}'
"""
SHAPES = {
    "chat": ("messages", '{"body": {"messages": [{"role": "user", "content": "Hi"}]}}'),
    "complete": ("prompt", '{"body": {"prompt": "Once upon a time"}}'),
}
"""What the body of a request must hold, and the least payload: a slip is told here, not by a dead job later."""
REFUSALS_SHOWN = 10


@cli.command("submit", example=EXAMPLE)
@click.argument("task_type", metavar="TYPE")
@click.argument("payload", required=False, metavar="[JSON|-]")
@click.option(
    "--file", "-f", "file", type=click.File(encoding="utf-8"), help="One payload a line; - is the pipe."
)
@click.option("--model", "-m", type=MODEL, multiple=True, help="Any of these; may be given several times.")
@click.option("--atomic", is_flag=True, help="All of a file or none; at most 1,000.")
@job_options
@click.option("--uses", multiple=True, metavar="NAME",
              help="A resource that a job of a type of your own holds, as gpu-1; up to 4 times.")  # fmt: skip
@cli.pass_session
def command(session: Session, /, task_type: str, payload: str | None, atomic: bool, **said: Any) -> None:
    """Submit jobs and print their ids, which are on the broker's disk by then.

    TYPE is chat, complete, embed, bulk_embed, echo, or a task type of your own. The body of a chat or complete job
    is the request as OpenAI defines it.
    """
    file: IO[str] | None = said["file"]
    if file is not None and payload is not None:
        raise click.UsageError("give JSON or --file, not both")
    with session.client() as client:
        options = options_of(client, said)
        model = list(said["model"]) or None
        if file is None:
            given = _fit(task_type, _payload(payload), "the payload")
            with leaving(LEFT):
                job = client.submit(task_type, given, model=model, **options)
            remember_last(job.id)
            tell_ceilings(session, client, [(job.id, job.given_priority)], options.get("priority"))
            session.emit({"job": job.id}) if session.json else click.echo(job.id)
            return
        batch = _drafts(task_type, file, model, options)
        with leaving(LEFT):
            _submit_many(session, client, batch, options.get("priority"), atomic=atomic)


def _submit_many(
    session: Session, client: BrokerPort, batch: list[Draft], asked: int | str | None, *, atomic: bool
) -> None:
    refused: PartlyRefused | None = None
    try:
        given = [(job.id, job.given_priority) for job in client.submit_many(batch, atomic=atomic)]
    except PartlyRefused as error:
        refused = error
        given = [(job.id, job.given_priority) for job in error.accepted]
    ids = [job_id for job_id, _ in given]
    tell_ceilings(session, client, given, asked)
    if ids:
        remember_last(ids[-1])
    if session.json:
        session.emit(
            {"jobs": ids, "refused": [_refusal(at, why) for at, why in refused.refused] if refused else []}
        )
    else:
        session.lines(ids)
    if refused is not None:
        for at, why in refused.refused[:REFUSALS_SHOWN]:
            session.note(f"line {at + 1}: {why.message}")
        sentence = f"{count(len(refused.refused), 'job')} refused, {len(ids)} accepted"
        raise Failure(sentence, status_of(refused), error=refused)
    session.note(f"{count(len(ids), 'job')} accepted" + (f", the last is {short(ids[-1])}" if ids else ""))


def _refusal(index: int, why: LmqError) -> dict[str, object]:
    return {"line": index + 1, "code": why.code, "message": why.message}


def _payload(text: str | None) -> Json:
    if text is None:
        return None
    if text == "-":
        text = read_pipe()
    return _parsed(text, "the payload")


def _drafts(task_type: str, file: IO[str], model: list[str] | None, options: JobOptions) -> list[Draft]:
    return [
        drafts.draft(
            task_type, _fit(task_type, payload, f"line {number}"), model=model, **_own_key(options, number)
        )
        for number, payload in _numbered(file)
    ]


def _numbered(file: IO[str]) -> Iterator[tuple[int, Json]]:
    for number, line in enumerate(file, 1):
        if line.strip():
            yield number, _parsed(line, f"line {number}")


def _own_key(options: JobOptions, number: int) -> JobOptions:
    """Return the options with a key of the line's own: one key for all would make them one job."""
    key = options.get("idempotency_key")
    return options if not key else {**options, "idempotency_key": f"{key}/{number}"}


def _fit(task_type: str, payload: Json, what: str) -> Json:
    """Return a payload that its task type can read, at first sight.

    Raises:
        click.UsageError: it cannot; the sentence shows one that can.
    """
    if task_type not in SHAPES:
        return payload
    needed, example = SHAPES[task_type]
    body = payload.get("body") if isinstance(payload, dict) else None
    if not isinstance(body, dict) or needed not in body:
        raise click.UsageError(f"{what} of a {task_type} job lacks body.{needed}; write: {example}")
    return payload


def _parsed(text: str, what: str) -> Json:
    try:
        value: Json = json.loads(text)
    except ValueError as error:
        raise click.UsageError(f"{what} is no JSON: {error}") from error
    return value

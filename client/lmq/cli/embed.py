"""`lmq embed`: turn texts into vectors."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from lmq import EmbedResult
from lmq.cli import session as cli
from lmq.cli.acting import tell_ceilings
from lmq.cli.chat import print_id
from lmq.cli.errors import LEFT, leaving
from lmq.cli.humane import count
from lmq.cli.params import DURATION, MODEL, job_options, options_of
from lmq.cli.places import remember_last
from lmq.cli.reading import wait_for

if TYPE_CHECKING:
    from lmq.cli.session import Session

EXAMPLE = """
lmq embed "a blue sky" "a red rose"
lmq --json embed -f sentences.txt -m nomic > vectors.json
"""
FIRST_NUMBERS = 4


@cli.command("embed", example=EXAMPLE)
@click.argument("text", nargs=-1)
@click.option(
    "--file", "-f", "file", type=click.File(encoding="utf-8"), help="One text a line; - is the pipe."
)
@click.option("--model", "-m", type=MODEL, multiple=True, help="Any of these; may be given several times.")
@click.option("--wait", "wait_s", type=DURATION, metavar="TIME", help="Give up waiting after so long.")
@click.option("--detach", "-d", is_flag=True, help="Print the job's id and leave.")
@job_options
@cli.pass_session
def command(
    session: Session, /, text: tuple[str, ...], wait_s: float | None, detach: bool, **said: Any
) -> None:
    """Turn texts into vectors, in the order given. With --json the numbers are printed, all of them."""
    texts = list(text)
    if said["file"] is not None:
        texts += [line.rstrip("\n") for line in said["file"] if line.strip()]
    if not texts:
        raise click.UsageError('give texts, or a file with one a line, as: lmq embed "a blue sky"')
    with leaving(LEFT), session.client() as client:
        options = options_of(client, said)
        job = client.embed(texts, model=list(said["model"]) or None, **options)
        remember_last(job.id)
        tell_ceilings(session, client, [(job.id, job.given_priority)], options.get("priority"))
        if detach:
            print_id(session, job)
            return
        wait_for(session, job, wait_s)
        result = job.result()
        assert isinstance(result, EmbedResult)
        print_vectors(session, job.id, result)


def print_vectors(session: Session, job_id: str, result: EmbedResult) -> None:
    """Print what an embedding gave: all numbers in JSON, the first of each vector for people."""
    vectors = result.vectors
    if session.json:
        session.emit({"job": job_id, "model": result.model, "dims": result.dims, "vectors": vectors})
        return
    click.echo(f"{count(result.count, 'vector')} of {result.dims} numbers, {result.model or 'model unknown'}")
    for number, vector in enumerate(vectors, 1):
        first = " ".join(f"{value:8.4f}" for value in vector[:FIRST_NUMBERS])
        click.echo(f"{number:5}  {first}{' ...' if len(vector) > FIRST_NUMBERS else ''}")

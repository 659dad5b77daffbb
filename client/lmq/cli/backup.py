"""`lmq backup`: copy the journal while the broker runs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from lmq.cli import session as cli
from lmq.cli.humane import size

if TYPE_CHECKING:
    from lmq.cli.session import Session

EXAMPLE = "lmq backup ~/lmq-monday.sqlite3"


@cli.command("backup", example=EXAMPLE)
@click.argument("path", type=click.Path(path_type=Path))
@cli.pass_session
def command(session: Session, path: Path) -> None:
    """Copy the journal, all jobs and results, to a path on the broker's machine; the broker goes on meanwhile."""
    with session.client() as client:
        done = client.backup(str(path.expanduser().absolute()))
    if session.json:
        session.emit(done)
    else:
        click.echo(f"{done.path}: {size(done.copied_bytes)}; to use it: lmq restore {done.path}")

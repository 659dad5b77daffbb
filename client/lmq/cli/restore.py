"""`lmq restore`: put a copy of the journal in place. The broker's own command does it, offline."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import click

from lmq.cli import session as cli
from lmq.cli.children import daemon_words, needs_daemon
from lmq.cli.errors import Failure, Status
from lmq.cli.up import running_broker

if TYPE_CHECKING:
    from lmq.cli.session import Session

EXAMPLE = "lmq restore ~/lmq-monday.sqlite3"


@cli.command("restore", example=EXAMPLE)
@click.argument("backup", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option(
    "--data", type=click.Path(file_okay=False), help="Folder of the journal; default: the broker's own."
)
@cli.pass_session
def command(session: Session, backup: Path, data: str | None) -> None:
    """Put a backup in the place of the journal. The broker must not run; the old journal is kept beside it."""
    needs_daemon("broker")
    if data is None:
        url = running_broker(session)
        if url:
            raise Failure(f"a broker runs at {url}; stop it first", Status.FAILED)
    session.confirm(f"put {backup} in the place of the journal?")
    words = [*daemon_words("broker"), *(["--data", data] if data else []), "restore", str(backup.absolute())]
    ended = subprocess.run(words, check=False)
    if ended.returncode:
        raise Failure("nothing was restored", Status.FAILED)

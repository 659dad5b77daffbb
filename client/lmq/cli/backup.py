"""`lmq backup`: copy the journal while the broker runs."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING

import click

from lmq import config
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
        journal = client.health().journal_path
    if session.json:
        session.emit(done)
    else:
        click.echo(f"{done.path}: {size(done.copied_bytes)}; to use it: {how_to_restore(done.path, journal)}")


def how_to_restore(backup: str, journal: str) -> str:
    """Return the command that puts a backup where this journal is, as the account that the folder belongs to.

    Without folder and account, a service's backup would end up in the home of whoever types it.
    """
    words = ["lmq", "restore", backup]
    if not journal:
        return shlex.join(words)
    folder = Path(journal).parent
    words += ["--data", str(folder)]
    try:
        owner = folder.owner()
    except (OSError, KeyError, NotImplementedError):
        # On another machine, of an account without a name, on a system without owners.
        return shlex.join(words)
    return shlex.join(words if owner == config.account_name() else ["sudo", "-u", owner, *words])

"""`lmq metrics`: the broker's own measurements, for Prometheus."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from lmq.cli import session as cli

if TYPE_CHECKING:
    from lmq.cli.session import Session

EXAMPLE = """
lmq metrics
lmq metrics > lmq.prom.$$ && mv lmq.prom.$$ /var/lib/node_exporter/lmq.prom
"""


@cli.command("metrics", example=EXAMPLE)
@click.option("--users", is_flag=True, help="Those of each user too; for admins.")
@cli.pass_session
def command(session: Session, users: bool) -> None:
    """Print the broker's own measurements in Prometheus' text format.

    Written to a file by a timer, node_exporter's textfile collector hands them on.
    """
    with session.client() as client:
        text = client.metrics(users=users)
    if session.json:
        session.emit({"text": text})
    else:
        click.echo(text, nl=False)

"""`lmq version`: what is installed here, and what the broker runs."""

from __future__ import annotations

import platform
from typing import TYPE_CHECKING

import click

from lmq._version import __version__
from lmq.cli import session as cli
from lmq.errors import LmqError
from lmq_proto.bounds import PROTOCOL_NEWEST

if TYPE_CHECKING:
    from lmq.cli.session import Session

EXAMPLE = """
lmq version
lmq version --broker
"""


@cli.command("version", example=EXAMPLE)
@click.option("--broker", is_flag=True, help="Ask the broker too.")
@cli.pass_session
def command(session: Session, broker: bool) -> None:
    """Print the version of this client, and of the broker if asked."""
    told = {"lmq": __version__, "protocol": str(PROTOCOL_NEWEST), "python": platform.python_version()}
    failure: LmqError | None = None
    if broker:
        try:
            with session.client() as client:
                health = client.health()
            told["broker"] = f"{health.software}, protocol {health.protocol}"
        except LmqError as error:
            failure = error
    if session.json:
        session.emit(told)
    else:
        click.echo(", ".join(f"{name} {text}" for name, text in told.items() if name != "broker"))
        if "broker" in told:
            click.echo(f"broker {told['broker']}")
    if failure is not None:
        raise failure

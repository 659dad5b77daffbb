"""`lmq models`: which models there are, and where."""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING

import click

from lmq.cli import session as cli
from lmq.cli.errors import clean
from lmq.cli.params import MODEL
from lmq.cli.tables import Cell, Row, table
from lmq.errors import NotFound

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lmq import ModelView
    from lmq.cli.session import Session

EXAMPLE = """
lmq models
lmq models show qwen/qwen3-8b
"""


@cli.noun("models", example=EXAMPLE)
@cli.pass_session
@click.pass_context
def command(context: click.Context, session: Session) -> None:
    """List models, or show one."""
    if context.invoked_subcommand is None:
        _list(session)


@command.command("list", example="lmq models list")
@cli.pass_session
def list_command(session: Session) -> None:
    """List all models of all endpoints: loaded, or on disk."""
    _list(session)


@command.command("show", example="lmq models show qwen/qwen3-8b")
@click.argument("name", type=MODEL)
@cli.pass_session
def show_command(session: Session, name: str) -> None:
    """Show one model: where it is loaded, where it lies on disk, what waits for it."""
    with session.client() as client:
        found = client.models()
    model = next((one for one in found if one.model == name), None)
    if model is None:
        raise NotFound("model", name, difflib.get_close_matches(name, [one.model for one in found]))
    if session.json:
        session.emit(model)
        return
    facts = [
        ("model", f"{model.model} ({model.kind})"),
        ("loaded on", ", ".join(model.loaded_on)),
        ("on disk at", ", ".join(model.on_disk_at)),
        ("busy", f"{model.leased} of {model.slots}" if model.slots else ""),
        ("waiting", str(model.waiting)),
    ]
    for title, text in facts:
        if text:
            click.echo(f"{title:12}{clean(text)}")


def model_table(found: Sequence[ModelView]) -> list[str]:
    """Return the table of some models."""
    rows: list[Row] = []
    for model in found:
        loaded = ", ".join(model.loaded_on)
        disk = ", ".join(name for name in model.on_disk_at if name not in model.loaded_on)
        busy = f"{model.leased}/{model.slots}" if model.slots else ""
        rows.append([model.model, model.kind, Cell(loaded, "green"), busy, f"{model.waiting:,}", disk])
    return table(["MODEL", "KIND", "LOADED ON", "BUSY", "WAITING", "ON DISK AT"], rows, right=(3, 4))


def _list(session: Session) -> None:
    with session.client() as client:
        found = client.models()
    if session.json:
        session.emit(found)
    elif found:
        session.lines(model_table(found))
    else:
        session.note("no model: no worker is connected; type: lmq up")

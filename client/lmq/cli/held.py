"""What queues and workers share: pause, resume and drain."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from lmq.cli.session import Session


def tell(session: Session, name: str, done: str, changed: bool, *, otherwise: str) -> None:
    """Print what became of a queue or worker.

    Args:
        session: how to print.
        name: of the queue or worker.
        done: what it is now, as `paused`.
        changed: whether it was otherwise before.
        otherwise: what to say if it was not.
    """
    if session.json:
        session.emit({"name": name, "changed": changed})
    else:
        click.echo(f"{name} {done if changed else otherwise}")


def for_words(for_s: float | None) -> str:
    """Return how long a pause lasts, as the end of a sentence."""
    from lmq.cli.humane import duration

    return f" for {duration(for_s)}" if for_s else " until resumed"

"""`lmq config`: which settings are in force, and where each comes from."""

from __future__ import annotations

import subprocess
import tomllib
from typing import TYPE_CHECKING

import click

from lmq import config
from lmq.cli import session as cli
from lmq.cli.children import daemon_words
from lmq.cli.config import lmq_variables
from lmq.cli.errors import Failure, Status, clean
from lmq.cli.root import daemons
from lmq.cli.tables import Row, table

if TYPE_CHECKING:
    from lmq.cli.session import Session

EXAMPLE = """
lmq config show
lmq config check
"""
KNOWN_TABLES = ("client", "broker", "worker")
CLIENT_KEYS = ("url", "user", "as", "price_hour")
CHECKED_WITHIN_S = 30.0


@cli.noun("config", example=EXAMPLE)
@cli.pass_session
@click.pass_context
def command(context: click.Context, session: Session) -> None:
    """Show the settings and where each comes from, or check them.

    One file has them all: [client], [broker] and [worker]. Its keys, with defaults and examples: docs/configuration.md.
    """
    if context.invoked_subcommand is None:
        _show(session)


@command.command("show", example="lmq config show")
@cli.pass_session
def show_command(session: Session) -> None:
    """Show the settings in force and where each comes from: argument, environment, file or default."""
    _show(session)


@command.command("check", example="lmq config check")
@cli.pass_session
def check_command(session: Session) -> None:
    """Read the settings as client, broker and workers would, and say what is wrong with them.

    A running broker reads weights, ceilings, limits, aliases and defaults of jobs again on SIGHUP.
    """
    settings = config.load(session.url or None, None, session.as_user or None)
    config.price_hour()
    odd = [f"unknown table [{name}]" for name in _file() if name not in KNOWN_TABLES]
    client = _file().get("client", {})
    if isinstance(client, dict):
        odd += [
            f"client.{name} is unknown; there is {', '.join(CLIENT_KEYS)}"
            for name in client
            if name not in CLIENT_KEYS
        ]
    odd += _said_by_daemons()
    if odd:
        raise Failure(f"{config.config_path()}: {'; '.join(odd)}", Status.USAGE)
    if session.json:
        session.emit({"ok": True, "url": list(settings.urls)})
    else:
        there = "is well" if config.config_path().exists() else "does not exist, which is well"
        click.echo(f"{config.config_path()} {there}; the broker is at {', '.join(settings.urls)}")


def _show(session: Session) -> None:
    settings = config.load(session.url or None, None, session.as_user or None)
    rows: list[Row] = [
        ["url", ", ".join(settings.urls), settings.origins.get("url", "default")],
        ["user", settings.user, settings.origins.get("user", "default")],
        ["as", settings.as_user, settings.origins.get("as_user", settings.origins.get("as", "default"))],
    ]
    path = str(config.config_path())
    for name, value in _flat(_file(), ""):
        if name.partition(".")[0] != "client":
            rows.append([name, clean(value), path])
        elif name == "client.price_hour" and "LMQ_PRICE_HOUR" not in lmq_variables():
            rows.append(["price_hour", clean(value), path])
    for name, value in lmq_variables().items():
        if name not in ("LMQ_URL", "LMQ_USER"):
            rows.append([name, clean(_masked(name, value)), "environment"])
    if session.json:
        session.emit([dict(zip(("name", "value", "origin"), row, strict=True)) for row in rows])
        return
    session.lines(table(["NAME", "VALUE", "FROM"], rows))
    session.note(f"(the file is {path}; what may stand there, and its defaults: docs/configuration.md)")


def _said_by_daemons() -> list[str]:
    """Return what broker and workers refuse of their tables; those that are not installed here have no say."""
    workers = _file().get("worker", {})
    named = (
        [name for name, value in workers.items() if isinstance(value, dict)]
        if isinstance(workers, dict)
        else []
    )
    asked = [["broker"], ["worker"], *(["worker", "--name", name] for name in named)]
    faults = [_fault(*words) for words in asked if words[0] in daemons() and words[0] in _file()]
    return list(dict.fromkeys(filter(None, faults)))


def _fault(daemon: str, *options: str) -> str:
    """Return what a daemon says of its settings; empty if they are well."""
    ended = subprocess.run(
        [*daemon_words(daemon), *options, "--check"], stdin=subprocess.DEVNULL, capture_output=True, text=True,
        check=False, timeout=CHECKED_WITHIN_S,
    )  # fmt: skip
    said = (
        ended.stderr.strip().removeprefix("Error: ") or f"lmq {daemon} --check ended with {ended.returncode}"
    )
    return clean(said) if ended.returncode else ""


def _file() -> dict[str, object]:
    try:
        return dict(tomllib.loads(config.config_path().read_text(encoding="utf-8")))
    except FileNotFoundError:
        return {}
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise Failure(f"{config.config_path()} is no TOML: {error}", Status.USAGE) from error


def _flat(tree: object, prefix: str) -> list[tuple[str, str]]:
    if not isinstance(tree, dict):
        name = prefix.rstrip(".")
        return [(name, _masked(name, str(tree)))]
    return [pair for name, value in tree.items() for pair in _flat(value, f"{prefix}{name}.")]


def _masked(name: str, value: str) -> str:
    """Return a value as it may be shown: secrets are not."""
    secret = any(word in name.lower() for word in ("token", "secret", "password", "key"))
    return "(not shown)" if secret and value else value

"""What every command shares: the global options, the connection, and the two ways to speak (text and JSON).

`lmq --json list` and `lmq list --json` mean the same: each command takes the global options too, unseen in its help.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import click
import msgspec

from lmq.cli.config import wants_no_color
from lmq.cli.errors import Failure, Status, clean, failure_of
from lmq.errors import LmqError

if TYPE_CHECKING:
    from lmq.cli.port import BrokerPort

CONNECT_TIMEOUT_S = 3.0
"""A local broker answers within milliseconds, one across an office in well under a second."""
PROBE_TIMEOUT_S = 1.0
"""For a look whether there is a broker at all, on this machine."""


@dataclass(slots=True)
class Session:
    """The global options of one call.

    Attributes:
        url: broker address; empty: as configured.
        as_user: on whose behalf; empty: oneself.
        json: answer in JSON.
        quiet: leave out what only explains.
        yes: do not ask back.
        connect_timeout_s: how long the first contact may take.
        connect: makes the client; tests put their own here.
    """

    url: str = ""
    as_user: str = ""
    json: bool = False
    quiet: bool = False
    yes: bool = False
    connect_timeout_s: float = CONNECT_TIMEOUT_S
    connect: Callable[[Session], BrokerPort] | None = None

    @contextmanager
    def client(self) -> Iterator[BrokerPort]:
        """Give a client and close it afterwards."""
        opened = (self.connect or connect)(self)
        try:
            yield opened
        finally:
            opened.close()

    def note(self, sentence: str) -> None:
        """Tell a person something that is no part of the answer."""
        if not self.quiet:
            click.echo(clean(sentence), err=True)

    def emit(self, value: object) -> None:
        """Print an answer as one line of JSON."""
        click.echo(json.dumps(jsonable(value), ensure_ascii=False))

    def lines(self, lines: Sequence[str]) -> None:
        """Print the lines of an answer."""
        for line in lines:
            click.echo(line)

    def confirm(self, question: str) -> None:
        """Ask before something that touches many.

        Raises:
            Failure: the answer is no, or nobody is there to ask.
        """
        if self.yes:
            return
        if not sys.stdin or not sys.stdin.isatty():
            raise Failure(f"{question} Nobody is here to ask; add --yes", Status.USAGE)
        if not click.confirm(question, err=True):
            raise Failure("nothing was done", Status.FAILED)


def connect(session: Session) -> BrokerPort:
    """Return a client for the broker that the options or the configuration name."""
    from lmq import Client

    client = Client(
        session.url or None, as_user=session.as_user or None, connect_timeout_s=session.connect_timeout_s
    )
    return cast("BrokerPort", client)


def jsonable(value: object) -> Any:
    """Return what the SDK gives as JSON can hold it; bytes become hexadecimal."""
    return _hexed(msgspec.to_builtins(value, builtin_types=(bytes,)))


def _hexed(value: object) -> object:
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, dict):
        return {str(key): _hexed(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_hexed(item) for item in value]
    return value


pass_session = click.make_pass_decorator(Session, ensure=True)


# --- global options and commands that know them ----------------------------------------------------------------------


def _set(field: str) -> Callable[[click.Context, click.Parameter, Any], None]:
    def put(ctx: click.Context, parameter: click.Parameter, value: Any) -> None:
        if value:
            setattr(ctx.ensure_object(Session), field, value)

    return put


def _set_color(ctx: click.Context, parameter: click.Parameter, value: bool) -> None:
    if value or wants_no_color():
        ctx.color = False
        ctx.find_root().color = False


def global_options(*, hidden: bool) -> list[click.Parameter]:
    """Return the options that every command takes."""
    flag = {"is_flag": True, "expose_value": False, "hidden": hidden}
    return [
        click.Option(
            ["--url"], metavar="URL", expose_value=False, hidden=hidden, callback=_set("url"),
            help="The broker; default: LMQ_URL, the configuration, or the local one.",
        ),
        click.Option(
            ["--as", "as_user"], metavar="USER", expose_value=False, hidden=hidden, callback=_set("as_user"),
            help="On whose behalf.",
        ),
        click.Option(["--json"], callback=_set("json"), help="Answer in JSON.", **flag),
        click.Option(["--quiet", "-q"], callback=_set("quiet"), help="Only the answer.", **flag),
        click.Option(["--no-color"], callback=_set_color, help="No colours.", **flag),
        click.Option(["--yes", "-y"], callback=_set("yes"), help="Do not ask back.", **flag),
    ]  # fmt: skip


SETTINGS = {"help_option_names": ["-h", "--help"], "max_content_width": 80}


class Command(click.Command):
    """A command with an example under its help."""

    def __init__(self, *args: Any, example: str, **kwargs: Any) -> None:
        kwargs["params"] = [*(kwargs.get("params") or []), *global_options(hidden=True)]
        kwargs.setdefault("context_settings", SETTINGS)
        super().__init__(*args, **kwargs)
        self.example = example

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the example."""
        write_example(formatter, self.example)

    def invoke(self, ctx: click.Context) -> Any:
        """Run it; an error of lmq ends it with its sentence and status."""
        session = ctx.ensure_object(Session)
        try:
            return super().invoke(ctx)
        except LmqError as error:
            raise failure_of(error, as_json=session.json) from error
        except Failure as failure:
            failure.as_json = session.json
            raise


class Noun(click.Group):
    """A noun with verbs; alone it does what `list` would."""

    command_class = Command

    def __init__(self, *args: Any, example: str, **kwargs: Any) -> None:
        kwargs["params"] = [*(kwargs.get("params") or []), *global_options(hidden=True)]
        kwargs.setdefault("context_settings", SETTINGS)
        super().__init__(*args, **kwargs)
        self.example = example

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the example."""
        write_example(formatter, self.example)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the verb, or say which there are."""
        if args[0] not in self.commands and not ctx.resilient_parsing and not args[0].startswith("-"):
            verbs = ", ".join(self.list_commands(ctx))
            raise click.UsageError(f"{self.name} has no verb {args[0]!r}; there are: {verbs}", ctx)
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        """Run it, errors told as for any command."""
        session = ctx.ensure_object(Session)
        try:
            return super().invoke(ctx)
        except LmqError as error:
            raise failure_of(error, as_json=session.json) from error


def write_example(formatter: click.HelpFormatter, example: str) -> None:
    """Write an example as it stands, line by line."""
    with formatter.section("Example"):
        for line in example.strip().splitlines():
            formatter.write(f"{'':{formatter.current_indent}}{line}\n")


def command(name: str, *, example: str) -> Callable[[Callable[..., Any]], Command]:
    """Make a function a command; its docstring is its help."""
    return click.command(name, cls=Command, example=example)


def noun(name: str, *, example: str) -> Callable[[Callable[..., Any]], Noun]:
    """Make a function a noun; it runs when no verb is given."""
    return click.group(name, cls=Noun, example=example, invoke_without_command=True)

"""The table of all commands, and the group that imports one only when it is called: `lmq --help` imports none."""

from __future__ import annotations

import difflib
import sys
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

import click

from lmq._version import __version__
from lmq.cli.errors import Failure, Status, guarded
from lmq.cli.session import SETTINGS, Session, global_options, write_example

if TYPE_CHECKING:
    from collections.abc import Sequence


class Entry(NamedTuple):
    """A command before it is imported: `module` in this package has the attribute `command`."""

    section: str
    module: str
    help: str


COMMANDS: dict[str, Entry] = {
    "up": Entry("start", "up", "Start a broker and a worker for the LM Studio found."),
    "demo": Entry("start", "demo.command", "See it all at work, broker killed half way."),
    "doctor": Entry("start", "doctor", "Find what is wrong and say what to type."),
    "top": Entry("start", "top.command", "Watch users, workers and jobs, and act on them."),
    "chat": Entry("jobs", "chat", "Ask a model and read the answer as it is written."),
    "embed": Entry("jobs", "embed", "Turn texts into vectors."),
    "submit": Entry("jobs", "submit", "Submit jobs of any task type."),
    "list": Entry("jobs", "list", "List jobs, newest first."),
    "show": Entry("jobs", "show", "Show all that is known of a job."),
    "why": Entry("jobs", "why", "Say why a job waits, or what became of it."),
    "logs": Entry("jobs", "logs", "Print what happened to a job, and when."),
    "stream": Entry("jobs", "stream", "Print a job's text from its start, as it is written."),
    "result": Entry("jobs", "result", "Wait for a job's result and print it."),
    "wait": Entry("jobs", "wait", "Wait until jobs have ended."),
    "cancel": Entry("jobs", "cancel", "Cancel jobs."),
    "retry": Entry("jobs", "retry", "Let dead, cancelled or expired jobs run again."),
    "update": Entry("jobs", "update", "Change jobs that have not ended."),
    "delete": Entry("jobs", "delete", "Remove ended jobs with their results."),
    "tail": Entry("jobs", "tail", "Follow everything that happens."),
    "queues": Entry("nouns", "queues", "Queues: list, show, pause, resume, drain."),
    "workers": Entry("nouns", "workers", "Workers: list, show, pause, resume, drain."),
    "limits": Entry("nouns", "limits", "Limits of what runs, waits or begins: list, set, reset."),
    "models": Entry("nouns", "models", "Models: list, show, load, unload, pin, alias, default."),
    "users": Entry("nouns", "users", "Users and their shares: list, show, set, reset."),
    "config": Entry("nouns", "configuration", "Settings: show, check."),
    "systemd": Entry("nouns", "systemd", "Services of this machine: install."),
    "usage": Entry("nouns", "usage", "Say what jobs have used, by day, user, model or type."),
    "metrics": Entry("nouns", "metrics", "Print the broker's measurements for Prometheus."),
    "backup": Entry("nouns", "backup", "Copy the journal while the broker runs."),
    "restore": Entry("nouns", "restore", "Put a copy of the journal in place."),
    "completion": Entry("nouns", "completion", "Print the completion script of a shell."),
    "version": Entry("nouns", "version", "Print the version."),
}

SECTIONS = ("start", "jobs", "nouns", "daemons", "planning")
DAEMON_GROUP = "lmq.commands"
DAEMONS = {
    "broker": ("Run the broker.", "lmq broker --listen tcp://127.0.0.1:7766"),
    "worker": ("Serve one model server.", "lmq worker --endpoint http://gpu-2:1234"),
    "gateway": ("Speak HTTP to OpenAI's clients.", "lmq gateway"),
    "notifier": ("Tell people what happened.", "lmq notifier"),
    "simulator": ("Stand in for LM Studio.", "lmq simulator --port 1234"),
}
PLANNING = {
    "forecast": ("Say what more endpoints or a policy would bring.", "lmq forecast monday.csv --endpoints 2"),
}
_BESIDE = DAEMONS | PLANNING
EXAMPLE = """
lmq up                             broker and worker for your LM Studio
lmq chat "Why is the sky blue?"    in another terminal
lmq tail                           what happens, as it happens
"""


class Root(click.Group):
    """All commands, each imported when it is needed."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names in the order of the help."""
        return [*COMMANDS, *daemons()]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import a command."""
        entry = COMMANDS.get(cmd_name)
        if entry is None:
            daemon = daemons().get(cmd_name)
            return None if daemon is None else load_daemon(daemon)
        found = import_module(f"lmq.cli.{entry.module}").command
        assert isinstance(found, click.Command)
        return found

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command, or say which one may have been meant."""
        name = args[0]
        if self.get_command(ctx, name) is None and not ctx.resilient_parsing and not name.startswith("-"):
            near = difflib.get_close_matches(name, self.list_commands(ctx), n=2)
            hint = f"did you mean {' or '.join(near)}?" if near else "type: lmq --help"
            raise click.UsageError(f"there is no command {name!r}; {hint}", ctx)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the table by section, from its short texts alone."""
        for section in SECTIONS:
            rows = [(name, entry.help) for name, entry in COMMANDS.items() if entry.section == section]
            if section == "daemons":
                rows = [(name, DAEMONS.get(name, ("", ""))[0]) for name in daemons() if name not in PLANNING]
            elif section == "planning":
                rows = [(name, text) for name, (text, _) in PLANNING.items() if name in daemons()]
            if rows:
                with formatter.section(section):
                    formatter.write_dl(rows)

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the first three things to type."""
        write_example(formatter, EXAMPLE)

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        **extra: Any,
    ) -> NoReturn:
        """Run a command line and exit with its status."""
        run = super().main

        def act() -> object:
            return run(args, prog_name or "lmq", complete_var, standalone_mode=False, **extra)

        sys.exit(guarded(act))


def daemons() -> dict[str, EntryPoint]:
    """Return the daemons, and what else is installed beside this client, by name, in the order of the help."""
    found = {entry.name: entry for entry in entry_points(group=DAEMON_GROUP)}
    known = [name for name in _BESIDE if name in found]
    return {name: found[name] for name in [*known, *sorted(found.keys() - set(known))]}


def load_daemon(entry: EntryPoint) -> click.Command:
    """Import a daemon's command.

    Raises:
        Failure: it cannot be imported.
    """
    try:
        found = entry.load()
    except (ImportError, AttributeError) as error:
        raise Failure(f"lmq {entry.name} cannot be loaded: {error}", Status.FAILED) from error
    assert isinstance(found, click.Command)
    if not found.epilog and entry.name in _BESIDE:
        found.epilog = f"\b\nExample:\n  {_BESIDE[entry.name][1]}"
    return found


def _print_version(ctx: click.Context, parameter: click.Parameter, value: bool) -> None:
    if value and not ctx.resilient_parsing:
        click.echo(f"lmq {__version__}")
        ctx.exit()


def _start(ctx: click.Context) -> None:
    ctx.ensure_object(Session)


root = Root(
    name="lmq",
    callback=click.pass_context(_start),
    params=[
        *global_options(hidden=False),
        click.Option(
            ["--version"], is_flag=True, expose_value=False, is_eager=True, callback=_print_version,
            help="Print the version.",
        ),
    ],
    help="A fair, durable job queue for local LLM servers.",
    context_settings=SETTINGS,
)  # fmt: skip

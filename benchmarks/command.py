"""What the commands of all benchmarks have in common: their options, Ctrl-C, and where the section goes.

What is measured, and what its section says, belongs to each benchmark.
"""

import signal
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, TypeVar

import click

from benchmarks.results import DOCUMENT, BrokenSection, file_system, write_section

# A sync there costs nothing and means nothing.
MEMORY_FILE_SYSTEMS = frozenset({"tmpfs", "ramfs"})

QUICK_RUN = "A quick run: it shows that everything works, not how fast.\n"

Command = TypeVar("Command", bound=Callable[..., Any])


@dataclass(frozen=True, slots=True)
class Wishes:
    """What the user asked of any benchmark."""

    quick: bool
    no_write: bool
    output: Path
    directory: Path

    def words(self) -> list[str]:
        """Return the options as they are typed, for a benchmark that starts another."""
        flags = [*(["--quick"] if self.quick else []), *(["--no-write"] if self.no_write else [])]
        return [*flags, "--output", str(self.output), "--directory", str(self.directory)]


def standing_options(command: Command) -> Command:
    """Give a command the options that all benchmarks have; they arrive by the names of the fields of `Wishes`."""
    for option in reversed((
        click.option("--quick", is_flag=True, help="Short and small: shows that everything works, not how fast."),
        click.option("--no-write", is_flag=True, help="Print the tables and leave the document alone."),
        click.option(
            "--output",
            type=click.Path(path_type=Path, dir_okay=False),
            default=DOCUMENT,
            show_default="docs/benchmarks.md",
            help="The document whose section is rewritten.",
        ),
        click.option(
            "--directory",
            type=click.Path(path_type=Path, exists=True, file_okay=False, writable=True),
            default=_default_directory,
            show_default="/var/tmp, else the temporary directory",
            help="Where the servers keep their files; take the disk you care about.",
        ),
    )):  # fmt: skip
        command = option(command)
    return command


def begin(wishes: Wishes) -> None:
    """Let SIGTERM unwind like Ctrl-C, and refuse a directory where syncs mean nothing.

    Raises:
        click.UsageError: the directory is in memory.
    """
    signal.signal(signal.SIGTERM, _on_terminate)
    kind = file_system(wishes.directory)
    if kind in MEMORY_FILE_SYSTEMS:
        raise click.UsageError(
            f"{wishes.directory} is in memory ({kind}), where a sync means nothing; name a --directory"
        )


def typed(name: str, wishes: Wishes, *more: str) -> str:
    """Return the command that makes the same figures anywhere: without paths of this machine."""
    return " ".join([f"python -m benchmarks.{name}", *(["--quick"] if wishes.quick else []), *more])


def finish(name: str, section: str, wishes: Wishes) -> None:
    """Print a section and put it into its place in the document.

    Raises:
        click.ClickException: the document's marks are broken.
    """
    click.echo(section)
    if wishes.no_write:
        return
    try:
        write_section(wishes.output, name, section)
    except BrokenSection as error:
        raise click.ClickException(str(error)) from error
    click.echo(f"written to {wishes.output}", err=True)


def say(line: str) -> None:
    """Tell how far it is; stdout is for the tables."""
    click.echo(line, err=True)


def _on_terminate(_signal: int, _frame: FrameType | None) -> None:
    # Unwinds like Ctrl-C does, so that the processes of the session in hand are stopped.
    raise SystemExit(128 + signal.SIGTERM)


def _default_directory() -> Path:
    # /tmp is memory on many systems; /var/tmp is a disk by convention.
    persistent = Path("/var/tmp")
    return persistent if persistent.is_dir() else Path(tempfile.gettempdir())

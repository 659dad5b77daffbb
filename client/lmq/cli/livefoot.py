"""Lines at the bottom of a terminal that show what runs just now; nothing on a pipe.

They are wiped before anything is printed above them, so that what stays on the screen is what a pipe would get.
"""

from __future__ import annotations

import shutil
import sys
from typing import TYPE_CHECKING, Self

import click

from lmq.cli.humane import short, where
from lmq.cli.tables import SHORT, WIDTH, bar, cut, padded

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lmq import JobStatus
    from lmq.cli.session import Session

BAR_WIDTH = 10


class Foot:
    """The lines at the bottom. `clear` before anything is printed above, `draw` afterwards."""

    def __init__(self, session: Session) -> None:
        self._is_on = (
            not session.json and not session.quiet and sys.stdout is not None and sys.stdout.isatty()
        )
        self._lines: list[str] = []
        self._drawn = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.clear()

    def put(self, lines: Sequence[str]) -> None:
        """Take other lines, shown at the next `draw`."""
        self._lines = list(lines)

    def put_jobs(self, running: Sequence[JobStatus], *, more: int) -> None:
        """Take what runs; `more` jobs run beside these."""
        lines = [job_line(job) for job in running]
        self.put([*lines, f"and {more} more"] if more else lines)

    def draw(self) -> None:
        """Write the lines below what is printed."""
        if not self._is_on or self._drawn or not self._lines:
            return
        width = min(WIDTH, shutil.get_terminal_size().columns)
        lines = [cut(line, width - 1) for line in ["", *self._lines]]
        click.echo("\n".join(click.style(line, dim=True) for line in lines))
        self._drawn = len(lines)

    def clear(self) -> None:
        """Wipe the lines."""
        if self._drawn:
            click.echo(f"\x1b[{self._drawn}F\x1b[J", nl=False)
            self._drawn = 0


def job_line(job: JobStatus) -> str:
    """Return a running job as one line, with a bar where its progress is known."""
    shown = bar(job.progress, BAR_WIDTH) if job.progress else " " * BAR_WIDTH
    return f"{padded(short(job.id), SHORT)}  {shown}  {padded(job.user, 10)} {padded(job.worker, 12)} {where(job)}"

"""The traffic of a broker as a trace, a line for each request, which `lmq forecast` reads."""

from __future__ import annotations

import csv
import sys
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from datetime import datetime

    from lmq import JobStatus

PAGE = 1000
COLUMNS = ("t_s", "user", "in_tokens", "out_tokens", "model", "priority")


class Lists(Protocol):
    """Who lists jobs."""

    def jobs(self, *, limit: int, after: int, states: Sequence[str], user: str) -> list[JobStatus]:
        """Return jobs, newest first."""
        ...


def requests(client: Lists, since: datetime, until: datetime | None, user: str) -> list[JobStatus]:
    """Return the jobs of these days that were answered with so many tokens, oldest first.

    Jobs that were deleted meanwhile are not among them: results are kept for a while only.
    """
    found = [
        job for job in _newest_first(client, since, user)
        if (job.prompt_tokens or job.output_tokens)
        and (until is None or job.created_at_ms < until.timestamp() * 1000)
    ]  # fmt: skip
    return found[::-1]


def _newest_first(client: Lists, since: datetime, user: str) -> Iterator[JobStatus]:
    after = 0
    while True:
        page = client.jobs(limit=PAGE, after=after, states=["done"], user=user)
        for job in page:
            if job.created_at_ms < since.timestamp() * 1000:
                return
            yield job
        if len(page) < PAGE:
            return
        after = page[-1].number


def write(jobs: Sequence[JobStatus]) -> None:
    """Print the trace."""
    out = csv.writer(sys.stdout, lineterminator="\n")
    out.writerow(COLUMNS)
    for job in jobs:
        at_s = (job.created_at_ms - jobs[0].created_at_ms) / 1000
        out.writerow([at_s, job.user, job.prompt_tokens, job.output_tokens, job.model, job.priority])

"""A worker of echo jobs that says on stdout which leases it was given; otherwise the real one, started as it is.

A payload with `pieces` has text written, and each piece names the lease under which it was: `epoch.attempt.number`.
So two attempts in one answer can be told from each other, even two of the same number. What is complete at once took
`SPENT`.
"""

from __future__ import annotations

import asyncio
import os
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from crash.ledger import line
from lmq_proto.ids import to_text
from lmq_worker.__main__ import main
from lmq_worker.backends import BACKENDS
from lmq_worker.backends.echo import EchoBackend
from lmq_worker.open_data import unpack

if TYPE_CHECKING:
    from lmq_worker.attempt import Attempt, Outcome
    from lmq_worker.backends.base import Report


SPENT: dict[str, Any] = {"prompt_tokens": 10, "output_tokens": 3, "engine_ms": 7}


class NotingEcho(EchoBackend):
    """The echo backend, with notes and with text that names its lease."""

    def immediate(self, attempt: Attempt) -> Outcome | None:
        lease = attempt.lease
        os.write(1, line("leased", to_text(lease.job_id), lease.epoch, lease.attempt))
        if b"pieces" in attempt.payload:
            return None
        outcome = super().immediate(attempt)
        return replace(outcome, **SPENT) if outcome is not None and outcome.outcome == "complete" else outcome

    async def run(self, attempt: Attempt, report: Report) -> Outcome:
        payload = unpack(attempt.payload) or {}
        pieces = int(payload.get("pieces") or 0)
        if not pieces:
            return await super().run(attempt, report)
        pause_s = float(payload.get("delay_s") or 0) / pieces
        for number in range(1, pieces + 1):
            await asyncio.sleep(pause_s)
            report.text("content", f"{attempt.lease.epoch}.{attempt.lease.attempt}.{number} ")
        report.text("end", "stop")
        return self._end(attempt, payload)


if __name__ == "__main__":
    BACKENDS["echo"] = NotingEcho
    main()

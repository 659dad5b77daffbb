"""Task type `complete`: one OpenAI completion request, without a chat template."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lmq_worker.failures import BadPayload
from lmq_worker.tasks.base import request_body
from lmq_worker.tasks.generate import generate

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lmq_worker.attempt import Attempt, Outcome
    from lmq_worker.backends.base import Report
    from lmq_worker.tasks.base import Engine


class CompleteTask:
    """`POST /v1/completions`, streamed."""

    async def run(self, engine: Engine, attempt: Attempt, report: Report) -> Outcome:
        body = request_body(attempt)
        if not isinstance(body.get("prompt"), str):
            raise BadPayload("body.prompt", "must be a text")
        return await generate(engine, "/v1/completions", body, report)

    def merges(self, attempts: Sequence[Attempt]) -> bool:
        return False

    async def run_merged(self, engine: Engine, attempts: Sequence[Attempt], report: Report) -> list[Outcome]:
        return [await self.run(engine, attempt, report) for attempt in attempts]

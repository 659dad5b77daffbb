"""Task type `chat`: one OpenAI chat request. Tools, schemas and images in messages pass through untouched."""

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


class ChatTask:
    """`POST /v1/chat/completions`, streamed."""

    async def run(self, engine: Engine, attempt: Attempt, report: Report) -> Outcome:
        body = request_body(attempt)
        if not isinstance(body.get("messages"), list) or not body["messages"]:
            raise BadPayload("body.messages", "must be a list with at least one message")
        return await generate(engine, "/v1/chat/completions", body, report)

    def merges(self, attempts: Sequence[Attempt]) -> bool:
        return False

    async def run_merged(self, engine: Engine, attempts: Sequence[Attempt], report: Report) -> list[Outcome]:
        return [await self.run(engine, attempt, report) for attempt in attempts]

"""The lm_studio backend against the simulator over real HTTP, driven by a fake broker over real sockets."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from integration.worker.fake_broker import FakeBroker, a_broker, a_worker, chat, settings
from lmq_simulator import Simulator, SimulatorConfig

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

CHAT_MODEL = "qwen/qwen3-8b"
EMBEDDER = "text-embedding-nomic-embed-text-v1.5"


@asynccontextmanager
async def a_studio(
    tmp_path: Path, config: SimulatorConfig | None = None, **fields: Any
) -> AsyncIterator[tuple[FakeBroker, Simulator]]:
    """A broker, a simulated LM Studio, and a worker between them that has enlisted."""
    async with Simulator(config or SimulatorConfig.instant()).start() as simulator, a_broker() as broker:
        worker = settings(broker.url, tmp_path, backend="lm_studio", endpoint=simulator.url, **fields)
        async with a_worker(worker):
            await broker.until(lambda: broker.capacity, "the worker")
            yield broker, simulator


def test_a_chat_is_streamed_and_its_result_says_the_same(tmp_path: Path) -> None:
    async def story() -> None:
        async with a_studio(tmp_path) as (broker, _):
            instance = await broker.with_instance(CHAT_MODEL)
            lease = await broker.give(chat("Why is the sky blue?"), task_type="chat", instance_id=instance)
            ended, result = await broker.end(lease)
            assert ended.outcome == "complete", ended
            assert result["text"]
            assert broker.text(lease) == result["text"]
            assert broker.text(lease, "end") == result["finish_reason"] == "stop"
            assert result["usage"]["completion_tokens"] == ended.output_tokens > 0
            assert ended.model == instance

    asyncio.run(story())

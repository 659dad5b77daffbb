"""The limit of jobs at once as a broker sees it: it grows under load, falls after errors, and cancels nothing."""

from __future__ import annotations

import asyncio
import itertools
from typing import TYPE_CHECKING

import pytest

from integration.worker.fake_broker import a_broker, a_worker, chat, settings
from lmq_proto.messages import CapacityReport
from lmq_simulator import Simulator, SimulatorConfig
from lmq_simulator.config import DEFAULT_MODELS

if TYPE_CHECKING:
    from pathlib import Path

    from integration.worker.fake_broker import FakeBroker
    from lmq_proto.messages import InstanceInfo, Lease

MODEL = DEFAULT_MODELS[1]
# One model, answers without end.
ENDLESS = SimulatorConfig.instant(
    models=(MODEL,), loaded=(MODEL.key,), parallel=64, itl_base_ms=10.0, itl_per_stream_ms=1.0, answer_tokens=100_000
)  # fmt: skip


def reported(broker: FakeBroker) -> InstanceInfo:
    assert broker.capacity is not None
    return broker.capacity.instances[0]


async def has_slots(broker: FakeBroker, slots: int) -> None:
    await broker.until(lambda: reported(broker).slots == slots, f"{slots} slots")


def told(broker: FakeBroker) -> list[int]:
    """Return the slots of each report that says more than the machine's load."""
    reports = [one.capacity.instances for one in broker.heard if isinstance(one, CapacityReport)]
    return [instances[0].slots for instances, _ in itertools.groupby(reports)]


@pytest.mark.slow  # Windows are 2 s of real time.
def test_where_the_server_says_nothing_of_slots_they_grow_under_load(tmp_path: Path) -> None:
    async def story() -> None:
        async with Simulator(ENDLESS).start() as simulator, a_broker() as broker:
            worker = settings(broker.url, tmp_path, backend="openai", endpoint=simulator.url)
            async with a_worker(worker):
                instance_id = await broker.with_instance(MODEL.key)
                assert (reported(broker).slots, reported(broker).limit_by) == (2, "probe")
                for given, slots in [(0, 2), (2, 3), (3, 4), (4, 5)]:
                    await has_slots(broker, slots)
                    for _ in range(slots - given):
                        await broker.give(chat("Go on."), task_type="chat", instance_id=instance_id)
                assert broker.capacity is not None
                assert broker.capacity.slots == 5
                assert told(broker) == [3, 4, 5]

    asyncio.run(story())


def test_errors_take_slots_away_and_what_runs_goes_on(tmp_path: Path) -> None:
    async def story() -> None:
        async with Simulator(ENDLESS.turned({"parallel": 6})).start() as simulator, a_broker() as broker:
            worker = settings(broker.url, tmp_path, backend="lm_studio", endpoint=simulator.url)
            async with a_worker(worker):
                instance_id = await broker.with_instance(MODEL.key)
                assert (reported(broker).slots, reported(broker).limit_by) == (6, "slots")
                running = [
                    await broker.give(chat(f"Go on, {number}."), task_type="chat", instance_id=instance_id)
                    for number in range(5)
                ]
                await broker.until(lambda: all(broker.text(lease) for lease in running), "text of all")
                simulator.inject("model_crashed")
                failed = await broker.give(chat("Fail."), task_type="chat", instance_id=instance_id)
                ended, _ = await broker.end(failed)
                assert ended.error is not None
                assert ended.error.code == "engine_crashed"
                await has_slots(broker, 4)
                assert reported(broker).limit_by == "errors"
                written = [len(broker.text(lease)) for lease in running]
                await broker.until(lambda: _all_longer(broker, running, written), "more text of all")
                assert list(broker.results) == [(failed.job_id, failed.epoch, failed.attempt)]

    asyncio.run(story())


def _all_longer(broker: FakeBroker, running: list[Lease], written: list[int]) -> bool:
    return all(len(broker.text(lease)) > count for lease, count in zip(running, written, strict=True))


def test_a_number_that_was_set_stays_whatever_happens(tmp_path: Path) -> None:
    async def story() -> None:
        async with Simulator(ENDLESS).start() as simulator, a_broker() as broker:
            worker = settings(broker.url, tmp_path, backend="openai", endpoint=simulator.url, concurrency=3)
            async with a_worker(worker):
                instance_id = await broker.with_instance(MODEL.key)
                simulator.inject("model_crashed")
                failed = await broker.give(chat("Fail."), task_type="chat", instance_id=instance_id)
                assert (await broker.end(failed))[0].outcome == "crash"
                running = await broker.give(chat("Go on."), task_type="chat", instance_id=instance_id)
                await broker.until(lambda: broker.text(running), "text")
                assert (reported(broker).slots, reported(broker).limit_by) == (3, "setting")
                assert told(broker) in ([], [3])

    asyncio.run(story())

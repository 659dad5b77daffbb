"""What shares a slot in the worker: one request for all, and by halves where one input spoils it."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, cast

import pytest

from lmq_proto.messages import Lease
from lmq_worker.attempt import Attempt, Outcome
from lmq_worker.runs import Runs

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lmq_worker.attempt import Key


def attempts(count: int) -> list[Attempt]:
    return [
        Attempt(
            Lease(job_id=number.to_bytes(16, "big"), epoch=1, attempt=1, task_type="embed", payload_bytes=1),
            b"x",
        )
        for number in range(count)
    ]


class Spoilt:
    """A backend whose requests fail as a whole when a bad input is among them."""

    def __init__(self, bad: set[Key]) -> None:
        self.bad = bad
        self.requests: list[int] = []
        self.gate = asyncio.Event()
        self.gate.set()

    def immediate(self, attempt: Attempt) -> None:
        return None

    def merges(self, attempts: Sequence[Attempt]) -> bool:
        return True

    async def run(self, attempt: Attempt, report: Any) -> Outcome:
        return (await self.run_merged([attempt], report))[0]

    async def run_merged(self, attempts: Sequence[Attempt], report: Any) -> list[Outcome]:
        self.requests.append(len(attempts))
        await self.gate.wait()
        spoilt = any(attempt.key in self.bad for attempt in attempts)
        return [Outcome("fail", permanent=True) if spoilt else Outcome("complete")] * len(attempts)


async def ends_of(backend: Spoilt, group: list[Attempt], stop: Sequence[Key] = ()) -> dict[Key, str]:
    ended: dict[Key, str] = {}
    all_ended = asyncio.Event()

    def end(key: Key, outcome: Outcome) -> None:
        ended[key] = outcome.outcome
        if len(ended) == len(group):
            all_ended.set()

    runs = Runs(cast("Any", backend), ended=end, text=lambda *_: None, phase=lambda *_: None)
    runs.start(group)
    await asyncio.sleep(0)
    for key in stop:
        runs.stop(key)
    backend.gate.set()
    async with asyncio.timeout(10):
        await all_ended.wait()
    await runs.close(1.0)
    return ended


@pytest.mark.parametrize("bad", [set(), {0}, {63}, {17}, {5, 40}])
def test_a_bad_input_is_found_by_halves_and_fails_alone(bad: set[int]) -> None:
    group = attempts(64)

    async def scene() -> None:
        backend = Spoilt({group[at].key for at in bad})
        ended = await ends_of(backend, group)
        assert {at for at in range(64) if ended[group[at].key] == "fail"} == bad
        assert len(backend.requests) <= 1 + 12 * len(bad)

    asyncio.run(scene())


def test_where_all_are_bad_each_is_tried_alone_and_the_work_is_bounded() -> None:
    group = attempts(16)

    async def scene() -> None:
        backend = Spoilt({each.key for each in group})
        assert set((await ends_of(backend, group)).values()) == {"fail"}
        assert len(backend.requests) <= 2 * 16

    asyncio.run(scene())


def test_one_that_is_stopped_leaves_and_the_others_go_on() -> None:
    group = attempts(4)

    async def scene() -> None:
        backend = Spoilt({group[0].key})
        backend.gate.clear()
        ended = await ends_of(backend, group, stop=[group[2].key])
        assert [ended[each.key] for each in group] == ["fail", "complete", "stopped", "complete"]

    asyncio.run(scene())

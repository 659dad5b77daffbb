"""Prompts that are longer than told go back, with their count."""

from __future__ import annotations

import msgpack  # type: ignore[import-untyped]
import pytest

from lmq_proto.messages import Lease
from lmq_worker.attempt import Attempt
from lmq_worker.prompts import longer_than_told


def attempt(payload: object, told: int) -> Attempt:
    packed = msgpack.packb(payload)
    lease = Lease(
        job_id=bytes(16), epoch=1, attempt=1, task_type="chat", payload_bytes=len(packed), prompt_tokens=told
    )
    return Attempt(lease, packed)


def chat(text: object) -> dict[str, object]:
    return {"body": {"messages": [{"role": "user", "content": text}]}}


@pytest.mark.parametrize(
    "payload",
    [
        chat("x" * 4000), chat([{"type": "text", "text": "x" * 4000}]), {"body": {"prompt": "x" * 4000}},
        {"input": ["x" * 2000, "x" * 2000]}, chat("\u6f22" * 1334),
    ],
)  # fmt: skip
def test_a_prompt_four_times_as_long_as_told_goes_back_with_its_count(payload: object) -> None:
    outcome = longer_than_told(attempt(payload, 250))
    assert outcome is not None
    assert outcome.outcome == "release"
    assert 1000 <= outcome.prompt_tokens <= 1001
    assert outcome.error is not None
    assert outcome.error.code == "prompt_longer"


@pytest.mark.parametrize(
    ("payload", "told"),
    [
        (chat("x" * 4000), 1000), (chat("x" * 4000), 800), (chat("x" * 4000), 0), ([1, 2], 1),
        ({"body": {"messages": [{"content": [{"type": "image_url", "image_url": {"url": "x" * 9000}}]}]}}, 10),
        ({"body": {"tools": [{"text": "x" * 9000}], "messages": []}}, 10),
    ],
)  # fmt: skip
def test_what_is_told_well_enough_and_what_is_no_text_stays(payload: object, told: int) -> None:
    assert longer_than_told(attempt(payload, told)) is None

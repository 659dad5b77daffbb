"""How long prompts are, counted before they are sent: what their submitter told decides whose turn it was."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lmq_proto.errors import ErrorInfo
from lmq_worker.attempt import Outcome
from lmq_worker.open_data import unpack

if TYPE_CHECKING:
    from lmq_worker.attempt import Attempt

BYTES_PER_TOKEN = 4
TOLD_RATIO = 1.25
"""A prompt so much longer than its submitter says goes back to the queue, with its count."""
PROMPT_LONGER = "prompt_longer"
_TEXT_KEYS = ("messages", "prompt", "input", "content", "text")
_LEVELS = 8


def longer_than_told(attempt: Attempt) -> Outcome | None:
    """Return the outcome that gives a job back whose prompt is longer than was told; None for all others."""
    told = attempt.lease.prompt_tokens
    # No text is longer than the payload it is in.
    if not told or len(attempt.payload) <= told * TOLD_RATIO * BYTES_PER_TOKEN:
        return None
    payload = unpack(attempt.payload)
    if payload is None:
        return None
    counted = _text_bytes(payload.get("body", payload), _LEVELS) // BYTES_PER_TOKEN
    if counted <= told * TOLD_RATIO:
        return None
    text = f"its prompt has about {counted} tokens, its submitter said {told}"
    error = ErrorInfo(PROMPT_LONGER, text, True, {"counted": counted, "told": told})
    return Outcome("release", error=error, prompt_tokens=counted)


def _text_bytes(value: Any, levels: int) -> int:
    """Return the bytes of all that a model reads: messages, prompts and inputs, not images, tools or options."""
    if isinstance(value, str):
        return len(value.encode("utf-8", "surrogatepass"))
    if not levels:
        return 0
    if isinstance(value, list | tuple):
        return sum(_text_bytes(each, levels - 1) for each in value)
    if isinstance(value, dict):
        return sum(_text_bytes(value[key], levels - 1) for key in _TEXT_KEYS if key in value)
    return 0

"""Jobs that are built now and submitted later, one by one or many at once (`submit_many`). Nothing is sent here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Unpack

from lmq import _payloads
from lmq._payloads import ChatOptions, Draft, JobOptions, Messages, Models
from lmq.results import Json

__all__ = ["chat_draft", "complete_draft", "draft", "embed_drafts"]


def draft(
    task_type: str, payload: Json = None, *, model: Models = None, **options: Unpack[JobOptions]
) -> Draft:
    """Return a job of any task type; arguments as for `Client.submit`."""
    return _payloads.draft(task_type, payload, model=model, options=options)


def chat_draft(
    prompt: Messages, *, model: Models = None, system: str = "", **options: Unpack[ChatOptions]
) -> Draft:
    """Return a chat; arguments as for `Client.chat`."""
    return _payloads.chat(prompt, model=model, system=system, options=options)


def complete_draft(prompt: str, *, model: Models = None, **options: Unpack[ChatOptions]) -> Draft:
    """Return a text to be continued; arguments as for `Client.complete`."""
    return _payloads.complete(prompt, model=model, options=options)


def embed_drafts(
    texts: str | Sequence[str],
    *,
    model: Models = None,
    extra: Mapping[str, Json] | None = None,
    **options: Unpack[JobOptions],
) -> list[Draft]:
    """Return one embedding job, or several where the texts are many or long; arguments as for `Client.embed`."""
    return _payloads.embed(texts, model=model, extra=extra, options=options)

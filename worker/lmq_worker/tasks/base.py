"""What a task type is: payload in, requests to an endpoint, result out. The same for every backend that speaks HTTP."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from lmq_proto import bounds
from lmq_worker.attempt import Outcome
from lmq_worker.failures import BadPayload, ResultTooLarge
from lmq_worker.open_data import pack, unpack

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lmq_worker.attempt import Attempt
    from lmq_worker.backends.base import Report
    from lmq_worker.backends.http import Endpoint
    from lmq_worker.slices import SliceStore


@dataclass(frozen=True, slots=True)
class Engine:
    """What a task works with: an endpoint and the instance it may use."""

    endpoint: Endpoint
    model: str
    """What requests name: the id of the loaded instance."""
    answers_to: frozenset[str]
    """Names that an answer's `model` may carry; empty: it is not compared."""
    embed_slice: int
    slices: SliceStore


class Task(Protocol):
    """One task type. Raises `AttemptFailed` for all that goes wrong."""

    async def run(self, engine: Engine, attempt: Attempt, report: Report) -> Outcome:
        """Carry out one attempt."""

    def merges(self, attempts: Sequence[Attempt]) -> bool:
        """Tell whether attempts of this type can be one request."""

    async def run_merged(self, engine: Engine, attempts: Sequence[Attempt], report: Report) -> list[Outcome]:
        """Carry out attempts that `merges` approved."""


def payload_map(attempt: Attempt) -> dict[Any, Any]:
    """Return the payload as a map.

    Raises:
        BadPayload: it is none.
    """
    payload = unpack(attempt.payload)
    if payload is None:
        raise BadPayload("payload", "must be a MessagePack map")
    return payload


def request_body(attempt: Attempt) -> dict[str, Any]:
    """Return the `body` of a chat or completion payload, untouched but for what the worker itself sets.

    Raises:
        BadPayload: there is none, or it asks for several answers.
    """
    body = payload_map(attempt).get("body")
    if not isinstance(body, dict):
        raise BadPayload("body", "must be a map: the request as OpenAI defines it, without model and stream")
    if body.get("n") not in (None, 1):
        # Some servers stream several answers interleaved, others write one all the same.
        raise BadPayload("body.n", "must be 1, a job has one answer; submit a job for each")
    return {key: value for key, value in body.items() if key not in ("model", "stream", "stream_options")}


def packed(result: dict[str, Any], hint: str) -> bytes:
    """Return a result as MessagePack.

    Raises:
        ResultTooLarge: it does not fit in a message.
    """
    data = pack(result)
    if len(data) > bounds.PAYLOAD_BYTES:
        raise ResultTooLarge(len(data), hint)
    return data


def tokens(usage: dict[str, Any], name: str) -> int:
    """Return a count of a usage map; 0 where the server says none."""
    value = usage.get(name)
    return value if isinstance(value, int) and value > 0 else 0


def clean(text: str) -> str:
    """Return text that can be encoded: halves of surrogate pairs are joined, and replaced where alone."""
    if text.isascii():
        return text
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")

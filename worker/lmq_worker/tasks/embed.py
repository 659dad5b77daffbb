"""Task types `embed` and `bulk_embed`: texts in, packed float32 vectors out."""

from __future__ import annotations

import sys
from array import array
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lmq_proto import bounds
from lmq_worker.attempt import Outcome
from lmq_worker.failures import AttemptFailed, BadPayload, ResultTooLarge, Verdict
from lmq_worker.tasks.base import packed, payload_map, tokens

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lmq_worker.attempt import Attempt
    from lmq_worker.backends.base import Report
    from lmq_worker.tasks.base import Engine

PATH = "/v1/embeddings"
HINT = "split the inputs over several jobs"


@dataclass(frozen=True, slots=True)
class Vectors:
    """Vectors of some inputs, in order."""

    data: bytes
    count: int
    dims: int
    prompt_tokens: int


class EmbedTask:
    """`POST /v1/embeddings` with all inputs at once. Jobs with the same options merge into one request."""

    async def run(self, engine: Engine, attempt: Attempt, report: Report) -> Outcome:
        inputs, options = read_payload(attempt)
        report.phase("reading")
        return result(engine, await embed(engine, inputs, options))

    def merges(self, attempts: Sequence[Attempt]) -> bool:
        payloads = [readable(attempt) for attempt in attempts]
        options = [payload[1] for payload in payloads if payload is not None]
        return len(options) == len(payloads) and all(one == options[0] for one in options)

    async def run_merged(self, engine: Engine, attempts: Sequence[Attempt], report: Report) -> list[Outcome]:
        payloads = [read_payload(attempt) for attempt in attempts]
        whole = await embed(engine, [text for inputs, _ in payloads for text in inputs], payloads[0][1])
        chars = sum(len(text) for inputs, _ in payloads for text in inputs)
        outcomes = []
        start = 0
        for inputs, _ in payloads:
            end = start + 4 * whole.dims * len(inputs)
            share = sum(map(len, inputs)) / chars if chars else 0.0
            part = Vectors(whole.data[start:end], len(inputs), whole.dims, round(whole.prompt_tokens * share))
            outcomes.append(result(engine, part))
            start = end
        return outcomes


class BulkEmbedTask:
    """The same in slices. Finished slices outlive the attempt: the next one on this worker goes on behind them."""

    async def run(self, engine: Engine, attempt: Attempt, report: Report) -> Outcome:
        inputs, options = read_payload(attempt)
        done = engine.slices.open(attempt.lease.job_id, attempt.payload, engine.model)
        prompt_tokens = 0
        while done.count < len(inputs):
            report.phase("writing", done.count / len(inputs), stage=f"{done.count} of {len(inputs)}")
            part = await embed(engine, inputs[done.count : done.count + engine.embed_slice], options)
            if len(inputs) * part.dims * 4 > bounds.PAYLOAD_BYTES:
                done.remove()
                raise ResultTooLarge(len(inputs) * part.dims * 4, HINT)
            if done.dims and part.dims != done.dims:
                done.remove()
                raise _bad_answer(f"vectors of {part.dims} numbers after some of {done.dims}")
            done.add(part.data, part.dims)
            prompt_tokens += part.prompt_tokens
        outcome = result(engine, Vectors(done.vectors, len(inputs), done.dims, prompt_tokens))
        done.remove()
        return outcome

    def merges(self, attempts: Sequence[Attempt]) -> bool:
        return False

    async def run_merged(self, engine: Engine, attempts: Sequence[Attempt], report: Report) -> list[Outcome]:
        return [await self.run(engine, attempt, report) for attempt in attempts]


def readable(attempt: Attempt) -> tuple[list[str], dict[str, Any]] | None:
    """Return (inputs, options) of a payload, or None if it is not one."""
    try:
        return read_payload(attempt)
    except BadPayload:
        return None


def read_payload(attempt: Attempt) -> tuple[list[str], dict[str, Any]]:
    """Return (inputs, options).

    Raises:
        BadPayload: an input is no text or empty (servers fail on those), or there is none.
    """
    payload = payload_map(attempt)
    inputs, options = payload.get("input"), payload.get("options") or {}
    if isinstance(inputs, str):
        inputs = [inputs]
    if not isinstance(inputs, list) or not inputs:
        raise BadPayload("input", "must be a list of texts, with at least one")
    if not isinstance(options, dict):
        raise BadPayload("options", "must be a map")
    for at, text in enumerate(inputs):
        if not isinstance(text, str):
            raise BadPayload(f"input[{at}]", "must be a text")
        if not text:
            raise BadPayload(f"input[{at}]", "is empty; leave it out")
    own = ("model", "input", "encoding_format")
    return inputs, {key: value for key, value in options.items() if key not in own}


async def embed(engine: Engine, inputs: Sequence[str], options: dict[str, Any]) -> Vectors:
    """Embed some inputs; where the server cannot take so many at once, in halves.

    Raises:
        AttemptFailed: anything that goes wrong.
    """
    try:
        answer = await engine.endpoint.post(PATH, {**options, "model": engine.model, "input": list(inputs)})
    except AttemptFailed as error:
        if error.verdict.action != "smaller_batch" or len(inputs) == 1:
            raise
        middle = len(inputs) // 2
        first = await embed(engine, inputs[:middle], options)
        second = await embed(engine, inputs[middle:], options)
        if first.dims != second.dims:
            raise _bad_answer(f"vectors of {first.dims} and {second.dims} numbers") from error
        return Vectors(
            first.data + second.data, len(inputs), first.dims, first.prompt_tokens + second.prompt_tokens
        )
    return read_vectors(answer, len(inputs))


def read_vectors(answer: Any, count: int) -> Vectors:
    """Return the vectors of an answer. Its `model` and `usage` are not to be relied on.

    Raises:
        AttemptFailed: there are not as many as asked, or they are not numbers of one length.
    """
    data = answer.get("data") if isinstance(answer, dict) else None
    if not isinstance(data, list) or len(data) != count or not all(isinstance(one, dict) for one in data):
        raise _bad_answer(f"{len(data) if isinstance(data, list) else 'no'} vectors for {count} inputs")
    if all(isinstance(one.get("index"), int) for one in data):
        data = sorted(data, key=lambda one: int(one["index"]))
    vectors = [one.get("embedding") for one in data]
    dims = len(vectors[0]) if isinstance(vectors[0], list) else 0
    if dims == 0 or any(not isinstance(vector, list) or len(vector) != dims for vector in vectors):
        raise _bad_answer("vectors that are empty or differ in length")
    numbers = array("f")
    try:
        for vector in vectors:
            numbers.extend(vector)
    except (TypeError, OverflowError):
        raise _bad_answer("vectors of something else than numbers") from None
    if sys.byteorder == "big":
        numbers.byteswap()
    usage = answer.get("usage")
    return Vectors(
        numbers.tobytes(), count, dims, tokens(usage if isinstance(usage, dict) else {}, "prompt_tokens")
    )


def result(engine: Engine, vectors: Vectors) -> Outcome:
    """Return the outcome that carries some vectors."""
    usage = {"prompt_tokens": vectors.prompt_tokens, "total_tokens": vectors.prompt_tokens}
    data = {
        "vectors": vectors.data,
        "count": vectors.count,
        "dims": vectors.dims,
        "model": engine.model,
        "usage": usage,
    }
    return Outcome("complete", packed(data, HINT), model=engine.model, prompt_tokens=vectors.prompt_tokens)


def _bad_answer(what: str) -> AttemptFailed:
    return AttemptFailed(Verdict("bad_answer"), f"the server sent {what}")

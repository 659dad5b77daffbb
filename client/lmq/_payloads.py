"""From what a user writes to what is submitted: payloads of PROTOCOL.md section 5, job specs, batches. No waiting."""

from __future__ import annotations

import base64
import hashlib
import os
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Required, TypedDict

import msgspec

from lmq._submits import SUBMIT_BYTES, SUBMIT_HEADER_BYTES, spec_bytes
from lmq.errors import BadPayload
from lmq.results import Json, pack
from lmq_proto import bounds, ids
from lmq_proto.messages import JobSpec

if TYPE_CHECKING:
    from lmq._handle import Handle

PRIORITIES = {"interactive": 8, "normal": 5, "background": 2}
CHARS_PER_TOKEN = 4
IMAGE_TOKENS = 768
"""What common vision models make of a picture; the broker corrects its books by what the engine counted."""
EMBED_TEXTS = 512
"""Texts in one embedding job; more become several `bulk_embed` jobs."""
EMBED_BYTES = 2 * 1024 * 1024

Models = str | Sequence[str] | None
Messages = str | Sequence[Mapping[str, Json]]
Image = str | bytes | Path
"""An http(s) or data URL; the bytes of a picture; the path of one."""


class JobOptions(TypedDict, total=False):
    """What every submit may say about its job; left out means as the task type's defaults say."""

    queue: str
    priority: int | str
    """0-9, larger sooner, or `interactive` 8, `normal` 5, `background` 2."""
    labels: Mapping[str, str]
    """At most 16."""
    idempotency_key: str
    """The same user and key: the same job."""
    delay_s: float
    at: datetime
    """Not before; a time without a zone is local."""
    expires_s: float
    """It must have started by then."""
    timeout_s: float
    """Of one attempt."""
    failures: int
    """Charged attempts after which it is dead."""
    keep_s: float
    """How long the result stays."""
    session: str
    """Jobs of one session prefer the endpoint that ran the last one."""
    uses: Sequence[str]
    """Named resources of your own tasks, at most 4; the name of a worker is one: its endpoint falls idle first."""
    depends_on: str | Handle[object] | Draft | Sequence[str | Handle[object] | Draft]
    """One job or several that must be done first, by id, handle or draft; if one of them fails it is cancelled."""


class ChatOptions(JobOptions, total=False):
    """What `chat` and `complete` may say beside their job options, in OpenAI's words."""

    images: Sequence[Image]
    """Put beside the last message of role `user`."""
    tools: Sequence[Mapping[str, Json]]
    response_format: Mapping[str, Json]
    schema: Mapping[str, Json]
    """A JSON Schema that the answer must fit; short for a `response_format`."""
    temperature: float
    max_tokens: int
    seed: int
    stop: str | Sequence[str]
    extra: Mapping[str, Json]
    """More fields of the request, as they stand."""


class UpdateOptions(TypedDict, total=False):
    """What may change in a job that has not ended; left out means leave."""

    priority: int | str
    queue: str
    model: str | Sequence[str]
    labels: Mapping[str, str]
    expires_s: float
    timeout_s: float
    keep_s: float
    failures: int
    if_attempt: int


class JobMatch(TypedDict, total=False):
    """Jobs that match all that is said."""

    states: Sequence[str]
    user: str
    queue: str
    task_type: str
    model: str
    worker: str
    key: str
    labels: Mapping[str, str]
    id_ending: str
    """The last characters of the id, as people type them."""


class _Message(TypedDict, total=False):
    role: Required[str]
    content: Json


class Draft(msgspec.Struct, frozen=True):
    """A job that is ready to be submitted. It has its id already: submitted twice, it is still one job."""

    spec: JobSpec
    payload: bytes

    @property
    def id(self) -> str:
        """The id as people see it."""
        return ids.to_text(self.spec.id)


JobLike = Draft | tuple[str, Json]
"""A draft, or (task type, payload)."""

_JOB_OPTIONS = frozenset(JobOptions.__annotations__)
_CHAT_OPTIONS = frozenset(ChatOptions.__annotations__)
_BODY_OPTIONS = ("tools", "temperature", "max_tokens", "seed", "stop")


def draft(task_type: str, payload: Json = None, *, model: Models = None, options: JobOptions) -> Draft:
    """Return a job of any task type."""
    _refuse_unknown(options, _JOB_OPTIONS)
    return _draft(task_type, payload, model, options, 0, 0)


def as_draft(job: JobLike) -> Draft:
    """Return a draft of what `submit_many` takes."""
    if isinstance(job, Draft):
        return job
    task_type, payload = job
    return _draft(task_type, payload, None, {}, 0, 0)


def chat(prompt: Messages, *, model: Models, system: str, options: ChatOptions) -> Draft:
    """Return a `chat` job.

    Raises:
        BadPayload: something given cannot be sent.
    """
    _refuse_unknown(options, _CHAT_OPTIONS)
    messages: list[dict[str, Json]] = [{"role": "system", "content": system}] if system else []
    if isinstance(prompt, str):
        if not prompt.strip() and not options.get("images"):
            raise BadPayload("prompt", "is empty")
        messages.append({"role": "user", "content": prompt})
    else:
        try:
            messages += [dict(message) for message in prompt]
        except (TypeError, ValueError) as error:
            raise BadPayload("prompt", f"must be a text or messages, not {prompt!r:.80}") from error
    if not messages or any(not isinstance(message.get("role"), str) for message in messages):
        raise BadPayload("messages", "at least one, each with a role")
    images = [_image_part(image) for image in options.get("images", ())]
    if images:
        _attach(messages, images)
    body: dict[str, Json] = {"messages": messages, **_body(options)}
    tokens = _chars(messages) // CHARS_PER_TOKEN + IMAGE_TOKENS * len(images)
    return _draft("chat", {"body": body}, model, options, max(1, tokens), options.get("max_tokens", 0))


def complete(prompt: str, *, model: Models, options: ChatOptions) -> Draft:
    """Return a `complete` job.

    Raises:
        BadPayload: something given cannot be sent.
    """
    _refuse_unknown(options, _CHAT_OPTIONS)
    if options.get("images"):
        raise BadPayload("images", "only chat takes pictures")
    body: dict[str, Json] = {"prompt": prompt, **_body(options)}
    tokens = max(1, len(prompt) // CHARS_PER_TOKEN)
    return _draft("complete", {"body": body}, model, options, tokens, options.get("max_tokens", 0))


def embed(
    texts: str | Sequence[str], *, model: Models, extra: Mapping[str, Json] | None, options: JobOptions
) -> list[Draft]:
    """Return one `embed` job, or several `bulk_embed` jobs where the texts are many or long.

    Raises:
        BadPayload: there is no text, or an item is none.
    """
    _refuse_unknown(options, _JOB_OPTIONS)
    items = [texts] if isinstance(texts, str) else list(texts)
    if not items:
        raise BadPayload("texts", "there are none")
    if not all(isinstance(item, str) for item in items):
        raise BadPayload("texts", "each must be a text")
    if "" in items:
        raise BadPayload(f"texts[{items.index('')}]", "is empty; leave it out")
    parts = list(_slices(items))
    if len(parts) > 1 and options.get("idempotency_key"):
        key = options["idempotency_key"]
        each = [JobOptions(**{**options, "idempotency_key": f"{key}/{n}"}) for n in range(len(parts))]
    else:
        each = [options] * len(parts)
    task_type = "embed" if len(parts) == 1 else "bulk_embed"
    merge = _merge_key(model, extra) if task_type == "embed" else ""
    return [
        _draft(
            task_type, {"input": part, "options": dict(extra or {})}, model, own,
            max(1, sum(map(len, part)) // CHARS_PER_TOKEN), 0, merge,
        )
        for part, own in zip(parts, each, strict=True)
    ]  # fmt: skip


def batches(jobs: Iterable[JobLike]) -> Iterator[list[Draft]]:
    """Cut jobs into what one message may hold: at most 1,000, and bounded bytes."""
    batch: list[Draft] = []
    body_bytes = header_bytes = 0
    for job in jobs:
        one = as_draft(job)
        body_bytes += len(one.payload)
        header_bytes += spec_bytes(one.spec)
        full = len(batch) == bounds.BATCH_JOBS
        if batch and (full or body_bytes > SUBMIT_BYTES or header_bytes > SUBMIT_HEADER_BYTES):
            yield batch
            batch = []
            body_bytes, header_bytes = len(one.payload), spec_bytes(one.spec)
        batch.append(one)
    if batch:
        yield batch


def models_of(model: Models) -> list[str]:
    """Return the list on the wire: any of these will do, best first."""
    if not model:
        return []
    return [model] if isinstance(model, str) else list(model)


def priority_of(priority: int | str | None) -> int | None:
    """Return a priority's number.

    Raises:
        BadPayload: the name is none of the three.
    """
    if not isinstance(priority, str):
        return priority
    if priority not in PRIORITIES:
        raise BadPayload("priority", f"{priority!r} is neither 0-9 nor one of {', '.join(PRIORITIES)}")
    return PRIORITIES[priority]


def ms(seconds: float | None) -> int:
    """Return whole milliseconds, at least 1 for anything above 0."""
    return 0 if not seconds else max(1, round(seconds * 1000))


def new_id() -> bytes:
    """Return a new job id."""
    return ids.job_id(time.time_ns() // 1_000_000, os.urandom(10))


def _merge_key(model: Models, extra: Mapping[str, Json] | None) -> str:
    """Return what embeddings that may ride in one request have in common: models and options."""
    alike = pack([list(models_of(model)), sorted((extra or {}).items())])
    return hashlib.blake2b(alike, digest_size=8).hexdigest()


def _draft(
    task_type: str,
    payload: Json,
    model: Models,
    options: JobOptions,
    prompt_tokens: int,
    output_tokens: int,
    merge: str = "",
) -> Draft:
    try:
        packed = pack(payload)
    except (TypeError, ValueError, OverflowError) as error:
        raise BadPayload("payload", str(error)) from error
    if not options:
        spec = JobSpec(
            id=new_id(), task_type=task_type, payload_bytes=len(packed), models=models_of(model),
            prompt_tokens=prompt_tokens, output_tokens=output_tokens, merge=merge,
        )  # fmt: skip
        return Draft(spec, packed)
    at = options.get("at")
    spec = JobSpec(
        id=new_id(),
        task_type=task_type,
        payload_bytes=len(packed),
        queue=options.get("queue") or "",
        priority=priority_of(options.get("priority")),
        models=models_of(model),
        prompt_tokens=prompt_tokens,
        output_tokens=output_tokens or 0,
        labels=dict(options.get("labels") or {}),
        key=options.get("idempotency_key") or "",
        delay_ms=ms(options.get("delay_s")),
        at_ms=0 if at is None else int(at.timestamp() * 1000),
        expires_ms=ms(options.get("expires_s")),
        timeout_ms=ms(options.get("timeout_s")),
        failures=options.get("failures") or 0,
        keep_ms=ms(options.get("keep_s")),
        session=options.get("session") or "",
        uses=list(options.get("uses") or ()),
        merge=merge,
        parents=_parents(options.get("depends_on") or ()),
    )
    return Draft(spec, packed)


def id_of(job: str | bytes | Handle[object]) -> bytes:
    """Return the 16 bytes of a job named by its id's text or by a handle.

    Raises:
        BadField: the text is no whole id.
    """
    if isinstance(job, bytes):
        return job
    return ids.from_text(job if isinstance(job, str) else job.id)


def _parents(
    jobs: str | Handle[object] | Draft | Sequence[str | Handle[object] | Draft],
) -> list[bytes]:
    """Return the ids of one job or several, each once; an embedding in several jobs is all of them."""
    found: list[bytes] = []
    for job in jobs if isinstance(jobs, Iterable) and not isinstance(jobs, str) else [jobs]:
        if isinstance(job, str):
            found.append(id_of(job))
        else:
            found += [job.spec.id] if isinstance(job, Draft) else job.job_ids
    return list(dict.fromkeys(found))


def _refuse_unknown(options: Mapping[str, object], known: frozenset[str]) -> None:
    unknown = options.keys() - known
    if unknown:
        raise TypeError(
            f"unknown options: {', '.join(sorted(unknown))}; there are: {', '.join(sorted(known))}"
        )


def _body(options: ChatOptions) -> dict[str, Json]:
    """Return the fields of the engine's request that the options name."""
    body: dict[str, Json] = {}
    for name in _BODY_OPTIONS:
        value: Json = options.get(name)  # type: ignore[assignment]  # each of the five is Json
        if value is not None:
            body[name] = value
    if "schema" in options and "response_format" in options:
        raise BadPayload("schema", "give this or response_format, not both")
    if options.get("schema") is not None:
        wrapped: Json = {"name": "answer", "strict": True, "schema": options["schema"]}
        body["response_format"] = {"type": "json_schema", "json_schema": wrapped}
    elif options.get("response_format") is not None:
        body["response_format"] = options["response_format"]
    body.update(options.get("extra") or {})
    for name in ("model", "stream"):
        if name in body:
            raise BadPayload(f"extra.{name}", "the queue sets this itself")
    return body


def _attach(messages: list[dict[str, Json]], images: list[Json]) -> None:
    """Put pictures beside the text of the last message of a person."""
    for message in reversed(messages):
        if message["role"] == "user":
            content = message.get("content")
            text: list[Json] = [{"type": "text", "text": content}] if isinstance(content, str) else []
            if isinstance(content, list):
                text = list(content)
            message["content"] = text + images
            return
    raise BadPayload("images", "there is no message of role user to put them beside")


def _image_part(image: Image) -> Json:
    if isinstance(image, str):
        if not image.startswith(("http://", "https://", "data:")):
            raise BadPayload("images", "a text must be an http or data URL; for a file give a pathlib.Path")
        url = image
    else:
        url = _data_url(image)
    return {"type": "image_url", "image_url": {"url": url}}


def _data_url(image: bytes | Path) -> str:
    if isinstance(image, Path):
        try:
            image = image.read_bytes()
        except OSError as error:
            raise BadPayload("images", f"cannot be read: {error}") from error
    for magic, kind in ((b"\x89PNG", "png"), (b"\xff\xd8", "jpeg"), (b"GIF8", "gif"), (b"RIFF", "webp")):
        if image.startswith(magic):
            return f"data:image/{kind};base64,{base64.b64encode(image).decode()}"
    raise BadPayload("images", "neither PNG, JPEG, GIF nor WebP")


def _chars(value: Json) -> int:
    """Return the characters of text in a request; pictures are reckoned apart."""
    if isinstance(value, str):
        return 0 if value.startswith("data:") else len(value)
    if isinstance(value, Mapping):
        return sum(_chars(item) for key, item in value.items() if key not in {"role", "type"})
    if isinstance(value, list | tuple):
        return sum(map(_chars, value))
    return 0


def _slices(texts: list[str]) -> Iterator[list[str]]:
    """Cut texts into what one embedding job may hold."""
    part: list[str] = []
    part_bytes = 0
    for text in texts:
        size = len(text.encode("utf-8", "surrogatepass"))
        if part and (len(part) == EMBED_TEXTS or part_bytes + size > EMBED_BYTES):
            yield part
            part, part_bytes = [], 0
        part.append(text)
        part_bytes += size
    yield part

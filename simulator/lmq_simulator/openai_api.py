"""The OpenAI-compatible endpoints: models, chat, completions, embeddings; and the native v0 ones, which add to them."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from lmq_simulator import failures, planning
from lmq_simulator.answers import ChatFrames, CompletionFrames, chat_answer, completion_answer, v0_extras
from lmq_simulator.planning import Prompt, Wish
from lmq_simulator.records import Failure, Instance, Kind, Plan, Refused, Ticket
from lmq_simulator.server import Call, Server, body_of
from lmq_simulator.vectors import vector_of

# What an embedder reads of a text, in characters per token of its context; the rest is dropped without a word.
_CHARS_PER_TOKEN = 4


async def greeting(call: Call) -> None:
    """Answer GET /lmstudio-greeting, by which clients find the server."""
    call.reply.json({"lmstudio": True})


async def models(call: Call) -> None:
    """Answer GET /v1/models: all models while loading on demand is on, else the loaded ones."""
    if call.server.config.jit:
        ids = [model.key for model in call.server.config.models]
    else:
        ids = [one.id for one in call.server.driver.engine.memory.instances.values() if one.is_loaded]
    data = [{"id": one, "object": "model", "owned_by": "organization_owner"} for one in ids]
    call.reply.json({"data": data, "object": "list"})


async def chat(call: Call) -> None:
    """Answer POST /v1/chat/completions, and the same under /api/v0."""
    body = body_of(call.request)
    messages = _messages(body)
    wish = wish_of(body, schema=_schema(body), tools=_tools(body), tool_choice=tool_choice_of(body))
    await _generate(call, body, planning.prompt_of(messages), wish, chat=True)


async def completions(call: Call) -> None:
    """Answer POST /v1/completions, and the same under /api/v0."""
    body = body_of(call.request)
    prompt = body.get("prompt")
    if isinstance(prompt, list) and prompt and all(isinstance(one, str) for one in prompt):
        prompt = "\n".join(prompt)
    if not isinstance(prompt, str):
        raise Refused(Failure("'prompt' field must be a string"))
    wish = wish_of(body, reasons=False)
    await _generate(call, body, planning.raw_prompt(prompt), wish, chat=False)


async def embeddings(call: Call) -> None:
    """Answer POST /v1/embeddings, and the same under /api/v0: floats only, and nothing in `usage`."""
    body = body_of(call.request)
    texts = body.get("input")
    if isinstance(texts, str):
        texts = [texts]
    if not isinstance(texts, list) or not all(isinstance(one, str) for one in texts):
        raise Refused(Failure("'input' field must be a string or an array of strings"))
    limit = call.server.config.embed_max_batch
    if limit and len(texts) > limit:
        raise Refused(failures.embed_batch_too_large())
    prompt = Prompt("\n".join(texts), "", 0)
    ticket = call.server.submit(
        model_name(body), Kind.EMBED, prompt=prompt, strings=len(texts), ttl_s=ttl_of(body)
    )
    await call.server.ended(ticket)
    instance = ticket.instance
    model = instance.model
    data = []
    for at, text in enumerate(texts):
        read = text[: instance.context_length * _CHARS_PER_TOKEN]
        vector = vector_of(read, model=model.key, dimensions=model.dimensions)
        data.append({"object": "embedding", "embedding": vector, "index": at})
    call.reply.json(
        {
            "object": "list",
            "data": data,
            "model": f"{instance.id}@{model.quantization.lower()}",
            "usage": {"prompt_tokens": 0, "total_tokens": 0},
        }
    )


async def _generate(call: Call, body: Mapping[str, Any], prompt: Prompt, wish: Wish, *, chat: bool) -> None:
    server = call.server
    streams = bool(body.get("stream"))
    ticket = server.submit(
        model_name(body),
        Kind.CHAT,
        prompt=prompt,
        planned=partial(_planned, server, prompt, wish),
        ttl_s=ttl_of(body),
        wants_pieces=streams,
    )
    is_v0 = call.request.path.startswith("/api/v0/")
    if streams:
        options = body.get("stream_options")
        with_usage = isinstance(options, dict) and bool(options.get("include_usage"))
        frames_class = ChatFrames if chat else CompletionFrames
        await server.stream(call, ticket, frames_class(server, ticket, with_usage=with_usage, is_v0=is_v0))
        return
    await server.ended(ticket)
    answer = chat_answer(server, ticket) if chat else completion_answer(server, ticket)
    if is_v0:
        answer.update(v0_extras(ticket))
    call.reply.json(answer)


def _planned(server: Server, prompt: Prompt, wish: Wish, ticket: Ticket) -> Plan:
    return planning.plan(prompt, wish, ticket.instance.model, server.config)


# Native v0 list of models.


async def v0_models(call: Call) -> None:
    """Answer GET /api/v0/models."""
    data = [entry for model in call.server.config.models for entry in _v0_entries(call.server, model.key)]
    call.reply.json({"object": "list", "data": data})


async def v0_model(call: Call) -> None:
    """Answer GET /api/v0/models/{id}."""
    name = call.request.path.removeprefix("/api/v0/models/").replace("%2F", "/").replace("%2f", "/")
    for entry in [
        entry for model in call.server.config.models for entry in _v0_entries(call.server, model.key)
    ]:
        if entry["id"] == name:
            call.reply.json(entry)
            return
    raise Refused(failures.unknown_model(name))


def _v0_entries(server: Server, key: str) -> list[dict[str, Any]]:
    """Return one entry for each loaded instance of a model, or one that says it is not loaded."""
    model = next(one for one in server.config.models if one.key == key)
    loaded: list[Instance | None] = [
        one
        for one in server.driver.engine.memory.instances.values()
        if one.model.key == key and one.is_loaded
    ]
    entries = []
    for instance in loaded or [None]:
        entry: dict[str, Any] = {
            "id": key if instance is None else instance.id,
            "object": "model",
            "type": model.type,
            "publisher": model.publisher,
            "arch": model.arch,
            "compatibility_type": model.format,
            "quantization": model.quantization,
            "state": "not-loaded" if instance is None else "loaded",
            "max_context_length": model.max_context_length,
        }
        if instance is not None:
            entry["loaded_context_length"] = instance.context_length
        if model.tool_use:
            entry["capabilities"] = ["tool_use"]
        entries.append(entry)
    return entries


# Reading requests.


def model_name(body: Mapping[str, Any]) -> str | None:
    """Return the model a request names; None if it names none."""
    name = body.get("model")
    if name is not None and not isinstance(name, str):
        raise Refused(Failure("'model' field must be a string"))
    return name


def ttl_of(body: Mapping[str, Any]) -> float | None:
    """Return the idle life, in seconds, of the instance that a request may load."""
    ttl_s = body.get("ttl")
    if ttl_s is None:
        return None
    if isinstance(ttl_s, bool) or not isinstance(ttl_s, int) or ttl_s < 1:
        raise Refused(Failure("'ttl' field must be a positive integer"))
    return float(ttl_s)


def _messages(body: Mapping[str, Any]) -> list[dict[str, Any]]:
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages or not all(isinstance(one, dict) for one in messages):
        raise Refused(Failure("'messages' field must be a non-empty array of objects"))
    for message in messages:
        if message.get("role") not in ("system", "developer", "user", "assistant", "tool"):
            raise Refused(Failure("'messages' field holds a message with an unknown 'role'"))
    return messages


def wish_of(body: Mapping[str, Any], **known: Any) -> Wish:
    """Read the limits of an answer from a request; `known` is what its endpoint read already."""
    max_tokens = body.get("max_tokens", body.get("max_completion_tokens"))
    if max_tokens is not None and (isinstance(max_tokens, bool) or not isinstance(max_tokens, int)):
        raise Refused(Failure("'max_tokens' field must be an integer"))
    seed = body.get("seed")
    stops = body.get("stop") or ()
    if isinstance(stops, str):
        stops = (stops,)
    if not isinstance(stops, (list, tuple)):
        raise Refused(Failure("'stop' field must be a string or an array of strings"))
    known.setdefault("reasons", body.get("reasoning_effort") != "none")
    return Wish(
        seed=seed if isinstance(seed, int) else 0,
        max_tokens=max_tokens,
        stops=tuple(str(stop) for stop in stops),
        **known,
    )


def _schema(body: Mapping[str, Any]) -> Any:
    wanted = body.get("response_format")
    if wanted is None:
        return None
    kind = wanted.get("type") if isinstance(wanted, dict) else None
    if kind == "text":
        return None
    if kind != "json_schema":
        raise Refused(Failure("'response_format.type' must be 'json_schema' or 'text'"))
    inner = wanted.get("json_schema")
    if not isinstance(inner, dict) or "schema" not in inner:
        raise Refused(Failure("'response_format.json_schema.schema' is required"))
    return inner["schema"]


def _tools(body: Mapping[str, Any]) -> tuple[Mapping[str, Any], ...]:
    tools = body.get("tools") or []
    if not isinstance(tools, list):
        raise Refused(Failure("'tools' field must be an array"))
    return tuple(
        tool["function"]
        for tool in tools
        if isinstance(tool, dict) and isinstance(tool.get("function"), dict)
    )


def tool_choice_of(body: Mapping[str, Any]) -> str:
    """Return auto, none, required, or the name of the one tool to call."""
    choice = body.get("tool_choice", "auto")
    if isinstance(choice, dict):
        function = choice.get("function")
        choice = function.get("name", "auto") if isinstance(function, dict) else "auto"
    return str(choice)

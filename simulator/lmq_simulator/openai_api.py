"""The OpenAI-compatible endpoints: models, chat, completions, embeddings; and the native v0 ones, which add to them."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import msgspec

from lmq_simulator import failures, planning, shapes
from lmq_simulator.planning import Prompt, Wish
from lmq_simulator.records import Channel, Failure, Instance, Kind, Piece, Plan, Refused, Status, Ticket
from lmq_simulator.server import Server, body_of
from lmq_simulator.vectors import vector_of
from lmq_simulator.wire import Reply, Request

# What an embedder reads of a text, in characters per token of its context; the rest is dropped without a word.
_CHARS_PER_TOKEN = 4

_encode = msgspec.json.encode


async def greeting(server: Server, request: Request, reply: Reply) -> None:
    reply.json({"lmstudio": True})


async def models(server: Server, request: Request, reply: Reply) -> None:
    """Answer GET /v1/models: all models while loading on demand is on, else the loaded ones."""
    if server.config.jit:
        ids = [model.key for model in server.config.models]
    else:
        ids = [one.id for one in server.driver.engine.memory.instances.values() if one.is_loaded]
    data = [{"id": one, "object": "model", "owned_by": "organization_owner"} for one in ids]
    reply.json({"data": data, "object": "list"})


async def chat(server: Server, request: Request, reply: Reply) -> None:
    """Answer POST /v1/chat/completions, and the same under /api/v0."""
    body = body_of(request)
    messages = _messages(body)
    wish = _wish(body, schema=_schema(body), tools=_tools(body), tool_choice=_tool_choice(body))
    await _generate(server, request, reply, body, planning.prompt_of(messages), wish, chat=True)


async def completions(server: Server, request: Request, reply: Reply) -> None:
    """Answer POST /v1/completions, and the same under /api/v0."""
    body = body_of(request)
    prompt = body.get("prompt")
    if isinstance(prompt, list) and prompt and all(isinstance(one, str) for one in prompt):
        prompt = "\n".join(prompt)
    if not isinstance(prompt, str):
        raise Refused(Failure("'prompt' field must be a string"))
    wish = _wish(body, reasons=False)
    await _generate(server, request, reply, body, planning.raw_prompt(prompt), wish, chat=False)


async def embeddings(server: Server, request: Request, reply: Reply) -> None:
    """Answer POST /v1/embeddings, and the same under /api/v0: floats only, and nothing in `usage`."""
    body = body_of(request)
    texts = body.get("input")
    if isinstance(texts, str):
        texts = [texts]
    if not isinstance(texts, list) or not all(isinstance(one, str) for one in texts):
        raise Refused(Failure("'input' field must be a string or an array of strings"))
    limit = server.config.embed_max_batch
    if limit and len(texts) > limit:
        raise Refused(failures.embed_batch_too_large())
    prompt = Prompt("\n".join(texts), "", 0)
    ticket = server.submit(
        _model(body), Kind.EMBED, prompt=prompt, strings=len(texts), ttl_s=_ttl_s(body)
    )
    await server.ended(ticket)
    instance = ticket.instance
    model = instance.model
    data = []
    for at, text in enumerate(texts):
        read = text[: instance.context_length * _CHARS_PER_TOKEN]
        vector = vector_of(read, model=model.key, dimensions=model.dimensions)
        data.append({"object": "embedding", "embedding": vector, "index": at})
    reply.json(
        {
            "object": "list",
            "data": data,
            "model": f"{instance.id}@{model.quantization.lower()}",
            "usage": {"prompt_tokens": 0, "total_tokens": 0},
        }
    )


async def _generate(
    server: Server, request: Request, reply: Reply, body: Mapping[str, Any], prompt: Prompt, wish: Wish, *, chat: bool
) -> None:
    streams = bool(body.get("stream"))
    ticket = server.submit(
        _model(body),
        Kind.CHAT,
        prompt=prompt,
        planned=partial(_planned, server, prompt, wish),
        ttl_s=_ttl_s(body),
        wants_pieces=streams,
    )
    is_v0 = request.path.startswith("/api/v0/")
    if streams:
        options = body.get("stream_options")
        with_usage = isinstance(options, dict) and bool(options.get("include_usage"))
        frames_class = ChatFrames if chat else CompletionFrames
        await server.stream(request, reply, ticket, frames_class(server, ticket, with_usage=with_usage, is_v0=is_v0))
        return
    await server.ended(ticket)
    answer = chat_answer(server, ticket) if chat else _completion_answer(server, ticket)
    if is_v0:
        answer.update(_v0_extras(ticket))
    reply.json(answer)


def _planned(server: Server, prompt: Prompt, wish: Wish, ticket: Ticket) -> Plan:
    return planning.plan(prompt, wish, ticket.instance.model, server.config)


# Whole answers.


def chat_answer(server: Server, ticket: Ticket) -> dict[str, Any]:
    """Return the body of a chat completion that was not streamed."""
    said = {channel: text_of(ticket, channel) for channel in (Channel.CONTENT, Channel.REASONING)}
    message: dict[str, Any] = {"role": "assistant", "content": said[Channel.CONTENT]}
    if said[Channel.REASONING]:
        message[ticket.instance.model.reasoning_field] = said[Channel.REASONING]
    calls = tool_calls(server, ticket)
    if calls:
        message["tool_calls"] = calls
    return {
        "id": server.new_id("chatcmpl-"),
        "object": "chat.completion",
        "created": int(time.time()),
        "model": ticket.instance.id,
        "choices": [
            {"index": 0, "message": message, "logprobs": None, "finish_reason": ticket.plan.finish_reason}
        ],
        "usage": usage(ticket),
        "stats": {},
        "system_fingerprint": ticket.instance.id,
    }


def _completion_answer(server: Server, ticket: Ticket) -> dict[str, Any]:
    text = text_of(ticket, Channel.CONTENT)
    return {
        "id": server.new_id("cmpl-"),
        "object": "text_completion",
        "created": int(time.time()),
        "model": ticket.instance.id,
        "choices": [{"index": 0, "text": text, "logprobs": None, "finish_reason": ticket.plan.finish_reason}],
        "usage": usage(ticket),
        "stats": {},
    }


def text_of(ticket: Ticket, channel: Channel) -> str:
    """Return what a ticket has put out on one channel so far."""
    return "".join(piece.text for piece in ticket.plan.pieces[: ticket.emitted] if piece.channel is channel)


def tool_calls(server: Server, ticket: Ticket) -> list[dict[str, Any]]:
    """Return the tool calls in a finished answer, as the server writes them."""
    pieces = ticket.plan.pieces[: ticket.emitted]
    names = [piece.text for piece in pieces if piece.channel is Channel.TOOL_CALL]
    if not names:
        return []
    function = {"name": names[0], "arguments": text_of(ticket, Channel.TOOL_ARGUMENTS)}
    return [{"id": tool_call_id(server), "type": "function", "function": function}]


def tool_call_id(server: Server) -> str:
    """Return an id for a tool call: a short numeric string."""
    return str(server.chance.randrange(100_000_000, 1_000_000_000))


def usage(ticket: Ticket) -> dict[str, int]:
    return {
        "prompt_tokens": ticket.prompt_tokens,
        "completion_tokens": ticket.emitted,
        "total_tokens": ticket.prompt_tokens + ticket.emitted,
    }


def stats_of(ticket: Ticket) -> dict[str, Any]:
    """Return how fast a finished request was, as v0 tells it: times in seconds."""
    start_ms = ticket.started_ms or ticket.arrived_ms
    first_ms = ticket.first_piece_ms or ticket.ended_ms or start_ms
    generation_s = ((ticket.ended_ms or first_ms) - first_ms) / 1000.0
    return {
        "tokens_per_second": ticket.emitted / generation_s if generation_s > 0 else 0.0,
        "time_to_first_token": (first_ms - start_ms) / 1000.0,
        "generation_time": generation_s,
        "stop_reason": ticket.plan.stop_reason,
    }


def _v0_extras(ticket: Ticket) -> dict[str, Any]:
    model = ticket.instance.model
    return {
        "stats": stats_of(ticket),
        "model_info": {
            "arch": model.arch,
            "quant": model.quantization,
            "format": model.format,
            "context_length": ticket.instance.context_length,
        },
        "runtime": {
            "name": "mlx-simulated" if model.format == "mlx" else "llama.cpp-simulated",
            "version": "2.29.0",
            "supported_formats": [model.format],
        },
    }


# Streams.


class ChatFrames:
    """Writes the chunks of a streamed chat completion."""

    OBJECT = "chat.completion.chunk"
    PREFIX = "chatcmpl-"

    def __init__(self, server: Server, ticket: Ticket, *, with_usage: bool, is_v0: bool) -> None:
        self._server = server
        self._with_usage = with_usage
        self._is_v0 = is_v0
        self._reasoning_field = ticket.instance.model.reasoning_field
        self._role_is_due = True
        head = {
            "id": server.new_id(self.PREFIX),
            "object": self.OBJECT,
            "created": int(time.time()),
            "model": ticket.instance.id,
            "system_fingerprint": ticket.instance.id,
        }
        # Everything up to the choices is the same in each chunk, so it is written once.
        self._head = b"data: " + _encode(head)[:-1]

    def opening(self, ticket: Ticket) -> bytes:
        return b""

    def pieces(self, pieces: Sequence[Piece]) -> bytes:
        return b"".join([self._chunk(self._delta(piece), None) for piece in pieces])

    def ending(self, ticket: Ticket) -> bytes:
        parts = [self._chunk({}, ticket.plan.finish_reason, _v0_extras(ticket) if self._is_v0 else None)]
        if self._with_usage:
            parts.append(self._head + b',"choices":[],"usage":' + _encode(usage(ticket)) + b"}\n\n")
        parts.append(shapes.DONE)
        return b"".join(parts)

    def _delta(self, piece: Piece) -> dict[str, Any]:
        delta: dict[str, Any] = {}
        if self._role_is_due:
            delta["role"] = "assistant"
            self._role_is_due = False
        match piece.channel:
            case Channel.CONTENT:
                delta["content"] = piece.text
            case Channel.REASONING:
                delta[self._reasoning_field] = piece.text
            case Channel.TOOL_CALL:
                function = {"name": piece.text, "arguments": ""}
                call = {"index": 0, "id": tool_call_id(self._server), "type": "function", "function": function}
                delta["tool_calls"] = [call]
            case Channel.TOOL_ARGUMENTS:
                delta["tool_calls"] = [{"index": 0, "function": {"arguments": piece.text}}]
        return delta

    def _chunk(self, delta: dict[str, Any], finish: str | None, extras: dict[str, Any] | None = None) -> bytes:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
        tail = b"" if extras is None else b"," + _encode(extras)[1:-1]
        return self._head + b',"choices":[' + _encode(choice) + b"]" + tail + b"}\n\n"


class CompletionFrames(ChatFrames):
    """Writes the chunks of a streamed text completion."""

    OBJECT = "text_completion"
    PREFIX = "cmpl-"

    def _delta(self, piece: Piece) -> dict[str, Any]:
        return {"text": piece.text}

    def _chunk(self, delta: dict[str, Any], finish: str | None, extras: dict[str, Any] | None = None) -> bytes:
        choice = {"index": 0, "text": delta.get("text", ""), "logprobs": None, "finish_reason": finish}
        tail = b"" if extras is None else b"," + _encode(extras)[1:-1]
        return self._head + b',"choices":[' + _encode(choice) + b"]" + tail + b"}\n\n"


# Native v0 list of models.


async def v0_models(server: Server, request: Request, reply: Reply) -> None:
    data = [entry for model in server.config.models for entry in _v0_entries(server, model.key)]
    reply.json({"object": "list", "data": data})


async def v0_model(server: Server, request: Request, reply: Reply) -> None:
    name = request.path.removeprefix("/api/v0/models/").replace("%2F", "/").replace("%2f", "/")
    for entry in [entry for model in server.config.models for entry in _v0_entries(server, model.key)]:
        if entry["id"] == name:
            reply.json(entry)
            return
    raise Refused(failures.unknown_model(name))


def _v0_entries(server: Server, key: str) -> list[dict[str, Any]]:
    """Return one entry for each loaded instance of a model, or one that says it is not loaded."""
    model = next(one for one in server.config.models if one.key == key)
    loaded: list[Instance | None] = [
        one
        for one in server.driver.engine.memory.instances.values()
        if one.model.key == key and one.status is not Status.LOADING
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


def _model(body: Mapping[str, Any]) -> str | None:
    name = body.get("model")
    if name is not None and not isinstance(name, str):
        raise Refused(Failure("'model' field must be a string"))
    return name


def _ttl_s(body: Mapping[str, Any]) -> float | None:
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


def _wish(body: Mapping[str, Any], **known: Any) -> Wish:
    max_tokens = body.get("max_tokens", body.get("max_completion_tokens"))
    if max_tokens is not None and (isinstance(max_tokens, bool) or not isinstance(max_tokens, int)):
        raise Refused(Failure("'max_tokens' field must be an integer"))
    seed = body.get("seed")
    stops = body.get("stop") or ()
    if isinstance(stops, str):
        stops = (stops,)
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
    return tuple(tool["function"] for tool in tools if isinstance(tool, dict) and isinstance(tool.get("function"), dict))


def _tool_choice(body: Mapping[str, Any]) -> str:
    choice = body.get("tool_choice", "auto")
    if isinstance(choice, dict):
        function = choice.get("function")
        choice = function.get("name", "auto") if isinstance(function, dict) else "auto"
    return str(choice)


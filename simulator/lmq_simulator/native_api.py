"""The native API, version 1: models with their instances, load, unload, download, and chat with named events."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lmq_simulator import planning, shapes
from lmq_simulator.answers import stats_of, text_of
from lmq_simulator.planning import Wish
from lmq_simulator.records import Channel, Failure, Instance, Kind, Phase, Plan, Refused, Status, Ticket
from lmq_simulator.server import Call, Server, body_of, break_off
from lmq_simulator.wire import Request

_LOAD_KEYS = frozenset(
    {"model", "context_length", "eval_batch_size", "flash_attention", "num_experts", "offload_kv_cache_to_gpu",
     "echo_load_config"}
)  # fmt: skip
_CHAT_KEYS = frozenset(
    {"model", "input", "system_prompt", "integrations", "stream", "temperature", "top_p", "top_k", "min_p",
     "repeat_penalty", "max_output_tokens", "reasoning", "context_length", "store", "previous_response_id"}
)  # fmt: skip
_EVAL_BATCH_SIZE = 512


async def models(call: Call) -> None:
    """Answer GET /api/v1/models."""
    instances = call.server.driver.engine.memory.instances.values()
    listed = []
    for model in call.server.config.models:
        loaded = [one for one in instances if one.model.key == model.key and one.status is not Status.LOADING]
        capabilities: dict[str, Any] = {"vision": model.vision, "trained_for_tool_use": model.tool_use}
        if model.reasoning:
            capabilities["reasoning"] = {"allowed_options": ["off", "on"], "default": "on"}
        entry: dict[str, Any] = {
            "type": "embedding" if model.is_embedder else "llm",
            "publisher": model.publisher,
            "key": model.key,
            "display_name": model.display_name or model.key,
            "architecture": model.arch,
            "quantization": {"name": model.quantization, "bits_per_weight": model.bits_per_weight},
            "size_bytes": int(model.size_gb * 1e9),
            "params_string": model.params,
            "loaded_instances": [{"id": one.id, "config": _config_of(one)} for one in loaded],
            "max_context_length": model.max_context_length,
            "format": model.format,
        }
        if not model.is_embedder:
            entry["capabilities"] = capabilities
        listed.append(entry)
    call.reply.json({"models": listed})


async def load(call: Call) -> None:
    """Answer POST /api/v1/models/load, once the model is there."""
    body = _strict_body(call.request, _LOAD_KEYS)
    key = _text(body, "model")
    ticket = call.server.driver.engine.load(
        key, context_length=_count(body, "context_length"), now_ms=call.server.driver.now_ms()
    )
    call.server.driver.settle()
    await call.server.ended(ticket)
    instance = ticket.instance
    answer: dict[str, Any] = {
        "type": "embedding" if instance.model.is_embedder else "llm",
        "instance_id": instance.id,
        "load_time_seconds": instance.load_ms / 1000.0,
        "status": "loaded",
    }
    if body.get("echo_load_config"):
        answer["load_config"] = _config_of(instance)
    call.reply.json(answer)


async def unload(call: Call) -> None:
    """Answer POST /api/v1/models/unload."""
    body = _strict_body(call.request, frozenset({"instance_id"}))
    instance_id = _text(body, "instance_id")
    call.server.driver.engine.unload(instance_id, call.server.driver.now_ms())
    call.server.driver.settle()
    call.reply.json({"instance_id": instance_id})


async def download(call: Call) -> None:
    """Answer POST /api/v1/models/download: nothing is ever fetched here."""
    body = _strict_body(call.request, frozenset({"model", "quantization"}))
    key = _text(body, "model")
    if not any(model.key == key for model in call.server.config.models):
        text = f"Model '{key}' was not found in the catalog."
        raise Refused(Failure(text, 404, "native", "model_not_found", "model_not_found", "model"))
    call.reply.json({"status": "already_downloaded"})


async def download_status(call: Call) -> None:
    """Answer GET /api/v1/models/download/status/{job_id}: there are no such jobs."""
    job_id = call.request.path.rpartition("/")[2]
    raise Refused(Failure(f"Job '{job_id}' was not found.", 404, "native", "job_not_found", "job_not_found"))


async def chat(call: Call) -> None:
    """Answer POST /api/v1/chat."""
    body = _strict_body(call.request, _CHAT_KEYS)
    messages = _conversation(call.server, body)
    prompt = planning.prompt_of(messages)
    wish = Wish(max_tokens=_count(body, "max_output_tokens"), reasons=body.get("reasoning") != "off")
    streams = bool(body.get("stream"))

    def planned(ticket: Ticket) -> Plan:
        return planning.plan(prompt, wish, ticket.instance.model, call.server.config)

    ticket = call.server.submit(
        _text(body, "model"),
        Kind.CHAT,
        prompt=prompt,
        planned=planned,
        context_length=_count(body, "context_length"),
        wants_pieces=streams,
    )
    response_id = call.server.new_id("resp_") if body.get("store", True) else None
    if streams:
        await _stream(call, ticket, response_id)
    else:
        await call.server.ended(ticket)
        call.reply.json(_result(ticket, response_id))
    if response_id is not None and ticket.phase is Phase.DONE:
        said = {"role": "assistant", "content": text_of(ticket, Channel.CONTENT)}
        call.server.store(response_id, [*messages, said])


async def _stream(call: Call, ticket: Ticket, response_id: str | None) -> None:
    server, reply = call.server, call.reply
    story = _Story(ticket)
    with server.following(ticket):
        reply.start_stream()
        reply.write(shapes.named("chat.start", {"model_instance_id": ticket.instance.id}))
        while True:
            seen = ticket.revision
            told = story.news()
            if told:
                reply.write(told)
                await reply.drain()
            if ticket.is_final and ticket.revision == seen:
                break
            await server.driver.changed(ticket, seen)
    failure = ticket.failure
    if failure is not None and failure.ending != "event":
        break_off(reply, failure)
        return
    if failure is not None:
        reply.write(shapes.named("error", {"error": shapes.native_error(failure)}))
    reply.write(shapes.named("chat.end", {"result": _result(ticket, response_id)}))
    reply.end()


class _Story:
    """Turns the changes of a ticket into the named events of its stream, each told once and in order."""

    def __init__(self, ticket: Ticket) -> None:
        self._ticket = ticket
        self._load_told: float | None = None
        self._load_ended = ticket.phase is not Phase.LOADING and ticket.load_ms is None
        self._read_told: float | None = None
        self._read_ended = False
        self._taken = 0
        self._open: str | None = None

    def news(self) -> bytes:
        """Return the events that tell what happened since the last call."""
        return b"".join([*self._loading(), *self._reading(), *self._writing()])

    def _loading(self) -> list[bytes]:
        if self._load_ended:
            return []
        ticket, events = self._ticket, []
        about = {"model_instance_id": ticket.instance.id}
        if self._load_told is None:
            events.append(shapes.named("model_load.start", about))
            self._load_told = -1.0
        progress = ticket.instance.load_progress
        if progress > max(self._load_told, 0.0):
            events.append(shapes.named("model_load.progress", {**about, "progress": progress}))
            self._load_told = progress
        if ticket.load_ms is not None:
            took = {"load_time_seconds": ticket.load_ms / 1000.0}
            events.append(shapes.named("model_load.end", {**about, **took}))
            self._load_ended = True
        return events

    def _reading(self) -> list[bytes]:
        ticket = self._ticket
        if self._read_ended or ticket.started_ms is None:
            return []
        events = []
        if self._read_told is None:
            events.append(shapes.named("prompt_processing.start", {}))
            self._read_told = 0.0
        progress = ticket.prefilled / max(1, ticket.prompt_tokens)
        if progress > self._read_told:
            events.append(shapes.named("prompt_processing.progress", {"progress": progress}))
            self._read_told = progress
        if ticket.phase in (Phase.DECODE, Phase.DONE):
            events.append(shapes.named("prompt_processing.end", {}))
            self._read_ended = True
        return events

    def _writing(self) -> list[bytes]:
        ticket, events = self._ticket, []
        for piece in ticket.plan.pieces[self._taken : ticket.emitted]:
            name = "reasoning" if piece.channel is Channel.REASONING else "message"
            if name != self._open:
                events += self._closing()
                events.append(shapes.named(f"{name}.start", {}))
                self._open = name
            events.append(shapes.named(f"{name}.delta", {"content": piece.text}))
        self._taken = ticket.emitted
        if ticket.is_final:
            events += self._closing()
        return events

    def _closing(self) -> list[bytes]:
        if self._open is None:
            return []
        name, self._open = self._open, None
        return [shapes.named(f"{name}.end", {})]


def _result(ticket: Ticket, response_id: str | None) -> dict[str, Any]:
    output = []
    for name, channel in (("reasoning", Channel.REASONING), ("message", Channel.CONTENT)):
        said = text_of(ticket, channel)
        if said:
            output.append({"type": name, "content": said})
    measured = stats_of(ticket)
    pieces = ticket.plan.pieces[: ticket.emitted]
    stats = {
        "input_tokens": ticket.prompt_tokens,
        "total_output_tokens": ticket.emitted,
        "reasoning_output_tokens": sum(1 for piece in pieces if piece.channel is Channel.REASONING),
        "tokens_per_second": measured["tokens_per_second"],
        "time_to_first_token_seconds": measured["time_to_first_token"],
    }
    if ticket.load_ms is not None:
        stats["model_load_time_seconds"] = ticket.load_ms / 1000.0
    result: dict[str, Any] = {"model_instance_id": ticket.instance.id, "output": output, "stats": stats}
    if response_id is not None:
        result["response_id"] = response_id
    return result


def _config_of(instance: Instance) -> dict[str, Any]:
    if instance.model.is_embedder:
        return {"context_length": instance.context_length}
    return {
        "context_length": instance.context_length,
        "eval_batch_size": _EVAL_BATCH_SIZE,
        "parallel": instance.parallel,
        "flash_attention": True,
        "num_experts": 0,
        "offload_kv_cache_to_gpu": True,
    }


def _conversation(server: Server, body: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    messages: list[Mapping[str, Any]] = []
    previous = body.get("previous_response_id")
    if previous is not None:
        if not isinstance(previous, str) or previous not in server.stored:
            raise _invalid(f"No response with the id '{previous}' is stored.", "response_not_found")
        messages += server.stored[previous]
    elif isinstance(body.get("system_prompt"), str):
        messages.append({"role": "system", "content": body["system_prompt"]})
    said = body.get("input")
    if isinstance(said, list):
        parts = [{"type": "text", "text": part.get("content", "")} for part in said if isinstance(part, dict)]
        messages.append({"role": "user", "content": parts})
    elif isinstance(said, str):
        messages.append({"role": "user", "content": said})
    else:
        raise _invalid("'input' is required: a string, or a list of items", "missing_required_parameter")
    return messages


def _strict_body(request: Request, known: frozenset[str]) -> dict[str, Any]:
    body = body_of(request)
    strange = [key for key in body if key not in known]
    if strange:
        names = ", ".join(f"'{key}'" for key in strange)
        raise _invalid(f"Unrecognized key(s) in object: {names}", "unrecognized_keys")
    return body


def _text(body: Mapping[str, Any], name: str) -> str:
    value = body.get(name)
    if not isinstance(value, str) or not value:
        raise _invalid(f"'{name}' is required and must be a string", "missing_required_parameter")
    return value


def _count(body: Mapping[str, Any], name: str) -> int | None:
    value = body.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise _invalid(f"'{name}' must be a positive integer", "invalid_value")
    return value


def _invalid(text: str, code: str) -> Refused:
    return Refused(Failure(text, 400, "native", "invalid_request", code))

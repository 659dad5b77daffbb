"""POST /v1/responses, the basic part: text in, text or a function call out, stored conversations, named events."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

from lmq_simulator import planning, shapes
from lmq_simulator.answers import text_of, tool_calls
from lmq_simulator.openai_api import model_name, tool_choice_of, ttl_of
from lmq_simulator.planning import Wish
from lmq_simulator.records import Channel, Failure, Kind, Phase, Piece, Plan, Refused, Ticket
from lmq_simulator.server import Call, Messages, Server, body_of


async def responses(call: Call) -> None:
    """Answer POST /v1/responses. A JSON schema is taken and, as by the real server, not enforced."""
    body = body_of(call.request)
    server = call.server
    messages = _conversation(server, body)
    prompt = planning.prompt_of(messages)
    wish = _wish(body)
    streams = bool(body.get("stream"))

    def planned(ticket: Ticket) -> Plan:
        return planning.plan(prompt, wish, ticket.instance.model, server.config)

    ticket = server.submit(
        model_name(body),
        Kind.CHAT,
        prompt=prompt,
        planned=planned,
        ttl_s=ttl_of(body),
        wants_pieces=streams,
    )
    response_id = server.new_id("resp_")
    if streams:
        await server.stream(call, ticket, _ResponseFrames(server, ticket, response_id))
    else:
        await server.ended(ticket)
        call.reply.json(_response(server, ticket, response_id, "completed"))
    if ticket.phase is Phase.DONE and body.get("store", True):
        server.store(
            response_id, [*messages, {"role": "assistant", "content": text_of(ticket, Channel.CONTENT)}]
        )


class _ResponseFrames:
    """Writes the named events of a streamed response."""

    def __init__(self, server: Server, ticket: Ticket, response_id: str) -> None:
        self._server = server
        self._ticket = ticket
        self._id = response_id
        self._numbers = 0
        self._created = False

    def pieces(self, pieces: Sequence[Piece]) -> bytes:
        events = [self._opening()]
        for piece in pieces:
            match piece.channel:
                case Channel.CONTENT:
                    events.append(self._event("response.output_text.delta", {"delta": piece.text}))
                case Channel.REASONING:
                    events.append(self._event("response.reasoning_text.delta", {"delta": piece.text}))
                case Channel.TOOL_ARGUMENTS:
                    events.append(
                        self._event("response.function_call_arguments.delta", {"delta": piece.text})
                    )
                case Channel.TOOL_CALL:
                    pass  # Its name comes with the finished call.
        return b"".join(events)

    def ending(self, ticket: Ticket) -> bytes:
        whole = _response(self._server, ticket, self._id, "completed")
        return self._opening() + self._event("response.completed", {"response": whole})

    def _opening(self) -> bytes:
        if self._created:
            return b""
        self._created = True
        begun = _response(self._server, self._ticket, self._id, "in_progress")
        return self._event("response.created", {"response": {**begun, "output": []}})

    def _event(self, name: str, body: dict[str, Any]) -> bytes:
        self._numbers += 1
        return shapes.named(name, {**body, "sequence_number": self._numbers - 1})


def _response(server: Server, ticket: Ticket, response_id: str, status: str) -> dict[str, Any]:
    output: list[dict[str, Any]] = []
    thought = text_of(ticket, Channel.REASONING)
    if thought:
        output.append({"type": "reasoning", "content": [{"type": "reasoning_text", "text": thought}]})
    calls = tool_calls(server, ticket)
    output += [{"type": "function_call", "call_id": call["id"], **call["function"]} for call in calls]
    said = text_of(ticket, Channel.CONTENT)
    if said:
        content = [{"type": "output_text", "text": said, "annotations": []}]
        output.append({"type": "message", "role": "assistant", "status": status, "content": content})
    return {
        "id": response_id,
        "object": "response",
        "created_at": int(time.time()),
        "status": status,
        "model": ticket.instance.id,
        "output": output,
        "usage": {
            "input_tokens": ticket.prompt_tokens,
            "output_tokens": ticket.emitted,
            "total_tokens": ticket.prompt_tokens + ticket.emitted,
        },
    }


def _conversation(server: Server, body: Mapping[str, Any]) -> Messages:
    messages: list[Mapping[str, Any]] = []
    if isinstance(body.get("instructions"), str):
        messages.append({"role": "system", "content": body["instructions"]})
    previous = body.get("previous_response_id")
    if previous is not None:
        if not isinstance(previous, str) or previous not in server.stored:
            raise _invalid(
                f"No response with the id '{previous}' is stored.", "previous_response_id", "not_found"
            )
        messages += server.stored[previous]
    said = body.get("input")
    if isinstance(said, str):
        return [*messages, {"role": "user", "content": said}]
    if isinstance(said, list) and said and all(isinstance(item, dict) for item in said):
        return [*messages, *(_message(item) for item in said)]
    raise _invalid("'input' is required", "input", "missing_required_parameter")


def _message(item: Mapping[str, Any]) -> Mapping[str, Any]:
    if item.get("type") == "function_call_output":
        return {"role": "tool", "content": str(item.get("output", ""))}
    return item


def _wish(body: Mapping[str, Any]) -> Wish:
    text = body.get("text")
    if isinstance(text, dict) and "format" not in text:
        raise _invalid(
            "Missing required parameter: 'text.format'.", "text.format", "missing_required_parameter"
        )
    limit = body.get("max_output_tokens")
    if limit is not None and (isinstance(limit, bool) or not isinstance(limit, int)):
        raise _invalid("'max_output_tokens' must be an integer", "max_output_tokens", "invalid_type")
    reasoning = body.get("reasoning")
    effort = reasoning.get("effort") if isinstance(reasoning, dict) else None
    tools = body.get("tools")
    functions = [one for one in tools if isinstance(one, dict)] if isinstance(tools, list) else []
    return Wish(
        max_tokens=limit,
        tools=tuple(one for one in functions if one.get("type") == "function"),
        tool_choice=tool_choice_of(body),
        reasons=effort != "none",
    )


def _invalid(text: str, param: str, code: str) -> Refused:
    return Refused(Failure(text, shape="openai", param=param, code=code))

"""What answers look like: whole chat and text completions, their chunks in a stream, and the numbers beside them."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import msgspec

from lmq_simulator import shapes
from lmq_simulator.records import Channel, Piece, Ticket
from lmq_simulator.server import Server

_encode = msgspec.json.encode


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


def completion_answer(server: Server, ticket: Ticket) -> dict[str, Any]:
    """Return the body of a text completion that was not streamed."""
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
    """Return the token counts of a request so far."""
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


def v0_extras(ticket: Ticket) -> dict[str, Any]:
    """Return what v0 adds to an answer of the OpenAI form."""
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

    def pieces(self, pieces: Sequence[Piece]) -> bytes:
        return b"".join([self._chunk(self._delta(piece), None) for piece in pieces])

    def ending(self, ticket: Ticket) -> bytes:
        parts = [self._chunk({}, ticket.plan.finish_reason, v0_extras(ticket) if self._is_v0 else None)]
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
                call = {
                    "index": 0,
                    "id": tool_call_id(self._server),
                    "type": "function",
                    "function": function,
                }
                delta["tool_calls"] = [call]
            case Channel.TOOL_ARGUMENTS:
                delta["tool_calls"] = [{"index": 0, "function": {"arguments": piece.text}}]
        return delta

    def _chunk(
        self, delta: dict[str, Any], finish: str | None, extras: dict[str, Any] | None = None
    ) -> bytes:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
        tail = b"" if extras is None else b"," + _encode(extras)[1:-1]
        return self._head + b',"choices":[' + _encode(choice) + b"]" + tail + b"}\n\n"


class CompletionFrames(ChatFrames):
    """Writes the chunks of a streamed text completion."""

    OBJECT = "text_completion"
    PREFIX = "cmpl-"

    def _delta(self, piece: Piece) -> dict[str, Any]:
        return {"text": piece.text}

    def _chunk(
        self, delta: dict[str, Any], finish: str | None, extras: dict[str, Any] | None = None
    ) -> bytes:
        choice = {"index": 0, "text": delta.get("text", ""), "logprobs": None, "finish_reason": finish}
        tail = b"" if extras is None else b"," + _encode(extras)[1:-1]
        return self._head + b',"choices":[' + _encode(choice) + b"]" + tail + b"}\n\n"
